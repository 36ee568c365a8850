"""The limit of failed rows, `limits.max_failed`: when a run has seen enough to stop for good."""

from __future__ import annotations

import math

from batchchat.errors import NeedsHuman
from batchchat.events import FailureGroup
from batchchat.format import one_line, plural

FALSE_STOP = 1e-4
"""The chance of one look to stop a run whose share of failures is at the limit. Looks are ten per cent apart, so that a
run of a million rows has about 120, and is stopped by mistake with a chance of 1.2 % at most. Chosen: with it a run of
which every row fails stops at its fourth row for a limit of 10 %."""
_BETWEEN_LOOKS = 1.1


class FailedLimit:
    """Tells when too many rows of a run have failed: more than a number, or surely more than a share of all."""

    def __init__(self, limit: int | str) -> None:
        """Take a number of rows, or a share such as `10%`."""
        self._written = limit
        self._share = float(limit.removesuffix("%")) / 100 if isinstance(limit, str) else None
        self._next_look = 1.0

    def passed(self, failed: int, settled: int) -> bool:
        """Tell whether a run that settled so many rows, `failed` of them, has passed the limit."""
        # A number needs no test: it is passed or not.
        if self._share is None:
            return failed > int(self._written)
        if settled < self._next_look:
            return False
        self._next_look = settled * _BETWEEN_LOOKS
        return surely_over(failed, settled, self._share, FALSE_STOP)

    def error(self, failed: int, settled: int, commonest: FailureGroup, remedy: str) -> NeedsHuman:
        """Return why the run stops. `remedy` helps against its commonest failure."""
        surely = "" if self._share is None else "surely "
        message = (
            f"{failed:,} of the first {plural(settled, 'row')} failed, {surely}more than limits.max_failed "
            f"({self._written}); {commonest.count:,} of them: {commonest.kind}: row {commonest.row_index}: "
            f"{one_line(commonest.example, 160).rstrip('.')}"
        )
        return NeedsHuman(
            message, remedy=f"{remedy} Then run the same command again, or raise limits.max_failed if this is expected."
        )


def surely_over(failed: int, settled: int, share: float, risk: float) -> bool:
    """Tell whether the share of failures is surely over `share`.

    It is if its exact lower bound (Clopper and Pearson, 1934) with confidence 1 - `risk` is above `share`. That is so
    if and only if the chance of `failed` or more failures of `settled` rows, each with probability `share`, is below
    `risk`.
    """
    if failed <= settled * share:
        return False
    if share <= 0:
        return True
    if share >= 1:
        return False
    log_first = (
        math.lgamma(settled + 1)
        - math.lgamma(failed + 1)
        - math.lgamma(settled - failed + 1)
        + failed * math.log(share)
        + (settled - failed) * math.log1p(-share)
    )
    # Above the mean each term is smaller than the one before by a factor that falls: few terms matter.
    term = total = 1.0
    for successes in range(failed, settled):
        term *= (settled - successes) / (successes + 1) * share / (1 - share)
        total += term
        if term < total * 1e-12:
            break
    return log_first + math.log(total) < math.log(risk)
