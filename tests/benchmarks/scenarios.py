"""What is measured: each scenario runs its contestants by turns and returns its lines of the table."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson

from tests.benchmarks.peers import MODEL, SYSTEM, installed
from tests.benchmarks.scoring import VARIANTS
from tests.benchmarks.table import Figure
from tests.benchmarks.transports import CEILING, measure, server

_WORDS: Final = ("order", "refund", "late", "box", "ticket", "please", "broken", "delivery", "address", "invoice")
_SLOW: Final = {"openai": 10, "litellm": 20}
"""Peers that get a fraction of the rows, since they would take minutes; a warm-up comes first."""
_LIMIT_PER_MINUTE: Final = 6000
_INDEX_BYTES: Final = 24


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run of the whole tool. `seconds` leave start-up out, `wall` has it; `peak` is in bytes."""

    summary: dict[str, Any]
    wall: float
    peak: int

    @property
    def seconds(self) -> float:
        """From the job's start to its summary."""
        return float(self.summary["elapsed_s"])


@dataclass(slots=True)
class Bench:
    """Where and how big: scenarios take their processes from here."""

    folder: Path
    rounds: int = 3
    scale: float = 1.0
    size: int = 200
    client_cpu: int | None = None
    server_cpu: int | None = None
    _inputs: dict[int, Path] = field(default_factory=dict)

    def rows(self, full: int) -> int:
        """How many rows to take for `full` of them at full scale."""
        return max(20, round(full * self.scale))

    def input(self, count: int) -> Path:
        """A file of so many rows of about 300 bytes, made once."""
        if count not in self._inputs:
            path = self._inputs[count] = self.folder / f"rows-{count}.jsonl"
            draw = random.Random(count)
            with path.open("wb") as file:
                for number in range(count):
                    texts = (" ".join(draw.choices(_WORDS, k=k)) for k in (5, 36))
                    row = {"ticket_id": number, **dict(zip(("subject", "body"), texts, strict=True))}
                    file.write(orjson.dumps(row) + b"\n")
        return self._inputs[count]

    def server(self, *options: str) -> AbstractContextManager[str]:
        """The server, on its own core."""
        return server("--size", str(self.size), *options, cpu=self.server_cpu)

    def job(self, url: str, rows: Path, concurrency: int, **limits: int) -> Path:
        """A job file that says what every peer is told, for an output of its own."""
        path = self.folder / "job.json"
        job = {
            "name": "bench",
            "input": {"path": str(rows)},
            "output": str(self.folder / "out"),
            "provider": {"base_url": f"{url}/v1"},
            "model": MODEL,
            "messages": [
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": "{{ subject }}\n\n{{ body }}"},
            ],
            "params": {"temperature": 0, "max_tokens": 64},
            "limits": {"concurrency": concurrency, **limits},
        }
        path.write_bytes(orjson.dumps(job))  # JSON is YAML
        return path

    def tool(self, url: str, rows: Path, concurrency: int, *, keep: bool = False, **limits: int) -> Outcome:
        """Run the whole tool, into a new output unless `keep`. Raises RuntimeError where it does not end well."""
        if not keep:
            self.clear()
        command = [sys.executable, "-m", "batchchat", "run", str(self.job(url, rows, concurrency, **limits)), "--json"]
        started = time.perf_counter()
        output, peak = self.run([*command, "--quiet"])
        return Outcome(orjson.loads(output), time.perf_counter() - started, peak)

    def peer(self, name: str, url: str, rows: Path, concurrency: int, count: int) -> float:
        """Run a peer and return its rows a second. Raises RuntimeError where it fails."""
        command = [sys.executable, "-m", "tests.benchmarks.peers", name, "--url", url, "--rows", str(rows)]
        output, _ = self.run([*command, "--concurrency", str(concurrency), "--count", str(count)])
        result = orjson.loads(output)
        return float(result["rows"] / result["seconds"])

    def discarding(self, url: str, rows: Path, concurrency: int) -> float:
        """Seconds of a run whose outcomes are thrown away."""
        self.clear()
        job = self.job(url, rows, concurrency)
        output, _ = self.run([sys.executable, "-m", "tests.benchmarks.peers", "discarding", "--rows", str(job)])
        return float(orjson.loads(output)["seconds"])

    def clear(self) -> None:
        """Remove the last output."""
        shutil.rmtree(self.folder / "out", ignore_errors=True)

    def run(self, command: list[str]) -> tuple[bytes, int]:
        """Run a command on the client's core; return its standard output and its peak memory in bytes."""
        log, result = self.folder / "log.txt", self.folder / "result.txt"
        with log.open("wb") as errors, result.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=errors)
            if self.client_cpu is not None:
                os.sched_setaffinity(process.pid, {self.client_cpu})
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"{command[2:5]} ended with {process.returncode}: {log.read_text()[-2000:]}")
        return result.read_bytes(), usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def whole_tool(bench: Bench, concurrency: int) -> list[Figure]:
    """The whole tool against each peer's loop."""
    targets = {"openai": 12.0 if concurrency < 1000 else 20.0, "aiohttp": 0.8}
    count = bench.rows(50_000)
    rows = bench.input(count)
    ours: list[float] = []
    theirs: dict[str, list[float]] = {name: [] for name in installed()}
    with bench.server() as url:
        for _ in range(bench.rounds):
            ours.append(count / bench.tool(url, rows, concurrency).seconds)
            for name, rates in theirs.items():
                some = max(20, count // _SLOW.get(name, 1))
                rates.append(bench.peer(name, url, rows, concurrency, some))
    name = f"whole tool, c={concurrency:,}"
    if not theirs:
        return [Figure(name, "rows/s", ours)]
    return [Figure(name, "rows/s", ours, peer, rates, targets.get(peer)) for peer, rates in theirs.items()]


def ceiling(bench: Bench) -> list[Figure]:
    """The server's own ceiling, so that nobody measures the server."""
    with bench.server() as url:
        runs = [measure(CEILING, url, 64, max(0.2, bench.scale), bench.client_cpu) for _ in range(bench.rounds)]
    rates = [figures["rate"] for figures in runs if figures is not None]
    return [Figure("the server alone, asked by bare sockets", "req/s", rates)]


def wide(bench: Bench) -> list[Figure]:
    """Four thousand requests at once against 256."""
    count = bench.rows(50_000)
    rates: dict[int, list[float]] = {4000: [], 256: []}
    with bench.server() as url:
        for _ in range(bench.rounds):
            for concurrency, found in rates.items():
                found.append(count / bench.tool(url, bench.input(count), concurrency).seconds)
    return [Figure("whole tool, c=4,000", "rows/s", rates[4000], "c=256", rates[256], 0.7)]


def delay(bench: Bench) -> list[Figure]:
    """Answers that take a second: the ideal time over the time taken."""
    count, concurrency = bench.rows(10_000), max(2, round(1000 * min(1.0, bench.scale)))
    with bench.server("--delay", "1") as url:
        ideal = -(-count // concurrency) * 1.0
        runs = [bench.tool(url, bench.input(count), concurrency).seconds for _ in range(bench.rounds)]
    name = f"answers after 1 s, c={concurrency:,}: ideal/wall"
    return [Figure(name, "", [ideal / seconds for seconds in runs], target=0.97)]


def store(bench: Bench) -> list[Figure]:
    """Journal and Parquet against nothing kept."""
    count, kept, lost = bench.rows(50_000), [], []
    with bench.server() as url:
        for _ in range(bench.rounds):
            kept.append(count / bench.tool(url, bench.input(count), 64).seconds)
            lost.append(count / bench.discarding(url, bench.input(count), 64))
    return [Figure("journal and Parquet, c=64", "rows/s", kept, "thrown away", lost, 0.85)]


def memory(bench: Bench) -> list[Figure]:
    """Ten times the rows: the peak, less what the index may take for each row."""
    large = bench.rows(1_000_000)
    small = max(20, large // 10)
    with bench.server() as url:
        peaks = [
            (bench.tool(url, bench.input(count), 256).peak - _INDEX_BYTES * count) / 2**20 for count in (large, small)
        ]
    name = f"peak memory, {large:,} rows"
    return [
        Figure(name, "MiB", peaks[:1], f"{small:,} rows", peaks[1:], 1.25, below=True),
        Figure(f"{name}, in MiB", "MiB", peaks[:1], target=300.0, below=True),
    ]


def resume(bench: Bench) -> list[Figure]:
    """A run that finds all but the last row done: the time of the whole of it, which its one request ends."""
    count = bench.rows(1_000_000)
    rows = bench.folder / "growing.jsonl"
    rows.write_bytes(bench.input(count).read_bytes())
    with bench.server() as url:
        bench.tool(url, rows, 256)
        with rows.open("ab") as file:
            file.write(orjson.dumps({"ticket_id": count, "subject": "new", "body": "one more"}) + b"\n")
        outcome = bench.tool(url, rows, 256, keep=True)
    if outcome.summary["sent"] != 1:
        raise RuntimeError(f"a resumed run sent {outcome.summary['sent']} requests instead of 1")
    return [Figure(f"resume behind {count:,} done rows", "s", [outcome.wall], target=10.0, below=True)]


def limit(bench: Bench) -> list[Figure]:
    """The share of 6,000 requests a minute that is used while the server enforces them by a sliding window."""
    count = bench.rows(12_000)
    with bench.server("--rpm", str(_LIMIT_PER_MINUTE)) as url:
        run = bench.tool(url, bench.input(count), 64, requests_per_minute=_LIMIT_PER_MINUTE)
        with urllib.request.urlopen(f"{url}/stats") as answer:
            refused = orjson.loads(answer.read())["refused"]
    used = count / run.seconds / (_LIMIT_PER_MINUTE / 60)
    return [
        Figure(f"share of {_LIMIT_PER_MINUTE:,} requests/min used", "", [used], target=0.98),
        Figure("requests refused meanwhile", "", [float(refused)], target=0.0, below=True),
    ]


def help_page(bench: Bench) -> list[Figure]:
    """`batchchat --help`."""
    seconds: list[float] = []
    for _ in range(2 * bench.rounds + 1):
        started = time.perf_counter()
        bench.run([sys.executable, "-m", "batchchat", "--help"])
        seconds.append(time.perf_counter() - started)
    return [Figure("batchchat --help", "s", seconds, target=0.3, below=True)]


def scoring(bench: Bench) -> list[Figure]:
    """Four variants scored by exact, regex and classes, on one core; and ten times the rows against a tenth."""
    large = bench.rows(100_000)
    small = max(10, large // 10)
    seconds: list[float] = []
    peaks: dict[int, float] = {}
    for count in (small, large):
        folder = bench.folder / f"scoring-{count}"
        folder.mkdir(exist_ok=True)
        bench.run([sys.executable, "-m", "tests.benchmarks.scoring", "make", str(folder), str(count)])
        for _ in range(bench.rounds):
            output, _ = bench.run([sys.executable, "-m", "tests.benchmarks.scoring", "score", str(folder)])
            result = orjson.loads(output)
            peaks[count] = result["peak"] / 2**20
            if count == large:
                seconds.append(result["seconds"])
    grown = (peaks[large] - peaks[small]) * 2**20 / (large - small) / VARIANTS
    return [
        Figure(f"scoring {large:,} rows x {VARIANTS} variants", "s", seconds, target=10.0, below=True),
        Figure("memory of scoring, for each answer", "bytes", [grown], target=256.0, below=True),
    ]


SCENARIOS: Final[dict[str, Callable[[Bench], list[Figure]]]] = {
    "ceiling": ceiling,
    "tool-64": lambda bench: whole_tool(bench, 64),
    "tool-1000": lambda bench: whole_tool(bench, 1000),
    "wide": wide,
    "delay": delay,
    "store": store,
    "memory": memory,
    "resume": resume,
    "limit": limit,
    "help": help_page,
    "scoring": scoring,
}
