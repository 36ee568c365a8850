"""Taking reviews back: reading people's files, checking every answer, and keeping all of them or none.

Every line is checked before anything is written. A line that cannot be taken stops it with its file and line.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from batchchat.dataclass import dataclass
from batchchat.errors import UsageError
from batchchat.format import plural
from batchchat.job import job_of
from batchchat.labelling.content import content_of, input_columns
from batchchat.labelling.fields import ReviewFields
from batchchat.labelling.forms import ACCEPT, OWN
from batchchat.labelling.reviews import Review, read_reviews, reviewed_row, reviews_by_row, write_reviews
from batchchat.sources import python_rows
from batchchat.store import Output, read_state

_YES = frozenset({"yes", "y", "true", "1", "x", "ok"})
_NO = frozenset({"", "no", "n", "false", "0"})


@dataclass(frozen=True, slots=True)
class ReviewConflict:
    """A row about a field of which people do not agree: each value, with those who gave it."""

    row_index: int
    key: str | None
    field: str
    values: tuple[tuple[Any, tuple[str, ...]], ...]


@dataclass(frozen=True, slots=True)
class TakenReviews:
    """What came of taking files.

    `reviews` were read, `new` of them were not there before, `empty` lines had no answer. `rows` are reviewed in all,
    by `reviewers`; about `conflicts` they do not agree.
    """

    reviews: int
    new: int
    empty: int
    rows: int
    reviewers: tuple[str, ...]
    conflicts: tuple[ReviewConflict, ...]


@dataclass(slots=True)
class _Answer:
    """A person's answer as a file has it, with the place that messages name. `text` says that its values are texts."""

    place: str
    source: str
    told: Mapping[str, Any]
    values: dict[str, Any]
    accept: bool
    reviewer: str
    reviewed_at: str
    note: str | None
    text: bool = False


def take_reviews(directory: Path | str, files: Sequence[Path], *, reviewer: str | None = None) -> TakenReviews:
    """Read people's answers from files, and keep them beside the dataset: all of them, or none.

    `reviewer` is who answered, if the files do not say it. Raises UsageError, with the file and line, for what cannot
    be taken: a file that is no form, a row that is not in the output, a value outside the schema.
    """
    output = read_state(directory)
    if output.schema is None:
        raise UsageError(f"{directory} holds no records yet", remedy="Run its job first.")
    job = job_of(output.job)
    fields = ReviewFields(job)
    answers, empty = [], 0
    for file in files:
        for answer in _read(file, reviewer):
            if answer is None:
                empty += 1
            else:
                answers.append(answer)
    if not answers:
        raise UsageError(
            f"{', '.join(map(str, files))}: no line has an answer",
            remedy="A line counts if it accepts the model's answer or gives a value, and names its reviewer.",
        )
    rows = _ReviewedRows(output, [answer.told for answer in answers])
    reviews = [_checked(answer, job.name, fields, rows) for answer in answers]
    new = write_reviews(directory, reviews)
    kept = read_reviews(directory)
    return TakenReviews(
        reviews=len(reviews),
        new=new,
        empty=empty,
        rows=len({review.content for review in kept}),
        reviewers=tuple(sorted({review.reviewer for review in kept})),
        conflicts=tuple(conflicts_of(kept)),
    )


def conflicts_of(reviews: Sequence[Review]) -> Iterator[ReviewConflict]:
    """Yield the rows and fields about which people do not agree, in the order of the rows."""
    for of_row in sorted(reviews_by_row(reviews).values(), key=lambda of_row: of_row[0].row_index):
        for name in reviewed_row(of_row).conflicts:
            said: dict[bytes, tuple[Any, list[str]]] = {}
            for review in of_row:
                if name in review.values:
                    value = review.values[name]
                    said.setdefault(orjson.dumps(value), (value, []))[1].append(review.reviewer)
            values = tuple((value, tuple(people)) for value, people in said.values())
            yield ReviewConflict(of_row[0].row_index, of_row[0].key, name, values)


def _checked(answer: _Answer, job: str, fields: ReviewFields, rows: _ReviewedRows) -> Review:
    """Return an answer as a review. Raises UsageError if it cannot be one."""
    told = answer.told
    if told.get("job") not in (None, "", job):
        raise UsageError(
            f"{answer.place}: is about the job {told['job']!r}, and the output is of {job!r}",
            remedy="Take it into the output of that job.",
        )
    content = told.get("content")
    record = rows.find(content) if isinstance(content, str) else None
    if record is None:
        which = f"row {told.get('row_index')}" if told.get("row_index") is not None else "the row"
        why = "has other content now" if rows.has_place(told) else "is not in the output"
        raise UsageError(
            f"{answer.place}: {which} {why}: the review belongs to nothing",
            remedy="Give the output that the form was made of. A row that changed needs a new review: remove its line.",
        )
    if not answer.reviewer:
        raise UsageError(
            f"{answer.place}: nobody is named as its reviewer", remedy="Fill `reviewer`, or give --reviewer NAME."
        )
    values = {}
    for name, value in answer.values.items():
        found = fields.named(name)
        if found is None:
            names = ", ".join(each.name for each in fields.all)
            raise UsageError(f"{answer.place}: {name!r} is no field of the answers", remedy=f"They have {names}.")
        read = fields.read(found, value) if answer.text and isinstance(value, str) else value
        problem = fields.problem(found, read)
        if problem is not None:
            raise UsageError(f"{answer.place}: {name}: {problem}", remedy="Correct the value in the file.")
        values[name] = read
    if answer.accept:
        # Where a person gave no value, the model's is taken.
        for each in fields.all:
            values.setdefault(each.name, each.of(record))
    return Review(
        custom_id=record["custom_id"],
        row_index=record["row_index"],
        key=record["key"],
        content=str(content),
        values=values,
        reviewer=answer.reviewer,
        reviewed_at=answer.reviewed_at,
        probability=_probability(answer),
        note=answer.note or None,
        source=answer.source,
        round=_round(answer),
    )


def _probability(answer: _Answer) -> float | None:
    given = answer.told.get("probability")
    if given in (None, ""):
        return None
    try:
        number = float(given)
    except (TypeError, ValueError):
        number = 0.0
    if not 0 < number <= 1:
        raise UsageError(
            f"{answer.place}: the probability {given!r} is not above 0 and at most 1",
            remedy="Leave it as the form had it.",
        )
    return number


def _round(answer: _Answer) -> int:
    try:
        number = int(answer.told.get("round") or 1)
    except (TypeError, ValueError):
        number = 0
    if number < 1:
        raise UsageError(f"{answer.place}: the round is no number from 1 on", remedy="Leave it as the form had it.")
    return number


class _ReviewedRows:
    """The records that answers are about, by the content of their rows.

    They are looked for where the form says that they are. Only if one is not there, all rows are read.
    """

    def __init__(self, output: Output, told: Sequence[Mapping[str, Any]]) -> None:
        self._output = output
        self._records: dict[str, dict[str, Any]] = {}
        self._places: set[int] = set()
        wanted = {str(each.get("content")) for each in told}
        rows = {place for each in told if (place := _whole(each.get("row_index"))) is not None}
        answers = [name for name in ("completion", "parsed") if name in output.own_columns]
        self._columns = [*input_columns(output), "custom_id", "key", "row_index", "sample_index", *answers]
        self._look(wanted, pa.array(sorted(rows), pa.int64()))
        if wanted - self._records.keys():
            self._look(wanted, None)

    def find(self, content: str) -> dict[str, Any] | None:
        """Return the record of the row with this content, None if the output has none."""
        return self._records.get(content)

    def has_place(self, told: Mapping[str, Any]) -> bool:
        """Tell whether the output has a row at the place that a form names."""
        return _whole(told.get("row_index")) in self._places

    def _look(self, wanted: set[str], rows: pa.Array | None) -> None:
        def mask(batch: pa.RecordBatch) -> pa.Array:
            first = pc.and_(pc.equal(batch.column("sample_index"), 0), pc.equal(batch.column("status"), "ok"))
            return first if rows is None else pc.and_(first, pc.is_in(batch.column("row_index"), value_set=rows))

        for batch in self._output.matching(self._columns, ["sample_index", "status", "row_index"], mask):
            for record in python_rows(batch):
                self._places.add(record["row_index"])
                content = content_of(self._output, record)
                if content in wanted:
                    self._records[content] = record


def _whole(value: object) -> int | None:
    try:
        return int(str(value))
    except ValueError:
        return None


# --- the files


def _read(file: Path, reviewer: str | None) -> Iterator[_Answer | None]:
    """Yield the answers of a file, None for a line without one. Raises UsageError if the file cannot be read."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror or error}", remedy="Give a file of people's answers.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{file}: is not UTF-8 ({error.reason})", remedy="Save it as UTF-8.") from error
    if file.suffix == ".csv":
        yield from _of_table(file, text, reviewer)
    elif file.suffix == ".json":
        yield from _of_tasks(file, text, reviewer)
    elif file.suffix == ".jsonl":
        yield from _of_lines(file, text, reviewer)
    else:
        raise UsageError(
            f"{file}: no form of a review has this name",
            remedy="Take the .jsonl of the page, the .csv table, or the .json that Label Studio exports.",
        )


def _of_lines(file: Path, text: str, reviewer: str | None) -> Iterator[_Answer | None]:
    # Not `splitlines`: it also cuts at characters that JSON leaves as they are, such as U+2028.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        place = f"{file}:{number}"
        try:
            told = orjson.loads(line)
        except ValueError as error:
            raise UsageError(
                f"{place}: is no JSON: {error}", remedy="The file may be cut off: save it again from the page."
            ) from error
        values = told.get("values") if isinstance(told, dict) else None
        if not isinstance(values, dict):
            raise UsageError(
                f"{place}: is no review: it has no object `values`", remedy="Take files of `batchchat review`."
            )
        accept = _accepts(place, told.get(ACCEPT))
        # An untouched line of the form has neither.
        if not values and not accept:
            yield None
            continue
        yield _Answer(
            place=place,
            source=file.name,
            told=told,
            values=dict(values),
            accept=accept,
            reviewer=_name(told.get("reviewer"), reviewer),
            reviewed_at=_moment(place, told.get("reviewed_at"), file),
            note=str(told["note"]) if told.get("note") else None,
        )


def _of_table(file: Path, text: str, reviewer: str | None) -> Iterator[_Answer | None]:
    # Columns of the row may be long, and the module's own limit is 128 KB a cell.
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    # Spreadsheets of some countries write semicolons.
    head = text.partition("\n")[0]
    separator = ";" if head.count(";") > head.count(",") else ","
    table = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    given = [name for name in table.fieldnames or () if name.startswith("review.")]
    if not given or "content" not in (table.fieldnames or ()):
        raise UsageError(
            f"{file}:1: is no form of a review: it lacks the column `content`, or one that begins with `review.`",
            remedy="Keep the columns of the form, and its first line.",
        )
    try:
        for told in table:
            place = f"{file}:{table.line_num}"
            if told.get(None) or None in told.values():  # csv's own marks
                raise UsageError(
                    f"{place}: has not as many cells as the first line",
                    remedy="The file may be cut off: save it again.",
                )
            values = {name.removeprefix("review."): told[name] for name in given if told[name].strip()}
            accept = _accepts(place, told.get(ACCEPT))
            if not values and not accept:
                yield None
                continue
            identity = {**told, "row_index": _whole(told.get("row_index")), "key": told.get("key") or None}
            yield _Answer(
                place=place,
                source=file.name,
                told=identity,
                values=dict(values),
                accept=accept,
                reviewer=_name(told.get("reviewer"), reviewer),
                reviewed_at=_moment(place, told.get("reviewed_at"), file),
                note=told.get("note"),
                text=True,
            )
    except csv.Error as error:
        raise UsageError(
            f"{file}:{table.line_num}: is no table: {error}", remedy="The file may be cut off: save it again."
        ) from error


def _of_tasks(file: Path, text: str, reviewer: str | None) -> Iterator[_Answer | None]:
    try:
        tasks = orjson.loads(text)
    except ValueError as error:
        raise UsageError(f"{file}: is no JSON: {error}", remedy="Export from Label Studio again, as JSON.") from error
    if not isinstance(tasks, list):
        raise UsageError(f"{file}: is no list of tasks", remedy="Export from Label Studio as JSON.")
    for number, task in enumerate(tasks, 1):
        place = f"{file}: task {number}"
        data = task.get("data") if isinstance(task, dict) else None
        told = data.get(OWN) if isinstance(data, dict) else None
        if not isinstance(told, dict):
            raise UsageError(
                f"{place}: has no `data.{OWN}`: it is not one of the form's, or not exported as JSON",
                remedy="Export from Label Studio as JSON (not JSON-MIN), from the project of the form.",
            )
        done = [each for each in task.get("annotations") or () if not each.get("was_cancelled")]
        if not done:
            yield None
        for annotation in done:
            who = annotation.get("completed_by")
            name = who.get("email") or who.get("id") if isinstance(who, dict) else who
            yield _Answer(
                place=place,
                source=file.name,
                told=told,
                values=_regions(place, annotation.get("result") or ()),
                # A field without a region is one that the person left empty.
                accept=False,
                reviewer=_name(None if name is None else str(name), reviewer),
                reviewed_at=_moment(place, annotation.get("updated_at") or annotation.get("created_at"), file),
                note=None,
                text=True,
            )


def _regions(place: str, result: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the values of an annotation by field."""
    found = {}
    for region in result:
        value, name = region.get("value") or {}, str(region.get("from_name"))
        told = value.get("choices") or value.get("text")
        if "number" in value:
            found[name] = value["number"]
        elif isinstance(told, list) and len(told) == 1:
            found[name] = told[0]
        elif isinstance(told, str):
            found[name] = told
        else:
            raise UsageError(
                f"{place}: {name}: has not exactly one value", remedy="Set the field to take a single choice or text."
            )
    return found


def _accepts(place: str, value: object) -> bool:
    text = str(value if value is not None else "").strip().casefold()
    if text in _YES:
        return True
    if text in _NO:
        return False
    raise UsageError(f"{place}: {ACCEPT}: {text!r} is neither yes nor no", remedy="Write yes, or leave it empty.")


def _name(told: object, given: str | None) -> str:
    # One's own name counts more than that of whoever takes the file.
    name = str(told).strip() if told is not None else ""
    return name or (given or "").strip()


def _moment(place: str, told: object, file: Path) -> str:
    """Return when an answer was given, UTC; when its file was written, if it does not say it."""
    if told in (None, ""):
        return datetime.fromtimestamp(file.stat().st_mtime, UTC).isoformat(timespec="seconds")
    try:
        found = datetime.fromisoformat(str(told))
    except ValueError:
        raise UsageError(
            f"{place}: reviewed_at: {told!r} is no time", remedy="Write it as 2026-01-31T12:00:00Z."
        ) from None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC).isoformat()


def taken_text(taken: TakenReviews) -> str:
    """Say in one line what was taken."""
    old = taken.reviews - taken.new
    text = f"{plural(taken.new, 'new review')} taken"
    text += (
        f", {plural(old, 'review')} of them there already"
        if old and not taken.new
        else f", {old:,} there already"
        if old
        else ""
    )
    text += f", {plural(taken.empty, 'line')} without an answer" if taken.empty else ""
    return f"{text}; {plural(taken.rows, 'row')} reviewed in all, by {', '.join(taken.reviewers)}"
