"""A run of batches that kills itself at a named step. Its arguments: the job, the step, and how often it is passed.

The steps are those of `STEPS`. The process ends by SIGKILL when the step is reached for the given time, else with the
run's exit code.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio

import batchchat
from batchchat.engines.batch.service import BatchService, RemoteBatch, ResultLine
from batchchat.engines.batch.services import open_service
from batchchat.runner.run import run_job
from batchchat.runner.writer import in_thread
from batchchat.store import Store

STEPS = (
    *("ledger.planned", "ledger.uploading", "upload.done", "ledger.uploaded", "ledger.creating", "create.done"),
    *("ledger.created", "poll.done", "ledger.state", "ledger.harvesting", "results.line", "results.end"),
    *("commit.written", "commit.after", "counted", "ledger.harvested", "files.removed", "ledger.cleaned"),
)
"""`ledger.X`: step X was written down, and nothing else is done yet. `counted`: all answers of a chunk are committed,
and it is not noted as harvested."""
_POINTS = {"_note_state": "ledger.state", "_write_down": "ledger.planned", "remove_files": "files.removed"}
"""What blocking code of the engine means that a step is done."""


class Watched:
    """A service that tells when its calls are done."""

    def __init__(self, service: BatchService, point: Callable[[str], None]) -> None:
        self._service = service
        self._point = point

    def __getattr__(self, name: str) -> Any:
        return getattr(self._service, name)

    async def __aenter__(self) -> Watched:
        await self._service.__aenter__()
        return self

    async def __aexit__(self, *args: Any) -> None:
        await self._service.__aexit__(*args)

    async def upload(self, name: str, path: Path) -> str:
        ref = await self._service.upload(name, path)
        self._point("upload.done")
        return ref

    async def create(self, input_ref: str, labels: Mapping[str, str]) -> RemoteBatch:
        batch = await self._service.create(input_ref, labels)
        self._point("create.done")
        return batch

    async def poll(self, ids: Sequence[str]) -> dict[str, RemoteBatch]:
        found = await self._service.poll(ids)
        self._point("poll.done")
        return found

    async def results(self, batch: RemoteBatch, scratch: Path) -> AsyncIterator[ResultLine]:
        async for line in self._service.results(batch, scratch):
            yield line
            self._point("results.line")
        self._point("results.end")


def main() -> None:
    job, wanted, number = sys.argv[1:]
    left = int(number)

    def point(name: str) -> None:
        nonlocal left
        if name == wanted:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    async def offload(function: Callable[..., Any], *args: Any, abandon: bool = False) -> Any:
        def work() -> Any:
            name = getattr(function, "__name__", "")
            if name == "_note" and args[2] == "harvested":
                point("counted")
            result = function(*args)
            if name == "_note":
                point(f"ledger.{args[2]}")
            elif name in _POINTS:
                point(_POINTS[name])
            return result

        return await in_thread(work, abandon=abandon)

    def connect(*args: Any, **options: Any) -> Any:
        return Watched(open_service(*args, **options), point)

    run = functools.partial(
        run_job,
        batchchat.load_job(Path(job)),
        open_store=functools.partial(Store.open, point=point),
        open_service=connect,
        offload=offload,
        environ={},
    )
    sys.exit(anyio.run(run).exit_code)
