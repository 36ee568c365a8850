"""Trials: a pace that refusals taught is tried upwards, and refusals that nothing explains are tried downwards.

A trial is a factor on the pace, for enough requests and seconds to show something. What comes of it is decided by
counting, and nothing else: `judge` has no side effects.

*Upwards.* If no more is refused than usual, the raise is kept, and the next one is bolder. Else the pace goes back, and
the next trial comes later, and only when accepted requests have paid for what was refused. A server that counts windows
hides its limit until a window is full: there a trial lasts as long as a window.

*Downwards.* If a provider refuses a share of everything at any pace, that is noise. If a limit lies just below our
pace, it looks the same. Going slower for a moment tells them apart: a limit then refuses next to nothing."""

from __future__ import annotations

import math
from typing import Literal

from batchchat.dataclass import dataclass
from batchchat.limits.evidence import LIMITED, RefusalEvidence

BELOW = 0.97
"""Where to go on, relative to what was accepted: a server's window and our schedule do not begin at the same moment."""
_FIRST_FACTOR = 1.3
"""A trial must show a limit soon: at 1.3 a window of 60 s that was 97 % full is met after 0.03 * 60 / 0.3 = 6 s."""
_LEAST_FACTOR, _MOST_FACTOR = 1.12, 1.5
"""Smaller steps take longer than they are worth (15 s at 1.12), larger ones overshoot by more than half."""
_GROWN_MAX = 2.0
"""How much a pace may grow within a window: more fills it so unevenly that nothing goes for half a minute."""
_PAUSE_S, _PAUSE_MAX_S = 5.0, 20.0
"""Seconds until the first trial, and at most until the next: so a limit that doubled is found within half a minute."""
_PAID_BY = 50
"""Accepted requests that pay for one refusal before the next trial: so trials waste 2 % at most."""
_YIELD_PAUSE_S = 20.0
"""Seconds without a trial after we yielded: others take what we left, or nobody wants it."""
_DENSE = 4.0
"""A limit refuses (step - 1) / step of a trial's requests. Its last three refusals are as dense as that if no more than
twice as many requests lie between them as between three refusals by a limit."""
_DEBT_MAX = 1_000.0
_DOWN_MOST = 0.85
"""A trial downwards goes this far below what is accepted now: a limit then refuses next to nothing."""
_DOWN_REFUSALS = 30
"""Refusals that noise would show during a trial downwards."""
_DOWN_SHARE, _DOWN_SHARE_MUCH, _MUCH = 0.2, 0.75, 0.15
"""The most of them that a limit would leave. From a refused share of `_MUCH` on, what was accepted before is known
badly, and the trial may still be a little above the limit."""
_DOUBTFUL = 0.02
"""Fewer refusals than this share cost less than finding out."""
_DOWN_PAUSE_S, _DOWN_PAUSE_MAX_S = 30.0, 600.0

_LATELY = 1 / 40
_OVER = 0.06
"""Three refusals in forty requests: noise of 1 % shows that once in a thousand trials."""
_FEW = 2
"""Refusals in a whole trial that are allowed beyond chance."""

Verdict = Literal["wait", "bolder", "keep", "back"]


@dataclass(slots=True)
class Trial:
    """A pace that is tried: `factor` times the usual one. `needed` requests and `lasts` seconds decide.

    `first` is the number of the last request before this step. `usual` is the share that was refused before.
    A trial upwards may take several steps: `step` is the factor of the last one, begun at `step_at`. `remembers` is the
    time, in seconds, for which the server may hide a limit: so long the last step is kept up before it is believed.
    `base` is in requests a minute: what was accepted before, for a trial downwards if no pace is learned.
    """

    factor: float
    began: float
    first: int
    needed: int
    lasts: float
    usual: float
    step: float = 0.0
    step_at: float = 0.0
    remembers: float = 0.0
    base: float | None = None
    refused: int = 0
    start: int = 0
    lately: float = 0.0
    """The refused share of the last forty requests or so, as of number `newest`."""
    newest: int = 0
    earlier: tuple[int, int] = (0, 0)
    """The numbers of the two refusals before `newest`, the older one first."""

    @property
    def dense(self) -> bool:
        """Tell whether its refusals are as dense as those of a limit; of fewer than three nobody can say."""
        above = self.factor if self.remembers else self.step  # what a window hides is above the pace before the trial
        return self.refused < 3 or (self.newest - self.earlier[0]) * (above - 1) / above < _DENSE

    def refuse(self, number: int) -> None:
        """Count the refusal of a request that was sent at this pace."""
        self.refused += 1
        self.lately *= (1 - _LATELY) ** max(0, number - max(self.newest, self.first))
        self.lately += _LATELY
        self.earlier = (self.earlier[1], self.newest)
        self.newest = max(self.newest, number)


def judge(trial: Trial, now: float, sent: int, *, cautious: bool, beyond: bool = False) -> Verdict:
    """Decide on a trial as soon as its requests allow it; `sent` is the number of the newest one.

    `cautious` tells that a single refusal decides: it is a large share of what is sent. `beyond` tells that more was
    accepted in the last minute than when the limit was met.
    """
    sent -= trial.first
    enough = sent >= trial.needed and now >= (trial.step_at or trial.began) + trial.lasts
    if trial.factor < 1:
        if not enough:
            return "wait"
        left = _DOWN_SHARE if trial.usual < _MUCH else _DOWN_SHARE_MUCH
        return "keep" if trial.refused <= left * trial.usual * sent else "back"
    # As many as chance (or the trials of others) explains: the mean, and one and a half deviations of Poisson.
    chance = trial.usual * (sent + trial.first - trial.start)
    chance += 1.5 * math.sqrt(chance)
    if cautious:
        over = trial.refused > chance
    else:
        # At the limit itself a share of excess / factor would be refused. A quarter of that, beside what is usual,
        # decides: others that use the same limit are refused some of it.
        over = trial.lately > max(_OVER, (trial.step - 1) / trial.step / 4) + 2 * trial.usual
        # A server that is a little over its limit for long refuses next to nothing to who sends much, and nearly all to
        # who sends seldom: there is hardly ever room when he comes.
        over = over or trial.refused > chance + _FEW
        if trial.remembers:
            over = over and trial.dense  # a window that is full refuses until something leaves it
    if over:
        return "back"
    if not enough:
        return "wait"
    if trial.remembers and beyond and trial.factor < _GROWN_MAX:
        return "bolder"
    return "keep" if now >= trial.step_at + trial.remembers else "wait"


def _bolder(factor: float) -> float:
    return min(_MOST_FACTOR, 1 + (factor - 1) * 1.5)


def _needs(factor: float) -> tuple[int, float]:
    """Return how many answers and how many seconds a raise by `factor` needs to show a limit."""
    excess = factor - 1
    # At the limit itself a trial is refused for a share of excess / factor: three of them are to be expected.
    return math.ceil(3 * factor / excess), (1 - BELOW) * 60.0 / excess


class TrialPlan:
    """When the next trial is due, and how bold it is.

    `debt` is how many accepted requests must come before. `explained` is the share that is refused at any pace.
    """

    __slots__ = ("_down_at", "_down_pause", "_factor", "_next_at", "_pause", "debt", "explained")

    def __init__(self) -> None:
        self._factor = _FIRST_FACTOR
        self._pause = _PAUSE_S
        self._next_at = 0.0
        self.debt = 0.0
        self._down_at = 0.0
        self._down_pause = _DOWN_PAUSE_S
        self.explained = 0.0

    # -- paying -------------------------------------------------------------------------------------------------------

    def owe(self) -> None:
        """Note a refusal that accepted requests must pay for."""
        self.debt = min(_DEBT_MAX, max(0.0, self.debt) + _PAID_BY)

    def pay(self, usual: float) -> None:
        """Note an accepted request. Nobody pays for the `usual` share, which is refused at any pace."""
        self.debt -= 1 + _PAID_BY * usual

    # -- what is due --------------------------------------------------------------------------------------------------

    def up(self, now: float, sent: int, usual: float, remembers: float) -> Trial | None:
        """Return the trial upwards that is due; None if none is. For `usual` and `remembers`, see `Trial`."""
        if now < self._next_at or self.debt > 0:
            return None
        needed, lasts = _needs(self._factor)
        return Trial(
            self._factor,
            now,
            sent,
            needed,
            lasts,
            usual,
            step=self._factor,
            step_at=now,
            remembers=remembers,
            start=sent,
        )

    def bolder(self, trial: Trial, now: float, sent: int) -> None:
        """Take the next step of a trial upwards."""
        trial.step = min(_bolder(trial.step), _GROWN_MAX / trial.factor)
        trial.factor *= trial.step
        trial.step_at = now
        trial.needed, trial.lasts = _needs(trial.step)
        trial.first = sent

    def down(
        self, now: float, evidence: RefusalEvidence, share: float, per_minute: float, *, learned: bool
    ) -> Trial | None:
        """Return the trial downwards that is due; None if none is.

        `share` of the last requests was refused, and `per_minute` accepted. If a pace is `learned`, that one is tried
        lower; else the pace of the trial is the first.
        """
        if now < self._down_at or share <= max(_DOUBTFUL, 1.5 * self.explained) or share > LIMITED:
            return None
        needed = math.ceil(_DOWN_REFUSALS / share)
        if needed > per_minute / 2:
            return None  # it would take more than half a minute, and so few refusals cost less
        if learned:
            return Trial(_DOWN_MOST * (1 - share), now, evidence.sent, needed, 1.0, share)
        return Trial(_DOWN_MOST, now, evidence.sent, needed, 1.0, share, base=per_minute)

    # -- what came of it ----------------------------------------------------------------------------------------------

    def learned(self, now: float, *, rough: bool) -> None:
        """Begin anew: a limit was learned. A `rough` first guess is worth a trial, whatever it cost to make."""
        self._factor, self._pause = _FIRST_FACTOR, _PAUSE_S
        self._next_at = now + _PAUSE_S
        if rough:
            self.debt = 0.0

    def changed(self, now: float) -> None:
        """Ask about noise again: the pace is another one."""
        self._down_at, self._down_pause = now, _DOWN_PAUSE_S

    def kept(self, trial: Trial, now: float) -> None:
        """Go on after a trial upwards that showed no limit: at once and bolder."""
        self._factor = _bolder(trial.step)
        self._next_at = now

    def cleared(self, now: float) -> None:
        """Go on after a check that found chance: no limit is near, so a bold trial is worth its cost."""
        self._factor, self._pause, self._next_at, self.debt = _MOST_FACTOR, _PAUSE_S, now, 0.0

    def yielded(self, now: float) -> None:
        """Go on after we left a part of our pace to others."""
        self._next_at = max(self._next_at, now + _YIELD_PAUSE_S)

    def failed(self, trial: Trial, now: float, usual: float) -> None:
        """Go on after a trial upwards that was refused: later, and with a smaller one if the server forgets soon."""
        if trial.remembers:
            self._factor = _FIRST_FACTOR
        elif trial.step <= _LEAST_FACTOR:
            self._factor, self._pause = _FIRST_FACTOR, _PAUSE_MAX_S
        else:
            self._factor = max(_LEAST_FACTOR, 1 + (trial.step - 1) / 2)
        self._next_at = now + self._pause
        # The more is refused anyway (others use the same limit), the more seldom it is tried.
        self._pause = min(_PAUSE_MAX_S * (1 + min(5.0, 100 * usual)), 2 * self._pause)

    def was_limit(self, now: float) -> None:
        """Go on after a trial downwards that found a limit: try soon how far it is."""
        self.changed(now)
        self.explained = 0.0
        self._down_at = now + self._down_pause
        self._factor, self._next_at = _LEAST_FACTOR, now + _PAUSE_S

    def was_noise(self, now: float, share: float) -> None:
        """Go on after a trial downwards that changed nothing: believe the share, and ask again seldom."""
        self.explained = share
        self._down_pause = min(_DOWN_PAUSE_MAX_S, 2 * self._down_pause)
        self._down_at = now + self._down_pause
