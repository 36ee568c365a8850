"""How the values of a job file are read: numbers, durations, sizes, yes and no; and the base of every section."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, StringConstraints

_NUMBER_TEXT = r"\d{1,300}(?:\.\d{0,300})?"
_NUMBER = re.compile(rf"[+-]?{_NUMBER_TEXT}(?:[eE][+-]?\d{{1,3}})?", re.ASCII)
_DURATION = re.compile(rf"(?:({_NUMBER_TEXT})h)?\s*(?:({_NUMBER_TEXT})m)?\s*(?:({_NUMBER_TEXT})s)?", re.ASCII)
_SIZE = re.compile(rf"({_NUMBER_TEXT})\s*([kMG]?i?B)?", re.ASCII | re.IGNORECASE)
_BROKER = re.compile(r"unix:/.{1,90}|(?:\[[0-9a-fA-F:.]{2,45}\]|[A-Za-z0-9._-]{1,253}):[0-9]{1,5}", re.ASCII)
_PERCENT = re.compile(rf"({_NUMBER_TEXT})\s*%", re.ASCII)
MANY_ROWS = 1_000_000_000_000
_SIZES = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_YEAR_S = 366 * 86400
_GROUPED = re.compile(r"[+-]?\d{1,3}(?:_\d{3})+(?:\.\d*)?", re.ASCII)
_BASED = re.compile(r"[+-]?0(?:x[0-9a-f]+|b[01]+|o[0-7]+)", re.ASCII | re.IGNORECASE)
_CLOCK = re.compile(r"\d{1,9}(?::[0-5]?\d){1,2}", re.ASCII)
_TRUE, _FALSE = frozenset({"true", "yes", "on", "y"}), frozenset({"false", "no", "off", "n"})


def parse_duration(value: object) -> float:
    """Read `90`, `45s`, `15m`, `1h30m` as seconds. Raises ValueError."""
    seconds = math.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value) if -_YEAR_S < value < _YEAR_S else math.inf
    elif isinstance(value, str):
        text = _ungrouped(value.strip())
        found = _DURATION.fullmatch(text)
        if _NUMBER.fullmatch(text):
            seconds = float(text)
        elif text and found and any(found.groups()):
            hours, minutes, rest = (float(part or 0) for part in found.groups())
            seconds = hours * 3600 + minutes * 60 + rest
        elif _CLOCK.fullmatch(text):
            # `1:30` is a minute and a half, as YAML 1.1 reads it.
            seconds = 0.0
            for part in text.split(":"):
                seconds = seconds * 60 + int(part)
    if math.isnan(seconds):
        raise ValueError(f"must be a duration such as 30s, 15m, 1h or 1h30m{instead_of(value)}")
    if not 0 <= seconds < _YEAR_S:
        raise ValueError("a duration must not be negative or longer than a year")
    return seconds


def write_duration(seconds: float) -> str:
    """Write seconds as a job does: `50m`, `1h30m`, `2.5s`."""
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    parts = [f"{hours}h"] * bool(hours) + [f"{minutes}m"] * bool(minutes) + [f"{rest:g}s"] * bool(rest)
    return "".join(parts) or "0s"


def _parse_size(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    found = _SIZE.fullmatch(_ungrouped(value.strip())) if isinstance(value, str) else None
    if not found:
        raise ValueError(f"must be a size such as 64MB{instead_of(value)}")
    size = float(found[1]) * _SIZES[(found[2] or "B").lower()]
    if not size < 2**63:
        raise ValueError(f"{str(value)[:40]} is larger than anything")
    return int(size)


def instead_of(value: object) -> str:
    """Return the end of a message: what stands there instead, or that nothing does."""
    if value is None:
        return ", and it is empty"
    if isinstance(value, Mapping | Sequence) and not isinstance(value, str):
        return ", not a mapping" if isinstance(value, Mapping) else ", not a list"
    return f", not {value[:40]!r}" if isinstance(value, str) else f", not {_shown(value)}"


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    # Python refuses to write an integer of thousands of digits.
    return f"{value:g}" if isinstance(value, float) else str(value) if value in range(-(2**63), 2**63) else "that much"


def _ungrouped(text: str) -> str:
    """Return a number without the marks between its digits: `1_000` is 1000."""
    return text.replace("_", "") if _GROUPED.fullmatch(text) else text


def parse_number(value: object) -> object:
    """Read texts such as `1e3`, `1_000` and `0x10` as numbers; a boolean is none. Raises ValueError."""
    if isinstance(value, bool):
        raise ValueError(f"must be a number{instead_of(value)}")
    if not isinstance(value, str):
        return value
    text = _ungrouped(value.strip())
    if _BASED.fullmatch(text):
        return int(text, 0)
    if re.fullmatch(r"[+-]?0\d+", text, re.ASCII):
        # YAML 1.1 reads it in base eight, people in base ten.
        raise ValueError(f"must be a number without a leading zero{instead_of(value)}")
    if _NUMBER.fullmatch(text):
        number = float(text)
        return int(number) if number.is_integer() and abs(number) < 2**53 else number
    return value


def parse_share_or_count(value: object) -> object:
    """Read `10%` as a share, written anew, and `50` as a whole number. Raises ValueError."""
    found = _PERCENT.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is not None:
        if float(found[1]) >= 100:
            raise ValueError(f"a share must be below 100%{instead_of(value)}")
        return f"{float(found[1]):g}%"
    number = value if value is None else parse_number(value)
    if number is not None and (not isinstance(number, int) or isinstance(number, bool) or not 0 <= number <= MANY_ROWS):
        raise ValueError(f"must be a share such as 10%, or a whole number of rows{instead_of(value)}")
    return number


Duration = Annotated[float, BeforeValidator(parse_duration)]
Size = Annotated[int, BeforeValidator(_parse_size)]
Whole = Annotated[int, BeforeValidator(parse_number)]
Number = Annotated[float, BeforeValidator(parse_number)]
ShareOrCount = Annotated[int | str, BeforeValidator(parse_share_or_count)]
Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]


class Section(BaseModel):
    """A section of a job: it does not change once it is made, and it has no field that the job does not know."""

    # A validator is built when it is first needed: a job's own holds those of its sections, which then are built once.
    model_config = ConfigDict(
        frozen=True, extra="forbid", str_max_length=10_000_000, allow_inf_nan=False, defer_build=True
    )


def parse_boolean(value: object) -> object:
    """Read `yes`, `no`, `on` and `off`, which older versions of YAML call booleans; leave anything else as it is."""
    word = value.strip().lower() if isinstance(value, str) else ""
    return True if word in _TRUE else False if word in _FALSE else value


def _true_or_false(value: object) -> object:
    value = parse_boolean(value)
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"must be true or false, the same for all rows{instead_of(value)}")
    return value


def parse_sharing(value: object) -> bool | str:
    """Read whether a limit is shared: `true`, `false`, or the address of a broker. Raises ValueError."""
    value = parse_boolean(value)
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and _BROKER.fullmatch(value.strip()):
        return value.strip()
    raise ValueError(
        f"must be true, false, or the address of a broker such as 10.0.0.7:7077 or unix:/run/limits{instead_of(value)}"
    )


Sharing = Annotated[bool | str, BeforeValidator(parse_sharing)]
Switch = Annotated[bool | None, BeforeValidator(_true_or_false)]
MANY = 10_000_000


def nearest(name: str, known: Mapping[str, object] | Sequence[str]) -> str:
    """Return ` (did you mean 'x'?)`, or nothing if no known name is near."""
    near = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.6)
    return f" (did you mean {near[0]!r}?)" if near else ""
