"""The key goes to the provider and nowhere else, whatever a server sends back."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import orjson
import pytest
import yaml

from batchchat.errors import UsageError
from batchchat.job import load_job
from tests.integration.jobs import texts, write_rows
from tests.integration.processes import batchchat
from tests.integration.raw_server import Peer, RawServer, Script, response


def echo() -> Script:
    """Give the key back in every shape: a completion, errors, a page, a header, a redirect, a broken head."""
    seen: list[int] = []

    async def script(peer: Peer) -> None:
        while True:
            number, request = len(seen), await peer.request()
            seen.append(number)
            key = next(line for line in request.split(b"\r\n") if line.lower().startswith(b"authorization")).split()[-1]
            told = key.decode()
            usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
            choice = {"message": {"content": f"it is {told}"}, "finish_reason": "stop"}
            answer = orjson.dumps({"choices": [choice], "usage": usage, "model": told, "id": told})
            error = orjson.dumps({"error": {"message": f"wrong: Bearer {told}", "type": told, "param": told}})
            shapes = [
                response(answer, f"X-Request-Id: {told}"),
                response(error, status="400 Bad Request"),
                response(error, status="500 Oops"),
                response(b"<html>" + key, "Content-Type: text/html"),
                response(b"{}", f"Location: http://127.0.0.1:1/{told}", status="302 Found"),
                response(answer[:-9]),
                b"HTTP/1.1 " + key + b"\r\n\r\n",
            ]
            await peer.send(shapes[number % len(shapes)])

    return script


def test_a_key_that_is_echoed_reaches_no_file_and_no_line(tmp_path: Path) -> None:
    key = "canary-" + os.urandom(12).hex()
    write_rows(tmp_path / "rows.jsonl", texts(16))
    with RawServer(echo()) as server:
        data = {
            "name": "echo",
            "input": {"path": "rows.jsonl", "key": "id"},
            "output": "out",
            "provider": {"base_url": server.url + "/v1", "api_key_env": "CANARY"},
            "model": "m",
            "messages": [{"role": "user", "content": "{{ text }}"}],
            "limits": {"concurrency": 1},
            "retry": {"attempts": 1},
        }
        (tmp_path / "job.yaml").write_text(yaml.safe_dump(data), encoding="utf-8")
        env = {"CANARY": key}
        told = [
            batchchat(*command, cwd=tmp_path, env=env)
            for command in (
                ["run", "job.yaml", "-v", "--log-format", "json"],
                ["show", "out", "--json", "--limit", "100"],
                ["status", "out", "--json"],
                ["plan", "job.yaml"],
            )
        ]
        assert len(server.received) >= 14
    assert told[0].returncode in {1, 3}, told[0].stderr
    for done in told:
        assert key not in done.stdout + done.stderr
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path for path in files if key.encode() in path.read_bytes()] == []
    assert batchchat("export", "out", "-o", "x.jsonl", cwd=tmp_path).returncode == 0
    exported = (tmp_path / "x.jsonl").read_text(encoding="utf-8")
    assert key not in exported
    assert "it is " in exported
    for path in [tmp_path / "out" / "_batchchat", *(tmp_path / "out" / "_batchchat").rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


@pytest.mark.parametrize("address", ["https://user:sk-hidden@host/v1", "https://host/v1?api_key=sk-hidden"])
def test_a_key_in_an_address_is_refused_and_not_repeated(tmp_path: Path, address: str) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(1))
    text = f"name: x\ninput: rows.jsonl\noutput: out\nprovider: {{base_url: '{address}'}}\nmodel: m\n"
    (tmp_path / "job.yaml").write_text(text + "messages: [{role: user, content: a}]\n", encoding="utf-8")
    with pytest.raises(UsageError) as refused:
        load_job(tmp_path / "job.yaml")
    assert "sk-hidden" not in str(refused.value) + (refused.value.remedy or "")
