"""The figures of runs by their names, units and labels, as every target shows them.

Names are written with dots here, as OpenTelemetry has them; Prometheus has underscores, the unit and `_total` for
counters behind them. The page `metrics` of the guide lists them; a test compares both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import field
from typing import Literal

from batchchat.dataclass import dataclass
from batchchat.events import Snapshot
from batchchat.metrics.recorder import Buckets, Recorder, RunMeter

Labels = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Family:
    """A figure with a value for each set of labels. `values` are numbers, `buckets` those of a histogram."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    unit: str
    help: str
    values: list[tuple[Labels, float]] = field(default_factory=list)
    buckets: list[tuple[Labels, Buckets]] = field(default_factory=list)


_Values = Callable[[Snapshot], Iterator[tuple[Labels, float | None]]]


def _one(value: Callable[[Snapshot], float | None]) -> _Values:
    """Return what yields a single value without labels."""

    def values(snapshot: Snapshot) -> Iterator[tuple[Labels, float | None]]:
        yield {}, value(snapshot)

    return values


def _rows(snapshot: Snapshot) -> Iterator[tuple[Labels, float | None]]:
    yield {"outcome": "ok"}, snapshot.ok
    yield {"outcome": "failed"}, snapshot.failed


def _before(snapshot: Snapshot) -> Iterator[tuple[Labels, float | None]]:
    yield {"outcome": "ok"}, snapshot.done_before
    yield {"outcome": "failed"}, snapshot.failed_before


def _failures(snapshot: Snapshot) -> Iterator[tuple[Labels, float | None]]:
    for group in snapshot.failures:
        yield {"kind": group.kind}, group.count


def _tokens(snapshot: Snapshot) -> Iterator[tuple[Labels, float | None]]:
    spend = snapshot.spend
    yield {"type": "input"}, spend.prompt_tokens
    yield {"type": "output"}, spend.completion_tokens
    yield {"type": "cached"}, spend.cached_tokens
    yield {"type": "reasoning"}, spend.reasoning_tokens


def _cost(snapshot: Snapshot) -> Iterator[tuple[Labels, float | None]]:
    if snapshot.currency is not None:
        yield {"currency": snapshot.currency}, snapshot.spend.cost


def _limits(snapshot: Snapshot) -> Iterator[tuple[Labels, float | None]]:
    pace = snapshot.pace
    yield {"limit": "requests_per_minute"}, pace.requests_per_minute
    yield {"limit": "tokens_per_minute"}, pace.tokens_per_minute
    yield {"limit": "concurrency"}, pace.concurrency


def _used(snapshot: Snapshot) -> Iterator[tuple[Labels, float | None]]:
    pace = snapshot.pace
    yield {"limit": "requests_per_minute"}, pace.requests_used
    yield {"limit": "tokens_per_minute"}, pace.tokens_used
    yield {"limit": "concurrency"}, pace.in_use


def _budget(snapshot: Snapshot) -> Iterator[tuple[Labels, float | None]]:
    budget = snapshot.budget
    # A job without a budget has no share of one.
    if budget is not None:
        for name, used, cap in (
            ("max_cost", budget.cost, budget.max_cost),
            ("max_tokens", budget.tokens, budget.max_tokens),
            ("max_requests", budget.requests, budget.max_requests),
        ):
            yield {"cap": name}, None if not cap else used / cap


_FAMILIES: tuple[tuple[str, Literal["counter", "gauge"], str, str, _Values], ...] = (
    ("rows", "counter", "", "Rows that this run settled, by outcome.", _rows),
    ("failures", "counter", "", "Failed rows of this run by the kind of failure.", _failures),
    ("requests", "counter", "", "Requests that this run sent, retries included.", _one(lambda one: one.attempts)),
    ("retries", "counter", "", "Requests that were a further attempt.", _one(lambda one: one.retries)),
    ("refusals", "counter", "", "Requests that a rate limit refused (429).", _one(lambda one: one.rate_limited)),
    ("answers", "counter", "", "Answers that may be billed.", _one(lambda one: one.spend.requests)),
    ("cache.hits", "counter", "", "Rows that took over the answer of an equal one.", _one(lambda one: one.cache_hits)),
    ("tokens", "counter", "", "Tokens of billed answers, by type; cached ones are input, too.", _tokens),
    ("cost", "counter", "", "What the billed answers cost, in the currency.", _cost),
    ("pass.rows", "gauge", "", "Rows of the pass, as far as it is known.", _one(lambda one: one.total)),
    ("rows.before", "gauge", "", "Rows of the pass that an earlier run settled, by outcome.", _before),
    ("rows.skipped", "gauge", "", "Rows of the pass that the job's `skip` leaves out.", _one(lambda one: one.skipped)),
    ("in_flight", "gauge", "", "Requests under way.", _one(lambda one: one.sending)),
    ("waiting", "gauge", "", "Requests that wait for their next attempt.", _one(lambda one: one.waiting)),
    ("limit", "gauge", "", "The limits that hold now; one that is not known is left out.", _limits),
    ("limit.used", "gauge", "", "What is used of the limits; rates over the last minute.", _used),
    ("budget.used", "gauge", "", "The share of each cap of the budget that is spent, from 0 to 1.", _budget),
    (
        "held",
        "gauge",
        "seconds",
        "Seconds until the provider takes requests again.",
        _one(lambda one: one.pace.paused_s),
    ),
    ("breaker.open", "gauge", "", "1 while the provider seems down.", _one(lambda one: one.pace.breaker != "closed")),
    ("paused", "gauge", "", "1 while a person has paused the run.", _one(lambda one: one.phase == "paused")),
    ("uncommitted", "gauge", "", "Outcomes that wait to become durable.", _one(lambda one: one.uncommitted)),
    ("commit.lag", "gauge", "seconds", "Age of the commit that is under way.", _one(lambda one: one.commit_lag_s)),
    ("elapsed", "gauge", "seconds", "Time since the start of the run.", _one(lambda one: one.elapsed_s)),
    ("eta", "gauge", "seconds", "Time to the end of the pass at this speed.", _one(lambda one: one.eta_s)),
)


def labels_of(meter: RunMeter) -> dict[str, str]:
    """Return the labels that each figure of a run has."""
    found = {"job": meter.job}
    return {**found, "variant": meter.variant} if meter.variant else found


def families(recorder: Recorder) -> list[Family]:
    """Return all figures as they are now. May be called from any thread."""
    meters = [(labels_of(meter), meter, meter.snapshot) for meter in recorder.meters()]
    found = []
    for name, kind, unit, text, values in _FAMILIES:
        family = Family(f"batchchat.{name}", kind, unit, text)
        for labels, _, snapshot in meters:
            if snapshot is not None:
                family.values.extend(
                    ({**labels, **more}, float(value)) for more, value in values(snapshot) if value is not None
                )
        found.append(family)
    updated = Family("batchchat.updated", "gauge", "seconds", "When these figures were taken, in seconds since 1970.")
    ended = Family("batchchat.exit_code", "gauge", "", "How the run ended; not there while it goes on.")
    for labels, meter, _ in meters:
        updated.values.append((labels, meter.updated))
        # An alert can ask whether it is there at all.
        if meter.exit_code is not None:
            ended.values.append((labels, float(meter.exit_code)))
    return [*found, updated, ended, *_histograms(recorder)]


def _histograms(recorder: Recorder) -> Iterator[Family]:
    duration = Family("batchchat.duration", "histogram", "seconds", "Time from a row's last request to its answer.")
    tokens = Family("batchchat.row.tokens", "histogram", "", "Tokens of each row's answers, by type.")
    for meter in recorder.meters():
        labels = labels_of(meter)
        for answers in meter.answers():
            more = {**labels, "model": answers.model, "outcome": answers.error_kind or "ok"}
            duration.buckets.append((more, answers.duration_s))
            tokens.buckets.append(({**more, "type": "input"}, answers.input_tokens))
            tokens.buckets.append(({**more, "type": "output"}, answers.output_tokens))
    yield duration
    yield tokens


def prometheus_name(family: Family) -> str:
    """Return a figure's name for Prometheus: with underscores, its unit, and `_total` if it is a counter."""
    name = family.name.replace(".", "_")
    if family.unit:
        name += f"_{family.unit}"
    return f"{name}_total" if family.kind == "counter" else name
