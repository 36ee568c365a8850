"""Runs through the demo provider's Batch API, as a user starts them: answers, records, money, faults."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import batchchat
from batchchat.demo import DemoOptions, DemoServer
from batchchat.demo.batches.options import BatchOptions
from batchchat.engines.batch.ledger import read_ledger
from batchchat.events import Event, RunSummary
from batchchat.job import Job
from batchchat.runner.options import RunOptions
from batchchat.store.state import Layout
from tests.integration.jobs import make_job, query, texts, write_rows

POLL = 0.03
"""Seconds between two looks: tests wait for many of them."""


@contextmanager
def server(
    seconds: float = 0.05, *, faults: Mapping[str, float | str] | None = None, **options: Any
) -> Iterator[DemoServer]:
    batch = BatchOptions(seconds=seconds, faults=faults or {})
    with DemoServer(DemoOptions(batch=batch, **options)) as demo:
        yield demo


def batch_job(folder: Path, demo: DemoServer, engine: Mapping[str, Any] | None = None, **fields: Any) -> Job:
    given = {"kind": "batch", "poll": POLL, "max_lines": 10, **(engine or {})}
    return make_job(folder, demo.base_url, engine=given, **fields)


def go(job: Job, events: list[Event] | None = None, **options: Any) -> RunSummary:
    listener = (events if events is not None else []).append
    return batchchat.run(job, options=RunOptions(**options), environ={}, listener=listener)


def ran(demo: DemoServer) -> tuple[int, int]:
    """How many lines of batches the server ran, and how many of them a second time."""
    stats = demo.stats().batch
    return stats.lines, stats.lines_again


def chunks_left(folder: Path) -> int:
    return len(read_ledger(Layout(folder / "out").batches))


def test_a_batch_leaves_the_records_of_a_local_run_at_half_the_price(tmp_path: Path) -> None:
    (tmp_path / "local").mkdir()
    (tmp_path / "batch").mkdir()
    columns = "custom_id, key, row_index, status, completion, finish_reason, prompt_tokens, completion_tokens, model, attempts"
    with server() as demo:
        for name in ("local", "batch"):
            write_rows(tmp_path / name / "rows.jsonl", texts(35))
        assert go(make_job(tmp_path / "local", demo.base_url)).exit_code == 0
        summary = go(batch_job(tmp_path / "batch", demo))
    assert (summary.exit_code, summary.ok, summary.open) == (0, 35, 0)
    sql = f"select {columns} from data order by key"
    assert query(tmp_path / "batch", sql) == query(tmp_path / "local", sql)
    told = "select distinct engine, latency_s is null from data"
    assert query(tmp_path / "batch", told) == [("batch", True)]
    assert query(tmp_path / "local", told) == [("local", False)]
    cost = "select sum(cost) from data"
    assert query(tmp_path / "batch", cost)[0][0] == pytest.approx(query(tmp_path / "local", cost)[0][0] / 2)
    assert summary.spend.cost == pytest.approx(query(tmp_path / "batch", cost)[0][0])
    assert chunks_left(tmp_path) == 0


def test_no_wait_leaves_batches_running_and_the_next_run_takes_their_answers(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(25))
    with server(seconds=2) as demo:
        job = batch_job(tmp_path, demo)
        first = go(job, wait=False)
        assert (first.exit_code, first.ok, first.open) == (4, 0, 25)
        assert "3 batches with 25 requests go on at the provider" in (first.reason or "")
        again = go(job, wait=False)
        assert again.exit_code == 4
        assert again.sent == 0
        write_rows(tmp_path / "rows.jsonl", texts(28))
        last = go(job)
        assert (last.exit_code, last.ok) == (0, 28)
        assert last.sent == 3
        assert ran(demo) == (28, 0)
    assert chunks_left(tmp_path) == 0


def test_an_edited_prompt_keeps_what_the_earlier_one_was_paid_for(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(12))
    edited = [{"role": "user", "content": "Labels: yes, no\nEdited: {{ text }}"}]
    with server(seconds=1.5) as demo:
        assert go(batch_job(tmp_path, demo), wait=False).exit_code == 4
        summary = go(batch_job(tmp_path, demo, messages=edited))
        assert (summary.exit_code, summary.ok) == (0, 12)
        assert query(tmp_path, "select count(*), count(distinct prompt_id) from data") == [(12, 1)]
        assert ran(demo) == (24, 0)
        back = go(batch_job(tmp_path, demo))
        assert (back.exit_code, back.ok, back.revived, back.sent) == (0, 12, 12, 0)
        assert ran(demo) == (24, 0)


FAULTS: tuple[tuple[dict[str, float | str], dict[str, Any]], ...] = (
    ({"create_lost": 1}, {}),
    ({"create_lost": 2, "list_late": 0.1}, {}),
    ({"create_500": 1}, {}),
    ({"create_dropped": 1}, {}),
    ({"create_503": 1}, {}),
    ({"create_429": 1}, {}),
    ({"create_400": 1}, {}),
    ({"queue_full": 1}, {}),
    ({"upload_lost": 1}, {}),
    ({"upload_500": 1}, {}),
    ({"file_late": 0.1}, {}),
    ({"batch_late": 2}, {}),
    ({"poll_500": 2}, {}),
    ({"poll_429": 1}, {}),
    ({"unknown_status": 1}, {}),
    ({"counts_back": 1}, {}),
    ({"counts_null": 1}, {}),
    ({"ids_late": 2}, {}),
    ({"ids_empty": 1}, {}),
    ({"ids_absent": 1}, {}),
    ({"error_file_empty": 1}, {}),
    ({"line_twice": 0.3}, {}),
    ({"line_unknown": 0.3}, {}),
    ({"line_null": 0.3}, {}),
    ({"line_body_text": 0.3}, {}),
    ({"line_bare": 0.3}, {}),
    ({"line_no_usage": 0.3}, {}),
    ({"line_separators": 0.3}, {}),
    ({"crlf": 1}, {}),
    ({"no_final_newline": 1}, {}),
    ({"download_torn": 1}, {}),
    ({"download_short": 1}, {}),
    ({"download_html": 1}, {}),
    ({"download_500": 1}, {}),
)
"""Faults after which every row has its answer, and no line ran twice."""

REPEATED: tuple[dict[str, float | str], ...] = (
    {"expire": 1},
    {"expire_empty": 1},
    {"all_failed": 1},
    {"line_429": 0.2},
    {"line_500": 0.2},
    {"line_status_0": 0.2},
    {"line_timeout": 0.2},
    {"line_missing": 0.2},
    {"line_500": 0.2, "error_in_output": 1},
    {"file_gone": 1},
)
"""Faults after which rows are asked again, and then have their answer."""


@pytest.mark.parametrize("faults", [faults for faults, _ in FAULTS], ids=lambda faults: "-".join(faults))
def test_a_fault_costs_no_row_and_no_second_answer(tmp_path: Path, faults: dict[str, float | str]) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(24))
    with server(faults=faults) as demo:
        summary = go(batch_job(tmp_path, demo))
        assert (summary.exit_code, summary.ok, summary.failed) == (0, 24, 0), summary.reason
        assert ran(demo) == (24, 0)
    assert query(tmp_path, "select count(*), count(distinct custom_id) from data") == [(24, 24)]
    assert chunks_left(tmp_path) == 0


@pytest.mark.parametrize("faults", REPEATED, ids=lambda faults: "-".join(faults))
def test_what_was_not_answered_goes_into_another_batch(tmp_path: Path, faults: dict[str, float | str]) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(24))
    with server(faults=faults) as demo:
        summary = go(batch_job(tmp_path, demo, {"rounds": 8}, retry={"attempts": 8}))
        assert (summary.exit_code, summary.ok, summary.failed) == (0, 24, 0), summary.reason
    assert query(tmp_path, "select count(*), count(distinct custom_id) from data") == [(24, 24)]
    assert chunks_left(tmp_path) == 0
