"""Carry an output in a folder of this machine."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from batchchat.store.location.disk import (
    PRIVATE_FILE,
    free_name,
    open_private,
    publish,
    storage_errors,
    synchronize_folder,
)
from batchchat.store.location.port import part_number

_REPORT = ".reported"


class LocalFiles:
    """Parts in a folder of this machine. Drafts lie in `temporary`, on the same file system."""

    def __init__(self, folder: Path, *, temporary: Path, damaged: Path, stem: str, suffix: str, mode: int) -> None:
        self._folder = folder
        self._temporary = temporary
        self._damaged = damaged
        self._mode = mode
        self._pattern = re.compile(rf"{re.escape(stem)}-\d{{5,}}{re.escape(suffix)}")

    def names(self) -> list[str]:
        """Return the names of all parts, in order of their numbers."""
        with storage_errors(self._folder):
            if not self._folder.is_dir():
                return []
            found = [path.name for path in self._folder.iterdir() if self._pattern.fullmatch(path.name)]
        return sorted(found, key=part_number)

    def open(self, name: str) -> BinaryIO:
        """Open a part for reading. Raises FileNotFoundError where it is gone, else StorageError."""
        path = self._folder / name
        with storage_errors(path):
            try:
                return path.open("rb")
            except FileNotFoundError as error:
                gone = error
        raise gone

    def publish(self, name: str, write: Callable[[BinaryIO], None], before: Callable[[], None] | None = None) -> None:
        """Write, synchronize, rename, synchronize the folder."""
        publish(self._folder / name, write, temporary=self._temporary, mode=self._mode, before_rename=before)

    def path(self, name: str) -> Path:
        """Return where a part lies."""
        return self._folder / name

    def remove(self, name: str) -> None:
        """Remove a part, durably."""
        with storage_errors(self._folder / name):
            (self._folder / name).unlink(missing_ok=True)
            synchronize_folder(self._folder)

    def size(self, name: str) -> int:
        """Return a part's size in bytes."""
        with storage_errors(self._folder / name):
            return (self._folder / name).stat().st_size

    def set_aside(self, name: str) -> str:
        """Move a part into the folder for damaged files."""
        with storage_errors(self._folder / name):
            target = free_name(self._damaged, name)
            (self._folder / name).rename(target)
            synchronize_folder(self._folder)
            synchronize_folder(self._damaged)
        return str(target)

    def report(self, name: str) -> None:
        """Leave word for the next run that a part is damaged: a reader has no right to take it out itself.

        Where even that cannot be written, the error that the reader raises is all there is.
        """
        with suppress(OSError), open_private(self._damaged / (name + _REPORT), "ab", PRIVATE_FILE):
            pass

    def reported(self) -> list[str]:
        """Return the names that reports were left for."""
        with storage_errors(self._damaged):
            if not self._damaged.is_dir():
                return []
            found = [path.name.removesuffix(_REPORT) for path in self._damaged.iterdir() if path.suffix == _REPORT]
        return sorted(name for name in found if self._pattern.fullmatch(name))

    def forget(self, name: str) -> None:
        """Remove a report."""
        report = self._damaged / (name + _REPORT)
        with storage_errors(report):
            report.unlink(missing_ok=True)
