"""Judging an answer: is there exactly one JSON value in it that fits the schema, and if not, why."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from batchchat.dataclass import dataclass
from batchchat.reasoning import is_blank, unmarked
from batchchat.structured.arrow import Misfit, ParsedColumn
from batchchat.structured.checker import Checker
from batchchat.structured.dialect import path_text, shorten
from batchchat.structured.find import NotJSON, embedded, fenced, parse


@dataclass(frozen=True, slots=True)
class CheckedAnswer:
    """What was found in an answer.

    `parsed` is the value for the typed column if there are no `errors` (`None` is a value too). `tolerated` says
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
    """One schema, compiled once, against many answers. Holds no state between them; threads may share it.

    `further` takes a value that fits the schema and returns what else is wrong with it: the validators of a model.
    """

    def __init__(
        self, checker: Checker, column: ParsedColumn, further: Callable[[Any], tuple[str, ...]] | None = None
    ) -> None:
        self._checker = checker
        self._column = column
        self._further = further

    def read(self, text: str | None) -> CheckedAnswer:
        """Judge an answer's text. Never raises, and takes time linear in the text's length to find JSON in it.

        The text as a whole is tried first, then what stands in code fences, then what stands among other text, but
        never what is marked as reasoning. If several different values fit, or one fits beside one that is broken, none
        is taken: which of them was meant is not ours to say.
        """
        if text is None or is_blank(text):
            return CheckedAnswer(errors=("the answer is empty",))
        try:
            value = parse(text)
        except NotJSON as problem:
            return self._tolerant(text, problem)
        return self._judged(value, tolerated=False)

    def _tolerant(self, text: str, problem: NotJSON) -> CheckedAnswer:
        # Reasoning may hold a draft of the answer.
        text = unmarked(text)
        if is_blank(text):
            return CheckedAnswer(errors=("the answer holds reasoning and nothing else",))
        first: CheckedAnswer | None = None
        for find in (fenced, embedded):
            items = list(find(text))
            found = [
                CheckedAnswer(errors=(f"the answer is not taken as JSON: {shorten(str(item))}",))
                if isinstance(item, NotJSON)
                else self._judged(item, tolerated=True)
                for item in items
            ]
            # The same value given twice, as in a draft and in the end, is one answer.
            fitting = {json.dumps(answer.parsed, sort_keys=True): answer for answer in found if answer.ok}
            # A broken piece beside it may be what was meant.
            if len(fitting) == 1 and not any(isinstance(item, NotJSON) for item in items):
                return next(iter(fitting.values()))
            if len(fitting) > 1:
                return CheckedAnswer(
                    errors=(f"the answer holds {len(fitting)} different JSON values that fit: give one",)
                )
            # Of several that do not fit, the last is most likely the one that was meant.
            first = first or next((answer for answer in reversed(found) if not answer.ok), None)
        if first is not None:
            return first
        if text.lstrip()[:1] in {"{", "[", '"'}:
            return CheckedAnswer(errors=(f"the answer is not JSON: {shorten(str(problem))}",))
        return CheckedAnswer(errors=("there is no JSON in the answer",))

    def _judged(self, value: Any, *, tolerated: bool) -> CheckedAnswer:
        errors = self._checker.errors(value)
        # A model's validators expect a value that has the model's types.
        if not errors and self._further is not None:
            errors = self._further(value)
        if errors:
            return CheckedAnswer(errors=errors, tolerated=tolerated)
        try:
            return CheckedAnswer(self._column.convert(value), tolerated=tolerated)
        except Misfit as misfit:
            return CheckedAnswer(errors=(f"{path_text(misfit.path)}: {misfit.reason}",), tolerated=tolerated)
