"""OpenAI's dialect of the Batch API: what a create call asks for, and how objects and lines are written.

The other providers' (`other_dialects.py`) change what differs.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from batchchat.dataclass import dataclass
from batchchat.demo.batches.batch import Batch, BatchOrder, Stand
from batchchat.demo.batches.checking import FileProblem, LineCheck, OpenAICheck
from batchchat.demo.batches.files import KEPT_S, FileStore, StoredFile
from batchchat.demo.batches.http import bad, page_after, whole_number
from batchchat.demo.batches.places import FilePlace, OwnFiles
from batchchat.demo.batches.results import LineResult, openai_line

CHAT = "/v1/chat/completions"
TIMES = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
_MIN_KEPT_S = 3_600
"""The shortest time that a file may be kept, as in OpenAI's reference: one hour."""
_MAX_METADATA, _MAX_KEY, _MAX_VALUE = 16, 64, 512


@dataclass(frozen=True, slots=True)
class ToldBatch:
    """What a batch tells at a moment, faults included. `counts` are its total, completed and failed lines, if told."""

    batch: Batch
    stand: Stand
    status: str
    counts: tuple[int, int, int] | None
    output_ref: str | None
    error_ref: str | None
    line_numbers: bool = True

    @property
    def total(self) -> int | None:
        """How many lines there are."""
        return self.counts[0] if self.counts else None

    @property
    def completed(self) -> int | None:
        """How many lines were answered."""
        return self.counts[1] if self.counts else None

    @property
    def failed(self) -> int | None:
        """How many lines failed."""
        return self.counts[2] if self.counts else None


class DemoDialect:
    """How OpenAI's Batch API looks from outside.

    `bad_lines_alone` tells that a bad line fails alone, not the batch. `upload_status` is the status that refuses a
    file for what stands in it, None if it is looked at when a batch is made of it. `slow_s` is how long a file takes to
    become usable. `queue_status` is the status of a create call that finds the queue full, None if the batch fails.
    `key_header` holds the key. `empty_error_file` tells that a batch
    without failed lines has an error file of 0 bytes, `empty_ids` that absent ids are "". `partial_results` tells that
    the result files of a running batch can be read, `lists_by_id` that a list can be asked for by ids.
    """

    files_path = "/files"
    upload_path = "/files"
    batches_path = "/batches"
    has_files = True
    file_prefix = "file-"
    purpose = "batch"
    key_header = "authorization"
    created_status = 200
    bad_lines_alone = False
    upload_status: int | None = None
    slow_s = 0.0
    queue_status: int | None = None
    expires = True
    empty_error_file = False
    empty_ids = False
    partial_results = False
    lists_by_id = False
    windows: Mapping[str, float] = {"24h": 86_400.0}

    def new_batch_id(self) -> str:
        """Return an id that no batch has. It is random, so that a new server never takes an old id for its own."""
        return f"batch_{uuid.uuid4().hex[:24]}"

    def place(self, files: FileStore) -> FilePlace:
        """Return where input and results lie."""
        return OwnFiles(files, self.file_prefix)

    # What comes in

    def asked(self, data: Mapping[str, Any], models: Collection[str]) -> BatchOrder:
        """Read a create call. Raises ApiError."""
        input_ref, endpoint, window = (data.get(key) for key in ("input_file_id", "endpoint", "completion_window"))
        for name, value in (("input_file_id", input_ref), ("endpoint", endpoint), ("completion_window", window)):
            if not isinstance(value, str) or not value:
                raise bad(f"Missing required parameter: '{name}'.", name)
        if endpoint not in self.urls():
            raise bad(
                f"Invalid value: the demo provider's batches have the endpoint {self.urls()[0]} only.", "endpoint"
            )
        if not isinstance(window, str) or window not in self.windows:
            known = ", ".join(self.windows)
            raise bad(f"Invalid value: the completion window must be one of {known}.", "completion_window")
        later = data.get("output_expires_after")
        anchor, seconds = (later.get("anchor"), later.get("seconds")) if isinstance(later, dict) else (later, None)
        return BatchOrder(
            str(input_ref),
            str(endpoint),
            window,
            window_s=self.windows[window],
            metadata=read_metadata(data.get("metadata")),
            output_kept_s=kept_s("output_expires_after", anchor, seconds),
        )

    def urls(self) -> Sequence[str]:
        """Return the endpoints that a batch and its lines may name."""
        return (CHAT,)

    def line_check(self, models: Collection[str]) -> LineCheck:
        """Return what checks the lines of one file."""
        return OpenAICheck(self.urls(), models)

    def body(self, batch: Batch, line: dict[str, Any]) -> dict[str, Any]:
        """Return the body of a line's request."""
        body = line.get("body")
        return body if isinstance(body, dict) else {}

    # What goes out

    def file(self, record: StoredFile, path: Path, *, usable: bool) -> dict[str, Any]:
        """Return a file object."""
        return {
            "id": record.id,
            "object": "file",
            "bytes": record.nbytes,
            "created_at": int(record.created),
            "expires_at": int(record.expires),
            "filename": record.filename,
            "purpose": record.purpose,
            "status": "processed" if usable else "uploaded",
            "status_details": None,
        }

    def batch(self, view: ToldBatch) -> dict[str, Any]:
        """Return a batch object."""
        batch, stand = view.batch, view.stand
        told: dict[str, Any] = {
            "id": batch.id,
            "object": "batch",
            "endpoint": batch.endpoint,
            "model": batch.model,
            "errors": self.errors(view),
            "input_file_id": batch.input_ref,
            "completion_window": batch.window,
            "status": view.status,
            "output_file_id": view.output_ref,
            "error_file_id": view.error_ref,
            "created_at": int(batch.created),
            "expires_at": int(batch.expires),
        }
        for name in TIMES:
            at = stand.times.get(name)
            told[f"{name}_at"] = None if at is None else int(at)
        told["request_counts"] = {"total": view.total, "completed": view.completed, "failed": view.failed}
        told["usage"] = self.usage(batch)
        told["metadata"] = batch.metadata
        return told

    def errors(self, view: ToldBatch) -> Any:
        """Return what is wrong with a failed batch, None if nothing is."""
        problem = view.batch.problem
        if problem is None or not view.stand.ended:
            return None
        return {"object": "list", "data": [error_entry(problem, line_number=view.line_numbers)]}

    def usage(self, batch: Batch) -> dict[str, Any] | None:
        """Return the tokens of the lines that were answered, None before the end."""
        outcome = batch.outcome
        # Nothing ran of a batch whose file was refused.
        if outcome is None or batch.problem is not None:
            return None
        return {
            "input_tokens": outcome.prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": outcome.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": outcome.prompt_tokens + outcome.completion_tokens,
        }

    def created(self, told: dict[str, Any]) -> Any:
        """Return the answer to a create call."""
        return told

    def select(self, query: Mapping[str, str], batches: list[Batch]) -> tuple[list[Batch], dict[str, Any]]:
        """Return the batches of the page that a query asks for, and what the page tells beside them."""
        limit = whole_number(query, "limit", default=20, low=1, high=100)
        page, has_more = page_after(batches, query.get("after"), limit)
        return page, {"has_more": has_more}

    def page(self, told: Sequence[dict[str, Any]], beside: dict[str, Any]) -> Any:
        """Return a page of a list."""
        first, last = (told[0]["id"], told[-1]["id"]) if told else (None, None)
        return {"object": "list", "data": told, "first_id": first, "last_id": last, **beside}

    def line(self, result: LineResult) -> dict[str, Any]:
        """Return a line of a result file."""
        return openai_line(result)


def error_entry(problem: FileProblem, *, line_number: bool = True) -> dict[str, Any]:
    """Return one error of a batch."""
    line = problem.line if line_number else None
    return {"code": problem.code, "message": problem.message, "param": problem.param, "line": line}


def kept_s(name: str, anchor: Any, seconds: Any) -> float:
    """Read how long a file is to be kept. Raises ApiError (400)."""
    if anchor is None and seconds is None:
        return KEPT_S
    if anchor != "created_at":
        raise bad(f"{name}.anchor must be 'created_at'", f"{name}[anchor]")
    text = str(seconds)
    if not (text.isascii() and text.isdecimal()) or not _MIN_KEPT_S <= int(text) <= KEPT_S:
        raise bad(f"{name}.seconds must be a whole number from {_MIN_KEPT_S} to {KEPT_S}", f"{name}[seconds]")
    return int(text)


def read_metadata(value: Any) -> dict[str, str] | None:
    """Read the metadata of a batch. Raises ApiError (400)."""
    if value is None:
        return None
    if not isinstance(value, dict) or not all(isinstance(one, str) for one in value.values()):
        raise bad("metadata must be an object whose values are texts", "metadata")
    if len(value) > _MAX_METADATA or any(len(k) > _MAX_KEY or len(v) > _MAX_VALUE for k, v in value.items()):
        raise bad(
            f"metadata holds at most {_MAX_METADATA} pairs, keys of {_MAX_KEY} and values of {_MAX_VALUE} characters",
            "metadata",
        )
    return value
