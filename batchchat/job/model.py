"""The fields of a job, their types and bounds."""

from __future__ import annotations

import difflib
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    StringConstraints,
    field_validator,
    model_validator,
)

from batchchat.errors import JobError
from batchchat.providers import PROFILES, Price, Provider, normalize_url
from batchchat.records import TRANSIENT_KINDS, ErrorKind

_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?", re.ASCII)
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(B|kB|KB|MB|GB)?", re.ASCII)
_SIZES = {None: 1, "B": 1, "kB": 1_000, "KB": 1_000, "MB": 1_000_000, "GB": 1_000_000_000}
_MARKUP = re.compile(r"\{\{|\{%|\{#")


def parse_duration(value: object) -> float:
    """Read `90`, `45s`, `15m`, `1h30m` as seconds. Raises ValueError."""
    if isinstance(value, bool):
        raise ValueError("a duration is a number of seconds or a text such as 30s, 15m, 1h")
    if isinstance(value, int | float):
        seconds = float(value)
    else:
        text = str(value).strip().replace(" ", "")
        found = _DURATION.fullmatch(text)
        if text and found and any(found.groups()):
            hours, minutes, rest = (float(part or 0) for part in found.groups())
            seconds = hours * 3600 + minutes * 60 + rest
        else:
            try:
                seconds = float(text)
            except ValueError:
                raise ValueError(f"{value!r} is not a duration such as 30s, 15m, 1h or 1h30m") from None
    if not 0 <= seconds < 366 * 86400:
        raise ValueError("a duration must not be negative or longer than a year")
    return seconds


def _parse_size(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    found = _SIZE.fullmatch(str(value).strip())
    if not found:
        raise ValueError(f"{value!r} is not a size such as 64MB")
    return int(float(found[1]) * _SIZES[found[2]])


Duration = Annotated[float, BeforeValidator(parse_duration)]
Size = Annotated[int, BeforeValidator(_parse_size)]
Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", str_max_length=10_000_000, allow_inf_nan=False)


class Input(_Section):
    """Where the rows are: a file, a folder, a glob, or `-` for standard input."""

    path: str = Field(min_length=1)
    key: str | None = None
    format: Literal["jsonl", "csv", "parquet"] | None = None
    types: dict[str, str] = Field(default_factory=dict)


class Output(_Section):
    """The folder of the dataset, and when a part of it is sealed."""

    path: str = Field(min_length=1)
    part_rows: int = Field(50_000, ge=1, le=10_000_000)
    part_bytes: Size = Field(128_000_000, ge=1_000)
    part_seconds: Duration = Field(60.0, gt=0)


class ProviderFields(_Section):
    """An inline provider, or changes to a profile (`profile:`)."""

    profile: str | None = None
    base_url: str | None = None
    api_key_env: str | None = None
    headers: dict[str, str] = Field(default_factory=dict)
    extra_query: dict[str, str] = Field(default_factory=dict)
    ca_file: str | None = None

    @field_validator("base_url")
    @classmethod
    def _base_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        url = normalize_url(value)
        if url.endswith("/chat/completions"):
            raise ValueError("base_url ends before /chat/completions: " + url.removesuffix("/chat/completions"))
        return url

    @field_validator("api_key_env")
    @classmethod
    def _key_name(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
            # The value is not repeated: it may be the key itself.
            raise ValueError("is the NAME of an environment variable, such as MY_API_KEY, not a key")
        return value

    @field_validator("headers")
    @classmethod
    def _no_secret(cls, value: dict[str, str]) -> dict[str, str]:
        for name, text in value.items():
            if name.lower() in {"authorization", "api-key", "x-api-key", "cookie", "proxy-authorization"}:
                raise ValueError(f"{name} must not stand in a job file: name the key's variable in api_key_env")
            if name.lower() in {"host", "content-length", "content-type", "transfer-encoding", "connection"}:
                raise ValueError(f"{name} is set by batchchat itself")
            if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) or re.search(r"[\r\n\0]", text):
                raise ValueError(f"{name!r} is not a valid header")
        return value

    @model_validator(mode="after")
    def _some_address(self) -> ProviderFields:
        if self.profile is None and self.base_url is None:
            raise ValueError("needs a base_url, or the profile it changes")
        return self


def _number_or_template(low: float, high: float, *, whole: bool = False) -> BeforeValidator:
    def check(value: object) -> object:
        if isinstance(value, str) and _MARKUP.search(value):
            return value
        if isinstance(value, str):
            value = float(value)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError("must be a number, or a template that gives one")
        if not low <= value <= high:
            bound = f"at least {low:g}" if high >= _MANY else f"between {low:g} and {high:g}"
            raise ValueError(f"{value:g} is out of range: it must be {bound}")
        if whole and value != int(value):
            raise ValueError("must be a whole number")
        return int(value) if whole else float(value)

    return BeforeValidator(check)


_MANY = 10_000_000
_Temperature = Annotated[float | str | None, _number_or_template(0, 2)]
_Share = Annotated[float | str | None, _number_or_template(0, 1)]
_Penalty = Annotated[float | str | None, _number_or_template(-2, 2)]
_Count = Annotated[int | str | None, _number_or_template(1, _MANY, whole=True)]
_Choices = Annotated[int | str | None, _number_or_template(1, 128, whole=True)]
_Top = Annotated[int | str | None, _number_or_template(0, 20, whole=True)]
_Seed = Annotated[int | str | None, _number_or_template(-(2**63), 2**63 - 1, whole=True)]


class Params(_Section):
    """What goes into each request beside model and messages. A value may be a template over the row."""

    temperature: _Temperature = None
    top_p: _Share = None
    max_tokens: _Count = None
    max_completion_tokens: _Count = None
    presence_penalty: _Penalty = None
    frequency_penalty: _Penalty = None
    n: _Choices = None
    stop: str | list[str] | None = None
    seed: _Seed = None
    logprobs: bool | None = None
    top_logprobs: _Top = None
    logit_bias: dict[str, float] | None = None
    user: str | None = None
    response_format: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    service_tier: str | None = None
    extra_body: dict[str, Any] = Field(default_factory=dict)

    @field_validator("n")
    @classmethod
    def _one_answer(cls, value: object) -> object:
        if value not in (None, 1):
            raise ValueError("more than one choice a request is not supported: each row has one completion")
        return value

    @field_validator("stop")
    @classmethod
    def _few_stops(cls, value: str | list[str] | None) -> str | list[str] | None:
        if isinstance(value, list) and len(value) > 4:
            raise ValueError("takes at most 4 texts")
        return value

    @field_validator("extra_body")
    @classmethod
    def _no_clash(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in ("model", "messages", "stream", "n"):
            if name in value:
                raise ValueError(f"{name} cannot be set here: batchchat reads the answer by it")
        clash = sorted(set(value) & set(cls.model_fields))
        if clash:
            raise ValueError(f"{clash[0]} is a param of its own: set it in params, not in extra_body")
        return value

    def as_body(self) -> dict[str, Any]:
        """The params that are set, in the author's order, `extra_body` still apart."""
        return self.model_dump(exclude_unset=True, exclude_none=True)


class Limits(_Section):
    """Ceilings that are never passed. One that is not set comes from the provider, or is learned."""

    requests_per_minute: int | None = Field(None, ge=1)
    tokens_per_minute: int | None = Field(None, ge=1)
    concurrency: int | None = Field(None, ge=1, le=20_000)


FailedPolicy = Literal["none", "transient", "all"]


class Retry(_Section):
    """How long to try: a row, a request, a provider."""

    attempts: int = Field(6, ge=1, le=100)
    request_timeout: Duration = Field(310.0, gt=0)
    row_deadline: Duration = Field(900.0, gt=0)
    outage: Duration = Field(600.0, gt=0)
    failed: FailedPolicy | list[ErrorKind] = "transient"

    def reopens(self) -> frozenset[ErrorKind]:
        """The kinds of failure that the next run tries again."""
        return failed_kinds(self.failed)


def failed_kinds(policy: FailedPolicy | Sequence[ErrorKind]) -> frozenset[ErrorKind]:
    """Turn `none | transient | all | [kinds]` into the set of kinds."""
    if policy == "none":
        return frozenset()
    if policy == "transient":
        return TRANSIENT_KINDS
    if policy == "all":
        return frozenset(ErrorKind)
    return frozenset(ErrorKind(kind) for kind in policy)


class Prices(_Section):
    """Money per million tokens; wins over the provider's profile."""

    input: float = Field(ge=0)
    output: float = Field(ge=0)
    cached_input: float | None = Field(None, ge=0)
    currency: str = Field(pattern=r"^[A-Z]{3}$")


def nearest(name: str, known: Mapping[str, object] | Sequence[str]) -> str:
    """` (did you mean 'x'?)`, or nothing where no known name is near."""
    near = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.6)
    return f" (did you mean {near[0]!r}?)" if near else ""


def line_of(lines: Mapping[tuple[Hashable, ...], int], path: tuple[Hashable, ...]) -> int | None:
    """The line of a field, or of the nearest one around it that has a line."""
    while path:
        if path in lines:
            return lines[path]
        path = path[:-1]
    return None


class Job(_Section):
    """One prompt over many rows: what a job file says, validated, with all paths absolute."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
    input: Input
    output: Output
    provider: str | ProviderFields
    model: Name
    messages: list[dict[str, Any]] | dict[str, Any]
    params: Params = Params()
    limits: Limits = Limits()
    retry: Retry = Retry()
    prices: Prices | None = None

    _file: Path | None = PrivateAttr(None)
    _lines: dict[tuple[Hashable, ...], int] = PrivateAttr(default_factory=dict)

    @field_validator("input", "output", mode="before")
    @classmethod
    def _path_alone(cls, value: object) -> object:
        return {"path": value} if isinstance(value, str) else value

    @field_validator("provider")
    @classmethod
    def _known_provider(cls, value: str | ProviderFields) -> str | ProviderFields:
        name = value if isinstance(value, str) else value.profile
        if name is not None and name not in PROFILES:
            raise ValueError(
                f"no provider is called {name!r}{nearest(name, PROFILES)}; known are {', '.join(PROFILES)}, "
                "or give {base_url: …, api_key_env: …}"
            )
        return value

    @field_validator("messages")
    @classmethod
    def _some_message(cls, value: Any) -> Any:
        if not value:
            raise ValueError("needs at least one message")
        return value

    @property
    def file(self) -> Path | None:
        """The job file, None for a job that was made in Python."""
        return self._file

    def error(self, message: str, *path: Hashable, remedy: str | None = None) -> JobError:
        """Make an error that points to a field of this job by its place in the file."""
        return JobError(
            message,
            file=self._file,
            line=line_of(self._lines, path),
            field=".".join(str(part) for part in path) or None,
            remedy=remedy,
        )

    def resolved_provider(self) -> Provider:
        """The provider with this job's own address, headers, prices and limits put over its profile."""
        spec = self.provider
        if isinstance(spec, str):
            provider = PROFILES[spec]
        else:
            provider = PROFILES[spec.profile] if spec.profile else Provider(name="custom", base_url=None, identity="")
            if spec.base_url:
                identity = spec.profile if spec.profile == "demo" else spec.base_url
                provider = replace(provider, base_url=spec.base_url, identity=identity or spec.base_url)
            provider = replace(
                provider,
                api_key_env=spec.api_key_env or provider.api_key_env,
                headers={**provider.headers, **spec.headers},
                extra_query={**provider.extra_query, **spec.extra_query},
                ca_file=spec.ca_file or provider.ca_file,
            )
        if self.prices is not None:
            price = Price(self.prices.input, self.prices.output, self.prices.cached_input)
            provider = replace(
                provider,
                prices={self.model: price},
                currency=self.prices.currency,
                prices_as_of="the job file",
            )
        return provider

    def check_params(self, provider: Provider) -> None:
        """Refuse a param that the provider does not support, with the line that sets it."""
        for name in self.params.model_fields_set:
            if name in provider.unsupported and getattr(self.params, name) is not None:
                raise self.error(
                    f"{provider.name} does not support {name}; what its server would do with it is not documented",
                    "params",
                    name,
                    remedy=f"Remove params.{name} from the job.",
                )

    def snapshot(self) -> dict[str, Any]:
        """The job as plain JSON, to be kept beside its output. It holds no key: keys never stand in a job."""
        return {
            **self.model_dump(mode="json", exclude_unset=True),
            "file": str(self._file) if self._file else None,
        }


FIELDS: Mapping[tuple[str, ...], type[BaseModel]] = {
    (): Job,
    ("input",): Input,
    ("output",): Output,
    ("provider",): ProviderFields,
    ("params",): Params,
    ("limits",): Limits,
    ("retry",): Retry,
    ("prices",): Prices,
}
"""The section that stands at each place of a job."""
