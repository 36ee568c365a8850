"""A job file is read as it is meant, or every wrong field is told: where, why, and what to write instead."""

from __future__ import annotations

import json
import math
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from batchchat.errors import JobError, UsageError
from batchchat.job import (
    FieldChange,
    Job,
    api_key,
    failed_kinds,
    load_job,
    load_keys,
    parse_duration,
    read_override,
    validate_job,
    write_duration,
)
from batchchat.job.origin import FieldOrigin, FieldPlace
from batchchat.job.param_checks import check_params
from batchchat.job.sections import OutputFields
from batchchat.job.syntax import MAX_BYTES
from batchchat.providers import PROFILES
from batchchat.records import TRANSIENT_KINDS, ErrorKind
from tests.thorough import one_in

CANARY = "sk-canary-0123456789"
FIELDS = {
    "name": "name: a-job",
    "input": "input: rows.jsonl",
    "output": "output: out/a-job",
    "provider": "provider: demo",
    "model": "model: m-1",
    "messages": "messages: [{role: user, content: '{{ text }}'}]",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the job, which is not the current folder."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    jobs = tmp_path / "jobs"
    jobs.mkdir()
    return jobs


def write(folder: Path, *more: str, **changed: str | None) -> Path:
    """A job file with one field a line, in the order of `FIELDS`, so that `more` begins in line 7."""
    lines = [line for line in {**FIELDS, **changed}.values() if line is not None]
    file = folder / "job.yaml"
    file.write_text("\n".join([*lines, *more]) + "\n", encoding="utf-8")
    return file


def load(folder: Path, *more: str, set: Sequence[str] = (), **changed: str | None) -> Job:
    return load_job(write(folder, *more, **changed), overrides=set)


def refused(folder: Path, *more: str, set: Sequence[str] = (), **changed: str | None) -> str:
    """What is told of a job that cannot be used, with the folder's name taken out."""
    with pytest.raises(UsageError) as raised:
        load(folder, *more, set=set, **changed)
    return str(raised.value).replace(f"{folder}{os.sep}", "")


# --- what is read


def test_a_small_job_is_read_with_its_defaults(folder: Path) -> None:
    job = load(folder)
    assert (job.name, job.provider, job.model) == ("a-job", "demo", "m-1")
    assert job.messages == [{"role": "user", "content": "{{ text }}"}]
    assert job.params.as_body() == {}
    assert (job.limits.requests_per_minute, job.limits.tokens_per_minute, job.limits.concurrency) == (None, None, None)
    assert (job.retry.attempts, job.retry.request_timeout, job.retry.row_deadline) == (6, 310.0, 900.0)
    assert (job.output.part_rows, job.output.part_bytes) == (50_000, 32_000_000)
    assert job.file == folder / "job.yaml"


def test_units_and_sections_are_read(folder: Path) -> None:
    job = load(
        folder,
        "params: {temperature: 0, max_tokens: 64, stop: [a, b], extra_body: {top_k: 20}}",
        "limits: {requests_per_minute: 300, tokens_per_minute: null, concurrency: 32}",
        "retry: {attempts: 3, request_timeout: 90, row_deadline: 15m, outage: 1h30m, failed: [timeout, refusal]}",
        "prices: {input: 0.15, output: 1e0, currency: EUR}",
        output="output: {path: out, part_rows: 1e3, part_bytes: 64MB, part_seconds: 30s}",
    )
    assert job.params.as_body() == {
        "temperature": 0.0,
        "max_tokens": 64,
        "stop": ["a", "b"],
        "extra_body": {"top_k": 20},
    }
    assert (job.retry.request_timeout, job.retry.row_deadline, job.retry.outage) == (90.0, 900.0, 5400.0)
    assert job.retry.reopens() == {ErrorKind.TIMEOUT, ErrorKind.REFUSAL}
    assert (job.output.part_rows, job.output.part_bytes, job.output.part_seconds) == (1_000, 64_000_000, 30.0)
    assert job.prices is not None
    assert job.prices.output == 1.0


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(folder: Path) -> None:
    file = write(folder)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    assert load_job(file).name == "a-job"


@pytest.mark.parametrize("section", ["params", "limits", "retry", "prices", "budget"])
def test_a_section_with_all_its_lines_commented_out_is_like_none(folder: Path, section: str) -> None:
    job = load(folder, f"{section}:", "  # concurrency: 32")
    assert job.params.as_body() == {}
    assert job.limits.concurrency is None


def test_dates_and_other_odd_values_stay_the_text_that_was_written(folder: Path) -> None:
    job = load(
        folder,
        "params: {extra_body: {day: 2024-10-21, 7: seven, on: 'x'}, logit_bias: {50256: -100}}",
        provider="provider: {base_url: 'https://h.example/v1', extra_query: {api-version: 2024-10-21}}",
    )
    assert job.params.extra_body == {"day": "2024-10-21", "7": "seven", "on": "x"}
    assert job.params.logit_bias == {"50256": -100.0}
    assert job.resolved_provider().extra_query == {"api-version": "2024-10-21"}


@pytest.mark.parametrize(
    "param",
    [
        "temperature",
        "max_tokens",
        "top_p",
        "seed",
        "logprobs",
        "response_format",
        "tools",
        "user",
        "stop",
        "tool_choice",
    ],
)
def test_a_param_may_be_a_template_over_the_row(folder: Path, param: str) -> None:
    assert load(folder, f"params: {{{param}: '{{{{ column }}}}'}}").params.as_body() == {param: "{{ column }}"}


def test_one_answer_a_row_may_be_said_and_a_param_may_be_unset(folder: Path) -> None:
    assert load(folder, "params: {n: 1, seed: null}").params.as_body() == {"n": 1}


def test_the_order_of_params_in_the_file_changes_nothing(folder: Path) -> None:
    one = load(folder, "params: {top_p: 1, max_tokens: 2, temperature: 0}").params.as_body()
    other = load(folder, "params: {temperature: 0, max_tokens: 2, top_p: 1}").params.as_body()
    assert list(one) == list(other)


def test_aliases_and_merges_work(folder: Path) -> None:
    job = load(folder, "params:", "  extra_body: {a: &base {x: 1}, b: {<<: *base, y: 2}}")
    assert job.params.extra_body == {"a": {"x": 1}, "b": {"x": 1, "y": 2}}


# --- what is refused, each with its line, the reason and what to write


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("params: {temprature: 1}", "params.temprature: is not a field (did you mean 'temperature'?)"),
        ("foo: 1", "foo: is not a field; known are name, input, output"),
        ("temperature: 1", "temperature: is not a field here: write params.temperature"),
        ("limits: {attempts: 3}", "limits.attempts: is not a field here: write retry.attempts"),
        ("limits: {rpm: 3}", "limits.rpm: is not a field: write requests_per_minute"),
        ("params: {stream: 1}", "params.stream: must be true or false, the same for all rows, not 1"),
        ("params: {stream: '{{ live }}'}", "params.stream: must be true or false, the same for all rows, not '{{ live"),
        ("params: hot", 'params: must be a mapping of fields, not "hot"'),
        ("params: [1]", "params: must be a mapping of fields, not a list"),
        ("params: {temperature: hot}", "params.temperature: must be a number, or a template that gives one, not 'hot'"),
        ("params: {temperature: 3}", "params.temperature: must be between 0 and 2, not 3"),
        ("params: {temperature: .nan}", "params.temperature: must be between 0 and 2, not nan"),
        ("params: {top_p: -0.1}", "params.top_p: must be between 0 and 1, not -0.1"),
        ("params: {presence_penalty: 2.5}", "params.presence_penalty: must be between -2 and 2, not 2.5"),
        ("params: {max_tokens: 0}", "params.max_tokens: must be at least 1, not 0"),
        ("params: {max_tokens: 1.5}", "params.max_tokens: must be a whole number, not 1.5"),
        ("params: {max_tokens: .inf}", "params.max_tokens: must be at least 1, not inf"),
        ("params: {max_tokens: true}", "params.max_tokens: must be a number, not true"),
        ("params: {max_tokens: [1]}", "params.max_tokens: must be a number, or a template that gives one, not a list"),
        ("params: {n: 2}", "params.n: must be 1, or left out: `samples: N` of the job asks each row N times"),
        ("params: {n: '{{ n }}'}", "params.n: must be 1, or left out"),
        ("params: {stop: [a, b, c, d, e]}", "params.stop: must not hold more than 4 texts, and holds 5"),
        ("params: {stop: 3}", "params.stop: must be a text or a list, not 3"),
        ("params: {stop: [a, 3]}", "params.stop.1: must be a text, not 3: put it in quotes"),
        (
            "params: {logprobs: 'maybe'}",
            "params.logprobs: must be true or false, or a template that gives one, not 'maybe'",
        ),
        ("params: {response_format: json}", "params.response_format: must be a mapping, or a template that gives one"),
        ("params: {tools: [hammer]}", 'params.tools.0: must be a mapping of names to values, not "hammer"'),
        ("params: {extra_body: {top_p: 1}}", "params.extra_body: top_p is a param of its own: set it in params"),
        ("params: {extra_body: {stream: true}}", "params.extra_body: stream is a param of its own"),
        ("params: {extra_body: {stream_options: {}}}", "params.extra_body: stream_options cannot be set here"),
        ("params: {extra_body: {n: 3}}", "`samples: N` of the job asks each row N times"),
        ("samples: 0", "samples: must be at least 1, not 0"),
        ("samples: 1001", "samples: must be at most 1000, not 1001"),
        ("samples: 1.5", "samples: must be a whole number, not 1.5"),
        ("limits: {concurrency: 0}", "limits.concurrency: must be at least 1, not 0"),
        ("limits: {concurrency: 99999}", "limits.concurrency: must be at most 20000, not 99999"),
        ("limits: {concurrency: many}", 'limits.concurrency: must be a whole number, not "many"'),
        ("limits: {concurrency: 1.5}", "limits.concurrency: must be a whole number, not 1.5"),
        ("limits: {concurrency: true}", "limits.concurrency: must be a number, not true"),
        (
            "retry: {request_timeout: 5x}",
            "retry.request_timeout: must be a duration such as 30s, 15m, 1h or 1h30m, not '5x'",
        ),
        ("retry: {request_timeout: -5}", "retry.request_timeout: a duration must not be negative"),
        ("retry: {request_timeout: 0}", "retry.request_timeout: must be more than 0, not 0"),
        (
            "retry: {request_timeout: }",
            "retry.request_timeout: must be a duration such as 30s, 15m, 1h or 1h30m, and it is",
        ),
        ("retry: {failed: sometimes}", "retry.failed: must be 'none', 'transient' or 'all', not \"sometimes\""),
        ("retry: {failed: [servr]}", "not \"servr\" (did you mean 'server'?)"),
        ("prices: {input: -1, output: 1, currency: EUR}", "prices.input: must be at least 0, not -1"),
        ("prices: {input: 1, currency: EUR}", "prices.output: is missing; for example `output: 0.35`"),
        ("prices: {input: 1, output: 1, currency: €}", "prices.currency: must be a currency's three capital letters"),
        ("budget: 5", "budget: must be a mapping of fields, not 5"),
        ("budget: {max_cost: -1}", "budget.max_cost: must be more than 0, not -1"),
        ("budget: {max_cost: 0}", "budget.max_cost: must be more than 0, not 0"),
        ("budget: {max_cost: 5 EUR}", 'budget.max_cost: must be a number, not "5 EUR"'),
        ("budget: {max_tokens: -1}", "budget.max_tokens: must be at least 1, not -1"),
        ("budget: {max_requests: 0}", "budget.max_requests: must be at least 1, not 0"),
        ("budget: {max_euros: 3}", "budget.max_euros: is not a field"),
        ("deadline: 0", "deadline: must be more than 0, not 0"),
        ("deadline: -5m", "deadline: must be a duration such as 30s, 15m, 1h or 1h30m, not '-5m'"),
        ("model: m-2", "model: stands twice (first in line 5): keep one of the two"),
        ("params: {seed: 1, seed: 1}", "params.seed: stands twice (first in line 7)"),
        ("null: x", "null: is not a field"),
        ("2024-01-01: x", "2024-01-01: is not a field"),
    ],
)
def test_a_wrong_field_is_told_with_its_line_and_remedy(folder: Path, line: str, told: str) -> None:
    message = refused(folder, line)
    assert message.startswith("job.yaml:7: ")
    assert told in message


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("name: a b", "job.yaml:1: name: must begin with a letter or digit"),
        ("name: 2024", "job.yaml:1: name: must be a text, not 2024: put it in quotes"),
        ("name: true", "job.yaml:1: name: must be a text, not true: put it in quotes"),
        ("input:", "job.yaml:2: input: must be a path, or a mapping with a path, and it is empty"),
        ("input: [a, b]", "job.yaml:2: input: must be a path, or a mapping with a path, not a list"),
        ("input: ''", "job.yaml:2: input: must not be empty"),
        ("input: {key: id}", "job.yaml:2: input.path: is missing; for example `path: rows.jsonl`"),
        ("input: {path: a, kye: id}", "job.yaml:2: input.kye: is not a field (did you mean 'key'?)"),
        (
            "input: {path: a, format: xml}",
            "job.yaml:2: input.format: must be 'jsonl', 'csv', 'tsv', 'parquet' or 'openai-batch', not \"xml\"",
        ),
        ("input: {path: a, types: {n: 3}}", "job.yaml:2: input.types.n: must be a text, not 3: put it in quotes"),
        (
            "output: {path: o, part_bytes: 64XB}",
            "job.yaml:3: output.part_bytes: must be a size such as 64MB, not '64XB'",
        ),
        ("output: {path: o, part_bytes: 1.5}", "job.yaml:3: output.part_bytes: must be a size such as 64MB, not 1.5"),
        ("output: {path: o, part_bytes: 1}", "job.yaml:3: output.part_bytes: must be at least 1000, not 1"),
        (
            "provider: scalway",
            "job.yaml:4: provider: no provider is called 'scalway' (did you mean 'scaleway'?); known",
        ),
        (
            "provider: {profile: scalway}",
            "job.yaml:4: provider: no provider is called 'scalway' (did you mean 'scaleway'?)",
        ),
        (
            "provider: 3",
            "job.yaml:4: provider: must be a provider's name, or a mapping with a base_url or a profile, not 3",
        ),
        ("provider: [a]", "job.yaml:4: provider: must be a provider's name, or a mapping with a base_url or a profile"),
        ("provider: {headers: {}}", "job.yaml:4: provider: needs a base_url, or the profile it changes"),
        ("provider: {base_url: 3}", "job.yaml:4: provider.base_url: must be a text"),
        ("provider: {base_url: h.example/v1}", "job.yaml:4: provider.base_url: must be an http:// or https:// address"),
        (
            "provider: {base_url: 'https://h.example/v1/chat/completions'}",
            "job.yaml:4: provider.base_url: must end before /chat/completions: https://h.example/v1",
        ),
        (
            "provider: {base_url: 'https://h.example/v1/chat/completions?api-version=1'}",
            "job.yaml:4: provider.base_url: must end before /chat/completions: https://h.example/v1",
        ),
        (
            "provider: {base_url: 'https://h.example', headers: {Host: x}}",
            "job.yaml:4: provider.headers: Host is set by batchchat itself: leave it out",
        ),
        (
            'provider: {base_url: "https://h.example", headers: {X: "a\\r\\nY: b"}}',
            "job.yaml:4: provider.headers: the value of X must be one line of plain ASCII characters",
        ),
        ("provider: {base_url: 'https://h.example', headers: {'X Y': b}}", "'X Y' is not a valid name of a header"),
        (
            "provider: {base_url: 'https://h.example', headers: {X: 3}}",
            "job.yaml:4: provider.headers.X: must be a text",
        ),
        ("model: ''", "job.yaml:5: model: must not be empty"),
        ("model: '  '", "job.yaml:5: model: must not be empty"),
        ("messages: []", "job.yaml:6: messages: needs at least one message, such as {role: user"),
        ("messages:", "job.yaml:6: messages: needs at least one message"),
        ("messages: 3", "job.yaml:6: messages: must be a list of messages, {from: column}, or the path"),
        ("messages: [hi]", 'job.yaml:6: messages.0: must be a message such as {role: user, content: …}, not "hi"'),
        ("messages: {form: column}", "job.yaml:6: messages: as a mapping must be {from: column}"),
        ("messages: {from: 3}", "job.yaml:6: messages: as a mapping must be {from: column}"),
        (
            "messages: 'Sort {{ text }}'",
            "job.yaml:6: messages: is the path of a file, or a list of messages, and this is",
        ),
        ("messages: prompt.yaml", "job.yaml:6: messages: the template file"),
    ],
)
def test_a_wrong_value_of_a_required_field_is_told(folder: Path, line: str, told: str) -> None:
    changed: dict[str, Any] = {line.partition(":")[0]: line}
    assert told in refused(folder, **changed)


@pytest.mark.parametrize("name", FIELDS)
def test_a_missing_field_is_told_with_an_example(folder: Path, name: str) -> None:
    without: dict[str, Any] = {name: None}
    message = refused(folder, **without)
    assert message.startswith(f"job.yaml: {name}: is missing; for example `{name}: ")


def test_all_problems_are_told_at_once_in_the_order_of_their_lines(folder: Path) -> None:
    message = refused(
        folder,
        "params: {n: 2, temprature: 1}",
        "limits: {concurrency: 0}",
        "model: m-2",
        "foo: 1",
        name="name: a b",
        provider="provider: scalway",
    )
    places = [line.split(": ")[:2] for line in message.splitlines()]
    assert places == [
        ["job.yaml:1", "name"],
        ["job.yaml:4", "provider"],
        ["job.yaml:7", "params.n"],
        ["job.yaml:7", "params.temprature"],
        ["job.yaml:8", "limits.concurrency"],
        ["job.yaml:9", "model"],
        ["job.yaml:10", "foo"],
    ]


def test_an_error_carries_its_place_for_programs(folder: Path) -> None:
    file = write(folder, "limits: {concurrency: 0}")
    with pytest.raises(JobError) as raised:
        load_job(file)
    assert (raised.value.file, raised.value.line, raised.value.field) == (file, 7, "limits.concurrency")
    assert raised.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "job.yaml: is empty"),
        ("# nothing\n", "job.yaml: is empty"),
        ("- a\n- b\n", "job.yaml: is not a mapping of fields"),
        ("just a text\n", "job.yaml: is not a mapping of fields"),
        ("name: a\nmodel: b: c\n", "job.yaml:2: is not valid YAML"),
        ("name: a\n\tmodel: b\n", "job.yaml:2: is not valid YAML"),
        ("name: a\ncontent: {{ text }}\n", "job.yaml:2: is not valid YAML: a name must be a text"),
        ("name: 'a\n", "job.yaml:2: is not valid YAML"),
        ("name: a\n---\nname: b\n", "job.yaml:2: is not valid YAML"),
        ("name: a\ninput: -\n", "job.yaml:2: is not valid YAML"),
        ("name: a\nmodel: *nowhere\n", "job.yaml:2: is not valid YAML"),
        ("name: a\nmodel: b\x00\n", "job.yaml:2: holds a control character"),
        (
            "name: !!python/name:os.system\n",
            "job.yaml:1: is not valid YAML: a value of the type 'python/name:os.system'",
        ),
        ("name: !!python/object/apply:os.abort []\n", "job.yaml:1: is not valid YAML: a value of the type"),
        ("name: !!timestamp 2024-01-01\n", "job.yaml:1: is not valid YAML: a value of the type 'timestamp'"),
        ("name: a\nseed: " + "9" * 5_000 + "\n", "job.yaml:2: is not valid YAML: this value cannot be read"),
        ("name: a\nx: " + "[" * 600 + "]" * 600 + "\n", "job.yaml: is nested too deeply"),
        ("name: a\nx: " + "[" * 150 + "]" * 150 + "\n", "job.yaml:2: is nested too deeply"),
        ("name: a\nx: &x [*x]\n", "job.yaml:2: is nested too deeply"),
        ("name: a\nx: &x {<<: *x}\n", "job.yaml:2: is nested too deeply"),
    ],
)
def test_a_file_that_is_no_job_is_told_with_its_line(folder: Path, text: str, told: str) -> None:
    file = folder / "job.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(JobError) as raised:
        load_job(file)
    assert told in str(raised.value)
    assert raised.value.exit_code == 2


def test_a_tab_and_braces_have_their_own_remedy(folder: Path) -> None:
    assert "spaces, not with tabs" in refused(folder, "\tx: 1")
    assert "must stand in quotes" in refused(folder, "x: {{ text }}")


def _laughs(levels: int, merge: bool) -> str:
    lines = ["l0: &l0 {a: 1}" if merge else f"l0: &l0 [{'ha, ' * 10}]"]
    for level in range(1, levels):
        inside = ", ".join([f"*l{level - 1}"] * 10)
        lines.append(f"l{level}: &l{level} " + (f"{{<<: [{inside}]}}" if merge else f"[{inside}]"))
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("merge", one_in(2, [False, True]))
def test_a_billion_laughs_are_cut_short(folder: Path, merge: bool) -> None:
    file = folder / "job.yaml"
    file.write_text(_laughs(12, merge), encoding="utf-8")
    with pytest.raises(JobError, match="unfolds to more than a job can hold"):
        load_job(file)


def test_one_long_text_repeated_by_aliases_is_cut_short(folder: Path) -> None:
    file = folder / "job.yaml"
    file.write_text(f"a: &a {'x' * 1_000_000}\nb: [{', '.join(['*a'] * 100)}]\n", encoding="utf-8")
    with pytest.raises(JobError, match="unfolds to more than a job can hold"):
        load_job(file)


def test_a_job_file_that_is_not_there_is_told_with_the_nearest_name(folder: Path) -> None:
    write(folder)
    with pytest.raises(UsageError, match="no such job file") as raised:
        load_job(folder / "jbo.yaml")
    assert raised.value.remedy == f"Did you mean {folder / 'job.yaml'}?"
    with pytest.raises(UsageError, match="no such job file") as raised:
        load_job(folder / "nowhere" / "x.yaml")
    assert "batchchat init" in str(raised.value)


def test_a_folder_a_binary_file_and_a_huge_file_are_no_jobs(folder: Path) -> None:
    with pytest.raises(UsageError, match="is a folder, not a job file"):
        load_job(folder)
    file = folder / "job.yaml"
    file.write_bytes(b"name: \xff\n")
    with pytest.raises(UsageError, match=r"not UTF-8 text \(byte 6\)"):
        load_job(file)
    with file.open("wb") as stream:
        stream.truncate(MAX_BYTES + 1)
    with pytest.raises(UsageError, match="too large for a job"):
        load_job(file)


@given(text=st.text(st.sampled_from("ab01 :-[]{}&*!|>'\"#%@`\n\t,?<~\x85"), max_size=60))
def test_any_text_is_a_job_or_a_usage_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError):
        load_job(file)


# --- secrets


@pytest.mark.parametrize(
    "line",
    [
        f"api_key: {CANARY}",
        f"token: {CANARY}",
        f"params: {{api_key: {CANARY}}}",
        f"params: {{extra_body: {{api_key: {CANARY}}}}}",
    ],
)
def test_a_key_in_the_job_is_refused_without_being_repeated(folder: Path, line: str) -> None:
    message = refused(folder, line)
    assert message.startswith("job.yaml:7: ")
    assert "api_key_env" in message
    assert "canary" not in message


@pytest.mark.parametrize(
    "provider",
    [
        f"{{base_url: 'https://h.example/v1', api_key: {CANARY}}}",
        f"{{base_url: 'https://h.example/v1', api_key_env: {CANARY}}}",
        "{base_url: 'https://h.example/v1', api_key_env: gsk_canary0123456789abcdef}",
        f"{{base_url: 'https://user:{CANARY}@h.example/v1'}}",
        f"{{base_url: 'user:{CANARY}@h.example/v1'}}",
        f"{{base_url: 'https://h.example:{CANARY}/v1'}}",
        f"{{base_url: '{CANARY}'}}",
        f"{{base_url: 'https://h.example/v1?api_key={CANARY}'}}",
        f"{{base_url: ['{CANARY}']}}",
        f"{{base_url: 'https://h.example/v1', headers: {{Authorization: Bearer {CANARY}}}}}",
        f"{{base_url: 'https://h.example/v1', headers: {{api-key: {CANARY}}}}}",
        f"{{base_url: 'https://h.example/v1', headers: {{X-Auth-Token: {CANARY}}}}}",
        f"{{base_url: 'https://h.example/v1', headers: {{Ocp-Apim-Subscription-Key: {CANARY}}}}}",
        f"{{base_url: 'https://h.example/v1', headers: {{Cookie: {CANARY}}}}}",
        f"{{base_url: 'https://h.example/v1', headers: {{X-Other: Bearer {CANARY}}}}}",
        f"{{base_url: 'https://h.example/v1', headers: [{CANARY}]}}",
        f"{{base_url: 'https://h.example/v1', extra_query: {{key: {CANARY}}}}}",
        f"{{base_url: 'https://h.example/v1', extra_query: {{sig: {CANARY}}}}}",
        f"{{base_url: 'https://h.example/v1', extra_query: {CANARY}}}",
    ],
)
def test_a_secret_in_the_provider_is_refused_without_being_repeated(folder: Path, provider: str) -> None:
    message = refused(folder, provider=f"provider: {provider}")
    assert message.startswith("job.yaml:4: provider.")
    assert "canary" not in message


@pytest.mark.parametrize(
    "override", [f"provider.api_key={CANARY}", f"api_key={CANARY}", f"model.x={CANARY}", f"a..b={CANARY}"]
)
def test_a_secret_given_with_set_is_not_repeated(folder: Path, override: str) -> None:
    message = refused(folder, set=[override])
    assert message.startswith(f"--set {override.partition('=')[0]}: ")
    assert "canary" not in message


def test_headers_that_hold_no_secret_are_taken(folder: Path) -> None:
    headers = "{OpenAI-Organization: org-1, X-Title: my job, X-Max-Tokens: '3'}"
    job = load(folder, provider=f"provider: {{base_url: 'https://h.example/v1', headers: {headers}}}")
    assert job.resolved_provider().headers["X-Title"] == "my job"


# --- --set


@pytest.mark.parametrize(
    ("override", "place", "value"),
    [
        ("limits.concurrency=64", ("limits", "concurrency"), 64),
        ("limits.concurrency=1e3", ("limits", "concurrency"), 1_000),
        ("limits={concurrency: 3}", ("limits", "concurrency"), 3),
        ("params.temperature=0.5", ("params", "temperature"), 0.5),
        ("params.max_tokens={{ budget }}", ("params", "max_tokens"), "{{ budget }}"),
        ("params.stop=[a, b]", ("params", "stop"), ["a", "b"]),
        ("params.extra_body.guided.regex=a+", ("params", "extra_body", "guided", "regex"), "a+"),
        ("params.seed=null", ("params", "seed"), None),
        ("messages.0.content=Sort: {{ text }} # now", ("messages", 0, "content"), "Sort: {{ text }} # now"),
        ("messages.0.role=system", ("messages", 0, "role"), "system"),
        ("messages.0.content=Label: one word", ("messages", 0, "content"), "Label: one word"),
        ("messages.0.content=- {{ text }} # now", ("messages", 0, "content"), "- {{ text }} # now"),
        ("messages.0.content='7'", ("messages", 0, "content"), "7"),
        ('messages.0.content="a\\nb"', ("messages", 0, "content"), "a\nb"),
        ("model=a=b", ("model",), "a=b"),
        (" model =m-2", ("model",), "m-2"),
        ("provider=openai", ("provider",), "openai"),
        ("retry.failed=[timeout]", ("retry", "failed"), ["timeout"]),
        ("retry.row_deadline=1h", ("retry", "row_deadline"), 3600.0),
        ("input.key=id", ("input", "key"), "id"),
        ("output.part_bytes=2MiB", ("output", "part_bytes"), 2**21),
    ],
)
def test_set_reaches_any_field(folder: Path, override: str, place: tuple[Any, ...], value: object) -> None:
    found: Any = load(folder, set=[override]).model_dump(mode="json")
    for part in place:
        found = found[part]
    assert found == value


def test_the_last_set_wins_and_new_sections_can_be_made(folder: Path) -> None:
    job = load(folder, set=["prices.input=1", "prices.output=2", "prices.currency=EUR", "prices.input=3"])
    assert job.prices is not None
    assert (job.prices.input, job.prices.output) == (3.0, 2.0)


def test_set_changes_a_profile_into_one_at_another_address(folder: Path) -> None:
    job = load(folder, provider="provider: openai", set=["provider.base_url=http://127.0.0.1:9/v1/"])
    provider = job.resolved_provider()
    assert (provider.name, provider.base_url, provider.api_key_env) == (
        "openai",
        "http://127.0.0.1:9/v1",
        "OPENAI_API_KEY",
    )


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("limits.concurency=3", "--set limits.concurency: is not a field (did you mean 'concurrency'?)"),
        ("limits.concurrency=abc", '--set limits.concurrency: must be a whole number, not "abc"'),
        ("limits={concurrency: 0}", "--set limits: limits.concurrency: must be at least 1, not 0"),
        ("limits=3", "--set limits: must be a mapping of fields, not 3"),
        ("prices.input=1", "--set prices.input: prices.output: is missing"),
        ("concurrency=3", "--set concurrency: is not a field here: write limits.concurrency"),
        ("name.x=3", "--set name.x: name has no fields of its own"),
        ("messages.5.content=x", "--set messages.5.content: 5 is no position in a list of 1 (the first is 0)"),
        ("messages.-1.content=x", "--set messages.-1.content: -1 is no position"),
        ("messages.last=x", "--set messages.last: last is no position"),
        ("messages=nowhere.yaml", "--set messages: the template file"),
        ("model", "--set model: is not of the form field.path=value"),
        ("=3", "--set: is not of the form field.path=value"),
        ("a..b=3", "--set a..b: is not of the form field.path=value"),
        ("input=", "--set input: the path is empty"),
        ("output.path=", "--set output.path: the path is empty"),
        ("params.temperature=", "--set params.temperature: must be a number, or a template that gives one, not ''"),
    ],
)
def test_a_bad_set_is_told_as_one(folder: Path, override: str, told: str) -> None:
    assert refused(folder, set=[override]).startswith(told)


def test_a_later_error_names_the_set_that_gave_the_field(folder: Path) -> None:
    job = load(folder, provider="provider: scaleway", set=["params.frequency_penalty=1"])
    with pytest.raises(JobError, match=r"^--set params\.frequency_penalty: scaleway does not support"):
        check_params(job, job.resolved_provider())


# --- paths


def test_paths_in_a_file_are_relative_to_the_file(folder: Path) -> None:
    job = load(
        folder,
        input="input: ../data/*.jsonl",
        output="output: {path: out}",
        provider="provider: {base_url: 'https://h.example', ca_file: ca.pem}",
    )
    assert job.input.path == str(folder.parent / "data" / "*.jsonl")
    assert job.output.path == str(folder / "out")
    assert job.resolved_provider().ca_file == str(folder / "ca.pem")


def test_paths_given_with_the_call_are_relative_to_the_current_folder(folder: Path) -> None:
    here = Path.cwd()
    file = write(folder, input="input: {path: rows.jsonl, key: id}", output="output: {path: out, part_rows: 7}")
    job = load_job(file, input="a.csv", output="../o")
    assert (job.input.path, job.input.key) == (str(here / "a.csv"), "id")
    assert (job.output.path, job.output.part_rows) == (str(here.parent / "o"), 7)
    job = load_job(file, overrides=["input=b.csv", "output.path=p"])
    assert (job.input.path, job.input.key) == (str(here / "b.csv"), "id")
    assert (job.output.path, job.output.part_rows) == (str(here / "p"), 7)
    custom = ["provider={base_url: 'https://h.example'}", "provider.ca_file=ca.pem"]
    assert load_job(file, overrides=custom).resolved_provider().ca_file == str(here / "ca.pem")


def test_an_option_wins_over_a_set_and_a_set_over_the_file(folder: Path) -> None:
    job = load_job(write(folder), overrides=["input=b.csv"], input="c.csv")
    assert job.input.path == str(Path.cwd() / "c.csv")


def test_a_relative_job_file_still_gives_absolute_paths(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder)
    monkeypatch.chdir(folder)
    assert load_job("job.yaml").input.path == str(folder / "rows.jsonl")


def test_home_is_found_in_paths(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert load(folder, input="input: ~/rows.jsonl").input.path == "/home/somebody/rows.jsonl"
    assert load(folder, set=["output=~/out"]).output.path == "/home/somebody/out"


def test_standard_input_is_a_dash_wherever_it_is_given(folder: Path) -> None:
    assert load(folder, input="input: '-'").input.path == "-"
    assert load(folder, input="input: {path: '-', format: jsonl}").input.path == "-"
    assert load(folder, set=["input=-"]).input.path == "-"
    assert load(folder, set=["input.path=-"]).input.path == "-"
    assert load_job(write(folder), input="-").input.path == "-"


def test_an_empty_option_is_refused_rather_than_taken_for_the_current_folder(folder: Path) -> None:
    with pytest.raises(UsageError, match="--input: the path is empty"):
        load_job(write(folder), input="")


# --- messages


def test_messages_may_stand_in_a_file_of_their_own(folder: Path) -> None:
    (folder / "prompts").mkdir()
    (folder / "prompts" / "sort.yaml").write_text("- role: user\n  content: '{{ text }}'\n", encoding="utf-8")
    assert load(folder, messages="messages: prompts/sort.yaml").messages == [{"role": "user", "content": "{{ text }}"}]
    (Path.cwd() / "mine.yaml").write_text("- {role: user, content: mine}\n", encoding="utf-8")
    assert load(folder, set=["messages=mine.yaml"]).messages == [{"role": "user", "content": "mine"}]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("- role: user\n- 3\n", "prompt.yaml:2: messages.1: must be a message such as"),
        ("- role: user\n  role: system\n", "prompt.yaml:2: messages.0.role: stands twice (first in line 1)"),
        ("- role: user\n  content: {{ x }}\n", "prompt.yaml:2: is not valid YAML"),
        ("just a text\n", "prompt.yaml:1: holds a text, not a list of messages"),
        ("", "job.yaml:6: messages: needs at least one message"),
    ],
)
def test_what_is_wrong_in_a_template_file_is_told_with_its_line_there(folder: Path, text: str, told: str) -> None:
    (folder / "prompt.yaml").write_text(text, encoding="utf-8")
    assert refused(folder, messages="messages: prompt.yaml").startswith(told)


def test_messages_may_come_from_a_column(folder: Path) -> None:
    assert load(folder, messages="messages: {from: conversation}").messages == {"from": "conversation"}


# --- the provider


def test_an_inline_provider_is_told_apart_by_its_address(folder: Path) -> None:
    provider = load(folder, provider="provider: {base_url: 'HTTPS://H.example:443/v1/'}").resolved_provider()
    assert (provider.name, provider.identity, provider.base_url) == ("custom",) + ("https://h.example/v1",) * 2
    assert provider.api_key_env is None


def test_a_profile_keeps_what_the_job_does_not_change(folder: Path) -> None:
    spec = "provider: {profile: scaleway, headers: {X-Title: t}, api_key_env: OTHER_KEY}"
    provider, profile = load(folder, provider=spec).resolved_provider(), PROFILES["scaleway"]
    assert (provider.base_url, provider.identity, provider.prices) == (
        profile.base_url,
        profile.identity,
        profile.prices,
    )
    assert (provider.headers, provider.api_key_env) == ({"X-Title": "t"}, "OTHER_KEY")


def test_the_jobs_prices_win(folder: Path) -> None:
    provider = load(folder, "prices: {input: 1, output: 2, currency: USD}").resolved_provider()
    assert (provider.prices["m-1"].input, provider.currency, provider.prices_as_of) == (1.0, "USD", "the job file")


def test_params_that_the_provider_does_not_support_are_refused_all_at_once(folder: Path) -> None:
    params = [
        "params:",
        "  temperature: 0",
        "  user: '{{ u }}'",
        "  frequency_penalty: 1",
        "  n: 1",
        "  top_logprobs: null",
    ]
    job = load(folder, *params, provider="provider: scaleway")
    with pytest.raises(JobError) as raised:
        check_params(job, job.resolved_provider())
    assert [line.split(": ")[:2] for line in raised.value.message.splitlines()] == [
        [f"{folder}/job.yaml:9", "params.user"],
        [f"{folder}/job.yaml:10", "params.frequency_penalty"],
        [f"{folder}/job.yaml:11", "params.n"],
    ]
    assert raised.value.remedy is not None
    assert "Remove params.user from the job." in raised.value.remedy
    check_params(job, PROFILES["openai"])


# --- keys


def test_a_key_comes_from_the_environment(folder: Path) -> None:
    job = load(folder, provider="provider: openai")
    environ = load_keys(job, {"OPENAI_API_KEY": f" {CANARY}\n"})
    assert api_key(job, job.resolved_provider(), environ) == CANARY


def test_a_provider_without_a_key_needs_none(folder: Path) -> None:
    job = load(folder)
    assert api_key(job, job.resolved_provider(), load_keys(job, {})) is None


@pytest.mark.parametrize(("environ", "state"), [({}, "not set"), ({"OPENAI_API_KEY": " "}, "empty")])
def test_a_missing_key_is_told_with_line_reason_and_remedy(folder: Path, environ: dict[str, str], state: str) -> None:
    job = load(folder, provider="provider: openai")
    with pytest.raises(JobError) as raised:
        api_key(job, job.resolved_provider(), load_keys(job, environ))
    assert raised.value.exit_code == 2
    told = f"job.yaml:4: provider: openai needs a key, and the environment variable OPENAI_API_KEY is {state}"
    assert told in raised.value.message
    assert raised.value.remedy is not None
    assert "export OPENAI_API_KEY=" in raised.value.remedy


@pytest.mark.parametrize("key", [f"Bearer {CANARY}", f"{CANARY}\nX: y", f"{CANARY}\x7f", f"„{CANARY}“"])
def test_a_key_with_more_than_a_key_in_it_is_refused_without_being_repeated(folder: Path, key: str) -> None:
    job = load(folder, provider="provider: openai")
    with pytest.raises(JobError, match="holds characters that no key has") as raised:
        api_key(job, job.resolved_provider(), {"OPENAI_API_KEY": key})
    assert "canary" not in str(raised.value)


def test_a_dotenv_beside_the_job_is_read_as_text(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    (folder / ".env").write_text(
        textwrap.dedent(
            """\
            # keys
            PLAIN=one
            export EXPORTED=two
            SINGLE='three # 3'
            DOUBLE="four"
            COMMAND=$(touch pwned)
            TICKS=`touch pwned`
            VARIABLE=$HOME/${PLAIN}
            COMMENTED=five # a comment
            EMPTY=
            NOTHING
            """
        ),
        encoding="utf-8",
    )
    assert load_keys(load(folder), {}) == {
        "PLAIN": "one",
        "EXPORTED": "two",
        "SINGLE": "three # 3",
        "DOUBLE": "four",
        "COMMAND": "$(touch pwned)",
        "TICKS": "`touch pwned`",
        "VARIABLE": "$HOME/${PLAIN}",
        "COMMENTED": "five",
        "EMPTY": "",
    }
    assert not list(folder.rglob("pwned"))


def test_the_environment_wins_over_a_dotenv_and_other_folders_are_not_searched(folder: Path) -> None:
    (folder / ".env").write_text("A=file\nB=file\n", encoding="utf-8")
    (Path.cwd() / ".env").write_text("C=cwd\n", encoding="utf-8")
    (folder.parent / ".env").write_text("D=parent\n", encoding="utf-8")
    assert load_keys(load(folder), {"A": "environment"}) == {"A": "environment", "B": "file"}


def test_a_dotenv_that_cannot_be_read_is_told(folder: Path) -> None:
    (folder / ".env").write_bytes(b"KEY=\xff\n")
    with pytest.raises(UsageError, match=r"\.env cannot be read: not UTF-8 text"):
        load_keys(load(folder), {})


def test_a_job_made_in_python_has_no_dotenv(folder: Path) -> None:
    (Path.cwd() / ".env").write_text("A=cwd\n", encoding="utf-8")
    job = validate_job(_plain(load(folder)))
    assert load_keys(job, {"B": "x"}) == {"B": "x"}


# --- durations and sizes


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (90, 90.0),
        (0.5, 0.5),
        (0, 0.0),
        ("90", 90.0),
        ("45s", 45.0),
        ("15m", 900.0),
        ("1h30m", 5400.0),
        (" 1h 30m ", 5400.0),
        ("1.5h", 5400.0),
        ("1h1m1s", 3661.0),
        ("0s", 0.0),
        ("1e2", 100.0),
        ("365h", 1_314_000.0),
    ],
)
def test_a_duration_is_read(value: object, seconds: float) -> None:
    assert parse_duration(value) == seconds


@pytest.mark.parametrize(
    "value",
    [
        "",
        "s",
        "1x",
        "m15",
        "1s1h",
        "-1s",
        "-1",
        -1,
        "nan",
        math.nan,
        "inf",
        math.inf,
        -math.inf,
        True,
        None,
        [],
        "1_0",
        "9" * 400 + "h",
        "9" * 400,
        10**400,
        -(10**400),
        "1 0s",
        "٣s",
        366 * 86_400,
        "8784h",
        "1ms",
    ],
)
def test_what_is_no_sensible_duration_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration(value)


@given(st.integers(0, 8_000), st.integers(0, 59), st.integers(0, 59))
def test_a_duration_is_read_back_as_it_was_written(hours: int, minutes: int, seconds: int) -> None:
    total = hours * 3600 + minutes * 60 + seconds
    assert parse_duration(f"{hours}h{minutes}m{seconds}s") == total
    assert parse_duration(str(total)) == parse_duration(f"{total}s") == parse_duration(total) == total


@given(st.text(max_size=12) | st.floats() | st.integers() | st.text("0123456789.hms e+-", max_size=12))
def test_any_value_is_a_bounded_duration_or_refused(value: object) -> None:
    try:
        seconds = parse_duration(value)
    except ValueError:
        return
    assert 0.0 <= seconds < 366 * 86_400


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (5_000, 5_000),
        ("5000", 5_000),
        ("64MB", 64_000_000),
        ("64 mb", 64_000_000),
        ("1.5GB", 1_500_000_000),
        ("2kB", 2_000),
        ("1MiB", 2**20),
        ("4KiB", 4096),
        ("5000B", 5_000),
        ("1GiB", 2**30),
    ],
)
def test_a_size_is_read(value: object, size: int) -> None:
    assert OutputFields(path="o", part_bytes=value).part_bytes == size


@pytest.mark.parametrize(
    "value", ["", "MB", "64XB", "-1MB", "nan", True, None, 1e6, "9" * 400, "9" * 290 + "GB", "999999GB", [], -5]
)
def test_what_is_no_sensible_size_is_refused(value: object) -> None:
    with pytest.raises(ValidationError):
        OutputFields(path="o", part_bytes=value)


@given(st.integers(1, 100_000), st.sampled_from([("kB", 10**3), ("KiB", 2**10), ("MB", 10**6), ("B", 1)]))
def test_a_size_is_read_back_as_it_was_written(number: int, unit: tuple[str, int]) -> None:
    size = number * unit[1]
    if 1_000 <= size <= 10**11:
        assert OutputFields(path="o", part_bytes=f"{number}{unit[0]}").part_bytes == size


# --- the job as a value


def _plain(job: Job) -> dict[str, Any]:
    """A snapshot as it is read back from the output's folder, without the file's own path."""
    data: dict[str, Any] = json.loads(json.dumps(job.snapshot()))
    data.pop("file")
    return data


def test_a_job_cannot_be_changed_in_place(folder: Path) -> None:
    job = load(folder)
    with pytest.raises(ValidationError, match="frozen"):
        setattr(job, "model", "other")  # noqa: B010 - a plain assignment is refused by the type checker already
    with pytest.raises(ValidationError, match="frozen"):
        setattr(job.limits, "concurrency", 3)  # noqa: B010 - as above


def test_a_snapshot_makes_the_same_job_again(folder: Path) -> None:
    job = load(
        folder,
        "params: {temperature: 0.2, max_tokens: '{{ n }}', stop: [x], extra_body: {top_k: 3, day: 2024-01-01}}",
        "limits: {concurrency: 3}",
        "retry: {row_deadline: 15m, failed: [timeout]}",
        "prices: {input: 1, output: 2, currency: EUR}",
        provider="provider: {profile: openai, base_url: 'https://h.example', headers: {X-Title: t}, ca_file: ca.pem}",
        output="output: {path: out, part_bytes: 64MB}",
    )
    again = validate_job(_plain(job), file=job.file)
    assert again.snapshot() == job.snapshot()
    assert again.model_dump() == job.model_dump()
    assert again.resolved_provider() == job.resolved_provider()
    assert job.snapshot()["file"] == str(folder / "job.yaml")


def test_a_snapshot_holds_no_key(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    job = load(folder, provider="provider: openai")
    assert api_key(job, job.resolved_provider(), load_keys(job)) == CANARY
    assert "canary" not in json.dumps(job.snapshot()) + repr(job) + repr(job.resolved_provider())


def test_a_job_made_in_python_tells_its_errors_without_a_file() -> None:
    with pytest.raises(JobError) as raised:
        validate_job({"name": "a", "limits": {"concurrency": 0}})
    lines = raised.value.message.splitlines()
    assert "limits.concurrency: must be at least 1, not 0" in lines
    assert any(line.startswith("model: is missing") for line in lines)


def test_failure_kinds_are_named_or_grouped() -> None:
    assert failed_kinds("none") == frozenset()
    assert failed_kinds("transient") == TRANSIENT_KINDS
    assert failed_kinds("all") == frozenset(ErrorKind)
    assert failed_kinds([ErrorKind.REFUSAL]) == {ErrorKind.REFUSAL}


def test_an_error_about_a_field_finds_the_line_of_what_holds_it(folder: Path) -> None:
    job = load(folder, "params:", "  extra_body:", "    top_k: 3")
    assert (job.error("x", "params", "extra_body", "top_k").line, job.error("x", "params", "seed").line) == (9, 7)
    assert job.error("x", "limits").line is None


# --- what another file changes


def changed(folder: Path, path: str, value: Any, **inside: int) -> Job:
    """The small job with a field that `suite.yaml` sets in line 9, whose paths are relative to a folder of its own."""
    other = folder / "suites"
    other.mkdir(exist_ok=True)
    file = other / "suite.yaml"
    places: dict[FieldPlace, FieldOrigin] = {(place,): FieldOrigin(file, line) for place, line in inside.items()}
    change = FieldChange(path, value, FieldOrigin(file, 9), other, places)
    return load_job(write(folder), overrides=["model=from-the-command-line"], changes=[change])


def test_a_change_is_put_over_the_file_and_the_command_line(folder: Path) -> None:
    assert changed(folder, "model", "m-2").model == "m-2"
    assert changed(folder, "params.temperature", 0.7).params.temperature == 0.7
    (folder / "suites" / "short.yaml").write_text("- {role: user, content: short}", encoding="utf-8")
    assert changed(folder, "messages", "short.yaml").messages == [{"role": "user", "content": "short"}]
    assert changed(folder, "output", "there").output.path == str(folder / "suites" / "there")


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("params.temprature", 1, "suite.yaml:9: params.temprature: is not a field (did you mean 'temperature'?)"),
        ("params.temperature", 3, "suite.yaml:9: params.temperature: must be between 0 and 2, not 3"),
        ("model.name", "x", "suite.yaml:9: model.name: model has no fields of its own"),
        ("messages.7.content", "x", "suite.yaml:9: messages.7.content: 7 is no position in a list of 1"),
        ("messages", "nope.yaml", "suite.yaml:9: messages: the template file"),
    ],
)
def test_a_change_that_cannot_be_is_told_with_its_own_line(folder: Path, path: str, value: Any, told: str) -> None:
    with pytest.raises(JobError) as raised:
        changed(folder, path, value)
    assert told in str(raised.value)


def test_inside_a_change_the_line_is_that_of_the_field(folder: Path) -> None:
    with pytest.raises(JobError, match=r"suite.yaml:11: params.top_p: must be between 0 and 1"):
        changed(folder, "params", {"temperature": 1, "top_p": 2}, temperature=10, top_p=11)


@given(st.integers(0, 31_000_000).map(lambda milliseconds: milliseconds / 1000))
def test_a_duration_that_is_written_is_read_as_the_same(seconds: float) -> None:
    assert parse_duration(write_duration(seconds)) == pytest.approx(seconds)
    assert write_duration(3000) == "50m"


@pytest.mark.parametrize(
    ("option", "override", "told"),
    [
        ("--max-cost", "budget.max_cost=-1", "--max-cost: budget.max_cost: must be more than 0, not -1"),
        ("--max-tokens", "budget.max_tokens=0", "--max-tokens: budget.max_tokens: must be at least 1, not 0"),
        ("--max-requests", "budget.max_requests=x", "--max-requests: budget.max_requests: must be a whole number, not"),
        ("--deadline", "deadline=soon", "--deadline: must be a duration such as 30s, 15m, 1h or 1h30m, not 'soon'"),
    ],
)
def test_an_option_that_sets_a_field_is_named_in_its_errors(
    folder: Path, option: str, override: str, told: str
) -> None:
    with pytest.raises(JobError) as caught:
        load_job(write(folder), changes=[read_override(override, option)])
    assert told in str(caught.value)


def test_an_option_wins_over_the_file_and_keeps_the_other_caps(folder: Path) -> None:
    file = write(folder, "budget: {max_cost: 1, max_tokens: 10}", "deadline: 1h")
    job = load_job(file, changes=[read_override("budget.max_cost=2.5", "--max-cost"), read_override("deadline=90")])
    assert (job.budget.max_cost, job.budget.max_tokens, job.budget.max_requests) == (2.5, 10, None)
    assert job.deadline == 90
