"""What refusals prove. A provider refuses now and then for reasons of its own: that says nothing about a rate.

Two questions are told apart by which requests were refused, in the order they were sent. (Refusals come back sooner
than answers. In the order of replies, each burst would begin with a run of refusals.)

- *Has a limit been met?* Then nearly everything is refused from one request on. A cumulative sum of log-likelihood
  ratios (CUSUM; Page 1954, Biometrika 41:100-115) of "half of all or more are refused" against "as many as usual"
  finds that after three refusals in a row at a quiet server, and later at a noisy one.
- *How many are refused usually?* `share`, of the last 300 requests. Refusals that a limit explains are taken out."""

from __future__ import annotations

import math
from bisect import bisect_left, insort

ALARM = 6.9
"""ln 1,000. At a server that refuses as often as `_USUAL_MIN` a false alarm comes once in several thousand answers."""
_USUAL_MIN = 0.05
"""A server is taken to refuse at least this share: three refusals in a row then reach the alarm (3 x 2.3)."""
_USUAL_MAX = 0.3
LIMITED = 0.5
"""From this refused share on, a limit is taken for the cause."""
_MEMORY = 300
_PRIOR, _PRIOR_WEIGHT = 0.002, 20


class RefusalEvidence:
    """Counts refusals among the requests that were sent. `sent` is the number of the newest one."""

    __slots__ = ("_forgiven", "_refused", "_since", "sent")

    def __init__(self) -> None:
        self.sent = 0
        self._since = 0
        self._refused: list[int] = []
        self._forgiven: list[int] = []

    @property
    def share(self) -> float:
        """The share of requests that is refused usually."""
        return self._share(0)

    def _share(self, newest: int) -> float:
        """Return the share without the `newest` refusals."""
        first = max(self._since, self.sent - _MEMORY)
        refused = self._refused
        if refused and refused[0] <= first:
            del refused[: bisect_left(refused, first + 1)]
        while self._forgiven and self._forgiven[0] <= first:
            del self._forgiven[0]
        usual = max(0, len(refused) - newest - len(self._forgiven))
        return (_PRIOR * _PRIOR_WEIGHT + usual) / (_PRIOR_WEIGHT + self.sent - first)

    def refused(self, number: int, alarm: float = ALARM) -> bool:
        """Count the refusal of request `number`; return whether the evidence for a limit reaches `alarm`."""
        insort(self._refused, number)
        return self._run()[0] >= alarm

    def _run(self) -> tuple[float, int]:
        """Return the evidence for a limit, and where in `_refused` the run begins that it comes from."""
        refused = self._refused
        streak = 1
        while streak < len(refused) and refused[-streak - 1] == refused[-streak] - 1:
            streak += 1
        # What is refused in a row just now is not what is usual.
        usual = min(_USUAL_MAX, max(_USUAL_MIN, 1.5 * self._share(streak) + 0.02))
        limited = max(LIMITED, 2 * usual)
        of_refused = math.log(limited / usual)
        of_accepted = math.log((1 - limited) / (1 - usual))
        score, begin, before = 0.0, 0, self._since
        for index, number in enumerate(self._refused):
            # Whatever was sent between two refused requests was accepted, or is not refused yet.
            score += max(0, number - before - 1) * of_accepted
            if score <= 0.0:
                score, begin = 0.0, index
            score += of_refused
            before = number
        return score, begin

    def explained(self) -> None:
        """Forget the last run of refusals: a limit explains it."""
        del self._refused[self._run()[1] :]
        first = self._refused[-1] if self._refused else 0
        self._forgiven = [number for number in self._forgiven if number <= first]

    def forgive(self, number: int) -> None:
        """Take the refusal of request `number` back: the pace was a little too high, and is lower now."""
        self._forgiven.append(number)

    def settled(self) -> None:
        """Forget all refusals: the pace was their cause, and it is lower now."""
        self._refused.clear()
        self._forgiven.clear()
        self._since = self.sent

    @property
    def known(self) -> bool:
        """Tell whether enough refusals came for `share` to mean something."""
        return len(self._refused) >= 3


class RefusalCount:
    """How many requests were refused, and how many sent, since some moment."""

    __slots__ = ("_since", "number")

    def __init__(self) -> None:
        self.number = 0
        self._since = 0

    def begin(self, sent: int) -> None:
        """Count from now on; `sent` is the number of the newest request."""
        self.number, self._since = 0, sent

    def sent(self, sent: int) -> int:
        """Return how many requests were sent since then, up to number `sent`."""
        return sent - self._since
