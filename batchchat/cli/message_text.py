"""Messages and values as text: whole, or their beginning."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from batchchat.cli.blocks import line, plain_text, styled
from batchchat.cli.json_output import plain_value
from batchchat.cli.tables import grid
from batchchat.cli.terminal import mask
from batchchat.format import UNKNOWN, plural
from batchchat.images import shortened
from batchchat.views import Message

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

_PREVIEW_LINES = 12
_PREVIEW_LETTERS = 1200
"""What a plan shows of each message: its first lines, and so many characters of them. Chosen."""
_ROLE_STYLES = {"system": "magenta", "developer": "magenta", "user": "cyan", "assistant": "green", "tool": "yellow"}


def content_text(message: Message) -> str:
    """Return a message's content as text: its parts one below the other, tool calls by name and arguments."""
    content = message.get("content")
    blocks: list[str] = []
    if isinstance(content, str):
        blocks.append(content)
    elif isinstance(content, Sequence):
        blocks += [_part_text(part) for part in content]
    elif content is not None:
        blocks.append(as_text(content))
    calls = message.get("tool_calls")
    # A text is a sequence too, and its letters are no calls.
    if isinstance(calls, Sequence) and not isinstance(calls, str):
        blocks += [f"calls {call_text(call)}" for call in calls]
    return "\n".join(blocks)


def messages_table(messages: Sequence[Message], *, whole: bool) -> RenderableType:
    """Return messages one below the other, each by its role: whole, or their beginning."""
    from rich.console import Group

    blocks: list[RenderableType] = []
    for message in messages:
        role = line(str(message.get("role", "?")), 20)
        text = mask(content_text(message))
        blocks.append(block(role, text if whole else beginning(text), _ROLE_STYLES.get(role, "bold")))
    return Group(*blocks)


def block(heading: str, text: str, style: str) -> Table:
    """Return a heading with its text beside it, wrapped and aligned."""
    table = grid()
    table.add_column(min_width=10, no_wrap=True)
    table.add_column(ratio=1, overflow="fold")
    table.add_row(styled(heading, style), plain_text(text if text else "(empty)", "" if text else "dim"))
    return table


def beginning(text: str) -> str:
    """Return the first lines of a long text, and how much was left out."""
    kept = "\n".join(text[:_PREVIEW_LETTERS].split("\n")[:_PREVIEW_LINES])
    left = len(text) - len(kept)
    return text if left <= 0 else f"{kept}\n… {plural(left, 'more character')}"


def _part_text(part: object) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        return as_text(part)
    if isinstance(part.get("text"), str):
        return str(part["text"])
    kind = str(part.get("type", "part"))
    # Parts hold their content under the name of their type: {type: image_url, image_url: {url: …}}.
    inner = part.get(kind)
    url = inner.get("url") if isinstance(inner, Mapping) else inner
    shown = url if isinstance(url, str) else as_text({name: part[name] for name in part if name != "type"})
    return f"[{kind}] {shortened(mask(shown))}"


def call_text(call: object) -> str:
    """Return a tool call as its name and arguments."""
    if isinstance(call, Mapping):
        # As in a request; records keep name and arguments without the wrapping.
        function = call.get("function")
        named = function if isinstance(function, Mapping) else call
        if named.get("name") is not None:
            return f"{named['name']}({named.get('arguments') or ''})"
    return as_text(call)


def as_text(value: object) -> str:
    """Return a value as text: JSON for objects and arrays, a text without the data of its images."""
    if isinstance(value, str):
        return shortened(value)
    if value is None:
        return UNKNOWN
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(plain_value(value), ensure_ascii=False)
    return str(plain_value(value))
