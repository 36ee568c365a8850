"""Which files an input path means, and how their bytes are read: plain, compressed, or from standard input."""

from __future__ import annotations

import difflib
import glob
import os
import stat
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, NoReturn, cast

import pyarrow as pa

from batchchat.errors import StorageError, UsageError

STDIN = "-"
FORMATS = ("jsonl", "csv", "tsv", "parquet")
_EXTENSIONS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
KNOWN = f"{', '.join(_EXTENSIONS)}; all but .parquet also with {', '.join(_COMPRESSIONS)}"
BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class InputFile:
    """One file of an input. `name` is what records call it: its path relative to the input's folder."""

    path: Path
    name: str
    format: str
    compression: str | None
    size: int


class Progress:
    """How much of a pass is read. One thread writes, others may read at any time."""

    __slots__ = ("done", "total")

    def __init__(self, total: int) -> None:
        self.total = total
        self.done = 0

    def fraction(self) -> float:
        """The share that is read, from 0 to 1; 0 where the total is not known."""
        return min(1.0, self.done / self.total) if self.total > 0 else 0.0


def find_files(path: str, base: Path | None, chosen: str | None) -> list[InputFile]:
    """List the files that an input path means, in the order they are read.

    A folder gives all files in it with a known extension, by relative path, without names that begin with `.` or
    `_`; a path with `*?[` that is no file itself is a glob. UsageError where there is nothing to read.
    """
    if chosen is not None and chosen not in FORMATS:
        raise UsageError(f"input format {chosen!r} is not known", remedy=f"Known are {', '.join(FORMATS)}.")
    place = (base or Path()) / Path(path).expanduser()
    if place.is_dir():
        found = [_input_file(file, place, chosen) for file in _walk(place) if chosen or _format_of(file)]
        if not found:
            raise UsageError(f"{place}: the folder holds no input file", remedy=f"Known extensions are {KNOWN}.")
    elif place.exists():
        found = [_input_file(place, place.parent, chosen)]
    elif glob.has_magic(path):
        found = _match(place, chosen)
    else:
        _missing(place)
    kinds = {file.format for file in found}
    if len(kinds) > 1:
        raise UsageError(
            f"{place}: the input mixes {' and '.join(sorted(kinds))} files",
            remedy="Choose one kind with a glob, for instance input: data/*.parquet",
        )
    return found


def _walk(folder: Path) -> list[Path]:
    found: list[Path] = []
    for root, folders, names in os.walk(folder, onerror=_unlisted):
        folders[:] = [name for name in folders if name[0] not in "._"]
        found += [Path(root) / name for name in names if name[0] not in "._"]
    return sorted(found, key=lambda file: file.relative_to(folder).parts)


def _unlisted(error: OSError) -> NoReturn:
    """A folder that cannot be listed would silently leave out its files."""
    raise UsageError(f"{error.filename}: the folder cannot be listed: {error.strerror}") from None


def _match(pattern: Path, chosen: str | None) -> list[InputFile]:
    parts = pattern.parts
    fixed = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    folder = Path(*parts[:fixed])
    matches = sorted(Path(match) for match in glob.glob(str(pattern), recursive=True))  # noqa: PTH207 - Path.glob takes no absolute pattern
    files = [match for match in matches if match.is_file()]
    if not files:
        raise UsageError(f"{pattern}: no file matches", remedy=f"Looked in {folder.absolute()}.")
    return [_input_file(file, folder, chosen) for file in files]


def _missing(place: Path) -> NoReturn:
    parent = place.parent
    while not parent.is_dir() and parent != parent.parent:
        parent = parent.parent
    if parent != place.parent:
        raise UsageError(f"{place}: no such file or folder", remedy=f"{parent} is there, what follows it is not.")
    try:
        names = sorted(entry.name for entry in parent.iterdir())
    except OSError:
        names = []
    near = difflib.get_close_matches(place.name, names, n=3, cutoff=0.5)
    near = near or [name for name in names if _format_of(Path(name))][:5]
    remedy = f"In that folder there is {', '.join(near)}." if near else "That folder holds no input file."
    raise UsageError(f"{place}: no such file or folder", remedy=remedy)


def _split(file: Path) -> tuple[str, str | None]:
    suffix = file.suffix.lower()
    if suffix in _COMPRESSIONS:
        return Path(file.stem).suffix.lower(), _COMPRESSIONS[suffix]
    return suffix, None


def _format_of(file: Path) -> str | None:
    suffix, compression = _split(file)
    found = _EXTENSIONS.get(suffix)
    return None if found == "parquet" and compression else found


def _input_file(file: Path, folder: Path, chosen: str | None) -> InputFile:
    kind = chosen or _format_of(file)
    if kind is None:
        raise UsageError(
            f"{file}: the extension {file.suffix or '(none)'} is not known",
            remedy=f"Known are {KNOWN}. If the file is one of these under another name, set input.format.",
        )
    try:
        about = file.stat()
    except OSError as error:
        raise UsageError(f"{file}: cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(about.st_mode):
        raise UsageError(
            f"{file}: is not a regular file, and an input is read more than once",
            remedy="Pipe it in instead, with --input -",
        )
    return InputFile(file, file.relative_to(folder).as_posix(), kind, _split(file)[1], about.st_size)


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Name the file in whatever goes wrong while it is read: the disk, or a damaged compressed stream."""
    try:
        yield
    except (OSError, pa.ArrowException, EOFError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise StorageError(
            f"{name}: the input cannot be read on: {reason}",
            remedy="Mend or replace the file, then run the same command again: what is done stays done.",
        ) from error


class ByteStream:
    """The bytes of one file, decompressed, in blocks; it counts what it took from the file.

    `tail` is where a reader of lines leaves what follows the last line end.
    """

    tail = b""

    def __init__(self, file: InputFile, progress: Progress) -> None:
        self._progress = progress
        self._before = progress.done
        self._raw: Any
        self._stream: Any
        if file.compression is None:
            self._stream = self._raw = file.path.open("rb", buffering=0)
        else:
            self._raw = pa.OSFile(str(file.path), "rb")
            self._stream = pa.CompressedInputStream(self._raw, file.compression)

    def read(self, size: int = BLOCK) -> bytes:
        """Read the next block of at most `size` bytes; empty at the end."""
        block: bytes = self._stream.read(size)
        self._progress.done = self._before + self._raw.tell()
        return block

    def close(self) -> None:
        """Close the file."""
        self._stream.close()
        self._raw.close()


class StdinStream(ByteStream):
    """Standard input, as it comes. What is read before `replay` comes again after it, once."""

    def __init__(self) -> None:
        if sys.stdin is None:
            raise UsageError("standard input is closed", remedy="Pipe the rows in, or name a file.")
        self._head: list[bytes] = []
        self._replayed: deque[bytes] | None = None

    def read(self, size: int = BLOCK) -> bytes:
        """Read what has arrived, waiting for the first byte; empty at the end."""
        if self._replayed:
            return self._replayed.popleft()
        stdin = cast("BufferedReader", sys.stdin.buffer)
        block = stdin.read1(size)
        if self._replayed is None:
            while 0 < len(block) < 3 and (more := stdin.read1(size)):  # room for a byte order mark
                block += more
            self._head.append(block)
        return block

    def replay(self) -> None:
        """Begin again from the first byte."""
        self._replayed = deque(self._head)
        self._head = []
        self.tail = b""

    def close(self) -> None:
        """Leave standard input open: it belongs to the process."""
