"""Many classes at once: accuracy, macro-F1, precision and recall of each class, and the confusion matrix.

Answers are given as flat lists: the row of each, the expected label, the given label (None: no answer). An answer whose
expected label is None does not count. The classes are those named, or else the expected labels that occur: an answer
that is none of them is wrong, and stands in the confusion matrix's column for others, but makes no class of its own.

The samples of a row are its cluster, as in `statistics`. Rows that look alike (the same expected and given labels) are
counted once, so that resampling is quick and does not depend on the order of the rows. Up to 1,000 rows are resampled.
Beyond, macro-F1 is linearized: each row has an influence on it, to first order, and the influences are treated as the
row"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray
from scipy import sparse, stats

from batchchat.dataclass import dataclass
from batchchat.errors import UsageError
from batchchat.evaluation.statistics.clusters import Clusters, cluster_sums
from batchchat.evaluation.statistics.comparison import Comparison, ScoreSummary, adjust
from batchchat.evaluation.statistics.intervals import BOOTSTRAP_ROWS, CONFIDENCE, SEED, Array, Interval
from batchchat.evaluation.statistics.pair_tests import is_inside
from batchchat.evaluation.statistics.significance import ALPHA, FLIPS, enough_draws, sign_flip_test
from batchchat.evaluation.statistics.unit import SHARE

OTHER = "(other)"
NO_ANSWER = "(no answer)"
MAX_CLASSES = 1_000
"""Classes of one classification: a table of them has a million cells. More are no labels but free text."""
RESAMPLES = 1_999
"""With the value that was seen 2,000: p values are multiples of 0.0005. Chosen."""
_BLOCK = 1 << 22
"""Numbers of one block of permutations: 32 MiB of memory, however many rows there are."""
_ALIKE = "all rows look the same: they say nothing about the spread"
_Codes = NDArray[np.int64]


class CodedLabels(Sequence[str | None]):
    """Labels of many answers, of which few are different: the name of each is `names[code]`."""

    def __init__(self, names: Sequence[str | None], codes: NDArray[np.signedinteger[Any]]) -> None:
        self.names = names
        self.codes = codes

    def __len__(self) -> int:
        return len(self.codes)

    @overload
    def __getitem__(self, at: int) -> str | None: ...
    @overload
    def __getitem__(self, at: slice) -> CodedLabels: ...
    def __getitem__(self, at: int | slice) -> str | CodedLabels | None:
        return CodedLabels(self.names, self.codes[at]) if isinstance(at, slice) else self.names[self.codes[at]]

    @classmethod
    def of(cls, labels: Sequence[str | None]) -> CodedLabels:
        """Return labels in this form."""
        if isinstance(labels, CodedLabels):
            return labels
        names: dict[str | None, int] = {}
        codes = np.fromiter((names.setdefault(label, len(names)) for label in labels), np.int64, len(labels))
        return cls([*names], codes)

    def by(self, known: Mapping[str | None, int], unknown: int) -> _Codes:
        """Return the code of each label among those that are known."""
        if not len(self):
            return np.zeros(0, dtype=np.int64)
        made: _Codes = np.array([known.get(name, unknown) for name in self.names], dtype=np.int64)[self.codes]
        return made


class LabelledAnswers(NamedTuple):
    """The answers of one variant: row position, expected label and given label of each."""

    rows: Sequence[int] | NDArray[np.int64]
    expected: Sequence[str | None]
    given: Sequence[str | None]


@dataclass(frozen=True, slots=True)
class ClassScore:
    """One class. `support` counts answers that should be it; precision is None where no answer was it."""

    label: str
    precision: float | None
    recall: float | None
    f1: float | None
    support: int


@dataclass(frozen=True, slots=True)
class ClassReport:
    """All classes of one variant.

    `macro_f1` is the unweighted mean of F1 over the classes that occur, expected or given. `confusion` has a line for
    each class as expected, and a column for each entry of `given`: the classes, `(other)` and `(no answer)`.
    """

    accuracy: float | None
    macro_f1: float | None
    n: int
    classes: tuple[ClassScore, ...]
    given: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]


def classes_of(variants: Sequence[LabelledAnswers], labels: Sequence[str] | None = None) -> list[str]:
    """Return the classes named, or the expected labels that occur, sorted. Raises UsageError if they are too many."""
    expected: set[str | None] = set()
    for answers in variants:
        labelled = CodedLabels.of(answers.expected)
        expected |= {labelled.names[code] for code in np.unique(labelled.codes)}
    found = list(labels) if labels else sorted(label for label in expected if label is not None)
    if len(found) > MAX_CLASSES:
        raise UsageError(
            f"the expected column holds {len(found):,} different values: that is no set of classes",
            remedy="Use `exact`, or name the classes in `labels`.",
        )
    return found


def classification_report(answers: LabelledAnswers, labels: Sequence[str] | None = None) -> ClassReport:
    """Return the report of one variant over all its answers."""
    classes = classes_of([answers], labels)
    size = len(classes)
    table = np.zeros((size, size + 2), dtype=np.int64)
    _, expected, chosen = _codes(answers, classes)
    np.add.at(table, (expected, chosen), 1)
    hits, given, support = np.diag(table), table[:, :size].sum(axis=0), table.sum(axis=1)
    scores = tuple(
        ClassScore(
            label=label,
            precision=float(hits[at] / given[at]) if given[at] else None,
            recall=float(hits[at] / support[at]) if support[at] else None,
            f1=float(2 * hits[at] / (given[at] + support[at])) if given[at] + support[at] else None,
            support=int(support[at]),
        )
        for at, label in enumerate(classes)
    )
    known = [score.f1 for score in scores if score.f1 is not None]
    n = int(table.sum())
    return ClassReport(
        accuracy=float(hits.sum() / n) if n else None,
        macro_f1=float(np.mean(known)) if known else None,
        n=n,
        classes=scores,
        given=(*classes, OTHER, NO_ANSWER),
        confusion=tuple(tuple(int(count) for count in line) for line in table),
    )


def summarize_macro_f1(
    answers: LabelledAnswers,
    labels: Sequence[str] | None = None,
    *,
    seed: int = SEED,
    clusters: Clusters | None = None,
) -> ScoreSummary:
    """Return macro-F1 with its 95 % interval: percentiles of 1,999 resamples, or linearized.

    Arguments:
        answers: of one variant.
        labels: the classes; None for the expected labels that occur.
        seed: of resampling.
        clusters: of each row position; None if each row is evidence by itself.

    `n` of the result counts rows.
    """
    classes = classes_of([answers], labels)
    patterns = _patterns([_side(answers, classes)])
    made = ScoreSummary(None, None, None, patterns.rows, SHARE.unit, True, None, reason="no row has an expected class")
    if patterns.rows == 0:
        return made
    (tallies,) = patterns.tallies
    estimate = float(_macro_f1(patterns.sums(0))[0])
    own = None if clusters is None else clusters[patterns.positions]
    if own is not None:
        interval = _clustered_interval(_influence(patterns, 0)[patterns.places], own, estimate, (0.0, 1.0))
    elif patterns.rows > BOOTSTRAP_ROWS[-1]:
        interval = _linear_interval(patterns, _influence(patterns, 0), estimate, (0.0, 1.0))
    else:
        interval = _bootstrap_interval(patterns, lambda weights: _macro_f1(weights @ tallies), estimate, seed)
    return replace(
        made,
        mean=estimate,
        ci_low=interval.low,
        ci_high=interval.high,
        ci_method=interval.method,
        seed=seed if interval.method == "bootstrap_percentile" else None,
        reason=interval.reason,
        clusters=None if own is None else int(np.unique(own).size),
    )


def compare_macro_f1(
    variants: Mapping[str, LabelledAnswers],
    labels: Sequence[str] | None = None,
    *,
    scorer: str,
    seed: int = SEED,
    clusters: Clusters | None = None,
    margin: float | None = None,
) -> list[Comparison]:
    """Compare macro-F1 of every pair of variants on the rows that both answered.

    Arguments:
        variants: answers by the variant's name.
        labels: the classes; None for the expected labels that occur.
        scorer: its name, for the results.
        seed: of resampling and of random swaps.
        clusters: of each row position; None if each row is evidence by itself.
        margin: the difference that does not matter.

    If the variants were alike, swapping their answers to a row would change nothing. The test is by m such draws, 1,999
    or more if many pairs ask for them, p = (b + 1) / (m + 1); beyond 1,000 rows it flips the signs of the rows'
    linearized differences, or with `clusters` those of whole clusters. Wins are rows with more right answers.
    """
    classes = classes_of(list(variants.values()), labels)
    sides = {name: _side(answers, classes) for name, answers in variants.items()}
    pairs = list(itertools.combinations(sides, 2))
    draws = enough_draws(ALPHA / max(1, len(pairs)), RESAMPLES)
    # Holm's method holds the smallest p value of so many pairs to this level.
    alpha = ALPHA / max(1, len(pairs))
    test = _Test(seed, draws, alpha, clusters, margin)
    return adjust([_compare_pair((a, sides[a]), (b, sides[b]), scorer, test) for a, b in pairs])


class _Test(NamedTuple):
    """How pairs are tested; see `compare_macro_f1`. `alpha` is the strictest level that a pair may be held to."""

    seed: int
    draws: int
    alpha: float
    clusters: Clusters | None
    margin: float | None


class _Side(NamedTuple):
    """One variant by rows: row positions, ascending; which look each row has; tally and right share of each look.

    A look is what rows share whose answers have the same expected and given labels. A tally line holds, for each class:
    right answers, answers that are it, answers that should be it.
    """

    rows: _Codes
    looks: _Codes
    tallies: sparse.csr_array
    right: Array


class _Patterns(NamedTuple):
    """Rows that look alike on every side: how many there are, and for each side their tallies and right shares.

    `positions` are the row positions that every side answered, and `places` has the pattern of each.
    """

    counts: _Codes
    tallies: list[sparse.csr_array]
    right: list[Array]
    positions: _Codes
    places: _Codes

    @property
    def rows(self) -> int:
        """Return the number of rows."""
        return int(self.positions.size)

    def sums(self, side: int) -> Array:
        """Return the tallies of all rows of one side, as one line."""
        made: Array = self.counts[np.newaxis].astype(np.float64) @ self.tallies[side]
        return made


def _codes(answers: LabelledAnswers, classes: Sequence[str]) -> tuple[_Codes, _Codes, _Codes]:
    """Row, expected and given class of the answers that count. Others are one past the last class, no answer two."""
    size = len(classes)
    known: dict[str | None, int] = {label: at for at, label in enumerate(classes)}
    expected = CodedLabels.of(answers.expected).by(known, -1)
    known[None] = size + 1
    given = CodedLabels.of(answers.given).by(known, size)
    counts = expected >= 0
    return np.asarray(answers.rows, dtype=np.int64)[counts], expected[counts], given[counts]


def _side(answers: LabelledAnswers, classes: Sequence[str]) -> _Side:
    size = len(classes)
    row, expected, given = _codes(answers, classes)
    code = expected * (size + 2) + given
    # Sorted within each row: the order of its samples must not make another look.
    order = np.lexsort((code, row))
    row, code = row[order], code[order]
    rows, first, line = np.unique(row, return_index=True, return_inverse=True)
    place = np.arange(row.size) - first[line]
    # One line per row: its sorted codes, -1 where other rows have more answers.
    grid = np.full((rows.size, int(place.max(initial=0)) + 1), -1, dtype=np.int64)
    grid[line, place] = code
    flat = grid.shape[1] == 1
    lines, looks = np.unique(grid[:, 0] if flat else grid, axis=None if flat else 0, return_inverse=True)
    tallies, right = _tally(lines.reshape(-1, grid.shape[1]), size)
    return _Side(rows, looks.reshape(-1), tallies, right)


def _patterns(sides: Sequence[_Side]) -> _Patterns:
    """Group the rows that every side answered by how they look on all sides."""
    shared = functools.reduce(lambda a, b: np.intersect1d(a, b, assume_unique=True), [side.rows for side in sides])
    looks = [side.looks[np.searchsorted(side.rows, shared)] for side in sides]
    shape = tuple(side.right.size for side in sides)
    if shared.size == 0:
        nothing = np.zeros(0, dtype=np.int64)
        return _Patterns(nothing, [], [np.zeros(0)] * len(sides), nothing, nothing)
    # One number stands for the looks on all sides, so that equal rows are found by one sort.
    seen = np.ravel_multi_index(looks, shape)
    together, places, counts = np.unique(seen, return_inverse=True, return_counts=True)
    apart = np.unravel_index(together, shape)
    return _Patterns(
        counts.astype(np.int64),
        [side.tallies[chosen] for side, chosen in zip(sides, apart, strict=True)],
        [side.right[chosen] for side, chosen in zip(sides, apart, strict=True)],
        shared.astype(np.int64),
        places.reshape(-1).astype(np.int64),
    )


def _tally(looks: _Codes, size: int) -> tuple[sparse.csr_array, Array]:
    """The tallies of each look, and the share of its answers that are right."""
    at, place = np.nonzero(looks >= 0)
    expected, given = np.divmod(looks[at, place], size + 2)
    hit, inside = expected == given, given < size
    line = np.concatenate([at[hit], at[inside], at])
    column = np.concatenate([expected[hit], size + given[inside], 2 * size + expected])
    shape = (looks.shape[0], 3 * size)
    tally = sparse.csr_array((np.ones(line.size), (line, column)), shape=shape)
    hits, answers = (np.bincount(lines, minlength=shape[0]) for lines in (at[hit], at))
    return tally, hits / np.maximum(answers, 1)


def _macro_f1(tallies: Array) -> Array:
    """Macro-F1 of each line of summed tallies, over the classes that occur in it; 0 where none does."""
    hits, given, support = np.split(tallies, 3, axis=1)
    total = given + support
    f1 = np.divide(2 * hits, total, out=np.zeros_like(total), where=total > 0)
    made: Array = f1.sum(axis=1) / np.maximum((total > 0).sum(axis=1), 1)
    return made


def _influence(patterns: _Patterns, side: int, sums: Array | None = None) -> Array:
    """What a row of each pattern adds to macro-F1, to first order around these sums; over all rows it adds up to 0."""
    tallies = patterns.tallies[side]
    hits, given, support = np.split((patterns.sums(side) if sums is None else sums)[0], 3)
    total = given + support
    occurring = max(1, int(np.sum(total > 0)))
    # F1 = 2 h / t, so its derivatives are 2 / t by h, and -F1 / t by what is given or expected.
    slope = np.divide(2.0, total, out=np.zeros_like(total), where=total > 0) / occurring
    fall = -slope * np.divide(hits, total, out=np.zeros_like(total), where=total > 0)
    made: Array = tallies @ np.concatenate([slope, fall, fall])
    return made


def _linear_interval(
    patterns: _Patterns, influence: Array, estimate: float, span: tuple[float, float], confidence: float = CONFIDENCE
) -> Interval:
    rows = patterns.rows
    if rows == 1:
        return Interval(None, None, None, "a single row says nothing about the spread")
    spread = float(np.sum(patterns.counts * influence**2)) * rows / (rows - 1)
    if spread == 0:
        return Interval(None, None, None, _ALIKE)
    half = float(stats.t.ppf((1 + confidence) / 2, rows - 1)) * math.sqrt(spread)
    return Interval(max(estimate - half, span[0]), min(estimate + half, span[1]), "delta_method")


def _clustered_interval(
    influence: Array, clusters: Clusters, estimate: float, span: tuple[float, float], confidence: float = CONFIDENCE
) -> Interval:
    """The same for rows in clusters; `influence` has one value for each row."""
    sums = cluster_sums(influence, clusters).sums
    if sums.size == 1:
        return Interval(None, None, None, "all rows are of one cluster: it says nothing about the spread")
    spread = sums.size / (sums.size - 1) * math.fsum(sums**2)
    if spread == 0:
        return Interval(None, None, None, _ALIKE)
    half = float(stats.t.ppf((1 + confidence) / 2, sums.size - 1)) * math.sqrt(spread)
    return Interval(max(estimate - half, span[0]), min(estimate + half, span[1]), "delta_method_clusters")


def _bootstrap_interval(
    patterns: _Patterns, statistic: Callable[[Array], Array], estimate: float, seed: int
) -> Interval:
    """Percentiles of the statistic over resampled rows: each draw weighs the patterns anew."""
    if patterns.counts.size == 1:
        return Interval(None, None, None, _ALIKE)
    generator = np.random.default_rng(seed)
    weights = generator.multinomial(patterns.rows, patterns.counts / patterns.rows, size=RESAMPLES)
    drawn = statistic(weights.astype(np.float64))
    low, high = (float(limit) for limit in np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]))
    # Few rows may give resamples that all lie on one side of the estimate, which belongs to its interval.
    return Interval(min(low, estimate), max(high, estimate), "bootstrap_percentile")


def _counted(
    a: tuple[str, _Side], b: tuple[str, _Side], patterns: _Patterns, scorer: str, margin: float | None
) -> Comparison:
    """Return a comparison that says who wins how many rows, and nothing of the difference yet."""
    left, right = patterns.right
    above, below = int(patterns.counts[left > right].sum()), int(patterns.counts[left < right].sum())
    return Comparison(
        a=a[0],
        b=b[0],
        scorer=scorer,
        difference=None,
        ci_low=None,
        ci_high=None,
        p_value=None,
        p_adjusted=None,
        test=None,
        wins_a=above,
        wins_b=below,
        ties=patterns.rows - above - below,
        n=patterns.rows,
        # Rows with a value on one side alone: those with both are in each of the two sizes.
        nulls=int(a[1].rows.size + b[1].rows.size - 2 * patterns.rows),
        unit=SHARE.unit,
        higher_is_better=True,
        margin=margin,
    )


def _compare_pair(a: tuple[str, _Side], b: tuple[str, _Side], scorer: str, test: _Test) -> Comparison:
    patterns = _patterns([a[1], b[1]])
    made = _counted(a, b, patterns, scorer, test.margin)
    if patterns.rows == 0:
        return replace(made, reason="no row has a value on both sides")
    ours, theirs = patterns.tallies
    difference = float(_macro_f1(patterns.sums(0))[0] - _macro_f1(patterns.sums(1))[0])
    own = None if test.clusters is None else test.clusters[patterns.positions]
    # To first order, what each row adds to the difference. It carries the interval of large samples and of clusters,
    # and the two one-sided tests.
    influence = _influence(patterns, 0) - _influence(patterns, 1)
    middle = (patterns.sums(0) + patterns.sums(1)) / 2
    changes = (_influence(patterns, 0, middle) - _influence(patterns, 1, middle))[patterns.places]

    def linear(confidence: float) -> Interval:
        if own is None:
            return _linear_interval(patterns, influence, difference, (-1.0, 1.0), confidence)
        return _clustered_interval(influence[patterns.places], own, difference, (-1.0, 1.0), confidence)

    if own is not None or patterns.rows > BOOTSTRAP_ROWS[-1]:
        interval = linear(CONFIDENCE)
        # Rows of one cluster go together: what is flipped is the sum of each.
        flipped = changes if own is None else cluster_sums(changes, own).sums
        p_value, method = sign_flip_test(flipped, seed=test.seed, draws=max(test.draws, FLIPS))
        name = f"{method}_linearized{'' if own is None else '_clusters'}"
    else:
        interval = _bootstrap_interval(
            patterns, lambda weights: _macro_f1(weights @ ours) - _macro_f1(weights @ theirs), difference, test.seed
        )
        p_value, name = _swap_p(patterns, difference, test.seed, test.draws), "swap_monte_carlo"
    return replace(
        made,
        difference=difference,
        ci_low=interval.low,
        ci_high=interval.high,
        ci_method=interval.method,
        p_value=p_value,
        test=name,
        seed=test.seed if "monte_carlo" in name or interval.method == "bootstrap_percentile" else None,
        reason=interval.reason,
        clusters=None if own is None else int(np.unique(own).size),
        equivalent=test.margin is not None and is_inside(linear(1 - 2 * test.alpha), test.margin),
    )


def _swap_p(patterns: _Patterns, difference: float, seed: int, draws: int) -> float:
    """The share of draws, each swapping the sides of about half of the rows, that differ at least as much."""
    change = patterns.tallies[1] - patterns.tallies[0]
    # Rows that tally alike on both sides stay as they are under any swap.
    uneven = np.flatnonzero(abs(change).sum(axis=1))
    if uneven.size == 0:
        return 1.0
    generator = np.random.default_rng(seed)
    counts = patterns.counts[uneven]
    change, hits = change[uneven], 0
    block = max(1, _BLOCK // max(counts.size, change.shape[1]))
    for start in range(0, draws, block):
        swapped = generator.binomial(counts, 0.5, size=(min(block, draws - start), counts.size)) @ change
        drawn = _macro_f1(patterns.sums(0) + swapped) - _macro_f1(patterns.sums(1) - swapped)
        # Differences that are equal on paper may differ in the last bits.
        hits += int(np.sum(np.abs(drawn) >= abs(difference) - 1e-12))
    return (hits + 1) / (draws + 1)
