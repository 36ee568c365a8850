"""The keeper of a limit in a file: for the processes of one machine, without a server.

`FOLDER/NAME.limit` holds the state. Who asks takes the file's lock, reads the state, asks, writes, and lets go. The
file holds the state twice: the new one is written beside the old one, and then the header is switched over, so that a
process that is killed in between leaves the old one. A process says that it lives by the lock on a file of its own in
`FOLDER/NAME.holders/`: the system lets go of that lock when the process ends, however it ends.

A process that is stopped (SIGSTOP) while it holds the lock keeps all others from asking. After some seconds one of them
puts a copy in place of the file. When the stopped process goes on, it writes to the old file, which nobody reads any
more, and the permits that it then has are too old to be used.

All processes read the same monotonic clock. Nothing is synced to the disk: after a restart of the machine the state is
of no use (its name holds the number of the system's start).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import secrets
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import anyio

from batchchat import __version__
from batchchat.errors import StorageError
from batchchat.limits.ceilings import Advertised
from batchchat.sharing.keeper import LimitKeeper
from batchchat.sharing.keeper_bytes import bytes_of_keeper, keeper_of_bytes
from batchchat.sharing.messages import KeeperAnswer, KeeperAsk

LEASE_S = 0.5
"""How long a permit may be used. A turn of the event loop takes milliseconds, on a busy machine a tenth of a second.
The pace pays 0.8 % for it."""
STUCK_S = 3.0
"""After so many seconds of waiting for the lock, its holder is taken to be stopped. It holds it for under 1 ms, on a
machine with ten times more to do than processors for some 100 ms. It must be longer than `LEASE_S`."""
_LOOK_S = 0.001
"""Seconds between two tries to get the lock."""
_ALIVE_EVERY_S = 0.5
"""Seconds between two looks whether the other processes live."""
_OLD_S = 7 * 86_400.0
"""Files that nobody wrote to for a week are removed."""
_MAGIC = b"bclimit1"
_VERSION = f"{__version__}/4"[:16].encode("ascii")
"""The state is only read by the version that wrote it. The number after it counts changes of the state in between."""
_HEADER = struct.Struct("<8s16sIQQII")
"""Magic, version of batchchat, which of the two states counts, their lengths, their checksums."""
_FIRST, _ROOM = 4096, 1 << 20
"""Where the first state begins, and how many bytes one may have. It has 280 KB with every suspect noted and 200
processes, measured."""


def _start_of_system() -> str:
    """Return what tells this start of the system from others, as far as the system tells."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip().replace("-", "")[:12]
    except OSError:
        return "any"


class LimitFile:
    """One process's way to a limit that a file keeps.

    Arguments:
        folder: where the files of limits are.
        name: of the limit; see `limit_name`.
        advertised: what the provider is known to allow, for a file that is new.
        rng: spreads waits.
    """

    lease_s = LEASE_S
    connection = 0
    interval_s = 0.01
    """Seconds between two asks: one takes 0.5 ms, so that it is a twentieth of a processor at most."""

    def __init__(self, folder: Path, name: str, advertised: Advertised, rng: random.Random) -> None:
        self._advertised = advertised
        self._rng = rng
        self._path = folder / f"{name}.{_start_of_system()}.limit"
        self._holders = self._path.with_suffix(".holders")
        self._folder = folder
        self._me = ""
        self._own = self._file = -1
        self._alive_at = -1.0

    # --- the carrier

    async def open(self) -> None:
        """Begin to use the limit. Raises StorageError if its file cannot be made, or is not this user's own."""
        folder = self._folder
        self._me = f"{os.getpid()}-{secrets.token_hex(4)}"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _sweep(folder)
            self._holders.mkdir(mode=0o700, exist_ok=True)
            self._own = _locked(self._holders / self._me)
            self._file = _open(self._path)
        except OSError as error:
            raise _cannot(folder, error) from None

    async def exchange(self, ask: KeeperAsk) -> KeeperAnswer:
        """Ask the keeper. Raises StorageError if the file cannot be read or written."""
        since: float | None = None
        while True:
            with self._try_lock() as locked:
                answer = self._exchange(ask) if locked else None
            if answer is not None:
                return answer
            now = anyio.current_time()
            since = now if since is None else since
            if now - since > STUCK_S:
                self._replace()
                since = None
            await anyio.sleep(_LOOK_S)

    async def close(self) -> None:
        """Leave the limit. If its lock cannot be had in time, the others find out."""
        # The lock on the own file is let go first: whoever looks from now on knows.
        os.close(self._own)
        with contextlib.suppress(StorageError):
            for _ in range(50):
                with self._try_lock() as locked:
                    if locked:
                        keeper = self._read(anyio.current_time())
                        keeper.leave(self._me, anyio.current_time())
                        self._write(keeper)
                        break
                await anyio.sleep(_LOOK_S)
        with contextlib.suppress(OSError):
            (self._holders / self._me).unlink()
        os.close(self._file)

    def _exchange(self, ask: KeeperAsk) -> KeeperAnswer | None:
        """Ask the keeper in the file; None if another file took its place meanwhile."""
        now = anyio.current_time()
        keeper = self._read(now)
        if now >= self._alive_at:
            self._alive_at = now + _ALIVE_EVERY_S
            self._bury(keeper, now)
        answer = keeper.exchange(self._me, ask, now)
        self._write(keeper)
        # `_replace` puts its file in place first and reads this one then: it has read what was written just now, or the
        # file is another one here.
        return answer if _same(self._path, self._file) else None

    def _bury(self, keeper: LimitKeeper, now: float) -> None:
        """Take out the processes that have ended without leaving."""
        for name in [name for name in keeper.holders if name != self._me]:
            if not _lives(self._holders / name):
                keeper.leave(name, now)
                with contextlib.suppress(OSError):
                    (self._holders / name).unlink()

    # --- the lock

    @contextlib.contextmanager
    def _try_lock(self) -> Iterator[bool]:
        """Take the file's lock if it is free, and the file is the one that counts."""
        try:
            if self._path.stat().st_ino != os.fstat(self._file).st_ino:
                raise FileNotFoundError
        except FileNotFoundError:
            # Another process has put a copy in its place, or somebody removed it.
            os.close(self._file)
            try:
                self._file = _open(self._path)
            except OSError as error:
                raise _cannot(self._path.parent, error) from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        try:
            # It may have been replaced since the look above.
            yield _same(self._path, self._file)
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def _replace(self) -> None:
        """Put a copy of the file in its place: who holds its lock does not go on."""
        guard = os.open(self._path.with_suffix(".replace"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _same(self._path, self._file):
                return
            fresh = self._path.with_suffix(f".{self._me}.new")
            file = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
                # If this process is killed before the state is there, the header says that some was.
                os.pwrite(file, bytes(_HEADER.size), 0)
                fresh.replace(self._path)
                _write(file, self._read(anyio.current_time()))
            finally:
                os.close(file)
        except BlockingIOError:
            pass  # another process is at it
        finally:
            os.close(guard)

    # --- the state

    def _read(self, now: float) -> LimitKeeper:
        header = os.pread(self._file, _HEADER.size, 0)
        if not header:
            return LimitKeeper(LEASE_S, self._advertised, self._rng)
        if len(header) == _HEADER.size:
            magic, version, active, *rest = _HEADER.unpack(header)
            version = version.rstrip(b"\0")
            if magic == _MAGIC and version == _VERSION:
                place = active & 1
                data = os.pread(self._file, rest[place], _FIRST + place * _ROOM)
                if zlib.crc32(data) == rest[2 + place]:
                    with contextlib.suppress(ValueError):
                        keeper: LimitKeeper = keeper_of_bytes(data, self._rng)
                        return keeper
            elif magic == _MAGIC and any(_lives(path) for path in self._others()):
                written = version.decode("ascii", "replace").partition("/")[0]
                raise StorageError(
                    f"limits.shared: runs of another version of batchchat ({written}) keep the limit in {self._path}",
                    remedy="Let them end, or run all of them with the same version.",
                )
        # Nobody knows what was granted a moment ago: nothing goes until that can no longer be used.
        keeper = LimitKeeper(LEASE_S, self._advertised, self._rng)
        keeper.stand(now)
        return keeper

    def _others(self) -> Iterator[Path]:
        return (path for path in self._holders.iterdir() if path.name != self._me)

    def _write(self, keeper: LimitKeeper) -> None:
        try:
            _write(self._file, keeper)
        except OSError as error:
            raise _cannot(self._path.parent, error) from None


def _write(file: int, keeper: LimitKeeper) -> None:
    """Write the state beside the one that counts, and switch over."""
    data = bytes_of_keeper(keeper)
    if len(data) > _ROOM:
        raise OSError(f"the state of the limit has {len(data):,} bytes, more than {_ROOM:,}")
    header = os.pread(file, _HEADER.size, 0)
    active, lengths, sums = 1, [0, 0], [0, 0]
    if len(header) == _HEADER.size:
        _, _, active, *rest = _HEADER.unpack(header)
        lengths, sums = rest[:2], rest[2:]
    place = 1 - (active & 1)
    lengths[place], sums[place] = len(data), zlib.crc32(data)
    os.pwrite(file, data, _FIRST + place * _ROOM)
    os.pwrite(file, _HEADER.pack(_MAGIC, _VERSION, place, *lengths, *sums), 0)


def _open(path: Path) -> int:
    """Open a limit's file, or make it. Raises OSError also if it is another user's, or others may write to it."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    found = os.fstat(file)
    if found.st_uid != os.geteuid() or found.st_mode & 0o077:
        os.close(file)
        raise PermissionError(f"{path} belongs to another user, or others may read or write it; remove it")
    return file


def _locked(path: Path) -> int:
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


def _lives(path: Path) -> bool:
    """Tell whether the process lives that made this file."""
    try:
        file = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False


def _same(path: Path, file: int) -> bool:
    try:
        return path.stat().st_ino == os.fstat(file).st_ino
    except FileNotFoundError:
        return False


def _sweep(folder: Path) -> None:
    """Remove the files of limits that nobody used for long, such as those from before a restart of the machine."""
    before = time.time() - _OLD_S
    for path in folder.glob("*.limit"):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < before:
                path.unlink()
                path.with_suffix(".replace").unlink(missing_ok=True)
                for name in path.with_suffix(".holders").iterdir():
                    name.unlink()
                path.with_suffix(".holders").rmdir()


def _cannot(folder: Path, error: OSError) -> StorageError:
    return StorageError(
        f"limits.shared: the folder {folder} cannot be used: {error.strerror or error}",
        remedy="Make it writable, name another by XDG_CACHE_HOME, or take `shared` out of the job's limits.",
    )
