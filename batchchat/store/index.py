"""What is done already, told by 16-byte identities, in about 20 bytes a row.

Both indexes stand on one table: an extendible set of small buckets, each a bytearray of 17-byte entries (identity and
state byte) searched with `bytearray.find`. The table grows by one bucket at a time (linear hashing, Litwin 1980), so
that no insertion ever stalls the event loop while millions of entries move.

No index is locked: it is read and changed by one thread at a time, which is the caller's event loop during a run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from batchchat.records import ErrorKind

ID_BYTES = 16
ENTRY_BYTES = ID_BYTES + 1
BUCKET_ENTRIES = 64

NONE = 0
"""No live record and nothing archived."""
OK = 1
"""The live record is a completion."""
ARCHIVED = 16
"""No live record, but the archive holds a completion for this identity."""

_KINDS: tuple[ErrorKind, ...] = tuple(ErrorKind)
_FIRST_FAILED = 2
_LIVE = 0x0F
_SEEN = 0x80
_ARCHIVED_OR_SEEN = ~_LIVE & 0xFF
_CLEAR_SEEN = bytes(value & ~_SEEN for value in range(256))
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
    live = state & _LIVE
    return _KINDS[live - _FIRST_FAILED] if live >= _FIRST_FAILED else None


def is_live(state: int) -> bool:
    """Tell whether there is a live record: a completion or a failure."""
    return bool(state & _LIVE)


def key_digest(key: str, sample_index: int = 0) -> bytes:
    """Return the 16 bytes under which a key (of one sample) is known."""
    text = key.encode("utf-8", "surrogatepass")
    if sample_index:
        text += b"\0%d" % sample_index
    return hashlib.blake2b(text, digest_size=ID_BYTES).digest()


class _Table:
    """Identities of 16 bytes, each with one state byte."""

    __slots__ = ("_buckets", "_half", "_mask", "_size")

    def __init__(self) -> None:
        self._size = 0
        self._set_buckets(1)

    def __len__(self) -> int:
        return self._size

    def _set_buckets(self, count: int) -> None:
        self._buckets: list[bytearray] = [bytearray() for _ in range(count)]
        self._set_masks()

    def _set_masks(self) -> None:
        # Buckets [0, count - half) have been split: there the longer mask decides.
        bits = (len(self._buckets)).bit_length() - 1
        self._half = (1 << bits) - 1
        self._mask = (1 << (bits + 1)) - 1

    def _bucket(self, identity: bytes) -> bytearray:
        digest = hash(identity)
        number = digest & self._mask
        buckets = self._buckets
        return buckets[number] if number < len(buckets) else buckets[digest & self._half]

    def reserve(self, more: int) -> None:
        """Make room for `more` entries at once, so that loading moves nothing twice."""
        wanted = (self._size + more) // BUCKET_ENTRIES + 1
        if self._size == 0 and wanted > len(self._buckets):
            self._set_buckets(wanted)

    def get(self, identity: bytes) -> int:
        """Return the state byte, 0 where the identity is unknown."""
        bucket = self._bucket(identity)
        place = _find(bucket, identity)
        return bucket[place + ID_BYTES] if place >= 0 else 0

    def swap(self, identity: bytes, keep: int, change: int) -> int:
        """Set the state to `state & keep | change` (inserting the identity) and return the former state."""
        # Written out, not through _bucket and _find: the event loop pays for this once or twice a row.
        digest = hash(identity)
        number = digest & self._mask
        buckets = self._buckets
        bucket = buckets[number] if number < len(buckets) else buckets[digest & self._half]
        place = bucket.find(identity)
        if place > 0 and place % ENTRY_BYTES:
            place = _find(bucket, identity)
        if place >= 0:
            place += ID_BYTES
            old = bucket[place]
            bucket[place] = old & keep | change
            return old
        bucket += identity
        bucket.append(change)
        self._size += 1
        if self._size > BUCKET_ENTRIES * len(buckets):
            self._split()
        return 0

    def change(self, identity: bytes, keep: int, change: int) -> int:
        """Like `swap`, but leave an unknown identity unknown."""
        bucket = self._bucket(identity)
        place = _find(bucket, identity)
        if place < 0:
            return 0
        old = bucket[place + ID_BYTES]
        bucket[place + ID_BYTES] = old & keep | change
        return old

    def _split(self) -> None:
        """Add one bucket, and share the entries of the bucket it comes from between the two."""
        new = len(self._buckets)
        bits = new.bit_length() - 1
        source = new - (1 << bits)
        mask = (1 << (bits + 1)) - 1
        stay, move = bytearray(), bytearray()
        for entry in _entries(self._buckets[source]):
            if hash(entry[:ID_BYTES]) & mask == new:
                move += entry
            else:
                stay += entry
        self._buckets[source] = stay
        self._buckets.append(move)
        self._set_masks()

    def load(self, identities: bytes, states: bytes) -> None:
        """Append identities (16 bytes each) that are known to be new, with one state byte each."""
        self.reserve(len(states))
        buckets, mask, half, count = self._buckets, self._mask, self._half, len(self._buckets)
        place = 0
        for state in states:
            identity = identities[place : place + ID_BYTES]
            place += ID_BYTES
            digest = hash(identity)
            number = digest & mask
            bucket = buckets[number] if number < count else buckets[digest & half]
            bucket += identity
            bucket.append(state)
        self._size += len(states)
        while self._size > BUCKET_ENTRIES * len(buckets):
            self._split()

    def clear_bits(self, table: bytes) -> None:
        """Translate every state byte by a table of 256 bytes."""
        for bucket in self._buckets:
            bucket[ID_BYTES::ENTRY_BYTES] = bucket[ID_BYTES::ENTRY_BYTES].translate(table)


def _find(bucket: bytearray, identity: bytes) -> int:
    place = bucket.find(identity)
    while place >= 0 and place % ENTRY_BYTES:
        # The tail of one entry and the head of the next may spell the identity by chance.
        place = bucket.find(identity, place + 1)
    return place


def _entries(bucket: bytes | bytearray) -> Iterator[bytes]:
    data = bytes(bucket)
    for place in range(0, len(data), ENTRY_BYTES):
        yield data[place : place + ENTRY_BYTES]


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
        self._live = [0] * (_LIVE + 1)
        self._seen = [0] * (_LIVE + 1)

    def get(self, custom_id: str) -> int:
        """Return the state of a record."""
        return _visible(self._table.get(bytes.fromhex(custom_id)))

    def mark_seen(self, custom_id: str) -> int:
        """Note that this pass asks for the record, also where it is unknown yet, and return its state."""
        old = self._table.swap(bytes.fromhex(custom_id), 0xFF, _SEEN)
        live = old & _LIVE
        if live and not old & _SEEN:
            self._seen[live] += 1
        return _visible(old)

    def is_seen(self, custom_id: str) -> bool:
        """Tell whether this pass has asked for the record, or settled it."""
        return bool(self._table.get(bytes.fromhex(custom_id)) & _SEEN)

    def put(self, custom_id: str, state: int, *, seen: bool) -> int:
        """Set the live state of a record and return the former state. A `seen` mark, once set, stays."""
        mark = _SEEN if seen else 0
        old = self._table.swap(bytes.fromhex(custom_id), _ARCHIVED_OR_SEEN, state | mark)
        if old:
            self._count(old, -1)
        self._live[state] += 1
        if (old | mark) & _SEEN:
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

    def load(self, hex_ids: bytes, states: bytes) -> None:
        """Add live records that are known to be new: 32 ASCII digits and one state byte each.

        Raises ValueError where the digits are no identities.
        """
        identities = bytes.fromhex(hex_ids.decode("ascii"))
        if len(identities) != ID_BYTES * len(states):
            raise ValueError("the identities and the states differ in number")
        self._table.load(identities, states)
        for state in range(1, _LIVE + 1):
            self._live[state] += states.count(state)

    def reserve(self, more: int) -> None:
        """Make room for `more` records before they are loaded."""
        self._table.reserve(more)

    def reset_seen(self) -> None:
        """Begin a new pass: no record has been seen."""
        self._table.clear_bits(_CLEAR_SEEN)
        self._seen = [0] * (_LIVE + 1)

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
        live = state & _LIVE
        if live:
            self._live[live] += by
            if state & _SEEN:
                self._seen[live] += by


class KeyIndex:
    """Digests of keys → whether a live record has it, whether this pass has met it: about 20 bytes a key."""

    _IS_LIVE = 1

    def __init__(self) -> None:
        self._table = _Table()

    def mark_seen(self, digest: bytes) -> bool:
        """Note that a row of this pass has the key; True where an earlier row had it: the key is repeated."""
        return bool(self._table.swap(digest, 0xFF, _SEEN) & _SEEN)

    def mark_live(self, digest: bytes) -> bool:
        """Note that a live record has the key; True where one had it before."""
        return bool(self._table.swap(digest, 0xFF, self._IS_LIVE) & self._IS_LIVE)

    def is_live(self, digest: bytes) -> bool:
        """Tell whether a live record has (or had, in this run) the key."""
        return bool(self._table.get(digest) & self._IS_LIVE)

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
    return state & _LIVE or state & ARCHIVED


def _numbered() -> Iterator[tuple[ErrorKind, int]]:
    for number, kind in enumerate(_KINDS):
        yield kind, _FIRST_FAILED + number
