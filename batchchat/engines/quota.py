"""An allowance of a day that is used up ends the run: no wait of minutes helps, and each try costs the next day."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

from batchchat.errors import ProviderUnavailable
from batchchat.format import duration
from batchchat.records import DayLimit, Failure, Reply

PROBES = 3
"""Refusals in a row that name a day and are needed to end a run.

One alone may come from one of several servers behind the address. What is under way makes most of them, so that the
provider is seldom asked for this. Chosen, not measured.
"""


class DayQuota:
    """Counts the refusals in a row that name a day. An answer to a later request shows that there is something left."""

    def __init__(self) -> None:
        self.refusals = 0
        self._since = math.inf
        self._limit = DayLimit(None)

    def refused(self, reply: Reply, sent_at: float, wall: float) -> DayUsedUp | None:
        """Take in a rate limit; return why the run ends, None if it goes on.

        `sent_at` is when the request was sent, by the clock of `answered`. `wall` is seconds since the epoch.
        """
        if reply.day is None or reply.failure is None:
            return None
        # Only the first: what was sent before it tells nothing if it is answered later.
        if not self.refusals:
            self._since = sent_at
        self.refusals += 1
        known = [limit for limit in (self._limit.resets_at, reply.day.resets_at) if limit is not None]
        # Of several moments the last one counts: a run that begins too early meets the same refusal.
        self._limit = DayLimit(max(known, default=None))
        return None if self.refusals < PROBES else day_used_up(self._limit, reply.failure, wall)

    def answered(self, sent_at: float) -> None:
        """Note that a request was answered that was sent then."""
        if sent_at > self._since:
            self.refusals, self._since, self._limit = 0, math.inf, DayLimit(None)


class DayUsedUp(ProviderUnavailable):
    """The provider's limit of a day is used up. `resets_at` is when it takes requests again, in UTC."""

    def __init__(self, message: str, *, remedy: str, resets_at: datetime | None) -> None:
        super().__init__(message, remedy=remedy)
        self.resets_at = resets_at


def day_used_up(limit: DayLimit, failure: Failure, wall: float) -> DayUsedUp:
    """Return the reason of a run that ends for a limit of a day. `wall` is seconds since the epoch."""
    if limit.resets_at is None:
        return DayUsedUp(
            f"the provider's limit of this day is used up, and it does not say until when: {failure.message}",
            remedy="Run the same command again tomorrow: nothing that was answered is lost.",
            resets_at=None,
        )
    # Rounded up: who begins a minute early meets the same refusal.
    moment = datetime.fromtimestamp(math.ceil(limit.resets_at / 60) * 60, UTC)
    local = moment.astimezone().strftime("%Y-%m-%d %H:%M %Z")
    left = duration(max(timedelta(0), moment - datetime.fromtimestamp(wall, UTC)).total_seconds())
    return DayUsedUp(
        f"the provider's limit of this day is used up until {local} (in {left}): {failure.message}",
        remedy="Run the same command again after that: nothing that was answered is lost.",
        resets_at=moment,
    )
