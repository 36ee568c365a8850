"""Workers on a real Ray cluster: a node killed, the coordinator killed, the head killed. Nothing is lost."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from batchchat.demo import DemoOptions, DemoServer
from batchchat.store import verify
from tests.integration.jobs import ROOT, make_job, texts, write_rows
from tests.integration.processes import environment, start, wait_for
from tests.worker_tasks import ids_of

ROWS = 400
CONCURRENCY = 8
_RUN = ("run", "job.yaml", "--workers", "2", "--json", "--log-format", "json", "--ray")

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(300),
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install '.[test,ray]'"),
]


class Nodes:
    """A cluster of a head and two nodes with two CPUs each."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.ray_nodes"],
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stdout is not None
        self.address, *self.ids = self.process.stdout.readline().split() or ["the cluster did not start"]

    def order(self, words: str) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(words + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    cluster = Nodes()
    yield cluster
    cluster.process.communicate(timeout=60)


@pytest.fixture
def demo() -> Iterator[DemoServer]:
    with DemoServer(DemoOptions(latency_s=0.2, api_key="a-key-of-tests")) as server:
        yield server


def _job(folder: Path, demo: DemoServer, **fields: Any) -> None:
    write_rows(folder / "rows.jsonl", texts(ROWS))
    job = make_job(
        folder,
        demo.base_url,
        output={"path": str(folder / "out"), "shards": 8, "part_rows": 20, "part_seconds": 0.5},
        limits={"concurrency": CONCURRENCY},
        provider={"profile": "demo", "base_url": demo.base_url, "api_key_env": "RAY_TEST_KEY"},
        **fields,
    )
    (folder / "job.yaml").write_text(
        json.dumps({name: value for name, value in job.snapshot().items() if name != "file"})
    )


def _begin(folder: Path, nodes: Nodes) -> Any:
    return start(*_RUN, nodes.address, cwd=folder, env={"RAY_TEST_KEY": "a-key-of-tests"})


def _check(folder: Path, demo: DemoServer, losses: int) -> None:
    """Every answer is there once; asked again was at most what was in flight, or not committed, at each loss."""
    ids = ids_of(folder / "out")
    assert len(ids) == len(set(ids)) == ROWS
    assert verify(folder / "out").ok
    assert ROWS <= demo.stats().requests <= ROWS + 2 * CONCURRENCY * losses


def _finish(process: Any) -> dict[str, Any]:
    out, err = process.communicate()
    assert process.returncode == 0, err
    summary: dict[str, Any] = json.loads(out)
    return summary


def test_a_killed_node_costs_what_it_had_in_flight(tmp_path: Path, nodes: Nodes, demo: DemoServer) -> None:
    _job(tmp_path, demo)
    process = _begin(tmp_path, nodes)
    wait_for(lambda: demo.stats().requests > 60 or process.poll() is not None, seconds=60)
    nodes.order("kill 0")
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert json.loads(out)["ok"] == ROWS
    died = [json.loads(line) for line in err.splitlines() if '"worker_died"' in line]
    assert died, err
    assert f"its Ray node {nodes.ids[0][:8]}" in died[0]["message"]
    assert "a-key-of-tests" not in err
    _check(tmp_path, demo, len(died))


def test_a_killed_coordinator_leaves_an_output_that_goes_on(tmp_path: Path, nodes: Nodes, demo: DemoServer) -> None:
    _job(tmp_path, demo)
    process = _begin(tmp_path, nodes)
    wait_for(lambda: demo.stats().requests > 60 or process.poll() is not None, seconds=60)
    process.kill()
    process.communicate()
    summary = _finish(_begin(tmp_path, nodes))
    assert summary["ok"] == ROWS
    assert summary["sent"] < ROWS
    _check(tmp_path, demo, losses=1)


def test_a_killed_head_loses_nothing(tmp_path: Path, nodes: Nodes, demo: DemoServer) -> None:
    _job(tmp_path, demo)
    process = _begin(tmp_path, nodes)
    wait_for(lambda: demo.stats().requests > 60 or process.poll() is not None, seconds=60)
    nodes.order("kill-head")
    _, err = process.communicate()
    counted = len(ids_of(tmp_path / "out"))
    assert counted > 60, err
    # Without a head the cluster takes no other run; one on this machine goes on.
    local = start("run", "job.yaml", "--workers", "2", "--json", cwd=tmp_path, env={"RAY_TEST_KEY": "a-key-of-tests"})
    assert _finish(local)["ok"] == ROWS
    _check(tmp_path, demo, losses=1)
