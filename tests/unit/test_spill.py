"""What is too much for memory comes back from its file as it was."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchchat.evaluation.results.disk_list import DiskList

_OFFSETS = st.integers(-23, 23).map(lambda hours: timezone(timedelta(hours=hours)))
PLAIN = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters())
    | st.binary()
    | st.decimals(allow_nan=False)
    | st.dates()
    | st.times()
    | st.timedeltas()
    | st.datetimes(timezones=st.none() | _OFFSETS)
)
VALUES = st.recursive(PLAIN, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10)


@given(st.lists(VALUES, max_size=8))
def test_values_come_back_in_any_order(values: list[Any]) -> None:
    spill = DiskList()
    try:
        places = [spill.add(value) for value in values]
        for place, value in reversed(list(zip(places, values, strict=True))):
            assert spill.get(place) == value
    finally:
        spill.close()


def test_kinds_stay_apart_and_data_cannot_pose_as_one() -> None:
    spill = DiskList()
    values = [
        datetime(2026, 11, 24, 1, 2, 3, 4, UTC),
        date(2026, 11, 24),
        time(1, 2),
        Decimal("1.10"),
        b"\xff\n",
        "a\nb",
    ]
    assert [type(spill.get(spill.add(value))) for value in values] == [type(value) for value in values]
    odd: list[dict[str, Any]] = [
        {"\0kind": "code", "text": "1 + 1"},
        {"\0kind": "date", "text": "never"},
        {"\0kind": [], "text": None},
    ]
    assert [spill.get(spill.add(value)) for value in odd] == odd
    with pytest.raises(TypeError, match="type object cannot be kept"):
        spill.add(object())
    spill.close()
