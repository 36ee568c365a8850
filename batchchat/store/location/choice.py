"""Where an output is: the one place that tells a folder of this machine from a bucket.

Nothing for object storage is imported for a folder.
"""

from __future__ import annotations

from pathlib import Path

from batchchat.addresses import OBJECT_SCHEMES, is_url, scheme_of
from batchchat.errors import UsageError
from batchchat.store.location.folder import FolderLocation
from batchchat.store.location.port import Location


def location_of(output: Location | Path | str, shard: int | None = None) -> Location:
    """Return where an output is: a location as it is, else that of a folder or of a URL.

    `shard` is the number of one shard of it, None for an output that has none.
    Raises UsageError for a URL that cannot be an output.
    """
    if not isinstance(output, Path | str):
        return output
    if isinstance(output, str) and is_url(output):
        if scheme_of(output) not in OBJECT_SCHEMES:
            known = ", ".join(f"{scheme}://" for scheme in OBJECT_SCHEMES)
            raise UsageError(
                f"{output} cannot be an output", remedy=f"Name a folder of this machine, or a URL with {known}."
            )
        from batchchat.store.location.objects import ObjectLocation

        return ObjectLocation(output, shard)
    return FolderLocation(Path(output), shard)


def is_output_folder(address: Location | Path | str) -> bool:
    """Tell whether an address is an output; one that holds something else is none, and no error."""
    try:
        return location_of(address).holds_output()
    except UsageError:
        return False


def evaluation_outputs(directory: Path | str) -> list[Path]:
    """Return the outputs of the variants of an evaluation, sorted by name; none if the folder holds no evaluation."""
    # An evaluation has tables and pages of its own beside its outputs: it lies in a folder always.
    if is_url(directory) or is_output_folder(directory):
        return []
    return _outputs_below(Path(directory) / "variants")


def judge_outputs(directory: Path | str) -> list[Path]:
    """Return the outputs of the judges of an evaluation, sorted by name."""
    return [] if is_url(directory) else _outputs_below(Path(directory) / "judges")


def running_outputs(directory: Path | str) -> list[Path]:
    """Return the outputs of an evaluation, of variants and judges, that a run holds now."""
    found = [*evaluation_outputs(directory), *judge_outputs(directory)]
    return [folder for folder in found if FolderLocation(folder).holder() is not None]


def _outputs_below(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if is_output_folder(path))
    except OSError:
        return []
