"""What the command line adds to a job for one run."""

from __future__ import annotations

from batchchat.dataclass import dataclass
from batchchat.records import ErrorKind


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Options of one run.

    `limit` takes the first rows only, `sample` a random choice of that many rows drawn with `seed`. `rows` takes the
    rows with these indexes: passes over more and more of them find every answer with its row. `retry_failed` names the
    kinds of failed rows to try again now, None leaves it to the job. `fresh` sets the old output aside; `prune` moves
    records whose input is gone to the archive after a complete pass. `grace` is how long a stop waits for what is in
    flight, in seconds. `command` is repeated in the summary as the way to go on. Without `wait` a run through a Batch
    API ends when its batches are created; with `cancel_batches` it cancels all of them, takes what they answered, and
    sends nothing. `share` (i, n) takes the i-th of n even shares of the output's shards, counted from 0; `shards` takes
    those with these numbers. `run_id` is that of a run which this one is a part of.
    `take_over` takes an output on object storage from a run that seems to be alive.
    """

    limit: int | None = None
    sample: int | None = None
    seed: int = 0
    retry_failed: frozenset[ErrorKind] | None = None
    fresh: bool = False
    take_over: bool = False
    prune: bool = False
    grace: float = 20.0
    command: str | None = None
    wait: bool = True
    cancel_batches: bool = False
    rows: frozenset[int] | None = None
    share: tuple[int, int] | None = None
    shards: tuple[int, ...] | None = None
    run_id: str | None = None

    @property
    def most_rows(self) -> int | None:
        """The most rows that the pass may have, None if it has no bound but the input's."""
        given = (self.limit, self.sample, None if self.rows is None else len(self.rows))
        return min((bound for bound in given if bound is not None), default=None)
