"""How a process and a broker talk: one JSON object a line, each answered in turn.

    process  {"hello": {"protocol": 2, "token": "…"}}
    broker   {"welcome": {"protocol": 2, "lease_s": 1.0, "caps": [null, null, null] or null}}
             or {"refused": "token" | "protocol", "message": "…"}, and the connection is closed
    process  {"limit": NAME, "advertised": […], "ask": {…}}     broker  {"answer": {…}}
    process  {"leave": NAME}                                    broker  {}
    process  {"budget": {…}}                                    broker  {"budget": {…}}

A process that says nothing for `SILENT_S`, or whose connection is closed, is taken for dead: its slots come back, and
what it had reserved of a budget counts as spent.
"""

from __future__ import annotations

import json
import re
from typing import Any

import anyio
from anyio.abc import ByteStream, SocketAttribute
from anyio.streams.buffered import BufferedByteReceiveStream

PROTOCOL = 2
LEASE_S = 1.0
"""How long a permit may be used, from the moment at which its process began to ask. The way to a broker in the same
region takes milliseconds, a stalled event loop tenths of a second. The pace pays 1.6 % for it."""
SILENT_S = 15.0
"""A process asks at least once a second."""
LINE_MAX = 1 << 20
"""Bytes of a line. The longest ask names 256 requests and what came of 512: 63 KB, measured; if all of these failed,
each with a message, 100 KB more."""
TOKEN = "BATCHCHAT_BROKER_TOKEN"  # noqa: S105 - the name of a variable
"""The environment variable that holds the secret of a broker."""
_ADDRESS = re.compile(r"\[?(?P<host>[^\[\]]+)\]?:(?P<port>[0-9]{1,5})", re.ASCII)
LOST = (OSError, EOFError, anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, TimeoutError)
"""What is raised when a connection ends."""


class LineStream:
    """A connection that carries JSON objects, one a line. Its methods raise what `LOST` names when it ends."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._buffer = BufferedByteReceiveStream(stream)

    async def send(self, message: dict[str, Any]) -> None:
        """Send one object."""
        await self._stream.send(json.dumps(message, separators=(",", ":")).encode() + b"\n")

    async def receive(self) -> dict[str, Any]:
        """Return the next object. Raises ValueError if what came is none, or is too long."""
        try:
            line = await self._buffer.receive_until(b"\n", LINE_MAX)
        except anyio.IncompleteRead:
            raise anyio.EndOfStream from None
        except anyio.DelimiterNotFound:
            raise ValueError(f"a line of more than {LINE_MAX:,} bytes") from None
        message = json.loads(line)
        if not isinstance(message, dict):
            raise ValueError("a line that is no object")
        return message

    async def close(self) -> None:
        """Close the connection without waiting."""
        await anyio.aclose_forcefully(self._stream)


def split_address(address: str) -> tuple[str, int]:
    """Return host and port. Raises ValueError if the address has none."""
    found = _ADDRESS.fullmatch(address)
    if found is None or int(found["port"]) > 65_535:
        raise ValueError(f"{address} is no address such as 127.0.0.1:7077")
    return found["host"], int(found["port"])


def port_of(listener: Any) -> int:
    """Return the port that a listener has."""
    return int(listener.extra(SocketAttribute.local_port))  # noqa: S610 - of anyio
