"""The arguments that `run` and `plan` share: which job, and what the command line changes in it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from batchchat.dataclass import dataclass
from batchchat.errors import UsageError

if TYPE_CHECKING:
    from batchchat.evaluation.suite.suite import Suite
    from batchchat.job import FieldChange, Job
    from batchchat.records import ErrorKind
    from batchchat.runner.options import RunOptions


@dataclass(frozen=True, slots=True)
class JobArguments:
    """As click read them."""

    job: Path
    input_path: str | None
    output_path: str | None
    overrides: tuple[str, ...]
    limit: int | None
    sample: int | None
    seed: int
    retry_failed: str | None
    fresh: bool
    prune: bool
    max_cost: str | None = None
    max_tokens: str | None = None
    max_requests: str | None = None
    deadline: str | None = None
    until: str | None = None
    take_over: bool = False
    margin: float | None = None
    looks: int | None = None
    decide_by: str | None = None

    def load(self) -> Job:
        """Read the job with its overrides. Raises UsageError."""
        from batchchat.job import load_job

        return load_job(
            self.job,
            overrides=self.overrides,
            input=self.input_path,
            output=self.output_path,
            changes=self.changes(),
        )

    def load_suite(self) -> Suite:
        """Read the suite with its overrides. Raises UsageError."""
        from batchchat.evaluation import require_extra

        # Before the import: scorers need packages of the extra, and a missing one is told by its remedy.
        require_extra()
        from batchchat.evaluation.suite.reading import load_suite

        return load_suite(
            self.job,
            overrides=self.overrides,
            input=self.input_path,
            output=self.output_path,
            changes=self.changes(),
        )

    def changes(self) -> list[FieldChange]:
        """Return the fields of the job that options set, with their values."""
        from batchchat.job import read_override

        # Each is a field of the job under another name, so that the job's snapshot holds it too.
        given = {
            "--max-cost": ("budget.max_cost", self.max_cost),
            "--max-tokens": ("budget.max_tokens", self.max_tokens),
            "--max-requests": ("budget.max_requests", self.max_requests),
            "--deadline": ("deadline", self.deadline),
            "--until": ("until", self.until),
            "--margin": ("margin", self.margin),
            "--looks": ("looks", self.looks),
            "--decide-by": ("decide_by", self.decide_by),
        }
        return [read_override(f"{field}={text}", option) for option, (field, text) in given.items() if text is not None]

    def options(self, *, grace: float = 20.0, command: str | None = None) -> RunOptions:
        """Return what the command line adds to the job. Raises UsageError."""
        from batchchat.runner.options import RunOptions

        return RunOptions(
            limit=self.limit,
            sample=self.sample,
            seed=self.seed,
            retry_failed=read_kinds(self.retry_failed),
            fresh=self.fresh,
            take_over=self.take_over,
            prune=self.prune,
            grace=grace,
            command=command,
        )


def read_kinds(text: str | None) -> frozenset[ErrorKind] | None:
    """Return the failure kinds that `--retry-failed` names; None if it is not given."""
    from batchchat.job import failed_kinds
    from batchchat.records import ErrorKind

    if text is None:
        return None
    if text in {"none", "transient", "all"}:
        return failed_kinds(text)  # type: ignore[arg-type]  # one of its literals
    names = [name.strip() for name in text.split(",") if name.strip()]
    # Checked here, where the option can be named: the run would only know a set of kinds.
    unknown = [name for name in names if name not in set(ErrorKind)]
    if unknown or not names:
        raise UsageError(
            f"--retry-failed: {', '.join(unknown) or 'nothing'} is no kind of failure",
            remedy=f"Known are {', '.join(['transient', 'all', *ErrorKind])}.",
        )
    return frozenset(ErrorKind(name) for name in names)


def read_duration(option: str, text: str) -> float:
    """Return a duration option in seconds. Raises UsageError."""
    from batchchat.job import parse_duration

    try:
        return parse_duration(text)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None
