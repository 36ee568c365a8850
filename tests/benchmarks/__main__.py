"""The benchmark: `pip install '.[bench]' && python -m tests.benchmarks` prints the table of the README.

Every figure is a ratio of things measured in one run by turns, so that what the machine does meanwhile hits them all.
Clients run on one core and the server on another, where there are two; each run is a process of its own.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import signal
import sys
import tempfile
import time
from pathlib import Path

import click

from tests.benchmarks.bench import Bench, Failed
from tests.benchmarks.peers import PEERS, installed
from tests.benchmarks.scenarios import SCENARIOS
from tests.benchmarks.table import Figure, render
from tests.benchmarks.transports import cores


def cpu_name() -> str:
    """The processor's name, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def versions() -> str:
    """What was measured: Python, batchchat and the peers."""
    told = [f"Python {platform.python_version()}"]
    for name in ("batchchat", "uvloop", *(PEERS[name].distribution for name in installed())):
        try:
            told.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            told.append(f"{name} (not installed)")
    return ", ".join(told)


@click.command()
@click.option("--quick", is_flag=True, help="Small runs, one round: within two minutes, and less exact.")
@click.option("--only", multiple=True, type=click.Choice(list(SCENARIOS)), help="Only these figures.")
@click.option("--rounds", type=int, help="Runs of each, by turns. [default: 3; 1 with --quick]")
@click.option("--size", default=200, help="Characters in each answer's text: 200, 2000, 20000.")
@click.option("--scale", type=float, help="Rows, relative to the full benchmark. [default: 1; 0.05 with --quick]")
def main(quick: bool, only: tuple[str, ...], rounds: int | None, size: int, scale: float | None) -> None:
    """Measure batchchat beside what people would use instead. Ends with code 1 where a scenario failed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and end what was started
    client_cpu, server_cpu = cores()
    started = time.monotonic()
    failed = []
    for name in PEERS:
        if name not in installed():
            print(f"{name}: skipped, it is not installed", file=sys.stderr)
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="batchchat-bench-") as folder:
        bench = Bench(
            Path(folder),
            rounds=rounds or (1 if quick else 3),
            scale=scale or (0.05 if quick else 1.0),
            size=size,
            client_cpu=client_cpu,
            server_cpu=server_cpu,
        )
        for name in only or SCENARIOS:
            print(f"{time.monotonic() - started:5.0f} s: {name} …", file=sys.stderr, flush=True)
            try:
                figures += SCENARIOS[name](bench)
            except Failed as error:
                print(f"{name} failed: {error}", file=sys.stderr, flush=True)
                failed.append(name)
    print(f"{cpu_name()}, {os.cpu_count()} processors; {platform.system()} {platform.release()}; {versions()}.")
    print(f"Answers of {size} characters; {bench.rounds} round(s), scale {bench.scale:g}; medians ± half the range.")
    print()
    print(render(figures))
    print(f"{time.monotonic() - started:.0f} s", file=sys.stderr)
    if failed:
        raise click.ClickException(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
