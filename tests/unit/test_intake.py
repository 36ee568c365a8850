"""Sorting rows into requests: what holds for any rows, keys and numbers of samples."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchchat.identity import Identity
from batchchat.intake import DoneBefore, Intake, PassCounts, RowRequests, Selection, Sorted, read_key
from batchchat.records import ErrorKind, Failure, RowBatch
from batchchat.store.index import OK, KeyIndex, RecordIndex, key_digest, state_of
from batchchat.template import compile_template
from tests.thorough import examples

NO_COLUMNS = pa.RecordBatch.from_pydict({})
MESSAGES = [{"role": "user", "content": "{{ text }}"}]
TEMPLATES = [compile_template(MESSAGES, params, model="m") for params in ({}, {"seed": "{{ sample_index }}"})]


class Output:
    """What a store remembers between passes."""

    def __init__(self, *, keyed: bool) -> None:
        self.index = RecordIndex()
        self.keys = KeyIndex() if keyed else None

    def run(self, rows: list[dict[str, Any] | None], samples: int, *, seeded: bool) -> tuple[PassCounts, list[str]]:
        """Sort all rows and settle what is to be settled; what was asked for, by `custom_id`."""
        self.index.reset_seen()
        if self.keys is not None:
            self.keys.reset_seen()
        key_column = None if self.keys is None else "id"
        intake = Intake(
            RowRequests(TEMPLATES[seeded], Identity("demo"), key_column, samples), DoneBefore(self.index, self.keys)
        )
        failures = {offset: Failure(ErrorKind.INPUT, "bad") for offset, row in enumerate(rows) if row is None}
        batch = RowBatch("rows.jsonl", 0, NO_COLUMNS, rows, failures, dict.fromkeys(failures, b"bad"))
        asked: list[str] = []
        for found in intake.slices(batch, 4):
            assert len(found.requests) <= max(4, samples)
            asked += self._settle(found)
        return intake.counts, asked

    def _settle(self, found: Sorted) -> list[str]:
        for request in found.requests:
            self.index.put(request.custom_id, OK, seen=True)
            if self.keys is not None and request.key is not None:
                self.keys.mark_live(key_digest(request.key, request.sample_index))
        for invalid in found.invalid:
            self.index.put(invalid.custom_id, state_of("failed", invalid.failure.kind.value), seen=True)
        return [request.custom_id for request in found.requests]


rows_of = st.lists(
    st.one_of(
        st.none(),
        st.fixed_dictionaries({"text": st.sampled_from(["a", "b", "c"])}, optional={"id": st.integers(0, 6)}),
        st.just({"other": "does not render"}),
    ),
    max_size=12,
)


@examples(80)
@given(rows_of, st.integers(1, 5), st.integers(1, 5), st.booleans(), st.booleans())
def test_every_sample_is_settled_once_and_more_samples_ask_only_for_the_new(
    rows: list[dict[str, Any] | None], first: int, then: int, keyed: bool, seeded: bool
) -> None:
    output = Output(keyed=keyed)
    counts, asked = output.run(list(rows), first, seeded=seeded)
    assert (counts.rows, counts.samples) == (len(rows), len(rows) * first)
    assert counts.to_send + counts.invalid == counts.samples
    assert len(set(asked)) == len(asked) == counts.to_send
    assert counts.to_send % first == 0
    assert output.index.counts().seen == counts.samples

    again, asked_then = output.run(list(rows), then, seeded=seeded)
    per_row = len(asked) // first
    assert len(asked_then) == per_row * max(0, then - first)
    assert again.done == per_row * min(first, then)
    assert not set(asked) & set(asked_then)
    assert again.done + again.failed_before + again.new + again.invalid == again.samples
    assert (again.changed, again.reopened) == (0, 0)


@examples(40)
@given(rows_of, st.integers(1, 4), st.booleans(), st.randoms())
def test_the_order_of_rows_costs_nothing(
    rows: list[dict[str, Any] | None], samples: int, keyed: bool, random: Any
) -> None:
    output = Output(keyed=keyed)
    # With a key, which of two rows that share it counts is told by their order: here each has its own.
    rows = [row if row is None else {**row, "id": number} for number, row in enumerate(rows)]
    output.run(list(rows), samples, seeded=False)
    random.shuffle(rows)
    counts, asked = output.run(list(rows), samples, seeded=False)
    assert asked == []
    assert (counts.new, counts.changed, counts.invalid) == (0, 0, 0)


@examples(80)
@given(rows_of, st.integers(1, 4), st.booleans(), st.booleans(), st.none() | st.integers(1, 9))
def test_identifying_tells_what_sorting_makes(
    rows: list[dict[str, Any] | None], samples: int, keyed: bool, seeded: bool, limit: int | None
) -> None:
    def intake() -> Intake:
        return Intake(
            RowRequests(TEMPLATES[seeded], Identity("demo"), "id" if keyed else None, samples),
            DoneBefore(RecordIndex(), KeyIndex() if keyed else None),
            selection=Selection(limit),
        )

    failures = {offset: Failure(ErrorKind.INPUT, "bad") for offset, row in enumerate(rows) if row is None}
    batch = RowBatch("rows.jsonl", 0, NO_COLUMNS, rows, failures, dict.fromkeys(failures, b"bad"))
    told: list[tuple[int, int, str]] = []
    for made in intake().slices(batch, 5):
        told += [(one.offset, one.sample_index, one.custom_id) for one in made.requests]
        told += [(one.offset, one.sample_index, one.custom_id) for one in made.invalid]
    # Of another variant over the same rows the keys may be known already.
    other = intake()
    assert sorted(intake().identify(batch, other.keys(batch))) == sorted(told)


@pytest.mark.parametrize(
    ("values", "key", "problem"),
    [
        ({"session": {"id": 7}}, "7", None),
        ({"session": {"id": 7}, "session.id": "own"}, "own", None),
        ({"session": {"id": None}}, None, "the key session.id is null"),
        ({"session": {}}, None, "the key session.id is missing"),
        ({"session": "x"}, None, "the key session.id is missing"),
        ({"session": {"id": {}}}, None, "the key session.id is no plain value"),
    ],
)
def test_a_key_may_be_a_field_inside_a_column(values: dict[str, Any], key: str | None, problem: str | None) -> None:
    assert read_key(values, "session.id") == (key, problem)
