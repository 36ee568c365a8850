"""The fields of an answer that a person reviews: their kinds, their choices, and the check of a person's value."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import orjson

from batchchat.dataclass import dataclass
from batchchat.errors import UsageError
from batchchat.job import Job
from batchchat.runner.questions import compile_questions
from batchchat.structured import ResponseSchema

COMPLETION = "completion"
"""The name of the one field of a job without a schema: the whole text of its answer."""
WHOLE = "parsed"
"""The name of the one field of a schema that is not of an object."""

FieldKind = Literal["choice", "text", "number", "json"]


@dataclass(frozen=True, slots=True)
class ReviewField:
    """A field that people review.

    `choices` are its values if it has a few certain ones (an enum, a boolean, null); `nullable` says that it may be
    null. `place` is where in the schema it is described, None for the text of a job without a schema.
    """

    name: str
    kind: FieldKind
    choices: tuple[Any, ...] = ()
    nullable: bool = False
    place: tuple[str, ...] | None = None

    def of(self, record: Mapping[str, Any]) -> Any:
        """Return what a record's answer has in this field, None if it has none."""
        if self.place is None:
            return record.get(COMPLETION)
        parsed = record.get("parsed")
        if not self.place:
            return parsed
        return parsed.get(self.name) if isinstance(parsed, dict) else None


class ReviewFields:
    """The fields of a job's answers that are reviewed, and the check of values for them."""

    def __init__(self, job: Job, only: str | None = None) -> None:
        """Take all fields of the job's answers, or `only` one. Raises UsageError if there is no such field."""
        schema = compile_questions(job).schema
        self._schema = schema
        self._checker: Any = None
        self.all = _fields(schema)
        self.chosen = self.all
        if only is not None:
            name = only.removeprefix(f"{WHOLE}.")
            self.chosen = tuple(field for field in self.all if field.name == name)
            if not self.chosen:
                names = [field.name for field in self.all]
                near = difflib.get_close_matches(name, names, n=1)
                hint = f" (did you mean {near[0]!r}?)" if near else ""
                raise UsageError(
                    f"--field: the answers have no field {only!r}{hint}", remedy=f"They have {', '.join(names)}."
                )

    def named(self, name: str) -> ReviewField | None:
        """Return the field with this name, None if the answers have none."""
        return next((field for field in self.all if field.name == name), None)

    def problem(self, field: ReviewField, value: Any) -> str | None:
        """Say why a person's value cannot be taken, None if it can be."""
        if field.place is None or self._schema is None:
            return None if isinstance(value, str) else f"must be a text, not {_shown(value)}"
        if self._checker is None:
            from batchchat.structured.checker import Checker

            self._checker = Checker(self._schema.schema)
        if self._checker.fits(field.place, value):
            return None
        if field.choices:
            return f"{_shown(value)} is none of {', '.join(map(_shown, field.choices))}"
        return f"{_shown(value)} does not fit the job's schema"

    def read(self, field: ReviewField, text: str) -> Any:
        """Read a value that a table holds as text. A text field takes it as it is; others take JSON, or a choice."""
        for choice in field.choices:
            if text == (choice if isinstance(choice, str) else orjson.dumps(choice).decode()):
                return choice
        if field.kind in {"choice", "text"} and not (field.nullable and text == "null"):
            # Spreadsheets write TRUE for true.
            folded = {"true": True, "false": False}.get(text.casefold())
            return folded if folded is not None and folded in field.choices else text
        try:
            return orjson.loads(text)
        except ValueError:
            return text


def _fields(schema: ResponseSchema | None) -> tuple[ReviewField, ...]:
    if schema is None:
        return (ReviewField(COMPLETION, "text"),)
    root = _followed(schema.schema, schema.schema)
    properties = root.get("properties")
    if not isinstance(properties, Mapping) or not properties:
        return (_field(WHOLE, schema.schema, (), schema.schema),)
    # A reference at the top moves the properties; then their place is where it leads to, which only the names know.
    return tuple(
        _field(name, part, (*_top(schema.schema), "properties", name), schema.schema)
        for name, part in properties.items()
    )


def _top(schema: Mapping[str, Any]) -> tuple[str, ...]:
    """Return where the properties of a schema are described, if a reference at its top leads elsewhere."""
    reference = schema.get("$ref")
    if "properties" in schema or not isinstance(reference, str):
        return ()
    return tuple(step.replace("~1", "/").replace("~0", "~") for step in reference.removeprefix("#").split("/")[1:])


def _followed(schema: Any, root: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a schema says once its local references are followed; nothing of what is no mapping."""
    from batchchat.structured.dialect import resolve

    for _ in range(8):  # references of references; a circle of them describes nothing
        if not isinstance(schema, Mapping):
            return {}
        reference = schema.get("$ref")
        if not isinstance(reference, str):
            return schema
        schema = resolve(root, reference)
    return {}


def _field(name: str, part: Any, place: tuple[str, ...], root: Mapping[str, Any]) -> ReviewField:
    values, types = _values(part, root), _types(part, root)
    nullable = "null" in types or None in values
    if values and not types - {"null"}:
        return ReviewField(name, "choice", tuple(values), nullable, place)
    if types <= {"string", "null"} and types:
        return ReviewField(name, "text", (), nullable, place)
    if types <= {"number", "integer", "null"} and types:
        return ReviewField(name, "number", (), nullable, place)
    return ReviewField(name, "json", (), nullable, place)


def _values(part: Any, root: Mapping[str, Any]) -> list[Any]:
    """Return the certain values that a schema allows, in its order."""
    schema = _followed(part, root)
    if isinstance(schema.get("enum"), Sequence):
        return list(schema["enum"])
    if "const" in schema:
        return [schema["const"]]
    found: list[Any] = []
    types = schema.get("type")
    for kind in [types] if isinstance(types, str) else types or ():
        found += [True, False] if kind == "boolean" else [None] if kind == "null" else []
    for keyword in ("anyOf", "oneOf"):
        for branch in schema.get(keyword) or ():
            found += [value for value in _values(branch, root) if value not in found or isinstance(value, bool)]
    return found if any(value is not None for value in found) else []


def _types(part: Any, root: Mapping[str, Any]) -> set[str]:
    """Return the types of the values that are not told one by one; of an enum or a boolean none but null."""
    schema = _followed(part, root)
    if "enum" in schema or "const" in schema:
        return {"null"} if None in _values(part, root) else set()
    given = schema.get("type")
    types = {given} if isinstance(given, str) else set(given or ())
    for keyword in ("anyOf", "oneOf"):
        for branch in schema.get(keyword) or ():
            types |= _types(branch, root)
    return types - {"boolean"}


def _shown(value: Any) -> str:
    text = orjson.dumps(value, default=str).decode()
    return text if len(text) <= 80 else f"{text[:77]}…"
