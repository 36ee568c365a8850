"""The budget of a worker whose coordinator holds the real one."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio

from batchchat.budget import Budget, CapValues
from batchchat.errors import BatchchatError, StoppedEarly, UsageError
from batchchat.events import BudgetUse
from batchchat.sharing.messages import Reconnected

if TYPE_CHECKING:
    from batchchat.sharing.link import Link

_INTERVAL_S = 0.005
"""Seconds between two messages at least: requests that come together are reserved together."""
_LOOK_S = 0.05
"""Seconds until another try of what did not fit beside what others have under way."""
_MOST_WANTS = 256


class _Reservation:
    __slots__ = ("event", "granted", "money", "tokens")

    def __init__(self, tokens: int, money: int) -> None:
        self.tokens = tokens
        self.money = money
        self.granted = False
        self.event = anyio.Event()


class SharedBudget(Budget):
    """A budget that several workers are kept under together. It is used as a `Budget` is, while `kept` is entered.

    Each reservation is made at the broker, so that nothing is launched that does not fit. What a worker holds counts as
    spent if the worker dies. So it does if the connection is lost: what the requests under way really took is then
    counted once more, never less than it is.

    Arguments:
        link: the way to the broker. Its `caps` must be there.
    """

    def __init__(self, link: Link) -> None:
        assert link.caps is not None  # noqa: S101 - asked by the maker
        max_cost, max_tokens, max_requests = link.caps
        super().__init__(max_cost=max_cost, max_tokens=max_tokens, max_requests=max_requests)
        self._link = link
        self._connection = link.connections
        self._line: deque[_Reservation] = deque()
        self._settled: list[tuple[int, int, int, int, bool, int]] = []
        self._taken: list[tuple[int, int, int]] = []
        self._mine = (0, 0, 0)
        self._use: BudgetUse | None = None
        self._wake = anyio.Event()

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[SharedBudget]:
        """Reserve and settle at the broker as long as this is entered."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._keep_asking)
            try:
                yield self
            finally:
                group.cancel_scope.cancel()
                # What was settled last is told too, or it would count as it was reserved.
                with anyio.move_on_after(2, shield=True):
                    await self._tell_rest()

    async def _tell_rest(self) -> None:
        while self._settled:
            try:
                await self._ask()
            except Reconnected:
                self._reconnected()
            except BatchchatError:
                return

    async def _keep_asking(self) -> None:
        while True:
            if not (self._line or self._settled or self._taken):
                await self._wake.wait()
            self._wake = anyio.Event()
            try:
                granted_all = await self._ask()
            except Reconnected:
                self._reconnected()
                continue
            except BatchchatError as error:
                self._close(StoppedEarly(error.message, remedy=error.remedy))
                return
            with anyio.move_on_after(_INTERVAL_S if granted_all else _LOOK_S):
                await (self._wake.wait() if not granted_all else anyio.sleep(_INTERVAL_S))

    async def _ask(self) -> bool:
        """Tell the broker what there is to tell; return whether all that was wanted is reserved."""
        settled, self._settled = self._settled, []
        taken, self._taken = self._taken, []
        wants = [one for one in self._line if not one.granted][:_MOST_WANTS]
        answer = await self._link.request(
            {
                "budget": {
                    "currency": self.currency,
                    "wants": [(one.tokens, one.money) for one in wants],
                    "settled": settled,
                    "taken": taken,
                }
            },
            self._connection,
        )
        plain: dict[str, Any] = answer["budget"]
        self._use = BudgetUse(**plain["use"])
        for one in wants[: plain["granted"]]:
            self._note(1, one.tokens, one.money)
            one.granted = True
            one.event.set()
            if one not in self._line:
                self.settle(one.tokens, one.money, used_tokens=0, used_money=0, counts=False)  # its wait was cancelled
        if plain["closed"] is not None:
            message, remedy = plain["closed"]
            self._close(StoppedEarly(message, remedy=remedy))
            return True
        return int(plain["granted"]) == len(wants)

    def _reconnected(self) -> None:
        """Reserve again what this worker has under way: the broker took it for dead."""
        self._connection = self._link.connections
        # What was settled since is no reservation any more: the broker has counted it as spent, and takes nothing back.
        self._settled.clear()
        self._taken = [(self._mine[1], self._mine[2], self._mine[0])] if self._mine[0] else []

    def _close(self, why: StoppedEarly) -> None:
        self.closed = why
        for one in self._line:
            one.event.set()

    def _note(self, requests: int, tokens: int, money: int) -> None:
        mine = self._mine
        self._mine = (mine[0] + requests, mine[1] + tokens, mine[2] + money)

    # --- as a budget

    def try_reserve(self, tokens: int, money: int = 0) -> bool:
        """Return False: the broker has to be asked. Raises StoppedEarly if the budget is used up."""
        if self.closed is not None:
            raise StoppedEarly(self.closed.message, remedy=self.closed.remedy)
        return False

    async def reserve(self, tokens: int, money: int = 0) -> None:
        """Wait until the request fits beside those of all workers. Raises StoppedEarly if it never will."""
        self.try_reserve(tokens, money)
        one = _Reservation(tokens, money)
        self._line.append(one)
        self._wake.set()
        try:
            await one.event.wait()
        except BaseException:
            if one.granted:
                self.settle(tokens, money, used_tokens=0, used_money=0, counts=False)
            raise
        finally:
            self._line.remove(one)
        if not one.granted:
            self.try_reserve(tokens, money)

    def take_over(self, tokens: int, money: int, requests: int) -> None:
        """Reserve requests that an earlier run launched: nothing can stop them any more."""
        self._note(requests, tokens, money)
        self._taken.append((tokens, money, requests))
        self._wake.set()

    def settle(
        self, tokens: int, money: int, *, used_tokens: int, used_money: int, counts: bool, requests: int = 1
    ) -> None:
        """Give a reservation back, and count what the requests really took; see `Budget`."""
        self._note(-requests, -tokens, -money)
        self._settled.append((tokens, money, used_tokens, used_money, counts, requests))
        self._wake.set()

    def use(self) -> BudgetUse:
        """Return the caps, and what all workers have spent and reserved, as the broker said last."""
        return super().use() if self._use is None else self._use

    def change(self, caps: CapValues) -> None:
        """Take no other caps: they are the coordinator's. Raises UsageError."""
        raise UsageError(
            "the budget of a worker is that of its coordinator", remedy="Change the caps of the run that started it."
        )
