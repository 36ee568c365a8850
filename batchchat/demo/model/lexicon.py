"""The words the demo model knows: light stemming, and which words point to which common label (`words.toml`).

A label is known by its name (`billing`, `Feature request`, `positive`); a label that is not here is still found by
the words of its own name and of its description in the prompt.
"""

from __future__ import annotations

import re
import tomllib
import unicodedata
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources
from typing import NamedTuple

_WORD = re.compile(r"[^\W_]+")
_SUFFIXES = ("ingly", "ments", "ings", "ment", "edly", "ing", "ers", "ed", "es", "er", "ly", "s")
_LONGEST_WORD = 40
"""Characters of a word: what is longer is no word of a language, such as an encoded image."""

STOP_WORDS = frozenset(
    """
    a about after again all also am an and any are as at be because been before being but by can could did do
    does for from get got had has have he her here him his how i if in into is it its just me more my no not now
    of on one only or our out please she so some still than that the their them then there these they this those
    to too up us very was we were what when where which while who why will with would you your yours hello hi
    hey dear thanks thank regards best kind team subject body ticket message customer text
    """.split()  # noqa: SIM905 (a list of this length reads best as text)
)


class Words(NamedTuple):
    """Stems that point to a label, by weight: `strong` 2, `weak` 1, `phrases` and `runs` of characters 3.

    Phrases are stems joined by spaces (also before and after), under their first stem.
    """

    strong: frozenset[str]
    weak: frozenset[str]
    phrases: Mapping[str, tuple[str, ...]]
    runs: tuple[str, ...]


@cache
def _lists() -> Mapping[str, Mapping[str, str]]:
    """Return the packaged word lists: by concept, lists as texts."""
    with resources.files(__package__).joinpath("words.toml").open("rb") as file:
        return tomllib.load(file)


@cache
def _concepts_by_name() -> Mapping[str, str]:
    return {name: concept for concept, lists in _lists().items() for name in lists["names"].split()}


FALLBACK_LABELS = (
    "other",
    "general",
    "misc",
    "miscellaneous",
    "unknown",
    "none",
    "neutral",
    "normal",
    "medium",
    "tie",
    "no",
)
"""The labels to answer with when nothing in the text points anywhere, best first."""


def stem(word: str) -> str:
    """Reduce a lower-case word lightly, so that `charged`, `charges` and `charging` are one."""
    if not word.isascii():
        folded = unicodedata.normalize("NFKD", word)
        word = "".join(char for char in folded if not unicodedata.combining(char))
    if len(word) > 4 and word.endswith(("ies", "ied")):
        word = word[:-3] + "y"
    else:
        for suffix in _SUFFIXES:
            if word.endswith(suffix) and len(word) - len(suffix) >= 3 and not word.endswith("ss"):
                word = word[: -len(suffix)]
                break
    if len(word) > 3 and word.endswith("e"):
        word = word[:-1]
    if len(word) > 3 and word[-1] == word[-2]:
        word = word[:-1]
    return word


class _Stems(dict[str, str]):
    """Stems by their words, worked out when they are asked for first. A dictionary is faster than a cached function."""

    def __missing__(self, word: str) -> str:
        if len(self) >= _MOST_STEMS:
            self.clear()
        found = self[word] = stem(word)
        return found


_MOST_STEMS = 50_000
"""Words whose stems are kept, some megabytes: a text of random letters must not fill the memory."""
_STEMS = _Stems()


def stems(text: str) -> list[str]:
    """Return the stems of a text's words in order, stop words included."""
    known = _STEMS
    return [known[word] for word in _WORD.findall(text.lower()) if len(word) <= _LONGEST_WORD]


def content_stems(text: str) -> set[str]:
    """Return the stems of a text's words that carry meaning."""
    return {
        _STEMS[word]
        for word in _WORD.findall(text.lower())
        if word not in STOP_WORDS and 1 < len(word) <= _LONGEST_WORD
    }


def _by_first(phrases: Iterable[list[str]]) -> Mapping[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for phrase in phrases:
        if phrase:
            found[phrase[0]] = (*found.get(phrase[0], ()), f" {' '.join(phrase)} ")
    return found


@cache
def _concept(name: str) -> Words:
    lists = _lists()[name]
    strong = frozenset(stem(word) for word in lists.get("strong", "").split())
    return Words(
        strong,
        frozenset(stem(word) for word in lists.get("weak", "").split()) - strong,
        _by_first(stems(phrase) for phrase in lists.get("phrases", "").split(";")),
        tuple(lists.get("runs", "").split()),
    )


def concept_words(label: str) -> Words | None:
    """Return the words that point to a label of a known name, or None."""
    name = _concepts_by_name().get("_".join(_WORD.findall(label.lower())))
    return _concept(name) if name is not None else None
