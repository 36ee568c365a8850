"""batchchat as its users run it: a process with arguments, streams and signals."""

from __future__ import annotations

import atexit
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from tests.integration.jobs import ROOT
from tests.integration.nursery import ORDER_BYTES, STATUS

COMMAND = [sys.executable, "-W", "error", "-m", "batchchat"]
"""A start from nothing, which takes a second or more."""


def environment(**extra: str) -> dict[str, str]:
    """The test's own environment without keys, proxies and colours."""
    hidden = ("_KEY", "_PROXY", "_proxy", "COLOR")
    kept = {name: value for name, value in os.environ.items() if not name.endswith(hidden)}
    return {**kept, "NO_COLOR": "1", "COLUMNS": "100", **extra}


class Process:
    """A process that the nursery forked; to be used as a `subprocess.Popen` in text mode is.

    `entry` is the function that it runs. `limits` are resource limits, `ignore` signals it starts with ignoring. For a
    `powerless` one permissions hold even as root. Standard input is empty unless `stdin` is True; then it is a pipe, as
    the other streams are.
    """

    def __init__(
        self,
        *arguments: str | Path,
        cwd: Path,
        env: Mapping[str, str] | None = None,
        entry: str = "batchchat.cli:main",
        limits: Iterable[tuple[int, int]] = (),
        ignore: Iterable[signal.Signals] = (),
        powerless: bool = False,
        stdin: bool = False,
    ) -> None:
        self.args = [str(argument) for argument in arguments]
        self.returncode: int | None = None
        order = {
            "name": "batchchat",
            "entry": entry,
            "arguments": self.args,
            "cwd": str(cwd),
            "env": environment(**(env or {})),
            "limits": list(limits),
            "ignore": list(ignore),
            "powerless": powerless,
        }
        data = json.dumps(order).encode()
        assert len(data) < ORDER_BYTES
        self._status, told = socket.socketpair()
        given, written = os.pipe() if stdin else (os.open(os.devnull, os.O_RDONLY), None)
        (out, to_out), (err, to_err) = os.pipe(), os.pipe()
        with told:
            socket.send_fds(_nursery(), [data], [given, to_out, to_err, told.fileno()])
        for theirs in (given, to_out, to_err):
            os.close(theirs)
        self.stdin: TextIO | None = os.fdopen(written, "w", encoding="utf-8") if written is not None else None
        self.stdout: TextIO = os.fdopen(out, encoding="utf-8")
        self.stderr: TextIO = os.fdopen(err, encoding="utf-8")
        self.pid = self._told(60)

    def _told(self, timeout: float) -> int:
        self._status.settimeout(timeout)
        data = self._status.recv(STATUS.size, socket.MSG_WAITALL)
        if len(data) < STATUS.size:
            raise RuntimeError("the nursery has died")
        value: int = STATUS.unpack(data)[0]
        return value

    def poll(self) -> int | None:
        """Return the exit code, a signal's number below zero; None while it runs."""
        try:
            return self.wait(0.0001)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float = 60) -> int:
        """Wait for the end. Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            try:
                self.returncode = self._told(max(timeout, 0.0001))
            except TimeoutError:
                raise subprocess.TimeoutExpired(self.args, timeout) from None
            self._status.close()
        return self.returncode

    def communicate(self, input: str | None = None, timeout: float = 60) -> tuple[str, str]:
        """Write, read everything, and wait for the end."""
        told = {"stdout": "", "stderr": ""}

        def read(name: str, stream: TextIO) -> None:
            with stream:
                told[name] = stream.read()

        readers = [
            threading.Thread(target=read, args=(name, stream), daemon=True)
            for name, stream in (("stdout", self.stdout), ("stderr", self.stderr))
        ]
        for reader in readers:
            reader.start()
        if self.stdin is not None:
            with suppress(BrokenPipeError), self.stdin:
                self.stdin.write(input or "")
        self.wait(timeout)
        for reader in readers:
            reader.join(timeout)
        return told["stdout"], told["stderr"]

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it is known to have ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)


@functools.cache
def _nursery() -> socket.socket:
    """The socket of this test process's own nursery, which is started at the first order."""
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with theirs:
        command = [sys.executable, "-W", "error", "-m", "tests.integration.nursery", str(theirs.fileno())]
        process = subprocess.Popen(command, cwd=ROOT, pass_fds=[theirs.fileno()], env=environment())

    def end() -> None:
        mine.send(b"")
        mine.close()
        process.wait(10)

    atexit.register(end)
    return mine


def start(*arguments: str | Path, cwd: Path, **options: Any) -> Process:
    """Start a command and go on. See `Process` for the options."""
    return Process(*arguments, cwd=cwd, **options)


def batchchat(
    *arguments: str | Path, cwd: Path, input: str | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    process = Process(*arguments, cwd=cwd, stdin=input is not None, **options)
    out, err = process.communicate(input)
    assert process.returncode is not None
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def wait_for(condition: Callable[[], bool], seconds: float = 45) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def children_of(pid: int) -> list[int]:
    """Return the processes that a process has started and that live."""
    found: list[int] = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += map(int, file.read_text(encoding="ascii").split())
    return found
