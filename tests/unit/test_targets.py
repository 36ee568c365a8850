"""Whom a job asks: endpoints and fallbacks as a job file names them, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from batchchat.endpoints.registry import read_keys
from batchchat.errors import JobError, UsageError
from batchchat.job import Job, load_job
from batchchat.job.targets import check_targets, endpoint_key_problem, targets_of

JOB = """\
name: pool
input: rows.jsonl
output: out
provider:
{provider}
model: llama-3.1-8b-instruct
{more}
messages: [{{role: user, content: "{{{{ text }}}}"}}]
"""
POOL = """\
  name: llama-pool
  profile: vllm
  endpoints:
    - http://a:8000/v1
    - {base_url: "http://b:8000/v1", api_key_env: KEY_B, model: meta/llama, weight: 2, limits: {concurrency: 4}}
"""


def load(folder: Path, provider: str = POOL, more: str = "", *overrides: str) -> Job:
    path = folder / "job.yaml"
    path.write_text(JOB.format(provider=provider.rstrip("\n"), more=more), encoding="utf-8")
    return load_job(path, overrides=overrides)


def test_endpoints_take_from_the_provider_what_they_do_not_say(tmp_path: Path) -> None:
    (target,) = targets_of(load(tmp_path))
    first, second = target.endpoints
    assert target.provider.identity == target.provider.name == "llama-pool"
    assert (first.name, first.model, first.weight) == ("http://a:8000/v1", "llama-3.1-8b-instruct", 1.0)
    assert (second.name, second.model, second.weight) == ("http://b:8000/v1", "meta/llama", 2.0)
    assert (first.provider.api_key_env, second.provider.api_key_env) == (None, "KEY_B")
    assert (first.limits.concurrency, second.limits.concurrency) == (None, 4)


def test_several_keys_of_one_address_are_endpoints(tmp_path: Path) -> None:
    provider = "  {name: keys, profile: openai, endpoints: [{api_key_env: KEY_A}, {api_key_env: KEY_B}]}"
    job = load(tmp_path, provider)
    check_targets(job)
    (target,) = targets_of(job)
    assert [one.name for one in target.endpoints] == [f"https://api.openai.com/v1 (KEY_{key})" for key in "AB"]
    keys = read_keys(job, {"KEY_A": "sk-first-0123456789", "KEY_B": "sk-other-0123456789"})
    assert [one.key for one in keys[0]] == ["sk-first-0123456789", "sk-other-0123456789"]
    with pytest.raises(JobError, match=r"job\.yaml:5: provider\.endpoints\.1: .*KEY_B is not set"):
        read_keys(job, {"KEY_A": "sk-first-0123456789"})
    problem = endpoint_key_problem(job, {})
    assert problem is not None
    assert problem.field == "provider.endpoints.0"


def test_a_field_of_an_endpoint_can_be_set_from_the_command_line(tmp_path: Path) -> None:
    (target,) = targets_of(load(tmp_path, POOL, "", "provider.endpoints.1.weight=3"))
    assert target.endpoints[1].weight == 3
    fallback = targets_of(load(tmp_path, POOL, "fallback: [{model: small}]", "fallback.0.on=[refusal]"))[1]
    assert fallback.on == {"refusal"}


@pytest.mark.parametrize(
    ("provider", "identity"),
    [
        ("  {base_url: 'http://a/v1'}", "http://a/v1"),
        ("  {profile: openai, base_url: 'http://a/v1'}", "http://a/v1"),
        ("  {name: mine, base_url: 'http://a/v1'}", "mine"),
        ("  {name: mine, endpoints: ['http://a/v1']}", "mine"),
        ("  {name: mine, identity: 'http://a/v1', endpoints: ['http://b/v1']}", "http://a/v1"),
    ],
)
def test_the_name_is_the_identity_and_an_address_keeps_its_own(tmp_path: Path, provider: str, identity: str) -> None:
    assert load(tmp_path, provider).resolved_provider().identity == identity


@pytest.mark.parametrize(
    ("provider", "more", "words"),
    [
        ("  {endpoints: ['http://a/v1']}", "", "job.yaml:4: provider: needs a name"),
        ("  {name: openai, endpoints: ['http://a/v1']}", "", "provider.name: openai is a provider that is known"),
        ("  {name: p, endpoints: http://a/v1}", "", "provider.endpoints: must be a list of addresses"),
        ("  {name: p, endpoints: [{base_url: 'http://a/v1', wait: 1}]}", "", "endpoints.0.wait: is not a field"),
        ("  {name: p, endpoints: [{profile: vllm}]}", "", "endpoints.0.profile: belongs to the provider"),
        ("  {name: p, endpoints: ['ftp://a']}", "", "provider.endpoints.0: must be an http"),
        ("  {name: p, endpoints: ['http://a/v1', {weight: 2}]}", "", "endpoints.1: needs a base_url"),
        ("  {name: p, endpoints: ['http://a/v1', 'http://A:80/v1/']}", "", "endpoints.1: is the same as endpoint 1"),
        (POOL, "fallback: [{model: llama-3.1-8b-instruct}]", "job.yaml:11: fallback.0: loops"),
        (POOL, "fallback: [{model: b}, {model: c}, {model: b}]", "fallback.2: loops: b at http://a:8000/v1"),
        (POOL, "fallback: [{model: b, on: [weather]}]", "fallback.0.on.0: must be 'outage'"),
        (POOL, "fallback: [{model: b, on: []}]", "fallback.0.on: must not be empty"),
        (POOL, "fallback: [{provider: nobody, model: b}]", "fallback.0.provider: no provider is called 'nobody'"),
        (POOL, "fallback: [{provider: scaleway, model: b}]\nparams: {user: me}", "fallback.0: scaleway does not"),
        (POOL, "fallback: [{model: b}]\nbudget: {max_cost: 1}", "no price is known for b at llama-pool"),
        (POOL, "engine: batch", "engine: a batch goes to one endpoint"),
        (POOL, "fallback: [{model: b}]\nengine: batch", "fallback: is not for `engine: batch`"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_told_with_its_line(tmp_path: Path, provider: str, more: str, words: str) -> None:
    with pytest.raises(UsageError) as told:
        check_targets(load(tmp_path, provider, more))
    assert words in told.value.message
    assert "job.yaml:" in told.value.message


def test_two_currencies_are_never_added(tmp_path: Path) -> None:
    more = (
        "prices: {input: 1, output: 1, currency: EUR}\n"
        "fallback: [{model: b, prices: {input: 1, output: 1, currency: USD}}]"
    )
    with pytest.raises(JobError, match=r"fallback\.0: costs USD, and the job's own model EUR"):
        check_targets(load(tmp_path, POOL, more))


def test_a_suite_refuses_a_fallback_unless_it_allows_it(tmp_path: Path) -> None:
    suites: Any = pytest.importorskip("batchchat.evaluation.suite.reading")
    load(tmp_path, POOL, "fallback: [{model: small}]")
    (tmp_path / "rows.jsonl").write_text('{"text": "a", "label": "b"}\n', encoding="utf-8")
    suite = tmp_path / "suite.yaml"
    text = (
        "name: s\njob: job.yaml\noutput: out-s\nvariants: [{name: one}]\n"
        "scorers: [{name: right, kind: exact, expected: label}]\n"
    )
    suite.write_text(text, encoding="utf-8")
    with pytest.raises(JobError, match=r"fallback: another model would answer some rows"):
        suites.load_suite(suite)
    suite.write_text(text + "allow_fallback: true\n", encoding="utf-8")
    assert suites.load_suite(suite).jobs[0].fallback[0].model == "small"
