"""An output in shards that a coordinator leads: it holds the output, and its workers hold the shards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from batchchat.addresses import Address
from batchchat.store.location.choice import location_of
from batchchat.store.location.port import Location, OutputHold
from batchchat.store.manifest import RUNS
from batchchat.store.run_files import RunFiles
from batchchat.store.sharding import Shards, begin_shards, set_aside_shards
from batchchat.store.state import State


class LedOutput:
    """The state of an output that all its shards have in common. Made by `open`."""

    def __init__(self, location: Location, hold: OutputHold, renamed: str | None) -> None:
        self.location = location
        self.renamed = renamed
        self._hold = hold
        # The line of the whole run counts, and not the sum of what the workers leave in their shards.
        self.runs = RunFiles(location)

    @classmethod
    def open(
        cls,
        output: Address,
        shards: Shards,
        *,
        run_id: str,
        job_name: str,
        snapshot: Mapping[str, Any],
        fresh: bool,
        take_over: bool,
        outage: float,
        tell: Callable[[str], None],
    ) -> LedOutput:
        """Hold an output, creating it if there is none; the arguments are those of `Store.open`. Raises as it does."""
        location = location_of(output.absolute() if isinstance(output, Path) else output)
        location.attend(outage, tell)
        renamed = set_aside_shards(location, run_id) if fresh else None
        begin_shards(location, shards.count, run_id=run_id, job_name=job_name)
        hold = location.hold(run_id, take_over=take_over)
        try:
            location.state.cut_torn_line(RUNS)
            State(location).save_job(run_id, dict(snapshot))
        except BaseException:
            hold.release()
            raise
        return cls(location, hold, renamed)

    def hurry(self) -> None:
        """Wait no more for a place that is away."""
        self.location.hurry()

    def close(self) -> None:
        """Let go of the output."""
        self._hold.release()
