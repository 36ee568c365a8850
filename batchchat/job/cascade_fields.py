"""The fields of a cascade: models that are asked one after the other."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from batchchat.job.params import MARKUP, Params
from batchchat.job.pool_fields import LimitFields, PoolFields, Prices
from batchchat.job.values import Name, Number, Section

_NOT_BY_STEP = (
    "stream",
    "response_format",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "service_tier",
    "extra_body",
)
"""Params that say how all answers are read, judged or priced: they are the same at each step."""


class StepAccept(Section):
    """Which answers of a step are taken: those with at least this confidence, from 0 to 1."""

    confidence: Number = Field(ge=0, le=1)


class CascadeStep(Section):
    """One model of a cascade. What is not set here is as the job has it.

    `accept` says which answers are taken; the last step has none. `params` take the place of the job's params of the
    same names, and null takes one away. `limits` are beside those of the job, `prices` are those of the model.
    """

    model: Name
    accept: StepAccept | None = None
    provider: str | PoolFields | None = None
    params: dict[str, Any] = Field(default_factory=dict)
    limits: LimitFields | None = None
    prices: Prices | None = None

    @field_validator("params", mode="before")
    @classmethod
    def _values(cls, value: object) -> object:
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise ValueError("must be a mapping of params, such as {max_tokens: 200}")
        for name, one in value.items():
            if name in _NOT_BY_STEP:
                raise ValueError(f"{name} is the same at each step: set it in the job's params")
            if isinstance(one, str) and MARKUP.search(one):
                raise ValueError(f"{name} is a template, and a step has fixed values: give one value for all rows")
        # The params of a job have types and bounds of their own; null is not one of their values, and removes one here.
        checked = Params.model_validate(value).model_dump(exclude_unset=True)
        return {name: checked.get(name) for name in value}
