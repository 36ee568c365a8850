"""What a server delivered from the end of one refusal of everybody to the end of the next, and what that tells.

A window lets a whole allowance through and then nothing; a bucket refuses what comes too early. What was accepted in a
whole cycle, over its length, is what the server gives, whatever its rule is. If a minute of answers lies before the
refusal, that minute counts."""

from __future__ import annotations

import math
from collections.abc import Mapping

from batchchat.limits.rates import Rate
from batchchat.limits.schedule import MINUTE
from batchchat.records import Axis

SETTLED_S = 10.0
"""Seconds after which a new pace has delivered enough to be compared with."""
_SHORT_S = 6.0
"""A hold that lasts longer was a window that had to empty; a bucket gives something sooner."""
_CLEAR = 0.8
"""A window that had no room and one that had room, if they differ by more than this, make only a rough guess."""
_BEYOND = 1.03
"""A minute that took so much more than at the last refusal shows that the limit has risen."""
_DISPROVED = 1.5
"""A minute that took so many times what a window held shows that the window is no more."""
_STILL = 0.97
"""A window holds as much as before if no more than this has left."""


class Cycle:
    """The cycle that goes on, begun at `began`. `rough` tells that the last estimate is only a rough guess."""

    __slots__ = ("_marked_at", "_memory", "_probe_refused_at", "_rates", "began", "rough")

    def __init__(self, rates: Mapping[Axis, Rate]) -> None:
        self._rates = rates
        self.began = math.inf
        self.rough = False
        self._marked_at = self._probe_refused_at = -math.inf
        self._memory = 0.0

    # -- windows ------------------------------------------------------------------------------------------------------

    @property
    def counts_windows(self) -> bool:
        """Tell whether the server was seen to refuse until a window had emptied."""
        return self._memory >= _SHORT_S

    @property
    def remembers(self) -> float:
        """The seconds for which a window may hide its limit; 0 if the server does not count windows."""
        return self._memory if self.counts_windows else 0.0

    def refused_for(self, seconds: float) -> None:
        """Note how long everybody was refused."""
        self._memory = max(self._memory, min(MINUTE, seconds))

    def forget_windows(self) -> None:
        """Take the server for one that does not count windows."""
        self._memory = 0.0

    def beyond(self, now: float) -> bool:
        """Tell whether the last minute took more than when the limit was met."""
        return self._took(now, _BEYOND)

    def disproved(self, now: float) -> bool:
        """Tell whether a window took so much more than it held that it cannot be there any more."""
        return self._took(now, _DISPROVED)

    def _took(self, now: float, times: float) -> bool:
        return any(rate.learned and rate.last_minute(now) > times * rate.wall for rate in self._rates.values())

    def room_at(self, now: float, share: float) -> float | None:
        """Return when `share` of what fills a window will have left it; None if the server does not count windows.

        A probe before that would be refused.
        """
        if not self.counts_windows:
            return None
        at = math.inf
        for rate in self._rates.values():
            if rate.learned is not None and rate.last_minute(now) > 0.0:
                minute = rate.schedule.minute
                at = min(at, minute.room_at(max(1.0, share * rate.wall), minute.total))
        return at

    def apply(self, now: float, factor: float = 1.0) -> None:
        """Keep the limits of both rates from now on; `factor` is that of a trial of the learned ones."""
        for rate in self._rates.values():
            rate.apply(now, factor, windows=self.counts_windows)

    def scale(self, now: float, factor: float, *, least: float = 0.0, ahead: float | None = None) -> None:
        """Keep so many times the learned limits from now on, and at least `least`.

        With `ahead`, no limit of a window grows beyond so many times what went in the last minute. A learned limit that
        reaches a known one is dropped.
        """
        for rate in self._rates.values():
            learned = rate.learned
            if learned is not None:
                # A window hides its limit until it is full.
                if ahead is not None and self.counts_windows and learned.limit > ahead * rate.last_minute(now):
                    continue
                learned.limit = max(least, factor * learned.limit)
                learned.stated = False
                if rate.known is not None and learned.limit >= rate.known:
                    rate.learned = None
            rate.apply(now, windows=self.counts_windows)

    # -- what was delivered -------------------------------------------------------------------------------------------

    def begin(self, now: float) -> None:
        """Begin a cycle."""
        self.began = self._marked_at = now
        for rate in self._rates.values():
            rate.cycle = rate.accepted
            rate.marks = ((now, rate.accepted), (now, rate.accepted))

    def mark(self, now: float) -> None:
        """Keep what was accepted a minute ago and two minutes ago; to be called now and then."""
        if now >= self._marked_at + MINUTE:
            self._marked_at = now
            for rate in self._rates.values():
                rate.marks = (rate.marks[1], (now, rate.accepted))

    def limit_met(self, now: float) -> None:
        """Note what the last minute held as everybody began to be refused."""
        for rate in self._rates.values():
            rate.wall = rate.full = rate.last_minute(now)

    def also_refused(self, tokens: int) -> None:
        """Take a request that was under way when the limit was met, and is refused too, out of what the minute held."""
        for axis, amount in ((Axis.REQUESTS, 1), (Axis.TOKENS, tokens)):
            rate = self._rates[axis]
            rate.full = max(0.0, rate.full - amount)
            rate.wall = max(0.0, rate.wall - amount)

    def probe_refused(self, now: float) -> None:
        """Note a refused probe: the server still counts what was accepted in the last minute."""
        for rate in self._rates.values():
            rate.full = rate.last_minute(now)
        self._probe_refused_at = now

    def tells(self, now: float) -> bool:
        """Tell whether what was delivered says anything yet: a window that was full holds what was sent before."""
        return now >= self.began + (MINUTE if self.counts_windows else SETTLED_S)

    def delivered(self, rate: Rate, now: float) -> float:
        """Return what was accepted of a rate lately, in units a minute."""
        since, before = (self.began, rate.cycle) if now < self.began + MINUTE else rate.marks[0]
        return (rate.accepted - before) * MINUTE / (now - since)

    def estimate(self, rate: Rate, now: float, since: float) -> tuple[float, bool]:
        """Return what the server gives a minute by the cycle that ends now, and if a refusal said so itself.

        `since` is when the refusal of everybody began.
        """
        stated, rate.stated = rate.stated, None
        # A number below what was accepted in the last minute is wrong.
        if stated is not None and stated >= 0.9 * rate.full:
            return stated, True
        if self.counts_windows:
            return self._window(rate, now), False
        if since - self.began >= MINUTE:
            return rate.full, False  # the newest minute says more than a long cycle
        # There was room again somewhere between the last probe that was refused and the one that was not.
        ended = (now + self._probe_refused_at) / 2 if self._probe_refused_at > since else now
        return (rate.accepted - rate.cycle) * MINUTE / max(0.5, ended - self.began), False

    def _window(self, rate: Rate, now: float) -> float:
        """Return how much a window holds that was full and has room now.

        What it held at the first refusal was too much then, if some of that left and it still refused.
        """
        if rate.full >= _STILL * rate.wall:
            return rate.full
        least = rate.last_minute(now)
        self.rough = self.rough or least < _CLEAR * rate.full
        return (rate.full + least) / 2
