"""The trail of a pass: which requests each row of the input became, and where its batches of rows ended.

What a row becomes depends on nothing but the rows before it and the job's own text. So where neither has changed, a
later pass need not read and render a row to know its requests: it looks them up in the index, and reads only the rows
that still need something. The trail is a memory, never a proof that anything is done: that is told by the records
alone, and a trail that is lost, damaged or out of date only costs the time to render again.

`trail.log` has frames (see `frames`): a header with the digest of the job's text, the stamps of the files, and one
frame for each batch, with its place and the checksums of its identities. These lie in `trail.ids`, 16 bytes for each
row and sample, and the digests of the rows' keys in `trail.keys`, 16 bytes a row, zeros where the row has none of its
own. All three are written without synchronization: what a crash tears does not fit its checksums, and is cut off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol
from zlib import crc32

import orjson

from batchchat.dataclass import dataclass
from batchchat.errors import StorageError
from batchchat.records import Place
from batchchat.sources import Stamp
from batchchat.store.frames import HEADER_BYTES, Frame, FrameReader, encode
from batchchat.store.index import ID_BYTES
from batchchat.store.location.scratch import ScratchFile

FORMAT = 1
"""The format of the trail. One of another format is no trail: rows are rendered again."""
NO_KEY = bytes(ID_BYTES)
_HEADER, _STAMP, _ROWS = range(1, 4)
_FLUSH_FRAMES = 16
"""Frames that wait before they are written at once. The trail may lose its end: it is written anew then."""
_SUFFIXES = ("log", "ids", "keys")


class Tracked(Protocol):
    """The input, as far as the trail asks about it: see `Source`."""

    stamps: dict[int, Stamp]
    ends: list[Place]

    def still_holds(self, stamps: Mapping[int, Stamp], places: Sequence[Place]) -> tuple[int, dict[int, Stamp]]:
        """Tell how many places still stand behind the same rows, and how the files look now."""


class TrailBatch(NamedTuple):
    """A batch of rows that the trail knows: up to which row and place it goes, and how long the log is with it."""

    rows: int
    place: Place
    log_size: int
    log_frames: int


@dataclass(frozen=True, slots=True)
class Subject:
    """What a trail is about. `text` tells all that turns rows into requests; `samples` is how often each is asked."""

    text: str
    samples: int
    keyed: bool


class Trail:
    """The trail in a folder, for one pass at a time.

    `open` reads what is there about the same subject, `keep` cuts it to what holds for the input of today. Then `rows`
    rows are known; `add` and `end_batch` go on from there, `flush` writes. A disk that refuses ends the recording, and
    nothing else: the journal will tell.
    """

    def __init__(self, folder: Path, subject: Subject) -> None:
        self.subject = subject
        self.batches: list[TrailBatch] = []
        self.path = folder / "trail.ids"
        self._paths = [folder / f"trail.{suffix}" for suffix in _SUFFIXES]
        self._files: list[ScratchFile] = []
        self._stamps: dict[int, Stamp] = {}
        self._log_size = self._log_frames = 0
        self._recording = self._writable = True
        self._ends_told = 0
        self._frames: list[bytes] = []
        self._ids: list[bytes] = []
        self._keys: list[bytes] = []
        self._unended_samples = self._unended_from = 0

    @classmethod
    def open(cls, folder: Path, subject: Subject, *, writable: bool = True) -> Trail:
        """Read the trail in a folder; an empty one where there is none about this subject.

        Where not `writable`, the files stay as they are, and nothing is recorded.
        """
        trail = cls(folder, subject)
        trail._recording = trail._writable = writable
        try:
            for path in trail._paths:
                trail._files.append(ScratchFile(path, writable=writable))
            trail._read()
        except OSError:
            trail._give_up()
        return trail

    @property
    def rows(self) -> int:
        """How many rows are known, from the first."""
        return self.batches[-1].rows if self.batches else 0

    @property
    def end(self) -> Place | None:
        """The place behind the rows that are known; None where it is the beginning."""
        return self.batches[-1].place if self.batches else None

    def keep(self, source: Tracked) -> None:
        """Forget what does not hold for the input as it is now."""
        try:
            held, found = source.still_holds(self._stamps, [batch.place for batch in self.batches])
        except StorageError:  # the pass itself will meet it, and say so
            held, found = 0, {}
        if held < len(self.batches):
            last = self.batches[held - 1] if held else None
            del self.batches[held:]
            self._stamps = {}
            self._cut(last.log_size if last else 0, last.log_frames if last else 0)
        for batch_file in {batch.place.file for batch in self.batches}:
            self._note_stamp(batch_file, found[batch_file])

    def read(self, start: int, stop: int) -> tuple[bytes, bytes]:
        """Return the identities of rows `start` to `stop`, sample by sample, and the digests of their keys.

        Raises OSError.
        """
        width = ID_BYTES * self.subject.samples
        ids = self._files[1].read((stop - start) * width, start * width)
        keys = self._files[2].read((stop - start) * ID_BYTES, start * ID_BYTES) if self.subject.keyed else b""
        return ids, keys

    # ---- recording --------------------------------------------------------------------------------------------------

    def begin_batch(self, source: Tracked) -> None:
        """Note the ends of the files that the pass has left behind; to be called before a batch's rows are added."""
        for place in source.ends[self._ends_told :]:
            self._ends_told += 1
            self._end(place, source.stamps)

    def add(self, custom_ids: Sequence[str], keys: Sequence[bytes]) -> None:
        """Take the identities of the next rows, all samples of each, and the digests of the rows' keys."""
        if self._recording:
            self._ids.append(bytes.fromhex("".join(custom_ids)))
            self._keys.append(b"".join(keys) if self.subject.keyed else b"")
            self._unended_samples += len(custom_ids)

    def end_batch(self, place: Place | None, source: Tracked, *, whole: bool = True) -> None:
        """Say that all rows up to a place have been added; None where nothing could begin behind them.

        Where not the `whole` batch was added, the trail does not go on.
        """
        if not whole:
            self._recording = False
        elif place is not None:
            self._end(place, source.stamps)

    @property
    def full(self) -> bool:
        """Whether enough was added to be worth a `flush`."""
        return len(self._frames) >= _FLUSH_FRAMES

    def flush(self) -> None:
        """Write the batches that have ended."""
        if not self._frames or not self._files or not self._writable:
            return
        ended = self._unended_from
        pieces = (self._frames, self._ids[:ended], self._keys[:ended])
        self._frames, self._unended_from = [], 0
        del self._ids[:ended], self._keys[:ended]
        try:
            for file, some in zip(self._files, pieces, strict=True):
                file.append(b"".join(some))
        except OSError:
            self._give_up()

    def close(self) -> None:
        """Let go of the files."""
        for file in self._files:
            file.close()
        self._files = []

    def _end(self, place: Place, stamps: Mapping[int, Stamp]) -> None:
        """End a batch at a place, if the trail leads there without a gap."""
        last = self.end
        following = 0 if last is None else last.file + last.ended
        if not self._recording or place.file != following or place.file not in stamps:
            self._recording = False
            return
        if last is None or last.file != place.file:
            self._note_stamp(place.file, stamps[place.file])
        ids, keys = (b"".join(pieces[self._unended_from :]) for pieces in (self._ids, self._keys))
        rows = self._unended_samples // self.subject.samples
        value = [rows, crc32(ids), crc32(keys), *place]
        value[-2] = place.digest.hex()
        self._frame(_ROWS, orjson.dumps(value))
        self.batches.append(TrailBatch(self.rows + rows, place, self._log_size, self._log_frames))
        self._unended_samples, self._unended_from = 0, len(self._ids)

    def _note_stamp(self, number: int, stamp: Stamp) -> None:
        if self._stamps.get(number) != stamp:
            self._stamps[number] = stamp
            self._frame(_STAMP, orjson.dumps([number, *stamp]))

    def _frame(self, kind: int, payload: bytes) -> None:
        if self._log_frames == 0 and kind != _HEADER:
            self._frame(_HEADER, self._header)
        frame = encode(kind, self._log_frames, payload)
        self._frames.append(frame)
        self._log_frames += 1
        self._log_size += len(frame)

    @property
    def _header(self) -> bytes:
        about = self.subject
        return orjson.dumps([FORMAT, about.text, about.samples, about.keyed])

    def _give_up(self) -> None:
        self._recording = False
        self.batches = []
        self.close()

    # ---- reading ----------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        """Read the log up to the first frame that is damaged, or whose identities are; the rest is cut off."""
        size = 0
        with self._files[0].reader() as source:
            for frame in FrameReader(source):
                size = frame.offset + HEADER_BYTES + len(frame.payload)
                try:
                    if not self._take(frame, size):
                        break
                except (ValueError, TypeError):  # written by another version
                    break
                self._log_size, self._log_frames = size, frame.sequence + 1
        self._cut(self._log_size, self._log_frames)

    def _take(self, frame: Frame, size: int) -> bool:
        """Take a frame in; False where it, and with it all that follows, is of no use."""
        if frame.sequence == 0 or frame.kind == _HEADER:
            return frame.sequence == 0 and frame.kind == _HEADER and frame.payload == self._header
        number, *values = orjson.loads(frame.payload)
        if frame.kind == _STAMP:
            self._stamps[number] = Stamp(*values)
            return True
        ids_checksum, keys_checksum, *place, digest, ended = values
        ids, keys = self.read(self.rows, self.rows + number)
        if crc32(ids) != ids_checksum or crc32(keys) != keys_checksum:
            return False
        where = Place._make([*place, bytes.fromhex(digest), ended])
        self.batches.append(TrailBatch(self.rows + number, where, size, frame.sequence + 1))
        return True

    def _cut(self, log_size: int, log_frames: int) -> None:
        """Cut the files to what is known."""
        self._log_size, self._log_frames = log_size, log_frames
        if not self._writable:
            return
        sizes = (log_size, self.rows * self.subject.samples * ID_BYTES, self.rows * ID_BYTES * self.subject.keyed)
        try:
            for file, size in zip(self._files, sizes, strict=True):
                file.cut(size)
        except OSError:
            self._give_up()
