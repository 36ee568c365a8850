"""Views as JSON: what `--json` prints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from typing import Any

from batchchat.events import RunSummary


def as_json(view: object) -> dict[str, Any]:
    """Return a view, or a `RunSummary`, as an object of JSON values with the names of its fields."""
    plain: dict[str, Any] = plain_value(view)
    return plain


def summary_json(summary: RunSummary) -> dict[str, Any]:
    """Return what `run --json` prints: every field of the summary under its own name."""
    return as_json(summary)


def plain_value(value: object) -> Any:
    """Return dataclasses and named tuples as objects, other sequences as arrays, bytes as their number, else text."""
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: plain_value(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: plain_value(inner) for name, inner in value._asdict().items()}
    if isinstance(value, Mapping):
        return {str(name): plain_value(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain_value(inner) for inner in value]
    if isinstance(value, bytes | bytearray | memoryview | datetime):
        return _told(value)
    # JSON has no form for NaN and the infinities: they become text too.
    is_json = value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
    return value if is_json else str(value)


def _told(value: bytes | bytearray | memoryview | datetime) -> str:
    """Return the number of some bytes; a moment as ISO 8601, in UTC if it has an offset."""
    if isinstance(value, datetime):
        return (value.astimezone(UTC) if value.tzinfo is not None else value).isoformat()
    return f"({len(value):,} bytes)"
