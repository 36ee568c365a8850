"""The fields of a job's own provider."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, urlsplit

from pydantic import Field, field_validator, model_validator

from batchchat.job.secret_names import LIKE_A_KEY, is_secret_name
from batchchat.job.values import Section
from batchchat.providers import Transport, normalize_url

_OWN_HEADERS = frozenset(
    {"host", "content-length", "content-type", "transfer-encoding", "te", "trailer", "expect"}
    | {"connection", "keep-alive", "upgrade"}
)


class ProviderFields(Section):
    """An inline provider, or changes to a profile (`profile:`)."""

    profile: str | None = None
    base_url: str | None = None
    api_key_env: str | None = None
    headers: dict[str, str] = Field(default_factory=dict)
    extra_query: dict[str, str] = Field(default_factory=dict)
    ca_file: str | None = None
    stream_options: bool | None = None
    transport: Transport | None = None

    @field_validator("base_url")
    @classmethod
    def _base_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        url = normalize_url(value)
        parts = urlsplit(url)
        if parts.path.endswith("/chat/completions"):
            before = parts.path.removesuffix("/chat/completions")
            raise ValueError(f"must end before /chat/completions: {parts.scheme}://{parts.netloc}{before}")
        for name, _ in parse_qsl(parts.query, keep_blank_values=True):
            if is_secret_name(name, bare_key=True):
                raise ValueError(f"{name} must not stand in an address: name the key's variable in api_key_env")
        return url

    @field_validator("api_key_env")
    @classmethod
    def _key_name(cls, value: str | None) -> str | None:
        # The value is not repeated: it may be the key itself.
        if value is not None and (not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value) or LIKE_A_KEY.fullmatch(value)):
            raise ValueError("must be the NAME of an environment variable, such as MY_API_KEY, not a key")
        return value

    @field_validator("headers")
    @classmethod
    def _no_secret_header(cls, value: dict[str, str]) -> dict[str, str]:
        for name, text in value.items():
            if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):
                raise ValueError(f"{name!r} is not a valid name of a header")
            if is_secret_name(name, bare_key=True) or re.match(r"(?i)(?:bearer|basic)\s", text):
                raise ValueError(f"{name} must not stand in a job: name the key's variable in api_key_env")
            if name.lower() in _OWN_HEADERS:
                raise ValueError(f"{name} is set by batchchat itself: leave it out")
            if not re.fullmatch(r"[\t\x20-\x7e]*", text):
                raise ValueError(f"the value of {name} must be one line of plain ASCII characters")
        return value

    @field_validator("extra_query")
    @classmethod
    def _no_secret_query(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if is_secret_name(name, bare_key=True):
                raise ValueError(f"{name} must not stand in a job: name the key's variable in api_key_env")
        return value

    @model_validator(mode="after")
    def _some_address(self) -> ProviderFields:
        if self.profile is None and self.base_url is None:
            raise ValueError("needs a base_url, or the profile it changes")
        return self
