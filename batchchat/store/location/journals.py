"""The journals of an output in a folder: their names, and what becomes of one that is sealed."""

from __future__ import annotations

import re
from pathlib import Path

from batchchat.store.location.disk import free_name, storage_errors, synchronize_folder

_NAME = re.compile(r"journal-(\d{10,})\.log")


def journal_path(folder: Path, generation: int) -> Path:
    """Return the path of a generation's journal."""
    return folder / f"journal-{generation:010d}.log"


def journals(folder: Path) -> dict[int, Path]:
    """Return the journals of a folder by generation, the oldest first."""
    with storage_errors(folder):
        names = sorted(path.name for path in folder.iterdir())
    found = ((_NAME.fullmatch(name), name) for name in names)
    return dict(sorted((int(match[1]), folder / name) for match, name in found if match))


def generation_of(path: Path) -> int:
    """Return the generation in the name of a journal, 0 if it has another name."""
    name = _NAME.fullmatch(path.name)
    return int(name[1]) if name else 0


def remove_journal(path: Path) -> None:
    """Delete a sealed journal, durably. Raises StorageError."""
    with storage_errors(path):
        path.unlink()
        synchronize_folder(path.parent)


def set_journal_aside(path: Path, damaged: Path) -> Path:
    """Move a damaged journal to the folder `damaged`, durably, and return where it is now. Raises StorageError."""
    with storage_errors(path):
        target = free_name(damaged, path.name)
        path.rename(target)
        # The new place first: a crash between the two must not lose the file.
        synchronize_folder(damaged)
        synchronize_folder(path.parent)
    return target
