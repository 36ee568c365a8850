"""The fields of a provider with several endpoints, and of who is asked in its place."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator

from batchchat.job.provider_fields import ProviderFields
from batchchat.job.values import Name, Number, Section, Whole, instead_of, nearest
from batchchat.providers import DEMO, PROFILES

FallbackReason = Literal["outage", "rate_limit", "content_filter", "refusal", "truncated", "invalid_output"]


class LimitFields(Section):
    """Ceilings that are never passed. One that is not set comes from the provider, or is learned."""

    requests_per_minute: Whole | None = Field(None, ge=1, le=1_000_000_000_000)
    tokens_per_minute: Whole | None = Field(None, ge=1, le=1_000_000_000_000)
    concurrency: Whole | None = Field(None, ge=1, le=20_000)


class Prices(Section):
    """Money per million tokens; wins over the provider's profile."""

    input: Number = Field(ge=0)
    output: Number = Field(ge=0)
    cached_input: Number | None = Field(None, ge=0)
    currency: str = Field(pattern=r"^[A-Z]{3}$")


class EndpointFields(ProviderFields):
    """One of a provider's endpoints: what is not set here is that of the provider.

    `model` is what the endpoint calls the job's model. `weight` is its share of the requests relative to the others,
    and `limits` are its own ceilings.
    """

    model: Name | None = None
    weight: Number = Field(1.0, gt=0, le=1_000)
    limits: LimitFields | None = None

    @field_validator("profile")
    @classmethod
    def _no_profile(cls, value: str | None) -> str | None:
        if value is not None:
            raise ValueError("belongs to the provider: all its endpoints have the same")
        return value

    @model_validator(mode="after")
    def _some_address(self) -> EndpointFields:
        return self  # the provider's own address stands for it, so that several keys need not repeat it


class PoolFields(ProviderFields):
    """A job's provider: one address, or several endpoints under a name.

    The `name` is the identity of all answers, so that endpoints may come and go. `identity` carries over that of
    answers which the output has already, such as an address.
    """

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")] | None = None
    identity: str | None = Field(None, min_length=1, max_length=1_000)
    endpoints: list[EndpointFields] | None = Field(None, min_length=1, max_length=64)

    @field_validator("endpoints", mode="before")
    @classmethod
    def _address_alone(cls, value: object) -> object:
        if not isinstance(value, list):
            raise ValueError(f"must be a list of addresses, or of mappings with a base_url{instead_of(value)}")
        return [{"base_url": one} if isinstance(one, str) else one for one in value]

    @field_validator("name")
    @classmethod
    def _own_name(cls, value: str | None) -> str | None:
        if value in PROFILES:
            raise ValueError(f"{value} is a provider that is known already: choose a name of your own")
        return value

    @model_validator(mode="after")
    def _some_address(self) -> PoolFields:
        if self.endpoints is not None and self.name is None:
            raise ValueError("needs a name: it is the identity of the answers, whatever endpoints come and go")
        if self.endpoints is None and self.profile is None and self.base_url is None:
            raise ValueError("needs a base_url, or the profile it changes")
        return self


def check_known(value: str | PoolFields) -> None:
    """Refuse a provider that is not known by its name. Raises ValueError."""
    name = value if isinstance(value, str) else value.profile
    if name is not None and name not in PROFILES:
        raise ValueError(
            f"no provider is called {name!r}{nearest(name, PROFILES)}; known are {', '.join(PROFILES)}, "
            "or give {base_url: …, api_key_env: …}"
        )
    given = isinstance(value, PoolFields) and bool(value.base_url or value.endpoints)
    if name is not None and name != DEMO and PROFILES[name].base_url is None and not given:
        raise ValueError(f"{name} has another address for each customer: give {{profile: {name}, base_url: …}}")


class FallbackFields(Section):
    """Who is asked if those before cannot answer: another model of the same provider, or another provider.

    `on` says for what: `outage` (every endpoint is down or refuses the key), `rate_limit`, or an answer that failed for
    good of the kind that is named. Its `limits` are beside those of the job, `prices` are those of its model.
    """

    provider: str | PoolFields | None = None
    model: Name
    on: list[FallbackReason] = Field(default=["outage"], min_length=1)
    limits: LimitFields | None = None
    prices: Prices | None = None

    @field_validator("provider")
    @classmethod
    def _known_provider(cls, value: str | PoolFields | None) -> str | PoolFields | None:
        if value is not None:
            check_known(value)
        return value

    @field_validator("on", mode="before")
    @classmethod
    def _one_alone(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value
