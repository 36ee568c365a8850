"""The files of people's reviews in an output's state: `reviews/*.jsonl`, each written once and whole, never changed.

What a line means is not known here: see `labelling.reviews`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from batchchat.store.json_files import json_bytes, read_lines
from batchchat.store.location.choice import location_of
from batchchat.store.location.port import Location

_FOLDER = "reviews"


def read_review_lines(output: Location | Path | str) -> list[dict[str, Any]]:
    """Return the lines of all files, file by file in the order of their names; none if there is no file.

    Lines that are damaged are left out. Raises StorageError if the disk refuses.
    """
    state = location_of(output).state
    names = sorted(name for name, _ in state.written(_FOLDER) if name.endswith(".jsonl"))
    return [line for name in names for line in read_lines(state, f"{_FOLDER}/{name}")[0]]


def has_review_file(output: Location | Path | str, name: str) -> bool:
    """Tell whether there is a file of this name."""
    return location_of(output).state.has(f"{_FOLDER}/{name}")


def write_review_lines(output: Location | Path | str, name: str, lines: Iterable[Mapping[str, Any]]) -> None:
    """Write one file, `NAME.jsonl`, durably: whole or not at all. Raises StorageError if the disk refuses."""
    location_of(output).state.publish(f"{_FOLDER}/{name}", b"".join(json_bytes(dict(line)) for line in lines))
