"""Whether other runs use the same limit. They cannot be asked, but their trials are refused to us as well.

A pace at which nothing was refused for a while does not explain a refusal by itself. One such refusal may be chance. If
another follows within minutes, something else uses the limit, or the limit has fallen. Both ask for the same: yield.
Who is large is refused more often, so the shares come closer (Chiu and Jain 1989)."""

from __future__ import annotations

import math

_STOOD_S = 10.0
"""Seconds without a change of the pace after which it does not explain a refusal. With 5 and 7 s a run that is alone
under a limit of 30 a minute yields now and then, and 3.2 to 3.4 % of its requests are refused (10 s: 3.0 %)."""
_LEAST = 60.0
"""Requests a minute below which we yield to nobody: each refusal is a large share of what we send. With no such bound a
run that is alone under a limit of 30 a minute had 3.6 % refused (3.0 % with it; the worst of eight seeds)."""
_FORGIVEN_S = 60.0
"""A raise that was kept so long is no raise any more."""
_APART_S = 10.0
"""Refusals that are closer together come from one cause."""
_AGAIN_S = 300.0
"""How soon the second refusal must follow. With 120 s the least run of two got 0.16 of a fair share in the worst of six
seeds, with 300 s 0.33."""
_PRESENT_S = 300.0
"""How long others are believed in that are not seen again."""


class OtherRuns:
    """What refusals say about others. All times are passed in.

    `stood` is the pace from before the last raises, in requests a minute; 0 if it was not raised lately.
    """

    __slots__ = ("_changed_at", "_seen_at", "_suspected_at", "stood")

    def __init__(self) -> None:
        self._changed_at = self._seen_at = self._suspected_at = -math.inf
        self.stood = 0.0

    def changed(self, now: float) -> None:
        """Note that our pace is another one from now on."""
        self._changed_at = now

    def unexplained(self, now: float, pace: float | None) -> bool:
        """Tell whether our `pace` (None: only one for tokens) does not explain a refusal that comes now."""
        if now < self._changed_at + _STOOD_S:
            return False
        if now > self._changed_at + _FORGIVEN_S:
            self.stood = 0.0
        return pace is None or pace >= _LEAST

    def suspect(self, now: float) -> bool:
        """Note a refusal that is not explained; return whether others are its likely cause."""
        before = self._suspected_at
        if now < before + _APART_S:
            return self.present(now)
        self._suspected_at = now
        return self.present(now) or now < before + _AGAIN_S

    def seen(self, now: float) -> None:
        """Note that others are there."""
        self._seen_at = now

    def present(self, now: float) -> bool:
        """Tell whether others are believed to use the same limit now."""
        return now < self._seen_at + _PRESENT_S
