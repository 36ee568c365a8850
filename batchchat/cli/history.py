"""What `batchchat history` shows: one line a run, and their sums."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchchat.cli.blocks import alarm, blank, cost, line, local_time, pair, styled, title
from batchchat.format import UNKNOWN, count, duration, plural, short
from batchchat.views import HistoryView, PastRun

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

_PROMPT_DIGITS = 6
"""Digits of a prompt's digest that a line shows: enough to tell the few prompts of one output apart."""
_REASONS = 10
"""Reasons that are written out, of the latest runs; `--json` has all."""


def render_history(view: HistoryView) -> RenderableType:
    """Show the runs into an output, the oldest first, their sums, and why the latest ones ended early.

    It fits 80 columns. Times are local. Where runs had different prompts, a column tells them apart.
    """
    from rich import box
    from rich.console import Group
    from rich.table import Table

    total = view.total
    # A column that is the same in every line would only take room.
    several = len({run.prompt_id for run in view.runs}) > 1
    skips = any(run.skipped for run in view.runs)
    figures = [
        ("time", ""),
        ("ok", count(total.new_ok)),
        ("failed", count(total.new_failed)),
        *([("skipped", "")] if skips else []),
        ("requests", count(total.requests)),
        ("tokens", short(total.total_tokens)),
        (f"cost {view.currency}" if view.currency else "cost", _amount(total.cost, view.currency)),
        ("exit", ""),
    ]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, show_footer=True, collapse_padding=True)
    table.add_column("run", plural(total.runs, "run"), no_wrap=True)
    for name, footer in figures:
        table.add_column(name, footer, justify="right", no_wrap=True)
    if several:
        table.add_column("prompt", no_wrap=True)
    for run in view.runs:
        # `line` ends what it cuts with a sign, which takes one place: no digit may give way to it.
        prompt = [line(run.prompt_id or UNKNOWN, _PROMPT_DIGITS + 1).removesuffix("…")] if several else []
        table.add_row(
            _when(run),
            duration(run.duration_s),
            count(run.new_ok),
            alarm(run.new_failed, "red"),
            *([count(run.skipped)] if skips else []),
            count(run.requests),
            short(run.total_tokens),
            _amount(run.cost, run.currency),
            _end(run),
            *prompt,
        )
    reasons = [pair(f"{_when(run)}  ", run.reason) for run in view.runs if run.reason][-_REASONS:]
    return Group(title(view.job, view.output), blank(), table, *([blank(), *reasons] if reasons else []))


def _amount(amount: float, currency: str | None) -> str:
    """Return what a run cost without the currency, which stands above."""
    return cost(amount, currency).removesuffix(f" {currency}")


def _when(run: PastRun) -> str:
    if run.started is None:
        # An identity begins with the time of the start, in 16 letters: 20260101T120000Z.
        return line(run.run_id, 16)
    return local_time(run.started)[:16]


def _end(run: PastRun) -> Text:
    if run.state == "running":
        return styled("running", "green")
    if run.state == "killed" or run.exit_code is None:
        return styled("killed", "bold red")
    return styled(str(run.exit_code), "" if run.exit_code == 0 else "bold yellow")
