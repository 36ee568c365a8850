"""What an evaluation would send and cost, over all its variants. Blocking code; sends and writes nothing."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from batchchat.dataclass import dataclass
from batchchat.evaluation.checking import check_suite
from batchchat.evaluation.results.current_rows import Choice
from batchchat.evaluation.results.looks import draw_rows, plan_to_go_on_with
from batchchat.evaluation.results.scoring import Scoring, standing_of
from batchchat.evaluation.statistics.sequential import Standing
from batchchat.evaluation.suite.suite import Suite, Until, Variant
from batchchat.planning import plan_job
from batchchat.records import ErrorKind
from batchchat.runner.options import RunOptions
from batchchat.views import PlanCap, PlanView

_CHARACTERS_A_TOKEN = 4
"""About what a token of English text has: stand-ins for answers to come are made as long."""


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """The plan of one variant, or of one judge.

    A judge's is for at most that much, as long as answers are still to come: equal answers are judged once.
    """

    name: str
    plan: PlanView
    at_most: bool = False


@dataclass(frozen=True, slots=True)
class SuitePlan:
    """The plans of all variants and judges, and their sums.

    `cost` is None where the price of a model is not known, or the currencies differ. `duration_s` is the longest time
    of those that do not share a limit; the others add up.
    """

    suite: str
    output: str
    runs: tuple[PlannedRun, ...]
    judges: tuple[PlannedRun, ...]
    requests: int
    prompt_tokens: int
    completion_tokens: int
    cost: float | None
    currency: str | None
    duration_s: float | None
    caps: tuple[PlanCap, ...]
    deadline_s: float | None
    warnings: tuple[str, ...]
    note: str = ""
    command: str | None = None
    least: LeastPlan | None = None


@dataclass(frozen=True, slots=True)
class LeastPlan:
    """What an evaluation will send at least that stops when it is settled; the sums of its plan are the most.

    `looks` were taken already, and `rows` are those of the next look. There is nothing left if it is `ended`.
    """

    looks: int
    rows: int
    requests: int
    cost: float | None
    ended: bool


def plan_suite(suite: Suite, options: RunOptions) -> SuitePlan:
    """Plan every variant and judge, and add up. Raises UsageError as a run would."""
    if suite.until is not None:
        return _plan_looks(suite, suite.until, options)
    return _plan(suite, options, check_suite(suite), [variant.name for variant in suite.variants])


def _plan_looks(suite: Suite, until: Until, options: RunOptions) -> SuitePlan:
    """Plan the next look, which is the least that is sent, and all looks that may follow, which are the most."""
    warnings = check_suite(suite)
    choice = Choice(options.limit, options.sample, options.seed)
    looks = draw_rows(suite, plan_to_go_on_with(suite, until, choice, fresh=options.fresh))
    names = tuple(variant.name for variant in suite.variants)
    standing = Standing(0, names) if options.fresh else standing_of(suite, looks)
    taken = standing.looks
    ended = standing.settled or taken == len(looks.rows)
    # Failed rows of a look that was taken are tried again only if the command line says so.
    reopens = options.retry_failed if not ended or options.retry_failed else frozenset[ErrorKind]()
    whole = replace(options, limit=None, sample=None, retry_failed=reopens)
    most = _plan(suite, replace(whole, rows=looks.at(taken if ended else len(looks.rows))), warnings, standing.active)
    if ended:
        return replace(most, least=LeastPlan(taken, looks.rows[taken - 1], most.requests, most.cost, ended=True))
    least = _plan(suite, replace(whole, rows=looks.at(taken + 1)), warnings, standing.active)
    return replace(most, least=LeastPlan(taken, looks.rows[taken], least.requests, least.cost, ended=False))


def _plan(suite: Suite, options: RunOptions, warnings: Sequence[str], names: Collection[str]) -> SuitePlan:
    """Plan the variants of some names, and the judges of their answers."""
    variants = [variant for variant in suite.variants if variant.name in names]
    runs = [PlannedRun(variant.name, plan_job(variant.job, options, previews=1)) for variant in variants]
    judges = _plan_judges(suite, options, runs) if suite.judges else []
    plans = [run.plan for run in (*runs, *judges)]
    told = dict.fromkeys([*warnings, *(warning for plan in plans for warning in plan.warnings)])
    cost, currency = _cost(plans)
    return SuitePlan(
        suite=suite.name,
        output=str(suite.output),
        runs=tuple(runs),
        judges=tuple(judges),
        requests=sum(plan.requests for plan in plans),
        prompt_tokens=sum(plan.prompt_tokens or 0 for plan in plans),
        completion_tokens=sum(plan.completion_tokens or 0 for plan in plans),
        cost=cost,
        currency=currency,
        duration_s=_duration(variants, runs, judges),
        caps=_caps(plans),
        deadline_s=suite.deadline,
        warnings=tuple(told),
        note=next((plan.note for plan in plans if plan.note), ""),
    )


def _cost(plans: Sequence[PlanView]) -> tuple[float | None, str | None]:
    """What all of it costs; nothing where a price is not known, or the currencies are not one."""
    costs = [plan.cost for plan in plans if plan.requests]
    currencies = {plan.currency for plan in plans if plan.requests}
    if not costs:
        return 0.0, next((plan.currency for plan in plans), None)
    # A sum without one of its parts would be read as the whole cost.
    if None in costs or len(currencies) > 1:
        return None, None
    return sum(cost for cost in costs if cost is not None), currencies.pop()


def _plan_judges(suite: Suite, options: RunOptions, runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    """Plan the judges over the answers that are there, and stand-ins of the likely length for those to come."""
    placeholders = {}
    for run in runs:
        if run.plan.requests:
            letters = _CHARACTERS_A_TOKEN * (run.plan.completion_tokens or 0) // run.plan.requests
            placeholders[run.name] = "x" * max(1, letters)
    # The rows were chosen for the variants: judges are asked about all answers to them.
    whole = replace(options, limit=None, sample=None, rows=None, fresh=False)
    planned = []
    with (
        tempfile.TemporaryDirectory(prefix="batchchat-plan-") as folder,
        Scoring(suite, Choice(options.limit, options.sample, options.seed, options.rows)) as scoring,
    ):
        for cases in scoring.gather(placeholders, folder=Path(folder)):
            if not cases.asked:
                continue
            job = cases.task.job
            # A plan writes nothing into the output: the cases stand in a folder that goes away.
            there = job.input.model_copy(update={"path": str(Path(folder) / Path(job.input.path).name)})
            plan = plan_job(job.model_copy(update={"input": there}), whole, previews=0)
            planned.append(PlannedRun(cases.task.scorer.name, plan, at_most=bool(placeholders)))
    return planned


def _duration(variants: Sequence[Variant], runs: Sequence[PlannedRun], judges: Sequence[PlannedRun]) -> float | None:
    """Variants of one model and the same limits add up, others go on side by side; the judges come after them."""
    times: dict[object, float] = defaultdict(float)
    for variant, run in zip(variants, runs, strict=True):
        if run.plan.duration_s is None:
            return None
        times[run.plan.provider, run.plan.model, variant.job.limits.model_dump_json()] += run.plan.duration_s
    # Judges run side by side, and only once the answers are there.
    after = [run.plan.duration_s for run in judges]
    if None in after:
        return None
    return max(times.values()) + max((time for time in after if time is not None), default=0.0)


def _caps(plans: Sequence[PlanView]) -> tuple[PlanCap, ...]:
    """The caps of the one budget, and what all variants together would need of each."""
    found: dict[str, PlanCap] = {}
    for cap in (cap for plan in plans for cap in plan.caps):
        known = found.get(cap.name)
        if known is None:
            found[cap.name] = cap
        elif known.needed is None or cap.needed is None:
            found[cap.name] = replace(known, needed=None)
        else:
            found[cap.name] = replace(known, needed=known.needed + cap.needed)
    return tuple(found.values())
