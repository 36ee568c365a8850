"""Parquet: columns as Arrow gives them for the output, and the same rows as Python values for the template."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from hashlib import blake2b
from typing import Any

import pyarrow as pa

from batchchat.errors import StorageError, UsageError
from batchchat.lazy_arrow import compute as pc
from batchchat.lazy_arrow import parquet as pq
from batchchat.records import Place
from batchchat.sources.chunk import Chunk, Limits
from batchchat.sources.convert import json_text
from batchchat.sources.decoded import DecodedSizes
from batchchat.sources.files import Progress
from batchchat.sources.input_file import InputFile

_AT_ONCE = 2
"""How many batches' worth of bytes are decoded at once at most: rows differ in size, and are told by their largest."""


class ParquetFile:
    """One Parquet file: its columns, and its rows in batches."""

    def __init__(self, file: InputFile) -> None:
        self._file = file
        try:
            with file.for_arrow() as source, pq.ParquetFile(source) as opened:
                self.schema = opened.schema_arrow
                self.rows: int = opened.metadata.num_rows
                self._leaves: int = opened.metadata.num_columns
        except (pa.ArrowException, OSError) as error:
            reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
            raise UsageError(f"{file.address}: not a readable Parquet file: {reason}") from None
        for name in self.schema.names:
            if self.schema.names.count(name) > 1:
                raise UsageError(f"{file.address}: two columns are called {name!r}", remedy="Rename one of them.")

    def chunks(self, limits: Limits, progress: Progress, first: int = 0) -> Iterator[Chunk]:
        """Yield the rows from number `first`, `arrow` holding them with plain types.

        Plain are no dictionaries, views or large offsets.
        """
        before = progress.done
        with (
            self._file.for_arrow(self._leaves) as source,
            pq.ParquetFile(source, pre_buffer=False, buffer_size=1 << 20) as opened,
        ):
            groups, read = _groups_from(opened.metadata, first)
            sizes = DecodedSizes(opened, self._file.read_at)
            for group in groups:
                size = sizes.at_once(group, limits.batch_rows, _AT_ONCE * limits.batch_bytes)
                for batch in opened.iter_batches(batch_size=size, row_groups=[group]):
                    there = batch.slice(max(0, first - read))
                    read += batch.num_rows
                    # A batch of a file that was replaced or cut meanwhile may hold anything.
                    self._file.check_unchanged()
                    progress.done = before + read
                    place = read - there.num_rows
                    for part in _split(there, limits.batch_bytes):
                        yield self._chunk(part, place, limits)
                        place += part.num_rows
            self._file.check_unchanged()
            # Arrow says nothing of a file that ends before the first page of a row group.
            if read != self.rows:
                raise StorageError(
                    f"{self._file.address}: the file promises {self.rows:,} rows and gave {read:,}: it was cut or "
                    "changed",
                    remedy="Restore the file, then run the same command again: what is done stays done.",
                )

    def _chunk(self, part: pa.RecordBatch, place: int, limits: Limits) -> Chunk:
        """Make a chunk of rows, of which the first has this number in the file."""
        behind = Place(0, place + part.num_rows)
        nbytes = _decoded_bytes(part)
        if part.num_rows == 1 and nbytes > limits.max_line_bytes:
            chunk = Chunk([], 0, place=behind)
            chunk.fail(
                f"{self._file.name}: row {place + 1:,} of the file is too long: {nbytes:,} bytes, and "
                f"{limits.max_line_bytes:,} are read at most",
                _digest(part),
            )
            return chunk
        chunk = _chunk_of(part)
        chunk.place = behind
        return chunk


def _groups_from(metadata: pq.FileMetaData, first: int) -> tuple[list[int], int]:
    """The row groups that hold row number `first` and those behind it, and the number of rows before them."""
    before = 0
    for index in range(metadata.num_row_groups):
        rows = metadata.row_group(index).num_rows
        if before + rows > first:
            return list(range(index, metadata.num_row_groups)), before
        before += rows
    return [], before


def arrow_chunks(batch: pa.RecordBatch, limit: int) -> Iterator[Chunk]:
    """Yield the rows of a batch in chunks of at most `limit` bytes, or of one row.

    `arrow` holds them with plain types.
    """
    for part in _split(batch, limit):
        yield _chunk_of(part)


def _chunk_of(part: pa.RecordBatch) -> Chunk:
    found, broken = _rows(part)
    # Other programs cannot read a column of broken texts: it is carried as the values say it. So is one that Arrow
    # cannot turn into its plain type.
    plain: dict[str, pa.Array] = {}
    for name, column in zip(part.schema.names, part.columns, strict=True):
        array = None if name in broken else _plain(column)
        if array is not None:
            plain[name] = array
    carried = pa.RecordBatch.from_arrays(list(plain.values()), names=list(plain))
    rows: list[dict[str, Any] | None] = [*found]
    return Chunk(rows, max(_decoded_bytes(part), carried.nbytes), arrow=carried)


def _split(batch: pa.RecordBatch, limit: int) -> Iterator[pa.RecordBatch]:
    """Halve a batch until its parts are within the limit or single rows."""
    if batch.num_rows <= 1 or _decoded_bytes(batch) <= limit:
        if batch.num_rows:
            yield batch
        return
    half = batch.num_rows // 2
    yield from _split(batch.slice(0, half), limit)
    yield from _split(batch.slice(half), limit)


def _decoded_bytes(batch: pa.RecordBatch) -> int:
    """Return the size of a batch's rows, a dictionary's value counted for each row that has it."""
    return sum(map(_array_bytes, batch.columns))


def _array_bytes(array: pa.Array) -> int:
    kind = array.type
    if isinstance(array, pa.ExtensionArray):
        return _array_bytes(array.storage)
    if pa.types.is_dictionary(kind) and _has_length(kind.value_type):
        lengths = pc.binary_length(array.dictionary).take(array.indices)
        return int(pc.sum(lengths).as_py() or 0) + int(array.indices.nbytes)
    return int(array.nbytes)


def _has_length(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_string(kind) or types.is_binary(kind) or types.is_large_string(kind))


def _digest(batch: pa.RecordBatch) -> bytes:
    """Return what tells a row from others without keeping it."""
    digest = blake2b(digest_size=32)
    for column in batch.columns:
        for buffer in pa.concat_arrays([column]).take(pa.array([0])).buffers():
            digest.update(b"-" if buffer is None else buffer)
    return digest.digest()


def plain_type(kind: pa.DataType) -> pa.DataType:  # noqa: PLR0911 - one return for each type
    """Return the type in which a Parquet column is carried: the same values, in the plainest layout."""
    types = pa.types
    if isinstance(kind, pa.BaseExtensionType):
        return plain_type(kind.storage_type)
    if types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        return plain_type(kind.value_type)
    if types.is_null(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return pa.string()
    if types.is_large_binary(kind) or types.is_binary_view(kind):
        return pa.binary()
    if types.is_map(kind):
        return pa.map_(plain_type(kind.key_type), plain_type(kind.item_type))
    if types.is_fixed_size_list(kind):
        return pa.list_(plain_type(kind.value_type), kind.list_size)
    if types.is_struct(kind):
        return pa.struct([pa.field(field.name, plain_type(field.type)) for field in kind.fields])
    if types.is_list(kind) or types.is_large_list(kind) or _is_list_view(kind):
        return pa.list_(plain_type(kind.value_type))
    return kind


def _is_list_view(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind))


def _plain(array: pa.Array) -> pa.Array | None:
    """Return a column in its plain type; None where Arrow cannot do it for sure."""
    wanted = plain_type(array.type)
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if array.type == wanted:
        return array
    if _holds_views(array.type):
        return None  # seen in Arrow 26: the cast keeps the offsets of the views, of which a list has one more
    try:
        plain = array.cast(wanted)
        plain.validate()
    except (pa.ArrowException, NotImplementedError):
        return None
    return plain


def _holds_views(kind: pa.DataType) -> bool:
    """Return true if a type has a list view at any depth."""
    if isinstance(kind, pa.BaseExtensionType):
        return _holds_views(kind.storage_type)
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return _holds_views(kind.value_type)
    return _is_list_view(kind) or any(_holds_views(kind.field(number).type) for number in range(kind.num_fields))


def python_rows(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Return a batch's rows as Python values by column name.

    Times are to the microsecond, and texts if Python has no such time. Maps are dicts whose keys are texts. A text that
    is not UTF-8 has its wrong bytes as escapes. It never raises.
    """
    return _rows(batch)[0]


def _rows(batch: pa.RecordBatch) -> tuple[list[dict[str, Any]], set[str]]:
    """Return a batch's rows, and the names of the columns with texts that are not UTF-8."""
    names = batch.schema.names
    broken: set[str] = set()
    columns = []
    for name, column in zip(names, batch.columns, strict=True):
        values, whole = _values(column)
        columns.append(values)
        if not whole:
            broken.add(name)
    if not columns:
        return [{} for _ in range(batch.num_rows)], broken
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)], broken


def _values(array: pa.Array) -> tuple[list[Any], bool]:
    """Return the Python values of a column, and whether all its texts are UTF-8."""
    try:
        kind = _view_type(array.type)
        values: list[Any] = (array.cast(kind, safe=False) if kind != array.type else array).to_pylist()
        if _holds_map(kind):
            values = list(map(_mapped(kind), values))
    except UnicodeDecodeError:
        return list(map(_value, array)), False
    except _UNKNOWN_TO_PYTHON:
        try:
            array.validate(full=True)
        except pa.ArrowException:
            return list(map(_value, array)), False
        return list(map(_value, array)), True
    return values, True


_UNKNOWN_TO_PYTHON = (pa.ArrowException, ValueError, OverflowError, TypeError, ImportError, LookupError, OSError)
"""What Arrow raises for values that Python does not have: a time before year 1, an unknown time zone, equal names."""


def _holds_map(kind: pa.DataType) -> bool:
    """Whether values of a type hold a map at any depth: Python reads it as a list of pairs."""
    if pa.types.is_map(kind):
        return True
    return any(_holds_map(kind.field(number).type) for number in range(kind.num_fields))


def _mapped(kind: pa.DataType) -> Callable[[Any], Any]:
    """Return what makes dicts of the maps inside a value of this type. A time keeps its type, a null stays null."""
    if not _holds_map(kind):
        return lambda value: value
    if pa.types.is_map(kind):
        key, item = _mapped(kind.key_type), _mapped(kind.item_type)
        return lambda value: None if value is None else {_key_text(key(name)): item(inner) for name, inner in value}
    if pa.types.is_struct(kind):
        inside = [(field.name, _mapped(field.type)) for field in kind.fields]
        return lambda value: None if value is None else {name: read(value[name]) for name, read in inside}
    if pa.types.is_union(kind):
        return lambda value: value
    one = _mapped(kind.value_type)
    return lambda value: None if value is None else [one(inner) for inner in value]


def _key_text(key: Any) -> str:
    """Write a map's key as text: JSON and templates have no other."""
    if isinstance(key, str):
        return key
    text = json_text(key)
    return text[1:-1] if text.startswith('"') else text


def _view_type(kind: pa.DataType) -> pa.DataType:  # noqa: PLR0911 - one return for each type
    """The type without nanoseconds, which Python's own times do not have."""
    types = pa.types
    if types.is_timestamp(kind) and kind.unit == "ns":
        return pa.timestamp("us", tz=kind.tz)
    if types.is_duration(kind) and kind.unit == "ns":
        return pa.duration("us")
    if types.is_time64(kind) and kind.unit == "ns":
        return pa.time64("us")
    if types.is_list(kind):
        return pa.list_(_view_type(kind.value_type))
    if types.is_large_list(kind):
        return pa.large_list(_view_type(kind.value_type))
    if types.is_fixed_size_list(kind):
        return pa.list_(_view_type(kind.value_type), kind.list_size)
    if types.is_map(kind):
        return pa.map_(_view_type(kind.key_type), _view_type(kind.item_type))
    if types.is_struct(kind):
        return pa.struct([pa.field(field.name, _view_type(field.type)) for field in kind.fields])
    if types.is_dictionary(kind):
        return _view_type(kind.value_type)
    return kind


def _value(scalar: pa.Scalar) -> Any:  # noqa: PLR0911 - one return for each type
    """One value, at any depth: its text if Python has no such value."""
    kind = scalar.type
    if not scalar.is_valid:
        return None
    if isinstance(kind, pa.BaseExtensionType):
        return _value(scalar.value)
    if pa.types.is_dictionary(kind) or pa.types.is_union(kind) or pa.types.is_run_end_encoded(kind):
        return _value(scalar.value) if isinstance(scalar.value, pa.Scalar) else _leaf(scalar)
    if pa.types.is_map(kind):
        pairs = scalar.values
        return {_key_text(_value(key)): _value(item) for key, item in zip(pairs.field(0), pairs.field(1), strict=True)}
    if pa.types.is_struct(kind):
        # By number, since two fields may have one name: the first one keeps it.
        found: dict[str, Any] = {}
        for number, field in enumerate(kind.fields):
            found.setdefault(field.name, _value(scalar[number]))
        return found
    if _is_list(kind):
        return list(map(_value, scalar.values))
    return _leaf(scalar)


def _is_list(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(
        types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind) or _is_list_view(kind)
    )


def _leaf(scalar: pa.Scalar) -> Any:
    wanted = _view_type(scalar.type)
    try:
        return (scalar if wanted == scalar.type else scalar.cast(wanted, safe=False)).as_py()
    except UnicodeDecodeError:
        return scalar.as_buffer().to_pybytes().decode(errors="backslashreplace")
    except _UNKNOWN_TO_PYTHON:
        pass
    if pa.types.is_timestamp(scalar.type) and scalar.type.tz:
        scalar = scalar.cast(pa.timestamp(scalar.type.unit, "UTC"))
    try:
        return scalar.cast(pa.string()).as_py()
    except _UNKNOWN_TO_PYTHON:
        # A number of units, for instance, in a time of day that is over 24 hours.
        return str(getattr(scalar, "value", "")) or "?"
