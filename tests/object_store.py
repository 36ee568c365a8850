"""A store of objects in memory, with faults, and writers that take turns at its requests in an order that a seed gives.

Each writer runs in a thread of its own, and only one of them goes on at a time: at every request it gives its turn
back. So a run is the same each time for one seed, although the store and the journal are blocking code.
"""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from batchchat.store.location.bucket import (
    ConditionFailedError,
    FoundObject,
    ListedObject,
    StorePatience,
    Tag,
    UnclearError,
)
from batchchat.store.location.objects import ObjectLocation

URL = "s3://bucket/run"


class MemoryObjects:
    """A store as S3 is: an ETag is the digest of the content. Counts its requests by kind."""

    def __init__(self) -> None:
        self.unquoted = False
        self.content: dict[str, bytes] = {}
        self.written: dict[str, datetime] = {}
        self.requests: dict[str, int] = {}
        self.on_write: Callable[[str], None] = lambda path: None
        self.ignores_conditions = False

    def _count(self, kind: str) -> None:
        self.requests[kind] = self.requests.get(kind, 0) + 1

    def get(self, path: str, *, span: tuple[int, int] | None = None, tag: Tag | None = None) -> FoundObject | None:
        self._count("get")
        data = self.content.get(path)
        if data is None:
            return None
        now = _tag(data)
        if tag is not None and not now.same(tag):
            raise ConditionFailedError(path)
        part = data if span is None else data[span[0] :] if span[0] < 0 else data[span[0] : span[1]]
        return FoundObject(part, now, len(data), self.written[path])

    def head(self, path: str) -> ListedObject | None:
        self._count("head")
        return self._listed(path) if path in self.content else None

    def _listed(self, path: str) -> ListedObject:
        return ListedObject(path, len(self.content[path]), _tag(self.content[path]), self.written[path])

    def put(self, path: str, data: bytes, *, create: bool = False, tag: Tag | None = None) -> Tag:
        self._count("put")
        there = self.content.get(path)
        if not self.ignores_conditions:
            if create and there is not None:
                raise ConditionFailedError(path)
            if tag is not None and (there is None or not _tag(there).same(tag)):
                raise ConditionFailedError(path)
        self.content[path] = bytes(data)
        self.written[path] = datetime.now(UTC)
        self.on_write(path)
        return _tag(data)

    def list(self, prefix: str) -> Sequence[ListedObject]:
        self._count("list")
        return [self._listed(path) for path in sorted(self.content) if path.startswith(prefix)]

    def folders(self, prefix: str) -> Sequence[str]:
        self._count("list")
        rest = [path[len(prefix) :] for path in self.content if path.startswith(prefix)]
        return sorted({name if "/" not in name else name.partition("/")[0] + "/" for name in rest})

    def delete(self, paths: Sequence[str]) -> None:
        self._count("delete")
        for path in paths:
            self.content.pop(path, None)
            self.on_write(path)

    def copy(self, source: str, target: str) -> None:
        self._count("copy")
        self.content[target] = self.content[source]
        self.written[target] = datetime.now(UTC)


def _tag(data: bytes) -> Tag:
    return Tag(f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"')


class Killed(BaseException):
    """The process of a writer is gone."""


@dataclass
class Faults:
    """How often what goes wrong, as a share of the requests of a writer."""

    lost_answer: float = 0.03
    cut: float = 0.03
    late: float = 0.02
    stall: float = 0.12
    kill: float = 0.004


@dataclass(eq=False)
class Writer:
    """One writer, which waits for its turn at each request."""

    work: Callable[[Writer], None]
    turn: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    back: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    ready_at: int = 0
    ended: bool = False
    error: BaseException | None = None
    thread: threading.Thread | None = None


class Turns:
    """Lets writers take turns, and makes the faults of their requests."""

    def __init__(self, objects: MemoryObjects, seed: int, faults: Faults) -> None:
        self.objects = objects
        self.rng = random.Random(seed)
        self.faults = faults
        self.step = 0
        self.injected: dict[str, int] = {}
        self._late: list[tuple[int, Callable[[], Any]]] = []
        self._writers: list[Writer] = []

    def add(self, work: Callable[[Writer], None]) -> None:
        """Add a writer."""
        writer = Writer(work)
        writer.thread = threading.Thread(target=self._run, args=(writer,), daemon=True)
        self._writers.append(writer)
        writer.thread.start()

    def _run(self, writer: Writer) -> None:
        writer.turn.acquire()
        try:
            writer.work(writer)
        except Killed:
            pass
        except BaseException as error:  # noqa: BLE001 - told by `play`
            writer.error = error
        writer.ended = True
        writer.back.release()

    def play(self) -> None:
        """Let all writers go on, one step of one of them at a time, to their ends. Raises what one of them raised."""
        while waiting := [writer for writer in self._writers if not writer.ended]:
            self.step += 1
            due = [work for when, work in self._late if when <= self.step]
            self._late = [one for one in self._late if one[0] > self.step]
            for work in due:
                with suppress(ConditionFailedError):
                    work()
            able = [writer for writer in waiting if writer.ready_at <= self.step]
            if not able:
                continue
            writer = self.rng.choice(able)
            writer.turn.release()
            writer.back.acquire()
            if writer.error is not None:
                raise writer.error
        for _, work in self._late:
            with suppress(ConditionFailedError):
                work()

    def request(self, writer: Writer, work: Callable[[], Any], *, writes: bool) -> Any:
        """Give the turn back before a request, then do it, or let it go wrong."""
        if threading.current_thread() is not writer.thread:
            return work()  # a helper thread of a writer that has its turn
        self.pause(writer, writes=writes)
        faults, draw = self.faults, self.rng.random()
        for kind in ("lost_answer", "cut", "late", "kill"):
            share = getattr(faults, kind)
            if draw < share:
                self._note(kind)
                return self._go_wrong(kind, work, writes=writes)
            draw -= share
        return work()

    def _go_wrong(self, kind: str, work: Callable[[], Any], *, writes: bool) -> Any:
        if kind == "lost_answer":
            with suppress(ConditionFailedError):
                work()
        elif kind == "late" and writes:
            self._late.append((self.step + self.rng.randrange(1, 60), work))
        elif kind == "kill":
            if writes and self.rng.random() < 0.5:
                self._late.append((self.step + self.rng.randrange(0, 40), work))
            raise Killed
        raise UnclearError(kind)

    def pause(self, writer: Writer, *, writes: bool = False) -> None:
        """Give the turn back, and wait for the next one; before a write that may be long, so that others take over."""
        if writes and self.rng.random() < self.faults.stall:
            self._note("stall")
            writer.ready_at = self.step + self.rng.randrange(50, 800)
        writer.back.release()
        writer.turn.acquire()

    def _note(self, kind: str) -> None:
        self.injected[kind] = self.injected.get(kind, 0) + 1

    def location(self, writer: Writer, shard: int | None = None) -> ObjectLocation:
        """Return the location of the output as a writer has it."""
        patience = StorePatience(1e9, sleep=lambda _: self.pause(writer))
        return ObjectLocation(URL, shard, objects=TurnObjects(self, writer), patience=patience, heartbeat=None)


class TurnObjects:
    """The requests of one writer."""

    def __init__(self, turns: Turns, writer: Writer) -> None:
        self.unquoted = False
        self._turns = turns
        self._writer = writer

    def _ask(self, name: str, *arguments: Any, **options: Any) -> Any:
        work = lambda: getattr(self._turns.objects, name)(*arguments, **options)  # noqa: E731
        return self._turns.request(self._writer, work, writes=name in {"put", "delete", "copy"})

    def get(self, path: str, *, span: tuple[int, int] | None = None, tag: Tag | None = None) -> FoundObject | None:
        found: FoundObject | None = self._ask("get", path, span=span, tag=tag)
        return found

    def head(self, path: str) -> ListedObject | None:
        found: ListedObject | None = self._ask("head", path)
        return found

    def put(self, path: str, data: bytes, *, create: bool = False, tag: Tag | None = None) -> Tag:
        written: Tag = self._ask("put", path, data, create=create, tag=tag)
        return written

    def list(self, prefix: str) -> Sequence[ListedObject]:
        found: Sequence[ListedObject] = self._ask("list", prefix)
        return found

    def folders(self, prefix: str) -> Sequence[str]:
        found: Sequence[str] = self._ask("folders", prefix)
        return found

    def delete(self, paths: Sequence[str]) -> None:
        self._ask("delete", paths)

    def copy(self, source: str, target: str) -> None:
        self._ask("copy", source, target)
