"""Epoch seconds that follow anyio's clock, so that batches also age on a virtual clock."""

from __future__ import annotations

import time

import anyio


class EpochClock:
    """Tells the time in seconds since the epoch; it never goes back.

    Inside an event loop it follows anyio's clock. Outside of one (a worker thread, a test that looks at counts) it goes
    on at the machine's own pace from the last time that an event loop was told.
    """

    def __init__(self) -> None:
        self._epoch = self._latest = time.time()
        self._machine = time.monotonic()
        self._loop: float | None = None

    def now(self) -> float:
        """Return the seconds since the epoch."""
        try:
            loop_time = anyio.current_time()
        except RuntimeError:  # no event loop in this thread
            now = self._epoch + (time.monotonic() - self._machine)
        else:
            now = time.time() if self._loop is None else self._epoch + max(0.0, loop_time - self._loop)
            self._epoch, self._loop, self._machine = now, loop_time, time.monotonic()
        # A loop's clock may lag behind the machine's, a virtual one stands still while threads work.
        self._latest = max(self._latest, now)
        return self._latest
