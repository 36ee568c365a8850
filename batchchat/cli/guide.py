"""The commands that explain: `guide` and `schema`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, ClassVar

from batchchat import guide
from batchchat.cli.process import print_json, results
from batchchat.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.markdown import Markdown, MarkdownElement

    from batchchat.cli.terminal import Terminal

_LINK = re.compile(r"\[([^\]]+)\]\(([a-z-]+)\.md(?:#[\w-]+)?\)")
_OTHER_LINK = re.compile(r"\[([^\]]+)\]\((?!https?:)[^)]+\)")
_IMAGE = re.compile(r"^!\[[^\]]*\]\([^)]*\)\n", re.MULTILINE)
_WIDEST = 100
"""Columns of a page on a terminal that is wider: longer lines are hard to read."""
_LAST_COLUMN = 24
"""Columns that the last column of a table has at least: it holds sentences, and the others words."""
_SHOWN = 160
"""Characters of one place that a search shows: two lines of most terminals."""


def guide_command(topic: str | None, *, word: str | None) -> int:
    """Print the contents, one page, or the lines that hold a word."""
    if word is not None:
        if topic is not None:
            raise UsageError("give either a topic or --search, not both", remedy=f"batchchat guide --search {word}")
        return _search(word)
    show(guide.contents() if topic is None else guide.page(topic), results())
    return 0


def schema_command(kind: str) -> int:
    """Print the JSON Schema of a job or of a suite."""
    from batchchat.guide.schema import job_schema, suite_schema

    print_json(job_schema() if kind == "job" else suite_schema())
    return 0


def show(text: str, terminal: Terminal) -> None:
    """Print Markdown: laid out on a terminal, as it is anywhere else."""
    if not terminal.tty:
        terminal.write_line(text.rstrip("\n"))
        return
    from rich.theme import Theme

    # rich's own style of code is a dark box, which hurts on a light terminal.
    theme = Theme({"markdown.code": "cyan", "markdown.h1": "bold", "markdown.h2": "bold"})
    with terminal.lock:
        width = min(terminal.console.width, _WIDEST)
        with terminal.console.use_theme(theme):
            terminal.console.print(_markdown(_for_terminal(text)), width=width)


def _markdown(text: str) -> Markdown:
    """Return Markdown whose tables show the names in their first column whole, however narrow the terminal is."""
    from rich.markdown import Markdown, TableElement
    from rich.table import Table

    class WholeNames(TableElement):
        """A table."""

        def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
            """Yield the table with what each column may do."""
            for part in super().__rich_console__(console, options):
                if isinstance(part, Table):
                    for number, column in enumerate(part.columns):
                        column.no_wrap, column.overflow = number == 0, "fold"
                    # Long names leave a last column of one word a line, unless it has some room for sure.
                    part.columns[-1].min_width = _LAST_COLUMN
                yield part

    class Page(Markdown):
        """A page with such tables."""

        elements: ClassVar[dict[str, type[MarkdownElement]]] = {**Markdown.elements, "table_open": WholeNames}

    return Page(text, code_theme="ansi_dark")


def _for_terminal(text: str) -> str:
    """Replace links to other pages by the command that shows them, and leave pictures out."""

    def command(found: re.Match[str]) -> str:
        name, target = found.groups()
        return f"`{name}`" if name.strip("`") == target else f"{name} (`batchchat guide {target}`)"

    return _OTHER_LINK.sub(r"\1", _LINK.sub(command, _IMAGE.sub("", text)))


def _search(words: str) -> int:
    """Print the places that hold all the words, page by page. Raises UsageError if there is none."""
    if not words.strip():
        raise UsageError("--search needs a word", remedy="batchchat guide --search budget")
    terminal = results()
    shown = None
    for hit in guide.search(words):
        if hit.topic != shown:
            terminal.write_line(f"{'' if shown is None else chr(10)}batchchat guide {hit.topic}")
            shown = hit.topic
        terminal.write_line(f"  {hit.heading}: {_around(hit.text, words.split(maxsplit=1)[0])}")
    if shown is None:
        raise UsageError(f"the guide does not speak of {words!r}", remedy="`batchchat guide` lists the topics.")
    return 0


def _around(text: str, word: str) -> str:
    """Return a long text cut to what stands around a word."""
    if len(text) <= _SHOWN:
        return text
    start = max(0, min(text.casefold().find(word.casefold()) - _SHOWN // 3, len(text) - _SHOWN))
    end = start + _SHOWN
    return f"{'…' * (start > 0)}{text[start:end].strip()}{'…' * (end < len(text))}"
