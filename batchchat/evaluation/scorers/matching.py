"""When two values count as the same: as text, as numbers, as JSON."""

from __future__ import annotations

import decimal
import functools
import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any, Literal

import orjson
import regex

Difference = Literal["case", "space", "punctuation", "unicode"]
DIFFERENCES: tuple[Difference, ...] = ("case", "space", "punctuation", "unicode")

# Dashes, underscores and slashes part words, other punctuation vanishes. What makes a number another number stays: a
# mark between digits, and a minus sign before a digit that does not follow a word.
_JOINING = regex.compile(r"(?<=[\w\s])[\p{Pd}\p{Pc}/](?=\w)(?<!\s[\p{Pd}](?=\d))")
_PUNCTUATION = regex.compile(r"(?!(?<=\d)[.,:](?=\d))(?!(?<!\w)\p{Pd}(?=\d))\p{P}")
_PLAIN_NUMBER = regex.compile(r"-?(?:0|[1-9][0-9]{0,300})(?:\.[0-9]{1,300})?")
_SPACE = regex.compile(r"\s+")
_CONTEXT = decimal.Context(prec=60, Emax=9_999, Emin=-9_999, traps=[])


def text_of(value: Any) -> str:
    """Return a value as text: a text as it is, everything else as JSON writes it (`true`, `3`, `["a"]`).

    A whole float is written as an integer: a column of integers with missing values is often read as floats. So is a
    whole decimal. A date or time is written in ISO 8601, bytes as the text that they are.
    """
    if isinstance(value, str):
        return value
    if type(value) is float and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    elif isinstance(value, Decimal):
        return f"{value.to_integral_value() if value == value.to_integral_value() else value:f}"
    elif isinstance(value, date | time):
        return value.isoformat()
    elif isinstance(value, bytes):
        return value.decode(errors="replace")
    return quoted(value)


def quoted(value: Any) -> str:
    """Return a value as JSON."""
    try:
        return orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
    except TypeError:
        # Integers beyond 64 bits.
        return json.dumps(value, default=str, ensure_ascii=False, separators=(",", ":"))


def shown(value: Any) -> str:
    """Return a value as a reason quotes it: JSON, cut after 80 characters."""
    text = quoted(value)
    return text if len(text) <= 80 else text[:79] + "…"


@functools.lru_cache(maxsize=4_096)
def _normalized(text: str, ignore: frozenset[Difference]) -> str:
    if "unicode" in ignore:
        text = unicodedata.normalize("NFKC", text)
    if "case" in ignore:
        text = text.casefold()
        # Folding the case may undo the normal form.
        text = unicodedata.normalize("NFKC", text) if "unicode" in ignore else text
    if "punctuation" in ignore:
        bare = _PUNCTUATION.sub("", _JOINING.sub(" ", text))
        # A text of nothing but punctuation is compared by it. What is left may have come together to something new.
        if bare.strip() and bare != text:
            return _normalized.__wrapped__(bare, ignore)
    return _SPACE.sub(" ", text).strip() if "space" in ignore else text


def normalize(text: str, ignore: frozenset[Difference] = frozenset(DIFFERENCES)) -> str:
    """Return the text without the differences to ignore.

    Case is folded (`Straße` is `STRASSE`), runs of white space are one space and none at the ends, Unicode is NFKC.
    Punctuation is removed, or a space where it joins words (`feature_request`, `e-mail`). In `3.5` and `-5` it stays.
    """
    # Long texts are rarely met twice, and would fill the memory.
    return _normalized(text, ignore) if len(text) <= 200 else _normalized.__wrapped__(text, ignore)


def same(a: Any, b: Any) -> bool:
    """Return whether two values are equal; the rest than what follows compares as JSON does.

    Two texts must be the same to the letter. A number equals a text that is this number in plain digits (`1`, `1.0`,
    `-0.5`). A boolean equals the texts `true` and `false`, in any case. A date or time equals a text that is the same
    moment in ISO 8601. Else the other value is compared as JSON text.
    """
    if isinstance(a, str) and isinstance(b, str):
        return a == b
    if isinstance(a, str) or isinstance(b, str):
        text, value = (a, b) if isinstance(a, str) else (b, a)
        if isinstance(value, bool):
            return bool(text.lower() == text_of(value))
        number = number_of(value)
        if number is not None and _PLAIN_NUMBER.fullmatch(text):
            return Decimal(text) == number
        return bool(text == text_of(value)) or _same_time(text, value)
    return json_difference(a, b) is None


def _same_time(text: str, value: Any) -> bool:
    """Return whether a text is a date or time in ISO 8601, and the same as the value. One without a zone is in UTC."""
    if not isinstance(value, date | time):
        return False
    try:
        if isinstance(value, time):
            return time.fromisoformat(text.strip()) == value
        found = _in_utc(datetime.fromisoformat(text.strip()))
    except ValueError:
        return False
    return found == _in_utc(
        value if isinstance(value, datetime) else datetime(value.year, value.month, value.day, tzinfo=UTC)
    )


def _in_utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


def read_json(text: str) -> Any:
    """Return the value of a JSON text, with or without a code fence around it. Raises ValueError if it is none."""
    bare = text.strip()
    if bare.startswith("```") and bare.endswith("```") and "\n" in bare:
        bare = bare[bare.index("\n") : -3].lstrip()
    # Words are met far more often than JSON that is nearly right, and the parser's error is costly to make.
    if not bare or bare[0] not in '{["-0123456789tfn':
        raise ValueError("not JSON")
    return orjson.loads(bare)


def json_difference(found: Any, wanted: Any, place: str = "$", *, ignore_order: bool = False) -> str | None:
    """Return in words where two JSON values first differ, None if they do not.

    Arguments:
        found, wanted: the values. A key whose value is null counts as absent.
        place: their path, for the words.
        ignore_order: whether arrays with the same items are equal in any order.
    """
    if isinstance(found, Mapping) and isinstance(wanted, Mapping):
        keys = sorted({*found, *wanted}, key=str)
        pairs = [(f"{place}.{key}", found.get(key), wanted.get(key)) for key in keys]
    elif isinstance(found, list) and isinstance(wanted, list):
        if len(found) != len(wanted):
            return f"{place}: {len(found)} items instead of {len(wanted)}"
        if ignore_order:
            left, right = (Counter(_canonical(item) for item in items) for items in (found, wanted))
            missing = next(iter(right - left), None)
            return None if missing is None else f"{place}: {missing[:80]} is missing"
        pairs = [(f"{place}.{at}", *pair) for at, pair in enumerate(zip(found, wanted, strict=True))]
    else:
        a, b = number_of(found), number_of(wanted)
        equal = a == b if a is not None and b is not None else type(found) is type(wanted) and found == wanted
        # JSON has no dates and no bytes: a column of the input may, and an answer has them as texts.
        if not equal and isinstance(found, str) and isinstance(wanted, date | time | bytes):
            equal = same(found, wanted)
        texts = ["nothing" if value is None else shown(value) for value in (found, wanted)]
        return None if equal else f"{place}: {texts[0]} instead of {texts[1]}"
    return next(filter(None, (json_difference(x, y, at, ignore_order=ignore_order) for at, x, y in pairs)), None)


def _canonical(value: Any) -> str:
    """One text for each JSON value, the same for values that count as equal when no order does."""
    if isinstance(value, Mapping):
        items = sorted((str(key), _canonical(item)) for key, item in value.items() if item is not None)
        return "{" + ", ".join(f"{quoted(key)}: {item}" for key, item in items) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(sorted(_canonical(item) for item in value)) + "]"
    number = number_of(value)
    return quoted(value) if number is None else f"{number.normalize(_CONTEXT):f}"


def number_of(value: Any) -> Decimal | None:
    """Return a typed number as an exact decimal; None for everything else, and for what is not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return None
    number = Decimal(repr(value)) if isinstance(value, float) else Decimal(value)
    return number if number.is_finite() else None


_LATEX_MARK = regex.compile(r"(?<=\d)\{([.,])\}(?=\d)")
Mark = Literal[".", ","]


@functools.cache
def _number_pattern(mark: Mark) -> regex.Pattern[str]:
    group = r"['\u2019\u00a0\u202f\u2009" + ("," if mark == "." else ".") + "]"
    point = regex.escape(mark)
    grouped = rf"\d{{1,3}}(?:{group}\d{{3}})+(?!\d)"
    return regex.compile(
        rf"(?<![\w{mark}])(?<sign>[-+\u2212\u2013](?=[\d.,]))?"
        rf"(?:(?<whole>{grouped}|\d+)(?:{point}(?<part>\d+))?|{point}(?<bare>\d+))"
        r"(?:[eE](?<power>[-+]?\d{1,3})(?!\d))?"
    )


def numbers_in(text: str, mark: Mark = ".") -> list[Decimal]:
    """Return the numbers of a text, exactly. `mark` is the decimal mark; the other one groups thousands.

    LaTeX writes a mark in braces and a thin space as `\\,`: `9{,}500` and `9\\,500` are 9500.
    """
    found = []
    if "{" in text or "\\" in text:
        text = _LATEX_MARK.sub(r"\1", text).replace("\\,", "\u2009")
    for match in _number_pattern(mark).finditer(text):
        whole = "".join(filter(str.isdecimal, match["whole"] or "0"))
        sign = "-" if match["sign"] and match["sign"] != "+" else ""
        found.append(Decimal(f"{sign}{whole}.{match['part'] or match['bare'] or '0'}e{match['power'] or '0'}"))
    return found


def within(found: Decimal, wanted: Decimal, *, absolute: Decimal, relative: Decimal) -> bool:
    """Return whether two numbers differ by at most `absolute`, or `relative` times the wanted one. Exact."""
    gap = abs(_CONTEXT.subtract(found, wanted))
    return gap <= max(absolute, _CONTEXT.multiply(relative, abs(wanted)))


def items_of(value: Any, separator: str) -> list[str]:
    """Return the items of a list, of a JSON list as text, or of a text with separators; trimmed, without empty ones."""
    if isinstance(value, str):
        try:
            read = read_json(value)
        except ValueError:
            read = None
        value = read if isinstance(read, list) else value.split(separator)
    items: Iterable[Any] = value if isinstance(value, list) else [value]
    texts = (text_of(item).strip() for item in items if item is not None)
    return [text for text in texts if text]
