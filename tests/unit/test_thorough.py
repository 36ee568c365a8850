"""The two helpers that say what of the tests the normal run leaves out."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings

from tests.thorough import FEWEST, examples, one_in


def marks(case: Any) -> list[str]:
    return [mark.name for mark in case.marks]


def test_every_third_case_stays_and_the_others_are_marked() -> None:
    found = one_in(3, "abcdefg")
    assert [case.values for case in found] == [(letter,) for letter in "abcdefg"]
    assert ["".join(case.values) for case in found if not marks(case)] == ["a", "d", "g"]
    assert {tuple(marks(case)) for case in found if marks(case)} == {("thorough",)}


def test_cases_of_several_arguments_keep_their_ids_and_marks() -> None:
    first, second = one_in(2, [(1, "x"), pytest.param(2, "y", id="two", marks=pytest.mark.long)])
    assert (first.values, marks(first)) == ((1, "x"), [])
    assert (second.values, second.id, marks(second)) == ((2, "y"), "two", ["long", "thorough"])


def test_the_number_of_examples_follows_the_profile_of_the_run() -> None:
    share = settings().max_examples
    assert examples(200).max_examples == 2 * share
    assert examples(1).max_examples == FEWEST
    assert examples(40, stateful_step_count=7).stateful_step_count == 7
