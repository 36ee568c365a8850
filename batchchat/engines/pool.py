"""The pool of senders: tasks that each send one request at a time, and everything that waits.

There are as many senders as the limiter's window is wide. One that has nothing to do waits in a seat, and gets its
request before it is woken. Every wait that a stop must end is known here: `drain` wakes each of them, so that each task
can return.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
from anyio.abc import TaskGroup

from batchchat.endpoints.traffic import Traffic
from batchchat.engines.port import halted
from batchchat.engines.supply import Supply
from batchchat.errors import BatchchatError
from batchchat.events import Listener
from batchchat.records import Request

_LONG_S = 3600.0
"""How long to sleep if nothing is delayed. An alarm ends the sleep; it has no meaning of its own."""


class _Seat:
    """Where a sender waits. `request` is what it is woken for, None if there is no more work."""

    __slots__ = ("event", "request")

    def __init__(self) -> None:
        self.event = anyio.Event()
        self.request: Request | None = None


class SenderPool:
    """Starts senders, gives them requests of the supply, and ends their waits.

    `halt` is the first reason to take no more work, if there is one. `draining` is true once no more work is taken,
    for a reason or because somebody asked; `paused` while nothing is to be launched.
    """

    def __init__(self, supply: Supply, traffic: Traffic, listener: Listener) -> None:
        self.halt: BatchchatError | None = None
        self.draining = False
        self.paused = False
        self.senders = 0
        self._supply = supply
        self._traffic = traffic
        self._listener = listener
        self._parked: list[_Seat] = []
        self._waits: set[anyio.CancelScope] = set()
        self._alarm: anyio.CancelScope | None = None
        self._group: TaskGroup | None = None
        self._work: Callable[[], Coroutine[Any, Any, None]] | None = None

    # --- begin and end

    def open(self, group: TaskGroup, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Start senders in this group from now on. A sender runs `work` and calls `left` when it ends."""
        self._group, self._work = group, work

    def close(self) -> None:
        """Start no more senders."""
        self._group = self._work = None

    def drain(self) -> None:
        """Take no more work, and end all waits."""
        if not self.draining:
            self.draining = True
            self.wake_for_end()

    def halt_for(self, error: BatchchatError) -> None:
        """Take no more work for this reason; the first one is kept."""
        if self.halt is None:
            self.halt = error
            self._listener(halted(error))
        self.drain()

    def wake_for_end(self) -> None:
        """Wake every task that waits, once there is nothing left to do, so that each can return."""
        # Several call this whenever something ends: only the last of them finds nothing left.
        if self.draining or self._supply.exhausted:
            for scope in list(self._waits):
                scope.cancel()
            while self._parked:
                self._parked.pop().event.set()
            self._supply.read_on()
            self.wake_delayed()

    # --- senders

    def staff(self) -> None:
        """Give what is ready to senders that wait, or start some, no more of them than the window is wide.

        Each gets its request before it is woken, so that no sender wakes without work. The sender that waits
        shortest is taken first: its data are most likely still in the processor's cache.
        """
        while self._parked and (request := self.next()) is not None:
            seat = self._parked.pop()
            seat.request = request
            seat.event.set()
        wanted = self._supply.startable
        while wanted > 0 and self.senders < self._traffic.window and not self.draining:
            if self._group is None or self._work is None:
                return  # the run has ended, or not begun
            self.senders += 1
            self._group.start_soon(self._work)
            wanted -= 1

    def staff_if_open(self) -> None:
        """Do as `staff`, if a run has begun."""
        if self._group is not None:
            self.staff()

    def left(self) -> None:
        """Count a sender out."""
        self.senders -= 1
        self.wake_for_end()

    async def take(self) -> Request | None:
        """Wait for the next request and return it, counted as in hand. Return None at the end."""
        request: Request | None = None
        while not self.draining:
            if request is None:
                request = self.next()
            if request is not None or self._supply.exhausted:
                return request
            seat = _Seat()
            self._parked.append(seat)
            await seat.event.wait()
            request = seat.request
        # A seat was given a request in the same turn of the loop in which the run was stopped.
        if request is not None:
            self.put_down(len(request.body))  # it stays open
        return None

    def put_down(self, nbytes: int) -> None:
        """Count a request of this size out that a sender had, and wake others if it was too large for them to begin."""
        if self._supply.put_down(nbytes) and self._group is not None and not self.draining:
            self.staff()

    def next(self) -> Request | None:
        """Take the next request in hand. Return None if there is none now, or none is to be begun."""
        return None if self.paused or self.draining else self._supply.take()

    # --- waits

    @contextmanager
    def wait(self) -> Iterator[None]:
        """Let `drain`, or the end of all work, cut short what is awaited inside."""
        with anyio.CancelScope() as scope:
            self._waits.add(scope)
            try:
                yield
            finally:
                self._waits.discard(scope)

    async def idle(self, wait: Callable[[], Awaitable[None]]) -> None:
        """Wait for something that `drain` ends."""
        if not self.draining:
            with self.wait():
                await wait()

    async def ring(self) -> None:
        """Hand over delayed requests as they come due; sleep until the next one, or until an earlier one is put in."""
        while not (self.draining or self._supply.exhausted):
            now = anyio.current_time()
            self._supply.collect_due(now)
            self.staff()
            due = self._supply.next_due
            with anyio.CancelScope() as self._alarm:
                await anyio.sleep(due - now if due is not None else _LONG_S)
        self._alarm = None

    def wake_delayed(self) -> None:
        """Look at once which delayed request comes due first: an earlier one was put in."""
        if self._alarm is not None:
            self._alarm.cancel()
