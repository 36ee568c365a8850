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

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from batchchat.errors import StorageError, UsageError
from batchchat.format import plural
from batchchat.records import PARSED, RECORD_COLUMNS, Spend
from batchchat.store.dataset import Dataset, Moved, Point
from batchchat.store.index import Counts, KeyIndex, RecordIndex, is_live, key_digest, state_of
from batchchat.store.journal import Answer, Entry, Journal, OpenAnswers, Replay, Settled, replay, sum_spends
from batchchat.store.known import KnownRows, Pass
from batchchat.store.location.disk import append_line, cut_torn_line
from batchchat.store.location.journals import journal_path, journals, remove_journal, set_journal_aside
from batchchat.store.location.lock import Lock
from batchchat.store.manifest import Manifest, losses, size_of
from batchchat.store.parts import unkept
from batchchat.store.pending import Pending, Unsealed
from batchchat.store.recovery import Recovery, mend_state
from batchchat.store.schema import Frozen, joined_parsed, output_schema, own_columns, same_types
from batchchat.store.state import Layout

PART_ROWS = 50_000
PART_BYTES = 32 * 2**20
"""A run keeps a part in memory until it is sealed, and about twice as much while it is. Measured with rows of 200 KB:
128 MiB took 400 MB more than 32 MiB."""
PART_SECONDS = 60.0
JOURNAL_FACTOR = 4
"""A journal is sealed at the latest when it is this many times as long as a part may be."""

_CUSTOM_ID = RECORD_COLUMNS.index("custom_id")
_KEY = RECORD_COLUMNS.index("key")
_ROW_INDEX = RECORD_COLUMNS.index("row_index")
_SAMPLE = RECORD_COLUMNS.index("sample_index")
_RUN_ID = RECORD_COLUMNS.index("run_id")
_STATUS = RECORD_COLUMNS.index("status")
_ERROR_KIND = RECORD_COLUMNS.index("error_kind")
_FINISHED_AT = RECORD_COLUMNS.index("finished_at")


@dataclass(slots=True)
class Change:
    """What a blocking call did, for `Store.apply`. `messages` are sentences for the user."""

    committed: Sequence[Entry] = ()
    spend: Spend = Spend()
    removed: Sequence[tuple[str, bool]] = ()
    lost: int = 0
    messages: Sequence[str] = ()
    commits: int = 0


@dataclass(slots=True)
class Sealing:
    """A closed generation of the journal, on its way into parts."""

    generation: int
    run_id: str
    path: Path
    batches: list[pa.RecordBatch]
    spend: Spend
    by_id: bool
    by_key: bool
    late: list[pa.RecordBatch] = field(default_factory=list)
    damaged: bool = False

    @property
    def rows(self) -> int:
        """How many records are to be published."""
        return sum(batch.num_rows for batch in self.batches)


def _nowhere(_: str) -> None:
    return None


class Store:
    """An output held by one run. Made by `Store.open`; see the module for who may call what."""

    def __init__(
        self,
        layout: Layout,
        lock: Lock,
        *,
        run_id: str,
        frozen: Frozen,
        with_keys: bool,
        part_rows: int,
        part_bytes: int,
        part_seconds: float,
        metadata: dict[str, str],
        point: Point,
    ) -> None:
        self.directory = layout.root
        self.run_id = run_id
        self.recovery = Recovery()
        self.index = RecordIndex()
        self.keys = KeyIndex() if with_keys else None
        self.known: KnownRows | None = None
        self._layout = layout
        self._lock = lock
        self._frozen = frozen
        self._metadata = metadata
        self._part_rows = part_rows
        self._part_bytes = part_bytes
        self._part_seconds = part_seconds
        self._point = point
        self._manifest = Manifest(layout.state, layout.temporary)
        self._dataset = Dataset(
            layout.parts(),
            layout.archive(),
            part_rows=part_rows,
            part_bytes=part_bytes,
            point=point,
            before_removal=self._manifest.forget,
        )
        self._schema = self._dataset.schema = frozen.output(metadata)
        self._journal: Journal | None = None
        self._generation = 0
        self._pending: Pending | None = None
        self._late: Pending | None = None
        self._pending_since: float | None = None
        self._answers = OpenAnswers()
        self._spend_by_run: dict[str, Spend] = {}
        self._counted: set[int] = set()
        self._commits = self._applied = 0
        self._by_id = self._by_key = False
        self._sealing = False
        self._broken: BaseException | None = None

    # ---- opening ----------------------------------------------------------------------------------------------------

    @classmethod
    def open(
        cls,
        directory: Path | str,
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
        following: Pass | None = None,
        point: Point = _nowhere,
    ) -> Store:
        """Take hold of an output, creating it where there is none, and recover what an earlier run left.

        `snapshot` is the job as JSON values, with its `name`. `input_schema` is frozen where none is yet, and so is
        the type of `parsed`, if there is such a column; it may come later, and then stays. `fresh` renames an existing
        output aside first. `following` is the pass that begins, where it may take over what an earlier one knew of its
        rows (see `known`). `point` is called at named steps, for tests of crashes.

        Raises UsageError (nothing was created) where the folder is something else, belongs to another job, has an
        unknown format, another type of `parsed`, or cannot be written; OutputLocked where another run holds it;
        StorageError where the disk fails.
        """
        try:
            return cls._open(
                Layout(Path(directory).absolute()),
                job_name=job_name,
                snapshot=snapshot,
                run_id=run_id,
                input_schema=input_schema,
                parsed=parsed,
                with_keys=with_keys,
                part_rows=part_rows,
                part_bytes=part_bytes,
                part_seconds=part_seconds,
                currency=currency,
                fresh=fresh,
                following=following,
                point=point,
            )
        except StorageError as error:
            if isinstance(error.__cause__, PermissionError):
                raise UsageError(
                    error.message, remedy="Choose a folder that you may read and write, or change its permissions."
                ) from error
            raise

    @classmethod
    def _open(
        cls,
        layout: Layout,
        *,
        job_name: str,
        snapshot: Mapping[str, Any],
        input_schema: pa.Schema | None,
        parsed: pa.Field | None,
        currency: str | None,
        fresh: bool,
        following: Pass | None,
        **settings: Any,
    ) -> Store:
        run_id = settings["run_id"]
        renamed: Path | None = None
        if layout.is_output() and fresh:
            old = layout.hold(run_id)
            try:
                renamed = layout.set_aside()
            finally:
                old.release()
        elif layout.is_output():
            layout.check_format()
            layout.check_name(job_name)
        layout.create_base()
        lock = layout.hold(run_id)
        store: Store | None = None
        try:
            if layout.is_output():  # again: another run may have made it something else before the lock was ours
                layout.check_format()
                layout.check_name(job_name)
            before, mended = mend_state(layout, input_schema, currency)
            frozen = Frozen(before.input, joined_parsed(before.parsed, parsed))
            metadata = {"batchchat.job": job_name} | ({"batchchat.currency": currency} if currency else {})
            store = cls(layout, lock, frozen=frozen, metadata=metadata, **settings)
            store.recovery.renamed = renamed
            store.recovery.messages += mended
            if following is not None:
                store.known = following.known(layout.state)
            store._recover()
            layout.save(f"snapshots/{run_id}.json", dict(snapshot))
            layout.save("job.json", dict(snapshot))
            if frozen.input is None and input_schema is not None:
                store.freeze_input(input_schema)
            elif frozen.input is not None and frozen.parsed is not before.parsed:
                layout.save_schema(frozen.input, frozen.parsed)
        except BaseException:
            if store is not None and store.known is not None:
                store.known.trail.close()
            lock.release()
            raise
        return store

    def freeze_input(self, schema: pa.Schema) -> None:
        """Freeze the input's columns and types for all runs into this output.

        Raises UsageError where other ones are frozen already, or where two output columns would have one name.
        """
        if self._frozen.input is not None:
            if not same_types(self._frozen.input, schema):
                raise UsageError(
                    f"the input's columns differ from those that {self.directory} was made with",
                    remedy="Give the types with `input.types`, or start anew with --fresh.",
                )
            return
        parsed = self._frozen.parsed
        try:
            output = output_schema(schema, parsed, self._metadata)
        except ValueError as error:
            raise UsageError(str(error)) from error
        column = unkept(schema)
        if column is not None:
            raise UsageError(
                f"the input column {column!r} is of type {schema.field(column).type}, which Parquet cannot keep",
                remedy="Give it another type with `input.types`.",
            )
        # The fields' own notes stay: a later run learns from them which column of the input a renamed one is.
        frozen = pa.schema([pa.field(column.name, column.type, metadata=column.metadata) for column in schema])
        self._layout.save_schema(frozen, parsed)
        self._frozen = Frozen(frozen, parsed)
        self._schema = self._dataset.schema = output

    @property
    def input_schema(self) -> pa.Schema | None:
        """The frozen input columns; None before the first `freeze_input`."""
        return self._frozen.input

    @property
    def output_schema(self) -> pa.Schema | None:
        """The columns of every part; None before the first `freeze_input`."""
        return self._schema

    # ---- recovery ---------------------------------------------------------------------------------------------------

    def _recover(self) -> None:
        self._point("recover.begin")
        known = self._manifest.begin()
        if known is not None:
            now = self._layout.contents()
            self.recovery.messages += losses(known.lost(now), self._layout.root)
            self._manifest.note(**asdict(known.common(now)))
        cut_torn_line(self._layout.runs)
        cut_torn_line(self._layout.ledger)
        self._spend_by_run, self._counted, damaged_lines = self._layout.read_ledger()
        if damaged_lines:
            are = "is" if damaged_lines == 1 else "are"
            self.recovery.messages.append(
                f"{plural(damaged_lines, 'line')} of {self._layout.ledger} {are} damaged: "
                "earlier costs are told too low."
            )
        self._note(self._dataset.load(self.index, self.keys, self.known))
        found = [replay(path) for path in journals(self._layout.state).values()]
        self._generation = max([*self._counted, *(each.generation for each in found), 0])
        for each in found:
            self._answers.add(each.answers)
            self.recovery.add_damage(each)
        for each in found:
            self._answers.settle(each.settled)
        if len(self._answers):
            # Durable in a generation of their own, before the ones that hold them are deleted.
            self._open_journal()
        for each in found:
            self._reseal(each)
        self._manifest.note(**asdict(self._layout.contents()))
        self._point("recover.end")

    def _reseal(self, found: Replay) -> None:
        """Publish what a journal holds and no part does, count its costs, and delete it."""
        ids = [custom_id for custom_id in found.settled if is_live(self.index.get(custom_id))]
        published = self._dataset.published(ids) if ids else set()
        pending: Pending | None = None
        late: Pending | None = None

        def take(record: Unsealed) -> None:
            nonlocal pending, late
            values = record.values
            if (values[_CUSTOM_ID], values[_RUN_ID], values[_FINISHED_AT]) in published:
                return
            if self._schema is None:  # the journal outlived the schema file: its rows know their types
                self.freeze_input(record.columns.schema)
            if record.late:
                late = late or Pending(self._required_schema)
                late.add([record])
                if values[_STATUS] == "ok":
                    self.index.add_archived(values[_CUSTOM_ID])
                return
            if pending is None:
                pending = Pending(self._required_schema)
            pending.add([record])
            if self.known is not None:
                self.known.forget(values[_ROW_INDEX], values[_SAMPLE])
            state = state_of(values[_STATUS], values[_ERROR_KIND])
            self._know(values[_CUSTOM_ID], values[_KEY], values[_SAMPLE], state, seen=False)

        if found.records:
            replay(found.path, take, self._own_columns)
        sealing = Sealing(
            found.generation,
            found.run_id,
            found.path,
            pending.batches() if pending is not None else [],
            found.spend,
            by_id=self._by_id,
            by_key=self._by_key,
            late=late.batches() if late is not None else [],
            damaged=found.damage is not None and not found.damage.torn,
        )
        self._by_id = self._by_key = False
        self.recovery.records += sealing.rows
        moved = self._publish(sealing)
        self._note(moved)
        if sealing.generation not in self._counted:
            self._count(sealing.run_id, sealing.spend)
        self._point("recover.sealed")

    def _note(self, moved: Moved) -> None:
        for custom_id, archived in moved.removed:
            self.index.remove(custom_id, archived=archived)
        if moved.removed and self.known is not None:
            self.known.forget()
        self.recovery.messages += moved.messages

    # ---- committing -------------------------------------------------------------------------------------------------

    def commit(self, entries: Sequence[Entry]) -> Change:
        """Make entries durable: one write and one synchronization for all of them. Returns the change to apply.

        Raises StorageError where the disk refuses; ValueError where a record's input columns are not the frozen ones.
        """
        if not entries:
            return Change()
        with self._unbroken():
            self._point("commit.before")
            journal = self._journal or self._open_journal()
            records = journal.encode(entries)
            journal.write()
            self._point("commit.written")
            journal.synchronize()
            self._point("commit.after")
            self._answers.add(entry for entry in entries if isinstance(entry, Answer))
            self._answers.settle(record.values[_CUSTOM_ID] for record in records)
            if records:
                if self._pending is None:
                    self._pending = Pending(self._required_schema)
                late = [record for record in records if record.late]
                self._pending.add([record for record in records if not record.late] if late else records)
                if late:
                    self._late = self._late or Pending(self._required_schema)
                    self._late.add(late)
            self._commits += 1
            return Change(committed=entries, spend=journal.cost, commits=1)

    def apply(self, change: Change) -> None:
        """Fold a change into `index`, `keys` and the ledger's totals; on the thread that reads them."""
        self._count(self.run_id, change.spend)
        for entry in change.committed:
            if isinstance(entry, Settled):
                record = entry.record
                if entry.late:
                    if record.status == "ok":
                        self.index.add_archived(record.custom_id)
                    continue
                state = state_of(record.status, record.error_kind)
                self._know(record.custom_id, record.key, record.sample_index, state, seen=entry.seen)
        for custom_id, archived in change.removed:
            self.index.remove(custom_id, archived=archived)
        self._applied += change.commits

    def _know(self, custom_id: str, key: str | None, sample_index: int, state: int, *, seen: bool) -> None:
        """Note a live record, and whether it may supersede another one."""
        before = self.index.put(custom_id, state, seen=seen)
        had_live = is_live(before)
        self._by_id = self._by_id or had_live
        if self.keys is not None and key is not None:
            had_key = self.keys.mark_live(key_digest(key, sample_index))
            self._by_key = self._by_key or (had_key and not had_live)

    def open_answers(self) -> dict[str, list[Answer]]:
        """Return the answers of requests that are not settled, by `custom_id`, in the order of their steps."""
        return dict(self._answers.by_request())

    # ---- sealing ----------------------------------------------------------------------------------------------------

    def should_seal(self, now: float) -> bool:
        """Tell whether enough records, bytes or seconds (of the caller's clock) are pending for a seal."""
        journal = self._journal
        if journal is None or self._sealing:
            return False
        if journal.size >= JOURNAL_FACTOR * self._part_bytes:
            return True
        pending = self._pending
        if pending is None:
            return False
        if self._pending_since is None:
            self._pending_since = now
        return (
            pending.rows >= self._part_rows
            or pending.nbytes >= self._part_bytes
            or now - self._pending_since >= self._part_seconds
        )

    @property
    def pending_rows(self) -> int:
        """How many committed records are in no part yet, save those that are being sealed."""
        return 0 if self._pending is None else self._pending.rows

    @property
    def unsealed(self) -> bool:
        """Tell whether committed records wait to be published, or to go to the archive."""
        return bool(self.pending_rows or self._late is not None)

    def rotate(self) -> Sealing | None:
        """Close this generation of the journal and open the next; None where there is nothing to seal.

        Answers of open requests are carried over. Raises RuntimeError where a change was not applied, or where the last
        sealing is still going on; StorageError where the disk refuses.
        """
        if self._applied != self._commits:
            raise RuntimeError("apply every change before the journal is rotated")
        if self._sealing:
            raise RuntimeError("one sealing at a time")
        with self._unbroken():
            old = self._journal
            if old is None:
                return None
            old.close()
            sealing = Sealing(
                old.generation,
                old.run_id,
                old.path,
                self._pending.batches() if self._pending is not None else [],
                old.spend,
                by_id=self._by_id,
                by_key=self._by_key,
                late=self._late.batches() if self._late is not None else [],
            )
            self._journal = self._pending = self._late = self._pending_since = None
            self._by_id = self._by_key = False
            self._sealing = True
            if len(self._answers):
                self._open_journal()
            return sealing

    def seal(self, sealing: Sealing) -> Change:
        """Publish a closed generation: archive, rewrite, parts, ledger, and the journal is deleted.

        Raises StorageError where the disk refuses; the journal then stays, and the next `open` goes on.
        """
        with self._unbroken():
            moved = self._publish(sealing)
            self._sealing = False
            return Change(removed=moved.removed, lost=moved.lost, messages=moved.messages)

    def finish(self) -> Change:
        """Seal everything that is left, when nothing else is at work; apply what it returns."""
        sealing = self.rotate()
        return Change() if sealing is None else self.seal(sealing)

    def _publish(self, sealing: Sealing) -> Moved:
        moved = Moved()
        if sealing.batches or sealing.late:
            table = pa.Table.from_batches(sealing.batches, self._required_schema)
            late = pa.Table.from_batches(sealing.late, self._required_schema)
            sealing.batches = []  # the table holds them, and lets go of them with this call
            moved = self._dataset.seal(table, by_id=sealing.by_id, by_key=sealing.by_key, late=late)
            del table
            pa.default_memory_pool().release_unused()
        if sealing.generation not in self._counted and any(sealing.spend):
            self._layout.add_to_ledger(sealing.generation, sealing.run_id, sealing.spend)
        self._point("seal.ledger")
        self._note_files(sealing.path.name)
        if sealing.damaged:
            self.recovery.set_aside.append(str(set_journal_aside(sealing.path, self._layout.damaged)))
        else:
            remove_journal(sealing.path)
        self._point("seal.trimmed")
        return moved

    def _note_files(self, sealed: str = "") -> None:
        """Note in the manifest what a sealing or a pruning has left in the folders."""
        layout = self._layout
        self._manifest.sealed(
            sealed,
            parts=layout.parts().names(),
            archive=layout.archive().names(),
            ledger=size_of(layout.ledger),
        )

    def _open_journal(self) -> Journal:
        self._generation += 1
        self._journal = Journal.create(
            journal_path(self._layout.state, self._generation),
            self._generation,
            run_id=self.run_id,
            input_schema=self._frozen.input,
            columns=self._own_columns,
            carried=self._answers,
        )
        self._manifest.add_journal(self._journal.path.name)
        return self._journal

    @property
    def _own_columns(self) -> tuple[str, ...]:
        """The columns that a record of this output brings itself."""
        if self._schema is not None:
            return own_columns(self._schema)
        return RECORD_COLUMNS if self._frozen.parsed is None else (*RECORD_COLUMNS, PARSED)

    @property
    def _required_schema(self) -> pa.Schema:
        if self._schema is None:
            raise RuntimeError("freeze the input's schema before committing records")
        return self._schema

    def _count(self, run_id: str, spend: Spend) -> None:
        if any(spend):
            self._spend_by_run[run_id] = self._spend_by_run.get(run_id, Spend()).plus(spend)

    @contextmanager
    def _unbroken(self) -> Iterator[None]:
        """Refuse to go on after an error: what a failed write left behind must not be built upon."""
        if self._broken is not None:
            raise StorageError(
                f"the output {self.directory} takes nothing more after an error: {self._broken}",
                remedy="Run the same command again: it goes on where it stopped.",
            ) from self._broken
        try:
            yield
        except BaseException as error:
            self._broken = error
            raise

    # ---- archive ----------------------------------------------------------------------------------------------------

    def fetch_archived(self, custom_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Return archived completions by `custom_id`: the output's own columns, times in microseconds.

        Those that cannot be found are left out. The caller commits them again, with their row of today and no spend.
        May be called beside `commit` and `seal`, by one thread at a time. Raises StorageError.
        """
        return self._dataset.fetch_archived(custom_ids)

    def archive_unseen(self) -> Change:
        """Move every live record that this pass has not met to the archive; `removed` of the change names them.

        Only after a complete pass and `finish`, when nothing else is at work. Raises StorageError.
        """
        with self._unbroken():
            moved = self._dataset.prune(lambda custom_id: not self.index.is_seen(custom_id))
            self._note_files()
            return Change(removed=moved.removed, lost=moved.lost, messages=moved.messages)

    def archive_surplus(self, samples: int) -> Change:
        """Move every live record with a `sample_index` of `samples` or more to the archive: a job asks for fewer now.

        Only after a complete pass and `finish`, when nothing else is at work. Raises StorageError.
        """
        with self._unbroken():
            moved = self._dataset.prune_samples(samples)
            self._note_files()
            return Change(removed=moved.removed, lost=moved.lost, messages=moved.messages)

    def drop_answers(self) -> None:
        """Let go of open answers: after a complete pass they belong to requests that the input no longer yields."""
        self._answers = OpenAnswers()

    # ---- what is known ----------------------------------------------------------------------------------------------

    def counts(self) -> Counts:
        """Return how many records are live, by state, and how many of them this pass has met; constant work."""
        return self.index.counts()

    def stored_rows(self) -> int:
        """Return how many records the dataset holds, as the parts themselves say, and how many are not in one yet."""
        return self._dataset.rows() + self.pending_rows

    def ledger_total(self) -> Spend:
        """Return what all runs into this output have cost, as far as it was applied."""
        return sum_spends(self._spend_by_run.values())

    def ledger_of(self, run_id: str) -> Spend:
        """Return what one run has cost."""
        return self._spend_by_run.get(run_id, Spend())

    def read_state(self) -> dict[str, Any]:
        """Return what the last run left for this one; empty at the first."""
        return self._layout.object("state.json")

    def save_state(self, state: Mapping[str, Any]) -> None:
        """Replace what the next run will find in `read_state`, durably."""
        self._layout.save("state.json", dict(state))

    def write_live(self, live: Mapping[str, Any]) -> None:
        """Replace what `status` reads while the run goes on; whole at every instant, not made durable."""
        self._layout.save("live.json", dict(live), durable=False)

    def append_run(self, run: Mapping[str, Any]) -> None:
        """Add a line about an ended run, durably."""
        append_line(self._layout.runs, dict(run))
        self._manifest.note(runs=size_of(self._layout.runs))

    def close(self) -> None:
        """Let go of the output. What was committed and not sealed is recovered by the next `open`."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None
        if self.known is not None:
            self.known.trail.flush()
            self.known.trail.close()
        self._lock.release()

    def __enter__(self) -> Store:
        """Return the store; leaving the block closes it."""
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
