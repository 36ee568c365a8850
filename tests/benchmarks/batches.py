"""The batch engine without a provider's time: a service in this process that takes files and has answers at once.

`python -m tests.benchmarks.batches ROWS FOLDER create` writes and creates all batches and leaves them; the same with
`harvest` takes their answers. Each prints its seconds as JSON.
"""

from __future__ import annotations

import functools
import json
import shutil
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anyio

from batchchat.cli.process import collect_seldom, event_loop_options, keep_memory_small
from batchchat.engines.batch.service import BatchStatus, RemoteBatch, ResultLine, ServiceLimits
from batchchat.job import validate_job
from batchchat.runner.options import RunOptions
from batchchat.runner.run import run_job

_ANSWER_LETTERS = 1_750
"""Letters of an answer, so that its line has 2 kB."""


def _answer() -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": "x" * _ANSWER_LETTERS}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 100, "completion_tokens": 400, "total_tokens": 500}
    return json.dumps({"id": "chatcmpl-1", "model": "m", "choices": [choice], "usage": usage}).encode()


@dataclass
class InstantService:
    """Keeps links to uploaded files in a folder, and answers every line alike. Batches are at once in `status`."""

    folder: Path
    status: BatchStatus
    limits: ServiceLimits = ServiceLimits()

    async def __aenter__(self) -> InstantService:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    async def preflight(self) -> None:
        return None

    def encode(self, custom_id: str, body: bytes) -> bytes:
        start = b'{"custom_id":"%b","method":"POST","url":"/v1/chat/completions","body":' % custom_id.encode()
        return b"%b%b}\n" % (start, body)

    def refuses(self, body: bytes) -> str | None:
        return None

    async def upload(self, name: str, path: Path) -> str:
        target = self.folder / name
        await anyio.to_thread.run_sync(functools.partial(target.hardlink_to, path))
        return name

    async def create(self, input_ref: str, labels: Mapping[str, str]) -> RemoteBatch:
        return RemoteBatch(input_ref, BatchStatus.IN_PROGRESS, input_ref=input_ref, labels=labels)

    async def find(self, input_ref: str, labels: Mapping[str, str], since: float) -> list[RemoteBatch]:
        return []

    async def cancel(self, batch_id: str) -> None:
        return None

    async def delete(self, refs: Sequence[str]) -> None:
        return None

    async def poll(self, ids: Sequence[str]) -> dict[str, RemoteBatch]:
        refs = () if self.status is BatchStatus.IN_PROGRESS else ("all",)
        return {each: RemoteBatch(each, self.status, input_ref=each, result_refs=refs) for each in ids}

    async def results(self, batch: RemoteBatch, scratch: Path) -> AsyncIterator[ResultLine]:
        body = _answer()
        with (self.folder / (batch.input_ref or "")).open("rb") as lines:
            for line in lines:
                yield ResultLine(line[14:46].decode(), 200, body)


def main() -> None:
    count, folder, phase = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    if phase == "create":
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        with (folder / "rows.jsonl").open("w", encoding="utf-8") as rows:
            for number in range(count):
                rows.write(
                    json.dumps({"id": number, "text": f"{'The parcel came late and open. ' * 8}{number}"}) + "\n"
                )
    data: dict[str, Any] = {
        "name": "batches",
        "input": {"path": str(folder / "rows.jsonl"), "key": "id"},
        "output": str(folder / "out"),
        "provider": {"base_url": "http://127.0.0.1:1/v1"},
        "model": "m",
        "messages": [{"role": "user", "content": "Sort this ticket: {{ text }}"}],
        "engine": {"kind": "batch", "poll": 0.05},
    }
    marks: dict[str, list[float]] = {}
    keep_memory_small()
    collect_seldom()
    service = InstantService(folder, BatchStatus.IN_PROGRESS if phase == "create" else BatchStatus.COMPLETED)
    run = functools.partial(
        run_job,
        validate_job(data),
        options=replace(RunOptions(), wait=phase != "create"),
        environ={},
        open_service=lambda *_, **__: service,
        listener=lambda event: marks.setdefault(event.name, []).append(time.monotonic()),
    )
    started = time.monotonic()
    summary = anyio.run(run, backend_options=event_loop_options())
    seconds = time.monotonic() - started
    if phase == "harvest":  # without the look at the input that follows
        seconds = marks["batch_harvested"][-1] - marks["batch_state"][0]
    wanted = (4, 0) if phase == "create" else (0, count)
    if (summary.exit_code, summary.ok) != wanted:
        sys.exit(f"the run ended with {summary.exit_code}: {summary.reason}; {summary.ok} rows ok")
    print(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main()
