"""Old outputs: what `--fresh` set aside beside an output, to be listed and removed on request."""

from __future__ import annotations

from pathlib import Path

from batchchat.addresses import is_url
from batchchat.dataclass import dataclass
from batchchat.errors import BatchchatError, OutputLocked, UsageError
from batchchat.store.location.folder import FolderLocation
from batchchat.store.sharding import lock_holder


@dataclass(frozen=True, slots=True)
class OldOutput:
    """An output that was set aside: its folder, and the bytes of all its files."""

    path: Path
    nbytes: int


def old_outputs(directory: Path | str) -> list[OldOutput]:
    """Return the outputs that `--fresh` renamed away from this folder, the oldest first; the folder itself may be gone.

    A folder of such a name that is no output of batchchat is left out. Raises StorageError.
    """
    if is_url(directory):
        raise UsageError(
            f"{directory}: old outputs on object storage are removed with the tool of the store",
            remedy="`--fresh` told the name of each; `aws s3 rm --recursive URL` removes one.",
        )
    found = FolderLocation(Path(directory).absolute()).moved_away()
    return [OldOutput(path, FolderLocation(path).nbytes()) for path in found if _is_output(path)]


def remove_output(old: OldOutput) -> None:
    """Remove an old output for good. Raises OutputLocked if a run holds it, StorageError if the disk refuses."""
    if lock_holder(old.path) is not None:
        raise OutputLocked(f"a run holds the output {old.path}", remedy="Wait for it to end.")
    FolderLocation(old.path).remove()


def _is_output(path: Path) -> bool:
    try:
        return FolderLocation(path).holds_output()
    except BatchchatError:
        return False
