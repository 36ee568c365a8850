"""Addresses of outputs: a URL stays text on every way into a job, and what cannot be an output is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from batchchat.addresses import absolute, address_of, is_url, same_address
from batchchat.cli import cli
from batchchat.errors import BatchchatError, JobError
from batchchat.job import load_job
from batchchat.job.param_checks import check_params

_JOB = """\
name: demo
input: rows.jsonl
output: {output}
provider: demo
model: demo
messages: [{{role: user, content: "{{{{ text }}}}"}}]
{more}
"""


def _write(folder: Path, output: str, more: str = "") -> Path:
    path = folder / "job.yaml"
    path.write_text(_JOB.format(output=output, more=more), encoding="utf-8")
    return path


def test_a_url_stays_text_and_a_folder_becomes_a_path(tmp_path: Path) -> None:
    assert address_of("s3://bucket/run") == "s3://bucket/run"
    assert address_of("out/run") == Path("out/run")
    assert absolute("s3://bucket/run/") == "s3://bucket/run"
    assert absolute("run") == Path.cwd() / "run"
    assert is_url("az://c/x")
    assert not is_url("out://".replace("://", ":/"))
    assert not is_url(Path("s3://bucket"))
    assert same_address("s3://b/x/", "s3://b/x")
    assert same_address(tmp_path / "a" / ".." / "b", tmp_path / "b")
    assert not same_address("s3://b/x", tmp_path)


def test_a_url_reaches_a_job_by_the_file_by_output_and_by_set(tmp_path: Path) -> None:
    url = "s3://bucket/runs/one"
    for output in (url, f"{{path: '{url}', part_rows: 10}}"):
        assert load_job(_write(tmp_path, output)).output.path == url
    path = _write(tmp_path, "out")
    assert load_job(path).output.path == str(tmp_path / "out")
    assert load_job(path, output=url).output.path == url
    assert load_job(path, overrides=[f"output={url}"]).output.path == url
    assert load_job(path, overrides=[f"output.path={url}"]).output.path == url


@pytest.mark.parametrize(
    ("output", "more", "line", "words"),
    [
        ("https://host/run", "", 3, "s3://"),
        ("s3://", "", 3, "bucket"),
        ("s3://b/run", "engine: batch", 7, "name a folder"),
        ("s3://b/run", "cache: s3://b/cache", 7, "a folder of this machine"),
        ("s3://b/answers.parquet", "", 3, "looks like a file"),
    ],
)
def test_what_cannot_be_on_object_storage_is_refused_with_its_line(
    tmp_path: Path, output: str, more: str, line: int, words: str
) -> None:
    path = _write(tmp_path, output, more)
    with pytest.raises(JobError) as caught:
        load_job(path)
    assert words in str(caught.value)
    assert f"job.yaml:{line}" in str(caught.value)


def test_an_evaluation_is_refused_on_object_storage(tmp_path: Path) -> None:
    from batchchat.evaluation.suite.reading import load_suite

    _write(tmp_path, "out")
    suite = tmp_path / "suite.yaml"
    suite.write_text(
        "name: s\njob: job.yaml\noutput: s3://b/eval\nvariants: {matrix: {model: [a, b]}}\n"
        "scorers: [{name: a, kind: exact, expected: label}]\n",
        encoding="utf-8",
    )
    with pytest.raises(BatchchatError) as caught:
        load_suite(suite)
    assert "a folder of this machine" in str(caught.value)


def test_the_sample_job_with_a_bucket_is_a_job() -> None:
    path = Path(__file__).parents[2] / "jobs" / "buckets" / "label-tickets.yaml"
    job = load_job(path)
    assert job.output.path == "s3://my-bucket/label-tickets"
    assert Path(job.input.path).is_file()
    check_params(job, job.resolved_provider())


@pytest.mark.parametrize(
    "arguments",
    [
        ["report", "out", "-o", "s3://bucket/report.html"],
        ["export", "out", "-o", "gs://bucket/rows.parquet"],
        ["review", "out", "-o", "s3://bucket/form.html"],
        ["review", "out", "--take", "https://host/answers.jsonl"],
        ["run", "s3://bucket/job.yaml"],
        ["eval", "suite.yaml", "--junit", "s3://bucket/x.xml"],
    ],
    ids=" ".join,
)
def test_a_url_where_a_file_is_meant_is_refused_and_makes_no_folder(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told = CliRunner().invoke(cli, arguments)
    assert told.exit_code == 2
    assert "is a URL. Name a file of this machine" in told.output
    assert not list(tmp_path.iterdir())
