"""The limiter in the laboratory: models of servers, and what it must reach there. `python -m tests.limits_lab` prints
all."""

from __future__ import annotations

import random
import re

import pytest

from batchchat.events import Event
from batchchat.limits import Limiter
from batchchat.limits.checks import RefusalCheck
from batchchat.limits.concurrency import Concurrency
from batchchat.limits.controller import Controller
from batchchat.limits.evidence import RefusalEvidence
from batchchat.limits.limiter import held_by
from batchchat.limits.others import OtherRuns
from batchchat.limits.rates import Learned, Rate
from batchchat.limits.trials import Trial, TrialPlan, judge
from tests.limiters import make_limiter
from tests.limits_lab.servers import Server, SlidingWindow, TokenBucket, true_limit_in_refusals, true_limits
from tests.limits_lab.simulation import simulate
from tests.limits_lab.table import Row, rows, worst
from tests.thorough import one_in

ROWS = rows()
HEAVY = ("6000", "with Retry-After", "with a false limit", "concurrency 100", "contradict")
"""Rows with 100 requests a second and more take seconds each; the ways of headers make no difference to noise."""
QUICK = [row for row in ROWS if not any(word in row.name for word in HEAVY)]


def check(row: Row, seeds: range) -> None:
    found = worst(row, seeds)
    assert found.share >= row.share, found
    assert row.waste is None or found.waste <= row.waste + 1e-9, found


@pytest.mark.parametrize("row", one_in(6, QUICK), ids=[row.name for row in QUICK])
def test_a_server_gives_what_it_can(row: Row) -> None:
    check(row, range(1, 2))


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_a_server_gives_what_it_can_with_the_worst_of_five_seeds(row: Row) -> None:
    check(row, range(1, 6))


# -- the decisions, as tables -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "alarms"),
    [
        ("R", False),
        ("RARARARA", False),
        ("AAAAAAAAAAR" * 30, False),
        ("A" * 200 + "RRRRRRRR", True),
        ("A" * 20 + "R" * 12, True),
        (("R" + "A" * 19) * 40, False),
        (("R" + "A" * 4) * 60, False),
    ],
    ids=["one", "every other at the start", "9 %", "all after 200", "all after 20", "5 %", "20 %"],
)
def test_refusals_in_a_row_are_a_limit_and_refusals_now_and_then_are_noise(pattern: str, alarms: bool) -> None:
    assert alarms_at(RefusalEvidence(), pattern) is alarms


def alarms_at(evidence: RefusalEvidence, pattern: str) -> bool:
    found = False
    for answer in pattern:
        evidence.sent += 1
        if answer == "R":
            found = evidence.refused(evidence.sent) or found
    return found


@pytest.mark.parametrize(
    ("refused", "pace", "seen"),
    [
        ([5.0, 9.0], 600.0, False),  # the pace is new, and explains them
        ([50.0], 600.0, False),  # one may be chance
        ([50.0, 50.1, 55.0], 600.0, False),  # one cause
        ([50.0, 90.0], 600.0, True),
        ([50.0, 90.0], None, True),
        ([50.0, 351.0], 600.0, False),
        ([20.0, 40.0], 59.0, False),  # of so few requests a refusal is a large share
        ([20.0, 40.0], 60.0, True),
    ],
)
def test_two_refusals_that_our_pace_does_not_explain_show_other_runs(
    refused: list[float], pace: float | None, seen: bool
) -> None:
    others = OtherRuns()
    others.changed(0.0)
    assert any(others.suspect(now) for now in refused if others.unexplained(now, pace)) is seen


def test_others_are_believed_in_for_some_minutes_after_they_were_seen() -> None:
    others = OtherRuns()
    assert not others.present(0.0)
    others.seen(10.0)
    assert others.present(300.0)
    assert others.suspect(300.0)
    assert not others.present(311.0)


def test_two_runs_come_to_share_a_bucket_that_one_of_them_had_taken() -> None:
    (row,) = [row for row in ROWS if row.name.startswith("2 runs")]
    found = row.run(3, Limiter)
    assert found.share >= row.share, found


def test_refusals_that_come_back_first_are_no_run_if_others_of_the_same_burst_were_accepted() -> None:
    evidence = RefusalEvidence()
    evidence.sent = 40
    assert not any(evidence.refused(number) for number in (3, 11, 8, 27, 19, 33, 38))
    evidence.sent = 60
    assert [evidence.refused(number) for number in range(45, 60)][-1]


def test_what_a_limit_explains_is_not_taken_for_the_usual_share() -> None:
    evidence = RefusalEvidence()
    alarms_at(evidence, "A" * 100)
    before = evidence.share
    assert alarms_at(evidence, "RRR")
    evidence.explained()
    assert evidence.share == pytest.approx(before, rel=0.05)


def test_the_usual_share_is_that_of_the_last_three_hundred_requests() -> None:
    evidence = RefusalEvidence()
    alarms_at(evidence, "RAAAA" * 100)
    assert evidence.share == pytest.approx(0.2, abs=0.02)
    alarms_at(evidence, "A" * 300)
    assert evidence.share < 0.001


def trial(factor: float, refused: int, *, lately: float = 0.0, usual: float = 0.002, remembers: float = 0.0) -> Trial:
    step = factor if factor > 1 else 0.0
    return Trial(factor, 0.0, 100, 13, 6.0, usual, step=step, refused=refused, lately=lately, remembers=remembers)


@pytest.mark.parametrize(
    ("made", "sent", "now", "cautious", "beyond", "verdict"),
    [
        (trial(1.3, 0), 13, 5.0, False, False, "wait"),
        (trial(1.3, 0), 12, 7.0, False, False, "wait"),
        (trial(1.3, 0), 13, 6.0, False, False, "keep"),
        (trial(1.3, 2, lately=0.05), 200, 6.0, False, False, "keep"),
        (trial(1.3, 4, lately=0.2), 20, 2.0, False, False, "back"),
        (trial(1.3, 1, lately=0.02), 5, 9.0, True, False, "back"),
        # A server that counts windows may hide its limit for a minute, unless more was accepted than ever before.
        (trial(1.3, 0, remembers=60.0), 50, 30.0, False, False, "wait"),
        (trial(1.3, 0, remembers=60.0), 50, 30.0, False, True, "bolder"),
        (trial(1.3, 0, remembers=60.0), 50, 60.0, False, False, "keep"),
        (trial(2.0, 0, remembers=60.0), 50, 30.0, False, True, "wait"),
        # A slower pace that ends the refusals was their cause. One that does not was not.
        (trial(0.85, 0, usual=0.03), 12, 7.0, False, False, "wait"),
        (trial(0.85, 4, usual=0.03), 1000, 7.0, False, False, "keep"),
        (trial(0.85, 12, usual=0.03), 1000, 7.0, False, False, "back"),
        (trial(0.68, 20, usual=0.4), 75, 7.0, False, False, "keep"),
        (trial(0.68, 28, usual=0.4), 75, 7.0, False, False, "back"),
    ],
)
def test_a_trial_is_decided_by_its_requests_alone(
    made: Trial, sent: int, now: float, cautious: bool, beyond: bool, verdict: str
) -> None:
    assert judge(made, now, made.first + sent, cautious=cautious, beyond=beyond) == verdict


CHECKED = 100
"""The number of the newest request when a check begins."""


@pytest.mark.parametrize(
    ("sent", "refused", "now", "finding"),
    [
        (3, [], 10.2, "wait"),
        (4, [], 10.0, "wait"),  # a refusal may be on its way
        (4, [], 10.2, "chance"),
        (4, [CHECKED + 1], 10.0, "limit"),
        (4, [CHECKED - 1], 10.2, "chance"),  # sent before
        (3, [], 13.0, "limit"),  # too few were sent to tell
    ],
)
def test_a_refusal_is_chance_if_none_of_the_next_requests_is_refused_at_five_times_the_pace(
    sent: int, refused: list[int], now: float, finding: str
) -> None:
    check = RefusalCheck(90, 0.02, 10.0, CHECKED)
    check.end(10.0, CHECKED + sent)
    for number in refused:
        check.refuse(number)
    check.end(now, CHECKED + sent)
    assert check.finding(now + 0.2 if now > 12.0 else now) == finding


def test_a_check_waits_for_its_refusals_as_long_as_the_first_one_took() -> None:
    check = RefusalCheck(90, 0.5, 10.0, CHECKED)
    assert check.end(10.0, CHECKED + 4)
    assert not check.end(10.1, CHECKED + 5)
    assert check.finding(10.9) == "wait"
    check.refuse(CHECKED + 5)  # sent after it
    assert check.finding(11.0) == "chance"


def test_what_is_found_to_be_chance_ends_the_belief_in_other_runs() -> None:
    others = OtherRuns()
    others.possible(10.0, 100)
    assert others.present(20.0)
    others.by_chance()
    assert not others.present(20.0)
    others.possible(21.0, 200)
    assert others.present(22.0)
    others.by_chance()
    others.by_chance()
    others.possible(23.0, 300)
    assert not others.present(24.0)
    others.limited()
    others.possible(25.0, 300)
    assert others.present(26.0)


def test_a_refusal_is_paid_for_before_the_next_trial_and_noise_pays_for_itself() -> None:
    for pattern, needed in (("A" * 300, 50), ("A" * 19 + "R", 15)):
        evidence = RefusalEvidence()
        alarms_at(evidence, pattern * 15)
        plan = TrialPlan()
        plan.owe()
        paid = 0
        while plan.up(100.0, evidence.sent, evidence.share, 0.0) is None:
            plan.pay(evidence.share)
            paid += 1
        assert paid == pytest.approx(needed, abs=1)


def test_trials_grow_bolder_after_each_that_is_kept_and_smaller_after_each_that_is_refused() -> None:
    plan = TrialPlan()
    first = plan.up(10.0, 0, 0.0, 0.0)
    assert first is not None
    assert first.factor == 1.3
    plan.kept(first, 16.0)
    second = plan.up(16.0, 0, 0.0, 0.0)
    assert second is not None
    assert second.factor == pytest.approx(1.45)
    plan.failed(second, 20.0, usual=0.0)
    assert plan.up(24.9, 0, 0.0, 0.0) is None
    third = plan.up(25.0, 0, 0.0, 0.0)
    assert third is not None
    assert third.factor == pytest.approx(1.225)


def test_a_trial_at_a_server_that_counts_windows_at_most_doubles_a_pace() -> None:
    plan = TrialPlan()
    made = plan.up(10.0, 0, 0.0, 60.0)
    assert made is not None
    for at, factor in ((20.0, 1.885), (30.0, 2.0)):
        plan.bolder(made, at, 50)
        assert made.factor == pytest.approx(factor)
        assert made.first == 50


@pytest.mark.parametrize("share", [0.01, 0.6], ids=["too few to matter", "a limit by its share"])
def test_no_slower_pace_is_tried_if_it_could_tell_nothing(share: float) -> None:
    plan, evidence = TrialPlan(), RefusalEvidence()
    assert plan.down(100.0, evidence, share, 1e6, learned=True) is None
    assert plan.down(100.0, evidence, 0.1, 1e6, learned=True) is not None
    assert plan.down(100.0, evidence, 0.1, 100.0, learned=True) is None
    plan.was_noise(100.0, 0.1)
    assert plan.down(1_000.0, evidence, 0.1, 1e6, learned=True) is None
    assert plan.down(1_000.0, evidence, 0.2, 1e6, learned=True) is not None


@pytest.mark.parametrize(
    ("level", "word"), [(13, "found by refusals"), (14, "found by refusals"), (16, "set by the job")]
)
def test_a_level_that_goes_well_clearly_above_a_refused_one_disproves_a_limit_on_requests_at_once(
    level: int, word: str
) -> None:
    window = Concurrency(32, 32)
    window.found(1.0, 12)
    window.succeeded(2.0, 1.5, level)
    window._set(32.0)
    assert window.word == word


# -- what a person is told --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "learned", "words"),
    [
        (None, Learned(60.0, 0.0, stated=True), "60 requests/min, told by the provider in a refusal 12 s ago"),
        (None, Learned(60.0, 0.0), "60 requests/min, found by refusals 12 s ago"),
        (60.0, None, "60 requests/min, known of the provider"),
    ],
)
def test_it_is_said_which_limit_holds_a_run_whose_word_it_is_and_how_old(
    told: float | None, learned: Learned | None, words: str
) -> None:
    rate = Rate(None, told)
    rate.learned = learned
    rate.apply(0.0)
    controller = Controller(rate, Rate(None, None), Concurrency(8, 8), random.Random(1), lambda *_: None)
    controller.grant(11.9, 100, None)
    assert controller.wait(12.0, 100) > 0.0
    assert held_by(controller, 12.0) == words


@pytest.mark.parametrize(
    ("server", "options", "words"),
    [
        (
            Server(1, requests=SlidingWindow(60), tell=true_limits),
            {},
            r"60 requests/min, told by the provider just now",
        ),
        (
            Server(1, requests=SlidingWindow(600), tell=true_limit_in_refusals),
            {},
            r"780 requests/min, tried instead of 600/min, told by the provider in a refusal \d+ s ago",
        ),
        (Server(1, requests=TokenBucket(300, 10)), {}, r"\d+ requests/min, found by refusals \d+ (s|min) ago"),
        (Server(1), {"requests_per_minute": 60}, r"60 requests/min, set by the job"),
        (Server(1), {"tokens_per_minute": 6_000}, r"6,000 tokens/min, set by the job"),
        (Server(1), {}, r"32 at once, set by the job"),
        (Server(1, concurrency=4), {"concurrency": None}, r"4 at once, found by refusals"),
        (Server(1, broken=lambda now: now > 50), {}, r"a provider that does not answer"),
        (Server(1, noise=lambda now: float(now > 50)), {}, r"a provider that refuses everything"),
    ],
    ids=["told", "told in refusals", "learned", "job", "tokens", "at once", "learned at once", "down", "refuses"],
)
def test_what_holds_a_run_is_said_for_each_kind_of_limit(server: Server, options: dict[str, float], words: str) -> None:
    limiter = make_limiter(**{"concurrency": 32, **options}, rng=random.Random(3))  # type: ignore[arg-type]
    simulate(server, [limiter], 70.0)
    assert re.fullmatch(words, held_by(limiter._controller, 70.0) or "")


def test_a_new_pace_is_told_with_its_source() -> None:
    told: list[Event] = []
    limiter = make_limiter(concurrency=32, rng=random.Random(3), listener=told.append)
    simulate(Server(3, requests=TokenBucket(300, 10)), [limiter], 60.0)
    (first, *_) = [event for event in told if event.name == "pace_learned"]
    assert re.fullmatch(r"going on at \d+ requests a minute, found by refusals just now", first.message)


def test_a_quarter_of_an_hour_under_an_untold_limit_takes_few_lines() -> None:
    told: list[Event] = []
    limiter = make_limiter(concurrency=32, rng=random.Random(3), listener=told.append)
    simulate(Server(3, requests=TokenBucket(300, 10)), [limiter], 900.0)
    paces = [event for event in told if event.name.startswith("pace_")]
    assert 1 <= len(paces) <= 8
