"""An evaluation from suite to summary: run the variants, then score them."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from batchchat.evaluation.rows import Choice
from batchchat.evaluation.running import NamedRun, Runs, Setting, Task, exit_code
from batchchat.evaluation.scoring import check_suite, score_suite
from batchchat.evaluation.suite import Suite
from batchchat.evaluation.summary import SuiteSummary
from batchchat.events import Event

_SCORED = (0, 1, 4, 69)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How an evaluation ended. `summary` is None where it was stopped before its answers could be scored."""

    runs: tuple[NamedRun, ...]
    summary: SuiteSummary | None
    exit_code: int
    reason: str | None
    remedy: str | None = None


async def evaluate(suite: Suite, setting: Setting) -> Evaluation:
    """Run what is open of every variant, and score what is there.

    Raises UsageError before anything is sent, StorageError and OutputLocked as `run_job` does.
    """
    for warning in await setting.offload(check_suite, suite):
        setting.listener(Event("suite", warning, "warning"))
    async with Runs(setting) as runs:
        ended = await runs.run([Task(variant.name, variant.job) for variant in suite.variants])
    code, reason = exit_code(ended, setting.stop, setting.deadline)
    summary = None
    if code in _SCORED:
        options = setting.options
        choice = Choice(options.limit, options.sample, options.seed)
        summary = await setting.offload(functools.partial(score_suite, suite, choice=choice))
    remedy = next((run.summary.remedy for run in ended if run.summary and run.summary.exit_code == code), None)
    return Evaluation(tuple(ended), summary, code, reason, remedy)
