"""An output in a bucket: what lies where, whether it is an output, and how it is created and set aside.

URL/data/part-00000.parquet …             the dataset, and nothing else
URL/_batchchat/hold.json                  who writes, and since when; changed under a condition only (see `object_hold`)
URL/_batchchat/journal/GENERATION/SLOT    one commit of the journal an object (see `object_journals`)
URL/_batchchat/archive/, damaged/, control/, reviews/, snapshots/ and the small files   as in a folder
URL/_batchchat/shards/NNN/                the same for each shard of an output that has shards

What may be lost at any time lies in the user's cache folder on this machine, by the output's URL.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from batchchat.errors import StorageError, UsageError
from batchchat.store.location.bucket import ObjectBucket, Objects, StorePatience
from batchchat.store.location.disk import PRIVATE_FILE, PRIVATE_FOLDER
from batchchat.store.location.object_files import Holding, ObjectParts, ObjectState
from batchchat.store.location.object_hold import HEARTBEAT_S, HOLD, ObjectHold, is_alive, read_record
from batchchat.store.location.object_journals import ObjectJournals
from batchchat.store.location.port import PartNames

_STATE = "_batchchat"
_MARKS = ("format.json", "job.json", "schema.json", "runs.jsonl")
_KNOWN = frozenset({f"{_STATE}/", "data/", ".huggingface.yaml"})
COMMIT_S = 0.25
"""Seconds between the beginnings of two commits. A request costs the same however many records it carries: four a
second are 0.07 $ an hour on Amazon S3, and a record waits a quarter of a second."""
LIVE_S = 10.0
"""Seconds between two writings of a run's progress, for `status`."""
LOOK_S = 2.0
"""Seconds between two looks for a command: each lists one folder, at the price of a write."""


class ObjectLocation:
    """The location of an output in a bucket, or of one shard of it.

    `objects` are the requests to the store; by default those of obstore, with the credentials of the environment.
    `heartbeat` is in seconds, None for none.
    """

    commit_s = COMMIT_S
    live_s = LIVE_S
    look_s = LOOK_S

    def __init__(
        self,
        url: str,
        shard: int | None = None,
        *,
        objects: Objects | None = None,
        patience: StorePatience | None = None,
        heartbeat: float | None = HEARTBEAT_S,
    ) -> None:
        self._url = url.rstrip("/")
        self._shard = shard
        self._heartbeat = heartbeat
        self._root = _bucket(self._url, objects, patience or StorePatience())
        self._state = self._root.below(_STATE if shard is None else f"{_STATE}/shards/{shard:03d}")
        self._damaged = self._state.below("damaged")
        self._holding = Holding()
        self._scratch: _Scratch | None = None

    @property
    def address(self) -> str:
        """Return the URL."""
        return self._url

    @cached_property
    def parts(self) -> ObjectParts:
        """Return the files of the dataset."""
        names = PartNames("part", ".parquet", self._shard)
        return ObjectParts(self._root.below("data"), names, holding=self._holding, damaged=self._damaged)

    @cached_property
    def archive(self) -> ObjectParts:
        """Return the files of records that left the dataset."""
        names = PartNames("archive", ".arc", self._shard)
        return ObjectParts(self._state.below("archive"), names, holding=self._holding, damaged=self._damaged)

    @cached_property
    def journals(self) -> ObjectJournals:
        """Return the journals."""
        return ObjectJournals(self._state, holding=self._holding, damaged=self._damaged)

    @cached_property
    def state(self) -> ObjectState:
        """Return the small files of the state."""
        return ObjectState(self._state, holding=self._holding, damaged=self._damaged)

    def scratch(self, name: str = "") -> Path:
        """Return a path in the user's cache folder for what may be lost at any time."""
        folder = self._scratch.folder if self._scratch is not None else _cache_folder(self._url, self._shard)
        return folder / name

    def batches(self) -> Path:
        """Return a folder that is not there: a job that sends batches is refused an output in a bucket."""
        return self.scratch("batches")

    def attend(self, seconds: float, tell: Callable[[str], None]) -> None:
        """Wait for so long if the store is away, and tell of it."""
        self._root.patience.seconds = seconds
        self._root.patience.tell = tell

    def hurry(self) -> None:
        """End every wait for a store that is away."""
        self._root.patience.hurry.set()

    def hold(self, run_id: str, *, take_over: bool = False) -> _Release:
        """Take the exclusive hold on the output. Raises OutputLocked, UsageError, StorageError."""
        hold = ObjectHold(self._state, self._url, run_id, take_over=take_over, heartbeat=self._heartbeat)
        self._holding.hold = hold
        self._scratch = _Scratch(_cache_folder(self._url, self._shard))
        try:
            if hold.unclean:
                # Before anything is read: what the writer before commits from now on fails.
                self.journals.fence()
                writing = hold.record.get("writing") or {}
                for files in (self.parts, self.archive):
                    files.unsettled[:] = [writing["name"]] if writing.get("kind") == files.kind.stem else []
            if hold.record.get("clearing"):
                self._clear()
        except BaseException:
            _Release(self._holding, self._scratch).release(clean=False)
            raise
        return _Release(self._holding, self._scratch)

    def holder(self) -> dict[str, Any] | None:
        """Return who holds the output now (`pid`, `host`, `run_id`, `started_at`), None if nobody seems to."""
        found = self._state.get(HOLD)
        record = read_record(found, self._state.address_of(HOLD))
        if found is None or record is None or not is_alive(record, found):
            return None
        return {name: record.get(name) for name in ("pid", "host", "run_id", "started_at")} | {
            "alive_at": found.written.isoformat(timespec="seconds")
        }

    def holds_output(self) -> bool:
        """Tell whether an output of batchchat is at the URL. Raises UsageError if it is something else."""
        marks = set(self._state.folders())
        # Fences alone are no output: they stay for ever.
        if not marks.isdisjoint(_MARKS) or ("journal/" in marks and self.journals.generations()):
            return True
        there = self._root.folders()
        others = [name for name in there if name not in _KNOWN]
        if others or ("data/" in there and f"{_STATE}/" not in there):
            raise UsageError(
                f"{self._url} holds something else, and no output of batchchat",
                remedy="Choose a URL below which there is nothing.",
            )
        return False

    def prepare(self) -> None:
        """Do nothing: a bucket has no folders."""

    def complete(self) -> None:
        """Do nothing: an object is written whole, so that no drafts are left."""

    def move_away(self) -> str:
        """Copy the whole output to a free URL beside it, then delete it here, and return the URL of the copy.

        Only while the output is held. The record of the hold, and the fences, stay: writers that were stalled must meet
        them. A kill before all is copied leaves the output as it was; the next hold finishes what was being deleted.
        """
        hold = self._holding.required()
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        target = f"{self._url}.old-{stamp}-{hold.epoch}"
        name = target.rpartition("/")[2]
        copied = self._root.beside(name)
        for path, listed in self._root.listed():
            if path == f"{_STATE}/{HOLD}":
                continue  # the copy is held by nobody
            self._root.copy_to(copied, path)
            there = copied.head(path)
            if there is None or there.size != listed.size:
                raise StorageError(
                    f"{copied.address_of(path)}: the copy is not whole", remedy="Nothing was deleted. Try again."
                )
        hold.change(clearing=True)
        self._clear()
        return target

    def _clear(self) -> None:
        """Delete what was copied away, but for the hold and what keeps stalled writers out."""
        hold = self._holding.required()
        kept = (f"{_STATE}/{HOLD}", f"{_STATE}/journal/")
        self._root.delete([path for path, _ in self._root.listed() if not path.startswith(kept)])
        for generation in self.journals.generations():
            self.journals.remove(generation)
        # The numbers of generations go on: an old writer's slot is never one of the new output.
        hold.change(clearing=False, writing=None, sealed=hold.record.get("generation", 0))
        for files in (self.parts, self.archive):
            files.forget_all()
        self.state.forget_all()


class _Release:
    """What the port calls a hold: lets go of the output and of the scratch folder."""

    def __init__(self, holding: Holding, scratch: _Scratch) -> None:
        self._holding = holding
        self._scratch = scratch

    def release(self, *, clean: bool = True) -> None:
        """Let go of the output."""
        hold, self._holding.hold = self._holding.hold, None
        if hold is not None:
            hold.release(clean=clean)
        self._scratch.close()


class _Scratch:
    """A folder of this machine for what may be lost; another one if a run of this machine is using it.

    A run that was stopped, and whose output another one has taken over, may go on writing there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._temporary = False
        self._lock = -1
        try:
            folder.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
            self._lock = os.open(folder / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, PRIVATE_FILE)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.folder, self._temporary = Path(tempfile.mkdtemp(prefix="batchchat-")), True

    def close(self) -> None:
        """Let go of the folder."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
        if self._temporary:
            shutil.rmtree(self.folder, ignore_errors=True)


def _cache_folder(url: str, shard: int | None) -> Path:
    given = os.environ.get("XDG_CACHE_HOME")
    base = Path(given) if given and Path(given).is_absolute() else Path("~/.cache").expanduser()
    name = hashlib.sha256(f"{url}#{shard}".encode()).hexdigest()[:32]
    return base / "batchchat" / "outputs" / name


def _bucket(url: str, objects: Objects | None, patience: StorePatience) -> ObjectBucket:
    """Return the bucket below a URL. Raises UsageError if obstore is not installed, or the URL names no bucket."""
    if not url.partition("://")[2].partition("/")[2]:
        raise UsageError(f"{url} names a whole bucket", remedy=f"Add a folder: {url.rstrip('/')}/NAME.")
    if objects is not None:
        return ObjectBucket(objects, url.partition("://")[2], url, store="given", patience=patience)
    from batchchat.objects import open_store
    from batchchat.store.location.obstore_objects import ObstoreObjects

    store, prefix = open_store(url, retries=0)
    return ObjectBucket(ObstoreObjects(store, url), prefix, url, store=_identity(store, url), patience=patience)


def _identity(store: Any, url: str) -> str:
    """Return what tells a store from another one that has a bucket of the same name."""
    config: dict[str, Any] = {}
    with suppress(AttributeError, TypeError):
        config = dict(store.config)
    endpoint = next((str(value) for name, value in config.items() if "endpoint" in name), "")
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}@{endpoint}"
