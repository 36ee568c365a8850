"""The tail of an output: records as a run commits them, from a moment on.

They are read from the journal, which a run seals into parts and removes. A journal that is open here can be read to its
end although its name is gone. Only one that came and went between two looks is missed; its records are found in the
parts then, by their identities.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from batchchat.addresses import Address
from batchchat.lazy_arrow import compute as pc
from batchchat.store.column_types import read_types
from batchchat.store.index import OK, RecordIndex
from batchchat.store.journal import GrowingJournal
from batchchat.store.location.choice import location_of
from batchchat.store.location.port import Location
from batchchat.store.parts import DamagedPartError, PartReader
from batchchat.store.pending import Pending, Unsealed
from batchchat.store.schema import own_columns
from batchchat.store.sharding import shard_place
from batchchat.store.state import State


class OutputTail:
    """Records that the run which holds an output commits after this object was made.

    Takes 24 bytes of memory for each record of that run. Raises StorageError if the output
    cannot be read. To be closed.
    """

    def __init__(self, output: Location | Path | str, run_id: str) -> None:
        self._location = location_of(output)
        self._run_id = run_id
        self._known = RecordIndex()
        self._journal: GrowingJournal | None = None
        self._last_part = ""
        self._pending: Pending | None = None
        self._missed = True
        # What is there already counts as told.
        for _ in self.read(last=True):
            pass

    @property
    def schema(self) -> pa.Schema | None:
        """Return the columns of the output; None while no run has frozen those of its input."""
        return None if self._pending is None else self._pending.schema

    def read(self, *, last: bool = False) -> Iterator[pa.RecordBatch]:
        """Yield the records that were committed since the last call. `last`: the run has ended, nothing comes after."""
        if self._pending is None:
            schema = read_types(self._location).output()
            if schema is None:
                return  # nothing can be committed before
            self._pending = Pending(schema)
        self._read_journals(self._pending)
        batches = self._pending.batches()
        self._pending = Pending(self._pending.schema)
        for batch in batches:
            yield from self._untold(batch)
        if last or self._missed:
            yield from self._read_parts(self._pending.schema)
            self._missed = False

    def close(self) -> None:
        """Close the journal that is open."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    def _read_journals(self, pending: Pending) -> None:
        """Read what is new in the journal that is open, and in those behind it."""
        files = self._location.journals
        while True:
            # Listed first: if there is a later one, the run writes no more into this one, and it is read to its end.
            later = [number for number in files.generations() if self._journal is None or number > self._at]
            if self._journal is not None:
                self._journal.read()
            if not later:
                return
            # Commits that were sealed and deleted between two looks are told from their part.
            if self._journal is not None and (later[0] != self._at + 1 or not files.keeps_open):
                self._missed = True
            try:
                opened = GrowingJournal(files, later[0], self._take, own_columns(pending.schema))
            except FileNotFoundError:
                self._missed = True  # sealed just now
                continue
            self.close()
            self._journal = opened

    @property
    def _at(self) -> int:
        return -1 if self._journal is None else self._journal.generation

    def _take(self, record: Unsealed) -> None:
        # A late one is of a row that has another record: it is no part of the dataset.
        if self._pending is not None and not record.late:
            self._pending.add([record])

    def _untold(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        """Yield the records of a batch that are this run's and were not told before."""
        mine = batch.filter(pc.equal(batch.column("run_id"), self._run_id))
        known = [bool(self._known.put(one, OK, seen=False)) for one in mine.column("custom_id").to_pylist()]
        new = mine.filter(pc.invert(pa.array(known, pa.bool_())))
        if new.num_rows:
            yield new

    def _read_parts(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        """Yield what is untold in the last part that is known, which may have grown, and in those behind it."""
        files = self._location.parts
        for name in [name for name in files.names() if name >= self._last_part]:
            try:
                with PartReader(files, name, schema) as reader:
                    for batch in reader.batches(schema.names):
                        yield from self._untold(batch)
            except FileNotFoundError:
                continue  # its last records went to the archive
            except DamagedPartError:
                continue  # `verify` tells; the run takes it out
            self._last_part = name


class JoinedTail:
    """The tail of an output in shards: records as the runs of one `run_id` commit them to any shard. To be closed."""

    def __init__(self, output: Location, count: int, run_id: str) -> None:
        self._output = output
        self._count = count
        self._run_id = run_id
        self._tails: dict[int, OutputTail] = {}
        for _ in self.read():
            pass

    def read(self, *, last: bool = False) -> Iterator[pa.RecordBatch]:
        """Yield the records that were committed since the last call; see `OutputTail`."""
        for number in range(self._count):
            if number not in self._tails:
                # A shard that has not begun yet has nothing that would count as told.
                place = shard_place(self._output, number)
                if not place.holds_output():
                    continue
                self._tails[number] = OutputTail(place, self._run_id)
            yield from self._tails[number].read(last=last)

    def close(self) -> None:
        """Close the journals that are open."""
        for tail in self._tails.values():
            tail.close()


def open_tail(output: Address, run_id: str) -> OutputTail | JoinedTail:
    """Return the tail of an output, whether it is in shards or not. Raises StorageError as `OutputTail`."""
    location = location_of(output)
    count = State(location).shards()
    return OutputTail(location, run_id) if count is None else JoinedTail(location, count, run_id)
