"""The manifest: which files an output is known to hold, so that one that somebody deleted is noticed.

It never names more than what is there: a name is added after its file is durable, and taken out before the file is
removed. So a crash between the two leaves a manifest that knows too little, which is no fault, and a file that it names
and that is not there was taken away by somebody else. Of the files that grow by lines it notes how long they were.

An output of an earlier version has none; the next run writes it.
"""

from __future__ import annotations

from dataclasses import asdict, field, replace
from threading import Lock
from typing import Any

from batchchat.dataclass import dataclass
from batchchat.errors import StorageError
from batchchat.store.json_files import publish_json, read_json
from batchchat.store.ledger import LEDGER
from batchchat.store.location.port import Location, StateFiles

MANIFEST = "manifest.json"
RUNS = "runs.jsonl"
_NAMED = 3
"""Files that an error names; of more it says how many."""


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


def contents_of(location: Location) -> Contents:
    """Return what is there now, as the manifest names it. Raises StorageError."""
    journals = location.journals
    return Contents(
        parts=location.parts.names(),
        archive=location.archive.names(),
        journals=[journals.name(generation) for generation in journals.generations()],
        ledger=location.state.size(LEDGER),
        runs=location.state.size(RUNS),
    )


def missing_files(location: Location) -> list[str]:
    """Say in sentences which files of an output are gone that no run removed. Raises StorageError."""
    known = read_manifest(location.state)
    if known is None:
        return []
    lost = known.lost(contents_of(location))
    if lost != Contents():  # a run at work may have sealed meanwhile: only what is still named is missing
        again = read_manifest(location.state) or Contents()
        lost = again.common(known).lost(contents_of(location))
    return losses(lost, location)


def read_manifest(files: StateFiles) -> Contents | None:
    """Return what the manifest names, None if there is none. Raises StorageError if it is damaged."""
    found = read_json(files, MANIFEST)
    if found is None:
        return None
    contents = _contents(found)
    if contents is None:
        raise StorageError(
            f"{files.address(MANIFEST)}: damaged: it holds something else", remedy="The next run writes it anew."
        )
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


def losses(lost: Contents, location: Location) -> list[str]:
    """Say in sentences what files are missing, and what that means."""
    state, told = location.state, []
    if lost.parts:
        told.append(
            f"{_listed(location.parts.address(''), lost.parts)} missing, and no run removed {_them(lost.parts)}: the "
            "records are gone, and their rows run again. Restore the files from a copy if there is one."
        )
    if lost.archive:
        told.append(
            f"{_listed(location.archive.address(''), lost.archive)} missing, and no run removed "
            f"{_them(lost.archive)}: what an earlier prompt was answered is asked for again when it comes back."
        )
    if lost.journals:
        told.append(
            f"{_listed(state.address(''), lost.journals)} missing, and no run removed {_them(lost.journals)}: what was "
            "committed there and is in no part is lost, its rows run again, and costs are told too low."
        )
    if lost.ledger:
        told.append(
            f"{state.address(LEDGER)} lacks {lost.ledger} bytes that it had: earlier costs are told too low. "
            "Restore it from a copy if there is one."
        )
    if lost.runs:
        told.append(
            f"{state.address(RUNS)} lacks {lost.runs} bytes that it had: how earlier runs ended is not known. "
            "Restore it from a copy if there is one."
        )
    return told


def _listed(folder: str, names: list[str]) -> str:
    shown = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
    return f"{folder}: {shown} {'is' if len(names) == 1 else 'are'}"


def _them(names: list[str]) -> str:
    return "it" if len(names) == 1 else "them"


class Manifest:
    """The manifest of an output that is held. Any thread may call it. Raises StorageError where the disk refuses."""

    def __init__(self, location: Location) -> None:
        self._location = location
        self._files = location.state
        self._lock = Lock()
        self._contents = Contents()
        self._written: Contents | None = None

    def begin(self) -> Contents | None:
        """Read what an earlier run noted; None where there is nothing, or nothing that can be read."""
        try:
            found = read_manifest(self._files)
        except StorageError as error:
            # A disk that fails is told; a manifest that is damaged is written anew.
            if isinstance(error.__cause__, OSError):
                raise
            found = None
        self._contents, self._written = found or Contents(), found
        return found

    def take_over(self, contents: Contents) -> None:
        """Note what is there, all of it."""
        with self._lock:
            self._save(contents)

    def add_journal(self, generation: int) -> None:
        """Note a journal that was created."""
        with self._lock:
            name = self._location.journals.name(generation)
            self._save(replace(self._contents, journals=sorted({*self._contents.journals, name})))

    def sealed(self, generation: int | None = None) -> None:
        """Note what a sealing or a pruning has left, and that the journal of this generation is going to be removed."""
        with self._lock:
            now, gone = self._location, None if generation is None else self._location.journals.name(generation)
            self._save(
                replace(
                    self._contents,
                    parts=now.parts.names(),
                    archive=now.archive.names(),
                    ledger=self._files.size(LEDGER),
                    journals=[name for name in self._contents.journals if name != gone],
                )
            )

    def note_runs(self) -> None:
        """Note that the list of runs has grown."""
        with self._lock:
            self._save(replace(self._contents, runs=self._files.size(RUNS)))

    def forget(self, name: str) -> None:
        """Note that a part or a file of the archive is going to be removed."""
        with self._lock:
            parts = [each for each in self._contents.parts if each != name]
            archive = [each for each in self._contents.archive if each != name]
            self._save(replace(self._contents, parts=parts, archive=archive))

    def _save(self, contents: Contents) -> None:
        self._contents = contents
        if contents != self._written:
            # It is written only if it has changed: in a bucket, each write is a request.
            publish_json(self._files, MANIFEST, asdict(contents))
            self._written = contents
