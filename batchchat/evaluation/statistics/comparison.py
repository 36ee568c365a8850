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

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from batchchat.dataclass import dataclass
from batchchat.evaluation.statistics.clusters import Clusters, clustered_interval
from batchchat.evaluation.statistics.intervals import (
    SEED,
    Array,
    Interval,
    is_binary,
    mean_interval,
)
from batchchat.evaluation.statistics.pair_tests import (
    Evidence,
    PairTest,
    binary_evidence,
    clustered_evidence,
    look_evidence,
    mean_evidence,
    sign_evidence,
)
from batchchat.evaluation.statistics.significance import (
    ALPHA,
    holm,
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
    """Return the mean of row means, with its interval.

    Arguments:
        values: of shape (rows,) or (rows, samples), NaN for a null.
        scale: unit and range; it decides which interval fits.
        seed: of resampling, if that is what fits.
        clusters: of each row; None if each row is evidence by itself.
    """
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
    """Compare every pair of variants on one scorer, in the order of the mapping.

    Arguments:
        variants: values by the variant's name, of shape (rows,) or (rows, samples), NaN for a null. A line is the
            same row in all.
        scale: unit, better direction and range.
        scorer: its name, for the results.
        seed: of resampling and of random sign flips.
        clusters: of each row; None if each row is evidence by itself.
        margin: the difference that does not matter, in the score's unit.

    Returns a comparison for each pair, p values adjusted over the pairs.

    Raises ValueError if the arrays differ in their number of rows.
    """
    means = {name: _row_means(values) for name, values in variants.items()}
    if len({array.size for array in means.values()}) > 1:
        raise ValueError(f"variants differ in rows: { {name: array.size for name, array in means.items()} }")
    pairs = list(combinations(means.items(), 2))
    # Each pair is sized for the strictest level that Holm's method may hold it to.
    alpha = ALPHA / max(1, len(pairs))
    test = PairTest(scale, seed, alpha, clusters, margin)
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
    """Compare every pair of variants at one look of a sequential test. The arguments are those of `compare`.

    `level` is the two-sided level that each pair is held to. Intervals have the confidence 1 - level, and `equivalent`
    tells that such an interval lies inside the margin. `p_adjusted` is left to the caller, who knows the other looks.
    """
    means = {name: _row_means(values) for name, values in variants.items()}
    test = PairTest(scale, seed, level / 2, clusters, margin, at_look=True)
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


def _compare_pair(a: tuple[str, Array], b: tuple[str, Array], test: PairTest, *, scorer: str) -> Comparison:
    both = np.isfinite(a[1]) & np.isfinite(b[1])
    left, right, test = a[1][both], b[1][both], test.of(both)
    scale = test.scale
    n, above, below = int(left.size), int(np.sum(left > right)), int(np.sum(left < right))
    if n == 0:
        nothing = Interval(None, None, None, "no row has a value on both sides")
        evidence = Evidence(None, nothing, None, None, None)
    elif test.at_look:
        evidence = look_evidence(left, right, test)
    elif test.clusters is not None:
        evidence = clustered_evidence(left - right, test.clusters, test)
    elif scale.yes_no and is_binary(left) and is_binary(right):
        evidence = binary_evidence(int(np.sum((left == 1) & (right == 1))), above, below, n, test)
    else:
        evidence = mean_evidence(left - right, test)
    to_a, to_b = (int(rows.size) for rows in flips(left, right))
    wins = (below, above) if scale.higher_is_better is False else (above, below)
    made = _comparison((a[0], b[0]), scorer, wins, rows=a[1].size, n=n, evidence=evidence, test=test)
    return replace(made, flips_to_a=to_a, flips_to_b=to_b) if scale.yes_no else made


def _comparison(
    names: tuple[str, str], scorer: str, wins: tuple[int, int], *, rows: int, n: int, evidence: Evidence, test: PairTest
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
    """Compare pairs that were judged side by side.

    Arguments:
        outcomes: by (a, b), of shape (rows,) or (rows, samples): 1 if a wins, -1 if b does, 0 for a tie, NaN for no
            verdict.
        scale, scorer, seed, clusters, margin: as those of `compare`.

    Returns a comparison for each pair, p values adjusted over the pairs. The difference is the mean of row means: wins
    less losses, by row. With one verdict a row its test is the exact sign test over the rows that are no tie (Arbuthnot
    1710; Conover 1999, Practical Nonparametric Statistics, section 3.4), else a permutation test of row means, or of
    whole clusters.
    """
    # Wins less losses lie between -1 and 1: they are differences already, of a score with a span of 1.
    unit = ScoreUnit(scale.unit, scale.higher_is_better, -0.5, 0.5)
    every = PairTest(unit, seed, ALPHA / max(1, len(outcomes)), clusters, margin)
    made = []
    for (a, b), values in outcomes.items():
        means = _row_means(values)
        known = np.isfinite(means)
        rows, test = means[known], every.of(known)
        n, above, below = int(rows.size), int(np.sum(rows > 0)), int(np.sum(rows < 0))
        if n == 0:
            nothing = Interval(None, None, None, "no row has a verdict")
            evidence = Evidence(None, nothing, None, None, None)
        elif test.clusters is not None:
            evidence = clustered_evidence(rows, test.clusters, test)
        elif np.all(np.isin(rows, (-1.0, 0.0, 1.0))):
            evidence = sign_evidence(rows, above, below, test)
        else:
            evidence = mean_evidence(rows, test)
        made.append(_comparison((a, b), scorer, (above, below), rows=means.size, n=n, evidence=evidence, test=test))
    return adjust(made)


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
