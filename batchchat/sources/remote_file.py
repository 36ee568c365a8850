"""A file on a network that is read by ranges."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import field
from hashlib import blake2b

import pyarrow as pa

from batchchat.dataclass import dataclass
from batchchat.sources.input_file import InputFile, Stamp
from batchchat.sources.ranges import Fetch, RangeFile


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile(InputFile):
    """One file of object storage or of a hub.

    `fetch` returns a range of it. It raises StorageError if the file is another one by now, or cannot be read. `tag`
    tells one content from another; None for a store that gives none.
    """

    fetch: Fetch = field(repr=False)
    tag: str | None
    mtime_ns: int

    @property
    def folder(self) -> None:
        """None: it lies in no folder of this machine."""
        return

    def open(self) -> RangeFile:
        """Open the file to read it from its first byte on; the next ranges are fetched ahead."""
        return RangeFile.stream(self.fetch, self.size)

    @contextmanager
    def for_arrow(self, columns: int = 0) -> Iterator[pa.PythonFile]:
        """Open the file for Arrow: what was fetched for one column serves its neighbours."""
        with closing(RangeFile.random(self.fetch, self.size, columns)) as opened:
            yield pa.PythonFile(opened, mode="r")

    def read_at(self, offset: int, size: int) -> bytes:
        """Return so many bytes from this offset on, or fewer at the end."""
        end = min(self.size, offset + size)
        return self.fetch(offset, end) if offset < end else b""

    def check_unchanged(self) -> None:
        """Do nothing: each range that is read tells, and the list of files at the end of a pass."""

    def stamp(self) -> Stamp:
        """Return what the file looked like when it was listed."""
        digest = blake2b((self.tag or "").encode(), digest_size=7).digest()
        return Stamp(self.name, self.size, int.from_bytes(digest), self.mtime_ns, 0, self.tag is not None)
