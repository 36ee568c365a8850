"""A run: one execution of a job into an output directory.

`run_job` puts the parts together: it prepares the job, opens the store, feeds the engine, and tells how it ended. The
pieces it joins each hold one idea: `preparation` checks before anything is sent, `intake` sorts rows, the engine
executes requests, the writer makes outcomes durable.
"""

from __future__ import annotations

import functools
import random
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from batchchat.addresses import address_of
from batchchat.budget import Budget
from batchchat.endpoints.endpoint import Endpoint
from batchchat.endpoints.registry import Keys, Limiters, Registry, make_limiter, needs_demo, read_keys
from batchchat.endpoints.route import EndpointRoute
from batchchat.engines.local import LocalEngine
from batchchat.engines.port import Engine
from batchchat.engines.refusals import Refusals
from batchchat.engines.state import Surroundings
from batchchat.errors import StorageError, UsageError
from batchchat.events import Event, Listener, RunSummary, Snapshot
from batchchat.intake import Intake
from batchchat.job import Job, load_keys
from batchchat.job.model import BATCH_FORMAT
from batchchat.job.targets import has_several, targets_of
from batchchat.limits import Limiter
from batchchat.money import Tariff
from batchchat.records import Answerer, Record
from batchchat.retry import RetryPolicy
from batchchat.runner.control import Control
from batchchat.runner.ending import SHARED_ANSWERS, Ending
from batchchat.runner.failed_limit import FailedLimit
from batchchat.runner.feed import RequestFeed
from batchchat.runner.forecast import Forecaster
from batchchat.runner.options import RunOptions
from batchchat.runner.preparation import Prepared, prepare
from batchchat.runner.rows import pass_of, prompt_id_of
from batchchat.runner.run_summary import Figures, alike_event, correction_event, plain, remedy_of
from batchchat.runner.shard_choice import shards_for
from batchchat.runner.state import RunState
from batchchat.runner.steering import RunSteering, tell_interrupted
from batchchat.runner.tally import Tally
from batchchat.runner.wording import Wording
from batchchat.runner.writer import CommonFields, Offload, Writer, in_thread
from batchchat.sources import GivenRows
from batchchat.store import Frozen, HeldOutput, Store, frozen_schema

if TYPE_CHECKING:
    import httpx

    from batchchat.cache import AnswerCache
    from batchchat.runner.batches import OpenService
    from batchchat.runner.reuse import Reuse

__all__ = ["make_limiter", "run_job"]

_DEFAULTS = RunOptions()
_TICK_S = 0.25
"""Seconds between snapshots: a display looks smooth, and a snapshot costs well under a millisecond."""
_LIVE_EVERY = 4
"""Snapshots between two that are written to the output: once a second. Chosen, not measured."""


def _no_listener(_event: Event) -> None:
    pass


async def run_job(
    job: Job,
    *,
    options: RunOptions = _DEFAULTS,
    rows: GivenRows | None = None,
    transport: httpx.AsyncBaseTransport | None = None,
    limiter: Limiter | None = None,
    limiters: Limiters | None = None,
    budget: Budget | None = None,
    listener: Listener = _no_listener,
    on_snapshot: Callable[[Snapshot], None] | None = None,
    on_record: Callable[[Record], None] | None = None,
    stop: Control | None = None,
    environ: Mapping[str, str] | None = None,
    offload: Offload = in_thread,
    open_store: Callable[..., Store] = Store.open,
    seed: int | None = None,
    demo_url: str | None = None,
    open_service: OpenService | None = None,
    tick_s: float = _TICK_S,
) -> RunSummary:
    """Run a job, or go on with it where an earlier run stopped.

    `rows` take the place of the job's input, `transport` that of the network. `limiter` and `budget` take the place of
    the job's own, so that runs can share them; `limiters` are those of its endpoints. `listener` takes events,
    `on_snapshot` the counts four times a second, `on_record` each record of this run that has become durable. `stop`
    steers the run: it can stop it, pause it and change its limits. `environ` takes the place of the process's
    environment for keys. `offload` runs blocking code (default: in worker threads), `open_store` takes the place of
    `Store.open`. `seed` makes jitter repeatable. `demo_url` is the address of a demo server that runs already.
    `open_service` takes the place of the batch service that `engine: batch` opens. `tick_s` is the time between two
    snapshots in seconds.

    Returns how the run ended: whatever fails after the start is in the summary's `exit_code` and `reason`.

    Raises UsageError before anything is sent or written, OutputLocked if another run holds the output, StorageError if
    the output cannot be opened.
    """
    setting = _Setting(
        options=options,
        rows=rows,
        control=stop or Control(),
        listener=listener,
        on_snapshot=on_snapshot,
        on_record=on_record,
        offload=offload,
        open_store=open_store,
        rng=random.Random(seed),  # noqa: S311 - jitter, not cryptography
        limiter=limiter,
        limiters=limiters,
        transport=transport,
        demo_url=demo_url,
        environ=load_keys(job, environ),
        open_service=open_service,
        tick_s=tick_s,
    )
    return await _execute(job, setting, budget=budget)


@dataclass(frozen=True, slots=True)
class _Setting:
    """What a caller of `run_job` may put in place of the usual: see there."""

    options: RunOptions
    rows: GivenRows | None
    control: Control
    listener: Listener
    on_snapshot: Callable[[Snapshot], None] | None
    on_record: Callable[[Record], None] | None
    offload: Offload
    open_store: Callable[..., Store]
    rng: random.Random
    limiter: Limiter | None
    limiters: Limiters | None
    transport: httpx.AsyncBaseTransport | None
    demo_url: str | None
    environ: Mapping[str, str]
    open_service: OpenService | None
    tick_s: float


class _Opening:
    """Opens what a run needs: output, answer cache, provider, engine, writer. `stack` holds them until it is left."""

    def __init__(self, job: Job, prepared: Prepared, budget: Budget | None, setting: _Setting) -> None:
        self._job = job
        self._prepared = prepared
        self._provider = prepared.provider
        self._tariff = Tariff.of(prepared.provider.prices.get(job.model))
        self._tier = prepared.provider.tiers.get(job.params.service_tier or "", 1.0)
        self._budget = budget
        self._setting = setting
        self._warnings: list[str] = []
        self._started_at: str | None = None
        self._run_id = setting.options.run_id or new_run_id()
        reopens = setting.options.retry_failed
        self._reopens = job.retry.reopens() if reopens is None else reopens

    def open_store(self) -> HeldOutput:
        """Open the output, and say what had to be recovered. Blocking code; raises as `Store.open` does."""
        job, setting, shards = self._job, self._setting, self._prepared.shards
        open_store: Callable[..., HeldOutput] = setting.open_store
        if shards is not None:
            from batchchat.store.sharded import ShardedStore

            open_store = functools.partial(ShardedStore.open, shards=shards, open_shard=setting.open_store)
        store = open_store(
            address_of(job.output.path),
            job_name=job.name,
            snapshot=job.snapshot(),
            run_id=self._run_id,
            input_schema=self._prepared.source.schema,
            parsed=self._prepared.parsed,
            with_keys=job.input.key is not None,
            part_rows=job.output.part_rows,
            part_bytes=job.output.part_bytes,
            part_seconds=job.output.part_seconds,
            currency=self._provider.currency,
            fresh=setting.options.fresh,
            take_over=setting.options.take_over,
            outage=job.retry.outage,
            tell=lambda message: setting.listener(Event("output_away", message, "warning")),
            following=pass_of(self._prepared, self._reopens),
        )
        if store.known is not None:
            # Which of them are done is asked once for all, and not again for each batch that is passed over.
            store.known.look_up(store.index, store.keys)
        renamed = store.recovery.renamed
        if renamed is not None:
            message = f"the old output is kept as {renamed}; `batchchat clean {job.output.path}` removes old ones"
            setting.listener(Event("set_aside", message, "info", {"path": renamed}))
        for message in store.recovery.messages:
            self._warnings.append(message)
            setting.listener(Event("recovered", message, "warning"))
        return store

    async def open_cache(self, stack: AsyncExitStack, folder: Path) -> AnswerCache:
        """Open the answers that equal requests share."""
        from batchchat.cache import AnswerCache

        offload = self._setting.offload
        cache: AnswerCache = await offload(AnswerCache.open, folder)
        stack.push_async_callback(offload, cache.close)
        return cache

    async def connect(
        self, stack: AsyncExitStack, store: HeldOutput, wording: Wording, cache: AnswerCache | None, keys: Keys
    ) -> RunState:
        """Connect to the provider and join the parts of the run. `keys` are those of its endpoints."""
        job, setting, prepared = self._job, self._setting, self._prepared
        await self._find_provider(stack, store)
        if cache is None and job.dedupe:
            cache = await self.open_cache(stack, store.location.scratch(SHARED_ANSWERS))
        prompt_id = prompt_id_of(prepared)
        # Each line of a batch file names a model of its own, and endpoints have their own names for one.
        tally = Tally(
            one_model=job.input.format != BATCH_FORMAT and not has_several(job),
            steps=[step.model for step in job.cascade],
        )
        if job.engine.batch:
            engine, tariff = await self._make_batch_engine(stack, store, wording, prompt_id, keys)
        else:
            engine = self._make_engine(await self._open_endpoints(stack, keys), store, wording)
            tariff = self._tariff.times(self._tier) if self._tariff is not None else None
        by, cascaded = Answerer(self._provider.name), bool(job.cascade)
        common = CommonFields(self._run_id, prompt_id, job.engine.kind, by, cascaded, _now_us)
        writer = Writer(
            store, tally, common, offload=setting.offload, listener=setting.listener, on_error=engine.cancel
        )
        writer.on_record = setting.on_record
        return RunState(
            job=job,
            options=setting.options,
            control=setting.control,
            run_id=self._run_id,
            prompt_id=prompt_id,
            started=0.0,
            tell=setting.listener,
            offload=setting.offload,
            prepared=prepared,
            provider=self._provider,
            budget=self._budget,
            store=store,
            wording=wording,
            tally=tally,
            forecaster=Forecaster(tariff),
            intake=self._make_intake(store),
            writer=writer,
            engine=engine,
            reuse=self._make_reuse(cache, writer) if cache is not None else None,
            warnings=self._warnings,
            open_answers=store.open_answers(),
        )

    async def _find_provider(self, stack: AsyncExitStack, store: HeldOutput) -> None:
        """Give a provider `demo` without an address a demo server in this process."""
        setting, provider = self._setting, self._provider
        if not needs_demo(self._job):
            return
        base_url = "http://demo.invalid/v1" if setting.transport is not None else setting.demo_url
        self._started_at = base_url or await self._start_demo(stack, store)
        if provider.base_url is None:
            self._provider = provider.with_base_url(self._started_at)

    async def _open_endpoints(self, stack: AsyncExitStack, keys: Keys) -> Endpoint | EndpointRoute:
        """Open the clients for single requests."""
        setting = self._setting
        registry = Registry(
            self._job,
            stack,
            listener=setting.listener,
            rng=setting.rng,
            transport=setting.transport,
            limiters=setting.limiters,
            environ=setting.environ,
        )
        return await registry.open(keys, demo_url=self._started_at, limiter=setting.limiter)

    async def _start_demo(self, stack: AsyncExitStack, store: HeldOutput) -> str:
        from batchchat.demo import BatchOptions, DemoOptions, DemoServer

        offload = self._setting.offload
        # The batches of a demo server that ends with this process go on in the next one.
        folder = store.location.batches() / "demo" if self._job.engine.batch else None
        server = DemoServer(DemoOptions(track_bodies=False, batch=BatchOptions(folder=folder)))
        await offload(server.start)
        stack.push_async_callback(offload, server.stop)
        return server.base_url

    async def _make_batch_engine(
        self, stack: AsyncExitStack, store: HeldOutput, wording: Wording, prompt_id: str, keys: Keys
    ) -> tuple[Engine, Tariff | None]:
        """Return the engine that sends batches, and what tokens cost there."""
        from batchchat.runner.batches import BatchParts

        job, setting = self._job, self._setting
        single: Callable[[], Engine] | None = None
        if job.engine.then == "local":
            single = functools.partial(self._make_engine, await self._open_endpoints(stack, keys), store, wording)
        parts = BatchParts(
            job=job,
            prepared=self._prepared,
            provider=self._provider,
            options=setting.options,
            run_id=self._run_id,
            prompt_id=prompt_id,
            store=store,
            job_answered=store.index.counts().ok > 0 and wording.known,
            budget=self._budget,
            api_key=keys[0][0],
            environ=setting.environ,
            transport=setting.transport,
            listener=setting.listener,
            offload=setting.offload,
            rng=setting.rng,
            single=single,
            connect=setting.open_service,
        )
        return parts.engine(), parts.tariff()

    def _make_engine(self, to: Endpoint | EndpointRoute, store: HeldOutput, wording: Wording) -> Engine:
        """Return the engine that sends single requests."""
        job, setting, provider = self._job, self._setting, self._provider
        retry, counts = job.retry, store.index.counts()
        account = self._budget.account(self._dearest(), provider.currency) if self._budget else None
        return LocalEngine(
            to,
            RetryPolicy(retry.attempts, retry.request_timeout, retry.row_deadline, retry.outage),
            Surroundings(setting.listener, setting.rng, setting.offload),
            account=account,
            refusals=Refusals(model_answered=counts.ok > 0, job_answered=counts.ok > 0 and wording.known),
            acceptance=None if self._prepared.acceptance.idle else self._prepared.acceptance,
        )

    def _dearest(self) -> Tariff | None:
        """Return the most that a token may cost, whoever of the job's targets answers; None if a price is not known.

        It covers the tier that is asked for, and the usual one, in which an answer may come.
        """
        tier = self._job.params.service_tier or ""
        found = []
        for target in targets_of(self._job):
            tariff = Tariff.of(target.provider.prices.get(target.model))
            found.append(tariff and tariff.times(max(1.0, target.provider.tiers.get(tier, 1.0))))
        return Tariff.dearest(found)

    def _make_intake(self, store: HeldOutput) -> Intake:
        job, prepared = self._job, self._prepared
        shares = job.cache is not None or job.dedupe
        intake = prepared.intake(store.index, store.keys, reopens=self._reopens, answer_ids=shares)
        if store.known is not None:
            intake.pass_over(store.known)
        return intake

    def _make_reuse(self, cache: AnswerCache, writer: Writer) -> Reuse:
        from batchchat.runner.reuse import Reuse

        setting = self._setting
        return Reuse(
            cache,
            writer,
            self._prepared.acceptance,
            own=self._job.cache is None,
            offload=setting.offload,
            listener=setting.listener,
        )


class _Running:
    """Moves a run from its first row to its last outcome, under a person's control."""

    def __init__(
        self, run: RunState, figures: Figures, on_snapshot: Callable[[Snapshot], None] | None, tick_s: float
    ) -> None:
        self._run = run
        self._figures = figures
        self._on_snapshot = on_snapshot
        self._tick_s = tick_s
        self._writing = anyio.Lock()

    async def work(self) -> None:
        """Execute the run's requests. Return when nothing is under way any more and every outcome is durable."""
        run = self._run
        run.phase = "running"
        job = run.job
        if job.limits.max_failed is not None:
            run.writer.on_counted = functools.partial(self._check_failed, FailedLimit(job.limits.max_failed))
        fields = {"run_id": run.run_id, "job": job.name, "output": job.output.path, "model": job.model}
        run.tell(Event("run_started", f"run {run.run_id} into {job.output.path}", "debug", fields))
        async with anyio.create_task_group() as group:
            group.start_soon(run.writer.run)
            try:
                async with anyio.create_task_group() as inner:
                    steering = RunSteering(
                        run, inner, self._write_live, look_s=max(self._tick_s, run.store.location.look_s)
                    )
                    with run.control.watch(steering):
                        inner.start_soon(self._tick, steering)
                        steering.begin()
                        await run.engine.run(RequestFeed(run).requests(), run.sink)
                    self._tell_warnings()
                    run.phase = "ending"
                    inner.cancel_scope.cancel()
            finally:
                run.writer.finish()
        # The last answers are counted only once they are durable.
        self._tell_answerers()

    def _tell_warnings(self) -> None:
        """Warn early if many of the first rows failed for one reason, and if somebody else answers than at the start.

        In both cases the rest will likely be like that, and be paid, too.
        """
        run = self._run
        alike = run.tally.take_alike()
        if alike is not None:
            run.tell(alike_event(alike, run.tally.ok + run.tally.failed))
        self._tell_answerers()

    def _tell_answerers(self) -> None:
        for event in self._run.tally.answerers.take():
            self._run.tell(event)

    def _check_failed(self, limit: FailedLimit) -> None:
        """Send nothing more once too many rows have failed; what is in flight may end."""
        run, tally = self._run, self._run.tally
        settled = tally.ok + tally.failed
        if run.engine.halt is None and limit.passed(tally.failed, settled):
            commonest = tally.failures()[0]
            run.engine.halt_for(limit.error(tally.failed, settled, commonest, remedy_of(commonest.kind)))

    async def _write_live(self) -> None:
        """Write a snapshot to the output, for `status`. One at a time: they share a draft."""
        run = self._run
        async with self._writing:
            try:
                await run.offload(run.store.runs.write_live, plain(self._figures.snapshot()))
            except StorageError as error:
                run.writer.fail(error)

    async def _tick(self, steering: RunSteering) -> None:
        """Show a snapshot four times a second; write it to the output and look for a part that is due once a second."""
        run = self._run
        ticks = 0
        corrected = False
        while True:
            run.tally.sample(anyio.current_time())
            # The feed waits for requests that the engine may be holding back.
            if run.reuse is not None and run.reuse.crowded:
                run.engine.release_held(run.sink)
            self._tell_warnings()
            steering.keep_caps()
            snapshot = self._figures.snapshot()
            if snapshot.forecast is not None and snapshot.forecast.corrected and not corrected:
                corrected = True
                run.tell(correction_event(snapshot.forecast, snapshot.currency))
            if self._on_snapshot is not None:
                self._on_snapshot(snapshot)
            if ticks % _LIVE_EVERY == 0:
                await self._write_live()
                if run.writer.error is not None:
                    return
                run.writer.poke()
            ticks += 1
            await anyio.sleep(self._tick_s)


async def _execute(job: Job, setting: _Setting, *, budget: Budget | None) -> RunSummary:
    started = anyio.current_time()
    options, offload = setting.options, setting.offload
    # A caller that runs several jobs may give one budget over all of them.
    if budget is None and job.budget.capped:
        caps = job.budget
        budget = Budget(max_cost=caps.max_cost, max_tokens=caps.max_tokens, max_requests=caps.max_requests)
    warned: list[str] = []
    keys = await offload(functools.partial(_read_keys, job, setting, warned.append))
    for message in warned:
        setting.listener(Event("warning", message, "warning"))
    frozen = Frozen() if options.fresh else await offload(frozen_schema, address_of(job.output.path))
    shards = await offload(shards_for, job, options)
    prepared = await offload(
        functools.partial(
            prepare,
            job,
            shards=shards,
            frozen=frozen,
            limit=options.limit,
            sample=options.sample,
            seed=options.seed,
            rows=setting.rows,
            chosen=options.rows,
        )
    )
    # Told before anything is sent, so that a person can still stop the run.
    for message in (*prepared.warnings, *prepared.first_empty):
        setting.listener(Event("warning", message, "warning"))
    job = prepared.job
    opening = _Opening(job, prepared, budget, setting)
    async with AsyncExitStack() as held:
        # Before the output: if the cache cannot be opened, no output is made.
        cache = await opening.open_cache(held, Path(job.cache)) if job.cache is not None else None
        store = await offload(opening.open_store)
        try:
            # Batches of an earlier run may still answer the same rows, which would then be paid for twice.
            if not job.engine.batch:
                await offload(_refuse_beside_batches, store)
            tell_interrupted(await offload(store.runs.killed_run), setting.listener)
            wording = Wording(store, prepared)
            await offload(wording.begin)
            async with AsyncExitStack() as stack:
                run = await opening.connect(stack, store, wording, cache, keys)
                run.started = started
                run.warnings[:0] = warned
                figures = Figures(run)
                await _Running(run, figures, setting.on_snapshot, setting.tick_s).work()
            summary = await Ending(run, figures).end()
            if setting.on_snapshot is not None:
                setting.on_snapshot(figures.snapshot())
            return summary
        finally:
            with anyio.CancelScope(shield=True):
                await offload(store.close)


def _read_keys(job: Job, setting: _Setting, warn: Callable[[str], object]) -> Keys:
    """Read the keys of all endpoints. Blocking code; raises JobError if one cannot be had."""

    def tell(message: str, place: str | None) -> None:
        setting.listener(Event("key_renewed", message, fields={"place": place}))

    return read_keys(job, setting.environ, warn=warn, tell=tell)


def new_run_id() -> str:
    """Return an identity for a run: when it begins, in UTC, and six digits that no other run has."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"


def _now_us() -> int:
    return time.time_ns() // 1000


def _refuse_beside_batches(store: HeldOutput) -> None:
    """Refuse single requests while batches of this output may answer the same. Raises UsageError, StorageError."""
    if not store.location.batches().is_dir():
        return
    from batchchat.engines.batch.status import under_way

    batches = under_way(store.directory)
    if batches:
        requests = sum(batch.lines for batch in batches)
        which = "A batch" if len(batches) == 1 else f"{len(batches)} batches"
        raise UsageError(
            f"{which} of this output, with {requests:,} requests, may still answer: single requests would ask the same",
            remedy=f"Run the job with `engine: batch`, which takes the answers. Or run `batchchat cancel "
            f"{store.directory}` first, which keeps what is answered by then.",
        )
