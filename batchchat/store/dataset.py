"""The dataset of an output: its live parts, and the archive of records that left it.

Every step keeps two promises. A reader may miss a record for a moment, but never meets two of one row: superseded
records leave before their successors appear. And a crash between any two steps loses nothing: what leaves is in the
archive first, and what appears is still in the journal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import field
from functools import partial
from itertools import chain
from secrets import token_hex
from typing import BinaryIO

import pyarrow as pa

from batchchat.dataclass import dataclass
from batchchat.lazy_arrow import compute as pc
from batchchat.store.archive import Archive
from batchchat.store.bounds import PartBounds
from batchchat.store.column_types import OutputTypes
from batchchat.store.location.port import Location, PartChangedError, PartFiles
from batchchat.store.parts import (
    ROW_GROUP_ROWS,
    SORT_KEYS,
    DamagedPartError,
    PartReader,
    combined,
    identities,
    in_order,
    latest,
    newest_of_keys,
    sample_keys,
    sort_order,
    write_part,
)
from batchchat.store.schema import RECORD_SCHEMA, same_types

Point = Callable[[str], None]
"""Called with the name of a step that is just done; tests stop the process there."""

_SETTLED = b"batchchat.settled"
"""Names what tells a part that was published again from the same part before, in the metadata of its columns."""
_IDENTITY = ("custom_id", "run_id", "finished_at")


@dataclass(slots=True)
class DatasetChange:
    """What a seal or a pruning took out of the dataset.

    `removed` are identities without a live record now, each with whether the archive holds its completion;
    `lost` counts records of damaged parts whose identities could not even be read.
    """

    removed: list[tuple[str, bool]] = field(default_factory=list)
    lost: int = 0
    messages: list[str] = field(default_factory=list)


class Dataset:
    """The parts, and the archive behind them. Used by one thread at a time; `archive.fetch` may run beside it.

    All parts have the same columns: one that an earlier version wrote, or an earlier run without `parsed`, is noted in
    `older` and completed before the next part is published.
    `before_removal` is called with the name of a file that is going to be removed or set aside.
    """

    def __init__(
        self, location: Location, types: OutputTypes, *, bounds: PartBounds, point: Point, before_removal: Point
    ) -> None:
        self.parts = location.parts
        self.archive = Archive(
            location.archive,
            self._opened,
            bounds=bounds,
            before_removal=before_removal,
            write_empty=self._write_empty,
        )
        self.older: set[str] = set()
        self._types = types
        self._bounds = bounds
        self._point = point
        self._before_removal = before_removal

    def part(self, name: str) -> PartReader:
        """Open a part, with the output's columns. Raises DamagedPartError, FileNotFoundError, StorageError."""
        return self._opened(self.parts, name)

    def _opened(self, files: PartFiles, name: str) -> PartReader:
        return PartReader(files, name, self._types.schema)

    def published(self, custom_ids: Sequence[str]) -> set[tuple[str, str, int | None]]:
        """Return (custom_id, run_id, finished_at) of the live records with one of these identities."""
        found: set[tuple[str, str, int | None]] = set()
        wanted = pa.array(custom_ids, pa.string())
        for name in self.parts.names():
            with self.part(name) as reader:
                table = reader.read(_IDENTITY)
            table = table.filter(pc.is_in(table.column("custom_id"), value_set=wanted))
            found.update(identities(table))
        return found

    # ---- sealing ----------------------------------------------------------------------------------------------------

    def seal(self, table: pa.Table, *, by_id: bool, by_key: bool, late: pa.Table | None = None) -> DatasetChange:
        """Publish records; those that they supersede go to the archive first, and so do `late` ones.

        `by_id` and `by_key` tell whether any live record may have to leave because a new one has the same identity, or
        the same key and sample under another identity. Raises StorageError.
        """
        moved = DatasetChange()
        self._complete_older(moved)
        table = latest(table)
        leaving: dict[str, pa.Array] = {}
        directly = [late] if late is not None and late.num_rows else []
        if by_key:
            table, displaced = newest_of_keys(table)
            if displaced.num_rows:
                moved.removed += _with_status(displaced)
                directly.append(displaced)
        if by_id or by_key:
            leaving = self._superseded(table, moved, by_key=by_key)
        self._archive(leaving, moved, directly)
        self._point("seal.archived")
        names = self.parts.names()
        last = names[-1] if names else None
        number = 0 if last is None else (self.parts.kind.number(last) or 0) + 1
        for name in [name for name in leaving if name != last]:
            self._rewrite(name, leaving[name], moved)
        self._point("seal.rewritten")
        if table.num_rows:
            order = sort_order(table)
            if last is not None:
                order = self._grow(last, table, order, leaving.get(last), moved)
            step = self._bounds.room(max(1, table.nbytes // table.num_rows))
            for start in range(0, len(order), step):
                self._write(self.parts.kind.name(number), table.schema, in_order(table, order.slice(start, step)))
                number += 1
        elif last in leaving:
            self._rewrite(last, leaving[last], moved)
        self._point("seal.published")
        return moved

    def prune(self, leaves: Callable[[str], bool]) -> DatasetChange:
        """Move every live record whose identity `leaves` names to the archive."""

        def mask(reader: PartReader) -> pa.Array:
            custom_ids = reader.read(["custom_id"]).column("custom_id").to_pylist()
            return pa.array(map(leaves, custom_ids), pa.bool_())

        return self._take_out(mask)

    def prune_samples(self, samples: int) -> DatasetChange:
        """Move every live record with a `sample_index` of `samples` or more to the archive."""

        def mask(reader: PartReader) -> pa.Array:
            return combined(pc.greater_equal(reader.read(["sample_index"]).column("sample_index"), samples))

        return self._take_out(mask)

    def _take_out(self, mask_of: Callable[[PartReader], pa.Array]) -> DatasetChange:
        """Move the records that each part's mask names to the archive."""
        moved = DatasetChange()
        leaving: dict[str, pa.Array] = {}
        for name in self.parts.names():
            try:
                with self.part(name) as reader:
                    mask = mask_of(reader)
                    if mask.true_count:
                        moved.removed += _with_status(reader.read(["custom_id", "status"]).filter(mask))
                        leaving[name] = mask
            except DamagedPartError as error:
                self.set_aside(error, moved)
        self._archive(leaving, moved)
        self._point("seal.archived")
        for name, mask in leaving.items():
            self._rewrite(name, mask, moved)
        self._point("seal.rewritten")
        return moved

    def _superseded(self, table: pa.Table, moved: DatasetChange, *, by_key: bool) -> dict[str, pa.Array]:
        """Return, for each part that holds superseded records, a mask of them; note those leaving for good."""
        new_ids = table.column("custom_id").combine_chunks()
        new_keys = combined(sample_keys(table)).drop_null() if by_key else None
        columns = ["custom_id", "status"] + (["key", "sample_index"] if by_key else [])
        leaving: dict[str, pa.Array] = {}
        for name in self.parts.names():
            try:
                with self.part(name) as reader:
                    old = reader.read(columns)
            except DamagedPartError as error:
                self.set_aside(error, moved)
                continue
            same_id = pc.is_in(old.column("custom_id"), value_set=new_ids)
            mask = same_id
            if new_keys is not None:
                same_key = pc.is_in(sample_keys(old), value_set=new_keys, skip_nulls=True)
                mask = pc.or_(same_id, same_key)
                gone = old.filter(pc.and_not(same_key, same_id))
                moved.removed += _with_status(gone)
            mask = combined(mask)
            if mask.true_count:
                leaving[name] = mask
        return leaving

    def _archive(self, leaving: dict[str, pa.Array], moved: DatasetChange, directly: Sequence[pa.Table] = ()) -> None:
        """Copy the records that leave into the archive. Those of `directly` have never been in a part.

        A part found damaged is set aside instead.
        """
        while leaving or directly:
            rows = sum(mask.true_count for mask in leaving.values()) + sum(table.num_rows for table in directly)
            if leaving:
                with self.part(next(iter(leaving))) as reader:
                    schema = reader.schema
            else:
                schema = directly[0].schema
            try:
                self.archive.add(schema, lambda: chain(self._selected(leaving), directly), rows, moved.messages)
            except DamagedPartError as error:
                del leaving[error.part]
                self.set_aside(error, moved)
            else:
                return

    def _rewrite(self, name: str, mask: pa.Array, moved: DatasetChange) -> None:
        """Publish a part again without the records of the mask; remove it where none is left."""
        if mask.true_count == len(mask):
            self._before_removal(name)
            self.parts.remove(name, self._write_empty)
            return
        try:
            with self.part(name) as reader:
                self._write(name, reader.schema, _chosen(reader, pc.invert(mask)))
        except DamagedPartError as error:
            self.set_aside(error, moved)

    def _grow(
        self, name: str, table: pa.Table, order: pa.Array, mask: pa.Array | None, moved: DatasetChange
    ) -> pa.Array:
        """Publish the last part again with as many new records as it has room for; return the order of the rest.

        Old records stay in their part: were they moved, a crash between two publications would lose them.
        """
        try:
            with self.part(name) as reader:
                kept = reader.rows - (mask.true_count if mask is not None else 0)
                fits = kept < self._bounds.rows and reader.raw_bytes < self._bounds.nbytes
                # The file's own size says little of records that repeat one another: they are counted as they are read.
                same = fits and same_types(reader.schema, table.schema)
                old = reader.read_within(self._bounds.nbytes) if same else None
        except DamagedPartError as error:
            self.set_aside(error, moved)
            return order
        room = 0
        if old is not None:
            if mask is not None:
                old = old.filter(pc.invert(mask))
            row_bytes = max(1, table.nbytes // table.num_rows)
            room = min(self._bounds.rows - kept, (self._bounds.nbytes - old.nbytes) // row_bytes)
        if old is None or room <= 0:
            if mask is not None:
                self._rewrite(name, mask, moved)
            return order
        old, new = old.cast(table.schema), order.slice(0, room)
        # Only what is sorted by is copied to find the order of all: the records themselves are many bytes.
        rows = pa.concat_tables([old.select(SORT_KEYS), table.select(SORT_KEYS).take(new)])
        before = pa.array(range(old.num_rows), new.type)
        places = pa.concat_arrays([before, pc.add(new, pa.scalar(old.num_rows, new.type))])
        grown = pa.concat_tables([old, table])
        self._write(name, table.schema, in_order(grown, places.take(sort_order(rows))))
        return order.slice(room)

    def _complete_older(self, moved: DatasetChange) -> None:
        """Publish again, with all columns, the parts that lack some."""
        for name in sorted(self.older.intersection(self.parts.names())):
            try:
                with self.part(name) as reader:
                    self._write(name, reader.schema, reader.batches())
            except DamagedPartError as error:
                self.set_aside(error, moved)
        self.older.clear()

    def _selected(self, masks: Mapping[str, pa.Array]) -> Iterator[pa.RecordBatch]:
        for name, mask in masks.items():
            with self.part(name) as reader:
                yield from _chosen(reader, mask)

    def _write(self, name: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch | pa.Table]) -> None:
        self.parts.publish(
            name,
            lambda sink: write_part(sink, schema, batches),
            before=lambda: self._point("seal.part_written"),
        )

    def _write_empty(self, sink: BinaryIO) -> None:
        """Write a part without records."""
        write_part(sink, self._types.schema or RECORD_SCHEMA, [])

    def settle(self) -> None:
        """Publish again, with another content, the parts that a writer which lost the output may still write.

        Such a write depends on the part's being as it was, and fails then. Raises StorageError.
        """
        for files in (self.parts, self.archive.files):
            while files.unsettled:
                # If the late write happens just now, the part is read again, as that has left it.
                with suppress(PartChangedError):
                    self._settle(files, files.unsettled[0])

    def _settle(self, files: PartFiles, name: str) -> None:
        try:
            with self._opened(files, name) as reader:
                # The same records would be the same bytes, and a late write would not notice.
                metadata = {**(reader.schema.metadata or {}), _SETTLED: token_hex(8)}
                schema = reader.schema.with_metadata(metadata)
                files.publish(name, partial(write_part, schema=schema, batches=reader.batches()))
        except FileNotFoundError:
            # Its name is taken, so that it cannot be created any more.
            files.publish(name, self._write_empty)
        except DamagedPartError:
            files.set_aside(name, self._write_empty)

    def rows(self) -> int:
        """Return how many records the parts hold."""
        return sum(self.rows_of(name) for name in self.parts.names())

    def rows_of(self, name: str) -> int:
        """Return how many records a part holds, 0 if it is damaged."""
        try:
            with self.part(name) as reader:
                return reader.rows
        except DamagedPartError:
            return 0

    def set_aside(self, error: DamagedPartError, moved: DatasetChange) -> None:
        """Take a damaged part out of the dataset; its rows are open again, as far as they can be told."""
        custom_ids: list[str] = []
        rows = 0
        try:
            with self.part(error.part) as reader:
                rows = reader.rows
                custom_ids = reader.read(["custom_id"]).column("custom_id").to_pylist()
        except DamagedPartError:
            moved.lost += rows
        moved.removed += [(custom_id, False) for custom_id in custom_ids]
        self._before_removal(error.part)
        kept = self.parts.set_aside(error.part, self._write_empty)
        known = "Its 1 record is" if rows == 1 else f"Its {rows:,} records are" if rows else "Its records are"
        moved.messages.append(f"{error}. {known} taken out, and their rows run again. The file is kept as {kept}.")


def _with_status(table: pa.Table) -> list[tuple[str, bool]]:
    oks = pc.equal(table.column("status"), "ok").to_pylist()
    return list(zip(table.column("custom_id").to_pylist(), oks, strict=True))


def _chosen(reader: PartReader, mask: pa.Array) -> Iterator[pa.RecordBatch]:
    """Yield a part's records for which the mask holds, one row group in memory at a time."""
    place = 0
    for batch in reader.batches(rows=ROW_GROUP_ROWS):
        chosen = batch.filter(mask.slice(place, batch.num_rows))
        place += batch.num_rows
        if chosen.num_rows:
            yield chosen
