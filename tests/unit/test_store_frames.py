"""Frames are read back exactly, or not at all."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchchat.store.frames import HEADER_BYTES, Frame, FrameReader, encode
from tests.thorough import examples


def read(path: Path, data: bytes) -> tuple[list[Frame], FrameReader]:
    path.write_bytes(data)
    with path.open("rb") as source:
        reader = FrameReader(source)
        return list(reader), reader


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("frames") / "log"


@given(st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=200)), max_size=8))
def test_what_is_written_comes_back(file: Path, frames: list[tuple[int, bytes]]) -> None:
    data = b"".join(encode(kind, number, payload) for number, (kind, payload) in enumerate(frames))
    found, reader = read(file, data)
    assert [(frame.kind, frame.payload) for frame in found] == frames
    assert [frame.sequence for frame in found] == list(range(len(frames)))
    assert reader.damage is None


def test_cut_anywhere_keeps_the_whole_frames_before(file: Path) -> None:
    frames = [encode(1, 0, b"one"), encode(2, 1, b""), encode(3, 2, b"three" * 9)]
    data = b"".join(frames)
    ends = [len(b"".join(frames[:count])) for count in range(4)]
    for cut in range(len(data) + 1):
        found, reader = read(file, data[:cut])
        whole = sum(end <= cut for end in ends) - 1
        assert [frame.sequence for frame in found] == list(range(whole))
        if cut in ends:
            assert reader.damage is None
        else:
            assert reader.damage is not None
            assert (reader.damage.offset, reader.damage.dropped) == (ends[whole], cut - ends[whole])
            assert reader.damage.torn


@given(st.data())
@examples(200)
def test_flipped_bytes_are_never_believed(file: Path, data: st.DataObject) -> None:
    frames = [encode(1, number, b"payload %d" % number * 3) for number in range(5)]
    whole = bytearray(b"".join(frames))
    place = data.draw(st.integers(0, len(whole) - 1))
    whole[place] ^= data.draw(st.integers(1, 255))
    found, reader = read(file, bytes(whole))
    intact = place // len(frames[0])
    assert [frame.payload for frame in found] == [b"payload %d" % number * 3 for number in range(intact)]
    assert reader.damage is not None
    assert reader.damage.offset == intact * len(frames[0])
    assert reader.damage.torn == (intact == 4)  # behind any earlier damage, intact frames show that it is no torn end


@given(st.binary(max_size=300))
def test_noise_holds_no_frame(file: Path, noise: bytes) -> None:
    found, reader = read(file, noise)
    assert found == []
    assert (reader.damage is None) == (noise == b"")


def test_a_missing_or_repeated_frame_is_seen(file: Path) -> None:
    zero, one, two = (encode(1, number, b"x") for number in range(3))
    for data, kept in ((zero + two, 1), (zero + zero + one, 1), (one + two, 0)):
        found, reader = read(file, data)
        assert len(found) == kept
        assert reader.damage is not None
        assert not reader.damage.torn


def test_an_absurd_length_allocates_nothing(file: Path) -> None:
    header = bytearray(encode(1, 0, b"")[:HEADER_BYTES])
    struct.pack_into("<I", header, 8, 2**32 - 1)

    class Watched(io.FileIO):
        largest = 0

        def read(self, size: int | None = -1) -> bytes:
            Watched.largest = max(Watched.largest, size if size is not None else -1)
            return super().read(-1 if size is None else size)

    file.write_bytes(bytes(header) + b"rest")
    with Watched(file) as source:
        reader = FrameReader(source)
        assert list(reader) == []
    assert reader.damage is not None
    assert Watched.largest < 2 * 2**20


def test_a_file_that_grows_is_read_up_to_where_it_ended(file: Path) -> None:
    file.write_bytes(encode(1, 0, b"first"))
    with file.open("rb") as source:
        reader = FrameReader(source)
        with file.open("ab") as writer:
            writer.write(encode(1, 1, b"second")[:-1])
        assert [frame.payload for frame in reader] == [b"first"]
        assert reader.damage is None
