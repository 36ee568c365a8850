"""An output in a folder of this machine: what lies where, whether it is an output, and how it is created.

DIR/data/part-00000.parquet …          the dataset, and nothing else
DIR/_batchchat/format.json             the version of this layout
DIR/_batchchat/job.json, snapshots/    the job of the last run, and of each run by its run_id
DIR/_batchchat/schema.json             the input columns, frozen at the first run
DIR/_batchchat/state.json              what a run leaves for the next one
DIR/_batchchat/trail.log, .ids, .keys  which requests the rows of the input became; may be deleted at any time
DIR/_batchchat/journal-0000000001.log  one generation of the journal
DIR/_batchchat/ledger.jsonl            what each sealed generation cost
DIR/_batchchat/runs.jsonl              one line a run
DIR/_batchchat/archive/                records that left the dataset; Parquet content in *.arc files
DIR/_batchchat/answers/                answers that equal requests of the pass under way share (`dedupe`)
DIR/_batchchat/batches/                requests in batches of a provider that have not ended, and the log of them
DIR/_batchchat/reviews/                what people answered to rows
DIR/_batchchat/damaged/                parts and journals that could not be read
DIR/_batchchat/manifest.json           which of these files are there, so that a deleted one is noticed
DIR/_batchchat/control/                what other processes ask of the run that is going on, and its replies
DIR/_batchchat/lock, live.json, tmp/   who is at work, what it is doing, its drafts
DIR/_batchchat/shards.json             how many shards the output has, if any
DIR/_batchchat/shards/000/             the same files for a shard, whose parts are data/part-000-00000.parquet …
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from batchchat.errors import OutputLocked, UsageError
from batchchat.store.location.disk import (
    PRIVATE_FILE,
    PRIVATE_FOLDER,
    publish_bytes,
    storage_errors,
    synchronize_folder,
)
from batchchat.store.location.folder_files import FolderJournals, FolderParts, FolderState
from batchchat.store.location.lock import Lock, holder_of, refusal, unusable
from batchchat.store.location.place_change import PlaceChange, free_old_name
from batchchat.store.location.port import PartNames

_STATE = "_batchchat"
_MARKS = ("job.json", "schema.json", "runs.jsonl", "shards.json")
"""Files that only an output has, beside `format.json`, which alone may be lost."""
_EFFECTIVE = os.access in os.supports_effective_ids
_OLD = r"\.old-\d{8}-\d{6}(\.\d+)?"

_CARD = b"""configs:
- config_name: default
  data_files:
  - split: train
    path: data/*.parquet
"""

_LOOKS = 3
"""How often a folder is looked at before it is something else: another run may be creating its output just then."""


class FolderLocation:
    """The location of an output in a folder, or of one shard of it: a shard has a state of its own."""

    commit_s = live_s = look_s = 0.0

    def __init__(self, root: Path, shard: int | None = None) -> None:
        self.root = root
        self._shard = shard
        self._state = root / _STATE if shard is None else root / _STATE / "shards" / f"{shard:03d}"
        self._data = root / "data"
        self._temporary = self._state / "tmp"
        self._damaged = self._state / "damaged"
        self._archive = self._state / "archive"

    @property
    def address(self) -> str:
        """Return the folder, as text."""
        return str(self.root)

    @cached_property
    def parts(self) -> FolderParts:
        """Return the files of the dataset. Their permissions are the user's own: others may read the dataset."""
        names = PartNames("part", ".parquet", self._shard)
        return FolderParts(self._data, names, temporary=self._temporary, damaged=self._damaged, mode=0o666)

    @cached_property
    def archive(self) -> FolderParts:
        """Return the files of records that left the dataset."""
        names = PartNames("archive", ".arc", self._shard)
        return FolderParts(self._archive, names, temporary=self._temporary, damaged=self._damaged, mode=PRIVATE_FILE)

    @cached_property
    def journals(self) -> FolderJournals:
        """Return the journals."""
        return FolderJournals(self._state, damaged=self._damaged)

    @cached_property
    def state(self) -> FolderState:
        """Return the small files of the state."""
        return FolderState(self._state, temporary=self._temporary, damaged=self._damaged)

    def scratch(self, name: str = "") -> Path:
        """Return a path in the state folder for what may be lost at any time."""
        return self._state / name

    def batches(self) -> Path:
        """Return the folder for requests in batches of a provider, and the log of them."""
        return self._state / "batches"

    def attend(self, seconds: float, tell: Callable[[str], None]) -> None:
        """Do nothing: what a disk refuses is told at once."""

    def hurry(self) -> None:
        """Do nothing: there is no wait."""

    def hold(self, run_id: str, *, take_over: bool = False) -> Lock:
        """Take the exclusive hold on the output. Raises OutputLocked, UsageError, StorageError."""
        if take_over and (holder := self.holder()) is not None:
            raise OutputLocked(
                f"a run (pid {holder.get('pid')} on {holder.get('host')}) holds the output {self.root}, and the lock "
                "of a folder cannot be taken over",
                remedy="End that process: the lock goes with it. --take-over is for outputs on object storage.",
            )
        return Lock(self.root, self._state, run_id)

    def holder(self) -> dict[str, Any] | None:
        """Return who holds the output now (`pid`, `host`, `run_id`, `started_at`), None if nobody does."""
        return holder_of(self._state)

    def holds_output(self) -> bool:
        """Tell whether the folder is an output of batchchat. Raises UsageError if it is something else.

        False if there is no folder, an empty one, or one whose creation was cut short.
        """
        for _ in range(_LOOKS):
            # Beside the state of a shard are those of the others: nothing there is somebody else's.
            found = self._looks_like_output() if self._shard is None else any(self._marks())
            if found is not None:
                return found
        raise UsageError(
            f"the output folder {self.root} holds something else, and no output of batchchat",
            remedy="Choose an empty folder, or a path that is free.",
        )

    def _looks_like_output(self) -> bool | None:
        """Tell whether the folder is an output; None for something else, or while another run creates or moves it."""
        try:
            if not self.root.exists() and not self._place_change.complete():
                return False
            if not self.root.is_dir():
                raise UsageError(f"the output {self.root} is a file", remedy="Choose a folder, or a path that is free.")
            if any(self._marks()):
                return True
            others = [path for path in self.root.iterdir() if path != self._state]
            # A lock and drafts are all that a creation leaves which was cut short: anything else is somebody's file.
            begun = self._state.is_dir() and any(path.name not in {"tmp", "lock"} for path in self._state.iterdir())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise unusable(self.root, error) from error
        return None if others or begun else False

    def _marks(self) -> Iterator[bool]:
        """Tell of each file that only an output has whether it is there."""
        yield (self._state / "format.json").exists()
        if self._state.is_dir():
            yield from ((self._state / name).is_file() for name in _MARKS)
            yield bool(self.journals.generations())

    def prepare(self) -> None:
        """Create the folders that a lock needs. Raises UsageError, with nothing created, if that is not allowed."""
        missing = [folder for folder in (self.root, *self.root.parents) if not folder.exists()]
        existing = missing[-1].parent if missing else self.root
        for folder in (existing, self._state, self._data, self._temporary):
            if folder.exists() and not folder.is_dir():
                raise unusable(folder, refusal(errno.ENOTDIR, folder))
            if folder.exists() and not os.access(folder, os.W_OK | os.X_OK, effective_ids=_EFFECTIVE):
                read_only = os.statvfs(folder).f_flag & os.ST_RDONLY
                raise unusable(folder, refusal(errno.EROFS if read_only else errno.EACCES, folder))
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            for folder in (self._state, self._temporary):
                folder.mkdir(mode=PRIVATE_FOLDER, exist_ok=True, parents=True)
            for folder in missing:
                synchronize_folder(folder.parent)
        except OSError as error:
            raise unusable(self.root, error) from error

    def complete(self) -> None:
        """Create the other folders and the card for Hugging Face datasets, and remove drafts of an earlier run."""
        card = self.root / ".huggingface.yaml"
        with storage_errors(self._state):
            for folder in (self._state / "snapshots", self._archive, self._damaged):
                folder.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)
            self._data.mkdir(exist_ok=True)
            if not card.exists():
                publish_bytes(card, _CARD, temporary=self._temporary)
            for draft in self._temporary.iterdir():
                if not draft.is_dir():
                    draft.unlink()
            for folder in (self._state, self.root):
                synchronize_folder(folder)

    def move_away(self) -> str:
        """Rename the whole output to a free name beside it, and return that."""
        with storage_errors(self.root):
            target = free_old_name(self.root)
            self.root.rename(target)
            synchronize_folder(self.root.parent)
        return str(target)

    # ---- an output that takes the place of another ------------------------------------------------------------------

    @property
    def _place_change(self) -> PlaceChange:
        return PlaceChange(self.root, _STATE)

    def draft(self) -> FolderLocation:
        """Return a free place beside this one for an output that is to take its place; tidy up what a killed move left.

        Raises UsageError if something else is there.
        """
        change = self._place_change
        draft = FolderLocation(change.draft)
        if draft.root.exists():
            draft.holds_output()  # raises if it is somebody else's
        with storage_errors(draft.root):
            change.tidy()
        return draft

    def carry_over(self, draft: FolderLocation) -> None:
        """Copy what users have put beside the dataset to the output that is to take its place."""
        with storage_errors(self.root):
            for path in self.root.iterdir():
                target = draft.root / path.name
                if path in {self._state, self._data} or target.exists():
                    continue
                if path.is_dir() and not path.is_symlink():
                    shutil.copytree(path, target, symlinks=True)
                else:
                    shutil.copy2(path, target, follow_symlinks=False)
            synchronize_folder(draft.root)

    def change_places(self) -> str:
        """Let the draft take the place of this output, in one step if the system can; return where this is kept now."""
        with storage_errors(self.root):
            return str(self._place_change.change())

    # ---- outputs that were moved away -------------------------------------------------------------------------------

    def moved_away(self) -> list[Path]:
        """Return the folders beside this one that have a name of `move_away`, the oldest first."""
        pattern = re.compile(re.escape(self.root.name) + _OLD)
        with storage_errors(self.root.parent):
            paths = list(self.root.parent.iterdir()) if self.root.parent.is_dir() else []
            return sorted(
                path for path in paths if pattern.fullmatch(path.name) and path.is_dir() and not path.is_symlink()
            )

    def nbytes(self) -> int:
        """Return the bytes of all files of the output."""
        with storage_errors(self.root):
            return sum(path.lstat().st_size for path in self.root.rglob("*") if path.is_file())

    def remove(self) -> None:
        """Remove the whole output for good."""
        with storage_errors(self.root):
            shutil.rmtree(self.root)
