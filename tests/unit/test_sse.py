from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchchat.client.sse import EventParser, ServerEvent

Case = tuple[bytes, list[tuple[bytes, bytes]]]

# Most lines are the standard's own examples (WHATWG HTML, 9.2.6), by what they show.
CASES: dict[str, Case] = {
    "one event": (b"data: a\n\n", [(b"", b"a")]),
    "no space": (b"data:a\n\n", [(b"", b"a")]),
    "one space only is dropped": (b"data:  a \n\n", [(b"", b" a ")]),
    "lines are joined": (b"data: YHOO\ndata: +2\ndata: 10\n\n", [(b"", b"YHOO\n+2\n10")]),
    "comment, data, id": (b": test\n\ndata: first\nid: 1\n\ndata:second\nid\n\n", [(b"", b"first"), (b"", b"second")]),
    "data without a colon": (b"data\n\ndata\ndata\n\ndata:", [(b"", b""), (b"", b"\n")]),
    "an event type lasts for one event": (b"event: add\ndata: 7\n\ndata: 8\n\n", [(b"add", b"7"), (b"", b"8")]),
    "a type without data is no event": (b"event: add\n\ndata: 8\n\n", [(b"", b"8")]),
    "CR": (b"data: a\rdata: b\r\rdata: c\r\r", [(b"", b"a\nb"), (b"", b"c")]),
    "CRLF": (b"data: a\r\ndata: b\r\n\r\ndata: c\r\n\r\n", [(b"", b"a\nb"), (b"", b"c")]),
    "all ends mixed": (b"data: a\r\ndata: b\rdata: c\n\r\n", [(b"", b"a\nb\nc")]),
    "byte order mark": (b"\xef\xbb\xbfdata: a\n\n", [(b"", b"a")]),
    "only the first mark": (b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\ndata: b\n\n", [(b"", b"b")]),
    "part of a mark is none": (b"\xef\xbbdata: a\n\ndata: b\n\n", [(b"", b"b")]),
    "comments between the lines": (b":\ndata: a\n: ping\ndata: b\n\n:\n\n", [(b"", b"a\nb")]),
    "unknown fields": (b"retry: 10\nfoo: bar\nDATA: x\ndata : x\ndata: a\n\n", [(b"", b"a")]),
    "other line breaks are text": (b"data: a\x0bb\x0c\xc2\x85c\n\n", [(b"", b"a\x0bb\x0c\xc2\x85c")]),
    "no blank line at the end": (b"data: a\n\ndata: b\n", [(b"", b"a")]),
    "no line break at the end": (b"data: a\n\ndata: b", [(b"", b"a")]),
    "many blank lines": (b"\n\n\r\n\rdata: a\n\n\n\n", [(b"", b"a")]),
    "invalid UTF-8 is passed on": (b"data: \xff\xfe\n\n", [(b"", b"\xff\xfe")]),
    "nothing": (b"", []),
}  # fmt: skip


def parse(*pieces: bytes) -> list[ServerEvent]:
    parser = EventParser()
    return [event for piece in pieces for event in parser.feed(piece)]


@pytest.mark.parametrize("name", CASES)
def test_a_stream_is_read_as_the_standard_says_however_it_is_cut(name: str) -> None:
    data, expected = CASES[name]
    assert parse(data) == expected
    assert parse(*(data[place : place + 1] for place in range(len(data)))) == expected
    for place in range(len(data)):
        assert parse(data[:place], b"", data[place:]) == expected


def test_an_event_is_told_as_soon_as_its_blank_line_has_come() -> None:
    parser = EventParser()
    assert parser.feed(b"data: a\r") == []
    assert parser.feed(b"\r") == [(b"", b"a")]
    assert parser.feed(b"\ndata: b\n\n") == [(b"", b"b")]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"data: b\n", [(b"", b"b")]),
        (b"event: x\ndata: b", [(b"x", b"b")]),
        (b"", []),
        (b"data: a\n\n", []),
        (b":x", []),
    ],
)
def test_the_end_gives_what_was_left_unfinished(data: bytes, expected: list[tuple[bytes, bytes]]) -> None:
    parser = EventParser()
    parser.feed(data)
    assert parser.finish() == expected
    assert parser.finish() == []


LINES = st.one_of(
    st.sampled_from(
        [b"data: a", b"data", b"data:", b"event: x", b": c", b"", b"id: 1", b"\xef\xbb\xbf", b"data: \xf0\x9f"]
    ),
    st.binary(max_size=8),
)
ENDS = st.sampled_from([b"\n", b"\r", b"\r\n", b""])
STREAMS = st.lists(st.tuples(LINES, ENDS), max_size=30).map(lambda parts: b"".join(line + end for line, end in parts))


@given(STREAMS, st.lists(st.integers(0, 200), max_size=20), st.integers(1, 100))
def test_no_cut_changes_what_is_read(data: bytes, places: list[int], bound: int) -> None:
    whole, cut = EventParser(max_event_bytes=bound), EventParser(max_event_bytes=bound)
    cuts = [0, *sorted(places), len(data)]
    events = [event for start, end in pairwise(cuts) for event in cut.feed(data[start:end])]
    assert events == whole.feed(data)
    assert cut.too_large == whole.too_large
    assert cut.finish() == whole.finish()


@given(
    st.lists(st.tuples(st.sampled_from([b"", b"add"]), st.lists(st.binary(max_size=9), min_size=1, max_size=3))), ENDS
)
def test_what_is_written_is_read_back(events: list[tuple[bytes, list[bytes]]], end: bytes) -> None:
    end = end or b"\n"
    clean = [(kind, [line.translate(None, b"\r\n") for line in lines]) for kind, lines in events]
    written = b"".join(
        (b"event: " + kind + end if kind else b"") + b"".join(b"data: " + line + end for line in lines) + end
        for kind, lines in clean
    )
    assert parse(written) == [(kind, b"\n".join(lines)) for kind, lines in clean]


@pytest.mark.parametrize("piece", [b"x" * 10, b"data: 0123456789", b"data: 0\n", b"data\n", b"data: 0\n: c\n"])
def test_an_event_without_end_is_given_up_before_it_fills_the_memory(piece: bytes) -> None:
    parser = EventParser(max_event_bytes=1000)
    assert parser.feed(b"data: a\n\n") == [(b"", b"a")]
    fed = 0
    while not parser.too_large:
        assert parser.feed(piece) == []
        fed += len(piece)
    assert fed <= 1000 + len(piece)
    assert parser.feed(b"\n\ndata: b\n\n") == parser.finish() == []


def test_a_stream_without_end_may_be_as_long_as_it_likes() -> None:
    parser = EventParser(max_event_bytes=200)
    for _ in range(1000):
        assert parser.feed(b": keep-alive\n\nid: 1\ndata: abc\n\n") == [(b"", b"abc")]
        assert parser.feed(b"x: " + b"y" * 60 + b"\n") == []
    assert not parser.too_large


def test_one_byte_at_a_time_costs_no_more_than_a_long_line() -> None:
    parser = EventParser()
    line = b"data: " + b"a" * 50_000
    for place in range(len(line)):
        parser.feed(line[place : place + 1])
    assert parser.feed(b"\n\n") == [(b"", b"a" * 50_000)]
