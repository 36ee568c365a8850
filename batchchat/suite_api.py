"""The Python API of evaluations: read a suite, run it, score it, compare outputs, and take the results as tables.

The libraries of the extra `batchchat[eval]` are imported when a function here is called, not before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

from batchchat.addresses import is_url
from batchchat.api import as_text, progress_display, told_both, unheard
from batchchat.dataclass import dataclass
from batchchat.errors import BatchchatError, UsageError
from batchchat.evaluation import require_extra
from batchchat.events import Listener, Snapshot
from batchchat.job import Job
from batchchat.runner.control import Control
from batchchat.runner.options import RunOptions
from batchchat.store import read_output

if TYPE_CHECKING:
    import httpx
    import pyarrow as pa

    from batchchat.evaluation.evaluate import Evaluation
    from batchchat.evaluation.planning import SuitePlan
    from batchchat.evaluation.results.comparing import Agreement, OutputComparison
    from batchchat.evaluation.results.summary import SuiteSummary
    from batchchat.evaluation.scorers.record_scorers import ScorerFunction
    from batchchat.evaluation.scorers.scorer import Scorer
    from batchchat.evaluation.statistics.comparison import ScoreSummary
    from batchchat.evaluation.suite.suite import Suite
    from batchchat.evaluation.suite_runs import NamedRun
    from batchchat.views import PlanView

_DEFAULTS = RunOptions()
_T = TypeVar("_T")


class EvaluationFailed(BatchchatError):
    """An evaluation did not end well; see `EvaluationResult.raise_for_status`. `result` is what it came to."""

    def __init__(self, result: EvaluationResult) -> None:
        message = result.reason or "some answers failed"
        super().__init__(message, remedy=result.remedy or f"`batchchat status {result.output}` tells which.")
        self.result = result
        self.exit_code = result.exit_code


@dataclass(frozen=True, slots=True, repr=False)
class EvaluationResult:
    """What an evaluation came to, and the way to its values.

    `summary` has means, intervals and comparisons; None if it was stopped before its answers could be scored. `runs`
    are those of the variants and, behind them, of the judges; none if answers were only scored. `exit_code` is that of
    the command line, `reason` says why it is not 0 or 1, `remedy` what to do. `warnings` are what a person should know.
    """

    name: str
    output: str
    summary: SuiteSummary | None
    runs: tuple[NamedRun, ...] = ()
    exit_code: int = 0
    reason: str | None = None
    remedy: str | None = None
    warnings: tuple[str, ...] = ()
    note: str = ""

    def raise_for_status(self) -> Self:
        """Return this result if every answer is there. Raises EvaluationFailed if not."""
        if self.exit_code:
            raise EvaluationFailed(self)
        return self

    def mean(self, variant: str, score: str) -> ScoreSummary:
        """Return the mean of a variant's score, with its interval. Raises UsageError if there is no such one."""
        summary = self._scored()
        found = _named("variant", variant, {one.name: one for one in summary.variants})
        return _named("score", score, found.scores)

    def variants(self) -> pa.Table:
        """Return a line for each variant: its model, what it changes, its counts, tokens, cost and latency."""
        from batchchat.evaluation.results.tables import variants_table

        return variants_table(self._scored())

    def means(self) -> pa.Table:
        """Return a line for each variant and score: the mean with its 95 % interval."""
        from batchchat.evaluation.results.tables import means_table

        return means_table(self._scored())

    def comparisons(self) -> pa.Table:
        """Return a line for each pair of variants and score: the difference, its interval, test and verdict."""
        from batchchat.evaluation.results.tables import comparisons_table

        return comparisons_table(self._scored())

    def scores(self) -> pa.Table:
        """Return a line for each value of each scorer, as `scores.parquet` has them."""
        from batchchat.evaluation.results.summary import read_scores

        self._scored()
        return read_scores(Path(self.output))

    def verdicts(self) -> pa.Table:
        """Return a line for each verdict of a pairwise judge, as `pairwise.parquet` has them; none without a judge."""
        from batchchat.evaluation.results.summary import read_pairwise

        self._scored()
        return read_pairwise(Path(self.output))

    def answers(self, variant: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the records of a variant in input order, whole or these columns. Raises UsageError without one."""
        found = _named("variant", variant, {one.name: one for one in self._scored().variants})
        return read_output(Path(self.output) / "variants" / found.folder, columns=columns)

    def write_report(self, target: str | Path | None = None) -> Path:
        """Write the HTML page of the evaluation, `report.html` in its folder if no other file is named; return it."""
        from batchchat.report import PAGE_NAME, write_suite_report

        if target is not None and is_url(target):
            raise UsageError(f"{target} is a URL", remedy="Name a file of this machine.")
        path = Path(self.output) / PAGE_NAME if target is None else Path(target)
        write_suite_report(Path(self.output), path)
        return path

    def _scored(self) -> SuiteSummary:
        if self.summary is None:
            raise UsageError(
                f"the evaluation {self.name} was not scored: {self.reason or 'it was stopped'}",
                remedy="The same call goes on with it.",
            )
        return self.summary

    def __str__(self) -> str:
        """What the command line prints at the end of an evaluation."""
        if self.summary is None:
            return repr(self)
        from batchchat.cli.evaluation_tables import render_evaluation

        return as_text(render_evaluation(self.summary, [], Path(self.output), self.warnings, self.note))

    def __repr__(self) -> str:
        scored = "not scored" if self.summary is None else f"{len(self.summary.variants)} variants"
        return f"EvaluationResult({self.name!r}: exit_code={self.exit_code}, {scored}, output={self.output!r})"


@dataclass(frozen=True, slots=True, repr=False)
class ComparisonResult:
    """Two outputs side by side, over the rows that both have; `only_a` and `only_b` count the others.

    `agreement` tells how often the answers are the same, `summary` has the outputs as its variants `a` and `b`. `on` is
    what rows were matched by.
    """

    a: str
    b: str
    on: str
    rows: int
    only_a: int
    only_b: int
    agreement: Agreement
    summary: SuiteSummary

    @classmethod
    def of(cls, found: OutputComparison) -> Self:
        """Return a comparison with the ways to its tables."""
        return cls(**{field.name: getattr(found, field.name) for field in fields(cls)})

    def means(self) -> pa.Table:
        """Return a line for each output, `a` and `b`, and score: the mean with its 95 % interval."""
        from batchchat.evaluation.results.tables import means_table

        return means_table(self.summary)

    def comparisons(self) -> pa.Table:
        """Return a line for each score: the difference a - b, its interval, test and verdict."""
        from batchchat.evaluation.results.tables import comparisons_table

        return comparisons_table(self.summary)

    def __repr__(self) -> str:
        return f"ComparisonResult({self.a!r}, {self.b!r}: rows={self.rows}, only_a={self.only_a}, only_b={self.only_b})"


def load_suite(
    path: str | Path,
    *,
    overrides: Sequence[str] = (),
    input: str | None = None,
    output: str | None = None,
    scorers: Sequence[ScorerFunction | Mapping[str, Any]] = (),
) -> Suite:
    """Read and validate a suite file and its base job.

    `overrides` are `dotted.path=value` texts as `--set` takes them. `input` takes the place of the base job's input,
    `output` that of the suite's output. `scorers` come behind those of the file, which may have none then: functions,
    or mappings with the fields of a scorer, in which `python` may be a function.

    Raises UsageError if there is no such file, JobError for what a suite cannot be.
    """
    require_extra()
    from batchchat.evaluation.suite.reading import load_suite

    return load_suite(path, overrides=overrides, input=input, output=output, scorers=scorers)


async def evaluate(
    suite: Suite,
    *,
    options: RunOptions = _DEFAULTS,
    progress: bool | None = None,
    listener: Listener | None = None,
    on_snapshot: Callable[[Snapshot], None] | None = None,
    control: Control | None = None,
    transport: Callable[[], httpx.AsyncBaseTransport] | None = None,
    environ: Mapping[str, str] | None = None,
) -> EvaluationResult:
    """Run what is open of every variant, ask the judges what is open, and score what is there.

    The same call again sends nothing for what has an answer. `options` holds for every variant. `progress`, `listener`
    and `on_snapshot` are those of `run_job`, over all runs together. `control` steers them. `transport` makes what
    takes the place of the network, one for each run; `environ` takes that of the process's environment for keys.

    Raises UsageError before anything is sent, or for a scorer that gives no answer a value; OutputLocked if another
    process runs a variant, StorageError if the disk fails.
    """
    from batchchat.evaluation.evaluate import evaluate
    from batchchat.evaluation.suite_runs import SuiteRunOptions

    with progress_display(progress) as shown:
        setting = SuiteRunOptions(
            suite.name,
            options,
            caps=suite.budget,
            deadline=suite.deadline,
            listener=listener or unheard,
            on_snapshot=told_both(None if shown is None else shown.update, on_snapshot),
            stop=control or Control(),
            environ=environ,
            transport=transport,
        )
        done = await evaluate(suite, setting)
    return _result(suite, done)


def score(
    suite: Suite, *, limit: int | None = None, sample: int | None = None, seed: int = _DEFAULTS.seed
) -> EvaluationResult:
    """Score what variants and judges have answered so far, and write the files of the summary; sends nothing.

    `limit` and `sample` with `seed` choose the rows that count, as they do in a run. Blocks the caller.

    Raises UsageError if the suite does not fit its input, or a scorer gives no answer a value; StorageError if the disk
    fails.
    """
    from batchchat.evaluation.checking import check_suite
    from batchchat.evaluation.results.current_rows import Choice
    from batchchat.evaluation.results.scoring import score_suite

    warnings = check_suite(suite)
    summary = score_suite(suite, choice=Choice(limit, sample, seed))
    return EvaluationResult(suite.name, str(suite.output), summary, warnings=tuple(warnings))


def compare(
    a: str | Path,
    b: str | Path,
    *,
    on: str | None = None,
    field: str = "completion",
    scorers: Sequence[str | ScorerFunction | Mapping[str, Any]] = (),
    suite: Suite | None = None,
    cluster: str | None = None,
) -> ComparisonResult:
    """Compare two outputs over the rows that both have; sends nothing.

    `on` names what tells rows apart: `key`, `row_index`, or a column of the input; without it, the key. `field` is what
    counts as the answer: a dotted path, or `PATH=PATH` for a path of each output. `scorers` are `KIND:COLUMN` texts,
    functions, or mappings as in a suite file; those of `suite` come behind them. `cluster` names an input column: rows
    with the same value there are one piece of evidence.

    Raises UsageError if a folder is no output, rows cannot be matched, or a scorer reads a column that is not there.
    """
    require_extra()
    from batchchat.evaluation.results.comparing import compare_outputs

    wanted = [*map(_scorer, scorers), *(() if suite is None else suite.scorers)]
    cluster = suite.cluster if cluster is None and suite is not None else cluster
    return ComparisonResult.of(compare_outputs(Path(a), Path(b), on=on, field=field, scorers=wanted, cluster=cluster))


@overload
def plan(work: Job, *, options: RunOptions = ...) -> PlanView: ...
@overload
def plan(work: Suite, *, options: RunOptions = ...) -> SuitePlan: ...
def plan(work: Job | Suite, *, options: RunOptions = _DEFAULTS) -> PlanView | SuitePlan:
    """Return what a run of a job, or an evaluation of a suite, would send and cost; sends and writes nothing.

    Raises UsageError as the run would. Blocks the caller while it reads the input.
    """
    if isinstance(work, Job):
        from batchchat.planning import plan_job

        return plan_job(work, options)
    from batchchat.evaluation.planning import plan_suite

    return plan_suite(work, options)


def _result(suite: Suite, done: Evaluation) -> EvaluationResult:
    own = {field.name: getattr(done, field.name) for field in fields(done)}
    return EvaluationResult(name=suite.name, output=str(suite.output), **own)


def _scorer(given: str | ScorerFunction | Mapping[str, Any]) -> Scorer:
    from batchchat.evaluation.results.comparing import read_scorer_text
    from batchchat.evaluation.scorers.answer_scorers import read_scorer
    from batchchat.evaluation.scorers.record_scorers import scorer_fields

    return read_scorer_text(given) if isinstance(given, str) else read_scorer(scorer_fields(given))


def _named(what: str, name: str, known: Mapping[str, _T]) -> _T:
    """Return what has this name. Raises UsageError that says what there is."""
    from batchchat.job.values import nearest

    if name not in known:
        raise UsageError(
            f"the evaluation has no {what} {name!r}{nearest(name, list(known))}",
            remedy=f"It has: {', '.join(known)}.",
        )
    return known[name]
