"""A job: a validated job file.

`load_job` reads the YAML, applies `--set` overrides and validates every field; whatever is wrong is told with file,
line and remedy, all of it at once. Paths in a job file are relative to that file. The result is immutable; nothing
here touches the network or the output.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from batchchat.errors import JobError, UsageError
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


class Job(_Section):
    """One prompt over many rows: what a job file says, validated, with all paths absolute."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
    input: Input
    output: Output
    provider: str | ProviderFields
    model: Name
    messages: list[dict[str, Any]] | dict[Literal["from"], str]
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
                f"no provider is called {name!r}{_nearest(name, PROFILES)}; known are {', '.join(PROFILES)}, "
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
            line=_line_of(self._lines, path),
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


def load_job(
    path: str | Path,
    *,
    overrides: Sequence[str] = (),
    input: str | None = None,
    output: str | None = None,
) -> Job:
    """Read and validate a job file.

    `overrides` are `dotted.path=value` texts with YAML values, as `--set` takes them. `input` and `output`, relative to the
    current folder, take the place of the file's own. Raises JobError.
    """
    file = Path(path)
    text = _read_job_text(file)
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise _yaml_error(error, file) from None
    if not isinstance(data, dict) or not isinstance(node, yaml.MappingNode):
        raise JobError("is not a mapping of fields", file=file, remedy="`batchchat init` writes a job to start from.")
    lines = dict(_walk(node, (), file))
    base = file.absolute().parent
    _resolve_paths(data, base, lines, file)
    for override in overrides:
        _apply_override(data, override)
    if input is not None:
        _section(data, "input")["path"] = input if input == "-" else str(Path(input).absolute())
    if output is not None:
        _section(data, "output")["path"] = str(Path(output).absolute())
    return validate_job(data, file=file, lines=lines)


def validate_job(
    data: Mapping[str, Any],
    *,
    file: Path | None = None,
    lines: Mapping[tuple[Hashable, ...], int] | None = None,
) -> Job:
    """Validate a job given as plain data. Raises JobError that lists everything that is wrong."""
    lines = lines or {}
    try:
        job = Job.model_validate(data)
    except ValidationError as error:
        raise _validation_error(error, data, file, lines) from None
    job._file = file  # noqa: SLF001 - pydantic's private attributes are set after validation
    job._lines = dict(lines)  # noqa: SLF001
    return job


def load_keys(job: Job, environ: Mapping[str, str] | None = None) -> Mapping[str, str]:
    """The environment, with a `.env` beside the job under it; read as text, without expansion."""
    environ = os.environ if environ is None else environ
    dotenv = job.file.absolute().parent / ".env" if job.file else None
    if dotenv is None or not dotenv.is_file():
        return environ
    from dotenv import dotenv_values

    values = dotenv_values(dotenv, interpolate=False)
    return {**{name: value for name, value in values.items() if value is not None}, **environ}


def api_key(job: Job, provider: Provider, environ: Mapping[str, str]) -> str | None:
    """The provider's key from the environment. Raises JobError (exit 2) where it is needed and missing."""
    if provider.api_key_env is None:
        return None
    key = environ.get(provider.api_key_env, "").strip()
    if not key:
        raise job.error(
            f"{provider.name} needs a key, and the environment variable {provider.api_key_env} is not set",
            "provider",
            remedy=f"Set it with `export {provider.api_key_env}=…`, or write it into a .env beside the job.",
        )
    if not key.isascii() or not key.isprintable():
        raise job.error(f"the key in {provider.api_key_env} holds characters that no key has", "provider")
    return key


# --- reading the file


def _read_job_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        near = difflib.get_close_matches(file.name, _names_beside(file), n=1)
        hint = f"Did you mean {file.parent / near[0]}?" if near else "`batchchat init` writes a job to start from."
        raise UsageError(f"{file}: no such job file", remedy=hint) from None
    except IsADirectoryError:
        raise UsageError(f"{file} is a folder, not a job file") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{file}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from None


def _names_beside(file: Path) -> list[str]:
    try:
        return [entry.name for entry in file.parent.iterdir()]
    except OSError:
        return []


def _yaml_error(error: yaml.YAMLError, file: Path) -> JobError:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    remedy = "A text that holds `{{`, `: ` or `#` must stand in quotes." if mark is not None else None
    return JobError(
        f"is not valid YAML: {problem}",
        file=file,
        line=mark.line + 1 if mark is not None else None,
        remedy=remedy,
    )


def _walk(node: yaml.Node, place: tuple[Hashable, ...], file: Path) -> Iterator[tuple[tuple[Hashable, ...], int]]:
    """Yield each field's place and line; refuse a field that stands twice, which YAML would silently merge."""
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in seen and name != "<<":
                raise JobError(f"stands twice (first in line {seen[name]})", file=file, line=line, field=name)
            seen[name] = line
            yield (*place, name), line
            yield from _walk(value, (*place, name), file)
    elif isinstance(node, yaml.SequenceNode):
        for position, value in enumerate(node.value):
            yield (*place, position), value.start_mark.line + 1
            yield from _walk(value, (*place, position), file)


def _section(data: dict[str, Any], name: str) -> dict[str, Any]:
    value = data.get(name)
    if isinstance(value, dict):
        return value
    section: dict[str, Any] = {"path": value} if isinstance(value, str) else {}
    data[name] = section
    return section


def _resolve_paths(data: dict[str, Any], base: Path, lines: dict[tuple[Hashable, ...], int], file: Path) -> None:
    for name in ("input", "output"):
        value = data.get(name)
        path = value.get("path") if isinstance(value, dict) else value
        if isinstance(path, str) and path and path != "-":
            _section(data, name)["path"] = os.path.normpath(base / Path(path).expanduser())
    provider = data.get("provider")
    if isinstance(provider, dict) and isinstance(provider.get("ca_file"), str):
        provider["ca_file"] = str(base / Path(provider["ca_file"]).expanduser())
    messages = data.get("messages")
    if isinstance(messages, str):
        data["messages"] = _load_messages(base / Path(messages).expanduser(), file, lines.get(("messages",)))


def _load_messages(path: Path, file: Path, line: int | None) -> Any:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise JobError(
            f"the template file {path} cannot be read: {reason}", file=file, line=line, field="messages"
        ) from None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise _yaml_error(error, path) from None


def _apply_override(data: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    path = name.strip().split(".")
    if not equals or not all(path):
        raise UsageError(
            f"--set {override}: is not of the form field.path=value",
            remedy="Example: --set limits.concurrency=64",
        )
    try:
        value = yaml.safe_load(text) if text else ""
    except yaml.YAMLError:
        value = text
    if (
        path[0] in {"input", "output"}
        and (path[1:] == ["path"] or len(path) == 1)
        and isinstance(value, str)
        and value != "-"
    ):
        value = str(Path(value).expanduser().absolute())
    if path == ["messages"] and isinstance(value, str):
        value = _load_messages(Path(value).expanduser().absolute(), Path("--set"), None)
    target: Any = data
    if path[0] in {"input", "output"} and len(path) > 1:
        _section(data, path[0])
    for position, part in enumerate(path[:-1]):
        step: Any = _child(target, part, override)
        if step is None:
            step = {}
            target[part] = step
        if not isinstance(step, dict | list):
            if path[position] == "provider" and isinstance(step, str):
                step = {"profile": step}
                target[part] = step
            else:
                raise UsageError(f"--set {override}: {'.'.join(path[: position + 1])} has no fields of its own")
        target = step
    _child(target, path[-1], override)
    if isinstance(target, list):
        target[int(path[-1])] = value
    else:
        target[path[-1]] = value


def _child(target: Any, part: str, override: str) -> Any:
    if isinstance(target, list):
        if not part.isdecimal() or int(part) >= len(target):
            raise UsageError(f"--set {override}: {part} is no position in a list of {len(target)} (the first is 0)")
        return target[int(part)]
    return target.get(part)


# --- telling what is wrong


def _nearest(name: str, known: Mapping[str, object] | Sequence[str]) -> str:
    near = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.6)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _line_of(lines: Mapping[tuple[Hashable, ...], int], path: tuple[Hashable, ...]) -> int | None:
    while path:
        if path in lines:
            return lines[path]
        path = path[:-1]
    return None


def _fields_at(path: tuple[Hashable, ...]) -> list[str]:
    """The field names that the job model knows at a place, for suggestions."""
    model: Any = Job
    for part in path:
        section = {
            "input": Input,
            "output": Output,
            "provider": ProviderFields,
            "params": Params,
            "limits": Limits,
        }
        section |= {"retry": Retry, "prices": Prices}
        model = section.get(str(part), None)
        if model is None:
            return []
    return list(model.model_fields)


def _place(error: Mapping[str, Any], data: Mapping[str, Any]) -> tuple[Hashable, ...]:
    """pydantic's location without the parts that name a union's member."""
    place: list[Hashable] = []
    value: Any = data
    for part in error["loc"]:
        if isinstance(value, dict) and (part in value or error["type"] in {"missing", "extra_forbidden"}):
            known = part in value or part in _fields_at(tuple(place))
            if not known:
                continue
            place.append(part)
            value = value.get(part)
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            place.append(part)
            value = value[part]
    return tuple(place)


_HINTS = {
    "stream": "is not a param here: answers are read whole",
    "rpm": "use requests_per_minute",
    "tpm": "use tokens_per_minute",
    "api_key": "a key never stands in a job file: name its variable in api_key_env",
}


def _message(error: Mapping[str, Any], place: tuple[Hashable, ...]) -> str:
    kind = error["type"]
    if kind == "extra_forbidden":
        name, known = str(place[-1]), _fields_at(place[:-1])
        hint = _HINTS.get(name)
        if hint:
            return f"is not a field; {hint}"
        return f"is not a field{_nearest(name, known)}" + (f"; known are {', '.join(known)}" if known else "")
    if kind == "missing":
        return "is missing"
    if kind == "value_error":
        return str(error["ctx"]["error"])
    text = str(error["msg"])
    shown = error.get("input")
    if isinstance(shown, str | int | float) and place and "key" not in str(place[-1]):
        text += f", not {json.dumps(shown, ensure_ascii=False)[:80]}"
    return text[0].lower() + text[1:]


def _validation_error(
    error: ValidationError,
    data: Mapping[str, Any],
    file: Path | None,
    lines: Mapping[tuple[Hashable, ...], int],
) -> JobError:
    problems: dict[tuple[Hashable, ...], JobError] = {}
    for item in error.errors(include_url=False):
        place = _place(item, data)
        made = JobError(
            _message(item, place),
            file=file,
            line=_line_of(lines, place),
            field=".".join(str(part) for part in place) or None,
        )
        # A union reports each member's complaint: the most specific one, said first, is enough for a place.
        problems.setdefault(place, made)
    ordered = [problems[place] for place in problems if not _covered(place, problems)]
    first = ordered[0]
    if len(ordered) == 1:
        return first
    combined = JobError("\n".join(problem.message for problem in ordered))
    combined.file, combined.line, combined.field = file, first.line, first.field
    return combined


def _covered(place: tuple[Hashable, ...], problems: Mapping[tuple[Hashable, ...], object]) -> bool:
    """Whether a problem deeper inside the same field says it better."""
    return any(len(other) > len(place) and other[: len(place)] == place for other in problems)
