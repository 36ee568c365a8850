"""Limits and budgets over all workers of a run: the coordinator's side, and that of a worker.

Each worker has an even share of the job's limits and of its budget.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from batchchat.budget import Budget
from batchchat.endpoints.registry import Limiters
from batchchat.job import Job
from batchchat.limits import Limiter
from batchchat.runner.control import Ceilings
from batchchat.workers.messages import Message


@dataclass(frozen=True, slots=True)
class Connected:
    """What a worker sends by, in place of what its job says."""

    limiter: Limiter | None = None
    limiters: Limiters | None = None
    budget: Budget | None = None


@asynccontextmanager
async def connect_limits(job: Job, order: Message) -> AsyncIterator[Connected]:
    """Connect a worker to the limits that its order names."""
    yield Connected()


class LimitsOfAll:
    """The limits and the budget of all workers."""

    def __init__(self) -> None:
        self.order: dict[str, Any] = {}
        self.budget: Budget | None = None
        self.ceilings: Ceilings | None = None

    def retune(self, ceilings: Ceilings) -> Ceilings:
        """Take other ceilings over all workers; return those of each worker."""
        self.ceilings = ceilings
        return ceilings


@asynccontextmanager
async def share_limits(job: Job, workers: int) -> AsyncIterator[LimitsOfAll]:
    """Share the limits and the budget of a job among workers, until the context ends."""
    yield LimitsOfAll()
