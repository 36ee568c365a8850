"""Suites for tests: a few rows, a job, variants, and a provider whose answers a test makes up; on a virtual clock."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import httpx
import pyarrow.parquet as pq
import trio.testing
import yaml

from batchchat.evaluation.evaluate import Evaluation, evaluate
from batchchat.evaluation.suite.reading import load_suite
from batchchat.evaluation.suite.suite import Suite
from batchchat.evaluation.suite_runs import SuiteRunOptions
from batchchat.events import Event, Snapshot
from batchchat.runner.options import RunOptions
from tests.integration.jobs import write_rows

Answer = Callable[[str, str], str | int]
"""Makes the answer to a model and the last message's text: a text, or an HTTP status to fail with."""

JOB: Mapping[str, Any] = {
    "name": "label",
    "input": {"path": "rows.jsonl", "key": "id"},
    "output": "out/label",
    "provider": {"base_url": "http://model.invalid/v1"},
    "model": "good",
    "messages": [{"role": "user", "content": "{{ text }}"}],
    "prices": {"input": 1, "output": 2, "currency": "EUR"},
    "limits": {"concurrency": 8},
    "retry": {"attempts": 1},
}
SUITE: Mapping[str, Any] = {
    "name": "suite",
    "job": "label.yaml",
    "variants": {"matrix": {"model": ["good", "bad"]}},
    "scorers": [{"name": "accuracy", "kind": "exact", "expected": "gold"}],
    "output": "out/suite",
}


async def inline(function: Callable[..., Any], *args: Any, abandon: bool = False) -> Any:
    """Blocking work in line: a thread's work does not hold the virtual clock back."""
    del abandon
    return function(*args)


@dataclass
class Provider:
    """Answers by a function, after a second; remembers the model and text of each request and when it came."""

    answer: Answer
    seconds: float = 1.0
    asked: list[tuple[str, str]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    def transport(self) -> httpx.AsyncBaseTransport:
        return httpx.MockTransport(self._handle)

    async def _handle(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        model, text = body["model"], body["messages"][-1]["content"]
        self.asked.append((model, text))
        self.times.append(anyio.current_time())
        await anyio.sleep(self.seconds)
        found = self.answer(model, text)
        if isinstance(found, int):
            return httpx.Response(found, json={"error": {"message": "no"}})
        usage = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}
        choice = {"message": {"content": found}, "finish_reason": "stop"}
        return httpx.Response(200, json={"choices": [choice], "usage": usage, "model": model})


@dataclass
class Bench:
    """A folder with rows, a job and a suite."""

    folder: Path
    provider: Provider
    events: list[Event] = field(default_factory=list)
    snapshots: list[Snapshot] = field(default_factory=list)

    @property
    def out(self) -> Path:
        return self.folder / "out" / "suite"

    def rows(self, rows: Iterable[Mapping[str, Any]]) -> None:
        write_rows(self.folder / "rows.jsonl", rows)

    def suite(self, *, job: Mapping[str, Any] | None = None, set: Iterable[str] = (), **fields: Any) -> Suite:
        """Write job and suite, with other fields where they are given (None leaves one out), and read them."""
        for name, data in (("label", {**JOB, **(job or {})}), ("suite", {**SUITE, **fields})):
            kept = {key: value for key, value in data.items() if value is not None}
            (self.folder / f"{name}.yaml").write_text(yaml.safe_dump(kept, sort_keys=False), encoding="utf-8")
        return load_suite(self.folder / "suite.yaml", overrides=list(set))

    def setting(
        self, suite: Suite, *, on_snapshot: Callable[[Snapshot], None] | None = None, **options: Any
    ) -> SuiteRunOptions:
        return SuiteRunOptions(
            suite.name,
            RunOptions(**options),
            caps=suite.budget,
            deadline=suite.deadline,
            listener=self.events.append,
            on_snapshot=on_snapshot or self.snapshots.append,
            environ={},
            offload=inline,
            transport=self.provider.transport,
        )

    def evaluate(self, suite: Suite, **options: Any) -> Evaluation:
        setting = self.setting(suite, **options)
        done: Evaluation = on_virtual_clock(lambda: evaluate(suite, setting))
        return done

    def scores(self) -> list[dict[str, Any]]:
        """All lines of scores.parquet."""
        found: list[dict[str, Any]] = pq.read_table(self.out / "scores.parquet").to_pylist()
        return found


def on_virtual_clock(work: Callable[[], Awaitable[Any]]) -> Any:
    """Run to the end on a clock that jumps ahead whenever everybody waits."""
    clock = trio.testing.MockClock(autojump_threshold=0)
    return anyio.run(work, backend="trio", backend_options={"clock": clock})
