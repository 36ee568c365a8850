"""From a host name to a connected socket: look-up, address by address, with what fails told in httpx's words."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from itertools import zip_longest
from typing import Any, Final

import anyio
import httpx

from batchchat.errors import StorageError
from batchchat.transport.faults import UntrustedServer, tell_sent

HEAD_START_S: Final = 0.25
"""How long an address may take before the next is tried beside it (RFC 8305, 5)."""

_ADDRESSES_KEPT_S: Final = 60.0
"""How long addresses are believed. Chosen: the usual time to live of a balanced service's name."""
_FAILURE_KEPT_S: Final = 1.0
"""How long a failed look-up is believed. Chosen: a thousand requests that fail at once ask once, retries ask again."""

Address = tuple[socket.AddressFamily, Any]
"""Address family and what `socket.connect` takes."""

Resolver = Callable[[str, int], Awaitable[Sequence[Address]]]
"""Looks up a host and port. Raises OSError (`socket.gaierror`) if there is no such name."""


async def resolve(host: str, port: int) -> list[Address]:
    """Look a name up with the system's resolver, off the event loop."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [(family, address) for family, _, _, _, address in found]


class AddressBook:
    """The addresses of one host, looked up once for all connections that are opened at about the same time."""

    def __init__(self, host: str, port: int, resolver: Resolver) -> None:
        self._host = host
        self._port = port
        self._resolver = resolver
        self._lock = anyio.Lock()
        self._known: list[Address] = []
        self._error = ""
        self._until = 0.0

    async def addresses(self) -> list[Address]:
        """Return the addresses, families alternating. Raises `httpx.ConnectError` if the name cannot be resolved."""
        if anyio.current_time() >= self._until:
            async with self._lock:
                if anyio.current_time() >= self._until:  # or the one before has just looked it up
                    await self._look_up()
        if not self._known:
            raise httpx.ConnectError(f"{self._host} cannot be resolved: {self._error}")
        return self._known

    def forget(self) -> None:
        """Look up again next time: none of the addresses answered."""
        self._until = 0.0

    async def _look_up(self) -> None:
        kept = _ADDRESSES_KEPT_S
        try:
            self._known = _alternating(await self._resolver(self._host, self._port))
            self._error = "no address"
        # UnicodeError comes from names that IDNA cannot encode.
        except (OSError, UnicodeError) as error:
            self._known, self._error = [], str(error)
        if not self._known:
            kept = _FAILURE_KEPT_S
        self._until = anyio.current_time() + kept


async def dial(addresses: Sequence[Address]) -> socket.socket:
    """Connect to the first address that answers; each gets a head start over the next.

    Raises OSError with every address's reason, `StorageError` if this process may open no further file.
    """
    if len(addresses) == 1:
        return await _connect(addresses[0])
    winner: socket.socket | None = None
    errors: dict[str, list[str]] = {}

    async def attempt(address: Address, failed: anyio.Event) -> None:
        nonlocal winner
        try:
            sock = await _connect(address)
        except OSError as error:
            errors.setdefault(_reason(error), []).append(_text(address))
            failed.set()
            return
        if winner is None:
            winner = sock
            tasks.cancel_scope.cancel()
        else:
            sock.close()

    try:
        async with anyio.create_task_group() as tasks:
            for address in addresses:
                failed = anyio.Event()
                tasks.start_soon(attempt, address, failed)
                with anyio.move_on_after(HEAD_START_S):
                    await failed.wait()
    except BaseException as error:
        if winner is not None:
            winner.close()
        if isinstance(error, BaseExceptionGroup) and (full := error.subgroup(StorageError)) is not None:
            raise full.exceptions[0] from None
        raise
    if winner is None:
        raise OSError("; ".join(f"{reason} at {' and '.join(places)}" for reason, places in errors.items()))
    return winner


def connect_error(error: OSError | EOFError, where: str) -> httpx.RequestError | StorageError:
    """Return what a failure to connect to `where` is called; the text of TLS errors is kept as it is."""
    if isinstance(error, OSError) and error.errno in {errno.EMFILE, errno.ENFILE}:
        return _too_many_files(error)
    if isinstance(error, ssl.SSLCertVerificationError):
        return tell_sent(UntrustedServer(f"TLS with {where} failed: {error}"), sent=False)
    if isinstance(error, ssl.SSLError):
        return tell_sent(httpx.ConnectError(f"TLS with {where} failed: {error}"), sent=False)
    if isinstance(error, TimeoutError):
        return tell_sent(httpx.ConnectTimeout(f"{where} does not answer"), sent=False)
    return tell_sent(httpx.ConnectError(f"cannot connect to {where}: {_reason(error)}"), sent=False)


def _reason(error: OSError | EOFError) -> str:
    """Return the system's own words for an error, such as `Connection refused`, without numbers and Python's."""
    known = isinstance(error, OSError) and not isinstance(error, socket.gaierror) and error.errno in errno.errorcode
    return os.strerror(error.errno or 0) if isinstance(error, OSError) and known else str(error)


def _text(address: Address) -> str:
    host, port = address[1][0], address[1][1]
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"


def _too_many_files(error: OSError) -> StorageError:
    return StorageError(
        f"no further connection can be opened: {error.strerror}",
        remedy="Lower limits.concurrency, or raise the number of open files (ulimit -n).",
    )


def _alternating(found: Sequence[Address]) -> list[Address]:
    """Families by turns, the preferred one first (RFC 8305, 4): a broken IPv6 then costs one head start, not many."""
    if not found:
        return []
    preferred = [address for address in found if address[0] == found[0][0]]
    other = [address for address in found if address[0] != found[0][0]]
    return [address for pair in zip_longest(preferred, other) for address in pair if address is not None]


async def _connect(address: Address) -> socket.socket:
    family, where = address
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        if error.errno in {errno.EMFILE, errno.ENFILE}:
            raise _too_many_files(error) from error
        raise
    try:
        sock.setblocking(False)
        _keep_alive(sock)
        await asyncio.get_running_loop().sock_connect(sock, where)
    except BaseException:
        sock.close()
        raise
    return sock


def _keep_alive(sock: socket.socket) -> None:
    """Probe idle connections, so that a router on the way does not forget one that waits minutes for its answer."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 30), ("TCP_KEEPCNT", 5)):
        if hasattr(socket, name):
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
