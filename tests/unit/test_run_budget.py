"""Whole runs under a budget or a deadline, on a virtual clock: what is sent, what is spent, how it ends and goes on."""

from __future__ import annotations

import json
from pathlib import Path

import anyio
import httpx
import pytest
import trio.testing

from batchchat.budget import Budget
from batchchat.errors import JobError
from batchchat.events import RunSummary
from batchchat.runner.control import Control
from batchchat.runner.run import run_job
from tests.integration.jobs import make_job, texts, write_rows
from tests.unit.test_run_clock import Provider, answer, inline, row_of, simulate

PARAMS = {"max_tokens": 5}


def billed(prompt: int = 20, completion: int = 5) -> httpx.Response:
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    choice = {"message": {"content": "yes"}, "finish_reason": "stop"}
    return httpx.Response(200, json={"choices": [choice], "usage": usage, "model": "m"})


async def steady(_request: httpx.Request) -> httpx.Response:
    await anyio.sleep(1)
    return billed()


def test_never_more_requests_are_sent_than_the_budget_has_and_the_next_run_goes_on(tmp_path: Path) -> None:
    provider = Provider(steady)
    summary, _, _ = simulate(tmp_path, provider, 100, budget={"max_requests": 37})
    assert (summary.exit_code, summary.sent, summary.ok, summary.open) == (4, 37, 37, 63)
    assert len(provider.times) == 37
    assert summary.reason == "budget.max_requests of 37 is used up: that many requests were sent"
    summary, _, _ = simulate(tmp_path, provider, 100, budget={"max_requests": 63})
    assert (summary.exit_code, summary.sent, summary.ok) == (0, 63, 100)


def test_retries_and_refusals_count_as_requests(tmp_path: Path) -> None:
    async def handler(_request: httpx.Request) -> httpx.Response:
        await anyio.sleep(1)
        number = len(provider.times)
        return httpx.Response(429 if number % 5 == 0 else 500) if number % 2 else billed()

    provider = Provider(handler)
    summary, _, _ = simulate(tmp_path, provider, 100, budget={"max_requests": 40})
    assert (summary.exit_code, summary.sent, summary.failed) == (4, 40, 0)
    assert 0 < summary.ok < 40


def test_a_budget_of_one_request_sends_one(tmp_path: Path) -> None:
    provider = Provider(steady)
    summary, _, _ = simulate(tmp_path, provider, 3, budget={"max_requests": 1})
    assert (summary.exit_code, summary.ok, summary.open) == (4, 1, 2)


def test_tokens_stay_under_the_cap_where_max_tokens_bounds_the_answers(tmp_path: Path) -> None:
    """Prompts take less than their size lets expect here, so nothing can pass the cap; it is used nearly whole."""
    provider = Provider(steady)
    summary, _, events = simulate(tmp_path, provider, 400, params=PARAMS, budget={"max_tokens": 2500})
    assert summary.exit_code == 4
    assert 2500 - 2 * 25 < summary.spend.total_tokens <= 2500
    assert summary.spend.total_tokens == 25 * summary.ok == 25 * len(provider.times)
    assert summary.budget is not None
    assert (summary.budget.tokens, summary.budget.in_flight) == (summary.spend.total_tokens, 0)
    assert [event.level for event in events if event.name == "halted"] == ["warning"]


def test_money_is_told_from_what_was_billed_also_for_failures(tmp_path: Path) -> None:
    async def handler(request: httpx.Request) -> httpx.Response:
        await anyio.sleep(1)
        if row_of(request) % 2:
            return billed()
        usage = {"prompt_tokens": 20, "completion_tokens": 5, "total_tokens": 25}
        choice = {"message": {"content": "ye"}, "finish_reason": "length"}
        return httpx.Response(200, json={"choices": [choice], "usage": usage})

    # 25 tokens at 0.20 a million.
    provider = Provider(handler)
    summary, _, _ = simulate(tmp_path, provider, 400, params=PARAMS, budget={"max_cost": 100 * 25 * 0.2e-6})
    assert summary.exit_code == 4
    assert (summary.reason or "").startswith("budget.max_cost of 0.0005 EUR is used up")
    assert 97 <= len(provider.times) <= 100
    assert summary.ok + summary.failed == len(provider.times)
    assert summary.failed > 40
    assert summary.spend.cost == pytest.approx(len(provider.times) * 25 * 0.2e-6)
    assert summary.budget is not None
    assert summary.budget.cost == pytest.approx(summary.spend.cost)


def test_an_answer_without_usage_is_charged_what_was_reserved(tmp_path: Path) -> None:
    async def handler(_request: httpx.Request) -> httpx.Response:
        await anyio.sleep(1)
        choice = {"message": {"content": "yes"}, "finish_reason": "stop"}
        return httpx.Response(200, json={"choices": [choice]})

    provider = Provider(handler)
    summary, _, _ = simulate(tmp_path, provider, 400, params=PARAMS, budget={"max_tokens": 1000})
    assert summary.exit_code == 4
    assert 10 < summary.ok < 100
    assert summary.spend.total_tokens == 0
    assert summary.budget is not None
    assert 900 < summary.budget.tokens <= 1000
    assert any("came without usage" in warning for warning in summary.warnings)


def test_what_is_in_flight_ends_however_long_it_takes(tmp_path: Path) -> None:
    async def handler(request: httpx.Request) -> httpx.Response:
        await anyio.sleep(200 if row_of(request) == 3 else 1)
        return billed()

    provider = Provider(handler)
    summary, elapsed, _ = simulate(tmp_path, provider, 100, budget={"max_requests": 20})
    assert (summary.exit_code, summary.ok) == (4, 20)
    assert 200 <= elapsed < 202


def test_a_budget_that_suffices_changes_nothing(tmp_path: Path) -> None:
    budget = {"max_requests": 100, "max_tokens": 1_000_000, "max_cost": 1}
    summary, elapsed, _ = simulate(tmp_path, Provider(steady), 100, budget=budget, limits={"concurrency": 10})
    assert (summary.exit_code, summary.ok) == (0, 100)
    assert elapsed < 12


def test_a_request_that_can_never_fit_ends_the_run_before_anything_is_sent(tmp_path: Path) -> None:
    provider = Provider(steady)
    summary, _, _ = simulate(tmp_path, provider, 5, params={"max_tokens": 5000}, budget={"max_tokens": 1000})
    assert (summary.exit_code, summary.sent, summary.open) == (4, 0, 5)
    assert "too small" in (summary.reason or "")
    assert "params.max_tokens" in (summary.remedy or "")


def test_several_runs_under_one_budget_pass_it_no_more_than_one_would(tmp_path: Path) -> None:
    provider = Provider(steady)
    budget = Budget(max_requests=50, max_cost=1.0)
    jobs = []
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        write_rows(tmp_path / name / "rows.jsonl", texts(30))
        jobs.append(make_job(tmp_path / name, None, name=name))
    summaries: list[RunSummary] = []

    async def one(number: int) -> None:
        summaries.append(
            await run_job(jobs[number], transport=provider, offload=inline, environ={}, seed=number, budget=budget)
        )

    async def main() -> None:
        async with anyio.create_task_group() as group:
            for number in range(3):
                group.start_soon(one, number)

    anyio.run(main, backend="trio", backend_options={"clock": trio.testing.MockClock(autojump_threshold=0)})
    assert len(provider.times) == 50
    assert sum(summary.ok for summary in summaries) == 50
    assert {summary.exit_code for summary in summaries} == {4}


# --- deadline


def test_nothing_is_launched_after_the_deadline_and_what_is_in_flight_gets_the_grace(tmp_path: Path) -> None:
    async def handler(request: httpx.Request) -> httpx.Response:
        await anyio.sleep(1_000 if row_of(request) == 5 else 3)
        return answer()

    provider = Provider(handler)
    summary, elapsed, _ = simulate(tmp_path, provider, 400, deadline="1m")
    assert (summary.exit_code, summary.failed) == (4, 0)
    assert summary.reason == "the deadline of 1m is over"
    assert 50 < max(provider.times) - provider.times[0] <= 60
    assert elapsed == pytest.approx(80, abs=1)
    # Row 5 outlived the grace: it stays open; all others that were sent are counted.
    assert summary.ok == len(provider.times) - 1
    assert summary.ok + summary.open == 400
    summary, _, _ = simulate(tmp_path, Provider(steady), 400)
    assert (summary.exit_code, summary.ok) == (0, 400)


def test_a_deadline_ends_waits_for_retries_and_limits(tmp_path: Path) -> None:
    async def handler(_request: httpx.Request) -> httpx.Response:
        await anyio.sleep(0.1)
        return httpx.Response(429, headers={"retry-after": "60"})

    summary, elapsed, _ = simulate(tmp_path, Provider(handler), 20, deadline="30s", retry={"outage": "1h"})
    assert (summary.exit_code, summary.open) == (4, 20)
    assert 30 <= elapsed < 31


def test_a_deadline_that_comes_when_everything_is_done_is_none(tmp_path: Path) -> None:
    summary, _, _ = simulate(tmp_path, Provider(steady), 4, deadline="0.5s")
    assert (summary.exit_code, summary.reason, summary.ok) == (0, None, 4)


def test_a_signal_before_the_deadline_keeps_its_own_exit_code(tmp_path: Path) -> None:
    stop = Control()

    async def handler(request: httpx.Request) -> httpx.Response:
        if row_of(request) == 20:
            stop.stop(reason="asked to", exit_code=143)
        await anyio.sleep(8)
        return answer()

    summary, _, _ = simulate(tmp_path, Provider(handler), 100, stop=stop, deadline="25s")
    assert (summary.exit_code, summary.reason) == (143, "asked to")


# --- refused before anything is sent


def test_a_cap_on_money_needs_a_known_price(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"budget\.max_cost: cannot be kept: no price is known for gpt-x at demo"):
        simulate(tmp_path, Provider(steady), 1, model="gpt-x", budget={"max_cost": 1})
    prices = {"input": 1, "output": 1, "currency": "USD"}
    summary, _, _ = simulate(tmp_path, Provider(steady), 1, model="gpt-x", budget={"max_cost": 1}, prices=prices)
    assert (summary.exit_code, summary.currency) == (0, "USD")


def test_the_state_of_the_budget_is_in_the_runs_list(tmp_path: Path) -> None:
    simulate(tmp_path, Provider(steady), 9, budget={"max_requests": 4})
    line = json.loads((tmp_path / "out" / "_batchchat" / "runs.jsonl").read_text(encoding="utf-8"))
    assert (line["exit_code"], line["budget"]["max_requests"], line["budget"]["requests"]) == (4, 4, 4)
