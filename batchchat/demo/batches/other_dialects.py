"""The Batch APIs of other providers, as far as they differ from OpenAI's."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from batchchat.demo.batches.batch import Batch, BatchOrder
from batchchat.demo.batches.checking import CheckWords, FileProblem, LineCheck, OpenAICheck
from batchchat.demo.batches.dialects import CHAT, DemoDialect, ToldBatch, error_entry, read_metadata
from batchchat.demo.batches.files import FileStore, StoredFile
from batchchat.demo.batches.http import bad, whole_number
from batchchat.demo.batches.places import DemoBucket, FilePlace
from batchchat.demo.batches.results import LineResult, openai_line, response_of
from batchchat.demo.request import ApiError

_HOUR = 3_600.0


def _iso(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Azure(DemoDialect):
    """A deployment in each line; words and times of the REST samples; a file is used only when it is processed.

    A batch never expires. The error file is always there. A full queue refuses the create call.
    """

    key_header = "api-key"
    slow_s = 0.2
    queue_status = 400
    expires = False
    empty_error_file = True
    empty_ids = True

    def urls(self) -> Sequence[str]:
        """Return the endpoints that a batch and its lines may name."""
        return ("/chat/completions", CHAT)

    def line_check(self, models: Collection[str]) -> LineCheck:
        """Return what checks the lines, with Azure's codes."""
        return OpenAICheck(self.urls(), models, CheckWords(url="url_mismatch", model="model_mismatch"))

    def batch(self, view: ToldBatch) -> dict[str, Any]:
        """Return a batch with capitalised statuses and texts for times."""
        told = super().batch(view)
        for name in [name for name in told if name.endswith("_at")]:
            told[name] = None if told[name] is None else _iso(told[name])
        told["status"] = "InProgress" if view.status == "in_progress" else view.status.capitalize()
        return told


class Groq(DemoDialect):
    """Bad lines fail alone, and are named in an array of errors; pages go on at a cursor; windows up to a week."""

    file_prefix = "file_"
    bad_lines_alone = True
    lists_by_id = True
    windows: Mapping[str, float] = {
        **{f"{hours}h": hours * _HOUR for hours in range(24, 169)},
        **{f"{days}d": days * 24 * _HOUR for days in range(1, 8)},
    }

    def errors(self, view: ToldBatch) -> Any:
        """Return an array of what is wrong, also with a batch that completed."""
        if not view.stand.ended:
            return None
        problem = view.batch.problem
        problems = [*view.batch.bad_lines.values()] if problem is None else [problem]
        return [error_entry(each, line_number=view.line_numbers) for each in problems] or None

    def select(self, query: Mapping[str, str], batches: list[Batch]) -> tuple[list[Batch], dict[str, Any]]:
        """Return the batches after a cursor."""
        limit = whole_number(query, "limit", default=20, low=1, high=100)
        cursor = query.get("cursor", "0")
        # The cursors of this server are numbers of places in the list.
        if not cursor.isdecimal():
            raise bad("cursor is none of ours", "cursor")
        start = int(cursor)
        more = len(batches) > start + limit
        return batches[start : start + limit], {"paging": {"next_cursor": str(start + limit) if more else None}}

    def page(self, told: Sequence[dict[str, Any]], beside: dict[str, Any]) -> Any:
        """Return a page with a cursor in the place of ids."""
        return {"object": "list", "data": told, **beside}


class _LineOfBody:
    """Checks lines that hold a body, and no method or url."""

    def __init__(self, models: Collection[str] | None, *, needs_id: bool) -> None:
        self._models = models
        self._needs_id = needs_id
        self._model: str | None = None

    def __call__(self, number: int, line: dict[str, Any]) -> FileProblem | None:
        """Return what is wrong with a line."""
        body = line.get("body")
        if not isinstance(body, dict):
            return FileProblem("invalid_request", "body: Field required", "body", number)
        if self._needs_id and not isinstance(line.get("custom_id"), str):
            return FileProblem("invalid_request", "custom_id: Field required", "custom_id", number)
        if self._models is not None and body.get("model") not in self._models:
            return FileProblem(
                "invalid_request", f"Unable to access non-serverless model {body.get('model')!r}", None, number
            )
        return None


class _MistralCheck(_LineOfBody):
    """Checks each line against the schema of a request."""

    def __init__(self) -> None:
        super().__init__(None, needs_id=False)

    def __call__(self, number: int, line: dict[str, Any]) -> FileProblem | None:
        """Return what is wrong with a line."""
        problem = super().__call__(number, line)
        if problem is not None:
            return problem
        body = line["body"]
        temperature, max_tokens = body.get("temperature"), body.get("max_tokens")
        # These bounds are those of the provider, which checks them at upload.
        if isinstance(temperature, int | float) and temperature > 1.5:
            return FileProblem("invalid", "body.temperature: Input should be less than or equal to 1.5", None, number)
        if isinstance(max_tokens, int) and max_tokens < 0:
            return FileProblem("invalid", "body.max_tokens: Input should be greater than or equal to 0", None, number)
        if not body.get("messages"):
            return FileProblem("invalid", "body.messages: List should have at least 1 item", None, number)
        return None


class Mistral(DemoDialect):
    """Jobs under /batch/jobs with words of their own; a file is checked at upload; the job's model counts."""

    batches_path = "/batch/jobs"
    file_prefix = ""
    upload_status = 422
    statuses: Mapping[str, str] = {
        "validating": "QUEUED",
        "in_progress": "RUNNING",
        "finalizing": "RUNNING",
        "completed": "SUCCESS",
        "failed": "FAILED",
        "expired": "TIMEOUT_EXCEEDED",
        "cancelling": "CANCELLATION_REQUESTED",
        "cancelled": "CANCELLED",
    }

    def new_batch_id(self) -> str:
        """Return a UUID."""
        return str(uuid.uuid4())

    def asked(self, data: Mapping[str, Any], models: Collection[str]) -> BatchOrder:
        """Read a create call."""
        files, model, endpoint = data.get("input_files"), data.get("model"), data.get("endpoint")
        if not isinstance(files, list) or len(files) != 1 or not isinstance(files[0], str):
            raise ApiError(422, "input_files: the demo provider takes a list of one file", param="input_files")
        if endpoint != CHAT:
            raise ApiError(422, f"endpoint: the demo provider knows {CHAT} only", param="endpoint")
        if model not in models:
            raise ApiError(422, "You do not have access to the model", param="model")
        hours = data.get("timeout_hours", 24)
        if not isinstance(hours, int) or not 1 <= hours <= 168:
            raise ApiError(422, "timeout_hours: Input should be from 1 to 168", param="timeout_hours")
        metadata = read_metadata(data.get("metadata"))
        return BatchOrder(files[0], CHAT, str(hours), window_s=hours * _HOUR, metadata=metadata, model=model)

    def line_check(self, models: Collection[str]) -> LineCheck:
        """Return what checks the lines."""
        return _MistralCheck()

    def body(self, batch: Batch, line: dict[str, Any]) -> dict[str, Any]:
        """Return the body with the job's model, whatever model it names."""
        return {**super().body(batch, line), "model": batch.model}

    def file(self, record: StoredFile, path: Path, *, usable: bool) -> dict[str, Any]:
        """Return a file with the number of its lines."""
        told = super().file(record, path, usable=usable)
        with path.open("rb") as file:
            lines = sum(1 for _ in file)
        kind = "batch_result" if record.purpose == "batch_output" else "batch_request"
        return {**told, "expires_at": None, "purpose": "batch", "num_lines": lines, "sample_type": kind}

    def batch(self, view: ToldBatch) -> dict[str, Any]:
        """Return a job."""
        batch, stand = view.batch, view.stand
        completed, failed = view.completed, view.failed
        return {
            "id": batch.id,
            "object": "batch",
            "input_files": [batch.input_ref],
            "metadata": batch.metadata or {},
            "endpoint": batch.endpoint,
            "model": batch.model,
            "output_file": view.output_ref,
            "error_file": view.error_ref,
            "errors": self.errors(view),
            "status": self.statuses.get(view.status, view.status.upper()),
            "created_at": int(batch.created),
            "total_requests": view.total,
            "completed_requests": None if completed is None or failed is None else completed + failed,
            "succeeded_requests": completed,
            "failed_requests": failed,
            "started_at": _seconds(stand.times.get("in_progress")),
            "completed_at": _seconds(stand.times.get(stand.status)) if stand.ended else None,
        }

    def errors(self, view: ToldBatch) -> Any:
        """Return what went wrong with how many lines."""
        if view.batch.problem is not None and view.stand.ended:
            return [{"message": view.batch.problem.message, "count": 1}]
        return [{"message": "Some requests failed.", "count": view.failed}] if view.stand.ended and view.failed else []

    def select(self, query: Mapping[str, str], batches: list[Batch]) -> tuple[list[Batch], dict[str, Any]]:
        """Return a page by its number, filtered by metadata."""
        wanted = query.get("metadata")
        if wanted is not None:
            try:
                pairs = read_metadata(orjson.loads(wanted)) or {}
            except orjson.JSONDecodeError:
                raise bad("metadata must be JSON", "metadata") from None
            batches = [batch for batch in batches if pairs.items() <= (batch.metadata or {}).items()]
        size = whole_number(query, "page_size", default=100, low=1, high=1_000)
        page = whole_number(query, "page", default=0, low=0, high=1_000_000)
        return batches[page * size : (page + 1) * size], {"total": len(batches)}

    def page(self, told: Sequence[dict[str, Any]], beside: dict[str, Any]) -> Any:
        """Return a page with the total."""
        return {"object": "list", "data": told, "total": len(told), **beside}

    def line(self, result: LineResult) -> dict[str, Any]:
        """Return a line; the body of a failure is a JSON string."""
        answer = result.answer
        if answer is None or answer.ok:
            return openai_line(result)
        error = orjson.loads(answer.body).get("error", {})
        told = {"object": "error", **error, "raw_status_code": answer.status}
        response = {**response_of(result, answer), "body": orjson.dumps(told).decode()}
        return {**openai_line(result), "response": response}


def _seconds(at: float | None) -> int | None:
    return None if at is None else int(at)


class Together(DemoDialect):
    """Upper-case statuses, texts for times, no counts; lists are arrays, and never have a second page."""

    upload_path = "/files/upload"
    purpose = "batch-api"
    created_status = 201

    def new_batch_id(self) -> str:
        """Return a UUID."""
        return str(uuid.uuid4())

    def line_check(self, models: Collection[str]) -> LineCheck:
        """Return what checks the lines."""
        return _LineOfBody(models, needs_id=True)

    def batch(self, view: ToldBatch) -> dict[str, Any]:
        """Return a job."""
        batch, stand = view.batch, view.stand
        total = batch.total or 1
        return {
            "id": batch.id,
            "user_id": "demo",
            "input_file_id": batch.input_ref,
            "file_size_bytes": 0,
            "status": {"cancelling": "CANCELING"}.get(view.status, view.status.upper()),
            "job_deadline": _iso(batch.expires),
            "created_at": _iso(batch.created),
            "endpoint": batch.endpoint,
            "progress": 100 if view.status == "completed" else round(100 * stand.done / total),
            "model_id": batch.model,
            "output_file_id": view.output_ref,
            "error_file_id": view.error_ref,
            "error": self.errors(view),
            "completed_at": _iso(stand.times.get(stand.status)) if stand.ended else None,
        }

    def errors(self, view: ToldBatch) -> Any:
        """Return what is wrong as one text, without a number of a line."""
        problem = view.batch.problem
        return None if problem is None or not view.stand.ended else problem.message

    def created(self, told: dict[str, Any]) -> Any:
        """Return the job inside an object."""
        return {"job": told}

    def select(self, query: Mapping[str, str], batches: list[Batch]) -> tuple[list[Batch], dict[str, Any]]:
        """Return all."""
        return batches, {}

    def page(self, told: Sequence[dict[str, Any]], beside: dict[str, Any]) -> Any:
        """Return an array of batches; files are in an object."""
        return {"data": told} if "has_more" in beside else told

    def line(self, result: LineResult) -> dict[str, Any]:
        """Return a line; a failure has no response."""
        line = openai_line(result)
        answer = result.answer
        if answer is None or answer.ok:
            return {name: value for name, value in line.items() if value is not None or name == "custom_id"}
        error = orjson.loads(answer.body).get("error", {})
        code = "batch_client_error" if answer.status < 500 else "batch_server_error"
        return {
            "id": line["id"],
            "custom_id": result.custom_id,
            "error": {"code": code, "message": error.get("message")},
        }


class DeepInfra(DemoDialect):
    """As OpenAI; a failed line has a code and no response."""

    def line(self, result: LineResult) -> dict[str, Any]:
        """Return a line."""
        answer = result.answer
        # Only a failure with an HTTP status is written in a way of its own.
        if answer is None or answer.ok or answer.status == 0:
            return openai_line(result)
        message = orjson.loads(answer.body).get("error", {}).get("message")
        code = {429: "rate_limit_exceeded"}.get(answer.status, "invalid_request")
        error = {"code": code if answer.status < 500 else "server_error", "message": message}
        return {**openai_line(result), "response": None, "error": error}


class Doubleword(DemoDialect):
    """Checks a file at upload; leaves out what is null; gives out results of a batch that still runs.

    A batch all of whose lines failed has failed, with files. None expires. An id has at most 64 visible ASCII bytes.
    """

    file_prefix = ""
    created_status = 201
    upload_status = 400
    expires = False
    partial_results = True
    windows: Mapping[str, float] = {"24h": 24 * _HOUR, "1h": _HOUR}

    def new_batch_id(self) -> str:
        """Return a UUID."""
        return str(uuid.uuid4())

    def line_check(self, models: Collection[str]) -> LineCheck:
        """Return what checks the lines."""
        check = OpenAICheck(self.urls(), models)

        def checked(number: int, line: dict[str, Any]) -> FileProblem | None:
            custom_id = line.get("custom_id")
            if isinstance(custom_id, str) and not (
                len(custom_id) <= 64 and custom_id.isascii() and custom_id.isprintable()
            ):
                return FileProblem(
                    "invalid_request", "custom_id must be at most 64 visible characters", "custom_id", number
                )
            problem = check(number, line)
            # Several models in a file are fine here.
            return None if problem is not None and problem.code == "mismatched_model" else problem

        return checked

    def batch(self, view: ToldBatch) -> dict[str, Any]:
        """Return a batch without what is null."""
        told = super().batch(view)
        # This provider tells a batch as failed if not one of its lines was answered.
        if view.status == "completed" and view.completed == 0:
            told["status"] = "failed"
        return {name: value for name, value in told.items() if value is not None}


class Scaleway(DemoDialect):
    """No Files API: input and results are objects in the customer's bucket. A line's id is the batch's."""

    has_files = False

    def new_batch_id(self) -> str:
        """Return a UUID."""
        return str(uuid.uuid4())

    def place(self, files: FileStore) -> FilePlace:
        """Return the customer's bucket."""
        return DemoBucket()

    def batch(self, view: ToldBatch) -> dict[str, Any]:
        """Return a batch without metadata."""
        told = super().batch(view)
        return {name: value for name, value in told.items() if name not in {"metadata", "usage", "model"}}

    def line(self, result: LineResult) -> dict[str, Any]:
        """Return a line with the batch's id."""
        return {**openai_line(result), "id": result.batch_id}


_DIALECTS = {
    "openai": DemoDialect,
    "azure": Azure,
    "groq": Groq,
    "mistral": Mistral,
    "together": Together,
    "deepinfra": DeepInfra,
    "doubleword": Doubleword,
    "scaleway": Scaleway,
}


def make_dialect(name: str) -> DemoDialect:
    """Return the dialect of a name in `DIALECTS`."""
    return _DIALECTS[name]()
