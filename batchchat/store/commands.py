"""Commands for a run that another process leaves in its output, and the run's replies.

A command is a file that appears whole, under a name that says when it was sent. It is addressed to one run: no other
one carries it out, so what a crash leaves does nothing. Whoever removes the file has it: the run, or its sender who no
longer waits. So a command is carried out once or never, and its sender knows which.

Files, and not a socket: an output may lie on a network file system that the run reaches from another machine, its path
may be longer than a socket's name can be, and a socket that a killed run leaves must be told from one that is in use.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from batchchat.store.json_files import publish_json
from batchchat.store.location.choice import location_of
from batchchat.store.location.port import Location

_FOLDER = "control"
_COMMAND, _REPLY = ".command", ".reply"


class CommandFiles:
    """The commands and replies in one output. Every method raises StorageError if the place refuses."""

    def __init__(self, output: Location | Path | str) -> None:
        self._location = location_of(output)
        self._files = self._location.state

    def send(self, run_id: str, command: Mapping[str, Any]) -> str:
        """Leave a command for a run, and return the name by which its reply is known."""
        # The time comes first: the run carries commands out in the order of their names.
        name = f"{time.time_ns():020d}-{secrets.token_hex(4)}"
        publish_json(self._files, f"{_FOLDER}/{name}{_COMMAND}", {**command, "run_id": run_id}, durable=False)
        return name

    def withdraw(self, name: str) -> bool:
        """Take a command back. Return false if the run has taken it: then a reply follows."""
        return self._files.take(f"{_FOLDER}/{name}{_COMMAND}") is not None

    def reply_to(self, name: str) -> dict[str, Any] | None:
        """Return the run's reply to a command, and remove it; None if there is none yet."""
        data = self._files.take(f"{_FOLDER}/{name}{_REPLY}")
        return None if data is None else _object(data)

    def take(self, run_id: str) -> list[tuple[str, dict[str, Any]]]:
        """Return the commands for this run with their names, in the order in which they were sent, and remove them."""
        found = []
        for file in self._names(_COMMAND):
            data = self._files.take(f"{_FOLDER}/{file}")
            command = {} if data is None else _object(data)
            if command.pop("run_id", None) == run_id:
                found.append((file.removesuffix(_COMMAND), command))
        return found

    def reply(self, name: str, reply: Mapping[str, Any]) -> None:
        """Leave the reply to a command."""
        publish_json(self._files, f"{_FOLDER}/{name}{_REPLY}", dict(reply), durable=False)

    def forget_replies(self) -> None:
        """Remove replies that nobody took, because the sender was killed. Only while the output is held."""
        for file in self._names(_REPLY):
            self._files.take(f"{_FOLDER}/{file}")

    def _names(self, suffix: str) -> list[str]:
        return sorted(name for name, _ in self._files.written(_FOLDER) if name.endswith(suffix))


def _object(data: bytes) -> dict[str, Any]:
    """Return a JSON object; an empty one of anything else."""
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}
