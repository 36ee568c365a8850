"""How far two or more raters agree: accuracy, macro-F1, Cohen's kappa, Krippendorff's alpha; pure functions.

A unit is a row that was rated, with one value a rater (None: not rated). Each unit has a weight: one over the chance
with which it was chosen, so that sums over the chosen units estimate sums over all rows (Horvitz and Thompson 1952,
JASA 47:663-685), and ratios of them are Hájek's. All measures are ratios of such sums.

Intervals are percentiles of 1,999 bootstrap draws of whole units, which keep their weights (Efron and Tibshirani 1993,
An Introduction to the Bootstrap, chapter 13). Only the interval of a share is another one: Wilson's, with the effective
number of units (sum w)^2 / sum w^2 (Kish 1965, Survey Sampling), since a bootstrap of all ones says that nothing can
be wrong. Units of one cluster, such as the answers to one row, are drawn together, and Wilson's interval counts them as
one. Alpha is that of Krippendorff 2011, Computing Krippendorff's Alpha-Reliability, and kappa that of Cohen 1960,
Educational and Psychological Measurement 20:37-46.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from batchchat.dataclass import dataclass

Array = NDArray[np.float64]
Level = Literal["nominal", "ordinal", "interval"]
Values = Sequence[str | None]

MAX_LABELS = 200
"""How many different labels a table of them may have: a draw holds a number for each pair of labels."""
RESAMPLES = 1_999
SEED = 20_250_101
"""The start of all draws: the same labels give the same intervals, in each run and on each machine."""
_Z = 1.959963984540054
_BLOCK = 1 << 22
"""Numbers held at once while drawing: 32 MiB, whatever the number of labels."""
_ALIKE = "all rows look the same: they say nothing about the spread"
_NO_CHANCE = "only one label occurs: chance agreement is complete, so that nothing can be said beyond it"


class Estimate(NamedTuple):
    """A measure with its 95 % interval. `value` is None, with a `reason`, if it is not defined."""

    value: float | None
    low: float | None = None
    high: float | None = None
    method: str | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class LabelScore:
    """One label: how often it is expected and given (weighted), and how far the two agree."""

    label: str
    expected: float
    given: float
    precision: float | None
    recall: float | None
    f1: float | None


@dataclass(frozen=True, slots=True)
class PairAgreement:
    """What one side gives against what the other expects, over the `n` units that both rated.

    `effective_n` is what the weights leave of n. `confusion` has a line for each label as expected and a column for
    each as given, in the order of `labels`; its entries are weighted so that they add up to n.
    """

    n: int
    effective_n: float
    labels: tuple[str, ...]
    accuracy: Estimate
    macro_f1: Estimate
    kappa: Estimate
    alpha: Estimate
    confusion: tuple[tuple[float, ...], ...]
    by_label: tuple[LabelScore, ...]


def pair_agreement(
    expected: Values,
    given: Values,
    weights: Sequence[float] | None = None,
    *,
    scale: Scale | None = None,
    clusters: Sequence[int] | None = None,
) -> PairAgreement:
    """Compare two raters of the same units. Units that one of them did not rate are left out.

    Macro-F1 is the mean over all labels that occur on either side. `scale` says which labels are how far apart, for
    alpha; without it they are names. Units with the same number in `clusters` are one piece of evidence.
    """
    kept = [at for at, (a, b) in enumerate(zip(expected, given, strict=True)) if a is not None and b is not None]
    left, right = [str(expected[at]) for at in kept], [str(given[at]) for at in kept]
    weight = _weights(weights, kept)
    labels = _labels([*left, *right], scale)
    size = len(labels)
    place = {label: at for at, label in enumerate(labels)}
    cells = np.array([place[a] * size + place[b] for a, b in zip(left, right, strict=True)], dtype=np.int64)
    groups = _Groups.of_cells(cells, weight, size * size)
    drawn = groups
    if clusters is not None:
        drawn = _Groups.of_clusters(cells, weight, [clusters[at] for at in kept], size * size)
    table = (groups.counts @ groups.patterns).reshape(size, size)
    hits = float(np.trace(table))
    n = len(kept)
    effective = _effective(weight) if clusters is None else min(_effective(weight), float(drawn.counts.sum()))
    levels = (scale or Scale()).distances(labels)
    return PairAgreement(
        n=n,
        effective_n=effective,
        labels=tuple(labels),
        accuracy=share_estimate(hits / n if n else None, effective),
        macro_f1=_estimate(drawn, lambda tables: _macro_f1(tables, size)),
        kappa=_estimate(drawn, lambda tables: _kappa(tables, size), _NO_CHANCE),
        alpha=_estimate(drawn, lambda tables: _alpha_of_pairs(tables, size, levels), _NO_CHANCE),
        confusion=tuple(tuple(float(cell) for cell in line) for line in table),
        by_label=_by_label(labels, table),
    )


def alpha(units: Sequence[Values], weights: Sequence[float] | None = None, *, scale: Scale | None = None) -> Estimate:
    """Return Krippendorff's alpha of any number of raters; a unit has a value of each, None if it was not rated.

    Units with fewer than two values cannot be paired, and are left out.
    """
    kept = [at for at, values in enumerate(units) if sum(value is not None for value in values) > 1]
    rated = [sorted(str(value) for value in units[at] if value is not None) for at in kept]
    labels = _labels([value for values in rated for value in values], scale)
    size = len(labels)
    place = {label: at for at, label in enumerate(labels)}
    weight = _weights(weights, kept)
    looks: dict[tuple[tuple[str, ...], float], int] = {}
    counts: list[float] = []
    for values, one in zip(rated, weight.tolist(), strict=True):
        at = looks.setdefault((tuple(values), one), len(looks))
        if at == len(counts):
            counts.append(0.0)
        counts[at] += 1
    patterns = np.zeros((len(looks), size * size))
    for at, (look, one) in enumerate(looks):
        found = np.bincount([place[value] for value in look], minlength=size).astype(np.float64)
        # Each value of the unit is paired with each other one.
        pairs = np.outer(found, found) - np.diag(found)
        patterns[at] = (one * pairs / (len(look) - 1)).ravel()
    groups = _Groups(np.array(counts), patterns)
    levels = (scale or Scale()).distances(labels)
    return _estimate(groups, lambda tables: _alpha(tables, size, levels), _NO_CHANCE)


# --- how far apart labels are


Distances = Callable[[Array], Array]
"""From how often each label occurs (one line a draw) to the squared distance of each pair of labels."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Which labels are how far apart: all alike (`nominal`), by their rank (`ordinal`), by their number (`interval`).

    `order` lists the labels from the lowest to the highest; without it they are put in order as numbers.
    """

    level: Level = "nominal"
    order: tuple[str, ...] = ()

    def sorted(self, labels: Sequence[str]) -> list[str]:
        """Put labels in order. Raises ValueError if they have none."""
        if self.level == "nominal":
            return sorted(labels)
        if self.level == "ordinal" and self.order:
            missing = [label for label in labels if label not in self.order]
            if missing:
                raise ValueError(f"{missing[0]!r} is not among {', '.join(self.order)}")
            return sorted(labels, key=self.order.index)
        return sorted(labels, key=_number)

    def distances(self, labels: Sequence[str]) -> Distances:
        """Return the squared distances of these labels, which are in order."""
        size = len(labels)
        if self.level == "ordinal":
            return _ordinal
        if self.level == "interval":
            numbers = np.array([_number(label) for label in labels])
            fixed = (numbers[:, None] - numbers[None, :]) ** 2
        else:
            fixed = 1.0 - np.eye(size)
        return lambda counts: np.broadcast_to(fixed, (counts.shape[0], size, size))


def _number(label: str) -> float:
    try:
        number = float(label)
    except ValueError:
        raise ValueError(f"{label!r} is no number") from None
    if not math.isfinite(number):
        raise ValueError(f"{label!r} is no number")
    return number


def _ordinal(counts: Array) -> Array:
    # The values that stand between two labels, with half of those of the two themselves.
    middle = np.cumsum(counts, axis=1) - counts / 2
    made: Array = (middle[:, :, None] - middle[:, None, :]) ** 2
    return made


def _labels(values: Sequence[str], scale: Scale | None) -> list[str]:
    found = set(values)
    if len(found) > MAX_LABELS:
        raise ValueError(f"there are {len(found):,} different values, which is no set of labels")
    return (scale or Scale()).sorted(list(found))


# --- the measures: of one table a line


def _kappa(tables: Array, size: int) -> Array:
    table = tables.reshape(-1, size, size)
    total = table.sum(axis=(1, 2))
    rows, columns = table.sum(axis=2), table.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        observed = np.trace(table, axis1=1, axis2=2) / total
        by_chance = (rows * columns).sum(axis=1) / total**2
        made: Array = np.where(1 - by_chance > 1e-12, (observed - by_chance) / (1 - by_chance), np.nan)
    return made


def _macro_f1(tables: Array, size: int) -> Array:
    table = tables.reshape(-1, size, size)
    hits = np.diagonal(table, axis1=1, axis2=2)
    both = table.sum(axis=2) + table.sum(axis=1)
    f1 = np.divide(2 * hits, both, out=np.zeros_like(both), where=both > 0)
    occurring = (both > 0).sum(axis=1)
    made: Array = np.where(occurring > 0, f1.sum(axis=1) / np.maximum(occurring, 1), np.nan)
    return made


def _alpha_of_pairs(tables: Array, size: int, distances: Distances) -> Array:
    """Alpha of two raters: each unit gives both orders of its pair."""
    table = tables.reshape(-1, size, size)
    return _alpha((table + table.transpose(0, 2, 1)).reshape(-1, size * size), size, distances)


def _alpha(tables: Array, size: int, distances: Distances) -> Array:
    coincidences = tables.reshape(-1, size, size)
    counts = coincidences.sum(axis=2)
    total = counts.sum(axis=1)
    apart = distances(counts)
    observed = (coincidences * apart).sum(axis=(1, 2))
    expected = (counts[:, :, None] * counts[:, None, :] * apart).sum(axis=(1, 2))
    with np.errstate(divide="ignore", invalid="ignore"):
        made: Array = np.where(expected > 1e-12, 1 - (total - 1) * observed / expected, np.nan)
    return made


def _by_label(labels: Sequence[str], table: Array) -> tuple[LabelScore, ...]:
    made = []
    for at, label in enumerate(labels):
        hits, expected, given = float(table[at, at]), float(table[at].sum()), float(table[:, at].sum())
        made.append(
            LabelScore(
                label,
                expected,
                given,
                precision=hits / given if given else None,
                recall=hits / expected if expected else None,
                f1=2 * hits / (expected + given) if expected + given else None,
            )
        )
    return tuple(made)


# --- intervals


class _Groups(NamedTuple):
    """Units that look alike and weigh alike: how many there are, and what one of them adds to the table."""

    counts: Array
    patterns: Array

    @staticmethod
    def of_cells(cells: NDArray[np.int64], weights: Array, size: int) -> _Groups:
        seen = np.stack([cells.astype(np.float64), weights], axis=1)
        looks, counts = np.unique(seen, axis=0, return_counts=True)
        patterns = np.zeros((looks.shape[0], size))
        patterns[np.arange(looks.shape[0]), looks[:, 0].astype(np.int64)] = looks[:, 1]
        return _Groups(counts.astype(np.float64), patterns)

    @staticmethod
    def of_clusters(cells: NDArray[np.int64], weights: Array, clusters: Sequence[int], size: int) -> _Groups:
        """Take whole clusters as the units that are drawn; those that add the same to the table are one group."""
        _, places = np.unique(np.asarray(clusters, dtype=np.int64), return_inverse=True)
        looks: dict[tuple[tuple[int, float], ...], int] = {}
        members: list[dict[int, float]] = [{} for _ in range(int(places.max(initial=-1)) + 1)]
        for place, cell, weight in zip(places.tolist(), cells.tolist(), weights.tolist(), strict=True):
            members[place][cell] = members[place].get(cell, 0.0) + weight
        for member in members:
            look = tuple(sorted(member.items()))
            looks[look] = looks.get(look, 0) + 1
        patterns = np.zeros((len(looks), size))
        for at, look in enumerate(looks):
            for cell, weight in look:
                patterns[at, cell] = weight
        return _Groups(np.array([*looks.values()], dtype=np.float64), patterns)


def _weights(weights: Sequence[float] | None, kept: Sequence[int]) -> Array:
    """Return the weights of the units that count, scaled so that their mean is 1."""
    if weights is None:
        return np.ones(len(kept))
    chosen = np.array([weights[at] for at in kept], dtype=np.float64)
    return chosen / chosen.mean() if chosen.size else chosen


def _effective(weights: Array) -> float:
    return float(weights.sum() ** 2 / (weights**2).sum()) if weights.size else 0.0


def share_estimate(share: float | None, effective_n: float) -> Estimate:
    """Return a share with Wilson's interval for an effective number of units."""
    if share is None or effective_n <= 0:
        return Estimate(None, reason="no row counts")
    n, z2 = effective_n, _Z**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return Estimate(share, max(0.0, middle - half), min(1.0, middle + half), "wilson_effective_n")


def _estimate(groups: _Groups, measure: Callable[[Array], Array], undefined: str | None = None) -> Estimate:
    """Return a measure of the summed table, with the percentiles of bootstrap draws."""
    if groups.counts.size == 0:
        return Estimate(None, reason="no row was rated by both")
    value = float(measure((groups.counts @ groups.patterns)[None])[0])
    if math.isnan(value):
        return Estimate(None, reason=undefined)
    if groups.counts.size == 1:
        return Estimate(value, reason=_ALIKE)
    drawn = _draws(groups, measure)
    drawn = drawn[~np.isnan(drawn)]
    # A draw in which a single label occurs has no value. If that is common, the rest would tell too much.
    if drawn.size < 0.95 * RESAMPLES:
        return Estimate(value, reason="too many draws have a single label: there are too few rows of the others")
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Estimate(value, float(low), float(high), "bootstrap_percentile")


def _draws(groups: _Groups, measure: Callable[[Array], Array]) -> Array:
    generator = np.random.default_rng(SEED)
    n = int(groups.counts.sum())
    chances = groups.counts / n
    block = max(1, _BLOCK // max(1, groups.patterns.shape[1], groups.counts.size))
    made = []
    for start in range(0, RESAMPLES, block):
        drawn = generator.multinomial(n, chances, size=min(block, RESAMPLES - start)).astype(np.float64)
        made.append(measure(drawn @ groups.patterns))
    return np.concatenate(made)


# --- confidence


@dataclass(frozen=True, slots=True)
class ConfidenceBin:
    """The rows whose confidence is in one tenth: how many, the mean confidence, and the share that is right."""

    low: float
    high: float
    n: int
    confidence: float | None
    accuracy: Estimate


@dataclass(frozen=True, slots=True)
class ThresholdAccuracy:
    """The rows whose confidence is at least `threshold`: their share of all, and how many of them are right."""

    threshold: float
    n: int
    share: float
    accuracy: Estimate


@dataclass(frozen=True, slots=True)
class ConfidenceCheck:
    """Whether confidence says how often answers are right. `error` is the expected calibration error."""

    n: int
    error: Estimate
    bins: tuple[ConfidenceBin, ...]
    above: tuple[ThresholdAccuracy, ...]


_BINS = 10
"""Groups of answers by their confidence, as calibration is mostly told. The error depends on this number."""
THRESHOLDS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)


def check_confidence(
    confidence: Sequence[float], right: Sequence[bool], weights: Sequence[float] | None = None
) -> ConfidenceCheck:
    """Compare confidence with how often answers are right.

    The expected calibration error is the mean over rows of |share right - mean confidence| of the row's tenth (Naeini
    et al. 2015, Obtaining Well Calibrated Probabilities Using Bayesian Binning).
    """
    sure, hits = np.asarray(confidence, dtype=np.float64), np.asarray(right, dtype=np.float64)
    weight = _weights(weights, range(sure.size))
    # 1.0 belongs to the last tenth.
    places = np.minimum((sure * _BINS + 1e-9).astype(np.int64), _BINS - 1)
    bins = tuple(
        _bin(at / _BINS, (at + 1) / _BINS, sure[places == at], hits[places == at], weight[places == at])
        for at in range(_BINS)
    )
    above = []
    for threshold in THRESHOLDS:
        kept = sure >= threshold
        share = float(weight[kept].sum() / weight.sum()) if weight.size else 0.0
        above.append(ThresholdAccuracy(threshold, int(kept.sum()), share, _accuracy(hits[kept], weight[kept])))
    return ConfidenceCheck(int(sure.size), _calibration_error(sure, hits, weight, places), bins, tuple(above))


def _bin(low: float, high: float, sure: Array, hits: Array, weight: Array) -> ConfidenceBin:
    mean = float(np.average(sure, weights=weight)) if sure.size else None
    return ConfidenceBin(low, high, int(sure.size), mean, _accuracy(hits, weight))


def _accuracy(hits: Array, weight: Array) -> Estimate:
    return share_estimate(float(np.average(hits, weights=weight)) if hits.size else None, _effective(weight))


def _calibration_error(sure: Array, hits: Array, weight: Array, places: NDArray[np.int64]) -> Estimate:
    """The error is what is off in each tenth, added up; bootstrapped over rows."""
    n = sure.size
    if n == 0:
        return Estimate(None, reason="no row has a confidence")

    def error(drawn: Array) -> Array:
        share = drawn / drawn.sum(axis=1, keepdims=True)
        gaps = np.stack([(share * ((places == at) * (hits - sure))).sum(axis=1) for at in range(_BINS)])
        made: Array = np.abs(gaps).sum(axis=0)
        return made

    value = float(error(weight[None])[0])
    if n == 1:
        return Estimate(value, reason="a single row says nothing about the spread")
    generator = np.random.default_rng(SEED)
    # Above 2,000 rows fewer draws do: each of them costs the number of rows.
    draws = RESAMPLES if n <= 2_000 else 199
    drawn = []
    block = max(1, _BLOCK // n)
    for start in range(0, draws, block):
        counts = generator.multinomial(n, np.full(n, 1 / n), size=min(block, draws - start))
        drawn.append(error(counts * weight))
    low, high = np.percentile(np.concatenate(drawn), [2.5, 97.5])
    return Estimate(value, float(low), float(high), "bootstrap_percentile")
