"""Labelling by shared words: find the allowed labels in a prompt, and the one that shares most words with a text."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from batchchat.dataclass import dataclass
from batchchat.demo.model.lexicon import FALLBACK_LABELS, Words, concept_words, content_stems, stems
from batchchat.demo.model.scanning import Scan

_HEAD = (
    r"(?:labels?|categor(?:y|ies)|class(?:es)?|options?|choices?|tags?|intents?|topics?|departments?|queues?"
    r"|sentiments?|priorit(?:y|ies)|teams?|values?|one of|either|one word)"
)
_HEAD_STARTS = (
    "label|categor|class|option|choice|tag|intent|topic|department|queue|sentiment|priorit|team|value|one of|either"
    "|one word"
)
_BULLETS = Scan(
    rf"\b{_HEAD}\b[^:\n]{{0,80}}:[ \t]*\n((?:[ \t]*\n)?(?:[ \t]*(?:[-*•]|\d+[.)])[ \t]+\S[^\n]*(?:\n|$))+)",
    _HEAD_STARTS,
)
_BULLET = re.compile(r"^[ \t]*(?:[-*•]|\d+[.)])[ \t]+(.+)$", re.M)
_AFTER_COLON = Scan(rf"\b{_HEAD}\b[^:\n.]{{0,80}}:[ \t]*((?!.*\b(?:one of|either)\b)[^\n]+)", _HEAD_STARTS)
_AFTER_ONE_OF = Scan(
    r"\b(?:one of|either)\b(?: the| these| following| labels| categories| options| words| values)*"
    r"[ \t]*[(:]?[ \t]*([^\n]+)",
    "one of|either",
)
_NAME = r"[\w`'\"-]+"
_AFTER_AS = Scan(
    rf"\b(?:as|into|to|with|say|answer)(?: either)?[ \t]+"
    rf"((?:{_NAME},\s*)+{_NAME},?\s+(?:or|and)\s+{_NAME}|(?:{_NAME},\s*){{2,}}{_NAME})",
    "as|into|to|with|say|answer",
)
_IN_BRACKETS = re.compile(r"[(\[{<]\s*([\w-]+(?:\s*[/|]\s*[\w-]+)+)\s*[)\]}>]")
_BETWEEN = Scan(r"\b(?:choose|decide|pick) between[ \t]+([^\n]+)", "choose|decide|pick")
_PAIR = Scan(
    r"\b(?:answer|reply|respond|say|with|only|output|write|return)[ \t:]+[\"'`]?([\w-]+)[\"'`]?"
    r"(?:,[ \t]*[\"'`]?([\w-]+)[\"'`]?,?)?"
    r"[ \t]+or[ \t]+[\"'`]?([\w-]+)",
    "answer|reply|respond|say|with|only|output|write|return",
)
_DIRECTS = Scan(
    r"\b(?:classify|label|categori[sz]e|sort|assign|choose|pick|decide|tag|rate|judge|compare|sentiment|intent|category"
    r"|(?:answer|reply|respond|say|output|write|return)(?: only| just)?[ \t:]+(?:with|yes|one|a\b|either|exactly|the))",
    "classify|label|categori|sort|assign|choose|pick|decide|tag|rate|judge|compare|sentiment|intent|category"
    "|answer|reply|respond|say|output|write|return",
)
"""Words that tell a model what to do: without one, `one of` and lists in a text are just prose."""

_TAIL = re.compile(
    r"(?:\.(?:\s|$)|[!?]|\s[\u2013\u2014]\s"
    r"|\b(?:and nothing else|nothing else|with no |without |no other |in lower).*).*$",
    re.I,
)
_ITEM_PARTS = re.compile(r"\([^()]*\)|[,;|/]|[^,;|/(]+|\(")
_SPLIT_LAST = re.compile(r"\s+(?:or|and)\s+|^(?:or|and)\s+", re.I)
_DESCRIBED = re.compile(
    r"^[`'\"*]*([^:`'\"*(]{1,40}?)[`'\"*]*\s*(?:[:=(]|[-\u2013\u2014]\s|\s[-\u2013\u2014]|$)\s*(.*)$"
)
_LONGEST_LABEL = 40
"""Characters of a label: what is longer is a sentence, and its list no list of labels."""


@dataclass(frozen=True, slots=True)
class Label:
    """An allowed label as the prompt spells it, and the stems that point to it."""

    name: str
    own: frozenset[str]
    described: frozenset[str]
    words: Words | None


def make_labels(items: Iterable[tuple[str, str]]) -> tuple[Label, ...]:
    """Build labels from pairs of name and description (which may be empty)."""
    return tuple(
        Label(
            name,
            frozenset(content_stems(name.replace("_", " ").replace("-", " "))),
            frozenset(content_stems(description)),
            concept_words(name),
        )
        for name, description in items
    )


@dataclass(frozen=True, slots=True)
class LabelList:
    """The labels that a prompt allows, where in it they stand, and whether they are described there."""

    labels: tuple[Label, ...]
    span: tuple[int, int]
    described: bool


@lru_cache(maxsize=256)
def find_labels(prompt: str) -> LabelList | None:
    """Find the allowed labels: a bulleted list, `Labels: a, b`, `one of a, b`, `as a, b or c`, `answer a or b`."""
    found = _BULLETS.search(prompt)
    if found:
        items = [_described(bullet) for bullet in _BULLET.findall(found[1])]
        # A bulleted list is the surest sign, so it goes before all others.
        if usable := _usable(items):
            return _label_list(usable, found.span())
    loose = (_AFTER_ONE_OF, _AFTER_AS, _IN_BRACKETS, _BETWEEN) if _DIRECTS.search(prompt) else ()
    patterns: tuple[Scan | re.Pattern[str], ...] = (_AFTER_COLON, *loose)
    for pattern in patterns:
        for match in pattern.finditer(prompt):
            if usable := _usable(_listed(match[1])):
                return _label_list(_with_bullets(usable, prompt), match.span())
    pair = _PAIR.search(prompt) if loose else None
    if pair and (usable := _usable([(name, "") for name in pair.groups() if name])):
        return _label_list(usable, pair.span())
    return None


def _label_list(items: list[tuple[str, str]], span: tuple[int, int]) -> LabelList:
    return LabelList(make_labels(items), span, any(description for _, description in items))


def _with_bullets(items: list[tuple[str, str]], prompt: str) -> list[tuple[str, str]]:
    """Add the descriptions that bullets elsewhere in the prompt give to labels already known by name."""
    bullets = dict(_described(bullet) for bullet in _BULLET.findall(prompt))
    return [(name, description or bullets.get(name, "")) for name, description in items]


def _described(bullet: str) -> tuple[str, str]:
    match = _DESCRIBED.match(bullet.strip())
    return (match[1].strip(), match[2]) if match else (bullet.strip(), "")


def _listed(text: str) -> list[tuple[str, str]]:
    """Split `a, b (what b is) or c` into names and descriptions."""
    items: list[tuple[str, str]] = []
    name, description = "", ""
    for part in (*_ITEM_PARTS.findall(_TAIL.sub("", text)), ","):
        if part in ",;|/":
            parts = [one for one in _SPLIT_LAST.split(name.strip()) if one]
            items += [(one, "") for one in parts[:-1]]
            items += [(one, description) for one in parts[-1:]]
            name, description = "", ""
        elif part.startswith("(") and len(part) > 1:
            description = part[1:-1]
        else:
            name += part
    return items


def _usable(items: list[tuple[str, str]]) -> list[tuple[str, str]] | None:
    """Clean the names; None unless there are two or more and each looks like a label."""
    cleaned: dict[str, str] = {}
    for raw, description in items:
        name = raw.strip(" \t`'\"*[]{}<>.:()\u201c\u201d\u2018\u2019«»")
        # A sentence, so this is no list of labels.
        if name and (len(name) > _LONGEST_LABEL or len(name.split()) > 4):
            return None
        if name:
            cleaned.setdefault(name, description)
    return list(cleaned.items()) if len(cleaned) > 1 else None


@dataclass(frozen=True, slots=True)
class Ranking:
    """Labels from best to worst, and the share of all points that the best one has (0 if nothing matched)."""

    names: tuple[str, ...]
    confidence: float


def rank(labels: tuple[Label, ...], text: str) -> Ranking:
    """Order labels by the words they share with `text`; ties go to the earlier one, no match to a fallback label."""
    sequence = stems(text)
    present = set(sequence)
    joined = f" {' '.join(sequence)} "
    scores = [_score(label, present, joined, text) for label in labels]
    order = sorted(range(len(labels)), key=lambda index: -scores[index])
    total = sum(scores)
    # Nothing points to any label: "other" is the answer of a careful reader.
    if not total or scores[order[0]] < 1:
        fallback = _fallback(labels)
        order.sort(key=lambda index: index != fallback)
        return Ranking(tuple(labels[index].name for index in order), 0.0)
    return Ranking(tuple(labels[index].name for index in order), scores[order[0]] / total)


def evidence(label: Label, text: str) -> list[str]:
    """Return the first stems of `text` that point to `label`, at most six."""
    known = label.own | label.described
    if label.words is not None:
        known |= label.words.strong | label.words.weak
    return list(dict.fromkeys(word for word in stems(text) if word in known))[:6]


def _score(label: Label, present: set[str], joined: str, text: str) -> float:
    points = 2.0 * len(label.own & present) + len(label.described & present)
    words = label.words
    if words is not None:
        points += 2 * len(words.strong & present) + len(words.weak & present)
        for first in words.phrases.keys() & present:
            points += 3 * sum(phrase in joined for phrase in words.phrases[first])
        # Languages without spaces have no words to match: runs of characters are looked for.
        if not text.isascii():
            points += 3 * sum(run in text for run in words.runs)
    return points


def _fallback(labels: tuple[Label, ...]) -> int:
    names = [label.name.lower() for label in labels]
    for name in FALLBACK_LABELS:
        if name in names:
            return names.index(name)
    return 0
