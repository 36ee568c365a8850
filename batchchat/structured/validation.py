"""Judging an answer: is there exactly one JSON value in it that fits the schema, and if not, why."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import jsonschema_rs

from batchchat.structured.arrow import Misfit, ParsedColumn
from batchchat.structured.dialect import path_text, shorten
from batchchat.structured.find import NotJSON, embedded, fenced, parse

MAX_ERRORS = 10
"""How many reasons are kept of one answer."""

_MAX_BRANCHES = 4


@dataclass(frozen=True, slots=True)
class Answer:
    """What was found in an answer.

    `parsed` is the value for the typed column where there are no `errors` (`None` is a value too). `tolerated` says
    that it stood in a fence or among other text.
    """

    parsed: Any = None
    errors: tuple[str, ...] = ()
    tolerated: bool = False

    @property
    def ok(self) -> bool:
        """Whether the answer fits."""
        return not self.errors


class AnswerValidator:
    """One schema, compiled once, against many answers. Holds no state between them; threads may share it."""

    def __init__(self, validator: jsonschema_rs.Validator, column: ParsedColumn) -> None:
        self._validator = validator
        self._column = column

    def read(self, text: str | None) -> Answer:
        """Judge an answer's text. Never raises, and takes time linear in the text's length to find JSON in it.

        The text as a whole is tried first, then what stands in code fences, then what stands among other text. Where
        several different values fit, or one fits beside one that is broken, none is taken: which of them was meant is
        not ours to say.
        """
        if text is None or not text.strip():
            return Answer(errors=("the answer is empty",))
        try:
            value = parse(text)
        except NotJSON as problem:
            return self._tolerant(text, problem)
        return self._judged(value, tolerated=False)

    def _tolerant(self, text: str, problem: NotJSON) -> Answer:
        first: Answer | None = None
        for find in (fenced, embedded):
            items = list(find(text))
            found = [
                Answer(errors=(f"the answer is not taken as JSON: {shorten(str(item))}",))
                if isinstance(item, NotJSON)
                else self._judged(item, tolerated=True)
                for item in items
            ]
            fitting = {json.dumps(answer.parsed, sort_keys=True): answer for answer in found if answer.ok}
            if len(fitting) == 1 and not any(isinstance(item, NotJSON) for item in items):
                return next(iter(fitting.values()))
            if len(fitting) > 1:
                return Answer(errors=(f"the answer holds {len(fitting)} different JSON values that fit: give one",))
            # Of several that do not fit, the last is most likely the one that was meant.
            first = first or next((answer for answer in reversed(found) if not answer.ok), None)
        if first is not None:
            return first
        if text.lstrip()[:1] in {"{", "[", '"'}:
            return Answer(errors=(f"the answer is not JSON: {shorten(str(problem))}",))
        return Answer(errors=("there is no JSON in the answer",))

    def _judged(self, value: Any, *, tolerated: bool) -> Answer:
        errors = value_errors(self._validator, value)
        if errors:
            return Answer(errors=errors, tolerated=tolerated)
        try:
            return Answer(self._column.convert(value), tolerated=tolerated)
        except Misfit as misfit:
            return Answer(errors=(f"{path_text(misfit.path)}: {misfit.reason}",), tolerated=tolerated)


def value_errors(validator: jsonschema_rs.Validator, value: Any) -> tuple[str, ...]:
    """Say why a JSON value does not fit: at most `MAX_ERRORS` bounded texts, each with a path; none where it fits."""
    try:
        if validator.is_valid(value):
            return ()
        messages = list(dict.fromkeys(_messages(validator.iter_errors(value), _MAX_BRANCHES)))
    except ValueError as error:
        return (shorten(str(error)),)
    if len(messages) > MAX_ERRORS:
        messages[MAX_ERRORS - 1 :] = ["and there is more that does not fit"]
    return tuple(messages)


def _messages(errors: Iterable[jsonschema_rs.ValidationError], branches: int) -> list[str]:
    messages: list[str] = []
    for error in islice(errors, 2 * MAX_ERRORS):
        branch = _nearest_branch(error) if branches else None
        if branch is not None:
            messages += _messages(branch, branches - 1)
        else:
            messages.append(f"{path_text(error.instance_path)}: {shorten(error.message)}")
        if len(messages) > MAX_ERRORS:
            break
    return messages


def _nearest_branch(error: jsonschema_rs.ValidationError) -> Sequence[jsonschema_rs.ValidationError] | None:
    """The errors of the one form, of those that `anyOf` or `oneOf` allow, that the value was probably meant to have."""
    context: Sequence[Sequence[jsonschema_rs.ValidationError]] = getattr(error.kind, "context", ())
    if not context or not all(context):
        return None
    here = list(error.instance_path)
    # A form that fails by its outermost type alone was not meant: `null` beside an object, mostly.
    meant = [
        branch
        for branch in context
        if not (len(branch) == 1 and list(branch[0].instance_path) == here and branch[0].schema_path[-1] == "type")
    ]
    return min(meant, key=len) if meant else None
