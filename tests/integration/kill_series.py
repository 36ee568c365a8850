"""A job of several workers whose processes are killed or stopped at moments that a seed gives, and what must hold then.

A provider numbers its answers, so that each answer can be followed: an answer that was ever seen in the output must
stay there, under its number, and its row must not be asked again. A row may be asked again only after the death of a
process that worked on its shard. The output is looked at after each death.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Any, NamedTuple

import duckdb
import pytest

from batchchat.addresses import address_of
from batchchat.errors import BatchchatError
from batchchat.identity import shard_of
from batchchat.store import is_output, read_state
from tests.integration.buckets import BUCKET, KEYS, client_of
from tests.integration.jobs import write_rows
from tests.integration.processes import Process, children_of, start, wait_for

ROWS = 1_500
SHARDS = 24
WORKERS = 3
CONCURRENCY = 8


_LATE_ANSWER_S = 3.0
_LATE_EVERY = 60


class Asked(NamedTuple):
    """A request: when it arrived, its row, and the number of its answer."""

    at: float
    row: str
    number: int


class NumberingServer:
    """A provider that answers each request with a number of its own, after `latency_s` or a little more."""

    def __init__(self, latency_s: float) -> None:
        self.asked: list[Asked] = []
        self.times: list[float] = []
        self._latency_s = latency_s
        self._random = Random(1)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._talk, "127.0.0.1", 0), self._loop
        ).result()
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, EOFError), closing(writer):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0])
                body = json.loads(await reader.readexactly(length))
                number = len(self.asked)
                self.asked.append(Asked(time.monotonic(), body["messages"][-1]["content"].split()[-1], number))
                # Some answers are late, so that a process which is told to end has something to wait for.
                late = _LATE_ANSWER_S if number % _LATE_EVERY == 0 else 0.0
                await asyncio.sleep(late + self._latency_s * self._random.uniform(1.0, 1.6))
                writer.write(_answer(number))
                await writer.drain()

    def catch_up(self) -> None:
        """Wait until all requests are noted that have come in until now: on a busy machine they wait for a while."""
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0.05), self._loop).result()

    def stop(self) -> None:
        """Stop to listen, end the connections that are open, and end the thread."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _end(self) -> None:
        self._server.close()
        # Those who were killed left connections, whose ends nobody told.
        open_ones = asyncio.all_tasks() - {asyncio.current_task()}
        for task in open_ones:
            task.cancel()
        await asyncio.gather(*open_ones, return_exceptions=True)


def _answer(number: int) -> bytes:
    body = json.dumps(
        {
            "id": f"a{number}",
            "model": "m",
            "choices": [
                {"index": 0, "message": {"role": "assistant", "content": str(number)}, "finish_reason": "stop"}
            ],
            "usage": {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6},
        }
    ).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body


# --- where the output lies


class FolderPlace:
    """Outputs in a folder of this machine."""

    env: Mapping[str, str] = MappingProxyType({})
    kills = False

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def output(self, number: int) -> str:
        """Return the address of an output."""
        return str(self._folder / f"out-{number}")

    def kill(self) -> None:
        """Do nothing: a folder has no server."""

    def restart(self) -> None:
        """Do nothing."""

    def read(self, output: str, sql: str) -> list[tuple[Any, ...]]:
        """Ask DuckDB about a dataset; `data` stands for it."""
        with duckdb.connect() as connection:
            return connection.execute(sql.replace("data", f"read_parquet('{output}/data/*.parquet')")).fetchall()


MINISTACK = os.environ.get("MINISTACK") or shutil.which("ministack")
"""The command of a server for object storage that keeps its objects on disk: `pipx install ministack`."""


class BucketPlace:
    """Outputs in a bucket, whose server is a process that can be killed: its objects are on disk."""

    kills = True

    def __init__(self, folder: Path) -> None:
        assert MINISTACK is not None
        self._folder = folder
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.env = {
            **KEYS,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._port}",
            "XDG_CACHE_HOME": str(folder / "cache"),
        }
        self.restart()
        client_of(self.env["AWS_ENDPOINT_URL"]).create_bucket(Bucket=BUCKET)

    def output(self, number: int) -> str:
        """Return the address of an output."""
        return f"s3://{BUCKET}/out-{number}"

    def kill(self) -> None:
        """Kill the server."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def restart(self) -> None:
        """Start the server, and wait until it answers."""
        env = {
            **os.environ,
            "S3_PERSIST": "1",
            "S3_DATA_DIR": str(self._folder / "objects"),
            "GATEWAY_PORT": str(self._port),
            "BIND_HOST": "127.0.0.1",
            "SERVICES": "s3",
            "LOG_LEVEL": "ERROR",
        }
        with (self._folder / "store.log").open("ab") as log:
            self._process = subprocess.Popen([str(MINISTACK)], env=env, stdout=log, stderr=log, start_new_session=True)
        wait_for(lambda: listens(self._port))

    def read(self, output: str, sql: str) -> list[tuple[Any, ...]]:
        """Ask DuckDB about a dataset, a copy of which is fetched as any reader of the bucket would."""
        client = client_of(self.env["AWS_ENDPOINT_URL"])
        prefix = output.removeprefix(f"s3://{BUCKET}/")
        copy = self._folder / f"copy-{time.monotonic_ns()}"
        copy.mkdir()
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{prefix}/data/"):
            for one in page.get("Contents", []):
                client.download_file(BUCKET, one["Key"], str(copy / one["Key"].rpartition("/")[2]))
        with duckdb.connect() as connection:
            return connection.execute(sql.replace("data", f"read_parquet('{copy}/*.parquet')")).fetchall()


def free_port() -> int:
    """Return a port that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def listens(port: int) -> bool:
    """Tell whether something listens at a port."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


# --- the series


@dataclass
class Death:
    """A process that was killed while it worked: when, which rows it might have had, and which of them were open then.

    `seen` is when all of its requests were noted. `shards` is None for the process that led the others. `reasked` are
    the rows that were asked again for it.
    """

    at: float
    pid: int
    shards: frozenset[int] | None
    seen: float = 0.0
    open: set[str] = field(default_factory=set)
    reasked: int = 0


class KillSeries:
    """Passes over the same rows into one output after another. `by_target` counts what was done to whom."""

    def __init__(self, folder: Path, place: FolderPlace | BucketPlace, server: NumberingServer, seed: int) -> None:
        self.by_target: Counter[str] = Counter()
        self.codes: Counter[int] = Counter()
        self.problems: list[str] = []
        self.passes = self.reasked = self.most_reasked = self.most_open = 0
        self._folder, self._place, self._server = folder, place, server
        self._random = Random(seed)
        self._broker_port = free_port()
        self._broker: Process | None = None
        self._stopped: list[tuple[float, int]] = []
        self._began_at = time.monotonic()
        self._store_back: float | None = None
        write_rows(folder / "rows.jsonl", [{"id": str(number), "text": "x" * 50} for number in range(ROWS)])
        self._begin()

    # --- one pass

    def _begin(self) -> None:
        """Begin another output; its prompt is new, as are the numbers of its answers."""
        self.output = self._place.output(self.passes)
        self._first = len(self._server.asked)
        self._counted: dict[str, tuple[str, float]] = {}
        self._deaths: list[Death] = []
        job = {
            "name": "kills",
            "input": {"path": "rows.jsonl", "key": "id"},
            "output": {"path": self.output, "shards": SHARDS, "part_rows": 20, "part_seconds": 0.4},
            "provider": {"base_url": self._server.url},
            "model": "m",
            "messages": [{"role": "user", "content": f"pass {self.passes}: {{{{ text }}}} {{{{ id }}}}"}],
            "limits": {"concurrency": CONCURRENCY, "shared": f"127.0.0.1:{self._broker_port}"},
            "budget": {"max_requests": 10 * ROWS},
        }
        (self._folder / "job.json").write_text(json.dumps(job), encoding="utf-8")

    @property
    def _asked(self) -> int:
        return len(self._server.asked)

    def start_broker(self) -> None:
        """Start the broker at its port, and wait until it listens."""
        self._broker = start(
            "broker", "--listen", f"127.0.0.1:{self._broker_port}", cwd=self._folder, env=dict(self._place.env)
        )
        wait_for(lambda: listens(self._broker_port))

    def kills(self) -> int:
        """Return how many were killed so far; those that were only stopped count apart."""
        return sum(number for target, number in self.by_target.items() if target != "stopped")

    def run(self, kills: int) -> None:
        """Run the job again and again, and kill until so many were killed; then let the last pass end."""
        self.start_broker()
        try:
            while self.kills() < kills:
                self._once(lambda: self.kills() < kills)
            while self._counted or not self.passes:
                self._once(lambda: False)
        finally:
            self._continue_stopped()
            assert self._broker is not None
            self._broker.kill()
            self._broker.communicate()

    def _once(self, more: Any) -> None:
        """Run the job once, and kill meanwhile; end the pass if it is complete."""
        process = start(
            *("run", "job.json", "--workers", str(WORKERS), "--json", "--log-format", "json"),
            cwd=self._folder,
            env=dict(self._place.env),
        )
        said: list[str] = ["", ""]
        reader = threading.Thread(target=lambda: said.__setitem__(slice(None), process.communicate(timeout=300)))
        # It reads what the process says, and waits for its end.
        reader.start()
        killed = False
        try:
            while more() and not killed:
                if not self._wait_for_moment(reader):
                    break
                killed = self._act(process, reader)
            while reader.is_alive():
                self._tend()
                reader.join(0.05)
        finally:
            if reader.is_alive():
                os.kill(process.pid, signal.SIGKILL)
                reader.join()
        self._tend(wait=True)
        code = process.returncode
        assert code is not None
        print(f"{time.monotonic() - self._began_at:7.1f} s: the run ended with {code}", flush=True)
        self.codes[code] += 1
        self._note_deaths(said[1])
        self._look()
        self._check_code(code, killed, said)
        if code == 0:
            self._end_pass(json.loads(said[0]))

    def _wait_for_moment(self, run: threading.Thread) -> bool:
        """Wait for some more requests, or for a moment; return False if the run has ended."""
        goal = self._asked + self._random.randint(5, 80)
        until = time.monotonic() + (self._random.uniform(0, 2.5) if self._random.random() < 0.25 else 30)
        while self._asked < goal and time.monotonic() < until and run.is_alive():
            self._tend()
            time.sleep(0.005)
        return run.is_alive()

    def _tend(self, *, wait: bool = False) -> None:
        """Do what has its time: let a stopped process go on, start the store again."""
        now = time.monotonic()
        for at, pid in list(self._stopped):
            if wait or now >= at:
                self._stopped.remove((at, pid))
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
        if self._store_back is not None and (wait or now >= self._store_back):
            self._store_back = None
            self._place.restart()

    def _continue_stopped(self) -> None:
        self._tend(wait=True)

    # --- what happens to whom

    def _act(self, process: Process, run: threading.Thread) -> bool:
        """Do something to somebody; return whether the run was ended by that."""
        targets = {
            "worker": 44,
            "stopped": 10,
            "coordinator": 22,
            "broker": 18,
            "store": 12 if self._place.kills else 0,
        }
        target = self._random.choices(list(targets), list(targets.values()))[0]
        workers = children_of(process.pid)
        if target in {"worker", "stopped"}:
            if not workers:
                return False
            if target == "stopped":
                self._stop(self._random.choice([*workers, process.pid]))
            else:
                self._kill_worker(self._random.choice(workers))
        elif target == "coordinator":
            if not run.is_alive():
                return True
            self._deaths.append(Death(time.monotonic(), process.pid, None))
            os.kill(process.pid, signal.SIGKILL)
            run.join(30)
            self._wait_for_orphans(workers)
        elif target == "broker":
            self._restart_broker()
        elif self._store_back is None:
            self._place.kill()
            self._store_back = time.monotonic() + self._random.uniform(0.2, 4.0)
        else:
            return False
        self.by_target[target] += 1
        print(f"{time.monotonic() - self._began_at:7.1f} s: {target}, {self._asked} asked", flush=True)
        if target in {"worker", "coordinator"}:
            self._server.catch_up()
            self._deaths[-1].seen = time.monotonic()
            self._look(self._deaths[-1])
        return target == "coordinator"

    def _stop(self, pid: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            self._stopped.append((time.monotonic() + self._random.uniform(0.3, 9.0), pid))

    def _kill_worker(self, pid: int) -> None:
        # Its shards are told by the run's log.
        self._deaths.append(Death(time.monotonic(), pid, frozenset()))
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: _state(pid) in {None, "Z"})

    def _restart_broker(self) -> None:
        assert self._broker is not None
        self._broker.kill()
        self._broker.communicate()
        self._sleep(self._random.uniform(0, 1.5))
        self.start_broker()

    def _wait_for_orphans(self, workers: list[int]) -> None:
        """Wait sometimes until the workers of a killed run have ended; else the next run meets them."""
        if self._random.random() < 0.5:
            self._continue_stopped()
            wait_for(lambda: all(_state(pid) in {None, "Z"} for pid in workers))

    def _wait_for_store(self) -> None:
        while self._store_back is not None:
            self._tend()
            time.sleep(0.02)

    def _sleep(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._tend()
            time.sleep(0.02)

    # --- what must hold

    def _look(self, death: Death | None = None) -> None:
        """Compare what counts now with all that ever counted; after a death note what was asked and does not count."""
        if self._store_back is not None:
            if death is None:
                return
            # What counts cannot be known until the store is back.
            self._wait_for_store()
        found: dict[str, str] = {}
        seen: Counter[str] = Counter()
        try:
            with _environment(self._place.env):
                address = address_of(self.output)
                if is_output(address):
                    for batch in read_state(address).records(["key", "completion"]):
                        keys, answers = (column.to_pylist() for column in batch.columns)
                        found.update(zip(keys, answers, strict=True))
                        seen.update(keys)
        except BatchchatError as error:
            self._trouble(f"an output that cannot be read: {error.message}")
            return
        now = time.monotonic()
        self._trouble(*(f"row {row} is there {number} times" for row, number in seen.items() if number > 1))
        for row, (answer, _) in self._counted.items():
            if found.get(row) != answer:
                self._trouble(f"answer {answer} of row {row} counted, and now {found.get(row)} does")
        for row, answer in found.items():
            self._counted.setdefault(row, (answer, now))
        if death is not None:
            death.open = {asked.row for asked in self._server.asked[self._first :]} - set(found)

    def _note_deaths(self, log: str) -> None:
        """Read from the log of a run which shards the workers had that died."""
        for line in log.splitlines():
            with suppress(ValueError):
                event = json.loads(line)
                if event.get("event") == "worker_died":
                    for death in self._deaths:
                        if f"(pid {death.pid})" in event["message"] and death.shards is not None:
                            death.shards = frozenset(event["shards"])

    def _check_code(self, code: int, killed: bool, said: list[str]) -> None:
        if killed:
            right = code == -signal.SIGKILL
        elif code == 70:
            # Three workers died over the same shards, or one three times before it began, by chance.
            right = any(words in said[0] for words in ("killed every worker that took them", "before it began to work"))
        else:
            right = code == 0
        if not right:
            events = [line for line in said[1].splitlines() if '"progress"' not in line]
            self._trouble(f"exit code {code}: {said[0][:1_500]} {events}")

    def _trouble(self, *problems: str) -> None:
        self.problems += problems
        for problem in problems:
            print(f"PROBLEM: {problem}", flush=True)

    def _end_pass(self, summary: dict[str, Any]) -> None:
        """Check a complete pass, and begin the next one."""
        if (summary["ok"], summary["open"], summary["failed"]) != (ROWS, 0, 0):
            self._trouble(f"a complete pass has {summary['ok']} rows, and {summary['open']} open")
        rows = dict(self._place.read(self.output, "select key, completion from data"))
        number = self._place.read(self.output, "select count(*), count(distinct custom_id) from data")[0]
        if number != (ROWS, ROWS) or len(rows) != ROWS:
            self._trouble(f"the dataset has {number} records and {len(rows)} rows")
        self._trouble(
            *(
                f"answer {answer} of row {row} counted, and {rows.get(row)} is in the dataset"
                for row, (answer, _) in self._counted.items()
                if rows.get(row) != answer
            )
        )
        self._check_asked()
        self.passes += 1
        self._begin()

    def _check_asked(self) -> None:
        """Find for each row that was asked again the death that explains it."""
        by_row: dict[str, list[Asked]] = {}
        for asked in self._server.asked[self._first :]:
            by_row.setdefault(asked.row, []).append(asked)
        for row, requests in by_row.items():
            shard = shard_of(row, SHARDS)
            for before, again in itertools.pairwise(requests):
                self.reasked += 1
                counted_at = self._counted[row][1]
                if counted_at < again.at:
                    self._trouble(f"row {row} was asked again {again.at - counted_at:.2f} s after it counted")
                causes = [
                    death
                    for death in self._deaths
                    if before.at <= death.seen
                    and death.at <= again.at
                    and (death.shards is None or shard in death.shards)
                ]
                if causes:
                    causes[-1].reasked += 1
                else:
                    self._trouble(f"row {row} of shard {shard} was asked again without a death")
        self.most_reasked = max([self.most_reasked, *(death.reasked for death in self._deaths)])
        self.most_open = max(
            [
                self.most_open,
                *(
                    sum(death.shards is None or shard_of(row, SHARDS) in death.shards for row in death.open)
                    for death in self._deaths
                ),
            ]
        )

    def told(self) -> str:
        """Return the figures in words."""
        return (
            f"{self.kills()} kills {dict(self.by_target)}, {self.passes} passes, exit codes {dict(self.codes)}; "
            f"{self._asked} requests, {self.reasked} of them again, at most {self.most_reasked} for one death, of at "
            f"most {self.most_open} that were asked and did not count; {len(self.problems)} problems"
        )


@contextmanager
def _environment(env: Mapping[str, str]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in env.items():
            patch.setenv(name, value)
        yield


def _state(pid: int) -> str | None:
    """Return the letter of a process's state, None if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return None


def main() -> None:
    """Run a series: PLACE (folder or bucket), SEED, KILLS, FOLDER."""
    place, seed, kills, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    folder.mkdir(parents=True)
    server = NumberingServer(0.03)
    where = FolderPlace(folder) if place == "folder" else BucketPlace(folder)
    series = KillSeries(folder, where, server, seed)
    try:
        series.run(kills)
    finally:
        print(series.told())
        if isinstance(where, BucketPlace):
            where.kill()


if __name__ == "__main__":
    main()
