"""How many requests at once.

Where the job gives a number, it is kept. An unset number is found in stages: a window is used for some answers, then
made half as large again. Three things stop that, each remembered for a while that doubles when it is seen again:

- *A refused level.* A limit on concurrency is mostly a fixed number, and finding it again costs a request each time.
- *No more work done.* If half more at once brings hardly more answers a second, the server is busy, and a larger window
  makes each answer slower. (Little's law: what is under way is answers a second times latency.)
- *A full server.* Timeouts shrink the window, once for all requests of a round trip, to what the server answered in
  that time. If a server turns some away (503, 529, no connection) while it keeps others, the window is what it kept.

Growth counts only while the window is full, so that it says something.
"""

from __future__ import annotations

import math
from collections import deque

_START = 8
_SHRINK = 0.7
_STEP = 1.5
"""When an unknown limit is met, what is above it is refused at once: so a step is at most half of what went well."""
_HOLD_S = 2.0
"""A level that was refused once may have been refused by chance: try it again soon. A true limit doubles this."""
_HOLD_MAX_S = 960.0
_EDGE = 0.85
_ABOVE = 1.1
"""A level that goes well and is so much above one that was refused: our count is larger than the server's by less."""
_TOP_S = 30.0
_WITHIN = 0.6
_GROW = 0.5
_STAGE_ANSWERS = 24
_STAGE_ROUNDS = 2
"""Answers in a stage: at least 24, and 2 for each slot. Latencies that vary by 60 % then leave 12 % of doubt."""
_WORTH = 0.2
"""The least share of what a step promises that it must bring; below, the server is busy."""
_BETWEEN = 1.1
"""Where to stay, relative to the last size that was worth it: what the server can do lies between two stages."""
_PLATEAU_S = 10.0
_PLATEAU_MAX_S = 480.0
_SCORE = 2.0
"""Trouble (timeouts, requests turned away) shrinks the window when it outweighs one in `_PER` successes by this much.

So one row that gets a 503 each time among healthy ones does not.
"""
_PER = 16.0
_RECENT_S = 5.0
"""How long before a refused connection a request may have been sent whose answer shows that the server was up then."""
_REMEMBERED = 2048
"""Moments of answers that are kept, to tell how many came while a request waited in vain."""


class Concurrency:
    """The window. `slots` is how many requests may be under way now: from 1 to `cap`. `enough` of them fill it.

    `given` is the job's number: start there. None: start at 8 and grow in stages.
    """

    __slots__ = (
        "_answers",
        "_before",
        "_counted",
        "_counted_from",
        "_failed_at",
        "_hold_s",
        "_hold_until",
        "_kept_at",
        "_kept_of",
        "_last",
        "_plateau_s",
        "_plateau_until",
        "_proven",
        "_score",
        "_sent_well_at",
        "_shrunk_at",
        "_size",
        "_stage_at",
        "_target",
        "_threshold",
        "_top",
        "_turn_at",
        "_unknown",
        "cap",
        "enough",
        "full_at",
        "slots",
    )

    def __init__(self, given: int | None, cap: int) -> None:
        self.cap = max(1, given if given is not None else cap)
        self._unknown = given is None
        self._size = float(given if given is not None else min(_START, self.cap))
        self._threshold = float(self.cap)
        self._failed_at = math.inf
        self._hold_s = _HOLD_S
        self._hold_until = 0.0
        self._shrunk_at = -math.inf
        self._before = self._size
        self._score = 0.0
        self._kept_at = math.inf
        self._kept_of = 0.0
        self._sent_well_at = -math.inf
        self._proven = 0
        self._top = (0, 0)
        self._turn_at = -math.inf
        self._answers: deque[float] = deque(maxlen=_REMEMBERED)
        self._stage_at = -math.inf
        self._counted = 0
        self._counted_from = 0.0
        self._last: tuple[float, float] | None = None
        self._target = 0.0
        self._plateau_s = _PLATEAU_S
        self._plateau_until = -math.inf
        self.slots = self.enough = 0
        self.full_at = -math.inf
        self._set(self._size)

    def succeeded(self, now: float, granted_at: float, level: int) -> None:
        """Grow by a success that was granted with `level` requests under way, itself included.

        Only if the window has been (nearly) full since then: `full_at`, which the limiter sets as it grants.
        What was under way when the window shrank says nothing about the smaller one.
        """
        self._answers.append(now)
        self._sent_well_at = max(self._sent_well_at, granted_at)
        if self._score > 0.0:
            self._score = max(0.0, self._score - 1.0 / _PER)
        if level > self._proven and granted_at > self._shrunk_at:
            self._proven = level
        if level > self._failed_at and level > _ABOVE * self._failed_at + 1.0 and granted_at > self._shrunk_at:
            # More than was refused goes well: then it was not how many are under way.
            self._failed_at = math.inf
            self._threshold = float(self.cap)
        if now >= self._turn_at:
            self._turn_at = now + _TOP_S
            self._top = (self._top[1], level)
        elif level > self._top[1]:
            self._top = (self._top[0], level)
        size = self._size
        if size >= self.cap or self.full_at < granted_at or granted_at <= self._shrunk_at:
            return
        if size >= self._threshold:
            size += max(1.0, size / _PER) / size
        elif size < self._proven and not (self._unknown and self._last is not None):
            size += 1.0
        elif self._unknown:
            size = self._staged(now, granted_at)
        else:
            size += 1.0
        if size >= self._failed_at and now < self._hold_until:
            size = max(self._size, self._failed_at - 0.5)
        if size != self._size:
            self._set(size)

    def _staged(self, now: float, granted_at: float) -> float:
        """Count an answer of this stage; return the size from now on."""
        size = self._size
        if now < self._plateau_until:
            return size
        if size < self._target:
            # One by one, so that a limit on the way costs one request or two.
            self._stage_at = now
            return min(self._target, size + _GROW)
        if granted_at < self._stage_at:
            return size
        if not self._counted:
            self._counted_from = now
        self._counted += 1
        if self._counted < max(_STAGE_ANSWERS, _STAGE_ROUNDS * self.slots):
            return size
        rate = (self._counted - 1) / max(1e-9, now - self._counted_from)
        self._counted = 0
        self._stage_at = now
        if self._last is not None and size > self._last[0]:
            worth = (rate / self._last[1] - 1) / (size / self._last[0] - 1)
            if worth < _WORTH:
                self._plateau_until = now + self._plateau_s
                self._plateau_s = min(_PLATEAU_MAX_S, 2 * self._plateau_s)
                self._shrunk_at = now
                size, self._last = self._last[0] * _BETWEEN, None
                self._proven = int(size)
                self._target = 0.0
                return size
        self._last = (size, rate)
        self._target = size * _STEP
        return size

    def on_new_ground(self, level: int) -> bool:
        """Tell whether a level is at the edge of a window that is being tried, above all that went well."""
        return self._unknown and level > self._proven and level >= self.enough

    def refused(self, now: float, granted_at: float, level: int) -> None:
        """Shrink below a `level` that the server refused, once for all requests of the same round trip."""
        if granted_at > self._shrunk_at:
            again = abs(level - self._failed_at) <= max(1.0, 0.1 * level)
            soon = now < self._hold_until and not again
            self._hold_s = min(_HOLD_MAX_S, 2 * self._hold_s) if again else _HOLD_S
            self._proven = min(self._proven, level)
            if now > self._shrunk_at + _TOP_S:
                self._before = self._size
            self._shrunk_at = now
            self._failed_at = float(level)
            size = min(self._size, level - 1.0)
            self._set(size * _SHRINK if soon else size)
        elif level < self._failed_at:
            self._failed_at = float(level)
            self._set(max(min(self._size, level - 1.0), self._before / 2))
        self._hold_until = now + self._hold_s
        self._threshold = self._size
        self._last, self._counted, self._target = None, 0, 0.0

    def found(self, now: float, level: int) -> None:
        """Take `level` for what the server has under way at most, since it refused everything above; try again soon."""
        if now > self._shrunk_at + _TOP_S:
            self._before = self._size
        self._shrunk_at = now
        again = abs(level + 1 - self._failed_at) <= max(1.0, 0.1 * level)
        self._hold_s = min(_HOLD_MAX_S, 2 * self._hold_s) if again else _HOLD_S
        self._hold_until = now + self._hold_s
        self._failed_at = level + 1.0
        self._set(min(self._size, float(level)))
        self._threshold = self._size if again else float(self.cap)
        self._last, self._counted, self._target = None, 0, 0.0

    def refused_at_edge(self, now: float, level: int) -> None:
        """Go down by one if a full window is refused now and then, near the level that was refused before.

        Requests on their way make our count larger than the server's. By chance a refusal says the same: so it is
        bounded.
        """
        if level < self.enough or level < _EDGE * self._failed_at or self._failed_at == math.inf:
            return
        if now >= self._hold_until:
            self._hold_s = min(_HOLD_MAX_S, 2 * self._hold_s)
            self._hold_until = now + self._hold_s
        self._set(max(min(self._size, _EDGE * self._failed_at), self._size - 1.0))
        self._threshold = self._size

    def stands(self, level: int) -> bool:
        """Tell whether `level` is clearly within what the server took in the last minute.

        Its count lags behind ours: leave a margin.
        """
        return level <= max(2.0, _WITHIN * max(self._top))

    def undo(self) -> None:
        """Take the last shrinking back: it turned out that concurrency was not what the server refused."""
        self._failed_at = math.inf
        self._hold_s = _HOLD_S
        self._hold_until = 0.0
        self._threshold = float(self.cap)
        self._set(max(self._size, self._before))

    def crowded(self, now: float, granted_at: float) -> bool:
        """Take in a timeout; return whether too many were under way, rather than the provider down.

        If others were answered while this one waited, the server works, and can answer that many in that time.
        """
        answered = sum(at >= granted_at for at in self._answers)
        if not answered or self._size <= 1.0:
            return False
        if granted_at > self._shrunk_at:
            self._before = self._size
            self._shrunk_at = now
            self._set(min(self._size * _SHRINK, max(1.0, 0.9 * answered)))
            self._threshold = self._size
        return True

    def troubled(self, now: float, granted_at: float) -> None:
        """Count a timeout that tells nothing of the window; several at once shrink it."""
        if granted_at > self._shrunk_at and self._weighs():
            self._before = self._size
            self._shrunk_at = now
            self._set(self._size * _SHRINK)
            self._threshold = self._size

    def turned_away(self, now: float, granted_at: float, level: int, under_way: int, *, reached: bool) -> bool:
        """Take in a request that was turned away (503, 529, no connection) while so many others are under way.

        It was sent as the `level`th.
        Return whether the server may be only full: it keeps the others. If they are turned away too, the window goes
        down with each of them, to one at a time; what fails then is a sign that the provider is down (`down`).
        `reached` is false if there was no connection. A full server seldom refuses that, and one that is gone always
        does, with answers still on their way: so it counts only if the server has just answered others, or nobody yet.
        """
        if not reached and self._answers and self._sent_well_at < granted_at - _RECENT_S:
            return False
        if granted_at > self._shrunk_at:
            if not self._weighs():
                return False
            before = self._size
            # What was found before does not hold if one within it is turned away: then it may be anything.
            wrong = self._kept_at < math.inf and level < self._failed_at
            self.found(now, max(1, int(_SHRINK * under_way) if wrong else under_way))
            if self._kept_at == math.inf or self._sent_well_at > self._kept_at:
                self._kept_at, self._kept_of = now, before
        elif self._kept_at < math.inf and under_way < self._size:
            # The same round trip: all that the server kept of it is what is still under way.
            self._failed_at = max(1, under_way) + 1.0
            self._set(float(max(1, under_way)))
        return under_way > 0

    def down(self) -> None:
        """Take back what `turned_away` lowered if nothing that was sent since was answered: it was no full server."""
        if self._sent_well_at < self._kept_at < math.inf:
            self._before = max(self._before, self._kept_of)
            self.undo()
        self._kept_at = math.inf

    def _weighs(self) -> bool:
        """Count a trouble; return true if it outweighs the successes, and begin anew."""
        self._score += 1.0
        if self._score < _SCORE:
            return False
        self._score = 0.0
        return True

    def restart(self, under_way: int, fresh: int = _START) -> None:
        """Go on with a few more than what is under way and double up to where it was: nobody rushes in at once."""
        self._threshold = max(self._threshold, self._size)
        self._set(min(self._size, float(under_way + fresh)))

    @property
    def word(self) -> str:
        """Say whose number the window is."""
        if self._failed_at < math.inf:
            return "found by refusals"
        if self.slots >= self.cap:
            return "the most that the provider or this process allows" if self._unknown else "set by the job"
        return "tried upwards while it brings more answers" if self._unknown else "lowered after timeouts or 503"

    def limit(self, given: int | None, cap: int) -> None:
        """Take another number from the job, or None for an unset one, while a run is going."""
        self.cap = max(1, given if given is not None else cap)
        self._unknown = given is None
        self._threshold = float(self.cap)
        self._failed_at = math.inf
        self._last, self._counted, self._target = None, 0, 0.0
        self._set(float(given) if given is not None else min(self._size, float(self.cap)))

    def _set(self, size: float) -> None:
        self._size = min(max(1.0, size), float(self.cap))
        self.slots = int(self._size)
        self.enough = math.ceil(0.8 * self.slots)
