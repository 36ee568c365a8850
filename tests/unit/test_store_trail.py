"""The trail: what was written comes back as far as it is whole and still holds; a disk that refuses costs nothing."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchchat.records import Place
from batchchat.sources import Stamp
from batchchat.store.location.disk import write_all
from batchchat.store.trail import NO_KEY, Subject, Trail
from tests.thorough import examples

SUBJECT = Subject("text", 2, keyed=True)


class Input:
    """An input of two files with ten rows each, of which a test says how much still holds."""

    def __init__(self) -> None:
        self.stamps = {number: Stamp(f"{number}.jsonl", 100, number, 1, 1, True) for number in (0, 1)}
        self.ends: list[Place] = []
        self.holds = 1_000

    def still_holds(self, stamps: Mapping[int, Stamp], places: Sequence[Place]) -> tuple[int, dict[int, Stamp]]:
        held = min(self.holds, len(places))
        return held, {place.file: stamps[place.file] for place in places}


OPEN: list[Trail] = []


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """Close what a test opened."""
    yield
    close_all()


def close_all() -> None:
    while OPEN:
        OPEN.pop().close()


def opened(folder: Path, subject: Subject = SUBJECT) -> Trail:
    OPEN.append(Trail.open(folder, subject))
    return OPEN[-1]


def custom_id(row: int, sample: int) -> str:
    return hashlib.md5(b"%d %d" % (row, sample)).hexdigest()


def key_of(row: int) -> bytes:
    return NO_KEY if row % 7 == 6 else hashlib.md5(b"key %d" % row).digest()


def record(trail: Trail, source: Input, start: int = 0, stop: int = 20) -> None:
    """Go on with rows from `start`, two in a batch."""
    for row in range(start, stop, 2):
        if row >= 10 and (trail.end is None or trail.end[0::6] == (0, False)):
            source.ends.append(Place(0, 100, ended=True))
        trail.begin_batch(source)
        for each in (row, row + 1):
            trail.add([custom_id(each, 0), custom_id(each, 1)], [key_of(each)])
        trail.end_batch(Place(row // 10, row % 10 * 10 + 20, row % 10 + 3, 0, 100, b"digest", False), source)
        if trail.full:
            trail.flush()


def check(trail: Trail, rows: int) -> None:
    ids, keys = trail.read(0, rows)
    assert ids == b"".join(bytes.fromhex(custom_id(row, sample)) for row in range(rows) for sample in range(2))
    assert keys == b"".join(map(key_of, range(rows)))
    if rows > 3:
        assert trail.read(2, 3) == (ids[64:96], keys[32:48])


def written(folder: Path, rows: int = 20) -> Trail:
    trail = opened(folder)
    record(trail, Input(), 0, rows)
    trail.flush()
    trail.close()
    return trail


def test_what_was_recorded_comes_back(tmp_path: Path) -> None:
    first = written(tmp_path)
    again = opened(tmp_path)
    assert again.batches == first.batches
    assert (again.rows, again.end) == (20, Place(1, 100, 11, 0, 100, b"digest", False))
    check(again, 20)


@pytest.mark.parametrize("other", [Subject("edited", 2, True), Subject("text", 1, True), Subject("text", 2, False)])
def test_a_trail_about_something_else_is_begun_anew(tmp_path: Path, other: Subject) -> None:
    written(tmp_path)
    assert opened(tmp_path, other).rows == 0
    assert opened(tmp_path).rows == 0
    assert all(path.stat().st_size == 0 for path in tmp_path.iterdir())


@examples(60)
@given(st.sampled_from(["log", "ids", "keys"]), st.floats(0, 1), st.one_of(st.none(), st.integers(1, 255)))
def test_what_is_torn_or_damaged_is_cut_off_and_written_again(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, where: float, flip: int | None
) -> None:
    folder = tmp_path_factory.mktemp("trail")
    written(folder)
    path = folder / f"trail.{suffix}"
    data = bytearray(path.read_bytes())
    place = int(where * (len(data) - 1))
    if flip is None:
        path.write_bytes(data[:place])
    else:
        data[place] ^= flip
        path.write_bytes(data)
    trail = opened(folder)
    source = Input()
    assert trail.rows <= 20
    check(trail, trail.rows)
    trail.keep(source)
    record(trail, source, trail.rows)
    trail.flush()
    trail.close()
    again = opened(folder)
    assert again.rows == 20
    check(again, 20)
    close_all()


@pytest.mark.parametrize("held", range(12))
def test_what_does_not_hold_is_forgotten_and_recorded_anew(tmp_path: Path, held: int) -> None:
    written(tmp_path)
    source = Input()
    source.holds = held
    trail = opened(tmp_path)
    trail.keep(source)
    rows = trail.rows
    assert rows == (2 * held if held <= 5 else 2 * (held - 1))  # the sixth is the end of the first file
    check(trail, rows)
    record(trail, source, rows)
    trail.flush()
    again = opened(tmp_path)
    check(again, 20)
    again.keep(Input())
    assert again.rows == 20


def test_the_trail_ends_where_a_file_may_still_grow(tmp_path: Path) -> None:
    trail = opened(tmp_path)
    source = Input()
    record(trail, source, 0, 10)
    # No end of the first file was told: a row may come between it and the second one.
    trail.add([custom_id(10, 0), custom_id(10, 1)], [key_of(10)])
    trail.end_batch(Place(1, 10), source)
    assert trail.rows == 10
    record(trail, source, 12)
    assert trail.rows == 10


def test_the_trail_ends_before_a_batch_of_which_the_pass_took_a_part(tmp_path: Path) -> None:
    trail = opened(tmp_path)
    source = Input()
    record(trail, source, 0, 4)
    trail.begin_batch(source)
    trail.add([custom_id(4, 0), custom_id(4, 1)], [key_of(4)])
    trail.end_batch(Place(0, 60), source, whole=False)
    source.ends.append(Place(0, 100, ended=True))
    trail.begin_batch(source)
    trail.flush()
    assert opened(tmp_path).rows == 4


@pytest.mark.parametrize("begun", [0, 1])
def test_a_full_disk_ends_the_recording_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: int
) -> None:
    calls = 0

    def full(descriptor: int, data: bytes) -> None:
        nonlocal calls
        calls += 1
        if calls > 3 * begun + 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        write_all(descriptor, data)

    trail = opened(tmp_path)
    monkeypatch.setattr("batchchat.store.location.scratch.write_all", full)
    source = Input()
    for start in (0, 2, 4):
        record(trail, source, start, start + 2)
        trail.flush()
    trail.close()
    monkeypatch.undo()
    again = opened(tmp_path)
    assert again.rows == 2 * begun
    check(again, again.rows)


def test_a_folder_that_cannot_be_written_has_no_trail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> int:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("batchchat.store.location.scratch.os.open", refused)
    trail = opened(tmp_path)
    source = Input()
    trail.keep(source)
    record(trail, source)
    trail.flush()
    trail.close()
    assert trail.rows == 0
