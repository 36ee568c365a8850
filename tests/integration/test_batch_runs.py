"""Runs through the demo provider's Batch API, as a user starts them: answers, records, money, faults."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import batchchat
from batchchat.demo import DemoOptions, DemoServer
from batchchat.demo.batches.options import BatchOptions
from batchchat.engines.batch.ledger import ChunkState, Step, read_history
from batchchat.events import Event, RunSummary
from batchchat.job import Job
from batchchat.runner.control import Control
from batchchat.runner.options import RunOptions
from batchchat.store import batches_folder
from tests.integration.jobs import make_job, query, texts, write_rows
from tests.thorough import one_in

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


def ran(demo: DemoServer) -> int:
    """How many lines of batches the server ran: what is paid for."""
    return demo.stats().batch.lines


def chunks_left(folder: Path) -> list[ChunkState]:
    return [chunk for chunk in read_history(batches_folder(folder / "out")) if chunk.step is not Step.CLEANED]


def test_a_batch_leaves_the_records_of_a_local_run_at_half_the_price(tmp_path: Path) -> None:
    (tmp_path / "local").mkdir()
    (tmp_path / "batch").mkdir()
    columns = "custom_id, key, row_index, status, completion, finish_reason, prompt_tokens, model, attempts"
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
    assert not chunks_left(tmp_path)


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
        assert ran(demo) == 28
    assert not chunks_left(tmp_path)


def test_an_edited_prompt_keeps_what_the_earlier_one_was_paid_for(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(12))
    edited = [{"role": "user", "content": "Labels: yes, no\nEdited: {{ text }}"}]
    with server(seconds=1.5) as demo:
        assert go(batch_job(tmp_path, demo), wait=False).exit_code == 4
        summary = go(batch_job(tmp_path, demo, messages=edited))
        assert (summary.exit_code, summary.ok) == (0, 12)
        assert query(tmp_path, "select count(*), count(distinct prompt_id) from data") == [(12, 1)]
        assert ran(demo) == 24
        back = go(batch_job(tmp_path, demo))
        assert (back.exit_code, back.ok, back.revived, back.sent) == (0, 12, 12, 0)
        assert ran(demo) == 24


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


@pytest.mark.parametrize("faults", one_in(5, [faults for faults, _ in FAULTS]), ids="-".join)
def test_a_fault_costs_no_row_and_no_second_answer(tmp_path: Path, faults: dict[str, float | str]) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(24))
    with server(faults=faults) as demo:
        summary = go(batch_job(tmp_path, demo))
        assert (summary.exit_code, summary.ok, summary.failed) == (0, 24, 0), summary.reason
        assert ran(demo) == 24
    assert query(tmp_path, "select count(*), count(distinct custom_id) from data") == [(24, 24)]
    assert not chunks_left(tmp_path)


@pytest.mark.parametrize("faults", one_in(4, REPEATED), ids="-".join)
def test_what_was_not_answered_goes_into_another_batch(tmp_path: Path, faults: dict[str, float | str]) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(24))
    with server(faults=faults) as demo:
        summary = go(batch_job(tmp_path, demo, {"rounds": 8}, retry={"attempts": 8}))
        assert (summary.exit_code, summary.ok, summary.failed) == (0, 24, 0), summary.reason
    assert query(tmp_path, "select count(*), count(distinct custom_id) from data") == [(24, 24)]
    assert not chunks_left(tmp_path)


def test_one_bad_line_costs_its_own_row(tmp_path: Path) -> None:
    rows = texts(30)
    rows[13]["text"] = rows[22]["text"] = "poison"
    for name, faults in (("told", {}), ("untold", {"no_line_number": 1})):
        folder = tmp_path / name
        folder.mkdir()
        write_rows(folder / "rows.jsonl", rows)
        with server(faults={"bad_text": "poison", **faults}) as demo:
            summary = go(batch_job(folder, demo))
            assert (summary.exit_code, summary.ok, summary.failed) == (1, 28, 2), name
            assert ran(demo) == 28
        failed = query(folder, "select row_index, error_kind from data where status = 'failed' order by all")
        assert failed == [(13, "invalid_request"), (22, "invalid_request")]


def test_a_model_that_no_batch_takes_stops_the_run_with_every_row_open(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(30))
    with server(faults={"bad_text": "row", "no_line_number": 1}) as demo:
        summary = go(batch_job(tmp_path, demo))
    assert (summary.exit_code, summary.open) == (3, 30)


@pytest.mark.parametrize(
    "faults",
    one_in(
        4, [{"queue_tokens": 120}, {"queue_tokens": 120, "queue_status": 400}, {"max_bytes": 1_000}, {"max_lines": 4}]
    ),
    ids="-".join,
)
@pytest.mark.thorough
def test_the_providers_own_limits_are_learned(tmp_path: Path, faults: dict[str, float | str]) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(24))
    with server(faults=faults) as demo:
        summary = go(batch_job(tmp_path, demo))
        assert (summary.exit_code, summary.ok) == (0, 24), summary.reason
        assert ran(demo) == 24


def test_queued_tokens_bound_what_is_under_way(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(24))
    with server(seconds=0.3) as demo:
        first = go(batch_job(tmp_path, demo, {"queued_tokens": 100}), wait=False)
        assert first.exit_code == 4
        chunks = chunks_left(tmp_path)
        tokens = sum(chunk.prompt_tokens for chunk in chunks if chunk.batch is not None)
        assert 0 < tokens <= 100
        summary = go(batch_job(tmp_path, demo, {"queued_tokens": 100}))
        assert (summary.exit_code, summary.ok) == (0, 24)
        assert ran(demo) == 24


def test_a_budget_reserves_a_batch_before_it_is_created(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(40))
    with server() as demo:
        summary = go(batch_job(tmp_path, demo, budget={"max_requests": 17}))
        assert (summary.exit_code, summary.ok, summary.open) == (4, 17, 23)
        assert ran(demo) == 17
        job = batch_job(tmp_path, demo, budget={"max_cost": 3e-5}, params={"max_tokens": 16})
        summary = go(job)
        assert summary.exit_code == 4
        assert summary.budget is not None
        assert summary.spend.cost <= 3e-5
        assert summary.budget.reserved_tokens == summary.budget.in_flight == 0


def test_corrections_go_into_the_next_batch(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(20))
    schema = {"type": "object", "properties": {"label": {"type": "string"}}, "required": ["label"]}
    with server(faults={}) as demo:
        demo_job = batch_job(tmp_path, demo, response={"schema": schema})
        assert go(demo_job).exit_code == 0
    assert query(tmp_path, "select count(parsed.label) from data") == [(20,)]


def test_what_batches_do_not_answer_goes_on_as_single_requests(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(30))
    with server(faults={"line_timeout": 0.5}) as demo:
        summary = go(batch_job(tmp_path, demo, {"rounds": 1, "then": "local"}))
        assert (summary.exit_code, summary.ok) == (0, 30)
    found = dict(query(tmp_path, "select engine, count(*) from data group by all"))
    assert sum(found.values()) == 30
    assert 0 < found["local"] < 30
    by_engine = dict(query(tmp_path, "select engine, sum(cost) / sum(total_tokens) from data group by all"))
    assert by_engine["batch"] == pytest.approx(by_engine["local"] / 2, rel=0.05)
    assert summary.spend.cost == pytest.approx(query(tmp_path, "select sum(cost) from data")[0][0])


def test_rows_that_no_batch_answers_fail_in_the_end(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(8))
    with server(faults={"line_timeout": 1}) as demo:
        summary = go(batch_job(tmp_path, demo, {"rounds": 2}))
    assert (summary.exit_code, summary.failed) == (1, 8)
    told = query(tmp_path, "select distinct error_kind, error_message from data")
    assert told[0][0] == "timeout"
    assert "2 batches did not answer it" in told[0][1]


@pytest.mark.parametrize(
    "faults", one_in(4, [{}, {"cancel_all": 9}, {"cancel_none": 9}, {"cancel_missing": 9}]), ids="-".join
)
def test_cancel_keeps_what_was_answered_and_leaves_the_rest_open(
    tmp_path: Path, faults: dict[str, float | str]
) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(20))
    with server(seconds=2, faults=faults) as demo:
        job = batch_job(tmp_path, demo)
        assert go(job, wait=False).exit_code == 4
        summary = go(job, cancel_batches=True)
        assert (summary.exit_code, summary.failed, summary.sent) == (0, 0, 0)
        assert summary.ok + summary.open == 20
        assert not chunks_left(tmp_path)
        last = go(job)
        assert (last.exit_code, last.ok) == (0, 20)


def test_single_requests_are_refused_while_batches_may_answer(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(5))
    with server(seconds=2) as demo:
        assert go(batch_job(tmp_path, demo), wait=False).exit_code == 4
        with pytest.raises(batchchat.UsageError, match="single requests would ask the same"):
            go(make_job(tmp_path, demo.base_url))
        assert go(batch_job(tmp_path, demo)).exit_code == 0


def test_a_stop_leaves_batches_to_the_next_run(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(20))
    with server(seconds=1, faults={"stuck_running": 1}) as demo:
        stop = Control()

        def watch(event: Event) -> None:
            if event.name == "batch_harvested":
                stop.stop(reason="stopped", exit_code=130)

        summary = batchchat.run(batch_job(tmp_path, demo), environ={}, listener=watch, stop=stop)
        assert (summary.exit_code, summary.ok, summary.open) == (4, 10, 10)
        assert "1 batch with 10 requests goes on at the provider" in (summary.reason or "")


def test_no_credit_ends_the_run_and_nothing_is_left_behind(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(20))
    with server(faults={"create_402": 9}) as demo:
        summary = go(batch_job(tmp_path, demo))
        assert (summary.exit_code, summary.open) == (3, 20)
        assert demo.stats().batch.created == 0
