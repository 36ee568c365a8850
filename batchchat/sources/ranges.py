"""A file that is read by ranges over a network: blocks of it are kept, and fetched ahead of the reader."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

Fetch = Callable[[int, int], bytes]
"""Returns the bytes from one offset up to another."""

STREAM_BLOCK = 2 * 2**20
"""The block of a file that is read from one end to the other: large beside the 30 ms that a request takes."""
_AHEAD = 4
"""How many blocks are fetched ahead. With 30 ms and 50 MB/s a request, five at once give 140 MB/s, which is more than
is parsed."""
_RANDOM_BLOCK = 2**20
_MOST_BLOCKS = 128
"""Bytes of a block, and blocks kept, if a file is read at many places in turn: at most 128 MiB for each file."""


class RangeFile:
    """An open file whose bytes come by ranges.

    `fetch` returns a range; it is called from several threads. `ahead` is how many blocks are fetched before they are
    asked for, once the reader goes on from one block to the next. `kept` blocks stay in memory at most.
    """

    def __init__(self, fetch: Fetch, size: int, *, block: int, ahead: int, kept: int) -> None:
        self._fetch = fetch
        self._size = size
        self._block = block
        self._ahead = ahead
        self._kept = kept
        self._offset = 0
        self._last = -1
        self._blocks: OrderedDict[int, Future[bytes]] = OrderedDict()
        self._pool: ThreadPoolExecutor | None = None
        self.closed = False

    @classmethod
    def stream(cls, fetch: Fetch, size: int) -> RangeFile:
        """Open a file that is read from one end to the other."""
        return cls(fetch, size, block=STREAM_BLOCK, ahead=_AHEAD, kept=_AHEAD + 2)

    @classmethod
    def random(cls, fetch: Fetch, size: int, places: int) -> RangeFile:
        """Open a file that is read at so many places in turn, as the columns of a table are."""
        return cls(fetch, size, block=_RANDOM_BLOCK, ahead=0, kept=min(_MOST_BLOCKS, max(16, 2 * places)))

    def read(self, size: int = -1, /) -> bytes:
        """Return the next bytes; fewer than `size` at the end alone."""
        end = self._size if size < 0 else min(self._size, self._offset + size)
        start = self._offset
        if start >= end:
            return b""
        first, last = start // self._block, (end - 1) // self._block
        waiting = [self._ask(number) for number in range(first, last + 1)]
        # Only a reader that goes on from where it was: after a jump, nobody knows which block comes next.
        if self._ahead and first <= self._last + 1 <= last + 1 and self._last >= 0:
            for number in range(last + 1, min(last + self._ahead, (self._size - 1) // self._block) + 1):
                self._ask(number)
        self._last = last
        data = b"".join([future.result() for future in waiting]) if len(waiting) > 1 else waiting[0].result()
        self._forget()
        self._offset = end
        return data[start - first * self._block : end - first * self._block]

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Go to an offset: from the start, from here (1), or from the end (2)."""
        self._offset = max(0, offset + (0, self._offset, self._size)[whence])
        return self._offset

    def tell(self) -> int:
        """Return the offset."""
        return self._offset

    def size(self) -> int:
        """Return the size of the file."""
        return self._size

    def readable(self) -> bool:
        """Return true: the file is open to be read."""
        return True

    def seekable(self) -> bool:
        """Return true: any offset may be read."""
        return True

    def writable(self) -> bool:
        """Return false: the file is not written to."""
        return False

    def flush(self) -> None:
        """Do nothing: nothing is written."""

    def close(self) -> None:
        """Let go of what was fetched, and of what is still to come."""
        self.closed = True
        self._blocks.clear()
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None

    def _ask(self, number: int) -> Future[bytes]:
        """Return a block that is here, on its way, or asked for now."""
        found = self._blocks.get(number)
        # A block whose request failed is asked for again, since the caller may try once more.
        if found is None or (found.done() and found.exception() is not None):
            if self._pool is None:
                self._pool = ThreadPoolExecutor(_AHEAD + 1, thread_name_prefix="batchchat-ranges")
            start = number * self._block
            found = self._pool.submit(self._fetch, start, min(start + self._block, self._size))
            self._blocks[number] = found
        self._blocks.move_to_end(number)
        return found

    def _forget(self) -> None:
        while len(self._blocks) > self._kept:
            self._blocks.popitem(last=False)
