"""Money: exact amounts of what tokens cost."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchchat.money import UNITS, Tariff, as_float
from batchchat.providers import Price
from batchchat.records import Usage

tokens = st.integers(0, 2**53 - 1)


def tariff(*price: float, factor: float = 1.0) -> Tariff:
    found = Tariff.of(Price(*price), factor)
    assert found is not None
    return found


def test_cached_tokens_have_their_own_price() -> None:
    usage = Usage(prompt_tokens=1_000_000, completion_tokens=500_000, cached_tokens=400_000)
    assert as_float(tariff(1.0, 2.0).cost(usage)) == 2.0
    assert as_float(tariff(1.0, 2.0, 0.1).cost(usage)) == 1.64
    assert as_float(tariff(1.0, 2.0, 0.0).cost(usage)) == 1.6


def test_unknown_usage_costs_nothing_and_more_cached_than_sent_is_not_believed() -> None:
    assert tariff(1.0, 2.0).cost(Usage()) == 0
    assert as_float(tariff(1.0, 2.0, 0.5).cost(Usage(prompt_tokens=10, cached_tokens=1_000))) == 5e-6


def test_a_model_without_a_price_has_no_tariff() -> None:
    assert Tariff.of(None) is None


@pytest.mark.parametrize(
    ("price", "factor", "unit"),
    [(0.1, 1.0, 100_000), (0.15, 0.5, 75_000), (0.35, 0.8, 280_000), (1e-6, 1.0, 1), (1e-7, 1.0, 1), (0.0, 0.5, 0)],
)
def test_a_price_is_taken_as_it_is_written_and_a_part_of_a_unit_is_rounded_up(
    price: float, factor: float, unit: int
) -> None:
    assert tariff(price, price, factor=factor) == (unit, unit, unit)


@given(tokens, tokens, tokens)
def test_a_cost_is_never_negative_and_caching_never_costs_more(prompt: int, output: int, cached: int) -> None:
    usage = Usage(prompt, output, None, cached)
    plain, cheaper = tariff(1.0, 2.0), tariff(1.0, 2.0, 0.5)
    assert 0 <= cheaper.cost(usage) <= plain.cost(usage) == plain.at_most(prompt, output)


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.decimals(0, 1000, places=4), st.decimals(0, 1000, places=4))
def test_a_cost_is_exact(prompt: int, output: int, dear: Decimal, dearer: Decimal) -> None:
    cost = tariff(float(dear), float(dearer)).cost(Usage(prompt, output))
    assert Decimal(cost) / UNITS == (prompt * dear + output * dearer) / 10**6
