"""The route: which endpoint an attempt goes to.

A run has one target or several; each has one endpoint or several. For each attempt the route picks an endpoint of the
request's target: that is balance. After a failure it says whether the same request may go to another endpoint at once:
that is failover. If a target cannot answer, a later one may be asked: that is fallback.

A run with a single endpoint needs no route: its engine uses that endpoint's limiter as it is.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol

import anyio
from anyio import current_time

from batchchat.endpoints.affinity import Heads
from batchchat.endpoints.endpoint import Endpoint
from batchchat.endpoints.target import SOON_S, Target
from batchchat.errors import BatchchatError
from batchchat.events import Event, Listener, Pace
from batchchat.limits import MAX_CONCURRENCY, Limiter, Permit
from batchchat.records import ErrorKind, Failure, Reply, Request, Verdict

_LOOK_S = 0.5
"""The longest sleep of a request that waits. Another run may share a limiter, and what it gives back wakes nobody here.
Two looks a second cost nothing that can be measured."""
NEVER_ANSWERED, ONCE_ANSWERED = 3, 10
"""Rows that an endpoint refuses one after the other before it is taken out: if it has never answered, or has. As for
a provider with one endpoint (`engines.refusals`)."""


class Traffic(Protocol):
    """What an engine knows of the limits and the state of whoever it sends to: a `Limiter` or a `EndpointRoute`."""

    @property
    def down(self) -> bool:
        """Whether everybody seems to be down, so that only probes may go."""

    @property
    def lost(self) -> BatchchatError | None:
        """Why no permit comes any more: those who keep a limit that processes share cannot be asked."""

    @property
    def failed_probes(self) -> int:
        """How many probes have failed since."""

    @property
    def window(self) -> int:
        """How many requests may be under way at once now, however many are."""

    @property
    def answered(self) -> bool:
        """Whether any HTTP response ever came, whatever it said."""

    @property
    def outage_s(self) -> float:
        """Seconds since somebody last answered well, while nobody does; 0 otherwise."""

    @property
    def unreachable_s(self) -> float:
        """Seconds since the first failed connection, while nothing has ever answered; 0 otherwise."""

    def hurry(self) -> None:
        """Let the next probe go at once, if it waits longer."""

    def suspect(self, key: object) -> None:
        """Say that this request failed for good in an earlier run."""

    def blame(self, keys: Iterable[object]) -> None:
        """Say that these requests are the cause of their failures."""

    def pace(self) -> Pace:
        """Return what is allowed and used now."""

    def retune(
        self,
        *,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        concurrency: int | None = None,
    ) -> None:
        """Take other ceilings from the job."""


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
        self.targets = tuple(targets)
        self._over = over
        self._listener = listener
        self._lines: dict[int, deque[_Waiter]] = {}
        for place, endpoint in enumerate(self._all()):
            endpoint.bit = 1 << place
        self._note_most()
        # With one endpoint for each target there is nothing to choose, and no head to look for.
        self.heads = Heads() if any(len(target.endpoints) > 1 for target in self.targets) else None
        # For each step of a cascade, the target that is asked and those that are when it is down. If all of one step
        # are down, the run is: a row that waits for that step cannot be settled without it.
        self._chains: list[list[Target]] = [
            [target for target in self.targets if target.step == step and (not target.on or "outage" in target.on)]
            for step in sorted({target.step for target in self.targets})
        ]
        self.step_refused: str | None = None

    def _note_most(self) -> None:
        for target in self.targets:
            target.most = self._over.window if self._over is not None else 0

    def _all(self) -> Iterator[Endpoint]:
        return (endpoint for target in self.targets for endpoint in target.endpoints)

    def _in_use(self) -> list[Endpoint]:
        """Return the endpoints that decide whether the run can go on."""
        return [endpoint for chain in self._by_step() for endpoint in chain]

    def _by_step(self) -> list[list[Endpoint]]:
        """Return the endpoints that decide whether a step of a cascade can be asked; without a cascade, of one step."""
        return [
            [endpoint for target in chain for endpoint in target.endpoints if endpoint.out is None]
            for chain in self._chains
        ]

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
                waiter.event = anyio.Event()
                with anyio.move_on_after(min(delay, _LOOK_S) if line[0] is waiter else math.inf):
                    await waiter.event.wait()
        finally:
            waiter.gone = True
            while line and line[0].gone:
                line.popleft()
            if line:
                line[0].event.set()

    def _grant(self, request: Request, tokens: int, now: float) -> tuple[RoutedPermit | None, float]:
        over = self._over
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
            place = self._in_place_of(place)
        return None, least

    def _in_place_of(self, place: int) -> int | None:
        """Return the target that is asked while this one cannot answer; None if it can, or there is none."""
        target = self.targets[place]
        if target.unavailable:
            return self.following(place, "outage")
        return self.following(place, "rate_limit") if target.refusing else None

    def following(self, place: int, reason: str) -> int | None:
        """Return the number of the next target that is asked for this reason, None if there is none."""
        later = range(place + 1, len(self.targets))
        return next((number for number in later if reason in self.targets[number].on), None)

    def _lost(self, request: Request) -> bool:
        """Return true if nobody that the request may go to is up, and an answer of another target may stand in."""
        if self.targets[request.target].step > 1:
            return False  # the answer before was not good enough: the row waits, or stays open
        place: int | None = request.target
        while place is not None:
            if not self.targets[place].unavailable:
                return False
            place = self.following(place, "outage")
        return True

    def _wake(self) -> None:
        for line in self._lines.values():
            if line:
                line[0].event.set()

    # --- after an attempt

    def answered_by(self, endpoint: Endpoint) -> None:
        """Note an answer of this endpoint's model."""
        endpoint.answered = True
        if endpoint.refused:
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
                return self._moves(request, self.following(permit.target, "rate_limit"), "rate_limit")
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
        known = request.broke & endpoint.bit
        request.broke |= endpoint.bit
        if target.unavailable:
            return self._may_leave(permit.target)
        return not known and target.has_up(besides=request.broke)

    def _may_leave(self, place: int) -> bool:
        """Return true if a later target is up that is asked while this one is down."""
        number = self.following(place, "outage")
        while number is not None and self.targets[number].unavailable:
            number = self.following(number, "outage")
        return number is not None and self.targets[place].unavailable

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
            step = next(target.step for target in self.targets if endpoint in target.endpoints)
            others = next(
                chain for chain, targets in zip(self._by_step(), self._chains, strict=True) if targets[0].step == step
            )
            if not any(other is not endpoint for other in others):
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
        return self._moves(request, self.following(request.target, kind.value), kind.value)

    def _moves(self, request: Request, number: int | None, reason: str) -> bool:
        """Give a request to this target, or the next one behind it that is up. Return false if there is none."""
        while number is not None and self.targets[number].unavailable:
            number = self.following(number, reason)
        if number is None:
            return False
        request.target = number
        return True

    # --- what an engine sees of all: `Traffic`

    @property
    def down(self) -> bool:
        """Return true if every endpoint that decides about the run is down."""
        return any(all(endpoint.limiter.down for endpoint in chain) for chain in self._by_step())

    @property
    def lost(self) -> BatchchatError | None:
        """Why no permit comes any more; None as long as permits may come."""
        limiters = [endpoint.limiter for endpoint in self._all()]
        return next((one.lost for one in (*limiters, *filter(None, [self._over])) if one.lost is not None), None)

    @property
    def failed_probes(self) -> int:
        """Return how many probes have failed at the endpoint that had the fewest."""
        return max(min((one.limiter.failed_probes for one in chain), default=0) for chain in self._by_step())

    @property
    def window(self) -> int:
        """Return how many requests may be under way at once now."""
        limiters = [endpoint.limiter for endpoint in self._all() if endpoint.out is None]
        window = sum(1 if limiter.down else limiter.window for limiter in limiters)
        return window if self._over is None else min(window, self._over.window)

    @property
    def answered(self) -> bool:
        """Return true if any HTTP response ever came."""
        # A step that has not been asked yet says nothing: only one that cannot be reached does.
        return any(endpoint.limiter.answered for endpoint in self._all()) and not self._unreached()

    @property
    def outage_s(self) -> float:
        """Return for how many seconds nobody has answered well."""
        return max(min((one.limiter.outage_s for one in chain), default=0.0) for chain in self._by_step())

    @property
    def unreachable_s(self) -> float:
        """Return for how many seconds nobody could be reached."""
        if not self._unreached() and self.answered:
            return 0.0
        return max(
            min((one.limiter.unreachable_s for one in chain), default=0.0)
            for chain in self._by_step()
            if not any(one.limiter.answered for one in chain)
        )

    def _unreached(self) -> bool:
        """Return true if a further step of a cascade was tried, and nobody there has ever answered."""
        return any(
            not any(one.limiter.answered for one in chain) and any(one.limiter.unreachable_s > 0 for one in chain)
            for chain in self._by_step()[1:]
        )

    def hurry(self) -> None:
        """Let the next probe of each endpoint that is down go at once."""
        for endpoint in self._in_use():
            endpoint.limiter.hurry()
        self._wake()

    def suspect(self, key: object) -> None:
        """Say that this request failed for good in an earlier run: if it does so again, nobody is down."""
        for endpoint in self._all():
            endpoint.limiter.suspect(key)

    def blame(self, keys: Iterable[object]) -> None:
        """Say that these requests are the cause of their failures. Everybody may go again."""
        keys = list(keys)
        for endpoint in self._in_use():
            endpoint.limiter.blame(keys)
        self._wake()

    def retune(
        self,
        *,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        concurrency: int | None = None,
    ) -> None:
        """Take other limits over all endpoints. An endpoint's own limits stay."""
        for endpoint in self._all():
            own = endpoint.limits
            # Without a number of its own an endpoint has the job's as its window: see `registry`.
            endpoint.limiter.retune(
                requests_per_minute=own.requests_per_minute,
                tokens_per_minute=own.tokens_per_minute,
                concurrency=own.concurrency or concurrency,
            )
        if self._over is None:
            self._over = Limiter(concurrency=MAX_CONCURRENCY)
        self._over.retune(
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            concurrency=concurrency or MAX_CONCURRENCY,
        )
        self._note_most()
        self._wake()

    def pace(self) -> Pace:
        """Return what is allowed and used now, over all endpoints that are in use."""
        paces = [endpoint.limiter.pace() for endpoint in self._all() if endpoint.out is None]
        if not paces:
            return next(self._all()).limiter.pace()
        up = [pace for pace in paces if pace.breaker == "closed"]
        one = replace(
            (up or paces)[0],
            requests_per_minute=_sum(pace.requests_per_minute for pace in paces),
            tokens_per_minute=_sum(pace.tokens_per_minute for pace in paces),
            concurrency=self.window,
            requests_used=sum(pace.requests_used for pace in paces),
            tokens_used=sum(pace.tokens_used for pace in paces),
            in_use=sum(pace.in_use for pace in paces),
            paused_s=min(pace.paused_s for pace in paces),
            held_by=next((pace.held_by for pace in up or paces if pace.held_by is not None), None),
        )
        if self._over is None:
            return one
        over = self._over.pace()
        return replace(
            one,
            requests_per_minute=_least(one.requests_per_minute, over.requests_per_minute),
            tokens_per_minute=_least(one.tokens_per_minute, over.tokens_per_minute),
            held_by=over.held_by or one.held_by,
        )


def _of_the_server(failure: Failure) -> bool:
    """Return true for a failure of the server or of the way to it: no connection, 5xx."""
    status = failure.http_status
    return failure.kind is ErrorKind.CONNECTION or (status is not None and 500 <= status < 600)


def _sum(rates: Iterable[float | None]) -> float | None:
    """Add rates; a single one that has no limit makes the sum have none."""
    total = 0.0
    for rate in rates:
        if rate is None:
            return None
        total += rate
    return total


def _least(one: float | None, other: float | None) -> float | None:
    given = [rate for rate in (one, other) if rate is not None]
    return min(given) if given else None
