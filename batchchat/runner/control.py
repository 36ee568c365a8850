"""Control: what a person may tell a running job, from a signal handler, another task or another thread's callback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Ceilings:
    """The limits that a person sets on a running job; None means that the job sets none.

    Requests and tokens are per minute, `concurrency` is the number of requests under way at once.
    """

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    concurrency: int | None = None


class ControlWatcher(Protocol):
    """What a control calls, on the run's event loop. Each method returns at once and raises nothing."""

    def on_stop(self, times: int) -> None:
        """Drain what is under way if `times` is 1; end it at once if it is more."""

    def on_pause(self) -> None:
        """Launch nothing until `on_resume`."""

    def on_resume(self) -> None:
        """Go on launching."""

    def on_retune(self, ceilings: Ceilings) -> None:
        """Take other ceilings for what is launched from now on."""


class Control:
    """Steers a running job. All methods are called on the run's event loop.

    The first call of `stop` drains what is in flight, the second ends it at once. Several watchers may watch one
    control (the variants of a suite, for example). One that begins to watch late is told what came before it.
    """

    def __init__(self) -> None:
        self.asked = 0
        self.exit_code: int | None = None
        self.reason: str | None = None
        self.paused = False
        self.ceilings: Ceilings | None = None
        self._watchers: list[ControlWatcher] = []
        self._watched = False

    def stop(self, *, reason: str, exit_code: int) -> None:
        """Ask for the end. The first reason counts."""
        self.asked += 1
        if self.reason is None:
            self.reason, self.exit_code = reason, exit_code
        for watcher in tuple(self._watchers):
            watcher.on_stop(self.asked)

    def pause(self) -> None:
        """Ask to launch nothing more until `resume`. Attempts that are under way may end."""
        if not self.paused:
            self.paused = True
            for watcher in tuple(self._watchers):
                watcher.on_pause()

    def resume(self) -> None:
        """Ask to go on after `pause`."""
        if self.paused:
            self.paused = False
            for watcher in tuple(self._watchers):
                watcher.on_resume()

    def retune(self, ceilings: Ceilings) -> None:
        """Ask for other limits. They hold from now on, and take the place of the job's."""
        self.ceilings = ceilings
        for watcher in tuple(self._watchers):
            watcher.on_retune(ceilings)

    @property
    def watched(self) -> bool:
        """Return true once a run has begun that can be drained."""
        return self._watched

    @contextmanager
    def watch(self, watcher: ControlWatcher) -> Iterator[None]:
        """Call the watcher at each request until the context ends. Requests that came before are repeated to it."""
        self._watched = True
        self._watchers.append(watcher)
        try:
            if self.ceilings is not None:
                watcher.on_retune(self.ceilings)
            if self.paused:
                watcher.on_pause()
            if self.asked:
                watcher.on_stop(self.asked)
            yield
        finally:
            self._watchers.remove(watcher)


StopRequest = Control
"""The name that `Control` had while it could only stop a run."""
