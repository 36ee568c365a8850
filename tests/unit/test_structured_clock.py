"""Corrections in time: under the limits of the job, within the row's deadline, beside an outage. On a virtual clock."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import anyio
import httpx
import pytest

import batchchat
from batchchat.runner.control import Control
from batchchat.store import read_state
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


@pytest.mark.parametrize("status", [500, 404, 400])
@pytest.mark.parametrize("stopped", [False, True])
def test_a_correction_that_is_never_answered_keeps_the_answer_it_was_about(
    tmp_path: Path, status: int, stopped: bool
) -> None:
    stop = Control()

    async def handler(request: httpx.Request) -> httpx.Response:
        await anyio.sleep(1)
        if stopped and len(provider.times) == 1:
            stop.stop(reason="asked to", exit_code=143)
        if asks(request):
            return httpx.Response(status, json={"error": {"message": "not this"}})
        return answer('{"n": "one"}')

    provider = Provider(handler)
    if stopped:
        summary, _, _ = simulate(tmp_path, provider, 1, stop=stop, **typed())
        assert (summary.exit_code, summary.sent) == (143, 1)
    summary, _, _ = simulate(tmp_path, provider, 1, retry={"attempts": 2}, **typed())
    assert (summary.failed, len(provider.times)) == (1, 3 if status == 500 else 2)
    (found,) = batchchat.read_output(tmp_path / "out").to_pylist()
    assert (found["completion"], found["finish_reason"], found["model"]) == ('{"n": "one"}', "stop", "m")
    assert (found["http_status"], found["corrections"], found["total_tokens"]) == (status, 1, 11)
    assert "not this" in found["error_message"]
    assert "integer" in found["error_message"]
    assert found["error_kind"] == ("server" if status == 500 else "invalid_request")
    assert read_state(tmp_path / "out").spend.requests == 1


@pytest.mark.parametrize("seed", [1, 2])
def test_stopped_again_and_again_every_answer_counts_once(tmp_path: Path, seed: int) -> None:
    """Whatever comes of the answers: what was answered is in the ledger and in the records, and was asked once."""
    random, rows, answered = Random(seed), 60, 0
    bodies: list[bytes] = []
    stop = Control()

    async def handler(request: httpx.Request) -> httpx.Response:
        nonlocal answered
        await anyio.sleep(random.uniform(0.05, 2))
        if random.random() < 0.1:
            return httpx.Response(random.choice([429, 503]), json={"error": "not now"})
        answered += 1
        bodies.append(request.content)
        if answered % 25 == 0:
            stop.stop(reason="asked to", exit_code=143)
        kind = random.random()
        if kind < 0.3:
            return answer(random.choice(['{"n": "one"}', "prose"]))
        found = answer('So: {"n": 2}' if kind < 0.4 else '{"n": 1}').json()
        if kind > 0.9:
            found["choices"][0] = {"message": {"content": '{"n":'}, "finish_reason": "length"}
        return httpx.Response(200, json=found)

    fields = typed(corrections=3, truncated={"retry_with_max_tokens": 50}) | {
        "params": {"max_tokens": 5},
        "output": {"path": str(tmp_path / "out"), "part_rows": 20, "part_seconds": 3},
    }
    for number in range(20):
        stop = Control()
        summary, _, _ = simulate(tmp_path, Provider(handler), rows, stop=stop, **fields)
        assert read_state(tmp_path / "out").spend.requests == summary.spend_total.requests == answered
        if not summary.open:
            assert number >= 2
            break
    assert summary.ok + summary.failed == rows
    sums = "select count(distinct key), sum(total_tokens) from data"
    assert query(tmp_path, sums) == [(rows, 11 * answered)]
    assert query(tmp_path, "select count(*) from data where (status = 'ok') != (parsed.n is not null)") == [(0,)]
    assert len(bodies) == len(set(bodies)) == answered
