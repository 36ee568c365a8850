"""Workers as tasks of one event loop, for tests of what a coordinator does; messages are JSON, as between processes."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import orjson
import trio.testing
from anyio.abc import TaskGroup

from batchchat.events import Event, RunSummary, Snapshot
from batchchat.job import Job
from batchchat.runner.control import Control
from batchchat.runner.options import RunOptions
from batchchat.runner.run import run_job
from batchchat.workers import Message, WorkerEnd, run_with_workers, work
from tests.unit.test_run_clock import Provider, inline


class TaskWorker:
    """A worker in a task."""

    def __init__(self, name: str) -> None:
        self.place = f"task {name}"
        self.scope = anyio.CancelScope()
        self.died = False
        self._ended = anyio.Event()
        self._told_in, self._told = anyio.create_memory_object_stream[bytes](1_000)
        self._heard_in, self._heard = anyio.create_memory_object_stream[bytes](1_000)

    async def run(self, run: Callable[..., Awaitable[RunSummary]]) -> None:
        async def receive() -> Message | None:
            try:
                return dict(orjson.loads(await self._told.receive()))
            except anyio.EndOfStream:
                return None

        async def send(message: Message) -> None:
            await self._heard_in.send(orjson.dumps(message, default=str))

        with self.scope:
            await work(receive, send, run=run)
        self.died = self.scope.cancelled_caught
        self._heard_in.close()
        self._ended.set()

    async def tell(self, message: Message) -> None:
        with suppress(anyio.ClosedResourceError, anyio.BrokenResourceError):
            await self._told_in.send(orjson.dumps(message))

    async def messages(self) -> AsyncIterator[Message]:
        async for data in self._heard:
            yield orjson.loads(data)

    async def wait(self) -> WorkerEnd:
        await self._ended.wait()
        return WorkerEnd(not self.died, "killed by a test" if self.died else "")

    async def kill(self) -> None:
        self.scope.cancel()
        for stream in (self._told_in, self._told, self._heard):
            stream.close()


class TaskLauncher:
    """Starts workers as tasks. `workers` are all that were started, in order."""

    host = None

    def __init__(self, group: TaskGroup, run: Callable[..., Awaitable[RunSummary]]) -> None:
        self.workers: list[TaskWorker] = []
        self._group = group
        self._run = run

    async def start(self, name: str) -> TaskWorker:
        worker = TaskWorker(name)
        self.workers.append(worker)
        self._group.start_soon(worker.run, self._run)
        return worker


class Played:
    """A run with workers on a virtual clock, as it went."""

    def __init__(self, provider: Provider) -> None:
        self.provider = provider
        self.events: list[Event] = []
        self.snapshots: list[Snapshot] = []
        self.launcher: TaskLauncher
        self.summary: RunSummary

    def names(self) -> list[str]:
        return [event.name for event in self.events]


def play(
    job: Job,
    workers: int,
    provider: Provider,
    *,
    control: Control | None = None,
    options: RunOptions | None = None,
    during: Callable[[Played, Snapshot], None] = lambda _played, _snapshot: None,
    **given: Any,
) -> Played:
    """Run a job with workers. `during` is called at each snapshot of the whole run."""
    played = Played(provider)

    def on_snapshot(snapshot: Snapshot) -> None:
        played.snapshots.append(snapshot)
        during(played, snapshot)

    async def main() -> RunSummary:
        async with anyio.create_task_group() as group:
            run = functools.partial(run_job, transport=provider, offload=inline, environ={}, seed=1)
            played.launcher = TaskLauncher(group, run)
            summary = await run_with_workers(
                job,
                workers,
                launcher=played.launcher,
                options=options or RunOptions(),
                control=control,
                listener=played.events.append,
                on_snapshot=on_snapshot,
                environ={},
                offload=inline,
                **given,
            )
            group.cancel_scope.cancel()
        return summary

    clock = trio.testing.MockClock(autojump_threshold=0)
    try:
        played.summary = anyio.run(main, backend="trio", backend_options={"clock": clock})
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None
    return played


def ids_of(folder: Path) -> list[str]:
    """Return the identities in a dataset, sorted."""
    import pyarrow.dataset

    table = pyarrow.dataset.dataset(folder / "data", format="parquet").to_table(columns=["custom_id"])
    return sorted(table.column(0).to_pylist())
