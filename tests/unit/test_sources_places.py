"""Places in an input: a pass begins behind one as if it had read all before, and is told when that would be wrong."""

from __future__ import annotations

import gzip
import io
import os
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchchat.records import Failure, Place
from batchchat.sources import Source, open_source
from tests.thorough import examples

Row = tuple[dict[str, Any] | None, Failure | None, bytes | None]

LINES = st.lists(
    st.sampled_from(
        [
            b'{"a": 1}',
            b'{"a": "\xc3\xa4"}',
            b"",
            b"  ",
            b"no json",
            b"\xff\xfe",
            b'{"b": [1, 2]}',
            b'{"a":"' + b"x" * 99,
        ]
    ),
    max_size=12,
)
CELLS = st.lists(
    st.sampled_from(
        [b"1,2", b"\xc3\xa4,b", b'"x\ny",2', b"", b"1,2,3", b"\xff,1", b'"open', b'a"b,1', b"y" * 70 + b",2"]
    ),
    max_size=12,
)
ENDS = st.sampled_from([b"\n", b"\r\n"])


def read(source: Source, after: Place | None = None, first_index: int = 0) -> tuple[list[Row], list[tuple[int, Place]]]:
    """All rows behind a place, and the places on the way with the number of rows before each."""
    rows: list[Row] = []
    places: list[tuple[int, Place]] = []
    for batch in source.batches(after, first_index):
        assert batch.first_index == first_index + len(rows)
        assert batch.columns.num_rows == len(batch.values)
        rows += [(row, batch.failures.get(n), batch.raw.get(n)) for n, row in enumerate(batch.values)]
        if batch.place is not None:
            places.append((first_index + len(rows), batch.place))
    return rows, places


def check_all_places(source: Source) -> list[Place]:
    rows, places = read(source)
    stamps, ends = dict(source.stamps), list(source.ends)
    for before, place in places:
        assert read(source, place, before)[0] == rows[before:]
    for place in ends:
        behind, _ = read(source, place, len(rows))
        assert rows[len(rows) - len(behind) :] == behind
    known = sorted([place for _, place in places] + ends, key=lambda place: (place.file, place.ended, place.offset))
    # A file whose last line is left open may grow by a row: then nothing is known about the files behind it.
    closed = {place.file for place in ends}
    open_file = min(set(range(len(source.files))) - closed, default=len(source.files))
    # The files are too young to be believed by their stamps: their bytes are compared.
    assert source.still_holds(stamps, known)[0] == sum(place.file <= open_file for place in known)
    return known


def folder_of(tmp: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (tmp / name).write_bytes(data)
    return tmp


@examples(60)
@given(st.lists(st.tuples(LINES, ENDS, st.booleans(), st.booleans()), min_size=1, max_size=3), st.integers(1, 3))
def test_json_lines_go_on_behind_every_place(
    tmp_path_factory: pytest.TempPathFactory, files: list[tuple[list[bytes], bytes, bool, bool]], batch_rows: int
) -> None:
    folder = tmp_path_factory.mktemp("jsonl")
    for number, (lines, end, marked, closed) in enumerate(files):
        data = b"\xef\xbb\xbf" * marked + end.join([b'{"a": 0}', *lines]) + end * closed
        (folder / f"{number}.jsonl").write_bytes(data)
    check_all_places(open_source(str(folder), batch_rows=batch_rows, batch_bytes=32, max_line_bytes=64))


@examples(60)
@given(st.lists(st.tuples(CELLS, ENDS, st.booleans(), st.booleans()), min_size=1, max_size=3), st.integers(1, 3))
def test_csv_goes_on_behind_every_place(
    tmp_path_factory: pytest.TempPathFactory, files: list[tuple[list[bytes], bytes, bool, bool]], batch_rows: int
) -> None:
    folder = tmp_path_factory.mktemp("csv")
    for number, (lines, end, marked, closed) in enumerate(files):
        data = b"\xef\xbb\xbf" * marked + end.join([b"a,b", b"0,0", *lines]) + end * closed
        (folder / f"{number}.csv").write_bytes(data)
    source = open_source(str(folder), types={"b": "int64"}, batch_rows=batch_rows, batch_bytes=64, max_line_bytes=64)
    check_all_places(source)


@pytest.mark.parametrize("group", [1, 3, 7, 100])
def test_parquet_goes_on_behind_every_place(tmp_path: Path, group: int) -> None:
    table = pa.table({"a": range(20), "b": [f"text {n}" for n in range(20)]})
    for name in ("1.parquet", "2.parquet"):
        pq.write_table(table, tmp_path / name, row_group_size=group)
    source = open_source(str(tmp_path), batch_rows=6)
    rows, places = read(source)
    assert len(rows) == 40
    assert places
    for before, place in places:
        assert read(source, place, before)[0] == rows[before:]
    assert [place.ended for place in source.ends] == [True]


def test_compressed_text_goes_on_behind_every_place(tmp_path: Path) -> None:
    data = b"".join(b'{"a": %d}\n' % n for n in range(500))
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(data))
    places = check_all_places(open_source(str(tmp_path), batch_rows=50, batch_bytes=1000))
    assert len(places) > 5


def test_standard_input_has_no_places(monkeypatch: pytest.MonkeyPatch) -> None:
    class Piped:
        buffer = io.BufferedReader(io.BytesIO(b'{"a": 1}\n{"a": 2}\n'))

    monkeypatch.setattr("sys.stdin", Piped())
    source = open_source("-")
    rows, places = read(source)
    assert (len(rows), places, source.ends, source.stamps) == (2, [], [], {})


def lines(count: int, start: int = 0) -> bytes:
    return b"".join(b'{"a": %d, "text": "some words"}\n' % n for n in range(start, start + count))


@pytest.fixture
def grown(tmp_path: Path) -> tuple[Path, Source, dict[int, Any], list[Place]]:
    """Two files that were read, with their places."""
    for name in ("1.jsonl", "2.jsonl"):
        (tmp_path / name).write_bytes(lines(40))
    source = open_source(str(tmp_path), batch_rows=8, batch_bytes=300)
    places: list[Place] = []
    for batch in source.batches():
        places += source.ends[sum(place.ended for place in places) :]
        assert batch.place is not None
        places.append(batch.place)
    places += source.ends[1:]
    assert [place.ended for place in places].count(True) == 2
    return tmp_path, source, dict(source.stamps), places


def held(folder: Path, stamps: dict[int, Any], places: list[Place]) -> int:
    """How many of the places hold for a new look at the folder."""
    return open_source(str(folder), batch_rows=8, batch_bytes=300).still_holds(stamps, places)[0]


Known = tuple[Path, Source, dict[int, Any], list[Place]]


def test_what_is_appended_to_the_last_file_leaves_all_places_but_its_end(grown: Known) -> None:
    folder, _, stamps, places = grown
    with (folder / "2.jsonl").open("ab") as file:
        file.write(lines(3, 40))
    assert held(folder, stamps, places) == len(places) - 1


def test_what_is_appended_to_an_earlier_file_moves_the_rows_of_the_next(grown: Known) -> None:
    folder, _, stamps, places = grown
    with (folder / "1.jsonl").open("ab") as file:
        file.write(lines(1, 40))
    assert held(folder, stamps, places) == [place.ended for place in places].index(True)


def test_an_edit_invalidates_what_stands_behind_it(grown: Known) -> None:
    folder, _, stamps, places = grown
    data = (folder / "2.jsonl").read_bytes()
    middle = len(data) // 2
    (folder / "2.jsonl").write_bytes(data[:middle] + b"X" + data[middle + 1 :])
    count = held(folder, stamps, places)
    assert 0 < count < len(places)
    assert places[count].file == 1
    assert places[count].hashed > middle >= places[count - 1].offset


@pytest.mark.parametrize("change", ["renamed", "before", "removed", "cut", "emptied"])
def test_another_list_of_files_is_noticed(grown: Known, change: str) -> None:
    folder, _, stamps, places = grown
    first = [place.ended for place in places].index(True) + 1
    expected = first
    if change == "renamed":
        (folder / "2.jsonl").rename(folder / "3.jsonl")
    elif change == "before":
        (folder / "0.jsonl").write_bytes(lines(40))
        expected = 0
    elif change == "removed":
        (folder / "2.jsonl").unlink()
    elif change == "cut":
        os.truncate(folder / "2.jsonl", 620)
        expected = first + sum(place.file == 1 and place.hashed <= 620 for place in places)
    else:
        (folder / "1.jsonl").write_bytes(b"")
        expected = 0
    assert held(folder, stamps, places) == expected


def test_an_old_file_is_believed_by_its_stamp_and_a_young_one_is_not(grown: Known, monkeypatch: Any) -> None:
    folder, source, stamps, places = grown
    read_again = []
    compare = Source._compare

    def noted(self: Source, file: Any, some: Any) -> int:
        read_again.append(file.name)
        return compare(self, file, some)

    monkeypatch.setattr(Source, "_compare", noted)
    assert held(folder, stamps, places) == len(places)
    assert read_again == ["1.jsonl", "2.jsonl"]
    later = time.time_ns() + 10_000_000_000
    monkeypatch.setattr("batchchat.sources.input_file.time.time_ns", lambda: later)
    for _ in source.batches():
        pass
    read_again.clear()
    assert held(folder, dict(source.stamps), places) == len(places)
    assert read_again == []
    # The same size and modification time, as a copy or `touch` can give them: the time of change tells.
    about = (folder / "1.jsonl").stat()
    data = (folder / "1.jsonl").read_bytes()
    (folder / "1.jsonl").write_bytes(data.replace(b"some words", b"sane words"))
    os.utime(folder / "1.jsonl", ns=(about.st_atime_ns, about.st_mtime_ns))
    assert held(folder, dict(source.stamps), places) == 0
    assert read_again == ["1.jsonl"]
