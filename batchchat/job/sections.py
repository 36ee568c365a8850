"""The sections of a job: their fields, types and bounds, each checked by itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    Field,
    field_validator,
    model_validator,
)

from batchchat.addresses import HUB_SCHEME, OBJECT_SCHEMES, is_url, scheme_of
from batchchat.attachments import MAX_BYTES as MAX_FILE_BYTES
from batchchat.images import MAX_BYTES
from batchchat.job.pool_fields import LimitFields
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
)
from batchchat.records import TRANSIENT_KINDS, ErrorKind


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
