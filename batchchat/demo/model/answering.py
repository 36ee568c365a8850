"""The demo model: what it answers, by rules simple enough to state, and the same every time.

    a tool to call, a schema to fill    ─> words, numbers and labels of the text (`Filler`)
    a judgement asked for               ─> how many words the answer shares with the reference or the question
    labels allowed by the prompt        ─> the label that shares most words with the text
    a summary asked for                 ─> the first sentence that says something, cut to the length asked for
    anything else                       ─> a short reply that quotes the last user message

It reads the first 20,000 characters of what the user says. It slips now and then, so that an evaluation has something
to find: less often with the larger model, with labels that the prompt describes, and at a low temperature. The slips
follow from the seed, the model and the text.
"""

from __future__ import annotations

import json
import re
from functools import cached_property, lru_cache
from typing import Any

import orjson

from batchchat.dataclass import dataclass
from batchchat.demo.draws import draw, pick
from batchchat.demo.model.judgement import Judgement, judge
from batchchat.demo.model.label_ranking import Label, LabelList, evidence, find_labels, make_labels, rank
from batchchat.demo.model.scanning import Scan
from batchchat.demo.model.schema_filler import Filler, first_words
from batchchat.demo.model.sureness import LabelChoice, sureness
from batchchat.demo.request import ApiError, ChatRequest

_SLIPS_LARGE, _SLIPS_SMALL, _SLIPS_UNDESCRIBED, _SLIPS_PER_TEMPERATURE = 0.02, 0.06, 0.04, 0.08
_SUMMARY = Scan(r"\bsummar(?:y|ies|i[sz]e)|\btl;?dr\b|\bheadline\b|\bshorten\b", "summar|tl|headline|shorten")
_SUMMARY_WORDS = re.compile(r"(\d+)[ -]words?\b", re.I)
_SUMMARY_SENTENCES = re.compile(r"\b(one|a single|two|three|[1-9])(?: short| plain)?[- ]sentences?\b", re.I)
_READ_CHARS = 20_000
"""Characters of a prompt that the model reads: its patterns go over all of them, and a row must stay cheap."""
_COUNTS = {"one": 1, "a single": 1, "two": 2, "three": 3}
"""Numbers of sentences that prompts write as words."""
_SENTENCE_END = re.compile(r"(?<=[.!?。！？])\s+|\n+")  # noqa: RUF001 (full-width marks are meant)
_CORRECTION = re.compile(r"\b(?:schema|valid|validate|validation|json)\b", re.I)
_NOT_VALID = re.compile(r"\b(?:not valid|invalid|not made)\b", re.I)
_VERDICTS = (("yes", "no"), ("true", "false"), ("pass", "fail"), ("correct", "incorrect"))
_FOLLOW_UPS = (
    "Could you tell me a little more about it?",
    "I will look into it and come back to you.",
    "Is there anything else that I should know?",
    "Let us take it step by step.",
)


@dataclass(frozen=True, slots=True)
class ModelAnswer:
    """What the model says: text, or a call of one tool (its arguments as JSON text); and its reasoning.

    `choices` are its labels in the order of the answer, of models that tell how sure they are (see `sureness`).
    """

    text: str | None = None
    tool_name: str | None = None
    arguments: str | None = None
    reasoning: str | None = None
    choices: tuple[LabelChoice, ...] = ()


def answer(request: ChatRequest, seed: int, digest: bytes, *, wrong: bool = False) -> ModelAnswer:
    """Answer a request. `digest` is that of its body; `wrong` asks for a well-formed answer that is wrong."""
    reading = _Reading(request, seed, digest, wrong=wrong)
    tool = reading.tool()
    if tool is not None:
        filled = reading.filled(tool.get("parameters") or {"type": "object"})
        arguments = orjson.dumps(filled if isinstance(filled, dict) else {}).decode()
        return ModelAnswer(tool_name=tool["name"], arguments=arguments, reasoning=reading.reasoning())
    return ModelAnswer(text=reading.text(), reasoning=reading.reasoning(), choices=tuple(reading.choices))


class _Reading:
    """One request as the model understands it."""

    def __init__(self, request: ChatRequest, seed: int, digest: bytes, *, wrong: bool) -> None:
        self._request = request
        self._seed = seed
        self._digest = digest
        self._system = "\n".join(turn.text for turn in request.turns if turn.role in {"system", "developer"})
        self._said = _asked(request)[:_READ_CHARS]
        self._labels, self._text = _labels_and_text(self._system, self._said)
        schema, self._text = _schema_and_text(request, self._system, self._text)
        self._schema: dict[str, Any] | bool | None = schema
        self._wrong = wrong
        self._slips = wrong or self._slip()
        self.choices: list[LabelChoice] = []
        self._chosen: Label | None = None

    @cached_property
    def _judgement(self) -> Judgement | None:
        return judge(f"{self._system}\n{self._said}")

    def _slip(self) -> bool:
        request = self._request
        likely = _SLIPS_LARGE if "small-3.2-24b" in request.model or "70b" in request.model else _SLIPS_SMALL
        if self._labels is None or not self._labels.described:
            likely += _SLIPS_UNDESCRIBED
        if draw(self._seed, "slip", request.model, self._text) < likely:
            return True
        heat = _SLIPS_PER_TEMPERATURE * request.temperature
        # By the whole body, so that samples with seeds of their own differ. The slip above is the same for all of them.
        return heat > 0 and draw(self._seed, "heat", self._digest) < heat

    def tool(self) -> dict[str, Any] | None:
        """Return the function to call, if one is to be called."""
        request = self._request
        if request.tool_choice == "none":
            return None
        # A tool has answered, so now the model speaks.
        if request.tool_choice == "auto" and request.turns[-1].role == "tool" and not corrects(request):
            return None
        tools = {function["name"]: function for function in request.tools}
        # The request names the one tool to call.
        if request.tool_choice.startswith("="):
            return tools[request.tool_choice[1:]]
        described = make_labels((name, str(function.get("description", ""))) for name, function in tools.items())
        return tools[rank(described, self._text).names[0]]

    def text(self) -> str:
        """Return the answer in words, or as JSON if JSON was asked for."""
        request = self._request
        if self._schema is not None:
            return orjson.dumps(self.filled(self._schema)).decode()
        plain = self._plain()
        if request.format == "json_object":
            return orjson.dumps({"label" if self._labels else "answer": plain}).decode()
        return plain

    def filled(self, schema: dict[str, Any] | bool) -> Any:
        """Return an instance of `schema`, filled from the text. Raises ApiError (400) if it is no schema."""
        judgement = self._judgement
        labels = self._labels.labels if self._labels else ()
        best = rank(labels, self._text) if labels else None
        filler = Filler(
            schema,
            self._text,
            choose=self._choose,
            labels=labels,
            score=judgement.score if judgement else None,
            confidence=min(0.99, 0.5 + best.confidence / 2) if best else 0.5,
        )
        try:
            return filler.fill()
        except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
            raise ApiError(400, f"the schema cannot be used: {error}", param="response_format") from None

    def reasoning(self) -> str | None:
        """Return a sentence about the answer if the request asks for reasoning."""
        if not self._request.reasoning:
            return None
        if self._chosen is not None and (words := evidence(self._chosen, self._text)):
            return f"These words decide: {', '.join(words)}."
        return f"The message begins with: {first_words(self._text, 8)}"

    def _plain(self) -> str:
        last = self._request.turns[-1]
        if last.role == "tool":
            return f"Done. The result was: {first_words(last.text, 20)}"
        if self._labels is not None:
            return self._choose(self._labels.labels)
        judgement = self._judgement
        if judgement is not None and judgement.scale is not None:
            low, high = judgement.scale
            return str(low + round(judgement.score * (high - low)))
        if _SUMMARY.search(self._system) or _SUMMARY.search(self._said[:500]):
            return self._summary()
        return self._reply()

    def _choose(self, labels: tuple[Label, ...]) -> str:
        ranking = rank(labels, self._text)
        names = ranking.names
        # "yes" and "no" share no words with a text: a judge decides by what the answer holds.
        if _are_verdicts(names) and self._judgement is not None:
            names = _by_judgement(self._judgement, names)
        chosen = self._drawn(names)
        self._chosen = next(label for label in labels if label.name == chosen)
        return chosen

    def _drawn(self, names: tuple[str, ...]) -> str:
        """Return the first label, or the second if the model errs here; note how sure it is."""
        request = self._request
        about = (request.model, self._text, *sorted(names))
        sure = sureness(request.model, draw(self._seed, "sure", *about))
        # Models that tell no probabilities slip by the simpler rule.
        if sure is None or len(names) == 1:
            return names[1] if self._slips and len(names) > 1 else names[0]
        # At a temperature each request draws for itself, so that samples of one row differ as often as they should.
        own = (self._digest,) if request.temperature > 0 else ()
        errs = self._wrong or draw(self._seed, "right", *about, *own) >= sure
        chosen = names[1] if errs else names[0]
        self.choices.append(LabelChoice(chosen, sure, tuple(name for name in names if name != chosen)))
        return chosen

    def _summary(self) -> str:
        ask = self._system if _SUMMARY.search(self._system) else self._said[:500]
        words = _SUMMARY_WORDS.search(ask)
        counted = _SUMMARY_SENTENCES.search(ask)
        sentences = 1 if counted is None else _COUNTS.get(counted[1].lower()) or int(counted[1])
        if ask == self._system:
            text = self._text
        else:
            head, _, text = self._text.partition(":" if ":" in self._text[:200] else "\n")
            text = text or head
        # "Summarise our talk so far" at the end of a conversation: the text is what was said before.
        if len(self._request.turns) > 3 and len(text.split()) < 12:
            text = "\n".join(turn.text for turn in self._request.turns[:-1] if turn.role == "user")
        title, _, rest = text.strip().partition("\n")
        # A first line without a mark at its end is a title, and no sentence to quote.
        if rest.strip() and not title.rstrip().endswith((".", "!", "?", ",", ":", ";")):
            text = rest
        said = [sentence.strip() for sentence in _SENTENCE_END.split(text) if sentence.strip()]
        telling = [sentence for sentence in said if len(sentence.split()) > 3 or not sentence.isascii()] or said
        start = 1 if self._slips and len(telling) > sentences else 0
        chosen = " ".join(telling[start : start + sentences])
        return first_words(chosen, int(words[1]) if words else 40 * sentences) or "There is nothing to summarise."

    def _reply(self) -> str:
        quoted = first_words(self._text, 16)
        counts = {"image": self._request.images, "file": self._request.files, "sound": self._request.sounds}
        media = "".join(f"I received {count} {name}(s). " for name, count in counts.items() if count)
        about = self._digest if self._request.temperature > 0 else self._text
        follow_up = pick(_FOLLOW_UPS, self._seed, "follow-up", about)
        return f"{media}You wrote: “{quoted}” {follow_up}" if quoted else f"{media}{follow_up}"


def corrects(request: ChatRequest) -> bool:
    """Tell whether a request asks for an answer again because it was not valid."""
    turns = request.turns
    return len(turns) > 1 and turns[-1].role in {"user", "tool"} and bool(_NOT_VALID.search(turns[-1].text[:500]))


def _asked(request: ChatRequest) -> str:
    """Return the user's words to work on: the last user message, or the one before it if that only corrects us."""
    said = [turn.text for turn in request.turns if turn.role == "user"]
    if not said:
        return request.turns[-1].text
    structured = request.schema is not None or request.format != "text" or bool(request.tools)
    again = len(said) > 1 and (structured or corrects(request))
    # "Your answer is not valid": what there is to work on stands before that.
    if again and request.turns[-2].role in {"assistant", "tool"} and _CORRECTION.search(said[-1]):
        return next((text for text in reversed(said[:-1]) if not _CORRECTION.search(text)), said[0])
    return said[-1]


def _labels_and_text(system: str, said: str) -> tuple[LabelList | None, str]:
    """Return the labels that the prompt allows, and the user's words without the list of labels."""
    found = find_labels(system) if system else None
    if found is not None:
        return found, said
    found = find_labels(said)
    if found is None:
        return None, said
    start, end = found.span
    return found, f"{said[:start]}\n{said[end:]}"


def _schema_and_text(request: ChatRequest, system: str, text: str) -> tuple[dict[str, Any] | bool | None, str]:
    """Return the schema to fill, given or written into the prompt, and the user's words without it."""
    if request.schema is not None or request.tools:
        return request.schema, text
    # An object in a text that asks for no JSON is data, not a form to fill.
    if request.format == "text" and "json" not in system.lower() and "json" not in text[:2000].lower():
        return None, text
    found = _object_in(system)
    if found is not None:
        return found[0], text
    found = _object_in(text)
    if found is None:
        return None, text
    return found[0], text[: found[1]] + text[found[2] :]


@lru_cache(maxsize=256)
def _object_in(prompt: str) -> tuple[dict[str, Any], int, int] | None:
    """Find a JSON Schema, or an example object to imitate, in a prompt: the schema and where it stood."""
    decoder = json.JSONDecoder()
    tries = 0
    start = prompt.find("{")
    while start >= 0 and tries < 20:
        tries += 1
        try:
            value, end = decoder.raw_decode(prompt, start)
            schema = _like(value)
        except (ValueError, RecursionError):
            start = prompt.find("{", start + 1)
            continue
        # An empty object says nothing about what is wanted.
        if isinstance(value, dict) and value:
            return value if "properties" in value or "$ref" in value else schema, start, end
        start = prompt.find("{", end)
    return None


def _like(example: Any) -> dict[str, Any]:
    """Return a schema that an example value is an instance of. A text such as `a | b` is taken for a list of labels."""
    match example:
        case dict():
            return {"type": "object", "properties": {str(key): _like(value) for key, value in example.items()}}
        case list():
            return {"type": "array", "items": _like(example[0]) if example else {"type": "string"}}
        case str() if "|" in example:
            return {"type": "string", "enum": [part.strip() for part in example.split("|")]}
        case _:
            kinds = {bool: "boolean", int: "integer", float: "number"}
            return {"type": kinds.get(type(example), "string")}


def _are_verdicts(names: tuple[str, ...]) -> bool:
    lower = {name.lower() for name in names}
    return {"a", "b"} <= lower or any(set(pair) <= lower for pair in _VERDICTS) or all(map(str.isdecimal, names))


def _by_judgement(judgement: Judgement, names: tuple[str, ...]) -> tuple[str, ...]:
    """Order labels by a judgement: A or B by the better candidate, yes or no by the score; others stay."""
    if all(name.isdecimal() for name in names):
        ordered = sorted(names, key=int)
        first = ordered[round(judgement.score * (len(ordered) - 1))]
        return (first, *(name for name in names if name != first))
    by_lower = {name.lower(): name for name in names}
    if judgement.better is not None and {"a", "b"} <= by_lower.keys():
        better = judgement.better if judgement.better in by_lower else "a"
        return (by_lower[better], *(name for name in names if name != by_lower[better]))
    for good, bad in _VERDICTS:
        if {good, bad} <= by_lower.keys():
            first = by_lower[good if judgement.score >= 0.5 else bad]
            return (first, *(name for name in names if name != first))
    return names
