"""Calibrating a cascade: two models on the same gold rows, and the threshold between them.

Each model has an output of its own beside the job's, so that a stopped calibration goes on and answers are paid once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from batchchat.addresses import address_of
from batchchat.dataclass import dataclass
from batchchat.errors import UsageError
from batchchat.intake import read_key
from batchchat.job import Job
from batchchat.labelling.agreement import reviewed_text
from batchchat.labelling.coefficients import Estimate, share_estimate
from batchchat.labelling.guarantee import ALWAYS, CascadePromise, promise
from batchchat.labelling.labelled import LabelledOutput, LabelledRow, label_text
from batchchat.labelling.reviews import latest_of_reviewers, read_reviews
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
    the cascade at the chosen threshold. `left_out` reviewed rows do not count: see `gold_of_reviews`.
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
    left_out: int = 0

    @property
    def escalates(self) -> bool:
        """Whether the chosen threshold divides the rows: some answers are taken, some asked again."""
        chosen = self.promise.chosen
        return chosen is not None and chosen.threshold < ALWAYS and 0 < chosen.escalated < 1


@dataclass(frozen=True, slots=True)
class ReviewedGold:
    """Right labels out of people's reviews of an output.

    `labels` has them by what names a row, `rows` are the indexes of these rows in the job's input. `left_out` reviewed
    rows do not count.
    """

    output: str
    field: str
    labels: Mapping[str | int, str]
    rows: frozenset[int]
    left_out: int


def gold_of_reviews(job: Job, directory: Path | str, *, field: str | None) -> ReviewedGold:
    """Take what most people say of a row of an output as its right label.

    The promise of a threshold needs rows that are a random choice with the same chance for each. Rows are chosen for
    review with different chances, the unsure ones more often. So a row that was chosen with the chance p is kept with
    the chance m / p, if m is the least of them: then each row of the output had the chance m. Which ones are kept is
    told by their `custom_id`, so that it is the same each time. Rows on which people are divided, or whose chance is
    not known, are left out and counted.

    Raises UsageError if nothing is left.
    """
    labels = LabelledOutput(directory, field=field)
    names = [".".join(path) or "completion" for path in labels.paths]
    if len(names) > 1:
        raise UsageError(
            f"the answers of {directory} have several labels ({', '.join(names)})",
            remedy="Say which one the reviews are about: --field NAME.",
        )
    by_row = latest_of_reviewers(read_reviews(directory))
    found: dict[str | int, tuple[str, float, str]] = {}
    reviewed = 0
    for row in labels.rows:
        reviews = [review for custom_id in row.custom_ids for review in by_row.get(custom_id, {}).values()]
        texts = Counter(text for review in reviews if (text := reviewed_text(review, names[0])) is not None)
        reviewed += bool(texts)
        chances = [review.probability for review in reviews if review.probability is not None]
        votes = texts.most_common(2)
        # A tie has no right label, and without its chance a row cannot be thinned out.
        if votes and chances and (len(votes) == 1 or votes[0][1] > votes[1][1]):
            found[row.identity] = votes[0][0], max(chances), row.custom_ids[0]
    least = min((chance for _, chance, _ in found.values()), default=1.0)
    # Rows that were chosen more often are thinned out, until each had the chance of the rarest.
    kept = {name: text for name, (text, chance, place) in found.items() if _draw(place) < least / chance}
    rows = _rows_named(job, kept)
    gold = {name: text for name, text in kept.items() if name in rows}
    if not gold:
        raise UsageError(
            f"{directory} has no reviewed row of the job's input whose chance of being chosen is known",
            remedy="Choose rows with `batchchat review DIR -o FILE --random 300`, and take people's answers back.",
        )
    chosen = frozenset(rows[name] for name in gold)
    return ReviewedGold(str(directory), names[0], gold, chosen, reviewed - len(gold))


def _draw(custom_id: str) -> float:
    """Return a number from 0 to 1 that looks drawn at random, and is the same for the same row."""
    return int.from_bytes(blake2b(custom_id.encode(), digest_size=7).digest(), "big") / 2**56


def _rows_named(job: Job, names: Collection[str | int]) -> dict[str | int, int]:
    """Return where rows stand in the input as it is now, by their keys; those that are gone are left out."""
    prepared = prepare(job)
    key, found = job.input.key, dict[str | int, int]()
    for batch in prepared.batches():
        for offset, values in enumerate(batch.values):
            index = batch.first_index + offset
            name = index if key is None or values is None else read_key(values, key)[0]
            if name is not None and name in names:
                # A key that is there twice is an error of its second row: the first one is asked.
                found.setdefault(name, index)
    return found


def sub_jobs(job: Job, *, small: str | None, large: str | None, expected: str | None) -> tuple[Job, Job]:
    """Return the jobs of the two models. Raises UsageError, before anything is sent, if they cannot be compared.

    `expected` is the column with the right labels, None if they are people's reviews.
    """
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
    if expected is not None:
        _check_gold(job, expected)
    # The second model's answer is taken as it is: it needs no confidence, and one sample.
    plain = job.response.model_copy(update={"confidence": None})
    # Text, since it may be a URL.
    folder = f"{job.output.path.rstrip('/')}.calibrate"
    first = job.model_copy(update={"model": small, "cascade": [], "output": _output(job, f"{folder}/small")})
    # Samples were only there to measure how sure the first model is.
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
    small: Job, large: Job, *, gold: str | ReviewedGold, field: str | None, target: float, risk: float
) -> CalibrationView:
    """Find the threshold by the answers of the two outputs. Raises UsageError if there is nothing to find it by.

    `gold` is the column with the right labels, or what people say.
    """
    column = gold if isinstance(gold, str) else None
    first = LabelledOutput(address_of(small.output.path), field=field, column=column)
    second = LabelledOutput(address_of(large.output.path), field=field, column=column)
    if isinstance(gold, str):
        name, expected, left_out = _name(first, gold), gold, 0
    else:
        name, expected, left_out = gold.field, f"people's reviews of {gold.output}", gold.left_out
        for row in [*first.rows, *second.rows]:
            row.column = gold.labels.get(row.identity)
    others = {row.identity: row for row in second.rows}
    # The two are compared on the same rows: other ones may be harder.
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
        left_out=left_out,
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
            # A sum without this row would be told as the cost of all.
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
