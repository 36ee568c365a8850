"""Parts: the output's Arrow schema, records turned into it, and the Parquet files that hold them.

The types of the output are fixed here, once, for every part and also where a column is all null. Input columns are
never turned into Python values: they are taken from the row batch as Arrow.

A part lives behind the small port `PartFiles` (list, open, publish whole, remove), because an output on object
storage has no rename, and nothing above needs one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from itertools import chain
from typing import Any, BinaryIO

import pyarrow as pa

from batchchat import lazy_arrow
from batchchat.lazy_arrow import compute as pc
from batchchat.lazy_arrow import parquet as pq
from batchchat.sources.decoded import DecodedSizes, ReadAt
from batchchat.store.location.disk import storage_errors
from batchchat.store.location.port import PartFiles
from batchchat.store.schema import kept_columns, kept_type, older, same_types

ROW_GROUP_ROWS = 10_000
"""Rows of a row group: a reader that looks for some rows skips groups by their bounds. Chosen, not measured."""
ROW_GROUP_BYTES = 16 * 2**20
"""Rows that are long make shorter row groups: what a rewrite or a reader decodes at once. Measured with 2,000 rows of
200 KB: four times as much took 100 MB more, and made no reader faster."""
_PAGE_BYTES = 1 << 20
"""Bytes of a page, as Arrow has it by default."""
_PAGE_ROWS = 1024
"""Arrow ends a page, and gives a dictionary up, only after so many rows, however long they are. That is its default."""
DICTIONARY_BYTES = 1 << 16
"""Larger dictionaries than this cost memory, and zstd does without them: texts that hardly repeat stay plain."""

_PLAIN_TYPES = frozenset({pa.string(), pa.int64(), pa.float64(), pa.bool_()})


def unkept(schema: pa.Schema) -> str | None:
    """Return the name of the first input column whose type the output cannot keep, None where it can keep all.

    Tried, not looked up: a null of each type goes the whole way to Parquet and back.
    """
    for field in schema:
        # What JSON and CSV have most: to try these would load Arrow's writer before the first request.
        if field.type in _PLAIN_TYPES:
            continue
        kept = pa.schema([pa.field(field.name, kept_type(field.type))])
        try:
            nulls = pa.RecordBatch.from_arrays([pa.nulls(1, field.type)], names=[field.name])
            one = kept_columns(nulls, kept).take(pa.array([0], pa.int64()))
            sink = pa.BufferOutputStream()
            write_part(sink, kept, [one])
            # `pq.read_table` would load Arrow's datasets for this.
            back = pq.ParquetFile(pa.BufferReader(sink.getvalue())).schema_arrow
        except (pa.ArrowException, NotImplementedError):
            return str(field.name)
        if not same_types(back, kept):
            return str(field.name)
    return None


def bounded_batches(
    file: pq.ParquetFile, read: ReadAt, *, columns: Sequence[str] | None = None, rows: int = ROW_GROUP_ROWS
) -> Iterator[pa.RecordBatch]:
    """Yield a file's rows in batches of at most `rows` rows and about ROW_GROUP_BYTES when they are decoded."""
    sizes = DecodedSizes(file, read)
    for group in range(file.metadata.num_row_groups):
        size = sizes.at_once(group, rows, ROW_GROUP_BYTES, columns)
        yield from file.iter_batches(batch_size=size, row_groups=[group], columns=columns, use_threads=False)


class DamagedPartError(Exception):
    """A part that cannot be read although the disk is well: its bytes are not what was written."""

    def __init__(self, part: str, reason: str) -> None:
        super().__init__(f"{part} is damaged: {reason}")
        self.part = part


def write_part(sink: BinaryIO, schema: pa.Schema, batches: Iterable[pa.RecordBatch | pa.Table]) -> None:
    """Write batches as Parquet: zstd, a checksum on every page, one row group a batch.

    Pages hold about a mebibyte, also if rows are long: whoever reads the file decodes a page as a whole.
    """
    left = iter(batches)
    first = next(left, None)
    row_bytes = 1 if first is None or not first.num_rows else max(1, first.nbytes // first.num_rows)
    with pq.ParquetWriter(
        sink,
        schema,
        compression="zstd",
        write_page_checksum=True,
        dictionary_pagesize_limit=DICTIONARY_BYTES,
        write_batch_size=max(1, min(_PAGE_ROWS, _PAGE_BYTES // row_bytes)),
    ) as writer:
        for batch in () if first is None else chain([first], left):
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
        """Read in batches of at most so many rows and about ROW_GROUP_BYTES, however few bytes the file has."""
        there = self._there(columns)
        with _damage_of(self.name):
            for batch in bounded_batches(self._file, self._read_at, columns=there, rows=rows):
                yield batch if self._wanted is None else self._completed(batch, self._wanted, columns)

    def read_within(self, limit: int) -> pa.Table | None:
        """Read the whole part; None if its records are more than so many bytes."""
        batches: list[pa.RecordBatch] = []
        nbytes = 0
        for batch in self.batches():
            batches.append(batch)
            nbytes += batch.nbytes
            if nbytes > limit:
                return None
        return pa.Table.from_batches(batches, self.schema)

    def _read_at(self, offset: int, size: int) -> bytes:
        self._source.seek(offset)
        return self._source.read(size)

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
    return lazy_arrow.sort_indices(table.select(SORT_KEYS), SORT_KEYS)


def in_order(table: pa.Table, order: pa.Array) -> Iterator[pa.Table]:
    """Yield a table's records in the given order, one row group at a time.

    Records come nearly in order, so that a row group stands in a small piece of the table: Arrow copies whole columns
    of what it takes from.
    """
    rows = min(ROW_GROUP_ROWS, max(1, ROW_GROUP_BYTES * table.num_rows // max(1, table.nbytes)))
    for start in range(0, len(order), rows):
        places = order.slice(start, rows)
        extent = lazy_arrow.call("min_max", places).as_py()
        piece = table.slice(extent["min"], extent["max"] + 1 - extent["min"])
        yield lazy_arrow.take(piece, lazy_arrow.call("subtract", places, pa.scalar(extent["min"], places.type)))


def sample_keys(table: pa.Table | pa.RecordBatch) -> pa.ChunkedArray | pa.Array:
    """Return key and sample as one text a record; null where the record has no key."""
    samples = lazy_arrow.call("cast", table.column("sample_index"), options=lazy_arrow.options("Cast", pa.string()))
    join = lazy_arrow.options("Join")
    return lazy_arrow.call("binary_join_element_wise", table.column("key"), samples, pa.scalar("\x1f"), options=join)


def latest(table: pa.Table) -> pa.Table:
    """Return a table with the last record of each identity."""
    custom_ids = table.column("custom_id")
    if lazy_arrow.call("count_distinct", custom_ids).as_py() == table.num_rows:
        return table
    places = {custom_id: place for place, custom_id in enumerate(custom_ids.to_pylist())}
    return lazy_arrow.take(table, pa.array(sorted(places.values()), pa.int64()))


def newest_of_keys(table: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Return the last record of each key and sample, and all of no key; and those that these supersede."""
    keys = combined(sample_keys(table))
    if lazy_arrow.call("count_distinct", keys).as_py() == len(keys) - keys.null_count:
        return table, table.slice(0, 0)
    last = {key: place for place, key in enumerate(keys.to_pylist()) if key is not None}
    stays = pa.array([key is None or last[key] == place for place, key in enumerate(keys.to_pylist())], pa.bool_())
    return lazy_arrow.kept(table, stays), lazy_arrow.kept(table, lazy_arrow.call("invert", stays))


def identities(table: pa.Table) -> Iterator[tuple[str, str, int | None]]:
    """Yield what tells one record from another of the same request: identity, run, end in microseconds."""
    return zip(
        table.column("custom_id").to_pylist(),
        table.column("run_id").to_pylist(),
        pc.cast(table.column("finished_at"), pa.int64()).to_pylist(),
        strict=True,
    )


def combined(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Return a column as one array."""
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
