"""The same job every night over what is new: what each night sends, as the demo server counts it, and what is told."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchchat.demo import DemoOptions, DemoServer
from batchchat.events import RunSummary
from batchchat.history import history_of
from batchchat.inspection import status_of
from batchchat.job import Job
from batchchat.planning import plan_job
from batchchat.store import verify
from tests.docs import names, table
from tests.integration.jobs import make_job, query, run, texts, write_rows
from tests.integration.processes import start, wait_for
from tests.integration.test_cli import Command, command

__all__ = ["command"]


@pytest.fixture
def demo() -> Iterator[DemoServer]:
    with DemoServer(DemoOptions(latency_s=0)) as server:
        yield server


class Nights:
    """One job, run night after night; `sent` is what the server got in each."""

    def __init__(self, demo: DemoServer, job: Job) -> None:
        self.demo = demo
        self.job = job
        self.sent: list[int] = []

    def night(self) -> RunSummary:
        before = self.demo.stats().requests
        planned = plan_job(self.job).requests
        summary = run(self.job)
        self.sent.append(self.demo.stats().requests - before)
        assert planned == self.sent[-1] == summary.sent
        return summary


def test_a_growing_file_costs_what_is_new_and_what_changed(tmp_path: Path, demo: DemoServer) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows(path, texts(20))
    nights = Nights(demo, make_job(tmp_path, demo.base_url))
    nights.night()
    with path.open("a", encoding="utf-8") as rows:
        rows.writelines(json.dumps(row) + "\n" for row in texts(7, start=20))
        rows.write('{"id": 27, "text": "still being wr')
    second = nights.night()
    assert (second.rows, second.ok, second.exit_code) == (27, 27, 0)
    changed = [{**row, "text": "new text"} if row["id"] in {3, 11} else row for row in texts(30)]
    write_rows(path, changed)
    nights.night()
    nights.night()
    assert nights.sent == [20, 7, 3 + 2, 0]
    assert query(tmp_path, "select count(*), count(distinct key), sum((text = 'new text')::int) from data") == [
        (30, 30, 2)
    ]


def test_a_folder_with_new_files(tmp_path: Path, demo: DemoServer) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    write_rows(folder / "2026-01-01.jsonl", texts(10))
    nights = Nights(demo, make_job(tmp_path, demo.base_url, input={"path": str(folder), "key": "id"}))
    nights.night()
    write_rows(folder / "2026-01-02.jsonl", texts(6, start=10))
    # A file of earlier days may come late, before the others in order: nothing of them is asked again.
    write_rows(folder / "2025-12-31.jsonl", texts(4, start=100))
    nights.night()
    (folder / "2026-01-01.jsonl").unlink()
    write_rows(folder / "2026-01-03.jsonl", texts(1, start=16))
    third = nights.night()
    assert nights.sent == [10, 10, 1]
    assert (third.rows, third.kept) == (11, 10)
    assert query(tmp_path, "select count(*), count(distinct source) from data") == [(21, 4)]


def test_a_parquet_dataset_without_a_key(tmp_path: Path, demo: DemoServer) -> None:
    dataset = tmp_path / "dataset"
    dataset.mkdir()

    def write(name: str, rows: list[dict[str, Any]]) -> None:
        pq.write_table(pa.Table.from_pylist(rows), dataset / name)

    write("part-0.parquet", texts(12))
    nights = Nights(demo, make_job(tmp_path, demo.base_url, input={"path": str(dataset)}))
    nights.night()
    write("part-1.parquet", texts(5, start=12))
    nights.night()
    # A row in the middle costs one request, a part that is rewritten in another order none.
    write("part-0.parquet", [*texts(12)[::-1], {"id": 99, "text": "between"}])
    nights.night()
    assert nights.sent == [12, 5, 1]
    assert verify(tmp_path / "out").problems == []


def test_failed_rows_are_tried_again_the_next_night_and_no_other(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(30))
    with DemoServer(DemoOptions(latency_s=0, faults={"sticky_500": 0.2})) as bad:
        first = run(make_job(tmp_path, bad.base_url, retry={"attempts": 1}))
    with DemoServer(DemoOptions(latency_s=0)) as good:
        nights = Nights(good, make_job(tmp_path, good.base_url))
        nights.night()
        nights.night()
    assert nights.sent == [first.failed, 0]
    assert first.failed > 0


# --- what is told about the nights


def test_history_lists_every_run_also_those_that_were_stopped_or_killed(tmp_path: Path, command: Command) -> None:
    with DemoServer(DemoOptions(latency_s=0.05)) as demo:
        write_rows(tmp_path / "rows.jsonl", texts(60))
        job = make_job(tmp_path, demo.base_url)
        run(job, limit=10)
        run(make_job(tmp_path, demo.base_url, budget={"max_requests": 5}))
        path = write_job(tmp_path, job)
        killed = start("run", path, "-q", cwd=tmp_path)
        # What was answered and not yet written is lost with the process.
        wait_for(lambda: query_committed(tmp_path) >= 20)
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
        committed = query_committed(tmp_path)
        last = run(job)
        view = history_of(tmp_path / "out")
        assert [(entry.state, entry.exit_code) for entry in view.runs] == [
            ("ended", 0), ("ended", 4), ("killed", None), ("ended", 0)
        ]  # fmt: skip
        assert [entry.new_ok for entry in view.runs] == [10, 5, committed - 15, 60 - committed]
        assert view.runs[1].reason == "budget.max_requests of 5 is used up: that many requests were sent"
        assert "killed" in (view.runs[2].reason or "")
        assert view.runs[2].total_tokens > 0
        assert view.total.new_ok == 60
        assert view.total.cost == pytest.approx(last.spend_total.cost)
        assert view.total.total_tokens == last.spend_total.total_tokens == sum(e.total_tokens for e in view.runs)
        assert view.currency == "EUR"
        assert [entry.started for entry in view.runs] == sorted(entry.started or "" for entry in view.runs)
    shown = command("history", "out", cwd=tmp_path).stdout
    assert shown.count("\n") == 4 + 6 + 3
    assert all(len(line) <= 80 for line in shown.splitlines()[2:10])
    assert "…" not in "".join(shown.splitlines()[1:10])
    assert "budget.max_requests of 5 is used up: that many requests were sent" in shown
    assert "killed" in shown
    assert "4 runs" in shown
    assert "EUR" in shown
    told = json.loads(command("history", "out", "--json", cwd=tmp_path).stdout)
    assert told["total"]["runs"] == len(told["runs"]) == 4
    assert set(told) == {"job", "output", "currency", "runs", "total"}
    assert set(told["runs"][0]) == {
        "run_id", "state", "started", "ended", "duration_s", "new_ok", "new_failed", "cache_hits", "requests",
        "answers", "skipped", "prompt_tokens", "completion_tokens", "total_tokens", "cost", "currency", "exit_code",
        "reason", "prompt_id",
    }  # fmt: skip


def write_job(folder: Path, job: Job) -> Path:
    data = job.snapshot()
    data.pop("file")
    (folder / "job.yaml").write_text(json.dumps(data), encoding="utf-8")
    return folder / "job.yaml"


def query_committed(folder: Path) -> int:
    return status_of(folder / "out").ok


def test_history_tells_the_run_that_is_going_on(tmp_path: Path, command: Command) -> None:
    with DemoServer(DemoOptions(latency_s=30)) as demo:
        write_rows(tmp_path / "rows.jsonl", texts(5))
        path = write_job(tmp_path, make_job(tmp_path, demo.base_url))
        going = start("run", path, "-q", cwd=tmp_path)
        wait_for(lambda: demo.stats().requests == 5)
        wait_for((tmp_path / "out" / "_batchchat" / "live.json").exists)
        (entry,) = history_of(tmp_path / "out").runs
        assert (entry.state, entry.exit_code) == ("running", None)
        # An overlapping start is refused, and leaves no trace.
        assert command("run", path, cwd=tmp_path).returncode == 75
        assert len(history_of(tmp_path / "out").runs) == 1
        going.kill()
        going.communicate()
    assert [entry.state for entry in history_of(tmp_path / "out").runs] == ["killed"]


def test_each_run_leaves_one_line_with_counts_tokens_cost_and_exit_code(tmp_path: Path, demo: DemoServer) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(4))
    job = make_job(tmp_path, demo.base_url)
    summaries = [run(job), run(job)]
    lines = (tmp_path / "out" / "_batchchat" / "runs.jsonl").read_text(encoding="utf-8").splitlines()
    told = [json.loads(line) for line in lines]
    assert [line["run_id"] for line in told] == [summary.run_id for summary in summaries]
    for line, summary in zip(told, summaries, strict=True):
        assert set(line) == {*(field.name for field in fields(RunSummary)), "ended_at"}
        assert (line["new_ok"], line["sent"], line["exit_code"]) == (summary.new_ok, summary.sent, 0)
        assert line["spend"]["cost"] == pytest.approx(summary.spend.cost)


def test_the_fields_of_status_as_json_stay(tmp_path: Path, command: Command, demo: DemoServer) -> None:
    """Programs read these: fields may be added, none may go or change its name."""
    write_rows(tmp_path / "rows.jsonl", texts(3))
    run(make_job(tmp_path, demo.base_url))
    told = json.loads(command("status", "out", "--json", cwd=tmp_path).stdout)
    assert set(told) >= {
        "job", "output", "running", "last", "ok", "failed", "open", "failures", "spent", "currency", "live",
        "warnings", "command",
    }  # fmt: skip
    assert set(told["last"]) >= {"run_id", "exit_code", "reason", "ended"}
    assert set(told["spent"]) >= {"requests", "prompt_tokens", "completion_tokens", "total_tokens", "cost"}
    assert (told["ok"], told["failed"], told["open"], told["currency"]) == (3, 0, 0, "EUR")


# --- log lines for programs


ALWAYS = {"time", "level", "event", "message"}


def documented() -> dict[str, tuple[str, set[str]]]:
    """The events that the guide lists: their level and fields."""
    rows = table("logs", "Log lines as JSON")
    return {name: (level.split(",")[0], names(cells)) for name, (level, cells, _) in rows.items()}


def summary_fields() -> set[str]:
    """The fields of a summary that the guide lists."""
    return set(table("logs", "The summary"))


@pytest.fixture
def lines(tmp_path: Path, command: Command) -> Callable[..., list[dict[str, Any]]]:
    """Run the job with JSON log lines, and check each line against the documentation."""

    def check(*arguments: str, code: int = 0) -> list[dict[str, Any]]:
        done = command("run", "job.yaml", "--log-format", "json", "-v", *arguments, cwd=tmp_path)
        assert done.returncode == code, done.stderr
        known = documented()
        found = [json.loads(line) for line in done.stderr.splitlines()]
        for line in found:
            assert line.keys() >= ALWAYS
            assert line["event"] in known, line
            expected = summary_fields() if line["event"] == "run_ended" else known[line["event"]][1]
            assert line.keys() - ALWAYS == expected, line["event"]
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])
        return found

    return check


@pytest.mark.thorough
def test_log_lines_have_the_documented_fields(tmp_path: Path, lines: Callable[..., list[dict[str, Any]]]) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(150))
    faults = {"error_503": 0.02, "error_429": 0.02}
    with DemoServer(DemoOptions(latency_s=0.01, requests_per_minute=2000, faults=faults)) as demo:
        write_job(tmp_path, make_job(tmp_path, demo.base_url, input={"path": str(tmp_path / "rows.jsonl")}))
        names = [line["event"] for line in lines("--html", "page.html")]
        assert names[0] == "run_started"
        assert "estimate_corrected" in names
        assert names[-2:] == ["run_ended", "report_written"] or names[-2:] == ["report_written", "run_ended"]
        # An edited prompt, which archives the old records; a budget; a job that cannot be.
        names = [
            line["event"]
            for line in lines("--set", "messages.0.content=other {{ text }}", "--max-requests", "20", code=4)
        ]
        assert {"halted", "run_ended"} <= set(names)
        (only,) = lines("--set", "limits.concurrency=0", code=2)
        assert (only["event"], only["level"], only["exit_code"]) == ("error", "error", 2)
    with DemoServer(DemoOptions(latency_s=0, outage=(0.0, 1.0))) as demo:
        job = make_job(tmp_path, demo.base_url, input={"path": str(tmp_path / "rows.jsonl")})
        write_job(tmp_path, job)
        names = [line["event"] for line in lines("--fresh")]
        assert {"breaker_opened", "breaker_closed"} <= set(names)
