"""Which files an input path means, and how their bytes are read: plain, compressed, or from standard input."""

from __future__ import annotations

import codecs
import difflib
import fnmatch
import glob
import os
import stat
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from io import BufferedReader
from pathlib import Path
from typing import Any, NoReturn, cast

import pyarrow as pa

from batchchat.addresses import HUB_SCHEME, Address, is_url, scheme_of
from batchchat.errors import StorageError, UsageError
from batchchat.records import Place
from batchchat.sources.input_file import FoundFiles, InputFile, LocalFile
from batchchat.sources.naming import FORMATS, KNOWN, STATE, format_of, input_kind, other_data, split_name

STDIN = "-"
BLOCK = 1 << 20
BOM = b"\xef\xbb\xbf"
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class Progress:
    """How much of a pass is read. One thread writes, others may read at any time."""

    __slots__ = ("done", "total")

    def __init__(self, total: int) -> None:
        self.total = total
        self.done = 0

    def fraction(self) -> float:
        """Return the share that is read, from 0 to 1; 0 if the total is not known."""
        return min(1.0, self.done / self.total) if self.total > 0 else 0.0


def find_files(path: str, base: Path | None, chosen: str | None, output: Address | None = None) -> FoundFiles:
    """List the files that an input path means, in the order they are read.

    A folder gives all files in it with a known extension, by relative path, without names that begin with `.` or
    `_`. Linked folders are followed, each folder once. A path with `*?[` that is no file itself is a glob.

    An output or an evaluation of batchchat below the path is no input, unless the path names it. `output` is the folder
    that the rows' records are written to.

    Raises UsageError if there is nothing to read, or if the output would be read as input.
    """
    if chosen is not None and chosen not in FORMATS:
        raise UsageError(f"input format {chosen!r} is not known", remedy=f"Known are {', '.join(FORMATS)}.")
    if is_url(path) and scheme_of(path) == HUB_SCHEME:
        from batchchat.sources.hub import find_hub_files

        return find_hub_files(path, chosen, output)
    if is_url(path):
        from batchchat.sources.remote import find_objects

        return find_objects(path, chosen, output)
    # An output in a bucket can hold no file of a folder of this machine.
    output = None if output is None or is_url(output) else Path(output)
    place = (base or Path()) / Path(path).expanduser()
    left_out: list[str] = []
    if place.is_dir():
        _check_output(output, place, place, hidden=True)
        walk = _Walk(place)
        found = [_input_file(file, place, chosen) for file in walk.files if chosen or format_of(file)]
        left_out = walk.left_out + other_data(walk.files if chosen is None else [])
        if not found:
            more = f"; {left_out[0]}" if left_out else ""
            raise UsageError(f"{place}: the folder holds no input file{more}", remedy=f"Known extensions are {KNOWN}.")
    elif place.exists():
        found = [_input_file(place, place.parent, chosen)]
    # Asked last: brackets and stars are letters that a file's own name may have.
    elif glob.has_magic(path):
        found = _match(place, chosen, output, left_out)
    else:
        _missing(place)
    # A file that is named itself, or by a glob, is read wherever it lies; not so what the run itself writes.
    for part in (output / "data", output / STATE) if output is not None else ():
        for file in found:
            if file.path.resolve().is_relative_to(part.resolve()):
                raise UsageError(
                    f"{file.path}: this file of the input is part of the output {output}",
                    remedy="Choose another folder for the output: a job never reads what it writes.",
                )
    kinds = {file.format for file in found}
    if len(kinds) > 1:
        raise UsageError(
            f"{place}: the input mixes {' and '.join(sorted(kinds))} files",
            remedy="Choose one kind with a glob, for instance input: data/*.parquet",
        )
    return FoundFiles([*found], left_out)


def reads_file(path: str, chosen: str | None, file: Path) -> bool:
    """Tell whether an input path reads a file, or would read it if it were there. `chosen` is the input's format."""
    if is_url(path):
        return False
    place, file = Path(path).expanduser(), file.resolve()
    if place.is_dir():
        if not file.is_relative_to(place.resolve()):
            return False
        hidden = any(part[0] in "._" for part in file.relative_to(place.resolve()).parts)
        return not hidden and (chosen is not None or format_of(file) is not None)
    # It may be there only when the job before it has run: then its path is compared as a text.
    if place.exists() or not glob.has_magic(path):
        return place.resolve() == file
    # `**` means any number of folders, also none; for fnmatch a star means anything.
    patterns = {str(place.absolute()), str(place.absolute()).replace("**/", "")}
    return any(fnmatch.fnmatchcase(str(file), pattern) for pattern in patterns)


def is_product(folder: Path) -> bool:
    """Tell whether a folder is an output or an evaluation of batchchat."""
    if (folder / STATE).is_dir():
        return True
    try:
        return any((variant / STATE).is_dir() for variant in (folder / "variants").iterdir())
    except OSError:
        return False


def _check_output(output: Path | None, folder: Path, place: Path, *, hidden: bool) -> None:
    """Refuse an output that lies in the folder of the input; `hidden`: names with `.` or `_` in front are not read."""
    if output is None or not output.resolve().is_relative_to(folder.resolve()):
        return
    inside = output.resolve().relative_to(folder.resolve()).parts
    if hidden and any(part[0] in "._" for part in inside):
        return
    raise UsageError(
        f"the output {output} lies inside the input {place}: its records would be read as rows",
        remedy="Choose an output beside the input's folder, or name the input's files, for instance data/*.jsonl",
    )


class _Walk:
    """The files below a folder, sorted, and what was left out.

    Linked folders come after all others: a folder that stands in the input itself keeps its own name.
    """

    def __init__(self, folder: Path) -> None:
        self.files: list[Path] = []
        self.left_out: list[str] = []
        self._seen: set[tuple[int, int]] = set()
        self._links: list[Path] = []
        self._visit(folder)
        while self._links:
            self._follow(self._links.pop(0))
        self.files.sort(key=lambda file: file.relative_to(folder).parts)

    def _visit(self, top: Path) -> None:
        for root, folders, names in os.walk(top, onerror=_unlisted):
            here = Path(root)
            about = here.stat()
            self._seen.add((about.st_dev, about.st_ino))
            kept = []
            for name in sorted(folders):
                inside = here / name
                # As Spark and Hive have it: such folders hold checkpoints and logs, no data.
                if name[0] in "._":
                    continue
                if inside.is_symlink():
                    self._links.append(inside)
                # Records of an earlier run in the folder of the input would become rows of the next one.
                elif is_product(inside):
                    self._leave_product(inside)
                else:
                    kept.append(name)
            folders[:] = kept
            for file in (here / name for name in names if name[0] not in "._"):
                if file.is_symlink() and not file.exists() and format_of(file) is None:
                    self.left_out.append(f"{file}: left out, since the link leads nowhere")
                else:
                    self.files.append(file)

    def _follow(self, link: Path) -> None:
        about = link.stat()
        # Links may lead in a circle, or twice to one folder, whose rows would be asked twice.
        if (about.st_dev, about.st_ino) in self._seen:
            self.left_out.append(f"{link}: the link was not followed: its folder is part of the input already")
        elif is_product(link):
            self._leave_product(link)
        else:
            self._visit(link)

    def _leave_product(self, folder: Path) -> None:
        self.left_out.append(f"{folder}: left out, since it is an output of batchchat; name it to read it")


def _unlisted(error: OSError) -> NoReturn:
    """A folder that cannot be listed would silently leave out its files."""
    raise UsageError(f"{error.filename}: the folder cannot be listed: {error.strerror}") from None


def _match(pattern: Path, chosen: str | None, output: Path | None, left_out: list[str]) -> list[LocalFile]:
    parts = pattern.parts
    fixed = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    folder = Path(*parts[:fixed])
    walks = "**" in parts
    # A glob with a fixed number of folders finds the output only if somebody names it.
    if walks:
        _check_output(output, folder, pattern, hidden=False)
    matches = sorted(Path(match) for match in glob.glob(str(pattern), recursive=True))  # noqa: PTH207 - Path.glob takes no absolute pattern
    products: dict[Path, bool] = {}
    files = []
    for match in matches:
        if not match.is_file():
            continue
        # `**` walks through folders that nobody named; any other pattern names what it finds.
        above = match.relative_to(folder).parents if walks else ()
        inside = next((folder / part for part in above if part.parts and _known_product(folder / part, products)), None)
        if inside is None:
            files.append(match)
        elif (told := f"{inside}: left out, since it is an output of batchchat; name it to read it") not in left_out:
            left_out.append(told)
    if not files:
        raise UsageError(f"{pattern}: no file matches", remedy=f"Looked in {folder.absolute()}.")
    return [_input_file(file, folder, chosen) for file in files]


def _known_product(folder: Path, products: dict[Path, bool]) -> bool:
    if folder not in products:
        products[folder] = is_product(folder)
    return products[folder]


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
    near = near or [name for name in names if format_of(Path(name))][:5]
    remedy = f"In that folder there is {', '.join(near)}." if near else "That folder holds no input file."
    raise UsageError(f"{place}: no such file or folder", remedy=remedy)


def _input_file(file: Path, folder: Path, chosen: str | None) -> LocalFile:
    kind = input_kind(str(file), file, chosen)
    try:
        about = file.stat()
    except OSError as error:
        raise UsageError(f"{file}: cannot be read: {error.strerror}") from None
    # A named pipe gives its rows once; the first look at the columns would use them up.
    if not stat.S_ISREG(about.st_mode):
        raise UsageError(
            f"{file}: is not a regular file, and an input is read more than once",
            remedy="Pipe it in instead, with --input -",
        )
    return LocalFile(
        address=str(file),
        name=file.relative_to(folder).as_posix(),
        format=kind,
        compression=split_name(file)[1],
        size=about.st_size,
        path=file,
        inode=about.st_ino,
        mtime_ns=about.st_mtime_ns,
    )


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


def _mark_bad(error: UnicodeError) -> tuple[str, int]:
    """Stand for bytes that a text in some encoding cannot hold: it becomes a byte that UTF-8 cannot hold."""
    return "\udcff", error.end if isinstance(error, UnicodeDecodeError) else 0


codecs.register_error("batchchat-mark", _mark_bad)


def text_encoding(name: str) -> str | None:
    """Return an encoding's name as Python's codecs know it; None for UTF-8. UsageError if there is no such encoding."""
    try:
        found = codecs.lookup(name)
        "".encode(name)  # refused by codecs that are no encodings of texts
        codecs.getincrementaldecoder(name)
    except (LookupError, ValueError):
        near = difflib.get_close_matches(name.lower(), ("utf-8", "utf-16", "cp1252", "latin-1", "shift_jis", "gb18030"))
        raise UsageError(
            f"input.encoding: {name!r} is no encoding of texts",
            remedy=f"Did you mean {near[0]}?"
            if near
            else "Usual are utf-8, utf-16, cp1252, latin-1, shift_jis, gb18030.",
        ) from None
    return None if found.name in {"utf-8", "utf-8-sig"} else found.name


class _Decoder:
    """Reads text of some encoding as UTF-8, block by block.

    Bytes that are no such text become bytes that are no UTF-8.
    """

    def __init__(self, encoding: str) -> None:
        self._decoder = codecs.getincrementaldecoder(encoding)("batchchat-mark")
        self._ready = b""
        self._ended = False

    def read(self, source: Callable[[int], bytes], size: int) -> bytes:
        """Return at most `size` bytes of UTF-8; empty at the end."""
        while not self._ready and not self._ended:
            block = source(size)
            self._ended = not block
            text = self._decoder.decode(block, final=self._ended)
            self._ready = text.encode("utf-8", "surrogateescape")
        found, self._ready = self._ready[:size], self._ready[size:]
        return found


class ByteStream:
    """The bytes of one file, decompressed, in blocks, from the first one or from behind a place.

    It counts and digests what it took from the file: `position` is the number of bytes before the next block. `tail` is
    where a reader of lines leaves what follows the last line end, `end` where it notes the end of the file, unless what
    stands there is left open, and `array` whether the text begins with `[`.
    """

    tail = b""
    position = 0
    array = False
    end: Place | None = None
    encoding = "UTF-8"
    encoding_remedy = "Save the file as UTF-8, or name its encoding: `encoding: cp1252` under input (Excel on Windows)."
    encoding_hint = "`encoding: cp1252` under input reads what Excel on Windows writes"

    def __init__(self, file: InputFile, progress: Progress, after: Place | None = None) -> None:
        self._progress = progress
        self._hash = sha256()
        self._digest: tuple[int, bytes] = (-1, b"")
        self._before = progress.done
        self._file = file
        self._raw: Any
        self._stream: Any
        if file.compression is None:
            self._stream = self._raw = file.open()
        else:
            self._raw = pa.OSFile(str(file.path), "rb") if isinstance(file, LocalFile) else file.open()
            stored = self._raw if isinstance(file, LocalFile) else pa.PythonFile(self._raw, mode="r")
            self._stream = pa.CompressedInputStream(stored, file.compression)
        self._decode = None if file.encoding is None else _Decoder(file.encoding)
        if file.encoding is not None:
            self._name_encoding(file.encoding)
        self._base = 0 if after is None else after.offset
        try:
            self._skip(self._base)
        except BaseException:
            self.close()
            raise

    def _name_encoding(self, encoding: str) -> None:
        self.encoding = encoding
        self.encoding_hint = "check `encoding` under input"
        self.encoding_remedy = "Check `encoding` under input."

    def _skip(self, count: int) -> None:
        # Nothing is unpacked or decoded: a place in the text is a place in the file.
        if self._stream is self._raw and self._decode is None:
            self._raw.seek(count)
            self.position = count
            return
        while self.position < count and (block := self._take(min(BLOCK, count - self.position))):
            self.position += len(block)

    def _take(self, size: int) -> bytes:
        """The next bytes as UTF-8; empty at the end."""
        if self._decode is None:
            block: bytes = self._stream.read(size)
            return block
        return self._decode.read(self._stream.read, size)

    def read(self, size: int = BLOCK) -> bytes:
        """Read the next block of at most `size` bytes; empty at the end.

        Raises StorageError if the file is no longer what it was when the input was opened, or ends early. One look at
        the file for each block costs microseconds, and no row of a file that is being rewritten is sent.
        """
        block = self._take(size)
        self._file.check_unchanged()
        if self.position == 0 and self._decode is None and block[:2] in _UTF16_MARKS:
            raise EOFError("its text is UTF-16: set `encoding: utf-16` under input")
        # Arrow takes it for an empty stream; but even no text at all has a header when it is compressed.
        if not block and self._file.compression is not None and not self._file.size:
            raise EOFError("it is empty, and a compressed file never is")
        self.position += len(block)
        self._hash.update(block)
        self._progress.done = self._before + self._raw.tell()
        return block

    def place(self, offset: int, line: int = 1, *, ended: bool = False) -> Place | None:
        """Return the place at `offset`, which is at most `position`; None where no later pass could begin there."""
        # All places of one block share a digest, which is finished once.
        if self._digest[0] != self.position:
            self._digest = self.position, self._hash.copy().digest()
        return Place(0, offset, line, self._base, self.position, self._digest[1], ended)

    def close(self) -> None:
        """Close the file."""
        self._stream.close()
        self._raw.close()


class StdinStream(ByteStream):
    """Standard input, as it comes. What is read before `replay` comes again after it, once."""

    def __init__(self, encoding: str | None = None) -> None:
        if encoding is not None:
            self._name_encoding(encoding)
        self._decode = None if encoding is None else _Decoder(encoding)
        if sys.stdin is None:
            raise UsageError("standard input is closed", remedy="Pipe the rows in, or name a file.")
        self._head: list[bytes] = []
        self._replayed: deque[bytes] | None = None

    def read(self, size: int = BLOCK) -> bytes:
        """Read what has arrived, waiting for the first byte; empty at the end."""
        if self._replayed:
            return self._replayed.popleft()
        stdin = cast("BufferedReader", sys.stdin.buffer)
        read = stdin.read1 if self._decode is None else partial(self._decode.read, stdin.read1)
        block = read(size)
        if self._replayed is None:
            while 0 < len(block) < 3 and (more := read(size)):  # room for a byte order mark
                block += more
            self._head.append(block)
        return block

    def replay(self) -> None:
        """Begin again from the first byte."""
        self._replayed = deque(self._head)
        self._head = []
        self.tail = b""

    def place(self, offset: int, line: int = 1, *, ended: bool = False) -> Place | None:
        """None: what came through a pipe does not come again."""
        return None

    def close(self) -> None:
        """Leave standard input open: it belongs to the process."""
