"""Connections: how they are opened, kept, found stale, given up and closed."""

from __future__ import annotations

import asyncio
import resource
import socket
import subprocess
import sys
import threading
import time
from typing import Any

import anyio
import httpx
import pytest

from batchchat.errors import StorageError
from batchchat.transport import LeanTransport, StockTransport, request_sent
from tests.integration.raw_server import COMPLETION, Peer, RawServer, always, forever, response, then_silence
from tests.integration.transport_cases import BACKENDS, Names, ask, ask_seam, refusing_port, until

pytestmark = pytest.mark.anyio

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="stands on how Linux's TCP behaves")


@pytest.fixture(params=BACKENDS.values(), ids=list(BACKENDS))
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


# Opening


async def test_a_refused_connection_was_never_sent() -> None:
    with refusing_port() as port:
        async with LeanTransport() as transport:
            for way in (ask, ask_seam):
                with pytest.raises(httpx.ConnectError, match=r"cannot connect to 127\.0\.0\.1") as caught:
                    await way(transport, f"http://127.0.0.1:{port}")
                assert not request_sent(caught.value)


async def test_a_name_that_does_not_exist_is_asked_for_once_and_told_by_its_name() -> None:
    names = Names(socket.gaierror(-2, "Name or service not known"))
    async with LeanTransport(resolver=names) as transport:

        async def one() -> None:
            with pytest.raises(
                httpx.ConnectError, match=r"api.example.invalid cannot be resolved: .*not known"
            ) as caught:
                await ask(transport, "http://api.example.invalid")
            assert not request_sent(caught.value)

        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(one)
    assert names.asked == [("api.example.invalid", 80)]


async def test_a_hundred_connections_ask_for_a_name_once_and_again_when_no_address_answers() -> None:
    with RawServer(always(response())) as server, refusing_port() as refusing:
        dead = [(socket.AF_INET, ("127.0.0.1", refusing))]
        alive = [(socket.AF_INET, ("127.0.0.1", server.port))]
        names = Names(dead, alive)
        async with LeanTransport(resolver=names) as transport:
            with pytest.raises(httpx.ConnectError):
                await ask(transport, "http://model.test")
            async with anyio.create_task_group() as tasks:
                for _ in range(100):
                    tasks.start_soon(ask, transport, "http://model.test")
    assert names.asked == [("model.test", 80)] * 2
    assert len(server.received) == 100


@LINUX
async def test_an_address_that_does_not_answer_costs_a_head_start_and_no_more() -> None:
    with RawServer(always(response())) as server, socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        with _filled(deaf.getsockname()):
            addresses = [deaf.getsockname(), ("127.0.0.1", server.port)]
            names = Names([(socket.AF_INET, address) for address in addresses])
            async with LeanTransport(resolver=names, connect_timeout=5) as transport:
                started = time.monotonic()
                assert (await ask(transport, "http://model.test")).body == COMPLETION
                assert time.monotonic() - started > 0.2
            only = Names([(socket.AF_INET, addresses[0])])
            async with LeanTransport(resolver=only, connect_timeout=0.1) as transport:
                with pytest.raises(httpx.ConnectTimeout, match=r"model\.test:80 does not answer") as caught:
                    await ask(transport, "http://model.test")
                assert not request_sent(caught.value)


class _filled:  # noqa: N801  # reads as a word of the test
    """Fills a listener's backlog, so that further connections to it hang."""

    def __init__(self, address: Any) -> None:
        self._sockets = [socket.socket() for _ in range(4)]
        for sock in self._sockets:
            sock.setblocking(False)
            sock.connect_ex(address)

    def __enter__(self) -> None:
        time.sleep(0.05)

    def __exit__(self, *_: object) -> None:
        for sock in self._sockets:
            sock.close()


async def test_every_address_that_refuses_is_named() -> None:
    with refusing_port() as one, refusing_port() as other:
        names = Names([(socket.AF_INET, ("127.0.0.1", port)) for port in (one, other)])
        async with LeanTransport(resolver=names) as transport:
            with pytest.raises(httpx.ConnectError) as caught:
                await ask(transport, "http://model.test")
        assert all(str(port) in str(caught.value) for port in (one, other))


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
async def test_ipv6_is_spoken() -> None:
    with RawServer(always(response()), host="::1") as server:
        async with LeanTransport() as transport:
            assert (await ask(transport, server.url)).body == COMPLETION
        assert f"Host: [::1]:{server.port}\r\n".encode() in server.received[0]


@LINUX
async def test_too_many_open_files_is_no_fault_of_the_network() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def names(host: str, port: int) -> Any:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        return [(socket.AF_INET, ("127.0.0.1", port))] * count

    async with LeanTransport(resolver=names) as transport:
        for count in (1, 2):
            try:
                with pytest.raises(StorageError, match="no further connection can be opened") as caught:
                    await ask(transport, f"http://model{count}.test:9")
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert caught.value.exit_code == 74


# Keeping


async def test_one_after_the_other_takes_one_connection_and_the_last_back_goes_out_first() -> None:
    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(response(b"%d" % peer.number))

    with RawServer(script) as server:
        async with LeanTransport() as transport:
            for _ in range(5):
                await ask(transport, server.url)
            assert server.connections == 1
            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(ask, transport, server.url)
            last = (await ask(transport, server.url)).body
            assert [(await ask(transport, server.url)).body for _ in range(5)] == [last] * 5
        await until(lambda: server.open == 0)


async def test_a_thousand_at_once_each_get_their_own_answer() -> None:
    async def script(peer: Peer) -> None:
        while True:
            request = await peer.request()
            await peer.send(response(request.partition(b"\r\n\r\n")[2]))

    answers: dict[int, bytes] = {}
    with RawServer(script) as server:
        async with LeanTransport() as transport:

            async def one(number: int) -> None:
                for turn in range(2):
                    body = b"%d:%d" % (number, turn)
                    assert (await ask(transport, server.url, body)).body == body
                answers[number] = body

            async with anyio.create_task_group() as tasks:
                for number in range(1000):
                    tasks.start_soon(one, number)
        assert server.connections <= 1000
        assert len(server.received) == 2000
    assert answers == {number: b"%d:1" % number for number in range(1000)}


async def test_an_idle_connection_that_the_server_closes_is_dropped_at_once() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(response())  # and closes, without having said so

    with RawServer(script) as server:
        async with LeanTransport() as transport:
            for turn in range(3):
                assert (await ask(transport, server.url)).status == 200
                await until(lambda: server.open == 0 and not transport.connections)
                assert server.connections == turn + 1


async def test_what_an_idle_connection_says_unasked_ends_it() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(response())
        await asyncio.sleep(0.03)
        await peer.send(response(b"not for you"))
        await peer.gone()

    with RawServer(script) as server:
        async with LeanTransport() as transport:
            assert (await ask(transport, server.url)).body == COMPLETION
            await until(lambda: not transport.connections)
            assert (await ask(transport, server.url)).body == COMPLETION


async def test_an_idle_connection_is_closed_after_a_while() -> None:
    with RawServer(always(response())) as server:
        async with LeanTransport(idle_timeout=0.05) as transport:
            await ask(transport, server.url)
            await until(lambda: server.open == 0)
            assert transport.connections == 0
            await ask(transport, server.url)
            assert server.connections == 2


# Stale


def _closes_when_told(close: asyncio.Event, *, reset: bool = False) -> Any:
    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(response())
            if peer.number == 0:
                await close.wait()
                if reset:
                    await peer.reset()
                return

    return script


@LINUX
@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize("size", [2, 500_000])
async def test_a_request_that_a_stale_connection_did_not_deliver_is_sent_once_more(reset: bool, size: int) -> None:
    close = asyncio.Event()
    with RawServer(_closes_when_told(close, reset=reset)) as server:
        async with LeanTransport() as transport:
            await ask(transport, server.url)
            server.close_behind_the_back(close)
            assert (await ask(transport, server.url, b"x" * size)).body == COMPLETION
        assert len(server.received) == 2
        assert server.connections == 2


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize("part", [b"", b"HTTP/1.1 2"], ids=["no byte", "a part of the head"])
async def test_a_request_that_was_received_is_sent_once_more_only_if_a_kept_connection_said_nothing(
    reset: bool, part: bytes
) -> None:
    async def script(peer: Peer) -> None:
        if peer.number == 0:
            await peer.request()
            await peer.send(response())
        await peer.request()
        await peer.send(part)
        if reset:
            await asyncio.sleep(0.02)
            await peer.reset()

    with RawServer(script) as server:
        async with LeanTransport() as transport:
            await ask(transport, server.url)
            with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)) as caught:
                await ask(transport, server.url, b"pay me")
            assert request_sent(caught.value)
        sent = 1 if part else 2
        assert len(server.received) == 1 + sent
        assert server.connections == sent


def _transport(kind: str) -> LeanTransport | StockTransport:
    return LeanTransport() if kind == "lean" else StockTransport()


def _naming(request: bytes) -> bytes:
    return response(body=request.rpartition(b"\r\n\r\n")[2])


@pytest.mark.parametrize("kind", ["lean", "httpx"])
@pytest.mark.parametrize("apart", [False, True], ids=["in one write", "later"])
async def test_an_answer_that_nobody_asked_for_is_not_given_to_the_next_request(kind: str, apart: bool) -> None:
    more, sent = asyncio.Semaphore(0), threading.Semaphore(0)

    async def script(peer: Peer) -> None:
        while True:
            request = await peer.request()
            if apart:
                await peer.send(_naming(request))
                await more.acquire()
                await peer.send(response(body=b"unasked"))
                sent.release()
            else:
                await peer.send(_naming(request) + response(body=b"unasked"))

    with RawServer(script) as server:
        async with _transport(kind) as transport:
            for number in range(4):
                body = b"row %d" % number
                assert (await ask_seam(transport, server.url, body)).body == body
                if apart:
                    server.call(more.release)
                    assert sent.acquire(timeout=10)  # the loop does not look meanwhile
        assert server.connections == 4


@LINUX
async def test_a_server_that_closes_without_a_word_after_many_answers_takes_each_request_once() -> None:
    async def script(peer: Peer) -> None:
        for _ in range(100):
            await peer.send(_naming(await peer.request()))

    with RawServer(script) as server:
        async with LeanTransport() as transport:
            for number in range(450):
                body = b"row %d" % number
                assert (await ask(transport, server.url, body)).body == body
        assert len(server.received) == 450
        assert server.connections == 5


STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("kind", ["lean", "httpx"])
@pytest.mark.parametrize("after_s", [0.0, 0.01])
async def test_a_server_that_closes_after_each_stream_costs_no_failure(kind: str, after_s: float) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(STREAM_HEAD + b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
        await asyncio.sleep(after_s)

    with RawServer(script) as server:
        async with _transport(kind) as transport:
            for _ in range(20):
                reply = await ask_seam(transport, server.url)
                assert reply.body == b"data: [DONE]\n\n"
        # After the first end that was seen, no connection is kept after a stream, so none dies in use.
        assert server.connections == 20


@LINUX
async def test_the_second_sending_fails_like_any_other() -> None:
    close = asyncio.Event()

    async def script(peer: Peer) -> None:
        if peer.number == 0:
            await _closes_when_told(close)(peer)
        else:
            await peer.request()

    with RawServer(script) as server:
        async with LeanTransport() as transport:
            await ask(transport, server.url)
            server.close_behind_the_back(close)
            with pytest.raises(httpx.RemoteProtocolError, match="before it answered") as caught:
                await ask(transport, server.url)
            assert request_sent(caught.value)
        assert len(server.received) == 2


# Silence, and giving up


@pytest.mark.parametrize(
    ("said", "text"),
    [(b"", "no response for 0.1 s"), (response()[:20], "stopped for 0.1 s"), (response()[:-9], "stopped for 0.1 s")],
    ids=["nothing", "half a head", "half a body"],
)
async def test_silence_ends_in_a_read_timeout(said: bytes, text: str) -> None:
    with RawServer(then_silence(said)) as server:
        async with LeanTransport() as transport:
            for way in (ask, ask_seam):
                started = time.monotonic()
                with pytest.raises(httpx.ReadTimeout, match=text) as caught:
                    await way(transport, server.url, timeout=0.1)
                assert time.monotonic() - started > 0.09
                assert request_sent(caught.value)
            await until(lambda: server.open == 0)


async def test_a_slow_answer_is_not_silence_and_only_the_caller_ends_it() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(response(), piece=1, every=0.02)

    with RawServer(script) as server:
        async with LeanTransport() as transport:
            with anyio.move_on_after(0.9) as scope:
                await ask(transport, server.url, timeout=0.7)
            assert scope.cancelled_caught
            await until(lambda: server.open == 0)
            assert transport.connections == 0


async def test_an_answer_that_drips_ends_at_the_total() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(response(), piece=1, every=0.02)

    with RawServer(script) as server:
        async with LeanTransport() as transport:
            route = transport.route("POST", server.url + "/v1/x", {})
            with pytest.raises(httpx.ReadTimeout, match="whole answer"):
                await transport.exchange(route, b"{}", 5.0, 0.2)
            await until(lambda: server.open == 0)


async def test_the_whole_of_an_exchange_can_be_bounded() -> None:
    async def script(peer: Peer) -> None:
        while True:
            slow = (await peer.request()).endswith(b"slowly")
            await peer.send(response(), piece=1 if slow else None, every=0.02)

    with RawServer(script) as server:
        async with LeanTransport() as transport:
            route = transport.route("POST", server.url, {})
            for _ in range(2):
                assert (await transport.exchange(route, b"{}", None, 30)).body == COMPLETION
                started = time.monotonic()
                with pytest.raises(httpx.ReadTimeout, match="whole answer") as caught:
                    await transport.exchange(route, b"slowly", 30, 0.3)
                assert time.monotonic() - started > 0.29
                assert request_sent(caught.value)
                await until(lambda: server.open == 0)
                assert transport.connections == 0
            assert len(server.received) == 4


async def test_the_bound_of_an_exchange_holds_for_connecting_and_writing_too() -> None:
    async def asleep(host: str, port: int) -> Any:
        await anyio.sleep(30)

    async def script(peer: Peer) -> None:
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]  # a read transport too
        await asyncio.sleep(30)

    async with LeanTransport(resolver=asleep) as transport:
        with pytest.raises(httpx.ConnectTimeout) as caught:
            await transport.exchange(transport.route("POST", "http://model.test", {}), b"{}", None, 0.1)
        assert not request_sent(caught.value)
    with RawServer(script) as server:
        async with LeanTransport() as transport:
            route = transport.route("POST", server.url, {})
            with pytest.raises(httpx.TimeoutException) as late:
                await transport.exchange(route, b"x" * 30_000_000, None, 0.2)
            assert request_sent(late.value)


async def test_timeouts_of_many_connections_are_each_kept() -> None:
    with RawServer(then_silence(b"")) as server:
        async with LeanTransport() as transport:
            ended: list[float] = []

            async def one(timeout: float) -> None:
                started = time.monotonic()
                with pytest.raises(httpx.ReadTimeout):
                    await ask(transport, server.url, timeout=timeout)
                ended.append(time.monotonic() - started - timeout)

            async with anyio.create_task_group() as patient:
                patient.start_soon(one, 600)
                async with anyio.create_task_group() as tasks:
                    for number in range(50):
                        tasks.start_soon(one, 0.3 - number * 0.005)
                patient.cancel_scope.cancel()
            assert len(ended) == 50
            assert min(ended) > -0.01


def block(seconds: float) -> None:
    time.sleep(seconds)


async def test_an_answer_that_came_while_the_loop_was_held_up_is_not_called_late() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await asyncio.sleep(0.1)
        await peer.send(response())
        await peer.gone()

    with RawServer(script) as server:
        async with LeanTransport() as transport:

            async def hold_up() -> None:
                await until(lambda: len(server.received) == 1)
                block(0.4)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(hold_up)
                assert (await ask(transport, server.url, timeout=0.2)).body == COMPLETION


async def test_a_server_that_stops_reading_ends_in_a_write_timeout() -> None:
    async def script(peer: Peer) -> None:
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]  # a read transport too
        await asyncio.sleep(30)

    with RawServer(script) as server:
        async with LeanTransport() as transport:
            with pytest.raises(httpx.WriteTimeout, match="took nothing more"):
                await ask(transport, server.url, b"x" * 30_000_000, timeout=0.2)


async def test_a_big_body_arrives_whole_and_an_early_answer_stops_it() -> None:
    body = bytes(range(256)) * 40_000

    async def refuse(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        await peer.send(response(b"{}", status="413 Content Too Large"))
        await asyncio.sleep(0.05)

    with RawServer(always(response())) as server:
        async with LeanTransport() as transport:
            for _ in range(2):
                assert (await ask(transport, server.url, body)).body == COMPLETION
        assert server.connections == 1
        assert all(request.endswith(b"\r\n\r\n" + body) for request in server.received)
    with RawServer(refuse) as server:
        async with LeanTransport() as transport:
            assert (await ask(transport, server.url, body)).status == 413
            assert transport.connections == 0


@pytest.mark.parametrize("said", [b"", response()[:20], response()[:-9]], ids=["nothing", "half a head", "half a body"])
async def test_giving_up_closes_the_connection_and_leaves_the_others_alone(said: bytes) -> None:
    async def script(peer: Peer) -> None:
        while not (await peer.request()).endswith(b"forget it"):
            await peer.send(response())
        await peer.send(said)
        await peer.gone()

    with RawServer(script) as server:
        async with LeanTransport() as transport:
            await ask(transport, server.url)
            answered = anyio.Event()

            async def other() -> None:
                await ask(transport, server.url)
                answered.set()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(other)
                tasks.start_soon(ask, transport, server.url, b"forget it")
                await answered.wait()
                await until(lambda: any(request.endswith(b"forget it") for request in server.received))
                tasks.cancel_scope.cancel()
            await until(lambda: server.open == 1)
            assert transport.connections == 1
            assert (await ask(transport, server.url)).body == COMPLETION


# Reading as it comes


async def test_events_are_delivered_as_they_are_sent() -> None:
    go_on = asyncio.Event()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(head)
            for number in range(3):
                await go_on.wait()
                go_on.clear()
                event = b"data: %d\n\n" % number
                await peer.send(b"%x\r\n%b\r\n" % (len(event), event))
            await peer.send(b"0\r\n\r\n")

    with RawServer(script) as server:
        async with LeanTransport() as transport:
            for _ in range(2):
                answer = await transport.handle_async_request(httpx.Request("POST", server.url, content=b"{}"))
                server.call(go_on.set)
                events = []
                async for event in answer.aiter_raw():
                    events.append(event)
                    server.call(go_on.set)
                server.call(go_on.clear)
                assert events == [b"data: 0\n\n", b"data: 1\n\n", b"data: 2\n\n"]
        assert server.connections == 1


async def test_a_stream_that_is_closed_early_takes_its_connection_with_it() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
    with RawServer(forever(head, b"data: 1\n\n")) as server:
        async with LeanTransport() as transport:
            answer = await transport.handle_async_request(httpx.Request("POST", server.url, content=b"{}"))
            stream = answer.aiter_raw()
            assert (await anext(stream)).startswith(b"data: 1\n\n")
            await answer.aclose()
            await stream.aclose()  # type: ignore[attr-defined]  # an async generator
            await until(lambda: server.open == 0)
            assert transport.connections == 0


async def test_a_stream_that_nobody_reads_is_held_back_and_not_called_silent() -> None:
    sent = 0
    size, piece = 24 * 2**20, b"z" * 2**16

    async def script(peer: Peer) -> None:
        nonlocal sent
        while True:
            await peer.request()
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
            sent = 0
            while sent < size:
                await peer.send(piece)
                sent += len(piece)

    with RawServer(script) as server:
        async with LeanTransport() as transport:
            extensions = {"timeout": {"read": 0.2}}
            request = httpx.Request("POST", server.url, content=b"{}", extensions=extensions)
            answer = await transport.handle_async_request(request)
            await anyio.sleep(0.5)
            assert sent < size
            assert len(await answer.aread()) == size
            assert (await transport.handle_async_request(request)).status_code == 200
        assert server.connections == 1


# Closing


async def test_a_closed_transport_has_no_connection_and_takes_no_request() -> None:
    with RawServer(then_silence(b"")) as server:
        transport = LeanTransport()
        async with anyio.create_task_group() as tasks:

            async def one() -> None:
                with pytest.raises(httpx.ReadError, match="transport was closed"):
                    await ask(transport, server.url)

            tasks.start_soon(one)
            await until(lambda: len(server.received) == 1)
            await transport.aclose()
        assert transport.connections == 0
        await until(lambda: server.open == 0)
        with pytest.raises(RuntimeError, match="closed"):
            await ask(transport, server.url)
        await transport.aclose()


EXITS = """
import sys, anyio
from batchchat.transport import LeanTransport

async def main(url, closes):
    transport = LeanTransport()
    route = transport.route("POST", url, {})
    async with anyio.create_task_group() as tasks:
        for _ in range(50):
            tasks.start_soon(transport.exchange, route, b"{}", 5.0)
    if closes:
        await transport.aclose()

anyio.run(main, sys.argv[1], sys.argv[2] == "closes", backend_options={"use_uvloop": sys.argv[3] == "uvloop"})
"""


def _exits(url: str, loop: str, times: int) -> list[str]:
    """Let processes do fifty requests and exit; what was not as it should be."""
    wrong = []
    for _ in range(times):
        command = [sys.executable, "-W", "error", "-c", EXITS, url, "closes", loop]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        if done.returncode or done.stderr:
            wrong.append(f"{done.returncode}: {done.stderr}")
    return wrong


@pytest.mark.parametrize("loop", BACKENDS)
def test_a_process_exits_quietly(loop: str) -> None:
    with RawServer(always(response())) as server:
        assert _exits(server.url, loop, 1) == []


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("loop", BACKENDS)
def test_three_hundred_processes_exit_quietly(loop: str) -> None:
    with RawServer(always(response())) as server:
        assert _exits(server.url, loop, 150) == []
