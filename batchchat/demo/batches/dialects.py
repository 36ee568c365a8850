"""How the providers' shapes of the Batch API differ: the objects that they answer and the lines that they write."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from batchchat.demo.batches.batches import Batch, Stand
from batchchat.demo.batches.checking import LineCheck, OpenAICheck
from batchchat.demo.batches.files import StoredFile
from batchchat.demo.batches.results import LineResult, openai_line

TIMES = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")


@dataclass(frozen=True, slots=True)
class BatchView:
    """What a batch tells at a moment. `total`, `completed` and `failed` are None if the counts are to be null."""

    batch: Batch
    stand: Stand
    status: str
    total: int | None
    completed: int | None
    failed: int | None
    output_ref: str | None
    error_ref: str | None
    line_numbers: bool = True


class Dialect:
    """OpenAI's dialect; the others change what differs."""

    id_prefix = "file-"
    created_status = 200
    paths: Mapping[str, str] = {"files": "/files", "upload": "/files", "batches": "/batches"}

    def line_check(self, endpoint: str, models: Collection[str]) -> LineCheck:
        """Return what checks the lines of one file."""
        return OpenAICheck(endpoint, models)

    def file(self, record: StoredFile, *, usable: bool) -> dict[str, Any]:
        """Return a file object."""
        return {
            "id": record.id,
            "object": "file",
            "bytes": record.nbytes,
            "created_at": int(record.created),
            "expires_at": int(record.expires),
            "filename": record.filename,
            "purpose": record.purpose,
            "status": "processed" if usable else "uploaded",
            "status_details": None,
        }

    def batch(self, view: BatchView) -> dict[str, Any]:
        """Return a batch object."""
        batch, stand = view.batch, view.stand
        told: dict[str, Any] = {
            "id": batch.id,
            "object": "batch",
            "endpoint": batch.endpoint,
            "model": batch.model,
            "errors": self.errors(view),
            "input_file_id": batch.input_ref,
            "completion_window": batch.window,
            "status": view.status,
            "output_file_id": view.output_ref,
            "error_file_id": view.error_ref,
            "created_at": int(batch.created),
            "expires_at": int(batch.expires),
        }
        for name in TIMES:
            at = stand.times.get(name)
            told[f"{name}_at"] = None if at is None else int(at)
        told["request_counts"] = {"total": view.total, "completed": view.completed, "failed": view.failed}
        told["usage"] = self.usage(batch)
        told["metadata"] = batch.metadata
        return told

    def errors(self, view: BatchView) -> Any:
        """Return what is wrong with a failed batch, None if nothing is."""
        problem = view.batch.problem
        if problem is None or not view.stand.ended:
            return None
        line = problem.line if view.line_numbers else None
        entry = {"code": problem.code, "message": problem.message, "param": problem.param, "line": line}
        return {"object": "list", "data": [entry]}

    def usage(self, batch: Batch) -> dict[str, Any] | None:
        """Return the tokens of the lines that were answered, None before the end."""
        outcome = batch.outcome
        if outcome is None or batch.problem is not None:
            return None
        return {
            "input_tokens": outcome.prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": outcome.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": outcome.prompt_tokens + outcome.completion_tokens,
        }

    def created(self, told: dict[str, Any]) -> Any:
        """Return the answer to a create call."""
        return told

    def page(self, told: Sequence[dict[str, Any]], *, has_more: bool) -> Any:
        """Return a page of a list of batches or files."""
        return {
            "object": "list",
            "data": told,
            "first_id": told[0]["id"] if told else None,
            "last_id": told[-1]["id"] if told else None,
            "has_more": has_more,
        }

    def line(self, result: LineResult) -> dict[str, Any]:
        """Return a line of a result file."""
        return openai_line(result)


def make_dialect(name: str) -> Dialect:
    """Return the dialect of a name in `DIALECTS`."""
    return {"openai": Dialect}[name]()
