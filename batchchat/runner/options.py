"""What the command line adds to a job for one run."""

from __future__ import annotations

from dataclasses import dataclass

from batchchat.records import ErrorKind


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Options of one run.

    `limit` takes the first rows only, `sample` a random choice of that many rows drawn with `seed`. `retry_failed`
    names the kinds of failed rows to try again now, None leaves it to the job. `fresh` sets the old output aside;
    `prune` moves records whose input is gone to the archive after a complete pass. `grace` is how long a stop waits
    for what is in flight, in seconds. `command` is repeated in the summary as the way to go on. Without `wait` a run
    through a Batch API ends when its batches are created; with `cancel_batches` it cancels all of them, takes what they
    answered, and sends nothing.
    """

    limit: int | None = None
    sample: int | None = None
    seed: int = 0
    retry_failed: frozenset[ErrorKind] | None = None
    fresh: bool = False
    prune: bool = False
    grace: float = 20.0
    command: str | None = None
    wait: bool = True
    cancel_batches: bool = False
