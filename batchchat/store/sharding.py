"""An output in shards: how many it has, where each of them is, and how it begins.

A shard is a whole store with one writer at a time, for the rows whose key hashes to it. The output itself has a lock
and a state too: they are for whoever runs the whole of it, as one process or as the coordinator of several.
"""

from __future__ import annotations

import time
from typing import Any

from batchchat.addresses import Address
from batchchat.dataclass import dataclass
from batchchat.errors import OutputLocked, UsageError
from batchchat.store.location.choice import location_of
from batchchat.store.location.port import Location, OutputHold
from batchchat.store.state import State

_BEGIN_S = 10.0
"""Seconds to wait for another process that creates the same output: it writes two small files."""
_LOOK_S = 0.05
"""Seconds between two looks whether it has. Chosen, not measured."""


@dataclass(frozen=True, slots=True)
class Shards:
    """The shards that a run takes: how many the output has, and the numbers of those that are this run's."""

    count: int
    chosen: tuple[int, ...]

    @property
    def whole(self) -> bool:
        """Whether the run takes all of them."""
        return len(self.chosen) == self.count


def shard_places(output: Location, count: int) -> list[Location]:
    """Return where the shards of an output are that have begun."""
    return [place for place in (shard_place(output, number) for number in range(count)) if place.holds_output()]


def shard_place(output: Location, number: int) -> Location:
    """Return where one shard of an output is."""
    return location_of(output.address, number)


def check_shards(output: Location | Address, wanted: int | None) -> int | None:
    """Return how many shards an output has or will have; `wanted` is what the job says, None if it says nothing.

    Raises UsageError if the output has another number.
    """
    location = location_of(output)
    if not location.holds_output():
        return wanted
    State(location).check_format()
    count = State(location).shards()
    if wanted is None or wanted == (count or 1):
        return count
    has = f"{count} shards" if count else "no shards"
    raise UsageError(
        f"output.shards is {wanted}, and the output {location.address} has {has}: their number is frozen",
        remedy=f"`batchchat reshard {location.address} --shards {wanted}` moves its records, and asks nothing. Or set "
        + (f"output.shards to {count}." if count else "no output.shards."),
    )


def begin_shards(location: Location, count: int, *, run_id: str, job_name: str) -> None:
    """Make a place an output in shards, if it is none yet; wait for another process that is just doing so.

    Raises UsageError if it is something else or belongs to another job, OutputLocked if somebody holds it for long.
    """
    state, until = State(location), time.monotonic() + _BEGIN_S
    while True:
        if check_shards(location, count) is not None and location.holds_output():
            state.check_name(job_name)
            return
        location.prepare()
        try:
            hold = location.hold(run_id)
        except OutputLocked:
            if time.monotonic() > until:
                raise
            time.sleep(_LOOK_S)
            continue
        try:
            # Another process may have made it between the look and the hold.
            if not location.holds_output():
                location.complete()
                state.set_shards(count)
        finally:
            hold.release()


def set_aside_shards(location: Location, run_id: str) -> str | None:
    """Move a whole output away, for `fresh`; return where it is now, None if there was none.

    Raises OutputLocked if a run holds it, or one of its shards.
    """
    if not location.holds_output():
        return None
    # All shards are held first: a run that is going on in one of them would lose its folder.
    held: list[OutputHold] = [location.hold(run_id)]
    try:
        held += [place.hold(run_id) for place in shard_places(location, State(location).shards() or 0)]
        return location.move_away()
    finally:
        for hold in held:
            hold.release()


def running_places(output: Location | Address) -> list[Location]:
    """Return where commands reach the runs that are going on into an output: one place for each run.

    A run over some of the shards looks in the first of those that it holds.
    """
    location = location_of(output)
    if location.holder() is not None:
        return [location]
    count = State(location).shards()
    found: dict[object, Location] = {}
    for place in shard_places(location, count or 0):
        holder = place.holder()
        if holder is not None:
            found.setdefault(holder.get("run_id"), place)
    return list(found.values())


def lock_holder(output: Location | Address) -> dict[str, Any] | None:
    """Return who holds an output now (`pid`, `host`, `run_id`, `started_at`), None if nobody does.

    Of several runs, each over some of the shards, it is the one with the first shard.
    """
    places = running_places(output)
    return places[0].holder() if places else None
