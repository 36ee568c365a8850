"""Which labels the answers hold: the values of `parsed` that are few, the names of tools called, short answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pyarrow as pa
import pyarrow.compute as pc

from batchchat.dataclass import dataclass
from batchchat.report.distribution import ValueCounts

_JSON = b"batchchat.json"
_Reach = Callable[[pa.Array], pa.Array]


@dataclass(frozen=True, slots=True)
class LabelCounts:
    """How often each label occurs in one place of the answers; `missing` answers have none there."""

    name: str
    counts: list[tuple[str, int]]
    missing: int

    @property
    def total(self) -> int:
        """How many labels there are in all."""
        return sum(count for _, count in self.counts)


@dataclass(slots=True)
class _Place:
    name: str
    column: str
    reach: _Reach
    tally: ValueCounts
    answers: int = 0
    each: bool = False  # one answer may hold several, or none

    def add(self, batch: pa.RecordBatch) -> None:
        if not self.tally.spread:
            self.answers += batch.num_rows
            self.tally.add(self.reach(batch.column(self.column)))

    def counts(self) -> LabelCounts | None:
        """Return the labels, None if these are no labels: every answer has its own."""
        tally = self.tally
        # Labels repeat. Values that occur less than twice on average are short texts: counting them says nothing.
        if tally.spread or not tally.counts or tally.total < 2 * len(tally.counts):
            return None
        ordered = sorted(tally.counts.items(), key=lambda item: (-item[1], item[0]))
        return LabelCounts(self.name, ordered, 0 if self.each else tally.nulls)


class LabelCounter:
    """Counts labels in the completions of an output with this schema; `columns` are what it reads."""

    def __init__(self, schema: pa.Schema) -> None:
        self._places: list[_Place] = []
        if "parsed" in schema.names:
            self._places += _places(schema.field("parsed"), "parsed", "", lambda column: column)
        if not self._places:
            self._places.append(_Place("completion", "completion", pc.utf8_trim_whitespace, ValueCounts()))
        if "tool_calls" in schema.names:
            names: _Reach = lambda column: pc.struct_field(pc.list_flatten(column), "name")  # noqa: E731
            self._places.append(_Place("tools called", "tool_calls", names, ValueCounts(), each=True))

    @property
    def columns(self) -> list[str]:
        """The columns that are still of use: none once everything turned out to be free text."""
        return list(dict.fromkeys(place.column for place in self._places if not place.tally.spread))

    def add(self, batch: pa.RecordBatch) -> None:
        """Count a batch of completions."""
        for place in self._places:
            place.add(batch)

    def found(self) -> list[LabelCounts]:
        """Return what is worth showing, in the schema's order."""
        return [counts for place in self._places if (counts := place.counts()) is not None]


def _places(field: pa.Field, column: str, name: str, reach: _Reach, each: bool = False) -> Iterator[_Place]:
    """The places inside a typed column that may hold labels: strings, booleans and whole numbers, also in lists."""
    kind = field.type
    if pa.types.is_struct(kind):
        for index in range(kind.num_fields):
            inner = kind.field(index)
            path = f"{name}.{inner.name}" if name else inner.name
            yield from _places(inner, column, path, _into(reach, index), each)
    elif pa.types.is_list(kind):
        yield from _places(kind.value_field, column, f"{name}[]", _each(reach), True)
    elif pa.types.is_boolean(kind) or pa.types.is_integer(kind) or _is_text(field):
        yield _Place(name or column, column, reach, ValueCounts(), each=each)


def _is_text(field: pa.Field) -> bool:
    return pa.types.is_string(field.type) and _JSON not in (field.metadata or {})


def _into(reach: _Reach, index: int) -> _Reach:
    return lambda column: pc.struct_field(reach(column), [index])


def _each(reach: _Reach) -> _Reach:
    return lambda column: pc.list_flatten(reach(column))
