"""Parts: fixed types, checksums, and what other tools read in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchchat.records import RECORD_COLUMNS
from batchchat.store import RECORD_SCHEMA, Settled, output_schema, read_output
from batchchat.store.directory import Layout
from batchchat.store.parts import DamagedPartError, LocalFiles, PartReader, write_part
from tests.store_cases import RICH, SCHEMA, commit, open_store, record, rich_rows, row_batch, seal, settled


@pytest.fixture
def files(tmp_path: Path) -> LocalFiles:
    layout = Layout(tmp_path / "out")
    layout.create_base()
    layout.create_rest()
    return layout.parts()


def test_the_columns_are_those_of_the_contract() -> None:
    assert tuple(RECORD_SCHEMA.names) == RECORD_COLUMNS
    assert RECORD_SCHEMA.field("started_at").type == pa.timestamp("us", tz="UTC")
    assert RECORD_SCHEMA.field("row_index").type == pa.int64()
    assert RECORD_SCHEMA.field("sample_index").type == pa.int32()
    assert RECORD_SCHEMA.field("cost").type == pa.float64()
    extra = pa.schema([("parsed", pa.struct([("label", pa.string())]))])
    schema = output_schema(pa.schema([pa.field("a", pa.int8(), nullable=False)]), extra)
    assert schema.names == ["a", *RECORD_COLUMNS, "parsed"]
    assert schema.field("a").nullable
    with pytest.raises(ValueError, match="called status"):
        output_schema(pa.schema([("status", pa.string())]))


def test_types_are_the_same_where_everything_is_null(tmp_path: Path) -> None:
    for run, first in (("run-1", 0), ("run-2", 4)):
        with open_store(tmp_path, run, input_schema=RICH, part_rows=4) as store:
            columns = rich_rows(4)
            if first:
                columns = pa.RecordBatch.from_arrays([pa.nulls(4, f.type) for f in RICH], schema=RICH)
            batch = row_batch(first, 4, columns)
            commit(store, [Settled(record(batch, i, failed="input" if first else None)) for i in range(4)])
            seal(store)
    one, two = (pq.read_schema(path) for path in sorted((tmp_path / "data").iterdir()))
    assert one.names == two.names
    assert one.types == two.types
    assert one.types[: len(RICH)] == RICH.types
    assert read_output(tmp_path).select(RICH.names).slice(0, 4).equals(pa.Table.from_batches([rich_rows(4)]))


def test_duckdb_reads_the_folder_with_its_types(tmp_path: Path) -> None:
    with open_store(tmp_path, input_schema=RICH) as store:
        batch = row_batch(0, 50, rich_rows(50))
        calls = ({"id": "1", "type": "function", "name": "f", "arguments": "{}"},)
        commit(store, [Settled(record(batch, i, tool_calls=calls if i == 3 else None)) for i in range(50)])
        seal(store)
    with duckdb.connect() as connection:
        connection.execute("set timezone='UTC'")
        source = f"read_parquet('{tmp_path}/data/*.parquet')"
        types = dict(row[:2] for row in connection.execute(f"describe select * from {source}").fetchall())
        assert types["price"] == "DECIMAL(12,3)"
        assert types["blob"] == "BLOB"
        assert types["tags"] == "VARCHAR[]"
        assert types["big"] == "UBIGINT"
        assert types["nested"] == "STRUCT(a TINYINT, b STRUCT(c FLOAT)[])"
        assert types["started_at"] == "TIMESTAMP WITH TIME ZONE"
        assert types["tool_calls"] == 'STRUCT(id VARCHAR, "type" VARCHAR, "name" VARCHAR, arguments VARCHAR)[]'
        found = connection.execute(
            f"select nested.b[1].c, price, tool_calls[1].name, epoch_us(finished_at) from {source} where row_index=3"
        ).fetchone()
    assert found is not None
    assert (found[0], str(found[1]), found[2]) == (1.5, "0.375", "f")
    assert found[3] == record(batch, 3).finished_at


def test_nanoseconds_are_kept(tmp_path: Path) -> None:
    with open_store(tmp_path, input_schema=RICH) as store:
        commit(store, [Settled(record(row_batch(0, 2, rich_rows(2)), 1))])
        seal(store)
    assert read_output(tmp_path).column("when").cast(pa.int64()).to_pylist() == [1_700_000_000_123_456_790]


def test_records_of_a_part_are_sorted_by_row_and_sample(tmp_path: Path) -> None:
    with open_store(tmp_path, with_keys=False) as store:
        batch = row_batch(0, 3)
        entries = [
            Settled(record(batch, row, sample_index=sample, prompt=str(sample)))
            for row, sample in ((2, 0), (0, 1), (1, 0), (0, 0))
        ]
        commit(store, entries)
        seal(store)
    found = pq.read_table(tmp_path / "data" / "part-00000.parquet")
    assert found.select(["row_index", "sample_index"]).to_pylist() == [
        {"row_index": row, "sample_index": sample} for row, sample in ((0, 0), (0, 1), (1, 0), (2, 0))
    ]


def test_large_parts_are_written_in_row_groups(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        for first in range(0, 12_000, 3000):
            commit(store, settled(first, 3000))
        seal(store)
    metadata = pq.read_metadata(tmp_path / "data" / "part-00000.parquet")
    assert [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)] == [10_000, 2000]
    assert metadata.row_group(0).column(0).compression == "ZSTD"
    assert metadata.metadata[b"batchchat.job"] == b"job"


def one_part(files: LocalFiles, rows: int = 500) -> bytes:
    table = pa.table({"n": list(range(rows)), "text": [f"text {n} " * 5 for n in range(rows)]})
    files.publish("part-00000.parquet", lambda sink: write_part(sink, table.schema, [table]))
    return files.path("part-00000.parquet").read_bytes()


def test_flipped_or_missing_bytes_never_give_other_records(files: LocalFiles) -> None:
    data = one_part(files)
    path = files.path("part-00000.parquet")
    expected = pq.read_table(path).to_pylist()
    step = max(1, len(data) // 60)
    outcomes = {"damaged": 0, "same": 0}

    def read() -> Any:
        with PartReader(files, path.name) as reader:
            return reader.read().to_pylist()

    for place in range(0, len(data), step):
        for broken in (data[:place], data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :]):
            path.write_bytes(broken)
            try:
                found = read()
            except DamagedPartError as error:
                assert error.part == path.name
                outcomes["damaged"] += 1
            else:
                assert found == expected  # a byte that means nothing, as in statistics
                outcomes["same"] += 1
    assert outcomes["damaged"] > 80


def test_names_that_are_no_parts_are_left_alone(files: LocalFiles) -> None:
    one_part(files)
    for name in ("notes.txt", "part-1.parquet", "part-00001.parquet.tmp", "xpart-00001.parquet"):
        (files.path(name)).write_text("x")
    for number in (100_000, 99_999):
        (files.path(f"part-{number}.parquet")).write_text("x")
    assert files.names() == ["part-00000.parquet", "part-99999.parquet", "part-100000.parquet"]


def test_a_part_set_aside_never_replaces_another(files: LocalFiles) -> None:
    one_part(files)
    first = files.set_aside("part-00000.parquet")
    one_part(files)
    second = files.set_aside("part-00000.parquet")
    assert first != second
    assert Path(first).exists()
    assert Path(second).exists()
    assert files.names() == []


def test_schema_of_the_simple_input_is_kept(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        assert store.input_schema == SCHEMA
        assert store.output_schema is not None
        assert store.output_schema.names[:2] == ["ticket", "body"]
