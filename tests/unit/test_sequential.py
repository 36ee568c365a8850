"""Tests that may be looked at several times: their bounds, their decisions, and how often they are false."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from batchchat.evaluation.statistics.comparison import compare_at
from batchchat.evaluation.statistics.sequential import (
    SequentialTest,
    Spending,
    Standing,
    adjusted_p,
    bounds,
    level,
    planned_looks,
    spent,
)
from batchchat.evaluation.statistics.unit import SHARE, YES_NO, ScoreUnit
from tests.thorough import examples

SPENDING: tuple[Spending, ...] = ("power", "obrien_fleming")
FIFTHS = (0.2, 0.4, 0.6, 0.8, 1.0)


@pytest.mark.parametrize(
    ("shares", "published"),
    [
        # DeMets and Lan 1994 (Statistics in Medicine 13:1341-1352), alpha 0.05, two sides.
        (FIFTHS, (4.8769, 3.3569, 2.6803, 2.2898, 2.0310)),
        ((0.5, 1.0), (2.9626, 1.9686)),
    ],
)
def test_bounds_are_the_published_ones(shares: tuple[float, ...], published: tuple[float, ...]) -> None:
    assert bounds(shares, 0.05, "obrien_fleming") == pytest.approx(published, abs=2e-4)


@pytest.mark.parametrize("spending", SPENDING)
def test_one_look_is_the_usual_test_and_all_looks_use_up_the_error(spending: Spending) -> None:
    assert bounds((1.0,), 0.05, spending)[0] == pytest.approx(stats.norm.isf(0.025))
    assert spent(1.0, 0.05, spending) == pytest.approx(0.05)
    assert spent(0.2, 0.05, spending) < 0.0021


@pytest.mark.parametrize("spending", SPENDING)
def test_what_is_beyond_the_bounds_of_a_random_walk_is_the_error(spending: Spending) -> None:
    shares = (0.1, 0.35, 0.6, 1.0)
    steps = np.random.default_rng(8).normal(size=(200_000, 4)) * np.sqrt(np.diff((0.0, *shares)))
    walks = np.abs(np.cumsum(steps, axis=1) / np.sqrt(shares))
    beyond = walks >= bounds(shares, 0.05, spending)
    assert np.mean(np.any(beyond, axis=1)) == pytest.approx(0.05, abs=0.002)
    # Up to each look, no more of the error is used than the function gives to it.
    for look, share in enumerate(shares, 1):
        assert np.mean(np.any(beyond[:, :look], axis=1)) == pytest.approx(spent(share, 0.05, spending), abs=0.002)


def test_looks_come_after_equal_parts_and_early_in_a_large_input() -> None:
    assert planned_looks(1_000) == [200, 400, 600, 800, 1_000]
    assert planned_looks(1_000, 2) == [500, 1_000]
    assert planned_looks(60) == [24, 36, 48, 60]
    assert planned_looks(7) == [7]
    assert planned_looks(100_000)[:3] == [800, 4_000, 20_000]


@given(
    p_value=st.floats(1e-12, 1.0),
    look=st.integers(1, 5),
    pairs=st.integers(1, 28),
)
def test_an_adjusted_p_says_what_its_level_says(p_value: float, look: int, pairs: int) -> None:
    adjusted = adjusted_p(p_value, FIFTHS, look, pairs)
    assert 0 < adjusted <= 1
    assert (adjusted < 0.05) == (p_value <= level(FIFTHS, look, 0.05 / pairs))
    assert adjusted >= p_value * 0.99
    assert adjusted_p(min(1.0, p_value * 2), FIFTHS, look, pairs) >= adjusted


@examples(60)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40),
    scale=st.sampled_from([YES_NO, SHARE, ScoreUnit("seconds", False, 0.0)]),
    clustered=st.booleans(),
)
def test_a_less_b_is_exactly_the_negative_of_b_less_a(
    pairs: list[tuple[int, int]], scale: ScoreUnit, clustered: bool
) -> None:
    a, b = (np.array(side) / 4 for side in zip(*pairs, strict=True))
    if scale.yes_no:
        a, b = a.round(), b.round()
    clusters = np.arange(a.size) // 3 if clustered else None
    (one,) = compare_at(0.01, {"a": a, "b": b}, scale, scorer="s", clusters=clusters, margin=0.3)
    (other,) = compare_at(0.01, {"b": b, "a": a}, scale, scorer="s", clusters=clusters, margin=0.3)
    assert one.difference == -(other.difference or 0.0)
    assert (one.p_value, one.equivalent, one.wins_a) == (other.p_value, other.equivalent, other.wins_b)
    if one.ci_low is not None and one.ci_high is not None:
        assert (one.ci_low, one.ci_high) == (-(other.ci_high or 0.0), -(other.ci_low or 0.0))


def answers(generator: np.random.Generator, rows: int, shares: tuple[float, ...], size: int = 1) -> dict[str, Any]:
    """Yes/no scores of variants. Half of them hang on how hard the row is; so do rows of a cluster together."""
    hard = np.repeat(generator.random(rows // size), size)
    luck = generator.random((len(shares), rows))
    by_row = generator.random((len(shares), rows)) < 0.5
    return {
        f"v{at}": (np.where(by_row[at], hard, luck[at]) < share).astype(np.float64) for at, share in enumerate(shares)
    }


def run(values: dict[str, Any], *, size: int = 1, margin: float | None = None) -> tuple[Standing, float]:
    """Take look after look until all is settled; return what is known, and the share of answers that were asked."""
    rows = len(next(iter(values.values())))
    cuts = [units * size for units in planned_looks(rows // size)]
    clusters = np.arange(rows) // size if size > 1 else None
    pairs = len(values) * (len(values) - 1) // 2
    test = SequentialTest(tuple(cut / rows for cut in cuts), pairs, YES_NO, "right", 1, margin)
    standing, asked, before = test.begin(list(values)), 0, 0
    for cut in cuts:
        asked += len(standing.active) * (cut - before)
        before = cut
        here = {name: values[name][:cut] for name in standing.active}
        standing = test.look(standing, here, None if clusters is None else clusters[:cut])
        if standing.settled:
            break
    return standing, asked / (rows * len(values))


def false_share(suites: int, make: Callable[[np.random.Generator], dict[str, Any]], seed: int = 3, **how: Any) -> float:
    generator = np.random.default_rng(seed)
    found = [run(make(generator), **how)[0] for _ in range(suites)]
    return sum(any(one.better is not None for one in standing.pairs) for standing in found) / suites


def test_suites_without_a_difference_are_seldom_decided() -> None:
    """The exact test at each look, of 1,000 suites at once, by the counts of rows that only one variant got right."""
    cuts = planned_looks(1_000)
    shares = tuple(cut / 1_000 for cut in cuts)
    generator = np.random.default_rng(4)
    unequal = generator.binomial(np.diff([0, *cuts]), 0.2, size=(1_000, len(cuts)))
    only_a, either = generator.binomial(unequal, 0.5).cumsum(axis=1), unequal.cumsum(axis=1)
    p_values = np.minimum(1.0, 2 * stats.binom.cdf(np.minimum(only_a, either - only_a), either, 0.5))
    held_to = [level(shares, look) for look in range(1, len(cuts) + 1)]
    assert np.mean(np.any(p_values <= held_to, axis=1)) <= 0.05
    # A test at 5 % after each look would find a difference in about a tenth of these suites.
    assert np.mean(np.any(p_values <= 0.05, axis=1)) > 0.08


def test_a_difference_of_ten_points_saves_two_fifths_of_the_answers() -> None:
    generator = np.random.default_rng(5)
    found = [run(answers(generator, 600, (0.8, 0.7))) for _ in range(25)]
    assert sum([one.better for one in standing.pairs] == ["v0"] for standing, _ in found) >= 24
    assert np.mean([asked for _, asked in found]) < 0.6


def test_a_worse_variant_is_dropped_and_an_equivalent_one_settled() -> None:
    standing, asked = run(answers(np.random.default_rng(6), 3_000, (0.8, 0.8, 0.5)), margin=0.08)
    assert standing.settled
    assert list(standing.dropped) == ["v2"]
    assert standing.active == ("v0", "v1")
    assert {(one.a, one.b): one.verdict for one in standing.pairs}["v0", "v1"] == "equivalent"
    assert asked < 0.6


@pytest.mark.parametrize("names", [[], ["only"]])
def test_one_variant_leaves_nothing_to_settle(names: list[str]) -> None:
    assert SequentialTest((1.0,), 1, YES_NO, "right", 1).begin(names).settled


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("rows", "shares", "how"),
    [
        (1_000, (0.75, 0.75), {}),
        (1_000, (0.75, 0.75), {"margin": 0.05}),
        (600, (0.75,) * 4, {}),
        (1_000, (0.75, 0.75), {"size": 10}),
    ],
)
def test_of_a_thousand_suites_without_a_difference_few_are_decided(
    rows: int, shares: tuple[float, ...], how: dict[str, Any]
) -> None:
    found = false_share(1_000, lambda generator: answers(generator, rows, shares, how.get("size", 1)), **how)
    print(rows, shares, how, "false decisions", found)
    # Student's t of clusters holds 5 % exactly: of 1,000 suites, 50 with a standard deviation of 7 are decided.
    assert found <= (0.064 if "size" in how else 0.05)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("rows", [600, 1_000, 3_000])
def test_of_a_thousand_suites_with_ten_points_two_fifths_are_saved(rows: int) -> None:
    generator = np.random.default_rng(7)
    found = [run(answers(generator, rows, (0.8, 0.7))) for _ in range(1_000)]
    asked = float(np.mean([share for _, share in found]))
    right = sum(standing.pairs[0].better == "v0" for standing, _ in found)
    print(rows, "asked", asked, "decided rightly", right)
    assert asked <= 0.6
    assert not any(standing.pairs[0].better == "v1" for standing, _ in found)
