"""Settings: the fields that a person may change while a run goes on, and how their values are read.

They have the names, units and bounds of the job's own fields, so that what was tried on a running job can be written
into the job file as it is.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from batchchat.errors import UsageError
from batchchat.job import write_duration
from batchchat.job.model import Job
from batchchat.job.pool_fields import LimitFields
from batchchat.job.sections import BudgetCaps
from batchchat.job.values import Duration, Section
from batchchat.runner.control import Settings

_EXAMPLE = "Such as `set limits.concurrency=64`."
_NOTHING = frozenset({"null", "none", "~"})
"""Words for "no limit"."""


class _Kind(NamedTuple):
    """How a field is read: the section and name it has in a job, and what it may be, in words.

    Without a section it is a duration that no job has.
    """

    section: type[Section] | None
    name: str
    possible: str


_RATE = "a whole number of at least 1, or null for no limit of the job"
_FIELDS = {
    "limits.concurrency": _Kind(
        LimitFields, "concurrency", "a whole number from 1 to 20,000, or null for no limit of the job"
    ),
    "limits.requests_per_minute": _Kind(LimitFields, "requests_per_minute", _RATE),
    "limits.tokens_per_minute": _Kind(LimitFields, "tokens_per_minute", _RATE),
    "budget.max_cost": _Kind(BudgetCaps, "max_cost", "an amount of more than 0, or null for no cap"),
    "budget.max_tokens": _Kind(BudgetCaps, "max_tokens", "a whole number of at least 1, or null for no cap"),
    "budget.max_requests": _Kind(BudgetCaps, "max_requests", "a whole number of at least 1, or null for no cap"),
    "deadline": _Kind(Job, "deadline", "a time from the start of the run such as 50m or 2h, or null for no deadline"),
    "grace": _Kind(None, "grace", "a time such as 20s or 2m"),
}
_SHORT = {
    "rpm": "limits.requests_per_minute",
    "tpm": "limits.tokens_per_minute",
    **{name.rpartition(".")[2]: name for name in _FIELDS},
}
"""Other names of the fields: the last word alone, and what everybody calls the two rates."""

FIELD_NAMES = tuple(_FIELDS)


def read_settings(texts: Sequence[str]) -> dict[str, float | int | None]:
    """Read `FIELD=VALUE` texts. Raises UsageError with the field, the value, and what is possible."""
    found: dict[str, float | int | None] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise UsageError(f"set {text[:60]!r} is not of the form FIELD=VALUE", remedy=_EXAMPLE)
        field = _field(name.strip())
        if field in found:
            raise UsageError(f"{field} is set twice", remedy="Give it once.")
        found[field] = read_setting(field, value.strip())
    if not found:
        raise UsageError("set needs a field and its value", remedy=f"{_EXAMPLE} Fields are {', '.join(FIELD_NAMES)}.")
    return found


def _field(name: str) -> str:
    field = _SHORT.get(name, name)
    if field not in _FIELDS:
        near = difflib.get_close_matches(name, [*_FIELDS, *_SHORT], n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise UsageError(
            f"{name[:60]!r} cannot be set while a run goes on{hint}",
            remedy=f"What can be set is {', '.join(FIELD_NAMES)}. Other fields: stop the run, change the job, run it.",
        )
    return field


def read_setting(field: str, value: object) -> float | int | None:
    """Return the value of a field, checked as the job's own field is. Raises UsageError."""
    kind = _FIELDS[_field(field)]
    if isinstance(value, str) and value.lower() in _NOTHING:
        value = None
    try:
        if value is None and kind.section is None:
            raise ValueError("needs a value")
        read: Any = _checked(kind, value)
    except (ValidationError, ValueError):
        shown = "null" if value is None else repr(str(value)[:60])
        raise UsageError(f"{field}: {shown} is not possible", remedy=f"It must be {kind.possible}.") from None
    result: float | int | None = read
    return result


def _checked(kind: _Kind, value: object) -> Any:
    if kind.section is None:
        return TypeAdapter(Duration).validate_python(value)
    # The field alone, with its bounds: of a whole section, other fields would be needed too.
    field = kind.section.model_fields[kind.name]
    annotated: Any = field.annotation
    for bound in field.metadata:
        annotated = Annotated[annotated, bound]
    read = TypeAdapter(annotated).validate_python(value)
    if isinstance(read, float) and not math.isfinite(read):
        raise ValueError("is not finite")
    return read


def shown_setting(field: str, value: float | int | None) -> str:
    """Return a setting as a person writes it: `limits.concurrency=64`, `deadline=2h`."""
    if value is None:
        return f"{field}=null"
    if field in {"deadline", "grace"}:
        return f"{field}={write_duration(value)}"
    return f"{field}={value:g}" if isinstance(value, float) else f"{field}={value}"


def checked_settings(given: object) -> Settings:
    """Return settings that another process wrote, checked again. Raises UsageError."""
    if not isinstance(given, dict) or not given:
        raise UsageError("the command sets no field", remedy=_EXAMPLE)
    return {_field(str(name)): read_setting(str(name), value) for name, value in given.items()}
