"""What is done already, told by 16-byte identities, in about 20 bytes a row.

Both indexes stand on one table: an extendible set of small buckets, each a bytearray of 16-byte identities, searched
with `bytearray.find`, and beside it a bytearray of their states. The table grows by one bucket at a time (linear
hashing, Litwin 1980), so that no insertion ever stalls the event loop while millions of entries move. What earlier runs
left is loaded in bulk, sorted into buckets by Arrow.

No index is locked: it is read and changed by one thread at a time, which is the caller's event loop during a run.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Container, Iterator
from dataclasses import field

import pyarrow as pa

from batchchat.dataclass import dataclass
from batchchat.lazy_arrow import compute as pc
from batchchat.records import ErrorKind

ID_BYTES = 16
"""Bytes of a `custom_id`."""
BUCKET_ENTRIES = 64
"""Entries of a bucket on average: few to look through, and few enough buckets to make. Chosen, not measured."""

NONE = 0
"""No live record and nothing archived."""
OK = 1
"""The live record is a completion."""
ARCHIVED = 16
"""No live record, but the archive holds a completion for this identity."""
SKIPPED = 32
"""No record is wanted: the job's `skip` is true of the row. Stands in no index, only in what is known of rows."""
SKIPPED_ID = b"\xff" * ID_BYTES
"""The identity of the samples of a skipped row, which has no request."""

KEY_LIVE = 1
"""The state of a key that a live record has."""
SEEN = 0x80
"""Set in a state byte where the pass that is under way has asked for the record, or for the key."""

_KINDS: tuple[ErrorKind, ...] = tuple(ErrorKind)
_FIRST_FAILED = 2
"""States from here on are kinds of failures, in the order of `ErrorKind`; 0 and 1 are `NONE` and `OK`."""
_KIND = 0x0F
"""The bits of a state that tell the kind; those above are `ARCHIVED`, `SKIPPED` and `SEEN`."""
_ARCHIVED_OR_SEEN = ~_KIND & 0xFF
_digest: Callable[[bytes], tuple[int]] = struct.Struct("=Q8x").unpack
_CLEAR_SEEN = bytes(value & ~SEEN for value in range(256))
_CODES: dict[str | None, int] = {kind.value: _FIRST_FAILED + number for number, kind in enumerate(_KINDS)}


def state_of(status: str, error_kind: str | None) -> int:
    """Return the state of a record with this `status` and `error_kind`: OK, or the number of its failure kind.

    A kind that this version does not know counts as a failure of kind `protocol`.
    """
    if status == "ok":
        return OK
    return _CODES.get(error_kind, _CODES[ErrorKind.PROTOCOL.value])


def kind_of(state: int) -> ErrorKind | None:
    """Return why the live record failed, None where there is none or it is a completion."""
    live = state & _KIND
    return _KINDS[live - _FIRST_FAILED] if live >= _FIRST_FAILED else None


def is_live(state: int) -> bool:
    """Tell whether there is a live record: a completion or a failure."""
    return bool(state & _KIND)


def key_digest(key: str, sample_index: int = 0) -> bytes:
    """Return the 16 bytes under which a key (of one sample) is known."""
    text = key.encode("utf-8", "surrogatepass")
    if sample_index:
        text += b"\0%d" % sample_index
    return hashlib.blake2b(text, digest_size=ID_BYTES).digest()


class _Table:
    """Identities of 16 bytes, each with one state byte.

    The first eight bytes of an identity choose its bucket: identities are digests, and so spread evenly.
    """

    __slots__ = ("_half", "_identities", "_mask", "_size", "_states")

    def __init__(self) -> None:
        self._size = 0
        self._set_buckets(1)

    def __len__(self) -> int:
        return self._size

    def _set_buckets(self, count: int) -> None:
        # Two lists of bytearrays rather than one of objects: an object each would cost a byte a row more.
        self._identities: list[bytearray] = [bytearray() for _ in range(count)]
        self._states: list[bytearray] = [bytearray() for _ in range(count)]
        self._set_masks()

    def _set_masks(self) -> None:
        # Buckets [0, count - half) have been split: there the longer mask decides.
        bits = (len(self._states)).bit_length() - 1
        self._half = (1 << bits) - 1
        self._mask = (1 << (bits + 1)) - 1

    def _find(self, identity: bytes) -> tuple[int, int]:
        """Return the bucket of an identity and its place there, -1 where it is unknown."""
        digest = _digest(identity)[0]
        number = digest & self._mask
        if number >= len(self._states):
            number = digest & self._half
        place = self._identities[number].find(identity)
        if place > 0:
            place = _place(self._identities[number], identity, place)
        return number, place

    def reserve(self, more: int) -> None:
        """Make room for `more` entries at once, so that loading moves nothing twice. Only where it is still empty."""
        wanted = more // BUCKET_ENTRIES + 1
        if self._size == 0 and wanted > len(self._states):
            self._set_buckets(wanted)

    def get(self, identity: bytes) -> int:
        """Return the state byte, 0 where the identity is unknown."""
        number, place = self._find(identity)
        return self._states[number][place] if place >= 0 else 0

    def swap(self, identity: bytes, keep: int, change: int) -> int:
        """Set the state to `state & keep | change` (inserting the identity) and return the former state."""
        # Written out, not through _find: the event loop pays for this once or twice a row.
        digest = _digest(identity)[0]
        number = digest & self._mask
        states = self._states
        if number >= len(states):
            number = digest & self._half
        bucket = self._identities[number]
        place = bucket.find(identity)
        if place > 0:
            place = place >> 4 if not place & 15 else _place(bucket, identity, place)
        if place >= 0:
            found = states[number]
            old = found[place]
            found[place] = old & keep | change
            return old
        bucket += identity
        states[number].append(change)
        self._size += 1
        if self._size > BUCKET_ENTRIES * len(states):
            self._split()
        return 0

    def change(self, identity: bytes, keep: int, change: int) -> int:
        """Like `swap`, but leave an unknown identity unknown."""
        number, place = self._find(identity)
        if place < 0:
            return 0
        old = self._states[number][place]
        self._states[number][place] = old & keep | change
        return old

    def _split(self) -> None:
        """Add one bucket, and share the entries of the bucket it comes from between the two."""
        new = len(self._states)
        bits = new.bit_length() - 1
        source = new - (1 << bits)
        mask = (1 << (bits + 1)) - 1
        identities, states = bytes(self._identities[source]), self._states[source]
        stay, stay_states, move, move_states = bytearray(), bytearray(), bytearray(), bytearray()
        for number, state in enumerate(states):
            identity = identities[number * ID_BYTES : (number + 1) * ID_BYTES]
            if _digest(identity)[0] & mask == new:
                move += identity
                move_states.append(state)
            else:
                stay += identity
                stay_states.append(state)
        self._identities[source], self._states[source] = stay, stay_states
        self._identities.append(move)
        self._states.append(move_states)
        self._set_masks()

    def load(self, identities: bytes, states: bytes) -> None:
        """Append identities (16 bytes each) that are known to be new, with one state byte each."""
        self.reserve(len(states))
        if len(states) >= len(self._states):
            for number, some, their_states in self._by_bucket(identities, states):
                self._identities[number] += some
                self._states[number] += their_states
        else:
            for place, state in enumerate(states):
                identity = identities[place * ID_BYTES : (place + 1) * ID_BYTES]
                number, _ = self._find(identity)
                self._identities[number] += identity
                self._states[number].append(state)
        self._size += len(states)
        while self._size > BUCKET_ENTRIES * len(self._states):
            self._split()

    def _by_bucket(self, identities: bytes, states: bytes) -> Iterator[tuple[int, memoryview, memoryview]]:
        """Yield the entries of each bucket: sorted all at once, which costs a tenth of placing one by one."""
        rows = len(states)
        halves = pa.Array.from_buffers(pa.uint64(), 2 * rows, [None, pa.py_buffer(identities)])
        digests = pc.list_element(pa.FixedSizeListArray.from_arrays(halves, 2), 0)
        numbers = pc.bit_wise_and(digests, pa.scalar(self._mask, pa.uint64()))
        unsplit = pc.greater_equal(numbers, pa.scalar(len(self._states), pa.uint64()))
        numbers = pc.if_else(unsplit, pc.bit_wise_and(digests, pa.scalar(self._half, pa.uint64())), numbers)
        order = pc.sort_indices(numbers)
        runs = pc.run_end_encode(numbers.take(order))
        sorted_identities, sorted_states = (
            memoryview(pa.Array.from_buffers(kind, rows, [None, pa.py_buffer(data)]).take(order).buffers()[1])
            for kind, data in ((pa.binary(ID_BYTES), identities), (pa.uint8(), states))
        )
        start = 0
        for number, end in zip(runs.values.to_pylist(), runs.run_ends.to_pylist(), strict=True):
            yield number, sorted_identities[start * ID_BYTES : end * ID_BYTES], sorted_states[start:end]
            start = end

    def clear_bits(self, table: bytes) -> None:
        """Translate every state byte by a table of 256 bytes."""
        for number, states in enumerate(self._states):
            self._states[number] = states.translate(table)


def _place(bucket: bytearray, identity: bytes, start: int) -> int:
    """The number of the entry that spells the identity, from where its bytes were first found; -1 where none does."""
    while start >= 0 and start & 15:
        # The tail of one entry and the head of the next may spell the identity by chance.
        start = bucket.find(identity, start + 1)
    return start >> 4 if start > 0 else start


@dataclass(slots=True)
class Counts:
    """How many live records there are. `failed` counts by kind; `seen_…` those that this pass met."""

    ok: int = 0
    failed: dict[ErrorKind, int] = field(default_factory=dict)
    seen_ok: int = 0
    seen_failed: dict[ErrorKind, int] = field(default_factory=dict)

    @property
    def live(self) -> int:
        """All live records: the rows of the dataset."""
        return self.ok + sum(self.failed.values())

    @property
    def seen(self) -> int:
        """Live records that belong to this pass."""
        return self.seen_ok + sum(self.seen_failed.values())

    @property
    def kept(self) -> int:
        """Live records of earlier inputs, which this pass did not meet."""
        return self.live - self.seen


class RecordIndex:
    """`custom_id` (32 hexadecimal digits) → the state of its record: at most 24 bytes a row.

    A state is NONE, OK, ARCHIVED, or a number above OK that `kind_of` turns into the kind of the failure.
    """

    def __init__(self) -> None:
        self._table = _Table()
        self._live = [0] * (_KIND + 1)
        self._seen = [0] * (_KIND + 1)

    def get(self, custom_id: str) -> int:
        """Return the state of a record."""
        return _visible(self._table.get(bytes.fromhex(custom_id)))

    def mark_seen(self, custom_id: str) -> int:
        """Note that this pass asks for the record, also where it is unknown yet, and return its state."""
        old = self._table.swap(bytes.fromhex(custom_id), 0xFF, SEEN)
        live = old & _KIND
        if live and not old & SEEN:
            self._seen[live] += 1
        return _visible(old)

    def mark_first(self, custom_id: str) -> int | None:
        """Like `mark_seen`, but None where this pass has asked for the record before."""
        old = self._table.swap(bytes.fromhex(custom_id), 0xFF, SEEN)
        if old & SEEN:
            return None
        live = old & _KIND
        if live:
            self._seen[live] += 1
        return _visible(old)

    def mark_final(self, identity: bytes, final: Container[int]) -> int:
        """Note that this pass asks for a record whose state is one of these; return the state, 0 where it is another.

        `identity` is a `custom_id` as 16 bytes.
        """
        state = _visible(self._table.get(identity))
        if state not in final:
            return 0
        if not self._table.change(identity, 0xFF, SEEN) & SEEN:
            self._seen[state] += 1
        return state

    def is_seen(self, custom_id: str) -> bool:
        """Tell whether this pass has asked for the record, or settled it."""
        return bool(self._table.get(bytes.fromhex(custom_id)) & SEEN)

    def put(self, custom_id: str, state: int, *, seen: bool) -> int:
        """Set the live state of a record and return the former state. A `seen` mark, once set, stays."""
        mark = SEEN if seen else 0
        old = self._table.swap(bytes.fromhex(custom_id), _ARCHIVED_OR_SEEN, state | mark)
        if old:
            self._count(old, -1)
        self._live[state] += 1
        if (old | mark) & SEEN:
            self._seen[state] += 1
        return _visible(old)

    def remove(self, custom_id: str, *, archived: bool) -> int:
        """Note that the live record is gone; `archived` where it was a completion that went to the archive."""
        old = self._table.change(bytes.fromhex(custom_id), _ARCHIVED_OR_SEEN, ARCHIVED if archived else 0)
        self._count(old, -1)
        return _visible(old)

    def add_archived(self, custom_id: str) -> None:
        """Note that the archive holds a completion for this identity."""
        self._table.swap(bytes.fromhex(custom_id), 0xFF, ARCHIVED)

    def forget_archived(self, custom_id: str) -> None:
        """Note that the archive has lost the completion of this identity: it is asked for again."""
        self._table.change(bytes.fromhex(custom_id), ~ARCHIVED & 0xFF, 0)

    def load(self, identities: bytes, states: bytes) -> None:
        """Add live records that are known to be new: 16 bytes and one state byte each.

        A state may have SEEN set: this pass is known to meet the record. Raises ValueError where the numbers differ.
        """
        if len(identities) != ID_BYTES * len(states):
            raise ValueError("the identities and the states differ in number")
        self._table.load(identities, states)
        for state in range(1, _KIND + 1):
            seen = states.count(state | SEEN)
            self._live[state] += states.count(state) + seen
            self._seen[state] += seen

    def reserve(self, more: int) -> None:
        """Make room for `more` records before they are loaded."""
        self._table.reserve(more)

    def reset_seen(self) -> None:
        """Begin a new pass: no record has been seen."""
        self._table.clear_bits(_CLEAR_SEEN)
        self._seen = [0] * (_KIND + 1)

    def counts(self) -> Counts:
        """Return how many records are live, by state; constant work."""
        return Counts(
            ok=self._live[OK],
            failed={kind: self._live[code] for kind, code in _numbered() if self._live[code]},
            seen_ok=self._seen[OK],
            seen_failed={kind: self._seen[code] for kind, code in _numbered() if self._seen[code]},
        )

    def __len__(self) -> int:
        """Return how many identities are known, archived and merely seen ones included."""
        return len(self._table)

    def _count(self, state: int, by: int) -> None:
        live = state & _KIND
        if live:
            self._live[live] += by
            if state & SEEN:
                self._seen[live] += by


class KeyIndex:
    """Digests of keys → whether a live record has it, whether this pass has met it: about 20 bytes a key."""

    def __init__(self) -> None:
        self._table = _Table()

    def mark_seen(self, digest: bytes) -> bool:
        """Note that a row of this pass has the key; True where an earlier row had it: the key is repeated."""
        return bool(self._table.swap(digest, 0xFF, SEEN) & SEEN)

    def mark_live(self, digest: bytes) -> bool:
        """Note that a live record has the key; True where one had it before."""
        return bool(self._table.swap(digest, 0xFF, KEY_LIVE) & KEY_LIVE)

    def load(self, digests: bytes, states: bytes) -> None:
        """Add keys of live records: 16 bytes and one state byte each, KEY_LIVE, with SEEN once this pass has met it."""
        self._table.load(digests, states)

    def is_seen(self, digest: bytes) -> bool:
        """Tell whether a row of this pass has the key."""
        return bool(self._table.get(digest) & SEEN)

    def is_live(self, digest: bytes) -> bool:
        """Tell whether a live record has (or had, in this run) the key."""
        return bool(self._table.get(digest) & KEY_LIVE)

    def reserve(self, more: int) -> None:
        """Make room for `more` keys before they are added."""
        self._table.reserve(more)

    def reset_seen(self) -> None:
        """Begin a new pass: no key has been seen."""
        self._table.clear_bits(_CLEAR_SEEN)

    def __len__(self) -> int:
        """Return how many keys are known."""
        return len(self._table)


def _visible(state: int) -> int:
    return state & _KIND or state & ARCHIVED


def _numbered() -> Iterator[tuple[ErrorKind, int]]:
    for number, kind in enumerate(_KINDS):
        yield kind, _FIRST_FAILED + number
