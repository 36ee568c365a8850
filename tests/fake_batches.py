"""A batch service without a network, for tests on a virtual clock and for measurements."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import anyio

from batchchat.engines.batch.service import BatchProblem, BatchStatus, RemoteBatch, ResultLine, ServiceLimits

Answer = Callable[[str, bytes], ResultLine | None]


def completion(text: str = "yes") -> bytes:
    """A completion as the Chat API has it."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}
    return json.dumps({"id": "c", "model": "m", "choices": [choice], "usage": usage}).encode()


def answer_all(text: str = "yes") -> Answer:
    """Answer every line alike."""
    body = completion(text)
    return lambda custom_id, _: ResultLine(custom_id, 200, body)


@dataclass
class FakeService:
    """Keeps batches in memory. A batch ends `seconds` after its creation, with `status`.

    `answer` gives the result of a line, None for none. `script` holds what calls raise, by name, one after the other:
    None lets a call through. `calls` holds when each call came, by name. `list_lag` hides young batches from `find`.
    """

    answer: Answer = field(default_factory=answer_all)
    seconds: float = 60.0
    status: BatchStatus = BatchStatus.COMPLETED
    problems: tuple[BatchProblem, ...] = ()
    limits: ServiceLimits = field(default_factory=ServiceLimits)
    list_lag: float = 0.0
    script: dict[str, list[Exception | None]] = field(default_factory=dict)
    lost_creates: int = 0
    calls: dict[str, list[float]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    batches: dict[str, tuple[RemoteBatch, float]] = field(default_factory=dict)
    cancelled: dict[str, float] = field(default_factory=dict)
    deleted: list[str] = field(default_factory=list)

    async def __aenter__(self) -> FakeService:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    def _call(self, name: str) -> None:
        self.calls.setdefault(name, []).append(anyio.current_time())
        planned = self.script.get(name)
        error = planned.pop(0) if planned else None
        if error is not None:
            raise error

    async def preflight(self) -> None:
        self._call("preflight")

    def encode(self, custom_id: str, body: bytes) -> bytes:
        return b'{"custom_id":"%b","body":%b}\n' % (custom_id.encode(), body)

    def refuses(self, body: bytes) -> str | None:
        return "it holds what no batch takes" if b"forbidden" in body else None

    async def upload(self, name: str, path: Path) -> str:
        self._call("upload")
        self.files[name] = path.read_bytes()  # noqa: ASYNC240 - small files of tests
        return name

    async def create(self, input_ref: str, labels: Mapping[str, str]) -> RemoteBatch:
        from batchchat.engines.batch.service import OutcomeUnknown

        self._call("create")
        now = anyio.current_time()
        batch = RemoteBatch(
            f"batch_{len(self.batches)}",
            BatchStatus.VALIDATING,
            input_ref=input_ref,
            labels=dict(labels),
            created_at=now,
        )
        self.batches[batch.id] = batch, now
        if self.lost_creates:
            self.lost_creates -= 1
            raise OutcomeUnknown("the answer was lost")
        return batch

    def _now(self, batch_id: str) -> RemoteBatch:
        batch, created = self.batches[batch_id]
        lines = self.files[batch.input_ref or ""].count(b"\n")
        if batch_id in self.cancelled:
            return replace(batch, status=BatchStatus.CANCELLED, total=lines, completed=0, failed=0)
        if anyio.current_time() < created + self.seconds:
            return replace(batch, status=BatchStatus.IN_PROGRESS, total=lines, completed=0, failed=0)
        refs = () if self.status is BatchStatus.FAILED else (f"{batch_id}-out",)
        return replace(
            batch, status=self.status, total=lines, completed=lines, failed=0, result_refs=refs, problems=self.problems
        )

    async def find(self, input_ref: str, labels: Mapping[str, str], since: float) -> list[RemoteBatch]:
        self._call("find")
        now = anyio.current_time()
        return [
            self._now(batch_id)
            for batch_id, (batch, created) in self.batches.items()
            if batch.input_ref == input_ref and batch.labels == dict(labels) and now >= created + self.list_lag
        ]

    async def poll(self, ids: Sequence[str]) -> dict[str, RemoteBatch]:
        self._call("poll")
        return {batch_id: self._now(batch_id) for batch_id in ids if batch_id in self.batches}

    async def results(self, batch: RemoteBatch, scratch: Path) -> AsyncIterator[ResultLine]:
        self._call("results")
        for line in self.files[batch.input_ref or ""].split(b"\n")[:-1]:
            found = self.answer(line[14:46].decode(), line) if batch.result_refs else None
            if found is not None:
                yield found

    async def cancel(self, batch_id: str) -> None:
        self._call("cancel")
        self.cancelled[batch_id] = anyio.current_time()

    async def delete(self, refs: Sequence[str]) -> None:
        self._call("delete")
        self.deleted += refs
