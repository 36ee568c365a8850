"""How the words of a job file are read: texts stay texts, typed fields take what they always took."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from batchchat.errors import JobError, UsageError
from batchchat.job import Job, load_job
from batchchat.job.syntax import parse_yaml

HEAD = """name: words
input: rows.jsonl
output: out
provider: demo
model: llama-3.1-8b-instruct
messages: [{role: user, content: "{{ text }}"}]
"""


def job(tmp_path: Path, more: str, *overrides: str) -> Job:
    file = tmp_path / "job.yaml"
    file.write_text(HEAD + more, encoding="utf-8")
    return load_job(file, overrides=overrides)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        *[(word, word) for word in ("yes", "No", "on", "OFF", "y", "n", "12:30", "1:02:03", "010", "0o17", "0x1F")],
        *[(word, word) for word in ("0b11", "1_000", "1_0.5", "1e3", "2024-01-01", "2024-01-01T10:00:00Z", "=", "<<")],
        *[("true", True), ("False", False), ("null", None), ("~", None), ("0", 0), ("-7", -7), ("+7", 7)],
        *[("1.5", 1.5), (".5", 0.5), ("-0.25", -0.25), ("1.5e+3", 1500.0), ("'1'", "1"), ('"true"', "true")],
    ],
)
def test_a_word_is_what_it_looks_like_to_a_reader(written: str, read: Any) -> None:
    found = parse_yaml(f"a: [{written}]", Path("job.yaml")).data["a"][0]
    assert (type(found), found) == (type(read), read)


@pytest.mark.parametrize(
    "where", ["response: {schema: {type: string, enum: %s}}", "params: {extra_body: {guided_choice: %s}}"]
)
def test_choices_stay_the_texts_that_were_written(tmp_path: Path, where: str) -> None:
    words = ["yes", "no", "on", "off", "12:30", "010"]
    found = job(tmp_path, where % f"[{', '.join(words)}]")
    schema = found.response.spec
    choices = schema["enum"] if isinstance(schema, dict) else found.params.extra_body["guided_choice"]
    assert choices == words


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("dedupe: yes", "dedupe", True),
        ("dedupe: off", "dedupe", False),
        ("params: {stream: on}", "params.stream", True),
        ("params: {logprobs: No}", "params.logprobs", False),
        ("params: {max_tokens: 1_000}", "params.max_tokens", 1000),
        ("params: {max_tokens: 0x10}", "params.max_tokens", 16),
        ("params: {temperature: .5}", "params.temperature", 0.5),
        ("limits: {tokens_per_minute: 1e6}", "limits.tokens_per_minute", 1_000_000),
        ("retry: {row_deadline: 1:30}", "retry.row_deadline", 90.0),
        ("output: {path: out, part_bytes: 64_000_000}", "output.part_bytes", 64_000_000),
        ("params: {user: 010}", "params.user", "010"),
        ("params: {stop: [no, 12:30]}", "params.stop", ["no", "12:30"]),
    ],
)
def test_a_typed_field_reads_the_words_of_older_yaml(tmp_path: Path, line: str, field: str, value: object) -> None:
    text = HEAD.replace("output: out\n", "") if line.startswith("output") else HEAD
    file = tmp_path / "job.yaml"
    file.write_text(text + line, encoding="utf-8")
    found: Any = load_job(file)
    for name in field.split("."):
        found = getattr(found, name)
    assert (type(found), found) == (type(value), value)


@pytest.mark.parametrize("word", ["yes", "Off", "010", "1_000", "12:30", "0x1F"])
def test_extra_body_refuses_a_word_that_can_be_read_in_two_ways(tmp_path: Path, word: str) -> None:
    with pytest.raises(JobError, match="can be read in two ways") as told:
        job(tmp_path, f"params:\n  extra_body:\n    deep:\n      field: {word}\n")
    text = str(told.value) + str(told.value.remedy)
    for part in ("job.yaml:10", "params.extra_body.deep.field", f'"{word}" in quotes'):
        assert part in text
    assert job(tmp_path, f"params: {{extra_body: {{field: '{word}'}}}}").params.extra_body == {"field": word}
    with pytest.raises(UsageError, match="two ways"):
        job(tmp_path, "", f"params.extra_body.field={word}")


def test_a_number_with_a_leading_zero_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="without a leading zero"):
        job(tmp_path, "params: {max_tokens: 010}")
