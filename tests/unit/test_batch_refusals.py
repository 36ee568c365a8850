"""What each refusal of a Batch API means for the engine: one row for each, through the service's own methods."""

from __future__ import annotations

import logging
import ssl
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from batchchat.engines.batch.service import (
    BadLine,
    BatchService,
    ChunkTooLarge,
    Gone,
    OutcomeUnknown,
    QueueFull,
    Unavailable,
)
from batchchat.engines.batch.services import open_service
from batchchat.engines.batch.services.problems import queued_tokens_in
from batchchat.engines.batch.services.shapes import line_in
from batchchat.errors import NeedsHuman, UsageError
from batchchat.providers import PROFILES, Provider
from tests.batch_play import Options, Play

KEY = "sk-0123456789abcdef"
TARGETS = {
    "preflight": "GET /v1/batches?limit=1",
    "upload": "POST /v1/files",
    "create": "POST /v1/batches",
    "poll": "GET /v1/batches/b1",
    "find": "GET /v1/batches?limit=100",
    "delete": "DELETE /v1/files/f1",
}


async def call(service: BatchService, name: str, path: Path) -> object:
    if name == "preflight":
        await service.preflight()
        return None
    if name == "upload":
        return await service.upload("a.jsonl", path)
    if name == "create":
        return await service.create("f1", {})
    if name == "poll":
        return await service.poll(["b1"])
    if name == "find":
        return await service.find("f1", {}, 0.0)
    await service.delete(["f1"])
    return None


def outcome(
    name: str, answer: Any, tmp_path: Path, *, provider: Provider = PROFILES["openai"], target: str | None = None
) -> Any:
    """What a call ends with: its exception, or what it returned."""
    path = tmp_path / "lines"
    path.write_bytes(b"{}\n")
    play = Play({target or TARGETS[name]: answer})
    service = open_service(provider, Options(), api_key=KEY, environ={}, model="m", transport=play)

    async def run() -> object:
        async with service:
            try:
                return await call(service, name, path)
            except Exception as error:  # noqa: BLE001 - what the test is about
                return error

    found = anyio.run(run)
    assert len(play.seen) == 1, "a call is never made twice by itself"
    return found


def said(message: str, **fields: Any) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None} | fields}


ENQUEUED = (
    "Enqueued token limit reached for gpt-4o in organization org-1. Limit: 90,000 enqueued tokens. Please try again "
    "once some in_progress batches have been completed."
)
REFUSALS: dict[str, tuple[str, Any, type[Exception], dict[str, Any]]] = {
    "a wrong key": ("preflight", (401, said("Incorrect API key")), NeedsHuman, {"remedy": "OPENAI_API_KEY"}),
    "a wrong key at upload": ("upload", (401, said("no")), NeedsHuman, {"remedy": "OPENAI_API_KEY"}),
    "no permission": ("create", (403, said("Missing scopes: api.batch.write")), NeedsHuman, {"remedy": "OPENAI_API"}),
    "no credit": ("create", (402, said("pay")), NeedsHuman, {"remedy": "Add credit"}),
    "no credit as 429": ("create", (429, said("quota", code="insufficient_quota")), NeedsHuman, {"remedy": "credit"}),
    "a refused key while running": ("poll", (401, said("no")), Unavailable, {}),
    "no permission while running": ("find", (403, said("no")), Unavailable, {}),
    "no such path": ("preflight", (404, {"detail": "Not Found"}), UsageError, {"remedy": "engine: local"}),
    "no such method": ("preflight", (405, b""), UsageError, {"message": "no Batch API"}),
    "a redirection": (
        "preflight",
        httpx.Response(308, headers={"location": "https://x"}),
        UsageError,
        {"remedy": "provider.base_url"},
    ),
    "a redirection of a create": ("create", httpx.Response(307), UsageError, {}),
    "a web page": ("preflight", (200, b"<html>hello</html>"), UsageError, {"message": "no Batch API"}),
    "another API": ("preflight", (200, {"data": {"x": 1}}), UsageError, {"message": "no Batch API"}),
    "down": ("preflight", (503, b""), Unavailable, {}),
    "no files": ("upload", (404, {"detail": "Not Found"}), UsageError, {"message": "no Batch API"}),
    "too large": ("upload", (413, b"<html>413 Request Entity Too Large</html>"), ChunkTooLarge, {}),
    "too large as 400": ("upload", (400, said("File is too large. Max size: 209715200")), ChunkTooLarge, {}),
    "too many lines": ("create", (400, said("x", code="too_many_tasks")), ChunkTooLarge, {}),
    "a bad line": ("upload", (400, said("Line 3: invalid JSON")), BadLine, {"line": 3}),
    "a bad line by schema": (
        "upload",
        (
            422,
            {"detail": "Invalid file format.", "errors": [{"loc": ["body", "temperature"], "msg": "Input should be…"}]},
        ),
        BadLine,
        {"line": None},
    ),
    "another reason": ("upload", (400, said("purpose 'batch' is switched off")), NeedsHuman, {"remedy": "Nothing was"}),
    "an upload that breaks": ("upload", (500, b""), Unavailable, {}),
    "uploads too often": ("upload", httpx.Response(429, headers={"retry-after": "7"}), Unavailable, {"retry_after": 7}),
    "an upload without id": ("upload", (200, {"ok": True}), Unavailable, {}),
    "the queue is full": (
        "create",
        (400, said(ENQUEUED, code="token_limit_exceeded")),
        QueueFull,
        {"queued_tokens": 90_000},
    ),
    "the queue is full as 429": ("create", (429, said(ENQUEUED)), QueueFull, {"queued_tokens": 90_000}),
    "too many batches": ("create", (400, said("You have reached the limit of 100 active batches")), QueueFull, {}),
    "too many requests in a batch": ("create", (400, said("Maximum batch size is 50000 requests")), ChunkTooLarge, {}),
    "more lines than may be": ("create", (422, said("exceeds the number of requests per file")), ChunkTooLarge, {}),
    "creates too often": (
        "create",
        httpx.Response(429, headers={"retry-after": "30"}, json=said("Too many requests")),
        QueueFull,
        {"queued_tokens": None, "retry_after": 30},
    ),
    "an unknown model": ("create", (400, said("no", code="model_not_found")), NeedsHuman, {"remedy": "`model`"}),
    "no access to the model": (
        "create",
        (422, {"detail": "You do not have access to the model x"}),
        NeedsHuman,
        {"remedy": "`model`"},
    ),
    "a file that is not ready": ("create", (400, said("File is not processed yet")), Unavailable, {}),
    "a file that is still pending": ("create", (400, said("The file f1 is still being processed")), Unavailable, {}),
    "batches that are not offered": ("create", (400, said("Batch is not available in your region")), NeedsHuman, {}),
    "a model without batches": ("create", (400, said("Model m is not available for batch")), NeedsHuman, {}),
    "a file that is gone": ("create", (404, said("No such file: f1")), Gone, {}),
    "a window": ("create", (400, said("completion_window must be 24h")), NeedsHuman, {}),
    "an error of the server": ("create", (500, b""), OutcomeUnknown, {}),
    "a gateway's": ("create", (504, b"<html>Gateway Timeout</html>"), OutcomeUnknown, {}),
    "a timeout of the server": ("create", (408, b""), OutcomeUnknown, {}),
    "an answer that is none": ("create", (200, b"<html>Sign in</html>"), OutcomeUnknown, {}),
    "an answer without an id": ("create", (200, {"object": "batch"}), OutcomeUnknown, {}),
    "a cut answer": ("create", httpx.ReadError("reset"), OutcomeUnknown, {}),
    "no answer": ("create", httpx.ReadTimeout("timed out"), OutcomeUnknown, {}),
    "a cut request": ("create", httpx.WriteError("broken pipe"), OutcomeUnknown, {}),
    "no connection": ("create", httpx.ConnectError("refused"), Unavailable, {}),
    "no connection in time": ("create", httpx.ConnectTimeout("timed out"), Unavailable, {}),
    "no proxy": ("create", httpx.ProxyError("503"), Unavailable, {}),
    "no connection for a look": ("poll", httpx.ReadError("reset"), Unavailable, {}),
    "a page for a look": ("poll", (200, b"<html>"), Unavailable, {}),
    "a page for a list": ("find", (200, b"<html>"), Unavailable, {}),
    "a list that is gone": ("find", (404, b""), Unavailable, {}),
    "an error of a look": ("poll", (500, b""), Unavailable, {}),
    "looks too often": ("poll", httpx.Response(429, headers={"retry-after": "9"}), Unavailable, {"retry_after": 9}),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_a_refusal_means(name: str, tmp_path: Path) -> None:
    method, answer, kind, expected = REFUSALS[name]
    found = outcome(method, answer, tmp_path)
    assert type(found) is kind, repr(found)
    for field, value in expected.items():
        told = getattr(found, field)
        assert value in told if isinstance(value, str) else told == value, told
    assert KEY not in repr(found)


def test_a_batch_that_is_not_known_is_left_out(tmp_path: Path) -> None:
    assert outcome("poll", (404, said("No batch found", code=None)), tmp_path) == {}
    # One provider tells so with HTTP 200.
    assert outcome("poll", (200, said("not found", code=404)), tmp_path) == {}


def test_a_file_that_is_gone_is_deleted(tmp_path: Path) -> None:
    assert outcome("delete", (404, said("No such File object")), tmp_path) is None


def test_a_certificate_that_is_not_trusted_is_for_a_person(tmp_path: Path) -> None:
    error = httpx.ConnectError("certificate verify failed")
    error.__cause__ = ssl.SSLCertVerificationError(1, "certificate verify failed: self-signed certificate")
    found = outcome("create", error, tmp_path)
    assert isinstance(found, NeedsHuman)
    assert "ca_file" in (found.remedy or "")


def test_a_key_that_is_echoed_is_in_no_message(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    answers = [(401, said(f"Incorrect API key provided: {KEY}")), (400, said(f"bad {KEY}")), (500, said(KEY))]
    for method in ("preflight", "upload", "create", "poll"):
        for answer in answers:
            found = outcome(method, answer, tmp_path)
            assert KEY not in f"{found} {found!r} {getattr(found, 'remedy', '')}"
    assert KEY not in caplog.text
    service = open_service(PROFILES["openai"], Options(), api_key=KEY, environ={}, transport=Play({}))
    assert KEY not in repr(service)


def test_line_numbers_that_count_within_a_part_are_not_used(tmp_path: Path) -> None:
    text = "input format error: Line 2 (within chunk): Invalid JSON format"
    together = PROFILES["together"]
    found = outcome("upload", (400, {"error": text}), tmp_path, provider=together, target="POST /v1/files/upload")
    assert isinstance(found, BadLine)
    assert found.line is None


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("Invalid JSON on line 5", 5),
        ("Line 12: unknown field", 12),
        ("line_number=7", 7),
        ("line #3 is bad", 3),
        ("line 0", None),
        ("Line 2 (within chunk): x", None),
        ("deadline 24 h", None),
        ("online 3", None),
        ("no number", None),
    ],
)
def test_lines_in_messages(text: str, line: int | None) -> None:
    assert line_in(text) == line


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        (ENQUEUED, 90_000),
        ("The number of enqueued tokens has surpassed the configured limit of 30K for the deployment d", 30_000),
        ("Enqueued token limit reached. Limit: 2000000 enqueued tokens.", 2_000_000),
        ("Enqueued token limit reached. Limit: 20,000,000 enqueued tokens.", 20_000_000),
        ("limit of 1.5M queued tokens", 1_500_000),
        ("limit: 30 G tokens", 30_000_000_000),
        ("Limit is 15 billion tokens", 15_000_000_000),
        ("limit of 100 batches", None),
        ("too many tokens", None),
    ],
)
def test_limits_in_messages(text: str, tokens: int | None) -> None:
    assert queued_tokens_in(text) == tokens
