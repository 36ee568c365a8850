"""What a coordinator and its workers tell each other: JSON objects, one a line.

The coordinator tells, with the name under `do`:

    begin    the job, its options, and where limits are shared; once, first
    work     {shards, take_over}: run these; an answer to `claim`. `take_over` if a worker has died over them
    end      nothing is left: end in order
    stop     {reason, exit_code, times}: drain, and the second time end at once
    pause, resume, retune, set    as a `Control` takes them

A worker tells, with the name under `is`:

    claim    it has nothing to do
    snapshot {snapshot}: the counts of what it runs, four times a second; the newest takes the place of one that waits
    event    {event}: something worth a log line
    answers  {answers}: figures of answers that were counted, for metrics; only if `begin` asks for them
    done     {shards, summary}: the run over these shards ended by itself, whatever its exit code
    lost     {shards, message, remedy, exit_code}: these shards could not be run at all

An end of the stream without `end` means that the other side has died.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from batchchat.job import Job, job_of
from batchchat.records import ErrorKind
from batchchat.runner.options import RunOptions

Message = Mapping[str, Any]


def job_order(job: Job) -> dict[str, Any]:
    """Return a job as JSON values from which `ordered_job` makes it again, on any machine that has the same files."""
    model = job.answer_model
    return {"job": job.snapshot(), "answer_model": None if model is None else [model[0], str(model[1])]}


def ordered_job(order: Message) -> Job:
    """Return the job of an order. Raises JobError if this version of batchchat does not know it."""
    snapshot = order["job"]
    job = job_of(snapshot)
    model = order.get("answer_model")
    return job.with_origin(
        options=tuple(snapshot.get("options") or ()), answer_model=None if model is None else (model[0], Path(model[1]))
    )


def options_order(options: RunOptions) -> dict[str, Any]:
    """Return the options of a run as JSON values. What is the coordinator's own (`fresh`) is left out."""
    kinds = options.retry_failed
    return {
        "limit": options.limit,
        "sample": options.sample,
        "seed": options.seed,
        "retry_failed": None if kinds is None else sorted(kind.value for kind in kinds),
        "prune": options.prune,
        "take_over": options.take_over,
        "grace": options.grace,
        "command": options.command,
        "run_id": options.run_id,
    }


def ordered_options(order: Message) -> RunOptions:
    """Return the options of an order."""
    kinds = order.get("retry_failed")
    given = {**order, "retry_failed": None if kinds is None else frozenset(ErrorKind(kind) for kind in kinds)}
    return RunOptions(**given)
