"""What servers and gateways really send: their words for an end, marks of reasoning, errors within errors, counts."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from batchchat.client.finish import Finish, judge_finish
from batchchat.client.masking import KeyMask
from batchchat.client.streaming import read_whole_stream
from batchchat.client.wire import read_reply
from batchchat.reasoning import is_blank, split, unmarked
from batchchat.records import Axis, ErrorKind, Reply, Usage, Verdict

NOW = 1_790_000_000.0
COUNTS = {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14}
EMPTY = "HTTP 200 with an empty answer: neither text nor a tool call"


def whole(message: dict[str, Any] | str, end: Any = "stop", **choice: Any) -> Reply:
    """Read an answer that comes whole."""
    said = {"role": "assistant", "content": message} if isinstance(message, str) else message
    body = {"id": "a", "model": "m", "choices": [{"index": 0, "message": said, "finish_reason": end, **choice}]}
    return read_reply(200, {}, json.dumps({**body, "usage": COUNTS}).encode(), now=NOW)


def events(*chunks: dict[str, Any]) -> Reply:
    """Read an answer that comes as a stream."""
    body = b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks) + b"data: [DONE]\n\n"
    return read_whole_stream(200, {}, body, now=NOW, mask=KeyMask(None))


def streamed(text: Any, end: Any = "stop", **choice: Any) -> Reply:
    """Read the same answer as a stream, in pieces of three characters."""
    pieces = [text[at : at + 3] for at in range(0, len(text), 3)] if isinstance(text, str) else [text]
    chunks: list[dict[str, Any]] = [{"choices": [{"index": 0, "delta": {"content": piece}}]} for piece in pieces]
    last = {"index": 0, "delta": {}, "finish_reason": end, **choice}
    return events(*chunks, {"choices": [last]}, {"choices": [], "usage": COUNTS})


def error(status: int, body: Any) -> Reply:
    return read_reply(status, {}, body if isinstance(body, bytes) else json.dumps(body).encode(), now=NOW)


def outcome(reply: Reply) -> tuple[Verdict, ErrorKind | None]:
    return reply.verdict, reply.failure.kind if reply.failure is not None else None


# --- why an answer ended

CUT, FILTERED, BROKEN = ErrorKind.TRUNCATED, ErrorKind.CONTENT_FILTER, ErrorKind.SERVER


@pytest.mark.parametrize(
    ("words", "verdict", "kind"),
    [
        ("stop Stop end_turn eos EOS_TOKEN stop_sequence COMPLETE normal tool_use endOfText STOP-STRING", "ok", None),
        ("FinishReason.STOP FINISH_REASON_STOP function_call eosFound end_id", "ok", None),
        ("length LENGTH max_tokens maxTokens max-output-tokens model_length token_limit ERROR_LIMIT", "no", CUT),
        ("FINISH_REASON_MAX_TOKENS model_context_window_exceeded contextLengthReached REASON_MAX_LEN", "no", CUT),
        ("tokens_exhausted out_of_tokens cut_off too_long token_budget_exceeded", "no", CUT),
        ("content_filter Content-Filter SAFETY IMAGE_SAFETY blocklist PROHIBITED_CONTENT SPII", "no", FILTERED),
        ("sensitive recitation ERROR_TOXIC guardrail_intervened content_filtered LANGUAGE", "no", FILTERED),
        ("jailbreak csam hate sexual violence", "no", FILTERED),
        ("refusal", "no", ErrorKind.REFUSAL),
        ("error ERROR network_error abort aborted cancelled USER_CANCEL timed_out time_limit", "transient", BROKEN),
        ("insufficient_system_resource server_error connection_failed overloaded", "transient", BROKEN),
        ("MALFORMED_FUNCTION_CALL malformed_model_output", "transient", ErrorKind.INVALID_OUTPUT),
        ("out_of_memory OOM max_time", "transient", BROKEN),
        ("pause_turn OTHER whatever", "ok", None),
    ],
)
def test_an_end_is_understood_in_any_servers_words(words: str, verdict: str, kind: ErrorKind | None) -> None:
    for word in [*words.split(), *(f"content_filter: {word}" for word in words.split() if kind is FILTERED)]:
        for reply in (whole("half", word), streamed("half", word)):
            assert outcome(reply) == (verdict, kind), word
            assert reply.text == "half"


@pytest.mark.parametrize(
    "text",
    [
        "<img src=x onerror=alert(1)>",
        "the model stopped since an error came",
        "error" * 13,
        "error\nlength",
        "error()",
        "длина error",
        "error  length",
    ],
)
def test_what_is_no_word_says_nothing_of_the_answer(text: str) -> None:
    for reply in (whole("x", text), streamed("x", text)):
        assert outcome(reply) == (Verdict.OK, None)
        assert judge_finish(text) is Finish.UNKNOWN
    assert judge_finish(" max output tokens \n") is Finish.CUT


@pytest.mark.parametrize(
    ("choice", "kind"),
    [
        ({"finish_reason": None, "native_finish_reason": "MAX_TOKENS"}, CUT),
        ({"finish_reason": "stop", "native_finish_reason": "SAFETY"}, FILTERED),
        ({"finish_reason": "length", "native_finish_reason": "stop"}, CUT),
        ({"finish_reason": {"type": "length", "length": 9}}, CUT),
        ({"finish_reason": None, "finish_details": {"type": "max_tokens"}}, CUT),
        ({"finish_reason": "stop", "native_finish_reason": "odd"}, None),
        ({"finish_reason": None, "stop_reason": "max_tokens"}, None),  # in vLLM's answers the text that stopped it
    ],
)
def test_a_gateways_second_word_counts_where_it_tells_more(choice: dict[str, Any], kind: ErrorKind | None) -> None:
    assert outcome(whole("x", **{"end": choice["finish_reason"], **choice}))[1] is kind


def test_a_word_for_none_does_not_end_a_stream() -> None:
    chunks = [{"choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": "null"}]}]
    assert outcome(events(*chunks)) == (Verdict.TRANSIENT, ErrorKind.PROTOCOL)
    assert outcome(whole("x", "null")) == (Verdict.OK, None)


def test_a_full_context_is_no_matter_of_max_tokens() -> None:
    failure = whole("x", "model_context_window_exceeded").failure
    assert failure is not None
    assert failure.message == "the answer was cut off after 3 tokens: the model's context was full: shorten the prompt"


@given(st.text(max_size=200))
def test_any_word_has_a_meaning(word: str) -> None:
    assert judge_finish(word) in Finish


# --- reasoning


@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        ("so it is a\n</think>\n\nb", "so it is a", "b"),
        ("<think>\na\n</think>\nb", "a", "b"),
        ("<THINK>a</THINK>b", "a", "b"),
        ("\ufeff <thinking>a</thinking> b", "a", "b"),
        ("<thought>a</thought>b", "a", "b"),
        ("<reasoning>a</reasoning>b", "a", "b"),
        ("<antThinking>a</antThinking>b", "a", "b"),
        ('<think effort="high">a</think>b', "a", "b"),
        ("<analysis>a</analysis>b", "a", "b"),
        ("<seed:think>a</seed:think>b", "a", "b"),
        ("<seed:cot_budget_reflect>a</seed:cot_budget_reflect><seed:think>c</seed:think>b", "a\n\nc", "b"),
        ("<chain_of_thought>a</chain_of_thought>b", "a", "b"),
        ("<reasoning_content>a</reasoning_content>b", "a", "b"),
        ("[Start thinking]\na\n[End thinking]\n\nb", "a", "b"),
        ("<longcat_think>a</longcat_think>b", "a", "b"),
        ("[THINK]a[/THINK]b", "a", "b"),
        ("a[/THINK]b", "a", "b"),
        ("◁think▷a◁/think▷b", "a", "b"),
        ("<|START_THINKING|>a<|END_THINKING|><|START_RESPONSE|>b<|END_RESPONSE|>", "a", "b"),
        ("<|begin_of_thought|>a<|end_of_thought|>\n<|begin_of_solution|>\nb\n<|end_of_solution|>", "a", "b"),
        ("<|channel>thought\na<channel|>b", "a", "b"),
        (
            "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b<|return|>",
            "a",
            "b",
        ),
        ("a<|end|><|start|>assistant<|channel|>final <|constrain|>json<|message|>b", "a", "b"),
        ("<|channel|>final<|message|>b", None, "b"),
        ("analysisa.assistantfinalb", "a.", "b"),
        ("Here is my thought process: a Here is my response: b", "a", "b"),
        ("Here are my reasoning steps:\na\n[BEGIN FINAL RESPONSE]\nb\n[END FINAL RESPONSE]", "a", "b"),
        ("<think>a</think><think>c</think>b", "a\n\nc", "b"),
        ("a</think>c</think>b", "a\n\nc", "b"),
        ("<think>a</think>c\n</think>\nb", "a\n\nc", "b"),
        ('the label is "bug"</think>b', 'the label is "bug"', "b"),
    ],
)
def test_marked_reasoning_is_told_apart_in_every_dialect(text: str, reasoning: str | None, answer: str) -> None:
    for reply in (whole(text), streamed(text)):
        assert outcome(reply) == (Verdict.OK, None)
        assert reply.completion is not None
        assert (reply.completion.reasoning, reply.text) == (reasoning, answer)


@pytest.mark.parametrize(
    "text",
    [
        "the tag <think>x</think> in a text",
        "<analysis>never closed",
        "`<think>` is never closed",
        "end it with `</think>` and go on",
        '{"note": "write </think> there"}',
        '["<think>a</think>"]',
        "a < b and c </ d",
        "see the </analysis> of it",
        "<p>Here</p>",
    ],
)
def test_a_text_that_is_not_marked_stays_as_it_is(text: str) -> None:
    assert split(text) == (None, text)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("<think>open {1}", ""),
        ("So: <think>{1}</think> {2}", "So: {2}"),
        ("{1}</think>{2}", "{2}"),
        ("<think>{1} <think>{2}</think> {3}</think> {4}", "{4}"),
        ('{"a": "</think>"}', '{"a": "</think>"}'),
        ("see the </analysis> {1}", "see the </analysis> {1}"),
        ("<|channel|>analysis<|message|>{1}", ""),
    ],
)
def test_nothing_of_the_reasoning_is_left_for_a_typed_answer(text: str, left: str) -> None:
    assert unmarked(text).split() == left.split()


@given(st.text(alphabet="ab<>/|[] think", max_size=60))
def test_splitting_takes_no_word_from_anywhere_else(text: str) -> None:
    reasoning, answer = split(text)
    assert text.endswith(answer)
    assert (reasoning is None) == (answer == text) or reasoning == ""


@pytest.mark.thorough
def test_marks_without_end_take_time_that_grows_with_the_text_alone() -> None:
    for piece in ("<think>", "</think>", "<think ", "<|channel|>", "<think>x</think>", "<a:"):
        text = piece * (200_000 // len(piece))
        before = time.process_time()
        split(text)
        unmarked(text)
        assert time.process_time() - before < 20  # a square of it would take minutes


# --- empty answers


@pytest.mark.parametrize(
    "nothing", ["", " \n\t", "\u200b\ufeff", "\xa0", None, "<think>all of it</think>", "\xad\u2800", "<|im_end|>\n"]
)
def test_an_answer_that_says_nothing_is_one_thing_however_it_comes(nothing: str | None) -> None:
    for reply in (whole({"content": nothing}), streamed(nothing)):
        assert outcome(reply) == (Verdict.TRANSIENT, ErrorKind.PROTOCOL)
        assert reply.failure is not None
        assert reply.failure.message == EMPTY
        assert reply.usage == Usage(11, 3, 14)


def test_an_answer_without_words_counts_where_it_calls_a_tool() -> None:
    call = {"id": "c", "index": 0, "type": "function", "function": {"name": "f", "arguments": "{}"}}
    assert outcome(whole({"content": "", "tool_calls": [call]}, "tool_calls")) == (Verdict.OK, None)
    calls = {"choices": [{"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": "tool_calls"}], "usage": COUNTS}
    assert outcome(events(calls)) == (Verdict.OK, None)
    assert outcome(whole({"content": "", "tool_calls": [{}]}, "tool_calls")) == (TRANSIENT, ErrorKind.PROTOCOL)


def test_blank_is_what_shows_nothing() -> None:
    assert all(map(is_blank, ("", None, " \n", "\u2060\u200d ")))
    assert not any(map(is_blank, ("0", ".", " a ")))


# --- errors within errors

INNER = {"error": {"message": "the image is too large", "type": "invalid_request_error", "code": 400}}
NO, TRANSIENT, REFUSED, RATE = Verdict.NO, Verdict.TRANSIENT, Verdict.REFUSED, Verdict.RATE_LIMIT
BAD = ErrorKind.INVALID_REQUEST


@pytest.mark.parametrize(
    ("status", "body", "verdict", "kind", "words"),
    [
        (502, {"error": {"message": "Provider error", "code": 502, "metadata": {"raw": INNER}}}, NO, BAD, "too large"),
        (500, {"error": {"message": "up", "metadata": {"raw": json.dumps(INNER)}}}, NO, BAD, "image is too large"),
        (400, {"error": {"message": "x", "metadata": {"raw": "upstream said no"}}}, NO, BAD, "upstream said no"),
        (400, {"error": {"message": "x", "error": {"code": 503, "message": "full"}}}, TRANSIENT, BROKEN, "full"),
        (400, {"error": {"message": "x", "innererror": {"code": "429", "message": "slow"}}}, RATE, None, "slow"),
        (500, {"error": {"message": 'gateway: {"error": {"code": 400, "message": "odd"}}'}}, NO, BAD, "odd"),
        (500, {"error": {"message": "Error code: 400 - {'error': {'message': 'odd'}}"}}, NO, BAD, "odd"),
        (400, {"errors": [{"code": 7003, "message": "no route"}], "success": False}, NO, BAD, "no route"),
        (400, {"error": {"errors": [{"message": "first"}, {"message": "second"}]}}, NO, BAD, "second"),
        (400, [{"error": {"code": 400, "message": "of a list", "status": "INVALID_ARGUMENT"}}], NO, BAD, "of a list"),
        (422, {"detail": [{"loc": ["body", "n"], "msg": "too big"}]}, REFUSED, BAD, "body.n: too big"),
        (400, {"detail": {"error": {"message": "deep"}}}, NO, BAD, "deep"),
        (400, {"error_code": 336003, "error_msg": "odd form"}, NO, BAD, "odd form"),
        (400, {"fault": {"faultstring": "by the gateway"}}, NO, BAD, "by the gateway"),
        (200, {"errors": [{"code": 503, "message": "full"}]}, TRANSIENT, BROKEN, "full"),
        (
            200,
            {"choices": None, "base_resp": {"status_code": 1004, "status_msg": "login fail"}},
            TRANSIENT,
            BROKEN,
            "login",
        ),
        (200, {"choices": [{"error": {"code": 429, "message": "slow"}, "message": {}}]}, RATE, None, "slow"),
        (200, {"choices": [{"error": "broke off", "message": {"content": "x"}}]}, TRANSIENT, BROKEN, "broke off"),
        (
            400,
            {"error": {"message": "x", "metadata": {"raw": {"error": {"code": 401, "message": "key"}}}}},
            REFUSED,
            BAD,
            "key",
        ),
        (
            424,
            {"error": "Request failed during generation", "error_type": "generation"},
            TRANSIENT,
            BROKEN,
            "generation",
        ),
    ],
)
def test_the_innermost_error_decides_and_is_told(
    status: int, body: Any, verdict: Verdict, kind: ErrorKind | None, words: str
) -> None:
    reply = error(status, body)
    assert outcome(reply) == (verdict, kind or ErrorKind.RATE_LIMIT)
    assert reply.failure is not None
    assert words in reply.failure.message


@pytest.mark.parametrize("nothing", [{"code": 0, "message": ""}, {"code": 0, "message": "success"}, {"code": "OK"}])
def test_an_error_that_says_that_there_is_none_costs_no_answer(nothing: dict[str, Any]) -> None:
    said = {"index": 0, "message": {"content": "x"}, "finish_reason": "stop", "error": nothing}
    assert outcome(error(200, {"choices": [said], "error": nothing})) == (Verdict.OK, None)
    first = {"choices": [{"index": 0, "delta": {"content": "x"}}], "error": nothing}
    last = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "error": nothing}], "error": nothing}
    assert outcome(events(first, last)) == (Verdict.OK, None)


@pytest.mark.parametrize(
    ("body", "want"),
    [
        ({"success": False, "message": "engine crashed"}, (TRANSIENT, BROKEN)),
        ({"status": "error", "message": "out of memory"}, (TRANSIENT, BROKEN)),
        ({"code": 1302, "msg": "rate limit reached for requests"}, (RATE, ErrorKind.RATE_LIMIT)),
        ({"code": 503, "msg": "loading"}, (TRANSIENT, BROKEN)),
        ({"code": 0, "msg": "ok"}, (TRANSIENT, ErrorKind.PROTOCOL)),
    ],
)
def test_an_answer_without_choices_that_says_why_is_an_error(body: Any, want: tuple[Verdict, ErrorKind]) -> None:
    assert outcome(error(200, body)) == want


def test_a_refused_key_and_a_pause_are_believed_of_the_address_itself() -> None:
    assert error(401, {"error": {"message": "no", "code": 400}}).verdict is Verdict.FATAL
    limited = error(429, {"error": {"message": "tokens per minute", "metadata": {"raw": INNER}}})
    assert (limited.verdict, limited.axis) == (RATE, Axis.TOKENS)


def test_an_error_in_a_choice_keeps_what_was_written_streamed_or_not() -> None:
    broken = {"code": 502, "message": "upstream reset"}
    reply = whole("par", None, error=broken)
    part = {"choices": [{"index": 0, "delta": {"content": "par"}}]}
    stream = events(part, {"choices": [{"index": 0, "delta": {}, "error": broken, "finish_reason": "error"}]})
    for each in (reply, stream):
        assert outcome(each) == (TRANSIENT, BROKEN)
        assert each.text == "par"
        assert each.failure is not None
        assert each.failure.http_status == 502


def test_an_error_in_a_message_is_one_as_well_streamed_or_not() -> None:
    told = {"code": 502, "message": "upstream went away"}
    said = {"content": "par", "error": told}
    for reply in (whole(said), events({"choices": [{"index": 0, "delta": said}]})):
        assert outcome(reply) == (TRANSIENT, BROKEN)
        assert reply.failure is not None
        assert "upstream went away" in reply.failure.message
        assert reply.text == "par"
    assert outcome(whole({"content": "fine", "error": None})) == (Verdict.OK, None)


def test_an_outer_message_of_any_length_leaves_room_for_the_inner_one() -> None:
    failure = error(400, {"error": {"message": "y" * 5000, "metadata": {"raw": json.dumps(INNER)}}}).failure
    assert failure is not None
    assert failure.message.endswith("the image is too large")


def test_a_secret_in_an_inner_error_is_masked_before_it_is_cut() -> None:
    secret = "canary-" + "k" * 40
    mask = KeyMask(secret)
    for length in range(250, 301, 7):
        inner = {"error": {"message": "z" * length + secret}}
        body = {"error": {"message": "w" * length + secret, "metadata": {"raw": json.dumps(inner)}}}
        failure = read_reply(400, {}, json.dumps(body).encode(), now=NOW, mask=mask).failure
        assert failure is not None
        assert "canary" not in failure.message


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=9),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ("error", "errors", "detail", "message", "metadata", "raw", "code", "status", "type", "msg", "loc")
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=20,
    ),
    st.sampled_from((200, 400, 403, 422, 429, 500)),
)
@example(body={"msg": "no", "code": []}, status=200)
@example(body={"msg": "no", "code": {}}, status=200)
def test_any_error_body_is_read(body: Any, status: int) -> None:
    reply = error(status, body)
    assert reply.failure is not None
    assert reply.verdict is not Verdict.OK


# --- moderation


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (403, {"error": {"message": "Your input was flagged", "code": 403, "metadata": {"reasons": ["hate"]}}}),
        (403, {"error": {"message": "no", "metadata": {"flagged_input": "…", "reasons": []}}}),
        (403, {"error": "Content violates usage guidelines. Failed check: SAFETY_CHECK_TYPE_BIO"}),
        (400, {"error": {"message": "Content Exists Risk", "type": "invalid_request_error"}}),
        (400, {"error": {"message": "no", "code": "content_policy_violation"}}),
        (400, {"code": "DataInspectionFailed", "message": "Output data may be bad"}),
        (400, {"error": {"message": "x", "innererror": {"code": "ResponsibleAIPolicyViolation"}}}),
        (400, {"error": {"message": "Invalid prompt: your prompt was flagged as violating our usage policy"}}),
        (400, {"error": {"code": "1301", "message": "系统检测到输入或生成内容可能包含不安全或敏感内容"}}),
        (400, {"error": {"message": "InputTextSensitiveContentDetected", "code": "SensitiveContentDetected"}}),
        (400, {"detail": "Violated guardrail policy"}),
        (422, {"error": {"message": "rejected by the content filter"}}),
        (451, {"error": {"message": "censorship_blocked"}}),
        (451, b""),
        (500, {"error": {"message": "litellm.ContentPolicyViolationError", "code": "content_filter"}}),
        (
            502,
            {"error": {"message": "p", "metadata": {"raw": '{"error": {"code": "content_filter", "message": "x"}}'}}},
        ),
        (200, {"error": {"code": 403, "message": "Output was flagged by moderation"}}),
        (200, {"base_resp": {"status_code": 1026, "status_msg": "input new_sensitive"}}),
        (200, {"code": 1301, "msg": "系统检测到输入或生成内容可能包含不安全或敏感内容"}),
        (422, {"error": {"message": "NSFW content detected in prompt"}}),
        (400, {"error": {"message": "Request blocked: PII detected in input", "code": "pii_blocked"}}),
        (400, {"error": {"message": "no", "code": "jailbreak"}}),
    ],
)
def test_an_input_that_a_provider_will_not_have_is_filtered(status: int, body: Any) -> None:
    assert outcome(error(status, body)) == (Verdict.NO, ErrorKind.CONTENT_FILTER)


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (403, "Your account has been flagged for a violation of our usage policy"),
        (403, "Your organization is blocked for harmful use"),
        (403, "You have no permission for this model"),
        (403, "Country, region, or territory not supported"),
        (404, "No endpoints found matching your data policy"),
    ],
)
def test_what_concerns_the_account_is_no_matter_of_one_input(status: int, message: str) -> None:
    assert outcome(error(status, {"error": {"message": message}})) == (REFUSED, BAD)


AZURES = {"hate": {"filtered": False, "severity": "safe"}, "jailbreak": {"detected": True, "filtered": True}}


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ({"prompt_feedback": {"block_reason": "PROHIBITED_CONTENT"}}, "PROHIBITED_CONTENT"),
        ({"promptFeedback": {"blockReason": "OTHER", "safetyRatings": []}}, "OTHER"),
        ({"prompt_filter_results": [{"prompt_index": 0, "content_filter_results": AZURES}]}, "jailbreak"),
        ({"prompt_annotations": [{}, {"content_filter_results": AZURES}]}, "jailbreak"),
        ({}, None),
        ({"promptFeedback": {"blockReason": "BLOCK_REASON_UNSPECIFIED"}}, None),
        ({"prompt_feedback": {"block_reason": None}, "prompt_filter_results": [None]}, None),
        ({"prompt_filter_results": [{"content_filter_results": {"jailbreak": {"detected": True}}}]}, None),
    ],
)
def test_no_answer_is_a_filtered_one_only_if_the_server_says_so(told: dict[str, Any], reason: str | None) -> None:
    empty = {"index": 0, "message": {"content": None}, "finish_reason": "stop"}
    last = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    replies = [
        error(200, {"choices": [], **told, "usage": COUNTS}),
        error(200, {"choices": [empty], **told, "usage": COUNTS}),
        events({"choices": [], **told}, {"choices": [], "usage": COUNTS}),
        events({"choices": [], **told}, last, {"choices": [], "usage": COUNTS}),
    ]
    want = (TRANSIENT, ErrorKind.PROTOCOL) if reason is None else (Verdict.NO, ErrorKind.CONTENT_FILTER)
    for reply in replies:
        assert outcome(reply) == want
        assert reply.failure is not None
        assert (reason or "HTTP 200") in reply.failure.message
        assert reply.usage == Usage(11, 3, 14)
    # An answer that is there is taken, whatever stands beside it.
    whole = {**empty, "message": {"content": "x"}}
    assert outcome(error(200, {"choices": [whole], **told})) == (Verdict.OK, None)
    said = {"choices": [{"index": 0, "delta": {"content": "x"}}]}
    assert outcome(events({"choices": [], **told}, said, last)) == (Verdict.OK, None)


# --- what the model wrote and the server could not use


@pytest.mark.parametrize(
    ("told", "text"),
    [
        ({"code": "json_validate_failed", "failed_generation": '{"a": '}, '{"a": '),
        ({"code": "tool_use_failed", "failed_generation": "<function=f>{}"}, "<function=f>{}"),
        ({"code": "output_parse_failed", "failed_generation": {"a": 1}}, '{"a":1}'),
        ({"code": "json_validate_failed", "failed_generation": ""}, ""),
        ({"code": "tool_use_failed"}, None),
    ],
)
def test_a_failure_of_sampling_keeps_its_text_and_is_no_bad_request(told: dict[str, Any], text: str | None) -> None:
    body = {"error": {"message": "Failed to generate", "type": "invalid_request_error", **told}}
    part = {"choices": [{"index": 0, "delta": {"content": "part"}}]}
    for reply in (error(400, body), events(part, body)):
        assert outcome(reply) == (TRANSIENT, ErrorKind.INVALID_OUTPUT)
        assert reply.text == text
        assert not reply.doubted


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (400, "Failed to generate tool_calls. Please adjust your prompt."),
        (400, "The model produced invalid JSON"),
        (400, "Failed to parse fc related info to json format!"),
        (500, "Failed to parse input at pos 5: <|channel|>"),
    ],
)
def test_a_failure_of_sampling_is_known_by_its_words_alone(status: int, message: str) -> None:
    reply = error(status, {"error": {"message": message}})
    assert outcome(reply) == (TRANSIENT, ErrorKind.INVALID_OUTPUT)
    assert not reply.doubted


# --- a refusal that cannot be true


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, {"error": {"message": "We could not parse the JSON body of your request. (HINT: …)"}}),
        (400, {"error": {"message": "Invalid JSON in request body"}}),
        (400, {"error": {"message": "unexpected end of JSON input"}}),
        (400, {"error": {"message": "invalid character 'N' looking for beginning of value"}}),
        (400, {"error": "invalid character '\\x00' in string literal"}),
        (400, {"message": "Request body is empty"}),
        (400, {"error": "Failed to deserialize the JSON body into the target type: EOF while parsing a value"}),
        (400, {"error": {"message": "you must provide a model parameter"}}),
        (422, {"detail": [{"type": "json_invalid", "loc": ["body", 0], "msg": "JSON decode error"}]}),
        (422, {"detail": [{"type": "missing", "loc": ["body"], "msg": "Field required"}]}),
        (400, b"<html><h1>400 Bad request</h1>Your browser sent an invalid request.</html>"),
        (400, b""),
        (400, b"Bad Request"),
        (400, {"error": {"message": "Content-Length mismatch"}}),
        (400, {"error": {"message": "[json.exception.parse_error.101] parse error at line 1, column 1: syntax error"}}),
    ],
)
def test_a_400_that_a_valid_request_cannot_get_is_doubted(status: int, body: Any) -> None:
    reply = error(status, body)
    assert reply.doubted
    assert outcome(reply)[1] is BAD


@pytest.mark.parametrize(
    "message",
    [
        "This model's maximum context length is 8192 tokens",
        "Invalid value for temperature",
        "body.messages: field required",
        "invalid json schema for response_format",
        "stop: invalid character in sequence 2",
        "model does not support images",
    ],
)
def test_any_other_400_is_believed(message: str) -> None:
    assert not error(400, {"error": {"message": message}}).doubted


# --- counts of tokens


@pytest.mark.parametrize(
    ("fields", "choice", "usage"),
    [
        ({}, {"usage": COUNTS}, Usage(11, 3, 14)),
        ({"x_groq": {"id": "r", "usage": COUNTS}}, {}, Usage(11, 3, 14)),
        ({"usage": None, "x_vendor": {"usage": {**COUNTS, "prompt_cache_hit_tokens": 4}}}, {}, Usage(11, 3, 14, 4)),
        ({"usage": {"input_tokens": 11, "output_tokens": 3}}, {}, Usage(11, 3, 14)),
        ({"usageMetadata": {"promptTokenCount": 11, "candidatesTokenCount": 3}}, {}, Usage(11, 3, 14)),
        (
            {"amazon-bedrock-invocationMetrics": {"inputTokenCount": 11, "outputTokenCount": 3}},
            {},
            Usage(11, 3, 14),
        ),
        ({"x_vendor": {"usage": {"credits": 2}}}, {}, Usage()),
        ({"meta": {"billed_units": {"input_tokens": 11, "output_tokens": 3}}}, {}, Usage(11, 3, 14)),
        ({"prompt_eval_count": 11, "eval_count": 3}, {}, Usage(11, 3, 14)),
        ({"token_usage": COUNTS}, {}, Usage(11, 3, 14)),
        ({"usage": [COUNTS]}, {}, Usage(11, 3, 14)),
        ({"usage": {"prompt_tokens": 11.0, "completion_tokens": 3.0}}, {}, Usage(11, 3, 14)),
        ({"usage": {"prompt_tokens": 11, "completion_tokens": None, "total_tokens": 14}}, {}, Usage(11, 3, 14)),
        ({"usage": dict.fromkeys(COUNTS, 0), "x_vendor": {"usage": COUNTS}}, {}, Usage(11, 3, 14)),
        ({"usage": dict.fromkeys(COUNTS, 0)}, {}, Usage(0, 0, 0)),
    ],
)
def test_usage_is_found_wherever_a_server_puts_it(fields: dict[str, Any], choice: dict[str, Any], usage: Usage) -> None:
    said = {"index": 0, "message": {"content": "x"}, "finish_reason": "stop", **choice}
    reply = read_reply(200, {}, json.dumps({"choices": [said], **fields}).encode(), now=NOW)
    last = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", **choice}], **fields}
    stream = events({"choices": [{"index": 0, "delta": {"content": "x"}}]}, last)
    assert reply.usage == stream.usage == usage


@pytest.mark.parametrize(
    "text",
    [
        "<think>so",
        "\n<thinking>\nso",
        "[THINK]so",
        "◁think▷so",
        "<|begin_of_thought|>so",
        "<seed:think>so",
        "<thought>so",
    ],
)
@pytest.mark.parametrize("word", ["stop", "length"])
def test_reasoning_that_never_ends_is_no_answer(text: str, word: str | None) -> None:
    for reply in (whole(text, word), streamed(text, word)):
        assert reply.failure is not None
        assert reply.failure.kind is (ErrorKind.TRUNCATED if word == "length" else ErrorKind.PROTOCOL)
        assert reply.completion is not None
        assert (reply.completion.text, reply.completion.reasoning) == ("", "so")


def test_reasoning_that_never_ends_beside_a_tool_call_is_reasoning() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    reply = whole({"content": "<think>so", "tool_calls": [call]})
    assert reply.failure is None
    assert reply.completion is not None
    assert (reply.completion.text, reply.completion.reasoning) == ("", "so")
