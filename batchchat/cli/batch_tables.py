"""Batches as a command shows them: those of an output, and what a plan says of single requests and batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from batchchat.cli.blocks import guess, line, local_time, plain_text
from batchchat.format import about, count, money, plural
from batchchat.views import BatchView, EnginePlan

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

_SHOWN = 20
"""Batches that a status shows, beside all that have not ended: they fit a screen."""
_OVER = frozenset({"harvested", "dropped"})


def batch_table(batches: Sequence[BatchView]) -> RenderableType:
    """Show the batches that have not ended, and the newest of the others."""
    from rich import box
    from rich.console import Group
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("batch", overflow="fold")
    table.add_column("state", no_wrap=True)
    for name in ("age", "requests", "done there", "taken"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("until")
    over = [batch for batch in batches if batch.state in _OVER]
    left = len(over) - max(0, _SHOWN - (len(batches) - len(over)))
    # Batches come with the oldest first: the first ones that ended are those to leave out.
    hidden = {batch.number for batch in over[: max(0, left)]}
    for batch in batches:
        if batch.number in hidden:
            continue
        # A request that failed at the provider has ended there too.
        there = None if batch.completed is None else batch.completed + (batch.failed or 0)
        table.add_row(
            line(batch.batch or batch.name, 60),
            batch.state.replace("_", " "),
            about(batch.age_s),
            count(batch.requests),
            count(there),
            count(batch.harvested),
            local_time(batch.expires) if batch.expires and batch.state not in _OVER else "",
        )
    if not hidden:
        return table
    return Group(table, plain_text(f"and {plural(len(hidden), 'earlier batch', 'earlier batches')}", "dim"))


def engine_row(engine: EnginePlan, currency: str | None) -> tuple[Text | str, str]:
    """Return what the requests would cost through an engine, and words about it."""
    if engine.problem is not None:
        return "", line(engine.problem)
    cost = guess(money(engine.cost, currency))
    words = ["chosen"] if engine.chosen else []
    if engine.engine == "local":
        words.append(about(engine.duration_s))
    else:
        words += [
            f"up to {engine.window}",
            plural(engine.batches or 0, "batch", "batches"),
            f"{(engine.nbytes or 0) / 1e6:,.1f} MB",
            f"{engine.price_factor:g} of the price, as of {engine.as_of}"
            if engine.price_factor is not None
            else "what a batch costs is not known: the usual price is taken",
        ]
    return cost, line(", ".join(words))
