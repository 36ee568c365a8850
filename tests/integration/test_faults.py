"""What a night on the network brings, through whole runs: every fault is the right kind of failure or a retry."""

from __future__ import annotations

import gzip
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import anyio
import httpx
import pytest
import trustme

import batchchat
from batchchat.demo import DemoOptions, DemoServer
from batchchat.job import Job
from batchchat.runner.run import run_job
from batchchat.transport import StockTransport, choose_transport
from tests.integration import raw_server
from tests.integration.jobs import make_job, query, run, texts, write_rows
from tests.integration.raw_server import (
    COMPLETION,
    Peer,
    RawServer,
    Script,
    always,
    once,
    response,
    server_context,
    then_silence,
)
from tests.integration.transport_cases import refusing_port
from tests.thorough import one_in

KEY = "canary-" + "5a" * 12


def slowly(data: bytes) -> Script:
    """One byte at a time."""

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(data, piece=1, every=0.0005)

    return script


async def drip(peer: Peer) -> None:
    """A byte now and then, and no end: never silent, never done."""
    await peer.request()
    await peer.send(response(b" " * 10_000), piece=1, every=0.05)


ANSWERS: Mapping[str, Script] = {
    "silence": then_silence(b""),
    "silence in the body": then_silence(response()[:-20]),
    "a byte now and then": drip,
    "HTML": once(response(b"<!doctype html><title>Welcome</title>", "Content-Type: text/html")),
    "an error object": once(response(b'{"error": {"message": "overloaded", "type": "server_error"}}')),
    "no choices": once(response(b'{"id": "x", "choices": []}')),
    "choices that are none": once(response(b'{"id": "x", "choices": 7}')),
    "null content": once(
        response(b'{"choices": [{"message": {"role": "assistant", "content": null}, "finish_reason": "stop"}]}')
    ),
    "invalid UTF-8": once(response(COMPLETION.replace(b'"yes"', b'"y\xff\xfes"'))),
    "truncated JSON": once(response(COMPLETION[:-30])),
    "empty body": once(response(b"")),
    "a list": once(response(b"[1, 2]")),
    "JSON of great depth": once(response(b"[" * 200_000)),
    "gzip bomb in layers": once(response(gzip.compress(gzip.compress(bytes(2**24))), "Content-Encoding: gzip, gzip")),
}

FAULTS: Mapping[str, Script] = {**raw_server.FAULTS, **ANSWERS}
BROKEN = ("reset", "closed", "shorter")
SILENT = ("silence", "silence in the body", "a byte now and then")
STOCK_DIFFERS = {"not HTTP": "connection", "HTTP/0.9": "connection", "interim responses without end": "timeout"}
"""Its parser waits for the end of a head that never ends, and for a final response after any number of interim ones."""


def kind_of(fault: str, *, stock: bool = False) -> str:
    """The kind of failure that a fault is, where it lasts."""
    if stock and fault in STOCK_DIFFERS:
        return STOCK_DIFFERS[fault]
    if fault in SILENT:
        return "timeout"
    if fault == "an error object":
        return "server"
    return "connection" if fault.startswith(BROKEN) else "protocol"


def faulty_job(folder: Path, url: str, rows: int, **fields: Any) -> Job:
    write_rows(folder / "rows.jsonl", texts(rows))
    provider = {"base_url": url + "/v1", "api_key_env": "CANARY", **fields.pop("provider", {})}
    retry = {"attempts": 1, "request_timeout": "2s", "row_deadline": "2s", **fields.pop("retry", {})}
    return make_job(folder, None, provider=provider, retry=retry, limits={"concurrency": 1}, **fields)


def go(job: Job, transport: httpx.AsyncBaseTransport | None = None) -> batchchat.RunSummary:
    return batchchat.run(job, environ={"CANARY": KEY}, transport=transport)


@pytest.mark.parametrize("stock", one_in(2, [False, True]), ids=["lean", "stock"])
@pytest.mark.parametrize("fault", one_in(4, FAULTS))
@pytest.mark.usefixtures("quick_retries")
def test_a_lasting_fault_is_one_failed_row_of_the_right_kind(tmp_path: Path, fault: str, stock: bool) -> None:
    kind = kind_of(fault, stock=stock)
    # A busy machine must not make a timeout of another fault.
    bound = "1s" if kind == "timeout" else "30s"
    with RawServer(FAULTS[fault]) as server:
        job = faulty_job(tmp_path, server.url, 1, retry={"request_timeout": bound, "row_deadline": bound})
        summary = go(job, StockTransport() if stock else None)
    assert (summary.exit_code, summary.ok, summary.failed) == (1, 0, 1)
    told = query(tmp_path, "select status, error_kind, completion, error_message from data")[0]
    assert told[:3] == ("failed", kind, None)
    assert told[3]
    assert KEY not in told[3]


def test_every_fault_that_passes_costs_a_retry_and_no_row(tmp_path: Path) -> None:
    scripts = [script for name, script in FAULTS.items() if name not in SILENT]

    async def by_turns(peer: Peer) -> None:
        spoilt = peer.number % 2 == 0 and peer.number // 2 < len(scripts)
        await (scripts[peer.number // 2] if spoilt else once(response(COMPLETION, "Connection: close")))(peer)

    with RawServer(by_turns) as server:
        retry = {"attempts": 6, "request_timeout": "5s", "row_deadline": "60s"}
        summary = go(faulty_job(tmp_path, server.url, 60, retry=retry))
    assert (summary.exit_code, summary.ok) == (0, 60)
    assert summary.retries >= len(scripts) - 1
    assert query(tmp_path, "select distinct completion from data") == [("yes",)]


def test_an_answer_that_comes_byte_by_byte_is_an_answer(tmp_path: Path) -> None:
    with RawServer(slowly(response())) as server:
        assert go(faulty_job(tmp_path, server.url, 1, retry={"request_timeout": "10s", "row_deadline": "10s"})).ok == 1


def test_more_than_the_content_length_is_not_read_into_the_next_answer(tmp_path: Path) -> None:
    with RawServer(always(response() + response(COMPLETION.replace(b"yes", b"no")))) as server:
        summary = go(faulty_job(tmp_path, server.url, 3))
    assert summary.ok == 3
    assert query(tmp_path, "select distinct completion from data") == [("yes",)]


@pytest.mark.parametrize("stock", [False, True], ids=["lean", "stock"])
@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"])
def test_a_redirect_is_not_followed_and_the_key_stays_home(tmp_path: Path, status: str, stock: bool) -> None:
    with RawServer(always(response())) as other:
        moved = response(b"{}", f"Location: {other.url}/v1/chat/completions?k={KEY}", status=status)
        with RawServer(always(moved)) as server:
            summary = go(faulty_job(tmp_path, server.url, 1), StockTransport() if stock else None)
        assert other.connections == 0
    assert summary.ok == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid"])
def test_a_host_that_cannot_be_reached_fails_by_the_deadline_of_the_row(tmp_path: Path, host: str) -> None:
    with refusing_port() as port:
        summary = go(faulty_job(tmp_path, f"http://{host}:{port}", 1))
    assert (summary.exit_code, summary.ok) == (1, 0)
    assert [group.kind for group in summary.failures] == ["connection"]
    assert host in summary.failures[0].example


AUTHORITY = trustme.CA()


def own_signature() -> ssl.SSLContext:
    """A server whose certificate is signed by nobody but itself."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    own = trustme.CA()
    with own.cert_pem.tempfile() as certificate, own.private_key_pem.tempfile() as key:
        context.load_cert_chain(certificate, key)
    return context


CERTIFICATES = {
    "good": (server_context(AUTHORITY.issue_cert("localhost")), True, None),
    "self-signed": (own_signature(), True, "not trusted; provider.ca_file"),
    "foreign authority": (server_context(trustme.CA().issue_cert("localhost")), True, "not trusted; provider.ca_file"),
    "own authority, not named": (server_context(AUTHORITY.issue_cert("localhost")), False, "provider.ca_file"),
    "expired": (
        server_context(AUTHORITY.issue_cert("localhost", not_after=datetime(2020, 1, 1, tzinfo=UTC))),
        True,
        "expired",
    ),
    "wrong host": (server_context(AUTHORITY.issue_cert("example.org")), True, "ostname mismatch"),
}


@pytest.mark.parametrize("kind", ["lean", "httpx"])
@pytest.mark.parametrize("name", CERTIFICATES)
def test_a_bad_certificate_is_refused_with_a_hint(tmp_path: Path, name: str, kind: Literal["lean", "httpx"]) -> None:
    context, trusted, said = CERTIFICATES[name]
    authority = tmp_path / "ca.pem"
    AUTHORITY.cert_pem.write_to_path(str(authority))

    with RawServer(always(response()), tls=context) as server:
        provider = {"ca_file": str(authority)} if trusted else {}
        patient = {"request_timeout": "20s", "row_deadline": "20s"}
        job = faulty_job(tmp_path, server.url, 1, provider=provider, retry=patient)

        async def main() -> batchchat.RunSummary:
            transport = choose_transport(server.url, ca_file=authority if trusted else None, kind=kind)
            return await run_job(job, transport=transport, environ={"CANARY": KEY})

        summary = anyio.run(main)
        if said is None:
            assert summary.ok == 1
        else:
            assert server.received == []
            assert (summary.exit_code, summary.failed, summary.open, summary.sent) == (3, 0, 1, 1)
            assert said in (summary.reason or "")
            assert "provider.ca_file" in (summary.remedy or "")


@pytest.mark.usefixtures("quick_retries")
def test_rows_that_failed_before_and_fail_again_do_not_look_like_an_outage(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(60))
    with DemoServer(DemoOptions(latency_s=0, faults={"sticky_500": 0.3})) as demo:
        job = make_job(tmp_path, demo.base_url, retry={"attempts": 2, "outage": "3s"})
        first = run(job)
        assert first.failed >= 8
        again = run(job)
    assert (again.exit_code, again.failed, again.open) == (1, first.failed, 0)
    assert again.sent == 2 * first.failed
