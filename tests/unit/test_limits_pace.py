"""The pace of one axis: never more than allowed in any window, close to all of it, and what refusals teach."""

from __future__ import annotations

from itertools import accumulate, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchchat.limits.pace import TICKS_PER_S, Minute, RatePace

GAPS = st.lists(st.one_of(st.just(0.0), st.floats(0.0, 0.5), st.floats(0.0, 90.0)), min_size=1, max_size=150)


def send_all(pace: RatePace, requests: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Offer (gap, amount) one after the other, each as soon as it may go; return (time, amount) as sent."""
    now, sent = 0.0, []
    for gap, amount in requests:
        now += gap
        while (wait := pace.delay(now, amount)) > 0:
            now += wait
        pace.take(now, int(now * TICKS_PER_S), amount)
        sent.append((now, amount))
    return sent


def most_in_a_minute(sent: list[tuple[float, float]]) -> float:
    """The largest sum within any half-open window of 60 seconds that holds more than one request."""
    totals = [0.0, *accumulate(amount for _, amount in sent)]
    most, first = 0.0, 0
    for last, (at, _) in enumerate(sent):
        while at - sent[first][0] >= 60.0:
            first += 1
        if last > first:
            most = max(most, totals[last + 1] - totals[first])
    return most


@given(limit=st.integers(1, 200), gaps=GAPS)
def test_requests_in_any_minute_stay_under_the_limit(limit: int, gaps: list[float]) -> None:
    sent = send_all(RatePace(limit, None), [(gap, 1.0) for gap in gaps])
    assert most_in_a_minute(sent) <= max(1, limit)


@given(
    limit=st.integers(1, 5000),
    requests=st.lists(st.tuples(st.floats(0.0, 20.0), st.integers(1, 3000)), min_size=1, max_size=100),
)
def test_tokens_in_any_minute_stay_under_the_limit_and_an_oversized_request_goes_alone(
    limit: int, requests: list[tuple[float, float]]
) -> None:
    sent = send_all(RatePace(limit, None), requests)
    assert len(sent) == len(requests)
    alone = [(at, amount) for at, amount in sent if amount > limit]
    for at, _ in alone:
        assert [other for other, _ in sent if at - 60.0 < other <= at] == [at]
    assert most_in_a_minute([pair for pair in sent if pair not in alone]) <= limit + 1e-6


@given(
    limit=st.integers(10, 1000),
    advertised=st.lists(st.integers(1, 2000), min_size=1, max_size=4),
    gaps=GAPS,
)
def test_the_jobs_ceiling_holds_whatever_the_provider_tells(
    limit: int, advertised: list[int], gaps: list[float]
) -> None:
    pace = RatePace(limit, None)
    sent: list[tuple[float, float]] = []
    now = 0.0
    for index, gap in enumerate(gaps):
        now += gap
        if index % 20 == 10:
            pace.told(now, advertised[index // 20 % len(advertised)])
        while (wait := pace.delay(now, 1.0)) > 0:
            now += wait
        pace.take(now, int(now * TICKS_PER_S), 1.0)
        sent.append((now, 1.0))
    assert most_in_a_minute(sent) <= limit


@pytest.mark.parametrize("limit", [10, 300, 6000])
def test_a_busy_minute_uses_nearly_all_of_the_limit_and_starts_without_a_burst(limit: int) -> None:
    sent = send_all(RatePace(limit, None), [(0.0, 1.0)] * (limit * 3 + 1))
    assert 60.0 * 3 / sent[-1][0] >= 0.995
    assert sum(at < 1.0 for at, _ in sent) <= max(1, limit / 60 * 1.2)
    # The last of any N+1 is on its way 0.1 s later than a minute after the first: room for an uneven network.
    assert min(later[0] - sooner[0] for sooner, later in zip(sent, sent[limit:], strict=False)) >= 60.1 - 1e-6


def test_a_late_wake_up_is_made_good_but_a_pause_is_not() -> None:
    pace = RatePace(6000, None)
    late = send_all(pace, [(0.0, 1.0)] + [(0.0, 1.0)] * 99)
    pause = late[-1][0] + 30.0
    after = send_all_from(pace, pause, 50)
    assert sum(at - pause < 0.005 for at in after) <= 11
    assert after[-1] - pause >= 0.35


def send_all_from(pace: RatePace, now: float, count: int) -> list[float]:
    sent = []
    for _ in range(count):
        while (wait := pace.delay(now, 1.0)) > 0:
            now += wait
        pace.take(now, int(now * TICKS_PER_S), 1.0)
        sent.append(now)
    return sent


def test_a_limit_told_late_counts_what_went_before() -> None:
    pace = RatePace(None, None)
    before = [(index * 0.1, 1.0) for index in range(100)]
    for at, amount in before:
        pace.take(at, int(at * TICKS_PER_S), amount)
    pace.told(10.0, 120)
    after = [(at, 1.0) for at in send_all_from(pace, 10.0, 200)]
    assert most_in_a_minute(before + after) <= 120
    assert after[0][0] >= 49.0


def test_real_usage_moves_the_schedule_both_ways() -> None:
    cheap, dear = RatePace(6000, None), RatePace(6000, None)
    for pace, real in ((cheap, 100.0), (dear, 2000.0)):
        pace.take(0.0, 0, 1000.0)
        assert pace.delay(0.0, 1.0) == pytest.approx(1000 * 60.2 / 6000 - 0.1)
        pace.settle(0.0, real - 1000.0)
    assert cheap.delay(0.0, 1.0) == pytest.approx(100 * 60.2 / 6000 - 0.1)
    assert dear.delay(0.0, 1.0) == pytest.approx(2000 * 60.2 / 6000 - 0.1)
    assert cheap.minute.total == pytest.approx(100.0)


def test_a_refusal_at_full_pace_widens_the_margin_instead_of_doubting_the_limit() -> None:
    pace = RatePace(300, None)
    last = send_all_from(pace, 0.0, 301)[-1]
    for expected in (0.2, 0.4):
        pace.mark(last)
        pace.learn(last, last)
        assert pace.rate == 300
        sent = send_all_from(pace, last, 302)
        assert sent[301] - sent[1] >= 60.0 + expected - 1e-6
        last = sent[-1]


def test_an_unknown_limit_is_what_the_minute_before_the_refusal_held() -> None:
    pace = RatePace(None, None)
    for index in range(240):
        pace.take(index / 8, int(index / 8 * TICKS_PER_S), 1.0)
    pace.mark(30.0)
    pace.learn(66.0, 30.0)
    assert pace.rate == pytest.approx(240 * 0.97)


def test_a_learned_pace_waits_then_tries_more_in_doubling_steps_and_never_passes_the_ceiling() -> None:
    pace = RatePace(200, None)
    for index in range(100):
        pace.take(index / 8, int(index / 8 * TICKS_PER_S), 1.0)
    pace.mark(13.0)
    pace.learn(70.0, 13.0)
    assert pace.rate == pytest.approx(97.0)
    rates, now = [97.0], 70.0
    while pace.learned is not None and now < 600.0:
        now += 1.0
        pace.binding = True
        if pace.grow(now):
            if len(rates) == 1:
                assert now >= 100.0
            assert pace.rate is not None
            rates.append(pace.rate)
    steps = [later / sooner - 1 for sooner, later in pairwise(rates[:-1])]
    assert steps == pytest.approx([0.02, 0.04, 0.08, 0.16, 0.25])
    assert pace.rate == 200


def test_a_learned_pace_that_nobody_needs_does_not_grow() -> None:
    pace = RatePace(None, None)
    pace.take(0.0, 0, 50.0)
    pace.mark(1.0)
    pace.learn(2.0, 1.0)
    learned = pace.rate
    assert not any(pace.grow(float(now)) for now in range(100, 1000))
    assert pace.rate == learned


@settings(max_examples=50)
@given(entries=st.lists(st.tuples(st.floats(0.0, 30.0), st.integers(1, 9)), min_size=1, max_size=60))
def test_the_minute_holds_what_was_added_in_the_last_minute(entries: list[tuple[float, int]]) -> None:
    pace, now, added = RatePace(None, None), 0.0, []
    for gap, amount in entries:
        now += gap
        tick = int(now * TICKS_PER_S)
        pace.take(now, tick, amount)
        added.append((tick, amount))
        assert pace.minute.total == pytest.approx(sum(size for at, size in added if at > tick - 602))
    pace.minute.advance(int(now * TICKS_PER_S) + 602)
    assert pace.minute.total == 0.0


def test_a_correction_of_what_has_left_the_minute_is_ignored() -> None:
    minute = Minute()
    minute.advance(1000)
    minute.correct(200, -50.0)
    assert minute.total == 0.0
