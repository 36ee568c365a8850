"""Choosing records of an output: by row, key, failure, or an expression over their columns; and counting values.

An expression is one of the language of templates, without braces: `status == 'failed' and attempts > 2`,
`parsed.label == 'bug'`, `'refund' in text`. It runs in the same sandbox as a template.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from batchchat.dataclass import dataclass
from batchchat.errors import JobError, UsageError
from batchchat.masks import mask_of
from batchchat.sources import python_rows
from batchchat.store import Output
from batchchat.template.leaf import NativeLeaf, RowTemplateError, parse, single_expression, suggestion
from batchchat.template.plain import to_json
from batchchat.template.sandbox import Environment

_PLACE = "--where"
_REMEDY = "Write an expression over columns, such as \"status == 'failed'\" or \"parsed.label == 'bug'\"."


@dataclass(frozen=True, slots=True)
class RecordFilter:
    """Which records are wanted: those for which all that is given holds."""

    row: int | None = None
    key: str | None = None
    failed: bool = False
    where: str | None = None


class RecordMask:
    """Tells which records of a batch a filter lets through. `known` are the columns that there are.

    Raises UsageError if the expression cannot be read, or names no column.
    """

    def __init__(self, by: RecordFilter, known: Sequence[str]) -> None:
        self._by = by
        self._condition = None if by.where is None else _Condition(by.where, known)
        more = self._condition.columns if self._condition else ()
        self.needed = list(dict.fromkeys(["row_index", "key", "status", *more]))

    def of(self, batch: pa.RecordBatch) -> pa.Array:
        """Return for each record of a batch, which holds the `needed` columns, whether it is wanted."""
        by = self._by
        holds = pa.repeat(True, batch.num_rows)
        if by.row is not None:
            holds = pc.and_(holds, pc.equal(batch.column("row_index"), by.row))
        if by.key is not None:
            holds = pc.and_(holds, pc.fill_null(pc.equal(batch.column("key"), by.key), False))
        if by.failed:
            holds = pc.and_(holds, pc.equal(batch.column("status"), "failed"))
        # Only of records that are left: an expression is not asked of the others.
        return holds if self._condition is None else self._condition.mask(batch, holds)

    def check(self) -> None:
        """Raise UsageError if the expression could be computed for no record at all."""
        if self._condition is not None:
            self._condition.check()


def chosen(output: Output, by: RecordFilter, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Yield the records that a filter lets through, with the named columns, or all.

    Raises UsageError if the expression cannot be read, names no column, or can be computed for no record at all.
    """
    schema = output.schema
    if schema is None:
        return
    mask = RecordMask(by, schema.names)
    wanted = list(columns) if columns is not None else schema.names
    if by == RecordFilter():
        yield from output.records(wanted)
        return
    yield from output.matching(wanted, mask.needed, mask.of)
    mask.check()


class _Condition:
    """An expression that is true of some records."""

    def __init__(self, text: str, known: Sequence[str]) -> None:
        environment = Environment()
        try:
            expression = single_expression(parse(environment, f"{{{{ {text} }}}}", _PLACE))
            if expression is None:
                raise UsageError(f"{_PLACE}: {text!r} is no expression", remedy=_REMEDY)
            self._leaf = NativeLeaf(environment, expression, _PLACE)
        except JobError as error:
            raise UsageError(error.message, remedy=error.remedy or _REMEDY) from None
        unknown = sorted(self._leaf.names - set(known) - {"row"})
        if unknown:
            raise UsageError(f"{_PLACE}: {no_column(unknown[0], known)}", remedy=_REMEDY)
        self.columns = list(known) if "row" in self._leaf.names else sorted(self._leaf.names)
        self._quick = mask_of(text)
        self._computed = 0
        self._error: RowTemplateError | None = None

    def mask(self, batch: pa.RecordBatch, among: pa.Array) -> pa.Array:
        """Return for each record whether the expression is true; if it cannot be computed, it is not.

        It is asked of those that `among` names alone.
        """
        chosen = batch.select(self.columns)
        whole = among.true_count == batch.num_rows
        if not whole:
            chosen = chosen.filter(among)
        found = None if self._quick is None else self._quick(chosen)
        if found is None:
            found = pa.array([self._holds(row) for row in python_rows(chosen)], pa.bool_())
        else:
            self._computed += chosen.num_rows
        return found if whole else pc.replace_with_mask(among, among, found)

    def _holds(self, row: dict[str, object]) -> bool:
        try:
            holds = bool(self._leaf.render(row))
        except RowTemplateError as error:
            # Such as `parsed.label` of a failed record, which has none.
            self._error = error
            return False
        self._computed += 1
        return holds

    def check(self) -> None:
        """Raise UsageError if no record let the expression be computed: then it is the expression that is wrong."""
        if self._error is not None and not self._computed:
            raise UsageError(f"no record can be compared: {self._error}", remedy=_REMEDY)


def no_column(name: str, known: Sequence[str]) -> str:
    """Say that there is no such column, with the nearest name and all of them."""
    return f"there is no column {name!r}{suggestion(name, known)}; the output has: {', '.join(known)}"


def count_values(output: Output, by: RecordFilter, path: str) -> list[tuple[str | None, int]]:
    """Return the values of a column with their numbers of records, the most frequent first; None is null.

    `path` is a column, or a field inside of one: `parsed.label`. Lists and objects are told as JSON. Raises UsageError
    if there is no such column or field.
    """
    schema = output.schema
    if schema is None:
        return []
    whole = path in schema.names
    column, *steps = [path] if whole else path.split(".")
    if column not in schema.names:
        raise UsageError(f"--count: {no_column(column, schema.names)}", remedy="Name one of these columns.")
    kind = schema.field(column).type
    for step in steps:
        fields = [field.name for field in kind] if pa.types.is_struct(kind) else []
        if step not in fields:
            told = f"there is no field {step!r} in {path!r}{suggestion(step, fields)}"
            remedy = f"Its fields are {', '.join(fields)}." if fields else "It has no fields: count the column itself."
            raise UsageError(f"--count: {told}", remedy=remedy)
        kind = kind.field(step).type
    counts: Counter[str | None] = Counter()
    for batch in chosen(output, by, [column]):
        for row in python_rows(batch):
            value = row[column]
            for step in steps:
                value = None if value is None else value[step]
            counts[_as_text(value)] += 1
    return counts.most_common()


def _as_text(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool | list | dict):
        return to_json(value).decode()
    return str(value)
