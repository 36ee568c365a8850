"""Token counts of an answer, wherever a server puts them and whatever it calls them."""

from __future__ import annotations

from typing import Any, Final

from batchchat.records import Usage

MAX_TOKENS: Final = 100_000_000
"""The most tokens that an answer's usage is believed to have: ten times the longest context that is on offer today."""
_PROMPT: Final = (
    *("prompt_tokens", "input_tokens", "promptTokenCount", "inputTokenCount", "inputTokens"),
    *("prompt_token_count", "prompt_eval_count"),
)
_COMPLETION: Final = (
    *("completion_tokens", "output_tokens", "candidatesTokenCount", "outputTokenCount", "outputTokens", "eval_count"),
    "candidates_token_count",
)
_TOTAL: Final = ("total_tokens", "totalTokenCount", "totalTokens", "total_token_count")
_CACHED: Final = (
    *("cached_tokens", "prompt_cache_hit_tokens", "cache_read_input_tokens", "cachedContentTokenCount"),
    "cacheReadInputTokenCount",
)
_REASONING: Final = ("reasoning_tokens", "thoughtsTokenCount")
_PROMPT_DETAILS: Final = ("prompt_tokens_details", "input_tokens_details")
_COMPLETION_DETAILS: Final = ("completion_tokens_details", "output_tokens_details")
_VENDORS: Final = (
    *("usage", "usage_metadata", "usageMetadata", "amazon-bedrock-invocationMetrics", "token_usage", "billed_units"),
    "tokens",
)
_MAX_FIELDS: Final = 50
_PLAIN_FIELDS: Final = 3
"""Prompt, completion and total: a usage object of these alone has no details, and is read the quick way."""


def find_usage(data: dict[str, Any]) -> dict[str, Any] | None:
    """Return the usage object of an answer or a chunk; None if it has none.

    It stands at the top, in the first choice (Moonshot), or in a vendor's own field (`x_groq.usage`). One that holds
    nothing but zeros is taken only if there is no other.
    """
    usage = data.get("usage")
    # Some gateways put the object into a list.
    if isinstance(usage, list) and len(usage) == 1:
        usage = usage[0]
    if not isinstance(usage, dict) or not usage:
        return _elsewhere(data)
    if usage.get("prompt_tokens") or not _all_zero(usage):  # nearly all answers
        return usage
    return _elsewhere(data) or usage


def _all_zero(usage: dict[str, Any]) -> bool:
    """Return true if a usage object has counts and each is 0."""
    counts = [count for names in (_PROMPT, _COMPLETION, _TOTAL) if (count := _first(usage, names)) is not None]
    return bool(counts) and not any(counts)


def _elsewhere(data: dict[str, Any]) -> dict[str, Any] | None:
    """Return the usage object of an answer that stands elsewhere than at its top."""
    choices = data.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if isinstance(choice, dict):
        for place in (choice, choice.get("message"), choice.get("delta")):
            if isinstance(place, dict) and _counts(usage := place.get("usage")):
                return usage
    # No answer has so many fields: it is not searched through.
    if len(data) > _MAX_FIELDS:
        return None
    for name, value in data.items():
        if not isinstance(value, dict) or name in {"error", "choices", "usage"}:
            continue
        if name in _VENDORS and _counts(value):
            return value
        for inner in _VENDORS:
            if _counts(found := value.get(inner)):
                return found
    # Ollama's own form has the counts at the top.
    return data if _count(data.get("eval_count")) is not None else None


def read_usage(data: object) -> Usage:
    """Read a usage object; any of it may be missing or null."""
    if not isinstance(data, dict):
        return Usage()
    # The Chat API's own names first: nearly all answers have no others, and many have these three alone.
    prompt_tokens, completion_tokens = data.get("prompt_tokens"), data.get("completion_tokens")
    total = data.get("total_tokens")
    if (
        type(prompt_tokens) is type(completion_tokens) is type(total) is int
        and len(data) == _PLAIN_FIELDS
        and 0 <= prompt_tokens <= MAX_TOKENS
        and 0 <= completion_tokens <= MAX_TOKENS
        and 0 <= total <= MAX_TOKENS
    ):
        return Usage(prompt_tokens, completion_tokens, total)
    prompt_tokens, completion_tokens, total = _count(prompt_tokens), _count(completion_tokens), _count(total)
    if prompt_tokens is None:
        prompt_tokens = _first(data, _PROMPT)
    if completion_tokens is None:
        completion_tokens = _first(data, _COMPLETION)
    if total is None:
        total = _first(data, _TOTAL)
    if total is None and prompt_tokens is not None and completion_tokens is not None:
        total = prompt_tokens + completion_tokens
    # Some gateways leave out what the model wrote, and count it in the total.
    elif completion_tokens is None and total is not None and prompt_tokens is not None and total >= prompt_tokens:
        completion_tokens = total - prompt_tokens
    cached = reasoning = None
    # Details are looked for only if there is a field that could hold them.
    if len(data) > _PLAIN_FIELDS or "total_tokens" not in data:
        cached = _detail(data, _PROMPT_DETAILS, _CACHED)
        reasoning = _detail(data, _COMPLETION_DETAILS, _REASONING)
    return Usage(prompt_tokens, completion_tokens, total, cached, reasoning)


def _detail(data: dict[str, Any], places: tuple[str, ...], names: tuple[str, ...]) -> int | None:
    """Return a count of a usage object's details, else one that stands beside the sums."""
    for place in places:
        details = data.get(place)
        if details and isinstance(details, dict) and (count := _first(details, names)) is not None:
            return count
    return _first(data, names)


def _counts(value: object) -> bool:
    """Return whether a value is an object with a count of tokens in it."""
    return isinstance(value, dict) and any(_first(value, names) is not None for names in (_PROMPT, _COMPLETION, _TOTAL))


def _first(data: dict[str, Any], names: tuple[str, ...]) -> int | None:
    for name in names:
        count = _count(data.get(name))
        if count is not None:
            return count
    return None


def _count(value: object) -> int | None:
    """Return a number of tokens; None of what is no believable one, so that no sum or budget is built on it.

    A whole number may be written with a point, as some servers do (12.0).
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if type(value) is int and 0 <= value <= MAX_TOKENS else None
