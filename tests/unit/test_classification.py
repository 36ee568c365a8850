"""Reports over classes, against published examples and plain resampling."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchchat.errors import UsageError
from batchchat.evaluation.statistics.classification import (
    NO_ANSWER,
    OTHER,
    LabelledAnswers,
    classification_report,
    compare_macro_f1,
    summarize_macro_f1,
)
from tests.thorough import examples, one_in


def answers(expected: Any, given_labels: Any) -> LabelledAnswers:
    return LabelledAnswers(range(len(expected)), list(expected), list(given_labels))


def test_the_report_of_the_scikit_learn_manual() -> None:
    # The example of sklearn.metrics.classification_report, whose classes are 0, 1 and 2.
    made = classification_report(answers("01222", "00221"))
    assert [(c.label, c.precision, c.recall, round(c.f1 or 0, 2), c.support) for c in made.classes] == [
        ("0", 0.5, 1.0, 0.67, 1),
        ("1", 0.0, 0.0, 0.0, 1),
        ("2", 1.0, pytest.approx(2 / 3), 0.80, 3),
    ]
    assert made.accuracy == pytest.approx(0.60)
    assert made.macro_f1 == pytest.approx(0.49, abs=0.005)


def test_the_macro_f1_of_the_scikit_learn_manual() -> None:
    # The example of sklearn.metrics.f1_score: macro average 0.26666.
    made = answers("012012", "021001")
    assert classification_report(made).macro_f1 == pytest.approx(0.26666, abs=1e-5)
    assert summarize_macro_f1(made).mean == pytest.approx(0.26666, abs=1e-5)


def test_the_confusion_matrix_of_the_scikit_learn_manual() -> None:
    # The example of sklearn.metrics.confusion_matrix, with the columns for others and for no answer beside it.
    made = classification_report(
        answers(["cat", "ant", "cat", "cat", "ant", "bird"], ["ant", "ant", "cat", "cat", "ant", "cat"])
    )
    assert made.given == ("ant", "bird", "cat", OTHER, NO_ANSWER)
    assert made.confusion == ((2, 0, 0, 0, 0), (0, 0, 1, 0, 0), (1, 0, 2, 0, 0))


def test_other_answers_are_wrong_but_no_class() -> None:
    made = classification_report(answers(["a", "a", "b", "b", None], ["a", "what", None, "b", "a"]))
    assert [c.label for c in made.classes] == ["a", "b"]
    assert made.confusion == ((1, 0, 1, 0), (0, 1, 0, 1))
    assert (made.n, made.accuracy) == (4, 0.5)
    assert made.macro_f1 == pytest.approx(2 / 3)


def test_named_classes_that_never_occur_do_not_count_in_the_mean() -> None:
    made = classification_report(answers("ab", "ab"), labels=["a", "b", "c"])
    assert made.macro_f1 == 1.0
    assert dataclasses.astuple(made.classes[2]) == ("c", None, None, None, 0)


def test_nothing_to_report() -> None:
    empty = answers([None], ["a"])
    report, summary = classification_report(empty), summarize_macro_f1(empty)
    assert (report.accuracy, report.macro_f1, report.n) == (None, None, 0)
    assert (summary.mean, summary.n, summary.reason) == (None, 0, "no row has an expected class")
    (compared,) = compare_macro_f1({"a": empty, "b": answers(["a"], ["a"])}, scorer="s.macro_f1")
    assert (compared.p_value, compared.n, compared.nulls) == (None, 0, 1)
    assert compared.reason == "no row has a value on both sides"


def test_a_column_of_free_text_is_no_set_of_classes() -> None:
    texts = [str(at) for at in range(1_001)]
    with pytest.raises(UsageError, match="1,001 different values"):
        classification_report(answers(texts, texts))


def drawn(rows: int, shares: tuple[float, ...], seed: int = 1) -> dict[str, LabelledAnswers]:
    generator = np.random.default_rng(seed)
    expected = generator.choice(list("abcd"), rows, p=[0.4, 0.3, 0.2, 0.1])
    made = {}
    for name, share in zip("xyz", shares, strict=False):
        guess = generator.choice(list("abcd"), rows)
        made[name] = answers(expected.tolist(), np.where(generator.random(rows) < share, expected, guess).tolist())
    return made


def macro_f1(made: LabelledAnswers, chosen: Any) -> float:
    report = classification_report(
        LabelledAnswers(range(len(chosen)), [made.expected[at] for at in chosen], [made.given[at] for at in chosen])
    )
    assert report.macro_f1 is not None
    return report.macro_f1


@pytest.mark.parametrize(("rows", "method"), one_in(2, [(300, "bootstrap_percentile"), (1_500, "delta_method")]))
def test_intervals_agree_with_plain_resampling(rows: int, method: str) -> None:
    made = drawn(rows, (0.7, 0.6))
    summary = summarize_macro_f1(made["x"])
    (compared,) = compare_macro_f1(made, scorer="s.macro_f1")
    generator = np.random.default_rng(2)
    choices = [generator.integers(0, rows, rows) for _ in range(300)]
    single = np.array([macro_f1(made["x"], chosen) for chosen in choices])
    difference = single - np.array([macro_f1(made["y"], chosen) for chosen in choices])
    for found, draws in ((summary, single), (compared, difference)):
        assert found.ci_method == method
        assert (found.ci_high or 0) - (found.ci_low or 0) == pytest.approx(2 * 1.96 * draws.std(), rel=0.2)
    assert summary.mean == pytest.approx(macro_f1(made["x"], range(rows)))


@pytest.mark.parametrize(
    ("rows", "test"), one_in(2, [(300, "swap_monte_carlo"), (1_200, "sign_flip_monte_carlo_linearized")])
)
def test_the_test_agrees_with_plain_swapping(rows: int, test: str) -> None:
    made = drawn(rows, (0.70, 0.67), seed=5)
    (compared,) = compare_macro_f1(made, scorer="s.macro_f1")
    assert compared.test == test
    assert compared.difference == pytest.approx(macro_f1(made["x"], range(rows)) - macro_f1(made["y"], range(rows)))
    generator = np.random.default_rng(6)
    given_labels = [np.array(made[name].given) for name in "xy"]
    hits = 0
    for _ in range(400):
        swap = generator.random(rows) < 0.5
        ours, theirs = (
            answers(made["x"].expected, np.where(swap, second, first).tolist())
            for first, second in (given_labels, given_labels[::-1])
        )
        hits += abs(macro_f1(ours, range(rows)) - macro_f1(theirs, range(rows))) >= abs(compared.difference or 0)
    assert compared.p_value == pytest.approx(hits / 400, abs=0.1)


def test_pairs_are_adjusted_and_better_is_told() -> None:
    made = compare_macro_f1(drawn(400, (0.9, 0.5, 0.5)), scorer="s.macro_f1")
    assert [(c.a, c.b, c.better) for c in made] == [("x", "y", "x"), ("x", "z", "x"), ("y", "z", None)]
    assert made[0].p_adjusted == pytest.approx(3 * (made[0].p_value or 0))
    assert made[0].wins_a + made[0].wins_b + made[0].ties == 400


def test_samples_of_a_row_are_one_cluster() -> None:
    once = drawn(200, (0.7,))["x"]
    rows = [row for row in range(200) for _ in range(5)]
    five = LabelledAnswers(rows, [once.expected[row] for row in rows], [once.given[row] for row in rows])
    assert summarize_macro_f1(five) == summarize_macro_f1(once)


def test_variants_that_agree_have_p_one() -> None:
    x = drawn(100, (0.7,))["x"]
    (compared,) = compare_macro_f1({"a": x, "b": x}, scorer="s")
    assert (compared.difference, compared.p_value, compared.ties) == (0.0, 1.0, 100)


LABEL = st.sampled_from(["a", "b", "c"])
LINE = st.tuples(st.integers(0, 6), st.none() | LABEL, st.none() | LABEL | st.just("?"))


@examples(40)
@given(st.lists(LINE, max_size=20), st.lists(LINE, max_size=20), st.randoms(use_true_random=False))
def test_all_answers_keep_the_rules(left: list[Any], right: list[Any], random: Any) -> None:
    def variant(lines: list[Any]) -> LabelledAnswers:
        return (
            LabelledAnswers(*(list(column) for column in zip(*lines, strict=True)))
            if lines
            else LabelledAnswers([], [], [])
        )

    summary = summarize_macro_f1(variant(left))
    (compared,) = compare_macro_f1({"a": variant(left), "b": variant(right)}, scorer="s")
    for made in (summary, compared, classification_report(variant(left))):
        json.dumps(dataclasses.asdict(made), allow_nan=False)
    if compared.p_value is not None:
        assert 0 < compared.p_value <= 1
    if summary.ci_low is not None and summary.ci_high is not None and summary.mean is not None:
        assert 0 <= summary.ci_low <= summary.mean <= summary.ci_high <= 1
    shuffled = list(left)
    random.shuffle(shuffled)
    assert summarize_macro_f1(variant(shuffled)) == summary
