"""Which transport is taken, and the stock one at work: proxies, trio, many at once."""

from __future__ import annotations

import asyncio
import importlib.util
from typing import Any

import anyio
import httpx
import pytest

from batchchat.errors import UsageError
from batchchat.transport import LeanTransport, ResponseTooLarge, StockTransport, choose_transport, request_sent
from batchchat.transport.choose import proxy_for
from tests.integration.raw_server import COMPLETION, FAULTS, Peer, RawServer, always, response
from tests.integration.transport_cases import ask_seam, refusing_port, until

pytestmark = pytest.mark.anyio

FAR = "https://api.model.test/v1"
LOOPS = {
    "asyncio": ("asyncio", {"use_uvloop": False}),
    "uvloop": ("asyncio", {"use_uvloop": True}),
    "trio": ("trio", {}),
}


@pytest.fixture(params=LOOPS.values(), ids=list(LOOPS))
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


async def test_the_fast_path_is_taken_on_asyncio_and_the_stock_one_on_trio(anyio_backend_name: str) -> None:
    expected = LeanTransport if anyio_backend_name == "asyncio" else StockTransport
    for address in (FAR, "http://model.test/v1", "http://[::1]:8000/v1"):
        async with choose_transport(address) as transport:
            assert type(transport) is expected
        async with choose_transport(address, kind="httpx") as transport:
            assert type(transport) is StockTransport


@pytest.mark.parametrize(
    ("variable", "address", "proxied"),
    [
        ({"HTTPS_PROXY": "http://proxy.test:3128"}, FAR, True),
        ({"https_proxy": "proxy.test:3128"}, FAR, True),
        ({"ALL_PROXY": "http://proxy.test:3128"}, FAR, True),
        ({"HTTP_PROXY": "http://proxy.test:3128"}, FAR, False),
        ({"HTTPS_PROXY": "http://proxy.test:3128", "NO_PROXY": "model.test"}, FAR, False),
        ({"HTTPS_PROXY": "http://proxy.test:3128", "NO_PROXY": "*"}, FAR, False),
        ({"HTTPS_PROXY": "http://proxy.test:3128", "NO_PROXY": "other.test"}, FAR, True),
        ({"HTTP_PROXY": "http://proxy.test:3128"}, "http://model.test:8000/v1", True),
        ({"HTTP_PROXY": "http://proxy.test:3128"}, "http://127.0.0.1:8000/v1", False),
        ({"HTTP_PROXY": "http://proxy.test:3128"}, "http://localhost:8000/v1", False),
        ({"HTTP_PROXY": "http://proxy.test:3128"}, "http://[::1]:8000/v1", False),
    ],
)
def test_proxies_are_those_of_the_environment(
    variable: dict[str, str], address: str, proxied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variable.items():
        monkeypatch.setenv(name, value)
    assert proxy_for(httpx.URL(address)) == ("http://proxy.test:3128" if proxied else None)


async def test_an_address_behind_a_proxy_is_the_stock_transports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.test:3128")
    async with choose_transport("http://model.test/v1") as transport:
        assert type(transport) is StockTransport
    with pytest.raises(UsageError, match="cannot go through a proxy"):
        choose_transport("http://model.test/v1", kind="lean")


async def test_what_cannot_be_done_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("h2") is None:
        with pytest.raises(UsageError, match=r"a package is missing: .*h2"):
            choose_transport(FAR, kind="http2")
    if importlib.util.find_spec("socksio") is None:
        monkeypatch.setenv("ALL_PROXY", "socks5://proxy.test")
        with pytest.raises(UsageError, match=r"a package is missing: .*socksio"):
            choose_transport(FAR)
    monkeypatch.setenv("HTTPS_PROXY", "gopher://proxy.test")
    with pytest.raises(UsageError, match=r"the proxy that is set for api\.model\.test cannot be used"):
        choose_transport(FAR)


def test_outside_an_event_loop_nothing_is_chosen() -> None:
    with pytest.raises(RuntimeError):
        choose_transport(FAR)


async def test_a_request_through_a_proxy_names_its_whole_address(monkeypatch: pytest.MonkeyPatch) -> None:
    with RawServer(always(response())) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        async with choose_transport("http://model.test/v1") as transport:
            assert (await ask_seam(transport, "http://model.test/v1")).body == COMPLETION
        assert proxy.received[0].startswith(b"POST http://model.test/v1/v1/x HTTP/1.1\r\n")


async def test_a_proxy_that_is_not_there_was_never_sent_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    with refusing_port() as port:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
        async with choose_transport(FAR) as transport:
            with pytest.raises(httpx.ConnectError) as caught:
                await ask_seam(transport, FAR)
            assert not request_sent(caught.value)


async def test_the_stock_transport_serves_many_at_once_with_a_connection_each() -> None:
    async def script(peer: Peer) -> None:
        while True:
            request = await peer.request()
            await asyncio.sleep(0.05)
            await peer.send(response(request.partition(b"\r\n\r\n")[2]))

    with RawServer(script) as server:
        async with StockTransport() as transport:

            async def one(number: int) -> None:
                for turn in range(2):
                    body = b"%d:%d" % (number, turn)
                    assert (await ask_seam(transport, server.url, body)).body == body

            async with anyio.create_task_group() as tasks:
                for number in range(60):
                    tasks.start_soon(one, number)
            assert len(server.received) == 120
            assert server.connections == 60
        await until(lambda: server.open == 0)


async def test_giving_up_on_the_stock_transport_frees_its_connection() -> None:
    async def script(peer: Peer) -> None:
        while not (await peer.request()).endswith(b"forget it"):
            await peer.send(response())
        await peer.send(response()[:-9])
        await peer.gone()

    with RawServer(script) as server:
        async with StockTransport() as transport:
            for _ in range(2):
                assert (await ask_seam(transport, server.url)).body == COMPLETION
                server.received.clear()
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(ask_seam, transport, server.url, b"forget it")
                    # Before it is sent there is nothing to free: the connection would rightly stay for the next one.
                    await until(lambda: len(server.received) == 1)
                    tasks.cancel_scope.cancel()
                await until(lambda: server.open == 0)
            assert server.connections == 2


async def test_a_stock_response_is_bounded(anyio_backend_name: str) -> None:
    if anyio_backend_name == "trio":
        pytest.skip("httpcore leaves an unread stream to the garbage collector, of which trio warns")
    with RawServer(FAULTS["gzip bomb"]) as server:
        async with StockTransport(max_response_bytes=2**20) as transport:
            with pytest.raises(ResponseTooLarge):
                await ask_seam(transport, server.url)
