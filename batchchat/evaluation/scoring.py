"""From records to a summary: score every variant, then say what the scores mean. Blocking code; sends nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from batchchat.errors import JobError, UsageError
from batchchat.evaluation.batch import check_path
from batchchat.evaluation.classification import (
    Answers,
    classes_of,
    classification_report,
    compare_macro_f1,
    summarize_macro_f1,
)
from batchchat.evaluation.rows import EVERY_ROW, Choice, Rows, read_rows
from batchchat.evaluation.scale import SHARE
from batchchat.evaluation.scorer import AnswerScorer, Scorer
from batchchat.evaluation.scorers import Classes
from batchchat.evaluation.sheet import Sheet, row_metric
from batchchat.evaluation.statistics import Comparison, compare, summarize
from batchchat.evaluation.suite import Suite, Variant
from batchchat.evaluation.summary import (
    ScorerSummary,
    SuiteSummary,
    VariantSummary,
    write_scores,
    write_summary,
)
from batchchat.format import plural
from batchchat.job.origin import combined
from batchchat.records import RECORD_COLUMNS
from batchchat.runner.preparation import Prepared, prepare
from batchchat.store import Output, frozen_schema, is_output, read_state


def score_suite(suite: Suite, *, choice: Choice = EVERY_ROW) -> SuiteSummary:
    """Score what the variants have answered so far, and write `scores.parquet` and `summary.json`.

    Raises UsageError where the suite does not fit its input, StorageError where the disk fails.
    """
    reads = [scorer.inputs for scorer in suite.scorers]
    columns = frozenset[str]().union(*(names for names in reads if names is not None))
    jobs = [variant.job for variant in suite.variants]
    with read_rows(jobs, columns, whole=None in reads, choice=choice) as rows:
        sheets = []
        for number, variant in enumerate(suite.variants):
            sheet = Sheet(variant.name, rows)
            output = output_of(variant)
            if output is not None:
                sheet.read(output, rows.identities[number], suite.scorers)
            sheets.append(sheet)
        summary = summarize_suite(suite, rows, sheets)
        write_scores(suite.output, (batch for sheet in sheets for batch in sheet.lines()))
        write_summary(suite.output, summary)
    return summary


def output_of(variant: Variant) -> Output | None:
    """What a variant has answered so far, None where it has not begun."""
    directory = Path(variant.job.output.path)
    return read_state(directory) if is_output(directory) else None


def check_suite(suite: Suite) -> list[str]:
    """Hold variants and scorers against the input before anything is sent, and tell what a person should know.

    Raises UsageError for a template that does not render, JobError for a scorer that reads what is not there.
    """
    warnings: list[str] = []
    errors: list[JobError] = []
    first: dict[tuple[str, str], str] = {}
    for variant in suite.variants:
        prepared = prepare(variant.job, frozen=frozen_schema(Path(variant.job.output.path)))
        other = first.setdefault((prepared.provider.identity, prepared.template.text_digest), variant.name)
        if other != variant.name:
            warnings.append(_same(other, variant.name))
        errors += _misfits(suite, prepared)
    if errors:
        # What is wrong for every variant is told once.
        raise combined(list({error.message: error for error in errors}.values()))
    return warnings


def _misfits(suite: Suite, prepared: Prepared) -> list[JobError]:
    """The errors of scorers that read what is not there."""
    parsed = [] if prepared.parsed is None else [prepared.parsed.name]
    columns = dict.fromkeys([*RECORD_COLUMNS, *parsed, *prepared.source.schema.names])
    errors = []
    for at, scorer in enumerate(suite.scorers):
        try:
            scorer.check(list(columns), prepared.source.columns)
            if isinstance(scorer, AnswerScorer) and prepared.parsed is not None:
                check_path(scorer.field, prepared.parsed)
        except UsageError as error:
            errors.append(suite.error(error.message, "scorers", at, remedy=error.remedy))
    return errors


def _same(one: str, other: str) -> str:
    return f"{one!r} and {other!r} make the same requests: their answers differ by chance alone"


def summarize_suite(suite: Suite, rows: Rows, sheets: Sequence[Sheet]) -> SuiteSummary:
    """Means with intervals of every variant and score, and the comparisons of every pair of variants."""
    variants = [_variant(variant, sheet) for variant, sheet in zip(suite.variants, sheets, strict=True)]
    comparisons: list[Comparison] = []
    scorers: list[ScorerSummary] = []
    for scorer in suite.scorers:
        name = row_metric(scorer)
        grids = {sheet.name: sheet.grid(name) for sheet in sheets}
        for at, sheet in enumerate(sheets):
            summary = summarize(grids[sheet.name], scorer.scale, seed=suite.seed)
            variants[at] = replace(variants[at], scores={**variants[at].scores, name: summary})
        comparisons += compare(grids, scorer.scale, scorer=name, seed=suite.seed)
        scorers.append(_scorer(scorer, name))
        if isinstance(scorer, Classes):
            variants, compared = _classes(suite, scorer, sheets, variants)
            comparisons += compared
            scorers.append(replace(scorers[-1], name=f"{scorer.name}.macro_f1", unit=SHARE.unit))
    return SuiteSummary(
        name=suite.name,
        samples=rows.samples,
        seed=suite.seed,
        input=suite.variants[0].job.input.path,
        scorers=tuple(scorers),
        variants=tuple(variants),
        comparisons=tuple(comparisons),
        notes=tuple(_notes(suite, rows, sheets)),
    )


def _scorer(scorer: Scorer, name: str) -> ScorerSummary:
    scale = scorer.scale
    return ScorerSummary(
        name=name,
        kind=str(getattr(scorer, "kind", "")),
        unit=scale.unit,
        higher_is_better=scale.higher_is_better,
        field=getattr(scorer, "field", None),
        expected=getattr(scorer, "expected", None),
    )


def _variant(variant: Variant, sheet: Sheet) -> VariantSummary:
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


def _classes(
    suite: Suite, scorer: Classes, sheets: Sequence[Sheet], variants: Sequence[VariantSummary]
) -> tuple[list[VariantSummary], list[Comparison]]:
    """Add a scorer's reports over classes; its classes are the same for all variants."""
    name = f"{scorer.name}.macro_f1"
    answers: dict[str, Answers] = {
        sheet.name: sheet.labels[scorer.name].answers(sheet.rows.samples) for sheet in sheets
    }
    labels = classes_of(list(answers.values()), scorer.labels)
    made = []
    for variant in variants:
        own = answers[variant.name]
        summary = summarize_macro_f1(own, labels, seed=suite.seed)
        report = classification_report(own, labels)
        scores, classes = {**variant.scores, name: summary}, {**variant.classes, scorer.name: report}
        made.append(replace(variant, scores=scores, classes=classes))
    return made, compare_macro_f1(answers, labels, scorer=name, seed=suite.seed)


def _notes(suite: Suite, rows: Rows, sheets: Sequence[Sheet]) -> list[str]:
    notes = []
    first: dict[bytes, str] = {}
    for number, variant in enumerate(suite.variants):
        other = first.setdefault(bytes(rows.identities[number].digests), variant.name)
        if other != variant.name and len(rows):
            notes.append(_same(other, variant.name))
    for sheet in sheets:
        left = len(sheet.answered) - sheet.totals.records
        if left:
            text = f"{sheet.name!r}: {plural(left, 'answer')} of {len(sheet.answered):,} still to come"
            if sheet.stale and rows.all_of_input:
                text += f"; {plural(sheet.stale, 'record')} of an earlier prompt or input left out"
            notes.append(text)
    return notes
