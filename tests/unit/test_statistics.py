"""The statistics against published examples, figure by figure, and the rules that hold for all scores."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from batchchat.evaluation.statistics import pair_tests
from batchchat.evaluation.statistics.comparison import (
    Comparison,
    adjust,
    compare,
    compare_outcomes,
    flips,
    leader,
    summarize,
)
from batchchat.evaluation.statistics.intervals import mean_interval, newcombe_paired_interval, wilson_interval
from batchchat.evaluation.statistics.significance import (
    enough_draws,
    holm,
    mcnemar_exact,
    needed_pairs,
    needed_rows,
    sign_flip_test,
)
from batchchat.evaluation.statistics.unit import SHARE, YES_NO, ScoreUnit
from tests.thorough import examples

SECONDS = ScoreUnit("seconds", False, 0.0)
NAN = math.nan


def yes_no(both: int, only_a: int, only_b: int, neither: int) -> tuple[list[float], list[float]]:
    """Scores of two variants that agree and differ on this many rows."""
    a = [1.0] * (both + only_a) + [0.0] * (only_b + neither)
    b = [1.0] * both + [0.0] * only_a + [1.0] * only_b + [0.0] * neither
    return a, b


def one(a: Any, b: Any, scale: ScoreUnit = SHARE) -> Comparison:
    (made,) = compare({"a": a, "b": b}, scale, scorer="s")
    return made


# Published examples ------------------------------------------------------------------------------------------


# Newcombe 1998, Two-sided confidence intervals for the single proportion, Statistics in Medicine 17:857-872, table I,
# method 3 (Wilson's score interval without continuity correction).
@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0000, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_of_newcombes_table(successes: int, n: int, low: float, high: float) -> None:
    interval = wilson_interval(successes, n)
    assert (round(interval.low or 0.0, 4), round(interval.high or 0.0, 4)) == (low, high)
    summary = summarize([1.0] * successes + [0.0] * (n - successes), YES_NO)
    assert summary.mean == pytest.approx(successes / n)
    assert (summary.n, summary.ci_method) == (n, "wilson")
    assert (summary.ci_low, summary.ci_high) == (interval.low, interval.high)


# Newcombe 1998, Improved confidence intervals for the difference between binomial proportions based on paired data,
# Statistics in Medicine 17:2635-2650, table III, method 10. The last two tables are worked in Fagerland, Lydersen and
# Laake, Statistical Analysis of Contingency Tables (2017), chapter 8 (Cavo et al. 2012, Bentur et al. 2009).
@pytest.mark.parametrize(
    ("table", "difference", "low", "high"),
    [
        ((36, 12, 2, 0), 0.2000, 0.0569, 0.3404),
        ((20, 12, 2, 16), 0.2000, 0.0562, 0.3292),
        ((18, 12, 2, 18), 0.2000, 0.0562, 0.3290),
        ((36, 14, 0, 0), 0.2800, 0.1528, 0.4167),
        ((35, 14, 0, 1), 0.2800, 0.1461, 0.4175),
        ((18, 14, 0, 18), 0.2800, 0.1441, 0.3963),
        ((2, 97, 1, 0), 0.9600, 0.8721, 0.9854),
        # Printed as 0.8736 for method 10 and 0.8737 for method 8, which are the same where e h < f g, as it is here.
        ((1, 97, 1, 1), 0.9600, 0.8737, 0.9850),
        ((0, 29, 1, 0), 0.9333, 0.6666, 0.9882),
        ((2, 98, 0, 0), 0.9800, 0.9178, 0.9945),
        ((1, 98, 0, 1), 0.9800, 0.9171, 0.9916),
        ((0, 30, 0, 0), 1.0000, 0.8395, 1.0000),
        ((54, 0, 0, 0), 0.0000, -0.0664, 0.0664),
        ((53, 0, 0, 1), 0.0000, -0.0729, 0.0729),
        ((30, 0, 0, 24), 0.0000, -0.0358, 0.0358),
        ((29, 0, 0, 25), 0.0000, -0.0354, 0.0354),
        ((28, 0, 0, 26), 0.0000, -0.0352, 0.0352),
        ((27, 0, 0, 27), 0.0000, -0.0351, 0.0351),
        ((59, 6, 16, 80), -0.0621, -0.1186, -0.0046),
        ((1, 1, 7, 12), -0.2857, -0.5069, -0.0256),
    ],
)
def test_paired_interval_of_published_tables(
    table: tuple[int, int, int, int], difference: float, low: float, high: float
) -> None:
    made = one(*yes_no(*table), YES_NO)
    assert made.ci_method == "newcombe_paired"
    assert [round(x or 0.0, 4) for x in (made.difference, made.ci_low, made.ci_high)] == [difference, low, high]
    direct = newcombe_paired_interval(*table)
    assert (direct.low, direct.high) == (made.ci_low, made.ci_high)


def test_mcnemar_on_the_approval_ratings() -> None:
    # Agresti, Categorical Data Analysis, section on matched pairs: 1,600 people rate a prime minister twice; 944 then
    # 880 approve, 150 and 86 changed their minds. The difference is 0.04, its Wald interval 0.02 to 0.06, and the
    # McNemar statistic (86 - 150)^2 / (86 + 150) = 17.36, whose p is 0.00003; the exact p is near it.
    made = one(*yes_no(794, 150, 86, 570), YES_NO)
    assert made.test == "mcnemar_exact"
    assert made.difference == pytest.approx(0.04)
    assert (round(made.ci_low or 0.0, 2), round(made.ci_high or 0.0, 2)) == (0.02, 0.06)
    assert made.p_value == pytest.approx(3.716e-5, rel=1e-3)
    assert made.p_value == pytest.approx(float(stats.chi2.sf((150 - 86) ** 2 / 236, 1)), rel=0.3)
    assert (made.wins_a, made.wins_b, made.ties) == (150, 86, 1364)
    assert (made.flips_to_a, made.flips_to_b, made.n, made.nulls) == (150, 86, 1600, 0)
    assert made.settled
    assert made.better == "a"
    assert made.needed_n is None


def test_the_sign_test_of_the_couples() -> None:
    # Siegel, Nonparametric Statistics for the Behavioral Sciences (1956), the sign test for small samples: of 17
    # couples 11 differ in one direction, 3 in the other, 3 do not; p = 0.029 on one side, 470 / 16384 exactly.
    outcomes = [1.0] * 11 + [-1.0] * 3 + [0.0] * 3
    (made,) = compare_outcomes({("a", "b"): outcomes}, ScoreUnit("net wins", True, -1.0, 1.0), scorer="better")
    assert made.test == "sign_exact"
    assert made.p_value == pytest.approx(2 * 470 / 16384)
    assert round((made.p_value or 0.0) / 2, 3) == 0.029
    assert (made.wins_a, made.wins_b, made.ties, made.n) == (11, 3, 3, 17)
    assert made.difference == pytest.approx(8 / 17)


def test_exact_mcnemar_on_the_airway_table() -> None:
    # Fagerland, Lydersen and Laake 2013, BMC Medical Research Methodology 13:91: exact conditional test, p = 0.070.
    assert mcnemar_exact(1, 7) == pytest.approx(0.0703, abs=5e-5)
    assert mcnemar_exact(0, 0) == 1.0


# Fisher 1935, The Design of Experiments, section 21: heights of Darwin's 15 pairs of crossed and self-fertilised maize,
# differences in eighths of an inch. 863 of the 32,768 sign arrangements reach a total of 314: p = 1726 / 32768.
MAIZE = np.array([49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48], dtype=np.float64)


def test_permutation_of_darwins_maize() -> None:
    assert sign_flip_test(MAIZE) == (1726 / 32768, "sign_flip_exact")
    made = one(MAIZE, np.zeros(15), ScoreUnit("eighths of an inch", True))
    assert made.p_value == pytest.approx(0.05267, abs=5e-6)
    assert made.difference == pytest.approx(20.93, abs=5e-3)


def test_few_rows_get_the_t_interval() -> None:
    # Eight of the pairs; 2.3646 is the tabled 97.5 % point of Student's t with seven degrees of freedom.
    few = MAIZE[:8]
    mean, error = few.mean(), few.std(ddof=1) / math.sqrt(8)
    interval = mean_interval(few, ScoreUnit("", None))
    assert interval.method == "student_t"
    assert interval.low == pytest.approx(mean - 2.3646 * error, rel=1e-4)
    assert interval.high == pytest.approx(mean + 2.3646 * error, rel=1e-4)


def test_holm_on_the_textbook_family() -> None:
    # The usual worked example (for instance Wikipedia, Holm-Bonferroni method): of these four p values the first and
    # the last are rejected at 0.05, the others are not; adjusted they are 0.03, 0.06, 0.06 and 0.02.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    # What cannot be tested is no member of the family.
    assert holm([0.01, None, 0.03]) == [pytest.approx(0.02), None, pytest.approx(0.03)]
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_needed_pairs_of_published_designs() -> None:
    # Connor 1987, Biometrics 43:207-211, as worked at powerandsamplesize.com: shares 0.05 and 0.45, power 0.8 -> 23.
    assert needed_pairs(0.05, 0.45) == 23
    # A discordance of 0.45 with odds 2 : 1 (shares 0.30 and 0.15) -> 155 pairs.
    assert needed_pairs(0.30, 0.15) == 155
    assert needed_pairs(0.2, 0.2) is None


def test_needed_rows_of_half_a_deviation() -> None:
    # The textbook design: half a standard deviation at 5 % and 80 % takes (1.960 + 0.842)^2 / 0.25 = 31.4 pairs.
    assert needed_rows(0.5, 1.0) == 32
    assert needed_rows(-0.5, 1.0) == 32
    assert needed_rows(0.0, 1.0) is None


# Against scipy's own resampling ------------------------------------------------------------------------------


def test_bootstrap_agrees_with_scipys() -> None:
    rows = np.random.default_rng(3).exponential(2.0, 60)
    ours = mean_interval(rows, SECONDS)
    theirs = stats.bootstrap((rows,), np.mean, method="BCa", rng=np.random.default_rng(4)).confidence_interval
    assert ours.method == "bootstrap_bca"
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.03)


@pytest.mark.parametrize("decimals", [1, 8], ids=["many equal sizes", "all different"])
def test_monte_carlo_agrees_with_scipys(decimals: int) -> None:
    rows = np.round(np.random.default_rng(5).normal(0.25, 1.0, 60), decimals)
    p, test = sign_flip_test(rows)
    theirs = stats.permutation_test(
        (rows,), np.mean, permutation_type="samples", vectorized=True, rng=np.random.default_rng(6)
    )
    assert test == "sign_flip_monte_carlo"
    # Each p is of 9,999 draws: four standard errors of their difference.
    assert p == pytest.approx(theirs.pvalue, abs=4 * math.sqrt(2 * theirs.pvalue / 9_999))


def test_normal_approximation_agrees_with_monte_carlo() -> None:
    rows = np.random.default_rng(7).normal(0.04, 1.0, 3_000)
    p, test = sign_flip_test(rows)
    assert test == "sign_flip_normal"
    signs = np.random.default_rng(8).choice([-1.0, 1.0], size=(2_000, rows.size))
    drawn = float(np.mean(np.abs(signs @ rows) >= abs(rows.sum())))
    assert p == pytest.approx(drawn, abs=4 * math.sqrt(p / 2_000))


def test_few_huge_rows_among_many_are_flipped_one_by_one() -> None:
    # One row outweighs the rest, so only its sign counts: half of the flips reach the observed sum, and p is near 1.
    rows = np.concatenate([np.random.default_rng(9).normal(0.0, 1e-4, 5_000), [100.0]])
    p, test = sign_flip_test(rows)
    assert test == "sign_flip_monte_carlo"
    assert p > 0.3


def test_many_pairs_get_enough_draws_to_be_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [enough_draws(0.05 / pairs, 1_999) for pairs in (1, 28, 100, 780, 4_950)] == [1999, 1999, 3999, 31199, 39999]
    monkeypatch.setattr(pair_tests, "FLIPS", 99)
    generator = np.random.default_rng(13)
    rows = {str(at): np.round(generator.normal(at, 0.1, 20), 1) for at in range(4)}
    made = compare(rows, ScoreUnit("points", True), scorer="s")
    assert {one.test for one in made} == {"sign_flip_monte_carlo"}
    # Six pairs: the least p of 99 draws, 0.01, would be 0.06 after Holm's adjustment.
    assert {one.p_value for one in made} == {1 / 240}
    assert all(one.settled for one in made)


def test_monte_carlo_p_is_never_zero() -> None:
    rows = np.linspace(1.0, 2.0, 100)
    assert sign_flip_test(rows) == (1 / 10_000, "sign_flip_monte_carlo")


# What users meet ---------------------------------------------------------------------------------------------


def test_three_variants_are_compared_pairwise_and_adjusted() -> None:
    good, middle = yes_no(50, 40, 5, 5)
    bad = [0.0] * 100
    made = compare({"good": good, "middle": middle, "bad": bad}, YES_NO, scorer="accuracy")
    assert [(c.a, c.b) for c in made] == [("good", "middle"), ("good", "bad"), ("middle", "bad")]
    smallest = min(made, key=lambda comparison: comparison.p_value or 0.0)
    assert smallest.p_adjusted == pytest.approx(3 * (smallest.p_value or 0.0))
    assert leader(made) == "good"


def test_no_leader_where_two_cannot_be_told_apart() -> None:
    a, b = yes_no(70, 6, 4, 20)
    made = compare({"a": a, "b": b, "c": [0.0] * 100}, YES_NO, scorer="accuracy")
    assert [c.better for c in made] == [None, "a", "b"]
    assert leader(made) is None
    # The open difference says how many rows would settle it: more than there are.
    assert made[0].needed_n is not None
    assert made[0].needed_n > 100


def test_lower_is_better_turns_wins_and_better_around() -> None:
    fast = np.linspace(0.5, 1.0, 40)
    made = one(fast, fast + 1.0 + np.linspace(0, 0.1, 40), SECONDS)
    assert made.difference is not None
    assert made.difference < 0
    assert (made.wins_a, made.wins_b, made.ties) == (40, 0, 0)
    assert made.better == "a"
    neutral = one(fast, fast + 1.0 + np.linspace(0, 0.1, 40), ScoreUnit("characters", None, 0.0))
    assert neutral.settled
    assert neutral.better is None
    assert (neutral.wins_a, neutral.wins_b) == (0, 40)


def test_equal_variants_have_p_one_and_no_nan() -> None:
    made = one(*yes_no(30, 0, 0, 10), YES_NO)
    assert (made.difference, made.p_value, made.p_adjusted) == (0.0, 1.0, 1.0)
    assert made.ci_low is not None
    assert made.ci_low < 0 < (made.ci_high or 0)
    assert made.needed_n is None
    same = one([0.3] * 40, [0.3] * 40)
    assert (same.difference, same.p_value, same.ci_low, same.ties) == (0.0, 1.0, None, 40)
    assert "same value" in (same.reason or "")


def test_nulls_on_either_side_are_left_out_and_counted() -> None:
    made = one([1.0, NAN, 0.0, 1.0], [1.0, 1.0, NAN, 0.0], YES_NO)
    assert (made.n, made.nulls, made.difference) == (2, 2, 0.5)
    summary = summarize([1.0, NAN, 0.0, 1.0], YES_NO)
    assert (summary.n, summary.nulls) == (3, 1)
    assert summary.mean == pytest.approx(2 / 3)


def test_nothing_to_compare_gives_none_with_a_reason() -> None:
    made = one([NAN, 1.0], [1.0, NAN], YES_NO)
    assert (made.difference, made.p_value, made.p_adjusted, made.test) == (None, None, None, None)
    assert made.reason == "no row has a value on both sides"
    summary = summarize([], SHARE)
    assert (summary.mean, summary.ci_low, summary.n, summary.reason) == (None, None, 0, "no row has a value")
    single = summarize([0.4], SHARE)
    assert (single.mean, single.ci_low, single.reason) == (0.4, None, "a single row says nothing about the spread")


def test_rows_are_the_clusters_of_samples() -> None:
    generator = np.random.default_rng(11)
    chance = generator.random(60)
    # Five samples that always agree are one piece of evidence, not five.
    agreeing = np.repeat((chance < 0.5).astype(float)[:, None], 5, axis=1)
    assert summarize(agreeing, YES_NO) == summarize(agreeing[:, 0], YES_NO)
    # Samples that differ: the interval is that of the 60 row means, far wider than 300 rows would give.
    mixed = (generator.random((60, 5)) < chance[:, None]).astype(float)
    summary = summarize(mixed, YES_NO)
    flat = wilson_interval(int(mixed.sum()), mixed.size)
    assert (summary.ci_method, summary.n) == ("bootstrap_bca", 60)
    assert (summary.ci_high or 0) - (summary.ci_low or 0) > 1.2 * ((flat.high or 0) - (flat.low or 0))
    # A null sample leaves its row's other samples to speak.
    mixed[0] = [1.0, NAN, NAN, 0.0, NAN]
    assert summarize(mixed, YES_NO).nulls == 0


def test_several_samples_use_the_permutation_test_of_row_means() -> None:
    generator = np.random.default_rng(12)
    a, b = ((generator.random((80, 4)) < share).astype(float) for share in (0.8, 0.5))
    made = one(a, b, YES_NO)
    assert (made.test, made.ci_method) == ("sign_flip_monte_carlo", "bootstrap_bca")
    assert made.difference == pytest.approx(float(a.mean() - b.mean()))
    assert made.settled
    majority_a, majority_b = a.mean(axis=1), b.mean(axis=1)
    assert made.flips_to_a == int(np.sum((majority_a > 0.5) & (majority_b < 0.5)))
    assert made.seed is not None


def test_flips_are_row_positions() -> None:
    to_a, to_b = flips([1.0, 0.0, 1.0, NAN, 1.0], [0.0, 1.0, 1.0, 1.0, 0.0])
    assert (to_a.tolist(), to_b.tolist()) == ([0, 4], [1])


def test_large_means_use_the_t_interval_inside_the_scale() -> None:
    rows = np.r_[np.zeros(1_500), np.full(3, 0.9)]
    summary = summarize(rows, SHARE)
    assert (summary.ci_method, summary.ci_low, summary.seed) == ("student_t", 0.0, None)


def test_variants_with_other_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="differ in rows"):
        compare({"a": [1.0], "b": [1.0, 0.0]}, YES_NO, scorer="s")
    with pytest.raises(ValueError, match="shape"):
        summarize(np.zeros((2, 2, 2)), YES_NO)


def test_adjusting_over_more_pairs_reopens_a_difference() -> None:
    (alone,) = compare(dict(zip("ab", yes_no(50, 9, 1, 40), strict=True)), YES_NO, scorer="s")
    assert alone.settled
    again = adjust([alone, *[dataclasses.replace(alone, p_value=0.9)] * 3])
    assert not again[0].settled


# Rules that hold for all scores ------------------------------------------------------------------------------

ANY_VALUE = st.one_of(st.just(NAN), st.floats(-1e6, 1e6, allow_subnormal=False))
BINARY = st.sampled_from([0.0, 1.0, NAN])
VERDICTS = st.sampled_from([1.0, 0.0, -1.0, NAN])
FEW = st.sampled_from([0.0, 0.25, 0.5, 1.0])


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Any, Any, ScoreUnit]:
    scale = draw(st.sampled_from([YES_NO, SHARE, ScoreUnit("seconds", False), ScoreUnit("", None)]))
    values = BINARY if scale is YES_NO else draw(st.sampled_from([FEW, ANY_VALUE]))
    rows, samples = draw(st.integers(1, 24)), draw(st.integers(1, 3))
    grid = hnp.arrays(np.float64, (rows, samples), elements=values)
    return draw(grid), draw(grid), scale


@examples(60)
@given(pairs(), st.randoms(use_true_random=False))
def test_every_pair_keeps_the_rules(drawn: tuple[Any, Any, ScoreUnit], random: Any) -> None:
    a, b, scale = drawn
    made, mirrored = one(a, b, scale), one(b, a, scale)
    # Nothing is NaN, all of it is JSON.
    json.dumps(dataclasses.asdict(made), allow_nan=False)
    if made.difference is None:
        assert made.reason
        return
    assert made.p_value is not None
    assert made.p_adjusted is not None
    assert 0.0 < made.p_value <= made.p_adjusted <= 1.0
    assert made.wins_a + made.wins_b + made.ties == made.n == len(a) - made.nulls
    if made.ci_low is not None and made.ci_high is not None:
        assert made.ci_low <= made.difference <= made.ci_high
    else:
        assert made.reason
    # b - a mirrors a - b.
    assert (mirrored.difference, mirrored.p_value) == (-made.difference, made.p_value)
    assert (mirrored.wins_a, mirrored.wins_b, mirrored.needed_n) == (made.wins_b, made.wins_a, made.needed_n)
    assert mirrored.ci_low == (None if made.ci_high is None else -made.ci_high)
    # The order of the rows does not matter.
    order = list(range(len(a)))
    random.shuffle(order)
    assert one(a[order], b[order], scale) == made


@examples(60)
@given(hnp.arrays(np.float64, st.integers(0, 30), elements=ANY_VALUE), st.randoms(use_true_random=False))
def test_every_summary_keeps_the_rules(values: Any, random: Any) -> None:
    scale = ScoreUnit("", None)
    made = summarize(values, scale)
    json.dumps(dataclasses.asdict(made), allow_nan=False)
    assert made.n + made.nulls == values.size
    assert (made.ci_low is None) == (made.reason is not None)
    if made.mean is not None and made.ci_low is not None and made.ci_high is not None:
        assert made.ci_low <= made.mean <= made.ci_high
    order = list(range(values.size))
    random.shuffle(order)
    assert summarize(values[order], scale) == made


@pytest.mark.parametrize(
    "values", [[0.1, 0.2, 0.3], [0.3, 0.1, 0.2, 0.9, 0.15, 0.6], [0.1, 0.7, 1 / 3, 0.9, 0.15], [0.1] * 7 + [0.3]]
)
def test_differences_that_mirror_themselves_have_a_mean_of_exactly_nothing(values: list[float]) -> None:
    a, b = np.array([*values, *[0.0] * len(values)]), np.array([*[0.0] * len(values), *values])
    (made,) = compare({"a": a, "b": b}, ScoreUnit("s", True, 0.0, 1.0), scorer="s")
    assert made.difference == 0.0
    assert made.needed_n is None
    assert (made.ci_low, made.ci_high) == (None if made.ci_high is None else -made.ci_high, made.ci_high)


def test_outcomes_that_mirror_themselves_have_an_interval_that_does() -> None:
    outcomes = np.array([-1.0] * 4 + [1.0] * 4 + [0.0] * 2)
    (made,) = compare_outcomes({("a", "b"): outcomes}, ScoreUnit("net wins", True, -1.0, 1.0), scorer="s")
    assert made.ci_high is not None
    assert (made.difference, made.ci_low) == (0.0, -made.ci_high)


@given(st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=12))
def test_holm_never_lowers_and_keeps_the_order(p_values: list[float | None]) -> None:
    adjusted = holm(p_values)
    known = sorted((p, q) for p, q in zip(p_values, adjusted, strict=True) if p is not None and q is not None)
    assert len(known) == sum(p is not None for p in p_values)
    assert all(p <= q <= 1 for p, q in known)
    assert [q for _, q in known] == sorted(q for _, q in known)


@examples(60)
@given(
    hnp.arrays(np.float64, st.tuples(st.integers(0, 30), st.integers(1, 3)), elements=st.sampled_from([1, 0, -1, NAN]))
)
def test_outcomes_of_pairs_keep_the_rules(outcomes: Any) -> None:
    scale = ScoreUnit("net wins", True, -1.0, 1.0)
    (made,) = compare_outcomes({("a", "b"): outcomes}, scale, scorer="s")
    (mirrored,) = compare_outcomes({("b", "a"): -outcomes}, scale, scorer="s")
    json.dumps(dataclasses.asdict(made), allow_nan=False)
    assert made.n + made.nulls == len(outcomes)
    assert (mirrored.wins_a, mirrored.wins_b, mirrored.ties) == (made.wins_b, made.wins_a, made.ties)
    if made.difference is None:
        assert made.reason == "no row has a verdict"
        return
    assert (mirrored.difference, mirrored.p_value) == (-made.difference, made.p_value)
    assert made.p_value is not None
    assert 0 < made.p_value <= 1
    if made.ci_low is not None and made.ci_high is not None:
        assert -1 <= made.ci_low <= made.difference <= made.ci_high <= 1
        assert (mirrored.ci_low, mirrored.ci_high) == (-made.ci_high, -made.ci_low)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 40), st.integers(0, 40))
def test_paired_interval_holds_the_difference_and_mirrors(both: int, only_a: int, only_b: int, neither: int) -> None:
    n = both + only_a + only_b + neither
    interval, mirrored = (newcombe_paired_interval(both, *x, neither) for x in ((only_a, only_b), (only_b, only_a)))
    if n == 0:
        assert interval.reason
        return
    assert interval.low is not None
    assert interval.high is not None
    assert -1 <= interval.low <= (only_a - only_b) / n <= interval.high <= 1
    assert (mirrored.low, mirrored.high) == (-interval.high, -interval.low)
    assert interval.low < interval.high
