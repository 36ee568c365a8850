"""The labels of an output: of each row its values, its vote of several samples, and how sure it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Any

import pyarrow as pa

from batchchat.dataclass import dataclass
from batchchat.errors import BatchchatError, UsageError
from batchchat.job import Job, job_of
from batchchat.job.values import nearest
from batchchat.labelling.coefficients import (
    Level,
    Scale,
)
from batchchat.labelling.votes import FieldPath, value_at, vote_of
from batchchat.records import PARSED
from batchchat.runner.questions import compile_questions
from batchchat.sources import python_rows
from batchchat.store import Output, read_state
from batchchat.structured import choice_fields


@dataclass(slots=True)
class LabelledRow:
    """One row of an output: the value of each field as a text, its confidence, and what names the row."""

    key: str | None
    row_index: int
    custom_ids: list[str] = field(default_factory=list)
    answers: list[Any] = field(default_factory=list)
    column: str | None = None
    group: str | None = None
    values: dict[str, str] = field(default_factory=dict)
    confidence: dict[str, float] = field(default_factory=dict)

    @property
    def identity(self) -> str | int:
        """What is the same in another output of the same rows."""
        return self.row_index if self.key is None else self.key


class LabelledOutput:
    """The labels of an output, row by row. Raises UsageError if it has none, or no such field or column."""

    def __init__(
        self, directory: Path | str, *, field: str | None = None, column: str | None = None, by: str | None = None
    ) -> None:
        self.directory = directory
        self.output = read_state(directory)
        if self.output.schema is None:
            raise UsageError(f"{directory} holds no records yet", remedy="Run its job first.")
        self.job = job_of(self.output.job)
        self.paths = _fields_of(self.output, self.job, field)
        self.orders = _orders(self.job)
        self.by = by
        self.rows = list(self._read(column).values())
        for row in self.rows:
            self._vote(row)

    def _read(self, column: str | None) -> dict[str | int, LabelledRow]:
        own = self.output.own_columns
        first, steps = self._input_column(column)
        by, by_steps = self._input_column(self.by)
        wanted = ["custom_id", "key", "row_index", "sample_index", "status", "completion"]
        wanted += [name for name in (PARSED, "confidence", "confidence_detail") if name in own]
        found: dict[str | int, LabelledRow] = {}
        read = dict.fromkeys([*wanted, *(name for name in (first, by) if name)])
        for batch in self.output.records([*read]):
            for record in python_rows(batch):
                row = LabelledRow(record["key"], record["row_index"])
                # The samples of a row are records of their own, and one row here.
                row = found.setdefault(row.identity, row)
                row.custom_ids.append(record["custom_id"])
                if first:
                    row.column = label_text(value_at(record[first], steps))
                if by:
                    row.group = label_text(value_at(record[by], by_steps)) or None
                # A failed row stays: what people or a column say of it counts as left out.
                if record["status"] == "ok":
                    row.answers.append(self._answer(record))
                    self._note_confidence(row, record)
        return found

    def _input_column(self, name: str | None) -> tuple[str, FieldPath]:
        """Return the column of a dotted name, and the path inside of it. Raises UsageError if it is not there."""
        first, _, rest = (name or "").partition(".")
        known = self.output.schema.names if self.output.schema is not None else []
        carried = [one for one in known if one not in self.output.own_columns]
        if name is not None and first not in carried:
            raise UsageError(
                f"{self.directory} has no input column {name!r}{nearest(name, carried)}",
                remedy=f"It has {', '.join(carried)}.",
            )
        return first, tuple(rest.split(".")) if rest else ()

    def _answer(self, record: Mapping[str, Any]) -> Any:
        # The whole completion is a text also if it was parsed.
        if PARSED in self.output.own_columns and self.paths != [()]:
            return record[PARSED]
        return (record["completion"] or "").strip()

    def _note_confidence(self, row: LabelledRow, record: Mapping[str, Any]) -> None:
        detail = record.get("confidence_detail") or {}
        if detail.get("method") == "logprobs":
            row.confidence = {one["field"]: one["confidence"] for one in detail.get("fields") or ()}
        elif record.get("confidence") is not None:
            # What the model says of itself is about the answer as a whole.
            row.confidence = dict.fromkeys(
                (".".join(path) or "completion" for path in self.paths), record["confidence"]
            )

    def _vote(self, row: LabelledRow) -> None:
        vote = vote_of(row.answers, self.paths)
        for path in self.paths:
            text = label_text(value_at(vote.answer, path))
            name = ".".join(path) or "completion"
            if vote.samples and (text is not None or path):
                # A null that the schema allows is a label like any other.
                row.values[name] = "null" if text is None else text
        # The share of equal samples is the confidence then, whatever each of them says of itself.
        if vote.samples > 1:
            row.confidence = {"completion" if name == "answer" else name: share for name, share in vote.shares}

    def scale(self, name: str, level: Level) -> Scale:
        """Return how far apart the labels of a field are."""
        return Scale(level, self.orders.get(name, ()) if level == "ordinal" else ())


def label_text(value: Any) -> str | None:
    """Return a value as the text of a label; None for nothing."""
    if value is None or isinstance(value, str):
        return value if value is None else value.strip()
    return json.dumps(value, ensure_ascii=False, default=str)


def _fields_of(output: Output, job: Job, wanted: str | None) -> list[FieldPath]:
    """Return the paths of the labels inside `parsed`, or of the field that is wanted; () is the whole completion."""
    if wanted == "completion" or PARSED not in output.own_columns:
        if wanted not in {None, "completion"}:
            raise UsageError(f"the answers of {job.name} have no schema, and so no field {wanted!r}")
        return [()]
    # The job that is kept with an output may name a schema file that is gone by now; a field that is named needs none.
    try:
        schema = compile_questions(job).schema
    except BatchchatError as error:
        if wanted is None:
            raise UsageError(
                f"the schema of {job.name} cannot be read again: {error.message}",
                remedy="Name the label: --field NAME.",
            ) from error
        return [tuple(wanted.removeprefix("parsed.").split("."))]
    labels = [] if schema is None else [one.path for one in choice_fields(schema.schema)]
    if wanted is not None:
        path = tuple(wanted.removeprefix("parsed.").split("."))
        if not _is_field(output, path):
            names = [".".join(label) for label in labels]
            raise UsageError(
                f"the answers have no field {wanted!r}{nearest(wanted, names)}",
                remedy=f"The labels are {', '.join(names) or 'none'}.",
            )
        return [path]
    return labels or [()]


def _is_field(output: Output, path: FieldPath) -> bool:
    if output.frozen.parsed is None:
        return False
    kind = output.frozen.parsed.type
    for step in path:
        at = kind.get_field_index(step) if pa.types.is_struct(kind) else -1
        if at < 0:
            return False
        kind = kind.field(at).type
    return True


def _orders(job: Job) -> dict[str, tuple[str, ...]]:
    """Return the values of each label in the order in which the schema has them."""
    try:
        schema = compile_questions(job).schema
    except BatchchatError:
        return {}
    if schema is None:
        return {}
    return {
        one.name: tuple(label_text(json.loads(text)) or "null" for text in one.alternatives)
        for one in choice_fields(schema.schema)
    }
