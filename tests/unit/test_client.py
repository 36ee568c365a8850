"""One attempt over a transport: exactly what was asked goes out, whatever comes back becomes a reply, no key in it."""

from __future__ import annotations

import gzip
import json
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any
from urllib.parse import quote

import anyio
import httpx
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from batchchat import client as client_module
from batchchat.client import ChatClient
from batchchat.client.masking import KeyMask
from batchchat.errors import StorageError
from batchchat.providers import PROFILES, Provider
from batchchat.records import ErrorKind, Reply, Verdict

KEY = "canary/" + "0123456789+abcdef"
BASE = Provider("custom", "https://llm.example.org/v1", "custom")
OK = {"choices": [{"finish_reason": "stop", "message": {"content": "billing"}}]}

Handler = Callable[[httpx.Request], Awaitable[httpx.Response]]


class Transport(httpx.AsyncBaseTransport):
    """Answers with a function, and notes what it was given."""

    def __init__(self, handler: Handler | httpx.Response | Exception | None = None) -> None:
        self.handler = handler
        self.requests: list[httpx.Request] = []
        self.closed = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if isinstance(self.handler, Exception):
            raise self.handler
        if isinstance(self.handler, httpx.Response):
            return self.handler
        return await self.handler(request) if self.handler else httpx.Response(200, json=OK)

    async def aclose(self) -> None:
        self.closed += 1


class Body(httpx.AsyncByteStream):
    """A response's body, piece by piece, with a pause before each."""

    def __init__(self, pieces: list[bytes], pause_s: float = 0.0) -> None:
        self.pieces = pieces
        self.pause_s = pause_s
        self.given = 0
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self.pieces:
            await anyio.sleep(self.pause_s)
            self.given += 1
            yield piece

    async def aclose(self) -> None:
        self.closed = True


def run(task: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Run on a virtual clock that jumps over every wait."""
    return trio.run(task, clock=trio.testing.MockClock(autojump_threshold=0))


def make(transport: Transport, provider: Provider = BASE, key: str | None = KEY, timeout: float = 310.0) -> ChatClient:
    return ChatClient(provider, transport, api_key=key, request_timeout=timeout, wall_clock=lambda: 1_790_000_000.0)


def send(
    transport: Transport,
    *,
    body: bytes = b"{}",
    provider: Provider = BASE,
    key: str | None = KEY,
    timeout: float = 310.0,
    at_most: float | None = None,
) -> Reply:
    """Make one attempt."""

    async def attempt() -> Reply:
        async with make(transport, provider, key, timeout) as client:
            return await client.send(body, timeout=at_most)

    reply = run(attempt)
    assert isinstance(reply, Reply)
    return reply


def sent(**provider: Any) -> httpx.Request:
    """The request that goes out for a provider."""
    transport = Transport()
    send(transport, provider=Provider(**{"name": "custom", "base_url": BASE.base_url, "identity": "x", **provider}))
    return transport.requests[0]


# --- what goes out


def test_the_request_goes_out_byte_for_byte() -> None:
    transport = Transport()
    body = '{"model":"m","messages":[{"role":"user","content":"né\\u0000 "}]}'.encode()
    assert send(transport, body=body).verdict is Verdict.OK
    [request] = transport.requests
    assert (request.method, str(request.url)) == ("POST", "https://llm.example.org/v1/chat/completions")
    assert request.content == body
    assert request.headers.multi_items() == [
        ("host", "llm.example.org"),
        ("accept", "application/json"),
        ("content-type", "application/json"),
        ("user-agent", "batchchat"),
        ("authorization", f"Bearer {KEY}"),
        ("content-length", str(len(body))),
    ]


def test_without_a_key_nothing_is_authorized() -> None:
    transport = Transport()
    send(transport, key=None)
    assert "authorization" not in transport.requests[0].headers


@pytest.mark.parametrize(
    ("base_url", "extra_query", "url"),
    [
        ("http://127.0.0.1:8000/v1", {}, "http://127.0.0.1:8000/v1/chat/completions"),
        ("https://h.example", {}, "https://h.example/chat/completions"),
        ("https://h.example/v1/", {}, "https://h.example/v1/chat/completions"),
        ("https://h.example/v1?a=1", {}, "https://h.example/v1/chat/completions?a=1"),
        (
            "https://h.example/v1",
            {"api-version": "2024-10-21"},
            "https://h.example/v1/chat/completions?api-version=2024-10-21",
        ),
        ("https://h.example/v1?a=1&b=2", {"b": "3"}, "https://h.example/v1/chat/completions?a=1&b=3"),
        ("https://h.example/v1", {"q": "a b&c=ü"}, "https://h.example/v1/chat/completions?q=a+b%26c%3D%C3%BC"),
        ("https://h.example/a%20b", {}, "https://h.example/a%20b/chat/completions"),
    ],
)
def test_the_address_keeps_path_and_query_in_their_places(base_url: str, extra_query: dict[str, str], url: str) -> None:
    assert str(sent(base_url=base_url, extra_query=extra_query).url) == url


def test_a_port_that_is_not_the_usual_one_stands_in_the_host_header() -> None:
    assert sent(base_url="http://127.0.0.1:8000/v1").headers["host"] == "127.0.0.1:8000"


def test_a_providers_header_takes_the_place_of_the_usual_one_whatever_its_case() -> None:
    headers = sent(headers={"USER-AGENT": "mine", "X-Title": "t", "authorization": "none"}).headers
    assert headers.get_list("user-agent") == ["mine"]
    assert headers["x-title"] == "t"
    assert headers.get_list("authorization") == [f"Bearer {KEY}"]


@pytest.mark.parametrize(
    "headers",
    [{"X-A": "b\r\nX-C: d"}, {"X-A": "b\n"}, {"X-A": "b\0"}, {"X-A": "ü"}, {"X A": "b"}, {"": "b"}, {"X:": "b"}],
)
def test_a_header_that_could_smuggle_another_one_is_refused(headers: dict[str, str]) -> None:
    provider = Provider("custom", BASE.base_url, "x", headers=headers)
    with pytest.raises(ValueError, match="holds characters that cannot be sent"):
        make(Transport(), provider)


@pytest.mark.parametrize("key", ["canary-secret\r\nX: y", "canary-secret-ü", "canary-secret\0"])
def test_a_key_that_no_header_can_carry_is_refused_without_being_repeated(key: str) -> None:
    with pytest.raises(ValueError, match="the key holds characters") as raised:
        make(Transport(), key=key)
    assert "canary" not in "".join(traceback.format_exception(raised.value))


def test_a_provider_without_an_address_is_refused() -> None:
    with pytest.raises(ValueError, match="demo has no base_url"):
        make(Transport(), PROFILES["demo"])


# --- what comes back


def test_an_answer_is_read_with_its_headers_and_timed() -> None:
    async def slowly(_: httpx.Request) -> httpx.Response:
        await anyio.sleep(2.5)
        return httpx.Response(200, json=OK, headers={"X-Request-ID": "r-1", "X-RateLimit-Remaining-Requests": "4"})

    reply = send(Transport(slowly))
    assert reply.verdict is Verdict.OK
    assert reply.text == "billing"
    assert reply.request_id == "r-1"
    assert reply.limits is not None
    assert reply.limits.remaining_requests == 4
    assert reply.latency_s == 2.5
    assert reply.sent


def test_an_http_date_in_retry_after_is_counted_from_the_wall_clock() -> None:
    response = httpx.Response(503, headers={"Retry-After": "Mon, 21 Sep 2026 14:13:30 GMT"})
    assert send(Transport(response)).retry_after == 10.0


def test_a_redirect_is_not_followed() -> None:
    transport = Transport(httpx.Response(307, headers={"Location": "https://thief.example/v1"}))
    reply = send(transport)
    assert reply.verdict is Verdict.REFUSED
    assert len(transport.requests) == 1


def test_cookies_are_not_kept() -> None:
    transport = Transport(httpx.Response(200, json=OK, headers={"Set-Cookie": "session=1"}))

    async def twice() -> None:
        async with make(transport) as client:
            await client.send(b"{}")
            transport.handler = None
            await client.send(b"{}")

    run(twice)
    assert "cookie" not in transport.requests[1].headers


def test_a_compressed_answer_is_read() -> None:
    data = gzip.compress(json.dumps(OK).encode())
    response = httpx.Response(200, stream=Body([data[:5], data[5:]]), headers={"Content-Encoding": "gzip"})
    assert send(Transport(response)).text == "billing"


@pytest.mark.parametrize("size", [20_000, 20_000_000])
def test_a_small_body_that_unpacks_to_much_is_dropped(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(client_module, "MAX_RESPONSE_BYTES", 2**20)
    bomb = gzip.compress(b" " * size)
    reply = send(Transport(httpx.Response(200, stream=Body([bomb]), headers={"Content-Encoding": "gzip"})))
    assert reply.failure is not None
    assert reply.failure.kind is ErrorKind.PROTOCOL
    assert ("more than is allowed" in reply.failure.message) == (size > 2**20)


@pytest.mark.parametrize(
    ("data", "coding"),
    [(b"no gzip", "gzip"), (gzip.compress(b"{}", mtime=0)[:-9], "gzip"), (b"{}", "br"), (b"{}", "\xff")],
)
def test_a_body_that_cannot_be_decoded_is_a_failure(data: bytes, coding: str) -> None:
    fields = [(b"content-encoding", coding.encode("latin-1"))]
    reply = send(Transport(httpx.Response(200, stream=Body([data]), headers=fields)))
    assert reply.failure is not None
    assert reply.failure.kind is ErrorKind.PROTOCOL


def test_an_answer_that_is_too_large_is_dropped_at_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "MAX_RESPONSE_BYTES", 2**20)
    body = Body([b"x" * 2**18] * 100)
    reply = send(Transport(httpx.Response(200, stream=body)))
    assert reply.verdict is Verdict.TRANSIENT
    assert reply.failure is not None
    assert (reply.failure.kind, reply.failure.http_status) == (ErrorKind.PROTOCOL, 200)
    assert reply.failure.message == "the answer is larger than 1 MiB"
    assert body.given == 5
    assert body.closed


def test_a_body_that_breaks_off_is_a_failure_and_is_closed() -> None:
    class Broken(Body):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield b'{"choices": '
            raise httpx.ReadError("reset")

    body = Broken([])
    reply = send(Transport(httpx.Response(200, stream=body)))
    assert reply.failure is not None
    assert reply.failure.kind is ErrorKind.CONNECTION
    assert reply.sent
    assert body.closed


@pytest.mark.parametrize(
    ("error", "verdict", "kind", "was_sent"),
    [
        (httpx.ConnectError("refused"), Verdict.TRANSIENT, ErrorKind.CONNECTION, False),
        (httpx.ConnectTimeout("slow"), Verdict.TRANSIENT, ErrorKind.CONNECTION, False),
        (httpx.PoolTimeout("full"), Verdict.TRANSIENT, ErrorKind.CONNECTION, False),
        (httpx.ProxyError("407"), Verdict.TRANSIENT, ErrorKind.CONNECTION, False),
        (httpx.ReadTimeout("silent"), Verdict.TRANSIENT, ErrorKind.TIMEOUT, True),
        (httpx.WriteTimeout("stuck"), Verdict.TRANSIENT, ErrorKind.TIMEOUT, True),
        (httpx.ReadError("reset"), Verdict.TRANSIENT, ErrorKind.CONNECTION, True),
        (httpx.WriteError("reset"), Verdict.TRANSIENT, ErrorKind.CONNECTION, True),
        (httpx.CloseError("odd"), Verdict.TRANSIENT, ErrorKind.CONNECTION, True),
        (httpx.RemoteProtocolError("no HTTP"), Verdict.TRANSIENT, ErrorKind.PROTOCOL, True),
        (httpx.RemoteProtocolError("Server disconnected"), Verdict.TRANSIENT, ErrorKind.CONNECTION, True),
        (httpx.DecodingError("bad gzip"), Verdict.TRANSIENT, ErrorKind.PROTOCOL, True),
        (httpx.LocalProtocolError("bad header"), Verdict.FATAL, ErrorKind.INVALID_REQUEST, False),
        (httpx.UnsupportedProtocol("no TLS"), Verdict.FATAL, ErrorKind.INVALID_REQUEST, False),
        (httpx.TooManyRedirects("odd"), Verdict.TRANSIENT, ErrorKind.CONNECTION, True),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_whatever_the_network_does_becomes_a_failure(
    error: Exception, verdict: Verdict, kind: ErrorKind, was_sent: bool
) -> None:
    reply = send(Transport(error))
    assert reply.failure is not None
    assert (reply.verdict, reply.failure.kind, reply.sent) == (verdict, kind, was_sent)
    assert reply.failure.http_status is None
    assert str(error) in reply.failure.message


def test_what_the_transport_knows_of_delivery_is_believed() -> None:
    error = httpx.ReadError("reset")
    error.__dict__["request_sent"] = False
    assert send(Transport(error)).sent is False


def test_a_failure_without_words_is_named() -> None:
    failure = send(Transport(httpx.ReadError(""))).failure
    assert failure is not None
    assert failure.message == "ReadError"


def test_an_untrusted_certificate_says_what_to_set() -> None:
    reply = send(Transport(httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed")))
    failure = reply.failure
    assert failure is not None
    assert (reply.verdict, reply.sent) == (Verdict.FATAL, False)
    assert "provider.ca_file" in failure.message


def test_trouble_of_this_machine_is_no_reply() -> None:
    with pytest.raises(StorageError):
        send(Transport(StorageError("too many open files")))


# --- time


def test_an_attempt_ends_at_the_timeout_however_slowly_the_body_drips() -> None:
    body = Body([b" "] * 1_000, pause_s=1.0)
    reply = send(Transport(httpx.Response(200, stream=body)), timeout=30.0)
    assert reply.verdict is Verdict.TRANSIENT
    assert reply.failure is not None
    assert reply.failure.kind is ErrorKind.TIMEOUT
    assert reply.failure.message == "no whole answer within 30 s"
    assert reply.latency_s == 30.0
    assert reply.sent
    assert body.closed


@pytest.mark.parametrize(("at_most", "ends_at"), [(5.0, 5.0), (500.0, 30.0), (None, 30.0)])
def test_the_sooner_of_two_timeouts_holds(at_most: float | None, ends_at: float) -> None:
    async def never(_: httpx.Request) -> httpx.Response:
        await anyio.sleep_forever()
        raise AssertionError

    assert send(Transport(never), timeout=30.0, at_most=at_most).latency_s == ends_at


def test_a_body_that_ends_in_time_is_an_answer_however_slow() -> None:
    pieces = [bytes([byte]) for byte in json.dumps(OK).encode()]
    reply = send(Transport(httpx.Response(200, stream=Body(pieces, pause_s=1.0))), timeout=310.0)
    assert reply.text == "billing"
    assert reply.latency_s == len(pieces)


STREAM = (
    b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n',
    b'data: {"choices":[{"delta":{"content":"bil"}}]}\n\n',
    b'data: {"choices":[{"delta":{"content":"ling"},"finish_reason":"stop"}]}\n\n',
    b'data: {"choices":[],"usage":{"completion_tokens":6}}\n\n',
    b"data: [DONE]\n\n",
)


def streaming(pieces: list[bytes], *, timeout: float = 310.0, queued_s: float | None = 2.0) -> tuple[Reply, Body]:
    """Send to a server that streams a piece a second, over a transport that is busy for `queued_s` and tells of it."""
    body = Body(pieces, pause_s=1.0)

    async def handler(request: httpx.Request) -> httpx.Response:
        if queued_s is not None:
            await anyio.sleep(queued_s)
            await request.extensions["trace"]("http11.send_request_headers.started", {})
        return httpx.Response(200, headers={"Content-Type": "text/event-stream"}, stream=body)

    async def task() -> Reply:
        async with ChatClient(BASE, Transport(handler), api_key=KEY, request_timeout=timeout, stream=True) as client:
            return await client.send(b"{}")

    reply: Reply = run(task)
    return reply, body


def test_tokens_are_timed_from_when_the_request_went_out() -> None:
    reply, body = streaming([*STREAM])
    assert (reply.verdict, reply.text) == (Verdict.OK, "billing")
    assert (reply.ttft_s, reply.output_tokens_per_s, reply.latency_s) == (2.0, 6.0, 7.0)
    assert body.closed
    assert streaming([*STREAM], queued_s=None)[0].ttft_s == 2.0


def test_a_stream_that_goes_on_after_its_end_is_left_in_time() -> None:
    reply, body = streaming([*STREAM, *[b": ping\n\n"] * 1000])
    assert (reply.text, reply.latency_s, body.given, body.closed) == ("billing", 7.25, 5, True)


def test_a_stream_that_does_not_end_in_time_keeps_what_it_brought() -> None:
    reply, body = streaming([*STREAM[:2], *[b": ping\n\n"] * 1000], timeout=30.0)
    assert reply.failure is not None
    assert (reply.verdict, reply.failure.kind, reply.failure.http_status) == (Verdict.TRANSIENT, ErrorKind.TIMEOUT, 200)
    assert (reply.text, reply.ttft_s, reply.latency_s, body.closed) == ("bil", 2.0, 30.0, True)


def test_a_timeout_after_the_end_of_a_stream_is_too_late_to_matter() -> None:
    reply, _body = streaming([*STREAM, b": ping\n\n"], timeout=7.1)
    assert (reply.verdict, reply.text, reply.latency_s) == (Verdict.OK, "billing", 7.1)


def test_a_stream_that_breaks_off_is_a_failure_and_is_closed() -> None:
    class Broken(Body):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            async for piece in super().__aiter__():
                yield piece
            raise httpx.ReadError("reset")

    body = Broken([*STREAM[:2]])
    response = httpx.Response(200, headers={"Content-Type": "text/event-stream"}, stream=body)

    async def task() -> Reply:
        async with ChatClient(BASE, Transport(response), api_key=KEY, request_timeout=9.0, stream=True) as client:
            return await client.send(b"{}")

    reply: Reply = run(task)
    assert reply.failure is not None
    assert (reply.failure.kind, reply.failure.http_status, reply.text) == (ErrorKind.CONNECTION, 200, "bil")
    assert body.closed


def test_the_transport_is_told_how_long_it_may_be_silent() -> None:
    transport = Transport()
    send(transport, timeout=100.0)
    send(transport, timeout=10.0)
    first, second = (request.extensions["timeout"] for request in transport.requests)
    assert first == {"connect": 30.0, "read": 100.0, "write": 100.0, "pool": 100.0}
    assert second["connect"] == 10.0


def test_cancellation_goes_through() -> None:
    async def never(_: httpx.Request) -> httpx.Response:
        await anyio.sleep_forever()
        raise AssertionError

    async def attempt() -> bool:
        async with make(Transport(never)) as client:
            with anyio.move_on_after(1) as scope:
                await client.send(b"{}")
            return scope.cancelled_caught

    assert run(attempt)


def test_leaving_the_client_closes_its_transport_once() -> None:
    transport = Transport()
    send(transport)
    assert transport.closed == 1


# --- the key


def _escaped(key: str) -> str:
    return "".join(f"\\u{ord(character):04X}" for character in key)


SPELLINGS = {
    "plain": KEY,
    "percent": quote(KEY, safe=""),
    "percent, slash kept": quote(KEY),
    "percent twice": quote(quote(KEY, safe=""), safe=""),
    "every character": "".join(f"%{ord(character):02x}" for character in KEY),
    "escaped slash": KEY.replace("/", "\\/"),
    "unicode escapes": _escaped(KEY),
    "unicode escapes twice": _escaped(KEY).replace("\\", "\\\\"),
    "some unicode escapes": KEY[:9] + "\\u0032" + KEY[10:],
    "entities": KEY.replace("/", "&#47;").replace("+", "&#x2B;"),
}


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS)
@pytest.mark.parametrize("status", [200, 400, 401, 500])
def test_a_key_that_the_server_repeats_is_in_no_message(status: int, spelling: str) -> None:
    raw = b'{"error": {"message": "you sent ' + spelling.encode() + b'!"}}'
    bodies = [
        raw,
        json.dumps({"error": {"message": f"you sent {spelling}!"}}).encode(),
        json.dumps({"detail": f'{{"headers": "Bearer {spelling}"}}'}).encode(),
        f"<p>Bearer {spelling}</p>".encode(),
        f"Bearer {spelling}".encode(),
    ]
    for body in bodies:
        failure = send(Transport(httpx.Response(status, content=body))).failure
        assert failure is not None
        assert "***" in failure.message
        assert "canary" not in repr(failure)
        assert "abcdef" not in repr(failure)


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS)
def test_a_key_that_a_model_repeats_is_in_no_part_of_the_answer(spelling: str) -> None:
    call = {"id": spelling, "type": spelling, "function": {"name": spelling, "arguments": {"key": spelling}}}
    message = {"content": f"it is {spelling}.", "reasoning": spelling, "tool_calls": [call]}
    answer = {"choices": [{"message": message, "finish_reason": spelling}], "model": spelling, "id": spelling}
    reply = send(Transport(httpx.Response(200, json=answer, headers={"x-request-id": KEY})))
    assert reply.verdict is Verdict.OK
    assert reply.text == "it is ***."
    assert reply.request_id == "***"
    assert "canary" not in repr(reply)
    assert "abcdef" not in repr(reply)


def test_a_key_in_a_redirect_or_an_exception_is_masked() -> None:
    redirect = send(Transport(httpx.Response(302, headers={"location": f"https://h.example/?key={KEY}"})))
    broken = send(Transport(httpx.RemoteProtocolError(f"bad header: Bearer {KEY}")))
    for reply in (redirect, broken):
        assert reply.failure is not None
        assert "***" in reply.failure.message
        assert "canary" not in repr(reply)


def test_a_key_at_the_cut_of_a_message_leaves_no_beginning_behind() -> None:
    for length in (980, 990, 999):
        failure = send(Transport(httpx.Response(400, content=b"x" * length + _escaped(KEY).encode()))).failure
        assert failure is not None
        assert "\\u" not in failure.message


def test_an_ordinary_word_as_a_key_does_not_damage_answers() -> None:
    transport = Transport(httpx.Response(200, json={"choices": [{"message": {"content": "EMPTY choices"}}]}))
    assert send(transport, key="EMPTY").text == "EMPTY choices"
    assert send(Transport(), key="choices").text == "billing"


def test_the_client_and_its_parts_do_not_show_the_key() -> None:
    client = make(Transport(), Provider("custom", "https://h.example/v1", "x", extra_query={"sig": "canary-2"}))
    assert repr(client) == "ChatClient('custom', 'https://h.example/v1/chat/completions')"
    assert "canary" not in repr(vars(client)).replace("canary-2", "")


def test_an_error_inside_the_client_does_not_show_the_key() -> None:
    async def fault(_: httpx.Request) -> httpx.Response:
        raise RuntimeError("a fault")

    with pytest.raises(RuntimeError) as raised:
        send(Transport(fault))
    assert "canary" not in "".join(traceback.format_exception(raised.value))


@given(
    key=st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=8, max_size=40),
    around=st.tuples(st.text(max_size=10), st.text(max_size=10)),
    spell=st.lists(st.integers(0, 4), min_size=40, max_size=40),
)
def test_any_key_is_found_in_any_mixture_of_spellings(key: str, around: tuple[str, str], spell: list[int]) -> None:
    def spelled(character: str, way: int) -> str:
        code = ord(character)
        return (character, f"\\u{code:04x}", f"\\\\u{code:04X}", f"%{code:02X}", f"&#{code};")[way]

    hidden = "".join(spelled(character, way) for character, way in zip(key, spell, strict=False))
    masked = KeyMask(key)(around[0] + hidden + around[1])
    assert hidden not in masked
    assert "***" in masked
