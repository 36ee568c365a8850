"""A server of raw bytes, for faults that no HTTP library would send.

Each connection runs a script: a coroutine that reads requests and writes whatever bytes it likes, resets, or falls
silent. The server lives in a thread of its own, so that tests on any event loop, and other processes, can talk to it.
`FAULTS` holds the scripts of what a night on the network brings; each spoils every request.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import socket
import ssl
import struct
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Any, Final

COMPLETION: Final = (
    b'{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":'
    b'{"role":"assistant","content":"yes"},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":3,"completion_tokens":1,"total_tokens":4}}'
)


class Peer:
    """The client at the other end of one connection; `number` counts the server's connections from 0."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int, received: list[bytes]
    ) -> None:
        self.reader = reader
        self.writer = writer
        self.number = number
        self._received = received

    async def request(self) -> bytes:
        """Read one whole request, head and body; raises EOFError where the client has gone."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = 0
        for line in head.split(b"\r\n"):
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        whole = head + await self.reader.readexactly(length)
        self._received.append(whole)
        return whole

    async def send(self, data: bytes, *, piece: int | None = None, every: float = 0.0) -> None:
        """Write `data`, in pieces of `piece` bytes with a pause of `every` seconds after each."""
        step = piece or max(len(data), 1)
        for start in range(0, len(data), step):
            self.writer.write(data[start : start + step])
            await self.writer.drain()
            if piece is not None:
                await asyncio.sleep(every)

    async def reset(self) -> None:
        """Break the connection off with a RST."""
        sock: socket.socket = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def gone(self) -> None:
        """Wait, saying nothing, until the client has closed the connection."""
        while await self.reader.read(65536):
            pass


Script = Callable[[Peer], Awaitable[None]]


class RawServer:
    """Serves a script on a loopback port while its context is open.

    `received` holds every whole request, `connections` counts what was accepted, `open` what is open now. `gone` is set
    whenever a script has ended.
    """

    def __init__(self, script: Script, *, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> None:
        self._script = script
        self._tls = tls
        self._host = host
        self._thread = threading.Thread(target=self._run, name="raw-server")
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self.received: list[bytes] = []
        self.connections = 0
        self.open = 0
        self.gone = threading.Event()
        self.port = 0

    def __enter__(self) -> RawServer:
        self._thread.start()
        if not self._ready.wait(10):
            raise RuntimeError("the server did not start")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._stop is not None:
            self.call(self._stop.set)
        self._thread.join(10)

    @property
    def url(self) -> str:
        """The base URL."""
        host = f"[{self._host}]" if ":" in self._host else "localhost" if self._tls is not None else self._host
        return f"{'https' if self._tls is not None else 'http'}://{host}:{self.port}"

    def call(self, function: Callable[[], object]) -> None:
        """Run a function in the server's thread."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(function)

    def close_behind_the_back(self, close: asyncio.Event) -> None:
        """Let a script that waits for `close` end while the caller's event loop does not look.

        What the caller writes next crosses the end of the connection.
        """
        self.gone.clear()
        self.call(close.set)
        if not self.gone.wait(5):
            raise RuntimeError("the script did not end")
        time.sleep(0.02)

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._loop.set_exception_handler(lambda _loop, _context: None)  # broken connections are what it is for
        tasks: set[asyncio.Task[None]] = set()

        def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.ensure_future(self._converse(reader, writer))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        server = await asyncio.start_server(
            accepted, self._host, 0, ssl=self._tls, backlog=2048, limit=2**20, ssl_handshake_timeout=None
        )
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # closed transports let go of their sockets

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer, self.connections, self.received)
        self.connections += 1
        self.open += 1
        try:
            with contextlib.suppress(OSError, EOFError):
                await self._script(peer)
        finally:
            writer.close()
            self.open -= 1
            self.gone.set()
            with contextlib.suppress(OSError, asyncio.TimeoutError):
                await asyncio.wait_for(writer.wait_closed(), 1)


def response(body: bytes = COMPLETION, *fields: str, status: str = "200 OK", version: str = "1.1") -> bytes:
    """A well-formed response with a Content-Length."""
    head = [f"HTTP/{version} {status}", "Content-Type: application/json", *fields, f"Content-Length: {len(body)}"]
    return "\r\n".join([*head, "", ""]).encode("latin-1") + body


def chunked(*pieces: bytes, trailer: bytes = b"") -> bytes:
    """A chunked body."""
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n" + trailer + b"\r\n"


def always(data: bytes) -> Script:
    """Answer every request with these bytes and keep the connection."""

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(data)

    return script


def once(data: bytes) -> Script:
    """Answer one request with these bytes, then close the connection."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(data)

    return script


def then_reset(data: bytes) -> Script:
    """Answer with these bytes, give them time to arrive, then reset."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(data)
        await asyncio.sleep(0.03)
        await peer.reset()

    return script


def then_silence(data: bytes) -> Script:
    """Answer with these bytes and say nothing more."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(data)
        await peer.gone()

    return script


def forever(head: bytes, piece: bytes) -> Script:
    """Send a head, then the same piece again and again."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(head)
        while True:
            await peer.send(piece)

    return script


async def _reset_on_accept(peer: Peer) -> None:
    await peer.reset()


async def _close_on_accept(peer: Peer) -> None:
    pass


_HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
_CHUNKED: Final = _HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
_WHOLE: Final = response()
_PACKED: Final = gzip.compress(COMPLETION)

FAULTS: Final[Mapping[str, Script]] = {
    "reset on accept": _reset_on_accept,
    "closed on accept": _close_on_accept,
    "reset before the head": then_reset(b""),
    "closed before the head": once(b""),
    "reset in the head": then_reset(_WHOLE[:30]),
    "closed in the head": once(_WHOLE[:30]),
    "reset after the head": then_reset(_WHOLE[: -len(COMPLETION)]),
    "reset in the body": then_reset(_WHOLE[:-20]),
    "shorter than its content-length": once(_WHOLE[:-20]),
    "closed in a chunk": once(_CHUNKED + b"40\r\n" + COMPLETION[:20]),
    "closed between chunks": once(_CHUNKED + b"14\r\n" + COMPLETION[:20] + b"\r\n"),
    "broken chunk size": once(_CHUNKED + b"zz\r\n" + COMPLETION + b"\r\n0\r\n\r\n"),
    "chunk longer than it says": once(_CHUNKED + b"5\r\n" + COMPLETION + b"\r\n0\r\n\r\n"),
    "two lengths": once(_HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef"),
    "length and chunks": once(_HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(b"abcde")),
    "negative length": once(_HEAD + b"Content-Length: -5\r\n\r\nabcde"),
    "not HTTP": once(b"220 mail.example.org ESMTP ready\r\n"),
    "binary": once(bytes(range(256)) * 8),
    "HTTP/0.9": once(b"<html>hello</html>"),
    "switches protocols": once(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"),
    "huge head": once(_HEAD + b"X-Filler: " + b"a" * 200_000 + b"\r\nContent-Length: 0\r\n\r\n"),
    "many fields": once(_HEAD + b"X-Filler: aaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n" * 6_000 + b"Content-Length: 0\r\n\r\n"),
    "head without end": forever(_HEAD, b"X-Filler: a\r\n" * 1000),
    "interim responses without end": forever(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
    "damaged gzip": once(response(_PACKED[:15] + b"\xff\xff\xff" + _PACKED[18:], "Content-Encoding: gzip")),
    "truncated gzip": once(response(_PACKED[:-12], "Content-Encoding: gzip")),
    "not gzip at all": once(response(COMPLETION, "Content-Encoding: gzip")),
    "unknown encoding": once(response(COMPLETION, "Content-Encoding: compress")),
    "gzip bomb": once(response(gzip.compress(bytes(80 * 2**20), 1), "Content-Encoding: gzip")),
    "body without end": forever(_CHUNKED, b"8000\r\n" + b" " * 0x8000 + b"\r\n"),
    "body until close without end": forever(_HEAD + b"\r\n", b" " * 0x8000),
}


def server_context(certificate: Any) -> ssl.SSLContext:
    """A TLS context for a certificate of trustme's."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context
