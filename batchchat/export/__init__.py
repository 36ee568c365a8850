"""One file in input order: the records of an output joined to the current input by `custom_id`. Blocking code.

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
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import IO, Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batchchat.choosing import no_column
from batchchat.errors import StorageError, UsageError
from batchchat.export.batch import errors_file, write_batch_lines
from batchchat.inspection import job_of
from batchchat.job import Job
from batchchat.joining import records_of_rows
from batchchat.runner.preparation import prepare
from batchchat.sources import STDIN, python_rows, reads_file
from batchchat.store import read_state

BATCH = "openai-batch"
FORMATS = ("parquet", "jsonl", "csv", BATCH)
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
    directory: Path,
    target: Path,
    *,
    format: str | None = None,
    input_path: str | None = None,
    force: bool = False,
    safe_csv: bool = False,
    columns: Sequence[str] | None = None,
    bom: bool = False,
) -> Exported:
    """Write the records of the current input's rows in the order of the input, whole or not at all.

    `format` is one of FORMATS; None takes the one that the file's extension names. `openai-batch` writes the lines of a
    batch's output, and those of its errors to `….errors.jsonl` beside it. With `safe_csv` an apostrophe stands before
    each text of a CSV file that a spreadsheet would run as a formula; without it, texts are written as they are.
    `columns` are those to write, in this order; None takes all. With `bom` a CSV file begins with a byte order mark,
    by which Excel knows that it is UTF-8.

    Raises UsageError for a target that cannot be written, StorageError where the disk fails.
    """
    kind = _format_of(target) if format is None else format
    _check_options(kind, safe_csv=safe_csv, bom=bom, columns=columns)
    targets = (target, errors_file(target)) if kind == BATCH else (target,)
    output = read_state(directory)
    if output.schema is None:
        raise UsageError(f"{directory} holds no records yet", remedy="Run its job first.")
    names = output.schema.names if columns is None else _known_columns(columns, output.schema.names)
    schema = pa.schema([output.schema.field(name) for name in names])
    job = job_of(output.job)
    if kind == BATCH and job.samples > 1:
        raise UsageError(
            f"each row has {job.samples} answers, and a batch's output has one for a custom_id",
            remedy="Export to .jsonl, .csv or .parquet.",
        )
    if input_path is not None:
        path_of_input = input_path if input_path == "-" else str(Path(input_path).absolute())
        job = job.model_copy(update={"input": job.input.model_copy(update={"path": path_of_input})})
    _check_targets(targets, job, force=force)
    # What was sent is sent: a prompt that uses no column may be exported.
    prepared = prepare(job.model_copy(update={"constant": True}), frozen=output.frozen)
    intake = prepared.intake()
    drafts = [path.with_name(f".{path.name}.{os.getpid()}.draft") for path in targets]
    rows = failed = 0
    try:
        with _opened(drafts, schema, kind, safe_csv=safe_csv, bom=bom) as sink:
            for batch in records_of_rows(prepared.batches(), intake, output):
                sink(batch.select(names))
                rows += batch.num_rows
                failed += pc.sum(pc.not_equal(batch.column("status"), "ok")).as_py()
        written = targets if failed else targets[:1]
        # The output last: where it is, all is.
        for path, draft in reversed(list(zip(targets, drafts, strict=True))):
            if path in written:
                draft.replace(path)
            else:
                path.unlink(missing_ok=True)  # of an earlier export, which had errors
    except OSError as error:
        raise StorageError(
            f"{target}: {error.strerror or error}", remedy="Choose another place for the file."
        ) from error
    finally:
        for draft in drafts:
            draft.unlink(missing_ok=True)
    return Exported(rows, intake.counts.samples - rows, written, failed, job.samples)


def _check_options(kind: str, *, safe_csv: bool, bom: bool, columns: Sequence[str] | None) -> None:
    for name, given in (("--safe-csv", safe_csv), ("--bom", bom)):
        if given and kind != "csv":
            raise UsageError(f"{name} is for CSV files alone", remedy="Leave it out, or export to a .csv file.")
    if columns is not None and kind == BATCH:
        raise UsageError("the lines of a batch's output have fixed fields", remedy="Leave --columns out.")


def _check_targets(targets: Sequence[Path], job: Job, *, force: bool) -> None:
    for path in targets:
        if job.input.path != STDIN and reads_file(job.input.path, job.input.format, path):
            raise UsageError(
                f"{path} is, or would be, a file of the input {job.input.path}: the next run would read it as rows",
                remedy="Choose a place outside the input.",
            )
        if path.exists() and not force:
            raise UsageError(f"{path} exists already", remedy="Choose another name, or give --force to write over it.")


def _known_columns(columns: Sequence[str], known: Sequence[str]) -> list[str]:
    for name in columns:
        if name not in known:
            raise UsageError(f"--columns: {no_column(name, known)}", remedy="Name columns of the output.")
    if not columns or len(set(columns)) < len(columns):
        raise UsageError("--columns: names no column, or one twice", remedy="Name each column once.")
    return list(columns)


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
    if kind == "parquet":
        with pq.ParquetWriter(path, schema, compression="zstd") as writer:
            yield writer.write_batch
    elif kind == "jsonl":
        with path.open("wb") as file:
            yield partial(_write_lines, file)
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
    """Values that JSON lacks: bytes as base64, everything else (decimals, durations) as its text."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value)
