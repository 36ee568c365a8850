"""How large a part becomes, and how long a record waits for its part."""

from __future__ import annotations

from typing import NamedTuple

PART_ROWS = 50_000
PART_BYTES = 32 * 2**20
"""A run keeps a part in memory until it is sealed, and about twice as much while it is. Measured with rows of 200 KB:
128 MiB took 400 MB more than 32 MiB."""
PART_SECONDS = 60.0
"""Rows and seconds are chosen, not measured: few files, and a reader sees a record after a minute."""


class PartBounds(NamedTuple):
    """A part has at most so many rows and raw bytes; a record waits at most so many seconds of the caller's clock."""

    rows: int = PART_ROWS
    nbytes: int = PART_BYTES
    seconds: float = PART_SECONDS

    def room(self, row_bytes: int) -> int:
        """Return how many rows of this many bytes a new part takes, at least one."""
        return max(1, min(self.rows, self.nbytes // row_bytes))
