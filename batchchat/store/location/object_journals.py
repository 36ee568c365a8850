"""The journals of an output in a bucket: one object a commit, each created at the next free slot of its generation.

    journal/0000000003/0000000000        the header's commit of generation 3
    journal/0000000003/0000000001        the next one, and so on without a gap

An object begins with a line of JSON, which tells whose it is, and goes on with the frames of the commit. A commit is
under way at one slot only, and no slot is left out. So the first free slot is the end, and whoever puts an object
there, a fence, ends the generation for its writer. Fences stay for ever: a slot that became free again could be taken
by a writer that was stalled.
"""

from __future__ import annotations

import errno
import io
import os
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO, cast

import orjson

from batchchat.errors import StorageError
from batchchat.store.location.bucket import ObjectBucket, OtherContentError
from batchchat.store.location.object_files import Holding, keep_copy
from batchchat.store.location.object_hold import HOLD, read_record

_FOLDER = "journal"
_AT_ONCE = 8
"""Requests at once when a journal is read: 240 commits, one minute of a run, are read in 30 round trips."""
_IN_MEMORY = 64 * 2**20
"""Bytes of a journal that are kept in memory; a longer one goes to a file that nobody else sees."""
_SMALL = 512
"""A fence has fewer bytes than this; only objects as small are read to see whether they are one."""


def slot_name(generation: int, slot: int) -> str:
    """Return the name of the object of one commit."""
    return f"{_FOLDER}/{generation:010d}/{slot:010d}"


def _head(holding: Holding, slot: int, *, fence: bool = False) -> bytes:
    hold = holding.required()
    about: dict[str, Any] = {"writer": hold.writer, "epoch": hold.epoch, "slot": slot}
    return orjson.dumps(about | ({"fence": True} if fence else {}), option=orjson.OPT_APPEND_NEWLINE)


def _is_fence(data: bytes) -> bool:
    try:
        head = orjson.loads(data.partition(b"\n")[0])
    except orjson.JSONDecodeError:
        return False
    return isinstance(head, dict) and head.get("fence") is True


class ObjectLog:
    """A generation of the journal, open for appending."""

    def __init__(self, bucket: ObjectBucket, generation: int, holding: Holding) -> None:
        self.slots = 0
        self._bucket = bucket
        self._generation = generation
        self._holding = holding
        self._pieces: list[bytes] = []

    def append(self, data: bytes) -> None:
        """Keep the data for the next commit."""
        self._pieces.append(data)

    def synchronize(self) -> None:
        """Create the object of this commit. Raises OutputLost if the slot is taken: another run writes now."""
        if not self._pieces:
            return
        hold = self._holding.required()
        hold.check()
        data = b"".join([_head(self._holding, self.slots), *self._pieces])
        try:
            self._bucket.create(slot_name(self._generation, self.slots), data)
        except OtherContentError as error:
            raise hold.lost() from error
        self._pieces = []
        self.slots += 1

    def close(self) -> None:
        """Let go of the journal; what was synchronized stays."""
        self._pieces = []


class ObjectJournals:
    """The journals in a bucket. `bucket` is that of the state.

    The hold says which generation was begun last, and which was sealed last: leftovers of sealed ones are no journals.
    """

    keeps_open = False

    def __init__(self, bucket: ObjectBucket, *, holding: Holding, damaged: ObjectBucket) -> None:
        self._bucket = bucket
        self._holding = holding
        self._damaged = damaged
        self._mine: dict[int, ObjectLog] = {}

    def generations(self) -> list[int]:
        """Return the generations that are not sealed, the oldest first."""
        numbers = {int(name.partition("/")[0]) for name, _ in self._bucket.listed(_FOLDER)}
        # Asked after the listing: what was sealed meanwhile is in the parts already.
        sealed = self._record().get("sealed", 0) if numbers else 0
        return sorted(number for number in numbers if number > sealed)

    def _record(self) -> dict[str, Any]:
        if self._holding.hold is not None:
            return self._holding.hold.record
        return read_record(self._bucket.get(HOLD), self._bucket.address_of(HOLD)) or {}

    def last_used(self) -> int:
        """Return the last generation that was ever begun."""
        return int(self._record().get("generation", 0))

    def name(self, generation: int) -> str:
        """Return the name of a generation's journal."""
        return f"journal-{generation:010d}"

    def address(self, generation: int) -> str:
        """Return the URL below which the objects of a journal are."""
        return self._bucket.address_of(f"{_FOLDER}/{generation:010d}")

    def create(self, generation: int) -> ObjectLog:
        """Begin a journal: the hold says so first, so that the next writer knows where to put its fence."""
        hold = self._holding.required()
        if generation <= self.last_used():
            raise StorageError(f"{self.address(generation)}: there is a journal already")
        hold.change(generation=generation)
        log = self._mine[generation] = ObjectLog(self._bucket, generation, self._holding)
        return log

    def open(self, generation: int) -> BinaryIO:
        """Open a journal for reading. Raises FileNotFoundError if it is gone, else StorageError."""
        try:
            return cast(BinaryIO, SlotReader(self._bucket, generation, self.address(generation)))
        except FileNotFoundError:
            # Nobody else removes a journal while this process holds the output.
            self._holding.look()
            raise

    def remove(self, generation: int) -> None:
        """Note that a journal is sealed, then delete its objects, but for a fence."""
        self._holding.required().change(sealed=generation)
        log = self._mine.pop(generation, None)
        # A fence would be behind the slots of a journal that this run wrote.
        names = [slot_name(generation, n) for n in range(log.slots)] if log is not None else self._slots(generation)
        self._bucket.delete(names)

    def set_aside(self, generation: int) -> str:
        """Copy a damaged journal to the damaged files, then remove it, and return the address of the copies."""
        for name in self._slots(generation):
            keep_copy(self._bucket, name, self._damaged.below(self.name(generation)))
        self.remove(generation)
        return self._damaged.address_of(self.name(generation))

    def fence(self) -> None:
        """End the open generation for the writer before this one: put a fence at its first free slot."""
        generation = self.last_used()
        if not generation:
            return
        listed = self._bucket.listed(f"{_FOLDER}/{generation:010d}")
        slot = int(listed[-1][0]) if listed else 0
        while True:
            # The last one may be a fence of another takeover, behind which nobody writes. A listing may also be late:
            # an object that it did not tell is met here.
            found = self._bucket.get(slot_name(generation, slot)) if listed else None
            if found is None:
                try:
                    self._bucket.create(slot_name(generation, slot), _head(self._holding, slot, fence=True))
                except OtherContentError as error:
                    found = error.found
                else:
                    return
            if found is not None and _is_fence(found.data):
                return
            slot += 1

    def _slots(self, generation: int) -> list[str]:
        """Return the names of a journal's objects, without a fence, which is the last of them."""
        listed = self._bucket.listed(f"{_FOLDER}/{generation:010d}")
        names = [f"{_FOLDER}/{generation:010d}/{name}" for name, _ in listed]
        if listed and listed[-1][1].size < _SMALL:
            found = self._bucket.get(names[-1])
            if found is not None and _is_fence(found.data):
                names.pop()
        return names


class SlotReader(io.RawIOBase):
    """The frames of a journal as one stream. Going to its end takes in the commits that came since."""

    def __init__(self, bucket: ObjectBucket, generation: int, address: str) -> None:
        super().__init__()
        self._bucket = bucket
        self._generation = generation
        self._address = address
        self._next = 0
        self._fenced = False
        self._size = 0
        # Small journals stay in memory; one of answers alone can be a few times as large as a part.
        self._data = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115 - closed by `close`
        try:
            self._read_all()
        except BaseException:
            self._data.close()
            raise

    def readable(self) -> bool:
        """Return true."""
        return True

    def seekable(self) -> bool:
        """Return true."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place; at the end, read first what was committed since."""
        if whence == os.SEEK_END and self._next:
            self._read_on()
        return self._data.seek(offset, whence)

    def tell(self) -> int:
        """Return the place of the next read."""
        return self._data.tell()

    def read(self, size: int | None = -1, /) -> bytes:
        """Return the next bytes."""
        return self._data.read(-1 if size is None else size)

    def close(self) -> None:
        """Let go of what was read."""
        self._data.close()
        super().close()

    def _read_all(self) -> None:
        listed = self._bucket.listed(f"{_FOLDER}/{self._generation:010d}")
        if not listed:
            raise self._gone()
        slots = [int(name) for name, _ in listed]
        with ThreadPoolExecutor(min(_AT_ONCE, len(slots))) as pool:
            names = (slot_name(self._generation, slot) for slot in slots)
            self._take(found.data if found is not None else None for found in pool.map(self._bucket.get, names))
        self._next = slots[-1] + 1
        self._data.seek(0)

    def _read_on(self) -> None:
        place = self._data.tell()
        self._data.seek(0, os.SEEK_END)
        while not self._fenced and (found := self._bucket.get(slot_name(self._generation, self._next))) is not None:
            self._take([found.data])
            self._next += 1
        self._data.seek(place)

    def _take(self, objects: Iterable[bytes | None]) -> None:
        for data in objects:
            if data is None:
                raise self._gone()  # sealed just now, and deleted
            head, line, frames = data.partition(b"\n")
            if _is_fence(data):
                self._fenced = True
                return
            # Bytes that do not begin as a commit does are given as they are: no frame will be found in them.
            self._data.write(frames if line and head.startswith(b"{") else data)

    def _gone(self) -> FileNotFoundError:
        return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self._address)
