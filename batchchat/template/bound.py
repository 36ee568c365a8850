"""A bound on the prompts of a job: a row over it fails, or one of its columns is cut."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, TypeVar

from batchchat.dataclass import dataclass
from batchchat.records import ErrorKind
from batchchat.template.leaf import RowTemplateError

CUT_MARK = " […]"
"""What stands at the end of a text that was cut."""
_JOINER = "\u200d"


class _Sized(Protocol):
    @property
    def prompt_tokens(self) -> int: ...


_Result = TypeVar("_Result", bound=_Sized)


class PromptBound(NamedTuple):
    """At most `limit` prompt tokens by size; `cut` names the column that is made shorter, None fails the row."""

    limit: int
    cut: str | None = None


@dataclass(frozen=True, slots=True)
class _Cutting:
    """One row on its way below the bound."""

    bound: PromptBound
    values: Mapping[str, Any]
    text: str

    def values_at(self, length: int) -> dict[str, Any]:
        return {**self.values, str(self.bound.cut): shortened_text(self.text, length)}


def render_within(
    bound: PromptBound, values: Mapping[str, Any], render: Callable[[Mapping[str, Any]], _Result]
) -> _Result:
    """Render a row so that its prompt is within a bound.

    The column to cut keeps as much of its beginning as has room. Raises RowTemplateError if the prompt is too long all
    the same.
    """
    whole = render(values)
    if whole.prompt_tokens <= bound.limit:
        return whole
    text = None if bound.cut is None else values.get(bound.cut)
    if not isinstance(text, str):
        why = "" if bound.cut is None else f", and its {bound.cut} is no text that could be cut"
        raise _too_long(whole.prompt_tokens, bound, why)
    cutting = _Cutting(bound, values, text)
    best = render(cutting.values_at(0))
    if best.prompt_tokens > bound.limit:
        raise _too_long(best.prompt_tokens, bound, f" even without its {bound.cut}")
    # The longest beginning that fits, found by halving: a template may show the column twice, or filter it.
    low, high = 0, len(text)
    while high - low > 1:
        middle = (low + high) // 2
        found = render(cutting.values_at(middle))
        if found.prompt_tokens <= bound.limit:
            low, best = middle, found
        else:
            high = middle
    return best


def shortened_text(text: str, length: int) -> str:
    """Return the beginning of a text, of at most so many characters, with the mark of a cut.

    What belongs to one visible character stays together: accents, and joined emoji.
    """
    while 0 < length < len(text) and _belongs(text, length):
        length -= 1
    return text[:length].rstrip() + CUT_MARK if length else CUT_MARK.strip()


def _belongs(text: str, place: int) -> bool:
    """Tell whether the character at a place belongs to the one before it."""
    return (
        unicodedata.category(text[place])[0] == "M"
        or _JOINER in (text[place], text[place - 1])
        or "\U0001f3fb" <= text[place] <= "\U0001f3ff"  # skin tones
    )


def _too_long(tokens: int, bound: PromptBound, why: str) -> RowTemplateError:
    # Two digits are what an estimate is worth, and rows of about one length are told as one reason.
    digits = max(0, len(str(tokens)) - 2)
    about = round(tokens, -digits)
    message = f"the prompt has about {about:,} tokens{why}: max_prompt_tokens is {bound.limit:,}"
    return RowTemplateError(message, ErrorKind.INPUT)
