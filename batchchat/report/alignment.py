"""Records of several variants, row by row: which rows a page shows, and what each variant has of them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from batchchat.inspection import Templates
from batchchat.report.texts import LONGEST_TEXT, Messages, TextAllowance
from batchchat.sources import python_rows
from batchchat.store import Output

_READ_ROWS = 256
"""Rows of one read: their texts are cut one batch after another, and a batch of long texts stays small."""
_TEXTS = ("completion", "reasoning", "refusal", "error_message")
_FIELDS = (
    "custom_id",
    "run_id",
    "sample_index",
    "status",
    "completion",
    "finish_reason",
    "tool_calls",
    "refusal",
    "reasoning",
    "prompt_tokens",
    "completion_tokens",
    "cost",
    "error_kind",
    "error_message",
    "http_status",
    "latency_s",
)


class Records:
    """The records of one variant that belong to the rows shown, ordered by slot: row position x samples + sample.

    `scored` are the lines of the variant's scores, with their `slot`. Where they tell of a `custom_id`, it leads to the
    record, as in the scoring: a record's own place is that of the input as it was then. Else its key or place does.

    A row's messages are told as the records are read, a few hundred at a time: the inputs may be large, and are never
    in memory together.
    """

    def __init__(
        self,
        output: Output | None,
        ids: pa.Array,
        room: TextAllowance,
        *,
        samples: int = 1,
        scored: pa.Table | None = None,
    ) -> None:
        self._samples = samples
        self._room = room
        # A plain dict: Arrow would put all identities into a table anew for each batch that is looked up.
        self._known: dict[str, int] | None = None
        if scored is not None and scored.num_rows and "custom_id" in scored.column_names:
            known = scored.group_by("custom_id").aggregate([("slot", "min")])
            columns = (known.column(name).to_pylist() for name in ("custom_id", "slot_min"))
            self._known = dict(zip(*columns, strict=True))
        self._messages: dict[int, bytes | str] = {}
        self._table = pa.table({"slot": pa.array([], pa.int64())})
        self._slots: list[int] = []
        if output is not None and output.schema is not None:
            self._load(output, output.schema, ids)
        self._known = None

    def _load(self, output: Output, schema: pa.Schema, ids: pa.Array) -> None:
        templates = Templates(output)
        inputs = [] if output.input_schema is None else list(output.input_schema.names)
        own = [name for name in _FIELDS if name in schema.names]
        columns = list(dict.fromkeys([*own, "key", "row_index", "finished_at", *inputs]))
        kept: list[pa.RecordBatch] = []
        for batch in output.records(columns, batch_rows=_READ_ROWS):
            slot = self._slot(batch, ids)
            chosen = batch.append_column("slot", slot).filter(pc.is_valid(slot))
            if chosen.num_rows:
                self._recall(templates, inputs, chosen)
                kept.append(_short(chosen.select([*own, "finished_at", "slot"])))
        if not kept:
            return
        # Of several records of a row, the newest is the one whose score is told.
        table = pa.Table.from_batches(kept).sort_by([("slot", "ascending"), ("finished_at", "descending")])
        slots = table.column("slot").to_pylist()
        first = [index for index, slot in enumerate(slots) if index == 0 or slots[index - 1] != slot]
        self._table = table.take(first).combine_chunks()
        self._slots = [slots[index] for index in first]

    def _recall(self, templates: Templates, inputs: Sequence[str], batch: pa.RecordBatch) -> None:
        """Tell the messages of rows that are not known yet: as JSON, or as a text that says why they cannot be told."""
        runs, samples, slots, answers = (
            batch.column(name).to_pylist() for name in ("run_id", "sample_index", "slot", "completion")
        )
        rows = python_rows(batch.select(inputs))
        for row, run_id, sample, slot, answer in zip(rows, runs, samples, slots, answers, strict=True):
            # Counted for every record, also if the row's messages are known: the page holds each answer.
            self._room.take(answer)
            position = slot // self._samples
            # Samples of one row have the same messages. A text in their place may still give way to those of another.
            if isinstance(self._messages.get(position), bytes):
                continue
            messages, note = templates.messages(str(run_id), row, int(sample))
            self._messages[position] = note if messages is None else self._room.keep(messages)

    def _slot(self, batch: pa.RecordBatch, ids: pa.Array) -> pa.Array:
        """The slot of each record, null where it has none."""
        if self._known is not None:
            return pa.array(list(map(self._known.get, batch.column("custom_id").to_pylist())), pa.int64())
        position = pc.index_in(row_ids(batch), value_set=ids).cast(pa.int64())
        sample = batch.column("sample_index").cast(pa.int64())
        slot = pc.add(pc.multiply(position, self._samples), sample)
        return pc.if_else(pc.less(sample, self._samples), slot, pa.scalar(None, pa.int64()))

    def between(self, start: int, end: int) -> dict[int, dict[str, Any]]:
        """Return the records of these slots, by slot."""
        first, last = bisect_left(self._slots, start), bisect_left(self._slots, end)
        if first == last:
            return {}
        batch = self._table.slice(first, last - first).combine_chunks().to_batches()[0]
        return dict(zip(self._slots[first:last], python_rows(batch), strict=True))

    def messages(self, position: int) -> tuple[Messages | None, str]:
        """Return the messages that a row was asked with, or None and why they cannot be told."""
        found = self._messages.get(position, "")
        return (None, found) if isinstance(found, str) else (self._room.messages(found), "")


def _short(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The records with no text much longer than a page shows; `letters` tells how long each answer was."""
    batch = batch.append_column("letters", pc.utf8_length(batch.column("completion")))
    for name in _TEXTS:
        at = batch.schema.get_field_index(name)
        if at >= 0:
            cut = pc.utf8_slice_codeunits(batch.column(name), 0, LONGEST_TEXT + 1)
            batch = batch.set_column(at, batch.schema.field(at), cut)
    return batch


def row_ids(data: pa.RecordBatch | pa.Table) -> Any:
    """Return what a row is known by in every file: its key, or else its position."""
    keys, positions = data.column("key"), data.column("row_index").cast(pa.string())
    return pc.if_else(
        pc.is_valid(keys),
        pc.binary_join_element_wise("k", keys.cast(pa.string()), "", null_handling="emit_null"),
        pc.binary_join_element_wise("i", positions, ""),
    )


def rows_of(values: pa.Table, outputs: Sequence[Output | None]) -> pa.Table:
    """Return all rows that have a score or a record, in the order of the input: `id`, `row_index`, `key`."""
    tables = [values.select(["id", "row_index", "key"])]
    # Scores name every row of the suite. Only without them must the outputs be read for their rows.
    if not values.num_rows:
        for output in outputs:
            for batch in output.records(["row_index", "key"]) if output is not None else ():
                tables.append(
                    pa.Table.from_batches([batch]).append_column("id", row_ids(batch)).select(tables[0].column_names)
                )
    rows = pa.concat_tables(tables).group_by("id", use_threads=False).aggregate([("row_index", "min"), ("key", "min")])
    rows = rows.rename_columns(["id", "row_index", "key"])
    return rows.sort_by([("row_index", "ascending"), ("id", "ascending")])


def choose_rows(rows: pa.Table, values: pa.Table, most: int) -> pa.Table:
    """Return at most so many rows: up to half of them rows on which variants differ, then an even choice."""
    if rows.num_rows <= most:
        return rows
    spread = values.group_by(["id", "scorer"]).aggregate([("value", "min"), ("value", "max")])
    differ = spread.filter(pc.not_equal(spread.column("value_min"), spread.column("value_max"))).column("id")
    telling = pc.is_in(rows.column("id"), value_set=differ.combine_chunks().unique())
    positions = pa.array(range(rows.num_rows))
    first = _evenly(positions.filter(telling.combine_chunks()), most // 2)
    rest = _evenly(positions.filter(pc.invert(telling).combine_chunks()), most - len(first))
    return rows.take(pa.array(sorted([*first, *rest])))


def _evenly(positions: pa.Array, most: int) -> list[int]:
    count = len(positions)
    chosen = range(count) if count <= most else [index * count // most for index in range(most)]
    return [positions[index].as_py() for index in chosen]
