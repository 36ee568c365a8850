"""The benchmark of endpoints: several servers as processes of their own, and the whole tool over them."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

from tests.benchmarks.bench import Bench, Outcome
from tests.benchmarks.table import Figure

_SLOTS = 4
_GROUP = 10
_MANY = 400
"""Requests at once over ten servers: four groups at each. With one group or two at each, the bound parts some."""
_SENTENCE = "This sentence of the document is there to make its beginning long. "


class Server:
    """One server, which can be killed and started again at its address."""

    def __init__(self, *options: str) -> None:
        self._options = options
        self.port = 0
        self.start()

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it; the second time at the same port."""
        command = [sys.executable, "-m", "tests.benchmarks.pool_server", "--port", str(self.port), *self._options]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.communicate()

    def stats(self) -> dict[str, int]:
        """What it has answered."""
        with urllib.request.urlopen(f"{self.url}/stats") as answer:
            found: dict[str, int] = orjson.loads(answer.read())
        return found


@contextmanager
def _servers(options: Sequence[Sequence[str]]) -> Iterator[list[Server]]:
    found: list[Server] = []
    try:
        found.extend(Server(*one) for one in options)
        yield found
    finally:
        for server in found:
            server.kill()


def _job(bench: Bench, servers: Sequence[Server], rows: Path, concurrency: int, **fields: Any) -> Path:
    path = bench.folder / "pool.json"
    job = {
        "name": "bench",
        "input": {"path": str(rows)},
        "output": str(bench.folder / "out"),
        "provider": {"name": "bench-pool", "endpoints": [{"base_url": f"{server.url}/v1"} for server in servers]},
        "model": "bench",
        "messages": [{"role": "user", "content": "{{ text }}"}],
        "limits": {"concurrency": concurrency},
        **fields,
    }
    path.write_bytes(orjson.dumps(job))
    return path


def _run(bench: Bench, job: Path) -> Outcome:
    bench.clear()
    began = time.monotonic()
    output, peak = bench.run([sys.executable, "-m", "batchchat", "run", str(job), "--json", "--quiet"])
    return Outcome(orjson.loads(output), time.monotonic() - began, peak, began)


def _rows(bench: Bench, texts: Sequence[str]) -> Path:
    path = bench.folder / "pool-rows.jsonl"
    with path.open("wb") as file:
        for text in texts:
            file.write(orjson.dumps({"text": text}) + b"\n")
    return path


def _slow(bench: Bench) -> Figure:
    """Four servers, one of them three times slower: rows a second against the sum of what they can do."""
    quick, slow = ("--slots", str(_SLOTS), "--seconds", "0.1"), ("--slots", str(_SLOTS), "--seconds", "0.3")
    most = 3 * _SLOTS / 0.1 + _SLOTS / 0.3
    rows = _rows(bench, [f"row {number}" for number in range(bench.rows(4_000, 1_000))])
    shares = []
    with _servers([quick, quick, quick, slow]) as servers:
        for _ in range(bench.rounds):
            outcome = _run(bench, _job(bench, servers, rows, 32))
            shares.append(outcome.summary["rows"] / outcome.seconds / most)
    return Figure("4 servers, one three times slower: share of what they can do", "", shares, target=0.9)


def _two(bench: Bench) -> Figure:
    """Two servers of 50 rows a second each."""
    rows = _rows(bench, [f"row {number}" for number in range(bench.rows(2_000, 1_500))])
    rates = []
    with _servers([("--slots", "5", "--seconds", "0.1")] * 2) as servers:
        for _ in range(bench.rounds):
            outcome = _run(bench, _job(bench, servers, rows, 24))
            rates.append(outcome.summary["rows"] / outcome.seconds)
    return Figure("2 servers of 50 rows/s", "rows/s", rates, target=95)


def _killed(bench: Bench) -> list[Figure]:
    """One of four is killed in mid-run and is back after 10 s. With one attempt for a row each that counts is seen."""
    rows = _rows(bench, [f"row {number}" for number in range(bench.rows(6_000, 3_000))])
    failed, counted = [], []
    with _servers([("--slots", str(_SLOTS), "--seconds", "0.1")] * 4) as servers:
        for _ in range(bench.rounds):
            victim = servers[1]
            kill, back = threading.Timer(5.0, victim.kill), threading.Timer(15.0, victim.start)
            for timer in (kill, back):
                timer.start()
            outcome = _run(bench, _job(bench, servers, rows, 64, retry={"attempts": 1}))
            for timer in (kill, back):
                timer.join()
            failed.append(float(outcome.summary["failed"]))
            counted.append(float(sum(group["count"] for group in outcome.summary["failures"])))
    name = "one of 4 killed in mid-run and back after 10 s"
    return [
        Figure(f"{name}: failed rows", "rows", failed, target=0, below=True),
        Figure(f"{name}: attempts counted against rows", "", counted, target=0, below=True),
    ]


def _heads(bench: Bench) -> list[Figure]:
    """Groups of ten rows share 3,000 tokens: how many of the prompts began as one that the server had read."""
    groups = bench.rows(300, 200)
    documents = [f"Document {number}. ".ljust(100, ".") + _SENTENCE * 200 for number in range(groups)]
    rows = _rows(bench, [f"{text}\nQuestion {number}" for text in documents for number in range(_GROUP)])
    options = ("--slots", "64", "--seconds", "0.2", "--heads", "12")
    shares, others = [], []
    for _ in range(bench.rounds):
        with _servers([options] * 10) as servers:
            _run(bench, _job(bench, servers, rows, _MANY))
            stats = [server.stats() for server in servers]
            shares.append(100 * sum(one["known"] for one in stats) / sum(one["answers"] for one in stats))
        with _servers([options] * 10) as servers:
            others.append(_round_robin(servers, rows))
    return [
        Figure("groups of 10 rows with a shared head of 3,000 tokens: cached", "%", shares, target=80),
        Figure("the same by round robin: cached", "%", others, target=10, below=True),
    ]


def _round_robin(servers: Sequence[Server], rows: Path) -> float:
    """Send the same prompts to the servers in turn, as many at once; return the same share, in %."""
    import anyio
    import httpx

    texts = [orjson.loads(line)["text"] for line in rows.read_bytes().splitlines()]

    async def main() -> None:
        room = anyio.CapacityLimiter(_MANY)
        async with httpx.AsyncClient(timeout=60, trust_env=False) as client, anyio.create_task_group() as group:

            async def send(number: int, text: str) -> None:
                body = {"model": "bench", "messages": [{"role": "user", "content": text}]}
                async with room:
                    await client.post(
                        f"{servers[number % len(servers)].url}/v1/chat/completions", content=orjson.dumps(body)
                    )

            for number, text in enumerate(texts):
                group.start_soon(send, number, text)

    anyio.run(main)
    stats = [server.stats() for server in servers]
    return 100 * sum(one["known"] for one in stats) / sum(one["answers"] for one in stats)


def endpoints(bench: Bench) -> list[Figure]:
    """Balance, failover and affinity over servers that model an inference server."""
    return [_slow(bench), _two(bench), *_killed(bench), *_heads(bench)]
