"""How fast requests may go: requests and tokens per minute, requests at once, pauses, outages.

A `Limiter` is built above the run, one for each (provider, model), and passed in, so that several runs share it. It
hands out a `Permit` before each attempt and learns from the reply that settles it. `DESIGN.md` beside this file
explains how it decides.

All of it lives on one event loop, reads time with `anyio.current_time` and waits with anyio.
"""

from __future__ import annotations

from batchchat.limits.ceilings import Advertised, LimitCeilings
from batchchat.limits.estimate import FIRST_COMPLETION, TokenEstimator
from batchchat.limits.limiter import MAX_CONCURRENCY, Limiter, Permit

__all__ = [
    "FIRST_COMPLETION",
    "MAX_CONCURRENCY",
    "Advertised",
    "LimitCeilings",
    "Limiter",
    "Permit",
    "TokenEstimator",
]
