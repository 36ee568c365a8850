"""A streamed answer means what the same answer means whole, however it is cut; a broken one is never an answer."""

from __future__ import annotations

import json
import tracemalloc
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchchat.client.chunks import ChunkAssembler
from batchchat.client.masking import KeyMask
from batchchat.client.sse import ServerEvent
from batchchat.client.streaming import StreamReader, holds_events, read_whole_stream
from batchchat.client.wire import read_reply
from batchchat.records import Completion, ErrorKind, Failure, Reply, Usage, Verdict
from tests.thorough import examples

NOW = 1_790_000_000.0
NO_KEY = KeyMask(None)
USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
DONE = b"data: [DONE]\n\n"
START = {"role": "assistant", "content": ""}


def event(data: Any, kind: str = "") -> bytes:
    text = data if isinstance(data, bytes) else json.dumps(data).encode()
    return (f"event: {kind}\n".encode() if kind else b"") + b"data: " + text + b"\n\n"


def chunk(delta: Any = None, finish: Any = None, **fields: Any) -> bytes:
    """A chunk with one choice; `choice` adds to that."""
    choice = {"index": 0, "delta": {} if delta is None else delta, "finish_reason": finish, **fields.pop("choice", {})}
    head = {"id": "chat-1", "object": "chat.completion.chunk", "model": "m-1"}
    return event({**head, "choices": [choice], **fields})


LAST = event({"id": "chat-1", "model": "m-1", "choices": [], "usage": USAGE})


def stream(*deltas: Any, finish: Any = "stop") -> bytes:
    return b"".join(map(chunk, deltas)) + chunk({}, finish) + LAST + DONE


def read(*pieces: bytes, mask: KeyMask = NO_KEY, every: float = 0.0, **headers: str) -> Reply:
    """Read a stream, in pieces that come `every` so many seconds; the first one that long after the request."""
    fields = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    reader = StreamReader(100.0)
    reader.begin(200, fields)
    for number, piece in enumerate(pieces, 1):
        reader.feed(piece, 100.0 + number * every)
    return reader.reply(now=NOW, mask=mask)


def completed(reply: Reply) -> Completion:
    assert reply.verdict is Verdict.OK, reply
    assert reply.failure is None
    assert reply.completion is not None
    return reply.completion


def broken(reply: Reply, kind: ErrorKind = ErrorKind.PROTOCOL) -> Failure:
    assert reply.failure is not None, reply
    assert (reply.verdict, reply.failure.kind) == (Verdict.TRANSIENT, kind)
    return reply.failure


# --- what an answer says


def test_an_answer_is_put_together_with_its_usage() -> None:
    reply = read(stream(START, {"content": "bil"}, {"content": "ling"}), x_request_id="req-9")
    done = completed(reply)
    assert (done.text, done.finish_reason, done.model) == ("billing", "stop", "m-1")
    assert done.usage == reply.usage == Usage(10, 5, 15)
    assert (reply.text, reply.model, reply.request_id) == ("billing", "m-1", "req-9")
    assert (done.refusal, done.reasoning, done.tool_calls, done.logprobs) == (None, None, None, None)


def thought(text: str) -> dict[str, Any]:
    return {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": text}]}]}


@pytest.mark.parametrize(
    ("deltas", "text", "reasoning"),
    [
        ([START, {"reasoning_content": "2+"}, {"reasoning_content": "2"}, {"content": "4"}], "4", "2+2"),
        ([START, {"reasoning": "2+"}, {"reasoning": "2"}, {"content": "4"}], "4", "2+2"),
        ([{"reasoning_content": "2+2", "reasoning": "2+2"}, {"content": "4"}], "4", "2+2"),
        ([START, {"content": "<thi"}, {"content": "nk>2+2</th"}, {"content": "ink>\n4"}], "4", "2+2"),
        ([thought("2+"), thought("2"), {"content": "4"}], "4", "2+2"),
        ([{"content": [{"type": "text", "text": "fo"}, None, 7]}, {"content": "ur"}], "four", None),
        ([{"content": [{"type": [], "text": "fo"}, {"type": {}, "text": "ur"}]}], "four", None),
        ([{"content": None, "reasoning_content": None}, {"content": "4", "reasoning": {"odd": 1}}], "4", None),
        ([START, {"content": "\ud83d"}, {"content": "\ude00"}], "\U0001f600", None),
        ([{"content": "4"}, None, {}, {"content": ""}], "4", None),
    ],
)  # fmt: skip
def test_text_and_reasoning_are_found_wherever_a_server_puts_them(
    deltas: list[Any], text: str, reasoning: str | None
) -> None:
    done = completed(read(stream(*deltas)))
    assert (done.text, done.reasoning) == (text, reasoning)


def call(arguments: Any = None, **fields: Any) -> dict[str, Any]:
    function = {name: fields.pop(name) for name in ("name",) if name in fields}
    return {**fields, "function": {**function, **({} if arguments is None else {"arguments": arguments})}}


A = {"id": "a", "type": "function", "name": "f", "arguments": '{"x": 1}'}
B = {"id": "b", "type": "function", "name": "g", "arguments": "{}"}


@pytest.mark.parametrize(
    ("pieces", "calls"),
    [
        ([call("", index=0, id="a", type="function", name="f"), call('{"x"', index=0), call(": 1}", index=0)], [A]),
        ([call('{"x"', index=0, id="a", type="function", name="f"),
          call("{}", index=1, id="b", type="function", name="g"), call(": 1}", index=0)], [A, B]),
        # whole calls at once, numbered 0 each, or not at all
        ([call('{"x": 1}', index=0, id="a", type="function", name="f"),
          call("{}", index=0, id="b", type="function", name="g")], [A, B]),
        ([call('{"x": 1}', id="a", type="function", name="f"), call("{}", id="b", type="function", name="g")], [A, B]),
        ([call('{"x": 1}', name="f"), call("{}", name="g")],
         [{**A, "id": None, "type": None}, {**B, "id": None, "type": None}]),
        # pieces without an index; a name, or another id, with each piece
        ([call('{"x"', id="a", type="function", name="f"), call(": 1}")], [A]),
        ([call('{"x"', id="a", type="function", name="f"), call(": 1}", id="a", name="f")], [A]),
        ([call('{"x"', index=0, id="a", type="function", name="f"), call(": 1}", index=0, name="f")], [A]),
        ([call('{"x"', index=0, id="a", type="function", name="f"), call(": 1}", index=0, id="other")], [A]),
        ([call('{"x"', index=0, id="a", type="function", name="f"), call(": 1}", index=0, id="")], [A]),
        ([call(None, index=0, id="a", type="function", name="fe"), call('{"x": 1}', index=0, name="tch")],
         [{**A, "name": "fetch"}]),
        ([call({"x": 1}, index=0, id="a", type="function", name="f")], [{**A, "arguments": '{"x":1}'}]),
        ([{"index": 0, "id": "a"}, {"index": 0, "function": "odd"}],
         [{"id": "a", "type": None, "name": None, "arguments": None}]),
        ([call('{"x": 1}', index="0", id="a", type="function", name="f")], [A]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("together", [False, True], ids=["one by one", "in one chunk"])
def test_tool_calls_are_put_together_by_index_id_and_name(
    pieces: list[dict[str, Any]], calls: list[dict[str, Any]], together: bool
) -> None:
    deltas = [{"tool_calls": pieces}] if together else [{"tool_calls": [piece]} for piece in pieces]
    done = completed(read(stream({"role": "assistant", "content": None}, *deltas, finish="tool_calls")))
    assert done.tool_calls == tuple(calls)
    assert (done.text, done.finish_reason) == (None, "tool_calls")


def test_the_older_function_call_is_a_tool_call_too() -> None:
    pieces = [{"function_call": {"name": "f", "arguments": '{"x"'}}, {"function_call": {"arguments": ": 1}"}}]
    done = completed(read(stream(*pieces, finish="function_call")))
    assert done.tool_calls == ({"id": None, "type": "function", "name": "f", "arguments": '{"x": 1}'},)


@pytest.mark.parametrize(
    ("deltas", "finish", "kind"),
    [
        ([START, {"refusal": "I will "}, {"refusal": "not"}], "stop", ErrorKind.REFUSAL),
        ([START, {"content": "half"}], "length", ErrorKind.TRUNCATED),
        ([START], "content_filter", ErrorKind.CONTENT_FILTER),
    ],
)
def test_a_stream_that_ends_in_order_without_an_answer_is_what_it_says(
    deltas: list[Any], finish: str, kind: ErrorKind
) -> None:
    reply = read(stream(*deltas, finish=finish))
    assert reply.failure is not None
    assert (reply.verdict, reply.failure.kind, reply.usage) == (Verdict.NO, kind, Usage(10, 5, 15))


def test_logprobs_come_in_the_order_of_their_tokens() -> None:
    def token(text: str, value: float, *tops: tuple[str, float]) -> dict[str, Any]:
        return {
            "token": text,
            "logprob": value,
            "bytes": [1],
            "top_logprobs": [{"token": t, "logprob": p} for t, p in tops],
        }

    first = chunk({"content": "yes"}, choice={"logprobs": {"content": [token("yes", -0.1, ("no", -2.5))]}})
    second = chunk({"content": "!"}, choice={"logprobs": {"content": [token("!", -0.5)], "refusal": None}})
    silent = chunk({}, "stop", choice={"logprobs": None})
    done = completed(read(first + second + silent + DONE))
    assert done.logprobs == (
        {"token": "yes", "logprob": -0.1, "top": [{"token": "no", "logprob": -2.5}]},
        {"token": "!", "logprob": -0.5, "top": []},
    )


def test_logprobs_as_lists_side_by_side_are_the_same() -> None:
    pieces = [
        {"tokens": ["a"], "token_logprobs": [-0.5], "top_logprobs": [{"b": -1.5}]},
        {"tokens": ["b", "c"], "token_logprobs": [None, -1]},
        7,
    ]
    chunks = [chunk({"content": "x"}, choice={"logprobs": piece}) for piece in pieces]
    done = completed(read(b"".join(chunks) + chunk({}, "stop") + DONE))
    assert done.logprobs == (
        {"token": "a", "logprob": -0.5, "top": [{"token": "b", "logprob": -1.5}]},
        {"token": "b", "logprob": None, "top": []},
        {"token": "c", "logprob": -1.0, "top": []},
    )


@pytest.mark.parametrize(
    ("chunks", "usage"),
    [
        (chunk({"content": "x"}, "stop") + LAST, Usage(10, 5, 15)),
        (chunk({"content": "x"}, "stop", usage=USAGE), Usage(10, 5, 15)),
        (chunk({"content": "x"}, usage={"prompt_tokens": 1}) + chunk({}, "stop", usage=USAGE), Usage(10, 5, 15)),
        (LAST + chunk({"content": "x"}, "stop", usage=None), Usage(10, 5, 15)),
        (chunk({"content": "x"}, "stop", usage={}), Usage()),
        (chunk({"content": "x"}, "stop", usage=7), Usage()),
    ],
)  # fmt: skip
def test_usage_is_the_last_that_was_told(chunks: bytes, usage: Usage) -> None:
    assert completed(read(chunks + DONE)).usage == usage


@pytest.mark.parametrize(
    "data",
    [
        event({"choices": [], "prompt_filter_results": [{}]}) + stream(START, {"content": "yes"}),
        b": keep-alive\n\n" + stream({"content": "yes"}),
        stream({"content": "yes"}).replace(b"data: ", b"data:"),
        stream({"content": "yes"}).replace(b"\n", b"\r\n"),
        b"\xef\xbb\xbf" + stream({"content": "yes"}),
        stream({"content": "yes"}) + b"data: not JSON\n\n",
        stream({"content": "yes"}) + event({"error": {"message": "too late"}}),
        stream({"content": "yes"}).removesuffix(b"\n"),
        stream({"content": "yes"}).removesuffix(b"\n\n"),
        stream({"content": "yes"}).removesuffix(DONE),
        stream({"content": "yes"}).removesuffix(b"\n" + DONE),
        chunk({"content": "yes"}) + chunk({"content": "no"}, "stop", choice={"index": 1}) + chunk({}, "stop") + DONE,
        chunk({"content": "yes"}, "") + chunk({}, "stop") + chunk({}, None) + DONE,
        event({"object": "chat.completion", "choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}]})
        + DONE,
        event({"type": "ping"}) + event(b" ") + stream({"content": "yes"}),
        event(json.dumps(json.loads(chunk({"content": "yes"})[6:]), indent=1).replace("\n", "\ndata: ").encode())
        + stream(),
    ],
)
def test_what_servers_do_differently_makes_no_difference(data: bytes) -> None:
    assert completed(read(data)).text == "yes"


# --- what is no answer


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "cut off: its end, [DONE], never came"),
        (b": ping\n\n", "[DONE], never came"),
        (chunk(START) + chunk({"content": "half"}), "[DONE], never came"),
        (chunk({"content": "yes"}, "stop"), "[DONE], never came"),  # before usage
        (chunk({"content": "half"}) + LAST, "[DONE], never came"),  # no finish_reason
        (chunk({"content": "half"}) + chunk({"content": "more"})[:-20], "[DONE], never came"),
        (chunk({"content": "half"}) + DONE, "said [DONE] before any finish_reason"),
        (chunk({"content": "half"}) + LAST + DONE, "said [DONE] before any finish_reason"),
        (DONE, "without choices"),
        (LAST + DONE, "without choices"),
        (event(b'{"choices": [{"delta": {"content": "a\xff"}}]}') + stream(), "an event that is no JSON object"),
        (event(b'{"choices": [') + stream(), "an event that is no JSON object: {\"choices\": ["),
        (event(b"[1]") + stream(), "an event that is no JSON object: [1]"),
        (event(b"null") + stream(), "an event that is no JSON object"),
        (event({"choices": 7}) + stream(), "choices that are no list"),
        (event({"choices": [7]}) + stream(), "a choice that is no object"),
        (chunk([1]) + stream(), "a delta that is no object"),
        (chunk({"content": 7}) + stream(), "content that is neither a text nor a list"),
        (chunk({"tool_calls": 7}) + stream(), "tool calls of unknown form"),
        (chunk({"tool_calls": [7]}) + stream(), "tool calls of unknown form"),
        (event(b"[" * 100_000) + stream(), "no JSON object"),
        (event(b'{"a":' * 100_000) + stream(), "no JSON object"),
        (b"data: " + b"a" * (9 * 2**20) + b"\n\n" + stream(), "events is larger than 8 MiB"),
    ],
)  # fmt: skip
def test_a_broken_stream_is_a_transient_failure_whatever_came_before(data: bytes, said: str) -> None:
    failure = broken(read(data))
    assert said in failure.message
    assert failure.message.startswith("HTTP 200 ")
    assert failure.http_status == 200


def test_half_a_text_is_kept_beside_the_failure_with_what_it_cost() -> None:
    reply = read(
        chunk({"reasoning": "so"}) + chunk({"content": "half"}, usage=USAGE), x_request_id="r", retry_after="3"
    )
    broken(reply)
    assert (reply.text, reply.usage, reply.model, reply.request_id) == ("half", Usage(10, 5, 15), "m-1", "r")
    assert reply.retry_after == 3.0
    assert reply.completion is not None
    assert (reply.completion.reasoning, reply.completion.finish_reason) == ("so", None)
    assert read(chunk({"content": "half"})).usage is None


def test_a_failure_of_the_network_keeps_its_kind_and_gets_what_had_come() -> None:
    failed = Reply(Verdict.TRANSIENT, failure=Failure(ErrorKind.CONNECTION, "reset"), sent=True)
    reader = StreamReader(0.0)
    assert reader.cut_off(failed, now=NOW, mask=NO_KEY) is failed
    reader.begin(200, {b"x-request-id": b"r"})
    nothing = reader.cut_off(failed, now=NOW, mask=NO_KEY)
    assert (nothing.text, nothing.usage, nothing.completion) == (None, None, None)
    reader.feed(chunk({"content": "half"}, usage=USAGE), 2.0)
    reply = reader.cut_off(failed, now=NOW, mask=NO_KEY)
    assert nothing.failure == reply.failure == Failure(ErrorKind.CONNECTION, "reset", 200)
    assert (reply.verdict, reply.text, reply.usage, reply.ttft_s) == (Verdict.TRANSIENT, "half", Usage(10, 5, 15), 2.0)
    assert reply.request_id == "r"
    reader.feed(chunk({}, "stop") + DONE, 3.0)
    assert completed(reader.cut_off(failed, now=NOW, mask=NO_KEY)).text == "half"


@pytest.mark.parametrize(
    ("data", "verdict", "kind", "status"),
    [
        ({"error": {"message": "gone", "type": "server_error"}}, Verdict.TRANSIENT, ErrorKind.SERVER, 500),
        ({"error": {"message": "slow down", "code": 503}}, Verdict.TRANSIENT, ErrorKind.SERVER, 503),
        ({"error": {"message": "too long", "code": 504}}, Verdict.TRANSIENT, ErrorKind.TIMEOUT, 504),
        ({"error": {"type": "rate_limit_error", "message": "tokens"}}, Verdict.RATE_LIMIT, ErrorKind.RATE_LIMIT, 429),
        ({"error": {"type": "insufficient_quota", "message": "no credit"}}, Verdict.FATAL, ErrorKind.RATE_LIMIT, 429),
        ({"error": {"type": "invalid_request_error", "message": "bad"}}, Verdict.NO, ErrorKind.INVALID_REQUEST, 400),
        ({"object": "error", "message": "gone", "type": "InternalServerError", "code": 500}, Verdict.TRANSIENT,
         ErrorKind.SERVER, 500),
        ({"error": "Bad Gateway", "status": 502, "message": "no"}, Verdict.TRANSIENT, ErrorKind.SERVER, 502),
        ({"error": True}, Verdict.TRANSIENT, ErrorKind.SERVER, 500),
    ],
)  # fmt: skip
def test_an_error_in_mid_stream_is_classified_by_its_content(
    data: Any, verdict: Verdict, kind: ErrorKind, status: int
) -> None:
    for tail in (DONE, b"", stream({"content": "never mind"})):
        reply = read(chunk({"content": "half"}, usage=USAGE) + event(data) + tail)
        assert reply.failure is not None
        assert (reply.verdict, reply.failure.kind, reply.failure.http_status) == (verdict, kind, status)
        assert (reply.text, reply.usage) == ("half", Usage(10, 5, 15))
        assert "an error inside" in reply.failure.message


@pytest.mark.parametrize(
    "data", [{"message": "overloaded", "code": 529}, b"overloaded", {"error": {"message": "overloaded"}}]
)
def test_an_event_of_the_type_error_is_one_whatever_its_form(data: Any) -> None:
    assert "overloaded" in broken(read(chunk(START) + event(data, "error") + DONE), ErrorKind.SERVER).message


def test_an_error_says_when_to_come_back() -> None:
    assert read(event({"error": {"message": "x"}}), retry_after="7").retry_after == 7.0


# --- times


def test_the_first_token_and_the_pace_are_timed() -> None:
    pieces = [chunk(START), chunk({"content": "a"}), chunk({"content": "b"}), chunk({}, "stop"), LAST, DONE]
    reply = read(*pieces, every=0.5)
    assert completed(reply).text == "ab"
    assert (reply.ttft_s, reply.output_tokens_per_s) == (1.0, 10.0)  # 5 tokens in the half second from a to b


@pytest.mark.parametrize(
    "delta", [{"reasoning": "a"}, {"refusal": "a"}, {"content": [{"text": "a"}]}, {"tool_calls": [call("{}", index=0)]}]
)
def test_whatever_the_model_writes_first_is_the_first_token(delta: Any) -> None:
    assert read(chunk(START), chunk(delta), chunk({"content": "b"}), chunk({}, "stop"), DONE, every=0.5).ttft_s == 1.0


def test_what_cannot_be_known_is_null() -> None:
    at_once = read(stream(START, {"content": "ab"}), every=0.5)
    assert (at_once.ttft_s, at_once.output_tokens_per_s) == (0.5, None)
    unbilled = read(chunk({"content": "a"}), chunk({"content": "b"}), chunk({}, "stop"), DONE, every=0.5)
    assert (unbilled.ttft_s, unbilled.output_tokens_per_s) == (0.5, None)
    empty = read(stream(START), every=0.5)
    assert (empty.ttft_s, empty.output_tokens_per_s) == (None, None)
    late = StreamReader(5.0)
    late.sent(7.0)
    late.feed(stream({"content": "a"}), 8.0)
    assert late.reply(now=NOW, mask=NO_KEY).ttft_s == 1.0


# --- a body that came whole


def test_a_stream_that_nobody_asked_for_is_read_and_not_timed() -> None:
    reply = read_whole_stream(200, {}, stream({"content": "yes"}), now=NOW, mask=NO_KEY)
    assert completed(reply).text == "yes"
    assert reply.ttft_s is None


@pytest.mark.parametrize(
    ("kind", "body", "expected"),
    [
        (b"text/event-stream; charset=utf-8", b"{}", True),
        (b"application/json", b"data: {}", True),
        (b"text/plain", b"\n\nevent: x", True),
        (b"text/plain", b": ping", True),
        (b"application/json", b'{"data": 1}', False),
        (b"text/html", b"<html>", False),
    ],
)
def test_an_event_stream_is_told_by_its_type_or_its_beginning(kind: bytes, body: bytes, expected: bool) -> None:
    assert holds_events({b"content-type": kind}, body) is expected


# --- secrets

KEY = "canary/" + "0123456789+abcdef"


@pytest.mark.parametrize("spelled", [KEY, KEY.replace("/", "%2F").replace("+", "%2B"), KEY.replace("c", "\\u0063")])
def test_a_key_that_comes_in_pieces_is_in_no_part_of_the_answer(spelled: str) -> None:
    pieces = [spelled[place : place + 3] for place in range(0, len(spelled), 3)]
    deltas = [{"content": piece, "reasoning": piece} for piece in pieces]
    tokens = [{"token": piece, "logprob": -1.0} for piece in pieces]
    with_tokens = chunk({}, choice={"logprobs": {"content": tokens}})
    for data in (with_tokens + stream(*deltas), with_tokens + b"".join(map(chunk, deltas))):
        reply = read(data, mask=KeyMask(KEY))
        assert reply.text == "***"
        assert reply.completion is not None
        assert (reply.completion.reasoning, reply.completion.logprobs) == ("***", None)


def test_a_key_in_an_error_or_a_broken_event_is_masked() -> None:
    for data in ({"error": {"message": f"bad {KEY}"}}, f"bad {KEY}".encode()):
        reply = read(event(data), mask=KeyMask(KEY))
        assert reply.failure is not None
        assert "***" in reply.failure.message
        assert "canary" not in reply.failure.message


# --- for all streams

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
PIECES = st.lists(TEXTS, max_size=5)


@st.composite
def answers(draw: st.DrawFn) -> tuple[dict[str, Any], list[bytes]]:
    """A whole answer, and the events of the same answer streamed."""
    message: dict[str, Any] = {"role": "assistant", "content": None}
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": None}]
    for name in draw(st.permutations(["content", "refusal", "reasoning_content", "reasoning"])):
        pieces = draw(st.none() | PIECES)
        if pieces:
            message[name] = "".join(pieces)
            deltas += [{name: piece} for piece in pieces]
    calls = []
    for index in range(draw(st.integers(0, 2))):
        named, parts = f"f{index}", draw(PIECES) or [""]
        head = {
            "index": index,
            "id": f"c{index}",
            "type": "function",
            "function": {"name": named, "arguments": parts[0]},
        }
        deltas += [{"tool_calls": [head]}]
        deltas += [{"tool_calls": [{"index": index, "function": {"arguments": part}}]} for part in parts[1:]]
        calls.append({"id": f"c{index}", "type": "function", "function": {"name": named, "arguments": "".join(parts)}})
    if calls:
        message["tool_calls"] = calls
    finish = draw(st.sampled_from(["stop", "length", "tool_calls", "content_filter", "error"]))
    events = [chunk(delta) for delta in deltas] + [chunk({}, finish)]
    whole: dict[str, Any] = {"id": "chat-1", "model": "m-1", "choices": [{"message": message, "finish_reason": finish}]}
    if draw(st.booleans()):
        whole["usage"] = USAGE
        events.append(LAST)
    return whole, [*events, DONE]


@examples(150)
@given(answers(), st.lists(st.integers(0, 5000), max_size=12))
def test_a_streamed_answer_is_the_whole_one_however_its_bytes_are_cut(
    answer: tuple[dict[str, Any], list[bytes]], places: list[int]
) -> None:
    whole, events = answer
    data = b"".join(events)
    expected = read_reply(200, {}, json.dumps(whole).encode(), now=NOW)
    cuts = [0, *sorted(places), len(data)]
    found = read(*(data[start:end] for start, end in pairwise(cuts)))
    found.ttft_s = found.output_tokens_per_s = None
    assert found == expected
    by_bytes = read(*(data[place : place + 1] for place in range(len(data))))
    by_bytes.ttft_s = by_bytes.output_tokens_per_s = None
    assert by_bytes == expected


@examples(150)
@given(answers(), st.integers(0, 10_000))
def test_a_stream_that_is_cut_anywhere_is_no_success(answer: tuple[dict[str, Any], list[bytes]], place: int) -> None:
    whole, events = answer
    data = b"".join(events)
    cut = data[: place % (len(data) - len(DONE))]
    reply = read(cut)
    if "usage" in whole and len(cut) >= len(data) - len(DONE) - 2:
        return  # everything had come but [DONE]
    assert reply.failure is not None
    assert (reply.verdict, reply.failure.kind) == (Verdict.TRANSIENT, ErrorKind.PROTOCOL)


NAMES = ("choices", "delta", "content", "tool_calls", "function", "index", "id", "name", "arguments", "error", "usage",
         "logprobs", "finish_reason", "message", "top_logprobs", "token", "tokens", "token_logprobs", "type", "text",
         "thinking", "reasoning", "refusal", "function_call", "object", "model")  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.sampled_from(["error", "stop"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=5),
    max_leaves=16,
)
CHOICES = st.dictionaries(st.sampled_from(("delta", "message", "finish_reason", "logprobs", "index")), JSON, max_size=4)
CHUNKS = JSON | st.builds(lambda choices: {"choices": choices}, st.lists(CHOICES, max_size=2))
EVENTS = st.builds(event, CHUNKS | st.binary(max_size=30).map(lambda data: data), st.sampled_from(["", "error"]))


@examples(200)
@given(st.lists(EVENTS | st.sampled_from([DONE, LAST, chunk({}, "stop"), b"\r", b"\xef\xbb\xbf"]), max_size=8))
def test_no_stream_crashes_its_reader_and_only_one_with_an_end_is_a_success(events: list[bytes]) -> None:
    data = b"".join(events)
    reply = read(data)
    assert (reply.verdict is Verdict.OK) == (reply.failure is None)
    if reply.verdict is Verdict.OK:
        assert b"[DONE]" in data or b'"usage"' in data
        assert b'"finish_reason"' in data or b'"message"' in data
    again = read(*(data[place : place + 1] for place in range(len(data))))
    assert (again.verdict, again.failure, again.text, again.usage) == (
        reply.verdict,
        reply.failure,
        reply.text,
        reply.usage,
    )


@given(st.lists(st.binary(max_size=60), max_size=10))
def test_no_bytes_crash_the_reader(pieces: list[bytes]) -> None:
    assert read(*pieces).verdict is not Verdict.OK


def test_nothing_after_the_end_is_held() -> None:
    assembler = ChunkAssembler()
    assert assembler.take(ServerEvent(b"", b'{"choices": [{"delta": {"content": "a"}, "finish_reason": "stop"}]}'))
    assembler.take(ServerEvent(b"", b"[DONE]"))
    assert not assembler.take(ServerEvent(b"", b'{"choices": [{"delta": {"content": "b"}}]}'))
    assert json.loads(assembler.body())["choices"][0]["message"]["content"] == "a"


@pytest.mark.parametrize(
    "piece", [b": ping\n\n", b"data: " + b"x" * 1000, event({"choices": []}), event({"id": "x" * 900})]
)
def test_a_stream_without_end_takes_no_more_memory_than_its_text(piece: bytes) -> None:
    reader = StreamReader(0.0)
    reader.feed(chunk({"content": "a"}) + DONE[:8], 0.0)
    tracemalloc.start()
    try:
        for _ in range(2_000):
            reader.feed(piece, 0.0)
        assert tracemalloc.get_traced_memory()[0] < 4 * 2**20
    finally:
        tracemalloc.stop()
