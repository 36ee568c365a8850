"""Limits and a budget over all workers of a run: the coordinator serves a broker, and the workers ask it.

A job that says of itself what it shares (`limits.shared`) keeps that. Its budget is the coordinator's all the same.
"""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from batchchat.budget import Budget
from batchchat.dataclass import dataclass
from batchchat.job import Job
from batchchat.money import Tariff
from batchchat.runner.control import Ceilings
from batchchat.sharing.broker import serve_broker
from batchchat.sharing.link import TOKEN, connect
from batchchat.workers.messages import Message


@dataclass(frozen=True, slots=True)
class Connected:
    """What a worker runs with: its job as it asks the broker, the budget of all, and the environment."""

    job: Job
    budget: Budget | None
    environ: Mapping[str, str] | None


@asynccontextmanager
async def connect_limits(job: Job, order: Message) -> AsyncIterator[Connected]:
    """Connect a worker to the broker that its order names. Raises ProviderUnavailable if that cannot be reached."""
    address, token = order["broker"], order["broker_token"]
    async with connect(address, token=token, outage_s=job.retry.outage) as link, link.budget() as budget:
        if job.limits.shared:
            yield Connected(job, budget, None)
            return
        limits = job.limits.model_copy(update={"shared": address})
        yield Connected(job.model_copy(update={"limits": limits}), budget, {**os.environ, TOKEN: token})


class LimitsOfAll:
    """The limits and the budget of all workers, as the coordinator has them. `order` tells workers the way to them."""

    def __init__(self, order: Mapping[str, Any], budget: Budget | None) -> None:
        self.order = order
        self.budget = budget
        self.ceilings: Ceilings | None = None


@asynccontextmanager
async def share_limits(job: Job, host: str | None) -> AsyncIterator[LimitsOfAll]:
    """Share the limits and the budget of a job among its workers, until the context ends.

    `host` is this machine as workers elsewhere reach it, None if there are none. Raises UsageError if a budget of money
    cannot be kept.
    """
    budget: Budget | None = None
    if job.budget.capped:
        caps = job.budget
        budget = Budget(max_cost=caps.max_cost, max_tokens=caps.max_tokens, max_requests=caps.max_requests)
        # The workers reserve in it; that the price is known is said here, once.
        provider = job.resolved_provider()
        budget.account(Tariff.of(provider.prices.get(job.model)), provider.currency)
    token = secrets.token_urlsafe(24)
    async with AsyncExitStack() as stack:
        if host is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="batchchat-", ignore_cleanup_errors=True))
            listen = f"unix:{folder}/broker"
        else:
            listen = f"{host}:0"
        broker = await stack.enter_async_context(serve_broker(listen, token=token, budget=budget))
        yield LimitsOfAll({"broker": broker.address, "broker_token": token}, budget)
