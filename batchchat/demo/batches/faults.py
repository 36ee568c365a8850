"""Which batch fault befalls what: by the number of the batch, by the number of the call, or drawn for a line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from batchchat.demo.batches.options import BATCH_FAULTS, FaultKind
from batchchat.demo.draws import draw


class BatchFaults:
    """Answers for each fault whether it befalls, and counts how often it did."""

    def __init__(self, faults: Mapping[str, float | str], seed: int) -> None:
        self._faults = faults
        self._seed = seed
        self._calls: Counter[str] = Counter()
        self.befallen: Counter[str] = Counter()

    def flag(self, name: str) -> bool:
        """Tell whether the fault always holds."""
        return bool(self._faults.get(name))

    def number(self, name: str) -> float | None:
        """Return the number or the seconds of a fault, None if it was not asked for."""
        value = self._faults.get(name)
        return None if value is None or isinstance(value, str) else value

    def seconds(self, name: str) -> float:
        """Return the seconds of a fault, 0 if it was not asked for."""
        return self.number(name) or 0.0

    def limit(self, name: str) -> int:
        """Return a limit that holds also if nobody asked for it."""
        value = self._faults.get(name, BATCH_FAULTS[name].default)
        return int(value)

    def text(self, name: str) -> str | None:
        """Return the text of a fault, None if it was not asked for."""
        value = self._faults.get(name)
        return value if isinstance(value, str) else None

    def batch(self, name: str, number: int) -> bool:
        """Tell whether the fault befalls the batch with this number (from 1)."""
        return number <= (self.number(name) or 0)

    def call(self, name: str) -> bool:
        """Tell whether the fault befalls this call, and count the call."""
        limit = self.number(name)
        if not limit or self._calls[name] >= limit:
            return False
        self._calls[name] += 1
        self.befallen[name] += 1
        return True

    def line(self, name: str, custom_id: str, batch_number: int) -> bool:
        """Tell whether the fault befalls this line in this batch. The same line is drawn anew in another batch."""
        share = self.number(name)
        if not share or draw(self._seed, name, custom_id, batch_number) >= share:
            return False
        self.befallen[name] += 1
        return True

    def of_lines(self) -> frozenset[str]:
        """Return the faults of lines that were asked for."""
        return frozenset(name for name in self._faults if BATCH_FAULTS[name].kind is FaultKind.SHARE)
