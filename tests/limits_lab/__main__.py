"""Print the table: `python -m tests.limits_lab [--seeds 5] [--only TEXT] [--http SECONDS]`."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import click

from tests.limits_lab.http import http_rows, run_http
from tests.limits_lab.table import rows, worst


@click.command()
@click.option("--seeds", default=5, show_default=True, help="Runs of each row; the worst counts.")
@click.option("--only", default="", help="Rows whose name holds this text.")
@click.option("--http", "seconds", default=0.0, help="Run a job for so many seconds against each real HTTP server.")
def main(seeds: int, only: str, seconds: float) -> None:
    """Print what the limiter reaches on each model of a server. Exit code 1 if a row is missed."""
    if seconds:
        _http(only, seconds)
        return
    missed = 0
    print(f"{'server':<66} {'share':>6} {'asked':>6} {'waste':>6} {'asked':>6}")
    for row in rows():
        if only not in row.name:
            continue
        began = time.perf_counter()
        found = worst(row, range(1, seeds + 1))
        took = time.perf_counter() - began
        asked = "" if row.waste is None else f"{row.waste:.1%}"
        # If the worst seed is not told by a figure (several runs), the notes of all of them are.
        note = found.notes[-1] if found.share > 0 else ", ".join(found.notes)
        mark = "" if found.passed else "  MISSED"
        print(
            f"{row.name:<66} {found.share:>6.2f} {row.share:>6.2f} {found.waste:>6.1%} {asked:>6}{mark}"
            f"  {note}  ({took:.1f} s)",
            flush=True,
        )
        missed += not found.passed
    sys.exit(1 if missed else 0)


def _http(only: str, seconds: float) -> None:
    """Print what a job gets from real HTTP servers, in the last two thirds of its time."""
    for row in http_rows():
        if only in row.name:
            with tempfile.TemporaryDirectory() as folder:
                share, waste, log = run_http(row, Path(folder), seconds, seconds / 3)
            print(f"{row.name:<66} {share:>6.2f}        {waste:>6.1%}        {len(log.accepted)} accepted", flush=True)


main()
