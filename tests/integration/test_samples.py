"""`samples: k`: each row is asked k times, and what a change of k, of a row or of the prompt costs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import batchchat
from batchchat.demo import DemoOptions, DemoServer
from batchchat.export import export
from batchchat.inspection import find_records, status_of
from batchchat.job import Job
from batchchat.planning import plan_job
from batchchat.store import verify
from tests.integration.jobs import make_job, query, run, texts, write_rows


@pytest.fixture
def demo() -> Iterator[DemoServer]:
    with DemoServer(DemoOptions(latency_s=0)) as server:
        yield server


def sampled(folder: Path, demo: DemoServer, samples: int, *, key: str | None = "id", **fields: Any) -> Job:
    spec = {"path": str(folder / "rows.jsonl"), "key": key}
    return make_job(folder, demo.base_url, input=spec, samples=samples, **fields)


@pytest.mark.parametrize("key", ["id", None])
def test_each_row_is_asked_k_times_and_once_only(tmp_path: Path, demo: DemoServer, key: str | None) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(20))
    summary = run(sampled(tmp_path, demo, 3, key=key))
    assert (summary.exit_code, summary.rows, summary.samples) == (0, 20, 3)
    assert (summary.ok, summary.open, summary.sent, summary.new_ok) == (60, 0, 60, 60)
    found = query(
        tmp_path, "select row_index, list(sample_index order by sample_index) from data group by 1 order by 1"
    )
    assert found == [(row, [0, 1, 2]) for row in range(20)]
    assert query(tmp_path, "select count(distinct custom_id) from data") == [(60,)]
    again = run(sampled(tmp_path, demo, 3, key=key))
    assert (again.exit_code, again.sent, again.ok) == (0, 0, 60)
    table = batchchat.read_output(tmp_path / "out")
    assert table.column("sample_index").to_pylist() == [0, 1, 2] * 20
    assert verify(tmp_path / "out").ok


@pytest.mark.parametrize("key", ["id", None])
def test_the_first_sample_is_the_answer_of_a_job_without_samples(
    tmp_path: Path, demo: DemoServer, key: str | None
) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(10))
    run(make_job(tmp_path, demo.base_url, input={"path": str(tmp_path / "rows.jsonl"), "key": key}))
    one = query(tmp_path, "select row_index, custom_id from data order by 1")
    raised = run(sampled(tmp_path, demo, 2, key=key))
    assert (raised.sent, raised.ok) == (10, 20)
    assert query(tmp_path, "select row_index, custom_id from data where sample_index = 0 order by 1") == one


@pytest.mark.parametrize("key", ["id", None])
def test_more_samples_cost_the_new_ones_and_fewer_go_to_the_archive(
    tmp_path: Path, demo: DemoServer, key: str | None
) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(10))
    run(sampled(tmp_path, demo, 2, key=key))
    raised = run(sampled(tmp_path, demo, 4, key=key))
    assert (raised.sent, raised.ok, raised.kept) == (20, 40, 0)
    plan = plan_job(sampled(tmp_path, demo, 1, key=key))
    assert (plan.done, plan.requests, plan.surplus, plan.kept) == (10, 0, 30, 0)
    lowered = run(sampled(tmp_path, demo, 1, key=key))
    assert (lowered.sent, lowered.ok, lowered.kept, lowered.exit_code) == (0, 10, 0, 0)
    assert query(tmp_path, "select count(*), max(sample_index) from data") == [(10, 0)]
    back = run(sampled(tmp_path, demo, 4, key=key))
    assert (back.sent, back.revived, back.ok) == (0, 30, 40)
    assert demo.stats().requests == 40
    assert verify(tmp_path / "out").ok


def test_fewer_samples_leave_other_inputs_records_and_a_smaller_pass_leaves_all(
    tmp_path: Path, demo: DemoServer
) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(10))
    run(sampled(tmp_path, demo, 2))
    write_rows(tmp_path / "rows.jsonl", texts(6))
    partial = run(sampled(tmp_path, demo, 1), limit=3)
    assert (partial.rows, partial.ok, partial.kept) == (3, 3, 17)
    whole = run(sampled(tmp_path, demo, 1))
    assert (whole.ok, whole.kept) == (6, 4)
    assert query(tmp_path, "select count(*), max(sample_index) from data") == [(10, 0)]


def test_a_changed_row_and_a_changed_prompt_supersede_every_sample(tmp_path: Path, demo: DemoServer) -> None:
    rows = texts(6)
    write_rows(tmp_path / "rows.jsonl", rows)
    run(sampled(tmp_path, demo, 3))
    rows[2] = {"id": 2, "text": "another text"}
    write_rows(tmp_path / "rows.jsonl", rows)
    plan = plan_job(sampled(tmp_path, demo, 3))
    assert (plan.changed, plan.done, plan.requests, plan.kept) == (3, 15, 3, 0)
    changed = run(sampled(tmp_path, demo, 3))
    assert (changed.sent, changed.ok, changed.kept) == (3, 18, 0)
    other = [{"role": "user", "content": "{{ text }}?"}]
    # A new prompt and fewer samples at once: nothing of the old prompt stays beside the new.
    edited = run(sampled(tmp_path, demo, 2, messages=other))
    assert (edited.sent, edited.ok, edited.kept) == (12, 12, 0)
    assert query(tmp_path, "select count(*), count(distinct custom_id) from data") == [(12, 12)]
    assert run(sampled(tmp_path, demo, 3)).sent == 0


def test_equal_rows_without_a_key_have_samples_of_their_own(tmp_path: Path, demo: DemoServer) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"text": "same"}] * 5)
    assert run(sampled(tmp_path, demo, 3, key=None)).sent == 15
    write_rows(tmp_path / "rows.jsonl", [{"text": "new"}, *[{"text": "same"}] * 6])
    summary = run(sampled(tmp_path, demo, 3, key=None))
    assert (summary.sent, summary.ok) == (6, 21)


def test_a_row_that_cannot_be_asked_has_a_record_for_each_sample(tmp_path: Path, demo: DemoServer) -> None:
    lines = [*(json.dumps(row) for row in texts(5)), "{", '{"id": 6}', "{", '{"id": 8}']
    (tmp_path / "rows.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    summary = run(sampled(tmp_path, demo, 2))
    assert (summary.exit_code, summary.rows, summary.ok, summary.failed, summary.open) == (1, 9, 10, 8, 0)
    found = query(tmp_path, "select row_index, count(*) from data where status = 'failed' group by 1 order by 1")
    assert found == [(row, 2) for row in range(5, 9)]
    raised = run(sampled(tmp_path, demo, 3))
    assert (raised.sent, raised.failed, raised.new_failed) == (5, 12, 4)
    # A mended row takes the place of all its failures.
    lines[6] = '{"id": 6, "text": "mended"}'
    (tmp_path / "rows.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    mended = run(sampled(tmp_path, demo, 3))
    assert (mended.sent, mended.failed, mended.kept) == (3, 9, 0)


def test_limit_counts_rows_and_the_rest_is_paid_for_later(tmp_path: Path, demo: DemoServer) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(30))
    first = run(sampled(tmp_path, demo, 4), limit=5)
    assert (first.rows, first.ok, first.sent, first.exit_code) == (5, 20, 20, 0)
    drawn = run(sampled(tmp_path, demo, 4), sample=10, seed=2)
    assert (drawn.rows, drawn.ok, drawn.open) == (10, 40, 0)
    whole = run(sampled(tmp_path, demo, 4))
    assert (whole.ok, demo.stats().requests) == (120, 120)


def test_a_cache_and_equal_rows_share_answers_sample_by_sample(tmp_path: Path, demo: DemoServer) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"text": "same"}] * 4)
    deduped = run(sampled(tmp_path, demo, 2, key=None, dedupe=True))
    assert (deduped.ok, deduped.sent) == (8, 2)
    cached = {"cache": str(tmp_path / "cache"), "dedupe": True}
    assert run(sampled(tmp_path, demo, 2, key=None, output=str(tmp_path / "o2"), **cached)).sent == 2
    other = run(sampled(tmp_path, demo, 3, key=None, output=str(tmp_path / "o3"), **cached))
    assert (other.ok, other.sent) == (12, 1)


def test_one_failed_sample_is_tried_again_alone(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(20))
    with DemoServer(DemoOptions(latency_s=0, faults={"error_503": 0.2})) as demo:
        first = run(sampled(tmp_path, demo, 3, retry={"attempts": 1}))
        assert 0 < first.failed < 60
    with DemoServer(DemoOptions(latency_s=0)) as demo:
        again = run(sampled(tmp_path, demo, 3))
        assert (again.sent, again.ok, again.exit_code) == (first.failed, 60, 0)
    assert query(tmp_path, "select count(*), count(distinct (row_index, sample_index)) from data") == [(60, 60)]


def test_a_seed_from_the_sample_makes_requests_of_their_own(tmp_path: Path, demo: DemoServer) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(8))
    params = {"seed": "{{ sample_index + 100 * id }}", "max_tokens": 20, "temperature": 1}
    assert run(sampled(tmp_path, demo, 1, params=params)).sent == 8
    raised = run(sampled(tmp_path, demo, 3, params=params))
    assert (raised.sent, raised.ok) == (16, 24)
    view = [view.record["sample_index"] for view in find_records(tmp_path / "out", row=5)]
    assert view == [0, 1, 2]


def test_messages_may_speak_of_the_sample_and_show_tells_each(tmp_path: Path, demo: DemoServer) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(3))
    asked = [{"role": "user", "content": "Variant {{ sample_index + 1 }} of {{ text }}"}]
    assert run(sampled(tmp_path, demo, 2, messages=asked)).ok == 6
    shown = [view.messages for view in find_records(tmp_path / "out", row=1)]
    assert [messages[0]["content"] for messages in shown if messages] == [
        "Variant 1 of row number 1",
        "Variant 2 of row number 1",
    ]


def test_a_sample_that_does_not_render_fails_alone(tmp_path: Path, demo: DemoServer) -> None:
    write_rows(
        tmp_path / "rows.jsonl", [{"id": number, "text": "x", "styles": ["a", "b"][: number + 1]} for number in (0, 1)]
    )
    asked = [{"role": "user", "content": "{{ styles[sample_index] }}: {{ text }}"}]
    summary = run(sampled(tmp_path, demo, 2, messages=asked))
    assert (summary.ok, summary.failed, summary.rows) == (3, 1, 2)
    assert query(tmp_path, "select row_index, sample_index, error_kind from data where status = 'failed'") == [
        (0, 1, "template")
    ]


def test_plan_and_status_count_samples(tmp_path: Path, demo: DemoServer) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(10))
    one, four = plan_job(sampled(tmp_path, demo, 1)), plan_job(sampled(tmp_path, demo, 4))
    assert (four.samples, four.new, four.requests) == (4, 40, 40)
    assert [preview.row_index for preview in four.previews] == [0, 1]
    assert four.prompt_tokens == 4 * (one.prompt_tokens or 0)
    assert four.cost == pytest.approx(4 * (one.cost or 0))
    run(sampled(tmp_path, demo, 4), limit=5)
    status = status_of(tmp_path / "out")
    assert (status.samples, status.ok, status.open) == (4, 20, 0)
    half = plan_job(sampled(tmp_path, demo, 4))
    assert (half.done, half.new) == (20, 20)


@pytest.mark.parametrize(
    ("params", "told"),
    [
        ({"seed": 7}, "sample_index"),
        ({"temperature": 0}, "temperature is 0"),
        ({"seed": "{{ sample_index }}", "temperature": 0}, ""),
        ({"temperature": 0.5}, ""),
    ],
)
def test_samples_that_would_be_alike_are_warned_of(
    tmp_path: Path, demo: DemoServer, params: dict[str, Any], told: str
) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(2))
    warnings = plan_job(sampled(tmp_path, demo, 2, params=params)).warnings
    assert [told in warning for warning in warnings] == ([True] if told else [])
    assert plan_job(sampled(tmp_path, demo, 1, params=params)).warnings == []


def test_export_writes_k_lines_a_row_in_order(tmp_path: Path, demo: DemoServer) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(7))
    output = {"path": str(tmp_path / "out"), "part_rows": 4}
    run(sampled(tmp_path, demo, 1, output=output))
    run(sampled(tmp_path, demo, 3, output=output), limit=5)
    done = export(tmp_path / "out", tmp_path / "all.jsonl")
    assert (done.rows, done.missing) == (5 * 3 + 2, 4)
    lines = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text(encoding="utf-8").splitlines()]
    order = [(line["row_index"], line["sample_index"]) for line in lines]
    assert order == [*((row, sample) for row in range(5) for sample in range(3)), (5, 0), (6, 0)]
    assert all(line["id"] == line["row_index"] for line in lines)
