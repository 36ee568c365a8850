"""The commands about the quality of labels: agreement, calibrate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from batchchat.cli.arguments import JobArguments
from batchchat.cli.process import errors, print_json, results
from batchchat.cli.running import attended, hide_key, log_listener
from batchchat.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchchat.events import RunSummary, Snapshot
    from batchchat.labelling.calibrating import CalibrationView
    from batchchat.runner.control import Control

GATE_FAILED = 5
"""The exit code of a check of labels that has not held, as of an evaluation."""
_ANSWERED = {0, 1}
"""Exit codes of a run that asked every row: some may have failed, which count as wrong."""


def agreement_command(
    directory: Path | str,
    *,
    against: str | None,
    field: str | None,
    level: Literal["nominal", "ordinal", "interval"],
    below: float | None,
    by: str | None,
    as_json: bool,
) -> int:
    """Print how far labels agree; return the exit code."""
    from batchchat.labelling import require_statistics

    require_statistics()
    from batchchat.labelling.agreement import AgreementOptions, agreement_of

    view = agreement_of(directory, AgreementOptions(against, field, level, below, by))
    if as_json:
        from batchchat.cli.json_output import as_json as plain

        print_json(plain(view))
        return 0
    from batchchat.cli.labelling_tables import render_agreement

    results().print(render_agreement(view))
    return 0


def calibrate_command(
    arguments: JobArguments,
    *,
    command: str,
    expected: str | None,
    reviewed: Path | str | None,
    target: float,
    risk: float,
    rows: int | None,
    small: str | None,
    large: str | None,
    field: str | None,
    quiet: bool,
    as_json: bool,
) -> int:
    """Run both models on gold rows and print the threshold between them; return the exit code."""
    from batchchat.labelling import require_statistics

    require_statistics()
    from batchchat.labelling.calibrating import ReviewedGold, calibrated, gold_of_reviews, sub_jobs
    from batchchat.runner.run import run_job

    _check_gold(expected, reviewed, rows)
    job = arguments.load()
    jobs = sub_jobs(job, small=small, large=large, expected=expected)
    options = arguments.options(command=command)
    gold: str | ReviewedGold = expected or ""
    if reviewed is not None:
        gold = gold_of_reviews(job, reviewed, field=field)
        options = replace(options, rows=gold.rows)
    if rows is not None:
        # The same seed draws the same rows for both.
        options = replace(options, sample=rows)
    log = log_listener("text", verbose=False, quiet=quiet)
    hide_key(job)

    async def work(stop: Control, on_snapshot: Callable[[Snapshot], None]) -> RunSummary:
        for one in jobs:
            summary = await run_job(one, options=options, listener=log, on_snapshot=on_snapshot, stop=stop)
            # No threshold can be found without all answers of the small model: the large one would be paid for nothing.
            if summary.exit_code not in _ANSWERED:
                break
        return summary

    summary = attended(work, log)
    if summary.exit_code not in _ANSWERED:
        from batchchat.cli.summary_page import render_summary

        errors().print(render_summary(summary))
        return summary.exit_code
    view = calibrated(*jobs, gold=gold, field=field, target=target, risk=risk)
    if as_json:
        print_json(_calibration_json(view))
    else:
        from batchchat.cli.labelling_tables import render_calibration

        results().print(render_calibration(view))
    return 0 if view.promise.chosen is not None else GATE_FAILED


def _check_gold(expected: str | None, reviewed: Path | str | None, rows: int | None) -> None:
    """Raise UsageError if it is not clear where the right labels are."""
    if (expected is None) == (reviewed is None):
        raise UsageError(
            "the right labels stand either in a column of the input or in people's reviews of an output",
            remedy="Give one of --expected COLUMN and --reviewed DIR.",
        )
    if reviewed is not None and rows is not None:
        raise UsageError("--rows: the reviewed rows are asked", remedy="Leave --rows out.")


def _calibration_json(view: CalibrationView) -> dict[str, Any]:
    from batchchat.cli.json_output import as_json

    found: dict[str, Any] = as_json(view)
    # Properties are no fields, and a script needs these two as well.
    found["promise"] |= {"bound": view.promise.bound, "more_rows": view.promise.more_rows}
    return found
