"""What an evaluation would send and cost, over all its variants. Blocking code; sends and writes nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from batchchat.evaluation.scoring import check_suite
from batchchat.evaluation.suite import Suite
from batchchat.plan import plan_job
from batchchat.runner import RunOptions
from batchchat.views import PlanCap, PlanView


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """The plan of one variant."""

    name: str
    plan: PlanView


@dataclass(frozen=True, slots=True)
class SuitePlan:
    """The plans of all variants, and their sums.

    `cost` is None where the price of a model is not known, or the currencies differ. `duration_s` is the longest time
    of those that do not share a limit; the others add up.
    """

    suite: str
    output: str
    runs: tuple[PlannedRun, ...]
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
    """Plan every variant, and add up. Raises UsageError as a run would."""
    warnings = check_suite(suite)
    runs = [PlannedRun(variant.name, plan_job(variant.job, options, previews=1)) for variant in suite.variants]
    plans = [run.plan for run in runs]
    told = dict.fromkeys([*warnings, *(warning for plan in plans for warning in plan.warnings)])
    cost, currency = _cost(plans)
    return SuitePlan(
        suite=suite.name,
        output=str(suite.output),
        runs=tuple(runs),
        requests=sum(plan.requests for plan in plans),
        prompt_tokens=sum(plan.prompt_tokens or 0 for plan in plans),
        completion_tokens=sum(plan.completion_tokens or 0 for plan in plans),
        cost=cost,
        currency=currency,
        duration_s=_duration(suite, plans),
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


def _duration(suite: Suite, plans: Sequence[PlanView]) -> float | None:
    """Variants of one model and the same limits add up, others go on side by side."""
    times: dict[object, float] = defaultdict(float)
    for variant, plan in zip(suite.variants, plans, strict=True):
        if plan.duration_s is None:
            return None
        times[plan.provider, plan.model, variant.job.limits.model_dump_json()] += plan.duration_s
    return max(times.values())


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
