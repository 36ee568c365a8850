"""What a Pydantic model's own validators say of an answer that fits the model's JSON Schema.

A JSON Schema holds a model's types and bounds. It does not hold what `field_validator`, `model_validator` and annotated
validators check, so the model itself is asked as well. It only says whether the answer is right. What is stored is
the answer as it came, so that a validator that changes values changes no column.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, ValidationError

from batchchat.structured.checker import MAX_ERRORS
from batchchat.structured.dialect import path_text, shorten


def model_errors(model: type[BaseModel], value: Any) -> tuple[str, ...]:
    """Return why a model rejects a JSON value: at most `MAX_ERRORS` texts, each with a path; none if it takes it.

    The value is read as JSON, as the model's strict fields and dates expect it. A validator that fails by an error of
    its own rejects the value, too: the text then names that error.
    """
    try:
        model.model_validate_json(json.dumps(value, ensure_ascii=False))
    except ValidationError as invalid:
        told = [
            f"{path_text(error['loc'])}: {_plain(error['msg'])}"
            for error in invalid.errors(include_url=False, include_context=False, include_input=False)
        ]
    except Exception as error:  # noqa: BLE001  a user's validator may raise anything
        told = [f"$: a validator of {model.__name__} failed with {type(error).__name__}: {shorten(str(error))}"]
    else:
        return ()
    if len(told) > MAX_ERRORS:
        told[MAX_ERRORS - 1 :] = ["and there is more that does not fit"]
    return tuple(told)


def _plain(message: str) -> str:
    """Return a validator's own words, without Pydantic's name for the exception that they came in."""
    for prefix in ("Value error, ", "Assertion failed, "):
        message = message.removeprefix(prefix)
    return shorten(" ".join(message.split()))
