"""When a gold label and an answer count as the same."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from batchchat.evaluation.scorers.matching import numbers_in, same, text_of
from batchchat.export import _harmless


@pytest.mark.parametrize(
    ("answer", "gold", "equal"),
    [
        *[("1", 1.0, True), ("1.0", 1.0, True), ("1.0", 1, True), ("2", 1.0, False), ("-0.5", -0.5, True)],
        *[("007", 7, False), ("one", 1.0, False), ("0.1", Decimal("0.10"), True), (1, 1.0, True), ("1", "1.0", False)],
        *[("true", True, True), ("True", True, True), ("yes", True, False), ("1", True, False), (True, "TRUE", True)],
        *[('["a"]', ["a"], True), ("null", None, True)],
    ],
)
def test_labels_are_the_same_whatever_type_their_column_has(answer: Any, gold: Any, equal: bool) -> None:
    assert same(answer, gold) is equal
    assert same(gold, answer) is equal


def test_a_whole_float_is_written_as_an_integer() -> None:
    assert [text_of(value) for value in (1.0, -3.0, 1.5, 2.0**60, True)] == [
        "1",
        "-3",
        "1.5",
        "1.152921504606847e+18",
        "true",
    ]


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("9{,}500", [9500]),
        ("9,500", [9500]),
        (r"\boxed{9\,500}", [9500]),
        (r"\$1{,}000{,}000.", [1000000]),
        ("{1,2}", [1, 2]),
    ],
)
def test_numbers_are_read_as_latex_writes_them(text: str, numbers: list[int]) -> None:
    assert numbers_in(text) == numbers


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        *[("=1+1", "'=1+1"), ("+cmd", "'+cmd"), ("-2+3", "'-2+3"), ("@SUM(A1)", "'@SUM(A1)"), ("\t=1", "'\t=1")],
        *[
            (" =1", "' =1"),
            ("\uff1d1", "'\uff1d1"),
            ("-5", "-5"),
            ("+1.5e3", "+1.5e3"),
            (-5, -5),
            ("a=b", "a=b"),
            (None, None),
        ],
    ],
)
def test_a_safe_cell_is_no_formula(value: Any, cell: Any) -> None:
    assert _harmless(value) == cell
