"""What the local engine takes from its feed ahead of need: bounded in requests and in bytes."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, cast

import anyio
import pyarrow as pa
import pytest
import trio.testing

from batchchat.budget import Account, Budget
from batchchat.client import ChatClient
from batchchat.endpoints.endpoint import Endpoint
from batchchat.engines.local import LocalEngine
from batchchat.engines.port import Outcome, Settled
from batchchat.engines.state import Surroundings
from batchchat.limits import Limiter
from batchchat.records import Completion, ErrorKind, Failure, Reply, Request, RowBatch, Usage, Verdict
from batchchat.retry import RetryPolicy
from tests.limiters import make_limiter

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

    async def counted(self) -> bool:
        return True


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
        await make_engine(client, make_limiter(concurrency=concurrency, rng=random.Random(1))).run(feed(), sink)

    on_virtual_clock(main)
    return most, sink.settled


def make_engine(client: Any, limiter: Limiter, account: Account | None = None) -> LocalEngine:
    return LocalEngine(
        Endpoint(cast("ChatClient", client), limiter),
        RetryPolicy(6, 310, 900, 600),
        Surroundings(lambda _: None, random.Random(1)),
        account=account,
    )


def on_virtual_clock(main: Callable[[], Awaitable[None]]) -> None:
    clock = trio.testing.MockClock(autojump_threshold=0)
    anyio.run(main, backend="trio", backend_options={"clock": clock})


def test_large_requests_are_not_piled_up() -> None:
    most, settled = run(Client(), size=4 * MB, count=60, concurrency=2)
    assert settled == 60
    assert most <= (16 + 4 * 4) * MB


def test_large_requests_are_not_sent_all_at_once() -> None:
    most, settled = run(Client(), size=30 * MB, count=40, concurrency=64)
    assert settled == 40
    assert most <= (128 + 16 + 3 * 30) * MB  # in hand, and read ahead


def test_one_request_larger_than_the_bound_passes() -> None:
    assert run(Client(), size=40 * MB, count=3, concurrency=2)[1] == 3


def test_large_requests_that_wait_for_another_attempt_are_bounded_too() -> None:
    most, settled = run(Client(failing=1), size=8 * MB, count=80, concurrency=4)
    assert settled == 80
    assert most <= (256 + 32 + 6 * 8) * MB


@pytest.mark.parametrize("waits_for", ["permit", "budget"])
def test_a_wait_that_ends_just_as_a_stop_comes_launches_nothing(waits_for: str) -> None:
    client, sink = Client(), Sink()

    async def main() -> None:
        limiter = make_limiter(requests_per_minute=1000, tokens_per_minute=10_000, concurrency=1, rng=random.Random(1))
        budget = Budget(max_requests=1)
        engine = make_engine(client, limiter, budget.account(None, None))
        permit = limiter.try_acquire(100) if waits_for == "permit" else None
        hold = budget.account(None, None).try_reserve(100, 10) if waits_for == "budget" else None

        async def feed() -> AsyncGenerator[list[Request], None]:
            yield [Request(f"{1:032x}", b"%08d" % 1, 10, None, BATCH, 1)]

        async def stop() -> None:
            await anyio.sleep(5)
            if permit is not None:
                permit.give_back()
            if hold is not None:
                hold.settle(None)
            engine.drain()

        async with anyio.create_task_group() as group:
            group.start_soon(stop)
            await engine.run(feed(), sink)
        assert (client.seen, sink.settled, engine.progress().attempts) == ({}, 0, 0)
        pace, use = limiter.pace(), budget.use()
        assert (pace.in_use, pace.requests_used, pace.tokens_used) == (0, 0, 0)
        assert (use.in_flight, use.requests, use.reserved_tokens) == (0, 0, 0)

    on_virtual_clock(main)


class Choosy(Client):
    """Refuses the first rows, all in the same words."""

    def __init__(self, bad: int) -> None:
        super().__init__()
        self.bad = bad

    async def send(self, body: bytes, **_: Any) -> Reply:
        reply = await super().send(body)
        if int(bytes(body[:8])) >= self.bad:
            return reply
        return Reply(Verdict.NO, failure=Failure(ErrorKind.INVALID_REQUEST, "too long", 400), latency_s=1.0)


def test_a_slow_input_does_not_keep_its_rows_from_being_tried() -> None:
    """It gives one row after the other, and never as many as would be read ahead."""
    sink = Sink()
    answered_at: list[float] = []

    async def main() -> None:
        client = Choosy(20)

        async def feed() -> AsyncGenerator[list[Request], None]:
            for number in range(30):
                await anyio.sleep(5)
                yield [Request(f"{number:032x}", b"%08d" % number, 10, None, BATCH, number)]
                if number == 21:
                    answered_at.append(sink.settled)

        await make_engine(client, make_limiter(concurrency=4, rng=random.Random(1))).run(feed(), sink)
        assert set(client.seen.values()) == {1}

    on_virtual_clock(main)
    assert sink.settled == 30
    assert answered_at == [21]
