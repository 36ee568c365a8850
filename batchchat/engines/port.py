"""The engine port: what a run knows of an engine.

An engine takes requests from a feed as it has room for them, and tells a sink what came of each. `local` sends each
request as one HTTP exchange. The port is narrow, so that an engine that takes 50,000 requests at once (a provider's
Batch API) fits behind it:

- a `Feed` is an async generator of lists of requests; nothing is taken from it before there is room;
- a `Sink` takes `Answered` (an answer that was billed but does not settle its request), `Settled` (it does) and
  `Billed` (what many answers cost, to be counted once);
- an `Engine` can be paused, drained and cancelled, and tells its `EngineProgress`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any, Literal, Protocol

from batchchat.dataclass import dataclass
from batchchat.errors import BatchchatError, StoppedEarly
from batchchat.events import Event, InFlight, Level, Pace
from batchchat.records import Failure, Reply, Request, Usage

if TYPE_CHECKING:
    from batchchat.structured import Confidence

EngineKind = Literal["local", "batch"]


@dataclass(frozen=True, slots=True)
class Answered:
    """An attempt that the provider answered and may bill, though its request goes on or stays open.

    `cost` is in `money.UNITS`, 0 if no price is known. With a `step` the request goes on from this answer: `payload` is
    kept until it is settled (`acceptance.journaled`). `unsure` is a whole answer of a step of a cascade that was not
    taken: equal requests need not ask that step again.
    """

    request: Request
    usage: Usage
    cost: int = 0
    step: int | None = None
    payload: Any = None
    unsure: Reply | None = None


@dataclass(slots=True)
class Settled:
    """A request's end: `failure` is None for a completion. `reply` is its last attempt's.

    What its last attempt cost is in the reply, what those before it cost in the request. `parsed` and `tolerated` are
    those of an answer that a schema accepted, `confidence` is how sure it is if the job measures that. `engine` names
    the engine that had the answer, None if it is the job's own.

    With `billed_apart` the cost of the last attempt is told by a `Billed`, and not by this outcome.

    `of_prompt` is there if the pass that is under way has not asked for this request: a batch of an earlier run may
    hold requests of a prompt that was edited since. It is that prompt's id. Of these, a `late` one must not take the
    place of another record of its row: it goes to the archive.
    """

    request: Request
    reply: Reply
    failure: Failure | None
    parsed: Any = None
    tolerated: bool = False
    confidence: Confidence | None = None
    engine: EngineKind | None = None
    of_prompt: str | None = None
    late: bool = False
    billed_apart: bool = False


@dataclass(frozen=True, slots=True)
class Billed:
    """What so many `answers` cost together. It is counted once for each `key`, however often it is told.

    `cost` is in `money.UNITS`, 0 if no price is known.
    """

    key: str
    answers: int
    usage: Usage
    cost: int


Outcome = Answered | Settled | Billed


class Sink(Protocol):
    """Where outcomes go. `put` never waits and never loses; `room` waits until the sink has caught up."""

    def put(self, outcome: Outcome) -> None:
        """Take an outcome over, at once: from here on the sink answers for it."""

    @property
    def full(self) -> bool:
        """Whether `room` should be awaited before more work is begun."""

    async def room(self) -> None:
        """Wait until the sink has caught up."""

    async def counted(self) -> bool:
        """Wait until all that was put so far is durable. Return false if the disk failed, and it never will be."""


Feed = AsyncGenerator[list[Request], None]


@dataclass(frozen=True, slots=True)
class EngineProgress:
    """What an engine has under way, and what it did since it began.

    `sending` counts attempts that are under way, `waiting` requests that wait for their next one. `attempts`,
    `retries`, `rate_limited` and `corrections` count from the start of the run. `oldest` holds the requests that have
    been in flight longest.
    """

    sending: int
    waiting: int
    attempts: int
    retries: int
    rate_limited: int
    corrections: int
    pace: Pace
    oldest: tuple[InFlight, ...]


def halted(error: BatchchatError) -> Event:
    """Return what is told when an engine takes no more work for this reason."""
    level: Level = "warning" if isinstance(error, StoppedEarly) else "error"
    return Event("halted", error.message, level, {"exit_code": error.exit_code, "remedy": error.remedy})


class Engine(Protocol):
    """Executes requests. All methods are called on the run's event loop."""

    @property
    def halt(self) -> BatchchatError | None:
        """Return why the engine ended early, None if it did not."""

    @property
    def answered(self) -> bool:
        """Return true once the model has answered in this run."""

    async def run(self, feed: Feed, sink: Sink) -> None:
        """Execute all requests of the feed, or those that can be until `drain`, `cancel` or a reason to halt."""

    def pause(self) -> None:
        """Launch nothing until `resume`. Attempts that are under way may end."""

    def resume(self) -> None:
        """Go on after `pause`."""

    def drain(self) -> None:
        """Take no more work. Attempts that are under way may end."""

    def cancel(self) -> None:
        """End the attempts that are under way, too. Their requests stay open."""

    def halt_for(self, error: BatchchatError) -> None:
        """Drain for this reason; the first one is kept in `halt`."""

    def retune(
        self, *, requests_per_minute: float | None, tokens_per_minute: float | None, concurrency: int | None
    ) -> None:
        """Take other ceilings for what is launched from now on; None means no ceiling."""

    def failed_before(self, custom_id: str) -> None:
        """Note that this request failed for good in an earlier run: if it fails again, that is no outage."""

    def release_held(self, sink: Sink) -> None:
        """Settle requests that the engine holds back, if nothing is left that could tell more about them.

        To be called when the feed itself waits for what is under way.
        """

    def progress(self, oldest: int = 0) -> EngineProgress:
        """Return the progress now, with the `oldest` requests that have been in flight longest."""
