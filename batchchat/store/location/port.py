"""The port of a location: what the store asks of the place that keeps an output's files.

An object store can do all of it as well as a folder: a file appears whole or not at all, and nothing is renamed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import BinaryIO, Protocol


class PartFiles(Protocol):
    """Where parts are kept: what object storage can do as well as a folder."""

    def names(self) -> list[str]:
        """Return the names of all parts, in order."""

    def open(self, name: str) -> BinaryIO:
        """Open a part for reading, at random positions. Raises StorageError; FileNotFoundError where it is gone."""

    def publish(self, name: str, write: Callable[[BinaryIO], None], before: Callable[[], None] | None = None) -> None:
        """Make what `write` writes the content of a part: wholly and durably, or not at all.

        `before` is called when everything is written and nothing is visible yet. Raises StorageError.
        """

    def remove(self, name: str) -> None:
        """Remove a part. Raises StorageError."""

    def size(self, name: str) -> int:
        """Return a part's size in bytes. Raises StorageError."""

    def set_aside(self, name: str) -> str:
        """Move a damaged part out of the dataset, and say where it is now. Raises StorageError."""

    def reported(self) -> list[str]:
        """Return the names of parts that somebody found damaged; they are still in the dataset."""

    def forget(self, name: str) -> None:
        """Forget such a report: the part was looked at. Raises StorageError."""


def part_number(name: str) -> int:
    """Return the number in the name of a part or an archive file."""
    return int(name.partition("-")[2].partition(".")[0])
