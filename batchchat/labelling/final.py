"""What people say beside what the model says: columns `reviewed`, `reviewer`, `reviewed_at`, and the final value.

The dataset itself is never rewritten: these columns are made when records are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

import orjson
import pyarrow as pa

from batchchat.labelling.content import content_of
from batchchat.labelling.reviews import ReviewedRow, read_reviews, reviewed_row, reviews_by_row
from batchchat.sources import python_rows
from batchchat.store import Output

REVIEWED, REVIEWER, REVIEWED_AT = "reviewed", "reviewer", "reviewed_at"
_TIME = pa.timestamp("us", tz="UTC")


class ReviewedColumns:
    """Adds to the records of an output what people say of their rows.

    `reviewed` has the type of the answer: that of `parsed`, or a text if the job has no schema; a field that nobody
    reviewed is null in it. `reviewer` names all people, joined by commas. With `final` the answer itself is people's
    value, field by field, if there is one.
    """

    def __init__(self, output: Output, schema: pa.Schema, *, final: bool = False) -> None:
        self._output = output
        self._final = final
        self._answer = "parsed" if "parsed" in output.own_columns else "completion"
        self._rows = {
            content: reviewed_row(found) for content, found in reviews_by_row(read_reviews(output.directory)).items()
        }
        kind = schema.field(self._answer).type
        wanted = [pa.field(REVIEWED, kind), pa.field(REVIEWER, pa.string()), pa.field(REVIEWED_AT, _TIME)]
        # A column of the input keeps its name: then what people say stands under none.
        self._added = [each for each in wanted if each.name not in schema.names] if self._rows else []
        self.schema = pa.schema([*schema, *self._added])

    def __bool__(self) -> bool:
        """Tell whether there is any review."""
        return bool(self._rows)

    def add(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the batches with the columns."""
        if not self._rows:
            yield from batches
            return
        for batch in batches:
            said = [self._rows.get(content_of(self._output, record)) for record in python_rows(batch)]
            columns = dict(zip(batch.schema.names, batch.columns, strict=True))
            kind = batch.schema.field(self._answer).type
            told = {
                REVIEWED: pa.array([None if row is None else self._told(row, kind) for row in said], kind),
                REVIEWER: pa.array([None if row is None else ", ".join(row.reviewers) for row in said], pa.string()),
                REVIEWED_AT: pa.array(
                    [None if row is None else datetime.fromisoformat(row.reviewed_at) for row in said], _TIME
                ),
            }
            columns |= {each.name: told[each.name] for each in self._added}
            if self._final:
                own = batch.column(self._answer).to_pylist()
                values = [
                    value if row is None else self._merged(value, row, kind)
                    for value, row in zip(own, said, strict=True)
                ]
                columns[self._answer] = pa.array(values, kind)
            yield pa.RecordBatch.from_arrays([columns[name] for name in self.schema.names], schema=self.schema)

    def _told(self, row: ReviewedRow, kind: pa.DataType) -> Any:
        """Return people's values in the form of the answer."""
        if self._of_fields(kind):
            return {name: _fitting(value, kind.field(name).type) for name, value in self._known(row, kind).items()}
        return _fitting(next(iter(row.values.values()), None), kind)

    def _merged(self, own: Any, row: ReviewedRow, kind: pa.DataType) -> Any:
        """Return the answer with people's values in place of the model's."""
        told = self._told(row, kind)
        if not self._of_fields(kind):
            return told if row.values else own
        return {**(own or {}), **told}

    def _of_fields(self, kind: pa.DataType) -> bool:
        return self._answer == "parsed" and pa.types.is_struct(kind)

    @staticmethod
    def _known(row: ReviewedRow, kind: pa.DataType) -> Mapping[str, Any]:
        """Return the values of fields that the answers still have: the schema may have changed since."""
        return {name: value for name, value in row.values.items() if kind.get_field_index(name) >= 0}


def _fitting(value: Any, kind: pa.DataType) -> Any:
    """Return a value for a column: what has no type of its own is kept as JSON there."""
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return orjson.dumps(value).decode() if text and value is not None and not isinstance(value, str) else value
