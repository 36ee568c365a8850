"""An evaluation from suite to summary: run the variants, ask the judges about their answers, then score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from batchchat.evaluation.checking import check_keys, check_suite
from batchchat.evaluation.results.current_rows import Choice
from batchchat.evaluation.results.scoring import Scoring
from batchchat.evaluation.results.summary import SuiteSummary
from batchchat.evaluation.suite.suite import Suite
from batchchat.evaluation.suite_runs import NamedRun, Runs, SuiteRunOptions, Task, exit_code
from batchchat.events import Event

_SCORED = (0, 1, 4, 69)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How an evaluation ended. `summary` is None where it was stopped before its answers could be scored.

    `runs` are those of the variants and, behind them, of the judges, `warnings` what a person should know of them.
    """

    runs: tuple[NamedRun, ...]
    summary: SuiteSummary | None
    exit_code: int
    reason: str | None
    remedy: str | None = None
    warnings: tuple[str, ...] = ()
    note: str = ""


async def evaluate(suite: Suite, setting: SuiteRunOptions) -> Evaluation:
    """Run what is open of every variant, ask the judges what is open, and score what is there.

    Raises UsageError before anything is sent, StorageError and OutputLocked as `run_job` does.
    """
    for warning in await setting.offload(check_suite, suite):
        setting.listener(Event("suite", warning, "warning"))
    await setting.offload(check_keys, suite, setting.environ)
    options = setting.options
    summary = None
    async with Runs(setting) as runs:
        ended = await runs.run([Task(variant.name, variant.job) for variant in suite.variants], options)
        code, reason = exit_code(ended, setting.stop, setting.deadline)
        if code in _SCORED:
            choice = Choice(options.limit, options.sample, options.seed)
            scoring: Scoring = await setting.offload(Scoring, suite, choice)
            with scoring:
                cases = await setting.offload(scoring.gather)
                tasks = [Task(one.task.scorer.name, one.task.job) for one in cases if one.asked]
                # A budget or an outage that ended the variants holds for the judges too; they go on another time.
                if tasks and code in {0, 1}:
                    whole = replace(options, limit=None, sample=None, fresh=False, prune=False)
                    ended = [*ended, *await runs.run(tasks, whole)]
                    code, reason = exit_code(ended, setting.stop, setting.deadline)
                if not setting.stop.asked:
                    summary = await setting.offload(scoring.finish)
    remedy = next((run.summary.remedy for run in ended if run.summary and run.summary.exit_code == code), None)
    note = next((run.summary.note for run in ended if run.summary is not None and run.summary.note), "")
    return Evaluation(tuple(ended), summary, code, reason, remedy, _warnings(ended), note)


def _warnings(runs: Sequence[NamedRun]) -> tuple[str, ...]:
    """The warnings of all runs: one that several give is told once, with their names unless all give it."""
    names: dict[str, list[str]] = {}
    for run in runs:
        for warning in run.summary.warnings if run.summary is not None else ():
            names.setdefault(warning, []).append(run.name)
    return tuple(
        warning if len(given) == len(runs) else f"{', '.join(given)}: {warning}" for warning, given in names.items()
    )
