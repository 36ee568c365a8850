"""The identities of stored records, read into the indexes of a run."""

from __future__ import annotations

from binascii import unhexlify
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from batchchat.records import ErrorKind
from batchchat.store.index import ID_BYTES, KEY_LIVE, OK, SEEN, KeyIndex, RecordIndex, key_digest, state_of
from batchchat.store.known import KnownRows
from batchchat.store.parts import sample_keys

INDEXED = ("custom_id", "status", "error_kind", "row_index", "sample_index")
"""The columns that the indexes are loaded from."""

_LOADED_AT_ONCE = 150_000


def latest(table: pa.Table) -> pa.Table:
    """Return a table with the last record of each identity."""
    custom_ids = table.column("custom_id")
    if pc.count_distinct(custom_ids).as_py() == table.num_rows:
        return table
    places = {custom_id: place for place, custom_id in enumerate(custom_ids.to_pylist())}
    return table.take(pa.array(sorted(places.values()), pa.int64()))


def newest_of_keys(table: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Return the last record of each key and sample, and all of no key; and those that these supersede."""
    keys = combined(sample_keys(table))
    if pc.count_distinct(keys).as_py() == len(keys) - keys.null_count:
        return table, table.slice(0, 0)
    last = {key: place for place, key in enumerate(keys.to_pylist()) if key is not None}
    stays = pa.array([key is None or last[key] == place for place, key in enumerate(keys.to_pylist())], pa.bool_())
    return table.filter(stays), table.filter(pc.invert(stays))


def identities(table: pa.Table) -> Iterator[tuple[str, str, int | None]]:
    """Yield what tells one record from another of the same request: identity, run, end in microseconds."""
    return zip(
        table.column("custom_id").to_pylist(),
        table.column("run_id").to_pylist(),
        pc.cast(table.column("finished_at"), pa.int64()).to_pylist(),
        strict=True,
    )


def combined(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Return a column as one array."""
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


_KIND_NAMES = pa.array([kind.value for kind in ErrorKind], pa.string())


_KIND_STATES = pa.array([state_of("failed", kind.value) for kind in ErrorKind], pa.uint8())


class IndexLoader:
    """Loads live records into the indexes: many at once, since what is sorted together costs less.

    Final records of `known` rows are loaded as seen by this pass. Nothing is in the indexes for sure before `finish`.
    """

    def __init__(self, index: RecordIndex, keys: KeyIndex | None, known: KnownRows | None = None) -> None:
        self._index = index
        self._keys = keys
        self._known = known
        self._waiting: list[tuple[bytes, bytes]] = []
        self._waiting_keys: list[tuple[bytes, bytes]] = []
        self._rows = 0

    def add(self, table: pa.Table | pa.RecordBatch, texts: pa.ChunkedArray | pa.Array | None) -> None:
        """Take records; `texts` are their keys. Raises ValueError, with none taken, on a bad `custom_id`."""
        identities, states = identity_states(table)
        match = None if self._known is None else self._known.match(table, identities, states)
        self._waiting.append((identities, states if match is None else match.states))
        self._rows += len(states)
        if self._keys is not None and texts is not None:
            samples = table.column("sample_index")
            if match is not None:
                self._waiting_keys.append((match.keys, bytes((KEY_LIVE | SEEN,)) * (len(match.keys) // ID_BYTES)))
                rest = pc.invert(pc.fill_null(pc.and_(match.mask, pc.equal(combined(samples), 0)), False))
                texts, samples = texts.filter(rest), samples.filter(rest)
            digests = [
                key_digest(key, sample)
                for key, sample in zip(texts.to_pylist(), samples.to_pylist(), strict=True)
                if key is not None
            ]
            self._waiting_keys.append((b"".join(digests), bytes((KEY_LIVE,)) * len(digests)))
        if self._rows >= _LOADED_AT_ONCE:
            self.finish()

    def finish(self) -> None:
        """Load what was taken."""
        for index, waiting in ((self._index, self._waiting), (self._keys, self._waiting_keys)):
            if index is not None and waiting:
                identities, states = (b"".join(pieces) for pieces in zip(*waiting, strict=True))
                index.load(identities, states)
            waiting.clear()
        self._rows = 0


def identity_states(table: pa.Table | pa.RecordBatch) -> tuple[bytes, bytes]:
    """Return the identities of records, 16 bytes each, and one state byte each. Raises ValueError on others."""
    column = combined(table.column("custom_id"))
    try:
        digits = bytes(_fixed_size(column, 2 * ID_BYTES))
    except pa.ArrowInvalid:
        digits = b"?"
    if column.null_count or digits.translate(None, b"0123456789abcdef"):
        raise ValueError("it holds records without a proper custom_id")
    unknown = state_of("failed", None)
    kinds = pc.index_in(combined(table.column("error_kind")), value_set=_KIND_NAMES)
    failed = pc.fill_null(pc.take(_KIND_STATES, kinds), pa.scalar(unknown, pa.uint8()))
    is_ok = pc.fill_null(pc.equal(combined(table.column("status")), "ok"), False)
    states = pc.if_else(is_ok, pa.scalar(OK, pa.uint8()), failed)
    return unhexlify(digits), bytes(_fixed_size(states.view(pa.binary(1)), 1))


def _fixed_size(array: pa.Array, size: int) -> memoryview:
    """The values of an array, `size` bytes each, in one piece. ArrowInvalid where one has another size."""
    values = array if array.type == pa.binary(size) else array.cast(pa.binary(size))
    start = values.offset * size
    return memoryview(values.buffers()[1] or b"")[start : start + len(values) * size]
