"""What is particular to each format of an input: how its columns are learned, and how its rows are read."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import PurePath

import pyarrow as pa

from batchchat.errors import UsageError
from batchchat.records import Place
from batchchat.sources.chunk import Chunk
from batchchat.sources.columns import Column
from batchchat.sources.convert import DECLARED, JSON, Convert, text_converter
from batchchat.sources.delimited import DelimitedReader
from batchchat.sources.files import STDIN, ByteStream, Progress, reading
from batchchat.sources.infer import Shape
from batchchat.sources.input_file import InputFile, LocalFile
from batchchat.sources.jsonl import count_jsonl, read_jsonl
from batchchat.sources.parquet import ParquetFile, plain_type
from batchchat.sources.source import Source

_MAX_COLUMNS = 1_000
"""Columns that JSON Lines may have. Objects whose names are data (identities, dates) would else make a column of
each."""
_ONE_OBJECT_A_LINE = "JSON Lines has one object on each line, and a line ends with a line end."
_LINES_OF_ARRAY = "import json, sys; [print(json.dumps(row)) for row in json.load(sys.stdin.buffer)]"
_UNPACK = {".gz": "gzip", ".bz2": "bzip2", ".zst": "zstd"}
_SAMPLE_ROWS = 10_000
_SAMPLE_BYTES = 64 * 1024 * 1024
"""Rows, and bytes of them, from which columns and types are inferred. A later row that does not fit a type goes on as
text in `input_extra`, so that more would only cost time. Chosen, not measured."""


class JsonlSource(Source):
    """JSON Lines: the columns are those of the first 10,000 rows."""

    _array = False
    """Whether the stream that was read last begins as a JSON array."""

    def _learn(self, frozen: pa.Schema | None) -> None:
        shapes: dict[str, Shape] = {}
        rows = read = 0
        problem = None
        for _, chunk in self._pass(Progress(0)):
            # In an array of many lines, the last object has no comma behind it and is a row.
            if rows == 0 and (len(chunk.failures) == len(chunk.rows) or chunk.raw.get(0, b"").strip() == b"["):
                self._refuse_array()
            rows += len(chunk.rows)
            read += chunk.nbytes
            good = [row for row in chunk.rows if row is not None]
            for column in dict.fromkeys(column for row in good for column in row):
                if column not in shapes and len(shapes) >= _MAX_COLUMNS:
                    self._warn_always(f"more than {_MAX_COLUMNS:,} columns: the rest goes to input_extra")
                    continue
                shapes.setdefault(column, Shape()).see([row[column] for row in good if column in row])
            if problem is None and chunk.failures:
                problem = next(iter(chunk.failures.values())).message
            # With a frozen schema the types are decided, and only the names of today's columns are wanted.
            if rows >= _SAMPLE_ROWS or read >= _SAMPLE_BYTES or (frozen is not None and shapes):
                break
        if rows == 0:
            self._refuse_array()
            if len(self.warnings) > len(self._lasting_warnings):
                raise self._no_rows(f": {self.warnings[-1]}", _ONE_OBJECT_A_LINE)
            raise self._no_rows()
        if not shapes and problem is not None:
            raise UsageError(
                f"none of the first {rows:,} lines is a row: {problem}",
                remedy="JSON Lines holds one object on each line. If the file is of another kind, set input.format.",
            )
        for name in self._types:
            shapes.setdefault(name, Shape())
        self._freeze(
            (Column(name, *self._types.get(name) or shape.column_type()) for name, shape in shapes.items()), frozen
        )

    def _refuse_array(self) -> None:
        """Raise UsageError if the first input begins as a JSON array, and say how to make JSON Lines of it."""
        if not self._array:
            return
        file = self._inputs[0]
        convert = f"python3 -c {shlex.quote(_LINES_OF_ARRAY)}"
        if file is None:
            where, command = "standard input", f"... | {convert} | batchchat run JOB --input -"
        else:
            where, lines = file.address, PurePath(file.path if isinstance(file, LocalFile) else file.name)
            unpack = _UNPACK.get(lines.suffix)
            while lines.suffix:
                lines = lines.with_suffix("")
            source = shlex.quote(where if isinstance(file, LocalFile) else PurePath(file.name).name)
            read = f"{convert} < {source}" if unpack is None else f"{unpack} -dc {source} | {convert}"
            command = f"{read} > {shlex.quote(f'{lines}.jsonl')}"
        raise UsageError(
            f"{where}: holds a JSON array, not one object on each line",
            remedy=f"Convert it, and name the new file: {command}",
        )

    def _chunks(self, file: InputFile | None, progress: Progress, after: Place | None = None) -> Iterator[Chunk]:
        stream = self._stream(file, progress, after)
        name, line = file.name if file is not None else STDIN, 1 if after is None else after.line
        with closing(stream):
            for chunk in read_jsonl(stream, name, self._format.limits, self._warn, line=line):
                self._array = stream.array
                yield chunk
            self._array = stream.array
        self._end = stream.end

    def _count(self, file: InputFile) -> int:
        with reading(file.address), closing(ByteStream(file, Progress(0))) as stream:
            return count_jsonl(stream, self._format.limits)


class CsvSource(Source):
    """CSV or TSV: the columns are those of the header lines, texts unless a type is given."""

    def _learn(self, frozen: pa.Schema | None) -> None:
        names: dict[str, None] = {}
        empty = True
        for file in self._inputs:
            stream = self._stream(file, Progress(0))
            name = file.address if file is not None else "standard input"
            with reading(name), closing(stream):
                reader = DelimitedReader(stream, name, self._format)
                names.update(dict.fromkeys(reader.header))
                if reader.warning:
                    self._warn_always(reader.warning)
                # One row is enough. The headers of all files are read all the same, since each may name other columns.
                empty = empty and next(reader.chunks({}), None) is None
        if not names:
            raise self._no_rows()
        if empty:
            raise self._no_rows(", only a header")
        self._check_types(names)
        self._freeze((Column(name, *self._types.get(name, (pa.string(), ""))) for name in names), frozen)
        self._readers: dict[str, Convert] = {
            column.name: text_converter(column.kind, column.mode)
            for column in self._carrier.columns
            if column.mode in {JSON, DECLARED}
        }

    def _chunks(self, file: InputFile | None, progress: Progress, after: Place | None = None) -> Iterator[Chunk]:
        with ExitStack() as stack:
            beginning = progress if after is None else Progress(0)
            stream = stack.enter_context(closing(self._stream(file, beginning)))
            name = file.name if file is not None else STDIN
            reader = DelimitedReader(stream, name, self._format)
            if after is not None:  # the header was needed all the same
                stream = stack.enter_context(closing(self._stream(file, progress, after)))
                reader.go_on(stream, after.line)
            yield from reader.chunks(self._readers)
        self._end = stream.end

    def _count(self, file: InputFile) -> int:
        with reading(file.address), closing(ByteStream(file, Progress(0))) as stream:
            return DelimitedReader(stream, file.name, self._format).count()


class ParquetSource(Source):
    """Parquet: the columns and their types are the files' own."""

    def _learn(self, frozen: pa.Schema | None) -> None:
        self._parquet = {file.name: ParquetFile(file) for file in self._inputs if file is not None}
        # Told before anything is made: an empty input is mostly a wrong path.
        if not self.known_rows():
            raise self._no_rows()
        schemas = [file.schema for file in self._parquet.values()]
        found: dict[str, pa.DataType] = {}
        for field in (field for schema in schemas for field in schema):
            # The files of one table may be of several versions of a program, with wider types in the later ones.
            found[field.name] = _unified(found.get(field.name, pa.null()), field.type)
        self._check_types(found)
        self._freeze(
            (Column(name, *self._types.get(name, (plain_type(kind), ""))) for name, kind in found.items()), frozen
        )

    def known_rows(self) -> int:
        """Return the number of rows, as the files' footers say it."""
        return sum(file.rows for file in self._parquet.values())

    def _chunks(self, file: InputFile | None, progress: Progress, after: Place | None = None) -> Iterator[Chunk]:
        if file is not None:
            parquet = self._parquet[file.name]
            yield from parquet.chunks(self._format.limits, progress, 0 if after is None else after.offset)
            self._end = Place(0, parquet.rows, ended=True)

    def _compare(self, file: InputFile, places: Sequence[Place]) -> int:
        """None: no part of a Parquet file is known to be the same once the file is another."""
        return 0

    def _carry(self, chunk: Chunk) -> pa.RecordBatch:
        arrow = chunk.arrow
        given = None if arrow is None else dict(zip(arrow.schema.names, arrow.columns, strict=True))
        return self._carrier.carry(chunk.rows, given)

    def _count(self, file: InputFile) -> int:
        return self._parquet[file.name].rows

    def _size_of(self, file: InputFile | None) -> int:
        return 0 if file is None else self._parquet[file.name].rows


def _unified(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """The type that holds both of two files' columns, or the first: `input_extra` takes what does not fit."""
    schemas = [pa.schema([("column", plain_type(kind) if kind != pa.null() else kind)]) for kind in (one, other)]
    try:
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except pa.ArrowException:
        return one
