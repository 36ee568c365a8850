"""What is measured: each scenario runs its contestants by turns and returns its lines of the table."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Final

import orjson

from tests.benchmarks.bench import Bench, Failed
from tests.benchmarks.endpoints import endpoints
from tests.benchmarks.peers import PEERS, installed
from tests.benchmarks.scoring import VARIANTS
from tests.benchmarks.table import Figure
from tests.benchmarks.transports import CEILING, measure

_SLOW: Final = {"openai": 10, "litellm": 20, "batchllm": 10}
"""Peers that get a fraction of the rows, since they would take minutes; a warm-up comes first."""
_LIMIT_PER_MINUTE: Final = 6000
_INDEX_BYTES: Final = 24


def by_turns(bench: Bench, contestants: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Measure all contestants, round after round, every other round in the opposite order.

    One that fails is named and left out; the first must not.
    """
    found: dict[str, list[float]] = {name: [] for name in contestants}
    first = next(iter(contestants))
    for number in range(bench.rounds):
        for name in list(found)[:: -1 if number % 2 else 1]:
            try:
                found[name].append(contestants[name]())
            except Failed as error:
                if name == first:
                    raise
                print(f"{name} is left out: {error}", file=sys.stderr)
                del found[name]
    return found


def whole_tool(bench: Bench, concurrency: int) -> list[Figure]:
    """The whole tool against each peer, all with enough rows to have that many under way."""
    targets = {"openai": 12.0 if concurrency < 1000 else 20.0, "aiohttp": 0.8}
    count = bench.rows(50_000)
    rows = bench.input(count)
    with bench.server() as url:
        contestants = {"": lambda: count / bench.tool(url, rows, concurrency).seconds}
        for name in installed():
            enough = concurrency * (2 if bench.scale >= 1 else 1)
            some = min(count, max(20, count // _SLOW.get(name, 1), enough))
            contestants[name] = partial(bench.peer, name, url, rows, concurrency, some)
        rates = by_turns(bench, contestants)
    ours = rates.pop("")
    name = f"whole tool, c={concurrency:,}"
    if not rates:
        return [Figure(name, "rows/s", ours)]
    return [Figure(name, "rows/s", ours, PEERS[peer].told, theirs, targets.get(peer)) for peer, theirs in rates.items()]


def apart(bench: Bench) -> list[Figure]:
    """What a run costs before and after its rows, and how fast rows go in between: told from two sizes by turns.

    With so many rows in so many seconds, and twice as many rows, the rate is the difference of rows by that of seconds,
    and the fixed cost is what the smaller run takes beyond its rows at that rate.
    """
    count = bench.rows(20_000)
    few, many = bench.input(count), bench.input(2 * count)
    with bench.server() as url:
        seconds = by_turns(
            bench, {"few": lambda: bench.tool(url, few, 64).wall, "many": lambda: bench.tool(url, many, 64).wall}
        )
    pairs = list(zip(seconds["few"], seconds["many"], strict=True))
    return [
        Figure("fixed cost of a run, c=64", "s", [max(0.0, 2 * small - large) for small, large in pairs]),
        Figure("steady rate, c=64", "rows/s", [count / max(large - small, 1e-9) for small, large in pairs]),
    ]


def ceiling(bench: Bench) -> list[Figure]:
    """The server's own ceiling, so that nobody measures the server."""
    with bench.server() as url:
        runs = [measure(CEILING, url, 64, max(0.2, bench.scale), bench.client_cpu) for _ in range(bench.rounds)]
    rates = [figures["rate"] for figures in runs if figures is not None]
    return [Figure("the server alone, asked by bare sockets", "req/s", rates)]


def wide(bench: Bench) -> list[Figure]:
    """Four thousand requests at once against 256."""
    count = bench.rows(50_000, 12_000)
    with bench.server() as url:

        def rate(concurrency: int) -> Callable[[], float]:
            return lambda: count / bench.tool(url, bench.input(count), concurrency).seconds

        rates = by_turns(bench, {"4000": rate(4000), "256": rate(256)})
    return [Figure("whole tool, c=4,000", "rows/s", rates["4000"], "c=256", rates["256"], 0.7)]


def delay(bench: Bench) -> list[Figure]:
    """Answers that take a second: the ideal time over that from the first request to the last answer."""
    count, concurrency = bench.rows(10_000), max(2, round(1000 * min(1.0, bench.scale)))
    shares = []
    with bench.server("--delay", "1") as url:
        ideal = -(-count // concurrency) * 1.0
        for _ in range(bench.rounds):
            bench.served(url, forget=True)
            bench.tool(url, bench.input(count), concurrency)
            served = bench.served(url)
            shares.append(ideal / (served.last - served.first))
    return [Figure(f"answers after 1 s, c={concurrency:,}: ideal/wall", "", shares, target=0.97)]


def store(bench: Bench) -> list[Figure]:
    """Journal and Parquet against nothing kept."""
    count = bench.rows(50_000)
    with bench.server() as url:
        rates = by_turns(
            bench,
            {
                "kept": lambda: count / bench.tool(url, bench.input(count), 64).seconds,
                "thrown away": lambda: count / bench.discarding(url, bench.input(count), 64),
            },
        )
    return [Figure("journal and Parquet, c=64", "rows/s", rates["kept"], "thrown away", rates["thrown away"], 0.85)]


def memory(bench: Bench) -> list[Figure]:
    """Ten times the rows: the peak, less what the index may take for each row. Both are enough to seal a part."""
    large, small = bench.rows(1_000_000, 110_000), bench.rows(100_000, 55_000)
    with bench.server() as url:
        low = bench.tool(url, bench.input(small), 256).peak
    high = bench.done(large)
    peaks = [(peak - _INDEX_BYTES * count) / 2**20 for peak, count in ((high, large), (low, small))]
    name = f"peak memory, {large:,} rows"
    return [
        Figure(name, "MiB", peaks[:1], f"{small:,} rows", peaks[1:], 1.25, below=True),
        Figure(f"{name}: MiB", "MiB", peaks[:1], target=300.0, below=True),
    ]


def resume(bench: Bench) -> list[Figure]:
    """A run that finds all but the last row done: from the start of its process to its one request."""
    count = bench.rows(1_000_000, 110_000)
    bench.done(count)
    rows = bench.input(count)
    size = rows.stat().st_size
    seconds = []
    with bench.server_of_done() as url:
        for number in range(bench.rounds):
            with rows.open("ab") as file:
                row = {"ticket_id": count + number, "subject": "new", "body": f"one more, number {number}"}
                file.write(orjson.dumps(row) + b"\n")
            bench.served(url, forget=True)
            outcome = bench.tool(url, rows, 256, keep=True)
            if outcome.summary["sent"] != 1:
                raise Failed(f"a resumed run sent {outcome.summary['sent']} requests instead of 1")
            seconds.append(bench.served(url).first - outcome.began)
    os.truncate(rows, size)
    bench.clear()
    return [Figure(f"resume behind {count:,} done rows: first request", "s", seconds, target=10.0, below=True)]


def limit(bench: Bench) -> list[Figure]:
    """The share of 6,000 requests a minute that is used while the server enforces them by a sliding window."""
    count = bench.rows(12_000)
    with bench.server("--rpm", str(_LIMIT_PER_MINUTE)) as url:
        bench.tool(url, bench.input(count), 64, requests_per_minute=_LIMIT_PER_MINUTE)
        served = bench.served(url)
    used = (served.allowed - 1) / (served.last - served.first) / (_LIMIT_PER_MINUTE / 60)
    return [
        Figure(f"share of {_LIMIT_PER_MINUTE:,} requests/min used", "", [used], target=0.98),
        Figure("requests refused meanwhile", "", [float(served.refused)], target=0.0, below=True),
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
        Figure(f"scoring {large:,} rows x {VARIANTS} variants", "s", seconds, target=8.0, below=True),
        Figure("memory of scoring, for each answer", "bytes", [grown], target=256.0, below=True),
    ]


def report(bench: Bench) -> list[Figure]:
    """The page of an evaluation: made on one core, then opened and searched in Chromium."""
    rows = bench.rows(20_000)
    folder = bench.folder / f"report-{rows}"
    folder.mkdir(exist_ok=True)
    bench.run([sys.executable, "-m", "tests.benchmarks.scoring", "make", str(folder), str(rows)])
    found: dict[str, list[float]] = {"made": [], "opened": [], "searched": []}
    for _ in range(bench.rounds):
        output, _ = bench.run([sys.executable, "-m", "tests.benchmarks.report", str(folder)])
        result = orjson.loads(output)
        for name, seconds in found.items():
            seconds.append(result[name])
    page = f"page of {rows:,} rows x {VARIANTS} variants"
    return [
        Figure(f"{page}, made", "s", found["made"], target=8.0, below=True),
        Figure(f"{page}, opened", "s", found["opened"], target=2.0, below=True),
        Figure(f"{page}, searched", "s", found["searched"], target=1.0, below=True),
    ]


def batches(bench: Bench) -> list[Figure]:
    """A provider's Batch API without the provider's time: until all batches are created, and until all is counted."""
    count = bench.rows(100_000)
    found: dict[str, list[tuple[float, float]]] = {"create": [], "harvest": []}
    for _ in range(bench.rounds):
        for phase, values in found.items():
            command = [
                # As the command line does before Arrow is loaded.
                *("env", "ARROW_DEFAULT_MEMORY_POOL=system"),
                sys.executable,
                "-m",
                "tests.benchmarks.batches",
                str(count),
                str(bench.folder / "batches"),
                phase,
            ]
            output, peak = bench.run(command)
            values.append((float(orjson.loads(output.splitlines()[-1])["seconds"]), peak / 2**20))
    names = {"create": ("until all batches are created", 20.0), "harvest": ("2 kB answers until counted", 15.0)}
    figures = []
    for phase, (name, most) in names.items():
        seconds, peaks = zip(*found[phase], strict=True)
        title = f"batches, {count:,} requests: {name}"
        figures += [
            Figure(title, "s", seconds, target=most, below=True),
            Figure(f"{title}: peak", "MiB", peaks, target=300, below=True),
        ]
    return figures


SCENARIOS: Final[dict[str, Callable[[Bench], list[Figure]]]] = {
    "ceiling": ceiling,
    "apart": apart,
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
    "report": report,
    "batch": batches,
    "endpoints": endpoints,
}
