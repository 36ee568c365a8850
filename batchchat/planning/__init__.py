"""What a run would do and cost, without sending or writing anything. Blocking code."""

from __future__ import annotations

from contextlib import closing

from batchchat.addresses import address_of
from batchchat.job import Job, key_problem, load_keys
from batchchat.planning.earlier import EarlierRuns
from batchchat.planning.estimate import PlanEstimate, budget_caps
from batchchat.planning.reader import EqualRequests, PlanReader
from batchchat.planning.remarks import plan_warnings
from batchchat.providers import DEMO
from batchchat.runner.options import RunOptions
from batchchat.runner.preparation import Prepared, prepare
from batchchat.runner.rows import pass_of, prompt_id_of
from batchchat.runner.shard_choice import shards_for
from batchchat.sources import GivenRows
from batchchat.store import Frozen, check_currency, frozen_schema, is_output
from batchchat.views import PlanView

_DEFAULTS = RunOptions()
_PREVIEWS = 2
"""Requests that a plan shows: with two, one sees what differs from row to row."""


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
    earlier = EarlierRuns(
        directory, fresh=fresh, job=job, following=pass_of(prepared, reopens), prompt_id=prompt_id_of(prepared)
    )
    intake = prepared.intake(earlier.index, earlier.keys, reopens=reopens, answer_ids=True)
    with closing(EqualRequests(job)) as equal_requests, closing(earlier):
        reader = PlanReader(prepared, intake, earlier, equal_requests)
        reader.read(previews)
    return _view(prepared, earlier, reader, PlanEstimate(prepared, earlier, reader))


def _view(prepared: Prepared, earlier: EarlierRuns, reader: PlanReader, estimate: PlanEstimate) -> PlanView:
    """Put what was found together."""
    job, provider, tariff = prepared.job, prepared.provider, estimate.tariff
    counts, equal_requests, usage = reader.counts, reader.equal_requests, reader.usage
    surplus = earlier.surplus if prepared.selection.whole else 0
    # With a key a changed row takes the place of its old record, which is therefore not kept.
    kept = earlier.index.counts().kept - surplus - (counts.changed if job.input.key is not None else 0)
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
        method=earlier.method,
        spent=earlier.spent,
        warnings=plan_warnings(prepared, earlier, reader, no_key),
        note=provider.note if provider.name == DEMO else "",
        samples=job.samples,
        caps=budget_caps(job, reader.to_send, usage, estimate.cost),
        deadline_s=job.deadline,
        cache=job.cache,
        cached=equal_requests.cached,
        dedupe=job.dedupe or job.cache is not None,
        equal=equal_requests.equal,
        failures=reader.failures(),
        empty=reader.empty,
        earlier_prompt=min(earlier.others, kept),
        engines=estimate.engines if len(estimate.engines) > 1 else (),
        steps=estimate.steps,
        key=provider.key_place,
        key_found=None if provider.key_place is None else no_key is None,
    )
