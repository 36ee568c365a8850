"""Decoding within bounds, and a connection's parser under every way that bytes can be cut up or damaged."""

from __future__ import annotations

import asyncio
import gzip
import math
import tracemalloc
import zlib
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchchat.transport import BodySink, ResponseTooLarge, request_sent
from batchchat.transport.connection import Connection
from batchchat.transport.decoding import BodyDecoder, decoder_for
from batchchat.transport.faults import tell_sent
from batchchat.transport.incoming import Incoming
from tests.thorough import examples


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """The data in pieces, cut at these places (taken modulo its length)."""
    ends = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[start:end] for start, end in pairwise(ends)]


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


PACKERS: dict[str, tuple[bytes, Callable[[bytes], bytes]]] = {
    "gzip": (b"gzip", gzip.compress),
    "gzip, two members": (b"X-GZIP", lambda data: gzip.compress(data[:5]) + gzip.compress(data[5:])),
    "gzip, padded": (b"gzip", lambda data: gzip.compress(data) + bytes(9)),
    "deflate": (b" Deflate", zlib.compress),
    "deflate without its wrapper": (b"deflate", raw_deflate),
}
FEWER = examples(40)
PLACES = st.lists(st.integers(min_value=0, max_value=2**16), max_size=30)


@pytest.mark.parametrize("name", PACKERS)
@FEWER
@given(data=st.binary(max_size=3000), places=PLACES)
def test_what_was_packed_is_unpacked_however_it_is_cut(name: str, data: bytes, places: list[int]) -> None:
    coding, pack = PACKERS[name]
    decoder = decoder_for(coding)
    assert decoder is not None
    pieces, room = [], len(data)
    for piece in cut(pack(data), places):
        pieces.append(decoder.feed(piece, room))
        room -= len(pieces[-1])
    decoder.finish()
    assert b"".join(pieces) == data


@pytest.mark.parametrize("name", PACKERS)
@FEWER
@given(data=st.binary(min_size=50, max_size=500), end=st.integers(min_value=1, max_value=2**16))
def test_what_ends_too_early_is_never_taken_for_whole(name: str, data: bytes, end: int) -> None:
    coding, pack = PACKERS[name]
    packed = pack(data)
    decoder = decoder_for(coding)
    assert decoder is not None
    out = decoder.feed(packed[: end % len(packed)], 10_000)
    try:
        decoder.finish()
    except httpx.DecodingError:
        return
    # The cut fell between members, into padding, or before the first byte.
    assert end % len(packed) == 0 or out in {data, data[:5]}


@given(data=st.binary(max_size=300))
def test_damaged_data_ends_in_a_decoding_error_or_in_bytes_within_bounds(data: bytes) -> None:
    for gzipped in (True, False):
        decoder = BodyDecoder(gzip=gzipped)
        try:
            assert len(decoder.feed(data, 1000)) <= 1000
            decoder.finish()
        except (httpx.DecodingError, ResponseTooLarge):
            pass


def test_a_bomb_takes_no_more_memory_than_is_allowed() -> None:
    bomb = gzip.compress(bytes(64 * 2**20), 1)
    assert len(bomb) < 400_000
    tracemalloc.start()
    try:
        with pytest.raises(ResponseTooLarge):
            BodyDecoder(gzip=True).feed(bomb, 2**20)
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()


def test_a_body_of_endless_empty_members_is_refused() -> None:
    with pytest.raises(httpx.DecodingError, match="more than 64 members"):
        BodyDecoder(gzip=True).feed(gzip.compress(b"") * 1000, 100)


def test_the_bound_is_exact() -> None:
    packed = gzip.compress(bytes(1000))
    assert len(BodyDecoder(gzip=True).feed(packed, 1000)) == 1000
    with pytest.raises(ResponseTooLarge):
        BodyDecoder(gzip=True).feed(packed, 999)


def test_encodings_that_were_not_asked_for_are_refused() -> None:
    assert decoder_for(b"identity") is None
    assert decoder_for(b"") is None
    for coding in (b"br", b"zstd", b"gzip, gzip", b"\xff"):
        with pytest.raises(httpx.DecodingError, match="not asked for"):
            decoder_for(coding)


@pytest.mark.parametrize(
    ("error", "sent"),
    [
        (httpx.ConnectError("x"), False),
        (httpx.ConnectTimeout("x"), False),
        (httpx.PoolTimeout("x"), False),
        (httpx.ProxyError("x"), False),
        (httpx.ReadError("x"), True),
        (httpx.ReadTimeout("x"), True),
        (httpx.RemoteProtocolError("x"), True),
        (ResponseTooLarge("x"), True),
        (tell_sent(httpx.ReadError("x"), sent=False), False),
        (ValueError("x"), True),
    ],
)
def test_whether_a_request_was_sent_is_told_of_every_error(error: Exception, sent: bool) -> None:
    assert request_sent(error) is sent


# The parser


class Loop:
    """As much of an event loop as a connection asks of it."""

    def time(self) -> float:
        return 1.0

    def create_future(self) -> Waiter:
        return Waiter()


class Waiter:
    """A future that nobody awaits."""

    def __init__(self) -> None:
        self.woken = False

    def done(self) -> bool:
        return self.woken

    def set_result(self, _result: None) -> None:
        self.woken = True


class Wire(asyncio.Transport):
    """A transport that remembers."""

    def __init__(self) -> None:
        super().__init__()
        self.aborted = False
        self.written = b""

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


class Shelf:
    """Where a connection comes back to."""

    def __init__(self) -> None:
        self.released = 0
        self.forgotten = 0
        self.awaited = self.unasked_for = 0
        self.keeps_streams = True

    def awaits(self, connection: Connection) -> None:
        self.awaited += 1

    def release(self, connection: Connection) -> None:
        self.released += 1

    def forget(self, connection: Connection) -> None:
        self.forgotten += 1

    def keeps(self, *, streamed: bool) -> bool:
        return not streamed or self.keeps_streams

    def unasked(self) -> None:
        self.unasked_for += 1

    def closes_after_streams(self) -> None:
        self.keeps_streams = False


def connected() -> tuple[Connection, Wire, Shelf]:
    shelf, wire, loop = Shelf(), Wire(), Loop()
    connection = Connection(
        shelf,
        loop,  # type: ignore[arg-type]  # as much of one as is needed
        idle_timeout=60,
        max_head_bytes=2000,
        max_body_bytes=5000,
    )
    connection.connection_made(wire)
    return connection, wire, shelf


def asked(connection: Connection, sink: BodySink | None = None) -> Incoming:
    incoming = Incoming(connection, 9.0, math.inf, sink, streamable=False, wants_body=True)
    incoming.waiter = Waiter()  # type: ignore[assignment]  # as much of a future as is needed
    connection.begin(incoming, 1.0)
    return incoming


def receive(data: list[bytes], *, ends: bool = False, sink: BodySink | None = None) -> tuple[Incoming, Wire, Shelf]:
    """What comes of a response that arrives in these pieces."""
    connection, wire, shelf = connected()
    incoming = asked(connection, sink)
    for piece in data:
        if wire.aborted:
            break
        connection.data_received(piece)
    if ends and not wire.aborted:
        connection.eof_received()
        connection.connection_lost(None)
    return incoming, wire, shelf


BODY = b'{"choices": [{"message": {"content": "yes"}}]}'
HEAD = b"HTTP/1.1 200 OK\r\nServer: x\r\nX-A: 1\r\nX-A: 2\r\n"
FRAMED: dict[str, tuple[bytes, bool]] = {
    "length": (HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY, True),
    "chunks": (
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n9\r\n%b\r\n25\r\n%b\r\n0\r\n\r\n" % (BODY[:9], BODY[9:]),
        True,
    ),
    "close": (HEAD + b"\r\n" + BODY, False),
    "interim": (b"HTTP/1.1 100 Continue\r\n\r\n" + HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY, True),
    "gzip": (
        HEAD + b"Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"%x\r\n%b\r\n0\r\n\r\n" % (len(gzip.compress(BODY)), gzip.compress(BODY, mtime=0)),
        True,
    ),
}


@pytest.mark.parametrize("name", FRAMED)
@FEWER
@given(places=PLACES)
def test_a_response_is_the_same_however_it_is_cut(name: str, places: list[int]) -> None:
    data, kept = FRAMED[name]
    incoming, wire, shelf = receive(cut(data, places), ends=not kept)
    assert incoming.fault is None
    assert incoming.complete
    assert (incoming.status, incoming.body) == (200, BODY)
    assert incoming.fields[b"x-a"] == b"2"
    assert incoming.headers[:3] == [(b"Server", b"x"), (b"X-A", b"1"), (b"X-A", b"2")]
    assert (shelf.released, wire.aborted) == ((1, False) if kept else (0, False))
    assert incoming.waiter.done()


@pytest.mark.parametrize("name", FRAMED)
@FEWER
@given(places=PLACES, end=st.integers(min_value=0, max_value=2**16))
def test_a_response_that_ends_too_early_is_never_taken_for_whole(name: str, places: list[int], end: int) -> None:
    data, kept = FRAMED[name]
    data = data[: end % len(data)]
    incoming, _wire, shelf = receive(cut(data, places), ends=True)
    assert incoming.waiter.done()
    assert shelf.released == 0
    if kept or b"\r\n\r\n" not in data:
        assert isinstance(incoming.fault, httpx.RemoteProtocolError)
        assert not incoming.complete


@examples(150)
@given(
    name=st.sampled_from(sorted(FRAMED)),
    damage=st.lists(st.tuples(st.integers(min_value=0, max_value=2**16), st.binary(max_size=9)), max_size=5),
    places=PLACES,
)
def test_whatever_arrives_ends_in_an_answer_or_an_error(
    name: str, damage: list[tuple[int, bytes]], places: list[int]
) -> None:
    data = FRAMED[name][0]
    for place, instead in damage:
        at = place % (len(data) + 1)
        data = data[:at] + instead + data[at + len(instead) :]
    incoming, _wire, shelf = receive(cut(data, places), ends=True)
    assert incoming.waiter.done()
    assert (incoming.fault is not None) or incoming.complete
    assert shelf.released <= 1
    assert len(incoming.body) <= 5000


@given(surplus=st.binary(min_size=1, max_size=100), places=PLACES)
def test_what_follows_a_whole_answer_spoils_the_connection_and_not_the_answer(
    surplus: bytes, places: list[int]
) -> None:
    data = FRAMED["length"][0]
    incoming, wire, shelf = receive([data + surplus])
    assert (incoming.fault, incoming.body) == (None, BODY)
    if surplus.strip(b"\r\n"):
        assert (wire.aborted, shelf.released) == (True, 0)
    connection, wire, _shelf = connected()
    first = asked(connection)
    connection.data_received(data)
    connection.data_received(surplus)  # unasked, on an idle connection
    assert wire.aborted
    assert first.body == BODY


@pytest.mark.parametrize("size", [1, 7, 500, 5000])
def test_the_bounds_hold_for_every_way_of_arriving(size: int) -> None:
    def pieces(data: bytes) -> list[bytes]:
        return [data[start : start + size] for start in range(0, len(data), size)]

    fits = b"HTTP/1.1 200 OK\r\nA: %b\r\nContent-Length: 5000\r\n\r\n" % (b"x" * 1900) + bytes(5000)
    incoming, _wire, _shelf = receive(pieces(fits))
    assert incoming.complete
    assert len(incoming.body) == 5000
    for data in (
        b"HTTP/1.1 200 OK\r\nA: %b\r\nContent-Length: 2\r\n\r\n{}" % (b"x" * 2100),
        b"HTTP/1.1 200 %b\r\nContent-Length: 2\r\n\r\n{}" % (b"x" * 7100),
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 400 + b"Content-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5001\r\n\r\n" + bytes(5001),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n" + b"A: b\r\n" * 400 + b"\r\n",
    ):
        incoming, wire, shelf = receive(pieces(data))
        assert isinstance(incoming.fault, ResponseTooLarge), data[:60]
        assert (wire.aborted, shelf.released) == (True, 0)


# A sink

STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"


class Sink:
    """Takes a body until it has seen `end`."""

    def __init__(self, end: bytes = b"\0") -> None:
        self.end = end
        self.head: tuple[int, dict[bytes, bytes]] | None = None
        self.pieces: list[bytes] = []
        self.done = False

    def sent(self, now: float) -> None:
        raise AssertionError("it is the transport that tells this")

    def begin(self, status: int, headers: dict[bytes, bytes]) -> None:
        assert self.head is None
        self.head = status, headers

    def feed(self, piece: bytes, now: float) -> None:
        assert (self.head is not None, now) == (True, 1.0)
        self.pieces.append(piece)
        self.done = self.done or self.end in b"".join(self.pieces)

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)


def framed(body: bytes, how: str) -> bytes:
    if how == "gzip":
        return (
            STREAM_HEAD
            + b"Content-Encoding: gzip\r\n"
            + framed(gzip.compress(body, mtime=0), "chunks")[len(STREAM_HEAD) :]
        )
    if how == "length":
        return STREAM_HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
    if how == "close":
        return STREAM_HEAD + b"\r\n" + body
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (body[:9], body[9:]))
    return STREAM_HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"


@pytest.mark.parametrize("how", ["length", "chunks", "close", "gzip"])
@FEWER
@given(places=PLACES)
def test_a_sink_gets_the_whole_stream_however_it_is_cut(how: str, places: list[int]) -> None:
    sink = Sink()
    incoming, wire, shelf = receive(cut(framed(BODY, how), places), ends=how == "close", sink=sink)
    assert (incoming.fault, incoming.complete, incoming.waiter.done()) == (None, True, True)
    assert (sink.body, incoming.body) == (BODY, b"")
    assert sink.head is not None
    assert sink.head[0] == 200
    assert sink.head[1][b"content-type"] == b"text/event-stream; charset=utf-8"
    assert (shelf.released, wire.aborted) == ((0, False) if how == "close" else (1, False))


BEGUN = STREAM_HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nyes\r\n"


def test_the_end_of_a_stream_is_waited_for_a_moment_once_its_sink_is_done() -> None:
    connection, wire, shelf = connected()
    incoming = asked(connection, Sink(end=b"yes"))
    connection.data_received(BEGUN)
    assert (connection.due, shelf.awaited, incoming.waiter.done()) == (1.25, 1, False)
    connection.data_received(b"2\r\n\r\n\r\n")
    connection.data_received(b"0\r\n\r\n")
    assert (incoming.fault, incoming.waiter.done()) == (None, True)
    assert (shelf.awaited, shelf.released, wire.aborted) == (1, 1, False)


def test_a_stream_that_does_not_end_is_let_go() -> None:
    connection, wire, shelf = connected()
    incoming = asked(connection, Sink(end=b"yes"))
    connection.data_received(BEGUN)
    connection.expire()
    assert (incoming.waiter.done(), wire.aborted, shelf.released) == (True, True, 0)


@pytest.mark.parametrize("piece", [b"zz", b"3e8\r\n" + b"z" * 1000 + b"\r\n"], ids=["damaged", "without end"])
def test_what_follows_a_sink_that_is_done_is_bounded(piece: bytes) -> None:
    sink = Sink(end=b"yes")
    incoming, wire, shelf = receive([BEGUN, *[piece] * 30], sink=sink)
    assert (incoming.waiter.done(), wire.aborted, shelf.released) == (True, True, 0)
    assert len(sink.body) < 5000


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n",
        b"HTTP/1.1 500 x\r\nContent-Type: text/event-stream\r\n",
    ],
)
def test_an_answer_that_is_no_stream_does_not_go_into_the_sink(head: bytes) -> None:
    sink = Sink()
    incoming, _wire, _shelf = receive([head + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY], sink=sink)
    assert (sink.head, sink.pieces, incoming.body) == (None, [], BODY)


@FEWER
@given(places=PLACES, end=st.integers(min_value=0, max_value=2**16), how=st.sampled_from(["length", "chunks", "gzip"]))
def test_a_stream_that_ends_too_early_is_never_taken_for_whole(places: list[int], end: int, how: str) -> None:
    data = framed(BODY, how)
    incoming, _wire, shelf = receive(cut(data[: end % len(data)], places), ends=True, sink=Sink())
    assert isinstance(incoming.fault, httpx.RemoteProtocolError)
    assert (incoming.complete, incoming.waiter.done(), shelf.released) == (False, True, 0)


def test_the_bound_holds_for_a_stream() -> None:
    head = STREAM_HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    sink = Sink()
    incoming, wire, _shelf = receive([head, *[b"64\r\n%b\r\n" % bytes(100).replace(b"\0", b"a")] * 60], sink=sink)
    assert isinstance(incoming.fault, ResponseTooLarge)
    assert (len(sink.body), wire.aborted) == (5000, True)
