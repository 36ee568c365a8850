"""A run with workers, as a person sees and steers it: one run, whatever the number of workers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import anyio

from batchchat.budget import Budget
from batchchat.errors import StorageError
from batchchat.events import Listener, Phase, Snapshot
from batchchat.job import Job
from batchchat.runner.control import Control
from batchchat.runner.failed_limit import FailedLimit
from batchchat.runner.options import RunOptions
from batchchat.runner.run_summary import correction_event, plain, remedy_of
from batchchat.runner.steering import RunSteering
from batchchat.runner.writer import Offload
from batchchat.store.coordinated import CoordinatedOutput
from batchchat.workers.reports import Reports
from batchchat.workers.setting import TeamSetting
from batchchat.workers.team import Team

_LIVE_EVERY = 4
"""Snapshots are written to the output at every fourth tick: once a second, as by a run without workers."""


class TeamRun:
    """The run that `RunSteering` steers, with its workers as what sends its requests."""

    on_snapshot: Callable[[Snapshot], None] | None = None

    def __init__(self, setting: TeamSetting, team: Team) -> None:
        self.phase: Phase = "starting"
        self.elapsed = 0.0
        self._setting = setting
        self._team = team
        limit = setting.job.limits.max_failed
        self._failed_limit = None if limit is None else FailedLimit(limit)
        self._checked = 0

    # ---- what a steering asks of a run ------------------------------------------------------------------------------

    @property
    def job(self) -> Job:
        """Its job."""
        return self._setting.job

    @property
    def options(self) -> RunOptions:
        """Its options."""
        return self._setting.options

    @property
    def control(self) -> Control:
        """What a person tells it."""
        return self._setting.control

    @property
    def run_id(self) -> str:
        """Its identity."""
        return self._setting.run_id

    @property
    def started(self) -> float:
        """When it began."""
        return self._setting.started

    @property
    def tell(self) -> Listener:
        """What takes its events."""
        return self._setting.tell

    @property
    def offload(self) -> Offload:
        """What runs blocking code."""
        return self._setting.offload

    @property
    def budget(self) -> Budget | None:
        """The budget of all workers, if it can be changed here."""
        return self._setting.limits.budget

    @property
    def currency(self) -> str | None:
        """The currency of its costs."""
        provider = self.job.resolved_provider()
        return provider.currency if self.job.model in provider.prices else None

    @property
    def engine(self) -> Team:
        """What sends its requests: the workers."""
        return self._team

    @property
    def tally(self) -> Reports:
        """What tells its cost: the sum of what the workers report."""
        return self._team.reports

    @property
    def store(self) -> CoordinatedOutput:
        """Its output."""
        return self._setting.output

    # ---- the run ----------------------------------------------------------------------------------------------------

    async def run(self, tick_s: float) -> None:
        """Run until no worker is left. A snapshot is shown every `tick_s` seconds."""
        self.phase = "running"
        async with anyio.create_task_group() as group:
            steering = RunSteering(self, group, self._write_live, look_s=tick_s)
            with self.control.watch(steering):
                group.start_soon(self._tick, steering, tick_s)
                steering.begin()
                await self._team.run()
            self.phase = "ending"
            self.elapsed = anyio.current_time() - self.started
            group.cancel_scope.cancel()

    def snapshot(self) -> Snapshot | None:
        """Return the counts of the run now; None if no worker has told anything yet."""
        joined = self._team.reports.sums.joined()
        if joined is None:
            return None
        total, exact = self._total(joined)
        settled = joined.ok + joined.failed + joined.done_before + joined.failed_before + joined.skipped
        rate = joined.rows_per_s
        return replace(
            joined,
            run_id=self.run_id,
            elapsed_s=anyio.current_time() - self.started,
            phase=self._shown_phase(),
            total=total,
            total_exact=exact,
            eta_s=max(0, total - settled) / rate if total is not None and rate > 0 else None,
            budget=self._setting.budget_use() or joined.budget,
            steering=self.control.steering,
        )

    def _total(self, joined: Snapshot) -> tuple[int | None, bool]:
        """Return how many rows the run has, as far as it is known, and whether that is exact."""
        claims, all_shards = self._team.claims, len(self._setting.shards.chosen)
        # Each worker counts the rows of its own shards. Once all shards are taken up, and counted, their sum is exact.
        if not claims.waiting and joined.total_exact:
            return joined.total, True
        known = self._setting.source.known_rows()
        if known is not None:
            return self._setting.rows_of_pass(known) * self.job.samples, True
        if joined.total is None:
            return None, False
        # A key falls into each shard with the same likelihood, so that those which wait have about as many rows each.
        return round(joined.total * all_shards / max(all_shards - claims.waiting, 1)), False

    def _shown_phase(self) -> Phase:
        if self.phase == "running" and self._team.halt is not None:
            return "draining"
        return "paused" if self.phase == "running" and self.control.paused else self.phase

    async def _tick(self, steering: RunSteering, tick_s: float) -> None:
        """Show a snapshot at each tick, and write every fourth to the output."""
        ticks = 0
        corrected = False
        while True:
            snapshot = self.snapshot()
            if snapshot is not None:
                # What a worker forecasts is of its own rows. The sum is of all, and told once (see `Reports.pass_on`).
                if snapshot.forecast is not None and snapshot.forecast.corrected and not corrected:
                    corrected = True
                    self.tell(correction_event(snapshot.forecast, snapshot.currency))
                steering.keep_caps()
                self._check_failed(snapshot)
                if self.on_snapshot is not None:
                    self.on_snapshot(snapshot)
                if ticks % _LIVE_EVERY == 0:
                    await self._write_live()
            ticks += 1
            await anyio.sleep(tick_s)

    async def _write_live(self) -> None:
        snapshot = self.snapshot()
        if snapshot is not None:
            with suppress(StorageError):  # it is for those who look, and the workers will say if the disk is full
                await self.offload(self.store.runs.write_live, plain(snapshot))

    def _check_failed(self, snapshot: Snapshot) -> None:
        """Send nothing more once too many rows of all workers have failed."""
        settled, limit = snapshot.ok + snapshot.failed, self._failed_limit
        if limit is None or self._team.is_ending() or settled == self._checked or not snapshot.failures:
            return
        self._checked = settled
        if limit.passed(snapshot.failed, settled):
            commonest = snapshot.failures[0]
            self._team.halt_for(limit.error(snapshot.failed, settled, commonest, remedy_of(commonest.kind)))
