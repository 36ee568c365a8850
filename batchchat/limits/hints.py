"""What headers say of limits, and when it is believed.

A limit is believed once two answers name it, unless what was accepted contradicts it. A refusal that names a limit is
no more than a guess for `Rate.stated`. "Nothing remains" is believed until a fresh allowance contradicts it: if answers
say so again right after the wait that they asked for, they say nothing.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from batchchat.limits.pacing import Pacing
from batchchat.limits.schedule import MINUTE
from batchchat.records import Axis

if TYPE_CHECKING:
    from batchchat.records import LimitHeaders

HINT_MAX_S = 120.0
"""The longest wait that one Retry-After is believed."""
_LIMIT_MAX = 10**9
_DISTRUST_S = 600.0
"""How long a header that said nothing is not looked at again: once in ten minutes its wait is 10 % at most."""
_LONG_S = 15.0
"""If the server asks for more than `HINT_MAX_S`, wait this long, then twice as long each time it refuses again."""
_SANE_S = 86_400.0


class Hints:
    """Reads the headers of replies into the rates. `paused_until` is when an allowance is there again."""

    def __init__(self, pacing: Pacing) -> None:
        self._pacing = pacing
        self._newest = -math.inf
        self._heard: dict[Axis, float] = {}
        self._paused_by: Axis | None = None
        self._ended: dict[Axis, float] = {}
        self._distrusted: dict[Axis, float] = {}
        self.paused_until = -math.inf

    def hear(self, granted_at: float, limits: LimitHeaders, now: float, in_use: int, *, refused: bool) -> list[Axis]:
        """Take in the headers of a reply to a request that was granted then; return the axes whose limit changed.

        Look at `paused_until` afterwards: an allowance that is used up moves it. `in_use` requests are under way.
        """
        changed = []
        for axis, limit, remaining in (
            (Axis.REQUESTS, limits.limit_requests, limits.remaining_requests),
            (Axis.TOKENS, limits.limit_tokens, limits.remaining_tokens),
        ):
            if limit is None:
                continue
            rate = self._pacing.rates[axis]
            if limit == rate.told:
                rate.told_at = now if not refused else rate.told_at
                continue
            total = rate.schedule.minute.total
            accepted = total - in_use if axis is Axis.REQUESTS else total / 2
            # A limit below what was accepted in the last minute, or below what is left of it, is none.
            if not accepted <= limit <= _LIMIT_MAX or (remaining is not None and not 0 <= remaining <= limit):
                continue
            if refused:
                rate.stated = float(limit)
            elif self._told_twice(axis, limit, now):
                changed.append(axis)
        # What a refusal says remains is about the request that was refused, not about all: others may be accepted.
        if granted_at >= self._newest and not refused:
            self._newest = granted_at
            self._hear_remaining(Axis.REQUESTS, limits.remaining_requests, limits.reset_requests, granted_at, now)
            self._hear_remaining(Axis.TOKENS, limits.remaining_tokens, limits.reset_tokens, granted_at, now)
        return changed

    def _told_twice(self, axis: Axis, limit: int, now: float) -> bool:
        """Believe a limit that two answers in a row name; return whether it counts from now on."""
        if limit <= 0:
            return False
        if self._heard.get(axis) != limit:
            self._heard[axis] = limit
            return False
        rate = self._pacing.rates[axis]
        # The first word of a provider ends what refusals taught; a later one bounds it.
        if rate.told is None or (rate.learned is not None and rate.learned.limit >= limit):
            rate.learned = None
        rate.told, rate.told_at = float(limit), now
        rate.apply(now)
        return True

    def _hear_remaining(
        self, axis: Axis, remaining: int | None, reset: float | None, granted_at: float, now: float
    ) -> None:
        """Pause if an allowance is used up; go on if the same one is not any more."""
        if remaining is None or remaining < 0:
            return
        if remaining > 0:
            if self._paused_by is axis:
                self._paused_by = None
                self.paused_until = now
            return
        if reset is None or not 0.0 < reset <= HINT_MAX_S or now < self._distrusted.get(axis, -math.inf):
            return
        if granted_at >= self._ended.get(axis, math.inf):
            # The wait is over, a request was accepted, and still nothing remains: this header says nothing.
            self._distrusted[axis] = now + _DISTRUST_S
            self._ended.pop(axis)
            return
        rate = self._pacing.rates[axis]
        if rate.near_limit and rate.schedule.rate is not None:
            return  # our own requests explain it, and the schedule knows better
        until = now + min(reset, MINUTE)
        if until > self.paused_until:
            self.paused_until = until
            self._paused_by = axis
            self._ended[axis] = until


def believed_wait(retry_after: float | None, *, refused: int) -> float | None:
    """Bound a server's wait, in seconds, that was `refused` so many times since. Garbage is no hint.

    A long one is a reason to ask more seldom, not to stop.
    """
    if retry_after is None or not 0.0 <= retry_after <= _SANE_S:
        return None
    if retry_after <= HINT_MAX_S:
        return retry_after
    return min(HINT_MAX_S, _LONG_S * 2.0**refused)
