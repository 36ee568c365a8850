"""Asking a run to stop, from a signal handler, another task or another thread's callback."""

from __future__ import annotations

from collections.abc import Callable


class StopRequest:
    """The way to end a run early. The first call of `stop` drains what is in flight, the second ends it at once."""

    def __init__(self) -> None:
        self.asked = 0
        self.exit_code: int | None = None
        self.reason: str | None = None
        self._on_stop: Callable[[int], None] | None = None

    def stop(self, *, reason: str, exit_code: int) -> None:
        """Ask for the end, on the run's event loop. The first reason counts."""
        self.asked += 1
        if self.reason is None:
            self.reason, self.exit_code = reason, exit_code
        if self._on_stop is not None:
            self._on_stop(self.asked)

    @property
    def watched(self) -> bool:
        """Whether a run has begun that can be drained."""
        return self._on_stop is not None

    def watch(self, on_stop: Callable[[int], None]) -> None:
        """Call `on_stop(times asked)` at each call of `stop`, also for one that came before."""
        self._on_stop = on_stop
        if self.asked:
            on_stop(self.asked)
