"""The process of a worker on a Ray node. It imports nothing of Ray: Ray makes an actor of the class.

The worker has a thread with an event loop of its own, so that calls of the coordinator are answered meanwhile.
"""

from __future__ import annotations

import os
import queue
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from batchchat import __version__
from batchchat.workers.messages import Message
from batchchat.workers.ray_setting import Problem, problem_with

_HEAR_S = 5.0
"""Seconds that a call of `hear` waits for something to tell."""
_ALONE_S = 60.0
"""Seconds without a call after which the coordinator counts as dead. A head of a cluster that is lost is such a case:
Ray itself ends the actors only after a minute."""


def look_around(probe: Mapping[str, Any], version: str) -> Problem | None:
    """Return why a worker cannot run on this node, and the remedy; None if it can."""
    if version != __version__:
        return (
            f"it has batchchat {__version__}, and the coordinator has {version}",
            "Install the same version on all nodes.",
        )
    return problem_with(probe)


class WorkerActor:
    """A worker that is driven by calls: `begin` once, then `tell` and `hear`, each after the last one has returned."""

    def __init__(self) -> None:
        self._told: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        # One place: the worker sends the next message when this one was taken, and newer counts replace older ones.
        self._said: queue.Queue[bytes] = queue.Queue(1)
        self._heard_at = time.monotonic()
        self._code: int | None = None
        self._reason = ""

    def begin(self, probe: Mapping[str, Any], version: str, environ: Mapping[str, str]) -> dict[str, Any]:
        """Look around, and start the worker if it can run here. Return its process, and the problem if there is one."""
        problem = look_around(probe, version)
        if problem is None:
            os.environ.update(environ)
            self._heard_at = time.monotonic()
            threading.Thread(target=self._work, name="worker", daemon=True).start()
        return {"problem": problem, "pid": os.getpid()}

    def tell(self, message: bytes) -> None:
        """Take a message of the coordinator."""
        self._told.put(message)

    def hear(self) -> tuple[list[bytes], int | None, str]:
        """Wait for messages of the worker, and return them. When it has ended: its exit code, and why it died."""
        self._heard_at = time.monotonic()
        ends = self._heard_at + _HEAR_S
        while time.monotonic() < ends:
            # The order counts: what was said before the end was noted is in the queue now.
            code = self._code
            try:
                first = self._said.get(timeout=0 if code is not None else 0.1)
            except queue.Empty:
                if code is not None:
                    return [], code, self._reason
                continue
            return [first], None, ""
        return [], None, ""

    def _work(self) -> None:
        """Be a worker until it ends; note how it ended."""
        import anyio

        from batchchat.transport import allow_many_files

        try:
            allow_many_files()
            code = anyio.run(self._main, backend_options=_loop_options())
            self._reason = "" if code == 0 else f"ended with exit code {code}"
        except BaseException as error:  # noqa: BLE001 - whatever it was, the coordinator must learn of it
            # The text of an unknown error may hold a key: the place tells enough.
            last = traceback.extract_tb(error.__traceback__)[-1]
            self._reason = f"{type(error).__name__} in {Path(last.filename).name}, line {last.lineno}"
            code = 70
        self._code = code

    async def _main(self) -> int:
        from batchchat.workers.worker import work

        return await work(self._receive, self._send)

    async def _receive(self) -> Message | None:
        from anyio import to_thread

        data = await to_thread.run_sync(self._next, abandon_on_cancel=True)
        return None if data is None else orjson.loads(data)

    def _next(self) -> bytes | None:
        """Wait for the next message; return None if nobody has called for a long time."""
        while time.monotonic() - self._heard_at < _ALONE_S:
            try:
                return self._told.get(timeout=1.0)
            except queue.Empty:
                continue
        return None

    async def _send(self, message: Message) -> None:
        from anyio import to_thread

        data = orjson.dumps(message, option=orjson.OPT_PASSTHROUGH_SUBCLASS, default=str)
        await to_thread.run_sync(self._said.put, data, abandon_on_cancel=True)


def _loop_options() -> dict[str, Any]:
    """Return anyio's options for the fastest event loop there is."""
    try:
        import uvloop  # noqa: F401 - only to see whether it is there
    except ImportError:
        return {}
    return {"use_uvloop": True}
