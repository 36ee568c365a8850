"""What the requests of a plan would cost, and how long they would take."""

from __future__ import annotations

import math
from collections.abc import Sequence

from batchchat.errors import UsageError
from batchchat.events import StepShare
from batchchat.job import Job, load_keys
from batchchat.job.targets import targets_of
from batchchat.money import Tariff, as_float
from batchchat.planning.earlier import EarlierRuns
from batchchat.planning.reader import PlanReader
from batchchat.providers import Provider
from batchchat.records import Usage
from batchchat.runner.preparation import Prepared
from batchchat.views import EnginePlan, PlanCap, StepPlan

_UNSET_CONCURRENCY = 64
"""Requests at once if neither job nor provider names a number: the limiter finds it while the job runs. Chosen."""


class PlanEstimate:
    """What the requests of a plan would cost, and how long they would take, through each engine."""

    def __init__(self, prepared: Prepared, earlier: EarlierRuns, reader: PlanReader) -> None:
        job, provider, usage = prepared.job, prepared.provider, reader.usage
        requests = reader.to_send
        self.duration_s, self.binding = _duration(requests, _tokens(usage), job, provider, earlier.latency_s)
        self.tariff = Tariff.of(provider.prices.get(job.model), provider.tiers.get(job.params.service_tier or "", 1.0))
        self.cost = as_float(self.tariff.cost(usage)) if self.tariff is not None else None
        self.steps = _cascade_steps(job, earlier.shares, requests, usage)
        if self.steps:
            known = [step.cost for step in self.steps if step.cost is not None]
            # A sum without the step whose price is not known would be told as the cost of all.
            self.cost = sum(known) if len(known) == len(self.steps) else None
        self.engines = [EnginePlan("local", not job.engine.batch, self.cost, self.duration_s)]
        if requests:
            batch = _batch_engine(job, provider, requests, usage, reader.nbytes)
            self.engines.append(batch)
            if job.engine.batch:
                # A provider says by when a batch ends at the latest, and nobody knows when it will.
                self.cost, self.duration_s, self.binding = batch.cost, None, None


def _tokens(usage: Usage) -> int:
    return (usage.prompt_tokens or 0) + (usage.completion_tokens or 0)


def _cascade_steps(job: Job, shares: Sequence[StepShare], requests: int, usage: Usage) -> list[StepPlan]:
    """Return what each step of a cascade would be asked: as many of the rows as reached it in the records here."""
    if not job.cascade:
        return []
    asked = {share.step: share.asked for share in shares}
    every = asked.get(1, 0)
    found = []
    for target in targets_of(job):
        if target.on:
            continue  # who is asked in place of another one
        number = target.step or 1
        share = 1.0 if number == 1 else asked.get(number, 0) / every if every else None
        tariff = Tariff.of(target.provider.prices.get(target.model))
        reached = round(requests * (1.0 if share is None else share))
        cost = None if tariff is None else as_float(tariff.cost(usage)) * (1.0 if share is None else share)
        accept = job.cascade[number - 1].accept
        found.append(
            StepPlan(number, target.model, None if accept is None else accept.confidence, share, reached, cost)
        )
    return found


_LINE_BYTES = 110
"""Bytes of a line beside its body: identity, method, address and braces."""


def _batch_engine(job: Job, provider: Provider, requests: int, usage: Usage, nbytes: int) -> EnginePlan:
    """Return what the requests would cost through the provider's Batch API. Asks nobody."""
    from batchchat.engines.batch.building import Bounds
    from batchchat.engines.batch.prices import batch_tariff, terms_of
    from batchchat.engines.batch.services import open_service

    fields = job.engine
    address = provider if provider.base_url is not None else provider.with_base_url("http://demo.invalid/v1")
    try:
        service = open_service(address, fields, api_key=None, environ=load_keys(job), model=job.model)
        terms, tariff = terms_of(provider, fields), batch_tariff(provider, job.model, fields)
    except UsageError as error:
        return EnginePlan("batch", fields.batch, problem=error.message)
    bounds = Bounds.of(service, lines=fields.max_lines, nbytes=fields.max_bytes, queued_tokens=fields.queued_tokens)
    nbytes += requests * _LINE_BYTES
    batches = max(math.ceil(requests / bounds.lines), math.ceil(nbytes / bounds.nbytes))
    if bounds.queued_tokens is not None:
        batches = max(batches, math.ceil((usage.prompt_tokens or 0) / bounds.queued_tokens))
    return EnginePlan(
        "batch",
        fields.batch,
        cost=None if tariff is None else as_float(tariff.cost(usage)),
        batches=batches,
        nbytes=nbytes,
        window=fields.window or (terms.window if terms is not None else service.limits.window),
        price_factor=None if terms is None else terms.factor,
        as_of=None if terms is None else terms.as_of,
    )


def _duration(
    requests: int, tokens: float, job: Job, provider: Provider, latency_s: float
) -> tuple[float | None, str | None]:
    """Seconds under the limits, and the limit that decides them."""
    # Else a limit would be named that holds nothing back.
    if not requests:
        return 0.0, None
    limits = job.limits
    per_minute = limits.requests_per_minute or provider.requests_per_minute
    token_rate = limits.tokens_per_minute or provider.tokens_per_minute
    concurrency = limits.concurrency or provider.concurrency or _UNSET_CONCURRENCY
    times = {"concurrency": math.ceil(requests / concurrency) * latency_s}
    if per_minute:
        times["requests per minute"] = requests / per_minute * 60
    if token_rate:
        times["tokens per minute"] = tokens / token_rate * 60
    binding = max(times, key=lambda name: times[name])
    # How much of it others take is not known before the run.
    return times[binding], f"{binding}, shared with other runs" if limits.shared else binding


def budget_caps(job: Job, requests: int, usage: Usage, cost: float | None) -> list[PlanCap]:
    """The caps of the budget, and what the run would need of each."""
    needed = {"max_cost": cost, "max_tokens": _tokens(usage), "max_requests": requests}
    caps = ((name, getattr(job.budget, name)) for name in needed)
    return [PlanCap(name, cap, needed[name]) for name, cap in caps if cap is not None]
