"""The vocabulary of one row's way: row batch, request, completion, failure, record.

A `RowBatch` comes from a source; a template turns each of its rows into a `Request`; the client answers with a
`Reply`; the engine settles on a `Record`, which the store keeps. One record is one row of the output dataset.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple

from batchchat.dataclass import dataclass

if TYPE_CHECKING:
    import pyarrow as pa


class ErrorKind(StrEnum):
    """Why a row has no completion. The set is closed: it is part of the output's contract."""

    INPUT = "input"
    TEMPLATE = "template"
    CONNECTION = "connection"
    TIMEOUT = "timeout"
    RATE_LIMIT = "rate_limit"
    SERVER = "server"
    PROTOCOL = "protocol"
    INVALID_REQUEST = "invalid_request"
    CONTENT_FILTER = "content_filter"
    REFUSAL = "refusal"
    TRUNCATED = "truncated"
    INVALID_OUTPUT = "invalid_output"


TRANSIENT_KINDS = frozenset(
    {ErrorKind.CONNECTION, ErrorKind.TIMEOUT, ErrorKind.RATE_LIMIT, ErrorKind.SERVER, ErrorKind.PROTOCOL}
)
"""The kinds that may go away by themselves: what `retry.failed: transient` reopens."""


@dataclass(slots=True, frozen=True)
class Failure:
    """Why an attempt, or a row, has no completion."""

    kind: ErrorKind
    message: str
    http_status: int | None = None


class Usage(NamedTuple):
    """Tokens of one answer or a sum of them, as the wire names them; None where the server did not say."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None

    def plus(self, other: Usage) -> Usage:
        """Add field by field; a field that neither knows stays None."""
        return Usage(
            *(
                (mine or 0) + (theirs or 0) if mine is not None or theirs is not None else None
                for mine, theirs in zip(self, other, strict=True)
            )
        )


@dataclass(slots=True)
class Completion:
    """A successful answer.

    `tool_calls` is a tuple of `{"id", "type", "name", "arguments"}`, `logprobs` one of `{"token", "logprob", "top"}`
    with natural logarithms, where `top` is a list of `{"token", "logprob"}`. `system_fingerprint` and `service_tier`
    are the server's own words for what ran the model, and how urgently.
    """

    text: str | None
    finish_reason: str | None
    model: str | None
    usage: Usage
    request_id: str | None = None
    refusal: str | None = None
    reasoning: str | None = None
    tool_calls: tuple[dict[str, str | None], ...] | None = None
    logprobs: tuple[dict[str, Any], ...] | None = None
    system_fingerprint: str | None = None
    service_tier: str | None = None


class Place(NamedTuple):
    """Where in the input a batch of rows ends, so that a later pass can begin behind it.

    `file` numbers the input's files in reading order. `offset` counts bytes of the file's text as it is read (after
    decompression), or rows of a Parquet file; `line` is the number of the line there. The bytes from `base` to
    `hashed`, those from `base` to `offset` among them, have the SHA-256 `digest`; Parquet has none of the three.
    `ended`: there is nothing behind this place in the file.
    """

    file: int
    offset: int
    line: int = 1
    base: int = 0
    hashed: int = 0
    digest: bytes = b""
    ended: bool = False


class Picture(NamedTuple):
    """An image, a file or sound of a row: the JSON text of its URL or content, and what stands for it in the identity
    of a request.

    For content this is a digest of it; an address stands for itself, as the same bytes object. `mark` is the name of
    the field that holds it, as it stands in a request. `told` is the JSON text of a file's name, or of the format of
    sound. `tokens` is a guess of what it costs; 0 means that of an image.
    """

    url: bytes
    token: bytes
    mark: bytes = b'"url":'
    told: bytes = b""
    tokens: int = 0


Loaded = tuple[Picture, ...] | str
"""What a column holds as images, files or sound; or, as a text, why they cannot be sent."""


@dataclass(slots=True)
class RowBatch:
    """Consecutive rows of one source.

    `columns` holds what is carried to the output, already under its output names (frozen types, `input_extra`
    last); `values` what the template sees, under the input's own names. An unreadable row has None in `values`, a
    reason in `failures` and its bytes in `raw`. Row `i` of the batch has the row index `first_index + i`, where
    row indexes count the rows of the whole input from 0. `place` is where the batch ends; None where no later pass
    could begin there. `images` are those of each row by column, where a job sends images. `shards` tells the shard of
    each row, -1 if the pass does not take it; None if the output has no shards.
    """

    source: str
    first_index: int
    columns: pa.RecordBatch
    values: list[dict[str, Any] | None]
    failures: dict[int, Failure] = field(default_factory=dict)
    raw: dict[int, bytes] = field(default_factory=dict)
    nbytes: int = 0
    place: Place | None = None
    images: list[Mapping[str, Loaded] | None] | None = None
    shards: Sequence[int] | None = None


def answer_bytes(
    text: str | None,
    reasoning: str | None,
    tool_calls: Sequence[Mapping[str, str | None]] | None,
    logprobs: Sequence[Mapping[str, Any]] | None,
) -> int:
    """About how many bytes of memory an answer keeps: what bounds buffers of answers counts by this."""
    size = 1000 + len(text or "") + len(reasoning or "")
    if tool_calls:
        size += sum(200 + len(call.get("arguments") or "") for call in tool_calls)
    if logprobs:
        size += sum(300 + 250 * len(token.get("top") or ()) for token in logprobs)
    return size


@dataclass(slots=True)
class Steps:
    """How far a request is beyond its first answer.

    `body` is the request's own one, while `Request.body` is what is sent next; `prompt_tokens` is its guess and
    `max_tokens` the bound that it had. `answers`
    counts those that settled nothing, `corrections` those of them that did not fit, `reasons` says why the latest one
    did not. `longer` says that the bound of the answer was raised already. `last` is the latest of those answers,
    without its log probabilities, and `problem` what was wrong with it: for the record, if no further answer comes.
    """

    body: bytes
    prompt_tokens: int
    max_tokens: int | None = None
    answers: int = 0
    corrections: int = 0
    longer: bool = False
    reasons: str | None = None
    last: Completion | None = None
    problem: str | None = None


class EarlierStep(NamedTuple):
    """A step of a cascade whose answer was not taken: who was asked, what came, and why the next one was asked.

    `completion` is the text of the answer, if there was any. `cost` is all that the step was billed.
    """

    step: int
    model: str
    provider: str
    confidence: float | None
    reason: str
    completion: str | None
    cost: int | None


class FirstAsked(NamedTuple):
    """A request as the first step of a cascade was asked: every later step begins with it."""

    body: bytes
    prompt_tokens: int
    max_tokens: int | None


@dataclass(slots=True, eq=False)
class Request:
    """The body of one chat completion and who asks for it.

    `custom_id` is its identity: 32 hexadecimal digits. `prompt_tokens` is a guess by size, `max_tokens` its own bound.
    `batch` and `offset` say which row it stands for. The rest is the engine's: `attempts` made, those of them that
    `counted` against the policy, those `unsent`, the `usage` of attempts that settled nothing and its `cost` (see
    `Reply`), times, and the `steps` of a request that needs more than one answer. `answer_id` is the identity of its
    answer, where answers are shared. `target` is the number of the target that it is asked at next, `broke` the set of
    endpoints at which it has failed, `head` the number of what its prompt begins with, 0 if that tells nothing (see
    `endpoints`). `left` is the answer that an earlier target gave, which was not taken: for the record, if no later one
    answers. `before` counts the answers that earlier targets gave. `earlier` are the steps of a cascade that it has
    behind it, and `first` what the first of them was asked.
    """

    custom_id: str
    body: bytes
    prompt_tokens: int
    max_tokens: int | None
    batch: RowBatch
    offset: int
    key: str | None = None
    sample_index: int = 0
    attempts: int = 0
    counted: int = 0
    unsent: int = 0
    usage: Usage = Usage()
    cost: int | None = None
    started_at: int = 0
    active_s: float = 0.0
    steps: Steps | None = None
    answer_id: bytes = b""
    target: int = 0
    broke: int = 0
    head: int = 0
    left: tuple[Reply, Failure] | None = None
    earlier: tuple[EarlierStep, ...] = ()
    first: FirstAsked | None = None
    before: int = 0

    def add_billed(self, reply: Reply) -> None:
        """Add what an attempt took that was answered and settles nothing."""
        if reply.usage is not None:
            self.usage = self.usage.plus(reply.usage)
        if reply.cost is not None:
            self.cost = (self.cost or 0) + reply.cost

    @property
    def row_index(self) -> int:
        """The row's position in the whole input, from 0."""
        return self.batch.first_index + self.offset


@dataclass(slots=True, eq=False)
class Record:
    """The outcome of one request: a completion or a failure, attempts, timings.

    The fields after `batch` and `offset` (which row it stands for) are the output's columns, in order. Times are
    microseconds since the epoch, UTC. Tokens and cost are sums over all answered attempts, `latency_s` is the
    last attempt's; `completion` holds any text received and `status` judges it. `corrections` counts how often an
    answer that did not fit was asked for again, `tolerated` says that the JSON stood among other text, `parsed` is its
    value for the typed column. `error_message` of a completion says what was wrong before the last correction. A
    `cache_hit` took over the outcome of an equal request: no attempt, no cost, and the tokens of the answer itself.

    `logprobs` is there where the request asked for it (see `Completion`). `ttft_s` and `output_tokens_per_s` are null
    unless the last attempt was streamed. The first is the time from the request's going out to the first thing the
    model wrote, reasoning and tool calls included, in seconds; the second is the answer's `completion_tokens` over the
    time from then to the last thing it wrote, null where all came at once. `prompt_id` tells which prompt the record
    answers (see `runner.rows.prompt_id_of`), `engine` who had the answer (`local` or `batch`); `provider` and
    `endpoint` who was asked last: the provider by its name, the endpoint by its address. All four are null in what an
    earlier version wrote, as are `system_fingerprint` and `service_tier` (see `Completion`). A `batch` has no latency.
    `confidence` is how sure the answer is, from 0 to 1, and `confidence_detail` how it was measured (see
    `structured.confidence`); both are null where nothing was measured. `step` is the step of the job's cascade that was
    asked last, from 1, and `earlier_steps` are those before it (see `EarlierStep`); both are null without a cascade.
    """

    batch: RowBatch
    offset: int
    custom_id: str
    key: str | None
    source: str
    row_index: int
    sample_index: int
    run_id: str
    status: str
    completion: str | None = None
    finish_reason: str | None = None
    tool_calls: tuple[dict[str, str | None], ...] | None = None
    refusal: str | None = None
    reasoning: str | None = None
    model: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    cost: float | None = None
    error_kind: str | None = None
    error_message: str | None = None
    http_status: int | None = None
    attempts: int = 0
    latency_s: float | None = None
    started_at: int | None = None
    finished_at: int | None = None
    request_id: str | None = None
    corrections: int | None = 0
    tolerated: bool | None = False
    cache_hit: bool | None = False
    logprobs: tuple[dict[str, Any], ...] | None = None
    ttft_s: float | None = None
    output_tokens_per_s: float | None = None
    prompt_id: str | None = None
    engine: str | None = None
    system_fingerprint: str | None = None
    service_tier: str | None = None
    confidence: float | None = None
    confidence_detail: dict[str, Any] | None = None
    provider: str | None = None
    endpoint: str | None = None
    step: int | None = None
    earlier_steps: tuple[dict[str, Any], ...] | None = None
    parsed: Any = None


RECORD_COLUMNS: tuple[str, ...] = tuple(Record.__slots__)[2:-1]
"""The output's own columns, in order (the input's columns stand before them, `parsed` where there is one behind)."""
FIRST_COLUMNS = RECORD_COLUMNS[: RECORD_COLUMNS.index("request_id") + 1]
"""Those that the output has had from its first format on. Later ones may be missing in what an earlier version wrote:
there they read as null. New columns go to the end, before `parsed`."""
PARSED = "parsed"
"""The typed column of answers: it is there where a job's answers have a schema, and its type follows from that."""


class Spend(NamedTuple):
    """What answered attempts cost: one entry of the ledger, or a sum of entries."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    cost: float = 0.0

    def plus(self, other: Spend) -> Spend:
        """Add field by field."""
        return Spend(
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.total_tokens + other.total_tokens,
            self.cached_tokens + other.cached_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
            self.cost + other.cost,
        )


class Verdict(StrEnum):
    """What an attempt's outcome means for its row and for the run; the client's reading of status and body.

    `no`: this row will never succeed. `transient`: try again later, it costs an attempt. `rate_limit`: wait, it costs
    no attempt. `fatal`: no request can succeed until a person acts (bad key, no credit). `refused`: fatal if other
    rows get the same (403, 404, 422), else `no`.
    """

    OK = "ok"
    NO = "no"
    TRANSIENT = "transient"
    RATE_LIMIT = "rate_limit"
    FATAL = "fatal"
    REFUSED = "refused"


class Axis(StrEnum):
    """Which limit a 429 is about, as far as its message or headers tell."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    CONCURRENCY = "concurrency"
    UNKNOWN = "unknown"


@dataclass(slots=True, frozen=True)
class LimitHeaders:
    """Rate-limit headers of one answer, already in numbers and seconds; None where absent or not believable.

    `limit` is per minute. `reset` is the time until the allowance is full again (OpenAI) or moves on (others): a hint,
    never a wait by itself.
    """

    limit_requests: int | None = None
    remaining_requests: int | None = None
    reset_requests: float | None = None
    limit_tokens: int | None = None
    remaining_tokens: int | None = None
    reset_tokens: float | None = None


class Answerer(NamedTuple):
    """Who answered an attempt, or was to: the provider by its name, the endpoint by its address, the model as asked.

    `fallback` says that it was asked in place of the job's own target.
    """

    provider: str
    endpoint: str | None = None
    model: str | None = None
    fallback: bool = False


class DayLimit(NamedTuple):
    """A limit of a whole day that is used up. `resets_at`: when it ends, in seconds since the epoch, if told."""

    resets_at: float | None


@dataclass(slots=True)
class Reply:
    """What one attempt brought: a completion, or a failure with what is known about trying again.

    `text` and `usage` may be there beside a failure: something was received, and billed. `retry_after` is in seconds,
    as the server asked, not yet bounded. `sent` is False where the request certainly never reached the server.
    `doubted` tells that a refusal says something that cannot be true of the request (such as that its JSON cannot be
    read), so that it is to be believed only if it comes again.
    `ttft_s` and `output_tokens_per_s` are there where the answer was streamed (see `Record`).
    `cost` is what the usage costs at whoever answered (see `money`), None if nothing was billed or no price is known.
    `day` is there if a rate limit is that of a whole day.
    `by` is who that was, None if nobody was asked.
    """

    verdict: Verdict
    completion: Completion | None = None
    failure: Failure | None = None
    usage: Usage | None = None
    text: str | None = None
    retry_after: float | None = None
    axis: Axis = Axis.UNKNOWN
    limits: LimitHeaders | None = None
    latency_s: float = 0.0
    request_id: str | None = None
    model: str | None = None
    sent: bool = True
    ttft_s: float | None = None
    output_tokens_per_s: float | None = None
    doubted: bool = False
    cost: int | None = None
    day: DayLimit | None = None
    by: Answerer | None = None

    @property
    def may_be_own_fault(self) -> bool:
        """Whether the request itself may have caused this failure.

        So it is if the provider took the request and failed at it: a plain error (500, 504), an answer that holds none,
        a connection that was closed without a whole answer. A provider that is down may look the same.
        """
        failure = self.failure
        if failure is None or not self.sent:
            return False
        status = failure.http_status
        own = {ErrorKind.CONNECTION, ErrorKind.PROTOCOL, ErrorKind.INVALID_OUTPUT}
        if self.doubted or status in {500, 504} or failure.kind in own:
            return True
        return failure.kind is ErrorKind.SERVER and status is not None and status < 300
