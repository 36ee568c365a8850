"""Providers as data: what batchchat knows of OpenAI-compatible services.

A profile is data, not a class of its own: base URL, the environment variable that holds the key, params the
service does not support, default limits, prices with the day they were read. Every field can be overridden by the
job. Prices and limits change without notice; a job's own `prices` and `limits` always win.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import field, replace
from typing import Literal
from urllib.parse import urlsplit, urlunsplit

from batchchat.dataclass import dataclass
from batchchat.prices import Price, PriceList

__all__ = [
    "BATCH_TERMS",
    "DEMO",
    "PRICES_READ",
    "PROFILES",
    "BatchTerms",
    "Price",
    "Provider",
    "Transport",
    "normalize_url",
]

DEMO = "demo"
PRICES_READ = "2026-11-28"
"""The day on which the list of prices was made."""

TIERS_READ = "2026-11-28"
"""The day of the factors of service tiers. Flex costs as much as a batch. Priority costs up to twice the usual price;
the list names no price of it for each model, so the dearest factor is taken."""

Transport = Literal["auto", "httpx", "http2"]


@dataclass(frozen=True, slots=True)
class BatchTerms:
    """What a provider's Batch API offers.

    `factor` is what a request costs in a batch, as a share of its usual price, as it was read on the day `as_of`.
    `window` is the time in which a batch is promised, in the provider's own words.
    """

    factor: float
    as_of: str
    window: str = "24h"
    note: str = ""


@dataclass(frozen=True, slots=True)
class Provider:
    """One OpenAI-compatible service.

    `base_url` ends before `/chat/completions`; it is None for the demo provider, whose port is chosen at run time.
    `identity` names the service in every `custom_id`: it stays the same when only a port or a key changes. `max_images`
    is how many images one request may hold, None where that is not known.
    The key comes from one of `api_key_env`, `api_key_file` and `api_key_command`; with none of them no key is sent.
    `tiers` holds what a request costs in a service tier, as a share of its usual price (see `TIERS_READ`).
    `api_key_header` and `api_key_scheme` say how it is sent, None as is usual (see `credentials.KeySource`).
    `stream_options` tells whether a streamed request may ask for usage; a service that refuses that mostly sends it
    unasked. `transport` is what carries the requests: `auto`, `httpx` or `http2` (see `transport.choose_transport`).
    """

    name: str
    base_url: str | None
    identity: str
    api_key_env: str | None = None
    unsupported: frozenset[str] = frozenset()
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None
    max_images: int | None = None
    prices: Mapping[str, Price] = field(default_factory=dict)
    currency: str | None = None
    prices_as_of: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    extra_query: Mapping[str, str] = field(default_factory=dict)
    ca_file: str | None = None
    stream_options: bool = True
    transport: Transport = "auto"
    note: str = ""
    tiers: Mapping[str, float] = field(default_factory=dict)
    api_key_file: str | None = None
    api_key_command: str | tuple[str, ...] | None = None
    api_key_header: str | None = None
    api_key_scheme: str | None = None

    @property
    def key_place(self) -> str | None:
        """Return in a few words where the key comes from; None if the provider needs none."""
        if self.api_key_file is not None:
            return f"the file {self.api_key_file}"
        if self.api_key_command is None:
            return None if self.api_key_env is None else f"the environment variable {self.api_key_env}"
        words = self.api_key_command.split() if isinstance(self.api_key_command, str) else self.api_key_command
        return f"the command {words[0]}"

    def with_base_url(self, base_url: str) -> Provider:
        """Return the same provider at another address, keeping its identity (a demo server's port, a test's)."""
        return replace(self, base_url=normalize_url(base_url))


def normalize_url(url: str) -> str:
    """Lower-case scheme and host, drop a default port and a trailing slash: equal services compare equal.

    A host outside ASCII is written as DNS knows it, a fragment is dropped. Raises ValueError where the text is no
    http(s) URL with a host, without repeating it: it may hold a password.
    """
    url = url.strip()
    # Addresses stand in job files, logs and error messages; a password in one would be there too.
    if "@" in re.split(r"[/?#]", url.partition("//")[2] or url)[0]:
        raise ValueError("an address must not hold a user name or password: keys come from the environment")
    # Copied addresses bring such letters, and the error of a connection would not show them.
    if not url.isprintable() or " " in url:
        raise ValueError("an address must not hold spaces or control characters")
    try:
        parts = urlsplit(url)
        port, host = parts.port, (parts.hostname or "").encode("idna").decode("ascii")
    except ValueError:
        raise ValueError("must be an address with a valid host and port, such as https://llm.example.org/v1") from None
    if parts.scheme not in {"http", "https"} or not re.fullmatch(r"[0-9a-z._~-]+|[0-9a-f:.]*:[0-9a-f:.]*", host):
        raise ValueError("must be an http:// or https:// address, such as https://llm.example.org/v1")
    host = f"[{host}]" if ":" in host else host
    # The usual port is left out: the address is part of the identity of requests, and must have one form.
    if port is not None and port != {"http": 80, "https": 443}[parts.scheme]:
        host += f":{port}"
    return urlunsplit((parts.scheme, host, parts.path.rstrip("/"), parts.query, ""))


def _profile(name: str, base_url: str | None, **fields: object) -> Provider:
    return Provider(name=name, base_url=base_url, identity=name, **fields)  # type: ignore[arg-type]


def _listed(name: str) -> dict[str, object]:
    """The prices of a provider that is in the list."""
    return {"prices": PriceList(name), "currency": "USD", "prices_as_of": PRICES_READ}


PROFILES: Mapping[str, Provider] = {
    provider.name: provider
    for provider in (
        _profile(
            DEMO,
            None,
            prices={
                "llama-3.1-8b-instruct": Price(0.20, 0.20),
                "mistral-small-3.2-24b-instruct-2506": Price(0.15, 0.35),
                "demo-small": Price(0.10, 0.10),
                "demo-large": Price(1.50, 4.50),
            },
            currency="EUR",
            prices_as_of="2026-11-01",
            tiers={"flex": 0.5, "priority": 2.0},
            max_images=12,
            unsupported=frozenset({"frequency_penalty", "n", "logit_bias", "user"}),
            note="This is the demo model: an embedded server that answers by simple rules. Its prices are made up, "
            "nothing is billed.",
        ),
        _profile(
            "scaleway",
            "https://api.scaleway.ai/v1",
            api_key_env="SCW_SECRET_KEY",
            unsupported=frozenset({"frequency_penalty", "n", "top_logprobs", "logit_bias", "user"}),
            requests_per_minute=300,
            tokens_per_minute=200_000,
            concurrency=100,
            max_images=12,
            prices={
                "mistral-small-3.2-24b-instruct-2506": Price(0.15, 0.35),
                "llama-3.3-70b-instruct": Price(0.90, 0.90),
                "qwen3-235b-a22b-instruct-2507": Price(0.75, 2.25),
                "gemma-4-26b-a4b-it": Price(0.25, 0.50),
                "qwen3.6-35b-a3b": Price(0.25, 1.50),
                "gpt-oss-120b": Price(0.15, 0.60),
                "mistral-medium-3.5-128b": Price(1.50, 7.50),
            },
            currency="EUR",
            prices_as_of="2026-09-29",
            note="Limits are those of the first tier, per organization; response headers correct them upwards.",
        ),
        _profile(
            "openai",
            "https://api.openai.com/v1",
            api_key_env="OPENAI_API_KEY",
            tiers={"flex": 0.5, "priority": 2.0},
            **_listed("openai"),
        ),
        _profile(
            "mistral",
            "https://api.mistral.ai/v1",
            api_key_env="MISTRAL_API_KEY",
            unsupported=frozenset({"logit_bias", "user", "top_logprobs", "logprobs"}),
            **_listed("mistral"),
            stream_options=False,  # answered with 422 "extra_forbidden"; usage comes with the last chunk all the same
        ),
        _profile(
            "groq",
            "https://api.groq.com/openai/v1",
            api_key_env="GROQ_API_KEY",
            unsupported=frozenset({"logprobs", "logit_bias", "top_logprobs"}),
            **_listed("groq"),
        ),
        _profile("together", "https://api.together.xyz/v1", api_key_env="TOGETHER_API_KEY", **_listed("together")),
        _profile(
            "azure",
            None,
            api_key_env="AZURE_OPENAI_API_KEY",
            api_key_header="api-key",
            note="Set base_url to your resource, such as https://NAME.openai.azure.com/openai/v1. With a token of "
            "Entra in place of a key, set api_key_header: Authorization.",
        ),
        _profile("vllm", "http://127.0.0.1:8000/v1", note="Set base_url where the server is not on this machine."),
        _profile(
            "ollama",
            "http://127.0.0.1:11434/v1",
            note="Set base_url where the server is not on this machine.",
        ),
    )
}

BATCH_TERMS: Mapping[str, BatchTerms] = {
    DEMO: BatchTerms(0.5, "2026-11-01"),
    "openai": BatchTerms(0.5, "2026-11-28"),
    "azure": BatchTerms(0.5, "2026-03-19", note="Of the price of a Global Standard deployment. Batches do not expire."),
    "scaleway": BatchTerms(0.5, "2026-03-10"),
    "groq": BatchTerms(0.5, "2026-11-28", note="A page of 2025 names a factor of 0.75: look at your invoice."),
    "mistral": BatchTerms(0.5, "2026-09-02"),
    "together": BatchTerms(
        1.0,
        "2026-09-04",
        note="Half price for the models that its page of batches lists, the usual price for all others.",
    ),
    "deepinfra": BatchTerms(0.8, "2026-06-19"),
    "doubleword": BatchTerms(0.5, "2026-06-16", note="Up to 90 % less by its own words: set the price of your model."),
}
"""The terms by the name of the batch dialect, which is the name of the provider's profile if it has one."""
