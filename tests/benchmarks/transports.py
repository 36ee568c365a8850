"""Candidates for the network path, side by side: `python -m tests.benchmarks.transports`.

Each runs in a process of its own on one core against the benchmarks' server on another, with nothing but requests and
answers: no rows, no files. Rounds alternate between the candidates; the table has medians. Candidates whose package is
not installed are skipped. The first line is the server's own ceiling, driven by bare sockets that parse nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import importlib
import importlib.util
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final, cast

import click
import httpx
import orjson

from batchchat.transport import LeanTransport

_HEADERS: Final = {
    "host": "127.0.0.1",
    "accept": "application/json",
    "content-type": "application/json",
    "user-agent": "batchchat",
    "authorization": "Bearer test-key",
}
_BODY: Final = orjson.dumps(
    {
        "model": "llama-3.1-8b-instruct",
        "messages": [
            {"role": "system", "content": "You sort support tickets into one of seven queues. Answer with its name."},
            {"role": "user", "content": "My order arrived a week late and the box was open. " * 2},
        ],
        "temperature": 0,
        "max_tokens": 64,
    }
)
_READ_TIMEOUT_S: Final = 60.0
_WARM_UP_S: Final = 0.3
_PATIENCE_S: Final = 90.0

Send = Callable[[int], Awaitable[tuple[int, bytes]]]
"""Sends the request as worker number i, and returns status and body."""


@asynccontextmanager
async def lean_exchange(url: str, concurrency: int) -> AsyncIterator[Send]:
    async with LeanTransport() as transport:
        route = transport.route("POST", url, _HEADERS)

        async def send(worker: int) -> tuple[int, bytes]:
            answer = await transport.exchange(route, _BODY, _READ_TIMEOUT_S)
            return answer.status, answer.body

        yield send


@asynccontextmanager
async def lean_httpx_objects(url: str, concurrency: int) -> AsyncIterator[Send]:
    async with LeanTransport() as transport:
        yield functools.partial(_through_seam, lambda _: transport, httpx.URL(url))


@asynccontextmanager
async def httpx_transport_per_worker(url: str, concurrency: int) -> AsyncIterator[Send]:
    context = httpx.create_ssl_context()  # one for all: each takes a tenth of a second to make
    transports = [httpx.AsyncHTTPTransport(verify=context) for _ in range(concurrency)]
    yield functools.partial(_through_seam, transports.__getitem__, httpx.URL(url))
    for transport in transports:
        await transport.aclose()


async def _through_seam(
    choose: Callable[[int], httpx.AsyncBaseTransport], url: httpx.URL, worker: int
) -> tuple[int, bytes]:
    request = httpx.Request(
        "POST", url, headers=_HEADERS, content=_BODY, extensions={"timeout": {"read": _READ_TIMEOUT_S}}
    )
    response = await choose(worker).handle_async_request(request)
    return response.status_code, await response.aread()


@asynccontextmanager
async def httpx_client(url: str, concurrency: int) -> AsyncIterator[Send]:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(limits=limits, headers=_HEADERS, timeout=_READ_TIMEOUT_S) as client:

        async def send(worker: int) -> tuple[int, bytes]:
            response = await client.post(url, content=_BODY)
            return response.status_code, response.content

        yield send


@asynccontextmanager
async def httpx_client_per_worker(url: str, concurrency: int) -> AsyncIterator[Send]:
    context = httpx.create_ssl_context()
    clients = [httpx.AsyncClient(verify=context, headers=_HEADERS, timeout=_READ_TIMEOUT_S) for _ in range(concurrency)]

    async def send(worker: int) -> tuple[int, bytes]:
        response = await clients[worker].post(url, content=_BODY)
        return response.status_code, response.content

    yield send
    for client in clients:
        await client.aclose()


@asynccontextmanager
async def aiohttp_session(url: str, concurrency: int) -> AsyncIterator[Send]:
    aiohttp = importlib.import_module("aiohttp")

    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=_READ_TIMEOUT_S)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=_HEADERS) as session:

        async def send(worker: int) -> tuple[int, bytes]:
            async with session.post(url, data=_BODY) as response:
                return response.status, await response.read()

        yield send


@asynccontextmanager
async def pyreqwest_client(url: str, concurrency: int) -> AsyncIterator[Send]:
    pyreqwest = importlib.import_module("pyreqwest.client")

    async with pyreqwest.ClientBuilder().default_headers(_HEADERS).build() as client:

        async def send(worker: int) -> tuple[int, bytes]:
            response = await client.post(url).body_bytes(_BODY).build().send()
            return response.status, bytes(await response.bytes())

        yield send


CANDIDATES: Final[dict[str, Callable[[str, int], AbstractAsyncContextManager[Send]]]] = {
    "lean: exchange": lean_exchange,
    "lean: httpx objects": lean_httpx_objects,
    "pyreqwest": pyreqwest_client,
    "aiohttp session": aiohttp_session,
    "httpx transport per worker": httpx_transport_per_worker,
    "httpx client per worker": httpx_client_per_worker,
    "httpx client, one pool": httpx_client,
}
_NEEDS: Final = {"pyreqwest": "pyreqwest", "aiohttp session": "aiohttp"}
CEILING: Final = "server's ceiling (bare sockets)"


async def drive(name: str, url: str, concurrency: int, seconds: float) -> dict[str, float]:
    """Keep `concurrency` requests going and count the answers after a warm-up."""
    count, going, warm = 0, True, asyncio.Event()
    async with CANDIDATES[name](url, concurrency) as send:

        async def work(worker: int) -> None:
            nonlocal count
            while going:
                status, body = await send(worker)
                if status != 200 or not body.startswith(b'{"id"'):
                    raise RuntimeError(f"unexpected answer: {status} {body[:80]!r}")
                count += 1
                if count == concurrency:
                    warm.set()

        workers = [asyncio.ensure_future(work(worker)) for worker in range(concurrency)]
        await warm.wait()  # most connections are open now: no figure contains their opening
        await asyncio.sleep(_WARM_UP_S)
        first, cpu, started = count, time.process_time(), time.perf_counter()
        await asyncio.sleep(seconds)
        elapsed, done, cpu = time.perf_counter() - started, count - first, time.process_time() - cpu
        going = False
        await asyncio.gather(*workers)
    return {"rate": done / elapsed, "cpu": cpu / max(done, 1) * 1e6}


class _Bare(asyncio.Protocol):
    """Writes the request again as soon as as many bytes as one answer has are there."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._transport: asyncio.Transport | None = None
        self._missing = 0
        self.length = 0
        self.count = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if not self.length:
            head, _, _ = data.partition(b"\r\n\r\n")
            self.length = len(head) + 4 + int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            self._missing = self.length
        self._missing -= len(data)
        if self._missing <= 0:
            self._missing = self.length
            self.count += 1
            if self._transport is not None:
                self._transport.write(self._request)


async def drive_bare(url: str, concurrency: int, seconds: float) -> dict[str, float]:
    """What the server can do, asked by sockets that do not parse."""
    loop = asyncio.get_running_loop()
    fields = "".join(f"{name}: {value}\r\n" for name, value in _HEADERS.items())
    request = f"POST /v1/chat/completions HTTP/1.1\r\n{fields}content-length: {len(_BODY)}\r\n\r\n".encode() + _BODY
    port = httpx.URL(url).port or 80
    pairs = [await loop.create_connection(lambda: _Bare(request), "127.0.0.1", port) for _ in range(concurrency)]
    await asyncio.sleep(_WARM_UP_S)
    first = sum(bare.count for _, bare in pairs)
    cpu, started = time.process_time(), time.perf_counter()
    await asyncio.sleep(seconds)
    done, elapsed = sum(bare.count for _, bare in pairs) - first, time.perf_counter() - started
    cpu = time.process_time() - cpu
    for transport, _ in pairs:
        transport.abort()
    await asyncio.sleep(0.05)
    return {"rate": done / elapsed, "cpu": cpu / max(done, 1) * 1e6}


def cores() -> tuple[int | None, int | None]:
    """A core for the client and another for the server, where there are two to choose from."""
    if not hasattr(os, "sched_getaffinity"):
        return None, None
    available = sorted(os.sched_getaffinity(0))
    return (available[0], available[-1]) if len(available) > 1 else (None, None)


@contextlib.contextmanager
def server(*options: str, cpu: int | None = None) -> Iterator[str]:
    """The benchmarks' server in a process of its own; yields its base URL."""
    command = [sys.executable, "-m", "tests.benchmarks.server", *options]
    if cpu is not None:
        command += ["--cpu", str(cpu)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.terminate()


def measure(name: str, url: str, concurrency: int, seconds: float, cpu: int | None) -> dict[str, float] | None:
    """Run one candidate in a process of its own; None where it does not get its requests through in time."""
    command = [sys.executable, "-m", "tests.benchmarks.transports", "--one", name, "--url", url]
    command += ["--concurrency", str(concurrency), "--seconds", str(seconds)]
    if cpu is not None:
        command += ["--cpu", str(cpu)]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, check=False, timeout=_PATIENCE_S + 5 * seconds)
    except subprocess.TimeoutExpired:
        return None
    if done.returncode:
        raise click.ClickException(f"{name} at {concurrency} ended with code {done.returncode}")
    figures: dict[str, float] = orjson.loads(done.stdout)
    return figures


def _run(main: Any) -> Any:
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    return uvloop.run(main)


@click.command()
@click.option("--seconds", default=1.5, help="How long each run counts.")
@click.option("--rounds", default=3)
@click.option("--concurrency", multiple=True, type=int, default=(64, 1000, 4000))
@click.option("--size", default=200, help="Characters in each answer's text.")
@click.option("--one", hidden=True)
@click.option("--url", hidden=True)
@click.option("--cpu", type=int, hidden=True)
def main(
    seconds: float,
    rounds: int,
    concurrency: tuple[int, ...],
    size: int,
    one: str | None,
    url: str | None,
    cpu: int | None,
) -> None:
    """Compare ways to carry requests. 4,000 at once are asked of the fast ones alone."""
    if one is not None and url is not None:
        if cpu is not None:
            os.sched_setaffinity(0, {cpu})
        gc.freeze()
        address = f"{url}/v1/chat/completions"
        one_run = drive_bare if one == CEILING else functools.partial(drive, one)
        sys.stdout.buffer.write(orjson.dumps(_run(one_run(address, concurrency[0], seconds))))
        return
    client_cpu, server_cpu = cores()
    names = [CEILING]
    for name in CANDIDATES:
        package = _NEEDS.get(name)
        if package is None or importlib.util.find_spec(package) is not None:
            names.append(name)
        else:
            print(f"{name}: skipped, {package} is not installed", file=sys.stderr)
    runs: dict[tuple[str, int], list[dict[str, float]]] = {}
    with server("--size", str(size), cpu=server_cpu) as base_url:
        for _ in range(rounds):
            for many in concurrency:
                for name in names:
                    if many <= 1000 or name in names[:3]:
                        figures = measure(name, base_url, many, seconds, client_cpu)
                        if figures is not None:
                            runs.setdefault((name, many), []).append(figures)
    print(
        f"Python {platform.python_version()}, answers of {size} characters, medians of {rounds} runs of {seconds:g} s"
    )
    print(f"{'':32}" + "".join(f"{f'c={many}: req/s':>20}{'CPU µs':>8}" for many in concurrency))
    for name in names:
        line = f"{name:32}"
        for many in concurrency:
            kept = runs.get((name, many))
            if kept is None:
                line += f"{'-':>20}{'':8}"
                continue
            rate = statistics.median(figures["rate"] for figures in kept)
            line += f"{rate:>20,.0f}{statistics.median(figures['cpu'] for figures in kept):>8,.0f}"
        print(line)


if __name__ == "__main__":
    main()
