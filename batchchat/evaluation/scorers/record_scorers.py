"""Scorers of a record as a whole: latency, cost, length, and one's own function."""

from __future__ import annotations

import importlib
import inspect
import math
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import Field, PlainValidator, PrivateAttr, WithJsonSchema, model_validator

from batchchat.evaluation.scorers.matching import shown, text_of
from batchchat.evaluation.scorers.score_batch import ScoreBatch, Scores
from batchchat.evaluation.scorers.scorer import Judgement, Measure, Scorer, scores_of
from batchchat.evaluation.statistics.unit import SHARE, YES_NO, ScoreUnit

_Given: TypeAlias = float | bool | str | None
Given: TypeAlias = _Given | tuple[_Given, str | None]
"""What a function of one's own may return: a value, or a value and its reason."""

ScorerFunction: TypeAlias = Callable[[dict[str, Any], dict[str, Any]], Given] | Callable[[dict[str, Any]], Given]
"""A function of one's own. With two parameters it takes a record of the output and the input's row as it is now.

With one parameter it takes both as one dict: the record, with the columns of the row over those that it carries.
"""


class Latency(Measure):
    """Seconds of the last attempt."""

    kind: Literal["latency"] = "latency"
    SCALE: ClassVar[ScoreUnit] = ScoreUnit("seconds", False, 0.0)

    def _source(self) -> str:
        return "latency_s"


class Cost(Measure):
    """Money for all attempts of a row, in the provider's currency."""

    kind: Literal["cost"] = "cost"
    SCALE: ClassVar[ScoreUnit] = ScoreUnit("cost", False, 0.0)

    def _source(self) -> str:
        return "cost"


class Length(Measure):
    """How long the answer is: in `characters`, `words` (parts between white space), or the provider's `tokens`.

    Neither longer nor shorter is better, unless `higher_is_better` says so.
    """

    kind: Literal["length"] = "length"
    field: str = Field("completion", min_length=1)
    unit: Literal["characters", "words", "tokens"] = "characters"
    higher_is_better: bool | None = None

    @model_validator(mode="after")
    def _tokens_of_all(self) -> Self:
        if self.unit == "tokens" and self.field != "completion":
            raise ValueError("tokens are known of the whole completion only: leave out `field`")
        return self

    def _source(self) -> str:
        return "completion_tokens" if self.unit == "tokens" else self.field

    @property
    def scale(self) -> ScoreUnit:
        """Counts, from 0."""
        return ScoreUnit(self.unit, self.higher_is_better, 0.0)

    def _measure(self, value: Any) -> float:
        if self.unit == "tokens":
            return float(value)
        text = text_of(value)
        return float(len(text) if self.unit == "characters" else len(text.split()))


_TARGET = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"
_TARGET_SCHEMA = {"type": "string", "pattern": _TARGET}


def _target(value: Any) -> Any:
    """Return the name of a function, or the function. Raises ValueError for anything else."""
    if callable(value) or (isinstance(value, str) and re.match(_TARGET, value)):
        return value
    raise ValueError("must be a function as module:function")


class Python(Scorer):
    """One's own function: `module:function` beside the suite or installed, or the function itself.

    It gives a number, a bool, one of the texts in `labels`, None, or one of these with a reason; see `ScorerFunction`
    for what it takes. None leaves the row out. An error that it raises, or a value that is none of these, becomes the
    reason of a null. With the unit `yes/no` only 0, 1 and bools are values.
    """

    kind: Literal["python"] = "python"
    python: Annotated[str | ScorerFunction, PlainValidator(_target), WithJsonSchema(_TARGET_SCHEMA)]
    unit: str = Field("score", min_length=1, max_length=40)
    higher_is_better: bool | None = True
    labels: dict[str, float] | None = Field(None, min_length=1)
    failed: Literal["wrong", "skip"] = "wrong"
    _function: Callable[..., Any] = PrivateAttr()
    _takes_row: bool = PrivateAttr()

    @model_validator(mode="after")
    def _wrong_is_worst(self) -> Self:
        if self.failed == "wrong" and not self.higher_is_better:
            raise ValueError("where higher is not better, 0 is no penalty: set `failed: skip`")
        return self

    @model_validator(mode="after")
    def _labels_have_values(self) -> Self:
        for label, value in (self.labels or {}).items():
            if not self._is_value(value):
                raise ValueError(f"the value of the label {shown(label)} is {value:g}, which is no {self.unit}")
        return self

    def model_post_init(self, context: Any, /) -> None:
        """Find the function. Raises ValueError, which pydantic reports, if it cannot be imported or called."""
        base = context.get("base") if isinstance(context, Mapping) else None
        self._function = _import(self.python, Path(base or ".")) if isinstance(self.python, str) else self.python
        self._takes_row = takes_row(self._function, self._called)

    @property
    def _called(self) -> str:
        return self.python if isinstance(self.python, str) else getattr(self.python, "__name__", repr(self.python))

    @property
    def scale(self) -> ScoreUnit:
        """As the suite says; `yes/no` and `share` lie between 0 and 1."""
        bounded = self.unit in (YES_NO.unit, SHARE.unit)
        return ScoreUnit(self.unit, self.higher_is_better, *((0.0, 1.0) if bounded else ()))

    @property
    def columns(self) -> None:
        """All of them."""
        return None

    @property
    def inputs(self) -> None:
        """All of them."""
        return None

    def score(self, batch: ScoreBatch) -> Scores:
        """Call the function for each record that did not fail."""
        on_failure = 0.0 if self.failed == "wrong" else None
        failures = batch.failures()
        lines = batch.pairs() if self._takes_row else ((row,) for row in batch.rows())
        broken = 0
        judged: list[Judgement] = []
        for failure, arguments in zip(failures, lines, strict=True):
            if failure is not None:
                judged.append((on_failure, failure))
                continue
            judgement, fault = self._call(arguments)
            judged.append(judgement)
            broken += fault
        return replace(scores_of(judged), called=failures.count(None), broken=broken)

    def _call(self, arguments: tuple[dict[str, Any], ...]) -> tuple[Judgement, bool]:
        """Return the value and its reason for one record, and whether the function is at fault."""
        name = self._called
        try:
            result = self._function(*arguments)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the user's: whatever it raises is the row's reason
            return (None, f"{name} raised {type(error).__name__}: {error}"), True
        value, reason = result if isinstance(result, tuple) and len(result) == 2 else (result, None)
        reason = None if reason is None else str(reason)
        if value is None:
            return (None, reason or f"{name} gave None"), False
        try:
            number = self._number(value)
        except ValueError as error:
            return (None, f"{name} gave {error}"), True
        if isinstance(value, str):
            # The label is what a person wants to see beside its number.
            reason = f"{value}: {reason}" if reason else value
        return (number, reason), False

    def _number(self, value: Any) -> float:
        """Return what a function gave as a number. Raises ValueError, which says what it is instead."""
        if isinstance(value, str):
            if self.labels is None:
                raise ValueError(f"{shown(repr(value))}, which is no number, and the scorer has no `labels`")
            if value not in self.labels:
                raise ValueError(f"{shown(repr(value))}, which is none of its labels: {', '.join(self.labels)}")
            return self.labels[value]
        try:
            # Takes NumPy's numbers and decimals too, which functions of the user's give.
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise ValueError(f"{shown(repr(value))}, which is no number")
        if not self._is_value(number):
            raise ValueError(f"{number:g}, which is no {self.unit}")
        return number

    def _is_value(self, number: float) -> bool:
        scale = self.scale
        return scale.low <= number <= scale.high and (not scale.yes_no or number in (0.0, 1.0))


def scorer_fields(given: ScorerFunction | Mapping[str, Any]) -> Any:
    """Return the fields of a scorer that a program gives: those of its mapping, or those that a function stands for.

    A function that is annotated to return `bool` has the unit `yes/no`.
    """
    if not callable(given):
        return given
    found = {"name": getattr(given, "__name__", type(given).__name__), "python": given}
    # With `from __future__ import annotations` an annotation is its text.
    if getattr(given, "__annotations__", {}).get("return") in (bool, "bool"):
        found["unit"] = YES_NO.unit
    return found


def takes_row(function: Callable[..., Any], name: str) -> bool:
    """Return whether a function takes the input's row beside the record. Raises ValueError if it cannot be a scorer."""
    if inspect.iscoroutinefunction(function):
        raise ValueError(f"{name} is a coroutine function: a scorer is a plain function, and returns its value")
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        # Some functions of C tell no signature: they are called as functions were before there was a second form.
        return False
    places = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    needed = [one for one in places if one.default is one.empty]
    rest = any(one.kind is one.VAR_POSITIONAL for one in parameters)
    named = [one.name for one in parameters if one.kind is one.KEYWORD_ONLY and one.default is one.empty]
    if len(needed) > 2 or named or not (places or rest):
        raise ValueError(f"{name}{inspect.signature(function)} is no scorer: it takes (record, row), or (record) alone")
    # `(record, row=None)` means the row; another second parameter with a default is the function's own affair.
    return len(needed) == 2 or (len(places) > 1 and places[1].name == "row")


def _import(target: str, base: Path) -> Callable[[dict[str, Any]], Any]:
    module_name, _, name = target.partition(":")
    folder = str(base.absolute())
    # First in the path, so that the module beside the suite wins over an installed one of the same name.
    sys.path.insert(0, folder)
    try:
        function = getattr(importlib.import_module(module_name), name, None)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - importing runs the user's code: it may raise anything
        raise ValueError(f"{module_name} cannot be imported: {type(error).__name__}: {error}") from None
    finally:
        sys.path.remove(folder)
    if not callable(function):
        raise ValueError(f"{module_name} has no function {name!r}")
    made: Callable[[dict[str, Any]], Any] = function
    return made
