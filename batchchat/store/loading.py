"""The identities of stored records, read into the indexes of a run: of every part, and of the archive."""

from __future__ import annotations

from binascii import unhexlify
from collections.abc import Callable

import pyarrow as pa

from batchchat.lazy_arrow import compute as pc
from batchchat.records import ErrorKind
from batchchat.store.dataset import Dataset, DatasetChange
from batchchat.store.index import ID_BYTES, KEY_LIVE, OK, SEEN, KeyIndex, RecordIndex, key_digest, state_of
from batchchat.store.known import KnownRows
from batchchat.store.parts import DamagedPartError, PartReader, combined
from batchchat.store.schema import RECORD_SCHEMA

INDEXED = ("custom_id", "status", "error_kind", "row_index", "sample_index")
"""The columns that the indexes are loaded from."""

_LOADED_AT_ONCE = 150_000
"""Records that are sorted into the indexes together: three parts of the usual size. More would take more memory."""


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
        # As wrong as any other text: the check below says it.
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


def load_dataset(
    dataset: Dataset, index: RecordIndex, keys: KeyIndex | None, known: KnownRows | None = None
) -> DatasetChange:
    """Read the identities of every part into the indexes, and those of the archive's completions.

    Final records of `known` rows are loaded as seen by this pass.
    A part that cannot be read is set aside: its rows are open again, and `messages` of the change says so.
    """
    moved = DatasetChange()
    _look_at_reported(dataset, moved)
    rows = dataset.rows()
    index.reserve(rows)
    if keys is not None:
        keys.reserve(rows)
    loader = IndexLoader(index, keys, known)
    for name in dataset.parts.names():
        try:
            _load_part(dataset, name, loader, with_keys=keys is not None)
        # Its rows are asked again. To stop here would keep all other rows from going on.
        except DamagedPartError as error:
            dataset.set_aside(error, moved)
    loader.finish()
    for name in dataset.archive.files.names():
        try:
            completions = dataset.archive.completions(name)
        # An archive holds no live record: nothing but cheap returns to an earlier prompt is lost.
        except DamagedPartError as error:
            moved.messages.append(dataset.archive.set_aside(error))
            continue
        for custom_id in completions:
            index.add_archived(custom_id)
    return moved


def _load_part(dataset: Dataset, name: str, loader: IndexLoader, *, with_keys: bool) -> None:
    """Give a part's identities to the loader. Raises DamagedPartError, with none of them loaded."""
    with dataset.part(name) as reader:
        table = reader.read(INDEXED)
        _check_types(name, table)
        texts = None
        if with_keys:
            key_table = reader.read(["key"])
            _check_types(name, key_table)
            texts = key_table.column(0)
        if reader.older:
            dataset.older.add(name)
    try:
        loader.add(table, texts)
    # A file of this form that was not written by this package is no part, whatever its footer says.
    except ValueError as error:
        raise DamagedPartError(name, str(error)) from error


def _look_at_reported(dataset: Dataset, moved: DatasetChange) -> None:
    """Read the files wholly that a reader found damaged, in whatever column, and set aside those that are."""
    for name in dataset.parts.reported():
        error = _damage_in(dataset.part, name)
        if error is not None:
            dataset.set_aside(error, moved)
        dataset.parts.forget(name)
    archive = dataset.archive
    for name in archive.files.reported():
        error = _damage_in(archive.opened, name)
        if error is not None:
            moved.messages.append(archive.set_aside(error))
        archive.files.forget(name)


def _damage_in(opened: Callable[[str], PartReader], name: str) -> DamagedPartError | None:
    """Read a file wholly; return its damage, None if it is well or gone."""
    try:
        with opened(name) as reader:
            for _ in reader.batches():
                pass
    except FileNotFoundError:
        return None
    except DamagedPartError as error:
        return error
    return None


def _check_types(name: str, table: pa.Table) -> None:
    """Check that columns have the output's types: a file that somebody else wrote is no part."""
    for field in table.schema:
        if field.type != RECORD_SCHEMA.field(field.name).type:
            raise DamagedPartError(name, f"its column {field.name} is of type {field.type}")
