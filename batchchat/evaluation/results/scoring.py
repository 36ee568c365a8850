"""From records to a summary: score every variant, then say what the scores mean. Blocking code; sends nothing."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa

from batchchat.addresses import address_of
from batchchat.dataclass import dataclass
from batchchat.evaluation.results.current_rows import EVERY_ROW, Choice, CurrentRows, read_rows
from batchchat.evaluation.results.judge_agreement import judge_agreements
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
from batchchat.evaluation.results.looks import LookRows, draw_rows, kept_plan
from batchchat.evaluation.results.suite_results import SuiteResults
from batchchat.evaluation.results.summary import (
    JudgeAgreement,
    JudgeSummary,
    SequentialSummary,
    SuiteSummary,
    VariantSummary,
    write_pairwise,
    write_scores,
    write_summary,
)
from batchchat.evaluation.results.variant_scores import ScoreColumn, VariantScores, pair_lines, row_metric
from batchchat.evaluation.scorers.judging import Judge, Pairwise
from batchchat.evaluation.scorers.scorer import Scorer
from batchchat.evaluation.statistics.sequential import SequentialTest, Standing
from batchchat.evaluation.suite.suite import JudgeTask, Suite, Variant
from batchchat.format import plural
from batchchat.store import Output, is_output, read_state


def score_suite(suite: Suite, *, choice: Choice = EVERY_ROW) -> SuiteSummary:
    """Score what the variants and the judges have answered so far, and write the files of the summary.

    An evaluation that stops when it is settled is scored on the rows that it has begun to ask, unless `choice` names
    others. Raises UsageError where the suite does not fit its input, StorageError where the disk fails.
    """
    plan = kept_plan(suite.output) if choice == EVERY_ROW else None
    if plan is None:
        with Scoring(suite, choice) as scoring:
            scoring.gather()
            return scoring.finish()
    return score_looks(suite, draw_rows(suite, plan))


def score_looks(suite: Suite, looks: LookRows) -> SuiteSummary:
    """Score what an evaluation has asked that stops when it is settled. Raises what `score_suite` raises."""
    begun = looks_begun(suite, looks)
    standing = standing_of(suite, looks, begun)
    # Of a look that has not ended, too, the answers count in means and costs, and what is open is told.
    shown = standing.looks if standing.settled else min(begun, standing.looks + 1)
    with Scoring(suite, Choice(rows=looks.at(shown)), looks) as scoring:
        scoring.gather()
        return scoring.finish()


def looks_begun(suite: Suite, looks: LookRows) -> int:
    """Return the first look, counted from 1, that has rows for all the answers that there are."""
    outputs = [output for variant in suite.variants if (output := output_of(variant)) is not None]
    most = max((sum(batch.num_rows for batch in output.records(["status"])) for output in outputs), default=0)
    samples = suite.variants[0].job.samples
    return next((look for look, rows in enumerate(looks.rows, 1) if rows * samples >= most), len(looks.rows))


def standing_of(suite: Suite, looks: LookRows, begun: int | None = None) -> Standing:
    """Return what the answers that are there decide, look by look; `begun` is what `looks_begun` tells."""
    begun = looks_begun(suite, looks) if begun is None else begun
    with Scoring(suite, Choice(rows=looks.at(begun)), looks) as scoring:
        if any(task.scorer.name == looks.plan.score for task in suite.judges):
            scoring.gather()
        return scoring.standing()


def output_of(variant: Variant) -> Output | None:
    """Return what a variant has answered so far, None if it has not begun."""
    directory = address_of(variant.job.output.path)
    return read_state(directory) if is_output(directory) else None


@dataclass(slots=True)
class _Judged:
    """What a judge said: outcomes by position of each variant, or of each pair of them."""

    of_variants: dict[str, dict[int, JudgedValue]]
    of_pairs: dict[tuple[str, str], dict[int, JudgedValue]]
    summary: JudgeSummary
    open: int
    notes: list[str]


class Scoring:
    """The scoring of a suite in two steps, between which its judges are asked.

    `gather` writes the cases of the judges, `finish` scores everything and writes the files. To be entered as a context
    manager. With `looks`, the rows of `choice` are those of a look. Raises UsageError where the suite does not fit its
    input.
    """

    def __init__(self, suite: Suite, choice: Choice = EVERY_ROW, looks: LookRows | None = None) -> None:
        self.suite = suite
        self.looks = looks
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
        judged = {cases.task.scorer.name: _judged(cases, rows) for cases in self.cases}
        sheets = [
            self._sheet(number, judged, suite.order, suite.scorers, texts=True) for number in range(len(suite.variants))
        ]
        pairs = {name: _pair_columns(one.of_pairs, rows) for name, one in judged.items() if one.of_pairs}
        summary = self._summary(sheets, judged, pairs)
        # Looked at several times, an unadjusted test would find a difference too often.
        if self.looks is not None:
            summary = self._at_looks(self.looks, summary, sheets)
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
            # It compares variants itself: a single answer has no value that could be tested.
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
            # Variants that differ only in what shapes no request, such as limits, would be compared with themselves.
            other = first.setdefault(self.rows.identities[number].digest, variant.name)
            if other != variant.name and len(self.rows):
                notes.append(same_requests(other, variant.name))
        if self.rows.skipped:
            notes.append(f"{plural(self.rows.skipped, 'row')} left out of all scores: `skip` is true of them")
        for sheet in sheets:
            left = len(sheet.answered) - sheet.totals.records
            # The means are over what is there; who reads them must know that they may still move.
            if left:
                text = f"{sheet.name!r}: {plural(left, 'answer')} of {len(sheet.answered):,} still to come"
                # Of a part of the input, records of the other rows are no leftovers.
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
            notes += one.notes
        return notes

    def _sheet(
        self,
        number: int,
        judged: Mapping[str, _Judged],
        names: Sequence[str],
        scorers: Sequence[Scorer],
        *,
        texts: bool = False,
    ) -> VariantScores:
        """Score one variant by some of the scorers and judges; `names` gives their order."""
        variant = self.suite.variants[number]
        sheet = VariantScores(variant.name, self.rows)
        metrics = {scorer.name: row_metric(scorer) for scorer in scorers}
        for name in names:
            if name in metrics:
                sheet.column(metrics[name])
            elif variant.name in judged[name].of_variants:
                sheet.column(name).put_all(judged[name].of_variants[variant.name])
        output = output_of(variant)
        if output is not None:
            sheet.read(output, self.rows.identities[number], scorers, texts=texts)
        return sheet

    # --- looks

    def standing(self) -> Standing:
        """Return what the answers to these rows decide, look by look. A judge that decides needs `gather` first."""
        assert self.looks is not None  # noqa: S101 - only rows of a look stand anywhere
        score = self.looks.plan.score
        scorers = [scorer for scorer in self.suite.scorers if row_metric(scorer) == score]
        judged = {one.task.scorer.name: _judged(one) for one in self.cases if one.task.scorer.name == score}
        names = [*(scorer.name for scorer in scorers), *judged]
        sheets = [self._sheet(number, judged, names, scorers) for number in range(len(self.suite.variants))]
        return self._standing(self.looks, sheets)

    def _standing(self, looks: LookRows, sheets: Sequence[VariantScores]) -> Standing:
        score = self.suite.scores()[looks.plan.score]
        test = SequentialTest(
            looks.shares,
            max(1, math.comb(len(sheets), 2)),
            score.scale,
            looks.plan.score,
            self.suite.seed,
            looks.plan.margin,
            looks.plan.spending,
        )
        values = {sheet.name: sheet.grid(looks.plan.score) for sheet in sheets}
        told = {sheet.name: sheet.told(looks.plan.score) for sheet in sheets}
        clusters = None if looks.plan.cluster is None else self.rows.clusters(looks.plan.cluster)
        standing = test.begin([sheet.name for sheet in sheets])
        for rows in looks.rows:
            asked = np.isin(self.rows.row_index, looks.order[:rows])
            # A look counts if it is complete: answers that come first are not a random choice of all answers.
            if standing.settled or asked.sum() < rows or not all(told[name][asked].all() for name in standing.active):
                break
            here = {name: values[name][asked] for name in standing.active}
            standing = test.look(standing, here, None if clusters is None else clusters[asked])
        return standing

    def _at_looks(self, looks: LookRows, summary: SuiteSummary, sheets: Sequence[VariantScores]) -> SuiteSummary:
        """Put what the looks decide into a summary."""
        standing, score = self._standing(looks, sheets), looks.plan.score
        dropped = {name: looks.rows[look - 1] for name, look in standing.dropped.items()}
        variants = []
        for variant in summary.variants:
            # Nothing more is asked of a variant that was dropped.
            left = variant.open if variant.name in standing.active else 0
            variants.append(replace(variant, open=left))
        others = [one for one in summary.comparisons if one.scorer != score]
        at = next((number for number, one in enumerate(summary.comparisons) if one.scorer == score), 0)
        told = SequentialSummary(
            score=score,
            margin=looks.plan.margin,
            seed=looks.plan.seed,
            plan=looks.rows,
            looks=standing.looks,
            rows=looks.rows[standing.looks - 1] if standing.looks else 0,
            settled=standing.settled,
            dropped=dropped,
            asked=sum(sheet.totals.records for sheet in sheets),
            fixed=looks.rows[-1] * self.rows.samples * len(sheets),
        )
        notes = [note for note in summary.notes if not _is_of(note, dropped)]
        # The pairs by the score that decides are replaced by those of the looks, in the place that they had.
        if others:
            notes.append(f"rows are asked until {score} is settled: tests of other scores are not adjusted for that")
        comparisons = (*others[:at], *standing.pairs, *others[at:]) if standing.looks else tuple(others)
        return replace(summary, variants=tuple(variants), comparisons=comparisons, notes=tuple(notes), sequential=told)


def _is_of(note: str, variants: Collection[str]) -> bool:
    """Return whether a note is about answers of one of these variants that are still to come."""
    return "still to come" in note and any(note.startswith(f"{name!r}: ") for name in variants)


def _judged(cases: Cases, rows: CurrentRows | None = None) -> _Judged:
    """Read a judge's verdicts, and give each answer or pair its own.

    With `rows`, they are also held against the right verdicts, if any are known.
    """
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
    agreement: list[JudgeAgreement] = []
    notes: list[str] = []
    if rows is not None and cases.asked:
        agreement, notes = judge_agreements(cases, verdicts, of_pairs, rows)
    summary = replace(_judge_summary(task, len(wanted), failed), agreement=tuple(agreement))
    return _Judged(of_variants, of_pairs, summary, left, notes)


def _judge_summary(task: JudgeTask, requests: int, failed: int) -> JudgeSummary:
    directory = address_of(task.job.output.path)
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
    """Return what is said of two variants that ask the same."""
    return f"{one!r} and {other!r} make the same requests: their answers differ by chance alone"


def _variant(variant: Variant, sheet: VariantScores) -> VariantSummary:
    provider, totals = variant.job.resolved_provider(), sheet.totals
    # Without a price nothing was counted, and a currency would make a cost of it.
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
