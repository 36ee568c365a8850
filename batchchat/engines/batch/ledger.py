"""The ledger of batches: what was done with each chunk, written down durably before it is done.

One line of JSON a step, in `batches.jsonl`:

    {"sum": CRC-32 of the rest, "chunk": 7, "step": "creating", "at": seconds since the epoch, …}

The steps of a chunk, in order:

    planned      its files are on the disk: name, nonce, digest, lines, bytes, tokens, run_id, prompt_id
    uploading    the file is being uploaded
    uploaded     `ref` is the provider's reference of it
    creating     a batch is being created: from here on the provider may have one
    not_created  it is certain that there is none
    created      `batch` is its id
    surplus      `batch` is one too many: it is cancelled
    state        the provider tells another status, or other counts
    harvesting   its answers are being read
    harvested    every answer of it is counted in the journal of the output
    dropped      nothing will be read of it: it was never created, or its requests went to other chunks
    cleaned      its files are gone

A torn last line is cut off: its step was not begun. A damaged line before it stops the run, since a batch that may be
paid for could be forgotten with it.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import field, replace
from enum import IntEnum
from pathlib import Path
from typing import Any

import orjson

from batchchat.dataclass import dataclass
from batchchat.engines.batch.service import ENDED, BatchStatus, RemoteBatch
from batchchat.errors import StorageError
from batchchat.store.json_files import json_bytes
from batchchat.store.location.disk import append_line, cut_torn_line, storage_errors

NAME = "batches.jsonl"


class Step(IntEnum):
    """How far a chunk is."""

    PLANNED = 1
    UPLOADING = 2
    UPLOADED = 3
    CREATING = 4
    CREATED = 5
    HARVESTING = 6
    HARVESTED = 7
    DROPPED = 8
    CLEANED = 9


_STEPS = {step.name.lower(): step for step in Step} | {"not_created": Step.UPLOADED}


@dataclass(slots=True)
class ChunkState:
    """What the ledger says of one chunk.

    `prompt_tokens` are guessed, `max_tokens` is what its answers were reserved with. Times are in seconds since the
    epoch. `total`, `completed` and `failed` are the provider's counts. `harvest` says what became of its requests.
    `splits` is how often it was made by parting a batch that the provider refused. `round` is 1 for requests that were
    in no batch before; it is that of the request which was in most.
    `tries` is how often a batch of it was asked for in vain. `unsure` says that an answer to `create` was lost and no
    batch was found: there may be another one. `surplus` are batches that are known to be one too many.
    """

    number: int
    name: str = ""
    nonce: str = ""
    digest: str = ""
    lines: int = 0
    nbytes: int = 0
    prompt_tokens: int = 0
    max_tokens: int = 0
    splits: int = 0
    round: int = 1
    run_id: str = ""
    prompt_id: str = ""
    model: str = ""
    step: Step = Step.PLANNED
    planned_at: float = 0.0
    ref: str | None = None
    batch: str | None = None
    status: BatchStatus = BatchStatus.UNKNOWN
    total: int | None = None
    completed: int | None = None
    failed: int | None = None
    created_at: float | None = None
    expires_at: float | None = None
    ended_at: float | None = None
    tries: int = 0
    unsure: bool = False
    surplus: list[str] = field(default_factory=list)
    harvest: dict[str, int] = field(default_factory=dict)
    reason: str | None = None

    @property
    def paid(self) -> bool:
        """Return true if a batch of this chunk may exist whose answers are not all counted."""
        return Step.CREATING <= self.step <= Step.HARVESTING

    @property
    def running(self) -> bool:
        """Return true if the provider is at work on it, as far as is known."""
        return self.step is Step.CREATED and self.status not in ENDED


class Ledger:
    """The ledger of one output, opened for appending by the run that holds the output. Blocking code.

    Raises StorageError if the disk fails, or if a line is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        cut_torn_line(self._path)
        self.chunks, self._last = _replay(folder)

    def next_number(self) -> int:
        """Return a number that no chunk has had."""
        self._last += 1
        return self._last

    def note(self, number: int, step: str, *, at: float, **told: Any) -> ChunkState:
        """Write a step down, durably, and return the chunk's state after it."""
        entry = {"chunk": number, "step": step, "at": round(at, 3), **told}
        append_line(self._path, json_bytes({"sum": _sum(entry), **entry}))
        state = _apply(self.chunks.get(number), entry)
        self.chunks[number] = state
        return state

    def note_state(self, number: int, batch: RemoteBatch, *, at: float) -> ChunkState:
        """Write down what the provider tells of a batch, if it is news."""
        state = self.chunks[number]
        told = {
            "status": batch.status.value,
            "total": batch.total,
            "completed": batch.completed,
            "failed": batch.failed,
            "expires_at": batch.expires_at,
        }
        # A look every minute for a day would else write a thousand lines that say the same.
        if all(getattr(state, name) == value for name, value in told.items()):
            return state
        return self.note(number, "state", at=at, **told)

    def forget(self, number: int) -> None:
        """Let go of a chunk whose files are gone."""
        self.chunks.pop(number, None)


def read_history(folder: Path) -> list[ChunkState]:
    """Return the last state of every chunk that ever was, the oldest first; none if there is no ledger.

    Reads while a run is going, too. Raises StorageError.
    """
    return list(_replay(folder, all_of_them=True)[0].values())


def _replay(folder: Path, *, all_of_them: bool = False) -> tuple[dict[int, ChunkState], int]:
    """Return the chunks that are not cleaned up, or all, and the highest number that a chunk has had."""
    path = folder / NAME
    with storage_errors(path):
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return {}, 0
    chunks: dict[int, ChunkState] = {}
    last = 0
    for number, line in enumerate(data[: data.rfind(b"\n") + 1].split(b"\n")[:-1], 1):
        entry = _read(line)
        if entry is None:
            raise StorageError(
                f"{path}:{number}: the line is damaged, so a batch that is paid for may be unknown",
                remedy=f"Restore the file from a copy. Without one, move {folder} away: then no batch of earlier runs "
                "is known any more, and their requests are sent, and paid, again.",
            )
        chunk = entry["chunk"]
        last = max(last, chunk)
        state = _apply(chunks.get(chunk), entry)
        # Nothing is left to do for it. A ledger of years would else fill memory.
        if state.step is Step.CLEANED and not all_of_them:
            chunks.pop(chunk, None)
        else:
            chunks[chunk] = state
    return chunks, last


def _read(line: bytes) -> dict[str, Any] | None:
    """Return the entry of a line, None if it is damaged."""
    try:
        entry = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(entry, dict) or entry.pop("sum", None) != _sum(entry):
        return None
    return entry if type(entry.get("chunk")) is int and isinstance(entry.get("step"), str) else None


def _sum(entry: Mapping[str, Any]) -> int:
    return zlib.crc32(orjson.dumps(dict(entry)))


_TOLD = frozenset(ChunkState.__dataclass_fields__) - {"number", "step", "status", "surplus"}


def _apply(state: ChunkState | None, entry: Mapping[str, Any]) -> ChunkState:
    """Return the state after a step. A step or a field that a later version adds changes nothing here."""
    state = ChunkState(entry["chunk"]) if state is None else replace(state, surplus=list(state.surplus))
    name, at = entry["step"], entry["at"]
    # Its `batch` is not the chunk's own, which the loop below would overwrite.
    if name == "surplus":
        state.surplus.append(entry["batch"])
        return state
    for key, value in entry.items():
        if key in _TOLD:
            setattr(state, key, value)
    if "status" in entry:
        state.status = BatchStatus(entry["status"])
        state.ended_at = at if state.status in ENDED and state.ended_at is None else state.ended_at
    state.step = _STEPS.get(name, state.step)
    if name == "planned":
        state.planned_at = at
    return state
