"""One per-minute axis: requests or tokens.

A known limit of N a minute is kept by a schedule (GCRA, the leaky bucket of ATM traffic control): each unit
pushes the schedule on by `T = (60 + CATCH_UP + jitter) / N` seconds, and a request may go when the schedule
is at most `CATCH_UP` seconds ahead of now. Why that T: unit k+N goes at least `N*T - CATCH_UP = 60 +
jitter` seconds after unit k, so a server that counts a sliding window of 60 seconds never sees N+1 in one,
as long as the second of the two is on its way at most `jitter` seconds less than the first. `CATCH_UP` is
what a late timer or a busy loop may make good, and the only burst. With both at 0.1 s the pace is 60/60.2 =
99.67 % of the limit, the same share at 6,000 a minute as at 10. A refusal at full pace says that the way's
jitter is larger: it doubles, up to 2 s (96.6 %).

A request of many tokens is paid for after it went. That alone lets a window exceed N by one request, so a
count of the last minute is kept too, and what does not fit into it waits. What is larger than the whole
allowance goes alone.

An unknown limit is learned from refusals: what was accepted before one is an estimate of the limit. The
pace goes on below it, tries a little more after a while, in steps that double while nothing fails, and
remembers where it failed.
"""

from __future__ import annotations

import math

MINUTE = 60.0
CATCH_UP = 0.1
JITTER = 0.1
JITTER_MAX = 2.0
TICKS_PER_S = 10
_SIZE = 60 * TICKS_PER_S + 2
"""Two ticks more than a minute: the running one is only partly over, the other is for an uneven way (see JITTER)."""

_BELOW = 0.97
"""Where to go on, relative to what a refusal showed."""
_STEP_S = 15.0
_STEP = 0.02
_STEP_MAX = 0.25
_HOLD_S = 30.0
_HOLD_MAX_S = 960.0
_EPSILON = 1e-9


class Minute:
    """How much was taken in the last minute, kept in ticks of 0.1 s: constant memory at any rate."""

    __slots__ = ("counts", "head", "total")

    def __init__(self) -> None:
        self.counts = [0.0] * _SIZE
        self.head = 0
        self.total = 0.0

    def correct(self, tick: int, amount: float) -> None:
        """Change what was counted at an earlier `tick`, where that is still within the last minute."""
        if self.head - _SIZE < tick <= self.head:
            index = tick % _SIZE
            amount = max(amount, -self.counts[index])
            self.counts[index] += amount
            self.total += amount

    def advance(self, tick: int) -> None:
        """Forget what is older than a minute at `tick`."""
        passed = tick - self.head
        if passed <= 0:
            return
        counts = self.counts
        if passed >= _SIZE:
            self.counts = [0.0] * _SIZE
            self.total = 0.0
        else:
            for gone in range(self.head + 1, tick + 1):
                index = gone % _SIZE
                if counts[index]:
                    self.total -= counts[index]
                    counts[index] = 0.0
            if self.total < _EPSILON:
                self.total = 0.0
        self.head = tick

    def filled(self) -> list[tuple[int, float]]:
        """List the ticks that hold something, oldest first, with what they hold."""
        return [
            (tick, self.counts[tick % _SIZE])
            for tick in range(self.head - _SIZE + 1, self.head + 1)
            if self.counts[tick % _SIZE]
        ]

    def room_at(self, amount: float, limit: float) -> float:
        """Time at which `amount` more fits under `limit`: when enough has left, or all of it."""
        excess = self.total + amount - limit
        at = 0.0
        for tick, count in self.filled():
            if excess <= _EPSILON:
                break
            excess -= count
            at = (tick + _SIZE) / TICKS_PER_S
        return at


class RatePace:
    """The pace of one axis. `ceiling` is the job's limit and never exceeded; `advertised` is what the provider tells.

    `rate` is the limit kept now, in units a minute, None while nothing is known; `learned` is a limit below (or in
    the absence of) the known ones that refusals taught.
    """

    __slots__ = (
        "_failed_at",
        "_grow_at",
        "_hold_s",
        "_hold_until",
        "_interval",
        "_jitter",
        "_mark",
        "_schedule",
        "_step",
        "advertised",
        "binding",
        "ceiling",
        "learned",
        "minute",
        "rate",
    )

    def __init__(self, ceiling: float | None, advertised: float | None) -> None:
        self.ceiling = ceiling
        self.advertised = advertised
        self.learned: float | None = None
        self.rate: float | None = None
        self.minute = Minute()
        self.binding = False
        self._interval = 0.0
        self._jitter = JITTER
        self._schedule = -math.inf
        self._failed_at = 0.0
        self._step = _STEP
        self._hold_s = _HOLD_S
        self._hold_until = 0.0
        self._grow_at = 0.0
        self._mark: float | None = None
        self._apply(0.0)

    @property
    def known(self) -> float | None:
        """The limit that the job or the provider tells, the lower of the two; None where neither does."""
        told = [limit for limit in (self.ceiling, self.advertised) if limit is not None]
        return min(told) if told else None

    @property
    def near_limit(self) -> bool:
        """Whether the last minute, or the one before a refusal, used nine tenths of the rate, or none is known."""
        return self.rate is None or max(self.minute.total, self._mark or 0.0) >= 0.9 * self.rate

    def delay(self, now: float, amount: float) -> float:
        """Seconds until `amount` may go; 0 when it may go now."""
        if not self._interval:
            return 0.0
        wait = self._schedule - CATCH_UP - now
        if wait <= _EPSILON:
            minute = self.minute
            minute.advance(int(now * TICKS_PER_S))
            if minute.total == 0.0 or minute.total + amount <= (self.rate or 0.0) + _EPSILON:
                return 0.0
            wait = minute.room_at(amount, self.rate or 0.0) - now
            if wait <= _EPSILON:
                return 0.0
        self.binding = True
        return wait

    def take(self, now: float, tick: int, amount: float) -> None:
        """Count `amount` as sent now."""
        minute = self.minute
        if tick > minute.head:
            minute.advance(tick)
        minute.counts[minute.head % _SIZE] += amount
        minute.total += amount
        if self._interval:
            schedule = self._schedule
            self._schedule = (schedule if schedule > now else now) + amount * self._interval

    def settle(self, taken_at: float, difference: float) -> None:
        """Correct what was taken then by `difference`: real usage less the reserve."""
        self.minute.correct(int(taken_at * TICKS_PER_S), difference)
        self._schedule += difference * self._interval

    def refused(self, taken_at: float, amount: float) -> None:
        """Take `amount` out of the count of what was accepted; the schedule stays, since it was sent."""
        self.minute.correct(int(taken_at * TICKS_PER_S), -amount)
        if self._mark is not None:
            self._mark = max(0.0, self._mark - amount)

    def mark(self, now: float) -> None:
        """Remember how much the minute before a refusal had accepted: `learn` asks for it."""
        self.minute.advance(int(now * TICKS_PER_S))
        self._mark = self.minute.total

    def learn(self, now: float, since: float) -> None:
        """Draw the conclusion of a refusal at `since` that is over: something was accepted again.

        Accepted in the minute before the refusal: the limit itself where the server counts windows. Accepted since,
        over the whole time with the wait in it: the limit of a bucket that refills steadily. The larger is right.
        """
        self.minute.advance(int(now * TICKS_PER_S))
        filled = self.minute.filled()
        span = now - min(since, filled[0][0] / TICKS_PER_S if filled else since)
        over_time = self.minute.total * MINUTE / min(MINUTE, max(1.0, span))
        estimate = max(self._mark or 0.0, over_time, 1.0)
        self._mark = None
        if self.rate is not None and self.learned is None and estimate >= 0.95 * self.rate:
            self._jitter = min(JITTER_MAX, 2 * self._jitter)
        else:
            if self.learned is not None:
                estimate = min(max(estimate, self.learned / 2), self.learned)
            again = abs(estimate - self._failed_at) <= 0.1 * self._failed_at
            self._hold_s = min(_HOLD_MAX_S, 2 * self._hold_s) if again else _HOLD_S
            self._failed_at = estimate
            self._hold_until = now + self._hold_s
            self._step = _STEP
            self.learned = _BELOW * estimate
        self._apply(now)

    def grow(self, now: float) -> bool:
        """Try a little more, where a learned pace holds requests back and has held for a while; tell whether it did."""
        if self.learned is None or now < self._grow_at:
            return False
        self._grow_at = now + _STEP_S
        if not self.binding or now < self._hold_until:
            return False
        self.binding = False
        self.learned *= 1.0 + self._step
        self._step = min(_STEP_MAX, 2 * self._step)
        if self.known is not None and self.learned >= self.known:
            self.learned = None
        self._apply(now)
        return True

    def told(self, now: float, limit: float) -> None:
        """Take the provider's word for its limit. The first word replaces what refusals taught; later ones bound it."""
        if self.advertised is None or (self.learned is not None and self.learned >= limit):
            self.learned = None
        self.advertised = limit
        self._apply(now)

    def _apply(self, now: float) -> None:
        """Keep the lowest limit from now on, as if it had held through the last minute."""
        limits = [limit for limit in (self.ceiling, self.advertised, self.learned) if limit is not None]
        self.rate = min(limits) if limits else None
        self._interval = (MINUTE + CATCH_UP + self._jitter) / self.rate if self.rate else 0.0
        self._schedule = -math.inf
        if self._interval:
            for tick, count in self.minute.filled():
                at = min(now, (tick + 1) / TICKS_PER_S)
                self._schedule = max(self._schedule, at) + count * self._interval
