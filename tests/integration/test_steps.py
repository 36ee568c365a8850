"""The output of one job as the input of the next, and several jobs in one command, as their users see it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from batchchat.cli import cli
from batchchat.cli.process import guarded
from batchchat.errors import BatchchatError, OutputLocked, UsageError
from batchchat.job import load_job
from batchchat.planning import plan_job
from batchchat.store import Completions
from tests.integration.jobs import write_rows
from tests.store_cases import commit, open_store, settled

LABELS = {"type": "object", "properties": {"label": {"type": "string", "enum": ["a", "b"]}}, "required": ["label"]}
ROWS = [{"id": f"r{number}", "text": f"row {number}", "model": "mine"} for number in range(6)]


def write_job(folder: Path, name: str, source: str, text: str, **fields: Any) -> None:
    job = {
        "name": name,
        "input": {"path": source, "key": "id"},
        "output": f"out/{name}",
        "provider": "demo",
        "model": "llama-3.1-8b-instruct",
        "messages": [{"role": "user", "content": text}],
        **fields,
    }
    kept = {key: value for key, value in job.items() if value is not None}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(kept), encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "rows.jsonl", ROWS)
    write_job(tmp_path, "first", "rows.jsonl", "Labels: a, b\n{{ text }}", response={"schema": LABELS})
    write_job(tmp_path, "second", "out/first", "Labels: good, bad\n{{ text }} is {{ parsed.label }}: {{ completion }}")
    return tmp_path


def batchchat(*arguments: str) -> Result:
    return CliRunner(catch_exceptions=True).invoke(cli, arguments)


def run(*arguments: str) -> list[dict[str, Any]]:
    done = batchchat("run", *arguments, "--json", "-q")
    found = json.loads(done.stdout)
    return found if isinstance(found, list) else [found]


def told(summaries: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [(one["job"], one["exit_code"], one["ok"], one["sent"]) for one in summaries]


def test_two_jobs_run_one_after_the_other_and_a_changed_row_asks_one_row_of_each(folder: Path) -> None:
    assert told(run("first.yaml", "second.yaml")) == [("first", 0, 6, 6), ("second", 0, 6, 6)]
    (folder / "rows.jsonl").write_text((folder / "rows.jsonl").read_text().replace("row 4", "row four"))
    summaries = run("first.yaml", "second.yaml")
    assert told(summaries) == [("first", 0, 6, 1), ("second", 0, 6, 1)]
    assert [one["kept"] for one in summaries] == [0, 0]
    assert told(run("first.yaml", "second.yaml")) == [("first", 0, 6, 0), ("second", 0, 6, 0)]
    lines = batchchat("export", "out/second", "-o", "-", "--format", "jsonl").stdout.splitlines()
    records = [json.loads(line) for line in lines]
    assert sorted(record["key"] for record in records) == [row["id"] for row in ROWS]
    for record in records:
        assert record["input_parsed"] == json.loads(record["input_completion"])
        # The model of the answer is beside the column that the input called so.
        assert (record["input_model"], record["input_key"]) == ("mine", record["id"])


def test_failed_and_open_rows_of_an_output_are_no_rows_and_are_told(folder: Path) -> None:
    rows: list[dict[str, Any]] = [*ROWS[:3], {"id": "r9", "text": None}]
    write_rows(folder / "rows.jsonl", rows)
    write_job(folder, "first", "rows.jsonl", "Labels: a, b\n{{ text.upper() }}", response={"schema": LABELS})
    first, second = run("first.yaml", "second.yaml")
    assert (first["exit_code"], second["exit_code"], second["rows"]) == (1, 0, 3)
    assert any("1 failed row of out/first have no completion" in text.replace(str(folder) + "/", "")
               for text in second["warnings"])  # fmt: skip


def test_the_first_job_that_stops_is_the_last(folder: Path) -> None:
    summaries = run("first.yaml", "second.yaml", "--max-requests", "2")
    assert [one["exit_code"] for one in summaries] == [4]
    assert not (folder / "out/second").exists()


def test_a_slip_in_the_last_job_is_told_before_the_first_is_paid_for(folder: Path) -> None:
    write_job(folder, "second", "out/first", "{{ completion", limits={"speed": 3})
    done = batchchat("run", "first.yaml", "second.yaml")
    assert isinstance(done.exception, BatchchatError)
    assert "limits.speed: is not a field" in done.exception.message
    assert not (folder / "out").exists()


@pytest.mark.parametrize("option", ["--input=x", "--output=x", "--html=x.html"])
def test_an_option_for_one_job_is_refused_beside_several(folder: Path, option: str) -> None:
    done = batchchat("run", "first.yaml", "second.yaml", option)
    assert isinstance(done.exception, UsageError)
    assert f"{option.partition('=')[0]} is for one job, and 2 are to run" in done.exception.message
    assert not (folder / "out").exists()


def test_what_cannot_be_a_step_is_refused_with_a_remedy(folder: Path) -> None:
    run("first.yaml")
    open_store(folder / "out/empty", "run").close()
    with open_store(folder / "out/going", "run") as going:
        commit(going, settled(0, 1))
        cases: list[tuple[dict[str, Any], str, type[BatchchatError]]] = [
            ({"input": {"path": "out/empty", "key": "id"}}, "holds no", UsageError),
            ({"input": {"path": "out/going", "key": "id"}}, "a run into this output is going on", OutputLocked),
            ({"output": "out/first"}, "is the job's own output", UsageError),
            ({"input": {"path": "out/first", "key": "id", "encoding": "cp1252"}}, "is about text files", UsageError),
            ({"input": {"path": "out/first", "key": "idd"}}, "no column 'idd'", UsageError),
        ]
        for fields, message, kind in cases:
            write_job(folder, "second", "out/first", "{{ completion }}", **fields)
            with pytest.raises(kind) as caught:
                plan_job(load_job(folder / "second.yaml"))
            assert message in caught.value.message
            assert caught.value.remedy


def test_with_a_format_the_files_are_read_as_they_are(folder: Path) -> None:
    run("first.yaml")
    write_job(folder, "second", "out/first", "{{ custom_id }}", input={"path": "out/first", "format": "parquet"})
    assert plan_job(load_job(folder / "second.yaml")).new == 6


def test_samples_of_a_row_are_rows_and_can_be_read_twice(folder: Path) -> None:
    write_job(folder, "first", "rows.jsonl", "Labels: a, b\n{{ text }}", samples=2)
    run("first.yaml")
    rows = Completions(folder / "out/first")
    assert len(rows) == 12
    import pyarrow as pa

    one, two = (pa.RecordBatchReader.from_stream(rows).read_all() for _ in range(2))
    assert one.equals(two)
    assert sorted(zip(one["key"].to_pylist(), one["sample_index"].to_pylist(), strict=True)) == [
        (row["id"], sample) for row in ROWS for sample in range(2)
    ]
    assert "parsed" not in one.column_names


def test_no_job_is_a_bad_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["batchchat", "run"])
    assert guarded(cli) == 2
    assert "JOB" in capsys.readouterr().err
