"""Reading the input file of a batch: where its lines are, and the first thing that is wrong with it.

Checking stops at the first bad line, and nothing of the file runs. What is wrong inside a body (an unknown param, no
messages) is no matter of the file: the line fails alone when it runs.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Mapping
from dataclasses import field
from pathlib import Path
from typing import Any

import orjson

from batchchat.dataclass import dataclass

_BYTES_PER_TOKEN = 4
"""About what a token of a JSON line has, for the count against the queue's limit: exact counts are not needed there."""


@dataclass(frozen=True, slots=True)
class FileProblem:
    """What is wrong with a whole batch, as OpenAI tells it. `line` counts from 1."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


@dataclass(frozen=True, slots=True)
class Checked:
    """A file that was read: the offsets of its lines (and of its end), its model, and its prompt tokens, estimated.

    `problem` is what fails the whole batch. `bad_lines` are lines that fail alone, by their index from 0.
    """

    offsets: array[int]
    model: str | None = None
    tokens: int = 0
    problem: FileProblem | None = None
    bad_lines: Mapping[int, FileProblem] = field(default_factory=dict)

    @classmethod
    def bad(cls, problem: FileProblem) -> Checked:
        """Return a file of which nothing can run."""
        return cls(array("Q", [0]), problem=problem)

    @property
    def total(self) -> int:
        """How many lines there are."""
        return len(self.offsets) - 1


LineCheck = Callable[[int, dict[str, Any]], FileProblem | None]
"""Looks at a line that is a JSON object, by its number, and tells what is wrong with it."""


def check_file(
    path: Path, check: LineCheck, *, max_lines: int, bad_text: str | None = None, alone: bool = False
) -> Checked:
    """Read a file up to the first bad line; with `alone`, up to its end: bad lines fail alone."""
    bad_lines: dict[int, FileProblem] = {}
    offsets = array("Q", [0])
    offset = tokens = 0
    model: str | None = None
    bad_bytes = None if bad_text is None else bad_text.encode()

    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if number > max_lines:
                return Checked.bad(FileProblem("too_many_tasks", f"The file has more than {max_lines} lines."))
            try:
                line = orjson.loads(raw)
            except orjson.JSONDecodeError:
                line = None
            problem: FileProblem | None
            if not isinstance(line, dict):
                problem = FileProblem("invalid_json_line", "This line is not parseable as valid JSON.", line=number)
            elif bad_bytes is not None and bad_bytes in raw:
                problem = FileProblem("invalid_request", "This line cannot be processed.", "body", number)
            else:
                problem = check(number, line)
            if problem is not None:
                if not alone:
                    return Checked.bad(problem)
                bad_lines[number - 1] = problem
            # The first line that is good names the model of the batch.
            elif model is None:
                body = line.get("body")
                model = body.get("model") if isinstance(body, dict) else None
            # A bad line has an offset too: it is found by its index when its failure is written.
            offset += len(raw)
            tokens += len(raw) // _BYTES_PER_TOKEN
            offsets.append(offset)
    if offset == 0:
        return Checked.bad(FileProblem("empty_file", "The file has no lines."))
    return Checked(offsets, model, tokens, bad_lines=bad_lines)


@dataclass(frozen=True, slots=True)
class CheckWords:
    """Codes that differ between providers."""

    duplicate: str = "duplicate_custom_id"
    url: str = "invalid_url"
    model: str = "mismatched_model"


_USUAL_WORDS = CheckWords()


class OpenAICheck:
    """Checks the lines of one file as OpenAI does. `urls` are those that a line may name."""

    def __init__(self, urls: Collection[str], models: Collection[str], words: CheckWords = _USUAL_WORDS) -> None:
        self._urls = urls
        self._models = models
        self._words = words
        self._seen: set[str] = set()
        self._model: str | None = None

    def __call__(self, number: int, line: dict[str, Any]) -> FileProblem | None:
        """Return what is wrong with a line."""
        return self._check_id(number, line) or self._check_url(number, line) or self._check_body(number, line)

    def _check_id(self, number: int, line: dict[str, Any]) -> FileProblem | None:
        custom_id = line.get("custom_id")
        if not isinstance(custom_id, str) or not custom_id:
            return FileProblem(
                "missing_required_parameter", "Missing required parameter: 'custom_id'.", "custom_id", number
            )
        if custom_id in self._seen:
            message = f"The custom_id {custom_id[:100]!r} is the one of another line, too."
            return FileProblem(self._words.duplicate, message, "custom_id", number)
        self._seen.add(custom_id)
        return None

    def _check_url(self, number: int, line: dict[str, Any]) -> FileProblem | None:
        if line.get("method") != "POST":
            return FileProblem("invalid_request", "The method must be POST.", "method", number)
        if line.get("url") not in self._urls:
            message = f"The URL of this line is not the endpoint of the batch, {' or '.join(self._urls)}."
            return FileProblem(self._words.url, message, "url", number)
        return None

    def _check_body(self, number: int, line: dict[str, Any]) -> FileProblem | None:
        body = line.get("body")
        if not isinstance(body, dict):
            return FileProblem("missing_required_parameter", "Missing required parameter: 'body'.", "body", number)
        model = body.get("model")
        if not isinstance(model, str) or not model:
            return FileProblem("invalid_request", "The body names no model.", "body.model", number)
        # Only the first model is looked up: all other lines must name the same one.
        if self._model is None:
            if model not in self._models:
                return FileProblem(
                    "model_not_found", f"The model {model[:100]!r} does not exist.", "body.model", number
                )
            self._model = model
        elif model != self._model:
            message = f"All lines must name one model: {model[:100]!r} is not {self._model!r}."
            return FileProblem(self._words.model, message, "body.model", number)
        if body.get("stream"):
            return FileProblem("streaming_unsupported", "A batch cannot stream.", "body.stream", number)
        return None
