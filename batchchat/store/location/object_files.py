"""The parts and the small files of an output in a bucket."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import PurePosixPath
from typing import Any, BinaryIO, cast

from batchchat.errors import StorageError
from batchchat.store.location.bucket import ConditionFailedError, FoundObject, ObjectBucket, OtherContentError, Tag
from batchchat.store.location.object_hold import ObjectHold
from batchchat.store.location.port import PartChangedError, PartNames

_TAIL = 256 * 2**10
"""Bytes that are read of a part at first: its footer, and of a small part all. The footer of a part of 50,000 records
with 60 columns took 40 KB."""
_WHOLE = 64 * 2**20
"""Parts up to this many bytes are read in one piece if a run may replace them: more than a part of the default size."""
_BLOCK = 2**20
"""Bytes of one request for a larger part: Arrow asks for whole columns, and for a few small pieces between them."""
_REPORT = ".reported"
_TAKEN = b"taken"
"""The content of a command that somebody took: what is deleted does not tell who deleted it."""


class Holding:
    """Whether this process holds the output, and what its files ask of the hold."""

    def __init__(self) -> None:
        self.hold: ObjectHold | None = None

    def required(self) -> ObjectHold:
        """Return the hold. Raises RuntimeError if there is none: only who holds an output writes into it."""
        if self.hold is None:
            raise RuntimeError("hold the output before you write into it")
        return self.hold

    def look(self) -> None:
        """Raise OutputLost if this process held the output, and another one has taken it over."""
        if self.hold is not None:
            self.hold.look()

    def foreign(self, address: str, error: OtherContentError) -> PartChangedError:
        """Return what to raise for a part that somebody else has written. Raises OutputLost if the output is lost."""
        self.look()
        gone = "removed" if error.found is None else "written"
        return PartChangedError(
            f"{address}: somebody else has {gone} it while this run holds the output",
            remedy="Let nothing but batchchat write into an output. Then run the same command again: it goes on.",
        )


class ObjectParts:
    """Parts in a bucket. A part is created, or replaced under the condition that it is as it was read.

    Before it is written the hold names it, so that the next writer knows which one a lost writer may still write.
    """

    def __init__(self, bucket: ObjectBucket, kind: PartNames, *, holding: Holding, damaged: ObjectBucket) -> None:
        self.kind = kind
        self.unsettled: list[str] = []
        self._bucket = bucket
        self._holding = holding
        self._damaged = damaged
        self._tags: dict[str, Tag] = {}

    def names(self) -> list[str]:
        """Return the names of all parts, in the order of their numbers."""
        numbers = {name: self.kind.number(name) for name, _ in self._bucket.listed()}
        return sorted(
            (name for name, number in numbers.items() if number is not None), key=lambda name: numbers[name] or 0
        )

    def others(self) -> list[str]:
        """Return the names of what lies beside the parts and is none."""
        return [name for name, _ in self._bucket.listed() if not self.kind.is_of_any_shard(name)]

    def open(self, name: str) -> BinaryIO:
        """Open a part for reading. Raises FileNotFoundError if it is gone, else StorageError.

        Nobody replaces a part while this process holds the output, so it is read by spans then, each under the
        condition that the part has not changed. Otherwise a part of usual size is read in one piece.
        """
        held = self._holding.hold is not None
        found = self._bucket.span(name, -_TAIL, 0) if held else self._bucket.get(name)
        if found is None:
            self._holding.look()
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.address(name))
        if held:
            self._tags[name] = found.tag
        return cast(BinaryIO, ObjectFile(self._bucket, name, found, self._holding))

    def publish(self, name: str, write: Callable[[BinaryIO], None], before: Callable[[], None] | None = None) -> None:
        """Write the whole part into memory, then into the bucket."""
        sink = io.BytesIO()
        write(sink)
        data = sink.getvalue()
        if before is not None:
            before()
        hold = self._holding.required()
        tag = self._tags.get(name)
        if tag is None and (there := self._bucket.head(name)) is not None:
            tag = there.tag
        hold.change(writing={"kind": self.kind.stem, "name": name})
        try:
            new = self._bucket.create(name, data) if tag is None else self._bucket.replace(name, data, tag)
        except OtherContentError as error:
            self._tags.pop(name, None)
            raise self._holding.foreign(self.address(name), error) from error
        self._tags[name] = new
        if name in self.unsettled:
            self.unsettled.remove(name)

    def address(self, name: str) -> str:
        """Return the URL of a part."""
        return self._bucket.address_of(name)

    def remove(self, name: str, empty: Callable[[BinaryIO], None]) -> None:
        """Write a part without records in the place of one: a late request to delete could hit the next one's part."""
        self.publish(name, empty)

    def size(self, name: str) -> int:
        """Return a part's size in bytes."""
        found = self._bucket.head(name)
        if found is None:
            raise StorageError(f"{self.address(name)}: it is not there any more")
        return found.size

    def set_aside(self, name: str, empty: Callable[[BinaryIO], None]) -> str:
        """Copy a damaged part to the damaged files, write an empty one in its place, and return the copy's address."""
        kept = keep_copy(self._bucket, name, self._damaged)
        self.publish(name, empty)
        return kept

    def report(self, name: str) -> None:
        """Leave a report that a part is damaged; do nothing if it cannot be written."""
        with suppress(StorageError):
            self._damaged.put(name + _REPORT, b"")

    def reported(self) -> list[str]:
        """Return the names that reports were left for."""
        found = [name.removesuffix(_REPORT) for name, _ in self._damaged.listed() if name.endswith(_REPORT)]
        return [name for name in found if self.kind.number(name) is not None]

    def forget(self, name: str) -> None:
        """Remove a report."""
        self._damaged.delete([name + _REPORT])

    def forget_all(self) -> None:
        """Know nothing of any part any more: all were moved away."""
        self._tags.clear()
        self.unsettled.clear()


def keep_copy(bucket: ObjectBucket, name: str, damaged: ObjectBucket) -> str:
    """Copy an object to the damaged files, under a free name, and return its address there."""
    taken = {there for there, _ in damaged.listed()}
    path = PurePosixPath(name)
    free, number = path.name, 1
    while free in taken:
        free, number = f"{path.stem}.{number}{path.suffix}", number + 1
    found = bucket.get(name)
    damaged.put(free, b"" if found is None else found.data)
    return damaged.address_of(free)


class ObjectFile(io.RawIOBase):
    """An object that is open for reading. `found` are its last bytes, or all of them.

    What is missing is asked for under the condition that the object is the same. If it was replaced meanwhile, reading
    raises an OSError.
    """

    def __init__(self, bucket: ObjectBucket, name: str, found: FoundObject, holding: Holding) -> None:
        super().__init__()
        self._holding = holding
        self._bucket = bucket
        self._name = name
        self._tag = found.tag
        self._size = found.size
        self._place = 0
        self._blocks = [(found.size - len(found.data), found.data)]

    def readable(self) -> bool:
        """Return true."""
        return True

    def seekable(self) -> bool:
        """Return true."""
        return True

    def tell(self) -> int:
        """Return the place of the next read."""
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        self._place = max(0, start + offset)
        return self._place

    def read(self, size: int | None = -1, /) -> bytes:
        """Return the next bytes, as many as asked for if there are so many."""
        left = max(0, self._size - self._place)
        size = left if size is None or size < 0 else min(size, left)
        data = self._span(self._place, size) if size else b""
        self._place += len(data)
        return data

    def readinto(self, buffer: Any, /) -> int:
        """Read into a buffer."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _span(self, first: int, size: int) -> bytes:
        for start, data in self._blocks:
            if start <= first and first + size <= start + len(data):
                return data[first - start : first - start + size]
        last = min(self._size, first + max(size, _BLOCK))
        try:
            found = self._bucket.span(self._name, first, last, self._tag)
        except ConditionFailedError:
            found = None
        if found is None:
            self._holding.look()
            raise OSError(
                errno.ESTALE, "a run replaced it while it was read: try again", self._bucket.address_of(self._name)
            )
        # Two blocks: the end with the footer, and where the reader is.
        self._blocks[1:] = [(first, found.data)]
        return found.data[:size]


class ObjectState:
    """The small files of the state in a bucket.

    Who holds the output writes each under the condition that nobody else has written it since. If a lost writer came in
    between, what the holder says is right, and is written again.
    """

    def __init__(self, bucket: ObjectBucket, *, holding: Holding, damaged: ObjectBucket) -> None:
        self._bucket = bucket
        self._holding = holding
        self._damaged = damaged
        self._tags: dict[str, Tag] = {}
        self._lines: dict[str, bytes] = {}

    def has(self, name: str) -> bool:
        """Tell whether there is such a file."""
        return self._bucket.head(name) is not None

    def read(self, name: str) -> bytes | None:
        """Return a file's content, None if there is none."""
        found = self._bucket.get(name)
        if found is None:
            self._tags.pop(name, None)
            return None
        self._tags[name] = found.tag
        return found.data

    def publish(self, name: str, data: bytes, *, durable: bool = True) -> None:
        """Replace a file's content. What need not be durable is written once, and lost if the store is away."""
        hold = self._holding.hold
        if hold is not None:
            hold.check()
        if hold is None or not durable:
            # Names of others' files are their own: a command, a review. And progress is overwritten a moment later.
            try:
                self._bucket.put(name, data, wait=None if hold is None else 0)
            except StorageError:
                if hold is None:
                    raise
            return
        self._lines.pop(name, None)
        self._write(name, data)

    def _write(self, name: str, data: bytes) -> None:
        """Write a file as the holder of the output."""
        while True:
            tag = self._tags.get(name)
            try:
                new = self._bucket.create(name, data) if tag is None else self._bucket.replace(name, data, tag)
            except OtherContentError as error:
                self._holding.required().look()  # raises if the output is lost; else this writer is right
                if error.found is None:
                    self._tags.pop(name, None)
                else:
                    self._tags[name] = error.found.tag
                continue
            self._tags[name] = new
            return

    def append(self, name: str, line: bytes) -> None:
        """Append a line: the whole file is written again, which is short."""
        before = self._lines.get(name)
        if before is None:
            before = self.read(name) or b""
        self._holding.required().check()
        self._write(name, before + line)
        self._lines[name] = before + line

    def cut_torn_line(self, name: str) -> int:
        """Return 0: an object is there whole or not at all."""
        del name
        return 0

    def size(self, name: str) -> int:
        """Return a file's size in bytes, 0 if there is none."""
        if name in self._lines:
            return len(self._lines[name])
        found = self._bucket.head(name)
        return 0 if found is None else found.size

    def remove(self, name: str) -> None:
        """Remove a file."""
        self._bucket.delete([name])
        self._tags.pop(name, None)
        self._lines.pop(name, None)

    def take(self, name: str) -> bytes | None:
        """Remove a file and return its content; None if another process took it first."""
        found = self._bucket.get(name)
        if found is None or found.data.startswith(_TAKEN):
            return None
        try:
            # Marked first: of two processes that delete one object, both would believe that they had it.
            self._bucket.replace(name, _TAKEN + os.urandom(8).hex().encode(), found.tag)
        except OtherContentError:
            return None
        self._bucket.delete([name])
        return found.data

    def forget_all(self) -> None:
        """Know nothing of any file any more: all were moved away."""
        self._tags.clear()
        self._lines.clear()

    def set_aside(self, name: str) -> str:
        """Move a file to the damaged ones, and return its address now."""
        kept = keep_copy(self._bucket, name, self._damaged)
        self.remove(name)
        return kept

    def written(self, folder: str) -> list[tuple[str, int]]:
        """Return the names in a folder of the state, each with when it was written, in nanoseconds."""
        return [
            (name, int(listed.written.timestamp() * 1_000_000) * 1_000) for name, listed in self._bucket.listed(folder)
        ]

    def address(self, name: str) -> str:
        """Return the URL of a file."""
        return self._bucket.address_of(name)
