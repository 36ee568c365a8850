"""The objects of one output that a run holds, and the step in which they all take part: publishing a generation."""

from __future__ import annotations

import pyarrow as pa

from batchchat.dataclass import dataclass
from batchchat.store.column_types import OutputTypes
from batchchat.store.commit_log import CommitLog, Sealing
from batchchat.store.dataset import Dataset, DatasetChange, Point
from batchchat.store.ledger import SpendLedger
from batchchat.store.live import LiveRecords
from batchchat.store.location.port import Location
from batchchat.store.manifest import Manifest
from batchchat.store.state import State


@dataclass(frozen=True, slots=True)
class Components:
    """The objects of one output. `point` is called with the name of each step, for tests of crashes."""

    location: Location
    state: State
    types: OutputTypes
    manifest: Manifest
    ledger: SpendLedger
    live: LiveRecords
    dataset: Dataset
    log: CommitLog
    point: Point

    def publish(self, sealing: Sealing, set_aside: list[str]) -> DatasetChange:
        """Publish a closed generation: archive, rewrite, parts, ledger, and its journal is removed.

        The address of a damaged journal, which is kept, is added to `set_aside`. Raises StorageError.
        """
        moved = DatasetChange()
        if sealing.batches or sealing.late:
            table = pa.Table.from_batches(sealing.batches, self.types.required_schema)
            late = pa.Table.from_batches(sealing.late, self.types.required_schema)
            sealing.batches = []  # the table holds them, and lets go of them with this call
            by_id, by_key = sealing.superseding
            moved = self.dataset.seal(table, by_id=by_id, by_key=by_key, late=late)
            del table
            pa.default_memory_pool().release_unused()
        self.ledger.append(sealing.generation, sealing.run_id, sealing.spend, sealing.keys)
        self.point("seal.ledger")
        # Before the journal goes, so that its name never stands in the manifest without the file.
        self.manifest.sealed(sealing.generation)
        journals = self.location.journals
        if sealing.damaged:
            set_aside.append(journals.set_aside(sealing.generation))
        else:
            journals.remove(sealing.generation)
        self.point("seal.trimmed")
        return moved
