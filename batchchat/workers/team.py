"""The workers of one run: started, fed with shards, heard, replaced if they die, and told what a person wants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import anyio
from anyio.abc import TaskGroup

from batchchat.engines.port import EngineProgress, halted
from batchchat.errors import (
    BatchchatError,
    NeedsHuman,
    OutputLocked,
    ProviderUnavailable,
    StoppedEarly,
    StorageError,
    UsageError,
)
from batchchat.format import plural
from batchchat.runner.control import Ceilings
from batchchat.workers.claims import Claim, Claims
from batchchat.workers.messages import Message
from batchchat.workers.port import Launcher, RunningWorker
from batchchat.workers.reports import Reports
from batchchat.workers.setting import TeamSetting

_MOST_STARTS = 3
"""How often a worker may die in a row before it asked for work."""
_PLACED_S = 1.0
"""Seconds between looks whether a worker that has no place yet is still needed. A process starts in less."""
_LATE_S = 10.0
"""Seconds beyond the grace that a worker has to write down what it has, before it is killed."""
_HELD_S = 120.0
"""Seconds to wait for shards that a process of an ended run still holds. The latest to let go is a worker on Ray whose
cluster lost its head: a minute until it notices, then the grace and five seconds."""
_HELD_AGAIN_S = 1.0
"""Seconds until shards that are held are tried again. A try opens each of them. Chosen, not measured."""
_HELD_LOOK_S = 0.25
"""Seconds until a worker for which there were only held shards is given work again. Chosen, not measured."""
GOES_ON = (0, 1)
"""Exit codes of a claim behind which the other workers go on."""


class Team:
    """What sends the requests of a run that a coordinator leads: its workers.

    `order` is the first message of each worker. `on_answers` takes figures of answers that workers tell.
    """

    on_answers: Callable[[Sequence[Sequence[Any]]], None] | None = None

    def __init__(self, setting: TeamSetting, workers: int, *, launcher: Launcher, order: Message) -> None:
        self.halt: BatchchatError | None = None
        self.claims = Claims(setting.shards.chosen, workers)
        self.reports = Reports(setting.tell)
        self._setting = setting
        self._launcher = launcher
        self._order = order
        self._names = [str(number) for number in range(1, workers + 1)]
        self._running: dict[str, RunningWorker] = {}
        self._stops = 0
        self._group: TaskGroup | None = None

    # ---- what a run asks of what sends its requests -----------------------------------------------------------------

    def progress(self, oldest: int = 0) -> EngineProgress:
        """Return what is under way in all workers, with so many of the requests that are under way the longest."""
        return self.reports.progress(oldest)

    def drain(self) -> None:
        """Hand out nothing more, and let what is in flight end."""
        self.claims.drop()
        self._stop(1)

    def cancel(self) -> None:
        """End what is in flight, too."""
        self.claims.drop()
        self._stop(2)

    def halt_for(self, error: BatchchatError) -> None:
        """Drain for this reason; the first one counts."""
        if self.halt is None:
            self.halt = error
            # A worker that ended for this reason may have told it already, and then it is not told again.
            self.reports.pass_on(None, asdict(halted(error)))
        self.drain()
        if self._group is not None:
            self._group.start_soon(self._end_late)

    def pause(self) -> None:
        """Launch nothing until `resume`."""
        steering = self._setting.control.steering
        self._tell_all({"do": "pause", "since": steering.paused_since, "by": steering.paused_by})

    def resume(self) -> None:
        """Go on launching."""
        self._tell_all({"do": "resume"})

    def retune(
        self, *, requests_per_minute: float | None, tokens_per_minute: float | None, concurrency: int | None
    ) -> None:
        """Take other ceilings over all workers."""
        # The lowest ceiling of all workers holds, so that each must have the new ones.
        ceilings = self._setting.limits.ceilings = Ceilings(requests_per_minute, tokens_per_minute, concurrency)
        self._tell_all({"do": "retune", "ceilings": asdict(ceilings)})

    # ---- the workers ------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run all shards, or as many as can be. Return when no worker is left."""
        async with anyio.create_task_group() as group:
            self._group = group
            async with anyio.create_task_group() as workers:
                for name in self._names:
                    workers.start_soon(self._employ, name)
            # What waits to end or to kill workers has nobody to end any more.
            group.cancel_scope.cancel()
        self._group = None

    async def _employ(self, name: str) -> None:
        """Keep one worker at work: start another one if it dies, for as long as there is something to do."""
        deaths = 0
        while not self.is_ending() and deaths < _MOST_STARTS and (self.claims.left or deaths == 0):
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
            claim = self.claims.died(name, anyio.current_time(), got_on=self.reports.sums.has_counted(name))
            self.reports.sums.forget(name)
            if end.clean and claim is None:
                return
            # Only deaths in a row count: what kills a worker that works is the matter of its claim (see `Claims`).
            deaths = 1 if asked else deaths + 1
            self._tell_death(name, worker, end.reason or "ended in the middle of its work", claim)
            # Its shards stay open for the next run.
            if claim is not None and self.is_ending():
                return
        if deaths >= _MOST_STARTS:
            self.reports.lose(f"worker {name} died {deaths} times before it began to work")

    async def _start(self, name: str) -> RunningWorker | None:
        """Start a worker. Return None if it cannot be, or if nothing is left to do before it has found a place."""
        worker: RunningWorker | None = None
        async with anyio.create_task_group() as group:

            async def give_up() -> None:
                # A cluster may have no place for it as long as other workers run: then those may do the rest.
                while True:
                    await anyio.sleep(_PLACED_S)
                    if self.is_ending() or not self.claims.left:
                        group.cancel_scope.cancel()

            group.start_soon(give_up)
            try:
                worker = await self._launcher.start(name)
            except BatchchatError as error:
                self.reports.lose(error.message, error.remedy, error.exit_code)
            group.cancel_scope.cancel()
        return worker

    def is_ending(self) -> bool:
        """Return whether no more work is handed out: something halted the run, or a person asked for its end."""
        return self.halt is not None or bool(self._setting.control.asked)

    def _tell_death(self, name: str, worker: RunningWorker, reason: str, claim: Claim | None) -> None:
        what = "it had claimed no shard"
        if claim is not None:
            again = "the run is ending" if self.is_ending() else "another worker takes them"
            given_up = claim in self.claims.given_up
            what = f"{plural(len(claim), 'shard')} with it: " + (
                "given up, since they killed several workers" if given_up else again
            )
        self.reports.tell_death(name, f"worker {name} ({worker.place}) died: {reason}; {what}", reason, claim)

    async def _hear(self, name: str, worker: RunningWorker) -> bool:
        """Take what a worker tells, until it ends. Return whether it asked for work."""
        await worker.tell(self._order)
        # One that takes the place of a dead worker begins as the others are now.
        if self._setting.control.paused:
            await worker.tell({"do": "pause"})
        if self._setting.limits.ceilings is not None:
            await worker.tell({"do": "retune", "ceilings": asdict(self._setting.limits.ceilings)})
        asked = False
        async for message in worker.messages():
            what = message.get("is")
            if what == "claim":
                asked = True
                await self._assign(name, worker)
            elif what == "snapshot":
                self.reports.sums.show(name, message["snapshot"])
            elif what == "event":
                self.reports.pass_on(name, message["event"])
            elif what == "answers" and self.on_answers is not None:
                self.on_answers(message["answers"])
            elif what == "done":
                self.claims.end(name)
                summary = self.reports.end(name, message)
                self._judge(int(summary["exit_code"]), summary.get("reason") or "", summary.get("remedy"))
            elif what == "lost":
                if await self._waits_for_holder(name, message):
                    continue
                self.claims.end(name)
                loss = self.reports.lose(message["message"], message.get("remedy"), int(message["exit_code"]))
                self._judge(loss.exit_code, loss.message, loss.remedy)
        return asked

    async def _assign(self, name: str, worker: RunningWorker) -> None:
        """Give a worker shards, or let it end; if shards are left that nobody can have now, do so later."""
        claim = None if self.is_ending() else self.claims.take(name, anyio.current_time())
        if claim is not None:
            # The holder of these is known to be dead. A store that has no locks cannot see that, and it need not: what
            # the dead one may still write does not count once another has taken its place.
            again = {"take_over": True} if self.claims.is_orphaned(claim) else {}
            await worker.tell({"do": "work", "shards": list(claim), **again})
        elif self.claims.left and self._group is not None and not self.is_ending():
            self._group.start_soon(self._assign_later, name, worker)
        else:
            await worker.tell({"do": "end"})

    async def _assign_later(self, name: str, worker: RunningWorker) -> None:
        await anyio.sleep(_HELD_LOOK_S)
        # A worker that died meanwhile wants nothing any more.
        if self._running.get(name) is worker:
            await self._assign(name, worker)

    async def _waits_for_holder(self, name: str, loss: Message) -> bool:
        """Put the shards of a worker back if nobody holds them but a process that will end. Return whether that was so.

        So it is after the coordinator was killed: its workers let what is in flight end, and that takes its time. A
        worker of this run that died may seem to hold them for a while, too.
        """
        if loss["exit_code"] != OutputLocked.exit_code:
            return False
        held_s = self.claims.held_for(name, anyio.current_time())
        if held_s > _HELD_S:
            return False
        if not await self._setting.offload(self._setting.output.held_by_ended_runs, loss["shards"]):
            return False
        if self.is_ending():
            # They stay open, which is no loss beside the reason of the end.
            self.claims.end(name)
            return True
        self.claims.defer(name, anyio.current_time(), _HELD_AGAIN_S)
        # Told at the first look only: how old the holder's last sign of life is changes with each.
        if not held_s:
            message = f"{loss['message']}; it is ending, or dead: its shards are waited for, {_HELD_S:g} s at most"
            fields = {"shards": loss["shards"]}
            self.reports.pass_on(None, {"name": "shards_held", "message": message, "level": "info", "fields": fields})
        return True

    def _judge(self, code: int, reason: str, remedy: str | None) -> None:
        """End the run if one worker ended in a way that all of them would."""
        if code not in GOES_ON and not self.is_ending():
            self.halt_for(_error_of(code, reason, remedy))

    def _tell_all(self, message: Message) -> None:
        if self._group is not None:
            for worker in list(self._running.values()):
                self._group.start_soon(worker.tell, message)

    def _stop(self, times: int) -> None:
        # A halt, a person and the end of the grace may each stop the workers: a message again would change nothing.
        if self._stops >= times:
            return
        self._stops = times
        control, error = self._setting.control, self.halt
        # Workers that end say why, as one of the two that a coordinator knows.
        reason = error.message if error is not None else control.reason or "stopped"
        code = error.exit_code if error is not None else control.exit_code or 1
        self._tell_all({"do": "stop", "times": times, "reason": reason, "exit_code": code, "grace": self._grace})
        if self._group is not None and times > 1:
            self._group.start_soon(self._kill_late)

    @property
    def _grace(self) -> float:
        # `batchchat control` may have set another one while the run goes on.
        return float(self._setting.control.settings.get("grace") or self._setting.options.grace)

    async def _end_late(self) -> None:
        """End what is in flight when the grace of a halt is over."""
        await anyio.sleep(self._grace)
        self.cancel()

    async def _kill_late(self) -> None:
        """Kill the workers that do not end by themselves, such as one that is stopped."""
        await anyio.sleep(_LATE_S)
        for worker in list(self._running.values()):
            await worker.kill()


def _error_of(code: int, reason: str, remedy: str | None) -> BatchchatError:
    """Return the error that ended a worker, so that the run ends with its code."""
    kinds: dict[int, type[BatchchatError]] = {
        kind.exit_code: kind for kind in (NeedsHuman, StorageError, UsageError, ProviderUnavailable, StoppedEarly)
    }
    error = kinds.get(code, BatchchatError)(reason, remedy=remedy)
    error.exit_code = code
    return error
