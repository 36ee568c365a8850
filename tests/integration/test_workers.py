"""Workers as processes: killed, stalled, with a coordinator that dies. Nothing is lost, and nothing is paid twice."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from random import Random
from typing import Any

import anyio
import pytest

from batchchat.demo import DemoOptions, DemoServer
from batchchat.events import Event, RunSummary, Snapshot
from batchchat.store import read_state, verify
from batchchat.workers import run_with_workers
from batchchat.workers.processes import LocalProcess, LocalProcesses
from tests.integration.jobs import make_job, texts, write_rows
from tests.integration.processes import Process, start, wait_for
from tests.integration.processes import batchchat as command
from tests.store_cases import POINTS
from tests.worker_tasks import ids_of

ROWS = 160
CONCURRENCY = 8


class Killing(LocalProcesses):
    """Starts the first workers as ones that kill themselves at a step of the store, and all others as usual."""

    def __init__(self, deaths: list[tuple[str, int]]) -> None:
        super().__init__()
        self.started: list[LocalProcess] = []
        self._deaths = list(deaths)

    async def start(self, name: str) -> LocalProcess:
        starter = LocalProcesses()
        if self._deaths:
            step, number = self._deaths.pop(0)
            starter = LocalProcesses((sys.executable, "-m", "tests.integration.worker_child", step, str(number)))
        worker = await starter.start(name)
        self.started.append(worker)
        return worker


class Series:
    """One output and one server; runs with workers, some of which die."""

    def __init__(self, folder: Path, demo: DemoServer, rows: int = ROWS) -> None:
        self.demo = demo
        self.folder = folder
        self.events: list[Event] = []
        self.stopped: list[int] = []
        self.launcher = Killing([])
        write_rows(folder / "rows.jsonl", texts(rows))
        self.job = make_job(
            folder,
            demo.base_url,
            output={"path": str(folder / "out"), "shards": 8, "part_rows": 10, "part_seconds": 0.1},
            limits={"concurrency": CONCURRENCY},
        )

    def run(self, workers: int, deaths: list[tuple[str, int]], *, stall: bool = False) -> RunSummary:
        """Run with workers; with `stall` the newest worker is stopped once some rows are done, and then continued."""
        self.launcher = Killing(deaths)

        def on_snapshot(snapshot: Snapshot) -> None:
            done = snapshot.ok + snapshot.done_before
            if stall and not self.stopped and done >= 10:
                pid = self.launcher.started[-1]._process.pid
                os.kill(pid, signal.SIGSTOP)
                self.stopped = [pid, done]
            elif len(self.stopped) == 2 and done >= self.stopped[1] + 20:
                os.kill(self.stopped[0], signal.SIGCONT)
                self.stopped.append(done)

        async def main() -> RunSummary:
            return await run_with_workers(
                self.job,
                workers,
                launcher=self.launcher,
                listener=self.events.append,
                on_snapshot=on_snapshot,
                environ={},
            )

        return anyio.run(main)

    def check(self, deaths: int) -> None:
        """Every counted answer is in the dataset once, and what was asked again was in flight or not committed."""
        ids = ids_of(self.folder / "out")
        assert len(ids) == len(set(ids)) == len(texts(ROWS))
        assert verify(self.folder / "out").ok
        asked = self.demo.stats().requests
        # A worker has as many in flight as all together at most; and as many answers that wait for their commit.
        assert ROWS <= asked <= ROWS + 2 * CONCURRENCY * deaths


@pytest.fixture
def demo() -> Any:
    with DemoServer(DemoOptions(latency_s=0.02)) as server:
        yield server


@pytest.mark.parametrize("stall", [False, pytest.param(True, marks=pytest.mark.thorough)])
def test_a_killed_worker_and_a_stalled_one_lose_nothing(tmp_path: Path, demo: DemoServer, stall: bool) -> None:
    series = Series(tmp_path, demo)
    summary = series.run(2, [("commit.written", 3)], stall=stall)
    died = [event for event in series.events if event.name == "worker_died"]
    assert len(died) == 1
    assert "killed by SIGKILL" in died[0].message
    assert len(series.stopped) == 3 * stall  # stopped, and continued while others worked
    assert (summary.exit_code, summary.ok, summary.new_ok, summary.open) == (0, ROWS, ROWS, 0)
    series.check(deaths=1)


def begun(series: Series, demo: DemoServer, requests: int, *options: str) -> Process:
    """Start a series' job from the command line with two workers, and wait until it has sent more than so much."""
    folder = series.folder
    data = {name: value for name, value in series.job.snapshot().items() if name != "file"}
    (folder / "job.yaml").write_text(json.dumps(data))
    process = start("run", "job.yaml", "--workers", "2", *options, cwd=folder)
    wait_for(lambda: demo.stats().requests > requests or process.poll() is not None)
    return process


@pytest.mark.thorough
def test_the_death_of_the_coordinator_ends_the_workers_in_order(tmp_path: Path, demo: DemoServer) -> None:
    series = Series(tmp_path, demo)
    process = begun(series, demo, 20, "--log-format", "json")
    process.kill()
    process.communicate()
    wait_for(lambda: read_state(tmp_path / "out").holder is None)
    counted = len(ids_of(tmp_path / "out"))
    assert 0 < counted == demo.stats().requests  # what was in flight was waited for, and sealed
    result = command("run", "job.yaml", "--workers", "2", "-q", "--json", cwd=tmp_path)
    summary = json.loads(result.stdout)
    assert (result.returncode, summary["ok"], summary["sent"]) == (0, ROWS, ROWS - counted)
    series.check(deaths=0)


@pytest.mark.thorough
def test_ctrl_c_drains_all_workers(tmp_path: Path) -> None:
    # So slow that the run is far from its end when the signal comes, however busy the machine is.
    with DemoServer(DemoOptions(latency_s=1.0)) as demo:
        series = Series(tmp_path, demo)
        process = begun(series, demo, 4, "--json")
        status = json.loads(command("status", "out", "--json", cwd=tmp_path).stdout)
        assert status["running"] is not None
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
        assert process.returncode == 130, err
        summary = json.loads(out)
        assert summary["exit_code"] == 130
        assert summary["ok"] + summary["open"] == ROWS
        assert summary["ok"] == demo.stats().requests == len(ids_of(tmp_path / "out"))


@pytest.mark.thorough
def test_control_reaches_all_workers(tmp_path: Path) -> None:
    with DemoServer(DemoOptions(latency_s=0.2)) as demo:
        series = Series(tmp_path, demo)
        process = begun(series, demo, 4, "--json")
        for words in (["pause"], ["set", "limits.concurrency=4"], ["resume"], ["stop"]):
            result = command("control", "out", *words, cwd=tmp_path)
            assert result.returncode == 0, result.stderr
        out, err = process.communicate()
        assert process.returncode == 130, err
        assert json.loads(out)["ok"] == demo.stats().requests


@pytest.mark.thorough
def test_a_worker_without_a_coordinator_ends(tmp_path: Path) -> None:
    result = command("worker", cwd=tmp_path)
    assert result.returncode == 70


@pytest.mark.long
@pytest.mark.parametrize("seed", range(20))
def test_many_deaths_at_many_steps(tmp_path: Path, demo: DemoServer, seed: int) -> None:
    random = Random(seed)
    series = Series(tmp_path, demo)
    deaths = [(random.choice(POINTS), random.randint(1, 5)) for _ in range(5)]
    summary = series.run(2, deaths, stall=seed % 3 == 0)
    died = sum(event.name == "worker_died" for event in series.events)
    if summary.exit_code == 70:  # three of them died over the same shards: another run goes on
        summary = series.run(2, [])
    assert (summary.exit_code, summary.ok, summary.open) == (0, ROWS, 0)
    series.check(died)
