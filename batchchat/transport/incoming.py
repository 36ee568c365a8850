"""A response as it arrives, and who may take its body before it is whole."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Protocol

import httpx

from batchchat.transport.decoding import BodyDecoder

if TYPE_CHECKING:
    from batchchat.transport.connection import Connection

TAIL_S: Final = 0.25
"""How long the end of a body is waited for whose sink is done. Chosen: a way to the server and back. To wait costs a
slot; not to wait costs the connection, which is as much again at the next request."""
TAIL_BYTES: Final = 16 * 1024
"""How much may follow once a sink is done. After `[DONE]` comes the last chunk of the encoding, which is a few bytes:
chosen, so that a proxy's comments fit, and a server that does not end is cut off."""


class BodySink(Protocol):
    """Takes the decoded body of an event stream (`text/event-stream`, status 2xx) piece by piece. It must not raise."""

    done: bool
    """Whether nothing more of the body is needed. The end of the body is still waited for, a moment."""

    def sent(self, now: float) -> None:
        """Note that the request was written at this loop time; called again if it is written again."""

    def begin(self, status: int, headers: dict[bytes, bytes]) -> None:
        """Begin the stream; header names are in lower case. Not called if the answer is no event stream."""

    def feed(self, piece: bytes, now: float) -> None:
        """Take the next piece, which came at this loop time."""


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
        timeout: float,
        ends_at: float,
        sink: BodySink | None,
        *,
        streamable: bool,
        wants_body: bool,
    ) -> None:
        self.connection = connection
        self.waiter: asyncio.Future[None] = connection.loop.create_future()
        self.timeout = timeout
        self.ends_at = ends_at
        self.sink = sink
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

    @property
    def is_event_stream(self) -> bool:
        """Whether its header says that it is an event stream."""
        return self.fields.get(b"content-type", b"").lower().startswith(b"text/event-stream")

    @property
    def length(self) -> int | None:
        """How many bytes its header says that the body has, before decoding; None if it does not say."""
        value = self.fields.get(b"content-length", b"")
        return int(value) if value.isdigit() else None

    @property
    def ends_with_connection(self) -> bool:
        """Whether its body goes on until the connection ends (RFC 9112, 6.3, rule 8), so that this end is no fault."""
        if not self.head_done or self.complete:
            return False
        chunked = self.fields.get(b"transfer-encoding", b"").lower().endswith(b"chunked")
        return not chunked and b"content-length" not in self.fields

    def finish(self) -> None:
        """Mark it as whole, and check that its compression ended with it."""
        self.complete = True
        if self.decoder is not None and self.fault is None:
            try:
                self.decoder.finish()
            except httpx.DecodingError as error:
                self.fault = error

    def wake(self) -> None:
        """Let the task that waits go on."""
        # The task may be cancelled already: its future is done then, and to set a result would raise.
        if not self.waiter.done():
            self.waiter.set_result(None)
