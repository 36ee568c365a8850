"""The chunks of a run: those that wait for room in the provider's queue, and those that are under way.

A provider bounds the prompt tokens of all batches of an account that have not ended. The bound is told by the job, by
the dialect, or by a refusal; batches of others count too, so that a refusal is waited for and never a failure.
"""

from __future__ import annotations

from collections import deque

import anyio

from batchchat.engines.batch.building import Bounds, Planned
from batchchat.engines.batch.service import QueueFull

_TRIES_ALONE = 3
"""Creations that the provider's queue refuses, with no other batch of ours under way, before a chunk is parted."""


class ChunkQueue:
    """Holds the chunks of a run: `ready` have no batch yet, the oldest first; `live` have one, or are about to."""

    def __init__(self, bounds: Bounds) -> None:
        self.ready: deque[Planned] = deque()
        self.live: dict[int, Planned] = {}
        self.bounds = bounds
        self._full_until: float | None = None

    @property
    def created(self) -> list[Planned]:
        """Return the chunks that have a batch."""
        return [planned for planned in self.live.values() if planned.state.batch is not None]

    def take(self) -> Planned | None:
        """Take the next chunk whose batch may be created now; None if there is none, or no room."""
        if not self.ready or self.wait() is not None or self._lacks_room():
            return None
        planned = self.ready.popleft()
        self.live[planned.state.number] = planned
        return planned

    def wait(self) -> float | None:
        """Return the seconds for which nothing is created, as the provider's queue was full; None if it may not be."""
        if self._full_until is None:
            return None
        left = self._full_until - anyio.current_time()
        if left <= 0:
            self._full_until = None
            return None
        return left

    @property
    def blocked(self) -> bool:
        """Tell whether the first chunk that is ready has to wait for the provider's queue."""
        return bool(self.ready) and (self.wait() is not None or self._lacks_room())

    def _lacks_room(self) -> bool:
        most = self.bounds.queued_tokens
        # With no batch of ours under way even a chunk above the bound is tried: the bound may have been learned wrong.
        if most is None or not self.live:
            return False
        queued = sum(planned.state.prompt_tokens for planned in self.live.values())
        return queued + self.ready[0].state.prompt_tokens > most

    def refused(self, planned: Planned, error: QueueFull, poll_s: float) -> bool:
        """Take in that the queue had no room for a chunk; return true if it can never fit, and is to be parted."""
        state = planned.state
        if error.queued_tokens is not None:
            self.bounds.lower_queue(error.queued_tokens)
        # Batches of others count too, so that waiting for our own to end may not be enough.
        others = len(self.live) > 1
        self._full_until = anyio.current_time() + (error.retry_after or poll_s * (2 if others else 4))
        most = self.bounds.queued_tokens
        alone = not others and state.tries >= _TRIES_ALONE
        if state.lines > 1 and (alone or (most is not None and state.prompt_tokens > most)):
            # Its tokens are guessed by size, and may be more in truth.
            self.bounds.lower_queue(max(1, state.prompt_tokens // 2))
            return True
        # Back to the front: the order of the input is kept as far as the queue lets it.
        self.live.pop(state.number, None)
        self.ready.appendleft(planned)
        return False

    def remove(self, planned: Planned) -> None:
        """Let go of a chunk that is done with."""
        self.live.pop(planned.state.number, None)

    def freed(self) -> None:
        """Note that a batch has ended: the queue has room again."""
        self._full_until = None
