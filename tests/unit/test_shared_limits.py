"""Limits that processes share: never passed in any minute, whoever dies or stalls, and nearly all used."""

from __future__ import annotations

import bisect
import heapq
import random
from collections.abc import Callable
from itertools import count

import pytest

from batchchat.records import Reply, Usage, Verdict
from batchchat.sharing.frozen import freeze, thaw
from batchchat.sharing.keeper import Keeper
from batchchat.sharing.messages import (
    Advertised,
    KeeperAsk,
    Lent,
    LimitCeilings,
    Settled,
)


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
        frozen: bool = False,
    ) -> None:
        self.rng = random.Random(seed)
        self.ceilings = ceilings
        self.lease_s = lease_s
        self.deaths = deaths
        self.tokens = tokens
        self.answers_after = answers_after
        self.frozen = frozen
        self._interval_s = max(0.02, 0.002 * processes)  # the many of a table row are not worth their time here
        self.sent: list[tuple[float, int, int]] = []
        self.most_at_once = 0
        self._under_way = 0
        self._order = count()
        self._events: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self.keeper = self._new_keeper()
        self._down_until = 0.0
        self._life = [0] * processes
        self._settled: list[list[Settled]] = [[] for _ in range(processes)]
        self._out = [0] * processes
        for process in range(processes):
            self._at(self.rng.uniform(0.0, 1.0), self._ask, process, 0)
        if restarts:
            self._at(self.rng.expovariate(1 / 120), self._restart)

    def _new_keeper(self) -> Keeper:
        return Keeper(self.lease_s, Advertised(), random.Random(self.rng.random()))

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
        if self.frozen:
            self.keeper = thaw(freeze(self.keeper), random.Random(1))
        settled, self._settled[process] = self._settled[process], []
        wants = [(self.tokens(self.rng), f"{process}-{number}") for number in range(8)]
        ask = KeeperAsk(self.ceilings, wants, settled, self._out[process])
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

    def _use(self, now: float, process: int, life: int, lent: Lent, until: float) -> None:
        if life != self._life[process]:
            return
        if now > until:
            self._out[process] -= 1
            self._settled[process].append(Settled(lent, None, None, unused=True))
            return
        self.sent.append((now, lent.tokens, process))
        self._under_way += 1
        self.most_at_once = max(self.most_at_once, self._under_way)
        self._at(now + self.answers_after * self.rng.uniform(0.5, 1.5), self._answered, process, life, lent)

    def _answered(self, now: float, process: int, life: int, lent: Lent) -> None:
        self._under_way -= 1
        if life == self._life[process]:
            self._out[process] -= 1
            usage = Usage(lent.tokens, 0, lent.tokens)
            self._settled[process].append(Settled(lent, None, Reply(Verdict.OK, usage=usage)))

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
    (10, 16, 1.0, 600),
    (60, 4, 1.0, 600),
    (600, 16, 1.0, 150),
    (600, 4, 0.5, 200),
    (6_000, 16, 0.5, 75),
    (6_000, 64, 1.0, 70),
]


@pytest.mark.parametrize(("limit", "processes", "lease_s", "seconds"), TABLE)
def test_no_minute_is_above_the_limit_and_nearly_all_is_used(
    limit: int, processes: int, lease_s: float, seconds: float
) -> None:
    play = Play(limit + processes, LimitCeilings(limit), processes, lease_s)
    play.run(seconds)
    assert play.worst() <= limit
    used = sum(at >= 10 for at, _, _ in play.sent) / (limit / 60 * (seconds - 10))
    assert used >= 0.95, f"{used:.3f} of the limit used"
