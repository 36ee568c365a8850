"""Moving an output into another number of shards: which shard each record belongs to. Blocking code."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from batchchat.addresses import Address
from batchchat.errors import UsageError
from batchchat.identity import shard_of
from batchchat.intake import read_key
from batchchat.job.sections import BATCH_FORMAT, BATCH_KEY
from batchchat.runner.opening import new_run_id
from batchchat.sources import SeenRows, python_rows
from batchchat.store import batches_folder, read_state
from batchchat.store.resharding import Resharded, reshard


def reshard_output(directory: Address, shards: int) -> Resharded:
    """Move an output into so many shards, 1 for none; ask nothing.

    Raises UsageError if its job names no key, or if it has as many already; OutputLocked if a run holds it;
    StorageError if the disk refuses. The output then is as it was.
    """
    output = read_state(directory)
    given = output.job.get("input")
    given = given if isinstance(given, dict) else {}
    key = BATCH_KEY if given.get("format") == BATCH_FORMAT else given.get("key")
    if shards > 1 and not isinstance(key, str):
        raise UsageError(
            f"{directory} cannot be in shards: its job names no key, and the key of a row tells its shard",
            remedy="Give the job an `input.key` and a new output. Rows that are told by their key are other requests, "
            "so all are asked again.",
        )
    _refuse_beside_batches(directory)
    seen = SeenRows(output.input_schema or pa.schema([]))

    def place_of(batch: pa.RecordBatch) -> Sequence[int]:
        if shards == 1:
            return [0] * batch.num_rows
        keys: list[str | None] = batch.column("key").to_pylist()
        for row, text in enumerate(keys):
            if text is None:
                # A row whose key another one has had too is beside that one, which alone tells that it is repeated.
                (values,) = python_rows(batch.slice(row, 1))
                keys[row] = read_key(seen(values), str(key))[0]
        return [shard_of(text, shards) for text in keys]

    return reshard(directory, shards, place_of, run_id=new_run_id())


def _refuse_beside_batches(directory: Address) -> None:
    """Refuse while batches of a provider may still answer. Raises UsageError."""
    if not batches_folder(directory).is_dir():
        return
    from batchchat.engines.batch.status import under_way

    if under_way(directory):
        raise UsageError(
            f"{directory} has batches under way, whose answers belong into it as it is",
            remedy="Run its job until they have ended, or run `batchchat cancel` first.",
        )
