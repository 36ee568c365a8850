"""The coordinator: starts workers, hands out shards, and is the run as a person sees it.

It holds the output, so that a second one is refused, and no shard. It sends no request, and has no row and no answer.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import anyio
import pyarrow.compute as pc

from batchchat.addresses import address_of
from batchchat.endpoints.registry import needs_demo, read_keys
from batchchat.errors import BatchchatError, UsageError
from batchchat.events import Event, Listener, RunSummary, Snapshot
from batchchat.job import Job, load_keys
from batchchat.runner.control import Control
from batchchat.runner.opening import new_run_id
from batchchat.runner.options import RunOptions
from batchchat.runner.preparation import prepare
from batchchat.runner.run_summary import plain
from batchchat.runner.shard_choice import shards_for
from batchchat.runner.steering import tell_interrupted
from batchchat.runner.writer import Offload, in_thread
from batchchat.sources import STDIN, Source
from batchchat.store import Frozen, Shards, frozen_schema, read_state
from batchchat.store.coordinated import CoordinatedOutput
from batchchat.workers.limits import share_limits
from batchchat.workers.messages import job_order, options_order
from batchchat.workers.port import Launcher
from batchchat.workers.setting import TeamSetting
from batchchat.workers.team import Team
from batchchat.workers.team_run import TeamRun
from batchchat.workers.team_summary import team_summary

_DEFAULTS = RunOptions()
_TICK_S = 0.25
"""Seconds between snapshots, as of a run without workers."""
Answers = Sequence[Sequence[Any]]
"""Figures of answers for metrics: model, kind of failure, seconds, prompt tokens, completion tokens."""


def _no_listener(_event: Event) -> None:
    pass


async def run_with_workers(
    job: Job,
    workers: int,
    *,
    launcher: Launcher,
    options: RunOptions = _DEFAULTS,
    control: Control | None = None,
    listener: Listener = _no_listener,
    on_snapshot: Callable[[Snapshot], None] | None = None,
    on_answers: Callable[[Answers], None] | None = None,
    environ: Mapping[str, str] | None = None,
    offload: Offload = in_thread,
    tick_s: float = _TICK_S,
) -> RunSummary:
    """Run a job with several workers, or go on with it where an earlier run stopped.

    `launcher` starts the workers. `listener` takes events, `on_snapshot` the sums of all counts, `on_answers` figures
    of answers. `control` steers all workers as one run. The rest is as in `run_job`.

    Returns how the run ended, as one run: whatever fails after the start is in the summary's `exit_code` and `reason`.

    Raises UsageError before anything is started, OutputLocked if another run holds the output, StorageError if it
    cannot be opened.
    """
    options = replace(options, run_id=new_run_id())
    job, shards, source = await offload(_check, job, options, environ, listener)
    started = anyio.current_time()
    async with AsyncExitStack() as stack:
        output = await stack.enter_async_context(_held_output(job, shards, options, listener, offload))
        demo_url = await _start_demo(stack, offload) if needs_demo(job) else None
        limits = await stack.enter_async_context(share_limits(job, launcher.host))
        order = {
            "do": "begin",
            **job_order(job),
            "options": options_order(options),
            "demo_url": demo_url,
            "answers": on_answers is not None,
            **limits.order,
        }
        setting = TeamSetting(
            job, options, control or Control(), output, shards, source, limits, started, listener, offload
        )
        team = Team(setting, min(workers, len(shards.chosen)), launcher=launcher, order=order)
        team.on_answers = on_answers
        run = TeamRun(setting, team)
        run.on_snapshot = on_snapshot
        await run.run(tick_s)
        summary = await _end(setting, team, run.elapsed)
        # The display keeps what it was shown last: the counts of workers that ended after the last tick must be in it.
        if on_snapshot is not None and (snapshot := run.snapshot()) is not None:
            on_snapshot(snapshot)
        return summary


def _check(
    job: Job, options: RunOptions, environ: Mapping[str, str] | None, tell: Listener
) -> tuple[Job, Shards, Source]:
    """Check the job as a run does, so that what is wrong is said once, before a worker starts. Raises UsageError."""
    shards = shards_for(job, options)
    if shards is None:
        raise UsageError(
            "--workers needs an output in shards, and this one has none",
            remedy="Add `--set output.shards=64` or write `output: {path: …, shards: 64}`: several shards for each "
            f"worker. Of an output that is there, `batchchat reshard {job.output.path} --shards 64` moves the records.",
        )
    if job.input.path == STDIN:
        raise UsageError(
            "--workers cannot read standard input: each worker reads the input by itself",
            remedy="Write the rows to a file, and name it with --input.",
        )
    read_keys(job, load_keys(job, environ))
    frozen = Frozen() if options.fresh else frozen_schema(address_of(job.output.path))
    prepared = prepare(job, frozen=frozen, limit=options.limit, sample=options.sample, seed=options.seed, shards=shards)
    for message in (*prepared.warnings, *prepared.first_empty):
        tell(Event("warning", message, "warning"))
    # What was read to try the template is let go: rows are the workers' matter.
    return prepared.job, shards, prepared.source


@asynccontextmanager
async def _held_output(
    job: Job, shards: Shards, options: RunOptions, tell: Listener, offload: Offload
) -> AsyncIterator[CoordinatedOutput]:
    """Hold the output until the context ends. Tell where an old one is kept, and what a killed run had been told."""
    output: CoordinatedOutput = await offload(
        functools.partial(
            CoordinatedOutput.open,
            address_of(job.output.path),
            shards,
            run_id=options.run_id or "",
            job_name=job.name,
            snapshot=job.snapshot(),
            fresh=options.fresh,
            take_over=options.take_over,
            outage=job.retry.outage,
            tell=lambda message: tell(Event("output_away", message, "warning")),
        )
    )
    try:
        if output.renamed is not None:
            message = (
                f"the old output is kept as {output.renamed}; `batchchat clean {job.output.path}` removes old ones"
            )
            tell(Event("set_aside", message, "info", {"path": output.renamed}))
        tell_interrupted(await offload(output.runs.killed_run), tell)
        yield output
    finally:
        await offload(output.close)


async def _start_demo(stack: AsyncExitStack, offload: Offload) -> str:
    """Start one demo server for all workers, and return its address."""
    from batchchat.demo import DemoOptions, DemoServer

    server = DemoServer(DemoOptions(track_bodies=False))
    await offload(server.start)
    stack.push_async_callback(offload, server.stop)
    return server.base_url


async def _end(setting: TeamSetting, team: Team, elapsed_s: float) -> RunSummary:
    """Return how the run ended, and write it to the output."""
    offload = setting.offload
    summary: RunSummary = await offload(team_summary, setting, team, elapsed_s)
    summary = await offload(functools.partial(_with_output, summary, setting.job, died=team.reports.deaths > 0))
    line = {**plain(summary), "ended_at": datetime.now(UTC).isoformat(timespec="seconds")}
    try:
        await offload(setting.output.runs.append_run, {**line, "shards": list(setting.shards.chosen)})
    except BatchchatError as error:
        # The answers are durable in the shards; only the line about this run is missing.
        summary = replace(summary, exit_code=error.exit_code, reason=error.message, remedy=error.remedy)
    return summary


def _with_output(summary: RunSummary, job: Job, *, died: bool) -> RunSummary:
    """Add what the output as a whole tells: what was spent, and what workers that died had counted."""
    try:
        output = read_state(address_of(job.output.path))
        new = [summary.new_ok, summary.new_failed]
        if died:
            new = [0, 0]
            for batch in output.records(["run_id", "status"]):
                mine = batch.filter(pc.equal(batch.column("run_id"), summary.run_id)).column("status")
                ok = int(pc.equal(mine, "ok").true_count)
                new = [new[0] + ok, new[1] + len(mine) - ok]
    except BatchchatError:
        return summary  # a part that cannot be read: the next run says so
    spend = output.spend_by_run.get(summary.run_id, summary.spend)
    return replace(summary, spend=spend, spend_total=output.spend, new_ok=new[0], new_failed=new[1])
