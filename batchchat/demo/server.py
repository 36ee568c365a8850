"""The demo provider on a real socket: in a thread of this process, or alone until a signal ends it.

uvicorn serves; what differs here is how it starts and ends. The socket is bound before the thread starts, so the port
is known at once. Nothing is configured for the whole process: no signal handlers, no event loop policy, no logging
(what uvicorn logs in our thread is dropped). The end is told by an event and takes milliseconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from batchchat.demo.app import ABORT_EXTENSION, Demo, DemoStats, create_app
from batchchat.demo.server_options import DemoOptions

_START_S = 10.0
_STOP_S = 10.0
"""Seconds for the thread to begin to serve, and to end: far more than it takes, so that only a fault is met."""
_FLUSH_S = 0.5
"""Seconds that connections without a request have to close: they only need a turn of the event loop."""


class _Protocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol, which also lets the application cut its connection."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {ABORT_EXTENSION: {"abort": self.transport.abort}}


class _Server(uvicorn.Server):
    """uvicorn's server with an end that is told instead of polled, and without its signal handling."""

    def __init__(self, config: uvicorn.Config, started: Callable[[], None], *, signals: bool = False) -> None:
        super().__init__(config)
        self._tell_started = started
        self._with_signals = signals
        self._ending = asyncio.Event()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.ended_by: signal.Signals | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def main_loop(self) -> None:
        self.loop = asyncio.get_running_loop()
        with self._signal_handlers(self.loop):
            self._tell_started()
            # uvicorn looks ten times a second whether it should end; an event tells it at once.
            while not self._ending.is_set():
                # It keeps the `Date` header up to date, which uvicorn writes once a second.
                await self.on_tick(0)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(1):
                        await self._ending.wait()

    def end(self, by: signal.Signals | None = None) -> None:
        """End the server; to be called on its event loop."""
        self.ended_by = self.ended_by or by
        self._ending.set()

    @contextlib.contextmanager
    def _signal_handlers(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        handled = (signal.SIGINT, signal.SIGTERM) if self._with_signals else ()
        for number in handled:
            loop.add_signal_handler(number, self.end, number)
        try:
            yield
        finally:
            for number in handled:
                loop.remove_signal_handler(number)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close idle connections, cut the others, and wait until all their handlers have ended."""
        for server in self.servers:
            server.close()
        for sock in sockets or []:
            sock.close()
        connections = [entry for entry in self.server_state.connections if isinstance(entry, _Protocol)]
        for connection in connections:
            # An answer that is under way is cut: a client in a test would wait for it.
            busy = connection.cycle is not None and not connection.cycle.response_complete
            (connection.transport.abort if busy else connection.transport.close)()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FLUSH_S):
                # uvicorn has no event for either.
                while self.server_state.connections or self.server_state.tasks:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
        for connection in connections:
            connection.transport.abort()
        for task in list(self.server_state.tasks):
            task.cancel()
        if self.server_state.tasks:
            await asyncio.wait(self.server_state.tasks)
        for server in self.servers:
            await server.wait_closed()


class DemoServer:
    """The demo provider in a daemon thread on a free loopback port; a context manager, or `start` and `stop`.

    It may be started under any event loop, also none, and stopped from any thread. `stats` and `bodies` also work
    after the end.
    """

    def __init__(self, options: DemoOptions | None = None, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self.options = options or DemoOptions()
        self._host = host
        self._port = port
        self._demo = Demo(self.options)
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._url: str | None = None

    @property
    def base_url(self) -> str:
        """The address to give to a client: `http://127.0.0.1:PORT/v1`. RuntimeError before the start."""
        if self._url is None:
            raise RuntimeError("the demo server has not been started")
        return self._url

    def start(self) -> None:
        """Start serving; returns when connections are accepted. Raises OSError if the port cannot be bound."""
        if self._thread is not None:
            raise RuntimeError("the demo server is already running")
        sock = _bound(self._host, self._port)
        self._url = _url(sock)
        started = threading.Event()
        self._server = server = _Server(_config(self._demo), started.set)
        self._failure = None

        def work() -> None:
            try:
                _run(server, sock)
            except BaseException as error:  # noqa: BLE001 (told to the thread that started this one)
                self._failure = error
            finally:
                sock.close()
                started.set()

        self._thread = threading.Thread(target=work, name="batchchat-demo", daemon=True)
        self._thread.start()
        # The thread is ended before the error is raised: none may be left behind.
        if not started.wait(_START_S) or self._failure is not None:
            failure, self._failure = self._failure, None
            self.stop()
            raise RuntimeError("the demo server did not start") from failure

    def stop(self) -> None:
        """Stop serving: open answers are cut, and the thread has ended on return. Does nothing if not running."""
        thread, server = self._thread, self._server
        if thread is None or server is None:
            return
        self._thread = None
        if server.loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed if the thread has failed
                server.loop.call_soon_threadsafe(server.end)
        thread.join(_STOP_S)
        self._demo.batches.stop()
        if thread.is_alive():
            raise RuntimeError("the demo server did not stop")
        if self._failure is not None:
            raise RuntimeError("the demo server failed") from self._failure

    def stats(self) -> DemoStats:
        """Return the counts so far."""
        return self._demo.stats()

    def expire_key(self) -> None:
        """Let the valid key expire now, if the options give keys a lifetime."""
        self._demo.keys.expire()

    def bodies(self) -> dict[str, tuple[int, int]]:
        """Return how often each body was received and answered, by the digest of its bytes (BLAKE2b-128)."""
        return self._demo.bodies()

    def batch_lines(self) -> dict[str, int]:
        """Return how often each `custom_id` was run in a batch."""
        return self._demo.batches.lines()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


def serve(
    options: DemoOptions | None = None,
    host: str = "127.0.0.1",
    port: int = 8080,
    on_start: Callable[[str], None] | None = None,
    *,
    demo: Demo | None = None,
) -> signal.Signals | None:
    """Serve until SIGINT or SIGTERM, and return the signal; blocks. Call it from the main thread.

    Pass `demo` in the place of options to keep hold of its counts. `on_start` is called with the base URL once
    connections are accepted. Raises OSError if the port cannot be bound.
    """
    sock = _bound(host, port)
    url = _url(sock)

    def started() -> None:
        if on_start is not None:
            on_start(url)

    demo = demo or Demo(options or DemoOptions())
    server = _Server(_config(demo), started, signals=True)
    try:
        _run(server, sock)
    finally:
        demo.batches.stop()
        sock.close()
    return server.ended_by


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
    except BaseException:
        sock.close()
        raise
    return sock


def _url(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"


def _config(demo: Demo) -> uvicorn.Config:
    return uvicorn.Config(
        create_app(demo=demo),
        http=_Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=8192,
        timeout_keep_alive=demo.options.keep_alive_s,
    )


def _run(server: _Server, sock: socket.socket) -> None:
    with _quiet(), asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(server.serve(sockets=[sock]))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Drop what uvicorn logs in this thread, and only that: a host application may run a uvicorn of its own.

    An exception of the application is let through: it is a bug here.
    """
    here = threading.get_ident()
    logger = logging.getLogger("uvicorn.error")

    def worth_logging(record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return record.thread != here or not (error is None or isinstance(error, asyncio.CancelledError))

    logger.addFilter(worth_logging)
    try:
        yield
    finally:
        logger.removeFilter(worth_logging)
