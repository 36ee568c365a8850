"""Reports: one-file HTML pages that need no network, about one output or about the variants of a suite.

`page.py` is the shell that both share, with the policy that keeps a page from asking for anything. `run_report.py`
tells how an output came about, out of `outcome.py`, which adds it up with flat memory. `suite_report.py` sets variants
beside each other; `answers.py` packs their answers for the page's row browser. Styles, scripts and templates are files
in `assets`; the charting library comes from its own package.
"""

from __future__ import annotations

from pathlib import Path

from batchchat.addresses import is_url
from batchchat.report.page import check_page
from batchchat.report.run_report import write_run_report
from batchchat.report.suite_folder import is_scored
from batchchat.report.suite_report import write_suite_report

__all__ = ["PAGE_NAME", "check_page", "write_report", "write_run_report", "write_suite_report"]

PAGE_NAME = "report.html"
"""The name of a suite's page in its folder."""


def write_report(directory: Path | str, target: Path) -> None:
    """Write the page about whatever a folder holds: an output, or a scored suite. Raises as those two do."""
    # An evaluation lies in a folder always.
    if not is_url(directory) and is_scored(Path(directory)):
        write_suite_report(Path(directory), target)
    else:
        write_run_report(directory, target)
