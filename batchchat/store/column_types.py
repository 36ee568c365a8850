"""The types of an output's columns: frozen by its first run, the same in every part from then on.

They are kept in `schema.json`. If that is lost, the records themselves tell them.
"""

from __future__ import annotations

import base64
from contextlib import suppress

import pyarrow as pa

from batchchat.errors import StorageError, UsageError
from batchchat.records import PARSED, RECORD_COLUMNS
from batchchat.store.journal import rows_schema
from batchchat.store.json_files import publish_json, read_object
from batchchat.store.location.port import Location, StateFiles
from batchchat.store.parts import DamagedPartError, PartReader, unkept
from batchchat.store.schema import Frozen, kept_type, output_schema, own_columns, same_types

SCHEMA = "schema.json"


class OutputTypes:
    """The types of an output that is held.

    `frozen` are the input's columns and `parsed`. `schema` are all columns of every part; None before the input's are
    frozen, when there is no part. `metadata` is written into every part.
    """

    def __init__(self, location: Location, frozen: Frozen, metadata: dict[str, str]) -> None:
        self.frozen = frozen
        self.schema = frozen.output(metadata)
        self._location = location
        self._metadata = metadata

    def freeze_input(self, schema: pa.Schema) -> None:
        """Freeze the input's columns and types for all runs into this output.

        Raises UsageError if other ones are frozen already, if two output columns would have one name, or if Parquet
        cannot keep a type; StorageError if the disk refuses.
        """
        if self.frozen.input is not None:
            if not same_types(self.frozen.input, schema):
                raise UsageError(
                    f"the input's columns differ from those that {self._location.address} was made with",
                    remedy="Give the types with `input.types`, or start anew with --fresh.",
                )
            return
        parsed = self.frozen.parsed
        try:
            output = output_schema(schema, parsed, self._metadata)
        except ValueError as error:
            raise UsageError(str(error)) from error
        column = unkept(schema)
        if column is not None:
            raise UsageError(
                f"the input column {column!r} is of type {schema.field(column).type}, which Parquet cannot keep",
                remedy="Give it another type with `input.types`.",
            )
        # The fields' own notes stay: a later run learns from them which column of the input a renamed one is.
        frozen = pa.schema([pa.field(column.name, column.type, metadata=column.metadata) for column in schema])
        save_types(self._location.state, frozen, parsed)
        self.frozen, self.schema = Frozen(frozen, parsed), output

    @property
    def own_columns(self) -> tuple[str, ...]:
        """Return the columns that a record of this output brings itself."""
        if self.schema is not None:
            return own_columns(self.schema)
        return RECORD_COLUMNS if self.frozen.parsed is None else (*RECORD_COLUMNS, PARSED)

    @property
    def required_schema(self) -> pa.Schema:
        """Return `schema`. Raises RuntimeError if the input's columns are not frozen."""
        if self.schema is None:
            raise RuntimeError("freeze the input's schema before committing records")
        return self.schema


def read_types(location: Location) -> Frozen:
    """Return the frozen types; nothing is frozen before the first run. Raises StorageError."""
    found = read_object(location.state, SCHEMA)
    try:
        schema = _schema_of(found["arrow"])
        parsed = _schema_of(found["parsed"]).field(0) if found.get("parsed") else None
    except (ValueError, KeyError, TypeError, IndexError, pa.ArrowException, OSError):
        return _types_of_records(location)
    # A type of `parsed` that no record has may still be another one.
    return Frozen(schema, parsed if _may_hold_records(location) else None)


def _may_hold_records(location: Location) -> bool:
    return bool(location.parts.names() or location.archive.names() or location.journals.generations())


def _types_of_records(location: Location) -> Frozen:
    """Return the types that the records have, if `schema.json` is lost; nothing if there are no records.

    Raises StorageError if there are parts and none of them can be read.
    """
    files = location.parts
    names = files.names()
    for name in names:
        try:
            with PartReader(files, name) as reader:
                fields = list(reader.schema)
        except (FileNotFoundError, DamagedPartError):
            continue
        carried = len(fields) - len(own_columns(pa.schema(fields)))
        parsed = next((field for field in fields[carried:] if field.name == PARSED), None)
        return Frozen(pa.schema(fields[:carried]), parsed, recovered=True)
    for generation in location.journals.generations():
        with suppress(FileNotFoundError):
            schema = rows_schema(location.journals, generation)
            if schema is not None:
                return Frozen(schema, recovered=True)
    if names:
        raise StorageError(
            f"{location.state.address(SCHEMA)} is missing or damaged, and no part can be read that tells the types",
            remedy="Restore it from a copy, or start anew with --fresh: the old output is renamed, never deleted.",
        )
    return Frozen()


def save_types(files: StateFiles, schema: pa.Schema, parsed: pa.Field | None) -> None:
    """Write down the types of the input's columns, and of `parsed`. Raises StorageError."""
    value = {"columns": {field.name: str(field.type) for field in schema}, "arrow": _schema_text(schema)}
    if parsed is not None:
        value |= {"parsed_type": str(parsed.type), "parsed": _schema_text(pa.schema([parsed]))}
    publish_json(files, SCHEMA, value)


def freeze_recovered(files: StateFiles, recovered: Frozen, wanted: pa.Schema | None) -> Frozen:
    """Write down again the types that the records tell, and return them.

    Those of the input of today are taken instead if the output keeps them as what the records have.
    """
    schema = recovered.input
    if wanted is not None and schema is not None:
        kept = pa.schema([pa.field(column.name, kept_type(column.type)) for column in wanted])
        if same_types(kept, schema):
            schema = pa.schema([pa.field(column.name, column.type, metadata=column.metadata) for column in wanted])
    save_types(files, schema, recovered.parsed)
    return Frozen(schema, recovered.parsed)


def _schema_text(schema: pa.Schema) -> str:
    return base64.b64encode(schema.serialize().to_pybytes()).decode("ascii")


def _schema_of(text: str) -> pa.Schema:
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text, validate=True)))
