"""Engines execute requests. An engine takes requests from a feed at its own appetite and tells a sink what came of
them.

`local` sends each request as one HTTP exchange, or more of them where answers are reviewed. The seam is as narrow as it
can be, so that an engine that takes 50,000 requests at once (a provider's Batch API) fits behind it:

- a `Feed` is an async generator of lists of requests; nothing is taken from it before there is room;
- a `Sink` takes `Answered` (an answer that was billed but does not settle its request) and `Settled` (it does).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, Protocol

from batchchat.records import Failure, Reply, Request, Usage


@dataclass(frozen=True, slots=True)
class Answered:
    """An attempt that the provider answered and may bill, though its request goes on or stays open.

    With a `step` the request goes on from this answer: `payload` is kept until it is settled (`review.journaled`).
    """

    request: Request
    usage: Usage
    step: int | None = None
    payload: Any = None


@dataclass(slots=True)
class Settled:
    """A request's end: `failure` is None for a completion. `reply` is its last attempt's.

    `parsed` and `tolerated` are those of an answer that a schema accepted.
    """

    request: Request
    reply: Reply
    failure: Failure | None
    parsed: Any = None
    tolerated: bool = False


Outcome = Answered | Settled


class Sink(Protocol):
    """Where outcomes go. `put` never waits and never loses; `room` waits until the sink has caught up."""

    def put(self, outcome: Outcome) -> None:
        """Take an outcome over, at once: from here on the sink answers for it."""

    @property
    def full(self) -> bool:
        """Whether `room` should be awaited before more work is begun."""

    async def room(self) -> None:
        """Wait until the sink has caught up."""


Feed = AsyncGenerator[list[Request], None]
