"""What the routes of one server share: options, faults, clock, and the folder with files and batches."""

from __future__ import annotations

import errno
import fcntl
import shutil
import tempfile
import threading
import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from batchchat.demo.batches.batches import Batches
from batchchat.demo.batches.clock import EpochClock
from batchchat.demo.batches.dialects import DemoDialect
from batchchat.demo.batches.faults import BatchFaults
from batchchat.demo.batches.files import FileStore
from batchchat.demo.batches.http import Abort
from batchchat.demo.batches.other_dialects import make_dialect
from batchchat.demo.batches.places import FilePlace
from batchchat.demo.batches.results import LineAnswer
from batchchat.demo.server_options import DemoOptions


class Context:
    """The Batch API of one server, apart from its routes.

    A temporary folder is made when it is needed first. One that the options name is opened at once: raises OSError if
    it cannot be used or another server uses it, ValueError if what is in it cannot be read.
    """

    def __init__(self, options: DemoOptions, answer: Callable[[bytes], LineAnswer], abort: Abort) -> None:
        self.options = options
        self.faults = BatchFaults(options.batch.faults, options.seed)
        self.dialect: DemoDialect = make_dialect(options.batch.dialect)
        self.clock = EpochClock()
        self.abort = abort
        self.calls: Counter[str] = Counter()
        self._answer = answer
        self._opening = threading.Lock()
        self._opened: Batches | None = None
        self._lock: BinaryIO | None = None
        self._remove: Callable[[], object] | None = None
        if options.batch.folder is not None:
            # Batches that an earlier server left go on at once.
            self._open()

    @property
    def used(self) -> bool:
        """Return true if there is a folder, so that there may be files and batches."""
        return self._opened is not None

    @property
    def files(self) -> FileStore:
        """The provider's store of files."""
        return self._open().files

    @property
    def place(self) -> FilePlace:
        """Where the input and results of batches lie."""
        return self._open().place

    @property
    def batches(self) -> Batches:
        """All batches."""
        return self._open()

    @property
    def scratch(self) -> Path:
        """A folder for what is kept for a moment only."""
        return self._open().scratch

    def stop(self) -> None:
        """Stop answering lines. Remove a temporary folder, let another server have any other."""
        if self._opened is not None:
            self._opened.stop()
        if self._remove is not None:
            self._remove()
        if self._lock is not None:
            self._lock.close()

    def _open(self) -> Batches:
        with self._opening:
            if self._opened is None:
                folder = self.options.batch.folder
                if folder is None:
                    folder = Path(tempfile.mkdtemp(prefix="batchchat-demo-"))
                    self._remove = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
                else:
                    self._lock = _lock(folder)
                self._opened = Batches(
                    self.options.batch,
                    faults=self.faults,
                    folder=folder,
                    dialect=self.dialect,
                    answer=self._answer,
                    now=self.clock.now,
                )
            return self._opened


def _lock(folder: Path) -> BinaryIO:
    """Take a folder for this server, until the file that is returned is closed or the process ends."""
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / "lock").open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise OSError(errno.EBUSY, "another server uses it", str(folder)) from None
    return file
