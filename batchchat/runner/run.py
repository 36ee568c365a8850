"""A run: one execution of a job into an output directory.

`run_job` puts the parts together: it prepares the job, opens the store, feeds the engine, and tells how it ended. The
pieces it joins each hold one idea: `preparation` checks before anything is sent, `intake` sorts rows, the engine
executes requests, the writer makes outcomes durable.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from batchchat import lazy_arrow
from batchchat.addresses import address_of
from batchchat.budget import Budget
from batchchat.endpoints.registry import Keys, Limiters, ProviderAccess, make_limiter, read_keys
from batchchat.engines.state import Surroundings
from batchchat.errors import StorageError, UsageError
from batchchat.events import Event, Listener, RunSummary, Snapshot
from batchchat.job import Job, load_keys
from batchchat.limits import Limiter
from batchchat.records import Record
from batchchat.runner.control import Control
from batchchat.runner.ending import Ending
from batchchat.runner.failed_limit import FailedLimit
from batchchat.runner.feed import RequestFeed
from batchchat.runner.opening import RunOpening, RunSetting
from batchchat.runner.options import RunOptions
from batchchat.runner.preparation import prepare
from batchchat.runner.run_summary import Figures, alike_event, correction_event, plain, remedy_of
from batchchat.runner.shard_choice import shards_for
from batchchat.runner.state import RunState
from batchchat.runner.steering import RunSteering, tell_interrupted
from batchchat.runner.wording import Wording
from batchchat.runner.writer import Offload, in_thread
from batchchat.sources import GivenRows
from batchchat.store import Frozen, HeldOutput, Store, frozen_schema

if TYPE_CHECKING:
    import httpx

    from batchchat.runner.batches import OpenService

__all__ = ["make_limiter", "run_job"]

_DEFAULTS = RunOptions()
_TICK_S = 0.25
"""Seconds between snapshots: a display looks smooth, and a snapshot costs well under a millisecond."""
_FIRST_LOOK_S = 0.06
"""Seconds until the first look whether requests are under way: measured, 64 are sent within 55 ms on a slow machine."""
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
    setting = RunSetting(
        options=options,
        rows=rows,
        control=stop or Control(),
        surroundings=Surroundings(listener, random.Random(seed), offload),  # noqa: S311 - jitter, not cryptography
        access=ProviderAccess(load_keys(job, environ), transport, limiter, limiters, demo_url),
        on_snapshot=on_snapshot,
        on_record=on_record,
        open_store=open_store,
        open_service=open_service,
        tick_s=tick_s,
    )
    return await _execute(job, setting, budget=budget)


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
                        inner.start_soon(self._load_late)
                        steering.begin()
                        await run.engine.run(RequestFeed(run).requests(), run.sink)
                    self._tell_warnings()
                    run.phase = "ending"
                    inner.cancel_scope.cancel()
            finally:
                run.writer.finish()
        # The last answers are counted only once they are durable.
        self._tell_answerers()

    async def _load_late(self) -> None:
        """Import what the first request did not need, while it is under way and nothing else is to do."""
        pause = _FIRST_LOOK_S
        while not self._run.engine.progress().sending:
            await anyio.sleep(pause)
            pause = self._tick_s
        await self._run.offload(_import_late)

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


def _import_late() -> None:
    """Import what writes parts, and what goes on after a failure: a run of days may outlive its installed packages."""
    # Whoever needs one of these imports it again, and tells what is wrong.
    with suppress(ImportError, OSError):
        lazy_arrow.load()
        import_module("batchchat.client.day_limits")
        import_module("tenacity")


async def _execute(job: Job, setting: RunSetting, *, budget: Budget | None) -> RunSummary:
    started = anyio.current_time()
    options = setting.options
    tell, offload = setting.surroundings.listener, setting.surroundings.offload
    # A caller that runs several jobs may give one budget over all of them.
    if budget is None and job.budget.capped:
        caps = job.budget
        budget = Budget(max_cost=caps.max_cost, max_tokens=caps.max_tokens, max_requests=caps.max_requests)
    warned: list[str] = []
    keys = await offload(functools.partial(_read_keys, job, setting, warned.append))
    for message in warned:
        tell(Event("warning", message, "warning"))
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
        tell(Event("warning", message, "warning"))
    job = prepared.job
    opening = RunOpening(job, prepared, budget, setting)
    async with AsyncExitStack() as held:
        # Before the output: if the cache cannot be opened, no output is made.
        cache = await opening.open_cache(held, Path(job.cache)) if job.cache is not None else None
        store = await offload(opening.open_store)
        try:
            # Batches of an earlier run may still answer the same rows, which would then be paid for twice.
            if not job.engine.batch:
                await offload(_refuse_beside_batches, store)
            tell_interrupted(await offload(store.runs.killed_run), tell)
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


def _read_keys(job: Job, setting: RunSetting, warn: Callable[[str], object]) -> Keys:
    """Read the keys of all endpoints. Blocking code; raises JobError if one cannot be had."""

    def tell(message: str, place: str | None) -> None:
        setting.surroundings.listener(Event("key_renewed", message, fields={"place": place}))

    return read_keys(job, setting.access.environ, warn=warn, tell=tell)


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
