"""The tables that several pages are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from batchchat.cli.blocks import alarm, cost, line, styled
from batchchat.events import AnsweredBy, FailureGroup
from batchchat.format import asked, count

if TYPE_CHECKING:
    from rich.table import Table


def figures(middle: str, end: str, *, last: str = "right") -> Table:
    """Return a table of a name, a right-aligned figure, and a second figure or a remark."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_header=bool(middle), show_edge=False, pad_edge=False)
    # On a narrow terminal the names are broken, and no figure is.
    table.add_column("", min_width=12)
    table.add_column(middle, justify="right", no_wrap=True)
    if last == "right":
        table.add_column(end, justify="right", no_wrap=True)
    else:
        table.add_column(end, style="dim")
    return table


def headed(name: str, figure: str, remark: str) -> Table:
    """Return a table of a name, a right-aligned figure and a remark, with a heading."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column(name, no_wrap=True)
    table.add_column(figure, justify="right", no_wrap=True)
    table.add_column(remark, overflow="fold")
    return table


def grid() -> Table:
    """Return a table without lines, as wide as the terminal."""
    from rich.table import Table

    return Table.grid(padding=(0, 2, 0, 0), expand=True)


def answerer_table(shares: Sequence[AnsweredBy], currency: str | None) -> Table:
    """Show how many rows each endpoint answered, and what they cost."""
    table = figures("rows ok", "cost")
    table.columns[0].header = "answered by"
    table.add_column("failed", justify="right", no_wrap=True)
    for share in shares:
        name = share.endpoint or share.provider
        if share.model is not None and share.fallback:
            name = f"{share.model} at {name} (fallback)"
        table.add_row(line(name), count(share.ok), cost(share.cost, currency), alarm(share.failed, "red"))
    return table


def failure_table(failures: Sequence[FailureGroup], samples: int, heading: str = "failed because of") -> Table:
    """Return the reasons why rows failed, the commonest first, each with an example."""
    table = headed(heading, f"{asked(samples)}s", "for example")
    for group in sorted(failures, key=lambda group: (-group.count, group.kind)):
        where = f"row {count(group.row_index)}: " if group.row_index is not None else ""
        example = where + line(group.example, 300)
        table.add_row(styled(line(group.kind), "red"), count(group.count), styled(example))
    return table
