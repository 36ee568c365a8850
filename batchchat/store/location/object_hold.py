"""The exclusive hold on an output in a bucket: an epoch that every writer raises, and what a lost writer may still do.

`hold.json` is the one object that decides who writes. It is changed under the condition that it is as it was read, so a
writer that lost the output notices at the next change. What such a writer may do without changing it is little, and
the next one closes it before it reads anything:

- commit into the open generation of the journal. Each commit is created at the next free slot, so an object there, a
  fence, stops it. Fences are never deleted;
- write the one part that `writing` names. The store publishes that part again, changed, so that the condition of the
  late write fails.

A heartbeat changes the object as long as the holder lives. It only tells others whether to wait: no clock guards data.
"""

from __future__ import annotations

import os
import secrets
import socket
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

import orjson

from batchchat.errors import OutputLocked, StorageError
from batchchat.store.location.bucket import FoundObject, ObjectBucket, OtherContentError, Tag
from batchchat.store.location.probe import check_conditions

HOLD = "hold.json"
HEARTBEAT_S = 10.0
"""Seconds between two heartbeats: six small requests a minute, which is nothing beside the commits."""
DEAD_AFTER_S = 35.0
"""Seconds without a heartbeat after which a holder is taken for dead: three are missing, and one is late."""


class OutputLost(StorageError, OutputLocked):
    """Another run has taken this output over. Nothing that this one writes counts any more."""

    exit_code = OutputLocked.exit_code


def read_record(found: FoundObject | None, address: str) -> dict[str, Any] | None:
    """Return the record of a hold, None if there is none. Raises StorageError if it is damaged."""
    if found is None:
        return None
    try:
        value = orjson.loads(found.data)
    except orjson.JSONDecodeError:
        value = None
    if not isinstance(value, dict) or type(value.get("epoch")) is not int:
        raise StorageError(
            f"{address}: damaged: it does not say who writes into this output",
            remedy="Restore it from a version of the bucket, or choose another output.",
        )
    return value


def is_alive(record: dict[str, Any], found: FoundObject) -> bool:
    """Tell whether the holder of a record seems to be at work: its process is there, and its heartbeat too."""
    if not record.get("held"):
        return False
    if record.get("host") == socket.gethostname() and record.get("machine") == _machine():
        pid = record.get("pid")
        if not (isinstance(pid, int) and record.get("process") == _process(pid)):
            return False
    return (datetime.now(UTC) - found.written).total_seconds() < DEAD_AFTER_S


class ObjectHold:
    """The hold of this process on an output, from `take` to `release`. Any thread may call it.

    `record` is what `hold.json` says: beside who holds it, `generation` is the last generation of the journal that was
    begun, `sealed` the last one that was sealed, `writing` the part that is being written. `unclean` tells whether the
    writer before may still write. `heartbeat` is in seconds; None for none.
    """

    def __init__(
        self,
        bucket: ObjectBucket,
        output: str,
        run_id: str,
        *,
        take_over: bool = False,
        heartbeat: float | None = HEARTBEAT_S,
    ) -> None:
        self.unclean = False
        self.record: dict[str, Any] = {}
        self._bucket = bucket
        self._output = output
        self._writer = secrets.token_hex(8)
        self._lock = Lock()
        self._tag: Tag | None = None
        self._sent: set[bytes] = set()
        self._lost: OutputLost | None = None
        self._troubled = False
        self._ended = Event()
        self._take(run_id, take_over=take_over)
        if heartbeat is not None:
            Thread(target=self._beat, args=(heartbeat,), name="heartbeat of an output", daemon=True).start()

    @property
    def writer(self) -> str:
        """Return what tells this writer from all others."""
        return self._writer

    @property
    def epoch(self) -> int:
        """Return the epoch of this writer."""
        return int(self.record["epoch"])

    def check(self) -> None:
        """Raise OutputLost if another run is known to have taken the output over."""
        if self._lost is not None:
            raise self._lost

    def look(self) -> None:
        """Ask the store who holds the output. Raises OutputLost if it is another run."""
        self.check()
        found = self._bucket.get(HOLD)
        record = read_record(found, self._bucket.address_of(HOLD))
        if record is None or record.get("writer") != self._writer:
            raise self.lost(found)

    def lost(self, found: FoundObject | None = None) -> OutputLost:
        """Note that another run has taken the output over, and return the error that says so."""
        if self._lost is None:
            record: dict[str, Any] = {}
            with suppress(StorageError):
                found = found if found is not None else self._bucket.get(HOLD, wait=0)
                record = read_record(found, "") or {}
            who = f" (pid {record['pid']} on {record.get('host')})" if record.get("pid") else ""
            self._lost = OutputLost(
                f"another run{who} has taken the output {self._output} over: nothing more of this one counts",
                remedy=f"What was counted is kept. `batchchat status {self._output}` shows what the other run does.",
            )
        return self._lost

    def change(self, *, wait: float | None = None, **fields: Any) -> None:
        """Change the record, if this writer still holds the output. Raises OutputLost if not, StorageError."""
        with self._lock:
            self.check()
            record = {**self.record, **fields, "nonce": secrets.token_hex(8)}
            self._write(record, wait)

    def _write(self, record: dict[str, Any], wait: float | None) -> None:
        data = _encoded(record)
        while True:
            if self._tag is None:
                raise RuntimeError("the output is not held")
            try:
                self._tag = self._bucket.replace(HOLD, data, self._tag, wait=wait)
            except OtherContentError as error:
                # An earlier change whose outcome was not known may have come through after all.
                if error.found is not None and error.found.data in self._sent:
                    self._tag = error.found.tag
                    self._sent.discard(error.found.data)
                    continue
                raise self.lost(error.found) from error
            except StorageError:
                self._sent.add(data)
                self._troubled = True
                raise
            self.record = record
            return

    def _take(self, run_id: str, *, take_over: bool) -> None:
        """Raise the epoch. Raises OutputLocked if another run seems to be at work."""
        bucket = self._bucket
        while True:
            found = bucket.get(HOLD)
            old = read_record(found, bucket.address_of(HOLD)) or {}
            if found is not None and is_alive(old, found) and not take_over:
                raise _locked(self._output, old, found)
            conditions = check_conditions(bucket, self._output, old.get("conditions"))
            record = {
                **old,
                "epoch": int(old.get("epoch", 0)) + 1,
                "writer": self._writer,
                "nonce": secrets.token_hex(8),
                "held": True,
                "clean": False,
                "conditions": conditions,
                **_who(run_id),
            }
            data = _encoded(record)
            try:
                self._tag = bucket.create(HOLD, data) if found is None else bucket.replace(HOLD, data, found.tag)
            except OtherContentError:
                continue  # another run was here just now: look again
            self.record = record
            self.unclean = found is not None and not old.get("clean", False)
            return

    def _beat(self, every: float) -> None:
        while not self._ended.wait(every):
            try:
                # One try: a store that is away is no reason to keep others from the record.
                self.change(wait=0)
            except OutputLost:
                return
            except StorageError:
                continue

    def release(self, *, clean: bool = True) -> None:
        """Let go of the output. If not `clean`, a write may still happen, which the next run closes off."""
        self._ended.set()
        if self._lost is not None:
            return
        with suppress(StorageError):
            self.change(wait=1.0, held=False, clean=clean and not self._troubled)


def _locked(address: str, record: dict[str, Any], found: FoundObject) -> OutputLocked:
    seconds = max(0.0, (datetime.now(UTC) - found.written).total_seconds())
    return OutputLocked(
        f"another run (pid {record.get('pid')} on {record.get('host')}, since {record.get('started_at')}) holds the "
        f"output {address}; its last sign of life came {seconds:.0f} s ago",
        remedy=f"Wait for it to end, or choose another output. If you know that it is dead, --take-over goes on at "
        f"once; without it, the same command works when it was silent for {DEAD_AFTER_S:.0f} s.",
    )


def _who(run_id: str) -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "machine": _machine(),
        "process": _process(os.getpid()),
        "run_id": run_id,
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _machine() -> str | None:
    """Return what tells this start of this machine, and this container, from others; None if nothing tells it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}:{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return None


def _process(pid: int) -> str | None:
    """Return what tells a process from another that has its number later; None if there is no such process."""
    try:
        told = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return _running(pid)
    except OSError:
        return None
    fields = told.rpartition(")")[2].split()
    # A killed process that nobody has waited for is dead.
    return None if fields[0] in {"Z", "X"} else fields[19]


def _running(pid: int) -> str | None:
    """Tell of a process on a system without /proc whether it runs."""
    if Path("/proc/self").exists():
        return None
    try:
        os.kill(pid, 0)
    except PermissionError:
        return "running"
    except OSError:
        return None
    return "running"


def _encoded(record: dict[str, Any]) -> bytes:
    return orjson.dumps(record, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
