"""An output in shards as a coordinator holds it; its workers hold the shards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from batchchat.addresses import Address
from batchchat.store.location.choice import location_of
from batchchat.store.location.port import Location, OutputHold
from batchchat.store.manifest import RUNS
from batchchat.store.run_files import RunFiles
from batchchat.store.sharding import Shards, begin_shards, set_aside_shards, shard_place
from batchchat.store.state import SECOND, State


class CoordinatedOutput:
    """The state of an output that all its shards have in common. Made by `open`."""

    def __init__(self, location: Location, hold: OutputHold, renamed: str | None, run_id: str) -> None:
        self.location = location
        self.renamed = renamed
        self._run_id = run_id
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
    ) -> CoordinatedOutput:
        """Hold an output, creating it if there is none; the arguments are those of `Store.open`. Raises as it does."""
        location = location_of(output.absolute() if isinstance(output, Path) else output)
        location.attend(outage, tell)
        # The old output is moved before the new one begins: both have the same place.
        renamed = set_aside_shards(location, run_id) if fresh else None
        begin_shards(location, shards.count, run_id=run_id, job_name=job_name)
        hold = location.hold(run_id, take_over=take_over)
        try:
            location.state.cut_torn_line(RUNS)
            State(location).save_job(run_id, dict(snapshot))
        except BaseException:
            hold.release()
            raise
        return cls(location, hold, renamed, run_id)

    def held_by_ended_runs(self, shards: Sequence[int]) -> bool:
        """Tell of shards that cannot be had whether nobody but processes of ended runs holds them.

        A run over the whole output has ended, since this one holds it. A process of it may live on for a while.
        """
        state = State(self.location)
        ended = {run_id for run_id in state.run_ids() if run_id[:SECOND] <= self._run_id[:SECOND]}
        holders = [shard_place(self.location, number).holder() for number in shards]
        return all(holder is None or holder.get("run_id") in ended for holder in holders)

    def hurry(self) -> None:
        """Wait no more for a place that is away."""
        self.location.hurry()

    def close(self) -> None:
        """Let go of the output."""
        self._hold.release()
