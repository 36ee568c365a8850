"""What is known to go wrong with structured output, told by `plan` before money is spent.

The rules are from vendors' documentation: OpenAI's strict mode (objects closed, all properties required, an object at
the root, a subset of the keywords), Scaleway's notes on structured output (endless whitespace until the gateway's
timeout, worse at temperature 0; answers cut by a low `max_tokens`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from batchchat.structured.arrow import ParsedColumn
from batchchat.structured.dialect import (
    KEYWORDS,
    UNENFORCED,
    SchemaPlace,
    nearest_keyword,
    path_text,
    resolve,
    subschemas,
)
from batchchat.structured.schema import Mode, ResponseSchema

_LONG_ANSWER = 1_000
"""From this `max_tokens` on, endless white space costs more than the answer. Chosen."""
_CHARACTERS_A_TOKEN = 3
"""JSON takes more tokens than prose (4 characters each): brackets and quotes are tokens too. Chosen, not measured."""
_ROOM = 2
_PLACES = 3
_MAX_SKETCH = 2_000
"""Steps of one sketch. Chosen: real schemas take under 500."""


def warnings_for(
    response: ResponseSchema,
    *,
    mode: Mode,
    provider: str,
    max_tokens: int | None,
    temperature: float | None,
) -> list[str]:
    """Warn of what is known to fail, one text each, without sending anything.

    `provider` is the profile's name; `max_tokens` bounds the answer (whichever param sets it), in tokens. None if
    unset or different from row to row.
    """
    warnings = _form_warnings(response.schema, mode)
    warnings += _keyword_warnings(response.schema, mode)
    warnings += _column_warnings(response.column)
    needed = answer_tokens(response.schema)
    # The sketch counts short texts. With less room than twice that, an ordinary answer is cut off.
    if max_tokens is not None and max_tokens < _ROOM * needed:
        warnings.append(
            f"max_tokens {max_tokens} is low: an answer with short texts takes about {needed} tokens, more when it is "
            f"indented, and one that is cut off is no answer; set at least {_ROOM * needed}"
        )
    long = max_tokens is None or max_tokens >= _LONG_ANSWER
    if provider == "scaleway" and temperature == 0 and mode != "prompt" and long:
        bound = "without max_tokens" if max_tokens is None else f"with max_tokens {max_tokens}"
        warnings.append(
            f"temperature 0 {bound} on Scaleway: some models write endless white space in structured output until "
            "the request times out; set a temperature a little above 0 and a max_tokens near what an answer needs"
        )
    return warnings


def _form_warnings(schema: Mapping[str, Any], mode: Mode) -> list[str]:
    warnings: list[str] = []
    root = _followed(schema, schema)
    if mode != "prompt" and not (isinstance(root, Mapping) and root.get("type") == "object"):
        warnings.append(f"the schema's root is not `type: object`: many servers refuse that with {mode}")
    open_objects: list[SchemaPlace] = []
    optional: list[SchemaPlace] = []
    for place, inner in subschemas(schema):
        if not isinstance(inner, Mapping) or not (inner.get("type") == "object" or "properties" in inner):
            continue
        # Strict mode asks for `additionalProperties: false`. The other keyword closes an object just as well for a
        # check.
        if inner.get("additionalProperties") is not False and inner.get("unevaluatedProperties") is not False:
            open_objects.append(place)
        required = inner.get("required", ())
        optional += [(*place, "properties", name) for name in inner.get("properties", {}) if name not in required]
    if open_objects:
        warnings.append(
            f"additionalProperties is not false at {_told(open_objects)}: models may add properties, which `parsed` "
            "has no field for, and the schema is sent without `strict`; set it to false "
            '(in a Pydantic model: `model_config = ConfigDict(extra="forbid")`)'
        )
    if optional:
        warnings.append(
            f"not required: {_told(optional)}: models leave such properties out, and the schema is sent without "
            "`strict`; require them, and allow null if there may be nothing to say"
        )
    return warnings


def _keyword_warnings(schema: Mapping[str, Any], mode: Mode) -> list[str]:
    warnings: list[str] = []
    unenforced: list[SchemaPlace] = []
    unknown: list[str] = []
    for place, inner in subschemas(schema):
        if not isinstance(inner, Mapping):
            continue
        unenforced += [(*place, keyword) for keyword in inner if keyword in UNENFORCED]
        for keyword in inner:
            # Names that begin with `x-` are the usual way to leave notes for other tools.
            if keyword not in KEYWORDS and not keyword.startswith("x-"):
                near = nearest_keyword(keyword)
                unknown.append(path_text((*place, keyword)) + (f" (did you mean {near!r}?)" if near else ""))
    if mode == "json_schema" and unenforced:
        warnings.append(
            f"few servers enforce {_told(unenforced)} while they write, and some refuse a schema with it: expect "
            "corrections"
        )
    if unknown:
        more = f" and {len(unknown) - _PLACES} more" if len(unknown) > _PLACES else ""
        warnings.append(f"no keyword of JSON Schema, so nothing checks it: {', '.join(unknown[:_PLACES])}{more}")
    loops = [place for place, inner in subschemas(schema) if _comes_back(schema, inner)]
    if loops:
        warnings.append(
            f"the schema is recursive at {_told(loops)}: `parsed` holds that part as JSON text, and some servers "
            "refuse recursion"
        )
    return warnings


def _column_warnings(column: ParsedColumn) -> list[str]:
    if column.is_json:
        return ["`parsed` will be JSON text: the schema allows no single type of column"]
    return []


def _comes_back(root: Mapping[str, Any], schema: Any) -> bool:
    """Return whether a reference leads to a schema that holds the reference itself, at any remove."""
    if not isinstance(schema, Mapping) or not isinstance(schema.get("$ref"), str):
        return False
    seen: set[int] = set()
    waiting = [resolve(root, schema["$ref"])]
    while waiting:
        target = waiting.pop()
        if not isinstance(target, Mapping) or id(target) in seen:
            continue
        seen.add(id(target))
        for inner_place, inner in subschemas(target):
            # Definitions lie inside the root without being part of what an answer may hold.
            if any(step in {"$defs", "definitions"} for step in inner_place):
                continue
            if inner is schema:
                return True
            if isinstance(inner, Mapping) and isinstance(inner.get("$ref"), str):
                waiting.append(resolve(root, inner["$ref"]))
    return False


def _told(places: list[SchemaPlace]) -> str:
    more = f" and {len(places) - _PLACES} more" if len(places) > _PLACES else ""
    return ", ".join(path_text(place) for place in places[:_PLACES]) + more


def answer_tokens(schema: Mapping[str, Any]) -> int:
    """Estimate the tokens of a plain answer: names and punctuation, short texts, two items a list, no indentation."""
    return -(-_Sketch(schema).characters(schema) // _CHARACTERS_A_TOKEN)


class _Sketch:
    """The length of a modest answer. Bounded, for schemas whose parts refer to each other many times over."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._steps = 0
        self._open: list[int] = []

    def characters(self, schema: Any) -> int:
        self._steps += 1
        # Nothing is known of it, or it holds itself: four characters stand for `null` or a short value.
        if not isinstance(schema, Mapping) or id(schema) in self._open or self._steps > _MAX_SKETCH:
            return 4
        self._open.append(id(schema))
        try:
            return self._of(schema)
        finally:
            self._open.pop()

    def _of(self, schema: Mapping[str, Any]) -> int:
        if "const" in schema:
            return len(str(schema["const"])) + 2
        if schema.get("enum"):
            return max(len(str(value)) for value in schema["enum"]) + 2
        if isinstance(schema.get("$ref"), str):
            return self.characters(resolve(self._root, schema["$ref"]))
        for keyword in ("anyOf", "oneOf"):
            if schema.get(keyword):
                return max(self.characters(branch) for branch in schema[keyword])
        own = 0
        if schema.get("properties"):
            own = 2 + sum(len(name) + 4 + self.characters(inner) for name, inner in schema["properties"].items())
        elif "items" in schema or schema.get("type") == "array":
            fewest = schema.get("minItems", 0)
            count = max(min(2, schema.get("maxItems", 2)), fewest if isinstance(fewest, int) else 0)
            own = 2 + count * (1 + self.characters(schema.get("items")))
        elif schema.get("type") == "string":
            own = 2 + min(max(20, schema.get("minLength", 0)), schema.get("maxLength", 1_000_000))
        return sum((self.characters(part) for part in schema.get("allOf", ())), own) or 6


def _followed(root: Mapping[str, Any], schema: Any) -> Any:
    # References may lead in a circle, as `{"$ref": "#"}` does.
    for _ in range(20):
        if not isinstance(schema, Mapping) or not isinstance(schema.get("$ref"), str):
            break
        schema = resolve(root, schema["$ref"])
    return schema
