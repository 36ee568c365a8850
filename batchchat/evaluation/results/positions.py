"""The records of an output that have a position among today's rows, as numpy's arrays."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from batchchat.store import Output

_ID_BYTES = 16

Positions = NDArray[np.int64]

_NIBBLES = np.zeros(256, dtype=np.uint8)
for _value, _digit in enumerate(b"0123456789abcdef"):
    _NIBBLES[_digit] = _value


def as_halves(custom_ids: pa.Array) -> NDArray[np.uint64]:
    """Return identities of 32 hexadecimal digits as pairs of 64 bits."""
    text = "".join(custom_ids.to_pylist()).encode()
    digits = _NIBBLES[np.frombuffer(text, dtype=np.uint8)].reshape(-1, 2)
    return (digits[:, 0] << 4 | digits[:, 1]).reshape(-1, _ID_BYTES).view(np.uint64)


class Finder(Protocol):
    """Finds the positions of records, by the columns that it names; -1 for one that has none."""

    columns: frozenset[str]

    def locate(self, batch: pa.RecordBatch) -> Positions | array[int]:
        """Return the position of each record of a batch."""
        ...


def current_records(
    output: Output, finder: Finder, columns: frozenset[str] | None
) -> Iterator[tuple[Positions, pa.RecordBatch, int]]:
    """Yield the records that have a position, with it, and how many of their batch have none.

    `columns` are those wanted, None for all; one that the output does not have is left out. Raises StorageError where a
    part is damaged.
    """
    names: list[str] | None = None
    if output.schema is not None and columns is not None:
        names = [name for name in output.schema.names if name in columns or name in finder.columns]
    for batch in output.records(names):
        positions = np.asarray(finder.locate(batch), dtype=np.int64)
        current = positions >= 0
        stale = len(current) - int(current.sum())
        if not stale:
            yield positions, batch, 0
        else:
            yield positions[current], batch.filter(pa.array(current)), stale
