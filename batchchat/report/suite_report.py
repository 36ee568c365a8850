"""The page about a scored suite: which variant is better, what it costs, and every answer to look at. Blocking code.

The page's tables and charts are made from `summary.json`, its row browser from `scores.parquet` and the variants' own
outputs. Nothing is computed anew that the summary tells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.compute as pc

from batchchat.dataclass import dataclass
from batchchat.format import UNKNOWN, count, money, plural
from batchchat.report.answers import AnswerBrowser
from batchchat.report.distribution import Distribution
from batchchat.report.figures import PlotlyFigure, seconds_text
from batchchat.report.looks import looks_of
from batchchat.report.page import check_page, write_page, written
from batchchat.report.suite_figures import (
    SHARES,
    Point,
    latencies,
    latency_text,
    pareto,
    quality_against_cost,
    score_text,
)
from batchchat.report.suite_folder import ScoreMeaning, SuiteFolder, better, read_suite, settled
from batchchat.report.verdict import cost_of, verdict_of

_MOST_CLASSES = 40
"""Classes of a confusion matrix on the page, the most frequent ones: its cells are still to be read then."""
_ROOM = 0.06
"""The part of the scale that is left free on both sides, so that no interval touches the edge."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A variant's score in the table: texts, and where mean and interval lie on the column's scale, in percent."""

    mean: str
    interval: str
    at: float | None = None
    left: float = 0.0
    width: float = 0.0
    best: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """A variant's line in the table."""

    name: str
    changes: list[str]
    rows: int
    open: int
    failed: int
    failures: str
    cells: list[Cell]
    cost: str
    cost_each: str
    tokens: int
    p50: str
    p95: str


@dataclass(frozen=True, slots=True)
class Difference:
    """A comparison in words."""

    a: int
    b: int
    scorer: str
    difference: str
    interval: str
    p: str
    test: str
    verdict: str
    better: str | None
    wins_a: int | None
    wins_b: int | None
    ties: int | None
    flips_to_a: int | None
    flips_to_b: int | None


def write_suite_report(directory: Path, target: Path) -> None:
    """Write the page about the suite whose results are in a folder.

    Raises UsageError where the folder holds no summary or the page cannot be written there, StorageError where a file
    is damaged or the disk fails.
    """
    check_page(target)
    suite = read_suite(directory)
    answers = AnswerBrowser(suite)
    spreads = _latencies(suite)
    figures: dict[str, PlotlyFigure] = {
        f"quality-{at}": figure for at, figure in enumerate(_qualities(suite)) if figure
    }
    if any(spread.count for _, spread in spreads):
        figures["latency"] = latencies(spreads)
    write_page(
        target,
        "suite.html",
        scripts=("difference.js", "suite.js", "browser.js"),
        title=f"{suite.name} · evaluation",
        suite=suite,
        lines=_lines(suite),
        figures=figures,
        latency_summary="; ".join(f"{name}: {latency_text(spread)}" for name, spread in spreads if spread.count),
        data=_data(suite, answers, figures),
        answers=answers,
        has_matrices=any(variant.get("classes") for variant in suite.variants),
        changed=changed(suite),
        verdicts=[text for score in suite.scores if (text := verdict_of(suite, score))],
        cost=cost_of(suite),
        agreements=_agreements(suite),
        looks=looks_of(suite),
        directory=str(directory),
    )


def _data(suite: SuiteFolder, answers: AnswerBrowser, figures: Mapping[str, PlotlyFigure]) -> dict[str, Any]:
    """What the page's scripts read."""
    names = [str(variant.get("name")) for variant in suite.variants]
    scores = [
        {
            "name": score.name,
            "unit": score.unit,
            "higher": score.higher_is_better,
            "best": names.index(str(ranked[0].get("name"))) if (ranked := suite.ranked(score)) else None,
            "column": answers.scorers.index(score.name) if score.name in answers.scorers else None,
            "figure": f"quality-{at}" if f"quality-{at}" in figures else None,
            "pairwise": score.name in answers.pairwise,
        }
        for at, score in enumerate(suite.scores)
    ]
    return {
        "variants": names,
        "scores": scores,
        "differences": _differences(suite, names),
        "matrices": _matrices(suite),
        "labelled": answers.labelled,
    }


# ---- the variants' table ----------------------------------------------------------------------------------------


def _lines(suite: SuiteFolder) -> list[Line]:
    columns = [_column(suite, score) for score in suite.scores]
    return [
        Line(
            name=str(variant.get("name")),
            changes=[
                written(variant["overrides"][path]) if path in (variant.get("overrides") or {}) else ""
                for path in changed(suite)
            ],
            rows=variant.get("rows") or 0,
            open=variant.get("open") or 0,
            failed=variant.get("failed") or 0,
            failures=", ".join(f"{kind} {number}" for kind, number in (variant.get("failures") or {}).items()),
            cells=[column[at] for column in columns],
            cost=money(variant.get("cost"), variant.get("currency")),
            cost_each=money(_per_thousand(variant, variant.get("cost")), variant.get("currency")),
            tokens=(variant.get("prompt_tokens") or 0) + (variant.get("completion_tokens") or 0),
            p50=seconds_text(variant.get("latency_p50_s")),
            p95=seconds_text(variant.get("latency_p95_s")),
        )
        for at, variant in enumerate(suite.variants)
    ]


def changed(suite: SuiteFolder) -> list[str]:
    """Return the fields that variants set, each once, in the order in which they come up."""
    paths = dict.fromkeys(path for variant in suite.summary["variants"] for path in variant.get("overrides") or {})
    return [str(path) for path in paths]


def _column(suite: SuiteFolder, score: ScoreMeaning) -> list[Cell]:
    """One score of all variants, on one scale."""
    found = [(variant.get("scores") or {}).get(score.name) or {} for variant in suite.variants]
    ends = [
        value
        for one in found
        for value in (one.get("mean"), one.get("ci_low"), one.get("ci_high"))
        if value is not None
    ]
    low, high = (min(ends), max(ends)) if ends else (0.0, 1.0)
    # Means that are all equal have no range: a scale without width would divide by zero.
    room = (high - low or abs(high) or 1.0) * _ROOM
    low, size = low - room, high - low + 2 * room
    leader = suite.leader(score)

    def cell(variant: Mapping[str, Any], one: Mapping[str, Any]) -> Cell:
        mean, left, right = one.get("mean"), one.get("ci_low"), one.get("ci_high")
        currency = variant.get("currency")
        if mean is None:
            return Cell(UNKNOWN, "", note=str(one.get("reason") or ""))
        nulls = f"; {plural(one['nulls'], 'row')} without a value" if one.get("nulls") else ""
        placed = Cell(
            mean=score_text(mean, score.unit, currency),
            interval="",
            at=100 * (mean - low) / size,
            best=variant.get("name") == leader,
            note=f"{plural(one.get('n') or 0, 'row')}{nulls}",
        )
        # A single row has a mean and no interval: the point stands without its line.
        if left is None or right is None:
            return placed
        return replace(
            placed,
            interval=f"{score_text(left, score.unit, currency)} to {score_text(right, score.unit, currency)}",
            left=100 * (left - low) / size,
            width=100 * (right - left) / size,
        )

    return [cell(variant, one) for variant, one in zip(suite.variants, found, strict=True)]


def _per_thousand(variant: Mapping[str, Any], amount: float | None) -> float | None:
    rows = variant.get("rows")
    return 1_000 * amount / rows if amount is not None and rows else None


# ---- charts -----------------------------------------------------------------------------------------------------


def _qualities(suite: SuiteFolder) -> list[PlotlyFigure | None]:
    """For each score the chart of cost against it, None where the score has no better direction or no values."""
    currencies = {variant.get("currency") for variant in suite.variants if variant.get("cost") is not None}
    # Amounts in two currencies, or of some variants alone, cannot share an axis: tokens take their place.
    priced = len(currencies) == 1 and all(variant.get("cost") is not None for variant in suite.variants)
    currency = next(iter(currencies)) if priced else None
    return [_quality(suite, score, currency, priced=priced) for score in suite.scores]


def _quality(suite: SuiteFolder, score: ScoreMeaning, currency: str | None, *, priced: bool) -> PlotlyFigure | None:
    # Without a better direction no variant is the best of its price.
    if score.higher_is_better is None:
        return None
    points = []
    for number, variant in enumerate(suite.variants, 1):
        one = (variant.get("scores") or {}).get(score.name) or {}
        tokens = (variant.get("prompt_tokens") or 0) + (variant.get("completion_tokens") or 0)
        spent = _per_thousand(variant, variant.get("cost") if priced else tokens)
        if one.get("mean") is None or spent is None:
            continue
        text = money(spent, currency) if priced else f"{count(round(spent))} tokens"
        points.append(
            Point(
                number=number,
                name=str(variant.get("name")),
                cost=spent,
                cost_text=f"{text} per 1,000 rows",
                value=one["mean"],
                value_text=f"{score.name} {score_text(one['mean'], score.unit, currency)}",
                low=one.get("ci_low"),
                high=one.get("ci_high"),
            )
        )
    if not points:
        return None
    best = pareto(points, higher_is_better=score.higher_is_better)
    points = [replace(point, best=chosen) for point, chosen in zip(points, best, strict=True)]
    unit = "" if score.unit in SHARES or not score.unit else f" ({score.unit})"
    return quality_against_cost(
        points,
        cost=f"{currency or 'cost'} per 1,000 rows" if priced else "tokens per 1,000 rows",
        value=f"{score.name}{unit}",
        share=score.unit in SHARES,
    )


def _latencies(suite: SuiteFolder) -> list[tuple[str, Distribution]]:
    spreads = []
    for variant in suite.variants:
        spread = Distribution()
        output = suite.output(variant)
        for batch in output.records(["status", "latency_s"]) if output is not None else ():
            spread.add(batch.filter(pc.equal(batch.column("status"), "ok")).column("latency_s"))
        spreads.append((str(variant.get("name")), spread))
    return spreads


# ---- comparisons and classes ------------------------------------------------------------------------------------


def _differences(suite: SuiteFolder, names: Sequence[str]) -> list[Difference]:
    scores = {score.name: score for score in suite.scores}
    currencies = {str(variant.get("name")): variant.get("currency") for variant in suite.variants}
    return [
        _difference(one, scores[str(one.get("scorer"))], names, currencies.get(str(one.get("a"))))
        for one in suite.comparisons
        if one.get("a") in names and one.get("b") in names
    ]


def _difference(one: Mapping[str, Any], score: ScoreMeaning, names: Sequence[str], currency: str | None) -> Difference:
    difference, low, high = one.get("difference"), one.get("ci_low"), one.get("ci_high")
    adjusted = one.get("p_adjusted", one.get("p_value"))
    winner = better(one, score)
    # Of a judge of pairs, differences are in net wins and means are shares of wins.
    unit = str(one.get("unit") or score.unit)
    return Difference(
        a=names.index(one["a"]),
        b=names.index(one["b"]),
        scorer=score.name,
        difference=_signed(difference, unit, currency),
        interval=f"{_signed(low, unit, currency)} to {_signed(high, unit, currency)}" if low is not None else "",
        p=_p_text(adjusted),
        test=str(one.get("test") or ""),
        verdict=_verdict(one, winner),
        better=winner,
        wins_a=one.get("wins_a"),
        wins_b=one.get("wins_b"),
        ties=one.get("ties"),
        flips_to_a=one.get("flips_to_a"),
        flips_to_b=one.get("flips_to_b"),
    )


def _verdict(one: Mapping[str, Any], winner: str | None) -> str:
    if one.get("equivalent") and one.get("margin") is not None:
        return f"equivalent within {_signed(one['margin'], str(one.get('unit')), None).lstrip('+')}"
    if winner is not None:
        return f"{winner} is better"
    # There was nothing to test, such as answers that are all alike: the reason says what.
    if one.get("p_adjusted") is None:
        return str(one.get("reason") or "not tested")
    if settled(one):
        return "they differ"
    needed = one.get("needed_n")
    # A number below the rows that are there would tell nobody anything.
    if needed is not None and needed > (one.get("n") or 0):
        return f"open; needs about {count(needed)} rows"
    return "open" if one.get("difference") else "no difference found"


def _signed(value: float | None, unit: str, currency: str | None) -> str:
    if value is None:
        return UNKNOWN
    sign = "+" if value > 0 else "-" if value < 0 else ""
    text = f"{100 * abs(value):.1f}" if unit in SHARES else score_text(abs(value), unit, currency)
    return f"{sign}{text}"


class JudgeLine(NamedTuple):
    """How far a judge agrees with the right verdicts, in texts: a measure and its interval each."""

    judge: str
    among: str
    verdicts: int
    measures: list[tuple[str, str]]


def _agreements(suite: SuiteFolder) -> list[JudgeLine]:
    return [
        JudgeLine(
            str(judge["name"]),
            str(one.get("among")),
            one.get("n") or 0,
            [_measure_texts(one.get(name) or {}) for name in ("accuracy", "kappa", "alpha")],
        )
        for judge in suite.judges
        for one in judge["agreement"] or ()
    ]


def _measure_texts(measure: Mapping[str, Any]) -> tuple[str, str]:
    value, low, high = measure.get("value"), measure.get("ci_low"), measure.get("ci_high")
    if value is None or low is None or high is None:
        return (UNKNOWN if value is None else f"{value:.3f}"), str(measure.get("reason") or "")
    return f"{value:.3f}", f"{low:.3f} to {high:.3f}"


def _p_text(p: float | None) -> str:
    if p is None:
        return UNKNOWN
    return "<0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def _matrices(suite: SuiteFolder) -> list[dict[str, Any]]:
    """The confusion matrices and class scores, the most frequent classes of each scorer."""
    found = []
    for number, variant in enumerate(suite.variants):
        for scorer, report in (variant.get("classes") or {}).items():
            classes, table = report.get("classes") or [], report.get("confusion") or []
            order = sorted(range(len(classes)), key=lambda at: -(classes[at].get("support") or 0))[:_MOST_CLASSES]
            # The most frequent ones are chosen, and shown in the order of the labels.
            chosen = sorted(order)
            # Behind the classes stand "(other)" and "(no answer)", which are always shown.
            given = [*chosen, *range(len(classes), len(report.get("given") or []))]
            found.append(
                {
                    "scorer": scorer,
                    "variant": number,
                    "left_out": len(classes) - len(chosen),
                    "classes": [classes[at] for at in chosen],
                    "given": [report["given"][at] for at in given],
                    "table": [[table[line][at] for at in given] for line in chosen],
                }
            )
    return found
