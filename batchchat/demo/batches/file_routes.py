"""The routes of files: upload, look, list, download, delete."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import anyio
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from batchchat.demo.batches.batch import Batch
from batchchat.demo.batches.checking import check_file
from batchchat.demo.batches.context import Context
from batchchat.demo.batches.dialects import kept_s
from batchchat.demo.batches.files import StoredFile
from batchchat.demo.batches.http import (
    Cut,
    Download,
    TornDownload,
    bad,
    json_answer,
    page_after,
    server_error,
    whole_number,
)
from batchchat.demo.request import ApiError
from batchchat.demo.response import HTML_PAGE

_FORM_BYTES = 65_536
"""What a form has beside its file is less than this."""


class FileRoutes:
    """Handlers of the routes under /files."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._faults = context.faults

    async def upload(self, request: Request) -> Response:
        """Store a file of a form."""
        limit = self._faults.limit("max_bytes")
        # Refused before it is read, as providers do with what is far too large.
        if int(request.headers.get("content-length", 0)) > limit + _FORM_BYTES:
            raise self._too_large(limit)
        try:
            async with request.form() as form:
                record = await self._uploaded(form, limit)
        except HTTPException as error:
            raise bad(f"The form cannot be read: {error.detail}") from None
        # The file is there, and the client does not know it.
        if self._faults.call("upload_lost"):
            return Cut(self._context.abort)
        return json_answer(await anyio.to_thread.run_sync(self._told, record))

    async def _uploaded(self, form: FormData, limit: int) -> StoredFile:
        file, purpose = form.get("file"), form.get("purpose")
        dialect = self._context.dialect
        if not isinstance(file, UploadFile):
            raise bad("Missing required parameter: 'file'.", "file")
        if purpose != dialect.purpose:
            raise bad(f"The demo provider takes files with purpose '{dialect.purpose}' only.", "purpose")
        filename = str(form.get("file_name") or file.filename or "")
        if not filename.endswith(".jsonl"):
            raise bad("Invalid file format for Batch API. Must be .jsonl", "file")
        if (file.size or 0) > limit:
            raise self._too_large(limit)
        kept = kept_s("expires_after", form.get("expires_after[anchor]"), form.get("expires_after[seconds]"))
        if self._faults.call("upload_500"):
            raise server_error()
        return await anyio.to_thread.run_sync(self._store, file.file, filename, kept)

    def _store(self, content: BinaryIO, filename: str, kept: float) -> StoredFile:
        context, dialect = self._context, self._context.dialect
        files = context.files
        record = files.add(
            files.new_id(dialect.file_prefix),
            content,
            filename=filename,
            purpose=dialect.purpose,
            now=context.clock.now(),
            kept_s=kept,
            slow_s=self._faults.seconds("file_slow") or dialect.slow_s,
        )
        if dialect.upload_status is not None:
            self._check(record, dialect.upload_status)
        return record

    def _check(self, record: StoredFile, status: int) -> None:
        """Delete a file in which something is wrong. Raises ApiError with this status."""
        context = self._context
        check = context.dialect.line_check(context.options.models)
        checked = check_file(
            context.files.path(record.id),
            check,
            max_lines=self._faults.limit("max_lines"),
            bad_text=self._faults.text("bad_text"),
        )
        problem = checked.problem
        if problem is not None:
            context.files.delete(record.id)
            numbered = problem.line is not None and not self._faults.flag("no_line_number")
            where = f"Line {problem.line}: " if numbered else ""
            raise ApiError(status, where + problem.message, param=problem.param, code=problem.code)

    def _too_large(self, limit: int) -> ApiError:
        status = int(self._faults.number("too_large_status") or 413)
        return ApiError(status, f"File is too large. The limit is {limit} bytes.", param="file")

    def _told(self, record: StoredFile) -> dict[str, Any]:
        usable = self._context.clock.now() >= record.usable
        return self._context.dialect.file(record, self._context.files.path(record.id), usable=usable)

    def _found(self, request: Request) -> StoredFile:
        """Return the file that a path names. Raises ApiError (404)."""
        file_id, now = request.path_params["id"], self._context.clock.now()
        record = self._context.files.find(file_id, now)
        uploaded = record is not None and record.purpose != "batch_output"
        if record is None or (uploaded and now < record.created + self._faults.seconds("file_late")):
            raise _no_file(file_id)
        return record

    async def list(self, request: Request) -> Response:
        """List files."""
        query = request.query_params
        purpose, order = query.get("purpose"), query.get("order", "desc")
        limit = whole_number(query, "limit", default=10_000, low=1, high=10_000)
        if order not in {"asc", "desc"}:
            raise bad("order must be asc or desc", "order")
        records = self._context.files.all(self._context.clock.now())
        records = [record for record in records if purpose is None or record.purpose == purpose]
        page, has_more = page_after(records if order == "asc" else records[::-1], query.get("after"), limit)
        told = [self._told(record) for record in page]
        return json_answer(self._context.dialect.page(told, {"has_more": has_more}))

    async def look(self, request: Request) -> Response:
        """Tell about one file."""
        return json_answer(self._told(self._found(request)))

    async def delete(self, request: Request) -> Response:
        """Delete a file."""
        record = self._found(request)
        self._context.files.delete(record.id)
        return json_answer({"id": record.id, "object": "file", "deleted": True})

    async def content(self, request: Request) -> Response:
        """Download a file, spoiled if a fault befalls."""
        partial = await anyio.to_thread.run_sync(self._unfinished, request.path_params["id"])
        if partial is not None:
            return partial
        record, faults = self._found(request), self._faults
        owner = next((batch for batch in self._context.batches.all() if _output_of(batch) == record.id), None)
        if owner is not None and faults.batch("file_gone", owner.number):
            raise _no_file(record.id)
        path = self._context.files.path(record.id)
        if faults.call("download_500"):
            raise server_error()
        if faults.call("download_html"):
            return Response(HTML_PAGE, media_type="text/html")
        if faults.call("download_torn"):
            return TornDownload(path, self._context.abort)
        if faults.call("download_short"):
            return Response(await anyio.to_thread.run_sync(_half, path), media_type="application/octet-stream")
        # A server that knows no ranges sends the whole file from its beginning.
        if faults.flag("no_range"):
            request.scope["headers"] = [pair for pair in request.scope["headers"] if pair[0] != b"range"]
        return Download(path)

    def _unfinished(self, file_id: str) -> Response | None:
        """Return what there is of a file that a batch is still writing, None if no batch is."""
        if not self._context.dialect.partial_results:
            return None
        content = self._context.batches.unfinished(file_id)
        if content is None:
            return None
        return Response(content, media_type="application/x-ndjson", headers={"x-incomplete": "true"})


def _half(path: Path) -> bytes:
    content = path.read_bytes()
    return content[: len(content) // 2]


def _no_file(file_id: str) -> ApiError:
    return ApiError(404, f"No such File object: {file_id}", param="id")


def _output_of(batch: Batch) -> str | None:
    return None if batch.outcome is None else batch.outcome.output_ref
