"""The network path against a server of raw bytes: what comes back whole, what fails and as what, what is reused."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import AsyncIterator
from typing import Any

import anyio
import httpx
import pytest

from batchchat.transport import Exchange, LeanTransport, ResponseTooLarge, StockTransport, request_sent
from tests.integration.raw_server import COMPLETION, FAULTS, Peer, RawServer, always, chunked, response
from tests.integration.transport_cases import BACKENDS, ask, ask_seam
from tests.thorough import one_in

pytestmark = pytest.mark.anyio


@pytest.fixture(params=BACKENDS.values(), ids=list(BACKENDS))
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


# What comes back whole

CHUNKED_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
RAW_DEFLATE = zlib.compressobj(wbits=-15)
GOOD = {
    "with a length": (response(), True),
    "chunked": (CHUNKED_HEAD + b"\r\n" + chunked(COMPLETION[:7], COMPLETION[7:]), True),
    "chunked with trailers": (CHUNKED_HEAD + b"\r\n" + chunked(COMPLETION, trailer=b"X-Sum: 1\r\n"), True),
    "chunk extensions": (CHUNKED_HEAD + b"\r\n%x;a=b\r\n%b\r\n0\r\n\r\n" % (len(COMPLETION), COMPLETION), True),
    "until the connection closes": (b"HTTP/1.1 200 OK\r\n\r\n" + COMPLETION, False),
    "HTTP/1.0": (response(version="1.0"), False),
    "connection: close": (response(COMPLETION, "Connection: close"), False),
    "interim responses before it": (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 x\r\nA: b\r\n\r\n" + response(), True),
    "longer than its length": (response() + b"and more", False),
    "a second response": (response() + response(b"[]"), False),
    "line breaks after it": (response() + b"\r\n", True),
    "no reason phrase": (response(status="200"), True),
    "empty field values": (response(COMPLETION, "X-Empty:", "X-Also: "), True),
    "gzip": (response(gzip.compress(COMPLETION), "Content-Encoding: gzip"), True),
    "chunked gzip": (CHUNKED_HEAD + b"Content-Encoding: GZIP\r\n\r\n" + chunked(gzip.compress(COMPLETION)), True),
    "gzip in two members": (
        response(gzip.compress(COMPLETION[:9]) + gzip.compress(COMPLETION[9:]), "Content-Encoding: gzip"),
        True,
    ),
    "deflate": (response(zlib.compress(COMPLETION), "Content-Encoding: deflate"), True),
    "deflate without its wrapper": (
        response(RAW_DEFLATE.compress(COMPLETION) + RAW_DEFLATE.flush(), "Content-Encoding: deflate"),
        True,
    ),
    "identity": (response(COMPLETION, "Content-Encoding: identity"), True),
}


@pytest.mark.parametrize("piece", one_in(2, [None, 7]), ids=["at once", "in pieces"])
@pytest.mark.parametrize("name", GOOD)
async def test_a_whole_answer_comes_back_and_its_connection_is_kept_where_it_can_be(
    name: str, piece: int | None
) -> None:
    data, kept = GOOD[name]

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(data, piece=piece)
            if not kept:
                return

    with RawServer(script) as server:
        async with LeanTransport() as transport:
            answer = await ask(transport, server.url)
            seam = await ask_seam(transport, server.url)
        assert (answer.status, answer.body) == (200, COMPLETION)
        assert (seam.status, seam.body) == (200, COMPLETION)
        assert server.connections == (1 if kept else 2)
        assert len(server.received) == 2


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
async def test_an_answer_that_has_no_body_by_its_status_ends_with_its_head(status: str) -> None:
    with RawServer(always(f"HTTP/1.1 {status}\r\nX-A: b\r\n\r\n".encode())) as server:
        async with LeanTransport() as transport:
            for _ in range(2):
                answer = await ask(transport, server.url)
                assert (answer.status, answer.headers, answer.body) == (int(status[:3]), {b"x-a": b"b"}, b"")
        assert server.connections == 1


async def test_an_answer_to_head_has_a_length_but_no_body() -> None:
    with RawServer(always(response()[: -len(COMPLETION)])) as server:
        async with LeanTransport() as transport:
            answer = await transport.exchange(transport.route("HEAD", server.url + "/", {}), b"", 2.0)
        assert answer == (200, {b"content-type": b"application/json", b"content-length": b"231"}, b"")


async def test_what_goes_out_is_what_was_asked_for() -> None:
    with RawServer(always(response())) as server:
        async with LeanTransport() as transport:
            assert isinstance(transport, Exchange)
            url = server.url + "/v1/chat/completions?api-version=1&q=%C3%A9"
            route = transport.route("post", url, {"Authorization": "Bearer test-key", "Content-Length": "999"})
            await transport.exchange(route, b'{"a":1}')
            headers = {"Host": "other.example", "Accept-Encoding": "gzip, br, zstd"}
            await transport.handle_async_request(httpx.Request("GET", url, headers=headers))
            stream = httpx.Request("POST", server.url, content=_pieces(b"ab", b"cd"))
            await transport.handle_async_request(stream)
    host = server.url.removeprefix("http://").encode()
    target = b"/v1/chat/completions?api-version=1&q=%C3%A9 HTTP/1.1\r\n"
    first = b"POST " + target + b"Host: " + host + b"\r\nAuthorization: Bearer test-key\r\nContent-Length: 7\r\n\r\n"
    assert server.received[0] == first + b'{"a":1}'
    assert server.received[1] == b"GET " + target + b"Host: other.example\r\nAccept-Encoding: gzip, deflate\r\n\r\n"
    assert server.received[2].endswith(b"Content-Length: 4\r\n\r\nabcd")
    assert b"chunked" not in server.received[2]


async def _pieces(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def test_a_redirect_is_returned_and_never_followed() -> None:
    with RawServer(always(response())) as other:
        move = response(b"", f"Location: {other.url}/v1/x", status="307 Temporary Redirect")
        with RawServer(always(move)) as server:
            async with LeanTransport() as transport:
                answer = await ask(transport, server.url)
    assert (answer.status, answer.headers[b"location"]) == (307, f"{other.url}/v1/x".encode())
    assert other.connections == 0


@pytest.mark.parametrize(
    ("name", "value"), [("X-Bad", "a\r\nInjected: yes"), ("X-Bad", "a\0b"), ("X Bad", "a"), ("", "a"), ("X:", "a")]
)
async def test_a_header_field_cannot_smuggle_another(name: str, value: str) -> None:
    async with LeanTransport() as transport:
        with pytest.raises(httpx.LocalProtocolError) as caught:
            transport.route("POST", "http://127.0.0.1:1/", [(name.encode(), value.encode())])
        assert not request_sent(caught.value)
        with pytest.raises(httpx.LocalProtocolError):
            transport.route("POST /x HTTP/1.1\r\nA: b\r\n", "http://127.0.0.1:1/", {})


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/", "/relative", "https://127.0.0.1:1/"])
async def test_an_address_that_cannot_be_asked_is_refused_before_anything_is_sent(url: str) -> None:
    async with LeanTransport() as transport:
        with pytest.raises(httpx.UnsupportedProtocol) as caught:
            await transport.handle_async_request(httpx.Request("GET", url))
        assert not request_sent(caught.value)


# What fails, and as what

BOTH = (httpx.ReadError, httpx.RemoteProtocolError)
EXPECTED: dict[str, tuple[type[Exception] | tuple[type[Exception], ...], str]] = {
    "reset on accept": ((httpx.ReadError, httpx.ConnectError), "reset by peer|Errno 104"),
    "closed on accept": (BOTH, "reset by peer|before it answered"),
    "reset before the head": (httpx.ReadError, "before it answered: .*reset by peer"),
    "closed before the head": (httpx.RemoteProtocolError, "disconnected before it answered"),
    "reset in the head": (httpx.ReadError, "in the response's head: .*reset by peer"),
    "closed in the head": (httpx.RemoteProtocolError, "disconnected in the response's head"),
    "reset after the head": (httpx.ReadError, "after 0 of 231 bytes: .*reset by peer"),
    "reset in the body": (httpx.ReadError, "after 211 of 231 bytes: .*reset by peer"),
    "shorter than its content-length": (httpx.RemoteProtocolError, "disconnected .* after 211 of 231 bytes"),
    "closed in a chunk": (httpx.RemoteProtocolError, "disconnected .* after 20 bytes"),
    "closed between chunks": (httpx.RemoteProtocolError, "disconnected .* after 20 bytes"),
    "broken chunk size": (httpx.RemoteProtocolError, "no valid HTTP"),
    "chunk longer than it says": (httpx.RemoteProtocolError, "no valid HTTP"),
    "two lengths": (httpx.RemoteProtocolError, "no valid HTTP"),
    "length and chunks": (httpx.RemoteProtocolError, "no valid HTTP"),
    "negative length": (httpx.RemoteProtocolError, "no valid HTTP"),
    "not HTTP": (httpx.RemoteProtocolError, "no valid HTTP"),
    "binary": (httpx.RemoteProtocolError, "no valid HTTP"),
    "HTTP/0.9": (httpx.RemoteProtocolError, "no valid HTTP"),
    "switches protocols": (httpx.RemoteProtocolError, "another protocol"),
    "huge head": (ResponseTooLarge, "head is larger"),
    "many fields": (ResponseTooLarge, "head is larger"),
    "head without end": (ResponseTooLarge, "head is larger"),
    "interim responses without end": (ResponseTooLarge, "head is larger"),
    "damaged gzip": (httpx.DecodingError, "damaged"),
    "truncated gzip": (httpx.DecodingError, "ends too early"),
    "not gzip at all": (httpx.DecodingError, "damaged"),
    "unknown encoding": (httpx.DecodingError, "not asked for"),
    "gzip bomb": (ResponseTooLarge, "unpacks to more"),
    "body without end": (ResponseTooLarge, "body is larger"),
    "body until close without end": (ResponseTooLarge, "body is larger"),
}


def test_every_fault_has_its_line_in_the_table() -> None:
    assert set(EXPECTED) == set(FAULTS)


@pytest.mark.parametrize("name", one_in(3, FAULTS))
async def test_a_fault_ends_in_the_right_error_and_the_next_request_gets_a_new_connection(name: str) -> None:
    kind, text = EXPECTED[name]

    async def script(peer: Peer) -> None:
        await (FAULTS[name] if peer.number < 2 else always(response()))(peer)

    with RawServer(script) as server:
        async with LeanTransport(max_response_bytes=2**20) as transport:
            for way in (ask, ask_seam):
                with anyio.fail_after(5), pytest.raises(httpx.RequestError, match=text) as caught:
                    await way(transport, server.url)
                assert isinstance(caught.value, kind)
                assert request_sent(caught.value) or "on accept" in name
                if way is ask_seam:
                    assert caught.value.request.method == "POST"
            assert (await ask(transport, server.url)).body == COMPLETION
            assert server.connections == 3


# RFC 9112, 6.3, lets a client believe the chunks, as stock does. Its parser passes over interim responses for ever.
STOCK_DIFFERS = {"length and chunks", "interim responses without end"}


@pytest.mark.parametrize("name", sorted(set(FAULTS) - STOCK_DIFFERS))
async def test_the_stock_transport_fails_where_the_fast_one_does(name: str) -> None:
    with RawServer(FAULTS[name]) as server:
        async with StockTransport(max_response_bytes=2**20) as transport:
            with anyio.fail_after(5), pytest.raises(httpx.RequestError) as caught:
                await ask_seam(transport, server.url)
            assert request_sent(caught.value) or isinstance(caught.value, httpx.ConnectError)
