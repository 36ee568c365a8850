"""Runs that are killed again and again, by processes and a server of their own: nothing lost, nothing paid twice.

Every kill is followed by a look at what had been counted, and what the server had answered; the next run, often one
with an edited prompt, must go on from there.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from random import Random
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

import batchchat
from batchchat.demo import DemoOptions, DemoServer
from batchchat.identity import Identity
from batchchat.job import Job
from batchchat.store import ARCHIVED, OK, read_state, verify
from batchchat.template import compile_template
from tests.integration.jobs import texts, write_rows
from tests.integration.processes import Process, start, wait_for
from tests.integration.processes import batchchat as command
from tests.store_cases import POINTS, RECOVERY_POINTS

ROWS = 180
PLACES = (*POINTS, *RECOVERY_POINTS)
FAULTS = {"error_503": 0.02, "drop": 0.02, "error_400": 0.02}


@dataclass
class Figures:
    """What a series of kills came to. `in_flight` and `answered_unkept` are sums over the kills."""

    kills: int = 0
    by_place: dict[str, int] = field(default_factory=dict)
    passes: int = 0
    editions: int = 1
    in_flight: int = 0
    answered_unkept: int = 0
    counted: int = 0
    lost: int = 0
    duplicated: int = 0
    paid_again: int = 0


class Series:
    """One output, one server, and one process after another.

    `counted` holds every completion that was ever seen committed, by custom_id; `received` how often the server had
    got its body by then, which must not grow any more.
    """

    def __init__(self, folder: Path, demo: DemoServer, seed: int) -> None:
        self.folder = folder
        self.demo = demo
        self.random = Random(seed)
        self.figures = Figures()
        self.counted: dict[str, str] = {}
        self.received: dict[str, int] = {}
        self.bodies: dict[str, str] = {}
        self.live: set[str] = set()
        self.places = self.random.sample(PLACES, len(PLACES))
        self.missed: set[str] = set()
        self.edition = 0
        self._before: dict[str, tuple[int, int]] = {}
        write_rows(folder / "rows.jsonl", texts(ROWS))
        self.edit(0)

    # --- the job

    def edit(self, edition: int) -> None:
        """Change the prompt of a third of the rows; those changed before get their first one back."""
        self.edition = edition
        mark = f"{{% if id % 3 == {edition % 3} %}}edition {edition}: {{% endif %}}" if edition else ""
        data = {
            "name": "killed",
            "input": {"path": "rows.jsonl", "key": "id"},
            "output": {"path": "out", "part_rows": 20, "part_seconds": 0.1},
            "provider": {"profile": "demo", "base_url": self.demo.base_url},
            "model": "llama-3.1-8b-instruct",
            "messages": [{"role": "user", "content": f"Labels: yes, no\n{mark}{{{{ text }}}}"}],
            "limits": {"concurrency": 8},
            "retry": {"attempts": 4, "failed": "all"},
        }
        (self.folder / "job.yaml").write_text(yaml.safe_dump(data), encoding="utf-8")
        job = batchchat.load_job(self.folder / "job.yaml")
        self.live = set(self._identities(job))

    def _identities(self, job: Job) -> Iterator[str]:
        template = compile_template(job.messages, job.params.as_body(), model=job.model)
        identity = Identity(job.resolved_provider().identity)
        for row in texts(ROWS):
            rendered = template.render(row)
            custom_id = identity.custom_id(rendered.digest, key=str(row["id"]))
            self.bodies[custom_id] = blake2b(rendered.body, digest_size=16).hexdigest()
            yield custom_id

    # --- processes

    def kill_at_random(self) -> bool:
        """Start `batchchat run` and kill it after a number of requests, or a time; False where it ended before."""
        process = start("run", "job.yaml", "--log-format", "json", cwd=self.folder)
        if self.random.random() < 0.2:  # in start and recovery
            try:
                process.wait(self.random.uniform(0, 0.3))
            except subprocess.TimeoutExpired:
                process.kill()
        else:
            goal = self.demo.stats().requests + self.random.randint(1, 90)
            try:
                wait_for(lambda: self.demo.stats().requests >= goal or process.poll() is not None)
            except AssertionError:
                process.kill()
                raise AssertionError(process.communicate()[1]) from None
            try:
                process.wait(self.random.uniform(0, 0.03))
            except subprocess.TimeoutExpired:
                process.kill()
        return self._killed(process, "anywhere")

    def kill_at_a_step(self) -> bool:
        """Start a run that kills itself at the named step that had the fewest kills; False where it never came there.

        It does so at any of the first times it comes there. Where it came too seldom for that, the next run there does
        so at the first time, so that no step is left out by chance.
        """
        place = min(self.places, key=lambda each: self.figures.by_place.get(each, 0))
        number = 1 if place.startswith("recover") or place in self.missed else self.random.randint(1, 6)
        entry = "tests.integration.crash_child:main"
        killed = self._killed(start("job.yaml", place, str(number), cwd=self.folder, entry=entry), place)
        (self.missed.discard if killed else self.missed.add)(place)
        return killed

    def _killed(self, process: Process, place: str) -> bool:
        _, told = process.communicate()
        assert process.returncode in {0, 1, -signal.SIGKILL}, told
        killed = process.returncode == -signal.SIGKILL
        if killed:
            self.figures.kills += 1
            self.figures.by_place[place] = self.figures.by_place.get(place, 0) + 1
        else:
            self.figures.passes += 1
        self.look(killed=killed)
        return killed

    # --- looking

    def look(self, *, killed: bool) -> None:
        """Check what is on the disk now, and remember what counts."""
        wait_for(lambda: self.demo.stats().in_flight == 0)
        bodies = self.demo.bodies()
        if (self.folder / "out" / "_batchchat" / "schema.json").exists():
            self._look_at_output(bodies, sealed=not killed)
        sent = {body for body, (received, _) in bodies.items() if received > self._before.get(body, (0, 0))[0]}
        paid = {body for body, (_, answered) in bodies.items() if answered > self._before.get(body, (0, 0))[1]}
        kept = {self.bodies[custom_id] for custom_id in self.counted}
        if killed:
            self.figures.in_flight += len(sent - kept)
            self.figures.answered_unkept += len(paid - kept)
        else:
            assert paid <= kept, "a run that ended by itself left answers behind"
        self._before = bodies

    def _look_at_output(self, bodies: dict[str, tuple[int, int]], *, sealed: bool) -> None:
        output = self.folder / "out"
        state = read_state(output)
        columns = ["custom_id", "key", "status", "completion"]
        records = [record for batch in state.records(columns) for record in batch.to_pylist()]
        for name in ("custom_id", "key"):
            self.figures.duplicated += len(records) - len({record[name] for record in records})
        parts = [row for path in (output / "data").glob("*.parquet") for row in pq.read_table(path).to_pylist()]
        self.figures.duplicated += len(parts) - len({row["key"] for row in parts})
        superseded = set() if sealed else {row["custom_id"] for row in parts}  # on their way to the archive
        index, _ = state.load_index()
        for record in records:
            if record["status"] == "ok":
                known = self.counted.setdefault(record["custom_id"], record["completion"])
                assert record["completion"] == known, "another answer took the place of one that counted"
        for custom_id in self.counted:
            self.figures.lost += index.get(custom_id) not in {OK, ARCHIVED} and custom_id not in superseded
            body = self.bodies[custom_id]
            received = bodies[body][0]
            assert self.received.setdefault(body, received) == received, "an answer that counted was asked for again"
        self.figures.counted = len(self.counted)
        assert state.spend.requests == len(self.counted), "the ledger differs from the answers that counted"
        assert verify(output).problems == []

    def finish(self) -> Figures:
        """Run to the end and hold the whole against what it should be."""
        done = command("run", "job.yaml", "--json", cwd=self.folder)
        assert done.returncode in {0, 1}, done.stderr
        self.look(killed=False)
        records = batchchat.read_output(self.folder / "out").to_pylist()
        assert {record["custom_id"] for record in records} == self.live
        assert [record["row_index"] for record in records] == list(range(ROWS))
        for record in records:
            if record["status"] == "ok":
                assert record["completion"] == self.counted[record["custom_id"]]
            else:
                assert record["error_kind"] in {"server", "connection", "invalid_request"}
        figures, bodies = self.figures, self.demo.bodies()
        figures.editions = self.edition + 1
        figures.paid_again = sum(max(0, answered - 1) for _, answered in bodies.values())
        return figures


def run_series(folder: Path, seed: int, kills: int) -> Figures:
    """Kill as often as asked, half at random instants and half at named steps."""
    with DemoServer(DemoOptions(latency_s=0.01, faults=FAULTS, seed=seed)) as demo:
        series = Series(folder, demo, seed)
        turn = 0
        while series.figures.kills < kills:
            turn += 1
            killed = series.kill_at_a_step() if turn % 2 else series.kill_at_random()
            if not killed or turn % 5 == 0:
                series.edit(series.edition + 1)
        return series.finish()


def check(figures: Figures) -> None:
    assert (figures.lost, figures.duplicated) == (0, 0)
    assert figures.paid_again <= figures.answered_unkept <= figures.in_flight


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("seed", "kills"),
    [(1, 4), pytest.param(1, 10, marks=pytest.mark.thorough), pytest.param(2, 10, marks=pytest.mark.long)],
)
def test_a_run_killed_again_and_again_loses_nothing_and_pays_nothing_twice(
    tmp_path: Path, seed: int, kills: int
) -> None:
    figures = run_series(tmp_path, seed, kills)
    check(figures)
    assert figures.kills >= kills
    if kills < 10:
        return  # too few for a second edit of the prompt, and for many answers
    assert figures.editions > 2
    assert figures.counted > ROWS


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", [11, 12, 13, 14])
def test_the_same_with_two_hundred_kills(tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[Any]) -> None:
    figures = run_series(tmp_path, seed, 55)
    with capsys.disabled():
        print(f"\n{figures}")
    check(figures)
    # Also `recover.sealed`, to which a run comes only where the one before it left a journal behind.
    assert set(figures.by_place) == {*PLACES, "anywhere"}
