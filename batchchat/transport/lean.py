"""The fast path: HTTP/1.1 over asyncio and httptools, with as little as possible between a body and its answer.

`LeanTransport` is an `httpx.AsyncBaseTransport`, so whatever speaks httpx can stand on it; `exchange` is its short cut
without httpx's objects. Time is the event loop's, which on asyncio is anyio's own.
"""

from __future__ import annotations

import asyncio
import math
import re
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol, TypeVar, runtime_checkable

import httpx

from batchchat.transport.connection import ONE_WRITE_BYTES, Connection
from batchchat.transport.decoding import ACCEPT_ENCODING
from batchchat.transport.dial import AddressBook, Resolver, connect_error, dial, resolve
from batchchat.transport.faults import ended_unanswered, request_sent
from batchchat.transport.incoming import BodySink, Incoming

MAX_RESPONSE_BYTES: Final = 64 * 2**20
"""The longest body, decoded. Chosen: above any answer, also one with log probabilities of all its tokens."""
MAX_HEAD_BYTES: Final = 64 * 2**10
"""The longest head. Servers and proxies send, and take, 8 to 32 KiB: chosen as twice that."""
CONNECT_TIMEOUT_S: Final = 30.0
"""How long a connection may take to be made, TLS included. Chosen: a lost packet is sent again after 1, 3 and 7 s."""
IDLE_TIMEOUT_S: Final = 60.0
"""How long an idle connection is kept. Chosen: servers close theirs after 5 to 75 s (nginx: 75)."""

_DIALS_AT_ONCE: Final = 256
"""How many connections are made at once. Chosen: more would only overflow a server's queue (4,096 on Linux, often 128),
whose lost packets cost a second each."""
_LATE_S: Final = 0.1
"""A sweep that comes so much later than it was due tells that the loop was held up. Chosen."""
_GRACE_S: Final = 0.01
"""How long what has arrived gets to be read then, and the shortest time between two sweeps. Chosen: a turn of the loop
or two."""
_CLOSING_S: Final = 2.0
"""How long closing waits for a TLS peer to say good-bye. Chosen: the end of a run is not to wait for a dead server."""

# RFC 9110, 5.1 and 5.5: a token; no control characters but the tab. RFC 9112, 3: no space in a target.
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_BAD_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_BAD_TARGET = re.compile(rb"[\x00-\x20\x7f-\xff]")

_Outcome = TypeVar("_Outcome")

HeaderTypes = httpx.Headers | Mapping[str, str] | Sequence[tuple[bytes, bytes]]


class Answer(NamedTuple):
    """A whole response: header names in lower case (of a repeated field the last value), the body decoded."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes


class Route:
    """Where requests go and what is the same in all of them, made once by `Exchange.route`."""

    __slots__ = ("head", "origin", "tells_length", "wants_body")

    def __init__(self, origin: Origin, head: bytes, method: bytes) -> None:
        self.origin = origin
        self.head = head
        self.tells_length = method not in {b"GET", b"HEAD"}
        self.wants_body = method != b"HEAD"

    def head_of(self, body: bytes) -> bytes:
        """Return the head of a request with this body."""
        # A GET without a body has no length; a POST without one has length 0 (RFC 9110, 8.6).
        if body or self.tells_length:
            return b"%bContent-Length: %d\r\n\r\n" % (self.head, len(body))
        return self.head + b"\r\n"


@runtime_checkable
class Exchange(Protocol):
    """A transport that can carry a body to its answer without httpx's objects."""

    def route(self, method: str, url: httpx.URL | str, headers: HeaderTypes) -> Route:
        """Prepare for many requests to the same address with the same header fields.

        `Content-Length` is added to each request, `Host` if absent. Raises `httpx.UnsupportedProtocol` for a URL
        that is not http(s), `httpx.LocalProtocolError` for fields that cannot be sent.
        """

    async def exchange(
        self,
        route: Route,
        body: bytes,
        timeout: float | None = None,
        total: float | None = None,
        sink: BodySink | None = None,
    ) -> Answer:
        """Send one request and receive its whole answer.

        `timeout` (seconds) bounds every silence, `total` the whole, connecting included. A successful answer that is an
        event stream goes into `sink`, where one is given, as it comes: the answer's own body is then empty, and what
        goes wrong once the sink is done is no matter. Raises subclasses of `httpx.RequestError`, each of which
        `request_sent` can be asked about, and `StorageError` if this process may open no further file.
        """


class Origin:
    """One scheme, host and port, with its idle connections: the last to come back is the first to go out."""

    def __init__(
        self, owner: LeanTransport, host: str, port: int, tls: ssl.SSLContext | None, resolver: Resolver
    ) -> None:
        self._owner = owner
        self.tls = tls
        self.host = host
        self.where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self.book = AddressBook(host, port, resolver)
        self.idle: dict[Connection, None] = {}
        self._keeps = self._keeps_streams = True

    def take(self) -> Connection | None:
        """Take an idle connection that is fit for a request, if there is one; close those that are not."""
        # Those that came back last go out first: the others may then go idle, and are closed in time.
        while self.idle:
            connection, _ = self.idle.popitem()
            if connection.usable:
                return connection
            connection.look_at_end()
            connection.abort()
        return None

    def keeps(self, *, streamed: bool) -> bool:
        """See `Home.keeps`."""
        return self._keeps and (self._keeps_streams or not streamed)

    def unasked(self) -> None:
        """Keep no connection any longer: on a new one there is nothing to be taken for another request's answer."""
        self._keeps = False
        for connection in list(self.idle):
            connection.abort()

    def closes_after_streams(self) -> None:
        """Keep no connection after a stream any longer."""
        self._keeps_streams = False

    def release(self, connection: Connection) -> None:
        """Keep a connection for the next request."""
        self.idle[connection] = None
        owner = self._owner
        # Compared here, as the next sweep is nearly always sooner.
        if (due := connection.due) < owner._sweep_at:  # noqa: SLF001 - its own pool
            owner.watch(due)

    def awaits(self, connection: Connection) -> None:
        """Look in time at a connection that is due sooner than it was."""
        self._owner.watch(connection.due)

    def forget(self, connection: Connection) -> None:
        """Drop a connection that is closed or closing."""
        self.idle.pop(connection, None)
        self._owner.forget(connection)


class LeanTransport(httpx.AsyncBaseTransport):
    """An HTTP/1.1 transport for asyncio and uvloop; it belongs to the event loop that first uses it.

    `verify` is the context for https, None to refuse https. Connections are opened as needed (how many requests run at
    once is the caller's to limit) and kept for `idle_timeout` seconds. A request on a kept connection that ends before
    any byte of an answer is sent again once on a new one: the server had closed it. Redirects are returned, never
    followed. `max_response_bytes` bounds a decoded body, `max_head_bytes` the status line with the header fields.
    """

    def __init__(
        self,
        *,
        verify: ssl.SSLContext | None = None,
        connect_timeout: float | None = CONNECT_TIMEOUT_S,
        idle_timeout: float = IDLE_TIMEOUT_S,
        max_response_bytes: int = MAX_RESPONSE_BYTES,
        max_head_bytes: int = MAX_HEAD_BYTES,
        resolver: Resolver = resolve,
    ) -> None:
        self._verify = verify
        self._connect_timeout = connect_timeout
        self._idle_timeout = idle_timeout
        self._max_response_bytes = max_response_bytes
        self._max_head_bytes = max_head_bytes
        self._resolver = resolver
        self._origins: dict[tuple[str, str, int], Origin] = {}
        self._connections: set[Connection] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._dials = asyncio.Semaphore(_DIALS_AT_ONCE)
        self._sweep: asyncio.TimerHandle | None = None
        self._sweep_at = math.inf
        self._closed = False

    # The short cut

    def route(self, method: str, url: httpx.URL | str, headers: HeaderTypes) -> Route:
        """See `Exchange.route`."""
        url = httpx.URL(url)
        raw = headers if isinstance(headers, Sequence) else httpx.Headers(headers).raw
        return self._route(method.upper().encode("ascii"), url, raw)

    def exchange(
        self,
        route: Route,
        body: bytes,
        timeout: float | None = None,
        total: float | None = None,
        sink: BodySink | None = None,
    ) -> Coroutine[Any, Any, Answer]:
        """See `Exchange.exchange`."""
        return self._perform(route, body, timeout, self._connect_timeout, total, finish=_answer, sink=sink)

    # httpx's seam

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request. A long or endless response, and an event stream, is returned as soon as its head is there.

        Of `extensions["timeout"]`, `connect` and `read` are obeyed; the latter bounds silence in writing too. A decoded
        response has no `Content-Encoding` and `Content-Length`.
        """
        timeouts: Mapping[str, float | None] = request.extensions.get("timeout", {})
        try:
            route = self._route(request.method.encode("ascii"), request.url, request.headers.raw)
            try:
                body = request.content
            except httpx.RequestNotRead:
                body = await request.aread()
            connect = timeouts.get("connect", self._connect_timeout)
            incoming = await self._perform(route, body, timeouts.get("read"), connect, finish=_itself, streamable=True)
        except httpx.RequestError as error:
            error.request = request
            raise
        headers = incoming.headers
        # These tell of the body as it was on the wire; it is decoded now.
        if incoming.decoder is not None:
            headers = [field for field in headers if field[0].lower() not in {b"content-encoding", b"content-length"}]
        return httpx.Response(
            incoming.status,
            headers=headers,
            stream=httpx.ByteStream(incoming.body) if incoming.complete else _LiveBody(incoming),
            extensions={"http_version": b"HTTP/1.1"},
            request=request,
        )

    async def aclose(self) -> None:
        """Close every connection and wait, for a moment, until the sockets are closed."""
        self._closed = True
        if self._sweep is not None:
            self._sweep.cancel()
        self._sweep, self._sweep_at = None, math.inf
        closing = [connection.closed for connection in self._connections]
        for connection in list(self._connections):
            connection.shut()
        if closing:
            await asyncio.wait(closing, timeout=_CLOSING_S)

    @property
    def connections(self) -> int:
        """How many connections are open, idle ones among them."""
        return len(self._connections)

    # The pool's side

    def watch(self, due: float) -> None:
        """Look at all connections at loop time `due`, or earlier."""
        if due < self._sweep_at and self._loop is not None:
            if self._sweep is not None:
                self._sweep.cancel()
            self._sweep_at = due
            self._sweep = self._loop.call_at(due, self._look_around)

    def forget(self, connection: Connection) -> None:
        """Drop a connection whose socket is closed."""
        self._connections.discard(connection)

    # Inside

    # Every coroutine between the engine and the socket is paid for at each request: `finish` saves one.
    async def _perform(
        self,
        route: Route,
        body: bytes,
        timeout: float | None,
        connect_timeout: float | None,
        total: float | None = None,
        *,
        finish: Callable[[Incoming], _Outcome],
        streamable: bool = False,
        sink: BodySink | None = None,
    ) -> _Outcome:
        silence = math.inf if timeout is None else timeout
        ends_at = math.inf if total is None else asyncio.get_running_loop().time() + total
        connection, kept = route.origin.take(), True
        if connection is None:
            connection, kept = await self._open(route.origin, connect_timeout, ends_at)
        head = route.head_of(body)
        while True:
            loop = connection.loop
            incoming = Incoming(connection, silence, ends_at, sink, streamable=streamable, wants_body=route.wants_body)
            connection.begin(incoming, loop.time())
            # Compared here, as nearly every request is due later than the next sweep: a call less at each.
            if (due := min(connection.quiet_since + silence, ends_at)) < self._sweep_at:
                self.watch(due)
            if sink is not None:
                sink.sent(connection.quiet_since)
            try:
                # One write is one packet or a few, and needs no task to wait for the socket.
                if len(body) <= ONE_WRITE_BYTES:
                    connection.send(head + body)
                else:
                    await connection.send_large(head, body)
                await incoming.waiter
            except BaseException:
                # Cancelled: what still comes on this connection belongs to nobody.
                connection.drop(incoming)
                raise
            # Once a sink has the whole answer, a fault behind it does not make the answer worse.
            if incoming.fault is None or (sink is not None and sink.done):
                return finish(incoming)
            fault = incoming.fault
            # A new connection was not closed by the server's idle timeout. A request that may have been received costs,
            # and is the caller's to repeat.
            if not kept or (request_sent(fault) and not ended_unanswered(fault)):
                raise fault
            if connection.streamed:
                route.origin.closes_after_streams()
            # On a fresh one, as other kept connections may have been closed at the same time.
            connection, kept = await self._open(route.origin, connect_timeout, ends_at, fresh=True)

    async def _open(
        self, origin: Origin, timeout: float | None, ends_at: float, *, fresh: bool = False
    ) -> tuple[Connection, bool]:
        """Return a connection that came back meanwhile (true), or a new one (false), which a `fresh` one always is."""
        # asyncio's own timeout, and one for both bounds: two of anyio's would be a quarter of what a connection costs.
        loop = self._loop = self._loop or asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(None if ends_at == math.inf else ends_at) as limit, self._dials:
                # While this task waited for its turn to dial, another request may have ended.
                connection = None if fresh else origin.take()
                if connection is not None:
                    return connection, True
                if timeout is not None:
                    limit.reschedule(min(ends_at, loop.time() + timeout))
                return await self._dial(origin, loop), False
        except TimeoutError as error:
            origin.book.forget()
            raise connect_error(error, origin.where) from error

    async def _dial(self, origin: Origin, loop: asyncio.AbstractEventLoop) -> Connection:
        self._check_open()
        try:
            sock = await dial(await origin.book.addresses())
            _, connection = await loop.create_connection(
                lambda: Connection(
                    origin,
                    loop,
                    idle_timeout=self._idle_timeout,
                    max_head_bytes=self._max_head_bytes,
                    max_body_bytes=self._max_response_bytes,
                ),
                sock=sock,
                ssl=origin.tls,
                server_hostname=origin.host.rstrip(".") if origin.tls is not None else None,
            )
        except (OSError, EOFError) as error:
            origin.book.forget()
            raise connect_error(error, origin.where) from error
        self._connections.add(connection)
        try:
            self._check_open()
        except RuntimeError:
            connection.abort()
            raise
        return connection

    def _check_open(self) -> None:
        if self._closed or self._loop is not asyncio.get_running_loop():
            raise RuntimeError("the transport is closed, or belongs to another event loop")

    def _origin(self, url: httpx.URL) -> Origin:
        port = url.port or {"http": 80, "https": 443}.get(url.scheme, 0)
        host = url.raw_host.decode("ascii")
        origin = self._origins.get((url.scheme, host, port))
        # Checked once for each origin, not at each request.
        if origin is None:
            if not host or url.scheme not in {"http", "https"}:
                raise httpx.UnsupportedProtocol(f"{url.scheme}://{host} is no http:// or https:// address")
            if url.scheme == "https" and self._verify is None:
                raise httpx.UnsupportedProtocol("https needs a TLS context (verify)")
            tls = self._verify if url.scheme == "https" else None
            origin = self._origins[url.scheme, host, port] = Origin(self, host, port, tls, self._resolver)
        return origin

    def _route(self, method: bytes, url: httpx.URL, headers: Sequence[tuple[bytes, bytes]]) -> Route:
        origin = self._origin(url)
        target = url.raw_path
        if not _NAME.fullmatch(method) or _BAD_TARGET.search(target):
            raise httpx.LocalProtocolError("the request's method or path holds characters that cannot be sent")
        lines: list[bytes] = []
        host = b"Host: %b\r\n" % url.netloc
        for name, value in headers:
            lower = name.lower()
            # Two lengths for one body are how requests are smuggled (RFC 9112, 11.2): only ours goes out.
            if lower in {b"content-length", b"transfer-encoding"}:
                continue
            if not _NAME.fullmatch(name) or _BAD_VALUE.search(value):
                raise httpx.LocalProtocolError(f"header field {name!r} holds characters that cannot be sent")
            if lower == b"host":
                host = b""
            # A caller's codings may be ones that are not decoded here, such as `br`.
            foreign = lower == b"accept-encoding" and value != b"identity"
            lines.append(b"%b: %b\r\n" % (name, ACCEPT_ENCODING if foreign else value))
        return Route(origin, b"%b %b HTTP/1.1\r\n%b%b" % (method, target, host, b"".join(lines)), method)

    def _look_around(self, *, late: bool = False) -> None:
        """End what was silent, or idle, for too long, and look again when the next may be."""
        loop: asyncio.AbstractEventLoop = self._loop  # type: ignore[assignment]  # it is the loop that calls
        now = loop.time()
        if now - self._sweep_at > _LATE_S and not late:
            # The loop was held up: what has arrived meanwhile is to be read before anybody is called silent.
            self._sweep = loop.call_later(_GRACE_S, lambda: self._look_around(late=True))
            return
        self._sweep, self._sweep_at = None, math.inf
        following = math.inf
        for connection in list(self._connections):
            due = connection.due
            if due <= now:
                connection.expire()
            elif due < following:
                following = due
        if following < math.inf:
            # However their times are spread, looking takes under a hundredth of the loop's.
            self.watch(max(following, now + _GRACE_S, now + len(self._connections) * 1e-4))


def _answer(incoming: Incoming) -> Answer:
    return Answer(incoming.status, incoming.fields, incoming.body)


def _itself(incoming: Incoming) -> Incoming:
    return incoming


class _LiveBody(httpx.AsyncByteStream):
    """A response's body, piece by piece as it arrives. Closing it early closes the connection."""

    def __init__(self, incoming: Incoming) -> None:
        self._incoming = incoming

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        incoming = self._incoming
        while not incoming.chunks:
            if incoming.fault is not None:
                raise incoming.fault
            if incoming.complete:
                raise StopAsyncIteration
            incoming.waiter = incoming.connection.loop.create_future()
            try:
                await incoming.waiter
            except BaseException:
                incoming.connection.drop(incoming)
                raise
        data = incoming.body
        incoming.chunks = []
        incoming.connection.caught_up(incoming)
        return data

    async def aclose(self) -> None:
        self._incoming.connection.drop(self._incoming)
