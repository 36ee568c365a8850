"""Which shards are still to be run, and by whom: claims of workers, and how often a claim was lost."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence

_CLAIMS_EACH = 2
"""Claims of each worker, if all are equally fast. Each reads the whole input once and waits for its last answers; with
two, a worker that is late leaves a quarter of its rows to the others. Chosen, not measured."""
_MOST_DEATHS = 3
"""How many workers may die over the same shards: what kills three is no accident, and would kill a fourth."""

Claim = tuple[int, ...]


class Claims:
    """The shards of a run on their way through its workers."""

    def __init__(self, shards: Sequence[int], workers: int) -> None:
        size = max(1, -(-len(shards) // (workers * _CLAIMS_EACH)))
        self._left: deque[Claim] = deque(tuple(shards[at : at + size]) for at in range(0, len(shards), size))
        self._taken: dict[str, Claim] = {}
        self._deaths: Counter[Claim] = Counter()
        self.given_up: list[Claim] = []

    def take(self, worker: str) -> Claim | None:
        """Return the shards that a worker runs next, None if nothing is left for it."""
        claim = self._left.popleft() if self._left else None
        if claim is not None:
            self._taken[worker] = claim
        return claim

    def end(self, worker: str) -> None:
        """Note that a worker has run its claim, whatever came of it."""
        self._taken.pop(worker, None)

    def died(self, worker: str) -> Claim | None:
        """Note that a worker died; its claim is free again, unless it has killed too many. Return the claim."""
        claim = self._taken.pop(worker, None)
        if claim is not None:
            self._deaths[claim] += 1
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
