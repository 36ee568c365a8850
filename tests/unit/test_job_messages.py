"""What a person reads who made a common mistake in a job."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

from batchchat.errors import JobError, UsageError
from batchchat.job import Job, load_job
from batchchat.planning import plan_job
from batchchat.sources.parquet import python_rows

HEAD = """name: told
input: rows.jsonl
output: out
provider: demo
model: llama-3.1-8b-instruct
"""
MESSAGES = 'messages: [{role: user, content: "%s"}]\n'


def job(tmp_path: Path, text: str, *overrides: str) -> Job:
    rows = [{"text": "hello", "other": 1}, {"text": " ", "other": 2}, {"text": None, "other": 3}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "job.yaml").write_text(text, encoding="utf-8")
    return load_job(tmp_path / "job.yaml", overrides=overrides)


def told(error: UsageError) -> str:
    return f"{error} {error.remedy}"


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        ("Hello {text}", "Write {{ text }} for {text}"),
        ("Hello", "such as {{ text }}"),
        ("{{ 1 + 1 }}", "constant: true"),
    ],
)
def test_a_template_without_a_column_is_refused_unless_it_is_meant(tmp_path: Path, content: str, hint: str) -> None:
    found = job(tmp_path, HEAD + MESSAGES % content)
    with pytest.raises(JobError, match="uses a column") as refused:
        plan_job(found)
    assert hint in told(refused.value)
    assert "job.yaml:6" in told(refused.value)
    assert plan_job(job(tmp_path, HEAD + MESSAGES % content + "constant: true\n")).requests == 3


@pytest.mark.parametrize("content", ["{{ text }}", "{{ row['text'] }}", "{% for k in row %}{{ k }}{% endfor %}"])
def test_a_template_with_a_column_is_taken(tmp_path: Path, content: str) -> None:
    assert plan_job(job(tmp_path, HEAD + MESSAGES % content)).requests == 3


def test_a_plan_names_the_rows_that_would_fail_and_why(tmp_path: Path) -> None:
    rows = [{"s": {"name": "x"}}, {"s": None}, {"s": {"name": None}}, {"s": None}, {}]
    (tmp_path / "sparse.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    view = plan_job(job(tmp_path, HEAD.replace("rows.jsonl", "sparse.jsonl") + MESSAGES % "{{ s.name }}"))
    assert (view.requests, view.unreadable) == (2, 3)
    assert [(group.kind, group.count, group.row_index) for group in view.failures] == [
        ("template", 2, 1), ("template", 1, 4),
    ]  # fmt: skip
    assert "'name' is asked of is null" in view.failures[0].example
    assert "{% if value %}" in view.failures[0].example
    assert "default('')" in view.failures[1].example


def test_rows_without_text_and_comments_are_told(tmp_path: Path) -> None:
    told_of = plan_job(job(tmp_path, HEAD + MESSAGES % "{{ text }} {# {{ other }} #}")).warnings
    assert any("2 of the 3 rows have nothing in text" in warning for warning in told_of)
    assert any("13 characters are not sent" in warning or "is a comment" in warning for warning in told_of)
    assert not plan_job(job(tmp_path, HEAD + MESSAGES % "{{ text }} {{ other }} {# a note #}")).warnings


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (HEAD + "messages:\n  - role: user\n     content: hi\n", "Check the indentation"),
        (HEAD + MESSAGES % "{{ text }}" + "response: {schema: {type: objct}}\n", "did you mean 'object'?"),
        (HEAD.replace("output: out", "output: out/result.parquet") + MESSAGES % "{{ text }}", "batchchat export"),
    ],
)
def test_a_mistake_is_told_with_its_remedy(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UsageError) as refused:
        plan_job(job(tmp_path, text))
    assert words in told(refused.value)


def test_files_that_are_no_jobs_are_told(tmp_path: Path) -> None:
    job(tmp_path, HEAD + MESSAGES % "{{ text }}")
    with pytest.raises(UsageError) as refused:
        load_job(tmp_path / "rows.jsonl")
    assert "is data, not a job" in told(refused.value)
    for name, near in [("nope.yaml", False), ("jbo.yaml", True), ("jobs.yaml", True), ("job.yml", True)]:
        with pytest.raises(UsageError) as refused:
            load_job(tmp_path / name)
        assert ("Did you mean" in told(refused.value)) is near, name


def test_a_map_at_any_depth_is_a_mapping() -> None:
    kind = pa.map_(pa.string(), pa.map_(pa.string(), pa.int64()))
    pairs = [("a", [("b", 1)])]
    columns = {
        "top": pa.array([pairs, None], kind),
        "struct": pa.array([{"m": pairs}, {"m": None}], pa.struct([("m", kind)])),
        "list": pa.array([[pairs], None], pa.list_(kind)),
    }
    first, second = python_rows(pa.RecordBatch.from_pydict(columns))
    wanted = {"a": {"b": 1}}
    assert first == {"top": wanted, "struct": {"m": wanted}, "list": [wanted]}
    assert second == {"top": None, "struct": {"m": None}, "list": None}
