"""The fields of a job that go into each request beside model and messages."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator

from batchchat.job.secret_names import is_secret_name
from batchchat.job.values import MANY, Section, Switch, instead_of, parse_boolean, parse_number

MARKUP = re.compile(r"\{\{|\{%|\{#")
"""Where a template begins in a text."""


def _number_or_template(low: float, high: float, *, whole: bool = False) -> BeforeValidator:
    def check(value: object) -> object:
        if value is None or (isinstance(value, str) and MARKUP.search(value)):
            return value
        value = parse_number(value)
        if not isinstance(value, int | float):
            raise ValueError(f"must be a number, or a template that gives one{instead_of(value)}")
        if not low <= value <= high:
            bound = f"at least {low:g}" if high == MANY else f"between {low:g} and {high:g}"
            raise ValueError(f"must be {bound}{instead_of(value)}")
        if whole and value != int(value):
            raise ValueError(f"must be a whole number, not {value:g}")
        return int(value) if whole else float(value)

    return BeforeValidator(check)


def _or_template(kind: type, noun: str) -> BeforeValidator:
    def check(value: object) -> object:
        value = parse_boolean(value) if kind is bool else value
        if value is None or isinstance(value, kind) or (isinstance(value, str) and MARKUP.search(value)):
            return value
        raise ValueError(f"must be {noun}, or a template that gives one{instead_of(value)}")

    return BeforeValidator(check)


_Temperature = Annotated[float | str | None, _number_or_template(0, 2)]
_Share = Annotated[float | str | None, _number_or_template(0, 1)]
_Penalty = Annotated[float | str | None, _number_or_template(-2, 2)]
_Count = Annotated[int | str | None, _number_or_template(1, MANY, whole=True)]
_Choices = Annotated[int | str | None, _number_or_template(1, 128, whole=True)]
_Top = Annotated[int | str | None, _number_or_template(0, 20, whole=True)]
_Seed = Annotated[int | str | None, _number_or_template(-(2**63), 2**63 - 1, whole=True)]
_Flag = Annotated[bool | str | None, _or_template(bool, "true or false")]
_Mapping = Annotated[dict[str, Any] | str | None, _or_template(dict, "a mapping")]
_Tools = Annotated[list[dict[str, Any]] | str | None, _or_template(list, "a list of tools")]


class Params(Section):
    """What goes into each request beside model and messages. A value may be a template over the row.

    `stream` says how an answer travels, not what is asked: it is no part of `custom_id`, so that a job whose rows are
    done may be switched to streaming and back without asking, and paying for, anything again.
    """

    temperature: _Temperature = None
    top_p: _Share = None
    max_tokens: _Count = None
    max_completion_tokens: _Count = None
    presence_penalty: _Penalty = None
    frequency_penalty: _Penalty = None
    n: _Choices = None
    stop: str | list[str] | None = None
    seed: _Seed = None
    logprobs: _Flag = None
    top_logprobs: _Top = None
    logit_bias: dict[str, float] | None = None
    user: str | None = None
    response_format: _Mapping = None
    tools: _Tools = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: _Flag = None
    reasoning_effort: str | None = None
    service_tier: str | None = None
    stream: Switch = None
    extra_body: dict[str, Any] = Field(default_factory=dict)

    @field_validator("n")
    @classmethod
    def _one_answer(cls, value: object) -> object:
        if value not in (None, 1):
            raise ValueError("must be 1, or left out: `samples: N` of the job asks each row N times")
        return value

    @field_validator("stop")
    @classmethod
    def _few_stops(cls, value: str | list[str] | None) -> str | list[str] | None:
        if isinstance(value, list) and len(value) > 4:
            raise ValueError(f"must not hold more than 4 texts, and holds {len(value)}")
        return value

    @field_validator("extra_body")
    @classmethod
    def _no_clash(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if name in {"model", "messages", "stream_options", "n"}:
                instead = "; `samples: N` of the job asks each row N times" if name == "n" else ""
                raise ValueError(f"{name} cannot be set here: batchchat reads the answer by it{instead}")
            if name in cls.model_fields:
                raise ValueError(f"{name} is a param of its own: set it in params, not in extra_body")
            if is_secret_name(name):
                raise ValueError(
                    f"{name} must not stand in a job: name the key's place in provider.api_key_env or api_key_file"
                )
        return value

    def as_body(self) -> dict[str, Any]:
        """Return the params that are set, in an order of our own; `extra_body` is still apart."""
        return self.model_dump(exclude_unset=True, exclude_none=True, exclude={"stream"})
