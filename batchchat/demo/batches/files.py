"""The files of the Batch API: what is uploaded and what batches write, on disk.

FOLDER/files/ID           the content
FOLDER/files/ID.json      the record, written last: a file without one does not exist
"""

from __future__ import annotations

import shutil
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from batchchat.dataclass import dataclass

KEPT_S = 2_592_000
"""30 days: how long OpenAI keeps a file of a batch that names no time of its own."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file. `created` and `expires` are seconds since the epoch; `usable` is when a batch may be made of it."""

    id: str
    filename: str
    purpose: str
    nbytes: int
    created: float
    expires: float
    usable: float


class FileStore:
    """Keeps files in a folder. Its methods block and may be called from any thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._files: dict[str, StoredFile] = {}
        for path in folder.glob("*.json"):
            record = StoredFile(**read_record(path))
            self._files[record.id] = record

    def path(self, file_id: str) -> Path:
        """Return where the content of a file lies."""
        return self._folder / file_id

    def all(self, now: float) -> list[StoredFile]:
        """Return the files that have not expired, oldest first."""
        for record in list(self._files.values()):
            if now >= record.expires:
                self.delete(record.id)
        return sorted(self._files.copy().values(), key=lambda record: (record.created, record.id))

    def find(self, file_id: str, now: float) -> StoredFile | None:
        """Return a file's record, None if there is none or it has expired."""
        record = self._files.get(file_id)
        if record is not None and now >= record.expires:
            self.delete(file_id)
            return None
        return record

    def new_id(self, prefix: str = "file-") -> str:
        """Return an id that no file has. It is random, so that a new server never takes an old id for its own."""
        return f"{prefix}{uuid.uuid4().hex[:24]}"

    def add(
        self,
        file_id: str,
        content: BinaryIO | Path,
        *,
        filename: str,
        purpose: str,
        now: float,
        kept_s: float = KEPT_S,
        slow_s: float = 0.0,
    ) -> StoredFile:
        """Store a file; a path is moved here. Returns when record and content are on disk."""
        path = self.path(file_id)
        # A result of a batch: moved, as it may be large.
        if isinstance(content, Path):
            content.replace(path)
        else:
            with path.open("wb") as target:
                shutil.copyfileobj(content, target, 1 << 20)
        nbytes = path.stat().st_size
        record = StoredFile(file_id, filename, purpose, nbytes, now, now + kept_s, now + slow_s)
        write_record(self._folder / f"{file_id}.json", asdict(record))
        self._files[file_id] = record
        return record

    def delete(self, file_id: str) -> bool:
        """Delete a file. Returns false if there is none."""
        # The record goes first: a file without one does not exist, even if a kill comes between.
        if self._files.pop(file_id, None) is None:
            return False
        (self._folder / f"{file_id}.json").unlink(missing_ok=True)
        self.path(file_id).unlink(missing_ok=True)
        return True


def write_record(path: Path, record: dict[str, object]) -> None:
    """Write a record as JSON, whole or not at all."""
    temporary = path.with_name(f"{path.name}.new")
    temporary.write_bytes(orjson.dumps(record))
    temporary.replace(path)


def read_record(path: Path) -> dict[str, Any]:
    """Read a record. Raises ValueError if it is none."""
    try:
        record = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if not isinstance(record, dict):
        raise ValueError(f"{path} cannot be read: it holds no object")
    return record
