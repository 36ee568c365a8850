"""What the values of a pair of variants show: the difference, its interval, and the test that fits them.

Which of them fits is decided in `comparison`, whose table says it.
"""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from batchchat.evaluation.statistics.clusters import Clusters, cluster_sums, clustered_interval
from batchchat.evaluation.statistics.intervals import (
    Array,
    Interval,
    is_binary,
    mean_interval,
    newcombe_paired_interval,
    wilson_interval,
)
from batchchat.evaluation.statistics.significance import (
    EXACT_ROWS,
    FLIPS,
    enough_draws,
    mcnemar_exact,
    needed_for_equivalence,
    needed_pairs,
    needed_rows,
    sign_flip_test,
)
from batchchat.evaluation.statistics.unit import ScoreUnit


class PairTest(NamedTuple):
    """How pairs are tested. `alpha` is the strictest level that a pair may be held to; `clusters` are those of rows.

    `at_look`: this is one look of several, and `alpha` is what each side of an interval leaves out there.
    """

    scale: ScoreUnit
    seed: int
    alpha: float
    clusters: Clusters | None = None
    margin: float | None = None
    at_look: bool = False

    def of(self, rows: NDArray[np.bool_]) -> PairTest:
        """Return the same for some of the rows."""
        return self if self.clusters is None else self._replace(clusters=self.clusters[rows])

    @property
    def differences(self) -> ScoreUnit:
        """Return the scale of differences."""
        span = self.scale.high - self.scale.low
        return ScoreUnit("difference", None, -span, span)


class Evidence(NamedTuple):
    """What the values of a pair show.

    `needed_n` rows would settle it, None if that is not known. `seeded`: it depends on the seed of draws.
    """

    difference: float | None
    interval: Interval
    p_value: float | None
    test: str | None
    needed_n: int | None
    seeded: bool = False
    equivalent: bool = False


def sign_evidence(rows: Array, above: int, below: int, test: PairTest) -> Evidence:
    """Return what outcomes of pairs show, of which so many are above and below a tie."""
    # The interval is that of a difference of shares of the same rows; its orientation is chosen as in mean_evidence.
    found = mean_evidence(rows, test)
    n = rows.size
    return found._replace(
        difference=(above - below) / n,
        p_value=mcnemar_exact(above, below),
        test="sign_exact",
        needed_n=_fewest(needed_pairs(above / n, below / n, alpha=test.alpha), _to_show_equivalence(rows, test)),
        seeded=found.interval.method == "bootstrap_bca",
    )


def binary_evidence(both: int, only_a: int, only_b: int, n: int, test: PairTest) -> Evidence:
    """Return what yes/no values show: so many rows are yes on both sides, or on one alone."""
    table = (both, only_a, only_b, n - both - only_a - only_b)
    differences = np.repeat([1.0, -1.0, 0.0], [only_a, only_b, n - only_a - only_b])
    narrow = newcombe_paired_interval(*table, confidence=1 - 2 * test.alpha)
    needed = needed_pairs(only_a / n, only_b / n, alpha=test.alpha)
    return Evidence(
        difference=(only_a - only_b) / n,
        interval=newcombe_paired_interval(*table),
        p_value=mcnemar_exact(only_a, only_b),
        test="mcnemar_exact",
        needed_n=_fewest(needed, _to_show_equivalence(differences, test)),
        equivalent=is_inside(narrow, test.margin),
    )


def mean_evidence(differences: Array, test: PairTest) -> Evidence:
    """Return what differences of rows that are independent show."""
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
    return Evidence(mean, interval, p_value, name, needed, seeded, is_inside(narrow, test.margin))


def clustered_evidence(differences: Array, clusters: Clusters, test: PairTest) -> Evidence:
    """Return what differences of rows in clusters show.

    If the variants were alike, the differences of a whole cluster would be as likely with the other sign: so the sums
    of clusters are flipped.
    """
    found = cluster_sums(differences, clusters)
    # As in mean_evidence, one of two orientations is computed.
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
    return Evidence(
        mean,
        clustered_interval(differences, clusters, test.differences),
        p_value,
        f"{name}_clusters",
        needed,
        seeded=name == "sign_flip_monte_carlo",
        equivalent=test.margin is not None and is_inside(_narrow_interval(differences, clusters, test), test.margin),
    )


def look_evidence(left: Array, right: Array, test: PairTest) -> Evidence:
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
    return Evidence(mean, interval, p_value, name, None, equivalent=is_inside(interval, test.margin))


# --- equivalence


def _narrow_interval(differences: Array, clusters: Clusters, test: PairTest) -> Interval:
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


def _to_show_equivalence(differences: Array, test: PairTest, *, deviation: float | None = None) -> int | None:
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
