"""One attempt: a request body in, a `Reply` out, over any `httpx.AsyncBaseTransport`.

The client steps past `httpx.AsyncClient`: a transport is called directly, since redirects, cookies and auth flows are not
wanted here and cost more than the exchange itself. Every foreign exception becomes a failure at this border; above it
nobody meets an httpx type.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import TracebackType
from urllib.parse import urlencode

import anyio
import httpx

from batchchat.client.wire import read_reply
from batchchat.providers import Provider
from batchchat.records import ErrorKind, Failure, Reply, Verdict
from batchchat.transport import Exchange, request_sent

CONNECT_TIMEOUT_S = 30.0
MAX_ANSWER_BYTES = 64 * 2**20


class _TooLarge(Exception):
    """An answer's body passed the bound: it is dropped rather than held in memory."""


class ChatClient:
    """Sends chat completion requests to one provider.

    The transport is owned: leaving the client's context closes it. `user_agent` and the provider's headers go with every
    request; the key goes into `Authorization` alone and is masked in every message that comes back.
    """

    def __init__(
        self,
        provider: Provider,
        transport: httpx.AsyncBaseTransport,
        *,
        api_key: str | None,
        request_timeout: float,
        user_agent: str = "batchchat",
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        if provider.base_url is None:
            raise ValueError(f"{provider.name} has no base_url")
        query = f"?{urlencode(provider.extra_query)}" if provider.extra_query else ""
        self._url = httpx.URL(provider.base_url + "/chat/completions" + query)
        headers = {
            "Host": self._url.netloc.decode("ascii"),
            "Accept": "application/json",
            "Content-Type": "application/json",
            "User-Agent": user_agent,
            **provider.headers,
        }
        if api_key is not None:
            headers["Authorization"] = f"Bearer {api_key}"
        self._headers = list(httpx.Headers(headers).raw)
        self._transport = transport
        self._api_key = api_key
        self._timeout = request_timeout
        self._extensions: Mapping[str, object] = {
            "timeout": {"connect": min(CONNECT_TIMEOUT_S, request_timeout), "read": request_timeout}
            | {"write": request_timeout, "pool": request_timeout}
        }
        self._wall_clock = wall_clock
        self._key_bytes = api_key.encode() if api_key else None
        self._exchange = transport if isinstance(transport, Exchange) else None
        self._route = self._exchange.route("POST", self._url, self._headers) if self._exchange else None

    async def __aenter__(self) -> ChatClient:
        await self._transport.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._transport.__aexit__(kind, error, traceback)

    async def send(self, body: bytes, *, timeout: float | None = None) -> Reply:
        """Make one attempt. Ends within the request timeout, or `timeout` if sooner; raises nothing but cancellation."""
        started = anyio.current_time()
        limit = self._timeout if timeout is None else min(timeout, self._timeout)
        reply: Reply | None = None
        with anyio.move_on_after(limit):
            reply = await self._attempt(body)
        if reply is None:
            message = f"no whole answer within {limit:g} s"
            reply = Reply(Verdict.TRANSIENT, failure=Failure(ErrorKind.TIMEOUT, message))
        reply.latency_s = anyio.current_time() - started
        return self._masked(reply)

    async def _attempt(self, body: bytes) -> Reply:
        try:
            if self._exchange is not None and self._route is not None:
                status, headers, content = await self._exchange.exchange(self._route, body, self._timeout)
            else:
                status, headers, content = await self._whole_answer(body)
        except httpx.HTTPError as error:
            return _failed(error)
        except _TooLarge:
            message = f"the answer is larger than {MAX_ANSWER_BYTES // 2**20} MiB"
            return Reply(Verdict.TRANSIENT, failure=Failure(ErrorKind.PROTOCOL, message))
        if self._key_bytes is not None and self._key_bytes in content:
            # A server may repeat what it was sent: the key must not come to rest in a record.
            content = content.replace(self._key_bytes, b"***")
        return read_reply(status, headers, content, now=self._wall_clock())

    async def _whole_answer(self, body: bytes) -> tuple[int, dict[bytes, bytes], bytes]:
        """One exchange over a transport that knows httpx's own seam only."""
        request = httpx.Request(
            "POST",
            self._url,
            headers=[*self._headers, (b"Content-Length", b"%d" % len(body))],
            content=body,
            extensions=dict(self._extensions),
        )
        response = await self._transport.handle_async_request(request)
        try:
            content = await _read_bounded(response)
        finally:
            await response.aclose()
        return response.status_code, {name.lower(): value for name, value in response.headers.raw}, content

    def _masked(self, reply: Reply) -> Reply:
        """Take the key out of a failure's message: a server may repeat what it was sent."""
        if reply.failure is not None and self._api_key and self._api_key in reply.failure.message:
            failure = reply.failure
            reply.failure = Failure(failure.kind, failure.message.replace(self._api_key, "***"), failure.http_status)
        return reply


async def _read_bounded(response: httpx.Response) -> bytes:
    chunks, size = [], 0
    async for chunk in response.aiter_bytes():
        size += len(chunk)
        if size > MAX_ANSWER_BYTES:
            raise _TooLarge
        chunks.append(chunk)
    return b"".join(chunks) if len(chunks) != 1 else chunks[0]


def _failed(error: httpx.HTTPError) -> Reply:
    """Map the transport's exceptions to failures."""
    text = str(error).strip() or type(error).__name__
    sent = request_sent(error)
    if isinstance(error, httpx.ConnectTimeout):
        kind, sent = ErrorKind.CONNECTION, False
        text = f"no connection in time: {text}"
    elif isinstance(error, httpx.TimeoutException):
        kind = ErrorKind.TIMEOUT
        text = f"no answer in time: {text}"
    elif isinstance(error, httpx.ConnectError):
        kind, sent = ErrorKind.CONNECTION, False
        if "CERTIFICATE" in text.upper():
            text += " (the server's certificate is not trusted; provider.ca_file names your own authority's)"
    elif isinstance(error, httpx.RemoteProtocolError | httpx.DecodingError):
        kind = ErrorKind.PROTOCOL
        if isinstance(error, httpx.RemoteProtocolError) and "disconnect" in text.lower():
            kind = ErrorKind.CONNECTION
    else:
        kind = ErrorKind.CONNECTION
    return Reply(Verdict.TRANSIENT, failure=Failure(kind, text), sent=sent)
