"""What every scorer is: a name, what it reads, and values with reasons for a batch of records."""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import pyarrow as pa
from pydantic import ConfigDict, Field, ValidationInfo, model_validator

from batchchat.evaluation.scorers.over_samples import OverSamples
from batchchat.evaluation.scorers.score_batch import Absent, ScoreBatch, Scores, check_column
from batchchat.evaluation.statistics.unit import YES_NO, ScoreUnit

Judgement = tuple[float | None, str | None]
"""A value and its reason; either may be None."""

Judge = Callable[[Any, Any], Judgement]
"""Judges an answer by what is expected."""

_REASON_CHARACTERS = 400
_SHORT = 200
"""Characters of a reason, and of a value inside of one: a reason is read in a table, beside others."""
_PLAIN = (str, int, float, bool, type(None))
_STATUS = frozenset({"status", "error_kind", "error_message"})


class Scorer(OverSamples, ABC):
    """Judges records one by one. `name` names the score in all results; a composite one is `name.metric`
    for each of its `METRICS`. `margin` is the difference, in the score's unit, that does not matter."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    SCALE: ClassVar[ScoreUnit] = YES_NO
    METRICS: ClassVar[tuple[str, ...]] = ()
    name: str = Field(pattern=r"^[\w-]+$", max_length=100)
    margin: float | None = Field(None, gt=0)

    @property
    def scale(self) -> ScoreUnit:
        """Unit, better direction and range of the values."""
        return self.SCALE

    @property
    @abstractmethod
    def columns(self) -> frozenset[str] | None:
        """The records' columns that it reads, without what follows a dot; None for all of them."""

    @property
    def inputs(self) -> frozenset[str] | None:
        """The current input's columns that it reads; None for all of them."""
        return frozenset()

    @abstractmethod
    def score(self, batch: ScoreBatch) -> Scores:
        """Values and reasons of a batch. Raises UsageError where a column is not there."""

    def session(self) -> Callable[[ScoreBatch], Scores]:
        """Return a function that scores batches of one output after another, and may learn from one for the next."""
        return self.score

    def check(self, record_columns: Collection[str], input_columns: Collection[str]) -> None:
        """Raise UsageError where a column that it reads is not among these; to be called before anything is sent."""
        for needed, known, where in (
            (self.columns, record_columns, "the output"),
            (self.inputs, input_columns, "the input"),
        ):
            for column in sorted(needed or ()):
                check_column(column, known, f"{where}, which scorer {self.name} reads")


class AnswerScorer(Scorer):
    """Judges the answer at `field`, a dotted path: `completion`, `parsed.label`, `tool_calls.0.name`."""

    field: str = Field("completion", min_length=1)
    failed: Literal["wrong", "skip"] = "wrong"

    @property
    def columns(self) -> frozenset[str]:
        """Status and reason of a record, and what is read of it."""
        return _STATUS | {self.field.partition(".")[0]}

    def score(self, batch: ScoreBatch) -> Scores:
        """Judge the answers that are there, by the module's rules for the others."""
        return self._score(self._judge(), batch)

    def session(self) -> Callable[[ScoreBatch], Scores]:
        """Score batch after batch with one judge."""
        return functools.partial(self._score, self._judge())

    def _score(self, one_judge: Judge, batch: ScoreBatch) -> Scores:
        on_failure = 0.0 if self.failed == "wrong" else None
        judge = _remembering(one_judge)
        judged: list[Judgement] = []
        for failure, answer, wanted in self._lines(batch):
            if isinstance(wanted, Absent):
                judged.append((None, wanted.reason))
            elif failure is not None:
                judged.append((on_failure, failure))
            elif isinstance(answer, Absent):
                judged.append((0.0, answer.reason))
            else:
                judged.append(judge(answer, wanted))
        return scores_of(judged)

    def _lines(self, batch: ScoreBatch) -> Iterable[tuple[str | None, Any, Any]]:
        """Failure, answer and expected value of each record."""
        return zip(batch.failures(), batch.answers(self.field), self.wanted(batch), strict=True)

    def wanted(self, batch: ScoreBatch) -> list[Any]:
        """Return what is expected of each record: None if nothing is, `Absent` if it should be there and is not."""
        return [None] * len(batch)

    @abstractmethod
    def _judge(self) -> Judge:
        """A judge for the batches of one output; it meets answers that are there, and nothing that is `Absent`."""


def _remembering(judge: Judge) -> Judge:
    """Judge each pair of short texts once a batch: labels and other short answers come up again and again."""
    judged: dict[tuple[str, Any, type[Any]], Judgement] = {}

    def recall(answer: Any, wanted: Any) -> Judgement:
        if type(answer) is not str or len(answer) > _SHORT or type(wanted) not in _PLAIN:
            return judge(answer, wanted)
        # 1, 1.0 and True are one key, but not one value.
        pair = (answer, wanted, type(wanted))
        found = judged.get(pair)
        if found is None:
            found = judged[pair] = judge(answer, wanted)
        return found

    return recall


class Comparing(AnswerScorer):
    """Compares the answer with `expected`, a column of the current input, or with the constant `value`."""

    expected: str | None = Field(None, min_length=1)
    value: Any = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.expected is None) == (self.value is None):
            raise ValueError("needs either `expected` (a column of the input) or `value` (a constant)")
        return self

    @property
    def inputs(self) -> frozenset[str]:
        """The `expected` column, if there is one."""
        return frozenset() if self.expected is None else frozenset({self.expected})

    def wanted(self, batch: ScoreBatch) -> list[Any]:
        """Return the expected value of each record, `Absent` if there is none."""
        if self.expected is None:
            return [self.value] * len(batch)
        missing = Absent(f"the input has no {self.expected} here")
        values = batch.expected(self.expected)
        # The same few labels come up again and again: each is looked at once a batch.
        told = {value for value in set(values) if self._says_nothing(value)} if _all_texts(values) else None
        if told is not None:
            return [missing if value in told else value for value in values] if told else list(values)
        return [missing if self._says_nothing(value) else value for value in values]

    def _says_nothing(self, value: Any) -> bool:
        """Return whether an expected value is none: null, NaN or infinite, or blank beside a whole answer.

        NaN is how a column of numbers writes that there is no value, and an empty field how a CSV file does. No answer
        is blank, so that nothing could equal it; a field of a typed answer may be.
        """
        if isinstance(value, float | Decimal):
            return not math.isfinite(value)
        return value is None or (isinstance(value, str) and self.field == "completion" and not value.strip())


def _all_texts(values: list[Any]) -> bool:
    """Return whether a column holds nothing but texts and nulls, which can be looked up by value."""
    return set(map(type, values)) <= {str, type(None)}


class Measure(Scorer):
    """A number that a record has or not, whatever was asked. Failed rows are null."""

    @abstractmethod
    def _source(self) -> str:
        """The dotted path at which the number, or what is measured, is read."""

    @property
    def columns(self) -> frozenset[str]:
        """Status and reason of a record, and what is read of it."""
        return _STATUS | {self._source().partition(".")[0]}

    def score(self, batch: ScoreBatch) -> Scores:
        """Return the numbers, or why there is none."""
        lines = zip(batch.failures(), batch.answers(self._source()), strict=True)
        return scores_of([self._line(failure, value) for failure, value in lines])

    def _line(self, failure: str | None, value: Any) -> Judgement:
        if failure is not None:
            return None, failure
        return (None, value.reason) if isinstance(value, Absent) else (self._measure(value), None)

    def _measure(self, value: Any) -> float:
        return float(value)


def base_of(info: ValidationInfo) -> Path:
    """Return the folder that a suite's paths are relative to: `base` of the validation context, or the current one."""
    context = info.context if isinstance(info.context, Mapping) else {}
    return Path(context.get("base", "."))


def scores_of(judged: list[Judgement]) -> Scores:
    """Judgements as columns; a reason is cut after 400 characters."""
    # A function of the user's may give a text that no UTF-8 can hold.
    reasons = [reason and reason[:_REASON_CHARACTERS].encode("utf-8", "replace").decode() for _, reason in judged]
    return Scores(pa.array([value for value, _ in judged], pa.float64()), pa.array(reasons, pa.string()))
