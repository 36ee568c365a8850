"""One HTTP/1.1 connection: an asyncio protocol that writes a request at once and gathers its response.

A connection carries one request at a time. What arrives is collected in an `Incoming`; the task that asked is woken
once, when the response is whole (or, for one that is read as it comes, at each piece). An event stream may go into a
`BodySink` piece by piece instead, which wakes nobody. No task and no timer belongs to a connection: one sweep over all
of them ends those that are silent for too long.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import select
import socket
from typing import Final, Protocol

import httptools
import httpx

from batchchat.transport.decoding import BodyDecoder, decoder_for
from batchchat.transport.delivery import surely_undelivered
from batchchat.transport.faults import ResponseTooLarge, tell_sent

ONE_WRITE_BYTES: Final = 64 * 1024
"""Head and body up to this size go out in one write; a larger body follows in pieces, as fast as it is taken."""

STALE_END_S: Final = 2.0
"""A kept connection that ends unanswered within this time was closed as the request was written.

That is one way to the server and back. A request that is worked on for longer may cost, and is not sent again unasked.
"""
EARLY_END_S: Final = 1.0
"""An idle connection that ends within this time was closed on purpose: no server waits so short for a request."""
_PIECE_BYTES: Final = 256 * 1024
_READ_AHEAD_BYTES: Final = 256 * 1024
_WHOLE_BYTES: Final = 256 * 1024
_TAIL_S: Final = 0.25
_TAIL_BYTES: Final = 16 * 1024


class BodySink(Protocol):
    """Takes the decoded body of an event stream (`text/event-stream`, status 2xx) piece by piece. It must not raise."""

    done: bool
    """Whether nothing more of the body is needed. The end of the body is still waited for, a moment."""

    def sent(self, now: float) -> None:
        """The request was written at this loop time; told again where it is written again."""

    def begin(self, status: int, headers: dict[bytes, bytes]) -> None:
        """The stream begins; header names are in lower case. Not told where the answer is no event stream."""

    def feed(self, piece: bytes, now: float) -> None:
        """Take the next piece, which came at this loop time."""


class Home(Protocol):
    """Where a connection returns to when its response is whole."""

    def release(self, connection: Connection) -> None:
        """Take back a connection that can carry another request."""

    def awaits(self, connection: Connection) -> None:
        """Note that a connection is due sooner than it was."""

    def forget(self, connection: Connection) -> None:
        """Drop a connection that is closed or closing. Called at least once for each."""

    def keeps(self, *, streamed: bool) -> bool:
        """Whether a connection may be kept after an answer; `streamed` says that this was an event stream."""

    def unasked(self) -> None:
        """Note that the server sent an answer that nobody asked for."""

    def closes_after_streams(self) -> None:
        """Note that the server closed a connection after a stream, though it had not said so."""


class Incoming:
    """A response as it arrives.

    `fields` are the header fields with lower-case names (of a repeated field the last value), `headers` all of them as
    they came. `chunks` holds the decoded body, or what is not yet read of it. `live` tells that it is read as it comes.
    `sink` takes the body of an event stream instead. `timeout` bounds every silence in seconds; at loop time `ends_at`
    the whole is late.
    """

    # With thousands under way their size is time: what is not in the processor's cache costs more than the code.
    __slots__ = (
        "began",
        "chunks",
        "complete",
        "connection",
        "decoder",
        "ends_at",
        "fault",
        "fields",
        "head_bytes",
        "head_done",
        "headers",
        "live",
        "sink",
        "size",
        "status",
        "streamable",
        "timeout",
        "waiter",
        "wants_body",
    )

    def __init__(
        self,
        connection: Connection,
        waiter: asyncio.Future[None],
        timeout: float,
        *,
        streamable: bool,
        wants_body: bool,
        ends_at: float,
        sink: BodySink | None = None,
    ) -> None:
        self.connection = connection
        self.ends_at = ends_at
        self.sink = sink
        self.waiter = waiter
        self.timeout = timeout
        self.streamable = streamable
        self.wants_body = wants_body
        self.status = self.size = self.head_bytes = 0
        self.began = self.head_done = self.complete = self.live = False
        self.fault: httpx.RequestError | None = None
        self.decoder: BodyDecoder | None = None
        self.headers: list[tuple[bytes, bytes]] = []
        self.fields: dict[bytes, bytes] = {}
        self.chunks: list[bytes] = []

    @property
    def body(self) -> bytes:
        """The decoded body of a whole response."""
        chunks = self.chunks
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def wake(self) -> None:
        """Let the task that waits go on."""
        if not self.waiter.done():
            self.waiter.set_result(None)


class Connection(asyncio.Protocol):
    """See the module. The methods `on_…` are called by the parser, the others by the loop or the pool."""

    __slots__ = (
        "_drained",
        "_ended",
        "_home",
        "_idle_timeout",
        "_incoming",
        "_keep",
        "_max_body_bytes",
        "_max_head_bytes",
        "_parser",
        "_poll",
        "_reading_paused",
        "_streamed",
        "_transport",
        "_undelivered",
        "_writing",
        "_written",
        "closed",
        "loop",
        "quiet_since",
    )

    def __init__(
        self,
        home: Home,
        loop: asyncio.AbstractEventLoop,
        *,
        idle_timeout: float,
        max_head_bytes: int,
        max_body_bytes: int,
    ) -> None:
        self._home = home
        self.loop = loop
        self._idle_timeout = idle_timeout
        self._max_head_bytes = max_head_bytes
        self._max_body_bytes = max_body_bytes
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._incoming: Incoming | None = None
        self._drained: asyncio.Future[None] | None = None
        self._keep = True
        self._writing = False
        self._reading_paused = False
        self._ended = False
        self._undelivered = False
        self._streamed = False
        self._poll: select.poll | None = None
        self._written = 0
        self.quiet_since = 0.0
        self.closed = loop.create_future()

    # The pool's side

    @property
    def usable(self) -> bool:
        """Whether an idle connection can carry a request: it is open, and nothing has come that is not yet read.

        The loop reads what comes between two of its turns. What came since is seen by asking the system (0.8 us): the
        end of the connection, or bytes that would be taken for the answer to the next request.
        """
        return not self.closing and (self._poll is None or not self._poll.poll(0))

    def look_at_end(self) -> None:
        """Tell the pool why this idle connection is not usable: the server ended it, or said something unasked."""
        sock = self._transport.get_extra_info("socket") if self._transport is not None else None
        if sock is None or sock.fileno() < 0:
            return
        unread = b""
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(sock.fileno())) as twin:
            unread = twin.recv(64, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        if not unread:
            self._tell_early_end()
        elif unread.strip(b"\r\n") and self._transport.get_extra_info("ssl_object") is None:  # type: ignore[union-attr]
            self._home.unasked()

    @property
    def streamed(self) -> bool:
        """Whether its last answer was an event stream."""
        return self._streamed

    def begin(self, incoming: Incoming, now: float) -> None:
        """Make this connection the one that brings `incoming`."""
        self._incoming = incoming
        self.quiet_since = now

    def send(self, data: bytes) -> None:
        """Write a whole request at once."""
        self._written += len(data)
        self._transport.write(data)  # type: ignore[union-attr]  # a connection is handed out only once it is made

    async def send_large(self, head: bytes, body: bytes) -> None:
        """Write a request in pieces. Ends early when the response does not wait for the rest."""
        incoming = self._incoming
        self._writing = True
        self.send(head)
        view = memoryview(body)
        for start in range(0, len(body), _PIECE_BYTES):
            if self._drained is not None:
                await self._drained
            if self._incoming is not incoming or self.closing:
                return
            piece = view[start : start + _PIECE_BYTES]
            self._written += len(piece)
            self.quiet_since = self.loop.time()
            self._transport.write(piece)  # type: ignore[union-attr]
        if self._drained is not None:
            await self._drained
        if self._incoming is incoming:
            self._writing = False
            self.quiet_since = self.loop.time()

    @property
    def closing(self) -> bool:
        """Whether it can carry no further request."""
        return self._transport is None or self._transport.is_closing()

    @property
    def due(self) -> float:
        """The loop time at which the response is late or silent, or the connection idle, for too long."""
        incoming = self._incoming
        if incoming is None:
            return self.quiet_since + self._idle_timeout
        return math.inf if self._reading_paused else min(self.quiet_since + incoming.timeout, incoming.ends_at)

    def expire(self) -> None:
        """End what was silent for too long: an exchange, or an idle connection."""
        incoming = self._incoming
        if incoming is None:
            self.abort()
            return
        silent = f"for {incoming.timeout:g} s"
        if self.loop.time() >= incoming.ends_at:
            self._fail(httpx.ReadTimeout("the whole answer did not come in time"))
        elif self._writing:
            self._fail(httpx.WriteTimeout(f"the server took nothing more of the request {silent}"))
        elif incoming.began:
            self._fail(httpx.ReadTimeout(f"the response stopped {silent}"))
        else:
            self._fail(httpx.ReadTimeout(f"no response {silent}"))

    def drop(self, incoming: Incoming) -> None:
        """Close the connection if it still brings `incoming`: nobody waits for it any longer."""
        if self._incoming is incoming:
            self.abort()

    def shut(self) -> None:
        """Close, whatever is under way."""
        self._fail(httpx.ReadError("the transport was closed"))

    def abort(self) -> None:
        """Close at once a connection that nobody waits for."""
        self._incoming = None
        self._home.forget(self)
        if self._transport is not None:
            self._transport.abort()

    def caught_up(self, incoming: Incoming) -> None:
        """Go on receiving a live response whose reader has taken what there was."""
        if self._reading_paused and self._incoming is incoming:
            self._resume_reading()

    # The event loop's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = transport  # type: ignore[assignment]  # a stream transport, as asked for
        sock = transport.get_extra_info("socket")
        if sock is not None and hasattr(select, "poll"):
            self._poll = select.poll()
            self._poll.register(sock.fileno(), select.POLLIN)
        self.quiet_since = self.loop.time()

    def data_received(self, data: bytes) -> None:
        """Parse what came; wake the task if it has something to do."""
        incoming = self._incoming
        if incoming is None:
            if data.strip(b"\r\n"):
                self._home.unasked()
            self.abort()  # nobody asked: what it says cannot be matched with a request
            return
        self.quiet_since = self.loop.time()
        incoming.began = True
        if not incoming.head_done:
            incoming.head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            incoming.fault = incoming.fault or httpx.RemoteProtocolError("the server switched to another protocol")
        except httptools.HttpParserError as error:
            self._keep = False
            if incoming.complete:
                self._home.unasked()
            elif incoming.fault is None:
                incoming.fault = httpx.RemoteProtocolError(f"this is no valid HTTP response: {error}")
        if incoming.fault is not None:
            self._fail(incoming.fault)
        elif incoming.complete:
            self._finish(incoming)
        elif not incoming.head_done:
            if incoming.head_bytes > self._max_head_bytes:
                self._fail(ResponseTooLarge(f"the response's head is larger than {self._max_head_bytes} bytes"))
        elif incoming.live or incoming.sink is not None:
            self._hand_over(incoming)

    def eof_received(self) -> None:
        """The peer ended its side: look, while the socket is open, at what it had received by then."""
        self._ended = True
        self._tell_early_end()
        self._home.forget(self)
        self._look_back()

    def connection_lost(self, error: Exception | None) -> None:
        """Settle an exchange that the end of the connection cuts short, or completes."""
        self._poll = None  # the number of the socket's file may be another's soon
        if not self._ended and error is not None:
            self._tell_early_end()
        self._home.forget(self)
        if not self._ended:
            self._look_back()
        incoming, self._incoming = self._incoming, None
        if incoming is not None:
            if error is None and self._ends_with_connection(incoming):
                self._complete(incoming)
            else:
                incoming.fault = self._fault_of_loss(incoming, error)
            incoming.wake()
        self._wake_writer()
        if not self.closed.done():
            self.closed.set_result(None)

    def pause_writing(self) -> None:
        """The peer reads slower than we write."""
        self._drained = self._drained or self.loop.create_future()

    def resume_writing(self) -> None:
        """The peer has caught up."""
        self.quiet_since = self.loop.time()
        self._wake_writer()

    # The parser's side

    def on_message_begin(self) -> None:
        """Refuse a second response: only one was asked for."""
        if self._incoming is None or self._incoming.complete:
            raise ValueError("a response that nobody asked for")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header field; trailers are counted and left out."""
        incoming: Incoming = self._incoming  # type: ignore[assignment]  # data is parsed only while one is awaited
        if not incoming.head_done:
            incoming.headers.append((name, value))
            return
        incoming.head_bytes += len(name) + len(value) + 4
        if incoming.head_bytes > self._max_head_bytes + len(name) + len(value):
            incoming.fault = ResponseTooLarge("the response's trailers are too large")

    def on_headers_complete(self) -> None:
        """Decide how the body is read."""
        incoming: Incoming = self._incoming  # type: ignore[assignment]
        status = incoming.status = self._parser.get_status_code()
        if 100 <= status < 200:
            return
        incoming.head_done = True
        headers = incoming.headers
        if incoming.head_bytes > self._max_head_bytes:
            # The last read may hold much of the body too: only now is it worth counting.
            incoming.head_bytes = sum(len(name) + len(value) + 4 for name, value in headers)
            if incoming.head_bytes > self._max_head_bytes:
                incoming.fault = ResponseTooLarge(f"the response's head is larger than {self._max_head_bytes} bytes")
                return
        fields = incoming.fields = {name.lower(): value for name, value in headers}
        if not incoming.wants_body:
            self._keep = False  # the parser cannot be told that no body follows
            incoming.complete = True
            return
        if b"content-encoding" in fields:
            try:
                incoming.decoder = decoder_for(fields[b"content-encoding"])
            except httpx.DecodingError as error:
                incoming.fault = error
        if incoming.sink is not None:
            if status < 300 and _is_event_stream(fields):
                incoming.sink.begin(status, fields)
            else:
                incoming.sink = None
        if incoming.streamable:
            length = _length(fields)
            incoming.live = length is None or length > _WHOLE_BYTES or _is_event_stream(fields)

    def on_body(self, data: bytes) -> None:
        """Keep a piece of the body, decoded, as far as the bound allows."""
        incoming: Incoming = self._incoming  # type: ignore[assignment]
        if incoming.fault is not None or incoming.complete:
            return
        room = self._max_body_bytes - incoming.size
        if incoming.decoder is not None:
            try:
                data = incoming.decoder.feed(data, room)
            except httpx.RequestError as error:
                incoming.fault = error
                return
        elif len(data) > room:
            incoming.fault = ResponseTooLarge(f"the response's body is larger than {self._max_body_bytes} bytes")
            return
        incoming.size += len(data)
        if incoming.sink is not None:
            incoming.sink.feed(data, self.quiet_since)
        elif data:
            incoming.chunks.append(data)

    def on_message_complete(self) -> None:
        """The response is whole, unless it was an interim one (1xx), which is passed over."""
        incoming: Incoming = self._incoming  # type: ignore[assignment]
        if not incoming.head_done:
            incoming.headers.clear()
            return
        if not self._parser.should_keep_alive():
            self._keep = False
        self._complete(incoming)

    # Inside

    def _complete(self, incoming: Incoming) -> None:
        incoming.complete = True
        if incoming.decoder is not None and incoming.fault is None:
            try:
                incoming.decoder.finish()
            except httpx.DecodingError as error:
                incoming.fault = error

    def _finish(self, incoming: Incoming) -> None:
        """Part with a whole response: the connection goes back to the pool, or away."""
        self._incoming = None
        if self._reading_paused:
            self._resume_reading()
        self._streamed = incoming.sink is not None or (incoming.live and _is_event_stream(incoming.fields))
        if self._keep and not self._writing and self._home.keeps(streamed=self._streamed):
            self._home.release(self)
        else:
            self.abort()
            self._wake_writer()
        incoming.wake()

    def _hand_over(self, incoming: Incoming) -> None:
        """Look at a response that is read as it comes, after more of it has come."""
        if incoming.sink is None:
            if sum(map(len, incoming.chunks)) > _READ_AHEAD_BYTES and not self._reading_paused:
                self._reading_paused = True
                self._transport.pause_reading()  # type: ignore[union-attr]
            incoming.wake()
        elif incoming.sink.done and not incoming.live:
            # The end of the body mostly follows at once, and lets the connection carry another request.
            incoming.live = True
            incoming.ends_at = self.quiet_since + _TAIL_S
            incoming.size = max(incoming.size, self._max_body_bytes - _TAIL_BYTES)
            self._home.awaits(self)

    def _fail(self, fault: httpx.RequestError) -> None:
        incoming = self._incoming
        self.abort()
        self._wake_writer()
        if incoming is not None:
            incoming.fault = tell_sent(fault, sent=True)
            incoming.wake()

    def _resume_reading(self) -> None:
        self._reading_paused = False
        self.quiet_since = self.loop.time()
        self._transport.resume_reading()  # type: ignore[union-attr]

    def _wake_writer(self) -> None:
        drained, self._drained = self._drained, None
        if drained is not None and not drained.done():
            drained.set_result(None)

    def _tell_early_end(self) -> None:
        """Note an idle connection that ends right after a stream: no timeout of the server's is that short."""
        if self._incoming is None and self._streamed and self.loop.time() - self.quiet_since < EARLY_END_S:
            self._home.closes_after_streams()

    def _look_back(self) -> None:
        incoming = self._incoming
        if incoming is not None and not incoming.began and self._transport is not None:
            sock = self._transport.get_extra_info("socket")
            if sock is not None:
                self._undelivered = surely_undelivered(sock, self._written, peer_closed=self._ended)

    def _ends_with_connection(self, incoming: Incoming) -> bool:
        """Whether the response's body is delimited by the end of the connection (RFC 9112, 6.3, rule 8)."""
        if not incoming.head_done or incoming.complete:
            return False
        chunked = incoming.fields.get(b"transfer-encoding", b"").lower().endswith(b"chunked")
        return not chunked and b"content-length" not in incoming.fields

    def _fault_of_loss(self, incoming: Incoming, error: Exception | None) -> httpx.RequestError:
        if not incoming.began:
            where = "before it answered"
        elif not incoming.head_done:
            where = "in the response's head"
        else:
            length = _length(incoming.fields)
            of = f" of {length}" if length is not None else ""
            where = f"in the response's body, after {incoming.size}{of} bytes"
        sent = not self._undelivered
        fault: httpx.RequestError
        if error is None:
            fault = httpx.RemoteProtocolError(f"the server disconnected {where}")
        else:
            kind = httpx.WriteError if self._writing else httpx.ReadError
            fault = kind(f"the connection broke {where}: {error}")
        # An answer that takes long is no race between the server's close and our request.
        if not incoming.began and self.loop.time() - self.quiet_since < STALE_END_S:
            fault.__dict__["ended_unanswered"] = True
        return tell_sent(fault, sent)


def _is_event_stream(fields: dict[bytes, bytes]) -> bool:
    return fields.get(b"content-type", b"").lower().startswith(b"text/event-stream")


def _length(fields: dict[bytes, bytes]) -> int | None:
    value = fields.get(b"content-length", b"")
    return int(value) if value.isdigit() else None
