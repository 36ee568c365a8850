"""Every shape of answer has a verdict: nothing but a real completion is ever taken for one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from batchchat.client.usage import read_usage
from batchchat.client.wire import judge, read_reply
from batchchat.reasoning import is_blank
from batchchat.records import Axis, Completion, ErrorKind, Reply, Usage, Verdict
from tests.thorough import examples

NOW = 1_790_000_000.0
USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}


def answer(message: Any, finish_reason: Any = "stop", **fields: Any) -> dict[str, Any]:
    """A chat completion with one choice."""
    choice = {"index": 0, "finish_reason": finish_reason, "message": message}
    return {"id": "chat-1", "object": "chat.completion", "model": "m-1", "choices": [choice], "usage": USAGE, **fields}


def read(status: int, body: Any, **headers: str) -> Reply:
    """Read an answer; a body that is no bytes is sent as JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    return read_reply(status, fields, data, now=NOW)


def completed(reply: Reply) -> Completion:
    """The completion of an answer that is one."""
    assert reply.verdict is Verdict.OK, reply
    assert reply.failure is None
    assert reply.completion is not None
    return reply.completion


def failed(reply: Reply) -> tuple[Verdict, ErrorKind, int | None]:
    """Verdict, kind and status of an answer that is none."""
    assert reply.failure is not None
    return reply.verdict, reply.failure.kind, reply.failure.http_status


# --- completions


def test_a_plain_answer_is_read_whole() -> None:
    reply = read(200, answer({"role": "assistant", "content": "billing", "refusal": None}), x_request_id="req-9")
    done = completed(reply)
    assert (done.text, done.finish_reason, done.model) == ("billing", "stop", "m-1")
    assert done.usage == reply.usage == Usage(10, 5, 15)
    assert (reply.text, reply.model, reply.request_id) == ("billing", "m-1", "req-9")
    assert (done.refusal, done.reasoning, done.tool_calls) == (None, None, None)


@pytest.mark.parametrize(
    ("message", "text", "reasoning"),
    [
        ({"content": "4", "reasoning_content": "2+2"}, "4", "2+2"),
        ({"content": "4", "reasoning": "2+2"}, "4", "2+2"),
        ({"content": "4", "reasoning_content": None, "reasoning": "2+2"}, "4", "2+2"),
        ({"content": "4", "reasoning_content": ["odd"], "reasoning": "2+2"}, "4", "2+2"),
        ({"content": "4", "reasoning": {"odd": 1}}, "4", None),
        ({"content": "<think>2+2\n= 4</think>\n\n4"}, "4", "2+2\n= 4"),
        ({"content": "\n<think></think>4"}, "4", ""),
        ({"content": "the tag <think>x</think> in a text"}, "the tag <think>x</think> in a text", None),
        ({"content": "<think>a</think>4", "reasoning": "2+2"}, "4", "2+2\n\na"),
        ({"content": "<think>2+2</think>4", "reasoning": "2+2"}, "4", "2+2"),
        ({"content": [{"type": "text", "text": "fo"}, {"type": "text", "text": "ur"}]}, "four", None),
        ({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "2+2"}]}, {"text": "4"}]}, "4", "2+2"),
        ({"content": [{"type": "reasoning", "text": "2+2"}, {"type": "text", "text": "4"}]}, "4", "2+2"),
        ({"content": [3, None, {"type": "text", "text": None}, {"type": "text", "text": "4"}]}, "4", None),
        ({"content": "4", "refusal": ""}, "4", None),
    ],
)
def test_text_and_reasoning_are_found_wherever_a_server_puts_them(
    message: dict[str, Any], text: str, reasoning: str | None
) -> None:
    done = completed(read(200, answer(message)))
    assert (done.text, done.reasoning) == (text, reasoning)


def test_tool_calls_are_an_answer_without_text() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "sort", "arguments": '{"label": "bug"}'}}
    done = completed(read(200, answer({"content": None, "tool_calls": [call]}, "tool_calls")))
    assert done.tool_calls == ({"id": "c1", "type": "function", "name": "sort", "arguments": '{"label": "bug"}'},)
    assert done.text is None


def test_tool_calls_of_unusual_form_keep_what_can_be_read() -> None:
    calls = [3, {"id": 7, "function": {"name": "sort", "arguments": {"label": "bug"}}}, {"function": "odd"}]
    done = completed(read(200, answer({"content": None, "tool_calls": calls})))
    assert done.tool_calls == (
        {"id": None, "type": None, "name": "sort", "arguments": '{"label":"bug"}'},
        {"id": None, "type": None, "name": None, "arguments": None},
    )


def test_the_older_single_function_call_is_a_tool_call() -> None:
    message = {"content": None, "function_call": {"name": "sort", "arguments": "{}"}}
    done = completed(read(200, answer(message, "function_call")))
    assert done.tool_calls == ({"id": None, "type": "function", "name": "sort", "arguments": "{}"},)


def test_fields_of_the_wrong_type_are_unknown_rather_than_believed() -> None:
    done = completed(read(200, answer({"content": "x"}, finish_reason=3, id=5, model=["m"], usage=[1])))
    assert (done.finish_reason, done.request_id, done.model, done.usage) == (None, None, None, Usage())


def test_half_an_emoji_or_a_nan_does_not_cost_the_answer() -> None:
    body = json.dumps(answer({"content": "so \ud83d!"}, logprobs=float("nan"), score=float("inf"))).encode()
    assert b"NaN" in body
    assert completed(read(200, body)).text == "so ?!"


# --- usage


@pytest.mark.parametrize(
    ("usage", "read_as"),
    [
        (None, Usage()),
        ([], Usage()),
        ({}, Usage()),
        ({"prompt_tokens": 3, "completion_tokens": 4}, Usage(3, 4, 7)),
        ({"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 9}, Usage(3, 4, 9)),
        ({"prompt_tokens": 3}, Usage(3)),
        (
            {
                **USAGE,
                "prompt_tokens_details": {"cached_tokens": 8},
                "completion_tokens_details": {"reasoning_tokens": 2},
            },
            Usage(10, 5, 15, 8, 2),
        ),
        ({**USAGE, "prompt_tokens_details": None, "completion_tokens_details": 3}, Usage(10, 5, 15)),
        ({"prompt_tokens": True, "completion_tokens": "5", "total_tokens": -1}, Usage()),
        ({"prompt_tokens": 10**8, "completion_tokens": 10**8 + 1, "total_tokens": 2**53 - 1}, Usage(10**8)),
        ({"prompt_tokens": 1.5, "completion_tokens": 10**18, "total_tokens": float("nan")}, Usage()),
    ],
)
def test_usage_holds_only_numbers_that_are_counts(usage: object, read_as: Usage) -> None:
    assert read_usage(usage) == read_as


def test_nan_and_infinity_in_usage_are_unknown() -> None:
    body = json.dumps(answer({"content": "x"}, usage={"prompt_tokens": float("nan"), "completion_tokens": 5})).encode()
    assert completed(read(200, body)).usage == Usage(None, 5)


# --- answers that are received, and no use


@pytest.mark.parametrize(
    ("message", "reason", "verdict", "kind"),
    [
        ({"content": "half an ans"}, "length", Verdict.NO, ErrorKind.TRUNCATED),
        ({"content": None, "reasoning": "hm"}, "length", Verdict.NO, ErrorKind.TRUNCATED),
        ({"content": ""}, "content_filter", Verdict.NO, ErrorKind.CONTENT_FILTER),
        ({"content": None, "refusal": "I cannot"}, "stop", Verdict.NO, ErrorKind.REFUSAL),
        ({"content": "part"}, "error", Verdict.TRANSIENT, ErrorKind.SERVER),
        ({"content": None}, "stop", Verdict.TRANSIENT, ErrorKind.PROTOCOL),
        ({}, "stop", Verdict.TRANSIENT, ErrorKind.PROTOCOL),
        ({"content": []}, "stop", Verdict.TRANSIENT, ErrorKind.PROTOCOL),
        ({"content": [{"type": "image_url"}]}, "stop", Verdict.TRANSIENT, ErrorKind.PROTOCOL),
        ({"content": None, "tool_calls": []}, "tool_calls", Verdict.TRANSIENT, ErrorKind.PROTOCOL),
    ],
)
def test_an_answer_that_is_no_use_is_a_failure_that_tells_what_it_cost(
    message: dict[str, Any], reason: str, verdict: Verdict, kind: ErrorKind
) -> None:
    reply = read(200, answer(message, reason))
    assert failed(reply) == (verdict, kind, 200)
    assert reply.usage == Usage(10, 5, 15)


def test_a_cut_off_answer_keeps_its_text_and_says_what_to_raise() -> None:
    reply = read(200, answer({"content": "half an ans"}, "length"))
    assert reply.text == "half an ans"
    assert reply.failure is not None
    assert reply.failure.message == "the answer was cut off after 5 tokens: raise params.max_tokens"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"   ",
        b"null",
        b"3",
        b'"text"',
        b"[]",
        b"{}",
        b"\xff\xfe{}",
        b'{"choices": [{"message": {"content": "\xff"}}]}',
        b"<html><body>welcome</body></html>",
        json.dumps(answer({"content": "x"})).encode()[:-9],
        b'{"choices": []}',
        b'{"choices": null}',
        b'{"choices": {"0": {}}}',
        b'{"choices": ["x"]}',
        b'{"choices": [{}]}',
        b'{"choices": [{"message": "hi"}]}',
        b'{"choices": [{"message": {"content": 3}}]}',
        b'{"choices": [{"message": {"content": {"a": 1}}}]}',
        b'{"choices": [{"delta": {"content": "x"}}]}',
        b'{"detail": "odd"}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"choices": [{"message": {"tool_calls": [{"function": {"arguments": ' + b"[" * 500 + b"]" * 500 + b"}}]}}]}",
        b'{"n": ' + b"9" * 10_000 + b', "x": NaN}',
    ],
)
def test_http_200_without_a_completion_is_never_a_success(body: bytes) -> None:
    reply = read(200, body)
    assert failed(reply) == (Verdict.TRANSIENT, ErrorKind.PROTOCOL, 200)
    assert reply.completion is None


@pytest.mark.parametrize("status", [201, 202, 204, 206])
def test_another_success_without_a_completion_names_its_own_status(status: int) -> None:
    reply = read(status, b"")
    assert failed(reply) == (Verdict.TRANSIENT, ErrorKind.PROTOCOL, status)
    assert reply.failure is not None
    assert reply.failure.message == f"HTTP {status} with no body"


@pytest.mark.parametrize(
    ("body", "verdict", "kind", "status"),
    [
        ({"error": {"message": "busy", "code": 429}}, Verdict.RATE_LIMIT, ErrorKind.RATE_LIMIT, 429),
        ({"error": {"message": "busy", "code": "429"}}, Verdict.RATE_LIMIT, ErrorKind.RATE_LIMIT, 429),
        ({"error": {"message": "x", "code": "rate_limit_exceeded"}}, Verdict.RATE_LIMIT, ErrorKind.RATE_LIMIT, 429),
        ({"error": {"message": "x", "code": "insufficient_quota"}}, Verdict.FATAL, ErrorKind.RATE_LIMIT, 429),
        ({"error": {"message": "bad", "code": 400}}, Verdict.NO, ErrorKind.INVALID_REQUEST, 400),
        ({"error": {"type": "invalid_request_error"}}, Verdict.NO, ErrorKind.INVALID_REQUEST, 400),
        ({"error": {"message": "x", "code": "content_filter"}}, Verdict.NO, ErrorKind.CONTENT_FILTER, 400),
        ({"error": {"message": "x", "type": "authentication_error"}}, Verdict.FATAL, ErrorKind.INVALID_REQUEST, 401),
        ({"error": {"message": "x", "type": "overloaded_error"}}, Verdict.TRANSIENT, ErrorKind.SERVER, 529),
        ({"error": {"message": "x", "code": 502}}, Verdict.TRANSIENT, ErrorKind.SERVER, 502),
        ({"error": {"message": "x", "code": 7}}, Verdict.TRANSIENT, ErrorKind.SERVER, 500),
        ({"error": {"message": "x", "code": True}}, Verdict.TRANSIENT, ErrorKind.SERVER, 500),
        ({"error": "boom"}, Verdict.TRANSIENT, ErrorKind.SERVER, 500),
        ({"error": "Forbidden", "status": 403, "message": "no"}, Verdict.REFUSED, ErrorKind.INVALID_REQUEST, 403),
        ({"object": "error", "message": "long", "code": 400}, Verdict.NO, ErrorKind.INVALID_REQUEST, 400),
        ({"object": "error", "message": "long"}, Verdict.TRANSIENT, ErrorKind.SERVER, 500),
        (answer({"content": "x"}, error={"code": 503}), Verdict.TRANSIENT, ErrorKind.SERVER, 503),
    ],
)
def test_an_error_inside_http_200_is_judged_as_what_it_says(
    body: dict[str, Any], verdict: Verdict, kind: ErrorKind, status: int
) -> None:
    reply = read(200, body)
    assert failed(reply) == (verdict, kind, status)
    assert reply.completion is None
    assert reply.failure is not None
    assert reply.failure.message.startswith("HTTP 200 with an error inside: ")


@pytest.mark.parametrize("nothing", [None, False, "", {}])
def test_an_error_field_that_holds_nothing_is_no_error(nothing: object) -> None:
    assert completed(read(200, answer({"content": "x"}, error=nothing))).text == "x"


def test_an_error_inside_http_200_tells_the_tokens_that_it_cost() -> None:
    assert read(200, {"error": "late", "usage": USAGE}).usage == Usage(10, 5, 15)
    assert read(200, {"error": "early"}).usage is None


# --- errors


@pytest.mark.parametrize(
    ("status", "verdict", "kind"),
    [
        (101, Verdict.TRANSIENT, ErrorKind.PROTOCOL),
        (301, Verdict.REFUSED, ErrorKind.PROTOCOL),
        (307, Verdict.REFUSED, ErrorKind.PROTOCOL),
        (400, Verdict.NO, ErrorKind.INVALID_REQUEST),
        (401, Verdict.FATAL, ErrorKind.INVALID_REQUEST),
        (402, Verdict.FATAL, ErrorKind.INVALID_REQUEST),
        (403, Verdict.REFUSED, ErrorKind.INVALID_REQUEST),
        (404, Verdict.REFUSED, ErrorKind.INVALID_REQUEST),
        (405, Verdict.REFUSED, ErrorKind.INVALID_REQUEST),
        (408, Verdict.TRANSIENT, ErrorKind.TIMEOUT),
        (409, Verdict.TRANSIENT, ErrorKind.SERVER),
        (413, Verdict.NO, ErrorKind.INVALID_REQUEST),
        (416, Verdict.NO, ErrorKind.INVALID_REQUEST),
        (422, Verdict.REFUSED, ErrorKind.INVALID_REQUEST),
        (425, Verdict.TRANSIENT, ErrorKind.SERVER),
        (429, Verdict.RATE_LIMIT, ErrorKind.RATE_LIMIT),
        (498, Verdict.RATE_LIMIT, ErrorKind.RATE_LIMIT),
        (500, Verdict.TRANSIENT, ErrorKind.SERVER),
        (502, Verdict.TRANSIENT, ErrorKind.SERVER),
        (503, Verdict.TRANSIENT, ErrorKind.SERVER),
        (504, Verdict.TRANSIENT, ErrorKind.TIMEOUT),
        (529, Verdict.TRANSIENT, ErrorKind.SERVER),
        (599, Verdict.TRANSIENT, ErrorKind.SERVER),
    ],
)
@pytest.mark.parametrize("body", [b"", b'{"error": {"message": "no"}}', b"<h1>no</h1>", b"\xff"])
def test_a_status_decides_whether_trying_again_can_help(
    status: int, verdict: Verdict, kind: ErrorKind, body: bytes
) -> None:
    assert failed(read(status, body)) == (verdict, kind, status)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"error": {"message": "Wrong key", "type": "t", "param": None, "code": 401}}, "Wrong key"),
        (
            {"error": "Unauthorized", "status": 401, "message": "denied by the gateway"},
            "Unauthorized: denied by the gateway",
        ),
        ({"object": "error", "message": "Too long", "type": "BadRequest", "param": None, "code": 400}, "Too long"),
        ({"error": "Unauthorized"}, "Unauthorized"),
        ({"error": "denied", "message": "access denied"}, "access denied"),
        ({"detail": "Not Found"}, "Not Found"),
        (
            {"detail": [{"loc": ["body", "messages", 0], "msg": "field required", "input": {"prompt": "long"}}]},
            "body.messages.0: field required",
        ),
        ({"detail": [{"msg": "odd"}, "other"]}, "odd: other"),
        ({"detail": ["odd"]}, "odd"),
        ({"message": {"detail": "deep"}}, "deep"),
        ({"error": {"code": 7}}, '{"error":{"code":7}}'),
        ({"error": {"message": 3}}, "3"),
        (["a", "list"], '["a", "list"]'),
        (b"upstream\n  connect   error", "upstream connect error"),
        (b"<html><style>b{}</style><script>x()</script><body><h1>502</h1>Bad gateway</body></html>", "502 Bad gateway"),
        (b"\xff\xfe", "\ufffd\ufffd"),
    ],
)
def test_the_message_of_an_error_is_found_in_every_known_shape(body: object, message: str) -> None:
    failure = read(400, body).failure
    assert failure is not None
    assert failure.message == f"HTTP 400: {message}"


@pytest.mark.parametrize("body", [b"", b"   "])
def test_an_error_without_a_body_is_told_by_its_status(body: bytes) -> None:
    failure = read(500, body).failure
    assert failure is not None
    assert failure.message == "HTTP 500"


def test_a_long_error_message_is_cut() -> None:
    for body in ({"error": {"message": "x" * 10**6}}, b"x" * 10**6, {"error": {"message": ["x" * 10**6]}}):
        failure = read(400, body).failure
        assert failure is not None
        assert len(failure.message) < 1_100


def test_a_filtered_prompt_is_told_apart_from_a_bad_request() -> None:
    reply = read(400, {"error": {"message": "policy", "code": "content_filter"}})
    assert failed(reply) == (Verdict.NO, ErrorKind.CONTENT_FILTER, 400)


def test_a_redirect_is_refused_and_says_where_it_led() -> None:
    reply = read(308, b"", location="https://elsewhere.example/v1")
    assert reply.failure is not None
    assert "https://elsewhere.example/v1" in reply.failure.message
    assert "not followed" in reply.failure.message


# --- 429


@pytest.mark.parametrize(
    ("error", "axis"),
    [
        ({"message": "Rate limit reached for m on tokens per min (TPM): Limit 30000, Requested 2000"}, Axis.TOKENS),
        ({"message": "Rate limit reached for m on requests per min (RPM): Limit 3, Used 3"}, Axis.REQUESTS),
        ({"message": "slow down", "type": "tokens"}, Axis.TOKENS),
        ({"message": "slow down", "type": "requests"}, Axis.REQUESTS),
        ({"message": "Too many concurrent requests"}, Axis.CONCURRENCY),
        ({"message": "Maximum of 100 simultaneous requests reached"}, Axis.CONCURRENCY),
        ({"message": "Too Many Requests"}, Axis.UNKNOWN),
        ({"message": "Too many requests: token limit exceeded"}, Axis.TOKENS),
        ({"message": "please slow down"}, Axis.UNKNOWN),
    ],
)
def test_a_429_tells_its_limit_as_far_as_its_words_do(error: dict[str, str], axis: Axis) -> None:
    reply = read(429, {"error": error})
    assert reply.axis is axis
    assert reply.verdict is Verdict.RATE_LIMIT


def test_the_page_of_a_proxy_tells_nothing_about_the_limit() -> None:
    assert read(429, b"<html><title>429 Too Many Requests</title></html>").axis is Axis.UNKNOWN


def test_a_full_server_of_the_flex_tier_means_fewer_at_once() -> None:
    assert read(498, {"error": {"message": "capacity exceeded"}}).axis is Axis.CONCURRENCY


@pytest.mark.parametrize(
    "error",
    [
        {"message": "You exceeded your current quota", "type": "insufficient_quota", "code": "insufficient_quota"},
        {"message": "no credit", "code": "credit_balance_exhausted"},
        {"message": "no more", "code": "organization_spend_limit_exceeded"},
        {"message": "insufficient_quota: top up"},
    ],
)
def test_a_429_for_lack_of_credit_is_fatal_and_no_wait(error: dict[str, str]) -> None:
    assert failed(read(429, {"error": error})) == (Verdict.FATAL, ErrorKind.RATE_LIMIT, 429)


@pytest.mark.parametrize(
    "error",
    [
        {"message": "Resource Unavailable", "type": "rate_limit_error"},
        {"message": "There is no room at the moment.", "code": "resource_unavailable"},
    ],
)
def test_a_tier_without_room_is_tried_again_and_is_no_limit(error: dict[str, str]) -> None:
    assert failed(read(429, {"error": error})) == (Verdict.TRANSIENT, ErrorKind.RATE_LIMIT, 429)


def test_a_request_larger_than_the_limit_itself_does_not_wait_for_ever() -> None:
    error = {"message": "Request too large for m on tokens per min (TPM): Limit 30000, Requested 40000"}
    assert failed(read(429, {"error": error})) == (Verdict.NO, ErrorKind.INVALID_REQUEST, 429)


# --- hints about trying again


@pytest.mark.parametrize(
    ("status", "should", "verdict"),
    [
        (400, "true", Verdict.TRANSIENT),
        (400, "false", Verdict.NO),
        (400, "maybe", Verdict.NO),
        (500, "false", Verdict.NO),
        (500, " False ", Verdict.NO),
        (500, "true", Verdict.TRANSIENT),
        (429, "false", Verdict.NO),
        (429, "true", Verdict.RATE_LIMIT),
        (401, "true", Verdict.FATAL),
        (404, "true", Verdict.REFUSED),
    ],
)
def test_a_servers_word_on_trying_again_is_obeyed(status: int, should: str, verdict: Verdict) -> None:
    assert read(status, b"{}", x_should_retry=should).verdict is verdict


@pytest.mark.parametrize("status", [200, 429, 503])
def test_retry_after_is_told_with_any_failure(status: int) -> None:
    assert read(status, b"{}", retry_after="7").retry_after == 7.0
    assert read(status, b"{}", retry_after_ms="250", retry_after="7").retry_after == 0.25
    assert read(status, b"{}", retry_after="soon").retry_after is None


def test_a_success_asks_for_no_wait_and_still_tells_the_limits() -> None:
    reply = read(200, answer({"content": "x"}), retry_after="7", x_ratelimit_remaining_requests="3")
    assert reply.verdict is Verdict.OK
    assert reply.retry_after is None
    assert reply.limits is not None
    assert reply.limits.remaining_requests == 3


# --- what is masked before it is cut


def test_a_secret_at_the_cut_of_a_message_leaves_no_beginning_behind() -> None:
    secret = "canary-" + "k" * 40

    def mask(text: str) -> str:
        return text.replace(secret, "***")

    for length in range(960, 1001):
        for body in ({"error": {"message": "x" * length + secret}}, b"x" * length + secret.encode()):
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            failure = read_reply(400, {}, data, now=NOW, mask=mask).failure
            assert failure is not None
            assert "canary" not in failure.message
    failure = read_reply(200, {}, b"x" * 150 + secret.encode(), now=NOW, mask=mask).failure
    assert failure is not None
    assert "can" not in failure.message


# --- for every answer

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)
_FIELDS = ("choices", "message", "content", "error", "code", "type", "usage", "detail", "tool_calls", "function")
_LIKE_ANSWERS = st.recursive(
    _JSON,
    lambda inner: st.dictionaries(st.sampled_from(_FIELDS), inner, max_size=4) | st.lists(inner, max_size=2),
    max_leaves=12,
)
_BODIES = st.binary(max_size=200) | _LIKE_ANSWERS.map(lambda value: json.dumps(value).encode())
_HEADERS = st.dictionaries(
    st.sampled_from([b"retry-after", b"retry-after-ms", b"x-should-retry", b"x-request-id", b"location"])
    | st.binary(max_size=30),
    st.binary(max_size=30),
    max_size=4,
)


@examples(300)
@given(status=st.integers(100, 999), headers=_HEADERS, body=_BODIES)
def test_any_answer_has_a_verdict_and_only_a_real_completion_is_ok(
    status: int, headers: dict[bytes, bytes], body: bytes
) -> None:
    reply = read_reply(status, headers, body, now=NOW)
    assert (reply.verdict is Verdict.OK) == (reply.failure is None)
    if reply.verdict is Verdict.OK:
        assert 200 <= status < 300
        assert isinstance(json.loads(body)["choices"][0]["message"], dict)
        assert reply.completion is not None


@example(message={"content": [{"type": []}]})
@given(message=st.dictionaries(st.sampled_from(("content", "tool_calls", "refusal", "reasoning")), _LIKE_ANSWERS))
def test_any_message_in_a_real_envelope_is_read_without_an_error(message: dict[str, Any]) -> None:
    reply = read(200, answer(message))
    assert (reply.verdict is Verdict.OK) == (reply.failure is None)
    if reply.text is not None:
        reply.text.encode()  # no lone surrogate is left


@given(st.text(max_size=200))
def test_any_text_comes_through_unchanged(text: str) -> None:
    sent = text.encode("utf-8", "replace").decode()
    reply = read(200, answer({"content": sent}))
    if is_blank(sent):
        assert failed(reply) == (Verdict.TRANSIENT, ErrorKind.PROTOCOL, 200)
    elif completed(reply).reasoning is None:
        assert reply.text == sent


def test_judging_asks_for_nothing_but_the_completion() -> None:
    done = Completion("x", "stop", "m", Usage())
    assert judge(done).verdict is Verdict.OK
