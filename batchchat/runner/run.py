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
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import fields, is_dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import anyio
import anyio.abc
import anyio.lowlevel

from batchchat.budget import Budget
from batchchat.client import ChatClient
from batchchat.engines import Settled
from batchchat.engines.local import LocalEngine
from batchchat.errors import BatchchatError, StoppedEarly, StorageError
from batchchat.events import Event, FailureGroup, Forecast, Listener, RunSummary, Snapshot
from batchchat.format import money, short
from batchchat.intake import Intake
from batchchat.job import Job, api_key, load_keys, write_duration
from batchchat.limits import MAX_CONCURRENCY, Limiter, TokenEstimator
from batchchat.providers import DEMO, Price, Provider
from batchchat.records import Request
from batchchat.retry import RetryPolicy
from batchchat.review import Accept, Fail, go_on, resume
from batchchat.runner.forecast import Forecaster
from batchchat.runner.options import RunOptions
from batchchat.runner.preparation import Prepared, prepare
from batchchat.runner.rows import Archived, Rows, pass_of
from batchchat.runner.stopping import StopRequest
from batchchat.runner.tally import Tally
from batchchat.runner.wording import Wording
from batchchat.runner.writer import Offload, Writer, in_thread
from batchchat.store import Answer, Change, Frozen, Store, frozen_schema
from batchchat.store.directory import Layout

if TYPE_CHECKING:
    import httpx

    from batchchat.cache import AnswerCache
    from batchchat.runner.reuse import Reuse

__all__ = ["make_limiter", "run", "run_job"]

_DEFAULTS = RunOptions()
_SLICE = 64
_TICK_S = 0.25
_LIVE_EVERY = 4
_OLDEST = 8

Phase = Literal["starting", "running", "draining", "ending", "ended"]


def _no_listener(_event: Event) -> None:
    pass


async def run_job(
    job: Job,
    *,
    options: RunOptions = _DEFAULTS,
    transport: httpx.AsyncBaseTransport | None = None,
    limiter: Limiter | None = None,
    budget: Budget | None = None,
    listener: Listener = _no_listener,
    on_snapshot: Callable[[Snapshot], None] | None = None,
    stop: StopRequest | None = None,
    environ: Mapping[str, str] | None = None,
    offload: Offload = in_thread,
    open_store: Callable[..., Store] = Store.open,
    seed: int | None = None,
    demo_url: str | None = None,
) -> RunSummary:
    """Run a job, or go on with it where an earlier run stopped, and tell how it ended.

    `transport` takes the place of the network; `limiter` and `budget`, where they are given, are shared with other runs
    and take the place of the job's own. `listener` takes events, `on_snapshot` the counts four times a second.
    `environ` takes the place of the process's environment for keys. `offload` runs blocking code (default: in worker
    threads), `open_store` takes the place of `Store.open`. `seed` makes jitter repeatable.

    Raises UsageError before anything is sent or written, OutputLocked where another run holds the output, StorageError
    where it cannot be opened. Anything later is told by the summary's `exit_code` and `reason`.
    """
    this = _Run(
        job,
        options,
        listener=listener,
        on_snapshot=on_snapshot,
        stop=stop or StopRequest(),
        offload=offload,
        open_store=open_store,
        seed=seed,
        budget=budget,
        demo_url=demo_url,
    )
    return await this.execute(transport, limiter, environ)


def run(job: Job, **options: Any) -> RunSummary:
    """Run a job to its end: `run_job` for callers without an event loop. Takes the same keywords."""
    return anyio.run(functools.partial(run_job, job, **options))


def make_limiter(job: Job, provider: Provider, listener: Listener, rng: random.Random | None = None) -> Limiter:
    """Return a limiter under a job's limits, and where it sets none those of its provider; runs may share it.

    It lets no more be under way at once than this process may have open files, and tells where that is less.
    """
    from batchchat.transport import connection_room

    limits = job.limits
    concurrency = limits.concurrency
    room = connection_room(files_each=2 if job.resolved_provider().base_url is None else 1)
    if concurrency is not None and concurrency > room:
        message = f"limits.concurrency is {concurrency}, and the open files of this process allow {room} (ulimit -n)"
        listener(Event("concurrency_lowered", message, "warning"))
        concurrency = room
    return Limiter(
        requests_per_minute=limits.requests_per_minute,
        tokens_per_minute=limits.tokens_per_minute,
        concurrency=concurrency,
        advertised_requests_per_minute=provider.requests_per_minute,
        advertised_tokens_per_minute=provider.tokens_per_minute,
        advertised_concurrency=min(provider.concurrency or MAX_CONCURRENCY, room),
        listener=listener,
        rng=rng,
    )


class _Run:
    def __init__(
        self,
        job: Job,
        options: RunOptions,
        *,
        listener: Listener,
        on_snapshot: Callable[[Snapshot], None] | None,
        stop: StopRequest,
        offload: Offload,
        open_store: Callable[..., Store],
        seed: int | None,
        budget: Budget | None,
        demo_url: str | None,
    ) -> None:
        self.job = job
        self.demo_url = demo_url
        self.options = options
        self.tell = listener
        self.on_snapshot = on_snapshot
        self.stop = stop
        self.offload = offload
        self.open_store = open_store
        self.rng = random.Random(seed)  # noqa: S311 - jitter, not cryptography
        self.run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
        self.tally = Tally()
        self.budget = budget
        if budget is None and job.budget.capped:
            caps = job.budget
            self.budget = Budget(max_cost=caps.max_cost, max_tokens=caps.max_tokens, max_requests=caps.max_requests)
        reopens = options.retry_failed
        self.reopens = job.retry.reopens() if reopens is None else reopens
        self.phase: Phase = "starting"
        self.read_all = False
        self.counted: int | None = None
        self.failed: BatchchatError | None = None
        self.warnings: list[str] = []
        self.limiter: Limiter
        self.prepared: Prepared
        self.store: Store
        self.intake: Intake
        self.writer: Writer
        self.engine: LocalEngine
        self.open_answers: dict[str, list[Answer]] = {}
        self.provider: Provider
        self.forecaster: Forecaster
        self.reuse: Reuse | None = None
        self.wording: Wording

    # --- the way through

    async def execute(
        self, transport: httpx.AsyncBaseTransport | None, limiter: Limiter | None, environ: Mapping[str, str] | None
    ) -> RunSummary:
        self.started = anyio.current_time()
        options, job = self.options, self.job
        key = api_key(job, job.resolved_provider(), load_keys(job, environ))
        frozen = Frozen() if options.fresh else await self.offload(frozen_schema, Path(job.output.path))
        self.prepared = await self.offload(
            functools.partial(
                prepare, job, frozen=frozen, limit=options.limit, sample=options.sample, seed=options.seed
            )
        )
        self.job, self.provider = self.prepared.job, self.prepared.provider
        self.account = self.budget.account(self._price(), self.provider.currency) if self.budget else None
        async with AsyncExitStack() as held:
            cache = await self._open_cache(held, Path(job.cache)) if job.cache is not None else None
            self.store = await self.offload(self._open_store)
            try:
                self.wording = Wording(self.store, self.prepared)
                await self.offload(self.wording.begin)
                async with AsyncExitStack() as stack:
                    await self._connect(stack, transport, limiter, key)
                    if cache is None and job.dedupe:
                        cache = await self._open_cache(stack, Layout(self.store.directory).answers)
                    if cache is not None:
                        self.reuse = self._make_reuse(cache)
                    await self._work()
                return await self._end()
            finally:
                with anyio.CancelScope(shield=True):
                    await self.offload(self.store.close)

    async def _open_cache(self, stack: AsyncExitStack, folder: Path) -> AnswerCache:
        from batchchat.cache import AnswerCache

        cache: AnswerCache = await self.offload(AnswerCache.open, folder)
        stack.push_async_callback(self.offload, cache.close)
        return cache

    def _make_reuse(self, cache: AnswerCache) -> Reuse:
        from batchchat.runner.reuse import Reuse

        return Reuse(
            cache,
            self.writer,
            self.prepared.reviewer,
            own=self.job.cache is None,
            offload=self.offload,
            listener=self.tell,
        )

    def _open_store(self) -> Store:
        job = self.job
        store = self.open_store(
            Path(job.output.path),
            job_name=job.name,
            snapshot=job.snapshot(),
            run_id=self.run_id,
            input_schema=self.prepared.source.schema,
            parsed=self.prepared.parsed,
            with_keys=job.input.key is not None,
            part_rows=job.output.part_rows,
            part_bytes=job.output.part_bytes,
            part_seconds=job.output.part_seconds,
            currency=self.provider.currency,
            fresh=self.options.fresh,
            following=pass_of(self.prepared, self.reopens),
        )
        if store.known is not None:
            store.known.look_up(store.index, store.keys)
        renamed = store.recovery.renamed
        if renamed is not None:
            message = f"the old output is kept as {renamed}; `batchchat clean {job.output.path}` removes old ones"
            self.tell(Event("set_aside", message, "info", {"path": str(renamed)}))
        for message in store.recovery.messages:
            self.warnings.append(message)
            self.tell(Event("recovered", message, "warning"))
        return store

    async def _connect(
        self,
        stack: AsyncExitStack,
        transport: httpx.AsyncBaseTransport | None,
        limiter: Limiter | None,
        key: str | None,
    ) -> None:
        """Everything between a request and the provider: demo server, transport, client, limiter, engine."""
        job, provider = self.job, self.provider
        if provider.base_url is None and provider.name == DEMO:
            base_url = "http://demo.invalid/v1" if transport is not None else self.demo_url
            provider = self.provider = provider.with_base_url(base_url or await self._start_demo(stack))
        if transport is None:
            from batchchat.transport import choose_transport

            transport = choose_transport(provider.base_url or "", ca_file=provider.ca_file, kind=provider.transport)
        retry = job.retry
        client = ChatClient(
            provider,
            transport,
            api_key=key,
            request_timeout=retry.request_timeout,
            stream=bool(job.params.stream),
        )
        await stack.enter_async_context(client)
        self.limiter = limiter or make_limiter(job, provider, self.tell, self.rng)
        counts = self.store.index.counts()
        self.engine = LocalEngine(
            client,
            self.limiter,
            RetryPolicy(retry.attempts, retry.request_timeout, retry.row_deadline, retry.outage),
            estimator=TokenEstimator(),
            listener=self.tell,
            account=self.account,
            rng=self.rng,
            answered_before=counts.ok > 0,
            job_answered=counts.ok > 0 and self.wording.known,
            reviewer=None if self.prepared.reviewer.idle else self.prepared.reviewer,
            offload=self.offload,
        )
        self.open_answers = self.store.open_answers()
        self.writer = Writer(
            self.store,
            self.tally,
            run_id=self.run_id,
            price=self._price(),
            offload=self.offload,
            wall_clock_us=_now_us,
            listener=self.tell,
            on_error=self.engine.cancel,
        )
        self.forecaster = Forecaster(self._price())
        self.intake = Intake(
            self.prepared.template,
            self.prepared.identity,
            index=self.store.index,
            keys=self.store.keys,
            key_column=job.input.key,
            reopens=self.reopens,
            selection=self.prepared.selection,
            samples=job.samples,
            answer_ids=job.cache is not None or job.dedupe,
        )
        if self.store.known is not None:
            self.intake.pass_over(self.store.known)

    async def _start_demo(self, stack: AsyncExitStack) -> str:
        from batchchat.demo import DemoOptions, DemoServer

        server = DemoServer(DemoOptions(track_bodies=False))
        await self.offload(server.start)
        stack.push_async_callback(self.offload, server.stop)
        return server.base_url

    async def _work(self) -> None:
        self.phase = "running"
        job = self.job
        fields = {"run_id": self.run_id, "job": job.name, "output": job.output.path, "model": job.model}
        self.tell(Event("run_started", f"run {self.run_id} into {job.output.path}", "debug", fields))
        async with anyio.create_task_group() as group:
            group.start_soon(self.writer.run)
            try:
                async with anyio.create_task_group() as inner:
                    self._watch_stop(inner)
                    inner.start_soon(self._tick)
                    if self.job.deadline is not None:
                        inner.start_soon(self._watch_deadline, self.job.deadline)
                    await self.engine.run(self._feed(), self.sink)
                    self.phase = "ending"
                    inner.cancel_scope.cancel()
            finally:
                self.writer.finish()

    @property
    def sink(self) -> Reuse | Writer:
        """Where outcomes go: to the writer, by way of those who share them where the job shares answers."""
        return self.reuse if self.reuse is not None else self.writer

    async def _feed(self) -> AsyncGenerator[list[Request], None]:
        rows = Rows(self.prepared, self.store.known)
        batches = iter(rows)
        archived = Archived()
        while True:
            try:
                batch, known = await self.offload(next, batches, (None, None), abandon=True)
            except BatchchatError as error:
                # The input broke in the middle: what was read goes on, the rest stays open.
                self.failed = error
                return
            if batch is None or self.prepared.selection.past(batch.first_index):
                break
            rows.begin(batch)
            for found in self.intake.slices(batch, _SLICE, known):
                rows.add(found)
                for invalid in found.invalid:
                    self.writer.add_invalid(invalid)
                archived.add(found.archived)
                for custom_id in found.reopened:
                    self.limiter.suspect(custom_id)
                requests = self._resumed(found.requests) if self.open_answers else found.requests
                if self.reuse is not None:
                    try:
                        requests = await self.reuse.sift(requests)
                    except StorageError as error:
                        self.engine.halt_for(error)
                        return
                self.forecaster.add(requests)
                yield requests
                await anyio.lowlevel.checkpoint()
                if archived.full:
                    yield await self._revive(archived.requests)
                    archived = Archived()
            rows.end(batch)
            if rows.full:
                await self.offload(rows.flush)
        yield await self._revive(archived.requests)
        self.failed = self._cut_short()
        if self.failed is None:
            rows.finish()
            self.read_all = True

    def _cut_short(self) -> StorageError | None:
        """Why a pass that came to its end is not whole: the input promised more rows, or others, than it gave."""
        source = self.prepared.source
        promised, read = source.known_rows(), self.intake.counts.rows
        if promised is None or promised == read or not self.prepared.selection.whole:
            return None
        return StorageError(
            f"the input {self.job.input.path} promised {promised:,} rows and gave {read:,}: it was cut or changed "
            "while it was read",
            remedy="Restore it, then run the same command again: it goes on where it stopped. Nothing was archived.",
        )

    def _resumed(self, requests: list[Request]) -> list[Request]:
        """Go on from the answers that an earlier run kept; return what is still to be sent."""
        left = []
        for request in requests:
            answers = self.open_answers.pop(request.custom_id, [])
            found = resume(request, [answer.payload for answer in answers], self.prepared.reviewer) if answers else None
            if found is not None:
                reply, decision = found
                if isinstance(decision, Accept):
                    self.sink.put(Settled(request, reply, None, decision.parsed, decision.tolerated))
                    continue
                if isinstance(decision, Fail):
                    self.sink.put(Settled(request, reply, decision.failure))
                    continue
                go_on(request, reply, decision)
            left.append(request)
        return left

    async def _revive(self, requests: list[Request]) -> list[Request]:
        """Take answers back from the archive: going back to an earlier prompt costs nothing.

        Returns the requests whose answer the archive lost by damage: they are asked again.
        """
        if not requests:
            return []
        outcomes = await self.offload(self.store.fetch_archived, [request.custom_id for request in requests])
        lost = [request for request in requests if request.custom_id not in outcomes]
        for request in requests:
            if request.custom_id in outcomes:
                self.writer.add_revived(request, outcomes[request.custom_id])
        return lost

    # --- stopping

    def _watch_stop(self, group: anyio.abc.TaskGroup) -> None:
        def on_stop(times: int) -> None:
            if times == 1:
                self.phase = "draining"
                self.tell(
                    Event(
                        "stopping", f"{self.stop.reason}: waiting up to {self.options.grace:g} s for what is in flight"
                    )
                )
                self.engine.drain()
                group.start_soon(self._grace)
            else:
                self.engine.cancel()

        self.stop.watch(on_stop)

    async def _watch_deadline(self, deadline: float) -> None:
        """Launch nothing after the deadline, counted from the start of the run; what is in flight gets the grace."""
        await anyio.sleep(max(0.0, self.started + deadline - anyio.current_time()))
        if not self.stop.asked:
            message = f"the deadline of {write_duration(deadline)} is over"
            self.engine.halt_for(StoppedEarly(message, remedy="The same command goes on where it stopped."))
            await self._grace()

    async def _grace(self) -> None:
        await anyio.sleep(self.options.grace)
        self.engine.cancel()

    # --- telling

    async def _tick(self) -> None:
        ticks = 0
        corrected = False
        while True:
            self.tally.sample(anyio.current_time())
            if self.reuse is not None and self.reuse.crowded:
                self.engine.let_go(self.sink)
            snapshot = self.snapshot()
            if snapshot.forecast is not None and snapshot.forecast.corrected and not corrected:
                corrected = True
                self.tell(_correction(snapshot.forecast, snapshot.currency))
            if self.on_snapshot is not None:
                self.on_snapshot(snapshot)
            if ticks % _LIVE_EVERY == 0:
                try:
                    await self.offload(self.store.write_live, plain(snapshot))
                except StorageError as error:
                    self.writer.fail(error)
                    return
                self.writer.poke()
            ticks += 1
            await anyio.sleep(_TICK_S)

    def snapshot(self) -> Snapshot:
        tally, counts, engine = self.tally, self.intake.counts, self.engine
        total, exact = self._total()
        settled = tally.ok + tally.failed + tally.revived + counts.done + counts.failed_before
        rate = tally.rows.per_s
        return Snapshot(
            run_id=self.run_id,
            job=self.job.name,
            phase="draining" if self.phase == "running" and self.engine.halt is not None else self.phase,
            samples=self.job.samples,
            elapsed_s=anyio.current_time() - self.started,
            total=total,
            total_exact=exact,
            ok=tally.ok,
            failed=tally.failed,
            done_before=counts.done + tally.revived,
            failed_before=counts.failed_before,
            sending=engine.sending,
            waiting=engine.waiting,
            attempts=engine.attempts,
            retries=engine.retries,
            rate_limited=engine.rate_limited,
            spend=tally.spend,
            currency=self._currency(),
            rows_per_s=rate,
            tokens_per_s=tally.tokens.per_s,
            eta_s=max(0, total - settled) / rate if total is not None and rate > 0 else None,
            failures=tally.failures(),
            pace=self.limiter.pace(),
            oldest=engine.oldest(_OLDEST),
            budget=self.budget.use() if self.budget else None,
            forecast=self._forecast(max(0, total - settled)) if total is not None else None,
            cache_hits=tally.shared,
        )

    def _forecast(self, left: int) -> Forecast | None:
        """What the run will have used when `left` more samples are settled."""
        tally = self.tally
        return self.forecaster.forecast(
            settled=tally.ok + tally.failed, asked=tally.asked, spend=tally.spend, left=left
        )

    def _price(self) -> Price | None:
        return self.provider.prices.get(self.job.model)

    def _currency(self) -> str | None:
        return self.provider.currency if self.job.model in self.provider.prices else None

    def _total(self) -> tuple[int | None, bool]:
        """How many samples the pass has: exactly, or as far as the share of the input that was read tells."""
        rows, exact = self._total_rows()
        return None if rows is None else rows * self.job.samples, exact

    def _total_rows(self) -> tuple[int | None, bool]:
        seen, source, options = self.intake.counts.rows, self.prepared.source, self.options
        if self.read_all:
            return seen, True
        if self.counted is not None:
            return self.counted, True
        known = source.known_rows()
        if known is None:
            share = source.fraction()
            if share <= 0.001 or seen == 0:
                return None, False
            known, exact = round(seen / share), False
        else:
            exact = True
        for bound in (options.limit, options.sample):
            known = min(known, bound) if bound is not None else known
        return max(known, seen), exact

    # --- ending

    async def _end(self) -> RunSummary:
        error = self.writer.error or self.engine.halt or self.failed
        if isinstance(error, StoppedEarly) and self._nothing_left():
            error = None  # the deadline came when nothing was left to do
        if self.engine.answered and self.writer.error is None:
            try:
                await self.offload(self.wording.answered)
            except StorageError as failed:
                error = error or failed
        complete = self.read_all and error is None and not self.stop.asked and self.prepared.selection.whole
        if complete:
            error = await self._complete_pass()
        if not self.read_all:
            await self._count_rest()
        self.warnings += [*self.prepared.warnings, *self.prepared.source.warnings]
        if self.budget is not None and self.budget.unmetered:
            self.warnings.append(
                f"{self.budget.unmetered} answers came without usage: their tokens and cost are not known, and the "
                "budget was charged what was reserved for them"
            )
        if self.reuse is not None:
            self.warnings += self.reuse.remarks()
        self.phase = "ended"
        summary = self._summary(error)
        if self.writer.error is None:
            ended = {**plain(summary), "ended_at": datetime.now(UTC).isoformat(timespec="seconds")}
            try:
                await self.offload(self.store.append_run, ended)
            except StorageError as failed:
                summary = self._summary(failed)
        if self.on_snapshot is not None:
            self.on_snapshot(self.snapshot())
        return summary

    def _nothing_left(self) -> bool:
        """Whether every sample of the pass that this run had to settle is settled, those that it tries again too."""
        counts, tally = self.intake.counts, self.tally
        settled = tally.ok + tally.failed + tally.revived
        return self.read_all and settled == counts.to_send + counts.archived + counts.invalid

    async def _count_rest(self) -> None:
        """Count the rows that were not read any more, so that what is open is told exactly."""
        try:
            rows: int = await self.offload(self.prepared.source.count_rows)
        except BatchchatError:
            return  # standard input can be read only once
        bounds = [bound for bound in (self.options.limit, self.options.sample) if bound is not None]
        self.counted = min([rows, *bounds])

    async def _complete_pass(self) -> BatchchatError | None:
        """What only a complete pass may do: archive what the input no longer yields, and check the counts."""
        if self.options.prune or (self.job.input.key is None and self.wording.mixed):
            self._tell_archived(await self.offload(self.store.archive_unseen), "that the input no longer yields")
        elif self.store.counts().kept:
            change = await self.offload(self.store.archive_surplus, self.job.samples)
            self._tell_archived(change, "beyond the job's `samples`")
        self.store.drop_answers()
        shared = Layout(self.store.directory).answers
        if shared.exists():
            from batchchat.cache import remove_cache

            await self.offload(remove_cache, shared)
        await self.offload(self.wording.settle)
        return await self._check_counts()

    def _tell_archived(self, change: Change, which: str) -> None:
        self.store.apply(change)
        if change.removed:
            self.tell(Event("archived", f"{len(change.removed)} records {which} went to the archive"))

    async def _check_counts(self) -> BatchchatError | None:
        """Rows * samples = ok + failed; dataset = ok + failed + kept. Anything else is a fault of ours, and said."""
        counts, rows, samples = self.store.index.counts(), self.intake.counts.rows, self.job.samples
        stored = await self.offload(self.store.stored_rows)
        if counts.seen == rows * samples and counts.live == stored:
            return None
        rows_told = f"{rows} rows read{f' for {samples} samples each' if samples > 1 else ''}, {counts.seen} settled"
        return BatchchatError(
            f"the counts do not agree: {rows_told}; {counts.live} records known, {stored} stored",
            remedy=f"Run `batchchat verify {self.job.output.path}` and report what it says.",
        )

    def _summary(self, error: BatchchatError | None) -> RunSummary:
        counts, tally, intake = self.store.index.counts(), self.tally, self.intake.counts
        total, _ = self._total_rows()
        rows = total if total is not None else intake.rows
        failed = sum(counts.seen_failed.values())
        reason, remedy, code = None, None, 1 if failed else 0
        if error is not None:
            reason, remedy, code = error.message, error.remedy, error.exit_code
        elif self.stop.asked:
            reason, code = self.stop.reason, self.stop.exit_code or 1
        elapsed = anyio.current_time() - self.started
        left = max(0, rows * self.job.samples - counts.seen)
        reopened = failed and any(kind in self.job.retry.reopens() for kind in counts.seen_failed)
        return RunSummary(
            run_id=self.run_id,
            job=self.job.name,
            output=self.job.output.path,
            provider=self.provider.name,
            model=self.job.model,
            exit_code=code,
            reason=reason,
            remedy=remedy,
            elapsed_s=elapsed,
            rows=rows,
            samples=self.job.samples,
            ok=counts.seen_ok,
            failed=failed,
            open=left,
            kept=counts.kept,
            new_ok=tally.ok,
            new_failed=tally.failed,
            revived=tally.revived,
            sent=self.engine.attempts,
            retries=self.engine.retries,
            rate_limited=self.engine.rate_limited,
            corrections=self.engine.corrections,
            spend=tally.spend,
            spend_total=self.store.ledger_total(),
            currency=self._currency(),
            rows_per_s=(tally.ok + tally.failed) / elapsed if elapsed > 0 else 0.0,
            failures=self._failures(),
            warnings=tuple(self.warnings),
            note=self.provider.note if self.provider.name == DEMO else "",
            resume=self.options.command if left or reopened else None,
            budget=self.budget.use() if self.budget else None,
            forecast=self._forecast(0),
            cache_hits=tally.shared,
            streamed=tally.streamed,
        )

    def _failures(self) -> tuple[FailureGroup, ...]:
        """Failed rows of the pass by kind; this run's examples, and the count alone where an earlier run had them."""
        groups = {group.kind: group for group in self.tally.failures()}
        found = []
        for kind, number in self.store.index.counts().seen_failed.items():
            group = groups.get(kind.value)
            example = FailureGroup(kind.value, number, "(in an earlier run; `batchchat show --failed` tells)")
            found.append(replace(group, count=number) if group else example)
        return tuple(sorted(found, key=lambda group: -group.count))


def _correction(forecast: Forecast, currency: str | None) -> Event:
    """The event that tells how far off the guess by size was."""
    now, guess = f"{short(forecast.tokens)} tokens", f"{short(forecast.guessed_tokens)} tokens"
    if forecast.cost is not None:
        now, guess = (
            f"{money(forecast.cost, currency)} and {now}",
            f"{money(forecast.guessed_cost, currency)} and {guess}",
        )
    message = f"after {forecast.answers} answers: about {now} at the end, where {guess} were estimated by size"
    return Event("estimate_corrected", message, "info", {**plain(forecast), "currency": currency})


def plain(view: Any) -> dict[str, Any]:
    """A frozen view as JSON values; named tuples by their fields' names."""
    value: dict[str, Any] = _plain(view)
    return value


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: _plain(each) for name, each in value._asdict().items()}
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    return value


def _now_us() -> int:
    return time.time_ns() // 1000
