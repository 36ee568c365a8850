"""The benchmark's own arithmetic, and that its scenarios run. Nothing here is timed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.bench import Bench
from tests.benchmarks.scenarios import SCENARIOS
from tests.benchmarks.table import Figure, render, spread
from tests.thorough import one_in


def test_a_ratio_is_the_median_of_the_rounds_own() -> None:
    figure = Figure("tool", "rows/s", [10.0, 30.0, 1000.0], "loop", [1.0, 2.0, 10.0], 12.0)
    assert figure.ratio == 15.0
    assert figure.reached is True


def test_a_figure_without_another_is_its_own_ratio() -> None:
    assert Figure("help", "s", [0.2, 0.4, 0.3], target=0.3, below=True).reached is True
    assert Figure("help", "s", [0.31], target=0.3, below=True).reached is False
    assert Figure("ceiling", "req/s", [5.0]).reached is None


def test_the_spread_is_half_the_range_beside_the_median() -> None:
    assert spread([80.0, 100.0, 120.0]) == pytest.approx(0.2)
    assert spread([7.0]) == 0.0
    assert spread([0.0, 0.0]) == 0.0


def test_the_table_says_which_targets_are_missed() -> None:
    lines = render(
        [
            Figure("tool", "rows/s", [900.0, 1000.0, 1100.0], "loop", [2000.0, 2000.0, 2000.0], 0.8),
            Figure("memory", "MiB", [110.0], "fewer rows", [100.0], 1.25, below=True),
        ]
    ).splitlines()
    assert lines[2] == "| tool | 1,000 rows/s ±10% | loop | 2,000 rows/s ±0% | 0.5 ±10% | ≥ 0.8 (missed) |"
    assert lines[3] == "| memory | 110 MiB | fewer rows | 100 MiB | 1.1 | ≤ 1.25 |"


def run_tiny(name: str, folder: Path) -> list[Figure]:
    return SCENARIOS[name](Bench(folder, rounds=1, scale=1e-4))


@pytest.mark.parametrize("name", one_in(2, ["help", "store"]))
def test_a_scenario_runs_at_a_tiny_size(name: str, tmp_path: Path) -> None:
    assert all(value >= 0 for figure in run_tiny(name, tmp_path) for value in figure.ours)


@pytest.mark.long
@pytest.mark.parametrize("name", list(SCENARIOS))
def test_every_scenario_runs_at_a_tiny_size(name: str, tmp_path: Path) -> None:
    assert run_tiny(name, tmp_path)
