"""What reports are made of: distributions, timelines, labels, and data made safe for a page."""

from __future__ import annotations

import gzip
import json
import math
import re
from base64 import b64decode
from datetime import UTC, datetime, timedelta
from importlib import resources
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchchat.format import UNKNOWN
from batchchat.report.charting import charting_library, pack
from batchchat.report.distribution import Distribution, ValueCounts
from batchchat.report.figures import plain, seconds_text, spread
from batchchat.report.label_counts import LabelCounter
from batchchat.report.page import embedded
from batchchat.report.timeline import Timeline
from batchchat.store import RECORD_SCHEMA

amounts = st.floats(min_value=0, max_value=1e6, allow_nan=False)


@given(st.lists(amounts, min_size=1), st.floats(min_value=0, max_value=1))
def test_a_quantile_is_within_two_percent_of_the_value_at_its_rank(values: list[float], share: float) -> None:
    distribution = Distribution()
    for start in range(0, len(values), 7):
        distribution.add(pa.array(values[start : start + 7]))
    exact = sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
    assert distribution.quantile(share) == pytest.approx(exact, rel=0.021, abs=1e-300)
    assert distribution.mean == pytest.approx(sum(values) / len(values), rel=1e-9, abs=1e-300)


@given(st.lists(st.floats(min_value=1e-3, max_value=1e6), min_size=1))
def test_bars_hold_every_value_once_in_order(values: list[float]) -> None:
    distribution = Distribution()
    distribution.add(pa.array(values))
    bars = distribution.bars(20)
    assert len(bars) <= 20
    assert sum(bar.values for bar in bars) == len(values)
    assert bars[0].low <= min(values) * 1.021
    assert bars[-1].high >= max(values) * 0.979
    for bar, after in pairwise(bars):
        assert bar.high == after.low


def test_what_is_no_amount_is_passed_over() -> None:
    distribution = Distribution()
    distribution.add(pa.array([None, math.nan, math.inf, -1.0], pa.float64()))
    assert (distribution.count, distribution.quantile(0.5), distribution.mean) == (0, None, None)
    assert spread(distribution, "series-1", seconds=True)["data"][0]["x"] == []
    distribution.add(pa.array([0, 0, 5], pa.int64()))
    assert (distribution.count, distribution.quantile(0.0), distribution.quantile(1.0)) == (3, 0.0, 5.0)


@pytest.mark.parametrize("values", [[0.31, 0.32, 0.33], [1e-5, 1e5], [7.0], [0.2, 0.3, 0.9]])
def test_every_histogram_has_ticks_that_differ(values: list[float]) -> None:
    distribution = Distribution()
    distribution.add(pa.array(values))
    axis = spread(distribution, "series-1", seconds=True)["layout"]["xaxis"]
    assert len(set(axis["ticktext"])) == len(axis["ticktext"]) == len(axis["tickvals"])
    assert len(axis["ticktext"]) <= 10
    assert all(math.isfinite(value) for value in axis["tickvals"])


def test_spans_are_told_with_three_digits() -> None:
    texts = [seconds_text(value) for value in (None, 0.3724, 0.9996, 1.4249, 99.96, 245.0)]
    assert texts == [UNKNOWN, "372 ms", "1 s", "1.42 s", "1 min 40 s", "4 min 05 s"]


def moments(*spans: tuple[datetime, int, float]) -> pa.RecordBatch:
    """Records that finished one after another: (first, how many, seconds between)."""
    times = [start + timedelta(seconds=index * step) for start, count, step in spans for index in range(count)]
    return pa.RecordBatch.from_pylist(
        [
            {
                "finished_at": time,
                "status": "failed" if index % 10 == 3 else "ok",
                "prompt_tokens": 10,
                "completion_tokens": None if index % 2 else 1,
                "cost": 0.5,
            }
            for index, time in enumerate(times)
        ],
        pa.schema(
            [
                ("finished_at", pa.timestamp("us", tz="UTC")),
                ("status", pa.string()),
                ("prompt_tokens", pa.int64()),
                ("completion_tokens", pa.int64()),
                ("cost", pa.float64()),
            ]
        ),
    )


NIGHT = datetime(2026, 11, 24, 3, tzinfo=UTC)


def totals(timeline: Timeline) -> tuple[int, int, int, int, float]:
    course = timeline.course()
    return (
        sum(moment.ok for moment in course.moments),
        sum(moment.failed for moment in course.moments),
        sum(moment.prompt_tokens for moment in course.moments),
        sum(moment.completion_tokens for moment in course.moments),
        sum(moment.cost for moment in course.moments),
    )


def test_a_timeline_grows_coarser_and_loses_nothing() -> None:
    timeline = Timeline()
    for hour in range(24):
        timeline.add(moments((NIGHT + timedelta(hours=hour), 1_000, 3.6)))
    assert totals(timeline) == (21_600, 2_400, 240_000, 12_000, 12_000.0)
    course = timeline.course()
    assert (course.width, len(course.moments), course.gaps) == (600, 144, [])
    assert [moment.start for moment in course.moments] == sorted({moment.start for moment in course.moments})


def test_pauses_are_left_out_and_many_nights_are_told_by_the_day() -> None:
    timeline = Timeline()
    timeline.add(moments((NIGHT, 60, 1.0), (NIGHT + timedelta(hours=5), 60, 1.0)))
    course = timeline.course()
    assert course.width == 1
    end, begin = int(NIGHT.timestamp()) + 60, int((NIGHT + timedelta(hours=5)).timestamp())
    assert course.gaps == [(end, begin)]
    for night in range(1, 30):
        timeline.add(moments((NIGHT + timedelta(days=night), 60, 1.0)))
    course = timeline.course()
    assert (course.width, len(course.moments), course.gaps) == (86_400, 30, [])
    assert totals(timeline)[0] == 31 * 54


def test_a_record_without_a_time_is_in_no_moment() -> None:
    batch = moments((NIGHT, 2, 1.0))
    timeline = Timeline()
    timeline.add(batch.set_column(0, "finished_at", pa.nulls(2, pa.timestamp("us", tz="UTC"))))
    assert timeline.course().moments == []


def labels_of(parsed: pa.DataType | pa.Field | None, answers: list[dict[str, Any]]) -> dict[str, list[tuple[str, int]]]:
    schema = RECORD_SCHEMA
    if parsed is not None:
        schema = schema.append(parsed if isinstance(parsed, pa.Field) else pa.field("parsed", parsed))
    labels = LabelCounter(schema)
    half = len(answers) // 2
    for part in (answers[:half], answers[half:]):
        labels.add(pa.RecordBatch.from_pylist(part, schema).select(labels.columns))
    return {found.name: found.counts for found in labels.found()}


def test_labels_are_found_wherever_parsed_holds_few_values() -> None:
    kind = pa.struct(
        [
            ("label", pa.string()),
            ("urgent", pa.bool_()),
            ("stars", pa.int64()),
            ("reason", pa.string()),
            ("tags", pa.list_(pa.string())),
            ("entities", pa.list_(pa.struct([("type", pa.string()), ("name", pa.string())]))),
            ("customer", pa.struct([("plan", pa.string())])),
            pa.field("anything", pa.string(), metadata={"batchchat.json": "true"}),
        ]
    )
    answers = [
        {
            "parsed": {
                "label": "bug" if index % 4 else None,
                "urgent": index % 2 == 0,
                "stars": index % 5,
                "reason": f"because of {index}",
                "tags": ["new"] * (index % 3),
                "entities": [{"type": "place", "name": f"{index}"}, {"type": "person", "name": f"{index} too"}],
                "customer": {"plan": "free"} if index % 2 else None,
                "anything": "{}",
            }
        }
        for index in range(100)
    ]
    found = labels_of(kind, answers)
    assert found == {
        "label": [("bug", 75)],
        "urgent": [("false", 50), ("true", 50)],
        "stars": [(str(star), 20) for star in range(5)],
        "tags[]": [("new", 99)],
        "entities[].type": [("person", 100), ("place", 100)],
        "customer.plan": [("free", 50)],
    }


def test_short_answers_and_tools_are_labels_too() -> None:
    calls = [{"id": "1", "type": "function", "name": "look_up", "arguments": "{}"}]
    answers = [
        {"completion": " yes\n" if index % 3 else "no", "tool_calls": calls * (index % 2)} for index in range(30)
    ]
    found = labels_of(None, answers)
    assert found == {"completion": [("yes", 20), ("no", 10)], "tools called": [("look_up", 15)]}
    assert labels_of(None, [{"completion": f"a story about {index}"} for index in range(30)]) == {}


def test_a_tally_gives_up_where_there_is_no_end_of_values() -> None:
    tally = ValueCounts(most=3)
    tally.add(pa.array(["a", "b", None]))
    assert (dict(tally.counts), tally.nulls, tally.total) == ({"a": 1, "b": 1}, 1, 2)
    tally.add(pa.array(["c", "d"]))
    assert tally.spread
    long = ValueCounts(longest=5)
    long.add(pa.array(["a long sentence"]))
    assert long.spread


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.text()
    | st.sampled_from(["</script>", "<!--", "]]>"]),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(json_values)
def test_embedded_data_comes_back_and_cannot_end_its_element(value: Any) -> None:
    text = embedded(value)
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == value


def test_text_of_the_data_is_no_markup_in_a_chart() -> None:
    assert plain('<a href="x">&amp;</a>') == '&lt;a href="x"&gt;&amp;amp;&lt;/a&gt;'


def luminance(color: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """Contrast ratio (WCAG 2.2)."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_can_be_read_on_everything_that_is_behind_it(scheme: int) -> None:
    style = (resources.files("batchchat.report") / "assets" / "style.css").read_text(encoding="utf-8")
    found = re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", style)
    colors = {name: (light, dark)[scheme] for name, light, dark in found}
    behind = [(text, back) for text in ("text", "quiet", "accent", "good", "bad", "warn") for back in ("page", "card")]
    behind += [(tone, f"{tone}-soft") for tone in ("accent", "good", "bad", "warn")]
    behind += [(text, "sunk") for text in ("text", "quiet", "accent")]
    ratios = {pair: contrast(colors[pair[0]], colors[pair[1]]) for pair in behind}
    assert {pair: ratio for pair, ratio in ratios.items() if ratio < 4.5} == {}


def test_the_library_is_packed_the_same_every_time_and_names_its_license() -> None:
    library = charting_library()
    assert b"plotly.js v" + library.version.encode() in gzip.decompress(b64decode(library.packed))[:500]
    assert "Permission is hereby granted" in library.license
    assert pack(b"text") == pack(b"text")
