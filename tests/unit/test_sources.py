from __future__ import annotations

import bz2
import gzip
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchchat.errors import StorageError, UsageError
from batchchat.records import ErrorKind, RowBatch
from batchchat.sources import Source, open_source
from tests.thorough import examples


def write(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def lines(*rows: Any) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def rows_of(source: Source) -> list[dict[str, Any] | None]:
    """All rows as the template sees them, after checking that the batches fit together."""
    found: list[dict[str, Any] | None] = []
    for batch in source.batches():
        assert batch.first_index == len(found)
        assert batch.columns.schema.equals(source.schema)
        assert batch.columns.num_rows == len(batch.values)
        assert set(batch.failures) == {index for index, row in enumerate(batch.values) if row is None}
        assert batch.raw.keys() == batch.failures.keys()
        found += batch.values
    return found


def carried(source: Source) -> list[dict[str, Any]]:
    table = pa.Table.from_batches([batch.columns for batch in source.batches()], schema=source.schema)
    found: list[dict[str, Any]] = table.to_pylist()
    return found


def failures(source: Source) -> list[str]:
    return [failure.message for batch in source.batches() for failure in batch.failures.values()]


def refusal(*args: Any, **options: Any) -> str:
    with pytest.raises(UsageError) as caught:
        open_source(*args, **options)
    return str(caught.value)


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    def give(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(data))))

    return give


class TestJsonLines:
    def test_rows_keep_their_types_and_nested_values(self, tmp_path: Path) -> None:
        rows: list[dict[str, Any]] = [
            {"id": 1, "text": "Grüße 😀 שלום", "score": 0.5, "ok": True, "tags": ["a"], "meta": {"x": None, "y": [1]}},
            {"id": 2, "text": None, "score": 1.0, "ok": None, "tags": [], "meta": {"x": None, "y": []}},
        ]
        source = open_source(str(write(tmp_path / "a.jsonl", lines(*rows))))
        assert source.columns == ("id", "text", "score", "ok", "tags", "meta")
        assert rows_of(source) == rows
        assert carried(source) == [{**row, "input_extra": None} for row in rows]
        assert source.files == ("a.jsonl",)

    def test_byte_order_mark_blank_lines_and_windows_line_ends(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"a":1}\r\n\r\n  \n{"a":2}\r\n')
        source = open_source(str(path))
        assert rows_of(source) == [{"a": 1}, {"a": 2}]
        assert source.count_rows() == 2

    def test_a_bad_line_costs_only_its_own_row(self, tmp_path: Path) -> None:
        data = b'{"a":1}\n\nnot json\n[1]\n"text"\n{"a":"\xff"}\n{"a":2,}\n{"a":"\\ud800"}\n{"a":3}\n'
        source = open_source(str(write(tmp_path / "t.jsonl", data)))
        (batch,) = source.batches()
        assert [row and row["a"] for row in batch.values] == [1, None, None, None, None, None, None, 3]
        messages = [failure.message for failure in batch.failures.values()]
        assert [message.split(" ")[0] for message in messages] == [f"t.jsonl:{line}:" for line in range(3, 9)]
        assert "not valid JSON" in messages[0]
        assert "not an object" in messages[1]
        assert "not valid UTF-8" in messages[3]
        assert {failure.kind for failure in batch.failures.values()} == {ErrorKind.INPUT}
        assert batch.raw[1] == b"not json"
        assert carried(source)[1] == {"a": None, "input_extra": None}
        assert source.count_rows() == 8

    @pytest.mark.parametrize("tail", [b'{"a":', b'{"a":2', b"12", b"[]", b'"te'])
    def test_an_unfinished_last_line_stays_open(self, tmp_path: Path, tail: bytes) -> None:
        source = open_source(str(write(tmp_path / "a.jsonl", b'{"a":1}\n' + tail)))
        assert rows_of(source) == [{"a": 1}]
        assert failures(source) == []
        assert source.warnings == ["a.jsonl:2: the last line has no end and is not a whole object; it is left open"]
        assert source.count_rows() == 1

    def test_a_whole_last_line_needs_no_end(self, tmp_path: Path) -> None:
        source = open_source(str(write(tmp_path / "a.jsonl", b'{"a":1}\n{"a":2}')))
        assert rows_of(source) == [{"a": 1}, {"a": 2}]
        assert source.warnings == []
        assert source.count_rows() == 2

    def test_a_line_that_is_finished_later_is_seen_by_the_next_pass(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", b'{"a":1}\n{"a":')
        source = open_source(str(path))
        assert source.warnings
        with path.open("ab") as file:
            file.write(b"2}\n")
        source = open_source(str(path))
        assert rows_of(source) == [{"a": 1}, {"a": 2}]
        assert source.warnings == []

    def test_an_overlong_line_is_not_kept_in_memory(self, tmp_path: Path) -> None:
        long = b'{"a":"' + b"x" * 5_000_000 + b'"}'
        path = write(tmp_path / "a.jsonl", b'{"a":"1"}\n' + long + b"\n" + long + b"\n" + b'{"a":"2"}\n')
        source = open_source(str(path), max_line_bytes=1_000_000)
        (first, *_, last) = source.batches()
        assert (first.values[0], last.values[-1]) == ({"a": "1"}, {"a": "2"})
        assert failures(source) == [f"a.jsonl:{line}: the line is too long" for line in (2, 3)]
        raw = [raw for batch in source.batches() for raw in batch.raw.values()]
        assert raw[0] == raw[1]
        assert len(raw[0]) < 100
        assert source.count_rows() == 4

    def test_an_overlong_line_without_end_is_a_failure_too(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", b'{"a":1}\n' + b"x" * 3_000_000)
        source = open_source(str(path), max_line_bytes=1_000_000)
        assert failures(source) == ["a.jsonl:2: the line is too long"]
        assert source.count_rows() == 2

    def test_large_integers_keep_all_their_digits(self, tmp_path: Path) -> None:
        numbers = [2**63 - 1, -(2**63), 2**64 - 1, 2**64, -(2**63) - 1, 10**30]
        source = open_source(str(write(tmp_path / "a.jsonl", lines(*({"n": number} for number in numbers)))))
        assert rows_of(source) == [{"n": number} for number in numbers]
        assert [row["n"] for row in carried(source)] == [str(number) for number in numbers]

    def test_nan_as_python_writes_it(self, tmp_path: Path) -> None:
        data = b'{"x": 1.5}\n{"x": NaN}\n{"x": -Infinity}\n{"x": NaN, "y": "\\ud800"}\n'
        source = open_source(str(write(tmp_path / "a.jsonl", data)))
        values = [row["x"] for row in rows_of(source) if row is not None]
        assert str(values) == "[1.5, nan, -inf]"
        assert len(failures(source)) == 1

    def test_the_last_of_equal_keys_wins(self, tmp_path: Path) -> None:
        assert rows_of(open_source(str(write(tmp_path / "a.jsonl", b'{"a":1,"a":2}\n')))) == [{"a": 2}]

    def test_a_row_nested_too_deeply_fails_alone(self, tmp_path: Path) -> None:
        deep = b'{"a":' + b"[" * 1010 + b"]" * 1010 + b"}\n"
        source = open_source(str(write(tmp_path / "a.jsonl", b'{"a":"x"}\n' + deep + b'{"a":"y"}\n')))
        assert rows_of(source) == [{"a": "x"}, None, {"a": "y"}]

    @examples(40)
    @given(
        data=st.lists(st.sampled_from([b'{"a":1}', b"", b"x", b'{"a":"\xc3\xa9"}', b" ", b"[1]", b"{}"])),
        end=st.booleans(),
        block=st.integers(1, 40),
    )
    def test_any_cut_of_the_stream_gives_the_same_rows(self, data: list[bytes], end: bool, block: int) -> None:
        joined = b'{"a":0}\n' + b"\n".join(data) + (b"\n" if end else b"")
        whole: list[Any] = []
        for size in (block, 4 * 1024 * 1024):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(joined))))
                source = open_source("-", batch_bytes=size)
                found = [
                    (row, batch.failures.get(index), batch.raw.get(index))
                    for batch in source.batches()
                    for index, row in enumerate(batch.values)
                ]
                whole.append((found, source.warnings))
        assert whole[0] == whole[1]

    def test_an_array_is_refused_with_a_command_that_makes_lines_of_it(self, tmp_path: Path) -> None:
        array = [{"a": 1, "b": "Zürich"}, {"a": 2, "b": "x" * 200}]
        text = json.dumps(array, ensure_ascii=False).encode()
        cases = {
            "one line.json": text,
            "ended.json": text + b"\n",
            "marked.json": b"\xef\xbb\xbf" + json.dumps(array).encode(),
            "many.lines.json": b"\n [\n" + b",\n".join(json.dumps(row).encode() for row in array) + b"\n]\n",
            "pretty.jsonl.json": json.dumps(array, indent=1).encode(),
            "objects of lines.json": b"[" + b",\n".join(json.dumps(row).encode() for row in array) + b"]",
            "packed.json.gz": gzip.compress(text),
            "packed2.json.bz2": bz2.compress(text),
        }
        for name, data in cases.items():
            path = write(tmp_path / name, data)
            for longest in (1_000_000, 50):
                with pytest.raises(UsageError, match="holds a JSON array") as told:
                    open_source(str(path), max_line_bytes=longest)
            convert = str(told.value.remedy).partition(": ")[2]
            subprocess.run(["sh", "-c", convert], check=True, cwd=tmp_path)
            lines_ = tmp_path / f"{name.partition('.')[0]}.jsonl"
            assert [row for batch in open_source(str(lines_)).batches() for row in batch.values] == array, name

    @pytest.mark.parametrize(
        ("data", "reason"),
        [
            (b'{\n  "a": 1\n}\n', "none of the first 3 lines is a row"),
            (b"a,b\n1,2\n", "input.format"),
            ('{"a": 1}\n'.encode("utf-16"), "encoding: utf-16"),
            (b"", "no rows"),
            (b"\n \n", "no rows"),
            (b'{"a":', "left open"),
        ],
    )
    def test_what_is_not_json_lines_is_refused_with_a_remedy(self, tmp_path: Path, data: bytes, reason: str) -> None:
        assert reason in refusal(str(write(tmp_path / "a.json", data)))


class TestCsv:
    def test_everything_is_text(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.csv", '\ufeffid,text\r\n007,"say ""hi"",\nplease"\r\n8,\r\n\r\n')
        source = open_source(str(path))
        assert source.columns == ("id", "text")
        assert rows_of(source) == [{"id": "007", "text": 'say "hi",\nplease'}, {"id": "8", "text": ""}]
        assert carried(source)[0] == {"id": "007", "text": 'say "hi",\nplease', "input_extra": None}
        assert source.count_rows() == 2

    def test_a_bad_row_costs_only_itself(self, tmp_path: Path) -> None:
        data = b'a,b\n1,2\n"x\ny",\xff\n3\n4,5,6\n"7"x,8\n9,10\n'
        source = open_source(str(write(tmp_path / "t.csv", data)))
        (batch,) = source.batches()
        assert [row and row["a"] for row in batch.values] == ["1", None, None, None, None, "9"]
        messages = [failure.message for failure in batch.failures.values()]
        assert [message.split(" ")[0] for message in messages] == ["t.csv:3:", "t.csv:5:", "t.csv:6:", "t.csv:7:"]
        assert batch.raw[1] == b'"x\ny",\xff\n'
        assert "has 1 field where the header has 2" in messages[1]
        assert source.count_rows() == 6

    def test_an_open_quote_and_an_overlong_line_are_failures(self, tmp_path: Path) -> None:
        data = b"a,b\n1,2\n" + b"x" * 100_000 + b',y\n3,4\n"open,5\n'
        source = open_source(str(write(tmp_path / "t.csv", data)), max_line_bytes=10_000)
        assert [row and row["a"] for row in rows_of(source)] == ["1", None, "3", None]
        assert "too long" in failures(source)[0]

    def test_zero_bytes_are_text(self, tmp_path: Path) -> None:
        source = open_source(str(write(tmp_path / "t.csv", b"a,b\nx\0y,2\n")))
        assert rows_of(source) == [{"a": "x\0y", "b": "2"}]

    @pytest.mark.parametrize(("name", "mark"), [("a.csv", ","), ("a.csv", ";"), ("a.csv", "\t"), ("a.tsv", "\t")])
    def test_delimiters_as_spreadsheets_write_them(self, tmp_path: Path, name: str, mark: str) -> None:
        source = open_source(str(write(tmp_path / name, f"a{mark}b\n1{mark}2\n")))
        assert rows_of(source) == [{"a": "1", "b": "2"}]

    def test_a_column_without_name_is_called_by_its_place(self, tmp_path: Path) -> None:
        assert open_source(str(write(tmp_path / "a.csv", ",text\n0,x\n"))).columns == ("column_1", "text")

    def test_typed_columns(self, tmp_path: Path) -> None:
        path = write(
            tmp_path / "a.csv",
            'n,x,ok,at,day,price,tags\n1,0.5,yes,2026-11-01T10:00:00Z,2026-11-01,1.50,"[1]"\n,,,,,,\nmany,x,?,x,x,1.555,[\n',
        )
        types = {
            "n": "int64",
            "x": "float64",
            "ok": "bool",
            "at": "timestamp",
            "day": "date",
            "price": "decimal(6,2)",
            "tags": "json",
        }
        source = open_source(str(path), types=types)
        first, empty, bad = rows_of(source)
        assert first is not None
        assert (first["n"], first["x"], first["ok"], first["tags"]) == (1, 0.5, True, [1])
        assert f"{first['at']:%H:%M} {first['day']} {first['price']}" == "10:00 2026-11-01 1.50"
        assert empty == dict.fromkeys(types)
        assert bad is not None
        assert bad["n"] == "many"
        kept = carried(source)
        assert kept[0]["n"] == 1
        assert kept[0]["tags"] == "[1]"
        assert json.loads(kept[2]["input_extra"]) == {
            "n": "many",
            "x": "x",
            "ok": "?",
            "at": "x",
            "day": "x",
            "price": "1.555",
        }
        assert kept[2]["tags"] == '"["'

    @pytest.mark.parametrize(
        ("data", "reason"),
        [
            ("", "no rows"),
            ("a,b\n", "only a header"),
            ("a,b,a\n1,2,3\n", "'a' twice"),
            ("1,2\n3,4\n", "only numbers"),
            (b"\xff,a\n1,2\n", "not valid UTF-8"),
        ],
    )
    def test_a_file_without_usable_header_is_refused(self, tmp_path: Path, data: str | bytes, reason: str) -> None:
        assert reason in refusal(str(write(tmp_path / "a.csv", data)))

    def test_files_of_a_folder_may_have_other_columns(self, tmp_path: Path) -> None:
        write(tmp_path / "a.csv", "x,y\n1,2\n")
        write(tmp_path / "b.csv", "y,z\n3,4\n")
        assert [{name: row[name] for name in "xyz"} for row in carried(open_source(str(tmp_path)))] == [
            {"x": "1", "y": "2", "z": None},
            {"x": None, "y": "3", "z": "4"},
        ]


class TestFiles:
    @pytest.mark.parametrize("ending", ["", ".gz", ".zst", ".bz2"])
    @pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.csv"])
    def test_compressed_files(self, tmp_path: Path, name: str, ending: str) -> None:
        data = (
            lines(*({"a": str(number)} for number in range(5_000)))
            if "json" in name
            else b"a\n" + b"".join(b"%d\n" % number for number in range(5_000))
        )
        packers: dict[str, Callable[[bytes], bytes]] = {
            "": bytes,
            ".gz": gzip.compress,
            ".zst": lambda part: pa.Codec("zstd").compress(part, asbytes=True),
            ".bz2": bz2.compress,
        }
        half = len(data) // 2
        packed = packers[ending](data[:half]) + packers[ending](data[half:])  # two members, as `cat a.gz b.gz` makes
        source = open_source(str(write(tmp_path / (name + ending), packed)))
        assert rows_of(source) == [{"a": str(number)} for number in range(5_000)]
        assert source.fraction() == 1.0
        assert source.count_rows() == 5_000

    def test_a_folder_gives_its_files_in_order_without_hidden_ones(self, tmp_path: Path) -> None:
        for name in (
            "b.jsonl",
            "a/z.jsonl",
            "a/y.jsonl",
            ".hidden.jsonl",
            "_temporary/c.jsonl",
            "_SUCCESS.json",
            ".git/d.jsonl",
        ):
            write(tmp_path / name, lines({"name": name}))
        write(tmp_path / "README.md", "text")
        source = open_source(str(tmp_path))
        assert source.files == ("a/y.jsonl", "a/z.jsonl", "b.jsonl")
        assert [batch.source for batch in source.batches()] == list(source.files)
        assert [row and row["name"] for row in rows_of(source)] == list(source.files)

    def test_a_glob_names_files_from_its_fixed_folder(self, tmp_path: Path) -> None:
        for name in ("in/x/1.jsonl", "in/y/2.jsonl", "in/y/skip.csv"):
            write(tmp_path / name, lines({"name": name}))
        assert open_source("in/**/*.jsonl", base=tmp_path).files == ("x/1.jsonl", "y/2.jsonl")
        assert open_source("in/?/[12].jsonl", base=tmp_path).files == ("x/1.jsonl", "y/2.jsonl")

    def test_a_name_with_brackets_is_a_name_first(self, tmp_path: Path) -> None:
        write(tmp_path / "a[1].jsonl", lines({"a": 1}))
        assert open_source("a[1].jsonl", base=tmp_path).files == ("a[1].jsonl",)

    def test_format_reads_a_file_of_any_name(self, tmp_path: Path) -> None:
        path = write(tmp_path / "export.txt", lines({"a": 1}))
        assert "the extension .txt is not known" in refusal(str(path))
        assert rows_of(open_source(str(path), format="jsonl")) == [{"a": 1}]

    def test_what_is_not_there_is_named_with_what_is(self, tmp_path: Path) -> None:
        write(tmp_path / "tickets.jsonl", lines({"a": 1}))
        message = refusal("ticket.jsonl", base=tmp_path)
        assert str(tmp_path / "ticket.jsonl") in message
        assert "tickets.jsonl" in message
        assert "is there, what follows it is not" in refusal("no/such/a.jsonl", base=tmp_path)
        assert "no file matches" in refusal("*.csv", base=tmp_path)
        assert "In that folder there is tickets.jsonl" in refusal("zzz.parquet", base=tmp_path)

    def test_other_inputs_that_cannot_be_used(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        assert "holds no input file" in refusal(str(tmp_path / "empty"))
        write(tmp_path / "mixed/a.csv", "a\n1\n")
        write(tmp_path / "mixed/a.jsonl", lines({"a": 1}))
        assert "mixes csv and jsonl" in refusal(str(tmp_path / "mixed"))
        assert "not known" in refusal(str(tmp_path / "mixed/a.csv"), format="xlsx")
        assert "incorrect header check" in refusal(str(write(tmp_path / "a.jsonl.gz", b"not gzip" * 20)))
        os.mkfifo(tmp_path / "pipe.jsonl")
        assert "--input -" in refusal(str(tmp_path / "pipe.jsonl"))
        path = write(tmp_path / "a.jsonl", lines({"a": 1}))
        assert "is no column type" in refusal(str(path), types={"a": "varchar"})
        assert "did you mean 'price'" in refusal(str(write(tmp_path / "b.csv", "price\n1\n")), types={"prise": "int64"})

    def test_a_damaged_file_ends_the_pass_without_inventing_rows(self, tmp_path: Path) -> None:
        packed = gzip.compress(lines(*({"a": os.urandom(40).hex()} for _ in range(20_000))))
        path = write(tmp_path / "a.jsonl.gz", packed[: len(packed) - 1000])
        source = open_source(str(path))
        read: list[dict[str, Any] | None] = []
        with pytest.raises(StorageError, match=r"a\.jsonl\.gz"):
            read.extend(row for batch in source.batches() for row in batch.values)
        assert 10_000 < len(read) < 20_000
        assert None not in read

    def test_fraction_grows_from_nothing_to_all(self, tmp_path: Path) -> None:
        for name in ("a.jsonl", "b.jsonl"):
            write(tmp_path / name, lines(*({"a": "x" * 1000} for _ in range(3_000))))
        source = open_source(str(tmp_path))
        assert source.fraction() == 0.0
        seen = [source.fraction() for _ in source.batches()]
        assert seen == sorted(seen)
        assert 0 < seen[0] < 0.5
        assert source.fraction() == 1.0
        assert source.known_rows() is None

    def test_batches_are_bounded_in_rows_and_bytes(self, tmp_path: Path) -> None:
        path = str(write(tmp_path / "a.jsonl", lines(*({"a": "x" * 100} for _ in range(1_000)))))
        assert max(len(batch.values) for batch in open_source(path, batch_rows=64).batches()) == 64
        for batch in open_source(path, batch_bytes=2_000).batches():
            assert batch.nbytes <= 2_000 + 120  # and what was left of the block before
            assert len(batch.values) >= 1

    def test_leaving_a_pass_early_closes_its_file(self, tmp_path: Path) -> None:
        source = open_source(str(write(tmp_path / "a.jsonl", lines(*({"a": 1} for _ in range(5_000))))))
        batches = source.batches()
        assert isinstance(next(batches), RowBatch)
        batches.close()  # a ResourceWarning would be an error
        assert len(rows_of(source)) == 5_000


class TestStandardInput:
    def test_all_rows_come_once(self, stdin: Callable[[bytes], None]) -> None:
        stdin(b"\xef\xbb\xbf" + lines(*({"a": number} for number in range(30_000))))
        source = open_source("-")
        assert source.files == ("-",)
        assert [row and row["a"] for row in rows_of(source)] == list(range(30_000))
        with pytest.raises(UsageError, match="only once"):
            next(source.batches())
        with pytest.raises(UsageError, match="counted"):
            source.count_rows()
        assert source.fraction() == 0.0

    def test_csv_and_failures(self, stdin: Callable[[bytes], None]) -> None:
        stdin(b"a,b\n1,2\n3\n")
        source = open_source("-", format="csv")
        (batch,) = source.batches()
        assert batch.values == [{"a": "1", "b": "2"}, None]
        assert batch.failures[1].message.startswith("-:3: ")

    def test_a_closed_standard_input_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "stdin", None)
        assert "standard input is closed" in refusal("-")

    def test_nothing_and_parquet_are_refused(self, stdin: Callable[[bytes], None]) -> None:
        stdin(b"")
        assert "standard input: the input has no rows" in refusal("-")
        assert "Save it to a file" in refusal("-", format="parquet")

    def test_rows_are_taken_as_they_arrive(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        reading, writing = os.pipe()
        with os.fdopen(reading, "rb") as pipe, os.fdopen(writing, "wb", buffering=0) as writer:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(pipe))
            writer.write(lines({"a": 1}))
            schema = open_source(str(write(tmp_path / "a.jsonl", lines({"a": 1})))).schema
            batches = open_source("-", frozen=schema).batches()
            assert next(batches).values == [{"a": 1}]
            writer.write(lines({"a": 2}))
            assert next(batches).values == [{"a": 2}]
            writer.close()
            assert list(batches) == []


class TestParquet:
    def test_rows_and_columns(self, tmp_path: Path) -> None:
        table = pa.table(
            {"id": pa.array([1, 2, 3], pa.int32()), "turns": [[{"role": "user", "content": "x"}], None, []]}
        )
        pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
        source = open_source(str(tmp_path / "a.parquet"))
        assert source.schema.field("id").type == pa.int32()
        assert rows_of(source) == table.to_pylist()
        assert [{name: row[name] for name in ("id", "turns")} for row in carried(source)] == table.to_pylist()
        assert source.known_rows() == source.count_rows() == 3
        assert source.fraction() == 1.0

    def test_large_rows_come_in_small_batches(self, tmp_path: Path) -> None:
        table = pa.table({"a": [os.urandom(50_000).hex() for _ in range(40)]})
        pq.write_table(table, tmp_path / "a.parquet")
        source = open_source(str(tmp_path / "a.parquet"), batch_bytes=400_000)
        assert max(batch.nbytes for batch in source.batches()) <= 400_000
        assert rows_of(source) == table.to_pylist()

    def test_what_is_not_parquet_is_refused(self, tmp_path: Path) -> None:
        assert "not a readable Parquet file" in refusal(str(write(tmp_path / "a.parquet", b"PAR1 no")))
        pq.write_table(pa.table({"a": pa.array([], pa.int64())}), tmp_path / "b.parquet")
        assert "no rows" in refusal(str(tmp_path / "b.parquet"))
        pq.write_table(pa.table([pa.array([1]), pa.array([2])], names=["a", "a"]), tmp_path / "c.parquet")
        assert "two columns are called 'a'" in refusal(str(tmp_path / "c.parquet"))

    def test_files_with_other_columns_and_types(self, tmp_path: Path) -> None:
        pq.write_table(pa.table({"n": pa.array([1], pa.int32()), "t": ["x"], "v": pa.nulls(1)}), tmp_path / "a.parquet")
        pq.write_table(pa.table({"n": pa.array([2**40]), "t": pa.array([7]), "v": ["later"]}), tmp_path / "b.parquet")
        pq.write_table(pa.table({"n": pa.array([3], pa.int8()), "more": [True]}), tmp_path / "c.parquet")
        source = open_source(str(tmp_path))
        assert [row["n"] for row in carried(source)] == [1, 2**40, 3]
        assert [row["t"] for row in carried(source)] == ["x", None, None]
        assert [row["v"] for row in carried(source)] == [None, "later", None]
        assert [row["more"] for row in carried(source)] == [None, None, True]
        assert [row["input_extra"] for row in carried(source)] == [None, '{"t":7}', None]
        assert [row and row.get("t") for row in rows_of(source)] == ["x", 7, None]


@pytest.mark.thorough
def test_a_block_of_blank_lines_costs_no_line_of_its_own(tmp_path: Path) -> None:
    data = b'{"a":1}\n' + b"\n" * 3_000_000 + b'{"a":2}\nwrong\n'
    source = open_source(str(write(tmp_path / "a.jsonl", data)))
    assert rows_of(source) == [{"a": 1}, {"a": 2}, None]
    assert failures(source)[0].startswith("a.jsonl:3000003: ")
    assert source.count_rows() == 3
