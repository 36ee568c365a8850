"""Several processes under one limit that they share, against a server, event by event."""

from __future__ import annotations

import heapq
import random
from itertools import count

from batchchat.limits.ceilings import LimitCeilings
from batchchat.records import Reply, Verdict
from batchchat.sharing.keeper import LimitKeeper
from batchchat.sharing.messages import GrantedPermit, KeeperAsk, PermitSettled
from tests.limits_lab.servers import Server
from tests.limits_lab.simulation import TRANSIT_S, Log

_INTERVAL_S = 0.02
"""Seconds between two asks of a process."""


def play_shared(
    server: Server, keeper: LimitKeeper, processes: int, seconds: float, *, at_once: int = 32, tokens: int = 100
) -> list[Log]:
    """Run processes that always have more requests and ask one keeper. Returns a log for each."""
    logs = [Log() for _ in range(processes)]
    rng = random.Random(server.seed + 1)
    order = count()
    settled: list[list[PermitSettled]] = [[] for _ in range(processes)]
    out = [0] * processes
    heard = [0] * processes
    wants = [(tokens, "row")] * at_once
    # (moment, number, process, permit and its reply): an ask has no permit, one that is on its way no reply.
    events: list[tuple[float, int, int, GrantedPermit | None, Reply | None]] = [
        (0.1 * process, next(order), process, None, None) for process in range(processes)
    ]
    while events[0][0] < seconds:
        now, _, process, lent, reply = heapq.heappop(events)
        if lent is None:
            ask = KeeperAsk(
                LimitCeilings(None, None, at_once * processes),
                wants[out[process] :],
                settled[process],
                out[process],
                heard=heard[process],
            )
            # A probe that is under way is one of those that are out.
            ask.probes = keeper.holders[str(process)].probes if str(process) in keeper.holders else 0
            ask.probes -= sum(one.lent.probe for one in ask.settled if isinstance(one.lent, GrantedPermit))
            settled[process] = []
            answer = keeper.exchange(str(process), ask, now)
            for granted in answer.granted:
                out[process] += 1
                heapq.heappush(events, (now + rng.uniform(*TRANSIT_S), next(order), process, granted, None))
            heard[process] = max([heard[process], *(one.place for one in answer.heard)])
            heapq.heappush(events, (now + max(_INTERVAL_S, answer.wait), next(order), process, None, None))
        elif reply is None:
            reply, after = server.arrive(now, lent.tokens)
            if reply.verdict is Verdict.OK:
                logs[process].accepted.append((now, lent.tokens))
            else:
                logs[process].refused.append(now)
            heapq.heappush(events, (now + after, next(order), process, lent, reply))
        else:
            if reply.verdict is Verdict.OK:
                server.leave()
            out[process] -= 1
            settled[process].append(PermitSettled(lent, None, reply))
    return logs
