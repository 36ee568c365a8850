"""How many requests at once: slow start, additive growth, multiplicative shrinking, memory of where it failed.

The rules of TCP's congestion control, with two changes. Growth counts only while the window is used, so
that it says something. A level that the server refused is remembered: growth stops below it for a while,
twice as long each time it is refused again, since a limit on concurrency is mostly a fixed number and
finding it again and again costs requests.
"""

from __future__ import annotations

import math

_START = 8
_SHRINK = 0.7
_NEW_GROUND = 0.25
"""Growth for each success where nobody was before: a quarter more each round trip.

When an unknown limit is met, all that is under way is refused: so the window must be small beside what was accepted
until then, at most a quarter of it.
"""
_HOLD_S = 30.0
_HOLD_MAX_S = 960.0
_SCORE = 2.0
"""Trouble (503, timeout) shrinks the window when it outweighs one in `_PER` successes by this much."""
_PER = 16.0


class Concurrency:
    """The window. `slots` is how many requests may be under way now: from 1 to `cap`. `enough` of them fill it.

    `given` is the job's number: start there. None: start at 8 and grow by a quarter each round trip while all goes
    well; back to a level that went well before, double.
    """

    __slots__ = (
        "_before",
        "_failed_at",
        "_hold_s",
        "_hold_until",
        "_proven",
        "_score",
        "_shrunk_at",
        "_size",
        "_threshold",
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
        self._proven = 0
        self.slots = self.enough = 0
        self.full_at = -math.inf
        self._set(self._size)

    def succeeded(self, now: float, granted_at: float, level: int) -> None:
        """Grow by a success that was granted with `level` requests under way, itself included.

        Only where the window has been (nearly) full since then: `full_at`, which the limiter sets as it grants.
        What was under way when the window shrank says nothing about the smaller one.
        """
        if self._score > 0.0:
            self._score = max(0.0, self._score - 1.0 / _PER)
        self._proven = max(self._proven, level)
        size = self._size
        if size >= self.cap or self.full_at < granted_at or granted_at <= self._shrunk_at:
            return
        if size >= self._threshold:
            size += max(1.0, size / _PER) / size
        else:
            size += 1.0 if size < self._proven or not self._unknown else _NEW_GROUND
        if size >= self._failed_at and now < self._hold_until:
            size = max(self._size, self._failed_at - 0.5)
        self._set(size)

    def refused(self, now: float, granted_at: float, level: int) -> None:
        """Shrink below a `level` that the server refused, once for all requests of the same round trip."""
        if granted_at > self._shrunk_at:
            again = abs(level - self._failed_at) <= max(1.0, 0.1 * level)
            soon = now < self._hold_until and not again
            self._hold_s = min(_HOLD_MAX_S, 2 * self._hold_s) if again else _HOLD_S
            self._proven = min(self._proven, level)
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

    def stands(self, level: int) -> bool:
        """Whether `level` is clearly within what the server took before. Its count lags behind ours: leave a margin."""
        return level <= max(1.0, 0.8 * self._proven)

    def undo(self) -> None:
        """Take the last shrinking back: it turned out that concurrency was not what the server refused."""
        self._failed_at = math.inf
        self._hold_s = _HOLD_S
        self._hold_until = 0.0
        self._set(max(self._size, self._before))

    def troubled(self, now: float, granted_at: float) -> None:
        """Count a 503 or a timeout; several at once shrink the window, one bad row among healthy ones does not."""
        if granted_at <= self._shrunk_at:
            return
        self._score += 1.0
        if self._score >= _SCORE:
            self._score = 0.0
            self._before = self._size
            self._shrunk_at = now
            self._set(self._size * _SHRINK)
            self._threshold = self._size

    def restart(self, under_way: int, fresh: int = _START) -> None:
        """Go on with a few more than what is under way and double up to where it was: nobody rushes in at once."""
        self._threshold = max(self._threshold, self._size)
        self._set(min(self._size, float(under_way + fresh)))

    def _set(self, size: float) -> None:
        self._size = min(max(1.0, size), float(self.cap))
        self.slots = int(self._size)
        self.enough = math.ceil(0.8 * self.slots)
