"""What a job asks, and what it demands of the answers: its template, its schema and its tools, compiled together.

A schema is part of the request (as `response_format`, or as words in the prompt), so the template is compiled with it:
whoever renders a job's requests does it from here. Blocking code.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchchat.acceptance import Acceptance, TextCheck
from batchchat.dataclass import dataclass
from batchchat.errors import JobError
from batchchat.job import Job, has_lines
from batchchat.job.sections import Longer, SaidConfidence
from batchchat.job.targets import cascade_of
from batchchat.job.values import nearest
from batchchat.providers import Provider
from batchchat.template import PromptBound, Template, compile_lines, compile_template

if TYPE_CHECKING:
    from batchchat.structured import ConfidenceRule, ResponseSchema, Tools

_TOP_LOGPROBS = 5
"""How many tokens are asked for in each place: as many as all services give that give any (some allow 5, others 20).
More of them hardly tell more: an alternative that is not among the likeliest five has little of the chance."""
_STEPS = re.compile(r"[^.\[\]]+")


@dataclass(frozen=True, slots=True)
class Questions:
    """A job's compiled requests, and the acceptance of what comes back."""

    template: Template
    acceptance: Acceptance
    schema: ResponseSchema | None = None


def compile_questions(job: Job) -> Questions:
    """Compile a job's messages, params, schema and tools. Raises JobError with the place of what cannot be used."""
    response = job.response
    schema = None if response.spec is None else _load_schema(job)
    try:
        template = _compile_template(job, schema)
    except JobError as error:
        # The template knows the field by its name; the job adds file and line.
        place = [int(part) if part.isdecimal() else part for part in _STEPS.findall(error.field or "messages")]
        raise job.error(error.message.removeprefix(f"{error.field}: "), *place, remedy=error.remedy) from None
    tools, vary = _load_tools(job, template)
    longer = response.truncated
    text = None
    if schema is not None:
        text = TextCheck(schema, response.mode == "json_schema", _confidence_rule(job, schema))
    acceptance = Acceptance(
        text=text,
        tools=tools,
        tools_vary=vary,
        corrections=response.corrections,
        truncated=longer.retry_with_max_tokens if isinstance(longer, Longer) else longer,
        cascade=cascade_of(job),
    )
    return Questions(template, acceptance, schema)


def schema_warnings(job: Job, questions: Questions, provider: Provider) -> list[str]:
    """Return what is known to go wrong with the job's schema, its mode and its params, told before anything is sent."""
    if questions.schema is None:
        return []
    from batchchat.structured import warnings_for

    def number(*names: str) -> Any:
        values = (questions.template.constant(name)[1] for name in names)
        return next((value for value in values if isinstance(value, int | float)), None)

    return warnings_for(
        questions.schema,
        mode=job.response.mode,
        provider=provider.name,
        max_tokens=number("max_completion_tokens", "max_tokens"),
        temperature=number("temperature"),
    )


def _compile_template(job: Job, schema: ResponseSchema | None) -> Template:
    provider, response = job.resolved_provider(), job.response
    fixed = schema.request_fields(response.mode) if schema is not None else None
    if fixed is not None and response.confidence == "logprobs":
        fixed |= _token_fields(job, provider)
    instructions = schema.instructions(response.mode) if schema is not None else None
    most = job.max_prompt_tokens
    bound = None if most is None else PromptBound(most.limit, most.column)
    # The lines of a batch file are requests already: there are no messages to compile, only what the job adds to them.
    if has_lines(job):
        return compile_lines(
            job.params.as_body(),
            model=job.model if job.names_model else "",
            expected="" if job.names_model else job.model,
            removed=job.removed(),
            unsupported=provider.unsupported,
            provider_name=provider.name,
            fixed=fixed,
            instructions=instructions,
            max_images=provider.max_images,
            transfer=job.transfer(provider),
            skip=job.skip,
            bound=bound,
        )
    return compile_template(
        job.messages,
        job.params.as_body(),
        model=job.model,
        fixed=fixed,
        instructions=instructions,
        max_images=provider.max_images,
        transfer=job.transfer(provider),
        skip=job.skip,
        bound=bound,
    )


def _token_fields(job: Job, provider: Provider) -> dict[str, Any]:
    """Return the fields of a request that ask for log probabilities, as far as the job does not set them itself."""
    wanted: dict[str, Any] = {"logprobs": True}
    # Where the likeliest other tokens are not to be had, the value's own chance is all there is.
    if "top_logprobs" not in provider.unsupported:
        wanted["top_logprobs"] = _TOP_LOGPROBS
    given = job.params.as_body()
    return {name: value for name, value in wanted.items() if given.get(name) is None}


def _confidence_rule(job: Job, schema: ResponseSchema) -> ConfidenceRule | None:
    """Return how the job measures confidence. Raises JobError if the schema has no field to measure."""
    method = job.response.confidence
    if method is None:
        return None
    from batchchat.structured import ConfidenceRule, choice_fields, field_names, is_number_field

    if isinstance(method, SaidConfidence):
        path = tuple(method.field.removeprefix("parsed.").split("."))
        if not is_number_field(schema.schema, path):
            names = field_names(schema.schema)
            known = path in {tuple(name.split(".")) for name in names}
            what = "is no number in the schema" if known else f"is no field of the schema{nearest(method.field, names)}"
            remedy = f"Add it to the schema as {{type: number, minimum: 0, maximum: 1}}. It has {', '.join(names)}."
            raise job.error(f"{method.field!r} {what}", "response", "confidence", "field", remedy=remedy)
        return ConfidenceRule("field", (), path)
    fields = choice_fields(schema.schema)
    if not fields:
        message = "measures enums and booleans, and the schema has none"
        remedy = "Give the labels as an enum, or let the model say it itself: confidence: {field: NAME}."
        raise job.error(message, "response", "confidence", remedy=remedy)
    return ConfidenceRule(method, fields)


def _load_schema(job: Job) -> ResponseSchema:
    # Late: these bring a JSON Schema library along, which few jobs need.
    from batchchat.structured import SchemaError, load_schema

    folder = job.file.absolute().parent if job.file is not None else Path.cwd()
    try:
        return load_schema(job.response.spec, folder=folder, name=job.response.name, model=job.answer_model)
    except SchemaError as error:
        raise job.error(error.reason, "response", "schema", *error.place, remedy=error.remedy) from None


def _load_tools(job: Job, template: Template) -> tuple[Tools | None, bool]:
    """The job's tools, where they are the same for every row, and whether they are not."""
    if job.params.tools is None and job.params.tool_choice is None:
        return None, False
    tools_fixed, tools = template.constant("tools")
    choice_fixed, choice = template.constant("tool_choice")
    # Tools that differ from row to row are checked with each row, when they are known.
    if not (tools_fixed and choice_fixed):
        return None, True
    if tools is None:
        message = "chooses among tools, and there are none"
        raise job.error(message, "params", "tool_choice", remedy="Give params.tools, or leave this out.")
    from batchchat.structured import SchemaError, load_tools

    try:
        return load_tools(tools, choice), False
    except SchemaError as error:
        raise job.error(error.reason, "params", *error.place, remedy=error.remedy) from None
