"""Runs with corrections under way that are killed: an answer that the journal holds is never asked for again.

The server counts each request's body. Of every answer that a look into the journal finds, whether it settled its row
or a correction follows it, the body that brought it must not reach the server once more.
"""

from __future__ import annotations

import signal
from hashlib import blake2b
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml

import batchchat
from batchchat.acceptance import AskAgain, go_on, resume
from batchchat.demo import DemoOptions, DemoServer
from batchchat.identity import Identity
from batchchat.records import Request
from batchchat.runner.questions import compile_questions
from batchchat.store import OK, read_state, verify
from tests.integration import processes
from tests.integration.jobs import query, texts, write_rows
from tests.integration.processes import wait_for
from tests.store_cases import POINTS

FAULTS = {"misfit": 0.45, "fenced": 0.1, "cut_off": 0.1, "error_503": 0.02, "drop": 0.02}
SCHEMA = {
    "type": "object",
    "properties": {"label": {"enum": ["yes", "no"]}, "urgent": {"type": "boolean"}},
    "required": ["label", "urgent"],
    "additionalProperties": False,
}


class Series:
    """One output, one server, and one run after another; `kept` are bodies that were answered, and how often sent."""

    def __init__(self, folder: Path, demo: DemoServer, seed: int, rows: int) -> None:
        self.folder = folder
        self.demo = demo
        self.random = Random(seed)
        self.kills = self.corrected_at_kills = self.longest = 0
        self.figures: dict[str, int] = {}
        self.kept: dict[str, int] = {}
        write_rows(folder / "rows.jsonl", texts(rows))
        data = {
            "name": "killed",
            "input": {"path": "rows.jsonl", "key": "id"},
            "output": {"path": "out", "part_rows": 25, "part_seconds": 0.1},
            "provider": {"profile": "demo", "base_url": demo.base_url},
            "model": "llama-3.1-8b-instruct",
            "messages": [{"role": "user", "content": "Labels: yes, no\n{{ text }}"}],
            "params": {"max_tokens": 60},
            "response": {"schema": SCHEMA, "corrections": 4, "truncated": {"retry_with_max_tokens": 90}},
            "limits": {"concurrency": 8},
            "retry": {"attempts": 6},
        }
        (folder / "job.yaml").write_text(yaml.safe_dump(data), encoding="utf-8")
        job = batchchat.load_job(folder / "job.yaml")
        questions = compile_questions(job)
        self.acceptance = questions.acceptance
        identity = Identity(job.resolved_provider().identity)
        self.requests: dict[str, Any] = {}
        for row in texts(rows):
            rendered = questions.template.render(row)
            self.requests[identity.custom_id(rendered.digest, key=str(row["id"]))] = rendered

    def run(self, place: str, number: int) -> int:
        """Let a run kill itself when it comes to a named step of the store for so many times; return how it ended."""
        entry = "tests.integration.crash_child:main"
        done = processes.batchchat("job.yaml", place, str(number), cwd=self.folder, entry=entry)
        assert done.returncode in {0, 1, -signal.SIGKILL}, done.stderr
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
        for answers in state.answers.values():
            self.corrected_at_kills += 1
            self.longest = max(self.longest, len(answers))
            for body in self.bodies_of(answers[0].custom_id, [answer.payload for answer in answers]):
                self.kept.setdefault(body, received[body])
        index, _ = state.load_index()
        for custom_id, rendered in self.requests.items():
            if index.get(custom_id) == OK:
                own = _digest(rendered.body)
                self.kept.setdefault(own, received[own])
        assert verify(self.folder / "out").problems == []

    def bodies_of(self, custom_id: str, payloads: list[Any]) -> list[str]:
        """The bodies that brought these answers, in their order."""
        rendered = self.requests[custom_id]
        bodies = [_digest(rendered.body)]
        for number in range(1, len(payloads)):
            batch: Any = None
            request = Request(custom_id, rendered.body, rendered.prompt_tokens, rendered.max_tokens, batch, 0)
            found = resume(request, payloads[:number], self.acceptance)
            assert found is not None
            reply, decision = found
            assert isinstance(decision, AskAgain)
            go_on(request, reply, decision)
            bodies.append(_digest(request.body))
        return bodies


def _digest(body: bytes) -> str:
    return blake2b(body, digest_size=16).hexdigest()


def run_series(folder: Path, seed: int, rounds: int, rows: int) -> Series:
    with DemoServer(DemoOptions(latency_s=0.005, faults=FAULTS, seed=seed)) as demo:
        series = Series(folder, demo, seed, rows)
        places = ["commit.after", "commit.written", "seal.published", *POINTS, "recover.sealed"]
        for turn in range(rounds):
            place = places[turn % len(places)]
            if series.run(place, series.random.randint(2, 9) if place.startswith("commit") else 1) >= 0:
                break
        assert series.run("nowhere", 1) in {0, 1}
        assert read_state(folder / "out").answers == {}
        sql = "select count(*), count(distinct key), sum(attempts) filter (corrections > 0) from data"
        records, keys, attempts = query(folder, sql)[0]
        assert (records, keys) == (rows, rows)
        assert attempts > 0
        assert query(folder, "select count(*) from data where status = 'ok' and parsed.label is null") == [(0,)]
        state = read_state(folder / "out")
        stats = demo.stats()
        # Only what was answered and not committed at a kill is paid for twice, and is not in the ledger.
        again, unkept = stats.answered_again or 0, stats.answered - state.spend.requests
        assert 0 <= again <= unkept
        series.figures = {
            "kills": series.kills,
            "answers under correction at the kills": series.corrected_at_kills,
            "longest chain": series.longest,
            "bodies whose answer was kept": len(series.kept),
            "records": records,
            "answered": stats.answered,
            "answered and not kept": unkept,
            "paid again": again,
        }
        return series


@pytest.mark.thorough
@pytest.mark.timeout(120)
def test_no_answer_of_an_intermediate_step_is_asked_for_again_after_a_kill(tmp_path: Path) -> None:
    series = run_series(tmp_path, 3, 4, 60)
    assert series.kills >= 3
    assert series.corrected_at_kills >= 3
    assert series.longest >= 2


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [21, 22, 23])
def test_the_same_with_many_kills(tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[Any]) -> None:
    series = run_series(tmp_path, seed, 40, 400)
    with capsys.disabled():
        print(f"\n{series.figures}")
    assert series.kills >= 10
