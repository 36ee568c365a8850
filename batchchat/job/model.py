"""A job and its sections: their fields, types and bounds."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, TypeGuard

from pydantic import (
    BaseModel,
    Field,
    PrivateAttr,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_validator,
)

from batchchat.addresses import HUB_SCHEME, OBJECT_SCHEMES, is_url, scheme_of
from batchchat.attachments import MAX_BYTES as MAX_FILE_BYTES
from batchchat.errors import JobError
from batchchat.images import MAX_BYTES
from batchchat.job.cascade_fields import CascadeStep, StepAccept
from batchchat.job.origin import FieldOrigin, FieldPlace, job_error
from batchchat.job.params import Params
from batchchat.job.pool_fields import EndpointFields, FallbackFields, LimitFields, PoolFields, Prices, check_known
from batchchat.job.provider_fields import KEY_PLACES, ProviderFields
from batchchat.job.values import (
    MANY,
    Duration,
    Name,
    Number,
    Section,
    ShareOrCount,
    Sharing,
    Size,
    Switch,
    Whole,
    instead_of,
    nearest,
)
from batchchat.providers import PROFILES, Price, Provider
from batchchat.records import TRANSIENT_KINDS, ErrorKind

if TYPE_CHECKING:
    from batchchat.job.batch_file import BatchFileJob


class Input(Section):
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
        # Read before the fields are checked: the key of a batch file is set, and nobody needs to name it.
        if not isinstance(data, dict) or data.get("format") != BATCH_FORMAT:
            return data
        if data.get("key") not in (None, BATCH_KEY):
            raise ValueError(f"the key of a batch file is its {BATCH_KEY}: leave key out")
        if data.get("types"):
            raise ValueError("the fields of a batch file have their own types: leave types out")
        if not {"header", "quoting"}.isdisjoint(data):
            raise ValueError("a batch file is JSON Lines: leave header and quoting out")
        return {**data, "key": BATCH_KEY}


MOST_SHARDS = 1_000
"""Shards of an output at most. A process that holds all of them has three open files for each."""
_FILE_SUFFIXES = frozenset({".parquet", ".jsonl", ".json", ".csv", ".xlsx"})


class OutputFields(Section):
    """Where the dataset is, and when a part of it is sealed. `path` is a folder, or a URL of object storage.

    `shards` is into how many stores it is cut, each for the rows whose key hashes to it: several processes or machines
    may then write it. None takes the number that the output has.
    """

    path: str = Field(min_length=1)
    shards: Whole | None = Field(None, ge=1, le=MOST_SHARDS)
    part_rows: Whole = Field(50_000, ge=1, le=10_000_000)
    part_bytes: Size = Field(32_000_000, ge=1_000, le=100_000_000_000)
    part_seconds: Duration = Field(60.0, gt=0)

    @field_validator("path")
    @classmethod
    def _folder(cls, value: str) -> str:
        if is_url(value) and scheme_of(value) == HUB_SCHEME:
            raise ValueError("a hub is only read: name a folder of this machine, or a bucket such as s3://bucket/run")
        if is_url(value) and scheme_of(value) not in OBJECT_SCHEMES:
            known = ", ".join(f"{scheme}://" for scheme in OBJECT_SCHEMES)
            raise ValueError(f"must be a folder of this machine, or a URL that begins with one of {known}")
        if is_url(value) and not value.partition("://")[2].strip("/"):
            raise ValueError("names no bucket: write s3://bucket/folder")
        # A folder that an earlier version made goes on working.
        if Path(value).suffix.lower() in _FILE_SUFFIXES and not Path(value).is_dir():
            raise ValueError(
                f"is a folder, and {Path(value).name} looks like a file: name a folder; "
                f"`batchchat export DIR -o {Path(value).name}` writes one file"
            )
        return value


BATCH_FORMAT = "openai-batch"
BATCH_KEY = "custom_id"


class JobLimitFields(LimitFields):
    """The limits of a job.

    `max_failed` stops a run at so many failed rows, or at a share of them such as `10%`. `shared` says that other
    processes use the same limits: those of this machine (`true`), or all that ask one broker (its address).
    """

    max_failed: ShareOrCount | None = None
    shared: Sharing = False


class Longer(Section):
    """What to do with an answer that was cut off: ask once more, with more room for it."""

    retry_with_max_tokens: Whole = Field(ge=1, le=MANY)


class Response(Section):
    """The form that answers must have, and what happens to those that have it not.

    `schema` is what the answers must fit: a JSON Schema, as a mapping or as the path of a file, or a Pydantic model
    (`package.module:Model`). `mode` says how the model is told of it: by `response_format` (`json_schema`), in the
    prompt with `response_format` asking for some JSON (`json_object`), or in the prompt alone (`prompt`). `name` is
    what requests call it. An answer that does not fit is asked for again up to `corrections` times, with what is wrong
    with it; so are the arguments of tool calls. `truncated` is about answers that were cut off at their bound.
    `confidence` says how the column of that name is measured: by the log probabilities of the answer's tokens, by how
    many of the row's samples agree, or by a field of the answer.
    """

    spec: dict[Any, Any] | str | None = Field(None, alias="schema")
    name: str | None = Field(None, pattern=r"^[A-Za-z0-9_-]{1,64}$")
    mode: Literal["json_schema", "json_object", "prompt"] = "json_schema"
    corrections: Whole = Field(2, ge=0, le=20)
    truncated: Literal["fail", "keep"] | Longer = "fail"
    confidence: Literal["logprobs", "samples"] | SaidConfidence | None = None

    @field_validator("spec", mode="before")
    @classmethod
    def _schema_form(cls, value: object) -> object:
        if value is not None and not isinstance(value, dict) and not (isinstance(value, str) and value):
            raise ValueError(
                f"must be a path to a JSON file, a JSON Schema as a mapping, or package.module:Model{instead_of(value)}"
            )
        return value

    @field_validator("confidence", mode="before")
    @classmethod
    def _confidence_form(cls, value: object) -> object:
        if value not in ("logprobs", "samples", None) and not isinstance(value, dict | SaidConfidence):
            raise ValueError(f"must be logprobs, samples or {{field: NAME}}{instead_of(value)}")
        return value

    @field_validator("truncated", mode="before")
    @classmethod
    def _truncated_form(cls, value: object) -> object:
        if value not in ("fail", "keep") and not isinstance(value, dict | Longer):
            raise ValueError(f"must be fail, keep or {{retry_with_max_tokens: N}}{instead_of(value)}")
        return value


class SaidConfidence(Section):
    """Which field of the answer holds what the model says of its own certainty, from 0 to 1."""

    field: Name


class ImageFields(Section):
    """How the images that messages name by column are read: from which folder, and how large they may be."""

    root: str | None = Field(None, min_length=1)
    max_bytes: Size = Field(MAX_BYTES, ge=1, le=40_000_000)


class FileFields(Section):
    """How the files and the sound that messages name by column are read: from which folder, and how large they are."""

    root: str | None = Field(None, min_length=1)
    max_bytes: Size = Field(MAX_FILE_BYTES, ge=1, le=40_000_000)


class CutColumn(Section):
    """What to do with a prompt that is too long: cut the text of a column."""

    cut: Name


class PromptLimit(Section):
    """How long a prompt may be, in tokens as they are estimated by size, and what happens to a longer one."""

    limit: Whole = Field(ge=1, le=MANY)
    then: Literal["fail"] | CutColumn = "fail"

    @field_validator("then", mode="before")
    @classmethod
    def _then_form(cls, value: object) -> object:
        if value != "fail" and not isinstance(value, dict | CutColumn):
            raise ValueError(f"must be fail or {{cut: COLUMN}}{instead_of(value)}")
        return value

    @property
    def column(self) -> str | None:
        """The column that is cut; None if rows fail."""
        return self.then.cut if isinstance(self.then, CutColumn) else None


EXAMPLES = "examples"
"""The name that a template has for the list of them."""


class ExampleFields(Section):
    """Which rows of a file with known answers a template has as `examples`: for each row `k` of them.

    `text` is a template that gives the text of a row, of the input and of the file: rows are alike by it, and by it a
    row of the file is known to be the row itself. `label` is the column of the labels that take turns (`per_label`).
    """

    source: str = Field(alias="from", min_length=1)
    k: Whole = Field(5, ge=1, le=1_000)
    by: Literal["similarity", "random", "per_label"] = "similarity"
    text: str = Field(min_length=1)
    label: Name | None = None
    seed: Whole = Field(0, ge=0, le=MANY)

    @model_validator(mode="after")
    def _label_of_per_label(self) -> ExampleFields:
        if self.by == "per_label" and self.label is None:
            raise ValueError("by: per_label needs `label`, the column of the file that holds the labels")
        if self.by != "per_label" and self.label is not None:
            raise ValueError("label belongs to by: per_label")
        # A field that changes nothing is refused, so that nobody believes in it.
        if self.by != "random" and "seed" in self.model_fields_set:
            raise ValueError("seed belongs to by: random")
        return self


FailedPolicy = Literal["none", "transient", "all"]


class Retry(Section):
    """How long to try: a row, a request, a provider."""

    attempts: Whole = Field(6, ge=1, le=100)
    request_timeout: Duration = Field(310.0, gt=0)
    row_deadline: Duration = Field(900.0, gt=0)
    outage: Duration = Field(600.0, gt=0)
    failed: FailedPolicy | list[ErrorKind] = "transient"

    def reopens(self) -> frozenset[ErrorKind]:
        """Return the kinds of failure that the next run tries again."""
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


class EngineFields(Section):
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
    keep_files: Switch = True
    rounds: Whole = Field(3, ge=1, le=100)
    then: Literal["local"] | None = None
    price_factor: Number | None = Field(None, gt=0, le=10)

    @model_validator(mode="after")
    def _fields_of_its_kind(self) -> EngineFields:
        others = sorted(self.model_fields_set - {"kind"})
        if self.kind == "local" and others:
            raise ValueError(f"{', '.join(others)} belong{'s' * (len(others) == 1)} to kind: batch")
        # A service has one way to take files: the other field would silently do nothing.
        if self.bucket is not None and self.folder is not None:
            raise ValueError("bucket and folder are two ways to hand files over: keep one of the two")
        return self

    @property
    def batch(self) -> bool:
        """Whether requests go through a Batch API."""
        return self.kind == "batch"


class BudgetCaps(Section):
    """What one run may spend; a cap that is not set is none. Money is in the currency of the model's price."""

    max_cost: Number | None = Field(None, gt=0)
    max_tokens: Whole | None = Field(None, ge=1)
    max_requests: Whole | None = Field(None, ge=1)

    @property
    def capped(self) -> bool:
        """Whether any cap is set."""
        return (self.max_cost, self.max_tokens, self.max_requests) != (None, None, None)


class Job(Section):
    """One prompt over many rows: what a job file says, validated, with all paths absolute.

    `constant: true` says that no message or param is meant to use a column, so that every row asks the same. Without it
    such a job is refused before anything is sent. `skip` is a template; rows of which it is true are not sent.
    """

    of_lines: ClassVar[bool] = False
    """Whether it is a `BatchFileJob`."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
    input: Input
    output: OutputFields
    provider: str | PoolFields
    model: Name
    fallback: list[FallbackFields] = Field(default_factory=list, max_length=8)
    cascade: list[CascadeStep] = Field(default_factory=list, max_length=8)
    messages: list[dict[str, Any]] | dict[str, Any]
    constant: bool = False
    skip: str | None = Field(None, min_length=1)
    max_prompt_tokens: PromptLimit | None = None
    examples: ExampleFields | None = None
    samples: Whole = Field(1, ge=1, le=1_000)
    # Made without a validator of their own, which would cost a tenth of a start: all their fields have defaults.
    images: ImageFields = ImageFields.model_construct()
    files: FileFields = FileFields.model_construct()
    params: Params = Params.model_construct()
    response: Response = Response.model_construct()
    limits: JobLimitFields = JobLimitFields.model_construct()
    retry: Retry = Retry.model_construct()
    prices: Prices | None = None
    engine: EngineFields = EngineFields.model_construct()
    budget: BudgetCaps = BudgetCaps.model_construct()
    deadline: Duration | None = Field(None, gt=0)
    cache: str | None = Field(None, min_length=1)
    dedupe: bool = False

    _file: Path | None = PrivateAttr(None)
    _suite: Path | None = PrivateAttr(None)
    _options: tuple[str, ...] = PrivateAttr(())
    _answer_model: tuple[str, Path] | None = PrivateAttr(None)
    _origins: dict[FieldPlace, FieldOrigin] = PrivateAttr(default_factory=dict)

    @field_validator("input", "output", mode="before")
    @classmethod
    def _path_alone(cls, value: object) -> object:
        if isinstance(value, str):
            return {"path": value}
        if not isinstance(value, dict | Section):
            raise ValueError(f"must be a path, or a mapping with a path{instead_of(value)}")
        return value

    @model_validator(mode="before")
    @classmethod
    def _model_of_first_step(cls, data: Any) -> Any:
        # The first step is who every row asks: it gives the job's model, and so the identity of requests.
        steps = data.get("cascade") if isinstance(data, dict) else None
        first = steps[0] if isinstance(steps, list) and steps else None
        model = first.get("model") if isinstance(first, dict) else getattr(first, "model", None)
        return {**data, "model": model} if model is not None and data.get("model") is None else data

    @field_validator("cascade", mode="before")
    @classmethod
    def _no_steps(cls, value: object) -> object:
        return [] if value is None else value

    @field_validator("fallback", mode="before")
    @classmethod
    def _one_or_none(cls, value: object) -> object:
        # One fallback may stand without its list, and a section may have all its lines commented out.
        return [] if value is None else [value] if isinstance(value, dict) else value

    @field_validator("images", "files", "params", "response", "limits", "retry", "budget", mode="before")
    @classmethod
    def _all_commented_out(cls, value: object) -> object:
        return {} if value is None else value

    @field_validator("max_prompt_tokens", mode="before")
    @classmethod
    def _limit_alone(cls, value: object) -> object:
        return {"limit": value} if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("engine", mode="before")
    @classmethod
    def _kind_alone(cls, value: object) -> object:
        if value is None or isinstance(value, str):
            return {"kind": value} if value else {}
        if not isinstance(value, dict | Section):
            raise ValueError(f"must be local, batch, or a mapping with a kind{instead_of(value)}")
        return value

    @field_validator("engine")
    @classmethod
    def _folder_for_batches(cls, value: EngineFields, info: ValidationInfo) -> EngineFields:
        output = info.data.get("output")
        # What is in a batch and not yet answered is paid for: its log must outlive this machine's cache.
        if value.batch and output is not None and is_url(output.path):
            raise ValueError("batch keeps its log of requests in a folder: name a folder as output, or use local")
        return value

    @field_validator("cache")
    @classmethod
    def _folder_of_cache(cls, value: str | None) -> str | None:
        if value is not None and is_url(value):
            raise ValueError("must be a folder of this machine, such as .cache: a cache on object storage is too slow")
        return value

    @field_validator("provider", mode="before")
    @classmethod
    def _name_or_fields(cls, value: object) -> object:
        if not isinstance(value, str | dict | Section):
            raise ValueError(f"must be a provider's name, or a mapping with a base_url or a profile{instead_of(value)}")
        return value

    @field_validator("provider")
    @classmethod
    def _known_provider(cls, value: str | PoolFields) -> str | PoolFields:
        check_known(value)
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
        """Return the provider with this job's own address, key variable, headers and prices put over its profile."""
        return self.resolve(self.provider, self.model, self.prices)

    def resolve(self, spec: str | ProviderFields, model: str, prices: Prices | None) -> Provider:
        """Return a provider of this job with its own address, key, headers and prices put over its profile.

        Arguments:
            spec: what the job says of the provider.
            model: the model that the prices are of.
            prices: those of the job, None if it names none.
        """
        if isinstance(spec, str):
            provider = PROFILES[spec]
        else:
            provider = PROFILES[spec.profile] if spec.profile else Provider(name="custom", base_url=None, identity="")
            if spec.base_url:
                identity = spec.profile if spec.profile == "demo" else spec.base_url
                provider = replace(provider, base_url=spec.base_url, identity=identity or spec.base_url)
            provider = replace(
                provider,
                **key_place(spec, provider),
                headers={**provider.headers, **spec.headers},
                extra_query={**provider.extra_query, **spec.extra_query},
                ca_file=spec.ca_file or provider.ca_file,
                stream_options=provider.stream_options if spec.stream_options is None else spec.stream_options,
                transport=spec.transport or provider.transport,
            )
            if isinstance(spec, PoolFields):
                provider = _under_its_name(spec, provider)
        if prices is not None:
            price = Price(prices.input, prices.output, prices.cached_input)
            provider = replace(
                provider,
                prices={model: price},
                currency=prices.currency,
                prices_as_of="the job file",
                tiers={},  # a price of one's own is that of the tier that one asks for
            )
        return provider

    def transfer(self, provider: Provider) -> dict[str, Any]:
        """Return the fields of the body that say how the answer travels, not what is asked."""
        if not self.params.stream:
            return {}
        return {"stream": True, **({"stream_options": {"include_usage": True}} if provider.stream_options else {})}

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

    def snapshot(self) -> dict[str, Any]:
        """Return the job as plain JSON, to be kept beside its output. It holds no key: keys never stand in a job.

        Beside its fields it names the `file`, the `suite`, and the `options` of the command line that changed it.
        """
        return {
            **self.model_dump(mode="json", exclude_unset=True, by_alias=True),
            "file": str(self._file.absolute()) if self._file else None,
            **({"suite": str(self._suite.absolute())} if self._suite else {}),
            **({"options": list(self._options)} if self._options else {}),
        }

    def with_origin(self, *, options: tuple[str, ...], answer_model: tuple[str, Path] | None) -> Self:
        """This job with the options of the command line that made it, and the model that its schema was made from."""
        job = self.model_copy()
        job._options, job._answer_model = options, answer_model  # noqa: SLF001 - of the copy that is made here
        return job

    def in_suite(self, file: Path, options: tuple[str, ...] = ()) -> Self:
        """This job as one that a suite file makes, with options of the command line: its snapshot names both."""
        job = self.model_copy()
        job._suite, job._options = file, options  # noqa: SLF001 - of the copy that is made here
        return job


def has_lines(job: Job) -> TypeGuard[BatchFileJob]:
    """Return whether a job is one over the lines of a batch file; others need not import what such a job is."""
    return job.of_lines


def _under_its_name(spec: PoolFields, provider: Provider) -> Provider:
    """Return a provider under the name that the job gives it, and with the identity that goes with it."""
    identity = spec.identity or spec.name or provider.identity
    first = next((one.base_url for one in spec.endpoints or () if one.base_url), None)
    return replace(provider, name=spec.name or provider.name, identity=identity, base_url=provider.base_url or first)


def key_place(spec: ProviderFields, profile: Provider) -> dict[str, Any]:
    """Return the fields of a provider that say where the key comes from and how it is sent.

    A place that the job names takes that of the profile: a provider has one key.
    """
    places = {name: getattr(spec, name) for name in KEY_PLACES}
    if all(place is None for place in places.values()):
        places = {name: getattr(profile, name) for name in KEY_PLACES}
    command = places["api_key_command"]
    return {
        **places,
        "api_key_command": tuple(command) if isinstance(command, list) else command,
        "api_key_header": spec.api_key_header or profile.api_key_header,
        "api_key_scheme": profile.api_key_scheme if spec.api_key_scheme is None else spec.api_key_scheme,
    }


FIELDS: Mapping[tuple[str, ...], type[BaseModel]] = {
    (): Job,
    ("input",): Input,
    ("output",): OutputFields,
    ("provider",): PoolFields,
    ("provider", "endpoints"): EndpointFields,
    ("fallback",): FallbackFields,
    ("cascade",): CascadeStep,
    ("cascade", "accept"): StepAccept,
    ("images",): ImageFields,
    ("files",): FileFields,
    ("max_prompt_tokens",): PromptLimit,
    ("max_prompt_tokens", "then"): CutColumn,
    ("examples",): ExampleFields,
    ("params",): Params,
    ("response",): Response,
    ("response", "truncated"): Longer,
    ("response", "confidence"): SaidConfidence,
    ("limits",): JobLimitFields,
    ("retry",): Retry,
    ("prices",): Prices,
    ("engine",): EngineFields,
    ("budget",): BudgetCaps,
}
"""The section that stands at each place of a job."""
