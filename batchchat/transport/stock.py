"""httpx's own transport, for what the fast path leaves out: proxies, HTTP/2, and event loops other than asyncio's.

Its connection pool is searched at every request, which costs more the more requests run at once. So each concurrent
request borrows a pool of its own, of one connection, and the pools are kept in a stack.
"""

from __future__ import annotations

import importlib.util
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import anyio
import httpx

from batchchat.transport.decoding import ACCEPT_ENCODING, BodyDecoder, decoder_for
from batchchat.transport.ending import EARLY_END_S, STALE_END_S
from batchchat.transport.faults import ResponseTooLarge, UntrustedServer, request_sent, tell_sent, untrusted
from batchchat.transport.lean import MAX_RESPONSE_BYTES

_LOOK_S: Final = 0.001
"""How long a kept connection is listened to before it carries another request: one turn of the event loop or two."""
_LANE: Final = httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=60.0)
_SHARED: Final = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=60.0)


class _Lane:
    """A pool of one connection. `kept` tells that it has carried an answer, `streamed` that the last was a stream."""

    __slots__ = ("free_at", "kept", "streamed", "transport")

    def __init__(self, transport: httpx.AsyncHTTPTransport) -> None:
        self.transport = transport
        self.kept = self.streamed = False
        self.free_at = 0.0

    @property
    def unread(self) -> bytes:
        """What came behind the end of the last answer, without the line breaks that some servers send.

        httpx does not tell, and its parser would take these bytes for the answer to the next request.
        """
        connection = self._connection()
        data: bytes = connection._h11_state.trailing_data[0] if connection is not None else b""  # noqa: SLF001
        return data.strip(b"\r\n")

    async def listen(self) -> bytes | None:
        """Return what a kept connection brings before it is asked anything: None for nothing, empty if it has ended.

        httpx asks the socket alone. Bytes that the event loop or TLS has taken from there already are seen by reading.
        """
        import httpcore  # with its first use: a process that takes the fast path needs none

        connection = self._connection()
        if connection is None:
            return None
        try:
            data: bytes = await connection._network_stream.read(64, timeout=_LOOK_S)  # noqa: SLF001
        except httpcore.ReadTimeout:
            return None
        except (httpcore.NetworkError, anyio.ClosedResourceError):
            return b""
        return data

    def _connection(self) -> Any:
        """Return httpcore's HTTP/1.1 connection: below the one to the host, or to a proxy before it.

        A version of httpcore that is built otherwise has none, and tells nothing.
        """
        pool = getattr(self.transport, "_pool", None)
        for connection in getattr(pool, "connections", ()):
            inner = connection
            while inner is not None and not hasattr(inner, "_h11_state"):
                inner = getattr(inner, "_connection", None)
            if inner is not None and hasattr(inner, "_network_stream"):
                return inner
        return None


class StockTransport(httpx.AsyncBaseTransport):
    """`httpx.AsyncHTTPTransport` under many concurrent requests, with bounded responses.

    `verify` is the context for https; without one no server is trusted. `proxy` is the proxy's URL. With `http2` (needs
    the `h2` package) all requests share one pool, whose connections carry many at once. Raises ImportError if a
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
            raise ImportError("HTTP/2 needs the 'h2' package (pip install h2)")
        self._verify = verify or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._proxy = proxy
        self._http2 = http2
        self._max_response_bytes = max_response_bytes
        self._keeps = self._keeps_streams = True
        self._lanes: list[_Lane] = []
        self._idle: list[_Lane] = [self._lane()]

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request and return its response as soon as its head is there."""
        # httpx would ask for `br` and `zstd` too if their packages are there, and they are not bounded here.
        if request.headers.get("accept-encoding", "identity") != "identity":
            request.headers["accept-encoding"] = ACCEPT_ENCODING.decode()
        lane = self._idle[-1] if self._http2 else self._idle.pop() if self._idle else self._lane()
        try:
            response = await self._sent(lane, request)
            decoder = decoder_for(response.headers.get("content-encoding", "").encode("latin-1"))
        except BaseException as error:
            lane.kept = False  # httpx closes what failed
            self._give_back(lane)
            if isinstance(error, httpx.ConnectError) and untrusted(error):
                raise tell_sent(UntrustedServer(str(error), request=request), sent=False) from error
            if isinstance(error, httpx.RequestError):
                error.request = request
                tell_sent(error, request_sent(error))
            raise
        headers = response.headers.raw
        if decoder is not None:
            headers = [field for field in headers if field[0].lower() not in {b"content-encoding", b"content-length"}]
        lane.streamed = response.headers.get("content-type", "").lower().startswith("text/event-stream")
        body = _BoundedBody(response, decoder, self._max_response_bytes, lambda: self._finish(lane))
        return httpx.Response(
            response.status_code, headers=headers, stream=body, extensions=response.extensions, request=request
        )

    async def aclose(self) -> None:
        """Close every connection."""
        for lane in self._lanes:
            await lane.transport.aclose()

    async def _sent(self, lane: _Lane, request: httpx.Request) -> httpx.Response:
        """Send a request; again, once, if a kept connection ends before it is answered: the server had closed it."""
        # HTTP/2 tells in its frames whether a request was taken (GOAWAY), and httpcore goes by them.
        if self._http2 or not lane.kept:
            return await _carried(lane.transport, request)
        if (heard := await lane.listen()) is not None:
            if heard.strip(b"\r\n"):
                self._keeps = False
            lane.kept = False
            await lane.transport.aclose()
            # As for the fast path: a server that closes after each stream will close the next one too.
            if not heard and lane.streamed and anyio.current_time() - lane.free_at < EARLY_END_S:
                self._keeps_streams = False
            return await _carried(lane.transport, request)
        opened, started, outer = False, anyio.current_time(), request.extensions.get("trace")

        async def trace(event: str, details: object) -> None:
            nonlocal opened
            opened = opened or event == "connection.connect_tcp.started"
            if outer is not None:
                await outer(event, details)

        request.extensions = {**request.extensions, "trace": trace}
        soon = started - lane.free_at < EARLY_END_S
        try:
            response = await _carried(lane.transport, request)
        except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
            # On a new connection, or late, the request may have been received: it is not for us to send it twice.
            if opened or anyio.current_time() - started > STALE_END_S:
                raise
            self._keeps_streams = self._keeps_streams and not lane.streamed
            return await _carried(lane.transport, request)
        if opened and soon:  # httpx has seen the end of the kept connection itself
            self._keeps_streams = self._keeps_streams and not lane.streamed
        return response

    async def _finish(self, lane: _Lane) -> None:
        """Take a lane back whose answer is read, or given up. Its connection is closed if it cannot be trusted."""
        if not self._http2:
            if lane.unread:
                self._keeps = False
            lane.kept = self._keeps and (self._keeps_streams or not lane.streamed)
            lane.free_at = anyio.current_time()
            if not lane.kept:
                # Cancelled in the middle, the connection would stay open until the process ends.
                with anyio.CancelScope(shield=True):
                    await lane.transport.aclose()
        self._give_back(lane)

    def _lane(self) -> _Lane:
        lane = _Lane(
            httpx.AsyncHTTPTransport(
                verify=self._verify,
                proxy=self._proxy,
                http2=self._http2,
                limits=_SHARED if self._http2 else _LANE,
                trust_env=False,
            )
        )
        self._lanes.append(lane)
        return lane

    def _give_back(self, lane: _Lane) -> None:
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
        release: Callable[[], Awaitable[None]],
    ) -> None:
        self._response = response
        self._decoder = decoder
        self._room = room
        self._release: Callable[[], Awaitable[None]] | None = release

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
                await release()
