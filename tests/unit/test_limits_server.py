"""The limiter against simulated servers that enforce limits nobody told it, on a virtual clock."""

from __future__ import annotations

import functools
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import anyio
import pytest
import trio.testing

from batchchat.events import Event
from batchchat.limits import Limiter
from batchchat.records import Axis, ErrorKind, Failure, LimitHeaders, Reply, Usage, Verdict
from batchchat.retry import RetryPolicy, decide

ROWS = 2000
Window = "SlidingWindow | FixedWindow | TokenBucket"


class SlidingWindow:
    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.entries: deque[tuple[float, float]] = deque()
        self.used = 0.0

    def wait(self, now: float, amount: float) -> float:
        while self.entries and now - self.entries[0][0] >= 60.0:
            self.used -= self.entries.popleft()[1]
        excess = self.used + amount - self.limit
        for at, size in self.entries:
            if excess <= 0:
                break
            excess -= size
            if excess <= 0:
                return at + 60.0 - now
        return 0.0

    def add(self, now: float, amount: float) -> None:
        self.entries.append((now, amount))
        self.used += amount

    def remaining(self) -> int:
        return int(self.limit - self.used)


class FixedWindow:
    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.minute = -1
        self.used = 0.0

    def wait(self, now: float, amount: float) -> float:
        # The server's minute begins somewhere in ours.
        minute = int((now + 23.0) // 60.0)
        if minute != self.minute:
            self.minute, self.used = minute, 0.0
        return 0.0 if self.used + amount <= self.limit else 60.0 * (minute + 1) - (now + 23.0)

    def add(self, now: float, amount: float) -> None:
        self.used += amount

    def remaining(self) -> int:
        return int(self.limit - self.used)


class TokenBucket:
    burst_s = 5.0

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.level = self.size = limit / 60.0 * self.burst_s
        self.at = 0.0

    def wait(self, now: float, amount: float) -> float:
        self.level = min(self.size, self.level + (now - self.at) * self.limit / 60.0)
        self.at = now
        return 0.0 if amount <= self.level else (amount - self.level) * 60.0 / self.limit

    def add(self, now: float, amount: float) -> None:
        self.level -= amount

    def remaining(self) -> int:
        return int(self.level)


class FullBucket(TokenBucket):
    burst_s = 60.0


Hints = Callable[["Server", Axis, float], dict[str, object]]


def no_hints(server: Server, axis: Axis, wait: float) -> dict[str, object]:
    return {}


def retry_after(server: Server, axis: Axis, wait: float) -> dict[str, object]:
    return {"retry_after": wait, "axis": axis}


def axis_only(server: Server, axis: Axis, wait: float) -> dict[str, object]:
    return {"axis": axis}


def headers(server: Server, axis: Axis, wait: float) -> dict[str, object]:
    limits = LimitHeaders(
        limit_requests=int(server.requests.limit),
        remaining_requests=server.requests.remaining(),
        reset_requests=wait if axis is Axis.REQUESTS else 1.0,
        limit_tokens=int(server.tokens.limit),
        remaining_tokens=server.tokens.remaining(),
        reset_tokens=wait if axis is Axis.TOKENS else 1.0,
    )
    return {"axis": axis, "limits": limits}


def absurd_hints(server: Server, axis: Axis, wait: float) -> dict[str, object]:
    choices = (-5.0, 31_536_000.0, math.nan, math.inf, 0.0)
    limits = LimitHeaders(
        limit_requests=server.rng.choice((-300, 0, 1, 10**12)),
        remaining_requests=server.rng.choice((-1, 0, 10**9)),
        reset_requests=server.rng.choice(choices),
        remaining_tokens=0,
        reset_tokens=31_536_000.0,
    )
    return {"retry_after": server.rng.choice(choices), "limits": limits}


@dataclass
class Server:
    window: Callable[[float], SlidingWindow | FixedWindow | TokenBucket] = SlidingWindow
    requests_per_minute: float = 300
    tokens_per_minute: float = 20_000
    concurrency: float = 10
    hints: Hints = no_hints
    latency: tuple[float, float] = (0.2, 0.8)
    jitter: float = 0.02
    rng: random.Random = field(default_factory=lambda: random.Random(11))
    down: tuple[float, float] = (math.inf, math.inf)
    accepted_at: list[float] = field(default_factory=list)
    refused_at: list[tuple[float, Axis]] = field(default_factory=list)
    failed_at: list[float] = field(default_factory=list)
    running: int = 0

    def __post_init__(self) -> None:
        self.requests = self.window(self.requests_per_minute)
        self.tokens = self.window(self.tokens_per_minute)

    async def send(self, tokens: int) -> Reply:
        started = anyio.current_time()
        await anyio.sleep(self.rng.uniform(0.0, self.jitter))
        now = anyio.current_time()
        if self.down[0] <= now < self.down[1]:
            self.failed_at.append(now)
            failure = Failure(ErrorKind.CONNECTION, "connection refused")
            return Reply(Verdict.TRANSIENT, failure=failure, latency_s=now - started, sent=False)
        waits = {
            Axis.REQUESTS: self.requests.wait(now, 1),
            Axis.TOKENS: self.tokens.wait(now, tokens),
            Axis.CONCURRENCY: 1.0 if self.running >= self.concurrency else 0.0,
        }
        for axis, wait in waits.items():
            if wait > 0:
                self.refused_at.append((now, axis))
                await anyio.sleep(0.02)
                failure = Failure(ErrorKind.RATE_LIMIT, "slow down", 429)
                return Reply(Verdict.RATE_LIMIT, failure=failure, **self.hints(self, axis, wait))  # type: ignore[arg-type]
        self.accepted_at.append(now)
        self.requests.add(now, 1)
        self.tokens.add(now, tokens)
        self.running += 1
        await anyio.sleep(self.rng.uniform(*self.latency))
        self.running -= 1
        reply = Reply(Verdict.OK, usage=Usage(tokens - 10, 10, tokens), latency_s=anyio.current_time() - started)
        if self.hints in (headers, absurd_hints):
            reply.limits = self.hints(self, Axis.UNKNOWN, 0.0)["limits"]  # type: ignore[assignment]
        return reply


@dataclass
class Outcome:
    seconds: float
    attempts: int
    done: int
    limiter: Limiter
    server: Server
    events: list[Event]

    @property
    def wasted(self) -> float:
        return len(self.server.refused_at) / self.done


def drive(
    server: Server, *, rows: int = ROWS, workers: int = 64, size: tuple[int, int] = (40, 60), **limits: object
) -> Outcome:
    """Send rows through a limiter to the server: what the engine does, without an engine."""
    events: list[Event] = []
    rng = random.Random(5)
    policy = RetryPolicy()
    state = {"done": 0, "attempts": 0}

    async def work(limiter: Limiter, ready: deque[tuple[int, int, int]]) -> None:
        while ready:
            row, tokens, attempts = ready.popleft()
            permit = await limiter.acquire(tokens, key=row)
            state["attempts"] += 1
            reply = await server.send(tokens)
            permit.settle(reply)
            if reply.verdict is Verdict.OK:
                state["done"] += 1
                continue
            decision = decide(reply, attempts=attempts + 1, active_s=0.0, policy=policy, rng=rng)
            assert decision.again, "a row failed for good"
            await anyio.sleep(decision.delay_s)
            ready.append((row, tokens, attempts + decision.counts))

    async def main() -> Outcome:
        limiter = Limiter(listener=events.append, rng=random.Random(3), **limits)  # type: ignore[arg-type]
        ready = deque((row, rng.randint(*size), 0) for row in range(rows))
        started = anyio.current_time()
        async with anyio.create_task_group() as group:
            for _ in range(workers):
                group.start_soon(work, limiter, ready)
        seconds = anyio.current_time() - started
        assert limiter.pace().in_use == 0
        return Outcome(seconds, state["attempts"], state["done"], limiter, server, events)

    return anyio.run(
        main, backend="trio", backend_options={"clock": trio.testing.MockClock(autojump_threshold=0)}
    )
