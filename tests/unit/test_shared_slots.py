"""Slots that a process reuses without asking: how many there are at once, what the keeper knows, what others get."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable

import anyio
import pytest
from anyio import current_time

from batchchat.limits import Permit
from batchchat.limits.ceilings import Advertised, LimitCeilings
from batchchat.records import Axis, Reply, Usage, Verdict
from batchchat.sharing.keeper import LimitKeeper
from batchchat.sharing.limiter import SharedLimiter
from batchchat.sharing.messages import (
    KeeperAnswer,
    KeeperAsk,
    PermitSettled,
    Reconnected,
    answer_of_json,
    answer_to_json,
    ask_of_json,
    ask_to_json,
)
from tests.integration.suites import on_virtual_clock

ANSWER_S = 0.05
OK = Reply(Verdict.OK, usage=Usage(5, 5, 10))
REFUSED = Reply(Verdict.RATE_LIMIT, retry_after=2.0, axis=Axis.REQUESTS)


class Way:
    """A way to a keeper in this process that takes time, and loses an ask or its answer now and then."""

    lease_s = 1.0
    interval_s = 0.02
    connection = 0

    def __init__(self, keeper: LimitKeeper, name: str, rng: random.Random, *, loses: float = 0.0) -> None:
        self.asks = 0
        self.broken = False
        self._keeper = keeper
        self._name = name
        self._rng = rng
        self._loses = loses

    async def open(self) -> None:
        """Do nothing: the first ask joins."""

    async def exchange(self, ask: KeeperAsk) -> KeeperAnswer:
        """Ask the keeper in the words of a broker's connection."""
        self.asks += 1
        await anyio.sleep(self._rng.uniform(0.0, 0.01))
        if self.broken or self._rng.random() < self._loses / 2:
            raise Reconnected
        heard = ask_of_json(json.loads(json.dumps(ask_to_json(ask))))
        answer = self._keeper.exchange(self._name, heard, current_time())
        await anyio.sleep(self._rng.uniform(0.0, 0.01))
        if self._rng.random() < self._loses / 2:
            raise Reconnected
        return answer_of_json(json.loads(json.dumps(answer_to_json(answer))))

    async def close(self) -> None:
        """Leave the limit."""
        self._keeper.leave(self._name, current_time())


class Server:
    """Answers after a while; notes how many requests are there at once, and how many of each process it answered."""

    def __init__(self, rng: random.Random, refuses: Callable[[float], bool] = lambda _now: False) -> None:
        self.at_once = self.most = 0
        self.answered: dict[str, int] = {}
        self._rng = rng
        self._refuses = refuses

    async def send(self, name: str, permit: Permit) -> bool:
        """Send a request and settle its permit; return whether it was answered."""
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            await anyio.sleep(ANSWER_S * self._rng.uniform(0.5, 1.5))
        except BaseException:
            permit.settle(None)
            raise
        finally:
            self.at_once -= 1
        if self._refuses(current_time()):
            permit.settle(REFUSED)
            return False
        self.answered[name] = self.answered.get(name, 0) + 1
        permit.settle(OK)
        return True


async def _work(server: Server, name: str, limiter: SharedLimiter, senders: int, until: float) -> None:
    """Send as much as the limit allows, as the senders of a run do."""

    async def one(number: int) -> None:
        row = 0
        while current_time() < until:
            with anyio.move_on_after(until - current_time()):
                permit = await limiter.acquire(10, key=f"{name}-{number}-{row}")
                await server.send(name, permit)
                row += 1

    async with anyio.create_task_group() as group:
        for number in range(senders):
            group.start_soon(one, number)


@pytest.mark.parametrize("loses", [0.0, 0.05])
@pytest.mark.parametrize("senders", [4, 40])
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 9))])
def test_no_more_than_the_slots_are_under_way_and_all_are_used(senders: int, seed: int, loses: float) -> None:
    """Two processes share 16 slots: whichever of them asks for how many, whatever is lost on the way to the keeper."""

    async def play() -> tuple[Server, list[Way]]:
        rng = random.Random(seed)
        keeper, server = LimitKeeper(1.0, Advertised(), rng), Server(rng)
        ways = [Way(keeper, name, rng, loses=loses) for name in ("a", "b")]
        async with anyio.create_task_group() as group:
            for name, way in zip(("a", "b"), ways, strict=True):
                group.start_soon(_process, server, name, way, senders)
        return server, ways

    async def _process(server: Server, name: str, way: Way, senders: int) -> None:
        limiter = SharedLimiter(way, LimitCeilings(None, None, 16))
        async with limiter.kept():
            await _work(server, name, limiter, senders, current_time() + 6.0)
            await anyio.sleep(2.0)  # its last words reach the keeper

    server, ways = on_virtual_clock(play)
    assert server.most <= 16
    possible = 6.0 / ANSWER_S * min(16, 2 * senders)
    answered = sum(server.answered.values())
    assert answered >= (0.9 if loses == 0.0 else 0.75) * possible
    assert min(server.answered.values()) >= 0.4 * answered
    # Without reuse there is one ask every 0.03 s or so, and every request waits for one.
    assert sum(way.asks for way in ways) < 0.25 * answered or senders == 4


def test_the_keeper_knows_at_the_end_what_came_of_each_permit() -> None:
    """Whether a permit was granted or reused: it is counted once as sent, and none stays in use."""

    async def play() -> tuple[LimitKeeper, Server]:
        rng = random.Random(3)
        keeper, server = LimitKeeper(1.0, Advertised(), rng), Server(rng)
        limiter = SharedLimiter(Way(keeper, "a", rng), LimitCeilings(None, None, 8))
        async with limiter.kept():
            await _work(server, "a", limiter, 8, current_time() + 6.0)
            await anyio.sleep(2.0)
            assert limiter.in_use == 0
            assert limiter.pace().in_use == 0
            assert limiter.pace().requests_used == pytest.approx(sum(server.answered.values()), abs=8)
        return keeper, server

    keeper, server = on_virtual_clock(play)
    assert sum(server.answered.values()) > 700
    assert not keeper.holders


def test_nothing_is_reused_once_the_lease_of_the_last_answer_is_over() -> None:
    """A process that cannot reach the keeper any more goes on for a lease, and then waits."""

    async def play() -> float:
        rng = random.Random(4)
        keeper, server = LimitKeeper(1.0, Advertised(), rng), Server(rng)
        way = Way(keeper, "a", rng)
        limiter = SharedLimiter(way, LimitCeilings(None, None, 4))
        last = -math.inf
        async with limiter.kept(), anyio.create_task_group() as group:
            group.start_soon(_work, server, "a", limiter, 4, current_time() + 6.0)
            await anyio.sleep(2.0)
            way.broken = True
            broke = current_time()
            before = -1
            while sum(server.answered.values()) > before:
                before = sum(server.answered.values())
                last = current_time()
                await anyio.sleep(0.3)
            way.broken = False
        return last - broke

    assert on_virtual_clock(play) < 1.5


def test_a_refusal_ends_reuse_at_once_and_a_told_limit_for_good() -> None:
    """After a refusal every request needs a permit of the keeper again, which waits as the server said."""

    async def play() -> list[float]:
        rng = random.Random(5)
        refused: list[float] = []

        def refuses(now: float) -> bool:
            if 2.0 <= now - began < 2.5:
                refused.append(now)
                return True
            return False

        keeper, server = LimitKeeper(1.0, Advertised(), rng), Server(rng, refuses)
        began = current_time()
        async with anyio.create_task_group() as group:
            for name in ("a", "b"):
                group.start_soon(_process, keeper, server, name, rng)
        return refused

    async def _process(keeper: LimitKeeper, server: Server, name: str, rng: random.Random) -> None:
        limiter = SharedLimiter(Way(keeper, name, rng), LimitCeilings(None, None, 16))
        async with limiter.kept():
            await _work(server, name, limiter, 16, current_time() + 4.0)

    refused = on_virtual_clock(play)
    # Half a second would have 160 of them if nobody stopped. These are those under way, and some of the other process.
    assert 3 <= len(refused) <= 48


def test_a_permit_that_nobody_was_granted_is_refused() -> None:
    keeper = LimitKeeper(1.0, Advertised(), random.Random(6))
    with pytest.raises(ValueError, match="nobody was granted"):
        keeper.exchange("a", KeeperAsk(settled=[PermitSettled(3, None, OK)]), 0.0)
