"""The journal: an append-only log of what happened since the last part, one file per generation.

Frames of a journal, in order of writing:

    header   {"format", "generation", "run_id", "columns"}; the first frame of each file
    rows     an Arrow IPC stream: input rows that records behind it stand for
    records  [[sequence of its rows frame, place in it, [values of the record's own columns], [spend]], …]
             with a 1 behind the spend of a record that goes to the archive at once
    answer   {"custom_id", "step", "payload", "spend"}: an answer to a request that is not settled yet
    spend    [spend]: an answered attempt that brought nothing to keep; with a text behind the numbers, its key

`columns` names the record's own columns, since versions differ in them; a journal without it has `FIRST_COLUMNS`.

One commit is one write and one synchronization, however many entries it holds. Input rows are written as Arrow, so that
types and values come back exactly as they were. The first few records of a row batch bring their own rows along; when a
sixteenth of the batch was needed, the whole of it is written once. So a dense run writes each row about once, and a
sparse one (a retry of few failed rows) at most sixteen times what it needs.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import field
from operator import attrgetter
from typing import Any

import orjson
import pyarrow as pa

from batchchat.dataclass import dataclass
from batchchat.errors import StorageError
from batchchat.lazy_arrow import take
from batchchat.records import FIRST_COLUMNS, PARSED, RECORD_COLUMNS, Record, Spend
from batchchat.store.frames import Damage, Frame, FrameReader, encode
from batchchat.store.json_files import json_bytes
from batchchat.store.ledger import sum_spends
from batchchat.store.location.disk import storage_errors
from batchchat.store.location.port import JournalFiles, LogFile
from batchchat.store.pending import Unsealed, storable
from batchchat.store.schema import FORMAT, kept_columns, kept_type, same_types

HEADER, ROWS, RECORD, ANSWER, SPEND, RECORDS = range(1, 7)
WHOLE_BATCH_SHARE = 16
FRAME_RECORDS = 256
FRAME_BYTES = 4 * 2**20
"""Records and bytes of a frame: what is lost if one is damaged, and what reading one takes. Chosen, not measured."""

_CUSTOM_ID = RECORD_COLUMNS.index("custom_id")
_RECORD_BYTES = 400
"""About what a record takes beside its completion."""


@dataclass(slots=True)
class SettledEntry:
    """A request's outcome to commit, and what its answered attempts cost since the last entry about it.

    `seen` is false if the pass that is under way has not asked for the record. A `late` one must not take the place of
    another record of its row: it goes to the archive at once.
    """

    record: Record
    spend: Spend = Spend()
    seen: bool = True
    late: bool = False


@dataclass(slots=True, frozen=True)
class AnswerEntry:
    """An answer to a request that goes on (a correction, a longer second try), numbered by `step` from 0.

    `payload` is a JSON value that lets the engine go on at the next step. It is kept until the request is settled.
    `shard` is that of its row, 0 if the output has none.
    """

    custom_id: str
    step: int
    payload: Any
    spend: Spend = Spend()
    shard: int = 0


@dataclass(slots=True, frozen=True)
class SpendOnly:
    """What cost something and brought nothing to keep. What has a `key` counts once in an output."""

    spend: Spend
    key: str | None = None


Entry = SettledEntry | AnswerEntry | SpendOnly


@dataclass(slots=True)
class _Source:
    """What this generation holds of one row batch. A weak reference: the journal must not keep batches alive.

    `frame` holds all its rows once enough of them were taken. Of an output with shards it holds only those of this
    shard, and `places` says where each is by its offset in the batch.
    """

    columns: weakref.ref[Any]
    taken: int = 0
    frame: int | None = None
    places: dict[int, int] | None = None


class Journal:
    """The journal of one generation, open for appending. Raises StorageError where the disk refuses."""

    def __init__(
        self, file: LogFile, generation: int, run_id: str, input_schema: pa.Schema | None, columns: Sequence[str]
    ) -> None:
        self._file = file
        self.generation = generation
        self.run_id = run_id
        self.size = 0
        self.spend = self.cost = Spend()
        self.keys: list[str] = []
        self._input_schema = input_schema
        self._values = attrgetter(*columns)
        self._kept = pa.schema([(column.name, kept_type(column.type)) for column in input_schema or ()])
        self._sequence = 0
        self._sources: dict[int, _Source] = {}
        self._frames: list[bytes] = []

    @classmethod
    def create(
        cls,
        files: JournalFiles,
        generation: int,
        *,
        run_id: str,
        input_schema: pa.Schema | None,
        columns: Sequence[str] = RECORD_COLUMNS,
        carried: Iterable[AnswerEntry] = (),
    ) -> Journal:
        """Begin a generation, durably, with the answers that an earlier one leaves open.

        `columns` are those that its records bring beside the input's.
        """
        journal = cls(files.create(generation), generation, run_id, input_schema, columns)
        try:
            header = {"format": FORMAT, "generation": generation, "run_id": run_id, "columns": list(columns)}
            journal._frame(HEADER, orjson.dumps(header))
            for answer in carried:
                journal._answer(answer, Spend())
            journal.write()
            journal.synchronize()
        except BaseException:
            journal.close()
            raise
        return journal

    def encode(self, entries: Sequence[Entry]) -> list[Unsealed]:
        """Put entries into frames, to be written next; return the records among them with their input rows.

        `cost` is then what all of them cost. Raises ValueError, before anything is changed, where a record's input
        columns are not the frozen ones.
        """
        settled = [entry for entry in entries if type(entry) is SettledEntry]
        places = self._place([entry.record for entry in settled])
        records: list[Unsealed] = []
        told: list[tuple[Any, ...]] = []
        nbytes = 0
        for entry, (columns, frame, place) in zip(settled, places, strict=True):
            record = entry.record
            values = self._values(record)
            size = len(record.completion or "") + _RECORD_BYTES
            row = record.batch.nbytes // (len(record.batch.values) or 1)
            records.append(Unsealed(columns, record.offset, values, size + row, entry.late))
            spend = tuple(entry.spend)
            told.append((frame, place, values, spend, 1) if entry.late else (frame, place, values, spend))
            nbytes += size
            if len(told) == FRAME_RECORDS or nbytes >= FRAME_BYTES:
                self._frame(RECORDS, _dumps(told))
                told, nbytes = [], 0
        if told:
            self._frame(RECORDS, _dumps(told))
        if len(settled) < len(entries):
            self._encode_others(entries)
        self.cost = sum_spends([entry.spend for entry in entries])
        self.spend = self.spend.plus(self.cost)
        return records

    def _encode_others(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            if isinstance(entry, AnswerEntry):
                self._answer(entry, entry.spend)
            elif isinstance(entry, SpendOnly):
                key = () if entry.key is None else (entry.key,)
                self._frame(SPEND, json_bytes((*entry.spend, *key)))
                self.keys += key

    def write(self) -> None:
        """Write what was encoded."""
        data = b"".join(self._frames)
        self._frames = []
        self._file.append(data)
        self.size += len(data)

    def synchronize(self) -> None:
        """Return when everything written is on the disk."""
        self._file.synchronize()

    def close(self) -> None:
        """Close the file; what was synchronized stays."""
        self._file.close()

    def _frame(self, kind: int, payload: bytes | memoryview) -> int:
        sequence = self._sequence
        self._frames.append(encode(kind, sequence, payload))
        self._sequence += 1
        return sequence

    def _answer(self, answer: AnswerEntry, spend: Spend) -> None:
        value = {
            "custom_id": answer.custom_id,
            "step": answer.step,
            "payload": answer.payload,
            "spend": tuple(spend),
        }
        self._frame(ANSWER, _dumps(value))

    def _place(self, records: Sequence[Record]) -> list[tuple[pa.RecordBatch, int, int]]:
        """Make sure that every record's input row stands in a rows frame; return its columns, the frame, the place."""
        groups: dict[int, list[int]] = {}
        for number, record in enumerate(records):
            groups.setdefault(id(record.batch.columns), []).append(number)
        for numbers in groups.values():
            given = records[numbers[0]].batch.columns
            if not self._holds(given):  # its types were compared when it was met first
                self._check(given)
        places: dict[int, tuple[pa.RecordBatch, int, int]] = {}
        for numbers in groups.values():
            first = records[numbers[0]]
            given, shards = first.batch.columns, first.batch.shards
            columns = kept_columns(given, self._kept)
            offsets = [records[number].offset for number in numbers]
            source = self._source(given)
            if source.frame is None:
                source.taken += len(offsets)
                own: Sequence[int] = range(columns.num_rows)
                if shards is not None:
                    shard = shards[first.offset]
                    own = [offset for offset, other in enumerate(shards) if other == shard]
                if source.taken * WHOLE_BATCH_SHARE <= len(own):
                    some = take(columns, pa.array(offsets, pa.int64()))
                    frame = self._frame(ROWS, _stream(some))
                    places.update((number, (columns, frame, place)) for place, number in enumerate(numbers))
                    continue
                if shards is not None:
                    # The other rows stand in the journals of the other shards: each row is written once or twice.
                    source.places = {offset: place for place, offset in enumerate(own)}
                    columns_of_shard = take(columns, pa.array(own, pa.int64()))
                    source.frame = self._frame(ROWS, _stream(columns_of_shard))
                else:
                    source.frame = self._frame(ROWS, _stream(columns))
            for number, offset in zip(numbers, offsets, strict=True):
                places[number] = (columns, source.frame, offset if source.places is None else source.places[offset])
        return [places[number] for number in range(len(records))]

    def _holds(self, columns: pa.RecordBatch) -> bool:
        """Tell whether records of this batch were met before."""
        source = self._sources.get(id(columns))
        return source is not None and source.columns() is columns  # an address may be used again

    def _source(self, columns: pa.RecordBatch) -> _Source:
        if not self._holds(columns):
            self._sources[id(columns)] = _Source(weakref.ref(columns))
        return self._sources[id(columns)]

    def _check(self, columns: pa.RecordBatch) -> None:
        if self._input_schema is None:
            raise ValueError("freeze the input's schema before committing records")
        if not same_types(columns.schema, self._input_schema):
            raise ValueError(f"input columns differ from the frozen ones: {columns.schema.to_string()}")


@dataclass(slots=True)
class Replay:
    """What one journal says up to its first damage.

    `settled` are the `custom_id`s of its records, `keys` those of costs that count once.
    """

    name: str
    generation: int
    run_id: str
    records: int = 0
    settled: set[str] = field(default_factory=set)
    answers: list[AnswerEntry] = field(default_factory=list)
    spend: Spend = Spend()
    keys: list[str] = field(default_factory=list)
    damage: Damage | None = None


def replay(
    files: JournalFiles,
    generation: int,
    take: Callable[[Unsealed], None] | None = None,
    columns: Sequence[str] = RECORD_COLUMNS,
) -> Replay:
    """Read the journal of a generation, giving each record to `take` with the values of these columns of its own.

    A column that the journal does not have is None. A torn or damaged tail is told in `damage` and otherwise ignored.

    Raises FileNotFoundError if it is gone (sealed meanwhile), StorageError if the disk refuses or if a later version
    of batchchat wrote it.
    """
    result = Replay(files.name(generation), generation, "")
    address = files.address(generation)
    with files.open(generation) as source, storage_errors(address):
        reader = FrameReader(source)
        intake = _ReplayIntake(result, take, columns, address)
        result.spend = sum_spends(intake.add(frame) for frame in reader)
        result.damage = reader.damage
    return result


class GrowingJournal:
    """The journal of a generation that is open for appending, read as it grows.

    The file stays open: what is in it can be read also after the run has sealed and removed it. Raises
    FileNotFoundError if it is gone already, StorageError if the disk refuses. To be closed.
    """

    def __init__(
        self, files: JournalFiles, generation: int, take: Callable[[Unsealed], None], columns: Sequence[str]
    ) -> None:
        self.generation = generation
        self._address = files.address(generation)
        self._source = files.open(generation)
        with storage_errors(self._address):
            self._reader = FrameReader(self._source)
        self._intake = _ReplayIntake(Replay(files.name(generation), generation, ""), take, columns, self._address)

    def read(self) -> None:
        """Give every record that was committed since the last call to `take`."""
        with storage_errors(self._address):
            self._reader.grown()
            for frame in self._reader:
                self._intake.add(frame)

    def close(self) -> None:
        """Close the file."""
        self._source.close()


def rows_schema(files: JournalFiles, generation: int) -> pa.Schema | None:
    """Return the types of the first input rows in a journal; None if it has none.

    Raises FileNotFoundError if it is gone, StorageError if the disk refuses.
    """
    with files.open(generation) as source, storage_errors(files.address(generation)):
        for frame in FrameReader(source):
            if frame.kind == ROWS:
                return pa.ipc.open_stream(frame.payload).schema
    return None


class _ReplayIntake:
    """Adds the frames of a journal to its replay, one by one."""

    def __init__(
        self, result: Replay, take: Callable[[Unsealed], None] | None, columns: Sequence[str], address: str
    ) -> None:
        self._result = result
        self._address = address
        self._take = take
        self._wanted = tuple(columns)
        self._places = _places(FIRST_COLUMNS, self._wanted)
        self._rows: dict[int, pa.RecordBatch] = {}

    def add(self, frame: Frame) -> Spend:
        """Take a frame in; return what it cost."""
        result = self._result
        if frame.kind == ROWS:
            if self._take is not None:
                self._rows[frame.sequence] = pa.ipc.open_stream(frame.payload).read_next_batch()
            return Spend()
        value = orjson.loads(frame.payload)
        if frame.kind == RECORDS:
            size = len(frame.payload) // (len(value) or 1)
            return sum_spends([self._add_record(told, size) for told in value])
        if frame.kind == RECORD:  # what an earlier version wrote, one record a frame
            return self._add_record(value, len(frame.payload))
        if frame.kind == ANSWER:
            spend = Spend(*value["spend"])
            result.answers.append(AnswerEntry(value["custom_id"], value["step"], value["payload"], spend))
            return spend
        if frame.kind == SPEND:
            # A key stands behind the numbers, so that a frame of an earlier version, which has none, reads the same.
            if value and isinstance(value[-1], str):
                result.keys.append(value.pop())
            return Spend(*value)
        if frame.kind == HEADER and value["format"] == FORMAT:
            given = tuple(value.get("columns", FIRST_COLUMNS))
            if set(given) <= {*RECORD_COLUMNS, PARSED} and given[: len(FIRST_COLUMNS)] == FIRST_COLUMNS:
                result.generation, result.run_id = value["generation"], value["run_id"]
                self._places = _places(given, self._wanted)
                return Spend()
        raise StorageError(
            f"{self._address} was written by a later version of batchchat",
            remedy="Go on with the version that wrote it, or a later one.",
        )

    def _add_record(self, told: list[Any], nbytes: int) -> Spend:
        number, place, values, spend, *late = told
        self._result.records += 1
        self._result.settled.add(values[_CUSTOM_ID])
        if self._take is not None:
            self._take(Unsealed(self._rows[number], place, self._arranged(values), nbytes, bool(late)))
        return Spend(*spend)

    def _arranged(self, values: list[Any]) -> list[Any]:
        if self._places is None:
            return values
        return [values[place] if place is not None else None for place in self._places]


def _places(given: Sequence[str], wanted: Sequence[str]) -> list[int | None] | None:
    """Where in a journal's values each wanted column is; None where they are all there, in this order."""
    if tuple(given) == tuple(wanted):
        return None
    known = {name: place for place, name in enumerate(given)}
    return [known.get(name) for name in wanted]


class OpenAnswers:
    """Answers of requests that are not settled: what every new generation carries over."""

    def __init__(self) -> None:
        self._answers: dict[str, dict[int, AnswerEntry]] = {}

    def add(self, answers: Iterable[AnswerEntry]) -> None:
        """Take answers; one that is known already, by request and step, counts once."""
        for answer in answers:
            self._answers.setdefault(answer.custom_id, {})[answer.step] = answer

    def settle(self, custom_ids: Iterable[str]) -> None:
        """Let go of the answers of requests that have their record."""
        if self._answers:
            for custom_id in custom_ids:
                self._answers.pop(custom_id, None)

    def by_request(self) -> Mapping[str, list[AnswerEntry]]:
        """Return the open answers of each request in the order of their steps."""
        return {custom_id: [steps[step] for step in sorted(steps)] for custom_id, steps in self._answers.copy().items()}

    def __iter__(self) -> Any:
        """Iterate over all open answers."""
        for steps in self._answers.values():
            yield from steps.values()

    def __len__(self) -> int:
        """Return how many requests have open answers."""
        return len(self._answers)


def _stream(batch: pa.RecordBatch) -> memoryview:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return memoryview(sink.getvalue())


def _dumps(value: Any) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError:
        # Whatever a server put into an answer that was paid for, the record must be kept.
        return orjson.dumps(storable(value), default=str)
