"""Checks of the first rows of an input: their keys, their texts, and whether the template renders them."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import TYPE_CHECKING

from batchchat.errors import JobError, UsageError
from batchchat.images import ImageReader
from batchchat.intake import read_key
from batchchat.job import Job, has_lines
from batchchat.job.sections import EXAMPLES
from batchchat.records import RowBatch
from batchchat.sources import Source
from batchchat.template import RowTemplateError, Template
from batchchat.template.lines import model_of

if TYPE_CHECKING:
    from batchchat.examples import Examples
    from batchchat.job.batch_file import BatchFileJob

_ROWS_TRIED = 100
"""Rows of which one must render: fewer could all lack a column that the rest have. Chosen, not measured."""
_KEYS_DIFFER = "A key must be there and different in every row: name another column, or leave input.key out."
_LINES_DIFFER = "Each line of a batch file needs a custom_id of its own."


def empty_at_start(empty: EmptyTexts, template: Template, first: list[tuple[RowBatch, int]]) -> list[str]:
    """Warn if the messages of the first rows would show nothing. Rows that `skip` leaves out are not asked about."""
    read = [
        values
        for batch, offset in first
        if (values := batch.values[offset]) is not None and not _left_out(template, values)
    ]
    return empty.warning(sum(map(empty.finds, read)), f"the first {len(read):,}")


def with_model(job: BatchFileJob, rows: list[tuple[RowBatch, int]]) -> BatchFileJob:
    """Return the job with the model of the first line that names one: a batch file is for one model.

    Raises JobError if no line names a model.
    """
    for batch, offset in rows:
        model = model_of(batch.values[offset] or {})
        if model is not None:
            return job.with_model_of_lines(model)
    raise job.error(
        f"is missing, and none of the first {len(rows):,} lines of the input names one in its body",
        "model",
        remedy="Give the job a model; it goes over those of the lines.",
    )


class EmptyTexts:
    """Finds rows that have nothing in any column which the messages and params name."""

    def __init__(self, template: Template, columns: tuple[str, ...]) -> None:
        self._names = [] if template.uses_row else [name for name in columns if name in template.names]

    def finds(self, values: Mapping[str, object] | None) -> bool:
        """Tell whether a row is empty in that sense. A row that cannot be read is not."""
        return values is not None and bool(self._names) and all(_is_empty(values.get(name)) for name in self._names)

    def warning(self, number: int, among: str) -> list[str]:
        """Return a warning of so many rows among others, such as `the first 1,000`; nothing of none."""
        if not number:
            return []
        named = ", ".join(self._names[:5]) + (" …" if len(self._names) > 5 else "")
        have = "has" if number == 1 else "have"
        return [f"{number:,} of {among} rows {have} nothing in {named}: each is sent and paid all the same"]


def _left_out(template: Template, values: Mapping[str, object]) -> bool:
    try:
        return template.skips(values)
    except RowTemplateError:
        return False  # `try_template` says what is wrong


def _is_empty(value: object) -> bool:
    return value is None or (isinstance(value, str) and not value.strip()) or (isinstance(value, list) and not value)


def rows_of(batches: list[RowBatch]) -> Iterator[tuple[RowBatch, int]]:
    """Yield each row as its batch and its place in it."""
    return chain.from_iterable(((batch, offset) for offset in range(len(batch.values))) for batch in batches)


def check_key_column(job: Job, source: Source) -> None:
    """Raise JobError if the input has no column with the name of the key."""
    key = job.input.key
    # A key may be a dotted path into a column: only its first word must be there.
    if key is not None and key not in source.columns and key.partition(".")[0] not in source.columns:
        folded = {name.casefold(): name for name in source.columns}
        near = [folded[name] for name in difflib.get_close_matches(key.casefold(), folded, n=1)]
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise job.error(
            f"the input has no column {key!r}{hint}",
            "input",
            "key",
            remedy=f"Its columns are {', '.join(source.columns)}.",
        )


def check_keys(job: Job, key: str, rows: list[tuple[RowBatch, int]], template: Template) -> None:
    """Check that the first rows have keys, each its own.

    Arguments:
        job: for the place of an error.
        key: the column that holds it, or a dotted path.
        rows: batches with places in them; rows that cannot be read are passed over.
        template: tells which rows `skip` leaves out: these need no key.

    Raises JobError if a row has no key, or the key of another row.
    """
    seen: dict[str, int] = {}
    for batch, offset in rows:
        values = batch.values[offset]
        if values is None or _left_out(template, values):
            continue
        row = batch.first_index + offset
        text, problem = read_key(values, key)
        if text is not None and text in seen:
            problem = f"the key {key} is {text!r} in row {seen[text]} and again in row {row}"
        if problem is not None:
            where = "" if "again" in problem else f" in row {row}"
            raise job.error(
                f"{problem}{where} of {batch.source} (rows count from 0)",
                "input",
                "key",
                remedy=_LINES_DIFFER if has_lines(job) else _KEYS_DIFFER,
            )
        if text is not None:
            seen[text] = row


def try_template(
    job: Job,
    template: Template,
    rows: list[tuple[RowBatch, int]],
    columns: tuple[str, ...],
    *,
    images: ImageReader | None,
    examples: Examples | None,
) -> None:
    """Render the first rows until one succeeds: if none does, it is the template, not the rows.

    Arguments:
        job: for the place of an error.
        rows: batches with places in them.
        columns: those of the input, for the remedy.
        images: loads what a row refers to, None if the job shows no image.
        examples: chooses the examples of a row, None if the job shows none.

    Raises JobError if none renders, UsageError if none can be read.
    """
    first: JobError | UsageError | None = None
    tried = 0
    for batch, offset in rows:
        if tried == _ROWS_TRIED:
            break
        values = batch.values[offset]
        if values is None:
            tried += 1
            # What a template says goes over this: an unreadable row tells nothing of the job.
            if first is None:
                first = UsageError(
                    f"none of the first rows can be read: {batch.failures[offset].message}",
                    remedy="Check input.path and input.format.",
                )
            continue
        place = "skip"
        try:
            if template.skips(values):
                continue  # it is no error if the first rows are all left out
            place = "messages"
            tried += 1
            if examples is not None:
                values = {**values, EXAMPLES: examples.choose(values)}
            template.render(values, images=images.load(values, batch.source) if images is not None else None)
        except RowTemplateError as error:
            if not isinstance(first, JobError):
                first = job.error(
                    f"none of the first rows renders; row {batch.first_index + offset}: {error}",
                    place,
                    remedy=f"The input's columns are {', '.join(columns)}.",
                )
        # One row that renders is enough: what fails later is that row.
        else:
            return
    if first is not None:
        raise first
