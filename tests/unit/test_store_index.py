"""The indexes: right for any history of calls, and small."""

from __future__ import annotations

import gc
import hashlib
import os
import tracemalloc
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from batchchat.records import ErrorKind
from batchchat.store import ARCHIVED, NONE, OK, KeyIndex, RecordIndex, is_live, key_digest, kind_of
from batchchat.store.index import BUCKET_ENTRIES, SEEN, state_of
from tests.thorough import examples

# Few and repetitive identities: they meet often, and one may stand across the border of two others.
IDS = st.sampled_from([bytes([first] + [rest] * 15).hex() for first in range(4) for rest in range(3)])
STATES = st.sampled_from([OK, *(state_of("failed", kind.value) for kind in ErrorKind)])


class IndexAgainstDict(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.index = RecordIndex()
        self.live: dict[str, int] = {}
        self.archived: set[str] = set()
        self.seen: set[str] = set()
        self.loaded = 0

    def expected(self, custom_id: str) -> int:
        return self.live.get(custom_id) or (ARCHIVED if custom_id in self.archived else NONE)

    @rule(custom_id=IDS, state=STATES, seen=st.booleans())
    def put(self, custom_id: str, state: int, seen: bool) -> None:
        assert self.index.put(custom_id, state, seen=seen) == self.expected(custom_id)
        self.live[custom_id] = state
        if seen:
            self.seen.add(custom_id)

    @rule(custom_id=IDS)
    def mark_seen(self, custom_id: str) -> None:
        assert self.index.mark_seen(custom_id) == self.expected(custom_id)
        self.seen.add(custom_id)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), archived=st.booleans())
    def remove(self, data: st.DataObject, archived: bool) -> None:
        custom_id = data.draw(st.sampled_from(sorted(self.live)))
        assert self.index.remove(custom_id, archived=archived) == self.live.pop(custom_id)
        if archived:
            self.archived.add(custom_id)

    @rule(custom_id=IDS)
    def add_archived(self, custom_id: str) -> None:
        self.index.add_archived(custom_id)
        self.archived.add(custom_id)

    @rule(states=st.lists(STATES, max_size=100))
    def load(self, states: list[int]) -> None:
        self.loaded += len(states)
        new = [hashlib.md5(b"%d" % (self.loaded - number)).hexdigest() for number in range(len(states))]
        seen = [number % 3 == 0 for number in range(len(states))]
        marked = bytes(state | SEEN if mark else state for state, mark in zip(states, seen, strict=True))
        self.index.load(bytes.fromhex("".join(new)), marked)
        self.live.update(zip(new, states, strict=True))
        self.seen.update(custom_id for custom_id, mark in zip(new, seen, strict=True) if mark)

    @rule()
    def reset_seen(self) -> None:
        self.index.reset_seen()
        self.seen.clear()

    @invariant()
    def counts_are_right(self) -> None:
        counts = self.index.counts()
        assert counts.ok == sum(state == OK for state in self.live.values())
        failed = Counter(kind_of(state) for state in self.live.values() if state != OK)
        assert counts.failed == dict(failed)
        assert counts.live == len(self.live)
        assert counts.seen == len(self.seen & self.live.keys())
        assert counts.kept == counts.live - counts.seen

    @invariant()
    def every_identity_is_found(self) -> None:
        for custom_id in {*list(self.live)[-40:], *self.archived, *self.seen}:
            assert self.index.get(custom_id) == self.expected(custom_id)
            assert is_live(self.index.get(custom_id)) == (custom_id in self.live)
            assert self.index.is_seen(custom_id) == (custom_id in self.seen)


IndexAgainstDict.TestCase.settings = examples(40, stateful_step_count=30)
TestIndexAgainstDict = IndexAgainstDict.TestCase


def test_identity_that_stands_across_two_entries_is_not_found() -> None:
    index = RecordIndex()
    first, second = b"\x01" * 16, b"\x01" * 15 + b"\x02"
    index.put(first.hex(), OK, seen=False)  # its bytes and its state byte spell 17 times 0x01
    index.put(second.hex(), OK, seen=False)
    assert index.get(first.hex()) == OK
    assert index.get((b"\x01" * 14 + b"\x02\x01").hex()) == NONE
    assert len(index) == 2


def test_grows_bucket_by_bucket_without_losing_any() -> None:
    index = RecordIndex()
    ids = [os.urandom(16).hex() for _ in range(BUCKET_ENTRIES * 37)]
    for number, custom_id in enumerate(ids):
        index.put(custom_id, OK if number % 3 else state_of("failed", "timeout"), seen=False)
    assert [index.get(custom_id) for custom_id in ids] == [
        OK if number % 3 else state_of("failed", "timeout") for number in range(len(ids))
    ]


@pytest.mark.parametrize("reserved", [0, 3_000])
def test_what_is_loaded_in_bulk_is_found_like_what_was_put(reserved: int) -> None:
    index = RecordIndex()
    index.reserve(reserved)
    ids = [os.urandom(16) for _ in range(3_000)]
    for start, stop in ((0, 2_000), (2_000, 2_010), (2_010, 2_010), (2_010, 3_000)):
        states = bytes(OK if number % 3 else state_of("failed", "timeout") for number in range(start, stop))
        index.load(b"".join(ids[start:stop]), states)
    assert [index.get(identity.hex()) for identity in ids] == [
        OK if number % 3 else state_of("failed", "timeout") for number in range(len(ids))
    ]
    assert index.get(os.urandom(16).hex()) == NONE
    assert len(index) == 3_000


def test_failure_kinds_come_back_and_an_unknown_one_stays_a_failure() -> None:
    for kind in ErrorKind:
        assert kind_of(state_of("failed", kind.value)) is kind
    assert kind_of(state_of("failed", "of a later version")) is ErrorKind.PROTOCOL
    assert kind_of(OK) is None
    assert kind_of(ARCHIVED) is None


def test_load_refuses_what_are_no_identities() -> None:
    with pytest.raises(ValueError, match="differ in number"):
        RecordIndex().load(bytes(16), b"\x01\x01")


@given(st.text(), st.text(), st.integers(0, 3), st.integers(0, 3))
def test_key_digests_differ_where_key_or_sample_differ(one: str, two: str, first: int, second: int) -> None:
    assert (key_digest(one, first) == key_digest(two, second)) == ((one, first) == (two, second))


def test_a_key_is_repeated_once_seen_twice_in_a_pass() -> None:
    keys = KeyIndex()
    assert not keys.mark_seen(key_digest("a"))
    assert keys.mark_seen(key_digest("a"))
    keys.reset_seen()
    assert not keys.mark_seen(key_digest("a"))
    assert not keys.is_live(key_digest("a"))
    assert not keys.mark_live(key_digest("a"))
    assert keys.mark_live(key_digest("a"))


@pytest.mark.thorough
def test_memory_stays_within_what_a_row_may_cost() -> None:
    count = 40_000
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        index = RecordIndex()
        for _ in range(0, count, 10_000):
            index.load(os.urandom(16 * 10_000), bytes([OK]) * 10_000)
        gc.collect()
        records = (tracemalloc.get_traced_memory()[0] - before) / count
        before = tracemalloc.get_traced_memory()[0]
        keys = KeyIndex()
        for number in range(count):
            keys.mark_seen(number.to_bytes(16, "little"))
        gc.collect()
        per_key = (tracemalloc.get_traced_memory()[0] - before) / count
    finally:
        tracemalloc.stop()
    assert len(index) == len(keys) == count
    assert records <= 24
    assert records + per_key <= 40


def test_what_the_archive_lost_is_unknown_again_and_a_live_record_stays() -> None:
    index = RecordIndex()
    lost, live = "0" * 32, "1" * 32
    for custom_id in (lost, live):
        index.add_archived(custom_id)
    index.put(live, OK, seen=True)
    for custom_id in (lost, live, "2" * 32):
        index.forget_archived(custom_id)
    assert [index.get(custom_id) for custom_id in (lost, live, "2" * 32)] == [NONE, OK, NONE]
    assert index.is_seen(live)
