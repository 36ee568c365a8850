"""What a run will have used at its end: guessed by size at first, corrected by real usage once there is enough of it.

The guess is that of `plan` before there are answers: prompt tokens by size, and for each answer 256 tokens, or
`max_tokens` where that is less. From the hundredth answer on the forecast is what an answered request has really taken
on the mean (retries, corrections and billed failures included) times the requests of the whole run. The guess for the
same number of requests stays beside it, so that the two can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence

from batchchat.events import Forecast
from batchchat.limits import FIRST_COMPLETION
from batchchat.money import Tariff, as_float
from batchchat.records import Request, Spend, Usage

ENOUGH_ANSWERS = 100


class Forecaster:
    """Keeps the means of a run. `tariff` is that of its model, None if it is not known."""

    def __init__(self, tariff: Tariff | None) -> None:
        self._tariff = tariff
        self._requests = 0
        self._prompt = 0
        self._completion = 0.0

    def add(self, requests: Sequence[Request]) -> None:
        """Take in requests that are about to be sent, with the guess for each."""
        for request in requests:
            self._prompt += request.prompt_tokens
            longest = request.max_tokens
            self._completion += FIRST_COMPLETION if longest is None or longest > FIRST_COMPLETION else longest
        self._requests += len(requests)

    def forecast(self, *, settled: int, asked: int, spend: Spend, left: int) -> Forecast | None:
        """Return what the run will have used, None before its first request.

        `settled` records are durable, `asked` of them took at least one attempt; `left` records are still to come.
        Those are taken to need requests as often as the ones before.
        """
        if not self._requests:
            return None
        to_come = left * (asked / settled if settled else 1.0)
        whole = asked + to_come
        share = whole / self._requests
        guess = Usage(round(self._prompt * share), round(self._completion * share))
        guessed_tokens = (guess.prompt_tokens or 0) + (guess.completion_tokens or 0)
        guessed_cost = as_float(self._tariff.cost(guess)) if self._tariff else None
        corrected = asked >= ENOUGH_ANSWERS
        scale = whole / asked if corrected else 0.0
        return Forecast(
            answers=asked,
            corrected=corrected,
            tokens=round(spend.total_tokens * scale) if corrected else guessed_tokens,
            cost=(spend.cost * scale if corrected else guessed_cost) if self._tariff else None,
            guessed_tokens=guessed_tokens,
            guessed_cost=guessed_cost,
            prompt_ratio=self._ratio(spend, asked) if corrected else 1.0,
        )

    def _ratio(self, spend: Spend, asked: int) -> float:
        guessed = self._prompt * asked / self._requests
        return round(spend.prompt_tokens / guessed, 4) if guessed > 0 and spend.prompt_tokens > 0 else 1.0
