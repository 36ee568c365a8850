"""Why a value does not fit a schema: a walk down the parts of both that do not fit, with little work for each.

A validator that collects all errors of a value tries every branch of every union to its end: in a recursive schema that
takes time exponential in the depth of the value, so that one answer could hold up a run for ever. Whether something
fits is told in linear time. So the walk asks of each part of a value only that, takes the one branch of a union that
was probably meant, and stops after a few reasons.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

import jsonschema_rs

from batchchat.structured.dialect import (
    SchemaError,
    SchemaPlace,
    compile_map,
    compile_schema,
    path_text,
    resolve,
    shorten,
    subschemas,
)

MAX_ERRORS = 10
"""How many reasons are given for one value."""

_MAX_STEPS = 2_000
"""Parts of a value that one walk looks at. Chosen: more than `MAX_ERRORS` reasons need, in a real schema."""
_MOST_FAILING = 20
_UNIONS = ("anyOf", "oneOf")
_PARTS = frozenset(
    (
        *("$ref", "allOf", *_UNIONS, "if", "then", "else", "properties", "patternProperties", "items", "prefixItems"),
        # These look at what all the others say.
        *("unevaluatedItems", "unevaluatedProperties"),
    )
)
"""Keywords that the walk follows, and that say nothing of a value as a whole."""
_OF_ANOTHER_TYPE = 1_000
_ANOTHER_FORM = 5
"""How much a property of one fixed value (a discriminator, mostly) tells against a branch in which it does not fit."""


class _Part(NamedTuple):
    """A part of a schema (its place in the whole) and the part of the value that it is about."""

    schema: Any
    place: SchemaPlace
    value: Any
    path: SchemaPlace


class Checker:
    """A schema, compiled once for many values. Threads may share it: it keeps compiled parts, and nothing of a value.

    Raises SchemaError if it is no schema.
    """

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._root = schema
        self._validator = compile_schema(schema)
        self._map: jsonschema_rs.ValidatorMap | None = None
        self._shells: dict[SchemaPlace, jsonschema_rs.Validator | None] = {}

    def errors(self, value: Any) -> tuple[str, ...]:
        """Say why a JSON value does not fit: at most `MAX_ERRORS` bounded texts, each with a path; none if it fits.

        Takes time linear in the value to see whether it fits.
        """
        try:
            if self._validator.is_valid(value):
                return ()
            walk = _Walk(self, self._root)
            messages = list(dict.fromkeys(islice(walk.reasons(_Part(self._root, (), value, ())), 2 * MAX_ERRORS)))
        except ValueError as error:
            return (shorten(str(error)),)
        if len(messages) > MAX_ERRORS:
            messages[MAX_ERRORS - 1 :] = ["and there is more that does not fit"]
        return tuple(messages)

    def fits(self, place: SchemaPlace, value: Any) -> bool:
        """Return whether a value fits a part of the schema; True if that part cannot be told apart."""
        # Compiled only once an answer fails: most jobs never need it.
        if self._map is None:
            self._map = compile_map(self._root)
        validator = self._map.get("#" + "".join(f"/{_escaped(step)}" for step in place))
        return validator is None or validator.is_valid(value)

    def shell(self, place: SchemaPlace, schema: Mapping[str, Any]) -> jsonschema_rs.Validator | None:
        """Return a validator of what a part of the schema says of a value as a whole, and not of its parts."""
        if place not in self._shells:
            kept = {name: item for name, item in schema.items() if name not in _PARTS and _is_plain(item)}
            kept |= {
                name: dict.fromkeys(schema[name], True)
                for name in ("properties", "patternProperties")
                if isinstance(schema.get(name), Mapping)
            }
            # A schema here judges parts, which the walk does. `false` judges the names, which belongs to the whole.
            if not isinstance(kept.get("additionalProperties", True), bool):
                del kept["additionalProperties"]
            # An `$id` inside would change what references mean; at the root it is needed for them.
            if place:
                kept.pop("$id", None)
            elif "$schema" in self._root:
                kept["$schema"] = self._root["$schema"]
            try:
                self._shells[place] = compile_schema(kept)
            # A part may be no schema by itself. Its reasons are then told by the parts around it.
            except SchemaError:
                self._shells[place] = None
        return self._shells[place]


class _Walk:
    """One walk through one value. Bounded, whatever the schema."""

    def __init__(self, checker: Checker, root: Mapping[str, Any]) -> None:
        self._checker = checker
        self._root = root
        self._steps = 0
        self._open: set[tuple[SchemaPlace, int]] = set()

    def reasons(self, part: _Part) -> Iterator[str]:
        """Yield why a value does not fit a part of the schema."""
        self._steps += 1
        here = (part.place, id(part.value))
        # The same part of the schema at the same value is asked already: a recursion that goes no deeper.
        if self._steps > _MAX_STEPS or here in self._open:
            return
        if not isinstance(part.schema, Mapping):
            yield f"{path_text(part.path)}: nothing is allowed here"
            return
        self._open.add(here)
        found = False
        for reason in self._reasons(part):
            found = True
            yield reason
        # It does not fit, and no single reason was found: an unusual keyword, or the bound on steps.
        if not found:
            yield f"{path_text(part.path)}: the value does not fit"
        self._open.discard(here)

    def _reasons(self, part: _Part) -> Iterator[str]:
        yield from self._own(part)
        for inner in self._failing(part):
            yield from self.reasons(inner)
        for keyword in _UNIONS:
            if keyword in part.schema and not self._fits_union(part, keyword):
                yield from self._union(part, keyword)

    def _own(self, part: _Part) -> Iterator[str]:
        shell = self._checker.shell(part.place, part.schema)
        if shell is not None and not shell.is_valid(part.value):
            for error in shell.iter_errors(part.value):
                yield f"{path_text((*part.path, *error.instance_path))}: {shorten(error.message)}"

    def _union(self, part: _Part, keyword: str) -> Iterator[str]:
        """Yield the reasons of the one branch that was probably meant."""
        branches = [
            _Part(branch, (*part.place, keyword, index), part.value, part.path)
            for index, branch in enumerate(part.schema[keyword])
        ]
        # Each branch fits by itself, so no branch could say what is wrong.
        if keyword == "oneOf" and sum(self._fits(branch) for branch in branches) > 1:
            yield f"{path_text(part.path)}: the value fits more than one of the forms that `oneOf` allows"
            return
        meant = min(branches, key=self._distance)
        # No branch is near. The reasons of any single one would lead the model away from the others.
        if self._distance(meant) >= _OF_ANOTHER_TYPE:
            told = f"the value is not valid under any of the schemas listed in the '{keyword}' keyword"
            yield f"{path_text(part.path)}: {told}"
            return
        yield from self.reasons(meant)

    def _distance(self, branch: _Part) -> int:
        """Return how far a value is from a branch, as far as its own keywords and their direct parts tell."""
        branch = self._followed(branch)
        schema = branch.schema
        if not isinstance(schema, Mapping):
            return 0 if schema else _OF_ANOTHER_TYPE
        shell = self._checker.shell(branch.place, schema)
        failing = list(islice(shell.iter_errors(branch.value), _MOST_FAILING)) if shell is not None else []
        # A form that fails by its outermost type was not meant: `null` beside an object, mostly.
        if any(error.schema_path[-1:] == ["type"] for error in failing):
            return _OF_ANOTHER_TYPE
        inner = [
            _ANOTHER_FORM if _is_fixed(part.schema) else 1 for part in islice(self._failing(branch), _MOST_FAILING)
        ]
        unions = sum(keyword in schema and not self._fits_union(branch, keyword) for keyword in _UNIONS)
        return len(failing) + sum(inner) + unions

    def _followed(self, part: _Part) -> _Part:
        """Return the part that a bare reference leads to."""
        for _ in range(_MOST_FAILING):
            target = self._target(part)
            if target is None or len(part.schema) > 1:
                break
            part = target
        return part

    def _fits(self, part: _Part) -> bool:
        return self._checker.fits(part.place, part.value)

    def _fits_union(self, part: _Part, keyword: str) -> bool:
        fitting = sum(
            self._checker.fits((*part.place, keyword, index), part.value) for index in range(len(part.schema[keyword]))
        )
        return fitting == 1 if keyword == "oneOf" else fitting > 0

    def _failing(self, part: _Part) -> Iterator[_Part]:
        """Yield the parts that do not fit: of the same value (`$ref`, `allOf`, conditions), then those inside it."""
        for inner in self._parts(part):
            if not self._fits(inner):
                yield inner

    def _parts(self, part: _Part) -> Iterator[_Part]:
        schema, place, value, path = part
        target = self._target(part)
        if target is not None:
            yield target
        for index, item in enumerate(schema.get("allOf", ())):
            yield _Part(item, (*place, "allOf", index), value, path)
        if "if" in schema:
            branch = "then" if self._checker.fits((*place, "if"), value) else "else"
            if branch in schema:
                yield _Part(schema[branch], (*place, branch), value, path)
        if isinstance(value, dict):
            yield from self._members(part)
        elif isinstance(value, list):
            yield from self._items(part)

    @staticmethod
    def _members(part: _Part) -> Iterator[_Part]:
        schema, place, value, path = part
        properties = schema.get("properties", {})
        for name, inner in properties.items():
            if name in value:
                yield _Part(inner, (*place, "properties", name), value[name], (*path, name))
        patterns, more = schema.get("patternProperties", {}), schema.get("additionalProperties")
        # Without these, properties that are not named are judged by no schema.
        if not patterns and not isinstance(more, Mapping):
            return
        for name, item in value.items():
            matched = [pattern for pattern in patterns if _matches(pattern, name)]
            for pattern in matched:
                yield _Part(patterns[pattern], (*place, "patternProperties", pattern), item, (*path, name))
            if isinstance(more, Mapping) and not matched and name not in properties:
                yield _Part(more, (*place, "additionalProperties"), item, (*path, name))

    @staticmethod
    def _items(part: _Part) -> Iterator[_Part]:
        schema, place, value, path = part
        items, first = schema.get("items"), schema.get("prefixItems", ())
        if isinstance(items, list):  # as drafts before 2020-12 have it
            items, first, keyword = None, items, "items"
        else:
            keyword = "prefixItems"
        for index, inner in enumerate(first[: len(value)]):
            yield _Part(inner, (*place, keyword, index), value[index], (*path, index))
        if items is not None:
            for index in range(len(first), len(value)):
                yield _Part(items, (*place, "items"), value[index], (*path, index))

    def _target(self, part: _Part) -> _Part | None:
        """Return what the reference of a part of the schema leads to."""
        reference = part.schema.get("$ref") if isinstance(part.schema, Mapping) else None
        if not isinstance(reference, str):
            return None
        target = resolve(self._root, reference)
        place = next((place for place, schema in subschemas(self._root) if schema is target), None)
        return None if place is None else _Part(target, place, part.value, part.path)


def _is_plain(item: Any) -> bool:
    """Return whether a keyword's value holds no reference, so that judging by it is no deep matter."""
    if isinstance(item, Mapping):
        return not {"$ref", "$dynamicRef", "$recursiveRef"}.intersection(item) and all(map(_is_plain, item.values()))
    return not isinstance(item, list) or all(map(_is_plain, item))


def _matches(pattern: str, name: str) -> bool:
    try:
        return re.search(pattern, name) is not None
    except re.error:  # a form that JavaScript has and Python has not
        return False


def _is_fixed(schema: Any) -> bool:
    return isinstance(schema, Mapping) and ("const" in schema or len(schema.get("enum", ())) == 1)


def _escaped(step: str | int) -> str:
    return str(step).replace("~", "~0").replace("/", "~1")
