"""Print the table: `python -m tests.limits_lab [--seeds 5] [--only TEXT]`."""

from __future__ import annotations

import sys
import time

import click

from tests.limits_lab.table import rows, worst


@click.command()
@click.option("--seeds", default=5, show_default=True, help="Runs of each row; the worst counts.")
@click.option("--only", default="", help="Rows whose name holds this text.")
def main(seeds: int, only: str) -> None:
    """Print what the limiter reaches on each model of a server. Exit code 1 if a row is missed."""
    missed = 0
    print(f"{'server':<66} {'share':>6} {'asked':>6} {'waste':>6} {'asked':>6}")
    for row in rows():
        if only not in row.name:
            continue
        began = time.perf_counter()
        found = worst(row, range(1, seeds + 1))
        took = time.perf_counter() - began
        asked = "" if row.waste is None else f"{row.waste:.1%}"
        mark = "" if found.passed else "  MISSED"
        print(
            f"{row.name:<66} {found.share:>6.2f} {row.share:>6.2f} {found.waste:>6.1%} {asked:>6}{mark}"
            f"  {found.notes[-1]}  ({took:.1f} s)",
            flush=True,
        )
        missed += not found.passed
    sys.exit(1 if missed else 0)


main()
