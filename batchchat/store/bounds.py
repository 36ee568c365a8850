"""How large a part becomes, and how long a record waits for its part."""

from __future__ import annotations

from typing import NamedTuple

PART_ROWS = 50_000
PART_BYTES = 128 * 2**20
PART_SECONDS = 60.0
"""Chosen, not measured: few files, little memory, and a reader sees a record after a minute."""


class Bounds(NamedTuple):
    """A part has at most so many rows and raw bytes; a record waits at most so many seconds of the caller's clock."""

    rows: int = PART_ROWS
    nbytes: int = PART_BYTES
    seconds: float = PART_SECONDS

    def room(self, row_bytes: int) -> int:
        """Return how many rows of this many bytes a new part takes, at least one."""
        return max(1, min(self.rows, self.nbytes // row_bytes))
