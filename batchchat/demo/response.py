"""Writing answers: completions whole and streamed, and errors in the three shapes that Scaleway's come in."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from http import HTTPStatus
from typing import Any, Literal

import orjson

from batchchat.dataclass import dataclass
from batchchat.demo.draws import draw
from batchchat.demo.model.answering import ModelAnswer
from batchchat.demo.model.sureness import LabelChoice, place_choices, token_entry
from batchchat.demo.request import ApiError, ChatRequest
from batchchat.demo.server_options import DemoOptions
from batchchat.demo.tokens import count_tokens, cut_to_tokens

ErrorShape = Literal["gateway", "nested", "flat"]
ERROR_SHAPES: tuple[ErrorShape, ...] = ("gateway", "nested", "flat")
FINGERPRINT = "fp_demo"
HTML_PAGE = b"<!DOCTYPE html>\n<html><head><title>Gateway</title></head><body><h1>Please wait</h1></body></html>\n"
_WHITESPACE_TOKENS = 400
"""Tokens of an answer that is nothing but space: it ends by its length, as that of a stuck model does."""

_FAULT_ERRORS: Mapping[str, tuple[int, str, str, str | None, str | None]] = {
    "error_400": (400, "the request was not understood", "invalid_request_error", None, None),
    "error_401": (401, "no valid key was given", "authentication_error", None, None),
    "error_403": (403, "the key has no permission for this", "permission_error", None, None),
    "error_404": (404, "there is no such route", "not_found_error", None, None),
    "error_416": (416, "above this model's cap", "invalid_request_error", "max_completion_tokens", None),
    "error_422": (422, "the model does not exist", "invalid_request_error", "model", "model_not_found"),
    "error_500": (500, "something went wrong on our side", "server_error", None, None),
    "error_503": (503, "the service is overloaded, slow down", "server_error", None, None),
    "error_504": (504, "the answer took too long to generate", "server_error", None, None),
    "day": (
        429,
        "Rate limit reached on requests per day (RPD): Limit 1000, Used 1000. Please try again in 11h6m40s.",
        "requests",
        None,
        "rate_limit_exceeded",
    ),
    "quota": (429, "you exceeded your current quota", "insufficient_quota", None, "insufficient_quota"),
}


def fault_error(fault: str) -> ApiError | None:
    """Return the error that a fault answers with; None if it does something else. Sticky faults share the words."""
    words = _FAULT_ERRORS.get(fault.replace("sticky_", "error_"))
    if words is None:
        return None
    status, message, type_, param, code = words
    headers = ((b"retry-after", b"40000"),) if fault == "day" else ()
    return ApiError(status, message, type=type_, param=param, code=code, headers=headers)


def plain_error(status: Literal[401, 403, 500, 503, 504]) -> ApiError:
    """Return the usual error of a status."""
    status_, message, type_, param, code = _FAULT_ERRORS[f"error_{status}"]
    return ApiError(status_, message, type=type_, param=param, code=code)


@dataclass(frozen=True, slots=True)
class WireCompletion:
    """One finished answer with its tokens, ready to be written whole or in chunks."""

    id: str
    model: str
    content: str | None
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    reasoning_tokens: int = 0
    refusal: str | None = None
    reasoning: str | None = None
    tool_call: Mapping[str, Any] | None = None
    logprobs: Mapping[str, Any] | None = None
    fingerprint: str = FINGERPRINT
    service_tier: str | None = None

    @property
    def total_tokens(self) -> int:
        """What the request is charged."""
        return self.prompt_tokens + self.completion_tokens

    @property
    def usage(self) -> dict[str, Any]:
        """Usage as the wire names it."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.total_tokens,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
        }


def complete(
    request: ChatRequest, answer: ModelAnswer, options: DemoOptions, *, answer_id: str, fault: str | None = None
) -> WireCompletion:
    """Bring an answer under the request's limits: stop texts, token limit, logprobs; or spoil it as `fault` says."""
    answer, finish = _spoiled(answer, request, fault)
    # As a server without a reasoning parser does: the client has to part them.
    if options.inline_reasoning and answer.reasoning is not None and answer.text is not None:
        answer = replace(answer, text=f"<think>{answer.reasoning}</think>\n{answer.text}", reasoning=None)
    reasoning = None if answer.reasoning is None else cut_to_tokens(answer.reasoning, request.max_tokens)
    thought = count_tokens(reasoning or "")
    room = request.max_tokens - thought
    content, call, written = None, None, 0
    if answer.text is not None:
        whole = _before_stop(answer.text, request.stop)
        content = cut_to_tokens(whole, room)
        written = count_tokens(content)
        finish = "length" if len(content) < len(whole) else finish
    # A call counts its arguments as tokens, and can be cut off in the middle of them.
    elif answer.tool_name is not None and answer.arguments is not None:
        arguments = cut_to_tokens(answer.arguments, room)
        written = count_tokens(arguments)
        finish = "length" if len(arguments) < len(answer.arguments) or finish == "length" else "tool_calls"
        function = {"name": answer.tool_name, "arguments": arguments}
        call = {"id": f"call_{answer_id[-12:]}", "type": "function", "function": function}
    refusal = "I cannot help with that." if fault == "refusal" else None
    return WireCompletion(
        id=answer_id,
        model=options.answer_as or request.model,
        content=content,
        finish_reason=finish,
        prompt_tokens=request.prompt_tokens,
        completion_tokens=thought + written + count_tokens(refusal or ""),
        reasoning_tokens=thought,
        refusal=refusal,
        reasoning=reasoning,
        tool_call=call,
        logprobs=_logprobs(content, request, answer.choices, options.seed) if content is not None else None,
        service_tier=request.service_tier,
    )


def _spoiled(answer: ModelAnswer, request: ChatRequest, fault: str | None) -> tuple[ModelAnswer, str]:
    """Return the answer as a fault leaves it, and its finish_reason so far."""
    if fault in {"null_content", "refusal", "content_filter"}:
        return ModelAnswer(), "content_filter" if fault == "content_filter" else "stop"
    if fault == "empty_whitespace":
        length = 4 * min(request.max_tokens, _WHITESPACE_TOKENS)
        return ModelAnswer(text=(" \n\t\n" * length)[:length]), "length"
    # Models often write JSON this way, though asked not to.
    if fault == "fenced" and answer.text is not None:
        language = "json" if answer.text.startswith(("{", "[")) else ""
        answer = replace(answer, text=f"Here is the answer:\n```{language}\n{answer.text}\n```")
    elif fault == "invalid_output" and answer.text is not None:
        answer = replace(answer, text=f"I would rather not decide between these: {answer.text[1:40]}")
    elif fault == "invalid_output" and answer.arguments is not None:
        answer = replace(answer, arguments=_half(answer.arguments))
    elif fault in {"misfit", "misfit_once"}:
        answer = replace(answer, text=_misfit(answer.text), arguments=_misfit(answer.arguments))
    elif fault == "cut_off":
        return replace(answer, text=_half(answer.text), arguments=_half(answer.arguments)), "length"
    return answer, "stop"


def _half(text: str | None) -> str | None:
    return None if text is None else text[: len(text) // 2]


def _misfit(text: str | None) -> str | None:
    """Return a JSON text changed so that few schemas take it; another text as it is."""
    try:
        value = orjson.loads(text or "")
    except orjson.JSONDecodeError:
        return text
    if not isinstance(value, dict):
        return orjson.dumps([value]).decode()
    names = list(value)
    for name in names[-1:]:
        del value[name]
    first = next((name for name in names if isinstance(value.get(name), str)), None)
    if first is not None:
        value[first] += ", or something like it"
    return orjson.dumps(value).decode()


def _before_stop(text: str, stops: tuple[str, ...]) -> str:
    found = [index for stop in stops if (index := text.find(stop)) >= 0]
    return text[: min(found)] if found else text


def _logprobs(content: str, request: ChatRequest, choices: Sequence[LabelChoice], seed: int) -> dict[str, Any] | None:
    """Write log probabilities if they are asked for: one entry for every four characters.

    Those of labels follow the rule of `sureness`. All others are invented.
    """
    if not request.logprobs:
        return None
    entries: list[dict[str, Any]] = []
    placed = place_choices(content, choices)
    for start in range(0, len(content), 4):
        token = content[start : start + 4]
        # Labels have probabilities of their own, so that a test of confidence has something to find.
        if placed:
            entries.append(token_entry(token, start, placed, request.top_logprobs))
            continue
        logprob = -round(draw(seed, "logprob", start, token) * 0.7, 6)
        entries.append({"token": token, "logprob": logprob, "bytes": list(token.encode("utf-8")), "top_logprobs": []})
    return {"content": entries, "refusal": None}


def completion_body(completion: WireCompletion, *, fault: str | None = None) -> bytes:
    """Write a completion as one JSON body."""
    message: dict[str, Any] = {
        "role": "assistant",
        "content": completion.content,
        "refusal": completion.refusal,
        "tool_calls": [completion.tool_call] if completion.tool_call is not None else [],
    }
    if completion.reasoning is not None:
        message["reasoning_content"] = completion.reasoning
    choice = {
        "index": 0,
        "message": message,
        "logprobs": completion.logprobs,
        "finish_reason": completion.finish_reason,
    }
    body: dict[str, Any] = {
        "id": completion.id,
        "object": "chat.completion",
        "created": int(time.time()),
        "model": completion.model,
        "choices": [] if fault == "no_choices" else [choice],
        "system_fingerprint": completion.fingerprint,
        **_tier(completion),
    }
    if fault != "no_usage":
        body["usage"] = completion.usage
    return orjson.dumps(body)


def _tier(completion: WireCompletion) -> dict[str, str]:
    return {} if completion.service_tier is None else {"service_tier": completion.service_tier}


def completion_events(
    completion: WireCompletion, *, chunk_chars: int, include_usage: bool, fault: str | None = None
) -> Iterator[bytes]:
    """Write a completion as server-sent events: role, pieces, finish_reason, usage if asked for, `[DONE]`."""
    head: dict[str, Any] = {
        "id": completion.id,
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": completion.model,
        "system_fingerprint": completion.fingerprint,
        **_tier(completion),
    }
    # With `include_usage` OpenAI's chunks all have the field: null until the last.
    if include_usage:
        head["usage"] = None

    def event(delta: Mapping[str, Any], finish: str | None = None, logprobs: Any = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return _event({**head, "choices": [] if fault == "no_choices" else [choice]})

    yield event({"role": "assistant", "content": "" if completion.content is not None else None})
    for piece in _pieces(completion.reasoning, chunk_chars):
        yield event({"reasoning": piece})
    if completion.refusal is not None:
        yield event({"refusal": completion.refusal})
    entries = completion.logprobs["content"] if completion.logprobs is not None else None
    size = chunk_chars if entries is None else max(4, chunk_chars // 4 * 4)
    for index, piece in enumerate(_pieces(completion.content, size)):
        part = None if entries is None else entries[index * size // 4 : (index + 1) * size // 4]
        yield event({"content": piece}, logprobs=None if part is None else {"content": part, "refusal": None})
    if completion.tool_call is not None:
        function = completion.tool_call["function"]
        opened = {**completion.tool_call, "index": 0, "function": {"name": function["name"], "arguments": ""}}
        yield event({"tool_calls": [opened]})
        for piece in _pieces(function["arguments"], chunk_chars):
            yield event({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]})
    yield event({}, completion.finish_reason)
    if include_usage and fault != "no_usage":
        yield _event({**head, "choices": [], "usage": completion.usage})
    yield b"data: [DONE]\n\n"


def _pieces(text: str | None, size: int) -> Iterator[str]:
    return (text[start : start + size] for start in range(0, len(text), size)) if text else iter(())


def _event(data: Mapping[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(data) + b"\n\n"


def error_event(error: ApiError) -> bytes:
    """Write an error as an object in mid-stream."""
    return b"data: " + error_body(error, "nested") + b"\n\n"


def error_body(error: ApiError, shape: ErrorShape) -> bytes:
    """Write an error in one of the three shapes: the gateway's, the nested one of OpenAI's API, or vLLM's flat one."""
    if shape == "gateway":
        return orjson.dumps(
            {"error": HTTPStatus(error.status).phrase, "status": error.status, "message": error.message}
        )
    detail = {
        "message": error.message,
        "type": error.type,
        "param": error.param,
        "code": error.code or error.status,
    }
    return orjson.dumps({"error": detail} if shape == "nested" else {"object": "error", **detail})
