"""The limit of failed rows: its statistics, and runs that stop at it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from scipy.stats import binomtest

from batchchat.errors import JobError
from batchchat.events import RunSummary
from batchchat.job import validate_job
from batchchat.runner.failed_limit import FALSE_STOP, FailedLimit, surely_over
from tests.integration.test_report import completion, refusal
from tests.unit.test_run_clock import Provider, row_of, simulate


def test_the_bound_is_that_of_clopper_and_pearson() -> None:
    draw = random.Random(2)
    for _ in range(300):
        settled = draw.choice([1, 4, 9, 50, 700, 20_000])
        failed, share = draw.randint(0, min(settled, 400)), draw.choice([0.001, 0.02, 0.1, 0.5, 0.99])
        exact = binomtest(failed, settled, share, alternative="greater").pvalue
        # Ties of the last digit decide nothing.
        if math.isclose(exact, 1e-4, rel_tol=1e-6):
            continue
        assert surely_over(failed, settled, share, 1e-4) == (exact < 1e-4), (failed, settled, share)
    assert surely_over(1, 10, 0, 1e-4)
    assert not surely_over(0, 10, 0, 1e-4)


def settle(limit: FailedLimit, fails: Callable[[int], bool], rows: int) -> int | None:
    """Settle rows one by one; returns at which the limit stops them, None if it never does."""
    failed = 0
    for number in range(1, rows + 1):
        failed += fails(number)
        if limit.passed(failed, number):
            return number
    return None


def test_a_share_stops_when_it_is_sure_and_a_number_at_once() -> None:
    assert settle(FailedLimit("10%"), lambda _: True, 100) == 5
    assert settle(FailedLimit(7), lambda _: True, 100) == 8
    assert settle(FailedLimit(0), lambda number: number == 40, 100) == 40
    assert settle(FailedLimit("10%"), lambda number: number % 4 == 0, 1_000) is not None
    assert settle(FailedLimit("10%"), lambda number: number % 20 == 0, 5_000) is None


def test_a_run_at_the_limit_is_seldom_stopped() -> None:
    stopped = 0
    for seed in range(60):
        draw = random.Random(seed)
        stopped += settle(FailedLimit("10%"), lambda _, draw=draw: draw.random() < 0.1, 1_000) is not None  # type: ignore[misc]
    # About fifty looks of this risk each: one stop in 60 runs would be much.
    assert stopped <= 60 * 50 * FALSE_STOP + 2


@pytest.mark.parametrize(
    ("written", "read"),
    [("10%", "10%"), ("2.50 %", "2.5%"), (50, 50), ("50", 50), ("1_000", 1000), (0, 0), (None, None)],
)
def test_the_field_takes_a_share_or_a_number(written: object, read: object) -> None:
    job = validate_job(_job(limits={"max_failed": written}))
    assert job.limits.max_failed == read
    assert validate_job(job.model_dump(by_alias=True, exclude_unset=True)).limits.max_failed == read


@pytest.mark.parametrize("written", ["100%", "-1%", "ten", 0.1, -1, True, "10 %%", []])
def test_another_value_is_refused_with_its_place(written: object) -> None:
    with pytest.raises(JobError, match=r"limits\.max_failed"):
        validate_job(_job(limits={"max_failed": written}))


def _job(**fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "{{ text }}"}]
    return {
        "name": "x",
        "input": "rows.jsonl",
        "output": "out",
        "provider": "demo",
        "model": "m",
        "messages": messages,
        **fields,
    }


@pytest.mark.parametrize("limit", ["20%", 30])
def test_a_run_stops_and_says_why(tmp_path: Path, limit: object) -> None:
    async def handler(request: httpx.Request) -> httpx.Response:
        await anyio.sleep(1.0 + row_of(request) / 1_000)  # so that row 1 is the first to fail
        return refusal("the text is too long") if row_of(request) % 2 else completion("fine")

    def run(**limits: object) -> RunSummary:
        return simulate(tmp_path, Provider(handler), 800, limits={"concurrency": 8, **limits})[0]

    summary = run(max_failed=limit)
    assert summary.exit_code == 3
    assert summary.open > 100
    assert "rows failed" in (summary.reason or "")
    assert f"limits.max_failed ({limit})" in (summary.reason or "")
    assert "invalid_request: row 1: " in (summary.reason or "")
    assert "too long" in (summary.reason or "")
    assert "raise limits.max_failed" in (summary.remedy or "")
    # What is sent in a run is not part of a request: the same rows go on without the limit.
    later = run()
    assert (later.exit_code, later.ok, later.open) == (1, 400, 0)
    assert later.new_ok == 400 - summary.ok
