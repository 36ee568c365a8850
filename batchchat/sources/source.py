"""An input whose columns are known: one kind of source for each format."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa

from batchchat.errors import StorageError, UsageError
from batchchat.records import ErrorKind, Failure, Place, RowBatch
from batchchat.sources.chunk import Chunk, InputFormat
from batchchat.sources.columns import Column, Columns, freeze
from batchchat.sources.convert import DECLARED, JSON, MISFIT, declared_type, text_converter
from batchchat.sources.files import BLOCK, STDIN, ByteStream, Progress, StdinStream, reading
from batchchat.sources.input_file import FoundFiles, InputFile, Stamp, raise_changed


class Source(ABC):
    """An input whose columns are known.

    `columns` are the input's column names as the template sees them, `schema` is what is carried to the output
    (`input_extra` last), `files` are the names of the files in reading order, and `warnings` what a person should know;
    they grow while rows are read. `stamps` tell, for each file that the last pass opened, what it looked like just
    before; `ends` are the places where its files ended, those that can be believed.
    """

    columns: tuple[str, ...]
    lasting: bool
    """Whether a later run finds the rows in the same place, and may pass over those that it knows."""

    def __init__(
        self,
        format: InputFormat,
        files: list[InputFile] | None,
        types: dict[str, str],
        frozen: pa.Schema | None,
        *,
        listing: Callable[[], FoundFiles] | None = None,
        notes: Iterable[str] = (),
    ) -> None:
        self.files = tuple(file.name for file in files) if files is not None else (STDIN,)
        self.warnings: list[str] = [*notes]
        self.stamps: dict[int, Stamp] = {}
        self.ends: list[Place] = []
        self._lasting_warnings: list[str] = [*notes]
        self._format = format
        self._listing = listing
        self._inputs: list[InputFile | None] = list(files) if files is not None else [None]
        self._folders = {file.name: file.folder for file in files or ()}
        self._stdin = StdinStream(format.encoding) if files is None else None
        self.lasting = bool(files)
        self._begun = False
        self._end: Place | None = None
        self._progress = Progress(0)
        self._partitions = [file.partition if file is not None else {} for file in self._inputs]
        self._types = {name: declared_type(name, text) for name, text in types.items()}
        self._learn(frozen)

    @property
    def schema(self) -> pa.Schema:
        """What is carried to the output: output names, frozen types, `input_extra` last."""
        return self._carrier.schema

    def batches(self, after: Place | None = None, first_index: int = 0) -> Generator[RowBatch, None, None]:
        """Yield all rows from the first one, or those behind a place, of which the first has this index.

        Each call is a pass of its own; standard input can be read only once. StorageError where a file cannot be read
        to its end.
        """
        if self._stdin is not None:
            if self._begun:
                raise UsageError("standard input can be read only once")
            self._stdin.replay()
        self._begun = True
        # What the first look at the rows warned of, this pass warns of again if it still holds.
        self.warnings[:] = self._lasting_warnings
        self._progress = progress = Progress(self._size())
        index = first_index
        for name, chunk in self._pass(progress, after):
            yield RowBatch(
                source=name,
                first_index=index,
                columns=self._carried(chunk),
                values=chunk.rows,
                failures=chunk.failures,
                raw=chunk.raw,
                nbytes=chunk.nbytes,
                place=chunk.place,
            )
            index += len(chunk.rows)

    def still_holds(self, stamps: Mapping[int, Stamp], places: Sequence[Place]) -> tuple[int, dict[int, Stamp]]:
        """Tell how many of an earlier pass's places, from the first, still stand behind the same rows as then.

        A file whose stamp is what it was is believed; any other text is read again and compared by digest. Also returns
        the stamps that the files had when they were looked at. StorageError where a file cannot be read.
        """
        found: dict[int, Stamp] = {}
        held = 0
        for number, group in groupby(places, lambda place: place.file):
            here = list(group)
            file = self._inputs[number] if number < len(self._inputs) else None
            # Files were added, removed or renamed before this one: every row behind it has another index by now.
            if file is None or number not in stamps or stamps[number].name != file.name:
                break
            # The file before this one is not known to its end, so that the index of this one's first row is not known.
            if number > 0 and not (held and places[held - 1].ended):
                break
            with reading(file.address):
                now = file.stamp()
                believed = len(here) if stamps[number].proves(now) else self._compare(file, here)
            found[number] = now
            held += believed
            if believed < len(here):
                break
        return held, found

    def _compare(self, file: InputFile, places: Sequence[Place]) -> int:
        """How many of a file's places still stand behind the same bytes, from the first."""
        held = 0
        for _, group in groupby(places, lambda place: place.base):
            here = list(group)
            with closing(ByteStream(file, Progress(0), Place(0, here[0].base))) as stream:
                for place in here:
                    while stream.position < place.hashed and stream.read(min(BLOCK, place.hashed - stream.position)):
                        pass
                    # A place holds a digest of the bytes before it, so that equal places mean equal rows.
                    told = stream.place(place.offset, place.line, ended=place.ended)
                    if told is None or told._replace(file=place.file) != place or (place.ended and stream.read(1)):
                        return held
                    held += 1
        return held

    def ends_at(self, place: Place | None) -> bool:
        """Tell whether there are no rows behind a place that still holds."""
        return place is not None and place.ended and place.file == len(self._inputs) - 1

    def folder_of(self, name: str) -> Path | None:
        """Return the folder of the file of this name: the current one for standard input, None for an object."""
        return self._folders[name] if name in self._folders else Path.cwd()

    def fraction(self) -> float:
        """Return the share of the current pass that is read, from 0 to 1. Any thread may ask."""
        return self._progress.fraction()

    @property
    def seekable(self) -> bool:
        """Whether reading can begin behind a place without reading what stands before it."""
        return all(file is not None and file.compression is None and file.encoding is None for file in self._inputs)

    def known_rows(self) -> int | None:
        """Return the number of rows if the files say it, else None."""
        return None

    def count_rows(self) -> int:
        """Count the rows in a pass of its own. UsageError for standard input, which can be read only once."""
        if self._stdin is not None:
            raise UsageError(
                "the rows of standard input cannot be counted beforehand", remedy="Save the input to a file."
            )
        return sum(self._count(file) for file in self._inputs if file is not None)

    @abstractmethod
    def _learn(self, frozen: pa.Schema | None) -> None:
        """Set `columns` and the carrier. UsageError where the input cannot be used."""

    @abstractmethod
    def _chunks(self, file: InputFile | None, progress: Progress, after: Place | None = None) -> Iterator[Chunk]:
        """Yield one file's rows, or those behind a place, then note the file's end."""

    @abstractmethod
    def _count(self, file: InputFile) -> int:
        """Count one file's rows."""

    def _freeze(self, columns: Iterable[Column], frozen: pa.Schema | None) -> None:
        found = list(columns)
        known = {column.name for column in found}
        folders = dict.fromkeys(name for partition in self._partitions for name in partition if name not in known)
        found += [Column(name, *self._types.get(name, (pa.string(), ""))) for name in folders]
        self._carrier = Columns(freeze(found) if frozen is None else frozen)
        self.columns = tuple(dict.fromkeys((*(column.name for column in found), *self._carrier.names)))
        self._partitions = [self._typed(partition) for partition in self._partitions]

    def _typed(self, partition: Mapping[str, str | None]) -> dict[str, Any]:
        """Give the values of a partition the types that the job declares."""
        typed: dict[str, Any] = {}
        for name, text in partition.items():
            value: Any = text
            # The name of a folder is text. A job that declares no type for it sees it as it is written.
            if text is not None and name in self._types and self._types[name][1] in {JSON, DECLARED}:
                kind, mode = self._types[name]
                value = text_converter(kind, mode)(text)
            typed[name] = text if value is MISFIT else value
        return typed

    def _check_types(self, known: Iterable[str]) -> None:
        names = [*known, *(name for partition in self._partitions for name in partition)]
        for name in self._types:
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1)
                hint = f" (did you mean {near[0]!r}?)" if near else ""
                raise UsageError(
                    f"input.types: the input has no column {name!r}{hint}", remedy=f"It has {', '.join(names)}."
                )

    def _pass(self, progress: Progress, after: Place | None = None) -> Iterator[tuple[str, Chunk]]:
        self.stamps.clear()
        self.ends.clear()
        first = 0 if after is None else after.file + after.ended
        done = progress.done = sum(map(self._size_of, self._inputs[:first]))
        for number, (name, file) in enumerate(zip(self.files, self._inputs, strict=True)):
            if number < first:
                continue
            with reading(file.address if file is not None else "standard input"):
                if file is not None:
                    self.stamps[number] = file.stamp()
                begin = after if after is not None and after.file == number else None
                for chunk in self._chunks(file, progress, begin):
                    for column, value in self._partitions[number].items():
                        for row in chunk.rows:
                            if row is not None:
                                # The row's own field wins: some writers leave the column in the files too.
                                row.setdefault(column, value)
                    if chunk.place is not None:
                        chunk.place = chunk.place._replace(file=number)
                    yield name, chunk
            if self._end is not None:
                self.ends.append(self._end._replace(file=number))
            done += self._size_of(file)
            progress.done = done
        self._check_unchanged()

    def _check_unchanged(self) -> None:
        """Raise StorageError if the input is no longer what it was when it was opened.

        A pass over some of the files, or over a mix of old and new ones, must not be taken for a whole one.
        """
        for file in self._inputs:
            if file is not None:
                with reading(file.address):
                    file.check_unchanged()
        if self._listing is None:
            return
        try:
            listed = self._listing()
        except UsageError as error:
            raise StorageError(error.message, remedy=error.remedy) from None
        now = {file.name for file in listed.files}
        for address in listed.changed([file for file in self._inputs if file is not None]):
            raise_changed(address)
        if others := sorted(now.symmetric_difference(self.files)):
            more = f" and {len(others) - 3:,} more" if len(others) > 3 else ""
            raise StorageError(
                f"the files of the input changed while it was read: {', '.join(others[:3])}{more}",
                remedy="Run the same command again when all files are there: it goes on where it stopped.",
            )

    def _carried(self, chunk: Chunk) -> pa.RecordBatch:
        try:
            return self._carry(chunk)
        except RecursionError:
            # One row of the batch is too deep for Python or Arrow. Each is tried alone, so that only that one fails.
            for offset, row in enumerate(chunk.rows):
                try:
                    self._carrier.carry([row])
                except RecursionError:
                    chunk.failures[offset] = Failure(ErrorKind.INPUT, "the row is nested too deeply to be kept")
                    chunk.raw[offset] = b"nested too deeply"
                    chunk.rows[offset] = None
            return self._carry(chunk)

    def _carry(self, chunk: Chunk) -> pa.RecordBatch:
        return self._carrier.carry(chunk.rows)

    def _size(self) -> int:
        return sum(map(self._size_of, self._inputs))

    def _size_of(self, file: InputFile | None) -> int:
        return 0 if file is None else file.size

    def _stream(self, file: InputFile | None, progress: Progress, after: Place | None = None) -> ByteStream:
        return ByteStream(file, progress, after) if file is not None else self._stdin or StdinStream()

    def _warn(self, message: str) -> None:
        if message not in self.warnings:
            self.warnings.append(message)

    def _warn_always(self, message: str) -> None:
        """Warn now and in each later pass."""
        if message not in self._lasting_warnings:
            self._lasting_warnings.append(message)
        self._warn(message)

    def _no_rows(self, reason: str = "", remedy: str = "Check input.path.") -> UsageError:
        places = self._inputs[0]
        where = (
            "standard input"
            if places is None
            else places.address
            if len(self._inputs) == 1
            else places.address.removesuffix(f"/{places.name}")
        )
        return UsageError(f"{where}: the input has no rows{reason}", remedy=remedy)
