"""Measures of agreement against published examples and against scikit-learn and krippendorff."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import chain, repeat

import krippendorff
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, cohen_kappa_score, confusion_matrix, f1_score

from batchchat.labelling.coefficients import (
    RESAMPLES,
    Level,
    Scale,
    alpha,
    check_confidence,
    pair_agreement,
    share_estimate,
)
from tests.thorough import examples

_: None = None
# Krippendorff 2011, example C: four observers, twelve units, values 1 to 5.
EXAMPLE_C = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, _, _, _],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, _, 3],
    [_, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, _],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, _],
]


def _units(raters: Sequence[Sequence[int | None]]) -> list[list[str | None]]:
    return [[None if value is None else str(value) for value in unit] for unit in zip(*raters, strict=True)]


def _from_table(table: Sequence[Sequence[int]]) -> tuple[list[str], list[str]]:
    cells = [(str(row), str(column), count) for row, line in enumerate(table) for column, count in enumerate(line)]
    left = list(chain.from_iterable(repeat(row, count) for row, _column, count in cells))
    right = list(chain.from_iterable(repeat(column, count) for _row, column, count in cells))
    return left, right


@pytest.mark.parametrize(("level", "expected"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_of_krippendorff_2011(level: Level, expected: float) -> None:
    found = alpha(_units(EXAMPLE_C), scale=Scale(level))
    assert found.value == pytest.approx(expected, abs=0.0006)
    known = np.array([[np.nan if value is None else value for value in line] for line in EXAMPLE_C], dtype=float)
    assert found.value == pytest.approx(krippendorff.alpha(known, level_of_measurement=level))
    assert found.low is not None
    assert found.low < expected < found.high  # type: ignore[operator]


def test_alpha_of_two_observers_and_two_labels() -> None:
    # Krippendorff 2011, example A: ten articles, 0 and 1.
    a, b = [0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    found = pair_agreement([str(one) for one in a], [str(one) for one in b])
    assert found.alpha.value == pytest.approx(0.095, abs=0.0005)
    assert alpha(_units([a, b])).value == found.alpha.value
    # Example B: five labels, twelve articles.
    left, right = list("aabbdcccedda"), list("babbbcccedd")
    right.append("d")
    assert pair_agreement(left, right).alpha.value == pytest.approx(0.692, abs=0.0005)


@pytest.mark.parametrize(
    ("table", "kappa"),
    [
        # Cohen 1960, table 1: two judges, 200 patients, shares .44 .07 .09 / .05 .20 .05 / .01 .03 .06.
        ([[88, 14, 18], [10, 40, 10], [2, 6, 12]], 0.4915),
        # A textbook's table: 50 proposals, yes and no.
        ([[20, 5], [10, 15]], 0.40),
        # The same observed agreement by chance alone: 95 % of one label.
        ([[9025, 475], [475, 25]], 0.0),
    ],
)
def test_kappa_of_tables(table: list[list[int]], kappa: float) -> None:
    left, right = _from_table(table)
    found = pair_agreement(left, right)
    assert found.kappa.value == pytest.approx(kappa, abs=0.0005)
    assert found.kappa.value == pytest.approx(cohen_kappa_score(left, right), abs=1e-12)
    assert found.kappa.low < kappa + 0.001 < found.kappa.high + 0.002  # type: ignore[operator]


_LABELS = st.sampled_from(["a", "b", "c", "d"])


@examples(15)
@given(pairs=st.lists(st.tuples(_LABELS, _LABELS), min_size=2, max_size=40))
def test_everything_equals_the_known_libraries(pairs: list[tuple[str, str]]) -> None:
    expected, given_ = [a for a, _ in pairs], [b for _, b in pairs]
    found = pair_agreement(expected, given_)
    assert found.accuracy.value == pytest.approx(accuracy_score(expected, given_))
    if len(found.labels) < 2:
        assert found.kappa.value is None
        assert found.alpha.value is None
        return
    assert found.macro_f1.value == pytest.approx(f1_score(expected, given_, average="macro", zero_division=0))
    assert np.array(found.confusion) == pytest.approx(confusion_matrix(expected, given_, labels=found.labels))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kappa = cohen_kappa_score(expected, given_)
    assert (found.kappa.value is None) == bool(np.isnan(kappa))
    if found.kappa.value is not None:
        assert found.kappa.value == pytest.approx(kappa)
    codes = np.array([[found.labels.index(label) for label in side] for side in (expected, given_)], dtype=float)
    for level in ("nominal", "ordinal", "interval"):
        scale = Scale(level, found.labels) if level != "interval" else Scale("interval")
        sides = [[str(code) for code in line] for line in codes] if level == "interval" else [expected, given_]
        assert pair_agreement(sides[0], sides[1], scale=scale).alpha.value == pytest.approx(
            krippendorff.alpha(codes, level_of_measurement=level)
        )


def test_weights_count_like_rows_that_are_there_as_often() -> None:
    generator = np.random.default_rng(3)
    expected = generator.choice(["a", "b", "c"], 60).tolist()
    given_ = [one if generator.random() < 0.7 else "a" for one in expected]
    weights = generator.integers(1, 5, 60).tolist()
    weighted = pair_agreement(expected, given_, weights)
    written_out = [pair for a, b, w in zip(expected, given_, weights, strict=True) for pair in [(a, b)] * int(w)]
    repeated = pair_agreement([a for a, _b in written_out], [b for _a, b in written_out])
    for name in ("accuracy", "macro_f1", "kappa"):
        assert getattr(weighted, name).value == pytest.approx(getattr(repeated, name).value)
    # They count as fewer rows than they stand for, and as fewer than they are.
    assert weighted.effective_n < 60
    width = weighted.kappa.high - weighted.kappa.low  # type: ignore[operator]
    assert width > repeated.kappa.high - repeated.kappa.low  # type: ignore[operator]


def test_sampling_weights_take_away_the_bias_of_the_sample() -> None:
    """Unsure rows are chosen five times as often; the weighted interval holds the true accuracy in about 95 of 100."""
    generator = np.random.default_rng(5)
    inside, plain = 0, []
    for _ in range(200):
        unsure = generator.random(2_000) < 0.3
        right = np.where(unsure, generator.random(2_000) < 0.5, generator.random(2_000) < 0.95)
        chance = np.where(unsure, 0.25, 0.05)
        chosen = generator.random(2_000) < chance
        hits = right[chosen]
        weights = 1 / chance[chosen]
        share = float(np.average(hits, weights=weights))
        found = share_estimate(share, float(weights.sum() ** 2 / (weights**2).sum()))
        inside += found.low <= 0.815 <= found.high  # type: ignore[operator]
        plain.append(hits.mean())
    assert inside / 200 > 0.9
    assert np.mean(plain) < 0.75


def test_the_bootstrap_is_as_wide_as_it_should_be() -> None:
    """Of 200 samples of 100 rows, the interval of kappa holds the true one in about 95 of 100."""
    generator, inside = np.random.default_rng(7), 0
    for _ in range(60):
        expected = generator.integers(0, 2, 100)
        given_ = np.where(generator.random(100) < 0.8, expected, 1 - expected)
        found = pair_agreement([str(one) for one in expected], [str(one) for one in given_]).kappa
        inside += found.low <= 0.6 <= found.high  # type: ignore[operator]
    assert inside >= 52
    assert RESAMPLES >= 1_000


def test_what_is_not_defined_says_why() -> None:
    one = pair_agreement(["a"] * 5, ["a"] * 5)
    assert one.accuracy.value == 1
    assert one.accuracy.low is not None
    assert one.accuracy.low < 0.7
    assert one.kappa.value is None
    assert "only one label" in str(one.kappa.reason)
    none = pair_agreement([None, "a"], ["a", None])
    assert none.n == 0
    assert none.kappa.reason == "no row was rated by both"
    with pytest.raises(ValueError, match="no set of labels"):
        pair_agreement([str(n) for n in range(300)], [str(n) for n in range(300)])
    with pytest.raises(ValueError, match="no number"):
        pair_agreement(["a", "1"], ["1", "1"], scale=Scale("interval"))


def test_calibration_is_that_of_scikit_learn() -> None:
    generator = np.random.default_rng(11)
    sure = generator.random(500)
    right = generator.random(500) < sure**2
    found = check_confidence(sure.tolist(), right.tolist())
    shares, means = calibration_curve(right, sure, n_bins=10)
    filled = [one for one in found.bins if one.n]
    assert [one.accuracy.value for one in filled] == pytest.approx(shares)
    assert [one.confidence for one in filled] == pytest.approx(means)
    sizes = np.array([one.n for one in filled]) / 500
    assert found.error.value == pytest.approx(float((sizes * np.abs(shares - means)).sum()))
    assert found.error.low is not None
    above = next(one for one in found.above if one.threshold == 0.9)
    assert above.accuracy.value == pytest.approx(right[sure >= 0.9].mean())
    assert above.share == pytest.approx((sure >= 0.9).mean())


def test_confidence_that_is_always_one_falls_into_the_last_tenth() -> None:
    found = check_confidence([1.0, 1.0, 0.3], [True, False, False])
    assert [one.n for one in found.bins] == [0, 0, 0, 1, 0, 0, 0, 0, 0, 2]
    assert check_confidence([], []).error.value is None
