"""Bounded decoding of `Content-Encoding: gzip` and `deflate` (RFC 9110, 8.4.1).

Output is limited while it is produced, so that a small body that unpacks to gigabytes ends in an error, not in memory.
"""

from __future__ import annotations

import zlib
from typing import Final

import httpx

from batchchat.transport.faults import ResponseTooLarge

ACCEPT_ENCODING: Final = b"gzip, deflate"

_GZIP_WINDOW: Final = 16 + zlib.MAX_WBITS
_MAX_MEMBERS: Final = 64
"""Chosen: servers send one member, or one for each piece that they flush."""


class BodyDecoder:
    """Decodes one body piece by piece.

    A gzip body may have several members (RFC 1952, 2.2). A deflate body may lack the zlib wrapper that the standard
    asks for, as some servers send it: the first two bytes tell (RFC 1950, 2.2).
    """

    def __init__(self, *, gzip: bool) -> None:
        self._gzip = gzip
        self._inflate = zlib.decompressobj(_GZIP_WINDOW) if gzip else None
        self._members = 1
        self._started = False
        self._opening = b""

    def feed(self, data: bytes, room: int) -> bytes:
        """Decode the next piece to at most `room` bytes.

        Raises `ResponseTooLarge` if there is more, `httpx.DecodingError` if the data is damaged.
        """
        if self._inflate is None:
            data = self._opening + data
            if len(data) < 2:
                self._opening = data
                return b""
            wrapped = data[0] & 0x0F == 8 and (data[0] << 8 | data[1]) % 31 == 0
            self._inflate = zlib.decompressobj(zlib.MAX_WBITS if wrapped else -zlib.MAX_WBITS)
        decoded: list[bytes] = []
        while data:
            # Data behind the end: another member of a gzip body, or damage.
            if self._inflate.eof:
                data = self._next_member(data)
                continue
            self._started = True
            try:
                # One byte more than is allowed tells that there is more.
                piece = self._inflate.decompress(data, room + 1)
            except zlib.error as error:
                raise httpx.DecodingError(f"the compressed body is damaged: {error}") from error
            room -= len(piece)
            if room < 0:
                raise ResponseTooLarge("the body unpacks to more than is allowed")
            decoded.append(piece)
            data = self._inflate.unused_data
        return decoded[0] if len(decoded) == 1 else b"".join(decoded)

    def finish(self) -> None:
        """Check that the body ended where its compression does; raises `httpx.DecodingError` if not."""
        # A single byte came, which is too few to tell the form.
        if self._opening and self._inflate is None:
            raise httpx.DecodingError("the compressed body ends too early")
        if self._inflate is not None and self._started and not self._inflate.eof:
            raise httpx.DecodingError("the compressed body ends too early")

    def _next_member(self, data: bytes) -> bytes:
        if not self._gzip:
            raise httpx.DecodingError("the compressed body has data after its end")
        # Some servers pad a gzip body with zeros, and gzip itself ignores them.
        data = data.lstrip(b"\0")
        if data:
            self._members += 1
            # Each member costs an object, and may be empty: a small body could hold many thousands.
            if self._members > _MAX_MEMBERS:
                raise httpx.DecodingError(f"the compressed body has more than {_MAX_MEMBERS} members")
            self._inflate = zlib.decompressobj(_GZIP_WINDOW)
        return data


def decoder_for(coding: bytes) -> BodyDecoder | None:
    """Return the decoder for a `Content-Encoding` value, None for `identity`.

    Raises `httpx.DecodingError` for a coding that was not asked for.
    """
    name = coding.strip().lower()
    if name in {b"", b"identity"}:
        return None
    if name in {b"gzip", b"x-gzip"}:
        return BodyDecoder(gzip=True)
    if name == b"deflate":
        return BodyDecoder(gzip=False)
    raise httpx.DecodingError(f"content encoding {name[:40].decode('latin-1')!r} was not asked for")
