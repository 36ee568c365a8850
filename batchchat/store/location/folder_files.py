"""The files of an output in a folder: parts, journals and the small files of the state."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from batchchat.store.location.disk import (
    PRIVATE_FILE,
    PRIVATE_FOLDER,
    append_line,
    cut_torn_line,
    free_name,
    open_private,
    publish,
    publish_bytes,
    size_of,
    storage_errors,
    synchronize,
    synchronize_folder,
    write_all,
)
from batchchat.store.location.port import PartNames

_REPORT = ".reported"
_JOURNAL = re.compile(r"journal-(\d{10,})\.log")


class FolderParts:
    """Parts in a folder. Drafts lie in the folder `temporary` of the same file system, damaged parts in `damaged`.

    `mode` are the permissions of a new part.
    """

    def __init__(self, folder: Path, kind: PartNames, *, temporary: Path, damaged: Path, mode: int) -> None:
        self.kind = kind
        self.unsettled: list[str] = []
        self._folder = folder
        self._temporary = temporary
        self._damaged = damaged
        self._mode = mode

    def names(self) -> list[str]:
        """Return the names of all parts, in the order of their numbers."""
        numbers = {name: self.kind.number(name) for name in self._listed()}
        return sorted(
            (name for name, number in numbers.items() if number is not None), key=lambda name: numbers[name] or 0
        )

    def others(self) -> list[str]:
        """Return the names of what lies beside the parts and is none."""
        return sorted(name for name in self._listed() if not self.kind.is_of_any_shard(name))

    def _listed(self) -> list[str]:
        with storage_errors(self._folder):
            return [path.name for path in self._folder.iterdir()] if self._folder.is_dir() else []

    def open(self, name: str) -> BinaryIO:
        """Open a part for reading. Raises FileNotFoundError if it is gone, else StorageError."""
        return _open_to_read(self._folder / name)

    def publish(self, name: str, write: Callable[[BinaryIO], None], before: Callable[[], None] | None = None) -> None:
        """Write, synchronize, rename, synchronize the folder."""
        publish(self._folder / name, write, temporary=self._temporary, mode=self._mode, before_rename=before)

    def path(self, name: str) -> Path:
        """Return where a part lies."""
        return self._folder / name

    def address(self, name: str) -> str:
        """Return where a part lies, as text."""
        return str(self._folder / name)

    def remove(self, name: str, empty: Callable[[BinaryIO], None]) -> None:
        """Remove a part, durably."""
        del empty
        with storage_errors(self._folder / name):
            (self._folder / name).unlink(missing_ok=True)
            synchronize_folder(self._folder)

    def size(self, name: str) -> int:
        """Return a part's size in bytes."""
        with storage_errors(self._folder / name):
            return (self._folder / name).stat().st_size

    def set_aside(self, name: str, empty: Callable[[BinaryIO], None]) -> str:
        """Move a part into the folder for damaged files, and return where it is now."""
        del empty
        return str(_move_durably(self._folder / name, self._damaged))

    def report(self, name: str) -> None:
        """Leave a report for the next run that a part is damaged; do nothing if it cannot be written."""
        with suppress(OSError), open_private(self._damaged / (name + _REPORT), "ab", PRIVATE_FILE):
            pass

    def reported(self) -> list[str]:
        """Return the names that reports were left for."""
        with storage_errors(self._damaged):
            if not self._damaged.is_dir():
                return []
            found = [path.name.removesuffix(_REPORT) for path in self._damaged.iterdir() if path.suffix == _REPORT]
        return sorted(name for name in found if self.kind.number(name) is not None)

    def forget(self, name: str) -> None:
        """Remove a report."""
        report = self._damaged / (name + _REPORT)
        with storage_errors(report):
            report.unlink(missing_ok=True)


class FolderLog:
    """A journal in a folder, open for appending. Raises StorageError if the disk refuses or the file exists."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._named = False
        with storage_errors(path):
            self._descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, PRIVATE_FILE)

    def append(self, data: bytes) -> None:
        """Write all of the data at the end."""
        with storage_errors(self._path):
            write_all(self._descriptor, data)

    def synchronize(self) -> None:
        """Return when the content is on the disk, and at the first time the file's name too."""
        with storage_errors(self._path):
            synchronize(self._descriptor)
            if not self._named:
                synchronize_folder(self._path.parent)
                self._named = True

    def close(self) -> None:
        """Close the file; what was synchronized stays."""
        with suppress(OSError):
            os.close(self._descriptor)


class FolderJournals:
    """The journals in a folder. Damaged ones are moved to the folder `damaged`."""

    keeps_open = True

    def __init__(self, folder: Path, *, damaged: Path) -> None:
        self._folder = folder
        self._damaged = damaged

    def generations(self) -> list[int]:
        """Return the generations that have a journal, the oldest first."""
        with storage_errors(self._folder):
            found = [_JOURNAL.fullmatch(path.name) for path in self._folder.iterdir()]
        return sorted(int(match[1]) for match in found if match)

    def last_used(self) -> int:
        """Return the last generation that has a journal, 0 if there is none."""
        return max(self.generations(), default=0)

    def name(self, generation: int) -> str:
        """Return the name of a generation's journal."""
        return f"journal-{generation:010d}.log"

    def path(self, generation: int) -> Path:
        """Return where a generation's journal lies."""
        return self._folder / self.name(generation)

    def address(self, generation: int) -> str:
        """Return where a generation's journal lies, as text."""
        return str(self.path(generation))

    def create(self, generation: int) -> FolderLog:
        """Begin a journal. Raises StorageError if there is one already."""
        return FolderLog(self.path(generation))

    def open(self, generation: int) -> BinaryIO:
        """Open a journal for reading. Raises FileNotFoundError if it is gone, else StorageError."""
        return _open_to_read(self.path(generation))

    def remove(self, generation: int) -> None:
        """Delete a sealed journal, durably."""
        path = self.path(generation)
        with storage_errors(path):
            path.unlink()
            synchronize_folder(self._folder)

    def set_aside(self, generation: int) -> str:
        """Move a damaged journal to the folder for damaged files, durably, and return where it is now."""
        return str(_move_durably(self.path(generation), self._damaged))


class FolderState:
    """The small files of the state in a folder."""

    def __init__(self, folder: Path, *, temporary: Path, damaged: Path) -> None:
        self._folder = folder
        self._temporary = temporary
        self._damaged = damaged

    def has(self, name: str) -> bool:
        """Tell whether there is such a file."""
        with storage_errors(self._folder / name):
            return (self._folder / name).exists()

    def read(self, name: str) -> bytes | None:
        """Return a file's content, None if there is none."""
        with storage_errors(self._folder / name):
            try:
                return (self._folder / name).read_bytes()
            except FileNotFoundError:
                return None

    def publish(self, name: str, data: bytes, *, durable: bool = True) -> None:
        """Replace a file's content. If not `durable`, it is whole at every instant, but a loss of power may take it."""
        path = self._folder / name
        # An output of an earlier version lacks the folders that came later.
        if path.parent != self._folder and not path.parent.is_dir():
            with storage_errors(path):
                path.parent.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)
                synchronize_folder(path.parent.parent)
        publish_bytes(path, data, temporary=self._temporary, durable=durable)

    def append(self, name: str, line: bytes) -> None:
        """Append a line, durable on return."""
        append_line(self._folder / name, line)

    def cut_torn_line(self, name: str) -> int:
        """Cut what follows the last line break; return how many bytes that was."""
        return cut_torn_line(self._folder / name)

    def size(self, name: str) -> int:
        """Return a file's size in bytes, 0 if there is none."""
        return size_of(self._folder / name)

    def remove(self, name: str) -> None:
        """Remove a file."""
        with storage_errors(self._folder / name):
            (self._folder / name).unlink()

    def take(self, name: str) -> bytes | None:
        """Remove a file and return its content; None if another process took it first."""
        path = self._folder / name
        with storage_errors(path):
            try:
                data = path.read_bytes()
                # The name goes once: of two processes that have read it, one alone has taken it.
                path.unlink()
            except FileNotFoundError:
                return None
        return data

    def set_aside(self, name: str) -> str:
        """Move a file to the folder for damaged ones, and return where it is now."""
        return str(_move_durably(self._folder / name, self._damaged))

    def written(self, folder: str) -> list[tuple[str, int]]:
        """Return the names in a folder of the state, each with when it was written, in nanoseconds."""
        with storage_errors(self._folder / folder):
            if not (self._folder / folder).is_dir():
                return []
            found = []
            for path in (self._folder / folder).iterdir():
                with suppress(FileNotFoundError):  # another process has just taken it
                    found.append((path.name, path.stat().st_mtime_ns))
            return found

    def address(self, name: str) -> str:
        """Return where a file lies, as text."""
        return str(self._folder / name)


def _open_to_read(path: Path) -> BinaryIO:
    """Open a file. Raises FileNotFoundError as it is, any other refusal as a StorageError."""
    with storage_errors(path):
        try:
            return path.open("rb")
        except FileNotFoundError as error:
            gone = error
    raise gone


def _move_durably(path: Path, folder: Path) -> Path:
    """Move a file into another folder, to a free name, and return where it is now."""
    with storage_errors(path):
        target = free_name(folder, path.name)
        path.rename(target)
        # The new place first: a crash between the two must not lose the file.
        synchronize_folder(folder)
        synchronize_folder(path.parent)
    return target
