"""How many requests and tokens a minute: what refusals teach about both rates.

What the server delivered is the measure of every limit (`batchchat.limits.cycles`).

A learned pace is never believed for good. Trials raise it (`batchchat.limits.trials`), a refusal now and then lowers
it to what is delivered, and a pace that holds nobody back is forgotten."""

from __future__ import annotations

import math

from batchchat.limits.checks import RefusalCheck
from batchchat.limits.cycles import SETTLED_S, Cycle
from batchchat.limits.evidence import ALARM, RefusalEvidence
from batchchat.limits.experiments import Experiments
from batchchat.limits.rates import Learned, Rate
from batchchat.limits.schedule import MINUTE
from batchchat.limits.trials import BELOW, Trial
from batchchat.records import Axis

_STEP_DOWN = 0.95
"""A refusal now and then lowers a learned pace by so much, down to what was delivered: five percent over take one."""
_MOST_DOWN = 0.7
"""A pace that stood for a while falls by no more than this at once. Two such steps halve it, so a limit that was halved
is found after two holds. A small run under a common limit is so not driven to nothing by the trials of others."""
_VARIED = 0.2
"""Requests whose sizes have a standard deviation below this share of their mean are all alike."""
_ASIDE = 2.5
"""If it is not told which of two axes was refused, tokens are paced and requests held to a wider bound: two schedules
of the same tightness in a row, with rows of 60 to 6,000 tokens, let only 70 % through."""
_LEAST_ACCEPTED = 5
"""Fewer answers in a cycle do not make a rate."""
_CHANCE = 3
"""So many more refusals than usual come by chance."""
_DOUBT_SENT = 100
"""Requests after which a smaller share of refusals is believed to be the usual one."""
_UNBOUND_S = 15.0
"""A learned limit that held nobody back for this long is none."""
_YIELD = 0.85
"""We keep so much of our pace if something was refused that it does not explain. Chosen: nine such steps bring a run
that has all of a limit to a quarter of it."""
_ALARM_BESIDE = 1.9 * ALARM
"""The alarm beside others, at a bucket: six refusals in a row instead of three. What one run sends evenly takes each
unit just before a slower run comes, so three in a row are common there. With `ALARM` the least of two runs got 0.33."""
_LEFT_OVER = 60.0
"""The least that is learned first of a window: less may be what others left of it. If it is less, refusals tell it."""
_CHANCE_SHARE = 0.04
"""From this usual share of refusals on they are no sign of others. If a server refuses 5 % and names a false limit, a
run would yield to nobody otherwise, and keep 0.65 of what it could have."""
_CHECK_PACE = 120.0
"""Requests a minute below which no refusal is checked: a bucket fills again between two requests. With 60 the least of
four runs had 0.17 of its part of a bucket (0.53 with 120). With 200 fewer requests are refused at 120 and 150 a minute,
but a run kept 0.04 of what it could have, after a limit of 150 had ended and 2 % were refused by chance."""


class Pacing:
    """Both rates, and what is tried with them. All times are passed in; nothing waits here."""

    def __init__(self, requests: Rate, tokens: Rate) -> None:
        self.requests = requests
        self.tokens = tokens
        self.rates = {Axis.REQUESTS: requests, Axis.TOKENS: tokens}
        self.evidence = RefusalEvidence()
        self._sizes = _Sizes()
        self._cycle = Cycle(self.rates)
        self.experiments = tried = Experiments(self.rates, self.evidence, self._cycle)
        # What each refusal asks is kept flat.
        self._plan, self._others = tried.plan, tried.others
        self._first_at = math.inf
        self._climbed: Trial | None = None
        self._unexplained = False  # the refusals of the hold that goes on

    @property
    def learned(self) -> bool:
        """Tell whether refusals taught a limit that is kept."""
        return self.experiments.learned

    @property
    def answered(self) -> bool:
        """Tell whether anything was ever accepted."""
        return self._sizes.number > 0

    # -- answers ------------------------------------------------------------------------------------------------------

    def accepted(self, now: float, granted_at: float, tokens: int) -> bool:
        """Count an answer; return whether a pace changed."""
        if not self._sizes.number:
            self._first_at = self._cycle.began = granted_at
        self._sizes.add(tokens)
        self.requests.accepted += 1
        self.tokens.accepted += tokens
        tried = self.experiments
        if self._plan.debt > 0:
            self._plan.pay(tried.usual)
        if tried.check is not None:
            return self._follow(now, tried.check)
        return tried.trial is not None and tried.decide(now, tried.trial)

    def refused(self, now: float, granted_at: float, number: int) -> bool:
        """Count the refusal of request `number`; return whether a limit must have been met."""
        tried = self.experiments
        tried.chance.number += 1
        check = tried.check
        if check is not None:
            check.refuse(number)
            self._follow(now, check)
            return False
        trial = tried.trial
        # Only what our own trials caused is to be paid for. What others try under the same limit is refused to us as
        # well: a small run that paid for that, too, would never try again.
        ours = granted_at < tried.back_at or (trial is not None and trial.factor > 1)
        # At a limit on tokens a long row is refused by its size. That says nothing of others, so it is paid for.
        ours = ours or self.tokens.learned is not None
        unexplained = self._not_our_doing(now)
        if self.learned and (ours or tried.raised):
            tried.raised = tried.raised and ours
            if not tried.raised:
                self._others.changed(now)
            self._plan.owe()
        if trial is not None:
            return granted_at >= trial.began and tried.refused(now, trial, number)
        if granted_at < tried.back_at:
            return False  # it was sent at the pace of a trial that is over
        tried.doubt.number += 1
        beside = self.learned and self._others.present(now)
        if self.evidence.refused(number, _ALARM_BESIDE if beside and not self._cycle.counts_windows else ALARM):
            return True
        if not beside and self._expected():
            return False
        # A new pace may be too high: its refusals are no question.
        if self._checkable and self._plan.debt <= 0 and now >= self._cycle.began + SETTLED_S:
            tried.begin_check(now, number, granted_at)
        else:
            self._yield_or_lower(now, number, unexplained=unexplained, checked=not self._checkable)
        return False

    @property
    def _checkable(self) -> bool:
        """Tell whether the pace is fast enough for a check."""
        rate = self.requests.schedule.rate
        return self.learned and rate is not None and rate >= _CHECK_PACE

    def _expected(self) -> bool:
        """Tell whether no more was refused than at any pace."""
        doubt = self.experiments.doubt
        sent = doubt.sent(self.evidence.sent)
        if not self._plan.explained or doubt.number > 1.5 * self._plan.explained * sent + _CHANCE:
            return False
        if sent >= _DOUBT_SENT:
            self._plan.explained = min(self._plan.explained, 2 * doubt.number / sent)
        return True

    def _follow(self, now: float, check: RefusalCheck) -> bool:
        """Act on what a check shows; return whether a pace changed."""
        finding = self.experiments.follow_check(now, check)
        if finding == "limit":
            self._yield_or_lower(now, check.number, unexplained=self._not_our_doing(now), checked=True)
        return finding != "wait"

    def _yield_or_lower(self, now: float, number: int, *, unexplained: bool, checked: bool) -> None:
        """React to a refusal now and then. Others are suspected only of one that was `checked`, or cannot be."""
        if self.learned and self._others.present(now):
            pace = self.experiments.requests_per_minute(now)
            kept = self._others.refused(now, number, self.evidence.sent, pace, self.requests.accepted)
            if kept < 1.0:
                self.experiments.yield_part(now, kept)
                self.evidence.forgive(number)
        elif unexplained and checked and self._others.suspect(now):
            self._others.seen(now)
            self.experiments.yield_part(now, _YIELD)
        else:
            if unexplained:
                self._plan.yielded(now)  # a trial would hide the next refusal that is not explained
            self._lower(now, number)

    def _not_our_doing(self, now: float) -> bool:
        """Tell whether a refusal that comes now is not explained by our pace, nor by a trial."""
        # A server that refuses many by chance shows nothing of others: refusals come whatever they do.
        if not self.learned or self.experiments.trial is not None:
            return False
        if max(self._plan.explained, self.evidence.share) > _CHANCE_SHARE:
            return False
        requests = self.requests.learned
        return self._others.unexplained(now, None if requests is None else requests.limit)

    def also_refused(self, tokens: int) -> None:
        """Take a request that was under way when the limit was met, and is refused too, out of what the minute held."""
        self._cycle.also_refused(tokens)

    def probe_refused(self, now: float) -> None:
        """Note a refused probe: the server still counts what was accepted in the last minute."""
        self._cycle.probe_refused(now)
        if self.learned:
            self._plan.owe()

    def _lower(self, now: float, number: int) -> None:
        """Lower a learned pace that is refused now and then, at most to what the last minutes delivered.

        A pace a little over a limit goes below it after a few refusals. If they are noise, no more than their share is
        lost, and the next trial brings that back.
        """
        if not self._cycle.tells(now):
            return
        lowered = False
        for rate in self.rates.values():
            learned = rate.learned
            if learned is None:
                continue
            least = BELOW * self._cycle.delivered(rate, now)
            if self._others.stood and rate is self.requests:
                least = min(least, self._others.stood)  # it was delivered in part because others got nothing
            if learned.limit > least:
                if _STEP_DOWN * learned.limit >= least:
                    self._others.changed(now)
                learned.limit = max(_STEP_DOWN * learned.limit, least)
                rate.apply(now, windows=self._cycle.counts_windows)
                lowered = True
        if lowered:
            self.evidence.forgive(number)

    # -- learning -----------------------------------------------------------------------------------------------------

    def hold(self, now: float) -> None:
        """Note that everybody is refused from now on. A trial that was under way is over."""
        tried = self.experiments
        trial = tried.trial
        tried.check = None
        tried.limit_met()
        self._unexplained = self._not_our_doing(now)
        if trial is not None:
            tried.go_back(now, trial)
            if trial.factor > 1:
                self._climbed = trial
        self.evidence.explained()
        self._cycle.limit_met(now)

    def learn(self, now: float, since: float, axes: list[Axis]) -> list[Axis]:
        """Draw the conclusion of a hold that began at `since` and is over; return the axes whose limit changed.

        `axes` are those that the refusals may have been about.
        """
        climbed, self._climbed = self._climbed, None
        self._cycle.refused_for(now - since)
        if self._yielded(now, climbed):
            return list(self.rates)
        whole = self._cycle.counts_windows
        if not whole and self.requests.accepted - self.requests.cycle < _LEAST_ACCEPTED:
            return []  # the cycle goes on
        unknown = len(axes) > 1
        if unknown and not self._sizes.vary:
            axes = [Axis.REQUESTS]  # the other axis would say the same
        if whole and not self.requests.full:
            return []  # nothing of ours was in the window
        changed = []
        # A learned pace that is refused altogether, without a trial: the limit has fallen, or others are there.
        met = self.learned or climbed is not None
        self._cycle.rough = False
        for axis in axes:
            rate = self.rates[axis]
            estimate, stated = self._cycle.estimate(rate, now, since)
            if rate.learned is None and whole and rate is self.requests and not stated:
                estimate = max(estimate, _LEFT_OVER)
            if unknown and len(axes) > 1 and axis is Axis.REQUESTS:
                estimate *= _ASIDE
            if self._conclude(now, rate, max(estimate, 1.0), stated=stated, climbed=climbed is not None):
                changed.append(axis)
        self._others.changed(now)
        self.experiments.begin_cycle(now)
        # At a slow pace a trial takes minutes.
        slow = (self.requests.schedule.rate or math.inf) < _LEFT_OVER
        if slow or (met and not self._cycle.counts_windows):
            self._others.possible(now, self.evidence.sent)
        if climbed is None or self._cycle.rough:
            self._plan.learned(now, rough=self._cycle.rough or now < self._first_at + MINUTE)
        else:
            self._plan.failed(climbed, now, self.experiments.usual)
        return changed

    def concerned(self, axis: Axis) -> list[Axis]:
        """The rates that a refusal on `axis` speaks about; for an unknown one those that were near their limit."""
        if axis in self.rates:
            return [axis]
        return [axis for axis, rate in self.rates.items() if rate.near_limit] or list(self.rates)

    def _yielded(self, now: float, climbed: Trial | None) -> bool:
        """Yield to others if they are the likely cause of a hold; return whether they are.

        What the server gave us then says nothing of its limit: a part of that went to them.
        """
        unexplained, self._unexplained = self._unexplained, False
        if climbed is not None or not self.learned:
            return False
        if not self._others.present(now) and not (unexplained and self._others.suspect(now)):
            return False
        self._others.lowered(now, self.evidence.sent)
        self._others.seen(now)
        self.experiments.yield_part(now, _YIELD)
        self.experiments.begin_cycle(now)
        return True

    def room_at(self, now: float, share: float) -> float | None:
        """Return when `share` of what fills a window will have left it; None if the server does not count windows.

        A probe before that would be refused.
        """
        return self._cycle.room_at(now, share)

    def _conclude(self, now: float, rate: Rate, estimate: float, *, stated: bool, climbed: bool) -> bool:
        learned = rate.learned
        if learned is None and rate.known is not None and estimate >= 0.95 * rate.known:
            rate.schedule.widen()  # the limit is right, and the way to the server less even than was thought
            return False
        limit = estimate if stated else BELOW * estimate
        if learned is not None and not climbed and now > learned.since + SETTLED_S:
            # It was delivered so far. If others use the same limit, what this cycle held is their doing as well.
            limit = max(limit, _MOST_DOWN * learned.limit)
        if learned is not None:
            if limit >= 0.98 * learned.limit:
                if not climbed:
                    return False  # it was refused below what it gave before: the pace is not the cause
            elif climbed and rate.full >= learned.limit:
                return False  # the refusals were about the pace that was tried
        rate.learned = Learned(limit, now, stated, now)
        rate.apply(now, windows=self._cycle.counts_windows)
        self._plan.changed(now)
        return True

    # -- trials -------------------------------------------------------------------------------------------------------

    def review(self, now: float) -> list[Axis]:
        """Begin a trial that is due, forget limits that hold nobody; return the axes whose limit changed.

        To be called a few times a second while answers come.
        """
        changed, tried = [], self.experiments
        self._cycle.mark(now)
        bound = False
        for axis, rate in self.rates.items():
            learned = rate.learned
            if learned is None:
                continue
            if rate.schedule.binding:
                rate.schedule.binding = False
                learned.bound_at = now
                bound = True
            elif now > learned.bound_at + _UNBOUND_S and tried.trial is None:
                rate.learned = None
                rate.apply(now, windows=self._cycle.counts_windows)
                changed.append(axis)
        if tried.check is not None:
            return list(self.rates) if self._follow(now, tried.check) else changed
        if tried.trial is not None:
            return list(self.rates) if tried.decide(now, tried.trial) else changed
        return list(self.rates) if tried.begin_due(now, bound=bound, first_at=self._first_at) else changed


class _Sizes:
    """Mean and spread of the tokens of accepted requests."""

    __slots__ = ("_squares", "_sum", "number")

    def __init__(self) -> None:
        self.number = 0
        self._sum = self._squares = 0.0

    def add(self, tokens: float) -> None:
        self.number += 1
        self._sum += tokens
        self._squares += tokens * tokens

    @property
    def vary(self) -> bool:
        """Tell whether requests differ so much that a limit on tokens is another one than on requests."""
        return self.number > 0 and self._squares * self.number > (1 + _VARIED**2) * self._sum**2
