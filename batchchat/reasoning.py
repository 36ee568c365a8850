"""Reasoning that stands in the text of an answer, told apart from the answer by its marks.

Some servers put a model's reasoning into a field of its own; others leave it in the text, between marks that differ by
model. `split` moves the reasoning at the beginning of a text away from it. `unmarked` leaves out marked reasoning
wherever it stands: a typed answer is never taken from it.

A chat template often writes the opening mark into the prompt, so that the text holds the closing one alone. What stands
before it is reasoning then, too. A mark in quotes or backticks is a word of the answer, and a text that is JSON as a
whole has no marks. Everything takes time linear in the text, whatever the text is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

import orjson

_NAMES: Final = r"(?:[a-z0-9]{1,20}[:_])?(?:ant)?think(?:ing)?|thoughts?|thought_process|reason(?:ing)?"
"""Elements that hold reasoning: think (DeepSeek, Qwen, GLM and most others), thinking, thought (EXAONE), reasoning
(Reka), seed:think (Seed-OSS), longcat_think (LongCat)."""
_NOTES: Final = (
    r"analysis|reflection|scratchpad|inner_monologue|internal_(?:monologue|thoughts?|reasoning)|chain_of_thought|cot|"
    r"reasoning_content|seed:cot_budget_reflect"
)
"""Elements that hold reasoning as a whole. A closing mark of theirs alone may be part of any answer."""
_MARK: Final = (
    rf"<(?P<end>/)?(?P<tag>{_NAMES}|(?P<notes>{_NOTES}))(?:\s[^<>]{{0,200}})?>"
    # Cohere, Sky-T1, OpenThinker.
    r"|<\|(?P<pipe>/|end_of_|end_|start_of_|begin_of_|start_|begin_)?(?:think(?:ing)?|thought|reasoning)\|>"
    r"|\[(?P<square>/)?think(?:ing)?\]"  # Magistral
    r"|\[(?:start|(?P<printed>end)) thinking\]"  # what llama.cpp's own command line prints
    r"|◁(?P<triangle>/)?think▷"  # Kimi
    r"|<\|channel>\s?thought\b|(?P<channel><channel\|>)"  # Gemma 4
    r"|<unused94>\s?thought\b|(?P<unused><unused95>)"  # MedGemma
)
"""This and the patterns that few texts need are compiled when one does: `re` keeps what it has compiled."""
_CHANNEL: Final = r"<\|channel\|>\s*([a-z]*)[^<]{0,200}(?:<\|constrain\|>[^<]{0,200})?<\|message\|>"
_TURN: Final = r"<\|(?:end|return|call)\|>|<\|start\|>[a-z_]*"
"""The channels of gpt-oss (the harmony format): analysis and commentary are reasoning, final is the answer."""
_BARE_FINAL: Final = "assistantfinal"
"""What is left of the beginning of gpt-oss's final channel, where a server drops the model's special tokens."""
_PROSE: Final = (
    (r"\s*Here(?:'s| is) my thought process:", r"Here(?:'s| is) my response:"),  # Granite
    (r"\s*Here are my reasoning steps:", r"\[BEGIN FINAL RESPONSE\]"),  # Apriel
)
_WRAPPED: Final = (
    r"\s*(?:<\|(?:START_RESPONSE|begin_of_solution|begin_of_box)\|>\s*)|"
    r"\s*(?:<\|(?:END_RESPONSE|end_of_solution|end_of_box)\|>|\[END FINAL RESPONSE\])\s*\Z"
)
"""Marks of the answer itself, beside those of its reasoning."""
_BLANK: Final = re.compile(
    r"(?:[\s\ufeff\u200b-\u200f\u2060\x00\u00ad\u180e\u2800\u115f\u1160\u3164]++"
    r"|<\|(?:im_end|end|eot_id|eom_id|end_of_text|endoftext|return|end_of_turn)\|>|</s>|<eos>|<end_of_turn>)*"
)
"""What shows nothing: white space, characters without width or ink, and the tokens that end a model's turn.

Some servers leave the last in the text.
"""
_FIRST: Final = ("<", "[", "◁")
"""What every opening mark begins with."""
_SPOKEN: Final = ("Here", "analysis")
"""What reasoning begins with that is told apart by words."""
_QUOTES: Final = "`'\"“”«»"


class _Mark(NamedTuple):
    """One mark; `family` tells which marks belong together."""

    start: int
    end: int
    closes: bool
    family: str


def is_blank(text: str | None) -> bool:
    """Return whether a text says nothing: none, empty, or only white space and characters without width."""
    # Nearly all answers begin with a letter or a digit of ASCII: nothing else need be looked at.
    if text and text[0].isascii() and text[0].isalnum():
        return False
    return not text or _BLANK.fullmatch(text) is not None


def split(text: str) -> tuple[str | None, str]:
    """Return the reasoning before an answer, and the answer.

    Without reasoning the first is None and the second the text as it is. If the text begins with an opening mark that
    has no end, all of it is reasoning: the answer is empty. A marked part between other text is left in it.
    """
    # Nearly all answers have none of the characters that marks are made of.
    if "<" in text or "[" in text or "◁" in text or text.lstrip().startswith(_SPOKEN):
        return _split(text)
    return None, text


def _split(text: str) -> tuple[str | None, str]:
    if not _may_hold_an_end(text) or _is_json(text):
        return _unended(text, 0)
    if "<|channel|>" in text:
        return _harmony(text)
    if text.lstrip().startswith("analysis") and _BARE_FINAL in text:
        thought, _, rest = text.partition(_BARE_FINAL)
        return thought.lstrip().removeprefix("analysis").strip(), rest.lstrip()
    for opening, closing in _PROSE:
        if (begun := re.match(opening, text)) and (ended := re.compile(closing).search(text, begun.end())):
            return text[begun.end() : ended.start()].strip(), _unwrapped(text[ended.end() :])
    thoughts, position = [], 0
    while (part := _leading(text, position)) is not None:
        begin, end, position = part
        thoughts.append(text[begin:end].strip())
    more, rest = _unended(text, position)
    if more is not None:
        thoughts.append(more)
    if not thoughts:
        return None, text
    return "\n\n".join(filter(None, thoughts)), _unwrapped(rest)


def unmarked(text: str) -> str:
    """Return a text without any marked reasoning: before the answer, between its parts, or begun and never ended."""
    if _is_json(text):
        return text
    _, rest = split(text)
    kept, position, depth, family = [], 0, 0, ""
    for mark in _marks(rest, 0):
        if depth == 0 and not mark.closes:
            kept.append(rest[position : mark.start])
            depth, family = 1, mark.family
        elif depth and mark.family == family:
            depth += -1 if mark.closes else 1
            position = mark.end
    if depth == 0:
        kept.append(rest[position:])
    return "\n".join(kept)


def _may_hold_an_end(text: str) -> bool:
    """Whether a text may hold the end of reasoning: a quick search, since nearly all texts hold none."""
    return (
        "</" in text
        or "|>" in text
        or "[/" in text
        or "[End" in text
        or "◁/" in text
        or _BARE_FINAL in text
        or "<unused95>" in text
        or text.lstrip()[:7] == "Here is"
        or text.lstrip()[:6] in {"Here's", "Here a"}
    )


def _is_json(text: str) -> bool:
    """Whether a text is JSON by itself: a mark inside a string of it is part of the answer."""
    if text.lstrip("\ufeff \t\r\n")[:1] not in {"{", "[", '"'}:
        return False
    try:
        orjson.loads(text.lstrip("\ufeff"))
    except orjson.JSONDecodeError:
        return False
    return True


def _mark() -> re.Pattern[str]:
    return re.compile(_MARK, re.IGNORECASE)


def _marks(text: str, position: int) -> Iterator[_Mark]:
    for found in _mark().finditer(text, position):
        start, end = found.span()
        if start > 0 and end < len(text) and text[start - 1] in _QUOTES and text[end] in _QUOTES:
            continue
        pipe = found["pipe"]
        ends = (
            found["end"]
            or found["square"]
            or found["triangle"]
            or found["channel"]
            or found["unused"]
            or found["printed"]
        )
        closes = bool(ends) or (pipe is not None and pipe[:1] in "/eE")
        yield _Mark(start, end, closes, (found["notes"] or "").lower())


def _leading(text: str, position: int) -> tuple[int, int, int] | None:
    """Return where the reasoning at a position begins and ends, and where what follows it begins."""
    blank = _BLANK.match(text, position)
    start = blank.end() if blank is not None else position
    opened: dict[str, int] = {}
    begin: int | None = None
    for mark in _marks(text, position):
        if begin is None and mark.start == start and not mark.closes:
            begin, opened = mark.end, {mark.family: 1}
        elif begin is not None:
            # The first end is the end: a mark inside of reasoning is mostly a mention of it.
            if mark.closes and mark.family in opened:
                return begin, mark.start, mark.end
        elif not mark.closes:
            opened[mark.family] = opened.get(mark.family, 0) + 1
        elif opened.get(mark.family):
            opened[mark.family] -= 1
        elif not mark.family:
            return position, mark.start, mark.end
    return None


def _unended(text: str, position: int) -> tuple[str | None, str]:
    """Split what stands at a position: all of it is reasoning if a mark opens it and none of its kind follows."""
    start = blank.end() if (blank := _BLANK.match(text, position)) else position
    if text[start : start + 1] not in _FIRST:
        return None, text[position:]
    opening, *others = _marks(text, start) if (found := _mark().match(text, start)) else (None,)
    if found is None or opening is None or opening.start != start or opening.closes or opening.family:
        return None, text[position:]
    if any(mark.closes for mark in others):
        return None, text[position:]
    return text[opening.end :].strip(), ""


def _harmony(text: str) -> tuple[str | None, str]:
    """Split a text of channels. What stands before the first of them is reasoning, too."""
    found = list(re.finditer(_CHANNEL, text))
    if not found:
        return None, text
    thoughts = [text[: found[0].start()]]
    answers: list[str] = []
    for index, channel in enumerate(found):
        end = found[index + 1].start() if index + 1 < len(found) else len(text)
        (answers if channel[1] == "final" else thoughts).append(text[channel.end() : end])
    cleaned = [re.sub(_TURN, "", thought).strip() for thought in thoughts]
    reasoning = "\n\n".join(filter(None, cleaned))
    return reasoning or None, "".join(re.sub(_TURN, "", answer) for answer in answers).lstrip()


def _unwrapped(text: str) -> str:
    text = text[match.end() :] if (match := _BLANK.match(text)) else text
    return re.sub(_WRAPPED, "", text) if "<|" in text or "FINAL RESPONSE]" in text else text
