"""What a run leaves in an output for others: state for the next run, progress for readers, and a line at its end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import Any, Protocol

from batchchat.store.json_files import append_json, read_lines
from batchchat.store.location.port import Location
from batchchat.store.manifest import RUNS
from batchchat.store.state import LIVE, STATE, State


class RunNotes(Protocol):
    """What `RunFiles` and `ShardedRunFiles` do alike. Each method raises StorageError if the disk refuses."""

    def read_state(self) -> dict[str, Any]:
        """Return what the last run left."""

    def save_state(self, state: Mapping[str, Any]) -> None:
        """Replace what the next run will find."""

    def write_live(self, live: Mapping[str, Any]) -> None:
        """Replace what `status` reads while the run goes on."""

    def killed_run(self) -> dict[str, Any]:
        """Return the last progress of a run that was killed."""

    def append_run(self, run: Mapping[str, Any]) -> None:
        """Add a line about an ended run."""


class RunFiles:
    """The files of one output. `on_appended` is called when the list of runs has grown."""

    def __init__(self, location: Location, on_appended: Callable[[], None] | None = None) -> None:
        self._location = location
        self._state = State(location)
        self._on_appended = on_appended
        self._live_mark: tuple[Any, Any] | None = None
        self._live_due = 0.0

    def read_state(self) -> dict[str, Any]:
        """Return what the last run left for this one; empty at the first."""
        return self._state.object(STATE)

    def save_state(self, state: Mapping[str, Any]) -> None:
        """Replace what the next run will find in `read_state`, durably."""
        self._state.save(STATE, dict(state))

    def write_live(self, live: Mapping[str, Any]) -> None:
        """Replace what `status` reads while the run goes on; whole at every instant, not made durable.

        If each write costs something, as in a bucket, it is written now and then only, or at once if what a person did
        has changed it.
        """
        mark = (live.get("phase"), live.get("steering"))
        now = monotonic()
        if mark == self._live_mark and now < self._live_due:
            return
        self._live_mark, self._live_due = mark, now + self._location.live_s
        self._state.save(LIVE, dict(live), durable=False)

    def killed_run(self, ended_at: Location | None = None) -> dict[str, Any]:
        """Return the last progress that a run wrote which was killed; empty if the last run ended by itself.

        `ended_at` is where the lines of ended runs are, if they are elsewhere than the progress.
        """
        # A run that ends by itself adds its line last: progress without one is that of a killed run.
        live = self._state.object(LIVE)
        ended = read_lines((ended_at or self._location).state, RUNS)[0]
        return {} if any(run.get("run_id") == live.get("run_id") for run in ended[-1:]) else live

    def append_run(self, run: Mapping[str, Any]) -> None:
        """Add a line about an ended run, durably."""
        append_json(self._location.state, RUNS, dict(run))
        if self._on_appended is not None:
            self._on_appended()


class ShardedRunFiles:
    """The files of several shards that one run holds. `each` does blocking work for all of them at once.

    `own` are those of the place where the run is seen: there is its progress. Everything else is in every shard, since
    the next run may hold another choice of them.
    """

    def __init__(
        self,
        own: RunFiles,
        of_shards: Sequence[RunNotes],
        first: Location,
        chosen: Sequence[int],
        each: Callable[[Callable[[RunNotes], None]], None],
    ) -> None:
        self._own = own
        self._of_shards = of_shards
        self._first = first
        self._chosen = chosen
        self._each = each

    def read_state(self) -> dict[str, Any]:
        """Return what the last run left in every shard alike; a shard that no run has held yet has no say."""
        # Shards may come from different runs; what they do not agree on is not known.
        found = [state for state in (files.read_state() for files in self._of_shards) if state]
        if not found:
            return {}
        return {name: value for name, value in found[0].items() if all(one.get(name) == value for one in found)}

    def save_state(self, state: Mapping[str, Any]) -> None:
        """Replace what the next run will find in `read_state`, durably, in every shard."""
        for files in self._of_shards:
            files.save_state(state)

    def write_live(self, live: Mapping[str, Any]) -> None:
        """Replace what `status` reads while the run goes on; see `RunFiles.write_live`."""
        self._own.write_live(live)

    def killed_run(self) -> dict[str, Any]:
        """Return the last progress that a run wrote which was killed; empty if the last run ended by itself."""
        return self._own.killed_run(self._first)

    def append_run(self, run: Mapping[str, Any]) -> None:
        """Add a line about an ended run to every shard: readers count it once, by its run and its shards."""
        line = {**run, "shards": list(self._chosen)}
        self._each(lambda files: files.append_run(line))
