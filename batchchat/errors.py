"""What can stop a run, each with the exit code that `batchchat` ends with.

    BatchchatError                 70  internal error
    ├── UsageError                  2  bad usage, job file or input: nothing was sent
    │   └── JobError                2  a place in a job file, or a --set, that cannot be used
    ├── NeedsHuman                  3  the provider refuses us: key, model, credit
    ├── StoppedEarly                4  a budget or a deadline was reached
    ├── ProviderUnavailable        69  an outage beyond `retry.outage`, a host that never answered, a day used up
    ├── StorageError               74  the disk or a file cannot be written or read
    └── OutputLocked               75  another run holds this output

Everything but UsageError leaves a resumable output. A row that fails is never an exception: it is a `Failure`
in its record.
"""

from __future__ import annotations

from pathlib import Path


class BatchchatError(Exception):
    """Base of every error that batchchat raises on purpose. `remedy` says what to do next."""

    exit_code = 70

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}\n{self.remedy}" if self.remedy else self.message


class UsageError(BatchchatError):
    """Bad usage, job file or input, found before anything was sent or written."""

    exit_code = 2


class JobError(UsageError):
    """A field of a job that cannot be used, with the file and line (or the `--set`) that gave it."""

    def __init__(
        self,
        message: str,
        *,
        file: Path | None = None,
        line: int | None = None,
        field: str | None = None,
        remedy: str | None = None,
    ) -> None:
        where = str(file) if file is not None else ""
        if where and line is not None:
            where += f":{line}"
        text = ": ".join(part for part in (where, field or "", message) if part)
        super().__init__(text, remedy=remedy)
        self.file = file
        self.line = line
        self.field = field


class NeedsHuman(BatchchatError):
    """The provider refuses every request until a person acts: a bad key, an unknown model, no credit."""

    exit_code = 3


class StoppedEarly(BatchchatError):
    """A budget or a deadline was reached; the same command goes on later."""

    exit_code = 4


class ProviderUnavailable(BatchchatError):
    """The provider did not answer for longer than the job allows."""

    exit_code = 69


class StorageError(BatchchatError):
    """The output cannot be written or read: disk full, read-only, damaged beyond recovery."""

    exit_code = 74


class StoreError(StorageError):
    """A store that refused a request, or did not answer. `lasting`: it will refuse again until a person acts."""

    lasting = False


class OutputLocked(BatchchatError):
    """Another run holds this output."""

    exit_code = 75
