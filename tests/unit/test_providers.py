"""What is known of providers is data: addresses that compare, prices that add up, keys by name only."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchchat.cli.providers import providers_command
from batchchat.errors import JobError, UsageError
from batchchat.planning import plan_job
from batchchat.prices import LIST, PriceList
from batchchat.providers import DEMO, PRICES_READ, PROFILES, Price, Provider, normalize_url
from tests.integration.jobs import make_job, texts, write_rows


@pytest.mark.parametrize(
    ("given_url", "url"),
    [
        ("HTTPS://API.Example.ORG/v1/", "https://api.example.org/v1"),
        ("https://api.example.org:443/v1", "https://api.example.org/v1"),
        ("http://api.example.org:80/v1", "http://api.example.org/v1"),
        ("https://api.example.org:8443/v1", "https://api.example.org:8443/v1"),
        ("  https://api.example.org/V1  ", "https://api.example.org/V1"),
        ("https://api.example.org", "https://api.example.org"),
        (
            "https://api.example.org/openai?api-version=2024-10-21",
            "https://api.example.org/openai?api-version=2024-10-21",
        ),
        ("https://api.example.org/v1#part", "https://api.example.org/v1"),
        ("http://[::1]:8000/v1", "http://[::1]:8000/v1"),
        ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1"),
        ("http://llm_server:8000/v1", "http://llm_server:8000/v1"),
        ("https://bücher.example/v1", "https://xn--bcher-kva.example/v1"),
        ("https://api.example.org/@team/v1", "https://api.example.org/@team/v1"),
    ],
)
def test_equal_addresses_compare_equal(given_url: str, url: str) -> None:
    assert normalize_url(given_url) == url
    assert normalize_url(url) == url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "api.example.org/v1",
        "ftp://api.example.org",
        "https://",
        "https:///v1",
        "https://api example.org/v1",
        "https://api.example.org/\tv1",
        "https://api.example.org:99999/v1",
        "https://[::1/v1",
        "https://exa<mple.org/v1",
        "https://" + "a" * 64 + ".org",
        "https://..",
    ],
)
def test_what_is_no_web_address_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="address"):
        normalize_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "https://user:canary-secret@api.example.org/v1",
        "https://canary-secret@api.example.org/v1",
        "user:canary-secret@api.example.org/v1",
        "https://api.example.org:canary-secret/v1",
        "https://user:canary-secret/x@api.example.org/v1",
        "canary-secret",
    ],
)
def test_an_address_with_a_secret_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ValueError, match="address") as raised:
        normalize_url(url)
    assert "canary" not in str(raised.value)


@given(st.text(max_size=60))
def test_any_text_is_an_address_or_a_value_error(text: str) -> None:
    for url in (text, "https://" + text):
        try:
            normal = normalize_url(url)
        except ValueError:
            continue
        assert normalize_url(normal) == normal


@pytest.mark.parametrize("provider", PROFILES.values(), ids=list(PROFILES))
def test_a_profile_is_whole(provider: Provider) -> None:
    assert PROFILES[provider.name] is provider
    assert provider.identity == provider.name
    assert (provider.base_url is None) == (provider.name in {DEMO, "azure"})
    assert provider.base_url is None or normalize_url(provider.base_url) == provider.base_url
    assert not provider.prices or (provider.currency and provider.prices_as_of)
    assert provider.api_key_env is None or provider.api_key_env.isidentifier()


def test_a_provider_at_another_address_keeps_its_identity() -> None:
    moved = PROFILES[DEMO].with_base_url("http://127.0.0.1:41234/v1/")
    assert moved.base_url == "http://127.0.0.1:41234/v1"
    assert moved.identity == DEMO
    assert PROFILES[DEMO].base_url is None


def test_a_provider_cannot_be_changed_in_place() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        PROFILES["openai"].base_url = "https://elsewhere.example"  # type: ignore[misc]  # that is what is tested


def test_every_listed_price_is_plausible_and_dated() -> None:
    listed = json.loads(LIST.read_text(encoding="utf-8"))
    assert (listed["read"], listed["currency"]) == (PRICES_READ, "USD")
    for name, models in listed["providers"].items():
        provider = PROFILES[name]
        assert (provider.currency, provider.prices_as_of) == ("USD", PRICES_READ)
        assert len(provider.prices) == len(models) > 20
        for model, entry in models.items():
            price = provider.prices[model]
            assert price == Price(entry["input"], entry["output"], entry.get("cached_input")), model
            assert 0 < price.input <= 1000, model
            assert 0 < price.output <= 1000, model
            assert price.cached_input is None or price.cached_input <= price.input, model


def test_a_list_of_prices_is_read_when_it_is_needed_and_knows_no_model_but_its_own() -> None:
    found = PriceList("openai")
    assert "gpt-4o-mini" in found
    assert found.get("gpt-4o-mini") == Price(0.15, 0.6, 0.075)
    assert found.get("gpt-4o-mni") is None
    assert "mistral-small-latest" not in found
    assert (found.higher_from("gpt-4o-mini"), found.higher_from("gpt-5.4")) == (None, 272_000)


def test_the_providers_are_listed_with_the_variables_of_their_keys(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GROQ_API_KEY", "gsk-not-to-be-shown")
    assert providers_command(None, as_json=True) == 0
    listed = {provider["name"]: provider for provider in json.loads(capsys.readouterr().out)}
    assert list(listed) == list(PROFILES)
    assert listed["groq"]["api_key_is_set"] is True
    assert listed["demo"]["api_key_is_set"] is None
    assert providers_command(None, as_json=False) == 0
    told = capsys.readouterr().out
    assert "gsk-not" not in told
    assert "GROQ_API_KEY (set)" in told


def test_one_provider_is_told_with_limits_params_and_prices(capsys: pytest.CaptureFixture[str]) -> None:
    assert providers_command("scaleway", as_json=False) == 0
    told = capsys.readouterr().out
    for text in ("SCW_SECRET_KEY", "300 requests/min", "logit_bias", "EUR per million tokens", "gpt-oss-120b"):
        assert text in told
    assert providers_command("openai", as_json=True) == 0
    prices = json.loads(capsys.readouterr().out)["prices"]
    assert prices["gpt-4o-mini"] == {"input": 0.15, "output": 0.6, "cached_input": 0.075, "higher_from": None}
    with pytest.raises(UsageError, match=r"opnai.*did you mean 'openai'"):
        providers_command("opnai", as_json=False)


@pytest.mark.parametrize(
    ("provider", "model", "warning"),
    [
        ("openai", "gpt-4o-mni", "did you mean 'gpt-4o-mini'?"),
        ("scaleway", "llama-3.3-70b", "did you mean 'llama-3.3-70b-instruct'?"),
        ("openai", "gpt-4o-mini", None),
        ("ollama", "anything", None),
        ({"base_url": "https://llm.example.org/v1", "api_key_env": "K"}, "mine", None),
    ],
)
def test_a_plan_warns_of_a_model_that_is_not_in_the_list(
    provider: Any, model: str, warning: str | None, tmp_path: Path
) -> None:
    write_rows(tmp_path / "rows.jsonl", texts(2))
    view = plan_job(make_job(tmp_path, None, provider=provider, model=model))
    told = [text for text in view.warnings if text.startswith("model:")]
    assert len(told) == (warning is not None)
    assert warning is None or warning in told[0]


def test_a_cap_on_money_names_the_nearest_model_that_has_a_price(tmp_path: Path) -> None:
    job = make_job(tmp_path, None, provider="openai", model="gpt-4o-mni", budget={"max_cost": 1})
    with pytest.raises(JobError, match=r"no price is known for gpt-4o-mni at openai \(did you mean 'gpt-4o-mini'"):
        job.check_budget(job.resolved_provider())
