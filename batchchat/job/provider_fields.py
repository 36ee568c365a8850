"""The fields of a job's own provider."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from pydantic import Field, field_validator, model_validator

from batchchat.job.secret_names import LIKE_A_KEY, is_secret_name
from batchchat.job.values import Section
from batchchat.providers import Transport, normalize_url

HEADER_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
KEY_PLACES = ("api_key_env", "api_key_file", "api_key_command")
"""The fields that say where the key comes from."""
_KEY_WORD = re.compile(r"(?:sk|gsk|xai|hf|tok|key)[-_][A-Za-z0-9_-]{16,}")
"""What the keys of well-known services look like. Other arguments with digits may be the names of accounts."""
_SHELL_WORDS = frozenset({"|", "||", "&&", ";", ">", ">>", "<", "2>", "&"})
_OWN_HEADERS = frozenset(
    {"host", "content-length", "content-type", "transfer-encoding", "te", "trailer", "expect"}
    | {"connection", "keep-alive", "upgrade"}
)


class ProviderFields(Section):
    """An inline provider, or changes to a profile (`profile:`).

    The key comes from a variable of the environment, from a file, or from a command that prints it: one of the three.
    """

    profile: str | None = None
    base_url: str | None = None
    api_key_env: str | None = None
    api_key_file: str | None = Field(None, min_length=1)
    api_key_command: str | list[str] | None = None
    api_key_header: str | None = None
    api_key_scheme: str | None = None
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
                raise ValueError(f"{name} must not stand in an address: name the key's place in api_key_env")
        return url

    @field_validator("api_key_env")
    @classmethod
    def _key_name(cls, value: str | None) -> str | None:
        # The value is not repeated: it may be the key itself.
        if value is not None and (not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value) or LIKE_A_KEY.fullmatch(value)):
            raise ValueError("must be the NAME of an environment variable, such as MY_API_KEY, not a key")
        return value

    @field_validator("api_key_file")
    @classmethod
    def _key_file(cls, value: str | None) -> str | None:
        # The value is not repeated: it may be the key itself, which no file is called.
        name = Path(value).name if value is not None else ""
        if value is not None and LIKE_A_KEY.fullmatch(name) and "." not in name and not Path(value).exists():
            raise ValueError("must be the path of a file that holds the key, not a key")
        return value

    @field_validator("api_key_command", mode="before")
    @classmethod
    def _key_command(cls, value: object) -> object:
        # The value is not repeated: it may hold the key itself.
        if value is None:
            return None
        words: object = value
        if isinstance(value, str):
            try:
                words = shlex.split(value)
            except ValueError:
                raise ValueError("has a quote that is not closed") from None
        if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words):
            raise ValueError("must be a command, such as `gcloud auth print-access-token`, or a list of its words")
        if not words or not words[0].strip():
            raise ValueError("must not be empty: name the program that prints the key")
        if any("\0" in word for word in words):
            raise ValueError("must not hold a null character")
        if any(_KEY_WORD.fullmatch(word) for word in words):
            raise ValueError("must not hold a key: others can see the arguments of a program; use api_key_file")
        shell = next((word for word in words if word in _SHELL_WORDS), None)
        if isinstance(value, str) and shell is not None:
            raise ValueError(f"runs without a shell, so {shell} means nothing in it: write [sh, -c, '…']")
        return value

    @field_validator("api_key_header")
    @classmethod
    def _key_header(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(HEADER_NAME, value):
            raise ValueError("must be the name of a header, such as api-key")
        if value is not None and value.lower() in _OWN_HEADERS:
            raise ValueError(f"{value} is set by batchchat itself: name another header")
        return value

    @field_validator("api_key_scheme")
    @classmethod
    def _key_scheme(cls, value: str | None) -> str | None:
        if value and not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,40}", value):
            raise ValueError("must be one word, such as Bearer, or empty")
        if value and LIKE_A_KEY.fullmatch(value):
            raise ValueError("must be the word before the key, such as Bearer, not a key")
        return value

    @field_validator("headers")
    @classmethod
    def _no_secret_header(cls, value: dict[str, str]) -> dict[str, str]:
        for name, text in value.items():
            if not re.fullmatch(HEADER_NAME, name):
                raise ValueError(f"{name!r} is not a valid name of a header")
            if is_secret_name(name, bare_key=True) or re.match(r"(?i)(?:bearer|basic)\s", text):
                raise ValueError(f"{name} must not stand in a job: name the key's place in api_key_env")
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
                raise ValueError(f"{name} must not stand in a job: name the key's place in api_key_env")
        return value

    @model_validator(mode="after")
    def _some_address(self) -> ProviderFields:
        if self.profile is None and self.base_url is None:
            raise ValueError("needs a base_url, or the profile it changes")
        return self

    @model_validator(mode="after")
    def _one_key(self) -> ProviderFields:
        given = [name for name in KEY_PLACES if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are ways to the same key: keep one of them")
        return self
