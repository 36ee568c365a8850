"""Limiters of tests, made by the names of their numbers."""

from __future__ import annotations

import random
from typing import Any

from batchchat.events import Listener
from batchchat.limits import Advertised, LimitCeilings, Limiter


def make_limiter(
    *,
    advertised: Advertised = Advertised(),  # noqa: B008  # a named tuple cannot change
    listener: Listener | None = None,
    rng: random.Random | None = None,
    **ceilings: Any,
) -> Limiter:
    """Return a limiter; `ceilings` are the job's numbers."""
    return Limiter(LimitCeilings(**ceilings), advertised, listener=listener, rng=rng or random.Random(1))
