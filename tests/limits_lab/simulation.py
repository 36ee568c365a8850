"""Limiters against a server, event by event. Nothing waits: time is the time of the next event."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

from batchchat.limits import Limiter, Permit
from batchchat.records import Reply, Verdict
from tests.limits_lab.servers import Server

TRANSIT_S = (0.002, 0.01)
"""Seconds on the way to the server: from, to."""
_LONG_S = 3600.0


@dataclass
class Log:
    """What happened to the requests of one client: (moment of arrival, tokens) of the accepted and the refused."""

    accepted: list[tuple[float, int]] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    failed: list[float] = field(default_factory=list)
    latencies: list[tuple[float, float]] = field(default_factory=list)

    def work(self, start: float, end: float, *, tokens: bool = False) -> float:
        """Return the accepted requests, or tokens, that arrived in an interval."""
        return sum(amount if tokens else 1 for at, amount in self.accepted if start <= at < end)

    def waste(self, start: float, end: float) -> float:
        """Return the refused share of what was sent in an interval (503 counts as refused)."""
        refused = sum(start <= at < end for at in self.refused)
        sent = refused + sum(start <= at < end for at, _ in self.accepted)
        return refused / sent if sent else 0.0

    def most_in_a_minute(self) -> int:
        """Return the largest number that was sent in any window of 60 seconds."""
        times = sorted([at for at, _ in self.accepted] + self.refused)
        most = first = 0
        for last, at in enumerate(times):
            while at - times[first] >= 60.0:
                first += 1
            most = max(most, last - first + 1)
        return most


def simulate(
    server: Server,
    limiters: list[Limiter],
    duration_s: float,
    *,
    sizes: Callable[[random.Random], int] = lambda _rng: 100,
    starts: list[float] | None = None,
    suspended: tuple[float, float] | None = None,
) -> list[Log]:
    """Run clients that always have more requests, each with its own limiter. Returns a log for each.

    `sizes` draws the tokens of a request, `starts` are the moments at which the clients begin. From `suspended[0]` to
    `suspended[1]` the clients' process does nothing at all.
    """
    logs = [Log() for _ in limiters]
    rng = random.Random(server.seed + 1)
    order = count()
    events: list[tuple[float, int, int, Permit | None, Reply | None]] = []
    begun = starts or [0.0] * len(limiters)
    wants = [sizes(rng) for _ in limiters]
    wakes = list(begun)
    busy_from, busy_to = suspended or (-1.0, -1.0)

    def awake(at: float) -> float:
        return busy_to if busy_from <= at < busy_to else at

    while True:
        who = min(range(len(limiters)), key=wakes.__getitem__)
        now = min(wakes[who], events[0][0] if events else _LONG_S * 100)
        if now >= duration_s:
            return logs
        if events and events[0][0] <= wakes[who]:
            _, _, client, permit, reply = heapq.heappop(events)
            if permit is None:
                server.leave()
                continue
            if reply is None:  # the request reaches the server
                reply, after = server.arrive(now, permit.tokens)
                log = logs[client]
                if reply.verdict is Verdict.OK:
                    log.accepted.append((now, permit.tokens))
                    log.latencies.append((now, after))
                    heapq.heappush(events, (now + after, next(order), client, None, None))
                elif reply.verdict is Verdict.RATE_LIMIT or server.under_way >= server.overloaded_from:
                    log.refused.append(now)
                else:
                    log.failed.append(now)
                heapq.heappush(events, (awake(now + after), next(order), client, permit, reply))
                continue
            permit.settle(reply, now)
            who = client
        limiter = limiters[who]
        if now < begun[who]:
            continue
        while (granted := limiter.try_acquire(wants[who], key=next(order), now=now)) is not None:
            wants[who] = sizes(rng)
            heapq.heappush(events, (now + rng.uniform(*TRANSIT_S), next(order), who, granted, None))
        wakes[who] = awake(max(now + 1e-6, now + min(_LONG_S, limiter.wait(now, wants[who]))))
