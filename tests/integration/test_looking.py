"""What status, show, run --fresh and clean tell about an output, as their users see it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from batchchat.cli import cli
from batchchat.demo import DemoOptions, DemoServer
from batchchat.errors import UsageError
from tests.integration.jobs import make_job, run, texts, write_rows
from tests.integration.processes import batchchat, start, wait_for
from tests.integration.test_cli import Command, command

__all__ = ["command"]

MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?\+00:00")


@pytest.fixture
def demo() -> Iterator[DemoServer]:
    with DemoServer(DemoOptions(latency_s=0.2)) as server:
        yield server


def write_job(folder: Path, base_url: str) -> None:
    write_rows(folder / "rows.jsonl", texts(40))
    job = {
        "name": "test",
        "input": {"path": "rows.jsonl", "key": "id"},
        "output": "out",
        "provider": {"profile": "demo", "base_url": base_url},
        "model": "llama-3.1-8b-instruct",
        "messages": [{"role": "user", "content": "{{ text }}"}],
        "limits": {"concurrency": 20},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(job), encoding="utf-8")


@pytest.mark.thorough
def test_times_are_utc_with_their_offset_and_the_command_goes_on_with_this_output(
    tmp_path: Path, demo: DemoServer
) -> None:
    write_job(tmp_path, demo.base_url)
    zone = {"TZ": "Asia/Kolkata"}
    # So slow that it cannot end by itself before it is killed.
    slowly = ("--set", "limits.requests_per_minute=30")
    running = start("run", "job.yaml", "--output", "other place", *slowly, "-q", cwd=tmp_path, env=zone)
    wait_for(lambda: demo.stats().answered >= 2)
    told = json.loads(batchchat("status", "other place", "--json", cwd=tmp_path, env=zone).stdout)
    assert MOMENT.fullmatch(told["running"]["since"])
    live = told["live"]
    # All from one source: what is done, and what the live counts say.
    assert (live["ok"] + live["done_before"], live["failed"]) == (told["ok"], told["failed"])
    running.kill()
    running.communicate()
    told = json.loads(batchchat("status", "other place", "--json", cwd=tmp_path, env=zone).stdout)
    words = shlex.split(told["command"])
    assert words[1] == "run"
    assert words[-2:] == ["--output", "other place"]
    assert words[3:5] == list(slowly)
    quickly = ("--set", "limits.requests_per_minute=60000")
    assert batchchat(*words[1:], *quickly, "-q", cwd=tmp_path, env=zone).returncode == 0
    assert not (tmp_path / "out").exists()
    told = json.loads(batchchat("status", "other place", "--json", cwd=tmp_path, env=zone).stdout)
    assert MOMENT.fullmatch(told["last"]["ended"])
    shown = json.loads(batchchat("show", "other place", "--row", "0", "--json", cwd=tmp_path, env=zone).stdout)
    assert MOMENT.fullmatch(shown["record"]["started_at"])


def test_fresh_says_where_the_old_output_is_and_clean_removes_it_when_told(
    tmp_path: Path, command: Command, demo: DemoServer
) -> None:
    write_job(tmp_path, demo.base_url)
    assert command("run", "job.yaml", "--limit", "3", "-q", cwd=tmp_path).returncode == 0
    done = command("run", "job.yaml", "--limit", "3", "--fresh", cwd=tmp_path)
    (old,) = tmp_path.glob("out.old-*")
    assert old.name in done.stderr.replace("\n", "")
    (tmp_path / "out.old-20200101-000000").mkdir()  # of such a name, and no output
    (tmp_path / "out.old-20200101-000000" / "mine.txt").write_text("mine", encoding="utf-8")
    listed = command("clean", "out", cwd=tmp_path)
    assert (listed.returncode, listed.stdout.count("out.old-")) == (0, 1)
    assert old.exists()
    assert "--yes" in listed.stderr
    assert command("clean", "out", "--yes", cwd=tmp_path).returncode == 0
    assert not old.exists()
    assert (tmp_path / "out.old-20200101-000000" / "mine.txt").exists()
    assert (tmp_path / "out" / "data").exists()
    assert "no old outputs" in command("clean", "out", cwd=tmp_path).stderr


def test_an_output_that_cannot_be_is_refused_in_the_systems_own_words(
    tmp_path: Path, command: Command, demo: DemoServer
) -> None:
    write_job(tmp_path, demo.base_url)
    (tmp_path / "file").write_text("x", encoding="utf-8")
    for output, reason in (("file/out", "Not a directory"), ("/proc/out", "No such file or directory")):
        refused = command("run", "job.yaml", "--output", output, "-q", cwd=tmp_path)
        assert refused.returncode == 2
        assert reason in refused.stderr
    assert demo.stats().requests == 0


def test_an_evaluations_folder_is_looked_at_by_its_variants(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(3))
    for name in ("long", "short"):
        output = {"path": str(tmp_path / "ev" / "variants" / name)}
        assert run(make_job(tmp_path, None, name=name, output=output), limit=2).ok == 2
    folder = str(tmp_path / "ev")
    told = json.loads(CliRunner().invoke(cli, ["status", folder, "--json"]).stdout)
    assert [(view["job"], view["ok"], view["open"]) for view in told["variants"]] == [("long", 2, 0), ("short", 2, 0)]
    shown = CliRunner().invoke(cli, ["status", folder]).stdout
    assert "an evaluation of 2 variants" in shown
    assert [line.split()[0] for line in shown.splitlines()[4:6]] == ["long", "short"]
    runs = json.loads(CliRunner().invoke(cli, ["history", folder, "--json"]).stdout)["variants"]
    assert [len(view["runs"]) for view in runs] == [1, 1]
    assert CliRunner().invoke(cli, ["history", folder]).stdout.count("1 run ") == 2
    for words in (["show", folder], ["show", folder, "--count", "status"], ["export", folder, "-o", "x.csv"]):
        error = CliRunner().invoke(cli, words).exception
        assert isinstance(error, UsageError)
        assert "is an evaluation of 2 variants" in error.message
        assert "--variant NAME: 'long', 'short'" in (error.remedy or "")
    error = CliRunner().invoke(cli, ["report", folder, "-o", str(tmp_path / "x.html")]).exception
    assert isinstance(error, UsageError)
    assert "is an evaluation: its 2 outputs are below" in error.message
    for words in (["show", str(tmp_path)], ["status", str(tmp_path)]):
        error = CliRunner().invoke(cli, words).exception
        assert isinstance(error, UsageError)
        assert "no output of batchchat" in error.message
        assert "Choose an empty folder" not in (error.remedy or "")
