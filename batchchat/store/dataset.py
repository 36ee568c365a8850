"""The dataset of an output: its live parts, and the archive of records that left it.

Every step keeps two promises. A reader may miss a record for a moment, but never meets two of one row: superseded
records leave before their successors appear. And a crash between any two steps loses nothing: what leaves is in the
archive first, and what appears is still in the journal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc

from batchchat.store.archive import ArchiveReader
from batchchat.store.index import KeyIndex, RecordIndex
from batchchat.store.known import KnownRows
from batchchat.store.loading import INDEXED, IndexLoader, combined, identities, latest, newest_of_keys
from batchchat.store.location.port import PartFiles, part_number
from batchchat.store.parts import (
    ROW_GROUP_ROWS,
    SORT_KEYS,
    DamagedPartError,
    PartReader,
    in_order,
    sample_keys,
    sort_order,
    write_part,
)
from batchchat.store.schema import RECORD_SCHEMA, same_types

Point = Callable[[str], None]
"""Called with the name of a step that is just done; tests stop the process there."""


def _nothing(_: str) -> None:
    return None


_IDENTITY = ("custom_id", "run_id", "finished_at")


@dataclass(slots=True)
class Moved:
    """What a seal or a pruning took out of the dataset.

    `removed` are identities without a live record now, each with whether the archive holds its completion;
    `lost` counts records of damaged parts whose identities could not even be read.
    """

    removed: list[tuple[str, bool]] = field(default_factory=list)
    lost: int = 0
    messages: list[str] = field(default_factory=list)


class Dataset:
    """Parts and archive behind their ports. Used by one thread at a time; `fetch_archived` may run beside it.

    `schema` is the output's, None before the first freeze, when there is no part. Parts that an earlier version wrote,
    or an earlier run without `parsed`, are completed before the next part is published: all have the same columns.
    `before_removal` is called with the name of a file that is going to be removed or set aside.
    """

    def __init__(
        self,
        parts: PartFiles,
        archive: PartFiles,
        *,
        part_rows: int,
        part_bytes: int,
        point: Point,
        before_removal: Point = _nothing,
    ) -> None:
        self._before_removal = before_removal
        self.parts = parts
        self.archive = archive
        self._part_rows = part_rows
        self._part_bytes = part_bytes
        self._point = point
        self._older: set[str] = set()
        self._archive_reader = ArchiveReader(archive, self.archived)
        self.schema: pa.Schema | None = None

    def part(self, name: str) -> PartReader:
        """Open a part, with the output's columns. Raises DamagedPartError, FileNotFoundError, StorageError."""
        return PartReader(self.parts, name, self.schema)

    def archived(self, name: str) -> PartReader:
        """Open a file of the archive, with the output's columns. Raises as `part`."""
        return PartReader(self.archive, name, self.schema)

    # ---- loading ----------------------------------------------------------------------------------------------------

    def load(self, index: RecordIndex, keys: KeyIndex | None, known: KnownRows | None = None) -> Moved:
        """Read every part's identities into the indexes, and what the archive can give back.

        Final records of `known` rows are loaded as seen by this pass.
        A part that cannot be read is set aside: its rows are open again, and `messages` says so.
        """
        moved = Moved()
        self._look_at_reported(moved)
        rows = sum(self._rows(name) for name in self.parts.names())
        index.reserve(rows)
        if keys is not None:
            keys.reserve(rows)
        loader = IndexLoader(index, keys, known)
        for name in self.parts.names():
            try:
                with self.part(name) as reader:
                    table = reader.read(INDEXED)
                    _expect(name, table)
                    texts = None
                    if keys is not None:
                        key_table = reader.read(["key"])
                        _expect(name, key_table)
                        texts = key_table.column(0)
                    if reader.older:
                        self._older.add(name)
                try:
                    loader.add(table, texts)
                except ValueError as error:
                    raise DamagedPartError(name, str(error)) from error
            except DamagedPartError as error:
                self._set_aside(error, moved)
        loader.finish()
        for name in self.archive.names():
            try:
                with self.archived(name) as reader:
                    table = reader.read(["custom_id", "status"])
            except DamagedPartError as error:
                moved.messages.append(self._archive_aside(error))
                continue
            for custom_id in table.filter(pc.equal(table.column("status"), "ok")).column("custom_id").to_pylist():
                index.add_archived(custom_id)
        return moved

    def _look_at_reported(self, moved: Moved) -> None:
        """Read the files wholly that a reader found damaged, in whatever column, and set aside those that are."""
        for files, opened in ((self.parts, self.part), (self.archive, self.archived)):
            for name in files.reported():
                try:
                    with opened(name) as reader:
                        for _ in reader.batches():
                            pass
                except FileNotFoundError:
                    pass
                except DamagedPartError as error:
                    if files is self.parts:
                        self._set_aside(error, moved)
                    else:
                        moved.messages.append(self._archive_aside(error))
                files.forget(name)

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

    def seal(self, table: pa.Table, *, by_id: bool, by_key: bool, late: pa.Table | None = None) -> Moved:
        """Publish records; those that they supersede go to the archive first, and so do `late` ones.

        `by_id` and `by_key` tell whether any live record may have to leave because a new one has the same identity, or
        the same key and sample under another identity. Raises StorageError.
        """
        moved = Moved()
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
        number = part_number(last) + 1 if last else 0
        for name in [name for name in leaving if name != last]:
            self._rewrite(name, leaving[name], moved)
        self._point("seal.rewritten")
        if table.num_rows:
            order = sort_order(table)
            if last is not None:
                order = self._grow(last, table, order, leaving.get(last), moved)
            row_bytes = max(1, table.nbytes // table.num_rows)
            step = max(1, min(self._part_rows, self._part_bytes // row_bytes))
            for start in range(0, len(order), step):
                self._write(f"part-{number:05d}.parquet", table.schema, in_order(table, order.slice(start, step)))
                number += 1
        elif last in leaving:
            self._rewrite(last, leaving[last], moved)
        self._point("seal.published")
        return moved

    def prune(self, leaves: Callable[[str], bool]) -> Moved:
        """Move every live record whose identity `leaves` names to the archive."""

        def mask(reader: PartReader) -> pa.Array:
            custom_ids = reader.read(["custom_id"]).column("custom_id").to_pylist()
            return pa.array(map(leaves, custom_ids), pa.bool_())

        return self._take_out(mask)

    def prune_samples(self, samples: int) -> Moved:
        """Move every live record with a `sample_index` of `samples` or more to the archive."""

        def mask(reader: PartReader) -> pa.Array:
            return combined(pc.greater_equal(reader.read(["sample_index"]).column("sample_index"), samples))

        return self._take_out(mask)

    def _take_out(self, mask_of: Callable[[PartReader], pa.Array]) -> Moved:
        """Move the records that each part's mask names to the archive."""
        moved = Moved()
        leaving: dict[str, pa.Array] = {}
        for name in self.parts.names():
            try:
                with self.part(name) as reader:
                    mask = mask_of(reader)
                    if mask.true_count:
                        moved.removed += _with_status(reader.read(["custom_id", "status"]).filter(mask))
                        leaving[name] = mask
            except DamagedPartError as error:
                self._set_aside(error, moved)
        self._archive(leaving, moved)
        self._point("seal.archived")
        for name, mask in leaving.items():
            self._rewrite(name, mask, moved)
        self._point("seal.rewritten")
        return moved

    def _superseded(self, table: pa.Table, moved: Moved, *, by_key: bool) -> dict[str, pa.Array]:
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
                self._set_aside(error, moved)
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

    def _archive(self, leaving: dict[str, pa.Array], moved: Moved, directly: Sequence[pa.Table] = ()) -> None:
        """Copy the records that leave into the archive: its last file grows, as parts do, or a new one begins.

        Those of `directly` have never been in a part. A part found damaged is set aside instead.
        """
        while leaving or directly:
            more = sum(mask.true_count for mask in leaving.values()) + sum(table.num_rows for table in directly)
            name, grows = self._archive_file(more)
            if leaving:
                with self.part(next(iter(leaving))) as reader:
                    schema = reader.schema
            else:
                schema = directly[0].schema

            def write(sink: BinaryIO, name: str = name, grows: bool = grows, schema: pa.Schema = schema) -> None:
                old = self._whole(name) if grows else ()
                write_part(sink, schema, chain(old, self._selected(leaving), directly))

            try:
                self.archive.publish(name, write)
            except DamagedPartError as error:
                if error.part == name:
                    moved.messages.append(self._archive_aside(error))
                else:
                    del leaving[error.part]
                    self._set_aside(error, moved)
            else:
                return

    def _archive_file(self, more: int) -> tuple[str, bool]:
        """Return the archive file that takes `more` records, and whether it has some already."""
        names = self.archive.names()
        if not names:
            return "archive-00000.arc", False
        try:
            with self.archived(names[-1]) as reader:
                if reader.rows + more <= self._part_rows and reader.raw_bytes < self._part_bytes:
                    return names[-1], True
        except DamagedPartError:
            pass  # told and set aside by the next start
        return f"archive-{part_number(names[-1]) + 1:05d}.arc", False

    def _rewrite(self, name: str, mask: pa.Array, moved: Moved) -> None:
        """Publish a part again without the records of the mask; remove it where none is left."""
        if mask.true_count == len(mask):
            self._before_removal(name)
            self.parts.remove(name)
            return
        try:
            with self.part(name) as reader:
                self._write(name, reader.schema, _chosen(reader, pc.invert(mask)))
        except DamagedPartError as error:
            self._set_aside(error, moved)

    def _grow(self, name: str, table: pa.Table, order: pa.Array, mask: pa.Array | None, moved: Moved) -> pa.Array:
        """Publish the last part again with as many new records as it has room for; return the order of the rest.

        Old records stay in their part: were they moved, a crash between two publications would lose them.
        """
        try:
            with self.part(name) as reader:
                kept = reader.rows - (mask.true_count if mask is not None else 0)
                fits = kept < self._part_rows and reader.raw_bytes < self._part_bytes
                # The file's own size says little of records that repeat one another: they are counted as they are read.
                old = reader.read_within(self._part_bytes) if fits and same_types(reader.schema, table.schema) else None
        except DamagedPartError as error:
            self._set_aside(error, moved)
            return order
        room = 0
        if old is not None:
            if mask is not None:
                old = old.filter(pc.invert(mask))
            row_bytes = max(1, table.nbytes // table.num_rows)
            room = min(self._part_rows - kept, (self._part_bytes - old.nbytes) // row_bytes)
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

    def _complete_older(self, moved: Moved) -> None:
        """Publish again, with all columns, the parts that lack some."""
        for name in sorted(self._older.intersection(self.parts.names())):
            try:
                with self.part(name) as reader:
                    self._write(name, reader.schema, reader.batches())
            except DamagedPartError as error:
                self._set_aside(error, moved)
        self._older.clear()

    def _whole(self, name: str) -> Iterator[pa.RecordBatch]:
        with self.archived(name) as reader:
            yield from reader.batches()

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

    def rows(self) -> int:
        """Return how many records the parts hold."""
        return sum(self._rows(name) for name in self.parts.names())

    def _rows(self, name: str) -> int:
        try:
            with self.part(name) as reader:
                return reader.rows
        except DamagedPartError:
            return 0

    def _set_aside(self, error: DamagedPartError, moved: Moved) -> None:
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
        kept = self.parts.set_aside(error.part)
        known = "Its 1 record is" if rows == 1 else f"Its {rows:,} records are" if rows else "Its records are"
        moved.messages.append(f"{error}. {known} taken out, and their rows run again. The file is kept as {kept}.")

    def _archive_aside(self, error: DamagedPartError) -> str:
        """Take a damaged file out of the archive, and say so."""
        self._before_removal(error.part)
        kept = self.archive.set_aside(error.part)
        return f"{error}. What it gave back is asked for again when it is wanted. The file is kept as {kept}."

    # ---- the archive ------------------------------------------------------------------------------------------------

    def fetch_archived(self, custom_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Return the output's own columns of archived completions, by `custom_id`."""
        return self._archive_reader.fetch(custom_ids)


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


def _expect(name: str, table: pa.Table) -> None:
    """Check that columns have the output's types: a file that somebody else wrote is no part."""
    for field_ in table.schema:
        if field_.type != RECORD_SCHEMA.field(field_.name).type:
            raise DamagedPartError(name, f"its column {field_.name} is of type {field_.type}")
