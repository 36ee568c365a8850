"""Runs into a bucket, by processes of their own: faults of the store, kills, stalls, and every command that looks."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from random import Random
from typing import Any

import anyio
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner

from batchchat.cli import cli
from batchchat.controlling import control_run
from batchchat.demo import DemoOptions, DemoServer
from batchchat.errors import StorageError, UsageError
from batchchat.events import Event, RunSummary, Snapshot
from batchchat.history import history_of
from batchchat.identity import Identity
from batchchat.inspection import status_of
from batchchat.job import load_job
from batchchat.labelling.calibrating import gold_of_reviews
from batchchat.labelling.reviews import read_reviews
from batchchat.report import write_run_report
from batchchat.store import is_output, read_output, read_state, verify
from batchchat.store.location.choice import location_of
from batchchat.store.sharding import shard_place
from batchchat.template import compile_template
from batchchat.workers import run_with_workers
from batchchat.workers.processes import LocalProcess, LocalProcesses
from tests.integration.buckets import BUCKET, Store, open_bucket
from tests.integration.jobs import run, texts, write_rows
from tests.integration.processes import Process, start, wait_for
from tests.integration.processes import batchchat as command

pytest.importorskip("obstore")
URL = f"s3://{BUCKET}/run"


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with open_bucket() as bucket:
        yield bucket


@pytest.fixture
def demo() -> Iterator[DemoServer]:
    with DemoServer(DemoOptions(latency_s=0.02)) as server:
        yield server


class Bench:
    """A job into a bucket, with a server that counts what it is asked."""

    def __init__(self, folder: Path, store: Store, demo: DemoServer, name: str) -> None:
        self.folder, self.store, self.demo = folder, store, demo
        self.url = f"s3://{BUCKET}/{name}"
        self.name = name
        self.env = {**store.env, "XDG_CACHE_HOME": str(folder / "cache")}

    def write(self, rows: int, **fields: Any) -> None:
        write_rows(self.folder / "rows.jsonl", texts(rows))
        output = {"path": self.url, "part_rows": 50, "part_seconds": 0.5, **fields.pop("output", {})}
        job = {
            "name": "bucket",
            "input": {"path": "rows.jsonl", "key": "id"},
            "output": output,
            "provider": {"profile": "demo", "base_url": self.demo.base_url},
            "model": "llama-3.1-8b-instruct",
            "messages": [{"role": "user", "content": "{{ text }}"}],
            "limits": {"concurrency": 8},
            **fields,
        }
        (self.folder / "job.yaml").write_text(yaml.safe_dump(job), encoding="utf-8")

    def start(self, *more: str, **env: str) -> Process:
        return start("run", "job.yaml", "--log-format", "json", *more, cwd=self.folder, env={**self.env, **env})

    def run(self, *more: str, code: int = 0) -> tuple[dict[str, Any], str]:
        done = self.ask("run", "job.yaml", "--json", *more, code=code)
        return json.loads(done.stdout) if done.stdout else {}, done.stderr

    def ask(self, *words: str, code: int = 0) -> Any:
        done = command(*words, cwd=self.folder, env=self.env)
        assert done.returncode == code, (done.returncode, done.stdout[-500:], done.stderr[-1500:])
        return done

    def dataset(self) -> Counter[str]:
        """Return how often each custom_id is in the dataset, as any reader of Parquet finds it."""
        found: Counter[str] = Counter()
        for name in self.store.names(f"{self.name}/data/"):
            table = pq.read_table(io.BytesIO(self.store.read(name)), columns=["custom_id", "status"])
            found.update(table.column(0).to_pylist())
        return found

    def check(self, rows: int, *, asked: int) -> None:
        """Check that every row is there once, and that at most so many were asked again."""
        found = self.dataset()
        assert len(found) == rows
        assert set(found.values()) == {1}
        assert self.demo.stats().requests <= rows + asked, self.demo.stats().requests


@pytest.fixture
def bench(tmp_path: Path, store: Store, demo: DemoServer, request: pytest.FixtureRequest) -> Iterator[Bench]:
    yield Bench(tmp_path, store, demo, request.node.name.replace("[", "-").strip("]"))
    store.proxy.state.shares.clear()
    store.proxy.state.faults.clear()
    store.proxy.state.away = False


def test_a_run_into_a_bucket_and_every_command_that_looks_at_it(bench: Bench) -> None:
    bench.write(120)
    summary, _ = bench.run()
    assert summary["ok"] == 120
    bench.check(120, asked=0)
    again, _ = bench.run()
    assert again["sent"] == 0
    with patched(bench.env):
        status = status_of(bench.url)
        assert (status.ok, status.open, status.output) == (120, 0, bench.url)
        assert len(history_of(bench.url).runs) == 2
        verified = verify(bench.url)
        assert (verified.records, verified.ok) == (120, True)
        assert read_output(bench.url).num_rows == 120
        write_run_report(bench.url, bench.folder / "report.html")
    bench.ask("export", bench.url, "-o", "out.csv")
    assert len((bench.folder / "out.csv").read_text().splitlines()) == 121
    assert "0 requests to send" in bench.ask("plan", "job.yaml").stdout
    bench.ask("clean", bench.url, code=2)
    # Nothing is left on this machine but what may be lost.
    assert {path.name for path in bench.folder.iterdir()} == {
        "cache",
        "job.yaml",
        "rows.jsonl",
        "out.csv",
        "report.html",
    }


def test_people_review_an_output_in_a_bucket_and_a_threshold_is_found_with_their_labels(bench: Bench) -> None:
    bench.write(12, messages=[{"role": "user", "content": "Labels: yes, no\n{{ text }}"}])
    with patched(bench.env):
        assert run(load_job(bench.folder / "job.yaml")).ok == 12
        form = bench.folder / "form.jsonl"
        invoked("review", bench.url, "-o", str(form), "--rows", "8", "--random", "8")
        answers = [{**json.loads(line), "accept": True} for line in form.read_text(encoding="utf-8").splitlines()]
        write_rows(form, answers)
        invoked("review", bench.url, "--take", str(form), "--reviewer", "one")
        assert len(read_reviews(bench.url)) == 8
        assert json.loads(invoked("agreement", bench.url, "--json"))["fields"]
        gold = gold_of_reviews(load_job(bench.folder / "job.yaml"), bench.url, field=None)
        assert len(gold.rows) == 8


def invoked(*arguments: str) -> str:
    """Run a command in this process, and return what it prints."""
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


@pytest.mark.long
def test_another_job_reads_a_bucket_as_its_input(bench: Bench) -> None:
    bench.write(30)
    bench.run()
    first = bench.url
    bench.url += "-second"
    bench.write(30, input=first, messages=[{"role": "user", "content": "{{ completion }}"}])
    summary, _ = bench.run()
    assert summary["ok"] == 30


@pytest.mark.long
def test_fresh_copies_the_old_output_and_the_numbers_of_journals_go_on(bench: Bench) -> None:
    bench.write(40)
    bench.run()
    old = set(bench.dataset())
    _, said = bench.run("--fresh")
    bench.check(40, asked=40)
    names = bench.store.names(f"{bench.name}.old-")
    assert any(name.endswith("data/part-00000.parquet") for name in names)
    kept = names[0].split("/")[0]
    assert f"s3://{BUCKET}/{kept}" in said
    with patched(bench.env):
        assert status_of(f"s3://{BUCKET}/{kept}").ok == 40
    assert set(bench.dataset()) == old
    assert json.loads(bench.store.read(f"{bench.name}/_batchchat/hold.json"))["generation"] == 2


@pytest.mark.thorough
def test_a_store_with_faults_loses_nothing_and_asks_nothing_again(bench: Bench) -> None:
    bench.store.proxy.state.shares.update({"lost": 0.05, "cut": 0.05, "503": 0.05, "delay": 0.1})
    bench.write(200)
    summary, _ = bench.run()
    assert summary["ok"] == 200
    bench.check(200, asked=0)


@pytest.mark.thorough
def test_a_store_that_is_away_is_waited_for_and_then_ends_the_run(bench: Bench) -> None:
    bench.write(400, retry={"outage": "1s"})
    process = bench.start()
    wait_for(lambda: bench.demo.stats().requests > 40)
    bench.store.proxy.state.away = True
    assert process.wait(60) == 74
    said = process.communicate()[1]
    assert "the store did not answer" in said
    bench.store.proxy.state.away = False
    requests = bench.demo.stats().requests
    counted = len(bench.dataset())
    bench.run()
    bench.check(400, asked=requests - counted)


@pytest.mark.thorough
def test_a_run_is_held_out_of_an_output_that_another_holds_until_it_takes_it_over(bench: Bench) -> None:
    # Slow, so that it is still at work when the others come.
    bench.write(300, limits={"concurrency": 8, "requests_per_minute": 2_400})
    first = bench.start()
    wait_for(lambda: bench.demo.stats().requests > 20)
    with patched(bench.env):
        assert control_run(bench.url, "pause", wait_s=30).pid == first.pid
        running = status_of(bench.url).running
    assert running is not None
    assert running.pid == first.pid
    done = bench.ask("run", "job.yaml", code=75)
    assert f"pid {first.pid}" in done.stderr
    assert "--take-over" in done.stderr
    first.send_signal(signal.SIGSTOP)
    before = bench.demo.stats().requests
    bench.run("--take-over", "--set", "limits.requests_per_minute=60000")
    first.send_signal(signal.SIGCONT)
    assert first.wait(60) == 75
    assert "has taken the output" in first.communicate()[1]
    bench.check(300, asked=before)
    with patched(bench.env):
        assert verify(bench.url).ok


class Kills:
    """A series of runs into one output that are killed, or stopped and overtaken; what counted must stay.

    `counted` are the records of the pass under way that were ever seen to count. No request of theirs may be made
    again, but by a run that was stopped: it does not know yet that another one has taken its place.
    """

    def __init__(self, bench: Bench, seed: int, rows: int) -> None:
        self.bench = bench
        self.rows = rows
        self.random = Random(seed)
        self.by_kind: Counter[str] = Counter()
        self.passes = self.lost = self.twice = self.asked_again = self.in_flight = self.by_stopped = 0
        self._stopped: Process | None = None
        self._begin()

    def _begin(self) -> None:
        """Begin another output, whose requests the server has not met."""
        bench, number = self.bench, self.passes
        bench.name, bench.url = f"{bench.name}x", f"{bench.url}x"
        messages = [{"role": "user", "content": f"{number}: {{{{ text }}}}"}]
        bench.write(self.rows, output={"part_rows": 40, "part_seconds": 0.3}, messages=messages)
        job = load_job(bench.folder / "job.yaml")
        template = compile_template(job.messages, job.params.as_body(), model=job.model)
        identity = Identity(job.resolved_provider().identity)
        self.bodies: dict[str, str] = {}
        for row in texts(self.rows):
            rendered = template.render(row)
            custom_id = identity.custom_id(rendered.digest, key=str(row["id"]))
            self.bodies[custom_id] = blake2b(rendered.body, digest_size=16).hexdigest()
        self.counted: set[str] = set()
        self.received: dict[str, int] = {}

    def once(self) -> None:
        """Start a run, and end it somewhere: by SIGKILL, or by SIGSTOP, and then another run takes the output over."""
        bench, before = self.bench, self.bench.demo.stats().requests
        process = bench.start("--take-over")
        goal = before + self.random.randint(1, 150)
        wait_for(lambda: bench.demo.stats().requests >= goal or process.poll() is not None)
        with suppress(subprocess.TimeoutExpired):
            process.wait(self.random.uniform(0, 0.5))
        if process.poll() is not None:
            self.by_kind["ended"] += 1
            process.communicate()
        elif self.random.random() < 0.25 and self._stopped is None:
            process.send_signal(signal.SIGSTOP)
            self._stopped = process
            self.by_kind["stop"] += 1
        else:
            process.kill()
            process.communicate()
            self.by_kind["kill"] += 1
        self._look()
        if self._stopped is not None and self._stopped is not process:
            # Another run has taken the output over since: this one must see it, and count nothing.
            asked = bench.demo.stats().requests
            self._stopped.send_signal(signal.SIGCONT)
            assert self._stopped.wait(60) == 75
            self._stopped.communicate()
            self._stopped = None
            self.by_stopped += bench.demo.stats().requests - asked
            self.received.clear()
            self._look()
        if len(self.counted) == self.rows:
            self._end_stopped()
            self.passes += 1
            self._begin()

    def _look(self) -> None:
        """Compare what counts now with all that ever counted, and with what the server was asked."""
        wait_for(lambda: self.bench.demo.stats().in_flight == 0)
        found: Counter[str] = Counter()
        with patched(self.bench.env):
            if not is_output(self.bench.url):
                assert not self.counted
                return  # killed before it was one
            for batch in read_state(self.bench.url).records(["custom_id"]):
                found.update(batch.column(0).to_pylist())
        self.lost += len(self.counted - set(found))
        self.twice += sum(1 for count in found.values() if count > 1)
        self.twice += sum(1 for count in self.bench.dataset().values() if count > 1)
        self.counted |= set(found)
        bodies = self.bench.demo.bodies()
        for custom_id in self.counted:
            received = bodies[self.bodies[custom_id]][0]
            self.asked_again += received - self.received.setdefault(custom_id, received)
        mine = set(self.bodies.values())
        self.in_flight = max(self.in_flight, len({body for body in bodies if body in mine}) - len(self.counted))

    def _end_stopped(self) -> None:
        if self._stopped is not None:
            self._stopped.kill()
            self._stopped.communicate()
            self._stopped = None

    def end(self) -> None:
        """End what is still stopped, let the last run end by itself, and hold all against what it should be."""
        self._end_stopped()
        self.bench.run("--take-over")
        self._look()
        assert len(self.counted) == self.rows
        assert set(self.bench.dataset()) == self.counted
        with patched(self.bench.env):
            assert verify(self.bench.url).ok
        assert (self.lost, self.twice, self.asked_again) == (0, 0, 0)


@contextmanager
def patched(env: dict[str, str]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in env.items():
            patch.setenv(name, value)
        yield


@pytest.mark.long
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("seed", range(4))
def test_many_kills_and_stalls_lose_nothing(bench: Bench, seed: int, record_property: Callable[..., None]) -> None:
    bench.store.proxy.state.shares.update({"lost": 0.01, "cut": 0.01, "503": 0.01})
    kills = Kills(bench, seed, 300)
    for _ in range(60):
        kills.once()
    kills.end()
    told = (
        f"{dict(kills.by_kind)}, {kills.passes} passes; of what counted {kills.lost} lost, {kills.twice} there twice, "
        f"{kills.asked_again} asked again; asked and not counted at a kill: at most {kills.in_flight}; asked by runs "
        f"that had lost their output: {kills.by_stopped}"
    )
    record_property("kills", told)
    print(told)


def test_a_run_that_is_killed_or_stopped_is_gone_on_with_at_once(bench: Bench) -> None:
    kills = Kills(bench, 7, 120)
    for _ in range(3):
        kills.once()
    kills.end()


def test_a_bucket_that_is_not_there_and_keys_that_are_wrong_are_told_at_once(bench: Bench) -> None:
    bench.write(5)
    for url, words in (("s3://no-such-bucket/x", "bucket"), (f"s3://{BUCKET}/nothing", "no output of batchchat")):
        with patched(bench.env), pytest.raises((UsageError, StorageError), match=words):
            status_of(url)


@pytest.mark.long
def test_an_output_with_shards_goes_into_a_bucket_and_is_read_as_one(bench: Bench) -> None:
    bench.write(90, output={"shards": 3})
    process = bench.start()
    wait_for(lambda: bench.demo.stats().requests > 30)
    process.kill()
    process.communicate()
    before = bench.demo.stats().requests
    bench.run()
    bench.check(90, asked=before)
    assert {name.split("/")[-1][:8] for name in bench.store.names(f"{bench.name}/data/")} == {
        "part-000",
        "part-001",
        "part-002",
    }
    with patched(bench.env):
        assert status_of(bench.url).ok == 90
        assert verify(bench.url).ok


class Elsewhere(LocalProcesses):
    """Starts each worker as if it were on a machine of its own. `started` are all, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.started: list[LocalProcess] = []

    async def start(self, name: str) -> LocalProcess:
        machine = f"node-{len(self.started)}"
        command = (sys.executable, "-m", "tests.integration.worker_elsewhere", machine)
        self.started.append(await LocalProcesses(command).start(name))
        return self.started[-1]


@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_shards_of_a_machine_that_is_lost_are_taken_at_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody but the coordinator can know that a holder on another machine is dead before its heartbeat is late."""
    for name, value in bench.env.items():
        monkeypatch.setenv(name, value)
    # So slow that a claim takes seconds: the worker still has it when the kill comes.
    bench.write(200, output={"shards": 8}, limits={"concurrency": 8, "requests_per_minute": 1_200})
    monkeypatch.chdir(bench.folder)
    launcher = Elsewhere()
    events: list[Event] = []

    def on_snapshot(snapshot: Snapshot) -> None:
        # It must hold shards when it dies: between two claims nobody would have to wait for it.
        if snapshot.ok > 10 and len(launcher.started) == 2 and "node-0" in held_by():
            os.kill(int(launcher.started[0].place.removeprefix("pid ")), signal.SIGKILL)

    def held_by() -> list[object]:
        root = location_of(bench.url)
        return [(shard_place(root, number).holder() or {}).get("host") for number in range(8)]

    async def main() -> RunSummary:
        job = load_job(bench.folder / "job.yaml")
        return await run_with_workers(
            job, 2, launcher=launcher, listener=events.append, on_snapshot=on_snapshot, environ={}
        )

    summary = anyio.run(main)
    assert (summary.exit_code, summary.ok, summary.open) == (0, 200, 0), summary.reason
    assert [event.name for event in events].count("worker_died") == 1
    assert "shards_held" not in {event.name for event in events}
    bench.check(200, asked=2 * 8)
