"""What is believed about one rate, requests or tokens a minute, and where each belief comes from.

A rate has up to three limits, and the lowest one is kept:

- the job's own (`ceiling`): never exceeded, never doubted;
- what the provider tells in its answers, or is known for (`told`): kept as long as answers tell it;
- what refusals taught (`learned`): a hypothesis, tested again and again by trials (`batchchat.limits.trials`).
"""

from __future__ import annotations

from typing import Literal

from batchchat.dataclass import dataclass
from batchchat.limits.schedule import TICKS_PER_S, Schedule

_UNEVEN = 1.015
"""How much more than a learned pace a minute may hold: half of what the pace stays below the limit."""

Source = Literal["job", "provider", "refusal", "learned"]
"""Whose word a limit is: the job's, the provider's, a number that a refusal named, or what refusals showed."""


@dataclass(slots=True)
class Learned:
    """A limit that refusals taught, in units a minute, since when, and if a refusal named the number.

    `bound_at` is when it last made a request wait.
    """

    limit: float
    since: float
    stated: bool = False
    bound_at: float = 0.0


class Rate:
    """One axis: requests or tokens a minute.

    `accepted` counts all that was ever accepted, `cycle` and `marks` are earlier values of it (see `Pacing`). `wall` is
    what the last minute held when the limit was met, `full` what it held at the last refused probe.
    `stated` is a limit that a refusal named. `spread` is that of the `Schedule`.
    """

    __slots__ = (
        "accepted",
        "ceiling",
        "cycle",
        "full",
        "learned",
        "marks",
        "schedule",
        "stated",
        "told",
        "told_at",
        "wall",
    )

    def __init__(self, ceiling: float | None, advertised: float | None, spread: float = 0.0) -> None:
        self.ceiling = ceiling
        self.told = advertised
        self.told_at: float | None = None
        self.learned: Learned | None = None
        self.stated: float | None = None
        self.accepted = 0.0
        self.cycle = 0.0
        self.full = self.wall = 0.0
        self.marks = ((0.0, 0.0), (0.0, 0.0))
        self.schedule = Schedule(spread)
        self.apply(0.0)

    @property
    def known(self) -> float | None:
        """The limit of the job or the provider, the lower of the two; None if neither is known."""
        limits = [limit for limit in (self.ceiling, self.told) if limit is not None]
        return min(limits) if limits else None

    @property
    def near_limit(self) -> bool:
        """Tell whether the last minute used nine tenths of a known limit, or no limit is known."""
        known = self.known
        return known is None or max(self.schedule.minute.total, self.full) >= 0.9 * known

    def last_minute(self, now: float) -> float:
        """Return what was sent in the last minute and not refused."""
        self.schedule.minute.advance(int(now * TICKS_PER_S))
        return self.schedule.minute.total

    def apply(self, now: float, factor: float = 1.0, *, windows: bool = False) -> None:
        """Keep the lowest limit from now on; `factor` is that of a trial of the learned one.

        If the server counts `windows`, a learned limit bounds the last minute too, as a known one does: what went
        before the pace was found still fills the window.
        """
        known = self.known
        rate = most = known
        if self.learned is not None:
            tried = self.learned.limit * factor
            if known is None or tried < known:
                rate = tried
                if windows:
                    most = tried * _UNEVEN if known is None else min(known, tried * _UNEVEN)
        self.schedule.set_rate(now, rate, most)

    def source(self) -> Source | None:
        """Return whose word the limit is that is kept; None without a limit."""
        known, learned = self.known, self.learned
        if learned is not None and (known is None or learned.limit < known):
            return "refusal" if learned.stated else "learned"
        return None if known is None else "job" if known == self.ceiling else "provider"
