"""Workers as processes of this machine: messages are lines on their standard input and output."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import suppress

import anyio
import orjson
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream

from batchchat.errors import StorageError
from batchchat.workers.messages import Message
from batchchat.workers.port import WorkerEnd

_LINE_BYTES = 64 * 2**20
"""The longest message: a job with a large schema, or its summary, is far below it."""
_LAST_WORDS = 4_000


class LocalProcesses:
    """Starts workers as processes of this machine."""

    host: str | None = None

    def __init__(self, command: tuple[str, ...] = (sys.executable, "-m", "batchchat", "worker")) -> None:
        self._command = command

    async def start(self, name: str) -> LocalProcess:
        """Start a worker. Raises StorageError if the machine refuses a process."""
        try:
            # A session of its own: Ctrl-C at the terminal is for the coordinator, which tells the workers.
            process = await anyio.open_process(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            raise StorageError(
                f"worker {name} cannot be started: {error.strerror}", remedy="Start fewer workers, or end other work."
            ) from error
        return LocalProcess(process)


class LocalProcess:
    """A worker in a process of this machine."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._telling = anyio.Lock()
        self._last_words = b""

    @property
    def place(self) -> str:
        """Which process it is."""
        return f"pid {self._process.pid}"

    async def tell(self, message: Message) -> None:
        """Write a line to its standard input."""
        stdin = self._process.stdin
        if stdin is None:
            return
        with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
            async with self._telling:
                await stdin.send(orjson.dumps(message) + b"\n")

    async def messages(self) -> AsyncIterator[Message]:
        """Yield the lines of its standard output; keep the last of its error output meanwhile."""
        stdout = self._process.stdout
        if stdout is None:
            return
        lines = BufferedByteReceiveStream(stdout)
        async with anyio.create_task_group() as group:
            group.start_soon(self._keep_last_words)
            while True:
                try:
                    line = await lines.receive_until(b"\n", _LINE_BYTES)
                except (anyio.EndOfStream, anyio.IncompleteRead, anyio.BrokenResourceError):
                    break  # a line without its end is what a killed worker leaves
                yield orjson.loads(line)

    async def _keep_last_words(self) -> None:
        stderr = self._process.stderr
        if stderr is None:
            return
        with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
            while True:
                self._last_words = (self._last_words + await stderr.receive())[-_LAST_WORDS:]

    async def wait(self) -> WorkerEnd:
        """Wait for the end of the process."""
        code = await self._process.wait()
        if code == 0:
            return WorkerEnd(clean=True)
        lines = self._last_words.decode("utf-8", "replace").strip().splitlines()
        said = f": {lines[-1]}" if lines else ""
        if code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
            memory = ", as the system does if memory runs out" if -code == signal.SIGKILL else ""
            return WorkerEnd(clean=False, reason=f"killed by {name}{memory}{said}")
        return WorkerEnd(clean=False, reason=f"ended with exit code {code}{said}")

    async def kill(self) -> None:
        """Send SIGKILL, which also ends a process that is stopped."""
        with suppress(ProcessLookupError):
            self._process.kill()
        await self._process.aclose()
