"""What several samples of a row tell together."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchchat.evaluation.statistics.samples import SampleKind, SampleMetric

NAN = math.nan


def value(kind: SampleKind, k: int, *samples: float) -> float:
    (found,) = SampleMetric(kind, k).values(np.array([samples]))
    return float(found)


def test_pass_at_is_the_published_estimator() -> None:
    """Chen et al. 2021: 1 - prod(1 - k / (n - c + 1 .. n)), the stable form that they print."""
    n, c, k = 200, 37, 10
    published = 1.0 - np.prod(1.0 - k / np.arange(n - c + 1, n + 1))
    assert value("pass_at", k, *[1.0] * c, *[0.0] * (n - c)) == pytest.approx(float(published), abs=1e-12)


@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=2, max_size=7), st.integers(2, 7))
def test_each_metric_is_the_mean_over_all_choices(samples: list[float], k: int) -> None:
    rules: dict[SampleKind, Any] = {
        "pass_at": any,
        "pass_all": all,
        "majority": lambda chosen: (np.sign(2 * sum(chosen) - len(chosen)) + 1) / 2,
    }
    for kind, rule in rules.items():
        if k > len(samples):
            assert math.isnan(value(kind, k, *samples))
        else:
            choices = [float(rule(chosen)) for chosen in itertools.combinations(samples, k)]
            assert value(kind, k, *samples) == pytest.approx(float(np.mean(choices)))
    agree = [one == other for one, other in itertools.combinations(samples, 2)]
    assert value("consistency", 2, *samples) == pytest.approx(float(np.mean(agree)))


def test_samples_without_a_value_do_not_count() -> None:
    assert value("pass_at", 2, 1.0, NAN, 0.0) == 1.0
    assert math.isnan(value("pass_at", 2, 1.0, NAN, NAN))
