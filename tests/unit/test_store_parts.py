"""Parts: fixed types, checksums, and what other tools read in them."""

from __future__ import annotations

import io
import threading
from pathlib import Path
from typing import Any, BinaryIO, cast

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchchat.errors import UsageError
from batchchat.records import RECORD_COLUMNS
from batchchat.sources.decoded import _page_header
from batchchat.store import RECORD_SCHEMA, SettledEntry, Store, iter_output, output_schema, read_output, verify
from batchchat.store.location.folder import FolderLocation
from batchchat.store.location.folder_files import FolderParts
from batchchat.store.parts import DamagedPartError, PartReader, write_part
from tests.store_cases import RICH, SCHEMA, commit, open_store, record, rich_rows, row_batch, seal, settled
from tests.thorough import one_in


@pytest.fixture
def files(tmp_path: Path) -> FolderParts:
    location = FolderLocation(tmp_path / "out")
    location.prepare()
    location.complete()
    location.state.publish("format.json", b'{"format": 1}')
    return location.parts


def test_the_columns_are_those_of_the_contract() -> None:
    assert tuple(RECORD_SCHEMA.names) == RECORD_COLUMNS
    assert RECORD_SCHEMA.field("started_at").type == pa.timestamp("us", tz="UTC")
    assert RECORD_SCHEMA.field("row_index").type == pa.int64()
    assert RECORD_SCHEMA.field("sample_index").type == pa.int32()
    assert RECORD_SCHEMA.field("cost").type == pa.float64()
    parsed = pa.field("parsed", pa.struct([("label", pa.string())]))
    schema = output_schema(pa.schema([pa.field("a", pa.int8(), nullable=False)]), parsed)
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
            commit(store, [SettledEntry(record(batch, i, failed="input" if first else None)) for i in range(4)])
            seal(store)
    one, two = (pq.read_schema(path) for path in sorted((tmp_path / "data").iterdir()))
    assert one.names == two.names
    assert one.types == two.types
    plain = RICH.set(5, pa.field("colour", pa.string()))  # dictionaries are kept as their values
    assert one.types[: len(RICH)] == plain.types
    assert (
        read_output(tmp_path).select(RICH.names).slice(0, 4).equals(pa.Table.from_batches([rich_rows(4)]).cast(plain))
    )


KINDS = {
    pa.dictionary(pa.int8(), pa.string()): pa.string(),
    pa.dictionary(pa.int64(), pa.large_string()): pa.large_string(),
    pa.list_(pa.dictionary(pa.int8(), pa.string())): pa.list_(pa.string()),
    pa.timestamp("s", tz="UTC"): pa.timestamp("ms", tz="UTC"),
    pa.time32("s"): pa.time32("ms"),
    pa.date64(): pa.date32(),
    pa.string_view(): pa.string(),
    pa.struct([("a", pa.binary_view())]): pa.struct([("a", pa.binary())]),
    pa.map_(pa.string(), pa.date64()): pa.map_(pa.string(), pa.date32()),
    pa.list_(pa.int8(), 3): pa.list_(pa.int8(), 3),
    pa.large_list(pa.float16()): pa.large_list(pa.float16()),
    pa.decimal256(50, 2): pa.decimal256(50, 2),
    pa.duration("s"): pa.duration("s"),
    pa.null(): pa.null(),
    pa.uint8(): pa.uint8(),
}


@pytest.mark.parametrize(("given", "kept"), one_in(3, KINDS.items()), ids=str)
def test_every_input_type_is_kept_or_becomes_its_nearest(tmp_path: Path, given: pa.DataType, kept: pa.DataType) -> None:
    schema = pa.schema([("column", given)])
    with open_store(tmp_path, input_schema=schema) as store:
        batch = row_batch(0, 2, pa.RecordBatch.from_arrays([pa.nulls(2, given)], schema=schema))
        commit(store, [SettledEntry(record(batch, 0))])
    with open_store(tmp_path, "run-2", input_schema=schema) as store:
        assert store.input_schema == schema
        commit(store, [SettledEntry(record(batch, 1))])
        seal(store)
    assert read_output(tmp_path).schema.field("column").type == kept
    assert pq.read_schema(tmp_path / "data" / "part-00000.parquet").field("column").type == kept
    assert verify(tmp_path).problems == []


def test_dictionaries_of_many_batches_need_not_fit_one_narrow_index(tmp_path: Path) -> None:
    schema = pa.schema([("colour", pa.dictionary(pa.int8(), pa.string()))])
    with open_store(tmp_path, input_schema=schema) as store:
        for first in range(0, 400, 100):
            values = pa.array([f"c{n}" for n in range(first, first + 100)]).cast(schema.field("colour").type)
            batch = row_batch(first, 100, pa.RecordBatch.from_arrays([values], schema=schema))
            commit(store, [SettledEntry(record(batch, i)) for i in range(100)])
        seal(store)
    assert read_output(tmp_path, columns=["colour"]).column("colour").to_pylist() == [f"c{n}" for n in range(400)]


@pytest.mark.parametrize("kind", [pa.struct([]), pa.month_day_nano_interval(), pa.list_(pa.struct([]))], ids=str)
def test_a_type_that_parquet_cannot_keep_is_refused_before_the_run(tmp_path: Path, kind: pa.DataType) -> None:
    with open_store(tmp_path, input_schema=None) as store:
        with pytest.raises(UsageError, match="'odd' is of type"):
            store.freeze_input(pa.schema([("fine", pa.string()), ("odd", kind)]))
        assert store.input_schema is None
        assert store.components.types.schema is None


def test_duckdb_reads_the_folder_with_its_types(tmp_path: Path) -> None:
    with open_store(tmp_path, input_schema=RICH) as store:
        batch = row_batch(0, 50, rich_rows(50))
        calls = ({"id": "1", "type": "function", "name": "f", "arguments": "{}"},)
        commit(store, [SettledEntry(record(batch, i, tool_calls=calls if i == 3 else None)) for i in range(50)])
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
        commit(store, [SettledEntry(record(row_batch(0, 2, rich_rows(2)), 1))])
        seal(store)
    assert read_output(tmp_path).column("when").cast(pa.int64()).to_pylist() == [1_700_000_000_123_456_790]


def test_records_of_a_part_are_sorted_by_row_and_sample(tmp_path: Path) -> None:
    with open_store(tmp_path, with_keys=False) as store:
        batch = row_batch(0, 3)
        entries = [
            SettledEntry(record(batch, row, sample_index=sample, prompt=str(sample)))
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


def one_part(files: FolderParts, rows: int = 500) -> bytes:
    table = pa.table({"n": list(range(rows)), "text": [f"text {n} " * 5 for n in range(rows)]})
    files.publish("part-00000.parquet", lambda sink: write_part(sink, table.schema, [table]))
    return files.path("part-00000.parquet").read_bytes()


def test_flipped_or_missing_bytes_never_give_other_records(files: FolderParts) -> None:
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
            except DamagedPartError:
                outcomes["damaged"] += 1
            else:
                assert found == expected  # a byte that means nothing, as in statistics
                outcomes["same"] += 1
    assert outcomes["damaged"] > 80


def test_names_that_are_no_parts_are_left_alone(files: FolderParts) -> None:
    one_part(files)
    for name in ("notes.txt", "part-1.parquet", "part-00001.parquet.tmp", "xpart-00001.parquet"):
        (files.path(name)).write_text("x")
    for number in (100_000, 99_999):
        (files.path(f"part-{number}.parquet")).write_text("x")
    assert files.names() == ["part-00000.parquet", "part-99999.parquet", "part-100000.parquet"]


def test_a_part_set_aside_never_replaces_another(files: FolderParts) -> None:
    one_part(files)
    first = files.set_aside("part-00000.parquet", lambda _: None)
    one_part(files)
    second = files.set_aside("part-00000.parquet", lambda _: None)
    assert first != second
    assert Path(first).exists()
    assert Path(second).exists()
    assert files.names() == []


def test_schema_of_the_simple_input_is_kept(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        assert store.input_schema == SCHEMA
        assert store.components.types.schema is not None
        assert store.components.types.schema.names[:2] == ["ticket", "body"]


class _Watched(io.BufferedReader):
    """Notes which threads read from it."""

    def __init__(self, path: Path, threads: set[int]) -> None:
        super().__init__(io.FileIO(path))
        self._threads = threads

    def read(self, size: int | None = -1, /) -> bytes:
        self._threads.add(threading.get_ident())
        return super().read(size)


def test_a_part_is_read_by_no_thread_that_could_outlive_the_interpreter(
    tmp_path: Path, files: FolderParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store(tmp_path / "out", part_rows=1000) as store:
        commit(store, settled(0, 1000))
        seal(store)
    (name,) = files.names()
    threads: set[int] = set()
    monkeypatch.setattr(files, "open", lambda each: cast(BinaryIO, _Watched(files.path(each), threads)))
    with PartReader(files, name) as reader:
        assert reader.read(["custom_id", "row_index"]).num_rows == 1000
        assert sum(batch.num_rows for batch in reader.batches(rows=100)) == 1000
    assert threads == {threading.get_ident()}


def wide(texts: list[str]) -> pa.RecordBatch:
    names = pa.array([f"T{i}" for i in range(len(texts))])
    return pa.RecordBatch.from_arrays([names, pa.array(texts)], schema=SCHEMA)


def put(store: Store, columns: pa.RecordBatch, first: int = 0) -> None:
    batch = row_batch(first, columns.num_rows, columns)
    batch.nbytes = columns.nbytes
    commit(store, [SettledEntry(record(batch, offset)) for offset in range(columns.num_rows)])


def test_long_rows_make_short_row_groups_and_pages(tmp_path: Path) -> None:
    texts = [f"{number:03d}" * 100_000 for number in range(120)]  # 36 MB
    with open_store(tmp_path, part_bytes=100_000_000) as store:
        put(store, wide(texts))
        seal(store)
    (path,) = (tmp_path / "data").iterdir()
    footer = pq.read_metadata(path)
    column = footer.schema.names.index("body")
    for number in range(footer.num_row_groups):
        group = footer.row_group(number)
        assert group.total_byte_size <= 17 * 2**20
        # A dictionary is given up at once: of whole row groups it would be a page of 16 MiB.
        body = group.column(column)
        start = body.dictionary_page_offset
        assert page_size(path.read_bytes()[start : start + 100]) <= 2**20 + 300_000
    assert read_output(tmp_path).column("body").to_pylist() == texts


def page_size(data: bytes) -> int:
    return _page_header(data)[1]


@pytest.mark.thorough
def test_records_that_repeat_one_another_are_read_and_kept_by_their_real_size(tmp_path: Path) -> None:
    """A file of 100 KB may hold 100 MB."""
    text = "x" * 50_000
    for run in range(2):
        with open_store(tmp_path, f"run-{run}", part_bytes=40_000_000) as store:
            put(store, wide([text] * 1000), run * 1000)
            seal(store)
    files = sorted((tmp_path / "data").iterdir())
    assert sum(path.stat().st_size for path in files) < 2_000_000
    rows = [pq.read_metadata(path).num_rows for path in files]
    assert sum(rows) == 2000
    assert max(rows) * len(text) <= 40_000_000
    for batch in iter_output(tmp_path):
        assert batch.nbytes <= 17 * 2**20
    assert verify(tmp_path).problems == []
