"""An evaluation from suite to summary: run the variants, ask the judges about their answers, then score."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial

from batchchat.dataclass import dataclass
from batchchat.evaluation.checking import check_keys, check_suite
from batchchat.evaluation.results.current_rows import Choice
from batchchat.evaluation.results.looks import LookRows, draw_rows, keep_plan, plan_to_go_on_with
from batchchat.evaluation.results.scoring import Scoring, score_looks, standing_of
from batchchat.evaluation.results.summary import SuiteSummary
from batchchat.evaluation.statistics.sequential import Standing
from batchchat.evaluation.suite.suite import Suite, Until
from batchchat.evaluation.suite_runs import NamedRun, Runs, SuiteRunOptions, Task, exit_code
from batchchat.events import Event
from batchchat.runner.options import RunOptions

_SCORED = (0, 1, 4, 69)
"""Exit codes of runs whose answers are scored: all or some rows, stopped by a budget or deadline, or an outage."""
_WHOLE = (0, 1)
"""Those of runs that asked every row."""


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

    With `until` in the suite, rows are asked look by look, until the variants are settled.

    Raises UsageError before anything is sent, StorageError and OutputLocked as `run_job` does.
    """
    for warning in await setting.offload(check_suite, suite):
        setting.listener(Event("suite", warning, "warning"))
    await setting.offload(check_keys, suite, setting.environ)
    async with Runs(setting) as runs:
        asking = _Asking(suite, setting, runs)
        summary = await (asking.every_row() if suite.until is None else asking.until_settled(suite.until))
    ended, code = list(asking.ended.values()), asking.code
    remedy = next((run.summary.remedy for run in ended if run.summary and run.summary.exit_code == code), None)
    note = next((run.summary.note for run in ended if run.summary is not None and run.summary.note), "")
    return Evaluation(tuple(ended), summary, code, asking.reason, remedy, _warnings(ended), note)


class _Asking:
    """Asks variants and judges. `ended` has the latest run of each by name, `code` and `reason` how all of them ended.

    A budget or an outage that ended the variants holds for the judges too; they go on another time.
    """

    def __init__(self, suite: Suite, setting: SuiteRunOptions, runs: Runs) -> None:
        self.ended: dict[str, NamedRun] = {}
        self.code = 0
        self.reason: str | None = None
        self._suite = suite
        self._setting = setting
        self._runs = runs

    async def every_row(self) -> SuiteSummary | None:
        """Ask every row that the options take; return None if it was stopped before it could be scored."""
        setting, options = self._setting, self._setting.options
        await setting.offload(keep_plan, self._suite.output, None)
        await self._variants([variant.name for variant in self._suite.variants], options)
        if self.code not in _SCORED:
            return None
        choice = Choice(options.limit, options.sample, options.seed)
        scoring: Scoring = await setting.offload(Scoring, self._suite, choice)
        with scoring:
            await self._judges(scoring)
            # A person who stops it does not wait for the scores: `batchchat score` makes them later.
            return None if setting.stop.asked else await setting.offload(scoring.finish)

    async def until_settled(self, until: Until) -> SuiteSummary | None:
        """Ask row after row in looks, until nothing is open, the rows are used up, or a run ends early."""
        suite, setting, options = self._suite, self._setting, self._setting.options
        choice = Choice(options.limit, options.sample, options.seed)
        begin = partial(plan_to_go_on_with, fresh=options.fresh)
        plan = await setting.offload(begin, suite, until, choice)
        looks: LookRows = await setting.offload(draw_rows, suite, plan)
        await setting.offload(keep_plan, suite.output, plan)
        names = tuple(variant.name for variant in suite.variants)
        standing = Standing(0, names) if options.fresh else await setting.offload(standing_of, suite, looks)
        if standing.looks:
            setting.listener(Event("look", _told(standing, looks)))
        again = standing.looks if options.retry_failed is not None else 0
        while again or not (standing.settled or standing.looks == len(looks.rows)):
            # Failed rows of looks that were taken are tried again first, if the command line says so.
            number, again = again or standing.looks + 1, 0
            rows = looks.at(number)
            await self._variants(standing.active, replace(options, rows=rows, limit=None, sample=None))
            # Only the first pass begins anew or tries failed rows again: the later ones go on from it.
            options = replace(options, fresh=False, retry_failed=frozenset())
            if self.code not in _WHOLE:
                break
            scoring: Scoring = await setting.offload(Scoring, suite, Choice(rows=rows), looks)
            with scoring:
                await self._judges(scoring)
                if self.code not in _WHOLE:
                    break
                standing = await setting.offload(scoring.standing)
            setting.listener(Event("look", _told(standing, looks)))
            if standing.looks < number and not standing.settled:
                self.code, self.reason = 1, f"look {number} is not complete: has the input changed meanwhile?"
                break
        if self.code not in _SCORED or setting.stop.asked:
            return None
        summary: SuiteSummary = await setting.offload(score_looks, suite, looks)
        return summary

    async def _variants(self, names: Collection[str], options: RunOptions) -> None:
        tasks = [Task(variant.name, variant.job) for variant in self._suite.variants if variant.name in names]
        await self._run(tasks, options)

    async def _judges(self, scoring: Scoring) -> None:
        """Ask the judges about the answers to the rows of a scoring."""
        cases = await self._setting.offload(scoring.gather)
        tasks = [Task(one.task.scorer.name, one.task.job) for one in cases if one.asked]
        if tasks and self.code in _WHOLE:
            options = self._setting.options
            # The rows were chosen for the variants. Verdicts that are there stay: equal cases need no second one.
            await self._run(tasks, replace(options, limit=None, sample=None, fresh=False, prune=False))

    async def _run(self, tasks: Sequence[Task], options: RunOptions) -> None:
        for run in await self._runs.run(tasks, options):
            self.ended[run.name] = run
        self.code, self.reason = exit_code(list(self.ended.values()), self._setting.stop, self._setting.deadline)


def _told(standing: Standing, looks: LookRows) -> str:
    """Say in a line what a look has decided."""
    rows = looks.rows[standing.looks - 1]
    text = f"look {standing.looks} of {len(looks.rows)}, after {rows:,} of {looks.rows[-1]:,} rows: "
    gone = [name for name, look in standing.dropped.items() if look == standing.looks]
    if gone:
        text += f"surely worse and not asked any more: {', '.join(gone)}; "
    return text + ("settled" if standing.settled else f"{len(standing.active)} variants are open")


def _warnings(runs: Sequence[NamedRun]) -> tuple[str, ...]:
    """The warnings of all runs: one that several give is told once, with their names unless all give it."""
    names: dict[str, list[str]] = {}
    for run in runs:
        for warning in run.summary.warnings if run.summary is not None else ():
            names.setdefault(warning, []).append(run.name)
    return tuple(
        warning if len(given) == len(runs) else f"{', '.join(given)}: {warning}" for warning, given in names.items()
    )
