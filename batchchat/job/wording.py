"""What is wrong with a field, in the words of a person who writes a job file."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from batchchat.dataclass import dataclass
from batchchat.errors import JobError
from batchchat.job.model import FIELDS
from batchchat.job.origin import FieldPlace, Origins, job_error
from batchchat.job.secret_names import is_secret_name
from batchchat.job.values import nearest

_NOUNS = {
    "string_type": "a text",
    "list_type": "a list",
    "dict_type": "a mapping of names to values",
    "model_type": "a mapping of fields",
    "model_attributes_type": "a mapping of fields",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
}
_BOUNDS = {
    "greater_than": ("more than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}
_EXAMPLES: Mapping[FieldPlace, str] = {
    ("name",): "name: label-tickets",
    ("input",): "input: rows.jsonl",
    ("output",): "output: out/label-tickets",
    ("provider",): "provider: demo",
    ("model",): "model: llama-3.1-8b-instruct",
    ("messages",): 'messages: [{role: user, content: "{{ text }}"}]',
    ("input", "path"): "path: rows.jsonl",
    ("output", "path"): "path: out/label-tickets",
    ("prices", "input"): "input: 0.15",
    ("prices", "output"): "output: 0.35",
    ("prices", "currency"): "currency: EUR",
}
_PATTERNS: Mapping[FieldPlace, str] = {
    ("name",): "must begin with a letter or digit and go on with up to 99 letters, digits, dots, _ or -",
    ("response", "name"): "must be 1 to 64 letters, digits, _ or -",
    ("prices", "currency"): "must be a currency's three capital letters, such as EUR",
}
_HINTS = {
    "stream": "it is one of the params: write params.stream",
    "rpm": "write requests_per_minute",
    "tpm": "write tokens_per_minute",
    "on_truncated": "write truncated",
}


@dataclass(frozen=True, slots=True)
class Grammar:
    """What a kind of file may hold: the section at each place, and words for what is missing or misspelt there.

    `examples` show a field that is missing, `patterns` say what a text must look like, `hints` what to write instead
    of a field that does not exist.
    """

    fields: Mapping[tuple[str, ...], type[BaseModel]]
    examples: Mapping[FieldPlace, str] = field(default_factory=dict)
    patterns: Mapping[FieldPlace, str] = field(default_factory=dict)
    hints: Mapping[str, str] = field(default_factory=dict)

    def names(self, place: FieldPlace) -> list[str]:
        """Return the field names that may stand at a place, as they are written."""
        section = self.fields.get(tuple(str(part) for part in place if not isinstance(part, int)))
        return [one.alias or name for name, one in section.model_fields.items()] if section else []

    def elsewhere(self, name: str) -> list[str]:
        """Return the places in dotted form at which a field of this name may stand."""
        return [".".join((*place, name)) for place in self.fields if name in self.names(place)]


JOB_GRAMMAR = Grammar(FIELDS, _EXAMPLES, _PATTERNS, _HINTS)
_UNSHOWN = frozenset({"headers", "extra_query", "extra_body", "base_url"})


def validation_errors(
    error: ValidationError,
    data: Mapping[str, Any],
    origins: Origins,
    file: Path | None,
    *,
    grammar: Grammar = JOB_GRAMMAR,
    at: FieldPlace = (),
) -> list[JobError]:
    """Turn pydantic's findings into one error for each place, the most telling one.

    `data` is what was validated, and stands at the place `at` of the file.
    """
    found: dict[FieldPlace, list[Mapping[str, Any]]] = {}
    for item in error.errors(include_url=False):
        found.setdefault(_place(item, data, grammar), []).append(item)
    return [
        job_error(_message(items, place, grammar), (*at, *place), origins, file)
        for place, items in found.items()
        # Of a union's members, the one that was meant complains deeper inside.
        if not any(len(other) > len(place) and other[: len(place)] == place for other in found)
    ]


def _place(error: Mapping[str, Any], data: Mapping[str, Any], grammar: Grammar) -> FieldPlace:
    """pydantic's location without the parts that name a union's member."""
    place: list[Any] = []
    value: Any = data
    for part in error["loc"]:
        if isinstance(value, dict):
            if part in value or part in grammar.names(tuple(place)):
                place.append(part)
                value = value.get(part)
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            place.append(part)
            value = value[part]
    return tuple(place)


def _message(items: Sequence[Mapping[str, Any]], place: FieldPlace, grammar: Grammar) -> str:
    # A union's members each say that the value is not of their type; what is not about types says more.
    telling = [item for item in items if item["type"] not in _NOUNS]
    if telling:
        item = telling[0]
        return _SENTENCES.get(item["type"], _in_its_own_words)(item, place, grammar)
    if place[:1] == ("messages",):
        return f"must be a message such as {{role: user, content: …}}{_instead(items[0], place)}"
    nouns = dict.fromkeys(_NOUNS[item["type"]] for item in items)
    return f"must be {' or '.join(nouns)}{_instead(items[0], place)}"


def _missing(_: Mapping[str, Any], place: FieldPlace, grammar: Grammar) -> str:
    example = grammar.examples.get(place)
    return f"is missing; for example `{example}`" if example else "is missing"


def _unknown(_: Mapping[str, Any], place: FieldPlace, grammar: Grammar) -> str:
    name, section = str(place[-1]), place[:-1]
    known = grammar.names(section)
    if is_secret_name(name):
        return "is not a field: a key never stands in a job; name its place in provider.api_key_env or api_key_file"
    if name in grammar.hints:
        return f"is not a field: {grammar.hints[name]}"
    near = nearest(name, known)
    elsewhere = grammar.elsewhere(name)
    # A field that is right in another section was moved there by mistake more likely than misspelt.
    if elsewhere and not near:
        return f"is not a field here: write {' or '.join(elsewhere)}"
    return f"is not a field{near}; known are {', '.join(known)}"


def _bound(item: Mapping[str, Any], place: FieldPlace, _: Grammar) -> str:
    words, name = _BOUNDS[item["type"]]
    return f"must be {words} {item['ctx'][name]:.15g}{_instead(item, place)}"


def _choice(item: Mapping[str, Any], place: FieldPlace, _: Grammar) -> str:
    expected = str(item["ctx"]["expected"])
    near = nearest(str(item.get("input"))[:80], re.findall(r"'([^']*)'", expected))
    return f"must be {expected}{_instead(item, place)}{near}"


def _pattern(item: Mapping[str, Any], place: FieldPlace, grammar: Grammar) -> str:
    return f"{grammar.patterns.get(place, 'is not of the form that is needed')}{_instead(item, place)}"


def _in_its_own_words(item: Mapping[str, Any], _: FieldPlace, __: Grammar) -> str:
    text = str(item["msg"])
    return text[:1].lower() + text[1:]


_SENTENCES: Mapping[str, Callable[[Mapping[str, Any], FieldPlace, Grammar], str]] = {
    "missing": _missing,
    "extra_forbidden": _unknown,
    "value_error": lambda item, *_: str(item["ctx"]["error"]),
    **dict.fromkeys(_BOUNDS, _bound),
    "literal_error": _choice,
    "enum": _choice,
    "string_pattern_mismatch": _pattern,
    "string_too_short": lambda *_: "must not be empty",
    "too_short": lambda item, *_: (
        "must not be empty" if item["ctx"]["min_length"] == 1 else f"needs at least {item['ctx']['min_length']} entries"
    ),
    "string_too_long": lambda item, *_: f"must not be longer than {item['ctx']['max_length']} characters",
}


def _instead(item: Mapping[str, Any], place: FieldPlace) -> str:
    """`, not 3`: what stands there, where it is short and cannot be a secret."""
    shown = item.get("input")
    # Keys are often put where they do not belong: no message repeats what stands there.
    if any(str(part) in _UNSHOWN or is_secret_name(str(part)) for part in place):
        return ""
    if shown is None:
        return ", and it is empty"
    if not isinstance(shown, str | int | float):
        return ", not a list" if isinstance(shown, list) else ", not a mapping" if isinstance(shown, dict) else ""
    try:
        text = json.dumps(shown, ensure_ascii=False)
    except ValueError:
        text = "a number of thousands of digits"
    if len(text) > 80:
        text = text[:80] + "…"
    quotes = ": put it in quotes" if item["type"] == "string_type" else ""
    return f", not {text}{quotes}"
