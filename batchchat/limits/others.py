"""Whether other runs may use the same limit, and how a pace grows and yields beside them.

Others cannot be asked, but what they send is refused to us as well. So they may be there as soon as a limit was met: a
trial was refused as densely as a limit does it, a learned pace was refused altogether, or a pace at which nothing was
refused for a while was refused twice within minutes.

Beside others no trials are made: a run that is in a trial sees no refusal that its own pace does not explain. The pace
grows all the time instead, a slow one by a larger share than a fast one, and each refusal takes about the same share of
every pace. So the paces come closer. A run that is alone keeps to its limit in the same way.

Sources: Chiu and Jain 1989, Computer Networks and ISDN Systems 17:1-14; growth by the root of the pace: Bansal and
Balakrishnan 2001, IEEE INFOCOM."""

from __future__ import annotations

import math

_SLOW = 40.0
"""Requests a minute below which each refusal is a large share of what is sent: such a pace grows slowly, and yields
more. A run that is alone under 30 a minute has 1.4 to 2.6 % refused so (3.5 % if a slow pace grows as a fast one)."""
_STOOD_S = 10.0
"""Seconds without a change of the pace after which it does not explain a refusal. With 5 and 7 s a run that is alone
under a limit of 30 a minute yielded now and then, and 3.2 to 3.4 % of its requests were refused (10 s: 3.0 %)."""
_LEAST = 60.0
"""Requests a minute below which no refusal is unexplained: what was learned is often a little above a limit of 30."""
_FORGIVEN_S = 60.0
"""A raise that was kept so long is no raise any more."""
_APART_S = 10.0
"""Refusals that are closer together come from one cause."""
_AGAIN_S = 300.0
"""How soon a second refusal that is not explained must follow the first."""
_PRESENT_S = 300.0
"""How long others are taken to be there after the last sign of them."""
_PROBATION_PACE = 120.0
"""From this pace on, a refusal soon after a trial, at the pace from before it, shows that chance refused the trial.
Below, too much time lies between the requests."""

_CHANCES = 2
"""After so many refusals in a row that were found to be chance, a trial that is refused is no sign of others."""

_GROWTH, _REFERENCE = 0.45, 300.0
"""A pace of `_REFERENCE` requests a minute grows by this share a minute, another one by that share times the root of
`_REFERENCE` over the pace. Chosen: with 0.3 runs that begin far apart need more than ten minutes, with 0.6 a run under
a limit of 80 has more than 3 % refused."""
_GROWTH_LEAST, _GROWTH_SENT = 0.23, 0.008
"""A pace grows by no more than the larger of this share a minute and this share for each request of a minute. At 30 a
minute with 0.3 and 0.01: 3.5 % refused, with these 2.7 %."""
_GROWTH_UNSETTLED = 5.0
"""So many times more is allowed as long as a pace is refused now here, now there: its share is not found yet."""
_CALM_S, _CALM_SENT, _CALM_MAX = 30.0, 100, 4.0
"""The growth doubles each time nothing was refused for so long and for so many requests, at most so often: others may
have ended, or the limit may have risen."""
_LISTEN_S, _LISTEN_SENT, _LISTEN_MAX = 3.0, 10, 60
"""After it yielded, a pace stays for so many seconds and requests: what is refused then was sent by others. Each time
that it is refused at about the same pace, twice as many requests, up to `_LISTEN_MAX`: so one in sixty is refused."""
_SAME = 0.1
"""Two paces are about the same if the logarithm of their ratio is below this."""
_ROUND_S = 1.0
"""Refusals within this time are of one round trip, and lower the pace once."""
_SPAN, _SPAN_S = 40, 10.0
"""Two refusals while the pace stays lower it again if no more requests than this lie between them, or as many as are
sent in this time if those are more."""
_KEPT, _KEPT_LEAST, _KEPT_LEAST_SLOW = 0.9, 0.87, 0.8
"""The most that is kept of a pace that was refused, and the least, the last one for slow paces. Chosen: with 0.8 for
all a window is used to 0.90 only, and who grows yields too much."""
_OF_DELIVERED, _DELIVERED_LEAST = 0.95, 20
"""Between these bounds it is a little less than what was accepted since the pace was lowered last, if that was so much:
a bucket was empty then and is empty now, so it gave its limit. With 0.9 alone a pace that drew on the burst stays above
the limit, and a run under a limit of 80 has 3.8 % refused (2.9 % so)."""
_AHEAD, _AHEAD_SLOW = 0.075, 0.07
"""How far a pace may be above what went in the last minute if the server counts windows. Such a server hides its limit
until a window is full, so a pace would grow to 1.4 times of it, unseen, and everybody then waits for the window."""


class OtherRuns:
    """What refusals say about others, and what our pace does beside them. All times are passed in.

    `stood` is the pace from before the last raises, in requests a minute; 0 if it was not raised lately.
    """

    __slots__ = (
        "_accepted",
        "_chances",
        "_changed_at",
        "_grown_at",
        "_heard",
        "_listen",
        "_lowered_at",
        "_lowered_sent",
        "_pace",
        "_present_until",
        "_probation",
        "_settled",
        "_suspected_at",
        "_yielded_at",
        "stood",
    )

    def __init__(self) -> None:
        self._changed_at = self._suspected_at = self._present_until = -math.inf
        self._grown_at = self._lowered_at = -math.inf
        self._lowered_sent = 0
        self._probation = -1_000
        self._chances = 0
        self._yielded_at, self._accepted = math.inf, 0.0
        self._listen = _LISTEN_MAX
        self._heard = -math.inf
        self._pace = 1.0
        self._settled = 0
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
        self._present_until = now + _PRESENT_S

    def by_chance(self) -> None:
        """Note that a refusal was found to be chance: others are not its cause."""
        self._chances += 1
        self._present_until = self._suspected_at = -math.inf

    @property
    def ruled_out(self) -> bool:
        """Tell whether others are not there as far as checks show."""
        return self._chances >= _CHANCES

    def limited(self) -> None:
        """Note that a refusal was found to come from a limit."""
        self._chances = 0

    def possible(self, now: float, sent: int) -> None:
        """Note that a limit was met, so that others may be there; `sent` is the number of the newest request."""
        if self.ruled_out:
            return
        if not self.present(now):
            self._probation = self._lowered_sent = sent
            self._lowered_at = now
        self.seen(now)

    def present(self, now: float) -> bool:
        """Tell whether others are taken to use the same limit now."""
        return now < self._present_until

    # -- the pace beside others ---------------------------------------------------------------------------------------

    def growth(self, now: float, pace: float, sent: int) -> float:
        """Return by what factor a `pace` in requests a minute grows now.

        To be asked with each answer or a few times a second, whichever is less; `sent` is the number of the newest
        request.
        """
        # A longer gap between two questions is a time in which nothing was answered: it earns no growth.
        passed, self._grown_at = min(max(1.0, 120.0 / pace), now - self._grown_at), now
        if self._listening(now, sent):
            return 1.0
        most = max(_GROWTH_LEAST, _GROWTH_SENT * pace)
        if not self._settled and pace >= _SLOW:
            most *= _GROWTH_UNSETTLED
        share = min(_GROWTH * math.sqrt(_REFERENCE / pace), most)
        return 1.0 + share * self._calm(now, sent) * passed / 60.0

    @staticmethod
    def ahead(pace: float) -> float:
        """Return how many times what went in the last minute a `pace` may be if the server counts windows."""
        return 1.0 + (_AHEAD * math.sqrt(_REFERENCE / pace) if pace >= _SLOW else _AHEAD_SLOW)

    def _calm(self, now: float, sent: int) -> float:
        """Return how many times faster the pace grows because nothing was refused for a while."""
        calm_s = (now - self._lowered_at - _LISTEN_S) / _CALM_S
        calm_sent = (sent - self._lowered_sent - _LISTEN_MAX) / _CALM_SENT
        return math.pow(2.0, max(0.0, min(_CALM_MAX, calm_s, calm_sent)))

    def refused(self, now: float, number: int, sent: int, pace: float, accepted: float) -> float:
        """Note a refusal of request `number` beside others; return what share of the `pace` to keep, 1 for all of it.

        `accepted` is how many requests were ever accepted.
        """
        if number <= self._lowered_sent or now < self._lowered_at + _ROUND_S:
            return 1.0
        span = max(_SPAN, pace * _SPAN_S / 60.0)
        if number < self._probation + span and pace >= _PROBATION_PACE:
            # The pace from before a trial is refused as well: chance refused the trial, not a limit.
            self._present_until = -math.inf
            return 1.0
        self.seen(now)
        if self._listening(now, sent):
            last, self._heard = self._heard, number
            if number > last + span:
                return 1.0
        self._settled = self._settled + 1 if abs(math.log(pace / self._pace)) < _SAME else 0
        self._pace = pace
        self._listen = min(_LISTEN_MAX, _LISTEN_SENT * 2 ** min(self._settled, 8))
        self.lowered(now, sent)
        before, self._accepted = self._accepted, accepted
        since, self._yielded_at = self._yielded_at, now
        if accepted < before + _DELIVERED_LEAST or now <= since:
            return _KEPT
        delivered = (accepted - before) * 60.0 / (now - since)
        least = _KEPT_LEAST if pace >= _SLOW else _KEPT_LEAST_SLOW
        return min(_KEPT, max(least, _OF_DELIVERED * delivered / pace))

    def lowered(self, now: float, sent: int) -> None:
        """Note that the pace was lowered: it stays for a while."""
        self._heard = -math.inf
        self._lowered_at = self._grown_at = now
        self._lowered_sent = sent

    def _listening(self, now: float, sent: int) -> bool:
        return sent < self._lowered_sent + self._listen or now < self._lowered_at + _LISTEN_S
