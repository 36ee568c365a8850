"""Running a suite: every variant through the same engine, side by side, under shared limits and one budget.

Variants with the same provider, model and limits share one limiter, so that together they are never faster than one
run may be, and no variant's last slow answers hold up the next one. Each keeps an output of its own, and resumes by
itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import field, replace
from typing import TYPE_CHECKING

import anyio
import anyio.abc

from batchchat.budget import Budget
from batchchat.dataclass import dataclass
from batchchat.endpoints.registry import Limiters
from batchchat.errors import BatchchatError, UsageError
from batchchat.evaluation.progress import Merged
from batchchat.events import Event, Listener, RunSummary, Snapshot
from batchchat.job import Job, load_keys, write_duration
from batchchat.job.sections import BudgetCaps
from batchchat.limits import Limiter
from batchchat.providers import DEMO
from batchchat.runner.control import Ceilings, Control, Settings
from batchchat.runner.options import RunOptions
from batchchat.runner.run import make_limiter, run_job
from batchchat.runner.writer import Offload, in_thread

if TYPE_CHECKING:
    import httpx

    from batchchat.metrics import Recorder

_AT_ONCE = 16
"""Runs of variants that are under way at once: each holds an output, a writer and an engine. Their limits are shared,
so that more would not be faster."""
_WORST_FIRST = (70, 74, 75, 3, 69, 4, 129, 130, 143, 1, 0)
"""Exit codes in the order in which a person must know of them; that of the suite is the first one that a run ended
with."""


@dataclass(frozen=True, slots=True)
class NamedRun:
    """How the run of one variant, or of one judge, ended. None: it was not begun."""

    name: str
    summary: RunSummary | None


@dataclass(frozen=True, slots=True)
class Task:
    """A job to run, under the name that the person knows it by."""

    name: str
    job: Job


def _no_listener(_event: Event) -> None:
    pass


@dataclass(slots=True)
class SuiteRunOptions:
    """What all runs of an evaluation share. `transport` makes what takes the place of the network, for each run.

    `metrics` takes the figures of each run, under its name.
    """

    name: str
    options: RunOptions
    caps: BudgetCaps = BudgetCaps()
    deadline: float | None = None
    listener: Listener = _no_listener
    on_snapshot: Callable[[Snapshot], None] | None = None
    stop: Control = field(default_factory=Control)
    environ: Mapping[str, str] | None = None
    offload: Offload = in_thread
    transport: Callable[[], httpx.AsyncBaseTransport] | None = None
    metrics: Recorder | None = None


class Runs:
    """Runs jobs side by side: first the variants, then the judges, under the same limits, budget and deadline.

    To be entered as an async context manager, which holds the demo provider where a job uses it.
    """

    def __init__(self, setting: SuiteRunOptions) -> None:
        self.setting = setting
        caps = setting.caps
        self._budget: Budget | None = None
        if caps.capped:
            self._budget = Budget(max_cost=caps.max_cost, max_tokens=caps.max_tokens, max_requests=caps.max_requests)
        self._limiters: dict[object, Limiter] = {}
        self._of_endpoints: Limiters = {}
        self._demo_url: str | None = None
        self._stack = AsyncExitStack()
        self._started = 0.0
        # The controls of the runs that are going on, with when each began.
        self._active: dict[Control, float] = {}

    async def __aenter__(self) -> Runs:
        self._started = anyio.current_time()
        await self._stack.__aenter__()
        self._stack.enter_context(self.setting.stop.watch(self))
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    def on_pause(self) -> None:
        """Pause the runs that are going on."""
        steering = self.setting.stop.steering
        for control in tuple(self._active):
            control.pause(since=steering.paused_since, by=steering.paused_by)

    def on_resume(self) -> None:
        """Let the runs that are going on launch again."""
        for control in tuple(self._active):
            control.resume()

    def on_retune(self, ceilings: Ceilings) -> None:
        """Give the limits to the runs that are going on: those of one model share a limiter."""
        for control in tuple(self._active):
            control.retune(ceilings)

    def check(self, settings: Settings) -> None:
        """Raise UsageError if one of the runs that are going on cannot keep these settings."""
        caps = [name for name in settings if name.startswith("budget.")]
        # A budget that begins now would not know what the runs have spent so far.
        if caps and self._budget is None:
            raise UsageError(
                f"{caps[0]}: this evaluation was begun without a budget, and its runs are not counted together",
                remedy="`stop` it, and go on with `budget` in the suite, or --max-cost, --max-tokens, --max-requests.",
            )
        for control, began in tuple(self._active.items()):
            control.check(self._as_of(settings, began))

    def on_set(self, settings: Settings) -> None:
        """Give the settings to the runs that are going on. The caps are those of all runs together."""
        if "deadline" in settings:
            self.setting.deadline = settings["deadline"]
        by = {each.field: each.by for each in self.setting.stop.steering.settings}
        for control, began in tuple(self._active.items()):
            control.set(self._as_of(settings, began), by=next((by.get(name) for name in settings), None))

    def _as_of(self, settings: Settings, began: float) -> Settings:
        """Return settings for a run that began at this moment: the deadline counts from the evaluation's start."""
        deadline = settings.get("deadline")
        return settings if deadline is None else {**settings, "deadline": self._started + deadline - began}

    def on_stop(self, _times: int) -> None:
        """Stop the runs that are going on."""
        for stop in tuple(self._active):
            stop.stop(reason=self.setting.stop.reason or "", exit_code=self.setting.stop.exit_code or 1)

    async def run(self, tasks: Sequence[Task], options: RunOptions) -> list[NamedRun]:
        """Run all of these with the same options, and tell how each ended.

        Raises what `run_job` raises before anything is sent; the others are drained first, and keep what they have.
        """
        await self._start_demo(tasks)
        merged = Merged(self.setting.name, len(tasks), self.setting.on_snapshot)
        ended: dict[str, RunSummary] = {}
        errors: list[BatchchatError] = []
        room = anyio.Semaphore(_AT_ONCE)

        async def run_one(at: int, task: Task) -> None:
            async with room:
                stop = self._control()
                job = self._with_time_left(task.job)
                # Asked again here: while this one waited for room, another may have failed, or a person ended all.
                if self.setting.stop.asked or errors or job is None:
                    return
                self._active[stop] = anyio.current_time()
                try:
                    ended[task.name] = await self._run_job(
                        task, job, options, stop, merged.listener(at, self._limiter(job))
                    )
                except BatchchatError as error:
                    errors.append(error)
                    for other in self._active:
                        # What is wrong with one, such as a key, is likely wrong with all. They keep what they have.
                        if other is not stop:
                            other.stop(reason=error.message, exit_code=error.exit_code)
                finally:
                    del self._active[stop]

        async with anyio.create_task_group() as group:
            for at, task in enumerate(tasks):
                group.start_soon(run_one, at, task)
        if errors:
            raise errors[0]
        return [NamedRun(task.name, ended.get(task.name)) for task in tasks]

    def _control(self) -> Control:
        """Return the control of a run that begins now: what a person asked of all runs holds for it too."""
        whole = self.setting.stop
        control = Control(whole)
        if whole.ceilings is not None:
            control.retune(whole.ceilings)
        # What is left until the deadline is the job's own by now (`_with_time_left`).
        settings = {name: value for name, value in whole.settings.items() if name != "deadline"}
        if settings:
            control.set(settings)
        if whole.paused:
            control.pause(since=whole.steering.paused_since, by=whole.steering.paused_by)
        return control

    async def _run_job(
        self,
        task: Task,
        job: Job,
        options: RunOptions,
        stop: Control,
        on_snapshot: Callable[[Snapshot], None],
    ) -> RunSummary:
        setting = self.setting

        def tell(event: Event) -> None:
            setting.listener(replace(event, message=f"{task.name}: {event.message}"))

        meter = None
        if setting.metrics is not None:
            meter = setting.metrics.meter(setting.name, job.resolved_provider().name, job.model, task.name)

        return await run_job(
            job,
            options=options,
            transport=setting.transport() if setting.transport is not None else None,
            limiter=self._limiter(job),
            limiters=None if job.limits.shared else self._of_endpoints,
            budget=self._budget,
            listener=tell,
            on_snapshot=on_snapshot if meter is None else meter.beside(on_snapshot),
            on_record=None if meter is None else meter.add,
            stop=stop,
            environ=load_keys(job, setting.environ),
            offload=setting.offload,
            demo_url=self._demo_url,
        )

    def _limiter(self, job: Job) -> Limiter | None:
        if job.limits.shared:
            return None  # each run opens a way of its own to what processes share
        provider = job.resolved_provider()
        account = (provider.api_key_env, provider.api_key_file, provider.api_key_command)
        # A provider counts by account and model. A variant with other limits in its job has a limiter of its own.
        shared = (provider.identity, provider.base_url, account, job.model, job.limits.model_dump_json())
        if shared not in self._limiters:
            self._limiters[shared] = make_limiter(job, provider, self.setting.listener)
        return self._limiters[shared]

    def _with_time_left(self, job: Job) -> Job | None:
        """The job with what is left of the evaluation's deadline; None where nothing is."""
        if self.setting.deadline is None:
            return job
        left = self._started + self.setting.deadline - anyio.current_time()
        return job.model_copy(update={"deadline": left}) if left > 0 else None

    async def _start_demo(self, tasks: Sequence[Task]) -> None:
        """One demo provider for all runs."""
        providers = (task.job.resolved_provider() for task in tasks)
        needed = any(provider.name == DEMO and provider.base_url is None for provider in providers)
        if not needed or self.setting.transport is not None or self._demo_url is not None:
            return
        from batchchat.demo import DemoOptions, DemoServer

        server = DemoServer(DemoOptions(track_bodies=False))
        await self.setting.offload(server.start)
        self._stack.push_async_callback(self.setting.offload, server.stop)
        self._demo_url = server.base_url


def exit_code(runs: Sequence[NamedRun], stop: Control, deadline: float | None) -> tuple[int, str | None]:
    """Return the exit code of several runs together, and why it is not 0 or 1: the most serious of theirs."""
    summaries = [run.summary for run in runs if run.summary is not None]
    found = {summary.exit_code: summary.reason for summary in summaries}
    # What a person asked for comes first: that some rows failed as well is in the summaries.
    if stop.asked:
        return stop.exit_code or 1, stop.reason
    if len(summaries) < len(runs) and deadline is not None:
        found.setdefault(4, f"the deadline of {write_duration(deadline)} is over")
    for code in _WORST_FIRST:
        if code in found:
            return code, found[code]
    return 0, None
