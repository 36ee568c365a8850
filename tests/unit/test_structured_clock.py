"""Corrections in time: under the limits of the job, within the row's deadline, beside an outage. On a virtual clock."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anyio
import httpx

import batchchat
from tests.integration.jobs import query
from tests.unit.test_run_clock import Provider, answer, simulate

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


def asks(request: httpx.Request) -> int:
    """How many answers came before this request."""
    return (len(json.loads(request.content)["messages"]) - 1) // 2


def typed(**more: Any) -> dict[str, Any]:
    return {"response": {"schema": SCHEMA, **more}}


def test_corrections_are_paced_like_all_requests(tmp_path: Path) -> None:
    async def handler(request: httpx.Request) -> httpx.Response:
        await anyio.sleep(0.2)
        return answer('{"n": 1}' if asks(request) else '{"n": "one"}')

    provider = Provider(handler)
    limits = {"requests_per_minute": 120, "concurrency": 8}
    summary, elapsed, _ = simulate(tmp_path, provider, 180, limits=limits, **typed())
    assert (summary.ok, summary.sent, summary.corrections) == (180, 360, 180)
    worst = max(sum(1 for time in provider.times if start <= time < start + 60) for start in provider.times)
    assert worst <= 120
    assert elapsed < 3 * 60 * 1.05


def test_the_rows_deadline_ends_its_corrections_too(tmp_path: Path) -> None:
    async def handler(_request: httpx.Request) -> httpx.Response:
        await anyio.sleep(10)
        return answer("no JSON")

    provider = Provider(handler)
    retry = {"row_deadline": "25s"}
    summary, elapsed, _ = simulate(tmp_path, provider, 1, retry=retry, **typed(corrections=20))
    assert (summary.failed, summary.sent) == (1, 3)
    assert elapsed < 31
    (found,) = batchchat.read_output(tmp_path / "out").to_pylist()
    assert found["error_kind"] in {"invalid_output", "timeout"}
    assert "deadline" in found["error_message"]
    assert found["corrections"] == 2


def test_an_outage_between_an_answer_and_its_correction_costs_nothing(tmp_path: Path) -> None:
    async def handler(request: httpx.Request) -> httpx.Response:
        await anyio.sleep(0.5)
        if 5 <= anyio.current_time() - provider.times[0] < 65:
            return httpx.Response(503, json={"error": "down"})
        return answer('{"n": 1}' if asks(request) else '{"n": "one"}')

    provider = Provider(handler)
    summary, _, _ = simulate(tmp_path, provider, 200, limits={"concurrency": 8}, **typed())
    assert (summary.exit_code, summary.ok) == (0, 200)
    assert query(tmp_path, "select count(*) from data where corrections = 1 and parsed.n = 1") == [(200,)]
    assert query(tmp_path, "select sum(total_tokens) from data") == [(200 * 22,)]
