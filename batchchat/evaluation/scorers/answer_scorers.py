"""Scorers: what is right about an answer, as data from a suite's YAML.

A scorer is a frozen pydantic model, tagged by `kind`. It gives each record of a batch a value and a reason. What goes
wrong is told apart by whose fault it is:

- There is nothing to compare with, or the scorer cannot tell (a function that raises, a pattern that takes too long):
  null, with the reason.
- The row failed: 0, with the reason; `failed: skip` makes it null. Measures (latency, cost, length) skip always.
- The answer has nothing at the place asked for: 0, with the reason.

Scorers here look at records alone. Those that send requests of their own (a judge, a pairwise judge) are not
`Scorer`s: a suite that knows both kinds reads them by a table of both.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, get_args

import regex
from pydantic import BaseModel, Field, PrivateAttr, ValidationError, ValidationInfo, field_validator
from rapidfuzz.distance import Levenshtein

from batchchat.evaluation.scorers.matching import (
    DIFFERENCES,
    Difference,
    Mark,
    items_of,
    json_difference,
    normalize,
    number_of,
    numbers_in,
    read_json,
    same,
    shown,
    text_of,
    within,
)
from batchchat.evaluation.scorers.record_scorers import Cost, Latency, Length, Python
from batchchat.evaluation.scorers.score_batch import Absent, ScoreBatch, Scores
from batchchat.evaluation.scorers.scorer import AnswerScorer, Comparing, Judge, Judgement, Scorer, base_of
from batchchat.evaluation.statistics.unit import SHARE, ScoreUnit
from batchchat.job.origin import FieldPlace, Origins, combined, job_error
from batchchat.job.values import nearest
from batchchat.job.wording import Grammar, validation_errors

AnyScorer = TypeVar("AnyScorer", bound=BaseModel)


class Exact(Comparing):
    """Right where the answer is the expected value to the letter.

    Numbers compare as numbers, also beside a text in plain digits: 1.0 of a column with missing values equals `1`. A
    boolean equals the texts `true` and `false` in any case, and no other words.
    """

    kind: Literal["exact"] = "exact"

    def _judge(self) -> Judge:
        return lambda answer, wanted: (float(same(answer, wanted)), None)


class Normalized(Comparing):
    """Right where the texts are the same but for the differences in `ignore`: all four by default."""

    kind: Literal["normalized"] = "normalized"
    ignore: frozenset[Difference] = Field(frozenset(DIFFERENCES), min_length=1)

    def _judge(self) -> Judge:
        ignore = self.ignore
        return lambda answer, wanted: (
            float(same(answer, wanted) or normalize(text_of(answer), ignore) == normalize(text_of(wanted), ignore)),
            None,
        )


class _Texts(Comparing):
    """Looks for one text or a list of texts."""

    ignore_case: bool = False

    def _missing(self, answer: Any, wanted: Any) -> tuple[list[str], list[str]]:
        """The texts looked for, and those of them that the answer does not hold."""
        sought = [
            text
            for text in map(
                text_of, [each for each in (wanted if isinstance(wanted, list) else [wanted]) if each is not None]
            )
            if text
        ]
        held = text_of(answer).casefold() if self.ignore_case else text_of(answer)
        return sought, [text for text in sought if (text.casefold() if self.ignore_case else text) not in held]

    @abstractmethod
    def _right(self, sought: list[str], missing: list[str]) -> bool:
        """Whether the answer holds enough."""

    def _judge(self) -> Judge:
        def judge(answer: Any, wanted: Any) -> Judgement:
            sought, missing = self._missing(answer, wanted)
            # Without a text to find every answer would be right.
            if not sought:
                return None, "the expected value names no text to look for"
            right = self._right(sought, missing)
            return float(right), None if right else f"not found: {', '.join(map(shown, missing))}"

        return judge


class Contains(_Texts):
    """Right where the answer holds the expected text."""

    kind: Literal["contains"] = "contains"

    @field_validator("value")
    @classmethod
    def _single(cls, value: Any) -> Any:
        if isinstance(value, list | dict):
            raise ValueError("is one text; `all_of` and `any_of` take a list")
        return value

    def _missing(self, answer: Any, wanted: Any) -> tuple[list[str], list[str]]:
        # A list from a typed column is one text here, and not several to look for.
        return super()._missing(answer, text_of(wanted))

    def _right(self, sought: list[str], missing: list[str]) -> bool:
        return not missing


class AllOf(_Texts):
    """Right where the answer holds every expected text."""

    kind: Literal["all_of"] = "all_of"

    def _right(self, sought: list[str], missing: list[str]) -> bool:
        return not missing


class AnyOf(_Texts):
    """Right where the answer holds at least one expected text."""

    kind: Literal["any_of"] = "any_of"

    def _right(self, sought: list[str], missing: list[str]) -> bool:
        return len(missing) < len(sought)


class Regex(AnswerScorer):
    """Right where the pattern is found in the answer, or is all of it (`full`).

    The syntax is that of the `regex` library, which holds that of `re`. A row may take a quarter of a second, and the
    slow rows of a variant five seconds together; what comes after them is not tried, and null. No pattern can hold up a
    scoring.
    """

    kind: Literal["regex"] = "regex"
    pattern: str = Field(min_length=1)
    full: bool = False
    ignore_case: bool = False

    ROW_SECONDS: ClassVar[float] = 0.25
    SLOW_S: ClassVar[float] = 0.005
    ALL_SLOW_S: ClassVar[float] = 5.0

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str) -> str:
        try:
            regex.compile(value)
        except regex.error as error:
            raise ValueError(f"is not a regular expression: {error}") from None
        return value

    def _judge(self) -> Judge:
        compiled = regex.compile(self.pattern, regex.IGNORECASE if self.ignore_case else 0)
        find = compiled.fullmatch if self.full else compiled.search
        spent = 0.0

        def judge(answer: Any, _: Any) -> Judgement:
            nonlocal spent
            # One slow pattern over a million rows would take days, although no row takes long.
            if spent >= self.ALL_SLOW_S:
                return None, "not tried: the pattern took too long on rows before"
            started = time.perf_counter()
            try:
                return float(find(text_of(answer), timeout=self.ROW_SECONDS) is not None), None
            except TimeoutError:
                return None, f"the pattern took longer than {self.ROW_SECONDS:g} s"
            finally:
                took = time.perf_counter() - started
                # Quick rows are not added up: their sum is a matter of how many there are, not of the pattern.
                if took >= self.SLOW_S:
                    spent += took

        return judge


class Numeric(Comparing):
    """Right where the answer's number is off by no more than `absolute`, or `relative` times the expected number.

    A text's number is its `last` one, since a reasoning ends with its result, or the `first` or the `only` one.
    `decimal` names the decimal mark; the other mark groups thousands, and so do apostrophes and no-break spaces.
    """

    kind: Literal["numeric"] = "numeric"
    absolute: float = Field(0.0, ge=0)
    relative: float = Field(0.0, ge=0)
    pick: Literal["first", "last", "only"] = "last"
    decimal: Mark = "."

    @field_validator("value")
    @classmethod
    def _is_number(cls, value: Any) -> Any:
        if value is not None and number_of(value) is None:
            raise ValueError(f"is a number, not {shown(value)}")
        return value

    def _number(self, value: Any, pick: str) -> Decimal | None:
        if not isinstance(value, str):
            return number_of(value)
        found = numbers_in(value, self.decimal)
        if not found or (pick == "only" and len(found) > 1):
            return None
        return found[-1] if pick == "last" else found[0]

    def _judge(self) -> Judge:
        absolute, relative = Decimal(repr(self.absolute)), Decimal(repr(self.relative))

        def judge(answer: Any, wanted: Any) -> Judgement:
            target = self._number(wanted, "only")
            if target is None:
                return None, f"the expected value {shown(wanted)} is not one number"
            found = self._number(answer, self.pick)
            if found is None:
                return 0.0, "the answer holds not exactly one number" if self.pick == "only" else "no number found"
            right = within(found, target, absolute=absolute, relative=relative)
            return float(right), None if right else f"found {found}, expected {target}"

        return judge


class JsonEqual(Comparing):
    """Right where the answer and the expected value are the same JSON; a text is read as JSON first.

    A key whose value is null counts as absent, since a typed column cannot tell these apart, and 1 equals 1.0. The
    order of keys does not matter; that of lists does, unless `ignore_order`. A text that is no JSON is itself.
    """

    kind: Literal["json_equal"] = "json_equal"
    ignore_order: bool = False

    def _judge(self) -> Judge:
        def judge(answer: Any, wanted: Any) -> Judgement:
            found, target = _as_json(answer), _as_json(wanted)
            # A text that is no JSON, such as a bare word, may still be just what is expected.
            if isinstance(found, str) and same(found.strip(), target):
                return 1.0, None
            if isinstance(found, str) and not isinstance(target, str):
                return 0.0, "the answer is not JSON"
            difference = json_difference(found, target, ignore_order=self.ignore_order)
            return float(difference is None), difference

        return judge


def _as_json(value: Any) -> Any:
    try:
        return read_json(value) if isinstance(value, str) else value
    except ValueError:
        return value


class JsonSchema(AnswerScorer):
    """Right where the answer's text is JSON that a JSON Schema allows: inline, or the path of a JSON file.

    A typed column no longer tells a missing key from a null, so only text is judged. References to other documents are
    not followed.
    """

    kind: Literal["schema"] = "schema"
    schema_: dict[str, Any] | bool = Field(alias="schema")
    _validator: Any = PrivateAttr()

    @field_validator("schema_", mode="before")
    @classmethod
    def _from_file(cls, value: Any, info: ValidationInfo) -> Any:
        if not isinstance(value, str):
            return value
        path = base_of(info) / value
        try:
            return read_json(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise ValueError(f"{path} is not JSON: {error}") from None

    def model_post_init(self, context: Any, /) -> None:
        """Compile the schema. Raises ValueError, which pydantic reports, where it is none."""
        import jsonschema_rs

        def refuse(uri: str) -> Any:
            raise ValueError(f"it refers to {uri}, and other documents are not read")

        try:
            self._validator = jsonschema_rs.validator_for(self.schema_, retriever=refuse, validate_formats=True)
        except Exception as error:  # noqa: BLE001 - an unreadable schema or reference, whatever the library raises
            problem = str(error).partition("\n")[0]
            raise ValueError(f"schema: is not a usable JSON Schema: {problem}") from None

    def _judge(self) -> Judge:
        def judge(answer: Any, _: Any) -> Judgement:
            # Arrow gives every struct all of its fields: what was missing is null there.
            if not isinstance(answer, str):
                return None, f"{self.field} is typed: only an answer's text can be held against a schema"
            try:
                value = read_json(answer)
            except ValueError:
                return 0.0, "the answer is not JSON"
            error = next(iter(self._validator.iter_errors(value)), None)
            if error is None:
                return 1.0, None
            return 0.0, f"{'.'.join(['$', *map(str, error.instance_path)])}: {error.message}"

        return judge


class SetF1(Comparing):
    """F1 of the answer's items against the expected ones: 1 for the same set, 0 where none is shared.

    A list is taken as it is; a text is a JSON list, or items between `separator`. Items are trimmed texts.
    """

    kind: Literal["set_f1"] = "set_f1"
    separator: str = Field(",", min_length=1)
    ignore_case: bool = False

    SCALE: ClassVar[ScoreUnit] = SHARE

    def _says_nothing(self, value: Any) -> bool:
        # A blank text is a list of no items, which an answer may give too: `[]`.
        return not isinstance(value, str) and super()._says_nothing(value)

    def _judge(self) -> Judge:
        def items(value: Any) -> set[str]:
            return {text.casefold() if self.ignore_case else text for text in items_of(value, self.separator)}

        def judge(answer: Any, wanted: Any) -> Judgement:
            found, target = items(answer), items(wanted)
            if found == target:
                return 1.0, None
            sides = (("missing", target - found), ("extra", found - target))
            reason = "; ".join(f"{side}: {', '.join(sorted(texts))}" for side, texts in sides if texts)
            return 2 * len(found & target) / (len(found) + len(target)), reason

        return judge


class Classes(Comparing):
    """Right where the answer is the expected class; all rows give `accuracy`, `macro_f1` and a confusion matrix.

    White space around a label never counts; with `normalized` neither do case, inner space, punctuation and Unicode
    forms. With `labels`, an answer outside of them is wrong, and an expected value outside of them is null.
    """

    kind: Literal["classes"] = "classes"
    labels: tuple[str, ...] | None = Field(None, min_length=2)
    normalized: bool = False

    METRICS: ClassVar[tuple[str, ...]] = ("accuracy", "macro_f1")

    def _score(self, one_judge: Judge, batch: ScoreBatch) -> Scores:
        scores = super()._score(one_judge, batch)
        spelling = {self._label(label): label for label in self.labels or ()}
        spelled: dict[str, str] = {}

        def spell(value: Any) -> str:
            text = text_of(value)
            label = spelled.get(text)
            if label is None:
                key = self._label(text)
                # One object per label, so that a label costs a pointer per record.
                label = spelled[text] = spelling.setdefault(key, key)
            return label

        expected: list[str | None] = []
        given: list[str | None] = []
        for value, line in zip(scores.values.to_pylist(), self._lines(batch), strict=True):
            failure, answer, wanted = line
            counts = value is not None
            expected.append(spell(wanted) if counts else None)
            answered = counts and failure is None and not isinstance(answer, Absent)
            # What is right has one name, also if 1.0 was expected and `1` was answered.
            given.append(spell(wanted if value else answer) if answered else None)
        return Scores(scores.values, scores.reasons, (expected, given))

    def _label(self, value: Any) -> str:
        text = text_of(value).strip()
        return normalize(text) if self.normalized else text

    def _judge(self) -> Judge:
        known = {self._label(label) for label in self.labels} if self.labels else None

        def judge(answer: Any, wanted: Any) -> Judgement:
            target, label = self._label(wanted), self._label(answer)
            if known is not None and target not in known:
                return None, f"the expected value {shown(wanted)} is none of the labels"
            if label == target or same(answer.strip() if isinstance(answer, str) else answer, wanted):
                return 1.0, None
            stray = known is not None and label not in known
            return 0.0, f"{shown(answer)} is none of the labels" if stray else None

        return judge


class EditSimilarity(Comparing):
    """1 less the Levenshtein distance over the length of the longer text: 1 for equal texts."""

    kind: Literal["edit_similarity"] = "edit_similarity"
    ignore_case: bool = False

    SCALE: ClassVar[ScoreUnit] = SHARE

    def _judge(self) -> Judge:
        prepare = str.casefold if self.ignore_case else None
        return lambda answer, wanted: (
            Levenshtein.normalized_similarity(text_of(answer), text_of(wanted), processor=prepare),
            None,
        )


LocalScorer = (
    Exact
    | Normalized
    | Contains
    | AllOf
    | AnyOf
    | Regex
    | Numeric
    | JsonEqual
    | JsonSchema
    | SetF1
    | Classes
    | EditSimilarity
    | Latency
    | Cost
    | Length
    | Python
)
"""Every scorer that needs no requests of its own."""

MODELS: Mapping[str, type[Scorer]] = {str(model.model_fields["kind"].default): model for model in get_args(LocalScorer)}
"""The model of each kind."""

KINDS: tuple[str, ...] = tuple(MODELS)
_EXAMPLES: Mapping[FieldPlace, str] = {
    ("name",): "name: accuracy",
    ("pattern",): 'pattern: "[a-z_]+"',
    ("rubric",): "rubric: Does the answer keep to the facts of the input?",
}
_PATTERNS: Mapping[FieldPlace, str] = {
    ("name",): "must be a name of letters, digits, _ and -",
}


def model_of(data: Any, models: Mapping[str, type[AnyScorer]]) -> type[AnyScorer]:
    """Return the model of a scorer's `kind`; `{name: …, python: module:function}` needs none. Raises ValueError."""
    if not isinstance(data, Mapping):
        raise ValueError("must be a mapping, such as {name: accuracy, kind: exact, expected: label}")
    kind = data.get("kind", "python" if "python" in data else None)
    if kind is None:
        raise ValueError(f"needs a `kind`: {', '.join(models)}")
    if not isinstance(kind, str) or kind not in models:
        raise ValueError(
            f"{shown(kind)} is no kind of scorer{nearest(str(kind), models)}; known are {', '.join(models)}"
        )
    return models[kind]


def read_one(
    data: Any,
    models: Mapping[str, type[AnyScorer]],
    *,
    base: Path,
    at: FieldPlace,
    origins: Origins,
    file: Path | None,
) -> AnyScorer:
    """Read a scorer from the value at a place of a file; paths and modules are looked for in `base`.

    Raises JobError for all that is wrong.
    """
    try:
        model = model_of(data, models)
    except ValueError as error:
        place = (*at, "kind") if isinstance(data, Mapping) and "kind" in data else at
        raise job_error(str(error), place, origins, file) from None
    try:
        return model.model_validate(data, context={"base": base})
    except ValidationError as error:
        grammar = Grammar({(): model}, _EXAMPLES, _PATTERNS)
        raise combined(validation_errors(error, data, origins, file, grammar=grammar, at=at)) from None


def read_scorer(data: Mapping[str, Any], *, base: Path = Path()) -> Scorer:
    """Read a scorer from plain data; paths and modules are looked for in `base`. Raises JobError, which says all."""
    at = f"scorer {data['name']}" if "name" in data else "scorer"
    return read_one(data, MODELS, base=base, at=(at,), origins={}, file=None)
