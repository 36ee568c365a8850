"""Why a value does not fit: always told, at a place that is there, and never in more time than the value is worth."""

from __future__ import annotations

import json
import time
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from batchchat.structured.checker import MAX_ERRORS, Checker
from tests.thorough import examples

TEXT: dict[str, Any] = {"type": "string"}
WHOLE: dict[str, Any] = {"type": "integer"}


def record(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def forms(*kinds: str, children_first: bool = True) -> dict[str, Any]:
    """A recursive schema of objects of several kinds, each with children of any kind."""
    found = []
    for kind in kinds:
        fields = {"children": {"type": "array", "items": {"$ref": "#/$defs/node"}}, "kind": {"const": kind}}
        found.append(record(**(fields if children_first else dict(reversed(fields.items())))))
    return {"$defs": {"node": {"oneOf": found}}, "$ref": "#/$defs/node"}


def nested(depth: int, leaf: Any) -> Any:
    for _ in range(depth):
        leaf = {"kind": "b", "children": [leaf]}
    return leaf


NOT_TEXT = 'the value is not of type "string"'
NOT_WHOLE = 'the value is not of type "integer"'
NO_FORM = "the value is not valid under any of the schemas listed in the 'anyOf' keyword"
TWO_FORMS = "the value fits more than one of the forms that `oneOf` allows"
SMALL = {"properties": {"a": {"maximum": 2}}}
NAMED = {"patternProperties": {"^n_": WHOLE}, "additionalProperties": TEXT}
WHOLE_X = {"$defs": {"x": WHOLE}}


@pytest.mark.parametrize(
    ("schema", "value", "reasons"),
    [
        (record(a=TEXT), {"a": 1}, [f"$.a: {NOT_TEXT}"]),
        (record(a=TEXT), [], ['$: the value is not of type "object"']),
        (record(a=TEXT), {}, ['$: "a" is a required property']),
        ({"properties": {"a": False}}, {"a": 1}, ["$.a: nothing is allowed here"]),
        ({"$ref": "#/$defs/x", **WHOLE_X}, "1", [f"$: {NOT_WHOLE}"]),
        ({"$ref": "#x", "$defs": {"y": {"$anchor": "x", **WHOLE}}}, "1", [f"$: {NOT_WHOLE}"]),
        ({"allOf": [record(a=WHOLE), SMALL]}, {"a": 3}, ["$.a: the value is greater than the maximum of 2"]),
        ({"type": "array", "items": WHOLE}, [1, "x", 2, None], [f"$[1]: {NOT_WHOLE}", f"$[3]: {NOT_WHOLE}"]),
        ({"prefixItems": [TEXT, WHOLE], "items": False}, ["a", 1, 2], ["$[2]: nothing is allowed here"]),
        ({"additionalProperties": WHOLE}, {"a b": "x"}, [f'$["a b"]: {NOT_WHOLE}']),
        (NAMED, {"n_a": "x", "b": "y"}, [f"$.n_a: {NOT_WHOLE}"]),
        (NAMED, {"n_a": 1, "b": 2}, [f"$.b: {NOT_TEXT}"]),
        ({"if": {"required": ["a"]}, "then": {"required": ["b"]}}, {"a": 1}, ['$: "b" is a required property']),
        ({"if": {"required": ["a"]}, "else": {"required": ["b"]}}, {}, ['$: "b" is a required property']),
        ({"oneOf": [{"minimum": 1}, {"minimum": 2}]}, 3, [f"$: {TWO_FORMS}"]),
        ({"anyOf": [{"type": "null"}, record(a=WHOLE)]}, {"a": "x"}, [f"$.a: {NOT_WHOLE}"]),
        ({"anyOf": [TEXT, {"type": "null"}]}, 1, [f"$: {NO_FORM}"]),
        ({"properties": {"a": TEXT}, "unevaluatedProperties": False}, {"b": 1}, ["$: the value does not fit"]),
        ({"contains": {"$ref": "#/$defs/x"}, **WHOLE_X}, ["a"], ["$: the value does not fit"]),
    ],
)
def test_the_reasons_are_those_of_the_part_that_does_not_fit(schema: Any, value: Any, reasons: list[str]) -> None:
    assert list(Checker(schema).errors(value)) == reasons


def test_the_form_that_was_meant_is_told_by_its_fixed_property() -> None:
    checker = Checker(forms("a", "b", "c"))
    found = checker.errors({"kind": "c", "children": [{"kind": "a", "children": [{"kind": "b", "children": 7}]}]})
    assert found == ('$.children[0].children[0].children: the value is not of type "array"',)


@pytest.mark.parametrize("children_first", [False, True])
@pytest.mark.parametrize("leaf", [{"kind": "odd", "children": []}, {"kind": "a"}, "text", 7])
def test_a_wrong_leaf_of_a_deep_answer_is_found_at_once(leaf: Any, children_first: bool) -> None:
    checker = Checker(forms("a", "b", "c", "d", children_first=children_first))
    checker.errors(None)
    started = time.perf_counter()
    found = checker.errors(nested(60, leaf))
    # To try every branch to its end would take longer than the universe is old.
    assert time.perf_counter() - started < 5
    assert found
    assert checker.errors(nested(60, {"kind": "a", "children": []})) == ()


def test_of_very_many_errors_a_few_are_told() -> None:
    items = {"type": "array", "items": {"anyOf": [record(a=TEXT), record(b=TEXT)]}}
    found = Checker(items).errors([{"c": 1}] * 200_000)
    assert len(found) == MAX_ERRORS
    assert found[-1] == "and there is more that does not fit"


def test_references_from_one_to_the_next_are_followed_to_their_end() -> None:
    union = {"anyOf": [{"$ref": "#/$defs/b"}, {"type": "null"}]}
    schema = {"$defs": {"a": union, "b": {"allOf": [{"$ref": "#/$defs/c"}]}, "c": record(a=WHOLE)}, "$ref": "#/$defs/a"}
    assert Checker(schema).errors({"a": "x"}) == (f"$.a: {NOT_WHOLE}",)


LEAVES: list[Any] = [TEXT, WHOLE, {"type": "null"}, {"enum": ["a", 1]}, {"const": "a"}, True, False, {}]
NAMES = ["a", "b~/ %", 'c"', "d"]
schemas = st.recursive(
    st.sampled_from(
        [TEXT, WHOLE, {"type": "null"}, {"enum": ["a", 1]}, {"const": "a"}, True, False, {"$ref": "#/$defs/d"}, {}]
    ),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"anyOf": parts}),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"oneOf": parts}),
        st.lists(inner, min_size=1, max_size=2).map(lambda parts: {"allOf": parts}),
        inner.map(lambda part: {"type": "array", "items": part}),
        st.dictionaries(st.sampled_from(NAMES[:3]), inner, max_size=3).map(
            lambda fields: {"type": "object", "properties": fields, "additionalProperties": False}
        ),
        inner.map(lambda part: {"type": "object", "additionalProperties": part}),
        inner.map(lambda part: {"not": part}),
    ),
    max_leaves=8,
)
answers = st.recursive(
    st.sampled_from(["a", 1, None, 1.5, True]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b~/ %", 'c"', "d"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@examples(80, suppress_health_check=[HealthCheck.too_slow])
@given(schemas, schemas, answers)
def test_reasons_are_given_where_and_only_where_a_value_does_not_fit(schema: Any, shared: Any, value: Any) -> None:
    whole = {"$defs": {"d": shared}, "allOf": [schema]}
    found = Checker(whole).errors(value)
    assert bool(found) == (not jsonschema_rs.validator_for(whole).is_valid(value))
    assert len(found) <= MAX_ERRORS
    assert all(reason.startswith("$") for reason in found)
    json.dumps(found)
