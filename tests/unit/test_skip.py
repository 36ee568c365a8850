"""`skip`: rows that are not sent. Whole runs on a virtual clock, and the sorting of rows by itself."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from rich.console import Console, RenderableType

from batchchat.cli.history import render_history
from batchchat.cli.plan_page import render_plan
from batchchat.cli.status_page import render_status
from batchchat.cli.summary_page import render_summary
from batchchat.errors import JobError
from batchchat.export import export
from batchchat.history import history_of
from batchchat.inspection import status_of
from batchchat.job import Job
from batchchat.planning import plan_job
from batchchat.records import ErrorKind
from batchchat.runner.options import RunOptions
from batchchat.template import RowTemplateError
from batchchat.template.condition import Condition
from tests.integration.jobs import make_job, query, write_rows
from tests.unit.test_run_clock import Provider, answer, simulate

ROWS: list[dict[str, Any]] = [
    {"id": f"r{number}", "text": "" if number in (0, 3, 4) else f"row {number}"} for number in range(8)
]
EMPTY = "{{ not text }}"


async def at_once(_request: httpx.Request) -> httpx.Response:
    await anyio.sleep(0.1)
    return answer()


def as_text(page: RenderableType) -> str:
    stream = io.StringIO()
    Console(file=stream, width=120).print(page)
    return stream.getvalue()


def asked(folder: Path, rows: list[dict[str, Any]] = ROWS, options: RunOptions | None = None, **fields: Any) -> Any:
    """Run, and return the summary with the number of requests that it made."""
    provider = Provider(at_once)
    summary, _, _ = simulate(folder, provider, 0, lines=rows, options=options, **fields)
    assert summary.rows * summary.samples == summary.ok + summary.failed + summary.skipped + summary.open
    return summary, len(provider.times)


def planned(folder: Path, **fields: Any) -> Any:
    return plan_job(make_job(folder, None, **fields), RunOptions())


@pytest.mark.parametrize("given", [{"path": "rows.jsonl", "key": "id"}, {"path": "rows.jsonl"}])
@pytest.mark.parametrize("samples", [1, 3])
def test_skipped_rows_are_counted_and_never_sent_also_when_the_run_goes_on(
    tmp_path: Path, given: dict[str, Any], samples: int
) -> None:
    fields: dict[str, Any] = {"input": {**given, "path": str(tmp_path / "rows.jsonl")}, "samples": samples}
    write_rows(tmp_path / "rows.jsonl", ROWS)
    before = planned(tmp_path, skip=EMPTY, **fields)
    assert (before.new, before.skipped, before.requests, before.empty) == (5 * samples, 3 * samples, 5 * samples, 0)
    assert before.warnings == []
    first, sent = asked(tmp_path, skip=EMPTY, **fields)
    assert (first.exit_code, first.rows, first.ok, first.skipped) == (0, 8, 5 * samples, 3 * samples)
    assert sent == 5 * samples
    # The second pass takes the rows over from the trail, without reading them.
    again, sent = asked(tmp_path, skip=EMPTY, **fields)
    assert (again.exit_code, again.skipped, sent, again.kept) == (0, 3 * samples, 0, 0)
    after = planned(tmp_path, skip=EMPTY, **fields)
    assert (after.done, after.skipped, after.requests) == (5 * samples, 3 * samples, 0)


def test_a_changed_skip_asks_and_leaves_out_rows_by_itself(tmp_path: Path) -> None:
    """The record of a row that is now skipped stays, as that of a row that left the input, until `--prune`."""
    first, _ = asked(tmp_path, skip=EMPTY)
    assert (first.ok, first.skipped) == (5, 3)
    other = "{{ text in ('row 1', 'row 2') }}"
    plan = planned(tmp_path, skip=other)
    assert (plan.new, plan.done, plan.skipped, plan.kept) == (3, 3, 2, 2)
    second, sent = asked(tmp_path, skip=other)
    assert (sent, second.ok, second.skipped, second.kept) == (3, 6, 2, 2)
    assert query(tmp_path, "select count(*) from data") == [(8,)]
    pruned, sent = asked(tmp_path, skip=other, options=RunOptions(prune=True))
    assert (sent, pruned.kept, query(tmp_path, "select count(*) from data")) == (0, 0, [(6,)])
    # Without `skip`, what was asked before costs nothing.
    last, sent = asked(tmp_path)
    assert (sent, last.ok, last.revived, last.skipped) == (0, 8, 2, 0)


def test_skip_changes_no_identity(tmp_path: Path) -> None:
    asked(tmp_path, skip=EMPTY)
    told = "select custom_id, prompt_id from data where text != '' order by key"
    before = query(tmp_path, told)
    asked(tmp_path)
    assert query(tmp_path, told) == before
    assert query(tmp_path, "select count(distinct prompt_id) from data") == [(1,)]


def test_keys_of_skipped_rows_do_not_count(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"id": "a", "text": ""},
        {"id": "a", "text": "x 1"},
        {"id": None, "text": ""},
        {"id": "b", "text": "x 2"},
    ]
    summary, sent = asked(tmp_path, rows, skip=EMPTY)
    assert (summary.exit_code, summary.ok, summary.skipped, sent) == (0, 2, 2, 2)


def test_a_skip_that_cannot_tell_fails_its_row_alone(tmp_path: Path) -> None:
    rows = [{"id": n, "text": f"row {n}", "spam": spam} for n, spam in enumerate(["no", "maybe", "YES ", "", "0"])]
    summary, sent = asked(tmp_path, rows, skip="{{ spam }}")
    assert (summary.exit_code, summary.ok, summary.skipped, summary.failed, sent) == (1, 3, 1, 1, 3)
    [(kind, message)] = query(tmp_path, "select error_kind, error_message from data where status = 'failed'")
    assert kind == ErrorKind.TEMPLATE.value
    assert message.startswith("skip: 'maybe' is neither true nor false: write a condition")


def test_a_run_whose_rows_are_all_skipped_ends_well(tmp_path: Path) -> None:
    summary, sent = asked(tmp_path, [{"id": n, "text": ""} for n in range(300)], skip=EMPTY)
    assert (summary.exit_code, summary.skipped, sent) == (0, 300, 0)
    assert "300 rows skipped, nothing to send" in as_text(render_summary(summary))


def test_every_page_tells_how_many_rows_were_skipped(tmp_path: Path) -> None:
    summary, _ = asked(tmp_path, skip=EMPTY)
    assert "all 5 rows have a completion, 3 skipped" in as_text(render_summary(summary))
    status = status_of(tmp_path / "out")
    assert (status.skipped, status.open) == (3, 0)
    exported = export(tmp_path / "out", tmp_path / "rows.csv")
    assert (exported.rows, exported.missing) == (5, 0)
    history = history_of(tmp_path / "out")
    assert [run.skipped for run in history.runs] == [3]
    for page in (render_status(status), render_history(history), render_plan(planned(tmp_path, skip=EMPTY))):
        assert "skipped" in as_text(page)


@pytest.mark.parametrize(
    ("skip", "message"),
    [
        ("true", "names no column of the input"),
        ("{{ 1 == 1 }}", "names no column of the input"),
        ("{{ not textt }}", "there is no column 'textt' (did you mean 'text'?)"),
        ("{{ not text", "line 1 of the template"),
        ("{{ text }}", "neither true nor false"),
    ],
)
def test_a_skip_that_cannot_work_is_refused_with_its_place(tmp_path: Path, skip: str, message: str) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"id": 1, "text": "hello"}])
    with pytest.raises(JobError) as caught:
        plan_job(job_of(tmp_path, skip))
    assert caught.value.field == "skip"
    assert message in str(caught.value)


def job_of(folder: Path, skip: str) -> Job:
    return make_job(folder, None, skip=skip)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *[(value, True) for value in (True, "true", " True\n", "yes", "1", 1)],
        *[(value, False) for value in (False, None, "", "  ", "false", "No", 0, "0")],
        *[(value, None) for value in ("x", 2, 0.5, "null", "none")],
        ([], None),
    ],
)
def test_what_is_true_of_a_rendered_text(value: object, expected: bool | None) -> None:
    condition = Condition("{{ flag }}", "skip")
    if expected is None:
        with pytest.raises(RowTemplateError, match="neither true nor false"):
            condition.holds({"flag": value})
    else:
        assert condition.holds({"flag": value}) is expected
