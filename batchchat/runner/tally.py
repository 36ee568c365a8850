"""The counts of a run: fed as records become durable, read as frozen snapshots."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from batchchat.events import FailureGroup
from batchchat.records import ErrorKind, Record, Spend

_WINDOW_S = 20.0


class Rate:
    """Amounts per second over the last twenty seconds, sampled about once a second."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, float]] = deque()

    def sample(self, now: float, total: float) -> None:
        """Note the total so far."""
        samples = self._samples
        samples.append((now, total))
        while len(samples) > 2 and now - samples[1][0] >= _WINDOW_S:
            samples.popleft()

    @property
    def per_s(self) -> float:
        """Growth per second between the oldest and the newest sample, 0 while there is only one."""
        if len(self._samples) < 2:
            return 0.0
        (start, low), (end, high) = self._samples[0], self._samples[-1]
        return (high - low) / (end - start) if end > start else 0.0


@dataclass(slots=True)
class _Group:
    count: int
    example: str
    row_index: int


class Tally:
    """What this run has settled durably."""

    def __init__(self) -> None:
        self.ok = 0
        self.failed = 0
        self.revived = 0
        self.asked = 0
        self.shared = 0
        self.spend = Spend()
        self.rows = Rate()
        self.tokens = Rate()
        self._groups: dict[str, _Group] = {}

    def add_record(self, record: Record, *, revived: bool = False) -> None:
        """Count one record."""
        if revived:
            self.revived += 1
            return
        self.shared += record.cache_hit is True
        self.asked += record.attempts > 0
        if record.status == "ok":
            self.ok += 1
        else:
            self.failed += 1
            self._group(record.error_kind or ErrorKind.PROTOCOL.value, record.error_message or "", record.row_index)

    def add_spend(self, spend: Spend) -> None:
        """Count what answered attempts cost."""
        self.spend = self.spend.plus(spend)

    def sample(self, now: float) -> None:
        """Take the moment's totals for the rates."""
        self.rows.sample(now, self.ok + self.failed)
        self.tokens.sample(now, self.spend.total_tokens)

    def _group(self, kind: str, message: str, row_index: int) -> None:
        group = self._groups.get(kind)
        if group is None:
            self._groups[kind] = _Group(1, message, row_index)
        else:
            group.count += 1

    def failures(self) -> tuple[FailureGroup, ...]:
        """Failed rows by kind, the most frequent first, each with its first message."""
        groups = sorted(self._groups.items(), key=lambda item: -item[1].count)
        return tuple(FailureGroup(kind, group.count, group.example, group.row_index) for kind, group in groups)
