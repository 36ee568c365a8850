"""Cascades that are killed: an answer of a step that the journal holds is never asked for again.

The server counts each request's body, and the body names the model. So of each row it is known which steps were asked,
and how often.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml

import batchchat
from batchchat.demo import DemoOptions, DemoServer
from batchchat.identity import Identity
from batchchat.runner.questions import compile_questions
from batchchat.store import OK, read_state, verify
from tests.integration import processes
from tests.integration.crash_child import BETWEEN
from tests.integration.jobs import query, texts, write_rows
from tests.integration.processes import wait_for
from tests.store_cases import POINTS

SMALL, LARGE = "demo-small", "demo-large"
SCHEMA = {
    "type": "object",
    "properties": {"label": {"enum": ["yes", "no"]}},
    "required": ["label"],
    "additionalProperties": False,
}


class Series:
    """One output, one server, and one run after another. `kept` are bodies with a kept answer, and how often sent."""

    def __init__(self, folder: Path, demo: DemoServer, rows: int) -> None:
        self.folder = folder
        self.demo = demo
        self.kills = 0
        self.between_steps: list[int] = []
        self.kept: dict[str, int] = {}
        write_rows(folder / "rows.jsonl", texts(rows))
        data: dict[str, Any] = {
            "name": "killed",
            "input": {"path": "rows.jsonl", "key": "id"},
            "output": {"path": "out", "part_rows": 25, "part_seconds": 0.1},
            "provider": {"profile": "demo", "base_url": demo.base_url},
            # The large model is asked slowly, so that rows wait between the two steps, however quick the machine is.
            "cascade": [
                {"model": SMALL, "accept": {"confidence": 0.85}},
                {"model": LARGE, "limits": {"requests_per_minute": 120}},
            ],
            "messages": [{"role": "user", "content": "Labels: yes, no\n{{ text }}"}],
            "params": {"max_tokens": 60},
            "response": {"schema": SCHEMA, "confidence": "logprobs"},
            "limits": {"concurrency": 8},
        }
        self.data = data
        self.write()
        job = batchchat.load_job(folder / "job.yaml")
        template = compile_questions(job).template
        identity = Identity(job.resolved_provider().identity)
        self.bodies: dict[str, bytes] = {}
        for row in texts(rows):
            rendered = template.render(row)
            self.bodies[identity.custom_id(rendered.digest, key=str(row["id"]))] = rendered.body

    def write(self) -> None:
        (self.folder / "job.yaml").write_text(yaml.safe_dump(self.data), encoding="utf-8")

    def hurry(self) -> None:
        """Ask the large model as fast as it goes from now on."""
        del self.data["cascade"][1]["limits"]
        self.write()

    def run(self, place: str, number: int) -> int:
        """Let a run kill itself when it comes to a named step of the store for so many times; return how it ended."""
        entry = "tests.integration.crash_child:main"
        done = processes.batchchat("job.yaml", place, str(number), cwd=self.folder, entry=entry)
        assert done.returncode in {0, -signal.SIGKILL}, done.stderr
        wait_for(lambda: self.demo.stats().in_flight == 0)
        self.kills += done.returncode == -signal.SIGKILL
        self.look()
        return done.returncode

    def look(self) -> None:
        """Find the bodies whose answers are kept now: none of those found before was sent once more."""
        if not (self.folder / "out" / "_batchchat" / "schema.json").exists():
            return
        received = {body: count for body, (count, _) in self.demo.bodies().items()}
        again = [body for body, count in self.kept.items() if received[body] != count]
        assert again == [], "an answer that the journal held was asked for again"
        state = read_state(self.folder / "out")
        self.between_steps.append(len(state.answers))
        index, _ = state.load_index()
        for custom_id, body in self.bodies.items():
            settled = index.get(custom_id) == OK
            if settled or custom_id in state.answers:
                own = _digest(body)
                self.kept.setdefault(own, received[own])
            further = _digest(body.replace(SMALL.encode(), LARGE.encode(), 1))
            if settled and further in received:
                self.kept.setdefault(further, received[further])
        assert verify(self.folder / "out").problems == []


def _digest(body: bytes) -> str:
    return blake2b(body, digest_size=16).hexdigest()


def run_series(folder: Path, seed: int, places: Sequence[tuple[str, int]], rows: int, *, slow: bool = True) -> Series:
    """Kill run after run, each when it comes to a place for so many times; then let one go to its end."""
    with DemoServer(DemoOptions(latency_s=0.03, seed=seed)) as demo:
        series = Series(folder, demo, rows)
        if not slow:
            series.hurry()
        for place, number in places:
            if series.run(place, number) >= 0:
                break
        if slow:
            series.hurry()
        assert series.run("nowhere", 1) == 0
        state = read_state(folder / "out")
        assert state.answers == {}
        counted = query(folder, "select count(*), count(distinct key), count(*) filter (step = 2) from data")[0]
        assert counted[:2] == (rows, rows)
        assert 0 < counted[2] < rows
        earlier = query(folder, "select count(*), max(earlier_steps[1].confidence) from data where step = 2")[0]
        assert earlier[0] == counted[2]
        assert earlier[1] < 0.85
        # The ledger has every answer that is kept, of both steps.
        assert state.spend.requests >= rows + counted[2]
        return series


@pytest.mark.timeout(120)
def test_no_answer_of_a_step_is_asked_for_again_after_a_kill(tmp_path: Path) -> None:
    places = [(BETWEEN, 1), ("commit.written", 1), ("seal.published", 1), (BETWEEN, 1)]
    series = run_series(tmp_path, 3, places, 60)
    # Each run comes to its place, and each kill but that within a seal leaves rows between two steps for sure.
    assert series.kills == 4
    assert min(series.between_steps[0], series.between_steps[3]) >= 1
    assert series.between_steps[-1] == 0


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [21, 22])
def test_the_same_with_many_kills(tmp_path: Path, seed: int) -> None:
    random = Random(seed)
    turns = ["commit.after", "commit.written", "seal.published", *POINTS, "recover.sealed", BETWEEN]
    places = [turns[turn % len(turns)] for turn in range(40)]
    numbers = [random.randint(1, 3) if place.startswith("commit") else 1 for place in places]
    series = run_series(tmp_path, seed, list(zip(places, numbers, strict=True)), 400, slow=False)
    assert series.kills >= 10


@pytest.mark.thorough
def test_the_sample_job_asks_each_step_and_tells_its_cost(tmp_path: Path) -> None:
    repo = Path(__file__).parents[2]
    data = yaml.safe_load((repo / "jobs" / "cascade.yaml").read_text(encoding="utf-8"))
    data["input"]["path"] = str(repo / "sample_data" / "labelled-tickets.jsonl")
    data["output"] = "out"
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(data), encoding="utf-8")
    done = processes.batchchat("run", "job.yaml", "--json", "--quiet", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    steps = json.loads(done.stdout)["steps"]
    assert [(one["step"], one["model"]) for one in steps] == [(1, SMALL), (2, LARGE)]
    assert steps[0]["passed_on"] == steps[1]["ok"] > 20
    right: dict[Any, Any] = dict(query(tmp_path, "select step, avg((parsed.label = label)::int) from data group by 1"))
    assert min(right.values()) > 0.6
    status = processes.batchchat("status", "out", "--json", cwd=tmp_path)
    for told, step in zip(json.loads(status.stdout)["steps"], steps, strict=True):
        assert told == {**step, "cost": pytest.approx(step["cost"])}
    page = processes.batchchat("report", "out", "-o", "report.html", cwd=tmp_path)
    assert page.returncode == 0, page.stderr
    assert f"Step 2: {LARGE}" in (tmp_path / "report.html").read_text(encoding="utf-8")
    # A higher threshold asks nothing again, and the plan says so.
    data["cascade"][0]["accept"]["confidence"] = 0.95
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(data), encoding="utf-8")
    plan = processes.batchchat("plan", "job.yaml", "--json", cwd=tmp_path)
    told = json.loads(plan.stdout)
    assert told["requests"] == 0
    assert any("below the threshold of today" in warning for warning in told["warnings"])
    assert 0 < told["steps"][1]["share"] < 1
