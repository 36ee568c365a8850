"""Images of rows: what is taken for one, what is refused, and that data reads no file it should not."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchchat.images import ImageReader, image_type, placeholders, shortened
from batchchat.records import ErrorKind, Failure, Loaded, RowBatch
from batchchat.template import RowTemplateError, Template, compile_template
from tests.pictures import GIF, JPEG, WEBP, png

AHEAD = 20_000
PNG = png(2, 2, (255, 0, 0))


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def reader(folder: Path, *, root: Path | None = None, max_bytes: int = 1_000) -> ImageReader:
    return ImageReader(frozenset({"photo"}), lambda _: folder, root=root, max_bytes=max_bytes)


def urls(folder: Path, value: Any, **options: Any) -> list[str]:
    """The URLs that a value of the column gives; fails where there are none."""
    loaded = reader(folder, **options).load({"photo": value}, "rows.jsonl")["photo"]
    assert not isinstance(loaded, str), loaded
    return [json.loads(picture.url) for picture in loaded]


def problem(folder: Path, value: Any, **options: Any) -> str:
    loaded = reader(folder, **options).load({"photo": value}, "rows.jsonl")["photo"]
    assert isinstance(loaded, str)
    return loaded


@pytest.mark.parametrize(
    ("data", "kind"), [(PNG, "image/png"), (JPEG, "image/jpeg"), (GIF, "image/gif"), (WEBP, "image/webp")]
)
def test_a_type_is_known_by_the_first_bytes_whatever_the_name_says(tmp_path: Path, data: bytes, kind: str) -> None:
    (tmp_path / "picture.txt").write_bytes(data)
    expected = [data_url(data, kind)]
    assert urls(tmp_path, "picture.txt") == expected
    assert urls(tmp_path, data) == expected
    assert urls(tmp_path, {"bytes": data, "path": None}) == expected
    assert urls(tmp_path, {"bytes": None, "path": "picture.txt"}) == expected
    assert urls(tmp_path, data_url(data, "image/anything")) == expected


def test_an_address_is_passed_on_as_it_is(tmp_path: Path) -> None:
    address = "https://images.example/a%20b.png?size=1&x=ü"
    assert urls(tmp_path, f" {address}\n") == [address]


def test_a_list_gives_several_images_in_order(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    assert urls(tmp_path, ["a.png", GIF, "https://x.example/1"]) == [
        data_url(PNG),
        data_url(GIF, "image/gif"),
        "https://x.example/1",
    ]


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (None, "is null"),
        ("  ", "is empty"),
        ([], "is an empty list"),
        (["https://x.example/1", None], "item 1 is null"),
        ([["nested"]], "item 0 is a list"),
        (3, "is a number, not a path, bytes or an address"),
        (True, "is a boolean"),
        ({"bytes": None, "path": None}, "is null"),
        (b"", "holds nothing, not an image"),
        (b"GIF88a", "holds something else, not an image: PNG, JPEG, GIF or WebP can be sent"),
        (b"%PDF-1.7", "holds PDF, not an image"),
        (b"\0\0\0\x1cftypavif", "holds AVIF, not an image"),
        (b"RIFF\0\0\0\0WAVE", "holds something else"),
        (PNG + bytes(1_000), "bytes, and images.max_bytes is 1,000"),
        (data_url(PNG + bytes(1_000)), "bytes, and images.max_bytes is 1,000"),
        (data_url(b"hello"), "holds something else"),
        ("data:image/png;base64,@@@", "is a data URL whose base64 is damaged"),
        ("data:image/png;base64,iVBORw0KGg", "is a data URL whose base64 is damaged"),
        ("data:image/svg+xml,<svg/>", "is a data URL that is not base64"),
        ("file:///etc/passwd", "is an address of the kind file://"),
        ("s3://bucket/a.png", "is an address of the kind s3://"),
        ("https://x.example/a b", "is no valid address"),
        ("gone.png", "names 'gone.png', which cannot be read"),
        ("nul\0.png", "is no valid path"),
        ("\ud800.png", "which"),
        ("x" * 5_000, "which cannot be read"),
        (".", "is no regular file"),
    ],
)
def test_what_is_no_image_is_refused_with_the_reason(tmp_path: Path, value: Any, told: str) -> None:
    message = problem(tmp_path, value)
    assert told in message
    assert len(message) < 600


def test_a_path_does_not_lead_out_of_its_folder(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    for folder in (inside, outside, inside / "sub", tmp_path / "inner"):
        folder.mkdir()
        (folder / "a.png").write_bytes(PNG)
    (inside / "link.png").symlink_to(outside / "a.png")
    (inside / "near.png").symlink_to("a.png")
    for path in ("a.png", "sub/a.png", "sub/../a.png", "near.png", str(inside / "a.png")):
        assert urls(inside, path)
    leading_out = ("../out/a.png", "sub/../../out/a.png", "link.png", "../inner/a.png", "/etc/passwd")
    for path in (*leading_out, str(outside / "a.png")):
        assert "lies outside" in problem(inside, path), path
    assert urls(inside, "a.png", root=outside)
    assert urls(inside, str(outside / "a.png"), root=Path("/"))


def test_a_folder_reached_through_a_link_is_a_folder_like_others(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.png").write_bytes(PNG)
    (tmp_path / "link").symlink_to("real")
    assert urls(tmp_path / "link", "a.png")


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    assert "no regular file" in problem(tmp_path, "pipe.png")


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "huge.png").open("wb") as file:
        file.write(PNG)
        file.truncate(1 << 40)
    assert f"{1 << 40:,} bytes, and images.max_bytes is 1,000" in problem(tmp_path, "huge.png")


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    descriptor = os.open(tmp_path, os.O_RDONLY)
    os.close(descriptor)
    for _ in range(50):
        urls(tmp_path, "a.png")
        problem(tmp_path, ".")
        problem(tmp_path, "gone.png")
    again = os.open(tmp_path, os.O_RDONLY)
    os.close(again)
    assert again == descriptor


# --- batches


def batch_of(values: list[dict[str, Any] | None]) -> RowBatch:
    columns = pa.RecordBatch.from_pydict({"n": pa.array(range(len(values)), pa.int64())})
    bad = [offset for offset, row in enumerate(values) if row is None]
    failures = {offset: Failure(ErrorKind.INPUT, f"bad {offset}") for offset in bad}
    return RowBatch("rows.jsonl", 100, columns, values, failures, {offset: b"%d" % offset for offset in bad})


@given(st.lists(st.sampled_from([None, 1, 2, 40, 90]), min_size=1, max_size=12), st.sets(st.integers(100, 112)))
def test_pieces_hold_every_row_once_and_no_more_bytes_than_allowed(sizes: list[int | None], wanted: set[int]) -> None:
    unit = AHEAD // 100
    rows = [None if size is None else {"photo": PNG + bytes(unit * size * 3 // 4)} for size in sizes]
    batch = batch_of(list(rows))
    images = ImageReader(frozenset({"photo"}), lambda _: Path(), root=None, max_bytes=AHEAD, ahead_bytes=AHEAD)
    pieces = list(images.batches(batch, wanted.__contains__))
    assert [row for piece in pieces for row in piece.values] == rows
    assert [n for piece in pieces for n in piece.columns.column("n").to_pylist()] == list(range(len(rows)))
    place = 100
    for piece in pieces:
        assert piece.first_index == place
        assert piece.images is not None
        loaded = [size_of(each["photo"]) if each else 0 for each in piece.images]
        assert sum(loaded[:-1]) < AHEAD
        for offset, row in enumerate(piece.values):
            assert (piece.images[offset] is not None) == (row is not None and place + offset in wanted)
            assert (offset in piece.failures) == (offset in piece.raw) == (row is None)
            if row is None:
                assert piece.failures[offset].message == f"bad {place + offset - 100}"
        place += len(piece.values)
    assert place == 100 + len(rows)


def size_of(loaded: Loaded) -> int:
    return 0 if isinstance(loaded, str) else sum(len(picture.url) for picture in loaded)


# --- in requests


def asked(*parts: dict[str, Any]) -> Template:
    return compile_template([{"role": "user", "content": list(parts)}], {}, model="m")


SHOWN = {"type": "image", "from": "photo", "detail": "low"}


def test_golden_identities_of_images_never_change(tmp_path: Path) -> None:
    # A changed identity makes users pay again for every answer they have. Do not adapt these values to new code.
    for value, digest in (
        (GIF, "fc82d9b47fd9d1b294507bf09664fbed"),
        ([GIF, "https://x.example/1"], "7d3eff8212024ac1508598c34bd67dbb"),
    ):
        images = reader(tmp_path).load({"photo": value}, "rows.jsonl")
        assert asked(SHOWN).render({"photo": value}, images=images).digest.hex() == digest


def test_a_request_holds_each_image_in_its_place(tmp_path: Path) -> None:
    values = {"photo": [GIF, "https://x.example/1", GIF, PNG], "text": 'a "url":"image:blake2b:00" b'}
    images = reader(tmp_path).load(values, "rows.jsonl")
    template = asked({"type": "text", "text": "{{ text }}"}, SHOWN, {"type": "text", "text": "which?"}, SHOWN)
    body = json.loads(template.render(values, images=images).body)
    given = [data_url(GIF, "image/gif"), "https://x.example/1", data_url(GIF, "image/gif"), data_url(PNG)]
    parts = [{"type": "image_url", "image_url": {"url": url, "detail": "low"}} for url in given]
    texts = [{"type": "text", "text": values["text"]}, {"type": "text", "text": "which?"}]
    assert body["messages"][0]["content"] == [texts[0], *parts, texts[1], *parts]


def test_images_that_were_not_read_fail_their_row_and_are_not_left_out() -> None:
    with pytest.raises(RowTemplateError, match="the row's images were not read"):
        asked(SHOWN).render({"photo": GIF})


# --- for people


def test_placeholders_are_short_and_read_nothing() -> None:
    long = data_url(bytes(3_000))
    values = {"photo": ["gone.png", b"12345", {"bytes": b"123", "path": "a.png"}, long, None, "\ud800"]}
    shown = placeholders(frozenset({"photo", "missing"}), values)
    assert list(shown) == ["photo"]
    pictures = shown["photo"]
    assert not isinstance(pictures, str)
    texts = [json.loads(picture.url) for picture in pictures]
    assert texts[:3] == ["gone.png", "(5 bytes)", "a.png (3 bytes)"]
    assert texts[3].endswith(f"… ({len(long):,} characters)")
    assert len(texts[3]) < 80


def test_only_data_urls_are_shortened() -> None:
    text = "data: this is what the table in the appendix says about the weather; base64, it seems, is not meant" * 2
    assert shortened(text) == text
    assert shortened("https://x.example/" + "a" * 200) == "https://x.example/" + "a" * 200
    assert len(shortened(data_url(bytes(10_000)))) < 80


@given(st.binary(max_size=40))
def test_any_bytes_have_a_type_or_none(data: bytes) -> None:
    assert image_type(data) in {None, "image/png", "image/jpeg", "image/gif", "image/webp"}
