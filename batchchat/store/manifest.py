"""The manifest: which files an output is known to hold, so that one that somebody deleted is noticed.

It never names more than what is there: a name is added after its file is durable, and taken out before the file is
removed. So a crash between the two leaves a manifest that knows too little, which is no fault, and a file that it names
and that is not there was taken away by somebody else. Of the files that grow by lines it notes how long they were.

An output of an earlier version has none; the next run writes it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import Any

from batchchat.errors import StorageError
from batchchat.store.location.disk import publish_json, read_json, storage_errors

NAME = "manifest.json"
_NAMED = 3


@dataclass(frozen=True, slots=True)
class Contents:
    """The files of an output by name, and how many bytes the ledger and the list of runs have at least."""

    parts: list[str] = field(default_factory=list)
    archive: list[str] = field(default_factory=list)
    journals: list[str] = field(default_factory=list)
    ledger: int = 0
    runs: int = 0

    def lost(self, now: Contents) -> Contents:
        """Return what these contents have and `now` has not: names, and missing bytes."""
        return Contents(
            sorted(set(self.parts) - set(now.parts)),
            sorted(set(self.archive) - set(now.archive)),
            sorted(set(self.journals) - set(now.journals)),
            max(0, self.ledger - now.ledger),
            max(0, self.runs - now.runs),
        )

    def common(self, now: Contents) -> Contents:
        """Return what both have."""
        return Contents(
            sorted(set(self.parts) & set(now.parts)),
            sorted(set(self.archive) & set(now.archive)),
            sorted(set(self.journals) & set(now.journals)),
            min(self.ledger, now.ledger),
            min(self.runs, now.runs),
        )


def read_manifest(folder: Path) -> Contents | None:
    """Return what the manifest in a folder names; None where there is none. Raises StorageError where it is damaged."""
    path = folder / NAME
    found = read_json(path)
    if found is None:
        return None
    contents = _contents(found)
    if contents is None:
        raise StorageError(f"{path}: damaged: it holds something else", remedy="The next run writes it anew.")
    return contents


def _contents(found: Any) -> Contents | None:
    if not isinstance(found, dict):
        return None
    names = {name: found.get(name) for name in ("parts", "archive", "journals")}
    sizes = {name: found.get(name) for name in ("ledger", "runs")}
    if not all(isinstance(each, list) and all(isinstance(name, str) for name in each) for each in names.values()):
        return None
    if not all(type(size) is int and size >= 0 for size in sizes.values()):
        return None
    return Contents(**names, **sizes)  # type: ignore[arg-type]


def losses(lost: Contents, root: Path) -> list[str]:
    """Say in sentences what files are missing, and what that means."""
    state, told = root / "_batchchat", []
    if lost.parts:
        told.append(
            f"{_listed(root / 'data', lost.parts)} missing, and no run removed {_them(lost.parts)}: the records are "
            "gone, and their rows run again. Restore the files from a copy if there is one."
        )
    if lost.archive:
        told.append(
            f"{_listed(state / 'archive', lost.archive)} missing, and no run removed {_them(lost.archive)}: what an "
            "earlier prompt was answered is asked for again when it comes back."
        )
    if lost.journals:
        told.append(
            f"{_listed(state, lost.journals)} missing, and no run removed {_them(lost.journals)}: what was committed "
            "there and is in no part is lost, its rows run again, and costs are told too low."
        )
    if lost.ledger:
        told.append(
            f"{state / 'ledger.jsonl'} lacks {lost.ledger} bytes that it had: earlier costs are told too low. "
            "Restore it from a copy if there is one."
        )
    if lost.runs:
        told.append(
            f"{state / 'runs.jsonl'} lacks {lost.runs} bytes that it had: how earlier runs ended is not known. "
            "Restore it from a copy if there is one."
        )
    return told


def _listed(folder: Path, names: list[str]) -> str:
    shown = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
    return f"{folder}: {shown} {'is' if len(names) == 1 else 'are'}"


def _them(names: list[str]) -> str:
    return "it" if len(names) == 1 else "them"


def size_of(path: Path) -> int:
    """Return the size of a file in bytes, 0 where there is none."""
    with storage_errors(path):
        try:
            return path.stat().st_size
        except FileNotFoundError:
            return 0


class Manifest:
    """The manifest of an output that is held. Any thread may call it. Raises StorageError where the disk refuses."""

    def __init__(self, folder: Path, temporary: Path) -> None:
        self._folder = folder
        self._temporary = temporary
        self._lock = Lock()
        self._contents = Contents()
        self._written: Contents | None = None

    def begin(self) -> Contents | None:
        """Read what an earlier run noted; None where there is nothing, or nothing that can be read."""
        try:
            found = read_manifest(self._folder)
        except StorageError as error:
            if isinstance(error.__cause__, OSError):
                raise
            found = None
        self._contents, self._written = found or Contents(), found
        return found

    def note(self, **changes: Any) -> None:
        """Take over what changed: files that are durable now, or all of a kind that are there."""
        with self._lock:
            self._save(replace(self._contents, **changes))

    def add_journal(self, name: str) -> None:
        """Note a journal that was created."""
        with self._lock:
            self._save(replace(self._contents, journals=sorted({*self._contents.journals, name})))

    def sealed(self, journal: str, **changes: Any) -> None:
        """Note what a sealed generation became, and that its journal is going to be removed."""
        with self._lock:
            left = [name for name in self._contents.journals if name != journal]
            self._save(replace(self._contents, journals=left, **changes))

    def forget(self, name: str) -> None:
        """Note that a part or a file of the archive is going to be removed."""
        with self._lock:
            parts = [each for each in self._contents.parts if each != name]
            archive = [each for each in self._contents.archive if each != name]
            self._save(replace(self._contents, parts=parts, archive=archive))

    def _save(self, contents: Contents) -> None:
        self._contents = contents
        if contents != self._written:
            publish_json(self._folder / NAME, asdict(contents), temporary=self._temporary)
            self._written = contents
