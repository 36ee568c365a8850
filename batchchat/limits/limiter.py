"""The limiter: hands out permits, settles them against replies, and keeps everybody waiting in turn."""

from __future__ import annotations

import math
import random
from collections import deque
from typing import TYPE_CHECKING

import anyio
from anyio import current_time

from batchchat.events import Event, Pace
from batchchat.limits.ceilings import Advertised, LimitCeilings
from batchchat.limits.concurrency import Concurrency
from batchchat.limits.controller import Controller, Grant
from batchchat.limits.rates import Rate
from batchchat.limits.schedule import TICKS_PER_S
from batchchat.limits.telling import number_of, word_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from batchchat.errors import BatchchatError
    from batchchat.events import Level, Listener
    from batchchat.records import Reply

MAX_CONCURRENCY = 1024
"""What an unset concurrency may grow to, if nobody tells."""
_LATELY_S = 2.0
"""A limit that made a request wait within this time holds the run back now."""
_NO_CEILINGS, _NOT_KNOWN = LimitCeilings(), Advertised()


class Permit:
    """A granted slot: one request and its reserved tokens. Settle it exactly once, from any task of the loop.

    `probe` is True for a request that is sent to see whether a provider that was down, or refused everybody, answers.
    """

    __slots__ = ("_grant", "_limiter")

    def __init__(self, limiter: Limiter, grant: Grant) -> None:
        self._limiter: Limiter | None = limiter
        self._grant = grant

    @property
    def tokens(self) -> int:
        """The tokens that were reserved."""
        return self._grant.tokens

    @property
    def granted_at(self) -> float:
        """When it was granted, by `anyio.current_time()`."""
        return self._grant.at

    @property
    def probe(self) -> bool:
        """Whether it may go to find out about the provider."""
        return self._grant.probe

    @property
    def key(self) -> object:
        """What tells its request apart."""
        return self._grant.key

    @key.setter
    def key(self, key: object) -> None:
        self._grant.key = key

    def settle(self, reply: Reply | None, now: float | None = None) -> None:
        """Give the slot back and tell what came of it; None if the attempt was abandoned.

        `now` is `anyio.current_time()`, if the caller has just read it. Raises RuntimeError when settled already.
        """
        limiter = self._limiter
        if limiter is None:
            raise RuntimeError("a permit is settled once")
        self._limiter = None
        limiter._settle(self._grant, reply, current_time() if now is None else now)  # noqa: SLF001 - its other half

    def give_back(self, now: float | None = None) -> None:
        """Settle a permit that was not used: neither its request nor its tokens were taken.

        Raises RuntimeError when settled already.
        """
        limiter = self._limiter
        self.settle(None, now)
        if limiter is not None:
            limiter._unused(self._grant)  # noqa: SLF001 - its other half


class _Waiter:
    __slots__ = ("event", "gone", "key", "tokens")

    def __init__(self, tokens: int, key: object) -> None:
        self.tokens = tokens
        self.key = key
        self.event = anyio.Event()
        self.gone = False


class Limiter:
    """What one provider lets us do with one model, shared by all that use it.

    `ceilings` are the job's, `advertised` is what the provider is known to allow: its concurrency bounds what an unset
    one may grow to. `listener` takes the events `breaker_opened`, `breaker_closed`, `pace_learned`, `pace_changed` and
    `paused_by_server`; `rng` spreads waits.

    Waiters are served in the order they came. Only the first of them sleeps with a timer; it is woken when something
    changes and wakes the next when it has its permit, so a grant costs the same with ten waiters as with thousands.
    """

    lost: BatchchatError | None = None
    """Why no permit comes any more; always None in a limiter that asks nobody."""

    def __init__(
        self,
        ceilings: LimitCeilings = _NO_CEILINGS,
        advertised: Advertised = _NOT_KNOWN,
        *,
        listener: Listener | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._listener = listener
        self._most_at_once = advertised.concurrency or MAX_CONCURRENCY
        self._controller = Controller(
            Rate(ceilings.requests_per_minute, advertised.requests_per_minute),
            Rate(ceilings.tokens_per_minute, advertised.tokens_per_minute),
            Concurrency(ceilings.concurrency, self._most_at_once),
            rng or random.Random(),  # noqa: S311 - spreads waits, protects nothing
            self._tell,
        )
        self._waiters: deque[_Waiter] = deque()
        self._gone = 0

    # -- granting ---------------------------------------------------------------------------------------------------

    def try_acquire(self, tokens: int, *, key: object = None, now: float | None = None) -> Permit | None:
        """Grant a permit now, or None if a slot, the pace, a closed gate or earlier waiters say no.

        `key` tells requests apart (`custom_id`): attempts of one request are no proof of an outage. `now` is
        `anyio.current_time()`, if the caller has just read it.
        """
        if self._waiters:
            return None
        controller = self._controller
        if now is None:
            now = current_time()
        if controller.wait(now, tokens) > 0.0:
            return None
        return Permit(self, controller.grant(now, tokens, key))

    def wait(self, now: float, tokens: int) -> float:
        """Return the seconds until a request may go if nothing else happens; infinite if only an event can help."""
        return self._controller.wait(now, tokens)

    def retune(
        self,
        *,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        concurrency: int | None = None,
    ) -> None:
        """Take other ceilings from the job while a run is going; None means that the job sets none.

        A lower ceiling counts what went in the last minute. Requests that are under way may end.
        """
        now = current_time()
        controller = self._controller
        for rate, ceiling in ((controller.requests, requests_per_minute), (controller.tokens, tokens_per_minute)):
            rate.ceiling = ceiling
            rate.apply(now)
        controller.concurrency.limit(concurrency, concurrency or self._most_at_once)
        self._wake()

    def suspect(self, key: object) -> None:
        """Say that this request failed for good in an earlier run: if it does so again, the provider is not down."""
        self._controller.breaker.suspect(key)

    def blame(self, keys: Iterable[object]) -> None:
        """Say that the provider is not down: these requests are the cause of their failures. Everybody may go again."""
        breaker = self._controller.breaker
        for key in keys:
            breaker.suspect(key)
        if breaker.active:
            self._controller.close_breaker(current_time())
            self._wake()

    def hurry(self) -> None:
        """Let the next probe of a provider that is down go at once, if it waits longer."""
        breaker = self._controller.breaker
        breaker.next_at = min(breaker.next_at, current_time())
        self._wake()

    def _wake(self) -> None:
        if self._waiters:
            self._waiters[0].event.set()

    async def acquire(self, tokens: int, *, key: object = None) -> Permit:
        """Wait in turn for a permit. Returns without giving way to other tasks where one is free.

        A cancelled wait takes nothing with it and wakes the next in line.
        """
        permit = self.try_acquire(tokens, key=key)
        if permit is not None:
            return permit
        waiter = _Waiter(tokens, key)
        self._waiters.append(waiter)
        try:
            if self._waiters[0] is not waiter:
                await waiter.event.wait()
            while True:
                now = current_time()
                delay = self._controller.wait(now, tokens)
                if delay <= 0.0:
                    return Permit(self, self._controller.grant(now, tokens, key))
                if waiter.event.is_set():
                    waiter.event = anyio.Event()
                if delay == math.inf:
                    await waiter.event.wait()
                else:
                    with anyio.move_on_after(delay):
                        await waiter.event.wait()
        finally:
            self._leave(waiter)

    def _leave(self, waiter: _Waiter) -> None:
        """Take a waiter out of the line. One in the middle is only marked, and swept up with many others."""
        waiters = self._waiters
        waiter.gone = True
        if waiters[0] is not waiter:
            self._gone += 1
            if self._gone > 64 and 2 * self._gone > len(waiters):
                self._waiters = deque(other for other in waiters if not other.gone)
                self._gone = 0
            return
        waiters.popleft()
        while waiters and waiters[0].gone:
            waiters.popleft()
            self._gone -= 1
        if waiters:
            waiters[0].event.set()

    # -- settling ---------------------------------------------------------------------------------------------------

    def _settle(self, grant: Grant, reply: Reply | None, now: float) -> None:
        if reply is None:
            self._controller.abandon(grant, now)
        else:
            self._controller.settle(grant, reply, now)
        if self._waiters:
            self._waiters[0].event.set()

    def _unused(self, grant: Grant) -> None:
        self._controller.unused(grant)

    # -- telling ----------------------------------------------------------------------------------------------------

    def pace(self) -> Pace:
        """Return what is allowed and used now.

        `paused_s` is how long nobody may go yet; rates are over the last minute.
        """
        return pace_of(self._controller, current_time())

    @property
    def down(self) -> bool:
        """Whether the provider seems to be down, so that only probes may go."""
        return self._controller.breaker.active

    @property
    def in_use(self) -> int:
        """How many requests are under way."""
        return self._controller.in_use

    @property
    def refusing(self) -> bool:
        """Whether the provider refuses everybody for its rate limit, so that only probes may go."""
        return self._controller.hold.active

    @property
    def failed_probes(self) -> int:
        """How many probes have failed since the provider went down."""
        return self._controller.breaker.tries

    @property
    def window(self) -> int:
        """How many requests may be under way at once now, however many are."""
        return self._controller.concurrency.slots

    @property
    def answered(self) -> bool:
        """Whether any HTTP response ever came, whatever it said."""
        return self._controller.answered

    @property
    def outage_s(self) -> float:
        """Seconds since the provider last answered well, while it is down or refuses everybody; 0 otherwise."""
        return self._controller.outage_s(current_time())

    @property
    def unreachable_s(self) -> float:
        """Seconds since the first failed connection, while nothing has ever answered; 0 otherwise."""
        return self._controller.unreachable_s(current_time())

    def _tell(self, name: str, message: str, level: Level, fields: Mapping[str, Any]) -> None:
        if self._listener is not None:
            self._listener(Event(name, message, level, fields))


def pace_of(controller: Controller, now: float) -> Pace:
    """Return what a controller allows and what is used now; see `Limiter.pace`."""
    requests, tokens = controller.requests.schedule, controller.tokens.schedule
    for schedule in (requests, tokens):
        schedule.minute.advance(int(now * TICKS_PER_S))
    breaker = controller.breaker
    gates = (gate for gate in (breaker, controller.hold) if gate.active)
    until = max(controller.hints.paused_until, *(gate.next_at for gate in gates), now, now)
    state = ("probing" if breaker.probing else "open") if breaker.active else "closed"
    return Pace(
        requests_per_minute=requests.rate,
        tokens_per_minute=tokens.rate,
        concurrency=controller.concurrency.slots,
        requests_used=requests.minute.total,
        tokens_used=tokens.minute.total,
        in_use=controller.in_use,
        paused_s=until - now,
        breaker=state,  # type: ignore[arg-type] # one of the three literals
        held_by=held_by(controller, now),
    )


def held_by(controller: Controller, now: float) -> str | None:
    """Name what holds requests back now and whose word that is, to stand behind "held by". None if nothing does."""
    if controller.breaker.active:
        return "a provider that does not answer"
    if controller.hold.active:
        return "a provider that refuses everything"
    if controller.hints.paused_until > now:
        return f"a wait of {controller.hints.paused_until - now:.0f} s more that the provider asked for"
    for axis, rate in controller.pacing.rates.items():
        if rate.schedule.rate is not None and now - rate.schedule.bound_at < _LATELY_S:
            return f"{number_of(rate.schedule.rate)} {axis}/min, {word_of(rate, now)}"
    if now - controller.concurrency.full_at < _LATELY_S:
        return f"{controller.concurrency.slots} at once, {controller.concurrency.word}"
    return None
