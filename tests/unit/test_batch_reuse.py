"""Equal rows, and answers of other jobs, beside batches that an earlier run left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from batchchat.events import RunSummary
from batchchat.runner.options import RunOptions
from tests.fake_batches import FakeService
from tests.thorough import one_in
from tests.unit.test_batch_engine import Expiring, simulate


def go(
    folder: Path, service: FakeService, *, rows: int = 20, texts: int = 5, wait: bool = True, **fields: Any
) -> RunSummary:
    equal = [{"id": number, "text": f"row {number % texts}"} for number in range(rows)]
    return simulate(folder, service, equal, options=RunOptions(wait=wait), **fields)[0]


def sent(service: FakeService) -> int:
    return b"".join(service.files.values()).count(b"\n")


@pytest.mark.parametrize("seconds", [0.0, 300.0], ids=["ended", "under way"])
@pytest.mark.parametrize("rows", one_in(2, [20, 35]), ids=["the same rows", "more rows"])
@pytest.mark.parametrize("keyed", one_in(2, [False, True]))
def test_equal_rows_of_a_batch_that_an_earlier_run_left_are_sent_once(
    tmp_path: Path, seconds: float, rows: int, keyed: bool
) -> None:
    service = FakeService(seconds=seconds)
    fields: dict[str, Any] = {"dedupe": True}
    if not keyed:
        fields["input"] = {"path": str(tmp_path / "rows.jsonl")}
    assert go(tmp_path, service, wait=False, **fields).exit_code == 4
    assert sent(service) == 5
    summary = go(tmp_path, service, rows=rows, **fields)
    assert (summary.exit_code, summary.ok, summary.failed) == (0, rows, 0)
    assert sent(service) == 5
    assert summary.spend_total.requests == 5
    again = go(tmp_path, service, rows=rows, **fields)
    assert (again.exit_code, again.sent, again.new_ok) == (0, 0, 0)


def test_a_job_takes_answers_of_another_from_the_cache_that_came_through_batches(tmp_path: Path) -> None:
    """The second one starts while the batch of the first is under way, and when it has ended."""
    service = FakeService(seconds=0.0)
    fields: dict[str, Any] = {"cache": str(tmp_path / "cache")}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    assert go(tmp_path / "one", service, rows=10, texts=10, wait=False, **fields).exit_code == 4
    first = go(tmp_path / "one", service, rows=10, texts=10, **fields)
    assert (first.exit_code, first.ok, sent(service)) == (0, 10, 10)
    second = go(tmp_path / "two", service, rows=15, texts=15, **fields)
    assert (second.exit_code, second.ok, second.cache_hits) == (0, 15, 10)
    assert sent(service) == 15
    assert second.spend_total.requests == 5


def test_a_batch_is_harvested_although_another_job_has_answered_the_same_meanwhile(tmp_path: Path) -> None:
    service = FakeService(seconds=0.0)
    fields: dict[str, Any] = {"cache": str(tmp_path / "cache")}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    assert go(tmp_path / "one", service, rows=10, texts=10, wait=False, **fields).exit_code == 4
    assert go(tmp_path / "two", service, rows=10, texts=10, **fields).exit_code == 0
    summary = go(tmp_path / "one", service, rows=10, texts=10, **fields)
    assert (summary.exit_code, summary.ok) == (0, 10)
    assert summary.spend_total.requests == 10, "what the batch cost is counted"
    assert sent(service) == 20


def test_equal_rows_whose_batch_expired_are_asked_once_more(tmp_path: Path) -> None:
    service = Expiring(seconds=0.0)
    assert go(tmp_path, service, wait=False, dedupe=True).exit_code == 4
    service.first = frozenset(service.batches)
    summary = go(tmp_path, service, dedupe=True)
    assert (summary.exit_code, summary.ok) == (0, 20)
    assert sent(service) == 5 + 2
    assert summary.spend_total.requests == 5
