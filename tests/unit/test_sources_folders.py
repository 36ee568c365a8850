"""Which files of a folder are input: links, partitions, and what batchchat wrote itself."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import batchchat
from batchchat.errors import UsageError
from batchchat.sources import Source, open_source
from tests.integration.jobs import make_job, write_rows


def rows(path: Path, *names: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f'{{"a":"{name}"}}\n' for name in names or (path.stem,)))


def values(source: Source) -> list[dict[str, object] | None]:
    return [row for batch in source.batches() for row in batch.values]


def output(folder: Path) -> None:
    (folder / "_batchchat").mkdir(parents=True)
    rows(folder / "data" / "part.jsonl", "product")


def evaluation(folder: Path) -> None:
    output(folder / "variants" / "one-123")
    rows(folder / "judges" / "cases.jsonl", "product")


@pytest.mark.parametrize("make", [output, evaluation])
def test_what_batchchat_wrote_is_no_input_unless_it_is_named(tmp_path: Path, make: object) -> None:
    assert callable(make)
    rows(tmp_path / "in" / "x.jsonl")
    for place in ("in/out", "in/out.2024-01-01", "in/deep/er/out"):
        make(tmp_path / place)
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "elsewhere")
    make(tmp_path / "elsewhere")
    for path in ("in", "in/**/*.jsonl"):
        source = open_source(path, base=tmp_path)
        assert source.files == ("x.jsonl",)
        told = " ".join(source.warnings)
        assert all(f"{tmp_path}/in/{name}: left out" in told for name in ("out", "out.2024-01-01", "deep/er/out"))
        list(source.batches())
        assert " ".join(source.warnings) == told


@pytest.mark.parametrize("path", ["out", "out/data", "out/data/*.jsonl", "*/data/*.jsonl", "out/data/part.jsonl"])
def test_an_output_that_is_named_is_input(tmp_path: Path, path: str) -> None:
    output(tmp_path / "out")
    assert values(open_source(path, base=tmp_path)) == [{"a": "product"}]


@pytest.mark.parametrize(
    ("path", "out"),
    [
        ("in", "in/out"),
        ("in", "in"),
        ("in", "in/a/b/../out"),
        ("link", "in/out"),
        ("in/**/*.jsonl", "in/out"),
        ("in/**/*.jsonl", "in/_out"),
        ("in/out/data", "in/out"),
        ("in/out/data/part.jsonl", "in/out"),
        ("in/*/data/*.jsonl", "in/out"),
    ],
)
def test_an_output_that_would_be_read_is_refused(tmp_path: Path, path: str, out: str) -> None:
    rows(tmp_path / "in" / "x.jsonl")
    output(tmp_path / "in" / "out")
    (tmp_path / "link").symlink_to("in")
    with pytest.raises(UsageError, match=r"inside the input|part of the output") as caught:
        open_source(path, base=tmp_path, output=tmp_path / out)
    assert "output" in (caught.value.remedy or "")


@pytest.mark.parametrize(
    ("path", "out"),
    [("in", "in/_out"), ("in", "in/.out/x"), ("in/*.jsonl", "in/out"), ("in/x.jsonl", "in"), ("in", "b")],
)
def test_an_output_that_is_never_read_is_fine(tmp_path: Path, path: str, out: str) -> None:
    rows(tmp_path / "in" / "x.jsonl")
    assert values(open_source(path, base=tmp_path, output=tmp_path / out)) == [{"a": "x"}]


def test_a_run_into_its_own_input_sends_nothing(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_rows(tmp_path / "in" / "rows.jsonl", [{"id": 1, "text": "x"}])
    job = make_job(tmp_path, None, input=str(tmp_path / "in"), output={"path": str(tmp_path / "in" / "out")})
    with pytest.raises(UsageError, match="lies inside the input"):
        batchchat.run(job, environ={})
    assert not (tmp_path / "in" / "out").exists()


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    rows(tmp_path / "in" / "real" / "x.jsonl")
    rows(tmp_path / "store" / "y.jsonl")
    rows(tmp_path / "store" / "deep" / "z.jsonl")
    (tmp_path / "store" / "back").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "a").symlink_to(tmp_path / "store")
    (tmp_path / "in" / "b").symlink_to(tmp_path / "store")
    (tmp_path / "in" / "an alias").symlink_to("real")
    (tmp_path / "in" / "self").symlink_to("self")
    (tmp_path / "in" / "gone").symlink_to("nowhere")
    source = open_source(str(tmp_path / "in"))
    assert source.files == ("a/deep/z.jsonl", "a/y.jsonl", "real/x.jsonl")
    for name in ("b", "an alias", "a/back"):
        assert any(note.startswith(f"{tmp_path}/in/{name}: the link was not followed") for note in source.warnings)
    for name in ("self", "gone"):
        assert f"{tmp_path}/in/{name}: left out, since the link leads nowhere" in source.warnings
    (tmp_path / "in" / "c.jsonl").symlink_to("nowhere")
    with pytest.raises(UsageError, match=r"c\.jsonl: cannot be read"):
        open_source(str(tmp_path / "in"))


def test_data_of_other_kinds_is_named(tmp_path: Path) -> None:
    rows(tmp_path / "x.jsonl")
    for name in ("a.xlsx", "b.parquet.gz", "README.md", "photo.png", "c.jsonl.xz"):
        (tmp_path / name).write_bytes(b"")
    (told,) = open_source(str(tmp_path)).warnings
    assert told == "left out, since files of their kind are not read: a.xlsx, b.parquet.gz, c.jsonl.xz"


def test_folders_named_like_columns_give_columns(tmp_path: Path) -> None:
    for kind in ("jsonl", "csv", "parquet"):
        for date, city in (("2024-01-01", "K%C3%B6ln"), ("2024-01-02", "__HIVE_DEFAULT_PARTITION__")):
            path = tmp_path / kind / f"date={date}" / f"city={city}" / f"x.{kind}"
            path.parent.mkdir(parents=True)
            if kind == "parquet":
                pq.write_table(pa.table({"a": ["x"]}), path)
            else:
                path.write_text('{"a":"x"}\n' if kind == "jsonl" else "a\nx\n")
        for pattern in (kind, f"{kind}/*/*/*.{kind}"):
            source = open_source(pattern, base=tmp_path)
            assert source.columns == ("a", "date", "city")
            wanted: list[dict[str, object]] = [
                {"a": "x", "date": "2024-01-01", "city": "Köln"},
                {"a": "x", "date": "2024-01-02", "city": None},
            ]
            assert values(source) == wanted
            found = [row for batch in source.batches() for row in batch.columns.to_pylist()]
            assert [{**row, "input_extra": None} for row in wanted] == found
        typed = open_source(kind, base=tmp_path, types={"date": "date"})
        assert str(typed.schema.field("date").type) == "date32[day]"
        assert str(values(typed)[0]["date"]) == "2024-01-01"  # type: ignore[index]


def test_a_column_of_the_file_goes_before_the_name_of_its_folder(tmp_path: Path) -> None:
    rows(tmp_path / "a=folder" / "x.jsonl")
    assert values(open_source(str(tmp_path))) == [{"a": "x"}]
