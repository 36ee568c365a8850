"""Records and the rows of today: which record answers which row of the input as it is now.

A record belongs to a row if it answers the request that the job as it is now makes of the row as it is now. The
`custom_id` alone tells that. So the answer to an earlier prompt never counts, and nothing but the identities is in
memory. Blocking code.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from hashlib import blake2b

import pyarrow as pa

from batchchat import lazy_arrow
from batchchat.intake import Intake
from batchchat.records import RowBatch
from batchchat.store import Output

_ID_BYTES = 16
_BLOCKS_KEPT = 4
"""Parts in memory at once. Records come nearly in the order of the rows, so one part follows another."""
_SLICE = 512
"""Rows that are rendered at once: chosen, not measured."""


class Identities:
    """The `custom_id` of each sample of each row, in their order; finds the positions of records' identities.

    Built of the standard library and Arrow alone: an export needs it, and numpy comes with an extra. 24 bytes each.
    `digest` tells all of them from those of another job.
    """

    def __init__(self, digests: bytes | bytearray) -> None:
        self.columns = frozenset({"custom_id"})
        self.digest = blake2b(digests, digest_size=16).digest()
        first, second = _halves(digests)
        numbers = pa.Array.from_buffers(pa.uint64(), len(first), [None, pa.py_buffer(first)])
        # Stable: of two records with one identity, the first one is found.
        order = lazy_arrow.call("array_sort_indices", numbers)
        self._order = array("Q", order.buffers()[1].to_pybytes()[: 8 * len(first)])
        self._first = array("Q", [first[place] for place in self._order])
        self._second = array("Q", [second[place] for place in self._order])

    def locate(self, batch: pa.RecordBatch) -> array[int]:
        """Return the position of each record of a batch, -1 for one that answers no row as it is now."""
        return self.find(batch.column("custom_id"))

    def find(self, custom_ids: pa.Array) -> array[int]:
        """Return the position of each identity of 32 hexadecimal digits, -1 if it is none of these."""
        first, second = self._first, self._second
        found = array("q")
        for one, other in zip(*_halves(bytes.fromhex("".join(custom_ids.to_pylist()))), strict=True):
            place = bisect_left(first, one)
            # Halves of 64 bits practically never repeat; where they do, the next ones are looked at.
            while place < len(first) and first[place] == one and second[place] != other:
                place += 1
            same = place < len(first) and first[place] == one
            found.append(self._order[place] if same else -1)
        return found


def _halves(digests: bytes | bytearray) -> tuple[array[int], array[int]]:
    """Return the halves of identities of 16 bytes as numbers: of all the first ones, and of all the second ones."""
    numbers = array("Q", bytes(digests))
    return numbers[0::2], numbers[1::2]


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
        places = self._ids.find(pa.array(custom_ids, pa.string())) if custom_ids else ()
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
