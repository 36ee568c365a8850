"""Where values stand in a JSON text, and which characters each token of a text wrote."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

Path = tuple[str, ...]
Span = tuple[int, int]

_SPACE = re.compile(r"[ \t\r\n]*")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_SCALAR = re.compile(r'[^\s,\]}"]+')
_DECODER = json.JSONDecoder()
_MAX_TRIES = 50
_MAX_LOST = 64
"""How many characters a run of tokens may stand for that are not written as they are: a character in three bytes is
three tokens, and longer runs of such characters come together."""


def value_spans(text: str, paths: Sequence[Path]) -> dict[Path, Span] | None:
    """Return where the scalar values at these paths stand in the JSON of a text; None if it holds no JSON.

    The text may be JSON as a whole, or hold it among other words: then the object is taken that has most of the paths,
    the last one of several.
    """
    wanted = set(paths)
    start = _skip(text, 0)
    try:
        found, end = _walk(text, start, wanted)
        if _skip(text, end) == len(text):
            return found
    except (ValueError, IndexError, RecursionError):
        pass
    best: dict[Path, Span] | None = None
    position = 0
    for _ in range(_MAX_TRIES):
        opening = next((at for at in range(position, len(text)) if text[at] in '{["'), None)
        if opening is None:
            break
        try:
            found, position = _walk(text, opening, wanted)
        except (ValueError, IndexError, RecursionError):
            position = opening + 1
            continue
        # Of several values the last one that holds as much is the answer: reasoning before it may quote it.
        if best is None or (found and len(found) >= len(best)):
            best = found
    return best


def _walk(text: str, start: int, wanted: set[Path]) -> tuple[dict[Path, Span], int]:
    """Read one JSON value, and note where the wanted ones in it stand.

    Raises ValueError or IndexError if it is none.
    """
    found: dict[Path, Span] = {}
    end = _value(text, start, (), wanted, found)
    return found, end


def _value(text: str, at: int, path: Path, wanted: set[Path], found: dict[Path, Span]) -> int:
    if text[at] == "{" and any(longer[: len(path)] == path and len(longer) > len(path) for longer in wanted):
        return _object(text, at, path, wanted, found)
    # What holds nothing that is wanted is passed over as a whole.
    _, end = _DECODER.raw_decode(text, at)
    # A value that is an object or an array has no probability of its own.
    if path in wanted and text[at] not in "{[":
        found[path] = (at, end)
    return end


def _object(text: str, at: int, path: Path, wanted: set[Path], found: dict[Path, Span]) -> int:
    at = _skip(text, at + 1)
    if text[at] == "}":
        return at + 1
    while True:
        name = _STRING.match(text, at)
        if name is None:
            raise ValueError("an object's name must be a string")
        at = _skip(text, name.end())
        if text[at] != ":":
            raise ValueError("a colon must follow a name")
        at = _skip(text, at + 1)
        at = _skip(text, _value(text, at, (*path, json.loads(name[0], strict=False)), wanted, found))
        if text[at] == "}":
            return at + 1
        if text[at] != ",":
            raise ValueError("a comma must stand between members")
        at = _skip(text, at + 1)


def _skip(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    return space.end() if space is not None else at


def alignment(text: str, tokens: Sequence[str]) -> list[Span] | None:
    """Return which characters of a text each token wrote; an empty span for one that wrote none of them.

    Tokens may write more than the text: reasoning before it, white space around it. A character may be written in
    several tokens that hold some of its bytes each, and do not read as text: such tokens share the characters that
    stand between their neighbours. Return None if the tokens do not spell the text.
    """
    joined = "".join(tokens)
    # The last place: what stands before the answer may quote it.
    offset = joined.rfind(text)
    if offset >= 0:
        spans, at = [], -offset
        for token in tokens:
            spans.append((min(max(at, 0), len(text)), max(0, min(at + len(token), len(text)))))
            at += len(token)
        return spans
    return _resynchronized(text, tokens)


def _resynchronized(text: str, tokens: Sequence[str]) -> list[Span] | None:
    """Align tokens of which some do not read as text, from the beginning of the text."""
    spans: list[Span] = []
    lost: list[int] = []
    at = 0
    for number, token in enumerate(tokens):
        spans.append((at, at))
        if not token:
            continue
        # Behind lost tokens the next one that reads as text tells where the alignment goes on.
        if lost:
            here = text.find(token, at + 1, at + 1 + _MAX_LOST + len(token))
        else:
            here = at if text.startswith(token, at) else -1
        if here < 0:
            lost.append(number)
            continue
        for missed in lost:
            spans[missed] = (at, here)
        lost = []
        at = here + len(token)
        spans[number] = (here, at)
    for missed in lost:
        spans[missed] = (at, len(text))
    # Most of the text must be spelled by tokens that read as text: else these are the tokens of another one.
    spelled = sum(len(token) for token, (first, last) in zip(tokens, spans, strict=True) if text[first:last] == token)
    return spans if 2 * spelled >= len(text) else None
