"""Delimited text as people have it: lone quotes, other encodings, no header."""

from __future__ import annotations

import io
import json
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from batchchat.errors import StorageError, UsageError
from batchchat.job import validate_job
from batchchat.sources import Source, delimited, open_source


def read(source: Source) -> tuple[list[dict[str, Any]], list[str]]:
    rows, told = [], []
    for batch in source.batches():
        rows += [row for row in batch.values if row is not None]
        told += [failure.message for failure in batch.failures.values()]
    return rows, told


@pytest.mark.parametrize("stray", ['"open', '""open', '"open"x'])
@pytest.mark.parametrize("end", ["", '8,y"z\n', '8,"x"y\n', '8,"\ny"\n'])
def test_a_lone_quote_costs_its_own_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stray: str, end: str) -> None:
    monkeypatch.setattr(delimited, "FIELD_LINES", 20)
    rows = [f"{n},text {n}\n" for n in range(100)]
    rows[1] = f"1,{stray}\n"
    path = tmp_path / "t.csv"
    path.write_text("a,b\n" + "".join(rows) + end)
    source = open_source(str(path), batch_rows=7)
    found, told = read(source)
    numbers = [row["a"] for row in found]
    assert numbers[:99] == [str(n) for n in range(100) if n != 1]
    assert told[0].startswith("t.csv:3: the row is not valid CSV")
    if stray != '"open"x' and not stray.startswith('""'):
        assert "up to line 22; a quote may not be closed" in told[0]
    assert source.count_rows() == len(found) + len(told)


def test_a_lone_quote_near_the_end_costs_its_own_row(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('a,b\n1,x\n2,"y\n3,z\n4,"two\nlines"\n5,w\n')
    # The quote in line 3 finds its end in line 5 only by mistake: what follows it is no delimiter.
    found, told = read(open_source(str(path)))
    assert [row["a"] for row in found] == ["1", "3", "4", "5"]
    assert found[2]["b"] == "two\nlines"
    assert len(told) == 1


def test_rows_behind_a_lone_quote_have_places(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('a,b\n1,"ö\n' + "".join(f"{n},ü\n" for n in range(50)))
    source = open_source(str(path), batch_rows=4)
    batches = list(source.batches())
    for number, batch in enumerate(batches[:-1]):
        if batch.place is not None:
            rest = [row for later in source.batches(batch.place) for row in later.values]
            assert rest == [row for later in batches[number + 1 :] for row in later.values]
    assert sum(batch.place is not None for batch in batches) > 5


@pytest.mark.thorough
def test_memory_stays_flat_behind_a_lone_quote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited, "FIELD_LINES", 500)
    path = tmp_path / "t.csv"
    path.write_text('a,b\n1,x\n2,"x\n' + "3,text\n" * 60_000)
    source = open_source(str(path), batch_bytes=50_000)
    tracemalloc.start()
    rows = sum(len(batch.values) for batch in source.batches())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows == 60_002
    assert peak < 4_000_000


def test_tsv_has_no_quotes_unless_the_job_says_so(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    path.write_text('a\tb\n1\t"inch\n2\t5" pipe\n3\t"all"\n')
    source = open_source(str(path))
    found, told = read(source)
    assert [row["b"] for row in found] == ['"inch', '5" pipe', '"all"']
    assert not told
    path.write_text('"a"\t"b"\n1\t"x\ny"\n')
    source = open_source(str(path))
    assert source.columns == ('"a"', '"b"')
    assert "quoting: true" in source.warnings[0]
    assert read(open_source(str(path), quoting=True))[0] == [{"a": "1", "b": "x\ny"}]
    csv = tmp_path / "t.csv"
    csv.write_text('a,b\n1,"x\n')
    assert read(open_source(str(csv), quoting=False))[0] == [{"a": "1", "b": '"x'}]


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "utf-16-le", "utf-16-be", "utf-8", "latin-1", "utf-32"])
@pytest.mark.parametrize("kind", ["csv", "jsonl", "tsv"])
def test_texts_in_any_encoding(tmp_path: Path, kind: str, encoding: str) -> None:
    mark = "," if kind == "csv" else "\t"
    rows = [{"a": str(n), "größe": "für €" if "latin" not in encoding else "für"} for n in range(300)]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if kind != "jsonl":
        text = f"a{mark}größe\n" + "".join(f"{row['a']}{mark}{row['größe']}\n" for row in rows)
    path = tmp_path / f"t.{kind}"
    path.write_bytes(text.encode(encoding))
    source = open_source(str(path), encoding=encoding, batch_rows=50)
    assert read(source) == (rows, [])
    assert source.count_rows() == 300
    for number, batch in enumerate(list(source.batches())[:-1], 1):
        if batch.place is not None:
            later = [row for rest in source.batches(batch.place) for row in rest.values]
            assert later == rows[number * 50 :]


def test_bytes_that_the_encoding_does_not_have_cost_their_row(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"a,b\n1,\xfc\n2,\x81\n3,\x80\n")
    found, told = read(open_source(str(path), encoding="cp1252"))
    assert [row["b"] for row in found] == ["ü", "€"]
    assert told == ["t.csv:3: the row is not valid cp1252; check `encoding` under input"]


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("t.csv", "größe\n1\n".encode("cp1252"), "encoding: cp1252"),
        ("t.csv", "a\nb\n".encode("utf-16"), "encoding: utf-16"),
        ("t.jsonl", '{"a":"b"}\n'.encode("utf-16"), "encoding: utf-16"),
        ("t.tsv", b"\xfe\xff\x00a\x00\n\x00b\x00\n", "encoding: utf-16"),
    ],
)
def test_another_encoding_is_named_when_it_is_met(tmp_path: Path, name: str, data: bytes, told: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UsageError, match=told):
        open_source(str(tmp_path / name))


def test_a_row_in_another_encoding_says_how_to_read_it(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"a\nx\n\xfc\n")
    (tmp_path / "t.jsonl").write_bytes(b'{"a":"x"}\n{"a":"\xfc"}\n')
    for name in ("t.csv", "t.jsonl"):
        (told,) = read(open_source(str(tmp_path / name)))[1]
        assert "encoding: cp1252" in told


def test_standard_input_in_another_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    data = io.BytesIO("a,b\n1,ü\n".encode("utf-16"))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(data)))
    assert read(open_source("-", format="csv", encoding="utf-16"))[0] == [{"a": "1", "b": "ü"}]


def test_files_without_a_header(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('1,x\n2,"y\nz"\n')
    wanted = [("1", "x"), ("2", "y\nz")]
    assert [tuple(row.values()) for row in read(open_source(str(path), header=False))[0]] == wanted
    assert open_source(str(path), header=False).columns == ("column_1", "column_2")
    source = open_source(str(path), header=("id", "text"), types={"id": "int64"})
    assert read(source)[0] == [{"id": 1, "text": "x"}, {"id": 2, "text": "y\nz"}]
    assert source.count_rows() == 2
    with pytest.raises(UsageError, match="first row has 2 fields"):
        open_source(str(path), header=("a", "b", "c"))
    path.write_text("1,2\n")
    with pytest.raises(UsageError, match="header: "):
        open_source(str(path))


@pytest.mark.parametrize(
    ("path", "options", "told"),
    [
        ("t.csv", {"encoding": "cp1253x"}, "cp1252"),
        ("t.csv", {"encoding": "base64"}, "no encoding of texts"),
        ("t.jsonl", {"header": False}, "for CSV and TSV"),
        ("t.jsonl", {"quoting": True}, "for CSV and TSV"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(
    tmp_path: Path, path: str, options: dict[str, Any], told: str
) -> None:
    (tmp_path / "t.csv").write_text("a\n1\n")
    (tmp_path / "t.jsonl").write_text('{"a":1}\n')
    with pytest.raises(UsageError, match=told):
        open_source(str(tmp_path / path), **options)


@pytest.mark.parametrize("header", [[], ["a", "a"], ["a", ""], "names", 3])
def test_a_wrong_header_is_an_error_of_the_job(header: object) -> None:
    data = {"name": "t", "input": {"path": "x.csv", "header": header}, "output": "out", "provider": "demo"}
    with pytest.raises(UsageError, match="header"):
        validate_job({**data, "model": "m", "messages": [{"role": "user", "content": "{{ a }}"}]})


def test_a_file_that_ends_in_a_lone_quote_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('a,b\n1,x\n2,"')
    found, told = read(open_source(str(path)))
    assert (len(found), len(told)) == (1, 1)
    with pytest.raises((UsageError, StorageError)):
        open_source(str(tmp_path / "none.csv"))
