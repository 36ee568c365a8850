"""Old outputs: what `--fresh` set aside beside an output, to be listed and removed on request."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from batchchat.errors import BatchchatError, OutputLocked
from batchchat.store.location.disk import storage_errors
from batchchat.store.state import Layout, lock_holder

_OLD = r"\.old-\d{8}-\d{6}(\.\d+)?"


@dataclass(frozen=True, slots=True)
class OldOutput:
    """An output that was set aside: its folder, and the bytes of all its files."""

    path: Path
    nbytes: int


def old_outputs(directory: Path | str) -> list[OldOutput]:
    """Return the outputs that `--fresh` renamed away from this folder, the oldest first; the folder itself may be gone.

    A folder of such a name that is no output of batchchat is left out. Raises StorageError.
    """
    root = Path(directory).absolute()
    pattern = re.compile(re.escape(root.name) + _OLD)
    with storage_errors(root.parent):
        paths = list(root.parent.iterdir()) if root.parent.is_dir() else []
    names = sorted(path for path in paths if pattern.fullmatch(path.name) and not path.is_symlink())
    return [OldOutput(path, _size(path)) for path in names if _is_output(path)]


def remove_output(old: OldOutput) -> None:
    """Remove an old output for good. Raises OutputLocked where a run holds it, StorageError where the disk refuses."""
    if lock_holder(old.path) is not None:
        raise OutputLocked(f"a run holds the output {old.path}", remedy="Wait for it to end.")
    with storage_errors(old.path):
        shutil.rmtree(old.path)


def _is_output(path: Path) -> bool:
    try:
        return path.is_dir() and Layout(path).is_output()
    except BatchchatError:
        return False


def _size(folder: Path) -> int:
    with storage_errors(folder):
        return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())
