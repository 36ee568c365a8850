"""The demo provider's Batch API over real sockets, driven by OpenAI's own client."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import openai
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from batchchat.demo import BatchOptions, DemoOptions, create_app
from tests.integration.batch_driver import (
    CHAT,
    ENDED,
    MODEL,
    NO_TLS,
    Driver,
    client_of,
    driving,
    input_file,
    request_line,
)
from tests.integration.processes import Process
from tests.thorough import examples


@pytest.fixture(scope="module")
def demo() -> Iterator[Driver]:
    with driving() as driver:
        yield driver


def test_the_client_of_openai_drives_a_batch_from_upload_to_delete(demo: Driver) -> None:
    lines = [request_line(number) for number in range(20)]
    content = input_file(lines)
    file = demo.upload(content, "tickets.jsonl")
    assert (file.filename, file.bytes, file.purpose, file.status) == (
        "tickets.jsonl",
        len(content),
        "batch",
        "processed",
    )
    assert file.expires_at == file.created_at + 2_592_000
    assert demo.client.files.retrieve(file.id) == file
    assert demo.content(file.id) == content
    assert file in list(demo.client.files.list(purpose="batch"))

    batch = demo.create_of(file.id, metadata={"job": "tickets", "chunk": "1"})
    assert batch.id.startswith("batch_")
    assert batch.metadata == {"job": "tickets", "chunk": "1"}
    assert batch.expires_at == batch.created_at + 86_400
    assert batch in list(demo.client.batches.list()) or demo.ended(batch) in list(demo.client.batches.list())
    batch = demo.ended(batch)
    assert (batch.status, batch.errors, batch.error_file_id) == ("completed", None, None)
    assert batch.request_counts.model_dump() == {"total": 20, "completed": 20, "failed": 0}
    assert batch.created_at <= batch.in_progress_at <= batch.finalizing_at <= batch.completed_at
    assert batch.model == MODEL

    results = demo.lines(batch.output_file_id)
    assert sorted(result["custom_id"] for result in results) == sorted(line["custom_id"] for line in lines)
    assert [result["custom_id"] for result in results] != [line["custom_id"] for line in lines]
    for result in results:
        assert result["error"] is None
        assert result["response"]["status_code"] == 200
    usage = [result["response"]["body"]["usage"] for result in results]
    assert batch.usage.input_tokens == sum(one["prompt_tokens"] for one in usage)
    assert batch.usage.output_tokens == sum(one["completion_tokens"] for one in usage)
    assert demo.client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        demo.client.files.retrieve(file.id)


def test_a_line_is_answered_like_the_same_request_online(demo: Driver) -> None:
    lines = [request_line(number) for number in range(5)]
    lines[1]["body"]["temperature"] = 1.2
    lines[2]["body"]["response_format"] = {
        "type": "json_schema",
        "json_schema": {"name": "a", "schema": {"type": "object", "properties": {"times": {"type": "integer"}}}},
    }
    results = {result["custom_id"]: result["response"]["body"] for result in demo.results(demo.run(lines))}
    for line in lines:
        body = json.dumps(line["body"], separators=(",", ":"), ensure_ascii=False).encode()
        online = httpx.post(f"{demo.server.base_url}/chat/completions", content=body, verify=NO_TLS).json()
        assert {**results[line["custom_id"]], "created": 0} == {**online, "created": 0}


def test_a_batch_takes_its_time_and_its_counts_grow() -> None:
    with driving(seconds=0.6) as demo:
        batch = demo.create(40)
        seen = [batch.status]
        counts = []
        while batch.status not in ENDED:
            batch = demo.look(batch)
            seen.append(batch.status)
            counts.append(batch.request_counts.completed)
            assert (batch.output_file_id is None) is (batch.status != "completed")
            time.sleep(0.01)
    # A look that comes late may miss a state, but none comes before another that it follows.
    states = ["validating", "in_progress", "finalizing", "completed"]
    told = list(dict.fromkeys(seen))
    assert told == [state for state in states if state in told]
    assert told[0] == "validating"
    assert told[-1] == "completed"
    assert counts == sorted(counts)
    assert any(0 < count < 40 for count in counts)


def test_lists_have_pages(demo: Driver) -> None:
    made = [demo.create(1).id for _ in range(5)]
    page = demo.client.batches.list(limit=2)
    assert [batch.id for batch in page.data] == [made[4], made[3]]
    assert page.has_more
    assert [batch.id for batch in demo.client.batches.list(limit=2)][:5] == made[::-1]
    files = [demo.upload(b"{}\n").id for _ in range(3)]
    assert [file.id for file in demo.client.files.list(limit=2, order="desc")][:3] == files[::-1]
    with pytest.raises(openai.BadRequestError, match="limit"):
        demo.client.batches.list(limit=101)
    with pytest.raises(openai.BadRequestError, match="after"):
        demo.client.batches.list(after="batch_none")


BAD_FILES: dict[str, tuple[bytes, str, str | None, int | None]] = {
    "no JSON": (input_file([request_line(1)]) + b"{broken\n", "invalid_json_line", None, 2),
    "a byte order mark": (b"\xef\xbb\xbf" + input_file([request_line(1)]), "invalid_json_line", None, 1),
    "no object": (b"[]\n", "invalid_json_line", None, 1),
    "an empty line": (
        input_file([request_line(1)]) + b"\n" + input_file([request_line(2)]),
        "invalid_json_line",
        None,
        2,
    ),
    "the same id": (
        input_file([request_line(1), request_line(2), request_line(1)]),
        "duplicate_custom_id",
        "custom_id",
        3,
    ),
    "no id": (input_file([request_line(1, custom_id=None)]), "missing_required_parameter", "custom_id", 1),
    "another url": (input_file([request_line(1), request_line(2, url="/v1/embeddings")]), "invalid_url", "url", 2),
    "no model": (input_file([request_line(1, body={"messages": []})]), "invalid_request", "body.model", 1),
    "an unknown model": (input_file([request_line(1, body={"model": "gpt-0"})]), "model_not_found", "body.model", 1),
    "two models": (
        input_file([request_line(1), request_line(2, body={"model": "mistral-small-3.2-24b-instruct-2506"})]),
        "mismatched_model",
        "body.model",
        2,
    ),
    "a stream": (
        input_file([request_line(1, body={"model": MODEL, "stream": True})]),
        "streaming_unsupported",
        "body.stream",
        1,
    ),
    "no lines": (b"", "empty_file", None, None),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_line_fails_the_whole_batch_and_is_named(demo: Driver, name: str) -> None:
    content, code, param, line = BAD_FILES[name]
    batch = demo.run(content)
    assert batch.status == "failed"
    assert batch.failed_at is not None
    assert (batch.output_file_id, batch.error_file_id) == (None, None)
    assert batch.request_counts.model_dump() == {"total": 0, "completed": 0, "failed": 0}
    (error,) = batch.errors.data
    assert (error.code, error.param, error.line) == (code, param, line)
    assert error.message


def test_a_batch_of_an_unknown_file_fails(demo: Driver) -> None:
    output = demo.run(1).output_file_id
    for file_id in ("file-none", output):
        (error,) = demo.ended(demo.create_of(file_id)).errors.data
        assert (error.code, error.param, error.line) == ("invalid_request", "file_id", None)


def test_a_line_that_the_model_refuses_is_in_the_error_file(demo: Driver) -> None:
    lines = [request_line(number) for number in range(4)]
    lines[2]["body"]["temperature"] = 9
    batch = demo.run(lines)
    assert (batch.status, batch.request_counts.completed, batch.request_counts.failed) == ("completed", 3, 1)
    (failed,) = demo.lines(batch.error_file_id)
    assert failed["custom_id"] == "row-2"
    assert failed["response"]["status_code"] == 400
    assert "temperature" in failed["response"]["body"]["error"]["message"]
    assert failed["error"] is None
    assert batch.usage.total_tokens == sum(
        result["response"]["body"]["usage"]["total_tokens"] for result in demo.lines(batch.output_file_id)
    )


def test_what_a_create_call_refuses(demo: Driver) -> None:
    file_id = demo.upload(b"{}\n").id
    good: dict[str, Any] = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h"}
    for change, word in (
        ({"input_file_id": None}, "input_file_id"),
        ({"endpoint": "/v1/telepathy"}, "endpoint"),
        ({"completion_window": "1h"}, "completion window"),
        ({"metadata": {"key": 1}}, "metadata"),
        ({"metadata": {str(number): "" for number in range(17)}}, "metadata"),
        ({"metadata": {"key": "x" * 513}}, "metadata"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, "seconds"),
        ({"output_expires_after": {"anchor": "now", "seconds": 3600}}, "anchor"),
    ):
        answer = httpx.post(f"{demo.server.base_url}/batches", json={**good, **change}, verify=NO_TLS)
        assert (answer.status_code, word in answer.json()["error"]["message"]) == (400, True), answer.text


def test_what_an_upload_refuses(demo: Driver) -> None:
    for refused, word in (
        ({"files": {"file": ("a.txt", b"{}")}, "data": {"purpose": "batch"}}, "must be .jsonl"),
        ({"files": {"file": ("a.jsonl", b"{}")}, "data": {"purpose": "vision"}}, "purpose"),
        ({"files": {"file": ("a.jsonl", b"{}")}}, "purpose"),
        ({"data": {"purpose": "batch"}}, "file"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, "form"),
        (
            {
                "files": {"file": ("a.jsonl", b"{}")},
                "data": {"purpose": "batch", "expires_after[anchor]": "created_at", "expires_after[seconds]": "1"},
            },
            "seconds",
        ),
    ):
        answer = httpx.post(f"{demo.server.base_url}/files", verify=NO_TLS, **refused)
        assert (answer.status_code, word in answer.json()["error"]["message"].lower()) == (400, True), answer.text


def test_unknown_ids_are_404(demo: Driver) -> None:
    for ask in (
        lambda: demo.client.batches.retrieve("batch_none"),
        lambda: demo.client.batches.cancel("batch_none"),
        lambda: demo.client.files.retrieve("file-none"),
        lambda: demo.client.files.content("file-none"),
        lambda: demo.client.files.delete("file-none"),
    ):
        with pytest.raises(openai.NotFoundError) as caught:
            ask()
        assert caught.value.code is None


def test_a_cancelled_batch_keeps_what_was_answered() -> None:
    with driving(seconds=1.0) as demo:
        batch = demo.create(40)
        while batch.request_counts.completed < 5:
            batch = demo.look(batch)
        batch = demo.client.batches.cancel(batch.id)
        assert batch.status == "cancelling"
        batch = demo.ended(batch)
        assert batch.status == "cancelled"
        answered, rest = demo.lines(batch.output_file_id), demo.lines(batch.error_file_id)
        assert 5 <= len(answered) < 40
        assert batch.request_counts.model_dump() == {"total": 40, "completed": len(answered), "failed": 0}
        assert {line["error"]["code"] for line in rest} == {"batch_cancelled"}
        assert {line["response"] for line in rest} == {None}
        assert sorted(line["custom_id"] for line in answered + rest) == sorted(f"row-{n}" for n in range(40))
        assert demo.server.stats().batch.lines == len(answered)
        with pytest.raises(openai.ConflictError, match="cancelled"):
            demo.client.batches.cancel(batch.id)


def test_batches_that_are_cancelled_while_their_lines_are_answered_spoil_nothing() -> None:
    lines = [request_line(number) for number in range(1500)]
    with driving() as demo:
        file_id = demo.upload(input_file(lines)).id
        batches = [demo.create_of(file_id) for _ in range(3)]
        for batch in batches:
            demo.client.batches.cancel(batch.id)
        for batch in map(demo.ended, batches):
            answered, rest = demo.lines(batch.output_file_id), demo.lines(batch.error_file_id)
            assert len(answered) == batch.request_counts.completed
            assert sorted(line["custom_id"] for line in answered + rest) == sorted(line["custom_id"] for line in lines)
        assert demo.look(batches[-1]).status == "cancelled"
        assert demo.run(3).status == "completed"


def test_the_counts_tell_what_a_client_pays_twice(demo: Driver) -> None:
    with driving() as demo:
        file_id = demo.upload(input_file([request_line(number) for number in range(3)])).id
        demo.ended(demo.create_of(file_id))
        once = demo.server.stats().batch
        assert (once.created, once.by_status, once.lines) == (1, {"completed": 1}, 3)
        demo.ended(demo.create_of(file_id))
        twice = demo.server.stats().batch
        assert (twice.created, twice.lines) == (2, 6)
        assert twice.calls["upload"] == 1
        assert twice.calls["create"] == 2
        assert demo.server.batch_lines() == {"row-0": 2, "row-1": 2, "row-2": 2}
        over_http = httpx.get(demo.server.base_url.removesuffix("/v1") + "/demo/lines", verify=NO_TLS).json()
        assert over_http == demo.server.batch_lines()
    assert Counter(demo.server.batch_lines()).total() == 6


def test_files_and_batches_outlive_the_server_in_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "batches"
    with driving(folder=folder) as demo:
        done = demo.run(5, metadata={"chunk": "1"})
        content = demo.content(done.output_file_id)
        with pytest.raises(OSError, match="another server"), driving(folder=folder):
            pass
    with driving(folder=folder, seconds=0.8) as demo:
        assert demo.client.batches.retrieve(done.id) == done
        assert demo.content(done.output_file_id) == content
        running = demo.create(8)
        failed = demo.create(b"{}\n")
    with driving(folder=folder, seconds=0.8) as demo:
        assert [batch.id for batch in demo.client.batches.list()] == [failed.id, running.id, done.id]
        assert demo.ended(failed).errors.data[0].code == "missing_required_parameter"
        running = demo.ended(running)
        assert running.status == "completed"
        assert len(demo.results(running)) == 8
        assert demo.server.batch_lines() == {f"row-{n}": 1 + (n < 5) for n in range(8)}


def test_a_new_server_knows_nothing_of_an_old_one(demo: Driver) -> None:
    with driving() as other:
        batch = other.run(1)
    with pytest.raises(openai.NotFoundError):
        demo.client.batches.retrieve(batch.id)


def test_a_killed_server_goes_on_in_its_folder(tmp_path: Path) -> None:
    content = input_file([request_line(number) for number in range(30)])
    with httpx.Client(verify=NO_TLS) as http:
        with demo_server(tmp_path) as base_url:
            client = client_of(base_url, http)
            file = client.files.create(file=("a.jsonl", content), purpose="batch")
            batch = client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
        with demo_server(tmp_path) as base_url:
            client = client_of(base_url, http)
            while batch.status != "completed":
                batch = client.batches.retrieve(batch.id)
            output = client.files.content(str(batch.output_file_id)).read()
            lines = http.get(base_url.removesuffix("/v1") + "/demo/lines").json()
    found = sorted(json.loads(line)["custom_id"] for line in output.splitlines())
    assert found == sorted(f"row-{number}" for number in range(30))
    assert lines == dict.fromkeys(found, 1)


@contextmanager
def demo_server(folder: Path) -> Iterator[str]:
    """A server in a process of its own, which is killed at the end."""
    arguments = ("demo-server", "--port", "0", "--batch-folder", str(folder / "batches"), "--batch-seconds", "1s")
    server = Process(*arguments, cwd=folder)
    try:
        yield server.stdout.readline().strip()
    finally:
        server.kill()
        server.communicate(timeout=10)


@given(
    share=st.floats(0, 0.5),
    moment=st.floats(0, 12),
    seed=st.integers(0, 1_000_000),
    bad=st.sets(st.integers(0, 11)),
    fault=st.sampled_from(
        ["expire", "expire_empty", "cancel_all", "error_in_output", "finalizing", "error_file_empty"]
    ),
)
@examples(25)
def test_every_line_is_in_exactly_one_file(share: float, moment: float, seed: int, bad: set[int], fault: str) -> None:
    lines = [request_line(number) for number in range(12)]
    for number in bad:
        lines[number]["body"]["temperature"] = 9
    options = BatchOptions(seconds=10, faults={"line_500": share, "line_429": share, fault: 1})
    app = create_app(DemoOptions(seed=seed, batch=options))

    async def run() -> list[str]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://demo/v1", verify=NO_TLS) as client:
            form: dict[str, Any] = {"files": {"file": ("a.jsonl", input_file(lines))}, "data": {"purpose": "batch"}}
            file = (await client.post("/files", **form)).json()
            asked = {"input_file_id": file["id"], "endpoint": CHAT, "completion_window": "24h"}
            batch = (await client.post("/batches", json=asked)).json()
            await anyio.sleep(moment)
            await client.post(f"/batches/{batch['id']}/cancel")
            while batch["status"] not in ENDED:
                await anyio.sleep(1)
                batch = (await client.get(f"/batches/{batch['id']}")).json()
            refs = [batch[name] for name in ("output_file_id", "error_file_id") if batch[name]]
            contents = [(await client.get(f"/files/{ref}/content")).content for ref in refs]
            return [json.loads(line)["custom_id"] for content in contents for line in content.splitlines()]

    found = trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))
    assert sorted(found) == sorted(line["custom_id"] for line in lines)
