"""What a person should know of a plan before it is run."""

from __future__ import annotations

from batchchat.errors import JobError
from batchchat.job import Job, load_keys
from batchchat.job.targets import endpoint_key_problem, has_several
from batchchat.job.values import nearest
from batchchat.planning.earlier import EarlierRuns
from batchchat.planning.reader import PlanReader
from batchchat.providers import Provider
from batchchat.runner.preparation import Prepared


def plan_warnings(prepared: Prepared, earlier: EarlierRuns, reader: PlanReader, no_key: JobError | None) -> list[str]:
    """Return the warnings of a plan: of its input, its model, its endpoints and its key (`no_key`)."""
    job = prepared.job
    return [
        *prepared.warnings,
        *prepared.empty.warning(reader.empty, f"the {reader.counts.rows:,}"),
        *prepared.source.warnings,
        *_price_warning(job, prepared.provider),
        *_below_warning(job, earlier.below),
        *(_endpoint_warnings(job) if has_several(job) else _key_warning(no_key)),
    ]


def _below_warning(job: Job, below: int) -> list[str]:
    """Say that answers were taken under a lower threshold than today's."""
    if not below:
        return []
    taken = f"cascade: {below:,} answers here were taken with a confidence below the threshold of today"
    return [f"{taken}. They stay as they are: a threshold holds for the rows that are asked from now on"]


def _price_warning(job: Job, provider: Provider) -> list[str]:
    """Say if a provider with a list of prices does not have the model in it: its name may be wrong.

    A model on a machine of one's own has no price, and needs none.
    """
    if job.model in provider.prices or not provider.prices:
        return []
    near = nearest(job.model, list(provider.prices))
    remedy = "give your own price with `prices: {input: …, output: …, currency: …}`"
    listed = f"`batchchat providers {provider.name}` lists its models"
    warning = (
        f"model: no price is known for {job.model} at {provider.name}{near}, so costs are not counted. "
        f"{listed}; {remedy}"
    )
    return [warning]


def _endpoint_warnings(job: Job) -> list[str]:
    """Say which endpoint lacks its key or the model. Raises JobError if no endpoint has the model."""
    from batchchat.endpoints.models import models_warnings

    environ = load_keys(job)
    problem = endpoint_key_problem(job, environ)
    return _key_warning(problem) if problem is not None else models_warnings(job, environ)


def _key_warning(problem: JobError | None) -> list[str]:
    """A missing key stops a run, not a plan; it is said all the same."""
    return [] if problem is None else [f"{problem.message}. A run needs it."]
