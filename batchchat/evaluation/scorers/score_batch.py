"""What scorers read and write: records of one variant beside the current input's rows, and the scores of a batch."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from batchchat.dataclass import dataclass
from batchchat.errors import UsageError
from batchchat.evaluation.scorers.matching import read_json
from batchchat.job.values import nearest
from batchchat.records import PARSED, RECORD_COLUMNS


@dataclass(frozen=True, slots=True)
class Lists:
    """Columns as plain lists of the same length."""

    columns: Mapping[str, list[Any]]
    size: int

    def rows(self) -> list[dict[str, Any]]:
        """Return the lines as dicts."""
        lines = zip(*self.columns.values(), strict=True) if self.columns else [()] * self.size
        return [dict(zip(self.columns, line, strict=True)) for line in lines]


Columns: TypeAlias = "pa.RecordBatch | pa.Table | Lists | Sequence[Mapping[str, Any]]"


@dataclass(frozen=True, slots=True)
class Scores:
    """One value (float64 or null) and one reason (string or null) per record.

    `labels` are the expected and the given label of each record, from scorers that sort into classes: None stands on
    both sides for a record that does not count, and on the given side alone where there is no answer.
    """

    values: pa.DoubleArray
    reasons: pa.StringArray
    labels: tuple[list[str | None], list[str | None]] | None = None
    called: int = 0
    broken: int = 0


@dataclass(frozen=True, slots=True)
class Absent:
    """Stands where an answer has no value at the place asked for, and says why."""

    reason: str


class ScoreBatch:
    """Records of one variant, and line by line the current input's row of each.

    Both sides are Arrow record batches, Arrow tables, `Lists`, or lists of dicts. Columns are read once, when first
    asked for, so that several scorers share the work. `inputs` may be left out where no scorer expects a column. An
    empty batch has every column.
    """

    def __init__(self, records: Columns, inputs: Columns | None = None) -> None:
        self._records = records
        self._inputs = inputs
        self._answers: dict[str, list[Any]] = {}
        self._expected: dict[str, list[Any]] = {}
        self._failures: list[str | None] | None = None
        self._size = _size(records)
        if inputs is not None and _size(inputs) != self._size:
            raise ValueError(f"{self._size} records stand beside {_size(inputs)} rows of input")

    def __len__(self) -> int:
        return self._size

    def answers(self, path: str) -> list[Any]:
        """Return the value at a dotted path of each record, `Absent` if there is none.

        A path goes through columns, structs, list positions (`tool_calls.0.name`), and texts that hold JSON, with or
        without a code fence around it (`completion.label`).
        """
        if path not in self._answers:
            self._answers[path] = _read_path(self._records, path) if len(self) else []
        return self._answers[path]

    def expected(self, column: str) -> list[Any]:
        """Return a column of the current input. Raises UsageError if it is not there."""
        if column not in self._expected:
            names: list[str] = [] if self._inputs is None else _names(self._inputs)
            if len(self):
                check_column(column, names, "the input")
            self._expected[column] = _column(self._inputs, column) if len(self) else []
        return self._expected[column]

    def failures(self) -> list[str | None]:
        """Why each record has no completion, None where it has one."""
        if self._failures is None and not len(self):
            self._failures = []
        elif self._failures is None:
            names = _names(self._records)
            check_column("status", names, "the records")
            count = len(self)
            kinds, messages = (
                _column(self._records, name) if name in names else [None] * count
                for name in ("error_kind", "error_message")
            )
            self._failures = [
                None if status == "ok" else ": ".join(["failed", *(part for part in (kind, message) if part)])
                for status, kind, message in zip(_column(self._records, "status"), kinds, messages, strict=True)
            ]
        return self._failures

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield each record as a dict, its input columns as they are in the current input."""
        for record, row in self.pairs():
            yield {**record, **{name: value for name, value in row.items() if name not in _OWN_COLUMNS}}

    def pairs(self) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Yield each record beside the current input's row, empty where there is none."""
        inputs = ({} for _ in range(len(self))) if self._inputs is None else _dicts(self._inputs)
        yield from zip(_dicts(self._records), inputs, strict=True)


_OWN_COLUMNS = frozenset((*RECORD_COLUMNS, PARSED))


def check_column(name: str, known: Collection[str], where: str) -> None:
    """Raise UsageError, with the nearest name, where a column is not there."""
    if name not in known:
        raise UsageError(
            f"there is no column {name!r} in {where}{nearest(name, list(known))}",
            remedy=f"There are: {', '.join(known)}." if known else None,
        )


def check_path(path: str, column: pa.Field) -> None:
    """Raise UsageError, with the nearest name, where a dotted path leads to no field of this typed column."""
    place, *parts = path.split(".")
    kind = column.type
    while place.partition(".")[0] == column.name and parts and pa.types.is_struct(kind):
        check_column(parts[0], [field.name for field in kind], place)
        place, kind = f"{place}.{parts[0]}", kind.field(parts[0]).type
        parts = parts[1:]


def _size(data: Columns) -> int:
    return data.size if isinstance(data, Lists) else len(data)


def _names(data: Columns) -> list[str]:
    if isinstance(data, Lists):
        return list(data.columns)
    if isinstance(data, pa.RecordBatch | pa.Table):
        return list(data.schema.names)
    names: dict[str, None] = {}
    for row in data:
        names.update(dict.fromkeys(row))
    return list(names)


def _column(data: Any, name: str) -> list[Any]:
    if isinstance(data, Lists):
        return data.columns[name]
    if isinstance(data, pa.RecordBatch | pa.Table):
        values: list[Any] = data.column(name).to_pylist()
        return values
    return [row.get(name) for row in data]


def _dicts(data: Any) -> list[dict[str, Any]]:
    if isinstance(data, Lists):
        return data.rows()
    rows: list[dict[str, Any]] = data.to_pylist() if isinstance(data, pa.RecordBatch | pa.Table) else list(data)
    return rows


def _read_path(data: Columns, path: str) -> list[Any]:
    names = _names(data)
    # The name of a column may hold dots itself.
    column, _, inner = (path, "", "") if path in names else path.partition(".")
    check_column(column, names, "the records")
    parts = inner.split(".") if inner else []
    if isinstance(data, pa.RecordBatch | pa.Table):
        array = data.column(column)
        # A struct's field is taken as a column, so that no dict is built for each record.
        while parts and pa.types.is_struct(array.type):
            known = [field.name for field in array.type]
            check_column(parts[0], known, column)
            array = pc.struct_field(array, parts[0])
            column, parts = f"{column}.{parts[0]}", parts[1:]
        values = array.to_pylist()
    else:
        values = _column(data, column)
    missing = Absent(f"{column} is null")
    return [missing if value is None else _descend(value, column, parts) if parts else value for value in values]


def _descend(value: Any, place: str, parts: Sequence[str]) -> Any:
    for part in parts:
        if isinstance(value, str):
            try:
                value = read_json(value)
            except ValueError:
                return Absent(f"{place} is not JSON")
        if isinstance(value, list) and part.isdecimal():
            value = value[int(part)] if int(part) < len(value) else None
        elif isinstance(value, Mapping):
            value = value.get(part)
        else:
            return Absent(f"{place} has no fields")
        place = f"{place}.{part}"
        if value is None:
            return Absent(f"there is no {place}")
    return value
