"""What users rely on in an output: nothing twice, nothing lost, nothing paid for again; run after run."""

from __future__ import annotations

import threading
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from batchchat.errors import StorageError, UsageError
from batchchat.records import ErrorKind, Record, Spend
from batchchat.store import (
    ARCHIVED,
    NONE,
    OK,
    SettledEntry,
    SpendOnly,
    Store,
    is_live,
    iter_output,
    kind_of,
    lock_holder,
    read_output,
    read_state,
    verify,
)
from tests.store_cases import (
    SPEND,
    answer,
    commit,
    identity,
    live,
    open_store,
    parts,
    record,
    row_batch,
    seal,
    settled,
)


def rows_of(directory: Path) -> list[int]:
    return [row["row_index"] for row in live(directory, "row_index")]


def test_a_run_leaves_a_dataset_and_the_next_one_finds_it_done(tmp_path: Path) -> None:
    with open_store(tmp_path / "new" / "out") as store:
        commit(store, [*settled(0, 5), *settled(5, 2, failed="timeout")])
        seal(store)
    with open_store(tmp_path / "new" / "out", "run-2") as store:
        assert store.recovery.messages == []
        counts = store.counts()
        assert (counts.ok, counts.failed, counts.seen, counts.kept) == (5, {ErrorKind.TIMEOUT: 2}, 0, 7)
        assert store.index.mark_seen(identity((3, ""))) == OK
        assert kind_of(store.index.mark_seen(identity((6, "")))) is ErrorKind.TIMEOUT
        assert store.index.mark_seen(identity((7, ""))) == NONE
        assert store.counts().seen == 2
        assert store.ledger_total() == Spend(7, 70, 35, 105, 0, 0, 1.75)
        assert store.keys is not None
        assert len(store.keys) == 7
    assert verify(tmp_path / "new" / "out").problems == []
    assert not list((tmp_path / "new" / "out" / "_batchchat").glob("journal*"))


def test_a_retried_failure_is_replaced_and_its_part_rewritten(tmp_path: Path) -> None:
    with open_store(tmp_path, part_rows=4) as store:
        commit(store, [*settled(0, 3), *settled(3, 1, failed="server"), *settled(4, 4)])
        seal(store)
    with open_store(tmp_path, "run-2", part_rows=4) as store:
        commit(store, settled(3, 1, run_id="run-2"))
        assert store.counts().live == 8
        seal(store)
        assert store.counts().ok == 8
    assert parts(tmp_path) == {"part-00000.parquet": 3, "part-00001.parquet": 4, "part-00002.parquet": 1}
    assert rows_of(tmp_path) == list(range(8))
    report = verify(tmp_path)
    assert report.problems == []
    assert (report.records, report.archived) == (8, 1)


def test_a_changed_row_with_a_key_replaces_its_old_record_and_going_back_costs_nothing(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        commit(store, settled(0, 6))
        seal(store)
    with open_store(tmp_path, "run-2") as store:
        commit(store, settled(1, 2, run_id="run-2", prompt="new"))
        seal(store)
        assert store.counts().ok == 6
        assert store.index.get(identity((1, ""))) == ARCHIVED
    assert [row["completion"] for row in live(tmp_path, "row_index", "completion")][:3] == [
        "answer 0 ",
        "answer 1 new",
        "answer 2 new",
    ]
    with open_store(tmp_path, "run-3") as store:
        wanted = [identity((1, "")), identity((2, "")), identity((5, "never asked"))]
        found = store.fetch_archived(wanted)
        assert sorted(found) == sorted(wanted[:2])
        batch = row_batch(0, 6)
        values = found[wanted[0]] | {"run_id": "run-3"}
        assert values["finished_at"] == record(batch, 1).finished_at
        revived = Record(batch, 1, **values)
        commit(store, [SettledEntry(revived)])
        seal(store)
        assert store.index.get(wanted[0]) == OK
        assert store.counts().ok == 6
        assert store.ledger_total().requests == 8
    assert [row["completion"] for row in live(tmp_path, "row_index", "completion")][1] == "answer 1 "
    assert verify(tmp_path).problems == []


def test_samples_of_one_key_live_side_by_side(tmp_path: Path) -> None:
    batch = row_batch(0, 1)
    for run, samples in (("run-1", (0,)), ("run-2", (1, 2))):
        with open_store(tmp_path, run) as store:
            commit(store, [SettledEntry(record(batch, 0, prompt=str(n), sample_index=n, run_id=run)) for n in samples])
            seal(store)
    assert [row["sample_index"] for row in live(tmp_path, "sample_index")] == [0, 1, 2]
    assert verify(tmp_path).archived == 0


def test_the_archive_grows_by_files_as_large_as_parts_and_finds_every_completion(tmp_path: Path) -> None:
    prompts = ["a", "b", "c", "d"]
    for number, prompt in enumerate(prompts):
        with open_store(tmp_path, f"run-{number}", part_rows=10) as store:
            commit(store, settled(0, 4, prompt=prompt, run_id=f"run-{number}"))
            seal(store)
            if number:
                previous = [identity((row, prompts[number - 1])) for row in range(4)]
                assert set(store.fetch_archived(previous)) == set(previous)
    assert len(list((tmp_path / "_batchchat" / "archive").iterdir())) == 2
    with open_store(tmp_path, "run-8", part_rows=20) as store:  # what is at hand of a file is not all of it for ever
        assert len(store.fetch_archived([identity((0, "c"))])) == 1
        commit(store, settled(0, 1, prompt="e", run_id="run-8"))
        seal(store)
        assert store.fetch_archived([identity((0, "d"))])[identity((0, "d"))]["completion"] == "answer 0 d"
    assert len(list((tmp_path / "_batchchat" / "archive").iterdir())) == 2
    with open_store(tmp_path, "run-9") as store:
        every = [identity((row, prompt)) for row in range(4) for prompt in prompts[:3]]
        found = store.fetch_archived(every)
        assert {custom_id: values["completion"] for custom_id, values in found.items()} == {
            identity((row, prompt)): f"answer {row} {prompt}" for row in range(4) for prompt in prompts[:3]
        }


def test_without_a_key_the_records_that_a_pass_did_not_meet_are_pruned_on_request(tmp_path: Path) -> None:
    with open_store(tmp_path, with_keys=False) as store:
        commit(store, settled(0, 5))
        seal(store)
    with open_store(tmp_path, "run-2", with_keys=False) as store:
        commit(store, settled(0, 2, prompt="edited", run_id="run-2"))
        store.index.mark_seen(identity((4, "")))
        seal(store)
        assert store.counts().kept == 4
        change = store.archive_unseen()
        store.apply(change)
        assert len(change.removed) == 4
        assert (store.counts().live, store.counts().kept) == (3, 0)
        assert store.index.get(identity((0, ""))) == ARCHIVED
        again = store.archive_unseen()
        assert list(again.removed) == []
    assert [row["completion"] for row in live(tmp_path, "completion")] == [
        "answer 0 edited",
        "answer 1 edited",
        "answer 4 ",
    ]
    assert verify(tmp_path).archived == 4


def test_a_small_last_part_grows_until_it_is_full_and_no_part_exceeds_its_rows(tmp_path: Path) -> None:
    with open_store(tmp_path, part_rows=10) as store:
        for first, count in ((0, 3), (3, 4), (7, 25)):
            commit(store, settled(first, count))
            seal(store)
    assert list(parts(tmp_path).values()) == [10, 10, 10, 2]
    with open_store(tmp_path, "run-2", part_rows=10) as store:
        commit(store, settled(32, 1))
        seal(store)
    assert list(parts(tmp_path).values()) == [10, 10, 10, 3]
    assert rows_of(tmp_path) == list(range(33))


def test_parts_are_bounded_in_bytes_too(tmp_path: Path) -> None:
    with open_store(tmp_path, part_bytes=200_000) as store:
        batch = row_batch(0, 30)
        commit(store, [SettledEntry(record(batch, i, completion="x" * 20_000)) for i in range(30)])
        assert store.should_seal(0.0)
        seal(store)
    assert len(parts(tmp_path)) == 4
    assert max(parts(tmp_path).values()) == 9


def test_an_emptied_part_is_removed(tmp_path: Path) -> None:
    with open_store(tmp_path, part_rows=3) as store:
        commit(store, settled(0, 6))
        seal(store)
    with open_store(tmp_path, "run-2", part_rows=3) as store:
        commit(store, settled(0, 3, prompt="b"))
        seal(store)
    assert parts(tmp_path) == {"part-00001.parquet": 3, "part-00002.parquet": 3}
    with open_store(tmp_path, "run-3", part_rows=3) as store:
        commit(store, settled(0, 6, prompt="c"))
        seal(store)
    assert rows_of(tmp_path) == list(range(6))
    assert verify(tmp_path).problems == []


def test_a_reader_sees_committed_records_before_they_are_published(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        commit(store, [*settled(0, 3), *settled(3, 1, failed="server")])
        seal(store)
    with open_store(tmp_path, "run-2") as store:
        commit(store, [*settled(3, 1, run_id="run-2"), *settled(1, 1, prompt="new", run_id="run-2"), *settled(4, 2)])
        assert rows_of(tmp_path) == [0, 1, 2, 3, 4, 5]
        by_row = {row["row_index"]: row["run_id"] for row in live(tmp_path, "row_index", "run_id")}
        assert (by_row[3], by_row[1], by_row[0]) == ("run-2", "run-2", "run-1")
        before = read_output(tmp_path).select(["row_index", "completion", "status"]).to_pylist()
        index, keys = read_state(tmp_path).load_index(with_keys=True)
        assert (index.counts().ok, keys is not None and len(keys)) == (6, 6)
        state = read_state(tmp_path)
        assert state.holder is not None
        assert state.holder["run_id"] == "run-2"
        assert state.spend == Spend(8, 80, 40, 120, 0, 0, 2.0)
        seal(store)
        assert read_output(tmp_path).select(["row_index", "completion", "status"]).to_pylist() == before
    assert sum(batch.num_rows for batch in iter_output(tmp_path, batch_rows=2, columns=["ticket"])) == 6
    assert lock_holder(tmp_path) is None


def test_readers_of_a_run_at_work_never_meet_a_row_twice_nor_miss_a_settled_one(tmp_path: Path) -> None:
    rows = 100
    with open_store(tmp_path, part_rows=20) as store:
        commit(store, settled(0, rows))
        seal(store)
    done = threading.Event()
    problems: list[str] = []

    def read() -> None:
        while not done.is_set():
            seen = [row["row_index"] for row in live(tmp_path, "row_index")]
            if len(seen) != len(set(seen)):
                problems.append("twice")

    reader = threading.Thread(target=read)
    reader.start()
    try:
        with open_store(tmp_path, "run-2", part_rows=20) as store:
            for first in range(0, rows, 25):
                commit(store, settled(first, 25, prompt="new", run_id="run-2"))
                seal(store)
    finally:
        done.set()
        reader.join()
    assert problems == []
    assert rows_of(tmp_path) == list(range(rows))


def test_commits_go_on_while_a_generation_is_sealed(tmp_path: Path) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def point(name: str) -> None:
        if name == "seal.part_written" and not go_on.is_set():
            inside.set()
            assert go_on.wait(10)

    changes = []
    with open_store(tmp_path, point=point) as store:
        commit(store, [*settled(0, 10), answer(99, 0)])
        sealing = store.rotate()
        assert sealing is not None
        assert sealing.rows == 10
        thread = threading.Thread(target=lambda: changes.append(store.seal(sealing)))
        thread.start()
        assert inside.wait(10)
        commit(store, settled(10, 5))
        assert not store.should_seal(1e9)  # one at a time
        with pytest.raises(RuntimeError, match="one sealing"):
            store.rotate()
        go_on.set()
        thread.join()
        store.apply(changes[0])
        assert store.should_seal(1e9) is False  # the clock of the new generation starts with the first look at it
        assert store.should_seal(2e9)
        seal(store)
        assert list(store.open_answers()) == [identity((99, ""))]
    assert rows_of(tmp_path) == list(range(15))


def test_rotation_waits_for_every_change_to_be_applied(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        change = store.commit(settled(0, 1))
        with pytest.raises(RuntimeError, match="apply every change"):
            store.rotate()
        store.apply(change)
        assert store.rotate() is not None


def test_seals_are_due_by_rows_by_seconds_or_by_the_length_of_the_journal(tmp_path: Path) -> None:
    with open_store(tmp_path / "a", part_rows=10, part_seconds=60) as store:
        assert not store.should_seal(0)
        commit(store, settled(0, 3))
        assert not store.should_seal(100)
        assert not store.should_seal(159)
        assert store.should_seal(160)
        commit(store, settled(3, 7))
        assert store.pending_rows == 10
        assert store.should_seal(101)
        seal(store)
        assert store.pending_rows == 0
        assert not store.should_seal(1000)
        assert store.rotate() is None
    with open_store(tmp_path / "b", part_bytes=1000) as store:
        while not store.should_seal(0):
            commit(store, [SpendOnly(SPEND)] * 10)
        seal(store)
        assert not store.should_seal(0)
        assert store.ledger_total().requests > 0


def test_answers_of_an_open_request_survive_runs_until_it_is_settled(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        commit(store, [answer(1, 0), answer(2, 0), *settled(0, 1)])
        seal(store)
        commit(store, [answer(1, 1)])
    with open_store(tmp_path, "run-2") as store:
        answers = store.open_answers()
        assert [each.step for each in answers[identity((1, ""))]] == [0, 1]
        assert answers[identity((1, ""))][1].payload == {"text": "step 1"}
        commit(store, settled(1, 1, run_id="run-2"))
        seal(store)
    with open_store(tmp_path, "run-3") as store:
        assert list(store.open_answers()) == [identity((2, ""))]
        assert list(read_state(tmp_path).answers) == [identity((2, ""))]
        assert store.ledger_total().requests == 5
        assert store.ledger_of("run-2").requests == 1
        store.drop_answers()
        seal(store)
    with open_store(tmp_path, "run-4") as store:
        assert store.open_answers() == {}
        assert store.ledger_total().requests == 5
    assert not list((tmp_path / "_batchchat").glob("journal*"))


def test_the_ledger_counts_what_brought_nothing_too(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        commit(store, [SpendOnly(SPEND)])
        commit(store, [SpendOnly(SPEND), *settled(0, 1)])
        assert store.ledger_of("run-1").requests == 3
    assert read_state(tmp_path).spend_by_run == {"run-1": Spend(3, 30, 15, 45, 0, 0, 0.75)}
    with open_store(tmp_path, "run-2") as store:
        assert store.ledger_total() == Spend(3, 30, 15, 45, 0, 0, 0.75)
        assert store.ledger_of("run-2") == Spend()
    assert read_state(tmp_path).spend_by_run == {"run-1": Spend(3, 30, 15, 45, 0, 0, 0.75)}


def test_a_run_leaves_its_snapshot_its_line_and_its_state(tmp_path: Path) -> None:
    with open_store(tmp_path, snapshot={"name": "job", "model": "m"}) as store:
        assert store.runs.read_state() == {}
        store.runs.save_state({"pass": "digest"})
        store.runs.write_live({"in_flight": 3})
        store.runs.write_live({"in_flight": 2})
        store.runs.append_run({"run_id": "run-1", "exit_code": 0})
        assert (tmp_path / "_batchchat" / "live.json").stat().st_mode & 0o777 == 0o600
    with (tmp_path / "_batchchat" / "runs.jsonl").open("ab") as runs:
        runs.write(b'{"run_id": "torn')
    with open_store(tmp_path, "run-2") as store:
        assert store.runs.read_state() == {"pass": "digest"}
        store.runs.append_run({"run_id": "run-2", "exit_code": 1})
    state = read_state(tmp_path)
    assert [run["run_id"] for run in state.runs] == ["run-1", "run-2"]
    assert state.live == {"in_flight": 2}
    assert state.job == {"name": "job"}
    assert state.snapshot("run-1") == {"name": "job", "model": "m"}
    assert state.snapshot("run-9") is None
    for path in (tmp_path / "_batchchat").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path
        assert path.suffix != ".parquet"


def test_the_input_is_frozen_at_the_first_run(tmp_path: Path) -> None:
    with open_store(tmp_path, input_schema=None) as store:
        assert store.input_schema is None
        with pytest.raises(ValueError, match="freeze the input"):
            store.commit(settled(0, 1))
    schema = row_batch(0, 1).columns.schema
    with open_store(tmp_path, "run-2", input_schema=None) as store:
        store.freeze_input(schema)
        commit(store, settled(0, 1))
        seal(store)
    with open_store(tmp_path, "run-3", input_schema=None) as store:
        assert store.input_schema == schema
        with pytest.raises(UsageError, match="differ from those"):
            store.freeze_input(schema.remove(0))
        with pytest.raises(StorageError, match="takes nothing more"):
            broken(store)


def broken(store: Store) -> None:
    with pytest.raises(ValueError, match="differ from the frozen"):
        store.commit([SettledEntry(record(row_batch(0, 1, row_batch(0, 1).columns.select(["ticket"])), 0))])
    store.commit(settled(1, 1))


def test_a_damaged_part_met_while_sealing_is_set_aside_and_its_rows_are_open(tmp_path: Path) -> None:
    with open_store(tmp_path, part_rows=4) as store:
        commit(store, settled(0, 8))
        seal(store)
    path = tmp_path / "data" / "part-00000.parquet"
    with open_store(tmp_path, "run-2", part_rows=4) as store:
        metadata = pq.read_metadata(path).row_group(0)
        column = next(
            metadata.column(n) for n in range(metadata.num_columns) if metadata.column(n).path_in_schema == "completion"
        )
        data = bytearray(path.read_bytes())
        data[column.data_page_offset + column.total_compressed_size // 2] ^= 0xFF
        path.write_bytes(bytes(data))
        assert any("part-00000.parquet" in problem for problem in verify(tmp_path).problems)
        commit(store, settled(1, 1, prompt="new", run_id="run-2"))
        change = seal(store)
        assert len(change.messages) == 1
        assert "part-00000.parquet is damaged" in change.messages[0]
        assert not is_live(store.index.get(identity((0, ""))))
        assert store.index.get(identity((5, ""))) == OK
        assert store.counts().live == 5
    assert (tmp_path / "_batchchat" / "damaged" / "part-00000.parquet").exists()
    assert rows_of(tmp_path) == [1, 4, 5, 6, 7]
    assert verify(tmp_path).problems == []


def test_verify_names_what_is_wrong(tmp_path: Path) -> None:
    with open_store(tmp_path, part_rows=3) as store:
        commit(store, settled(0, 6))
        seal(store)
    data = tmp_path / "data"
    (data / "part-00002.parquet").write_bytes((data / "part-00000.parquet").read_bytes())
    (data / "notes.txt").write_text("x")
    table = pq.read_table(data / "part-00001.parquet")
    wrong = table.set_column(table.schema.get_field_index("status"), "status", [["ok", "failed", "maybe"]])
    pq.write_table(wrong, data / "part-00001.parquet")
    pq.write_table(table.drop_columns(["ticket"]), data / "part-00003.parquet")
    (tmp_path / "_batchchat" / "ledger.jsonl").write_text("nonsense\n")
    text = "\n".join(verify(tmp_path).problems)
    assert "part-00002.parquet: 3 records whose custom_id is there already" in text
    assert "part-00001.parquet: 1 record with an unknown status" in text
    assert "part-00001.parquet: 1 record that failed without an error_kind" in text
    assert "part-00003.parquet: its columns are not those of the output" in text
    assert "notes.txt: not written by batchchat" in text
    assert "ledger.jsonl: 1 line is damaged" in text
