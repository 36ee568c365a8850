"""What a cascade may promise: the cheapest threshold of confidence with which its accuracy is high enough, for sure.

A cascade takes the small model's answer if its confidence is at least T, and asks the large model otherwise. On rows
with gold labels both models have answered. For a threshold T, the cascade is right on k of the n rows; were its true
accuracy below the target, so many right answers would have a probability of at most P(Binomial(n, target) >= k).
That is an exact p value.

Thresholds are tested in an order that is fixed before anything is seen: from the safest (all rows go to the large
model) downwards, until one cannot be rejected. Such a sequence needs no correction for the number of its tests: the
chance that the threshold before the stop misses the target is at most the risk. This is fixed-sequence testing, as
used by Angelopoulos, Bates, Candès, Jordan and Lei, Learn then Test: Calibrating Predictive Algorithms to Achieve Risk
Control (2021). It holds for rows drawn from where the job's rows come from, whatever the models and the confidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from scipy import special

from batchchat.dataclass import dataclass

ALWAYS = 1.01
"""A threshold above all confidences: every row goes to the large model."""
GRID: tuple[float, ...] = (ALWAYS, 1.0, 0.999, 0.995, *(round(0.99 - at / 100, 2) for at in range(100)))
"""The thresholds that are tested, in their order: down to 0, where only rows without a confidence go on. They are
fixed, since a grid made from the rows themselves would be chosen by what is tested."""
_MOST_ROWS = 1_000_000
"""Labelled rows beyond which it is of no use to say how many are needed."""


@dataclass(frozen=True, slots=True)
class CascadePoint:
    """A threshold on the gold rows: `right` of `n` answers of the cascade, and the share that the large model gets."""

    threshold: float
    n: int
    right: int
    escalated: float

    @property
    def accuracy(self) -> float:
        """The share of right answers on the gold rows."""
        return self.right / self.n if self.n else 0.0


@dataclass(frozen=True, slots=True)
class CascadePromise:
    """What was found: the cheapest threshold that may be promised, None if there is none.

    `failed` is the threshold at which the tests stopped.
    """

    target: float
    risk: float
    chosen: CascadePoint | None
    failed: CascadePoint | None
    points: tuple[CascadePoint, ...]

    @property
    def bound(self) -> float | None:
        """The lower bound of the chosen cascade's accuracy, which holds with probability 1 - risk."""
        return None if self.chosen is None else lower_bound(self.chosen.right, self.chosen.n, self.risk)

    @property
    def more_rows(self) -> int | None:
        """How many more gold rows would let the failed threshold pass if the share of right answers stays as it is.

        None if that share is not above the target, or if nothing failed.
        """
        return None if self.failed is None else more_rows(self.failed, self.target, self.risk)


def promise(
    confidence: Sequence[float | None],
    small_right: Sequence[bool],
    large_right: Sequence[bool],
    *,
    target: float,
    risk: float,
) -> CascadePromise:
    """Find the cheapest threshold with which the cascade's accuracy is at least `target`, with probability 1 - risk.

    A row without a confidence always goes to the large model.
    """
    n = len(confidence)
    sure = np.array([-1.0 if value is None else value for value in confidence], dtype=np.float64)
    small, large = np.asarray(small_right, dtype=bool), np.asarray(large_right, dtype=bool)
    # In the order of confidence, the accepted rows of each threshold are the first ones.
    order = np.argsort(-sure, kind="stable")
    accepted = np.searchsorted(-sure[order], -np.array(GRID), side="right")
    of_small, of_large = (np.concatenate([[0], np.cumsum(hits[order])]) for hits in (small, large))
    right = of_small[accepted] + of_large[-1] - of_large[accepted]
    needed = right_answers_needed(n, target, risk)
    passed = right >= needed
    # The first that cannot be rejected ends the sequence: what comes behind it is not looked at.
    stop = len(GRID) if passed.all() else int(np.argmin(passed))
    points = tuple(
        CascadePoint(GRID[at], n, int(right[at]), float(1 - accepted[at] / n) if n else 1.0) for at in range(len(GRID))
    )
    failed = points[stop] if stop < len(GRID) else None
    return CascadePromise(target, risk, _cheapest(points[:stop]), failed, points)


def _cheapest(passed: Sequence[CascadePoint]) -> CascadePoint | None:
    """Return the last threshold that passed; of those that treat these rows alike the safest."""
    if not passed:
        return None
    return next(point for point in passed if point.escalated == passed[-1].escalated)


@lru_cache(maxsize=4096)
def right_answers_needed(n: int, target: float, risk: float) -> int:
    """Return how many of n answers must be right to promise the target; n + 1 if not even all are enough."""
    # The smallest k with P(Binomial(n, target) >= k) <= risk; k = 0 has 1, and k = n + 1 has 0.
    low, high = 0, n + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if special.bdtrc(middle - 1, n, target) <= risk else (middle, high)
    return high


def lower_bound(right: int, n: int, risk: float) -> float:
    """Return the exact lower bound of a share (Clopper and Pearson 1934), which holds with probability 1 - risk."""
    return float(special.betaincinv(right, n - right + 1, risk)) if right else 0.0


def more_rows(point: CascadePoint, target: float, risk: float) -> int | None:
    """Return how many more gold rows would let a threshold pass if its share of right answers stays as it is.

    None if the share is not above the target, or the number is beyond all bounds.
    """
    if not point.n or point.accuracy <= target:
        return None

    def enough(n: int) -> bool:
        return int(point.accuracy * n + 1e-9) >= right_answers_needed(n, target, risk)

    low = high = point.n
    while not enough(high):
        low, high = high, high * 2
        if high > _MOST_ROWS:
            return None
    # Whole numbers make it jump a little; between the two ends the smallest that is enough is near enough.
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high - point.n
