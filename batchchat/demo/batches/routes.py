"""The HTTP routes of the Batch API.

POST GET /v1/files          GET DELETE /v1/files/{id}      GET /v1/files/{id}/content
POST GET /v1/batches        GET /v1/batches/{id}           POST /v1/batches/{id}/cancel
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import anyio
import anyio.lowlevel
import orjson
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import FileResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from batchchat.demo.batches.batches import Batch, Batches, Request, Stand, Writing, queue_problem
from batchchat.demo.batches.checking import Checked, Problem, check_file
from batchchat.demo.batches.clock import EpochClock
from batchchat.demo.batches.dialects import BatchView, Dialect, make_dialect
from batchchat.demo.batches.faults import BatchFaults
from batchchat.demo.batches.files import KEPT_S, FileStore, StoredFile
from batchchat.demo.batches.results import LineAnswer
from batchchat.demo.batches.work import AnswerLine
from batchchat.demo.request import ApiError
from batchchat.demo.response import HTML_PAGE
from batchchat.demo.server_options import DemoOptions

CHAT = "/v1/chat/completions"
_PATIENCE_S = 0.25
"""How long a poll waits for a batch whose time is over and whose lines are not answered yet: most are within it."""

_MIN_KEPT_S = 3_600
_MAX_METADATA, _MAX_KEY, _MAX_VALUE = 16, 64, 512

Abort = Callable[[Scope, Receive], Awaitable[None]]
"""Cuts the connection of a request."""


@dataclass(frozen=True, slots=True)
class BatchStats:
    """Counts of the Batch API since the start of this server.

    `calls` counts requests by what they ask for: upload, files, file, content, delete_file, create, list, poll, cancel.
    `created` counts batches that were made, also those whose answer was lost; `by_status` counts them as they stand
    now. `lines` counts lines that the model ran: what a client pays. `faults` counts what befell calls and lines, by
    name.
    """

    calls: Mapping[str, int]
    created: int
    by_status: Mapping[str, int]
    lines: int
    faults: Mapping[str, int]


class Cut(Response):
    """No answer: the connection is cut."""

    def __init__(self, abort: Abort) -> None:
        super().__init__()
        self._abort = abort

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Cut the connection."""
        await self._abort(scope, receive)


class _Download(FileResponse):
    chunk_size = 1 << 20


class _TornDownload(Response):
    """The beginning of a file that is announced whole; then the connection is cut."""

    def __init__(self, path: Path, abort: Abort) -> None:
        super().__init__()
        self._path = path
        self._abort = abort

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send half of the file."""
        content = await anyio.to_thread.run_sync(self._path.read_bytes)
        headers = [(b"content-type", b"application/octet-stream"), (b"content-length", b"%d" % len(content))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content[: len(content) // 2], "more_body": True})
        await anyio.lowlevel.checkpoint()
        await self._abort(scope, receive)


class BatchApi:
    """The Batch API as HTTP routes."""

    def __init__(
        self,
        options: DemoOptions,
        answer: Callable[[bytes], LineAnswer],
        check: Callable[[Scope], None],
        abort: Abort,
    ) -> None:
        self._options = options
        self._answer_body = answer
        self._check_access = check
        self._abort = abort
        self._faults = BatchFaults(options.batch.faults, options.seed)
        self._dialect: Dialect = make_dialect(options.batch.dialect)
        self._clock = EpochClock()
        self._calls: Counter[str] = Counter()
        self._opened: tuple[FileStore, Batches] | None = None

    def _open(self) -> tuple[FileStore, Batches]:
        """Open the folder, or make a temporary one, when the first request comes."""
        if self._opened is None:
            folder = self._options.batch.folder
            if folder is None:
                folder = Path(tempfile.mkdtemp(prefix="batchchat-demo-"))
                weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            files = FileStore(folder / "files")
            writing = Writing(self._dialect.line, self._answering)
            batches = Batches(
                self._options.batch,
                faults=self._faults,
                folder=folder,
                files=files,
                writing=writing,
                now=self._clock.now,
            )
            self._opened = files, batches
        return self._opened

    @property
    def _files(self) -> FileStore:
        return self._open()[0]

    @property
    def _batches(self) -> Batches:
        return self._open()[1]

    def stop(self) -> None:
        """Stop answering lines."""
        if self._opened is not None:
            self._opened[1].stop()

    def stats(self) -> BatchStats:
        """Return the counts so far. May be called from any thread."""
        if self._opened is None:
            return BatchStats({}, 0, {}, 0, {})
        batches = self._batches.all()
        by_status = Counter(self._batches.look(batch).status for batch in batches)
        return BatchStats(
            calls=dict(sorted(self._calls.copy().items())),
            created=len(batches),
            by_status=dict(sorted(by_status.items())),
            lines=sum(self._batches.lines_run(batch) for batch in batches),
            faults=dict(sorted(self._faults.befallen.copy().items())),
        )

    def lines(self) -> dict[str, int]:
        """Return how often each `custom_id` was run by the model. May be called from any thread."""
        return {} if self._opened is None else dict(self._batches.ran())

    def routes(self) -> list[Route]:
        """Return the routes, also under a project's id."""
        paths = self._dialect.paths
        files, upload, batches = paths["files"], paths["upload"], paths["batches"]
        table: list[tuple[str, str, str, Callable[[HttpRequest], Awaitable[Response]]]] = [
            ("POST", upload, "upload", self._upload),
            ("GET", files, "files", self._list_files),
            ("GET", files + "/{id}", "file", self._file),
            ("DELETE", files + "/{id}", "delete_file", self._delete_file),
            ("GET", files + "/{id}/content", "content", self._content),
            ("POST", batches, "create", self._create),
            ("GET", batches, "list", self._list),
            ("GET", batches + "/{id}", "poll", self._poll),
            ("POST", batches + "/{id}/cancel", "cancel", self._cancel),
        ]
        return [
            Route(prefix + path, self._endpoint(call, handler), methods=[method])
            for prefix in ("/v1", "/{project_id}/v1")
            for method, path, call, handler in table
        ]

    def _endpoint(
        self, call: str, handler: Callable[[HttpRequest], Awaitable[Response]]
    ) -> Callable[[HttpRequest], Awaitable[Response]]:
        async def endpoint(request: HttpRequest) -> Response:
            self._clock.now()
            self._calls[call] += 1
            try:
                self._check_access(request.scope)
                return await handler(request)
            except ApiError as error:
                return _error(error)

        return endpoint

    # Files

    async def _upload(self, request: HttpRequest) -> Response:
        limit = self._faults.limit("max_bytes")
        # A part's headers and the other fields take less than this.
        if int(request.headers.get("content-length", 0)) > limit + 65_536:
            raise self._too_large(limit)
        try:
            async with request.form() as form:
                file, purpose = form.get("file"), form.get("purpose")
                if not isinstance(file, UploadFile):
                    raise _bad("Missing required parameter: 'file'.", "file")
                if not isinstance(purpose, str) or purpose not in {"batch", "batch-api"}:
                    raise _bad("The demo provider takes files with purpose 'batch' only.", "purpose")
                filename = file.filename or ""
                if not filename.endswith(".jsonl"):
                    raise _bad("Invalid file format for Batch API. Must be .jsonl", "file")
                if (file.size or 0) > limit:
                    raise self._too_large(limit)
                fields = {key: value for key, value in form.items() if isinstance(value, str)}
                kept_s = _kept_s(
                    "expires_after", fields.get("expires_after[anchor]"), fields.get("expires_after[seconds]")
                )
                if self._faults.call("upload_500"):
                    raise _server_error()
                record = await anyio.to_thread.run_sync(self._store, file.file, filename, purpose, kept_s)
        except HTTPException as error:
            raise _bad(f"The form cannot be read: {error.detail}", None) from None
        if self._faults.call("upload_lost"):
            return Cut(self._abort)
        return _json(self._told_file(record))

    def _store(self, content: BinaryIO, filename: str, purpose: str, kept_s: float) -> StoredFile:
        files = self._files
        return files.add(
            files.new_id(self._dialect.id_prefix),
            content,
            filename=filename,
            purpose=purpose,
            now=self._clock.now(),
            kept_s=kept_s,
            slow_s=self._faults.seconds("file_slow"),
        )

    def _too_large(self, limit: int) -> ApiError:
        status = int(self._faults.number("too_large_status") or 413)
        return ApiError(status, f"File is too large. The limit is {limit} bytes.", param="file")

    def _told_file(self, record: StoredFile) -> dict[str, Any]:
        return self._dialect.file(record, usable=self._clock.now() >= record.usable)

    def _found_file(self, request: HttpRequest) -> StoredFile:
        """Return the file that a path names. Raises ApiError (404)."""
        file_id, now = request.path_params["id"], self._clock.now()
        record = self._files.find(file_id, now)
        if record is None or now < record.created + self._faults.seconds("file_late") * (record.purpose == "batch"):
            raise ApiError(404, f"No such File object: {file_id}", param="id")
        return record

    async def _list_files(self, request: HttpRequest) -> Response:
        purpose, order = request.query_params.get("purpose"), request.query_params.get("order", "desc")
        limit = _limit(request, default=10_000, most=10_000)
        records = [
            record for record in self._files.all(self._clock.now()) if purpose is None or record.purpose == purpose
        ]
        if order == "desc":
            records.reverse()
        elif order != "asc":
            raise _bad("order must be asc or desc", "order")
        page, has_more = _page(records, request.query_params.get("after"), limit)
        return _json(self._dialect.page([self._told_file(record) for record in page], has_more=has_more))

    async def _file(self, request: HttpRequest) -> Response:
        return _json(self._told_file(self._found_file(request)))

    async def _delete_file(self, request: HttpRequest) -> Response:
        record = self._found_file(request)
        self._files.delete(record.id)
        return _json({"id": record.id, "object": "file", "deleted": True})

    async def _content(self, request: HttpRequest) -> Response:
        record, faults = self._found_file(request), self._faults
        owner = next((batch for batch in self._batches.all() if _output_of(batch) == record.id), None)
        if owner is not None and faults.batch("file_gone", owner.number):
            raise ApiError(404, f"No such File object: {record.id}", param="id")
        path = self._files.path(record.id)
        if faults.call("download_500"):
            raise _server_error()
        if faults.call("download_html"):
            return Response(HTML_PAGE, media_type="text/html")
        if faults.call("download_torn"):
            return _TornDownload(path, self._abort)
        if faults.call("download_short"):
            content = await anyio.to_thread.run_sync(path.read_bytes)
            return Response(content[: len(content) // 2], media_type="application/octet-stream")
        if faults.flag("no_range"):
            request.scope["headers"] = [pair for pair in request.scope["headers"] if pair[0] != b"range"]
        return _Download(path, media_type="application/octet-stream")

    # Batches

    async def _create(self, request: HttpRequest) -> Response:
        asked = self._asked(await _json_object(request))
        faults = self._faults
        if faults.call("create_dropped"):
            return Cut(self._abort)
        if faults.call("create_503"):
            raise ApiError(503, "The service is overloaded, slow down.", type="server_error")
        if faults.call("create_402"):
            raise ApiError(402, "There is no credit left.", type="insufficient_quota", code="insufficient_credit")
        for status in (429, 400):
            if faults.call(f"create_{status}"):
                raise self._queue_error(status, None)
        batch = await anyio.to_thread.run_sync(self._make, asked)
        if faults.batch("create_lost", batch.number):
            faults.befallen["create_lost"] += 1
            return Cut(self._abort)
        if faults.batch("create_500", batch.number):
            faults.befallen["create_500"] += 1
            raise _server_error()
        await anyio.sleep(faults.seconds("create_slow"))
        told = self._tell(batch, Stand("validating") if batch.problem else self._batches.look(batch))
        return _json(self._dialect.created(told), self._dialect.created_status)

    def _asked(self, data: dict[str, Any]) -> Request:
        """Read a create call. Raises ApiError (400)."""
        input_ref, endpoint, window = (data.get(key) for key in ("input_file_id", "endpoint", "completion_window"))
        for name, value in (("input_file_id", input_ref), ("endpoint", endpoint), ("completion_window", window)):
            if not isinstance(value, str) or not value:
                raise _bad(f"Missing required parameter: '{name}'.", name)
        if endpoint != CHAT:
            raise _bad(f"Invalid value: the demo provider's batches have the endpoint {CHAT} only.", "endpoint")
        if window != "24h":
            raise _bad("Invalid value: the completion window must be '24h'.", "completion_window")
        later = data.get("output_expires_after") or {}
        kept_s = _kept_s("output_expires_after", later.get("anchor"), later.get("seconds"))
        return Request(str(input_ref), CHAT, "24h", _metadata(data.get("metadata")), kept_s)

    def _make(self, asked: Request) -> Batch:
        now = self._clock.now()
        record = self._files.find(asked.input_ref, now)
        if record is not None and now < record.usable:
            raise _bad("The file is not processed yet.", "input_file_id")
        source = None
        if record is None or record.purpose == "batch_output":
            message = f"The file {asked.input_ref[:100]!r} does not exist, or has another purpose."
            checked = Checked.bad(Problem("invalid_request", message, "file_id"))
        else:
            source = self._files.path(record.id)
            check = self._dialect.line_check(asked.endpoint, self._options.models)
            checked = check_file(
                source, check, max_lines=self._faults.limit("max_lines"), bad_text=self._faults.text("bad_text")
            )
        status = self._faults.number("queue_status")
        full = self._batches.queue_problem(checked) if status else None
        if status and full is not None:
            raise self._queue_error(int(status), full)
        return self._batches.create(asked, source, checked)

    def _queue_error(self, status: int, problem: Problem | None) -> ApiError:
        problem = problem or queue_problem(self._options.models[0], self._faults.number("queue_tokens"))
        return ApiError(status, problem.message, type="tokens", code=problem.code)

    def _answering(self, batch: Batch) -> AnswerLine:
        def answer(line: dict[str, Any]) -> LineAnswer:
            return self._answer_body(orjson.dumps(line.get("body")))

        return answer

    def _visible(self, batch: Batch | None) -> bool:
        """Tell whether a batch is still kept."""
        if batch is None:
            return False
        return not (self._faults.batch("batch_gone", batch.number) and batch.outcome is not None)

    def _found(self, request: HttpRequest) -> Batch:
        """Return the batch that a path names. Raises ApiError (404)."""
        batch = self._batches.find(request.path_params["id"])
        if batch is None or not self._visible(batch):
            raise ApiError(404, f"No batch found with id '{request.path_params['id']}'.", param="id")
        return batch

    def _tell(self, batch: Batch, stand: Stand) -> dict[str, Any]:
        """Return a batch as the dialect writes it."""
        faults, outcome = self._faults, batch.outcome
        total, completed, failed = self._batches.counts(batch, stand)
        late = self._batches.looked_at_ended[batch.id] <= (faults.number("ids_late") or 0) and bool(
            faults.number("ids_late")
        )
        refs = (None, None) if outcome is None or late else (outcome.output_ref, outcome.error_ref)
        status = stand.status
        if status == "in_progress" and faults.flag("unknown_status"):
            status = "warming_up"
        null = faults.flag("counts_null")
        view = BatchView(
            batch,
            stand,
            status,
            None if null else total,
            None if null else completed,
            None if null else failed,
            *refs,
            line_numbers=not faults.flag("no_line_number"),
        )
        told = self._dialect.batch(view)
        if faults.flag("ids_empty"):
            told.update({name: "" for name in ("output_file_id", "error_file_id") if told.get(name, "") is None})
        if faults.flag("ids_absent"):
            told = {name: value for name, value in told.items() if value is not None}
        return told

    def _looked(self, batches: list[Batch]) -> list[dict[str, Any]]:
        """Move batches on and tell them."""
        self._batches.wait_for_work(batches, _PATIENCE_S)
        told = []
        for batch in batches:
            stand = self._batches.look(batch)
            if not self._visible(batch):
                continue
            self._batches.looked_at[batch.id] += 1
            self._batches.looked_at_ended[batch.id] += stand.ended
            told.append(self._tell(batch, stand))
        return told

    def _fail_poll(self) -> None:
        faults = self._faults
        if faults.call("poll_500"):
            raise _server_error()
        if faults.call("poll_429"):
            raise ApiError(429, "Too many requests.", type="requests", code="rate_limit_exceeded")
        if faults.call("poll_401"):
            raise ApiError(401, "Incorrect API key provided.", code="invalid_api_key")

    async def _poll(self, request: HttpRequest) -> Response:
        self._fail_poll()
        batch = self._found(request)
        if self._batches.looked_at[batch.id] < (self._faults.number("batch_late") or 0):
            self._batches.looked_at[batch.id] += 1
            raise ApiError(404, f"No batch found with id '{batch.id}'.", param="id")
        told = await anyio.to_thread.run_sync(self._looked, [batch])
        return _json(told[0]) if told else _error(ApiError(404, f"No batch found with id '{batch.id}'.", param="id"))

    async def _list(self, request: HttpRequest) -> Response:
        self._fail_poll()
        limit = _limit(request, default=20, most=100)
        youngest = self._clock.now() - self._faults.seconds("list_late")
        batches = [batch for batch in self._batches.all() if batch.created <= youngest and self._visible(batch)]
        page, has_more = _page(batches, request.query_params.get("after"), limit)
        told = await anyio.to_thread.run_sync(self._looked, page)
        return _json(self._dialect.page(told, has_more=has_more))

    async def _cancel(self, request: HttpRequest) -> Response:
        batch = self._found(request)
        if not await anyio.to_thread.run_sync(self._batches.cancel, batch):
            status = self._batches.look(batch).status
            raise ApiError(409, f"Cannot cancel a batch with status '{status}'.")
        return _json((await anyio.to_thread.run_sync(self._looked, [batch]))[0])


def _output_of(batch: Batch) -> str | None:
    return None if batch.outcome is None else batch.outcome.output_ref


def _json(data: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(data), status, media_type="application/json")


def _error(error: ApiError) -> Response:
    """Write an error as OpenAI does; the code is null if there is none."""
    detail = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
    return _json({"error": detail}, error.status)


def _bad(message: str, param: str | None) -> ApiError:
    return ApiError(400, message, param=param)


def _server_error() -> ApiError:
    return ApiError(500, "The server had an error while processing your request.", type="server_error")


async def _json_object(request: HttpRequest) -> dict[str, Any]:
    try:
        data = orjson.loads(await request.body())
    except orjson.JSONDecodeError as error:
        raise _bad(f"The body is not valid JSON: {error}", None) from None
    if not isinstance(data, dict):
        raise _bad("The body must be a JSON object.", None)
    return data


def _limit(request: HttpRequest, *, default: int, most: int) -> int:
    text = request.query_params.get("limit", str(default))
    if not text.isdecimal() or not 1 <= int(text) <= most:
        raise _bad(f"limit must be a whole number from 1 to {most}", "limit")
    return int(text)


def _page(items: list[Any], after: str | None, limit: int) -> tuple[list[Any], bool]:
    """Return the items after the one with the id `after`, and whether there are more. Raises ApiError (400)."""
    start = 0
    if after is not None:
        found = next((index for index, item in enumerate(items) if item.id == after), None)
        if found is None:
            raise _bad(f"after names no object of this list: {after[:100]!r}", "after")
        start = found + 1
    return items[start : start + limit], len(items) > start + limit


def _kept_s(name: str, anchor: Any, seconds: Any) -> float:
    """Read how long a file is to be kept. Raises ApiError (400)."""
    if anchor is None and seconds is None:
        return KEPT_S
    if anchor != "created_at":
        raise _bad(f"{name}.anchor must be 'created_at'", f"{name}[anchor]")
    text = str(seconds)
    if not text.isdecimal() or not _MIN_KEPT_S <= int(text) <= KEPT_S:
        raise _bad(f"{name}.seconds must be a whole number from {_MIN_KEPT_S} to {KEPT_S}", f"{name}[seconds]")
    return int(text)


def _metadata(value: Any) -> dict[str, str] | None:
    """Read the metadata of a batch. Raises ApiError (400)."""
    if value is None:
        return None
    if not isinstance(value, dict) or not all(isinstance(one, str) for one in value.values()):
        raise _bad("metadata must be an object whose values are texts", "metadata")
    if len(value) > _MAX_METADATA or any(len(k) > _MAX_KEY or len(v) > _MAX_VALUE for k, v in value.items()):
        raise _bad(
            f"metadata holds at most {_MAX_METADATA} pairs, keys of {_MAX_KEY} and values of {_MAX_VALUE} characters",
            "metadata",
        )
    return value
