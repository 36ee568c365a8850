from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchchat.runner.tally import Median, StreamPace


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
