"""Means with intervals, and paired comparisons with tests: which variant is better, and is the difference real.

Scores are float64 arrays of shape (rows,) or (rows, samples). Line i of two arrays is the same input row; NaN is a
null (no answer, or the scorer failed). A row is the unit of evidence: the samples of a row are averaged first, so
that asking the same row five times does not count as five rows. A row without any value is left out and counted.

| values | interval of a mean | interval of a difference | test |
|---|---|---|---|
| yes/no, each row all yes or all no | Wilson | Newcombe, paired | exact McNemar |
| otherwise | BCa bootstrap of row means, 10 to 1,000 rows; else Student's t | the same, of differences | sign flips |
| rows in clusters | Student's t over clusters | the same, of differences | sign flips of whole clusters |

With a margin, two variants may also be *equivalent*: two one-sided tests at 5 % each show that they differ by less than
the margin either way (Schuirmann 1987, J. of Pharmacokinetics and Biopharmaceutics 15:657-680). That is the same as a
90 % interval of the difference that lies inside the margin, and so it is computed.

No result is ever NaN: what cannot be computed is None, with a reason. Results do not depend on the order of the
rows, and comparing b with a gives exactly the negative of comparing a with b.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from batchchat.dataclass import dataclass
from batchchat.evaluation.statistics.clusters import Clusters, cluster_sums, clustered_interval
from batchchat.evaluation.statistics.intervals import (
    SEED,
    Array,
    Interval,
    is_binary,
    mean_interval,
    newcombe_paired_interval,
    wilson_interval,
)
from batchchat.evaluation.statistics.significance import (
    ALPHA,
    EXACT_ROWS,
    FLIPS,
    enough_draws,
    holm,
    mcnemar_exact,
    needed_for_equivalence,
    needed_pairs,
    needed_rows,
    sign_flip_test,
)
from batchchat.evaluation.statistics.unit import ScoreUnit

Verdict = Literal["better", "worse", "equivalent", "open"]


@dataclass(frozen=True, slots=True)
class ScoreSummary:
    """The mean score of one variant with its 95 % interval.

    `n` counts the rows behind the mean, `nulls` those left out because they have no value. `ci_method` is `wilson`,
    `bootstrap_bca` (with `seed`), `bootstrap_percentile` (with `seed`; macro-F1) or `student_t`; with `clusters`, which
    counts those that the rows are in, `student_t_clusters`, `wilson_clusters` or `delta_method_clusters`.
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
    clusters: int | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two variants on the same rows. `difference` is a - b, its interval has 95 % and is not adjusted.

    `n` counts the rows with a value on both sides, `nulls` those left out. `wins_a`, `wins_b` and `ties` count rows by
    the better row mean (the higher one where no direction is better). `flips_to_a` counts rows that most samples of
    a get right and most of b get wrong, `flips_to_b` the reverse; None where the score is not yes/no. `needed_n` is the
    number of rows that would settle a difference of this size, None where it is settled already or there is none.
    With clusters it counts rows in clusters as large as these, and `clusters` is how many the rows are in.

    `margin` is the difference that does not matter, None if nobody named one. `equivalent` tells that the difference is
    settledly smaller; with a margin `needed_n` may be the number of rows that would show that.
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
    clusters: int | None = None
    margin: float | None = None
    equivalent: bool = False

    @property
    def verdict(self) -> Verdict:
        """Return what is known of a against b.

        A difference that is settled and settledly smaller than the margin is no difference that matters.
        """
        if self.equivalent:
            return "equivalent"
        better = self.better
        return "open" if better is None else "better" if better == self.a else "worse"

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


def summarize(
    values: ArrayLike, scale: ScoreUnit, *, seed: int = SEED, clusters: Clusters | None = None
) -> ScoreSummary:
    """Return the mean of row means with its interval; `clusters` has the shape (rows,)."""
    means = _row_means(values)
    known = np.isfinite(means)
    present = np.sort(means[known])
    if clusters is None:
        interval = mean_interval(present, scale, seed=seed)
    else:
        interval = clustered_interval(means[known], clusters[known], scale)
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
        clusters=None if clusters is None else int(np.unique(clusters[known]).size),
    )


def compare(
    variants: Mapping[str, ArrayLike],
    scale: ScoreUnit,
    *,
    scorer: str,
    seed: int = SEED,
    clusters: Clusters | None = None,
    margin: float | None = None,
) -> list[Comparison]:
    """Compare every pair of variants on one scorer, in the order of the mapping, p values adjusted over the pairs.

    All arrays have the same number of rows, and so has `clusters`. `margin` is in the score's unit.

    Raises ValueError if they have not.
    """
    means = {name: _row_means(values) for name, values in variants.items()}
    if len({array.size for array in means.values()}) > 1:
        raise ValueError(f"variants differ in rows: { {name: array.size for name, array in means.items()} }")
    pairs = list(combinations(means.items(), 2))
    # Each pair is sized for the strictest level that Holm's method may hold it to.
    alpha = ALPHA / max(1, len(pairs))
    test = _Test(scale, seed, alpha, clusters, margin)
    return adjust([_compare_pair(a, b, test, scorer=scorer) for a, b in pairs])


def compare_at(
    level: float,
    variants: Mapping[str, ArrayLike],
    scale: ScoreUnit,
    *,
    scorer: str,
    seed: int = SEED,
    clusters: Clusters | None = None,
    margin: float | None = None,
) -> list[Comparison]:
    """Compare every pair of variants at one look of a sequential test, which holds each pair to a two-sided level.

    Intervals have the confidence 1 - level, and `equivalent` tells that such an interval lies inside the margin. Arrays
    are those of `compare`. `p_adjusted` is left to the caller, who knows the other looks.
    """
    means = {name: _row_means(values) for name, values in variants.items()}
    test = _Test(scale, seed, level / 2, clusters, margin, at_look=True)
    return [_compare_pair(a, b, test, scorer=scorer) for a, b in combinations(means.items(), 2)]


def adjust(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Fill in `p_adjusted` by Holm's method over all of these, and drop `needed_n` where that settles a difference."""
    adjusted = holm([comparison.p_value for comparison in comparisons])
    filled = [replace(comparison, p_adjusted=p) for comparison, p in zip(comparisons, adjusted, strict=True)]
    return [
        replace(comparison, needed_n=None) if comparison.settled or comparison.equivalent else comparison
        for comparison in filled
    ]


def mirrored(one: Comparison) -> Comparison:
    """Return what is known of b against a."""
    return replace(
        one,
        a=one.b,
        b=one.a,
        difference=None if one.difference is None else -one.difference,
        ci_low=None if one.ci_high is None else -one.ci_high,
        ci_high=None if one.ci_low is None else -one.ci_low,
        wins_a=one.wins_b,
        wins_b=one.wins_a,
        flips_to_a=one.flips_to_b,
        flips_to_b=one.flips_to_a,
    )


def leader(comparisons: Sequence[Comparison]) -> str | None:
    """Return the variant that is settledly better than every other one of these comparisons, if there is one."""
    names = {name for comparison in comparisons for name in (comparison.a, comparison.b)}
    won = [comparison.better for comparison in comparisons]
    return next((name for name in sorted(names) if won.count(name) == len(names) - 1), None)


def flips(a: ArrayLike, b: ArrayLike) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows that a gets right and b wrong, and the reverse, as row positions, for yes/no scores.

    With several samples the majority of a row's values decides; a row that is split evenly is no flip.
    """
    left, right = _row_means(a), _row_means(b)
    return np.flatnonzero((left > 0.5) & (right < 0.5)), np.flatnonzero((left < 0.5) & (right > 0.5))


class _Test(NamedTuple):
    """How pairs are tested. `alpha` is the strictest level that a pair may be held to; `clusters` are those of rows.

    `at_look`: this is one look of several, and `alpha` is what each side of an interval leaves out there.
    """

    scale: ScoreUnit
    seed: int
    alpha: float
    clusters: Clusters | None = None
    margin: float | None = None
    at_look: bool = False

    def of(self, rows: NDArray[np.bool_]) -> _Test:
        """Return the same for some of the rows."""
        return self if self.clusters is None else self._replace(clusters=self.clusters[rows])

    @property
    def differences(self) -> ScoreUnit:
        """Return the scale of differences."""
        span = self.scale.high - self.scale.low
        return ScoreUnit("difference", None, -span, span)


class _Evidence(NamedTuple):
    difference: float | None
    interval: Interval
    p_value: float | None
    test: str | None
    needed_n: int | None
    seeded: bool = False
    equivalent: bool = False


def _compare_pair(a: tuple[str, Array], b: tuple[str, Array], test: _Test, *, scorer: str) -> Comparison:
    both = np.isfinite(a[1]) & np.isfinite(b[1])
    left, right, test = a[1][both], b[1][both], test.of(both)
    scale = test.scale
    n, above, below = int(left.size), int(np.sum(left > right)), int(np.sum(left < right))
    if n == 0:
        nothing = Interval(None, None, None, "no row has a value on both sides")
        evidence = _Evidence(None, nothing, None, None, None)
    elif test.at_look:
        evidence = _look_evidence(left, right, test)
    elif test.clusters is not None:
        evidence = _clustered_evidence(left - right, test.clusters, test)
    elif scale.yes_no and is_binary(left) and is_binary(right):
        evidence = _binary_evidence(int(np.sum((left == 1) & (right == 1))), above, below, n, test)
    else:
        evidence = _mean_evidence(left - right, test)
    to_a, to_b = (int(rows.size) for rows in flips(left, right))
    wins = (below, above) if scale.higher_is_better is False else (above, below)
    made = _comparison((a[0], b[0]), scorer, wins, rows=a[1].size, n=n, evidence=evidence, test=test)
    return replace(made, flips_to_a=to_a, flips_to_b=to_b) if scale.yes_no else made


def _comparison(
    names: tuple[str, str], scorer: str, wins: tuple[int, int], *, rows: int, n: int, evidence: _Evidence, test: _Test
) -> Comparison:
    """Put together what is known of a pair. `n` of the rows have a value on both sides."""
    return Comparison(
        a=names[0],
        b=names[1],
        scorer=scorer,
        difference=evidence.difference,
        ci_low=evidence.interval.low,
        ci_high=evidence.interval.high,
        p_value=evidence.p_value,
        p_adjusted=None,
        test=evidence.test,
        wins_a=wins[0],
        wins_b=wins[1],
        ties=n - sum(wins),
        n=n,
        nulls=rows - n,
        unit=test.scale.unit,
        higher_is_better=test.scale.higher_is_better,
        ci_method=evidence.interval.method,
        needed_n=evidence.needed_n,
        seed=test.seed if evidence.seeded else None,
        reason=evidence.interval.reason,
        clusters=None if test.clusters is None else int(np.unique(test.clusters).size),
        margin=test.margin,
        equivalent=evidence.equivalent,
    )


def compare_outcomes(
    outcomes: Mapping[tuple[str, str], ArrayLike],
    scale: ScoreUnit,
    *,
    scorer: str,
    seed: int = SEED,
    clusters: Clusters | None = None,
    margin: float | None = None,
) -> list[Comparison]:
    """Compare pairs that were judged side by side: 1 where a wins, -1 where b does, 0 for a tie, NaN for no verdict.

    Each array has the shape (rows,) or (rows, samples). The difference is the mean of row means: wins less losses, by
    row. With one verdict a row its test is the exact sign test over the rows that are no tie (Arbuthnot 1710; Conover
    1999, Practical Nonparametric Statistics, section 3.4), else a permutation test of row means, or of whole clusters.
    p values are adjusted over the pairs.
    """
    # Wins less losses lie between -1 and 1: they are differences already, of a score with a span of 1.
    unit = ScoreUnit(scale.unit, scale.higher_is_better, -0.5, 0.5)
    every = _Test(unit, seed, ALPHA / max(1, len(outcomes)), clusters, margin)
    made = []
    for (a, b), values in outcomes.items():
        means = _row_means(values)
        known = np.isfinite(means)
        rows, test = means[known], every.of(known)
        n, above, below = int(rows.size), int(np.sum(rows > 0)), int(np.sum(rows < 0))
        if n == 0:
            nothing = Interval(None, None, None, "no row has a verdict")
            evidence = _Evidence(None, nothing, None, None, None)
        elif test.clusters is not None:
            evidence = _clustered_evidence(rows, test.clusters, test)
        elif np.all(np.isin(rows, (-1.0, 0.0, 1.0))):
            evidence = _sign_evidence(rows, above, below, test)
        else:
            evidence = _mean_evidence(rows, test)
        made.append(_comparison((a, b), scorer, (above, below), rows=means.size, n=n, evidence=evidence, test=test))
    return adjust(made)


def _sign_evidence(rows: Array, above: int, below: int, test: _Test) -> _Evidence:
    # The interval is that of a difference of shares of the same rows; its orientation is chosen as in _mean_evidence.
    found = _mean_evidence(rows, test)
    n = rows.size
    return found._replace(
        difference=(above - below) / n,
        p_value=mcnemar_exact(above, below),
        test="sign_exact",
        needed_n=_fewest(needed_pairs(above / n, below / n, alpha=test.alpha), _to_show_equivalence(rows, test)),
        seeded=found.interval.method == "bootstrap_bca",
    )


def _binary_evidence(both: int, only_a: int, only_b: int, n: int, test: _Test) -> _Evidence:
    table = (both, only_a, only_b, n - both - only_a - only_b)
    differences = np.repeat([1.0, -1.0, 0.0], [only_a, only_b, n - only_a - only_b])
    narrow = newcombe_paired_interval(*table, confidence=1 - 2 * test.alpha)
    needed = needed_pairs(only_a / n, only_b / n, alpha=test.alpha)
    return _Evidence(
        difference=(only_a - only_b) / n,
        interval=newcombe_paired_interval(*table),
        p_value=mcnemar_exact(only_a, only_b),
        test="mcnemar_exact",
        needed_n=_fewest(needed, _to_show_equivalence(differences, test)),
        equivalent=is_inside(narrow, test.margin),
    )


def _mean_evidence(differences: Array, test: _Test) -> _Evidence:
    # Of the two orientations the one with the larger sorted values is computed, so that b - a mirrors a - b exactly.
    forward, backward = np.sort(differences), np.sort(-differences)
    unequal = np.flatnonzero(forward != backward)
    turned = bool(unequal.size and backward[unequal[0]] > forward[unequal[0]])
    rows = backward if turned else forward
    interval = mean_interval(rows, test.differences, seed=test.seed)
    p_value, name = sign_flip_test(rows, seed=test.seed, draws=enough_draws(test.alpha, FLIPS))
    # Differences that mirror themselves add up to exactly nothing; the sum of floats leaves rounding noise, which would
    # be the same in both orientations and would ask for 10**33 rows.
    mean = float(np.mean(rows)) if unequal.size else 0.0
    needed = needed_rows(mean, float(np.std(rows, ddof=1)) if rows.size > 1 else 0.0, alpha=test.alpha)
    seeded = interval.method == "bootstrap_bca" or name == "sign_flip_monte_carlo"
    if not unequal.size and interval.low is not None and interval.high is not None:
        # Both orientations are the same rows here, and a drawn interval leans to one side by chance.
        half = (interval.high - interval.low) / 2
        interval = replace(interval, low=-half, high=half)
    if turned:
        mean = -mean
        if interval.low is not None and interval.high is not None:
            interval = replace(interval, low=-interval.high, high=-interval.low)
    narrow = Interval(None, None, None)
    if test.margin is not None:
        # Two one-sided tests of a mean are Student's t, whatever the interval that is shown. Each row is a cluster.
        narrow = _narrow_interval(differences, np.arange(differences.size), test)
    needed = _fewest(needed, _to_show_equivalence(differences, test))
    return _Evidence(mean, interval, p_value, name, needed, seeded, is_inside(narrow, test.margin))


def _clustered_evidence(differences: Array, clusters: Clusters, test: _Test) -> _Evidence:
    """Return what differences of rows in clusters show.

    If the variants were alike, the differences of a whole cluster would be as likely with the other sign: so the sums
    of clusters are flipped.
    """
    found = cluster_sums(differences, clusters)
    # As in _mean_evidence, one of two orientations is computed.
    forward, backward = np.sort(found.sums), np.sort(-found.sums)
    unequal = np.flatnonzero(forward != backward)
    turned = bool(unequal.size and backward[unequal[0]] > forward[unequal[0]])
    draws = enough_draws(test.alpha, FLIPS)
    p_value, name = sign_flip_test(backward if turned else forward, seed=test.seed, draws=draws)
    mean, size = found.mean, found.sums.size
    # The deviation that rows would need for this standard error, if they were independent.
    deviation = found.standard_error() * math.sqrt(found.rows) if size > 1 else 0.0
    needed = _fewest(
        needed_rows(mean, deviation, alpha=test.alpha), _to_show_equivalence(differences, test, deviation=deviation)
    )
    return _Evidence(
        mean,
        clustered_interval(differences, clusters, test.differences),
        p_value,
        f"{name}_clusters",
        needed,
        seeded=name == "sign_flip_monte_carlo",
        equivalent=test.margin is not None and is_inside(_narrow_interval(differences, clusters, test), test.margin),
    )


def _look_evidence(left: Array, right: Array, test: _Test) -> _Evidence:
    """Return what a pair shows at one look of several: an interval of the confidence 1 - 2 alpha, and its test.

    Levels of early looks are far below what resampling can tell apart. So tails are computed: the exact ones of
    McNemar's test and of few sign flips, else those of Student's t.
    """
    differences = left - right
    if test.clusters is None and test.scale.yes_no and is_binary(left) and is_binary(right):
        only_a, only_b = int(np.sum(differences > 0)), int(np.sum(differences < 0))
        both = int(np.sum(left * right))
        table = (both, only_a, only_b, left.size - both - only_a - only_b)
        interval = newcombe_paired_interval(*table, confidence=1 - 2 * test.alpha)
        p_value, name, mean = mcnemar_exact(only_a, only_b), "mcnemar_exact", (only_a - only_b) / left.size
    else:
        clusters = np.arange(left.size) if test.clusters is None else test.clusters
        found = cluster_sums(differences, clusters)
        mean, interval = found.mean, _narrow_interval(differences, clusters, test)
        few = int(np.sum(found.sums != 0)) <= EXACT_ROWS or found.standard_error() == 0
        if few:
            p_value, name = sign_flip_test(found.sums, seed=test.seed)
        else:
            # The least float is no p value: far out the tail leaves the range of a float.
            tail = float(2 * stats.t.sf(abs(mean) / found.standard_error(), found.sums.size - 1))
            p_value, name = max(tail, sys.float_info.min), "student_t"
        name = name if test.clusters is None else f"{name}_clusters"
    return _Evidence(mean, interval, p_value, name, None, equivalent=is_inside(interval, test.margin))


# --- equivalence


def _narrow_interval(differences: Array, clusters: Clusters, test: _Test) -> Interval:
    """Return the interval of a mean difference that two one-sided tests at `alpha` each come to."""
    if np.any(differences):
        return clustered_interval(differences, clusters, test.differences, confidence=1 - 2 * test.alpha)
    # Where nothing differs there is no spread. But rows that differ by as much as the scale allows may be as frequent
    # as Wilson's bound of a share of which none was seen.
    most = wilson_interval(0, int(np.unique(clusters).size), confidence=1 - 2 * test.alpha).high or 1.0
    span = test.differences.high
    return Interval(-most * span, most * span, "wilson_clusters") if math.isfinite(span) else Interval(None, None, None)


def is_inside(interval: Interval, margin: float | None) -> bool:
    """Return whether an interval lies inside a margin either way."""
    if margin is None or interval.low is None or interval.high is None:
        return False
    return -margin < interval.low and interval.high < margin


def _to_show_equivalence(differences: Array, test: _Test, *, deviation: float | None = None) -> int | None:
    """Return the rows that would show that a difference of this size is within the margin, None if it is not."""
    if test.margin is None or differences.size < 2:
        return None
    mean = math.fsum(differences) / differences.size
    if deviation is None:
        deviation = math.sqrt(math.fsum((differences - mean) ** 2) / (differences.size - 1))
    return needed_for_equivalence(mean, deviation, test.margin, alpha=test.alpha)


def _fewest(*needed: int | None) -> int | None:
    """Return the least of those that are known."""
    known = [rows for rows in needed if rows is not None]
    return min(known) if known else None


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
