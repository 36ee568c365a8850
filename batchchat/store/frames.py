"""Frames: the journal's unit, which is either read back exactly as it was written or not at all.

    magic 4 B | kind 1 B | zero 3 B | length 4 B | sequence 8 B | CRC-32 4 B | payload

All numbers are little-endian. The checksum (the CRC-32 of zlib) covers the header before it and the payload, so a
flipped bit anywhere in a frame is seen. Sequence numbers count from 0 without a gap, so that no frame can be missing or
stand in the wrong place. A length is believed only if the file holds that many bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from io import SEEK_END
from typing import BinaryIO, NamedTuple
from zlib import crc32

from batchchat.dataclass import dataclass

_HEAD = struct.Struct("<4sB3xIQ")
_CHECKSUM = struct.Struct("<I")
_MAGIC = b"bcf\x9e"
HEADER_BYTES = _HEAD.size + _CHECKSUM.size
MAX_PAYLOAD = 2**32 - 1
"""What fits into the four bytes of a frame's length."""


class Frame(NamedTuple):
    """One verified frame and where it starts in its file."""

    kind: int
    sequence: int
    payload: bytes
    offset: int


@dataclass(frozen=True, slots=True)
class Damage:
    """Where a journal stops being believed: at `offset`, with `dropped` bytes from there to its end.

    `torn` where the file simply ends in an unfinished write, as a crash leaves it; otherwise intact frames follow
    the damage, so that bytes in the middle of the file have changed.
    """

    offset: int
    dropped: int
    torn: bool


def encode(kind: int, sequence: int, payload: bytes | memoryview) -> bytes:
    """Return the bytes of one frame. Raises ValueError where the payload is 4 GiB or more."""
    if len(payload) > MAX_PAYLOAD:
        raise ValueError("a frame holds less than 4 GiB")
    head = _HEAD.pack(_MAGIC, kind, len(payload), sequence)
    return b"".join((head, _CHECKSUM.pack(crc32(payload, crc32(head))), payload))


class FrameReader:
    """Iterates over the intact frames of a file up to the first damage, which is then told by `damage`.

    The file may be growing: it is read up to the size that it had at the start. After `grown`, iterating goes on with
    the frames that came since; a frame that was cut is then whole.
    """

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self._offset = self._sequence = 0
        self.damage: Damage | None = None
        self.grown()

    def grown(self) -> None:
        """Take the size that the file has now."""
        self._size = self._source.seek(0, SEEK_END)
        self.damage = None

    def __iter__(self) -> Iterator[Frame]:
        while self._offset < self._size:
            frame = self._read(self._offset)
            if frame is None or frame.sequence != self._sequence:
                torn = frame is None and not self._any_frame_after(self._offset, self._sequence)
                self.damage = Damage(self._offset, self._size - self._offset, torn)
                return
            self._sequence += 1
            self._offset += HEADER_BYTES + len(frame.payload)
            yield frame

    def _read(self, offset: int) -> Frame | None:
        self._source.seek(offset)
        header = self._source.read(HEADER_BYTES)
        if len(header) < HEADER_BYTES:
            return None
        magic, kind, length, sequence = _HEAD.unpack_from(header)
        # With a length beyond the end of the file, the frame is cut or its length is damaged.
        if magic != _MAGIC or length > self._size - offset - HEADER_BYTES:
            return None
        payload = self._source.read(length)
        (checksum,) = _CHECKSUM.unpack_from(header, _HEAD.size)
        if len(payload) < length or crc32(payload, crc32(header[: _HEAD.size])) != checksum:
            return None
        return Frame(kind, sequence, payload, offset)

    def _any_frame_after(self, offset: int, sequence: int) -> bool:
        """Tell whether an intact, later frame stands somewhere behind a damaged one."""
        step = 1 << 20
        start = offset + 1
        while start < self._size:
            self._source.seek(start)
            # The windows overlap, so that a mark that lies across an edge is found.
            window = self._source.read(step + len(_MAGIC) - 1)
            place = window.find(_MAGIC)
            while place >= 0:
                frame = self._read(start + place)
                # Numbers only grow: with an earlier one, the bytes look like a frame and are none.
                if frame is not None and frame.sequence >= sequence:
                    return True
                place = window.find(_MAGIC, place + 1)
            start += step
        return False
