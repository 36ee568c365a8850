"""Steering and watching a run from other processes: `control`, `show --follow`."""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from batchchat.controlling import control_run
from batchchat.demo import DemoOptions, DemoServer
from batchchat.errors import OutputLocked, UsageError
from batchchat.inspection import status_of
from batchchat.store import iter_output, lock_holder
from tests.integration.jobs import query, texts, write_rows
from tests.integration.processes import Process, batchchat, start, wait_for
from tests.integration.test_cli import Command, command

__all__ = ["command"]


@pytest.fixture
def demo() -> Iterator[DemoServer]:
    with DemoServer(DemoOptions(latency_s=0.1)) as server:
        yield server


def write_job(folder: Path, demo: DemoServer, rows: int, **fields: Any) -> None:
    write_rows(folder / "rows.jsonl", texts(rows))
    job = {
        "name": "steered",
        "input": {"path": "rows.jsonl", "key": "id"},
        "output": "out",
        "provider": {"profile": "demo", "base_url": demo.base_url},
        "model": "llama-3.1-8b-instruct",
        "messages": [{"role": "user", "content": "{{ text }}"}],
        "limits": {"concurrency": 2},
        **fields,
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(job, sort_keys=False), encoding="utf-8")


def begin(folder: Path, demo: DemoServer, *more: str) -> Process:
    """Start a run, and return once it sends."""
    before = demo.stats().requests
    process = start("run", "job.yaml", "--log-format", "json", *more, cwd=folder)
    wait_for(lambda: demo.stats().requests > before + 2)
    return process


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def settle(output: Path) -> None:
    """Pause a run, and return once nothing is under way."""
    wait_for(lambda: control_run(output, "pause").sending == 0)
    time.sleep(0.2)  # what was under way is committed


def test_a_run_is_paused_retuned_killed_and_goes_on_unpaused(tmp_path: Path, demo: DemoServer) -> None:
    write_job(tmp_path, demo, 300)
    process = begin(tmp_path, demo)

    def control(*words: str) -> Any:
        return batchchat("control", "out", *words, cwd=tmp_path)

    out = tmp_path / "out"
    paused = control("pause", "--json")
    assert (paused.returncode, paused.stderr) == (0, "")
    said = json.loads(paused.stdout)
    assert (said["action"], said["changed"], said["pid"]) == ("pause", True, process.pid)
    assert said["outputs"] == ["out"]

    settle(out)
    sent = demo.stats().requests
    done = control("set", "limits.concurrency=64", "rpm=100000")
    assert done.stdout == "out: set limits.concurrency=64, limits.requests_per_minute=100000\n"
    with pytest.raises(UsageError, match="deadline: 1s is over") as refused:
        control_run(out, "set", {"deadline": 1.0})
    assert "A deadline counts from the start of the run" in (refused.value.remedy or "")

    status = batchchat("status", "out", cwd=tmp_path).stdout
    assert "· paused since " in status
    assert "limits.concurrency=64 (by " in status
    live = status_of(out).live
    assert live is not None
    assert (live.phase, live.pace.concurrency) == ("paused", 64)
    assert " on " in (live.steering.paused_by or "")
    # It holds its output, and has sent nothing meanwhile.
    assert batchchat("run", "job.yaml", cwd=tmp_path).returncode == 75
    assert demo.stats().requests == sent

    process.kill()
    _, told = process.communicate()
    names = [event["event"] for event in events(told)]
    assert [name for name in names if name in {"paused", "settings_changed", "resumed"}] == [
        "paused",
        "settings_changed",
    ]
    gone = control("resume")
    assert (gone.returncode, gone.stdout) == (2, "")
    assert "no run is going on into out" in gone.stderr

    last = batchchat("run", "job.yaml", "--log-format", "json", "--set", "limits.concurrency=64", cwd=tmp_path)
    assert last.returncode == 0
    messages = " ".join(event["message"] for event in events(last.stderr))
    assert "was paused when it was killed; this one is not paused" in messages
    assert "had limits.concurrency=64, limits.requests_per_minute=100000 set" in messages
    assert query(tmp_path, "select count(*), count(distinct key) from data where status = 'ok'") == [(300, 300)]
    assert demo.stats().requests <= 302


@pytest.mark.thorough
def test_what_was_set_is_in_force_within_a_second(tmp_path: Path, demo: DemoServer) -> None:
    write_job(tmp_path, demo, 2000, limits={"concurrency": 1})
    process = begin(tmp_path, demo, "--grace", "1s")
    done = json.loads(batchchat("control", "out", "set", "limits.concurrency=40", "--json", cwd=tmp_path).stdout)
    assert done["did"] == "set limits.concurrency=40"
    # Loose, for a machine that is busy: it takes a quarter of a second.
    assert done["seconds"] < 5
    wait_for(lambda: demo.stats().max_in_flight >= 40, 10)
    stopped = batchchat("control", "out", "stop", cwd=tmp_path)
    assert stopped.returncode == 0
    assert "a second stop ends it at once" in stopped.stdout
    _, told = process.communicate()
    assert process.returncode == 130
    ended = events(told)[-1]
    assert ended["event"] == "run_ended"
    assert "(`batchchat control`)" in ended["reason"]
    assert ended["rows"] == ended["ok"] + ended["open"]


@pytest.mark.thorough
def test_a_run_that_hangs_takes_no_command_and_never_will(tmp_path: Path, demo: DemoServer) -> None:
    write_job(tmp_path, demo, 60, limits={"concurrency": 4})
    process = begin(tmp_path, demo)
    process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(OutputLocked, match="was withdrawn, and nothing has changed"):
            control_run(tmp_path / "out", "stop", wait_s=0.2)
    finally:
        process.send_signal(signal.SIGCONT)
    process.communicate()
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["control", "nowhere", "pause"], "nowhere is no output of batchchat"),
        (["control", "nowhere", "set", "concurrency=0"], "limits.concurrency: '0' is not possible"),
        (["control", "nowhere", "explode"], "'explode' is not one of"),
        (["control", "nowhere"], "Missing argument"),
        (["show", "nowhere", "--follow"], "nowhere is no output of batchchat"),
        (["show", "nowhere", "--follow", "--count", "status"], "Give one of them"),
    ],
)
def test_bad_usage_is_told(tmp_path: Path, command: Command, arguments: list[str], told: str) -> None:
    done = command(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr


@pytest.mark.thorough
def test_records_are_followed_once_each_across_seals_until_the_run_ends(tmp_path: Path, demo: DemoServer) -> None:
    write_job(tmp_path, demo, 200, output={"path": "out", "part_rows": 7}, limits={"concurrency": 16})
    process = begin(tmp_path, demo, "-q")
    settle(tmp_path / "out")
    every = start("show", "out", "--follow", "--json", cwd=tmp_path)
    some = start("show", "out", "-f", "--where", "row_index % 2 == 0", "-n", "3", "--table", cwd=tmp_path)
    closed = start("show", "out", "-f", cwd=tmp_path)
    stopped = start("show", "out", "-f", cwd=tmp_path)
    closed.stdout.close()
    time.sleep(1.5)  # nothing tells when they have begun to look
    before = sum(batch.num_rows for batch in iter_output(tmp_path / "out", columns=["row_index"]))
    stopped.send_signal(signal.SIGINT)
    _, err = stopped.communicate()
    assert (stopped.returncode, err.strip()) == (130, "")
    assert closed.wait(20) == 0
    closed.stderr.close()
    assert control_run(tmp_path / "out", "resume").changed
    process.communicate()
    assert process.returncode == 0
    out, err = every.communicate()
    assert every.returncode == 0
    records = [json.loads(line)["record"] for line in out.splitlines()]
    assert Counter(Counter(record["row_index"] for record in records).values()) == {1: 200 - before}
    assert f"the run has ended; shown: {200 - before} records" in err
    lines, _ = some.communicate()
    assert [int(line.split()[1]) % 2 for line in lines.splitlines()] == [0, 0, 0]
    again = batchchat("show", "out", "--follow", cwd=tmp_path)
    assert again.returncode == 2
    assert "no run is going on into out" in again.stderr


@pytest.mark.thorough
def test_control_of_an_evaluation_reaches_all_its_runs(tmp_path: Path, demo: DemoServer) -> None:
    write_job(tmp_path, demo, 2000)
    suite = {
        "name": "suite",
        "job": "job.yaml",
        "variants": {"matrix": {"params.temperature": [0, 1]}},
        "scorers": [{"name": "said", "kind": "contains", "expected": "text"}],
        "output": "suite",
    }
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(suite), encoding="utf-8")
    process = start("eval", "suite.yaml", "-q", cwd=tmp_path)
    wait_for(lambda: demo.stats().requests > 5)
    paused = batchchat("control", "suite", "pause", cwd=tmp_path)
    assert (paused.returncode, paused.stdout.startswith("suite, 2 runs: paused")) == (0, True), paused.stderr
    time.sleep(0.5)  # what was under way ends
    sent = demo.stats().requests
    assert batchchat("status", "suite", cwd=tmp_path).stdout.count("paused") == 2
    time.sleep(0.3)
    assert demo.stats().requests == sent
    assert all(lock_holder(folder) for folder in (tmp_path / "suite" / "variants").iterdir())
    control_run(tmp_path / "suite", "set", {"limits.concurrency": 20})
    assert len(control_run(tmp_path / "suite", "resume").outputs) == 2
    wait_for(lambda: demo.stats().requests > sent + 20)
    assert control_run(tmp_path / "suite", "stop").changed
    _, err = process.communicate()
    assert process.returncode == 130
    assert "(`batchchat control`)" in err
