"""Scorers of a record as a whole: latency, cost, length, and one's own function."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, PrivateAttr, model_validator

from batchchat.evaluation.scorers.matching import shown, text_of
from batchchat.evaluation.scorers.score_batch import ScoreBatch, Scores
from batchchat.evaluation.scorers.scorer import Judgement, Measure, Scorer, scores_of
from batchchat.evaluation.statistics.unit import SHARE, YES_NO, ScoreUnit


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


class Python(Scorer):
    """One's own function, `module:function`, beside the suite or installed.

    It takes a record as a dict (its input columns as they are now) and gives a number, a bool, None, or one of these
    with a reason. What it raises becomes the reason of a null. With the unit `yes/no` only 0, 1 and bools are values.
    """

    kind: Literal["python"] = "python"
    python: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
    unit: str = Field("score", min_length=1, max_length=40)
    higher_is_better: bool | None = True
    failed: Literal["wrong", "skip"] = "wrong"
    _function: Callable[[dict[str, Any]], Any] = PrivateAttr()

    @model_validator(mode="after")
    def _wrong_is_worst(self) -> Self:
        if self.failed == "wrong" and not self.higher_is_better:
            raise ValueError("where higher is not better, 0 is no penalty: set `failed: skip`")
        return self

    def model_post_init(self, context: Any, /) -> None:
        """Import the function. Raises ValueError, which pydantic reports, where that fails."""
        base = context.get("base") if isinstance(context, Mapping) else None
        self._function = _import(self.python, Path(base or "."))

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
        lines = zip(batch.failures(), batch.rows(), strict=True)
        return scores_of([(on_failure, failure) if failure is not None else self._call(row) for failure, row in lines])

    def _call(self, row: dict[str, Any]) -> Judgement:
        try:
            result = self._function(row)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the user's: whatever it raises is the row's reason
            return None, f"{self.python} raised {type(error).__name__}: {error}"
        value, reason = result if isinstance(result, tuple) and len(result) == 2 else (result, None)
        reason = None if reason is None else str(reason)
        if value is None:
            return None, reason or f"{self.python} gave None"
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if isinstance(value, str) or not math.isfinite(number):
            return None, f"{self.python} gave {shown(repr(value))}, which is no number"
        if not self.scale.low <= number <= self.scale.high or (self.scale.yes_no and number not in (0.0, 1.0)):
            return None, f"{self.python} gave {number:g}, which is no {self.unit}"
        return number, reason


def _import(target: str, base: Path) -> Callable[[dict[str, Any]], Any]:
    module_name, _, name = target.partition(":")
    folder = str(base.absolute())
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
