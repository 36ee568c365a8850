"""Building chunks: requests are written to disk as they come, under three budgets at once.

A chunk ends when the next request would pass the provider's number of lines, its bytes, or the prompt tokens that the
model's queue takes; or when there is no further request.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from batchchat.budget import Account, Bulk
from batchchat.dataclass import dataclass
from batchchat.engines.batch.chunks import ChunkWriter
from batchchat.engines.batch.harvest import reserved
from batchchat.engines.batch.ledger import ChunkState, Ledger
from batchchat.engines.batch.service import BatchService
from batchchat.records import Request

_MARGIN = 0.98
"""The share of the provider's bytes that a file fills: what a provider counts beside the lines is not documented."""


@dataclass(slots=True)
class Bounds:
    """What one chunk may hold, and what all that are under way may hold. Falls as refusals teach more."""

    lines: int
    nbytes: int
    line_bytes: int | None
    queued_tokens: int | None

    @classmethod
    def of(cls, service: BatchService, *, lines: int | None, nbytes: int | None, queued_tokens: int | None) -> Bounds:
        """Return the provider's bounds, and if the job's own are lower, those."""
        limits = service.limits
        most = int(limits.file_bytes * _MARGIN)
        known = [tokens for tokens in (limits.queued_tokens, queued_tokens) if tokens is not None]
        return cls(
            min(limits.lines, lines or limits.lines),
            min(most, nbytes or most),
            limits.line_bytes,
            min(known) if known else None,
        )

    def lower_queue(self, tokens: int) -> None:
        """Take in that the provider's queue holds no more than this."""
        self.queued_tokens = tokens if self.queued_tokens is None else min(self.queued_tokens, tokens)


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks: what every chunk of this run says of itself."""

    job: str
    run_id: str
    prompt_id: str
    model: str


@dataclass(slots=True)
class Planned:
    """A chunk that is on the disk and in the ledger, with its reservation."""

    state: ChunkState
    hold: Bulk | None


class Builder:
    """Writes requests into a chunk, and begins another when it is full.

    `add` and `next_chunk` write to files that are open; `plan` waits for the disk.
    """

    def __init__(
        self,
        folder: Path,
        ledger: Ledger,
        asker: Asker,
        bounds: Bounds,
        *,
        account: Account | None,
        offload: Callable[..., Awaitable[Any]],
    ) -> None:
        self._folder = folder
        self._ledger = ledger
        self._asker = asker
        self._bounds = bounds
        self._account = account
        self._offload = offload
        self._writer: ChunkWriter | None = None
        self._hold: Bulk | None = None
        self._number = 0
        self._nonce = ""
        self._full: list[tuple[int, str, ChunkWriter, Bulk | None]] = []

    @property
    def waiting(self) -> int:
        """Return how many requests are written and not yet planned."""
        return sum(writer.lines for _, _, writer, _ in self._full) + (self._writer.lines if self._writer else 0)

    @property
    def full(self) -> bool:
        """Return true if a chunk is full and should be planned."""
        return bool(self._full)

    def add(self, request: Request, line: bytes, batches: int) -> bool:
        """Write a request. False if the budget has no room for it now. Raises StoppedEarly if it never will."""
        tokens = reserved(request.prompt_tokens, request.max_tokens)
        writer = self._writer
        # Before the budget is asked: each chunk has a reservation of its own, which ends with its batch.
        if writer is not None and self._passes(writer, len(line), tokens[0]):
            self.next_chunk()
        hold = self._hold if self._writer is not None else self._account.bulk() if self._account else None
        if hold is not None and not hold.try_add(*tokens):
            return False
        # Only now, so that a chunk never has files and no request.
        if self._writer is None:
            self._number, self._nonce = self._ledger.next_number(), secrets.token_hex(4)
            stem = f"{self._asker.job}-{self._number:06d}-{self._nonce}"
            self._writer, self._hold = ChunkWriter(self._folder, stem), hold
        self._writer.add(request, line, reserved=tokens, batches=batches)
        return True

    def _passes(self, writer: ChunkWriter, nbytes: int, tokens: int) -> bool:
        bounds = self._bounds
        return (
            writer.lines >= bounds.lines
            or writer.nbytes + nbytes > bounds.nbytes
            or (bounds.queued_tokens is not None and writer.prompt_tokens + tokens > bounds.queued_tokens)
        )

    def next_chunk(self) -> None:
        """End the chunk that is being written."""
        if self._writer is not None:
            self._full.append((self._number, self._nonce, self._writer, self._hold))
            self._writer = self._hold = None

    async def plan(self, *, at: float, splits: int = 0) -> list[Planned]:
        """Make all chunks that ended durable, and note them in the ledger. Raises StorageError."""
        planned = []
        while self._full:
            number, nonce, writer, hold = self._full[0]
            state = await self._offload(self._write_down, number, nonce, writer, at, splits)
            planned.append(Planned(state, hold))
            # After the ledger knows it: a disk that failed leaves it here, to be discarded with the rest.
            self._full.pop(0)
        return planned

    def _write_down(self, number: int, nonce: str, writer: ChunkWriter, at: float, splits: int) -> ChunkState:
        facts = writer.finish()
        return self._ledger.note(
            number,
            "planned",
            at=at,
            name=facts.name,
            nonce=nonce,
            digest=facts.digest,
            lines=facts.lines,
            nbytes=facts.nbytes,
            prompt_tokens=facts.prompt_tokens,
            max_tokens=facts.max_tokens,
            splits=splits,
            round=writer.round,
            run_id=self._asker.run_id,
            prompt_id=self._asker.prompt_id,
            model=self._asker.model,
        )

    def discard(self) -> None:
        """Remove what is not planned: its requests stay open."""
        self.next_chunk()
        for _, _, writer, hold in self._full:
            writer.discard()
            if hold is not None:
                hold.release()
        self._full = []
