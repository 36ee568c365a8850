"""Parting a chunk whose file the provider refuses as a whole.

A provider that names the line costs one row: what stands before it and what stands behind it goes on apart. One that
names none is asked with both halves, and so on, until the row is found that cannot be read. A bound ends this. If
nothing of a job was ever taken, and one refusal after the other says the same, it is not about rows: the run stops.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import anyio.lowlevel

from batchchat.dataclass import dataclass
from batchchat.engines.batch.building import Builder
from batchchat.engines.batch.chunks import ChunkReader
from batchchat.engines.batch.ledger import ChunkState
from batchchat.engines.causes import NUMBERED
from batchchat.engines.port import Settled, Sink
from batchchat.errors import NeedsHuman
from batchchat.records import ErrorKind, Failure, Reply, Request, Verdict

MOST_PARTINGS = 24
"""How often a chunk is parted: 16 halvings find one row of 50,000, and some more find a few of them."""
_REFUSALS = 4
"""Refusals in a row, alike and with nothing ever taken, before they are not about rows. One bad row in a chunk gives
two in a row at most: one of its halves is taken."""
_BETWEEN = 64
_REMEDY = (
    "Check the model, the params and the account against what the provider takes in batches, then run the same command "
    "again: these rows are open."
)


@dataclass(frozen=True, slots=True)
class RefusedChunk:
    """Why a provider refuses a file. `line` counts from 1, None if it names none."""

    message: str
    line: int | None = None
    code: str | None = None
    too_large: bool = False


class Keeper(Protocol):
    """What takes the requests of a chunk that is parted."""

    def again_into(self, builder: Builder, request: Request, batches: int) -> bool:
        """Write a request into a further chunk of this builder; false if it stays open."""

    def wants(self, custom_id: str) -> bool:
        """Return true if the pass asks for the request, as far as it was read."""

    def release(self, request: Request, batches: int) -> None:
        """Let the feed have a request that stays open: it was in so many batches."""


class Parting:
    """Parts chunks of a run. `taken_before` says that a batch of this job was taken in an earlier run."""

    def __init__(self, folder: Path, keeper: Keeper, sink: Sink, *, taken_before: bool) -> None:
        self._folder = folder
        self._keeper = keeper
        self._sink = sink
        self._taken = taken_before
        self._words: str | None = None
        self._alike = 0

    def note_taken(self) -> None:
        """Note that the provider has taken a file."""
        self._taken = True
        self._alike = 0

    async def part(self, state: ChunkState, refused: RefusedChunk, builder: Builder) -> None:
        """Write the requests of a chunk into smaller ones, and fail the row that cannot be read.

        Raises NeedsHuman if the refusals are about everything.
        """
        self._judge(refused)
        reader = ChunkReader(self._folder, state.name)
        try:
            custom_ids = list(reader.custom_ids())
            bad = None if refused.line is None or refused.too_large else reader.at_line(refused.line)
            # The file holds one request, so that is the one that is refused.
            if bad is None and len(custom_ids) == 1:
                bad = custom_ids[0]
            # Many rows are bad, or the refusal is not about rows: to go on would cost thousands of uploads.
            if state.splits >= MOST_PARTINGS:
                for custom_id in custom_ids:
                    self._fail(
                        reader, custom_id, f"not found out in {state.splits} tries which row it is: {refused.message}"
                    )
                return
            if bad is not None:
                place = custom_ids.index(bad)
                self._fail(reader, bad, refused.message)
                pieces = [custom_ids[:place], custom_ids[place + 1 :]]
            else:
                half = len(custom_ids) // 2
                pieces = [custom_ids[:half], custom_ids[half:]]
            for piece in pieces:
                await self._write(reader, piece, builder)
                builder.next_chunk()
        finally:
            reader.close()

    async def each(self, state: ChunkState, again: Callable[[Request, int], bool]) -> None:
        """Give every request of a chunk to `again`, with how many batches it was in."""
        reader = ChunkReader(self._folder, state.name)
        try:
            for number, custom_id in enumerate(list(reader.custom_ids()), 1):
                found = reader.get(custom_id)
                if found is not None:
                    again(*found)
                if not number % _BETWEEN:
                    await anyio.lowlevel.checkpoint()
        finally:
            reader.close()

    def _judge(self, refused: RefusedChunk) -> None:
        """Count refusals that may be about everything."""
        # A refusal at a later line shows that the lines before it were read.
        if refused.too_large or self._taken or (refused.line or 1) > 1:
            self._alike = 0
            return
        words = NUMBERED.sub("0", refused.message)
        self._alike = self._alike + 1 if words == self._words else 1
        self._words = words
        if self._alike >= _REFUSALS:
            raise NeedsHuman(
                f"{self._alike} batches were refused the same way, and none was taken: {refused.message}",
                remedy=_REMEDY,
            )

    async def _write(self, reader: ChunkReader, custom_ids: Sequence[str], builder: Builder) -> None:
        for number, custom_id in enumerate(custom_ids, 1):
            found = reader.get(custom_id)
            if found is not None:
                self._keeper.again_into(builder, *found)
            if not number % _BETWEEN:
                await anyio.lowlevel.checkpoint()

    def _fail(self, reader: ChunkReader, custom_id: str, message: str) -> None:
        found = reader.get(custom_id)
        if found is None:
            return
        if not self._keeper.wants(custom_id):
            # Of an earlier run: if the pass still comes to its row, it is asked as the job is then.
            self._keeper.release(*found)
            return
        failure = Failure(ErrorKind.INVALID_REQUEST, f"the provider refuses its line of the batch: {message}")
        self._sink.put(Settled(found[0], Reply(Verdict.NO, failure=failure, sent=False), failure))
