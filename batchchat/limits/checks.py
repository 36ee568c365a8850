"""Whether a limit refused a request, or chance did.

A limit that refused a request has nothing left at that moment: a bucket is empty, a window is full. So what comes right
after it is refused as well, whoever else uses the limit. Chance refuses the next requests as seldom as any. A check
sends a few of the next requests almost at once, and counts how many of them are refused."""

from __future__ import annotations

from typing import Literal

FACTOR = 5.0
"""The pace of a check, relative to the usual one. About so many requests go between two answers."""
_NEEDED = 4
"""Requests of a check; one of them that is refused decides. At a limit one in two or three is refused, even if four
runs use it. At a server that refuses 2 % by chance one check in thirteen is wrong."""
_PATIENCE = 2.0
"""A refusal of a check comes back within so many times what the first refusal took."""
_LEAST_WAIT_S, _MOST_WAIT_S = 0.1, 2.0
_MOST_S = 2.0
"""If fewer requests were sent in this time, something else holds them back."""

Finding = Literal["wait", "chance", "limit"]


class RefusalCheck:
    """The check of the refusal of request `number`, begun at `began` when request `first` was the newest one."""

    __slots__ = ("_took", "began", "ended", "first", "last", "number", "refused")

    def __init__(self, number: int, took: float, now: float, first: int) -> None:
        self.number = number
        self.first = first
        self.began = now
        self.ended: float | None = None
        self.last = 0
        self.refused = False
        self._took = took

    def end(self, now: float, sent: int) -> bool:
        """Tell whether its requests have been sent now; `sent` is the number of the newest one."""
        if self.ended is None and (sent >= self.first + _NEEDED or now > self.began + _MOST_S or self.refused):
            self.ended, self.last = now, sent
            return True
        return False

    def refuse(self, number: int) -> None:
        """Take note of the refusal of request `number` if that is one of its own."""
        if number > self.first and (self.ended is None or number <= self.last):
            self.refused = True

    def finding(self, now: float) -> Finding:
        """Return what refused the request."""
        if self.refused:
            return "limit"
        if self.ended is None or now < self.ended + min(_MOST_WAIT_S, max(_LEAST_WAIT_S, _PATIENCE * self._took)):
            return "wait"
        return "chance" if self.last >= self.first + _NEEDED else "limit"
