"""Reading what an error body says, in whatever form and however deep it says it.

A gateway wraps what the provider behind it said: in `error.metadata.raw` as JSON text, in an error inside the error, in
a list of errors, in a message that holds JSON. The innermost status tells what happened, and the innermost words tell a
person why. So a body is read as levels, from the outermost to the innermost.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, Final

import orjson

from batchchat.dataclass import dataclass

Mask = Callable[[str], str]

MESSAGE_LIMIT: Final = 1000
"""Characters of a message that a record keeps. Chosen: a million failed rows then take 1 GB at most."""
READ_LIMIT: Final = 16_000
"""Characters of a body or a field that are searched. Chosen: error bodies are shorter, and a web page says nothing
more behind them."""
_OUTER_LIMIT: Final = 300
"""How much of an outer message is kept if an inner one follows: the inner one is what matters."""
_MAX_DEPTH: Final = 8
_MAX_LEVELS: Final = 40
"""Levels that are read of one body, in depth and in all. Chosen: gateways nest three or four."""

_INSIDE: Final = (
    *("error", "errors", "detail", "message", "metadata", "raw", "innererror", "inner_error", "cause"),
    *("fault", "base_resp", "response", "body", "details"),
)
"""Fields that may hold another level, in the order in which they are read."""
_SAYINGS: Final = (
    *("message", "Message", "msg", "detail", "error_message", "errorMessage", "error_msg", "status_msg"),
    *("faultstring", "error_description", "description", "title"),
)
_WORDS: Final = ("type", "code", "status", "error_type", "errorType", "__type", "error_code", "error", "reason")
_NUMBERS: Final = ("code", "status", "status_code", "statusCode", "http_status", "error_code")

# Texts, not compiled patterns: `re` keeps what it has compiled, and most runs meet no refusal. To compile them all took
# 4 % of a start (41 of 1,000 ms on a slow machine).
_STATUS_OF_WORDS: Final = (
    (r"rate_?limit|too_many_requests|throttl|resource_exhausted|quota|spend_limit|credit_balance", 429),
    (r"overload", 529),
    (r"authentication|invalid_api_key|unauthori[sz]ed|unauthenticated", 401),
    (r"insufficient_balance|payment_required", 402),
    (r"permission", 403),
    (r"model_not_found", 404),
    (r"unavailable", 503),
    (r"deadline_exceeded|gateway_timeout|timeout", 504),
    (r"content_filter|content_policy|context_length|invalid_request|invalid_argument|bad_?request", 400),
    (r"server_error|internal", 500),
)
_LIMIT_WORDS: Final = r"\brate[ -]limit|\btoo many requests\b|\bthrottl"
_ERROR_CODE: Final = r"Error code: ([45]\d\d)\b"
"""How OpenAI's own client begins a message, which gateways that are built on it pass on."""

_NO_ERROR: Final = frozenset({"0", "200", "ok", "success"})

_FILTER_CODES: Final = (
    r"content_?(?:filter|policy|moderation|safety|violation|blocked)|moderation|data_inspection|sensitive|"
    r"responsible_?ai|guardrail|censor|safety|flagged|prohibited_content|harmful|inappropriate|jailbreak|nsfw|\bpii_"
)
_FILTER_WORDS: Final = (
    r"\bflagged\b|content[ _-](?:filter|polic|moderat|management polic|safety|violat)|content exists risk|"
    r"\bmoderation\b|inappropriate|safety (?:check|system|filter|polic|guideline|setting|reason|violat)|safety_check|"
    r"usage (?:guideline|polic)|responsible ai|\bguardrails?\b(?!_)|sensitive (?:word|content|information|material)|"
    r"high[ -]risk|prohibited (?:content|use)|harmful|data_inspection|violat\w* .{0,60}(?:polic|guideline)|"
    r"blocked .{0,60}(?:safety|content|polic|filter)|\bnsfw\b|\bnew_sensitive\b|\bjailbreak\b|\bpii\b|"
    r"敏感|违规|不合规|不安全"
)
_ACCOUNT: Final = (
    r"\b(?:your|this|the) (?:\w+ )?(?:account|organi[sz]ation|workspace|project|api[ -]?key|key|ip(?: address)?)\b|"
    r"\baccounts? (?:has|have|is|was)\b"
)
"""What is flagged or blocked as a whole is no matter of one input."""
_SAMPLED: Final = (
    r"json_validate_failed|tool_use_failed|output_parse_failed|json_generation|"
    r"malformed_(?:model_output|tool_use|function_call|response)"
)
_SAMPLED_WORDS: Final = (
    r"failed to (?:generate|call|produce) (?:an? |the |valid )*(?:json|tool|function)|"
    r"model (?:has )?(?:produced|generated|returned|output|wrote) (?:an? )?(?:invalid|malformed|unparseable)|"
    r"failed to parse (?:fc related info|tool calls?\b|the model)|"
    r"failed to parse input at pos \d"  # llama.cpp of what its model wrote
)
"""What servers say of an answer that they cannot use, if no code says it."""
_UNREAD: Final = (
    r"(?:could not|couldn't|cannot|can't|unable to|failed to|failure to|error|fail(?:ed)?|invalid)"
    r"(?: while| when| in)? "
    r"(?:be )?(?:pars\w+|decod\w+|deserial\w+|read\w*|unmarshal\w*) (?:the |your )*"
    r"(?:json|http|request|body|payload|input)\b(?! schema)|"
    r"(?:invalid|malformed|bad|incomplete|truncated) (?:json|request body|body)\b(?! schema)|"
    r"not (?:a )?valid json\b(?! schema)|json ?(?:decode|decoding|parse|parsing|syntax) ?error|json_invalid|"
    r"unexpected end of|unexpected eof|eof while parsing|"
    r"invalid character .{1,12} (?:looking for|after|in (?:string|literal|numeric|\\u))|"  # Go's reader of JSON
    r"(?:expecting|expected) value:? (?:at )?line|parse_error\.101|syntax error while parsing|content-length mismatch|"
    r"parse error at line \d+, column \d+: attempting to parse an empty|^(?:400 )?bad request\.?$|"
    r"body (?:is |was |must not be |cannot be |can't be )?(?:empty|missing|required|incomplete|truncated|blank|null)|"
    r"(?:empty|missing|no) (?:http )?(?:request )?body|(?:^|\W)body: field required|must provide a (?:model|messages)|"
    r"missing required (?:parameter|field)s?:? [`'\"]?(?:messages|model)\b|sent an invalid request"
)


@dataclass(slots=True)
class Problem:
    """What an error body says.

    `message` is for a person, `codes` are its machine-readable words in lower case. `status` is what the innermost
    level says that it is, None if none says it. `moderated` tells that the input or the output was stopped for what it
    says, `unread` that the server could not read the request's body. `sampled` tells that the model wrote something
    that the server cannot use, and `generation` is that text, if it is there.
    """

    message: str
    codes: str
    status: int | None = None
    moderated: bool = False
    unread: bool = False
    sampled: bool = False
    generation: str | None = None


@dataclass(slots=True)
class _Level:
    """One level of a body: an object or a text, and how deep it stands."""

    value: dict[str, Any] | str
    depth: int


def read_problem(data: Any, body: bytes, mask: Mask, *, bare: bool) -> Problem:
    """Read an error body; `data` is its JSON, None if it is none. Never raises.

    With `bare`, no HTTP status tells what happened: then also words of the outermost levels may tell it.
    """
    # A list of texts or numbers tells no more than its text does.
    if isinstance(data, list) and not any(isinstance(item, dict) for item in data):
        data = None
    if not isinstance(data, dict | list):
        message = _page(body, mask)
        empty = not message or body.lstrip()[:1] == b"<"
        return Problem(message, "", moderated=_says_moderated(message), unread=empty or _says_unread(message))
    levels = list(_levels(data, 0, [_MAX_LEVELS]))
    objects = [(level.value, level.depth) for level in levels if isinstance(level.value, dict)]
    codes = " ".join(_snake(word) for value, _ in objects for word in _words(value))
    message = _message(levels, data, mask)
    said = f"{message} {codes}".lower()
    generation = next((value["failed_generation"] for value, _ in objects if "failed_generation" in value), None)
    sampled = generation is not None or bool(re.search(_SAMPLED, codes) or re.search(_SAMPLED_WORDS, message.lower()))
    marked = any(value.get("reasons") or "flagged_input" in value for value, _ in objects)
    return Problem(
        message,
        codes,
        status=_status(levels, bare=bare),
        moderated=marked or _has_filter_code(objects) or _says_moderated(message),
        unread=not sampled and (_says_unread(said) or _says_unread(message.strip())),
        sampled=sampled,
        generation=generation if isinstance(generation, str) or generation is None else dump(generation),
    )


def blocked_prompt(data: dict[str, Any]) -> str | None:
    """Return the reason if an answer of HTTP 200 tells that its prompt was blocked; None if it does not tell so.

    Gemini gives a `block_reason`. Azure marks what it blocked as `filtered`; what it only detected is not blocked.
    """
    for name in ("prompt_feedback", "promptFeedback"):
        feedback = data.get(name)
        if isinstance(feedback, dict):
            reason = feedback.get("block_reason") or feedback.get("blockReason")
            if isinstance(reason, str) and not reason.lower().endswith("unspecified"):
                return reason[:60]
    for name in ("prompt_filter_results", "prompt_annotations"):
        results = data.get(name)
        for result in results if isinstance(results, list) else ():
            found = result.get("content_filter_results") if isinstance(result, dict) else None
            for category, marks in found.items() if isinstance(found, dict) else ():
                if isinstance(marks, dict) and marks.get("filtered") is True:
                    return str(category)[:60]
    return None


def is_error(error: object) -> bool:
    """Return true if the value of a field `error` tells of one: some servers send `{"code": 0}` with every answer."""
    if not isinstance(error, dict):
        return bool(error)
    # A code of success with no more than a polite word beside it is none.
    code = error.get("code", error.get("status"))
    return any(error.values()) and not (str(code).lower() in _NO_ERROR and "error" not in error)


def error_in_choice(choice: object) -> Any:
    """Return the error in a choice, in its message or in its delta; None if there is none."""
    if not isinstance(choice, dict):
        return None
    # Nearly no answer has the field: a call is made for those that have.
    for said in (choice, choice.get("message"), choice.get("delta")):
        if said and isinstance(said, dict) and (error := said.get("error")) and is_error(error):
            return error
    return None


def dump(value: object) -> str:
    """Return a parsed value as JSON text. Raises ValueError if it is nested too deeply."""
    try:
        return orjson.dumps(value).decode()
    except TypeError as error:
        raise ValueError(str(error)) from None


def _levels(value: Any, depth: int, left: list[int]) -> Iterator[_Level]:
    """Yield the levels of a body from outside to inside. `left` bounds how many there are."""
    # A body may be made to be deep or wide: reading it must cost little.
    if depth > _MAX_DEPTH or left[0] <= 0:
        return
    left[0] -= 1
    if isinstance(value, str):
        inner, whole = _json_in(value)
        if not whole:
            yield _Level(value, depth)
        if inner is not None:
            yield from _levels(inner, depth + 1, left)
    elif isinstance(value, dict):
        yield _Level(value, depth)
        for name in _INSIDE:
            inside = value.get(name)
            if isinstance(inside, dict | list) or (isinstance(inside, str) and (name == "raw" or "{" in inside)):
                yield from _levels(inside, depth + 1, left)
    elif isinstance(value, list):
        for item in value[:20]:
            yield from _levels(item, depth, left)


def _json_in(text: str) -> tuple[Any, bool]:
    """Return the JSON object inside a text, and whether the text is nothing else."""
    start = text.find("{")
    if start < 0 or len(text) > READ_LIMIT:
        return None, False
    try:
        value, end = _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):
        return None, False
    return value, not text[:start].strip(" \t\r\n[") and not text[end:].strip(" \t\r\n]")


_DECODER: Final = json.JSONDecoder()


def _words(value: dict[str, Any]) -> list[str]:
    return [word for name in _WORDS if isinstance(word := value.get(name), str) and len(word) <= 100]


def _has_filter_code(objects: list[tuple[dict[str, Any], int]]) -> bool:
    """Return whether a code names a filter. A code is one word; a sentence is a message."""
    words = (_snake(word) for value, _ in objects for word in _words(value) if " " not in word)
    return any(re.search(_FILTER_CODES, word) for word in words)


def _snake(word: str) -> str:
    """`DataInspectionFailed` and `data-inspection failed` as `data_inspection_failed`."""
    return re.sub(r"[\s-]+", "_", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", word)).lower()


def _status(levels: list[_Level], *, bare: bool) -> int | None:
    """Return the status that the innermost level gives: a number, or what its words mean.

    Words beside the HTTP status of the same level say the same as it does, or less.
    """
    found: tuple[int, int] | None = None
    for level in levels:
        number = _number(level.value)
        if number is None and (bare or level.depth > 1) and isinstance(level.value, dict):
            words = " ".join(map(_snake, _words(level.value)))
            number = next((status for pattern, status in _STATUS_OF_WORDS if re.search(pattern, words)), None)
        if number is not None and (found is None or level.depth >= found[0]):
            found = level.depth, number
    if found is None and bare:
        # No status anywhere, not even HTTP's: a limit is told by its name alone.
        texts = (saying for level in levels for saying in _sayings(level.value))
        return 429 if any(re.search(_LIMIT_WORDS, text.lower()) for text in texts) else None
    return found[1] if found is not None else None


def _number(value: dict[str, Any] | str) -> int | None:
    if isinstance(value, str):
        told = re.search(_ERROR_CODE, value)
        return int(told[1]) if told else None
    for name in _NUMBERS:
        number = value.get(name)
        # OpenRouter and others write the status as a text.
        if isinstance(number, str) and re.fullmatch(r"[45]\d\d", number):
            number = int(number)
        if type(number) is int and 400 <= number < 600:
            return number
    said = value.get("message")
    return _number(said) if isinstance(said, str) else None


def _message(levels: list[_Level], data: dict[str, Any] | list[Any], mask: Mask) -> str:
    """Return what all levels say to a person, each thing once."""
    told: list[str] = []
    for level in levels:
        for saying in _sayings(level.value):
            text = mask(saying[:READ_LIMIT]).strip()
            lower = text.lower()
            # Gateways repeat what they wrap, with words around it: the longest form is kept.
            if text and not any(lower in other.lower() for other in told):
                told = [other for other in told if other.lower() not in lower]
                told.append(text)
    # No field is known: a person may make sense of the body as it is.
    if not told:
        try:
            told = [mask(dump(data)[:READ_LIMIT])]
        except ValueError:
            told = ["an error of unknown form"]
    if len(told) > 1:
        told = [*(text[:_OUTER_LIMIT] for text in told[:-1]), told[-1]]
    return ": ".join(told)[:MESSAGE_LIMIT]


def _sayings(value: dict[str, Any] | str) -> Iterator[str]:
    """Yield what one level says itself. FastAPI's `{loc, msg}` is told as `body.messages: field required`."""
    if isinstance(value, str):
        yield value
        return
    error = value.get("error")
    # `{"error": "text"}` of Ollama and TGI. A text that is JSON becomes a level of its own.
    if isinstance(error, str) and not _json_in(error)[1]:
        yield error
    place = value.get("loc")
    where = ".".join(str(part)[:80] for part in place[:20]) if isinstance(place, list) else ""
    for name in _SAYINGS:
        said = value.get(name)
        # Some servers give a number in the place of a text.
        if isinstance(said, int | float) and not isinstance(said, bool):
            said = str(said)
        if isinstance(said, str) and said.strip() and not _json_in(said)[1]:
            yield f"{where}: {said}" if where else said
            return


def _page(body: bytes, mask: Mask) -> str:
    """Return the text of a body that is no JSON object, without the markup of a page."""
    text = mask(body[:READ_LIMIT].decode("utf-8", "replace"))
    if "<" in text[:200]:
        text = re.sub(r"(?is)<(script|style)\b.{0,4000}?</\1>|<[^>]*>", " ", text)
    return " ".join(text.split())[:MESSAGE_LIMIT]


def _says_moderated(message: str) -> bool:
    lower = message.lower()
    return re.search(_FILTER_WORDS, lower) is not None and re.search(_ACCOUNT, lower) is None


def _says_unread(text: str) -> bool:
    return re.search(_UNREAD, text.lower()) is not None
