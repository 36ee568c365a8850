"""What can be looked at: frozen views of a plan, an output's state and a record, made for rendering or JSON.

They stand below both sides: `plan` and `inspection` fill them, the command line draws them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any, Literal

from batchchat.dataclass import dataclass
from batchchat.events import AnsweredBy, FailureGroup, Snapshot, StepShare, Streamed
from batchchat.records import Spend

Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RequestPreview:
    """One request as it would be sent: its messages, rendered, and the fields beside them (`params`)."""

    custom_id: str
    row_index: int
    key: str | None
    messages: Sequence[Message]
    sample_index: int = 0
    params: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PlanCap:
    """A cap of the budget, by its name in the job, and what the whole run is estimated to need of it."""

    name: str
    cap: float
    needed: float | None


@dataclass(frozen=True, slots=True)
class EnginePlan:
    """What the requests of a run would cost through one engine, and how long they would take.

    For `batch`: `batches` is how many there would be at least, `nbytes` what is uploaded, `window` the time that the
    provider has, `price_factor` the share of the usual price, as it was read on the day `as_of`. `problem` says why the
    provider's batches cannot be used as the job is; then the other figures are None. `chosen` is the job's own engine.
    """

    engine: Literal["local", "batch"]
    chosen: bool
    cost: float | None = None
    duration_s: float | None = None
    batches: int | None = None
    nbytes: int | None = None
    window: str | None = None
    price_factor: float | None = None
    as_of: str | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What a step of a cascade would be asked.

    `threshold` is the least confidence that is taken, None at the last step. `share` is that of the rows which reach
    the step, as in the records that are here; None if none tells it. Then `requests` and `cost` are for all rows.
    """

    step: int
    model: str
    threshold: float | None
    share: float | None
    requests: int
    cost: float | None


@dataclass(frozen=True, slots=True)
class LongPrompt:
    """One of the longest prompts of a plan: its row, and its tokens as they are estimated by size."""

    row_index: int
    key: str | None
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class PlanView:
    """What a run would do, counted and estimated, with nothing sent.

    Rows, or samples where a row is asked `samples` times: `new` have no record; `changed` have one of an earlier prompt
    or row; `done` need nothing; `failed` failed before, of which `retried` would be tried again; `archived` come back
    from the archive; `unreadable` cannot be read or rendered. `kept` records belong to no row of this input,
    `surplus` ones are samples that the job asks for no more.
    `prompt_tokens`, `completion_tokens`, `cost` and `duration_s` are estimates for the `requests` to send, found as
    `method` says; `binding` names the limit that decides the duration. `cached` answers are in the `cache`; `equal`
    requests ask the same as another one, and are sent or not as `dedupe` says; `requests` are those that are sent.
    `spent` is what the output has cost so far. `failures` tell why the `unreadable` ones would fail, by kind and
    message, the most frequent first. `empty` rows have nothing in any column that the messages name.
    `earlier_prompt` of the `kept` records answer another prompt than the job's.
    `longest` are the longest prompts to be sent, the longest first.
    `skipped` ones are not sent since the job's `skip` is true of their row.
    `engines` compares single requests with batches; `cost` is that of the job's own engine. `steps` are those of a
    cascade: `cost` is their sum, and `requests` are those of the first one.
    `key` says where the provider's key comes from, None if it needs none, and `key_found` whether it is there (of a
    command: whether its program is).
    """

    job: str
    input: str
    output: str
    provider: str
    model: str
    previews: Sequence[RequestPreview]
    new: int
    changed: int
    done: int
    failed: int
    retried: int
    archived: int
    unreadable: int
    kept: int
    requests: int
    prompt_tokens: int | None
    completion_tokens: int | None
    cost: float | None
    currency: str | None
    prices_as_of: str | None
    duration_s: float | None
    binding: str | None
    method: str
    spent: Spend = Spend()
    warnings: Sequence[str] = ()
    note: str = ""
    command: str | None = None
    samples: int = 1
    surplus: int = 0
    caps: Sequence[PlanCap] = ()
    deadline_s: float | None = None
    cache: str | None = None
    cached: int = 0
    dedupe: bool = False
    equal: int = 0
    failures: Sequence[FailureGroup] = ()
    empty: int = 0
    earlier_prompt: int = 0
    engines: Sequence[EnginePlan] = ()
    key: str | None = None
    key_found: bool | None = None
    steps: Sequence[StepPlan] = ()
    skipped: int = 0
    longest: Sequence[LongPrompt] = ()


@dataclass(frozen=True, slots=True)
class Running:
    """The run that holds the output now: process, machine, and when it began (UTC, ISO 8601; empty if not known)."""

    pid: int
    host: str
    since: str


@dataclass(frozen=True, slots=True)
class LastRun:
    """How the last run ended, and when (UTC, ISO 8601); an `exit_code` of None: it was killed, and could not say.

    `resets_at` is when the provider's limit of a day ends that stopped the run (UTC, ISO 8601), if it is known.
    """

    run_id: str
    exit_code: int | None
    reason: str | None
    ended: str | None
    resets_at: str | None = None


@dataclass(frozen=True, slots=True)
class BatchView:
    """A batch of an output.

    `state` is the provider's word, or says how far the batch is before and after that. `batch` is the provider's
    identity, None before it is created. `total`, `completed` and `failed` are the provider's counts, None if it tells
    none; `harvested` counts the requests whose answers are counted here. Times are UTC, ISO 8601.
    """

    number: int
    name: str
    batch: str | None
    state: str
    requests: int
    total: int | None
    completed: int | None
    failed: int | None
    harvested: int
    created: str | None
    age_s: float | None
    expires: str | None


@dataclass(frozen=True, slots=True)
class StatusView:
    """What an output holds. `live` is the newest snapshot of the run that is going on, if one is.

    `open` is None where the number of rows is not known. `spent` is the sum of the ledger. `ok`, `failed` and `open`
    count samples where the job asks each row `samples` times, else rows. `streamed` is about the completions that were
    streamed, None where none was. `earlier_prompt` of the `ok` answer another prompt than that of the latest run.
    `batches` are those of a provider's Batch API, the oldest first. People reviewed `reviewed` rows; `reviewers` is how
    many they were. `answered_by` counts the records by who was asked last for them; it is empty for what an earlier
    version wrote. `skipped` are those that the job's `skip` left out in the latest run.
    """

    job: str
    output: str
    running: Running | None
    last: LastRun | None
    ok: int
    failed: int
    open: int | None
    failures: Sequence[FailureGroup] = ()
    spent: Spend = Spend()
    currency: str | None = None
    live: Snapshot | None = None
    warnings: Sequence[str] = ()
    command: str | None = None
    samples: int = 1
    streamed: Streamed | None = None
    earlier_prompt: int = 0
    batches: Sequence[BatchView] = ()
    reviewed: int = 0
    reviewers: int = 0
    answered_by: Sequence[AnsweredBy] = ()
    steps: Sequence[StepShare] = ()
    skipped: int = 0


@dataclass(frozen=True, slots=True)
class RecordView:
    """One record: the input's columns, the output's own columns (by name), and the messages rendered again.

    `messages` is None where they cannot be rendered again; `note` then says why.
    """

    input: Mapping[str, object]
    record: Mapping[str, Any]
    messages: Sequence[Message] | None
    note: str = ""


@dataclass(frozen=True, slots=True)
class PastRun:
    """One run into an output. `started` and `ended` are UTC, ISO 8601; None where not known.

    `new_ok`, `new_failed` and `cache_hits` count its own records; of a run that did not end by itself those that are
    live still. `requests` are the attempts that it made (None: not known), `answers` those of them that were billed,
    with tokens and cost from the ledger. An `exit_code` of None: it is running, or was killed. `prompt_id` tells its
    prompt, None if that is not known. `skipped` rows (or samples) of the whole pass were not sent.
    """

    run_id: str
    state: Literal["ended", "killed", "running"]
    started: str | None
    ended: str | None
    duration_s: float | None
    new_ok: int
    new_failed: int
    cache_hits: int
    requests: int | None
    answers: int
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cost: float
    currency: str | None
    exit_code: int | None
    reason: str | None
    prompt_id: str | None = None
    skipped: int = 0


@dataclass(frozen=True, slots=True)
class RunTotal:
    """Sums over all runs into an output, as far as they are known."""

    runs: int
    new_ok: int
    new_failed: int
    cache_hits: int
    requests: int
    answers: int
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cost: float


@dataclass(frozen=True, slots=True)
class HistoryView:
    """All runs into an output, the oldest first. Costs are in `currency`, None where no price was ever known."""

    job: str
    output: str
    currency: str | None
    runs: Sequence[PastRun]
    total: RunTotal
