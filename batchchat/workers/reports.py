"""What the workers of a run have told: counts, summaries, events, and what was lost with those that died."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from batchchat.dataclass import dataclass
from batchchat.engines.port import EngineProgress
from batchchat.events import Event, Listener, Pace, Snapshot
from batchchat.records import Spend
from batchchat.workers.claims import Claim
from batchchat.workers.messages import Message
from batchchat.workers.sums import Sums

_MOST_TOLD = 1_000
"""How many different events are remembered, so that memory is bounded. Chosen: a run has a few dozen of them."""
_OF_ONE_WORKER = "estimate_corrected"
LOOK = "Look at what the workers said before they died. The same command goes on."


@dataclass(frozen=True, slots=True)
class Loss:
    """Work that came to no end, and why: `exit_code` is what the run ends with if nothing worse happened."""

    message: str
    remedy: str | None
    exit_code: int


class Reports:
    """What the workers have told so far. Their events go on to `tell`."""

    def __init__(self, tell: Listener) -> None:
        self.sums = Sums()
        self.summaries: list[Mapping[str, Any]] = []
        self.losses: list[Loss] = []
        self.deaths = 0
        self._tell = tell
        self._told: set[tuple[str, str]] = set()

    def pass_on(self, worker: str | None, event: Mapping[str, Any]) -> None:
        """Tell an event of a worker, or of the run itself if `worker` is None. What several say alike is told once."""
        told = (str(event["name"]), str(event["message"]))
        # A worker's own forecast is of its rows; the run's is told once, of all.
        if told in self._told or told[0] == _OF_ONE_WORKER:
            return
        if len(self._told) < _MOST_TOLD:
            self._told.add(told)
        fields = {**(event.get("fields") or {}), **({} if worker is None else {"worker": worker})}
        self._tell(Event(told[0], told[1], event["level"], fields))

    def end(self, worker: str, message: Message) -> Mapping[str, Any]:
        """Take the summary of a worker that has run its claim to the end. Return the summary."""
        self.sums.end(worker)
        summary = {**message["summary"], "shards": message["shards"]}
        self.summaries.append(summary)
        return summary

    def lose(self, message: str, remedy: str | None = LOOK, exit_code: int = 70) -> Loss:
        """Note that work came to no end. Return what was noted."""
        loss = Loss(message, remedy, exit_code)
        self.losses.append(loss)
        return loss

    def tell_death(self, worker: str, message: str, reason: str, claim: Claim | None) -> None:
        """Tell that a worker died, and which shards it held."""
        self.deaths += 1
        fields = {"worker": worker, "shards": list(claim or ()), "reason": reason}
        self._tell(Event("worker_died", message, "warning", fields))

    @property
    def spend(self) -> Spend:
        """What the run has cost so far."""
        snapshot = self.sums.joined()
        return Spend() if snapshot is None else snapshot.spend

    def progress(self, oldest: int = 0) -> EngineProgress:
        """Return what is under way in all workers, with so many of the requests that are under way the longest."""
        snapshot = self.sums.joined()
        if snapshot is None:
            return EngineProgress(0, 0, 0, 0, 0, 0, Pace(), ())
        return _progress_of(snapshot, oldest)


def _progress_of(snapshot: Snapshot, oldest: int) -> EngineProgress:
    return EngineProgress(
        sending=snapshot.sending,
        waiting=snapshot.waiting,
        attempts=snapshot.attempts,
        retries=snapshot.retries,
        rate_limited=snapshot.rate_limited,
        # Snapshots do not have them. They are in the summaries, which is where they are read.
        corrections=0,
        pace=snapshot.pace,
        oldest=snapshot.oldest[:oldest],
    )
