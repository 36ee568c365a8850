"""Records of several variants, row by row: which rows a page shows, and what each variant has of them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from batchchat.format import short
from batchchat.inspection import Templates
from batchchat.sources import python_rows
from batchchat.store import Output

_MOST_INPUT_BYTES = 600_000_000
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
Messages = list[list[str]]
"""The messages of a request as [role, text]."""


class Records:
    """The records of one variant that belong to the rows shown, ordered by slot: row position x samples + sample.

    `scored` are the lines of the variant's scores, with their `slot`. Where they tell of a `custom_id`, it leads to the
    record, as in the scoring: a record's own place is that of the input as it was then. Else its key or place does.
    """

    def __init__(self, output: Output | None, ids: pa.Array, samples: int, scored: pa.Table | None = None) -> None:
        self._samples = samples
        self._known: tuple[pa.Array, pa.Array] | None = None
        if scored is not None and scored.num_rows and "custom_id" in scored.column_names:
            known = scored.group_by("custom_id").aggregate([("slot", "min")])
            self._known = known.column("custom_id").combine_chunks(), known.column("slot_min").combine_chunks()
        self._templates = Templates(output) if output is not None else None
        self._note = ""
        self._inputs: list[str] = []
        self._table = pa.table({"slot": pa.array([], pa.int64())})
        self._slots: list[int] = []
        self.answer_bytes = 0
        if output is not None and output.schema is not None:
            self._load(output, output.schema, ids)
        self.count = len(self._slots)

    def _load(self, output: Output, schema: pa.Schema, ids: pa.Array) -> None:
        self._inputs = [] if output.input_schema is None else list(output.input_schema.names)
        own = [name for name in _FIELDS if name in schema.names]
        batches: list[pa.RecordBatch] = []
        read = 0
        needed = ["key", "row_index", "finished_at"]
        for batch in output.records(list(dict.fromkeys([*own, *needed, *self._inputs]))):
            slot = self._slot(batch, ids)
            chosen = batch.append_column("slot", slot).filter(pc.is_valid(slot))
            read += chosen.nbytes
            if read > _MOST_INPUT_BYTES:
                self._note = "not shown: the inputs are too large for a page"
            if self._note:
                batches = [kept.select([*own, "finished_at", "slot"]) for kept in batches]
                chosen = chosen.select([*own, "finished_at", "slot"])
            if chosen.num_rows:
                batches.append(chosen)
        if not batches:
            return
        table = pa.Table.from_batches(batches)
        # Of several records of a row, the newest is the one whose score is told.
        table = table.sort_by([("slot", "ascending"), ("finished_at", "descending")])
        slots = table.column("slot").to_pylist()
        first = [index for index, slot in enumerate(slots) if index == 0 or slots[index - 1] != slot]
        self._table = table.take(first).combine_chunks()
        self._slots = [slots[index] for index in first]
        self.answer_bytes = self._table.column("completion").nbytes

    def _slot(self, batch: pa.RecordBatch, ids: pa.Array) -> pa.Array:
        """The slot of each record, null where it has none."""
        if self._known is not None:
            known, slots = self._known
            return slots.take(pc.index_in(batch.column("custom_id"), value_set=known))
        position = pc.index_in(row_ids(batch), value_set=ids).cast(pa.int64())
        sample = batch.column("sample_index").cast(pa.int64())
        slot = pc.add(pc.multiply(position, self._samples), sample)
        return pc.if_else(pc.less(sample, self._samples), slot, pa.scalar(None, pa.int64()))

    def between(self, start: int, end: int) -> dict[int, dict[str, Any]]:
        """The records of these slots, by slot."""
        first, last = bisect_left(self._slots, start), bisect_left(self._slots, end)
        if first == last:
            return {}
        batch = self._table.slice(first, last - first).combine_chunks().to_batches()[0]
        return dict(zip(self._slots[first:last], python_rows(batch), strict=True))

    def at(self, slot: int) -> dict[str, Any] | None:
        """The record of a slot, if there is one."""
        return self.between(slot, slot + 1).get(slot)

    def messages(self, record: Mapping[str, Any], cut: int | None) -> tuple[Messages | None, str]:
        """The messages that a record was asked with, or None and why they cannot be told."""
        if self._templates is None or self._note:
            return None, self._note
        columns = {name: record[name] for name in self._inputs}
        messages, note = self._templates.messages(str(record["run_id"]), columns, int(record["sample_index"]))
        if messages is None:
            return None, note
        return [[str(message.get("role") or ""), cut_text(message_text(message), cut)] for message in messages], ""


def row_ids(data: pa.RecordBatch | pa.Table) -> Any:
    """What a row is known by in every file: its key, or else its position."""
    keys, positions = data.column("key"), data.column("row_index").cast(pa.string())
    return pc.if_else(
        pc.is_valid(keys),
        pc.binary_join_element_wise("k", keys.cast(pa.string()), "", null_handling="emit_null"),
        pc.binary_join_element_wise("i", positions, ""),
    )


def rows_of(values: pa.Table, outputs: Sequence[Output | None]) -> pa.Table:
    """All rows that have a score or a record, in the order of the input: `id`, `row_index`, `key`."""
    tables = [values.select(["id", "row_index", "key"])]
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
    """At most so many rows: up to half of them such on which variants differ, then an even choice of the others."""
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


def message_text(message: Mapping[str, Any]) -> str:
    """A message's content as text: of an image, what it is and how large."""
    content = message.get("content")
    parts = content if isinstance(content, list) else [content]
    texts = [_part(part) for part in parts if part is not None]
    texts += [orjson.dumps(call).decode() for call in message.get("tool_calls") or ()]
    return "\n".join(texts)


def _part(part: Any) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict) and isinstance(part.get("text"), str):
        return str(part["text"])
    image = part.get("image_url") if isinstance(part, dict) else None
    url = str(image.get("url") if isinstance(image, dict) else image or "")
    if url.startswith("data:"):
        return f"[{url[5:].partition(';')[0]}, {short(len(url) * 3 // 4)} bytes]"
    return f"[image {url}]" if url else orjson.dumps(part, default=str).decode()


def cut_text(text: str, longest: int | None) -> str:
    """Return a text that is at most so long, and says how much of it is left out."""
    if longest is None or len(text) <= longest:
        return text
    return f"{text[:longest]} … [{len(text) - longest:,} more characters]"
