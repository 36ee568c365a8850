"""The params of a job: the body's fields beside `messages`, most of them the same for every row."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from decimal import Decimal
from types import MappingProxyType
from typing import Any, NamedTuple

from batchchat.errors import JobError
from batchchat.template.leaf import Leaf, NativeLeaf, RowTemplateError, Values, parse, single_expression
from batchchat.template.messages import weight
from batchchat.template.plain import canonical, to_json
from batchchat.template.sandbox import Environment

_RESERVED = frozenset({"model", "messages"})
_IN_PROMPT = frozenset({"tools", "functions", "response_format"})
"""Params that a server writes into the prompt, so that they count as prompt tokens."""
_COUNTS = frozenset({"max_tokens", "max_completion_tokens", "n", "seed", "top_logprobs"})
"""Params that are whole numbers."""
_NUMBERS = frozenset(
    {"temperature", "top_p", "max_tokens", "max_completion_tokens", "presence_penalty", "frequency_penalty"}
    | {"n", "top_logprobs", "seed"}
)
_FLAGS = frozenset({"logprobs", "parallel_tool_calls"})
_NUMBER_TEXT = re.compile(r"[+-]?(?:\d{1,300}(?:\.\d{0,300})?|\.\d{1,300})(?:[eE][+-]?\d{1,2})?", re.ASCII)
LENGTHS = ("max_completion_tokens", "max_tokens")


class Written(NamedTuple):
    """A field as bytes: as it is sent, and in canonical form; `value` is what it says."""

    sent: bytes
    canonical: bytes
    value: Any
    weight: int


class CompiledParams:
    """Compiled params.

    Where no row changes them (`varies` is false), `head` is the body up to its messages, `canonical` what goes into the
    digest, `max_tokens` the longest answer asked for and `tokens` what the params add to the prompt; otherwise `render`
    gives these four for each row, and writes anew only the fields that the row does change. The fields of `transfer`
    stand in the body as they are, and in no digest.
    """

    def __init__(
        self,
        environment: Environment,
        model: str,
        params: Mapping[str, Any],
        fixed: Mapping[str, Any] = MappingProxyType({}),
        transfer: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self._environment = environment
        self.names: frozenset[str] = frozenset()
        self._transfer = b"".join(b",%b:%b" % (to_json(name), to_json(value)) for name, value in transfer.items())
        fields = {"model": model, **_merged(params)}
        compiled = {
            name: value if name == "model" else self._compile(value, f"params.{name}") for name, value in fields.items()
        } | dict(fixed)
        self.varies = any(map(_varies, compiled.values()))
        self._varying = [(name, value) for name, value in compiled.items() if _varies(value)]
        self.head = self.canonical = b""
        self.max_tokens: int | None = None
        self.tokens = 0
        try:
            self._written = {name: None if _varies(value) else write(name, value) for name, value in compiled.items()}
            # Params that are the same for all rows are written once, and not for each of a million rows.
            if not self.varies:
                self.head, self.canonical, self.max_tokens, self.tokens = self.render({})
        except RowTemplateError as error:
            raise JobError(str(error)) from None

    def render(self, values: Values) -> tuple[bytes, bytes, int | None, int]:
        """Return head, canonical params, max_tokens and prompt tokens for one row."""
        return self.joined(self.fields(values))

    def fields(self, values: Values) -> dict[str, Written | None]:
        """Return the fields of one row's body, in their order; None for one that is left out."""
        written = self._written
        if self._varying:
            written = written.copy()
            for name, value in self._varying:
                written[name] = write(name, _typed(name, _fill(value, values)))
        return written

    def joined(self, written: Mapping[str, Written | None]) -> tuple[bytes, bytes, int | None, int]:
        """Put the fields of a body together, as `render` returns them."""
        there = [field for field in written.values() if field is not None]
        head = b",".join([field.sent for field in there])
        told_apart = b",".join([field.canonical for _, field in sorted(written.items()) if field is not None])
        lengths = (written.get(name) for name in LENGTHS)
        longest = next((field.value for field in lengths if field is not None and type(field.value) is int), None)
        weights = sum([field.weight for field in there])
        return b'{%b%b,"messages":' % (head, self._transfer), b"{%b}" % told_apart, longest, (weights + 7) >> 3

    def constant(self, name: str) -> tuple[bool, Any]:
        """Return whether a param is the same for every row, and then its value."""
        field = self._written.get(name)
        return name not in dict(self._varying), None if field is None else field.value

    def _compile(self, value: Any, place: str) -> Any:
        if isinstance(value, str):
            return self._compile_text(value, place)
        if isinstance(value, Mapping):
            return {str(name): self._compile(item, f"{place}.{name}") for name, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._compile(item, f"{place}.{index}") for index, item in enumerate(value)]
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
            # A text without a hole keeps its type: it is written as the job has it.
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
        # Which of the two goes out would depend on their order.
        if name in fields:
            raise JobError(f"{name} is set in params too: keep one of the two", field=f"params.extra_body.{name}")
    fields.update(extra)
    for name in _RESERVED & set(fields):
        raise JobError(f"{name} is a field of the job, not a param", field=f"params.{name}")
    return fields


def write(name: str, value: Any) -> Written | None:
    """Write a field; None leaves it out. RowTemplateError if JSON has no form for it."""
    if value is None:
        return None
    try:
        key = to_json(name) + b":"
        data = to_json(value)
        plain = type(value) is int or type(value) is str
        told_apart = data if plain else to_json(canonical(value), sort=True)
        heavy = weight(data.decode()) if name in _IN_PROMPT else 0
    except (TypeError, ValueError, RecursionError) as error:
        raise RowTemplateError(f"params.{name}: {error}") from None
    return Written(key + data, key + told_apart, value, heavy)


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


def _typed(name: str, value: Any) -> Any:
    """Return what a param is on the wire: a CSV holds `0.5` as a text. An empty text leaves the param out.

    A whole number stays one: a column of integers with missing values holds 64.0, which no API takes for a count.
    """
    if isinstance(value, float) and name in _COUNTS and value.is_integer():
        return int(value)
    if not isinstance(value, str) or (name not in _NUMBERS and name not in _FLAGS):
        return value
    text = value.strip()
    # An empty cell leaves the field out for this row; servers refuse an empty text for a number.
    if not text:
        return None
    if name in _FLAGS:
        if text.lower() not in {"true", "false"}:
            raise RowTemplateError(f"params.{name}: must be true or false, not {text[:100]!r}")
        return text.lower() == "true"
    if not _NUMBER_TEXT.fullmatch(text):
        raise RowTemplateError(f"params.{name}: must be a number, not {text[:100]!r}")
    try:
        return int(text)
    except ValueError:
        number = float(text)
    if not math.isfinite(number):
        raise RowTemplateError(f"params.{name}: must be a finite number, not {text[:100]!r}")
    return int(number) if name in _COUNTS and number.is_integer() else number


def _number(value: Any, place: str) -> Any:
    """Return a Decimal as a number, as a param is one on the wire; NaN and infinity have no JSON form."""
    if isinstance(value, Decimal) and value.is_finite():
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, Decimal) or (isinstance(value, float) and not math.isfinite(value)):
        raise RowTemplateError(f"{place}: {value} is not a number that JSON can hold")
    return value
