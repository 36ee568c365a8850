"""Rate-limit and retry headers of many vendors become numbers, and garbage becomes nothing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchchat.client.headers import parse_limits, parse_retry_after, parse_seconds
from batchchat.records import LimitHeaders

NOW = 1_790_000_000.0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (b"1s", 1.0),
        (b"6m0s", 360.0),
        (b"120ms", 0.12),
        (b"38.879s", 38.879),
        (b"2m59.56s", 179.56),
        (b"1h2m3s", 3723.0),
        (b"1d", 86400.0),
        (b"7us", 7e-6),
        ("7µs".encode(), 7e-6),
        (b"250ms", 0.25),
        (b"59", 59.0),
        (b" 12 ", 12.0),
        (b"0", 0.0),
        (b"0.5", 0.5),
        (b"1e2", 100.0),
    ],
)
def test_a_duration_in_a_vendors_form_is_read_as_seconds(text: bytes, seconds: float) -> None:
    assert parse_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    [b"", b"-1", b"-1s", b"nan", b"inf", b"1e999", b"9" * 400, b"soon", b"1x", b"1s!", b"s", b"1_0", b"1m-2s", b"\xff"],
)
def test_what_is_no_duration_counts_as_absent(text: bytes) -> None:
    assert parse_seconds(text) is None


@given(st.integers(0, 10_000), st.integers(0, 59), st.integers(0, 59), st.integers(0, 999))
def test_a_go_duration_is_read_back(hours: int, minutes: int, seconds: int, millis: int) -> None:
    text = f"{hours}h{minutes}m{seconds}s{millis}ms".encode()
    assert parse_seconds(text) == pytest.approx(hours * 3600 + minutes * 60 + seconds + millis / 1000)


@given(st.binary(max_size=40))
def test_any_bytes_are_a_sensible_duration_or_none(text: bytes) -> None:
    seconds = parse_seconds(text)
    assert seconds is None or 0.0 <= seconds < float("inf")


def _http_date(delta_s: float) -> bytes:
    return format_datetime(datetime.fromtimestamp(NOW, UTC) + timedelta(seconds=delta_s), usegmt=True).encode()


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({b"retry-after": b"3"}, 3.0),
        ({b"retry-after": b"0.25"}, 0.25),
        ({b"retry-after": b"31536000"}, 31_536_000.0),
        ({b"retry-after-ms": b"1500"}, 1.5),
        ({b"retry-after-ms": b"1500", b"retry-after": b"9"}, 1.5),
        ({b"retry-after-ms": b"soon", b"retry-after": b"9"}, 9.0),
        ({b"retry-after": _http_date(90)}, 90.0),
        ({b"retry-after": _http_date(-90)}, None),
        ({b"retry-after": b"-5"}, None),
        ({b"retry-after": b"later"}, None),
        ({b"retry-after": b""}, None),
        ({b"retry-after": b","}, None),
        ({b"retry-after": b"Mon, 99 Foo 99999 99:99:99 +99999"}, None),
        ({}, None),
    ],
)
def test_the_wait_that_a_server_asks_for(headers: dict[bytes, bytes], wait: float | None) -> None:
    assert parse_retry_after(headers, NOW) == pytest.approx(wait)


@given(st.binary(max_size=40), st.floats(0, 4e9))
def test_any_retry_after_is_a_wait_or_none(value: bytes, now: float) -> None:
    wait = parse_retry_after({b"retry-after": value, b"retry-after-ms": value}, now)
    assert wait is None or wait >= 0


@given(st.integers(1, 10**7))
def test_an_http_date_in_the_future_is_the_time_until_then(ahead_s: int) -> None:
    assert parse_retry_after({b"retry-after": _http_date(ahead_s)}, NOW) == pytest.approx(ahead_s)


@pytest.mark.parametrize(
    ("headers", "limits"),
    [
        pytest.param(
            {
                b"x-ratelimit-limit-requests": b"60",
                b"x-ratelimit-remaining-requests": b"59",
                b"x-ratelimit-reset-requests": b"1s",
                b"x-ratelimit-limit-tokens": b"150000",
                b"x-ratelimit-remaining-tokens": b"149984",
                b"x-ratelimit-reset-tokens": b"6ms",
            },
            LimitHeaders(60, 59, 1.0, 150_000, 149_984, 0.006),
            id="OpenAI",
        ),
        pytest.param(
            {b"x-ratelimit-limit-requests": b"300", b"x-ratelimit-reset-requests": b"250ms"},
            LimitHeaders(limit_requests=300, reset_requests=0.25),
            id="Scaleway",
        ),
        pytest.param(
            {b"x-ratelimit-remaining-requests": b"9", b"x-ratelimit-reset-requests": b"10"},
            LimitHeaders(remaining_requests=9, reset_requests=10.0),
            id="Azure",
        ),
        pytest.param(
            {b"x-ratelimit-limit-req-minute": b"60", b"x-ratelimit-remaining-tokens-minute": b"500000"},
            LimitHeaders(limit_requests=60, remaining_tokens=500_000),
            id="Mistral",
        ),
        pytest.param(
            {b"x-ratelimit-limit-requests-day": b"14400", b"x-ratelimit-limit-tokens-minute": b"60000"},
            LimitHeaders(limit_tokens=60_000),
            id="Cerebras: a limit per day is none per minute",
        ),
        pytest.param(
            {
                b"x-ratelimit-limit-requests": b"14400",
                b"x-ratelimit-remaining-requests": b"14370",
                b"x-ratelimit-reset-requests": b"2m59.56s",
                b"x-ratelimit-limit-tokens": b"18000",
                b"x-ratelimit-reset-tokens": b"7.66s",
            },
            LimitHeaders(None, 14_370, 179.56, 18_000, None, 7.66),
            id="Groq: requests are counted by the day",
        ),
        pytest.param({b"x-ratelimit-remaining-tokens": b"0"}, LimitHeaders(remaining_tokens=0), id="used up"),
    ],
)
def test_a_vendors_limit_headers_are_read(headers: dict[bytes, bytes], limits: LimitHeaders) -> None:
    assert parse_limits(headers) == limits


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {b"content-type": b"application/json"},
        {b"x-ratelimit-limit": b"10", b"x-tokenlimit-limit": b"20"},
        {b"x-ratelimit-limit-requests": b"0"},
        {b"x-ratelimit-limit-requests": b"-3"},
        {b"x-ratelimit-limit-requests": b"many"},
        {b"x-ratelimit-limit-requests": b"1_000"},
        {b"x-ratelimit-remaining-tokens": b"1.5"},
        {b"x-ratelimit-remaining-tokens": b"9" * 5000},
        {b"x-ratelimit-reset-tokens": b"-1s"},
        {b"x-ratelimit-reset-tokens": b"31536000"},
        {b"x-ratelimit-reset-tokens": b"1790000000"},
        {b"x-ratelimit-": b"1", b"x-ratelimit-limit-": b"1", b"x-ratelimit-limit-cows": b"1"},
    ],
)
def test_headers_that_tell_nothing_believable_are_no_headers(headers: dict[bytes, bytes]) -> None:
    assert parse_limits(headers) is None


_NAMES = st.sampled_from(
    [
        f"x-ratelimit-{what}-{axis}".encode()
        for what in ("limit", "remaining", "reset")
        for axis in ("requests", "tokens")
    ]
)


@given(st.dictionaries(_NAMES, st.binary(max_size=30) | st.integers(-9, 10**14).map(lambda n: str(n).encode())))
def test_any_limit_headers_are_bounded_numbers_or_none(headers: dict[bytes, bytes]) -> None:
    limits = parse_limits(headers)
    if limits is not None:
        for value in (limits.limit_requests, limits.limit_tokens):
            assert value is None or 0 < value < 10**12
        for reset in (limits.reset_requests, limits.reset_tokens):
            assert reset is None or 0 <= reset <= 86_400
