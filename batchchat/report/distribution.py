"""How values spread: any number of them in a few kilobytes, however many rows there are."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

_GROWTH = math.log(1.02)
"""Each bin ends 2 % above its beginning: a quantile is within 1 %, and ten decades take 1,200 bins."""


class Bar(NamedTuple):
    """So many values from `low` up to `high`."""

    low: float
    high: float
    values: int


class Distribution:
    """A histogram whose bins grow by 2 %: a quantile is within 1 % of the true one. Values are not negative."""

    def __init__(self) -> None:
        self._bins: Counter[int] = Counter()
        self._zeros = 0
        self.count = 0
        self.total = 0.0
        self.low = math.inf
        self.high = -math.inf

    def add(self, values: pa.Array) -> None:
        """Count the values; nulls, NaN, infinite and negative ones are passed over."""
        values = values.cast(pa.float64(), safe=False)
        values = values.filter(pc.and_(pc.is_finite(values), pc.greater_equal(values, 0.0)))
        if not len(values):
            return
        extent = pc.min_max(values).as_py()
        self.low, self.high = min(self.low, extent["min"]), max(self.high, extent["max"])
        self.count += len(values)
        self.total += pc.sum(values).as_py()
        positive = values.filter(pc.greater(values, 0.0))
        self._zeros += len(values) - len(positive)
        bins = pc.floor(pc.divide(pc.ln(positive), _GROWTH)).cast(pa.int32())
        counted = pc.value_counts(bins)
        for number, times in zip(counted.field("values").to_pylist(), counted.field("counts").to_pylist(), strict=True):
            self._bins[number] += times

    @property
    def mean(self) -> float | None:
        """The mean, None where nothing was counted."""
        return self.total / self.count if self.count else None

    def quantile(self, share: float) -> float | None:
        """Return the smallest value that at least this share of the values do not pass; None if nothing was counted."""
        if not self.count:
            return None
        rank = max(0, math.ceil(share * self.count) - 1)
        seen = self._zeros
        if rank < seen:
            return 0.0
        for number, times in sorted(self._bins.items()):
            if rank < seen + times:
                inside = (rank - seen + 0.5) / times
                # The place within a bin is a guess. It must not pass the smallest or the largest value that there was.
                return min(self.high, max(self.low, math.exp((number + inside) * _GROWTH)))
            seen += times
        return self.high

    def bars(self, most: int = 48) -> list[Bar]:
        """Return the positive values in at most so many bars, equally wide on a logarithmic axis; some may be empty."""
        if not self._bins:
            return []
        first, last = min(self._bins), max(self._bins)
        width = -(-(last - first + 1) // most)
        counts = [0] * ((last - first) // width + 1)
        for number, times in self._bins.items():
            counts[(number - first) // width] += times
        edges = [math.exp((first + index * width) * _GROWTH) for index in range(len(counts) + 1)]
        return [Bar(*bar) for bar in zip(edges, edges[1:], counts, strict=False)]


class ValueCounts:
    """How often each of a few values occurs. Where there are more than `most`, it gives up and is `spread`."""

    def __init__(self, most: int = 40, *, longest: int = 80) -> None:
        self.counts: Counter[str] = Counter()
        self.nulls = 0
        self.spread = False
        self._most = most
        self._longest = longest

    def add(self, values: pa.Array) -> None:
        """Count the values, of any type that Arrow can write as text."""
        if self.spread:
            return
        self.nulls += values.null_count
        counted = pc.value_counts(values.drop_null())
        # One batch alone may have thousands of values, such as free texts: they are not even counted.
        if len(counted) > self._most:
            self._give_up()
            return
        for value, times in zip(counted.field("values").to_pylist(), counted.field("counts").to_pylist(), strict=True):
            self.counts[_text(value)] += times
        if len(self.counts) > self._most or any(len(text) > self._longest for text in self.counts):
            self._give_up()

    def _give_up(self) -> None:
        self.spread = True
        self.counts.clear()

    @property
    def total(self) -> int:
        """How many values there were."""
        return self.counts.total()


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else str(value)
