"""The workers of one run: started, fed with shards, heard, replaced if they die, and steered as one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import anyio
from anyio.abc import TaskGroup

from batchchat.budget import Budget
from batchchat.engines.port import EngineProgress, halted
from batchchat.errors import BatchchatError, NeedsHuman, ProviderUnavailable, StoppedEarly, StorageError, UsageError
from batchchat.events import BudgetUse, Event, Listener, Pace, Phase, RunSummary, Snapshot
from batchchat.format import plural
from batchchat.job import Job
from batchchat.records import Spend
from batchchat.runner.control import Ceilings, Control
from batchchat.runner.failed_limit import FailedLimit
from batchchat.runner.options import RunOptions
from batchchat.runner.run_summary import correction_event, plain, remedy_of
from batchchat.runner.steering import RunSteering
from batchchat.runner.writer import Offload
from batchchat.sources import Source
from batchchat.store import Shards
from batchchat.store.joined_runs import joined_summaries, worst_code
from batchchat.store.led import LedOutput
from batchchat.workers.claims import Claim, Claims
from batchchat.workers.limits import LimitsOfAll
from batchchat.workers.messages import Message
from batchchat.workers.port import Launcher, RunningWorker
from batchchat.workers.sums import Sums, summary_of, summary_of_nothing

_LIVE_EVERY = 4
_MOST_STARTS = 3
"""How often a worker may die in a row before it asked for work."""
_PLACED_S = 1.0
"""Seconds between looks whether a worker that has no place yet is still needed. A process starts in less."""
_LATE_S = 10.0
"""Seconds beyond the grace that a worker has to write down what it has, before it is killed."""
_GOES_ON = (0, 1)
"""Exit codes of a claim behind which the other workers go on."""
_MOST_TOLD = 1_000
_OF_ONE_WORKER = "estimate_corrected"


@dataclass(slots=True)
class Led:
    """A run that a coordinator leads: what its rooms share."""

    job: Job
    options: RunOptions
    control: Control
    output: LedOutput
    shards: Shards
    limits: LimitsOfAll
    started: float
    tell: Listener
    offload: Offload


class Team:
    """The workers of one run. `order` is the first message of each, `source` is asked how many rows there are.

    It is what `RunSteering` steers: a run, its engine, and its tally.
    """

    on_snapshot: Callable[[Snapshot], None] | None = None
    on_answers: Callable[[Sequence[Sequence[Any]]], None] | None = None

    def __init__(self, led: Led, workers: int, *, launcher: Launcher, order: Message, source: Source) -> None:
        self.phase: Phase = "starting"
        self.halt: BatchchatError | None = None
        self._led = led
        self._launcher = launcher
        self._order = order
        self._source = source
        self._names = [str(number) for number in range(1, workers + 1)]
        self._claims = Claims(led.shards.chosen, workers)
        self._sums = Sums()
        self._summaries: list[Mapping[str, Any]] = []
        self._lost: list[Mapping[str, Any]] = []
        self._running: dict[str, RunningWorker] = {}
        self._told: set[tuple[str, str]] = set()
        self._stops = 0
        self._group: TaskGroup | None = None
        limit = led.job.limits.max_failed
        self._failed_limit = None if limit is None else FailedLimit(limit)
        self._checked = 0
        self._elapsed = 0.0
        self.deaths = 0

    # ---- what a steering asks of a run ------------------------------------------------------------------------------

    @property
    def job(self) -> Job:
        """Its job."""
        return self._led.job

    @property
    def options(self) -> RunOptions:
        """Its options."""
        return self._led.options

    @property
    def control(self) -> Control:
        """What a person tells it."""
        return self._led.control

    @property
    def run_id(self) -> str:
        """Its identity."""
        return self._led.options.run_id or ""

    @property
    def started(self) -> float:
        """When it began."""
        return self._led.started

    @property
    def tell(self) -> Listener:
        """What takes its events."""
        return self._led.tell

    @property
    def offload(self) -> Offload:
        """What runs blocking code."""
        return self._led.offload

    @property
    def budget(self) -> Budget | None:
        """The budget of all workers, if it can be changed here."""
        return self._led.limits.budget

    @property
    def currency(self) -> str | None:
        """The currency of its costs."""
        provider = self.job.resolved_provider()
        return provider.currency if self.job.model in provider.prices else None

    @property
    def engine(self) -> Team:
        """What sends its requests: the workers."""
        return self

    @property
    def tally(self) -> Team:
        """What tells its cost: the sum of the workers."""
        return self

    @property
    def store(self) -> LedOutput:
        """Its output."""
        return self._led.output

    @property
    def spend(self) -> Spend:
        """What this run has cost so far."""
        snapshot = self._sums.joined()
        return Spend() if snapshot is None else snapshot.spend

    def progress(self, oldest: int = 0) -> EngineProgress:
        """Return what is under way in all workers."""
        snapshot = self._sums.joined()
        if snapshot is None:
            return EngineProgress(0, 0, 0, 0, 0, 0, Pace(), ())
        return EngineProgress(
            sending=snapshot.sending,
            waiting=snapshot.waiting,
            attempts=snapshot.attempts,
            retries=snapshot.retries,
            rate_limited=snapshot.rate_limited,
            corrections=0,
            pace=snapshot.pace,
            oldest=snapshot.oldest[:oldest],
        )

    def drain(self) -> None:
        """Hand out nothing more, and let what is in flight end."""
        self._claims.drop()
        self._stop(1)

    def cancel(self) -> None:
        """End what is in flight, too."""
        self._claims.drop()
        self._stop(2)

    def halt_for(self, error: BatchchatError) -> None:
        """Drain for this reason; the first one counts."""
        if self.halt is None:
            self.halt = error
            # A worker that ended for this reason has told it already.
            self._pass_on(None, {"name": "halted", **_told_of(halted(error))})
        self.drain()
        if self._group is not None:
            self._group.start_soon(self._end_late)

    def pause(self) -> None:
        """Launch nothing until `resume`."""
        steering = self.control.steering
        self._tell_all({"do": "pause", "since": steering.paused_since, "by": steering.paused_by})

    def resume(self) -> None:
        """Go on launching."""
        self._tell_all({"do": "resume"})

    def retune(
        self, *, requests_per_minute: float | None, tokens_per_minute: float | None, concurrency: int | None
    ) -> None:
        """Take other ceilings over all workers."""
        # The lowest ceiling of all workers holds, so that each must have the new ones.
        ceilings = self._led.limits.ceilings = Ceilings(requests_per_minute, tokens_per_minute, concurrency)
        self._tell_all({"do": "retune", "ceilings": asdict(ceilings)})

    # ---- the workers ------------------------------------------------------------------------------------------------

    async def run(self, tick_s: float) -> None:
        """Run all shards, or as many as can be. Return when no worker is left."""
        self.phase = "running"
        async with anyio.create_task_group() as group:
            self._group = group
            steering = RunSteering(self, group, self._write_live, look_s=tick_s)
            with self.control.watch(steering):
                group.start_soon(self._tick, steering, tick_s)
                steering.begin()
                async with anyio.create_task_group() as workers:
                    for name in self._names:
                        workers.start_soon(self._employ, name)
            self.phase = "ending"
            self._elapsed = anyio.current_time() - self.started
            group.cancel_scope.cancel()
        self._group = None

    async def _employ(self, name: str) -> None:
        """Keep one worker at work: start another one if it dies, for as long as there is something to do."""
        deaths = 0
        while not self._is_ending() and deaths < _MOST_STARTS and (self._claims.left or deaths == 0):
            worker = await self._start(name)
            if worker is None:
                return
            self._running[name] = worker
            try:
                asked = await self._hear(name, worker)
                end = await worker.wait()
            finally:
                self._running.pop(name, None)
                # A worker that nobody hears any more must not go on alone.
                with anyio.CancelScope(shield=True):
                    await worker.kill()
            claim = self._claims.died(name)
            self._sums.forget(name)
            if end.clean and claim is None:
                return
            deaths = 1 if asked else deaths + 1
            self._tell_death(name, worker, end.reason or "ended in the middle of its work", claim)
            if claim is not None and self._is_ending():
                return
        if deaths >= _MOST_STARTS:
            message = f"worker {name} died {deaths} times before it began to work"
            self._lost.append({"message": message, "remedy": _LOOK, "exit_code": 70})

    async def _start(self, name: str) -> RunningWorker | None:
        """Start a worker. Return None if it cannot be, or if nothing is left to do before it has found a place."""
        worker: RunningWorker | None = None
        async with anyio.create_task_group() as group:

            async def give_up() -> None:
                # A cluster may have no place for it as long as other workers run: then those may do the rest.
                while True:
                    await anyio.sleep(_PLACED_S)
                    if self._is_ending() or not self._claims.left:
                        group.cancel_scope.cancel()

            group.start_soon(give_up)
            try:
                worker = await self._launcher.start(name)
            except BatchchatError as error:
                self._lost.append({"message": error.message, "remedy": error.remedy, "exit_code": error.exit_code})
            group.cancel_scope.cancel()
        return worker

    def _is_ending(self) -> bool:
        return self.halt is not None or bool(self.control.asked)

    def _tell_death(self, name: str, worker: RunningWorker, reason: str, claim: Claim | None) -> None:
        what = "it had claimed no shard"
        if claim is not None:
            again = "the run is ending" if self._is_ending() else "another worker takes them"
            given_up = claim in self._claims.given_up
            what = f"{plural(len(claim), 'shard')} with it: " + (
                "given up, since they killed several workers" if given_up else again
            )
        self.deaths += 1
        message = f"worker {name} ({worker.place}) died: {reason}; {what}"
        fields = {"worker": name, "shards": list(claim or ()), "reason": reason}
        self.tell(Event("worker_died", message, "warning", fields))

    async def _hear(self, name: str, worker: RunningWorker) -> bool:
        """Take what a worker tells, until it ends; tell whether it asked for work."""
        await worker.tell(self._order)
        # One that takes the place of a dead worker begins as the others are now.
        if self.control.paused:
            await worker.tell({"do": "pause"})
        if self._led.limits.ceilings is not None:
            await worker.tell({"do": "retune", "ceilings": asdict(self._led.limits.ceilings)})
        asked = False
        async for message in worker.messages():
            what = message.get("is")
            if what == "claim":
                asked = True
                await self._assign(name, worker)
            elif what == "snapshot":
                self._sums.show(name, message["snapshot"])
            elif what == "event":
                self._pass_on(name, message["event"])
            elif what == "answers" and self.on_answers is not None:
                self.on_answers(message["answers"])
            elif what == "done":
                self._sums.end(name)
                self._claims.end(name)
                self._take_summary({**message["summary"], "shards": message["shards"]})
            elif what == "lost":
                self._claims.end(name)
                self._lost.append(message)
                self._judge(int(message["exit_code"]), message["message"], message.get("remedy"))
        return asked

    async def _assign(self, name: str, worker: RunningWorker) -> None:
        """Give a worker shards, or let it end."""
        claim = None if self._is_ending() else self._claims.take(name)
        if claim is None:
            await worker.tell({"do": "end"})
        else:
            await worker.tell({"do": "work", "shards": list(claim)})

    def _take_summary(self, summary: Mapping[str, Any]) -> None:
        self._summaries.append(summary)
        self._judge(int(summary["exit_code"]), summary.get("reason") or "", summary.get("remedy"))

    def _judge(self, code: int, reason: str, remedy: str | None) -> None:
        """End the run if one worker ended in a way that all of them would."""
        if code not in _GOES_ON and not self._is_ending():
            self.halt_for(_error_of(code, reason, remedy))

    def _pass_on(self, name: str | None, event: Mapping[str, Any]) -> None:
        """Tell an event of a worker, or the run's own; what several say alike is told once."""
        told = (str(event["name"]), str(event["message"]))
        # A worker's own forecast is of its rows; the run's is told once, of all.
        if told in self._told or told[0] == _OF_ONE_WORKER:
            return
        if len(self._told) < _MOST_TOLD:
            self._told.add(told)
        fields = {**(event.get("fields") or {}), **({} if name is None else {"worker": name})}
        self.tell(Event(told[0], told[1], event["level"], fields))

    def _tell_all(self, message: Message) -> None:
        if self._group is not None:
            for worker in list(self._running.values()):
                self._group.start_soon(worker.tell, message)

    def _stop(self, times: int) -> None:
        if self._stops >= times:
            return
        self._stops = times
        error = self.halt
        reason = error.message if error is not None else self.control.reason or "stopped"
        code = error.exit_code if error is not None else self.control.exit_code or 1
        self._tell_all({"do": "stop", "times": times, "reason": reason, "exit_code": code, "grace": self._grace})
        if self._group is not None and times > 1:
            self._group.start_soon(self._kill_late)

    @property
    def _grace(self) -> float:
        return float(self.control.settings.get("grace") or self.options.grace)

    async def _end_late(self) -> None:
        """End what is in flight when the grace of a halt is over."""
        await anyio.sleep(self._grace)
        self.cancel()

    async def _kill_late(self) -> None:
        """Kill the workers that do not end by themselves, such as one that is stopped."""
        await anyio.sleep(_LATE_S)
        for worker in list(self._running.values()):
            await worker.kill()

    # ---- figures ----------------------------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot | None:
        """Return the counts of the run now; None if no worker has told anything yet."""
        joined = self._sums.joined()
        if joined is None:
            return None
        total, exact = joined.total, joined.total_exact
        if self._claims.waiting or not exact:
            known = self._source.known_rows()
            if known is not None:
                most = self.options.most_rows
                total = (known if most is None else min(known, most)) * self.job.samples
            elif total is not None:
                begun = len(self._led.shards.chosen) - self._claims.waiting
                total = round(total * len(self._led.shards.chosen) / max(begun, 1))
            exact = known is not None
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
            budget=self._budget_use() or joined.budget,
            steering=self.control.steering,
        )

    def _budget_use(self) -> BudgetUse | None:
        return None if self.budget is None else self.budget.use()

    def _shown_phase(self) -> Phase:
        if self.phase == "running" and self.halt is not None:
            return "draining"
        return "paused" if self.phase == "running" and self.control.paused else self.phase

    async def _tick(self, steering: RunSteering, tick_s: float) -> None:
        """Show a snapshot at each tick, and write every fourth to the output."""
        ticks = 0
        corrected = False
        while True:
            snapshot = self.snapshot()
            if snapshot is not None:
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
                await self.offload(self.store.write_live, plain(snapshot))

    def _check_failed(self, snapshot: Snapshot) -> None:
        """Send nothing more once too many rows of all workers have failed."""
        settled, limit = snapshot.ok + snapshot.failed, self._failed_limit
        if limit is None or self._is_ending() or settled == self._checked or not snapshot.failures:
            return
        self._checked = settled
        if limit.passed(snapshot.failed, settled):
            commonest = snapshot.failures[0]
            self.halt_for(limit.error(snapshot.failed, settled, commonest, remedy_of(commonest.kind)))

    def summary(self) -> RunSummary:
        """Return how the run ended, as one run. Blocking code: it may have to count the rows of the input."""
        for claim in self._claims.given_up:
            message = f"shards {', '.join(map(str, claim))} killed every worker that took them"
            self._lost.append({"message": message, "remedy": _LOOK, "exit_code": 70})
        found = self._summaries
        joined = joined_summaries(found) if found else plain(summary_of_nothing(self.job, self.run_id))
        ended = {number for one in found for number in one["shards"]}
        complete = len(ended) == len(self._led.shards.chosen) and all(one["exit_code"] in _GOES_ON for one in found)
        summary = replace(summary_of(joined), run_id=self.run_id, elapsed_s=self._elapsed, output=self.job.output.path)
        if not complete:
            summary = self._with_rows(summary)
        summary = self._with_end(summary)
        settled, counts = summary.new_ok + summary.new_failed, self.progress()
        return replace(
            summary,
            # Workers that died left no summary; what they had told last is a quarter of a second old.
            sent=max(summary.sent, counts.attempts),
            retries=max(summary.retries, counts.retries),
            rate_limited=max(summary.rate_limited, counts.rate_limited),
            rows_per_s=settled / summary.elapsed_s if summary.elapsed_s > 0 else 0.0,
            budget=self._budget_use() or summary.budget,
            resume=self.options.command if summary.open or summary.resume else None,
        )

    def _with_end(self, summary: RunSummary) -> RunSummary:
        """Add why the run ended: of all that went wrong, what a person must know first."""
        ends: list[tuple[int, str | None, str | None]] = [(summary.exit_code, summary.reason, summary.remedy)]
        ends += [(int(lost["exit_code"]), lost["message"], lost.get("remedy")) for lost in self._lost]
        if self.control.asked:
            ends.append((self.control.exit_code or 1, self.control.reason, None))
        if self.halt is not None:
            ends.append((self.halt.exit_code, self.halt.message, self.halt.remedy))
        code = worst_code(end[0] for end in ends)
        # The newest of equal ends is the coordinator's own word.
        _, reason, remedy = next(end for end in reversed(ends) if end[0] == code)
        return replace(summary, exit_code=code, reason=reason, remedy=remedy)

    def _with_rows(self, summary: RunSummary) -> RunSummary:
        """Count the rows of the pass, of which some were not read: so that the number of open ones is exact."""
        try:
            rows = self._source.known_rows()
            rows = self._source.count_rows() if rows is None else rows
        except BatchchatError:
            return summary
        most = self.options.most_rows
        rows = rows if most is None else min(rows, most)
        left = rows * self.job.samples - summary.ok - summary.failed - summary.skipped
        return replace(summary, rows=rows, open=max(0, left))


_LOOK = "Look at what the workers said before they died. The same command goes on."


def _told_of(event: Event) -> dict[str, Any]:
    return {"message": event.message, "level": event.level, "fields": event.fields}


def _error_of(code: int, reason: str, remedy: str | None) -> BatchchatError:
    """Return the error that ended a worker, so that the run ends with its code."""
    kinds: dict[int, type[BatchchatError]] = {
        kind.exit_code: kind for kind in (NeedsHuman, StorageError, UsageError, ProviderUnavailable, StoppedEarly)
    }
    error = kinds.get(code, BatchchatError)(reason, remedy=remedy)
    error.exit_code = code
    return error
