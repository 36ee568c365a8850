"""What the local engine takes from its feed ahead of need: bounded in requests and in bytes."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator
from typing import Any, cast

import anyio
import pyarrow as pa
import trio.testing

from batchchat.client import ChatClient
from batchchat.engines import Outcome, Settled
from batchchat.engines.local import LocalEngine
from batchchat.limits import Limiter, TokenEstimator
from batchchat.records import Completion, ErrorKind, Failure, Reply, Request, RowBatch, Usage, Verdict
from batchchat.retry import RetryPolicy

MB = 2**20
BATCH = RowBatch("rows.jsonl", 0, pa.RecordBatch.from_pydict({}), [])


class Large(bytes):
    """A body that says it is large, and is not: the test needs no memory."""

    size: int

    def __len__(self) -> int:
        return self.size


class Sink:
    """Counts what is settled."""

    full = False

    def __init__(self) -> None:
        self.settled = 0

    def put(self, outcome: Outcome) -> None:
        self.settled += isinstance(outcome, Settled)

    async def room(self) -> None:
        return None


class Client:
    """Answers after a second; the first `failing` attempts of each request with a 503."""

    def __init__(self, failing: int = 0) -> None:
        self.failing = failing
        self.seen: dict[int, int] = {}

    async def send(self, body: bytes, **_: Any) -> Reply:
        await anyio.sleep(1)
        number = int(bytes(body[:8]))
        self.seen[number] = self.seen.get(number, 0) + 1
        if self.seen[number] <= self.failing:
            return Reply(Verdict.TRANSIENT, failure=Failure(ErrorKind.SERVER, "503", 503), latency_s=1.0)
        return Reply(Verdict.OK, completion=Completion("ok", "stop", "m", Usage()), latency_s=1.0)


def run(client: Client, size: int, count: int, concurrency: int) -> tuple[int, int]:
    """Run `count` requests of `size` bytes; the most bytes that were held at once, and how many were settled."""
    sink = Sink()
    most = given = 0

    async def feed() -> AsyncGenerator[list[Request], None]:
        nonlocal most, given
        for number in range(count):
            given += 1
            most = max(most, (given - sink.settled) * size)
            body = Large(b"%08d" % number)
            body.size = size
            yield [Request(f"{number:032x}", body, 10, None, BATCH, number)]

    async def main() -> None:
        engine = LocalEngine(
            cast("ChatClient", client),
            Limiter(concurrency=concurrency, listener=lambda _: None, rng=random.Random(1)),
            RetryPolicy(6, 310, 900, 600),
            estimator=TokenEstimator(),
            listener=lambda _: None,
            rng=random.Random(1),
        )
        await engine.run(feed(), sink)

    clock = trio.testing.MockClock(autojump_threshold=0)
    anyio.run(main, backend="trio", backend_options={"clock": clock})
    return most, sink.settled


def test_large_requests_are_not_piled_up() -> None:
    most, settled = run(Client(), size=4 * MB, count=60, concurrency=2)
    assert settled == 60
    assert most <= (32 + 4 * 4) * MB


def test_one_request_larger_than_the_bound_passes() -> None:
    assert run(Client(), size=40 * MB, count=3, concurrency=2)[1] == 3


def test_large_requests_that_wait_for_another_attempt_are_bounded_too() -> None:
    most, settled = run(Client(failing=1), size=8 * MB, count=80, concurrency=4)
    assert settled == 80
    assert most <= (256 + 32 + 6 * 8) * MB
