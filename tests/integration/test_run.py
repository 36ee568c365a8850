"""Whole runs over real sockets: what is asked, what is stored, what a second run does."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest

import batchchat
from batchchat.demo import DemoOptions, DemoServer
from batchchat.errors import StorageError, UsageError
from batchchat.export import export
from batchchat.inspection import find_records, status_of
from batchchat.planning import plan_job
from batchchat.runner.control import Control
from batchchat.runner.options import RunOptions
from batchchat.runner.run import run_job
from batchchat.store import Store
from batchchat.store.run_files import RunFiles
from tests.integration.jobs import TEMPLATE, make_job, query, run, texts, write_rows
from tests.thorough import one_in


@pytest.fixture
def demo() -> Iterator[DemoServer]:
    with DemoServer(DemoOptions(latency_s=0)) as server:
        yield server


def other(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_every_row_gets_one_record_with_its_columns(tmp_path: Path, demo: DemoServer) -> None:
    rows = [{"id": f"r{number}", "text": "ja ✓", "n": number, "deep": {"a": [1, None]}} for number in range(30)]
    write_rows(tmp_path / "rows.jsonl", rows)
    summary = run(make_job(tmp_path, demo.base_url))
    assert (summary.exit_code, summary.rows, summary.ok, summary.failed, summary.open) == (0, 30, 30, 0, 0)
    assert demo.stats().requests == 30
    assert query(tmp_path, "select count(*), count(distinct custom_id), sum(n) from data") == [(30, 30, 435)]
    found = query(tmp_path, "select key, row_index, text, deep.a, status, attempts from data where n = 7")
    assert found == [("r7", 7, "ja ✓", [1, None], "ok", 1)]
    table = batchchat.read_output(tmp_path / "out")
    assert table.column("row_index").to_pylist() == list(range(30))


def test_a_second_run_sends_nothing(tmp_path: Path, demo: DemoServer) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(20))
    job = make_job(tmp_path, demo.base_url)
    run(job)
    again = run(job)
    assert (again.exit_code, again.sent, again.ok, again.new_ok) == (0, 0, 20, 0)
    assert demo.stats().requests == 20


@pytest.mark.parametrize("key", ["id", None])
def test_a_row_in_the_middle_costs_one_request(tmp_path: Path, demo: DemoServer, key: str | None) -> None:
    rows = texts(20)
    write_rows(tmp_path / "rows.jsonl", rows)
    job = make_job(tmp_path, demo.base_url, input={"path": str(tmp_path / "rows.jsonl"), "key": key})
    run(job)
    write_rows(tmp_path / "rows.jsonl", [*rows[:9], {"id": 99, "text": "new"}, *rows[9:]])
    assert (run(job).sent, demo.stats().requests) == (1, 21)


def test_equal_rows_without_a_key_each_get_an_answer(tmp_path: Path, demo: DemoServer) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"text": "same"}] * 40)
    job = make_job(tmp_path, demo.base_url, input=str(tmp_path / "rows.jsonl"))
    assert run(job).ok == 40
    write_rows(tmp_path / "rows.jsonl", [{"text": "same"}] * 43)
    assert (run(job).sent, query(tmp_path, "select count(distinct custom_id) from data")) == (3, [(43,)])


def test_an_edited_template_costs_what_it_changes_and_going_back_costs_nothing(
    tmp_path: Path, demo: DemoServer
) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(20))
    run(make_job(tmp_path, demo.base_url))
    edited = make_job(tmp_path, demo.base_url, messages=other("{% if id < 5 %}!{% endif %}Labels: yes, no\n{{ text }}"))
    summary = run(edited)
    assert (summary.sent, summary.ok, summary.kept) == (5, 20, 0)
    assert query(tmp_path, "select count(*), count(distinct key) from data") == [(20, 20)]
    back = run(make_job(tmp_path, demo.base_url))
    assert (back.sent, back.revived, back.ok) == (0, 5, 20)
    assert query(tmp_path, "select count(*), count(distinct key) from data") == [(20, 20)]
    assert back.spend_total.requests == 25


def test_without_a_key_a_new_prompt_archives_what_the_old_one_made(tmp_path: Path, demo: DemoServer) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(10))
    job = make_job(tmp_path, demo.base_url, input=str(tmp_path / "rows.jsonl"))
    run(job)
    summary = run(make_job(tmp_path, demo.base_url, input=str(tmp_path / "rows.jsonl"), messages=other("{{ text }}?")))
    assert (summary.sent, summary.kept) == (10, 0)
    assert query(tmp_path, "select count(*) from data") == [(10,)]
    assert run(job).revived == 10


def test_records_whose_row_is_gone_stay_until_prune(tmp_path: Path, demo: DemoServer) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(10))
    job = make_job(tmp_path, demo.base_url)
    run(job)
    write_rows(tmp_path / "rows.jsonl", texts(6))
    assert (run(job).kept, query(tmp_path, "select count(*) from data")) == (4, [(10,)])
    assert (run(job, prune=True).kept, query(tmp_path, "select count(*) from data")) == (0, [(6,)])
    write_rows(tmp_path / "rows.jsonl", texts(10))
    assert (run(job).sent, demo.stats().requests) == (0, 10)


def test_fresh_sets_the_old_output_aside(tmp_path: Path, demo: DemoServer) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(5))
    job = make_job(tmp_path, demo.base_url)
    run(job)
    assert run(job, fresh=True).sent == 5
    aside = [path for path in tmp_path.iterdir() if path.name.startswith("out.old-")]
    assert len(aside) == 1
    assert batchchat.read_output(aside[0]).num_rows == 5


def test_rows_that_cannot_be_read_or_rendered_fail_alone(tmp_path: Path, demo: DemoServer) -> None:
    good = [json.dumps(row) for row in texts(1000)]
    bad = ['{"id": 1000, "text": ', '{"id": 1001}', "[1]", '{"text": "no key"}', '{"id": 5, "text": "again"}']
    (tmp_path / "rows.jsonl").write_text("\n".join([*good, *bad]) + "\n", encoding="utf-8")
    job = make_job(tmp_path, demo.base_url)
    summary = run(job)
    assert (summary.exit_code, summary.rows, summary.ok, summary.failed) == (1, 1005, 1000, 5)
    found = query(tmp_path, "select row_index, error_kind from data where status = 'failed' order by row_index")
    assert found == [(1000, "input"), (1001, "template"), (1002, "input"), (1003, "input"), (1004, "input")]
    messages = dict(query(tmp_path, "select row_index, error_message from data where status = 'failed'"))
    assert "rows.jsonl:1001" in messages[1000]
    assert "text" in messages[1001]
    again = run(job)
    assert (again.exit_code, again.sent, again.failed) == (1, 0, 5)
    assert demo.stats().requests == 1000


def test_a_mended_row_takes_the_place_of_its_failure(tmp_path: Path, demo: DemoServer) -> None:
    write_rows(tmp_path / "rows.jsonl", [*texts(3), {"id": 3, "other": "x"}])
    assert run(make_job(tmp_path, demo.base_url)).failed == 1
    summary = run(make_job(tmp_path, demo.base_url, messages=other("Labels: yes, no\n{{ text | default(other) }}")))
    assert (summary.exit_code, summary.ok, summary.kept) == (0, 4, 0)
    assert query(tmp_path, "select count(*) from data") == [(4,)]


def test_if_no_row_renders_nothing_is_sent_or_written(tmp_path: Path, demo: DemoServer) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(5))
    with pytest.raises(UsageError, match="txet"):
        run(make_job(tmp_path, demo.base_url, messages=other("{{ txet }}")))
    assert demo.stats().requests == 0
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("quick_retries")
def test_transient_failures_are_tried_again_within_a_run(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(30))
    with DemoServer(DemoOptions(latency_s=0, faults={"error_503": 0.1, "drop": 0.05, "truncated_json": 0.05})) as demo:
        summary = run(make_job(tmp_path, demo.base_url))
    assert (summary.exit_code, summary.ok) == (0, 30)
    assert summary.retries > 0
    assert query(tmp_path, "select sum(attempts) from data") == [(summary.sent,)]


def test_failed_rows_are_tried_again_by_the_next_run_as_the_job_says(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(12))
    once: dict[str, Any] = {"retry": {"attempts": 1}}
    with DemoServer(DemoOptions(latency_s=0, faults={"sticky_500": 0.3})) as demo:
        first = run(make_job(tmp_path, demo.base_url, **once))
    assert first.exit_code == 1
    assert [group.kind for group in first.failures] == ["server"]
    assert first.failed > 0
    with DemoServer(DemoOptions(latency_s=0)) as demo:
        kept = run(make_job(tmp_path, demo.base_url, retry={"failed": "none"}))
        assert (kept.sent, kept.failed, kept.exit_code) == (0, first.failed, 1)
        mended = run(make_job(tmp_path, demo.base_url, **once))
        assert (mended.sent, mended.failed, mended.exit_code) == (first.failed, 0, 0)
    assert query(tmp_path, "select count(*), count(distinct custom_id) from data") == [(12, 12)]


@pytest.mark.parametrize("fault", one_in(3, ["error_401", "quota", "error_403", "error_404", "error_422"]))
def test_a_refused_key_or_model_stops_the_run_at_once_and_costs_no_row(tmp_path: Path, fault: str) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(200))
    with DemoServer(DemoOptions(latency_s=0.01, faults={fault: 1.0})) as demo:
        summary = run(make_job(tmp_path, demo.base_url, limits={"concurrency": 2}))
        assert demo.stats().requests <= 6
    assert (summary.exit_code, summary.failed, summary.open) == (3, 0, 200)
    assert summary.reason
    assert summary.remedy
    with DemoServer(DemoOptions(latency_s=0)) as demo:
        assert run(make_job(tmp_path, demo.base_url)).ok == 200


def test_a_request_that_the_provider_calls_wrong_fails_alone(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(60))
    with DemoServer(DemoOptions(latency_s=0, faults={"error_400": 0.1})) as demo:
        summary = run(make_job(tmp_path, demo.base_url))
    assert summary.exit_code == 1
    assert [group.kind for group in summary.failures] == ["invalid_request"]
    assert summary.ok + summary.failed == 60
    assert summary.sent == 60


def test_limit_and_sample_make_the_pass_smaller(tmp_path: Path, demo: DemoServer) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(50))
    job = make_job(tmp_path, demo.base_url)
    first = run(job, limit=7)
    assert (first.rows, first.ok, first.open, first.exit_code) == (7, 7, 0, 0)
    assert query(tmp_path, "select max(row_index) from data") == [(6,)]
    sampled = run(job, sample=10, seed=3)
    assert (sampled.rows, sampled.ok, sampled.exit_code) == (10, 10, 0)
    assert run(job, sample=10, seed=3).sent == 0
    assert run(job).ok == 50
    assert demo.stats().requests == 50


def test_small_parts_grow_and_none_is_too_big(tmp_path: Path, demo: DemoServer) -> None:
    for total in (3, 7, 25):
        write_rows(tmp_path / "rows.jsonl", texts(total))
        run(make_job(tmp_path, demo.base_url, output={"path": str(tmp_path / "out"), "part_rows": 10}))
    sizes = query(tmp_path, "select count(*) from data group by filename")
    assert sorted(sizes) == [(5,), (10,), (10,)]


def test_the_ledger_counts_every_answer_that_was_paid_for(tmp_path: Path, demo: DemoServer) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(10))
    first = run(make_job(tmp_path, demo.base_url))
    second = run(make_job(tmp_path, demo.base_url, messages=other("{{ text }} again")))
    assert second.spend_total.requests == demo.stats().requests == 20
    assert second.spend_total.prompt_tokens == demo.stats().prompt_tokens
    assert second.spend_total.completion_tokens == demo.stats().completion_tokens
    assert second.spend_total.cost == pytest.approx(first.spend.cost + second.spend.cost)


def test_the_embedded_demo_provider_starts_and_stops_itself(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(3))
    summary = run(make_job(tmp_path, None))
    assert (summary.exit_code, summary.ok, summary.provider) == (0, 3, "demo")
    assert "demo" in summary.note


def test_any_httpx_transport_can_take_the_place_of_the_network(tmp_path: Path) -> None:
    import httpx

    def answer(request: httpx.Request) -> httpx.Response:
        assert json.loads(request.content)["messages"][0]["content"].startswith("Labels")
        return httpx.Response(200, json={"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}]})

    write_rows(tmp_path / "rows.jsonl", texts(3))
    job = make_job(tmp_path, None)
    summary = batchchat.run(job, transport=httpx.MockTransport(answer), environ={})
    assert summary.ok == 3
    assert query(tmp_path, "select distinct completion, prompt_tokens, cost from data") == [("yes", None, None)]


def test_param_templates_reach_the_request(tmp_path: Path, demo: DemoServer) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"id": 1, "text": "yes", "budget": 5}])
    summary = run(make_job(tmp_path, demo.base_url, messages=TEMPLATE, params={"max_tokens": "{{ budget }}"}))
    assert summary.ok == 1


def test_the_output_tells_hugging_face_datasets_which_files_are_the_data(tmp_path: Path, demo: DemoServer) -> None:
    import yaml

    write_rows(tmp_path / "rows.jsonl", texts(2))
    run(make_job(tmp_path, demo.base_url))
    card = yaml.safe_load((tmp_path / "out" / ".huggingface.yaml").read_text(encoding="utf-8"))
    pattern = card["configs"][0]["data_files"][0]["path"]
    assert [path.name for path in (tmp_path / "out").glob(pattern)] == ["part-00000.parquet"]


def test_a_disk_that_fails_under_the_state_files_ends_in_a_summary_too(tmp_path: Path, demo: DemoServer) -> None:
    def write_live(_self: RunFiles, _live: Any) -> None:
        raise StorageError("no space left")

    write_rows(tmp_path / "rows.jsonl", texts(20))
    job = make_job(tmp_path, demo.base_url)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFiles, "write_live", write_live)
        summary = anyio.run(lambda: run_job(job, environ={}))
    assert (summary.exit_code, summary.reason) == (74, "no space left")
    assert run(job).ok == 20


def test_a_later_run_carries_renamed_and_json_columns_as_the_first_did(tmp_path: Path, demo: DemoServer) -> None:
    def rows(count: int) -> list[dict[str, Any]]:
        return [
            {"id": number, "text": "yes", "status": f"s{number}", "odd": [{}, {"a": 1}, number][number % 3]}
            for number in range(count)
        ]

    write_rows(tmp_path / "rows.jsonl", rows(6))
    job = make_job(tmp_path, demo.base_url, messages=other("{{ text }} {{ status }} {{ odd }}"))
    run(job)
    write_rows(tmp_path / "rows.jsonl", rows(9))
    assert run(job).sent == 3
    found = query(tmp_path, "select input_status, odd, input_extra from data where row_index >= 3 order by row_index")
    assert found == [
        (f"s{number}", json.dumps([{}, {"a": 1}, number][number % 3], separators=(",", ":")), None)
        for number in range(3, 9)
    ]
    view = next(find_records(tmp_path / "out", row=7))
    assert view.messages is not None
    assert view.messages[0]["content"] == 'yes s7 {"a":1}'


def test_times_finer_than_pythons_are_carried_shown_and_exported(tmp_path: Path, demo: DemoServer) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    fine = pa.array([1_600_000_000_000_000_001, None], pa.timestamp("ns", tz="UTC"))
    pq.write_table(pa.table({"id": [1, 2], "text": ["a", "b"], "at": fine}), tmp_path / "rows.parquet")
    job = make_job(tmp_path, demo.base_url, input={"path": str(tmp_path / "rows.parquet"), "key": "id"})
    assert run(job).ok == 2
    assert batchchat.read_output(tmp_path / "out").column("at").combine_chunks().equals(fine)
    assert len(list(find_records(tmp_path / "out"))) == 2
    for name in ("x.jsonl", "x.csv", "x.parquet"):
        target = tmp_path / name
        # The export reads the job from the output: its input is still there.
        assert export(tmp_path / "out", target).rows == 2
    assert "2020-09-13" in (tmp_path / "x.jsonl").read_text(encoding="utf-8")


@pytest.mark.thorough
def test_an_input_that_breaks_in_the_middle_keeps_what_was_answered(tmp_path: Path, demo: DemoServer) -> None:
    import gzip
    import random

    noise = random.Random(0)
    rows = [{**row, "pad": noise.randbytes(2000).hex()} for row in texts(3000)]
    whole = gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode(), 1)
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(whole)
    job = make_job(tmp_path, demo.base_url, input={"path": str(path), "key": "id"})
    run(job, limit=1)
    path.write_bytes(whole[: len(whole) // 2])
    summary = run(job, limit=None)
    assert summary.exit_code == 74
    assert summary.reason
    assert "rows.jsonl.gz" in summary.reason
    assert summary.ok == demo.stats().requests > 1


def test_answers_that_the_archive_lost_are_asked_for_again(tmp_path: Path, demo: DemoServer) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(5))
    job = make_job(tmp_path, demo.base_url)
    run(job)
    run(make_job(tmp_path, demo.base_url, messages=other("{{ text }}?")))

    class Forgetful(Store):
        def fetch_archived(self, custom_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
            return dict(list(super().fetch_archived(custom_ids).items())[:3])

    summary = anyio.run(lambda: run_job(job, environ={}, open_store=Forgetful.open))
    assert (summary.exit_code, summary.revived, summary.sent, summary.ok) == (0, 3, 2, 5)


def test_a_stop_asked_for_before_the_run_begins_ends_it_at_once(tmp_path: Path, demo: DemoServer) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(2000))
    stop = Control()
    stop.stop(reason="changed my mind", exit_code=130)
    started = time.monotonic()
    summary = batchchat.run(make_job(tmp_path, demo.base_url), stop=stop, environ={})
    assert (summary.exit_code, summary.sent, summary.open) == (130, 0, 2000)
    assert time.monotonic() - started < 15, "the grace of 20 s is for what is in flight, and nothing is"


def test_currencies_are_never_added(tmp_path: Path, demo: DemoServer) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(5))
    run(make_job(tmp_path, demo.base_url))
    dollars = make_job(tmp_path, demo.base_url, prices={"input": 1, "output": 1, "currency": "USD"})
    for look in (lambda: run(dollars), lambda: plan_job(dollars)):
        with pytest.raises(UsageError, match=r"are in EUR, and the price of this job is in USD: currencies are never"):
            look()
    assert plan_job(dollars, RunOptions(fresh=True)).currency == "USD"
    # A provider without prices adds nothing, and what was spent before stays in its own currency.
    unpriced = run(make_job(tmp_path, None, provider={"base_url": demo.base_url}))
    assert (unpriced.exit_code, unpriced.currency, unpriced.spend.cost) == (0, None, 0)
    assert status_of(tmp_path / "out").currency == "EUR"
    assert run(dollars, fresh=True).currency == "USD"
