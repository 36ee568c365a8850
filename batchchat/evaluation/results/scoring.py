"""From records to a summary: score every variant, then say what the scores mean. Blocking code; sends nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa

from batchchat.evaluation.results.current_rows import EVERY_ROW, Choice, CurrentRows, read_rows
from batchchat.evaluation.results.judge_cases import (
    AnswerSource,
    Asked,
    Cases,
    JudgedValue,
    gather_cases,
    pair_outcomes,
    read_verdicts,
    shown_columns,
    single_outcomes,
)
from batchchat.evaluation.results.suite_results import SuiteResults
from batchchat.evaluation.results.summary import (
    JudgeSummary,
    SuiteSummary,
    VariantSummary,
    write_pairwise,
    write_scores,
    write_summary,
)
from batchchat.evaluation.results.variant_scores import ScoreColumn, VariantScores, pair_lines, row_metric
from batchchat.evaluation.scorers.judging import Judge, Pairwise
from batchchat.evaluation.suite.suite import JudgeTask, Suite, Variant
from batchchat.format import plural
from batchchat.store import Output, is_output, read_state


def score_suite(suite: Suite, *, choice: Choice = EVERY_ROW) -> SuiteSummary:
    """Score what the variants and the judges have answered so far, and write the files of the summary.

    Raises UsageError where the suite does not fit its input, StorageError where the disk fails.
    """
    with Scoring(suite, choice) as scoring:
        scoring.gather()
        return scoring.finish()


def output_of(variant: Variant) -> Output | None:
    """What a variant has answered so far, None where it has not begun."""
    directory = Path(variant.job.output.path)
    return read_state(directory) if is_output(directory) else None


@dataclass(slots=True)
class _Judged:
    """What a judge said: outcomes by position of each variant, or of each pair of them."""

    of_variants: dict[str, dict[int, JudgedValue]]
    of_pairs: dict[tuple[str, str], dict[int, JudgedValue]]
    summary: JudgeSummary
    open: int


class Scoring:
    """The scoring of a suite in two steps, between which its judges are asked.

    `gather` writes the cases of the judges, `finish` scores everything and writes the files. To be entered as a context
    manager. Raises UsageError where the suite does not fit its input.
    """

    def __init__(self, suite: Suite, choice: Choice = EVERY_ROW) -> None:
        self.suite = suite
        reads = [scorer.inputs for scorer in suite.scorers]
        columns = frozenset[str]().union(
            *(names for names in reads if names is not None),
            *(task.scorer.inputs for task in suite.judges),
            () if suite.cluster is None else (suite.cluster,),
        )
        self.rows: CurrentRows = read_rows(
            [variant.job for variant in suite.variants],
            columns,
            whole=None in reads,
            prompted=any(task.scorer.show is None for task in suite.judges),
            choice=choice,
        )
        self.cases: list[Cases] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.rows.close()

    def gather(self, placeholders: dict[str, str] | None = None, *, folder: Path | None = None) -> list[Cases]:
        """Write the cases of every judge, beside its output or into another folder.

        `placeholders` stand for the answers of variants that are still to come, in a plan.
        """
        for task in self.suite.judges:
            path = Path(task.job.input.path)
            sources = [
                AnswerSource(variant.name, output_of(variant), identities, (placeholders or {}).get(variant.name))
                for variant, identities in zip(self.suite.variants, self.rows.identities, strict=True)
            ]
            shown = shown_columns(task.scorer, self.rows.prompted)
            target = path if folder is None else folder / path.name
            self.cases.append(gather_cases(task, target, self.rows, sources, shown))
        return self.cases

    def finish(self) -> SuiteSummary:
        """Score everything, and write `scores.parquet`, `summary.json` and, with pairs, `pairwise.parquet`."""
        suite, rows = self.suite, self.rows
        judged = {cases.task.scorer.name: _judged(cases) for cases in self.cases}
        sheets = [
            self._sheet(number, variant, {name: one.of_variants for name, one in judged.items()})
            for number, variant in enumerate(suite.variants)
        ]
        pairs = {name: _pair_columns(one.of_pairs, rows) for name, one in judged.items() if one.of_pairs}
        summary = self._summary(sheets, judged, pairs)
        write_scores(suite.output, (batch for sheet in sheets for batch in sheet.lines(suite.cluster)))
        write_pairwise(suite.output, _pair_batches(pairs, rows) if pairs else None)
        write_summary(suite.output, summary)
        return summary

    def _summary(
        self,
        sheets: Sequence[VariantScores],
        judged: dict[str, _Judged],
        pairs: dict[str, dict[tuple[str, str], ScoreColumn]],
    ) -> SuiteSummary:
        suite = self.suite
        variants = [_variant(variant, sheet) for variant, sheet in zip(suite.variants, sheets, strict=True)]
        findings = SuiteResults(sheets, variants, seed=suite.seed, cluster=suite.cluster)
        scorers = {scorer.name: scorer for scorer in suite.scorers}
        judges = {task.scorer.name: task.scorer for task in suite.judges}
        for name in suite.order:
            judge = judges.get(name)
            if isinstance(judge, Pairwise):
                findings.add_pairs(judge, pairs.get(name, {}))
            else:
                findings.add(judge or scorers[name])
        return SuiteSummary(
            name=suite.name,
            samples=self.rows.samples,
            seed=suite.seed,
            input=suite.variants[0].job.input.path,
            cluster=suite.cluster,
            scorers=tuple(findings.scorers),
            variants=tuple(findings.variants),
            comparisons=tuple(findings.comparisons),
            judges=tuple(one.summary for one in judged.values()),
            notes=tuple(self._notes(sheets, judged)),
        )

    def _notes(self, sheets: Sequence[VariantScores], judged: dict[str, _Judged]) -> list[str]:
        notes = []
        first: dict[bytes, str] = {}
        for number, variant in enumerate(self.suite.variants):
            other = first.setdefault(self.rows.identities[number].digest, variant.name)
            if other != variant.name and len(self.rows):
                notes.append(same_requests(other, variant.name))
        if self.rows.skipped:
            notes.append(f"{plural(self.rows.skipped, 'row')} left out of all scores: `skip` is true of them")
        for sheet in sheets:
            left = len(sheet.answered) - sheet.totals.records
            if left:
                text = f"{sheet.name!r}: {plural(left, 'answer')} of {len(sheet.answered):,} still to come"
                if sheet.stale and self.rows.all_of_input:
                    text += f"; {plural(sheet.stale, 'record')} of an earlier prompt or input left out"
                notes.append(text)
        judges = [task.scorer.name for task in self.suite.judges if isinstance(task.scorer, Judge)]
        for name in [*map(row_metric, self.suite.scorers), *judges]:
            for sheet in sheets:
                nulls, reason = sheet.unscored(name)
                if nulls:
                    notes.append(f"{sheet.name!r}: {name} has no value for {plural(nulls, 'answer')}: {reason}")
        for name, one in judged.items():
            if one.open:
                notes.append(f"{name}: {plural(one.open, 'case')} of {one.summary.requests:,} not judged yet")
        return notes

    def _sheet(
        self, number: int, variant: Variant, judged: dict[str, dict[str, dict[int, JudgedValue]]]
    ) -> VariantScores:
        sheet = VariantScores(variant.name, self.rows)
        metrics = {scorer.name: row_metric(scorer) for scorer in self.suite.scorers}
        for name in self.suite.order:
            if name in metrics:
                sheet.column(metrics[name])
            elif variant.name in judged[name]:
                sheet.column(name).put_all(judged[name][variant.name])
        output = output_of(variant)
        if output is not None:
            sheet.read(output, self.rows.identities[number], self.suite.scorers, texts=True)
        return sheet


def _judged(cases: Cases) -> _Judged:
    """Read a judge's verdicts, and give each answer or pair its own."""
    task, scorer = cases.task, cases.task.scorer
    verdicts = read_verdicts(task) if cases.asked else {}
    of_variants: dict[str, dict[int, JudgedValue]] = {}
    if isinstance(scorer, Judge):
        of_variants = {name: single_outcomes(asked, scorer, verdicts) for name, asked in cases.of_variants.items()}
    of_pairs = {pair: pair_outcomes(asked, verdicts) for pair, asked in cases.of_pairs.items()}
    asked: list[Asked] = [*cases.of_variants.values(), *cases.of_pairs.values()]
    wanted = {case for one in asked for _, ids in one.items() for case in ids}
    failed = sum(case in verdicts and verdicts[case][0] is None for case in wanted)
    left = sum(case not in verdicts for case in wanted)
    return _Judged(of_variants, of_pairs, _judge_summary(task, len(wanted), failed), left)


def _judge_summary(task: JudgeTask, requests: int, failed: int) -> JudgeSummary:
    directory = Path(task.job.output.path)
    provider = task.job.resolved_provider()
    priced = task.job.model in provider.prices
    spent = read_state(directory).spend.cost if is_output(directory) else 0.0
    return JudgeSummary(
        name=task.scorer.name,
        folder=task.scorer.folder,
        model=task.job.model,
        requests=requests,
        failed=failed,
        cost=spent if priced else None,
        currency=provider.currency if priced else None,
    )


def _pair_columns(
    pairs: dict[tuple[str, str], dict[int, JudgedValue]], rows: CurrentRows
) -> dict[tuple[str, str], ScoreColumn]:
    found: dict[tuple[str, str], ScoreColumn] = {}
    for pair, outcomes in pairs.items():
        found[pair] = ScoreColumn(len(rows) * rows.samples)
        found[pair].put_all(outcomes)
    return found


def _pair_batches(pairs: dict[str, dict[tuple[str, str], ScoreColumn]], rows: CurrentRows) -> Iterator[pa.RecordBatch]:
    for scorer, columns in pairs.items():
        for (a, b), column in columns.items():
            yield from pair_lines(a, b, scorer, column, rows)


def same_requests(one: str, other: str) -> str:
    """What is said of two variants that ask the same."""
    return f"{one!r} and {other!r} make the same requests: their answers differ by chance alone"


def _variant(variant: Variant, sheet: VariantScores) -> VariantSummary:
    provider, totals = variant.job.resolved_provider(), sheet.totals
    priced = variant.job.model in provider.prices
    return VariantSummary(
        name=variant.name,
        folder=variant.folder,
        overrides=variant.overrides,
        model=variant.job.model,
        provider=provider.name,
        rows=sheet.rows_answered,
        open=len(sheet.answered) - totals.records,
        failed=totals.failures.total(),
        failures=dict(sorted(totals.failures.items())),
        cost=totals.cost,
        currency=provider.currency if priced else None,
        prompt_tokens=totals.prompt_tokens,
        completion_tokens=totals.completion_tokens,
        latency_p50_s=totals.latency(0.5),
        latency_p95_s=totals.latency(0.95),
    )
