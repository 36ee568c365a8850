"""Processes that share a limit, real ones: one is killed, one is stopped and goes on. The server counts."""

from __future__ import annotations

import asyncio
import bisect
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.integration.processes import children_of

_CHILD = """
import random, socket, sys
import anyio
from pathlib import Path
from batchchat.records import Reply, Verdict
from batchchat.sharing.file import LimitFile
from batchchat.sharing.limiter import SharedLimiter
from batchchat.limits.ceilings import Advertised, LimitCeilings

async def send(limiter, out):
    while True:
        permit = await limiter.acquire(10)
        out.send(b"x")
        await anyio.sleep(0.02)
        permit.settle(Reply(Verdict.OK))

async def main(folder, port, limit):
    out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    out.connect(("127.0.0.1", port))
    carrier = LimitFile(Path(folder), "limit", Advertised(), random.Random())
    async with SharedLimiter(carrier, LimitCeilings(limit, None, 32)).kept() as limiter:
        async with anyio.create_task_group() as group:
            for _ in range(8):
                group.start_soon(send, limiter, out)

anyio.run(main, sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
"""


class _Counter(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.times: list[float] = []
        self.begun = asyncio.Event()

    def datagram_received(self, data: bytes, addr: object) -> None:
        self.times.append(time.monotonic())
        self.begun.set()


def _worst(times: Sequence[float], window_s: float) -> int:
    return max(place - bisect.bisect_left(times, at - window_s + 1e-6) + 1 for place, at in enumerate(times))


def test_processes_of_which_one_dies_and_one_stalls_keep_the_pace_of_one(tmp_path: Path) -> None:
    """No window of any length holds more than the pace gives in it, with what one lease can bring together."""
    limit = 3_000.0

    async def main() -> list[float]:
        loop = asyncio.get_running_loop()
        transport, counter = await loop.create_datagram_endpoint(_Counter, local_addr=("127.0.0.1", 0))
        port = transport.get_extra_info("sockname")[1]
        command = [sys.executable, "-c", _CHILD, str(tmp_path), str(port), str(limit)]
        children = [subprocess.Popen(command) for _ in range(3)]  # noqa: ASYNC220 - it returns at once
        try:
            await counter.begun.wait()
            await asyncio.sleep(0.6)
            children[0].kill()
            children[1].send_signal(signal.SIGSTOP)
            await asyncio.sleep(0.7)
            children[1].send_signal(signal.SIGCONT)
            await asyncio.sleep(0.7)
        finally:
            for child in children:
                child.kill()
                child.wait()
            transport.close()
        return counter.times

    times = asyncio.run(main())
    interval = (60 + 0.5 + 0.2) / limit
    for window_s in (0.5, 1.0, 1.5):
        assert _worst(times, window_s) <= (window_s + 0.5 + 0.1) / interval + 2
    assert len(times) >= 20  # they went on


def _job(folder: Path, number: int, port: int, **fields: Any) -> Path:
    rows = folder / f"rows-{number}.jsonl"
    texts = ({"t": f"{number} {row}"} for row in range(5_000))
    rows.write_text("".join(json.dumps(text) + "\n" for text in texts), encoding="utf-8")
    job = folder / f"job-{number}.json"
    job.write_text(
        json.dumps(
            {
                "name": f"job-{number}",
                "input": {"path": str(rows), "key": "t"},
                "output": {"path": str(folder / f"out-{number}"), **fields.get("output", {})},
                "provider": {"base_url": f"http://127.0.0.1:{port}/v1", "api_key_env": "SHARED_KEY"},
                "model": "m",
                "messages": [{"role": "user", "content": "{{ t }}"}],
                "limits": {"requests_per_minute": 600, **fields.get("limits", {})},
            }
        ),
        encoding="utf-8",
    )
    return job


class _Server:
    """Answers everything after 0.2 s, and notes when each request arrived."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.begun = asyncio.Event()

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = json.dumps(
            {
                "id": "x",
                "model": "m",
                "choices": [{"index": 0, "message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6},
            }
        ).encode()
        answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0])
                await reader.readexactly(length)
                self.times.append(time.monotonic())
                self.begun.set()
                await asyncio.sleep(0.2)
                writer.write(answer)
                await writer.drain()
        except (OSError, EOFError):
            writer.close()


async def _four_runs(folder: Path, environ: Mapping[str, str], shared: str, seconds: float) -> list[float]:
    """Run four jobs; kill one, stop one for a while. Returns when requests arrived, from the first one on."""
    server = _Server()
    listener = await asyncio.start_server(server.talk, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    logs = [(folder / f"log-{number}").open("wb") for number in range(4)]
    runs = [
        subprocess.Popen(  # noqa: ASYNC220 - it returns at once
            [sys.executable, "-m", "batchchat", "run", str(_job(folder, number, port, limits={"shared": shared}))],
            env=dict(environ),
            stdout=log,
            stderr=log,
        )
        for number, log in enumerate(logs)
    ]
    try:
        await server.begun.wait()
        begun = server.times[0]
        await asyncio.sleep(0.3 * seconds)
        runs[0].kill()
        await asyncio.sleep(0.2 * seconds)
        runs[1].send_signal(signal.SIGSTOP)
        await asyncio.sleep(0.1 * seconds)
        runs[1].send_signal(signal.SIGCONT)
        await asyncio.sleep(0.4 * seconds)
        return [at - begun for at in server.times]
    finally:
        for run in runs:
            run.kill()
            run.wait()
        for log in logs:
            log.close()
        listener.close()
        await asyncio.sleep(0.5)  # the connections of the killed end


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("carrier", ["file", "broker"])
def test_four_runs_are_never_above_a_limit_in_three_minutes(tmp_path: Path, carrier: str) -> None:
    environ = {
        **os.environ,
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "SHARED_KEY": "k",
        "BATCHCHAT_BROKER_TOKEN": "secret",
    }
    shared, broker = "true", None
    if carrier == "broker":
        broker = subprocess.Popen(
            [sys.executable, "-m", "batchchat", "broker", "--listen", "127.0.0.1:0"],
            env=environ,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert broker.stdout is not None
        shared = broker.stdout.readline().strip()
    try:
        times = asyncio.run(_four_runs(tmp_path, environ, shared, 180.0))
    finally:
        if broker is not None:
            broker.terminate()
            broker.wait()
            assert broker.stdout is not None
            broker.stdout.close()
    assert _worst(times, 60.0) <= 600
    used = sum(10 <= at < 180 for at in times) / (10 * 170)
    assert used >= 0.95, f"{used:.3f} of the limit used"


async def _one_run_of_four_workers(folder: Path, environ: Mapping[str, str], seconds: float) -> list[float]:
    """Run a job with four workers; kill one, stop one for a while. Returns when requests arrived."""
    server = _Server()
    listener = await asyncio.start_server(server.talk, "127.0.0.1", 0)
    job = _job(folder, 0, listener.sockets[0].getsockname()[1], output={"shards": 16})
    with (folder / "log").open("wb") as log:
        run = subprocess.Popen(  # noqa: ASYNC220 - it returns at once
            [sys.executable, "-m", "batchchat", "run", str(job), "--workers", "4"],
            env=dict(environ),
            stdout=log,
            stderr=log,
        )
    try:
        await server.begun.wait()
        begun = server.times[0]
        await asyncio.sleep(0.3 * seconds)
        workers = children_of(run.pid)
        assert len(workers) == 4
        os.kill(workers[0], signal.SIGKILL)
        await asyncio.sleep(0.2 * seconds)
        os.kill(workers[1], signal.SIGSTOP)
        await asyncio.sleep(0.1 * seconds)
        os.kill(workers[1], signal.SIGCONT)
        await asyncio.sleep(0.4 * seconds)
        assert run.poll() is None
        return [at - begun for at in server.times]
    finally:
        run.kill()
        run.wait()
        listener.close()
        await asyncio.sleep(0.5)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_four_workers_are_never_above_a_limit_in_three_minutes(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    environ = {**os.environ, "SHARED_KEY": "k"}
    times = asyncio.run(_one_run_of_four_workers(tmp_path, environ, 180.0))
    worst, used = _worst(times, 60.0), sum(10 <= at < 180 for at in times) / (10 * 170)
    record_property("worst minute", worst)
    record_property("used", used)
    print(f"worst 60 s window: {worst} of 600; used: {used:.1%}")
    assert worst <= 600
    assert used >= 0.95, f"{used:.3f} of the limit used"
