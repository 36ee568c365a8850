"""The batches of an output, as its ledger tells them. Blocking code; it needs no lock and asks nobody."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from batchchat.engines.batch.ledger import NAME, ChunkState, Step, read_history
from batchchat.store import batches_folder
from batchchat.views import BatchView

_SETTLED = ("ok", "failed", "known", "replaced")


def batches_of(directory: Path | str, *, now: float) -> list[BatchView]:
    """Return all batches of an output, the oldest first. `now` is in seconds since the epoch. Raises StorageError."""
    return [
        BatchView(
            number=state.number,
            name=state.name,
            batch=state.batch,
            state=_word(state),
            requests=state.lines,
            total=state.total,
            completed=state.completed,
            failed=state.failed,
            harvested=sum(state.harvest.get(name, 0) for name in _SETTLED),
            created=_utc(state.created_at),
            age_s=None if state.created_at is None else max(0.0, (state.ended_at or now) - state.created_at),
            expires=_utc(state.expires_at),
        )
        for state in _batches(directory)
    ]


def under_way(directory: Path | str) -> list[ChunkState]:
    """Return the chunks that may have a batch whose answers are not all counted. Raises StorageError."""
    return [state for state in _batches(directory) if state.paid]


def _batches(directory: Path | str) -> Iterator[ChunkState]:
    """Yield the chunks of an output, without those that never became a batch."""
    folder = batches_folder(directory)
    if (folder / NAME).exists():
        for state in read_history(folder):
            # A chunk that was dropped without a batch is of no interest to anybody.
            if state.batch is not None or state.step < Step.HARVESTED:
                yield state


def _word(state: ChunkState) -> str:
    """Say how far a batch is."""
    if state.step < Step.CREATING:
        return "to be created"
    if state.step is Step.CREATING:
        return "being created"
    if state.step is Step.HARVESTING:
        return "being read"
    if state.step >= Step.HARVESTED:
        return "harvested" if state.harvest else "dropped"
    return state.status.value


def _utc(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
