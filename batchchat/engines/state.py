"""What an engine knows while it runs, in the objects that its rooms share."""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import field
from typing import Any

import anyio.to_thread

from batchchat.dataclass import dataclass
from batchchat.endpoints.affinity import Heads
from batchchat.endpoints.traffic import Traffic
from batchchat.engines.causes import Causes
from batchchat.engines.halting import Outage
from batchchat.engines.pool import SenderPool
from batchchat.engines.quota import DayQuota
from batchchat.engines.refusals import Refusals
from batchchat.engines.supply import Supply
from batchchat.events import Listener
from batchchat.records import Request
from batchchat.retry import RetryPolicy


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What an engine has around it: who hears of events, and what tests put in place of threads, chance and clock.

    `offload` runs blocking code off the event loop. `wall_clock_us` returns microseconds since the epoch.
    """

    listener: Listener
    rng: random.Random = field(default_factory=random.Random)
    offload: Callable[..., Awaitable[Any]] = anyio.to_thread.run_sync
    wall_clock_us: Callable[[], int] = lambda: time.time_ns() // 1000


class EngineState:
    """The requests of a run, its senders, what its failures have shown, and what was done.

    `sending` holds the attempts that are under way, each with when it began, by the loop's clock. The counters count
    from the start of the run. `succeeded` is true once the model has answered in it.
    """

    def __init__(
        self,
        traffic: Traffic,
        policy: RetryPolicy,
        refusals: Refusals,
        surroundings: Surroundings,
        heads: Heads | None = None,
    ) -> None:
        self.causes = Causes()
        self.quota = DayQuota()
        self.refusals = refusals
        self.supply = Supply(traffic, self.causes, refusals, surroundings.rng, heads)
        self.outage = Outage(traffic, policy, self.causes, refusals, self.supply)
        self.pool = SenderPool(self.supply, traffic, surroundings.listener)
        self.sending: dict[Request, float] = {}
        self.attempts = 0
        self.retries = 0
        self.rate_limited = 0
        self.corrections = 0
        self.succeeded = False
