"""What can befall a stream, over both transports and through whole runs: no half text is ever an answer."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
import pytest

import batchchat
from batchchat.client import ChatClient
from batchchat.events import RunSummary
from batchchat.providers import Provider
from batchchat.records import Reply, Usage, Verdict
from batchchat.transport import LeanTransport, StockTransport
from tests.integration import raw_server
from tests.integration.jobs import make_job, query, texts, write_rows
from tests.integration.raw_server import (
    COMPLETION,
    Peer,
    RawServer,
    Script,
    always,
    chunked,
    forever,
    response,
    then_reset,
    then_silence,
)
from tests.thorough import one_in


def once(data: bytes) -> Script:
    """Answer one request with these bytes, say so, and close the connection."""
    return raw_server.once(data.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nX-Request-Id: req-7\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
DONE = b"data: [DONE]\n\n"


def event(data: Any) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def chunk(content: str | None, finish: str | None = None, **fields: Any) -> bytes:
    choice = {"index": 0, "delta": {} if content is None else {"content": content}, "finish_reason": finish}
    return event({"id": "c-1", "model": "m", "choices": [choice], **fields})


YE, S, STOP = chunk("ye"), chunk("s"), chunk(None, "stop")
LAST = event({"id": "c-1", "model": "m", "choices": [], "usage": USAGE})
WHOLE = YE + S + STOP + LAST + DONE
PACKED = gzip.compress(WHOLE)


def framed(*pieces: bytes) -> bytes:
    """A whole chunked response."""
    return CHUNKED + chunked(*pieces)


def begun(*pieces: bytes) -> bytes:
    """A chunked response that is not over."""
    return framed(*pieces)[: -len(b"0\r\n\r\n")]


def fields(*lines: str) -> bytes:
    return HEAD + "".join(line + "\r\n" for line in lines).encode() + b"\r\n"


GZIP_HEAD = fields(f"Content-Length: {len(PACKED)}", "Content-Encoding: gzip")


def slowly(data: bytes) -> Script:
    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(data, piece=1)

    return script


def flushed_gzip() -> bytes:
    """Each event compressed on its own and sent at once, as a compressing proxy does."""
    packer = zlib.compressobj(wbits=31)
    pieces = [packer.compress(part) + packer.flush(zlib.Z_SYNC_FLUSH) for part in (YE, S, STOP, LAST, DONE)]
    return fields("Transfer-Encoding: chunked", "Content-Encoding: gzip") + chunked(*pieces, packer.flush())


ANSWERS: Mapping[str, Script] = {
    "in one chunk": always(framed(WHOLE)),
    "a chunk an event": always(framed(YE, S, STOP, LAST, DONE)),
    "events across chunks": always(framed(WHOLE[:20], WHOLE[20:21], WHOLE[21:])),
    "one byte at a time": slowly(framed(YE, S, STOP, LAST, DONE)),
    "CRLF and comments": always(framed((b": hi\n\n" + WHOLE).replace(b"\n", b"\r\n"))),
    "CR": always(framed(WHOLE.replace(b"\n", b"\r"))),
    "byte order mark": always(framed(b"\xef\xbb\xbf" + WHOLE)),
    "with a length": always(fields(f"Content-Length: {len(WHOLE)}") + WHOLE),
    "until the connection closes": once(fields() + WHOLE),
    "gzip": always(GZIP_HEAD + PACKED),
    "gzip, event by event": always(flushed_gzip()),
    "no usage": always(framed(YE, S, STOP, DONE)),
    "no [DONE]": always(framed(YE, S, STOP, LAST)),
    "no blank line at the end": always(framed(WHOLE[:-1])),
    "silence after [DONE]": then_silence(begun(WHOLE)),
    "more and more after [DONE]": forever(begun(WHOLE), chunked(b": ping\n\n")[:-5]),
    "reset after [DONE]": then_reset(begun(WHOLE)),
    "garbage after [DONE]": once(begun(WHOLE) + b"zz\r\n"),
    "JSON instead": always(response(COMPLETION)),
    "events of another type": always(response(WHOLE, "X-A: b")),
}
"""Answers to a streamed request that say `yes`."""


def big(start: bytes, end: bytes) -> bytes:
    """A chunk of 32 KiB."""
    return b"8000\r\n" + start + b"x" * (0x8000 - len(start) - len(end)) + end + b"\r\n"


FAULTS: Mapping[str, tuple[Script, str, str, str | None]] = {
    "reset after the head": (then_reset(CHUNKED), "connection", "after 0 bytes", None),
    "reset in the text": (then_reset(begun(YE)), "connection", "after", "ye"),
    "reset before usage": (then_reset(begun(YE, S, STOP)), "connection", "after", "yes"),
    "closed before usage": (once(begun(YE, S, STOP)), "connection", "after", "yes"),
    "closed in a chunk": (once(begun(YE, S)[:-10]), "connection", "after", "ye"),
    "closed in an event": (once(begun(YE, S[:30])), "connection", "after", "ye"),
    "ended before usage": (once(framed(YE, S, STOP)), "protocol", "[DONE], never came", "yes"),
    "ended in an event": (once(framed(YE, S[:30])), "protocol", "[DONE], never came", "ye"),
    "ended before anything": (once(framed()), "protocol", "[DONE], never came", None),
    "ended with the connection": (once(fields() + YE), "protocol", "[DONE], never came", "ye"),
    "[DONE] too early": (once(framed(YE, DONE)), "protocol", "before any finish_reason", "ye"),
    "no choices": (once(framed(LAST, DONE)), "protocol", "without choices", None),
    "error event": (
        once(framed(YE, event({"error": {"message": "worker lost", "type": "server_error"}}), DONE)),
        "server",
        "HTTP 200 with an error inside: HTTP 500: worker lost",
        "ye",
    ),
    "504 inside": (once(framed(YE, event({"error": {"message": "slow", "code": 504}}))), "timeout", "504", "ye"),
    "invalid UTF-8": (once(framed(YE, S.replace(b'"s"', b'"\xff"'))), "protocol", "no JSON object", "ye"),
    "invalid JSON": (once(framed(YE, b"data: {oops\n\n", WHOLE)), "protocol", "no JSON object: {oops", "ye"),
    "HTML in data": (once(framed(b"data: <html>\n\n")), "protocol", "no JSON object: <html>", None),
    "an event without end": (forever(CHUNKED, big(b"data: ", b"xx")), "protocol", "larger than 8 MiB", None),
    "a stream without end": (forever(begun(YE), big(b": ", b"\n\n")), "protocol", "larger than", "ye"),
    "silence": (then_silence(CHUNKED), "timeout", "", None),
    "silence in the text": (then_silence(begun(YE)), "timeout", "", "ye"),
    "truncated gzip": (
        once(fields(f"Content-Length: {len(PACKED) - 60}", "Content-Encoding: gzip") + PACKED[:-60]),
        "protocol",
        "",
        None,
    ),
    "damaged gzip": (
        once(GZIP_HEAD + PACKED[:20] + bytes(len(PACKED) - 20)),
        "protocol",
        "",
        None,
    ),
    "broken chunk size": (once(begun(YE) + b"zz\r\n" + S), "protocol", "", "ye"),
    "HTML instead": (once(response(b"<!doctype html>", "Content-Type: text/html")), "protocol", "no JSON object", None),
    "503 instead": (once(response(b'{"error": "busy"}', status="503 x")), "server", "HTTP 503: busy", None),
    "half a completion instead": (once(response(COMPLETION[:-30])), "protocol", "no JSON object", None),
}  # fmt: skip
"""Faults that last: the kind of failure, a part of its message, and the text that is kept beside it."""


transports = pytest.mark.parametrize("transport", [LeanTransport, StockTransport], ids=["lean", "stock"])
Carrier = type[LeanTransport] | type[StockTransport]


def ask(
    server: RawServer, transport: Carrier, times: int = 1, timeout: float = 5.0, *, stream: bool = True
) -> list[Reply]:
    async def send() -> list[Reply]:
        provider = Provider("custom", server.url + "/v1", "custom")
        async with ChatClient(
            provider, transport(), api_key="canary-" + "5a" * 12, request_timeout=timeout, stream=stream
        ) as client:
            return [await client.send(b"{}") for _ in range(times)]

    return anyio.run(send)


@transports
@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_is_one_however_it_is_streamed(name: str, transport: Carrier) -> None:
    with RawServer(ANSWERS[name]) as server:
        replies = ask(server, transport, 2)
        assert b"\r\nAccept: text/event-stream, application/json\r\n" in server.received[0]
    assert [(reply.verdict, reply.text) for reply in replies] == [(Verdict.OK, "yes")] * 2
    for reply in replies:
        assert reply.completion is not None
        assert reply.completion.finish_reason == "stop"
        usage = {"JSON instead": Usage(3, 1, 4), "no usage": Usage()}.get(name, Usage(3, 2, 5))
        assert reply.usage == usage
        whole = name in {"JSON instead", "events of another type"}
        assert (reply.ttft_s is None) is whole
        assert whole or 0 <= (reply.ttft_s or 0) <= reply.latency_s
        assert reply.request_id == ("req-7" if not whole else "chatcmpl-1" if name == "JSON instead" else "c-1")


@transports
@pytest.mark.parametrize("name", one_in(3, FAULTS))
def test_a_broken_stream_is_a_failure_of_the_right_kind(name: str, transport: Carrier) -> None:
    script, kind, said, text = FAULTS[name]
    with RawServer(script) as server:
        (reply,) = ask(server, transport, timeout=0.2 if kind == "timeout" else 5.0)
    assert reply.failure is not None
    assert (reply.verdict, reply.failure.kind) == (Verdict.TRANSIENT, kind)
    if "gzip" not in name:  # how much was unpacked before the damage is zlib's affair
        assert reply.text == text
    assert said in reply.failure.message or transport is StockTransport
    assert reply.failure.http_status == {"503 instead": 503, "504 inside": 504, "error event": 500}.get(name, 200)


@transports
def test_a_connection_is_used_again_after_each_stream(transport: Carrier) -> None:
    async def end_apart(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(begun(YE, S, STOP, LAST, DONE))
            await asyncio.sleep(0.01)
            await peer.send(b"0\r\n\r\n")

    with RawServer(end_apart) as server:
        assert [reply.text for reply in ask(server, transport, 4)] == ["yes"] * 4
        assert (server.connections, len(server.received)) == (1, 4)


@transports
def test_a_stream_that_nobody_asked_for_is_an_answer(transport: Carrier) -> None:
    with RawServer(always(framed(YE, S, STOP, LAST, DONE))) as server:
        (reply,) = ask(server, transport, stream=False)
    assert (reply.verdict, reply.text, reply.usage, reply.ttft_s) == (Verdict.OK, "yes", Usage(3, 2, 5), None)


@transports
def test_a_timeout_bounds_a_stream_that_is_never_silent(transport: Carrier) -> None:
    async def drip(peer: Peer) -> None:
        await peer.request()
        await peer.send(begun(YE))
        await peer.send(begun(b": ping\n\n")[len(CHUNKED) :] * 1000, piece=14, every=0.01)

    with RawServer(drip) as server:
        (reply,) = ask(server, transport, timeout=0.2)
    assert reply.failure is not None
    assert (reply.failure.kind, reply.text) == ("timeout", "ye")
    assert reply.latency_s < 2


# Whole runs


def run_job(folder: Path, url: str, rows: int, **changes: Any) -> RunSummary:
    write_rows(folder / "rows.jsonl", texts(rows))
    job = make_job(
        folder,
        None,
        provider={"base_url": url + "/v1"},
        params={"stream": True},
        prices={"input": 1, "output": 1, "currency": "EUR"},
        limits={"concurrency": 1},
        retry={"attempts": 6, "request_timeout": "5s", "row_deadline": "60s", **changes},
    )
    return batchchat.run(job, environ={})


def by_turns(faults: list[Script]) -> Script:
    """Spoil every other connection, each in its own way; the others carry one answer."""

    async def script(peer: Peer) -> None:
        spoilt = peer.number % 2 == 0 and peer.number // 2 < len(faults)
        await (faults[peer.number // 2] if spoilt else once(fields() + WHOLE))(peer)

    return script


@pytest.mark.parametrize(("timeouts", "bound"), [(True, "0.5s"), (False, "30s")], ids=["timeouts", "others"])
def test_every_fault_that_lasts_is_one_failed_row(tmp_path: Path, timeouts: bool, bound: str) -> None:
    # A busy machine must not make a timeout of another fault.
    lasting = {name: row for name, row in FAULTS.items() if "gzip" not in name and ("silence" in name) is timeouts}
    with RawServer(by_turns([script for script, *_ in lasting.values()])) as server:
        summary = run_job(tmp_path, server.url, 2 * len(lasting), attempts=1, request_timeout=bound, row_deadline=bound)
        asked = [json.loads(request.partition(b"\r\n\r\n")[2]) for request in server.received]
    assert (summary.exit_code, summary.ok, summary.failed) == (1, len(lasting), len(lasting))
    assert all(body["stream"] and body["stream_options"] == {"include_usage": True} for body in asked)
    found = query(tmp_path, "select status, error_kind, completion from data order by row_index")
    expected = [[("failed", kind, text), ("ok", None, "yes")] for _, kind, _, text in lasting.values()]
    assert found == [row for pair in expected for row in pair]


@pytest.mark.thorough
def test_every_fault_that_passes_costs_a_retry_and_no_row(tmp_path: Path) -> None:
    faults = [script for name, (script, *_) in FAULTS.items() if "silence" not in name and "without end" not in name]
    with RawServer(by_turns(faults)) as server:
        summary = run_job(tmp_path, server.url, 40)
    assert (summary.exit_code, summary.ok) == (0, 40)
    assert summary.retries >= len(faults) - 1  # what comes of truncated gzip may be all there is
    assert query(tmp_path, "select distinct completion from data") == [("yes",)]


@pytest.mark.usefixtures("quick_retries")
def test_what_a_broken_stream_said_it_cost_is_in_the_ledger(tmp_path: Path) -> None:
    with RawServer(by_turns([then_reset(begun(YE, S, STOP, LAST))])) as server:
        summary = run_job(tmp_path, server.url, 1)
    assert (summary.ok, summary.retries) == (1, 1)
    assert (summary.spend.requests, summary.spend.total_tokens) == (2, 10)
    assert query(tmp_path, "select total_tokens, attempts from data") == [(10, 2)]
