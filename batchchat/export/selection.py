"""Which columns an export writes: those of the dataset, or fields inside of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from batchchat.choosing import no_column
from batchchat.errors import UsageError


class ExportColumn(NamedTuple):
    """A column of the file: its name and type, and the way to it: a column of the dataset, then fields inside of it."""

    name: str
    path: tuple[str, ...]
    kind: pa.DataType


def select_columns(schema: pa.Schema, names: Sequence[str] | None, *, flatten: bool) -> list[ExportColumn]:
    """Return the columns to write: all, or those with these names, in their order.

    `column.field` names a field of an object. With `flatten` the fields of objects are columns of their own, at any
    depth. Raises UsageError for a name that is not there.
    """
    # All columns, in the order of the dataset.
    if names is None:
        found = [ExportColumn(field.name, (field.name,), field.type) for field in schema]
    else:
        if not names or len(set(names)) < len(names):
            raise UsageError("--columns: names no column, or one twice", remedy="Name each column once.")
        found = [_named(name, schema) for name in names]
    return list(_flat(found)) if flatten else found


def schema_of(columns: Sequence[ExportColumn]) -> pa.Schema:
    """Return the schema of the file."""
    return pa.schema([pa.field(column.name, column.kind) for column in columns])


def pick(batch: pa.RecordBatch, columns: Sequence[ExportColumn]) -> pa.RecordBatch:
    """Return the chosen columns of a batch."""
    arrays = []
    for column in columns:
        array = batch.column(column.path[0])
        for field in column.path[1:]:
            array = pc.struct_field(array, [array.type.get_field_index(field)])
        arrays.append(array)
    return pa.RecordBatch.from_arrays(arrays, schema=schema_of(columns))


def _named(name: str, schema: pa.Schema) -> ExportColumn:
    if name in schema.names:
        return ExportColumn(name, (name,), schema.field(name).type)
    parts = name.split(".")
    # A name of a column may hold dots itself: the longest one that is there counts.
    for length in range(len(parts) - 1, 0, -1):
        first = ".".join(parts[:length])
        if first in schema.names:
            return ExportColumn(
                name, (first, *parts[length:]), _inside(schema.field(first).type, first, parts[length:])
            )
    raise UsageError(f"--columns: {no_column(name, schema.names)}", remedy="Name columns of the output.")


def _inside(kind: pa.DataType, where: str, path: Sequence[str]) -> pa.DataType:
    for step in path:
        if not pa.types.is_struct(kind):
            raise UsageError(
                f"--columns: {where} is no object ({kind}), so it has no field {step!r}",
                remedy=f"Write {where}, and take it apart in your own program.",
            )
        known = [field.name for field in kind.fields]
        if step not in known:
            raise UsageError(f"--columns: {where}: {no_column(step, known)}", remedy=f"It has {', '.join(known)}.")
        kind, where = kind.field(step).type, f"{where}.{step}"
    return kind


def _flat(columns: Sequence[ExportColumn]) -> Iterator[ExportColumn]:
    """Put the fields of objects in the place of the objects, unless one would have the name of another column."""
    taken = {column.name for column in columns}
    for column in columns:
        if not pa.types.is_struct(column.kind) or not column.kind.num_fields:
            yield column
            continue
        fields = list(
            _flat(
                [
                    ExportColumn(f"{column.name}.{field.name}", (*column.path, field.name), field.type)
                    for field in column.kind.fields
                ]
            )
        )
        yield from fields if taken.isdisjoint(field.name for field in fields) else [column]
