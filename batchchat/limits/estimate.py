"""How many tokens to reserve for a request before its usage is known."""

from __future__ import annotations

import math

from batchchat.records import Usage

_MEMORY = 0.98
"""Weight of the past at each answer: about the last fifty answers speak."""
FIRST_COMPLETION = 256.0
"""Completion tokens expected before the first answer, where `max_tokens` does not say less."""


class TokenEstimator:
    """Expects the tokens of a request: its prompt, by size and experience, and the answers' mean length.

    The reserve is `prompt x ratio + completion`. `ratio` is the sum of true prompt tokens over the sum of guessed
    ones, so that long prompts weigh as much as they cost. `completion` is the mean length of recent answers and not
    a high quantile: the limiter settles the difference in both directions, so that what counts is that the sum over
    the requests under way is right, and a reserve that is always too big would idle part of the allowance.
    """

    __slots__ = ("_answers", "_completion", "_guessed", "_true")

    def __init__(self) -> None:
        self._guessed = 0.0
        self._true = 0.0
        self._answers = 0.0
        self._completion = 0.0

    @property
    def ratio(self) -> float:
        """True prompt tokens for each guessed one; 1 before the first answer."""
        return self._true / self._guessed if self._guessed > 0 else 1.0

    def completion(self, max_tokens: int | None = None) -> float:
        """Completion tokens to expect, never above `max_tokens`."""
        expected = self._completion / self._answers if self._answers > 0 else FIRST_COMPLETION
        return expected if max_tokens is None else min(expected, float(max_tokens))

    def reserve(self, prompt: int, max_tokens: int | None = None) -> int:
        """Tokens to reserve for a request whose prompt was guessed at `prompt` tokens; at least 1."""
        guessed, answers = self._guessed, self._answers
        # `ratio` and `completion`, written out: this runs for each request.
        ratio = self._true / guessed if guessed > 0 else 1.0
        expected = self._completion / answers if answers > 0 else FIRST_COMPLETION
        if max_tokens is not None and max_tokens < expected:
            expected = max_tokens
        return max(1, round(prompt * ratio + expected))

    def at_most(self, prompt: int, max_tokens: int | None = None) -> tuple[int, int]:
        """Prompt and completion tokens to expect at most: `max_tokens` where it is set, else as for `reserve`."""
        completion = max_tokens if max_tokens is not None else math.ceil(self.completion())
        return math.ceil(prompt * self.ratio), completion

    def learn(self, prompt: int, usage: Usage) -> None:
        """Take in what a request really used. Absent, negative or impossible counts teach nothing."""
        completion = usage.completion_tokens
        if completion is None and usage.total_tokens is not None and usage.prompt_tokens is not None:
            completion = usage.total_tokens - usage.prompt_tokens
        if usage.prompt_tokens is not None and usage.prompt_tokens > 0 and prompt > 0:
            self._guessed = self._guessed * _MEMORY + prompt
            self._true = self._true * _MEMORY + usage.prompt_tokens
        if completion is not None and completion >= 0:
            self._answers = self._answers * _MEMORY + 1.0
            self._completion = self._completion * _MEMORY + completion
