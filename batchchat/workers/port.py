"""The port for launching workers: start one, tell it something, hear it, wait for its end, and know who died why.

A launcher places workers and carries messages, nothing else. It must not start a worker again by itself, nor deliver a
message twice: the coordinator decides what a death means. Messages are JSON objects (see `messages`), and each way they
come in order.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import NamedTuple, Protocol

from batchchat.workers.messages import Message


class WorkerEnd(NamedTuple):
    """How a worker ended. `clean` if it ended by itself and in order; else `reason` says in words why it died."""

    clean: bool
    reason: str = ""


class RunningWorker(Protocol):
    """A worker that was started."""

    @property
    def place(self) -> str:
        """Where it is, for people: a process and its machine."""

    async def tell(self, message: Message) -> None:
        """Send a message. Do nothing if the worker has ended: its end is told by `wait`."""

    def messages(self) -> AsyncIterator[Message]:
        """Yield what the worker tells, until it ends."""

    async def wait(self) -> WorkerEnd:
        """Wait for its end, and return how it came."""

    async def kill(self) -> None:
        """End it at once, without its help. What it had counted is durable."""


class Launcher(Protocol):
    """What starts workers."""

    @property
    def host(self) -> str | None:
        """This machine as workers elsewhere reach it; None if all of them are on this machine."""

    async def start(self, name: str) -> RunningWorker:
        """Start a worker, which waits for its first message. Raises BatchchatError if it cannot be started."""
