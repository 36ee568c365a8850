"""Rows, records and stores for the tests of the store."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa

from batchchat.records import Record, RowBatch, Spend
from batchchat.store import AnswerEntry, Entry, SettledEntry, Store, StoreChange, read_state
from batchchat.store.location.folder import FolderLocation
from batchchat.store.location.port import Location

SCHEMA = pa.schema([("ticket", pa.string()), ("body", pa.string())])
SPEND = Spend(1, 10, 5, 15, 0, 0, 0.25)

POINTS = (
    "commit.before",
    "commit.written",
    "commit.after",
    "seal.archived",
    "seal.rewritten",
    "seal.part_written",
    "seal.published",
    "seal.ledger",
    "seal.trimmed",
)
RECOVERY_POINTS = ("recover.begin", "recover.sealed", "recover.end")

RICH = pa.schema(
    [
        ("price", pa.decimal128(12, 3)),
        ("when", pa.timestamp("ns", tz="Europe/Paris")),
        ("blob", pa.binary()),
        ("tags", pa.list_(pa.string())),
        ("nested", pa.struct([("a", pa.int8()), ("b", pa.list_(pa.struct([("c", pa.float32())])))])),
        ("colour", pa.dictionary(pa.int32(), pa.string())),
        ("big", pa.uint64()),
        ("nothing", pa.string()),
    ]
)


def rich_rows(count: int) -> pa.RecordBatch:
    """Return rows whose types no Python round trip would keep."""
    return pa.RecordBatch.from_arrays(
        [
            pa.array([Decimal(i) / 8 for i in range(count)], pa.decimal128(12, 3)),
            pa.array([1_700_000_000_123_456_789 + i for i in range(count)], pa.timestamp("ns", tz="Europe/Paris")),
            pa.array([bytes([i % 256, 255, 0]) for i in range(count)], pa.binary()),
            pa.array([["x"] * (i % 3) if i % 4 else None for i in range(count)], pa.list_(pa.string())),
            pa.array([{"a": i % 100, "b": [{"c": i / 2}]} for i in range(count)], RICH.field("nested").type),
            pa.array(["red" if i % 2 else "blue" for i in range(count)]).dictionary_encode(),
            pa.array([2**64 - 1 - i for i in range(count)], pa.uint64()),
            pa.nulls(count, pa.string()),
        ],
        schema=RICH,
    )


def identity(text: object) -> str:
    """Return a custom_id for anything that can be printed."""
    return hashlib.blake2b(str(text).encode(), digest_size=16).hexdigest()


def row_batch(first: int, count: int, columns: pa.RecordBatch | None = None) -> RowBatch:
    """Return consecutive rows; without columns, simple ones that tell their row."""
    if columns is None:
        numbers = range(first, first + count)
        columns = pa.RecordBatch.from_arrays(
            [pa.array([f"t{n}" for n in numbers]), pa.array([f"body of {n}" for n in numbers])], schema=SCHEMA
        )
    return RowBatch("rows.jsonl", first, columns, [None] * count)


def record(
    batch: RowBatch, offset: int, *, run_id: str = "run-1", prompt: str = "", failed: str | None = None, **more: Any
) -> Record:
    """Return the record of one row. Another `prompt` gives it another identity."""
    row = batch.first_index + offset
    values: dict[str, Any] = {
        "custom_id": identity((row, prompt)),
        "key": f"key-{row}",
        "source": batch.source,
        "row_index": row,
        "sample_index": 0,
        "run_id": run_id,
        "status": "failed" if failed else "ok",
        "completion": None if failed else f"answer {row} {prompt}",
        "total_tokens": 15,
        "error_kind": failed,
        "error_message": "it went wrong" if failed else None,
        "attempts": 1,
        "finished_at": int(datetime(2030, 1, 2, 3, 4, 5, 678901, tzinfo=UTC).timestamp() * 1e6) + row,
    }
    return Record(batch, offset, **(values | more))


def settled(first: int, count: int, **more: Any) -> list[Entry]:
    """Return outcomes of consecutive rows, each of which cost SPEND."""
    batch = row_batch(first, count)
    return [SettledEntry(record(batch, offset, **more), SPEND) for offset in range(count)]


def answer(row: int, step: int, prompt: str = "") -> AnswerEntry:
    """Return an intermediate answer of a row's request."""
    return AnswerEntry(identity((row, prompt)), step, {"text": f"step {step}"}, SPEND)


def open_store(directory: Path | Location, run_id: str = "run-1", **options: Any) -> Store:
    """Open an output of the job that these tests run."""
    settings: dict[str, Any] = {
        "job_name": "job",
        "snapshot": {"name": "job"},
        "run_id": run_id,
        "input_schema": SCHEMA,
        "with_keys": True,
    }
    return Store.open(directory, **(settings | options))


def journal_path(directory: Path, generation: int) -> Path:
    """Return where the journal of a generation of an output lies."""
    return FolderLocation(directory).journals.path(generation)


def commit(store: Store, entries: Sequence[Entry]) -> StoreChange:
    """Commit and apply, as a run does."""
    change = store.commit(entries)
    store.apply(change)
    return change


def seal(store: Store) -> StoreChange:
    """Seal everything pending and apply it."""
    change = store.finish()
    store.apply(change)
    return change


def live(directory: Path, *columns: str) -> list[dict[str, Any]]:
    """Return the live records as a reader without the lock sees them, in order."""
    names = list(columns) or ["row_index", "custom_id", "completion", "status", "run_id", "ticket"]
    rows = [row for batch in read_state(directory).records(names) for row in batch.to_pylist()]
    return sorted(rows, key=lambda row: tuple(row[name] for name in names))


def parts(directory: Path) -> dict[str, int]:
    """Return the rows of each part, by name."""
    import pyarrow.parquet as pq

    return {path.name: pq.read_metadata(path).num_rows for path in sorted((directory / "data").iterdir())}
