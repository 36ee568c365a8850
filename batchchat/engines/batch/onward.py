"""`then: local`: what batches do not answer is sent as single requests.

Two things lead there. A request that was in `rounds` batches goes on at the end of the run. And time may run out: near
the job's deadline no further batch would end, so that nothing more is created, batches that have not ended are
cancelled, and what they did not answer goes on. In its last round, a batch is cancelled near the end of its own window,
too: the provider would end it then at the latest, and some never do.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from typing import Any

import anyio

from batchchat.engines.batch.building import Planned
from batchchat.engines.batch.carried import Carried
from batchchat.engines.port import Engine, Outcome, Settled, Sink
from batchchat.events import Event, Listener
from batchchat.records import Request

_MARGIN_SHARE = 0.25
_MARGIN_MOST_S = 3600.0


def margin(seconds: float) -> float:
    """Return how long before the end of so many seconds batches are cancelled: a quarter, and an hour at most.

    Cancelling takes up to ten minutes at providers, and single requests have the rest. A short deadline must leave
    batches some time all the same, so that no fixed margin would do. Chosen, not measured.
    """
    return min(_MARGIN_MOST_S, _MARGIN_SHARE * seconds)


class Onward:
    """Decides what goes on as single requests, and when; makes their engine.

    `make` makes the engine, None if the job asks for no single requests. `deadline` is the job's, in seconds from now.
    """

    def __init__(
        self,
        make: Callable[[], Engine] | None,
        known: Carried,
        rounds: int,
        *,
        deadline: float | None,
        listener: Listener,
        wall_clock: Callable[[], float],
    ) -> None:
        self.engine: Engine | None = None
        self.closing = False
        self._make = make
        self._known = known
        self._rounds = rounds
        self._listener = listener
        self._wall_clock = wall_clock
        self._cancelled: set[int] = set()
        self._closes_at: float | None = None
        if make is not None and deadline is not None:
            self._closes_at = anyio.current_time() + deadline - margin(deadline)

    @property
    def wanted(self) -> bool:
        """Tell whether the job lets requests go on."""
        return self._make is not None

    def takes(self, batches: int) -> bool:
        """Tell whether a request that was in so many batches goes on as a single one."""
        return self.wanted and (self.closing or batches >= self._rounds)

    def keep(self, request: Request) -> None:
        """Put a request aside until all batches have ended."""
        self._known.keep_onward(request)

    # --- time that runs out

    def due_in(self, live: Iterable[Planned]) -> float | None:
        """Return the seconds until something is to be cancelled; None if nothing ever is."""
        if not self.wanted:
            return None
        waits = [self._window_in(planned) for planned in live]
        if self._closes_at is not None and not self.closing:
            waits.append(self._closes_at - anyio.current_time())
        return min((wait for wait in waits if wait is not None), default=None)

    def close_if_due(self) -> bool:
        """Begin the end of all batches if the job's deadline is near; true if it began just now."""
        if self.closing or self._closes_at is None or anyio.current_time() < self._closes_at:
            return False
        self.closing = True
        message = "the deadline of the job is near: batches are cancelled, and the rest is sent one by one"
        self._listener(Event("batch_closing", message, "warning"))
        return True

    def to_cancel(self, live: Iterable[Planned]) -> list[Planned]:
        """Return the chunks whose batches are to be cancelled now, each of them once."""
        due = [each for each in live if (wait := self._window_in(each)) is not None and wait <= 0]
        self._cancelled.update(planned.state.number for planned in due)
        return due

    def _window_in(self, planned: Planned) -> float | None:
        """Return the seconds until a chunk's batch is to be cancelled; None if it is not for its time to run out."""
        state = planned.state
        if not state.running or state.number in self._cancelled:
            return None
        if self.closing:
            return 0.0
        # Before its last round, what a batch leaves at the end of its window goes into another one, at half the price.
        # A provider that names no end of its window is not hurried.
        if state.round < self._rounds or state.expires_at is None or state.created_at is None:
            return None
        return state.expires_at - margin(state.expires_at - state.created_at) - self._wall_clock()

    # --- single requests

    async def run(self, sink: Sink, offload: Callable[..., Awaitable[Any]]) -> None:
        """Send what was put aside, if there is anything."""
        feed = await offload(self._known.onward)
        if feed is None or self._make is None:
            return
        self.engine = self._make()
        count = self._known.onward_count
        self._listener(Event("batch_onward", f"{count:,} requests that batches did not answer are sent one by one"))
        await self.engine.run(feed, SingleRequests(sink))


class SingleRequests:
    """A sink for outcomes of single requests within a run of batches: they have a price of their own."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def put(self, outcome: Outcome) -> None:
        """Take an outcome over."""
        self._sink.put(replace(outcome, engine="local") if isinstance(outcome, Settled) else outcome)

    @property
    def full(self) -> bool:
        """Whether more waits than should."""
        return self._sink.full

    async def room(self) -> None:
        """Wait until there is room."""
        await self._sink.room()

    async def counted(self) -> bool:
        """Wait until all that was put so far is durable."""
        return await self._sink.counted()
