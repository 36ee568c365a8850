"""The local engine: a pool of senders that send each request as one HTTP exchange.

This is the one place where client, limits and retry meet. A sender's loop: take a request, get a permit, make an
attempt, settle the permit, then have the request settled (`settling`). A request that waits holds neither a
permit nor a sender: it lies in a heap until it is due, and due requests go before new ones. There are as many senders
as the limiter's window is wide (`pool`), and they are started as the window opens, so that nothing is created ahead of
a free slot.

Stopping has two steps. `drain` takes no more work: senders that wait return, attempts that are under way may end.
`cancel` ends those too. Whatever was answered has reached the sink by then; everything else simply stays open.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import anyio

from batchchat.acceptance import Acceptance
from batchchat.budget import Account, Hold
from batchchat.client import ChatClient
from batchchat.clock import running_clock
from batchchat.endpoints.endpoint import Endpoint
from batchchat.endpoints.route import EndpointRoute, RoutedPermit
from batchchat.endpoints.traffic import Traffic
from batchchat.engines.monitor import OutageMonitor
from batchchat.engines.port import EngineProgress, Feed, Sink
from batchchat.engines.refusals import Refusals
from batchchat.engines.settling import Settler
from batchchat.engines.state import EngineState, Surroundings
from batchchat.errors import BatchchatError, StoppedEarly
from batchchat.events import InFlight
from batchchat.limits import Permit
from batchchat.records import Reply, Request
from batchchat.retry import RetryPolicy


class LocalEngine:
    """Sends each request of a feed to an endpoint until it has an outcome.

    `to` is the endpoint, or the route to one of several. `account` holds the run's budget: nothing is launched that
    does not fit it. `refusals` knows whether this model, and this job as it is, has been answered before. `acceptance`
    decides about answers; without one each is taken as it is.
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
        self._to = to
        self._client = endpoint.client
        self._own = endpoint.limiter
        self._limiter: Traffic = to.traffic if isinstance(to, EndpointRoute) else endpoint.limiter
        self._estimator = endpoint.estimator
        self._account = account
        self._policy = policy
        self._surroundings = surroundings
        self._wall_clock_us = surroundings.wall_clock_us
        self._clock: Callable[[], float] = anyio.current_time
        self._acceptance = acceptance
        # A probe of one step cannot be made with a request of another one.
        self._cascaded = acceptance is not None and acceptance.cascade is not None
        state = EngineState(
            self._limiter,
            policy,
            refusals if refusals is not None else Refusals(),
            surroundings,
            heads=to.heads if isinstance(to, EndpointRoute) else None,
        )
        self._state = state
        self._supply = state.supply
        self._pool = state.pool
        self._sending = state.sending
        self._scope: anyio.CancelScope | None = None

    # --- what the run sees

    @property
    def answered(self) -> bool:
        """Return true once the model has answered in this run."""
        return self._state.succeeded

    @property
    def halt(self) -> BatchchatError | None:
        """Return why the engine ended early, None if it did not."""
        return self._pool.halt

    def progress(self, oldest: int = 0) -> EngineProgress:
        """Return what is under way and what was done, with the `oldest` requests that have been in flight longest."""
        state = self._state
        return EngineProgress(
            sending=len(self._sending),
            waiting=self._supply.waiting + len(state.refusals),
            attempts=state.attempts,
            retries=state.retries,
            rate_limited=state.rate_limited,
            corrections=state.corrections,
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
        # A wider window has room for more senders than there are.
        self._pool.staff_if_open()

    def failed_before(self, custom_id: str) -> None:
        """Note that this request failed for good in an earlier run: if it fails again, that is no outage."""
        self._limiter.suspect(custom_id)

    def pause(self) -> None:
        """Launch nothing until `resume`. Attempts that are under way may end."""
        self._pool.paused = True

    def resume(self) -> None:
        """Go on after `pause`."""
        if self._pool.paused:
            self._pool.paused = False
            self._state.outage.resumed_at = anyio.current_time()
            self._pool.staff_if_open()

    def drain(self) -> None:
        """Take no more work; attempts that are under way may end."""
        self._pool.drain()

    def cancel(self) -> None:
        """End the attempts that are under way, too. Their requests stay open."""
        self._pool.drain()
        if self._scope is not None:
            self._scope.cancel()

    def halt_for(self, error: BatchchatError) -> None:
        """Take no more work for this reason; the first one is kept in `halt`. Attempts under way may end."""
        self._pool.halt_for(error)

    async def run(self, feed: Feed, sink: Sink) -> None:
        """Execute all requests of the feed, or those that can be until `drain`, `cancel` or a reason to halt.

        Returns when nothing is under way any more. Why it ended early is in `halt`.
        """
        self._clock = running_clock()
        settler = self._settler(sink)
        try:
            with anyio.CancelScope() as self._scope:
                async with anyio.create_task_group() as group:
                    # Not a coroutine around `_work`: each time a sender goes on, it would be gone through.
                    self._pool.open(group, partial(self._work, settler, sink))
                    group.start_soon(self._pump, feed, sink)
                    group.start_soon(OutageMonitor(self._state, self._limiter, self._surroundings.listener).run)
                    group.start_soon(self._pool.ring)
        finally:
            self._pool.close()
        settler.release_held()

    def release_held(self, sink: Sink) -> None:
        """Settle refusals that are held back, if nothing is left that could tell whether they are about their own rows.

        To be called when the feed itself waits for what is under way.
        """
        # While anything is left, its answer may show that the held rows are bad themselves.
        if not self._supply.left:
            self._settler(sink).release_held()

    def _settler(self, sink: Sink) -> Settler:
        return Settler(self._state, self._to, self._policy, self._surroundings, acceptance=self._acceptance, sink=sink)

    # --- feeding

    async def _pump(self, feed: Feed, sink: Sink) -> None:
        """Read ahead from the feed. `drain` ends it wherever it waits, also for rows of a slow input."""
        with self._pool.wait():
            if self._pool.draining:  # asked to stop before anything began
                await feed.aclose()
            else:
                await self._supply.read(feed, sink, self._pool.staff)
        self._pool.wake_for_end()

    # --- sending

    async def _work(self, settler: Settler, sink: Sink) -> None:
        pool = self._pool
        try:
            # Mostly one is there, and no coroutine is made to wait for it.
            while (request := pool.next() or await pool.take()) is not None:
                size = len(request.body)
                try:
                    if not await self._serve(request, settler):
                        break
                finally:
                    pool.put_down(size)
                # Only at the end of the feed can this have been the last request.
                if self._supply.ended:
                    pool.wake_for_end()
                if sink.full:
                    await pool.idle(sink.room)
        finally:
            pool.left()

    async def _serve(self, request: Request, settler: Settler) -> bool:
        """Make one attempt of a request, as soon as budget and limits let it. Return false if the sender is to end."""
        pool = self._pool
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
                    return settler.goes_on_without(request)
                now = self._clock()
            # A stop or a pause may begin just as a wait for the budget, or for the permit, ends. After a pause the
            # request is launched first; after a stop it stays open.
            if pool.draining or pool.paused:
                permit.give_back(now)
                self._supply.put_first(request)
                return True
            if permit.probe and self._limiter.down and not self._cascaded:
                request = self._prober(request, permit)
            reply = await self._attempt(request, permit, hold, now)
            if reply is not None and (judgement := settler.settle(request, reply, permit, now)) is not None:
                await judgement
            # What was answered may have opened the window further.
            if pool.senders < self._limiter.window:
                pool.staff()
        finally:
            # Nothing was sent, or the attempt was cancelled: its money is free again.
            if hold is not None and hold.open:
                hold.settle(None)
        return True

    async def _reserve(self, account: Account, request: Request) -> Hold | None:
        """Wait for room in the budget. Return None if it is used up, or `drain` ended the wait."""
        prompt, completion = self._estimator.at_most(request.prompt_tokens, request.max_tokens)
        hold: Hold | None = None
        try:
            hold = account.try_reserve(prompt, completion)
            if hold is None:
                with self._pool.wait():
                    hold = await account.reserve(prompt, completion)
        except StoppedEarly as error:
            self._pool.halt_for(error)
        return hold

    async def _permit(self, request: Request, tokens: int) -> Permit | RoutedPermit | None:
        """Wait for a permit. Return None if `drain` ended the wait, or nobody is left that the request may go to."""
        permit: Permit | RoutedPermit | None = None
        with self._pool.wait():
            if self._route is None:
                permit = await self._own.acquire(tokens, key=request.custom_id)
            else:
                permit = await self._route.acquire(request, tokens)
        return permit

    def _prober(self, request: Request, permit: Permit | RoutedPermit) -> Request:
        """Return the request to probe with: this one, or one from anywhere in the supply that is no larger.

        What stands together in the input may be bad together. So every other probe is another one, and each is if this
        request has failed before and may be the cause itself.
        """
        if self._limiter.failed_probes % 2 and request not in self._state.causes.suspects:
            return request
        other = self._supply.swap(request, self._estimator)
        permit.key = other.custom_id
        return other

    async def _attempt(
        self, request: Request, permit: Permit | RoutedPermit, hold: Hold | None, now: float
    ) -> Reply | None:
        """Send a request and settle its permit and its hold. Return None if the run ends for what was met."""
        # A request that is tried again keeps when it began: the record tells the whole time.
        if not request.started_at:
            request.started_at = self._wall_clock_us()
        request.attempts += 1
        self._state.attempts += 1
        self._sending[request] = now
        if hold is not None:
            hold.launched = True
        reply: Reply | None = None
        try:
            # At least a millisecond below: with 0 some transports would wait without a bound.
            remaining = self._policy.row_deadline - request.active_s
            client, body = (self._client, request.body) if self._route is None else _at_endpoint(request, permit)
            reply = await client.send(body, timeout=max(0.001, remaining), started=now)
        # No file can be opened, or the like: the next request would meet the same.
        except BatchchatError as error:
            self._pool.halt_for(error)
            return None
        finally:
            del self._sending[request]
            permit.settle(reply, None if reply is None else now + reply.latency_s)
        if hold is not None:
            hold.settle(reply)
        request.active_s += reply.latency_s
        return reply


def _at_endpoint(request: Request, permit: Permit | RoutedPermit) -> tuple[ChatClient, bytes]:
    """Return who sends this attempt, and what is sent."""
    assert isinstance(permit, RoutedPermit)  # noqa: S101 - what a route grants
    return permit.endpoint.client, permit.endpoint.body_of(request)
