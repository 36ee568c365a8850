"""A text for the model that is put into rendered messages: what the form of its answer must be."""

from __future__ import annotations

import json
from typing import Any

from batchchat.template.leaf import RowTemplateError
from batchchat.template.messages import weight
from batchchat.template.plain import to_json


class Instructions:
    """Puts one fixed text into each request's messages.

    It goes to the end of the first system message, or else of the last user message: some servers refuse two messages
    of one role in a row, or a system message that is not the first. Without either it becomes a first system message.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = (weight(text) + 7) >> 3

    def put_into(self, messages: bytes, tokens: int) -> tuple[bytes, int]:
        """Return messages (a JSON array) with the text in them, keys sorted, and a guess of their tokens."""
        # The standard library keeps every digit of a number.
        read: list[dict[str, Any]] = json.loads(messages)
        found = next((message for message in read if message["role"] in {"system", "developer"}), None)
        if found is None:
            found = next((message for message in reversed(read) if message["role"] == "user"), None)
        if found is None:
            read.insert(0, {"role": "system", "content": self._text})
        else:
            found["content"] = self._added(found.get("content"))
        try:
            return to_json(read, sort=True), tokens + self._tokens
        except (TypeError, ValueError, RecursionError) as error:
            raise RowTemplateError(f"messages: {error}") from None

    def _added(self, content: Any) -> Any:
        if isinstance(content, list):
            return [*content, {"type": "text", "text": self._text}]
        return f"{content}\n\n{self._text}" if content else self._text
