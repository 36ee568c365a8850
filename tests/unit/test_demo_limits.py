"""The demo provider's limits, choices and counting: what holds for all inputs."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchchat.demo.draws import FaultPlan, draw, pick
from batchchat.demo.limits import RateGate, Window, format_duration
from batchchat.demo.server_options import FAULTS, DemoOptions
from batchchat.demo.tokens import count_tokens, cut_to_tokens
from batchchat.records import Axis


@given(
    limit=st.integers(1, 20),
    arrivals=st.lists(st.tuples(st.integers(0, 30), st.integers(1, 25)), max_size=60),
)
def test_no_window_ever_holds_more_than_its_limit(limit: int, arrivals: list[tuple[int, int]]) -> None:
    window = Window(limit, 60.0)
    admitted: list[tuple[float, int]] = []
    now = 0.0
    for pause, units in arrivals:
        now += pause
        wait = window.wait(units, now)
        if wait == 0:
            window.add(units, now)
            admitted.append((now, units))
        assert (wait == math.inf) is (units > limit)
        assert sum(size for at, size in admitted if now - 60 < at <= now) == window.used <= limit


@given(
    limit=st.integers(1, 20),
    arrivals=st.lists(st.tuples(st.integers(0, 30), st.integers(1, 20)), max_size=40),
)
def test_the_wait_is_exact(limit: int, arrivals: list[tuple[int, int]]) -> None:
    window = Window(limit, 60.0)
    now = 0.0
    for pause, units in arrivals:
        now += pause
        wait = window.wait(units, now)
        if math.isinf(wait):
            continue
        if wait > 0:
            assert window.wait(units, now + wait - 0.5) > 0
            now += wait
            assert window.wait(units, now) == 0
        window.add(units, now)


def test_a_gate_names_the_axis_and_charges_nothing_for_a_refusal() -> None:
    gate = RateGate(DemoOptions(requests_per_minute=2, tokens_per_minute=100, concurrency=1))
    assert gate.admit(60, 0.0) is None
    assert gate.admit(60, 1.0) == (Axis.TOKENS, 59.0)
    assert gate.admit(10, 1.0) == (Axis.CONCURRENCY, 0.0)
    gate.leave()
    assert gate.admit(10, 1.0) is None
    assert gate.admit(10, 2.0) == (Axis.REQUESTS, 58.0)
    headers = dict(gate.headers(2.0))
    assert headers[b"x-ratelimit-remaining-requests"] == b"0"
    assert headers[b"x-ratelimit-remaining-tokens"] == b"30"
    assert headers[b"x-ratelimit-reset-tokens"] == b"58s"
    gate.leave()
    assert gate.admit(101, 70.0) == (Axis.TOKENS, math.inf)
    assert (gate.in_flight, gate.max_in_flight) == (0, 1)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (0.25, "250ms"), (0.0001, "1ms"), (1, "1s"), (1.5, "1.5s"), (59.9999, "1m0s"), (90.25, "1m30.25s")],
)
def test_durations_are_written_as_providers_do(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@given(st.text(), st.integers(0, 40))
def test_cutting_keeps_a_start_of_the_text_within_the_limit(text: str, limit: int) -> None:
    cut = cut_to_tokens(text, limit)
    assert text.startswith(cut)
    assert count_tokens(cut) <= limit
    if cut != text:
        assert count_tokens(text[: len(cut) + 1]) > limit


@given(st.text(), st.text())
def test_more_text_never_has_fewer_tokens(text: str, more: str) -> None:
    assert count_tokens(text) <= count_tokens(text + more) <= count_tokens(text) + count_tokens(more)


def test_tokens_are_four_characters_or_three_bytes() -> None:
    assert [count_tokens(text) for text in ("", "a", "four", "fives", "日本", "é")] == [0, 1, 1, 2, 2, 1]


def test_draws_repeat_spread_and_depend_on_everything() -> None:
    draws = [draw(7, "about", n) for n in range(2000)]
    assert draws == [draw(7, "about", n) for n in range(2000)]
    assert all(0 <= value < 1 for value in draws)
    assert 0.47 < sum(draws) / len(draws) < 0.53
    assert len({draw(1, "a", b"b"), draw(2, "a", b"b"), draw(1, "ab", b""), draw(1, "a", "b", 0)}) == 4
    assert {pick("xyz", 0, n) for n in range(50)} == {"x", "y", "z"}


def test_faults_befall_as_often_as_asked() -> None:
    plan = FaultPlan(DemoOptions(faults={"error_500": 0.2, "drop": 0.3}))
    fates = [plan.befalls(b"%d" % n, 1, n) for n in range(4000)]
    assert 0.17 < fates.count("error_500") / 4000 < 0.23
    assert 0.27 < fates.count("drop") / 4000 < 0.33


@pytest.mark.parametrize("name", [name for name in FAULTS if not name.endswith("_after")])
def test_every_fault_can_be_certain(name: str) -> None:
    assert FaultPlan(DemoOptions(faults={name: 1.0})).befalls(b"any", 3, 9) == name


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"faults": {"eror_500": 0.1}}, "unknown fault 'eror_500'; did you mean 'error_500'"),
        ({"faults": {"drop": 1.5}}, "probability from 0 to 1"),
        ({"faults": {"drop": 0.6, "error_500": 0.6}}, "add up to 1.2"),
        ({"faults": {"revoke_after": 1.5}}, "whole number"),
        ({"concurrency": 0}, "concurrency must be at least 1"),
        ({"latency_s": -1}, "latency_s"),
        ({"latency_s": math.nan}, "latency_s"),
        ({"window_s": 0}, "window_s must be more than 0"),
        ({"outage": (-1, 2)}, "outage"),
        ({"unknown_model_status": 500}, "404 or 422"),
        ({"models": ()}, "at least one model"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DemoOptions(**options)  # type: ignore[arg-type]  # wrong on purpose
