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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from batchchat.evaluation.statistics.intervals import (
    SEED,
    Array,
    Interval,
    is_binary,
    mean_interval,
    newcombe_paired_interval,
)
from batchchat.evaluation.statistics.significance import (
    ALPHA,
    FLIPS,
    enough_draws,
    holm,
    mcnemar_exact,
    needed_pairs,
    needed_rows,
    sign_flip_test,
)
from batchchat.evaluation.statistics.unit import ScoreUnit


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


def summarize(values: ArrayLike, scale: ScoreUnit, *, seed: int = SEED) -> ScoreSummary:
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


def compare(variants: Mapping[str, ArrayLike], scale: ScoreUnit, *, scorer: str, seed: int = SEED) -> list[Comparison]:
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
    a: tuple[str, Array], b: tuple[str, Array], scale: ScoreUnit, *, scorer: str, seed: int, alpha: float
) -> Comparison:
    both = np.isfinite(a[1]) & np.isfinite(b[1])
    left, right = a[1][both], b[1][both]
    n, above, below = int(left.size), int(np.sum(left > right)), int(np.sum(left < right))
    if n == 0:
        nothing = Interval(None, None, None, "no row has a value on both sides")
        evidence = _Evidence(None, nothing, None, None, None)
    elif scale.yes_no and is_binary(left) and is_binary(right):
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
    outcomes: Mapping[tuple[str, str], ArrayLike], scale: ScoreUnit, *, scorer: str, seed: int = SEED
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
            evidence = _mean_evidence(rows, ScoreUnit(scale.unit, scale.higher_is_better, -0.5, 0.5), seed, alpha)
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
    interval = _mean_evidence(rows, ScoreUnit("", None, -0.5, 0.5), seed, alpha)
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


def _mean_evidence(differences: Array, scale: ScoreUnit, seed: int, alpha: float) -> _Evidence:
    # Of the two orientations the one with the larger sorted values is computed, so that b - a mirrors a - b exactly.
    forward, backward = np.sort(differences), np.sort(-differences)
    unequal = np.flatnonzero(forward != backward)
    turned = bool(unequal.size and backward[unequal[0]] > forward[unequal[0]])
    rows = backward if turned else forward
    span = scale.high - scale.low
    interval = mean_interval(rows, ScoreUnit("difference", None, -span, span), seed=seed)
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
