"""Which shards of its output a run takes, and why a job cannot have any. Blocking code."""

from __future__ import annotations

from batchchat.addresses import address_of
from batchchat.errors import UsageError
from batchchat.identity import shard_of
from batchchat.intake import read_key
from batchchat.job import Job
from batchchat.records import RowBatch
from batchchat.runner.options import RunOptions
from batchchat.store import Shards, check_shards

_NO_SHARDS = "Add `--set output.shards=64`: several shards for each process, so that one which dies leaves little."


def shards_for(job: Job, options: RunOptions) -> Shards | None:
    """Return the shards that a run takes, None if its output has none.

    Raises UsageError if the output has another number of them, or if the job cannot have any.
    """
    wanted = job.output.shards
    # With --fresh the old output is set aside, whatever number of shards it has.
    count = wanted if options.fresh else check_shards(address_of(job.output.path), wanted)
    if count is None or count == 1:
        if options.share is not None:
            raise UsageError("--shard is for an output with shards, and this one has none", remedy=_NO_SHARDS)
        return None
    _check_job(job)
    chosen = tuple(range(count)) if options.shards is None else options.shards
    if options.share is not None:
        index, of = options.share
        if of > count:
            raise UsageError(
                f"--shard {index}/{of}: the output has {count} shards, which are too few for {of} processes",
                remedy=f"Start {count} at most, or move the records to more with `batchchat reshard`.",
            )
        # Every `of`-th one, so that the shares differ by one shard at most.
        chosen = tuple(range(index, count, of))
    if options.fresh and len(chosen) < count:
        raise UsageError(
            "--fresh sets the whole output aside, and --shard names one part of it",
            remedy="Run the job once with --fresh and without --shard, or choose another output.",
        )
    return Shards(count, chosen)


def _check_job(job: Job) -> None:
    """Refuse what cannot be in shards. Raises JobError."""
    if job.input.key is None:
        raise job.error(
            "needs input.key: the key of a row tells its shard",
            "output",
            "shards",
            remedy="Name a column that is different in every row, such as `input: {path: …, key: id}`.",
        )
    if job.engine.batch:
        raise job.error(
            "is for single requests: batches of a provider need one process, which waits",
            "output",
            "shards",
            remedy="Leave it out, or set `engine: local`.",
        )


class ShardedRows:
    """Tells the shard of each row, before anything of it is rendered."""

    def __init__(self, shards: Shards, key: str) -> None:
        self._count = shards.count
        self._chosen = None if shards.whole else frozenset(shards.chosen)
        self._key = key

    def mark(self, batch: RowBatch) -> RowBatch:
        """Note the shard of each row in a batch, -1 of those that are another run's; return the batch."""
        count, column, chosen = self._count, self._key, self._chosen
        shards = [shard_of(None if values is None else read_key(values, column)[0], count) for values in batch.values]
        batch.shards = shards if chosen is None else [number if number in chosen else -1 for number in shards]
        return batch
