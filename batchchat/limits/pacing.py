"""How many requests and tokens a minute: what is believed about a rate, why, and what may end the belief.

A rate has up to three limits, and the lowest one is kept:

- the job's own (`ceiling`): never exceeded, never doubted;
- what the provider tells in its answers (`told`): kept as long as answers tell it;
- what refusals taught (`learned`): a hypothesis, tested again and again by trials.

**Learning.** A cycle is the time from the end of one refusal of everybody to the end of the next. What was accepted in
it, over its whole length, is what the server gives, whatever its rule is: a window lets a whole allowance through and
then nothing, a bucket refuses what comes too early. If a minute of answers lies before the refusal, that minute counts.

**Trials.** A learned pace is raised for a short time and for enough requests to show a limit. If no more is refused than
usual the raise is kept and the next trial is bolder; else the pace goes back, what was sent too early is paid back, and
the next trial waits. A pace that does not hold anybody back for a while was no limit, and is forgotten.

**Doubt.** If some are refused all the time at a pace that should be safe, a trial in the other direction finds out
whether the pace is the cause: slower by a seventh, it must stop nearly all refusals, or they are noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from batchchat.limits.evidence import RefusalEvidence
from batchchat.limits.schedule import MINUTE, Schedule
from batchchat.records import Axis

Source = Literal["job", "answers", "refusals", "learned"]

BELOW = 0.97
"""Where to go on, relative to what was accepted: a server's window and our schedule do not begin at the same moment."""
FIRST_FACTOR = 1.3
"""A trial must show a limit soon: at 1.3 a full window of 60 s is met after 0.03 * 60 / 0.3 = 6 s."""
LEAST_FACTOR, MOST_FACTOR = 1.12, 1.5
STEP_DOWN = 0.95
SETTLED_S = 10.0
NOISY = 0.05
DOWN = 0.93
"""A trial downwards goes below what was accepted by this factor: if a limit is the cause, nearly nothing is refused."""
DOUBTS = 10
"""Refusals that a trial downwards must be able to show: 3 or fewer of 10 come by chance once in a hundred times."""
TRIAL_S = 5.0
"""Seconds until the first trial after a limit was learned; twice as many after each one that was refused."""
TRIAL_MAX_S = 20.0
VARIED = 0.2
"""Requests whose sizes have a standard deviation below this share of their mean are all alike."""
ASIDE = 1.5
"""If it is not told which of two axes was refused, tokens are paced and requests held to a wider bound."""
SHORT_S = 3.0
"""A hold that lasts longer than this was a window that had to empty; a bucket gives something sooner."""
LEAST_ACCEPTED = 5
MEMORY_S = 300.0
PAID_BY = 50
"""Accepted requests that pay for a refusal before the next trial: so trials waste 2 % at most."""
DEBT_MAX = 1_000
UNBOUND_S = 15.0
"""A learned limit that held nobody back for this long is none."""
DOUBT_SHARE = 0.02
DOUBT_S, DOUBT_MAX_S = 30.0, 600.0


@dataclass(slots=True)
class Learned:
    """A limit that refusals taught, in units a minute; `stated` if a refusal named the number."""

    limit: float
    since: float
    stated: bool = False
    bound_at: float = 0.0


class Rate:
    """One axis: requests or tokens a minute. `accepted` counts all that was ever accepted."""

    __slots__ = ("accepted", "ceiling", "cycle", "learned", "mark", "marks", "schedule", "stated", "told", "told_at")

    def __init__(self, ceiling: float | None, advertised: float | None) -> None:
        self.ceiling = ceiling
        self.told = advertised
        self.told_at: float | None = None
        self.learned: Learned | None = None
        self.stated: float | None = None
        self.accepted = 0.0
        self.cycle = 0.0
        self.mark = 0.0
        self.marks = ((0.0, 0.0), (0.0, 0.0))
        self.schedule = Schedule()
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
        return known is None or max(self.schedule.minute.total, self.mark) >= 0.9 * known

    def apply(self, now: float, factor: float = 1.0) -> None:
        """Keep the lowest limit from now on; `factor` is that of a trial of the learned one."""
        known = self.known
        rate = known
        if self.learned is not None:
            rate = self.learned.limit * factor if known is None else min(known, self.learned.limit * factor)
        self.schedule.set_rate(now, rate, known)

    def source(self) -> Source | None:
        """Where the limit that is kept comes from; None without one."""
        known, learned = self.known, self.learned
        if learned is not None and (known is None or learned.limit < known):
            return "refusals" if learned.stated else "learned"
        return None if known is None else "job" if known == self.ceiling else "answers"


@dataclass(slots=True)
class Trial:
    """A pace that is tried: `factor` times the usual one. `needed` answers and `lasts` seconds decide."""

    factor: float
    began: float
    needed: int
    lasts: float
    answered: int = 0
    refused: int = 0
    sent: float = 0.0
    base: float | None = None
    """Requests a minute before, for a trial without a learned limit."""


class Pacing:
    """Both rates, and the one trial that may be under way. All times are passed in; nothing waits here."""

    def __init__(self, requests: Rate, tokens: Rate) -> None:
        self.rates = {Axis.REQUESTS: requests, Axis.TOKENS: tokens}
        self.requests = requests
        self.evidence = RefusalEvidence()
        self.trial: Trial | None = None
        self.cycle_at: float | None = None
        self._factor = FIRST_FACTOR
        self._pause = TRIAL_S
        self._next_trial_at = 0.0
        self._debt = 0.0
        self._doubt_at = 0.0
        self._doubt_s = DOUBT_S
        self._doubted = 0.0
        self._memory = 0.0
        self._answers = 0
        self._sum = self._squares = 0.0
        self._memory_until = -math.inf
        self._grown = 1.0
        self._first_at = math.inf
        self._turn_at = -math.inf
        self._back_at = -math.inf
        self._refused_at = -math.inf

    @property
    def learned(self) -> bool:
        """Tell whether refusals taught a limit that is kept."""
        return any(rate.learned is not None for rate in self.rates.values())

    @property
    def answered(self) -> bool:
        """Tell whether anything was ever accepted."""
        return self._answers > 0

    # -- answers ------------------------------------------------------------------------------------------------------

    def accepted(self, now: float, granted_at: float, tokens: int) -> bool:
        """Count an answer; return whether a pace changed."""
        if self.cycle_at is None:
            self.cycle_at = self._first_at = granted_at
        self.requests.accepted += 1
        self.rates[Axis.TOKENS].accepted += tokens
        self._answers += 1
        self._sum += tokens
        self._squares += float(tokens) * tokens
        if self._debt > 0:
            self._debt -= 1 + PAID_BY * self.evidence.share
        trial = self.trial
        if trial is None:
            self.evidence.accepted()
            return False
        if granted_at < trial.began:
            return False
        trial.answered += 1
        return self._judge(now, trial)

    def refused(self, now: float, granted_at: float) -> bool:
        """Count a refusal; return whether a limit must have been met."""
        self.owe()
        trial = self.trial
        if trial is not None:
            if granted_at >= trial.began:
                trial.answered += 1
                trial.refused += 1
                self._judge(now, trial)
            return False
        if granted_at < self._back_at:
            return False  # it was sent at the pace of a trial that is over
        if self.evidence.refused():
            return True
        self._lower(now)
        return False

    def owe(self) -> None:
        """Let so many accepted requests pay for a refusal before the next trial begins."""
        if self.learned:
            self._debt = min(DEBT_MAX, max(0.0, self._debt) + PAID_BY)

    def _lower(self, now: float) -> None:
        """Lower a learned pace that is refused now and then, at most to what the best of the last minutes accepted.

        A pace a little over a limit goes below it after a few refusals. If they are noise, no more than their share is
        lost, and the next trial brings that back.
        """
        began = self.cycle_at if self.cycle_at is not None else now
        if now < began + (SETTLED_S if self._memory < SHORT_S else MINUTE):
            return  # too soon to tell; and a window that was full still holds what was sent before
        lowered = False
        for rate in self.rates.values():
            learned = rate.learned
            if learned is None:
                continue
            young = now < began + MINUTE
            at, before = (began, rate.cycle) if young else rate.marks[0]
            delivered = (rate.accepted - before) * MINUTE / (now - at)
            least = BELOW * delivered
            if learned.limit > least:
                learned.limit = max(STEP_DOWN * learned.limit, least)
                rate.apply(now)
                lowered = True
        if lowered:
            self.evidence.forgive()

    # -- learning -----------------------------------------------------------------------------------------------------

    def hold(self, now: float) -> None:
        """Note that everybody is refused from now on. A trial that was under way is over."""
        if self.trial is not None:
            self._back(now, self.trial)
        self.evidence.explained()
        for rate in self.rates.values():
            rate.schedule.minute.advance(int(now * 10))
            rate.mark = rate.schedule.minute.total

    def _sizes_vary(self) -> bool:
        """Tell whether requests differ in tokens so much that a limit on tokens is another one than on requests."""
        return self._answers > 0 and self._squares * self._answers > (1 + VARIED**2) * self._sum**2

    def still_refused(self, now: float) -> None:
        """Note a refused probe: the server's window still holds what was accepted in the last minute."""
        for rate in self.rates.values():
            rate.schedule.minute.advance(int(now * 10))
            rate.mark = rate.schedule.minute.total
        self._refused_at = now

    def learn(self, now: float, since: float, axes: list[Axis]) -> list[Axis]:
        """Draw the conclusion of a hold that began at `since` and is over; return the axes whose limit changed."""
        began = self.cycle_at if self.cycle_at is not None else since
        held = now - since
        self._memory = max(min(MINUTE, held), self._memory if now < self._memory_until else 0.0)
        self._memory_until = now + MEMORY_S
        enough = self.requests.accepted - self.requests.cycle >= LEAST_ACCEPTED
        window = self._memory >= SHORT_S
        full = window and since >= self._first_at + MINUTE
        if window and not full and self.learned:
            return []  # a part of a window was accepted: it says nothing before a minute is over
        if not enough and not full:
            return []  # too little was accepted to tell a rate: the cycle goes on
        unknown = len(axes) > 1
        if unknown and not self._sizes_vary():
            axes = [Axis.REQUESTS]  # one axis says all there is to say, and two in a row would each hold back a little
        # The window had room again somewhere between the last probe that was refused and the one that was not.
        ended = (now + self._refused_at) / 2 if self._refused_at > since else now
        changed = []
        for axis in axes:
            rate = self.rates[axis]
            estimate = (rate.accepted - rate.cycle) * MINUTE / max(0.5, ended - began)
            if since - began >= MINUTE:
                # The newest minute says more than a long cycle. It had no room at the last refused probe, and has now.
                rate.schedule.minute.advance(int(now * 10))
                estimate = (rate.mark + rate.schedule.minute.total) / 2 if full else rate.mark
            elif full:
                estimate = max(estimate, rate.mark)  # a window was full: what a minute held is its allowance
            stated = rate.stated is not None and rate.stated >= 0.9 * rate.mark
            if stated and rate.stated is not None:
                estimate = rate.stated
            rate.stated = None
            if unknown and axis is Axis.REQUESTS and len(axes) > 1:
                estimate *= ASIDE
            if self._conclude(now, rate, max(estimate, 1.0), stated=stated):
                changed.append(axis)
        self._restart(now)
        return changed

    def _conclude(self, now: float, rate: Rate, estimate: float, *, stated: bool) -> bool:
        learned = rate.learned
        if learned is None and rate.known is not None and estimate >= 0.95 * rate.known:
            rate.schedule.widen()  # the limit is right, and the way to the server less even than was thought
            return False
        limit = estimate if stated else BELOW * estimate
        if learned is not None and limit >= 0.98 * learned.limit:
            return False  # not the pace: it was refused below what it gave before
        rate.learned = Learned(limit, now, stated, now)
        rate.apply(now)
        self._doubt_at, self._doubted, self._doubt_s = now, 0.0, DOUBT_S
        return True

    def _restart(self, now: float) -> None:
        self.cycle_at = now
        for rate in self.rates.values():
            rate.cycle = rate.accepted
            rate.marks = ((now, rate.accepted), (now, rate.accepted))
        self._turn_at = now + MINUTE
        self._factor, self._pause = FIRST_FACTOR, TRIAL_S
        self._next_trial_at = now + max(TRIAL_S, self._memory)
        if now < self._first_at + MINUTE:
            self._debt = 0.0  # the first guesses are rough, and worth a trial
        self._grown = 1.0

    # -- trials -------------------------------------------------------------------------------------------------------

    def review(self, now: float) -> list[Axis]:
        """Begin a trial that is due, forget limits that hold nobody; return the axes whose limit changed."""
        changed = []
        turn = now >= self._turn_at
        if turn:
            self._turn_at = now + MINUTE
        for axis, rate in self.rates.items():
            if turn:
                rate.marks = (rate.marks[1], (now, rate.accepted))
            learned = rate.learned
            if learned is None:
                continue
            if rate.schedule.binding:
                rate.schedule.binding = False
                learned.bound_at = now
            elif now - learned.bound_at > UNBOUND_S and self.trial is None:
                rate.learned = None
                rate.apply(now)
                changed.append(axis)
        if self.trial is None:
            self._begin(now)
        elif self._judge(now, self.trial):
            changed = list(self.rates)
        return changed

    def _begin(self, now: float) -> None:
        if self.learned and now >= self._next_trial_at and self._debt <= 0:
            if any(rate.learned is not None and rate.learned.bound_at == now for rate in self.rates.values()):
                factor = self._factor
                needed = math.ceil(3 * factor / (factor - 1))
                self._try(now, Trial(factor, now, needed, (1 - BELOW) * MINUTE / (factor - 1)))
            return
        evidence = self.evidence
        if (
            not self.learned
            and now >= self._doubt_at
            and evidence.known
            and evidence.share > max(DOUBT_SHARE, 1.5 * self._doubted)
        ):
            needed = math.ceil(DOUBTS / evidence.share)
            minute = self.requests.schedule.minute
            minute.advance(int(now * 10))
            base = minute.recent(5.0) * 12
            if needed > minute.recent(30.0):
                return  # it would take too long, and so few refusals cost less than going slower
            self._try(now, Trial(min(0.85, DOWN * (1 - evidence.share)), now, needed, 1.0, base=base))

    def _try(self, now: float, trial: Trial) -> None:
        self.trial = trial
        trial.sent = self.requests.schedule.minute.total
        if trial.base is not None:
            self.requests.learned = Learned(trial.base, now)
        for rate in self.rates.values():
            rate.apply(now, trial.factor)

    def _judge(self, now: float, trial: Trial) -> bool:
        """Decide on a trial as soon as its answers allow it; return whether a pace changed."""
        share = self.evidence.share
        if trial.factor > 1:
            allowed = 0.0 if self._slow() and share < NOISY else max(1.0, self.evidence.allowed(trial.answered))
            if trial.refused > allowed:
                self._failed(now, trial)
                return True
            if trial.answered >= trial.needed and now >= trial.began + trial.lasts:
                self._keep(now, trial)
                self._factor = min(MOST_FACTOR, 1 + (trial.factor - 1) * 1.5)
                self._grown *= trial.factor
                self._next_trial_at = now
                if self._grown * self._factor > 2.5:
                    # A window that is not full yet shows nothing: let it fill before the next step.
                    self._grown = 1.0
                    self._next_trial_at = now + self._memory
                return True
            return False
        if trial.answered < trial.needed and trial.refused <= 0.15 * DOUBTS:
            return False
        if trial.refused <= 0.15 * share * trial.answered:
            self._keep(now, trial)
            self.evidence.settled(trial.refused, trial.answered)
            self._doubted, self._doubt_s = 0.0, DOUBT_S
            self._restart(now)
            self._factor, self._next_trial_at = LEAST_FACTOR, now + TRIAL_S
        else:
            self._back(now, trial)
            self._doubted = share
            self._doubt_s = min(DOUBT_MAX_S, 2 * self._doubt_s)
        self._doubt_at = now + self._doubt_s
        return True

    def _slow(self) -> bool:
        """Tell whether a single refusal is a large share of what is sent."""
        rate = self.requests.schedule.rate
        return rate is not None and rate < 2 * MINUTE

    def _failed(self, now: float, trial: Trial) -> None:
        learned = self.requests.learned
        base = learned.limit if learned is not None else None
        self._back(now, trial)
        if base is not None:
            too_many = (trial.factor - 1) * base * (now - trial.began) / MINUTE
            self.requests.schedule.pay_back(now, too_many)
        tokens = self.rates[Axis.TOKENS]
        if tokens.learned is not None:
            tokens.schedule.pay_back(now, (trial.factor - 1) * tokens.learned.limit * (now - trial.began) / MINUTE)
        if trial.factor <= LEAST_FACTOR:
            self._factor, self._pause = FIRST_FACTOR, TRIAL_MAX_S
        else:
            self._factor = max(LEAST_FACTOR, 1 + (trial.factor - 1) / 2)
        self._grown = 1.0
        self._next_trial_at = now + self._pause
        # The more is refused anyway (others use the same limit), the more seldom it is tried.
        self._pause = min(TRIAL_MAX_S * (1 + min(5.0, 100 * self.evidence.share)), 2 * self._pause)

    def _keep(self, now: float, trial: Trial) -> None:
        """Make the pace of the trial the usual one."""
        self.trial = None
        for rate in self.rates.values():
            if rate.learned is not None:
                rate.learned.limit *= trial.factor
                rate.learned.stated = False
                if rate.known is not None and rate.learned.limit >= rate.known:
                    rate.learned = None
            rate.apply(now)

    def _back(self, now: float, trial: Trial) -> None:
        """Go back to the pace before the trial."""
        self.trial = None
        self._back_at = now
        if trial.base is not None:
            self.requests.learned = None
        for rate in self.rates.values():
            rate.apply(now)
