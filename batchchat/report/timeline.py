"""What happened when: sums by moment, coarser as they grow in number, and cut where nothing happened for long."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import field
from itertools import pairwise

import pyarrow as pa
import pyarrow.compute as pc

from batchchat.dataclass import dataclass

# Each divides the next, so that finer sums add up to coarser ones: a second to a week.
_WIDTHS = (1, 2, 10, 30, 60, 300, 600, 1_800, 3_600, 10_800, 21_600, 86_400, 604_800)
_DAY = 86_400
"""Seconds of the width that is taken if there are too many breaks."""
_KEPT = 8_192
"""Moments that are kept before two and more of them are joined: some megabytes, whatever the length of a run."""
_SHOWN = 150
"""Moments that a chart shows: each has a few pixels then."""
_MOST_SITTINGS = 6
"""Breaks that a chart cuts out. With more of them the days are shown as they are. Chosen."""
_MEASURES = ("ok", "failed", "prompt_tokens", "completion_tokens", "cost")


@dataclass(slots=True)
class Moment:
    """Sums over the records that finished within `width` seconds from `start` (seconds since the epoch, UTC)."""

    start: int
    ok: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0

    def plus(self, other: Moment) -> None:
        """Add what another moment holds."""
        self.ok += other.ok
        self.failed += other.failed
        self.prompt_tokens += other.prompt_tokens
        self.completion_tokens += other.completion_tokens
        self.cost += other.cost


@dataclass(frozen=True, slots=True)
class Course:
    """A timeline made for drawing: moments of `width` seconds in order, and the gaps to leave out between them."""

    width: int
    moments: list[Moment]
    gaps: list[tuple[int, int]] = field(default_factory=list)


class Timeline:
    """Sums by the moment at which a record finished."""

    def __init__(self) -> None:
        self._width = 0
        self._moments: dict[int, Moment] = {}

    def add(self, batch: pa.RecordBatch) -> None:
        """Count records: `finished_at`, `status`, `prompt_tokens`, `completion_tokens`, `cost`."""
        seconds = pc.divide(batch.column("finished_at").cast(pa.int64()), 1_000_000 * _WIDTHS[self._width])
        ok = pc.equal(batch.column("status"), "ok").cast(pa.int64())
        names = _MEASURES[2:]
        table = pa.table(
            [seconds, ok, pc.subtract(1, ok), *(batch.column(name) for name in names)],
            ["moment", *_MEASURES],
        ).filter(pc.is_valid(seconds))
        sums = table.group_by("moment").aggregate([(name, "sum") for name in _MEASURES])
        columns = [sums.column("moment"), *(sums.column(f"{name}_sum") for name in _MEASURES)]
        for start, *values in zip(*(column.to_pylist() for column in columns), strict=True):
            self._add(start, Moment(start * _WIDTHS[self._width], *(value or 0 for value in values)))
        while len(self._moments) > _KEPT and self._width + 1 < len(_WIDTHS):
            self._width += 1
            self._moments = _coarser(self._moments.values(), _WIDTHS[self._width])

    def _add(self, number: int, moment: Moment) -> None:
        known = self._moments.setdefault(number, moment)
        if known is not moment:
            known.plus(moment)

    def course(self) -> Course:
        """Return the moments at the finest width that is still readable, with long gaps left out.

        A run that goes on after a pause shows both sittings side by side; where there are many (a job of every
        night), whole days are told instead.
        """
        course = self._course(self._width)
        if len(course.gaps) >= _MOST_SITTINGS:
            course = self._course(max(self._width, _WIDTHS.index(_DAY)))
        return course if len(course.gaps) < _MOST_SITTINGS else Course(course.width, course.moments)

    def _course(self, level: int) -> Course:
        moments = _coarser(self._moments.values(), _WIDTHS[level])
        while len(moments) > _SHOWN and level + 1 < len(_WIDTHS):
            level += 1
            moments = _coarser(moments.values(), _WIDTHS[level])
        width = _WIDTHS[level]
        ordered = [moments[number] for number in sorted(moments)]
        # A shorter gap stays: it takes less of the axis than what happened, and cutting it would help nobody.
        longest = width * max(20, len(ordered))
        gaps = [
            (before.start + width, after.start)
            for before, after in pairwise(ordered)
            if after.start - before.start > longest
        ]
        return Course(width, ordered, gaps)


def _coarser(moments: Iterable[Moment], width: int) -> dict[int, Moment]:
    found: dict[int, Moment] = {}
    for moment in moments:
        number = moment.start // width
        known = found.get(number)
        if known is None:
            found[number] = Moment(
                number * width, moment.ok, moment.failed, moment.prompt_tokens, moment.completion_tokens, moment.cost
            )
        else:
            known.plus(moment)
    return found
