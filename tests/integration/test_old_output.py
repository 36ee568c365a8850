"""An output of an earlier version goes on: `tests/outputs/format_1`, as a killed run of that version left it.

It has one part, an archive of four answers to an earlier prompt, a ledger, the trail files of that version, and a
journal of two records that ends in an unfinished write. It has no manifest, and git keeps none of its empty folders.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from batchchat.store import read_output, read_state, verify

OLD = Path(__file__).parents[1] / "outputs"
FIRST, SECOND = "Answer with yes or no:", "In one word:"
JOB = """\
name: old-output
input: {{path: rows.jsonl, key: id}}
output: output
provider: demo
model: llama-3.1-8b-instruct
messages: [{{role: user, content: "{prompt} {{{{ text }}}}"}}]
params: {{temperature: 0, max_tokens: 300}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(OLD / "format_1", tmp_path / "output")
    shutil.copy(OLD / "format_1.rows.jsonl", tmp_path / "rows.jsonl")
    return tmp_path


def _run(folder: Path, prompt: str) -> dict[str, Any]:
    (folder / "job.yaml").write_text(JOB.format(prompt=prompt), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "batchchat", "run", "job.yaml", "--json"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_it_is_read_without_being_changed(folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    output = read_state(folder / "output")
    table = read_output(folder / "output", columns=["id", "status", "completion"])
    assert table.column("id").to_pylist() == [f"t{number}" for number in range(12)]
    assert set(table.column("status").to_pylist()) == {"ok"}
    # 12 answers to the first prompt, 4 to the second in the part, 2 in the journal.
    assert output.spend.requests == 18
    assert len(output.run_ids()) == 3
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_run_asks_only_for_what_is_open_and_an_earlier_prompt_costs_nothing(folder: Path) -> None:
    second = _run(folder, SECOND)
    assert (second["sent"], second["ok"], second["open"]) == (6, 12, 0)
    assert second["spend_total"]["requests"] == 24
    # All twelve answers to the first prompt are in the archive now: four since the earlier version, eight since today.
    first = _run(folder, FIRST)
    assert (first["sent"], first["revived"], first["ok"]) == (0, 12, 12)
    assert first["spend_total"]["requests"] == 24
    report = verify(folder / "output")
    assert not report.problems, report
