"""JSON Schema as this package knows it: keywords, local references, compiling, and errors with a place.

A schema here is a mapping of plain JSON values (drafts 4 to 2020-12, the newest if `$schema` says nothing).
References stay inside the schema: nothing is ever fetched.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import unquote

import jsonschema_rs

from batchchat.errors import UsageError

Schema = Mapping[str, Any]
SchemaPlace = tuple[str | int, ...]

_ONE = (
    *("additionalItems", "additionalProperties", "contains", "contentSchema", "else", "if", "items", "not"),
    *("propertyNames", "then", "unevaluatedItems", "unevaluatedProperties"),
)
_MANY = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_NAMED = ("$defs", "definitions", "dependencies", "dependentSchemas", "patternProperties", "properties")
_PLAIN = (
    *("$anchor", "$comment", "$dynamicAnchor", "$dynamicRef", "$id", "$recursiveAnchor", "$recursiveRef", "$ref"),
    *("$schema", "$vocabulary", "const", "contentEncoding", "contentMediaType", "default", "dependentRequired"),
    *("deprecated", "description", "discriminator", "enum", "example", "examples", "exclusiveMaximum"),
    *("exclusiveMinimum", "format", "id", "maxContains", "maxItems", "maxLength", "maxProperties", "maximum"),
    *("minContains", "minItems", "minLength", "minProperties", "minimum", "multipleOf", "pattern", "readOnly"),
    *("required", "title", "type", "uniqueItems", "writeOnly"),
)
KEYWORDS = frozenset((*_ONE, *_MANY, *_NAMED, *_PLAIN))
"""Keywords with a meaning in some draft, and `discriminator`, which Pydantic writes beside a `oneOf`."""

UNENFORCED = frozenset(
    (
        *("$dynamicRef", "$recursiveRef", "allOf", "contains", "dependencies", "dependentRequired", "dependentSchemas"),
        *("else", "if", "maxContains", "maxProperties", "minContains", "minProperties", "not", "patternProperties"),
        *("propertyNames", "then", "unevaluatedItems", "unevaluatedProperties", "uniqueItems"),
    )
)
"""Keywords that generation under a grammar seldom enforces; OpenAI's strict mode refuses most of them."""

_MAX_MESSAGE = 300
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_DATE_TIME = re.compile(
    r"\d{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])[Tt ](?:[01]\d|2[0-3]):[0-5]\d:(?:[0-5]\d|60)(?:\.\d+)?"
    r"(?:[Zz]|[+-](?:[01]\d|2[0-3]):[0-5]\d)?",
    re.ASCII,
)


class SchemaError(UsageError):
    """A schema or tool that cannot be used: `place` is where in it, `reason` why."""

    def __init__(self, reason: str, place: SchemaPlace = (), *, remedy: str | None = None) -> None:
        super().__init__(f"{path_text(place)}: {reason}" if place else reason, remedy=remedy)
        self.reason = reason
        self.place = place


def path_text(place: Sequence[str | int]) -> str:
    """Write a place in a JSON value as a path: `$.items[0].name`, `$["two words"]`."""
    text = "$"
    for step in place:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += f".{step}" if _WORD.fullmatch(step) else f'["{step}"]'
    return shorten(text, 200)


def shorten(text: str, limit: int = _MAX_MESSAGE) -> str:
    """Cut a long text in its middle, so that its beginning and its end stay."""
    if len(text) <= limit:
        return text
    head = (limit - 3) * 2 // 3
    return f"{text[:head]} … {text[len(text) - (limit - 3 - head) :]}"


def subschemas(root: Schema) -> Iterator[tuple[SchemaPlace, Any]]:
    """Walk a schema and all schemas in it (mappings and booleans) from the outside in, each with its place."""
    waiting: list[tuple[SchemaPlace, Any]] = [((), root)]
    while waiting:
        place, schema = waiting.pop()
        yield place, schema
        if not isinstance(schema, Mapping):
            continue
        inner: list[tuple[SchemaPlace, Any]] = []
        for keyword, value in schema.items():
            here = (*place, keyword)
            if keyword in _NAMED and isinstance(value, Mapping):
                inner += [((*here, name), item) for name, item in value.items() if isinstance(item, Mapping | bool)]
            elif keyword in _MANY and isinstance(value, list):
                inner += [((*here, index), item) for index, item in enumerate(value)]
            elif keyword in _ONE and isinstance(value, Mapping | bool):
                inner.append((here, value))
        waiting += reversed(inner)


def resolve(root: Schema, reference: str) -> Any:
    """Return the schema that a local reference (`#`, `#/…`, `#anchor`) names; None if it names nothing."""
    fragment = unquote(reference.removeprefix("#"))
    # A plain name, which some schema in it has as `$anchor`.
    if fragment and not fragment.startswith("/"):
        return next((s for _, s in subschemas(root) if isinstance(s, Mapping) and s.get("$anchor") == fragment), None)
    found: Any = root
    for raw in fragment.split("/")[1:]:
        step = raw.replace("~1", "/").replace("~0", "~")
        if isinstance(found, Mapping):
            found = found.get(step)
        # JSON pointers number the items of a list (RFC 6901, 4), as in `#/anyOf/0`.
        elif isinstance(found, list) and step.isdecimal() and int(step) < len(found):
            found = found[int(step)]
        else:
            return None
    return found


def nearest_keyword(word: str) -> str | None:
    """Return the keyword that a word was probably meant to be."""
    near = difflib.get_close_matches(word, KEYWORDS, n=1, cutoff=0.8)
    return near[0] if near else None


_TYPE_NAMES = ("object", "array", "string", "integer", "number", "boolean", "null")


def compile_schema(schema: Schema) -> jsonschema_rs.Validator:
    """Compile a schema once for many values; SchemaError if it is none, or if a reference leads outside.

    `format` is checked, save that a `date-time` may lack its offset from UTC: models write it so, and Pydantic takes
    it.
    """
    for place, inner in subschemas(schema):
        if isinstance(inner, Mapping):
            _check_references(inner, place)
    try:
        return jsonschema_rs.validator_for(dict(schema), **_OPTIONS)
    except jsonschema_rs.ValidationError as error:
        place = tuple(error.instance_path)
        # The library's own words for an unknown type list all drafts. Ours name the types.
        if place[-1:] == ("type",) or place[-2:-1] == ("type",):
            raise SchemaError(_wrong_type(error.instance), place) from None
        raise SchemaError(f"is not a JSON Schema: {shorten(error.message)}", place) from None
    except (ValueError, RecursionError) as error:
        raise SchemaError(f"is not a JSON Schema: {shorten(str(error))}") from None


def _wrong_type(given: object) -> str:
    names = given if isinstance(given, list) else [given]
    wrong = next((name for name in names if name not in _TYPE_NAMES), given)
    near = difflib.get_close_matches(str(wrong), _TYPE_NAMES, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return f"is not a JSON Schema: {shorten(str(wrong))!r} is no type{hint}; the types are {', '.join(_TYPE_NAMES)}"


def compile_map(schema: Schema) -> jsonschema_rs.ValidatorMap:
    """Compile each part of a schema that `compile_schema` takes by itself; their keys are JSON pointers behind `#`."""
    return jsonschema_rs.validator_map_for(dict(schema), **_OPTIONS)


def _check_references(schema: Schema, place: SchemaPlace) -> None:
    for keyword in ("$ref", "$dynamicRef", "$recursiveRef"):
        reference = schema.get(keyword)
        if isinstance(reference, str) and not reference.startswith("#"):
            raise SchemaError(
                f"refers to {shorten(reference, 100)!r}, outside the schema",
                (*place, keyword),
                remedy="Put what it refers to under $defs and refer to it as #/$defs/NAME.",
            )
    # `$id` with `#` is how drafts before 2019-09 write an anchor.
    if place and isinstance(schema.get("$id"), str) and not schema["$id"].startswith("#"):
        raise SchemaError("an $id inside a schema makes its references ambiguous", (*place, "$id"))


def _refuse(uri: str) -> Any:
    raise ValueError(f"{uri} is outside the schema")


def _is_date_time(text: str) -> bool:
    return _DATE_TIME.fullmatch(text) is not None


_OPTIONS: dict[str, Any] = {
    "mask": "the value",
    "validate_formats": True,
    "formats": {"date-time": _is_date_time},
    "retriever": _refuse,
}
