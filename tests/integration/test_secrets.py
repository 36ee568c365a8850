"""The key goes to the provider and nowhere else, whatever a server sends back and whatever is done with it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

from batchchat.demo import DemoOptions, DemoServer
from batchchat.errors import UsageError
from batchchat.job import load_job
from tests.integration.jobs import texts, write_rows
from tests.integration.processes import batchchat, start, wait_for
from tests.integration.raw_server import Peer, RawServer, Script, response
from tests.integration.test_cli import Command, command
from tests.thorough import one_in

__all__ = ["command"]

ROWS = 16


def completion(told: str) -> dict[str, Any]:
    """An answer that says the key wherever a completion can say anything."""
    call = {"id": told, "type": "function", "function": {"name": "f", "arguments": f'{{"a": "{told}"}}'}}
    message = {"content": f"it is {told}", "reasoning_content": told, "tool_calls": [call]}
    logprobs = {"content": [{"token": told, "logprob": -0.1, "top_logprobs": [{"token": told, "logprob": -0.1}]}]}
    choice = {"message": message, "finish_reason": "stop", "logprobs": logprobs}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    return {"choices": [choice], "usage": usage, "model": told, "id": told, "system_fingerprint": told}


def events(told: str) -> bytes:
    """The same as a stream that cuts the key in pieces."""
    data = completion(told)
    message = data["choices"][0].pop("message")
    message["content"] = ""
    deltas = [message, *({"content": piece} for piece in ("it is ", told[:5], told[5:12], told[12:]))]
    chunks = [{**data, "choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    chunks[-1]["choices"][0]["finish_reason"] = "stop"
    return b"".join(b"data: " + orjson.dumps(chunk) + b"\n\n" for chunk in [*chunks, "[DONE]"]).replace(
        b'"[DONE]"', b"[DONE]"
    )


def echo() -> Script:
    """Give the key back in every shape: answers, streams, errors, a page, a header, a redirect, a broken head."""
    seen: list[int] = []

    async def script(peer: Peer) -> None:
        while True:
            number, request = len(seen), await peer.request()
            seen.append(number)
            key = next(line for line in request.split(b"\r\n") if line.lower().startswith(b"authorization")).split()[-1]
            told = key.decode()
            answer = orjson.dumps(completion(told))
            error = orjson.dumps({"error": {"message": f"wrong: Bearer {told}", "type": told, "param": told}})
            good = cut = response(answer, f"X-Request-Id: {told}")
            if b'"stream":true' in request:
                head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
                good, cut = head + events(told), head + events(told)[:-30]
            shapes = [
                cut,
                response(error, status="400 Bad Request"),
                response(error, status="500 Oops"),
                response(b"<html>" + key, "Content-Type: text/html"),
                response(b"{}", f"Location: http://127.0.0.1:1/{told}", status="302 Found"),
                response(answer[:-9]),
                b"HTTP/1.1 " + key + b"\r\n\r\n",
            ]
            # One good answer after each bad one, or it would look like an outage.
            shape = shapes[number // 2 % len(shapes)] if number % 2 else good
            await peer.send(shape)
            if b"Connection: close" in shape:
                return

    return script


FORMS: dict[str, dict[str, Any]] = {
    "plain": {"params": {"logprobs": True}, "cache": "cache"},
    "streamed": {"params": {"stream": True, "logprobs": True}},
    "typed": {
        "response": {"schema": {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}},
        "samples": 2,
    },
    "tools": {
        "params": {
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
            "tool_choice": "auto",
        }
    },
}


def write_job(folder: Path, url: str, **fields: Any) -> Path:
    write_rows(folder / "rows.jsonl", [{**row, "label": "yes"} for row in texts(ROWS)])
    data: dict[str, Any] = {
        "name": "echo",
        "input": {"path": "rows.jsonl", "key": "id"},
        "output": "out",
        "provider": {"base_url": url + "/v1", "api_key_env": "CANARY"},
        "model": "m",
        "messages": [{"role": "user", "content": "{{ text }}"}],
        "limits": {"concurrency": 1},
        "retry": {"attempts": 1},
        **fields,
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(data), encoding="utf-8")
    return folder / "job.yaml"


@pytest.fixture
def key() -> str:
    return "canary-" + os.urandom(12).hex()


def tell(folder: Path, key: str, *commands: list[str]) -> Iterator[int]:
    """Run commands with the key in the environment; none may print it. Yields their exit codes."""
    for arguments in commands:
        done = batchchat(*arguments, cwd=folder, env={"CANARY": key})
        assert key not in done.stdout + done.stderr, arguments
        assert "Traceback" not in done.stderr, done.stderr
        yield done.returncode


def check_files(folder: Path, key: str) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    assert [path for path in files if key.encode() in path.read_bytes()] == []


@pytest.mark.parametrize("form", one_in(len(FORMS), FORMS))
def test_a_key_that_is_echoed_reaches_no_file_and_no_line(tmp_path: Path, key: str, form: str) -> None:
    with RawServer(echo()) as server:
        write_job(tmp_path, server.url, **FORMS[form])
        looks = [
            ["show", "out", "--json", "--limit", "100"],
            ["export", "out", "-o", "x.jsonl"],
            ["status", "out", "--json"],
            ["history", "out", "--json"],
            ["report", "out", "-o", "page.html"],
            ["verify", "out"],
            ["plan", "job.yaml"],
        ]
        codes = tell(
            tmp_path,
            key,
            ["run", "job.yaml", "-v", "--log-format", "json", "--html", "run.html"],
            ["run", "job.yaml", "-v", "--retry-failed=all"],
            *(looks if form == "plain" else looks[:2]),
        )
        assert next(codes) in {1, 3}
        assert next(codes) in {1, 3}
        assert set(codes) <= {0}
        assert len(server.received) >= 14
    check_files(tmp_path, key)
    exported = (tmp_path / "x.jsonl").read_text(encoding="utf-8")
    assert "it is ***" in exported
    for path in [tmp_path / "out" / "_batchchat", *(tmp_path / "out" / "_batchchat").rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_no_key_of_an_evaluation_is_anywhere(command: Command, tmp_path: Path, key: str) -> None:
    """The judge has a provider and a key of its own; the job's comes from a `.env`, which is read as plain text."""
    judge = "canary-judge-" + os.urandom(12).hex()
    with RawServer(echo()) as server:
        write_job(tmp_path, server.url, name="base")
        (tmp_path / ".env").write_text(
            f"CANARY='{key}'\nOTHER=$(touch owned)`touch owned`${{HOME}}\n", encoding="utf-8"
        )
        own = {"base_url": server.url + "/v1", "api_key_env": "CANARY_OF_JUDGE"}
        suite = {
            "name": "suite",
            "job": "job.yaml",
            "variants": [{"name": "a"}, {"name": "b", "params.temperature": 1}],
            "judge": {"model": "m", "provider": own, "retry": {"attempts": 1}, "limits": {"concurrency": 1}},
            "scorers": [
                {"name": "right", "kind": "contains", "expected": "label"},
                {"name": "good", "kind": "judge", "rubric": "Is it good?"},
            ],
            "output": "out",
        }
        (tmp_path / "suite.yaml").write_text(yaml.safe_dump(suite), encoding="utf-8")
        for arguments in (
            ["eval", "suite.yaml", "-v", "--junit", "junit.xml"],
            ["score", "suite.yaml", "--json"],
            ["compare", "out/variants/a", "out/variants/b", "--json"],
        ):
            done = command(*arguments, cwd=tmp_path, env={"CANARY_OF_JUDGE": judge})
            assert done.returncode != 70, done.stderr
            for secret in (key, judge):
                assert secret not in done.stdout + done.stderr, arguments
        authorized = {line for request in server.received for line in request.splitlines() if b"uthorization" in line}
        assert {line.split()[-1].decode() for line in authorized} == {key, judge}
    (tmp_path / ".env").unlink()
    assert not (tmp_path / "owned").exists()
    assert (tmp_path / "out" / "summary.json").exists()
    for secret in (key, judge):
        check_files(tmp_path, secret)


def test_a_running_process_shows_the_key_to_nobody(tmp_path: Path, key: str) -> None:
    with DemoServer(DemoOptions(latency_s=30, api_key=key)) as demo:
        job = write_job(tmp_path, demo.base_url.removesuffix("/v1"), model="llama-3.1-8b-instruct")
        process = start("run", job, cwd=tmp_path, env={"CANARY": key})
        wait_for(lambda: demo.stats().requests == 1)
        wait_for((tmp_path / "out" / "_batchchat" / "live.json").exists)
        for name in ("cmdline", "comm"):
            assert key not in Path(f"/proc/{process.pid}/{name}").read_text(encoding="utf-8")
        check_files(tmp_path, key)
        process.kill()
        _, told = process.communicate()
    assert key not in told


@pytest.mark.parametrize("address", ["https://user:sk-hidden@host/v1", "https://host/v1?api_key=sk-hidden"])
def test_a_key_in_an_address_is_refused_and_not_repeated(tmp_path: Path, address: str) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(1))
    text = f"name: x\ninput: rows.jsonl\noutput: out\nprovider: {{base_url: '{address}'}}\nmodel: m\n"
    (tmp_path / "job.yaml").write_text(text + "messages: [{role: user, content: a}]\n", encoding="utf-8")
    with pytest.raises(UsageError) as refused:
        load_job(tmp_path / "job.yaml")
    assert "sk-hidden" not in str(refused.value) + (refused.value.remedy or "")
