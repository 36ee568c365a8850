"""Single values into frozen column types, exactly or not at all."""

from __future__ import annotations

import json
import math
import re
from base64 import b64encode
from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal, InvalidOperation
from itertools import chain
from typing import Any, Final

import orjson
import pyarrow as pa

from batchchat.errors import UsageError


class _Misfit:
    __slots__ = ()

    def __repr__(self) -> str:
        return "MISFIT"


MISFIT: Final = _Misfit()
"""What a conversion gives for a value that the column does not hold exactly."""

Convert = Callable[[Any], Any]
"""Takes a value that is not None; returns what Arrow takes for the column's type, or MISFIT."""

DECLARED = "declared"
TEXT = "text"
JSON = "json"

_TRUTH = {"true": True, "false": False, "yes": True, "no": False, "1": True, "0": False}
_INTEGER = re.compile(r"\s*[+-]?[0-9]+\s*")
_DECIMAL_TYPE = re.compile(r"decimal\(\s*(\d+)\s*,\s*(\d+)\s*\)")
_TYPES: dict[str, tuple[pa.DataType, str]] = {
    "string": (pa.string(), TEXT),
    "int64": (pa.int64(), DECLARED),
    "float64": (pa.float64(), DECLARED),
    "bool": (pa.bool_(), DECLARED),
    "timestamp": (pa.timestamp("us", tz="UTC"), DECLARED),
    "date": (pa.date32(), DECLARED),
    "json": (pa.string(), JSON),
}


_DIRECT: dict[pa.DataType, set[type]] = {
    pa.string(): {str},
    pa.bool_(): {bool},
    pa.int64(): {int},
    pa.float64(): {float},
}
_LISTS = {list}
_DICTS = {dict}


def declared_type(column: str, text: str) -> tuple[pa.DataType, str]:
    """Read a type from `input.types`: the Arrow type and the way values are written into it. UsageError if unknown."""
    found = _TYPES.get(text.strip())
    if found is not None:
        return found
    decimal = _DECIMAL_TYPE.fullmatch(text.strip())
    if decimal and 1 <= int(decimal[1]) <= 38 and int(decimal[2]) <= int(decimal[1]):
        return pa.decimal128(int(decimal[1]), int(decimal[2])), DECLARED
    raise UsageError(
        f"input.types: {column}: {text!r} is no column type",
        remedy=f"Known are {', '.join(_TYPES)}, decimal(precision,scale).",
    )


def fits(kind: pa.DataType, values: Iterable[Any]) -> bool:
    """Return whether Arrow takes all values, None among them, into a type as they are, save integers out of its range.

    It looks at whole columns, also inside lists and structs, so that the usual batch costs little. Where it says no,
    each value is converted by itself.
    """
    there = [value for value in values if value is not None]
    kinds = set(map(type, there))
    if kind in _DIRECT:
        return kinds <= _DIRECT[kind]
    if pa.types.is_list(kind):
        return kinds <= _LISTS and fits(kind.value_type, chain.from_iterable(there))
    if pa.types.is_struct(kind):
        fields = list(kind)
        return (
            kinds <= _DICTS
            and {field.name for field in fields}.issuperset(chain.from_iterable(there))
            and all(fits(field.type, [value.get(field.name) for value in there]) for field in fields)
        )
    return False


def converter(kind: pa.DataType, mode: str = "") -> Convert:
    """Make the conversion into a type, one value at a time."""
    if mode == JSON:
        return json_text
    if mode == TEXT:
        return _written
    exact = _exact(kind)
    if mode != DECLARED:
        return exact
    read = _reader(kind)

    def convert(value: Any) -> Any:
        found = exact(value)
        return read(value) if found is MISFIT else found

    return convert


def text_converter(kind: pa.DataType, mode: str) -> Convert:
    """Return what reads a text that is all a file has of a value: JSON if the column is declared so."""
    return _read_json if mode == JSON else converter(kind, DECLARED)


def _read_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return MISFIT


def _exact(kind: pa.DataType) -> Convert:  # noqa: PLR0911 - one return for each type
    if kind == pa.string():
        return _text
    if kind == pa.bool_():
        return lambda value: value if type(value) is bool else MISFIT
    if pa.types.is_integer(kind):
        bits = kind.bit_width
        signed = pa.types.is_signed_integer(kind)
        low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
        return lambda value: value if type(value) is int and low <= value <= high else MISFIT
    if kind == pa.float64():
        return _float
    if pa.types.is_list(kind):
        return _list(_exact(kind.value_type))
    if pa.types.is_struct(kind):
        return _struct({field.name: _exact(field.type) for field in kind.fields})
    return _round_trip(kind)


def _text(value: Any) -> Any:
    if type(value) is not str:
        return MISFIT
    try:
        # JSON may hold half of a surrogate pair (`\ud800`), which Arrow's UTF-8 cannot.
        value.encode()
    except UnicodeEncodeError:
        return MISFIT
    return value


def _float(value: Any) -> Any:
    if type(value) is float:
        return value
    # Beyond 2**53 not every integer is a float: the value would come back as another one.
    if type(value) is int and abs(value) <= 2**53:
        return float(value)
    return MISFIT


def _list(item: Convert) -> Convert:
    def convert(value: Any) -> Any:
        if type(value) is not list:
            return MISFIT
        items = [None if part is None else item(part) for part in value]
        return MISFIT if MISFIT in items else items

    return convert


def _struct(fields: dict[str, Convert]) -> Convert:
    names = fields.keys()

    def convert(value: Any) -> Any:
        if type(value) is not dict or not value.keys() <= names:
            return MISFIT
        parts = {name: None if part is None else fields[name](part) for name, part in value.items()}
        return MISFIT if MISFIT in parts.values() else parts

    return convert


def _round_trip(kind: pa.DataType) -> Convert:
    """For types that JSON never gives: what comes back from Arrow must be what went in."""

    def convert(value: Any) -> Any:
        try:
            back = pa.scalar(value, kind).as_py()
        except (pa.ArrowException, ValueError, TypeError, OverflowError):
            return MISFIT
        return value if type(back) is type(value) and back == value else MISFIT

    return convert


def _written(value: Any) -> Any:
    """Write numbers and booleans as JSON does, for a column declared as text."""
    if type(value) is str:
        return _text(value)
    return json_text(value) if isinstance(value, bool | int | float | Decimal) else MISFIT


def _reader(kind: pa.DataType) -> Convert:
    if pa.types.is_decimal(kind):
        return lambda value: _read_decimal(value, kind.precision, kind.scale)
    if kind == pa.bool_():
        return lambda value: _TRUTH.get(value.strip().lower(), MISFIT) if type(value) is str else MISFIT
    read = _read_number if kind in (pa.int64(), pa.float64()) else _read_time

    def convert(value: Any) -> Any:
        if type(value) is not str:
            return MISFIT
        try:
            return read(value, kind)
        except (ValueError, OverflowError):
            return MISFIT

    return convert


def _read_number(text: str, kind: pa.DataType) -> Any:
    if kind == pa.int64():
        number = int(text) if _INTEGER.fullmatch(text) else None
        return number if number is not None and -(2**63) <= number < 2**63 else MISFIT
    # Python takes `1_000` for a number, and no other reader of the file would.
    return MISFIT if "_" in text else float(text)


def _read_time(text: str, kind: pa.DataType) -> Any:
    text = text.strip()
    if kind == pa.date32():
        return date.fromisoformat(text)
    if re.search(r"\.\d{7}", text):
        return MISFIT  # finer than a microsecond
    moment = datetime.fromisoformat(text)
    # The column is one of moments. A time that names no zone is taken for UTC, on whatever machine it is read.
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _read_decimal(value: Any, precision: int, scale: int) -> Any:
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        return MISFIT
    try:
        # A float by its text: 0.1 is meant, and not the 55 digits of the binary fraction next to it.
        number = Decimal(value) if isinstance(value, Decimal | int) else Decimal(str(value).strip())
        if not number.is_finite() or number.adjusted() >= precision - scale:
            return MISFIT
        _, digits, exponent = number.normalize().as_tuple()
    except (InvalidOperation, ValueError):
        return MISFIT
    fits = isinstance(exponent, int) and -exponent <= scale and len(digits) <= precision
    return number if fits else MISFIT


def json_text(value: Any) -> str:
    """Write any value as JSON text: numbers in full, bytes as base64, what JSON has no form for as its text."""
    try:
        return orjson.dumps(value, option=orjson.OPT_PASSTHROUGH_SUBCLASS, default=_refuse).decode()
    except TypeError:
        return json.dumps(_plain(value), ensure_ascii=False, separators=(",", ":"))


def extra_text(values: dict[str, Any]) -> str:
    """Write the fields of one row that have no column, or do not fit theirs, as a JSON object."""
    return json.dumps(_plain(values), ensure_ascii=False, separators=(",", ":"))


def _refuse(value: Any) -> Any:
    raise TypeError


def _plain(value: Any) -> Any:  # noqa: PLR0911 - one return for each type
    """Make JSON values of anything; NaN and infinity become text, a lone surrogate its escape."""
    if isinstance(value, dict):
        return {_plain(str(name)): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, "NaN")
    if isinstance(value, bytes):
        return b64encode(value).decode()
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    return f"{value.total_seconds()}s" if isinstance(value, timedelta) else str(value)
