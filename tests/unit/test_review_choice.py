"""Choosing rows for people: what is chosen, and that estimates from it are unbiased."""

from __future__ import annotations

import random
from collections import Counter
from statistics import fmean, stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchchat.labelling.choice import Candidate, Design, choose


def candidates(number: int, *, sure: bool = True, seed: int = 1) -> list[Candidate]:
    """Rows of three labels, one of them rare, with confidences that tell how often they are right."""
    draw = random.Random(seed)
    return [
        Candidate(place, draw.random() if sure else None, draw.choices("abc", [70, 27, 3])[0])
        for place in range(number)
    ]


@pytest.mark.parametrize(
    "design",
    [
        pytest.param(Design(40, 40), id="random alone"),
        pytest.param(Design(40, 15), id="least sure and random"),
        pytest.param(Design(40, 15, stratified=True), id="with strata"),
        pytest.param(Design(40, 10, below=0.05, stratified=True), id="few are unsure"),
    ],
)
@pytest.mark.parametrize("sure", [True, False])
def test_the_weighted_estimate_is_unbiased(design: Design, sure: bool) -> None:
    rows = candidates(120, sure=sure)
    # Right answers depend on confidence and label, so that an estimate without weights would be far off.
    draw = random.Random(5)
    right = {
        row.place: float(draw.random() < (row.confidence or 0.5) * (0.4 if row.stratum == "c" else 1)) for row in rows
    }
    truth = sum(right.values())
    estimates = []
    for seed in range(200):
        chosen = choose(rows, Design(design.rows, design.random, design.below, design.stratified, seed))
        assert len(chosen) == design.rows
        estimates.append(sum(right[row.place] / row.probability for row in chosen))
    # Five standard errors of the mean: a wrong weight shifts it by more.
    assert abs(fmean(estimates) - truth) < 5 * stdev(estimates) / len(estimates) ** 0.5
    weights = [
        sum(
            1 / row.probability
            for row in choose(rows, Design(design.rows, design.random, design.below, design.stratified, 0))
        )
    ]
    assert weights[0] == pytest.approx(len(rows))


def test_the_stated_probability_is_how_often_a_row_is_drawn() -> None:
    rows = candidates(40)
    times: Counter[int] = Counter()
    stated: dict[int, float] = {}
    for seed in range(1_000):
        for row in choose(rows, Design(12, 6, stratified=True, seed=seed)):
            times[row.place] += 1
            assert stated.setdefault(row.place, row.probability) == row.probability
    assert set(stated) == {row.place for row in rows}
    assert all(abs(times[place] / 1_000 - probability) < 0.08 for place, probability in stated.items())


@given(
    st.lists(st.tuples(st.none() | st.floats(0, 1), st.sampled_from("abcdef")), max_size=30),
    st.integers(1, 40),
    st.integers(0, 50),
    st.none() | st.floats(0, 1),
    st.booleans(),
)
def test_rows_are_chosen_once_with_probabilities_that_hold(
    given_rows: list[tuple[float | None, str]], rows: int, drawn: int, below: float | None, stratified: bool
) -> None:
    found = [Candidate(place, *row) for place, row in enumerate(given_rows)]
    chosen = choose(found, Design(rows, drawn, below, stratified))
    assert len({row.place for row in chosen}) == len(chosen) == min(rows, len(found))
    assert all(0 < row.probability <= 1 for row in chosen)
    certain = [found[row.place].confidence for row in chosen if row.part == "least sure"]
    assert None not in certain
    assert certain == sorted(certain, key=float)  # type: ignore[arg-type]
    if any(row.part == "random" for row in chosen):
        # The weights of the chosen rows add up to all rows: no row is out of reach.
        assert sum(1 / row.probability for row in chosen) == pytest.approx(len(found))


def test_least_sure_rows_come_first_and_strata_share_them() -> None:
    rows = [Candidate(place, place / 100, "a" if place < 90 else "b") for place in range(100)]
    assert [row.place for row in choose(rows, Design(10, 0))] == list(range(10))
    assert [row.place for row in choose(rows, Design(10, 0, stratified=True))] == [0, 1, 2, 3, 4, 90, 91, 92, 93, 94]
    part = choose(rows, Design(10, 4, below=0.03))
    assert Counter(row.part for row in part) == {"least sure": 3, "random": 7}
    assert choose(rows, Design(10, 4, seed=3)) == choose(rows, Design(10, 4, seed=3))
    assert choose([], Design(10, 4)) == []
