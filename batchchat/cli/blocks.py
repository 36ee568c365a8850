"""What printed results are made of: headings, lines and texts that are safe to print.

All text that comes from data, answers or servers goes through one of these: secrets are masked, markup means nothing,
and characters that a terminal would obey are shown as escapes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from batchchat.cli.terminal import mask
from batchchat.format import UNKNOWN, count, money, one_line, visible

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text


def title(text: str, more: str) -> Text:
    """Return a heading: a name, and more about it."""
    from rich.text import Text

    ending = " " if more.endswith(" ") else ""
    return Text.assemble((line(text), "bold"), (f" · {line(more)}{ending}", "dim"))


def styled(text: str, style: str = "") -> Text:
    """Return text that is one's own, in a style."""
    from rich.text import Text

    return Text(mask(text), style=style)


def plain_text(text: str, style: str = "") -> Text:
    """Return foreign text of several lines, with nothing in it that a terminal obeys."""
    from rich.text import Text

    return Text(visible(mask(text)), style=style, overflow="fold")


def line(text: str, limit: int | None = None) -> str:
    """Return the text as one line; masked first, since half a secret would not be known as one."""
    return one_line(mask(text), limit)


def blank() -> Text:
    """Return an empty line."""
    return styled("")


def pair(name: str, value: str, style: str = "") -> Text:
    """Return a line that is printed whole, however long: someone will copy the path, the command or the reason."""
    from rich.text import Text

    text = Text(no_wrap=True, overflow="ignore")
    return text.append(f"{name:<13}", style="dim").append(line(value), style=style)


def remarks(warnings: Iterable[str], note: str) -> list[RenderableType]:
    """Return warnings and a note as lines, after an empty one if there are any."""
    lines: list[RenderableType] = [plain_text(f"warning: {text}", "yellow") for text in warnings]
    if note:
        lines.append(plain_text(f"note: {note}", "cyan"))
    return [blank(), *lines] if lines else []


def alarm(number: int, style: str) -> Text:
    """Return a count, in a style unless it is 0."""
    return styled(count(number), style if number else "")


def guess(text: str) -> str:
    """Mark a figure as an estimate."""
    return text if text == UNKNOWN else f"~{text}"


def cost(amount: float, currency: str | None) -> str:
    """Return an amount; zero without a currency means that no price is known, not that it was free."""
    return money(amount, currency) if currency or amount else UNKNOWN


def local_time(moment: str) -> str:
    """Write a moment, given as ISO 8601 with its offset, in the time of this machine; as it is if it is none."""
    from datetime import datetime

    try:
        return datetime.fromisoformat(moment).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError):
        return line(moment)
