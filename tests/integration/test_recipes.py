"""What starts a job at night: each recipe with each exit code, as far as a machine without its scheduler can tell."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.jobs import ROOT
from tests.integration.processes import wait_for

NIGHTLY = ROOT / "jobs" / "nightly"
LOG = '{"event": "run_ended", "message": "the reason"}'


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The folder that the recipes call /srv/tickets, with a `batchchat` that ends with `$tmp_path/code`."""
    shutil.copytree(ROOT / "jobs", tmp_path / "jobs")
    program(tmp_path / "venv" / "bin" / "batchchat", f"echo '{LOG}' >&2; echo \"$@\" >> ran; exit $(cat code)")
    program(tmp_path / "page", 'echo "$1" >> paged')
    return tmp_path


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def crontab(place: Path) -> tuple[dict[str, str], str]:
    """The crontab's settings, and the command of its one line."""
    text = (NIGHTLY / "crontab").read_text(encoding="utf-8").replace("/srv/tickets", str(place))
    text = text.replace("/usr/local/bin/page-on-call", str(place / "page"))
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    settings = dict(line.split("=", 1) for line in lines[:-1])
    found = re.fullmatch(r"(?:\S+ +){5}(.*)", lines[-1])
    assert found is not None
    assert "%" not in found[1], "cron would take it for a line break"
    return settings, found[1]


@pytest.mark.parametrize(
    ("code", "becomes", "printed", "paged"),
    [
        (0, 0, "", False),
        (1, 1, "some rows of jobs/nightly-tickets.yaml failed", False),
        (2, 3, "needs a person", True),
        (3, 3, "needs a person", True),
        (4, 75, "", False),
        (5, 1, "the gate", False),
        (69, 75, "", False),
        (70, 3, "needs a person", True),
        (74, 3, "needs a person", True),
        (75, 75, "", False),
        (143, 75, "", False),
    ],
)
def test_the_cron_line_in_crons_own_environment(
    place: Path, code: int, becomes: int, printed: str, paged: bool
) -> None:
    (place / "code").write_text(str(code), encoding="utf-8")
    settings, line = crontab(place)
    # What cron gives: these few variables and the settings of the table, and /bin/sh.
    env = {"HOME": "/", "LOGNAME": "tickets", "SHELL": "/bin/sh", "PATH": "/usr/bin:/bin", **settings}
    done = subprocess.run(["/bin/sh", "-c", line], env=env, cwd="/", capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (becomes, "")
    assert (printed in done.stdout) if printed else not done.stdout
    if printed:
        assert "the reason" in done.stdout
    assert (place / "paged").exists() == paged
    assert (place / "ran").read_text(encoding="utf-8") == "run jobs/nightly-tickets.yaml --log-format json\n"
    assert (place / "jobs" / "nightly-tickets.yaml.log").read_text(encoding="utf-8") == LOG + "\n"


@pytest.mark.parametrize(("code", "becomes"), [(0, 0), (1, 0), (3, 3), (4, 4), (69, 69), (75, 75)])
def test_the_pod_of_kubernetes(place: Path, code: int, becomes: int) -> None:
    (place / "code").write_text(str(code), encoding="utf-8")
    done = pod(place)
    done.communicate()
    assert done.returncode == becomes


def test_the_pod_passes_a_stop_on(place: Path) -> None:
    program(
        place / "venv" / "bin" / "batchchat", "sleep 30 & trap 'kill $!; echo got it; exit 143' TERM; touch on; wait"
    )
    running = pod(place)
    wait_for((place / "on").exists)
    running.send_signal(signal.SIGTERM)
    out, _ = running.communicate(timeout=20)
    assert (running.returncode, out) == (143, "got it\n")


def pod(place: Path) -> subprocess.Popen[str]:
    """The container of the CronJob, as the kubelet starts it: its command is the first process."""
    (container,) = manifest()["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    env = {**os.environ, "PATH": f"{place}/venv/bin:/usr/bin:/bin"}
    return subprocess.Popen(
        [*container["command"], *container["args"]], cwd=place, env=env, text=True, stdout=subprocess.PIPE
    )


def manifest() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((NIGHTLY / "cronjob.yaml").read_text(encoding="utf-8"))
    return found


def test_kubernetes_tries_again_what_goes_on_by_itself_and_only_that() -> None:
    spec = manifest()["spec"]
    assert spec["concurrencyPolicy"] == "Forbid"
    job = spec["jobTemplate"]["spec"]
    fail = job["podFailurePolicy"]["rules"][0]
    assert (fail["action"], fail["onExitCodes"]["operator"]) == ("FailJob", "In")
    assert not {0, 1, 4, 69, 75, 143} & set(fail["onExitCodes"]["values"])
    assert {2, 3, 70, 74} <= set(fail["onExitCodes"]["values"])
    assert job["template"]["spec"]["restartPolicy"] == "Never", "a failure policy needs it"


@pytest.fixture
def dag(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The Airflow recipe as a module, with as much of Airflow as it uses."""

    def passing(*arguments: Any, **_options: Any) -> Any:
        return arguments[0] if arguments else lambda function: function

    errors = {name: type(name, (Exception,), {}) for name in ("AirflowException", "AirflowFailException")}
    modules = {
        "airflow": types.ModuleType("airflow"),
        "airflow.decorators": types.SimpleNamespace(dag=passing, task=passing),
        "airflow.exceptions": types.SimpleNamespace(**errors),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    # Importing it calls the task once, where Airflow only notes it.
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: types.SimpleNamespace(returncode=0))
    spec = importlib.util.spec_from_file_location("airflow_dag", NIGHTLY / "airflow_dag.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_airflow_retries_fails_or_goes_on_by_the_exit_code(dag: Any) -> None:
    assert "every row" in dag.judge(0)
    assert "failed" in dag.judge(1)
    for code in (4, 69, 75, 143):
        with pytest.raises(dag.AirflowException):
            dag.judge(code)
    for code in (2, 3, 5, 70, 74):
        with pytest.raises(dag.AirflowFailException):
            dag.judge(code)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_takes_the_units(place: Path) -> None:
    units = place / "units"
    units.mkdir()
    for path in (*NIGHTLY.glob("*.service"), *NIGHTLY.glob("*.timer")):
        text = path.read_text(encoding="utf-8").replace("/srv/tickets", str(place))
        (units / path.name).write_text(text, encoding="utf-8")
    names = ["batchchat-nightly.timer", "batchchat-nightly.service"]
    done = subprocess.run(
        ["systemd-analyze", "verify", *(f"./{name}" for name in names)],
        cwd=units, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_systemd_tries_again_what_goes_on_by_itself_and_only_that() -> None:
    text = (NIGHTLY / "batchchat-nightly.service").read_text(encoding="utf-8")

    def codes(name: str) -> set[int]:
        found = re.search(rf"^{name}=(.*)$", text, re.MULTILINE)
        assert found is not None
        return set(map(int, found[1].split()))

    assert codes("RestartForceExitStatus") == {4, 69, 75}
    assert codes("RestartPreventExitStatus") == {2, 3, 5, 70, 74}
    assert codes("SuccessExitStatus") == {1, 143}
