"""Batches from the command line: leave, look, stop by a signal, come back, cancel."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from batchchat.demo import BatchOptions, DemoOptions, DemoServer
from tests.integration.jobs import query, texts, write_rows
from tests.integration.processes import start, wait_for
from tests.integration.test_cli import Command, command

__all__ = ["command"]


@pytest.fixture
def demo(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[DemoServer]:
    write_rows(tmp_path / "rows.jsonl", texts(20))
    with DemoServer(DemoOptions(batch=BatchOptions(seconds=getattr(request, "param", 3)))) as server:
        job = {
            "name": "cli",
            "input": {"path": "rows.jsonl", "key": "id"},
            "output": "out",
            "provider": {"profile": "demo", "base_url": server.base_url},
            "model": "llama-3.1-8b-instruct",
            "messages": [{"role": "user", "content": "Labels: yes, no\n{{ text }}"}],
            "engine": {"kind": "batch", "poll": 0.1, "max_lines": 10},
        }
        (tmp_path / "job.yaml").write_text(yaml.safe_dump(job), encoding="utf-8")
        yield server


def test_batches_are_left_looked_at_and_taken(tmp_path: Path, command: Command, demo: DemoServer) -> None:
    left = command("run", "job.yaml", "--no-wait", cwd=tmp_path)
    assert left.returncode == 4, left.stderr
    assert "2 batches with 20 requests go on at the provider" in left.stderr
    view = json.loads(command("status", "out", "--json", cwd=tmp_path).stdout)
    assert [batch["requests"] for batch in view["batches"]] == [10, 10]
    assert {batch["state"] for batch in view["batches"]} == {"validating"}
    assert all(batch["expires"].endswith("+00:00") and batch["age_s"] >= 0 for batch in view["batches"])
    shown = command("status", "out", cwd=tmp_path).stdout
    assert view["batches"][0]["batch"][:10] in shown
    refused = command("run", "job.yaml", "--set", "engine=local", cwd=tmp_path)
    assert refused.returncode == 2
    assert "single requests would ask the same" in refused.stderr
    # A signal ends the run that waits; the batches go on.
    process = start("run", "job.yaml", cwd=tmp_path)
    wait_for(lambda: (tmp_path / "out" / "_batchchat" / "live.json").exists() and demo.stats().batch.calls["list"] > 1)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate()
    # The batches may have ended just then, and the rows may not have been read by then.
    assert process.returncode in {0, 4, 130}, told
    done = command("run", "job.yaml", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["ok"] == 20
    assert demo.stats().batch.lines == 20
    view = json.loads(command("status", "out", "--json", cwd=tmp_path).stdout)
    assert [(batch["state"], batch["harvested"]) for batch in view["batches"]] == [("harvested", 10)] * 2
    assert query(tmp_path, "select distinct engine from data") == [("batch",)]


@pytest.mark.thorough
@pytest.mark.parametrize("demo", [20], indirect=True)
def test_cancel_says_what_was_kept(tmp_path: Path, command: Command, demo: DemoServer) -> None:
    none = command("cancel", "out", cwd=tmp_path)
    assert none.returncode == 2
    assert command("run", "job.yaml", "--no-wait", cwd=tmp_path).returncode == 4
    done = command("cancel", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "no batch is under way any more" in done.stderr
    assert demo.stats().batch.by_status == {"cancelled": 2}
    again = command("cancel", "out", cwd=tmp_path)
    assert again.returncode == 2
    assert "no batches under way" in again.stderr
    assert command("run", "job.yaml", "--set", "engine=local", cwd=tmp_path).returncode == 0


def test_plan_shows_both_engines(tmp_path: Path, command: Command, demo: DemoServer) -> None:
    plan = json.loads(command("plan", "job.yaml", "--json", cwd=tmp_path).stdout)
    local, batch = plan["engines"]
    assert (local["engine"], local["chosen"], batch["engine"], batch["chosen"]) == ("local", False, "batch", True)
    assert batch["batches"] == 2
    assert batch["cost"] == pytest.approx(local["cost"] / 2)
    assert plan["cost"] == batch["cost"]
    other = json.loads(command("plan", "job.yaml", "--set", "engine.price_factor=0.8", "--json", cwd=tmp_path).stdout)
    assert other["engines"][1]["cost"] == pytest.approx(local["cost"] * 0.8)
    wrong = command("plan", "job.yaml", "--set", "engine.bucket=s3://x/y", "--json", cwd=tmp_path)
    assert "bucket" in json.loads(wrong.stdout)["engines"][1]["problem"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("engine=bach", "did you mean 'batch'"),
        ("engine={kind: local, poll: 5s}", "poll belongs to kind: batch"),
        ("engine.poll=0", "must be at least"),
        ("engine.then=online", "must be 'local'"),
        ("engine.service=nobody", "no service is called 'nobody'"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_sent(
    tmp_path: Path, command: Command, demo: DemoServer, change: str, words: str
) -> None:
    done = command("run", "job.yaml", "--set", change, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert not demo.stats().batch.calls
