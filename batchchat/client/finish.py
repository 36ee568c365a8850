"""Why an answer ended: the words of all servers in one table.

The Chat API knows `stop`, `length`, `tool_calls` and `content_filter`. Servers and gateways pass on the words of the
engine behind them: Gemini's `MAX_TOKENS`, Mistral's `model_length`, Zhipu's `sensitive`, Cohere's `ERROR_TOXIC`,
vLLM's `abort`. Case and separators are ignored. A word that is not in the table ends an answer like `stop` does, and
the run tells that it was met. So does a text that is no word at all: markup, a sentence, more than 64 characters.
"""

from __future__ import annotations

import re
from enum import StrEnum
from functools import lru_cache
from typing import Any, Final


class Finish(StrEnum):
    """What a word says of an answer.

    It is whole; it was cut off; a filter stopped it; the model refused; the server broke off; the model wrote
    something that the server cannot read; or nobody knows the word.
    """

    WHOLE = "whole"
    CUT = "cut"
    FILTERED = "filtered"
    REFUSED = "refused"
    BROKEN = "broken"
    MISSAMPLED = "missampled"
    UNKNOWN = "unknown"


_WHOLE: Final = (
    r"stop(?:ped|sequences?|strings?|words?|tokens?|str|stringfound|limitsequence)?"
    r"|end(?:ed|turn|ofturn|oftext|ofsentence|ofsequence|id|token)?|eo[st](?:token|tokenid|id|found|tokenfound)?"
    r"|complete[d]?|finish(?:ed)?|done|normal|success(?:ful)?|succeeded|ok"
    r"|toolcalls?|tooluse|functioncalls?"
    r"|unspecified|notspecified"
)
"""These words alone, not as a part of another. No pattern here is compiled before a word asks for it."""
_PARTS: Final = (
    # In this order: `error_toxic` is a filter, `error_limit` a bound, and any other error one of the server.
    (Finish.MISSAMPLED, r"malformed|functioncallfilter|unexpectedtoolcall|toomanytoolcalls|missingthoughtsignature"),
    (
        Finish.FILTERED,
        (
            r"filter|safety|unsafe|sensitive|recitation|prohibited|block(?!size)|guardrail|toxic|moderat|flagged|policy|"
            r"inspection|copyright|spii|harm|violat|censor|modelarmor|inappropriate|contentrisk|highrisk|jailbreak|csam|nsfw|"
            r"^(?:hate|hatespeech|violence|sexual)$|^language$"
        ),
    ),
    (Finish.REFUSED, r"^refus(?:al|ed)$"),
    (
        Finish.CUT,
        (
            r"length|maxtok|maxout|maxlen|maxnew|maxcompletion|maxpredict|maxcontext|maxgen|contextwindow|context|"
            r"tokenlimit|outputlimit|limittokens|errorlimit|^limit$|truncat|incomplete|tokenbudget|numpredict|"
            r"outoftokens|tokensexhausted|tokensexceeded|exceededtokens|budgetexceeded|cutoff|toolong"
        ),
    ),
    (
        Finish.BROKEN,
        (
            r"error|abort|cancel|fail|time(?:d)?out|timelimit|network|disconnect|unavailable|overload|insufficient|"
            r"interrupt|preempt|exception|crash|unload|userstopped|notfinished|unfinished|evicted|shutdown|killed|"
            r"outofmemory|^oom$|maxtime$|enginedead"
        ),
    ),
)
_PREFIX: Final = r"^(?:finish|stop|end)?reason(?=.)"
_NONE: Final = frozenset({"", "null", "none", "undefined"})
_A_WORD: Final = r"[A-Za-z0-9_.:/-]{1,64}(?: [A-Za-z0-9_.:/-]{1,64}){0,2}"
_LONGEST: Final = 64
"""A word has at most so many characters, and at most two spaces between its parts (`max output tokens`).

Anything else is no word: what is found in it, as "error" in a piece of markup, says nothing of the answer.
"""
_AROUND: Final = " \t\r\n\0\u200b\ufeff"
"""What may stand around a word and is no part of it."""


def read_finish(choice: dict[str, Any]) -> str | None:
    """Return the word that a choice gives for its end; None if it gives none.

    A gateway's `native_finish_reason` is taken if the gateway itself has no word, or if it alone tells that the answer
    is no whole one. TGI has the word in `details`, older OpenAI models in `finish_details`.
    """
    plain = choice.get("finish_reason")
    if plain == "stop" and "native_finish_reason" not in choice:  # nearly all answers
        return "stop"
    own = _word(plain)
    native = _word(choice.get("native_finish_reason"))
    # A gateway that has no word of its own leaves the field out, or null.
    if own is None:
        return native or _word(choice.get("finish_details")) or _word(choice.get("details"))
    # OpenRouter says `stop` for a native `SAFETY`: the word that says more counts.
    if native is not None and judge_finish(own) in _GOOD and judge_finish(native) not in _GOOD:
        return native
    return own


def _word(value: object) -> str | None:
    """Return a word given as a text or, as SGLang has it, as the type of an object; None if there is none.

    Some servers write the text "null" for none.
    """
    if isinstance(value, dict):
        value = next((value[name] for name in ("finish_reason", "type", "reason") if name in value), None)
    return value if isinstance(value, str) and value.strip().lower() not in _NONE else None


@lru_cache(maxsize=1024)
def judge_finish(word: str | None) -> Finish:
    """Return what a word says of its answer. No word at all says that it is whole."""
    if word is None or word == "stop":
        return Finish.WHOLE
    word = word.strip(_AROUND)
    if len(word) > _LONGEST or not re.fullmatch(_A_WORD, word):
        return Finish.UNKNOWN
    plain = re.sub(r"[^a-z0-9]", "", word.lower())
    plain = re.sub(_PREFIX, "", plain)
    # Before the table: `end_of_sequence` must not be found by a part of it.
    if plain in _NONE or re.fullmatch(_WHOLE, plain):
        return Finish.WHOLE
    return next((finish for finish, pattern in _PARTS if re.search(pattern, plain)), Finish.UNKNOWN)


_GOOD: Final = frozenset({Finish.WHOLE, Finish.UNKNOWN})
