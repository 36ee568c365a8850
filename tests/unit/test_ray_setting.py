"""What a worker on another node needs: files, locks, secrets; and the calls that drive it, without a cluster."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from batchchat import __version__
from batchchat.cli import main
from batchchat.errors import BatchchatError
from batchchat.workers import ray_actor
from batchchat.workers.ray_actor import WorkerActor, look_around
from batchchat.workers.ray_setting import passed_environment, probing, problem_with
from tests.integration.jobs import make_job, texts, write_rows


def _job(folder: Path, **fields: Any) -> Any:
    write_rows(folder / "rows.jsonl", texts(3))
    return make_job(folder, "http://127.0.0.1:9/v1", **fields)


@pytest.mark.thorough
def test_a_job_with_workers_of_this_machine_does_not_import_ray() -> None:
    code = "import sys, batchchat.workers, batchchat.cli.running, batchchat.cli.sharding, batchchat.workers.processes\n"
    code += "assert not {'ray', 'batchchat.workers.ray_setting', 'batchchat.workers.ray_cluster'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_node_that_sees_the_files_and_the_lock_fits(tmp_path: Path) -> None:
    job = _job(tmp_path)
    with probing(job) as probe:
        assert look_around(probe.told(), __version__) is None
        assert Path(str(probe.file)).parent == tmp_path  # there is no output yet
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl"]
    (tmp_path / "out").mkdir()
    with probing(job) as probe:
        assert Path(str(probe.file)).parent == tmp_path / "out"
        assert look_around(probe.told(), __version__) is None
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"file": "/nowhere/.probe"}, "does not see the folder of the output, /nowhere"),
        ({"nonce": "other"}, "another folder than the coordinator's"),
        ({"input": "/nowhere/rows.jsonl"}, "does not see the input /nowhere/rows.jsonl"),
        ({"size": 1}, "another size than the coordinator's"),
    ],
)
def test_a_node_that_lacks_something_is_told_in_words(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    with probing(_job(tmp_path)) as probe:
        problem = problem_with({**probe.told(), **change})
    assert problem is not None
    assert words in problem[0]
    assert problem[1]


def test_a_folder_without_locks_between_nodes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "probe").write_text("nonce")
    problem = problem_with({"file": str(tmp_path / "probe"), "nonce": "nonce", "input": None, "size": None})
    assert problem is not None
    assert "does not keep locks between nodes" in problem[0]


def test_another_version_of_batchchat_is_refused() -> None:
    problem = look_around({"file": None, "nonce": "", "input": None, "size": None}, "0.0.1")
    assert problem is not None
    assert __version__ in problem[0]


def test_an_output_and_an_input_in_a_bucket_leave_no_probe(tmp_path: Path) -> None:
    job = _job(tmp_path, output="s3://bucket/run", input={"path": "s3://bucket/rows.jsonl", "key": "id"})
    with probing(job) as probe:
        assert (probe.file, probe.input) == (None, None)
        assert problem_with(probe.told()) is None


def test_the_secrets_of_a_job_are_passed_and_nothing_else(tmp_path: Path) -> None:
    provider = {"base_url": "http://127.0.0.1:9/v1", "api_key_env": "MY_KEY"}
    wanted = {"MY_KEY": "k", "AWS_REGION": "r", "HF_TOKEN": "t", "https_proxy": "p"}
    other = {"HOME": "/h", "OTHER_KEY": "o", "RAY_ADDRESS": "a", "HF_HOME": "/hub"}
    assert passed_environment(_job(tmp_path, provider=provider), {**wanted, **other}) == wanted


def _begun() -> WorkerActor:
    worker = WorkerActor()
    seen = worker.begin({"file": None, "nonce": "", "input": None, "size": None}, __version__, {})
    assert seen["problem"] is None
    return worker


def test_a_worker_that_fails_to_begin_tells_its_end() -> None:
    worker = _begun()
    worker.tell(json.dumps({"do": "nonsense"}).encode())
    assert worker.hear() == ([], 70, "ended with exit code 70")


def test_an_unknown_error_is_told_by_its_place_alone() -> None:
    worker = _begun()
    worker.tell(b'{"do": "begin", "secret": "hidden-value"}')
    said, code, reason = worker.hear()
    assert (said, code) == ([], 70)
    assert "KeyError" in reason or "ExceptionGroup" in reason
    assert "hidden-value" not in reason


def test_a_worker_whose_coordinator_is_silent_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_actor, "_ALONE_S", 0.0)
    worker = _begun()
    threads = [thread for thread in threading.enumerate() if thread.name == "worker"]
    for thread in threads:
        thread.join(5)
    assert worker.hear()[1] == 70


def _failed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["batchchat", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    return capsys.readouterr().err


def _written(folder: Path) -> str:
    job = _job(folder, output={"path": str(folder / "out"), "shards": 4})
    path = folder / "job.yaml"
    path.write_text(json.dumps({name: value for name, value in job.snapshot().items() if name != "file"}))
    return str(path)


def test_ray_without_workers_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "without --workers" in _failed(monkeypatch, capsys, "run", _written(tmp_path), "--ray", "auto")


def test_ray_that_is_not_installed_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "batchchat.workers.ray_cluster", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    said = _failed(monkeypatch, capsys, "run", _written(tmp_path), "--workers", "2", "--ray", "auto")
    assert "pip install 'batchchat[ray]'" in said


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("ray://head:10001", "outside of the cluster"),
        ("somewhere", "neither auto nor of the form HOST:PORT"),
        ("127.0.0.1:1", "cannot be reached"),
    ],
)
def test_an_address_that_is_none_is_told_at_once(address: str, words: str) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install '.[test,ray]'")
    import anyio

    from batchchat.workers.ray_cluster import _connect

    with pytest.raises(BatchchatError, match=words):
        anyio.run(_connect, address)
