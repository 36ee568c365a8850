"""`show` as its users call it: a table, one row or key, an expression, and the values of a column."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from batchchat.cli import cli
from batchchat.errors import UsageError
from tests.integration.jobs import make_job, run, texts, write_rows

SCHEMA = {
    "type": "object",
    "properties": {"label": {"enum": ["yes", "no"]}, "sure": {"type": "boolean"}},
    "required": ["label", "sure"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve rows with a typed answer, and one whose template fails."""
    folder = tmp_path_factory.mktemp("choosing")
    rows: list[dict[str, Any]] = [*texts(12), {"id": "x", "text": None}]
    write_rows(folder / "rows.jsonl", rows)
    messages = [{"role": "user", "content": "Labels: yes, no\n{{ text.strip() }}"}]
    assert run(make_job(folder, None, messages=messages, response={"schema": SCHEMA})).failed == 1
    return folder / "out"


def show(out: Path, *words: str) -> Result:
    return CliRunner().invoke(cli, ["show", str(out), *words])


def rows_of(result: Result) -> list[int]:
    assert result.exception is None or result.exit_code == 0, result.exception
    decoder, text, found = json.JSONDecoder(), result.stdout, []
    while text.strip():
        view, end = decoder.raw_decode(text.lstrip())
        text = text.lstrip()[end:]
        found.append(view["record"]["row_index"])
    return found


def test_a_table_has_one_line_a_record(out: Path) -> None:
    lines = show(out, "--table").stdout.splitlines()
    assert lines[0].split() == ["row", "key", "prompt", "answer", "status"]
    assert len(lines) == 2 + 13
    (failed,) = [line for line in lines if line.endswith("template")]
    assert failed.split()[:2] == ["12", "x"]
    assert len(show(out, "--table", "-n", "3").stdout.splitlines()) == 2 + 3


@pytest.mark.parametrize(
    ("words", "rows"),
    [
        (("--key", "7"), [7]),
        (("--row", "3"), [3]),
        (("--failed",), [12]),
        (("--where", "row_index < 2"), [0, 1]),
        (("--where", "row_index < 2 and row_index > 0"), [1]),
        (("--where", "'number 1' in text", "-n", "20"), [1, 10, 11]),
        (("--where", "row.text == 'row number 4'"), [4]),
        # A record without `parsed` is passed over.
        (("--where", "parsed.label in ('yes', 'no') and row_index == 5"), [5]),
        (("--where", "status == 'nothing'"), []),
    ],
)
def test_records_are_chosen(out: Path, words: tuple[str, ...], rows: list[int]) -> None:
    assert sorted(rows_of(show(out, *words, "--json"))) == rows


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--row", "500"), "no record of row 500 in "),
        (("--key", "nobody"), "no record with the key 'nobody' in "),
        (("--where", "stauts == 'ok'"), "there is no column 'stauts' (did you mean 'status'?)"),
        (("--where", "status =="), "--where: "),
        (("--where", "text.nothing.more == 1"), "no record can be compared"),
        (("--count", "parsed.lable"), "there is no field 'lable' in 'parsed.lable' (did you mean 'label'?)"),
        (("--count", "text.label"), "there is no field 'label' in 'text.label'"),
        (("--count", "stauts"), "there is no column 'stauts' (did you mean 'status'?)"),
    ],
)
def test_what_is_not_there_is_said_and_is_an_error(out: Path, words: tuple[str, ...], message: str) -> None:
    error = show(out, *words).exception
    assert isinstance(error, UsageError)
    assert error.exit_code == 2
    assert message in error.message


def test_values_are_counted_with_those_of_fields_and_null(out: Path) -> None:
    told = json.loads(show(out, "--count", "parsed.label", "--json").stdout)
    counts = {value["value"]: value["records"] for value in told["values"]}
    assert counts.pop(None) == 1
    assert set(counts) <= {"yes", "no"}
    assert sum(counts.values()) == 12
    told = json.loads(show(out, "--count", "status", "--where", "row_index > 9", "--json").stdout)
    assert told["values"] == [{"value": "ok", "records": 2}, {"value": "failed", "records": 1}]
    shown = show(out, "--count", "status").stdout.splitlines()
    assert [line.split() for line in shown if "ok" in line] == [["ok", "12", "92.3%"]]


def test_an_expression_runs_in_the_sandbox_of_templates(out: Path) -> None:
    error = show(out, "--where", "text.__class__.__mro__[1].__subclasses__()").exception
    assert isinstance(error, UsageError)
