"""How scores, differences and p values are written in a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from batchchat.evaluation.results.summary import ScorerSummary

SHARES = frozenset({"yes/no", "share", "net wins"})
COST = "cost"


def unit_of(scorer: ScorerSummary) -> str:
    """Write the unit of a score behind its name; nothing for shares, and for a name that says it."""
    if scorer.unit == COST:
        return " (per 1,000)"
    return "" if scorer.unit in {*SHARES, scorer.name} else f" ({scorer.unit})"


def mean_unit_of(scorer: ScorerSummary) -> str:
    """Write the unit of a score's means: those of a judge of pairs are shares of wins."""
    return " (share of wins)" if scorer.kind == "pairwise" else unit_of(scorer)


def number_of(value: float, unit: str) -> str:
    """Write a score with the digits that mean something: shares with three places, other numbers with four digits.

    A cost is that of 1,000 answers: one answer costs too little to be read.
    """
    if unit == COST:
        value *= 1000
    return (
        f"{value:.3f}" if unit in {"yes/no", "share"} else f"{value:,.4g}" if abs(value) < 10_000 else f"{value:,.0f}"
    )


def signed(value: float, unit: str) -> str:
    """Write a difference with its sign."""
    return f"{'-' if value < 0 else '+'}{number_of(abs(value), unit)}"


def p_value(value: float) -> str:
    """Write a p value: `0.031`, `<0.0001`."""
    return "<0.0001" if value < 0.0001 else f"{value:.2g}" if value < 0.0995 else f"{value:.2f}"
