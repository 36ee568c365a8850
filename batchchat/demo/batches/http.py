"""JSON over HTTP as OpenAI's API speaks it: errors, bodies, pages of lists."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import anyio
import orjson
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.types import Receive, Scope, Send

from batchchat.demo.request import ApiError

Abort = Callable[[Scope, Receive], Awaitable[None]]
"""Cuts the connection of a request."""

Handler = Callable[[Request], Awaitable[Response]]


class HasId(Protocol):
    """What a list is made of."""

    @property
    def id(self) -> str:
        """The id that `after` names."""


T = TypeVar("T", bound=HasId)


class Cut(Response):
    """No answer: the connection is cut."""

    def __init__(self, abort: Abort) -> None:
        super().__init__()
        self._abort = abort

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Cut the connection."""
        await self._abort(scope, receive)


class Download(FileResponse):
    """A file, or the range of it that is asked for."""

    chunk_size = 1 << 20

    def __init__(self, path: Path) -> None:
        super().__init__(path, media_type="application/octet-stream")


class TornDownload(Response):
    """The first half of a file that is announced whole; then the connection is cut."""

    def __init__(self, path: Path, abort: Abort) -> None:
        super().__init__()
        self._path = path
        self._abort = abort

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send half of the file."""
        content = await anyio.to_thread.run_sync(self._path.read_bytes)
        headers = [(b"content-type", b"application/octet-stream"), (b"content-length", b"%d" % len(content))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        # More is announced than comes, so that the client can tell that it is cut.
        await send({"type": "http.response.body", "body": content[: len(content) // 2], "more_body": True})
        await self._abort(scope, receive)


def json_answer(data: Any, status: int = 200) -> Response:
    """Return data as a JSON answer."""
    return Response(orjson.dumps(data), status, media_type="application/json")


def error_answer(error: ApiError) -> Response:
    """Write an error as OpenAI does; the code is null if there is none."""
    detail = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
    return json_answer({"error": detail}, error.status)


def bad(message: str, param: str | None = None) -> ApiError:
    """Return the error for a request that cannot be understood."""
    return ApiError(400, message, param=param)


def server_error() -> ApiError:
    """Return the error of a server that failed."""
    return ApiError(500, "The server had an error while processing your request.", type="server_error")


async def json_object(request: Request) -> dict[str, Any]:
    """Read the body of a request. Raises ApiError (400) if it is no JSON object."""
    try:
        data = orjson.loads(await request.body())
    except orjson.JSONDecodeError as error:
        raise bad(f"The body is not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise bad("The body must be a JSON object.")
    return data


def whole_number(query: Mapping[str, str], name: str, *, default: int, low: int, high: int) -> int:
    """Read a whole number of a query. Raises ApiError (400)."""
    text = query.get(name, str(default))
    if not (text.isascii() and text.isdecimal()) or not low <= int(text) <= high:
        raise bad(f"{name} must be a whole number from {low} to {high}", name)
    return int(text)


def page_after(items: Sequence[T], after: str | None, limit: int) -> tuple[list[T], bool]:
    """Return the items after the one with the id `after`, and whether there are more. Raises ApiError (400)."""
    start = 0
    if after is not None:
        found = next((index for index, item in enumerate(items) if item.id == after), None)
        if found is None:
            raise bad(f"after names no object of this list: {after[:100]!r}", "after")
        start = found + 1
    return list(items[start : start + limit]), len(items) > start + limit
