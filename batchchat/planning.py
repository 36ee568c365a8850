"""What a run would do and cost, without sending or writing anything. Blocking code."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pyarrow.compute as pc

from batchchat.addresses import address_of
from batchchat.errors import JobError, UsageError
from batchchat.events import FailureGroup, StepShare
from batchchat.images import shortened
from batchchat.intake import Intake, PassCounts, Sorted
from batchchat.job import Job, key_problem, load_keys
from batchchat.job.targets import endpoint_key_problem, has_several, targets_of
from batchchat.job.values import nearest
from batchchat.limits import FIRST_COMPLETION
from batchchat.money import Tariff, as_float
from batchchat.providers import DEMO, Provider
from batchchat.records import Request, Spend, Usage
from batchchat.runner.options import RunOptions
from batchchat.runner.preparation import Prepared, prepare
from batchchat.runner.rows import Rows, pass_of, prompt_id_of
from batchchat.runner.shard_choice import shards_for
from batchchat.runner.step_shares import STEP_COLUMNS, StepShares, count_steps, taken_below
from batchchat.sources import GivenRows
from batchchat.store import Frozen, Output, check_currency, frozen_schema, is_output, read_state
from batchchat.store.index import KeyIndex, RecordIndex
from batchchat.store.known import KnownRows, Pass
from batchchat.views import EnginePlan, LongPrompt, PlanCap, PlanView, RequestPreview, StepPlan

if TYPE_CHECKING:
    from batchchat.cache import AnswerCache

_DEFAULTS = RunOptions()
_PREVIEWS = 2
_SLICE = 512
_LONGEST = 3
"""Rows with long prompts that a plan names."""
_EXPECTED_LATENCY_S = 2.0
_REASONS_TOLD_APART = 50
"""Messages of rows that would fail, of which each has a count of its own; what comes later is counted by its kind."""
_UNSET_CONCURRENCY = 64


def plan_job(
    job: Job, options: RunOptions = _DEFAULTS, *, previews: int = _PREVIEWS, rows: GivenRows | None = None
) -> PlanView:
    """Read the input, render what an earlier run does not know, and tell what a run would send. Raises UsageError.

    `rows` take the place of the job's input; an iterator is used up by it.
    """
    directory = address_of(job.output.path)
    fresh = options.fresh or not is_output(directory)
    frozen = Frozen() if fresh else frozen_schema(directory)
    prepared = prepare(
        job,
        frozen=frozen,
        limit=options.limit,
        sample=options.sample,
        seed=options.seed,
        rows=rows,
        chosen=options.rows,
        shards=shards_for(job, options),
    )
    job, provider = prepared.job, prepared.provider
    if not fresh:
        check_currency(directory, provider.currency if job.model in provider.prices else None)
    reopens = options.retry_failed
    reopens = job.retry.reopens() if reopens is None else reopens
    history = _History(
        directory, fresh=fresh, job=job, following=pass_of(prepared, reopens), prompt_id=prompt_id_of(prepared)
    )
    intake = prepared.intake(history.index, history.keys, reopens=reopens, answer_ids=True)
    with closing(_Sharing(job)) as sharing, closing(history):
        reader = _Reader(prepared, intake, history, sharing)
        reader.read(previews)
    return _view(prepared, history, reader, _Estimate(prepared, history, reader))


class _Estimate:
    """What the requests of a plan would cost, and how long they would take, through each engine."""

    def __init__(self, prepared: Prepared, history: _History, reader: _Reader) -> None:
        job, provider, usage = prepared.job, prepared.provider, reader.usage
        requests = reader.to_send
        self.duration_s, self.binding = _duration(requests, _tokens(usage), job, provider, history.latency_s)
        self.tariff = Tariff.of(provider.prices.get(job.model), provider.tiers.get(job.params.service_tier or "", 1.0))
        self.cost = as_float(self.tariff.cost(usage)) if self.tariff is not None else None
        self.steps = _cascade_steps(job, history.shares, requests, usage)
        if self.steps:
            known = [step.cost for step in self.steps if step.cost is not None]
            # A sum without the step whose price is not known would be told as the cost of all.
            self.cost = sum(known) if len(known) == len(self.steps) else None
        self.engines = [EnginePlan("local", not job.engine.batch, self.cost, self.duration_s)]
        if requests:
            batch = _batch_engine(job, provider, requests, usage, reader.nbytes)
            self.engines.append(batch)
            if job.engine.batch:
                # A provider says by when a batch ends at the latest, and nobody knows when it will.
                self.cost, self.duration_s, self.binding = batch.cost, None, None


def _tokens(usage: Usage) -> int:
    return (usage.prompt_tokens or 0) + (usage.completion_tokens or 0)


def _view(prepared: Prepared, history: _History, reader: _Reader, estimate: _Estimate) -> PlanView:
    job, provider, tariff = prepared.job, prepared.provider, estimate.tariff
    counts, sharing, usage = reader.counts, reader.sharing, reader.usage
    surplus = history.surplus if prepared.selection.whole else 0
    # With a key a changed row takes the place of its old record, which is therefore not kept.
    kept = history.index.counts().kept - surplus - (counts.changed if job.input.key is not None else 0)
    no_key = key_problem(job, provider, load_keys(job))
    return PlanView(
        job=job.name,
        input=job.input.path,
        output=job.output.path,
        provider=provider.name,
        model=job.model,
        previews=reader.shown,
        new=counts.new,
        changed=counts.changed,
        done=counts.done,
        failed=counts.failed_before + counts.reopened,
        retried=counts.reopened,
        archived=counts.archived,
        unreadable=counts.invalid,
        skipped=counts.skipped,
        longest=reader.longest(),
        kept=kept,
        surplus=surplus,
        requests=reader.to_send,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cost=estimate.cost,
        currency=provider.currency if tariff else None,
        prices_as_of=provider.prices_as_of if tariff else None,
        duration_s=estimate.duration_s,
        binding=estimate.binding,
        method=history.method,
        spent=history.spent,
        warnings=_warnings(prepared, history, reader, no_key),
        note=provider.note if provider.name == DEMO else "",
        samples=job.samples,
        caps=_caps(job, reader.to_send, usage, estimate.cost),
        deadline_s=job.deadline,
        cache=job.cache,
        cached=sharing.cached,
        dedupe=job.dedupe or job.cache is not None,
        equal=sharing.equal,
        failures=reader.failures(),
        empty=reader.empty,
        earlier_prompt=min(history.others, kept),
        engines=estimate.engines if len(estimate.engines) > 1 else (),
        steps=estimate.steps,
        key=provider.key_place,
        key_found=None if provider.key_place is None else no_key is None,
    )


def _warnings(prepared: Prepared, history: _History, reader: _Reader, no_key: JobError | None) -> list[str]:
    job = prepared.job
    return [
        *prepared.warnings,
        *prepared.empty.warning(reader.empty, f"the {reader.counts.rows:,}"),
        *prepared.source.warnings,
        *_price_warning(job, prepared.provider),
        *_below_warning(job, history.below),
        *(_endpoint_warnings(job) if has_several(job) else _key_warning(no_key)),
    ]


_LINE_BYTES = 110
"""Bytes of a line beside its body: identity, method, address and braces."""


def _batch_engine(job: Job, provider: Provider, requests: int, usage: Usage, nbytes: int) -> EnginePlan:
    """Return what the requests would cost through the provider's Batch API. Asks nobody."""
    from batchchat.engines.batch.building import Bounds
    from batchchat.engines.batch.prices import batch_tariff, terms_of
    from batchchat.engines.batch.services import open_service

    fields = job.engine
    address = provider if provider.base_url is not None else provider.with_base_url("http://demo.invalid/v1")
    try:
        service = open_service(address, fields, api_key=None, environ=load_keys(job), model=job.model)
        terms, tariff = terms_of(provider, fields), batch_tariff(provider, job.model, fields)
    except UsageError as error:
        return EnginePlan("batch", fields.batch, problem=error.message)
    bounds = Bounds.of(service, lines=fields.max_lines, nbytes=fields.max_bytes, queued_tokens=fields.queued_tokens)
    nbytes += requests * _LINE_BYTES
    batches = max(math.ceil(requests / bounds.lines), math.ceil(nbytes / bounds.nbytes))
    if bounds.queued_tokens is not None:
        batches = max(batches, math.ceil((usage.prompt_tokens or 0) / bounds.queued_tokens))
    return EnginePlan(
        "batch",
        fields.batch,
        cost=None if tariff is None else as_float(tariff.cost(usage)),
        batches=batches,
        nbytes=nbytes,
        window=fields.window or (terms.window if terms is not None else service.limits.window),
        price_factor=None if terms is None else terms.factor,
        as_of=None if terms is None else terms.as_of,
    )


def _cascade_steps(job: Job, shares: Sequence[StepShare], requests: int, usage: Usage) -> list[StepPlan]:
    """Return what each step of a cascade would be asked: as many of the rows as reached it in the records here."""
    if not job.cascade:
        return []
    asked = {share.step: share.asked for share in shares}
    every = asked.get(1, 0)
    found = []
    for target in targets_of(job):
        if target.on:
            continue  # who is asked in place of another one
        number = target.step or 1
        share = 1.0 if number == 1 else asked.get(number, 0) / every if every else None
        tariff = Tariff.of(target.provider.prices.get(target.model))
        reached = round(requests * (1.0 if share is None else share))
        cost = None if tariff is None else as_float(tariff.cost(usage)) * (1.0 if share is None else share)
        accept = job.cascade[number - 1].accept
        found.append(
            StepPlan(number, target.model, None if accept is None else accept.confidence, share, reached, cost)
        )
    return found


def _below_warning(job: Job, below: int) -> list[str]:
    """Say that answers were taken under a lower threshold than today's."""
    if not below:
        return []
    taken = f"cascade: {below:,} answers here were taken with a confidence below the threshold of today"
    return [f"{taken}. They stay as they are: a threshold holds for the rows that are asked from now on"]


class _Reader:
    """Reads the rows that need a look, and counts what would become of them.

    `shown` are the first requests, `usage` the tokens to expect of those to be sent. `empty` counts those whose request
    would hold nothing of the row, `nbytes` the bytes of what would be sent.
    """

    def __init__(self, prepared: Prepared, intake: Intake, history: _History, sharing: _Sharing) -> None:
        self._prepared = prepared
        self._intake = intake
        self._history = history
        self.sharing = sharing
        self.shown: list[RequestPreview] = []
        self.usage = Usage(0, 0)
        self._failed: dict[tuple[str, str], FailureGroup] = {}
        self._longest: list[tuple[int, int, str | None]] = []
        self.empty = 0
        self.nbytes = 0

    def read(self, previews: int) -> None:
        """Sort the rows, and keep so many of the first requests."""
        history, prepared = self._history, self._prepared
        if history.known is not None:
            self._intake.pass_over(history.known)
        prompt_tokens, completion_tokens = 0.0, 0.0
        for batch, known in Rows(prepared, history.known):
            if prepared.selection.past(batch.first_index):
                break
            for found in self._intake.slices(batch, _SLICE, known):
                _preview(found, self.shown, previews)
                self._count_failed(found)
                asked = {(request.batch.first_index, request.offset): request for request in found.requests}
                self.empty += sum(prepared.empty.finds(each.batch.values[each.offset]) for each in asked.values())
                for request in self.sharing.left(found.requests):
                    self._note_length(request)
                    prompt_tokens += request.prompt_tokens * history.prompt_ratio
                    completion_tokens += min(history.completion, request.max_tokens or math.inf)
                    self.nbytes += len(request.body)
        self.usage = Usage(round(prompt_tokens), round(completion_tokens))

    @property
    def counts(self) -> PassCounts:
        """What became of the rows."""
        return self._intake.counts

    @property
    def to_send(self) -> int:
        """How many requests would be sent."""
        return self.counts.to_send - self.sharing.saved

    def _note_length(self, request: Request) -> None:
        """Keep the longest prompts, one of each row; of equal ones the first."""
        longest = self._longest
        if request.sample_index or (len(longest) == _LONGEST and request.prompt_tokens <= longest[0][0]):
            return
        push = heapq.heappush if len(longest) < _LONGEST else heapq.heappushpop
        push(longest, (request.prompt_tokens, -request.row_index, request.key))

    def longest(self) -> list[LongPrompt]:
        """Return the longest prompts, with the tokens that are expected of them, the longest first."""
        ratio = self._history.prompt_ratio
        return [
            LongPrompt(-row, key, round(tokens * ratio)) for tokens, row, key in sorted(self._longest, reverse=True)
        ]

    def _count_failed(self, found: Sorted) -> None:
        for invalid in found.invalid:
            kind, message = invalid.failure.kind.value, invalid.failure.message
            row = invalid.batch.first_index + invalid.offset
            name = kind, message if len(self._failed) < _REASONS_TOLD_APART or (kind, message) in self._failed else ""
            group = self._failed.get(name)
            if group is None:
                self._failed[name] = FailureGroup(kind, 1, message, row)
            else:
                self._failed[name] = replace(group, count=group.count + 1)

    def failures(self) -> list[FailureGroup]:
        """Return why rows would fail, the most frequent reason first."""
        return sorted(self._failed.values(), key=lambda group: -group.count)


class _Sharing:
    """Counts the requests that need not be sent: their answer is in the cache, or an equal one is sent before them.

    Equal requests are counted also where the job sends them all, so that one can see what `dedupe` would save.
    """

    def __init__(self, job: Job) -> None:
        self._once = job.dedupe or job.cache is not None
        self.cached = 0
        self.equal = 0
        self._job = job
        self._met = RecordIndex()
        self._cache: AnswerCache | None = None
        if job.cache is not None:
            from batchchat.cache import AnswerCache

            self._cache = AnswerCache.existing(job.cache)

    def close(self) -> None:
        """Let go of the cache."""
        if self._cache is not None:
            self._cache.close()

    @property
    def saved(self) -> int:
        """Requests that will not be sent."""
        return self.cached + (self.equal if self._once else 0)

    def left(self, requests: Sequence[Request]) -> list[Request]:
        """The requests that will be sent."""
        known = self._cache.known([request.answer_id for request in requests]) if self._cache is not None else ()
        left = []
        for request in requests:
            # Not marked as met: that an answer is cached says nothing of equal requests of this pass.
            if request.answer_id in known:
                self.cached += 1
                continue
            name = request.answer_id.hex()
            again = self._met.is_seen(name)
            self.equal += again
            if not again:
                self._met.mark_seen(name)
            if not (again and self._once):
                left.append(request)
        return left


def _caps(job: Job, requests: int, usage: Usage, cost: float | None) -> list[PlanCap]:
    """The caps of the budget, and what the run would need of each."""
    tokens = (usage.prompt_tokens or 0) + (usage.completion_tokens or 0)
    needed = {"max_cost": cost, "max_tokens": tokens, "max_requests": requests}
    caps = ((name, getattr(job.budget, name)) for name in needed)
    return [PlanCap(name, cap, needed[name]) for name, cap in caps if cap is not None]


class _History:
    """What an earlier run into the same output teaches: what is done, how long answers are, how long they take.

    `known` are the rows that it knew, if they may be passed over. `others` counts the records of another prompt.
    """

    def __init__(self, directory: Path | str, *, fresh: bool, job: Job, following: Pass | None, prompt_id: str) -> None:
        self.known: KnownRows | None = None
        self.index, self.keys = RecordIndex(), KeyIndex() if job.input.key is not None else None
        self.prompt_ratio, self.completion, self.latency_s = 1.0, FIRST_COMPLETION, _EXPECTED_LATENCY_S
        self.method = (
            "prompt tokens by size (4 characters a token in Latin script, 3 bytes otherwise), "
            f"{FIRST_COMPLETION:g} tokens an answer or max_tokens if less, {_EXPECTED_LATENCY_S:g} s an answer; "
            "corrected by what was really used once there are answers"
        )
        self.spent = Spend()
        self.surplus = self.others = self.below = 0
        self.shares: tuple[StepShare, ...] = ()
        # A fresh run begins an empty output: what is there teaches nothing of it.
        if fresh:
            return
        output = read_state(directory)
        self.known = None if following is None else output.known(following)
        self.index, self.keys = output.load_index(with_keys=job.input.key is not None, known=self.known)
        if self.known is not None:
            self.known.look_up(self.index, self.keys)
        self.spent = output.spend
        answered, completion, latency = 0, 0, 0.0
        # An output of an earlier version has no such column.
        by_prompt = ["prompt_id"] if "prompt_id" in output.own_columns else []
        for batch in output.records(["status", "completion_tokens", "latency_s", "sample_index", *by_prompt]):
            if by_prompt:
                self.others += pc.not_equal(batch.column("prompt_id"), prompt_id).true_count
            self.surplus += pc.sum(pc.greater_equal(batch.column("sample_index"), job.samples)).as_py() or 0
            status, tokens, seconds = (batch.column(name) for name in ("status", "completion_tokens", "latency_s"))
            told = pc.and_(pc.equal(status, "ok"), pc.and_(pc.is_valid(tokens), pc.is_valid(seconds)))
            answered += pc.sum(told).as_py() or 0
            completion += pc.sum(tokens.filter(told)).as_py() or 0
            latency += pc.sum(seconds.filter(told)).as_py() or 0.0
        if job.cascade:
            self._look_at_steps(output, job)
        # Without one answer the guesses stay, and the plan says that they are guesses.
        if answered:
            self.completion, self.latency_s = completion / answered, latency / answered
            size = "prompt tokens by size (4 characters a token in Latin script, 3 bytes otherwise)"
            ratio = _prompt_ratio(output.runs)
            if ratio is not None:
                self.prompt_ratio = ratio
                size += f" times {ratio:.2f}, which they were in the last run"
            self.method = f"{size}; length and time of an answer from the {answered:,} answers that are here"

    def _look_at_steps(self, output: Output, job: Job) -> None:
        """Count how far the records here went in a cascade, and what today's thresholds would not have taken."""
        # An output that was made before the job had a cascade.
        if not set(STEP_COLUMNS) <= set(output.own_columns):
            return
        shares = StepShares([step.model for step in job.cascade])
        for batch in output.records(["status", "cost", *STEP_COLUMNS]):
            count_steps(batch, shares)
        self.shares = shares.shares()
        self.below = taken_below(
            output, [None if step.accept is None else step.accept.confidence for step in job.cascade]
        )

    def close(self) -> None:
        """Let go of the output's files."""
        if self.known is not None:
            self.known.trail.close()


def _prompt_ratio(runs: Sequence[Mapping[str, Any]]) -> float | None:
    """How many prompt tokens were billed for each one that was guessed, in the last run that had enough answers."""
    for run in reversed(runs):
        forecast = run.get("forecast")
        if isinstance(forecast, dict) and forecast.get("corrected"):
            ratio = forecast.get("prompt_ratio")
            # A ratio out of reason, from another version or by hand, would spoil every figure of the plan.
            return ratio if isinstance(ratio, float) and 0.01 < ratio < 100 else None
    return None


def _preview(found: Sorted, shown: list[RequestPreview], previews: int) -> None:
    """Show the first requests, one of each row."""
    for request in found.requests:
        if len(shown) >= previews:
            return
        # The samples of a row would all look the same.
        if shown and shown[-1].row_index == request.row_index:
            continue
        body: dict[str, Any] = orjson.loads(request.body)
        messages = [_without_pictures(message) for message in body.pop("messages")]
        # The page names the model once for all requests.
        body.pop("model", None)
        shown.append(
            RequestPreview(request.custom_id, request.row_index, request.key, messages, request.sample_index, body)
        )


def _without_pictures(message: dict[str, Any]) -> dict[str, Any]:
    """A message whose images, files and sound are told by the beginning of their data."""
    content = message.get("content")
    if not isinstance(content, list):
        return message
    return {**message, "content": [_without_picture(part) for part in content]}


def _without_picture(part: dict[str, Any]) -> dict[str, Any]:
    for name, inside in (("image_url", "url"), ("file", "file_data"), ("input_audio", "data")):
        media = part.get(name)
        if isinstance(media, dict) and isinstance(media.get(inside), str):
            return {**part, name: {**media, inside: shortened(media[inside], content=name == "input_audio")}}
    return part


def _duration(
    requests: int, tokens: float, job: Job, provider: Provider, latency_s: float
) -> tuple[float | None, str | None]:
    """Seconds under the limits, and the limit that decides them."""
    # Else a limit would be named that holds nothing back.
    if not requests:
        return 0.0, None
    limits = job.limits
    per_minute = limits.requests_per_minute or provider.requests_per_minute
    token_rate = limits.tokens_per_minute or provider.tokens_per_minute
    concurrency = limits.concurrency or provider.concurrency or _UNSET_CONCURRENCY
    times = {"concurrency": math.ceil(requests / concurrency) * latency_s}
    if per_minute:
        times["requests per minute"] = requests / per_minute * 60
    if token_rate:
        times["tokens per minute"] = tokens / token_rate * 60
    binding = max(times, key=lambda name: times[name])
    # How much of it others take is not known before the run.
    return times[binding], f"{binding}, shared with other runs" if limits.shared else binding


def _price_warning(job: Job, provider: Provider) -> list[str]:
    """Say if a provider with a list of prices does not have the model in it: its name may be wrong.

    A model on a machine of one's own has no price, and needs none.
    """
    if job.model in provider.prices or not provider.prices:
        return []
    near = nearest(job.model, list(provider.prices))
    remedy = "give your own price with `prices: {input: …, output: …, currency: …}`"
    listed = f"`batchchat providers {provider.name}` lists its models"
    warning = (
        f"model: no price is known for {job.model} at {provider.name}{near}, so costs are not counted. "
        f"{listed}; {remedy}"
    )
    return [warning]


def _endpoint_warnings(job: Job) -> list[str]:
    """Say which endpoint lacks its key or the model. Raises JobError if no endpoint has the model."""
    from batchchat.endpoints.models import models_warnings

    environ = load_keys(job)
    problem = endpoint_key_problem(job, environ)
    return _key_warning(problem) if problem is not None else models_warnings(job, environ)


def _key_warning(problem: JobError | None) -> list[str]:
    """A missing key stops a run, not a plan; it is said all the same."""
    return [] if problem is None else [f"{problem.message}. A run needs it."]
