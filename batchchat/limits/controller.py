"""The decisions of the limiter: may this request go now, and what does this reply say about the next ones.

No clock, no waiting, no tasks: times are passed in, and what a person should know is handed to `tell`. The parts,
each a small state of its own:

    pacing       requests and tokens a minute: beliefs, learning, trials
    evidence     whether a refusal is noise or a limit
    concurrency  how many requests at once
    circuit      a provider that is down, or that refuses everybody: probes
    hints        what headers say
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from batchchat.dataclass import dataclass
from batchchat.limits.circuit import Breaker, RateLimitHold
from batchchat.limits.concurrency import Concurrency
from batchchat.limits.hints import Hints, believed_wait
from batchchat.limits.pacing import Pacing
from batchchat.limits.rates import Rate
from batchchat.limits.schedule import MINUTE, TICKS_PER_S
from batchchat.limits.telling import PaceTeller, Tell
from batchchat.records import Axis, ErrorKind, Verdict

if TYPE_CHECKING:
    import random

    from batchchat.records import Reply

_RARE = 0.06
"""A first refusal alone makes the usual share 0.05."""
_REVIEW_S = 0.25
_FULL = frozenset({503, 529})
"""What servers and gateways say when they have too much to do. Some take no connection then."""
_DOWN = frozenset({ErrorKind.CONNECTION, ErrorKind.TIMEOUT, ErrorKind.SERVER, ErrorKind.PROTOCOL})


@dataclass(slots=True, eq=False)
class Grant:
    """What the controller must know of a request that is under way.

    `number` counts the requests in the order they were sent. `level` is how many were under way when it was granted,
    itself included. `probe` is True for a request that is sent to see whether a provider that was down, or refused
    everybody, answers.
    """

    key: object
    tokens: int
    at: float
    level: int
    number: int
    probe: bool = False


class Controller:
    """The state behind a `Limiter`; see the module."""

    def __init__(self, requests: Rate, tokens: Rate, concurrency: Concurrency, rng: random.Random, tell: Tell) -> None:
        self.requests = requests
        self.tokens = tokens
        self.pacing = Pacing(requests, tokens)
        self.concurrency = concurrency
        self.breaker = Breaker(rng)
        self.hold = RateLimitHold(rng)
        self.hints = Hints(self.pacing)
        self.in_use = 0
        self.answered = False
        self.refused_since: float | None = None
        self.failing_since: float | None = None
        self._tell = tell
        self._paces = PaceTeller(self.pacing.rates, tell)
        self._evidence = self.pacing.evidence
        self._gated = False
        self._undecided = False
        self._strike: tuple[float, int] = (-math.inf, 0)
        self._review_at = -math.inf
        self._calm_at = -math.inf

    # -- granting -----------------------------------------------------------------------------------------------------

    def wait(self, now: float, tokens: int) -> float:
        """Return the seconds until a request may go if nothing else happens; infinite if only an event can help."""
        # What hangs in an outage must not keep the probe out: it may use what the window lost to timeouts.
        if self.in_use >= (self.concurrency.cap if self.breaker.active else self.concurrency.slots):
            return math.inf
        delay = 0.0
        if self._gated:
            if self._undecided and self.in_use > 0:
                return math.inf  # the next answer makes room, and its probe tells a limit at once from one a minute
            delay = max(self.breaker.delay(now), self.hold.delay(now), self.hints.paused_until - now)
            if delay <= 0.0 and not self.breaker.active and not self.hold.active:
                self._gated = False
        schedule = self.requests.schedule
        if schedule.rate is not None and (wait := schedule.delay(now, 1)) > delay:
            delay = wait
        schedule = self.tokens.schedule
        if schedule.rate is not None and (wait := schedule.delay(now, tokens)) > delay:
            delay = wait
        return delay

    def only_slots(self, now: float) -> bool:
        """Tell whether nothing but the number of requests at once can hold a request back now."""
        return (
            self.requests.schedule.rate is None
            and self.tokens.schedule.rate is None
            and not self.breaker.active
            and not self.hold.active
            and self.hints.paused_until <= now
        )

    def grant(self, now: float, tokens: int, key: object) -> Grant:
        """Count a request as sent now, and as a probe if nothing else may go."""
        grant = self.count(now, tokens, key)
        if self._gated:
            grant.probe = self.breaker.active or self.hold.active
            self.breaker.probing = self.breaker.active
            self.hold.probing = self.hold.active
        return grant

    def count(self, now: float, tokens: int, key: object) -> Grant:
        """Count a request as sent now, whether it was to go or not."""
        tick = int(now * TICKS_PER_S)
        self.in_use = level = self.in_use + 1
        if level >= self.concurrency.enough:
            self.concurrency.full_at = now
        self.requests.schedule.take(now, tick, 1)
        self.tokens.schedule.take(now, tick, tokens)
        evidence = self._evidence
        evidence.sent = number = evidence.sent + 1
        return Grant(key, tokens, now, level, number)

    # -- settling -----------------------------------------------------------------------------------------------------

    def abandon(self, grant: Grant, now: float) -> None:
        """Take note of an attempt of which nobody knows what came of it."""
        self.in_use -= 1
        if grant.probe:
            if self.breaker.active:
                self.breaker.release(now)
            if self.hold.active:
                self.hold.release(now)

    def unused(self, grant: Grant) -> None:
        """Take what a request reserved that was never sent out of the rates."""
        self.requests.schedule.settle(grant.at, -1)
        self.tokens.schedule.settle(grant.at, -grant.tokens)

    def settle(self, grant: Grant, reply: Reply, now: float) -> None:
        """Draw the conclusions of a reply."""
        self.in_use -= 1
        used = reply.usage.total_tokens if reply.usage is not None else None
        if used is None and not reply.sent:
            used = 0
        if used is not None and used != grant.tokens and used >= 0:
            self.tokens.schedule.settle(grant.at, used - grant.tokens)
        verdict = reply.verdict
        refused = verdict is Verdict.RATE_LIMIT
        if reply.limits is not None:
            for axis in self.hints.hear(grant.at, reply.limits, now, self.in_use, refused=refused):
                self._paces.tell(axis, now)
            if self.hints.paused_until > now:
                self._pause(now)
        if refused:
            self._refused(grant, reply, now)
        elif verdict is Verdict.TRANSIENT:
            self._failed(grant, reply, now)
        else:
            self._accepted(grant, now, grant.tokens if used is None else used)

    def _pause(self, now: float) -> None:
        if not self._gated:
            seconds = self.hints.paused_until - now
            self._tell("paused_by_server", f"the provider asks to wait {seconds:.1f} s", "info", {"seconds": seconds})
        self._gated = True

    def _accepted(self, grant: Grant, now: float, used: int) -> None:
        """The provider answered this request, whatever it said: it is up, and nothing held the request back."""
        self.answered = True
        self.refused_since = None
        self.concurrency.succeeded(now, grant.at, grant.level)
        if self.breaker.watchful:
            self.breaker.succeeded(grant.at, grant.key)
        # While one of them is closed to all but probes, requests are gated: nearly always none is.
        if self._gated and self.breaker.active:
            if grant.probe:
                self.close_breaker(now)
            elif not self.breaker.probing:
                self.breaker.next_at = min(self.breaker.next_at, now)
        changed = self.pacing.accepted(now, grant.at, used)
        if self._undecided:
            self._undecided = False
            self.concurrency.found(now, self.in_use + 1)
        if self._gated and self.hold.active and grant.probe:
            self._end_hold(now)
        if changed:
            self._paces.tell_all(now)
        if now >= self._review_at:
            self._review_at = now + _REVIEW_S
            if not self.hold.active and self.pacing.review(now):
                self._paces.tell_all(now)

    def _failed(self, grant: Grant, reply: Reply, now: float) -> None:
        """A transient failure: the provider may be down, or overloaded."""
        failure = reply.failure
        kind = failure.kind if failure is not None else ErrorKind.SERVER
        status = failure.http_status if failure is not None else None
        if status is not None:
            self.answered = True
        elif kind is ErrorKind.CONNECTION and not self.answered and self.failing_since is None:
            self.failing_since = now
        # Too many at once is tried first. Only what fails nevertheless is a sign that the provider is down.
        crowded = False
        if kind is ErrorKind.TIMEOUT:
            crowded = self.concurrency.crowded(now, grant.at)
            if not crowded:
                self.concurrency.troubled(now, grant.at)
        elif not self.breaker.active and (status in _FULL or not reply.sent):
            crowded = self.concurrency.turned_away(now, grant.at, grant.level, self.in_use, reached=reply.sent)
        if grant.probe and self.hold.active:
            self.hold.probe_failed(now)
        if kind not in _DOWN:
            if grant.probe and self.breaker.active:
                self.breaker.release(now)
        elif self.breaker.active:
            if grant.probe:
                self.breaker.probe_failed(now)
        elif crowded:
            pass
        elif grant.at >= self.breaker.opened_at and self.breaker.failed(
            now,
            grant.at,
            grant if grant.key is None else grant.key,
            suspicious=reply.sent,
            under_way=self.in_use,
        ):
            self._gated = True
            self.concurrency.down()
            message = failure.message if failure is not None else "server error"
            self._tell(
                "breaker_opened",
                f"the provider seems to be down ({message}); waiting for it",
                "warning",
                {"error_kind": str(kind), "http_status": status},
            )

    def close_breaker(self, now: float) -> None:
        """Let everybody go again after an outage."""
        down_s = now - (self.breaker.since if self.breaker.since is not None else now)
        self.breaker.open()
        self.breaker.opened_at = now
        self.concurrency.restart(self.in_use)
        self._tell("breaker_closed", f"the provider answers again after {down_s:.0f} s", "info", {"down_s": down_s})

    # -- refusals -----------------------------------------------------------------------------------------------------

    def _refused(self, grant: Grant, reply: Reply, now: float) -> None:
        """A 429. All refusals of one round trip count as one."""
        self.answered = True
        if self.refused_since is None:
            self.refused_since = now
        self.requests.schedule.refused(grant.at, 1.0)
        if reply.usage is None:
            self.tokens.schedule.refused(grant.at, grant.tokens)
        if grant.probe and self.breaker.active:
            self.close_breaker(now)
        hold = self.hold
        axis = _axis(reply)
        hint = believed_wait(reply.retry_after, refused=hold.tries if hold.active else 0)
        if hold.active and grant.probe:
            self.pacing.probe_refused(now)
            self._undecided = False
            if not hold.probe_refused(now, axis, hint):
                self.concurrency.undo()
            hold.wait_for_room(now, self.pacing.room_at(now, hold.step()), hint)
        elif axis is Axis.CONCURRENCY and self.in_use > 0:
            self.concurrency.refused(now, grant.at, grant.level)
        elif hold.active:
            hold.heard(now, hint)
            self.pacing.also_refused(grant.tokens)
        elif grant.at >= self._calm_at:
            alarm = self.pacing.refused(now, grant.at, grant.number)
            if alarm or self._alone(hint):
                self._begin_hold(grant, axis, hint, now)
            elif axis is Axis.UNKNOWN:
                if self.concurrency.on_new_ground(grant.level):
                    self.concurrency.refused(now, grant.at, grant.level)
                else:
                    self.concurrency.refused_at_edge(now, grant.level)

    def _alone(self, hint: float | None) -> bool:
        """Tell whether a refusal is believed at once: nothing is under way that could show that it was chance.

        Where refusals are usual, that would stop everything each time.
        """
        heard = hint is not None or not self.pacing.answered
        return heard and self.in_use == 0 and self.pacing.evidence.share < _RARE

    def _begin_hold(self, grant: Grant, axis: Axis, hint: float | None, now: float) -> None:
        if hint is not None:
            fields = {"seconds": round(hint, 3), "axis": str(axis)}
            self._tell("paused_by_server", f"the provider asks to wait {hint:.1f} s", "info", fields)
        self.pacing.hold(now)
        is_rate = self.concurrency.stands(grant.level) or any(
            rate.schedule.rate is not None and rate.near_limit for rate in self.pacing.rates.values()
        )
        self.hold.begin(now, axis, hint, is_rate=is_rate)
        if is_rate or axis is not Axis.UNKNOWN:
            self.hold.wait_for_room(now, self.pacing.room_at(now, self.hold.step()), hint)
        self._undecided = axis is Axis.UNKNOWN and not is_rate
        self._gated = True

    def _end_hold(self, now: float) -> None:
        """Something was accepted again: how long that took, and how often it happens, tells which limit it was.

        A limit of requests at once lets the next one in as soon as one has ended; a limit per minute keeps refusing.
        """
        hold = self.hold
        since = hold.since if hold.since is not None else now
        hold.open()
        self._undecided = False
        self._calm_at = now
        if hold.axis is Axis.CONCURRENCY:
            return
        if hold.axis is Axis.UNKNOWN and not hold.is_rate:
            before, self._strike = self._strike, (now, self.concurrency.slots)
            if hold.quick and not (now - before[0] < MINUTE and self.concurrency.slots <= 0.5 * before[1]):
                self.concurrency.restart(self.in_use)
                return
            # The same again far below: not how many are under way is refused.
            self._strike = (-math.inf, 0)
        self.concurrency.undo()
        for axis in self.pacing.learn(now, since, self.pacing.concerned(hold.axis)):
            self._paces.tell(axis, now)
        if not self.pacing.learned:
            self.concurrency.restart(0, fresh=1)  # no pace holds anybody back yet: not all at once

    def outage_s(self, now: float) -> float:
        """Return the seconds since the provider last answered well, while it is down or refuses everybody; else 0."""
        since = [at for at in (self.breaker.since, self.refused_since) if at is not None]
        return now - min(since) if since else 0.0

    def unreachable_s(self, now: float) -> float:
        """Return the seconds since the first failed connection, while nothing has ever answered; else 0."""
        return 0.0 if self.answered or self.failing_since is None else now - self.failing_since


def _axis(reply: Reply) -> Axis:
    """Which limit a refusal is about: as told, else the one whose allowance the headers show used up."""
    if reply.axis is Axis.UNKNOWN and reply.limits is not None:
        used_up = (reply.limits.remaining_requests == 0, reply.limits.remaining_tokens == 0)
        if used_up == (True, False):
            return Axis.REQUESTS
        if used_up == (False, True):
            return Axis.TOKENS
    return reply.axis
