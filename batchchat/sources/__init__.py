"""Reading input: JSON Lines, CSV and Parquet of this machine, object storage, a hub or standard input.

Rows come in batches, in constant memory, each with what the template sees (`values`) and what is carried to the output
(`columns`, of one frozen schema). A row that cannot be read is a failure in its batch; the rest goes on. All of this is
blocking code, made to be called from a worker thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import pyarrow as pa

from batchchat.addresses import Address
from batchchat.errors import StorageError, StoreError, UsageError
from batchchat.sources.chunk import InputFormat, Limits, TableDialect
from batchchat.sources.columns import SeenRows
from batchchat.sources.files import STDIN, find_files, reads_file, text_encoding
from batchchat.sources.formats import CsvSource, JsonlSource, ParquetSource
from batchchat.sources.input_file import FoundFiles, InputFile, Stamp
from batchchat.sources.memory import GivenRows, MemorySource, check_rows
from batchchat.sources.parquet import python_rows
from batchchat.sources.source import Source

__all__ = [
    "STDIN",
    "GivenRows",
    "SeenRows",
    "Source",
    "Stamp",
    "check_rows",
    "open_rows",
    "open_source",
    "python_rows",
    "reads_file",
]


def open_rows(
    rows: GivenRows,
    *,
    types: Mapping[str, str] | None = None,
    frozen: pa.Schema | None = None,
    batch_rows: int = 512,
    batch_bytes: int = 4 * 1024 * 1024,
) -> Source:
    """Take rows that the calling program gives, and learn their columns. `types` and `frozen` as in `open_source`.

    Raises UsageError, with what to do, for what gives no rows.
    """
    return MemorySource(rows, dict(types or {}), frozen, Limits(batch_rows, batch_bytes, batch_bytes))


def open_source(
    path: str,
    *,
    base: Path | None = None,
    format: str | None = None,
    types: Mapping[str, str] | None = None,
    frozen: pa.Schema | None = None,
    output: Address | None = None,
    encoding: str | None = None,
    header: bool | tuple[str, ...] = True,
    quoting: bool | None = None,
    batch_rows: int = 512,
    batch_bytes: int = 4 * 1024 * 1024,
    max_line_bytes: int = 64 * 1024 * 1024,
) -> Source:
    """Find an input's files and learn its columns.

    `path` is a file, a folder, a glob, a URL of one of these on object storage or a hub, or `-` for standard input
    (JSON Lines unless `format` says otherwise); a relative one begins at `base`. `format` is `jsonl`, `csv`, `tsv` or
    `parquet`, for files whose extension does not tell. `types` gives columns a type of their own: string, int64,
    float64, bool, timestamp, date, decimal(p,s), json. `frozen` is the schema of an earlier run, which is then kept as
    it is. `output` is the place of the records: an input that would read it is refused. `encoding` is that of the text
    if it is not UTF-8. `header` and `quoting` tell how CSV and TSV are written, as in `TableDialect`.

    Raises UsageError with the file's name and what to do, for an input that has no rows or cannot be used.
    """
    dialect = TableDialect(header, quoting)
    if encoding is not None:
        encoding = text_encoding(encoding)
    limits = Limits(batch_rows, batch_bytes, max_line_bytes)
    listing: Callable[[], FoundFiles] | None = None
    files: list[InputFile] | None = None
    notes: list[str] = []
    if path == STDIN:
        kind = format or "jsonl"
        if kind == "parquet":
            raise UsageError("Parquet cannot be read from standard input", remedy="Save it to a file first.")
    else:
        listing = partial(find_files, path, base, format, output)
        found = listing()
        files, notes = found.files, found.left_out
        kind = files[0].format
        # What is pinned stays as it is: there is nothing to list again when the run ends.
        if found.pinned:
            listing = None
    _check_text_fields(kind, dialect, encoding)
    if files is not None and encoding is not None:
        files = [replace(file, encoding=encoding) for file in files]
    sources: dict[str, type[Source]] = {"jsonl": JsonlSource, "parquet": ParquetSource}
    try:
        make = sources.get(kind, CsvSource)
        format_ = InputFormat(kind, limits, dialect, encoding)
        return make(format_, files, dict(types or {}), frozen, listing=listing, notes=notes)
    except StoreError:
        raise  # a store that does not answer is no fault of the input
    except StorageError as error:
        raise UsageError(error.message, remedy="Mend or replace the file.") from None


def _check_text_fields(kind: str, dialect: TableDialect, encoding: str | None) -> None:
    """Raise UsageError if a field says how a text is written that this format does not have.

    It is not passed over: a person who sets it would believe that it did something.
    """
    if kind not in {"csv", "tsv"} and dialect != TableDialect():
        raise UsageError(
            f"input.header and input.quoting are for CSV and TSV, and the input is {kind}", remedy="Leave them out."
        )
    if kind == "parquet" and encoding is not None:
        raise UsageError("input.encoding is for texts, and the input is Parquet", remedy="Leave it out.")
