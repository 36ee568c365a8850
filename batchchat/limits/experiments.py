"""What a run tries with its own pace: trials, checks of a refusal, and the small steps that it takes beside others.

At most one of them is under way. What its requests show is decided in `trials` and `checks`; here it is acted upon."""

from __future__ import annotations

import math
from collections.abc import Mapping

from batchchat.limits.checks import FACTOR, Finding, RefusalCheck
from batchchat.limits.cycles import SETTLED_S, Cycle
from batchchat.limits.evidence import RefusalCount, RefusalEvidence
from batchchat.limits.others import OtherRuns
from batchchat.limits.rates import Learned, Rate
from batchchat.limits.schedule import MINUTE
from batchchat.limits.trials import Trial, TrialPlan, Verdict, judge
from batchchat.records import Axis

_DOUBT_REFUSALS, _DOUBT_SHARE = 10, 0.02
"""From so many refusals of a learned pace on, and from this share on, it is asked whether the pace is their cause."""
_CHANCE_MOST = 0.03
"""The largest share that checks and trials take for the usual one. Without a bound the trials of four runs that begin
at once look like chance: 0.25 was found so, and one run then took all of a bucket."""
_CHANCE_SENT = 100
"""Requests of which at least a share of refusals by chance is taken."""
_YIELD_TRIED = 0.95
"""The same if a trial of our own was refused. With 0.85 two runs leave a fifth of a window empty."""
_SLOW = 2 * MINUTE
"""Requests a minute below which each refusal is a large share of what is sent."""


class Experiments:
    """The trial or the check that is under way, and what both rates have taught since.

    `plan` tells which trial is due, `others` what is known of other runs under the same limit. `doubt` counts the
    refusals since the pace changed, `chance` those since a limit was met. What was sent before `back_at` went at the
    pace of an experiment that is over. `raised`: a trial was kept, and nothing was refused since.
    """

    __slots__ = (
        "_cycle",
        "_evidence",
        "_requests",
        "_tokens",
        "back_at",
        "chance",
        "check",
        "doubt",
        "others",
        "plan",
        "raised",
        "trial",
    )

    def __init__(self, rates: Mapping[Axis, Rate], evidence: RefusalEvidence, cycle: Cycle) -> None:
        self._requests, self._tokens = rates[Axis.REQUESTS], rates[Axis.TOKENS]
        self._evidence = evidence
        self._cycle = cycle
        self.trial: Trial | None = None
        self.check: RefusalCheck | None = None
        self.plan = TrialPlan()
        self.others = OtherRuns()
        self.doubt = RefusalCount()
        self.chance = RefusalCount()
        self.back_at = -math.inf
        self.raised = False

    @property
    def learned(self) -> bool:
        """Tell whether refusals taught a limit that is kept."""
        return self._requests.learned is not None or self._tokens.learned is not None

    @property
    def usual(self) -> float:
        """The share that is refused at any pace."""
        return max(self._evidence.share, min(_CHANCE_MOST, self.plan.explained))

    def requests_per_minute(self, now: float) -> float:
        """Return the pace in requests a minute; if only tokens are paced, what was sent lately, and never nothing."""
        return self._requests.schedule.rate or max(1.0, self._recent_per_minute(now))

    def _recent_per_minute(self, now: float) -> float:
        self._requests.last_minute(now)
        return self._requests.schedule.minute.recent(5.0) * 12

    # -- what is due --------------------------------------------------------------------------------------------------

    def begin_due(self, now: float, *, bound: bool, first_at: float) -> bool:
        """Begin the trial that is due, or grow a little beside others; return whether a pace changed.

        `bound` tells that a learned pace made somebody wait. `first_at` is when the first request was sent.
        """
        beside = self.learned and self.others.present(now)
        evidence, sent = self._evidence, self._evidence.sent
        if self._doubtful:
            pace = self._requests.schedule.rate or self._recent_per_minute(now)
            refused = self.doubt.number / max(1, self.doubt.sent(sent))
            self._begin(now, self.plan.down(now, evidence, refused, pace * (1 - refused), learned=True))
        elif not self.learned and now >= first_at + SETTLED_S and evidence.known:
            recent = self._recent_per_minute(now)
            self._begin(now, self.plan.down(now, evidence, evidence.share, recent, learned=False))
        elif bound and not beside:
            self._begin(now, self.plan.up(now, sent, self.usual, self._cycle.remembers))
        if beside and bound and self.trial is None:
            pace = self.requests_per_minute(now)
            factor = self.others.growth(now, pace, sent)
            self._cycle.scale(now, factor, ahead=self.others.ahead(pace))
            return True
        return False

    @property
    def _doubtful(self) -> bool:
        """Tell whether a learned pace is refused so often that it may not be the cause."""
        if not self.learned:
            return False
        return self.doubt.number >= max(_DOUBT_REFUSALS, _DOUBT_SHARE * self.doubt.sent(self._evidence.sent))

    def yield_part(self, now: float, share: float) -> None:
        """Keep a `share` of the learned pace, and leave the rest to others."""
        self.others.changed(now)
        self._cycle.scale(now, share, least=1.0)
        self.plan.yielded(now)

    def limit_met(self) -> None:
        """Begin to count refusals by chance anew."""
        self.chance.begin(self._evidence.sent)

    # -- checks -------------------------------------------------------------------------------------------------------

    def begin_check(self, now: float, number: int, granted_at: float) -> None:
        """Check the refusal of request `number`, which was granted then."""
        self.check = RefusalCheck(number, now - granted_at, now, self._evidence.sent)
        self._cycle.apply(now, FACTOR)

    def follow_check(self, now: float, check: RefusalCheck) -> Finding:
        """Act on what a check shows, and return it. A limit that it finds still has to lower the pace."""
        sent = self._evidence.sent
        if check.end(now, sent):
            self._cycle.apply(now)
            for rate in (self._requests, self._tokens):
                rate.schedule.pay_back(now, (check.last - check.first) * (1 - 1 / FACTOR))
        finding = check.finding(now)
        if finding == "wait":
            return finding
        self.check = None
        if finding == "limit":
            self.limit_met()
            self.back_at = now
            if check.refused:
                self.plan.owe()
            self.others.limited()
        else:
            self.others.by_chance()
            self.plan.cleared(now)
            share = min(_CHANCE_MOST, self.chance.number / max(_CHANCE_SENT, self.chance.sent(sent)))
            self.plan.explained = max(self.plan.explained, share)
        return finding

    # -- trials -------------------------------------------------------------------------------------------------------

    def refused(self, now: float, trial: Trial, number: int) -> bool:
        """Count a refusal during a trial; return whether a limit must have been met."""
        trial.refuse(number)
        if trial.factor < 1:
            return self._evidence.refused(number)  # a limit is met even so
        if self._verdict(now, trial) != "back":
            return False
        if trial.remembers:
            return True  # a window is full: what was accepted until there is room again tells how large it is
        self.decide(now, trial)
        return False

    def _begin(self, now: float, trial: Trial | None) -> None:
        if trial is None:
            return
        self.trial = trial
        if trial.base is not None:
            self._requests.learned = Learned(trial.base, now, bound_at=now)
        self._cycle.apply(now, trial.factor)

    def _verdict(self, now: float, trial: Trial) -> Verdict:
        rate = self._requests.schedule.rate
        cautious = rate is not None and rate < _SLOW
        verdict = judge(trial, now, self._evidence.sent, cautious=cautious, beyond=self._cycle.beyond(now))
        if verdict == "wait" and trial.remembers and trial.factor > 1 and self._cycle.disproved(now):
            return "keep"
        return verdict

    def decide(self, now: float, trial: Trial) -> bool:
        """Act on what a trial shows; return whether a pace changed."""
        verdict = self._verdict(now, trial)
        if verdict == "wait":
            return False
        if verdict == "bolder":
            self.plan.bolder(trial, now, self._evidence.sent)
            self._cycle.apply(now, trial.factor)
            return False
        usual = self.usual
        if verdict == "keep":
            if trial.remembers and self._cycle.disproved(now):
                self._cycle.forget_windows()
            self._keep(now, trial)
            if trial.factor > 1:
                self.plan.kept(trial, now)
            else:
                self._evidence.settled()
                self.begin_cycle(now)
                self.plan.learned(now, rough=False)
                self.plan.was_limit(now)
            return True
        self.go_back(now, trial)
        if trial.factor > 1:
            self._pay_back(now, trial)
            # A window that is full tells by its next refusal.
            if not trial.remembers and trial.dense:
                self.others.possible(now, self._evidence.sent)
                self.yield_part(now, _YIELD_TRIED)
            self.plan.failed(trial, now, usual)
        else:
            self.plan.was_noise(now, trial.refused / max(1, self._evidence.sent - trial.first))
        return True

    def _keep(self, now: float, trial: Trial) -> None:
        """Make the pace of the trial the usual one."""
        self.trial = None
        self.others.changed(now)
        if trial.factor > 1 and not self.raised and self._requests.learned is not None:
            self.others.stood = self._requests.learned.limit
        self.raised = trial.factor > 1
        self.doubt.begin(self._evidence.sent)
        self._cycle.scale(now, trial.factor)

    def go_back(self, now: float, trial: Trial) -> None:
        """Take the pace from before the trial."""
        self.trial = None
        self.others.changed(now)
        self.back_at = now
        if trial.factor < 1:
            self._requests.learned = self._tokens.learned = None
        self.doubt.begin(self._evidence.sent)
        self._cycle.apply(now)

    def _pay_back(self, now: float, trial: Trial) -> None:
        """Wait for what was sent too early: a window is full of it."""
        for rate in (self._requests, self._tokens):
            if rate.learned is not None:
                early = (trial.factor - 1) * rate.learned.limit * (now - trial.began) / MINUTE
                rate.schedule.pay_back(now, early)

    def begin_cycle(self, now: float) -> None:
        """Begin to count anew what is delivered and refused at this pace."""
        self.doubt.begin(self._evidence.sent)
        self._cycle.begin(now)
