"""Steering: what a person tells a run, carried out. Stops, pauses, settings; the deadline; commands in the output.

A command reaches the run as a file in its output (`store.commands`). The run looks for one four times a second, carries
it out on its event loop, and replies. A command that cannot be carried out changes nothing, and the reply says why.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Protocol

import anyio
from anyio.abc import TaskGroup

from batchchat.budget import Budget, CapValues
from batchchat.engines.port import EngineProgress
from batchchat.errors import BatchchatError, StoppedEarly, StorageError, UsageError
from batchchat.events import Event, Listener, Phase
from batchchat.format import money, plural
from batchchat.job import Job, write_duration
from batchchat.records import Spend
from batchchat.runner.control import Ceilings, Control, Settings, changed_ceilings
from batchchat.runner.options import RunOptions
from batchchat.runner.run_summary import plain
from batchchat.runner.settings import checked_settings, shown_setting
from batchchat.runner.writer import Offload
from batchchat.store import CommandFiles, Location

_INTERRUPTED = 130
"""The exit code of a run that a command stops: that of Ctrl-C."""
_RESUME = "The same command goes on where it stopped."


class Driven(Protocol):
    """What sends a run's requests, as far as a person steers it: an engine, or the workers of a coordinator."""

    @property
    def halt(self) -> BatchchatError | None:
        """Why it ends early; None while it does not."""

    def progress(self, oldest: int = 0) -> EngineProgress:
        """Return what is under way."""

    def drain(self) -> None:
        """Launch nothing more."""

    def cancel(self) -> None:
        """End what is under way."""

    def halt_for(self, error: BatchchatError) -> None:
        """Launch nothing more, for this reason."""

    def pause(self) -> None:
        """Launch nothing until `resume`."""

    def resume(self) -> None:
        """Go on launching."""

    def retune(
        self, *, requests_per_minute: float | None, tokens_per_minute: float | None, concurrency: int | None
    ) -> None:
        """Take other ceilings."""


class Costing(Protocol):
    """What tells the cost of a run so far."""

    @property
    def spend(self) -> Spend:
        """What this run has cost."""


class HoldsLocation(Protocol):
    """What a run holds."""

    @property
    def location(self) -> Location:
        """Where commands for the run are left."""

    def hurry(self) -> None:
        """Wait no more for a place that is away."""


class Steered(Protocol):
    """A run that can be steered: one of this process, or that of a coordinator."""

    phase: Phase

    @property
    def job(self) -> Job:
        """Its job."""

    @property
    def options(self) -> RunOptions:
        """Its options."""

    @property
    def control(self) -> Control:
        """What a person tells it."""

    @property
    def run_id(self) -> str:
        """Its identity."""

    @property
    def started(self) -> float:
        """When it began, on the clock of the event loop."""

    @property
    def tell(self) -> Listener:
        """What takes its events."""

    @property
    def offload(self) -> Offload:
        """What runs blocking code."""

    @property
    def budget(self) -> Budget | None:
        """Its budget."""

    @property
    def currency(self) -> str | None:
        """The currency of its costs."""

    @property
    def engine(self) -> Driven:
        """What sends its requests."""

    @property
    def tally(self) -> Costing:
        """What it has cost."""

    @property
    def store(self) -> HoldsLocation:
        """Its output."""


class RunSteering:
    """Watches the control of a run, its deadline and its commands; acts on the run's engine and budget.

    `show` writes the progress of the run down for readers, at once. `look_s` is the time between two looks for a
    command, in seconds: each lists one folder.
    """

    def __init__(self, run: Steered, group: TaskGroup, show: Callable[[], Awaitable[None]], *, look_s: float) -> None:
        self._run = run
        self._group = group
        self._show = show
        self._look_s = look_s
        limits = run.job.limits
        self._ceilings = Ceilings(limits.requests_per_minute, limits.tokens_per_minute, limits.concurrency)
        self._caps = CapValues()
        self._deadline = run.job.deadline
        self._grace = run.options.grace
        self._files = CommandFiles(run.store.location)
        self._troubled = False
        self._drained_at: float | None = None
        self._changed = anyio.Event()

    def begin(self) -> None:
        """Begin to watch the deadline, and to look for commands."""
        self._group.start_soon(self._keep_deadline)
        self._group.start_soon(self._look)

    # ---- what a control calls ---------------------------------------------------------------------------------------

    def on_stop(self, times: int) -> None:
        """Drain at the first call, and end what is under way at the second."""
        run = self._run
        if times > 1:
            run.engine.cancel()
            run.store.hurry()
            return
        run.phase = "draining"
        wait = f"waiting up to {self._grace:g} s for what is in flight"
        run.tell(Event("stopping", f"{run.control.reason}: {wait}"))
        run.engine.drain()
        self._group.start_soon(self._wait_and_cancel)

    def on_pause(self) -> None:
        """Launch nothing until `on_resume`."""
        self._run.engine.pause()
        by = self._run.control.steering.paused_by
        message = f"paused{_by(by)}: nothing is sent until the job is resumed"
        self._run.tell(Event("paused", message, "info", {"by": by}))

    def on_resume(self) -> None:
        """Go on launching."""
        self._run.engine.resume()
        self._run.tell(Event("resumed", "resumed"))

    def on_retune(self, ceilings: Ceilings) -> None:
        """Take other ceilings for what is launched from now on."""
        self._take_ceilings(ceilings)
        self._run.tell(Event("limits_changed", "the job's limits were changed", "info", plain(ceilings)))

    def check(self, settings: Settings) -> None:
        """Raise UsageError if these settings cannot hold in this run."""
        run = self._run
        limits = [name for name in settings if name.startswith("limits.")]
        if limits and run.job.engine.batch and run.job.engine.then != "local":
            raise UsageError(
                f"{limits[0]}: this run sends batches, which have no such limit",
                remedy="`pause` creates no more batches; `stop` ends the run, and its batches go on.",
            )
        if settings.get("budget.max_cost") is not None:
            if run.budget is not None:
                run.budget.check_money()
            elif run.currency is None:
                raise UsageError(
                    "budget.max_cost cannot be kept: the price of the model is not known",
                    remedy="Cap budget.max_tokens or budget.max_requests.",
                )
        deadline = settings.get("deadline")
        passed = anyio.current_time() - run.started
        if deadline is not None and deadline <= passed:
            raise UsageError(
                f"deadline: {write_duration(deadline)} is over: the run began {write_duration(round(passed))} ago",
                remedy="A deadline counts from the start of the run. `stop` ends it now.",
            )

    def on_set(self, settings: Settings) -> None:
        """Take these settings from now on."""
        run = self._run
        ceilings = changed_ceilings(self._ceilings, settings)
        # A setting of the budget or the deadline alone changes no ceiling.
        if ceilings != self._ceilings:
            self._take_ceilings(ceilings)
        caps = {name.removeprefix("budget."): value for name, value in settings.items() if name.startswith("budget.")}
        if caps:
            self._take_caps(caps)
        if "deadline" in settings:
            self._deadline = settings["deadline"]
        if (grace := settings.get("grace")) is not None:
            self._grace = grace
        # Wakes whoever waits for the deadline or the grace. An event cannot be cleared, so the next change has its own.
        self._changed.set()
        self._changed = anyio.Event()
        shown = ", ".join(shown_setting(name, value) for name, value in settings.items())
        by = next((each.by for each in run.control.steering.settings if each.field in settings), None)
        run.tell(Event("settings_changed", f"set{_by(by)}: {shown}", "info", {**settings, "by": by}))

    def _take_ceilings(self, ceilings: Ceilings) -> None:
        from batchchat.transport import connection_room

        # Each request under way takes an open file, two if the demo server is in this process.
        room = connection_room(files_each=2 if self._run.job.resolved_provider().base_url is None else 1)
        if ceilings.concurrency is not None and ceilings.concurrency > room:
            wanted = f"limits.concurrency was set to {ceilings.concurrency}"
            message = f"{wanted}, and the open files of this process allow {room} (ulimit -n)"
            self._run.tell(Event("concurrency_lowered", message, "warning"))
            ceilings = replace(ceilings, concurrency=room)
        self._ceilings = ceilings
        self._run.engine.retune(
            requests_per_minute=ceilings.requests_per_minute,
            tokens_per_minute=ceilings.tokens_per_minute,
            concurrency=ceilings.concurrency,
        )

    def _take_caps(self, caps: Mapping[str, Any]) -> None:
        budget = self._run.budget
        if budget is not None:
            budget.change(CapValues(budget.max_cost, budget.max_tokens, budget.max_requests)._replace(**caps))
        else:
            # No request of this run was counted before it went: `keep_caps` looks at what was spent.
            self._caps = self._caps._replace(**caps)

    # ---- the end ----------------------------------------------------------------------------------------------------

    def keep_caps(self) -> None:
        """End a run that was begun without a budget once it has spent what was set since; to be called now and then.

        A budget knows what each request may take before it goes, and no request of this run was counted so. What was
        under way when the cap was reached comes on top of it.
        """
        run, caps = self._run, self._caps
        if caps == CapValues() or run.engine.halt is not None or run.control.asked:
            return
        spend = run.tally.spend
        if caps.max_cost is not None and spend.cost >= caps.max_cost:
            reached = f"max_cost of {money(caps.max_cost, run.currency)}"
        elif caps.max_tokens is not None and spend.total_tokens >= caps.max_tokens:
            reached = f"max_tokens of {caps.max_tokens:,}"
        elif caps.max_requests is not None and run.engine.progress().attempts >= caps.max_requests:
            reached = f"max_requests of {caps.max_requests:,}"
        else:
            return
        run.engine.halt_for(StoppedEarly(f"budget.{reached}, set while the run went on, is used up", remedy=_RESUME))

    async def _keep_deadline(self) -> None:
        """Launch nothing after the deadline, counted from the start of the run; what is in flight gets the grace."""
        run = self._run
        while self._deadline is None or run.started + self._deadline > anyio.current_time():
            left = None if self._deadline is None else run.started + self._deadline - anyio.current_time()
            await self._wait_for_change(left)
        if not run.control.asked:
            message = f"the deadline of {write_duration(self._deadline)} is over"
            run.engine.halt_for(StoppedEarly(message, remedy=_RESUME))
            await self._wait_and_cancel()

    async def _wait_and_cancel(self) -> None:
        """Wait for the grace, which may change meanwhile, then end what is in flight."""
        self._drained_at = anyio.current_time()
        while (left := self._drained_at + self._grace - anyio.current_time()) > 0:
            await self._wait_for_change(left)
        self._run.engine.cancel()
        # What is answered and waits for a store that is away is asked again in the next run.
        self._run.store.hurry()

    async def _wait_for_change(self, seconds: float | None) -> None:
        """Wait until a setting changes, at most for so long."""
        with anyio.move_on_after(seconds):
            await self._changed.wait()

    # ---- commands ---------------------------------------------------------------------------------------------------

    async def _look(self) -> None:
        """Carry out what other processes ask for, until the run ends."""
        run = self._run
        # Senders that were killed left replies. The output is held, so none of them can be for this run.
        await self._ask_store(self._files.forget_replies)
        while True:
            found = await self._ask_store(self._files.take, run.run_id)
            if found:
                # Once they are taken, their senders wait for a reply, also if the run ends just now.
                with anyio.CancelScope(shield=True):
                    for name, command in found:
                        reply = self._carry_out(command)
                        await self._show()
                        await self._ask_store(self._files.reply, name, reply)
            await anyio.sleep(self._look_s)

    async def _ask_store(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Return what the store says; None if it refuses, which is no reason to end a run. That is told once."""
        try:
            return await self._run.offload(work, *arguments)
        except StorageError as error:
            if not self._troubled:
                self._troubled = True
                self._run.tell(Event("warning", f"`batchchat control` does not work: {error.message}", "warning"))
            return None

    def _carry_out(self, command: Mapping[str, Any]) -> dict[str, Any]:
        """Do what a command asks; return the reply to it."""
        by = command.get("by")
        try:
            # A command may be for all runs of an evaluation, and reaches it through any of them.
            whole = self._run.control.whole
            control = whole if command.get("whole") is True and whole is not None else self._run.control
            did, changed = self._obey(control, command, by if isinstance(by, str) else None)
        except BatchchatError as error:
            return {"error": error.message, "remedy": error.remedy}
        progress = self._run.engine.progress()
        return {"did": did, "changed": changed, "sending": progress.sending, "waiting": progress.waiting}

    def _obey(self, control: Control, command: Mapping[str, Any], by: str | None) -> tuple[str, bool]:
        """Do what a command asks; return in words what was done, and whether anything has changed."""
        action = command.get("action")
        ending = self._run.phase != "running" or self._run.engine.halt is not None
        if action == "stop":
            return self._stop(control, by), True
        if action in {"pause", "resume"} and ending and control is self._run.control:
            raise UsageError("the run is ending: it launches nothing more", remedy="`stop` ends it at once.")
        if action == "pause":
            if control.paused:
                return "it was paused already", False
            control.pause(since=datetime.now(UTC).isoformat(timespec="seconds"), by=by)
            return "paused: nothing is sent until it is resumed", True
        if action == "resume":
            if not control.paused:
                return "it was not paused", False
            control.resume()
            return "resumed", True
        if action == "set":
            settings = checked_settings(command.get("settings"))
            # A command that is sent twice is told as done, and not as another change.
            same = all(name in control.settings and control.settings[name] == settings[name] for name in settings)
            if not same:
                control.set(settings, by=by)
            shown = ", ".join(shown_setting(name, value) for name, value in settings.items())
            return f"{shown} was set already" if same else f"set {shown}", not same
        raise UsageError(f"this version of batchchat knows no command {str(action)[:40]!r}")

    def _stop(self, control: Control, by: str | None) -> str:
        again = control.asked > 0
        sending = self._run.engine.progress().sending
        control.stop(reason=f"stopped{_by(by)} (`batchchat control`)", exit_code=_INTERRUPTED)
        if again:
            return "stopped at once: what was in flight stays open"
        return (
            f"stopping: waiting up to {write_duration(self._grace)} for {plural(sending, 'request')} in flight; "
            "a second stop ends it at once"
        )


def tell_interrupted(live: Mapping[str, Any], tell: Listener) -> None:
    """Tell what a person had asked of a run that was killed: it was for that run alone, and holds no more.

    `live` is the last progress of that run, empty if none was killed.
    """
    paused = live.get("phase") == "paused"
    steering = live.get("steering")
    settings = steering.get("settings") if isinstance(steering, dict) else None
    changed = [
        f"{each.get('field')}={'null' if each.get('value') is None else each.get('value')}"
        for each in settings or ()
        if isinstance(each, dict)
    ]
    if paused:
        tell(Event("resumed", "the run before this one was paused when it was killed; this one is not paused"))
    if changed:
        text = f"the run before this one had {', '.join(changed)} set; this one has what the job says"
        tell(Event("settings_changed", text, "info", {"lost": changed}))


def _by(name: str | None) -> str:
    return "" if name is None else f" by {name}"
