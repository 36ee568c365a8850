"""What can be known to be wrong before anything is sent: templates, columns that scorers read, judges, keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from batchchat.addresses import address_of
from batchchat.errors import JobError, UsageError
from batchchat.evaluation.results.scoring import same_requests
from batchchat.evaluation.scorers.judging import Judge
from batchchat.evaluation.scorers.score_batch import check_column, check_path
from batchchat.evaluation.scorers.scorer import AnswerScorer
from batchchat.evaluation.suite.suite import Suite
from batchchat.job import Job, key_problem, load_keys
from batchchat.job.origin import combined
from batchchat.job.param_checks import check_params
from batchchat.job.targets import endpoint_key_problem, has_several
from batchchat.records import RECORD_COLUMNS
from batchchat.runner.preparation import Prepared, prepare
from batchchat.runner.questions import compile_questions
from batchchat.runner.template_checks import alike_samples
from batchchat.store import frozen_schema


def check_suite(suite: Suite) -> list[str]:
    """Hold variants, scorers and judges against the input, and tell what a person should know.

    Raises UsageError for a template that does not render, JobError for a scorer that reads what is not there.
    """
    warnings: list[str] = []
    errors: list[JobError] = []
    first: dict[tuple[str, str], str] = {}
    for variant in suite.variants:
        prepared = prepare(variant.job, frozen=frozen_schema(address_of(variant.job.output.path)))
        other = first.setdefault((prepared.provider.identity, prepared.template.text_digest), variant.name)
        if other != variant.name:
            warnings.append(same_requests(other, variant.name))
        errors += _misfits(suite, prepared)
    for task in suite.judges:
        # A judge's input is made of answers, so that only what needs no row can be checked now.
        provider = task.job.resolved_provider()
        check_params(task.job, provider)
        task.job.check_budget(provider)
        compile_questions(task.job)
        own = [one.name for one in suite.variants if _answers_alike(one.job, task.job)]
        if own:
            warnings.append(
                f"judge {task.scorer.name}: {task.job.model} judges its own answers, those of {', '.join(own)}, and "
                "models tend to prefer their own. Take a judge that is the model of no variant, if there is one."
            )
    errors += _currencies(suite)
    if errors:
        # What is wrong for every variant is told once.
        raise combined(list({error.message: error for error in errors}.values()))
    return warnings


def _answers_alike(variant: Job, judge: Job) -> bool:
    """Return whether a judge is the model that answers a variant."""
    one, other = variant.resolved_provider(), judge.resolved_provider()
    return variant.model == judge.model and one.identity == other.identity


def _currencies(suite: Suite) -> Iterator[JobError]:
    """The error of a cap on money where the models are paid in several currencies."""
    if suite.budget.max_cost is None:
        return
    found = {job.resolved_provider().currency or "" for job in suite.jobs}
    if len(found) > 1:
        message = f"cannot be kept over prices in {' and '.join(sorted(found))}: currencies are never added"
        remedy = "Give `prices` in one currency, or cap max_tokens or max_requests."
        yield suite.error(message, "budget", "max_cost", remedy=remedy)


def _misfits(suite: Suite, prepared: Prepared) -> Iterator[JobError]:
    """The errors of scorers that read what is not there."""
    parsed = [] if prepared.parsed is None else [prepared.parsed.name]
    columns = list(dict.fromkeys([*RECORD_COLUMNS, *parsed, *prepared.source.schema.names]))
    if suite.cluster is not None:
        try:
            check_column(suite.cluster, prepared.source.columns, "the input, which `cluster` names")
        except UsageError as error:
            yield suite.error(error.message, "cluster", remedy=error.remedy)
    alike = alike_samples(prepared.job, prepared.template)
    over = {one.name: one.sample_metrics for one in suite.scorers}
    over |= {task.scorer.name: task.scorer.sample_metrics for task in suite.judges if isinstance(task.scorer, Judge)}
    for at, name in enumerate(suite.order):
        for metric in over.get(name, ()) if alike else ():
            message = f"the samples of a row are alike by construction, since {' and '.join(alike)}"
            yield suite.error(message, "scorers", at, metric.kind, remedy="Change that, or leave this metric out.")
        try:
            field = _check_columns(suite, name, columns, prepared.source.columns)
            if prepared.parsed is not None:
                check_path(field, prepared.parsed)
        except UsageError as error:
            yield suite.error(error.message, "scorers", at, remedy=error.remedy)


def _check_columns(suite: Suite, name: str, record_columns: list[str], input_columns: tuple[str, ...]) -> str:
    """Raise UsageError where a scorer reads a column that is not there; give the path of what it judges, if any."""
    for scorer in suite.scorers:
        if scorer.name == name:
            scorer.check(record_columns, input_columns)
            return scorer.field if isinstance(scorer, AnswerScorer) else ""
    judge = next(task.scorer for task in suite.judges if task.scorer.name == name)
    check_column(judge.field.partition(".")[0], record_columns, f"the output, which scorer {name} reads")
    for column in sorted(judge.inputs):
        check_column(column, input_columns, f"the input, which scorer {name} reads")
    return judge.field


def check_keys(suite: Suite, environ: Mapping[str, str] | None = None) -> None:
    """Raise JobError if the key of a variant or judge is missing: better now than after the first answers."""
    for job in suite.jobs:
        environment = load_keys(job, environ)
        # Each endpoint may have a key of its own, also those that are asked in the place of others.
        if has_several(job):
            problem = endpoint_key_problem(job, environment)
        else:
            problem = key_problem(job, job.resolved_provider(), environment)
        if problem is not None:
            raise problem
