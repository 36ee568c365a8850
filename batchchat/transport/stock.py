"""httpx's own transport, for what the fast path leaves out: proxies, HTTP/2, and event loops other than asyncio's.

Its connection pool is searched at every request, which costs more the more requests run at once. So each concurrent
request borrows a pool of its own, of one connection, and the pools are kept in a stack.
"""

from __future__ import annotations

import importlib.util
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Final

import httpx

from batchchat.transport.decoding import ACCEPT_ENCODING, BodyDecoder, decoder_for
from batchchat.transport.faults import ResponseTooLarge, request_sent, tell_sent
from batchchat.transport.lean import MAX_RESPONSE_BYTES

_LANE: Final = httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=60.0)
_SHARED: Final = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=60.0)


class StockTransport(httpx.AsyncBaseTransport):
    """`httpx.AsyncHTTPTransport` under many concurrent requests, with bounded responses.

    `verify` is the context for https; without one no server is trusted. `proxy` is the proxy's URL. With `http2` (needs
    the `h2` package) all requests share one pool, whose connections carry many at once. Raises ImportError where a
    package is missing, ValueError for a proxy that is not understood.
    """

    def __init__(
        self,
        *,
        verify: ssl.SSLContext | None = None,
        proxy: str | None = None,
        http2: bool = False,
        max_response_bytes: int = MAX_RESPONSE_BYTES,
    ) -> None:
        if http2 and importlib.util.find_spec("h2") is None:
            raise ImportError("HTTP/2 needs the 'h2' package (pip install 'batchchat[http2]')")
        self._verify = verify or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._proxy = proxy
        self._http2 = http2
        self._max_response_bytes = max_response_bytes
        self._lanes: list[httpx.AsyncHTTPTransport] = []
        self._idle: list[httpx.AsyncHTTPTransport] = [self._lane()]

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request and return its response as soon as its head is there."""
        if request.headers.get("accept-encoding", "identity") != "identity":
            request.headers["accept-encoding"] = ACCEPT_ENCODING.decode()
        lane = self._idle[-1] if self._http2 else self._idle.pop() if self._idle else self._lane()
        try:
            response = await _carried(lane, request)
            decoder = decoder_for(response.headers.get("content-encoding", "").encode("latin-1"))
        except BaseException as error:
            self._give_back(lane)
            if isinstance(error, httpx.RequestError):
                error.request = request
                tell_sent(error, request_sent(error))
            raise
        headers = response.headers.raw
        if decoder is not None:
            headers = [field for field in headers if field[0].lower() not in {b"content-encoding", b"content-length"}]
        body = _BoundedBody(response, decoder, self._max_response_bytes, lambda: self._give_back(lane))
        return httpx.Response(
            response.status_code, headers=headers, stream=body, extensions=response.extensions, request=request
        )

    async def aclose(self) -> None:
        """Close every connection."""
        for lane in self._lanes:
            await lane.aclose()

    def _lane(self) -> httpx.AsyncHTTPTransport:
        lane = httpx.AsyncHTTPTransport(
            verify=self._verify,
            proxy=self._proxy,
            http2=self._http2,
            limits=_SHARED if self._http2 else _LANE,
            trust_env=False,
        )
        self._lanes.append(lane)
        return lane

    def _give_back(self, lane: httpx.AsyncHTTPTransport) -> None:
        if not self._http2:
            self._idle.append(lane)


async def _carried(lane: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
    try:
        return await lane.handle_async_request(request)
    except AttributeError as error:
        # A connection that is reset as soon as it is made: anyio then asks uvloop for the peer of no socket.
        if "getpeername" not in str(error):
            raise
        raise httpx.ConnectError("the connection broke as it was made", request=request) from error


class _BoundedBody(httpx.AsyncByteStream):
    """A response's body, decoded, up to a number of bytes. Its connection's lane is free again once it is closed."""

    def __init__(
        self,
        response: httpx.Response,
        decoder: BodyDecoder | None,
        room: int,
        release: Callable[[], None],
    ) -> None:
        self._response = response
        self._decoder = decoder
        self._room = room
        self._release: Callable[[], None] | None = release

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for raw in self._response.stream:  # type: ignore[union-attr]  # it comes from an async transport
            data = raw if self._decoder is None else self._decoder.feed(raw, self._room)
            self._room -= len(data)
            if self._room < 0:
                raise ResponseTooLarge("the response's body is larger than is allowed")
            if data:
                yield data
        if self._decoder is not None:
            self._decoder.finish()

    async def aclose(self) -> None:
        release, self._release = self._release, None
        if release is not None:
            try:
                await self._response.aclose()
            finally:
                release()
