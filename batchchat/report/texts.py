"""Texts for a page: messages made text, and cut where all of them together would not fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from batchchat.format import short

MOST_LETTERS = 200_000_000
"""Characters of all texts of a page: with more, long ones are cut shorter. Chosen, not measured."""
LONGEST_TEXT = 20_000
"""Characters of one text before it is cut."""
SHORTEST_CUT = 400
"""Characters of one text that stay however many there are: the beginning of an answer tells most of it."""
_LOOK_EVERY = 256
"""Records between two estimates of the whole: the mean of fewer says little."""

Messages = list[list[str]]
"""The messages of a request as [role, text]."""


class TextAllowance:
    """Keeps the texts of a page, and finds how long one may be so that all of them are bearable.

    `records` is how many there may be. `longest` shrinks while texts come in, as soon as those so far, and as many more
    as are to come, would be more than `MOST_LETTERS`; texts that were kept before are cut when they are asked for.
    Equal messages are kept once.
    """

    def __init__(self, records: int) -> None:
        self.longest = LONGEST_TEXT
        self._records = max(1, records)
        self._kept: dict[bytes, bytes] = {}
        self._seen = 0
        self._letters = 0.0

    def take(self, answer: str | None) -> None:
        """Count a record and its answer."""
        self._seen += 1
        self._letters += min(len(answer or ""), self.longest)
        if self._seen % _LOOK_EVERY == 0:
            ahead = self._letters / self._seen * max(self._seen, self._records)
            if ahead > MOST_LETTERS and self.longest > SHORTEST_CUT:
                self.longest = max(SHORTEST_CUT, int(self.longest * MOST_LETTERS / ahead))
                # What was kept is cut later, by the new length: from here on it counts as if it had been cut already.
                self._letters *= MOST_LETTERS / ahead

    def keep(self, messages: Sequence[Mapping[str, Any]]) -> bytes:
        """Keep messages as JSON."""
        texts = [[str(message.get("role") or ""), self.cut(message_text(message))] for message in messages]
        data = orjson.dumps(texts)
        known = self._kept.setdefault(data, data)
        # Equal messages are kept once, and so they count once.
        if known is data:
            self._letters += len(data)
        return known

    def messages(self, kept: bytes) -> Messages:
        """Return the messages that were kept."""
        return [[role, self.cut(text)] for role, text in orjson.loads(kept)]

    def cut(self, text: str) -> str:
        """Return the text, or its beginning where it is too long."""
        return cut_text(text, self.longest)


def message_text(message: Mapping[str, Any]) -> str:
    """Return a message's content as text: of an image, what it is and how large."""
    content = message.get("content")
    parts = content if isinstance(content, list) else [content]
    texts = [_part(part) for part in parts if part is not None]
    texts += [orjson.dumps(call).decode() for call in message.get("tool_calls") or ()]
    return "\n".join(texts)


def _part(part: Any) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict) and isinstance(part.get("text"), str):
        return str(part["text"])
    image = part.get("image_url") if isinstance(part, dict) else None
    url = str(image.get("url") if isinstance(image, dict) else image or "")
    if url.startswith("data:"):
        return f"[{url[5:].partition(';')[0]}, {short(len(url) * 3 // 4)} bytes]"
    return f"[image {url}]" if url else orjson.dumps(part, default=str).decode()


_LEFT_OUT = " … [the rest is left out]"


def cut_text(text: str, longest: int) -> str:
    """Return a text that is at most so long, and says where something is left out."""
    if len(text) <= longest or (text.endswith(_LEFT_OUT) and len(text) <= longest + len(_LEFT_OUT)):
        return text
    return text[:longest] + _LEFT_OUT
