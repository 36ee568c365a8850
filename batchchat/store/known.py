"""What a pass takes over from the trail of an earlier one: rows whose requests are known, and how each of them stands.

While the parts are loaded, each record is held against the request of the row that it names. Where they are the same
and the record is final, the row's sample is done: the record is marked as seen in the index, and the row's key too, as
if the row had been read and rendered. That is done for a whole part at once; what it leaves is looked up one by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from batchchat.dataclass import dataclass
from batchchat.lazy_arrow import compute as pc
from batchchat.records import Place
from batchchat.store.index import ID_BYTES, SEEN, SKIPPED, SKIPPED_ID, KeyIndex, RecordIndex
from batchchat.store.location.disk import storage_errors
from batchchat.store.trail import NO_KEY, Subject, Tracked, Trail

_WINDOW = 4096
"""Rows that are read at once from the file of identities: 64 KiB of it for each sample."""
_SPARSE = 4
"""How many identities of a range may be read for each that is asked for; a sparser range is not read."""


class Match(NamedTuple):
    """Which records of a table are final ones of known rows; all states, with SEEN at these; their rows' keys."""

    mask: pa.BooleanArray
    states: bytes
    keys: bytes


class KnownBatch(NamedTuple):
    """What is known of consecutive rows: `look` has a byte for each, 0 where there is nothing left to do.

    `identities` are 16 bytes for each sample of each row, `keys` 16 bytes for each row where the job has a key.
    """

    look: bytes
    identities: bytes
    keys: bytes

    def identities_of(self, offset: int, samples: int) -> bytes:
        """Return the identities of a row's samples."""
        size = samples * ID_BYTES
        return self.identities[offset * size : (offset + 1) * size]

    def key_of(self, offset: int) -> bytes:
        """Return the digest of a row's key; NO_KEY if it has none of its own."""
        return self.keys[offset * ID_BYTES : (offset + 1) * ID_BYTES]


class Stretch(NamedTuple):
    """Rows `start` to `stop` of the input, which begin behind a place, or at the beginning."""

    after: Place | None
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Pass:
    """What a pass is about, so that it can take over what an earlier one knew.

    `final` are the states of records that it leaves as they are; `limit` is the number of rows that it takes, None for
    all of them.
    """

    source: Tracked
    subject: Subject
    final: frozenset[int]
    limit: int | None = None

    def known(self, folder: Path, *, writable: bool = True) -> KnownRows:
        """Return what the trail in a folder tells of the rows; where not `writable`, it stays as it is."""
        trail = Trail.open(folder, self.subject, writable=writable)
        trail.keep(self.source)
        return KnownRows(trail, final=self.final, limit=self.limit)


class KnownRows:
    """The rows of a pass, from the first, whose requests a trail tells.

    `final` are the states of records that this pass leaves as they are. `limit` bounds the pass, None where it takes
    all rows. Used in this order: `match` for every part, `look_up` once for what is left, then `stretches` and `batch`.
    `counts` tells how many samples of rows that need no look have each final state, or are SKIPPED.
    """

    def __init__(self, trail: Trail, *, final: frozenset[int], limit: int | None = None) -> None:
        self.trail = trail
        self.samples = trail.subject.samples
        self.rows = trail.rows if limit is None else min(trail.rows, limit)
        self._final = final
        self._final_states = pa.array(sorted(final), pa.uint8())
        self._states = bytearray(self.rows * self.samples)
        self._look = bytes(self.rows)
        self.counts: dict[int, int] = {}

    # ---- what the records tell --------------------------------------------------------------------------------------

    def match(self, table: pa.Table | pa.RecordBatch, identities: bytes, states: bytes) -> Match | None:
        """Find the final records of known rows in a table of live ones, and note that these rows' samples are done.

        None where there are none. Raises StorageError where the trail cannot be read.
        """
        count = len(states)
        kinds = pa.Array.from_buffers(pa.uint8(), count, [None, pa.py_buffer(states)])
        rows, samples = (_whole(table.column(name)).cast(pa.int64()) for name in ("row_index", "sample_index"))
        inside = pc.and_(
            pc.and_(_between(rows, self.rows), _between(samples, self.samples)),
            pc.is_in(kinds, value_set=self._final_states),
        )
        inside = pc.fill_null(inside, False)
        if not inside.true_count:
            return None
        extent = pc.min_max(rows.filter(inside)).as_py()
        low, high = extent["min"], extent["max"] + 1
        if (high - low) * self.samples > _SPARSE * count + _WINDOW:
            return None  # a few rows from everywhere
        expected, keys = self._read(low, high)
        slots = pc.add(pc.multiply(pc.subtract(rows, low), self.samples), samples)
        there = pc.if_else(inside, slots, 0)
        mask = pc.and_(inside, pc.equal(_identities(expected).take(there), _identities(identities)))
        if not mask.true_count:
            return None
        self._note(slots.filter(mask), kinds.filter(mask), low * self.samples)
        marked = pc.if_else(mask, pc.bit_wise_or(kinds, pa.scalar(SEEN, pa.uint8())), kinds)
        return Match(mask, bytes(_raw(marked, 1)), self._keys_of(rows, samples, mask, keys, low))

    def _note(self, slots: pa.Array, kinds: pa.Array, base: int) -> None:
        """Note the states of samples, which are numbered from `base` on."""
        count = len(slots)
        extent, kind = pc.min_max(slots).as_py(), pc.min_max(kinds).as_py()
        first = extent["min"] + base
        whole = extent["max"] - extent["min"] + 1 == count == pc.count_distinct(slots).as_py()
        if whole and kind["min"] == kind["max"]:
            self._states[first : first + count] = bytes((kind["min"],)) * count
            return
        states = self._states
        for slot, state in zip(slots.to_pylist(), kinds.to_pylist(), strict=True):
            states[base + slot] = state

    def _keys_of(self, rows: pa.Array, samples: pa.Array, mask: pa.Array, keys: bytes, low: int) -> bytes:
        """The digests of the keys of rows whose first sample is in the mask."""
        if not self.trail.subject.keyed:
            return b""
        firsts = pc.subtract(rows.filter(pc.and_(mask, pc.equal(samples, 0))), low)
        found = _identities(keys).take(firsts)
        return bytes(_raw(found.filter(pc.not_equal(found, pa.scalar(NO_KEY, pa.binary(ID_BYTES)))), ID_BYTES))

    def forget(self, row_index: int | None = None, sample_index: int = 0) -> None:
        """Take back what `match` noted, of one sample or of all: their records have changed since."""
        if row_index is None:
            self._states = bytearray(len(self._states))
        elif 0 <= row_index < self.rows and 0 <= sample_index < self.samples:
            self._states[row_index * self.samples + sample_index] = 0

    def look_up(self, index: RecordIndex, keys: KeyIndex | None) -> None:
        """Look up what no part told, and mark what is final as seen.

        A row all of whose samples are final needs no look. Raises StorageError where the trail cannot be read.
        """
        look = bytearray(self.rows)
        states, samples = self._states, self.samples
        for start, identities, row_keys in self._windows():
            for slot in _places(states, 0, start * samples, min(start + _WINDOW, self.rows) * samples):
                place = slot - start * samples
                identity = identities[place * ID_BYTES : (place + 1) * ID_BYTES]
                skipped = identity == SKIPPED_ID
                states[slot] = SKIPPED if skipped else index.mark_final(identity, self._final)
                row = slot // samples
                if not states[slot]:
                    look[row] = 1
                elif keys is not None and slot % samples == 0:
                    key = row_keys[(row - start) * ID_BYTES : (row - start + 1) * ID_BYTES]
                    if key != NO_KEY:
                        keys.mark_seen(key)
        counts = {state: states.count(state) for state in (*self._final, SKIPPED)}
        for row in _places(look, 1, 0, len(look)):
            for state in states[row * samples : (row + 1) * samples]:
                if state:
                    counts[state] -= 1
        self._look, self._states = bytes(look), bytearray()
        self.counts = counts

    def _windows(self) -> Iterator[tuple[int, bytes, bytes]]:
        """Windows of rows in which some sample's state is unknown, with their identities and keys."""
        for start in range(0, self.rows, _WINDOW):
            stop = min(start + _WINDOW, self.rows)
            if self._states.find(0, start * self.samples, stop * self.samples) >= 0:
                yield start, *self._read(start, stop)

    # ---- what the pass asks -----------------------------------------------------------------------------------------

    @property
    def passed_over(self) -> int:
        """How many of the known rows need no look."""
        return self._look.count(0)

    def batch(self, start: int, stop: int) -> KnownBatch | None:
        """Return what is known of rows `start` to `stop`; None if nothing is. Blocking code."""
        stop = min(stop, self.rows)
        if start >= stop:
            return None
        return KnownBatch(self._look[start:stop], *self._read(start, stop))

    def stretches(self, *, apart: bool) -> Iterator[Stretch]:
        """Stretches of rows to read, since some of them need a look; one for all where they cannot be read `apart`."""
        open_: Stretch | None = None
        start, after = 0, None
        for batch in self.trail.batches:
            stop = min(batch.rows, self.rows)
            if self._look.find(1, start, stop) >= 0:
                if open_ is not None and apart and open_.stop < start:
                    yield open_
                    open_ = None
                open_ = Stretch(after, start, stop) if open_ is None else open_._replace(stop=stop)
            start, after = stop, batch.place
        if open_ is not None:
            yield open_

    def _read(self, start: int, stop: int) -> tuple[bytes, bytes]:
        with storage_errors(self.trail.path):
            return self.trail.read(start, stop)


def _whole(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _identities(data: bytes) -> pa.Array:
    return pa.Array.from_buffers(pa.binary(ID_BYTES), len(data) // ID_BYTES, [None, pa.py_buffer(data)])


def _raw(array: pa.Array, size: int) -> memoryview:
    """The values of an array without nulls, `size` bytes each."""
    return memoryview(array.buffers()[1] or b"")[array.offset * size : (array.offset + len(array)) * size]


def _places(data: bytes | bytearray, value: int, start: int, stop: int) -> Iterator[int]:
    place = data.find(value, start, stop)
    while place >= 0:
        yield place
        place = data.find(value, place + 1, stop)


def _between(values: pa.Array, end: int) -> pa.Array:
    return pc.and_(pc.greater_equal(values, 0), pc.less(values, end))
