"""One HTTP/1.1 connection: an asyncio protocol that writes a request at once and gathers its response.

A connection carries one request at a time. What arrives is collected in an `Incoming`; the task that asked is woken
once, when the response is whole (or, for one that is read as it comes, at each piece). An event stream may go into a
`BodySink` piece by piece instead, which wakes nobody. No task and no timer belongs to a connection: one sweep over all
of them ends those that are silent for too long.
"""

from __future__ import annotations

import asyncio
import math
import select
from typing import Final, Protocol

import httpx

from batchchat.transport.delivery import surely_undelivered
from batchchat.transport.ending import EARLY_END_S, loss, peek
from batchchat.transport.faults import tell_sent
from batchchat.transport.incoming import TAIL_S, Incoming
from batchchat.transport.response_reader import ResponseReader

ONE_WRITE_BYTES: Final = 64 * 1024
"""Head and body up to this size go out in one write; a larger body follows in pieces, as fast as it is taken."""

_PIECE_BYTES: Final = 256 * 1024
"""One piece of a larger body. Chosen: small beside what a system buffers, large beside the cost of a write."""
_READ_AHEAD_BYTES: Final = 256 * 1024
"""How much of a live body is held for a reader that is slower than the server, before the server is held up."""


class Home(Protocol):
    """Where a connection returns to when its response is whole."""

    def release(self, connection: Connection) -> None:
        """Take back a connection that can carry another request."""

    def awaits(self, connection: Connection) -> None:
        """Note that a connection is due sooner than it was."""

    def forget(self, connection: Connection) -> None:
        """Drop a connection that is closed or closing. Called at least once for each."""

    def keeps(self, *, streamed: bool) -> bool:
        """Return whether a connection may be kept after an answer; `streamed` says that this was an event stream."""

    def unasked(self) -> None:
        """Note that the server sent an answer that nobody asked for."""

    def closes_after_streams(self) -> None:
        """Note that the server closed a connection after a stream, though it had not said so."""


class Connection(asyncio.Protocol):
    """Carries requests to one address, one after the other. The event loop and the pool call its methods."""

    __slots__ = (
        "_drained",
        "_ended",
        "_home",
        "_idle_timeout",
        "_poll",
        "_reader",
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
        self._reader = ResponseReader(max_head_bytes=max_head_bytes, max_body_bytes=max_body_bytes)
        self._transport: asyncio.Transport | None = None
        self._drained: asyncio.Future[None] | None = None
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
        # Closed meanwhile: the loop has seen the end itself, and has told it.
        if sock is None or sock.fileno() < 0:
            return
        unread = peek(sock)
        if not unread:
            self._tell_early_end()
        # Some servers send a line break behind an answer (RFC 9112, 2.2). Under TLS the bytes are encrypted, and may be
        # no more than a new session ticket.
        elif unread.strip(b"\r\n") and self._transport.get_extra_info("ssl_object") is None:  # type: ignore[union-attr]
            self._home.unasked()

    @property
    def streamed(self) -> bool:
        """Whether its last answer was an event stream."""
        return self._streamed

    def begin(self, incoming: Incoming, now: float) -> None:
        """Make this connection the one that brings `incoming`."""
        self._reader.incoming = incoming
        self.quiet_since = now

    def send(self, data: bytes) -> None:
        """Write a whole request at once."""
        self._written += len(data)
        self._transport.write(data)  # type: ignore[union-attr]  # a connection is handed out only once it is made

    async def send_large(self, head: bytes, body: bytes) -> None:
        """Write a request in pieces. Return early if the response does not wait for the rest."""
        incoming = self._reader.incoming
        self._writing = True
        self.send(head)
        view = memoryview(body)
        for start in range(0, len(body), _PIECE_BYTES):
            if self._drained is not None:
                await self._drained
            # Answered or given up while the pieces waited, as by a 413: nobody reads the rest.
            if self._reader.incoming is not incoming or self.closing:
                return
            piece = view[start : start + _PIECE_BYTES]
            self._written += len(piece)
            self.quiet_since = self.loop.time()
            self._transport.write(piece)  # type: ignore[union-attr]
        if self._drained is not None:
            await self._drained
        if self._reader.incoming is incoming:
            self._writing = False
            self.quiet_since = self.loop.time()

    @property
    def closing(self) -> bool:
        """Whether it can carry no further request."""
        return self._transport is None or self._transport.is_closing()

    @property
    def due(self) -> float:
        """The loop time at which the response is late or silent, or the connection idle, for too long."""
        incoming = self._reader.incoming
        if incoming is None:
            return self.quiet_since + self._idle_timeout
        # While we hold the server up, its silence is our own doing.
        return math.inf if self._reading_paused else min(self.quiet_since + incoming.timeout, incoming.ends_at)

    def expire(self) -> None:
        """End what was silent for too long: an exchange, or an idle connection."""
        incoming = self._reader.incoming
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
        if self._reader.incoming is incoming:
            self.abort()

    def shut(self) -> None:
        """Close, whatever is under way."""
        self._fail(httpx.ReadError("the transport was closed"))

    def abort(self) -> None:
        """Close at once a connection that nobody waits for."""
        self._reader.incoming = None
        self._home.forget(self)
        if self._transport is not None:
            self._transport.abort()

    def caught_up(self, incoming: Incoming) -> None:
        """Go on receiving a live response whose reader has taken what there was."""
        if self._reading_paused and self._reader.incoming is incoming:
            self._resume_reading()

    # The event loop's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = transport  # type: ignore[assignment]  # a stream transport, as asked for
        sock = transport.get_extra_info("socket")
        # Not every system has `poll`. Without it an end is seen a turn of the loop later: the request is sent again.
        if sock is not None and hasattr(select, "poll"):
            self._poll = select.poll()
            self._poll.register(sock.fileno(), select.POLLIN)
        self.quiet_since = self.loop.time()

    def data_received(self, data: bytes) -> None:
        """Parse what came; wake the task if it has something to do."""
        reader = self._reader
        incoming = reader.incoming
        if incoming is None:
            if data.strip(b"\r\n"):
                self._home.unasked()
            self.abort()  # what it says cannot be matched with a request
            return
        self.quiet_since = self.loop.time()
        reader.feed(incoming, data, self.quiet_since)
        if reader.unasked:
            self._home.unasked()
        if incoming.fault is not None:
            self._fail(incoming.fault)
        elif incoming.complete:
            self._finish(incoming)
        elif incoming.head_done and (incoming.live or incoming.sink is not None):
            self._hand_over(incoming)

    def eof_received(self) -> None:
        """Look, while the socket is still open, at what the peer had received when it ended its side."""
        self._ended = True
        self._tell_early_end()
        self._home.forget(self)
        self._look_back()

    def connection_lost(self, error: Exception | None) -> None:
        """Settle an exchange that the end of the connection cuts short, or completes."""
        self._poll = None  # the number of the socket's file may be another's soon
        # Without an error and without the peer's end it was we who closed.
        if not self._ended and error is not None:
            self._tell_early_end()
        self._home.forget(self)
        if not self._ended:
            self._look_back()
        incoming, self._reader.incoming = self._reader.incoming, None
        if incoming is not None:
            if error is None and incoming.ends_with_connection:
                incoming.finish()
            else:
                incoming.fault = loss(
                    incoming,
                    error,
                    writing=self._writing,
                    undelivered=self._undelivered,
                    silent_s=self.loop.time() - self.quiet_since,
                )
            incoming.wake()
        self._wake_writer()
        if not self.closed.done():
            self.closed.set_result(None)

    def pause_writing(self) -> None:
        """Hold up what writes: the peer reads slower than we write."""
        self._drained = self._drained or self.loop.create_future()

    def resume_writing(self) -> None:
        """Let it write again: the peer has caught up."""
        self.quiet_since = self.loop.time()
        self._wake_writer()

    # Inside

    def _finish(self, incoming: Incoming) -> None:
        """Part with a whole response: the connection goes back to the pool, or away."""
        self._reader.incoming = None
        if self._reading_paused:  # or the next response would never be read
            self._resume_reading()
        self._streamed = incoming.sink is not None or (incoming.live and incoming.is_event_stream)
        # A request that is not wholly written would go on in the middle of the next one.
        if self._reader.keep and not self._writing and self._home.keeps(streamed=self._streamed):
            self._home.release(self)
        else:
            self.abort()
            self._wake_writer()
        incoming.wake()

    def _hand_over(self, incoming: Incoming) -> None:
        """Look at a response that is read as it comes, after more of it has come."""
        if incoming.sink is None:
            # The reader may be slower than the server: TCP then makes the server wait, and memory stays bounded.
            if sum(map(len, incoming.chunks)) > _READ_AHEAD_BYTES and not self._reading_paused:
                self._reading_paused = True
                self._transport.pause_reading()  # type: ignore[union-attr]
            incoming.wake()
        elif incoming.sink.done and not incoming.live:
            # The end of the body mostly follows at once, and lets the connection carry another request.
            incoming.live = True
            incoming.ends_at = self.quiet_since + TAIL_S
            self._reader.bound_rest(incoming)
            self._home.awaits(self)

    def _fail(self, fault: httpx.RequestError) -> None:
        incoming = self._reader.incoming
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
        if self._reader.incoming is None and self._streamed and self.loop.time() - self.quiet_since < EARLY_END_S:
            self._home.closes_after_streams()

    def _look_back(self) -> None:
        """Ask the system whether an unanswered request can have reached the server: if not, it may be sent again."""
        incoming = self._reader.incoming
        if incoming is not None and not incoming.began and self._transport is not None:
            sock = self._transport.get_extra_info("socket")
            if sock is not None:
                self._undelivered = surely_undelivered(sock, self._written, peer_closed=self._ended)
