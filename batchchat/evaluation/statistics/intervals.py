"""Intervals of 95 % around a mean, a share, and the difference of two shares of the same rows.

| values | interval |
|---|---|
| yes/no | Wilson; of a difference Newcombe's for pairs |
| otherwise, 10 to 1,000 rows | BCa bootstrap of row means |
| otherwise | Student's t |

No result is NaN: what cannot be computed is None, with a reason.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from batchchat.dataclass import dataclass
from batchchat.evaluation.statistics.unit import ScoreUnit

Array = NDArray[np.float64]

CONFIDENCE = 0.95
"""The confidence of every interval that is shown."""
SEED = 20_250_101
"""The seed of every draw, so that the same scores give the same interval and the same p value. Any number would do."""
RESAMPLES = 9_999
"""Resamples of the bootstrap. From seed to seed the ends of an interval then have a standard deviation of 0.6 to 0.9 %
of its width (60 seeds; 30, 300 and 1,000 skewed values)."""
BOOTSTRAP_ROWS = range(10, 1_001)
"""Numbers of rows that are bootstrapped; `mean_interval` says why not fewer and not more."""
_BLOCK = 1 << 22
"""Drawn values held at once: 32 MiB of float64, whatever the number of rows."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A 95 % interval and how it was found. Without one, `low`, `high` and `method` are None and `reason` says why."""

    low: float | None
    high: float | None
    method: str | None
    reason: str | None = None


def mean_interval(values: ArrayLike, scale: ScoreUnit, *, seed: int = SEED) -> Interval:
    """Return the 95 % interval of a mean of rows (shape (rows,), all finite).

    Yes/no rows get Wilson's. Others get the BCa bootstrap from 10 to 1,000 rows. Below that there are too few different
    resamples, and the bootstrap is known to be too narrow (Hesterberg 2015, The American Statistician 69:371-386);
    above it the mean is close enough to normal. Both get Student's t, cut where the scale ends.
    """
    rows = np.sort(np.asarray(values, dtype=np.float64))
    if rows.size == 0:
        return Interval(None, None, None, "no row has a value")
    if scale.yes_no and is_binary(rows):
        return wilson_interval(int(np.sum(rows)), int(rows.size))
    if rows.size == 1:
        return Interval(None, None, None, "a single row says nothing about the spread")
    if rows[0] == rows[-1]:
        return Interval(None, None, None, "all rows have the same value: they say nothing about the spread")
    if rows.size in BOOTSTRAP_ROWS:
        return _bca_interval(rows, seed)
    mean = float(np.mean(rows))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, rows.size - 1) * np.std(rows, ddof=1) / math.sqrt(rows.size))
    low, high = max(mean - half, scale.low), min(mean + half, scale.high)
    return Interval(min(low, mean), max(high, mean), "student_t")


def wilson_interval(successes: int, n: int, *, confidence: float = CONFIDENCE) -> Interval:
    """Wilson's score interval of a share (Wilson 1927, JASA 22:209-212), without continuity correction.

    Newcombe 1998 (Statistics in Medicine 17:857-872) recommends it: method 3 of the seven compared there.
    """
    if n == 0:
        return Interval(None, None, None, "no row has a value")
    found = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return Interval(float(found.low), float(found.high), "wilson")


def newcombe_paired_interval(
    both: int, only_a: int, only_b: int, neither: int, *, confidence: float = CONFIDENCE
) -> Interval:
    """Return the interval of the difference a - b between two shares of the same rows.

    Method 10 of Newcombe 1998 (Statistics in Medicine 17:2635-2650): Wilson's limits of both shares, squared and
    added with the correlation between them. It stays inside [-1, 1], has a width also where no pair is discordant,
    and is among those recommended by Fagerland, Lydersen and Laake 2014 (Statistics in Medicine 33:2850-2875).
    """
    n = both + only_a + only_b + neither
    if n == 0:
        return Interval(None, None, None, "no row has a value on both sides")
    share_a, share_b = (both + only_a) / n, (both + only_b) / n
    wilson_a = wilson_interval(both + only_a, n, confidence=confidence)
    wilson_b = wilson_interval(both + only_b, n, confidence=confidence)
    below_a, above_a = share_a - (wilson_a.low or 0.0), (wilson_a.high or 0.0) - share_a
    below_b, above_b = share_b - (wilson_b.low or 0.0), (wilson_b.high or 0.0) - share_b
    product = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    cross = both * neither - only_a * only_b
    # A positive correlation is reduced towards zero, as Newcombe does, by a continuity correction of n / 2.
    corrected = max(cross - n / 2, 0.0) if cross > 0 else float(cross)
    phi = corrected / math.sqrt(product) if product else 0.0
    difference = (only_a - only_b) / n
    low = difference - math.sqrt(max(below_a**2 - 2 * phi * below_a * above_b + above_b**2, 0.0))
    high = difference + math.sqrt(max(below_b**2 - 2 * phi * below_b * above_a + above_a**2, 0.0))
    return Interval(max(low, -1.0), min(high, 1.0), "newcombe_paired")


def _bca_interval(rows: Array, seed: int) -> Interval:
    """BCa bootstrap of a mean (Efron 1987, JASA 82:171-185), percentiles corrected for bias and acceleration.

    For a mean the jackknife that the acceleration needs has a closed form: a sixth of the skewness over √n.
    """
    mean = float(np.mean(rows))
    means = _bootstrap_means(rows, np.random.default_rng(seed))
    # Half of the ties with the estimate count as below it.
    below = (np.sum(means < mean) + np.sum(means <= mean)) / (2 * means.size)
    bias = float(stats.norm.ppf(np.clip(below, 0.5 / means.size, 1 - 0.5 / means.size)))
    # The skewness has no unit; scaled by the largest, no power of a deviation leaves the range of a float.
    centred = (rows - mean) / max(mean - rows[0], rows[-1] - mean)
    acceleration = float(np.sum(centred**3) / (6 * np.sum(centred**2) ** 1.5))
    z = bias + stats.norm.ppf(np.array([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]))
    levels = stats.norm.cdf(bias + z / (1 - acceleration * z))
    low, high = (float(limit) for limit in np.quantile(means, levels))
    return Interval(min(low, mean), max(high, mean), "bootstrap_bca")


def _bootstrap_means(rows: Array, generator: np.random.Generator) -> Array:
    means = np.empty(RESAMPLES)
    block = max(1, _BLOCK // rows.size)
    for start in range(0, RESAMPLES, block):
        size = min(block, RESAMPLES - start)
        drawn = generator.integers(0, rows.size, size=(size, rows.size), dtype=np.uint16)
        means[start : start + size] = rows[drawn].mean(axis=1)
    return means


def is_binary(rows: Array) -> bool:
    """Return whether every value is exactly 0 or 1."""
    return bool(np.all((rows == 0) | (rows == 1)))
