"""Rows that a program gives: a table with the Arrow interface, or an iterable of mappings."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa

from batchchat.errors import StorageError, UsageError
from batchchat.records import Place
from batchchat.sources.chunk import Chunk, InputFormat, Limits
from batchchat.sources.columns import Column
from batchchat.sources.files import Progress
from batchchat.sources.infer import Shape
from batchchat.sources.input_file import InputFile
from batchchat.sources.parquet import arrow_chunks, plain_type
from batchchat.sources.source import Source

_NAME = "rows"
"""What records call the source of such rows."""
_SAMPLE_ROWS = 10_000
_SAMPLE_BYTES = 64 * 2**20
"""Rows, and bytes of them, from which types are inferred: as many as of a file."""
_KINDS = "a DataFrame (pandas, polars), a pyarrow.Table, a DuckDB relation, or an iterable of dicts"
_NO_ROW = "the row is no mapping of column names to values"
_PANDAS_INDEX = "__index_level_"
"""How pandas names the columns that it makes of an index without a name."""


@runtime_checkable
class ArrowStream(Protocol):
    """What gives its rows through the Arrow C stream interface: polars, pandas, DuckDB, pyarrow and others."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """Return the rows as a capsule with an Arrow C stream."""


GivenRows = ArrowStream | Iterable[Mapping[str, Any]]
"""What `rows=` takes."""


class MemorySource(Source):
    """Rows that the calling program holds, or makes as it goes.

    Rows that can be given once only (an iterator, a reader of record batches) can be read once only, as standard input.
    A row that is no mapping becomes a failed row.
    """

    def __init__(self, rows: GivenRows, types: dict[str, str], frozen: pa.Schema | None, limits: Limits) -> None:
        check_rows(rows)
        self._rows = rows
        self._first: Iterator[Chunk] | None = None
        self._total = _length(rows)
        super().__init__(InputFormat(_NAME, limits), [], types, frozen)
        self.files = (_NAME,)

    @property
    def seekable(self) -> bool:
        """No: reading begins with the first row."""
        return False

    def known_rows(self) -> int | None:
        """Return the number of rows if what was given knows it, else None."""
        return self._total

    def count_rows(self) -> int:
        """Return the number of rows. UsageError where only reading them could tell it."""
        if self._total is None:
            raise UsageError(
                "the rows that were given cannot be counted beforehand",
                remedy="Give them as a list, or as a table.",
            )
        return self._total

    def _learn(self, frozen: pa.Schema | None) -> None:
        if isinstance(self._rows, ArrowStream):
            reader = _stream(self._rows)
            known = {field.name: field.type for field in reader.schema if not field.name.startswith(_PANDAS_INDEX)}
            chunks = self._arrow_chunks(reader)
            head = list(itertools.islice(chunks, 1))
            columns = [Column(name, *self._types.get(name, (plain_type(kind), ""))) for name, kind in known.items()]
        else:
            chunks = self._mapping_chunks(iter(self._rows))
            head, columns = self._look(chunks, enough=frozen is not None)
        if not head:
            raise UsageError("the rows that were given are none", remedy=f"`rows` takes {_KINDS}.")
        self._check_types(column.name for column in columns)
        self._first = _replayed(head, chunks)
        self._freeze(columns, frozen)

    def _look(self, chunks: Iterator[Chunk], *, enough: bool) -> tuple[list[Chunk], list[Column]]:
        """Read the first rows, and tell the columns that they have; one chunk is `enough` where types are known."""
        head: list[Chunk] = []
        values: dict[str, list[Any]] = {}
        size = 0
        for chunk in chunks:
            head.append(chunk)
            size += chunk.nbytes
            for row in chunk.rows:
                for name, value in (row or {}).items():
                    values.setdefault(name, []).append(value)
            if enough or size >= _SAMPLE_BYTES or sum(len(each.rows) for each in head) >= _SAMPLE_ROWS:
                break
        if head and not values:
            raise UsageError(f"none of the first rows is a mapping: {_NO_ROW}", remedy=f"`rows` takes {_KINDS}.")
        return head, [Column(name, *self._types.get(name) or _column_type(found)) for name, found in values.items()]

    def _pass(self, progress: Progress, after: Place | None = None) -> Iterator[tuple[str, Chunk]]:
        chunks, self._first = self._first, None
        if chunks is None:
            # The first look has begun to read it. The rows behind that would be taken for all.
            if isinstance(self._rows, Iterator | pa.RecordBatchReader):
                raise UsageError(
                    "the rows that were given can be read only once", remedy="Give them as a list, or as a table."
                )
            rows = self._rows
            chunks = (
                self._arrow_chunks(_stream(rows)) if isinstance(rows, ArrowStream) else self._mapping_chunks(iter(rows))
            )
        progress.total = self._total or 0
        for chunk in chunks:
            progress.done += len(chunk.rows)
            yield _NAME, chunk

    def _carry(self, chunk: Chunk) -> pa.RecordBatch:
        arrow = chunk.arrow
        given = None if arrow is None else dict(zip(arrow.schema.names, arrow.columns, strict=True))
        return self._carrier.carry(chunk.rows, given)

    def _chunks(self, file: InputFile | None, progress: Progress, after: Place | None = None) -> Iterator[Chunk]:
        raise NotImplementedError  # there are no files

    def _count(self, file: InputFile) -> int:
        raise NotImplementedError

    def _arrow_chunks(self, reader: pa.RecordBatchReader) -> Generator[Chunk, None, None]:
        limits = self._format.limits
        with _Telling():
            for batch in reader:
                kept = [name for name in batch.schema.names if not name.startswith(_PANDAS_INDEX)]
                wanted = batch.select(kept)
                for start in range(0, wanted.num_rows, limits.batch_rows):
                    yield from arrow_chunks(wanted.slice(start, limits.batch_rows), limits.batch_bytes)

    def _mapping_chunks(self, rows: Iterator[Any]) -> Generator[Chunk, None, None]:
        limits = self._format.limits
        chunk = Chunk([], 0)
        with _Telling():
            for row in rows:
                if isinstance(row, Mapping) and all(isinstance(name, str) for name in row):
                    plain = {name: _plain_value(value) for name, value in row.items()}
                    chunk.rows.append(plain)
                    chunk.nbytes += sum(map(_size, plain.values()))
                else:
                    chunk.fail(_NO_ROW, repr(row).encode(errors="backslashreplace"))
                if len(chunk.rows) >= limits.batch_rows or chunk.nbytes >= limits.batch_bytes:
                    yield chunk
                    chunk = Chunk([], 0)
        if chunk.rows:
            yield chunk


def check_rows(rows: object) -> None:
    """Refuse what gives no rows. Raises UsageError that says what does."""
    if isinstance(rows, ArrowStream):
        return
    kind = type(rows).__name__
    if isinstance(rows, Mapping):
        raise UsageError(
            f"rows is a {kind}, one mapping and no list of rows",
            remedy="Give one dict for each row; for a dict of columns, `rows=pyarrow.table(columns)`.",
        )
    if hasattr(rows, "collect") and hasattr(rows, "lazy"):
        raise UsageError(f"rows is a {kind}, which has no rows yet", remedy="Give `rows=frame.collect()`.")
    if isinstance(rows, str | bytes) or not isinstance(rows, Iterable):
        instead = "For a file, leave rows out and name it as the job's input." if isinstance(rows, str) else ""
        raise UsageError(f"rows is a {kind}, and takes {_KINDS}", remedy=instead or None)


def _stream(rows: ArrowStream) -> pa.RecordBatchReader:
    try:
        reader = pa.RecordBatchReader.from_stream(rows)
    except Exception as error:
        raise UsageError(f"rows gives no stream of tables: {error}", remedy=f"`rows` takes {_KINDS}.") from error
    for name in reader.schema.names:
        if reader.schema.names.count(name) > 1:
            raise UsageError(f"rows: two columns are called {name!r}", remedy="Rename one of them.")
    return reader


class _Telling:
    """Names the rows as the cause of what is raised while they are made: a run ends with that, and can be resumed."""

    def __enter__(self) -> None:
        return

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, StorageError | UsageError):
            raise StorageError(
                f"the rows that were given could not be read to their end: {type(error).__name__}: {error}",
                remedy="Mend what makes the rows, then run it again: what is done stays done.",
            ) from error


def _replayed(head: list[Chunk], rest: Iterator[Chunk]) -> Iterator[Chunk]:
    """Yield chunks that were read already, letting each go, and then the rest."""
    waiting = deque(head)
    head.clear()
    while waiting:
        yield waiting.popleft()
    yield from rest


def _length(rows: object) -> int | None:
    if isinstance(rows, pa.Table | pa.RecordBatch):
        return int(rows.num_rows)
    try:
        return len(rows)  # type: ignore[arg-type]
    except Exception:  # noqa: BLE001 - any way of having no length is an answer
        return None


def _column_type(values: list[Any]) -> tuple[pa.DataType, str]:
    """The type of a column from its first values; times, decimals and bytes have types that JSON does not have."""
    shape = Shape()
    shape.see(values)
    found = shape.column_type()
    if found[1] == "json":
        try:
            return plain_type(pa.infer_type(values)), ""
        except (pa.ArrowException, ValueError, OverflowError):
            pass
    return found


def _plain_value(value: Any) -> Any:
    """Give a value the type that templates and JSON know: NumPy's become Python's, NaN becomes null."""
    kind = type(value)
    # First what most values are. NumPy's own kinds of str and float are subclasses and are met below.
    if kind in (str, int, bool, type(None)):
        return value
    if kind.__module__ == "numpy" and hasattr(value, "tolist"):
        return _plain_value(value.tolist())
    if isinstance(value, float):
        return None if math.isnan(value) else float(value)
    if isinstance(value, Mapping):
        return {str(name): _plain_value(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_value(item) for item in value]
    return value


def _size(value: Any) -> int:
    """About how many bytes a value takes."""
    if isinstance(value, str | bytes):
        return 50 + len(value)
    if isinstance(value, dict):
        return 50 + sum(map(_size, value.values()))
    return 50 + sum(map(_size, value)) if isinstance(value, list) else 50
