"""Evaluations that are killed: what was decided stays as it was, and a kept answer is never paid for again."""

from __future__ import annotations

import json
import signal
from hashlib import blake2b
from pathlib import Path
from typing import Any

import anyio
import pytest
import yaml

import batchchat
from batchchat.demo import DemoOptions, DemoServer
from batchchat.evaluation.suite.reading import load_suite
from batchchat.runner.questions import compile_questions
from batchchat.store import is_output
from tests.integration.jobs import texts, write_rows
from tests.integration.processes import Process, wait_for

ROWS, LOOKS = 90, 3
# The first two are right about half of the rows each, so that they stay open; the last one never is, and is dropped.
LABELS = {"one": "yes, no", "two": "no, yes", "never": "no"}


def write_suite(folder: Path, demo: DemoServer, output: str) -> None:
    write_rows(folder / "rows.jsonl", ({**row, "gold": "yes"} for row in texts(ROWS)))
    job: dict[str, Any] = {
        "name": "killed",
        "input": {"path": "rows.jsonl", "key": "id"},
        "output": {"path": "out", "part_rows": 20, "part_seconds": 0.1},
        "provider": {"profile": "demo", "base_url": demo.base_url},
        "model": "demo-small",
        "messages": [{"role": "user", "content": "{{ text }}"}],
        "params": {"max_tokens": 60},
        "limits": {"concurrency": 6},
    }
    variants = [
        {"name": name, "messages": [{"role": "user", "content": f"Labels: {labels}\n{{{{ text }}}}"}]}
        for name, labels in LABELS.items()
    ]
    suite = {
        "name": output,
        "job": "job.yaml",
        "variants": variants,
        "scorers": [{"name": "right", "kind": "exact", "expected": "gold"}],
        "until": "settled",
        "looks": LOOKS,
        "output": output,
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(job), encoding="utf-8")
    (folder / f"{output}.yaml").write_text(yaml.safe_dump(suite), encoding="utf-8")


def kept_bodies(folder: Path, output: str) -> set[str]:
    """Return the digests of the requests whose answers the outputs of an evaluation hold."""
    rows = {str(row["id"]): row for row in texts(ROWS)}
    found = set()
    for variant in load_suite(folder / f"{output}.yaml").variants:
        if is_output(variant.job.output.path):
            template = compile_questions(variant.job).template
            for key in batchchat.read_output(Path(variant.job.output.path)).column("key").to_pylist():
                found.add(blake2b(template.render(rows[key]).body, digest_size=16).hexdigest())
    return found


def evaluate(suite: Path) -> None:
    done = anyio.run(batchchat.evaluate, batchchat.load_suite(suite))
    assert done.exit_code == 0, done.reason


@pytest.mark.thorough
def test_a_kill_inside_a_look_changes_no_verdict_and_pays_nothing_twice(tmp_path: Path) -> None:
    with DemoServer(DemoOptions(latency_s=0.02, seed=5)) as demo:
        write_suite(tmp_path, demo, "whole")
        evaluate(tmp_path / "whole.yaml")
        whole = json.loads((tmp_path / "whole" / "summary.json").read_bytes())
        assert whole["sequential"]["dropped"].keys() == {"never"}
        # The other evaluation asks the same: its requests are those of the first one, once more.
        before = {body: count for body, (count, _) in demo.bodies().items()}
        asked = demo.stats().requests
        write_suite(tmp_path, demo, "killed")
        first_look = ROWS // LOOKS * len(LABELS)
        process = Process("eval", "killed.yaml", cwd=tmp_path)
        wait_for(lambda: demo.stats().requests >= asked + first_look + 20)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        wait_for(lambda: demo.stats().in_flight == 0)
        kept = kept_bodies(tmp_path, "killed")
        assert len(kept) > first_look - len(LABELS)
        sent = {body: count for body, (count, _) in demo.bodies().items()}
        evaluate(tmp_path / "killed.yaml")
        assert {body for body in kept if demo.bodies()[body][0] != sent[body]} == set()
        total = sum(count for count, _ in demo.bodies().values()) - sum(before.values())
        # What was under way at the kill is all that is sent once more.
        assert whole["sequential"]["asked"] <= total <= whole["sequential"]["asked"] + 6 * len(LABELS)
        killed = json.loads((tmp_path / "killed" / "summary.json").read_bytes())
        assert killed["sequential"] == whole["sequential"]
        assert killed["comparisons"] == whole["comparisons"]
