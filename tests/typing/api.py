"""The typing contract of the public API. mypy checks it with the rest of the tests; pytest does not collect it.

If a line here has to change, the code of users has to change too.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, assert_type

import pyarrow as pa

import batchchat
from batchchat import (
    Ceilings,
    ComparisonResult,
    Control,
    EvaluationResult,
    Event,
    Job,
    RunOptions,
    RunResult,
    RunSummary,
    Snapshot,
    StopRequest,
    Suite,
)


def a_job_is_read_from_a_file_with_changes() -> None:
    assert_type(batchchat.load_job("job.yaml"), Job)
    batchchat.load_job(Path("job.yaml"), overrides=["model=small"], input="rows.jsonl", output="out")


def a_run_returns_its_summary(job: Job) -> None:
    summary = batchchat.run(job)
    assert_type(summary, RunResult)
    kept: RunSummary = summary
    assert_type(kept.exit_code, int)
    assert_type(summary.exit_code, int)
    assert_type(summary.reason, str | None)
    assert_type(summary.ok, int)
    assert_type(summary.failed, int)
    assert_type(summary.open, int)
    assert_type(summary.spend.cost, float)


async def a_run_is_watched_and_steered(job: Job) -> None:
    control = Control()

    def on_event(event: Event) -> None:
        assert_type(event.name, str)

    def on_snapshot(snapshot: Snapshot) -> None:
        assert_type(snapshot.total, int | None)
        if snapshot.failed > 100:
            control.pause()
            control.retune(Ceilings(requests_per_minute=60, tokens_per_minute=None, concurrency=4))
            control.resume()
            control.stop(reason="too many rows failed", exit_code=1)

    options = RunOptions(limit=10, sample=5, seed=1, fresh=True, prune=False, grace=20.0)
    summary = await batchchat.run_job(
        job, options=options, listener=on_event, on_snapshot=on_snapshot, stop=control, environ={"KEY": "value"}
    )
    assert_type(summary, RunResult)


def rows_come_from_a_table_or_an_iterable_of_dicts(job: Job, table: pa.Table) -> None:
    batchchat.run(job, rows=table, progress=True)
    batchchat.run(job, rows=[{"id": 1, "text": "a"}])
    batchchat.run(job, rows=({"id": number} for number in range(3)))


def a_result_gives_its_answers_as_a_table(result: RunResult) -> None:
    assert_type(result.raise_for_status(), RunResult)
    assert result.to_arrow(columns=["completion"]).num_rows
    assert len(result.to_pandas()) == len(result.to_polars(["completion"]))


def a_failed_run_is_an_error_if_that_is_wanted(error: batchchat.RunFailed) -> None:
    assert_type(error.exit_code, int)
    assert_type(error.result, RunResult)
    wrong: batchchat.BatchchatError = error
    raise wrong


def the_old_name_of_a_control_is_one() -> None:
    assert_type(StopRequest(), Control)


def an_output_is_read_as_arrow() -> None:
    assert batchchat.read_output("out", columns=["text"]).num_rows
    batches = batchchat.iter_output(Path("out"), batch_rows=1000)
    iterator: Iterator[object] = batches
    assert next(iterator)


def errors_have_a_message_a_remedy_and_an_exit_code(error: batchchat.BatchchatError) -> None:
    assert_type(error.message, str)
    assert_type(error.exit_code, int)
    assert_type(error.remedy, str | None)
    wrong: batchchat.BatchchatError = batchchat.UsageError("what is wrong")
    raise wrong


def a_suite_takes_scorers_that_are_functions() -> None:
    def polite(record: dict[str, Any], row: dict[str, Any]) -> bool:
        return str(row["name"]) in str(record["completion"])

    def short(record: dict[str, Any], row: dict[str, Any]) -> tuple[str, str | None]:
        return ("short", None) if len(record["completion"]) < len(row["text"]) else ("long", "as long as the input")

    labels = {"name": "short", "python": short, "labels": {"short": 1, "long": 0}}
    suite = batchchat.load_suite("suite.yaml", overrides=["seed=1"], output="out", scorers=[polite, labels])
    assert_type(suite, Suite)
    assert_type(batchchat.score(suite, limit=10), EvaluationResult)
    assert_type(batchchat.compare("a", Path("b"), scorers=["exact:label", polite], suite=suite), ComparisonResult)


async def an_evaluation_gives_tables(suite: Suite, control: Control) -> None:
    result = await batchchat.evaluate(suite, options=RunOptions(limit=10), progress=False, control=control)
    assert_type(result, EvaluationResult)
    assert_type(result.raise_for_status(), EvaluationResult)
    assert_type(result.mean("small", "accuracy").mean, float | None)
    assert_type(result.exit_code, int)
    for table in (result.variants(), result.means(), result.comparisons(), result.scores(), result.verdicts()):
        assert table.num_rows
    assert result.answers("small", columns=["completion"]).num_rows
    assert_type(result.write_report(), Path)


def a_plan_tells_what_a_job_or_a_suite_costs(job: Job, suite: Suite) -> None:
    assert_type(batchchat.plan(job).requests, int)
    assert_type(batchchat.plan(suite, options=RunOptions(limit=5)).requests, int)
    assert_type(batchchat.plan(suite).cost, float | None)


def a_failed_evaluation_is_an_error_if_that_is_wanted(error: batchchat.EvaluationFailed) -> None:
    assert_type(error.exit_code, int)
    assert_type(error.result, EvaluationResult)
    wrong: batchchat.BatchchatError = error
    raise wrong
