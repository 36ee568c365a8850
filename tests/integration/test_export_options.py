"""`export` to standard output, with chosen columns, and for Excel."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from batchchat.cli import cli
from batchchat.errors import UsageError
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
