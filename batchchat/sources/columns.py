"""What is carried to the output: names, frozen types, and what becomes of a value that does not fit.

A column of the output has a frozen Arrow type from the first run on. A value that the type does not hold exactly
(told by its Python type, so that `true` is no 1 and 3.0 is no 3), and a field that the schema does not know, go to
`input_extra` as JSON under the input's own name: nothing is lost, and no row fails for it.

A field of the schema says in its metadata what it stands for, so that a frozen schema alone suffices:
`batchchat.input` is the input's name for it where that is another; `batchchat.as` is `json` (any value, as JSON
text), `text` (numbers and booleans are written as text) or `declared` (texts are read as the column's type).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import orjson
import pyarrow as pa

from batchchat.records import PARSED, RECORD_COLUMNS
from batchchat.sources.convert import JSON, MISFIT, converter, extra_text, fits

EXTRA = "input_extra"
_COMING = ("tokens_per_s", "cache_hit")
RESERVED = frozenset(name.lower() for name in (*RECORD_COLUMNS, EXTRA, PARSED, *_COMING))
"""Names that no input column has in the output, in lower case: many readers do not tell the case of names."""
_INPUT = b"batchchat.input"
_AS = b"batchchat.as"
_NOTHING: dict[str, Any] = {}


class Column(NamedTuple):
    """One input column: the input's name, the output's type, and how values are written into it."""

    name: str
    kind: pa.DataType
    mode: str = ""


def freeze(columns: Iterable[Column]) -> pa.Schema:
    """Make the schema that is carried: output names, types, and `input_extra` last."""
    columns = list(columns)
    names = output_names([column.name for column in columns])
    fields = []
    for column, name in zip(columns, names, strict=True):
        metadata = {_AS: column.mode.encode()} if column.mode else {}
        # Only a renamed column says so: the schema of most outputs stays free of metadata.
        if name != column.name:
            metadata[_INPUT] = column.name.encode("utf-8", "surrogatepass")
        fields.append(pa.field(name, column.kind, metadata=metadata or None))
    return pa.schema([*fields, pa.field(EXTRA, pa.string())])


def output_names(names: Sequence[str]) -> list[str]:
    """Give each input column its name in the output.

    A name that a column of the output's own has, or that differs from an earlier one only in case, gets `input_` in
    front until it is free. All other columns keep their names.
    """
    taken = set(RESERVED)
    given: dict[int, str] = {}
    for index, name in enumerate(names):
        # First those that may keep their names, so that no renamed column takes the name of a later one.
        if name and name.lower() not in taken:
            given[index] = name
            taken.add(name.lower())
    for index, name in enumerate(names):
        if index not in given:
            free = f"input_{name}"
            while free.lower() in taken:
                free = f"input_{free}"
            given[index] = free
            taken.add(free.lower())
    return [given[index] for index in range(len(names))]


class SeenRows:
    """Makes carried rows what the template saw: under the input's own names, JSON text read, `input_extra` put back."""

    def __init__(self, schema: pa.Schema) -> None:
        found = [(field.name, _column(field)) for field in schema if field.name != EXTRA]
        self._columns = [(name, column.name, column.mode == JSON) for name, column in found]

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return one row as it was seen."""
        values: dict[str, Any] = {}
        for carried, name, is_json in self._columns:
            value = row.get(carried)
            values[name] = orjson.loads(value) if is_json and isinstance(value, str) else value
        extra = row.get(EXTRA)
        if isinstance(extra, str):
            values.update(orjson.loads(extra))
        return values


class Columns:
    """Carries rows to a frozen schema."""

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema
        self.columns = [_column(field) for field in schema if field.name != EXTRA]
        self.names = tuple(column.name for column in self.columns)
        self._known = frozenset(self.names)
        self._convert = [converter(column.kind, column.mode) for column in self.columns]

    def carry(self, rows: Sequence[dict[str, Any] | None], given: dict[str, pa.Array] | None = None) -> pa.RecordBatch:
        """Return the rows as a batch of the schema; an unreadable row (None) is all null.

        `given` holds columns that are already Arrow arrays, by the input's names.
        """
        filled: Sequence[dict[str, Any]] = [_NOTHING if row is None else row for row in rows]
        extras: dict[int, dict[str, Any]] = {}
        arrays = []
        for index, column in enumerate(self.columns):
            ready = None if given is None else _cast(given.get(column.name), column)
            if ready is None:
                name = column.name
                ready = self._array(index, [row.get(name) for row in filled], extras)
            arrays.append(ready)
        # Asked of the whole batch at once: most batches have no field beyond the columns.
        if not self._known.issuperset(chain.from_iterable(filled)):
            for offset, row in enumerate(filled):
                for name in row.keys() - self._known:
                    # A null says nothing that a missing field would not.
                    if row[name] is not None:
                        extras.setdefault(offset, {})[name] = row[name]
        texts = [extra_text(extras[offset]) if offset in extras else None for offset in range(len(filled))]
        arrays.append(pa.array(texts if extras else [None] * len(filled), pa.string()))
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)

    def _array(self, index: int, values: list[Any], extras: dict[int, dict[str, Any]]) -> pa.Array:
        name, kind, mode = self.columns[index]
        if mode != JSON and fits(kind, values):
            try:
                return pa.array(values, kind)
            except (pa.ArrowException, OverflowError, UnicodeEncodeError):
                pass  # some value is out of range: find it below
        convert = self._convert[index]
        converted = [None if value is None else convert(value) for value in values]
        for offset, value in enumerate(converted):
            if value is MISFIT:
                extras.setdefault(offset, {})[name] = values[offset]
                converted[offset] = None
        return pa.array(converted, kind)


def _column(field: pa.Field) -> Column:
    metadata = field.metadata or {}
    name = metadata.get(_INPUT, field.name.encode("utf-8", "surrogatepass")).decode("utf-8", "surrogatepass")
    return Column(name, field.type, metadata.get(_AS, b"").decode())


def _cast(array: pa.Array | None, column: Column) -> pa.Array | None:
    """Give a Parquet column its frozen type where that is the same, or holds every value of it."""
    # A column with a mode is read from Python values: a cast of Arrow would not write numbers as JSON does.
    if array is None or column.mode:
        return None
    if array.type == column.kind:
        return array
    if _family(array.type) is None or _family(array.type) != _family(column.kind):
        return None
    try:
        return array.cast(column.kind, safe=True)
    except pa.ArrowException:
        return None


def _family(kind: pa.DataType) -> object:
    """Types between which Arrow's safe cast is exact, or fails."""
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return "number"
    if pa.types.is_timestamp(kind):
        return "timestamp", kind.tz
    if pa.types.is_duration(kind) or pa.types.is_time(kind):
        return str(kind).partition("[")[0]
    if pa.types.is_decimal(kind):
        return "decimal"
    return None
