"""The ways to a keeper: a locked file, and a broker with its limits and its budget."""

from __future__ import annotations

import os
import random
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import TaskGroup, TaskStatus

from batchchat.budget import Budget
from batchchat.errors import JobError, ProviderUnavailable, StoppedEarly, StorageError, UsageError
from batchchat.events import Event, Pace
from batchchat.job import validate_job
from batchchat.limits.ceilings import Advertised, LimitCeilings
from batchchat.records import Reply, Usage, Verdict
from batchchat.sharing import file as file_module
from batchchat.sharing.broker import serve_broker
from batchchat.sharing.file import LimitFile
from batchchat.sharing.limiter import SharedLimiter
from batchchat.sharing.link import connect
from batchchat.sharing.messages import GrantedPermit, KeeperAnswer, KeeperAsk, PermitSettled, Reconnected
from batchchat.sharing.naming import limit_name
from batchchat.sharing.protocol import LineStream

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    """Runs are on asyncio."""
    return "asyncio"


OK = Reply(Verdict.OK, usage=Usage(5, 5, 10))


def _file(folder: Path) -> LimitFile:
    return LimitFile(folder / "limits", "name", Advertised(), random.Random(1))


async def _kept(stack: AsyncExitStack, carrier: object, **ceilings: float | None) -> SharedLimiter:
    values = LimitCeilings(**ceilings)  # type: ignore[arg-type]
    limiter = SharedLimiter(carrier, values)  # type: ignore[arg-type]
    return await stack.enter_async_context(limiter.kept())


# --- the file


async def test_two_limiters_of_one_file_share_slots_and_what_ends_gives_them_back(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        one = await _kept(stack, _file(tmp_path), concurrency=3)
        async with AsyncExitStack() as inner:
            other = await _kept(inner, _file(tmp_path), concurrency=3)
            taken = [await other.acquire(10) for _ in range(2)]
            mine = await one.acquire(10)
            with anyio.move_on_after(0.2) as scope:
                await one.acquire(10)
            assert scope.cancelled_caught, "three slots in all"
            assert (await _pace(one)).shared_by == 2
            taken.pop().settle(OK)
            (await one.acquire(10)).settle(OK)
        # The other left with a slot that it had not given back.
        with anyio.fail_after(2):
            more = [await one.acquire(10) for _ in range(2)]
        for permit in (mine, *more):
            permit.settle(OK)
        assert one.in_use == 0
    assert list((tmp_path / "limits").glob("*.holders/*")) == []


async def _pace(limiter: SharedLimiter) -> Pace:
    limiter.hurry()
    await anyio.sleep(0.05)
    return limiter.pace()


async def test_a_file_that_is_not_to_be_trusted_is_refused_with_words(tmp_path: Path) -> None:
    carrier = _file(tmp_path)
    await carrier.open()
    await carrier.exchange(KeeperAsk(LimitCeilings()))
    await carrier.close()
    (limit,) = (tmp_path / "limits").glob("*.limit")
    limit.chmod(0o666)
    with pytest.raises(StorageError, match=r"limits.shared: the folder .* cannot be used: .*others may read or write"):
        await _file(tmp_path).open()


async def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "limits").write_text("a file", encoding="utf-8")
    with pytest.raises(StorageError, match="XDG_CACHE_HOME"):
        await _file(tmp_path).open()


async def test_a_damaged_file_is_begun_anew_and_grants_nothing_at_first(tmp_path: Path) -> None:
    carrier = _file(tmp_path)
    await carrier.open()
    ceilings = LimitCeilings(6_000, None, 8)
    wants = [(10, "row")]
    assert (await carrier.exchange(KeeperAsk(ceilings, wants))).granted
    (limit,) = (tmp_path / "limits").glob("*.limit")
    with limit.open("r+b") as stream:
        stream.write(b"\0" * 64)
    answer = await carrier.exchange(KeeperAsk(ceilings, wants))
    assert not answer.granted
    assert answer.wait > 0
    await anyio.sleep(0.6)
    assert (await carrier.exchange(KeeperAsk(ceilings, wants))).granted
    await carrier.close()


async def test_runs_of_another_version_are_not_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = _file(tmp_path), _file(tmp_path)
    await old.open()
    await old.exchange(KeeperAsk(LimitCeilings()))
    await new.open()
    with monkeypatch.context() as patch:
        patch.setattr(file_module, "_VERSION", b"99.0/1")
        with pytest.raises(StorageError, match="another version of batchchat"):
            await new.exchange(KeeperAsk(LimitCeilings()))
    await old.close()
    monkeypatch.setattr(file_module, "_VERSION", b"99.0/1")
    await new.exchange(KeeperAsk(LimitCeilings()))
    await new.close()


async def test_a_process_that_stands_still_with_the_lock_is_passed_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    monkeypatch.setattr(file_module, "STUCK_S", 0.1)
    stopped, going = _file(tmp_path), _file(tmp_path)
    await stopped.open()
    await going.open()
    ceilings = LimitCeilings(None, None, 4)
    assert len((await stopped.exchange(KeeperAsk(ceilings, [(10, "row")] * 3))).granted) == 3
    (limit,) = (tmp_path / "limits").glob("*.limit")
    held = os.open(limit, os.O_RDWR)
    fcntl.flock(held, fcntl.LOCK_EX)
    with anyio.fail_after(5):
        answer = await going.exchange(KeeperAsk(ceilings, [(10, "row")] * 3))
    assert len(answer.granted) == 1, "the slots of the other still count"
    os.close(held)
    # The one that stood still goes on with the file that counts now.
    assert not (await stopped.exchange(KeeperAsk(ceilings, [(10, "row")], in_use=3))).granted
    await stopped.close()
    await going.close()


def test_the_name_of_a_limit_tells_no_key_and_differs_by_all_that_matters() -> None:
    names = [
        limit_name("http://a/v1", "m", "key"),
        limit_name("http://b/v1", "m", "key"),
        limit_name("http://a/v1", "n", "key"),
        limit_name("http://a/v1", "m", "yek"),
        limit_name("http://a/v1", "m", None),
        limit_name("http://a/v1m", "", "key"),
    ]
    assert len(set(names)) == len(names)
    assert all("key" not in name for name in names)


# --- the broker


async def test_two_processes_share_the_slots_and_the_budget_of_a_broker() -> None:
    budget = Budget(max_requests=5, max_tokens=100)
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(serve_broker(token="s3cret", budget=budget))
        one = await stack.enter_async_context(connect(broker.address, token="s3cret"))
        limiter = await _kept(stack, one.limit("x", Advertised()), concurrency=2)
        mine = await stack.enter_async_context(one.budget())
        assert mine is not None
        async with connect(broker.address, token="s3cret") as two, two.budget() as theirs:
            assert theirs is not None
            async with SharedLimiter(two.limit("x", Advertised()), LimitCeilings(None, None, 2)).kept() as other:
                permits = [await other.acquire(10), await other.acquire(10)]
                with anyio.move_on_after(0.2) as scope:
                    await limiter.acquire(10)
                assert scope.cancelled_caught
                permits[0].settle(OK)
                (await limiter.acquire(10)).settle(OK)
            await theirs.reserve(30)
            await mine.reserve(40)
            mine.settle(40, 0, used_tokens=10, used_money=0, counts=True)
            with anyio.move_on_after(0.2) as scope:
                await mine.reserve(65)
            assert scope.cancelled_caught, "30 are reserved, 10 are spent"
        # The other ended with a reservation that nobody knows anything of: it counts as spent.
        await anyio.sleep(0.1)
        assert (budget.use().tokens, budget.use().requests, budget.use().in_flight) == (40, 2, 0)
        await mine.reserve(60)
        mine.settle(60, 0, used_tokens=60, used_money=0, counts=True)
        with pytest.raises(StoppedEarly, match="max_tokens of 100 is used up"), anyio.fail_after(2):
            await mine.reserve(10)


async def test_a_broker_refuses_who_does_not_know_its_secret_or_speaks_otherwise() -> None:
    told: list[Event] = []
    async with serve_broker(token="s3cret", listener=told.append) as broker:
        for token in (None, "", "other", "s3cret "):
            with pytest.raises(UsageError, match=r"refused this run: the secret .* is not that of the broker") as found:
                async with connect(broker.address, token=token):
                    pass
            assert "s3cret" not in str(found.value)
        host, _, port = broker.address.partition(":")
        for line in (
            b'{"hello":{"protocol":99,"token":"s3cret"}}\n',
            b"GET / HTTP/1.1\r\n\r\n",
            b"[1]\n",
            b'{"hello":{"protocol":1,"token":"s3cret"}}\n{"limit":"x"}\n',
        ):
            async with await anyio.connect_tcp(host, int(port)) as stream:
                await stream.send(line)
                lines = LineStream(stream)
                with anyio.fail_after(2):
                    try:
                        while True:
                            message = await lines.receive()
                            assert "welcome" in message or message["refused"] == "protocol"
                    except (anyio.EndOfStream, anyio.BrokenResourceError):
                        pass
        async with connect(broker.address, token="s3cret"):
            pass
    assert {event.name for event in told} == {"broker_refused"}
    assert "s3cret" not in str(told)


async def test_a_broker_that_others_could_reach_needs_a_secret(tmp_path: Path) -> None:
    for address, error in (
        ("0.0.0.0:0", "needs a secret"),
        ("[::]:0", "needs a secret"),
        ("nowhere", "is no address"),
        ("127.0.0.1:99999", "is no address"),
    ):
        with pytest.raises(UsageError, match=error):
            async with serve_broker(address):
                pass
    async with serve_broker("127.0.0.1:0") as broker:
        with pytest.raises(StorageError, match="cannot listen"):
            async with serve_broker(broker.address):
                pass
    async with serve_broker(f"unix:{tmp_path}/broker") as broker:
        assert (tmp_path / "broker").stat().st_mode & 0o077 == 0
        async with connect(broker.address):
            pass


class _Brokers:
    """Starts and ends brokers at one address, whatever else is going on."""

    def __init__(self, address: str, group: TaskGroup, **options: Any) -> None:
        self.address = address
        self._options = options
        self._group = group
        self._scope = anyio.CancelScope()
        self._gone = anyio.Event()

    async def start(self) -> None:
        """Start one."""
        self._scope, self._gone = anyio.CancelScope(), anyio.Event()
        await self._group.start(self._serve)

    async def end(self) -> None:
        """End the one that runs, and wait until it is gone."""
        self._scope.cancel()
        await self._gone.wait()

    async def _serve(self, *, task_status: TaskStatus[None]) -> None:
        with self._scope:
            async with serve_broker(self.address, **self._options):
                task_status.started()
                await anyio.sleep_forever()
        self._gone.set()


async def test_a_limiter_waits_for_a_broker_that_is_away_and_goes_on_when_it_is_back(tmp_path: Path) -> None:
    async with anyio.create_task_group() as group, AsyncExitStack() as stack:
        brokers = _Brokers(f"unix:{tmp_path}/broker", group)
        await brokers.start()
        link = await stack.enter_async_context(connect(brokers.address, outage_s=30))
        limiter = await _kept(stack, link.limit("x", Advertised()), concurrency=2)
        held = await limiter.acquire(10)
        await brokers.end()
        with anyio.move_on_after(0.3) as scope:
            await limiter.acquire(10)
        assert scope.cancelled_caught, "nothing goes without a broker"
        assert limiter.lost is None
        await brokers.start()
        with anyio.fail_after(10):
            again = await limiter.acquire(10)
        # The new broker knows of the slot that was granted by the old one.
        with anyio.move_on_after(0.3) as scope:
            await limiter.acquire(10)
        assert scope.cancelled_caught
        held.settle(OK)
        again.settle(OK)
        await brokers.end()


async def test_a_broker_that_does_not_come_back_ends_the_run(tmp_path: Path) -> None:
    async with anyio.create_task_group() as group, AsyncExitStack() as stack:
        brokers = _Brokers(f"unix:{tmp_path}/broker", group)
        await brokers.start()
        link = await stack.enter_async_context(connect(brokers.address, outage_s=0.2))
        limiter = await _kept(stack, link.limit("x", Advertised()), concurrency=2)
        (await limiter.acquire(10)).settle(OK)
        await brokers.end()
        with anyio.fail_after(10):
            while limiter.lost is None:  # noqa: ASYNC110 - it is looked at, as a run does
                await anyio.sleep(0.05)
        assert isinstance(limiter.lost, ProviderUnavailable)
        assert limiter.lost.exit_code == 69
        assert "the broker at unix:" in limiter.lost.message
    with pytest.raises(ProviderUnavailable, match="cannot be reached"):
        async with connect(f"unix:{tmp_path}/broker", outage_s=0):
            pass


class _NewKeepers:
    """A carrier whose keeper is another one as often as a test says so. `told` is what came of permits."""

    lease_s, interval_s = 30.0, 0.0

    def __init__(self) -> None:
        self.connection = 1
        self.told: list[PermitSettled] = []
        self.lose = False

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def exchange(self, ask: KeeperAsk) -> KeeperAnswer:
        if self.lose:
            self.lose = False
            self.connection += 1
            raise Reconnected
        self.told += ask.settled
        return KeeperAnswer([GrantedPermit(tokens, 1.0, 0, 0, False) for tokens, _ in ask.wants], 0.01)


async def test_a_new_keeper_is_given_nothing_back_that_another_has_granted() -> None:
    """Or the pace would be ahead by what was never taken from it."""
    carrier = _NewKeepers()
    async with AsyncExitStack() as stack:
        limiter = await _kept(stack, carrier, requests_per_minute=600)
        kept, sent, failed, unused = [await limiter.acquire(1_000) for _ in range(4)]
        kept.settle(OK)
        with anyio.fail_after(5):
            while not carrier.told:  # noqa: ASYNC110 - the limiter asks by itself
                await anyio.sleep(0.01)
        carrier.lose = True
        (await limiter.acquire(1_000)).settle(OK)
        sent.settle(OK)
        failed.settle(Reply(Verdict.TRANSIENT, sent=False))
        unused.give_back()
        with anyio.fail_after(5):
            while len(carrier.told) < 5:  # noqa: ASYNC110
                await anyio.sleep(0.01)
    all_of_it = Usage(total_tokens=1_000)
    told = [(one.unused, one.reply and (one.reply.verdict, one.reply.usage, one.reply.sent)) for one in carrier.told]
    assert told[0] == (False, (Verdict.OK, OK.usage, True))
    assert sorted(map(str, told[1:])) == sorted(
        map(
            str,
            [
                (False, (Verdict.OK, OK.usage, True)),  # of the new keeper
                (False, (Verdict.OK, all_of_it, True)),
                (False, (Verdict.TRANSIENT, all_of_it, False)),
                (False, None),
            ],
        )
    )


async def test_a_budget_goes_on_when_its_broker_was_away_while_requests_ended(tmp_path: Path) -> None:
    told: list[Event] = []
    budget = Budget(max_tokens=200)
    async with anyio.create_task_group() as group, AsyncExitStack() as stack:
        brokers = _Brokers(f"unix:{tmp_path}/broker", group, budget=budget, listener=told.append)
        await brokers.start()
        link = await stack.enter_async_context(connect(brokers.address, outage_s=30))
        mine = await stack.enter_async_context(link.budget())
        assert mine is not None
        for tokens in (30, 40, 50):
            await mine.reserve(tokens)
        await brokers.end()
        mine.settle(30, 0, used_tokens=1, used_money=0, counts=True)
        await anyio.sleep(0.05)  # it looks for the broker now
        mine.settle(40, 0, used_tokens=1, used_money=0, counts=True)
        await brokers.start()
        with anyio.fail_after(10):
            await mine.reserve(10)
        # All that was under way counts as spent, and what still is under way is reserved once more.
        assert (budget.use().tokens, budget.use().in_flight) == (120, 2)
        mine.settle(50, 0, used_tokens=50, used_money=0, counts=True)
        mine.settle(10, 0, used_tokens=10, used_money=0, counts=True)
        with anyio.fail_after(10):
            while budget.use().in_flight:  # noqa: ASYNC110 - it tells by itself
                await anyio.sleep(0.01)
        assert budget.use().tokens == 180
        assert told == []
        await brokers.end()


async def test_all_users_of_a_connection_learn_that_it_was_lost(tmp_path: Path) -> None:
    async with anyio.create_task_group() as group, AsyncExitStack() as stack:
        brokers = _Brokers(f"unix:{tmp_path}/broker", group)
        await brokers.start()
        link = await stack.enter_async_context(connect(brokers.address, outage_s=30))
        one, other = link.limit("one", Advertised()), link.limit("other", Advertised())
        ask = KeeperAsk(LimitCeilings(None, None, 2))
        await brokers.end()
        await brokers.start()
        for limit in (one, other):
            with pytest.raises(Reconnected):
                await limit.exchange(ask)
            await limit.exchange(ask)
        assert link.connections == one.connection == other.connection == 2
        await brokers.end()


async def test_a_broker_that_starts_again_stands_for_a_lease(tmp_path: Path) -> None:
    async with serve_broker(stands=True) as broker, connect(broker.address) as link:
        carrier = link.limit("x", Advertised())
        ask = KeeperAsk(LimitCeilings(6_000, None, 8), [(10, "row")])
        answer = await carrier.exchange(ask)
        assert not answer.granted
        await anyio.sleep(1.1)
        assert (await carrier.exchange(ask)).granted


# --- the job


JOB = {
    "name": "j",
    "provider": "demo",
    "input": "x.jsonl",
    "output": "out",
    "model": "m",
    "messages": [{"role": "user", "content": "x"}],
}


@pytest.mark.parametrize(
    "shared", [True, False, "10.0.0.7:7077", "broker.example:1", "[::1]:7077", "unix:/run/b", "true"]
)
def test_a_job_says_how_its_limits_are_shared(shared: bool | str) -> None:
    job = validate_job({**JOB, "limits": {"shared": shared}})
    assert job.limits.shared == (True if shared == "true" else shared)


@pytest.mark.parametrize("shared", ["elsewhere", "host:", ":7077", 7, "http://host:7077", "host:port", ""])
def test_anything_else_is_refused_with_what_to_write(shared: object) -> None:
    with pytest.raises(JobError, match=r"limits\.shared: must be true, false, or the address of a broker"):
        validate_job({**JOB, "limits": {"shared": shared}})
