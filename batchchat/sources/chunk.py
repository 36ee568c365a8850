"""What a reader gives: consecutive rows of one file, before they are carried to the output's columns."""

from __future__ import annotations

from dataclasses import field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from batchchat.dataclass import dataclass
from batchchat.records import ErrorKind, Failure, Place

if TYPE_CHECKING:
    import pyarrow as pa

_RAW_KEPT = 64 * 1024
"""Bytes of an unreadable row that are kept as they are; a longer one is told from others by its digest."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a batch, in rows and bytes, and of one line or CSV field, in bytes."""

    batch_rows: int
    batch_bytes: int
    max_line_bytes: int


@dataclass(frozen=True, slots=True)
class TableDialect:
    """How delimited text is written, if not as usual.

    `header`: False if there is no header line, or the names that take its place. `quoting`: whether a field may stand
    in double quotes; None is the format's own rule: yes in CSV, no in TSV.
    """

    header: bool | tuple[str, ...] = True
    quoting: bool | None = None


@dataclass(frozen=True, slots=True)
class InputFormat:
    """How an input is written and read: its kind, the bounds of a batch, and what is not as usual in a text.

    `encoding` is that of standard input if it is not UTF-8; a file says its own.
    """

    kind: str
    limits: Limits
    dialect: TableDialect = TableDialect()
    encoding: str | None = None


@dataclass(slots=True)
class Chunk:
    """Rows by column name, None for an unreadable one; Parquet also gives its own columns in `arrow`.

    `place` is where the rows end, in a file that is numbered 0; None where reading cannot begin again there.
    """

    rows: list[dict[str, Any] | None]
    nbytes: int
    failures: dict[int, Failure] = field(default_factory=dict)
    raw: dict[int, bytes] = field(default_factory=dict)
    arrow: pa.RecordBatch | None = None
    place: Place | None = None

    def fail(self, message: str, raw: bytes) -> None:
        """Add an unreadable row: why, and the bytes that tell it from others."""
        self.failures[len(self.rows)] = Failure(ErrorKind.INPUT, message)
        self.raw[len(self.rows)] = raw if len(raw) <= _RAW_KEPT else digest_of(raw)
        self.rows.append(None)


def digest_of(raw: bytes) -> bytes:
    """Stand for the bytes of an unreadable row that are too many to keep."""
    return b"blake2b:" + blake2b(raw, digest_size=32).digest()
