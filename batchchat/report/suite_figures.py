"""Charts that set the variants of a suite beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from batchchat.dataclass import dataclass
from batchchat.format import UNKNOWN, money
from batchchat.report.distribution import Distribution
from batchchat.report.figures import PlotlyFigure, linear_ticks, plain, seconds_text

SHARES = frozenset({"yes/no", "share"})
"""Units that are written as a percentage."""
_NAME_LETTERS = 24
"""Characters of a name beside a chart: longer ones would take its room, and its number tells which one it is."""


@dataclass(frozen=True, slots=True)
class Point:
    """A variant between what it costs and what it is worth, with the interval of that. `best` lies on the front.

    It is drawn with its `number` in the table of variants: names are long, and often alike.
    """

    number: int
    name: str
    cost: float
    cost_text: str
    value: float
    value_text: str
    low: float | None
    high: float | None
    best: bool = False


def pareto(points: Sequence[Point], *, higher_is_better: bool) -> list[bool]:
    """Return which points no other one beats: is worth as much for less, or more for no more."""

    def beats(other: Point, point: Point) -> bool:
        gain = (other.value - point.value) * (1 if higher_is_better else -1)
        return (gain >= 0 and other.cost < point.cost) or (gain > 0 and other.cost <= point.cost)

    return [not any(beats(other, point) for other in points) for point in points]


def quality_against_cost(points: Sequence[Point], *, cost: str, value: str, share: bool) -> PlotlyFigure:
    """Draw each variant as a point with its interval; those that no other beats are joined by a line.

    Arguments:
        points: one for each variant.
        cost, value: titles of the axes, with their units.
        share: whether values are shares, written in per cent.
    """
    best = sorted((point for point in points if point.best), key=lambda point: (point.cost, point.value))
    front = {
        "type": "scatter",
        "mode": "lines",
        "name": "none is better for less",
        "x": [point.cost for point in best],
        "y": [point.value for point in best],
        "line": {"width": 1.5, "dash": "dot", "shape": "linear"},
        "hoverinfo": "skip",
    }
    layout: dict[str, Any] = {
        "xaxis": {"title": {"text": plain(cost)}, "range": _range(points), "showgrid": True, "tickformat": "~r"},
        "yaxis": {"title": {"text": plain(value)}, "tickformat": ".0%" if share else "~r"},
        "showlegend": False,
        "hovermode": "closest",
        "height": 340,
    }
    traces, paint = [front], [{"line.color": "accent"}]
    for chosen, color in ((True, "accent"), (False, "series-6")):
        of_kind = [point for point in points if point.best is chosen]
        if of_kind:
            traces.append(_cloud(of_kind))
            paint.append({"marker.color": color, "error_y.color": color, "textfont.color": "card"})
    return {"data": traces, "layout": layout, "paint": paint}


def _range(points: Sequence[Point]) -> list[float]:
    """The points' costs with some room on both sides."""
    low, high = min(point.cost for point in points), max(point.cost for point in points)
    # Points that cost the same, or nothing, have no range of their own.
    room = 0.12 * (high - low) or 0.3 * high or 1.0
    return [low - room, high + room]


def _cloud(points: Sequence[Point]) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers+text",
        "x": [point.cost for point in points],
        "y": [point.value for point in points],
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [0 if point.high is None else point.high - point.value for point in points],
            "arrayminus": [0 if point.low is None else point.value - point.low for point in points],
            "thickness": 1.2,
            "width": 4,
        },
        "marker": {"size": 20},
        "text": [str(point.number) for point in points],
        "textposition": "middle center",
        "customdata": [[plain(point.name), plain(point.value_text), plain(point.cost_text)] for point in points],
        "hovertemplate": "<b>%{customdata[0]}</b><br>%{customdata[1]}<br>%{customdata[2]}<extra></extra>",
        "cliponaxis": False,
    }


def latencies(spreads: Sequence[tuple[str, Distribution]]) -> PlotlyFigure:
    """For each variant a box from the first to the third quartile, its median, and whiskers from p5 to p95."""
    numbered = [(number, name, spread) for number, (name, spread) in enumerate(spreads, 1) if spread.count]
    # The axis counts from below, and the first variant belongs at the top.
    numbered.reverse()
    known = [(name, spread) for _, name, spread in numbered]
    quantiles = {share: [spread.quantile(share) for _, spread in known] for share in (0.05, 0.25, 0.5, 0.75, 0.95)}
    high = max((value for value in quantiles[0.95] if value), default=1.0)
    ticks = [0.0, *linear_ticks(0.0, high)]
    trace = {
        "type": "box",
        "orientation": "h",
        "y": list(range(len(known))),
        "lowerfence": quantiles[0.05],
        "q1": quantiles[0.25],
        "median": quantiles[0.5],
        "q3": quantiles[0.75],
        "upperfence": quantiles[0.95],
        "hoverinfo": "skip",
        "width": 0.5,
        "line": {"width": 1.5},
    }
    # What a box says on hovering is said by an unseen point on it: the box's own words are five labels.
    words = {
        "type": "scatter",
        "mode": "markers",
        "x": quantiles[0.5],
        "y": list(range(len(known))),
        "marker": {"size": 18, "opacity": 0},
        "text": [f"<b>{plain(name)}</b><br>{latency_text(spread)}" for name, spread in known],
        "hovertemplate": "%{text}<extra></extra>",
    }
    return {
        "data": [trace, words],
        "layout": {
            "xaxis": {
                "range": [0, high * 1.04],
                "showgrid": True,
                "tickvals": ticks,
                "ticktext": [seconds_text(tick) if tick else "0" for tick in ticks],
            },
            "yaxis": {
                "tickvals": list(range(len(known))),
                "ticktext": [f"{_short(name)}  <b>{number}</b>" for number, name, _ in numbered],
                "showgrid": False,
            },
            "showlegend": False,
            "hovermode": "closest",
            "height": max(160, min(1_600, 70 + 44 * len(known))),
        },
        "paint": [{"line.color": "series-1", "fillcolor": "accent-soft"}, {"marker.color": "series-1"}],
    }


def latency_text(spread: Distribution) -> str:
    """Return the quantiles in words: `p5 210 ms, p50 372 ms, p95 980 ms`."""
    shares = (("p5", 0.05), ("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
    return ", ".join(f"{name} {seconds_text(spread.quantile(share))}" for name, share in shares)


def _short(name: str) -> str:
    return plain(name if len(name) <= _NAME_LETTERS else f"{name[: _NAME_LETTERS - 1]}…")


def score_text(value: float | None, unit: str, currency: str | None = None) -> str:
    """Write a score in its unit: `84.2%`, `372 ms`, `0.0012 EUR`, `41.3`."""
    if value is None:
        return UNKNOWN
    if unit in SHARES:
        return f"{100 * value:.1f}%"
    if unit == "seconds":
        return seconds_text(value)
    if unit == "cost":
        return money(value, currency)
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.3g}"
