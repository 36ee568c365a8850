"""What opening an output finds and mends: lost or damaged files of the state, and what a killed run left behind."""

from __future__ import annotations

from dataclasses import field

import pyarrow as pa

from batchchat.dataclass import dataclass
from batchchat.format import plural
from batchchat.records import RECORD_COLUMNS
from batchchat.store.column_types import SCHEMA, freeze_recovered, read_types
from batchchat.store.commit_log import Sealing
from batchchat.store.components import Components
from batchchat.store.dataset import DatasetChange
from batchchat.store.index import is_live, state_of
from batchchat.store.journal import Replay, replay
from batchchat.store.ledger import LEDGER
from batchchat.store.loading import load_dataset
from batchchat.store.location.port import Location
from batchchat.store.manifest import RUNS, contents_of, losses
from batchchat.store.pending import Pending, Unsealed
from batchchat.store.schema import Frozen
from batchchat.store.state import FORMAT_FILE, State

_CUSTOM_ID = RECORD_COLUMNS.index("custom_id")
_KEY = RECORD_COLUMNS.index("key")
_ROW_INDEX = RECORD_COLUMNS.index("row_index")
_SAMPLE = RECORD_COLUMNS.index("sample_index")
_RUN_ID = RECORD_COLUMNS.index("run_id")
_STATUS = RECORD_COLUMNS.index("status")
_ERROR_KIND = RECORD_COLUMNS.index("error_kind")
_FINISHED_AT = RECORD_COLUMNS.index("finished_at")


@dataclass(slots=True)
class Recovery:
    """What opening an output found and mended. `messages` are sentences for the user, empty when all was well.

    `records` were committed and not yet published; `dropped_bytes` are unfinished or damaged ends of journals;
    `set_aside` are files in the folder for damaged ones; `renamed` is where `fresh` put the old output.
    """

    records: int = 0
    dropped_bytes: int = 0
    set_aside: list[str] = field(default_factory=list)
    renamed: str | None = None
    messages: list[str] = field(default_factory=list)

    def add_damage(self, found: Replay) -> None:
        """Note the damaged or unfinished end of a journal; do nothing if it is whole."""
        damage = found.damage
        if damage is None:
            return
        self.dropped_bytes += damage.dropped
        # A torn end is what a kill leaves, and no record in it was counted. Any other damage may have cost records.
        if damage.torn:
            self.messages.append(
                f"{found.name} ends in an unfinished write: {damage.dropped} bytes after byte {damage.offset} "
                "were never counted and are dropped."
            )
        else:
            self.messages.append(
                f"{found.name} is damaged at byte {damage.offset}: what was committed before is kept, the "
                f"{damage.dropped} bytes from there on are not believed, and their rows run again."
            )


def mend_state(location: Location, wanted: pa.Schema | None, currency: str | None) -> tuple[Frozen, list[str]]:
    """Write lost or damaged state files anew. Only while the output is held.

    Return the frozen types, and sentences that say what was done.
    `wanted` are the columns of the input of this run. `currency` is that of its prices.
    Raises UsageError if the output belongs to another currency, StorageError if the disk fails.
    """
    state = State(location)
    # Asked for before the rest is created, since that writes the file.
    lost_format = location.holds_output() and state.lacks_format
    state.write_format()
    location.complete()
    frozen = read_types(location)
    messages = state.mend()
    if lost_format:
        messages.append(f"{location.state.address(FORMAT_FILE)} was missing, and is written anew.")
    state.set_currency(currency)
    if frozen.recovered and frozen.input is not None:
        frozen = freeze_recovered(location.state, frozen, wanted)
        messages.append(f"{location.state.address(SCHEMA)} was lost, and is written anew from what the records are.")
    return frozen, messages


def recover(held: Components, recovery: Recovery) -> None:
    """Load what is there, and publish what a killed run committed. Raises StorageError."""
    Recoverer(held, recovery).run()


class Recoverer:
    """The recovery of one output, at its opening."""

    def __init__(self, held: Components, recovery: Recovery) -> None:
        self._held = held
        self._recovery = recovery

    def run(self) -> None:
        """Compare the files with the manifest, load the dataset, and seal every journal that is left."""
        held, recovery = self._held, self._recovery
        held.point("recover.begin")
        # Before anything is read: what is read must stay as it is.
        held.dataset.settle()
        self._compare_with_manifest()
        for name in (RUNS, LEDGER):
            held.location.state.cut_torn_line(name)
        ledger = held.ledger.read()
        if ledger.damaged_lines:
            are = "is" if ledger.damaged_lines == 1 else "are"
            recovery.messages.append(
                f"{plural(ledger.damaged_lines, 'line')} of {held.location.state.address(LEDGER)} {are} damaged: "
                "earlier costs are told too low."
            )
        self._note(load_dataset(held.dataset, held.live.index, held.live.keys, held.live.known))
        journals = held.location.journals
        found = [replay(journals, generation) for generation in journals.generations()]
        # A number is never used twice, also not after its journal is gone: the ledger counts by it.
        used = [*ledger.generations, *(each.generation for each in found), journals.last_used()]
        held.log.generation = max(used)
        for each in found:
            held.log.answers.add(each.answers)
            recovery.add_damage(each)
        for each in found:
            held.log.answers.settle(each.settled)
        if len(held.log.answers):
            # Durable in a generation of their own, before the ones that hold them are deleted.
            held.log.begin()
        for each in found:
            self._reseal(each)
        held.manifest.take_over(contents_of(held.location))
        held.point("recover.end")

    def _compare_with_manifest(self) -> None:
        held = self._held
        known = held.manifest.begin()
        if known is not None:
            now = contents_of(held.location)
            self._recovery.messages += losses(known.lost(now), held.location)
            held.manifest.take_over(known.common(now))

    def _reseal(self, found: Replay) -> None:
        """Publish what a journal holds and no part does, count its costs, and remove it."""
        held = self._held
        batches, late = self._unpublished(found) if found.records else ([], [])
        sealing = Sealing(
            found.generation,
            found.run_id,
            batches,
            found.spend,
            held.live.take_superseding(),
            late,
            damaged=found.damage is not None and not found.damage.torn,
            keys=found.keys,
        )
        self._recovery.records += sealing.rows
        self._note(held.publish(sealing, self._recovery.set_aside))
        if sealing.generation not in held.ledger.generations:
            held.ledger.count(sealing.run_id, sealing.spend)
        held.ledger.keys.update(sealing.keys)
        held.point("recover.sealed")

    def _unpublished(self, found: Replay) -> tuple[list[pa.RecordBatch], list[pa.RecordBatch]]:
        """Return the records of a journal that no part holds, and note them as live; and those for the archive."""
        held, live = self._held, self._held.live
        ids = [custom_id for custom_id in found.settled if is_live(live.index.get(custom_id))]
        published = held.dataset.published(ids) if ids else set()
        pending: Pending | None = None
        late: Pending | None = None

        def take(record: Unsealed) -> None:
            nonlocal pending, late
            values = record.values
            if (values[_CUSTOM_ID], values[_RUN_ID], values[_FINISHED_AT]) in published:
                return
            if held.types.schema is None:  # the journal outlived the schema file: its rows know their types
                held.types.freeze_input(record.columns.schema)
            if record.late:
                late = late or Pending(held.types.required_schema)
                late.add([record])
                if values[_STATUS] == "ok":
                    live.index.add_archived(values[_CUSTOM_ID])
                return
            if pending is None:
                pending = Pending(held.types.required_schema)
            pending.add([record])
            if live.known is not None:
                live.known.forget(values[_ROW_INDEX], values[_SAMPLE])
            state = state_of(values[_STATUS], values[_ERROR_KIND])
            live.put(values[_CUSTOM_ID], values[_KEY], values[_SAMPLE], state, seen=False)

        replay(held.location.journals, found.generation, take, held.types.own_columns)
        return [] if pending is None else pending.batches(), [] if late is None else late.batches()

    def _note(self, moved: DatasetChange) -> None:
        """Take identities out that lost their record, and keep the sentences."""
        live = self._held.live
        live.remove(moved.removed)
        if moved.removed and live.known is not None:
            live.known.forget()
        self._recovery.messages += moved.messages
