"""The rows of an output that people review: which can be chosen, and what a form tells of those that are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from batchchat.choosing import no_column
from batchchat.dataclass import dataclass
from batchchat.errors import UsageError
from batchchat.format import plural
from batchchat.inspection import latest_prompt
from batchchat.job import Job, job_of
from batchchat.labelling.choice import Candidate, ChosenRow, Design, choose
from batchchat.labelling.content import content_of, input_columns
from batchchat.labelling.fields import ReviewField, ReviewFields
from batchchat.labelling.reviews import stored_reviews
from batchchat.runner.questions import compile_questions
from batchchat.sources import python_rows
from batchchat.store import Output, read_state

CONFIDENCE = "confidence"
TOOL_CALLS = "tool_calls"
"""The column of a form with the calls of tools. No column of an input is called so in an output."""
_NEEDED = ("custom_id", "key", "row_index", "sample_index", "status")


@dataclass(frozen=True, slots=True)
class FormRow:
    """A chosen row as a form tells it: who it is, what its columns hold, and what the model answered.

    `content`, `probability` and `round` are those of `Review`.
    """

    custom_id: str
    row_index: int
    key: str | None
    content: str
    columns: Mapping[str, Any]
    answer: Mapping[str, Any]
    confidence: float | None
    part: str
    probability: float
    stratum: str | None
    round: int
    source: str = ""


@dataclass(frozen=True, slots=True)
class ReviewForm:
    """What a form is made of: the job, the fields to review, the chosen rows, and what a person should know of them."""

    job: Job
    fields: tuple[ReviewField, ...]
    rows: tuple[FormRow, ...]
    population: int
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class _Found:
    """The rows that can be chosen, and how many cannot be and why."""

    candidates: list[Candidate] = field(default_factory=list)
    reviewed: int = 0
    earlier: int = 0
    without: int = 0


class _ColumnPath:
    """A column of the dataset, or a field inside of one: `parsed.label`."""

    def __init__(self, option: str, path: str, schema: pa.Schema) -> None:
        names = path.split(".")
        # The name of a column may hold dots itself: the longest one that is there counts.
        for length in range(len(names), 0, -1):
            self.column = ".".join(names[:length])
            self._steps = names[length:]
            if self.column in schema.names:
                break
        else:
            raise UsageError(f"{option}: {no_column(path, schema.names)}", remedy="Name a column of the output.")
        kind = schema.field(self.column).type
        for step in self._steps:
            fields = [inner.name for inner in kind] if pa.types.is_struct(kind) else []
            if step not in fields:
                known = f"It has {', '.join(fields)}." if fields else f"{self.column} has no fields: name it alone."
                raise UsageError(f"{option}: there is no field {step!r} in {path!r}", remedy=known)
            kind = kind.field(step).type

    def of(self, record: Mapping[str, Any]) -> Any:
        """Return a record's value, None if an object on the way is null."""
        value = record[self.column]
        for step in self._steps:
            value = None if value is None else value[step]
        return value


def review_form(
    directory: Path | str,
    design: Design,
    *,
    stratify: str | None = None,
    confidence: str | None = None,
    only: str | None = None,
    again: bool = False,
) -> ReviewForm:
    """Choose rows of an output for people to review.

    `stratify` and `confidence` name columns, the second one `confidence` if it is None. `only` names the one field to
    review, None takes all. Rows that have a review are left out unless `again`. Of a row with several samples the first
    one is shown. Raises UsageError if a column or field is not there, or no row is left to choose.
    """
    output = read_state(directory)
    schema = output.schema
    if schema is None:
        raise UsageError(f"{directory} holds no records yet", remedy="Run its job first.")
    job = job_of(output.job)
    fields = ReviewFields(job, only)
    strata = None if stratify is None else _ColumnPath("--stratify", stratify, schema)
    sure = _confidence_column(output, schema, confidence)
    known = stored_reviews(directory)
    found = _candidates(output, strata, sure, frozenset() if again else frozenset(row.content for row in known))
    if not found.candidates:
        raise UsageError(
            f"{directory} has no row to review: {plural(found.reviewed, 'row')} with a review already",
            remedy="Run the job first; --again chooses rows that have a review, too.",
        )
    chosen = choose(found.candidates, design)
    turn = 1 + max((review.round for review in known), default=0)
    rows = _form_rows(output, fields.chosen, chosen, turn=turn, sure=sure, shown=_shown_columns(job, output))
    return ReviewForm(job, fields.chosen, rows, len(found.candidates), tuple(_notes(found, chosen, design, sure)))


def _confidence_column(output: Output, schema: pa.Schema, path: str | None) -> _ColumnPath | None:
    """Return where the confidence is; None if nobody named a column and the output has none of its own."""
    if path is None and CONFIDENCE not in output.own_columns:
        return None
    return _ColumnPath("--confidence", path or CONFIDENCE, schema)


def _candidates(
    output: Output, strata: _ColumnPath | None, sure: _ColumnPath | None, reviewed: frozenset[str]
) -> _Found:
    """Read which rows can be chosen: those with a completion of the latest prompt, one sample each, not reviewed."""
    prompt = latest_prompt(output) if "prompt_id" in output.own_columns else None
    wanted = [*_NEEDED, *(path.column for path in (strata, sure) if path is not None)]
    wanted += ["prompt_id"] if prompt is not None else []
    # The content of every row is computed only if there are reviews that it could belong to.
    wanted += input_columns(output) if reviewed else []
    found, seen = _Found(), set[int]()
    for record in _first_samples(output, list(dict.fromkeys(wanted))):
        if prompt is not None and record["prompt_id"] not in (prompt, None):
            found.earlier += 1
            continue
        if reviewed and content_of(output, record) in reviewed:
            found.reviewed += 1
            continue
        if record["row_index"] in seen:
            continue  # an answer to an earlier version of the row
        seen.add(record["row_index"])
        value = None if sure is None else sure.of(record)
        number = float(value) if isinstance(value, int | float) and 0 <= value <= 1 else None
        found.without += number is None
        found.candidates.append(Candidate(record["row_index"], number, _name(strata, record)))
    found.candidates.sort()
    return found


def _name(strata: _ColumnPath | None, record: Mapping[str, Any]) -> str:
    value = None if strata is None else strata.of(record)
    return value if isinstance(value, str) else "" if strata is None else str(value)


def _first_samples(output: Output, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    for batch in output.records(columns):
        yield from python_rows(batch.filter(_is_first(batch)))


def _is_first(batch: pa.RecordBatch) -> pa.Array:
    return pc.and_(pc.equal(batch.column("sample_index"), 0), pc.equal(batch.column("status"), "ok"))


def _shown_columns(job: Job, output: Output) -> list[str]:
    """Return the columns that the messages use, which are what the model saw; all, if they use none by name.

    A column with an expected value is not among them: a person who saw it would not judge by the row alone.
    """
    template = compile_questions(job).template
    columns = input_columns(output)
    return [name for name in columns if template.uses([name])] or columns


def _form_rows(
    output: Output,
    fields: Sequence[ReviewField],
    chosen: Sequence[ChosenRow],
    *,
    turn: int,
    sure: _ColumnPath | None,
    shown: Sequence[str],
) -> tuple[FormRow, ...]:
    """Read the chosen rows whole, in the order of the choice. `shown` are the columns that people see."""
    by_row = {row.place: row for row in chosen}
    places = pa.array(sorted(by_row), pa.int64())
    prompt = latest_prompt(output) if "prompt_id" in output.own_columns else None
    names = ("completion", "parsed", "source", TOOL_CALLS)
    answers: list[str] = [name for name in names if name in output.own_columns]
    answers += ["prompt_id"] if prompt is not None else []
    columns = [*input_columns(output), *_NEEDED, *answers, *([] if sure is None else [sure.column])]

    def mask(batch: pa.RecordBatch) -> pa.Array:
        return pc.and_(_is_first(batch), pc.is_in(batch.column("row_index"), value_set=places))

    found: dict[int, FormRow] = {}
    needed = ["row_index", "sample_index", "status"]
    for batch in output.matching(list(dict.fromkeys(columns)), needed, mask):
        for record in python_rows(batch):
            if prompt is not None and record["prompt_id"] not in (prompt, None):
                continue
            row = by_row[record["row_index"]]
            value = None if sure is None else sure.of(record)
            found.setdefault(
                row.place,
                FormRow(
                    custom_id=record["custom_id"],
                    row_index=record["row_index"],
                    key=record["key"],
                    content=content_of(output, record),
                    columns={**{name: record[name] for name in shown}, TOOL_CALLS: _calls(record)},
                    answer={field.name: field.of(record) for field in fields},
                    confidence=value if isinstance(value, int | float) else None,
                    part=row.part,
                    probability=row.probability,
                    stratum=row.stratum or None,
                    round=turn,
                    source=record["source"] or "",
                ),
            )
    if not any(told.columns[TOOL_CALLS] for told in found.values()):
        # The forms have the same columns for all rows. If no answer calls a tool, they have none for calls.
        for place, told in found.items():
            kept = {name: value for name, value in told.columns.items() if name != TOOL_CALLS}
            found[place] = replace(told, columns=kept)
    return tuple(found[row.place] for row in chosen if row.place in found)


def _calls(record: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Return the calls of tools in an answer, each with its name and arguments; None if there is none.

    They are shown beside the row: without them a person sees nothing of an answer that only calls tools.
    """
    calls = record.get(TOOL_CALLS) or ()
    return [{"name": call["name"], "arguments": call["arguments"]} for call in calls] or None


def _notes(found: _Found, chosen: Sequence[ChosenRow], design: Design, sure: _ColumnPath | None) -> Iterator[str]:
    """Say what a person should know of the choice."""
    # A job that does not ask for confidence may have the column, with no value in it.
    if sure is None or found.without == len(found.candidates):
        yield (
            "no row has a confidence, so none counts as unsure: rows are chosen "
            + ("by strata and " if design.stratified else "")
            + "at random. `response.confidence` in the job gives one, --confidence COLUMN names where it is"
        )
    elif found.without:
        yield f"{plural(found.without, 'row')} without a confidence can be chosen at random only"
    if sure is not None and all(row.part == "least sure" for row in chosen) and len(chosen) < len(found.candidates):
        yield "no row was drawn at random: the reviews will say nothing of the other rows. --random 50 draws some"
    if found.reviewed:
        yield f"{plural(found.reviewed, 'row')} left out that people reviewed already; --again chooses them, too"
    if found.earlier:
        yield f"{plural(found.earlier, 'row')} left out whose answer is to an earlier prompt: run the job to its end"
