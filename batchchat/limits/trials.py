"""Trials: a pace that refusals taught is tried upwards, and refusals that nothing explains are tried downwards.

A trial is a factor on the pace, for enough requests and seconds to show something. What comes of it is decided by
counting, and nothing else: `judge` has no side effects.

*Upwards.* If no more is refused than usual, the raise is kept, and the next one is bolder. Else the pace goes back, and
the next trial is smaller, comes later, and only when accepted requests have paid for what was refused.

*Downwards.* If a provider refuses a share of everything at any pace, that is noise. If a limit lies just below our
pace, it looks the same. Going slower for a moment tells them apart: a limit then refuses next to nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from batchchat.limits.evidence import RefusalEvidence

BELOW = 0.97
"""Where to go on, relative to what was accepted: a server's window and our schedule do not begin at the same moment."""
_FIRST_FACTOR = 1.3
"""A trial must show a limit soon: at 1.3 a window of 60 s that was 97 % full is met after 0.03 * 60 / 0.3 = 6 s."""
_LEAST_FACTOR, _MOST_FACTOR = 1.12, 1.5
"""Smaller steps take longer than they are worth (15 s at 1.12), larger ones overshoot by more than half."""
_GROWN_MAX = 2.5
"""How much a pace may grow in one go: a window that is not full yet shows nothing until it is."""
_PAUSE_S, _PAUSE_MAX_S = 5.0, 20.0
"""Seconds until the first trial, and at most until the next: so a limit that doubled is found within half a minute."""
_PAID_BY = 50
"""Accepted requests that pay for one refusal before the next trial: so trials waste 2 % at most."""
_DEBT_MAX = 1_000.0
_NOISY = 0.05
"""From this usual share on, single refusals in a slow trial mean nothing."""
_DOWN = 0.93
"""A trial downwards goes this far below what is accepted now: a limit then refuses next to nothing."""
_DOWN_MOST = 0.85
_DOWN_REFUSALS = 10
"""Refusals that noise would show during a trial downwards: 15 % of them or fewer come by chance once in 2,000 times."""
_DOWN_SHARE = 0.15
_DOUBTFUL = 0.02
"""Fewer refusals than this share cost less than finding out."""
_DOWN_PAUSE_S, _DOWN_PAUSE_MAX_S = 30.0, 600.0

_LATELY = 1 / 20

Verdict = Literal["wait", "keep", "back"]


@dataclass(slots=True)
class Trial:
    """A pace that is tried: `factor` times the usual one. `needed` answers and `lasts` seconds decide.

    `base` is in requests a minute: what was accepted before, for a trial downwards from no pace at all.
    """

    factor: float
    began: float
    needed: int
    lasts: float
    base: float | None = None
    answered: int = 0
    refused: int = 0
    lately: float = 0.0
    """The refused share of the last twenty answers or so."""

    def count(self, *, refused: bool) -> None:
        """Count an answer to a request that was sent at this pace."""
        self.answered += 1
        self.refused += refused
        self.lately += (refused - self.lately) * _LATELY


def judge(trial: Trial, now: float, evidence: RefusalEvidence, *, slow: bool) -> Verdict:
    """Decide on a trial as soon as its answers allow it.

    `slow` is a pace at which a single refusal is a large share of what is sent.
    """
    if trial.factor < 1:
        if trial.answered < trial.needed and trial.refused <= _DOWN_SHARE * _DOWN_REFUSALS:
            return "wait"
        return "keep" if trial.refused <= _DOWN_SHARE * evidence.share * trial.answered else "back"
    usual = evidence.share
    if slow and usual < _NOISY:
        over = trial.refused > 0
    else:
        # At the limit itself a share of excess / factor would be refused: half of that, beside what is usual, decides.
        over = trial.lately > (trial.factor - 1) / trial.factor / 2 + 2 * usual
    if over:
        return "back"
    return "keep" if trial.answered >= trial.needed and now >= trial.began + trial.lasts else "wait"


class TrialPlan:
    """When the next trial is due, and how bold it is."""

    __slots__ = ("_debt", "_down_at", "_down_pause", "_explained", "_factor", "_grown", "_next_at", "_pause")

    def __init__(self) -> None:
        self._factor = _FIRST_FACTOR
        self._pause = _PAUSE_S
        self._next_at = 0.0
        self._debt = 0.0
        self._grown = 1.0
        self._down_at = 0.0
        self._down_pause = _DOWN_PAUSE_S
        self._explained = 0.0

    # -- paying -------------------------------------------------------------------------------------------------------

    def owe(self) -> None:
        """Note a refusal that accepted requests must pay for."""
        self._debt = min(_DEBT_MAX, max(0.0, self._debt) + _PAID_BY)

    def pay(self, usual: float) -> None:
        """Note an accepted request. `usual` is the share that is refused anyway: nobody pays for that."""
        if self._debt > 0:
            self._debt -= 1 + _PAID_BY * usual

    # -- what is due --------------------------------------------------------------------------------------------------

    def up(self, now: float) -> Trial | None:
        """Return the trial upwards that is due; None if none is."""
        if now < self._next_at or self._debt > 0:
            return None
        excess = self._factor - 1
        # At the limit itself a trial is refused for a share of excess / factor: three of them are to be expected.
        return Trial(self._factor, now, math.ceil(3 * self._factor / excess), (1 - BELOW) * 60.0 / excess)

    def down(self, now: float, evidence: RefusalEvidence, per_minute: float) -> Trial | None:
        """Return the trial downwards that is due, if nothing holds the pace back; None if none is.

        `per_minute` is what was accepted in the last seconds.
        """
        share = evidence.share
        if now < self._down_at or not evidence.known or share <= max(_DOUBTFUL, 1.5 * self._explained):
            return None
        needed = math.ceil(_DOWN_REFUSALS / share)
        if needed > per_minute / 2:
            return None  # it would take more than half a minute, and so few refusals cost less
        return Trial(min(_DOWN_MOST, _DOWN * (1 - share)), now, needed, 1.0, base=per_minute)

    # -- what came of it ----------------------------------------------------------------------------------------------

    def learned(self, now: float, memory: float, *, rough: bool) -> None:
        """Begin anew: a limit was learned. `memory` is how long the server remembers, in seconds, as far as is known.

        A `rough` first guess is worth a trial, whatever it cost to make.
        """
        self._factor, self._pause = _FIRST_FACTOR, _PAUSE_S
        self._next_at = now + max(_PAUSE_S, memory)
        self._grown = 1.0
        if rough:
            self._debt = 0.0

    def changed(self, now: float) -> None:
        """Forget what is known of noise: the pace is another one."""
        self._down_at, self._explained, self._down_pause = now, 0.0, _DOWN_PAUSE_S

    def kept(self, trial: Trial, now: float, memory: float) -> None:
        """Go on after a trial upwards that showed no limit: at once and bolder, but not for ever."""
        self._factor = min(_MOST_FACTOR, 1 + (trial.factor - 1) * 1.5)
        self._grown *= trial.factor
        self._next_at = now
        if self._grown * self._factor > _GROWN_MAX:
            self._grown = 1.0
            self._next_at = now + memory

    def failed(self, trial: Trial, now: float, usual: float) -> None:
        """Go on after a trial upwards that was refused: with a smaller one, later."""
        if trial.factor <= _LEAST_FACTOR:
            self._factor, self._pause = _FIRST_FACTOR, _PAUSE_MAX_S
        else:
            self._factor = max(_LEAST_FACTOR, 1 + (trial.factor - 1) / 2)
        self._grown = 1.0
        self._next_at = now + self._pause
        # The more is refused anyway (others use the same limit), the more seldom it is tried.
        self._pause = min(_PAUSE_MAX_S * (1 + min(5.0, 100 * usual)), 2 * self._pause)

    def was_limit(self, now: float) -> None:
        """Go on after a trial downwards that found a limit: try soon how far it is."""
        self.changed(now)
        self._down_at = now + self._down_pause
        self._factor, self._next_at = _LEAST_FACTOR, now + _PAUSE_S

    def was_noise(self, now: float, share: float) -> None:
        """Go on after a trial downwards that changed nothing: believe the share, and ask again seldom."""
        self._explained = share
        self._down_pause = min(_DOWN_PAUSE_MAX_S, 2 * self._down_pause)
        self._down_at = now + self._down_pause
