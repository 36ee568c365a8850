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

import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from batchchat.acceptance import Accept, Acceptance, AskAgain, Fail, go_on, journaled, left_for, left_with
from batchchat.budget import Account, Hold
from batchchat.client import ChatClient
from batchchat.clock import running_clock
from batchchat.endpoints.endpoint import Endpoint
from batchchat.endpoints.route import EndpointRoute, RoutedPermit, Traffic
from batchchat.engines.causes import Causes
from batchchat.engines.halting import Outage, OutageStep, fatal_error
from batchchat.engines.port import Answered, EngineProgress, Feed, Settled, Sink, halted
from batchchat.engines.quota import DayQuota
from batchchat.engines.refusals import Refusal, Refusals
from batchchat.engines.supply import Supply
from batchchat.errors import BatchchatError, NeedsHuman, StoppedEarly
from batchchat.events import Event, InFlight, Listener
from batchchat.limits import Permit
from batchchat.records import Failure, Reply, Request, Usage, Verdict
from batchchat.retry import RetryAction, RetryPolicy, decide

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


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What an engine has around it: who hears of events, and what tests put in place of threads, chance and clock.

    `offload` runs blocking code off the event loop. `wall_clock_us` returns microseconds since the epoch.
    """

    listener: Listener
    rng: random.Random = field(default_factory=random.Random)
    offload: Callable[..., Awaitable[Any]] = anyio.to_thread.run_sync
    wall_clock_us: Callable[[], int] = lambda: time.time_ns() // 1000


class LocalEngine:
    """Sends each request of a feed to an endpoint until it has an outcome.

    `to` is the endpoint, or the route to one of several. `account` holds the run's budget: nothing is launched that
    does not fit it.
    `refusals` knows whether this model, and this job as it is, has been answered before. `acceptance` decides about
    answers; without one each is taken as it is. Counters are public: the run reads them for its snapshots.
    """

    def __init__(
        self,
        to: Endpoint | EndpointRoute,
        policy: RetryPolicy,
        surroundings: Surroundings,
        *,
        account: Account | None = None,
        refusals: Refusals | None = None,
        acceptance: Acceptance | None = None,
    ) -> None:
        # What every attempt uses is kept flat: a look-up more costs at each request. A single endpoint needs no route.
        self._route = to if isinstance(to, EndpointRoute) else None
        endpoint = to.targets[0].endpoints[0] if isinstance(to, EndpointRoute) else to
        self._client = endpoint.client
        self._own = endpoint.limiter
        self._limiter: Traffic = to if isinstance(to, EndpointRoute) else endpoint.limiter
        self._account = account
        self._estimator = endpoint.estimator
        self._policy = policy
        self._listener = surroundings.listener
        self._rng = surroundings.rng
        self._offload = surroundings.offload
        self._wall_clock_us = surroundings.wall_clock_us
        self._clock: Callable[[], float] = anyio.current_time
        self._acceptance = acceptance
        self.attempts = 0
        self.retries = 0
        self.rate_limited = 0
        self.corrections = 0
        self.halt: BatchchatError | None = None
        self._succeeded = False
        self._causes = Causes()
        self._quota = DayQuota()
        self._refusals = refusals if refusals is not None else Refusals()
        heads = to.heads if isinstance(to, EndpointRoute) else None
        self._supply = Supply(self._limiter, self._causes, self._refusals, surroundings.rng, heads)
        self._outage = Outage(self._limiter, policy, self._causes, self._refusals, self._supply)
        self._sending: dict[Request, float] = {}
        self._parked: list[_Seat] = []
        self._alarm: anyio.CancelScope | None = None
        self._draining = False
        self._paused = False
        self._workers = 0
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
            waiting=self._supply.waiting + len(self._refusals),
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
        for request in self._supply.delayed(limit - len(found)):
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
            self._listener(halted(error))
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
        """Read ahead from the feed. `drain` ends it wherever it waits, also for rows of a slow input."""
        with anyio.CancelScope() as scope:
            self._idle_scopes.add(scope)
            try:
                if self._draining:  # asked to stop before anything began
                    await feed.aclose()
                else:
                    await self._supply.read(feed, sink, lambda: self._staff(sink))
            finally:
                self._idle_scopes.discard(scope)
        self._wake_for_end()

    def _staff(self, sink: Sink) -> None:
        """Give what is ready to workers that wait, or start some, no more of them than the window is wide.

        Each gets its request before it is woken, so that no worker wakes without work. The worker that waits
        shortest is taken first: its data are most likely still in the processor's cache.
        """
        while self._parked and (request := self._next()) is not None:
            seat = self._parked.pop()
            seat.request = request
            seat.event.set()
        wanted = self._supply.startable
        while wanted > 0 and self._workers < self._limiter.window and not self._draining and self._group is not None:
            self._workers += 1
            self._group.start_soon(self._work, sink)
            wanted -= 1

    def _next(self) -> Request | None:
        """Take a request in hand, if there is one and the run is not paused."""
        return None if self._paused else self._supply.take()

    def _put_down(self, nbytes: int) -> None:
        """Count a request of this size out that a worker had, and wake others if it was too large for them to begin."""
        if self._supply.put_down(nbytes) and self._sink is not None and not self._draining:
            self._staff(self._sink)

    def _wake_for_end(self) -> None:
        """Wake every task that waits, once there is nothing left to do, so that each can return."""
        if self._draining or self._supply.exhausted:
            for scope in list(self._idle_scopes):
                scope.cancel()
            while self._parked:
                self._parked.pop().event.set()
            self._supply.read_on()
            if self._alarm is not None:
                self._alarm.cancel()

    # --- working

    async def _work(self, sink: Sink) -> None:
        try:
            while (request := await self._take()) is not None:
                size = len(request.body)
                try:
                    if not await self._serve(request, sink):
                        break
                finally:
                    self._put_down(size)
                if self._supply.ended:
                    self._wake_for_end()
                if sink.full:
                    await self._idle(sink.room)
        finally:
            self._workers -= 1
            self._wake_for_end()

    async def _serve(self, request: Request, sink: Sink) -> bool:
        """Make one attempt of a request, as soon as budget and limits let it. Return false if the worker is to end."""
        hold: Hold | None = None
        try:
            if self._account is not None:
                hold = await self._reserve(self._account, request)
                if hold is None:
                    return False
            tokens = self._estimator.reserve(request.prompt_tokens, request.max_tokens)
            now = self._clock()
            permit: Permit | RoutedPermit | None
            if self._route is None:
                permit = self._own.try_acquire(tokens, key=request.custom_id, now=now)
            else:
                permit = self._route.try_acquire(request, tokens, now)
            if permit is None:
                permit = await self._permit(request, tokens)
                if permit is None:
                    return not self._draining and self._end_without_target(request, sink)
                now = self._clock()
            # A stop or a pause may begin just as a wait for the budget, or for the permit, ends. After a pause the
            # request is launched first; after a stop it stays open.
            if self._draining or self._paused:
                permit.give_back(now)
                self._supply.put_first(request)
                return True
            if permit.probe and self._limiter.down:
                request = self._prober(request, permit)
            await self._attempt(request, permit, hold, sink, now)
        finally:
            if hold is not None and hold.open:
                hold.settle(None)
        return True

    async def _take(self) -> Request | None:
        """Wait for the next request and return it, counted as in hand. Return None at the end."""
        request: Request | None = None
        while not self._draining:
            if request is None:
                request = self._next()
            if request is not None or self._supply.exhausted:
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

    async def _permit(self, request: Request, tokens: int) -> Permit | RoutedPermit | None:
        """Wait for a permit. Return None if `drain` ended the wait, or nobody is left that the request may go to."""
        permit: Permit | RoutedPermit | None = None
        with anyio.CancelScope() as scope:
            self._idle_scopes.add(scope)
            try:
                if self._route is None:
                    permit = await self._own.acquire(tokens, key=request.custom_id)
                else:
                    permit = await self._route.acquire(request, tokens)
            finally:
                self._idle_scopes.discard(scope)
        return permit

    def _prober(self, request: Request, permit: Permit | RoutedPermit) -> Request:
        """Return the request to probe with: this one, or one from anywhere in the supply that is no larger.

        What stands together in the input may be bad together. So every other probe is another one, and each is if this
        request has failed before and may be the cause itself.
        """
        if self._limiter.failed_probes % 2 and request not in self._causes.suspects:
            return request
        other = self._supply.swap(request, self._estimator)
        permit.key = other.custom_id
        return other

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

    async def _attempt(
        self, request: Request, permit: Permit | RoutedPermit, hold: Hold | None, sink: Sink, now: float
    ) -> None:
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
            client, body = (self._client, request.body) if self._route is None else _at_endpoint(request, permit)
            reply = await client.send(body, timeout=max(0.001, remaining), started=now)
        except BatchchatError as error:
            self.halt_for(error)
            return
        finally:
            del self._sending[request]
            permit.settle(reply, now + reply.latency_s if reply is not None else None)
        if hold is not None:
            hold.settle(reply)
        request.active_s += reply.latency_s
        if self._route is not None and self._goes_on(request, reply, permit, sink):
            return
        acceptance = (
            self._acceptance if self._acceptance is not None and self._acceptance.concerns(request, reply) else None
        )
        if reply.completion is not None and reply.verdict is not Verdict.TRANSIENT:
            self._answered(request, reply, sink, sent_at=now)
        if acceptance is None and reply.verdict is Verdict.OK:
            sink.put(Settled(request, reply, None))
        elif acceptance is None:
            self._unsuccessful(request, reply, sink, probe=permit.probe)
        if acceptance is not None:
            await self._accept(acceptance, request, reply, sink)
        if self._workers < self._limiter.window:
            self._staff(sink)

    def _answered(self, request: Request, reply: Reply, sink: Sink, *, sent_at: float) -> None:
        """Take what an answer tells beyond itself: also one that was cut off, filtered or a refusal of the model's."""
        self._succeeded = True
        if self._quota.refusals:
            self._quota.answered(sent_at)
        if self._causes.suspects:
            self._causes.settled(request)
        refused = self._refusals.answered(sent_at)
        if refused:
            self._fail_all(refused, sink)
            self._staff(sink)
        if reply.verdict is Verdict.OK and reply.usage is not None:
            self._estimator.learn(request.prompt_tokens, reply.usage)

    async def _accept(self, acceptance: Acceptance, request: Request, reply: Reply, sink: Sink) -> None:
        """Settle a request by its answer, or let it ask again. A long answer is judged off the event loop."""
        if _size(reply) <= _LONG_ANSWER and len(request.body) <= _LONG_BODY:
            decision = acceptance.decide(request, reply)
        else:
            with anyio.CancelScope(shield=True):  # what was answered reaches the sink
                decision = await self._offload(acceptance.decide, request, reply)
        if isinstance(decision, AskAgain) and request.active_s >= self._policy.row_deadline:
            over = f"the row's deadline of {self._policy.row_deadline:g} s is over"
            decision = Fail(Failure(decision.kind, f"{decision.reasons} ({over})", 200))
        if isinstance(decision, Accept):
            sink.put(Settled(request, reply, None, decision.parsed, decision.tolerated, decision.confidence))
        elif isinstance(decision, Fail):
            if not self._falls_back(request, reply, decision.failure, sink):
                sink.put(Settled(request, reply, decision.failure))
        else:
            usage = reply.usage or Usage()
            request.add_billed(reply)
            step = request.before + (request.steps.answers if request.steps is not None else 0)
            sink.put(Answered(request, usage, reply.cost or 0, step, journaled(request, reply)))
            go_on(request, reply, decision)
            self.corrections += decision.corrects
            self._supply.put_due(request)
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
                self._rate_limited(reply)
            else:
                request.active_s += decision.delay_s
            if decision.counts:
                request.counted = counted
            self._causes.failed(request, reply)
            self._put_billed(request, reply, sink)
            first = self._supply.delay(request, anyio.current_time() + decision.delay_s)
            if first and self._alarm is not None:
                self._alarm.cancel()
            if probe and self._outage.asks_the_rest():
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

    def _rate_limited(self, reply: Reply) -> None:
        self.rate_limited += 1
        used_up = self._quota.refused(reply, self._clock() - reply.latency_s, self._wall_clock_us() / 1e6)
        if used_up is not None:
            self.halt_for(used_up)

    def _fail(self, request: Request, reply: Reply, reason: str | None, sink: Sink) -> None:
        assert reply.failure is not None  # noqa: S101 - what a verdict other than OK means
        if self._falls_back(request, reply, reply.failure, sink):
            return
        message = f"{reply.failure.message} ({reason})" if reason else reply.failure.message
        failure = Failure(reply.failure.kind, message, reply.failure.http_status)
        sink.put(Settled(request, *left_with(request, reply, failure)))

    # --- several endpoints

    def _goes_on(self, request: Request, reply: Reply, permit: Permit | RoutedPermit, sink: Sink) -> bool:
        """Take what an attempt tells of its endpoint. Return true if the request goes on at another one, at no cost."""
        assert self._route is not None and isinstance(permit, RoutedPermit)  # noqa: S101, PT018 - who gave the permit
        request.target = permit.target
        if reply.completion is not None:
            self._route.answered_by(permit.endpoint)
        if reply.verdict is Verdict.OK or not self._route.goes_on(request, reply, permit):
            return False
        # The time is the endpoint's fault too: a server that hangs must not use up the deadline of a row.
        request.active_s -= reply.latency_s
        self.retries += 1
        if reply.verdict is Verdict.RATE_LIMIT:
            self.rate_limited += 1
        self._put_billed(request, reply, sink)
        self._supply.put_due(request)
        self._staff(sink)
        return True

    def _falls_back(self, request: Request, reply: Reply, failure: Failure, sink: Sink) -> bool:
        """Ask the next target in place of settling this failure, if one is asked for its kind."""
        route = self._route
        if route is None or not route.fall_back(request, failure.kind):
            return False
        steps = request.steps
        if reply.completion is None:
            self._put_billed(request, reply, sink)
        else:
            # Kept until the request is settled, so that no kill makes the first target answer again.
            step = request.before + (steps.answers if steps is not None else 0)
            request.add_billed(reply)
            payload = left_for(request, reply, failure)
            sink.put(Answered(request, reply.usage or Usage(), reply.cost or 0, step, payload))
            request.before = step + 1
        if steps is not None:
            request.body, request.prompt_tokens, request.steps = steps.body, steps.prompt_tokens, None
        request.counted = request.unsent = request.broke = 0
        request.left = (replace(reply, usage=None, cost=None), failure)
        self._supply.put_due(request)
        self._staff(sink)
        return True

    def _end_without_target(self, request: Request, sink: Sink) -> bool:
        """Settle a request whose further targets went down before they could answer: by what it had before.

        Return true: the worker goes on.
        """
        if request.left is not None:
            sink.put(Settled(request, *request.left))
        else:
            request.target = 0
            self._supply.put_due(request)
        return True

    def _put_billed(self, request: Request, reply: Reply, sink: Sink) -> None:
        if reply.usage is not None:
            request.add_billed(reply)
            sink.put(Answered(request, reply.usage, reply.cost or 0))

    # --- trying again

    async def _ring(self, sink: Sink) -> None:
        """Hand over delayed requests as they come due; sleeps until the next one, or until an earlier one is put in."""
        while not (self._draining or self._supply.exhausted):
            now = anyio.current_time()
            self._supply.collect_due(now)
            self._staff(sink)
            due = self._supply.next_due
            with anyio.CancelScope() as self._alarm:
                await anyio.sleep(due - now if due is not None else _LONG_S)
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
        if not self._draining and not self._supply.left and not self._halt_for_refusals(ended=True):
            self._fail_all(self._refusals.let_go(), sink)

    def _fail_all(self, refused: list[Refusal], sink: Sink) -> None:
        for request, reply in refused:
            self._fail(request, reply, None, sink)

    async def _monitor(self, sink: Sink) -> None:
        """Watch for an outage that lasts too long, a host that never answers, and a feed that gives nothing."""
        given = -1
        supply = self._supply
        while not (self._draining or supply.exhausted):
            # Nobody asks the provider during a pause, so nothing can tell whether it is back.
            step = None if self._paused else self._outage.next_step(answered=self._succeeded)
            if step is OutageStep.ASK_THE_REST:
                self._limiter.hurry()
            elif step is OutageStep.TAKE_FOR_CAUSES:
                self._take_for_causes()
            elif step is not None:
                self.halt_for(step)
            if self._limiter.down:
                supply.read_on()  # it reaches further now
            # The feed has given nothing since the last look: what it gave is all there is to try.
            if given == supply.given and self._refusals.reading:
                self._refusals.read_on()
                self._staff(sink)
            given = supply.given if self._refusals.reading else -1
            await self._idle(lambda: anyio.sleep(_MONITOR_S))

    def _take_for_causes(self) -> None:
        """Let the requests that are left go on, each with its own attempts: no other request can show more."""
        suspects = self._causes.suspects
        message = f"{len(suspects)} requests are left and each fails: they are taken for the cause, not the provider"
        self._listener(Event("requests_suspected", message, "warning"))
        self._limiter.blame([request.custom_id for request in suspects])


def _at_endpoint(request: Request, permit: Permit | RoutedPermit) -> tuple[ChatClient, bytes]:
    """Return who sends this attempt, and what is sent."""
    assert isinstance(permit, RoutedPermit)  # noqa: S101 - what a route grants
    return permit.endpoint.client, permit.endpoint.body_of(request)


def _size(reply: Reply) -> int:
    calls = (reply.completion.tool_calls if reply.completion is not None else None) or ()
    return len(reply.text or "") + sum(len(call.get("arguments") or "") for call in calls)
