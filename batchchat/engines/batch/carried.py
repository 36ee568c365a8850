"""What a batch engine knows of single requests: whose answers are counted, which ones are in a batch already.

The batches of earlier runs hold requests that the feed yields again, as far as the job still has them. Such a request
is left to its batch. If the batch did not answer it, it is *released*: it goes into a further batch if the pass asks
for it, and else is forgotten, since the job has changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from batchchat.dataclass import dataclass
from batchchat.engines.batch.chunks import ChunkReader, ChunkWriter, remove_files, remove_leftovers
from batchchat.engines.port import Feed
from batchchat.records import Request, Usage
from batchchat.store.index import ARCHIVED, OK, KeyIndex, RecordIndex, is_live, key_digest

_TOGETHER = 64
"""Requests that are handed on together, as in the feed of a run."""


@dataclass(slots=True)
class _Past:
    """What a released request has behind it."""

    batches: int
    attempts: int
    counted: int
    usage: Usage
    cost: int | None
    started_at: int
    further: tuple[Any, bytes, int, int | None] | None


class Carried:
    """Knows the requests of an output and of its batches.

    `index` and `keys` are the output's, which the pass marks as it asks. `steps` tells how many answers are kept of
    requests that go on. Requests for single exchanges lie in `folder` until `onward` is asked for.
    """

    def __init__(self, index: RecordIndex, keys: KeyIndex | None, steps: Mapping[str, int], folder: Path) -> None:
        self.asked_again = 0
        self.corrections = 0
        self.onward_count = 0
        self.postponed = 0
        self._index = index
        self._keys = keys
        self._steps = steps
        self._folder = folder
        self._owned = RecordIndex()
        self._released: dict[str, _Past] = {}
        self._late: set[str] = set()
        self._onward: ChunkWriter | None = None

    def take_over(self, names: set[str]) -> None:
        """Learn the requests of the chunks with these names; remove files of no chunk. Blocking code."""
        remove_leftovers(self._folder, names)
        for name in names:
            reader = ChunkReader(self._folder, name)
            for custom_id in reader.custom_ids():
                # An index of records as a set: a batch of 50,000 takes 24 bytes a request there, not 100.
                self._owned.put(custom_id, OK, seen=False)
            reader.close()

    # --- about single requests

    def take(self, request: Request) -> tuple[Request, int] | None:
        """Return a request of the feed that is to be sent, with how many batches it was in; None if it is in one."""
        if self._owned.get(request.custom_id) != OK:
            past = self._released.pop(request.custom_id, None) if self._released else None
            return request, 0 if past is None else _resumed(request, past)
        # Its answer went to the archive just now, and only the next run can see it there.
        self.postponed += request.custom_id in self._late
        return None

    def is_settled(self, custom_id: str) -> bool:
        """Return true if the request has a counted completion: a live record, or one in the archive."""
        return self._index.get(custom_id) in {OK, ARCHIVED}

    def steps_kept(self, custom_id: str) -> int:
        """Return how many answers of a request that goes on were counted by an earlier run."""
        return self._steps.get(custom_id, 0)

    def wants(self, custom_id: str) -> bool:
        """Return true if the pass asks for the request, as far as it was read."""
        return self._index.is_seen(custom_id)

    def is_replaced(self, request: Request) -> bool:
        """Return true if the answer to a request must not take the place of another record of its row.

        So it is if the pass asks the row something else, or if the row has another record and it is not known yet what
        the pass asks. The answer then goes to the archive, which gives it back to a pass that wants it.
        """
        # Without keys no row is known by anything but its request.
        if request.key is None or self._keys is None or self.wants(request.custom_id):
            return False
        if is_live(self._index.get(request.custom_id)):
            return False  # the row's record is an earlier failure of this very request
        # The pass has come to this row, and asked something else.
        if self._keys.is_seen(key_digest(request.key)):
            return True
        if not self._keys.is_live(key_digest(request.key, request.sample_index)):
            return False
        self._late.add(request.custom_id)
        return True

    def release(self, request: Request, batches: int) -> None:
        """Let the feed have a request that its batch did not answer."""
        custom_id = request.custom_id
        # Released before, by another batch of the same chunk.
        if self._owned.get(custom_id) != OK:
            return
        self._owned.remove(custom_id, archived=False)
        steps = request.steps
        further = None if steps is None else (steps, request.body, request.prompt_tokens, request.max_tokens)
        self._released[custom_id] = _Past(
            batches, request.attempts, request.counted, request.usage, request.cost, request.started_at, further
        )

    def let_go(self, custom_id: str) -> None:
        """Let the feed have a request again that failed in its batch, if the job asks for failed rows anew."""
        self._owned.remove(custom_id, archived=False)

    # --- requests that go on as single exchanges

    def keep_onward(self, request: Request) -> None:
        """Put a request aside for a single exchange. Writes to a file that is open."""
        if self._onward is None:
            self._onward = ChunkWriter(self._folder, "onward")
        self._onward.add(request, b"\n", reserved=(0, 0))
        self.onward_count += 1

    def onward(self) -> Feed | None:
        """Return the feed of what was put aside, None if nothing was. Blocking code."""
        writer, self._onward = self._onward, None
        return None if writer is None else _read_onward(self._folder, writer.finish().name)

    def discard(self) -> None:
        """Remove what was put aside and not asked for: those requests stay open. Blocking code."""
        writer, self._onward = self._onward, None
        if writer is not None:
            writer.discard()


def _resumed(request: Request, past: _Past) -> int:
    """Give a request back what it has behind it; return how many batches it was in."""
    request.attempts, request.counted = past.attempts, past.counted
    request.usage, request.cost, request.started_at = past.usage, past.cost, past.started_at
    if past.further is not None:
        request.steps, request.body, request.prompt_tokens, request.max_tokens = past.further
    return past.batches


async def _read_onward(folder: Path, name: str) -> Feed:
    reader = ChunkReader(folder, name)
    try:
        requests: list[Request] = []
        for custom_id in reader.custom_ids():
            found = reader.get(custom_id)
            if found is not None:
                requests.append(found[0])
            if len(requests) == _TOGETHER:
                yield requests
                requests = []
        yield requests
    finally:
        reader.close()
        remove_files(folder, name)
