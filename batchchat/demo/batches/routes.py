"""The Batch API of the demo provider: its routes, its counts.

    POST GET /v1/files          GET DELETE /v1/files/{id}      GET /v1/files/{id}/content
    POST GET /v1/batches        GET /v1/batches/{id}           POST /v1/batches/{id}/cancel

Dialects have paths of their own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from batchchat.dataclass import dataclass
from batchchat.demo.batches.batch_routes import BatchRoutes
from batchchat.demo.batches.context import Context
from batchchat.demo.batches.file_routes import FileRoutes
from batchchat.demo.batches.http import Abort, Handler, error_answer
from batchchat.demo.batches.results import LineAnswer
from batchchat.demo.request import ApiError
from batchchat.demo.server_options import DemoOptions

CheckKey = Callable[[bytes | None], None]
"""Raises ApiError if the value of the header that holds the key is not right."""


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


class BatchApi:
    """The Batch API as HTTP routes."""

    def __init__(
        self, options: DemoOptions, answer: Callable[[bytes], LineAnswer], check_key: CheckKey, abort: Abort
    ) -> None:
        self._context = Context(options, answer, abort)
        self._check_key = check_key
        self._stopped: tuple[BatchStats, dict[str, int]] | None = None
        self._key_header = self._context.dialect.key_header.encode()

    def stop(self) -> None:
        """Stop answering lines, and remove the folder if it is a temporary one. The counts stay."""
        if self._stopped is None:
            # Reading the ids of all lines takes a moment, which a long run is spared.
            self._stopped = self.stats(), self.lines() if self._context.options.track_bodies else {}
            self._context.stop()

    def stats(self) -> BatchStats:
        """Return the counts so far. May be called from any thread."""
        if self._stopped is not None:
            return self._stopped[0]
        context = self._context
        calls, faults = (dict(sorted(each.copy().items())) for each in (context.calls, context.faults.befallen))
        if not context.used:
            return BatchStats(calls, 0, {}, 0, faults)
        batches = context.batches.all()
        by_status = Counter(context.batches.look(batch).status for batch in batches)
        lines = sum(context.batches.lines_run(batch) for batch in batches)
        return BatchStats(calls, len(batches), dict(sorted(by_status.items())), lines, faults)

    def lines(self) -> dict[str, int]:
        """Return how often each `custom_id` was run by the model. May be called from any thread."""
        if self._stopped is not None:
            return self._stopped[1]
        return dict(self._context.batches.ran()) if self._context.used else {}

    def routes(self) -> list[Route]:
        """Return the routes, also under a project's id."""
        dialect = self._context.dialect
        of_files, of_batches = FileRoutes(self._context), BatchRoutes(self._context)
        files, batches = dialect.files_path, dialect.batches_path
        table: list[tuple[str, str, str, Handler]] = [
            ("POST", batches, "create", of_batches.create),
            ("GET", batches, "list", of_batches.list),
            ("GET", batches + "/{id}", "poll", of_batches.look),
            ("POST", batches + "/{id}/cancel", "cancel", of_batches.cancel),
        ]
        if dialect.has_files:
            table += [
                ("POST", dialect.upload_path, "upload", of_files.upload),
                ("GET", files, "files", of_files.list),
                ("GET", files + "/{id}", "file", of_files.look),
                ("DELETE", files + "/{id}", "delete_file", of_files.delete),
                ("GET", files + "/{id}/content", "content", of_files.content),
            ]
        return [
            Route(prefix + path, self._endpoint(call, handler), methods=[method])
            for prefix in ("/v1", "/{project_id}/v1")
            for method, path, call, handler in table
        ]

    def _endpoint(self, call: str, handler: Handler) -> Handler:
        """Return what counts a call, checks the key, and writes errors."""
        context = self._context

        async def endpoint(request: Request) -> Response:
            context.clock.now()
            context.calls[call] += 1
            try:
                headers = request.scope["headers"]
                self._check_key(next((value for name, value in headers if name == self._key_header), None))
                return await handler(request)
            except ApiError as error:
                return error_answer(error)

        return endpoint
