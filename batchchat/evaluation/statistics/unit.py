"""What a score's numbers mean: its unit, which direction is better, and between what it lies."""

from __future__ import annotations

import math

from batchchat.dataclass import dataclass


@dataclass(frozen=True, slots=True)
class ScoreUnit:
    """`higher_is_better` is None where no direction is better; `low` and `high` are the least and greatest value."""

    unit: str
    higher_is_better: bool | None
    low: float = -math.inf
    high: float = math.inf

    @property
    def yes_no(self) -> bool:
        """Whether every value is 0 (no) or 1 (yes)."""
        return self.unit == "yes/no"


YES_NO = ScoreUnit("yes/no", True, 0.0, 1.0)
SHARE = ScoreUnit("share", True, 0.0, 1.0)
"""A number from 0 (nothing right) to 1 (all right)."""
