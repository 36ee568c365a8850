"""What a cascade may promise, and that the promise holds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from batchchat.labelling.guarantee import (
    ALWAYS,
    GRID,
    lower_bound,
    more_rows,
    promise,
    right_answers_needed,
)


def _drawn(generator: np.random.Generator, n: int, *, large: float) -> tuple[list[float], list[bool], list[bool]]:
    """A calibrated small model, sure from 0.5 to 1, and a large one that is right that often."""
    sure = generator.uniform(0.5, 1, n)
    return sure.tolist(), (generator.random(n) < sure).tolist(), (generator.random(n) < large).tolist()


def _true_accuracy(threshold: float, large: float) -> float:
    """The accuracy of that cascade: the integral of c from T to 1 over 0.5, and the large model's share."""
    cut = min(1.0, max(0.5, threshold))
    return (1 - cut**2) / 2 / 0.5 + large * (cut - 0.5) / 0.5


@pytest.mark.parametrize(("n", "target", "large"), [(300, 0.9, 0.97), (500, 0.95, 0.985)])
def test_the_target_is_missed_as_seldom_as_the_risk_says(n: int, target: float, large: float) -> None:
    generator = np.random.default_rng(18)
    sets, risk = 1_000, 0.05
    missed, shares = 0, []
    for _ in range(sets):
        found = promise(*_drawn(generator, n, large=large), target=target, risk=risk)
        if found.chosen is not None:
            missed += _true_accuracy(found.chosen.threshold, large) < target
            shares.append(found.chosen.escalated)
    assert missed / sets <= risk + math.sqrt(risk * (1 - risk) / sets)
    # The promise is worth something: it is made often, and saves most of the large model.
    assert len(shares) > 0.5 * sets
    assert missed > 0
    assert np.median(shares) < 1


def test_the_test_is_the_exact_binomial_one() -> None:
    for n in (1, 10, 59, 140, 1_000):
        needed = right_answers_needed(n, 0.95, 0.05)
        assert stats.binom.sf(needed - 1, n, 0.95) <= 0.05
        assert stats.binom.sf(needed - 2, n, 0.95) > 0.05
        # The bound is above the target exactly if the test rejects.
        if needed <= n:
            assert lower_bound(needed, n, 0.05) >= 0.95
        assert needed == 0 or lower_bound(needed - 1, n, 0.05) < 0.95
    # 59 right answers of 59 are the fewest that promise 95 %: 0.95^59 = 0.0485.
    assert right_answers_needed(59, 0.95, 0.05) == 59
    assert right_answers_needed(58, 0.95, 0.05) == 59


def test_the_bound_is_that_of_clopper_and_pearson() -> None:
    expected = stats.binomtest(90, 100, alternative="greater").proportion_ci(0.95, method="exact").low
    assert lower_bound(90, 100, 0.05) == pytest.approx(expected)
    assert lower_bound(0, 10, 0.05) == 0


def test_the_sequence_stops_at_the_first_that_fails() -> None:
    # The small model is right above 0.9 only, the large one always.
    sure = [0.95] * 100 + [0.8] * 100
    found = promise(sure, [True] * 100 + [False] * 100, [True] * 200, target=0.9, risk=0.05)
    assert found.chosen is not None
    assert found.chosen.threshold == 0.95
    assert found.chosen.escalated == 0.5
    assert found.failed is not None
    assert found.failed.threshold == 0.8
    assert found.more_rows is None  # it is right on half of them


def test_a_lucky_threshold_behind_a_failure_is_not_taken() -> None:
    # All go to the large model: 80 %. The small one alone would be right always.
    found = promise([0.5] * 100, [True] * 100, [True] * 80 + [False] * 20, target=0.9, risk=0.05)
    assert found.chosen is None
    assert found.failed is not None
    assert found.failed.threshold == ALWAYS
    assert found.more_rows is None


def test_how_many_more_rows_would_help() -> None:
    found = promise([0.5] * 50, [False] * 50, [True] * 50, target=0.95, risk=0.05)
    assert found.chosen is None
    assert found.more_rows == 9
    point = found.failed
    assert point is not None
    assert more_rows(point, 0.9999999, 0.05) is None


def test_rows_without_a_confidence_go_to_the_large_model() -> None:
    found = promise([None] * 100, [False] * 100, [True] * 100, target=0.9, risk=0.05)
    assert found.chosen is not None
    assert found.chosen.escalated == 1
    # Of thresholds that treat these rows alike it is the safest.
    assert found.chosen.threshold == ALWAYS


def test_nothing_is_promised_of_no_rows() -> None:
    found = promise([], [], [], target=0.9, risk=0.05)
    assert found.chosen is None
    assert found.more_rows is None


def test_the_grid_falls() -> None:
    assert list(GRID) == sorted(GRID, reverse=True)
    assert GRID[-1] == 0
