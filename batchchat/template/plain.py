"""Row values as JSON: what a template's `tojson`, a conversation column and a param make of them."""

from __future__ import annotations

import json
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import orjson

MAX_INDENT = 16


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal | timedelta | UUID):
        return str(value)
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, bytes | bytearray | memoryview):
        raise TypeError("bytes have no JSON form: decode them in the input, or leave that column out")
    if isinstance(value, str):
        return str(value)
    if isinstance(value, dict):
        return dict(value)
    if isinstance(value, list | tuple | range):  # `groupby` gives named tuples
        return list(value)
    # An undefined value says by itself what is missing.
    raise TypeError(f"{type(value).__name__} has no JSON form: {str(value)[:200]}")


def to_json(value: Any, *, sort: bool = False, indent: int | None = None) -> bytes:
    """Write a row's value as compact UTF-8 JSON: dates in ISO 8601, Decimal as text, non-ASCII as it is.

    `sort` orders the keys of mappings at every depth, so that equal content gives equal bytes. Integers of any
    size are written in full. Raises TypeError or ValueError for what JSON cannot hold (bytes, lone surrogates).
    """
    if indent is None:
        option = orjson.OPT_NON_STR_KEYS | orjson.OPT_PASSTHROUGH_SUBCLASS | (orjson.OPT_SORT_KEYS if sort else 0)
        try:
            return orjson.dumps(value, default=_plain, option=option)
        except orjson.JSONEncodeError as error:
            if "64-bit" not in str(error):
                raise error.__cause__ or error from None
    spaces = None if indent is None else min(max(indent, 0), MAX_INDENT)
    separators = (",", ":") if spaces is None else (",", ": ")
    return json.dumps(
        value,
        default=_plain,
        ensure_ascii=False,
        sort_keys=sort,
        indent=spaces,
        separators=separators,
        allow_nan=False,
    ).encode()


def canonical(value: Any) -> Any:
    """Write whole floats as integers at every depth: `temperature: 0` and `temperature: 0.0` ask for the same."""
    if type(value) is float and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, dict):
        return {str(name): canonical(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [canonical(item) for item in value]
    return value
