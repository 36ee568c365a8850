"""From the bytes of a connection to a response: head, decoded body, and the bounds on both."""

from __future__ import annotations

from typing import Final

import httptools
import httpx

from batchchat.transport.decoding import decoder_for
from batchchat.transport.faults import ResponseTooLarge
from batchchat.transport.incoming import TAIL_BYTES, Incoming

_WHOLE_BYTES: Final = 256 * 1024
"""A body of a known length up to this is read whole, also if its reader could take it as it comes. Chosen: it fits
into what is read ahead of a slow reader, and saves a task switch for each piece."""


class ResponseReader:
    """Reads the responses of one connection into `incoming`, one after the other. The methods `on_…` are the parser's.

    `incoming` is the response that is awaited, None while there is none. `keep` says whether the connection can carry
    another request after it, as far as the response decides.
    """

    __slots__ = ("_max_body_bytes", "_max_head_bytes", "_now", "_parser", "incoming", "keep", "unasked")

    def __init__(self, *, max_head_bytes: int, max_body_bytes: int) -> None:
        self._max_head_bytes = max_head_bytes
        self._max_body_bytes = max_body_bytes
        self._parser = httptools.HttpResponseParser(self)
        self._now = 0.0
        self.incoming: Incoming | None = None
        self.keep = True
        self.unasked = False
        """Whether bytes came behind a whole response, which nobody asked for."""

    def feed(self, incoming: Incoming, data: bytes, now: float) -> None:
        """Read what came at this loop time. What is wrong is left in `incoming.fault`; nothing is raised."""
        self._now = now
        incoming.began = True
        if not incoming.head_done:
            incoming.head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # A 101 nobody asked for. A fault that a callback noted before is nearer to the cause.
            incoming.fault = incoming.fault or httpx.RemoteProtocolError("the server switched to another protocol")
        except httptools.HttpParserError as error:
            self.keep = False
            # Behind a whole response the answer is not harmed: only what follows cannot be trusted.
            if incoming.complete:
                self.unasked = True
            elif incoming.fault is None:
                incoming.fault = httpx.RemoteProtocolError(f"this is no valid HTTP response: {error}")
        # A head that never ends brings no callback, so it is bounded here.
        if not incoming.head_done and incoming.head_bytes > self._max_head_bytes and incoming.fault is None:
            incoming.fault = self._head_too_large()

    def bound_rest(self, incoming: Incoming) -> None:
        """Let only a little more of a body come, whose sink needs nothing more."""
        incoming.size = max(incoming.size, self._max_body_bytes - TAIL_BYTES)

    # The parser's side

    def on_message_begin(self) -> None:
        """Refuse a second response: only one was asked for."""
        if self.incoming is None or self.incoming.complete:
            raise ValueError("a response that nobody asked for")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header field; trailers are counted and left out."""
        incoming: Incoming = self.incoming  # type: ignore[assignment]  # data is parsed only while one is awaited
        if not incoming.head_done:
            incoming.headers.append((name, value))
            return
        # Trailers are no part of the body, so its bound would let them grow without end (RFC 9112, 7.1.2).
        incoming.head_bytes += len(name) + len(value) + 4
        if incoming.head_bytes > self._max_head_bytes + len(name) + len(value):
            incoming.fault = ResponseTooLarge("the response's trailers are too large")

    def on_headers_complete(self) -> None:
        """Decide how the body is read."""
        incoming: Incoming = self.incoming  # type: ignore[assignment]
        status = incoming.status = self._parser.get_status_code()
        # 100 Continue and 103 Early Hints come before the response itself (RFC 9110, 15.2).
        if 100 <= status < 200:
            return
        incoming.head_done = True
        headers = incoming.headers
        if incoming.head_bytes > self._max_head_bytes:
            # The last read may hold much of the body too: only now is it worth counting.
            incoming.head_bytes = sum(len(name) + len(value) + 4 for name, value in headers)
            if incoming.head_bytes > self._max_head_bytes:
                incoming.fault = self._head_too_large()
                return
        fields = incoming.fields = {name.lower(): value for name, value in headers}
        if not incoming.wants_body:
            self.keep = False  # the parser cannot be told that no body follows
            incoming.complete = True
            return
        if b"content-encoding" in fields:
            try:
                incoming.decoder = decoder_for(fields[b"content-encoding"])
            except httpx.DecodingError as error:
                incoming.fault = error
        self._choose_reader(incoming)

    def on_body(self, data: bytes) -> None:
        """Keep a piece of the body, decoded, as far as the bound allows."""
        incoming: Incoming = self.incoming  # type: ignore[assignment]
        # One read may hold many pieces: those behind the first fault, or behind the answer to HEAD, are not wanted.
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
            incoming.sink.feed(data, self._now)
        elif data:  # a decoder may need more before it gives anything
            incoming.chunks.append(data)

    def on_message_complete(self) -> None:
        """End the response, unless it was an interim one (1xx), which is passed over."""
        incoming: Incoming = self.incoming  # type: ignore[assignment]
        if not incoming.head_done:
            incoming.headers.clear()
            return
        if not self._parser.should_keep_alive():
            self.keep = False
        incoming.finish()

    # Inside

    def _choose_reader(self, incoming: Incoming) -> None:
        """Decide who takes the body: the sink, a reader as it comes, or nobody before it is whole."""
        if incoming.sink is not None:
            # An error, or a server that does not stream, is read whole: the sink understands events only.
            if incoming.status < 300 and incoming.is_event_stream:
                incoming.sink.begin(incoming.status, incoming.fields)
            else:
                incoming.sink = None
        if incoming.streamable:
            length = incoming.length
            incoming.live = length is None or length > _WHOLE_BYTES or incoming.is_event_stream

    def _head_too_large(self) -> ResponseTooLarge:
        return ResponseTooLarge(f"the response's head is larger than {self._max_head_bytes} bytes")
