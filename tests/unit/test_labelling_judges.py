"""The places that a judge of pairs prefers."""

from __future__ import annotations

import pytest

from batchchat.labelling.judges import position_bias


def _case(row: int, one: str, two: str, verdict: str) -> dict[str, str]:
    return {"input": f"row {row}", "first": one, "second": two, "verdict": verdict}


def test_a_judge_that_looks_at_answers_has_no_bias() -> None:
    cases = [_case(row, "good", "bad", "A") for row in range(50)] + [
        _case(row, "bad", "good", "B") for row in range(50)
    ]
    found = position_bias(cases, "first", "second")
    assert found is not None
    assert (found.pairs, found.verdicts) == (50, 100)
    assert (found.first.value, found.consistent.value, found.by_place.value, found.ties.value) == (0.5, 1, 0, 0)
    assert found.first.low is not None
    assert found.first.low < 0.5


def test_a_judge_that_looks_at_places_is_found_out() -> None:
    cases = [
        *(_case(row, *order, "A") for row in range(40) for order in (("x", "y"), ("y", "x"))),
        *(_case(row, *order, "tie") for row in range(40, 50) for order in (("x", "y"), ("y", "x"))),
    ]
    found = position_bias(cases, "first", "second")
    assert found is not None
    assert (found.first.value, found.by_place.value) == (1, 0.8)
    assert found.consistent.value == pytest.approx(0.2)  # the ties
    assert found.ties.value == pytest.approx(0.2)


def test_what_is_no_pairwise_judge_has_none() -> None:
    assert position_bias([], "first", "second") is None
    assert position_bias([_case(0, "x", "y", "yes")], "first", "second") is None
