"""The pace of one axis: never more than allowed in any window, close to all of it, and what refusals teach."""

from __future__ import annotations

import random
from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchchat.limits.others import OtherRuns
from batchchat.limits.pacing import Pacing
from batchchat.limits.rates import Learned, Rate
from batchchat.limits.schedule import TICKS_PER_S, Minute
from batchchat.limits.trials import BELOW
from batchchat.records import Axis
from tests.thorough import examples

GAPS = st.lists(st.one_of(st.just(0.0), st.floats(0.0, 0.5), st.floats(0.0, 90.0)), min_size=1, max_size=150)


def send_all(pace: Rate, requests: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Offer (gap, amount) one after the other, each as soon as it may go; return (time, amount) as sent."""
    now, sent = 0.0, []
    for gap, amount in requests:
        now += gap
        while (wait := pace.schedule.delay(now, amount)) > 0:
            now += wait
        pace.schedule.take(now, int(now * TICKS_PER_S), amount)
        sent.append((now, amount))
    return sent


def tell(pace: Rate, now: float, limit: float) -> None:
    """Let the provider tell a limit."""
    pace.told = limit
    pace.apply(now)


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
    sent = send_all(Rate(limit, None), [(gap, 1.0) for gap in gaps])
    assert most_in_a_minute(sent) <= max(1, limit)


@given(
    limit=st.integers(1, 5000),
    requests=st.lists(st.tuples(st.floats(0.0, 20.0), st.integers(1, 3000)), min_size=1, max_size=100),
)
def test_tokens_in_any_minute_stay_under_the_limit_and_an_oversized_request_goes_alone(
    limit: int, requests: list[tuple[float, float]]
) -> None:
    sent = send_all(Rate(limit, None), requests)
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
    pace = Rate(limit, None)
    sent: list[tuple[float, float]] = []
    now = 0.0
    for index, gap in enumerate(gaps):
        now += gap
        if index % 20 == 10:
            tell(pace, now, advertised[index // 20 % len(advertised)])
        while (wait := pace.schedule.delay(now, 1.0)) > 0:
            now += wait
        pace.schedule.take(now, int(now * TICKS_PER_S), 1.0)
        sent.append((now, 1.0))
    assert most_in_a_minute(sent) <= limit


@pytest.mark.parametrize("limit", [10, 300, 6000])
def test_a_busy_minute_uses_nearly_all_of_the_limit_and_starts_without_a_burst(limit: int) -> None:
    sent = send_all(Rate(limit, None), [(0.0, 1.0)] * (limit * 3 + 1))
    assert 60.0 * 3 / sent[-1][0] >= 0.995
    assert sum(at < 1.0 for at, _ in sent) <= max(1, limit / 60 * 1.2)
    # The last of any N+1 is on its way 0.1 s later than a minute after the first: room for an uneven network.
    assert min(later[0] - sooner[0] for sooner, later in zip(sent, sent[limit:], strict=False)) >= 60.1 - 1e-6


def test_a_late_wake_up_is_made_good_but_a_pause_is_not() -> None:
    pace = Rate(6000, None)
    late = send_all(pace, [(0.0, 1.0)] + [(0.0, 1.0)] * 99)
    pause = late[-1][0] + 30.0
    after = send_all_from(pace, pause, 50)
    assert sum(at - pause < 0.005 for at in after) <= 11
    assert after[-1] - pause >= 0.35


def send_all_from(pace: Rate, now: float, count: int) -> list[float]:
    sent = []
    for _ in range(count):
        while (wait := pace.schedule.delay(now, 1.0)) > 0:
            now += wait
        pace.schedule.take(now, int(now * TICKS_PER_S), 1.0)
        sent.append(now)
    return sent


def test_a_limit_told_late_counts_what_went_before() -> None:
    pace = Rate(None, None)
    before = [(index * 0.1, 1.0) for index in range(100)]
    for at, amount in before:
        pace.schedule.take(at, int(at * TICKS_PER_S), amount)
    tell(pace, 10.0, 120)
    after = [(at, 1.0) for at in send_all_from(pace, 10.0, 200)]
    assert most_in_a_minute(before + after) <= 120
    assert after[0][0] >= 49.0


def test_real_usage_moves_the_schedule_both_ways() -> None:
    cheap, dear = Rate(6000, None), Rate(6000, None)
    for pace, real in ((cheap, 100.0), (dear, 2000.0)):
        pace.schedule.take(0.0, 0, 1000.0)
        assert pace.schedule.delay(0.0, 1.0) == pytest.approx(1000 * 60.2 / 6000 - 0.1)
        pace.schedule.settle(0.0, real - 1000.0)
    assert cheap.schedule.delay(0.0, 1.0) == pytest.approx(100 * 60.2 / 6000 - 0.1)
    assert dear.schedule.delay(0.0, 1.0) == pytest.approx(2000 * 60.2 / 6000 - 0.1)
    assert cheap.schedule.minute.total == pytest.approx(100.0)


def send_and_accept(pacing: Pacing, start: float, seconds: float, per_second: float) -> float:
    """Send evenly and let everything be accepted at once; return when it ends."""
    for number in range(int(seconds * per_second)):
        at = start + number / per_second
        pacing.requests.schedule.take(at, int(at * TICKS_PER_S), 1)
        pacing.accepted(at, at, 100)
    return start + seconds


def refuse_all(pacing: Pacing, now: float, until: float) -> float:
    """Refuse everybody from now on, with a probe just before the end."""
    pacing.hold(now)
    pacing.probe_refused(until - 0.1)
    return until


def make_pacing() -> Pacing:
    return Pacing(Rate(None, None), Rate(None, None))


BOTH = [Axis.REQUESTS, Axis.TOKENS]


def test_a_refusal_at_full_pace_widens_the_margin_instead_of_doubting_the_limit() -> None:
    rate = Rate(300, None)
    pacing = Pacing(rate, Rate(None, None))
    now = 0.0
    for number in range(301):
        while (wait := rate.schedule.delay(now, 1.0)) > 0:
            now += wait
        rate.schedule.take(now, int(now * TICKS_PER_S), 1.0)
        pacing.accepted(now, now, 10)
        assert number < 301
    pacing.hold(now)
    assert pacing.learn(now + 0.3, now, [Axis.REQUESTS]) == []
    assert rate.learned is None
    assert rate.schedule.rate == 300


def test_a_full_window_is_learned_from_one_whole_cycle() -> None:
    pacing = make_pacing()
    now = refuse_all(pacing, send_and_accept(pacing, 0.0, 30.0, 8.0), 60.0)
    assert pacing.learn(now, 30.0, BOTH) == [Axis.REQUESTS]  # all rows are alike: one axis says all
    assert pacing.requests.schedule.rate == pytest.approx(BELOW * 240, rel=0.01)


def test_a_bucket_is_learned_from_what_it_gave_while_it_refused() -> None:
    pacing = make_pacing()
    now = send_and_accept(pacing, 0.0, 1.0, 100.0)
    pacing.hold(now)
    pacing.learn(now + 0.3, now, BOTH)
    first = pacing.requests.learned
    assert first is not None
    now = send_and_accept(pacing, now + 0.3, 1.6, 5.0)
    pacing.hold(now)
    pacing.learn(now + 0.4, now, BOTH)
    assert pacing.requests.learned is not None
    assert pacing.requests.learned.limit == pytest.approx(BELOW * 8 / 2.0 * 60, rel=0.01)


def test_too_few_answers_teach_nothing() -> None:
    pacing = make_pacing()
    now = send_and_accept(pacing, 0.0, 1.0, 3.0)
    pacing.hold(now)
    assert pacing.learn(now + 0.3, now, BOTH) == []
    assert not pacing.learned


def learned_at(limit: float) -> Pacing:
    pacing = make_pacing()
    pacing.accepted(0.0, 0.0, 100)
    pacing.requests.learned = Learned(limit, 0.0)
    pacing.requests.apply(0.0)
    return pacing


def step(pacing: Pacing, now: float, *, refused: bool = False) -> None:
    """One request that was sent and answered now, at a pace that binds."""
    pacing.evidence.sent += 1
    if refused:
        pacing.refused(now, now, pacing.evidence.sent)
    else:
        pacing.accepted(now, now, 100)
    pacing.requests.schedule.binding = True
    pacing.review(now)


def test_a_learned_pace_is_raised_by_trials_that_grow_bolder_while_nothing_is_refused() -> None:
    pacing, rates = learned_at(600.0), [600.0]
    for number in range(60_000):
        step(pacing, number / 100)
        assert pacing.requests.learned is not None
        if pacing.requests.learned.limit != rates[-1]:
            rates.append(pacing.requests.learned.limit)
    steps = [later / sooner for sooner, later in pairwise(rates[:6])]
    assert steps[:3] == pytest.approx([1.3, 1.45, 1.5])


def test_after_a_refused_trial_the_pace_stays_near_the_limit_and_little_is_refused() -> None:
    pacing, limit = learned_at(600.0), 620.0
    now, sent, refusals, trials = 0.0, 0, 0, 0
    while now < 600.0:
        pace = pacing.requests.schedule.rate
        assert pace is not None
        now += 60.0 / pace
        before = pacing.experiments.trial
        step(pacing, now, refused=pace > limit)
        sent, refusals = sent + 1, refusals + (pace > limit)
        trials += pacing.experiments.trial is not None and before is None
        assert pacing.requests.learned is not None
        assert 0.8 * limit <= pacing.requests.learned.limit <= 1.05 * limit
    assert trials <= 3  # beside others, who may be there, no trials are made
    assert refusals <= 0.02 * sent


def test_beside_others_a_slow_pace_grows_by_a_larger_share_than_a_fast_one() -> None:
    factors = []
    for pace in (150.0, 600.0, 2_400.0):
        others = OtherRuns()
        others.possible(0.0, 0)
        others.growth(29.0, pace, 150)
        factors.append(others.growth(30.0, pace, 150) - 1)
    assert factors[0] > 1.5 * factors[1] > 2 * factors[2] > 0


def test_beside_others_a_refusal_lowers_the_pace_once_and_what_follows_at_once_does_not() -> None:
    others = OtherRuns()
    others.seen(0.0)
    assert others.refused(100.0, 1_000, 1_000, 300.0, 990.0) == pytest.approx(0.9)
    # It was sent before the pace was lowered.
    assert others.refused(100.5, 1_000, 1_003, 300.0, 990.0) == 1.0
    # While the pace stays, one refusal is chance or another run's doing; two in a row are not.
    assert others.refused(102.0, 1_005, 1_005, 270.0, 994.0) == 1.0
    assert others.refused(102.5, 1_007, 1_007, 270.0, 995.0) < 1.0


def test_beside_others_a_pace_does_not_grow_right_after_it_was_lowered() -> None:
    others = OtherRuns()
    others.seen(0.0)
    others.refused(100.0, 1_000, 1_000, 300.0, 990.0)
    assert others.growth(102.0, 270.0, 1_009) == 1.0
    assert others.growth(104.0, 270.0, 1_019) > 1.0


def test_a_refusal_at_the_pace_from_before_a_trial_ends_the_belief_in_others() -> None:
    others = OtherRuns()
    others.possible(10.0, 500)
    assert others.present(11.0)
    assert others.refused(12.0, 510, 510, 600.0, 480.0) == 1.0
    assert not others.present(12.0)


def test_a_refusal_beside_others_is_taken_if_only_tokens_are_paced_and_nothing_was_sent_lately() -> None:
    pacing = make_pacing()
    pacing.accepted(0.0, 0.0, 5_000)
    pacing.tokens.learned = Learned(20_000.0, 0.0)
    pacing.tokens.apply(0.0)
    pacing._others.seen(0.0)
    pacing.evidence.sent = 200
    assert not pacing.refused(100.0, 100.0, 200)
    assert pacing.tokens.learned.limit == pytest.approx(18_000.0)


def test_a_learned_pace_that_holds_nobody_back_is_forgotten() -> None:
    pacing = learned_at(600.0)
    for number in range(30):
        pacing.accepted(float(number), float(number), 100)
        pacing.review(float(number))
    assert not pacing.learned


def test_noise_at_a_learned_pace_is_no_reason_to_go_ever_slower() -> None:
    rng = random.Random(5)
    pacing = learned_at(600.0)
    lowest = 600.0
    for number in range(20_000):
        step(pacing, number / 10, refused=rng.random() < 0.02)
        if pacing.requests.learned is not None:
            lowest = min(lowest, pacing.requests.learned.limit)
    assert lowest >= 0.85 * 600.0


@examples(50)
@given(entries=st.lists(st.tuples(st.floats(0.0, 30.0), st.integers(1, 9)), min_size=1, max_size=60))
def test_the_minute_holds_what_was_added_in_the_last_minute(entries: list[tuple[float, int]]) -> None:
    pace, now, added = Rate(None, None), 0.0, []
    for gap, amount in entries:
        now += gap
        tick = int(now * TICKS_PER_S)
        pace.schedule.take(now, tick, amount)
        added.append((tick, amount))
        assert pace.schedule.minute.total == pytest.approx(sum(size for at, size in added if at > tick - 602))
    pace.schedule.minute.advance(int(now * TICKS_PER_S) + 602)
    assert pace.schedule.minute.total == 0.0


def test_a_correction_of_what_has_left_the_minute_is_ignored() -> None:
    minute = Minute()
    minute.advance(1000)
    minute.correct(200, -50.0)
    assert minute.total == 0.0
