"""A job: its fields, what holds between them, and what follows from them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self, TypeGuard

from pydantic import (
    BaseModel,
    Field,
    PrivateAttr,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_validator,
)

from batchchat.addresses import is_url
from batchchat.errors import JobError
from batchchat.job.cascade_fields import CascadeStep, StepAccept
from batchchat.job.origin import FieldOrigin, FieldPlace, job_error
from batchchat.job.params import Params
from batchchat.job.pool_fields import EndpointFields, FallbackFields, PoolFields, Prices, check_known
from batchchat.job.provider_fields import KEY_PLACES, ProviderFields
from batchchat.job.sections import (
    BudgetCaps,
    CutColumn,
    EngineFields,
    ExampleFields,
    FileFields,
    ImageFields,
    Input,
    JobLimitFields,
    Longer,
    OutputFields,
    PromptLimit,
    Response,
    Retry,
    SaidConfidence,
)
from batchchat.job.values import (
    Duration,
    Name,
    Section,
    Whole,
    instead_of,
    nearest,
)
from batchchat.providers import PROFILES, Price, Provider

if TYPE_CHECKING:
    from batchchat.job.batch_file import BatchFileJob


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
