"""Finding JSON in what a model wrote: strictly if the text is JSON, tolerantly in fences or between sentences.

Everything takes time linear in the text, whatever the text is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import orjson

MAX_DEPTH = 128
"""How deep an answer may be nested."""

_MAX_TRIES = 200
_OPENING = re.compile(r'\{[ \t\r\n]*["}]|\[[ \t\r\n]*(?:[\[\]{"\d-]|true|false|null)')
_OBJECT = re.compile(r'\{[ \t\r\n]*"(?:[^"\\]|\\.)*"[ \t\r\n]*:')
_FENCE = re.compile(r"```(?:[ \t]{0,4}[\w+.-]{0,30}[ \t]{0,4}\r?\n|[ \t]{0,4}json\b)?", re.IGNORECASE)
_FENCE_END = re.compile(r"[ \t\r\n]*(?:```|\Z)")
_SPACE = re.compile(r"[ \t\r\n]*")
_LOOSE = json.JSONDecoder()


class NotJSON(ValueError):
    """Why a text is not taken as JSON."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise NotJSON(f"the name {twice[:100]!r} is given twice in one object")
    return found


_STRICT = json.JSONDecoder(object_pairs_hook=_unique)


def parse(text: str) -> Any:
    """Read a text that is one JSON value; NotJSON if it is none.

    Whole numbers keep all their digits. Refused are NaN and infinities, names given twice, lone surrogates, and nesting
    deeper than `MAX_DEPTH`. Two parsers read it: the first is strict, the second keeps digits and sees repeated names.
    """
    try:
        orjson.loads(text)
        value = _STRICT.decode(text)
    except NotJSON:
        raise
    except RecursionError:
        raise NotJSON(f"it is nested deeper than {MAX_DEPTH} levels") from None
    except ValueError as error:
        raise NotJSON(str(error)) from None
    # Counting brackets is quick, and nearly all answers have fewer than the bound.
    if text.count("{") + text.count("[") > MAX_DEPTH and _deeper(value, MAX_DEPTH):
        raise NotJSON(f"it is nested deeper than {MAX_DEPTH} levels")
    return value


def _deeper(value: Any, depth: int) -> bool:
    level = [value]
    for _ in range(depth):
        level = [
            item
            for container in level
            if isinstance(container, dict | list)
            for item in (container.values() if isinstance(container, dict) else container)
            if isinstance(item, dict | list)
        ]
        if not level:
            return False
    return True


def fenced(text: str) -> Iterator[Any | NotJSON]:
    """Yield the JSON values that stand alone in code fences, in order; NotJSON for one that is not taken.

    A fence inside a JSON string does not end it. The last fence may lack its end.
    """
    position = 0
    for _ in range(_MAX_TRIES):
        fence = _FENCE.search(text, position)
        if fence is None:
            return
        position = fence.end()
        space = _SPACE.match(text, position)
        start = space.end() if space else position
        try:
            _, end = _LOOSE.raw_decode(text, start)
        except (ValueError, RecursionError):
            continue
        closing = _FENCE_END.match(text, end)
        # JSON that more text follows before the fence ends is a part of something else.
        if closing is not None:
            yield _taken(text[start:end])
            position = closing.end()


def embedded(text: str) -> Iterator[Any | NotJSON]:
    """Yield the outermost JSON objects and arrays between other text, in order; NotJSON for one that is not taken.

    A bracket that does not open JSON is prose. An object that is begun and then broken or cut off ends the search:
    a piece of an answer is not the answer.
    """
    position = 0
    for _ in range(_MAX_TRIES):
        opening = _OPENING.search(text, position)
        if opening is None:
            return
        start = opening.start()
        try:
            _, position = _LOOSE.raw_decode(text, start)
        except json.JSONDecodeError as error:
            position = max(error.pos, start + 1)
            # An object with a name and a colon was meant as JSON. The rest of it could look like a whole answer.
            if _OBJECT.search(text, start, position):
                yield NotJSON(str(error))
                return
            # From here to the end all is inside a string.
            if error.msg.startswith("Unterminated string"):
                return
        except (ValueError, RecursionError):
            yield NotJSON("it is nested too deep, or a number in it has too many digits")
            return
        else:
            yield _taken(text[start:position])
    yield NotJSON("there are too many pieces of JSON in it")


def _taken(text: str) -> Any | NotJSON:
    try:
        return parse(text)
    except NotJSON as problem:
        return problem
