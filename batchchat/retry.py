"""Whether a request is tried again, when, and whether the attempt counted: a pure function of what is known.

Nothing here waits or reads a clock. How long to wait is tenacity's `wait_exponential`, asked as a function over a
`RetryCallState` that carries the number of counted attempts. Its own jitter draws from the process-wide random numbers
and its `stop_after_delay` reads the wall clock, so the spread comes from the caller's `rng` and the deadline from the
caller's own measure of active time.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from batchchat.dataclass import dataclass
from batchchat.records import Verdict

if TYPE_CHECKING:
    import random

    from batchchat.records import Reply

RETRY_AFTER_MAX_S = 120.0
"""The longest wait that a server's Retry-After is believed; what asks for more is treated as if it said nothing."""
GATEWAY_TIMEOUT_ATTEMPTS = 3
"""A 504 may come from the request itself (an answer without end): it is tried twice more at most."""
DOUBTED_ATTEMPTS = 3
"""A refusal that cannot be true of the request is believed when it has come this often: a body that was lost or cut on
its way arrives whole at the next try, and a server that cannot read any body says so each time."""
UNSENT_MAX = 5
"""How many attempts of a request may fail before they reach the server and cost nothing. Chosen: above that, the
address or the network is at fault, and each further try is one that somebody should hear of."""
_BACKOFF_S = (1.0, 60.0)
"""The first wait and the longest: 1, 2, 4 … 60 s. Chosen: a server that restarts is back at the fourth or fifth try."""
_UNSENT_BACKOFF_S = (0.1, 5.0)
_RATE_LIMIT_S = 1.0
"""The wait after a rate limit that names none. Chosen: the limiter's pace decides, this only changes the order."""


class RetryAction(StrEnum):
    """What happens to the request: `no` ends its row, `fatal` and `refused` concern the run, the others go on."""

    NO = "no"
    RETRY = "retry"
    RATE_LIMIT = "rate_limit"
    FATAL = "fatal"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """The job's `retry`: attempts in all, and seconds.

    `request_timeout` bounds one attempt, `row_deadline` the active time of a row (attempts and waits between them,
    without waits for limits or for a provider that is down), `outage` how long the provider may be down.
    """

    attempts: int = 6
    request_timeout: float = 310.0
    row_deadline: float = 900.0
    outage: float = 600.0


@dataclass(frozen=True, slots=True)
class RetryDecision:
    """What to do after a failed attempt.

    Wait `delay_s` seconds without a permit before the next one. `counts` tells whether the attempt counts against the
    policy. `reason` says why the row ends if the reply alone would have allowed another try.
    """

    action: RetryAction
    delay_s: float = 0.0
    counts: bool = True
    reason: str | None = None

    @property
    def again(self) -> bool:
        """Whether the request is to be tried again."""
        return self.action in {RetryAction.RETRY, RetryAction.RATE_LIMIT}


def decide(
    reply: Reply,
    *,
    attempts: int,
    active_s: float,
    policy: RetryPolicy,
    rng: random.Random,
    unsent: int = 0,
) -> RetryDecision:
    """Decide what follows a failed `reply`.

    `attempts` counts the request's attempts that counted, this one included (as if it counted); `unsent` those that
    never reached the server, this one included; `active_s` is its active time so far. Raises ValueError for a reply
    that did not fail.
    """
    match reply.verdict:
        case Verdict.OK:
            raise ValueError("a reply that succeeded needs no decision")
        case Verdict.NO | Verdict.REFUSED if reply.doubted and attempts < DOUBTED_ATTEMPTS:
            return _decide_transient(reply, attempts=attempts, active_s=active_s, policy=policy, rng=rng, unsent=unsent)
        case Verdict.NO:
            return RetryDecision(RetryAction.NO)
        case Verdict.FATAL:
            return RetryDecision(RetryAction.FATAL)
        case Verdict.REFUSED:
            return RetryDecision(RetryAction.REFUSED)
        case Verdict.RATE_LIMIT:
            return RetryDecision(RetryAction.RATE_LIMIT, _rate_limit_wait(reply, rng), counts=False)
        case Verdict.TRANSIENT:
            return _decide_transient(reply, attempts=attempts, active_s=active_s, policy=policy, rng=rng, unsent=unsent)


def _decide_transient(
    reply: Reply, *, attempts: int, active_s: float, policy: RetryPolicy, rng: random.Random, unsent: int
) -> RetryDecision:
    if active_s >= policy.row_deadline:
        return RetryDecision(
            RetryAction.NO, reason=f"the row's deadline of {policy.row_deadline:g} s is over", counts=reply.sent
        )
    # Nothing was billed, so it costs no attempt, and the wait is short: mostly a connection that the server closed.
    if not reply.sent and unsent <= UNSENT_MAX:
        delay = _at_least(_spread(_backoff(unsent, *_UNSENT_BACKOFF_S), rng), reply)
        if active_s + delay < policy.row_deadline:
            return RetryDecision(RetryAction.RETRY, delay, counts=False)
        # A try with no time left would end as a timeout, and hide why the server was not reached.
        return RetryDecision(RetryAction.NO, reason=_no_time(policy), counts=False)
    allowed = policy.attempts
    if reply.failure is not None and reply.failure.http_status == 504:
        allowed = min(allowed, GATEWAY_TIMEOUT_ATTEMPTS)
    # A row that fails for good says after how many attempts.
    if attempts >= allowed:
        return RetryDecision(RetryAction.NO, reason=f"{allowed} attempt{'s' * (allowed != 1)} failed")
    # The server's wait is the least, never the most: it knows its own load, and not how often this request has failed.
    delay = _at_least(_spread(_backoff(attempts, *_BACKOFF_S), rng), reply)
    if active_s + delay >= policy.row_deadline:
        return RetryDecision(RetryAction.NO, reason=_no_time(policy))
    return RetryDecision(RetryAction.RETRY, delay)


def _no_time(policy: RetryPolicy) -> str:
    return f"the row's deadline of {policy.row_deadline:g} s leaves no time for another try"


def _backoff(attempts: int, first: float, longest: float) -> float:
    """Return the seconds to wait after so many attempts, from `first` on twice as long each time."""
    # Imported here: most runs meet no failure, and it takes longer than all other rules of a run.
    from tenacity import RetryCallState, Retrying, wait_exponential

    state = RetryCallState(Retrying(), None, (), {})
    state.attempt_number = max(1, attempts)
    return wait_exponential(multiplier=first, exp_base=2, max=longest)(state)


def _spread(wait: float, rng: random.Random) -> float:
    """Return half the wait and up to half more: spread apart, yet never at once (equal jitter)."""
    return wait * rng.uniform(0.5, 1.0)


def _retry_after(reply: Reply) -> float | None:
    """Return the server's wait if it is one: negative, NaN, infinite or beyond belief is none."""
    wait = reply.retry_after
    return wait if wait is not None and 0.0 <= wait <= RETRY_AFTER_MAX_S else None


def _at_least(wait: float, reply: Reply) -> float:
    return max(wait, _retry_after(reply) or 0.0)


def _rate_limit_wait(reply: Reply, rng: random.Random) -> float:
    """Return the server's wait, else a short one: the limiter holds everybody back, this only lets others go first."""
    asked = _retry_after(reply)
    return asked if asked is not None else _spread(_RATE_LIMIT_S, rng)
