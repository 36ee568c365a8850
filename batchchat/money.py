"""Exact amounts of money: whole numbers of a millionth of a millionth of the currency.

Sums of such amounts are exact, also over millions of answers. They become floats only where they leave the program, in
records, ledgers and displays (`as_float`).
"""

from __future__ import annotations

import math
from decimal import Decimal
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from batchchat.providers import Price
    from batchchat.records import Usage

UNITS = 10**12
"""Units in one of the currency. A price of 0.000001 per million tokens is still one unit a token."""


def as_float(amount: int) -> float:
    """Return an amount in the currency itself."""
    return amount / UNITS


class Tariff(NamedTuple):
    """What one token costs, in units."""

    input: int
    output: int
    cached: int

    @classmethod
    def of(cls, price: Price | None, factor: float = 1.0) -> Tariff | None:
        """Return the tariff of a price per million tokens, times a factor; None if the price is not known.

        A part of a unit is rounded up.
        """
        if price is None:
            return None
        cached = price.input if price.cached_input is None else price.cached_input
        return cls(*(_per_token(amount, factor) for amount in (price.input, price.output, cached)))

    @classmethod
    def dearest(cls, tariffs: Iterable[Tariff | None]) -> Tariff | None:
        """Return a tariff that is as dear as any of these in each of its parts; None if one of them is not known."""
        found = list(tariffs)
        known = [tariff for tariff in found if tariff is not None]
        return cls(*map(max, zip(*known, strict=True))) if found and len(known) == len(found) else None

    def times(self, factor: float) -> Tariff:
        """Return the tariff of something that costs so many times as much. A part of a unit is rounded up."""
        share = Decimal(repr(float(factor)))
        return Tariff(*(math.ceil(amount * share) for amount in self))

    def cost(self, usage: Usage) -> int:
        """Return what these tokens cost; cached prompt tokens at their own price. Counts that are not told are zero."""
        prompt, output = usage.prompt_tokens or 0, usage.completion_tokens or 0
        cached = min(usage.cached_tokens or 0, prompt)
        return (prompt - cached) * self.input + cached * self.cached + output * self.output

    def at_most(self, prompt: int, completion: int) -> int:
        """Return the most that a request of so many tokens can cost."""
        return prompt * self.input + completion * self.output


def _per_token(price: float, factor: float) -> int:
    # The shortest decimal text of a float is what the person wrote: 0.1 is a tenth here.
    return math.ceil(Decimal(repr(float(price))) * Decimal(repr(float(factor))) * (UNITS // 10**6))
