"""The params of a job: the body's fields beside `messages`, most of them the same for every row."""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from batchchat.errors import JobError
from batchchat.template.leaf import Leaf, NativeLeaf, RowTemplateError, Values, parse, single_expression
from batchchat.template.messages import weight
from batchchat.template.plain import canonical, to_json
from batchchat.template.sandbox import Environment

_RESERVED = frozenset({"model", "messages"})
_IN_PROMPT = frozenset({"tools", "functions", "response_format"})
"""Params that a server writes into the prompt, so that they count as prompt tokens."""
_LENGTHS = ("max_completion_tokens", "max_tokens")


class Params:
    """Compiled params.

    Where no row changes them (`varies` is false), `head` is the body up to its messages, `canonical` what goes into the
    digest, `max_tokens` the longest answer asked for and `tokens` what the params add to the prompt; otherwise `render`
    gives these four for each row.
    """

    def __init__(self, environment: Environment, model: str, params: Mapping[str, Any]) -> None:
        self._environment = environment
        self._model = model
        self.names: frozenset[str] = frozenset()
        self._fields = {name: self._compile(value, f"params.{name}") for name, value in _merged(params).items()}
        self.varies = any(_varies(value) for value in self._fields.values())
        self.head = self.canonical = b""
        self.max_tokens: int | None = None
        self.tokens = 0
        if not self.varies:
            try:
                self.head, self.canonical, self.max_tokens, self.tokens = self.render({})
            except RowTemplateError as error:
                raise JobError(str(error)) from None

    def render(self, values: Values) -> tuple[bytes, bytes, int | None, int]:
        """Return head, canonical params, max_tokens and prompt tokens for one row."""
        fields: dict[str, Any] = {"model": self._model}
        for name, value in self._fields.items():
            filled = _fill(value, values)
            if filled is not None:
                fields[name] = filled
        try:
            head = to_json(fields)
            told_apart = to_json(canonical(fields), sort=True)
        except (TypeError, ValueError, RecursionError) as error:
            raise RowTemplateError(f"params: {error}") from None
        lengths = [fields[name] for name in _LENGTHS if type(fields.get(name)) is int]
        written = sum(weight(to_json(fields[name]).decode()) for name in _IN_PROMPT if name in fields)
        return head[:-1] + b',"messages":', told_apart, lengths[0] if lengths else None, (written + 7) >> 3

    def _compile(self, value: Any, place: str) -> Any:
        if isinstance(value, str):
            return self._compile_text(value, place)
        if isinstance(value, Mapping):
            return {str(name): self._compile(item, f"{place}.{name}") for name, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._compile(item, f"{place}[{index}]") for index, item in enumerate(value)]
        if isinstance(value, float) and not math.isfinite(value):
            raise JobError(f"{value} is not a number that JSON can hold", field=place)
        return value

    def _compile_text(self, source: str, place: str) -> Any:
        expression = single_expression(parse(self._environment, source.strip(), place))
        leaf: Leaf | NativeLeaf
        if expression is not None:
            leaf = NativeLeaf(self._environment, expression, place)
        else:
            leaf = Leaf(self._environment, source, place)
            if leaf.constant is not None:
                return leaf.constant
        self.names |= leaf.names
        return leaf


def _merged(params: Mapping[str, Any]) -> dict[str, Any]:
    """Put `extra_body` beside the params."""
    extra = params.get("extra_body") or {}
    if not isinstance(extra, Mapping):
        raise JobError("is a mapping of fields for the request body", field="params.extra_body")
    fields = {name: value for name, value in params.items() if name != "extra_body"}
    for name in extra:
        if name in fields:
            raise JobError(f"{name} is set in params too: keep one of the two", field=f"params.extra_body.{name}")
    fields.update(extra)
    for name in _RESERVED & set(fields):
        raise JobError(f"{name} is a field of the job, not a param", field=f"params.{name}")
    return fields


def _varies(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_varies, value.values()))
    if isinstance(value, list):
        return any(map(_varies, value))
    return isinstance(value, Leaf | NativeLeaf)


def _fill(value: Any, values: Values) -> Any:
    if isinstance(value, Leaf):
        return value.render(values)
    if isinstance(value, NativeLeaf):
        return _number(value.render(values), value.place)
    if isinstance(value, dict):
        return {name: _fill(item, values) for name, item in value.items()}
    if isinstance(value, list):
        return [_fill(item, values) for item in value]
    return value


def _number(value: Any, place: str) -> Any:
    """A Decimal becomes a number, as a param is one on the wire; NaN and infinity have no JSON form."""
    if isinstance(value, Decimal) and value.is_finite():
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, Decimal | float) and not math.isfinite(value):
        raise RowTemplateError(f"{place}: {value} is not a number that JSON can hold")
    return value
