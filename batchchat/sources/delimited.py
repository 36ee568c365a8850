"""CSV and TSV: a header line, then rows of texts, read by the standard library's parser in strict mode."""

from __future__ import annotations

import csv
import io
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from batchchat.errors import UsageError
from batchchat.format import plural
from batchchat.sources.chunk import Chunk, InputFormat, TableDialect
from batchchat.sources.convert import MISFIT, Convert
from batchchat.sources.files import BLOCK, BOM, ByteStream

FIELD_LINES = 10_000
FIELD_BYTES = 8 * 1024 * 1024
"""Lines of one field in quotes, and its characters if it has more than one line. Beyond them the quote is taken for one
that is never closed, which would read the rest of the file into memory. Chosen, not measured: a text of a million words
stays below both, and what a lone quote makes wait in memory is below 10 MB."""
_DELIMITERS = {"csv": (",", ";", "\t"), "tsv": ("\t",)}


class DelimitedReader:
    """Reads one stream. `header` is known at once; `chunks` yields the rows, once.

    A quote that is not closed costs the row that it begins in: if a row of several lines cannot be read, or a field in
    quotes spans more than FIELD_LINES lines, its first line is a bad row, and reading goes on with the second one.

    A .csv whose header has no comma, but semicolons or tabs, is split at those, as spreadsheets write it. A header cell
    without a name is called `column_1`, `column_2`, … by its place. Blank lines are no rows.
    """

    def __init__(self, stream: ByteStream, name: str, format: InputFormat) -> None:
        limits, dialect = format.limits, format.dialect
        csv.field_size_limit(max(csv.field_size_limit(), limits.max_line_bytes))
        self._name = name
        self._limits = limits
        self._stream = stream
        self._lines = _Lines(stream, limits.max_line_bytes)
        first = next(self._lines, "")
        # Blank lines before the header are no header.
        while first and not first.strip():
            first = next(self._lines, "")
        candidates = _DELIMITERS[format.kind]
        self._delimiter = next((mark for mark in candidates if mark in first), candidates[0])
        quoting = dialect.quoting if dialect.quoting is not None else format.kind == "csv"
        self._quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quoting else csv.QUOTE_NONE
        # The line that showed the delimiter is the header itself, and is parsed once that is known.
        self._lines.push_back()
        self._reader = self._new_reader()
        self.warning = self._quotes_met(first) if dialect.quoting is None and not quoting else ""
        self.header = self._read_header(dialect)

    def _new_reader(self) -> Iterator[list[str]]:
        return csv.reader(self._lines, delimiter=self._delimiter, strict=True, quoting=self._quoting)

    def _quotes_met(self, first: str) -> str:
        cells = first.strip().split(self._delimiter)
        if any(len(cell) > 1 and cell[0] == cell[-1] == '"' for cell in cells):
            return (
                f"{self._name}: fields stand in quotes, which TSV does not have: they are part of the texts; "
                "`quoting: true` under input reads them as in CSV"
            )
        return ""

    def go_on(self, stream: ByteStream, line: int) -> None:
        """Take the rows from another stream of the same file, which begins with line number `line`."""
        self._stream = stream
        self._lines = _Lines(stream, self._limits.max_line_bytes, line)
        self._reader = self._new_reader()

    def _read_header(self, dialect: TableDialect) -> tuple[str, ...]:
        try:
            cells = next(self._reader, [])
        except csv.Error as error:
            raise UsageError(
                f"{self._name}:{self._lines.first}: the header cannot be read: {error}",
                remedy="If no field stands in quotes, set `quoting: false` under input.",
            ) from None
        where = f"{self._name}:{self._lines.first}"
        if self._lines.damaged:
            raise UsageError(
                f"{where}: the header is not valid {self._stream.encoding}", remedy=self._stream.encoding_remedy
            )
        if isinstance(dialect.header, tuple):
            if cells and len(cells) != len(dialect.header):
                raise UsageError(
                    f"{where}: the first row has {plural(len(cells), 'field')}, and input.header names "
                    f"{len(dialect.header)}",
                    remedy="Name each column of the file once, in its order.",
                )
            self._lines.rewind()
            return dialect.header
        if dialect.header is False:
            self._lines.rewind()
            return tuple(f"column_{place}" for place in range(1, len(cells) + 1))
        # A file without a header would lose its first row, and name its columns by it.
        if cells and all(_is_number(cell) for cell in cells):
            raise UsageError(
                f"{self._name}: the first line holds only numbers; it must hold the columns' names",
                remedy="If the file has no header, set `header: [name, …]` under input, a name for each column.",
            )
        names = tuple(cell.strip() or f"column_{place}" for place, cell in enumerate(cells, 1))
        for name in names:
            if names.count(name) > 1:
                raise UsageError(
                    f"{self._name}:1: the header names {name!r} twice",
                    remedy="Give each column a name of its own. If the file has no header, set input.header.",
                )
        self._lines.restart()
        return names

    def count(self) -> int:
        """Count the rows that `chunks` would yield."""
        rows = 0
        while (cells := self._next()) is not None:
            rows += cells != []
            self._lines.restart()
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
            # Only the first line is given up. A lone quote would else take every row up to the next quote of the file.
            if self._lines.several:
                found = csv.Error(
                    f"{error} (tried as one row up to line {self._lines.last}; a quote may not be closed); the lines "
                    "behind this one are read as rows of their own"
                )
                self._lines.rewind(1)
                return found
            return error

    def _add(self, chunk: Chunk, cells: list[str] | csv.Error, readers: Mapping[str, Convert]) -> None:
        where = f"{self._name}:{self._lines.first}"
        if isinstance(cells, csv.Error):
            chunk.fail(f"{where}: the row is not valid CSV: {cells}", self._lines.raw())
        elif self._lines.damaged:
            chunk.fail(
                f"{where}: the row is not valid {self._stream.encoding}; {self._stream.encoding_hint}",
                self._lines.raw(),
            )
        elif len(cells) != len(self.header):
            chunk.fail(
                f"{where}: the row has {plural(len(cells), 'field')} where the header has {len(self.header)}",
                self._lines.raw(),
            )
        else:
            row: dict[str, Any] = dict(zip(self.header, cells, strict=True))
            for name, read in readers.items():
                text = row.get(name)
                if text is not None:
                    value = read(text) if text else None
                    row[name] = text if value is MISFIT else value
            chunk.rows.append(row)


class _Line(NamedTuple):
    """One line: its text, its bytes in the file, and whether they are no UTF-8 or too many."""

    text: str
    size: int
    damaged: bool
    overlong: bool


class _Lines:
    """The text lines of a stream, with what is remembered of the row that is being read.

    `first` is the number of its first line, `last` that of its last one. `offset` is where the last line ends in the
    stream, in bytes; `whole` tells whether it has a line end.
    """

    def __init__(self, stream: ByteStream, longest: int, number: int = 1) -> None:
        self._longest = longest
        self._raw = _RawStream(stream)
        self._begun = bool(stream.position)
        self.offset = stream.position
        encoding = "utf-8" if self.offset else "utf-8-sig"
        buffered = io.BufferedReader(self._raw, BLOCK)
        self._text = io.TextIOWrapper(buffered, encoding=encoding, errors="surrogateescape", newline="")
        self._held: list[_Line] = []
        self._pending: deque[_Line] = deque()
        self.last = number - 1
        self.first = number
        self.length = 0
        self.damaged = False
        self.whole = False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        # A quote that is never closed would read the rest of the file into memory.
        if self._held and (len(self._held) >= FIELD_LINES or self.length > FIELD_BYTES):
            raise csv.Error(f"a field in quotes spans more than {FIELD_LINES:,} lines or {FIELD_BYTES:,} characters")
        line = self._pending.popleft() if self._pending else self._read()
        if not line.text:
            raise StopIteration
        self.last += 1
        self.offset += line.size
        self.whole = line.text[-1] in "\r\n" or line.overlong
        self.damaged = self.damaged or line.damaged
        self.length += len(line.text)
        self._held.append(line)
        if line.overlong:
            raise csv.Error("the line is too long")
        return line.text

    def _read(self) -> _Line:
        text = self._text.readline(self._longest + 1)
        if not self._begun and text:
            self._begun = True
            self.offset += len(BOM) if self._raw.marked else 0
        size, damaged = _size(text)
        if len(text) <= self._longest:
            return _Line(text, size, damaged, overlong=False)
        piece = text
        # The rest of the line is passed over piece by piece: memory holds one piece of it.
        while piece and piece[-1] not in "\r\n":
            piece = self._text.readline(self._longest)
            size += _size(piece)[0]
        return _Line(text[:1000], size, damaged, overlong=True)

    @property
    def several(self) -> bool:
        """Whether the row has more than one line so far."""
        return len(self._held) > 1

    def push_back(self) -> None:
        """Give the last line once more."""
        self.rewind(max(0, len(self._held) - 1))

    def rewind(self, kept: int = 0) -> None:
        """Give all lines of the row once more, but for the first `kept`."""
        back = self._held[kept:]
        del self._held[kept:]
        self._pending.extendleft(reversed(back))
        self.offset -= sum(line.size for line in back)
        self.last -= len(back)
        self.length = sum(len(line.text) for line in self._held)
        self.damaged = any(line.damaged for line in self._held)
        self.whole = bool(back)

    def restart(self) -> None:
        """Begin the next row."""
        self._held.clear()
        self.first = self.last + 1
        self.length = 0
        self.damaged = False

    def raw(self) -> bytes:
        """Return the bytes of the row that was read last."""
        return "".join(line.text for line in self._held).encode("utf-8", "surrogateescape")


def _size(line: str) -> tuple[int, bool]:
    """The bytes of a line, and whether they are no UTF-8."""
    # Most lines are ASCII, and asking that is much cheaper than encoding them.
    if line.isascii():
        return len(line), False
    try:
        return len(line.encode()), False
    except UnicodeEncodeError:
        return len(line.encode("utf-8", "surrogateescape")), True


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
