"""Values that are too many for memory, in a temporary file that has no name and vanishes when it is closed.

They are kept as JSON. What an input holds beside JSON (times, decimals, bytes) is written as a tagged text and comes
back as what it was; a tuple comes back as a list, and a time zone as its offset. The file is read by its own writer
alone, and even so nothing in it can become more than such a value.
"""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Callable
from contextlib import suppress
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import IO, Any, Final

_TAG: Final = "\0kind"
_MICROSECOND: Final = timedelta(microseconds=1)

# A datetime is a date too: the first kind that fits counts.
_WRITE: Final[tuple[tuple[type, str, Callable[[Any], str]], ...]] = (
    (datetime, "datetime", datetime.isoformat),
    (date, "date", date.isoformat),
    (time, "time", time.isoformat),
    (timedelta, "timedelta", lambda value: str(value // _MICROSECOND)),
    (Decimal, "decimal", str),
    (bytes, "bytes", lambda value: base64.b64encode(value).decode("ascii")),
)
_READ: Final[dict[str, Callable[[str], Any]]] = {
    "datetime": datetime.fromisoformat,
    "date": date.fromisoformat,
    "time": time.fromisoformat,
    "timedelta": lambda text: timedelta(microseconds=int(text)),
    "decimal": Decimal,
    "bytes": base64.b64decode,
}


class DiskList:
    """Keeps values one after another; each is read back by the place that `add` gave it."""

    def __init__(self) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile(prefix="batchchat-")  # noqa: SIM115 - closed by `close`
        self._end = 0

    def add(self, value: Any) -> int:
        """Keep a value and return its place. Raises TypeError for what neither JSON nor an input holds."""
        line = json.dumps(value, default=_tagged).encode("ascii") + b"\n"
        place = self._file.seek(self._end)
        self._end += self._file.write(line)
        return place

    def get(self, place: int) -> Any:
        """Return the value at a place that `add` gave."""
        self._file.seek(place)
        return json.loads(self._file.readline(), object_hook=_untagged)

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


def _tagged(value: Any) -> dict[str, str]:
    for kind, name, write in _WRITE:
        if isinstance(value, kind):
            return {_TAG: name, "text": write(value)}
    raise TypeError(f"a value of type {type(value).__name__} cannot be kept")


def _untagged(value: dict[str, Any]) -> Any:
    """The value that was tagged; an object of the data that looks like one but is none stays what it is."""
    if value.keys() == {_TAG, "text"} and isinstance(value["text"], str):
        read = _READ.get(str(value[_TAG]))
        with suppress(ValueError, ArithmeticError):
            return value if read is None else read(value["text"])
    return value
