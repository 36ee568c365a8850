"""An output as a reader sees it: without the lock, also while a run is at work.

Live records are those of the parts and the committed ones of the journals that no part holds yet. The journals are
read first, so that a record which a run publishes meanwhile is met in its part and not told twice.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from batchchat.addresses import address_of
from batchchat.dataclass import dataclass
from batchchat.errors import StorageError, UsageError
from batchchat.lazy_arrow import compute as pc
from batchchat.records import RECORD_COLUMNS, Spend
from batchchat.store.column_types import read_types
from batchchat.store.index import KeyIndex, RecordIndex
from batchchat.store.journal import AnswerEntry, OpenAnswers, Replay, replay
from batchchat.store.json_files import read_lines
from batchchat.store.known import KnownRows, Pass
from batchchat.store.ledger import SpendLedger
from batchchat.store.loading import INDEXED, IndexLoader
from batchchat.store.location.choice import evaluation_outputs, is_output_folder, location_of
from batchchat.store.location.port import Location, PartFiles
from batchchat.store.manifest import RUNS
from batchchat.store.parts import ROW_GROUP_ROWS, DamagedPartError, PartReader, latest, newest_of_keys, sample_keys
from batchchat.store.pending import Pending, Unsealed
from batchchat.store.schema import Frozen, own_columns
from batchchat.store.sharding import shard_places
from batchchat.store.state import LIVE, STATE, State, in_order

_NEEDED = ("custom_id", "key", "sample_index")


@dataclass(slots=True)
class Output:
    """A view of an output at one moment. `job` is the last run's snapshot, `holder` who runs it now.

    `last_run` tells how the last run ended; in an output with `shards`, how the last runs of all its shards did. It is
    None if none has ended by itself.
    """

    directory: Path | str
    job: dict[str, Any]
    state: dict[str, Any]
    frozen: Frozen
    runs: list[dict[str, Any]]
    live: dict[str, Any] | None
    holder: dict[str, Any] | None
    spend_by_run: dict[str, Spend]
    answers: dict[str, list[AnswerEntry]] = field(default_factory=dict)
    pending: pa.Table | None = None
    last_run: dict[str, Any] | None = None
    shards: int | None = None
    _places: Sequence[Location] = ()
    _states: Sequence[Location] = ()

    @property
    def spend(self) -> Spend:
        """What all runs have cost so far."""
        total = Spend()
        for spend in self.spend_by_run.values():
            total = total.plus(spend)
        return total

    @property
    def input_schema(self) -> pa.Schema | None:
        """The frozen columns of the input; None where no run has frozen them yet."""
        return self.frozen.input

    @property
    def schema(self) -> pa.Schema | None:
        """The dataset's schema; None where no run has frozen the input's yet."""
        return self.frozen.output()

    @property
    def own_columns(self) -> tuple[str, ...]:
        """The columns that a record brings itself; a later one is missing if the input has its name."""
        schema = self.schema
        return RECORD_COLUMNS if schema is None else own_columns(schema)

    def run_ids(self) -> list[str]:
        """Return the identities of all runs that ever held this output, whatever became of them, in their order."""
        return in_order([State(place).run_starts() for place in self._states])

    def snapshot(self, run_id: str) -> dict[str, Any] | None:
        """Return the job as a run had it, None where that run left none."""
        found = (State(place).snapshot(run_id) for place in self._states)
        return next((snapshot for snapshot in found if snapshot is not None), None)

    def records(
        self, columns: Sequence[str] | None = None, *, batch_rows: int = ROW_GROUP_ROWS
    ) -> Iterator[pa.RecordBatch]:
        """Yield all live records in batches, part by part, then those that are only in the journal.

        Raises StorageError where a part is damaged.
        """
        names = columns if columns is not None or self.schema is None else self.schema.names
        for read in self._pieces(batch_rows):
            yield from read(list(names or ()))

    def matching(
        self, columns: Sequence[str], needed: Sequence[str], mask: Callable[[pa.RecordBatch], pa.Array]
    ) -> Iterator[pa.RecordBatch]:
        """Yield the live records for which `mask` is true, with these columns, in the order of `records`.

        `mask` gets batches of the `needed` columns. All others are read of parts alone that hold a wanted record.
        """
        for read in self._pieces(ROW_GROUP_ROWS):
            masks = [mask(batch) for batch in read(list(needed))]
            if not any(holds.true_count for holds in masks):
                continue
            for batch, holds in zip(read(list(columns)), masks, strict=False):
                found = batch.filter(holds)
                if found.num_rows:
                    yield found

    def _pieces(self, batch_rows: int) -> Iterator[Callable[[list[str]], Iterator[pa.RecordBatch]]]:
        """Yield for each part, and for the journal, what reads columns of its live records."""
        schema = self.schema
        if schema is None:
            return
        pending = self.pending if self.pending is not None and self.pending.num_rows else None
        superseding = None if pending is None else _Superseding(pending)

        def read_live(files: PartFiles, part: str, names: list[str]) -> Iterator[pa.RecordBatch]:
            read = names if superseding is None else list(dict.fromkeys([*names, *_NEEDED]))
            try:
                with PartReader(files, part, schema) as reader:
                    for batch in reader.batches(read, rows=batch_rows):
                        left = batch if superseding is None else superseding.left_of(batch)
                        if left.num_rows:
                            yield left.select(names)
            except FileNotFoundError:
                return  # a run has just moved its last records to the archive
            except DamagedPartError as error:
                raise _damaged(files, error) from error

        for files, part in self._parts():
            yield partial(read_live, files, part)
        if pending is not None:
            journaled = pending
            yield lambda names: iter(journaled.select(names).to_batches(max_chunksize=batch_rows))

    def _parts(self) -> Iterator[tuple[PartFiles, str]]:
        """Yield the names of the parts, in their order, shard by shard, each with where it is."""
        for place in self._places:
            for name in place.parts.names():
                yield place.parts, name

    def part_names(self) -> list[str]:
        """Return the names of the parts, in their order."""
        return [name for _, name in self._parts()]

    def read_part(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Return a part, also records in it that the journal supersedes. Raises StorageError where it is damaged."""
        files = next(place.parts for place in self._places if place.parts.kind.number(name) is not None)
        try:
            with PartReader(files, name, self.schema) as reader:
                return reader.read(columns)
        except DamagedPartError as error:
            raise _damaged(files, error) from error

    def _rows(self) -> int:
        """How many live records there are, more or less, as the parts' own footers say it."""
        rows = 0 if self.pending is None else self.pending.num_rows
        for files, name in self._parts():
            with suppress(FileNotFoundError, DamagedPartError), PartReader(files, name) as reader:
                rows += reader.rows
        return rows

    def known(self, following: Pass) -> KnownRows:
        """Return what an earlier pass knew of the rows of this one, as a run would find it. Close its trail."""
        return following.known(self._places[0].scratch(), writable=False)

    def load_index(
        self, *, with_keys: bool = False, known: KnownRows | None = None
    ) -> tuple[RecordIndex, KeyIndex | None]:
        """Return what is done, as a run would find it: live records and archived completions.

        Final records of `known` rows are loaded as seen by this pass.
        """
        index = RecordIndex()
        keys = KeyIndex() if with_keys else None
        rows = self._rows()
        index.reserve(rows)
        if keys is not None:
            keys.reserve(rows)
        columns = [*INDEXED, *(["key"] if with_keys else [])]
        loader = IndexLoader(index, keys, known)
        for batch in self.records(columns):
            loader.add(batch, batch.column("key") if with_keys else None)
        loader.finish()
        for place in self._places:
            _load_archive(place.archive, index)
        return index, keys


def _load_archive(files: PartFiles, index: RecordIndex) -> None:
    """Note which completions an archive holds. A damaged file is passed over: the next run sets it aside."""
    for name in files.names():
        try:
            with PartReader(files, name) as reader:
                table = reader.read(["custom_id", "status"])
        except (DamagedPartError, FileNotFoundError):
            continue
        for custom_id in table.filter(pc.equal(table.column("status"), "ok")).column("custom_id").to_pylist():
            index.add_archived(custom_id)


def _damaged(files: PartFiles, error: DamagedPartError) -> StorageError:
    """Leave word of a damaged part for the next run, and return what to raise."""
    files.report(error.part)
    return StorageError(
        f"{files.address(error.part)}: {error}",
        remedy="Run the job again: it sets the part aside and asks for its rows anew.",
    )


class _Superseding:
    """Committed records of the journals. What the parts hold of the same requests, or the same keys, gives way."""

    def __init__(self, pending: pa.Table) -> None:
        self._ids = pending.column("custom_id").combine_chunks()
        self._keys = sample_keys(pending).combine_chunks().drop_null()

    def left_of(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return the records of a batch that live on; one that is published already is told from the journal."""
        same_id = pc.is_in(batch.column("custom_id"), value_set=self._ids)
        same_key = pc.is_in(sample_keys(batch), value_set=self._keys, skip_nulls=True)
        return batch.filter(pc.invert(pc.or_(same_id, same_key)))


def no_output(directory: Path | str) -> UsageError:
    """Return the error of a folder that is no output; an evaluation names the outputs that it has."""
    outputs, folder = evaluation_outputs(directory), Path(directory)
    if not outputs:
        return UsageError(
            f"{directory} is no output of batchchat", remedy="Give the folder, or the URL, that a job's `output` names."
        )
    return UsageError(
        f"{folder} is an evaluation: its {len(outputs)} outputs are below {folder / 'variants'}, its report is "
        f"{folder / 'report.html'}",
        remedy=f"Name one output, such as {outputs[0]}; `batchchat status {directory}` lists them. `show` and `export` "
        "take --variant NAME.",
    )


def is_output(directory: Path | str) -> bool:
    """Tell whether a folder is an output of batchchat. Raises UsageError if it holds something else."""
    return location_of(directory).holds_output()


def frozen_schema(directory: Path | str) -> Frozen:
    """Return the types that an output was made with, those of nothing if there is none yet.

    Raises UsageError if the folder holds something else.
    """
    location = location_of(directory)
    if not location.holds_output():
        return Frozen()
    count = State(location).shards()
    return read_types(location) if count is None else _types_of_shards(shard_places(location, count))


def _types_of_shards(places: Sequence[Location]) -> Frozen:
    """Return the types that the shards were made with: all have the same, but one that is new may lack some."""
    found = [read_types(place) for place in places]
    frozen = next((each for each in found if each.input is not None), Frozen())
    return Frozen(
        frozen.input, next((each.parsed for each in found if each.parsed is not None), None), frozen.recovered
    )


def read_state(directory: Location | Path | str) -> Output:
    """Look at an output without holding it.

    Raises UsageError if the folder is no output of batchchat, StorageError if it cannot be read.
    """
    location = existing_output(directory)
    count = State(location).shards()
    if count is None:
        output = _read_place(location, read_types(location))
        output.last_run = output.runs[-1] if output.runs else None
        return output
    places = shard_places(location, count)
    frozen = _types_of_shards(places)
    return _joined(location, places, [_read_place(place, frozen) for place in places], count, frozen)


def _read_place(location: Location, frozen: Frozen) -> Output:
    """Look at an output without shards, or at one shard."""
    state = State(location)
    holder = location.holder()
    schema = frozen.output()
    pending = None if schema is None else Pending(schema)
    replays = _replays(location, pending)
    ledger = SpendLedger(location.state).read()
    answers = OpenAnswers()
    for found in replays:
        # A journal that is sealed already, and not yet removed, is counted in the ledger.
        if found.generation not in ledger.generations:
            ledger.count(found.run_id, found.spend)
        answers.add(found.answers)
    for found in replays:
        answers.settle(found.settled)
    return Output(
        directory=address_of(location.address),
        job=state.job(),
        state=state.object(STATE),
        frozen=frozen,
        runs=read_lines(location.state, RUNS)[0],
        live=state.object(LIVE) or None,
        holder=holder,
        spend_by_run=ledger.by_run,
        answers=dict(answers.by_request()),
        pending=None if pending is None else _newest(pa.Table.from_batches(pending.batches(), pending.schema)),
        _places=[location],
        _states=[location],
    )


def _joined(
    location: Location, places: Sequence[Location], shards: Sequence[Output], count: int, frozen: Frozen
) -> Output:
    """Return the sum of the shards of an output, each with its place; `count` is how many it has in all."""
    from batchchat.store.joined_runs import joined_last, joined_lines, joined_snapshots

    state = State(location)
    holder = location.holder()
    lives = [state.object(LIVE)]
    if holder is None and (held := [shard for shard in shards if shard.holder is not None]):
        # Runs over some of the shards each, side by side. One that holds several writes its progress in the first.
        holder = held[0].holder
        running = {run_id for shard in held if (run_id := (shard.holder or {}).get("run_id"))}
        lives = [shard.live for shard in held if shard.live and shard.live.get("run_id") in running]
    spend: dict[str, Spend] = {}
    for shard in shards:
        for run_id, amount in shard.spend_by_run.items():
            spend[run_id] = spend.get(run_id, Spend()).plus(amount)
    tables = [shard.pending for shard in shards if shard.pending is not None]
    lines = [shard.runs for shard in shards]
    runs = joined_lines(read_lines(location.state, RUNS)[0], lines)
    output = Output(
        directory=address_of(location.address),
        job={},
        state=next((shard.state for shard in shards if shard.state), {}),
        frozen=frozen,
        runs=runs,
        live=joined_snapshots([live for live in lives if live]) if any(lives) else None,
        holder=holder,
        spend_by_run=spend,
        answers={custom_id: found for shard in shards for custom_id, found in shard.answers.items()},
        pending=pa.concat_tables(tables) if tables else None,
        last_run=joined_last(runs, lines, count),
        shards=count,
        _places=places,
        _states=[location, *places],
    )
    # Runs over some of the shards may have had other jobs: the newest counts.
    newest = output.run_ids()[-1:]
    output.job = (output.snapshot(newest[0]) if newest else None) or state.job()
    return output


def existing_output(directory: Location | Path | str) -> Location:
    """Return the location of an output. Raises UsageError if the folder is none, or of an unknown format."""
    location = location_of(directory)
    # What the location says of something else is for those who want to write there.
    if not is_output_folder(location):
        raise no_output(address_of(location.address))
    State(location).check_format()
    return location


def earlier_prompts(directory: Path | str, prompt_id: str) -> int:
    """Return how many live records answer another prompt than this one; one column is read.

    Records of versions that did not tell the prompt are not counted.
    """
    if "prompt_id" not in read_state(directory).own_columns:
        return 0
    batches = iter_output(directory, columns=["prompt_id"])
    return sum(int(pc.not_equal(batch.column("prompt_id"), prompt_id).true_count) for batch in batches)


def _replays(location: Location, pending: Pending | None) -> list[Replay]:
    found, journals = [], location.journals
    for generation in journals.generations():
        try:
            if pending is None:
                found.append(replay(journals, generation))
            else:
                columns = own_columns(pending.schema)
                found.append(replay(journals, generation, partial(_add_live, pending), columns))
        except FileNotFoundError:
            continue  # sealed meanwhile: its records are in the parts
    return found


def _add_live(pending: Pending, record: Unsealed) -> None:
    if not record.late:
        pending.add([record])


def _newest(table: pa.Table) -> pa.Table:
    """Return the last record of each identity, and of each key and sample."""
    # Nothing is pending in an output whose run has ended.
    return newest_of_keys(latest(table))[0] if table.num_rows else table


def iter_output(
    directory: Path | str, *, batch_rows: int = ROW_GROUP_ROWS, columns: Sequence[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """Yield the live records of an output in batches, in the order of the parts, with constant memory.

    Raises UsageError where the folder is no output, StorageError where a part is damaged.
    """
    yield from read_state(directory).records(columns, batch_rows=batch_rows)


def read_output(directory: Path | str, *, columns: Sequence[str] | None = None) -> pa.Table:
    """Return the live records of an output as one table, in the order of the input's rows and samples.

    Raises UsageError if the folder is no output, holds no records yet or has no such column, StorageError if a part is
    damaged.
    """
    output = read_state(directory)
    schema = output.schema
    if schema is None:
        raise UsageError(f"{directory} holds no records yet", remedy="Run its job first.")
    names = list(columns) if columns is not None else schema.names
    for name in names:
        if name not in schema.names:
            near = difflib.get_close_matches(name, schema.names, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise UsageError(f"{directory} has no column {name!r}{hint}", remedy=f"It has {', '.join(schema.names)}.")
    table = pa.Table.from_batches(
        output.records(list(dict.fromkeys([*names, "row_index", "sample_index"]))),
        pa.schema([schema.field(name) for name in dict.fromkeys([*names, "row_index", "sample_index"])]),
    )
    order = pc.sort_indices(table, sort_keys=[("row_index", "ascending"), ("sample_index", "ascending")])
    return table.take(order).select(names)
