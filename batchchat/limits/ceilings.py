"""The numbers that a limiter begins with: what a job sets, and what a provider is known to allow."""

from __future__ import annotations

from typing import NamedTuple


class LimitCeilings(NamedTuple):
    """What a job sets: never exceeded. Of several processes the lowest of each holds; None is no limit."""

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    concurrency: int | None = None


class Advertised(NamedTuple):
    """What the provider is known to allow: headers correct it, refusals find the truth. None is not known."""

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    concurrency: int | None = None
