"""Parts: the output's Arrow schema, records turned into it, and the Parquet files that hold them.

The types of the output are fixed here, once, for every part and also where a column is all null. Input columns are
never turned into Python values: they are taken from the row batch as Arrow.

A part lives behind the small port `PartFiles` (list, open, publish whole, remove), because an output on object
storage has no rename, and nothing above needs one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batchchat.records import FIRST_COLUMNS, PARSED, RECORD_COLUMNS
from batchchat.store.files import PRIVATE_FILE, free_name, open_private, publish, storage_errors, synchronize_folder

FORMAT = 1
ROW_GROUP_ROWS = 10_000
DICTIONARY_BYTES = 1 << 16
"""Larger dictionaries than this cost memory, and zstd does without them: texts that hardly repeat stay plain."""
CHUNK_ROWS = 1024
CHUNK_BYTES = 4 * 2**20
CHUNK_SOURCES = 8

_TOOL_CALL = pa.struct([(name, pa.string()) for name in ("id", "type", "name", "arguments")])
_TOKEN = [("token", pa.string()), ("logprob", pa.float64())]
_TIME = pa.timestamp("us", tz="UTC")
_TYPES: dict[str, pa.DataType] = {
    "row_index": pa.int64(),
    "sample_index": pa.int32(),
    "tool_calls": pa.list_(_TOOL_CALL),
    "prompt_tokens": pa.int64(),
    "completion_tokens": pa.int64(),
    "total_tokens": pa.int64(),
    "cached_tokens": pa.int64(),
    "reasoning_tokens": pa.int64(),
    "cost": pa.float64(),
    "http_status": pa.int32(),
    "attempts": pa.int32(),
    "latency_s": pa.float64(),
    "started_at": _TIME,
    "finished_at": _TIME,
    "corrections": pa.int32(),
    "tolerated": pa.bool_(),
    "cache_hit": pa.bool_(),
    "logprobs": pa.list_(pa.struct([*_TOKEN, ("top", pa.list_(pa.struct(_TOKEN)))])),
    "ttft_s": pa.float64(),
    "output_tokens_per_s": pa.float64(),
}
RECORD_SCHEMA = pa.schema([(name, _TYPES.get(name, pa.string())) for name in RECORD_COLUMNS])
"""The output's own columns with their types."""


_LATER = frozenset((*RECORD_COLUMNS, PARSED)) - frozenset(FIRST_COLUMNS)


def output_schema(
    input_schema: pa.Schema, parsed: pa.Field | None = None, metadata: dict[str, str] | None = None
) -> pa.Schema:
    """Return the schema of every part: input columns, the record's own columns, then `parsed` where there is one.

    Every column may hold nulls: a row that could not be read has none of the input's values. Input types that Parquet
    does not give back as they were become the nearest that it does (`kept_type`). Raises ValueError where two columns
    have the same name.
    """
    fields = [pa.field(field.name, kept_type(field.type)) for field in input_schema]
    fields += [pa.field(field.name, field.type) for field in RECORD_SCHEMA]
    if parsed is not None:
        fields.append(pa.field(PARSED, parsed.type, metadata=parsed.metadata))
    names = [field.name for field in fields]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"two output columns are called {', '.join(twice)}")
    return pa.schema(fields, metadata={"batchchat.format": str(FORMAT), **(metadata or {})})


def own_columns(schema: pa.Schema) -> tuple[str, ...]:
    """Return the columns of an output's schema that a record brings itself, in order."""
    return (*RECORD_COLUMNS, PARSED) if schema.names[-1:] == [PARSED] else RECORD_COLUMNS


def kept_type(kind: pa.DataType) -> pa.DataType:
    """Return the type in which the output keeps an input type: itself, unless no part could hold it for sure.

    Dictionaries become their values (Parquet encodes them again by itself; the dictionaries of two row batches need not
    fit one narrow index), views and run ends plain values, and times take the coarsest unit that Parquet knows.
    """
    types = pa.types
    kept = _NEAREST.get(kind, kind)
    if types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        kept = kept_type(kind.value_type)
    elif types.is_map(kind):
        kept = pa.map_(kept_type(kind.key_type), kept_type(kind.item_type))
    elif types.is_struct(kind):
        kept = pa.struct([_kept_field(kind.field(n)) for n in range(kind.num_fields)])
    elif types.is_fixed_size_list(kind):
        kept = pa.list_(_kept_field(kind.value_field), kind.list_size)
    elif types.is_large_list(kind) or types.is_large_list_view(kind):
        kept = pa.large_list(_kept_field(kind.value_field))
    elif types.is_list(kind) or types.is_list_view(kind):
        kept = pa.list_(_kept_field(kind.value_field))
    elif types.is_timestamp(kind) and kind.unit == "s":
        kept = pa.timestamp("ms", tz=kind.tz)
    return kept


_NEAREST = {
    pa.time32("s"): pa.time32("ms"),
    pa.date64(): pa.date32(),
    pa.string_view(): pa.string(),
    pa.binary_view(): pa.binary(),
}


def _kept_field(field: pa.Field) -> pa.Field:
    return field.with_type(kept_type(field.type))


def kept_columns(columns: pa.RecordBatch, kept: pa.Schema) -> pa.RecordBatch:
    """Return input columns in the types that the output keeps; the same object where they have them already."""
    if columns.schema.types == kept.types:
        return columns
    return pa.RecordBatch.from_arrays(
        [column.cast(field.type) for column, field in zip(columns.columns, kept, strict=True)], schema=kept
    )


def unkept(schema: pa.Schema) -> str | None:
    """Return the name of the first input column whose type the output cannot keep, None where it can keep all.

    Tried, not looked up: a null of each type goes the whole way to Parquet and back.
    """
    for field in schema:
        kept = pa.schema([pa.field(field.name, kept_type(field.type))])
        try:
            nulls = pa.RecordBatch.from_arrays([pa.nulls(1, field.type)], names=[field.name])
            one = kept_columns(nulls, kept).take(pa.array([0], pa.int64()))
            sink = pa.BufferOutputStream()
            write_part(sink, kept, [one])
            back = pq.read_table(pa.BufferReader(sink.getvalue())).schema
        except (pa.ArrowException, NotImplementedError):
            return str(field.name)
        if not same_types(back, kept):
            return str(field.name)
    return None


def same_types(left: pa.Schema, right: pa.Schema) -> bool:
    """Tell whether two schemas have the same column names and types, in order, whatever else they note."""
    return bool(left.names == right.names and left.types == right.types)


def older(found: pa.Schema, schema: pa.Schema) -> bool:
    """Tell whether a file was written before the output had all the columns that it has now, and is well otherwise."""
    later = [field for field in schema if field.name in _LATER and field.name not in found.names]
    return bool(later) and same_types(found, pa.schema([field for field in schema if field not in later]))


class Unsealed(NamedTuple):
    """A committed record that is not yet Arrow: its input row and the values of its own columns, in order."""

    columns: pa.RecordBatch
    offset: int
    values: Sequence[Any]
    nbytes: int


class Pending:
    """Committed records on their way into a part, kept as Arrow in chunks of about CHUNK_ROWS rows.

    Records wait as Python objects only until a chunk is full, its bytes are many, or they hold on to many row batches.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema
        self._waiting: list[Unsealed] = []
        self._waiting_bytes = 0
        self._sources: set[int] = set()
        self._small: list[pa.RecordBatch] = []
        self._small_rows = self._small_bytes = 0
        self._chunks: list[pa.RecordBatch] = []
        self._chunk_bytes = 0
        self.rows = 0

    @property
    def nbytes(self) -> int:
        """The raw size of what is pending, in bytes; roughly right for records that wait for their chunk."""
        return self._chunk_bytes + self._waiting_bytes

    def add(self, records: Iterable[Unsealed]) -> None:
        """Take committed records."""
        for record in records:
            self._waiting.append(record)
            self._waiting_bytes += record.nbytes
            self._sources.add(id(record.columns))
            self.rows += 1
            if (
                len(self._waiting) >= CHUNK_ROWS
                or self._waiting_bytes >= CHUNK_BYTES
                or len(self._sources) > CHUNK_SOURCES
            ):
                self._convert()

    def batches(self) -> list[pa.RecordBatch]:
        """Return everything pending, as batches of the output's schema."""
        self._convert()
        self._merge()
        return list(self._chunks)

    def _convert(self) -> None:
        if not self._waiting:
            return
        batch = to_batch(self._waiting, self.schema)
        self._waiting, self._waiting_bytes, self._sources = [], 0, set()
        nbytes = batch.nbytes
        self._chunk_bytes += nbytes
        self._small.append(batch)
        self._small_rows += batch.num_rows
        self._small_bytes += nbytes
        if self._small_rows >= CHUNK_ROWS or self._small_bytes >= CHUNK_BYTES:
            self._merge()

    def _merge(self) -> None:
        if len(self._small) > 1:
            table = pa.Table.from_batches(self._small, schema=self.schema)
            self._chunks.extend(table.combine_chunks().to_batches())
        else:
            self._chunks.extend(self._small)
        self._small, self._small_rows, self._small_bytes = [], 0, 0


def to_batch(records: Sequence[Unsealed], schema: pa.Schema) -> pa.RecordBatch:
    """Turn records into one batch of the output's schema: input columns taken as Arrow, own columns from values."""
    by_source: dict[int, list[Unsealed]] = {}
    for record in records:
        by_source.setdefault(id(record.columns), []).append(record)
    taken = []
    ordered: list[Unsealed] = []
    for group in by_source.values():
        taken.append(group[0].columns.take(pa.array([record.offset for record in group], pa.int64())))
        ordered += group
    width = taken[0].num_columns
    arrays: list[pa.Array] = []
    for number in range(width):
        chunks = [batch.column(number) for batch in taken]
        arrays.append(chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks))
    own = zip(*(record.values for record in ordered), strict=True)
    arrays += [_array(values, field.type) for values, field in zip(own, list(schema)[width:], strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    try:
        return pa.array(values, type=kind)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        # What a provider sends must never make a committed record unreadable: such a value becomes null.
        return pa.array([_fitting(value, kind) for value in values], type=kind)


def _fitting(value: Any, kind: pa.DataType) -> Any:
    try:
        pa.array([value], type=kind)
    except UnicodeEncodeError:
        return storable(value)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return str(value) if pa.types.is_string(kind) else None
    return value


def storable(value: Any) -> Any:
    """Return a JSON-like value that JSON and UTF-8 can hold.

    A lone surrogate becomes U+FFFD, an integer beyond 64 bits its digits.
    """
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return str(value)
    if isinstance(value, dict):
        return {storable(key): storable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [storable(item) for item in value]
    return value


# ---- files ----------------------------------------------------------------------------------------------------------


_REPORT = ".reported"


class PartFiles(Protocol):
    """Where parts are kept: what object storage can do as well as a folder."""

    def names(self) -> list[str]:
        """Return the names of all parts, in order."""

    def open(self, name: str) -> BinaryIO:
        """Open a part for reading, at random positions. Raises StorageError; FileNotFoundError where it is gone."""

    def publish(self, name: str, write: Callable[[BinaryIO], None], before: Callable[[], None] | None = None) -> None:
        """Make what `write` writes the content of a part: wholly and durably, or not at all.

        `before` is called when everything is written and nothing is visible yet. Raises StorageError.
        """

    def remove(self, name: str) -> None:
        """Remove a part. Raises StorageError."""

    def size(self, name: str) -> int:
        """Return a part's size in bytes. Raises StorageError."""

    def set_aside(self, name: str) -> str:
        """Move a damaged part out of the dataset, and say where it is now. Raises StorageError."""

    def reported(self) -> list[str]:
        """Return the names of parts that somebody found damaged; they are still in the dataset."""

    def forget(self, name: str) -> None:
        """Forget such a report: the part was looked at. Raises StorageError."""


class LocalFiles:
    """Parts in a folder of this machine. Drafts lie in `temporary`, on the same file system."""

    def __init__(self, folder: Path, *, temporary: Path, damaged: Path, stem: str, suffix: str, mode: int) -> None:
        self._folder = folder
        self._temporary = temporary
        self._damaged = damaged
        self._mode = mode
        self._pattern = re.compile(rf"{re.escape(stem)}-\d{{5,}}{re.escape(suffix)}")

    def names(self) -> list[str]:
        """Return the names of all parts, in order of their numbers."""
        with storage_errors(self._folder):
            if not self._folder.is_dir():
                return []
            found = [path.name for path in self._folder.iterdir() if self._pattern.fullmatch(path.name)]
        return sorted(found, key=part_number)

    def open(self, name: str) -> BinaryIO:
        """Open a part for reading. Raises FileNotFoundError where it is gone, else StorageError."""
        path = self._folder / name
        with storage_errors(path):
            try:
                return path.open("rb")
            except FileNotFoundError as error:
                gone = error
        raise gone

    def publish(self, name: str, write: Callable[[BinaryIO], None], before: Callable[[], None] | None = None) -> None:
        """Write, synchronize, rename, synchronize the folder."""
        publish(self._folder / name, write, temporary=self._temporary, mode=self._mode, before_rename=before)

    def path(self, name: str) -> Path:
        """Return where a part lies."""
        return self._folder / name

    def remove(self, name: str) -> None:
        """Remove a part, durably."""
        with storage_errors(self._folder / name):
            (self._folder / name).unlink(missing_ok=True)
            synchronize_folder(self._folder)

    def size(self, name: str) -> int:
        """Return a part's size in bytes."""
        with storage_errors(self._folder / name):
            return (self._folder / name).stat().st_size

    def set_aside(self, name: str) -> str:
        """Move a part into the folder for damaged files."""
        with storage_errors(self._folder / name):
            target = free_name(self._damaged, name)
            (self._folder / name).rename(target)
            synchronize_folder(self._folder)
            synchronize_folder(self._damaged)
        return str(target)

    def report(self, name: str) -> None:
        """Leave word for the next run that a part is damaged: a reader has no right to take it out itself.

        Where even that cannot be written, the error that the reader raises is all there is.
        """
        with suppress(OSError), open_private(self._damaged / (name + _REPORT), "ab", PRIVATE_FILE):
            pass

    def reported(self) -> list[str]:
        """Return the names that reports were left for."""
        with storage_errors(self._damaged):
            if not self._damaged.is_dir():
                return []
            found = [path.name.removesuffix(_REPORT) for path in self._damaged.iterdir() if path.suffix == _REPORT]
        return sorted(name for name in found if self._pattern.fullmatch(name))

    def forget(self, name: str) -> None:
        """Remove a report."""
        report = self._damaged / (name + _REPORT)
        with storage_errors(report):
            report.unlink(missing_ok=True)


def part_number(name: str) -> int:
    """Return the number in the name of a part or an archive file."""
    return int(name.partition("-")[2].partition(".")[0])


class DamagedPartError(Exception):
    """A part that cannot be read although the disk is well: its bytes are not what was written."""

    def __init__(self, part: str, reason: str) -> None:
        super().__init__(f"{part} is damaged: {reason}")
        self.part = part


def write_part(sink: BinaryIO, schema: pa.Schema, batches: Iterable[pa.RecordBatch | pa.Table]) -> None:
    """Write batches as Parquet: zstd, a checksum on every page, one row group a batch."""
    with pq.ParquetWriter(
        sink, schema, compression="zstd", write_page_checksum=True, dictionary_pagesize_limit=DICTIONARY_BYTES
    ) as writer:
        for batch in batches:
            if isinstance(batch, pa.Table):
                writer.write_table(batch, row_group_size=ROW_GROUP_ROWS)
            else:
                writer.write_batch(batch, row_group_size=ROW_GROUP_ROWS)


class PartReader:
    """One open part. Every read checks the page checksums; damage raises DamagedPartError.

    Being open, it stays readable when the part is replaced or removed meanwhile. `wanted` is the output's schema as it
    is now: columns of it that were added since this part was written read as null.
    """

    def __init__(self, files: PartFiles, name: str, wanted: pa.Schema | None = None) -> None:
        self.name = name
        self._wanted: pa.Schema | None = None
        self._source = files.open(name)
        try:
            with _damage_of(name):
                # Reading ahead (`pre_buffer`) would be done by threads of Arrow that hold on to the source: one that
                # lets go of it while the interpreter ends aborts the process.
                self._file = pq.ParquetFile(self._source, page_checksum_verification=True, pre_buffer=False)
        except BaseException:
            self._source.close()
            raise
        if wanted is not None and older(self.schema, wanted):
            self._wanted = wanted

    def __enter__(self) -> PartReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        with closing(self._source):
            self._file.close()

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema of its records: as it was written, or the output's where that has further columns."""
        with _damage_of(self.name):
            return self._file.schema_arrow if self._wanted is None else self._wanted

    @property
    def rows(self) -> int:
        """The number of records."""
        return int(self._file.metadata.num_rows)

    @property
    def raw_bytes(self) -> int:
        """The size of the content before compression, in bytes."""
        metadata = self._file.metadata
        return sum(int(metadata.row_group(n).total_byte_size) for n in range(metadata.num_row_groups))

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Read the whole part, or some of its columns."""
        with _damage_of(self.name):
            table = self._file.read(columns=self._there(columns), use_threads=False)
            if self._wanted is not None:
                return self._completed(table, self._wanted, columns)
            if columns is not None and table.num_columns != len(columns):
                raise DamagedPartError(self.name, "it lacks columns that every part has")
            return table

    def batches(self, columns: Sequence[str] | None = None, rows: int = ROW_GROUP_ROWS) -> Iterator[pa.RecordBatch]:
        """Read in batches, one row group in memory at a time."""
        with _damage_of(self.name):
            for batch in self._file.iter_batches(batch_size=rows, columns=self._there(columns), use_threads=False):
                yield batch if self._wanted is None else self._completed(batch, self._wanted, columns)

    @property
    def older(self) -> bool:
        """Whether the output has columns that this part lacks."""
        return self._wanted is not None

    def _there(self, columns: Sequence[str] | None) -> list[str] | None:
        if columns is None:
            return None
        if self._wanted is None:
            return list(columns)
        # One column is always read: what has none does not tell its rows.
        there = self._file.schema_arrow.names
        return list(dict.fromkeys(["custom_id", *(name for name in columns if name in there)]))

    @staticmethod
    def _completed(data: Any, wanted: pa.Schema, columns: Sequence[str] | None) -> Any:
        """A table or a batch with the columns that were asked for, null where the file has them not."""
        names = wanted.names if columns is None else columns
        there = set(data.schema.names)
        arrays = [data.column(n) if n in there else pa.nulls(data.num_rows, wanted.field(n).type) for n in names]
        schema = wanted if columns is None else pa.schema([wanted.field(name) for name in names])
        return type(data).from_arrays(arrays, schema=schema)


class _damage_of:  # noqa: N801 - used like a function; a class, since a generator yields inside it
    """Turns what Arrow says of unreadable bytes into DamagedPartError, and lets the disk's own errors pass."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError) and error.errno is not None:
            with storage_errors(self._name):
                raise error
        if isinstance(error, pa.ArrowException | OSError | ValueError | KeyError | UnicodeDecodeError):
            raise DamagedPartError(self._name, str(error)) from error


SORT_KEYS = ["row_index", "sample_index"]
"""The columns whose order is that of a part's records."""

# ---- selections -----------------------------------------------------------------------------------------------------


def sort_order(table: pa.Table) -> pa.Array:
    """Return the positions of a table's records in the order of their rows and samples."""
    return pc.sort_indices(table.select(SORT_KEYS), sort_keys=[(name, "ascending") for name in SORT_KEYS])


def in_order(table: pa.Table, order: pa.Array) -> Iterator[pa.Table]:
    """Yield a table's records in the given order, one row group at a time.

    Records come nearly in order, so that a row group stands in a small piece of the table: Arrow copies whole columns
    of what it takes from.
    """
    for start in range(0, len(order), ROW_GROUP_ROWS):
        places = order.slice(start, ROW_GROUP_ROWS)
        extent = pc.min_max(places).as_py()
        piece = table.slice(extent["min"], extent["max"] + 1 - extent["min"])
        yield piece.take(pc.subtract(places, pa.scalar(extent["min"], places.type)))


def sample_keys(table: pa.Table | pa.RecordBatch) -> pa.ChunkedArray | pa.Array:
    """Return key and sample as one text a record; null where the record has no key."""
    return pc.binary_join_element_wise(table.column("key"), pc.cast(table.column("sample_index"), pa.string()), "\x1f")
