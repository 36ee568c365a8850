"""Calls of a Batch API over real connections that break: what is certain, what is not, and what goes on."""

from __future__ import annotations

import socket
import tracemalloc
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from batchchat.engines.batch.service import (
    BatchService,
    BatchStatus,
    ChunkTooLarge,
    OutcomeUnknown,
    RemoteBatch,
    Unavailable,
)
from batchchat.engines.batch.services import http, open_service
from batchchat.providers import Provider
from tests.batch_play import Options
from tests.integration.raw_server import Peer, RawServer
from tests.thorough import one_in

BATCH = b'{"id":"b1","object":"batch","status":"validating","input_file_id":"f1"}'
CONTENT = b"".join(b'{"custom_id":"%d","response":{"status_code":200,"body":{}}}\n' % n for n in range(20_000))


def run(url: str, use: Callable[[BatchService], Awaitable[Any]]) -> Any:
    provider = Provider(name="custom", base_url=f"{url}/v1", identity="x")

    async def whole() -> Any:
        service = open_service(provider, Options(), api_key="sk-0123456789", environ={})
        async with service:
            return await use(service)

    return anyio.run(whole)


def answer(body: bytes, *, status: bytes = b"200 OK", fields: bytes = b"") -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n%s\r\n%s" % (status, len(body), fields, body)


def create(service: BatchService) -> Awaitable[RemoteBatch]:
    return service.create("f1", {"nonce": "n"})


def test_no_connection_is_kept_that_a_create_could_be_lost_on() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer(BATCH))
        await peer.gone()

    async def use(service: BatchService) -> None:
        for _ in range(3):
            assert (await create(service)).id == "b1"

    with RawServer(script) as server:
        run(server.url, use)
        assert server.connections == 3


async def _reset(peer: Peer) -> None:
    await peer.request()
    await peer.reset()


async def _closed(peer: Peer) -> None:
    await peer.request()


async def _half(peer: Peer) -> None:
    await peer.request()
    await peer.send(answer(BATCH)[:-20])


async def _silent(peer: Peer) -> None:
    await peer.request()
    await peer.gone()


async def _nonsense(peer: Peer) -> None:
    await peer.request()
    await peer.send(b"SSH-2.0-OpenSSH\r\n")


@pytest.mark.parametrize("script", [_reset, _closed, _half, _silent, _nonsense])
def test_a_create_without_an_answer_is_made_once_and_not_known(
    script: Callable[[Peer], Awaitable[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "ANSWER_TIMEOUT_S", 0.3)
    with RawServer(script) as server:
        with pytest.raises(OutcomeUnknown):
            run(server.url, create)
        assert len(server.received) == 1


def test_a_create_that_meets_no_server_was_not_made() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(Unavailable, match="cannot be reached"):
            run(url, create)


def test_an_upload_that_is_refused_early_is_too_large(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"x" * 8_000_000)

    async def script(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        await peer.send(answer(b"<html>413</html>", status=b"413 Request Entity Too Large"))
        await peer.gone()

    with RawServer(script) as server, pytest.raises(ChunkTooLarge):
        run(server.url, lambda service: service.upload("a.jsonl", path))


def test_an_upload_is_streamed_from_disk(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    size = 40_000_000
    with path.open("wb") as file:
        file.truncate(size)
    taken = 0

    async def script(peer: Peer) -> None:
        nonlocal taken
        head = (await peer.reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.split("content-length: ")[1].split("\r\n")[0])
        while taken < length:
            taken += len(await peer.reader.read(65536))
        await peer.send(answer(b'{"id":"f1"}'))

    tracemalloc.start()
    try:
        with RawServer(script) as server:
            assert run(server.url, lambda service: service.upload("a.jsonl", path)) == "f1"
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size < taken < size + 1000
    assert peak < 16_000_000


@pytest.mark.parametrize("framing", one_in(3, ["length", "chunked", "until the end"]))
def test_a_download_that_breaks_goes_on_where_it_was(framing: str, tmp_path: Path) -> None:
    asked: list[str] = []

    async def script(peer: Peer) -> None:
        request = (await peer.request()).decode()
        if "/content" not in request:
            await peer.send(answer(b'{"id":"out","bytes":%d}' % len(CONTENT)))
            return
        fields = dict(line.lower().split(": ", 1) for line in request.split("\r\n")[1:] if ": " in line)
        asked.append(fields.get("range", ""))
        start = int(fields["range"].removeprefix("bytes=").split("-")[0]) if "range" in fields else 0
        if start or len(asked) > 1:
            told = b"Content-Range: bytes %d-%d/%d\r\n" % (start, len(CONTENT) - 1, len(CONTENT)) if start else b""
            status = b"206 Partial Content" if start else b"200 OK"
            await peer.send(answer(CONTENT[start:], status=status, fields=told))
            return
        half = CONTENT[: len(CONTENT) // 2]
        if framing == "length":
            await peer.send(answer(CONTENT)[: -len(half)])
        elif framing == "chunked":
            head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            await peer.send(head + b"%x\r\n%s\r\n" % (len(half), half))
        else:
            # Nothing tells that this is not all, but the size that the provider names.
            await peer.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + half)

    async def use(service: BatchService) -> list[str | None]:
        ended = RemoteBatch("b1", BatchStatus.COMPLETED, result_refs=("out",))
        return [line.custom_id async for line in service.results(ended, tmp_path)]

    with RawServer(script) as server:
        assert run(server.url, use) == [str(number) for number in range(20_000)]
    assert len(asked) == 2
    assert bool(asked[1]) is (framing != "until the end")
