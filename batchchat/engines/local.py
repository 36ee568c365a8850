"""The local engine: a pool of workers that send each request as one HTTP exchange.

This is the one place where client, limits and retry meet. A worker's loop: take a request, get a permit, make an
attempt, settle the permit, then settle the request or put it aside to be tried again. A request that waits holds
neither a permit nor a worker: it lies in a heap until it is due, and due requests go before new ones. There are as
many workers as the limiter's window is wide, and they are started as the window opens, so that nothing is created
ahead of a free slot.

Stopping has two steps. `drain` takes no more work: workers that wait return, attempts that are under way may end.
`cancel` ends those too. Whatever was answered has reached the sink by then; everything else simply stays open.
"""

from __future__ import annotations

import heapq
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from itertools import count
from typing import Any

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from batchchat.budget import Account, Hold
from batchchat.client import ChatClient
from batchchat.clock import running_clock
from batchchat.engines.causes import Causes
from batchchat.engines.halting import Outage, fatal_error
from batchchat.engines.port import Answered, EngineProgress, Feed, Settled, Sink
from batchchat.engines.refusals import Refusal, Refusals
from batchchat.errors import BatchchatError, NeedsHuman, StoppedEarly
from batchchat.events import Event, InFlight, Level, Listener
from batchchat.limits import Limiter, Permit, TokenEstimator
from batchchat.records import Failure, Reply, Request, Usage, Verdict
from batchchat.retry import RetryAction, RetryPolicy, decide
from batchchat.review import Accept, AskAgain, Fail, Reviewer, go_on, journaled, left_with

_TRIES_FOR_ANOTHER = 32
"""Random looks for a request to probe with that is no larger: enough if one in ten is. Chosen, not measured."""
_DELAYED_MAX = 10_000
"""Requests that may wait for another attempt before no new one is begun: it bounds memory in a long outage."""
_READY_MIN = 512
"""Requests that are read ahead at least, so that a slow read of the input leaves no worker idle."""
_READY_BYTES = 16 * 2**20
"""Bytes that are read ahead at most: four requests of 4 MiB, with an image each. A row is in memory as a request, as
values and as its column: measured with rows of 200 KB, twice as many bytes took 50 MB more and were no faster."""
_HAND_BYTES = 128 * 2**20
"""Bytes of requests that workers have at once: rows of 60 MB are not sent 32 at a time. Chosen, not measured."""
_READY_FAR = 16_384
"""Requests that are read ahead, within the same bytes, if rows that stand together may all be bad."""
_DELAYED_BYTES = 256 * 2**20
"""Bytes that may wait for another attempt: like `_DELAYED_MAX`, for large requests."""
_MONITOR_S = 1.0
"""Seconds between two looks at an outage. `retry.outage` is in minutes, so a second more does not matter."""
_LONG_S = 3600.0
"""How long to sleep if nothing is delayed. An alarm ends the sleep; it has no meaning of its own."""
_LONG_ANSWER = 50_000
"""Characters from which on an answer is judged in a thread: up to there it takes about a millisecond."""
_LONG_BODY = 500_000
"""Bytes of a request (images, mostly) from which on that is done too: a correction repeats them."""


class _Seat:
    """Where a worker waits. `request` is what it is woken for, None if there is no more work."""

    __slots__ = ("event", "request")

    def __init__(self) -> None:
        self.event = anyio.Event()
        self.request: Request | None = None


class LocalEngine:
    """Executes requests over one client under one limiter.

    `account` holds the run's budget: nothing is launched that does not fit it. `answered_before` says that this model
    has answered this output's requests in an earlier run, so that a few refusals are less suspicious; `job_answered`
    that it has answered this job as it is. `reviewer` decides about answers; without one each is taken as it is.
    `offload` runs blocking code off the event loop. Counters are public: the run reads them for its snapshots.
    """

    def __init__(
        self,
        client: ChatClient,
        limiter: Limiter,
        policy: RetryPolicy,
        *,
        estimator: TokenEstimator,
        listener: Listener,
        account: Account | None = None,
        rng: random.Random | None = None,
        answered_before: bool = False,
        job_answered: bool = False,
        reviewer: Reviewer | None = None,
        offload: Callable[..., Awaitable[Any]] = anyio.to_thread.run_sync,
        wall_clock_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self._client = client
        self._limiter = limiter
        self._policy = policy
        self._listener = listener
        self._estimator = estimator
        self._account = account
        self._rng = rng or random.Random()  # noqa: S311 - jitter, not cryptography
        self._clock: Callable[[], float] = anyio.current_time
        self._wall_clock_us = wall_clock_us
        self.attempts = 0
        self.retries = 0
        self.rate_limited = 0
        self.corrections = 0
        self.halt: BatchchatError | None = None
        self._reviewer = reviewer
        self._offload = offload
        self._succeeded = False
        self._causes = Causes()
        self._ready: deque[Request] = deque()
        self._ready_bytes = self._delayed_bytes = self._given = 0
        self._due: deque[Request] = deque()
        self._delayed: list[tuple[float, int, Request]] = []
        self._order = count()
        self._sending: dict[Request, float] = {}
        self._refusals = Refusals(model_answered=answered_before, job_answered=job_answered)
        self._outage = Outage(limiter, policy, self._causes, self._refusals)
        self._parked: list[_Seat] = []
        self._feed_done = False
        self._feed_room = anyio.Event()
        self._alarm: anyio.CancelScope | None = None
        self._draining = False
        self._paused = False
        self._workers = 0
        self._in_hand = self._hand_bytes = 0
        self._idle_scopes: set[anyio.CancelScope] = set()
        self._scope: anyio.CancelScope | None = None
        self._group: TaskGroup | None = None
        self._sink: Sink | None = None

    # --- what the run sees

    @property
    def answered(self) -> bool:
        """Return true once the model has answered in this run."""
        return self._succeeded

    def progress(self, oldest: int = 0) -> EngineProgress:
        """Return what is under way and what was done, with the `oldest` requests that have been in flight longest."""
        return EngineProgress(
            sending=len(self._sending),
            waiting=len(self._delayed) + len(self._due) + len(self._refusals),
            attempts=self.attempts,
            retries=self.retries,
            rate_limited=self.rate_limited,
            corrections=self.corrections,
            pace=self._limiter.pace(),
            oldest=self._oldest(oldest) if oldest else (),
        )

    def _oldest(self, limit: int) -> tuple[InFlight, ...]:
        """Return the attempts that have been under way longest, then those that wait to be tried again."""
        now = anyio.current_time()
        found = []
        for request, since in self._sending.items():
            found.append(InFlight(request.row_index, request.custom_id, request.attempts, now - since, "sending"))
            if len(found) == limit:
                return tuple(found)
        for _, _, request in heapq.nsmallest(limit - len(found), self._delayed):
            age = (self._wall_clock_us() - request.started_at) / 1e6
            found.append(InFlight(request.row_index, request.custom_id, request.attempts, age, "waiting"))
        return tuple(found)

    def retune(
        self, *, requests_per_minute: float | None, tokens_per_minute: float | None, concurrency: int | None
    ) -> None:
        """Take other ceilings for what is launched from now on; None means no ceiling."""
        self._limiter.retune(
            requests_per_minute=requests_per_minute, tokens_per_minute=tokens_per_minute, concurrency=concurrency
        )
        # A wider window has room for more workers than there are.
        if self._sink is not None:
            self._staff(self._sink)

    def failed_before(self, custom_id: str) -> None:
        """Note that this request failed for good in an earlier run: if it fails again, that is no outage."""
        self._limiter.suspect(custom_id)

    def pause(self) -> None:
        """Launch nothing until `resume`. Attempts that are under way may end."""
        self._paused = True

    def resume(self) -> None:
        """Go on after `pause`."""
        if not self._paused:
            return
        self._paused = False
        self._outage.resumed_at = anyio.current_time()
        if self._sink is not None:
            self._staff(self._sink)

    def drain(self) -> None:
        """Take no more work; attempts that are under way may end."""
        if self._draining:
            return
        self._draining = True
        self._wake_for_end()

    def cancel(self) -> None:
        """End the attempts that are under way, too. Their requests stay open."""
        self.drain()
        if self._scope is not None:
            self._scope.cancel()

    def halt_for(self, error: BatchchatError) -> None:
        """Take no more work for this reason; the first one is kept in `halt`. Attempts under way may end."""
        if self.halt is None:
            self.halt = error
            level: Level = "warning" if isinstance(error, StoppedEarly) else "error"
            fields = {"exit_code": error.exit_code, "remedy": error.remedy}
            self._listener(Event("halted", error.message, level, fields))
        self.drain()

    async def run(self, feed: Feed, sink: Sink) -> None:
        """Execute all requests of the feed, or those that can be until `drain`, `cancel` or a reason to halt.

        Returns when nothing is under way any more. Why it ended early is in `halt`.
        """
        self._clock = running_clock()
        try:
            with anyio.CancelScope() as self._scope:
                async with anyio.create_task_group() as group:
                    self._group, self._sink = group, sink
                    group.start_soon(self._pump, feed, sink)
                    group.start_soon(self._monitor, sink)
                    group.start_soon(self._ring, sink)
        finally:
            self._group = self._sink = None
        if not self._draining and not self._halt_for_refusals(ended=True):
            self._fail_all(self._refusals.let_go(), sink)

    # --- feeding

    async def _pump(self, feed: Feed, sink: Sink) -> None:
        """Move requests from the feed to the workers, keeping a small bounded supply ahead of them.

        `drain` ends it wherever it waits, also for rows of a slow input.
        """
        with anyio.CancelScope() as scope:
            self._idle_scopes.add(scope)
            try:
                async with aclosing(feed):
                    if self._draining:  # asked to stop before anything began
                        return
                    async for requests in feed:
                        self._ready.extend(requests)
                        self._ready_bytes += sum([len(request.body) for request in requests])
                        self._given += 1
                        self._staff(sink)
                        while len(self._ready) >= self._reach() or self._ready_bytes >= _READY_BYTES:
                            self._feed_room = anyio.Event()
                            await self._feed_room.wait()
                        if sink.full:
                            await sink.room()
                    self._feed_done = True
                    self._staff(sink)
            finally:
                self._idle_scopes.discard(scope)
        self._wake_for_end()

    def _supply(self) -> int:
        return max(_READY_MIN, 2 * self._limiter.window)

    def _reach(self) -> int:
        """Return how many requests are read ahead now."""
        supply = self._supply()
        # What stands together in the input may be bad together: a probe is to come from far beyond it.
        return max(supply, _READY_FAR) if self._refusals.reading or self._limiter.down else supply

    def _staff(self, sink: Sink) -> None:
        """Give what is ready to workers that wait, or start some, no more of them than the window is wide.

        Each gets its request before it is woken, so that no worker wakes without work. The worker that waits
        shortest is taken first: its data are most likely still in the processor's cache.
        """
        while self._parked and (request := self._next()) is not None:
            seat = self._parked.pop()
            seat.request = request
            seat.event.set()
        wanted = len(self._ready) + len(self._due)
        while wanted > 0 and self._workers < self._limiter.window and not self._draining and self._group is not None:
            self._workers += 1
            self._group.start_soon(self._work, sink)
            wanted -= 1

    def _next(self) -> Request | None:
        """Take a request in hand, if there is one and the run is not paused."""
        if self._paused:
            return None
        if self._due:
            return self._in_hands(self._due.popleft())
        if self._ready and self._may_take:
            request = self._try_another() if self._refusals.trying else self._draw()
            if request is not None:
                self._make_room(request)
                return self._in_hands(request)
        return None

    def _in_hands(self, request: Request) -> Request:
        """Count a request that a worker takes."""
        self._in_hand += 1
        self._hand_bytes += len(request.body)
        return request

    def _put_down(self, nbytes: int) -> None:
        """Count a request of this size out that a worker had, and wake others if it was too large for them to begin."""
        crowded = self._hand_bytes >= _HAND_BYTES
        self._in_hand -= 1
        self._hand_bytes -= nbytes
        if crowded and self._sink is not None and not self._draining:
            self._staff(self._sink)

    def _draw(self) -> Request:
        """Take the next request, or one from anywhere in the supply while some that failed may be the cause themselves.

        So a block of bad rows is mixed with others, whose answers show that the provider is up.
        """
        if not self._causes.suspects or len(self._ready) == 1:
            return self._ready.popleft()
        place = self._rng.randrange(len(self._ready))
        request = self._ready[place]
        del self._ready[place]
        return request

    def _try_another(self) -> Request | None:
        """Return a row to try while refusals are held, None if none is to be tried now."""
        if self._refusals.reading:
            if not (self._feed_done or len(self._ready) >= _READY_FAR or self._ready_bytes >= _READY_BYTES):
                self._feed_room.set()
                return None
            self._refusals.read_on()
        return self._refusals.pick(self._ready, self._rng)

    @property
    def _may_take(self) -> bool:
        """Return true if a new request may be begun, although it may come to those that wait for another attempt."""
        return (
            len(self._delayed) < _DELAYED_MAX
            and self._delayed_bytes < _DELAYED_BYTES
            and self._hand_bytes < _HAND_BYTES
        )

    def _make_room(self, taken: Request) -> None:
        self._ready_bytes -= len(taken.body)
        if len(self._ready) * 2 < self._supply() and self._ready_bytes * 2 < _READY_BYTES:
            self._feed_room.set()

    def _exhausted(self) -> bool:
        return self._feed_done and not (self._ready or self._due or self._delayed or self._in_hand)

    def _wake_for_end(self) -> None:
        """Wake every task that waits, once there is nothing left to do, so that each can return."""
        if self._draining or self._exhausted():
            for scope in list(self._idle_scopes):
                scope.cancel()
            while self._parked:
                self._parked.pop().event.set()
            self._feed_room.set()
            if self._alarm is not None:
                self._alarm.cancel()

    # --- working

    async def _work(self, sink: Sink) -> None:
        try:
            while (request := await self._take()) is not None:
                hold: Hold | None = None
                size = len(request.body)
                try:
                    if self._account is not None:
                        hold = await self._reserve(self._account, request)
                        if hold is None:
                            break
                    tokens = self._estimator.reserve(request.prompt_tokens, request.max_tokens)
                    now = self._clock()
                    permit = self._limiter.try_acquire(tokens, key=request.custom_id, now=now)
                    if permit is None:
                        permit = await self._permit(request, tokens)
                        if permit is None:
                            break
                        now = self._clock()
                    # A stop or a pause may begin just as a wait for the budget, or for the permit, ends. After a
                    # pause the request is launched first; after a stop it stays open.
                    if self._draining or self._paused:
                        permit.give_back(now)
                        self._due.appendleft(request)
                        continue
                    if permit.probe and self._limiter.down:
                        request = self._prober(request, permit)
                    await self._attempt(request, permit, hold, sink, now)
                finally:
                    if hold is not None and hold.open:
                        hold.settle(None)
                    self._put_down(size)
                if self._feed_done:
                    self._wake_for_end()
                if sink.full:
                    await self._idle(sink.room)
        finally:
            self._workers -= 1
            self._wake_for_end()

    async def _take(self) -> Request | None:
        """Wait for the next request and return it, counted as in hand. Return None at the end."""
        request: Request | None = None
        while not self._draining:
            if request is None:
                request = self._next()
            if request is not None or self._exhausted():
                return request
            seat = _Seat()
            self._parked.append(seat)
            await seat.event.wait()
            request = seat.request
        if request is not None:
            self._put_down(len(request.body))  # it stays open
        return None

    async def _reserve(self, account: Account, request: Request) -> Hold | None:
        """Wait for room in the budget. Return None if it is used up, or `drain` ended the wait."""
        prompt, completion = self._estimator.at_most(request.prompt_tokens, request.max_tokens)
        hold: Hold | None = None
        try:
            hold = account.try_reserve(prompt, completion)
            if hold is None:
                with anyio.CancelScope() as scope:
                    self._idle_scopes.add(scope)
                    try:
                        hold = await account.reserve(prompt, completion)
                    finally:
                        self._idle_scopes.discard(scope)
        except StoppedEarly as error:
            self.halt_for(error)
        return hold

    async def _permit(self, request: Request, tokens: int) -> Permit | None:
        """Wait for a permit. Return None if `drain` ended the wait: the request stays open."""
        permit: Permit | None = None
        with anyio.CancelScope() as scope:
            self._idle_scopes.add(scope)
            try:
                permit = await self._limiter.acquire(tokens, key=request.custom_id)
            finally:
                self._idle_scopes.discard(scope)
        return permit

    def _prober(self, request: Request, permit: Permit) -> Request:
        """Return the request to probe with: this one, or one from anywhere in the supply that is no larger.

        What stands together in the input may be bad together. So every other probe is another one, and each is if this
        request has failed before and may be the cause itself.
        """
        keeps = self._limiter.failed_probes % 2 and request not in self._causes.suspects
        if keeps or not self._ready or not self._may_take:
            return request
        most = self._estimator.at_most(request.prompt_tokens, request.max_tokens)
        for _ in range(_TRIES_FOR_ANOTHER):
            place = self._rng.randrange(len(self._ready))
            other = self._ready[place]
            prompt, completion = self._estimator.at_most(other.prompt_tokens, other.max_tokens)
            if prompt <= most[0] and completion <= most[1]:
                del self._ready[place]
                self._make_room(other)
                self._due.append(request)
                permit.key = other.custom_id
                return other
        return request

    async def _idle(self, wait: Callable[[], Awaitable[None]]) -> None:
        """Wait for something that `drain` ends."""
        if self._draining:
            return
        with anyio.CancelScope() as scope:
            self._idle_scopes.add(scope)
            try:
                await wait()
            finally:
                self._idle_scopes.discard(scope)

    async def _attempt(self, request: Request, permit: Permit, hold: Hold | None, sink: Sink, now: float) -> None:
        if not request.started_at:
            request.started_at = self._wall_clock_us()
        request.attempts += 1
        self.attempts += 1
        self._sending[request] = now
        if hold is not None:
            hold.launched = True
        reply: Reply | None = None
        try:
            remaining = self._policy.row_deadline - request.active_s
            reply = await self._client.send(request.body, timeout=max(0.001, remaining), started=now)
        except BatchchatError as error:
            self.halt_for(error)
            return
        finally:
            del self._sending[request]
            permit.settle(reply, now + reply.latency_s if reply is not None else None)
        if hold is not None:
            hold.settle(reply)
        request.active_s += reply.latency_s
        reviewer = self._reviewer if self._reviewer is not None and self._reviewer.concerns(request, reply) else None
        if reply.completion is not None and reply.verdict is not Verdict.TRANSIENT:
            self._answered(request, reply, sink, sent_at=now)
        if reviewer is None and reply.verdict is Verdict.OK:
            sink.put(Settled(request, reply, None))
        elif reviewer is None:
            self._unsuccessful(request, reply, sink, probe=permit.probe)
        if reviewer is not None:
            await self._review(reviewer, request, reply, sink)
        if self._workers < self._limiter.window:
            self._staff(sink)

    def _answered(self, request: Request, reply: Reply, sink: Sink, *, sent_at: float) -> None:
        """Take what an answer tells beyond itself: also one that was cut off, filtered or a refusal of the model's."""
        self._succeeded = True
        if self._causes.suspects:
            self._causes.settled(request)
        refused = self._refusals.answered(sent_at)
        if refused:
            self._fail_all(refused, sink)
            self._staff(sink)
        if reply.verdict is Verdict.OK and reply.usage is not None:
            self._estimator.learn(request.prompt_tokens, reply.usage)

    async def _review(self, reviewer: Reviewer, request: Request, reply: Reply, sink: Sink) -> None:
        """Settle a request by its answer, or let it ask again. A long answer is judged off the event loop."""
        if _size(reply) <= _LONG_ANSWER and len(request.body) <= _LONG_BODY:
            decision = reviewer.review(request, reply)
        else:
            with anyio.CancelScope(shield=True):  # what was answered reaches the sink
                decision = await self._offload(reviewer.review, request, reply)
        if isinstance(decision, AskAgain) and request.active_s >= self._policy.row_deadline:
            over = f"the row's deadline of {self._policy.row_deadline:g} s is over"
            decision = Fail(Failure(decision.kind, f"{decision.reasons} ({over})", 200))
        if isinstance(decision, Accept):
            sink.put(Settled(request, reply, None, decision.parsed, decision.tolerated))
        elif isinstance(decision, Fail):
            sink.put(Settled(request, reply, decision.failure))
        else:
            usage = reply.usage or Usage()
            request.add_billed(reply)
            step = request.steps.answers if request.steps is not None else 0
            sink.put(Answered(request, usage, reply.cost or 0, step, journaled(request, reply)))
            go_on(request, reply, decision)
            self.corrections += decision.corrects
            self._due.append(request)
            self._staff(sink)

    def _unsuccessful(self, request: Request, reply: Reply, sink: Sink, *, probe: bool) -> None:
        assert reply.failure is not None  # noqa: S101 - what a verdict other than OK means
        if not reply.sent:
            self._outage.last_unreached = reply.failure.message
            request.unsent += 1
        # A probe of a provider that is down is the run's own question: its failure costs the row nothing.
        counted = request.counted + (not probe)
        decision = decide(
            reply,
            attempts=counted,
            active_s=request.active_s,
            policy=self._policy,
            rng=self._rng,
            unsent=request.unsent,
        )
        if decision.again:
            self.retries += 1
            if decision.action is RetryAction.RATE_LIMIT:
                self.rate_limited += 1
            else:
                request.active_s += decision.delay_s
            if decision.counts:
                request.counted = counted
            self._causes.failed(request, reply)
            self._put_billed(request, reply, sink)
            self._delay(request, decision.delay_s)
            if probe and self._outage.asks_the_rest(self._feed_done, self._delayed):
                self._limiter.hurry()
        elif decision.action is RetryAction.FATAL:
            self._put_billed(request, reply, sink)
            self.halt_for(fatal_error(reply.failure))
        elif decision.action is RetryAction.REFUSED or self._refusals.may_concern_all(reply):
            self._causes.settled(request)
            others = self._refusals.add(request, reply, now=anyio.current_time(), under_way=self._sending)
            self._fail_all(others, sink)
            if not self._halt_for_refusals():
                self._staff(sink)
        else:
            self._causes.settled(request)
            self._refusals.excused(request)
            self._fail(request, reply, decision.reason, sink)
            if self._refusals and not self._halt_for_refusals():
                self._staff(sink)

    def _fail(self, request: Request, reply: Reply, reason: str | None, sink: Sink) -> None:
        assert reply.failure is not None  # noqa: S101 - what a verdict other than OK means
        message = f"{reply.failure.message} ({reason})" if reason else reply.failure.message
        failure = Failure(reply.failure.kind, message, reply.failure.http_status)
        sink.put(Settled(request, *left_with(request, reply, failure)))

    def _put_billed(self, request: Request, reply: Reply, sink: Sink) -> None:
        if reply.usage is not None:
            request.add_billed(reply)
            sink.put(Answered(request, reply.usage, reply.cost or 0))

    # --- trying again

    def _delay(self, request: Request, delay_s: float) -> None:
        due = anyio.current_time() + delay_s
        first = not self._delayed or due < self._delayed[0][0]
        heapq.heappush(self._delayed, (due, next(self._order), request))
        self._delayed_bytes += len(request.body)
        if first and self._alarm is not None:
            self._alarm.cancel()

    async def _ring(self, sink: Sink) -> None:
        """Hand over delayed requests as they come due; sleeps until the next one, or until an earlier one is put in."""
        while not (self._draining or self._exhausted()):
            now = anyio.current_time()
            while self._delayed and self._delayed[0][0] <= now:
                request = heapq.heappop(self._delayed)[2]
                self._delayed_bytes -= len(request.body)
                self._due.append(request)
            self._staff(sink)
            with anyio.CancelScope() as self._alarm:
                await anyio.sleep(self._delayed[0][0] - now if self._delayed else _LONG_S)
        self._alarm = None

    # --- halting

    def _halt_for_refusals(self, *, ended: bool = False) -> bool:
        message = self._refusals.verdict(ended=ended)
        if message is not None:
            self.halt_for(NeedsHuman(message, remedy=self._refusals.remedy))
        return message is not None

    def release_held(self, sink: Sink) -> None:
        """Settle refusals that are held back, if nothing is left that could tell whether they are about their own rows.

        To be called when the feed itself waits for what is under way.
        """
        busy = self._draining or self._ready or self._due or self._delayed or self._in_hand
        if not busy and not self._halt_for_refusals(ended=True):
            self._fail_all(self._refusals.let_go(), sink)

    def _fail_all(self, refused: list[Refusal], sink: Sink) -> None:
        for request, reply in refused:
            self._fail(request, reply, None, sink)

    async def _monitor(self, sink: Sink) -> None:
        """Watch for an outage that lasts too long, a host that never answers, and a feed that gives nothing."""
        given = -1
        while not (self._draining or self._exhausted()):
            outage = self._outage.seconds()
            if self._paused:
                pass  # nobody asks the provider now, so nothing can tell whether it is back
            elif outage and self._outage.asks_the_rest(self._feed_done, self._delayed) and self._all_suspected():
                self._take_for_causes()
            elif outage > self._policy.outage:
                self.halt_for(self._outage.error(outage, answered=self._succeeded))
            elif outage and self._outage.asks_the_rest(self._feed_done, self._delayed):
                self._limiter.hurry()
            elif self._outage.unreachable:
                self.halt_for(self._outage.unreachable_error())
            if self._limiter.down:
                self._feed_room.set()  # `_reach` is further now
            if given == self._given and self._refusals.reading:
                self._refusals.read_on()
                self._staff(sink)
            given = self._given if self._refusals.reading else -1
            await self._idle(lambda: anyio.sleep(_MONITOR_S))

    def _all_suspected(self) -> bool:
        """Return true if every request that is left may have caused its last failure itself."""
        left = len(self._ready) + len(self._due) + len(self._delayed) + self._in_hand
        return 0 < left == len(self._causes.suspects)

    def _take_for_causes(self) -> None:
        """Let the requests that are left go on, each with its own attempts: no other request can show more."""
        suspects = self._causes.suspects
        message = f"{len(suspects)} requests are left and each fails: they are taken for the cause, not the provider"
        self._listener(Event("requests_suspected", message, "warning"))
        self._limiter.blame([request.custom_id for request in suspects])


def _size(reply: Reply) -> int:
    calls = (reply.completion.tool_calls if reply.completion is not None else None) or ()
    return len(reply.text or "") + sum(len(call.get("arguments") or "") for call in calls)
