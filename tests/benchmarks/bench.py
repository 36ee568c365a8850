"""Where and how big: the benchmarks' processes, each on a core of its own, and what came of them."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson

from tests.benchmarks.peers import MODEL, SYSTEM
from tests.benchmarks.transports import server

_WORDS: Final = ("order", "refund", "late", "box", "ticket", "please", "broken", "delivery", "address", "invoice")
_PATIENCE_S: Final = 1200.0
_LOOK_S: Final = 0.02


class Failed(Exception):
    """A process that is measured did not end well."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run of the whole tool. `seconds` leave the interpreter's start out, `wall` has it; `peak` is in bytes.

    `began` is when the process was started, on the clock that `Served` has.
    """

    summary: dict[str, Any]
    wall: float
    peak: int
    began: float

    @property
    def seconds(self) -> float:
        """From the job's start to its summary: reading, sending, storing, sealing."""
        return float(self.summary["elapsed_s"])


@dataclass(frozen=True, slots=True)
class Served:
    """What the server saw since it was last asked to forget: counts, and times on the machine's monotonic clock."""

    allowed: int
    refused: int
    first: float
    last: float


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
    _done: int = 0
    _done_peak: int = 0
    _done_port: int = 0

    def rows(self, full: int, least: int = 20) -> int:
        """How many rows to take for `full` of them at full scale; at sizes worth quoting, no fewer than `least`."""
        return max(20 if self.scale < 0.01 else least, round(full * self.scale))

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

    def served(self, url: str, *, forget: bool = False) -> Served:
        """What the server saw; with `forget` it begins anew. Its limit's window stays."""
        with urllib.request.urlopen(f"{url}/{'forget' if forget else 'stats'}") as answer:
            return Served(**orjson.loads(answer.read()))

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
        """Run the whole tool, into a new output unless `keep`. Raises Failed where it does not end well."""
        if not keep:
            self.clear()
        job = self.job(url, rows, concurrency, **limits)
        began = time.monotonic()
        output, peak = self.run([sys.executable, "-m", "batchchat", "run", str(job), "--json", "--quiet"])
        return Outcome(orjson.loads(output), time.monotonic() - began, peak, began)

    def done(self, count: int) -> int:
        """An output in which so many rows are done, made once; the peak memory of making it, in bytes."""
        if self._done != count:
            with self.server_of_done() as url:
                self._done_peak = self.tool(url, self.input(count), 256).peak
            self._done = count
        return self._done_peak

    def server_of_done(self) -> AbstractContextManager[str]:
        """The server whose answers `done` holds: at another address it would be another provider."""
        if not self._done_port:
            with socket.create_server(("127.0.0.1", 0)) as free:
                self._done_port = free.getsockname()[1]
        return self.server("--port", str(self._done_port))

    def peer(self, name: str, url: str, rows: Path, concurrency: int, count: int) -> float:
        """Run a peer and return its rows a second. Raises Failed where it fails."""
        command = [sys.executable, "-m", "tests.benchmarks.peers", name, "--url", url, "--rows", str(rows)]
        output, _ = self.run([*command, "--concurrency", str(concurrency), "--count", str(count)])
        result = orjson.loads(output.splitlines()[-1])  # some print before it
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
        self._done = 0

    def run(self, command: list[str]) -> tuple[bytes, int]:
        """Run a command on the client's core; return its standard output and its peak memory in bytes.

        Raises Failed where it ends with another code than 0, or not within twenty minutes.
        """
        log, result = self.folder / "log.txt", self.folder / "result.txt"
        with log.open("wb") as errors, result.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=errors)
            if self.client_cpu is not None:
                os.sched_setaffinity(process.pid, {self.client_cpu})
            until = time.monotonic() + _PATIENCE_S
            pid = 0
            try:
                while not pid:
                    pid, status, usage = os.wait4(process.pid, os.WNOHANG)
                    if not pid:
                        if time.monotonic() > until:
                            process.kill()
                        time.sleep(_LOOK_S)
            except BaseException:
                process.kill()
                raise
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise Failed(f"{' '.join(command[2:5])} ended with {process.returncode}: {log.read_text()[-2000:]}")
        return result.read_bytes(), usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
