"""An input that ends early or changes while it is read is an error, never a shorter input."""

from __future__ import annotations

import bz2
import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchchat.errors import StorageError, UsageError
from batchchat.sources import Source, open_source
from tests.thorough import one_in

ROWS = [{"a": f"{number:06}"} for number in range(200_000)]
SMALL = ROWS[:3000]


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def csv(rows: list[dict[str, Any]]) -> bytes:
    return b"a\n" + b"".join(f"{row['a']}\n".encode() for row in rows)


def parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=200)
    data: bytes = sink.getvalue().to_pybytes()
    return data


KINDS: dict[str, Callable[[], bytes]] = {
    "x.jsonl": lambda: jsonl(ROWS),
    "x.csv": lambda: csv(ROWS),
    "x.tsv": lambda: csv(ROWS),
    "x.jsonl.gz": lambda: gzip.compress(jsonl(ROWS), 1),
    "x.csv.zst": lambda: pa.compress(csv(ROWS), codec="zstd", asbytes=True),
    "x.parquet": lambda: parquet(SMALL),
}


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 3)


def rewrite(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data)
    os.utime(path, ns=(1, 1))


def replace(path: Path) -> None:
    new = path.with_name("new")
    new.write_bytes(path.read_bytes())
    about = path.stat()
    os.utime(new, ns=(about.st_atime_ns, about.st_mtime_ns))
    new.replace(path)


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"{}\n")


@pytest.mark.parametrize("name", one_in(3, KINDS))
def test_a_file_that_changes_while_it_is_read_is_noticed(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    data = KINDS[name]()
    for change in (cut, rewrite, replace, append, Path.unlink):
        path.write_bytes(data)
        source = open_source(str(path))
        for read in (1, None):
            batches = source.batches()
            if read:
                next(batches)
                change(path)
            with pytest.raises(StorageError) as caught:
                list(batches)
            assert str(path) in str(caught.value)
            assert "run the same command again" in str(caught.value)


@pytest.mark.parametrize("change", ["add", "remove", "edit"])
@pytest.mark.parametrize("earlier", [True, False])
def test_a_folder_that_changes_while_it_is_read_is_noticed(tmp_path: Path, change: str, earlier: bool) -> None:
    for name in ("b", "d"):
        (tmp_path / f"{name}.jsonl").write_bytes(jsonl(SMALL))
    source = open_source(str(tmp_path), batch_rows=100)
    batches = source.batches()
    for _ in range(35):  # the first file is read
        next(batches)
    if change == "add":
        (tmp_path / ("a.jsonl" if earlier else "e.jsonl")).write_bytes(b'{"a":1}\n')
    else:
        path = tmp_path / ("b.jsonl" if earlier else "d.jsonl")
        path.unlink() if change == "remove" else append(path)
    with pytest.raises(StorageError, match=r"changed while it was read|No such file"):
        list(batches)


@pytest.mark.parametrize("name", ["x.jsonl.gz", "x.csv.bz2", "x.jsonl.zst"])
def test_a_compressed_file_that_ends_early_is_no_shorter_input(tmp_path: Path, name: str) -> None:
    """The file was cut before it was opened: its own trailer promises more."""
    data = csv(SMALL) if "csv" in name else jsonl(SMALL)
    pack: dict[str, Callable[[bytes], bytes]] = {
        "gz": gzip.compress,
        "bz2": bz2.compress,
        "zst": lambda text: pa.compress(text, "zstd", asbytes=True),
    }
    whole = pack[name.rpartition(".")[2]](data)
    for length in (0, 1, 7, len(whole) // 2, len(whole) - 9, len(whole) - 1):
        (tmp_path / name).write_bytes(whole[:length])
        with pytest.raises((UsageError, StorageError), match=name):
            list(open_source(str(tmp_path / name)).batches())


def test_reading_a_file_twice_without_a_change_is_fine(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(jsonl(SMALL))
    source: Source = open_source(str(path))
    path.chmod(0o400)  # neither rights nor links are part of the rows
    (tmp_path / "link").hardlink_to(path)
    assert sum(len(batch.values) for batch in source.batches()) == sum(len(b.values) for b in source.batches()) == 3000
