"""CSV and TSV: a header line, then rows of texts, read by the standard library's parser in strict mode."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from typing import Any

from batchchat.errors import UsageError
from batchchat.sources.chunk import Chunk, Limits
from batchchat.sources.convert import MISFIT, Convert
from batchchat.sources.files import BLOCK, BOM, ByteStream

_DELIMITERS = {"csv": (",", ";", "\t"), "tsv": ("\t",)}


class DelimitedReader:
    """Reads one stream. `header` is known at once; `chunks` yields the rows, once.

    A .csv whose header has no comma, but semicolons or tabs, is split at those, as spreadsheets write it. A header cell
    without a name is called `column_1`, `column_2`, … by its place. Blank lines are no rows.
    """

    def __init__(self, stream: ByteStream, name: str, kind: str, limits: Limits) -> None:
        csv.field_size_limit(max(csv.field_size_limit(), limits.max_line_bytes))
        self._name = name
        self._limits = limits
        self._stream = stream
        self._lines = _Lines(stream, limits.max_line_bytes)
        first = next(self._lines, "")
        while first and not first.strip():
            first = next(self._lines, "")
        candidates = _DELIMITERS[kind]
        delimiter = next((mark for mark in candidates if mark in first), candidates[0])
        self._lines.push_back(first)
        self._delimiter = delimiter
        self._reader = csv.reader(self._lines, delimiter=delimiter, strict=True)
        self.header = self._read_header()

    def go_on(self, stream: ByteStream, line: int) -> None:
        """Take the rows from another stream of the same file, which begins with line number `line`."""
        self._stream = stream
        self._lines = _Lines(stream, self._limits.max_line_bytes, line)
        self._reader = csv.reader(self._lines, delimiter=self._delimiter, strict=True)

    def _read_header(self) -> tuple[str, ...]:
        try:
            cells = next(self._reader, [])
        except csv.Error as error:
            raise UsageError(f"{self._name}:1: the header cannot be read: {error}") from None
        if self._lines.damaged:
            raise UsageError(f"{self._name}:1: the header is not valid UTF-8", remedy="Save the file as UTF-8.")
        if cells and all(_is_number(cell) for cell in cells):
            raise UsageError(
                f"{self._name}: the first line holds only numbers; it must hold the columns' names",
                remedy="Put a line with a name for each column in front.",
            )
        names = tuple(cell.strip() or f"column_{place}" for place, cell in enumerate(cells, 1))
        for name in names:
            if names.count(name) > 1:
                raise UsageError(
                    f"{self._name}:1: the header names {name!r} twice", remedy="Give each column a name of its own."
                )
        self._lines.restart()
        return names

    def count(self) -> int:
        """Count the rows that `chunks` would yield."""
        rows = 0
        while (cells := self._next()) is not None:
            rows += cells != []
        return rows

    def chunks(self, readers: Mapping[str, Convert]) -> Iterator[Chunk]:
        """Yield the rows; `readers` read the texts of columns that have a type of their own."""
        chunk = Chunk([], 0)
        while (cells := self._next()) is not None:
            if cells == []:
                self._lines.restart()
                continue
            self._add(chunk, cells, readers)
            chunk.nbytes += self._lines.length
            self._lines.restart()
            if len(chunk.rows) >= self._limits.batch_rows or chunk.nbytes >= self._limits.batch_bytes:
                # Behind a row that may still be being written, or has no clear end, nothing begins for sure.
                if self._lines.whole and not isinstance(cells, csv.Error):
                    chunk.place = self._stream.place(self._lines.offset, self._lines.first)
                yield chunk
                chunk = Chunk([], 0)
        if chunk.rows:
            yield chunk
        self._stream.end = self._stream.place(self._stream.position, self._lines.first, ended=True)

    def _next(self) -> list[str] | csv.Error | None:
        try:
            return next(self._reader, None)
        except csv.Error as error:
            return error

    def _add(self, chunk: Chunk, cells: list[str] | csv.Error, readers: Mapping[str, Convert]) -> None:
        where = f"{self._name}:{self._lines.first}"
        if isinstance(cells, csv.Error):
            chunk.fail(f"{where}: the row is not valid CSV: {cells}", self._lines.raw())
        elif self._lines.damaged:
            chunk.fail(f"{where}: the row is not valid UTF-8", self._lines.raw())
        elif len(cells) != len(self.header):
            chunk.fail(
                f"{where}: the row has {len(cells)} fields where the header has {len(self.header)}", self._lines.raw()
            )
        else:
            row: dict[str, Any] = dict(zip(self.header, cells, strict=True))
            for name, read in readers.items():
                text = row.get(name)
                if text is not None:
                    value = read(text) if text else None
                    row[name] = text if value is MISFIT else value
            chunk.rows.append(row)


class _Lines:
    """The text lines of a stream, with what is remembered of the row that is being read.

    `first` is the number of its first line. `offset` is where the last line ends in the stream, in bytes; `whole` tells
    whether it has a line end.
    """

    def __init__(self, stream: ByteStream, longest: int, number: int = 1) -> None:
        self._longest = longest
        self._raw = _RawStream(stream)
        self.offset = stream.position
        encoding = "utf-8" if self.offset else "utf-8-sig"
        buffered = io.BufferedReader(self._raw, BLOCK)
        self._text = io.TextIOWrapper(buffered, encoding=encoding, errors="surrogateescape", newline="")
        self._held: list[str] = []
        self._pushed: str | None = None
        self._number = number - 1
        self.first = number
        self.length = 0
        self.damaged = False
        self.whole = False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self._pushed:
            line, self._pushed = self._pushed, None
            return line
        line = self._text.readline(self._longest + 1)
        if not line:
            raise StopIteration
        if not self.offset and self._raw.marked:
            self.offset = len(BOM)
        self._number += 1
        if len(line) > self._longest:
            self._held.append(line[:1000])
            self._count(line)
            while line and line[-1] not in "\r\n":
                line = self._text.readline(self._longest)
                self._count(line)
            raise csv.Error("the line is too long")
        self._held.append(line)
        self.length += len(line)
        self._count(line)
        return line

    def _count(self, line: str) -> None:
        size = len(line)
        if not line.isascii():
            try:
                size = len(line.encode())
            except UnicodeEncodeError:
                self.damaged = True
                size = len(line.encode("utf-8", "surrogateescape"))
        self.offset += size
        self.whole = line[-1:] in {"\r", "\n"}

    def push_back(self, line: str) -> None:
        """Give a line once more."""
        self._pushed = line

    def restart(self) -> None:
        """Begin the next row."""
        self._held.clear()
        self.first = self._number + 1
        self.length = 0
        self.damaged = False

    def raw(self) -> bytes:
        """The bytes of the row that was read last."""
        return "".join(self._held).encode("utf-8", "surrogateescape")


class _RawStream(io.RawIOBase):
    """A stream as Python's own readers take it. `marked` tells whether it began with a byte order mark."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._rest = b""
        self._begun = False
        self.marked = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = self._rest or self._stream.read(len(buffer))
        if not self._begun:
            self._begun, self.marked = True, block.startswith(BOM)
        taken = min(len(block), len(buffer))
        buffer[:taken] = block[:taken]
        self._rest = block[taken:]
        return taken


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
