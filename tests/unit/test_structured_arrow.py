"""The typed column: which type a schema gives, and that what was answered comes back from it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from batchchat.structured import (
    Misfit,
    ParsedColumn,
    SchemaError,
    load_schema,
    parsed_field,
    type_change_message,
    type_changes,
)
from batchchat.structured.arrow import JSON_METADATA
from tests.thorough import examples

TEXT = {"type": "string"}
WHOLE = {"type": "integer"}


def told(field: pa.Field) -> Any:
    """Write a field's type as plain values, `json` for JSON text."""
    if field.metadata == JSON_METADATA:
        return "json"
    if pa.types.is_struct(field.type):
        return {inner.name: told(inner) for inner in field.type}
    if pa.types.is_list(field.type):
        return [told(field.type.value_field)]
    return str(field.type)


def record(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


TREE = {**record(value=WHOLE, children={"type": "array", "items": {"$ref": "#"}})}
POINT = record(x={"type": "number"}, y={"type": "number"})


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (TEXT, "string"),
        (WHOLE, "int64"),
        ({"type": "number"}, "double"),
        ({"type": "boolean"}, "bool"),
        ({"type": "string", "format": "date-time"}, "string"),
        ({"enum": ["a", "b", None]}, "string"),
        ({"enum": [1, 2]}, "int64"),
        ({"enum": [1, 2.5]}, "double"),
        ({"enum": [True]}, "bool"),
        ({"enum": ["a", 1]}, "json"),
        ({"const": "a"}, "string"),
        ({"const": None}, "json"),
        ({"type": "null"}, "json"),
        ({"type": ["string", "null"]}, "string"),
        ({"type": ["integer", "number", "null"]}, "double"),
        ({"type": ["string", "integer"]}, "json"),
        ({"anyOf": [WHOLE, {"type": "null"}]}, "int64"),
        ({"oneOf": [{"type": "null"}, POINT]}, {"x": "double", "y": "double"}),
        ({"anyOf": [WHOLE, {"type": "number"}]}, "double"),
        ({"oneOf": [{"const": "a", "title": "A"}, {"const": "b"}]}, "string"),
        ({"anyOf": [TEXT, WHOLE]}, "json"),
        ({"anyOf": [TEXT, {}]}, "json"),
        ({"anyOf": [{"type": "null"}]}, "json"),
        ({"type": "string", "anyOf": [{"pattern": "a"}, {"maxLength": 1}]}, "string"),
        ({"type": "array", "items": TEXT}, ["string"]),
        ({"type": "array"}, ["json"]),
        ({"type": "array", "prefixItems": [TEXT, WHOLE]}, "json"),
        ({"$schema": "http://json-schema.org/draft-07/schema#", "type": "array", "items": [TEXT]}, "json"),
        ({"type": "array", "items": False}, "json"),
        (POINT, {"x": "double", "y": "double"}),
        (record(b=TEXT, a=WHOLE), {"b": "string", "a": "int64"}),
        (record(a={}, b=True), {"a": "json", "b": "json"}),
        (record(a=False, b=TEXT), {"b": "string"}),
        (record(a=False), "json"),
        ({"type": "object"}, "json"),
        ({"type": "object", "additionalProperties": WHOLE}, "json"),
        ({}, "json"),
        ({"type": "integer", "minimum": 0, "maximum": 2**63 - 1}, "int64"),
        ({"type": "integer", "exclusiveMaximum": 2**63}, "int64"),
        ({"type": "integer", "maximum": 2**63}, "json"),
        ({"type": "integer", "minimum": -(2**63) - 1}, "json"),
        ({"enum": [1, 2**64]}, "json"),
        ({**record(a={"$ref": "#/$defs/p~1q"}), "$defs": {"p/q": POINT}}, {"a": {"x": "double", "y": "double"}}),
        ({**record(a={"$ref": "#p"}), "$defs": {"p": {"$anchor": "p", **TEXT}}}, {"a": "string"}),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, "json"),
        (TREE, {"value": "int64", "children": ["json"]}),
        ({"allOf": [record(a=TEXT), record(b=WHOLE)]}, {"a": "string", "b": "int64"}),
        ({"type": "object", "allOf": [{"required": ["x"]}, POINT]}, {"x": "double", "y": "double"}),
        ({"allOf": [record(a=TEXT), record(a=WHOLE)]}, "json"),
        ({"allOf": [record(a=TEXT), {"type": "object", "additionalProperties": WHOLE}]}, "json"),
        ({"allOf": [{"type": "number"}, WHOLE]}, "int64"),
        ({"allOf": [TEXT, {"minLength": 3}]}, "string"),
        ({**record(kind=TEXT), "anyOf": [record(a=TEXT), record(b=TEXT)]}, "json"),
        ({**record(kind=TEXT), "anyOf": [{"required": ["kind"]}, {"maxProperties": 0}]}, {"kind": "string"}),
        ({**record(kind=TEXT), "if": {}, "then": record(extra=TEXT)}, "json"),
        ({**TEXT, "if": {"minLength": 3}, "then": {"pattern": "a"}}, "string"),
        (record(**{"a.b": TEXT, "$ref": TEXT, " ": TEXT}), {"a.b": "string", "$ref": "string", " ": "string"}),
        (record(a=record(**{"": TEXT, "b": TEXT})), {"a": "json"}),
    ],
)
def test_a_schema_decides_the_type(schema: dict[str, Any], expected: Any) -> None:
    field = load_schema(schema, folder=Path()).field
    assert field.name == "parsed"
    assert told(field) == expected
    assert field.equals(load_schema(schema, folder=Path()).field, check_metadata=True)


def test_properties_that_differ_only_in_case_are_refused_where_they_would_be_columns() -> None:
    with pytest.raises(SchemaError, match=r"\$\.properties\.in: the properties 'Id' and 'ID' differ only in case"):
        parsed_field(record(**{"in": record(Id=TEXT, ID=TEXT)}))
    with pytest.raises(SchemaError, match="differ only in case"):
        parsed_field({"allOf": [record(a=TEXT), record(A=TEXT)]})
    twice = {"anyOf": [record(a=TEXT), record(A=TEXT)]}
    assert told(parsed_field(twice)) == "json"


def test_a_type_too_large_or_too_deep_for_a_column_is_refused() -> None:
    layers = {f"l{n}": record(a={"$ref": f"#/$defs/l{n + 1}"}, b={"$ref": f"#/$defs/l{n + 1}"}) for n in range(20)}
    with pytest.raises(SchemaError, match="more than 5000 fields"):
        parsed_field({"$ref": "#/$defs/l0", "$defs": {**layers, "l20": TEXT}})
    chain = {f"l{n}": record(a={"$ref": f"#/$defs/l{n + 1}"}) for n in range(40)}
    with pytest.raises(SchemaError, match="more than 60 levels"):
        parsed_field({"$ref": "#/$defs/l0", "$defs": {**chain, "l40": TEXT}})


@pytest.mark.parametrize(
    ("schema", "value", "path", "reason"),
    [
        (WHOLE, 2**63, (), "beyond 64 bits"),
        (record(a={"type": "array", "items": WHOLE}), {"a": [1, -(2**63) - 1]}, ("a", 1), "beyond 64 bits"),
        (WHOLE, 1e300, (), "beyond 64 bits"),
        ({"type": "number"}, 10**400, (), "too large"),
        ({"properties": {"a": TEXT}}, "text", (), "no object"),
        ({"items": TEXT}, {}, (), "no array"),
        ({"items": TEXT}, [1], (0,), "not text"),
        (WHOLE, True, (), "not a whole number"),
        ({"type": "number"}, "1", (), "not a number"),
        ({"type": "boolean"}, 1, (), "not true or false"),
    ],
)
def test_what_the_column_cannot_hold_is_refused_rather_than_changed(
    schema: dict[str, Any], value: Any, path: tuple[str | int, ...], reason: str
) -> None:
    with pytest.raises(Misfit, match=reason) as caught:
        ParsedColumn(parsed_field(schema)).convert(value)
    assert caught.value.path == path


def test_values_take_the_columns_form() -> None:
    def through(schema: dict[str, Any], value: Any) -> Any:
        column = ParsedColumn(parsed_field(schema))
        return column.array([column.convert(value)]).to_pylist()[0]

    assert through(WHOLE, 3.0) == 3
    assert type(through({"type": "number"}, 3)) is float
    assert through(record(a=TEXT, b=TEXT), {"b": "x", "more": 1}) == {"a": None, "b": "x"}
    assert through(record(a={}), {"a": {"é": [1, 2**70]}}) == {"a": '{"é":[1,1180591620717411303424]}'}
    assert through(record(a={}), {"a": None}) == {"a": None}
    assert through({"anyOf": [TEXT, WHOLE]}, "x") == '"x"'


@dataclass
class Node:
    """A schema, values that it allows, and what comes back for one of them."""

    schema: dict[str, Any]
    values: st.SearchStrategy[Any]
    comes_back: Callable[[Any], Any]


def as_is(value: Any) -> Any:
    return value


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
free = st.recursive(
    st.booleans() | st.integers() | texts, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner)
)
floats = st.floats(allow_nan=False, allow_infinity=False)
names = st.lists(
    st.text("abcÀé .\"'$/", min_size=1, max_size=4), min_size=1, max_size=4, unique_by=lambda name: name.lower()
)  # fmt: skip


def json_text(value: Any) -> Any:
    return None if value is None else ("json", json.dumps(value, sort_keys=True))


@st.composite
def leaves(draw: st.DrawFn) -> Node:
    labels = draw(st.lists(texts, min_size=1, max_size=3, unique=True))
    return draw(
        st.sampled_from(
            [
                Node({"type": "string"}, texts, as_is),
                Node({"type": "string", "enum": labels}, st.sampled_from(labels), as_is),
                Node({"const": labels[0]}, st.just(labels[0]), as_is),
                Node({"type": "integer"}, st.integers(-(2**63), 2**63 - 1), as_is),
                Node({"type": "integer", "maximum": 2**80}, st.integers(-(2**90), 2**80), json_text),
                Node({"type": "number"}, floats | st.integers(-(2**70), 2**70), float),
                Node({"type": "boolean"}, st.booleans(), as_is),
                Node({"anyOf": [{"type": "string"}, {"type": "integer"}]}, texts | st.integers(), json_text),
                Node({"type": "object"}, st.dictionaries(texts, free, max_size=2), json_text),
            ]
        )
    )


def nullable(node: Node, how: str) -> Node:
    if "anyOf" in node.schema or "oneOf" in node.schema:
        how = "anyOf"  # null may be allowed already, and oneOf would then allow it no more
    schema = {how: [node.schema, {"type": "null"}]}
    return Node(schema, st.none() | node.values, lambda value: None if value is None else node.comes_back(value))


@st.composite
def lists(draw: st.DrawFn, inner: st.SearchStrategy[Node]) -> Node:
    item = draw(inner)
    schema = {"type": "array", "items": item.schema}
    return Node(schema, st.lists(item.values, max_size=3), lambda value: [item.comes_back(one) for one in value])


@st.composite
def objects(draw: st.DrawFn, inner: st.SearchStrategy[Node]) -> Node:
    fields = {name: draw(inner) for name in draw(names)}
    required = [name for name in fields if draw(st.booleans())]
    schema = {"type": "object", "properties": {n: f.schema for n, f in fields.items()}, "required": required}
    values = st.fixed_dictionaries(
        {name: fields[name].values for name in required},
        optional={name: field.values for name, field in fields.items() if name not in required},
    )

    def comes_back(value: Any) -> Any:
        return {name: field.comes_back(value[name]) if name in value else None for name, field in fields.items()}

    return Node(schema, values, comes_back)


nodes = st.recursive(
    leaves(),
    lambda inner: lists(inner) | objects(inner) | st.builds(nullable, inner, st.sampled_from(["anyOf", "oneOf"])),
    max_leaves=6,
)


def opened(value: Any, field: pa.Field) -> Any:
    """Read JSON text in what came back, wherever the field says that it is some."""
    if value is None:
        return None
    if field.metadata == JSON_METADATA:
        return json_text(json.loads(value))
    if pa.types.is_struct(field.type):
        return {inner.name: opened(value[inner.name], inner) for inner in field.type}
    return [opened(item, field.type.value_field) for item in value] if pa.types.is_list(field.type) else value


def through_defs(node: Node) -> dict[str, Any]:
    """The same schema behind a reference."""
    return {"$ref": "#/$defs/answer", "$defs": {"answer": node.schema}}


@examples(100, suppress_health_check=[HealthCheck.too_slow])
@given(nodes, st.data())
def test_valid_answers_come_back_as_they_were(node: Node, data: st.DataObject) -> None:
    response = load_schema(through_defs(node), folder=Path())
    assert told(response.field) == told(load_schema(node.schema, folder=Path()).field)
    answers = data.draw(st.lists(node.values, max_size=4))
    read = [response.validator.read(json.dumps(answer, ensure_ascii=False)) for answer in answers]
    assert [answer.errors for answer in read] == [()] * len(answers)
    array = response.column.array([None, *(answer.parsed for answer in read)])
    assert array.type.equals(response.field.type)
    back = [opened(value, response.field) for value in array.to_pylist()]
    assert back == [None, *(node.comes_back(answer) if answer is not None else None for answer in answers)]


@examples(15, suppress_health_check=[HealthCheck.too_slow])
@given(objects(nodes), st.data())
def test_parquet_and_duckdb_hold_the_same(node: Node, data: st.DataObject) -> None:
    response = load_schema(node.schema, folder=Path())
    answers = [None, *data.draw(st.lists(node.values, min_size=1, max_size=3))]
    column = response.column
    array = column.array([column.convert(answer) for answer in answers])
    table = pa.table([array], schema=pa.schema([response.field]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "part.parquet"
        pq.write_table(table, path)
        back = pq.read_table(path)
        assert type_changes(back.schema.field("parsed"), response.field) == []
        assert back.column(0).to_pylist() == array.to_pylist()
        with duckdb.connect() as connection:
            rows = connection.execute("select parsed from read_parquet(?)", [str(path)]).fetchall()
    assert [row[0] for row in rows] == array.to_pylist()


def test_a_label_can_be_counted_in_duckdb(tmp_path: Path) -> None:
    response = load_schema(record(label={"enum": ["a", "b"]}, spans={"type": "array", "items": POINT}), folder=Path())
    values = [{"label": "a", "spans": [{"x": 1, "y": 2}]}, None, {"label": "b", "spans": []}, {"label": "a"}]
    array = response.column.array([response.column.convert(value) for value in values])
    path = tmp_path / "part.parquet"
    pq.write_table(pa.table([array], schema=pa.schema([response.field])), path)
    with duckdb.connect() as connection:
        counted = connection.execute(
            "select parsed.label, count(*), sum(parsed.spans[1].x) from read_parquet(?) "
            "where parsed is not null group by all order by all",
            [str(path)],
        ).fetchall()
    assert counted == [("a", 2, 1.0), ("b", 1, None)]


def test_a_changed_type_is_told_place_by_place() -> None:
    old = parsed_field(record(label=TEXT, items={"type": "array", "items": record(price=WHOLE)}, gone=TEXT))
    new = parsed_field(
        record(label={}, items={"type": "array", "items": record(price={"type": "number"})}, **{"a b": TEXT})
    )
    assert type_changes(old, new) == [
        'parsed["a b"] is new',
        "parsed.gone is gone",
        "parsed.label was text and is JSON text",
        "parsed.items[].price was integer and is number",
    ]
    message = type_change_message(old, new)
    assert message is not None
    assert message.startswith("A schema that changes the type of `parsed` needs --fresh: ")


def test_what_does_not_change_the_type_is_no_change() -> None:
    old = parsed_field(record(label={"enum": ["a"]}, n=WHOLE))
    new = parsed_field({**record(label={"enum": ["a", "b"]}, n={"type": ["integer", "null"]}), "required": ["n"]})
    assert type_changes(old, new) == []
    assert type_change_message(old, new) is None
    assert type_changes(parsed_field(record(a=TEXT, b=TEXT)), parsed_field(record(b=TEXT, a=TEXT))) == [
        "the fields of parsed have another order"
    ]
    assert type_changes(parsed_field(TEXT), parsed_field(record(a=TEXT))) == ["parsed was text and is an object"]
    many = parsed_field(record(**{f"p{n}": TEXT for n in range(9)}))
    assert "and 5 more" in (type_change_message(parsed_field(record(z=TEXT)), many) or "")
