"""The JSON Schemas of job files and suite files, for editors that check and complete YAML.

They follow from the models that validate the files, so that they cannot differ from them in a field. The models also
take other forms of some values (`15m` for seconds, a path alone for `input`); these are added here. What a field means
is taken from the guide's own tables. A schema is more lenient than the validation of a file: it knows nothing of
columns, providers or prices.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from batchchat.guide import page
from batchchat.job.model import FIELDS, Job
from batchchat.job.pool_fields import LimitFields
from batchchat.job.values import Duration, Number, ShareOrCount, Size, Whole
from batchchat.providers import PROFILES

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_ROW = re.compile(r"^\| `([a-z_.]+)` \|(.*)\| ([^|]+) \|$", re.MULTILINE)
_LINK = re.compile(r"\[([^\]]+)\]\([^)]+\)")
_NUMBER = {"type": "string", "pattern": r"^\s*[+-]?\d[\d_]*(\.\d*)?([eE][+-]?\d+)?\s*$"}
_FORMS: Mapping[Any, JsonSchemaValue] = {
    get_args(Duration)[1].func: {"type": "string", "pattern": r"^\s*(\d+(\.\d*)?[hms]?\s*)+$", "examples": ["15m"]},
    get_args(Size)[1].func: {"type": "string", "pattern": r"^\s*\d+(\.\d*)?\s*([kKmMgG]?[iI]?[bB])?\s*$"},
    get_args(Whole)[1].func: _NUMBER,
    get_args(ShareOrCount)[1].func: {"type": "string", "pattern": r"^\s*\d+(\.\d*)?\s*%$", "examples": ["10%"]},
    get_args(Number)[1].func: _NUMBER,
}
"""What a value may also be, by the function that reads it."""
_BOUNDS = {"gt": "exclusiveMinimum", "ge": "minimum", "lt": "exclusiveMaximum", "le": "maximum"}


class _Generator(GenerateJsonSchema):
    """Writes a schema as pydantic does, with the texts that stand for a duration, a size or a number."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        """Say that no field has a title: it would be the field's own name again."""
        return False

    def function_before_schema(self, schema: core_schema.BeforeValidatorFunctionSchema) -> JsonSchemaValue:
        """Return the schema of a value that a function reads first."""
        inner = super().function_before_schema(schema)
        form = _FORMS.get(schema["function"]["function"])
        return inner if form is None else {"anyOf": [inner, form]}


def job_schema() -> dict[str, Any]:
    """Return the JSON Schema of a job file."""
    schema = Job.model_json_schema(schema_generator=_Generator)
    _open_job(schema)
    # The limits of an endpoint mean there what those of the job mean for all.
    names = LimitFields.model_fields
    own: dict[tuple[str, ...], str] = {("$defs", "LimitFields", "properties", name): f"limits.{name}" for name in names}
    _describe(schema, {**_paths(FIELDS), **own}, described("job", "limits", "budgets"))
    return {"$schema": _DIALECT, **_named_bounds(schema), "title": "A job of batchchat"}


def suite_schema() -> dict[str, Any]:
    """Return the JSON Schema of a suite file. Raises UsageError if the extra `eval` is not installed."""
    from batchchat.evaluation import require_extra

    require_extra()
    from batchchat.evaluation.scorers.answer_scorers import MODELS
    from batchchat.evaluation.scorers.judging import JUDGES
    from batchchat.evaluation.suite.reading import SuiteFields

    schema = SuiteFields.model_json_schema(schema_generator=_Generator)
    definitions = schema.setdefault("$defs", {})
    kinds: list[JsonSchemaValue] = []
    for kind, model in {**MODELS, **JUDGES}.items():
        one = model.model_json_schema(schema_generator=_Generator)
        definitions.update(one.pop("$defs", {}))
        # `{name: …, python: module:function}` needs no kind; every other scorer does.
        one["required"] = sorted({*one.get("required", ()), *(() if kind == "python" else ("kind",))})
        definitions[kind] = one
        kinds.append({"$ref": f"#/$defs/{kind}"})
    schema["properties"]["scorers"]["items"] = {"anyOf": kinds}
    paths: dict[tuple[str, ...], str] = {("properties", name): name for name in SuiteFields.model_fields}
    _describe(schema, paths, described("evaluation", "early-stopping"))
    return {"$schema": _DIALECT, **_named_bounds(schema), "title": "A suite of batchchat"}


def described(*topics: str) -> dict[str, str]:
    """Return what the tables of these pages say of each field, by its dotted name; the first page wins."""
    found: dict[str, str] = {}
    for topic in topics:
        for name, _, meaning in _ROW.findall(page(topic)):
            found.setdefault(name, _LINK.sub(r"\1", meaning).replace("`", "").strip())
    return found


def _open_job(schema: dict[str, Any]) -> None:
    """Add the forms that the job reads itself: a path alone, a section with every line commented out."""
    properties = schema["properties"]
    for name in ("input", "output"):
        properties[name] = {"anyOf": [{"type": "string", "minLength": 1}, properties[name]]}
    properties["messages"]["anyOf"].append({"type": "string", "minLength": 1})
    for name in ("images", "files", "params", "response", "limits", "retry", "budget"):
        properties[name] = {"anyOf": [properties[name], {"type": "null"}]}
    kinds = schema["$defs"]["EngineFields"]["properties"]["kind"]["enum"]
    properties["engine"] = {"anyOf": [{"type": "string", "enum": kinds}, properties["engine"], {"type": "null"}]}
    names = {"type": "string", "enum": list(PROFILES)}
    fallback = schema["$defs"]["FallbackFields"]["properties"]
    step = schema["$defs"]["CascadeStep"]["properties"]
    step["params"] = {"anyOf": [step["params"], {"type": "null"}]}
    properties["cascade"] = {"anyOf": [properties["cascade"], {"type": "null"}]}
    for provider in (properties["provider"], fallback["provider"], step["provider"]):
        provider["anyOf"] = [names if one.get("type") == "string" else one for one in provider["anyOf"]]
    fallback["on"] = {"anyOf": [fallback["on"], fallback["on"]["items"]]}
    properties["fallback"] = {"anyOf": [properties["fallback"], properties["fallback"]["items"], {"type": "null"}]}
    for one in schema["$defs"]["PoolFields"]["properties"]["endpoints"]["anyOf"]:
        if "items" in one:
            one["items"] = {"anyOf": [{"type": "string", "minLength": 1}, one["items"]]}
    # The lines of a batch file have messages and models of their own.
    required = schema["required"]
    schema["required"] = [name for name in required if name not in ("model", "messages")]
    batch = {"type": "object", "properties": {"format": {"const": "openai-batch"}}, "required": ["format"]}
    schema["if"] = {"properties": {"input": batch}, "required": ["input"]}
    # The first step of a cascade names the model.
    schema["else"] = {
        "required": [name for name in required if name != "model"],
        "anyOf": [{"required": ["model"]}, {"required": ["cascade"]}],
    }


def _named_bounds(value: Any) -> Any:
    """Return the schema with its bounds in JSON Schema's own words.

    pydantic leaves a bound in its own words if it holds for a choice of types; JSON Schema holds it against numbers.
    """
    if isinstance(value, list):
        return [_named_bounds(one) for one in value]
    if not isinstance(value, dict):
        return value
    words = _BOUNDS if "anyOf" in value else {}
    return {words.get(name, name): _named_bounds(one) for name, one in value.items()}


def _paths(sections: Mapping[tuple[str, ...], type[BaseModel]]) -> dict[tuple[str, ...], str]:
    """Return where each field of a job stands in its schema, with the dotted name of the field."""

    def walk() -> Iterator[tuple[tuple[str, ...], str]]:
        for place, model in sections.items():
            at = ("$defs", model.__name__) if place else ()
            for name, field in model.model_fields.items():
                written = field.alias or name
                yield (*at, "properties", written), ".".join((*place, written))

    return dict(walk())


def _describe(schema: dict[str, Any], places: Mapping[tuple[str, ...], str], texts: Mapping[str, str]) -> None:
    """Put the texts of the guide at the fields of a schema, in the place of what the code says to its readers."""
    for section in [schema, *schema.get("$defs", {}).values()]:
        section.pop("description", None)
    for place, name in places.items():
        target: Any = schema
        for part in place:
            target = target[part]
        if name in texts:
            target["description"] = texts[name]
