"""The schema of a job's answers: where it comes from, and how a request asks for it.

`response.schema` is a path to a JSON file, an inline mapping, or `package.module:Model`, a Pydantic model. A schema
that cannot be used is found here, before anything is sent.
"""

from __future__ import annotations

import importlib
import inspect
import json
import math
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from batchchat.dataclass import dataclass
from batchchat.structured.arrow import ParsedColumn, parsed_field
from batchchat.structured.checker import Checker
from batchchat.structured.dialect import KEYWORDS, UNENFORCED, SchemaError, SchemaPlace, resolve, shorten, subschemas
from batchchat.structured.find import NotJSON, parse
from batchchat.structured.validation import AnswerValidator

if TYPE_CHECKING:
    import pyarrow as pa
    from pydantic import BaseModel

Mode = Literal["json_schema", "json_object", "prompt"]
"""How the schema reaches the model: by `response_format`, or written into the prompt with or without `json_object`."""

_MODEL = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*")
_TYPED = frozenset({"type", "enum", "const", "anyOf", "$ref"})
_MAX_BYTES = 1_000_000
_MAX_VALUES = 50_000
_MAX_LEVELS = 100


@dataclass(frozen=True, slots=True, eq=False)
class ResponseSchema:
    """A usable schema: plain JSON with its properties in the author's order, in which models write their answers.

    `name` is what `response_format.json_schema.name` takes, `source` where the schema came from, for messages.
    `column` is the typed column of its answers, `validator` their judge. `from_model`: a Pydantic model judges, too.
    """

    schema: Mapping[str, Any]
    name: str
    source: str
    column: ParsedColumn
    validator: AnswerValidator
    from_model: bool = False

    @property
    def field(self) -> pa.Field:
        """The Arrow field of `parsed`."""
        return self.column.field

    @property
    def text(self) -> str:
        """The schema as one line of JSON."""
        return json.dumps(self.schema, ensure_ascii=False, separators=(",", ":"))

    def request_fields(self, mode: Mode) -> dict[str, Any]:
        """Build what a request's body gets beside its messages."""
        if mode == "json_schema":
            wanted = {"name": self.name, "strict": is_strict(self.schema), "schema": self.schema}
            return {"response_format": {"type": "json_schema", "json_schema": wanted}}
        return {"response_format": {"type": "json_object"}} if mode == "json_object" else {}

    def instructions(self, mode: Mode) -> str | None:
        """Word what the prompt must say of the answer's form; None if `response_format` says it.

        It is plain text, not a template: braces in it are the schema's own.
        """
        if mode == "json_schema":
            return None
        return (
            "Answer with one JSON value and nothing else: no text around it, no code fence. "
            f"It must be valid against this JSON Schema:\n{self.text}"
        )


def load_schema(
    spec: object, *, folder: Path, name: str | None = None, model: tuple[str, Path] | None = None
) -> ResponseSchema:
    """Load `response.schema`; a path is relative to `folder`, a model's module is looked for there first.

    `name` is what requests call the schema (default: its title, or the name of its file or model). `model` names the
    model that a schema given as a mapping was made from, and its folder: its validators then run, too. Raises
    SchemaError with the place inside the schema for whatever cannot be used.
    """
    found = None if model is None else _model(*model)
    if isinstance(spec, Mapping):
        raw, known_as, source = spec, "answer", "the job's schema"
    elif isinstance(spec, str) and _MODEL.fullmatch(spec):
        found = _model(spec, folder)
        raw, known_as, source = _model_schema(found, spec), spec.rpartition(":")[2].rpartition(".")[2], spec
    elif isinstance(spec, str) and spec:
        path = folder / Path(spec).expanduser()
        raw, known_as, source = _read(path), path.name.partition(".")[0], str(path)
    else:
        raise SchemaError("a schema is a path to a JSON file, a mapping, or package.module:PydanticModel")
    schema = as_json(raw)
    if not isinstance(schema, dict):
        raise SchemaError(f"{source} is not a JSON Schema: it is {_kind(schema)}, not an object")
    # `{name: string}` is what people write who have not met JSON Schema. It would allow everything.
    if schema and not KEYWORDS.intersection(schema):
        raise SchemaError(
            f"{source} is not a JSON Schema: it has no keyword of one, only {shorten(', '.join(schema), 100)}",
            remedy="Describe the answer as {type: object, properties: {name: {type: string}}, required: [name], "
            "additionalProperties: false}.",
        )
    title = schema.get("title")
    known_as = name or (title if isinstance(title, str) else known_as)
    try:
        checker = Checker(schema)
        column = ParsedColumn(parsed_field(schema))
    except SchemaError as error:
        # For a mapping in the job file the reader of the job adds file and line.
        where = "" if isinstance(spec, Mapping) else f" (in {source})"
        raise SchemaError(error.reason + where, error.place, remedy=error.remedy) from None
    further = None
    if found is not None:
        from batchchat.structured.model import model_errors

        further = partial(model_errors, found)
    validator = AnswerValidator(checker, column, further)
    return ResponseSchema(schema, _wire_name(known_as), source, column, validator, from_model=found is not None)


def is_strict(schema: Mapping[str, Any]) -> bool:
    """Return whether a schema has the form that OpenAI's API takes with `strict: true`; it refuses others with it.

    The root is an object, each object is closed and requires all its properties, and no keyword stands in it that
    generation under a grammar does not know (OpenAI's guide to structured outputs).
    """
    root = resolve(schema, schema["$ref"]) if isinstance(schema.get("$ref"), str) else schema
    if not isinstance(root, Mapping) or root.get("type") != "object":
        return False
    for place, inner in subschemas(schema):
        # `additionalProperties: false` is the only boolean schema that the strict form knows.
        if isinstance(inner, bool):
            if inner or place[-1:] != ("additionalProperties",):
                return False
            continue
        if UNENFORCED.intersection(inner) or not _TYPED.intersection(inner):
            return False
        if inner.get("type") == "object" or "properties" in inner:
            closed = inner.get("additionalProperties") is False
            if not closed or set(inner.get("properties", ())) - set(inner.get("required", ())):
                return False
    return True


def as_json(value: Any, place: SchemaPlace = ()) -> Any:
    """Copy a mapping of a job as plain JSON; SchemaError with the place of what JSON has not, or of too much."""
    return _Copy().copy(value, place, 0)


class _Copy:
    """One bounded copy: a YAML file of a few lines can name values that would fill the memory."""

    def __init__(self) -> None:
        self._count = 0

    def copy(self, value: Any, place: SchemaPlace, level: int) -> Any:
        self._count += 1
        if level > _MAX_LEVELS or self._count > _MAX_VALUES:
            raise SchemaError(f"is larger than {_MAX_VALUES:,} values or deeper than {_MAX_LEVELS} levels", place[:3])
        if isinstance(value, Mapping):
            for name in value:
                if not isinstance(name, str):
                    raise SchemaError(f"the name {name!r} is not text", place, remedy=f'Quote it: "{name}".')
                self._check_text(name, place)
            return {name: self.copy(item, (*place, name), level + 1) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.copy(item, (*place, index), level + 1) for index, item in enumerate(value)]
        if isinstance(value, str):
            self._check_text(value, place)
        elif isinstance(value, float):
            self._refuse_unless(math.isfinite(value), value, place)
        # 1024 bits are what a float reaches. Dates, bytes and sets come from YAML, and JSON has none of them.
        elif not isinstance(value, bool | None):
            self._refuse_unless(isinstance(value, int) and value.bit_length() <= 1024, value, place)
        return value

    @staticmethod
    def _refuse_unless(usable: bool, value: Any, place: SchemaPlace) -> None:
        if not usable:
            kind = type(value).__name__
            told = shorten(str(value), 60) if kind != "int" else "a whole number of more than 300 digits"
            raise SchemaError(f"{told} is nothing that JSON has", place, remedy="Quote it, if it is meant as text.")

    @staticmethod
    def _check_text(text: str, place: SchemaPlace) -> None:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise SchemaError("holds text that is not valid Unicode (a lone surrogate)", place) from None


def _read(path: Path) -> Any:
    try:
        if path.exists() and not path.is_file():  # a folder, or something that never ends
            raise SchemaError(f"the schema {path} is not a file")
        data = path.read_bytes() if path.stat().st_size <= _MAX_BYTES else None
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise SchemaError(f"the schema {path} cannot be read: {reason}") from None
    if data is None:
        raise SchemaError(f"the schema {path} is larger than {_MAX_BYTES // 1_000_000} MB")
    try:
        return parse(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise SchemaError(f"the schema {path} is not UTF-8 text") from None
    except NotJSON as problem:
        raise SchemaError(f"the schema {path} is not JSON: {problem}") from None


def _model(spec: str, folder: Path) -> type[BaseModel]:
    """Import the Pydantic model that `package.module:Model` names."""
    from pydantic import BaseModel

    module_name, _, attributes = spec.partition(":")
    try:
        with _importing_from(folder):
            found: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # noqa: BLE001  a user's module may raise anything
        raise SchemaError(
            f"{module_name} cannot be imported: {type(error).__name__}: {shorten(str(error))}",
            remedy=f"The module must be installed, or lie in {folder}.",
        ) from None
    for attribute in attributes.split("."):
        found = getattr(found, attribute, None)
        if found is None:
            raise SchemaError(f"{module_name} has no {attributes}")
    if not (inspect.isclass(found) and issubclass(found, BaseModel)):
        raise SchemaError(f"{spec} is not a Pydantic model (a subclass of pydantic.BaseModel)")
    return found


def _model_schema(model: type[BaseModel], spec: str) -> Any:
    try:
        return model.model_json_schema()
    except Exception as error:  # noqa: BLE001  Pydantic's own errors, and those of a model's hooks
        raise SchemaError(f"{spec} has no JSON Schema: {type(error).__name__}: {shorten(str(error))}") from None


@contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    """Look in the folder first, as Python does for a script's own folder."""
    entry = str(folder.absolute())
    sys.path.insert(0, entry)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with suppress(ValueError):
            sys.path.remove(entry)


def _wire_name(text: str) -> str:
    """Make a name as `json_schema.name` takes it: letters, digits, `_` and `-`, at most 64 (OpenAI's API reference)."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", text).strip("_")[:64] or "answer"


def _kind(value: Any) -> str:
    names = {bool: "a boolean", int: "a number", float: "a number", str: "text", list: "a list"}
    return names.get(type(value), "null")
