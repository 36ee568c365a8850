"""What several samples of a row tell together: found at least once, found every time, found by most, always the same.

Each is a value for each row, from 0 to 1, of its n samples with a value, c of which are right. It is the mean over all
choices of k of them, so that it is without bias and does not depend on the order of the samples:

    pass_at     at least one of k is right       1 - C(n - c, k) / C(n, k)
    pass_all    all k are right                  C(c, k) / C(n, k)
    majority    more than half of k are right    Σ_{j > k/2} C(c, j) C(n - c, k - j) / C(n, k), half of a tie counted
    consistency two samples agree                (C(c, 2) + C(n - c, 2)) / C(n, 2)

`pass_at` is the estimator of Chen et al. 2021 (arXiv:2107.03374, equation 1), `pass_all` that of pass^k of Yao et al.
2024 (arXiv:2406.12045). A row with fewer than k values has none.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

from batchchat.evaluation.statistics.intervals import Array

SampleKind = Literal["pass_at", "pass_all", "majority", "consistency"]


class SampleMetric(NamedTuple):
    """A metric over samples: `k` samples are looked at together."""

    kind: SampleKind
    k: int

    @property
    def name(self) -> str:
        """Return its name behind that of the score: `pass_at_3`, `consistency`."""
        return self.kind if self.kind == "consistency" else f"{self.kind}_{self.k}"

    def values(self, grid: Array) -> Array:
        """Return one value a row of a grid of 0, 1 and NaN with the shape (rows, samples); NaN if it has too few."""
        present = np.isfinite(grid)
        counts = present.sum(axis=1)
        right = np.where(present, grid, 0.0).sum(axis=1).astype(np.int64)
        found = np.full(grid.shape[0], np.nan)
        # Rows with as many samples and as many right ones have the same value.
        pairs, where = np.unique(np.stack([counts, right], axis=1), axis=0, return_inverse=True)
        known = [_KINDS[self.kind](int(n), int(c), self.k) if n >= self.k else math.nan for n, c in pairs]
        found[:] = np.array(known, dtype=np.float64)[where.reshape(-1)]
        return found


def _pass_at(n: int, c: int, k: int) -> float:
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def _pass_all(n: int, c: int, k: int) -> float:
    return math.comb(c, k) / math.comb(n, k)


def _majority(n: int, c: int, k: int) -> float:
    ways = sum(math.comb(c, j) * math.comb(n - c, k - j) * (2 if 2 * j > k else 1) for j in range(-(-k // 2), k + 1))
    return ways / (2 * math.comb(n, k))


def _consistency(n: int, c: int, _k: int) -> float:
    return (math.comb(c, 2) + math.comb(n - c, 2)) / math.comb(n, 2)


_KINDS: dict[SampleKind, Callable[[int, int, int], float]] = {
    "pass_at": _pass_at,
    "pass_all": _pass_all,
    "majority": _majority,
    "consistency": _consistency,
}
