"""The limiter itself: permits in turn, the window, gates, headers and what it tells. Time is virtual."""

from __future__ import annotations

import math
import random
from collections.abc import Awaitable, Callable
from itertools import pairwise

import anyio
import pytest
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from batchchat.events import Event
from batchchat.limits import Advertised, Limiter, Permit, TokenEstimator
from batchchat.records import Axis, ErrorKind, Failure, LimitHeaders, Reply, Usage, Verdict
from tests.limiters import make_limiter
from tests.thorough import examples

OK = Reply(Verdict.OK, usage=Usage(5, 5, 10))
REFUSED = Reply(Verdict.NO, failure=Failure(ErrorKind.INVALID_REQUEST, "too long", 400))
BROKEN = Reply(Verdict.TRANSIENT, failure=Failure(ErrorKind.SERVER, "oops", 500))
OVERLOADED = Reply(Verdict.TRANSIENT, failure=Failure(ErrorKind.SERVER, "overloaded", 503))
TIMEOUT = Reply(Verdict.TRANSIENT, failure=Failure(ErrorKind.TIMEOUT, "no answer"))
UNREACHED = Reply(Verdict.TRANSIENT, failure=Failure(ErrorKind.CONNECTION, "connection refused"), sent=False)


def too_many(axis: Axis = Axis.UNKNOWN, retry_after: float | None = None) -> Reply:
    failure = Failure(ErrorKind.RATE_LIMIT, "slow down", 429)
    return Reply(Verdict.RATE_LIMIT, failure=failure, axis=axis, retry_after=retry_after)


def run(main: Callable[[], Awaitable[None]]) -> None:
    anyio.run(main, backend="trio", backend_options={"clock": trio.testing.MockClock(autojump_threshold=0)})


def make(**options: object) -> tuple[Limiter, list[Event]]:
    events: list[Event] = []
    return make_limiter(listener=events.append, rng=random.Random(1), **options), events  # type: ignore[arg-type]


def take(limiter: Limiter, count: int = 1, key: object = None) -> list[Permit]:
    permits = []
    for _ in range(count):
        permit = limiter.try_acquire(10, key=key)
        assert permit is not None
        permits.append(permit)
    return permits


# -- permits --------------------------------------------------------------------------------------------------------


def test_a_slot_is_given_back_when_its_permit_is_settled_and_only_once() -> None:
    async def main() -> None:
        limiter, _ = make(concurrency=2)
        first, second = take(limiter, 2)
        assert limiter.try_acquire(10) is None
        first.settle(OK)
        assert limiter.pace().in_use == 1
        with pytest.raises(RuntimeError, match="settled once"):
            first.settle(OK)
        second.settle(None)
        assert limiter.pace().in_use == 0

    run(main)


def test_waiters_are_served_in_the_order_they_came_and_nobody_jumps_the_queue() -> None:
    async def main() -> None:
        limiter, _ = make(concurrency=2)
        held = take(limiter, 2)
        served: list[int] = []

        async def wait(number: int) -> None:
            permit = await limiter.acquire(10)
            served.append(number)
            await anyio.sleep(1)
            permit.settle(OK)

        async with anyio.create_task_group() as group:
            for number in range(50):
                group.start_soon(wait, number)
                await anyio.sleep(0.001)
            held[0].settle(OK)
            assert limiter.try_acquire(10) is None
            held[1].settle(OK)
        assert served == list(range(50))

    run(main)


def test_a_permit_may_be_settled_by_another_task() -> None:
    async def main() -> None:
        limiter, _ = make(concurrency=1)
        (held,) = take(limiter)

        async def settle_later() -> None:
            await anyio.sleep(5)
            held.settle(OK)

        async with anyio.create_task_group() as group:
            group.start_soon(settle_later)
            permit = await limiter.acquire(10)
            assert anyio.current_time() == pytest.approx(5)
            permit.settle(OK)

    run(main)


def test_a_pace_alone_makes_the_next_one_wait_just_long_enough() -> None:
    async def main() -> None:
        limiter, _ = make(requests_per_minute=60)
        times = []
        for _ in range(4):
            (await limiter.acquire(1)).settle(OK)
            times.append(anyio.current_time())
        gaps = [later - sooner for sooner, later in pairwise(times)]
        assert times[0] == 0.0
        assert gaps == pytest.approx([1.0033 - 0.1, 1.0033, 1.0033], abs=1e-3)

    run(main)


def test_a_request_larger_than_a_minutes_tokens_goes_when_it_is_alone() -> None:
    async def main() -> None:
        limiter, _ = make(tokens_per_minute=100)
        (await limiter.acquire(50)).settle(Reply(Verdict.OK, usage=Usage(25, 25, 50)))
        (await limiter.acquire(1000)).settle(Reply(Verdict.OK, usage=Usage(500, 500, 1000)))
        assert 60.0 <= anyio.current_time() <= 61.0
        await limiter.acquire(50)
        assert anyio.current_time() >= 60.0 + 600.0

    run(main)


def test_tokens_of_a_request_that_never_left_are_given_back() -> None:
    async def main() -> None:
        limiter, _ = make(tokens_per_minute=1000)
        permit = limiter.try_acquire(900)
        assert permit is not None
        permit.settle(UNREACHED)
        assert limiter.pace().tokens_used == 0
        assert limiter.try_acquire(900) is not None

    run(main)


@examples(60)
@given(
    waits=st.lists(st.tuples(st.floats(0.0, 3.0), st.floats(0.0, 3.0), st.booleans()), min_size=1, max_size=40),
    slots=st.integers(1, 3),
    per_minute=st.sampled_from([None, 120, 1200]),
)
def test_cancelled_waits_leak_nothing_and_wake_the_next(
    waits: list[tuple[float, float, bool]], slots: int, per_minute: int | None
) -> None:
    async def main() -> None:
        limiter, _ = make(concurrency=slots, requests_per_minute=per_minute)
        served = [0]

        async def use(start: float, patience: float, patient: bool) -> None:
            await anyio.sleep(start)
            with anyio.move_on_after(None if patient else patience):
                permit = await limiter.acquire(10)
                reply = None
                try:
                    await anyio.sleep(0.5)
                    reply = OK
                finally:
                    permit.settle(reply)
                    served[0] += 1

        async with anyio.create_task_group() as group:
            for start, patience, patient in waits:
                group.start_soon(use, start, patience, patient)
        assert served[0] >= sum(patient for _, _, patient in waits)
        assert limiter.pace().in_use == 0
        with anyio.fail_after(2):
            for _ in range(slots):
                await limiter.acquire(10)

    run(main)


def test_thousands_of_waiters_that_leave_are_forgotten() -> None:
    async def main() -> None:
        limiter, _ = make(concurrency=1)
        (held,) = take(limiter)
        async with anyio.create_task_group() as group:
            group.start_soon(limiter.acquire, 10)
            await anyio.sleep(1)
            for _ in range(3):
                with anyio.move_on_after(1):
                    async with anyio.create_task_group() as impatient:
                        for _ in range(500):
                            impatient.start_soon(limiter.acquire, 10)
                assert len(limiter._waiters) <= 130
            held.settle(OK)

    run(main)


# -- concurrency ----------------------------------------------------------------------------------------------------


def round_trip(limiter: Limiter, reply: Reply, count: int | None = None) -> int:
    permits = take(limiter, count or limiter.window)
    for permit in permits:
        permit.settle(reply)
    return limiter.window


def test_an_unset_concurrency_starts_small_and_grows_in_stages_while_it_is_used_and_worth_it() -> None:
    async def main() -> None:
        limiter, _ = make(advertised=Advertised(concurrency=100))
        windows = [limiter.window, *[await timed_round_trip(limiter, 1.0) for _ in range(60)]]
        assert windows[0] == 8
        # One by one, so that an unknown limit on the way costs a request or two, and a half more in each stage.
        assert all(later <= sooner + sooner // 2 + 1 for sooner, later in pairwise(windows))
        assert windows[-1] == 100

    run(main)


def test_a_window_stops_growing_if_more_at_once_does_not_bring_more_answers() -> None:
    async def main() -> None:
        limiter, _ = make()
        for _ in range(80):
            await timed_round_trip(limiter, max(0.2, limiter.window / 100))
        assert 18 <= limiter.window <= 50  # 20 fill a server that gives 100 a second after 0.2 s

    run(main)


async def timed_round_trip(limiter: Limiter, seconds: float) -> int:
    """Fill the window, let its answers come evenly over so many seconds, and return the window."""
    permits = take(limiter, limiter.window)
    for permit in permits:
        await anyio.sleep(seconds / len(permits))
        permit.settle(OK)
    return limiter.window


def test_a_window_that_is_not_used_does_not_grow_and_a_set_one_starts_full() -> None:
    async def main() -> None:
        idle, _ = make()
        for _ in range(100):
            round_trip(idle, OK, 4)
        assert idle.window == 8
        given_, _ = make(concurrency=33)
        assert given_.window == 33
        assert round_trip(given_, OK) == 33

    run(main)


def test_the_providers_concurrency_bounds_growth_only_where_the_job_says_nothing() -> None:
    async def main() -> None:
        unset, _ = make(advertised=Advertised(concurrency=20))
        for _ in range(30):
            await timed_round_trip(unset, 1.0)
        assert unset.window == 20
        assert make(advertised=Advertised(concurrency=20), concurrency=50)[0].window == 50

    run(main)


def test_a_refused_concurrency_shrinks_the_window_once_per_round_trip_and_nothing_else() -> None:
    async def main() -> None:
        limiter, events = make(concurrency=64)
        permits = take(limiter, 64)
        await anyio.sleep(0.1)
        for permit in permits[40:]:
            permit.settle(too_many(Axis.CONCURRENCY))
        assert 32 <= limiter.window <= 40
        for permit in permits[:40]:
            permit.settle(OK)
        assert limiter.pace().requests_per_minute is None
        assert limiter.pace().paused_s == 0
        assert events == []
        for _ in range(100):
            await anyio.sleep(1)
            round_trip(limiter, OK)
        assert limiter.window == 64

    run(main)


# Of a timeout only some were answered in that time; a server that turns four away keeps the other 28.
@pytest.mark.parametrize(("trouble", "window"), [(OVERLOADED, 28), (TIMEOUT, 22)])
def test_overload_shrinks_the_window_and_success_brings_it_back(trouble: Reply, window: int) -> None:
    async def main() -> None:
        limiter, _ = make(concurrency=32)
        permits = take(limiter, 32)
        await anyio.sleep(1)
        for permit in permits[:4]:
            permit.settle(trouble)
        for permit in permits[4:]:
            permit.settle(OK)
        assert limiter.window == window
        for _ in range(12):
            await anyio.sleep(1)
            round_trip(limiter, OK)
        assert limiter.window == 32

    run(main)


def test_a_bad_row_now_and_then_does_not_slow_the_rest() -> None:
    async def main() -> None:
        limiter, events = make(concurrency=32)
        for number in range(50):
            for bad in (BROKEN, TIMEOUT):
                await anyio.sleep(0.1)
                permits = take(limiter, 32)
                permits[number % 32].settle(bad)
                for permit in permits[: number % 32] + permits[number % 32 + 1 :]:
                    permit.settle(OK)
        assert limiter.window == 32
        assert events == []

    run(main)


# -- the breaker ----------------------------------------------------------------------------------------------------


def fail(limiter: Limiter, reply: Reply, keys: list[str]) -> None:
    for key in keys:
        permit = limiter.try_acquire(10, key=key)
        if permit is not None:
            permit.settle(reply)


@pytest.mark.parametrize("reply", [UNREACHED, BROKEN, TIMEOUT, OVERLOADED])
def test_five_requests_that_fail_in_a_row_open_the_breaker(reply: Reply) -> None:
    async def main() -> None:
        limiter, events = make(concurrency=16)
        fail(limiter, reply, ["a", "b", "c", "d"])
        assert limiter.pace().breaker == "closed"
        fail(limiter, reply, ["e"])
        assert limiter.pace().breaker == "open"
        assert limiter.try_acquire(10) is None
        assert [event.name for event in events] == ["breaker_opened"]

    run(main)


def test_one_request_that_fails_again_and_again_is_no_outage() -> None:
    async def main() -> None:
        limiter, _ = make(concurrency=16)
        fail(limiter, BROKEN, ["poison"] * 30)
        assert limiter.pace().breaker == "closed"
        assert limiter.outage_s == 0

    run(main)


def test_rows_that_failed_among_healthy_ones_do_not_open_it_when_they_are_all_that_is_left() -> None:
    async def main() -> None:
        limiter, _ = make(concurrency=16)
        poisoned = [f"poison {number}" for number in range(12)]
        for key in poisoned:
            fail(limiter, BROKEN, [key])
            await anyio.sleep(1)
            round_trip(limiter, OK)
        for _ in range(5):
            fail(limiter, BROKEN, poisoned)
        assert limiter.pace().breaker == "closed"
        fail(limiter, UNREACHED, poisoned)
        assert limiter.pace().breaker == "open"

    run(main)


def test_a_row_that_was_mended_is_evidence_again() -> None:
    async def main() -> None:
        limiter, _ = make(concurrency=16)
        keys = ["a", "b", "c", "d", "e"]
        fail(limiter, BROKEN, keys[:4])
        await anyio.sleep(1)
        fail(limiter, OK, keys)
        await anyio.sleep(1)
        fail(limiter, OK, keys)
        fail(limiter, BROKEN, keys)
        assert limiter.pace().breaker == "open"

    run(main)


def test_answers_that_were_under_way_neither_keep_it_shut_nor_reopen_the_gates() -> None:
    async def main() -> None:
        limiter, _ = make(concurrency=40)
        early = take(limiter, 20)
        await anyio.sleep(10)
        for number in range(20):
            fail(limiter, UNREACHED, [f"row {number}"])
            if number % 10 == 5:
                early.pop().settle(OK)
        assert limiter.pace().breaker == "open"
        assert limiter.try_acquire(10) is None or limiter.pace().breaker == "probing"
        early.pop().settle(UNREACHED)
        early.pop().settle(OK)
        assert limiter.pace().breaker != "closed"

    run(main)


def test_while_open_one_probe_goes_at_a_time_with_growing_waits_until_one_succeeds() -> None:
    async def main() -> None:
        limiter, events = make(concurrency=8)
        fail(limiter, UNREACHED, list("abcde"))
        probes: list[float] = []
        active = [0]

        async def work(number: int) -> None:
            while len(probes) < 8:
                permit = await limiter.acquire(10, key=number)
                if len(probes) == 8:
                    permit.settle(OK)
                    return
                assert permit.probe
                active[0] += 1
                assert active[0] == 1
                probes.append(anyio.current_time())
                await anyio.sleep(0.5)
                active[0] -= 1
                permit.settle(OK if len(probes) == 8 else UNREACHED)
                if len(probes) == 8:
                    return
                await anyio.sleep(0.1)

        async with anyio.create_task_group() as group:
            for number in range(20):
                group.start_soon(work, number)
        gaps = [later - sooner - 0.5 for sooner, later in zip([-0.5, *probes], probes, strict=False)]
        for gap, expected in zip(gaps, [1, 2, 4, 8, 8, 8, 8, 8], strict=True):
            assert 0.8 * expected <= gap <= 1.2 * expected
        assert limiter.pace().breaker == "closed"
        assert limiter.outage_s == 0
        assert [event.name for event in events] == ["breaker_opened", "breaker_closed"]
        assert events[1].fields["down_s"] == pytest.approx(probes[-1] + 0.5)

    run(main)


def test_an_abandoned_probe_makes_room_for_the_next() -> None:
    async def main() -> None:
        limiter, _ = make(concurrency=8)
        fail(limiter, UNREACHED, list("abcde"))
        (await limiter.acquire(10)).settle(None)
        probe = await limiter.acquire(10)
        assert probe.probe
        assert anyio.current_time() <= 1.3

    run(main)


def test_after_an_outage_few_go_at_first_and_the_window_is_back_in_a_few_round_trips() -> None:
    async def main() -> None:
        limiter, _ = make(concurrency=256)
        fail(limiter, UNREACHED, [str(number) for number in range(70)])
        (await limiter.acquire(10)).settle(OK)
        windows = [limiter.window]
        while windows[-1] < 256:
            await anyio.sleep(1)
            windows.append(round_trip(limiter, OK))
        assert windows[0] <= 9
        assert len(windows) <= 7

    run(main)


def test_requests_that_hang_do_not_keep_the_probe_out() -> None:
    async def main() -> None:
        limiter, _ = make(concurrency=32)
        permits = take(limiter, 32)
        await anyio.sleep(300)
        for permit in permits[:12]:
            permit.settle(TIMEOUT)
        assert limiter.pace().breaker == "open"
        probe = await limiter.acquire(10)
        assert probe.probe
        assert anyio.current_time() < 303
        probe.settle(OK)
        assert limiter.window > limiter.pace().in_use

    run(main)


def test_how_long_an_outage_lasts_and_whether_anything_ever_answered_is_told() -> None:
    async def main() -> None:
        limiter, _ = make(concurrency=8)
        assert (limiter.outage_s, limiter.unreachable_s, limiter.answered) == (0.0, 0.0, False)
        fail(limiter, TIMEOUT, ["slow"])
        await anyio.sleep(5)
        assert limiter.unreachable_s == 0.0
        fail(limiter, UNREACHED, ["a"])
        await anyio.sleep(5)
        assert limiter.unreachable_s == pytest.approx(5)
        fail(limiter, UNREACHED, list("bcd"))
        await anyio.sleep(20)
        assert limiter.pace().breaker == "open"
        assert limiter.outage_s == pytest.approx(30)
        assert limiter.unreachable_s == pytest.approx(25)
        (await limiter.acquire(10)).settle(BROKEN)
        assert limiter.answered
        assert limiter.unreachable_s == 0.0
        assert limiter.outage_s > 0

    run(main)


# -- refusals and pauses --------------------------------------------------------------------------------------------


def test_a_servers_wait_is_obeyed_by_everybody_and_then_one_asks_first() -> None:
    async def main() -> None:
        limiter, events = make(concurrency=8)
        permits = take(limiter, 8)
        for permit in permits:
            permit.settle(too_many(Axis.REQUESTS, retry_after=7.0))
        assert limiter.pace().paused_s == pytest.approx(7.0)
        probe = await limiter.acquire(10)
        assert probe.probe
        assert anyio.current_time() == pytest.approx(7.0)
        assert limiter.try_acquire(10) is None
        probe.settle(OK)
        assert not (await limiter.acquire(10)).probe
        assert [event.name for event in events] == ["paused_by_server"]

    run(main)


@pytest.mark.parametrize("wait", [-1.0, math.nan, math.inf, 31_536_000.0, None])
def test_a_wait_that_is_none_is_replaced_by_a_short_one(wait: float | None) -> None:
    async def main() -> None:
        limiter, _ = make()
        take(limiter)[0].settle(too_many(Axis.REQUESTS, retry_after=wait))
        await limiter.acquire(10)
        assert 0.2 <= anyio.current_time() <= 0.3

    run(main)


def test_a_wait_of_hours_is_asked_about_sooner_and_never_stops_the_run() -> None:
    async def main() -> None:
        limiter, _ = make()
        (permit,) = take(limiter)
        asked = []
        for _ in range(8):
            permit.settle(too_many(Axis.REQUESTS, retry_after=7200.0))
            permit = await limiter.acquire(10)
            asked.append(anyio.current_time())
        gaps = [later - sooner for sooner, later in zip([0.0, *asked], asked, strict=False)]
        assert gaps[0] == pytest.approx(15)
        assert max(gaps) <= 120
        assert limiter.outage_s == pytest.approx(asked[-1])
        permit.settle(OK)
        assert limiter.outage_s == 0

    run(main)


def test_a_refusal_of_many_at_once_counts_once() -> None:
    async def main() -> None:
        limiter, _ = make(concurrency=50)
        for number in range(100):
            take(limiter)[0].settle(OK)
            await anyio.sleep(0.1 if number else 0.0)
        permits = take(limiter, 50)
        await anyio.sleep(0.1)
        for permit in permits:
            permit.settle(too_many(Axis.REQUESTS))
        (await limiter.acquire(10)).settle(OK)
        learned = limiter.pace().requests_per_minute
        assert learned is not None
        assert learned >= 0.9 * 101

    run(main)


def test_an_exhausted_allowance_in_the_headers_pauses_and_a_newer_reply_lifts_it() -> None:
    async def main() -> None:
        limiter, events = make(concurrency=8)
        first, second = take(limiter, 2)
        first.settle(Reply(Verdict.OK, limits=LimitHeaders(remaining_requests=0, reset_requests=40.0)))
        assert limiter.pace().paused_s == pytest.approx(40.0)
        assert limiter.try_acquire(10) is None
        second.settle(Reply(Verdict.OK, limits=LimitHeaders(remaining_requests=5, reset_requests=40.0)))
        assert limiter.try_acquire(10) is not None
        assert [event.name for event in events] == ["paused_by_server"]

    run(main)


@pytest.mark.parametrize("reset", [-1.0, math.nan, math.inf, 31_536_000.0, None, 0.0])
def test_a_reset_beyond_reason_pauses_nobody(reset: float | None) -> None:
    async def main() -> None:
        limiter, _ = make()
        for permit in take(limiter, 3):
            permit.settle(Reply(Verdict.OK, limits=LimitHeaders(remaining_tokens=0, reset_tokens=reset)))
        assert limiter.try_acquire(10) is not None

    run(main)


def test_a_limit_in_the_headers_is_taken_when_two_replies_agree_and_corrects_the_default_both_ways() -> None:
    async def main() -> None:
        limiter, events = make(advertised=Advertised(requests_per_minute=300), tokens_per_minute=5000)
        for limit in (600, 120):
            for permit in [await limiter.acquire(1), await limiter.acquire(1)]:
                before = limiter.pace().requests_per_minute
                permit.settle(Reply(Verdict.OK, limits=LimitHeaders(limit_requests=limit, limit_tokens=9000)))
            assert before != limit
            assert limiter.pace().requests_per_minute == limit
        assert limiter.pace().tokens_per_minute == 5000
        assert "pace_learned" in [event.name for event in events]

    run(main)


@pytest.mark.parametrize(
    "headers",
    [
        LimitHeaders(limit_requests=0),
        LimitHeaders(limit_requests=-300),
        LimitHeaders(limit_requests=5, remaining_requests=300),
        LimitHeaders(limit_requests=10**15),
        LimitHeaders(limit_requests=2),
    ],
)
def test_a_limit_that_contradicts_itself_or_what_was_accepted_is_not_believed(headers: LimitHeaders) -> None:
    async def main() -> None:
        limiter, _ = make(concurrency=8)
        for _ in range(3):
            for permit in take(limiter, 8):
                permit.settle(OK)
        for permit in take(limiter, 8):
            permit.settle(Reply(Verdict.OK, limits=headers))
        assert limiter.pace().requests_per_minute is None

    run(main)


def test_the_pace_tells_what_is_allowed_and_used() -> None:
    async def main() -> None:
        limiter, _ = make(requests_per_minute=6000, tokens_per_minute=90_000, concurrency=4)
        take(limiter, 1)[0].settle(OK)
        await anyio.sleep(1)
        take(limiter, 2)
        pace = limiter.pace()
        assert (pace.requests_per_minute, pace.tokens_per_minute, pace.concurrency) == (6000, 90_000, 4)
        assert (pace.requests_used, pace.tokens_used, pace.in_use) == (3, 30, 2)
        assert (pace.paused_s, pace.breaker) == (0.0, "closed")
        await anyio.sleep(90)
        assert limiter.pace().requests_used == 0

    run(main)


# -- the estimate ---------------------------------------------------------------------------------------------------


def test_the_reserve_learns_from_usage() -> None:
    estimator = TokenEstimator()
    assert estimator.reserve(100, max_tokens=64) == 164
    for _ in range(300):
        estimator.learn(100, Usage(150, 20, 170))
    assert estimator.reserve(100, max_tokens=64) == 170
    assert estimator.reserve(200) == 320
    assert estimator.reserve(100, max_tokens=5) == 155
    for _ in range(300):
        estimator.learn(100, Usage(80, 40, 120))
    assert estimator.reserve(100) == pytest.approx(120, abs=2)


def test_long_answers_among_short_ones_are_reserved_at_their_mean() -> None:
    estimator, rng = TokenEstimator(), random.Random(2)
    answers = [rng.choice((10, 10, 10, 500)) for _ in range(2000)]
    reserved = 0
    for answer in answers:
        reserved += estimator.reserve(50)
        estimator.learn(50, Usage(50, answer, 50 + answer))
    assert reserved == pytest.approx(sum(answers) + 50 * 2000, rel=0.05)


@given(
    st.lists(
        st.tuples(
            st.integers(-5, 10**6),
            st.builds(
                Usage,
                st.none() | st.integers(-5, 10**6),
                st.none() | st.integers(-5, 10**6),
                st.none() | st.integers(-5, 10**6),
            ),
        ),
        max_size=30,
    ),
    st.integers(0, 10**6),
    st.none() | st.integers(1, 10**5),
)
def test_the_reserve_is_a_positive_number_whatever_usage_says(
    usages: list[tuple[int, Usage]], prompt: int, max_tokens: int | None
) -> None:
    estimator = TokenEstimator()
    for guessed, usage in usages:
        estimator.learn(guessed, usage)
    assert estimator.reserve(prompt, max_tokens) >= 1
