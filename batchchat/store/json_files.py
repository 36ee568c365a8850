"""JSON in the state files of an output."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import orjson

from batchchat.errors import StorageError
from batchchat.store.location.port import StateFiles


def json_bytes(value: Any, *, indent: bool = False, default: Callable[[Any], Any] | None = None) -> bytes:
    """Return a JSON value as bytes with a line break at the end.

    Integers beyond 64 bits keep their digits: a job's schema, or the sums of an older output, may hold some.
    Raises TypeError for a value that has no form in JSON and that `default` does not turn into one.
    """
    option = orjson.OPT_APPEND_NEWLINE | (orjson.OPT_INDENT_2 if indent else 0)
    try:
        return orjson.dumps(value, option=option, default=default)
    except TypeError:
        text = json.dumps(value, indent=2 if indent else None, ensure_ascii=False, default=default)
        return text.encode("utf-8", "replace") + b"\n"


def publish_json(files: StateFiles, name: str, value: Any, *, durable: bool = True) -> None:
    """Replace a file by a JSON value. Raises StorageError."""
    files.publish(name, json_bytes(value, indent=True), durable=durable)


def read_json(files: StateFiles, name: str) -> Any:
    """Return the JSON value of a file, None if there is no such file.

    Raises StorageError if it cannot be read; its cause is an OSError if the system refused.
    """
    data = files.read(name)
    if data is None:
        return None
    try:
        return json.loads(data)  # unlike orjson, it keeps every digit of a number
    except (ValueError, RecursionError) as error:
        raise StorageError(
            f"{files.address(name)}: damaged: it holds no JSON", remedy="Restore it from a copy if there is one."
        ) from error


def read_object(files: StateFiles, name: str) -> dict[str, Any]:
    """Return the JSON object of a file; an empty one if there is no such file, or if it is damaged.

    Raises StorageError if the system refuses.
    """
    try:
        found = read_json(files, name)
    except StorageError as error:
        # A damaged file is told by `State.damaged_files`; a disk that refuses is an error here.
        if isinstance(error.__cause__, OSError):
            raise
        return {}
    return found if isinstance(found, dict) else {}


def append_json(files: StateFiles, name: str, value: Any) -> None:
    """Append a JSON value as one line, durable on return. Raises StorageError."""
    files.append(name, json_bytes(value))


def read_lines(files: StateFiles, name: str) -> tuple[list[dict[str, Any]], int]:
    """Return the JSON objects of a file, one a line, and how many lines could not be read. A missing file has none.

    An unfinished last line is ignored: it was never counted. Raises StorageError if the system refuses.
    """
    data = files.read(name) or b""
    values: list[dict[str, Any]] = []
    damaged = 0
    for line in data[: data.rfind(b"\n") + 1].splitlines():
        try:
            value = json.loads(line)  # unlike orjson, it keeps every digit of a number
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            values.append(value)
        else:
            damaged += 1
    return values, damaged
