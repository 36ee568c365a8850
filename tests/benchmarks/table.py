"""The benchmark's own arithmetic: medians, spread, ratios, and the table that shows them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


def spread(values: Sequence[float]) -> float:
    """Half of the range, relative to the median: 0.1 tells that runs lay within about a tenth of it."""
    middle = statistics.median(values)
    return (max(values) - min(values)) / 2 / middle if middle else 0.0


@dataclass(frozen=True, slots=True)
class Figure:
    """One line: what was measured of batchchat (`ours`), of a peer or a reference (`theirs`), one value a round.

    `against` names the latter. Each round has its own ratio, ours over theirs, since what the machine does meanwhile
    hits both; where there is no other it is ours alone. `target` is what the median ratio should reach; a limit that it
    should stay under where `below`. None: the line has no target.
    """

    name: str
    unit: str
    ours: Sequence[float]
    against: str = ""
    theirs: Sequence[float] = ()
    target: float | None = None
    below: bool = False

    @property
    def ratios(self) -> list[float]:
        """The ratio of each round."""
        if not self.theirs:
            return list(self.ours)
        return [ours / theirs for ours, theirs in zip(self.ours, self.theirs, strict=True)]

    @property
    def ratio(self) -> float:
        """The median of the rounds' ratios."""
        return statistics.median(self.ratios)

    @property
    def reached(self) -> bool | None:
        """Whether the target is reached; None where there is none."""
        if self.target is None:
            return None
        return self.ratio <= self.target if self.below else self.ratio >= self.target


def render(figures: Sequence[Figure]) -> str:
    """The table, in Markdown."""
    lines = ["| figure | batchchat | against | its figure | ratio | target |", "|---|---|---|---|---|---|"]
    for figure in figures:
        target = ""
        if figure.target is not None:
            sign, verdict = "≤" if figure.below else "≥", "" if figure.reached else " (missed)"
            target = f"{sign} {figure.target:g}{verdict}"
        theirs = _told(figure.theirs, figure.unit) if figure.theirs else ""
        ratio = ""
        if figure.theirs:
            around = f" ±{spread(figure.ratios):.0%}" if len(figure.ratios) > 1 else ""
            ratio = f"{figure.ratio:.3g}{around}"
        ours = _told(figure.ours, figure.unit)
        lines.append(f"| {figure.name} | {ours} | {figure.against} | {theirs} | {ratio} | {target} |")
    return "\n".join(lines)


def _told(values: Sequence[float], unit: str) -> str:
    middle = statistics.median(values)
    number = f"{middle:,.0f}" if middle >= 100 else f"{middle:.3g}"
    around = f" ±{spread(values):.0%}" if len(values) > 1 else ""
    return f"{number} {unit}".strip() + around
