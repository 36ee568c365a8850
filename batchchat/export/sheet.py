"""An Excel workbook with one sheet, written row by row in constant memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from batchchat.errors import UsageError
from batchchat.sources import python_rows

_MOST_ROWS = 1_048_575
_MOST_LETTERS = 32_767
_EXACT = 2**53
_FIRST_YEAR = 1900
"""What Excel itself holds: rows below the header, UTF-16 letters in a cell, whole numbers as they are, dates."""
_CUT = "… (cut: a cell holds 32,767 letters)"


@contextmanager
def open_sheet(
    path: Path, schema: pa.Schema, text_of: Callable[[Any], Any]
) -> Iterator[Callable[[pa.RecordBatch], None]]:
    """Open a workbook; yield what writes a batch of rows to it. `text_of` writes values that a cell does not have.

    Raises UsageError if the library is missing, or for more rows than a sheet holds.
    """
    try:
        import xlsxwriter
    except ImportError:
        raise UsageError(
            "an .xlsx file needs xlsxwriter, which is not installed",
            remedy="pip install xlsxwriter; or export to .csv with --bom, which Excel reads.",
        ) from None
    # Texts are texts: nothing of an answer becomes a formula or a link.
    options = {"constant_memory": True, "strings_to_formulas": False, "strings_to_urls": False}
    with xlsxwriter.Workbook(str(path), {**options, "remove_timezone": True}) as book:
        sheet = _Sheet(book, schema.names, text_of)
        yield sheet.write
        sheet.end()


class _Sheet:
    """The one sheet of a workbook: a header, and a row for each record."""

    def __init__(self, book: Any, names: list[str], text_of: Callable[[Any], Any]) -> None:
        self._sheet = book.add_worksheet("records")
        self._time = book.add_format({"num_format": "yyyy-mm-dd hh:mm:ss"})
        self._date = book.add_format({"num_format": "yyyy-mm-dd"})
        self._text_of = text_of
        self._columns = len(names)
        self._rows = 0
        head = book.add_format({"bold": True})
        for number, name in enumerate(names):
            self._sheet.write_string(0, number, _short(name), head)
        self._sheet.freeze_panes(1, 0)

    def write(self, batch: pa.RecordBatch) -> None:
        """Write rows. Raises UsageError if the sheet does not hold them."""
        if self._rows + batch.num_rows > _MOST_ROWS:
            raise UsageError(
                f"a sheet of Excel holds {_MOST_ROWS:,} rows, and there are more",
                remedy="Export to .parquet or .csv.",
            )
        for row in python_rows(batch):
            self._rows += 1
            for number, value in enumerate(row.values()):
                if value is not None:
                    self._write_cell(number, value)

    def end(self) -> None:
        """Let the columns be filtered."""
        # Excel takes an autofilter without rows for a damaged file.
        if self._rows:
            self._sheet.autofilter(0, 0, self._rows, self._columns - 1)

    def _write_cell(self, column: int, value: Any) -> None:
        sheet, row = self._sheet, self._rows
        # Before numbers: a bool is an int in Python.
        if isinstance(value, bool):
            sheet.write_boolean(row, column, value)
        elif isinstance(value, int | float) and math.isfinite(value) and abs(value) <= _EXACT:
            sheet.write_number(row, column, value)
        elif isinstance(value, datetime) and value.year >= _FIRST_YEAR:
            # Excel knows no time zones: times are in UTC, as everywhere in the dataset.
            moment = value if value.tzinfo is None else value.astimezone(UTC)
            sheet.write_datetime(row, column, moment, self._time)
        elif isinstance(value, date) and not isinstance(value, datetime) and value.year >= _FIRST_YEAR:
            sheet.write_datetime(row, column, value, self._date)
        else:
            sheet.write_string(row, column, _short(str(self._text_of(value))))


def _short(text: str) -> str:
    """Cut a text to what a cell holds. Excel counts UTF-16 units."""
    if len(text) * 2 <= _MOST_LETTERS or len(text.encode("utf-16-le")) <= 2 * _MOST_LETTERS:
        return text
    room = 2 * (_MOST_LETTERS - len(_CUT))
    return text.encode("utf-16-le")[:room].decode("utf-16-le", "ignore") + _CUT
