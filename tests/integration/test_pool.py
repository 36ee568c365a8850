"""Several servers as processes of their own: one dies and comes back, one refuses the key."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.jobs import query, texts, write_rows
from tests.integration.processes import Process

KEY = "sk-of-this-test-0123456789"


class DemoProcess:
    """A demo server that can be killed and started again at the same address."""

    def __init__(self, folder: Path, *options: str, **env: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._folder, self._options, self._env = folder, options, env
        self.process: Process | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        arguments = ("demo-server", "--port", str(self.port), "--latency", "0.1s", *self._options)
        self.process = Process(*arguments, cwd=self._folder, env=self._env)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                httpx.get(f"{self.url}/models", timeout=1, trust_env=False)
            except httpx.HTTPError:
                time.sleep(0.02)
            else:
                return
        raise AssertionError("the demo server did not start")

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate(timeout=10)
            self.process = None


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[list[DemoProcess]]:
    with ExitStack() as stack:
        found = []
        for options in ((), (), ("--key-env", "POOL_TEST_SECRET")):
            server = DemoProcess(tmp_path, *options, POOL_TEST_SECRET=KEY)
            stack.callback(server.kill)
            found.append(server)
        yield found


def job_file(folder: Path, endpoints: list[Any], **fields: Any) -> Path:
    data = {
        "name": "pool",
        "input": {"path": "rows.jsonl", "key": "id"},
        "output": "out",
        "provider": {"name": "three-servers", "profile": "demo", "endpoints": endpoints},
        "model": "llama-3.1-8b-instruct",
        "messages": [{"role": "user", "content": "Labels: yes, no\n{{ text }}"}],
        "limits": {"concurrency": 24},
        # An attempt that counted would be a failed row.
        "retry": {"attempts": 1},
        **fields,
    }
    path = folder / "job.yaml"
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def records(folder: Path) -> int:
    journal = folder / "out" / "_batchchat" / "live.json"
    try:
        return int(json.loads(journal.read_text(encoding="utf-8"))["ok"])
    except (OSError, ValueError, KeyError):
        return 0


@pytest.mark.thorough
def test_a_server_killed_in_mid_run_and_one_that_refuses_the_key_fail_no_row(
    tmp_path: Path, servers: list[DemoProcess]
) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(1500))
    job_file(tmp_path, [servers[0].url, servers[1].url, {"base_url": servers[2].url, "weight": 2}])
    run = Process("run", "job.yaml", "--json", cwd=tmp_path)
    deadline = time.monotonic() + 60
    while records(tmp_path) < 200 and time.monotonic() < deadline:
        time.sleep(0.05)
    servers[1].kill()
    time.sleep(1)
    servers[1].start()
    out, err = run.communicate(timeout=120)
    summary = json.loads(out)
    assert run.returncode == 0, err
    assert (summary["ok"], summary["failed"]) == (1500, 0)
    shares = {one["endpoint"]: one["ok"] for one in summary["answered_by"]}
    assert shares.keys() == {servers[0].url, servers[1].url}
    assert sum(shares.values()) == 1500
    assert f"nothing more is sent to {servers[2].url}" in err
    assert KEY not in out + err
    told = query(tmp_path, "select distinct provider from data")
    assert told == [("three-servers",)]


def test_a_run_says_what_is_wrong_with_its_endpoints_before_it_sends(
    tmp_path: Path, servers: list[DemoProcess]
) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(3))
    one, other, _ = (server.url for server in servers)
    for endpoints, fields, words in (
        ([one, f"{one}/"], {}, "provider.endpoints.1: is the same as endpoint 1"),
        ([one, {"base_url": other, "api_key_env": "NO_SUCH_KEY_HERE"}], {}, "NO_SUCH_KEY_HERE is not set"),
        ([one], {"fallback": [{"model": "llama-3.1-8b-instruct"}]}, "fallback.0: loops"),
        ([one, other], {"model": "no-such-model"}, "no-such-model is not at any of the 2 endpoints"),
        ([one, other], {"engine": "batch"}, "engine: a batch goes to one endpoint"),
        ([one, {"base_url": other, "weight": 0}], {}, "provider.endpoints.1.weight: must be more than 0"),
        ([], {}, "provider.endpoints: must not be empty"),
    ):
        job_file(tmp_path, endpoints, **fields)
        run = Process("run", "job.yaml", cwd=tmp_path)
        _, err = run.communicate(timeout=60)
        assert run.returncode == 2, (words, err)
        assert words in err.replace("\n", " "), err
        assert "job.yaml:1" in err
