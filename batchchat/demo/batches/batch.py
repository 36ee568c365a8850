"""One batch: what is kept of it, where it stands, and what it leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from pathlib import Path

from batchchat.dataclass import dataclass
from batchchat.demo.batches.checking import FileProblem
from batchchat.demo.batches.files import KEPT_S, read_record

ENDED = frozenset({"completed", "failed", "expired", "cancelled"})


@dataclass(frozen=True, slots=True)
class Stand:
    """Where a batch stands at a moment: its status, how many lines are done, and when each status began.

    `kept` is how many of the done lines are in the result files.
    """

    status: str
    done: int = 0
    kept: int = 0
    times: Mapping[str, float] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        """Return true if nothing more will happen."""
        return self.status in ENDED


@dataclass(frozen=True, slots=True)
class BatchOutcome:
    """What a batch left behind. `ran` counts the lines that the model ran, also if they are in no file."""

    stand: Stand
    completed: int
    failed: int
    ran: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    output_ref: str | None = None
    error_ref: str | None = None


@dataclass(slots=True)
class Batch:
    """A batch as it is kept. Times are seconds since the epoch; `number` counts the batches that were made, from 1."""

    id: str
    number: int
    input_ref: str
    endpoint: str
    window: str
    created: float
    expires: float
    metadata: dict[str, str] | None = None
    model: str | None = None
    total: int = 0
    tokens: int = 0
    problem: FileProblem | None = None
    output_kept_s: float = KEPT_S
    bad_lines: dict[str, FileProblem] = field(default_factory=dict)
    cancelled: float | None = None
    worked: float | None = None
    outcome: BatchOutcome | None = None

    @classmethod
    def read(cls, path: Path) -> Batch:
        """Read a record that `write_record` wrote."""
        data = read_record(path)
        if data["problem"] is not None:
            data["problem"] = FileProblem(**data["problem"])
        data["bad_lines"] = {index: FileProblem(**problem) for index, problem in data["bad_lines"].items()}
        if data["outcome"] is not None:
            stand = Stand(**data["outcome"].pop("stand"))
            data["outcome"] = BatchOutcome(stand=stand, **data["outcome"])
        return cls(**data)


@dataclass(frozen=True, slots=True)
class BatchOrder:
    """What a create call asks for. `window_s` is the window in seconds; `model` is one for all lines."""

    input_ref: str
    endpoint: str
    window: str
    window_s: float = 86_400.0
    metadata: dict[str, str] | None = None
    output_kept_s: float = KEPT_S
    model: str | None = None
