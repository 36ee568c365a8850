"""Durable files: write aside, synchronize, rename, synchronize the folder; and what a disk's refusal means.

What is published this way appears whole or not at all, also after a loss of power: the content is on the disk before
the name is, and the name before the caller goes on. The price is two synchronizations a file.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, cast

from batchchat.errors import StorageError

PRIVATE_FILE = 0o600
PRIVATE_FOLDER = 0o700
"""Prompts and answers may be private: nobody but the owner reads the state of an output."""

_FREE_SPACE = "Free some space, then run the same command again: it goes on where it stopped."
_RUN_AGAIN = "Mend that, then run the same command again: it goes on where it stopped."
_REASONS: dict[int | None, tuple[str, str]] = {
    errno.ENOSPC: ("the disk is full", _FREE_SPACE),
    errno.EDQUOT: ("the disk quota is used up", _FREE_SPACE),
    errno.EFBIG: ("the file would grow beyond the allowed file size", "Raise the limit (ulimit -f). " + _RUN_AGAIN),
    errno.EROFS: ("the file system is read-only", _RUN_AGAIN),
    errno.EACCES: ("permission denied", _RUN_AGAIN),
    errno.EPERM: ("operation not permitted", _RUN_AGAIN),
    errno.EMFILE: ("too many open files", "Raise the limit (ulimit -n). " + _RUN_AGAIN),
    errno.ENFILE: ("too many open files on this machine", _RUN_AGAIN),
    errno.EIO: ("the disk reports an input/output error", "Check the disk. " + _RUN_AGAIN),
    errno.ENOENT: ("it is not there any more", "Was the output moved or deleted during the run?"),
    errno.EXDEV: ("it lies on another file system", "Keep the whole output folder on one file system."),
}


def storage_error(path: Path | str, error: OSError) -> StorageError:
    """Say in plain words which file the system refused, why, and what to do."""
    _, remedy = _REASONS.get(error.errno, ("", _RUN_AGAIN))
    return StorageError(f"{path}: {reason_of(error)}", remedy=remedy)


def reason_of(error: OSError) -> str:
    """Say in plain words why the system refused."""
    reason, _ = _REASONS.get(error.errno, (error.strerror or str(error), ""))
    return reason


@contextmanager
def storage_errors(path: Path | str) -> Iterator[None]:
    """Turn every OSError inside into a StorageError that names the file."""
    try:
        yield
    except OSError as error:
        named = error.filename if isinstance(error.filename, str) else None
        raise storage_error(named or path, error) from error


def synchronize(descriptor: int) -> None:
    """Return when the content of an open file is on the disk (on macOS: out of the drive's own cache too)."""
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is not None:
        with suppress(OSError):  # file systems without it
            fcntl.fcntl(descriptor, full)
            return
    getattr(os, "fdatasync", os.fsync)(descriptor)


def synchronize_folder(folder: Path) -> None:
    """Return when the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:  # folders some network file systems cannot synchronize
            raise
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: bytes | bytearray) -> None:
    """Write all bytes, however many calls the system takes."""
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


def publish(
    path: Path,
    write: Callable[[BinaryIO], None],
    *,
    temporary: Path,
    mode: int = PRIVATE_FILE,
    before_rename: Callable[[], None] | None = None,
) -> None:
    """Write a file so that it appears whole and durable, or not at all.

    Arguments:
        path: its place.
        write: fills it.
        temporary: a folder of the same file system, for the time before it has its name.
        mode: its permissions.
        before_rename: called when the content is durable and the name is not yet given.

    Raises StorageError if the disk fails.
    """
    draft = temporary / f"{path.name}.{os.getpid()}"
    with storage_errors(path):
        try:
            with open_private(draft, "wb", mode) as sink:
                write(sink)
                sink.flush()
                synchronize(sink.fileno())
            if before_rename is not None:
                before_rename()
            draft.replace(path)
        except BaseException:
            with suppress(OSError):
                draft.unlink(missing_ok=True)
            raise
        synchronize_folder(path.parent)


def publish_bytes(path: Path, data: bytes, *, temporary: Path, durable: bool = True) -> None:
    """Publish a small private file. Without `durable` it is whole at every instant, but may be lost with the power."""
    if durable:
        publish(path, lambda sink: _discard(sink.write(data)), temporary=temporary)
        return
    draft = temporary / path.name
    with storage_errors(path):
        with open_private(draft, "wb", PRIVATE_FILE) as sink:
            sink.write(data)
        draft.replace(path)


def append_line(path: Path, line: bytes) -> None:
    """Append a line, which ends with its line break; durable on return."""
    with storage_errors(path):
        new = not path.exists()
        with open_private(path, "ab", PRIVATE_FILE) as sink:
            sink.write(line)
            sink.flush()
            synchronize(sink.fileno())
        if new:
            synchronize_folder(path.parent)


def cut_torn_line(path: Path) -> int:
    """Cut what follows the last line break of a file that grows by lines; return how many bytes that was."""
    with storage_errors(path):
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return 0
        torn = len(data) - (data.rfind(b"\n") + 1)
        if torn:
            os.truncate(path, len(data) - torn)
        return torn


def size_of(path: Path) -> int:
    """Return the size of a file in bytes, 0 if there is none."""
    with storage_errors(path):
        try:
            return path.stat().st_size
        except FileNotFoundError:
            return 0


def open_private(path: Path, mode: str, permissions: int) -> BinaryIO:
    """Open a file for writing; where it is created, with these permissions."""
    flags = {"wb": os.O_CREAT | os.O_WRONLY | os.O_TRUNC, "ab": os.O_CREAT | os.O_WRONLY | os.O_APPEND}[mode]
    return cast("BinaryIO", os.fdopen(os.open(path, flags | os.O_CLOEXEC, permissions), mode))


def free_name(folder: Path, name: str) -> Path:
    """Return a path in a folder that is not taken: the name itself, or with a number behind it."""
    path = folder / name
    number = 1
    while path.exists():
        path = folder / f"{name}.{number}"
        number += 1
    return path


def _discard(_: object) -> None:
    return None


_AT_CURRENT = -100
_EXCHANGE = 2
"""`AT_FDCWD` and `RENAME_EXCHANGE` of Linux's `renameat2`, which Python does not offer."""


def exchange(one: Path, other: Path) -> bool:
    """Let two folders change places in one step. Return false, with nothing changed, if the system cannot do that.

    Raises OSError if it refuses for another reason.
    """
    import ctypes  # for this alone, which is rare

    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    if rename(_AT_CURRENT, os.fsencode(one), _AT_CURRENT, os.fsencode(other), _EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP}:
        return False
    raise OSError(code, os.strerror(code), str(one))
