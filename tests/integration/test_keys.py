"""Keys through whole runs: from files and commands, expiring in mid-run, in both engines; none is ever written."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from click.testing import CliRunner

import batchchat
from batchchat.cli import cli
from batchchat.demo import BatchOptions, DemoOptions, DemoServer
from batchchat.demo.keys import KeyGate
from batchchat.demo.request import ApiError
from batchchat.errors import JobError
from batchchat.events import Event
from batchchat.job import Job, load_job
from tests.integration.jobs import make_job, query, texts, write_rows

KEY = "canary-key-0123456789"


def reading(path: Path) -> dict[str, Any]:
    """The two ways to read the key that stands in a file."""
    return {
        "file": {"api_key_file": str(path)},
        "command": {"api_key_command": [sys.executable, "-S", "-c", f"print(open({str(path)!r}).read())"]},
    }


def run(job: Job, **options: Any) -> tuple[batchchat.RunSummary, list[Event]]:
    events: list[Event] = []
    return batchchat.run(job, environ={"PATH": "/bin:/usr/bin"}, listener=events.append, **options), events


def nothing_holds(secret: str, folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            assert secret.encode() not in path.read_bytes(), path


class Changing:
    """A service whose key changes after every seven answers; the valid one stands in a file."""

    def __init__(self, path: Path) -> None:
        self.path, self.key, self.answers, self.refused = path, "", 0, 0
        self.change()

    def change(self) -> None:
        self.key = f"canary-key-{self.answers:06d}"
        self.path.write_text(self.key)
        self.path.chmod(0o600)

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        given = request.headers.get("authorization")
        await anyio.sleep(0.002)
        if given != f"Bearer {self.key}":
            self.refused += 1
            return httpx.Response(401, json={"error": {"message": f"{given} has expired", "code": "invalid_api_key"}})
        self.answers += 1
        if self.answers % 7 == 0:
            self.change()
        message = {"role": "assistant", "content": "yes"}
        return httpx.Response(200, json={"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})


@pytest.mark.parametrize("way", ["file", "command"])
def test_a_key_that_expires_again_and_again_costs_no_row_and_no_attempt(tmp_path: Path, way: str) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(50))
    service = Changing(tmp_path / "the-key")
    provider = {"base_url": "http://host.invalid/v1", **reading(service.path)[way]}
    job = make_job(tmp_path, None, provider=provider, model="m", limits={"concurrency": 4})
    summary, events = run(job, transport=httpx.MockTransport(service))
    assert (summary.exit_code, summary.ok, summary.sent) == (0, 50, 50)
    renewed = [event for event in events if event.name == "key_renewed"]
    assert 6 <= len(renewed) <= 7
    # Each key is refused at most once for each request that is under way.
    assert len(renewed) <= service.refused <= 4 * len(renewed)
    assert query(tmp_path, "SELECT DISTINCT attempts FROM data") == [(1,)]
    nothing_holds("canary-key", tmp_path / "out")


def test_a_batch_lives_through_keys_that_expire(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(10))
    key, events = tmp_path / "the-key", list[Event]()
    with DemoServer(DemoOptions(key_lifetime_s=3600, key_file=key, batch=BatchOptions(seconds=0.2))) as server:

        def expire(event: Event) -> None:
            events.append(event)
            if event.name in {"run_started", "batch_created"}:
                server.expire_key()

        provider = {"profile": "demo", "base_url": server.base_url, "api_key_file": str(key)}
        job = make_job(tmp_path, None, provider=provider, engine={"kind": "batch", "poll": 0.1})
        summary = batchchat.run(job, environ={}, listener=expire)
    assert (summary.exit_code, summary.ok) == (0, 10)
    assert [event.name for event in events].count("key_renewed") == 2


def test_the_key_of_the_demo_server_expires_and_its_file_has_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "key"

    async def use() -> None:
        gate = KeyGate(DemoOptions(key_lifetime_s=0.02, key_file=path))
        first = path.read_bytes().strip()
        assert path.stat().st_mode & 0o777 == 0o600
        gate.check(b"Bearer " + first)
        await anyio.sleep(0.03)
        for given in (b"Bearer " + first, None, b"another"):
            with pytest.raises(ApiError) as raised:
                gate.check(given)
            assert raised.value.status == 401
        assert path.read_bytes().strip() != first

    anyio.run(use)


@pytest.mark.parametrize("engine", ["local", "batch"])
def test_a_key_that_stays_refused_ends_the_run_with_3(tmp_path: Path, engine: str) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(20))
    (tmp_path / "wrong").write_text(KEY)
    (tmp_path / "wrong").chmod(0o600)
    with DemoServer(DemoOptions(latency_s=0, key_lifetime_s=60, key_file=tmp_path / "right")) as server:
        provider = {"profile": "demo", "base_url": server.base_url, "api_key_file": str(tmp_path / "wrong")}
        summary, events = run(make_job(tmp_path, None, provider=provider, engine=engine))
        asked = server.stats().requests
    assert (summary.exit_code, summary.ok, summary.failed) == (3, 0, 0)
    assert "key" in (summary.reason or "")
    assert asked <= 8
    assert KEY not in json.dumps([str(event) for event in events])
    nothing_holds(KEY, tmp_path / "out")


def test_the_header_and_the_scheme_of_a_key(tmp_path: Path) -> None:
    sent: list[tuple[str | None, str | None]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append((request.headers.get("api-key"), request.headers.get("authorization")))
        message = {"role": "assistant", "content": "yes"}
        return httpx.Response(200, json={"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})

    write_rows(tmp_path / "rows.jsonl", texts(1))
    azure = {"profile": "azure", "base_url": "http://host.invalid/openai/v1"}
    custom = {"base_url": "http://host.invalid/v1", "api_key_env": "AZURE_OPENAI_API_KEY"}
    for provider in (
        azure,
        {**azure, "api_key_header": "Authorization"},
        {**custom, "api_key_scheme": ""},
        {**custom, "api_key_header": "api-key", "api_key_scheme": "Key"},
    ):
        job = make_job(tmp_path, None, provider=provider, model="m", output={"path": str(tmp_path / str(len(sent)))})
        batchchat.run(job, transport=httpx.MockTransport(answer), environ={"AZURE_OPENAI_API_KEY": KEY})
    assert sent == [(KEY, None), (None, f"Bearer {KEY}"), (None, KEY), (f"Key {KEY}", None)]


JOB = """\
name: keys
input: rows.jsonl
output: out
provider: {PROVIDER}
model: m
messages: [{role: user, content: "{{ text }}"}]
"""
REFUSED: dict[str, tuple[str, str]] = {
    "two places": ("api_key_env: K, api_key_file: f", "job.yaml:4: provider: api_key_env and api_key_file are ways"),
    "a key as a file": (f"api_key_file: {KEY}abc", "must be the path of a file that holds the key, not a key"),
    "a key in a command": ("api_key_command: [echo, sk-0123456789abcdef01]", "must not hold a key: others can see"),
    "no words": ("api_key_command: []", "name the program that prints the key"),
    "a number": ("api_key_command: 5", "must be a command, such as"),
    "a pipe": ("api_key_command: cat f | head -1", "runs without a shell, so | means nothing"),
    "a quote": ("""api_key_command: "cat 'f" """, "has a quote that is not closed"),
    "a header of ours": ("api_key_header: Content-Length", "is set by batchchat itself"),
    "no header": ("api_key_header: 'a b'", "must be the name of a header, such as api-key"),
    "two schemes": ("api_key_scheme: Bearer x", "must be one word, such as Bearer, or empty"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_a_place_of_a_key_is_refused_with_line_and_words(tmp_path: Path, case: str) -> None:
    fields, words = REFUSED[case]
    provider = f"{{base_url: 'http://host.invalid/v1', {fields}}}"
    (tmp_path / "job.yaml").write_text(JOB.replace("{PROVIDER}", provider))
    with pytest.raises(JobError) as raised:
        load_job(tmp_path / "job.yaml")
    assert words in str(raised.value)
    assert "job.yaml:4: provider" in str(raised.value)
    assert "canary" not in str(raised.value)
    assert "sk-0" not in str(raised.value)


def test_azure_needs_its_address(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(JOB.replace("{PROVIDER}", "azure"))
    with pytest.raises(JobError, match=r"job.yaml:4: provider: azure has another address for each customer: give"):
        load_job(tmp_path / "job.yaml")


def test_a_missing_file_and_a_missing_program_end_a_run_before_anything_is_sent(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(2))
    for field, words in (
        ("api_key_file: secrets/key", f"the file {tmp_path}/secrets/key cannot be read: No such file"),
        ("api_key_command: ./no-such-program --now", "the command ./no-such-program is not found"),
    ):
        provider = f"{{base_url: 'http://127.0.0.1:9/v1', {field}}}"
        (tmp_path / "job.yaml").write_text(JOB.replace("{PROVIDER}", provider))
        plan = CliRunner().invoke(cli, ["plan", str(tmp_path / "job.yaml")])
        assert plan.exit_code == 0
        assert "A run needs it." in " ".join(plan.output.split())
        with pytest.raises(JobError) as raised:
            run(load_job(tmp_path / "job.yaml"))
        name = field.split(":")[0]
        assert f"job.yaml:4: provider.{name}: http://127.0.0.1:9/v1 needs a key, and {words}" in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_a_plan_says_where_the_key_comes_from_and_whether_it_is_there(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(2))
    (tmp_path / "key").write_text(KEY)
    for field, place, there in (
        ("api_key_file: key", f"the file {tmp_path}/key", True),
        ("api_key_file: other", f"the file {tmp_path}/other", False),
        # A plan does not run a command.
        ("api_key_command: false", "the command false", True),
        ("api_key_env: NO_SUCH_VARIABLE_HERE", "the environment variable NO_SUCH_VARIABLE_HERE", False),
    ):
        provider = f"{{base_url: 'http://127.0.0.1:9/v1', {field}}}".replace(": false}", ": 'false'}")
        (tmp_path / "job.yaml").write_text(JOB.replace("{PROVIDER}", provider))
        told = json.loads(CliRunner().invoke(cli, ["plan", str(tmp_path / "job.yaml"), "--json"]).stdout)
        assert (told["key"], told["key_found"]) == (place, there)
        page = CliRunner().invoke(cli, ["plan", str(tmp_path / "job.yaml")]).output
        assert f"key          {place}{'' if there else ' (not there)'}\n" in page
        assert "canary" not in page
