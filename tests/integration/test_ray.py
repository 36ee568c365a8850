"""Workers on a real Ray cluster: a node killed, the coordinator killed, the head killed. Nothing is lost."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from batchchat.demo import DemoOptions, DemoServer
from batchchat.store import verify
from tests.integration.buckets import BUCKET, Store, open_bucket
from tests.integration.jobs import ROOT, make_job, texts, write_rows
from tests.integration.processes import Process, environment, start, wait_for
from tests.worker_tasks import ids_of

ROWS = 400
CONCURRENCY = 8
_RUN = ("run", "job.yaml", "--workers", "2", "--json", "--log-format", "json", "--ray")
_LONG_S = 400.0
"""Seconds for what ends by itself. Ray starts a dozen processes, each of which imports for seconds: on a busy machine
that takes minutes."""

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(1_200),
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install '.[test,ray]'"),
]


class Nodes:
    """A cluster of a head and two nodes with two CPUs each."""

    def __init__(self, log: Path) -> None:
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.integration.ray_nodes"],
                cwd=ROOT,
                env=environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, log.read_text()[-3_000:]
        self.address, *self.ids = line.split()

    def order(self, words: str) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(words + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    cluster = Nodes(tmp_path / "nodes.log")
    yield cluster
    cluster.process.communicate(timeout=_LONG_S)


@pytest.fixture
def demo() -> Iterator[DemoServer]:
    with DemoServer(DemoOptions(latency_s=0.2, api_key="a-key-of-tests")) as server:
        yield server


class Place:
    """Where the output lies: in a folder, or in a bucket."""

    def __init__(self, folder: Path, store: Store | None) -> None:
        self.store = store
        self.output = str(folder / "out") if store is None else f"s3://{BUCKET}/{folder.name}"
        self.env = {"RAY_TEST_KEY": "a-key-of-tests", **({} if store is None else store.env)}

    def ids(self) -> list[str]:
        """Return the identities in the dataset, sorted."""
        if self.store is None:
            return ids_of(Path(self.output))
        found: list[str] = []
        for name in self.store.names(f"{self.output.rpartition('/')[2]}/data/"):
            table = pq.read_table(io.BytesIO(self.store.read(name)), columns=["custom_id"])
            found += table.column(0).to_pylist()
        return sorted(found)


@pytest.fixture(params=["folder", "bucket"])
def place(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Place]:
    if request.param == "folder":
        yield Place(tmp_path, None)
        return
    pytest.importorskip("obstore")
    with open_bucket() as store:
        yield Place(tmp_path, store)


def _job(folder: Path, demo: DemoServer, place: Place) -> None:
    write_rows(folder / "rows.jsonl", texts(ROWS))
    job = make_job(
        folder,
        demo.base_url,
        output={"path": place.output, "shards": 8, "part_rows": 20, "part_seconds": 0.5},
        limits={"concurrency": CONCURRENCY},
        provider={"profile": "demo", "base_url": demo.base_url, "api_key_env": "RAY_TEST_KEY"},
    )
    (folder / "job.yaml").write_text(
        json.dumps({name: value for name, value in job.snapshot().items() if name != "file"})
    )


def _begin(folder: Path, nodes: Nodes, demo: DemoServer, place: Place) -> Process:
    """Start the run, and wait until it is in the middle of its work."""
    before = demo.stats().requests
    process = start(*_RUN, nodes.address, cwd=folder, env=place.env)
    wait_for(lambda: demo.stats().requests > before + 60 or process.poll() is not None, seconds=_LONG_S)
    assert process.poll() is None, process.communicate()
    return process


def _check(demo: DemoServer, place: Place, losses: int) -> None:
    """Every answer is there once; asked again was at most what was in flight, or not committed, at each loss."""
    ids = place.ids()
    assert len(ids) == len(set(ids)) == ROWS
    with pytest.MonkeyPatch.context() as patch:
        for name, value in place.env.items():
            patch.setenv(name, value)
        assert verify(place.output).ok
    assert ROWS <= demo.stats().requests <= ROWS + 2 * CONCURRENCY * losses


def _finish(process: Process, demo: DemoServer) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Wait for the end of a run that gets all done. Return its summary, and what it told of workers that died."""
    out, err = process.communicate(timeout=_LONG_S)
    assert process.returncode == 0, err
    assert "a-key-of-tests" not in out + err
    summary: dict[str, Any] = json.loads(out)
    assert (summary["ok"], summary["open"]) == (ROWS, 0)
    died = [json.loads(line) for line in err.splitlines() if '"worker_died"' in line]
    print(err)
    return summary, died


def test_a_killed_node_costs_what_it_had_in_flight(
    tmp_path: Path, nodes: Nodes, demo: DemoServer, place: Place
) -> None:
    _job(tmp_path, demo, place)
    process = _begin(tmp_path, nodes, demo, place)
    nodes.order("kill 0")
    _, died = _finish(process, demo)
    assert died
    assert f"its Ray node {nodes.ids[0][:8]}" in died[0]["message"]
    _check(demo, place, len(died))


def test_a_killed_worker_costs_what_it_had_in_flight(
    tmp_path: Path, nodes: Nodes, demo: DemoServer, place: Place
) -> None:
    _job(tmp_path, demo, place)
    process = _begin(tmp_path, nodes, demo, place)
    nodes.order("kill-worker")
    _, died = _finish(process, demo)
    assert len(died) == 1
    assert "its process ended" in died[0]["message"]
    _check(demo, place, 1)


def test_a_killed_coordinator_leaves_an_output_that_goes_on(
    tmp_path: Path, nodes: Nodes, demo: DemoServer, place: Place
) -> None:
    _job(tmp_path, demo, place)
    process = _begin(tmp_path, nodes, demo, place)
    process.kill()
    process.communicate()
    summary, _ = _finish(_begin(tmp_path, nodes, demo, place), demo)
    assert summary["sent"] < ROWS
    _check(demo, place, losses=1)


def test_a_killed_head_loses_nothing(tmp_path: Path, nodes: Nodes, demo: DemoServer, place: Place) -> None:
    _job(tmp_path, demo, place)
    process = _begin(tmp_path, nodes, demo, place)
    nodes.order("kill-head")
    _, err = process.communicate(timeout=_LONG_S)
    assert len(place.ids()) > 60, err
    # Without a head the cluster takes no other run; one on this machine goes on.
    local = start("run", "job.yaml", "--workers", "2", "--json", "--log-format", "json", cwd=tmp_path, env=place.env)
    _finish(local, demo)
    _check(demo, place, losses=1)
