"""What a person is told of a pace: how fast, whose word that is, and since when."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from batchchat.limits.rates import Rate
from batchchat.records import Axis

if TYPE_CHECKING:
    from batchchat.events import Level

_TELL_AGAIN_S = 10.0
_TELL_CHANGE = 1 / 3
"""A pace that changed by less than this share is not told again: near its limit it goes up and down by a fourth all the
time. With 0.1 a run that was alone under 300 a minute told 46 changes in half an hour."""

Tell = Callable[[str, str, "Level", Mapping[str, Any]], None]
"""Takes the name of an event, its message, its level and its fields."""


class PaceTeller:
    """Tells new paces, and later changes of them that matter and do not come too often."""

    __slots__ = ("_rates", "_tell", "_told")

    def __init__(self, rates: Mapping[Axis, Rate], tell: Tell) -> None:
        self._rates = rates
        self._tell = tell
        self._told: dict[Axis, tuple[float, float]] = {}

    def tell_all(self, now: float) -> None:
        """Tell of each axis what is to be told."""
        for axis in self._rates:
            self.tell(axis, now)

    def tell(self, axis: Axis, now: float) -> None:
        """Tell the pace of an axis if it is new, or has changed by much."""
        believed = self._rates[axis]
        rate = believed.schedule.rate
        if rate is None:
            return
        name, (before, at) = "pace_changed", self._told.get(axis, (0.0, -math.inf))
        if not before:
            name = "pace_learned"
        elif abs(rate - before) < _TELL_CHANGE * before or now < at + _TELL_AGAIN_S:
            return
        self._told[axis] = (rate, now)
        fields = {"axis": str(axis), "per_minute": round(rate, 1)}
        self._tell(name, f"going on at {number_of(rate)} {axis} a minute, {word_of(believed, now)}", "info", fields)


def number_of(per_minute: float) -> str:
    """Return a pace as a person reads it."""
    return f"{per_minute:,.0f}" if per_minute >= 10 else f"{per_minute:.2g}"


def word_of(rate: Rate, now: float) -> str:
    """Say whose word a limit is, and since when."""
    source, learned = rate.source(), rate.learned
    if source == "job":
        return "set by the job"
    if learned is not None and source in {"refusal", "learned"}:
        how = "told by the provider in a refusal" if source == "refusal" else "found by refusals"
        word = f"{how} {_ago(now - learned.since)}"
        # In a trial another pace is kept than the one that is believed.
        kept = rate.schedule.rate
        tried = kept is not None and abs(kept - learned.limit) > 0.01 * learned.limit
        return f"tried instead of {number_of(learned.limit)}/min, {word}" if tried else word
    return "known of the provider" if rate.told_at is None else f"told by the provider {_ago(now - rate.told_at)}"


def _ago(seconds: float) -> str:
    if seconds < 0.5:
        return "just now"
    return f"{seconds:.0f} s ago" if seconds < 120 else f"{seconds / 60:.0f} min ago"
