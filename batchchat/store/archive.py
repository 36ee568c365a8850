"""Archived completions, found again by their `custom_id`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from batchchat.store.location.port import PartFiles
from batchchat.store.parts import (
    DamagedPartError,
    PartReader,
)
from batchchat.store.schema import own_columns


class ArchiveReader:
    """Find archived completions.

    Rows come back in about the order in which they left, so one file is kept open in memory.
    """

    def __init__(self, files: PartFiles, opened: Callable[[str], PartReader]) -> None:
        self._files = files
        self._opened = opened
        self._file: tuple[str, int] | None = None
        self._places: dict[str, int] = {}
        self._table: pa.Table | None = None

    def fetch(self, custom_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Return the output's own columns of archived completions, by `custom_id`."""
        found: dict[str, dict[str, Any]] = {}
        missing = set(custom_ids)
        self._collect(missing, found)
        for name in reversed(self._files.names()):
            if not missing:
                break
            file = (name, self._files.size(name))  # a file that has grown holds more than what is at hand
            if file != self._file and self._holds(name, missing):
                self._load(file)
                self._collect(missing, found)
        return found

    def _holds(self, name: str, custom_ids: set[str]) -> bool:
        try:
            with self._opened(name) as reader:
                column = reader.read(["custom_id"]).column("custom_id")
        except DamagedPartError:
            return False
        return bool(pc.any(pc.is_in(column, value_set=pa.array(list(custom_ids), pa.string()))).as_py())

    def _load(self, file: tuple[str, int]) -> None:
        self._file, self._places, self._table = None, {}, None
        try:
            with self._opened(file[0]) as reader:
                table = reader.read(own_columns(reader.schema))
        except DamagedPartError:
            return
        table = table.filter(pc.equal(table.column("status"), "ok"))
        self._places = {custom_id: n for n, custom_id in enumerate(table.column("custom_id").to_pylist())}
        self._file, self._table = file, table

    def _collect(self, missing: set[str], found: dict[str, dict[str, Any]]) -> None:
        if self._table is None:
            return
        here = [custom_id for custom_id in missing if custom_id in self._places]
        if not here:
            return
        places = pa.array([self._places[custom_id] for custom_id in here], pa.int64())
        table = self._table.take(places)
        for name in ("started_at", "finished_at"):
            number = table.schema.get_field_index(name)
            table = table.set_column(number, name, pc.cast(table.column(name), pa.int64()))
        found.update(zip(here, table.to_pylist(), strict=True))
        missing.difference_update(here)
