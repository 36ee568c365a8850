"""A broker: keepers of limits, and the budget of a coordinator, behind a socket."""

from __future__ import annotations

import hmac
import ipaddress
import random
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import field
from typing import TYPE_CHECKING, Any

import anyio
from anyio import current_time

from batchchat.dataclass import dataclass
from batchchat.errors import StoppedEarly, StorageError, UsageError
from batchchat.events import Event
from batchchat.limits.ceilings import Advertised
from batchchat.sharing.keeper import LimitKeeper
from batchchat.sharing.messages import answer_to_json, ask_of_json
from batchchat.sharing.protocol import LEASE_S, LOST, PROTOCOL, SILENT_S, TOKEN, LineStream, port_of, split_address

if TYPE_CHECKING:
    from anyio.abc import ByteStream

    from batchchat.budget import Budget
    from batchchat.events import Listener

_HELLO_S = 10.0
"""Seconds within which a connection must say who it is."""
_LEAVE_S = 0.02
"""Seconds until a broker that ends closes its connections. Chosen, not measured."""
_LIMITS_MAX = 10_000
"""Limits that one broker keeps. One takes 30 KB; names that are made up by the thousand are an error."""


@dataclass(slots=True)
class _Member:
    """A process that is connected: its name, the limits that it uses, and what it holds of the budget."""

    name: str
    limits: set[str] = field(default_factory=set)
    held: list[int] = field(default_factory=lambda: [0, 0, 0])


class Broker:
    """Answers processes that share limits, and a budget if a coordinator has one. Make it with `serve_broker`.

    `address` is what jobs name in `limits.shared`.
    """

    def __init__(
        self,
        address: str,
        *,
        token: str | None,
        budget: Budget | None,
        began_at: float | None,
        listener: Listener,
        rng: random.Random,
    ) -> None:
        self.address = address
        self._token = token
        self._budget = budget
        self._began_at = began_at
        self._listener = listener
        self._rng = rng
        self._keepers: dict[str, LimitKeeper] = {}
        self.members = 0

    # --- connections

    async def talk(self, stream: ByteStream) -> None:
        """Serve one process until its connection ends, and take back then what it had."""
        lines = LineStream(stream)
        member = _Member(secrets.token_hex(8))
        async with stream:
            try:
                with anyio.fail_after(_HELLO_S):
                    if not await self._welcome(lines):
                        return
                self.members += 1
                try:
                    while True:
                        with anyio.fail_after(SILENT_S):
                            message = await lines.receive()
                        await lines.send(self._answer(member, message))
                finally:
                    self.members -= 1
                    self._part(member)
            except LOST:
                pass
            except (ValueError, TypeError, KeyError) as error:
                word = f"a connection was closed: it sent what no batchchat sends ({type(error).__name__}: {error})"
                self._listener(Event("broker_refused", word[:300], "warning"))

    async def _welcome(self, lines: LineStream) -> bool:
        """Let a process in that knows the secret and speaks the same protocol."""
        hello = (await lines.receive())["hello"]
        if self._token is not None and not _equal(str(hello.get("token") or ""), self._token):
            refusal, word = "token", f"the secret ({TOKEN}) is not that of the broker"
        elif hello.get("protocol") != PROTOCOL:
            refusal, word = "protocol", f"the broker speaks protocol {PROTOCOL}, not {hello.get('protocol')!s:.20}"
        else:
            budget = self._budget
            caps = None if budget is None else [budget.max_cost, budget.max_tokens, budget.max_requests]
            await lines.send({"welcome": {"protocol": PROTOCOL, "lease_s": LEASE_S, "caps": caps}})
            return True
        self._listener(Event("broker_refused", f"a process was refused: {word}", "warning"))
        await lines.send({"refused": refusal, "message": word})
        return False

    def _part(self, member: _Member) -> None:
        now = current_time()
        for name in member.limits:
            self._keepers[name].leave(member.name, now)
        requests, tokens, money = member.held
        if self._budget is not None and requests:
            # Nobody knows what came of them: they may have been billed.
            self._budget.settle(tokens, money, used_tokens=tokens, used_money=money, counts=True, requests=requests)

    def _answer(self, member: _Member, message: dict[str, Any]) -> dict[str, Any]:
        now = current_time()
        if "limit" in message:
            name = str(message["limit"])
            keeper = self._keeper(name, Advertised(*message["advertised"]), now)
            member.limits.add(name)
            return {"answer": answer_to_json(keeper.exchange(member.name, ask_of_json(message["ask"]), now))}
        if "budget" in message:
            return {"budget": self._reserve(member, message["budget"])}
        name = str(message["leave"])
        if name in member.limits:
            member.limits.remove(name)
            self._keepers[name].leave(member.name, now)
        return {}

    def _keeper(self, name: str, advertised: Advertised, now: float) -> LimitKeeper:
        keeper = self._keepers.get(name)
        if keeper is None:
            if len(self._keepers) >= _LIMITS_MAX:
                raise ValueError(f"more than {_LIMITS_MAX:,} limits")
            keeper = self._keepers[name] = LimitKeeper(LEASE_S, advertised, self._rng)
            if self._began_at is not None:
                keeper.stand(self._began_at)
        return keeper

    # --- the budget

    def _reserve(self, member: _Member, plain: dict[str, Any]) -> dict[str, Any]:
        """Settle what a process tells of its reservations, and reserve what it wants as far as it fits."""
        budget = self._budget
        if budget is None:
            raise ValueError("there is no budget here")
        if budget.currency is None and plain["currency"] is not None:
            budget.currency = str(plain["currency"])
        for tokens, money, used_tokens, used_money, counts, requests in plain["settled"]:
            _hold(member, -requests, -tokens, -money)
            budget.settle(
                tokens, money, used_tokens=used_tokens, used_money=used_money, counts=bool(counts), requests=requests
            )
        for tokens, money, requests in plain["taken"]:
            _hold(member, requests, tokens, money)
            budget.take_over(tokens, money, requests)
        granted = 0
        with suppress(StoppedEarly):
            for tokens, money in plain["wants"]:
                if not budget.try_reserve(tokens, money):
                    break
                _hold(member, 1, tokens, money)
                granted += 1
        closed = budget.closed
        use = budget.use()
        return {
            "granted": granted,
            "closed": None if closed is None else [closed.message, closed.remedy],
            "use": {name: getattr(use, name) for name in type(use).__slots__},
        }


def _hold(member: _Member, requests: int, tokens: int, money: int) -> None:
    held = member.held
    held[0], held[1], held[2] = held[0] + requests, held[1] + tokens, held[2] + money
    if min(held) < 0:
        raise ValueError("more was given back of the budget than was taken")


def _equal(given: str, wanted: str) -> bool:
    """Compare two secrets in a time that says nothing about them."""
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), wanted.encode("utf-8", "surrogatepass"))


def _no_listener(_event: Event) -> None:
    pass


@asynccontextmanager
async def serve_broker(
    listen: str = "127.0.0.1:0",
    *,
    token: str | None = None,
    budget: Budget | None = None,
    stands: bool = False,
    listener: Listener = _no_listener,
) -> AsyncIterator[Broker]:
    """Serve a broker on this event loop, as long as the context is entered.

    Arguments:
        listen: HOST:PORT (port 0 takes a free one) or unix:/PATH.
        token: the secret that processes must send; None lets everybody in that can connect.
        budget: what the processes may spend together.
        stands: grant nothing as long as permits of an earlier broker may still be used. So it must be if one may have
            run here a moment ago.
        listener: takes `broker_refused`.

    Yields the broker; its `address` has the real port.

    Raises UsageError if others than this machine could connect without a secret, StorageError if the address is taken.
    """
    began = current_time() if stands else None
    server = await _listener_on(listen, token)
    address = listen if listen.startswith("unix:") else f"{listen.rpartition(':')[0]}:{port_of(server)}"
    broker = Broker(
        address,
        token=token,
        budget=budget,
        began_at=began,
        listener=listener,
        rng=random.Random(),  # noqa: S311 - spreads waits
    )
    async with server, anyio.create_task_group() as group:
        group.start_soon(server.serve, broker.talk)
        try:
            yield broker
        finally:
            # Those that have just left are seen to leave: a wait that is cancelled as its connection ends is an error
            # to the event loop, which logs it.
            with anyio.CancelScope(shield=True):
                await anyio.sleep(_LEAVE_S)
            group.cancel_scope.cancel()


async def _listener_on(listen: str, token: str | None) -> Any:
    """Listen on an address. Raises UsageError and StorageError as `serve_broker`."""
    if listen.startswith("unix:"):
        path = listen.removeprefix("unix:")
        await anyio.Path(path).unlink(missing_ok=True)  # one that an earlier broker left
        make: Callable[[], Any] = lambda: anyio.create_unix_listener(path, mode=0o600)  # noqa: E731 - one of two
    else:
        try:
            host, port = split_address(listen)
        except ValueError as error:
            raise UsageError(f"--listen: {error}") from None
        if not token and not _is_loopback(host):
            raise UsageError(
                f"a broker on {host} can be reached from other machines, and so needs a secret",
                remedy=f"Set the same long random {TOKEN} here and where the runs are.",
            )
        make = lambda: anyio.create_tcp_listener(local_host=host, local_port=port)  # noqa: E731
    try:
        return await make()
    except OSError as error:
        raise StorageError(
            f"the broker cannot listen on {listen}: {error.strerror or error}", remedy="Choose another with --listen."
        ) from None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
