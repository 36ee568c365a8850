"""The lock of an output: one process at a time writes into it."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from batchchat.errors import OutputLocked, StorageError, UsageError
from batchchat.store.location.disk import (
    PRIVATE_FILE,
    storage_error,
    storage_errors,
)


class Lock:
    """The exclusive hold on an output, for as long as the process lives or until `release`."""

    def __init__(self, root: Path, state: Path, run_id: str) -> None:
        self._root = root
        self._path = state / "lock"
        try:
            self._descriptor = os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, PRIVATE_FILE)
        except OSError as error:
            raise unusable(self._path, error) from error
        try:
            with storage_errors(self._path):
                self._take(run_id)
        except BaseException:
            os.close(self._descriptor)
            raise

    def _take(self, run_id: str) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise _locked(self._root, _holder(self._descriptor)) from error
        # The folder may have been renamed (--fresh of another process) between opening the file and locking it.
        try:
            current = self._path.stat()
        except FileNotFoundError:
            current = None
        mine = os.fstat(self._descriptor)
        if current is None or (current.st_ino, current.st_dev) != (mine.st_ino, mine.st_dev):
            raise _locked(self._root, None)
        holder = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "run_id": run_id,
            "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, orjson.dumps(holder), 0)

    def release(self, *, clean: bool = True) -> None:
        """Let go of the output."""
        del clean  # what a write that failed has left is seen by the next run
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def holder_of(state: Path) -> dict[str, Any] | None:
    """Return who holds an output now (`pid`, `host`, `run_id`, `started_at`), None where nobody does."""
    path = state / "lock"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _holder(descriptor) or {}
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return None


def _holder(descriptor: int) -> dict[str, Any]:
    with suppress(OSError, orjson.JSONDecodeError):
        found = orjson.loads(os.pread(descriptor, 4096, 0))
        if isinstance(found, dict):
            return found
    return {}


def _locked(root: Path, holder: dict[str, Any] | None) -> OutputLocked:
    who = f" (pid {holder.get('pid')} on {holder.get('host')})" if holder else ""
    return OutputLocked(
        f"another run{who} holds the output {root}",
        remedy="Wait for it to end, or choose another output. `batchchat status` shows what it is doing.",
    )


def refusal(code: int, path: Path) -> OSError:
    """Say what the system would say if it were asked for more than it was."""
    return OSError(code, os.strerror(code), str(path))


_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.EFBIG})
"""Refusals that another folder would not change: the disk or the machine is at its end."""


def unusable(path: Path, error: OSError) -> UsageError | StorageError:
    """Say in the system's own words what is wrong with an output before a run: a wrong folder, or a failing disk."""
    if error.errno in _DISK:
        return storage_error(error.filename or path, error)
    remedy = "Choose a folder that you may write to, or change its permissions."
    if error.errno in {errno.ENOTDIR, errno.EEXIST}:
        remedy = "It is a file, and an output is a folder: choose another path, or move the file away."
    return UsageError(f"the output {error.filename or path} cannot be written: {error.strerror}", remedy=remedy)
