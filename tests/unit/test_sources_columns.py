"""What is carried to the output: frozen types, names, and nothing lost on the way."""

from __future__ import annotations

import base64
import json
import math
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchchat.records import RECORD_COLUMNS
from batchchat.sources import open_source
from batchchat.sources.columns import Column, Columns, freeze, output_names
from batchchat.sources.infer import Shape
from tests.thorough import examples


def frozen_from(rows: list[dict[str, Any]]) -> Columns:
    """The columns that a first run over these rows freezes."""
    shapes: dict[str, Shape] = {}
    for row in rows:
        for name, value in row.items():
            shapes.setdefault(name, Shape()).see([value])
    return Columns(freeze(Column(name, *shape.column_type()) for name, shape in shapes.items()))


def carry(first: list[dict[str, Any]], later: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = frozen_from(first).carry(later).to_pylist()
    return found


def extra(row: dict[str, Any]) -> Any:
    return None if row["input_extra"] is None else json.loads(row["input_extra"])


class TestInference:
    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            (["a", None], pa.string()),
            ([1, 2], pa.int64()),
            ([1, 2.5], pa.float64()),
            ([True], pa.bool_()),
            ([["a"], []], pa.list_(pa.string())),
            ([[1], [2.5]], pa.list_(pa.float64())),
            ([{"a": 1}, {"b": "x"}], pa.struct([("a", pa.int64()), ("b", pa.string())])),
            ([[{"role": "user", "name": None}]], pa.list_(pa.struct([("role", pa.string()), ("name", pa.string())]))),
            ([None], pa.string()),
            (["a", 1, True], pa.string()),
            ([2**53 + 1, 0.5], pa.string()),
            ([2**63], pa.string()),
            ([{}], pa.string()),
            ([[]], pa.string()),
            ([[None]], pa.string()),
            ([[1, "a"]], pa.string()),
            ([{"a": {}}], pa.string()),
            ([{"": 1}], pa.string()),
            ([{"a": 1, "A": 2}], pa.string()),
            ([{f"key {number}": number for number in range(300)}], pa.string()),
        ],
    )
    def test_types_of_columns(self, values: list[Any], expected: pa.DataType) -> None:
        columns = frozen_from([{"c": value} for value in values])
        assert columns.schema.field("c").type == expected

    def test_values_without_a_common_type_are_json_text(self) -> None:
        rows: list[dict[str, Any]] = [{"c": [1, "a"]}, {"c": {}}, {"c": True}, {"c": 2**70}, {"c": "x"}]
        assert [row["c"] for row in carry([{"c": [1, "a"]}], rows)] == ['[1,"a"]', "{}", "true", str(2**70), '"x"']

    def test_text_mixed_with_other_kinds_holds_the_texts(self) -> None:
        rows: list[dict[str, Any]] = [{"c": "x"}, {"c": 5}, {"c": [1]}]
        found = carry(rows, rows)
        assert [row["c"] for row in found] == ["x", None, None]
        assert [extra(row) for row in found] == [None, {"c": 5}, {"c": [1]}]

    def test_an_input_with_endless_columns_is_bounded(self, tmp_path: Path) -> None:
        path = tmp_path / "a.jsonl"
        path.write_bytes(b"".join(orjson.dumps({"id": n, f"c{n}": n}) + b"\n" for n in range(3_000)))
        source = open_source(str(path))
        assert len(source.schema) == 1_001
        last = list(source.batches())[-1].columns.to_pylist()[-1]
        assert extra(last) == {"c2999": 2999}
        assert "1,000 columns" in source.warnings[0]


class TestMisfits:
    @pytest.mark.parametrize(
        ("first", "later"),
        [
            (1, 3.0),
            (1, True),
            (1, "1"),
            (1, 2**63),
            (1, -(2**63) - 1),
            (1.5, 2**53 + 1),
            (1.5, "x"),
            (1.5, False),
            (True, 1),
            ("a", 1),
            ("a", ["a"]),
            (["a"], "a"),
            (["a"], ["a", 1]),
            ([1], [2**70]),
            ({"a": 1}, {"a": 1, "b": 2}),
            ({"a": 1}, {"a": "x"}),
            ({"a": {"b": 1}}, {"a": {"b": 1, "c": {"d": [1]}}}),
            ([{"a": 1}], [{"a": 1}, {"a": 1, "z": None}]),
            ([{"a": 1}], [{"a": True}]),
        ],
    )
    def test_what_does_not_fit_exactly_is_kept_apart(self, first: Any, later: Any) -> None:
        (fits, misfit) = carry([{"c": first}], [{"c": first}, {"c": later}])
        assert (fits["c"], fits["input_extra"]) == (first, None)
        assert misfit["c"] is None
        kept = extra(misfit)["c"]
        assert kept == later
        assert type(kept) is type(later)

    def test_a_value_that_changes_type_late_costs_neither_the_run_nor_the_value(self, tmp_path: Path) -> None:
        path = tmp_path / "a.jsonl"
        rows = [{"n": n} for n in range(20_000)] + [{"n": "twenty"}, {"n": 1, "new": {"x": [1]}}]
        path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
        batches = list(open_source(str(path)).batches())
        assert batches[-1].values[-2:] == rows[-2:]
        last = batches[-1].columns.to_pylist()[-2:]
        assert last == [{"n": None, "input_extra": '{"n":"twenty"}'}, {"n": 1, "input_extra": '{"new":{"x":[1]}}'}]

    def test_nan_fits_a_float_column_and_is_text_elsewhere(self) -> None:
        (row,) = carry([{"x": 1.5}], [{"x": math.nan}])
        assert math.isnan(row["x"])
        (row,) = carry([{"x": 1}], [{"x": math.nan}])
        assert extra(row) == {"x": "NaN"}

    def test_absent_and_null_fields_are_null(self) -> None:
        assert carry([{"a": 1, "b": "x"}], [{"a": None}, {}]) == [{"a": None, "b": None, "input_extra": None}] * 2


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(codec="utf-8"), max_size=5),
)
names = st.sampled_from(["a", "b", "status", "A"])
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(names, inner, max_size=3)),
    max_leaves=6,
)
json_rows = st.lists(st.dictionaries(names, values, max_size=4), min_size=1, max_size=6)


def same(kept: Any, given_value: Any) -> bool:
    """Equal, also in type; a struct may have gained null fields, and a whole number may stand in a float column."""
    if isinstance(given_value, dict):
        return isinstance(kept, dict) and all(
            same(kept.get(name), given_value.get(name)) for name in {**kept, **given_value}
        )
    if isinstance(given_value, list):
        return isinstance(kept, list) and len(kept) == len(given_value) and all(map(same, kept, given_value))
    if type(given_value) is int and type(kept) is float:
        return kept.is_integer() and int(kept) == given_value
    return type(kept) is type(given_value) and bool(kept == given_value)


@examples(80)
@given(json_rows, json_rows)
def test_no_value_is_ever_lost(first: list[dict[str, Any]], later: list[dict[str, Any]]) -> None:
    columns = frozen_from(first)
    fields = dict(zip(columns.names, columns.schema, strict=False))
    for rows in (first, later):
        for row, kept in zip(rows, columns.carry(rows).to_pylist(), strict=True):
            apart = extra(kept) or {}
            for name, value in row.items():
                if value is None or name in apart:
                    assert same(apart.get(name), value)
                    continue
                found = kept[fields[name].name]
                if (fields[name].metadata or {}).get(b"batchchat.as") == b"json":
                    found = json.loads(found)
                assert same(found, value)
            assert apart.keys() <= row.keys()


class TestNames:
    def test_columns_of_the_output_keep_their_names(self) -> None:
        given_names = ["id", "Status", "input_extra", "input_status", "parsed", "", "name", "NAME"]
        assert output_names(given_names) == [
            "id",
            "input_input_Status",
            "input_input_extra",
            "input_status",
            "input_parsed",
            "input_",
            "name",
            "input_NAME",
        ]

    @given(
        st.lists(
            st.one_of(st.sampled_from([*RECORD_COLUMNS, "input_status", "INPUT_KEY"]), st.text(max_size=4)), unique=True
        )
    )
    def test_names_are_distinct_whatever_the_case(self, given_names: list[str]) -> None:
        found = output_names(given_names)
        taken = {name.lower() for name in (*RECORD_COLUMNS, "input_extra", "parsed")}
        assert len({name.lower() for name in found} - taken) == len(found)
        for name, output in zip(given_names, found, strict=True):
            assert output == name or (output.startswith("input_") and output.endswith(name))

    def test_a_frozen_schema_says_which_column_is_which(self, tmp_path: Path) -> None:
        path = tmp_path / "a.jsonl"
        path.write_text('{"status":"open","mixed":[1,"x"],"n":5}\n')
        first = open_source(str(path), types={"n": "string"})
        kept = pa.ipc.read_schema(first.schema.serialize())
        path.write_text('{"n":6,"late":1,"status":"closed","mixed":2}\n')
        again = open_source(str(path), frozen=kept)
        assert again.schema.equals(first.schema, check_metadata=True)
        assert again.columns == ("n", "late", "status", "mixed")
        (batch,) = again.batches()
        assert batch.values == [{"n": 6, "late": 1, "status": "closed", "mixed": 2}]
        assert batch.columns.to_pylist() == [
            {"input_status": "closed", "mixed": "2", "n": "6", "input_extra": '{"late":1}'}
        ]


class TestDeclaredTypes:
    @pytest.mark.parametrize(
        ("kind", "value", "expected"),
        [
            ("string", 5, "5"),
            ("string", 1.5, "1.5"),
            ("string", True, "true"),
            ("string", "x", "x"),
            ("int64", 5, 5),
            ("int64", " -7 ", -7),
            ("float64", 5, 5.0),
            ("float64", "1e3", 1000.0),
            ("bool", "No", False),
            ("bool", True, True),
            ("timestamp", "2026-11-01T12:00:00+02:00", datetime(2026, 11, 1, 10, tzinfo=UTC)),
            ("timestamp", "2026-11-01 10:00", datetime(2026, 11, 1, 10, tzinfo=UTC)),
            ("date", "2026-11-01", date(2026, 11, 1)),
            ("decimal(6,2)", "1234.50", Decimal("1234.50")),
            ("decimal(6,2)", 0.1, Decimal("0.10")),
            ("decimal(6,2)", 7, Decimal("7.00")),
            ("json", {"a": [1]}, '{"a":[1]}'),
            ("json", "x", '"x"'),
        ],
    )
    def test_values_are_read_as_declared(self, tmp_path: Path, kind: str, value: Any, expected: Any) -> None:
        path = tmp_path / "a.jsonl"
        path.write_bytes(orjson.dumps({"c": value}) + b"\n")
        (batch,) = open_source(str(path), types={"c": kind}).batches()
        assert batch.columns.to_pylist() == [{"c": expected, "input_extra": None}]
        assert batch.values == [{"c": value}]

    @pytest.mark.parametrize(
        ("kind", "value"),
        [
            ("string", [1]),
            ("int64", "1_000"),
            ("int64", "1.5"),
            ("int64", str(2**63)),
            ("float64", "1_0"),
            ("bool", "maybe"),
            ("bool", 2),
            ("timestamp", "soon"),
            ("timestamp", "2026-11-01T00:00:00.1234567"),
            ("timestamp", 5),
            ("date", "2026-13-01"),
            ("decimal(6,2)", "0.125"),
            ("decimal(6,2)", "123456"),
            ("decimal(6,2)", "NaN"),
            ("decimal(6,2)", True),
        ],
    )
    def test_what_cannot_be_read_is_kept_apart(self, tmp_path: Path, kind: str, value: Any) -> None:
        path = tmp_path / "a.jsonl"
        path.write_bytes(orjson.dumps({"c": value}) + b"\n")
        (batch,) = open_source(str(path), types={"c": kind}).batches()
        (row,) = batch.columns.to_pylist()
        assert row["c"] is None
        assert extra(row) == {"c": value}

    def test_a_declared_column_that_comes_late_is_there_from_the_start(self, tmp_path: Path) -> None:
        path = tmp_path / "a.jsonl"
        path.write_text('{"a":1}\n')
        assert open_source(str(path), types={"later": "bool"}).schema.field("later").type == pa.bool_()


class TestParquetTypes:
    def round_trip(self, tmp_path: Path, array: pa.Array) -> tuple[list[Any], pa.Array]:
        """Write one column; return what the template sees and what is carried."""
        path = tmp_path / "a.parquet"
        pq.write_table(pa.table({"c": array}), path)
        (batch,) = open_source(str(path)).batches()
        assert batch.columns.column("input_extra").null_count == len(array)
        return [row and row["c"] for row in batch.values], batch.columns.column("c")

    @pytest.mark.parametrize(
        ("array", "seen"),
        [
            (pa.array([1, None], pa.timestamp("ns")), [datetime(1970, 1, 1), None]),  # noqa: DTZ001
            (pa.array([1_001], pa.timestamp("ns", tz="UTC")), [datetime(1970, 1, 1, microsecond=1, tzinfo=UTC)]),
            (pa.array([1_999], pa.duration("ns")), [timedelta(microseconds=1)]),
            (pa.array([1_999], pa.time64("ns")), [time(microsecond=1)]),
            (pa.array([[1]], pa.list_(pa.timestamp("ns"))), [[datetime(1970, 1, 1)]]),  # noqa: DTZ001
            (pa.array([{"t": 1}], pa.struct([("t", pa.timestamp("ns"))])), [{"t": datetime(1970, 1, 1)}]),  # noqa: DTZ001
            (pa.array([Decimal("1.50")]), [Decimal("1.50")]),
            (pa.array([b"\x00\xff"]), [b"\x00\xff"]),
            (pa.array([date(2026, 1, 1)]), [date(2026, 1, 1)]),
            (pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int64())), [{"k": 1}, None]),
            (pa.array([0.5], pa.float16()), [0.5]),
            (pa.array([[1, 2]], pa.list_(pa.int32(), 2)), [[1, 2]]),
        ],
    )
    def test_any_type_is_seen_and_carried(self, tmp_path: Path, array: pa.Array, seen: list[Any]) -> None:
        values, kept = self.round_trip(tmp_path, array)
        assert values == seen
        assert kept.type == array.type
        assert kept.equals(array)

    @pytest.mark.parametrize(
        ("array", "kept_as"),
        [
            (pa.array(["a", "b", "a"]).dictionary_encode(), pa.string()),
            (pa.array(["a"], pa.large_string()), pa.string()),
            (pa.array(["a"], pa.string_view()), pa.string()),
            (pa.array([b"a"], pa.large_binary()), pa.binary()),
            (pa.array([["a"]], pa.large_list(pa.large_string())), pa.list_(pa.string())),
            (pa.nulls(2), pa.string()),
            (
                pa.array([{"a": None, "b": 1}], pa.struct([("a", pa.null()), ("b", pa.int8())])),
                pa.struct([("a", pa.string()), ("b", pa.int8())]),
            ),
        ],
    )
    def test_layouts_are_made_plain(self, tmp_path: Path, array: pa.Array, kept_as: pa.DataType) -> None:
        values, kept = self.round_trip(tmp_path, array)
        assert values == array.to_pylist()
        assert kept.type == kept_as
        assert kept.to_pylist() == array.to_pylist()

    def test_times_that_python_does_not_have_are_seen_as_text(self, tmp_path: Path) -> None:
        values, kept = self.round_trip(tmp_path, pa.array([-(2**58), 0], pa.timestamp("ms")))
        assert isinstance(values[0], str)
        assert kept.equals(pa.array([-(2**58), 0], pa.timestamp("ms")))

    def test_extension_types_are_carried_by_their_storage(self, tmp_path: Path) -> None:
        storage = pa.array([bytes(range(16))], pa.binary(16))
        values, kept = self.round_trip(tmp_path, pa.ExtensionArray.from_storage(pa.uuid(), storage))
        assert str(values[0]) == "00010203-0405-0607-0809-0a0b0c0d0e0f"
        assert kept.equals(storage)

    def test_misfits_of_a_later_file_are_kept_apart(self, tmp_path: Path) -> None:
        columns = {
            "number": (pa.array(["text"]), pa.array([5])),
            "moment": (pa.array([1], pa.timestamp("us")), pa.array([date(2026, 1, 1)])),
            "bytes": (pa.array([1.5]), pa.array([b"\x00"])),
            "list": (pa.array([["a"]]), pa.array([[1]])),
        }
        for index, name in enumerate(("a", "b")):
            pq.write_table(pa.table({key: pair[index] for key, pair in columns.items()}), tmp_path / f"{name}.parquet")
        first, second = (batch.columns.to_pylist()[0] for batch in open_source(str(tmp_path)).batches())
        assert first["input_extra"] is None
        assert [second[name] for name in ("number", "bytes", "list")] == [None] * 3
        kept = extra(second)
        assert (kept["number"], kept["list"], base64.b64decode(kept["bytes"])) == (5, [1], b"\x00")
        assert "2026-01-01" in str(second["moment"] or kept["moment"])

    def test_a_frozen_type_takes_only_what_it_holds(self, tmp_path: Path) -> None:
        path = tmp_path / "a.parquet"
        pq.write_table(pa.table({"n": pa.array([1], pa.int32())}), path)
        frozen = open_source(str(path)).schema
        pq.write_table(pa.table({"n": pa.array([7, 2**40, None])}), path)
        (batch,) = open_source(str(path), frozen=frozen).batches()
        assert [(row["n"], extra(row)) for row in batch.columns.to_pylist()] == [
            (7, None),
            (None, {"n": 2**40}),
            (None, None),
        ]

    def test_types_may_be_declared_for_parquet_too(self, tmp_path: Path) -> None:
        path = tmp_path / "a.parquet"
        pq.write_table(pa.table({"n": pa.array([7])}), path)
        (batch,) = open_source(str(path), types={"n": "string"}).batches()
        assert batch.columns.to_pylist() == [{"n": "7", "input_extra": None}]
        assert batch.values == [{"n": 7}]
