"""A smooth schedule under a known rate, and a count of the last minute.

A limit of N a minute is kept by a schedule (GCRA, the leaky bucket of ATM traffic control): each unit pushes the
schedule on by `T = (60 + CATCH_UP + jitter) / N` seconds, and a request may go when the schedule is at most
`CATCH_UP` seconds ahead of now. Why that T: unit k+N goes at least `N*T - CATCH_UP = 60 + jitter` seconds after unit
k, so a server that counts a sliding window of 60 seconds never sees N+1 in one, as long as the second of the two is
on its way at most `jitter` seconds less than the first. `CATCH_UP` is what a late timer or a busy loop may make good,
and the only burst. With both at 0.1 s the pace is 60/60.2 = 99.67 % of the limit, the same share at 6,000 a minute as
at 10.

A request of many tokens is paid for after it went. That alone lets a window exceed N by one request, so a count of the
last minute is kept too, and what does not fit into it waits. What is larger than the whole allowance goes alone.
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
_EPSILON = 1e-9


class Minute:
    """How much was taken in the last minute, kept in ticks of 0.1 s: constant memory at any rate.

    `more_s` are seconds that are counted beyond a minute: what is granted now may be sent so much later.
    """

    __slots__ = ("counts", "head", "size", "total")

    def __init__(self, more_s: float = 0.0) -> None:
        self.size = _SIZE + math.ceil(more_s * TICKS_PER_S)
        self.counts = [0.0] * self.size
        self.head = 0
        self.total = 0.0

    def correct(self, tick: int, amount: float) -> None:
        """Change what was counted at an earlier `tick`, if that is still within the last minute."""
        if self.head - self.size < tick <= self.head:
            index = tick % self.size
            amount = max(amount, -self.counts[index])
            self.counts[index] += amount
            self.total += amount

    def advance(self, tick: int) -> None:
        """Forget what is older than a minute at `tick`."""
        passed = tick - self.head
        if passed <= 0:
            return
        counts = self.counts
        if passed >= self.size:
            self.counts = [0.0] * self.size
            self.total = 0.0
        else:
            for gone in range(self.head + 1, tick + 1):
                index = gone % self.size
                if counts[index]:
                    self.total -= counts[index]
                    counts[index] = 0.0
            if self.total < _EPSILON:
                self.total = 0.0
        self.head = tick

    def filled(self) -> list[tuple[int, float]]:
        """Return the ticks that hold something, oldest first, with what they hold."""
        return [
            (tick, self.counts[tick % self.size])
            for tick in range(self.head - self.size + 1, self.head + 1)
            if self.counts[tick % self.size]
        ]

    def recent(self, seconds: float) -> float:
        """Return how much was taken in the last `seconds` (at most 60), the running tick left out."""
        ticks = range(max(self.head - int(seconds * TICKS_PER_S), self.head - self.size + 1), self.head)
        return sum(self.counts[tick % self.size] for tick in ticks)

    def room_at(self, amount: float, limit: float) -> float:
        """Return the time at which `amount` more fits under `limit`: when enough has left, or all of it."""
        excess = self.total + amount - limit
        at = 0.0
        for tick, count in self.filled():
            if excess <= _EPSILON:
                break
            excess -= count
            at = (tick + self.size) / TICKS_PER_S
        return at


class Schedule:
    """When the next unit may go under `rate` units a minute; None is no limit.

    `most` is what no window of 60 s may exceed; None is no limit. `minute` counts what went. `binding` is set whenever
    the schedule made somebody wait; who asks sets it back. `spread` is how many seconds after its grant a unit may be
    sent: 0 if whoever is granted sends at once.
    """

    __slots__ = ("_at", "_interval", "_jitter", "binding", "bound_at", "minute", "most", "rate")

    def __init__(self, spread: float = 0.0) -> None:
        self.rate: float | None = None
        self.most: float | None = None
        self.minute = Minute(spread)
        self.binding = False
        self.bound_at = -math.inf
        self._interval = 0.0
        self._jitter = JITTER + spread
        self._at = -math.inf

    def delay(self, now: float, amount: float) -> float:
        """Return the seconds until `amount` may go; 0 if it may go now."""
        if not self._interval:
            return 0.0
        wait = self._at - CATCH_UP - now
        if wait <= _EPSILON:
            if self.most is None:
                return 0.0
            minute = self.minute
            minute.advance(int(now * TICKS_PER_S))
            if minute.total == 0.0 or minute.total + amount <= self.most + _EPSILON:
                return 0.0
            wait = minute.room_at(amount, self.most) - now
            if wait <= _EPSILON:
                return 0.0
        self.binding = True
        self.bound_at = now
        return wait

    def take(self, now: float, tick: int, amount: float) -> None:
        """Count `amount` as sent now; `tick` is the tenth of a second that now is in."""
        minute = self.minute
        if tick > minute.head:
            minute.advance(tick)
        minute.counts[minute.head % minute.size] += amount
        minute.total += amount
        if self._interval:
            at = self._at
            self._at = (at if at > now else now) + amount * self._interval

    def settle(self, taken_at: float, difference: float) -> None:
        """Correct what was taken then by `difference`: real usage less the reserve."""
        self.minute.correct(int(taken_at * TICKS_PER_S), difference)
        if self._interval:
            self._at += difference * self._interval

    def refused(self, taken_at: float, amount: float) -> None:
        """Take `amount` out of the count of what was accepted; the schedule stays, since it was sent."""
        self.minute.correct(int(taken_at * TICKS_PER_S), -amount)

    def pay_back(self, now: float, amount: float) -> None:
        """Wait as long as `amount` takes at the rate: it went too early."""
        self._at = max(self._at, now) + max(0.0, amount) * self._interval

    def stand(self, until: float) -> None:
        """Let nothing go before one unit's time after `until`: what was sent till then is not known."""
        if self._interval:
            self._at = max(self._at, until + CATCH_UP + self._interval)

    def widen(self) -> None:
        """Allow for twice the jitter of the way: a limit that is known was refused at full pace."""
        self._jitter = min(JITTER_MAX, 2 * self._jitter)

    def set_rate(self, now: float, rate: float | None, most: float | None) -> None:
        """Keep `rate` from now on, and `most` in every window of 60 s.

        A limit that is known (`rate` is `most`) holds as if it had held through the last minute: what went then counts.
        A pace of our own choice begins now.
        """
        if rate == self.rate and most == self.most:
            return
        self.rate, self.most = rate, most
        before = self._interval
        self._interval = (MINUTE + CATCH_UP + self._jitter) / rate if rate else 0.0
        if not self._interval:
            self._at = -math.inf
        elif rate == most:
            self._at = -math.inf
            for tick, count in self.minute.filled():
                at = min(now, (tick + 1) / TICKS_PER_S)
                self._at = max(self._at, at) + count * self._interval
        elif before:
            # What is still to be waited for is the same number of units.
            self._at = now + (self._at - now) * self._interval / before if self._at > now else self._at
        else:
            self._at = now
