"""The way of a process to a broker: one connection for all its limits and the budget, made again when it is lost."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
from anyio import current_time

from batchchat.errors import ProviderUnavailable, UsageError
from batchchat.job.values import write_duration
from batchchat.limits.ceilings import Advertised
from batchchat.sharing.budget import SharedBudget
from batchchat.sharing.messages import KeeperAnswer, KeeperAsk, Reconnected, answer_of_json, ask_to_json
from batchchat.sharing.protocol import LOST, PROTOCOL, TOKEN, LineStream, split_address

__all__ = ["TOKEN", "Link", "connect"]

_ANSWER_S = 5.0
"""A broker that has not answered after so many seconds is taken to be gone; it answers within milliseconds."""
_AGAIN_S = (0.1, 2.0)
"""Seconds between two tries to connect: at first, and at most."""


class Link:
    """A connection to a broker. Make it with `connect`.

    Arguments:
        address: of the broker.
        token: its secret.
        outage_s: how long a broker that is away is waited for, in seconds.
    """

    def __init__(self, address: str, token: str | None, outage_s: float) -> None:
        self.address = address
        self.caps: tuple[float | None, int | None, int | None] | None = None
        self.lease_s = 0.0
        self.connections = 0
        self._token = token
        self._outage_s = outage_s
        self._lines: LineStream | None = None
        self._turn = anyio.Lock()

    def limit(self, name: str, advertised: Advertised) -> BrokerLimit:
        """Return the way to one limit."""
        return BrokerLimit(self, name, advertised)

    @asynccontextmanager
    async def budget(self) -> AsyncIterator[SharedBudget | None]:
        """Give the coordinator's budget, as long as this is entered; None if it has none."""
        if self.caps is None:
            yield None
            return
        async with SharedBudget(self).kept() as budget:
            yield budget

    async def request(self, message: dict[str, Any], connection: int) -> dict[str, Any]:
        """Send a message and return its answer.

        Arguments:
            message: what to send.
            connection: the number of the connection that it is meant for, as `connections` told it.

        Raises Reconnected if that connection was lost and there is a new one, ProviderUnavailable if the broker did not
        come back, UsageError if it refuses this process.
        """
        async with self._turn:
            if connection != self.connections:
                # Another user of this link has noticed the loss. What the broker knew of this one is gone as well.
                raise Reconnected
            lines, whole = self._lines, False
            if lines is not None:
                try:
                    with anyio.fail_after(_ANSWER_S):
                        await lines.send(message)
                        answer = await lines.receive()
                    whole = True
                    return answer
                except (*LOST, ValueError):
                    pass
                finally:
                    # Also if this wait is cancelled: the answer that still comes would be taken for the next one's.
                    if not whole:
                        self._lines = None
                        await lines.close()
            await self.open()
            raise Reconnected

    async def open(self) -> None:
        """Connect, and wait for a broker that is away. Raises as `request` does."""
        since, pause = current_time(), _AGAIN_S[0]
        while True:
            try:
                with anyio.fail_after(_ANSWER_S):
                    self._lines = LineStream(await self._dial())
                    await self._lines.send({"hello": {"protocol": PROTOCOL, "token": self._token}})
                    self._take(await self._lines.receive())
                    return
            except (*LOST, ValueError, KeyError) as error:
                await self.close()
                if current_time() - since >= self._outage_s:
                    raise ProviderUnavailable(
                        f"the broker at {self.address} cannot be reached, for {write_duration(self._outage_s)} now "
                        f"({str(error) or type(error).__name__})",
                        remedy="Start it again, and run the same command again: it goes on where it stopped.",
                    ) from None
            await anyio.sleep(pause)
            pause = min(2 * pause, _AGAIN_S[1])

    async def _dial(self) -> anyio.abc.ByteStream:
        if self.address.startswith("unix:"):
            return await anyio.connect_unix(self.address.removeprefix("unix:"))
        host, port = split_address(self.address)
        return await anyio.connect_tcp(host, port)

    def _take(self, answer: dict[str, Any]) -> None:
        """Read the broker's first words. Raises UsageError if it refuses this process."""
        if "refused" in answer:
            what = answer["refused"]
            raise UsageError(
                f"limits.shared: the broker at {self.address} refused this run: {answer.get('message')!s:.200}",
                remedy=f"Set {TOKEN} to the broker's own."
                if what == "token"
                else "Run the broker and all runs with the same version of batchchat.",
            )
        welcome = answer["welcome"]
        self.lease_s = float(welcome["lease_s"])
        self.caps = None if welcome["caps"] is None else tuple(welcome["caps"])
        self.connections += 1

    async def close(self) -> None:
        """Close the connection."""
        lines, self._lines = self._lines, None
        if lines is not None:
            await lines.close()


class BrokerLimit:
    """The way to one limit that a broker keeps: a `Carrier`."""

    interval_s = 0.02
    """Seconds between two asks at least: 64 processes make 3,200 small messages a second then, and seldom do."""

    def __init__(self, link: Link, name: str, advertised: Advertised) -> None:
        self.connection = link.connections
        self._link = link
        self._name = name
        self._advertised = advertised

    @property
    def lease_s(self) -> float:
        """How long a permit may be used, as the broker says."""
        return self._link.lease_s

    async def open(self) -> None:
        """Begin to use the limit: the first ask does."""
        self.connection = self._link.connections

    async def exchange(self, ask: KeeperAsk) -> KeeperAnswer:
        """Ask the broker. Raises as `Link.request` does."""
        message = {"limit": self._name, "advertised": self._advertised, "ask": ask_to_json(ask)}
        try:
            answer = await self._link.request(message, self.connection)
        except Reconnected:
            self.connection = self._link.connections
            raise
        return answer_of_json(answer["answer"])

    async def close(self) -> None:
        """Leave the limit. A connection that is lost leaves it as well."""
        with suppress(Reconnected, ProviderUnavailable, UsageError), anyio.move_on_after(1, shield=True):
            await self._link.request({"leave": self._name}, self.connection)


@asynccontextmanager
async def connect(address: str, *, token: str | None = None, outage_s: float = 600.0) -> AsyncIterator[Link]:
    """Connect to a broker, as long as the context is entered.

    Arguments:
        address: HOST:PORT or unix:/PATH.
        token: the broker's secret.
        outage_s: how long a broker that is away is waited for, in seconds.

    Raises ProviderUnavailable if it cannot be reached, UsageError if it refuses this process.
    """
    link = Link(address, token, outage_s)
    try:
        await link.open()
        yield link
    finally:
        with anyio.CancelScope(shield=True):
            await link.close()
