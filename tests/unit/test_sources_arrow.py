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
    "map": lambda array: pa.MapArray.from_arrays(_OFFSETS, _TEXTS, array),
    "keys": lambda array: pa.MapArray.from_arrays(_OFFSETS, array, _TEXTS),
}


@pytest.mark.parametrize("name", LEAVES)
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
