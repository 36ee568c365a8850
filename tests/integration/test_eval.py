"""Evaluations from the command line: the demo suite, gates and their exit codes, what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from xml.etree import ElementTree

import pyarrow.parquet as pq
import pytest

from batchchat.demo import DemoOptions, DemoServer
from batchchat.evaluation.results.summary import read_summary
from tests.integration.jobs import ROOT
from tests.integration.test_cli import Command, command
from tests.thorough import one_in

__all__ = ["command"]
SUITE = "jobs/eval-tickets.yaml"
Eval = Callable[..., CompletedProcess[str]]


@pytest.fixture(scope="module")
def demo() -> Iterator[DemoServer]:
    with DemoServer(DemoOptions(latency_s=0)) as server:
        yield server


@pytest.fixture
def evaluate(command: Command, tmp_path: Path, demo: DemoServer) -> Eval:
    """The project's own suite into a folder of the test, on 24 rows that all variants share."""
    for name in ("jobs", "sample_data"):
        shutil.copytree(ROOT / name, tmp_path / name)

    def run(*arguments: str, name: str = "eval") -> CompletedProcess[str]:
        on = ["--set", f"provider.base_url={demo.base_url}"]
        return command(name, SUITE, *on, "--output", "out", "--limit", "24", *arguments, cwd=tmp_path)

    return run


def test_the_demo_suite_from_plan_to_second_scoring(evaluate: Eval, tmp_path: Path, demo: DemoServer) -> None:
    before = demo.stats().requests
    planned = evaluate("--plan")
    assert planned.returncode == 0
    assert "192 requests for 8 variants" in planned.stdout
    assert "budget max_requests 5,000: enough" in planned.stdout
    assert not (tmp_path / "out").exists()
    assert demo.stats().requests == before

    done = evaluate("-q")
    assert (done.returncode, done.stderr) == (0, "")
    assert demo.stats().requests == before + 192
    wanted = ("8 variants on 24 rows", "accuracy", "tickets.macro_f1", "95 % interval", "adjusted for all pairs", "EUR")
    for told in wanted:
        assert told in done.stdout
    summary = read_summary(tmp_path / "out")
    assert [variant.rows for variant in summary.variants] == [24] * 8
    assert len(summary.comparisons) == 3 * 28
    means = [variant.scores["accuracy"].mean or 0.0 for variant in summary.variants]
    assert max(means) > min(means) > 0.4
    assert pq.read_table(tmp_path / "out" / "scores.parquet").num_rows == 2 * 8 * 24
    assert "8 variants" in (tmp_path / "out" / "report.html").read_text()

    again = evaluate(name="score")
    assert again.returncode == 0
    assert again.stdout.splitlines()[:20] == done.stdout.splitlines()[:20]
    assert demo.stats().requests == before + 192


def test_gates_end_with_5_and_are_told_to_ci(evaluate: Eval, tmp_path: Path) -> None:
    name = "mistral-small-3.2-24b-instruct-2506 long temperature=0"
    failed = evaluate("-q", "--fail-under", f"{name}:accuracy=0.999", "--json", "--junit", "bad.xml")
    assert failed.returncode == 5
    told = json.loads(failed.stdout)
    assert (told["exit_code"], told["version"]) == (5, 1)
    (gate,) = told["gates"]
    assert (gate["variant"], gate["rule"], gate["passed"]) == (name, "accuracy >= 0.999", False)
    root = ElementTree.parse(tmp_path / "bad.xml").getroot()
    assert [suite.get("failures") for suite in root] == ["0"] * 6 + ["1", "0"]
    assert [case.get("name") for case in root.iter("testcase") if case.find("failure") is not None] == [gate["rule"]]


@pytest.mark.thorough
def test_a_gate_that_is_passed_and_an_evaluation_that_is_not_worse_end_with_0(evaluate: Eval, tmp_path: Path) -> None:
    assert evaluate("-q", "--fail-under", "accuracy=0.1", "--junit", "good.xml").returncode == 0
    assert ElementTree.parse(tmp_path / "good.xml").find(".//failure") is None
    # The earlier evaluation itself is not worse than itself.
    shutil.copytree(tmp_path / "out", tmp_path / "before")
    held = evaluate("--fail-if-worse-than", "before", name="score")
    assert held.returncode == 0
    assert "passed  llama-3.1-8b-instruct short temperature=0: accuracy not worse than in before" in held.stdout


@pytest.mark.thorough
def test_two_outputs_are_compared(evaluate: Eval, command: Command, tmp_path: Path) -> None:
    evaluate("-q")
    folders = [f"out/variants/{variant.folder}" for variant in read_summary(tmp_path / "out").variants]
    shown = command("compare", folders[0], folders[6], "--scorer", "exact:label", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    for told in ("24 rows that both have, matched by key", "agreement", "exact", "answered", "first rows that differ"):
        assert told in shown.stdout
    told = json.loads(command("compare", *folders[:2], "--suite", SUITE, "--json", cwd=tmp_path).stdout)
    assert (told["rows"], told["on"]) == (24, "key")
    assert [one["name"] for one in told["summary"]["scorers"]][:3] == [
        "accuracy",
        "tickets.accuracy",
        "tickets.macro_f1",
    ]
    wrong = command("compare", "out", folders[0], cwd=tmp_path)
    assert wrong.returncode == 2
    assert "out is an evaluation" in wrong.stderr


BAD = [
    (["--fail-under", "accuracy"], "--fail-under accuracy: is not of the form score=value"),
    (["--fail-under", "acuracy=1"], "the suite has no score 'acuracy' (did you mean 'accuracy'?)"),
    (["--fail-under", "x:accuracy=1"], "the suite has no variant 'x'"),
    (["--fail-over", "accuracy=1"], "of accuracy higher values are better\nUse --fail-under accuracy=1"),
    (["--fail-if-worse-than", "jobs"], "jobs is no scored evaluation: it has no summary.json"),
    (["--fail-if-worse-than", "out"], "is the suite's own output"),
    (["--set", "scorers.0.expected=lable"], "scorers.0: there is no column 'lable' in the input"),
    (["--set", "scorers.0.kind=exct"], "did you mean 'exact'"),
    (["--set", "model=x"], "--set model: every variant sets it"),
    (["--set", "budget.max_cost=-1"], "--set budget.max_cost: must be more than 0"),
    (["--max-tokens", "many"], "--max-tokens: budget.max_tokens"),
    (["--input", "-"], "a suite cannot read standard input"),
]


@pytest.mark.parametrize(
    ("arguments", "told"), BAD, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_bad_usage_is_told_before_anything_is_sent(
    evaluate: Eval, tmp_path: Path, demo: DemoServer, arguments: list[str], told: str
) -> None:
    before = demo.stats().requests
    done = evaluate(*arguments)
    assert done.returncode == 2
    assert told in done.stderr
    assert demo.stats().requests == before
    assert not (tmp_path / "out" / "variants").exists()


def test_jobs_and_suites_are_not_mixed_up(command: Command, tmp_path: Path) -> None:
    job = command("eval", str(ROOT / "jobs/label-tickets.yaml"), cwd=tmp_path)
    assert job.returncode == 2
    assert "is a job, not a suite\nRun it with `batchchat run" in job.stderr
    suite = command("run", str(ROOT / SUITE), cwd=tmp_path)
    assert suite.returncode == 2
    assert "is a suite of evaluations, not a job\nRun it with `batchchat eval" in suite.stderr
    planned = command("plan", str(ROOT / SUITE), "--json", "--limit", "2", cwd=tmp_path)
    assert planned.returncode == 0
    plan = json.loads(planned.stdout)
    assert (plan["requests"], len(plan["runs"])) == (16, 8)
    assert plan["command"] == f"batchchat eval {ROOT / SUITE} --limit 2"


@pytest.mark.parametrize("path", one_in(3, sorted((ROOT / "jobs").glob("eval-*.yaml"))), ids=lambda path: path.stem)
def test_every_sample_suite_runs(command: Command, path: Path, tmp_path: Path, demo: DemoServer) -> None:
    for name in ("jobs", "sample_data"):
        shutil.copytree(ROOT / name, tmp_path / name)
    on = ("--set", f"provider.base_url={demo.base_url}", "--limit", "5", "--json")
    done = command("eval", f"jobs/{path.name}", *on, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["exit_code"] == 0


def test_a_missing_extra_is_told(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchchat.evaluation.find_spec", lambda name: None if name == "scipy" else name)
    done = command("eval", str(ROOT / SUITE), cwd=tmp_path)
    assert done.returncode == 2
    assert "evaluations need scipy, which is not installed\npip install scipy; or in a checkout" in done.stderr
