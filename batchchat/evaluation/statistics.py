"""Means with intervals, and paired comparisons with tests: which variant is better, and is the difference real.

Scores are float64 arrays of shape (rows,) or (rows, samples). Line i of two arrays is the same input row; NaN is a
null (no answer, or the scorer failed). A row is the unit of evidence: the samples of a row are averaged first, so
that asking the same row five times does not count as five rows. A row without any value is left out and counted.

| values | interval of a mean | interval of a difference | test |
|---|---|---|---|
| yes/no, each row all yes or all no | Wilson | Newcombe, paired | exact McNemar |
| otherwise | BCa bootstrap of row means, 10 to 1,000 rows; else Student's t | the same, of differences | sign flips |

No result is ever NaN: what cannot be computed is None, with a reason. Results do not depend on the order of the
rows, and comparing b with a gives exactly the negative of comparing a with b.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from batchchat.evaluation.scale import Scale

Array = NDArray[np.float64]

CONFIDENCE = 0.95
ALPHA = 0.05
POWER = 0.8
SEED = 20_250_101
RESAMPLES = 9_999
FLIPS = 9_999
_MOST_DRAWS = 39_999
BOOTSTRAP_ROWS = range(10, 1_001)
EXACT_ROWS = 16
_NORMAL_SIZES = 200
_FLIPPED_SIZES = 2_000
_BLOCK = 1 << 22


@dataclass(frozen=True, slots=True)
class Interval:
    """A 95 % interval and how it was found. Without one, `low`, `high` and `method` are None and `reason` says why."""

    low: float | None
    high: float | None
    method: str | None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class ScoreSummary:
    """The mean score of one variant with its 95 % interval.

    `n` counts the rows behind the mean, `nulls` those left out because they have no value. `ci_method` is `wilson`,
    `bootstrap_bca` (with `seed`), `bootstrap_percentile` (with `seed`; macro-F1) or `student_t`.
    """

    mean: float | None
    ci_low: float | None
    ci_high: float | None
    n: int
    unit: str
    higher_is_better: bool | None
    ci_method: str | None
    nulls: int = 0
    seed: int | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two variants on the same rows. `difference` is a - b, its interval has 95 % and is not adjusted.

    `n` counts the rows with a value on both sides, `nulls` those left out. `wins_a`, `wins_b` and `ties` count rows by
    the better row mean (the higher one where no direction is better). `flips_to_a` counts rows that most samples of
    a get right and most of b get wrong, `flips_to_b` the reverse; None where the score is not yes/no. `needed_n` is the
    number of rows that would settle a difference of this size, None where it is settled already or there is none.
    """

    a: str
    b: str
    scorer: str
    difference: float | None
    ci_low: float | None
    ci_high: float | None
    p_value: float | None
    p_adjusted: float | None
    test: str | None
    wins_a: int
    wins_b: int
    ties: int
    n: int
    nulls: int
    unit: str
    higher_is_better: bool | None
    ci_method: str | None = None
    flips_to_a: int | None = None
    flips_to_b: int | None = None
    needed_n: int | None = None
    seed: int | None = None
    reason: str | None = None

    @property
    def settled(self) -> bool:
        """Whether the test says, after adjustment, that the difference is not chance."""
        return self.p_adjusted is not None and self.p_adjusted < ALPHA

    @property
    def better(self) -> str | None:
        """The variant that is better, where the difference is settled and the score has a better direction."""
        if not self.settled or not self.difference or self.higher_is_better is None:
            return None
        return self.a if (self.difference > 0) == self.higher_is_better else self.b


def summarize(values: ArrayLike, scale: Scale, *, seed: int = SEED) -> ScoreSummary:
    """The mean of row means with its interval."""
    means = _row_means(values)
    present = np.sort(means[np.isfinite(means)])
    interval = mean_interval(present, scale, seed=seed)
    return ScoreSummary(
        mean=float(np.mean(present)) if present.size else None,
        ci_low=interval.low,
        ci_high=interval.high,
        n=int(present.size),
        unit=scale.unit,
        higher_is_better=scale.higher_is_better,
        ci_method=interval.method,
        nulls=int(means.size - present.size),
        seed=seed if interval.method == "bootstrap_bca" else None,
        reason=interval.reason,
    )


def compare(variants: Mapping[str, ArrayLike], scale: Scale, *, scorer: str, seed: int = SEED) -> list[Comparison]:
    """Compare every pair of variants on one scorer, in the order of the mapping, p values adjusted over the pairs.

    All arrays have the same number of rows. Raises ValueError where they have not.
    """
    means = {name: _row_means(values) for name, values in variants.items()}
    if len({array.size for array in means.values()}) > 1:
        raise ValueError(f"variants differ in rows: { {name: array.size for name, array in means.items()} }")
    pairs = list(combinations(means.items(), 2))
    # Each pair is sized for the strictest level that Holm's method may hold it to.
    alpha = ALPHA / max(1, len(pairs))
    return adjust([_compare_pair(a, b, scale, scorer=scorer, seed=seed, alpha=alpha) for a, b in pairs])


def adjust(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Fill in `p_adjusted` by Holm's method over all of these, and drop `needed_n` where that settles a difference."""
    adjusted = holm([comparison.p_value for comparison in comparisons])
    filled = [replace(comparison, p_adjusted=p) for comparison, p in zip(comparisons, adjusted, strict=True)]
    return [replace(comparison, needed_n=None) if comparison.settled else comparison for comparison in filled]


def leader(comparisons: Sequence[Comparison]) -> str | None:
    """The variant that is settledly better than every other one of these comparisons, if there is one."""
    names = {name for comparison in comparisons for name in (comparison.a, comparison.b)}
    won = [comparison.better for comparison in comparisons]
    return next((name for name in sorted(names) if won.count(name) == len(names) - 1), None)


def flips(a: ArrayLike, b: ArrayLike) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows that a gets right and b wrong, and the reverse, as row positions, for yes/no scores.

    With several samples the majority of a row's values decides; a row that is split evenly is no flip.
    """
    left, right = _row_means(a), _row_means(b)
    return np.flatnonzero((left > 0.5) & (right < 0.5)), np.flatnonzero((left < 0.5) & (right > 0.5))


class _Evidence(NamedTuple):
    difference: float | None
    interval: Interval
    p_value: float | None
    test: str | None
    needed_n: int | None
    seeded: bool = False


def _compare_pair(
    a: tuple[str, Array], b: tuple[str, Array], scale: Scale, *, scorer: str, seed: int, alpha: float
) -> Comparison:
    both = np.isfinite(a[1]) & np.isfinite(b[1])
    left, right = a[1][both], b[1][both]
    n, above, below = int(left.size), int(np.sum(left > right)), int(np.sum(left < right))
    if n == 0:
        nothing = Interval(None, None, None, "no row has a value on both sides")
        evidence = _Evidence(None, nothing, None, None, None)
    elif scale.yes_no and _is_binary(left) and _is_binary(right):
        evidence = _binary_evidence(int(np.sum((left == 1) & (right == 1))), above, below, n, alpha)
    else:
        evidence = _mean_evidence(left - right, scale, seed, alpha)
    to_a, to_b = (int(rows.size) for rows in flips(left, right))
    return Comparison(
        a=a[0],
        b=b[0],
        scorer=scorer,
        difference=evidence.difference,
        ci_low=evidence.interval.low,
        ci_high=evidence.interval.high,
        p_value=evidence.p_value,
        p_adjusted=None,
        test=evidence.test,
        wins_a=below if scale.higher_is_better is False else above,
        wins_b=above if scale.higher_is_better is False else below,
        ties=n - above - below,
        n=n,
        nulls=int(a[1].size - n),
        unit=scale.unit,
        higher_is_better=scale.higher_is_better,
        ci_method=evidence.interval.method,
        flips_to_a=to_a if scale.yes_no else None,
        flips_to_b=to_b if scale.yes_no else None,
        needed_n=evidence.needed_n,
        seed=seed if evidence.seeded else None,
        reason=evidence.interval.reason,
    )


def compare_outcomes(
    outcomes: Mapping[tuple[str, str], ArrayLike], scale: Scale, *, scorer: str, seed: int = SEED
) -> list[Comparison]:
    """Compare pairs that were judged side by side: 1 where a wins, -1 where b does, 0 for a tie, NaN for no verdict.

    Each array has the shape (rows,) or (rows, samples). The difference is the mean of row means: wins less losses, by
    row. With one verdict a row its test is the exact sign test over the rows that are no tie (Arbuthnot 1710; Conover
    1999, Practical Nonparametric Statistics, section 3.4), else a permutation test of row means. p values are adjusted
    over the pairs.
    """
    alpha = ALPHA / max(1, len(outcomes))
    made = []
    for (a, b), values in outcomes.items():
        means = _row_means(values)
        rows = means[np.isfinite(means)]
        n, above, below = int(rows.size), int(np.sum(rows > 0)), int(np.sum(rows < 0))
        if n == 0:
            nothing = Interval(None, None, None, "no row has a verdict")
            evidence = _Evidence(None, nothing, None, None, None)
        elif np.all(np.isin(rows, (-1.0, 0.0, 1.0))):
            evidence = _sign_evidence(rows, above, below, seed, alpha)
        else:
            evidence = _mean_evidence(rows, Scale(scale.unit, scale.higher_is_better, -0.5, 0.5), seed, alpha)
        made.append(
            Comparison(
                a=a,
                b=b,
                scorer=scorer,
                difference=evidence.difference,
                ci_low=evidence.interval.low,
                ci_high=evidence.interval.high,
                p_value=evidence.p_value,
                p_adjusted=None,
                test=evidence.test,
                wins_a=above,
                wins_b=below,
                ties=n - above - below,
                n=n,
                nulls=int(means.size - n),
                unit=scale.unit,
                higher_is_better=scale.higher_is_better,
                ci_method=evidence.interval.method,
                needed_n=evidence.needed_n,
                seed=seed if evidence.seeded else None,
                reason=evidence.interval.reason,
            )
        )
    return adjust(made)


def _sign_evidence(rows: Array, above: int, below: int, seed: int, alpha: float) -> _Evidence:
    # The interval is that of a difference of shares of the same rows; its orientation is chosen as in _mean_evidence.
    interval = _mean_evidence(rows, Scale("", None, -0.5, 0.5), seed, alpha)
    n = rows.size
    return _Evidence(
        difference=(above - below) / n,
        interval=interval.interval,
        p_value=mcnemar_exact(above, below),
        test="sign_exact",
        needed_n=needed_pairs(above / n, below / n, alpha=alpha),
        seeded=interval.interval.method == "bootstrap_bca",
    )


def _binary_evidence(both: int, only_a: int, only_b: int, n: int, alpha: float) -> _Evidence:
    return _Evidence(
        difference=(only_a - only_b) / n,
        interval=newcombe_paired_interval(both, only_a, only_b, n - both - only_a - only_b),
        p_value=mcnemar_exact(only_a, only_b),
        test="mcnemar_exact",
        needed_n=needed_pairs(only_a / n, only_b / n, alpha=alpha),
    )


def _mean_evidence(differences: Array, scale: Scale, seed: int, alpha: float) -> _Evidence:
    # Of the two orientations the one with the larger sorted values is computed, so that b - a mirrors a - b exactly.
    forward, backward = np.sort(differences), np.sort(-differences)
    unequal = np.flatnonzero(forward != backward)
    turned = bool(unequal.size and backward[unequal[0]] > forward[unequal[0]])
    rows = backward if turned else forward
    span = scale.high - scale.low
    interval = mean_interval(rows, Scale("difference", None, -span, span), seed=seed)
    p_value, test = sign_flip_test(rows, seed=seed, draws=enough_draws(alpha, FLIPS))
    # Differences that mirror themselves add up to exactly nothing; the sum of floats leaves rounding noise, which would
    # be the same in both orientations and would ask for 10**33 rows.
    mean = float(np.mean(rows)) if unequal.size else 0.0
    needed = needed_rows(mean, float(np.std(rows, ddof=1)) if rows.size > 1 else 0.0, alpha=alpha)
    seeded = interval.method == "bootstrap_bca" or test == "sign_flip_monte_carlo"
    if turned:
        mean = -mean
        if interval.low is not None and interval.high is not None:
            interval = replace(interval, low=-interval.high, high=-interval.low)
    return _Evidence(mean, interval, p_value, test, needed, seeded)


def mean_interval(values: ArrayLike, scale: Scale, *, seed: int = SEED) -> Interval:
    """The 95 % interval of a mean of rows (shape (rows,), all finite).

    Yes/no rows get Wilson's. Others get the BCa bootstrap from 10 to 1,000 rows. Below that there are too few different
    resamples, and the bootstrap is known to be too narrow (Hesterberg 2015, The American Statistician 69:371-386);
    above it the mean is close enough to normal. Both get Student's t, cut where the scale ends.
    """
    rows = np.sort(np.asarray(values, dtype=np.float64))
    if rows.size == 0:
        return Interval(None, None, None, "no row has a value")
    if scale.yes_no and _is_binary(rows):
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


def wilson_interval(successes: int, n: int) -> Interval:
    """Wilson's 95 % score interval of a share (Wilson 1927, JASA 22:209-212), without continuity correction.

    Newcombe 1998 (Statistics in Medicine 17:857-872) recommends it: method 3 of the seven compared there.
    """
    if n == 0:
        return Interval(None, None, None, "no row has a value")
    found = stats.binomtest(successes, n).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(float(found.low), float(found.high), "wilson")


def newcombe_paired_interval(both: int, only_a: int, only_b: int, neither: int) -> Interval:
    """The 95 % interval of the difference a - b between two shares of the same rows.

    Method 10 of Newcombe 1998 (Statistics in Medicine 17:2635-2650): Wilson's limits of both shares, squared and
    added with the correlation between them. It stays inside [-1, 1], has a width also where no pair is discordant,
    and is among those recommended by Fagerland, Lydersen and Laake 2014 (Statistics in Medicine 33:2850-2875).
    """
    n = both + only_a + only_b + neither
    if n == 0:
        return Interval(None, None, None, "no row has a value on both sides")
    share_a, share_b = (both + only_a) / n, (both + only_b) / n
    wilson_a, wilson_b = wilson_interval(both + only_a, n), wilson_interval(both + only_b, n)
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


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """The exact two-sided McNemar test: is a discordant pair as likely to favour a as b? Without any, p is 1.

    The conditional test of McNemar 1947 (Psychometrika 12:153-157) with the binomial distribution itself.
    """
    return float(stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def enough_draws(alpha: float, least: int) -> int:
    """How many random draws a test needs so that its smallest p lies well below the level that it is held to.

    The smallest p of m draws is 1 / (m + 1). Many pairs make the level of a single one strict; 39,999 draws, enough for
    45 variants, are the most.
    """
    return min(max(least, math.ceil(2 / alpha) - 1), max(least, _MOST_DRAWS))


def sign_flip_test(differences: ArrayLike, *, seed: int = SEED, draws: int = FLIPS) -> tuple[float, str]:
    """Two-sided paired permutation test of a mean difference of zero; gives p and how it was found.

    If the variants were alike, each row's difference would be as likely with the other sign (Fisher 1935, The Design
    of Experiments, section 21). Rows without a difference carry nothing.

    - `sign_flip_exact`: up to 16 rows, all 2^n flips.
    - `sign_flip_normal`: more than 200 different sizes, of which no few dominate. The flipped sum has mean 0, variance
      sum(d^2) and no skewness, exactly, so the normal approximation is off by about 0.016 / n' around p = 0.05, where
      n' = sum(d^2)^2 / sum(d^4) (the next term of its Edgeworth series). It is used from n' = 200: far closer than
      resampling. Sizes on a grid add at most half a step: 200 of them make the deviation 1,600 steps or more.
    - `sign_flip_monte_carlo`: otherwise. By m `draws`, p = (b + 1) / (m + 1), which is never 0 (Phipson and Smyth
      2010, SAGMB 9:39). Rows of equal size are flipped together by a binomial draw, which is the same distribution.
      Beyond 2,000 different sizes the smaller ones are drawn together, as one normal value of their variance.
    """
    values = np.asarray(differences, dtype=np.float64)
    sizes, counts = np.unique(np.abs(values[values != 0]), return_counts=True)
    nonzero = int(np.sum(counts))
    if nonzero == 0:
        return 1.0, "sign_flip_exact"
    # Scaled by the largest, so that no square or fourth power leaves the range of a float.
    scale = sizes[-1]
    sizes = sizes / scale
    observed = abs(float(np.sum(np.sort(values / scale))))
    # Sums that are equal on paper may differ in the last bits, by the order of adding.
    reached = observed - 1e-12 * float(np.sum(sizes * counts))
    if nonzero <= EXACT_ROWS:
        sums = np.zeros(1)
        for size in np.repeat(sizes, counts):
            sums = np.concatenate([sums + size, sums - size])
        return float(np.mean(np.abs(sums) >= reached)), "sign_flip_exact"
    squares = float(np.sum(counts * sizes**2))
    if sizes.size > _NORMAL_SIZES and squares**2 / float(np.sum(counts * sizes**4)) >= 200:
        p_value = float(2 * stats.norm.sf(observed / math.sqrt(squares)))
        # Far out the tail leaves the range of a float; no p is 0.
        return min(max(p_value, sys.float_info.min), 1.0), "sign_flip_normal"
    sums = _flipped_sums(sizes, counts, np.random.default_rng(seed), draws)
    return (int(np.sum(np.abs(sums) >= reached)) + 1) / (draws + 1), "sign_flip_monte_carlo"


def _flipped_sums(sizes: Array, counts: NDArray[np.intp], generator: np.random.Generator, draws: int) -> Array:
    """So many sums of the differences under random signs, in blocks of bounded memory; `sizes` ascend."""
    small = float(np.sum(counts[:-_FLIPPED_SIZES] * sizes[:-_FLIPPED_SIZES] ** 2))
    sizes, counts = sizes[-_FLIPPED_SIZES:], counts[-_FLIPPED_SIZES:]
    single, shared, repeats = sizes[counts == 1], sizes[counts > 1], counts[counts > 1]
    sums = generator.normal(0.0, math.sqrt(small), draws) if small else np.zeros(draws)
    block = max(1, _BLOCK // sizes.size)
    for start in range(0, draws, block):
        size = min(block, draws - start)
        if single.size:
            packed = np.frombuffer(generator.bytes(size * -(-single.size // 8)), dtype=np.uint8).reshape(size, -1)
            positive = np.unpackbits(packed, axis=1, count=single.size)
            sums[start : start + size] += (2.0 * positive - 1) @ single
        if shared.size:
            positive_rows = generator.binomial(repeats, 0.5, size=(size, repeats.size))
            sums[start : start + size] += (2.0 * positive_rows - repeats) @ shared
    return sums


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjustment over those that are not None (Holm 1979, Scandinavian J. of Statistics 6:65-70)."""
    known = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    least = 0.0
    for rank, (p, place) in enumerate(known):
        least = max(least, min(1.0, (len(known) - rank) * p))
        adjusted[place] = least
    return adjusted


def needed_pairs(only_a: float, only_b: float, *, alpha: float = ALPHA, power: float = POWER) -> int | None:
    """Rows that McNemar's test needs, given the shares of discordant pairs in each direction; None if they are equal.

    n = (z₁ √ψ + z₂ √(ψ - δ²))² / δ² with ψ = only_a + only_b and δ = only_a - only_b (Connor 1987, Biometrics
    43:207-211); z₁ and z₂ are the normal quantiles of 1 - alpha / 2 and of the power.
    """
    discordant, difference = only_a + only_b, only_a - only_b
    if difference == 0:
        return None
    test, reach = stats.norm.ppf(1 - alpha / 2), stats.norm.ppf(power)
    root: float = test * math.sqrt(discordant) + reach * math.sqrt(max(discordant - difference**2, 0.0))
    return math.ceil((root / difference) ** 2)


def needed_rows(difference: float, deviation: float, *, alpha: float = ALPHA, power: float = POWER) -> int | None:
    """Rows that a paired test of a mean difference needs, by the normal approximation; None without a difference.

    n = ((z₁ + z₂) s / δ)², where s is the standard deviation of row differences (Lachin 1981, Controlled Clinical
    Trials 2:93-113).
    """
    if difference == 0 or deviation == 0:
        return None
    root = (stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(power)) * deviation / difference
    return math.ceil(root**2) if math.isfinite(root**2) else None


def _row_means(values: ArrayLike) -> Array:
    """One mean per row over its samples that are finite, NaN where a row has none."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim not in (1, 2):
        raise ValueError(f"scores have shape (rows,) or (rows, samples), not {array.shape}")
    grid = array[:, np.newaxis] if array.ndim == 1 else array
    present = np.isfinite(grid)
    counts = present.sum(axis=1)
    sums = np.where(present, grid, 0.0).sum(axis=1)
    means: Array = np.divide(sums, counts, out=np.full(grid.shape[0], np.nan), where=counts > 0)
    return means


def _is_binary(rows: Array) -> bool:
    return bool(np.all((rows == 0) | (rows == 1)))
