"""Schemas of answers: where they come from, what a request says of them, and what is warned of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from batchchat.errors import UsageError
from batchchat.structured import Mode, ResponseSchema, SchemaError, load_schema, warnings_for

LABEL: dict[str, Any] = {
    "title": "Ticket label",
    "type": "object",
    "properties": {"label": {"type": "string", "enum": ["billing", "bug"]}, "sure": {"type": "boolean"}},
    "required": ["label", "sure"],
    "additionalProperties": False,
}
HERE = Path()


def loaded(spec: object = LABEL, folder: Path = HERE) -> ResponseSchema:
    return load_schema(spec, folder=folder)


def warned(spec: object, mode: Mode = "json_schema", provider: str = "openai", **facts: Any) -> str:
    facts = {"max_tokens": 500, "temperature": 0.2, **facts}
    return "\n".join(warnings_for(loaded(spec), mode=mode, provider=provider, **facts))


def test_a_schema_comes_from_a_file_beside_the_job(tmp_path: Path) -> None:
    (tmp_path / "label.v2.json").write_text(json.dumps({k: v for k, v in LABEL.items() if k != "title"}))
    response = loaded("label.v2.json", tmp_path)
    assert response.name == "label"
    assert response.source == str(tmp_path / "label.v2.json")
    assert [field.name for field in response.field.type] == ["label", "sure"]
    assert response.validator.read('{"label": "bug", "sure": true}').parsed == {"label": "bug", "sure": True}


def test_a_schema_comes_from_a_pydantic_model_beside_the_job(tmp_path: Path) -> None:
    (tmp_path / "shapes_of_answers.py").write_text(
        "from typing import Literal\n"
        "from pydantic import BaseModel\n"
        "class Order(BaseModel):\n    number: str\n    amount: float | None\n"
        "class Models:\n    class Ticket(BaseModel):\n        label: Literal['a', 'b']\n        orders: list[Order]\n"
        "def broken() -> None: ...\n"
    )
    response = loaded("shapes_of_answers:Models.Ticket", tmp_path)
    assert response.name == "Ticket"
    order = pa.struct([("number", pa.string()), ("amount", pa.float64())])
    assert response.field.type == pa.struct([("label", pa.string()), ("orders", pa.list_(order))])
    answer = response.validator.read('{"label": "a", "orders": [{"number": "7", "amount": null}]}')
    assert answer.ok
    with pytest.raises(SchemaError, match="not a Pydantic model"):
        loaded("shapes_of_answers:broken", tmp_path)
    with pytest.raises(SchemaError, match=r"shapes_of_answers has no Nothing\.Here"):
        loaded("shapes_of_answers:Nothing.Here", tmp_path)


def test_a_module_that_fails_says_how(tmp_path: Path) -> None:
    (tmp_path / "leaves_at_once.py").write_text("raise SystemExit('left')")
    with pytest.raises(SchemaError, match="leaves_at_once cannot be imported: SystemExit: left"):
        loaded("leaves_at_once:Model", tmp_path)
    with pytest.raises(SchemaError, match="no_such_module_here cannot be imported") as caught:
        loaded("no_such_module_here:Model", tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (None, "a schema is a path"),
        ("", "a schema is a path"),
        (["type"], "a schema is a path"),
        ("nowhere.json", "cannot be read: No such file"),
        ({"label": "string"}, "no keyword of one, only label"),
        ({"type": "objekt"}, r"\$\.type: is not a JSON Schema"),
        ({"type": "object", "properties": {"a": {"minLength": "3"}}}, r"\$\.properties\.a\.minLength: is not"),
        ({"type": "string", "pattern": "("}, "regex"),
        ({"$ref": "#/$defs/gone"}, "is not a JSON Schema: .*gone"),
        ({"properties": {"a": {"$ref": "https://example.com/a.json"}}}, r"\$\.properties\.a\[?.*outside the schema"),
        ({"properties": {"a": {"$dynamicRef": "http://127.0.0.1:9/a.json"}}}, "outside the schema"),
        ({"$schema": "https://example.com/own", "type": "object"}, "is not a JSON Schema"),
        ({"$defs": {"a": {"$id": "https://example.com/a"}}}, "ambiguous"),
        ({"properties": {True: {}}}, r"\$\.properties: the name True is not text"),
        ({"type": "number", "maximum": float("inf")}, r"\$\.maximum: inf is nothing that JSON has"),
        ({"const": object}, r"\$\.const: .* is nothing that JSON has"),
        ({"const": 10**400}, "a whole number of more than 300 digits"),
        ({"title": "\ud800", "type": "object"}, "lone surrogate"),
        ({"type": "object", "properties": {"Name": {}, "name": {}}}, "'Name' and 'name' differ only in case"),
    ],
)
def test_what_is_no_schema_is_refused_with_its_place(spec: object, reason: str) -> None:
    with pytest.raises(SchemaError, match=reason) as caught:
        loaded(spec)
    assert isinstance(caught.value, UsageError)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"[1]", "it is a list, not an object"),
        (b"true", "it is a boolean"),
        (b'{"type": "object", "type": "array"}', "the name 'type' is given twice"),
        (b"{'type': 'object'}", "is not JSON"),
        (b"\xff\xfe", "is not UTF-8"),
        (b" " * 1_000_001, "larger than 1 MB"),
    ],
)
def test_a_file_that_holds_no_schema_is_named(tmp_path: Path, data: bytes, reason: str) -> None:
    (tmp_path / "answer.json").write_bytes(data)
    with pytest.raises(SchemaError, match=reason) as caught:
        loaded("answer.json", tmp_path)
    assert "answer.json" in str(caught.value)


def test_values_that_hold_each_other_are_refused_before_they_fill_the_memory() -> None:
    wide: Any = {"type": "string"}
    for _ in range(40):
        wide = {"type": "object", "properties": {"a": wide, "b": wide}}
    with pytest.raises(SchemaError, match="larger than"):
        loaded(wide)
    endless: dict[str, Any] = {"type": "object"}
    endless["not"] = endless
    with pytest.raises(SchemaError, match="deeper than"):
        loaded(endless)


def test_strict_is_asked_for_only_where_servers_take_it() -> None:
    closed = {"type": "object", "additionalProperties": False}
    inner = {**closed, "properties": {"b": {"type": "string"}}, "required": ["b"]}
    whole: dict[str, Any] = {**closed, "properties": {"a": inner, "c": {"enum": ["x"]}}, "required": ["a", "c"]}

    def strict(schema: dict[str, Any]) -> Any:
        return loaded(schema).request_fields("json_schema")["response_format"]["json_schema"]["strict"]

    assert strict(whole) is True
    assert strict({"$ref": "#/$defs/w", "$defs": {"w": whole}}) is True
    for change in (
        {"additionalProperties": True},
        {"required": ["a"]},
        {"minProperties": 1},
        {"type": ["object", "null"]},
        {"properties": {"a": {**inner, "required": []}, "c": {"type": "null"}}},
        {"properties": {"a": True, "c": {"type": "null"}}},
        {"properties": {"a": {}, "c": {"type": "null"}}},
    ):
        assert strict({**whole, **change}) is False
    assert strict({"type": "array", "items": whole}) is False


def test_each_mode_asks_in_its_own_way() -> None:
    response = loaded()
    assert response.request_fields("json_schema") == {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "Ticket_label", "strict": True, "schema": LABEL},
        }
    }
    assert response.request_fields("json_object") == {"response_format": {"type": "json_object"}}
    assert response.request_fields("prompt") == {}
    assert response.instructions("json_schema") is None
    modes: tuple[Mode, ...] = ("json_object", "prompt")
    for mode in modes:
        text = response.instructions(mode)
        assert text is not None
        assert "JSON value" in text
        assert json.loads(text.partition("\n")[2]) == LABEL


def test_the_order_of_properties_is_the_authors() -> None:
    schema = {"type": "object", "properties": {"z": {"type": "string"}, "a": {"type": "string"}}}
    assert [field.name for field in loaded(schema).field.type] == ["z", "a"]
    assert list(json.loads(loaded(schema).text)["properties"]) == ["z", "a"]


@pytest.mark.parametrize(("title", "name"), [("é", "answer"), ("a b/c", "a_b_c"), ("x" * 99, "x" * 64), (7, "answer")])
def test_the_name_on_the_wire_is_one_that_servers_take(title: object, name: str) -> None:
    if isinstance(title, str):
        assert loaded({"title": title, "type": "object"}).name == name
    else:
        with pytest.raises(SchemaError):
            loaded({"title": title, "type": "object"})


def test_a_good_schema_gets_no_warning() -> None:
    assert warned(LABEL) == ""
    assert warned(LABEL, provider="scaleway", temperature=0, max_tokens=200) == ""


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"additionalProperties": True}, r"additionalProperties is not false at \$:"),
        ({"required": ["label"]}, "not required: $.properties.sure:"),
        ({"maxProperties": 3}, "few servers enforce $.maxProperties"),
        ({"propertees": {}}, "$.propertees (did you mean 'properties'?)"),
        ({"type": ["object", "null"]}, "the schema's root is not `type: object`"),
        ({"properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "recursive at $.properties.a:"),
    ],
)
def test_what_is_known_to_fail_is_warned_of(change: dict[str, Any], told: str) -> None:
    assert told.replace("\\", "") in warned({**LABEL, **change})


def test_recursion_through_definitions_is_seen_and_mere_use_is_not() -> None:
    node = {"type": "object", "properties": {"next": {"$ref": "#/$defs/other"}}}
    loop = {"$ref": "#/$defs/node", "$defs": {"node": node, "other": {"items": {"$ref": "#/$defs/node"}}}}
    assert "recursive at $.$defs.node.properties.next" in warned(loop).replace('["$defs"]', ".$defs")
    used = {**LABEL, "$defs": {"leaf": {"type": "string"}}}
    used["properties"] = {name: {"$ref": "#/$defs/leaf"} for name in ("label", "sure")}
    assert warned(used) == ""


def test_a_low_max_tokens_is_warned_of_in_proportion_to_the_schema() -> None:
    assert "max_tokens 12 is low" in warned(LABEL, max_tokens=12)
    assert warned(LABEL, max_tokens=64) == ""
    many = {f"property_number_{n}": {"type": "string"} for n in range(40)}
    wide = {**LABEL, "properties": many, "required": list(many)}
    assert "max_tokens 500 is low" in warned(wide)
    assert warned(wide, max_tokens=None) == ""


def test_long_answers_at_temperature_zero_on_scaleway_are_warned_of() -> None:
    assert "temperature 0 without max_tokens on Scaleway" in warned(
        LABEL, provider="scaleway", temperature=0, max_tokens=None
    )
    assert "temperature 0 with max_tokens 4000" in warned(LABEL, provider="scaleway", temperature=0, max_tokens=4000)
    assert warned(LABEL, provider="scaleway", temperature=0.3, max_tokens=4000) == ""
    assert warned(LABEL, mode="prompt", provider="scaleway", temperature=0, max_tokens=4000) == ""


def test_a_schema_without_a_type_is_said_to_give_json_text() -> None:
    assert "`parsed` will be JSON text" in warned({"type": "object"})


def test_warnings_end_for_schemas_whose_parts_refer_to_each_other_many_times() -> None:
    layers = {f"l{n}": {"items": [{"$ref": f"#/$defs/l{n + 1}"}] * 2} for n in range(30)}
    schema = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "allOf": [{"$ref": "#/$defs/l0"}],
        "$defs": {**layers, "l30": {"type": "string"}},
    }
    assert "root is not" in warned(schema)
