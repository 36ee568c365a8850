"""Reading one HTTP answer of a Chat Completions API as a `Reply`.

Pure functions over status, headers and body, so that every shape of answer is one line of a test's table. What the
statuses and bodies mean is documented by OpenAI and Scaleway; servers that only resemble them send FastAPI's
`{"detail": …}`, HTML pages, or HTTP 200 with an error inside, and none of these is ever taken for a completion.
"""

from __future__ import annotations

import re
from typing import Any

import orjson

from batchchat.client.headers import Headers, parse_limits, parse_retry_after
from batchchat.records import Axis, Completion, ErrorKind, Failure, Reply, Usage, Verdict

_MESSAGE_LIMIT = 1000
_QUOTA = re.compile(
    r"insufficient_quota|credit_balance_exhausted|spend_limit_exceeded|billing_hard_limit|payment_required"
)
_TRANSIENT = {
    408: ErrorKind.TIMEOUT,
    409: ErrorKind.SERVER,
    425: ErrorKind.SERVER,
    500: ErrorKind.SERVER,
    502: ErrorKind.SERVER,
    503: ErrorKind.SERVER,
    504: ErrorKind.TIMEOUT,
    529: ErrorKind.SERVER,
}
_RATE = {429, 498}
_FATAL = {401, 402}
_REFUSED = {403, 404, 405, 422}
_THINK = re.compile(r"\A\s*<think>(.*?)</think>\s*", re.DOTALL)


def read_reply(status: int, headers: Headers, body: bytes, *, now: float) -> Reply:
    """Judge one whole answer. `now` is seconds since the epoch, for Retry-After dates. Never raises."""
    try:
        data: Any = orjson.loads(body)
    except orjson.JSONDecodeError:
        data = None
    reply = _read_success(data, body) if 200 <= status < 300 else _read_error(status, headers, data, body)
    if reply.verdict is not Verdict.OK:
        reply.retry_after = parse_retry_after(headers, now)
    reply.limits = parse_limits(headers)
    request_id = headers.get(b"x-request-id")
    if request_id is not None:
        reply.request_id = request_id.decode("latin-1")[:200]
    return reply


def read_usage(data: object) -> Usage:
    """Read a `usage` object; any of it may be missing or null."""
    if not isinstance(data, dict):
        return Usage()
    prompt = data.get("prompt_tokens_details")
    output = data.get("completion_tokens_details")
    prompt_tokens, completion_tokens = _count(data.get("prompt_tokens")), _count(data.get("completion_tokens"))
    total = _count(data.get("total_tokens"))
    if total is None and prompt_tokens is not None and completion_tokens is not None:
        total = prompt_tokens + completion_tokens
    return Usage(
        prompt_tokens,
        completion_tokens,
        total,
        _count(prompt.get("cached_tokens")) if isinstance(prompt, dict) else None,
        _count(output.get("reasoning_tokens")) if isinstance(output, dict) else None,
    )


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 <= value < 2**53 else None


def _protocol(message: str, body: bytes, *, usage: Usage | None = None) -> Reply:
    start = body[:160].decode("utf-8", "replace").strip()
    text = f"{message}: {start}" if start else message
    return Reply(Verdict.TRANSIENT, failure=Failure(ErrorKind.PROTOCOL, text, 200), usage=usage)


def _read_success(data: Any, body: bytes) -> Reply:
    if not isinstance(data, dict):
        return _protocol("HTTP 200 with a body that is no JSON object" if body else "HTTP 200 with no body", body)
    if data.get("error"):
        return _error_inside(data)
    usage = read_usage(data.get("usage"))
    choices = data.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return _protocol("HTTP 200 without choices", body, usage=usage)
    choice = choices[0]
    message = choice.get("message")
    if not isinstance(message, dict):
        return _protocol("HTTP 200 with a choice that has no message", body, usage=usage)
    completion = _read_completion(data, choice, message, usage)
    if completion is None:
        return _protocol("HTTP 200 with a message of unknown form", body, usage=usage)
    return judge(completion)


def _error_inside(data: dict[str, Any]) -> Reply:
    """HTTP 200 with an `error` object: judged by the code inside, else as the server's own trouble."""
    error = data["error"]
    code = error.get("code") if isinstance(error, dict) else data.get("status")
    status = code if isinstance(code, int) and 400 <= code < 600 else 500
    reply = _read_error(status, {}, data, b"")
    reply.usage = read_usage(data["usage"]) if data.get("usage") else None
    return reply


def _read_completion(
    data: dict[str, Any], choice: dict[str, Any], message: dict[str, Any], usage: Usage
) -> Completion | None:
    text = message.get("content")
    if isinstance(text, list):
        text = "".join(part["text"] for part in text if isinstance(part, dict) and isinstance(part.get("text"), str))
    if text is not None and not isinstance(text, str):
        return None
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    if not isinstance(reasoning, str):
        reasoning = None
    if text is not None and reasoning is None and "<think>" in text[:64]:
        inline = _THINK.match(text)
        if inline:
            reasoning, text = inline[1].strip(), text[inline.end() :]
    finish_reason, model, request_id = choice.get("finish_reason"), data.get("model"), data.get("id")
    refusal = message.get("refusal")
    return Completion(
        text=text,
        finish_reason=finish_reason if isinstance(finish_reason, str) else None,
        model=model if isinstance(model, str) else None,
        usage=usage,
        request_id=request_id if isinstance(request_id, str) else None,
        refusal=refusal if isinstance(refusal, str) and refusal else None,
        reasoning=reasoning,
        tool_calls=_read_tool_calls(message.get("tool_calls")),
    )


def _read_tool_calls(calls: object) -> tuple[dict[str, str | None], ...] | None:
    if not isinstance(calls, list) or not calls:
        return None
    read = []
    for call in calls:
        if not isinstance(call, dict):
            continue
        function = call.get("function")
        function = function if isinstance(function, dict) else {}
        arguments = function.get("arguments")
        if arguments is not None and not isinstance(arguments, str):
            arguments = orjson.dumps(arguments).decode()
        read.append(
            {
                "id": _text(call.get("id")),
                "type": _text(call.get("type")),
                "name": _text(function.get("name")),
                "arguments": arguments,
            }
        )
    return tuple(read) or None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def judge(completion: Completion) -> Reply:
    """Tell a usable completion from an answer that is none: refused, filtered, cut off, empty."""
    failure: Failure | None = None
    verdict = Verdict.NO
    reason = completion.finish_reason
    if reason == "content_filter":
        failure = Failure(ErrorKind.CONTENT_FILTER, "the provider's content filter stopped the answer", 200)
    elif completion.refusal is not None:
        failure = Failure(ErrorKind.REFUSAL, f"the model refused: {completion.refusal[:_MESSAGE_LIMIT]}", 200)
    elif reason == "length":
        tokens = completion.usage.completion_tokens
        after = f" after {tokens} tokens" if tokens is not None else ""
        failure = Failure(ErrorKind.TRUNCATED, f"the answer was cut off{after}: raise params.max_tokens", 200)
    elif reason == "error":
        verdict, failure = Verdict.TRANSIENT, Failure(ErrorKind.SERVER, "the answer ended with an error", 200)
    elif completion.text is None and completion.tool_calls is None:
        verdict, failure = (
            Verdict.TRANSIENT,
            Failure(ErrorKind.PROTOCOL, "HTTP 200 with neither text nor tool calls", 200),
        )
    return Reply(
        Verdict.OK if failure is None else verdict,
        completion=completion,
        failure=failure,
        usage=completion.usage,
        text=completion.text,
        request_id=completion.request_id,
        model=completion.model,
    )


def _error_message(data: Any, body: bytes) -> tuple[str, str]:
    """The message and the machine-readable part (type and code) of an error body, in any of its known shapes."""
    if not isinstance(data, dict):
        text = body[: 4 * _MESSAGE_LIMIT].decode("utf-8", "replace")
        if "<" in text[:200]:
            text = re.sub(r"(?is)<(script|style).*?</\1>|<[^>]*>", " ", text)
        return " ".join(text.split())[:_MESSAGE_LIMIT], ""
    error = data.get("error")
    source = error if isinstance(error, dict) else data
    message = source.get("message") or source.get("detail") or (error if isinstance(error, str) else None)
    if isinstance(message, list | dict) or message is None:
        message = orjson.dumps(message if message is not None else data).decode()
    if isinstance(error, str) and error not in str(message):
        message = f"{error}: {message}"
    codes = f"{source.get('type') or ''} {source.get('code') or ''} {error if isinstance(error, str) else ''}"
    return str(message)[:_MESSAGE_LIMIT], codes


def _read_error(status: int, headers: Headers, data: Any, body: bytes) -> Reply:
    message, codes = _error_message(data, body)
    verdict, kind = Verdict.NO, ErrorKind.INVALID_REQUEST
    axis = Axis.UNKNOWN
    if status in _RATE:
        kind = ErrorKind.RATE_LIMIT
        quota = _QUOTA.search(codes.lower()) or _QUOTA.search(message.lower())
        verdict = Verdict.FATAL if quota else Verdict.RATE_LIMIT
        axis = Axis.CONCURRENCY if status == 498 else _axis(f"{message} {codes}".lower())
    elif status in _TRANSIENT or status >= 500:
        verdict, kind = Verdict.TRANSIENT, _TRANSIENT.get(status, ErrorKind.SERVER)
    elif status in _FATAL:
        verdict = Verdict.FATAL
    elif status in _REFUSED:
        verdict = Verdict.REFUSED
    elif 300 <= status < 400:
        verdict, kind = Verdict.REFUSED, ErrorKind.PROTOCOL
        to = headers.get(b"location", b"").decode("latin-1")[:200]
        message = f"a redirect{' to ' + to if to else ''}, which is not followed: the key belongs to this address only"
    elif status < 200:
        verdict, kind = Verdict.TRANSIENT, ErrorKind.PROTOCOL
    should = headers.get(b"x-should-retry")
    if should == b"true" and verdict is Verdict.NO:
        verdict = Verdict.TRANSIENT
    elif should == b"false" and verdict is Verdict.TRANSIENT:
        verdict = Verdict.NO
    text = f"HTTP {status}: {message}" if message else f"HTTP {status}"
    return Reply(verdict, failure=Failure(kind, text, status), axis=axis)


def _axis(text: str) -> Axis:
    if "concurren" in text or "simultaneous" in text or "in parallel" in text:
        return Axis.CONCURRENCY
    if "token" in text or "tpm" in text:
        return Axis.TOKENS
    if "request" in text or "rpm" in text:
        return Axis.REQUESTS
    return Axis.UNKNOWN
