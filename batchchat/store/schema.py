"""The Arrow schema of an output: the types of its columns, the same in every part.

The types are fixed here, once, also for a column that is all null.
"""

from __future__ import annotations

import pyarrow as pa

from batchchat.dataclass import dataclass
from batchchat.errors import UsageError
from batchchat.records import FIRST_COLUMNS, PARSED, RECORD_COLUMNS

FORMAT = 1
"""The format of an output. A version that finds a later one refuses it."""
SHARDED_FORMAT = 2
"""The format of an output in shards. Each of its shards has FORMAT."""


_TOOL_CALL = pa.struct([(name, pa.string()) for name in ("id", "type", "name", "arguments")])


_TOKEN = [("token", pa.string()), ("logprob", pa.float64())]


_TIME = pa.timestamp("us", tz="UTC")


_CONFIDENCES = pa.list_(pa.struct([("field", pa.string()), ("confidence", pa.float64())]))


_EARLIER_STEP = [
    ("step", pa.int32()),
    ("model", pa.string()),
    ("provider", pa.string()),
    ("confidence", pa.float64()),
    ("reason", pa.string()),
    ("completion", pa.string()),
    ("cost", pa.float64()),
]


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
    "confidence": pa.float64(),
    "confidence_detail": pa.struct([("method", pa.string()), ("reason", pa.string()), ("fields", _CONFIDENCES)]),
    "step": pa.int32(),
    "earlier_steps": pa.list_(pa.struct(_EARLIER_STEP)),
}


RECORD_SCHEMA = pa.schema([(name, _TYPES.get(name, pa.string())) for name in RECORD_COLUMNS])
"""The output's own columns with their types."""


_LATER = frozenset((*RECORD_COLUMNS, PARSED)) - frozenset(FIRST_COLUMNS)


def output_schema(
    input_schema: pa.Schema, parsed: pa.Field | None = None, metadata: dict[str, str] | None = None
) -> pa.Schema:
    """Return the schema of every part: input columns, the record's own columns, then `parsed` where there is one.

    Every column may hold nulls: a row that could not be read has none of the input's values. Input types that Parquet
    does not give back as they were become the nearest that it does (`kept_type`). If an input column has the name of a
    later column of records, the output was made before there was one: it keeps the input's, and its records do without
    the later one. Raises ValueError if two other columns have the same name.
    """
    fields = [pa.field(field.name, kept_type(field.type)) for field in input_schema]
    taken = _LATER & set(input_schema.names)
    fields += [pa.field(field.name, field.type) for field in RECORD_SCHEMA if field.name not in taken]
    if parsed is not None:
        fields.append(pa.field(PARSED, parsed.type, metadata=parsed.metadata))
    names = [field.name for field in fields]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"two output columns are called {', '.join(twice)}")
    return pa.schema(fields, metadata={"batchchat.format": str(FORMAT), **(metadata or {})})


def own_columns(schema: pa.Schema) -> tuple[str, ...]:
    """Return the columns of an output's schema that a record brings itself, in order: those behind the input's."""
    # The first of them has been there in every version, so that no input column has its name.
    return tuple(schema.names[schema.names.index(FIRST_COLUMNS[0]) :])


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


def same_types(left: pa.Schema, right: pa.Schema) -> bool:
    """Tell whether two schemas have the same column names and types, in order, whatever else they note."""
    return bool(left.names == right.names and left.types == right.types)


def older(found: pa.Schema, schema: pa.Schema) -> bool:
    """Tell whether a file was written before the output had all the columns that it has now, and is well otherwise."""
    later = [field for field in schema if field.name in _LATER and field.name not in found.names]
    return bool(later) and same_types(found, pa.schema([field for field in schema if field not in later]))


@dataclass(frozen=True, slots=True)
class Frozen:
    """The types that an output was made with: the input's columns, and `parsed` where answers have a schema.

    `recovered` where they were told by the records, since the file that holds them is lost.
    """

    input: pa.Schema | None = None
    parsed: pa.Field | None = None
    recovered: bool = False

    def output(self, metadata: dict[str, str] | None = None) -> pa.Schema | None:
        """Return the schema of every part, None where nothing is frozen.

        Raises UsageError if a column of the input has the name of one that every record has.
        """
        if self.input is None:
            return None
        try:
            return output_schema(self.input, self.parsed, metadata)
        except ValueError as error:
            raise UsageError(
                f"{error}: this version of batchchat has columns that the version which made the output had not",
                remedy="Go on with the version that wrote it, or set the output aside with --fresh.",
            ) from error


def joined_parsed(frozen: pa.Field | None, wanted: pa.Field | None) -> pa.Field | None:
    """Return the field of `parsed` that an output has from now on: the frozen one, or the first that is wanted.

    Raises UsageError where the two are of different types.
    """
    if frozen is None or wanted is None:
        return frozen if wanted is None else wanted
    from batchchat.structured import type_change_message

    message = type_change_message(frozen, wanted)
    if message is not None:
        raise UsageError(message, remedy="--fresh sets the old output aside: renamed, never deleted.")
    return frozen
