"""A provider's Batch API played from a script, for tests of the services that speak to it."""

from __future__ import annotations

import email.parser
import email.policy
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
import orjson

Target = tuple[str, str]
"""A method, and a path with its query."""


@dataclass
class Options:
    """What a service reads of a job's engine block."""

    service: str | None = None
    window: str | None = None
    bucket: str | None = None
    folder: str | None = None


@dataclass(frozen=True)
class Seen:
    """A request as it came: `body` is JSON, the fields of a form, or None."""

    method: str
    target: str
    body: Any
    headers: Mapping[str, str]

    @property
    def line(self) -> str:
        return f"{self.method} {self.target}"


class Cut(httpx.AsyncByteStream):
    """A body that breaks off."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self.content:
            yield self.content
        raise httpx.RemoteProtocolError("peer closed connection without sending complete message body")


class Turns(list[Any]):
    """Answers that are used up one after the other; the last one stays."""


@dataclass
class Play(httpx.AsyncBaseTransport):
    """Answers by method and target. An answer is JSON, `(status, JSON)`, a response, an exception, or `Turns` of them.

    What the script does not know is an error of the test.
    """

    script: dict[str, Any]
    seen: list[Seen] = field(default_factory=list)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        target = request.url.raw_path.decode()
        content = await request.aread()
        self.seen.append(Seen(request.method, target, _body(request, content), dict(request.headers)))
        line = f"{request.method} {target}"
        assert line in self.script, f"the script has no answer to {line}"
        answer = self.script[line]
        if isinstance(answer, Turns):
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
        if callable(answer):
            answer = answer(request)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, httpx.Response):
            return answer
        status, data = answer if isinstance(answer, tuple) else (200, answer)
        body = data if isinstance(data, bytes) else orjson.dumps(data)
        return httpx.Response(status, content=body)

    @property
    def lines(self) -> list[str]:
        """What was asked for."""
        return [each.line for each in self.seen]

    def bodies(self, line: str) -> list[Any]:
        """The bodies of the requests for one target."""
        return [each.body for each in self.seen if each.line == line]


def _body(request: httpx.Request, content: bytes) -> Any:
    kind = request.headers.get("content-type", "")
    if not content:
        return None
    assert int(request.headers["content-length"]) == len(content)
    if kind == "application/json":
        return orjson.loads(content)
    whole = b"Content-Type: " + kind.encode() + b"\r\n\r\n" + content
    fields: dict[str, Any] = {}
    for part in email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(whole).walk():
        name, value = part.get_param("name", header="content-disposition"), part.get_payload(decode=True)
        if isinstance(value, bytes):
            file = (part.get_filename(), part.get_content_type(), value)
            fields[str(name)] = file if part.get_filename() else value.decode()
    return fields
