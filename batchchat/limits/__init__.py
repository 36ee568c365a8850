"""How fast requests may go: requests and tokens per minute, requests at once, pauses, outages.

A `Limiter` is built above the run, one for each (provider, model), and passed in, so that several runs share it. It
hands out a `Permit` before each attempt and learns from the reply that settles it. Four ideas, each in its module:

    pace         one per-minute axis: a smooth schedule under a known limit, or a limit learned from refusals
    concurrency  how many requests at once: slow start, AIMD, memory of where it failed
    gates        when nobody but one probe may go: a provider that is down, a provider that refuses everybody
    estimate     how many tokens to reserve for a request before its usage is known

All of it lives on one event loop, reads time with `anyio.current_time` and waits with anyio.
"""

from __future__ import annotations

from batchchat.limits.estimate import FIRST_COMPLETION, TokenEstimator
from batchchat.limits.limiter import MAX_CONCURRENCY, Limiter, Permit

__all__ = ["FIRST_COMPLETION", "MAX_CONCURRENCY", "Limiter", "Permit", "TokenEstimator"]
