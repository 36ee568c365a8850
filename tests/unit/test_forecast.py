"""What a run will have used: guessed by size, corrected by real usage, told once."""

from __future__ import annotations

from pathlib import Path

import anyio
import httpx
import pytest

from batchchat.money import Tariff
from batchchat.planning import plan_job
from batchchat.records import Request, RowBatch, Spend
from batchchat.runner.forecast import ENOUGH_ANSWERS, Forecaster
from tests.integration.jobs import make_job, texts, write_rows
from tests.unit.test_run_budget import billed
from tests.unit.test_run_clock import Provider, simulate

TARIFF = Tariff(1_000_000, 2_000_000, 1_000_000)


def requests(count: int, prompt: int, max_tokens: int | None) -> list[Request]:
    batch = RowBatch("rows", 0, None, [{}] * count)
    return [Request("0" * 32, b"{}", prompt, max_tokens, batch, offset) for offset in range(count)]


def test_the_guess_is_by_size_until_there_are_enough_answers() -> None:
    forecaster = Forecaster(TARIFF)
    assert forecaster.forecast(settled=0, asked=0, spend=Spend(), left=10) is None
    forecaster.add(requests(50, 30, 10))
    forecaster.add(requests(50, 10, None))
    found = forecaster.forecast(settled=0, asked=0, spend=Spend(), left=1000)
    assert found is not None
    # 20 prompt tokens on the mean; answers of 10, and of 256 where nothing bounds them.
    assert (found.corrected, found.tokens) == (False, 1000 * 20 + 1000 * 133)
    assert found.cost == found.guessed_cost == pytest.approx((1000 * 20 * 1.0 + 1000 * 133 * 2.0) / 1e6)


def test_from_the_hundredth_answer_on_it_follows_real_usage() -> None:
    forecaster = Forecaster(TARIFF)
    forecaster.add(requests(300, 20, 10))
    spend = Spend(ENOUGH_ANSWERS, 3000, 200, 3200, 0, 0, 0.0034)
    found = forecaster.forecast(settled=ENOUGH_ANSWERS, asked=ENOUGH_ANSWERS, spend=spend, left=900)
    assert found is not None
    assert (found.corrected, found.tokens, found.guessed_tokens) == (True, 32_000, 30_000)
    assert found.cost == pytest.approx(0.034)
    assert found.prompt_ratio == pytest.approx(1.5)
    # Half of what was settled needed no request: half of what is left will need none.
    found = forecaster.forecast(settled=200, asked=100, spend=spend, left=800)
    assert found is not None
    assert found.tokens == 16_000


def test_without_a_price_only_tokens_are_told() -> None:
    forecaster = Forecaster(None)
    forecaster.add(requests(1, 20, 10))
    found = forecaster.forecast(settled=0, asked=0, spend=Spend(), left=1)
    assert found is not None
    assert (found.tokens, found.cost, found.guessed_cost) == (30, None, None)


def test_a_run_tells_the_correction_once_and_the_next_plan_learns_from_it(tmp_path: Path) -> None:
    async def handler(_request: httpx.Request) -> httpx.Response:
        await anyio.sleep(1)
        return billed(prompt=40, completion=5)

    params = {"max_tokens": 16}
    planned = plan_job(make_job(_rows(tmp_path), None, params=params))
    summary, _, events = simulate(tmp_path, Provider(handler), 300, params=params)
    (told,) = [event for event in events if event.name == "estimate_corrected"]
    assert told.fields["answers"] in range(100, 120)
    assert told.fields["tokens"] == pytest.approx(300 * 45, rel=0.02)
    assert "were estimated by size" in told.message
    forecast = summary.forecast
    assert forecast is not None
    assert forecast.tokens == summary.spend.total_tokens
    assert forecast.cost == pytest.approx(summary.spend.cost)
    # What the plan said before the run stands beside what it took.
    assert forecast.guessed_cost == pytest.approx(planned.cost or 0, rel=0.01)
    other = [{"role": "user", "content": "Labels: no, yes\n{{ text }}"}]
    again = plan_job(make_job(tmp_path, None, params=params, messages=other))
    assert again.prompt_tokens == pytest.approx((planned.prompt_tokens or 0) * forecast.prompt_ratio, rel=0.01)
    assert "which they were in the last run" in again.method


def _rows(folder: Path) -> Path:
    write_rows(folder / "rows.jsonl", texts(300))
    return folder
