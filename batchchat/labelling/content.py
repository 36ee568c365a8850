"""The content of a row: what a review belongs to.

A request's `custom_id` changes with the prompt; the content of a row does not. So an edited prompt keeps the reviews of
all rows that did not change, and a row that changed loses its own.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import date, datetime, time
from hashlib import blake2b
from typing import Any

import orjson

from batchchat.store import Output


def row_content(columns: Mapping[str, Any], key: str | None) -> str:
    """Return the digest of a row: 32 hexadecimal digits of its input columns, by name, and its key."""
    text = orjson.dumps([key, columns], default=plain, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)
    return blake2b(text, digest_size=16).hexdigest()


def plain(value: object) -> Any:
    """Return a value that JSON lacks as one that it has: bytes as base64, times as ISO 8601, others as their text."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    return str(value)


def input_columns(output: Output) -> list[str]:
    """Return the names of the input's columns."""
    return [] if output.input_schema is None else list(output.input_schema.names)


def content_of(output: Output, record: Mapping[str, Any]) -> str:
    """Return the digest of a record's row."""
    return row_content({name: record[name] for name in input_columns(output)}, record["key"])
