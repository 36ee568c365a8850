"""Limits that processes share: never passed in any minute, whoever dies or stalls, and nearly all used."""

from __future__ import annotations

import bisect
import heapq
import json
import random
from collections.abc import Callable
from itertools import count

import pytest

from batchchat.limits.ceilings import Advertised, LimitCeilings
from batchchat.records import Axis, ErrorKind, Failure, LimitHeaders, Reply, Usage, Verdict
from batchchat.sharing.keeper import LimitKeeper
from batchchat.sharing.keeper_bytes import bytes_of_keeper, keeper_of_bytes
from batchchat.sharing.messages import (
    GrantedPermit,
    KeeperAsk,
    PermitSettled,
    answer_of_json,
    answer_to_json,
    ask_of_json,
    ask_to_json,
)
from tests.limits_lab.servers import Server, SlidingWindow, TokenBucket
from tests.limits_lab.shared import play_shared
from tests.thorough import one_in


class Play:
    """Processes under one limit on a clock of events: they die, stall, come back; the keeper is restarted.

    Each process asks as a run does: with all it wants, again when it was told to, and not at all while it stalls. What
    it is granted it sends a moment later, unless that is too late. `sent` has the moments.
    """

    def __init__(
        self,
        seed: int,
        ceilings: LimitCeilings,
        processes: int,
        lease_s: float,
        *,
        deaths: bool = True,
        restarts: bool = False,
        answers_after: float = 0.3,
        tokens: Callable[[random.Random], int] = lambda _rng: 100,
        through_bytes: bool = False,
    ) -> None:
        self.rng = random.Random(seed)
        self.ceilings = ceilings
        self.lease_s = lease_s
        self.deaths = deaths
        self.tokens = tokens
        self.answers_after = answers_after
        self.through_bytes = through_bytes
        self._interval_s = max(0.02, 0.002 * processes)  # the many of a table row are not worth their time here
        self.sent: list[tuple[float, int, int]] = []
        self.most_at_once = 0
        self._under_way = 0
        self._order = count()
        self._events: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self.keeper = self._new_keeper()
        self._down_until = 0.0
        self._life = [0] * processes
        self._settled: list[list[PermitSettled]] = [[] for _ in range(processes)]
        self._out = [0] * processes
        for process in range(processes):
            self._at(self.rng.uniform(0.0, 1.0), self._ask, process, 0)
        if restarts:
            self._at(self.rng.expovariate(1 / 120), self._restart)

    def _new_keeper(self) -> LimitKeeper:
        return LimitKeeper(self.lease_s, Advertised(), random.Random(self.rng.random()))

    def _at(self, when: float, what: Callable[..., None], *arguments: object) -> None:
        heapq.heappush(self._events, (when, next(self._order), what, arguments))

    def run(self, seconds: float) -> None:
        """Play so many seconds."""
        while self._events and self._events[0][0] < seconds:
            when, _, what, arguments = heapq.heappop(self._events)
            what(when, *arguments)
        self.sent.sort()

    def worst(self, *, tokens: bool = False, window_s: float = 60.0) -> float:
        """Return the most that any window of 60 seconds has."""
        moments = [at for at, _, _ in self.sent]
        sums = [0]
        for _, amount, _ in self.sent:
            sums.append(sums[-1] + (amount if tokens else 1))
        return max(
            sums[place + 1] - sums[bisect.bisect_left(moments, at - window_s + 1e-9)]
            for place, at in enumerate(moments)
        )

    def _ask(self, now: float, process: int, life: int) -> None:
        if life != self._life[process]:
            return
        if now < self._down_until:
            self._at(now + 0.2, self._ask, process, life)
            return
        if self.through_bytes:
            self.keeper = keeper_of_bytes(bytes_of_keeper(self.keeper), random.Random(1))
        settled, self._settled[process] = self._settled[process], []
        ask = KeeperAsk(self.ceilings, [(self.tokens(self.rng), "row") for _ in range(8)], settled, self._out[process])
        answer = self.keeper.exchange(f"{process}-{life}", ask, now)
        heard = now + self.rng.uniform(0.0, 0.02)
        if self.rng.random() < 0.002 and self.deaths:
            heard += self.rng.uniform(0.0, 3 * self.lease_s)  # it stalls
        self._out[process] += len(answer.granted)
        for lent in answer.granted:
            self._at(heard + self.rng.uniform(0.0, 0.01), self._use, process, life, lent, now + self.lease_s)
        if self.deaths and self.rng.random() < 0.0005:
            self._at(heard + self.rng.uniform(0.0, 0.02), self._die, process)
        self._at(max(heard, now + max(self._interval_s, answer.wait)), self._ask, process, life)

    def _use(self, now: float, process: int, life: int, lent: GrantedPermit, until: float) -> None:
        if life != self._life[process]:
            return
        if now > until:
            self._out[process] -= 1
            self._settled[process].append(PermitSettled(lent, None, None, unused=True))
            return
        self.sent.append((now, lent.tokens, process))
        self._under_way += 1
        self.most_at_once = max(self.most_at_once, self._under_way)
        self._at(now + self.answers_after * self.rng.uniform(0.5, 1.5), self._answered, process, life, lent)

    def _answered(self, now: float, process: int, life: int, lent: GrantedPermit) -> None:
        self._under_way -= 1
        if life == self._life[process]:
            self._out[process] -= 1
            usage = Usage(lent.tokens, 0, lent.tokens)
            self._settled[process].append(PermitSettled(lent, None, Reply(Verdict.OK, usage=usage)))

    def _die(self, now: float, process: int) -> None:
        self.keeper.leave(f"{process}-{self._life[process]}", now)
        self._life[process] += 1
        self._out[process], self._settled[process] = 0, []
        self._at(now + self.rng.uniform(1, 20), self._ask, process, self._life[process])

    def _restart(self, now: float) -> None:
        """Forget everything, as a broker does that is killed and started again."""
        self._down_until = now + self.rng.uniform(0.05, 5)
        self.keeper = self._new_keeper()
        self.keeper.stand(self._down_until)
        self._at(now + self.rng.expovariate(1 / 120), self._restart)


TABLE = [
    # requests a minute, processes, lease, seconds
    (10, 16, 1.0, 400),
    (60, 4, 1.0, 400),
    (600, 16, 1.0, 120),
    (600, 4, 0.5, 150),
    (6_000, 16, 0.5, 66),
    (6_000, 64, 1.0, 64),
]


@pytest.mark.parametrize(("limit", "processes", "lease_s", "seconds"), one_in(3, TABLE))
def test_no_minute_is_above_the_limit_and_nearly_all_is_used(
    limit: int, processes: int, lease_s: float, seconds: float
) -> None:
    play = Play(limit + processes, LimitCeilings(limit, None, 256), processes, lease_s)
    play.run(seconds)
    assert play.worst() <= limit
    used = sum(at >= 10 for at, _, _ in play.sent) / (limit / 60 * (seconds - 10))
    assert used >= 0.95, f"{used:.3f} of the limit used"


@pytest.mark.long
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("limit", "processes", "lease_s"), [row[:3] for row in TABLE])
def test_no_minute_is_above_the_limit_in_twenty_minutes(limit: int, processes: int, lease_s: float, seed: int) -> None:
    play = Play(seed, LimitCeilings(limit, None, 256), processes, lease_s, restarts=True)
    play.run(1200)
    assert play.worst() <= limit


@pytest.mark.parametrize("limit", [10, 60, 600])
def test_a_keeper_that_lost_its_memory_grants_nothing_that_could_be_too_much(limit: int) -> None:
    play = Play(limit, LimitCeilings(limit, None, 256), 4, 1.0, restarts=True)
    play.run(300)
    assert play.worst() <= limit


def test_a_keeper_that_does_not_stand_after_a_restart_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LimitKeeper, "stand", lambda _self, _now: None)
    for seed in range(8):
        play = Play(seed, LimitCeilings(10, None, 256), 3, 1.0, restarts=True)
        play.run(400)
        if play.worst() > 10:
            return
    pytest.fail("no window was above the limit")


def test_permits_that_are_used_too_late_are_caught() -> None:
    class Careless(Play):
        def _use(self, now: float, process: int, life: int, lent: GrantedPermit, until: float) -> None:
            super()._use(now, process, life, lent, until=until + 60)

    play = Careless(3, LimitCeilings(600, None, 256), 4, 0.05)
    # Stalls of up to a minute, now and then: what was granted before them is sent after them.
    play.lease_s = 20.0
    play.run(200)
    assert play.worst() > 600


def test_tokens_are_kept_under_their_limit_too() -> None:
    play = Play(5, LimitCeilings(None, 60_000, 256), 4, 1.0, tokens=lambda rng: rng.randint(50, 1_500))
    play.run(200)
    assert play.worst(tokens=True) <= 60_000
    used = sum(tokens for at, tokens, _ in play.sent if at >= 10) / (1_000 * 190)
    assert used >= 0.95


def test_slots_are_shared_and_those_of_the_dead_come_back() -> None:
    play = Play(6, LimitCeilings(None, None, 12), 4, 1.0, answers_after=0.5)
    play.run(60)
    # A process that died has no slots any more, and its requests are still at the server in this play.
    assert play.most_at_once <= 12 + 12
    assert len(play.sent) / (12 / 0.5 * 60) >= 0.8


def test_everybody_gets_a_share() -> None:
    for ceilings in (LimitCeilings(600, None, 256), LimitCeilings(None, 60_000, 256), LimitCeilings(None, None, 16)):
        play = Play(8, ceilings, 4, 0.5, deaths=False)
        play.run(60)
        shares = [sum(one == process for _, _, one in play.sent) / len(play.sent) * 4 for process in range(4)]
        assert min(shares) >= 0.9, (ceilings, shares)


@pytest.mark.thorough
def test_a_keeper_that_is_read_back_at_each_ask_decides_the_same() -> None:
    plays = [
        Play(9, LimitCeilings(600, None, 64), 3, 0.5, deaths=False, through_bytes=through_bytes)
        for through_bytes in (False, True)
    ]
    for play in plays:
        play.run(15)
    assert plays[0].sent == plays[1].sent


# --- the keeper's rules


def _keeper() -> LimitKeeper:
    return LimitKeeper(0.5, Advertised(), random.Random(1))


def _wants(number: int) -> list[tuple[int, str | None]]:
    return [(10, f"row {place}") for place in range(number)]


def test_the_lowest_ceiling_holds_and_goes_with_who_set_it() -> None:
    keeper = _keeper()
    keeper.exchange("a", KeeperAsk(LimitCeilings(None, None, 8)), 0.0)
    keeper.exchange("b", KeeperAsk(LimitCeilings(300, None, 2)), 0.0)
    pace = keeper.exchange("a", KeeperAsk(LimitCeilings(600, None, 8)), 1.0).standing.pace
    assert (pace.requests_per_minute, pace.concurrency) == (300, 2)
    keeper.leave("b", 2.0)
    pace = keeper.exchange("a", KeeperAsk(LimitCeilings(600, None, 8)), 2.0).standing.pace
    assert (pace.requests_per_minute, pace.concurrency) == (600, 8)


def test_a_refusal_that_one_meets_holds_all() -> None:
    keeper = _keeper()
    ceilings = LimitCeilings(None, None, 8)
    (lent,) = keeper.exchange("a", KeeperAsk(ceilings, _wants(1)), 0.0).granted
    refused = Reply(Verdict.RATE_LIMIT, retry_after=7.0)
    keeper.exchange("a", KeeperAsk(ceilings, settled=[PermitSettled(lent, "x", refused)]), 0.1)
    answer = keeper.exchange("b", KeeperAsk(ceilings, _wants(3)), 0.2)
    assert not answer.granted
    assert answer.standing.refusing
    assert [heard.name for heard in answer.heard] == ["paused_by_server"]
    # Who has heard it is not told again.
    place = answer.heard[0].place
    assert not keeper.exchange("b", KeeperAsk(ceilings, heard=place), 0.3).heard
    assert len(keeper.exchange("b", KeeperAsk(ceilings, _wants(3), heard=place), 7.2).granted) == 1, "a probe"


def test_a_probe_whose_process_dies_is_not_waited_for() -> None:
    keeper = _keeper()
    ceilings = LimitCeilings(None, None, 8)
    (lent,) = keeper.exchange("a", KeeperAsk(ceilings, _wants(1)), 0.0).granted
    refused = PermitSettled(lent, "x", Reply(Verdict.RATE_LIMIT, retry_after=1.0))
    keeper.exchange("a", KeeperAsk(ceilings, settled=[refused]), 0.1)
    (probe,) = keeper.exchange("a", KeeperAsk(ceilings, _wants(2)), 2.0).granted
    assert probe.probe
    assert not keeper.exchange("b", KeeperAsk(ceilings, _wants(2)), 2.5).granted
    keeper.leave("a", 3.0)
    assert keeper.exchange("b", KeeperAsk(ceilings, _wants(2)), 3.0).granted


def test_a_probe_whose_answer_was_lost_on_its_way_is_not_waited_for() -> None:
    keeper = _keeper()
    ceilings = LimitCeilings(None, None, 8)
    (lent,) = keeper.exchange("a", KeeperAsk(ceilings, _wants(1)), 0.0).granted
    refused = PermitSettled(lent, "x", Reply(Verdict.RATE_LIMIT, retry_after=1.0))
    keeper.exchange("a", KeeperAsk(ceilings, settled=[refused]), 0.1)
    assert keeper.exchange("a", KeeperAsk(ceilings, _wants(1)), 2.0).granted
    # It asks again without it: it says that it has none.
    assert keeper.exchange("a", KeeperAsk(ceilings, _wants(1)), 2.1).granted


def test_what_a_reply_teaches_survives_the_way_to_a_broker() -> None:
    replies = [
        None,
        Reply(Verdict.OK, usage=Usage(5, 6, 11), limits=LimitHeaders(limit_requests=60, remaining_requests=3)),
        Reply(Verdict.RATE_LIMIT, retry_after=3.5, axis=Axis.TOKENS, failure=Failure(ErrorKind.RATE_LIMIT, "no", 429)),
        Reply(Verdict.TRANSIENT, sent=False, failure=Failure(ErrorKind.CONNECTION, "refused")),
    ]
    lent = GrantedPermit(7, 1.5, 2, 3, probe=True)
    settled = [PermitSettled(lent, "key", reply, unused=reply is None) for reply in replies]
    ask = KeeperAsk(LimitCeilings(1.0, None, 3), _wants(2), settled, 4, 1, [("blame", ("x",))], 5)
    read = ask_of_json(json.loads(json.dumps(ask_to_json(ask))))
    assert (read.ceilings, read.wants, read.in_use, read.probes, read.heard) == (ask.ceilings, ask.wants, 4, 1, 5)
    assert read.acts == ask.acts
    for one, wrote in zip(read.settled, settled, strict=True):
        assert (one.lent, one.key, one.unused) == (wrote.lent, wrote.key, wrote.unused)
        if wrote.reply is None:
            assert one.reply is None
            continue
        assert one.reply is not None
        for name in ("verdict", "sent", "retry_after", "axis", "limits", "failure"):
            assert getattr(one.reply, name) == getattr(wrote.reply, name), name
        assert (one.reply.usage and one.reply.usage.total_tokens) == (wrote.reply.usage and 11)
    answer = _keeper().exchange("a", ask, 3.0)
    assert answer_of_json(json.loads(json.dumps(answer_to_json(answer)))) == answer


def test_bytes_that_hold_anything_else_are_not_run() -> None:
    keeper = b'["object","batchchat.sharing.keeper:LimitKeeper",{%b}]'
    hostile = (
        b"nonsense",
        bytes_of_keeper(_keeper())[:-20],
        b'["object","os:system",{}]',
        b'["object","batchchat.limits.controller:Callable",{}]',
        b'["tuple","batchchat.sharing.keeper:LimitKeeper",[]]',
        keeper % b'"__class__":["object","batchchat.sharing.keeper:KeeperEvents",{}]',
        keeper % b'"holders":["same",7]',
        keeper % b'"holders":{}',
        b'["strange"]',
    )
    for data in hostile:
        with pytest.raises(ValueError, match="no keeper can be read"):
            keeper_of_bytes(data, random.Random(1))


def test_several_runs_under_one_untold_limit_are_as_one() -> None:
    """Each of four runs gets its part of a limit that only refusals tell, and little is wasted on finding it."""
    for seed in (0, 1):
        server = Server(seed, requests=TokenBucket(600, 20) if seed else SlidingWindow(600))
        logs = play_shared(server, LimitKeeper(0.5, Advertised(), random.Random(seed)), 4, 300.0)
        works = [log.work(60.0, 300.0) for log in logs]
        assert sum(works) / 2_400 >= 0.85
        assert min(works) / (sum(works) / 4) >= 0.9
        refused = sum(len(log.refused) for log in logs)
        assert refused / (refused + sum(works)) <= 0.06
