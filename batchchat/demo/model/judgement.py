"""Judging by shared words: how good a candidate is against a reference or a question, and which of two is better."""

from __future__ import annotations

import re
from collections.abc import Mapping

from batchchat.dataclass import dataclass
from batchchat.demo.model.lexicon import content_stems
from batchchat.demo.model.scanning import Scan

_ASKS = Scan(
    r"\b(?:rate|score|grade|judge|evaluate|assess|compare|which (?:answer|response|is better)|better)\b",
    "rate|score|grade|judge|evaluate|assess|compare|which |better",
)
_SCALE = re.compile(
    r"\b(?:from|between|scale(?: of)?|of)?\s*(\d{1,3})\s*(?:to|-|\u2013|and|through)\s*(\d{1,3})\b", re.I
)
_SECTION = re.compile(
    r"^[ \t]*(?:#+[ \t]*|<|\*\*|\[)?(?:the[ \t]+)?"
    r"(?:(?:answer|response|output|candidate|completion|reply|option)[ \t]+)?"
    r"(a|b|reference|expected|gold|ideal|question|input|ticket|text|source|prompt|task|message|answer|response|output"
    r"|candidate|completion|reply|summary|label)(?:[ \t]+(?:answer|text|label|output))?(?:>|\*\*|\])?[ \t]*(?::|\n|$)",
    re.I | re.M,
)
_REFERENCES = ("reference", "expected", "gold", "ideal")
_CANDIDATES = ("answer", "response", "output", "candidate", "completion", "reply", "summary", "label")


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict from 0 to 1, the scale the prompt names, and `a`, `b` or `tie` if there are two candidates."""

    score: float
    scale: tuple[int, int] | None = None
    better: str | None = None


def judge(prompt: str) -> Judgement | None:
    """Judge what a prompt shows; None if it asks for no judgement or shows nothing to judge."""
    asked = _ASKS.search(prompt)
    if asked is None:
        return None
    sections = _sections(prompt)
    if sections.get("a") and sections.get("b"):
        first, second = (_quality(sections[name], sections) for name in ("a", "b"))
        # Qualities are shares of words: a difference as small as this is taken for none.
        better = "tie" if abs(first - second) < 0.02 else "a" if first > second else "b"
        return Judgement(max(first, second), better=better)
    scale = _scale(prompt)
    candidate = next((sections[name] for name in _CANDIDATES if sections.get(name)), None)
    if candidate is None:
        # With a scale named, the text behind the request is what is to be rated.
        if scale is None:
            return None
        candidate = prompt[asked.end() :]
    return Judgement(_quality(candidate, sections), scale)


def _scale(prompt: str) -> tuple[int, int] | None:
    for match in _SCALE.finditer(prompt):
        low, high = int(match[1]), int(match[2])
        # Other pairs of numbers are dates, amounts or ranges of the text that is judged.
        if low < high <= 100 and low in {0, 1}:
            return low, high
    return None


def _sections(prompt: str) -> Mapping[str, str]:
    """Cut a prompt at its section heads (`Question:`, `### Answer A`, `<reference>`); the last of a name counts."""
    heads = list(_SECTION.finditer(prompt))
    ends = [*(head.start() for head in heads), len(prompt)][1:]
    return {head[1].lower(): prompt[head.end() : end].strip() for head, end in zip(heads, ends, strict=False)}


def _quality(candidate: str, sections: Mapping[str, str]) -> float:
    """Rate a candidate: the F1 of its words against the reference, else the share of its words that the input has."""
    words = content_stems(candidate)
    reference = next((content_stems(sections[name]) for name in _REFERENCES if sections.get(name)), None)
    if reference is not None:
        if not words or not reference:
            return float(words == reference)
        return 2 * len(words & reference) / (len(words) + len(reference))
    if not words:
        return 0.0
    shown = {"a", "b", *_CANDIDATES}
    rest = content_stems("\n".join(text for name, text in sections.items() if name not in shown))
    return len(words & rest) / len(words) if rest else min(1.0, len(words) / 12)
