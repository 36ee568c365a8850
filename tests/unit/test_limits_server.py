"""The limiter against simulated servers that enforce limits nobody told it, on a virtual clock."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import anyio
import pytest
import trio.testing

from batchchat.events import Event
from batchchat.limits import Advertised, Limiter
from batchchat.records import Axis, ErrorKind, Failure, LimitHeaders, Reply, Usage, Verdict
from batchchat.retry import RetryPolicy, decide
from tests.limiters import make_limiter
from tests.thorough import one_in

ROWS = 2000


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
        if self.hints in (headers, absurd_hints, requests_header):
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
    server: Server, *, rows: int = ROWS, workers: int = 24, size: tuple[int, int] = (40, 60), **limits: object
) -> Outcome:
    """Send rows through a limiter to the server: what the engine does, without an engine."""
    events: list[Event] = []
    rng = random.Random(5)
    policy = RetryPolicy()
    state = {"done": 0, "attempts": 0, "unsent": 0}

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
            state["unsent"] += not reply.sent
            await anyio.sleep(decision.delay_s)
            ready.append((row, tokens, attempts + (decision.counts and not permit.probe)))

    async def main() -> Outcome:
        limiter = make_limiter(listener=events.append, rng=random.Random(3), **limits)  # type: ignore[arg-type]
        ready = deque((row, rng.randint(*size), 0) for row in range(rows))
        started = anyio.current_time()
        async with anyio.create_task_group() as group:
            for _ in range(workers):
                group.start_soon(work, limiter, ready)
        seconds = anyio.current_time() - started
        assert limiter.pace().in_use == 0
        return Outcome(seconds, state["attempts"], state["done"], limiter, server, events)

    return anyio.run(main, backend="trio", backend_options={"clock": trio.testing.MockClock(autojump_threshold=0)})


SMALL, LARGE = (40, 60), (80, 160)
"""Row sizes in tokens: the limit on requests binds, or the one on tokens."""


def check_untold(window: type[SlidingWindow], hints: Hints, size: tuple[int, int], rows: int = ROWS) -> None:
    outcome = drive(Server(window, hints=hints), rows=rows, size=size)
    ideal_s = rows / 300 * 60 if size is SMALL else rows * 120 / 20_000 * 60
    assert outcome.done == rows
    assert len(outcome.server.refused_at) <= 0.03 * ROWS
    assert outcome.seconds <= 1.15 * ideal_s + 10


@pytest.mark.parametrize("hints", one_in(3, [no_hints, axis_only, retry_after, headers, absurd_hints]))
def test_untold_limits_are_found_with_few_refusals_and_no_row_lost(hints: Hints) -> None:
    check_untold(SlidingWindow, hints, SMALL)


@pytest.mark.parametrize("hints", [no_hints, retry_after])
@pytest.mark.parametrize("window", [SlidingWindow, FixedWindow, TokenBucket, FullBucket])
def test_limits_of_any_make_are_found(window: type[SlidingWindow], hints: Hints) -> None:
    check_untold(window, hints, LARGE, rows=400)


@pytest.mark.long
@pytest.mark.parametrize("hints", [no_hints, axis_only, retry_after, headers, absurd_hints])
@pytest.mark.parametrize("window", [SlidingWindow, FixedWindow, TokenBucket, FullBucket])
@pytest.mark.parametrize("size", [SMALL, LARGE], ids=["requests bind", "tokens bind"])
def test_untold_limits_in_every_combination(window: type[SlidingWindow], hints: Hints, size: tuple[int, int]) -> None:
    check_untold(window, hints, size)


@pytest.mark.parametrize("hints", one_in(2, [no_hints, headers]))
@pytest.mark.parametrize(
    ("server", "rows", "ideal_s", "wasted"),
    one_in(
        3,
        [
            ({"requests_per_minute": 30}, 200, 400, 0.15),
            ({"requests_per_minute": 30, "window": TokenBucket}, 200, 400, 0.1),
            ({"latency": (10.0, 30.0)}, 300, 600, 0.05),
            ({"latency": (0.03, 0.08)}, 900, 180, 0.05),
            ({"requests_per_minute": 9e8, "tokens_per_minute": 9e8, "concurrency": 40}, 1000, 13, 0.02),
            (
                {"requests_per_minute": 600, "tokens_per_minute": 9e8, "concurrency": 9e8, "latency": (3.0, 8.0)},
                2000,
                200,
                0.05,
            ),
        ],
    ),
    ids=["30 a minute", "small bucket", "slow answers", "quick answers", "concurrency only", "many under way"],
)
def test_unusual_servers_are_found_out_too(
    server: dict[str, object], rows: int, ideal_s: float, wasted: float, hints: Hints
) -> None:
    outcome = drive(Server(hints=hints, **server), rows=rows, workers=100)  # type: ignore[arg-type]
    assert outcome.done == rows
    # The first minute is what it takes to find a limit that nobody tells: a round trip of all under way, and probes.
    first = sum(at < 60.0 for at, _ in outcome.server.refused_at)
    assert first <= 60
    assert len(outcome.server.refused_at) - first <= wasted * rows
    assert outcome.seconds <= 1.3 * ideal_s + 30


@pytest.mark.parametrize(("limit", "rows"), [(10, 50), (300, 750), (1200, 2400)])
def test_a_known_limit_is_used_up_without_a_refusal(limit: int, rows: int) -> None:
    server = Server(requests_per_minute=limit, tokens_per_minute=math.inf, concurrency=math.inf, jitter=0.09)
    outcome = drive(server, rows=rows, workers=100, requests_per_minute=limit, concurrency=100)
    assert server.refused_at == []
    sent = server.accepted_at
    assert (len(sent) - 1) / (sent[-1] - sent[0]) * 60 >= 0.994 * limit
    assert outcome.events == []


def test_known_token_limits_are_used_up_without_a_refusal() -> None:
    server = Server(requests_per_minute=math.inf, concurrency=math.inf)
    outcome = drive(server, rows=800, size=(10, 390), tokens_per_minute=20_000)
    assert server.refused_at == []
    assert outcome.seconds <= 1.02 * 800 * 200 / 20_000 * 60


def test_a_wrong_default_of_the_provider_is_corrected_upwards_by_headers_and_downwards_by_refusals() -> None:
    up = drive(
        Server(requests_per_minute=600, tokens_per_minute=math.inf, concurrency=math.inf, hints=requests_header),
        rows=1200,
        advertised=Advertised(requests_per_minute=300),
    )
    assert up.seconds <= 125
    down = drive(
        Server(requests_per_minute=120, tokens_per_minute=math.inf, concurrency=math.inf),
        rows=600,
        advertised=Advertised(requests_per_minute=300),
    )
    assert down.seconds <= 1.1 * 300
    assert down.wasted <= 0.05


def requests_header(server: Server, axis: Axis, wait: float) -> dict[str, object]:
    return {"limits": LimitHeaders(limit_requests=int(server.requests.limit))}


def test_a_minutes_outage_costs_a_handful_of_probes_and_the_pace_is_back_within_seconds() -> None:
    server = Server(requests_per_minute=math.inf, tokens_per_minute=math.inf, concurrency=math.inf, down=(20.0, 80.0))
    outcome = drive(server, rows=4000, workers=50, concurrency=32)
    assert outcome.done == 4000
    burst = [at for at in server.failed_at if at < 21.0]
    assert len(burst) <= 32
    assert len(server.failed_at) - len(burst) <= 12
    before = sum(15.0 <= at < 20.0 for at in server.accepted_at)
    back = min(at for at in server.accepted_at if at >= 80.0)
    assert back <= 80.0 + 10.0
    assert sum(back + 3.0 <= at < back + 8.0 for at in server.accepted_at) >= 0.95 * before
    assert [event.name for event in outcome.events] == ["breaker_opened", "breaker_closed"]
