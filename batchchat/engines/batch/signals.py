"""Whether the engine goes on, and what wakes those that wait in it."""

from __future__ import annotations

import anyio

from batchchat.engines.batch.creation import RunEnds


class RunSignals:
    """The state of one run that all parts of the engine look at: `draining` is for good, `paused` until a resume."""

    def __init__(self) -> None:
        self.draining = False
        self.paused = False
        self._changed = anyio.Event()

    def wake(self) -> None:
        """Wake all that wait: something has changed."""
        self._changed.set()
        self._changed = anyio.Event()

    async def change(self, seconds: float | None = None) -> None:
        """Wait until something has changed, for so many seconds at most."""
        with anyio.move_on_after(seconds) if seconds is not None else anyio.CancelScope():
            await self._changed.wait()

    async def rest(self, seconds: float) -> None:
        """Wait for so many seconds. Raises RunEnds if the run is to end before."""
        ends = anyio.current_time() + seconds
        while not self.draining and anyio.current_time() < ends:
            await self.change(ends - anyio.current_time())
        if self.draining:
            raise RunEnds
