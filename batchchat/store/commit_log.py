"""The generation of the journal that is open, and the committed records that wait for their part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field

import pyarrow as pa

from batchchat.dataclass import dataclass
from batchchat.records import RECORD_COLUMNS, Spend
from batchchat.store.bounds import PartBounds
from batchchat.store.column_types import OutputTypes
from batchchat.store.dataset import Point
from batchchat.store.journal import AnswerEntry, Entry, Journal, OpenAnswers
from batchchat.store.live import Superseding
from batchchat.store.location.port import JournalFiles
from batchchat.store.manifest import Manifest
from batchchat.store.pending import Pending

JOURNAL_FACTOR = 4
"""A journal is sealed at the latest when it is this many times as long as a part may be.

Chosen, not measured: it bounds a journal that holds answers of intermediate steps and no records.
"""

_CUSTOM_ID = RECORD_COLUMNS.index("custom_id")


@dataclass(slots=True)
class Sealing:
    """A closed generation of the journal, on its way into parts.

    `batches` are its records, `late` those of them that go to the archive at once, `spend` is what it cost, `keys` are
    those of costs that count once. A `damaged` journal is kept, and not deleted.
    """

    generation: int
    run_id: str
    batches: list[pa.RecordBatch]
    spend: Spend
    superseding: Superseding
    late: list[pa.RecordBatch] = field(default_factory=list)
    damaged: bool = False
    keys: list[str] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """Return how many records are to be published."""
        return sum(batch.num_rows for batch in self.batches)


class CommitLog:
    """What this run commits. A journal is created with the first commit behind a rotation.

    `answers` belong to requests that are not settled: every new generation carries them over.
    `generation` is the last one that was used. Every method raises StorageError if the disk refuses.
    """

    def __init__(
        self,
        files: JournalFiles,
        types: OutputTypes,
        manifest: Manifest,
        *,
        run_id: str,
        bounds: PartBounds,
        point: Point,
    ) -> None:
        self.answers = OpenAnswers()
        self.generation = 0
        self._files = files
        self._types = types
        self._manifest = manifest
        self._run_id = run_id
        self._bounds = bounds
        self._point = point
        self._journal: Journal | None = None
        self._pending: Pending | None = None
        self._late: Pending | None = None
        self._pending_since: float | None = None

    @property
    def pending_rows(self) -> int:
        """Return how many committed records wait for their part."""
        return 0 if self._pending is None else self._pending.rows

    @property
    def pending_bytes(self) -> int:
        """Return about how many bytes of memory those records take."""
        return 0 if self._pending is None else self._pending.nbytes

    @property
    def unsealed(self) -> bool:
        """Tell whether committed records wait to be published, or to go to the archive."""
        return bool(self.pending_rows or self._late is not None)

    def commit(self, entries: Sequence[Entry]) -> Spend:
        """Make entries durable: one write and one synchronization. Return what they cost.

        Raises ValueError if a record's input columns are not the frozen ones.
        """
        self._point("commit.before")
        journal = self._journal or self.begin()
        records = journal.encode(entries)
        journal.write()
        self._point("commit.written")
        journal.synchronize()
        self._point("commit.after")
        self.answers.add(entry for entry in entries if isinstance(entry, AnswerEntry))
        self.answers.settle(record.values[_CUSTOM_ID] for record in records)
        if records:
            if self._pending is None:
                self._pending = Pending(self._types.required_schema)
            # A late record was superseded before it came: it goes to the archive, and never into the dataset.
            late = [record for record in records if record.late]
            self._pending.add([record for record in records if not record.late] if late else records)
            if late:
                self._late = self._late or Pending(self._types.required_schema)
                self._late.add(late)
        return journal.cost

    def is_full(self, now: float) -> bool:
        """Tell whether enough records, bytes or seconds (of the caller's clock) wait for a seal."""
        journal, pending, bounds = self._journal, self._pending, self._bounds
        if journal is None:
            return False
        # Costs and answers of open requests make no row, but the journal grows by them.
        if journal.size >= JOURNAL_FACTOR * bounds.nbytes:
            return True
        if pending is None:
            return False
        # The age is that of the first record, by the clock of whoever asks: this log reads none.
        if self._pending_since is None:
            self._pending_since = now
        waited = now - self._pending_since
        return pending.rows >= bounds.rows or pending.nbytes >= bounds.nbytes or waited >= bounds.seconds

    def rotate(self, superseding: Superseding) -> Sealing:
        """Close the open generation, and begin the next if there are open answers to carry over.

        Raises RuntimeError if no generation is open.
        """
        old = self._journal
        if old is None:
            raise RuntimeError("no generation of the journal is open")
        old.close()
        batches = self._pending.batches() if self._pending is not None else []
        late = self._late.batches() if self._late is not None else []
        self._journal = self._pending = self._late = self._pending_since = None
        # Their generation is deleted with the seal: the next one must hold them before that.
        if len(self.answers):
            self.begin()
        return Sealing(old.generation, old.run_id, batches, old.spend, superseding, late, keys=old.keys)

    @property
    def is_open(self) -> bool:
        """Tell whether a generation is open."""
        return self._journal is not None

    def begin(self) -> Journal:
        """Begin the next generation, durably, with the answers that are open."""
        self.generation += 1
        self._journal = Journal.create(
            self._files,
            self.generation,
            run_id=self._run_id,
            input_schema=self._types.frozen.input,
            columns=self._types.own_columns,
            carried=self.answers,
        )
        self._manifest.add_journal(self.generation)
        return self._journal

    def close(self) -> None:
        """Close the open generation; the next opening of the output recovers what it holds."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None
