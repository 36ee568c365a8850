"""Refusals that name a day: the allowance of a whole day is used up, and no wait of minutes helps.

Providers say it in many ways: in words ("requests per day", RPD), in the name of a quota, as a wait of hours. A message
may also name a day beside the limit that it is about. So what it names first counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Final

from batchchat.client.headers import Headers, parse_seconds
from batchchat.records import DayLimit, LimitHeaders

_LONG_S: Final = 3600.0
"""From this wait on a refusal is about a day, whatever it says: no limit per minute makes anyone wait for an hour."""
_LONGEST_S: Final = 32 * 86400.0
"""Waits beyond the longest month are no waits: some servers put a date there, as seconds since 1970."""

_UNIT: Final = r"(?:requests?|tokens?|calls?|queries|messages|images|neurons|completions|generations|usage|limit|quota)"
_DAY: Final = re.compile(
    rf"(?<![a-z])per[ _-]?day(?![a-z])|\b{_UNIT}(?:/| a | each )day\b|\bper ?86,?400 ?s|per 24 ?h(?:ours)?\b|"
    r"\b(?:rpd|tpd)\b|\bdaily (?:\w+ ){0,3}(?:limit|quota|allocation|allowance|cap)s?\b|"
    r"\blimit (?:for|of) (?:the |this |to)day\b|\btoday's limit\b|(?<=by)day\b"
)
_SHORTER: Final = re.compile(
    r"(?<![a-z])per[ _-]?(?:min(?:ute)?|sec(?:ond)?|hour)(?![a-z])|\b(?:rpm|tpm|rps)\b|"
    rf"\b{_UNIT}(?:/| a | each )(?:min(?:ute)?|sec(?:ond)?|hour)\b|concurren"
)
_QUOTA_ID: Final = re.compile(r'quota_?id"\s*:\s*"[^"]{0,120}perday', re.IGNORECASE)
"""How Google names a quota in the details of an error."""
_CODE: Final = re.compile(r'"(?:code|type|status|reason)"\s*:\s*"([^"]{1,100})"')
_NUMBER_AND_UNIT: Final = r"\d+(?:\.\d+)?\s?(?:ms|m(?:in(?:ute)?s?)?|s(?:ec(?:ond)?s?)?|h(?:(?:ou)?rs?)?|d(?:ays?)?)"
_WAIT: Final = re.compile(
    rf"(?:try again|retry|retrying|wait|resets?|available)\W{{1,4}}(?:again |please )?(?:in|after|for|delay)?\W{{0,4}}"
    rf"((?:{_NUMBER_AND_UNIT}[\s,]{{0,2}})+)",
    re.IGNORECASE,
)
_RETRY_DELAY: Final = re.compile(r'"retry_?delay"\s*:\s*"(\d+(?:\.\d+)?s)"', re.IGNORECASE)
_PIECE: Final = re.compile(r"(\d+(?:\.\d+)?)\s?(ms|[a-z])", re.IGNORECASE)
_SECONDS: Final = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_GOOGLE_DAY: Final = "America/Los_Angeles"
"""Google's quotas of a day begin anew at midnight there."""


def read_day_limit(
    message: str,
    body: str,
    headers: Headers,
    *,
    retry_after: float | None,
    limits: LimitHeaders | None,
    now: float,
) -> DayLimit | None:
    """Return the limit of a day that a refusal is about; None if it is about another one.

    Arguments:
        message: what the refusal says to a person.
        body: the text of the whole answer, whose codes may name the quota.
        headers: the header fields of the answer.
        retry_after: the wait in seconds that its header asks for.
        limits: its rate-limit headers.
        now: seconds since the epoch.
    """
    waits = [wait for wait in _waits(f"{message} {body}", headers, retry_after, limits, now) if 0 < wait <= _LONGEST_S]
    longest = max(waits, default=None)
    by_google = _QUOTA_ID.search(body) is not None
    if by_google:
        # The wait that comes with it is that of a shorter limit.
        return DayLimit(_next_day(now, _GOOGLE_DAY))
    # The wait decides before the words: a text may name a limit per minute and a limit per day.
    if longest is not None and longest >= _LONG_S:
        return DayLimit(now + longest)
    codes = " ".join(found[1] for found in _CODE.finditer(body))
    if not _names_a_day(f"{message} {codes}".lower()):
        return None
    return DayLimit(None if longest is None else now + longest)


def _names_a_day(text: str) -> bool:
    """Return true if a limit of a day is the first limit that a text names."""
    day, shorter = _DAY.search(text), _SHORTER.search(text)
    return day is not None and (shorter is None or day.start() < shorter.start())


def _waits(
    text: str, headers: Headers, retry_after: float | None, limits: LimitHeaders | None, now: float
) -> Iterator[float]:
    """Yield every wait that a refusal tells, in seconds, unchecked."""
    if retry_after is not None:
        yield retry_after
    for found in _WAIT.finditer(text):
        yield sum(float(number) * _SECONDS[unit.lower()] for number, unit in _PIECE.findall(found[1]))
    for found in _RETRY_DELAY.finditer(text):
        yield parse_seconds(found[1].encode()) or 0.0
    if limits is not None:
        # The allowance of the axis that is used up: its reset is when it is full again.
        if limits.remaining_requests == 0 and limits.reset_requests is not None:
            yield limits.reset_requests
        if limits.remaining_tokens == 0 and limits.reset_tokens is not None:
            yield limits.reset_tokens
    moment = parse_seconds(headers.get(b"x-ratelimit-reset", b""))
    if moment is not None:
        # OpenRouter and GitHub give the moment itself, in milliseconds or seconds since 1970.
        yield (moment / 1000 if moment > 1e11 else moment) - now


def _next_day(now: float, zone: str) -> float | None:
    """Return the next midnight in a zone, in seconds since the epoch; None if this machine knows no zones."""
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

    try:
        there = datetime.fromtimestamp(now, UTC).astimezone(ZoneInfo(zone))
    except (ZoneInfoNotFoundError, OSError):
        return None
    day = (there + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
    return day.timestamp()
