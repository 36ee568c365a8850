"""Making the records of one run: an outcome, or a row that yields no request, with what all records have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from batchchat.dataclass import dataclass
from batchchat.engines.port import EngineKind, Settled
from batchchat.intake import Invalid
from batchchat.money import as_float
from batchchat.records import Answerer, EarlierStep, Record, Request, Usage

_NO_USAGE = Usage()


@dataclass(frozen=True, slots=True)
class CommonFields:
    """What the records of one run have in common.

    `engine` is the job's, `by` who answered if a reply does not say. `cascaded`: the job has a cascade, so that records
    tell their step. `now_us` returns the time that a record gets, in microseconds since 1970.
    """

    run_id: str
    prompt_id: str | None
    engine: EngineKind
    by: Answerer | None
    cascaded: bool
    now_us: Callable[[], int]


class RecordMaker:
    """Makes records of outcomes. It runs once for each row, so that it takes no detour."""

    def __init__(self, common: CommonFields) -> None:
        # Read for each record: one attribute is quicker than two.
        self._run_id = common.run_id
        self._prompt_id = common.prompt_id
        self._engine: EngineKind = common.engine
        self._by = common.by
        self._cascaded = common.cascaded
        self._now_us = common.now_us

    def of_outcome(self, request: Request, outcome: Settled) -> Record:
        """Return the record of a request that was settled."""
        reply, failure, steps = outcome.reply, outcome.failure, request.steps
        completion = reply.completion
        usage = (
            reply.usage or request.usage if request.usage == _NO_USAGE else request.usage.plus(reply.usage or _NO_USAGE)
        )
        batch = request.batch
        # Field by field, and only what is there: so many keywords would take most of the time.
        record = Record(
            batch,
            request.offset,
            request.custom_id,
            request.key,
            batch.source,
            batch.first_index + request.offset,
            request.sample_index,
            self._run_id,
            "ok" if failure is None else "failed",
            reply.text,
        )
        if completion is not None:
            record.finish_reason = completion.finish_reason
            record.tool_calls = completion.tool_calls
            record.refusal = completion.refusal
            record.reasoning = completion.reasoning
            record.logprobs = completion.logprobs
            record.system_fingerprint, record.service_tier = completion.system_fingerprint, completion.service_tier
        (
            record.prompt_tokens,
            record.completion_tokens,
            record.total_tokens,
            record.cached_tokens,
            record.reasoning_tokens,
        ) = usage
        record.engine = engine = outcome.engine or self._engine
        # Without usage or a price the cost is not known: 0 would read as free.
        if usage.prompt_tokens is not None and not (reply.cost is None and request.cost is None):
            record.cost = as_float((reply.cost or 0) + (request.cost or 0))
        record.http_status = 200
        if failure is not None:
            record.error_kind, record.error_message = failure.kind.value, failure.message
            record.http_status = failure.http_status
        if steps is not None:
            record.corrections = steps.corrections
            if failure is None:
                record.error_message = steps.reasons
        record.model = reply.model
        record.request_id = reply.request_id
        record.attempts = request.attempts
        record.latency_s = round(reply.latency_s, 6) if engine == "local" else None
        record.ttft_s, record.output_tokens_per_s = reply.ttft_s, reply.output_tokens_per_s
        record.started_at, record.finished_at = request.started_at, self._now_us()
        record.tolerated, record.parsed = outcome.tolerated, outcome.parsed
        record.prompt_id = outcome.of_prompt or self._prompt_id
        if outcome.confidence is not None:
            record.confidence, record.confidence_detail = outcome.confidence.value, outcome.confidence.detail()
        by = reply.by or self._by
        # A row that was never sent has nobody who answered it.
        if by is not None and request.attempts:
            record.provider, record.endpoint = by.provider, by.endpoint
        if self._cascaded:
            record.step = len(request.earlier) + 1
            record.earlier_steps = tuple(_earlier(step) for step in request.earlier) or None
        return record

    def of_invalid(self, invalid: Invalid) -> Record:
        """Return the record of a row that yields no request."""
        now = self._now_us()
        return Record(
            batch=invalid.batch,
            offset=invalid.offset,
            custom_id=invalid.custom_id,
            key=invalid.key,
            source=invalid.batch.source,
            row_index=invalid.batch.first_index + invalid.offset,
            sample_index=invalid.sample_index,
            run_id=self._run_id,
            status="failed",
            error_kind=invalid.failure.kind.value,
            error_message=invalid.failure.message,
            started_at=now,
            finished_at=now,
            prompt_id=self._prompt_id,
        )


def _earlier(step: EarlierStep) -> dict[str, Any]:
    return {**step._asdict(), "cost": None if step.cost is None else as_float(step.cost)}
