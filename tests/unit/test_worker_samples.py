"""The samples for many processes are whole: they are read by what would run them, and judge exit codes as they say."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
from typing import Any

import pytest
import yaml

from batchchat.cli import cli
from tests.integration.jobs import ROOT

SAMPLES = ROOT / "jobs" / "workers"
PERSON, LATER = {2, 3, 70, 74}, {4, 69, 75}


def test_the_script_for_slurm_is_a_script_and_has_a_share_for_each_task() -> None:
    text = (SAMPLES / "slurm.sh").read_text(encoding="utf-8")
    subprocess.run(["bash", "-n", SAMPLES / "slurm.sh"], check=True)
    assert "--shard auto" in text
    assert "#SBATCH --array=0-15" in text
    requeued = re.search(r"^ *([\d |]+)\) scontrol requeue", text, re.MULTILINE)
    assert requeued is not None
    assert {int(code) for code in requeued[1].split("|")} == LATER | {143}


def test_the_job_of_kubernetes_gives_each_index_its_share() -> None:
    spec = yaml.safe_load((SAMPLES / "indexed-job.yaml").read_text(encoding="utf-8"))["spec"]
    pod = spec["template"]["spec"]["containers"][0]
    told = {variable["name"]: variable["value"] for variable in pod["env"]}
    assert spec["completionMode"] == "Indexed"
    assert told["BATCHCHAT_SHARDS"] == str(spec["completions"])
    fail, ignore = spec["podFailurePolicy"]["rules"]
    assert (fail["action"], set(fail["onExitCodes"]["values"])) == ("FailIndex", PERSON)
    assert ignore["action"] == "Ignore"
    assert "--shard auto" in pod["args"][0]


def test_the_job_of_kuberay_has_a_place_for_each_worker() -> None:
    spec = yaml.safe_load((SAMPLES / "rayjob.yaml").read_text(encoding="utf-8"))["spec"]
    words = shlex.split(shlex.split(spec["entrypoint"])[2])
    (group,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    places = group["replicas"] * int(group["rayStartParams"]["num-cpus"])
    assert int(words[words.index("--workers") + 1]) == places
    assert words[words.index("--ray") + 1] == "auto"
    assert spec["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


@pytest.mark.parametrize("code", [0, 1, *LATER, 143, *PERSON])
def test_the_tasks_of_airflow_judge_an_exit_code(code: int) -> None:
    tree = ast.parse((SAMPLES / "airflow_dag.py").read_text(encoding="utf-8"))
    wanted = ("FOLDER", "SHARES", "COMMAND", "FINE", "LATER")
    kept: list[ast.stmt] = [
        node
        for node in tree.body
        if (isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in wanted)
        or (isinstance(node, ast.FunctionDef) and node.name == "judge")
    ]
    later, never = type("Later", (Exception,), {}), type("Never", (Exception,), {})
    names: dict[str, Any] = {"AirflowException": later, "AirflowFailException": never}
    exec(compile(ast.Module(kept, []), "airflow_dag.py", "exec"), names)
    if code in {0, 1}:
        assert "done" in names["judge"](3, code)
        return
    with pytest.raises(never if code in PERSON else later, match=f"share 3: exit code {code}"):
        names["judge"](3, code)


def test_the_options_of_the_samples_exist() -> None:
    known = {name for command in cli.commands.values() for option in command.params for name in option.opts}
    for path in SAMPLES.iterdir():
        named = re.findall(r"batchchat\"?,? \"?run.*", path.read_text(encoding="utf-8"))
        for line in named:
            assert set(re.findall(r"--[a-z][a-z-]+", line)) <= known
