"""Committed records that wait for their part, turned into Arrow.

Input columns never become Python values: they are taken from the row batch as Arrow.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from batchchat.lazy_arrow import take

CHUNK_ROWS = 1024
"""Records that wait as Python objects before they become one piece of Arrow."""


CHUNK_BYTES = 4 * 2**20
"""Bytes of them."""


CHUNK_SOURCES = 8
"""Batches of input rows that they keep in memory. All three are chosen, not measured."""


class Unsealed(NamedTuple):
    """A committed record that is not yet Arrow: its input row and the values of its own columns, in order.

    A `late` one goes to the archive at once.
    """

    columns: pa.RecordBatch
    offset: int
    values: Sequence[Any]
    nbytes: int
    late: bool = False


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
        # One batch is kept as it is; several are copied into one, which has fewer buffers.
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
        taken.append(take(group[0].columns, pa.array([record.offset for record in group], pa.int64())))
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
