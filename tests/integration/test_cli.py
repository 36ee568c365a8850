"""The command line from outside: exit codes, messages, signals, closed streams, and every documented command."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import pytest
import yaml
from click.testing import CliRunner

from batchchat.cli import cli
from batchchat.cli.process import guarded, leave
from batchchat.demo import FAULTS, DemoOptions, DemoServer
from batchchat.evaluation import is_suite
from tests.integration.jobs import ROOT, query, texts, write_rows
from tests.integration.processes import COMMAND, batchchat, environment, start, wait_for
from tests.thorough import one_in


@pytest.fixture
def slow_demo() -> Iterator[DemoServer]:
    with DemoServer(DemoOptions(latency_s=0.2)) as server:
        yield server


@pytest.fixture
def fast_demo() -> Iterator[DemoServer]:
    with DemoServer(DemoOptions(latency_s=0)) as server:
        yield server


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A job of 100 rows in `tmp_path`, on the embedded demo provider."""
    write_rows(tmp_path / "rows.jsonl", texts(100))
    return write_job(tmp_path)


def write_job(folder: Path, **fields: object) -> Path:
    data: dict[str, object] = {
        "name": "test",
        "input": {"path": "rows.jsonl", "key": "id"},
        "output": "out",
        "provider": "demo",
        "model": "llama-3.1-8b-instruct",
        "messages": [{"role": "user", "content": "Labels: yes, no\n{{ text }}"}],
        "limits": {"concurrency": 50},
        **fields,
    }
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    return path


JOBS = sorted(path for path in (ROOT / "jobs").glob("*.yaml") if not is_suite(path))


class Command(Protocol):
    def __call__(
        self, *arguments: str | Path, cwd: Path, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]: ...


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """A command run in this process, for tests that need no process of its own: a start takes a second."""
    for name in environment().keys() ^ os.environ.keys():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "100")

    def run_here(
        *arguments: str | Path, cwd: Path, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        texts = [str(argument) for argument in arguments]
        with monkeypatch.context() as patched:
            patched.chdir(cwd)
            patched.setattr(sys, "argv", ["batchchat", *texts])
            for name, value in (env or {}).items():
                patched.setenv(name, value)
            capfd.readouterr()
            code = guarded(cli)
        return subprocess.CompletedProcess(texts, code, *capfd.readouterr())

    return run_here


def on(demo: DemoServer) -> list[str]:
    """Eight requests at once to this server."""
    return ["--set", f"provider.base_url={demo.base_url}", "--set", "limits.concurrency=8"]


def test_every_command_has_help(command: Command) -> None:
    listed = command("--help", cwd=ROOT).stdout
    commands = re.findall(r"^  ([a-z][a-z-]+)  ", listed, re.MULTILINE)
    assert commands == [name for name, each in cli.commands.items() if not each.hidden]
    for name in commands:
        help_text = command(name, "--help", cwd=ROOT)
        assert help_text.returncode == 0
        assert "Usage:" in help_text.stdout


def test_help_imports_nothing_heavy() -> None:
    code = "import sys\nfrom batchchat.cli import cli\nsys.argv = ['batchchat', '--help']\n"
    code += "try:\n    cli()\nexcept SystemExit:\n    pass\n"
    code += "heavy = {'pyarrow', 'httpx', 'pydantic', 'rich', 'anyio', 'jinja2', 'starlette'}\n"
    code += "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


NEVER = [
    *("batchchat.examples", "batchchat.objects", "batchchat.job.batch_file"),
    *("batchchat.evaluation", "batchchat.labelling", "batchchat.workers", "batchchat.sharing", "batchchat.cache"),
    *("batchchat.engines.batch", "batchchat.demo", "batchchat.store.location.objects", "batchchat.cli.summary_page"),
    *(
        "pyarrow.compute",
        "pyarrow.dataset",
        "configparser",
        "rich",
        "httpx._main",
        "starlette",
    ),
    *("uvicorn", "jsonschema", "duckdb", "obstore", "openpyxl", "sqlite3", "pandas", "multiprocessing.pool"),
]
"""What a plain run never imports."""
LATE = ["pyarrow.parquet", "pyarrow.fs", "tenacity", "batchchat.client.day_limits"]
"""What a plain run imports after its first request: by then its answer is waited for."""


def test_a_plain_run_imports_late_or_never_what_its_first_request_does_not_need(
    job: Path, fast_demo: DemoServer
) -> None:
    code = (
        "import atexit, sys\n"
        "import batchchat.cli as cli\n"
        "cli._start_fast()\n"
        "from batchchat.client import ChatClient\n"
        f"late, never, send, sent = {LATE!r}, {NEVER!r}, ChatClient.send, []\n"
        "def first(self, *given, **named):\n"
        "    sent.append([name for name in late if name in sys.modules])\n"
        "    return send(self, *given, **named)\n"
        "ChatClient.send = first\n"
        "def tell():\n"
        "    print(sent[0], 'pyarrow.parquet' in sys.modules)\n"
        "    print([name for name in never if sys.modules.get(name) is not None])\n"
        "atexit.register(tell)\n"
        f"sys.argv = ['batchchat', 'run', {str(job)!r}, '--quiet', '--set', 'provider.base_url={fast_demo.base_url}']\n"
        "cli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=job.parent)
    assert done.stdout == "[] True\n[]\n"


def test_only_code_of_a_person_s_own_is_taken_apart_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such code may leave files open, which Python writes out when it takes modules apart."""

    class LeftAtOnceError(Exception):
        pass

    def leave_at_once(code: int) -> None:
        raise LeftAtOnceError(code)

    monkeypatch.setattr(os, "_exit", leave_at_once)
    monkeypatch.setattr("atexit._run_exitfuncs", lambda: None)
    rooms = ("batchchat.evaluation", "batchchat.structured.model")
    for name in rooms:
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(LeftAtOnceError, match="3"):
        leave(3)
    for name in rooms:
        with monkeypatch.context() as patched:
            patched.setitem(sys.modules, name, sys)
            with pytest.raises(SystemExit, match="3"):
                leave(3)


BAD = [
    (["run", "nope.yaml"], "no such job file"),
    (["run", "job.yaml", "--set", "limts.concurrency=2"], "did you mean 'limits'"),
    (["run", "job.yaml", "--set", "params.temperature=3"], "between 0 and 2"),
    (["run", "job.yaml", "--set", "params.n=2"], "params.n"),
    (["run", "job.yaml", "--set", "params.frequency_penalty=1"], "does not support frequency_penalty"),
    (["run", "job.yaml", "--set", "provider=skaleway"], "did you mean 'scaleway'"),
    (["run", "job.yaml", "--set", "provider=scaleway"], "SCW_SECRET_KEY"),
    (["run", "job.yaml", "--set", "input.key=ID"], "no column 'ID'"),
    (["run", "job.yaml", "--input", "rows.jsnl"], "rows.jsonl"),
    (["run", "job.yaml", "--input", "empty.jsonl"], "empty.jsonl"),
    (["run", "job.yaml", "--input", "rows.xlsx"], ".parquet"),
    (["run", "job.yaml", "--input", "nullkey.jsonl"], "null"),
    (["run", "job.yaml", "--input", "twice.jsonl"], "'7'"),
    (["run", "job.yaml", "--output", "foreign"], "something else"),
    (["run", "job.yaml", "--output", "rows.jsonl/x"], "rows.jsonl"),
    (["run", "job.yaml", "--retry-failed=boredom"], "boredom"),
    (["run", "job.yaml", "--grace", "soon"], "--grace"),
    (["run", "badtemplate.yaml"], "txt"),
    (["run", "notyaml.yaml"], "notyaml.yaml:3"),
    (["status", "foreign"], "foreign is no output of batchchat"),
    (["show", "nowhere"], "nowhere"),
    (["verify", "nowhere"], "nowhere"),
    (["export", "nowhere", "-o", "x.csv"], "nowhere"),
    (["init", "a/b c"], "name"),
    (["demo-server", "--fault", "error_999=1"], "did you mean"),
    (["demo-server", "--batch-fault", "create_loss"], "did you mean 'create_lost'"),
    (["demo-server", "--batch-fault", "create_lost=x"], "takes a number, such as create_lost=1"),
    (["demo-server", "--batch-fault", "line_twice=2"], "probability from 0 to 1"),
    (["demo-server", "--batch-fault", "bad_text"], "bad_text=WORD"),
    (["demo-server", "--batch-fault", "queue_status"], "needs queue_tokens"),
    (["demo-server", "--batch-dialect", "openapi"], "did you mean 'openai'"),
    (["demo-server", "--batch-folder", "/dev/null"], "cannot be used"),
    (["demo-server", "--ttft", "soon"], "--ttft"),
    (["rnu", "job.yaml"], "Did you mean 'run'"),
]


@pytest.mark.parametrize(
    ("arguments", "said"), BAD, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_bad_input_is_exit_2_with_a_reason_and_writes_nothing(
    command: Command, job: Path, arguments: list[str], said: str
) -> None:
    folder = job.parent
    (folder / "empty.jsonl").touch()
    (folder / "rows.xlsx").write_bytes(b"PK")
    write_rows(folder / "nullkey.jsonl", [{"id": 1, "text": "a"}, {"id": None, "text": "b"}])
    write_rows(folder / "twice.jsonl", [{"id": 7, "text": "a"}, {"id": 7, "text": "b"}])
    (folder / "foreign").mkdir()
    (folder / "foreign" / "thesis.txt").write_text("mine", encoding="utf-8")
    text = job.read_text(encoding="utf-8")
    (folder / "badtemplate.yaml").write_text(text.replace("{{ text }}", "{{ txt }}"), encoding="utf-8")
    (folder / "notyaml.yaml").write_text("name: x\ninput: y\n  a: b: c\n", encoding="utf-8")
    before = sorted(folder.rglob("*"))
    done = command(*arguments, cwd=folder)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert sorted(folder.rglob("*")) == before


def test_results_go_to_stdout_and_everything_else_to_stderr(command: Command, job: Path) -> None:
    done = command("run", job, "--json", cwd=job.parent)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["ok"], summary["exit_code"], summary["rows"]) == (100, 0, 100)
    plain = command("run", job, cwd=job.parent)
    assert plain.stdout == ""
    assert "all 100 rows" in plain.stderr
    for name in (["status", "out"], ["show", "out", "--limit", "1"], ["verify", "out"]):
        looked = command(*name, "--json", cwd=job.parent)
        assert looked.returncode == 0, looked.stderr
        assert isinstance(json.loads(looked.stdout), dict)


def test_log_lines_can_be_json(command: Command, job: Path) -> None:
    done = command("run", job, "--log-format", "json", "-v", cwd=job.parent)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert lines[-1]["event"] == "run_ended"
    assert lines[-1]["ok"] == 100
    assert all({"time", "level", "event", "message"} <= set(line) for line in lines)


def test_rows_come_from_standard_input(job: Path) -> None:
    text = (job.parent / "rows.jsonl").read_text(encoding="utf-8")
    for sent in (100, 0):
        done = batchchat("run", job, "--input", "-", "--json", cwd=job.parent, input=text)
        assert json.loads(done.stdout)["sent"] == sent


@pytest.mark.parametrize(
    ("number", "code"), one_in(3, [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]), ids=str
)
def test_a_signal_drains_and_the_same_command_goes_on(
    job: Path, slow_demo: DemoServer, number: signal.Signals, code: int
) -> None:
    arguments = ["run", str(job), *on(slow_demo), "--json"]
    process = start(*arguments, cwd=job.parent)
    wait_for(lambda: slow_demo.stats().requests >= 20)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == code, err
    stopped = json.loads(out)
    asked = slow_demo.stats().requests
    # Everything that was in flight was waited for, and counted.
    assert stopped["new_ok"] == stopped["sent"] == asked
    assert stopped["open"] == 100 - asked
    assert "batchchat run" in stopped["resume"]
    again = batchchat(*arguments, cwd=job.parent)
    assert again.returncode == 0
    assert slow_demo.stats().requests == 100


def test_a_second_signal_ends_it_at_once(job: Path) -> None:
    with DemoServer(DemoOptions(latency_s=30)) as demo:
        process = start("run", job, *on(demo), cwd=job.parent)
        wait_for(lambda: demo.stats().requests == 8)
        process.send_signal(signal.SIGINT)
        while "waiting up to" not in process.stderr.readline():
            pass
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=10)
        assert process.returncode == 130, err
    assert batchchat("run", job, "--json", cwd=job.parent).returncode == 0


def test_grace_ends_what_hangs(job: Path) -> None:
    with DemoServer(DemoOptions(latency_s=30)) as demo:
        process = start("run", job, "--grace", "0.3s", *on(demo), cwd=job.parent)
        wait_for(lambda: demo.stats().requests == 8)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=10)
        assert process.returncode == 143


@pytest.mark.thorough
def test_under_nohup_a_closed_terminal_ends_nothing(job: Path, slow_demo: DemoServer) -> None:
    process = start("run", job, *on(slow_demo), cwd=job.parent, ignore=[signal.SIGHUP])
    wait_for(lambda: slow_demo.stats().requests >= 10)
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=30)
    assert process.returncode == 0


@pytest.mark.thorough
def test_closed_streams_change_neither_the_run_nor_its_code(job: Path) -> None:
    command = " ".join(shlex.quote(part) for part in [*COMMAND, "run", str(job), "--json"])
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} 2>&1 | true"],
        cwd=job.parent, env=environment(), timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    closed = subprocess.run(
        ["bash", "-c", f"{command} >&- 2>&-"], cwd=job.parent, env=environment(), timeout=60, check=False
    )
    assert closed.returncode == 0
    assert query(job.parent, "select count(*) from data") == [(100,)]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no disk that is always full")
@pytest.mark.parametrize(
    "words", [["--help"], ["status", "out", "--json"], ["show", "out"], ["run", "job.yaml", "--json"]]
)
def test_a_result_that_a_full_disk_did_not_take_is_no_success(command: Command, job: Path, words: list[str]) -> None:
    command("run", str(job), cwd=job.parent)
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        done = subprocess.run(
            [*COMMAND, *words], cwd=job.parent, env=environment(), stdout=full, stderr=subprocess.PIPE, text=True,
            timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 74
    assert done.stderr.endswith("error: standard output: the disk is full: what was printed there is not whole\n")


def test_a_second_run_on_an_output_is_told_who_holds_it(command: Command, job: Path) -> None:
    with DemoServer(DemoOptions(latency_s=60)) as demo:
        arguments = ["run", str(job), *on(demo)]
        first = start(*arguments, cwd=job.parent)
        wait_for(lambda: demo.stats().requests == 8)
        second = command(*arguments, cwd=job.parent)
        assert second.returncode == 75
        assert str(first.pid) in second.stderr
        assert os.uname().nodename in second.stderr
        status = json.loads(command("status", "out", "--json", cwd=job.parent).stdout)
        assert status["running"]["pid"] == first.pid
        assert demo.stats().requests == 8
        first.kill()
        first.communicate()


def test_status_tells_what_is_in_flight_and_how_long(command: Command, job: Path) -> None:
    with DemoServer(DemoOptions(latency_s=60)) as demo:
        process = start("run", job, *on(demo), cwd=job.parent)
        wait_for(lambda: demo.stats().requests == 8)

        def in_flight() -> list[dict[str, object]]:
            done = command("status", "out", "--json", cwd=job.parent)
            live = json.loads(done.stdout)["live"]
            return list(live["oldest"]) if live else []

        wait_for(lambda: len(in_flight()) == 8)
        found = in_flight()
        assert {request["row_index"] for request in found} == set(range(8))
        assert all(isinstance(age := request["age_s"], float) and 0 < age < 60 for request in found)
        process.kill()
        process.communicate()
    status = json.loads(command("status", "out", "--json", cwd=job.parent).stdout)
    assert (status["running"], status["last"]["exit_code"]) == (None, None)


def test_export_is_in_input_order_and_takes_columns_from_the_input_of_now(command: Command, job: Path) -> None:
    folder = job.parent
    command("run", job, cwd=folder)
    rows = [{**row, "text": row["text"]} for row in texts(100)][::-1]
    write_rows(folder / "rows.jsonl", rows)
    for name in ("x.jsonl", "x.csv", "x.parquet"):
        done = command("export", "out", "-o", name, cwd=folder)
        assert done.returncode == 0, done.stderr
    exported = [json.loads(line) for line in (folder / "x.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["id"] for row in exported] == [row["id"] for row in rows]
    assert [row["row_index"] for row in exported] == list(range(100))
    assert len((folder / "x.csv").read_text(encoding="utf-8").splitlines()) >= 101
    assert command("export", "out", "-o", "x.csv", cwd=folder).returncode == 2
    assert command("export", "out", "-o", "x.csv", "--force", cwd=folder).returncode == 0


def test_init_writes_a_job_that_runs(command: Command, tmp_path: Path) -> None:
    assert command("init", "demo", cwd=tmp_path).returncode == 0
    plan = command("plan", "demo.yaml", "--json", cwd=tmp_path)
    assert json.loads(plan.stdout)["requests"] == 8
    done = command("run", "demo.yaml", "--json", cwd=tmp_path)
    assert (done.returncode, json.loads(done.stdout)["ok"]) == (0, 8)
    assert command("init", "demo", cwd=tmp_path).returncode == 2


def test_demo_server_serves_alone(job: Path) -> None:
    server = start("demo-server", "--port", "0", "--latency", "0s", cwd=job.parent)
    base_url = server.stdout.readline().strip()
    done = batchchat("run", job, "--set", f"provider.base_url={base_url}", cwd=job.parent)
    assert done.returncode == 0, done.stderr
    server.terminate()
    _, err = server.communicate(timeout=10)
    assert server.returncode == 0, err


def test_the_help_of_the_demo_server_names_every_fault() -> None:
    told = set(re.split(r"[\s,;:.]+", CliRunner().invoke(cli, ["demo-server", "--help"]).output))
    assert set(FAULTS) <= told
    assert {"--ttft", "--tokens-per-second"} <= told


@pytest.mark.parametrize("path", one_in(5, JOBS), ids=lambda path: path.stem)
def test_every_sample_job_runs(command: Command, path: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "jobs", tmp_path / "jobs")
    shutil.copytree(ROOT / "sample_data", tmp_path / "sample_data")
    needs_key = yaml.safe_load(path.read_text(encoding="utf-8"))["provider"] != "demo"
    name = "plan" if needs_key else "run"
    if path.stem == "judge-summaries":  # its rows are the answers of another one
        before = command("run", "jobs/summarise-articles.yaml", "--set", "limits.concurrency=200", cwd=tmp_path)
        assert before.returncode == 0, before.stderr
    done = command(name, f"jobs/{path.name}", "--json", "--set", "limits.concurrency=200", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["requests"] == 320 if needs_key else told["ok"] == told["rows"] > 0


def test_a_debug_log_and_every_file_are_free_of_the_key(command: Command, job: Path, tmp_path: Path) -> None:
    key = "canary-" + os.urandom(12).hex()
    with DemoServer(DemoOptions(latency_s=0, api_key=key, faults={"error_400": 0.1})) as demo:
        spec = ["--set", f"provider.base_url={demo.base_url}", "--set", "provider.api_key_env=CANARY"]
        done = command("run", job, *spec, "-v", cwd=tmp_path, env={"CANARY": key})
        assert done.returncode in {0, 1}, done.stderr
        wrong = command("run", job, *spec, "-v", "--output", "out2", cwd=tmp_path, env={"CANARY": key[::-1]})
        assert wrong.returncode == 3, wrong.stderr
    shown = command("show", "out", "--json", "--limit", "100", cwd=tmp_path)
    for text in (done.stderr, done.stdout, wrong.stderr, shown.stdout):
        assert key not in text
        assert key[::-1] not in text
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert key.encode() not in path.read_bytes(), path


def test_a_run_stops_at_each_budget_and_the_same_command_goes_on(
    command: Command, job: Path, fast_demo: DemoServer
) -> None:
    done = 0
    for option, value in (("--max-requests", "20"), ("--max-tokens", "400"), ("--max-cost", "0.0001")):
        ended = command("run", job, option, value, "--json", *on(fast_demo), cwd=job.parent)
        summary = json.loads(ended.stdout)
        name = option.removeprefix("--").replace("-", "_")
        assert (ended.returncode, summary["exit_code"]) == (4, 4)
        assert summary["reason"].startswith(f"budget.{name} of ")
        assert summary["ok"] > done
        assert summary["budget"][name] == pytest.approx(float(value))
        done = summary["ok"]
    told = command("run", job, "--max-requests", "5", *on(fast_demo), cwd=job.parent)
    assert told.returncode == 4
    assert "budget max_requests" in told.stderr
    assert "5 of 5" in told.stderr
    assert command("run", job, *on(fast_demo), cwd=job.parent).returncode == 0


def test_the_plan_tells_what_a_budget_and_a_deadline_are_enough_for(command: Command, job: Path) -> None:
    options = ("--max-requests", "50", "--max-cost", "1", "--deadline", "1s")
    shown = command("plan", job, *options, cwd=job.parent)
    assert shown.returncode == 0
    assert "the run would stop after about 50% of the requests" in shown.stdout
    assert "enough" in shown.stdout
    assert "the run would stop before its end" in shown.stdout
    caps = json.loads(command("plan", job, *options, "--json", cwd=job.parent).stdout)["caps"]
    assert [(cap["name"], cap["cap"]) for cap in caps] == [("max_cost", 1), ("max_requests", 50)]
    refused = command("plan", job, "--max-cost", "1", "--set", "model=unpriced", cwd=job.parent)
    assert refused.returncode == 2
    assert "--max-cost: budget.max_cost: cannot be kept: no price is known for unpriced at demo" in refused.stderr


def test_help_fits_eighty_columns_and_cuts_no_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    bare = CliRunner().invoke(cli, [])
    assert bare.exit_code == 0
    assert bare.output == CliRunner().invoke(cli, ["--help"]).output
    assert all(len(line) <= 80 for line in bare.output.splitlines())
    assert "..." not in bare.output.replace("[ARGS]...", "")
    assert CliRunner().invoke(cli, ["-V"]).output == CliRunner().invoke(cli, ["--version"]).output


@pytest.mark.parametrize(
    ("option", "hint"),
    [
        ("--dry-run", "`batchchat plan JOB`"),
        ("--model", "--set model=VALUE"),
        ("--concurrency", "--set limits.concurrency=VALUE"),
        ("--temperature", "--set params.temperature=VALUE"),
        ("--schema", "--set response.schema=VALUE"),
        ("--prun", "Did you mean"),
    ],
)
def test_an_option_that_is_a_field_of_the_job_is_told_as_one(
    option: str, hint: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["batchchat", "run", "job.yaml", option, "x"])
    assert guarded(cli) == 2
    told = capsys.readouterr().err
    assert f"'{option}'" in told
    assert hint in told
