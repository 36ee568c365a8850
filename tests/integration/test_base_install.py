"""What works without any extra: `pip install batchchat`, and no package that only an extra brings."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
OF_EXTRAS = (
    *("numpy", "scipy", "regex", "rapidfuzz", "plotly", "bm25s", "xlsxwriter", "prometheus_client", "opentelemetry"),
    *("obstore", "ray", "h2", "openpyxl", "duckdb", "pandas", "polars"),
)
COMMANDS = """
plan jobs/label-tickets.yaml --set limits.concurrency=64 --limit 40
run jobs/label-tickets.yaml --limit 40 --quiet
run jobs/label-tickets.yaml --limit 40 --quiet
status out/label-tickets
history out/label-tickets
show out/label-tickets --limit 1
export out/label-tickets --to answers.jsonl
export out/label-tickets --to answers.csv --flatten
export out/label-tickets --to answers.parquet
export out/label-tickets --to lines.jsonl --format openai-batch
verify out/label-tickets
review out/label-tickets --to people.csv --rows 5
reshard out/label-tickets --shards 2
export out/label-tickets --to again.jsonl
providers demo
schema
"""
WITHOUT_EXTRAS = f"""
import sys
from importlib.machinery import PathFinder
found = PathFinder.find_spec
def hidden(name, path=None, target=None):
    return None if name.partition(".")[0] in {OF_EXTRAS!r} else found(name, path, target)
PathFinder.find_spec = staticmethod(hidden)
"""
"""Python code: from here on the packages of extras cannot be imported, as if they were not installed."""
SCRIPT = f"""{WITHOUT_EXTRAS}
from batchchat.cli import cli, _start_fast
_start_fast()
for line in {COMMANDS!r}.split("\\n")[1:-1]:
    try:
        cli.main(line.split(), standalone_mode=False)
        code = 0
    except SystemExit as end:
        code = end.code
    if code:
        raise SystemExit(f"{{line}}: {{code}}")
"""


def test_commands_need_no_package_of_an_extra(tmp_path: Path) -> None:
    for folder in ("jobs", "sample_data"):
        shutil.copytree(REPO / folder, tmp_path / folder)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], check=False, cwd=tmp_path, capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 0, done.stderr[-2_000:] + done.stdout[-500:]
    assert (tmp_path / "again.jsonl").read_text(encoding="utf-8").count("\n") >= 40


@pytest.mark.parametrize("line", ["compare a b", "eval suite.yaml", "report a --to page.html"])
def test_a_command_that_needs_an_extra_says_which(tmp_path: Path, line: str) -> None:
    script = f"""{WITHOUT_EXTRAS}
sys.argv = ["batchchat", *{line!r}.split()]
from batchchat.cli import main
main()
"""
    (tmp_path / "suite.yaml").write_text("name: s\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", script], check=False, cwd=tmp_path, capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
