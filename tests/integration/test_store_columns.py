"""Outputs whose columns grow: those of an earlier version, and those that get `parsed` later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchchat.errors import UsageError
from batchchat.inspection import status_of
from batchchat.records import FIRST_COLUMNS, RECORD_COLUMNS
from batchchat.report.outcome import outcome_of
from batchchat.store import SettledEntry, Store, earlier_prompts, read_output, read_state, verify
from batchchat.store.frames import encode
from batchchat.store.journal import HEADER, RECORD
from batchchat.structured import parsed_field
from tests.store_cases import (
    SCHEMA,
    SPEND,
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
from tests.thorough import one_in

TICKET = {
    "type": "object",
    "properties": {
        "label": {"enum": ["billing", "bug"]},
        "spans": {"type": "array", "items": {"type": "object", "properties": {"from": {"type": "integer"}}}},
        "note": {},
    },
}
FIELD = parsed_field(TICKET)
VALUE = {"label": "bug", "spans": [{"from": 3}, {"from": None}], "note": '{"any":1}'}
LATER = [name for name in RECORD_COLUMNS if name not in FIRST_COLUMNS]


def typed_store(directory: Path, run_id: str = "run-1", **options: Any) -> Store:
    return open_store(directory, run_id, **{"parsed": FIELD, **options})


def make_older(path: Path) -> None:
    """Write a part, or an archive file, as the first version did."""
    table = pq.read_table(path)
    pq.write_table(table.select([*SCHEMA.names, *FIRST_COLUMNS]), path, write_page_checksum=True)


def older_output(directory: Path) -> None:
    """Three parts, an archive file and nothing that a later version wrote."""
    with open_store(directory, part_rows=4) as store:
        commit(store, settled(0, 12))
        seal(store)
        commit(store, settled(0, 2, prompt="edited"))
        seal(store)
    for path in [*directory.glob("data/*.parquet"), *directory.glob("_batchchat/archive/*.arc")]:
        make_older(path)


def counted(directory: Path, sql: str) -> list[tuple[Any, ...]]:
    with duckdb.connect() as connection:
        return connection.execute(sql.replace("data", f"read_parquet('{directory}/data/*.parquet')")).fetchall()


def test_an_output_of_the_first_version_reads_as_if_it_had_all_columns(tmp_path: Path) -> None:
    older_output(tmp_path)
    table = read_output(tmp_path)
    assert table.schema.names == [*SCHEMA.names, *RECORD_COLUMNS]
    assert table.num_rows == 12
    assert all(table.column(name).null_count == 12 for name in LATER)
    assert read_output(tmp_path, columns=["corrections"]).num_rows == 12
    assert verify(tmp_path).problems == []


@pytest.mark.parametrize("parsed", [None, FIELD])
def test_its_parts_get_the_columns_when_the_next_one_is_published(tmp_path: Path, parsed: pa.Field | None) -> None:
    older_output(tmp_path)
    with open_store(tmp_path, "run-2", part_rows=4, parsed=parsed) as store:
        assert store.counts().live == 12
        assert set(store.fetch_archived(_archived(tmp_path))) == set(_archived(tmp_path))
        commit(store, settled(11, 3, run_id="run-2", corrections=2, tolerated=True, parsed=VALUE if parsed else None))
        seal(store)
    schemas = [pq.read_schema(path) for path in sorted((tmp_path / "data").iterdir())]
    assert len(schemas) > 3
    assert all(schema.names == schemas[0].names and schema.types == schemas[0].types for schema in schemas)
    assert schemas[0].names == [*SCHEMA.names, *RECORD_COLUMNS, *(["parsed"] if parsed else [])]
    assert counted(tmp_path, "select count(*), sum(corrections), count(tolerated) from data") == [(14, 6, 3)]
    if parsed:
        assert counted(tmp_path, "select parsed.label, count(*) from data group by all order by all") == [
            ("bug", 3),
            (None, 11),
        ]
    assert verify(tmp_path).problems == []


def _archived(directory: Path) -> list[str]:
    found = [pq.read_table(path) for path in directory.glob("_batchchat/archive/*.arc")]
    return [text for table in found for text in table.column("custom_id").to_pylist()]


def test_its_archive_takes_and_gives_records_of_both_kinds(tmp_path: Path) -> None:
    older_output(tmp_path)
    with typed_store(tmp_path, "run-2") as store:
        commit(store, settled(0, 2, run_id="run-2", prompt="typed", parsed=VALUE, corrections=1))
        seal(store)
        commit(store, settled(0, 2, run_id="run-2", prompt="again", parsed=None))
        seal(store)
        ids = _archived(tmp_path)
        found = store.fetch_archived(ids)
    assert len(ids) == 6
    assert set(found) == set(ids)
    parsed = [found[text]["parsed"] for text in ids]
    assert parsed == [None, None, None, None, VALUE, VALUE]
    assert [found[text]["corrections"] for text in ids] == [None, None, None, None, 1, 1]
    assert verify(tmp_path).problems == []


def test_a_journal_of_the_first_version_is_recovered(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        commit(store, settled(0, 3))
        path = journal_path(tmp_path, 1)
        frames = _frames_as_of_the_first_version(path)
    path.write_bytes(frames)
    assert [row["completion"] for row in live(tmp_path)] == ["answer 0 ", "answer 1 ", "answer 2 "]
    with typed_store(tmp_path, "run-2") as store:
        assert store.recovery.records == 3
    (found,) = (pq.read_table(part) for part in (tmp_path / "data").iterdir())
    assert found.column("completion").to_pylist() == ["answer 0 ", "answer 1 ", "answer 2 "]
    assert found.schema.names[-1] == "parsed"
    assert found.column("corrections").null_count == 3


def _frames_as_of_the_first_version(path: Path) -> bytes:
    from batchchat.store.frames import FrameReader

    written = b""
    with path.open("rb") as file:
        for frame in FrameReader(file):
            payload: bytes = frame.payload
            if frame.kind == HEADER:
                header = orjson.loads(payload)
                payload = orjson.dumps({name: header[name] for name in ("format", "generation", "run_id")})
            elif frame.kind == RECORD:
                number, place, values, spend = orjson.loads(payload)
                payload = orjson.dumps([number, place, values[: len(FIRST_COLUMNS)], spend])
            written += encode(frame.kind, frame.sequence, payload)
    return written


def test_a_typed_record_survives_a_crash_between_commit_and_part(tmp_path: Path) -> None:
    with typed_store(tmp_path) as store:
        commit(store, settled(0, 2, parsed=VALUE))
    assert read_output(tmp_path).column("parsed").to_pylist() == [VALUE, VALUE]
    with open_store(tmp_path, "run-2") as store:  # a job without a schema: the column stays
        assert store.recovery.records == 2
        commit(store, settled(2, 1))
        seal(store)
    assert read_output(tmp_path).column("parsed").to_pylist() == [VALUE, VALUE, None]
    schema = pq.read_schema(tmp_path / "data" / "part-00000.parquet")
    assert (schema.field("parsed").type, schema.names[-1]) == (FIELD.type, "parsed")
    assert verify(tmp_path).problems == []


def test_another_type_of_parsed_is_refused_once_there_are_records(tmp_path: Path) -> None:
    other = parsed_field({"type": "object", "properties": {"label": {"type": "integer"}}})
    with typed_store(tmp_path):
        pass
    with typed_store(tmp_path, parsed=other):  # nothing has been answered yet
        pass
    with typed_store(tmp_path) as store:
        commit(store, settled(0, 1, parsed=VALUE))
    for _ in range(2):  # with the record in the journal, then in a part
        with pytest.raises(UsageError, match=r"needs --fresh: .*parsed.label was text and is integer"):
            typed_store(tmp_path, parsed=other)
        with typed_store(tmp_path) as store:
            seal(store)
    with typed_store(tmp_path, parsed=other, fresh=True) as store:
        assert store.counts().live == 0


@pytest.mark.parametrize("name", one_in(5, LATER))
def test_an_input_column_with_the_name_of_a_later_one_stays_that_of_the_input(tmp_path: Path, name: str) -> None:
    schema = pa.schema([("ticket", pa.string()), (name, pa.string())])

    def records(first: int, count: int, **more: Any) -> list[Any]:
        texts = [f"mine {n}" for n in range(first, first + count)]
        batch = row_batch(first, count, pa.RecordBatch.from_arrays([pa.array(texts)] * 2, schema=schema))
        return [SettledEntry(record(batch, offset, **more), SPEND) for offset in range(count)]

    own = [column for column in RECORD_COLUMNS if column != name]
    with open_store(tmp_path, input_schema=schema) as store:
        commit(store, records(0, 3))
        seal(store)
    # A part as the first version wrote it.
    (path,) = (tmp_path / "data").iterdir()
    pq.write_table(pq.read_table(path).select([*schema.names, *FIRST_COLUMNS]), path, write_page_checksum=True)
    with open_store(tmp_path, "run-2", input_schema=schema) as store:
        commit(store, records(3, 1, run_id="run-2"))
        seal(store)
        commit(store, records(4, 1, run_id="run-2"))  # stays in the journal
    assert read_output(tmp_path).schema.names == [*schema.names, *own]
    (tmp_path / "_batchchat" / "schema.json").unlink()  # the records themselves tell their types
    with open_store(tmp_path, "run-3", input_schema=None) as store:
        assert store.recovery.records == 1
        commit(store, records(0, 1, run_id="run-3", prompt="edited"))
        seal(store)
        (old,) = store.fetch_archived([identity((0, ""))]).values()
    assert old["completion"] == "answer 0 "
    table = read_output(tmp_path)
    assert table.schema.names == [*schema.names, *own]
    assert sorted(table.column(name).to_pylist()) == [f"mine {n}" for n in range(5)]
    assert counted(tmp_path, f"select count({name}), count(completion) from data") == [(5, 5)]
    assert earlier_prompts(tmp_path, "none") == 0
    status = status_of(tmp_path)
    assert (status.ok, status.earlier_prompt) == (5, 0)
    assert outcome_of(read_state(tmp_path)).ok == 5
    assert verify(tmp_path).problems == []


def test_a_journal_with_columns_of_a_later_version_is_not_read_halfway(tmp_path: Path) -> None:
    from batchchat.errors import StorageError

    with open_store(tmp_path):
        pass
    header = {"format": 1, "generation": 9, "run_id": "r", "columns": [*RECORD_COLUMNS, "mood"]}
    journal_path(tmp_path, 9).write_bytes(encode(HEADER, 0, orjson.dumps(header)))
    with pytest.raises(StorageError, match="a later version"):
        open_store(tmp_path, "run-2")
