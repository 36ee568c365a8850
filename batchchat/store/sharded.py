"""Several shards of one output, held by one run, as if they were one store.

Each entry goes to the shard of its row. The shards have one index among them, since no two hold records of one row;
everything else is each shard's own, so that another run may hold other shards meanwhile. `store` says who calls what.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import field
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from batchchat.addresses import Address, address_of
from batchchat.dataclass import dataclass
from batchchat.errors import OutputLocked
from batchchat.records import Spend
from batchchat.store.bounds import PART_BYTES
from batchchat.store.commit_log import Sealing
from batchchat.store.index import Counts, KeyIndex, RecordIndex
from batchchat.store.journal import AnswerEntry, Entry, SettledEntry
from batchchat.store.known import KnownRows
from batchchat.store.ledger import sum_spends
from batchchat.store.location.choice import location_of
from batchchat.store.location.port import Location
from batchchat.store.recovery import Recovery
from batchchat.store.run_files import RunFiles, RunNotes, ShardedRunFiles
from batchchat.store.sharding import Shards, begin_shards, set_aside_shards, shard_place
from batchchat.store.state import State
from batchchat.store.store import Store, StoreChange

_THREADS = 8
"""Shards that are synchronized at once. A disk takes some synchronizations together."""
_PART_BYTES = 4 * 2**20
"""A part of a shard may have so many raw bytes at least. What waits in memory is bounded over all shards together, so
that each brings little at a time, and its last part is written again each time: 32 MiB would be written 16 times."""
_Given = TypeVar("_Given")
_Result = TypeVar("_Result")


@dataclass(slots=True)
class JoinedChange(StoreChange):
    """What a blocking call did in several shards, by their places among those that are held."""

    parts: Sequence[tuple[int, StoreChange]] = ()


@dataclass(slots=True)
class JoinedSealing:
    """Closed generations of several shards, by their places among those that are held."""

    parts: list[tuple[int, Sealing]] = field(default_factory=list)


class ShardedStore:
    """Shards of one output that a run holds. Made by `open`."""

    known: KnownRows | None = None
    """A pass over shards takes over nothing from an earlier one: it renders its rows."""

    def __init__(
        self,
        location: Location,
        shards: Shards,
        stores: list[Store],
        held: ExitStack,
        *,
        renamed: str | None,
        bound: int,
    ) -> None:
        self.run_id = stores[0].run_id
        self.recovery = _joined(stores, renamed)
        self._root = location
        self._shards = shards
        self._stores = stores
        self._place = {number: place for place, number in enumerate(shards.chosen)}
        self._held = held
        self._bound = bound
        self.runs = ShardedRunFiles(
            RunFiles(self.location),
            [store.runs for store in stores],
            stores[0].location,
            shards.chosen,
            self._for_all,
        )
        self._threads = held.enter_context(ThreadPoolExecutor(min(_THREADS, len(stores)), "shards"))

    @classmethod
    def open(
        cls,
        output: Location | Path | str,
        *,
        shards: Shards,
        job_name: str,
        snapshot: Mapping[str, Any],
        run_id: str,
        part_bytes: int = PART_BYTES,
        fresh: bool = False,
        take_over: bool = False,
        open_shard: Callable[..., Store] = Store.open,
        **options: Any,
    ) -> ShardedStore:
        """Take hold of shards, creating the output if there is none, and recover what earlier runs left.

        A run that takes all shards holds the output itself too. `options` are those of `Store.open`, which
        `open_shard` may take the place of. Raises as `Store.open`; OutputLocked also if one shard is held.
        """
        location = location_of(Path(output).absolute() if isinstance(output, Path) else output)
        if options.get("outage") is not None:
            location.attend(options["outage"], options["tell"])
        renamed = set_aside_shards(location, run_id) if fresh else None
        begin_shards(location, shards.count, run_id=run_id, job_name=job_name)
        shard_bytes = max(part_bytes // len(shards.chosen), min(part_bytes, _PART_BYTES))
        with ExitStack() as held:
            if shards.whole:
                held.callback(location.hold(run_id, take_over=take_over).release)
            stores: list[Store] = []
            for number in shards.chosen:
                try:
                    store = open_shard(
                        shard_place(location, number),
                        job_name=job_name,
                        snapshot=snapshot,
                        run_id=run_id,
                        part_bytes=shard_bytes,
                        take_over=take_over,
                        beside=stores[0] if stores else None,
                        **options,
                    )
                except OutputLocked as error:
                    raise OutputLocked(f"shard {number}: {error.message}", remedy=error.remedy) from error
                held.callback(store.close)
                stores.append(store)
            if shards.whole:
                State(location).save_job(run_id, dict(snapshot))
            return cls(location, shards, stores, held.pop_all(), renamed=renamed, bound=2 * part_bytes)

    def freeze_input(self, schema: pa.Schema) -> None:
        """Freeze the input's columns and types; see `Store`."""
        for store in self._stores:
            store.freeze_input(schema)

    # ---- committing -------------------------------------------------------------------------------------------------

    def commit(self, entries: Sequence[Entry]) -> StoreChange:
        """Make entries durable, each in the shard of its row. See `Store.commit`."""
        by_place: dict[int, list[Entry]] = {}
        apart: list[Entry] = []
        for entry in entries:
            if isinstance(entry, SettledEntry):
                batch = entry.record.batch
                number = batch.shards[entry.record.offset] if batch.shards is not None else 0
                by_place.setdefault(self._place[number], []).append(entry)
            elif isinstance(entry, AnswerEntry):
                by_place.setdefault(self._place[entry.shard], []).append(entry)
            else:
                apart.append(entry)
        if apart:
            # A cost belongs to the run: any shard may keep it, and one that is written now costs no synchronization.
            by_place.setdefault(next(iter(by_place), 0), []).extend(apart)
        changes = self._each(list(by_place.items()), lambda place, own: self._stores[place].commit(own))
        spend = sum_spends([change.spend for _, change in changes])
        return JoinedChange(committed=entries, spend=spend, parts=changes)

    def _each(
        self, work: Sequence[tuple[int, _Given]], do: Callable[[int, _Given], _Result]
    ) -> list[tuple[int, _Result]]:
        """Do blocking work for several shards at once; raise the first error when all have ended."""
        if len(work) == 1:
            return [(place, do(place, given)) for place, given in work]
        futures = [(place, self._threads.submit(do, place, given)) for place, given in work]
        wait([future for _, future in futures])
        return [(place, future.result()) for place, future in futures]

    def _for_all(self, do: Callable[[RunNotes], None]) -> None:
        self._each([(place, store.runs) for place, store in enumerate(self._stores)], lambda _, notes: do(notes))

    def apply(self, change: StoreChange) -> None:
        """Fold a change into the indexes and the ledgers' totals; on the thread that reads them."""
        if isinstance(change, JoinedChange):
            for place, part in change.parts:
                self._stores[place].apply(part)

    def open_answers(self) -> dict[str, list[AnswerEntry]]:
        """Return the answers of requests that are not settled, by `custom_id`, in the order of their steps."""
        return {custom_id: found for store in self._stores for custom_id, found in store.open_answers().items()}

    # ---- sealing ----------------------------------------------------------------------------------------------------

    def should_seal(self, now: float) -> bool:
        """Tell whether a shard is full, or all of them together hold more than a part may in memory."""
        # All are asked: each notes since when its records wait.
        due = [store.should_seal(now) for store in self._stores]
        return True in due or self._crowded

    @property
    def _crowded(self) -> bool:
        return sum(store.pending_bytes for store in self._stores) > self._bound

    @property
    def pending_rows(self) -> int:
        """How many committed records are in no part yet, save those that are being sealed."""
        return sum(store.pending_rows for store in self._stores)

    @property
    def unsealed(self) -> bool:
        """Tell whether committed records wait to be published, or to go to the archive."""
        return any(store.unsealed for store in self._stores)

    def rotate(self) -> JoinedSealing | None:
        """Close the generations of all shards in which records wait, and open the next; None if there is nothing."""
        found = JoinedSealing()
        for place, store in enumerate(self._stores):
            sealing = store.rotate() if store.unsealed else None
            if sealing is not None:
                found.parts.append((place, sealing))
        return found if found.parts else None

    def seal(self, sealing: JoinedSealing) -> StoreChange:
        """Publish closed generations, one shard after another, so that memory holds one of them twice."""
        return _change_of([(place, self._stores[place].seal(part)) for place, part in sealing.parts])

    def finish(self) -> StoreChange:
        """Seal everything that is left, when nothing else is at work; apply what it returns."""
        return _change_of([(place, store.finish()) for place, store in enumerate(self._stores)])

    # ---- archive ----------------------------------------------------------------------------------------------------

    def fetch_archived(self, custom_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Return archived completions by `custom_id`; see `Store.fetch_archived`."""
        found: dict[str, dict[str, Any]] = {}
        for store in self._stores:
            left = [custom_id for custom_id in custom_ids if custom_id not in found]
            if left:
                found |= store.fetch_archived(left)
        return found

    def archive_unseen(self) -> StoreChange:
        """Move every live record that this pass has not met to the archive; see `Store.archive_unseen`."""
        return _change_of([(place, store.archive_unseen()) for place, store in enumerate(self._stores)])

    def archive_surplus(self, samples: int) -> StoreChange:
        """Move every live record with a `sample_index` of `samples` or more to the archive."""
        return _change_of([(place, store.archive_surplus(samples)) for place, store in enumerate(self._stores)])

    def drop_answers(self) -> None:
        """Let go of open answers: after a complete pass they belong to requests that the input no longer yields."""
        for store in self._stores:
            store.drop_answers()

    # ---- what is known ----------------------------------------------------------------------------------------------

    @property
    def directory(self) -> Address:
        """The folder of the output, or its URL."""
        return address_of(self._root.address)

    @property
    def location(self) -> Location:
        """Where the run is seen: the output if it takes all shards, else the first of those that it takes."""
        return self._root if self._shards.whole else self._stores[0].location

    @property
    def index(self) -> RecordIndex:
        """What is done, by `custom_id`."""
        return self._stores[0].index

    @property
    def keys(self) -> KeyIndex | None:
        """Which keys have a live record; None if the job names no key."""
        return self._stores[0].keys

    def counts(self) -> Counts:
        """Return how many records are live, by state, and how many of them this pass has met; constant work."""
        return self.index.counts()

    def stored_rows(self) -> int:
        """Return how many records the shards hold, as the parts themselves say, and how many are not in one yet."""
        return sum(store.stored_rows() for store in self._stores)

    def ledger_total(self) -> Spend:
        """Return what all runs into these shards have cost, as far as it was applied."""
        return sum_spends([store.ledger_total() for store in self._stores])

    def ledger_of(self, run_id: str) -> Spend:
        """Return what one run has cost."""
        return sum_spends([store.ledger_of(run_id) for store in self._stores])

    @property
    def commit_s(self) -> float:
        """The seconds between the beginnings of two commits, 0 where a commit costs nothing."""
        return max(store.commit_s for store in self._stores)

    def hurry(self) -> None:
        """End every wait for a place that is away: a person wants the run to end."""
        for location in (self._root, *(store.location for store in self._stores)):
            location.hurry()

    def close(self) -> None:
        """Let go of the shards. What was committed and not sealed is recovered by the next `open`."""
        self._held.close()

    def __enter__(self) -> ShardedStore:
        """Return the store; leaving the block closes it."""
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _change_of(parts: Iterable[tuple[int, StoreChange]]) -> JoinedChange:
    changes = list(parts)
    return JoinedChange(
        removed=[each for _, change in changes for each in change.removed],
        lost=sum(change.lost for _, change in changes),
        messages=[message for _, change in changes for message in change.messages],
        parts=changes,
    )


def _joined(stores: Sequence[Store], renamed: str | None) -> Recovery:
    """Return what opening the shards found and mended."""
    found = [store.recovery for store in stores]
    return Recovery(
        records=sum(each.records for each in found),
        dropped_bytes=sum(each.dropped_bytes for each in found),
        set_aside=[path for each in found for path in each.set_aside],
        renamed=renamed,
        messages=[message for each in found for message in each.messages],
    )
