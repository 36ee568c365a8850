"""Every value that a Parquet file can hold is read, as text if Python has no such value."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchchat.identity import row_bytes
from batchchat.sources import open_source
from batchchat.sources.decoded import DecodedSizes
from tests.thorough import one_in

FAR = 2**62
_BINARY = pa.array([b"\xff", b"", b"a", b"b"])
LEAVES: dict[str, pa.Array] = {
    "seconds": pa.array([FAR // 10**6, -(10**12), 0, 1], pa.timestamp("s")),
    "microseconds": pa.array([FAR, -FAR, 0, 1], pa.timestamp("us")),
    "nanoseconds": pa.array([FAR, -FAR, 1, 2], pa.timestamp("ns", "UTC")),
    "zone": pa.array([FAR, 1, 2, 3], pa.timestamp("us", "Europe/Paris")),
    "unknown zone": pa.array([0, 1, 2, 3], pa.timestamp("us", "Mars/Phobos")),
    "days": pa.array([2**30, -(2**30), 0, 1], pa.date32()),
    "long days": pa.array([-(2**50) // 86_400_000 * 86_400_000, 0, 86_400_000, 0], pa.date64()),
    "durations": pa.array([2**60, -(2**60), 0, 1], pa.duration("s")),
    "short durations": pa.array([FAR, 1, 0, 2], pa.duration("ns")),
    "times": pa.array([0, 1, 86_399_999_999_999, 2], pa.time64("ns")),
    "wrong times": pa.array([-5, FAR, 1, 2], pa.time64("us")),
    "decimals": pa.array([Decimal("1.5"), Decimal("-9.99"), Decimal(0), Decimal(1)], pa.decimal256(70, 10)),
    "halves": pa.array([1.5, float("nan"), float("inf"), 0], pa.float16()),
    "unsigned": pa.array([2**64 - 1, 0, 1, 2], pa.uint64()),
    "booleans": pa.array([True, False, True, False]),
    "nulls": pa.nulls(4),
    "views": pa.array(["a", "", "ü", "b"], pa.string_view()),
    "large": pa.array([b"\xff", b"", b"a", b"b"], pa.large_binary()),
    "fixed": pa.array([b"\xff1", b"22", b"aa", b"bb"], pa.binary(2)),
    "broken texts": pa.Array.from_buffers(pa.string(), 4, _BINARY.buffers()),
    "dictionary": pa.array(["a", "b", "a", "b"]).dictionary_encode(),
    "extension": pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(pa.float32(), [2]), pa.array([[1, 2]] * 4, pa.list_(pa.float32(), 2))
    ),
    "equal names": pa.StructArray.from_arrays([pa.array([1, 2, 3, 4]), pa.array(list("abcd"))], ["x", "x"]),
}
_OFFSETS = pa.array([0, 1, 2, 3, 4], pa.int32())
_TEXTS = pa.array(list("abcd"))
WRAPS: dict[str, Callable[[pa.Array], pa.Array]] = {
    "": lambda array: array,
    "struct": lambda array: pa.StructArray.from_arrays([array], ["f"]),
    "list": lambda array: pa.ListArray.from_arrays(_OFFSETS, array),
    "large list": lambda array: pa.LargeListArray.from_arrays(_OFFSETS.cast(pa.int64()), array),
    "fixed list": lambda array: pa.FixedSizeListArray.from_arrays(array, 1),
    "list view": lambda array: pa.ListViewArray.from_arrays(_OFFSETS[:4], pa.array([1] * 4, pa.int32()), array),
    "large list view": lambda array: pa.LargeListViewArray.from_arrays(
        _OFFSETS[:4].cast(pa.int64()), pa.array([1] * 4, pa.int64()), array
    ),
    "map": lambda array: pa.MapArray.from_arrays(_OFFSETS, _TEXTS, array),
    "keys": lambda array: pa.MapArray.from_arrays(_OFFSETS, array, _TEXTS),
}


@pytest.mark.parametrize("name", one_in(8, LEAVES))
def test_any_type_at_any_depth_is_read_carried_and_written(tmp_path: Path, name: str) -> None:
    tables: dict[str, pa.Array] = {}
    for inner, outer in product(WRAPS, WRAPS):
        if name == "nulls" and "keys" in {inner, outer}:
            continue
        tables[f"{inner} in {outer}"] = WRAPS[outer](WRAPS[inner](LEAVES[name]))
    for column, array in tables.items():
        try:
            pq.write_table(pa.table({"x": array, "id": range(4)}), tmp_path / "x.parquet")
        except pa.ArrowException:
            continue  # Parquet has no such type
        source = open_source(str(tmp_path / "x.parquet"))
        rows = 0
        for batch in source.batches():
            for row in batch.values:
                assert row is not None
                row_bytes(row)
                json.dumps(row, default=str)  # no key of any map is other than text
                rows += 1
            if not name.startswith("wrong"):
                batch.columns.validate(full=True)
        assert rows == 4, column


def one(tmp_path: Path, array: pa.Array) -> Any:
    pq.write_table(pa.table({"x": array}), tmp_path / "x.parquet")
    (batch,) = open_source(str(tmp_path / "x.parquet")).batches()
    assert batch.values[0] is not None
    return batch.values[0]["x"]


@pytest.mark.parametrize(
    ("array", "value"),
    [
        (
            pa.array([{"t": 253402300800000000}], pa.struct([("t", pa.timestamp("us"))])),
            {"t": "10000-01-01 00:00:00.000000"},
        ),
        (pa.array([[253402300800000000]], pa.list_(pa.timestamp("us"))), ["10000-01-01 00:00:00.000000"]),
        (pa.array([[(1, "a"), (2, "b")]], pa.map_(pa.int64(), pa.string())), {"1": "a", "2": "b"}),
        (pa.array([[(date(2024, 1, 2), "a")]], pa.map_(pa.date32(), pa.string())), {"2024-01-02": "a"}),
        (pa.array([[(b"\x01", 1)]], pa.map_(pa.binary(), pa.int64())), {"AQ==": 1}),
        (pa.array([[({"a": 1}, 1)]], pa.map_(pa.struct([("a", pa.int64())]), pa.int64())), {'{"a":1}': 1}),
        (pa.array([{"m": [(True, 1)]}], pa.struct([("m", pa.map_(pa.bool_(), pa.int64()))])), {"m": {"true": 1}}),
        (pa.Array.from_buffers(pa.string(), 4, _BINARY.buffers()), r"\xff"),
    ],
)
def test_what_python_does_not_have_is_text(tmp_path: Path, array: pa.Array, value: object) -> None:
    assert one(tmp_path, array) == value


def test_broken_texts_are_carried_as_they_were_sent(tmp_path: Path) -> None:
    array = pa.Array.from_buffers(pa.string(), 4, _BINARY.buffers())
    pq.write_table(pa.table({"x": array}), tmp_path / "x.parquet")
    (batch,) = open_source(str(tmp_path / "x.parquet")).batches()
    assert batch.columns.column("x").to_pylist() == [r"\xff", "", "a", "b"]


def test_a_value_that_a_dictionary_holds_once_is_counted_for_each_row(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": ["x" * 100_000] * 400}), tmp_path / "x.parquet")
    source = open_source(str(tmp_path / "x.parquet"), batch_bytes=1_000_000)
    before = pa.total_allocated_bytes()
    peak = max(pa.total_allocated_bytes() - before for _ in source.batches())
    assert peak < 10_000_000  # all rows take 40 MB


LONG = "x" * 100_000


def _later_group(path: Path) -> None:
    with pq.ParquetWriter(path, pa.schema([("x", pa.string())])) as writer:
        for text in ("s", "t", LONG):
            writer.write_table(pa.table({"x": [text] * 400}))


def _categories(path: Path) -> None:
    indices = pa.array([0] * 600 + [1] * 400, pa.int32())
    pq.write_table(pa.table({"x": pa.DictionaryArray.from_arrays(indices, pa.array(["s", LONG]))}), path)


def _lists(path: Path) -> None:
    pq.write_table(pa.table({"x": [["s"]] * 400 + [[LONG, LONG]] * 200}), path)


def _fixed(path: Path) -> None:
    pq.write_table(pa.table({"x": pa.array([LONG.encode()] * 400, pa.binary(len(LONG)))}), path)


def _many_numbers(path: Path) -> None:
    pq.write_table(pa.table({"x": pa.array([[0] * 10_000] * 1000, pa.list_(pa.int64()))}), path)


def _plain_texts(path: Path) -> None:
    pq.write_table(pa.table({"x": [f"{row}{LONG}" for row in range(300)]}), path, use_dictionary=False)


@pytest.mark.parametrize(
    "write",
    one_in(3, [_later_group, _categories, _lists, _fixed, _many_numbers, _plain_texts]),
    ids=lambda write: write.__name__,
)
def test_a_small_file_with_large_rows_is_read_a_few_rows_at_a_time(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    path = tmp_path / "x.parquet"
    write(path)
    source = open_source(str(path), batch_bytes=1_000_000)
    before, peak, rows = pa.total_allocated_bytes(), 0, 0
    for batch in source.batches():
        peak = max(peak, pa.total_allocated_bytes() - before)
        rows += len(batch.values)
        assert len(batch.values) == 1 or batch.nbytes <= 1_000_000
    assert rows == pq.read_metadata(path).num_rows
    # A few batches, and what Arrow keeps of a page: all rows take 30 to 80 MB.
    assert peak < (40_000_000 if write is _plain_texts else 6_000_000)


@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "brotli", "zstd", "lz4"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_the_longest_text_of_a_dictionary_is_told_without_decoding_it(
    tmp_path: Path, compression: str, version: str
) -> None:
    path = tmp_path / "x.parquet"
    table = pa.table(
        {"x": ["a" * (n % 3) for n in range(500)] + ["ü" * 5000], "y": [["b" * 70]] * 501, "n": range(501)}
    )
    pq.write_table(table, path, compression=compression, data_page_version=version)
    data = path.read_bytes()
    sizes = DecodedSizes(pq.ParquetFile(path), lambda offset, size: data[offset : offset + size])
    assert sizes.at_once(0, 501, 100_000_000) == 501
    # 10,000 bytes in x, 70 in y, and what each value takes beside.
    assert sizes.at_once(0, 501, 1_000_000) == 1_000_000 // (10_004 + 74 + 9)
    assert sizes.at_once(0, 501, 60_000, ["y"]) == 501
    assert sizes.at_once(0, 501, 10) == 1
    damaged = DecodedSizes(pq.ParquetFile(path), lambda _offset, size: b"\xff" * size)
    assert 1 <= damaged.at_once(0, 501, 1_000_000) <= 501


def test_a_row_of_parquet_that_is_too_long_is_a_failed_record(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"x": ["s", "x" * 3000, "y" * 3000, "t"]}), path)
    source = open_source(str(path), batch_bytes=1000, max_line_bytes=2000)
    batches = list(source.batches())
    failures = [failure.message for batch in batches for failure in batch.failures.values()]
    assert [row and row["x"] for batch in batches for row in batch.values] == ["s", None, None, "t"]
    assert [message.partition(": row ")[2][:6] for message in failures] == ["2 of t", "3 of t"]
    assert len({raw for batch in batches for raw in batch.raw.values()}) == 2
    assert sum(batch.columns.nbytes for batch in batches) < 1000


def test_a_list_of_views_is_read_and_carried(tmp_path: Path) -> None:
    array = pa.array([["a"], None, ["b", "c"], []], pa.list_view(pa.string()))
    pq.write_table(
        pa.table({"x": array, "y": pa.array([{"z": each} for each in array.to_pylist()])}), tmp_path / "x.parquet"
    )
    (batch,) = open_source(str(tmp_path / "x.parquet")).batches()
    assert [row and row["x"] for row in batch.values] == [["a"], None, ["b", "c"], []]
    assert batch.columns.column("x").to_pylist() == [["a"], None, ["b", "c"], []]
    assert set(batch.columns.column("input_extra").to_pylist()) == {None}
