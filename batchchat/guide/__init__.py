"""The user documentation: pages of Markdown that the package carries, and `batchchat guide` shows.

A page is one topic, and its file is named after it. `README.md` is the page of contents: its list says which topics
there are, in which order, with one line about each. GitHub shows the same files as they are.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from importlib import resources

from batchchat.dataclass import dataclass
from batchchat.errors import UsageError

CONTENTS = "README"
"""The name of the page of contents."""

_OF_FIELD: Mapping[str, str] = {
    "name": "job",
    "input": "input",
    "output": "output",
    "provider": "providers",
    "model": "providers",
    "fallback": "endpoints",
    "cascade": "cascade",
    "messages": "templates",
    "constant": "templates",
    "skip": "templates",
    "max_prompt_tokens": "templates",
    "examples": "examples",
    "samples": "samples",
    "images": "images",
    "files": "attachments",
    "params": "job",
    "response": "typed-answers",
    "limits": "limits",
    "retry": "resume",
    "prices": "providers",
    "engine": "batch-api",
    "budget": "budgets",
    "deadline": "budgets",
    "cache": "cache",
    "dedupe": "cache",
    "job": "evaluation",
    "variants": "evaluation",
    "scorers": "scorers",
    "until": "early-stopping",
    "decide_by": "early-stopping",
    "margin": "early-stopping",
    "looks": "early-stopping",
    "judge": "judges",
    "failed": "evaluation",
    "seed": "evaluation",
    "cluster": "evaluation",
    "allow_fallback": "evaluation",
}
"""The page that tells most about a field of a job or a suite."""
_ENTRY = re.compile(r"^- \[([a-z-]+)\]\(\1\.md\): (.+)$", re.MULTILINE)
_COMMENT = re.compile(r"^<!--.*?-->\n", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"#{1,4} (.+)")
_FENCE = "```"


@dataclass(frozen=True, slots=True)
class Topic:
    """One page: its name, and what it is about in a line."""

    name: str
    about: str


@dataclass(frozen=True, slots=True)
class Hit:
    """A place that holds the words that were searched for: its page, the heading above it, and its text.

    The text is a paragraph, an entry of a list, a row of a table, or a line of code.
    """

    topic: str
    heading: str
    text: str


def topics() -> list[Topic]:
    """Return all topics in the order of the contents."""
    return [Topic(name, about) for name, about in _ENTRY.findall(_source(CONTENTS))]


def page(topic: str) -> str:
    """Return the Markdown of a page, without the comments that only tests read.

    Raises UsageError, with the nearest names, if there is no such topic.
    """
    known = [one.name for one in topics()]
    name = topic.lower().removesuffix(".md").replace("_", "-").replace(" ", "-")
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        near += [one for one in known if name in one.split("-") and one not in near]
        hint = f"Did you mean {' or '.join(near)}? " if near else ""
        raise UsageError(
            f"the guide has no topic {topic!r}",
            remedy=f"{hint}`batchchat guide` lists the topics, `batchchat guide --search WORD` searches them.",
        )
    return _COMMENT.sub("", _source(name))


def topic_of(field: str) -> str | None:
    """Return the page about a field of a job or a suite by its dotted name, None if it is no field of theirs."""
    return _OF_FIELD.get(field.partition(".")[0])


def contents() -> str:
    """Return the Markdown of the page of contents."""
    return _source(CONTENTS)


def search(words: str) -> Iterator[Hit]:
    """Yield each place of the guide that holds all these words; upper and lower case are the same."""
    wanted = words.casefold().split()
    for topic in topics():
        for heading, text in _places(topic.name):
            if wanted and all(word in text.casefold() for word in wanted):
                yield Hit(topic.name, heading, text)


def _places(name: str) -> Iterator[tuple[str, str]]:
    """Yield the paragraphs, entries, rows and lines of code of a page, each with the heading above it."""
    heading, fenced = name, False
    paragraph: list[str] = []
    for line in [*page(name).splitlines(), ""]:
        ends = fenced or not line.strip() or line.startswith(("#", "|", "- ", _FENCE))
        if ends and paragraph:
            yield heading, " ".join(paragraph)
            paragraph = []
        if line.startswith(_FENCE):
            fenced = not fenced
        # In a block of code, a line that begins with # is a comment.
        elif found := None if fenced else _HEADING.fullmatch(line):
            heading = found[1]
            yield heading, heading
        elif fenced or line.startswith("|"):
            yield heading, line.strip()
        elif line.strip():
            paragraph.append(line.strip())


def _source(name: str) -> str:
    return (resources.files("batchchat.guide") / f"{name}.md").read_text(encoding="utf-8")
