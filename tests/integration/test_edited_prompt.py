"""After an edited prompt, the dataset, run and status tell which records answer which prompt."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.jobs import query, texts, write_rows
from tests.integration.test_cli import Command, command

__all__ = ["command"]


def write_job(folder: Path, prompt: str, **fields: Any) -> None:
    job = {
        "name": "test",
        "input": {"path": "rows.jsonl", "key": "id"},
        "output": "out",
        "provider": "demo",
        "model": "llama-3.1-8b-instruct",
        "messages": [{"role": "user", "content": prompt}],
        **fields,
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(job), encoding="utf-8")


def go(command: Command, folder: Path, *words: str) -> dict[str, Any]:
    done = command("run", "job.yaml", "-q", "--json", *words, cwd=folder)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def status(command: Command, folder: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(command("status", "out", "--json", cwd=folder).stdout)
    return told


def prompts(folder: Path) -> dict[str, int]:
    return dict(query(folder, "select prompt_id, count(*) from data group by all"))


@pytest.mark.thorough
def test_two_prompts_in_one_dataset_are_told_apart_until_every_row_answers_the_later(
    tmp_path: Path, command: Command
) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(12))
    write_job(tmp_path, "{{ text }}")
    first = go(command, tmp_path)
    assert prompts(tmp_path) == {first["prompt_id"]: 12}
    assert status(command, tmp_path)["earlier_prompt"] == 0

    write_job(tmp_path, "Again: {{ text }}")
    second = go(command, tmp_path, "--limit", "5")
    assert second["prompt_id"] != first["prompt_id"]
    assert (second["kept"], second["earlier_prompt"]) == (7, 7)
    assert prompts(tmp_path) == {first["prompt_id"]: 7, second["prompt_id"]: 5}
    assert status(command, tmp_path)["earlier_prompt"] == 7
    plan = json.loads(command("plan", "job.yaml", "--limit", "5", "--json", cwd=tmp_path).stdout)
    assert (plan["requests"], plan["kept"], plan["earlier_prompt"]) == (0, 7, 7)
    runs = json.loads(command("history", "out", "--json", cwd=tmp_path).stdout)["runs"]
    assert [run["prompt_id"] for run in runs] == [first["prompt_id"], second["prompt_id"]]
    assert f" {second['prompt_id'][:6]}\n" in command("history", "out", cwd=tmp_path).stdout
    assert command("report", "out", "-o", "page.html", cwd=tmp_path).returncode == 0
    page = " ".join((tmp_path / "page.html").read_text(encoding="utf-8").split())
    assert "7 answers of 12 are to an earlier prompt" in page
    assert "every row has an answer" not in page
    shown = command("status", "out", cwd=tmp_path).stdout
    assert "answer an earlier prompt" in shown
    assert "41%" in shown  # 5 of 12
    assert "100%" not in shown
    assert "go on with" in shown

    # Limits and retries are no part of the prompt, and the rows outside of the pass are not of an earlier one.
    write_job(tmp_path, "Again: {{ text }}", limits={"concurrency": 3}, retry={"attempts": 2})
    assert go(command, tmp_path)["prompt_id"] == second["prompt_id"]
    assert prompts(tmp_path) == {second["prompt_id"]: 12}
    again = go(command, tmp_path, "--limit", "5")
    assert (again["kept"], again["earlier_prompt"]) == (7, 0)
    assert "100%" in command("status", "out", cwd=tmp_path).stdout


def test_an_answer_from_the_archive_is_one_to_the_prompt_as_it_is_again(tmp_path: Path, command: Command) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(6))
    for prompt in ("{{ text }}", "Again: {{ text }}"):
        write_job(tmp_path, prompt)
        go(command, tmp_path)
    write_job(tmp_path, "{{ text }}")
    back = go(command, tmp_path)
    assert (back["sent"], back["revived"]) == (0, 6)
    assert prompts(tmp_path) == {back["prompt_id"]: 6}


@pytest.mark.thorough
def test_the_command_to_go_on_with_has_the_options_that_changed_the_job(tmp_path: Path, command: Command) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(6))
    write_rows(tmp_path / "other.jsonl", texts(6))
    write_job(tmp_path, "{{ text }}")
    changed = ["--set", "messages.0.content=It's {{ text }}", "--input", "other.jsonl", "--output", "out"]
    ended = command("run", "job.yaml", "-q", "--max-requests", "2", *changed, cwd=tmp_path)
    assert ended.returncode == 4, ended.stderr
    told = str(status(command, tmp_path)["command"])
    options = [*changed[:2], "--set", "budget.max_requests=2", "--input", str(tmp_path / "other.jsonl")]
    assert told == shlex.join(["batchchat", "run", str(tmp_path / "job.yaml"), *options])
    # It goes on where the run stopped: two rows at a time, until none is left.
    for code in (4, 0):
        assert command(*shlex.split(told)[1:], "-q", cwd=tmp_path).returncode == code
    assert status(command, tmp_path)["ok"] == 6
    assert len(prompts(tmp_path)) == 1
