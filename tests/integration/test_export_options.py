"""`export` to standard output, with chosen columns, and for Excel."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from pathlib import Path

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

import batchchat
from batchchat.cli import cli
from batchchat.errors import UsageError
from batchchat.export import _cell
from batchchat.export.sheet import open_sheet
from tests.integration.jobs import make_job, run, texts, write_rows


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    write_rows(folder / "rows.jsonl", texts(3))
    assert run(make_job(folder, None)).ok == 3
    return folder / "out"


def export(out: Path, *words: str) -> Result:
    return CliRunner().invoke(cli, ["export", str(out), *words])


def test_a_dash_is_standard_output_and_columns_come_in_the_order_given(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = export(out, "-o", "-", "--format", "csv", "--columns", "text, row_index,status", "--bom")
    assert done.exit_code == 0
    lines = done.stdout_bytes.split(b"\r\n")
    assert lines[:2] == [b"\xef\xbb\xbftext,row_index,status", b"row number 0,0,ok"]
    assert len(lines) == 3 + 2
    assert "3 rows written to standard output" in done.stderr
    assert list(tmp_path.iterdir()) == []
    told = export(out, "-o", "-", "--format", "jsonl", "--columns", "key").stdout
    assert told == '{"key":"0"}\n{"key":"1"}\n{"key":"2"}\n'


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("-o", "-"), "standard output has no extension"),
        (("-o", "-", "--format", "openai-batch"), "standard output has no extension"),
        (("-o", "a.csv", "--columns", "keyy"), "there is no column 'keyy' (did you mean 'key'?)"),
        (("-o", "a.csv", "--columns", "key,key"), "names no column, or one twice"),
        (("-o", "a.csv", "--columns", ","), "names no column, or one twice"),
        (("-o", "a.jsonl", "--bom"), "--bom is for CSV files alone"),
        (("-o", "a.jsonl", "--format", "openai-batch", "--columns", "key"), "have fixed fields"),
    ],
)
def test_what_cannot_be_written_is_refused_and_leaves_no_file(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    error = export(out, *words).exception
    assert isinstance(error, UsageError)
    assert message in error.message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("path", "target", "refused"),
    [
        ("data", "data/out.jsonl", True),
        ("data", "data/deep/out.csv", True),
        ("data", "data/out.html.parquet", True),
        ("data", "data/_out.jsonl", False),
        ("data", "out.jsonl", False),
        ("data/*.jsonl", "data/out.jsonl", True),
        ("data/**/*.jsonl", "data/out.jsonl", True),
        ("data/**/*.jsonl", "data/deep/out.jsonl", True),
        ("data/*.jsonl", "data/out.csv", False),
        ("data/rows.jsonl", "data/rows.jsonl", True),
        ("data/rows.jsonl", "data/out.jsonl", False),
    ],
)
def test_an_export_is_never_a_file_of_the_input(tmp_path: Path, path: str, target: str, refused: bool) -> None:
    (tmp_path / "data" / "deep").mkdir(parents=True)
    write_rows(tmp_path / "data" / "rows.jsonl", texts(3))
    before = (tmp_path / "data" / "rows.jsonl").read_bytes()
    assert run(make_job(tmp_path, None, input={"path": str(tmp_path / path)})).ok == 3
    done = export(tmp_path / "out", "-o", str(tmp_path / target), "--force")
    if refused:
        assert isinstance(done.exception, UsageError)
        assert "the next run would read it as rows" in done.exception.message
        assert (tmp_path / target).exists() is (target == path)
    else:
        assert done.exit_code == 0
        assert len((tmp_path / target).read_bytes().splitlines()) >= 3
    assert (tmp_path / "data" / "rows.jsonl").read_bytes() == before


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output whose answers are objects, with one text that Excel would take for a formula."""
    folder = tmp_path_factory.mktemp("typed")
    answer = {"label": "=1+1", "sure": {"share": 0.5, "why": None}, "tags": ["a", "b"], "sure.share": 7}
    schema = {
        "type": "object",
        "additionalProperties": False,
        "required": list(answer),
        "properties": {
            "label": {"type": "string"},
            "sure": {
                "type": "object",
                "additionalProperties": False,
                "required": ["share", "why"],
                "properties": {"share": {"type": "number"}, "why": {"type": ["string", "null"]}},
            },
            "tags": {"type": "array", "items": {"type": "string"}},
            "sure.share": {"type": "integer"},
        },
    }
    choice = {"message": {"content": json.dumps(answer)}, "finish_reason": "stop"}
    provider = httpx.MockTransport(lambda _request: httpx.Response(200, json={"choices": [choice], "model": "m"}))
    rows = [{"id": "a", "text": "x" * 40_000, "when": "2026-01-02"}, {"id": "b", "text": "ü", "when": "2026-01-03"}]
    write_rows(folder / "rows.jsonl", rows)
    job = make_job(folder, None, response={"schema": schema})
    assert batchchat.run(job, transport=provider, environ={}).ok == 2
    return folder / "out"


def table(out: Path, path: Path, *words: str) -> pa.Table:
    done = export(out, "-o", str(path), "--force", *words)
    assert done.exit_code == 0, done.output
    return pq.read_table(path)


def test_fields_of_typed_answers_are_columns_of_their_own(typed: Path, tmp_path: Path) -> None:
    path = tmp_path / "flat.parquet"
    chosen = table(typed, path, "--columns", "id,parsed.label,parsed.sure.why,parsed.sure.share")
    assert chosen.column_names == ["id", "parsed.label", "parsed.sure.why", "parsed.sure.share"]
    assert chosen.to_pylist()[0]["parsed.label"] == "=1+1"
    flat = table(typed, path, "--flatten")
    names = [name for name in flat.column_names if name.startswith("parsed")]
    # Two ways would lead to `parsed.sure.share`: neither field is lost.
    assert names == ["parsed.label", "parsed.sure", "parsed.tags", "parsed.sure.share"]
    assert flat.to_pylist()[0]["parsed.sure"] == {"share": 0.5, "why": None}
    whole = table(typed, path)
    assert "parsed" in whole.column_names


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("parsed.labl", "there is no column 'labl' (did you mean 'label'?)"),
        ("parsed.sure.nope", "parsed.sure"),
        ("text.length", "text is no object (string), so it has no field 'length'"),
        ("nope.label", "there is no column 'nope.label'"),
    ],
)
def test_a_field_that_is_not_there_is_told(typed: Path, tmp_path: Path, name: str, message: str) -> None:
    done = export(typed, "-o", str(tmp_path / "x.csv"), "--columns", name)
    assert isinstance(done.exception, UsageError)
    assert message in str(done.exception)


def test_a_workbook_holds_texts_numbers_and_times_and_no_formula(typed: Path, tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    path = tmp_path / "sheet.xlsx"
    columns = "id,text,parsed.label,parsed.sure.share,parsed.tags,row_index,finished_at,status"
    assert export(typed, "-o", str(path), "--columns", columns).exit_code == 0
    sheet = openpyxl.load_workbook(path)["records"]
    head, first, second = sheet.iter_rows()
    assert [cell.value for cell in head] == columns.split(",")
    assert [cell.value for cell in second][:2] == ["b", "ü"]
    assert (first[2].value, first[2].data_type) == ("=1+1", "s")
    assert [first[place].value for place in (3, 4, 5)] == [0.5, '["a","b"]', 0]
    assert isinstance(first[6].value, datetime)
    assert first[1].value.endswith("(cut: a cell holds 32,767 letters)")
    assert len(first[1].value) == 32_767


def test_what_a_cell_does_not_hold_is_written_as_text(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    values = [
        2**60,
        float("nan"),
        float("inf"),
        datetime(1, 1, 1, tzinfo=UTC),
        date(1800, 5, 4),
        True,
        b"\x00",
        "a\x01b",
        -0.5,
    ]
    batch = pa.RecordBatch.from_arrays([pa.array([value]) for value in values], names=[f"c{n}" for n in range(9)])
    path = tmp_path / "odd.xlsx"
    with open_sheet(path, batch.schema, _cell) as write:
        write(batch)
    row = [cell.value for cell in openpyxl.load_workbook(path)["records"][2]]
    assert row[:3] == [str(2**60), "nan", "inf"]
    assert row[3].startswith("0001-01-01")
    assert row[4:7] == ["1800-05-04", True, "AA=="]
    assert row[8] == -0.5
