"""Batches as JSON: what is sent to create one, and what a provider tells of one, in all dialects."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from batchchat.engines.batch.service import BatchProblem, BatchStatus, RemoteBatch
from batchchat.engines.batch.services.dialects import BatchDialect
from batchchat.errors import UsageError

_WORDS: Final[Mapping[str, BatchStatus]] = {
    **{status.value: status for status in BatchStatus if status is not BatchStatus.UNKNOWN},
    "queued": BatchStatus.VALIDATING,
    "in_queue": BatchStatus.VALIDATING,
    "pending": BatchStatus.VALIDATING,
    "running": BatchStatus.IN_PROGRESS,
    "progress": BatchStatus.IN_PROGRESS,
    "processing": BatchStatus.IN_PROGRESS,
    "success": BatchStatus.COMPLETED,
    "succeeded": BatchStatus.COMPLETED,
    "error": BatchStatus.FAILED,
    "timeout_exceeded": BatchStatus.EXPIRED,
    "cancellation_requested": BatchStatus.CANCELLING,
    "canceling": BatchStatus.CANCELLING,
    "canceled": BatchStatus.CANCELLED,
}
"""Words for where a batch stands, in lower case. No word means two things in two dialects."""

QUEUE_FULL: Final = "token_limit_exceeded"
"""The code of a batch that failed since the queue of its model is full, also if a dialect gives it in words only."""
_QUEUE: Final = re.compile(r"\benqueued tokens?\b|token_limit_exceeded|\bqueued tokens?\b", re.IGNORECASE)
_LINE: Final = re.compile(r"\bline(?:[ _]number)?[ #:=]{0,3}(\d{1,9})\b(?!\s*\(within)", re.IGNORECASE)
_WINDOW: Final = re.compile(r"\s*(\d{1,5})\s*(h|hours?|d|days?)\s*", re.IGNORECASE)


def window_hours(text: str, dialect: BatchDialect) -> int:
    """Return the hours of a completion window such as `24h` or `7d`. Raises UsageError if the dialect has no such.

    A dialect without bounds takes any text; then 0 means that it is no number of hours.
    """
    told = _WINDOW.fullmatch(text)
    hours = int(told[1]) * (24 if told[2].lower().startswith("d") else 1) if told else 0
    if dialect.windows is None:
        return hours
    low, high = dialect.windows
    if not hours:
        raise UsageError(f"engine.window: {text!r} is no window", remedy="Write a number of hours or days: 24h, 7d.")
    if not low <= hours <= high or (dialect.window_choices and hours not in dialect.window_choices):
        if dialect.window_choices:
            known = " or ".join(f"{each}h" for each in sorted(dialect.window_choices))
        else:
            known = f"{low}h" if low == high else f"{low}h to {high}h"
        raise UsageError(
            f"engine.window: {dialect.name} takes no window of {text}",
            remedy=f"It takes {known}. Change engine.window, or leave it out.",
        )
    return hours


def creation(
    dialect: BatchDialect, input_ref: str, labels: Mapping[str, str], *, window: str, model: str | None
) -> dict[str, Any]:
    """Return the body that creates a batch."""
    body: dict[str, Any] = {dialect.input_field: [input_ref] if dialect.input_list else input_ref}
    if dialect.model_on_job:
        body["model"] = model
    body["endpoint"] = dialect.endpoint
    body[dialect.window_field] = window_hours(window, dialect) if dialect.window_hours else window
    if labels and dialect.limits.finds_by_labels:
        body["metadata"] = dict(labels)
    return body


def read_batch(dialect: BatchDialect, data: Any) -> RemoteBatch | None:
    """Return a batch as its JSON tells it, None if it is no batch with an id."""
    if isinstance(data, dict) and isinstance(data.get("job"), dict):
        data = data["job"]
    name = data.get("id") if isinstance(data, dict) else None
    if not isinstance(name, str) or not name:
        return None
    total, completed, failed = _counts(data)
    return RemoteBatch(
        id=name,
        status=read_status(data.get("status")),
        total=total,
        completed=completed,
        failed=failed,
        result_refs=tuple(_result_refs(data)),
        problems=tuple(_problems(dialect, data)),
        input_ref=_input_ref(data),
        labels=_labels(data.get("metadata")),
        created_at=read_time(data.get("created_at")),
        expires_at=read_time(data.get("expires_at") or data.get("job_deadline")) if dialect.expires else None,
        raw=data,
    )


def read_status(word: Any) -> BatchStatus:
    """Return where a batch stands by the provider's word for it."""
    if not isinstance(word, str):
        return BatchStatus.UNKNOWN
    word = re.sub(r"(?<=[a-z])(?=[A-Z])|[\s-]+", "_", word.strip()).lower().removeprefix("job_state_")
    return _WORDS.get(word, BatchStatus.UNKNOWN)


def read_time(value: Any) -> float | None:
    """Return a time in seconds since the epoch: from a number, or from text as ISO 8601 has it."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            try:
                moment = datetime.fromisoformat(value.strip().replace("Z", "+00:00"))
            except ValueError:
                return None
            moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
            return moment.timestamp()
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e14:
        return None
    return value / 1000 if value > 1e11 else float(value)


def _counts(data: Mapping[str, Any]) -> tuple[int | None, int | None, int | None]:
    """Return how many requests there are, were answered, and failed."""
    counts = data.get("request_counts")
    if isinstance(counts, dict):
        values = [counts.get(name) for name in ("total", "completed", "failed")]
    else:
        # `completed_requests` counts the failed ones too.
        values = [data.get(name) for name in ("total_requests", "succeeded_requests", "failed_requests")]
    total, completed, failed = (value if type(value) is int and value >= 0 else None for value in values)
    return total, completed, failed


def _result_refs(data: Mapping[str, Any]) -> Iterator[str]:
    """Yield the result files that are named. An absent one is null, missing, or an empty text."""
    seen = set()
    for name in ("output_file_id", "output_file", "error_file_id", "error_file"):
        ref = data.get(name)
        if isinstance(ref, str) and ref and ref not in seen:
            seen.add(ref)
            yield ref


def _input_ref(data: Mapping[str, Any]) -> str | None:
    ref = data.get("input_file_id") or data.get("input_file")
    several = data.get("input_files")
    if not ref and isinstance(several, list) and several:
        ref = several[0]
    return ref if isinstance(ref, str) and ref else None


def _labels(metadata: Any) -> dict[str, str] | None:
    if not isinstance(metadata, dict):
        return None
    return {str(name): value if isinstance(value, str) else str(value) for name, value in metadata.items()}


def _problems(dialect: BatchDialect, data: Mapping[str, Any]) -> Iterator[BatchProblem]:
    """Yield what is wrong with a whole batch: a list, a list in an object, or one text."""
    errors = data.get("errors")
    if isinstance(errors, dict):
        errors = errors.get("data", [errors] if errors.get("message") else None)
    found = list(errors) if isinstance(errors, list) else [errors] if isinstance(errors, str) and errors else []
    if data.get("error"):
        found.append(data["error"])
    for each in found[:100]:
        if isinstance(each, str):
            full = QUEUE_FULL if _QUEUE.search(each) else None
            yield BatchProblem(full, each, line_in(each) if dialect.line_numbers else None, _remedy(None, each))
        elif isinstance(each, dict):
            code, said, line = each.get("code"), each.get("message"), each.get("line")
            message = said if isinstance(said, str) else ""
            line = line if type(line) is int and line > 0 else line_in(message)
            code = str(code) if code else QUEUE_FULL if _QUEUE.search(message) else None
            yield BatchProblem(code, message, line if dialect.line_numbers else None, _remedy(code, message))


_MODEL: Final = re.compile(
    r"model_not_found|invalid model|unknown model|non-serverless model|(?:no |not have )access to (?:the |this )?model",
    re.IGNORECASE,
)
_CREDIT: Final = re.compile(
    r"insufficient_quota|insufficient (?:credit|balance|fund)|billing_|credit_balance|payment_required", re.IGNORECASE
)


def _remedy(code: str | None, message: str) -> str | None:
    """Return what a person must do before another batch can succeed, None if nothing is known of such a thing."""
    said = f"{code or ''} {message}"
    if _CREDIT.search(said):
        return "Add credit or raise the spending limit of the account, then run the same command again."
    if _MODEL.search(said):
        return "Check `model` in the job: it must be one that this provider runs in batches."
    return None


def line_in(message: str) -> int | None:
    """Return the number of a line that a message names, None if it names none.

    One that counts within a part of a file is no such number.
    """
    told = _LINE.search(message)
    return (int(told[1]) or None) if told else None


def batches_in(dialect: BatchDialect, data: Any) -> list[RemoteBatch]:
    """Return the batches of one page of a list."""
    return [batch for each in items_in(data) if (batch := read_batch(dialect, each)) is not None]


def items_in(data: Any) -> list[Any]:
    """Return the objects of one page of a list: its `data`, or the page itself if it is an array."""
    if isinstance(data, dict):
        data = data.get("data")
    return data if isinstance(data, list) else []


def next_page(dialect: BatchDialect, data: Any, number: int) -> dict[str, str] | None:
    """Return the query of the page after this one, the `number`th from 0; None if it is the last.

    Both ways of paging are known whatever the dialect: a cursor, and the last id with a mark that there is more.
    """
    items = items_in(data)
    if not isinstance(data, dict) or not items:
        return None
    paging = data.get("paging")
    if isinstance(paging, dict) and isinstance(cursor := paging.get("next_cursor"), str) and cursor:
        return {"cursor": cursor}
    if dialect.page_numbers:
        total, size = data.get("total"), int(dialect.jobs_query.get("page_size", "100"))
        more = (number + 1) * size < total if type(total) is int else len(items) >= size
        return {"page": str(number + 1)} if more else None
    last = data.get("last_id") or (items[-1].get("id") if isinstance(items[-1], dict) else None)
    return {"after": last} if data.get("has_more") is True and isinstance(last, str) and last else None
