"""Control: what a person may tell a running job, from a signal handler, another task or another thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Protocol

from batchchat.dataclass import dataclass
from batchchat.events import Setting, Steering


@dataclass(frozen=True, slots=True)
class Ceilings:
    """The limits that a person sets on a running job; None means that the job sets none.

    Requests and tokens are per minute, `concurrency` is the number of requests under way at once.
    """

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    concurrency: int | None = None


Settings = Mapping[str, float | int | None]
"""What a person sets on a running job, by the field's name (`runner.settings` lists them). None is no limit."""

_CEILINGS = {
    "limits.requests_per_minute": "requests_per_minute",
    "limits.tokens_per_minute": "tokens_per_minute",
    "limits.concurrency": "concurrency",
}


def changed_ceilings(ceilings: Ceilings, settings: Settings) -> Ceilings:
    """Return the ceilings with those that the settings name."""
    return replace(ceilings, **{_CEILINGS[name]: value for name, value in settings.items() if name in _CEILINGS})  # type: ignore[arg-type]  # `runner.settings` has checked them


_REPLY_S = 10.0
"""Seconds that a call from another thread waits for the run's event loop: one that is overloaded turns in time."""


class ControlWatcher(Protocol):
    """What a control calls, on the run's event loop. Each method returns at once; only `check` raises."""

    def on_stop(self, times: int) -> None:
        """Drain what is under way if `times` is 1; end it at once if it is more."""

    def on_pause(self) -> None:
        """Launch nothing until `on_resume`."""

    def on_resume(self) -> None:
        """Go on launching."""

    def on_retune(self, ceilings: Ceilings) -> None:
        """Take other ceilings for what is launched from now on."""

    def check(self, settings: Settings) -> None:
        """Raise UsageError if these settings cannot hold here. Changes nothing."""

    def on_set(self, settings: Settings) -> None:
        """Take these settings from now on; those that are not named stay as they are."""


class Control:
    """Steers a running job. Its methods may be called from any thread, and return when the run has taken them.

    The first call of `stop` drains what is in flight, the second ends it at once. Several watchers may watch one
    control (the variants of a suite, for example). One that begins to watch late is told what came before it.
    `whole` is the control of all runs that this one is a part of, None if it is no part.
    """

    def __init__(self, whole: Control | None = None) -> None:
        self.whole = whole
        self.steering = Steering()
        self.asked = 0
        self.exit_code: int | None = None
        self.reason: str | None = None
        self.paused = False
        self.ceilings: Ceilings | None = None
        self.settings: dict[str, float | int | None] = {}
        self._watchers: list[ControlWatcher] = []
        self._watched = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0

    def stop(self, *, reason: str, exit_code: int) -> None:
        """Ask for the end. The first reason counts."""
        self._on_loop(lambda: self._stop(reason, exit_code))

    def _stop(self, reason: str, exit_code: int) -> None:
        self.asked += 1
        if self.reason is None:
            self.reason, self.exit_code = reason, exit_code
        for watcher in tuple(self._watchers):
            watcher.on_stop(self.asked)

    def pause(self, *, since: str | None = None, by: str | None = None) -> None:
        """Ask to launch nothing more until `resume`. Attempts that are under way may end.

        `since` (UTC, ISO 8601) and `by` tell when it was asked, and who asked; they are shown, and change nothing.
        """
        self._on_loop(lambda: self._pause(since, by))

    def _pause(self, since: str | None, by: str | None) -> None:
        if not self.paused:
            self.paused = True
            self.steering = replace(self.steering, paused_since=since, paused_by=by)
            for watcher in tuple(self._watchers):
                watcher.on_pause()

    def resume(self) -> None:
        """Ask to go on after `pause`."""
        self._on_loop(self._resume)

    def _resume(self) -> None:
        if self.paused:
            self.paused = False
            self.steering = replace(self.steering, paused_since=None, paused_by=None)
            for watcher in tuple(self._watchers):
                watcher.on_resume()

    def retune(self, ceilings: Ceilings) -> None:
        """Ask for other limits. They hold from now on, and take the place of the job's."""
        self._on_loop(lambda: self._retune(ceilings))

    def _retune(self, ceilings: Ceilings) -> None:
        self.ceilings = ceilings
        # The newer request counts: what was set of the same limits before it is over.
        self.settings = {name: value for name, value in self.settings.items() if name not in _CEILINGS}
        kept = tuple(each for each in self.steering.settings if each.field not in _CEILINGS)
        self.steering = replace(self.steering, settings=kept)
        for watcher in tuple(self._watchers):
            watcher.on_retune(ceilings)

    def set(self, settings: Settings, *, by: str | None = None) -> None:
        """Ask for other values of these fields. They hold from now on; all others stay as they are.

        `by` tells who asked; it is shown, and changes nothing.

        Raises UsageError, with nothing changed, if a run that is watching cannot keep one of them.
        """
        self._on_loop(lambda: self._set(settings, by))

    def _set(self, settings: Settings, by: str | None) -> None:
        self.check(settings)
        self.settings.update(settings)
        known = {each.field: each for each in self.steering.settings}
        known.update({name: Setting(name, value, by) for name, value in settings.items()})
        self.steering = replace(self.steering, settings=tuple(known.values()))
        for watcher in tuple(self._watchers):
            watcher.on_set(settings)

    def check(self, settings: Settings) -> None:
        """Raise UsageError if a run that is watching cannot keep one of these settings. Called on its event loop."""
        for watcher in tuple(self._watchers):
            watcher.check(settings)

    def _on_loop(self, work: Callable[[], None]) -> None:
        """Do work on the event loop of the run, and return or raise when it is done."""
        loop = self._loop
        # Before a run watches there is nobody to disturb; its own thread is on the loop already.
        if loop is None or threading.get_ident() == self._thread:
            work()
            return

        async def do() -> None:
            work()

        # As a task: a mere callback has no event loop in the eyes of anyio.
        asyncio.run_coroutine_threadsafe(do(), loop).result(_REPLY_S)

    @property
    def watched(self) -> bool:
        """Return true once a run has begun that can be drained."""
        return self._watched

    @contextmanager
    def watch(self, watcher: ControlWatcher) -> Iterator[None]:
        """Call the watcher at each request until the context ends. Requests that came before are repeated to it."""
        self._watched = True
        self._watchers.append(watcher)
        with suppress(RuntimeError):  # another kind of loop, as in tests: then all calls are made on it
            self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        try:
            if self.ceilings is not None:
                watcher.on_retune(self.ceilings)
            if self.settings:
                watcher.on_set(self.settings)
            if self.paused:
                watcher.on_pause()
            if self.asked:
                watcher.on_stop(self.asked)
            yield
        finally:
            self._watchers.remove(watcher)
            if not self._watchers:
                self._loop = None


StopRequest = Control
"""The name that `Control` had while it could only stop a run: for programs that were written then."""
