from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchchat.events import FailureGroup
from batchchat.records import ErrorKind
from batchchat.runner.run_summary import alike_event
from batchchat.runner.tally import Median, StreamPace, Tally
from tests.store_cases import record, row_batch


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=200))
def test_a_median_is_right_to_within_one_per_cent(values: list[float]) -> None:
    median = Median()
    median.add([*values[:3], None])
    median.add(values[3:])
    assert median.value == pytest.approx(statistics.median_low(values), rel=0.0101)


def test_a_median_of_nothing_is_none_and_of_odd_numbers_a_number() -> None:
    median = Median()
    median.add([None, float("inf"), float("nan")])
    assert median.value is None
    median.add([0.0, -1.0])
    assert median.value == pytest.approx(1e-9, rel=0.0101)


def test_a_median_takes_memory_for_its_range_and_not_for_its_numbers() -> None:
    median = Median()
    median.add(0.1 + number / 10_000 for number in range(20_000))
    assert len(median._counts) < 200
    assert median.value == pytest.approx(1.1, rel=0.011)


def test_a_pace_may_be_unknown() -> None:
    assert StreamPace().streamed is None
    pace = StreamPace()
    pace.add((0.5,), (None,))
    assert pace.streamed is not None
    assert pace.streamed.median_ttft_s == pytest.approx(0.5, rel=0.0101)
    assert pace.streamed.median_output_tokens_per_s is None


@pytest.mark.parametrize(
    ("kinds", "told"),
    [
        (["truncated"] * 19, None),
        (["truncated"] * 20, (20, 20)),
        ([None] * 30 + ["truncated"] * 20, (20, 50)),
        ([None] * 31 + ["truncated"] * 20, None),
        (["truncated", "server"] * 19, None),
        (["truncated", "server"] * 25, (20, 39)),
    ],
    ids=["19", "20", "in the first 50", "later", "of two kinds", "of two kinds, many"],
)
def test_many_of_the_first_rows_that_fail_alike_are_told_once(
    kinds: list[str | None], told: tuple[int, int] | None
) -> None:
    tally = Tally()
    found = []
    for row, kind in enumerate(kinds):
        tally.add_record(record(row_batch(row, 1), 0, failed=kind))
        alike = tally.take_alike()
        if alike is not None:
            found.append((alike, tally.ok + tally.failed))
    assert [(group.count, settled) for group, settled in found] == ([told] if told else [])


@pytest.mark.parametrize("kind", list(ErrorKind))
def test_rows_that_fail_alike_are_told_of_with_a_remedy(kind: ErrorKind) -> None:
    event = alike_event(FailureGroup(kind.value, 20, "the reason.", 7), 41)
    assert event.level == "warning"
    assert event.message.startswith(f"20 of the first 41 rows failed alike ({kind.value}): row 7: the reason. ")
    assert str(event.fields["remedy"]) in event.message
    assert event.fields["error_kind"] == kind.value
