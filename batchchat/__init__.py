"""batchchat: run one prompt over many rows, and never lose or pay twice for an answer.

The Python API, imported as it is used:

    load_job(path, overrides=…) -> Job          read and validate a job file
    run(job, rows=…) -> RunResult               run it, in a script or a notebook; rows may be a DataFrame
    await run_job(job, rows=…) -> RunResult     the same on a running event loop
    RunResult.to_arrow(columns=…)               its answers as a table; also to_pandas, to_polars
    read_output(directory) -> pyarrow.Table     the dataset in input order
    iter_output(directory) -> Iterator[pyarrow.RecordBatch]

    load_suite(path, scorers=…) -> Suite        read and validate a suite file; scorers may be functions
    plan(job or suite)                          what it would send and cost
    await evaluate(suite) -> EvaluationResult   run its variants and judges, and score what they answered
    score(suite) -> EvaluationResult            score what is there
    compare(a, b, scorers=…)                    compare two outputs -> ComparisonResult
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batchchat.api import RunFailed, RunResult, run, run_job
    from batchchat.errors import BatchchatError, UsageError
    from batchchat.evaluation.scorers.record_scorers import ScorerFunction
    from batchchat.evaluation.suite.suite import Suite
    from batchchat.events import Event, RunSummary, Snapshot
    from batchchat.job import Job, load_job
    from batchchat.runner.control import Ceilings, Control, StopRequest
    from batchchat.runner.options import RunOptions
    from batchchat.store import iter_output, read_output
    from batchchat.suite_api import (
        ComparisonResult,
        EvaluationFailed,
        EvaluationResult,
        compare,
        evaluate,
        load_suite,
        plan,
        score,
    )

__version__ = "0.1.0"

__all__ = [
    "BatchchatError",
    "Ceilings",
    "ComparisonResult",
    "Control",
    "EvaluationFailed",
    "EvaluationResult",
    "Event",
    "Job",
    "RunFailed",
    "RunOptions",
    "RunResult",
    "RunSummary",
    "ScorerFunction",
    "Snapshot",
    "StopRequest",
    "Suite",
    "UsageError",
    "__version__",
    "compare",
    "evaluate",
    "iter_output",
    "load_job",
    "load_suite",
    "plan",
    "read_output",
    "run",
    "run_job",
    "score",
]

_HOMES = {
    "BatchchatError": "batchchat.errors",
    "UsageError": "batchchat.errors",
    "Event": "batchchat.events",
    "RunSummary": "batchchat.events",
    "Snapshot": "batchchat.events",
    "Job": "batchchat.job",
    "load_job": "batchchat.job",
    "RunOptions": "batchchat.runner.options",
    "Ceilings": "batchchat.runner.control",
    "Control": "batchchat.runner.control",
    "StopRequest": "batchchat.runner.control",
    "RunFailed": "batchchat.api",
    "RunResult": "batchchat.api",
    "run": "batchchat.api",
    "run_job": "batchchat.api",
    "iter_output": "batchchat.store",
    "read_output": "batchchat.store",
    "Suite": "batchchat.evaluation.suite.suite",
    "ScorerFunction": "batchchat.evaluation.scorers.record_scorers",
    "ComparisonResult": "batchchat.suite_api",
    "EvaluationFailed": "batchchat.suite_api",
    "EvaluationResult": "batchchat.suite_api",
    "compare": "batchchat.suite_api",
    "evaluate": "batchchat.suite_api",
    "load_suite": "batchchat.suite_api",
    "plan": "batchchat.suite_api",
    "score": "batchchat.suite_api",
}


def __getattr__(name: str) -> Any:
    # Late, so that `batchchat --help` does not wait for pyarrow, httpx and pydantic.
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'batchchat' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value
