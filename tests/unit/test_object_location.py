"""An output in a bucket, request by request: what is refused, what is read back, and how few requests it takes."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchchat.errors import OutputLocked, StorageError, UsageError
from batchchat.store import read_state, verify
from batchchat.store.location.bucket import (
    ConditionFailedError,
    FoundObject,
    ObjectBucket,
    OtherContentError,
    RefusedError,
    StorePatience,
    Tag,
    UnclearError,
)
from batchchat.store.location.object_hold import OutputLost
from batchchat.store.location.objects import ObjectLocation
from tests.object_store import URL, MemoryObjects
from tests.store_cases import commit, open_store, seal, settled

STATE = "bucket/run/_batchchat/"


def location(objects: MemoryObjects) -> ObjectLocation:
    return ObjectLocation(URL, objects=objects, heartbeat=None, patience=StorePatience(2.0, sleep=lambda _: None))


def test_records_come_back_from_the_journal_and_from_parts_and_writers_leave_it_clean() -> None:
    objects = MemoryObjects()
    with open_store(location(objects)) as store:
        commit(store, settled(0, 5))
        # A reader without the hold sees what is only in the journal.
        assert sum(batch.num_rows for batch in read_state_of(objects)) == 5
        seal(store)
        commit(store, settled(5, 5))
    assert sum(batch.num_rows for batch in read_state_of(objects)) == 10
    with open_store(location(objects), "run-2") as store:
        assert store.recovery.records == 5
        assert store.stored_rows() == 10
        seal(store)
    # Whoever ended cleanly leaves no fence behind, and no journal.
    assert not [path for path in objects.content if path.startswith(f"{STATE}journal/")]
    assert not [path for path in objects.content if "probe" in path]


def read_state_of(objects: MemoryObjects) -> list[pa.RecordBatch]:
    return list(read_state(location(objects)).records(["custom_id"]))


def test_a_killed_writer_leaves_one_fence_and_a_second_takeover_adds_none() -> None:
    objects = MemoryObjects()
    first = open_store(location(objects))
    commit(first, settled(0, 3))
    for run in ("run-2", "run-3"):
        open_store(location(objects), run, take_over=True)
    fences = [path for path in objects.content if path.startswith(f"{STATE}journal/")]
    assert fences == [f"{STATE}journal/0000000001/0000000002"]
    with pytest.raises(OutputLost) as caught:
        first.commit(settled(3, 3))
    assert caught.value.exit_code == 75
    first.close()


def test_a_holder_that_seems_alive_keeps_others_out_and_says_who_it_is() -> None:
    objects = MemoryObjects()
    open_store(location(objects))
    with pytest.raises(OutputLocked, match=r"pid \d+ on .* sign of life .* ago"):
        open_store(location(objects), "run-2")
    assert location(objects).holder() is not None


def test_a_store_that_ignores_conditions_is_refused_before_anything_is_written() -> None:
    class NoMatch(MemoryObjects):
        """A store that knows If-None-Match only."""

        def put(self, path: str, data: bytes, *, create: bool = False, tag: Tag | None = None) -> Tag:
            return super().put(path, data, create=create)

    for objects, words in ((MemoryObjects(), "If-None-Match"), (NoMatch(), "If-Match")):
        objects.ignores_conditions = not isinstance(objects, NoMatch)
        with pytest.raises(UsageError, match="cannot keep two runs apart") as caught:
            open_store(location(objects))
        assert words in str(caught.value)
        assert objects.content == {}


def test_a_store_that_wants_etags_without_quotes_is_found_out_once() -> None:
    class Unquoted(MemoryObjects):
        """A store that compares ETags without their quotes."""

        def put(self, path: str, data: bytes, *, create: bool = False, tag: Tag | None = None) -> Tag:
            if tag is not None and not self.unquoted:
                raise ConditionFailedError(path)
            return super().put(path, data, create=create, tag=tag)

    objects = Unquoted()
    for run in ("run-1", "run-2"):
        objects.unquoted = False
        with open_store(location(objects), run) as store:
            commit(store, settled(0, 2, run_id=run))
            seal(store)
        assert objects.unquoted
    assert objects.requests["put"] < 60


class OnePut(MemoryObjects):
    """A store at which something goes wrong with the next write of one object."""

    def __init__(self, what: Callable[[OnePut, str, bytes], None]) -> None:
        super().__init__()
        self.what: Callable[[OnePut, str, bytes], None] | None = what
        self.tries = 0

    def put(self, path: str, data: bytes, *, create: bool = False, tag: Tag | None = None) -> Tag:
        self.tries += 1
        if self.what is not None:
            what, self.what = self.what, None
            what(self, path, data)
            raise UnclearError("no answer")
        return super().put(path, data, create=create, tag=tag)


def _nothing(store: OnePut, path: str, data: bytes) -> None:
    del store, path, data


def _own(store: OnePut, path: str, data: bytes) -> None:
    MemoryObjects.put(store, path, data)


def _others(store: OnePut, path: str, data: bytes) -> None:
    del data
    MemoryObjects.put(store, path, b"another's")


@pytest.mark.parametrize(("what", "tries"), [(_nothing, 2), (_own, 1), (_others, 1)])
@pytest.mark.parametrize("replaces", [False, True])
def test_a_write_without_an_answer_is_settled_by_reading_back(
    what: Callable[[OnePut, str, bytes], None], tries: int, replaces: bool
) -> None:
    objects = OnePut(what)
    bucket = ObjectBucket(objects, "b", "s3://b", patience=StorePatience(5.0, sleep=lambda _: None))
    tag = MemoryObjects.put(objects, "b/x", b"before") if replaces else None

    def write() -> Tag:
        return bucket.create("x", b"mine") if tag is None else bucket.replace("x", b"mine", tag)

    if what is _others:
        with pytest.raises(OtherContentError):
            write()
    else:
        assert write().same(Tag("e4a4e8d42a3a3ed3d8ba2c4dd1b3c9b8")) is False
        assert objects.content["b/x"] == b"mine"
    assert objects.tries == tries


def test_a_store_that_stays_away_is_waited_for_then_told_and_a_refusal_is_told_at_once() -> None:
    class Away(MemoryObjects):
        error: Exception = UnclearError("connection refused")

        def get(self, path: str, *, span: tuple[int, int] | None = None, tag: Tag | None = None) -> FoundObject | None:
            raise self.error

    now, told = [0.0], list[str]()

    def sleep(seconds: float) -> None:
        now[0] += seconds

    objects = Away()
    patience = StorePatience(60.0, tell=told.append, clock=lambda: now[0], sleep=sleep)
    bucket = ObjectBucket(objects, "b", "s3://b", patience=patience)
    with pytest.raises(StorageError, match=r"did not answer for 6[0-9] s: connection refused"):
        bucket.get("x")
    assert len(told) == 1
    now[0] = 0.0
    patience.hurry.set()
    with pytest.raises(StorageError):
        bucket.get("x")
    assert now[0] == 0.0
    objects.error = RefusedError("no such bucket")
    with pytest.raises(RefusedError):
        bucket.get("x")


def test_a_part_that_was_sealed_by_another_layout_is_never_read_half() -> None:
    objects = MemoryObjects()
    with open_store(location(objects), part_rows=4) as store:
        for first in range(0, 20, 5):
            commit(store, settled(first, 5))
            seal(store)
        assert store.stored_rows() == 20
    data = {path: content for path, content in objects.content.items() if "/data/" in path}
    assert [pq.read_table(io.BytesIO(content)).num_rows for content in data.values()] == [4, 4, 4, 4, 4]
    assert verify(location(objects)).ok


def test_fresh_keeps_the_old_output_and_finishes_a_clearing_that_was_cut() -> None:
    objects = MemoryObjects()
    with open_store(location(objects)) as store:
        commit(store, settled(0, 5))
        seal(store)
    cut = objects.delete
    objects.delete = lambda paths: (_ for _ in ()).throw(KeyboardInterrupt)  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        open_store(location(objects), "run-2", fresh=True)
    objects.delete = cut  # type: ignore[method-assign]
    with open_store(location(objects), "run-3", take_over=True) as store:
        assert store.stored_rows() == 0
        commit(store, settled(0, 2))
        seal(store)
    old = {path for path in objects.content if path.startswith("bucket/run.old-")}
    assert any("/data/part-00000.parquet" in path for path in old)


def test_what_may_be_lost_lies_in_the_cache_and_a_stopped_run_does_not_share_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    objects = MemoryObjects()
    first, second = location(objects), location(objects)
    held = first.hold("run-1")
    other = second.hold("run-2", take_over=True)
    assert first.scratch().is_relative_to(tmp_path)
    assert not second.scratch().is_relative_to(tmp_path)
    temporary = second.scratch()
    other.release()
    held.release()
    assert not temporary.exists()


def test_a_whole_bucket_is_no_output() -> None:
    for url in ("s3://bucket", "s3://bucket/"):
        with pytest.raises(UsageError, match="names a whole bucket"):
            ObjectLocation(url, objects=MemoryObjects())
