"""What a run tells while it goes on: log-worthy events, and a snapshot of its counts.

Progress display, log lines and the live state file are peers: each takes the same frozen objects. Nothing here
knows how they are shown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Literal

from batchchat.dataclass import dataclass
from batchchat.records import Spend

Level = Literal["debug", "info", "warning", "error"]
Phase = Literal["starting", "running", "paused", "draining", "ending", "ended"]


@dataclass(frozen=True, slots=True)
class Event:
    """One thing worth a log line. `name` is from a small documented set; `fields` are JSON values."""

    name: str
    message: str
    level: Level = "info"
    fields: Mapping[str, object] = field(default_factory=dict)


Listener = Callable[[Event], None]
"""Takes events as they happen, on the event loop or in a worker thread. It must be quick and must not raise."""


@dataclass(frozen=True, slots=True)
class FailureGroup:
    """Failed rows of one kind, with one of their messages as an example."""

    kind: str
    count: int
    example: str
    row_index: int | None = None


@dataclass(frozen=True, slots=True)
class InFlight:
    """A request that is being answered now, or waits for its next attempt."""

    row_index: int
    custom_id: str
    attempt: int
    age_s: float
    state: Literal["sending", "waiting"]


@dataclass(frozen=True, slots=True)
class Pace:
    """What the limiter allows and what is used. A limit of None is not set; rates are over the last minute.

    `held_by` says in words what holds the run back now, and where that is known from; None if nothing does.
    `shared_by` is how many processes share the limit, this one included; 0 if it is this process's own.
    """

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    concurrency: int = 0
    requests_used: float = 0.0
    tokens_used: float = 0.0
    in_use: int = 0
    paused_s: float = 0.0
    breaker: Literal["closed", "open", "probing"] = "closed"
    held_by: str | None = None
    shared_by: int = 0


@dataclass(frozen=True, slots=True)
class BudgetUse:
    """A budget's caps (None is no cap), what is spent of them, and what is reserved for the requests under way.

    `requests` counts attempts that may have been sent, `unmetered` the answers that came without usage and were
    charged what was reserved for them. Money is in `currency`, None where money is not capped.
    """

    max_cost: float | None = None
    max_tokens: int | None = None
    max_requests: int | None = None
    cost: float = 0.0
    tokens: int = 0
    requests: int = 0
    reserved_cost: float = 0.0
    reserved_tokens: int = 0
    in_flight: int = 0
    unmetered: int = 0
    currency: str | None = None


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a run will have used at its end, as far as `answers` answered requests tell.

    `guessed_*` is the guess by size for the same requests. Until there are enough answers `tokens` and `cost` are that
    guess; then (`corrected`) they follow real usage, and `prompt_ratio` tells how many prompt tokens were billed for
    each guessed one. Money is None where no price is known.
    """

    answers: int
    corrected: bool
    tokens: int
    cost: float | None
    guessed_tokens: int
    guessed_cost: float | None
    prompt_ratio: float = 1.0


@dataclass(frozen=True, slots=True)
class Setting:
    """A field that a person changed in a run that is going on. A `value` of None is no limit."""

    field: str
    value: float | int | None
    by: str | None = None


@dataclass(frozen=True, slots=True)
class Steering:
    """What a person told a run that is going on. `paused_since` is UTC, ISO 8601; None if it is not known."""

    paused_since: str | None = None
    paused_by: str | None = None
    settings: tuple[Setting, ...] = ()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The counts of a run at one moment.

    `ok` and `failed` count rows of this pass that this run settled durably; `done_before` those that an earlier run
    had (or the archive gave back), `failed_before` failed rows of earlier runs that were not tried again. `total` is
    the number of rows of the pass: exact when `total_exact`, an estimate otherwise, None while nothing is known. Where
    the job asks each row `samples` times, all of these count samples. `uncommitted` outcomes wait to become
    durable; the commit that is under way has been going on for `commit_lag_s` seconds. `skipped` are those that the
    job's `skip` leaves out, as far as the input was read.
    """

    run_id: str
    job: str
    phase: Phase
    elapsed_s: float
    total: int | None = None
    total_exact: bool = False
    ok: int = 0
    failed: int = 0
    done_before: int = 0
    failed_before: int = 0
    sending: int = 0
    waiting: int = 0
    attempts: int = 0
    retries: int = 0
    rate_limited: int = 0
    spend: Spend = Spend()
    currency: str | None = None
    rows_per_s: float = 0.0
    tokens_per_s: float = 0.0
    eta_s: float | None = None
    failures: tuple[FailureGroup, ...] = ()
    pace: Pace = Pace()
    oldest: tuple[InFlight, ...] = ()
    samples: int = 1
    budget: BudgetUse | None = None
    forecast: Forecast | None = None
    cache_hits: int = 0
    prompt_id: str | None = None
    steering: Steering = Steering()
    uncommitted: int = 0
    commit_lag_s: float = 0.0
    skipped: int = 0


@dataclass(frozen=True, slots=True)
class AnsweredBy:
    """How many rows somebody answered, or was asked last for, and what they cost.

    `model` is the name that was asked for there, None if it is not known. `fallback` says that it was asked in place of
    the job's own model.
    """

    provider: str
    endpoint: str | None
    model: str | None
    fallback: bool
    ok: int
    failed: int
    cost: float


@dataclass(frozen=True, slots=True)
class StepShare:
    """What one step of a cascade did: how many rows it was asked for, and what became of them.

    `asked` = `ok` + `failed` + `passed_on`. `cost` is what this step alone was billed.
    """

    step: int
    model: str
    ok: int = 0
    failed: int = 0
    passed_on: int = 0
    cost: float = 0.0

    @property
    def asked(self) -> int:
        """For how many rows the step was asked."""
        return self.ok + self.failed + self.passed_on


@dataclass(frozen=True, slots=True)
class Streamed:
    """How streamed completions came, in the median, to within one per cent: see `Record` for what is measured."""

    median_ttft_s: float
    median_output_tokens_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class RunSummary:
    """How a run ended. `exit_code` is what the command line ends with; `reason` says why it ended early, if it did.

    Rows of the pass times `samples` = ok + failed + skipped + open. Rows of the dataset = ok + failed + kept. `ok` and
    `failed` count all samples of the pass, also those that an earlier run settled; `new_ok` and `new_failed` are this
    run's own; `skipped` ones have no request, since the job's `skip` is true of their row;
    where a row is asked once, these are counts of rows. `sent` counts attempts, `corrections` answers that did not fit
    and were asked for again. `streamed` is about this run's own completions, None where none was streamed. `resume` is
    the command that goes on, None where nothing is left to do. `prompt_id` tells the prompt of the job as it is;
    `earlier_prompt` of the `kept` records answer another one, of rows that this pass did not take. `retry` is the
    command that tries failed rows again, None if no row failed or the next run tries all of them anyway. `resets_at` is
    when the provider's limit of a day ends that stopped the run (UTC, ISO 8601), None if none did or it is not known.
    `looks_wrong` says in words what looks wrong in the answers, with the command that shows some.
    `answered_by` tells who was asked last for this run's records, `steps` what each step of a cascade did for them.
    """

    run_id: str
    job: str
    output: str
    provider: str
    model: str
    exit_code: int
    reason: str | None
    remedy: str | None
    elapsed_s: float
    rows: int
    ok: int
    failed: int
    open: int
    kept: int
    new_ok: int
    new_failed: int
    revived: int
    sent: int
    retries: int
    rate_limited: int
    spend: Spend
    spend_total: Spend
    currency: str | None
    rows_per_s: float
    failures: tuple[FailureGroup, ...] = ()
    warnings: tuple[str, ...] = ()
    note: str = ""
    resume: str | None = None
    corrections: int = 0
    samples: int = 1
    budget: BudgetUse | None = None
    forecast: Forecast | None = None
    cache_hits: int = 0
    streamed: Streamed | None = None
    prompt_id: str | None = None
    earlier_prompt: int = 0
    retry: str | None = None
    resets_at: str | None = None
    looks_wrong: tuple[str, ...] = ()
    answered_by: tuple[AnsweredBy, ...] = ()
    skipped: int = 0
    steps: tuple[StepShare, ...] = ()
