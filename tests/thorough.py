"""What the normal run of the tests leaves to `pytest -m thorough`: the rest of long tables, and more examples."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import settings

FEWEST = 5
"""Examples that a property test has at least."""


def one_in(step: int, cases: Iterable[Any]) -> list[Any]:
    """Return all cases of a table, of which every `step`-th, from the first on, is in the normal run.

    A case that is a tuple is taken for the values of several arguments. Cases keep their ids and marks.
    """
    found = []
    for number, case in enumerate(cases):
        marks = [pytest.mark.thorough] if number % step else []
        if isinstance(case, type(pytest.param())):
            found.append(case._replace(marks=[*case.marks, *marks]))
        else:
            found.append(pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=marks))
    return found


def examples(number: int, **options: Any) -> settings:
    """Return the settings of a property test of which so many examples are tried with `-m thorough`.

    The normal run tries the part of them that its profile tries of a hundred.
    """
    return settings(max_examples=max(FEWEST, number * settings().max_examples // 100), **options)
