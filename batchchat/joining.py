"""Records and the rows of today: which record answers which row of the input as it is now.

A record belongs to a row if it answers the request that the job as it is now makes of the row as it is now. The
`custom_id` alone tells that. So the answer to an earlier prompt never counts, and nothing but the identities is in
memory. Blocking code.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from hashlib import blake2b
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from batchchat.intake import Intake
from batchchat.records import RowBatch
from batchchat.store import Output

_ID_BYTES = 16
_BLOCKS_KEPT = 4
"""Parts in memory at once. Records come nearly in the order of the rows, so one part follows another."""
_SLICE = 512
"""Rows that are rendered at once: chosen, not measured."""

Positions = NDArray[np.int64]


class Identities:
    """The `custom_id` of each sample of each row, in their order; finds the positions of records' identities.

    `digest` tells all of them from those of another job.
    """

    def __init__(self, digests: bytes | bytearray) -> None:
        self.columns = frozenset({"custom_id"})
        self.digest = blake2b(digests, digest_size=16).digest()
        halves = np.frombuffer(digests, dtype=np.uint64).reshape(-1, 2)
        self._order = np.argsort(halves[:, 0], kind="stable").astype(np.int64)
        self._first, self._second = halves[self._order, 0], halves[self._order, 1]

    def locate(self, batch: pa.RecordBatch) -> Positions:
        """Return the position of each record of a batch, -1 for one that answers no row as it is now."""
        return self.find(batch.column("custom_id"))

    def find(self, custom_ids: pa.Array) -> Positions:
        """Return the position of each identity, -1 if it is none of these."""
        halves = as_halves(custom_ids)
        found = np.full(len(halves), -1, dtype=np.int64)
        if not len(self._order):
            return found
        place = np.searchsorted(self._first, halves[:, 0])
        # Halves of 64 bits practically never repeat; where they do, the next ones are looked at.
        open_ = np.arange(len(halves))
        while open_.size:
            open_ = open_[place[open_] < self._first.size]
            open_ = open_[self._first[place[open_]] == halves[open_, 0]]
            same = self._second[place[open_]] == halves[open_, 1]
            found[open_[same]] = self._order[place[open_[same]]]
            open_ = open_[~same]
            place[open_] += 1
        return found


_NIBBLES = np.zeros(256, dtype=np.uint8)
for _value, _digit in enumerate(b"0123456789abcdef"):
    _NIBBLES[_digit] = _value


def as_halves(custom_ids: pa.Array) -> NDArray[np.uint64]:
    """Return identities of 32 hexadecimal digits as pairs of 64 bits."""
    text = "".join(custom_ids.to_pylist()).encode()
    digits = _NIBBLES[np.frombuffer(text, dtype=np.uint8)].reshape(-1, 2)
    return (digits[:, 0] << 4 | digits[:, 1]).reshape(-1, _ID_BYTES).view(np.uint64)


class Finder(Protocol):
    """Finds the positions of records, by the columns that it names; -1 for one that has none."""

    columns: frozenset[str]

    def locate(self, batch: pa.RecordBatch) -> Positions:
        """Return the position of each record of a batch."""
        ...


def current_records(
    output: Output, finder: Finder, columns: frozenset[str] | None
) -> Iterator[tuple[Positions, pa.RecordBatch, int]]:
    """Yield the records that have a position, with it, and how many of their batch have none.

    `columns` are those wanted, None for all; one that the output does not have is left out. Raises StorageError where a
    part is damaged.
    """
    names: list[str] | None = None
    if output.schema is not None and columns is not None:
        names = [name for name in output.schema.names if name in columns or name in finder.columns]
    for batch in output.records(names):
        positions = finder.locate(batch)
        current = positions >= 0
        stale = len(current) - int(current.sum())
        if not stale:
            yield positions, batch, 0
        else:
            yield positions[current], batch.filter(pa.array(current)), stale


def records_of_rows(batches: Iterator[RowBatch], intake: Intake, output: Output) -> Iterator[pa.RecordBatch]:
    """Yield the records of the rows that have one, in the order of the rows, with all columns of the output.

    The input's columns, `row_index` and `source` are those of the row of today.
    Raises StorageError if a part is damaged.
    """
    schema = output.schema
    if schema is None:
        return
    records = _StoredRecords(output)
    own = output.own_columns
    carried = [name for name in schema.names if name not in own]
    for batch in batches:
        for found in intake.slices(batch, _SLICE):
            rows = [(request.offset, request.sample_index, request.custom_id) for request in found.requests]
            rows += [(invalid.offset, invalid.sample_index, invalid.custom_id) for invalid in found.invalid]
            rows.sort()
            places, outcome = records.find([custom_id for _, _, custom_id in rows], own)
            if not places:
                continue
            offsets = [rows[place][0] for place in places]
            columns = batch.columns.take(pa.array(offsets, pa.int64()))
            arrays = {name: columns.column(name) for name in carried}
            arrays |= {name: outcome.column(name).combine_chunks() for name in own}
            arrays["row_index"] = pa.array([batch.first_index + offset for offset in offsets], pa.int64())
            arrays["source"] = pa.array([batch.source] * len(offsets), pa.string())
            yield pa.RecordBatch.from_arrays([arrays[field.name].cast(field.type) for field in schema], schema=schema)


class _StoredRecords:
    """The records of an output by `custom_id`: identities in memory, contents part by part as they are asked for."""

    def __init__(self, output: Output) -> None:
        self._starts: list[int] = []
        self._loaded: OrderedDict[int, pa.Table] = OrderedDict()
        # What is only in the journal comes first: of two records with one identity it is the newer.
        self._blocks: list[Callable[[], pa.Table]] = []
        pending = output.pending
        if pending is not None:
            self._blocks.append(lambda: pending)
        self._blocks += [partial(output.read_part, name) for name in output.part_names()]
        digests = bytearray()
        for block in self._blocks:
            self._starts.append(len(digests) // _ID_BYTES)
            digests += bytes.fromhex("".join(block().column("custom_id").to_pylist()))
        self._ids = Identities(digests)

    def find(self, custom_ids: Sequence[str], columns: Sequence[str]) -> tuple[list[int], pa.Table]:
        """Return the places of those identities that have a record, and the records' own columns in the same order."""
        places = self._ids.find(pa.array(custom_ids, pa.string())).tolist() if custom_ids else []
        by_block: dict[int, list[tuple[int, int]]] = {}
        for number, place in enumerate(places):
            if place >= 0:
                block = bisect_right(self._starts, place) - 1
                by_block.setdefault(block, []).append((number, place - self._starts[block]))
        tables, numbers = [], []
        for block, found in by_block.items():
            taken = pa.array([place for _, place in found], pa.int64())
            tables.append(self._load(block).select(list(columns)).take(taken))
            numbers += [number for number, _ in found]
        if not tables:
            return [], pa.table({})
        order = sorted(range(len(numbers)), key=numbers.__getitem__)
        return [numbers[place] for place in order], pa.concat_tables(tables).take(pa.array(order, pa.int64()))

    def _load(self, block: int) -> pa.Table:
        table = self._loaded.pop(block, None)
        if table is None:
            table = self._blocks[block]()
            while len(self._loaded) >= _BLOCKS_KEPT:
                self._loaded.popitem(last=False)
        self._loaded[block] = table
        return table
