"""The pictures of README and guide: `python -m tests.docs_pictures` makes them anew from real runs.

A terminal during and after the first command, as SVG, and the report of an evaluation in a browser, as PNG. It takes
half a minute. Look at the pictures before they are committed.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

import batchchat
from batchchat.cli.display import ProgressView
from batchchat.cli.summary_page import render_summary
from batchchat.events import Snapshot
from tests.docs import README, ROOT, blocks

PICTURES = ROOT / ".github" / "pictures"
COMMAND = "batchchat run jobs/label-tickets.yaml"
_WIDTH = 88


def terminal() -> str:
    """Run the first command, and return what a terminal shows half-way and at the end."""
    halves: list[Snapshot] = []

    def keep(snapshot: Snapshot) -> None:
        if snapshot.total and snapshot.ok * 2 > snapshot.total:
            halves.append(snapshot)

    job = batchchat.load_job("jobs/label-tickets.yaml")
    summary = batchchat.run(job, options=batchchat.RunOptions(command=COMMAND), on_snapshot=keep)
    console = Console(record=True, width=_WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text.assemble(("$ ", "bold green"), COMMAND))
    console.print(ProgressView(halves[0]))
    console.print()
    # A path of this machine would say nothing to a reader.
    console.print(render_summary(replace(summary, output="out/label-tickets")))
    # The fonts that rich names lie in the network, and no picture may need it.
    style = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    style = style.replace("Fira Code, monospace", "ui-monospace, Menlo, Consolas, monospace")
    svg = console.export_svg(title="batchchat", code_format=style, unique_id="batchchat")
    return "\n".join(line.rstrip() for line in re.sub(r"<!--.*?-->", "", svg).splitlines()) + "\n"


def report(target: Path) -> None:
    """Run the README's evaluation, and take a picture of the top of its report."""
    from playwright.sync_api import sync_playwright

    suite = next(block for block in blocks(README) if block.file == "jobs/two-prompts.yaml")
    Path("jobs/two-prompts.yaml").write_text(suite.text, encoding="utf-8")
    subprocess.run([sys.executable, "-m", "batchchat", "eval", "jobs/two-prompts.yaml", "-q"], check=True)
    made = Path("out/two-prompts/report.html").read_text(encoding="utf-8")
    shown = Path("report.html").absolute()
    shown.write_text(made.replace(f"{Path.cwd()}/", ""), encoding="utf-8")
    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1180, "height": 820}, color_scheme="light")
        page.goto(shown.as_uri())
        page.wait_for_selector(".js-plotly-plot .main-svg")
        page.screenshot(path=target)
        browser.close()


def main() -> None:
    """Make both in a folder of their own."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in ("jobs", "sample_data"):
            shutil.copytree(ROOT / name, Path(folder) / name)
        os.chdir(folder)
        (PICTURES / "terminal.svg").write_text(terminal(), encoding="utf-8")
        report(PICTURES / "report.png")
    for path in sorted(PICTURES.iterdir()):
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
