"""How sure an answer is: from the log probabilities of its tokens, or from what the model says of itself.

    schema ──────> the fields that hold one of several values (enums, booleans), each with its alternatives
    answer, tokens ─> for each field: where its value stands in the JSON, the tokens that write it, its probability

A token tells the probability of what it writes, given what stands before it. So the product over the tokens of a value
is the probability of the value. Where the server also shows the likeliest other tokens, each factor is divided by the
chance of all tokens but those that are shown and lead to no value that the schema allows: what it forbids takes nothing
away, and what is not shown counts against the value.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from batchchat.dataclass import dataclass
from batchchat.structured.dialect import Schema, resolve
from batchchat.structured.spans import alignment, value_spans

Method = Literal["logprobs", "samples", "field"]
FieldPath = tuple[str, ...]

MAX_FIELDS = 200
"""How many fields of one schema are measured: a bound for schemas that repeat themselves, far above real ones."""
_MAX_LEVELS = 20

NO_LOGPROBS = "the server gave no log probabilities"
NO_TEXT = "the answer has no text that a schema holds for"
BY_SAMPLES = "told by all samples of the row: see `batchchat export --vote`"


class Confidence(NamedTuple):
    """How sure an answer is, from 0 to 1, or None with a `reason`. `fields` has each field's own value, by its name."""

    value: float | None
    method: Method
    reason: str | None = None
    fields: tuple[tuple[str, float], ...] = ()

    def detail(self) -> dict[str, Any]:
        """Return what stands beside the value in the output."""
        fields = [{"field": name, "confidence": value} for name, value in self.fields]
        return {"method": self.method, "reason": self.reason, "fields": fields}


@dataclass(frozen=True, slots=True)
class ChoiceField:
    """A field that holds one of a few values: where it is, and the values as JSON texts."""

    path: FieldPath
    alternatives: tuple[str, ...]

    @property
    def name(self) -> str:
        """Return its dotted name; `parsed` for an answer that is the value itself."""
        return ".".join(self.path) or "parsed"


def choice_fields(schema: Schema) -> tuple[ChoiceField, ...]:
    """Return the fields of a schema that are enums or booleans, also nullable ones, at any depth of objects.

    Items of arrays are left out: an answer may hold any number of them.
    """
    found: list[ChoiceField] = []
    for path, inner in _members(schema, schema, (), 0):
        alternatives = _alternatives(schema, inner, 0)
        # One possible value says nothing: the model had no choice.
        if alternatives is not None and len(alternatives) > 1:
            found.append(ChoiceField(path, tuple(dict.fromkeys(alternatives))))
        if len(found) >= MAX_FIELDS:
            break
    return tuple(found)


def is_number_field(schema: Schema, path: FieldPath) -> bool:
    """Tell whether a schema has a field at this path that may be a number."""
    for found, inner in _members(schema, schema, (), 0):
        if found == path:
            kinds = {kind for part in _parts(schema, inner, 0) for kind in _types(part)}
            return bool(kinds & {"number", "integer"})
    return False


def field_names(schema: Schema) -> list[str]:
    """Return the dotted names of a schema's fields, for messages."""
    return [".".join(path) for path, _ in _members(schema, schema, (), 0) if path][:MAX_FIELDS]


def _members(root: Schema, schema: Any, path: FieldPath, level: int) -> Iterator[tuple[FieldPath, Schema]]:
    """Yield a schema and the properties in it, at any depth, with their paths."""
    if not isinstance(schema, Mapping) or level > _MAX_LEVELS:
        return
    yield path, schema
    for part in _parts(root, schema, 0):
        properties = part.get("properties")
        if isinstance(properties, Mapping):
            for name, inner in properties.items():
                yield from _members(root, inner, (*path, name), level + 1)


def _parts(root: Schema, schema: Any, level: int) -> Iterator[Schema]:
    """Yield a schema and those that it is made of: what it refers to, `allOf`, and the branches of a union."""
    if not isinstance(schema, Mapping) or level > _MAX_LEVELS:
        return
    yield schema
    if isinstance(schema.get("$ref"), str):
        yield from _parts(root, resolve(root, schema["$ref"]), level + 1)
    for keyword in ("allOf", "anyOf", "oneOf"):
        for part in schema.get(keyword) or ():
            yield from _parts(root, part, level + 1)


def _alternatives(root: Schema, schema: Any, level: int) -> list[str] | None:
    """Return the values that a schema allows, as JSON texts; None if they are not a short list."""
    if not isinstance(schema, Mapping) or level > _MAX_LEVELS:
        return None
    found: list[str] | None = None
    kinds = _types(schema)
    if "const" in schema:
        found = _scalars([schema["const"]])
    elif isinstance(schema.get("enum"), list):
        found = _scalars(schema["enum"])
    elif branches := schema.get("anyOf") or schema.get("oneOf"):
        known = [_alternatives(root, part, level + 1) for part in branches]
        found = [text for texts in known if texts for text in texts] if all(known) else None
    elif kinds and kinds <= {"boolean", "null"}:
        found = ["true", "false"] * ("boolean" in kinds) + ["null"] * ("null" in kinds)
    elif isinstance(schema.get("$ref"), str):
        found = _alternatives(root, resolve(root, schema["$ref"]), level + 1)
    else:
        parts = (_alternatives(root, part, level + 1) for part in schema.get("allOf") or ())
        found = next((part for part in parts if part is not None), None)
    return found


def _types(schema: Schema) -> set[str]:
    kinds = schema.get("type")
    return {kinds} if isinstance(kinds, str) else {kind for kind in kinds or () if isinstance(kind, str)}


def _scalars(values: Sequence[Any]) -> list[str] | None:
    # A list or an object has many spellings, so its tokens cannot be compared with one.
    if any(isinstance(value, list | Mapping) for value in values):
        return None
    return [json.dumps(value, ensure_ascii=False) for value in values]


# --- the three methods


class ConfidenceRule:
    """How a job measures the confidence of its answers. Holds no state between answers; threads may share it.

    `field` is the path of what the model says of itself, for the method `field`.
    """

    def __init__(self, method: Method, fields: Sequence[ChoiceField], field: FieldPath = ()) -> None:
        self.method: Method = method
        self._fields = tuple(fields)
        self._field = field

    def measure(self, text: str | None, parsed: Any, logprobs: Sequence[Mapping[str, Any]] | None) -> Confidence:
        """Measure an answer that fits its schema. Never raises; takes time linear in the answer."""
        if self.method == "samples":
            # One sample cannot tell it, and the others may come later: it is counted when the dataset is read.
            return Confidence(None, "samples", BY_SAMPLES)
        if self.method == "field":
            return self._said(parsed)
        if not logprobs:
            return Confidence(None, "logprobs", NO_LOGPROBS)
        if not text:
            return Confidence(None, "logprobs", NO_TEXT)
        return self._measured(text, logprobs)

    def _said(self, parsed: Any) -> Confidence:
        name = ".".join(self._field)
        value = parsed
        for step in self._field:
            value = value.get(step) if isinstance(value, Mapping) else None
        if value is None:
            return Confidence(None, "field", f"{name} is null")
        if isinstance(value, bool) or not isinstance(value, int | float):
            return Confidence(None, "field", f"{name} is no number")
        if not 0 <= value <= 1:
            return Confidence(None, "field", f"{name} is {value:g}, which is not from 0 to 1")
        return Confidence(float(value), "field", None, ((name, float(value)),))

    def _measured(self, text: str, logprobs: Sequence[Mapping[str, Any]]) -> Confidence:
        spans = value_spans(text, [field.path for field in self._fields])
        if spans is None:
            return Confidence(None, "logprobs", NO_TEXT)
        tokens = alignment(text, [str(token.get("token") or "") for token in logprobs])
        if tokens is None:
            return Confidence(None, "logprobs", "the tokens do not spell the answer")
        found: list[tuple[str, float]] = []
        for field in self._fields:
            # A field that the answer leaves out has no value to be sure of.
            if field.path in spans:
                value = _probability(text, spans[field.path], field.alternatives, tokens, logprobs)
                if value is None:
                    reason = f"a token of {field.name} has no log probability"
                    return Confidence(None, "logprobs", reason, tuple(found))
                found.append((field.name, value))
        if not found:
            return Confidence(None, "logprobs", "the answer holds none of the fields that are measured")
        return Confidence(min(value for _, value in found), "logprobs", None, tuple(found))


def _probability(
    text: str,
    span: tuple[int, int],
    alternatives: Sequence[str],
    tokens: Sequence[tuple[int, int]],
    logprobs: Sequence[Mapping[str, Any]],
) -> float | None:
    """Return the probability of the value at a span, among the alternatives as far as the tokens show them."""
    start, end = span
    chosen = text[start:end]
    # The value may be spelled in another way than ours (`\\u00e9`): as it stands is how the tokens write it.
    value = json.loads(chosen)
    others = [other for other in alternatives if not _same(json.loads(other), value)]
    if all(other.startswith('"') for other in (chosen, *others)):
        # All are texts: that a quote opens here is no choice. Its end is one if another value goes on.
        start += 1
        inside = chosen[1:-1]
        chosen, others = chosen[1:], [other[1:] for other in others]
        end -= not any(other.startswith(inside) for other in others)
    total = 1.0
    for (first, last), token in zip(tokens, logprobs, strict=True):
        # A token outside the value, or one that writes nothing of the text.
        if last <= start or first >= end or first == last:
            continue
        place = _Place(text[first:start] if first < start else "", text[start:first] if first > start else "")
        share = _share(token, place, chosen, others)
        if share is None:
            return None
        total *= share
    return min(1.0, total)


def _same(left: Any, right: Any) -> bool:
    # Python takes true for 1, and JSON does not.
    return bool(left == right) and isinstance(left, bool) is isinstance(right, bool)


class _Place(NamedTuple):
    """Where a token stands: what it writes before the value, and what of the value stands before the token."""

    lead: str
    written: str


def _share(token: Mapping[str, Any], place: _Place, chosen: str, others: Sequence[str]) -> float | None:
    """Return what a token has of the chance of all tokens that may lead to an alternative; None if it tells none."""
    chance = _chance(token.get("logprob"))
    if chance is None:
        return None
    own, rivals, shown = chance, 0.0, chance
    seen = {token.get("token")}
    for candidate in token.get("top") or ():
        text, other_chance = str(candidate.get("token") or ""), _chance(candidate.get("logprob"))
        if text in seen or other_chance is None:
            continue
        seen.add(text)
        shown += other_chance
        if not text.startswith(place.lead):
            continue  # it writes the JSON around the value in another way, and tells nothing of the value
        begun = place.written + text[len(place.lead) :]
        to_others = any(_leads_to(begun, other) for other in others)
        # The same value in other tokens counts for it; what may still become either counts against it.
        if to_others:
            rivals += other_chance
        elif _leads_to(begun, chosen):
            own += other_chance
    # What is not shown may lead to alternatives: only what is shown to lead to none is taken away.
    whole = own + rivals + max(0.0, 1.0 - shown)
    return own / whole if whole > 0 else 0.0


def _leads_to(begun: str, value: str) -> bool:
    """Tell whether a text that was begun can become this value, or has gone past it."""
    if value.startswith(begun):
        return True
    rest = begun[len(value) :] if begun.startswith(value) else None
    # A number or a word goes on with a letter or a digit; then it is another value.
    return rest is not None and (value.endswith('"') or not (rest[0].isalnum() or rest[0] in "._-"))


def _chance(logprob: object) -> float | None:
    if isinstance(logprob, bool) or not isinstance(logprob, int | float) or math.isnan(logprob):
        return None
    return math.exp(min(float(logprob), 0.0))
