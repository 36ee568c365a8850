"""What is known of providers is data: addresses that compare, prices that add up, keys by name only."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchchat.providers import DEMO, PROFILES, Provider, normalize_url


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
    assert (provider.base_url is None) == (provider.name == DEMO)
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
