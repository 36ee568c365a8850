"""The batch service port: what the batch engine knows of a provider's Batch API.

The engine decides what is sent and when; a service speaks one dialect. So nothing above this port knows an address, a
header or a field of a dialect, and nothing below it keeps state: what must survive a crash is in the engine's ledger.

The order of calls for one chunk, each noted in the ledger before it is made:

    input_ref = await service.upload(name, path)      # may be repeated: a second copy costs only space
    batch = await service.create(input_ref, labels)   # at most once; `OutcomeUnknown` is settled by `find`
    batches = await service.poll([batch.id])          # until `batch.ended`
    async for line in service.results(batch): ...     # every file, in every end state
    await service.delete(batch)                       # only if the job says so, and only what we made
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from batchchat.dataclass import dataclass


class BatchStatus(StrEnum):
    """Where a batch stands, in the words of OpenAI's dialect. Other dialects are translated to them."""

    VALIDATING = "validating"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"
    """A word that no dialect has: it is polled on, never taken for an end."""


ENDED = frozenset({BatchStatus.COMPLETED, BatchStatus.FAILED, BatchStatus.EXPIRED, BatchStatus.CANCELLED})


@dataclass(frozen=True, slots=True)
class BatchProblem:
    """What a provider says is wrong with a whole batch. `line` counts from 1; None if it names no line.

    With a `remedy` no other batch of this job can succeed before a person acts (an unknown model, no credit, a bucket
    that the provider may not read): note that the batch has ended, leave its rows open, and end the run with 3.
    """

    code: str | None
    message: str
    line: int | None = None
    remedy: str | None = None


@dataclass(frozen=True, slots=True)
class RemoteBatch:
    """A batch as the provider tells it now.

    `total`, `completed` and `failed` are the provider's counts, None if it tells none. They are shown, never believed.
    `result_refs` are the result files that are named, absent ones left out (null and "" are absent).
    `created_at` and `expires_at` are seconds since the epoch. `raw` is the provider's own object, for support.
    """

    id: str
    status: BatchStatus
    total: int | None = None
    completed: int | None = None
    failed: int | None = None
    result_refs: tuple[str, ...] = ()
    problems: tuple[BatchProblem, ...] = ()
    input_ref: str | None = None
    labels: Mapping[str, str] | None = None
    created_at: float | None = None
    expires_at: float | None = None
    raw: Any = None

    @property
    def ended(self) -> bool:
        """Return true if the provider will do nothing more for this batch."""
        return self.status in ENDED


@dataclass(frozen=True, slots=True)
class ResultLine:
    """One line of a result file.

    `custom_id` is None if the line has none. With an answer of the model API, `status` is its HTTP status and `body`
    its JSON text, whatever the dialect wrapped around it. Without one, `status` is None, and `code` and `message` say
    why (`batch_expired`, `batch_cancelled`, `request_timeout`, ...). `request_id` is the provider's.
    """

    custom_id: str | None
    status: int | None
    body: bytes
    code: str | None = None
    message: str | None = None
    request_id: str | None = None


class TornLine(Exception):
    """A result file ended in the middle of a line, or holds something that is no JSON: it is to be downloaded again.

    It is raised after every line that could be read, of all files, was given out. So a file that stays damaged costs
    only what is damaged in it: give up downloading it again after some rounds.
    """


class OutcomeUnknown(Exception):
    """Nobody knows whether a `create` was carried out: no answer came, or one that does not tell (5xx).

    It is settled by `find`, never by creating again.
    """


class QueueFull(Exception):
    """The provider takes no more now: queued tokens, number of batches, a rate of creates. Nothing was created.

    `queued_tokens` is the limit that its text names, None if it names none. `retry_after` is in seconds.
    """

    def __init__(self, message: str, *, queued_tokens: int | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.queued_tokens = queued_tokens
        self.retry_after = retry_after


class ChunkTooLarge(Exception):
    """The provider refuses a file for its size (413, 400 "too large") or its number of lines: it is to be split."""


class BadLine(Exception):
    """The provider checked the file and refuses it for one line; `line` counts from 1, None if it names no line."""

    def __init__(self, message: str, *, line: int | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.line = line
        self.code = code


class Unavailable(Exception):
    """The provider cannot be reached or is down (no connection, timeout, 5xx, a passing 401 or 404): ask again later.

    `retry_after` is in seconds, None if nothing was told.
    """

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Gone(Exception):
    """A batch or a file does not exist (404 that lasts): other key or project, or kept no longer."""


@dataclass(frozen=True, slots=True)
class ServiceLimits:
    """What one chunk may hold at this provider; the job can set less.

    `lines` and `file_bytes` bound a file, `line_bytes` one line (envelope and newline included; None: no own bound).
    `queued_tokens` bounds the prompt tokens of all batches that have not ended, None if no limit is known.
    `window` is the completion window, as the provider writes it. `finds_by_labels` tells whether labels come back.
    """

    lines: int = 50_000
    file_bytes: int = 200_000_000
    line_bytes: int | None = None
    queued_tokens: int | None = None
    window: str = "24h"
    finds_by_labels: bool = True


class ServiceOptions(Protocol):
    """What a service reads of a job's `engine` block. Any field may be None."""

    @property
    def service(self) -> str | None:
        """The dialect by name, such as `azure`. None: the provider's own, else what its address tells."""

    @property
    def window(self) -> str | None:
        """The completion window, such as `24h` or `7d`. None: the provider's usual one."""

    @property
    def bucket(self) -> str | None:
        """The bucket of a service that keeps its files in the customer's: `s3://NAME/PREFIX` or an object URL."""

    @property
    def folder(self) -> str | None:
        """The folder of the `files` service, absolute. If it is set, no provider is asked."""


class BatchService(Protocol):
    """Speaks one dialect of the Batch API. Made for one run, entered and left by the engine.

    Every method may raise `Unavailable`. A key that is refused, missing credit, a missing permission or bucket raises
    `NeedsHuman` or `UsageError` with a remedy. No method sends a request twice by itself that creates something.
    """

    limits: ServiceLimits

    async def __aenter__(self) -> BatchService: ...

    async def __aexit__(self, *args: object) -> None: ...

    async def preflight(self) -> None:
        """Check what can be checked before anything is uploaded: address, key, bucket, region.

        Raises UsageError or NeedsHuman with a remedy.
        """

    def encode(self, custom_id: str, body: bytes) -> bytes:
        """Return a request as one line of an input file, newline included.

        The body is JSON. The line holds no raw U+2028, U+2029 or U+0085, no `stream`, and no lone surrogate.
        """

    def refuses(self, body: bytes) -> str | None:
        """Return why this provider's batches cannot take a request, None if they can."""

    async def upload(self, name: str, path: Path) -> str:
        """Upload a file of lines under this name (it ends in .jsonl) and return its reference.

        The file is streamed from disk. Where the provider checks it, wait until it is usable.

        Raises ChunkTooLarge, BadLine.
        """

    async def create(self, input_ref: str, labels: Mapping[str, str]) -> RemoteBatch:
        """Create a batch of an uploaded file. Sends one request.

        Raises OutcomeUnknown, QueueFull, ChunkTooLarge, BadLine, and Gone if the input is not there any more.
        After every exception but OutcomeUnknown it is certain that nothing was created.
        """

    async def find(self, input_ref: str, labels: Mapping[str, str], since: float) -> list[RemoteBatch]:
        """Return the batches of this input or with these labels that were created after `since` (epoch seconds).

        Reads all pages back to `since`, with some minutes for clocks that differ; oldest first. A batch whose own
        labels contradict `labels` is another one, though its input is the same. A list may lag: an empty one is no
        proof.
        """

    async def poll(self, ids: Sequence[str]) -> dict[str, RemoteBatch]:
        """Return the batches with these ids, with as few requests as the provider allows.

        An id that the provider does not know is left out.
        """

    def results(self, batch: RemoteBatch, scratch: Path) -> AsyncIterator[ResultLine]:
        """Iterate over the lines of every result file of a batch. Files are streamed through the folder `scratch`.

        Bytes are split at LF only. Raises TornLine if a file is cut and Gone if a file is gone, both after all lines
        that could be read.
        """

    async def cancel(self, batch_id: str) -> None:
        """Ask the provider to cancel a batch. One that has ended already is no error."""

    async def delete(self, refs: Sequence[str]) -> None:
        """Delete files of ours. One that is gone already is no error."""
