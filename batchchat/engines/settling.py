"""Settling: what follows from an attempt, for its request and for the run.

A request that was answered is accepted, asked again, or passed on to the next step or target. One that failed waits
for another attempt, is held back while its refusal may concern every request, or fails. Nothing here waits, save for
the judgement of a long answer: a decision is taken and carried out at once, so that a stop finds no request in between.
"""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import replace

import anyio

from batchchat.acceptance import (
    Accept,
    Acceptance,
    AskAgain,
    Escalate,
    Fail,
    begin_again,
    go_on,
    journaled,
    left_for,
    left_with,
)
from batchchat.clock import running_clock
from batchchat.endpoints.endpoint import Endpoint
from batchchat.endpoints.route import EndpointRoute, RoutedPermit
from batchchat.endpoints.traffic import Traffic
from batchchat.engines.halting import fatal_error
from batchchat.engines.port import Answered, Settled, Sink
from batchchat.engines.refusals import Refusal
from batchchat.engines.state import EngineState, Surroundings
from batchchat.errors import NeedsHuman
from batchchat.limits import Permit
from batchchat.records import ErrorKind, Failure, Reply, Request, Usage, Verdict
from batchchat.retry import RetryAction, RetryPolicy, decide

_LONG_ANSWER = 50_000
"""Characters from which on an answer is judged in a thread: up to there it takes about a millisecond."""
_LONG_BODY = 500_000
"""Bytes of a request (images, mostly) from which on that is done too: a correction repeats them."""


class Settler:
    """Decides what follows from each attempt, and tells the sink.

    `to` is the endpoint, or the route to one of several. `acceptance` decides about answers; without one each is taken
    as it is.
    """

    def __init__(
        self,
        state: EngineState,
        to: Endpoint | EndpointRoute,
        policy: RetryPolicy,
        surroundings: Surroundings,
        *,
        acceptance: Acceptance | None,
        sink: Sink,
    ) -> None:
        # What every answer uses is kept flat: a look-up more costs at each request.
        self._state = state
        self._supply = state.supply
        self._pool = state.pool
        self._causes = state.causes
        self._refusals = state.refusals
        self._quota = state.quota
        self._outage = state.outage
        # A single endpoint needs no route.
        self._route = to if isinstance(to, EndpointRoute) else None
        endpoint = to.targets[0].endpoints[0] if isinstance(to, EndpointRoute) else to
        self._traffic: Traffic = to.traffic if isinstance(to, EndpointRoute) else endpoint.limiter
        self._estimator = endpoint.estimator
        self._policy = policy
        self._rng = surroundings.rng
        self._offload = surroundings.offload
        self._wall_clock_us = surroundings.wall_clock_us
        self._clock = running_clock()
        self._acceptance = acceptance
        self._sink = sink

    def settle(
        self, request: Request, reply: Reply, permit: Permit | RoutedPermit, sent_at: float
    ) -> Awaitable[None] | None:
        """Settle a request by the reply of an attempt, or have it wait for what comes next.

        `sent_at` is when the attempt began, by the loop's clock.

        Returns what is to be awaited at once if somebody has to decide about the answer, else None: most jobs take
        each answer as it is, and need no coroutine for it.
        """
        # Before all else: what another endpoint may still answer is no outcome.
        if self._route is not None and self._goes_on(request, reply, permit):
            return None
        acceptance = self._acceptance
        # A failure of the exchange has no answer to decide about.
        if acceptance is not None and not acceptance.concerns(request, reply):
            acceptance = None
        # An answer that was cut off by the network or by an error tells too little of the model.
        if reply.completion is not None and reply.verdict is not Verdict.TRANSIENT:
            self._answered(request, reply, sent_at=sent_at)
        if acceptance is not None:
            return self._accept(acceptance, request, reply)
        if reply.verdict is Verdict.OK:
            self._sink.put(Settled(request, reply, None))
        else:
            self._unsuccessful(request, reply, probe=permit.probe)
        return None

    def _answered(self, request: Request, reply: Reply, *, sent_at: float) -> None:
        """Take what an answer tells beyond itself: also one that was cut off, filtered or a refusal of the model's."""
        self._state.succeeded = True
        if self._quota.refusals:
            self._quota.answered(sent_at)
        if self._causes.suspects:
            self._causes.settled(request)
        refused = self._refusals.answered(sent_at)
        # The held rows are settled now, so senders that waited for the trial have work.
        if refused:
            self._fail_all(refused)
            self._pool.staff()
        if reply.verdict is Verdict.OK and reply.usage is not None:
            self._estimator.learn(request.prompt_tokens, reply.usage)

    async def _accept(self, acceptance: Acceptance, request: Request, reply: Reply) -> None:
        """Settle a request by its answer, or let it ask again. A long answer is judged off the event loop."""
        if _size(reply) <= _LONG_ANSWER and len(request.body) <= _LONG_BODY:
            decision = acceptance.decide(request, reply)
        else:
            with anyio.CancelScope(shield=True):  # what was answered reaches the sink
                decision = await self._offload(acceptance.decide, request, reply)
        # A correction costs as much time as the answer did, and the row has none left.
        if isinstance(decision, AskAgain) and request.active_s >= self._policy.row_deadline:
            over = f"the row's deadline of {self._policy.row_deadline:g} s is over"
            decision = Fail(Failure(decision.kind, f"{decision.reasons} ({over})", 200))
        if isinstance(decision, Accept):
            self._sink.put(Settled(request, reply, None, decision.parsed, decision.tolerated, decision.confidence))
        elif isinstance(decision, Fail):
            if not self._falls_back(request, reply, decision.failure):
                self._sink.put(Settled(request, reply, decision.failure))
        elif isinstance(decision, Escalate):
            self._escalate(acceptance, request, reply, decision)
        elif isinstance(decision, AskAgain):
            usage = reply.usage or Usage()
            request.add_billed(reply)
            step = _next_step(request)
            self._sink.put(Answered(request, usage, reply.cost or 0, step, journaled(request, reply)))
            go_on(request, reply, decision)
            self._state.corrections += decision.corrects
            self._supply.put_due(request)
            self._pool.staff()

    def _unsuccessful(self, request: Request, reply: Reply, *, probe: bool) -> None:
        """Let a request that failed wait for another attempt, hold it back, settle it, or end the run."""
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
            self._state.retries += 1
            if decision.action is RetryAction.RATE_LIMIT:
                self._rate_limited(reply)
            else:
                # Waits for a rate limit are the provider's doing and not counted against the row's deadline.
                request.active_s += decision.delay_s
            if decision.counts:
                request.counted = counted
            self._causes.failed(request, reply)
            self._put_billed(request, reply)
            # It comes due before the one that the alarm is set for.
            if self._supply.delay(request, anyio.current_time() + decision.delay_s):
                self._pool.wake_delayed()
            # The rest is asked one after the other without the usual waits between probes.
            if probe and self._outage.asks_the_rest():
                self._traffic.hurry()
        elif decision.action is RetryAction.FATAL:
            self._put_billed(request, reply)
            self._pool.halt_for(fatal_error(reply.failure))
        elif decision.action is RetryAction.REFUSED or self._refusals.may_concern_all(reply):
            self._causes.settled(request)
            others = self._refusals.add(request, reply, now=anyio.current_time(), under_way=self._state.sending)
            self._fail_all(others)
            if not self._halt_for_refusals():
                self._pool.staff()
        else:
            self._causes.settled(request)
            self._refusals.excused(request)
            self._fail(request, reply, decision.reason)
            # A trial request that failed of something else: another one takes its place.
            if self._refusals and not self._halt_for_refusals():
                self._pool.staff()

    def _rate_limited(self, reply: Reply) -> None:
        """Count a rate limit. A provider that says that a limit of the day is used up ends the run."""
        self._state.rate_limited += 1
        used_up = self._quota.refused(reply, self._clock() - reply.latency_s, self._wall_clock_us() / 1e6)
        if used_up is not None:
            self._pool.halt_for(used_up)

    def _fail(self, request: Request, reply: Reply, reason: str | None) -> None:
        """Settle a request as failed, unless a further step or target is asked in its place."""
        assert reply.failure is not None  # noqa: S101 - what a verdict other than OK means
        acceptance = self._acceptance
        escalation = acceptance.escalation(request, reply.failure) if acceptance is not None else None
        if acceptance is not None and escalation is not None:
            self._escalate(acceptance, request, reply, escalation)
            return
        if self._falls_back(request, reply, reply.failure):
            return
        message = f"{reply.failure.message} ({reason})" if reason else reply.failure.message
        failure = Failure(reply.failure.kind, message, reply.failure.http_status)
        self._sink.put(Settled(request, *left_with(request, reply, failure)))

    # --- several endpoints

    def _goes_on(self, request: Request, reply: Reply, permit: Permit | RoutedPermit) -> bool:
        """Take what an attempt tells of its endpoint. Return true if the request goes on at another one, at no cost."""
        assert self._route is not None and isinstance(permit, RoutedPermit)  # noqa: S101, PT018 - who gave the permit
        request.target = permit.target
        if reply.completion is not None:
            self._route.answered_by(permit.endpoint)
        if reply.verdict is Verdict.OK or not self._route.goes_on(request, reply, permit):
            refusal = self._route.step_refused
            if refusal is None or reply.verdict is Verdict.OK:
                return False
            # Rows that a further step refuses one after the other stay open: a person has to mend it.
            self._put_billed(request, reply)
            self._pool.halt_for(NeedsHuman(refusal, remedy=self._refusals.remedy))
            return True
        # The time is the endpoint's fault too: a server that hangs must not use up the deadline of a row.
        request.active_s -= reply.latency_s
        self._state.retries += 1
        if reply.verdict is Verdict.RATE_LIMIT:
            self._state.rate_limited += 1
        self._put_billed(request, reply)
        self._supply.put_due(request)
        self._pool.staff()
        return True

    def _falls_back(self, request: Request, reply: Reply, failure: Failure) -> bool:
        """Ask the next target in place of settling this failure, if one is asked for its kind."""
        route = self._route
        if route is None or not route.fall_back(request, failure.kind):
            return False
        if reply.completion is None:
            self._put_billed(request, reply)
        else:
            # Kept until the request is settled, so that no kill makes the first target answer again.
            step = _next_step(request)
            request.add_billed(reply)
            payload = left_for(request, reply, failure)
            self._sink.put(Answered(request, reply.usage or Usage(), reply.cost or 0, step, payload))
            request.before = step + 1
        # What was corrected or thought at one target means nothing to the next one.
        begin_again(request)
        # The next target has its own attempts.
        request.counted = request.unsent = request.broke = 0
        request.left = (replace(reply, usage=None, cost=None), failure)
        self._supply.put_due(request)
        self._pool.staff()
        return True

    def _escalate(self, acceptance: Acceptance, request: Request, reply: Reply, decision: Escalate) -> None:
        """Ask the next step of the cascade. The answer is kept until the row is settled: a kill does not lose it."""
        failure = decision.failure
        if failure is not None and self._falls_back(request, reply, failure):
            return  # somebody else of the same step is asked first
        if request.active_s >= self._policy.row_deadline:
            over = f"the row's deadline of {self._policy.row_deadline:g} s is over"
            kind = ErrorKind.TIMEOUT if failure is None else failure.kind
            self._sink.put(Settled(request, reply, Failure(kind, f"{decision.reason} ({over})", 200)))
            return
        if reply.completion is None:
            self._put_billed(request, reply)
        else:
            request.add_billed(reply)
            step = _next_step(request)
            kept = journaled(request, reply)
            unsure = reply if failure is None else None
            self._sink.put(Answered(request, reply.usage or Usage(), reply.cost or 0, step, kept, unsure))
        acceptance.escalate(request, reply, decision)
        self._supply.put_due(request)
        self._pool.staff()

    def goes_on_without(self, request: Request) -> bool:
        """Take back a request that got no permit. Return false if the reason is a stop: the sender is to end.

        Else its further targets went down before they could answer: it is settled by what it had before.
        """
        if self._pool.draining:
            return False
        # Nothing was answered before, so it waits for the first target like any other.
        if request.left is None:
            request.target = 0
            self._supply.put_due(request)
            return True
        reply, failure = request.left
        escalation = self._acceptance.escalation(request, failure) if self._acceptance is not None else None
        if self._acceptance is not None and escalation is not None:
            self._acceptance.escalate(request, reply, escalation)
            self._supply.put_due(request)
        else:
            self._sink.put(Settled(request, reply, failure))
        return True

    def _put_billed(self, request: Request, reply: Reply) -> None:
        """Tell the sink what an attempt cost that does not settle its request."""
        if reply.usage is not None:
            request.add_billed(reply)
            self._sink.put(Answered(request, reply.usage, reply.cost or 0))

    # --- refusals that may be about every request

    def _halt_for_refusals(self, *, ended: bool = False) -> bool:
        """End the run if refusals have shown that they are about every request. Return true if so."""
        message = self._refusals.verdict(ended=ended)
        if message is not None:
            self._pool.halt_for(NeedsHuman(message, remedy=self._refusals.remedy))
        return message is not None

    def release_held(self) -> None:
        """Settle refusals that are held back, if nothing is left to tell whether they are about their rows."""
        if not self._pool.draining and not self._halt_for_refusals(ended=True):
            self._fail_all(self._refusals.let_go())

    def _fail_all(self, refused: list[Refusal]) -> None:
        """Settle these refusals as failures of their own rows."""
        for request, reply in refused:
            self._fail(request, reply, None)


def _next_step(request: Request) -> int:
    """Return the number under which the next answer of a request is kept: how many it has had, at all targets."""
    return request.before + (request.steps.answers if request.steps is not None else 0)


def _size(reply: Reply) -> int:
    calls = (reply.completion.tool_calls if reply.completion is not None else None) or ()
    return len(reply.text or "") + sum(len(call.get("arguments") or "") for call in calls)
