"""What `eval`, `score` and `compare` print: means with intervals, costs, and which differences are real."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from batchchat.cli.blocks import alarm, blank, guess, line, pair, plain_text, remarks, styled, title
from batchchat.cli.evaluation_numbers import COST, mean_unit_of, number_of, p_value, signed
from batchchat.cli.evaluation_verdict import LeaderTable, VariantTable, ranked, score_text, verdict
from batchchat.evaluation.results.summary import AgreementMeasure, JudgeSummary, SuiteSummary, VariantSummary
from batchchat.evaluation.statistics.comparison import Comparison, leader, mirrored
from batchchat.format import UNKNOWN, about, count, duration, money, percent, plural

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.table import Table
    from rich.text import Text

    from batchchat.evaluation.evaluate import Evaluation
    from batchchat.evaluation.planning import LeastPlan, SuitePlan
    from batchchat.evaluation.results.comparing import OutputComparison
    from batchchat.evaluation.results.gates import GateResult

_NAME_WIDTH = 30
"""Columns that a name and its number take of a line, as scores are set beside each other."""
_NAME_LEAST = 20
"""The least of them: a name that is folded into fewer columns cannot be read."""
_SCORE_WIDTH = 24
"""Columns of a mean with its interval and the gap before it: `0.812 [0.779, 0.845]`."""
_WORD_WIDTH = 12
"""Columns that a difference and a verdict have at least, so that no word of them is broken: `equivalent` has ten."""


def render_evaluation(
    summary: SuiteSummary, gates: Sequence[GateResult], output: Path, warnings: Sequence[str] = (), note: str = ""
) -> RenderableType:
    """Show scores, costs and comparisons of a scored suite, and where the files are."""
    from rich.console import Group

    ranking = ranked(summary)
    parts: list[RenderableType] = [title(summary.name, _what(summary)), blank(), VariantTable(ranking)]
    if summary.judges:
        parts += [blank(), _judges(summary.judges), *_judge_agreements(summary.judges)]
    if len(ranking.variants) == 2:
        # One pair: a line for each score says it all.
        parts += render_comparisons(summary, ranking.numbers, ranking.same)
    # Of more than two variants there are too many pairs for a table: who leads by each score is told.
    elif summary.comparisons:
        parts += [blank(), LeaderTable(ranking)]
    if gates:
        parts += [blank(), *_gates(gates)]
    parts += remarks([*summary.notes, *warnings], note)
    parts.append(blank())
    for name, file in (("scores", "scores.parquet"), ("summary", "summary.json"), ("report", "report.html")):
        parts.append(pair(name, str(output / file)))
    told = verdict(ranking)
    if told:
        parts += [blank(), plain_text(" ".join(told), "bold")]
    return Group(*parts)


def _what(summary: SuiteSummary) -> str:
    rows = max((variant.rows for variant in summary.variants), default=0)
    text = f"{plural(len(summary.variants), 'variant')} on {plural(rows, 'row')}"
    if summary.cluster is not None:
        scores = [score for variant in summary.variants for score in variant.scores.values()]
        # A score without values for some rows has fewer clusters than there are.
        clusters = max((score.clusters or 0 for score in scores), default=0)
        text += f" in {plural(clusters, 'cluster')} by {summary.cluster}"
    return f"{text}, {plural(summary.samples, 'sample')} each" if summary.samples > 1 else text


def render_output_comparison(found: OutputComparison) -> RenderableType:
    """Show two outputs side by side: agreement, what each took, scores and differences."""
    from rich.console import Group

    agreement = found.agreement
    share = agreement.share
    parts: list[RenderableType] = [
        pair("a", found.a),
        pair("b", found.b),
        blank(),
        title("compared", f"{plural(found.rows, 'row')} that both have, matched by {found.on}"),
    ]
    if found.only_a or found.only_b:
        parts.append(
            plain_text(f"{count(found.only_a)} rows only in a, {count(found.only_b)} only in b: left out", "dim")
        )
    told = f"{count(agreement.same)} the same, {count(agreement.different)} different"
    line_ = styled("answers  ", "bold").append(told, style="not bold")
    if share.mean is not None:
        line_.append(f"; agreement {number_of(share.mean, 'share')}", style="not bold")
    if share.ci_low is not None and share.ci_high is not None:
        interval = f" [{number_of(share.ci_low, 'share')}, {number_of(share.ci_high, 'share')}]"
        line_.append(interval, style="not bold dim")
    parts += [line_, blank(), ScoreTables(found.summary), blank(), _costs(found.summary.variants)]
    parts += render_comparisons(found.summary, {"a": "a", "b": "b"})
    if agreement.examples:
        # The answers of both may stand at different places: `completion=parsed.label`.
        first, _, second = agreement.field.partition("=")
        table = _table("row", f"{first} of a", f"{second or first} of b", left=(1, 2), numbered=False)
        for one in agreement.examples:
            table.add_row(line(one.row, 40), line(one.a or "", 200), line(one.b or "", 200))
        parts += [blank(), styled("first rows that differ", "bold"), table]
    parts += remarks(found.summary.notes, "")
    return Group(*parts)


class ScoreTables:
    """Means with 95 % intervals, as many scores beside each other as the console is wide enough for."""

    def __init__(self, summary: SuiteSummary) -> None:
        self._summary = summary
        self._best = {one.name: leader(summary.of(one.name)) for one in summary.scorers}
        self._scorers = [one for one in summary.scorers if any(one.name in each.scores for each in summary.variants)]

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """Yield the tables, and what they show."""
        fit = max(1, (options.max_width - _NAME_WIDTH) // _SCORE_WIDTH)
        for start in range(0, len(self._scorers), fit):
            shown = self._scorers[start : start + fit]
            table = _table("", *(f"{one.name}{mean_unit_of(one)}" for one in shown))
            for number, variant in enumerate(self._summary.variants, 1):
                cells = [
                    score_text(variant.scores.get(one.name), best=self._best[one.name] == variant.name, interval=True)
                    for one in shown
                ]
                table.add_row(str(number), line(variant.name), *cells)
            if start:
                yield blank()
            yield table
        told = "mean [95 % interval]"
        if any(self._best.values()):
            told += "; best: better than every other variant by a test at 5 %, adjusted for the number of pairs"
        if self._scorers:
            yield plain_text(told, "dim")


def _costs(variants: Sequence[VariantSummary]) -> Table:
    unfinished = any(variant.open for variant in variants)
    table = _table("what it took", "rows", "failed", *(["open"] if unfinished else []), "cost", "tokens", "p50", "p95")
    for number, variant in enumerate(variants, 1):
        table.add_row(
            str(number),
            line(variant.name),
            count(variant.rows),
            alarm(variant.failed, "bold red"),
            *([alarm(variant.open, "yellow")] if unfinished else []),
            money(variant.cost, variant.currency),
            count(variant.prompt_tokens + variant.completion_tokens),
            duration(variant.latency_p50_s),
            duration(variant.latency_p95_s),
        )
    return table


def _judges(judges: Iterable[JudgeSummary]) -> Table:
    table = _table("judges", "model", "requests", "failed", "cost", left=(1,), numbered=False)
    for judge in judges:
        table.add_row(
            line(judge.name),
            line(judge.model),
            count(judge.requests),
            alarm(judge.failed, "bold red"),
            money(judge.cost, judge.currency),
        )
    return table


def _judge_agreements(judges: Iterable[JudgeSummary]) -> Iterator[RenderableType]:
    """Yield a line for each judge and what its verdicts were held against."""
    for judge in judges:
        for one in judge.agreement:
            of_rows = "" if one.rows is None or one.rows == one.n else f" on {plural(one.rows, 'row')}"
            head = f"{line(judge.name)} agrees with {line(one.among)} in "
            text = styled(head).append(f"{_measure(one.accuracy)} of {plural(one.n, 'verdict')}{of_rows}")
            yield text.append(f"; kappa {_measure(one.kappa)}, alpha {_measure(one.alpha)}")


def _measure(measure: AgreementMeasure) -> str:
    if measure.value is None:
        return f"{UNKNOWN} ({measure.reason})"
    interval = ""
    if measure.ci_low is not None and measure.ci_high is not None:
        interval = f" [{measure.ci_low:.3f}, {measure.ci_high:.3f}]"
    return f"{measure.value:.3f}{interval}"


def render_comparisons(
    summary: SuiteSummary, names: Mapping[str, str], same: Collection[str] = ()
) -> list[RenderableType]:
    """Return a table of the differences of two variants, a line for each score but those of `same`.

    The first of `names` is the one that the other is taken from.
    """
    first, second = names.values()
    order = [*names]
    compared = [(scorer.name, one) for scorer in summary.scorers for one in summary.of(scorer.name)]
    # A comparison may name the pair the other way round, and the table has one direction.
    lines = [(name, one if one.a == order[0] else mirrored(one)) for name, one in compared if name not in same]
    return [blank(), _comparison_table(f"{first} less {second}", lines, names)] if lines else []


def _comparison_table(first: str, lines: Sequence[tuple[str, Comparison]], numbers: Mapping[str, str]) -> Table:
    table = _table(first, "difference", "p adjusted", "wins", "", left=(4,), numbered=False)
    # On a narrow terminal the interval and the verdict are broken between words, and the name stays.
    name, difference, *_, verdict = table.columns
    name.no_wrap, difference.no_wrap = True, False
    difference.min_width = verdict.min_width = _WORD_WIDTH
    for told, one in lines:
        table.add_row(
            # `number_of` writes the costs of 1,000 answers.
            line(f"{told} (per 1,000)" if one.unit == COST else told),
            _difference(one),
            UNKNOWN if one.p_adjusted is None else p_value(one.p_adjusted),
            f"{count(one.wins_a)} : {count(one.wins_b)}",
            _verdict(one, numbers),
        )
    return table


def _difference(one: Comparison) -> Text:
    if one.difference is None:
        return styled(UNKNOWN, "dim")
    text = styled(signed(one.difference, one.unit), "bold" if one.settled else "")
    if one.ci_low is not None and one.ci_high is not None:
        text.append(f" [{signed(one.ci_low, one.unit)}, {signed(one.ci_high, one.unit)}]", style="not bold dim")
    return text


def _verdict(one: Comparison, numbers: Mapping[str, str]) -> Text:
    if one.difference is None:
        return plain_text(one.reason or "", "dim")
    if one.equivalent:
        return styled(f"equivalent within {number_of(one.margin or 0.0, one.unit)}", "green")
    if one.better is not None:
        return styled(f"{numbers.get(one.better, one.better)} is better", "green")
    if one.settled:
        return styled("they differ")
    # Fewer rows than there are would be no advice.
    if one.needed_n is not None and one.needed_n > one.n:
        return styled(f"open: needs about {count(one.needed_n)} rows", "dim")
    return styled("open" if one.difference else "no difference found", "dim")


def _gates(gates: Sequence[GateResult]) -> list[RenderableType]:
    rows: list[RenderableType] = []
    for gate in gates:
        mark, style = ("passed", "green") if gate.passed else ("FAILED", "bold red")
        text = styled(f"{mark}  ", style).append(f"{line(gate.variant)}: {line(gate.rule)}", style="not bold default")
        rows.append(text.append(f"  ({line(gate.message)})", style="not bold dim"))
    return rows


def render_ending(done: Evaluation, command: str) -> RenderableType:
    """Show how the runs of an evaluation ended, where not every row has a completion."""
    from rich.console import Group

    table = _table("variant", "ok", "failed", "open", "", left=(4,), numbered=False)
    for run in done.runs:
        told = run.summary
        if told is None:
            table.add_row(line(run.name), UNKNOWN, UNKNOWN, UNKNOWN, styled("not begun", "dim"))
        else:
            reason = plain_text(told.reason or "")
            cells = (count(told.ok), alarm(told.failed, "bold red"), alarm(told.open, "yellow"))
            table.add_row(line(run.name), *cells, reason)
    parts: list[RenderableType] = [blank(), table, blank()]
    if done.reason:
        parts.append(pair("reason", done.reason, "bold red"))
    if done.remedy:
        parts.append(pair("remedy", done.remedy, "bold"))
    parts.append(pair("go on with", command))
    return Group(*parts)


def render_suite_plan(plan: SuitePlan) -> RenderableType:
    """Show what an evaluation would send and cost, variant by variant and in all."""
    from rich.console import Group

    table = _table("variant", "new", "done", "requests", "tokens", "cost", "time")
    for number, run in enumerate(plan.runs, 1):
        view = run.plan
        table.add_row(
            str(number),
            line(run.name),
            count(view.new + view.changed),
            count(view.done),
            count(view.requests),
            guess(count((view.prompt_tokens or 0) + (view.completion_tokens or 0))),
            guess(money(view.cost, view.currency)),
            guess(about(view.duration_s)),
        )
    # A judge is asked for distinct answers alone, and how many are equal is not known before.
    for run in plan.judges:
        view = run.plan
        most = "≤ " if run.at_most else ""
        table.add_row(
            "",
            f"{line(run.name)} (judge)",
            count(view.new + view.changed),
            count(view.done),
            f"{most}{count(view.requests)}",
            f"{most}{guess(count((view.prompt_tokens or 0) + (view.completion_tokens or 0)))}",
            f"{most}{guess(money(view.cost, view.currency))}",
            guess(about(view.duration_s)),
        )
    table.add_section()
    tokens = guess(count(plan.prompt_tokens + plan.completion_tokens))
    cost = guess(money(plan.cost, plan.currency))
    table.add_row("", "in all", "", "", count(plan.requests), tokens, cost, guess(about(plan.duration_s)))
    parts: list[RenderableType] = [
        title(plan.suite, f"{plural(plan.requests, 'request')} for {plural(len(plan.runs), 'variant')}"),
        blank(),
        table,
    ]
    if plan.least is not None:
        parts.append(plain_text(_least(plan, plan.least)))
    for cap in plan.caps:
        shown = money(cap.cap, plan.currency) if cap.name == "max_cost" else count(int(cap.cap))
        # What is not known cannot be told as too much: a run still keeps the cap.
        enough = cap.needed is None or cap.needed <= cap.cap
        share = "" if enough else percent(int(cap.cap * 1000), int((cap.needed or 0) * 1000))
        told = "enough" if enough else f"the runs would stop after about {share} of the requests"
        parts.append(plain_text(f"budget {cap.name} {shown}: {told}", "" if enough else "yellow"))
    if plan.deadline_s is not None:
        late = plan.duration_s is not None and plan.duration_s > plan.deadline_s
        told = "the runs would stop before their end" if late else "enough"
        parts.append(plain_text(f"deadline {about(plan.deadline_s)}: {told}", "yellow" if late else ""))
    parts += remarks(plan.warnings, plan.note)
    parts += [blank(), pair("output", plan.output)]
    if plan.command:
        parts.append(pair("run it with", plan.command))
    return Group(*parts)


def _least(plan: SuitePlan, least: LeastPlan) -> str:
    """Say what an evaluation takes at least and at most that stops when it is settled."""
    if least.ended:
        return f"settled or asked to the end after {plural(least.rows, 'row')}: nothing more is asked"
    cost = f" for {guess(money(least.cost, plan.currency))}" if least.cost is not None else ""
    told = f"at least {plural(least.requests, 'request')}{cost} (look {least.looks + 1}, {plural(least.rows, 'row')})"
    return f"until settled: {told}; at most all of the above"


def _table(first: str, *others: str, left: Sequence[int] = (), numbered: bool = True) -> Table:
    """Return a table of a number, a name that may wrap, and figures; columns in `left` hold text."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    if numbered:
        table.add_column("", style="dim", no_wrap=True)
    table.add_column(first, overflow="fold", min_width=_NAME_LEAST if numbered else 0)
    for number, name in enumerate(others, 1):
        text = number in left
        table.add_column(name, justify="left" if text else "right", no_wrap=not text, overflow="fold")
    return table
