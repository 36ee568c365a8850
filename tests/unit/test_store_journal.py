"""The journal gives back what was committed: records with their input rows, answers, costs."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from batchchat.errors import StorageError
from batchchat.records import RECORD_COLUMNS, Spend
from batchchat.store import AnswerEntry, Entry, SettledEntry, SpendOnly
from batchchat.store.frames import encode
from batchchat.store.journal import HEADER, Journal, replay
from batchchat.store.location.folder_files import FolderJournals
from batchchat.store.pending import Pending, to_batch
from batchchat.store.schema import output_schema
from tests.store_cases import RICH, SCHEMA, SPEND, answer, identity, record, rich_rows, row_batch, settled


def files(folder: Path) -> FolderJournals:
    return FolderJournals(folder, damaged=folder / "damaged")


def path_of(folder: Path) -> Path:
    return files(folder).path(1)


def journal(folder: Path, schema: pa.Schema = SCHEMA, **options: Any) -> Journal:
    return Journal.create(files(folder), 1, run_id="run-1", input_schema=schema, **options)


def read(folder: Path) -> tuple[list[Any], Any]:
    """Return the records of a journal, and what else it says."""
    records: list[Any] = []
    found = replay(files(folder), 1, records.append)
    assert found.records == len(records)
    return records, found


def write(log: Journal, entries: list[Entry]) -> list[Any]:
    records = log.encode(entries)
    log.write()
    log.synchronize()
    return records


def test_records_come_back_with_their_input_rows_in_their_types(tmp_path: Path) -> None:
    batch = row_batch(0, 100, rich_rows(100))
    log = journal(tmp_path, RICH)
    calls = ({"id": "c1", "type": "function", "name": "f", "arguments": '{"x": 1}'},)
    written = write(log, [SettledEntry(record(batch, 7, tool_calls=calls, latency_s=0.125), SPEND)])
    written += write(log, [SettledEntry(record(batch, offset), SPEND) for offset in range(40, 60)])
    log.close()
    records, found = read(tmp_path)
    schema = output_schema(RICH)
    assert found.damage is None
    assert (found.generation, found.run_id) == (1, "run-1")
    back = to_batch(records, schema)
    assert back.equals(to_batch(written, schema))
    assert back.column("tool_calls")[0].as_py() == list(calls)
    assert back.column("when")[0].value == 1_700_000_000_123_456_789 + 7
    assert found.spend == Spend(21, 210, 105, 315, 0, 0, 5.25)


def test_few_rows_of_a_batch_bring_only_themselves_many_bring_it_once(tmp_path: Path) -> None:
    wide = pa.RecordBatch.from_arrays([pa.array(["x"] * 1600), pa.array(["y" * 1000] * 1600)], schema=SCHEMA)
    batch = row_batch(0, 1600, wide)
    log = journal(tmp_path)
    write(log, [SettledEntry(record(batch, 0))])
    assert log.size < 10_000
    write(log, [SettledEntry(record(batch, offset)) for offset in range(1, 200)])
    once = log.size
    assert once > wide.nbytes
    write(log, [SettledEntry(record(batch, offset)) for offset in range(200, 1600)])
    assert log.size - once < 1_000_000
    log.close()
    assert to_batch(read(tmp_path)[0], output_schema(SCHEMA)).column("row_index").to_pylist() == list(range(1600))


def test_the_journal_keeps_no_row_batch_alive(tmp_path: Path) -> None:
    log = journal(tmp_path)
    batch = row_batch(0, 10)
    columns = weakref.ref(batch.columns)
    write(log, [SettledEntry(record(batch, 0))])
    del batch
    gc.collect()
    assert columns() is None
    log.close()


def test_a_row_batch_at_the_address_of_a_freed_one_is_not_taken_for_it(tmp_path: Path) -> None:
    log = journal(tmp_path)
    addresses = set()
    for first in range(0, 200, 2):
        batch = row_batch(first, 2)
        addresses.add(id(batch.columns))
        write(log, [SettledEntry(record(batch, 1))])
        del batch
    log.close()
    assert len(addresses) < 100  # addresses were used again, else this test shows nothing
    tickets = to_batch(read(tmp_path)[0], output_schema(SCHEMA)).column("ticket").to_pylist()
    assert tickets == [f"t{row}" for row in range(1, 200, 2)]


def test_text_that_no_utf8_can_hold_and_huge_numbers_are_stored_as_well_as_possible(tmp_path: Path) -> None:
    batch = row_batch(0, 3)
    log = journal(tmp_path)
    entries: list[Entry] = [
        SettledEntry(record(batch, 0, completion="a\ud800b", total_tokens=2**70, cost=float("nan"))),
        SettledEntry(record(batch, 1, http_status=2**40, completion="fine")),
        AnswerEntry(identity(5), 0, {"text": "\udc00", "n": 2**80}),
    ]
    written = write(log, entries)
    log.close()
    for records in (written, read(tmp_path)[0]):
        first, second = to_batch(records, output_schema(SCHEMA)).to_pylist()
        assert first["completion"] == "a\ufffdb"
        assert first["total_tokens"] is None
        assert (second["http_status"], second["completion"]) == (None, "fine")
    assert replay(files(tmp_path), 1).answers[0].payload == {"text": "\ufffd", "n": str(2**80)}


def test_input_columns_other_than_the_frozen_ones_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    log = journal(tmp_path)
    size = path_of(tmp_path).stat().st_size
    with pytest.raises(ValueError, match="differ from the frozen ones"):
        log.encode([*settled(0, 3), SettledEntry(record(row_batch(0, 5, rich_rows(5)), 0))])
    log.write()
    assert path_of(tmp_path).stat().st_size == size
    log.close()


def test_a_new_generation_carries_open_answers_that_cost_nothing_again(tmp_path: Path) -> None:
    log = journal(tmp_path, carried=[answer(1, 0), answer(1, 1)])
    write(log, [answer(2, 0), SpendOnly(SPEND)])
    log.close()
    found = replay(files(tmp_path), 1)
    assert [(each.custom_id, each.step) for each in found.answers] == [
        (identity((1, "")), 0),
        (identity((1, "")), 1),
        (identity((2, "")), 0),
    ]
    assert found.answers[1].payload == {"text": "step 1"}
    assert found.spend.requests == 2


def test_a_journal_of_a_later_version_is_refused_by_name(tmp_path: Path) -> None:
    files(tmp_path).path(3).write_bytes(encode(HEADER, 0, b'{"format":2,"generation":3,"run_id":"r"}'))
    with pytest.raises(StorageError, match=r"journal-0000000003\.log was written by a later version"):
        replay(files(tmp_path), 3)


def test_a_generation_never_overwrites_another(tmp_path: Path) -> None:
    journal(tmp_path).close()
    with pytest.raises(StorageError, match="exist"):
        journal(tmp_path)
    assert files(tmp_path).generations() == [1]


def test_pending_records_are_kept_in_few_chunks_whatever_they_come_from(tmp_path: Path) -> None:
    log = journal(tmp_path)
    pending = Pending(output_schema(SCHEMA))
    expected = []
    for first in range(0, 2400, 2):  # each row batch gives one record only: none may be kept alive for long
        batch = row_batch(first, 2)
        pending.add(log.encode([SettledEntry(record(batch, 1))]))
        expected.append(first + 1)
    log.close()
    batches = pending.batches()
    assert pending.rows == 1200
    assert len(batches) <= 3
    assert [n for batch in batches for n in batch.column("row_index").to_pylist()] == expected
    raw = sum(batch.nbytes for batch in batches)
    assert raw * 0.5 < pending.nbytes < raw * 2


def test_every_record_column_has_a_place(tmp_path: Path) -> None:
    batch = row_batch(0, 1)
    log = journal(tmp_path)
    (found,) = log.encode([SettledEntry(record(batch, 0))])
    log.close()
    assert len(found.values) == len(RECORD_COLUMNS)


def check_damage(folder: Path, damage: Callable[[bytes, int], bytes], step: int) -> None:
    """Damage a journal at every `step` bytes: commits before the place come back, and nothing that was not written."""
    log = journal(folder)
    path = path_of(folder)
    written: list[Any] = []
    ends = [(path.stat().st_size, 0)]
    for first, count in ((0, 1), (1, 2)):
        written += [list(each.values) for each in write(log, settled(first, count))]
        ends.append((path.stat().st_size, len(written)))
    log.close()
    whole = path.read_bytes()
    for place in {*range(0, len(whole), step), *(end for end, _ in ends[:-1])}:
        damaged = damage(whole, place)
        path.write_bytes(damaged)
        records, found = read(folder)
        assert [list(each.values) for each in records] == written[: len(records)]
        assert len(records) >= max((count for end, count in ends if end <= place), default=0)
        assert (found.damage is None) == (
            damaged == b"" or (place in {end for end, _ in ends} and len(damaged) == place)
        )
        if found.damage is not None:
            assert found.damage.offset <= place
            assert found.damage.offset + found.damage.dropped == len(damaged)


def cut(whole: bytes, place: int) -> bytes:
    return whole[:place]


def flip(whole: bytes, place: int) -> bytes:
    return whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :]


@pytest.mark.parametrize("damage", [cut, flip])
def test_damaged_anywhere_it_gives_back_every_commit_before(
    tmp_path: Path, damage: Callable[[bytes, int], bytes]
) -> None:
    check_damage(tmp_path, damage, 7)


@pytest.mark.long
@pytest.mark.parametrize("damage", [cut, flip])
def test_damaged_at_any_byte_it_gives_back_every_commit_before(
    tmp_path: Path, damage: Callable[[bytes, int], bytes]
) -> None:
    check_damage(tmp_path, damage, 1)
