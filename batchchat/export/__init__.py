"""One file in input order: the records of an output joined to the current input by `custom_id`. Blocking code.

An input that came through a pipe cannot be read again: its records are written in the order of the rows they came of.

Positions and carried columns come from the input as it is now; the outcome comes from the record. A row that has no
record is left out and counted. Memory holds the identities (36 bytes a record) and a few parts, not the dataset.
"""

from __future__ import annotations

import base64
import csv
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import IO, Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batchchat.dataclass import dataclass
from batchchat.errors import StorageError, UsageError
from batchchat.export.batch import errors_file, write_batch_lines
from batchchat.export.selection import pick, schema_of, select_columns
from batchchat.export.sheet import open_sheet
from batchchat.intake import PassCounts
from batchchat.job import Job, job_of
from batchchat.joining import records_of_rows
from batchchat.labelling.final import ReviewedColumns
from batchchat.labelling.votes import vote_batches, vote_schema
from batchchat.runner.preparation import prepare
from batchchat.runner.questions import compile_questions
from batchchat.sources import STDIN, python_rows, reads_file
from batchchat.store import Output, read_output, read_state

BATCH = "openai-batch"
FORMATS = ("parquet", "jsonl", "csv", "xlsx", BATCH)
# Some spreadsheets pass over white space, and take the wide forms of the signs too.
_FORMULA = re.compile(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r\n]")
_NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written: `rows` lines or rows, to `files`. `missing` are samples of the input's rows without a record.

    A batch's errors are in a file of their own, where there are any: `failed` of the rows.
    """

    rows: int
    missing: int
    files: tuple[Path, ...]
    failed: int = 0
    samples: int = 1


def export(
    directory: Path | str,
    target: Path,
    *,
    format: str | None = None,
    input_path: str | None = None,
    force: bool = False,
    safe_csv: bool = False,
    columns: Sequence[str] | None = None,
    flatten: bool = False,
    bom: bool = False,
    vote: bool = False,
    final: bool = False,
) -> Exported:
    """Write the records of the current input's rows in the order of the input, whole or not at all.

    `format` is one of FORMATS; None takes the one that the file's extension names. `openai-batch` writes the lines of a
    batch's output, and those of its errors to `….errors.jsonl` beside it. With `safe_csv` an apostrophe stands before
    each text of a CSV file that a spreadsheet would run as a formula; without it, texts are written as they are.
    `columns` are those to write, in this order, `column.field` for one inside of an object; None takes all. With
    `flatten` the fields of objects are columns of their own. With `bom` a CSV file begins with a byte order mark,
    by which Excel knows that it is UTF-8. With `vote` there is one row for each row of the input: its columns and the
    vote of its samples (see `labelling.votes`). If people reviewed rows, the columns `reviewed`, `reviewer` and
    `reviewed_at` are added; with `final` their values take the place of the model's in the answer.

    Raises UsageError for a target that cannot be written, StorageError if the disk fails.
    """
    kind = _format_of(target) if format is None else format
    _check_options(kind, safe_csv=safe_csv, bom=bom, chosen=columns is not None or flatten or final)
    targets = (target, errors_file(target)) if kind == BATCH else (target,)
    output, schema = _output_with_records(directory)
    job = job_of(output.job)
    ballot = _ballot(kind, job, output) if vote else None
    people = None if kind == BATCH else _reviewed_columns(output, schema, final=final, vote=vote)
    whole = people if people is not None else ballot
    chosen = select_columns(schema if whole is None else whole.schema, columns, flatten=flatten)
    # What came through a pipe, or from a program, does not come again: its records hold the rows.
    alone = job.input.path == STDIN and input_path is None
    if kind == BATCH:
        _check_batch(job, alone=alone)
    if input_path is not None:
        job = _with_input(job, input_path)
    _check_targets(targets, job, force=force)
    # Nothing can be read again, so the order is that of the rows when they came.
    if alone:
        batches, counts = _as_they_are(directory), PassCounts()
    else:
        batches, counts = _in_input_order(job, output)
    batches = _with_votes(batches, ballot, output) if people is None else people.add(batches)
    with _drafts(targets) as drafts:
        # A vote is of several records: whether one of them failed is not its matter.
        tell_failed = _failed if ballot is None else (lambda _: 0)
        with _opened(drafts, schema_of(chosen), kind, safe_csv=safe_csv, bom=bom) as sink:
            rows, failed = _write(batches, lambda batch: sink(pick(batch, chosen)), tell_failed)
        written = targets if failed else targets[:1]
        _publish(targets, drafts, written)
    samples = 1 if ballot is not None else job.samples
    missing = 0 if alone else (counts.samples - counts.skipped) * samples // job.samples - rows
    return Exported(rows, missing, written, failed, samples)


def _output_with_records(directory: Path | str) -> tuple[Output, pa.Schema]:
    output = read_state(directory)
    if output.schema is None:
        raise UsageError(f"{directory} holds no records yet", remedy="Run its job first.")
    return output, output.schema


@contextmanager
def _drafts(targets: Sequence[Path]) -> Iterator[list[Path]]:
    """Give names to write under until all is written: a reader never sees half a file. Remove what is left of them.

    Raises StorageError in the place of OSError.
    """
    drafts = [path.with_name(f".{path.name}.{os.getpid()}.draft") for path in targets]
    try:
        yield drafts
    except OSError as error:
        raise StorageError(
            f"{targets[0]}: {error.strerror or error}", remedy="Choose another place for the file."
        ) from error
    finally:
        for draft in drafts:
            draft.unlink(missing_ok=True)


def _write(
    batches: Iterator[pa.RecordBatch],
    sink: Callable[[pa.RecordBatch], None],
    failed_of: Callable[[pa.RecordBatch], int],
) -> tuple[int, int]:
    """Write all batches. Return how many rows there were, and how many of them failed."""
    rows = failed = 0
    for batch in batches:
        sink(batch)
        rows += batch.num_rows
        failed += failed_of(batch)
    return rows, failed


def _with_input(job: Job, input_path: str) -> Job:
    """Return the job with another input, as a person names it from the folder where they are."""
    path = input_path if input_path == "-" else str(Path(input_path).absolute())
    return job.model_copy(update={"input": job.input.model_copy(update={"path": path})})


def _publish(targets: Sequence[Path], drafts: Sequence[Path], written: Sequence[Path]) -> None:
    """Give the drafts of what was written their names. The output comes last: where it is, all is."""
    for path, draft in reversed(list(zip(targets, drafts, strict=True))):
        if path in written:
            draft.replace(path)
        else:
            path.unlink(missing_ok=True)  # of an earlier export, which had errors


def _failed(batch: pa.RecordBatch) -> int:
    return int(pc.not_equal(batch.column("status"), "ok").true_count)


def _with_votes(batches: Iterator[pa.RecordBatch], ballot: _Ballot | None, output: Output) -> Iterator[pa.RecordBatch]:
    if ballot is None:
        return batches
    return vote_batches(batches, ballot.schema, output.own_columns, ballot.fields)


@dataclass(frozen=True, slots=True)
class _Ballot:
    """The schema of a file of votes, and the fields that are voted on."""

    schema: pa.Schema
    fields: tuple[tuple[str, ...], ...]


def _ballot(kind: str, job: Job, output: Output) -> _Ballot:
    if kind == BATCH:
        raise UsageError("a batch's output has no votes", remedy="Export to .jsonl, .csv, .parquet or .xlsx.")
    fields: tuple[tuple[str, ...], ...] = ()
    if job.response.spec is not None:
        from batchchat.structured import choice_fields

        schema = compile_questions(job).schema
        fields = () if schema is None else tuple(one.path for one in choice_fields(schema.schema) if one.path)
    return _Ballot(vote_schema(output.schema, output.own_columns), fields)


def _reviewed_columns(output: Output, schema: pa.Schema, *, final: bool, vote: bool) -> ReviewedColumns | None:
    """Return what adds people's reviews to records; None for votes, which are about samples."""
    if vote:
        if final:
            raise UsageError("--final and --vote both decide what a row's answer is", remedy="Give one of them.")
        return None
    people = ReviewedColumns(output, schema, final=final)
    if final and not people:
        raise UsageError(
            f"--final: {output.directory} has no reviews",
            remedy="Take people's answers first: batchchat review DIR --take FILE.",
        )
    return people


def _check_batch(job: Job, *, alone: bool) -> None:
    if job.samples > 1:
        raise UsageError(
            f"each row has {job.samples} answers, and a batch's output has one for a custom_id",
            remedy="Export to .jsonl, .csv or .parquet.",
        )
    # The provider matches lines by the rows that it was sent, and these are gone.
    if alone:
        raise UsageError(
            "the rows of this output came through a pipe, and the lines of a batch need them",
            remedy="Give them again: --input FILE, or --input - for standard input.",
        )


def _as_they_are(directory: Path | str) -> Iterator[pa.RecordBatch]:
    """Yield the records in the order of the rows that they were made of."""
    yield from read_output(directory).to_batches()


def _in_input_order(job: Job, output: Output) -> tuple[Iterator[pa.RecordBatch], PassCounts]:
    """Return the records of the input's rows, batch by batch, and the counts of these rows, which grow with them."""
    # What was sent is sent: a prompt that uses no column may be exported.
    prepared = prepare(job.model_copy(update={"constant": True}), frozen=output.frozen)
    intake = prepared.intake()
    return records_of_rows(prepared.batches(), intake, output), intake.counts


def _check_options(kind: str, *, safe_csv: bool, bom: bool, chosen: bool) -> None:
    for name, given in (("--safe-csv", safe_csv), ("--bom", bom)):
        if given and kind != "csv":
            raise UsageError(f"{name} is for CSV files alone", remedy="Leave it out, or export to a .csv file.")
    if chosen and kind == BATCH:
        remedy = "Leave --columns, --flatten and --final out."
        raise UsageError("the lines of a batch's output have fixed fields", remedy=remedy)


def _check_targets(targets: Sequence[Path], job: Job, *, force: bool) -> None:
    for path in targets:
        if job.input.path != STDIN and reads_file(job.input.path, job.input.format, path):
            raise UsageError(
                f"{path} is, or would be, a file of the input {job.input.path}: the next run would read it as rows",
                remedy="Choose a place outside the input.",
            )
        if path.exists() and not force:
            raise UsageError(f"{path} exists already", remedy="Choose another name, or give --force to write over it.")


def _format_of(target: Path) -> str:
    kind = target.suffix.removeprefix(".")
    if kind not in FORMATS:
        known = ", ".join(f".{name}" for name in FORMATS if name != BATCH)
        raise UsageError(f"{target}: unknown extension", remedy=f"Known are {known}; or name the --format.")
    return kind


@contextmanager
def _opened(
    paths: Sequence[Path], schema: pa.Schema, kind: str, *, safe_csv: bool, bom: bool
) -> Iterator[Callable[[pa.RecordBatch], None]]:
    path = paths[0]
    # One row group for each batch, so that memory stays bounded.
    if kind == "parquet":
        with pq.ParquetWriter(path, schema, compression="zstd") as writer:
            yield writer.write_batch
    elif kind == "jsonl":
        with path.open("wb") as file:
            yield partial(_write_lines, file)
    elif kind == "xlsx":
        with open_sheet(path, schema, _cell) as write_rows:
            yield write_rows
    elif kind == BATCH:
        with path.open("wb") as file, paths[1].open("wb") as errors:
            yield partial(write_batch_lines, file, errors)
    else:
        with path.open("w", encoding="utf-8-sig" if bom else "utf-8", newline="") as text:
            table = csv.writer(text)
            write = _harmless if safe_csv else _cell
            table.writerow(map(write, schema.names))
            yield partial(_write_cells, table, write)


def _write_lines(file: IO[bytes], batch: pa.RecordBatch) -> None:
    for row in python_rows(batch):
        file.write(orjson.dumps(row, default=_plain, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_UTC_Z))


def _write_cells(table: Any, write: Callable[[Any], Any], batch: pa.RecordBatch) -> None:
    for row in python_rows(batch):
        table.writerow([write(value) for value in row.values()])


def _harmless(value: Any) -> Any:
    """Return a cell that no spreadsheet runs as a formula; a number, also one in a text, stays a number."""
    cell = _cell(value)
    if isinstance(cell, str) and _FORMULA.match(cell) and not _NUMBER.fullmatch(cell):
        return f"'{cell}"
    return cell


def _cell(value: Any) -> Any:
    if isinstance(value, list | dict):
        return orjson.dumps(value, default=_plain).decode()
    return _plain(value) if isinstance(value, bytes | datetime) else value


def _plain(value: Any) -> Any:
    """Write a value that JSON lacks: bytes as base64, everything else (decimals, durations) as its text."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value)
