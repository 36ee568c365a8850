"""Rate-limit and retry headers, read into numbers and seconds.

Names and forms differ by provider: OpenAI's resets are Go durations (`6m0s`, `120ms`), Azure's integer seconds,
Scaleway's `250ms`; Mistral and Cerebras put the window into the name; Groq's requests axis counts a day. What cannot be
read, or is no sensible number, counts as absent: headers help, they are never needed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from batchchat.records import LimitHeaders

_RESET_MAX_S = 86400.0
_WINDOW_S = 61.0
"""The longest reset of a limit per minute: a minute, and a second for rounding."""
_GO_DURATION = re.compile(rb"(\d+(?:\.\d+)?)(ms|us|\xc2\xb5s|ns|h|m|s|d)")
_NUMBER = re.compile(rb"\+?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,4})?")
_UNITS = {b"d": 86400.0, b"h": 3600.0, b"m": 60.0, b"s": 1.0, b"ms": 1e-3, b"us": 1e-6, b"\xc2\xb5s": 1e-6, b"ns": 1e-9}
_PREFIX = b"x-ratelimit-"
_PREFIX_LENGTH = len(_PREFIX)
_AXES = {
    b"requests": "requests",
    b"requests-minute": "requests",
    b"req-minute": "requests",
    b"tokens": "tokens",
    b"tokens-minute": "tokens",
    b"tokens-query": None,
}

Headers = Mapping[bytes, bytes]
"""Header fields with lower-case names; of a repeated field the last value."""


def parse_seconds(text: bytes) -> float | None:
    """Read a Go duration or a number as seconds; None if it is neither, negative, or not finite."""
    text = text.strip()
    # No unit: plain seconds, as Azure and most others have them.
    if not _GO_DURATION.match(text):
        return _parse_number(text)
    position, seconds = 0, 0.0
    for part in _GO_DURATION.finditer(text):
        # Something else stands between the parts: half a duration would be a wrong one.
        if part.start() != position:
            return None
        seconds += float(part[1]) * _UNITS[part[2]]
        position = part.end()
    return seconds if position == len(text) and math.isfinite(seconds) else None


def _parse_number(text: bytes) -> float | None:
    """Return a plain number, finite and not negative; Python's own spellings (`1_0`, `nan`) are none."""
    if not _NUMBER.fullmatch(text.strip()):
        return None
    number = float(text)
    return number if math.isfinite(number) else None


def parse_retry_after(headers: Headers, now: float) -> float | None:
    """Return the wait that the server asks for: `retry-after-ms`, else `retry-after` in seconds or as an HTTP date.

    `now` is seconds since the epoch, for the date form (RFC 9110, 10.2.3). Not bounded here.
    """
    # Azure and OpenAI send it beside `retry-after`, and it is the more exact of the two.
    millis = headers.get(b"retry-after-ms")
    if millis is not None:
        number = _parse_number(millis)
        if number is not None:
            return number / 1000
    value = headers.get(b"retry-after")
    if value is None:
        return None
    seconds = parse_seconds(value)
    if seconds is not None:
        return seconds
    try:
        moment = parsedate_to_datetime(value.decode("ascii"))
        # RFC 9110 has no other zone than GMT; some servers leave it out.
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        wait = (moment - datetime.fromtimestamp(now, UTC)).total_seconds()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return wait if wait >= 0 else None


def _parse_count(text: bytes) -> int | None:
    number = _parse_number(text)
    return int(number) if number is not None and number.is_integer() and number < 10**12 else None


def parse_limits(headers: Headers) -> LimitHeaders | None:
    """Read `x-ratelimit-{limit,remaining,reset}-{requests,tokens}` and their relatives; None if there are none.

    A reset of more than a minute cannot belong to a limit per minute (Groq counts requests by the day), so the limit
    beside it is dropped; one of more than a day is a date or garbage, and is dropped itself.
    """
    # One search through all names: quicker than a look at each, and many servers send none of these.
    if _PREFIX not in b"".join(headers):
        return None
    names = [name for name in headers if name[:_PREFIX_LENGTH] == _PREFIX]
    if not names:
        return None
    found: dict[str, int | float | None] = {}
    for name in names:
        value = headers[name]
        what, _, tail = name[_PREFIX_LENGTH:].partition(b"-")
        axis = _AXES.get(tail)
        # An axis that no limit here has, such as `x-ratelimit-limit-images`.
        if axis is None:
            continue
        if what == b"reset":
            seconds = parse_seconds(value)
            found[f"reset_{axis}"] = seconds if seconds is not None and seconds <= _RESET_MAX_S else None
        elif what in {b"limit", b"remaining"}:
            count = _parse_count(value)
            # A limit of 0 is what servers write for none; 0 remaining is a fact.
            found[f"{what.decode()}_{axis}"] = count if what == b"remaining" or count else None
    for axis in ("requests", "tokens"):
        if (found.get(f"reset_{axis}") or 0.0) > _WINDOW_S:
            found[f"limit_{axis}"] = None
    if not any(value is not None for value in found.values()):
        return None
    return LimitHeaders(**found)  # type: ignore[arg-type]  # the names are made from the fields' own
