"""The port of a location: what the store asks of the place that keeps an output.

A folder of this machine is one carrier of it (`folder`). An object store can be another: a part appears whole or not
at all, no part is renamed, and only journals and lists of lines grow, by whole appends that can be objects.

Every method raises StorageError if the place refuses. Blocking code.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

from batchchat.errors import StorageError


class PartNames(NamedTuple):
    """How the files of one kind are named: a stem, a number, and a suffix; between them the shard, if there is one.

    Two shards of one dataset write beside each other, so no name of one is a name of the other.
    """

    stem: str
    suffix: str
    shard: int | None = None

    def name(self, number: int) -> str:
        """Return the name of a file by its number: `part-00000.parquet`, in shard 3 `part-003-00000.parquet`."""
        shard = "" if self.shard is None else f"{self.shard:03d}-"
        return f"{self.stem}-{shard}{number:05d}{self.suffix}"

    def number(self, name: str) -> int | None:
        """Return the number in a name; None if the name is another kind's or another shard's."""
        found = self._number_and_shard(name)
        return found[0] if found is not None and found[1] == self.shard else None

    def is_of_any_shard(self, name: str) -> bool:
        """Tell whether a name is of this kind, whichever shard wrote it."""
        return self._number_and_shard(name) is not None

    def _number_and_shard(self, name: str) -> tuple[int, int | None] | None:
        stem, suffix = re.escape(self.stem), re.escape(self.suffix)
        found = re.fullmatch(rf"{stem}-(?:(\d{{3,}})-)?(\d{{5,}}){suffix}", name)
        return None if found is None else (int(found[2]), int(found[1]) if found[1] else None)


class PartChangedError(StorageError):
    """A part is not as this process read it, although nobody else may write it."""


class PartFiles(Protocol):
    """Where the parts, or the files of the archive, are kept."""

    kind: PartNames
    unsettled: list[str]
    """The names of parts that a writer which has lost the output may still write; each leaves the list when it is
    published. A folder has none: its lock goes with the process."""

    def names(self) -> list[str]:
        """Return the names of all parts, in the order of their numbers."""

    def others(self) -> list[str]:
        """Return the names of what lies beside the parts and is none."""

    def open(self, name: str) -> BinaryIO:
        """Open a part for reading, at random positions. Raises FileNotFoundError if it is gone."""

    def publish(self, name: str, write: Callable[[BinaryIO], None], before: Callable[[], None] | None = None) -> None:
        """Make what `write` writes the content of a part: wholly and durably, or not at all.

        `before` is called when everything is written and nothing is visible yet. Raises PartChangedError if somebody
        else has written it.
        """

    def remove(self, name: str, empty: Callable[[BinaryIO], None]) -> None:
        """Remove a part, durably. A place where that is not safe keeps one without records, which `empty` writes."""

    def size(self, name: str) -> int:
        """Return a part's size in bytes."""

    def address(self, name: str) -> str:
        """Return by which name the user, or another program, finds a part."""

    def set_aside(self, name: str, empty: Callable[[BinaryIO], None]) -> str:
        """Move a damaged part out of the dataset, and return its address now. `empty` as in `remove`."""

    def report(self, name: str) -> None:
        """Leave a report for the next run that a part is damaged: a reader may not take it out itself.

        If the report cannot be written, the error that the reader raises is all there is.
        """

    def reported(self) -> list[str]:
        """Return the names of parts that somebody found damaged; they are still in the dataset."""

    def forget(self, name: str) -> None:
        """Forget such a report: the part was looked at."""


class LogFile(Protocol):
    """A journal open for appending. What was appended counts when `synchronize` has returned."""

    def append(self, data: bytes) -> None:
        """Write all of the data at the end."""

    def synchronize(self) -> None:
        """Return when everything that was appended is durable, and the file's name too."""

    def close(self) -> None:
        """Close the file; what was synchronized stays."""


class JournalFiles(Protocol):
    """Where the journals are kept, one a generation.

    `keeps_open`: a journal that is open can be read to its end after it was removed.
    """

    keeps_open: bool

    def last_used(self) -> int:
        """Return the last generation that is known to have had a journal, 0 if there is none."""

    def generations(self) -> list[int]:
        """Return the generations that have a journal, the oldest first."""

    def name(self, generation: int) -> str:
        """Return the name of a generation's journal, as the manifest notes it."""

    def address(self, generation: int) -> str:
        """Return by which name the user finds a journal."""

    def create(self, generation: int) -> LogFile:
        """Begin a journal. Raises StorageError if there is one already."""

    def open(self, generation: int) -> BinaryIO:
        """Open a journal for reading. Raises FileNotFoundError if it is gone."""

    def remove(self, generation: int) -> None:
        """Delete a sealed journal, durably."""

    def set_aside(self, generation: int) -> str:
        """Move a damaged journal out of the way, durably, and return its address now."""


class StateFiles(Protocol):
    """Where the small files of an output's state are kept. A name may have a folder before it: `snapshots/x.json`."""

    def has(self, name: str) -> bool:
        """Tell whether there is such a file."""

    def read(self, name: str) -> bytes | None:
        """Return a file's content, None if there is none."""

    def publish(self, name: str, data: bytes, *, durable: bool = True) -> None:
        """Replace a file's content, whole at every instant. If not `durable`, a loss of power may take it."""

    def append(self, name: str, line: bytes) -> None:
        """Append a line to a file, creating it if there is none; durable on return."""

    def cut_torn_line(self, name: str) -> int:
        """Cut what follows the last line break of a file that grows by lines; return how many bytes that was."""

    def size(self, name: str) -> int:
        """Return a file's size in bytes, 0 if there is none."""

    def remove(self, name: str) -> None:
        """Remove a file."""

    def take(self, name: str) -> bytes | None:
        """Remove a file and return its content; None if there is none, or if another process took it first."""

    def set_aside(self, name: str) -> str:
        """Move a damaged file out of the way, and return its address now."""

    def written(self, folder: str) -> list[tuple[str, int]]:
        """Return the names in a folder of the state, each with when it was written, in nanoseconds; in no order."""

    def address(self, name: str) -> str:
        """Return by which name the user finds a file."""


class OutputHold(Protocol):
    """The exclusive right to write into an output."""

    def release(self, *, clean: bool = True) -> None:
        """Let go of the output. It is not `clean` if a write failed, so that nobody knows whether it happened."""


class Location(Protocol):
    """Where one output is.

    `commit_s` are the seconds between the beginnings of two commits, `live_s` those between two writings of a run's
    progress, `look_s` those between two looks for a command; all are 0 where a request costs nothing.
    """

    commit_s: float
    live_s: float
    look_s: float

    @property
    def address(self) -> str:
        """Return by which name the user knows the output."""

    @property
    def parts(self) -> PartFiles:
        """Return the files of the dataset."""

    @property
    def archive(self) -> PartFiles:
        """Return the files of records that left the dataset."""

    @property
    def journals(self) -> JournalFiles:
        """Return the journals."""

    @property
    def state(self) -> StateFiles:
        """Return the small files of the state."""

    def scratch(self, name: str = "") -> Path:
        """Return a path on this machine for what may be lost at any time: memories of a pass, shared answers."""

    def batches(self) -> Path:
        """Return a folder on this machine for requests in batches of a provider. What is in it must not be lost."""

    def holds_output(self) -> bool:
        """Tell whether an output of batchchat is here; False if nothing is. Raises UsageError if something else is."""

    def attend(self, seconds: float, tell: Callable[[str], None]) -> None:
        """Wait for so long if the place is away, and tell of it. A folder is never waited for."""

    def hurry(self) -> None:
        """End every wait for a place that is away: a person wants the run to end."""

    def hold(self, run_id: str, *, take_over: bool = False) -> OutputHold:
        """Take the exclusive hold on the output. Raises OutputLocked, UsageError.

        With `take_over` also from a run that seems to be alive, if what that run still writes can be kept out.
        """

    def holder(self) -> dict[str, Any] | None:
        """Return who holds the output now (`pid`, `host`, `run_id`, `started_at`), None if nobody does."""

    def prepare(self) -> None:
        """Create what `hold` needs. Raises UsageError, with nothing created, if that is not allowed."""

    def complete(self) -> None:
        """Create the rest, and remove what an earlier run left unfinished. Only while the output is held."""

    def move_away(self) -> str:
        """Give the whole output a free name beside it, and return its address now."""
