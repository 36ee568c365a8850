"""The limiter: hands out permits, settles them against replies, and keeps everybody waiting in turn."""

from __future__ import annotations

import math
import random
from collections import deque
from typing import TYPE_CHECKING

import anyio
from anyio import current_time

from batchchat.events import Event, Pace
from batchchat.limits.concurrency import Concurrency
from batchchat.limits.gates import Breaker, Siege
from batchchat.limits.pace import MINUTE, TICKS_PER_S, RatePace
from batchchat.records import Axis, ErrorKind, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from batchchat.events import Level, Listener
    from batchchat.records import LimitHeaders, Reply

MAX_CONCURRENCY = 1024
"""What an unset concurrency may grow to, where nobody tells."""
HINT_MAX_S = 120.0
"""The longest wait that one Retry-After is believed."""
_LONG_S = 15.0
"""Where the server asks for more than that, wait this long, then twice as long each time it refuses again."""
_SANE_S = 86_400.0
_LIMIT_MAX = 10**9
_EVIDENCE = 5
"""Fewer accepted requests than this say nothing about a limit at the first refusal."""
_STRIKES = 3
_TELL_AGAIN_S = 10.0
_REVIEW_S = 1.0
_RATE_LIMIT = Verdict.RATE_LIMIT
_TRANSIENT = Verdict.TRANSIENT
_DOWN = frozenset({ErrorKind.CONNECTION, ErrorKind.TIMEOUT, ErrorKind.SERVER, ErrorKind.PROTOCOL})


class Permit:
    """A granted slot: one request and its reserved tokens. Settle it exactly once, from any task of the loop.

    `probe` is True for a request that is sent to see whether a provider that was down, or refused everybody, answers.
    """

    __slots__ = ("_limiter", "granted_at", "key", "level", "probe", "tokens")

    def __init__(self, limiter: Limiter, key: object, tokens: int, granted_at: float, level: int) -> None:
        self._limiter: Limiter | None = limiter
        self.key = key
        self.tokens = tokens
        self.granted_at = granted_at
        self.level = level
        self.probe = False

    def settle(self, reply: Reply | None, now: float | None = None) -> None:
        """Give the slot back and tell what came of it; None where the attempt was abandoned.

        `now` is `anyio.current_time()`, where the caller has just read it. Raises RuntimeError when settled already.
        """
        limiter = self._limiter
        if limiter is None:
            raise RuntimeError("a permit is settled once")
        self._limiter = None
        limiter._settle(self, reply, current_time() if now is None else now)  # noqa: SLF001 - its other half

    def give_back(self, now: float | None = None) -> None:
        """Settle a permit that was not used: neither its request nor its tokens were taken.

        Raises RuntimeError when settled already.
        """
        limiter = self._limiter
        self.settle(None, now)
        if limiter is not None:
            limiter._untake(self)  # noqa: SLF001 - its other half


class _Waiter:
    __slots__ = ("event", "gone", "key", "tokens")

    def __init__(self, tokens: int, key: object) -> None:
        self.tokens = tokens
        self.key = key
        self.event = anyio.Event()
        self.gone = False


class Limiter:
    """What one provider lets us do with one model, shared by all that use it.

    `requests_per_minute`, `tokens_per_minute` and `concurrency` are the job's ceilings: never exceeded, None where not
    set. `advertised_*` are what the provider is known to allow; response headers correct them, refusals find the
    truth. `max_concurrency` bounds what an unset concurrency may grow to. `listener` takes the events `breaker_opened`,
    `breaker_closed`, `pace_learned`, `pace_changed` and `paused_by_server`; `rng` spreads waits.

    Waiters are served in the order they came. Only the first of them sleeps with a timer; it is woken when something
    changes and wakes the next when it has its permit, so a grant costs the same with ten waiters as with thousands.
    """

    def __init__(
        self,
        *,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        concurrency: int | None = None,
        advertised_requests_per_minute: float | None = None,
        advertised_tokens_per_minute: float | None = None,
        advertised_concurrency: int | None = None,
        max_concurrency: int = MAX_CONCURRENCY,
        listener: Listener | None = None,
        rng: random.Random | None = None,
    ) -> None:
        rng = rng or random.Random()  # noqa: S311 - spreads waits, protects nothing
        self._requests = RatePace(requests_per_minute, advertised_requests_per_minute)
        self._tokens = RatePace(tokens_per_minute, advertised_tokens_per_minute)
        self._paces = {Axis.REQUESTS: self._requests, Axis.TOKENS: self._tokens}
        self._concurrency = Concurrency(concurrency, advertised_concurrency or max_concurrency)
        self._breaker = Breaker(rng)
        self._siege = Siege(rng)
        self._listener = listener
        self._waiters: deque[_Waiter] = deque()
        self._in_use = 0
        self._gated = False
        self._paused_until = -math.inf
        self._refused_since: float | None = None
        self._failing_since: float | None = None
        self._answered = False
        self._strikes: list[float] = []
        self._sieges = 0
        self._paused_by: Axis | None = None
        self._headers_at = -math.inf
        self._heard: dict[Axis, float] = {}
        self._told: dict[Axis, tuple[float, float]] = {}
        self._gone = 0
        self._review_at = -math.inf

    # -- granting ---------------------------------------------------------------------------------------------------

    def try_acquire(self, tokens: int, *, key: object = None, now: float | None = None) -> Permit | None:
        """Grant a permit now, or None where a slot, the pace, a closed gate or earlier waiters say no.

        `key` tells requests apart (`custom_id`): attempts of one request are no proof of an outage. `now` is
        `anyio.current_time()`, where the caller has just read it.
        """
        if self._waiters or (self._in_use >= self._concurrency.slots and not self._breaker.active):
            return None
        if now is None:
            now = current_time()
        if self._delay(now, tokens) > 0.0:
            return None
        return self._grant(now, tokens, key)

    def suspect(self, key: object) -> None:
        """Say that this request failed for good in an earlier run: if it does so again, the provider is not down."""
        self._breaker.suspect(key)

    def blame(self, keys: Iterable[object]) -> None:
        """Say that the provider is not down: these requests are the cause of their failures. Everybody may go again."""
        for key in keys:
            self._breaker.suspect(key)
        if self._breaker.active:
            self._close_breaker(current_time())
            if self._waiters:
                self._waiters[0].event.set()

    def hurry(self) -> None:
        """Let the next probe of a provider that is down go at once, where it waits longer."""
        self._breaker.next_at = min(self._breaker.next_at, current_time())
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
                delay = self._delay(now, tokens)
                if delay <= 0.0:
                    return self._grant(now, tokens, key)
                if waiter.event.is_set():
                    waiter.event = anyio.Event()
                if delay == math.inf:
                    await waiter.event.wait()
                else:
                    with anyio.move_on_after(delay):
                        await waiter.event.wait()
        finally:
            self._leave(waiter)

    def _delay(self, now: float, tokens: int) -> float:
        """Seconds until this request may go if nothing else happens; infinite where only an event can help."""
        # What hangs in an outage must not keep the probe out: it may use what the window lost to timeouts.
        if self._in_use >= (self._concurrency.cap if self._breaker.active else self._concurrency.slots):
            return math.inf
        delay = 0.0
        if self._gated:
            delay = max(self._breaker.delay(now), self._siege.delay(now), self._paused_until - now)
            if delay <= 0.0 and not self._breaker.active and not self._siege.active:
                self._gated = False
        for pace, amount in ((self._requests, 1), (self._tokens, tokens)):
            if pace.rate is not None and (wait := pace.delay(now, amount)) > delay:
                delay = wait
        return delay

    def _grant(self, now: float, tokens: int, key: object) -> Permit:
        tick = int(now * TICKS_PER_S)
        self._in_use = level = self._in_use + 1
        if level >= self._concurrency.enough:
            self._concurrency.full_at = now
        self._requests.take(now, tick, 1)
        self._tokens.take(now, tick, tokens)
        permit = Permit(self, key, tokens, now, level)
        if self._gated:
            permit.probe = self._breaker.active or self._siege.active
            self._breaker.probing = self._breaker.active
            self._siege.probing = self._siege.active
        return permit

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

    def _settle(self, permit: Permit, reply: Reply | None, now: float) -> None:
        self._in_use -= 1
        if reply is None:
            if permit.probe:
                self._release(now)
        else:
            used = reply.usage.total_tokens if reply.usage is not None else None
            if used is None and not reply.sent:
                used = 0
            if used is not None and used != permit.tokens and used >= 0:
                self._tokens.settle(permit.granted_at, used - permit.tokens)
            if reply.limits is not None:
                self._hear(permit, reply.limits, now)
            verdict = reply.verdict
            if verdict is _RATE_LIMIT:
                self._refused(permit, reply, now)
            elif verdict is _TRANSIENT:
                self._failed(permit, reply, now)
            else:
                self._accepted(permit, now)
        if self._waiters:
            self._waiters[0].event.set()

    def _untake(self, permit: Permit) -> None:
        """Take what an unused permit reserved out of the pace."""
        self._requests.settle(permit.granted_at, -1)
        self._tokens.settle(permit.granted_at, -permit.tokens)

    def _release(self, now: float) -> None:
        if self._breaker.active:
            self._breaker.release(now)
        if self._siege.active:
            self._siege.release(now)

    def _accepted(self, permit: Permit, now: float) -> None:
        """The provider answered this request, whatever it said: it is up, and nothing held the request back."""
        self._answered = True
        self._refused_since = None
        self._concurrency.succeeded(now, permit.granted_at, permit.level)
        if self._breaker.watchful:
            self._breaker.succeeded(permit.granted_at, permit.key)
        if self._breaker.active:
            if permit.probe:
                self._close_breaker(now)
            elif not self._breaker.probing:
                self._breaker.next_at = min(self._breaker.next_at, now)
        if self._siege.active and permit.probe:
            self._end_siege(now)
        if now >= self._review_at:
            self._review_at = now + _REVIEW_S
            for axis, pace in self._paces.items():
                if pace.grow(now):
                    self._tell_pace(axis, pace, now)

    def _failed(self, permit: Permit, reply: Reply, now: float) -> None:
        """A transient failure: the provider may be down, or overloaded."""
        failure = reply.failure
        kind = failure.kind if failure is not None else ErrorKind.SERVER
        status = failure.http_status if failure is not None else None
        if status is not None:
            self._answered = True
        elif kind is ErrorKind.CONNECTION and not self._answered and self._failing_since is None:
            self._failing_since = now
        if status == 503 or kind is ErrorKind.TIMEOUT:
            self._concurrency.troubled(now, permit.granted_at)
        if permit.probe and self._siege.active:
            self._siege.probe_failed(now, None)
        if kind not in _DOWN:
            if permit.probe and self._breaker.active:
                self._breaker.release(now)
        elif self._breaker.active:
            if permit.probe:
                self._breaker.probe_failed(now)
        elif permit.granted_at >= self._breaker.opened_at and self._breaker.failed(
            now,
            permit.granted_at,
            permit if permit.key is None else permit.key,
            suspicious=reply.sent,
            under_way=self._in_use,
        ):
            self._gated = True
            message = failure.message if failure is not None else "server error"
            self._tell(
                "breaker_opened",
                f"the provider seems to be down ({message}); waiting for it",
                "warning",
                {"error_kind": str(kind), "http_status": status},
            )

    def _close_breaker(self, now: float) -> None:
        down_s = now - (self._breaker.since if self._breaker.since is not None else now)
        self._breaker.open()
        self._breaker.opened_at = now
        self._concurrency.restart(self._in_use)
        self._tell("breaker_closed", f"the provider answers again after {down_s:.0f} s", "info", {"down_s": down_s})

    # -- refusals ---------------------------------------------------------------------------------------------------

    def _refused(self, permit: Permit, reply: Reply, now: float) -> None:
        """A 429. All refusals of one round trip count as one."""
        self._answered = True
        if self._refused_since is None:
            self._refused_since = now
        self._requests.refused(permit.granted_at, 1.0)
        if reply.usage is None:
            self._tokens.refused(permit.granted_at, permit.tokens)
        if permit.probe and self._breaker.active:
            self._close_breaker(now)
        siege = self._siege
        axis = _axis(reply)
        hint = self._believe(reply.retry_after)
        if siege.active and permit.probe:
            if not siege.probe_refused(now, axis, hint):
                self._concurrency.undo()
        elif axis is Axis.CONCURRENCY and self._in_use > 0:
            self._concurrency.refused(now, permit.granted_at, permit.level)
        elif siege.active:
            siege.heard(now, hint)
            if siege.axis is Axis.UNKNOWN and not siege.is_rate:
                self._concurrency.refused(now, permit.granted_at, permit.level)
        elif permit.granted_at > siege.over_at:
            self._begin_siege(permit, axis, hint, now)

    def _begin_siege(self, permit: Permit, axis: Axis, hint: float | None, now: float) -> None:
        if hint is not None:
            self._tell_pause(hint, axis)
        for pace in self._paces.values():
            pace.mark(now)
        is_rate = self._concurrency.stands(permit.level) or any(
            pace.rate is not None and pace.near_limit for pace in self._paces.values()
        )
        if axis is Axis.UNKNOWN and not is_rate:
            self._concurrency.refused(now, permit.granted_at, permit.level)
        self._siege.begin(now, axis, hint, is_rate=is_rate)
        self._gated = True

    def _end_siege(self, now: float) -> None:
        """Something was accepted again: how long that took, and how often it happens, tells which limit it was.

        A limit of requests at once lets the next one in as soon as one has ended; a limit per minute keeps refusing.
        """
        siege = self._siege
        since = siege.since if siege.since is not None else now
        siege.end(now)
        if siege.axis is Axis.CONCURRENCY:
            return
        if siege.axis is Axis.UNKNOWN and not siege.is_rate:
            self._strikes = [at for at in self._strikes if at > now - MINUTE]
            self._strikes.append(now)
            if siege.quick and len(self._strikes) < _STRIKES:
                self._concurrency.restart(self._in_use)
                return
            self._strikes.clear()
            self._concurrency.undo()
        self._sieges += 1
        if self._requests.minute.total < _EVIDENCE and self._sieges == 1:
            self._concurrency.restart(0, fresh=1)
            return
        for axis, pace in self._blamed(siege.axis):
            pace.learn(now, since)
            self._tell_pace(axis, pace, now)

    def _blamed(self, axis: Axis) -> list[tuple[Axis, RatePace]]:
        """The paces that a refusal on `axis` speaks about; for an unknown one those that were near their limit."""
        if axis in self._paces:
            return [(axis, self._paces[axis])]
        return [item for item in self._paces.items() if item[1].near_limit] or list(self._paces.items())

    def _believe(self, retry_after: float | None) -> float | None:
        """Bound a server's wait. Garbage is no hint; a long one is a reason to ask more seldom, not to stop."""
        if retry_after is None or not 0.0 <= retry_after <= _SANE_S:
            return None
        if retry_after <= HINT_MAX_S:
            return retry_after
        return min(HINT_MAX_S, _LONG_S * 2.0 ** (self._siege.tries if self._siege.active else 0))

    # -- headers ----------------------------------------------------------------------------------------------------

    def _hear(self, permit: Permit, limits: LimitHeaders, now: float) -> None:
        """Take in rate-limit headers: the limit where two replies agree, an exhausted allowance from the newest."""
        newest = permit.granted_at >= self._headers_at
        if newest:
            self._headers_at = permit.granted_at
        if limits.limit_requests is not None and limits.limit_requests != self._requests.advertised:
            self._hear_limit(Axis.REQUESTS, limits.limit_requests, limits.remaining_requests, now)
        if limits.limit_tokens is not None and limits.limit_tokens != self._tokens.advertised:
            self._hear_limit(Axis.TOKENS, limits.limit_tokens, limits.remaining_tokens, now)
        if newest and (self._paused_by is not None or not limits.remaining_requests or not limits.remaining_tokens):
            self._hear_remaining(Axis.REQUESTS, limits.remaining_requests, limits.reset_requests, now)
            self._hear_remaining(Axis.TOKENS, limits.remaining_tokens, limits.reset_tokens, now)

    def _hear_remaining(self, axis: Axis, remaining: int | None, reset: float | None, now: float) -> None:
        """Pause where an allowance is used up; go on where the same one is not any more."""
        if remaining is None:
            return
        if remaining > 0:
            if self._paused_by is axis:
                self._paused_by = None
                self._paused_until = now
        elif remaining == 0 and reset is not None and 0.0 < reset <= HINT_MAX_S:
            self._exhausted(axis, self._paces[axis], min(reset, MINUTE), now)

    def _hear_limit(self, axis: Axis, limit: int, remaining: int | None, now: float) -> None:
        """Believe a limit that two replies name, unless they or what was accepted contradict it."""
        pace = self._paces[axis]
        if not 0 < limit <= _LIMIT_MAX or (remaining is not None and not 0 <= remaining <= limit):
            return
        accepted = pace.minute.total - self._in_use if axis is Axis.REQUESTS else pace.minute.total / 2
        if accepted > limit:
            return
        if self._heard.get(axis) != limit:
            self._heard[axis] = limit
            return
        pace.told(now, float(limit))
        self._tell_pace(axis, pace, now)

    def _exhausted(self, axis: Axis, pace: RatePace, reset: float, now: float) -> None:
        """Wait for the allowance, unless our own requests explain why it is used up: then the schedule knows better."""
        if pace.near_limit and pace.rate is not None:
            return
        if now + reset <= self._paused_until:
            return
        self._paused_until = now + reset
        self._paused_by = axis
        self._gated = True
        if pace.rate is None:
            self._concurrency.restart(self._in_use)
        self._tell_pause(reset, axis)

    # -- telling ----------------------------------------------------------------------------------------------------

    def pace(self) -> Pace:
        """What is allowed and used now. `paused_s` is how long nobody may go yet; rates are over the last minute."""
        now = current_time()
        for pace in self._paces.values():
            pace.minute.advance(int(now * TICKS_PER_S))
        gates = (gate for gate in (self._breaker, self._siege) if gate.active)
        until = max(self._paused_until, *(gate.next_at for gate in gates), now, now)
        state = ("probing" if self._breaker.probing else "open") if self._breaker.active else "closed"
        return Pace(
            requests_per_minute=self._requests.rate,
            tokens_per_minute=self._tokens.rate,
            concurrency=self._concurrency.slots,
            requests_used=self._requests.minute.total,
            tokens_used=self._tokens.minute.total,
            in_use=self._in_use,
            paused_s=until - now,
            breaker=state,  # type: ignore[arg-type] # one of the three literals
        )

    @property
    def down(self) -> bool:
        """Whether the provider seems to be down, so that only probes may go."""
        return self._breaker.active

    @property
    def failed_probes(self) -> int:
        """How many probes have failed since the provider went down."""
        return self._breaker.tries

    @property
    def window(self) -> int:
        """How many requests may be under way at once now, however many are."""
        return self._concurrency.slots

    @property
    def answered(self) -> bool:
        """Whether any HTTP response ever came, whatever it said."""
        return self._answered

    @property
    def outage_s(self) -> float:
        """Seconds since the provider last answered well, while it is down or refuses everybody; 0 otherwise."""
        now = current_time()
        since = [at for at in (self._breaker.since, self._refused_since) if at is not None]
        return now - min(since) if since else 0.0

    @property
    def unreachable_s(self) -> float:
        """Seconds since the first failed connection, while nothing has ever answered; 0 otherwise."""
        return 0.0 if self._answered or self._failing_since is None else current_time() - self._failing_since

    def _tell(self, name: str, message: str, level: Level, fields: Mapping[str, object]) -> None:
        if self._listener is not None:
            self._listener(Event(name, message, level, fields))

    def _tell_pause(self, seconds: float, axis: Axis) -> None:
        fields = {"seconds": round(seconds, 3), "axis": str(axis)}
        self._tell("paused_by_server", f"the provider asks to wait {seconds:.1f} s", "info", fields)

    def _tell_pace(self, axis: Axis, pace: RatePace, now: float) -> None:
        """Tell a new pace, and later changes of it that matter and do not come too often."""
        rate = pace.rate
        if rate is None:
            return
        name, (before, at) = "pace_changed", self._told.get(axis, (0.0, -math.inf))
        if not before:
            name = "pace_learned"
        elif abs(rate - before) < 0.1 * before or now < at + _TELL_AGAIN_S:
            return
        self._told[axis] = (rate, now)
        fields = {"axis": str(axis), "per_minute": round(rate, 1)}
        self._tell(name, f"going on at {rate:.0f} {axis} a minute", "info", fields)


def _axis(reply: Reply) -> Axis:
    """Which limit a refusal is about: as told, else the one whose allowance the headers show used up."""
    if reply.axis is Axis.UNKNOWN and reply.limits is not None:
        used_up = (reply.limits.remaining_requests == 0, reply.limits.remaining_tokens == 0)
        if used_up == (True, False):
            return Axis.REQUESTS
        if used_up == (False, True):
            return Axis.TOKENS
    return reply.axis
