"""Models of servers as real HTTP servers: what holds on the virtual clock holds on sockets."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.limits_lab import servers
from tests.limits_lab.http import FULL, HttpRow, http_rows, run_http, serve
from tests.limits_lab.servers import Server, TokenBucket


def _soon(_under_way: int, _rng: object) -> float:
    return 0.01


SHORT = [
    HttpRow("refuses 5 % at random", lambda: Server(1, noise=lambda _now: 0.05, latency=_soon), FULL, 0, 0.12),
    HttpRow("untold limit", lambda: Server(1, requests=TokenBucket(6_000, 20), latency=_soon), FULL, 0, 0.4),
    HttpRow("untold concurrency 4", lambda: Server(1, concurrency=4, latency=_soon), FULL, 0, 0.4, None),
    HttpRow(
        "told in every answer",
        lambda: Server(1, requests=TokenBucket(6_000, 40), tell=servers.true_limits, latency=_soon),
        FULL,
        0,
        0.3,
    ),
    HttpRow("down for a while", lambda: Server(1, broken=lambda now: 0.05 <= now < 0.3, latency=_soon), FULL, 0, 0.0),
]


@pytest.mark.parametrize("row", SHORT, ids=[row.name for row in SHORT])
def test_every_row_is_answered_once_and_few_requests_are_refused_by_a_real_server(row: HttpRow, tmp_path: Path) -> None:
    log, summary = serve(row, tmp_path, 60)
    assert (summary.exit_code, summary.ok, len(log.accepted)) == (0, 60, 60)
    assert log.waste(0.0, 1e9) <= row.waste, log.refused


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("row", http_rows(), ids=[row.name for row in http_rows()])
def test_a_real_server_gives_what_it_can(row: HttpRow, tmp_path: Path) -> None:
    share, waste, _ = run_http(row, tmp_path, 180.0, 90.0)
    assert share >= row.share
    assert waste <= row.waste
