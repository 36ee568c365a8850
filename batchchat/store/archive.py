"""The archive of an output: records that left the dataset, and what of them can be given back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, BinaryIO

import pyarrow as pa

from batchchat.lazy_arrow import compute as pc
from batchchat.store.bounds import PartBounds
from batchchat.store.location.port import PartFiles
from batchchat.store.parts import DamagedPartError, PartReader, write_part
from batchchat.store.schema import own_columns


class Archive:
    """The files of the archive. Used by one thread at a time; `fetch` may run beside it.

    `opened` opens a file with the output's columns. `before_removal` is called with the name of a file that is going to
    be set aside; `write_empty` writes a file without records.
    """

    def __init__(
        self,
        files: PartFiles,
        opened: Callable[[PartFiles, str], PartReader],
        *,
        bounds: PartBounds,
        before_removal: Callable[[str], None],
        write_empty: Callable[[BinaryIO], None],
    ) -> None:
        self.files = files
        self._open = opened
        self._bounds = bounds
        self._before_removal = before_removal
        self._write_empty = write_empty
        self._finder = ArchiveFinder(files, self.opened)
        self.fetch = self._finder.fetch

    def opened(self, name: str) -> PartReader:
        """Open a file. Raises DamagedPartError, FileNotFoundError, StorageError."""
        return self._open(self.files, name)

    def add(
        self, schema: pa.Schema, batches: Callable[[], Iterable[pa.RecordBatch]], rows: int, messages: list[str]
    ) -> None:
        """Add records: the last file grows, as parts do, or a new one begins.

        `batches` is called again after a file of the archive was found damaged and set aside; a sentence about it is
        added to `messages`. Raises what `batches` raises, StorageError.
        """
        while True:
            name, grows = self._file_for(rows)

            def write(sink: BinaryIO, name: str = name, grows: bool = grows) -> None:
                old = self._whole(name) if grows else ()
                write_part(sink, schema, chain(old, batches()))

            try:
                self.files.publish(name, write)
            except DamagedPartError as error:
                # Another file is damaged, one that `batches` reads: the caller deals with it.
                if error.part != name:
                    raise
                messages.append(self.set_aside(error))
            else:
                return

    def completions(self, name: str) -> list[str]:
        """Return the `custom_id`s of the completions in a file. Raises as `opened`."""
        with self.opened(name) as reader:
            table = reader.read(["custom_id", "status"])
        found: list[str] = table.filter(pc.equal(table.column("status"), "ok")).column("custom_id").to_pylist()
        return found

    def set_aside(self, error: DamagedPartError) -> str:
        """Take a damaged file out of the archive, and say so in a sentence."""
        self._before_removal(error.part)
        kept = self.files.set_aside(error.part, self._write_empty)
        return f"{error}. What it gave back is asked for again when it is wanted. The file is kept as {kept}."

    def _file_for(self, rows: int) -> tuple[str, bool]:
        """Return the file that takes so many more records, and whether it has some already."""
        names, kind = self.files.names(), self.files.kind
        if not names:
            return kind.name(0), False
        try:
            with self.opened(names[-1]) as reader:
                if reader.rows + rows <= self._bounds.rows and reader.raw_bytes < self._bounds.nbytes:
                    return names[-1], True
        except DamagedPartError:
            pass  # told and set aside by the next start
        return kind.name((kind.number(names[-1]) or 0) + 1), False

    def _whole(self, name: str) -> Iterator[pa.RecordBatch]:
        with self.opened(name) as reader:
            yield from reader.batches()


class ArchiveFinder:
    """Find archived completions.

    Rows come back in about the order in which they left, so one file is kept open in memory.
    """

    def __init__(self, files: PartFiles, opened: Callable[[str], PartReader]) -> None:
        self._files = files
        self._opened = opened
        self._file: tuple[str, int] | None = None
        self._places: dict[str, int] = {}
        self._table: pa.Table | None = None

    def fetch(self, custom_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Return the output's own columns of archived completions, by `custom_id`."""
        found: dict[str, dict[str, Any]] = {}
        missing = set(custom_ids)
        self._collect(missing, found)
        for name in reversed(self._files.names()):
            if not missing:
                break
            file = (name, self._files.size(name))  # a file that has grown holds more than what is at hand
            if file != self._file and self._holds(name, missing):
                self._load(file)
                self._collect(missing, found)
        return found

    def _holds(self, name: str, custom_ids: set[str]) -> bool:
        try:
            with self._opened(name) as reader:
                column = reader.read(["custom_id"]).column("custom_id")
        except DamagedPartError:
            return False
        # Only one column is read to know whether the file is worth loading.
        return bool(pc.any(pc.is_in(column, value_set=pa.array(list(custom_ids), pa.string()))).as_py())

    def _load(self, file: tuple[str, int]) -> None:
        self._file, self._places, self._table = None, {}, None
        try:
            with self._opened(file[0]) as reader:
                table = reader.read(own_columns(reader.schema))
        except DamagedPartError:
            return
        table = table.filter(pc.equal(table.column("status"), "ok"))
        self._places = {custom_id: n for n, custom_id in enumerate(table.column("custom_id").to_pylist())}
        self._file, self._table = file, table

    def _collect(self, missing: set[str], found: dict[str, dict[str, Any]]) -> None:
        if self._table is None:
            return
        here = [custom_id for custom_id in missing if custom_id in self._places]
        if not here:
            return
        places = pa.array([self._places[custom_id] for custom_id in here], pa.int64())
        table = self._table.take(places)
        # A record holds microseconds, and not Python's times.
        for name in ("started_at", "finished_at"):
            number = table.schema.get_field_index(name)
            table = table.set_column(number, name, pc.cast(table.column(name), pa.int64()))
        found.update(zip(here, table.to_pylist(), strict=True))
        missing.difference_update(here)
