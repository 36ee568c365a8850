"""The store of one output: what a run commits is durable, and becomes the dataset.

    store = Store.open(directory, job_name=…, snapshot=…, run_id=…, input_schema=…, with_keys=…)
    change = store.commit(entries)          # worker thread: one write, one synchronization
    store.apply(change)                     # event loop: the index knows it
    if store.should_seal(now):
        sealing = store.rotate()            # worker thread, quick: a new generation of the journal
        change = store.seal(sealing)        # another thread, slow, while commits go on
        store.apply(change)                 # event loop
    store.apply(store.finish())             # at the end: seals what is left
    store.close()

The rules of threads. `commit`, `rotate`, `archive_unseen` and `finish` are called by one thread at a time; `seal` may
run beside `commit`, one seal at a time. None of them reads or changes `index` or `keys`, except `archive_unseen` and
`finish`, which are called when nothing else is at work. `apply` folds what they return into the indexes and the
counts, on the thread that reads those: the event loop. Every change is applied before the next `rotate`.

After a StorageError, or any other error out of these methods, the store takes nothing more: what was committed is
durable, and the next `open` recovers it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from batchchat.addresses import absolute, address_of
from batchchat.dataclass import dataclass
from batchchat.errors import StorageError
from batchchat.records import Spend
from batchchat.store.bounds import PART_BYTES, PART_ROWS, PART_SECONDS, PartBounds
from batchchat.store.commit_log import Sealing
from batchchat.store.components import Components
from batchchat.store.dataset import DatasetChange, Point
from batchchat.store.index import Counts, KeyIndex, RecordIndex, state_of
from batchchat.store.journal import AnswerEntry, Entry, OpenAnswers, SettledEntry, SpendOnly
from batchchat.store.known import KnownRows, Pass
from batchchat.store.live import LiveRecords
from batchchat.store.location.choice import location_of
from batchchat.store.location.port import Location
from batchchat.store.opening import OpenedOutput, Opening
from batchchat.store.run_files import RunFiles


@dataclass(slots=True)
class StoreChange:
    """What a blocking call did, for `Store.apply`. `messages` are sentences for the user."""

    committed: Sequence[Entry] = ()
    spend: Spend = Spend()
    removed: Sequence[tuple[str, bool]] = ()
    lost: int = 0
    messages: Sequence[str] = ()
    commits: int = 0


def _nowhere(_: str) -> None:
    return None


class _WriteGuard:
    """Whether an output takes anything more: what a failed write left behind must not be built upon."""

    def __init__(self, location: Location) -> None:
        self.error: BaseException | None = None
        self._location = location

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Note an error of what is done in this block. Raises StorageError if there was one before."""
        if self.error is not None:
            raise StorageError(
                f"the output {address_of(self._location.address)} takes nothing more after an error: {self.error}",
                remedy="Run the same command again: it goes on where it stopped.",
            ) from self.error
        try:
            yield
        except BaseException as error:
            self.error = error
            # The run ends: nothing else needs to wait for a place that is away.
            self._location.hurry()
            raise


class Store:
    """An output held by one run. Made by `Store.open`; see the module for who may call what."""

    def __init__(self, opened: OpenedOutput, run_id: str) -> None:
        self.run_id = run_id
        self.recovery = opened.recovery
        self._held = opened.components
        self._hold = opened.hold
        self.runs = RunFiles(self._held.location, self._held.manifest.note_runs)
        self._commits = self._applied = 0
        self._sealing = False
        self._writing = _WriteGuard(self._held.location)

    # ---- opening ----------------------------------------------------------------------------------------------------

    @classmethod
    def open(
        cls,
        output: Location | Path | str,
        *,
        job_name: str,
        snapshot: Mapping[str, Any],
        run_id: str,
        input_schema: pa.Schema | None = None,
        parsed: pa.Field | None = None,
        with_keys: bool = False,
        part_rows: int = PART_ROWS,
        part_bytes: int = PART_BYTES,
        part_seconds: float = PART_SECONDS,
        currency: str | None = None,
        fresh: bool = False,
        take_over: bool = False,
        outage: float | None = None,
        tell: Callable[[str], None] = _nowhere,
        following: Pass | None = None,
        beside: Store | None = None,
        point: Point = _nowhere,
    ) -> Store:
        """Take hold of an output, creating it if there is none, and recover what an earlier run left.

        `output` is a folder, a URL, or a location. `snapshot` is the job as JSON values, with its `name`; an empty one
        is not noted, since what holds the output is no run then. `input_schema` is frozen if none is yet, and so is the
        type of `parsed`, if there is such a column; it may come later, and then stays. `fresh` sets an existing output
        aside first. `take_over` takes it from another run that seems to be alive. `outage` is how long a place that is
        away is waited for, in seconds; `tell` takes sentences about it. `following` is the pass that begins, if it may
        take over what an earlier one knew of its rows (see `known`). `beside` is another shard of the same output that
        this run holds: the two have one index. `point` is called at named steps, for tests of crashes.

        Raises UsageError (nothing was created) if the folder is something else, belongs to another job, has an
        unknown format, another type of `parsed`, or cannot be written; OutputLocked if another run holds it;
        StorageError if the disk fails.
        """
        location = location_of(absolute(output) if isinstance(output, Path | str) else output)
        if outage is not None:
            location.attend(outage, tell)
        opening = Opening(
            job_name=job_name,
            snapshot=snapshot,
            run_id=run_id,
            input_schema=input_schema,
            parsed=parsed,
            with_keys=with_keys,
            bounds=PartBounds(part_rows, part_bytes, part_seconds),
            currency=currency,
            fresh=fresh,
            take_over=take_over,
            following=following,
            beside=None if beside is None else beside.live,
            point=point,
        )
        return cls(opening.open(location), run_id)

    def freeze_input(self, schema: pa.Schema) -> None:
        """Freeze the input's columns and types for all runs into this output.

        Raises UsageError if other ones are frozen already, or if two output columns would have one name.
        """
        self._held.types.freeze_input(schema)

    # ---- committing -------------------------------------------------------------------------------------------------

    def commit(self, entries: Sequence[Entry]) -> StoreChange:
        """Make entries durable: one write and one synchronization for all of them. Returns the change to apply.

        A cost whose key is counted already is left out.

        Raises StorageError if the disk refuses; ValueError if a record's input columns are not the frozen ones.
        """
        keys = {entry.key for entry in entries if isinstance(entry, SpendOnly) and entry.key is not None}
        if keys & self._held.ledger.keys:
            known = self._held.ledger.keys
            entries = [entry for entry in entries if not (isinstance(entry, SpendOnly) and entry.key in known)]
        if not entries:
            return StoreChange()
        with self._writing.watched():
            spend = self._held.log.commit(entries)
            self._commits += 1
            self._held.ledger.keys.update(keys)
            return StoreChange(committed=entries, spend=spend, commits=1)

    def apply(self, change: StoreChange) -> None:
        """Fold a change into `index`, `keys` and the ledger's totals; on the thread that reads them."""
        live = self._held.live
        self._held.ledger.count(self.run_id, change.spend)
        for entry in change.committed:
            if isinstance(entry, SettledEntry):
                record = entry.record
                if entry.late:
                    if record.status == "ok":
                        live.index.add_archived(record.custom_id)
                    continue
                state = state_of(record.status, record.error_kind)
                live.put(record.custom_id, record.key, record.sample_index, state, seen=entry.seen)
        live.remove(change.removed)
        self._applied += change.commits

    def open_answers(self) -> dict[str, list[AnswerEntry]]:
        """Return the answers of requests that are not settled, by `custom_id`, in the order of their steps."""
        return dict(self._held.log.answers.by_request())

    # ---- sealing ----------------------------------------------------------------------------------------------------

    def should_seal(self, now: float) -> bool:
        """Tell whether enough records, bytes or seconds (of the caller's clock) are pending for a seal."""
        return not self._sealing and self._held.log.is_full(now)

    @property
    def pending_rows(self) -> int:
        """How many committed records are in no part yet, save those that are being sealed."""
        return self._held.log.pending_rows

    @property
    def pending_bytes(self) -> int:
        """About how many bytes of memory those records take."""
        return self._held.log.pending_bytes

    @property
    def unsealed(self) -> bool:
        """Tell whether committed records wait to be published, or to go to the archive."""
        return self._held.log.unsealed

    def rotate(self) -> Sealing | None:
        """Close this generation of the journal and open the next; None if there is nothing to seal.

        Answers of open requests are carried over. Raises RuntimeError if a change was not applied, or if the last
        sealing is still going on; StorageError if the disk refuses.
        """
        if self._applied != self._commits:
            raise RuntimeError("apply every change before the journal is rotated")
        if self._sealing:
            raise RuntimeError("one sealing at a time")
        with self._writing.watched():
            if not self._held.log.is_open:
                return None
            self._sealing = True
            return self._held.log.rotate(self._held.live.take_superseding())

    def seal(self, sealing: Sealing) -> StoreChange:
        """Publish a closed generation: archive, rewrite, parts, ledger, and the journal is deleted.

        Raises StorageError if the disk refuses; the journal then stays, and the next `open` goes on.
        """
        with self._writing.watched():
            moved = self._held.publish(sealing, self.recovery.set_aside)
            self._sealing = False
            return _change_of(moved)

    def finish(self) -> StoreChange:
        """Seal everything that is left, when nothing else is at work; apply what it returns."""
        sealing = self.rotate()
        return StoreChange() if sealing is None else self.seal(sealing)

    # ---- archive ----------------------------------------------------------------------------------------------------

    def fetch_archived(self, custom_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Return archived completions by `custom_id`: the output's own columns, times in microseconds.

        Those that cannot be found are left out. The caller commits them again, with their row of today and no spend.
        May be called beside `commit` and `seal`, by one thread at a time. Raises StorageError.
        """
        return self._held.dataset.archive.fetch(custom_ids)

    def archive_unseen(self) -> StoreChange:
        """Move every live record that this pass has not met to the archive; `removed` of the change names them.

        Only after a complete pass and `finish`, when nothing else is at work. Raises StorageError.
        """
        with self._writing.watched():
            moved = self._held.dataset.prune(lambda custom_id: not self.index.is_seen(custom_id))
            self._held.manifest.sealed()
            return _change_of(moved)

    def archive_surplus(self, samples: int) -> StoreChange:
        """Move every live record with a `sample_index` of `samples` or more to the archive: a job asks for fewer now.

        Only after a complete pass and `finish`, when nothing else is at work. Raises StorageError.
        """
        with self._writing.watched():
            moved = self._held.dataset.prune_samples(samples)
            self._held.manifest.sealed()
            return _change_of(moved)

    def drop_answers(self) -> None:
        """Let go of open answers: after a complete pass they belong to requests that the input no longer yields."""
        self._held.log.answers = OpenAnswers()

    # ---- what is known ----------------------------------------------------------------------------------------------

    @property
    def directory(self) -> Path | str:
        """The folder of the output, or its URL."""
        return address_of(self._held.location.address)

    @property
    def components(self) -> Components:
        """Its objects, for what moves records between outputs."""
        return self._held

    @property
    def live(self) -> LiveRecords:
        """The indexes, and what the records since the last seal may supersede."""
        return self._held.live

    @property
    def index(self) -> RecordIndex:
        """What is done, by `custom_id`."""
        return self._held.live.index

    @property
    def keys(self) -> KeyIndex | None:
        """Which keys have a live record; None if the job names no key."""
        return self._held.live.keys

    @property
    def known(self) -> KnownRows | None:
        """The rows whose requests an earlier pass noted; None if this pass does not follow one."""
        return self._held.live.known

    @property
    def input_schema(self) -> pa.Schema | None:
        """The frozen input columns; None before the first `freeze_input`."""
        return self._held.types.frozen.input

    def counts(self) -> Counts:
        """Return how many records are live, by state, and how many of them this pass has met; constant work."""
        return self.index.counts()

    def stored_rows(self) -> int:
        """Return how many records the dataset holds, as the parts themselves say, and how many are not in one yet."""
        return self._held.dataset.rows() + self.pending_rows

    def ledger_total(self) -> Spend:
        """Return what all runs into this output have cost, as far as it was applied."""
        return self._held.ledger.total()

    def ledger_of(self, run_id: str) -> Spend:
        """Return what one run has cost."""
        return self._held.ledger.of(run_id)

    @property
    def location(self) -> Location:
        """Where the output is."""
        return self._held.location

    @property
    def commit_s(self) -> float:
        """The seconds between the beginnings of two commits, 0 where a commit costs nothing."""
        return self._held.location.commit_s

    def hurry(self) -> None:
        """End every wait for a place that is away: a person wants the run to end."""
        self._held.location.hurry()

    def close(self) -> None:
        """Let go of the output. What was committed and not sealed is recovered by the next `open`."""
        self._held.log.close()
        if self.known is not None:
            self.known.trail.flush()
            self.known.trail.close()
        self._hold.release(clean=self._writing.error is None)

    def __enter__(self) -> Store:
        """Return the store; leaving the block closes it."""
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _change_of(moved: DatasetChange) -> StoreChange:
    return StoreChange(removed=moved.removed, lost=moved.lost, messages=moved.messages)
