"""Calibrating a cascade: two models on the same gold rows, and the threshold between them.

Each model has an output of its own beside the job's, so that a stopped calibration goes on and answers are paid once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchchat.addresses import address_of
from batchchat.errors import UsageError
from batchchat.job import Job
from batchchat.labelling.agreement import LabelledOutput, LabelledRow, label_text
from batchchat.labelling.coefficients import Estimate, share_estimate
from batchchat.labelling.guarantee import ALWAYS, CascadePromise, promise
from batchchat.labelling.votes import value_at
from batchchat.runner.preparation import prepare
from batchchat.store import iter_output


@dataclass(frozen=True, slots=True)
class ModelOnGold:
    """One model on the gold rows: how many answers are right, and what 1,000 rows cost (None: no price is known)."""

    model: str
    output: str
    accuracy: Estimate
    cost_per_1000: float | None


@dataclass(frozen=True, slots=True)
class CalibrationView:
    """What `batchchat calibrate` found.

    `rows` have a gold label and were asked of both models, `without_gold` rows have none. `cost_per_1000` is that of
    the cascade at the chosen threshold.
    """

    field: str
    expected: str
    rows: int
    without_gold: int
    small: ModelOnGold
    large: ModelOnGold
    promise: CascadePromise
    cost_per_1000: float | None
    currency: str | None

    @property
    def escalates(self) -> bool:
        """Whether the chosen threshold divides the rows: some answers are taken, some asked again."""
        chosen = self.promise.chosen
        return chosen is not None and chosen.threshold < ALWAYS and 0 < chosen.escalated < 1


def sub_jobs(job: Job, *, small: str | None, large: str | None, expected: str) -> tuple[Job, Job]:
    """Return the jobs of the two models. Raises UsageError, before anything is sent, if they cannot be compared."""
    if job.response.confidence is None:
        raise job.error(
            "says nothing of confidence, and a threshold needs it",
            "response",
            remedy="Add `confidence: logprobs` to response (or samples, or {field: NAME}).",
        )
    own = job.cascade and small in (None, job.cascade[0].model) and large in (None, job.cascade[-1].model)
    if own and len(job.cascade) > 2:
        message = f"the cascade has {len(job.cascade)} steps, and a threshold is found between two models"
        remedy = "Name the two with --small and --large; then calibrate the next two."
        raise job.error(message, "cascade", remedy=remedy)
    small = small or job.model
    if large is None and own:
        large = job.cascade[-1].model
    if large is None:
        remedy = "Give --large MODEL, the better model, or name both in the job's cascade."
        raise UsageError("no second model is named", remedy=remedy)
    if large == small:
        raise UsageError(f"both models are {small}", remedy="Give --small and --large different models.")
    _check_gold(job, expected)
    # The second model's answer is taken as it is: it needs no confidence, and one sample.
    plain = job.response.model_copy(update={"confidence": None})
    # Text, since it may be a URL.
    folder = f"{job.output.path.rstrip('/')}.calibrate"
    first = job.model_copy(update={"model": small, "cascade": [], "output": _output(job, f"{folder}/small")})
    samples = 1 if job.response.confidence == "samples" else job.samples
    second = job.model_copy(
        update={
            **(_of_last_step(job) if own else {}),
            "model": large,
            "cascade": [],
            "output": _output(job, f"{folder}/large"),
            "response": plain,
            "samples": samples,
        }
    )
    return first, second


def _of_last_step(job: Job) -> dict[str, Any]:
    """Return what the last step of the job's cascade sets in place of the job's own fields."""
    step = job.cascade[-1]
    found: dict[str, Any] = {"prices": step.prices} if step.prices is not None else {}
    if step.provider is not None:
        found["provider"] = step.provider
    if step.params:
        given = {**job.params.model_dump(exclude_unset=True), **step.params}
        found["params"] = type(job.params)(**{name: value for name, value in given.items() if value is not None})
    return found


def _output(job: Job, path: str) -> object:
    return job.output.model_copy(update={"path": path})


def _check_gold(job: Job, expected: str) -> None:
    prepared = prepare(job)
    first, _, rest = expected.partition(".")
    columns = prepared.source.columns
    if first not in columns:
        raise UsageError(
            f"--expected: the input has no column {expected!r}", remedy=f"Its columns are {', '.join(columns)}."
        )
    steps = tuple(rest.split(".")) if rest else ()
    for batch in prepared.batches():
        if any(label_text(value_at((values or {}).get(first), steps)) for values in batch.values):
            return
    raise UsageError(
        f"--expected: the column {expected!r} is empty in every row",
        remedy="Calibrate on rows that hold the right label.",
    )


def calibrated(
    small: Job, large: Job, *, expected: str, field: str | None, target: float, risk: float
) -> CalibrationView:
    """Find the threshold by the answers of the two outputs. Raises UsageError if there is nothing to find it by."""
    first = LabelledOutput(address_of(small.output.path), field=field, column=expected)
    second = LabelledOutput(address_of(large.output.path), field=field, column=expected)
    name = _name(first, expected)
    others = {row.identity: row for row in second.rows}
    rows = [row for row in first.rows if row.column and row.identity in others]
    if not rows:
        raise UsageError("no row has a right label and was asked of both models", remedy="Run it on more rows.")
    sure = [row.confidence.get(name) for row in rows]
    if all(value is None for value in sure):
        raise UsageError(
            "no answer of the first model has a confidence: show its `confidence_detail.reason`",
            remedy=f"batchchat show {small.output.path} --count confidence_detail.reason",
        )
    # An answer that is not there is not right.
    right = [
        [one.values.get(name) == one.column for one in side] for side in (rows, [others[r.identity] for r in rows])
    ]
    found = promise(sure, *right, target=target, risk=risk)
    costs = [_costs(address_of(job.output.path)) for job in (small, large)]
    provider = small.resolved_provider()
    return CalibrationView(
        field=name,
        expected=expected,
        rows=len(rows),
        without_gold=sum(1 for row in first.rows if not row.column),
        small=_on_gold(small, right[0], _per_1000(rows, costs[0])),
        large=_on_gold(large, right[1], _per_1000(rows, costs[1])),
        promise=found,
        cost_per_1000=_cascade_cost(rows, sure, costs, found),
        currency=provider.currency,
    )


def _name(labels: LabelledOutput, expected: str) -> str:
    names = [".".join(path) or "completion" for path in labels.paths]
    if len(names) == 1:
        return names[0]
    same = [name for name in names if name.rpartition(".")[2] == expected.rpartition(".")[2]]
    if len(same) != 1:
        raise UsageError(
            f"the answers have several labels ({', '.join(names)}), and none is called {expected!r}",
            remedy=f"Say which one {expected} is about: --field NAME.",
        )
    return same[0]


def _on_gold(job: Job, right: Sequence[bool], cost: float | None) -> ModelOnGold:
    share = sum(right) / len(right)
    return ModelOnGold(job.model, job.output.path, share_estimate(share, len(right)), cost)


def _costs(directory: Path | str) -> dict[str | int, float] | None:
    """Return what each row cost, None if no price is known."""
    found: dict[str | int, float] = {}
    for batch in iter_output(directory, columns=["key", "row_index", "cost"]):
        for row in batch.to_pylist():
            if row["cost"] is None:
                return None
            identity = row["row_index"] if row["key"] is None else row["key"]
            found[identity] = found.get(identity, 0.0) + row["cost"]
    return found


def _per_1000(rows: Sequence[LabelledRow], costs: dict[str | int, float] | None) -> float | None:
    if costs is None:
        return None
    return 1000 * sum(costs.get(row.identity, 0.0) for row in rows) / len(rows)


def _cascade_cost(
    rows: Sequence[LabelledRow],
    sure: Sequence[float | None],
    costs: Sequence[dict[str | int, float] | None],
    found: CascadePromise,
) -> float | None:
    first, second = costs
    if first is None or second is None or found.chosen is None:
        return None
    again = [row for row, value in zip(rows, sure, strict=True) if value is None or value < found.chosen.threshold]
    return (
        1000
        * (sum(first.get(row.identity, 0.0) for row in rows) + sum(second.get(row.identity, 0.0) for row in again))
        / len(rows)
    )
