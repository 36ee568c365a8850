"""Runs of batches that are killed again and again: no batch is created twice, no line is paid for twice."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from random import Random

import pytest
import yaml

import batchchat
from batchchat.demo import DemoOptions, DemoServer
from batchchat.demo.batches.options import BatchOptions
from batchchat.store import read_state, verify
from tests.integration.batch_crash_child import STEPS
from tests.integration.jobs import texts, write_rows
from tests.integration.processes import batchchat as command
from tests.integration.processes import start, wait_for

LINES = 8
ENTRY = "tests.integration.batch_crash_child:main"


def write_job(folder: Path, demo: DemoServer, rows: int, edition: int = 0) -> None:
    write_rows(folder / "rows.jsonl", texts(rows))
    data = {
        "name": "killed",
        "input": {"path": "rows.jsonl", "key": "id"},
        "output": {"path": "out", "part_rows": 20, "part_seconds": 0.1},
        "provider": {"profile": "demo", "base_url": demo.base_url},
        "model": "llama-3.1-8b-instruct",
        "messages": [{"role": "user", "content": f"Labels: yes, no\n{'edited ' * edition}{{{{ text }}}}"}],
        "engine": {"kind": "batch", "poll": 0.05, "max_lines": LINES},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(data), encoding="utf-8")


def kill_at(folder: Path, step: str, number: int = 1) -> bool:
    """Run until the step is passed so often, and kill; false if the run ended before."""
    process = start("job.yaml", step, str(number), cwd=folder, entry=ENTRY)
    _, told = process.communicate()
    assert process.returncode in {0, 4, -signal.SIGKILL}, told
    return process.returncode == -signal.SIGKILL


def kill_after(folder: Path, seconds: float) -> bool:
    process = start("run", "job.yaml", cwd=folder)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
    _, told = process.communicate()
    assert process.returncode in {0, 4, -signal.SIGKILL}, told
    return process.returncode == -signal.SIGKILL


def finish(folder: Path, demo: DemoServer, rows: int) -> None:
    """Run to the end, and hold the whole against what it should be."""
    done = command("run", "job.yaml", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    records = batchchat.read_output(folder / "out").to_pylist()
    assert [record["row_index"] for record in records] == list(range(rows))
    assert {record["status"] for record in records} == {"ok"}
    stats = demo.stats().batch
    assert stats.lines == rows, "a line was run twice"
    assert read_state(folder / "out").spend.requests == rows, "the ledger differs from what was answered"
    assert verify(folder / "out").problems == []
    left = {path.name for path in (folder / "out" / "_batchchat" / "batches").iterdir()}
    assert left <= {"batches.jsonl", "downloads"}


@pytest.mark.thorough
@pytest.mark.timeout(240)
def test_a_run_killed_at_every_step_creates_no_batch_and_pays_no_line_twice(tmp_path: Path) -> None:
    rows, killed = 80, set()
    with DemoServer(DemoOptions(batch=BatchOptions(seconds=0.2))) as demo:
        write_job(tmp_path, demo, rows)
        for step in STEPS:
            if kill_at(tmp_path, step):
                killed.add(step)
        finish(tmp_path, demo, rows)
        assert demo.stats().batch.created == rows // LINES
    assert killed == set(STEPS)


@pytest.mark.timeout(120)
def test_a_lost_answer_to_create_and_a_kill_cost_no_second_batch(tmp_path: Path) -> None:
    with DemoServer(DemoOptions(batch=BatchOptions(seconds=0.2, faults={"create_lost": 2}))) as demo:
        write_job(tmp_path, demo, 24)
        assert kill_at(tmp_path, "ledger.creating", 1)
        finish(tmp_path, demo, 24)
        assert demo.stats().batch.created == 3


@pytest.mark.thorough
def test_an_answer_that_went_to_the_archive_is_counted_once_through_a_kill(tmp_path: Path) -> None:
    """It answers an earlier prompt, and the run is killed when it is counted and its batch is not noted as read."""
    with DemoServer(DemoOptions(batch=BatchOptions(seconds=0.1))) as demo:
        write_job(tmp_path, demo, LINES, edition=1)
        assert command("run", "job.yaml", cwd=tmp_path).returncode == 0
        write_job(tmp_path, demo, LINES, edition=0)
        assert command("run", "job.yaml", "--no-wait", cwd=tmp_path).returncode == 4
        wait_for(lambda: demo.stats().batch.lines == 2 * LINES)
        write_job(tmp_path, demo, LINES, edition=1)
        assert kill_at(tmp_path, "commit.after")
        assert command("run", "job.yaml", cwd=tmp_path).returncode == 0
        # Going back finds the answers in the archive.
        for edition in (0, 1):
            write_job(tmp_path, demo, LINES, edition)
            assert command("run", "job.yaml", cwd=tmp_path).returncode == 0
        assert demo.stats().batch.lines == 2 * LINES
        assert read_state(tmp_path / "out").spend.requests == 2 * LINES


def test_answers_that_fail_are_paid_once_through_a_kill_between_their_commit_and_the_note_of_it(tmp_path: Path) -> None:
    """Answers that are cut off are failed records, and billed: nothing but their cost tells that they were counted."""
    with DemoServer(DemoOptions(batch=BatchOptions(seconds=0.1))) as demo:
        write_job(tmp_path, demo, 2 * LINES)
        job = yaml.safe_load((tmp_path / "job.yaml").read_text(encoding="utf-8"))
        job |= {"params": {"max_tokens": 1}, "response": {"truncated": "fail"}}
        job["messages"][0]["content"] = "Tell a story of {{ text }} in many words"
        (tmp_path / "job.yaml").write_text(yaml.safe_dump(job), encoding="utf-8")
        for number in (1, 1, 2):  # the first chunk is read three times
            assert kill_at(tmp_path, "counted", number)
        done = command("run", "job.yaml", cwd=tmp_path)
        assert done.returncode == 1, done.stderr
        records = batchchat.read_output(tmp_path / "out").to_pylist()
        assert [record["error_kind"] for record in records] == ["truncated"] * 2 * LINES
        assert demo.stats().batch.lines == 2 * LINES
        spend = read_state(tmp_path / "out").spend
        assert spend.requests == 2 * LINES, "the ledger differs from what was answered"
        assert spend.completion_tokens == sum(record["completion_tokens"] for record in records)
        assert verify(tmp_path / "out").problems == []


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_same_with_forty_kills(tmp_path: Path, seed: int) -> None:
    random = Random(seed)
    rows, kills, turn = 400, 0, 0
    faults = {"create_lost": 5, "list_late": 0.1, "download_torn": 3}
    with DemoServer(DemoOptions(batch=BatchOptions(seconds=0.5, faults=faults))) as demo:
        write_job(tmp_path, demo, rows)
        while kills < 40 and turn < 200:
            turn += 1
            if turn % 2:
                killed = kill_at(tmp_path, STEPS[turn % len(STEPS)], random.randint(1, 3))
            else:
                killed = kill_after(tmp_path, random.uniform(0.1, 2.0))
            kills += killed
            if not killed:
                # On a quick machine runs end before they are killed: as an input that grows, it gives more to do.
                rows += 80
                write_job(tmp_path, demo, rows)
        finish(tmp_path, demo, rows)
    assert kills >= 40


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(6))
def test_kills_and_edits_of_the_prompt_pay_each_answer_once_and_lose_none(tmp_path: Path, seed: int) -> None:
    random, rows = Random(seed), 60
    faults = {"create_lost": 2}
    with DemoServer(DemoOptions(batch=BatchOptions(seconds=1.0, faults=faults))) as demo:
        editions = {1}
        for _ in range(14):
            edition = random.randint(0, 2)
            editions.add(edition)
            write_job(tmp_path, demo, rows, edition)
            way = random.random()
            if way < 0.4:
                kill_at(tmp_path, random.choice(STEPS), random.randint(1, 2))
            elif way < 0.8:
                kill_after(tmp_path, random.uniform(0.2, 2.5))
            else:
                assert command("run", "job.yaml", "--no-wait", cwd=tmp_path).returncode in {0, 4}
        for edition in (1, *editions):
            write_job(tmp_path, demo, rows, edition)
            done = command("run", "job.yaml", cwd=tmp_path)
            if done.returncode == 4:
                # A batch of this very prompt ended before its rows were read, and they had records of another prompt.
                assert "answers came just before their rows were read" in done.stderr, done.stderr
                done = command("run", "job.yaml", cwd=tmp_path)
            assert done.returncode == 0, done.stderr
            records = batchchat.read_output(tmp_path / "out").to_pylist()
            assert sorted(record["row_index"] for record in records) == list(range(rows))
            assert len({record["prompt_id"] for record in records}) == 1
        lines = demo.stats().batch.lines
        assert lines <= rows * len(editions), "a line was run twice"
        assert read_state(tmp_path / "out").spend.requests == lines, "the ledger differs from what was answered"
        assert verify(tmp_path / "out").problems == []
