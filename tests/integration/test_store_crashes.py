"""A crash at any instant, or damaged bytes: what was counted is there, once, and nothing else is."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from batchchat.records import Spend
from batchchat.store import AnswerEntry, Entry, SettledEntry, Store, read_state, verify
from tests.store_cases import (
    POINTS,
    SPEND,
    answer,
    commit,
    identity,
    journal_path,
    live,
    open_store,
    record,
    row_batch,
    seal,
    settled,
)
from tests.thorough import examples, one_in


class Crash(BaseException):
    """Stands for the end of the process."""


def crash_at(name: str, occurrence: int = 1) -> Callable[[str], None]:
    left = [occurrence]

    def point(passed: str) -> None:
        if passed == name:
            left[0] -= 1
            if left[0] == 0:
                raise Crash(name)

    return point


def first_run(directory: Path) -> None:
    """Leave 12 records in three parts: one failed, the rest to be kept or changed by the second run."""
    with open_store(directory, part_rows=5) as store:
        commit(store, [*settled(0, 3), *settled(3, 1, failed="server"), *settled(4, 8)])
        seal(store)


def second_run(store: Store, counted: list[Entry]) -> None:
    """Retry a failure, change two rows, add some; seal half way. `counted` takes what was committed for sure."""

    def do(entries: list[Entry]) -> None:
        change = store.commit(entries)
        counted.extend(entries)
        store.apply(change)

    do([*settled(3, 1, run_id="run-2"), answer(50, 0)])
    do([*settled(0, 1, prompt="new", run_id="run-2"), *settled(5, 1, prompt="new", run_id="run-2")])
    do(settled(12, 3, run_id="run-2"))
    store.apply(store.finish())
    do([*settled(15, 2, run_id="run-2"), answer(50, 1), answer(51, 0)])
    do([SettledEntry(record(row_batch(51, 1), 0, run_id="run-2"), SPEND)])
    store.apply(store.finish())


def check(directory: Path, counted: list[Entry], launched: int) -> None:
    """Every counted record is live once, superseded ones are gone, and the ledger has every counted cost once."""
    found = live(directory, "row_index", "custom_id", "run_id")
    rows = [row["row_index"] for row in found]
    assert len(rows) == len(set(rows)), "a row has two live records"
    ids = {row["custom_id"]: row["run_id"] for row in found}
    for entry in counted:
        if isinstance(entry, SettledEntry):
            assert ids[entry.record.custom_id] == entry.record.run_id
    assert set(range(12)) <= set(rows)
    answers = {(each.custom_id, each.step) for steps in read_state(directory).answers.values() for each in steps}
    for entry in counted:
        if isinstance(entry, AnswerEntry) and entry.custom_id not in ids:
            assert (entry.custom_id, entry.step) in answers
    lines = [json.loads(line) for line in (directory / "_batchchat" / "ledger.jsonl").read_text().splitlines()]
    assert len({line["generation"] for line in lines}) == len(lines)
    spent = read_state(directory).spend_by_run.get("run-2", Spend()).requests
    assert len(counted) <= spent <= len(counted) + launched
    assert verify(directory).problems == []


@pytest.mark.parametrize("name", POINTS)
@pytest.mark.parametrize("occurrence", one_in(2, [1, 3]))
def test_a_crash_at_any_point_loses_nothing_and_doubles_nothing(tmp_path: Path, name: str, occurrence: int) -> None:
    first_run(tmp_path)
    counted: list[Entry] = []
    store = open_store(tmp_path, "run-2", part_rows=5, point=crash_at(name, occurrence))
    with suppress(Crash):
        second_run(store, counted)
    store.close()
    check(tmp_path, counted, 4)  # as a reader sees it, before any recovery
    with open_store(tmp_path, "run-3", part_rows=5) as store:
        assert store.recovery.messages == []
        assert store.counts().live == len(live(tmp_path))
    check(tmp_path, counted, 4)
    again = live(tmp_path)
    with open_store(tmp_path, "run-4", part_rows=5) as store:
        assert store.recovery.records == 0
    assert live(tmp_path) == again


@pytest.mark.parametrize(("name", "again"), [("seal.rewritten", 6), ("seal.published", 0), ("seal.ledger", 0)])
def test_what_a_crashed_seal_had_published_is_not_published_again(tmp_path: Path, name: str, again: int) -> None:
    first_run(tmp_path)
    store = open_store(tmp_path, "run-2", part_rows=5, point=crash_at(name))
    with pytest.raises(Crash):
        second_run(store, [])
    store.close()
    archived = verify(tmp_path).archived
    with open_store(tmp_path, "run-3", part_rows=5) as store:
        assert store.recovery.records == again
    assert verify(tmp_path).archived == archived == 3


@pytest.mark.parametrize("before", ["commit.after", "seal.published"])
@pytest.mark.parametrize(
    "name",
    one_in(
        4, ["recover.begin", *(name for name in POINTS if name.startswith("seal")), "recover.sealed", "recover.end"]
    ),
)
def test_a_crash_during_recovery_is_recovered_from(tmp_path: Path, before: str, name: str) -> None:
    first_run(tmp_path)
    counted: list[Entry] = []
    store = open_store(tmp_path, "run-2", part_rows=5, point=crash_at(before, 3 if before == "commit.after" else 1))
    with pytest.raises(Crash):
        second_run(store, counted)
    store.close()
    for attempt in range(2):
        try:
            open_store(tmp_path, f"run-3-{attempt}", part_rows=5, point=crash_at(name)).close()
        except Crash:
            check(tmp_path, counted, 4)
    open_store(tmp_path, "run-4", part_rows=5).close()
    check(tmp_path, counted, 4)


@pytest.mark.parametrize("name", ["seal.archived", "seal.rewritten"])
def test_a_crash_while_pruning_leaves_every_record_live_or_archived(tmp_path: Path, name: str) -> None:
    first_run(tmp_path)
    store = open_store(tmp_path, "run-2", point=crash_at(name))
    with pytest.raises(Crash):
        store.archive_unseen()
    store.close()
    with open_store(tmp_path, "run-3") as store:
        oks = [identity((row, "")) for row in range(12) if row != 3]
        live_now = {row["custom_id"] for row in live(tmp_path, "custom_id")}
        assert set(store.fetch_archived(oks)) | live_now >= set(oks)


CHILD = """
import os, signal, sys
from pathlib import Path
from tests.integration.test_store_crashes import second_run
from tests.store_cases import open_store

left = int(sys.argv[3])
def point(name):
    global left
    if name == sys.argv[2]:
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

class Told(list):
    def extend(self, entries):
        super().extend(entries)
        print(len(self), flush=True)

second_run(open_store(Path(sys.argv[1]), "run-2", part_rows=5, point=point), Told())
"""


@pytest.mark.parametrize(
    ("name", "occurrence"), one_in(3, [("commit.written", 3), ("seal.part_written", 2), ("seal.published", 1)])
)
def test_a_killed_process_leaves_all_that_it_had_counted(tmp_path: Path, name: str, occurrence: int) -> None:
    first_run(tmp_path)
    process = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path), name, str(occurrence)],
        stdout=subprocess.PIPE,
        check=False,
        timeout=60,
        cwd=Path(__file__).parents[2],
    )
    assert process.returncode == -signal.SIGKILL
    told = int(process.stdout.split()[-1])
    everything: list[Entry] = []
    copy = tmp_path.with_name(tmp_path.name + "-whole")
    first_run(copy)
    with open_store(copy, "run-2", part_rows=5) as store:
        second_run(store, everything)
    with open_store(tmp_path, "run-3", part_rows=5):
        pass  # the dead process holds no lock
    check(tmp_path, everything[:told], 4)


# ---- damaged bytes --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unsealed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[int, int]]]:
    """An output whose journal holds three commits, and (size, records) of the journal after each of them."""
    directory = tmp_path_factory.mktemp("unsealed") / "out"
    with open_store(directory) as store:
        commit(store, settled(0, 2))
        seal(store)
    ends = []
    with open_store(directory, "run-2") as store:
        for first, count in ((2, 2), (4, 1), (5, 2)):
            commit(store, settled(first, count, run_id="run-2"))
            ends.append((journal_path(directory, 2).stat().st_size, first + count))
    return directory, ends


def recover(source: Path, target: Path, journal: bytes) -> tuple[list[int], Store]:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    journal_path(target, 2).write_bytes(journal)
    store = open_store(target, "run-3")
    store.close()
    rows = live(target, "row_index", "completion", "ticket")
    for row in rows:  # never a wrong record
        assert (row["completion"], row["ticket"]) == (f"answer {row['row_index']} ", f"t{row['row_index']}")
    return [row["row_index"] for row in rows], store


def check_cuts(folder: Path, unsealed: tuple[Path, list[tuple[int, int]]], step: int) -> None:
    source, ends = unsealed
    whole = journal_path(source, 2).read_bytes()
    cuts = sorted(
        {*range(0, len(whole), step), *(end + step for end, _ in ends for step in (-1, 0, 1))} - {len(whole) + 1}
    )
    for cut in cuts:
        rows, store = recover(source, folder / "out", whole[:cut])
        at_least = max((records for end, records in ends if end <= cut), default=2)
        assert rows == list(range(len(rows)))
        assert at_least <= len(rows) <= 7
        assert store.recovery.records == len(rows) - 2
        assert bool(store.recovery.messages) == bool(store.recovery.dropped_bytes)
        assert not list((folder / "out" / "_batchchat").glob("journal*"))
        assert store.ledger_total().requests == len(rows)


def test_a_journal_cut_anywhere_keeps_every_commit_before(
    tmp_path: Path, unsealed: tuple[Path, list[tuple[int, int]]]
) -> None:
    check_cuts(tmp_path, unsealed, 211)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_journal_cut_at_any_byte_keeps_every_commit_before(
    tmp_path: Path, unsealed: tuple[Path, list[tuple[int, int]]]
) -> None:
    check_cuts(tmp_path, unsealed, 1)


@given(place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
@examples(25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_flipped_byte_in_the_journal_is_told_and_never_believed(
    tmp_path: Path, unsealed: tuple[Path, list[tuple[int, int]]], place: float, flip: int
) -> None:
    source, ends = unsealed
    data = bytearray(journal_path(source, 2).read_bytes())
    at = int(place * len(data))
    data[at] ^= flip
    rows, store = recover(source, tmp_path / "out", bytes(data))
    assert rows == list(range(len(rows)))
    assert len(rows) >= max((records for end, records in ends if end <= at), default=2)
    assert len(rows) < 7
    assert len(store.recovery.messages) == 1
    kept = [path.name for path in (tmp_path / "out" / "_batchchat" / "damaged").iterdir()]
    if "damaged at byte" in store.recovery.messages[0]:
        assert kept == ["journal-0000000002.log"]
        assert store.recovery.set_aside == [str(tmp_path / "out" / "_batchchat" / "damaged" / kept[0])]
    else:  # the last frame: not to be told from an unfinished write
        assert kept == []


@pytest.mark.parametrize("keep", [0, 3, 200, -1, -8])
def test_a_torn_part_is_set_aside_at_the_start_and_its_rows_are_open(tmp_path: Path, keep: int) -> None:
    with open_store(tmp_path, part_rows=4) as store:
        commit(store, settled(0, 8))
        seal(store)
    path = tmp_path / "data" / "part-00001.parquet"
    path.write_bytes(path.read_bytes()[:keep])
    assert any("part-00001.parquet" in problem for problem in verify(tmp_path).problems)
    with open_store(tmp_path, "run-2", part_rows=4) as store:
        assert "part-00001.parquet is damaged" in store.recovery.messages[0]
        assert store.counts().live == 4
        assert store.index.get(identity((5, ""))) == 0
        commit(store, settled(4, 4, run_id="run-2"))
        seal(store)
    assert [row["row_index"] for row in live(tmp_path)] == list(range(8))
    assert (tmp_path / "_batchchat" / "damaged" / "part-00001.parquet").exists()
    assert verify(tmp_path).problems == []


@pytest.mark.thorough
def test_a_torn_ledger_line_is_cut_and_its_generation_counted_once(tmp_path: Path) -> None:
    first_run(tmp_path)
    store = open_store(tmp_path, "run-2", part_rows=5, point=crash_at("seal.ledger"))
    counted: list[Entry] = []
    with pytest.raises(Crash):
        second_run(store, counted)
    store.close()
    ledger = tmp_path / "_batchchat" / "ledger.jsonl"
    whole = ledger.read_bytes()
    for torn in (len(whole), len(whole) - 1, len(whole) - 40):
        copy = tmp_path.with_name(f"copy-{torn}")
        shutil.copytree(tmp_path, copy)
        os.truncate(copy / "_batchchat" / "ledger.jsonl", torn)
        with open_store(copy, "run-3", part_rows=5) as store:
            assert store.ledger_of("run-2").requests == len(counted)
        check(copy, counted, 0)
