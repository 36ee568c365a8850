"""A file of this machine that may be lost at any time: it is written without synchronization."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from batchchat.store.location.disk import PRIVATE_FILE, write_all


class ScratchFile:
    """An open file that grows at its end and is read anywhere. Every method but `close` raises OSError."""

    def __init__(self, path: Path, *, writable: bool) -> None:
        flags = os.O_CREAT | os.O_RDWR | os.O_APPEND if writable else os.O_RDONLY
        self._descriptor = os.open(path, flags | os.O_CLOEXEC, PRIVATE_FILE)

    def append(self, data: bytes) -> None:
        """Write all of the data at the end."""
        write_all(self._descriptor, data)

    def read(self, size: int, offset: int) -> bytes:
        """Return `size` bytes from a place on, fewer only if the file ends."""
        pieces = []
        while size > 0 and (piece := os.pread(self._descriptor, size, offset)):
            pieces.append(piece)
            size -= len(piece)
            offset += len(piece)
        return b"".join(pieces)

    def reader(self) -> BinaryIO:
        """Return a stream over the whole file; closing it leaves this file open."""
        return os.fdopen(os.dup(self._descriptor), "rb")

    def cut(self, size: int) -> None:
        """Cut the file to a size in bytes."""
        if os.fstat(self._descriptor).st_size != size:
            os.ftruncate(self._descriptor, size)

    def close(self) -> None:
        """Close the file."""
        with suppress(OSError):
            os.close(self._descriptor)
