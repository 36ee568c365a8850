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

_GO_DURATION = re.compile(rb"(\d+(?:\.\d+)?)(ms|us|\xc2\xb5s|ns|h|m|s|d)")
_UNITS = {b"d": 86400.0, b"h": 3600.0, b"m": 60.0, b"s": 1.0, b"ms": 1e-3, b"us": 1e-6, b"\xc2\xb5s": 1e-6, b"ns": 1e-9}
_PREFIX = b"x-ratelimit-"
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
    """Read a Go duration or a number as seconds; None where it is neither, negative, or not finite."""
    text = text.strip()
    seconds: float | None = None
    if _GO_DURATION.match(text):
        position, seconds = 0, 0.0
        for part in _GO_DURATION.finditer(text):
            if part.start() != position:
                return None
            seconds += float(part[1]) * _UNITS[part[2]]
            position = part.end()
        if position != len(text):
            return None
    else:
        try:
            seconds = float(text)
        except ValueError:
            return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def parse_retry_after(headers: Headers, now: float) -> float | None:
    """The wait that the server asks for: `retry-after-ms`, else `retry-after` in seconds or as an HTTP date.

    `now` is seconds since the epoch, for the date form (RFC 9110, 10.2.3). Not bounded here.
    """
    millis = headers.get(b"retry-after-ms")
    if millis is not None:
        seconds = parse_seconds(millis)
        if seconds is not None:
            return seconds / 1000
    value = headers.get(b"retry-after")
    if value is None:
        return None
    seconds = parse_seconds(value)
    if seconds is not None:
        return seconds
    try:
        moment = parsedate_to_datetime(value.decode("ascii"))
    except (ValueError, TypeError, OverflowError, UnicodeDecodeError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    wait = (moment - datetime.fromtimestamp(now, UTC)).total_seconds()
    return wait if wait >= 0 else None


def _parse_count(text: bytes) -> int | None:
    try:
        count = int(text)
    except ValueError:
        return None
    return count if 0 <= count < 10**12 else None


def parse_limits(headers: Headers) -> LimitHeaders | None:
    """Read `x-ratelimit-{limit,remaining,reset}-{requests,tokens}` and their relatives; None where there are none."""
    found: dict[str, int | float | None] = {}
    for name, value in headers.items():
        if not name.startswith(_PREFIX):
            continue
        what, _, tail = name[len(_PREFIX) :].partition(b"-")
        axis = _AXES.get(tail)
        if axis is None:
            continue
        if what == b"reset":
            found[f"reset_{axis}"] = parse_seconds(value)
        elif what in {b"limit", b"remaining"}:
            count = _parse_count(value)
            found[f"{what.decode()}_{axis}"] = count if what == b"remaining" or count else None
    if not any(value is not None for value in found.values()):
        return None
    return LimitHeaders(**found)  # type: ignore[arg-type]  # the names are made from the fields' own
