"""Looks at batches: when the next one is due, and one call that tells of all of them."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import anyio

from batchchat.engines.batch.building import Planned
from batchchat.engines.batch.creation import Creation, Patience
from batchchat.engines.batch.queue import ChunkQueue
from batchchat.engines.batch.service import BatchService, RemoteBatch
from batchchat.engines.batch.setting import POLL_FIRST_S
from batchchat.errors import NeedsHuman

_POLL_LONGEST_S = 60.0
"""Seconds between two looks at batches that are an hour old: what providers advise."""
_POLL_CANCELLED_S = 10.0
"""The same while batches are being cancelled: a person or a deadline waits for it, and it takes up to ten minutes."""
_AGE_S = 3600.0
_UNKNOWN_LOOKS = 10
"""Looks in a row at which the provider does not know a batch, before it is given up. With the usual waits these are
five minutes: new batches were seen to be unknown for some seconds."""


class LookSchedule:
    """When batches are looked at. `poll` is the time between two looks in seconds, None for the usual one.

    The usual one begins with `poll_first` and grows with the age of the batches. It is short in a `hurry`.
    """

    def __init__(
        self, poll: float | None, poll_first: float, *, rng: random.Random, wall_clock: Callable[[], float]
    ) -> None:
        self.hurry = False
        self._poll = poll
        self._poll_first = poll_first
        self._rng = rng
        self._wall_clock = wall_clock
        self._created_at = anyio.current_time()
        self._next: float | None = None

    def note_created(self) -> None:
        """Note that a batch was created: if batches end within seconds, it is looked at soon."""
        self._created_at = anyio.current_time()

    def due_in(self, queue: ChunkQueue) -> float | None:
        """Return the seconds until the next look, None if there is no batch to look at."""
        # Without a batch there is nothing to look at; the first one begins the count anew.
        if not queue.created:
            self._next = None
            return None
        now = anyio.current_time()
        if self._next is None:
            self._next = now + self.seconds(queue)
        elif self.hurry and self._poll is None:
            self._next = min(self._next, now + _POLL_CANCELLED_S)
        return self._next - now

    def looked(self, queue: ChunkQueue) -> None:
        """Note that a look was made just now."""
        # Many runs that a timer starts at one moment must not look at one moment.
        jitter = 1.0 if self._poll is not None else self._rng.uniform(1.0, 1.2)
        self._next = anyio.current_time() + self.seconds(queue) * jitter

    def seconds(self, queue: ChunkQueue) -> float:
        """Return the seconds between two looks at the batches: more as they grow older."""
        if self._poll is not None:
            return self._poll
        if self.hurry:
            return _POLL_CANCELLED_S
        now = self._wall_clock()
        ages = [now - (planned.state.created_at or now) for planned in queue.live.values()]
        age = max(0.0, min(ages, default=0.0))
        # Where batches may end within seconds, the wait is as long as the newest is old, up to the usual one.
        newest = anyio.current_time() - self._created_at
        young = min(POLL_FIRST_S, max(self._poll_first, newest))
        return young + (_POLL_LONGEST_S - young) * min(1.0, age / _AGE_S)


class Looks:
    """Asks the provider about all batches at once, and counts for how long it has not known one."""

    def __init__(self, service: BatchService, creation: Creation, patience: Patience) -> None:
        self._service = service
        self._creation = creation
        self._patience = patience
        self._unknown: dict[str, int] = {}

    async def look(self, created: list[Planned]) -> dict[str, RemoteBatch]:
        """Return what the provider tells of the batches of these chunks.

        Raises NeedsHuman if it knows none of them for so long that the key must be another one's.
        """
        asked = [batch_id for planned in created for batch_id in batches_of(planned)]
        found = await self._patience(lambda: self._service.poll(asked), "a look at the batches")
        for batch_id in asked:
            self._unknown[batch_id] = 0 if batch_id in found else self._unknown.get(batch_id, 0) + 1
        lost = [batch_id for batch_id in asked if self.is_lost(batch_id)]
        for state in [planned.state for planned in created if planned.state.batch in lost]:
            # Results that lie in a bucket of our own tell of a batch that the provider has forgotten.
            ended = [batch for batch in await self._creation.find(state) if batch.ended and batch.result_refs]
            if ended and state.batch is not None:
                found[state.batch] = replace(ended[0], id=state.batch)
        if lost and not found:
            raise NeedsHuman(
                f"the provider knows none of the {len(asked)} batches of this output, such as {lost[0]}",
                remedy="Is the key one of another project or account? With the key that created them, the same command "
                "takes their answers.",
            )
        return found

    def is_lost(self, batch_id: str) -> bool:
        """Tell whether the provider has not known a batch for so long that it is given up."""
        return self._unknown.get(batch_id, 0) >= _UNKNOWN_LOOKS


def batches_of(planned: Planned) -> list[str]:
    """Return the ids of all batches of a chunk: its own, and those that are one too many."""
    return [each for each in (planned.state.batch, *planned.state.surplus) if each is not None]
