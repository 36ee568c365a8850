"""From a JSON Schema to the Arrow type of `parsed`, and from answers to arrays of that type.

| schema | type |
|---|---|
| string, also an enum, a `format` or a `pattern` | string |
| integer | int64 |
| number | float64 |
| boolean | bool |
| array with one kind of items | list |
| object with named properties | struct, fields in the schema's order |
| one of these or null | the same: every field may be null |
| anything else | JSON text: string, with the field's metadata `batchchat.json: true` |

Anything else is: a union of different types, a `$ref` that comes back to itself (from there on), an object without
properties or with one that is named "", a tuple, an integer whose bounds or values pass 64 bits, `allOf` of parts that
do not merge.

Dates stay strings: a model's date may lack an offset or a day, and what it wrote is kept as it wrote it.
Enums stay plain strings: dictionaries would differ from part to part. What a struct has no field for (additional
properties) is in `completion` alone. A missing property and a null one are both null.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import orjson
import pyarrow as pa

from batchchat.structured.dialect import Schema, SchemaError, SchemaPlace, path_text, resolve

JSON_METADATA = {b"batchchat.json": b"true"}
"""Metadata of a string field that holds JSON text."""

_MAX_FIELDS = 5_000
_MAX_LEVELS = 60
"""Bounds for a column's type. Chosen, not measured: far above real schemas, which have some hundred fields."""
_LOW, _HIGH = -(2**63), 2**63 - 1
_COMBINING = ("$ref", "allOf", "anyOf", "oneOf")
_CONDITIONAL = ("then", "else")


class _Shape(NamedTuple):
    """An Arrow type, or JSON text; `null` if only null is allowed."""

    type: pa.DataType
    json: bool = False
    null: bool = False

    def field(self, name: str) -> pa.Field:
        return pa.field(name, self.type, metadata=JSON_METADATA if self.json else None)


_JSON = _Shape(pa.string(), json=True)
_NULL = _Shape(pa.string(), json=True, null=True)
_SIMPLE: Mapping[frozenset[str], _Shape] = {
    frozenset({"string"}): _Shape(pa.string()),
    frozenset({"boolean"}): _Shape(pa.bool_()),
    frozenset({"number"}): _Shape(pa.float64()),
    frozenset({"integer", "number"}): _Shape(pa.float64()),
}


def parsed_field(schema: Schema, name: str = "parsed") -> pa.Field:
    """Derive the field of the typed column: equal schemas give equal fields. Everything in it may be null.

    Raises SchemaError for properties that differ only in case (engines that fold case could not tell them apart), and
    for a type too large or too deep for a column.
    """
    return _Derivation(schema).shape(schema, ()).field(name)


class _Derivation:
    """One walk over one schema. A method returns None if a schema says nothing of its values' type."""

    def __init__(self, root: Schema) -> None:
        self._root = root
        self._open: list[int] = []
        self._count = 0

    def shape(self, schema: Any, place: SchemaPlace) -> _Shape:
        return self._known(schema, place) or _JSON

    def _known(self, schema: Any, place: SchemaPlace) -> _Shape | None:
        if not isinstance(schema, Mapping):
            return None
        # It comes back to itself. No Arrow type holds itself, so the part is JSON text from here on.
        if id(schema) in self._open:
            return _JSON
        self._count += 1
        if self._count > _MAX_FIELDS or len(self._open) > _MAX_LEVELS:
            what = f"more than {_MAX_FIELDS} fields" if self._count > _MAX_FIELDS else f"more than {_MAX_LEVELS} levels"
            raise SchemaError(f"the type of `parsed` would have {what}", place)
        self._open.append(id(schema))
        try:
            return self._combined(schema, place)
        finally:
            self._open.pop()

    def _combined(self, schema: Schema, place: SchemaPlace) -> _Shape | None:
        """Return what holds for all parts: own keywords, reference, `allOf`, and one of `anyOf` and `oneOf`."""
        shapes = [self._own(schema, place)]
        if isinstance(schema.get("$ref"), str):
            shapes.append(self._known(resolve(self._root, schema["$ref"]), (*place, "$ref")))
        # Where these lead depends on the way that led here: no single type can be told.
        if "$dynamicRef" in schema or "$recursiveRef" in schema:
            shapes.append(_JSON)
        shapes += [self._known(part, (*place, "allOf", i)) for i, part in enumerate(schema.get("allOf", ()))]
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema:
                branches = [self._known(part, (*place, keyword, i)) for i, part in enumerate(schema[keyword])]
                shapes.append(_union(branches))
        conditional = [schema[keyword] for keyword in _CONDITIONAL if keyword in schema]
        conditional += schema.get("dependentSchemas", {}).values()
        # What such a part asks holds for some values and not for others.
        if any(self._known(part, place) for part in conditional):
            shapes.append(_JSON)
        return _intersection([shape for shape in shapes if shape is not None], place)

    def _own(self, schema: Schema, place: SchemaPlace) -> _Shape | None:
        types = _types(schema)
        if types is None:
            return None
        some = types - {"null"}
        if not some:
            return _NULL
        if some == {"integer"}:
            return _JSON if _passes_64_bits(schema) else _Shape(pa.int64())
        if some == {"array"}:
            return self._list(schema, place)
        if some == {"object"}:
            return self._struct(schema, place)
        shape: _Shape = _SIMPLE.get(some, _JSON)
        return shape

    def _list(self, schema: Schema, place: SchemaPlace) -> _Shape | None:
        items = schema.get("items")
        if "prefixItems" in schema or isinstance(items, list) or items is False:
            return _JSON
        # Another part of the same schema may say what the items are.
        if items is None and any(keyword in schema for keyword in _COMBINING):
            return None
        return _list_of(self.shape(items, (*place, "items")))

    def _struct(self, schema: Schema, place: SchemaPlace) -> _Shape | None:
        properties = schema.get("properties") or {}
        # As for a list: another part may name the properties.
        if not properties and not schema.get("patternProperties") and any(name in schema for name in _COMBINING):
            return None
        if "" in properties:
            # DuckDB takes a struct with a nameless field for a tuple, and cannot read it back inside another struct.
            return _JSON
        fields = [
            self.shape(inner, (*place, "properties", name)).field(name)
            for name, inner in properties.items()
            # `false` allows no value, so there is never anything to hold.
            if inner is not False
        ]
        return _struct_of(fields, place)


def _types(schema: Schema) -> frozenset[str] | None:
    """Return the JSON types that a schema's own keywords leave; None if they say nothing."""
    if "type" in schema:
        named = schema["type"]
        return frozenset([named] if isinstance(named, str) else named)
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if values is not None:
        return frozenset(_type_of(value) for value in values)
    if "properties" in schema:
        return frozenset({"object"})
    if "items" in schema or "prefixItems" in schema:
        return frozenset({"array"})
    return None


def _type_of(value: Any) -> str:
    if value is None:
        return "null"
    names = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array"}
    return names.get(type(value), "object")


def _passes_64_bits(schema: Schema) -> bool:
    values = [(value, 0) for value in (schema.get("const"), *schema.get("enum", ()))]
    values += [(schema.get("minimum"), 0), (schema.get("maximum"), 0)]
    values += [(schema.get("exclusiveMinimum"), 1), (schema.get("exclusiveMaximum"), -1)]
    return any(
        not _LOW <= int(value) + step <= _HIGH
        for value, step in values
        if isinstance(value, int | float) and not isinstance(value, bool)
    )


def _list_of(item: _Shape) -> _Shape:
    return _Shape(pa.list_(item.field("element")))


def _struct_of(fields: Sequence[pa.Field], place: SchemaPlace) -> _Shape:
    folded: dict[str, str] = {}
    for field in fields:
        # DuckDB and Spark fold the case of names.
        other = folded.setdefault(field.name.lower(), field.name)
        if other != field.name:
            raise SchemaError(
                f"the properties {other!r} and {field.name!r} differ only in case: many engines take them for one",
                place,
                remedy="Rename one of them.",
            )
    return _Shape(pa.struct(fields)) if fields else _JSON


def _union(branches: Sequence[_Shape | None]) -> _Shape | None:
    """Return the shape of a value that has one of several forms; null beside one form changes nothing."""
    if all(branch is None for branch in branches):
        return None
    some = [branch for branch in branches if branch is None or not branch.null]
    if not some:
        return _NULL
    first = some[0]
    if first is None or any(branch is None for branch in some):
        return _JSON
    known = [branch for branch in some if branch is not None]
    if all(_same(first, branch) for branch in known):
        return first
    # An integer or a number: a float holds both.
    numbers = all(pa.types.is_floating(branch.type) or pa.types.is_integer(branch.type) for branch in known)
    return _Shape(pa.float64()) if numbers else _JSON


def _intersection(shapes: Sequence[_Shape], place: SchemaPlace) -> _Shape | None:
    """Return the shape of a value that has all of several forms at once."""
    typed = [shape for shape in shapes if not shape.null]
    if not typed:
        return shapes[0] if shapes else None
    first, *others = typed
    if all(_same(first, other) for other in others):
        return first
    scalars = [shape for shape in typed if not shape.json and not pa.types.is_nested(shape.type)]
    if scalars:
        # A scalar part decides: what else is asked of a text or a number does not change its type.
        whole = [shape for shape in scalars if pa.types.is_integer(shape.type)]
        chosen = (whole or scalars)[0]
        compatible = all(_same(chosen, other) or pa.types.is_floating(other.type) for other in scalars)
        return chosen if compatible else _JSON
    if all(pa.types.is_struct(shape.type) for shape in typed):
        return _merged(typed, place)
    return _JSON


def _merged(structs: Sequence[_Shape], place: SchemaPlace) -> _Shape:
    fields: dict[str, pa.Field] = {}
    for struct in structs:
        for field in struct.type:
            # Two parts give one property two types.
            if type_changes(fields.setdefault(field.name, field), field):
                return _JSON
    return _struct_of(list(fields.values()), place)


def _same(one: _Shape, other: _Shape) -> bool:
    return one.json == other.json and not type_changes(one.field("value"), other.field("value"))


class Misfit(ValueError):
    """A value that the column cannot hold without loss: `path` says where in it, `reason` why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.path: tuple[str | int, ...] = ()


_Convert = Callable[[Any], Any]


class ParsedColumn:
    """The typed column of one field (`parsed_field`): answers in, arrays out."""

    def __init__(self, field: pa.Field) -> None:
        self.field = field
        self._convert = _converter(field)

    @property
    def is_json(self) -> bool:
        """Whether the whole column is JSON text."""
        return _is_json(self.field)

    def convert(self, value: Any) -> Any:
        """Turn a JSON value that the schema allows into one for `array`; Misfit if the column cannot hold it.

        What comes out is plain JSON again, and is not to be converted twice: JSON text is text by then.
        An integer beyond 64 bits cannot be held if the schema sets no such bounds: the schema alone decides the
        type, so the answer is refused, with its text kept, rather than stored as null or rounded.
        """
        return self._convert(value)

    def array(self, values: Iterable[Any]) -> pa.Array:
        """Build an array of the field's type from converted values; None stays null."""
        return pa.array(list(values), type=self.field.type)


def _converter(field: pa.Field) -> _Convert:
    if _is_json(field):
        return _json_text
    kind = field.type
    if pa.types.is_struct(kind):
        return _struct_converter([(inner.name, _converter(inner)) for inner in kind])
    if pa.types.is_list(kind):
        return _list_converter(_converter(kind.value_field))
    if pa.types.is_integer(kind):
        return _integer
    if pa.types.is_floating(kind):
        return _number
    return _checked(bool, "true or false") if pa.types.is_boolean(kind) else _checked(str, "text")


def _is_json(field: pa.Field) -> bool:
    return bool(field.metadata) and field.metadata.get(b"batchchat.json") == b"true"


def _struct_converter(fields: Sequence[tuple[str, _Convert]]) -> _Convert:
    def convert(value: Any) -> Any:
        if value is None:
            return None
        if not isinstance(value, dict):
            raise Misfit("is no object, which the column's type needs")
        converted: dict[str, Any] = {}
        for name, inner in fields:
            if name in value:
                try:
                    converted[name] = inner(value[name])
                except Misfit as misfit:
                    misfit.path = (name, *misfit.path)
                    raise
        return converted

    return convert


def _list_converter(inner: _Convert) -> _Convert:
    def convert(value: Any) -> Any:
        if value is None:
            return None
        if not isinstance(value, list):
            raise Misfit("is no array, which the column's type needs")
        converted: list[Any] = []
        try:
            for item in value:
                converted.append(inner(item))  # noqa: PERF401  the length says which item failed
        except Misfit as misfit:
            misfit.path = (len(converted), *misfit.path)
            raise
        return converted

    return convert


def _checked(kind: type, name: str) -> _Convert:
    def convert(value: Any) -> Any:
        if value is None or isinstance(value, kind):
            return value
        raise Misfit(f"is not {name}, which the column's type needs")

    return convert


def _integer(value: Any) -> int | None:
    if value is None:
        return None
    # JSON Schema counts 1.0 as an integer.
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise Misfit("is not a whole number, which the column's type needs")
    if not _LOW <= value <= _HIGH:
        raise Misfit("is a whole number beyond 64 bits, which the column cannot hold")
    return value


def _number(value: Any) -> float | None:
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise Misfit("is not a number, which the column's type needs")
    try:
        return float(value)
    except OverflowError:
        raise Misfit("is a number too large for the column") from None


def _json_text(value: Any) -> str | None:
    if value is None:
        return None
    try:
        return orjson.dumps(value).decode()
    except TypeError:
        # Integers beyond 64 bits; the slower writer keeps their digits.
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def type_changes(old: pa.Field, new: pa.Field) -> list[str]:
    """Say how the type of a column differs between two fields, one text a place; empty if parts may stand together.

    The order of fields counts. Names of list items, and whether something may be null, do not.
    """
    return _changes(old, new, "parsed")


def _changes(old: pa.Field, new: pa.Field, where: str) -> list[str]:
    if pa.types.is_struct(old.type) and pa.types.is_struct(new.type):
        return _field_changes(old.type, new.type, where)
    if pa.types.is_list(old.type) and pa.types.is_list(new.type):
        return _changes(old.type.value_field, new.type.value_field, f"{where}[]")
    if _is_json(old) == _is_json(new) and old.type == new.type:
        return []
    return [f"{where} was {_type_name(old)} and is {_type_name(new)}"]


def _field_changes(old: pa.StructType, new: pa.StructType, where: str) -> list[str]:
    before = {field.name: field for field in old}
    after = {field.name: field for field in new}
    texts = [f"{_inside(where, name)} is new" for name in after if name not in before]
    texts += [f"{_inside(where, name)} is gone" for name in before if name not in after]
    for name, field in after.items():
        if name in before:
            texts += _changes(before[name], field, _inside(where, name))
    # Arrow structs of another order are another type, and parts of one dataset must have one.
    if not texts and list(before) != list(after):
        texts.append(f"the fields of {where} have another order")
    return texts


def _inside(where: str, name: str) -> str:
    return where + path_text((name,)).removeprefix("$")


def _type_name(field: pa.Field) -> str:
    if _is_json(field):
        return "JSON text"
    if pa.types.is_struct(field.type):
        return "an object"
    if pa.types.is_list(field.type):
        return "a list"
    return {pa.string(): "text", pa.int64(): "integer", pa.float64(): "number", pa.bool_(): "boolean"}.get(
        field.type, str(field.type)
    )


def type_change_message(old: pa.Field, new: pa.Field) -> str | None:
    """Return the message for a schema that changes the type of `parsed`; None if the type stays."""
    changes = type_changes(old, new)
    if not changes:
        return None
    told = "; ".join(changes[:5]) + (f"; and {len(changes) - 5} more" if len(changes) > 5 else "")
    return f"A schema that changes the type of `parsed` needs --fresh: {told}"
