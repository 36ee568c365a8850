"""Where features of a run meet: samples and deadlines, edits and stops, corrections and failures. A virtual clock."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from batchchat.records import answer_bytes
from batchchat.runner import reuse, rows
from batchchat.runner.control import Control
from batchchat.store import Store, read_state
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
    stop = Control()

    async def handler(request: httpx.Request) -> httpx.Response:
        response = await in_a_second(request)
        if len(provider.times) == 7:
            stop.stop(reason="asked to", exit_code=143)
        return response

    def run(prompt: str) -> Any:
        nonlocal stop
        stop = Control()
        provider.times.clear()
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


def test_equal_rows_behind_a_refusal_do_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One request stands for all; it is refused, and so many wait for it that nothing else comes to be sent."""
    monkeypatch.setattr(reuse, "_PARKED_MAX", 5)

    async def handler(_request: httpx.Request) -> httpx.Response:
        await anyio.sleep(1)
        return httpx.Response(404, json={"error": {"message": "no such thing"}})

    provider = Provider(handler)
    messages = [{"role": "user", "content": "Say yes or no"}]
    summary, elapsed, _ = simulate(tmp_path, provider, 100, dedupe=True, messages=messages, constant=True)
    assert (summary.exit_code, summary.failed, summary.sent) == (1, 100, 1)
    assert elapsed < 5


def test_an_answer_from_the_cache_ends_corrections_at_what_they_cost(tmp_path: Path) -> None:
    """A run is stopped behind an answer that does not fit; meanwhile another job learns the right one."""
    stop = Control()
    text = "prose"

    async def handler(_request: httpx.Request) -> httpx.Response:
        await anyio.sleep(1)
        stop.stop(reason="asked to", exit_code=143)
        return answer(text)

    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    fields: dict[str, Any] = {
        "response": {"schema": schema},
        "cache": str(tmp_path / "cache"),
        "prices": {"input": 1.0, "output": 3.0, "currency": "EUR"},
    }
    first, _, _ = simulate(tmp_path, Provider(handler), 1, stop=stop, **fields)
    assert (first.exit_code, first.open, first.sent) == (143, 1, 1)
    text = '{"n": 7}'
    simulate(tmp_path, Provider(handler), 1, **fields, output=str(tmp_path / "other"))
    summary, _, _ = simulate(tmp_path, Provider(handler), 1, **fields)
    assert (summary.exit_code, summary.sent, summary.cache_hits) == (0, 0, 1)
    spend = read_state(tmp_path / "out").spend
    assert spend.requests == 1
    assert spend.cost == pytest.approx(13e-6)
    found = query(tmp_path, "select parsed.n, cache_hit, attempts, corrections, total_tokens, cost from data")
    assert found == [(7, True, 1, 1, 22, pytest.approx(13e-6))]


@pytest.mark.thorough
def test_what_comes_from_the_archive_is_bounded_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[int] = []
    fetch = Store.fetch_archived

    def fetch_archived(self: Store, custom_ids: list[str]) -> Any:
        fetched.append(len(custom_ids))
        return fetch(self, custom_ids)

    monkeypatch.setattr(Store, "fetch_archived", fetch_archived)
    monkeypatch.setattr(rows, "_REVIVE_BYTES", 100_000)
    word = "x" * 1000
    for prompt in ("A", "B", "A"):
        messages = [{"role": "user", "content": f"{prompt} {word} {{{{ text }}}}"}]
        summary, _, _ = simulate(tmp_path, Provider(in_a_second), 300, messages=messages)
    assert (summary.sent, summary.revived) == (0, 300)
    assert sum(fetched) == 300
    assert max(fetched) < 200


def test_buffers_count_what_an_answer_keeps_beside_its_text() -> None:
    tops = tuple({"token": "a", "logprob": -1.0, "top": [{"token": "b", "logprob": -2.0}] * 20} for _ in range(100))
    calls = ({"id": "1", "type": "function", "name": "f", "arguments": "x" * 50_000},)
    assert answer_bytes("yes", None, None, None) < 2000
    assert answer_bytes(None, "r" * 50_000, None, None) > 50_000
    assert answer_bytes(None, None, calls, None) > 50_000
    assert answer_bytes("yes", None, None, tops) > 100 * 20 * 200
