"""The two jobs that a calibration runs for a job with a cascade."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from batchchat.errors import UsageError
from batchchat.labelling.calibrating import sub_jobs
from tests.integration.jobs import make_job, write_rows

SCHEMA = {"type": "object", "properties": {"label": {"enum": ["yes", "no"]}}, "required": ["label"]}
PRICES = {"input": 1.0, "output": 2.0, "currency": "EUR"}
STEPS: list[dict[str, Any]] = [
    {"model": "small", "accept": {"confidence": 0.9}},
    {
        "model": "large",
        "provider": {"base_url": "http://other/v1"},
        "params": {"max_tokens": 500, "temperature": None},
        "prices": PRICES,
    },
]


def jobs_of(folder: Path, cascade: list[dict[str, Any]], **chosen: str | None) -> Any:
    write_rows(folder / "rows.jsonl", [{"id": "a", "text": "one", "label": "yes"}])
    job = make_job(
        folder,
        None,
        model=None,
        cascade=cascade,
        response={"schema": SCHEMA, "confidence": "logprobs"},
        params={"max_tokens": 50, "temperature": 0},
    )
    options: dict[str, Any] = {"small": None, "large": None, "expected": "label", **chosen}
    return sub_jobs(job, **options)


def test_the_models_are_those_of_the_cascade_each_with_its_own_fields(tmp_path: Path) -> None:
    first, second = jobs_of(tmp_path, STEPS)
    assert (first.model, second.model) == ("small", "large")
    assert (first.cascade, second.cascade) == ([], [])
    assert first.params.as_body() == {"max_tokens": 50, "temperature": 0}
    assert second.params.as_body() == {"max_tokens": 500}
    assert second.resolved_provider().base_url == "http://other/v1"
    assert second.resolved_provider().prices["large"].output == 2.0


def test_a_model_that_is_named_goes_over_the_cascade(tmp_path: Path) -> None:
    _, second = jobs_of(tmp_path, STEPS, large="larger")
    assert second.model == "larger"
    assert second.params.as_body() == {"max_tokens": 50, "temperature": 0}


def test_three_steps_are_refused_until_two_are_named(tmp_path: Path) -> None:
    three = [STEPS[0], {"model": "middle", "accept": {"confidence": 0.8}}, STEPS[1]]
    with pytest.raises(UsageError, match="between two models"):
        jobs_of(tmp_path, three)
    first, second = jobs_of(tmp_path, three, small="middle", large="large")
    assert (first.model, second.model) == ("middle", "large")
