"""When a process asks the keeper of a shared limit, and over which way."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Protocol

import anyio
from anyio import current_time

from batchchat.errors import BatchchatError
from batchchat.sharing.messages import KeeperAnswer, KeeperAsk, Reconnected


class Carrier(Protocol):
    """The way to a keeper."""

    @property
    def lease_s(self) -> float:
        """How long a permit may be used, in seconds from the moment at which the ask began."""

    @property
    def connection(self) -> int:
        """The number of the way to the keeper: another one after a loss, behind which may be another keeper."""

    @property
    def interval_s(self) -> float:
        """The least time between two asks, in seconds."""

    async def open(self) -> None:
        """Begin to use the limit. Raises BatchchatError if that cannot be."""

    async def exchange(self, ask: KeeperAsk) -> KeeperAnswer:
        """Ask the keeper. Raises Reconnected if that failed and may go now, BatchchatError if it never will."""

    async def close(self) -> None:
        """Leave the limit."""


class AskLoop:
    """Asks the keeper, as long as it is entered, as often as there is something to say and `Carrier.interval_s` allows.

    Arguments:
        carrier: the way to the keeper.
        ask: says everything there is to say. May raise as `Carrier.exchange` does.
        due: returns when to ask if nothing hurries, from the time now.
        lose: takes the error after which nothing is asked any more; None if the loop begins anew.
    """

    def __init__(
        self,
        carrier: Carrier,
        *,
        ask: Callable[[], Awaitable[None]],
        due: Callable[[float], float],
        lose: Callable[[BatchchatError | None], None],
    ) -> None:
        self.urgent = False
        """Whether the next ask does not wait until it is due."""
        self._carrier = carrier
        self._ask = ask
        self._due = due
        self._lose = lose
        self._wake_up = anyio.Event()
        self._users = 0
        self._asking = anyio.Lock()

    @asynccontextmanager
    async def entered(self) -> AsyncIterator[None]:
        """Keep asking as long as this is entered. Raises BatchchatError if the limit cannot be used."""
        if not self._users:
            self._lose(None)
            await self._carrier.open()
        self._users += 1
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._keep_asking)
                try:
                    yield
                finally:
                    group.cancel_scope.cancel()
        finally:
            self._users -= 1
            if not self._users:
                with anyio.CancelScope(shield=True):
                    await self._carrier.close()

    def ask_soon(self) -> None:
        """Look again at once whether an ask is due."""
        self._wake_up.set()

    def ask_at_once(self) -> None:
        """Ask now, due or not."""
        self.urgent = True
        self._wake_up.set()

    async def _keep_asking(self) -> None:
        """Ask whenever there is something to say. One of those that entered does it, in the place of all."""
        async with self._asking:
            while True:
                now = current_time()
                at = self._due(now)
                if not self.urgent and at > now:
                    with anyio.move_on_after(at - now):
                        await self._wake_up.wait()
                self._wake_up = anyio.Event()
                self.urgent = False
                try:
                    await self._ask()
                except Reconnected:
                    continue
                except BatchchatError as error:
                    self._lose(error)  # who watches the limiter ends the run; who waits for a permit goes on waiting
                    return
                await anyio.sleep(self._carrier.interval_s)
