"""What an evaluation would send and cost, over all its variants. Blocking code; sends and writes nothing."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from batchchat.evaluation.checking import check_suite
from batchchat.evaluation.results.current_rows import Choice
from batchchat.evaluation.results.scoring import Scoring
from batchchat.evaluation.suite.suite import Suite, Variant
from batchchat.planning import plan_job
from batchchat.runner.options import RunOptions
from batchchat.views import PlanCap, PlanView

_CHARACTERS_A_TOKEN = 4


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


def plan_suite(suite: Suite, options: RunOptions) -> SuitePlan:
    """Plan every variant and judge, and add up. Raises UsageError as a run would."""
    warnings = check_suite(suite)
    runs = [PlannedRun(variant.name, plan_job(variant.job, options, previews=1)) for variant in suite.variants]
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
        duration_s=_duration(suite.variants, runs, judges),
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
    whole = replace(options, limit=None, sample=None, fresh=False)
    planned = []
    with (
        tempfile.TemporaryDirectory(prefix="batchchat-plan-") as folder,
        Scoring(suite, Choice(options.limit, options.sample, options.seed)) as scoring,
    ):
        for cases in scoring.gather(placeholders, folder=Path(folder)):
            if not cases.asked:
                continue
            job = cases.task.job
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
