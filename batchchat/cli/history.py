"""What `batchchat history` shows: one line a run, and their sums."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchchat.cli.blocks import alarm, blank, cost, line, local_time, styled, title
from batchchat.format import count, duration, plural
from batchchat.views import HistoryView, PastRun

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text


def render_history(view: HistoryView) -> RenderableType:
    """Show the runs into an output, the oldest first, and their sums. Times are local."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, show_footer=True)
    total = view.total
    table.add_column("run", plural(total.runs, "run"), no_wrap=True)
    for name, footer in (
        ("time", ""),
        ("ok", count(total.new_ok)),
        ("failed", count(total.new_failed)),
        ("requests", count(total.requests)),
        ("tokens", count(total.total_tokens)),
        ("cost", cost(total.cost, view.currency)),
        ("exit", ""),
    ):
        table.add_column(name, footer, justify="right", no_wrap=True)
    table.add_column("", style="dim")
    for run in view.runs:
        table.add_row(
            _when(run),
            duration(run.duration_s),
            count(run.new_ok),
            alarm(run.new_failed, "red"),
            count(run.requests),
            count(run.total_tokens),
            cost(run.cost, run.currency),
            _end(run),
            # One line a run, however long the reason: --json tells it whole.
            Text(line(run.reason or ""), no_wrap=True, overflow="ellipsis"),
        )
    return Group(title(view.job, view.output), blank(), table)


def _when(run: PastRun) -> str:
    if run.started is None:
        return line(run.run_id, 24)
    return local_time(run.started)


def _end(run: PastRun) -> Text:
    if run.state == "running":
        return styled("running", "green")
    if run.state == "killed" or run.exit_code is None:
        return styled("killed", "bold red")
    return styled(str(run.exit_code), "" if run.exit_code == 0 else "bold yellow")
