"""Moving the records of an output into another number of shards. Nothing is asked, and nothing is lost by a kill.

The new output is built beside the old one, which stays as it is until the new one is whole; then the two change places
in one step. The old one is kept under another name, as `--fresh` keeps one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import pyarrow as pa

from batchchat.addresses import Address, is_url
from batchchat.dataclass import dataclass
from batchchat.errors import StorageError, UsageError
from batchchat.records import Spend
from batchchat.store.bounds import PART_BYTES
from batchchat.store.components import Components
from batchchat.store.joined_runs import joined_lines
from batchchat.store.json_files import append_json, read_lines
from batchchat.store.ledger import LEDGER
from batchchat.store.location.folder import FolderLocation
from batchchat.store.location.port import Location
from batchchat.store.manifest import RUNS
from batchchat.store.output import Output, existing_output, read_state
from batchchat.store.parts import DamagedPartError, PartReader
from batchchat.store.schema import Frozen
from batchchat.store.sharding import begin_shards, shard_place, shard_places
from batchchat.store.state import JOB, SNAPSHOTS, STATE, State
from batchchat.store.store import Store

PlaceOf = Callable[[pa.RecordBatch], Sequence[int]]
"""Tells the new shard of each record, of which it gets all columns."""

_CARRIED = (SNAPSHOTS, "reviews")
"""Folders of the state that belong to the output as a whole."""
_TEXTS = ("text_digest", "answered_text")
_SEVERAL = "several"
_WAITING_BYTES = 2 * PART_BYTES
"""Records that wait for their part, over all shards: few enough for a small machine, and enough that each part is
written again about twice."""
_SHARD_BYTES = 4 * 2**20
"""Bytes of a part of one shard while records are moved: all shards have one in memory at the same time."""


@dataclass(frozen=True, slots=True)
class Resharded:
    """What was moved: live records, records of the archive, and where the old output is now."""

    records: int
    archived: int
    shards: int
    before: int
    old: str


def reshard(output: Address, shards: int, place_of: PlaceOf, *, run_id: str) -> Resharded:
    """Move an output into so many shards, 1 for none. Blocking code, in memory that does not grow with the records.

    Raises UsageError if it has as many already, OutputLocked if a run holds it, StorageError if the disk refuses or a
    part is damaged; the output then is as it was.
    """
    if is_url(output):
        raise UsageError(f"{output} is in a bucket: only a folder can be resharded", remedy="Copy it to a folder.")
    location = existing_output(output)
    assert isinstance(location, FolderLocation)  # noqa: S101 - no URL is left
    before = State(location).shards() or 1
    if before == shards:
        have = "no shards" if shards == 1 else f"{shards} shards"
        raise UsageError(f"{output} has {have} already", remedy="There is nothing to move.")
    with ExitStack() as held:
        # Opening seals what a killed run left in journals, so that everything is in parts and in archives.
        if before > 1:
            held.callback(location.hold(run_id).release)
        places = [location] if before == 1 else shard_places(location, before)
        job_name = str(read_state(output).job.get("name", ""))
        for place in places:
            store = held.enter_context(Store.open(place, job_name=job_name, snapshot={}, run_id=run_id))
            store.apply(store.finish())
        old = read_state(output)
        draft = location.draft()
        with ExitStack() as building:
            _begin(draft, shards, run_id=run_id, job_name=job_name)
            new = _Building(draft, shards, old.frozen, building, run_id=run_id, job_name=job_name)
            records = new.take_records(old, place_of)
            archived = new.take_archives(places, place_of)
            new.take_state(location, places, old)
            new.check(records)
        location.carry_over(draft)
        kept = location.change_places()
    return Resharded(records, archived, shards, before, kept)


def _begin(draft: FolderLocation, shards: int, *, run_id: str, job_name: str) -> None:
    if shards > 1:
        begin_shards(draft, shards, run_id=run_id, job_name=job_name)


class _Building:
    """The new output, while it is built."""

    def __init__(
        self, draft: Location, shards: int, frozen: Frozen, held: ExitStack, *, run_id: str, job_name: str
    ) -> None:
        self._draft = draft
        self._shards = shards
        self._places = [draft] if shards == 1 else [shard_place(draft, number) for number in range(shards)]
        self._stores = [
            held.enter_context(
                Store.open(
                    place,
                    job_name=job_name,
                    snapshot={},
                    run_id=run_id,
                    input_schema=frozen.input,
                    parsed=frozen.parsed,
                    part_bytes=PART_BYTES if shards == 1 else _SHARD_BYTES,
                )
            )
            for place in self._places
        ]

    def take_records(self, old: Output, place_of: PlaceOf) -> int:
        """Copy the live records; return how many there are."""
        return self._take(old.records(), place_of, self._publish)

    def take_archives(self, places: Sequence[Location], place_of: PlaceOf) -> int:
        """Copy the records of the archives; return how many there are."""
        schema = self._stores[0].components.types.required_schema
        batches = (
            batch for place in places for name in place.archive.names() for batch in _batches(place, name, schema)
        )
        return self._take(batches, place_of, self._archive)

    def _take(
        self, batches: Iterator[pa.RecordBatch], place_of: PlaceOf, keep: Callable[[Components, pa.Table], None]
    ) -> int:
        """Give records to `keep` by their shards, many at a time: each time it writes a file again."""
        number = nbytes = 0
        waiting: dict[int, list[pa.RecordBatch]] = {}

        def flush() -> None:
            for shard, parts in waiting.items():
                held = self._stores[shard].components
                keep(held, pa.Table.from_batches(parts).cast(held.types.required_schema).combine_chunks())
                held.manifest.sealed()
            waiting.clear()

        for batch in batches:
            number += batch.num_rows
            nbytes += batch.nbytes
            for shard, part in _split(batch, place_of):
                waiting.setdefault(shard, []).append(part)
            if nbytes >= _WAITING_BYTES:
                flush()
                nbytes = 0
        flush()
        return number

    @staticmethod
    def _publish(held: Components, table: pa.Table) -> None:
        moved = held.dataset.seal(table, by_id=False, by_key=False)
        if moved.messages:
            raise StorageError(moved.messages[0], remedy="The output is as it was. Look at the disk, and try it again.")

    @staticmethod
    def _archive(held: Components, table: pa.Table) -> None:
        held.dataset.archive.add(table.schema, table.to_batches, table.num_rows, [])

    def take_state(self, location: Location, places: Sequence[Location], old: Output) -> None:
        """Copy what is known beside the records: jobs, runs, costs, open answers, reviews."""
        for folder in _CARRIED:
            for place in [location, *places]:
                for name, _ in sorted(place.state.written(folder)):
                    data = place.state.read(f"{folder}/{name}")
                    if data is not None and not self._draft.state.has(f"{folder}/{name}"):
                        self._draft.state.publish(f"{folder}/{name}", data)
        State(self._draft).save(JOB, old.job)
        own = read_lines(location.state, RUNS)[0]
        lines = (
            old.runs
            if len(places) == 1 and places[0] is location
            else joined_lines(own, [read_lines(place.state, RUNS)[0] for place in places])
        )
        for line in lines:
            append_json(self._draft.state, RUNS, {**line, "shards": []})
        # Costs are of the runs, and no matter of one shard: the first keeps them all.
        self._take_ledgers(places)
        state = _joined_state([State(place).object(STATE) for place in places])
        answers = [answer for found in old.answers.values() for answer in found]
        for store in self._stores:
            store.runs.save_state(state)
            held = store.components
            if answers:
                # An answer does not tell its row: each shard keeps it until its next whole pass.
                held.log.answers.add(answers)
                held.log.begin()
            held.manifest.note_runs()

    def _take_ledgers(self, places: Sequence[Location]) -> None:
        ledger = self._stores[0].components.ledger
        generation = 0
        for place in places:
            for line in read_lines(place.state, LEDGER)[0]:
                amounts: list[Any] = [line.get(name) for name in Spend._fields]
                if all(type(amount) in {int, float} for amount in amounts):
                    generation += 1
                    ledger.append(generation, str(line.get("run_id")), Spend(*amounts), line.get("keys") or ())
        held = self._stores[0].components
        # A number is never used twice: the ledger counts by it.
        held.log.generation = max(held.log.generation, generation)
        held.manifest.sealed()

    def check(self, records: int) -> None:
        """Count what the new output holds. Raises StorageError if that is not what the old one held."""
        found = sum(store.stored_rows() for store in self._stores)
        if found != records:
            raise StorageError(
                f"the new output holds {found:,} records, and the old one {records:,}: nothing was changed",
                remedy="Run `batchchat verify`, and try it again.",
            )


def _split(batch: pa.RecordBatch, place_of: PlaceOf) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield the records of each shard."""
    shards = place_of(batch)
    if len(Counter(shards)) == 1:
        yield shards[0], batch
        return
    rows: dict[int, list[int]] = {}
    for row, shard in enumerate(shards):
        rows.setdefault(shard, []).append(row)
    for shard, chosen in rows.items():
        yield shard, batch.take(pa.array(chosen, pa.int64()))


def _batches(place: Location, name: str, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    try:
        with PartReader(place.archive, name, schema) as reader:
            yield from reader.batches()
    except DamagedPartError as error:
        raise StorageError(
            f"{place.archive.address(name)}: {error}", remedy="Run the job once: it sets the file aside."
        ) from error


def _joined_state(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what the shards' states have in common; texts that differ are several."""
    known = [state for state in found if state]
    if not known:
        return {}
    joined: dict[str, Any] = {}
    for name in dict.fromkeys(name for state in known for name in state):
        values = [state.get(name) for state in known]
        if all(value == values[0] for value in values):
            joined[name] = values[0]
        elif name in _TEXTS[:1]:
            joined[name] = _SEVERAL
        elif name == "currency":
            joined[name] = next(value for value in values if value)
    return joined
