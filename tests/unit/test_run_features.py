"""Where features of a run meet: samples with deadlines, edits with stops, corrections with failures. A virtual clock."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import httpx

from batchchat.runner import StopRequest
from tests.integration.jobs import query
from tests.unit.test_run_clock import Provider, answer, simulate


async def in_a_second(_request: httpx.Request) -> httpx.Response:
    await anyio.sleep(1)
    return answer()


def test_a_deadline_in_the_middle_of_the_samples_leaves_the_rest_open(tmp_path: Path) -> None:
    """Just when as many samples are settled as there are rows."""
    fields: dict[str, Any] = {"samples": 2, "deadline": "10s", "limits": {"concurrency": 1}}
    summary, _, _ = simulate(tmp_path, Provider(in_a_second), 10, **fields)
    assert summary.ok in {10, 11}
    assert (summary.exit_code, summary.open) == (4, 20 - summary.ok)


def test_a_deadline_when_all_samples_are_settled_ends_nothing_early(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"samples": 2, "deadline": "19.5s", "limits": {"concurrency": 1}}
    summary, _, _ = simulate(tmp_path, Provider(in_a_second), 10, **fields)
    assert (summary.exit_code, summary.reason, summary.ok) == (0, None, 20)


def test_an_edit_between_stops_leaves_no_records_of_another_text(tmp_path: Path) -> None:
    """Without a key: the first text's run never came to its end, nor did a later one's."""
    stop = StopRequest()

    async def handler(request: httpx.Request) -> httpx.Response:
        response = await in_a_second(request)
        if len(provider.times) == 7:
            stop.stop(reason="asked to", exit_code=143)
        return response

    def run(prompt: str) -> Any:
        nonlocal provider, stop
        provider, stop = Provider(handler), StopRequest()
        messages = [{"role": "user", "content": f"{prompt} {{{{ text }}}}"}]
        limits = {"concurrency": 1}
        source = str(tmp_path / "rows.jsonl")
        return simulate(tmp_path, provider, rows, stop=stop, input=source, messages=messages, limits=limits)[0]

    provider, rows = Provider(handler), 10
    assert [run(prompt).exit_code for prompt in ("A", "B")] == [143, 143]
    assert run("B").exit_code == 0
    assert query(tmp_path, "select count(*), count(distinct text) from data") == [(10, 10)]
    assert run("C").exit_code == 143
    assert run("B").exit_code == 0  # back again, and nothing is asked
    assert not provider.times
    assert query(tmp_path, "select count(*), count(distinct text) from data") == [(10, 10)]
