"""Reading one HTTP answer of a Chat Completions API as a `Reply`.

Pure functions over status, headers and body, so that every shape of answer is one line of a test's table. What the
statuses and bodies mean is documented by OpenAI and Scaleway; servers that only resemble them send FastAPI's
`{"detail": …}`, HTML pages, or HTTP 200 with an error inside, and none of these is ever taken for a completion.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from itertools import zip_longest
from typing import Any

import orjson

from batchchat.client.headers import Headers, parse_limits, parse_retry_after
from batchchat.records import Axis, Completion, ErrorKind, Failure, Reply, Usage, Verdict

_MESSAGE_LIMIT = 1000
_EXCERPT = 160
_READ_LIMIT = 16_000
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
_STATUS_OF_WORDS = (
    (re.compile(r"rate_?limit|too_many_requests|quota|spend_limit|credit_balance"), 429),
    (re.compile(r"overload"), 529),
    (re.compile(r"authentication|invalid_api_key|unauthori[sz]ed"), 401),
    (re.compile(r"permission"), 403),
    (re.compile(r"model_not_found"), 404),
    (re.compile(r"content_filter|content_policy|context_length|invalid_request|bad_?request"), 400),
)
_FILTERED = re.compile(r"content_filter|content_policy_violation")
_NEVER_FITS = re.compile(r"request too large|exceeds? the (?:maximum )?limit of tokens per request")
_GENERIC = re.compile(r"too many requests|try again|requested \d+|http[ _]?429")
Mask = Callable[[str], str]
_THINK = re.compile(r"\A\s*<think>(.*?)</think>\s*", re.DOTALL)


def read_reply(status: int, headers: Headers, body: bytes, *, now: float, mask: Mask = str) -> Reply:
    """Judge one whole answer. `now` is seconds since the epoch, for Retry-After dates. Never raises.

    `mask` takes a secret out of what becomes a message, before that is cut to its length.
    """
    data = _load(body)
    if 200 <= status < 300:
        reply = _read_success(status, headers, data, body, mask)
    else:
        reply = _read_error(status, headers, data, body, mask)
    tell_headers(reply, headers, now=now, mask=mask)
    return reply


def tell_headers(reply: Reply, headers: Headers, *, now: float, mask: Mask = str) -> None:
    """Note on a reply what the answer's header fields say about it."""
    if reply.verdict is not Verdict.OK:
        reply.retry_after = parse_retry_after(headers, now)
    reply.limits = parse_limits(headers)
    request_id = headers.get(b"x-request-id")
    if request_id is not None:
        reply.request_id = mask(request_id.decode("latin-1"))[:200]


def _load(body: bytes) -> Any:
    """Parse JSON; None where it is none. Halves of emoji and NaN, which some servers write, do not cost the answer."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        pass
    if body[:1] not in b"{[" and not body[:64].lstrip().startswith((b"{", b"[")):
        return None
    try:
        data = json.loads(body, parse_constant=lambda _: None)
        return orjson.loads(json.dumps(data, ensure_ascii=False).encode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None


MAX_TOKENS = 100_000_000
"""The most tokens that an answer's usage is believed to have: ten times the longest context that is on offer today."""


def _dump(value: object) -> str:
    """JSON text of a parsed value. Raises ValueError where it is nested too deeply."""
    try:
        return orjson.dumps(value).decode()
    except TypeError as error:
        raise ValueError(str(error)) from None


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
    """Return a number of tokens; None of what is no believable one, so that no sum or budget is built on it."""
    return value if type(value) is int and 0 <= value <= MAX_TOKENS else None


def protocol_failure(status: int, problem: str, body: bytes, mask: Mask) -> Failure:
    """The failure of an answer that is none of Chat Completions', told with its beginning."""
    start = " ".join(mask(body[:_READ_LIMIT].decode("utf-8", "replace")).split())[:_EXCERPT]
    return Failure(
        ErrorKind.PROTOCOL, f"HTTP {status} {problem}: {start}" if start else f"HTTP {status} {problem}", status
    )


def _protocol(status: int, problem: str, body: bytes, mask: Mask, *, usage: Usage | None = None) -> Reply:
    return Reply(Verdict.TRANSIENT, failure=protocol_failure(status, problem, body, mask), usage=usage)


def _read_success(status: int, headers: Headers, data: Any, body: bytes, mask: Mask) -> Reply:
    if not isinstance(data, dict):
        return _protocol(status, "with a body that is no JSON object" if body else "with no body", body, mask)
    usage = read_usage(data.get("usage"))
    if data.get("error") or data.get("object") == "error":
        reply = _read_error(_status_inside(data), headers, data, b"", mask)
        if reply.failure is not None:
            told = f"HTTP {status} with an error inside: {reply.failure.message}"
            reply.failure = Failure(reply.failure.kind, told, reply.failure.http_status)
        reply.usage = usage if data.get("usage") else None
        return reply
    choices = data.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return _protocol(status, "without choices", body, mask, usage=usage)
    choice = choices[0]
    message = choice.get("message")
    if not isinstance(message, dict):
        return _protocol(status, "with a choice that has no message", body, mask, usage=usage)
    try:
        completion = read_completion(data, choice, message, usage)
    except ValueError:
        return _protocol(status, "with a message of unknown form", body, mask, usage=usage)
    return judge(completion, mask=mask)


def read_cut(body: bytes, failure: Failure) -> Reply:
    """What had come of an answer when `failure` cut it off: kept and paid for, and never a success.

    `body` is a `chat.completion` object as far as it came. Never raises.
    """
    data = _load(body)
    if not isinstance(data, dict):
        return Reply(Verdict.TRANSIENT, failure=failure)
    usage = read_usage(data["usage"]) if data.get("usage") else None
    completion = None
    if data.get("choices"):
        choice = data["choices"][0]
        try:
            completion = read_completion(data, choice, choice["message"], usage or Usage())
        except ValueError:
            completion = None
    return Reply(
        Verdict.TRANSIENT,
        completion=completion,
        failure=failure,
        usage=usage,
        text=completion.text if completion is not None else None,
        request_id=_text(data.get("id")),
        model=_text(data.get("model")),
    )


def _status_inside(data: dict[str, Any]) -> int:
    """The status that an error inside an HTTP 200 means: a number it names, else what its words mean, else 500."""
    error = data.get("error")
    inner = error if isinstance(error, dict) else {}
    for value in (inner.get("code"), inner.get("status"), data.get("code"), data.get("status")):
        number = int(value) if isinstance(value, str) and re.fullmatch(r"[45]\d\d", value) else value
        if type(number) is int and 400 <= number < 600:
            return number
    words = " ".join(str(value) for value in (*_codes(data), inner.get("status")) if isinstance(value, str)).lower()
    return next((status for pattern, status in _STATUS_OF_WORDS if pattern.search(words)), 500)


def read_completion(data: dict[str, Any], choice: dict[str, Any], message: dict[str, Any], usage: Usage) -> Completion:
    """Read the parts of an answer. Raises ValueError for a message of unknown form."""
    text, thoughts = _read_content(message.get("content"))
    reasoning = _text(message.get("reasoning_content")) or _text(message.get("reasoning")) or thoughts
    if text is not None and reasoning is None and "<think>" in text[:64]:
        inline = _THINK.match(text)
        if inline:
            reasoning, text = inline[1].strip(), text[inline.end() :]
    return Completion(
        text=text,
        finish_reason=_text(choice.get("finish_reason")),
        model=_text(data.get("model")),
        usage=usage,
        request_id=_text(data.get("id")),
        refusal=_text(message.get("refusal")) or None,
        reasoning=reasoning,
        tool_calls=_read_tool_calls(message),
        logprobs=_read_logprobs(choice.get("logprobs")),
    )


def _read_content(content: object) -> tuple[str | None, str | None]:
    """The text of a message, and what a list of parts holds as reasoning. Raises ValueError for an unknown form."""
    if content is None or isinstance(content, str):
        return content, None
    if not isinstance(content, list):
        raise ValueError("content is neither a text nor a list")
    texts: list[str] = []
    thoughts: list[str] = []
    for part in content:
        if not isinstance(part, dict):
            continue
        if part.get("type") in ("thinking", "reasoning"):
            inside = part.get("thinking", part.get("reasoning", part.get("text")))
            thoughts += (text for text in (inside, *_part_texts(inside)) if isinstance(text, str))
        else:
            texts += _part_texts([part])
    return "".join(texts) if texts else None, "".join(thoughts) or None


def _part_texts(parts: object) -> list[str]:
    if not isinstance(parts, list):
        return []
    return [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]


def _read_tool_calls(message: dict[str, Any]) -> tuple[dict[str, str | None], ...] | None:
    """The tool calls, also one in the older form of a single `function_call`."""
    calls = message.get("tool_calls")
    if not isinstance(calls, list) or not calls:
        older = message.get("function_call")
        calls = [{"type": "function", "function": older}] if isinstance(older, dict) else []
    read = []
    for call in calls:
        if not isinstance(call, dict):
            continue
        called = call.get("function")
        function: dict[str, Any] = called if isinstance(called, dict) else {}
        arguments = function.get("arguments")
        if arguments is not None and not isinstance(arguments, str):
            arguments = _dump(arguments)
        read.append(
            {
                "id": _text(call.get("id")),
                "type": _text(call.get("type")),
                "name": _text(function.get("name")),
                "arguments": arguments,
            }
        )
    return tuple(read) or None


def _read_logprobs(data: object) -> tuple[dict[str, Any], ...] | None:
    """The tokens of an answer, each with its log probability and the likeliest ones in its place.

    Together writes them as lists side by side, as the older Completions API does.
    """
    if not isinstance(data, dict):
        return None
    content = data.get("content")
    if isinstance(content, list):
        return tuple(
            {**_token(item), "top": _tops(item.get("top_logprobs"))} for item in content if isinstance(item, dict)
        )
    tokens, values, tops = data.get("tokens"), data.get("token_logprobs"), data.get("top_logprobs")
    if not isinstance(tokens, list) or not isinstance(values, list):
        return None
    return tuple(
        {"token": _text(token), "logprob": _number(value), "top": _tops(top)}
        for token, value, top in zip_longest(tokens, values, tops if isinstance(tops, list) else ())
    )


def _token(item: dict[str, Any]) -> dict[str, Any]:
    return {"token": _text(item.get("token")), "logprob": _number(item.get("logprob"))}


def _tops(items: object) -> list[dict[str, Any]]:
    if isinstance(items, dict):
        return [{"token": token, "logprob": _number(value)} for token, value in items.items()]
    return [_token(item) for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def _number(value: object) -> float | None:
    if type(value) is int and -(2**53) < value < 2**53:
        return float(value)
    return value if isinstance(value, float) and math.isfinite(value) else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def judge(completion: Completion, *, mask: Mask = str) -> Reply:
    """Tell a usable completion from an answer that is none: refused, filtered, cut off, empty."""
    failure: Failure | None = None
    verdict = Verdict.NO
    reason = completion.finish_reason
    if reason == "content_filter":
        failure = Failure(ErrorKind.CONTENT_FILTER, "the provider's content filter stopped the answer", 200)
    elif completion.refusal is not None:
        said = mask(completion.refusal[:_READ_LIMIT])[:_MESSAGE_LIMIT]
        failure = Failure(ErrorKind.REFUSAL, f"the model refused: {said}", 200)
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


def _codes(data: dict[str, Any]) -> list[str]:
    """The machine-readable words of an error body: type and code, and an error that is a text itself."""
    error = data.get("error")
    source = error if isinstance(error, dict) else data
    return [value for value in (source.get("type"), source.get("code"), error) if isinstance(value, str)]


def _error_message(data: Any, body: bytes, mask: Mask) -> str:
    """What an error body says to a person, in any of its known shapes."""
    if not isinstance(data, dict):
        text = mask(body[:_READ_LIMIT].decode("utf-8", "replace"))
        if "<" in text[:200]:
            text = re.sub(r"(?is)<(script|style)\b.{0,4000}?</\1>|<[^>]*>", " ", text)
        return " ".join(text.split())[:_MESSAGE_LIMIT]
    error = data.get("error")
    source = error if isinstance(error, dict) else data
    message = source.get("message") or source.get("detail")
    text = message if isinstance(message, str) else _details(message) if isinstance(message, list) else ""
    if not text and not isinstance(error, str):
        try:
            text = _dump(message or data)
        except ValueError:
            text = "an error of unknown form"
    if isinstance(error, str) and error not in text:
        text = f"{error}: {text}" if text else error
    return mask(text[:_READ_LIMIT])[:_MESSAGE_LIMIT]


def _details(items: list[Any]) -> str:
    """FastAPI's list of what is wrong as `body.messages: field required`, without the input that it repeats."""
    told = []
    for item in items:
        if isinstance(item, dict) and isinstance(item.get("msg"), str):
            place = item.get("loc")
            where = ".".join(str(part)[:80] for part in place) if isinstance(place, list) else ""
            told.append(f"{where}: {item['msg']}" if where else item["msg"])
    return "; ".join(told)


def _read_error(status: int, headers: Headers, data: Any, body: bytes, mask: Mask) -> Reply:
    message = _error_message(data, body, mask)
    codes = " ".join(_codes(data)).lower() if isinstance(data, dict) else ""
    verdict, kind = _judge_status(status, codes, message.lower())
    axis = Axis.UNKNOWN
    if status in _RATE:
        axis = Axis.CONCURRENCY if status == 498 else _axis(f"{message} {codes}".lower())
    elif 300 <= status < 400:
        to = mask(headers.get(b"location", b"").decode("latin-1"))[:200]
        message = f"a redirect{' to ' + to if to else ''}, which is not followed: the key belongs to this address only"
    should = headers.get(b"x-should-retry", b"").strip().lower()
    if should == b"true" and verdict is Verdict.NO:
        verdict = Verdict.TRANSIENT
    elif should == b"false" and verdict in {Verdict.TRANSIENT, Verdict.RATE_LIMIT}:
        verdict = Verdict.NO
    text = f"HTTP {status}: {message}" if message else f"HTTP {status}"
    return Reply(verdict, failure=Failure(kind, text, status), axis=axis)


def _judge_status(status: int, codes: str, message: str) -> tuple[Verdict, ErrorKind]:
    """What an error's status means for the row, with its words where the status alone does not tell."""
    if status in _RATE:
        return _judge_rate(codes, message)
    if status in _TRANSIENT or status >= 500:
        return Verdict.TRANSIENT, _TRANSIENT.get(status, ErrorKind.SERVER)
    if status < 400:
        return Verdict.REFUSED if status >= 300 else Verdict.TRANSIENT, ErrorKind.PROTOCOL
    if status in _FATAL or status in _REFUSED:
        return Verdict.FATAL if status in _FATAL else Verdict.REFUSED, ErrorKind.INVALID_REQUEST
    return Verdict.NO, ErrorKind.CONTENT_FILTER if _FILTERED.search(codes) else ErrorKind.INVALID_REQUEST


def _judge_rate(codes: str, message: str) -> tuple[Verdict, ErrorKind]:
    if _QUOTA.search(codes) or _QUOTA.search(message):
        return Verdict.FATAL, ErrorKind.RATE_LIMIT
    if _NEVER_FITS.search(message):
        # Larger than a whole minute's allowance: it would wait for ever, and hold the others back meanwhile.
        return Verdict.NO, ErrorKind.INVALID_REQUEST
    return Verdict.RATE_LIMIT, ErrorKind.RATE_LIMIT


def _axis(text: str) -> Axis:
    """Which limit an error speaks about; "Too many requests" is the status's own name and tells nothing."""
    if "concurren" in text or "simultaneous" in text or "in parallel" in text:
        return Axis.CONCURRENCY
    text = _GENERIC.sub(" ", text)
    if "token" in text or "tpm" in text:
        return Axis.TOKENS
    if "request" in text or "rpm" in text:
        return Axis.REQUESTS
    return Axis.UNKNOWN
