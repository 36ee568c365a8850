"""The fields of a job, their types and bounds."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import parse_qsl, urlsplit

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
from batchchat.images import MAX_BYTES
from batchchat.job.origin import Origin, Place, combined, job_error
from batchchat.providers import PROFILES, Price, Provider, Transport, normalize_url
from batchchat.records import TRANSIENT_KINDS, ErrorKind

_NUMBER_TEXT = r"\d{1,300}(?:\.\d{0,300})?"
_NUMBER = re.compile(rf"[+-]?{_NUMBER_TEXT}(?:[eE][+-]?\d{{1,3}})?", re.ASCII)
_DURATION = re.compile(rf"(?:({_NUMBER_TEXT})h)?\s*(?:({_NUMBER_TEXT})m)?\s*(?:({_NUMBER_TEXT})s)?", re.ASCII)
_SIZE = re.compile(rf"({_NUMBER_TEXT})\s*([kMG]?i?B)?", re.ASCII | re.IGNORECASE)
_SIZES = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_YEAR_S = 366 * 86400
_MARKUP = re.compile(r"\{\{|\{%|\{#")
_SECRET_NAME = re.compile(
    r"(?:^|[-_])(?:authori[sz]ation|auth|cookie|passw(?:or)?d|secret|token|credentials?|sig|signature"
    r"|(?:api|access|auth|private|subscription)[-_]?key)(?:$|[-_])",
    re.IGNORECASE,
)
_LIKE_A_KEY = re.compile(r"(?=.*[a-z])(?=.*\d).{20,}")


_GROUPED = re.compile(r"[+-]?\d{1,3}(?:_\d{3})+(?:\.\d*)?", re.ASCII)
_BASED = re.compile(r"[+-]?0(?:x[0-9a-f]+|b[01]+|o[0-7]+)", re.ASCII | re.IGNORECASE)
_CLOCK = re.compile(r"\d{1,9}(?::[0-5]?\d){1,2}", re.ASCII)
_TRUE, _FALSE = frozenset({"true", "yes", "on", "y"}), frozenset({"false", "no", "off", "n"})


def is_secret_name(name: str, *, bare_key: bool = False) -> bool:
    """Whether a value under this name is likely a secret; with `bare_key` also under a plain `key` or `…-key`."""
    return bool(_SECRET_NAME.search(name)) or (bare_key and bool(re.search(r"(?i)(?:^|[-_])key$", name)))


def parse_duration(value: object) -> float:
    """Read `90`, `45s`, `15m`, `1h30m` as seconds. Raises ValueError."""
    seconds = math.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value) if -_YEAR_S < value < _YEAR_S else math.inf
    elif isinstance(value, str):
        text = _ungrouped(value.strip())
        found = _DURATION.fullmatch(text)
        if _NUMBER.fullmatch(text):
            seconds = float(text)
        elif text and found and any(found.groups()):
            hours, minutes, rest = (float(part or 0) for part in found.groups())
            seconds = hours * 3600 + minutes * 60 + rest
        elif _CLOCK.fullmatch(text):
            # `1:30` is a minute and a half, as YAML 1.1 reads it.
            seconds = 0.0
            for part in text.split(":"):
                seconds = seconds * 60 + int(part)
    if math.isnan(seconds):
        raise ValueError(f"must be a duration such as 30s, 15m, 1h or 1h30m{_not(value)}")
    if not 0 <= seconds < _YEAR_S:
        raise ValueError("a duration must not be negative or longer than a year")
    return seconds


def write_duration(seconds: float) -> str:
    """Write seconds as a job does: `50m`, `1h30m`, `2.5s`."""
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    parts = [f"{hours}h"] * bool(hours) + [f"{minutes}m"] * bool(minutes) + [f"{rest:g}s"] * bool(rest)
    return "".join(parts) or "0s"


def _parse_size(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    found = _SIZE.fullmatch(_ungrouped(value.strip())) if isinstance(value, str) else None
    if not found:
        raise ValueError(f"must be a size such as 64MB{_not(value)}")
    size = float(found[1]) * _SIZES[(found[2] or "B").lower()]
    if not size < 2**63:
        raise ValueError(f"{str(value)[:40]} is larger than anything")
    return int(size)


def _not(value: object) -> str:
    if value is None:
        return ", and it is empty"
    if isinstance(value, Mapping | Sequence) and not isinstance(value, str):
        return ", not a mapping" if isinstance(value, Mapping) else ", not a list"
    return f", not {value[:40]!r}" if isinstance(value, str) else f", not {_shown(value)}"


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    # Python refuses to write an integer of thousands of digits.
    return f"{value:g}" if isinstance(value, float) else str(value) if value in range(-(2**63), 2**63) else "that much"


def _ungrouped(text: str) -> str:
    """Return a number without the marks between its digits: `1_000` is 1000."""
    return text.replace("_", "") if _GROUPED.fullmatch(text) else text


def _parse_number(value: object) -> object:
    """Read texts such as `1e3`, `1_000` and `0x10` as numbers; a boolean is none. Raises ValueError."""
    if isinstance(value, bool):
        raise ValueError(f"must be a number{_not(value)}")
    if not isinstance(value, str):
        return value
    text = _ungrouped(value.strip())
    if _BASED.fullmatch(text):
        return int(text, 0)
    if re.fullmatch(r"[+-]?0\d+", text, re.ASCII):
        # YAML 1.1 reads it in base eight, people in base ten.
        raise ValueError(f"must be a number without a leading zero{_not(value)}")
    if _NUMBER.fullmatch(text):
        number = float(text)
        return int(number) if number.is_integer() and abs(number) < 2**53 else number
    return value


Duration = Annotated[float, BeforeValidator(parse_duration)]
Size = Annotated[int, BeforeValidator(_parse_size)]
Whole = Annotated[int, BeforeValidator(_parse_number)]
Number = Annotated[float, BeforeValidator(_parse_number)]
Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", str_max_length=10_000_000, allow_inf_nan=False)


class Input(_Section):
    """Where the rows are: a file, a folder, a glob, or `-` for standard input."""

    path: str = Field(min_length=1)
    key: str | None = None
    format: Literal["jsonl", "csv", "tsv", "parquet", "openai-batch"] | None = None
    types: dict[str, str] = Field(default_factory=dict)
    encoding: str | None = None
    header: bool | list[Name] = True
    quoting: bool | None = None

    @field_validator("header")
    @classmethod
    def _names(cls, value: bool | list[str]) -> bool | list[str]:
        if isinstance(value, list):
            if not value:
                raise ValueError("must be true, false, or the names of the columns in their order")
            twice = next((name for name in value if value.count(name) > 1), None)
            if twice is not None:
                raise ValueError(f"names {twice!r} twice: give each column a name of its own")
        return value

    @model_validator(mode="before")
    @classmethod
    def _lines_of_a_batch(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("format") != BATCH_FORMAT:
            return data
        if data.get("key") not in (None, BATCH_KEY):
            raise ValueError(f"the key of a batch file is its {BATCH_KEY}: leave key out")
        if data.get("types"):
            raise ValueError("the fields of a batch file have their own types: leave types out")
        if not {"header", "quoting"}.isdisjoint(data):
            raise ValueError("a batch file is JSON Lines: leave header and quoting out")
        return {**data, "key": BATCH_KEY}


_FILE_SUFFIXES = frozenset({".parquet", ".jsonl", ".json", ".csv", ".xlsx"})


class Output(_Section):
    """The folder of the dataset, and when a part of it is sealed."""

    path: str = Field(min_length=1)
    part_rows: Whole = Field(50_000, ge=1, le=10_000_000)
    part_bytes: Size = Field(32_000_000, ge=1_000, le=100_000_000_000)
    part_seconds: Duration = Field(60.0, gt=0)

    @field_validator("path")
    @classmethod
    def _folder(cls, value: str) -> str:
        # A folder that an earlier version made goes on working.
        if Path(value).suffix.lower() in _FILE_SUFFIXES and not Path(value).is_dir():
            raise ValueError(
                f"is a folder, and {Path(value).name} looks like a file: name a folder; "
                f"`batchchat export DIR -o {Path(value).name}` writes one file"
            )
        return value


BATCH_FORMAT = "openai-batch"
BATCH_KEY = "custom_id"

_OWN_HEADERS = frozenset(
    {"host", "content-length", "content-type", "transfer-encoding", "te", "trailer", "expect"}
    | {"connection", "keep-alive", "upgrade"}
)


class ProviderFields(_Section):
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
        if value is not None and (not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value) or _LIKE_A_KEY.fullmatch(value)):
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


def _number_or_template(low: float, high: float, *, whole: bool = False) -> BeforeValidator:
    def check(value: object) -> object:
        if value is None or (isinstance(value, str) and _MARKUP.search(value)):
            return value
        value = _parse_number(value)
        if not isinstance(value, int | float):
            raise ValueError(f"must be a number, or a template that gives one{_not(value)}")
        if not low <= value <= high:
            bound = f"at least {low:g}" if high == _MANY else f"between {low:g} and {high:g}"
            raise ValueError(f"must be {bound}{_not(value)}")
        if whole and value != int(value):
            raise ValueError(f"must be a whole number, not {value:g}")
        return int(value) if whole else float(value)

    return BeforeValidator(check)


def _parse_boolean(value: object) -> object:
    """Read `yes`, `no`, `on` and `off`, which older versions of YAML call booleans; leave anything else as it is."""
    word = value.strip().lower() if isinstance(value, str) else ""
    return True if word in _TRUE else False if word in _FALSE else value


def _or_template(kind: type, noun: str) -> BeforeValidator:
    def check(value: object) -> object:
        value = _parse_boolean(value) if kind is bool else value
        if value is None or isinstance(value, kind) or (isinstance(value, str) and _MARKUP.search(value)):
            return value
        raise ValueError(f"must be {noun}, or a template that gives one{_not(value)}")

    return BeforeValidator(check)


def _true_or_false(value: object) -> object:
    value = _parse_boolean(value)
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"must be true or false, the same for all rows{_not(value)}")
    return value


_MANY = 10_000_000
_Temperature = Annotated[float | str | None, _number_or_template(0, 2)]
_Share = Annotated[float | str | None, _number_or_template(0, 1)]
_Penalty = Annotated[float | str | None, _number_or_template(-2, 2)]
_Count = Annotated[int | str | None, _number_or_template(1, _MANY, whole=True)]
_Choices = Annotated[int | str | None, _number_or_template(1, 128, whole=True)]
_Top = Annotated[int | str | None, _number_or_template(0, 20, whole=True)]
_Seed = Annotated[int | str | None, _number_or_template(-(2**63), 2**63 - 1, whole=True)]
_Flag = Annotated[bool | str | None, _or_template(bool, "true or false")]
_Switch = Annotated[bool | None, BeforeValidator(_true_or_false)]
_Mapping = Annotated[dict[str, Any] | str | None, _or_template(dict, "a mapping")]
_Tools = Annotated[list[dict[str, Any]] | str | None, _or_template(list, "a list of tools")]


class Params(_Section):
    """What goes into each request beside model and messages. A value may be a template over the row.

    `stream` says how an answer travels, not what is asked: it is no part of `custom_id`, so that a job whose rows are
    done may be switched to streaming and back without asking, and paying for, anything again.
    """

    temperature: _Temperature = None
    top_p: _Share = None
    max_tokens: _Count = None
    max_completion_tokens: _Count = None
    presence_penalty: _Penalty = None
    frequency_penalty: _Penalty = None
    n: _Choices = None
    stop: str | list[str] | None = None
    seed: _Seed = None
    logprobs: _Flag = None
    top_logprobs: _Top = None
    logit_bias: dict[str, float] | None = None
    user: str | None = None
    response_format: _Mapping = None
    tools: _Tools = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: _Flag = None
    reasoning_effort: str | None = None
    service_tier: str | None = None
    stream: _Switch = None
    extra_body: dict[str, Any] = Field(default_factory=dict)

    @field_validator("n")
    @classmethod
    def _one_answer(cls, value: object) -> object:
        if value not in (None, 1):
            raise ValueError("must be 1, or left out: `samples: N` of the job asks each row N times")
        return value

    @field_validator("stop")
    @classmethod
    def _few_stops(cls, value: str | list[str] | None) -> str | list[str] | None:
        if isinstance(value, list) and len(value) > 4:
            raise ValueError(f"must not hold more than 4 texts, and holds {len(value)}")
        return value

    @field_validator("extra_body")
    @classmethod
    def _no_clash(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if name in {"model", "messages", "stream_options", "n"}:
                instead = "; `samples: N` of the job asks each row N times" if name == "n" else ""
                raise ValueError(f"{name} cannot be set here: batchchat reads the answer by it{instead}")
            if name in cls.model_fields:
                raise ValueError(f"{name} is a param of its own: set it in params, not in extra_body")
            if is_secret_name(name):
                raise ValueError(f"{name} must not stand in a job: name the key's variable in provider.api_key_env")
        return value

    def as_body(self) -> dict[str, Any]:
        """The params that are set, in an order that does not depend on the author's, `extra_body` still apart."""
        return self.model_dump(exclude_unset=True, exclude_none=True, exclude={"stream"})


class Limits(_Section):
    """Ceilings that are never passed. One that is not set comes from the provider, or is learned."""

    requests_per_minute: Whole | None = Field(None, ge=1, le=1_000_000_000_000)
    tokens_per_minute: Whole | None = Field(None, ge=1, le=1_000_000_000_000)
    concurrency: Whole | None = Field(None, ge=1, le=20_000)


class Longer(_Section):
    """What to do with an answer that was cut off: ask once more, with more room for it."""

    retry_with_max_tokens: Whole = Field(ge=1, le=_MANY)


class Response(_Section):
    """The form that answers must have, and what happens to those that have it not.

    `schema` is what the answers must fit: a JSON Schema, as a mapping or as the path of a file, or a Pydantic model
    (`package.module:Model`). `mode` says how the model is told of it: by `response_format` (`json_schema`), in the
    prompt with `response_format` asking for some JSON (`json_object`), or in the prompt alone (`prompt`). `name` is
    what requests call it. An answer that does not fit is asked for again up to `corrections` times, with what is wrong
    with it; so are the arguments of tool calls. `truncated` is about answers that were cut off at their bound.
    """

    spec: dict[Any, Any] | str | None = Field(None, alias="schema")
    name: str | None = Field(None, pattern=r"^[A-Za-z0-9_-]{1,64}$")
    mode: Literal["json_schema", "json_object", "prompt"] = "json_schema"
    corrections: Whole = Field(2, ge=0, le=20)
    truncated: Literal["fail", "keep"] | Longer = "fail"

    @field_validator("spec", mode="before")
    @classmethod
    def _schema_form(cls, value: object) -> object:
        if value is not None and not isinstance(value, dict) and not (isinstance(value, str) and value):
            raise ValueError(
                f"must be a path to a JSON file, a JSON Schema as a mapping, or package.module:Model{_not(value)}"
            )
        return value

    @field_validator("truncated", mode="before")
    @classmethod
    def _truncated_form(cls, value: object) -> object:
        if value not in ("fail", "keep") and not isinstance(value, dict | Longer):
            raise ValueError(f"must be fail, keep or {{retry_with_max_tokens: N}}{_not(value)}")
        return value


class ImageFields(_Section):
    """How the images that messages name by column are read: from which folder, and how large they may be."""

    root: str | None = Field(None, min_length=1)
    max_bytes: Size = Field(MAX_BYTES, ge=1, le=40_000_000)


FailedPolicy = Literal["none", "transient", "all"]


class Retry(_Section):
    """How long to try: a row, a request, a provider."""

    attempts: Whole = Field(6, ge=1, le=100)
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

    input: Number = Field(ge=0)
    output: Number = Field(ge=0)
    cached_input: Number | None = Field(None, ge=0)
    currency: str = Field(pattern=r"^[A-Z]{3}$")


class EngineFields(_Section):
    """What executes the requests: one HTTP exchange each (`local`), or a provider's Batch API (`batch`).

    All other fields belong to `batch`. `service` names the dialect of a Batch API at an address of one's own. `poll` is
    the time between two looks at the batches. `max_lines`, `max_bytes` and `queued_tokens` bound one batch, and all
    batches under way, below what the provider allows. `window` is the time that the provider has, in its own words.
    `bucket` is where files go if they are objects of the customer, `folder` if they are files of this machine that
    somebody else processes. `keep_files: false` deletes the files at the provider once their answers are safe. `rounds`
    is how often a request goes into a batch, and `then: local` sends what is still open after that as single requests.
    `price_factor` is what a batch costs, as a share of the price of single requests.
    """

    kind: Literal["local", "batch"] = "local"
    service: Name | None = None
    poll: Duration | None = Field(None, ge=0.01, le=86400)
    max_lines: Whole | None = Field(None, ge=1, le=10_000_000)
    max_bytes: Size | None = Field(None, ge=1_000, le=100_000_000_000)
    queued_tokens: Whole | None = Field(None, ge=1, le=10**15)
    window: str | None = Field(None, min_length=1, max_length=40)
    bucket: str | None = Field(None, min_length=1, max_length=1_000)
    folder: str | None = Field(None, min_length=1)
    keep_files: _Switch = True
    rounds: Whole = Field(3, ge=1, le=100)
    then: Literal["local"] | None = None
    price_factor: Number | None = Field(None, gt=0, le=10)

    @model_validator(mode="after")
    def _fields_of_its_kind(self) -> EngineFields:
        others = sorted(self.model_fields_set - {"kind"})
        if self.kind == "local" and others:
            raise ValueError(f"{', '.join(others)} belong{'s' * (len(others) == 1)} to kind: batch")
        if self.bucket is not None and self.folder is not None:
            raise ValueError("bucket and folder are two ways to hand files over: keep one of the two")
        return self

    @property
    def batch(self) -> bool:
        """Whether requests go through a Batch API."""
        return self.kind == "batch"


class BudgetCaps(_Section):
    """What one run may spend; a cap that is not set is none. Money is in the currency of the model's price."""

    max_cost: Number | None = Field(None, gt=0)
    max_tokens: Whole | None = Field(None, ge=1)
    max_requests: Whole | None = Field(None, ge=1)

    @property
    def capped(self) -> bool:
        """Whether any cap is set."""
        return (self.max_cost, self.max_tokens, self.max_requests) != (None, None, None)


def nearest(name: str, known: Mapping[str, object] | Sequence[str]) -> str:
    """` (did you mean 'x'?)`, or nothing where no known name is near."""
    near = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.6)
    return f" (did you mean {near[0]!r}?)" if near else ""


class Job(_Section):
    """One prompt over many rows: what a job file says, validated, with all paths absolute.

    `constant: true` says that no message or param is meant to use a column, so that every row asks the same. Without it
    such a job is refused before anything is sent.
    """

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
    input: Input
    output: Output
    provider: str | ProviderFields
    model: Name
    messages: list[dict[str, Any]] | dict[str, Any]
    constant: bool = False
    samples: Whole = Field(1, ge=1, le=1_000)
    images: ImageFields = ImageFields()
    params: Params = Params()
    response: Response = Response()
    limits: Limits = Limits()
    retry: Retry = Retry()
    prices: Prices | None = None
    engine: EngineFields = EngineFields()
    budget: BudgetCaps = BudgetCaps()
    deadline: Duration | None = Field(None, gt=0)
    cache: str | None = Field(None, min_length=1)
    dedupe: bool = False

    _file: Path | None = PrivateAttr(None)
    _suite: Path | None = PrivateAttr(None)
    _answer_model: tuple[str, Path] | None = PrivateAttr(None)
    _origins: dict[Place, Origin] = PrivateAttr(default_factory=dict)

    @field_validator("input", "output", mode="before")
    @classmethod
    def _path_alone(cls, value: object) -> object:
        if isinstance(value, str):
            return {"path": value}
        if not isinstance(value, dict | _Section):
            raise ValueError(f"must be a path, or a mapping with a path{_not(value)}")
        return value

    @field_validator("images", "params", "response", "limits", "retry", "budget", mode="before")
    @classmethod
    def _all_commented_out(cls, value: object) -> object:
        return {} if value is None else value

    @field_validator("engine", mode="before")
    @classmethod
    def _kind_alone(cls, value: object) -> object:
        if value is None or isinstance(value, str):
            return {"kind": value} if value else {}
        if not isinstance(value, dict | _Section):
            raise ValueError(f"must be local, batch, or a mapping with a kind{_not(value)}")
        return value

    @field_validator("provider", mode="before")
    @classmethod
    def _name_or_fields(cls, value: object) -> object:
        if not isinstance(value, str | dict | _Section):
            raise ValueError(f"must be a provider's name, or a mapping with a base_url or a profile{_not(value)}")
        return value

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

    @field_validator("messages", mode="before")
    @classmethod
    def _list_or_column(cls, value: object) -> object:
        if not value:
            raise ValueError('needs at least one message, such as {role: user, content: "{{ text }}"}')
        column = value.get("from") if isinstance(value, dict) and len(value) == 1 else None
        if isinstance(value, dict) and not (isinstance(column, str) and column):
            raise ValueError("as a mapping must be {from: column}, with the name of the column that holds the messages")
        if not isinstance(value, list | dict):
            raise ValueError("must be a list of messages, {from: column}, or the path of a file that holds the list")
        return value

    @property
    def file(self) -> Path | None:
        """The job file, None for a job that was made in Python."""
        return self._file

    @property
    def answer_model(self) -> tuple[str, Path] | None:
        """The Pydantic model that the schema was made from, as `package.module:Model`, and the folder to look in first.

        None if the schema is no model's. Its own validators run on answers that fit the schema.
        """
        return self._answer_model

    def error(self, message: str, *path: Hashable, remedy: str | None = None) -> JobError:
        """Make an error that points to a field of this job by its place in the file."""
        return job_error(message, path, self._origins, self._file, remedy)

    def resolved_provider(self) -> Provider:
        """The provider with this job's own address, key variable, headers and prices put over its profile."""
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
                stream_options=provider.stream_options if spec.stream_options is None else spec.stream_options,
                transport=spec.transport or provider.transport,
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

    def transfer(self, provider: Provider) -> dict[str, Any]:
        """The fields of the body that say how the answer travels, not what is asked."""
        if not self.params.stream:
            return {}
        return {"stream": True, **({"stream_options": {"include_usage": True}} if provider.stream_options else {})}

    def check_params(self, provider: Provider) -> None:
        """Refuse the params that the provider does not support, and those that contradict `response`.

        Raises JobError, with the line that sets each.
        """
        refused = self._check_response()
        refused += [
            self.error(
                f"{provider.name} does not support {name}; what its server would do with it is not documented",
                "params",
                name,
                remedy=f"Remove params.{name} from the job.",
            )
            for name in self.params.as_body()
            if name in provider.unsupported
        ]
        if refused:
            raise combined(refused)

    def check_budget(self, provider: Provider) -> None:
        """Refuse a cap on money where the price of the model is not known: it could not be kept."""
        if self.budget.max_cost is not None and self.model not in provider.prices:
            raise self.error(
                f"cannot be kept: no price is known for {self.model} at {provider.name}"
                f"{nearest(self.model, list(provider.prices))}",
                "budget",
                "max_cost",
                remedy="Give `prices: {input: …, output: …, currency: …}` (money per million tokens), "
                "or cap max_tokens or max_requests.",
            )

    def _check_response(self) -> list[JobError]:
        """What is wrong between `response` and `params`."""
        response, params = self.response, self.params
        refused = []
        if response.spec is not None and params.response_format is not None:
            message = "is set by response.schema already"
            refused.append(self.error(message, "params", "response_format", remedy="Keep one of the two."))
        if response.spec is None:
            useless = sorted(response.model_fields_set & {"mode", "name"})
            if "corrections" in response.model_fields_set and not params.tools:
                useless.append("corrections")
            refused += [
                self.error(
                    "says how answers are held to a schema, and there is none",
                    "response",
                    name,
                    remedy="Give response.schema, or leave this out.",
                )
                for name in useless
            ]
        if isinstance(response.truncated, Longer):
            more = response.truncated.retry_with_max_tokens
            bound = params.max_completion_tokens if params.max_completion_tokens is not None else params.max_tokens
            if isinstance(bound, int) and more <= bound:
                refused.append(
                    self.error(
                        f"must be more than the {bound} tokens of the first try, not {more}",
                        *("response", "truncated", "retry_with_max_tokens"),
                        remedy="A request is never sent again as it was: allow more, or take `truncated: fail`.",
                    )
                )
        return refused

    def snapshot(self) -> dict[str, Any]:
        """The job as plain JSON, to be kept beside its output. It holds no key: keys never stand in a job."""
        return {
            **self.model_dump(mode="json", exclude_unset=True, by_alias=True),
            "file": str(self._file.absolute()) if self._file else None,
            **({"suite": str(self._suite.absolute())} if self._suite else {}),
        }

    def in_suite(self, file: Path) -> Self:
        """This job as one that a suite file makes and runs: its snapshot names that file too."""
        job = self.model_copy()
        job._suite = file  # noqa: SLF001 - of the copy that is made here
        return job


FIELDS: Mapping[tuple[str, ...], type[BaseModel]] = {
    (): Job,
    ("input",): Input,
    ("output",): Output,
    ("provider",): ProviderFields,
    ("images",): ImageFields,
    ("params",): Params,
    ("response",): Response,
    ("response", "truncated"): Longer,
    ("limits",): Limits,
    ("retry",): Retry,
    ("prices",): Prices,
    ("engine",): EngineFields,
    ("budget",): BudgetCaps,
}
"""The section that stands at each place of a job."""
