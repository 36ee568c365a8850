"""Charts as plotly.js takes them: `data` and `layout`, and in `paint` which colour of the page each part has.

Colours are named, not given: the page has one set for light, one for dark and one for paper. Text of the data never
goes into a chart as it is, since plotly.js reads some markup in texts: `plain` makes it text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NotRequired, TypedDict

from batchchat.format import UNKNOWN, count, duration
from batchchat.report.distribution import Distribution
from batchchat.report.timeline import Course

QUANTILES = (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
"""The quantiles that every distribution is told by."""

_MARK_ROOM = 0.07
"""The part of the axis that the name of a mark takes: names of nearer marks would lie over each other."""


class PlotlyFigure(TypedDict):
    """One chart. `paint` maps paths in each trace to names of colours; `marks` are named lines across the x axis."""

    data: list[dict[str, Any]]
    layout: dict[str, Any]
    paint: list[dict[str, str]]
    marks: NotRequired[list[dict[str, Any]]]


def plain(text: str) -> str:
    """Make text of the data mean itself in a chart."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def rate_over_time(course: Course) -> PlotlyFigure:
    """Rows per second, ended well and failed."""
    ok = [moment.ok / course.width for moment in course.moments]
    failed = [moment.failed / course.width for moment in course.moments]
    traces = [("ok", "good", ok)]
    if any(failed):
        traces.append(("failed", "bad", failed))
    return _bars_over_time(course, traces, "%{y:,.3~r} rows/s")


def tokens_over_time(course: Course) -> PlotlyFigure:
    """Prompt and completion tokens."""
    traces = [
        ("prompt", "series-1", [moment.prompt_tokens for moment in course.moments]),
        ("completion", "series-2", [moment.completion_tokens for moment in course.moments]),
    ]
    return _bars_over_time(course, traces, "%{y:,.3~s} tokens")


def cost_over_time(course: Course, currency: str) -> PlotlyFigure:
    """Draw what was spent until each moment."""
    total, spent = 0.0, []
    for moment in course.moments:
        total += moment.cost
        spent.append(total)
    starts = [_milliseconds(course.moments[0].start)] if course.moments else []
    times = starts + [_milliseconds(moment.start + course.width) for moment in course.moments]
    trace = {
        "type": "scatter",
        "mode": "lines",
        "name": "cost so far",
        "x": times,
        "y": [0.0, *spent] if starts else [],
        "fill": "tozeroy",
        "line": {"width": 2},
        "hovertemplate": f"%{{y:,.4~r}} {plain(currency)}<extra></extra>",
    }
    layout = _time_layout(course) | {"yaxis": {"rangemode": "tozero", "tickformat": "~r"}}
    return {"data": [trace], "layout": layout, "paint": [{"line.color": "series-3", "fillcolor": "series-3-soft"}]}


def _bars_over_time(course: Course, traces: Sequence[tuple[str, str, list[Any]]], value: str) -> PlotlyFigure:
    middle = [_milliseconds(moment.start) + course.width * 500 for moment in course.moments]
    return {
        "data": [
            {
                "type": "bar",
                "name": name,
                "x": middle,
                "y": values,
                "width": course.width * 1_000,
                "hovertemplate": f"{value}<extra>{name}</extra>",
            }
            for name, _, values in traces
        ],
        "layout": _time_layout(course)
        | {"barmode": "stack", "bargap": 0, "yaxis": {"rangemode": "tozero", "tickformat": "~s"}},
        "paint": [{"marker.color": color} for _, color, _ in traces],
    }


def _time_layout(course: Course) -> dict[str, Any]:
    axis: dict[str, Any] = {"type": "date"}
    if course.gaps:
        # A little room is left on both sides: a break swallows what lies on its edge.
        room = course.width
        breaks = [[_milliseconds(start + room), _milliseconds(end - room)] for start, end in course.gaps]
        axis["rangebreaks"] = [{"bounds": bounds} for bounds in breaks]
    return {"xaxis": axis, "hovermode": "x unified"}


def _milliseconds(seconds: int) -> int:
    return seconds * 1_000


def spread(distribution: Distribution, color: str, *, seconds: bool) -> PlotlyFigure:
    """Draw a histogram on a logarithmic axis, with the quantiles p50, p95 and p99 marked."""
    bars = distribution.bars()
    write = seconds_text if seconds else _number
    # The axis is linear over logarithms: plotly.js places bars of a width on it, and marks, without surprises.
    trace = {
        "type": "bar",
        "x": [math.log10(bar.low * bar.high) / 2 for bar in bars],
        "y": [bar.values for bar in bars],
        "width": [math.log10(bar.high / bar.low) * 0.92 for bar in bars],
        "text": [f"{write(bar.low)} to {write(bar.high)}" for bar in bars],
        "textposition": "none",
        "hovertemplate": "%{text}<br>%{y:,} answers<extra></extra>",
    }
    ticks = _ticks(bars[0].low, bars[-1].high) if bars else []
    return {
        "data": [trace],
        "layout": {
            "xaxis": {
                "title": {"text": "logarithmic scale"},
                "tickvals": [math.log10(tick) for tick in ticks],
                "ticktext": [write(tick) for tick in ticks],
            },
            "yaxis": {"rangemode": "tozero", "tickformat": "~s"},
            "showlegend": False,
        },
        "paint": [{"marker.color": color}],
        "marks": _marks(distribution, math.log10(bars[-1].high / bars[0].low) if bars else 0.0),
    }


def _marks(distribution: Distribution, extent: float) -> list[dict[str, Any]]:
    """Lines at the quantiles; those too close to have a name each share one."""
    marks: list[dict[str, Any]] = []
    named = -math.inf
    for name, share in QUANTILES:
        value = distribution.quantile(share)
        # Zero has no place on a logarithmic axis.
        if not value:
            continue
        x = math.log10(value)
        if x - named < extent * _MARK_ROOM:
            marks[-1]["text"], text = "", f"{marks[-1]['text']} {name}"
        else:
            text = name
        named = x
        marks.append({"x": x, "text": text})
    return marks


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers within a range: 1, 2 and 5 of each power of ten, or equal steps where the range is narrow."""
    fine = [factor * 10.0**power for power in range(-4, 10) for factor in (1, 2, 5)]
    chosen = [tick for tick in fine if low <= tick <= high]
    # With more, the numbers of a narrow chart would overlap.
    if len(chosen) > 8:
        return [tick for tick in chosen if math.log10(tick).is_integer()]
    if len(chosen) >= 3:
        return chosen
    return linear_ticks(low, high)


def linear_ticks(low: float, high: float) -> list[float]:
    """Return at most six round numbers in equal steps within a range, zero left out."""
    sizes = (factor * 10.0**power for power in range(-6, 12) for factor in (1, 2, 5))
    step = next((size for size in sizes if (high - low) / size <= 5), high)
    return [index * step for index in range(math.ceil(low / step), math.floor(high / step) + 1) if index]


def seconds_text(value: float | None) -> str:
    """Write a measured span with three digits: `372 ms`, `1.42 s`, `4 min 05 s`."""
    if value is None:
        return UNKNOWN
    if value < 0.9995:
        return f"{value * 1_000:.3g} ms"
    return f"{value:.3g} s" if value < 99.95 else duration(value)


def _number(value: float) -> str:
    return count(round(value)) if value >= 10 else f"{value:.2g}"
