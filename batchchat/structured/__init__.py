"""Structured output: a schema for answers, tools for models to call, and the typed column `parsed`.

`load_schema` reads `response.schema` into a `ResponseSchema`: what a request says of it, the validator of answers, and
the column they go into. `load_tools` does the same for tools. `warnings_for` tells what is known to fail;
`answer_correction` and `calls_correction` word the next try of an answer that did not fit.
"""

from __future__ import annotations

from batchchat.structured.advice import answer_tokens, warnings_for
from batchchat.structured.arrow import Misfit, ParsedColumn, parsed_field, type_change_message, type_changes
from batchchat.structured.confidence import Confidence, ConfidenceRule, choice_fields, field_names, is_number_field
from batchchat.structured.correction import answer_correction, calls_correction, missing_call_correction
from batchchat.structured.dialect import SchemaError
from batchchat.structured.schema import Mode, ResponseSchema, load_schema
from batchchat.structured.tools import Tools, load_tools
from batchchat.structured.validation import AnswerValidator, CheckedAnswer

__all__ = [
    "AnswerValidator",
    "CheckedAnswer",
    "Confidence",
    "ConfidenceRule",
    "Misfit",
    "Mode",
    "ParsedColumn",
    "ResponseSchema",
    "SchemaError",
    "Tools",
    "answer_correction",
    "answer_tokens",
    "calls_correction",
    "choice_fields",
    "field_names",
    "is_number_field",
    "load_schema",
    "load_tools",
    "missing_call_correction",
    "parsed_field",
    "type_change_message",
    "type_changes",
    "warnings_for",
]
