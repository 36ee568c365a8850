"""Rows in clusters, and variants that are equivalent within a margin."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchchat.evaluation.statistics.classification import LabelledAnswers, compare_macro_f1, summarize_macro_f1
from batchchat.evaluation.statistics.clusters import cluster_sums, clustered_interval
from batchchat.evaluation.statistics.comparison import Comparison, compare, compare_outcomes, summarize
from batchchat.evaluation.statistics.significance import needed_for_equivalence
from batchchat.evaluation.statistics.unit import SHARE, YES_NO, ScoreUnit
from tests.thorough import examples, one_in

POINTS = ScoreUnit("points", True)

# Drawn once; six clusters of different sizes.
ROWS = np.array([-70, -11, -125, -65, -143, -251, -40, 216, 331, 305, 218, 191, 141, -66, 114, 720, 313, 490]) / 1_000
CLUSTERS = np.repeat(np.arange(6), [3, 1, 4, 2, 5, 3])


def yes_no(both: int, only_a: int, only_b: int, neither: int) -> tuple[list[float], list[float]]:
    a = [1.0] * (both + only_a) + [0.0] * (only_b + neither)
    return a, [1.0] * both + [0.0] * only_a + [1.0] * only_b + [0.0] * neither


def one(a: Any, b: Any, scale: ScoreUnit = SHARE, **options: Any) -> Comparison:
    (made,) = compare({"a": a, "b": b}, scale, scorer="s", **options)
    return made


# --- the figures


def test_the_error_of_a_mean_is_that_of_statsmodels() -> None:
    """OLS(rows, 1).fit(cov_type="cluster", cov_kwds={"groups": clusters}, use_t=True) of statsmodels 0.14."""
    made = cluster_sums(ROWS, CLUSTERS)
    assert made.mean == pytest.approx(0.126)
    assert made.standard_error() == pytest.approx(0.09345876, abs=1e-8)
    interval = clustered_interval(ROWS, CLUSTERS, POINTS)
    assert interval.low == pytest.approx(-0.1142434, abs=1e-7)
    assert interval.high == pytest.approx(0.3662434, abs=1e-7)


def test_the_error_is_that_of_the_published_formula() -> None:
    """Miller 2024, section 2.2: the sum of products of deviations over all pairs of rows of one cluster, over n²."""
    deviations = ROWS - ROWS.mean()
    same = CLUSTERS[:, None] == CLUSTERS[None, :]
    variance = float((deviations[:, None] * deviations[None, :] * same).sum()) / len(ROWS) ** 2
    assert cluster_sums(ROWS, CLUSTERS).standard_error() == pytest.approx(math.sqrt(variance * 6 / 5))


def test_clusters_of_one_row_each_are_students_t() -> None:
    values = np.random.default_rng(1).normal(size=1_200)
    alone, plain = summarize(values, POINTS, clusters=np.arange(1_200)), summarize(values, POINTS)
    assert alone.ci_low == pytest.approx(plain.ci_low)
    assert alone.ci_high == pytest.approx(plain.ci_high)
    assert (alone.clusters, alone.ci_method, plain.ci_method) == (1_200, "student_t_clusters", "student_t")


def test_a_row_that_is_copied_is_no_new_evidence() -> None:
    """Ten copies of each row in clusters tell what the rows told alone; taken for independent rows they tell more."""
    rng = np.random.default_rng(3)
    a, b = rng.random(40), rng.random(40)
    copies = np.repeat(np.arange(40), 10)
    alone, copied = one(a, b, clusters=np.arange(40)), one(np.repeat(a, 10), np.repeat(b, 10), clusters=copies)
    assert copied.difference == pytest.approx(alone.difference)
    assert copied.ci_low == pytest.approx(alone.ci_low)
    assert copied.ci_high == pytest.approx(alone.ci_high)
    assert copied.p_value == pytest.approx(alone.p_value, abs=0.01)
    assert alone.p_value is not None
    assert one(np.repeat(a, 10), np.repeat(b, 10)).p_value < alone.p_value / 3  # type: ignore[operator]
    # The same number of clusters is needed: ten times as many rows.
    assert copied.needed_n == pytest.approx(10 * (alone.needed_n or 0), rel=0.01)


def _rejected(seeds: int, *, clustered: bool) -> float:
    """The share of suites without a difference in which p is under 0.05: 50 groups of 10 rows."""
    clusters = np.repeat(np.arange(50), 10)
    hits = 0
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        # How hard a group is differs by group and variant, so its rows are right or wrong together.
        grids = {name: (rng.random(500) < np.repeat(rng.beta(0.8, 0.8, 50), 10)).astype(float) for name in "ab"}
        (made,) = compare(grids, YES_NO, scorer="s", clusters=clusters if clustered else None)
        assert made.p_value is not None
        hits += made.p_value < 0.05
    return hits / seeds


@pytest.mark.thorough
def test_without_a_difference_few_clustered_tests_find_one_and_many_of_the_others() -> None:
    assert _rejected(60, clustered=True) <= 0.15
    assert _rejected(20, clustered=False) >= 0.2


@pytest.mark.long
@pytest.mark.timeout(600)
def test_without_a_difference_five_percent_of_clustered_tests_find_one() -> None:
    assert 0.03 <= _rejected(500, clustered=True) <= 0.07
    assert _rejected(500, clustered=False) >= 0.25


def test_macro_f1_of_clusters_is_as_sure_as_its_clusters() -> None:
    rng = np.random.default_rng(5)
    expected = rng.choice(["x", "y", "z"], 60)
    given_ = {name: np.where(rng.random(60) < share, expected, "x") for name, share in (("a", 0.9), ("b", 0.5))}

    def copies(name: str, times: int) -> LabelledAnswers:
        labels = (np.repeat(column, times).tolist() for column in (expected, given_[name]))
        return LabelledAnswers(np.arange(60 * times), *labels)

    (alone,) = compare_macro_f1({name: copies(name, 1) for name in "ab"}, scorer="f", clusters=np.arange(60))
    clusters = np.repeat(np.arange(60), 8)
    (copied,) = compare_macro_f1({name: copies(name, 8) for name in "ab"}, scorer="f", clusters=clusters)
    assert (alone.clusters, copied.clusters, copied.n) == (60, 60, 480)
    assert copied.difference == pytest.approx(alone.difference)
    assert copied.ci_low == pytest.approx(alone.ci_low)
    assert copied.p_value == pytest.approx(alone.p_value, abs=0.01)
    summary = summarize_macro_f1(copies("a", 8), clusters=clusters)
    assert (summary.clusters, summary.ci_method) == (60, "delta_method_clusters")
    assert summary.ci_low == pytest.approx(summarize_macro_f1(copies("a", 1), clusters=np.arange(60)).ci_low)


def test_what_cannot_be_said_of_clusters_has_a_reason() -> None:
    rows = np.array([1.0, 0.0, 1.0])
    single = summarize(rows, YES_NO, clusters=np.zeros(3, dtype=np.int64))
    assert (single.ci_low, single.clusters) == (None, 1)
    assert "one cluster" in (single.reason or "")
    # Twenty right rows in two clusters are no more than two right clusters.
    alike = summarize(np.ones(20), YES_NO, clusters=np.repeat([0, 1], 10))
    assert alike.ci_method == "wilson_clusters"
    assert alike.ci_low == pytest.approx(0.3424, abs=1e-4)
    even = summarize(np.array([1.0, 0.0, 0.0, 1.0]), YES_NO, clusters=np.array([0, 0, 1, 1]))
    assert (even.mean, even.reason) == (0.5, "all clusters have the same mean: they say nothing about the spread")
    empty = one([math.nan], [1.0], clusters=np.array([0]))
    assert (empty.difference, empty.clusters) == (None, 0)


@examples(60)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([0.0, 0.1, 1 / 3, 1.0, math.nan]), st.sampled_from([0.0, 0.7, 1.0]), st.integers(0, 4)
        ),
        max_size=30,
    ),
    st.randoms(use_true_random=False),
    st.none() | st.sampled_from([0.01, 0.2, 0.9]),
)
def test_every_clustered_comparison_keeps_the_rules(
    lines: list[tuple[float, float, int]], random: Any, margin: float | None
) -> None:
    def made(rows: list[tuple[float, float, int]], *, swapped: bool = False) -> Comparison:
        a, b, clusters = (np.array([row[at] for row in rows]) for at in range(3))
        options = {"clusters": clusters.astype(np.int64), "margin": margin}
        return one(b, a, SHARE, **options) if swapped else one(a, b, SHARE, **options)

    found, mirrored = made(lines), made(lines, swapped=True)
    json.dumps(dataclasses.asdict(found), allow_nan=False)
    assert (found.ci_low is None) == (found.reason is not None)
    if found.difference is not None:
        assert (mirrored.difference, mirrored.p_value) == (-found.difference, found.p_value)
        assert mirrored.ci_low == (None if found.ci_high is None else -found.ci_high)
        assert (mirrored.equivalent, mirrored.needed_n) == (found.equivalent, found.needed_n)
    random.shuffle(lines)
    assert made(lines) == found


# --- equivalence


def test_the_rows_for_equivalence_are_those_of_the_published_example() -> None:
    """Chow, Shao and Wang 2008, section 3.1.3: s = 10 %, margin 5 %, difference 1 %, power 80 %: 54 rows at 5 %."""
    assert needed_for_equivalence(0.01, 0.1, 0.05) == 54
    assert needed_for_equivalence(-0.01, 0.1, 0.05) == 54
    assert needed_for_equivalence(0.05, 0.1, 0.05) is None
    assert needed_for_equivalence(0.0, 0.0, 0.05) is None


@pytest.mark.parametrize("scale", one_in(2, [YES_NO, SHARE]))
@pytest.mark.parametrize("clustered", one_in(2, [False, True]))
def test_the_verdict_is_one_of_four(scale: ScoreUnit, clustered: bool) -> None:
    rng = np.random.default_rng(9)
    base = rng.random(4_000)
    options: dict[str, Any] = {"clusters": np.arange(4_000) // 2} if clustered else {}

    def variant(share: float, rows: int = 4_000) -> Any:
        right = base[:rows] < share
        return right.astype(float) if scale is YES_NO else right * 0.8 + rng.random(rows) * 0.05

    def verdict(a: float, b: float, rows: int = 4_000, margin: float | None = 0.05) -> str:
        clusters = {name: value[:rows] for name, value in options.items()}
        return one(variant(a, rows), variant(b, rows), scale, margin=margin, **clusters).verdict

    assert verdict(0.8, 0.6) == "better"
    assert verdict(0.6, 0.8) == "worse"
    assert verdict(0.7, 0.7) == "equivalent"
    assert verdict(0.7, 0.7, margin=None) == "open"
    assert verdict(0.71, 0.7, rows=30) == "open"
    # A difference that is settled and settledly too small to matter is none that matters.
    assert verdict(0.70, 0.69) == "equivalent"
    assert verdict(0.70, 0.69, margin=0.001) == "better"


def test_few_rows_that_do_not_differ_show_no_equivalence() -> None:
    same = [1.0] * 5 + [0.0] * 5
    for options in ({}, {"clusters": np.arange(10)}):
        made = one(same, same, YES_NO, margin=0.02, **options)
        assert (made.verdict, made.difference) == ("open", 0.0)
    many = np.tile(same, 200)
    assert one(many, many, YES_NO, margin=0.02).verdict == "equivalent"
    assert one(many, many, YES_NO, margin=0.02, clusters=np.arange(2_000)).verdict == "equivalent"
    assert one(many, many, YES_NO, margin=0.02, clusters=np.arange(2_000) // 400).verdict == "open"


def test_more_pairs_make_equivalence_harder_to_show() -> None:
    rng = np.random.default_rng(4)
    rows = {name: (rng.random(900) < 0.5).astype(float) for name in "cdef"}
    # 90 rows are won and 90 lost: the 90 % interval reaches to 0.025 either way, that of 15 pairs to 0.04.
    first, second = yes_no(both=360, only_a=90, only_b=90, neither=360)
    rows = {"a": np.array(first), "b": np.array(second), **rows}
    pair = compare({name: rows[name] for name in "ab"}, YES_NO, scorer="s", margin=0.03)
    every = compare(rows, YES_NO, scorer="s", margin=0.03)
    among = next(made for made in every if (made.a, made.b) == ("a", "b"))
    assert (pair[0].equivalent, among.equivalent) == (True, False)


def test_outcomes_of_pairs_have_clusters_and_margins() -> None:
    rng = np.random.default_rng(6)
    outcomes = rng.choice([-1.0, 0.0, 1.0], 3_000)
    unit = ScoreUnit("net wins", True, -1.0, 1.0)
    (plain,) = compare_outcomes({("a", "b"): outcomes}, unit, scorer="s", margin=0.1)
    (made,) = compare_outcomes({("a", "b"): outcomes}, unit, scorer="s", clusters=np.arange(3_000) // 3, margin=0.1)
    assert (plain.verdict, made.verdict, made.clusters) == ("equivalent", "equivalent", 1_000)
    assert made.test == "sign_flip_monte_carlo_clusters"


@pytest.mark.long
@pytest.mark.timeout(600)
def test_variants_that_differ_by_the_margin_are_seldom_called_equivalent() -> None:
    """At the margin itself at most 5 % of the tests may say so."""
    wrong = {False: 0, True: 0}
    for seed in range(1_000):
        rng = np.random.default_rng(seed)
        base = rng.random(600)
        a, b = (
            (base < 0.75).astype(float),
            (np.where(rng.random(600) < 0.3, rng.random(600), base) < 0.70).astype(float),
        )
        for clustered in wrong:
            options: dict[str, Any] = {"clusters": np.arange(600) // 4} if clustered else {}
            wrong[clustered] += one(a, b, YES_NO, margin=0.05, **options).equivalent
    assert all(count / 1_000 <= 0.05 + 2 * 0.007 for count in wrong.values())
