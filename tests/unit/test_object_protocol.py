"""The protocol of an output in a bucket: rivals, stalls, kills, lost and late answers, in an order that a seed gives.

What must hold: a counted record is in the dataset, none is there twice at any moment, and its cost is counted once. And
each step of the protocol is needed: without it, a seed is found at which something is lost.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import orjson
import pyarrow.parquet as pq
import pytest

from batchchat.errors import StorageError
from batchchat.store import SettledEntry
from batchchat.store.dataset import Dataset
from batchchat.store.location.bucket import ConditionFailedError, ObjectBucket, OtherContentError, UnclearError
from batchchat.store.location.object_hold import ObjectHold, OutputLost
from batchchat.store.location.object_journals import ObjectJournals, ObjectLog
from batchchat.store.location.objects import ObjectLocation
from tests.object_store import URL, Faults, Killed, MemoryObjects, Turns, Writer
from tests.store_cases import SPEND, open_store, settled
from tests.thorough import one_in

ROWS = 3
DATA = "bucket/run/data/"


@dataclass
class Played:
    """What became of one play: the records that counted, those that were tried, and what went wrong in it."""

    counted: set[str] = field(default_factory=set)
    tried: int = 0
    takeovers: int = 0
    lost_outputs: int = 0
    false_alarms: int = 0
    twice: list[str] = field(default_factory=list)
    missing: set[str] = field(default_factory=set)
    spent: float = 0.0
    injected: dict[str, int] = field(default_factory=dict)


def _ids(objects: MemoryObjects) -> Counter[str]:
    found: Counter[str] = Counter()
    for path, data in objects.content.items():
        if path.startswith(DATA):
            found.update(pq.read_table(io.BytesIO(data), columns=["custom_id"]).column(0).to_pylist())
    return found


def run_of(objects: MemoryObjects) -> object:
    """Return the run that holds the output."""
    return orjson.loads(objects.content["bucket/run/_batchchat/hold.json"])["run_id"]


def play(seed: int, *, writers: int = 3, lives: int = 3, faults: Faults | None = None) -> Played:
    """Let writers take an output from one another, each several times, and look at what is left."""
    objects, played = MemoryObjects(), Played()

    def look(path: str) -> None:
        if path.startswith(DATA):
            played.twice += [one for one, count in _ids(objects).items() if count > 1]

    objects.on_write = look
    turns = Turns(objects, seed, faults or Faults())

    def work(number: int) -> Callable[[Writer], None]:
        def live(writer: Writer) -> None:
            for life in range(lives):
                try:
                    _one_life(turns, writer, played, number * 1000 + life * 100)
                except Killed:
                    continue  # another process begins
                except OutputLost:
                    played.lost_outputs += 1
                    # Told only if it is so: the record names another writer.
                    played.false_alarms += run_of(objects) == f"run-{number * 1000 + life * 100}"

        return live

    for number in range(writers):
        turns.add(work(number))
    turns.play()
    location = ObjectLocation(URL, objects=objects, heartbeat=None)
    with open_store(location, "last", take_over=True, part_rows=7) as store:
        store.apply(store.finish())
        played.spent = store.ledger_total().cost
    there = _ids(objects)
    played.twice += [one for one, count in there.items() if count > 1]
    played.missing = played.counted - set(there)
    played.injected = turns.injected
    return played


def _one_life(turns: Turns, writer: Writer, played: Played, first: int) -> None:
    rng, run_id = turns.rng, f"run-{first}"
    # A job may want parts of another size the next time, and then writes other ones.
    store = open_store(turns.location(writer), run_id, take_over=True, part_rows=rng.choice([3, 7, 50]))
    played.takeovers += 1
    with store:
        row = first
        for _ in range(rng.randrange(1, 7)):
            entries = settled(row, ROWS, run_id=run_id)
            played.tried += ROWS
            change = store.commit(entries)
            played.counted.update(entry.record.custom_id for entry in entries if isinstance(entry, SettledEntry))
            store.apply(change)
            row += ROWS
            if rng.random() < 0.4:
                store.apply(store.finish())
        if rng.random() < 0.5:
            store.apply(store.finish())


def broken(played: Played) -> list[str]:
    """Say what does not hold."""
    told = []
    if played.missing:
        told.append(f"{len(played.missing)} counted records are gone")
    if played.false_alarms:
        told.append(f"{played.false_alarms} runs took their own write for another's")
    if played.twice:
        told.append(f"{len(set(played.twice))} records were there twice")
    if not SPEND.cost * len(played.counted) <= played.spent <= SPEND.cost * played.tried:
        told.append(f"costs of {played.spent}, for {len(played.counted)} to {played.tried} records")
    return told


def _play_many(seeds: range) -> Counter[str]:
    seen: Counter[str] = Counter()
    for seed in seeds:
        played = play(seed)
        assert not broken(played), (seed, broken(played))
        seen.update(played.injected, takeovers=played.takeovers, lost=played.lost_outputs, counted=len(played.counted))
    return seen


def test_rivals_lose_nothing_and_tell_nothing_twice() -> None:
    seen = _play_many(range(8))
    # The faults were there: a test without them would hold for any protocol.
    assert all(seen[name] > 5 for name in ("lost_answer", "cut", "late", "stall", "kill", "takeovers", "lost")), seen
    assert seen["counted"] > 100


@pytest.mark.long
@pytest.mark.timeout(1_500)
def test_many_rivals_lose_nothing() -> None:
    _play_many(range(1_000, 3_000))


def _delete_fences(patch: pytest.MonkeyPatch) -> None:
    slots = lambda self, generation: [  # noqa: E731
        f"journal/{generation:010d}/{name}" for name, _ in self._bucket.listed(f"journal/{generation:010d}")
    ]
    patch.setattr(ObjectJournals, "_slots", slots)


def _put_plainly(patch: pytest.MonkeyPatch) -> None:
    create = ObjectBucket.create

    def put(self: ObjectBucket, name: str, data: bytes) -> object:
        return self.put(name, data) if name.startswith("journal/") else create(self, name, data)

    patch.setattr(ObjectBucket, "create", put)


def _skip_slots(patch: pytest.MonkeyPatch) -> None:
    def create(self: ObjectBucket, name: str, data: bytes) -> object:
        folder, _, slot = name.rpartition("/")
        for number in range(int(slot), 10_000):
            try:
                return self.objects.put(self.path(f"{folder}/{number:010d}"), data, create=True)
            except (ConditionFailedError, UnclearError):
                continue
        raise AssertionError

    real = ObjectBucket.create

    def chosen(self: ObjectBucket, name: str, data: bytes) -> object:
        return (create if name.startswith("journal/") else real)(self, name, data)

    patch.setattr(ObjectBucket, "create", chosen)


def _ignore_the_epoch(patch: pytest.MonkeyPatch) -> None:
    def change(self: ObjectHold, *, wait: float | None = None, **fields: Any) -> None:
        self.record = {**self.record, **fields}

    patch.setattr(ObjectHold, "change", change)


def _take_own_write_for_anothers(patch: pytest.MonkeyPatch) -> None:
    def create(self: ObjectBucket, name: str, data: bytes) -> object:
        while True:
            try:
                return self.objects.put(self.path(name), data, create=True)
            except ConditionFailedError as error:
                raise OtherContentError(name, self.get(name)) from error
            except UnclearError:
                continue

    patch.setattr(ObjectBucket, "create", create)


def _take_anothers_write_for_own(patch: pytest.MonkeyPatch) -> None:
    def create(self: ObjectBucket, name: str, data: bytes) -> object:
        while True:
            try:
                return self.objects.put(self.path(name), data, create=True)
            except ConditionFailedError:
                found = self.head(name)
                if found is not None:
                    return found.tag
            except UnclearError:
                continue

    patch.setattr(ObjectBucket, "create", create)


def _settle_no_part(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Dataset, "settle", lambda self: None)


def _replace_parts_plainly(patch: pytest.MonkeyPatch) -> None:
    replace = ObjectBucket.replace

    def put(self: ObjectBucket, name: str, data: bytes, tag: Any, **more: Any) -> object:
        return self.put(name, data) if name.endswith(".parquet") else replace(self, name, data, tag, **more)

    patch.setattr(ObjectBucket, "replace", put)


def _begin_generations_alone(patch: pytest.MonkeyPatch) -> None:
    def create(self: ObjectJournals, generation: int) -> ObjectLog:
        return ObjectLog(self._bucket, generation, self._holding)

    patch.setattr(ObjectJournals, "create", create)


def _fence_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ObjectJournals, "fence", lambda self: None)


# Each with the first seed to try: the one that showed it when this was written. The order of requests may change.
MUTANTS = [
    (_delete_fences, 1),
    (_put_plainly, 1),
    (_skip_slots, 0),
    (_ignore_the_epoch, 2),
    (_take_own_write_for_anothers, 1),
    (_take_anothers_write_for_own, 0),
    (_settle_no_part, 16),
    (_replace_parts_plainly, 26),
    (_begin_generations_alone, 0),
    (_fence_nothing, 1),
]


@pytest.mark.parametrize(
    ("mutant", "first"), one_in(8, MUTANTS), ids=lambda value: getattr(value, "__name__", "").strip("_")
)
def test_each_step_of_the_protocol_is_needed(mutant: Callable[[pytest.MonkeyPatch], None], first: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        mutant(patch)
        for seed in range(first, first + 100):
            try:
                if broken(play(seed)):
                    return
            except (StorageError, FileNotFoundError):
                return  # it went wrong so far that the output cannot be read
    pytest.fail("no seed shows what is lost without it")
