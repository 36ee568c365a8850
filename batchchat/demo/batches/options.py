"""What can be chosen about the demo provider's Batch API, and the table of its faults."""

from __future__ import annotations

import difflib
import importlib.util
import math
from collections.abc import Collection, Mapping
from dataclasses import field
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType

from batchchat.dataclass import dataclass


class FaultKind(StrEnum):
    """What the value of a batch fault is, in the words of the help."""

    BATCHES = "batches"
    """The first so many batches are affected."""
    CALLS = "calls"
    """The first so many requests of this sort are affected."""
    SHARE = "share"
    """Each line is affected with this probability, anew in each batch."""
    SECONDS = "seconds"
    NUMBER = "number"
    FLAG = "flag"
    """It always holds; a value of 0 switches it off."""
    TEXT = "text"


@dataclass(frozen=True, slots=True)
class BatchFault:
    """One fault: what its value is, the value if none is given, and what the server does."""

    kind: FaultKind
    default: float | str
    does: str


_BATCHES, _CALLS, _SHARE = FaultKind.BATCHES, FaultKind.CALLS, FaultKind.SHARE
_SECONDS, _NUMBER, _FLAG, _TEXT = FaultKind.SECONDS, FaultKind.NUMBER, FaultKind.FLAG, FaultKind.TEXT

BATCH_FAULTS: Mapping[str, BatchFault] = MappingProxyType(
    {
        # Limits
        "max_lines": BatchFault(_NUMBER, 50_000, "a batch of more lines fails with too_many_tasks"),
        "max_bytes": BatchFault(_NUMBER, 209_715_200, "a larger upload is refused with 413"),
        "too_large_status": BatchFault(_NUMBER, 400, "the status of that refusal"),
        "queue_tokens": BatchFault(
            _NUMBER, 90_000, "a batch fails with token_limit_exceeded if all batches that run hold more prompt tokens"
        ),
        "queue_status": BatchFault(_NUMBER, 429, "the same, but the create call is refused with this status"),
        # Files
        "upload_lost": BatchFault(_CALLS, 1, "the file is stored, and the connection is cut before the answer"),
        "upload_500": BatchFault(_CALLS, 1, "an upload is answered with 500, and nothing is stored"),
        "file_late": BatchFault(_SECONDS, 1, "an uploaded file is 404 for so long"),
        "file_slow": BatchFault(_SECONDS, 1, "an uploaded file becomes usable so much later; create is refused before"),
        # Create
        "create_lost": BatchFault(_BATCHES, 1, "the batch is made, and the connection is cut before the answer"),
        "create_500": BatchFault(_BATCHES, 1, "the batch is made, and the answer is 500"),
        "create_slow": BatchFault(_SECONDS, 30, "the batch is made at once, and the answer comes so much later"),
        "create_dropped": BatchFault(_CALLS, 1, "the connection is cut, and no batch is made"),
        "create_503": BatchFault(_CALLS, 1, "503, and no batch is made"),
        "create_429": BatchFault(_CALLS, 1, "429 token_limit_exceeded, and no batch is made"),
        "create_400": BatchFault(_CALLS, 1, "400 token_limit_exceeded, and no batch is made"),
        "create_402": BatchFault(_CALLS, 1, "402, no credit, and no batch is made"),
        # Looking for batches
        "batch_late": BatchFault(_NUMBER, 2, "the first so many GETs of each batch are 404"),
        "list_late": BatchFault(_SECONDS, 2, "the list leaves out batches that are younger"),
        "batch_gone": BatchFault(_BATCHES, 1, "the batch and its files are gone once it has ended"),
        "poll_500": BatchFault(_CALLS, 3, "a GET of a batch or of the list is answered with 500"),
        "poll_401": BatchFault(_CALLS, 1, "a GET of a batch or of the list is answered with 401"),
        "poll_429": BatchFault(_CALLS, 1, "a GET of a batch or of the list is answered with 429"),
        # Running
        "queue_full": BatchFault(_BATCHES, 1, "the batch fails with token_limit_exceeded"),
        "bad_text": BatchFault(_TEXT, "", "a line that holds this text fails the whole batch with invalid_request"),
        "no_line_number": BatchFault(_FLAG, 1, "the error of a failed batch names no line"),
        "stuck_running": BatchFault(_BATCHES, 1, "the batch stays in_progress, at half of its lines"),
        "stuck_finalizing": BatchFault(_BATCHES, 1, "the batch stays in finalizing, with all lines counted"),
        "finalizing": BatchFault(_SECONDS, 10, "finalizing takes so much longer"),
        "window": BatchFault(_SECONDS, 86_400, "a batch that has not ended after so long expires"),
        "expire": BatchFault(_BATCHES, 1, "the batch expires with half of its lines answered"),
        "expire_empty": BatchFault(_BATCHES, 1, "the batch expires with no line answered"),
        "unknown_status": BatchFault(_FLAG, 1, "a status that no document names takes the place of in_progress"),
        "counts_back": BatchFault(_FLAG, 1, "the counts of completed lines go up and down"),
        "counts_null": BatchFault(_FLAG, 1, "the counts are null"),
        # The end
        "cancel_all": BatchFault(_BATCHES, 1, "a cancelled batch has answered all of its lines"),
        "cancel_none": BatchFault(_BATCHES, 1, "a cancelled batch has an error file only, with none of its answers"),
        "cancel_missing": BatchFault(_BATCHES, 1, "every third line of a cancelled batch is in no file"),
        "cancel_slow": BatchFault(_SECONDS, 10, "cancelling takes so much longer"),
        "ids_late": BatchFault(_NUMBER, 2, "the ids of the files come so many polls after the end"),
        "all_failed": BatchFault(_BATCHES, 1, "every line fails with 500, so that there is no output file"),
        "error_file_empty": BatchFault(_FLAG, 1, "a batch without failed lines has an error file of 0 bytes"),
        "error_in_output": BatchFault(_FLAG, 1, "failed lines are in the output file"),
        "ids_empty": BatchFault(_FLAG, 1, 'absent ids are ""'),
        "ids_absent": BatchFault(_FLAG, 1, "fields that are null are left out"),
        # Lines
        "line_missing": BatchFault(_SHARE, 0.1, "the line is in no file"),
        "line_twice": BatchFault(_SHARE, 0.1, "the line comes twice"),
        "line_unknown": BatchFault(_SHARE, 0.1, "a line with an id that was never sent comes before it"),
        "line_null": BatchFault(_SHARE, 0.1, "a line whose custom_id is null comes before it"),
        "line_429": BatchFault(_SHARE, 0.1, "the line fails with 429"),
        "line_500": BatchFault(_SHARE, 0.1, "the line fails with 500"),
        "line_status_0": BatchFault(_SHARE, 0.1, "the line has status_code 0 and no body, and is counted as completed"),
        "line_timeout": BatchFault(_SHARE, 0.1, "the line has no response, and the error request_timeout"),
        "line_body_text": BatchFault(_SHARE, 0.1, "the body is a JSON string that holds the JSON"),
        "line_bare": BatchFault(_SHARE, 0.1, "the response is the completion itself"),
        "line_no_usage": BatchFault(_SHARE, 0.1, "the completion has no usage"),
        "line_separators": BatchFault(_SHARE, 0.1, "the completion holds raw U+2028, U+2029 and U+0085"),
        "line_long": BatchFault(_NUMBER, 1_000_000, "every completion is filled up to so many characters"),
        # Downloads
        "crlf": BatchFault(_FLAG, 1, "lines end in CR LF"),
        "no_final_newline": BatchFault(_FLAG, 1, "the last line has no newline"),
        "download_torn": BatchFault(_CALLS, 1, "a download is cut in the middle of a line"),
        "download_short": BatchFault(_CALLS, 1, "a download ends in the middle of a line, as if it were whole"),
        "download_html": BatchFault(_CALLS, 1, "a download is a page of HTML, with 200"),
        "download_500": BatchFault(_CALLS, 1, "a download is answered with 500"),
        "no_range": BatchFault(_FLAG, 1, "the header Range is ignored"),
        "file_gone": BatchFault(_BATCHES, 1, "the output file is 404"),
    }
)
"""Every fault of the Batch API by name."""

DIALECTS = ("openai", "azure", "groq", "mistral", "together", "deepinfra", "doubleword", "scaleway")
"""The dialects of the Batch API, by the provider's name."""


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """How the demo provider's Batch API behaves.

    `seconds` is the time from the creation of a batch to its end; a batch whose lines take longer to answer ends
    later. `faults` maps names of `BATCH_FAULTS` to values. `folder` keeps files and batches over a restart of the
    server; without it they are in a temporary folder that is removed at the end. `dialect` is one of `DIALECTS`.
    """

    seconds: float = 2.0
    faults: Mapping[str, float | str] = field(default_factory=dict)
    dialect: str = "openai"
    folder: Path | None = None

    def __post_init__(self) -> None:
        if not (self.seconds >= 0 and math.isfinite(self.seconds)):
            raise ValueError(f"the seconds of a batch must be 0 or more: {self.seconds:g}")
        if self.dialect not in DIALECTS:
            raise ValueError(_unknown("batch dialect", self.dialect, DIALECTS))
        if self.dialect == "scaleway" and importlib.util.find_spec("obstore") is None:
            raise ValueError("batch dialect scaleway needs object storage: pip install 'batchchat[s3]'")
        for name, value in self.faults.items():
            _check(name, value)
        if "queue_status" in self.faults and "queue_tokens" not in self.faults:
            raise ValueError("batch fault queue_status needs queue_tokens=N, which tells when the queue is full")


def _unknown(what: str, name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0)
    return f"unknown {what} {name!r}; did you mean {near[0]!r}? There are: {', '.join(known)}"


def _check(name: str, value: float | str) -> None:
    """Raise ValueError if there is no such fault, or if it takes no such value."""
    fault = BATCH_FAULTS.get(name)
    if fault is None:
        raise ValueError(_unknown("batch fault", name, BATCH_FAULTS))
    if fault.kind is _TEXT:
        if not isinstance(value, str) or not value:
            raise ValueError(f"batch fault {name} takes a text, such as {name}=WORD")
        return
    if isinstance(value, str) or not (value >= 0 and math.isfinite(value)):
        raise ValueError(f"batch fault {name} takes a number of {fault.kind.value}, 0 or more: {value}")
    if fault.kind is _SHARE and value > 1:
        raise ValueError(f"batch fault {name} takes a probability from 0 to 1: {value}")
    if fault.kind is not _SHARE and fault.kind is not _SECONDS and value != int(value):
        raise ValueError(f"batch fault {name} takes a whole number: {value}")


def read_batch_fault(text: str) -> tuple[str, float | str]:
    """Read `NAME` or `NAME=VALUE`. Raises ValueError if it cannot be read."""
    name, equals, value = text.partition("=")
    name = name.strip()
    fault = BATCH_FAULTS.get(name)
    if fault is None:
        raise ValueError(_unknown("batch fault", name, BATCH_FAULTS))
    if not equals:
        _check(name, fault.default)
        return name, fault.default
    if fault.kind is _TEXT:
        _check(name, value)
        return name, value
    try:
        number = float(value)
    except ValueError:
        raise ValueError(f"batch fault {name} takes a number, such as {name}={fault.default:g}: {value!r}") from None
    _check(name, number)
    return name, number
