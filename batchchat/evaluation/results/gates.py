"""Gates: what an evaluation must hold to pass, for continuous integration, and the report that such a system reads."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batchchat.dataclass import dataclass
from batchchat.errors import StorageError, UsageError
from batchchat.evaluation.results.summary import SCORES_NAME, SuiteSummary, read_summary, whole_file
from batchchat.evaluation.statistics.comparison import Comparison, adjust, compare
from batchchat.evaluation.statistics.unit import SHARE, YES_NO, ScoreUnit
from batchchat.evaluation.suite.suite import Suite
from batchchat.job.values import nearest

# XML 1.0 has no form for these, however they are escaped.
_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True, slots=True)
class Gate:
    """A bound on a mean: it must not be under (or over) it, for one variant or, where that is None, for each."""

    scorer: str
    bound: float
    over: bool = False
    variant: str | None = None

    @property
    def rule(self) -> str:
        """What must hold, in a few signs."""
        return f"{self.scorer} {'<=' if self.over else '>='} {self.bound:g}"


@dataclass(frozen=True, slots=True)
class GateResult:
    """Whether one variant holds one rule, and why not."""

    variant: str
    rule: str
    passed: bool
    message: str


def read_gate(option: str, text: str, suite: Suite, *, over: bool = False) -> Gate:
    """Read a gate of the command line.

    Arguments:
        option: its name, for errors.
        text: `SCORE=VALUE` or `VARIANT:SCORE=VALUE`.
        suite: whose scores and variants are meant.
        over: whether the mean must not be over the value, in place of under it.

    Raises UsageError if there is no such score or variant, or the bound is on the wrong side.
    """
    name, equals, value = text.rpartition("=")
    variant, colon, scorer = name.rpartition(":")
    try:
        bound = float(value)
    except ValueError:
        # Refused below, as all that is not finite: such a bound would pass or fail everything.
        bound = math.nan
    if not equals or not scorer or not math.isfinite(bound):
        raise UsageError(f"{option} {text}: is not of the form score=value", remedy=f"Example: {option} accuracy=0.8")
    known = suite.scores()
    if scorer not in known:
        raise UsageError(
            f"{option} {text}: the suite has no score {scorer!r}{nearest(scorer, known)}",
            remedy=f"There are: {', '.join(known)}.",
        )
    names = [one.name for one in suite.variants]
    if colon and variant not in names:
        raise UsageError(
            f"{option} {text}: the suite has no variant {variant!r}{nearest(variant, names)}",
            remedy=f"There are: {', '.join(names)}.",
        )
    # The wrong option would fail the better values, and let the worse ones pass.
    if known[scorer].higher_is_better is over:
        other = "--fail-under" if over else "--fail-over"
        better = "higher" if over else "lower"
        raise UsageError(f"{option} {text}: of {scorer} {better} values are better", remedy=f"Use {other} {text}")
    return Gate(scorer, bound, over, variant if colon else None)


def check_gates(gates: Sequence[Gate], summary: SuiteSummary) -> list[GateResult]:
    """Hold the means against the bounds. A mean that is not known does not pass."""
    found = []
    for gate in gates:
        for variant in summary.variants:
            if gate.variant in {None, variant.name}:
                mean = variant.scores[gate.scorer].mean
                passed = mean is not None and (mean <= gate.bound if gate.over else mean >= gate.bound)
                message = f"{gate.scorer} is {'not known' if mean is None else f'{mean:.4g}'}"
                found.append(GateResult(variant.name, gate.rule, passed, message))
    return found


class Baseline:
    """An earlier evaluation, in a folder of its own, that this one must not be worse than.

    Variants are matched by name, or where each side has one only, to each other; rows by key, without keys by their
    position. A variant fails if a test finds it worse at 5 %, by Holm's method over the variants of a score, unless the
    difference is settledly smaller than the score's margin. With `cluster` in the suite, clusters are those of the rows
    as they are now.

    Raises UsageError if there is nothing to compare.
    """

    def __init__(self, directory: Path, suite: Suite) -> None:
        if directory.absolute().resolve() == suite.output.resolve():
            raise UsageError(
                f"--fail-if-worse-than {directory}: is the suite's own output",
                remedy="Give the folder of an earlier evaluation, such as a copy of this one's.",
            )
        self.directory = directory
        self.summary = read_summary(directory)
        names = [variant.name for variant in self.summary.variants]
        own = [variant.name for variant in suite.variants]
        self._pairs = {name: name for name in own if name in names}
        if len(names) == len(own) == 1:
            self._pairs = {own[0]: names[0]}
        scores = suite.scores()
        self._margins = {name: score.margin for name, score in scores.items()}
        self._clustered = suite.cluster is not None
        self._scorers = [
            one.name
            for one in self.summary.scorers
            if one.name in scores and scores[one.name].higher_is_better is not None and scores[one.name].of_rows
        ]
        if not self._pairs or not self._scorers:
            what = "score" if self._pairs else "variant"
            there = [one.name for one in self.summary.scorers] if self._pairs else names
            raise UsageError(
                f"--fail-if-worse-than {directory}: it has no {what} in common with the suite",
                remedy=f"It has: {', '.join(there)}.",
            )

    def check(self, directory: Path, summary: SuiteSummary) -> list[GateResult]:
        """Compare the scores in this evaluation's folder with the earlier ones."""
        found = []
        kinds = {one.name: one for one in summary.scorers}
        for name in self._scorers:
            scale = _scale(kinds[name].unit, kinds[name].higher_is_better)
            compared = []
            for new, old in self._pairs.items():
                now, then = _RowValues(directory, new, name), _RowValues(self.directory, old, name)
                compared.append(_compare(now, then, scale, name, self._margins[name], clustered=self._clustered))
            for (new, old), made in zip(self._pairs.items(), adjust(compared), strict=True):
                rule = f"{name} not worse than in {self.directory}"
                passed = made.equivalent or made.better != "then"
                found.append(GateResult(new, rule, passed, _told(made, old)))
        return found


def _told(made: Comparison, old: str) -> str:
    if made.difference is None or made.p_adjusted is None:
        return f"cannot be compared with {old}: {made.reason}"
    told = f"{made.difference:+.4g} against {old} on {made.n:,} rows, p = {made.p_adjusted:.2g}"
    return f"{told}, equivalent within {made.margin:g}" if made.equivalent else told


def _scale(unit: str, higher_is_better: bool | None) -> ScoreUnit:
    known = {YES_NO.unit: YES_NO, SHARE.unit: SHARE}
    return known.get(unit, ScoreUnit(unit, higher_is_better))


class _RowValues:
    """The mean of each row's values, and its cluster if it has one, by key or position."""

    def __init__(self, directory: Path, variant: str, scorer: str) -> None:
        path = directory / SCORES_NAME
        try:
            # An earlier version wrote no clusters.
            clusters = [name for name in pq.read_schema(path).names if name == "cluster"]
            table = pq.read_table(
                path,
                columns=["row_index", "key", "value", *clusters],
                filters=(pc.field("variant") == variant) & (pc.field("scorer") == scorer),
            )
        except (OSError, pa.ArrowException) as error:
            raise StorageError(f"{path} cannot be read: {error}", remedy="Score that evaluation again.") from error
        by = "key" if table.column("key").null_count == 0 else "row_index"
        wanted = [("value", "mean"), *((name, "min") for name in clusters)]
        rows = table.group_by(by).aggregate(wanted).filter(pc.field("value_mean").is_valid())
        keys = rows.column(by).to_pylist()
        self.values = dict(zip(keys, rows.column("value_mean").to_pylist(), strict=True))
        self.clusters = dict(zip(keys, rows.column("cluster_min").to_pylist(), strict=True)) if clusters else {}


def _compare(
    now: _RowValues, then: _RowValues, scale: ScoreUnit, scorer: str, margin: float | None, *, clustered: bool
) -> Comparison:
    shared = [row for row in now.values if row in then.values]
    sides = {name: np.array([side.values[row] for row in shared]) for name, side in (("now", now), ("then", then))}
    clusters = None
    if clustered:
        codes: dict[object, int] = {}
        # A row without a cluster is one by itself.
        names = [now.clusters.get(row) or (row,) for row in shared]
        clusters = np.array([codes.setdefault(name, len(codes)) for name in names], dtype=np.int64)
    (made,) = compare(sides, scale, scorer=scorer, clusters=clusters, margin=margin)
    return made


def write_junit(path: Path, summary: SuiteSummary, results: Sequence[GateResult]) -> None:
    """Write the results as JUnit XML: a test case for each score of a variant, and one for each gate.

    Raises StorageError where the file cannot be written.
    """
    root = ElementTree.Element("testsuites", name=_text(summary.name))
    for variant in summary.variants:
        own = [result for result in results if result.variant == variant.name]
        failed = sum(not result.passed for result in own)
        tests = len(own) + len(variant.scores)
        attributes = {"name": _text(f"{summary.name}: {variant.name}"), "tests": str(tests), "failures": str(failed)}
        suite = ElementTree.SubElement(root, "testsuite", attributes)
        for name, score in variant.scores.items():
            case = ElementTree.SubElement(suite, "testcase", classname=_text(variant.name), name=_text(name))
            told = "no value" if score.mean is None else f"{score.mean:.6g} {score.unit}"
            if score.ci_low is not None and score.ci_high is not None:
                told += f", 95 % interval {score.ci_low:.6g} to {score.ci_high:.6g}"
            ElementTree.SubElement(case, "system-out").text = _text(f"{told}, {score.n} rows")
        for result in own:
            case = ElementTree.SubElement(suite, "testcase", classname=_text(variant.name), name=_text(result.rule))
            if not result.passed:
                ElementTree.SubElement(case, "failure", message=_text(result.message))
    ElementTree.indent(root)
    data = io.BytesIO()
    ElementTree.ElementTree(root).write(data, encoding="utf-8", xml_declaration=True)
    with whole_file(path) as draft:
        draft.write_bytes(data.getvalue() + b"\n")


def _text(text: str) -> str:
    return _NOT_IN_XML.sub("\N{REPLACEMENT CHARACTER}", text)
