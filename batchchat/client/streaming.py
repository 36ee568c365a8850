"""One streamed answer, read as it comes: from the body's pieces to a `Reply`, with the times of its tokens.

    pieces of the body ─ EventParser ─> events ─ ChunkAssembler ─> a whole answer's body ─ read_reply ─> Reply

A transport feeds the reader from its own callbacks, so that a chunk costs no task switch; the task that waits is woken
once, at the end.
"""

from __future__ import annotations

from typing import Final

from batchchat.client.chunks import ChunkAssembler
from batchchat.client.headers import Headers
from batchchat.client.masking import KeyMask
from batchchat.client.sse import MAX_EVENT_BYTES, EventParser
from batchchat.client.wire import protocol_failure, read_cut, read_reply, tell_headers
from batchchat.records import Failure, Reply

_SHORTEST_S: Final = 0.001
"""Tokens that come within a millisecond came together: their pace is the network's, not the model's."""


class StreamReader:
    """Reads one stream; it is what a transport calls a `BodySink`.

    `began` tells that the answer is a stream, `done` that nothing more of it is needed. Times are of one monotonic
    clock; the request counts as sent at `sent_at` until the transport knows better.
    """

    __slots__ = (
        "_assembler",
        "_first_at",
        "_headers",
        "_last_at",
        "_parser",
        "_sent_at",
        "_status",
        "began",
        "done",
    )

    def __init__(self, sent_at: float) -> None:
        self.began = False
        self.done = False
        self._sent_at = sent_at
        self._status = 200
        self._headers: Headers = {}
        self._parser = EventParser()
        self._assembler = ChunkAssembler()
        self._first_at: float | None = None
        self._last_at = 0.0

    def sent(self, now: float) -> None:
        """Note that the request went out at this time."""
        self._sent_at = now

    def begin(self, status: int, headers: Headers) -> None:
        """Take the head of the answer."""
        self.began = True
        self._status = status
        self._headers = headers

    def feed(self, piece: bytes, now: float) -> None:
        """Take the next piece of the body, which came at this time. Never raises."""
        if self.done:
            return
        take = self._assembler.take
        for event in self._parser.feed(piece):
            if take(event):
                self._last_at = now
                if self._first_at is None:
                    self._first_at = now
        self.done = self._assembler.done or self._parser.too_large

    def reply(self, *, now: float, mask: KeyMask) -> Reply:
        """Judge the stream once its body has ended, or nothing more is needed. Never raises.

        `now` is seconds since the epoch. A stream that broke off is a transient failure beside which stays what it
        brought.
        """
        assembler = self._assembler
        # The body ended by itself: what lacks its blank line may still be an event.
        if not self.done:
            assembler.end(self._parser.finish())
        if not assembler.complete:
            failure = protocol_failure(self._status, self._problem(), assembler.evidence, mask)
            return self._failed(failure, now=now, mask=mask)
        content = assembler.body()
        clean = mask.clean(content)
        reply = read_reply(self._status, self._headers, clean, now=now, mask=mask)
        if clean is not content or mask.may_hide(clean):
            mask.cover(reply)
        # An error in the middle of a stream: what the model had written before is kept for a person to see.
        if assembler.error is not None and reply.failure is not None and reply.completion is None:
            reply.text = self._partial(reply.failure, mask).text
        self._tell_times(reply)
        return reply

    def cut_off(self, reply: Reply, *, now: float, mask: KeyMask) -> Reply:
        """Return what a failed exchange comes to: a failure that keeps what had come, or an answer that was whole."""
        if self.done:
            return self.reply(now=now, mask=mask)
        # Nothing of a stream has come, so there is nothing to keep.
        if not self.began or reply.failure is None:
            return reply
        failure = Failure(reply.failure.kind, reply.failure.message, self._status)
        return self._failed(failure, now=now, mask=mask)

    def _failed(self, failure: Failure, *, now: float, mask: KeyMask) -> Reply:
        reply = self._partial(failure, mask)
        tell_headers(reply, self._headers, now=now, mask=mask)
        self._tell_times(reply)
        return reply

    def _partial(self, failure: Failure, mask: KeyMask) -> Reply:
        content = self._assembler.partial()
        clean = mask.clean(content)
        reply = read_cut(clean, failure)
        if clean is not content or mask.may_hide(clean):
            mask.cover(reply)
        return reply

    def _problem(self) -> str:
        assembler = self._assembler
        if assembler.problem is not None:
            return f"with a stream {assembler.problem}"
        if assembler.done:
            return "with a stream that said [DONE] before any finish_reason"
        if self._parser.too_large:
            return f"with a stream one of whose events is larger than {MAX_EVENT_BYTES // 2**20} MiB"
        return "with a stream that was cut off: its end, [DONE], never came"

    def _tell_times(self, reply: Reply) -> None:
        if self._first_at is None:
            return
        reply.ttft_s = round(max(0.0, self._first_at - self._sent_at), 6)
        tokens = reply.usage.completion_tokens if reply.usage is not None else None
        span = self._last_at - self._first_at
        # Some servers count nothing in a stream, and one piece has no span.
        if tokens is not None and span >= _SHORTEST_S:
            reply.output_tokens_per_s = round(tokens / span, 3)


def is_event_stream(headers: Headers) -> bool:
    """Return whether an answer's body is an event stream by its type."""
    return headers.get(b"content-type", b"").lower().startswith(b"text/event-stream")


def holds_events(headers: Headers, body: bytes) -> bool:
    """Return whether a whole body is an event stream, by its type or, since servers get that wrong, its beginning."""
    return is_event_stream(headers) or body[:16].lstrip().startswith((b"data:", b"event:", b": "))


def read_whole_stream(status: int, headers: Headers, body: bytes, *, now: float, mask: KeyMask) -> Reply:
    """Judge a stream that came as one body, by a server that streams without being asked. Never raises."""
    reader = StreamReader(0.0)
    reader.begin(status, headers)
    reader.feed(body, 0.0)
    reply = reader.reply(now=now, mask=mask)
    # Nobody saw its first token come.
    reply.ttft_s = None
    return reply
