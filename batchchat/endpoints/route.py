"""The route: which endpoint an attempt goes to.

A run has one target or several; each has one endpoint or several. For each attempt the route picks an endpoint of the
request's target: that is balance. After a failure it says whether the same request may go to another endpoint at once:
that is failover. If a target cannot answer, a later one may be asked: that is fallback.

A run with a single endpoint needs no route: its engine uses that endpoint's limiter as it is.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence

import anyio
from anyio import current_time

from batchchat.endpoints.affinity import Heads
from batchchat.endpoints.endpoint import Endpoint
from batchchat.endpoints.target import SOON_S, Target
from batchchat.endpoints.target_list import TargetList
from batchchat.endpoints.traffic import PooledTraffic
from batchchat.events import Event, Listener
from batchchat.limits import Limiter, Permit
from batchchat.records import ErrorKind, Failure, Reply, Request, Verdict

_LOOK_S = 0.5
"""The longest sleep of a request that waits. Another run may share a limiter, and what it gives back wakes nobody here.
Two looks a second cost nothing that can be measured."""
NEVER_ANSWERED, ONCE_ANSWERED = 3, 10
"""Rows that an endpoint refuses one after the other before it is taken out: if it has never answered, or has. As for
a provider with one endpoint (`engines.refusals`)."""


class RoutedPermit:
    """The permit of an endpoint, with the one of the job's limits over all. Settle it exactly once."""

    __slots__ = ("_over", "_own", "_wake", "endpoint", "probe", "target")

    def __init__(
        self, endpoint: Endpoint, target: int, own: Permit, over: Permit | None, wake: Callable[[], None]
    ) -> None:
        self.endpoint = endpoint
        self.target = target
        self.probe = own.probe
        self._own = own
        self._over = over
        self._wake = wake

    @property
    def key(self) -> object:
        """What tells its request apart."""
        return self._own.key

    @key.setter
    def key(self, key: object) -> None:
        self._own.key = key

    def settle(self, reply: Reply | None, now: float | None = None) -> None:
        """Give the slot back and tell what came of it; None if the attempt was abandoned."""
        self._own.settle(reply, now)
        if self._over is not None:
            # The job's ceilings learn nothing: what an endpoint says is about that endpoint.
            told = None if reply is None else Reply(Verdict.OK, usage=reply.usage, sent=reply.sent)
            self._over.settle(told, now)
        self._wake()

    def give_back(self, now: float | None = None) -> None:
        """Settle a permit that was not used."""
        self._own.give_back(now)
        if self._over is not None:
            self._over.give_back(now)
        self._wake()


class _Waiter:
    __slots__ = ("event", "gone")

    def __init__(self) -> None:
        self.event = anyio.Event()
        self.gone = False


class EndpointRoute:
    """The targets of a run, the first one first.

    Arguments:
        targets: the job's own target, then those that are asked in its place.
        over: the job's limits over all endpoints, None if it sets none. Nothing else may use this limiter.
        listener: takes the event `endpoint_out`.

    Requests that wait stand in one line for each target, in the order they came. Only the first of a line looks for a
    permit, so that a grant costs the same with ten of them as with thousands.
    """

    def __init__(
        self, targets: Sequence[Target], *, over: Limiter | None = None, listener: Listener | None = None
    ) -> None:
        self.targets = TargetList(targets)
        self.traffic = PooledTraffic(self.targets, over, self._wake)
        """What an engine sees of all endpoints together."""
        self._listener = listener
        self._lines: dict[int, deque[_Waiter]] = {}
        # With one endpoint for each target there is nothing to choose, and no head to look for.
        self.heads = Heads() if any(len(target.endpoints) > 1 for target in self.targets) else None
        self.step_refused: str | None = None
        """Why a further step of a cascade refuses every row, if it does: the run can then not be finished."""

    # --- granting

    def try_acquire(self, request: Request, tokens: int, now: float) -> RoutedPermit | None:
        """Grant a permit now; None if no endpoint is free, or others wait for the same target."""
        if request.target >= len(self.targets):
            request.target = 0  # a fallback that an earlier run had is gone
        if self._lines.get(request.target):
            return None
        return self._grant(request, tokens, now)[0]

    async def acquire(self, request: Request, tokens: int) -> RoutedPermit | None:
        """Wait in turn for a permit. Return None if the targets that the request may still go to are all down.

        None is returned for a request only that another target has answered or refused before: see `fall_back`. A
        cancelled wait takes nothing with it.
        """
        line = self._lines.setdefault(request.target, deque())
        waiter = _Waiter()
        line.append(waiter)
        try:
            while True:
                delay = math.inf
                if line[0] is waiter:
                    permit, delay = self._grant(request, tokens, current_time())
                    if permit is not None or (request.target and self._lost(request)):
                        return permit
                waiter.event = anyio.Event()  # an event cannot be taken back once it is set
                with anyio.move_on_after(min(delay, _LOOK_S) if line[0] is waiter else math.inf):
                    await waiter.event.wait()
        finally:
            waiter.gone = True
            while line and line[0].gone:
                line.popleft()
            # The next one looks at once: this one may have gone away with a permit free for it.
            if line:
                line[0].event.set()

    def _grant(self, request: Request, tokens: int, now: float) -> tuple[RoutedPermit | None, float]:
        # The job's limits are asked first: a permit of an endpoint that they refuse would have to be given back.
        over = self.traffic.over
        if over is not None and (wait := over.wait(now, tokens)) > 0.0:
            return None, wait
        least = math.inf
        place: int | None = request.target
        while place is not None:
            target = self.targets[place]
            endpoint, wait = target.pick(tokens, now, request.broke, request.head)
            if endpoint is not None:
                own = endpoint.limiter.try_acquire(tokens, key=request.custom_id, now=now)
                if own is not None:
                    above = over.try_acquire(tokens, key=request.custom_id, now=now) if over is not None else None
                    return RoutedPermit(endpoint, place, own, above, self._wake), 0.0
                wait = SOON_S  # another run that shares the limiter is served first
            least = min(least, wait)
            place = self.targets.in_place_of(place)
        return None, least

    def _lost(self, request: Request) -> bool:
        """Return true if nobody that the request may go to is up, and an answer of another target may stand in."""
        if self.targets[request.target].step > 1:
            return False  # the answer before was not good enough: the row waits, or stays open
        return self.targets.all_down_from(request.target)

    def _wake(self) -> None:
        for line in self._lines.values():
            if line:
                line[0].event.set()

    # --- after an attempt

    def answered_by(self, endpoint: Endpoint) -> None:
        """Note an answer of this endpoint's model."""
        endpoint.answered = True
        if endpoint.refused:  # called for each answer, and the set is nearly always empty
            endpoint.refused.clear()

    def goes_on(self, request: Request, reply: Reply, permit: RoutedPermit) -> bool:
        """Return true if a failed request may go to another endpoint at once, and pays no attempt for this one.

        An endpoint that fails or refuses alone is not the request's fault. A request that fails at every endpoint that
        is up pays its attempts from then on.
        """
        endpoint, failure = permit.endpoint, reply.failure
        if failure is None:
            return False
        match reply.verdict:
            case Verdict.FATAL:
                return self._take_out(endpoint, failure.message)
            case Verdict.REFUSED | Verdict.RATE_LIMIT if reply.verdict is Verdict.REFUSED or reply.day is not None:
                # An endpoint whose day is used up is refused to us as one whose key is: waiting helps neither.
                enough = ONCE_ANSWERED if endpoint.answered and reply.day is None else NEVER_ANSWERED
                return self._refused(request, failure, permit, enough)
            case Verdict.RATE_LIMIT:
                return self._moves(request, permit.target, "rate_limit")
            case Verdict.TRANSIENT:
                return self._failed(request, failure, permit)
        return False

    def _failed(self, request: Request, failure: Failure, permit: RoutedPermit) -> bool:
        """Note a failure that may go away. Return as `goes_on`."""
        endpoint, target = permit.endpoint, self.targets[permit.target]
        if not _of_the_server(failure):
            # It may be the request itself (no answer in time, none in the answer): that costs an attempt, and the next
            # one goes elsewhere.
            request.broke |= endpoint.bit
            return False
        # Whoever probes an endpoint that is known to be down does so for the run: nothing is held against the request.
        if permit.probe:
            return target.has_up(besides=endpoint.bit) or self._may_leave(permit.target)
        # It has failed here before, so it was sent here because nobody else was up: now it pays.
        known = request.broke & endpoint.bit
        request.broke |= endpoint.bit
        if target.unavailable:
            return self._may_leave(permit.target)
        return not known and target.has_up(besides=request.broke)

    def _may_leave(self, number: int) -> bool:
        """Return true if a later target is up that is asked while this one is down."""
        return self.targets[number].unavailable and self.targets.following_up(number, "outage") is not None

    def _refused(self, request: Request, failure: Failure, permit: RoutedPermit, enough: int) -> bool:
        """Count a refusal that may be about the endpoint (its key, its model) or about the row. Return as `goes_on`.

        After `enough` rows in a row the endpoint is taken out.
        """
        endpoint, target = permit.endpoint, self.targets[permit.target]
        endpoint.refused.add(request.row_index)
        request.broke |= endpoint.bit
        if len(endpoint.refused) >= enough:
            if self._take_out(endpoint, failure.message):
                return True
            if target.step > 1:
                # Answers of the first step come in between, so a run would not see that this one refuses all.
                self.step_refused = f"{target.model}, step {target.step} of the cascade, is refused: {failure.message}"
                return False
        return target.has_up(besides=request.broke)

    def _take_out(self, endpoint: Endpoint, why: str) -> bool:
        """Send nothing more to an endpoint, if the run can go on without it. Return whether it can."""
        if endpoint.out is None:
            if not self.targets.can_spare(endpoint):
                return False
            endpoint.out = why
            self._tell_out(endpoint, why)
        self._wake()
        return True

    def take_out(self, endpoint: Endpoint, why: str) -> None:
        """Send nothing to an endpoint, whatever that leaves."""
        endpoint.out = why
        self._tell_out(endpoint, why)

    def _tell_out(self, endpoint: Endpoint, why: str) -> None:
        if self._listener is not None:
            message = f"nothing more is sent to {endpoint.name}: {why}. The others go on"
            self._listener(Event("endpoint_out", message, "warning", {"endpoint": endpoint.name, "reason": why}))

    def fall_back(self, request: Request, kind: ErrorKind) -> bool:
        """Give a request whose answer failed for good to the next target that is asked for it. Return whether one is.

        Arguments:
            request: its target is the one that has answered; it is changed to the next one's.
            kind: what was wrong with the answer.
        """
        return self._moves(request, request.target, kind.value)

    def _moves(self, request: Request, place: int, reason: str) -> bool:
        """Give a request to the next target behind this one that is asked for the reason. Return false if none is."""
        number = self.targets.following_up(place, reason)
        if number is None:
            return False
        request.target = number
        return True


def _of_the_server(failure: Failure) -> bool:
    """Return true for a failure of the server or of the way to it: no connection, 5xx."""
    status = failure.http_status
    return failure.kind is ErrorKind.CONNECTION or (status is not None and 500 <= status < 600)
