"""Asking again: what is added to a request's messages when its answer did not fit.

Each correction is made from the request's own body and the latest answer alone. Earlier wrong answers are left out:
they cost tokens and repeat the mistake.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from batchchat.structured.dialect import shorten

Message = dict[str, Any]
ToolCall = Mapping[str, str | None]

_MAX_ANSWER = 16_000
_MAX_SCHEMA = 8_000
"""Characters that a correction repeats of an answer and of a schema. Chosen: about 5,000 and 2,500 tokens."""


def answer_correction(
    text: str | None, errors: Sequence[str], *, schema: str | None = None, made: int = 0
) -> list[Message]:
    """Return the messages that ask for a text answer again: the model's own answer, then what is wrong with it.

    `schema` is repeated if the prompt does not already hold it. A long answer keeps its beginning and its end.
    `made` counts the corrections before this one: a model that repeats its answer is not asked the very same again.
    """
    wanted = "Answer again with one JSON value that is valid against the schema, and with no text around it."
    asked = f"Your answer is {_not_valid(made)}:\n{_listed(errors)}\n\n{wanted}"
    # A longer one would cost more at each correction than it helps.
    if schema is not None and len(schema) <= _MAX_SCHEMA:
        asked += f"\n\nThe schema:\n{schema}"
    # Some servers refuse a message without text, and others two messages of one role in a row.
    answer = shorten(text, _MAX_ANSWER) if text and text.strip() else "(no answer)"
    return [{"role": "assistant", "content": answer}, {"role": "user", "content": asked}]


def calls_correction(
    text: str | None, calls: Sequence[ToolCall], errors: Sequence[Sequence[str]], *, made: int = 0
) -> list[Message]:
    """Return the messages that ask for tool calls again: the model's own calls, and one tool message for each of them.

    `errors` has the errors of each call, as `Tools.check_calls` returns them. The Chat API wants every call answered
    by a tool message with its id; nothing follows them, since some servers refuse a user message after one. Arguments
    that are no JSON object would break servers that parse them: they are quoted in the tool message instead.
    """
    repeated: list[Message] = []
    answers: list[Message] = []
    for index, (call, wrong) in enumerate(zip(calls, errors, strict=True)):
        call_id = call.get("id") or f"call{index:05d}"
        arguments = call.get("arguments") or ""
        usable = _is_object(arguments) and len(arguments) <= _MAX_ANSWER
        function = {"name": call.get("name") or "unknown", "arguments": arguments if usable else "{}"}
        repeated.append({"id": call_id, "type": "function", "function": function})
        # Every call needs its tool message, also one that was right: see above.
        if wrong:
            told = f"The call was not made. It is {_not_valid(made)}:\n{_listed(wrong)}"
            if not usable and arguments:
                told += f"\n\nThe arguments were:\n{shorten(arguments, _MAX_ANSWER)}"
            told += "\n\nMake all calls of your answer again, with this one corrected."
        else:
            told = "The call was not made: another one of the same answer is not valid. Make this one again as it is."
        answers.append({"role": "tool", "tool_call_id": call_id, "content": told})
    return [
        {"role": "assistant", "content": shorten(text, _MAX_ANSWER) if text else None, "tool_calls": repeated},
        *answers,
    ]


def missing_call_correction(text: str | None, problem: str, *, made: int = 0) -> list[Message]:
    """Return the messages that ask for the call of a tool if there is none."""
    answer = shorten(text, _MAX_ANSWER) if text and text.strip() else "(no answer)"
    listed = f"Your answer is {_not_valid(made)}:\n{_listed((problem,))}"
    asked = f"{listed}\n\nAnswer again with a call of a tool, not with text."
    return [{"role": "assistant", "content": answer}, {"role": "user", "content": asked}]


def _not_valid(made: int) -> str:
    return f"still not valid, after {made} correction{'s' * (made != 1)}" if made else "not valid"


def _listed(errors: Sequence[str]) -> str:
    return "\n".join(f"- {error}" for error in errors)


def _is_object(arguments: str) -> bool:
    try:
        return isinstance(orjson.loads(arguments), dict)
    except orjson.JSONDecodeError:
        return False
