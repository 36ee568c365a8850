"""Tests that may be looked at several times: bounds for each look, and what each look decides about several variants.

Who tests again and again after more rows, and stops at the first p < 0.05, finds differences that are not there in far
more than 5 % of the cases. So each look gets its own, stricter level. The levels are those of a group-sequential test
with a spending function (Lan and DeMets 1983, Biometrika 70:659-663): it says how much of the error may be used up when
the share t of the rows is asked. It is

    power            alpha t²                                            (Kim and DeMets 1987, Biometrika 74:149-154)
    obrien_fleming   4 (1 - Φ(z / √t)),    z = Φ⁻¹(1 - alpha / 4)        for each side of a two-sided test

Little of it is used early, so that the last look is nearly as strong as the test of a fixed number of rows: with five
equal looks 2.11 standard errors by the first and 2.03 by the second, instead of 1.96. The first one stops earlier: for
a difference of 10 points on 600 rows (80 % and 70 % right, apart from each other) it asks 55 % of the answers and finds
the difference in 97.5 % of the cases; the second asks 64 % for 98.0 % (20,000 simulated suites). An evaluation goes on
with the function that it began with; those of an earlier version have the second one. An always-valid test would need
no plan of looks, but it is weaker at the end, and here the most rows are known: those of the input.

Everything that is decided follows from one interval for each pair and look: the interval of the difference at the level
of that look, divided by the number of pairs (Bonferroni). All of them together hold the true differences with 95 %
certainty, whatever made the evaluation stop (Jennison and Turnbull 1989, JRSS B 51:305-361: repeated confidence
intervals). A pair is settled if its interval excludes zero, or lies inside the margin.

Rows are drawn at random, whole clusters at a time, so that what a look adds is independent of what was there before.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import field, replace
from functools import lru_cache
from itertools import pairwise
from typing import Literal

import numpy as np
from scipy import optimize, special

from batchchat.dataclass import dataclass
from batchchat.evaluation.statistics.clusters import Clusters
from batchchat.evaluation.statistics.comparison import Comparison, compare_at
from batchchat.evaluation.statistics.intervals import Array
from batchchat.evaluation.statistics.significance import ALPHA
from batchchat.evaluation.statistics.unit import ScoreUnit

Spending = Literal["power", "obrien_fleming"]
"""How the error is spread over the looks; see above."""
LOOKS = 5
"""The looks if nobody names a number. More of them save little: for a difference of 4 standard errors at the last look,
5 looks ask 56 % of the rows and 10 looks 52 %, for one of 6 standard errors 36 % and 32 % (200,000 simulated tests)."""
LEAST_UNITS = 20
"""A look at fewer rows (or clusters) than this can settle nothing at its level, and is left out."""
EARLY_UNITS = 500
"""A look at so many units sees a difference of 10 points in yes/no scores, if the bound is no stricter than at 5 %."""
_GRID = 161
"""Points of the integral over what no look has stopped yet. Bounds then agree to 4 digits with published ones."""
_ERRORS = 32
"""Errors of the table from which adjusted p values are read; they lie a factor of 2.4 apart."""
_LEAST_LEVEL = 1e-14
_REACH = 8.0
"""Standard errors beyond which nothing is left: 1e-15 of a normal distribution."""


# --- bounds


def spent(share: float, alpha: float = ALPHA, spending: Spending = "power") -> float:
    """Return the error that may be used up when a share of the rows is asked."""
    if spending == "power":
        return alpha * share**2
    return float(4 * special.ndtr(special.ndtri(alpha / 4) / math.sqrt(share)))


@lru_cache(maxsize=4_096)
def bounds(shares: tuple[float, ...], alpha: float = ALPHA, spending: Spending = "power") -> tuple[float, ...]:
    """Return the two-sided bound of each look in standard errors, at rising shares of the rows.

    The chance to be beyond none before a look and beyond its bound is what the spending function gives to it. It is
    integrated look by look (Armitage, McPherson and Rowe 1969, JRSS A 132:235-244).
    """
    found = [float(-special.ndtri(spent(shares[0], alpha, spending) / 2))]
    # Density of the sum of what was seen (with variance `share`), over what no look has stopped.
    edge = min(found[0], _REACH) * math.sqrt(shares[0])
    points = np.linspace(-edge, edge, _GRID)
    density = np.exp(-(points**2) / (2 * shares[0])) / math.sqrt(2 * math.pi * shares[0])
    for before, share in pairwise(shares):
        step = math.sqrt(share - before)
        weights = density * _simpson(points)
        allowed = spent(share, alpha, spending) - spent(before, alpha, spending)
        bound = _bound(points, weights, share, step, allowed)
        found.append(bound)
        edge = min(bound, _REACH) * math.sqrt(share)
        following = np.linspace(-edge, edge, _GRID)
        distances = (following[:, None] - points[None, :]) / step
        density = np.exp(-(distances**2) / 2) @ weights / (step * math.sqrt(2 * math.pi))
        points = following
    return tuple(found)


def _bound(points: Array, weights: Array, share: float, step: float, allowed: float) -> float:
    """Return the bound beyond which just the allowed error lies."""

    def excess(bound: float) -> float:
        # The logarithm keeps the search good where next to nothing is allowed.
        beyond = float(2 * weights @ special.ndtr((points - bound * math.sqrt(share)) / step))
        return math.log(max(beyond, 1e-300)) - math.log(max(allowed, 1e-300))

    return float(optimize.brentq(excess, 0.0, 40.0, xtol=1e-9))


def _simpson(points: Array) -> Array:
    weights = np.full(points.size, 2.0)
    weights[1::2] = 4.0
    weights[0] = weights[-1] = 1.0
    scaled: Array = weights * (points[1] - points[0]) / 3
    return scaled


def level(shares: tuple[float, ...], look: int, alpha: float = ALPHA, spending: Spending = "power") -> float:
    """Return the level of a single two-sided test at a look.

    Arguments:
        shares: of the rows that each look has, ascending; those behind the look do not matter.
        look: its number, from 1.
        alpha: the error that all looks may have together.
        spending: how it is spent over the looks.

    No level is below `_LEAST_LEVEL`: the quantiles of the intervals then stay finite.
    """
    return max(_LEAST_LEVEL, float(2 * special.ndtr(-bounds(shares[:look], alpha, spending)[-1])))


@lru_cache(maxsize=256)
def _levels(shares: tuple[float, ...], spending: Spending) -> tuple[Array, Array]:
    """Return rising errors of a whole test, and the level that each gives to its last look."""
    errors = np.geomspace(1e-12, 0.999, _ERRORS)
    return errors, np.array([level(shares, len(shares), float(error), spending) for error in errors])


def adjusted_p(p_value: float, shares: tuple[float, ...], look: int, pairs: int, spending: Spending = "power") -> float:
    """Return the least error over all looks and pairs at which a p value of one look would just be settled.

    It is below `ALPHA` just if the p value is within its level; between the errors of a table it is interpolated.
    """
    errors, levels = _levels(shares[:look], spending)
    # Of the levels that are as low as can be, only the last one is of use for an interpolation.
    usable = levels > _LEAST_LEVEL
    if not usable.any():
        return 1.0
    found = float(np.exp(np.interp(math.log(p_value), np.log(levels[usable]), np.log(errors[usable])))) * pairs
    if p_value <= level(shares, look, ALPHA / pairs, spending):
        return min(found, math.nextafter(ALPHA, 0))
    return min(max(found, ALPHA), 1.0)


# --- looks


def planned_looks(units: int, looks: int = LOOKS) -> list[int]:
    """Return how many of the units (rows, or clusters) have been asked at each look; the last one is all of them.

    Looks come after equal shares. A large input is also looked at after a fifth of the first share, as often as that
    leaves `EARLY_UNITS`: a large difference shows there already, and such a look uses up next to no error.
    """
    found = [asked for number in range(1, looks) if LEAST_UNITS <= (asked := math.ceil(units * number / looks)) < units]
    while found and found[0] // LOOKS >= EARLY_UNITS:
        found.insert(0, math.ceil(found[0] / LOOKS))
    return [*found, units]


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known after some looks.

    `looks` counts them. `pairs` has every pair at the look that settled it, or at the last one; `active` are the
    variants that are still asked, in order, and `dropped` tells after which look a variant was surely beaten.
    `settled` is true if nothing is open between the best of the active variants and the others.
    """

    looks: int
    active: tuple[str, ...]
    pairs: tuple[Comparison, ...] = ()
    dropped: Mapping[str, int] = field(default_factory=dict)
    settled: bool = False


@dataclass(frozen=True, slots=True)
class SequentialTest:
    """The test of one score over looks. `shares` are those of the rows at each look, `pairs` the number of pairs."""

    shares: tuple[float, ...]
    pairs: int
    scale: ScoreUnit
    scorer: str
    seed: int
    margin: float | None = None
    spending: Spending = "power"

    def begin(self, variants: Sequence[str]) -> Standing:
        """Return what is known before the first look. One variant alone leaves nothing to be settled."""
        return Standing(0, tuple(variants), settled=len(variants) < 2)

    def look(self, standing: Standing, values: Mapping[str, Array], clusters: Clusters | None) -> Standing:
        """Return what is known after one more look.

        `values` has the rows of this look, of each variant that is still active, as (rows,) or (rows, samples).
        """
        number = standing.looks + 1
        alpha = ALPHA / self.pairs
        settled = {(one.a, one.b): one for one in standing.pairs if is_settled(one)}
        active = {name: values[name] for name in standing.active}
        fresh = compare_at(
            level(self.shares, number, alpha, self.spending),
            active,
            self.scale,
            scorer=self.scorer,
            seed=self.seed,
            clusters=clusters,
            margin=self.margin,
        )
        known = {(one.a, one.b): one for one in standing.pairs}
        # What a look has settled stays so: every interval holds its difference, also one that a later one leaves.
        for one in fresh:
            known[one.a, one.b] = settled.get((one.a, one.b)) or self._adjusted(one, number)
        beaten = {loser for one in known.values() if (loser := _loser(one)) is not None}
        left = tuple(name for name in standing.active if name not in beaten)
        dropped = {**standing.dropped, **{name: number for name in standing.active if name in beaten}}
        pairs = tuple(known.values())
        return Standing(number, left, pairs, dropped, self._is_settled(left, active, pairs))

    def _adjusted(self, one: Comparison, number: int) -> Comparison:
        if one.p_value is None:
            return one
        # Whether a pair is settled is decided by its level alone; the adjusted p is that decision in another form.
        p_adjusted = adjusted_p(one.p_value, self.shares, number, self.pairs, self.spending)
        return replace(one, p_adjusted=p_adjusted)

    def _is_settled(self, left: Sequence[str], values: Mapping[str, Array], pairs: Collection[Comparison]) -> bool:
        """Return whether the best variant that is left is equivalent to all others that are left."""
        means = {name: float(np.nanmean(values[name])) for name in left if np.isfinite(values[name]).any()}
        if len(left) == 1:
            return True
        if len(means) < len(left):
            return False
        best = (min if self.scale.higher_is_better is False else max)(means, key=means.__getitem__)
        against = [one for one in pairs if best in {one.a, one.b} and {one.a, one.b} <= set(left)]
        return all(is_settled(one) for one in against)


def is_settled(one: Comparison) -> bool:
    """Return whether a pair needs no more rows."""
    return one.equivalent or one.better is not None


def _loser(one: Comparison) -> str | None:
    """Return the variant of a pair that is surely worse, by a difference that matters."""
    if one.equivalent or one.better is None:
        return None
    return one.b if one.better == one.a else one.a
