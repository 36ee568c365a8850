"""The models of servers as real HTTP servers on loopback, with a whole run of a job against each.

`python -m tests.limits_lab --http 60` prints what a job gets there in 60 s. The models decide as they do on the virtual
clock; sockets, the event loop, the client and the engine are real.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import batchchat
from batchchat import RunSummary
from batchchat.records import LimitHeaders, Reply, Verdict
from tests.integration.jobs import make_job, texts, write_rows
from tests.integration.raw_server import COMPLETION, Peer, RawServer, response
from tests.limits_lab import servers
from tests.limits_lab.servers import FixedWindow, Server, SlidingWindow, TokenBucket
from tests.limits_lab.simulation import Log

LATENCY_S = 0.05
AT_ONCE = 16
FULL = AT_ONCE / LATENCY_S
"""What the client can send a second at most: 320."""
TOKENS = 4
"""What `response()` says that it used."""


def _quick(_under_way: int, _rng: random.Random) -> float:
    return LATENCY_S


@dataclass(frozen=True)
class HttpRow:
    """A server, what it could give a second between `start` and the end, and what the model's row asks."""

    name: str
    server: Callable[[], Server]
    per_second: float
    share: float
    waste: float
    concurrency: int | None = AT_ONCE
    job_limit: int | None = None


def http_rows() -> list[HttpRow]:
    """Return the servers on which today's limiter and the one before it were compared, and some of the table."""
    ends = 40.0
    noise = {share: (lambda _now, share=share: share) for share in (0.01, 0.002)}
    return [
        HttpRow(
            "refuses 1 % at random", lambda: Server(1, noise=noise[0.01], latency=_quick), FULL * 0.99, 0.85, 0.019
        ),
        HttpRow(
            "refuses 3 % for 40 s, then never",
            lambda: Server(1, noise=lambda now: 0.03 if now < ends else 0.0, latency=_quick),
            FULL,
            0.85,
            0.04,
        ),
        HttpRow("refuses 0.2 % at random", lambda: Server(1, noise=noise[0.002], latency=_quick), FULL, 0.85, 0.01),
        HttpRow(
            "refuses 1 %, the job sets 6,000/min",
            lambda: Server(1, noise=noise[0.01], latency=_quick),
            100.0,
            0.90,
            0.02,
            job_limit=6_000,
        ),
        HttpRow(
            "says 60/min in four refusals only, takes everything",
            lambda: Server(1, noise=servers.first_refusals(4), tell=servers.false_limit, latency=_quick),
            FULL,
            0.80,
            0.02,
        ),
        HttpRow(
            "`remaining: 0` on accepted answers",
            lambda: Server(1, tell=servers.nothing_remains, latency=_quick),
            FULL,
            0.80,
            0.02,
        ),
        HttpRow(
            "untold limit of 30/min",
            lambda: Server(1, requests=SlidingWindow(30), latency=_quick),
            0.5,
            0.85,
            0.05,
        ),
        HttpRow(
            "untold 3,000/min, bucket of 10",
            lambda: Server(1, requests=TokenBucket(3_000, 10), latency=_quick),
            50.0,
            0.80,
            0.10,
        ),
        HttpRow(
            "untold 3,000/min, a limit per second",
            lambda: Server(1, requests=FixedWindow(3_000, 1.0), latency=_quick),
            50.0,
            0.75,
            0.10,
        ),
        HttpRow(
            "untold concurrency 4", lambda: Server(1, concurrency=4, latency=_quick), 4 / LATENCY_S, 0.70, 0.10, None
        ),
        HttpRow(
            "told in every answer: 1,200/min",
            lambda: Server(1, requests=TokenBucket(1_200, 20), tell=servers.true_limits, latency=_quick),
            20.0,
            0.90,
            0.15,
        ),
        HttpRow(
            "down from 1 s to 2 s",
            lambda: Server(1, broken=lambda now: 1.0 <= now < 2.0, latency=_quick),
            FULL,
            0.40,
            0.0,
        ),
    ]


def run_http(row: HttpRow, folder: Path, seconds: float, start: float) -> tuple[float, float, Log]:
    """Run a job for `seconds`; return its share of what was possible from `start` on, its waste, and what happened.

    Time begins with the first request that reaches the server. Nothing is asserted here.
    """
    # More rows than can be answered: the deadline ends the run.
    rows = int(min(row.per_second, FULL) * seconds * 1.3) + 100
    log, _ = serve(row, folder, rows, deadline=f"{seconds}s")
    share = log.work(start, seconds) / (row.per_second * (seconds - start))
    return share, log.waste(start, seconds), log


def serve(row: HttpRow, folder: Path, rows: int, **fields: Any) -> tuple[Log, RunSummary]:
    """Run a job of so many rows against the server; return what happened there, and how the run ended."""
    log = Log()
    server = row.server()
    began: list[float] = []

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            now = time.monotonic()
            if not began:
                began.append(now)
            now -= began[0]
            reply, after = server.arrive(now, TOKENS)
            if reply.verdict is Verdict.OK:
                log.accepted.append((now, TOKENS))
            else:
                (log.refused if reply.verdict is Verdict.RATE_LIMIT else log.failed).append(now)
            try:
                await asyncio.sleep(after)
            finally:
                if reply.verdict is Verdict.OK:
                    server.leave()
            await peer.send(_http(reply))

    write_rows(folder / "rows.jsonl", texts(rows))
    limits = {"concurrency": row.concurrency, "requests_per_minute": row.job_limit}
    with RawServer(script) as http:
        job = make_job(
            folder,
            f"{http.url}/v1",
            limits={name: value for name, value in limits.items() if value is not None},
            **fields,
        )
        return log, batchchat.run(job, environ={})


def _http(reply: Reply) -> bytes:
    """Write a reply as the bytes of a response."""
    fields = _fields(reply.limits) if reply.limits is not None else []
    if reply.retry_after is not None:
        fields.append(f"Retry-After: {reply.retry_after:g}")
    if reply.verdict is Verdict.OK:
        return response(COMPLETION, *fields)
    status = reply.failure.http_status if reply.failure is not None else 500
    return response(b'{"error":{"message":"refused"}}', *fields, status=f"{status} No")


def _fields(limits: LimitHeaders) -> list[str]:
    found = []
    for name in ("requests", "tokens"):
        for word, value in (
            ("limit", getattr(limits, f"limit_{name}")),
            ("remaining", getattr(limits, f"remaining_{name}")),
            ("reset", getattr(limits, f"reset_{name}")),
        ):
            if value is not None:
                found.append(f"x-ratelimit-{word}-{name}: {f'{value:.3f}s' if word == 'reset' else value}")
    return found
