"""Which shards are still to be run, and by whom: claims of workers, and how often a claim was lost."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence

_CLAIMS_EACH = 2
"""Claims of each worker, if all are equally fast. Each reads the whole input once and waits for its last answers; with
two, a worker that is late leaves a quarter of its rows to the others. Chosen, not measured."""
_MOST_DEATHS = 3
"""How many workers may die over the same shards: what kills three is no accident, and would kill a fourth."""
_ACCIDENT_S = 300.0
"""A worker that has worked for so many seconds, and got on, did not die of its shards: machines that others may take
away are lost after hours, and in a long run more than three times. Chosen: a row that kills does so within seconds."""

Claim = tuple[int, ...]


class Claims:
    """The shards of a run on their way through its workers. Times are those of one clock, in seconds."""

    def __init__(self, shards: Sequence[int], workers: int) -> None:
        size = max(1, -(-len(shards) // (workers * _CLAIMS_EACH)))
        self._left: deque[Claim] = deque(tuple(shards[at : at + size]) for at in range(0, len(shards), size))
        self._taken: dict[str, tuple[Claim, float]] = {}
        self._deaths: Counter[Claim] = Counter()
        self._orphaned: set[Claim] = set()
        self._held: dict[Claim, tuple[float, float]] = {}
        self.given_up: list[Claim] = []

    def take(self, worker: str, now: float) -> Claim | None:
        """Return the shards that a worker runs next, None if nothing is there for it now."""
        claim = next((claim for claim in self._left if self._held.get(claim, (now, now))[1] <= now), None)
        if claim is not None:
            self._left.remove(claim)
            self._taken[worker] = (claim, now)
        return claim

    def is_orphaned(self, claim: Claim) -> bool:
        """Return whether a worker of this run died over these shards, so that their holder may be one that is dead."""
        return claim in self._orphaned

    def end(self, worker: str) -> None:
        """Note that a worker has run its claim, whatever came of it."""
        self._taken.pop(worker, None)

    def held_for(self, worker: str, now: float) -> float:
        """Return for how many seconds the shards of a worker's claim have been held; 0 if they were not deferred."""
        claim, _ = self._taken[worker]
        return now - self._held.get(claim, (now, now))[0]

    def defer(self, worker: str, now: float, seconds: float) -> None:
        """Put the claim of a worker back for some seconds: somebody else still holds its shards."""
        claim, _ = self._taken.pop(worker)
        since, _ = self._held.get(claim, (now, now))
        self._held[claim] = (since, now + seconds)
        self._left.append(claim)

    def died(self, worker: str, now: float, *, got_on: bool) -> Claim | None:
        """Note that a worker died; its claim is free again, unless it has killed too many. Return the claim.

        `got_on` tells whether the worker has counted rows of its claim.
        """
        claim, since = self._taken.pop(worker, (None, now))
        if claim is not None:
            if got_on and now - since >= _ACCIDENT_S:
                self._deaths[claim] = 0
            self._deaths[claim] += 1
            self._orphaned.add(claim)
            if self._deaths[claim] < _MOST_DEATHS:
                # At the front: whoever comes next goes on where the dead one was.
                self._left.appendleft(claim)
            else:
                self.given_up.append(claim)
        return claim

    def drop(self) -> None:
        """Hand out nothing more: the run is ending."""
        self._left.clear()

    @property
    def left(self) -> bool:
        """Whether shards wait for a worker."""
        return bool(self._left)

    @property
    def waiting(self) -> int:
        """How many shards wait for a worker."""
        return sum(map(len, self._left))
