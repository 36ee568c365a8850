"""The report of an evaluation: made, opened in a real browser, and searched.

`python -m tests.benchmarks.report FOLDER` does it with a suite that `tests.benchmarks.scoring make` has made, and
prints the seconds that it took. The browser needs `playwright` and a Chromium.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import orjson

from tests.integration.browser import Page, start_browser


def _searched(page: Page, query: str, found: str) -> float:
    """Search, and wait until so much is found; return the seconds."""
    started = time.perf_counter()
    page.fill("#query", query)
    page.wait_until(f"document.querySelector('#found').textContent.startsWith('{found}')")
    return time.perf_counter() - started


def measure(folder: Path) -> dict[str, float]:
    """Score a suite, then make its report, open it, and search it; return the seconds and the bytes of the page."""
    from batchchat.evaluation.results.scoring import score_suite
    from batchchat.evaluation.suite.reading import load_suite
    from batchchat.report import write_suite_report

    suite = load_suite(folder / "suite.yaml")
    summary = score_suite(suite)
    target = folder / "report.html"
    started = time.process_time()
    write_suite_report(suite.output, target)
    made = time.process_time() - started
    last = min(variant.rows for variant in summary.variants) - 1
    if hasattr(os, "sched_setaffinity"):
        # The benchmark holds its clients to one processor; a browser has several processes, and all of them.
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
    opened = searched = 0.0
    with start_browser() as browser:
        # The first opening is that of a browser which has just started; a person's is running already.
        for _ in range(2):
            started = time.perf_counter()
            with browser.open(target) as page:
                page.wait("html[data-charts=drawn][data-rows=shown]")
                opened = time.perf_counter() - started
                # The first search is for one row, the second for a word that no row has.
                searched = max(_searched(page, f"{last}", "1 of"), _searched(page, "zebra", "0 of"))
    return {"made": made, "opened": opened, "searched": searched, "bytes": target.stat().st_size}


if __name__ == "__main__":
    print(orjson.dumps(measure(Path(sys.argv[1]))).decode())
