"""One file of an input, wherever it lies: what is known of it, and how its bytes are reached."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, NoReturn, Protocol
from urllib.parse import unquote

from batchchat.dataclass import dataclass
from batchchat.errors import StorageError

_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
"""What Hive and Spark write into the name of a folder for rows without a value."""
_QUIET_NS = 3_000_000_000


class RawFile(Protocol):
    """The bytes of an open file, as they are stored."""

    def read(self, size: int = -1, /) -> bytes:
        """Return the next bytes, at most `size`; empty at the end."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Go to an offset."""

    def tell(self) -> int:
        """Return the offset."""

    def close(self) -> None:
        """Close the file."""


class Stamp(NamedTuple):
    """What tells, without reading it, that a file is the same as before: its size, inode and times of change.

    For a file on a network, a digest of its tag stands in the place of the inode.

    `quiet`: when the stamp was taken, the last change was some seconds ago. A younger file may change again without a
    new time of change, where the file system's clock is coarse; its stamp tells nothing.
    """

    name: str
    size: int
    inode: int
    mtime_ns: int
    ctime_ns: int
    quiet: bool

    def proves(self, now: Stamp) -> bool:
        """Tell whether the file, which is `now` like this, still holds what it held when this stamp was taken."""
        # A stamp that is not quiet proves nothing, however equal: a second write may have left the same times.
        return self.quiet and self[:-1] == now[:-1]


def raise_changed(address: str) -> NoReturn:
    """Raise StorageError: the file at this address is no longer what it was when the input was opened."""
    raise StorageError(
        f"{address}: the input changed while it was read",
        remedy="Wait until nothing writes to it, then run the same command again: it goes on where it stopped.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFile(ABC):
    """One file of an input, as it was when the input was opened.

    `address` is its path or URL for people, `name` what records call it: its path relative to the input's folder.
    """

    address: str
    name: str
    format: str
    compression: str | None
    size: int
    encoding: str | None = None

    @property
    def partition(self) -> dict[str, str | None]:
        """The columns that the folders above the file name, as in `date=2024-01-01/`; None stands for no value."""
        found: dict[str, str | None] = {}
        for part in PurePosixPath(self.name).parts[:-1]:
            name, equals, value = part.partition("=")
            if name and equals:
                found[unquote(name)] = None if value == _NO_VALUE else unquote(value)
        return found

    @property
    @abstractmethod
    def folder(self) -> Path | None:
        """The folder of this machine that the file lies in; None if it lies elsewhere."""

    @abstractmethod
    def open(self) -> RawFile:
        """Open the file to read it from its first byte on. OSError or StorageError if that fails."""

    @abstractmethod
    def for_arrow(self, columns: int = 0) -> AbstractContextManager[Any]:
        """Open the file for Arrow, which reads here and there in it: in so many columns at a time."""

    @abstractmethod
    def read_at(self, offset: int, size: int) -> bytes:
        """Return so many bytes from this offset on, or fewer at the end."""

    @abstractmethod
    def check_unchanged(self) -> None:
        """Compare the file with what it was when the input was opened.

        Raises StorageError if it is another file, was written to, or is gone: rows of two versions are no input.
        """

    @abstractmethod
    def stamp(self) -> Stamp:
        """Return what the file looks like now. OSError if it is gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalFile(InputFile):
    """A file of this machine."""

    path: Path
    inode: int
    mtime_ns: int

    @property
    def folder(self) -> Path:
        """The folder that the file lies in."""
        return self.path.absolute().parent

    def open(self) -> RawFile:
        """Open the file, without a buffer of its own."""
        return self.path.open("rb", buffering=0)

    def for_arrow(self, columns: int = 0) -> AbstractContextManager[Any]:
        """Give the path: Arrow opens it itself, and reads it without Python."""
        return nullcontext(str(self.path))

    def read_at(self, offset: int, size: int) -> bytes:
        """Return so many bytes from this offset on, or fewer at the end."""
        with self.path.open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def check_unchanged(self) -> None:
        """Compare size, inode and time of change; the change of permissions and links does not count."""
        about = self.path.stat()
        if (about.st_size, about.st_ino, about.st_mtime_ns) != (self.size, self.inode, self.mtime_ns):
            raise_changed(self.address)

    def stamp(self) -> Stamp:
        """Look at the file."""
        about = self.path.stat()
        quiet = max(about.st_mtime_ns, about.st_ctime_ns) + _QUIET_NS < time.time_ns()
        return Stamp(self.name, about.st_size, about.st_ino, about.st_mtime_ns, about.st_ctime_ns, quiet)


class FoundFiles(NamedTuple):
    """The files of an input in the order they are read, and what was left out, each with its reason.

    `pinned`: what is listed here never changes, so that nobody need list it again to be sure of that.
    """

    files: list[InputFile]
    left_out: list[str]
    pinned: bool = False

    def changed(self, before: list[InputFile]) -> Iterator[str]:
        """Yield the addresses of objects that are no longer what they were `before`, by their stamps.

        Files of this machine are looked at one by one, also while they are read.
        """
        known = {file.name: file for file in before}
        for file in self.files:
            then = known.get(file.name)
            if then is not None and file.folder is None and then.stamp() != file.stamp():
                yield file.address
