"""Server-sent events out of a body that arrives in pieces: bytes in, events out, nothing waited for.

The event stream format is WHATWG's HTML standard, 9.2.6: UTF-8 with an optional byte order mark, lines that end in CR,
LF or CRLF, fields `data` and `event`, comments that begin with a colon, a blank line that ends an event. `id` and
`retry` mean nothing to an answer that is never asked for again, and are passed over. Bytes are not decoded here:
whoever reads them as JSON judges their UTF-8 too.
"""

from __future__ import annotations

from typing import Final, NamedTuple

MAX_EVENT_BYTES: Final = 8 * 2**20
"""The longest event. Chosen: a whole answer in one chunk fits, with its log probabilities."""

_BOM: Final = b"\xef\xbb\xbf"
_COLON: Final = ord(":")
_LINE_BYTES: Final = 40
"""What one more line of data takes in memory beside its text."""


class ServerEvent(NamedTuple):
    """One event: its type (empty if the stream names none) and its data lines, joined by LF."""

    type: bytes
    data: bytes


class EventParser:
    """Parses one event stream, fed in pieces that may begin and end anywhere, also inside a character or a CRLF.

    A line, or an event, of more than `max_event_bytes` sets `too_large` and ends it: nothing later is read. So what is
    held between two pieces is bounded.
    """

    __slots__ = ("_after_cr", "_data", "_held", "_max", "_opening", "_tail", "_type", "too_large")

    def __init__(self, *, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max = max_event_bytes
        self._opening: bytes | None = b""
        self._tail = bytearray()
        self._data: list[bytes] = []
        self._type = b""
        self._held = 0
        self._after_cr = False
        self.too_large = False

    def feed(self, piece: bytes) -> list[ServerEvent]:
        """Take the next bytes and return the events that they complete."""
        # Only the first bytes of a stream can be a byte order mark.
        if self._opening is not None:
            piece = self._without_mark(piece)
        if not piece or self.too_large:
            return []
        if self._after_cr:
            self._after_cr = False
            # The second half of a CRLF whose first half ended the last piece: it ends no line of its own.
            if piece[:1] == b"\n":
                piece = piece[1:]
        lines = piece.splitlines()  # of bytes: at CR, LF and CRLF only
        if piece[-1:] == b"\r":
            self._after_cr = True
        # The last line is not whole yet.
        elif lines and piece[-1:] != b"\n":
            rest = lines.pop()
            if lines:
                # The tail is part of the first line, so that goes first.
                events = self._take_first(lines)
                self._tail = bytearray(rest)
            else:
                events = []
                self._tail += rest
            if len(self._tail) > self._max:
                self._give_up()
            return events
        return self._take_first(lines)

    def finish(self) -> list[ServerEvent]:
        """Return the event that the end of the body left unfinished, if there is one.

        The standard drops it. Whole lines of it may still be worth reading: some servers leave the last blank line out.
        """
        events = self._take([bytes(self._tail)] if self._tail else [])
        self._tail = bytearray()
        return events + self._take([b""])

    def _without_mark(self, piece: bytes) -> bytes:
        """Return the stream's beginning without a byte order mark, once enough of it is there to tell."""
        opening = (self._opening or b"") + piece
        if len(opening) < len(_BOM) and _BOM.startswith(opening):
            self._opening = opening
            return b""
        self._opening = None
        return opening.removeprefix(_BOM)

    def _take_first(self, lines: list[bytes]) -> list[ServerEvent]:
        """Take lines, of which the first goes on where the last piece ended."""
        if self._tail and lines:
            lines[0] = bytes(self._tail) + lines[0]
            self._tail = bytearray()
        return self._take(lines)

    def _take(self, lines: list[bytes]) -> list[ServerEvent]:
        events: list[ServerEvent] = []
        for line in lines:
            if self.too_large:
                break
            if len(line) > self._max:
                self._give_up()
            elif not line:
                # A blank line after no data ends nothing: servers send some to keep the connection open.
                if self._data:
                    data = self._data[0] if len(self._data) == 1 else b"\n".join(self._data)
                    events.append(ServerEvent(self._type, data))
                    self._data = []
                self._type, self._held = b"", 0
            elif line[:5] == b"data:":
                self._keep(line[6:] if line[5:6] == b" " else line[5:])
            # A line that begins with a colon is a comment. Fields other than these two mean nothing here.
            elif line[0] != _COLON:
                name, _, value = line.partition(b":")
                if name == b"data":
                    self._keep(value)
                elif name == b"event":
                    self._type = value.removeprefix(b" ")
        return events

    def _keep(self, value: bytes) -> None:
        self._data.append(value)
        self._held += len(value) + _LINE_BYTES
        if self._held > self._max:
            self._give_up()

    def _give_up(self) -> None:
        self.too_large = True
        self._tail, self._data, self._held = bytearray(), [], 0
