"""What follows a failed attempt, as a table and as rules."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchchat.records import ErrorKind, Failure, Reply, Verdict
from batchchat.retry import DOUBTED_ATTEMPTS, RETRY_AFTER_MAX_S, UNSENT_MAX, RetryDecision, RetryPolicy, decide

POLICY = RetryPolicy(attempts=6, request_timeout=310, row_deadline=900, outage=600)


def reply(
    verdict: Verdict,
    kind: ErrorKind = ErrorKind.SERVER,
    status: int | None = None,
    retry_after: float | None = None,
    sent: bool = True,
) -> Reply:
    return Reply(verdict, failure=Failure(kind, "what went wrong", status), retry_after=retry_after, sent=sent)


def decided(answer: Reply, attempts: int = 1, active_s: float = 1.0, unsent: int = 0) -> RetryDecision:
    return decide(answer, attempts=attempts, active_s=active_s, policy=POLICY, rng=random.Random(4), unsent=unsent)


SERVER = reply(Verdict.TRANSIENT, ErrorKind.SERVER, 500)
GATEWAY = reply(Verdict.TRANSIENT, ErrorKind.TIMEOUT, 504)
TIMEOUT = reply(Verdict.TRANSIENT, ErrorKind.TIMEOUT)
UNSENT = reply(Verdict.TRANSIENT, ErrorKind.CONNECTION, sent=False)
DOUBTED = Reply(Verdict.NO, failure=Failure(ErrorKind.INVALID_REQUEST, "no JSON", 400), doubted=True)
LIMITED = reply(Verdict.RATE_LIMIT, ErrorKind.RATE_LIMIT, 429)


@pytest.mark.parametrize(
    ("answer", "attempts", "active_s", "unsent", "action", "counts"),
    [
        (reply(Verdict.NO, ErrorKind.INVALID_REQUEST, 400), 1, 1, 0, "no", True),
        (DOUBTED, 1, 1, 0, "retry", True),
        (DOUBTED, DOUBTED_ATTEMPTS - 1, 1, 0, "retry", True),
        (DOUBTED, DOUBTED_ATTEMPTS, 1, 0, "no", True),
        (DOUBTED, 1, 900, 0, "no", True),
        (reply(Verdict.FATAL, ErrorKind.INVALID_REQUEST, 401), 1, 1, 0, "fatal", True),
        (reply(Verdict.REFUSED, ErrorKind.INVALID_REQUEST, 404), 1, 1, 0, "refused", True),
        (SERVER, 1, 1, 0, "retry", True),
        (SERVER, 5, 1, 0, "retry", True),
        (SERVER, 6, 1, 0, "no", True),
        (SERVER, 7, 1, 0, "no", True),
        (SERVER, 1, 900, 0, "no", True),
        (GATEWAY, 2, 1, 0, "retry", True),
        (GATEWAY, 3, 1, 0, "no", True),
        (TIMEOUT, 5, 1, 0, "retry", True),
        (TIMEOUT, 6, 1, 0, "no", True),
        (TIMEOUT, 3, 930, 0, "no", True),
        (UNSENT, 6, 1, 1, "retry", False),
        (UNSENT, 6, 1, UNSENT_MAX, "retry", False),
        (UNSENT, 5, 1, UNSENT_MAX + 1, "retry", True),
        (UNSENT, 6, 1, UNSENT_MAX + 1, "no", True),
        (UNSENT, 1, 900, 1, "no", False),
        (LIMITED, 1, 1, 0, "rate_limit", False),
        (LIMITED, 99, 9999, 0, "rate_limit", False),
    ],
)
def test_what_follows_a_failure(
    answer: Reply, attempts: int, active_s: float, unsent: int, action: str, counts: bool
) -> None:
    decision = decided(answer, attempts, active_s, unsent)
    assert (decision.action, decision.counts) == (action, counts)
    assert decision.again == (action in {"retry", "rate_limit"})
    if not decision.again:
        assert decision.delay_s == 0.0


def test_the_reason_for_giving_up_is_told_where_the_reply_alone_does_not_tell_it() -> None:
    assert decided(SERVER, attempts=6).reason == "6 attempts failed"
    assert decided(GATEWAY, attempts=3).reason == "3 attempts failed"
    assert decided(SERVER, active_s=901).reason == "the row's deadline of 900 s is over"
    assert decided(reply(Verdict.NO)).reason is None
    assert decided(SERVER).reason is None


def test_a_job_may_ask_for_a_single_attempt() -> None:
    policy = RetryPolicy(attempts=1)
    decision = decide(SERVER, attempts=1, active_s=0.0, policy=policy, rng=random.Random(0))
    assert (decision.action, decision.reason) == ("no", "1 attempt failed")


def test_waits_double_and_are_spread() -> None:
    rng = random.Random(9)
    for attempt, base in ((1, 1), (2, 2), (3, 4), (4, 8), (5, 16)):
        waits = [decide(SERVER, attempts=attempt, active_s=0.0, policy=POLICY, rng=rng).delay_s for _ in range(300)]
        assert base / 2 <= min(waits) < 0.6 * base
        assert 0.9 * base < max(waits) <= base


def test_the_same_random_numbers_give_the_same_decision() -> None:
    assert decided(SERVER, 3) == decided(SERVER, 3)


@pytest.mark.parametrize(
    ("asked", "least", "most"),
    [
        (0.0, 0.0, 0.0),
        (0.12, 0.12, 0.12),
        (45.0, 45.0, 45.0),
        (120.0, 120.0, 120.0),
        (None, 0.5, 1.0),
        (-3.0, 0.5, 1.0),
        (math.nan, 0.5, 1.0),
        (math.inf, 0.5, 1.0),
        (31_536_000.0, 0.5, 1.0),
    ],
)
def test_a_rate_limit_waits_as_asked_within_reason(asked: float | None, least: float, most: float) -> None:
    decision = decided(reply(Verdict.RATE_LIMIT, ErrorKind.RATE_LIMIT, 429, retry_after=asked))
    assert least <= decision.delay_s <= most


def test_a_server_that_names_a_wait_with_its_error_is_given_it() -> None:
    asked = reply(Verdict.TRANSIENT, ErrorKind.SERVER, 503, retry_after=33.0)
    assert decided(asked).delay_s == 33.0
    assert decided(asked, active_s=890.0).action == "no"


def test_a_success_needs_no_decision() -> None:
    with pytest.raises(ValueError, match="succeeded"):
        decided(Reply(Verdict.OK))


@given(
    verdict=st.sampled_from([verdict for verdict in Verdict if verdict is not Verdict.OK]),
    kind=st.sampled_from(ErrorKind),
    status=st.none() | st.integers(100, 599),
    retry_after=st.none() | st.floats(),
    sent=st.booleans(),
    attempts=st.integers(0, 50),
    active_s=st.floats(0.0, 2000.0),
    unsent=st.integers(0, 50),
)
def test_every_row_ends_and_no_wait_is_without_bound(
    verdict: Verdict,
    kind: ErrorKind,
    status: int | None,
    retry_after: float | None,
    sent: bool,
    attempts: int,
    active_s: float,
    unsent: int,
) -> None:
    decision = decided(reply(verdict, kind, status, retry_after, sent), attempts, active_s, unsent)
    assert 0.0 <= decision.delay_s <= RETRY_AFTER_MAX_S
    assert decision.counts or verdict is Verdict.RATE_LIMIT or not sent
    if decision.action == "retry":
        assert attempts < POLICY.attempts or (not sent and unsent <= UNSENT_MAX)
        assert active_s + decision.delay_s <= POLICY.row_deadline
