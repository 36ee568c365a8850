from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchchat.format import (
    UNKNOWN,
    about,
    count,
    duration,
    money,
    one_line,
    percent,
    plural,
    rate,
    share,
    short,
    visible,
)


def test_what_is_not_known_is_a_dash_and_never_zero() -> None:
    assert {count(None), short(None), rate(None), duration(None), about(None), money(None, "EUR")} == {UNKNOWN}
    assert {percent(3, None), percent(0, 0)} == {UNKNOWN}
    nan = float("nan")
    assert {short(nan), rate(nan), duration(nan), about(float("inf")), money(nan)} == {UNKNOWN}


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (999, "999"),
        (999.6, "1k"),
        (1000, "1k"),
        (2100, "2.1k"),
        (9960, "10k"),
        (41_234, "41k"),
        (200_000, "200k"),
        (999_499, "999k"),
        (999_500, "1M"),
        (1_234_567, "1.2M"),
        (3.4e9, "3.4B"),
        (5e15, "5000T"),
    ],
)
def test_big_numbers_are_short(number: float, text: str) -> None:
    assert short(number) == text


@pytest.mark.parametrize(
    ("seconds", "measured", "estimated"),
    [
        (-1, "0.0 s", "0 s"),
        (0, "0.0 s", "0 s"),
        (0.0004, "1 ms", "0 s"),
        (0.09, "90 ms", "0 s"),
        (12.34, "12.3 s", "12 s"),
        (59.94, "59.9 s", "1 min 00 s"),
        (59.96, "1 min 00 s", "1 min 00 s"),
        (245, "4 min 05 s", "4 min 05 s"),
        (3599.6, "1 h 00 min", "1 h 00 min"),
        (3780, "1 h 03 min", "1 h 03 min"),
        (86_399, "1 d 00 h", "1 d 00 h"),
        (187_200, "2 d 04 h", "2 d 04 h"),
    ],
)
def test_spans_read_as_people_say_them(seconds: float, measured: str, estimated: str) -> None:
    assert duration(seconds) == measured
    assert about(seconds) == estimated


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (0.0, "0 EUR"),
        (1e-9, "<0.000001 EUR"),
        (0.0000123, "0.000012 EUR"),
        (0.00012, "0.00012 EUR"),
        (0.0123, "0.0123 EUR"),
        (0.5, "0.5000 EUR"),
        (0.9999, "1.00 EUR"),
        (12.345, "12.35 EUR"),
        (1234.5, "1,234.50 EUR"),
    ],
)
def test_small_money_keeps_the_digits_that_mean_something(amount: float, text: str) -> None:
    assert money(amount, "EUR") == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.001, "<0.01"), (0.25, "0.25"), (0.999, "1.0"), (30.24, "30.2"), (99.97, "100"), (1204.4, "1,204")],
)
def test_rates(value: float, text: str) -> None:
    assert rate(value) == text


@given(st.integers(0, 10**7), st.integers(1, 10**7))
def test_only_all_is_a_hundred_percent_and_only_nothing_is_zero(part: int, whole: int) -> None:
    shown = percent(part, whole)
    assert (shown == "100%") == (part >= whole)
    assert (shown == "0%") == (part == 0)


def test_nouns_follow_their_number() -> None:
    assert [plural(1, "row"), plural(2000, "row"), plural(2, "retry", "retries")] == [
        "1 row",
        "2,000 rows",
        "2 retries",
    ]


def test_what_would_act_on_a_terminal_is_shown() -> None:
    assert visible("a\x1b[2Jb\x07\x9b31m\x7f") == r"a\x1b[2Jb\x07\x9b31m\x7f"
    assert visible("\u202egnp.exe\u2066\U000e0041\ufeff\ud800") == r"\u202egnp.exe\u2066\U000e0041\ufeff\ud800"
    assert visible("one\r\ntwo\tthree\rfour") == "one\ntwo\tthree\\x0dfour"


def test_languages_and_emoji_stay_as_they_are() -> None:
    for text in ("👩\u200d🚒 naïve", "نمی\u200cشود", "שלום \u200f!", "日本語"):
        assert visible(text) == text


@given(st.text())
def test_nothing_that_acts_is_left(text: str) -> None:
    shown = visible(text)
    shown.encode()
    kinds = {unicodedata.category(letter) for letter in shown if letter not in "\n\t"}
    assert kinds.isdisjoint({"Cc", "Cs", "Zl", "Zp"})
    assert not set(shown) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@given(st.text(), st.integers(1, 40))
def test_one_line_is_one_line_of_at_most_its_limit(text: str, limit: int) -> None:
    line = one_line(text, limit)
    assert len(line) <= limit
    assert line.splitlines() in ([line], [])


def test_one_line_closes_gaps_and_marks_what_it_leaves_out() -> None:
    assert one_line("  a \n\n b\r\nc ") == "a b c"
    assert one_line("provider answered 503", 10) == "provider…"


@pytest.mark.parametrize(
    ("part", "whole", "shown"),
    [
        (72, 320, "22.5%"),
        (67, 320, "20.9%"),
        (1, 3, "33.3%"),
        (0, 5, "0%"),
        (5, 5, "100%"),
        (1, 9_999, "<0.1%"),
        (1, 0, UNKNOWN),
    ],
)
def test_a_share_is_rounded_to_one_decimal(part: int, whole: int, shown: str) -> None:
    assert share(part, whole) == shown
