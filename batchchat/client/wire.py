"""Reading one HTTP answer of a Chat Completions API as a `Reply`.

Pure functions over status, headers and body, so that every shape of answer is one line of a test's table. What the
statuses and bodies mean is documented by OpenAI and Scaleway; servers that only resemble them send FastAPI's
`{"detail": …}`, HTML pages, or HTTP 200 with an error inside, and none of these is ever taken for a completion.
"""

from __future__ import annotations

import json
import math
import re
from itertools import zip_longest
from typing import Any

import orjson

from batchchat.client.finish import Finish, judge_finish, read_finish
from batchchat.client.headers import Headers, parse_limits, parse_retry_after
from batchchat.client.problems import (
    MESSAGE_LIMIT,
    READ_LIMIT,
    Mask,
    Problem,
    blocked_prompt,
    dump,
    error_in_choice,
    is_error,
    read_problem,
)
from batchchat.client.usage import find_usage, read_usage
from batchchat.reasoning import is_blank, split
from batchchat.records import Axis, Completion, ErrorKind, Failure, Reply, Usage, Verdict

_EXCERPT = 160
"""Characters of a body that is no answer, shown to a person. Chosen: two lines of a terminal."""
_NAME_LIMIT = 200
"""Characters of `service_tier` and `system_fingerprint` that are kept. Chosen: real ones have under 40."""
_QUOTA = re.compile(
    r"insufficient_quota|credit_balance_exhausted|spend_limit_exceeded|billing_hard_limit|payment_required"
)
_TRANSIENT = {
    408: ErrorKind.TIMEOUT,
    409: ErrorKind.SERVER,
    424: ErrorKind.SERVER,  # TGI's generation failed
    425: ErrorKind.SERVER,
    499: ErrorKind.SERVER,  # a gateway gave up on the server behind it
    500: ErrorKind.SERVER,
    502: ErrorKind.SERVER,
    503: ErrorKind.SERVER,
    504: ErrorKind.TIMEOUT,
    529: ErrorKind.SERVER,
}
_RATE = {429, 498}
_FATAL = {401, 402}
_REFUSED = {403, 404, 405, 422}
_LEGAL = 451
_MODERATING = frozenset({400, 403, 406, 422, _LEGAL})
"""Statuses with which one input is refused for what it says."""
_NEVER_MODERATED = frozenset({*_FATAL, *_RATE})
_UNREADABLE = frozenset({400, 411, 422})
_NO_ROOM = re.compile(r"resource[ _]?unavailable")
"""What OpenAI answers with 429 if its tier `flex` has no room at the moment: no limit of ours is passed."""
_NEVER_FITS = re.compile(r"request too large|exceeds? the (?:maximum )?limit of tokens per request")
_GENERIC = re.compile(r"too many requests|try again|requested \d+|http[ _]?429")
_EMPTY = "HTTP 200 with an empty answer: neither text nor a tool call"


def read_reply(status: int, headers: Headers, body: bytes, *, now: float, mask: Mask = str) -> Reply:
    """Judge one whole answer. `now` is seconds since the epoch, for Retry-After dates. Never raises.

    `mask` takes a secret out of what becomes a message, before that is cut to its length.
    """
    data = _load(body)
    if 200 <= status < 300:
        reply = _read_answer(status, headers, data, body, mask)
        if reply.failure is not None and reply.failure.kind is ErrorKind.PROTOCOL and isinstance(data, dict):
            _tell_blocked_prompt(reply, status, data, mask)
    else:
        reply = _read_error(status, headers, data, body, mask)
    tell_headers(reply, headers, now=now, mask=mask)
    # A quota of money that is used up (FATAL) comes back with a payment, not with the next day.
    if reply.failure is not None and reply.failure.kind is ErrorKind.RATE_LIMIT and reply.verdict is not Verdict.FATAL:
        _tell_day(reply, headers, body, now=now, mask=mask)
    return reply


def _tell_day(reply: Reply, headers: Headers, body: bytes, *, now: float, mask: Mask) -> None:
    """Note that a rate limit is that of a whole day. It is one also if the server says not to try again."""
    # Its patterns are many, and most runs meet no such refusal.
    from batchchat.client.day_limits import read_day_limit

    assert reply.failure is not None  # noqa: S101 - the caller has looked
    text = mask(body[:READ_LIMIT].decode("utf-8", "replace"))
    wait = parse_retry_after(headers, now)
    reply.day = read_day_limit(reply.failure.message, text, headers, retry_after=wait, limits=reply.limits, now=now)
    if reply.day is not None:
        reply.verdict = Verdict.RATE_LIMIT


def tell_headers(reply: Reply, headers: Headers, *, now: float, mask: Mask = str) -> None:
    """Note on a reply what the answer's header fields say about it."""
    # A `Retry-After` beside an answer is about nothing: some gateways send it always.
    if reply.verdict is not Verdict.OK:
        reply.retry_after = parse_retry_after(headers, now)
    reply.limits = parse_limits(headers)
    request_id = headers.get(b"x-request-id")
    if request_id is not None:
        reply.request_id = mask(request_id.decode("latin-1"))[:200]


def _load(body: bytes) -> Any:
    """Parse JSON; None if it is none. Halves of emoji and NaN, which some servers write, do not cost the answer."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        pass
    # The slow reader is for JSON with faults. A web page or a plain text need not go through it.
    if body[:1] not in b"{[" and not body[:64].lstrip().startswith((b"{", b"[")):
        return None
    try:
        data = json.loads(body, parse_constant=lambda _: None)
        return orjson.loads(json.dumps(data, ensure_ascii=False).encode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None


def protocol_failure(status: int, problem: str, body: bytes, mask: Mask) -> Failure:
    """Return the failure of an answer that is none of Chat Completions', told with its beginning."""
    start = " ".join(mask(body[:READ_LIMIT].decode("utf-8", "replace")).split())[:_EXCERPT]
    return Failure(
        ErrorKind.PROTOCOL, f"HTTP {status} {problem}: {start}" if start else f"HTTP {status} {problem}", status
    )


def _protocol(status: int, problem: str, body: bytes, mask: Mask, *, usage: Usage | None = None) -> Reply:
    return Reply(Verdict.TRANSIENT, failure=protocol_failure(status, problem, body, mask), usage=usage)


def _tell_blocked_prompt(reply: Reply, status: int, data: dict[str, Any], mask: Mask) -> None:
    """Note it if an object that holds no answer says that the prompt was blocked."""
    reason = blocked_prompt(data)
    if reason is not None:
        # It is not asked again: the server would block the same prompt again.
        told = f"the provider's content filter blocked the prompt ({mask(reason)})"
        reply.verdict, reply.failure = Verdict.NO, Failure(ErrorKind.CONTENT_FILTER, told, status)


def _read_answer(status: int, headers: Headers, data: Any, body: bytes, mask: Mask) -> Reply:
    if not isinstance(data, dict):
        return _protocol(status, "with a body that is no JSON object" if body else "with no body", body, mask)
    found = find_usage(data)
    usage = read_usage(found)
    error = _error_inside(data)
    # Judged by the error inside, with the status that this gives: a gateway wraps a 429 or a 500 in HTTP 200.
    if error is not None:
        reply = _read_error(status, headers, error, b"", mask)
        # An error beside usage was billed. Without usage nothing is known, and zeros would say that it was free.
        reply.usage = usage if found else None
        if reply.completion is None:
            reply.text = _partial_text(data)
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
    """Return what had come of an answer when `failure` cut it off: kept and paid for, and never a success.

    `body` is a `chat.completion` object as far as it came. Never raises.
    """
    data = _load(body)
    if not isinstance(data, dict):
        return Reply(Verdict.TRANSIENT, failure=failure)
    found = find_usage(data)
    usage = read_usage(found) if found else None
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


def _error_inside(data: dict[str, Any]) -> dict[str, Any] | None:
    """Return the error in an answer of HTTP 200: beside its choices, in place of them, or in its first choice."""
    # Nearly no answer has the field: a call is made for those that have.
    if ((error := data.get("error")) and is_error(error)) or data.get("object") == "error":
        return data
    choices = data.get("choices")
    # With choices, words beside them are no error: some servers say `"message": "ok"` with every answer.
    if choices and isinstance(choices, list):
        inner = error_in_choice(choices[0])
        return {"error": inner} if inner else None
    if data.get("errors"):
        return data
    told = data.get("base_resp")  # MiniMax
    if isinstance(told, dict) and told.get("status_code"):
        return data
    return data if _fails_without_choices(data) else None


def _fails_without_choices(data: dict[str, Any]) -> bool:
    """Return true if an object of HTTP 200 has no choices and says that, or why, the request failed."""
    if "choices" in data:
        return False
    words = next((word for name in ("message", "msg") if isinstance(word := data.get(name), str)), "")
    said = str(data.get("status")).lower() in {"error", "fail", "failed"} or data.get("success") is False
    # A tuple and no set: a server may give a list or an object as its code.
    return bool(words.strip()) and (said or data.get("code") not in (None, 0, 200, "0", "200", ""))


def _partial_text(data: dict[str, Any]) -> str | None:
    """Return what the model had written before an error in its choice."""
    try:
        choice = data["choices"][0]
        return read_completion(data, choice, choice["message"], Usage()).text
    except (KeyError, IndexError, TypeError, AttributeError, ValueError):
        return None


def read_completion(data: dict[str, Any], choice: dict[str, Any], message: dict[str, Any], usage: Usage) -> Completion:
    """Read the parts of an answer. Raises ValueError for a message of unknown form."""
    content = message.get("content")
    text, thoughts = (content, None) if isinstance(content, str) else _read_content(content)
    reasoning = _text(message.get("reasoning_content")) or _text(message.get("reasoning")) or thoughts
    if text is not None:
        # Servers without a reasoning parser leave the model's tags in the text (`<think>`).
        inline, text = split(text)
        if inline is not None:
            reasoning = inline if not reasoning else _joined(reasoning, inline)
    model, request_id = data.get("model"), data.get("id")
    refusal, logprobs = message.get("refusal"), choice.get("logprobs")
    fingerprint, tier = data.get("system_fingerprint"), data.get("service_tier")
    # By place, in the order of the fields: so many names would take a third of the time.
    return Completion(
        text,
        read_finish(choice),
        model if isinstance(model, str) else None,
        usage,
        request_id if isinstance(request_id, str) else None,
        None if refusal is None else _text(refusal) or None,
        reasoning,
        _read_tool_calls(message),
        None if logprobs is None else _read_logprobs(logprobs),
        None if fingerprint is None else _name(fingerprint),
        None if tier is None else _name(tier),
    )


def _name(value: object) -> str | None:
    """Return a short text of the server about itself; None if it is none."""
    return value[:_NAME_LIMIT] or None if isinstance(value, str) else None


def _joined(reasoning: str, inline: str) -> str:
    """Reasoning of a field and that of the text; a gateway may give the same twice."""
    return reasoning if inline in reasoning else f"{reasoning}\n\n{inline}"


def _read_content(content: object) -> tuple[str | None, str | None]:
    """Return the text of a message, and its parts of reasoning. Raises ValueError for an unknown form."""
    if content is None or isinstance(content, str):
        return content, None
    if not isinstance(content, list):
        raise ValueError("content is neither a text nor a list")
    texts: list[str] = []
    thoughts: list[str] = []
    for part in content:
        # A part of unknown kind is passed over: new kinds come, and the text beside them is still the answer.
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
    """Return the tool calls, also one in the older form of a single `function_call`."""
    calls = message.get("tool_calls")
    if not calls and not message.get("function_call"):  # nearly all answers
        return None
    # The older form, deprecated since tools came, is still what some servers send.
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
        # The Chat API gives arguments as JSON text. Some servers give the object itself.
        if arguments is not None and not isinstance(arguments, str):
            arguments = dump(arguments)
        read.append(
            {
                "id": _text(call.get("id")),
                "type": _text(call.get("type")),
                "name": _text(function.get("name")),
                "arguments": arguments,
            }
        )
    # Calls of nothing, for nothing, are none: such an answer is empty.
    return tuple(read) if any(call["id"] or call["name"] or call["arguments"] for call in read) else None


def _read_logprobs(data: object) -> tuple[dict[str, Any], ...] | None:
    """Return the tokens of an answer, each with its log probability and the likeliest ones in its place.

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
    # A log probability of exactly 0 comes as an integer. Larger ones than a float holds are no log probabilities.
    if type(value) is int and -(2**53) < value < 2**53:
        return float(value)
    return value if isinstance(value, float) and math.isfinite(value) else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def judge(completion: Completion, *, mask: Mask = str) -> Reply:
    """Tell a usable completion from an answer that is none: filtered, refused, cut off, broken off, empty."""
    # Nearly all answers end so. Nothing else is to be known of them, and the questions below take time.
    if completion.finish_reason == "stop" and completion.refusal is None and not is_blank(completion.text):
        return _reply_of(completion, Verdict.OK, None)
    failure: Failure | None = None
    verdict = Verdict.NO
    word = completion.finish_reason
    finish = judge_finish(word)
    if finish is Finish.FILTERED:
        failure = Failure(
            ErrorKind.CONTENT_FILTER, f"the provider's content filter stopped the answer{_told(word)}", 200
        )
    # Before the finish reason: OpenAI says `stop` beside a refusal.
    elif completion.refusal is not None:
        said = mask(completion.refusal[:READ_LIMIT])[:MESSAGE_LIMIT]
        failure = Failure(ErrorKind.REFUSAL, f"the model refused: {said}", 200)
    elif finish is Finish.REFUSED:
        failure = Failure(ErrorKind.REFUSAL, "the model refused to answer", 200)
    elif finish is Finish.CUT:
        tokens = completion.usage.completion_tokens
        after = f" after {tokens} tokens" if tokens is not None else ""
        failure = Failure(ErrorKind.TRUNCATED, f"the answer was cut off{after}: {_remedy(word)}", 200)
    elif finish is Finish.BROKEN:
        verdict, failure = (
            Verdict.TRANSIENT,
            Failure(ErrorKind.SERVER, f"the answer ended with an error{_told(word)}", 200),
        )
    elif finish is Finish.MISSAMPLED:
        told = f"the model wrote what the server cannot use{_told(word)}"
        verdict, failure = Verdict.TRANSIENT, Failure(ErrorKind.INVALID_OUTPUT, told, 200)
    # Seen from overloaded servers: HTTP 200, `stop`, and nothing. The next attempt mostly brings an answer.
    elif not completion.tool_calls and is_blank(completion.text):
        verdict, failure = Verdict.TRANSIENT, Failure(ErrorKind.PROTOCOL, _EMPTY, 200)
    return _reply_of(completion, Verdict.OK if failure is None else verdict, failure)


def _reply_of(completion: Completion, verdict: Verdict, failure: Failure | None) -> Reply:
    reply = Reply(verdict, completion, failure, completion.usage, completion.text)
    reply.request_id, reply.model = completion.request_id, completion.model
    return reply


def _remedy(word: str | None) -> str:
    """Return what helps against an answer that was cut off, by the bound that its word names."""
    full = re.search(r"(?i)context|model.?length|error.?limit", word or "")
    return "the model's context was full: shorten the prompt" if full else "raise params.max_tokens"


def _told(word: str | None) -> str:
    """Return the server's own word for an end, where it is not the Chat API's."""
    return "" if word in {None, "content_filter", "error"} else f" (finish_reason {(word or '')[:60]!r})"


def _read_error(outer: int, headers: Headers, data: Any, body: bytes, mask: Mask) -> Reply:
    """Judge an answer that tells of an error; `outer` is its HTTP status, which may be 200."""
    wrapped = 200 <= outer < 300
    problem = read_problem(data, body, mask, bare=wrapped)
    status, message = _true_status(outer, problem), problem.message
    verdict, kind = _judge_status(status, problem.codes, message.lower())
    if verdict is Verdict.FATAL and not wrapped and status != outer:
        # The key or the credit of a service behind this one: it may be another one at the next request.
        verdict = Verdict.REFUSED
    axis = Axis.UNKNOWN
    completion: Completion | None = None
    # Filters answer with 5xx too, if the gateway counts them as a failure of the model. The same input would fail
    # again.
    if problem.moderated and status not in _NEVER_MODERATED and (status in _MODERATING or status >= 500):
        verdict, kind = Verdict.NO, ErrorKind.CONTENT_FILTER
    # What the model wrote could not be used (a tool call that is no JSON). It is random: asked again, it may be right.
    elif problem.sampled and status not in _NEVER_MODERATED:
        verdict, kind = Verdict.TRANSIENT, ErrorKind.INVALID_OUTPUT
        completion = Completion(problem.generation, None, None, Usage())
    elif status in _RATE:
        axis = Axis.CONCURRENCY if status == 498 else _axis(f"{message} {problem.codes}".lower())
    elif 300 <= status < 400:
        to = mask(headers.get(b"location", b"").decode("latin-1"))[:200]
        message = f"a redirect{' to ' + to if to else ''}, which is not followed: the key belongs to this address only"
    should = headers.get(b"x-should-retry", b"").strip().lower()
    # OpenAI's own clients obey this header. It never makes a refused key or an empty account worth another attempt.
    if should == b"true" and verdict is Verdict.NO:
        verdict = Verdict.TRANSIENT
    elif should == b"false" and verdict in {Verdict.TRANSIENT, Verdict.RATE_LIMIT}:
        verdict = Verdict.NO
    begins = f"HTTP {outer} with an error inside: HTTP {status}" if wrapped else f"HTTP {outer}"
    return Reply(
        verdict,
        completion=completion,
        failure=Failure(kind, f"{begins}: {message}" if message else begins, status),
        text=completion.text if completion is not None else None,
        axis=axis,
        doubted=problem.unread and status in _UNREADABLE and kind is ErrorKind.INVALID_REQUEST,
    )


def _true_status(outer: int, problem: Problem) -> int:
    """Return the status that decides: the innermost, unless the address itself refuses the key or asks for a pause."""
    # These statuses are the gateway's own words to us, whatever the body quotes of somebody behind it.
    if outer in _FATAL or outer in _RATE or 300 <= outer < 400 or outer == _LEGAL:
        return outer
    if problem.status is not None:
        return problem.status
    return 500 if 200 <= outer < 300 else outer


def _judge_status(status: int, codes: str, message: str) -> tuple[Verdict, ErrorKind]:
    """Return what an error's status means for the row, with its words if the status alone does not tell."""
    if status in _RATE:
        return _judge_rate(codes, message)
    # 451, unavailable for legal reasons: some providers answer so to an input that their law forbids.
    if status == _LEGAL:
        return Verdict.NO, ErrorKind.CONTENT_FILTER
    if status in _TRANSIENT or status >= 500:
        return Verdict.TRANSIENT, _TRANSIENT.get(status, ErrorKind.SERVER)
    if status < 400:
        return Verdict.REFUSED if status >= 300 else Verdict.TRANSIENT, ErrorKind.PROTOCOL
    if status in _FATAL or status in _REFUSED:
        return Verdict.FATAL if status in _FATAL else Verdict.REFUSED, ErrorKind.INVALID_REQUEST
    return Verdict.NO, ErrorKind.INVALID_REQUEST


def _judge_rate(codes: str, message: str) -> tuple[Verdict, ErrorKind]:
    # 429 with a code about money: no wait helps, a payment does.
    if _QUOTA.search(codes) or _QUOTA.search(message):
        return Verdict.FATAL, ErrorKind.RATE_LIMIT
    if _NEVER_FITS.search(message):
        # Larger than a whole minute's allowance: it would wait for ever, and hold the others back meanwhile.
        return Verdict.NO, ErrorKind.INVALID_REQUEST
    if _NO_ROOM.search(codes) or _NO_ROOM.search(message):
        # Going slower makes no room, so the pace learns nothing of it: the request waits, longer each time.
        return Verdict.TRANSIENT, ErrorKind.RATE_LIMIT
    return Verdict.RATE_LIMIT, ErrorKind.RATE_LIMIT


def _axis(text: str) -> Axis:
    """Return which limit an error speaks about; "Too many requests" is the status's own name and tells nothing."""
    if "concurren" in text or "simultaneous" in text or "in parallel" in text:
        return Axis.CONCURRENCY
    # "requested 500 tokens" and "too many requests" would name an axis that the limit is not about.
    text = _GENERIC.sub(" ", text)
    if "token" in text or "tpm" in text:
        return Axis.TOKENS
    if "request" in text or "rpm" in text:
        return Axis.REQUESTS
    return Axis.UNKNOWN
