"""How far labels agree: the model's with a column, with people, with another output; people's, or samples', together.

    output ─> rows: values of each label, confidence ─┐
    a column, another output, people's reviews ───────┴> pairs ─> `coefficients` ─> AgreementView

A row is a unit, whatever the number of its samples: of several samples their vote is taken, and their share is its
confidence. Rows without an answer, or without the other value, are left out and counted. Blocking code.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import pyarrow as pa

from batchchat.addresses import address_of
from batchchat.dataclass import dataclass
from batchchat.errors import UsageError
from batchchat.format import plural
from batchchat.labelling.coefficients import (
    ConfidenceCheck,
    Estimate,
    Level,
    PairAgreement,
    Scale,
    alpha,
    check_confidence,
    pair_agreement,
)
from batchchat.labelling.judges import PositionBias, position_bias
from batchchat.labelling.labelled import LabelledOutput, LabelledRow, label_text
from batchchat.labelling.reviews import Review, latest_of_reviewers, read_reviews
from batchchat.labelling.votes import FieldPath, value_at
from batchchat.records import PARSED
from batchchat.sources import python_rows

_PAIR = ("answer_a", "answer_b")
"""The columns of a judge's cases that hold the two answers, in the order in which it sees them."""
_MOST_GROUPS = 100
"""How many values `--by` takes: each of them costs the draws of its intervals, and is a line of a table."""
_MOST_REVIEWERS = 12
"""How many people are set against each other one by one: 66 pairs fill a screen."""


@dataclass(frozen=True, slots=True)
class GroupAgreement:
    """The rows with one value of the column that `--by` names; None is the group of rows without a value."""

    value: str | None
    measures: PairAgreement


@dataclass(frozen=True, slots=True)
class FieldAgreement:
    """One field of the model's answers against what was expected of it.

    `expected` and `given` name the two sides. `left_out` rows have a value on one side only. `check` compares
    confidence with how often answers are right, None if there is no confidence. `groups` are parts of the rows, the
    largest first.
    """

    field: str
    expected: str
    given: str
    measures: PairAgreement
    left_out: int
    weighted: bool = False
    check: ConfidenceCheck | None = None
    groups: tuple[GroupAgreement, ...] = ()


@dataclass(frozen=True, slots=True)
class RaterAgreement:
    """How far several raters of one field agree among themselves: people, or the samples of one model."""

    field: str
    among: str
    raters: int
    rows: int
    alpha: Estimate
    pairs: tuple[FieldAgreement, ...] = ()


@dataclass(frozen=True, slots=True)
class AgreementView:
    """What `batchchat agreement` tells of an output. `places` is there if it is that of a judge of pairs."""

    output: str
    rows: int
    fields: tuple[FieldAgreement, ...]
    raters: tuple[RaterAgreement, ...]
    notes: tuple[str, ...] = ()
    places: PositionBias | None = None


@dataclass(frozen=True, slots=True)
class AgreementOptions:
    """What is compared: `against` a column or another output; `field` alone; rows `below` a confidence alone.

    `by` names an input column: the measures are also told for the rows of each of its values.
    """

    against: str | None = None
    field: str | None = None
    level: Level = "nominal"
    below: float | None = None
    by: str | None = None


def agreement_of(directory: Path | str, options: AgreementOptions) -> AgreementView:
    """Measure how far the labels of an output agree with what they are set against.

    Raises UsageError if there is nothing to compare with, or a field or column is not there.
    """
    against = options.against
    # A column and a folder can have the same name: an output that is there goes first.
    other = address_of(against) if against is not None and _is_output(address_of(against)) else None
    column = None if other is not None else against
    labels = LabelledOutput(directory, field=options.field, column=column, by=options.by)
    if column is not None:
        labels.paths = _field_for(labels, column, options)
    if options.below is not None:
        _keep_below(labels, options.below)
    reviews = read_reviews(directory) if against is None else []
    try:
        fields, raters, notes = _measured(labels, other, column, reviews, options)
    # The coefficients say it of texts with too many values, or of a level that the labels do not fit.
    except ValueError as error:
        raise UsageError(
            f"{error}", remedy="Name a field with few values (--field NAME), or another --level."
        ) from None
    if options.by is not None and not fields:
        raise UsageError(
            f"--by {options.by}: there is nothing that the answers of {directory} are set against",
            remedy="Give --against COLUMN or --against DIR, or let people review rows.",
        )
    places = _places(labels)
    if not fields and not raters and places is None:
        raise UsageError(
            f"{directory} has no reviews and one sample a row: there is nothing to compare its labels with",
            remedy="Give --against COLUMN of the input, --against DIR of another output, or let people review rows.",
        )
    return AgreementView(str(directory), len(labels.rows), tuple(fields), tuple(raters), tuple(notes), places)


def _places(labels: LabelledOutput) -> PositionBias | None:
    """Return how a pairwise judge of an evaluation looks at places; None if this is not the output of one."""
    columns = [
        name for name in ("input", "reference", *_PAIR) if name in (labels.output.input_schema or pa.schema([])).names
    ]
    if not set(_PAIR) <= set(columns) or ("verdict",) not in labels.paths:
        return None
    cases = [
        {**{name: record[name] for name in columns}, "verdict": value_at(record[PARSED], ("verdict",))}
        for batch in labels.output.records([*columns, "status", PARSED])
        for record in python_rows(batch)
        if record["status"] == "ok"
    ]
    return position_bias(cases, *_PAIR)


def _measured(
    labels: LabelledOutput,
    other: Path | str | None,
    column: str | None,
    reviews: list[Review],
    options: AgreementOptions,
) -> tuple[list[FieldAgreement], list[RaterAgreement], list[str]]:
    notes: list[str] = []
    raters: list[RaterAgreement] = []
    fields: list[FieldAgreement] = []
    for path in labels.paths:
        name = ".".join(path) or "completion"
        scale = labels.scale(name, options.level)
        if column is not None:
            expected: dict[str | int, str] = {
                row.identity: row.column for row in labels.rows if row.column is not None and row.column != ""
            }
            if not expected:
                raise UsageError(
                    f"the column {column!r} is empty in every row", remedy="Name a column that holds the right labels."
                )
            fields.append(_against(labels, name, expected, f"column {column}", scale))
        elif other is not None:
            # Its confidence is not checked: the other model is no truth.
            second = LabelledOutput(other, field=options.field)
            values = {row.identity: row.values[name] for row in second.rows if name in row.values}
            if not values:
                raise UsageError(
                    f"{other} has no answers with a field {name!r}", remedy="Name a field of both: --field NAME."
                )
            fields.append(_against(labels, name, values, str(other), scale, checked=False))
        elif reviews:
            found, told = _with_people(labels, name, reviews, scale)
            fields += found
            notes += told
            raters += _people(name, reviews, scale)
        raters += _samples(labels, path, scale)
    return fields, raters, list(dict.fromkeys(notes))


def _is_output(path: Path | str) -> bool:
    from batchchat.store import is_output

    return is_output(path)


def _field_for(labels: LabelledOutput, column: str, options: AgreementOptions) -> list[FieldPath]:
    """Return the field that a column of the input is about: the only one, or the one of its name."""
    if len(labels.paths) == 1:
        return labels.paths
    named = [path for path in labels.paths if path and path[-1] == column.rpartition(".")[2]]
    if len(named) == 1 and options.field is None:
        return named
    names = ", ".join(".".join(path) for path in labels.paths)
    raise UsageError(
        f"the answers have several labels ({names}), and none is called {column!r}",
        remedy=f"Say which one {column} is about: --field NAME.",
    )


def _keep_below(labels: LabelledOutput, below: float) -> None:
    if not any(row.confidence for row in labels.rows):
        raise UsageError(
            "--below: the answers have no confidence",
            remedy="Give the job `response: {confidence: logprobs}` (or samples, or {field: NAME}), and run it again.",
        )
    labels.rows = [row for row in labels.rows if row.confidence and min(row.confidence.values()) < below]


def _against(
    labels: LabelledOutput,
    name: str,
    expected: Mapping[str | int, str],
    told: str,
    scale: Scale,
    *,
    checked: bool = True,
) -> FieldAgreement:
    both = [row for row in labels.rows if row.identity in expected and name in row.values]
    left_out = len({row.identity for row in labels.rows} | set(expected)) - len(both)
    wanted, given = [expected[row.identity] for row in both], [row.values[name] for row in both]
    check = _check(both, name, wanted, None) if checked else None
    measures = pair_agreement(wanted, given, scale=scale)
    groups = _groups(labels.by, both, wanted, given, scale=scale)
    return FieldAgreement(name, told, str(labels.directory), measures, left_out, check=check, groups=groups)


def _groups(
    by: str | None,
    rows: Sequence[LabelledRow],
    wanted: Sequence[str],
    given: Sequence[str],
    *,
    scale: Scale,
    weights: Sequence[float] | None = None,
) -> tuple[GroupAgreement, ...]:
    """Measure the rows of each value of a column, the most rows first. Raises UsageError if these are too many."""
    if by is None:
        return ()
    places: dict[str | None, list[int]] = {}
    for at, row in enumerate(rows):
        places.setdefault(row.group, []).append(at)
    if len(places) > _MOST_GROUPS:
        raise UsageError(
            f"--by {by}: the column has {len(places):,} different values, which is no set of groups",
            remedy=f"Name a column with at most {_MOST_GROUPS} values.",
        )
    found = []
    for value, own in sorted(places.items(), key=lambda one: (-len(one[1]), one[0] or "")):
        weighed = None if weights is None else [weights[place] for place in own]
        measures = pair_agreement([wanted[at] for at in own], [given[at] for at in own], weighed, scale=scale)
        found.append(GroupAgreement(value, measures))
    return tuple(found)


def _check(
    rows: Sequence[LabelledRow], name: str, wanted: Sequence[str], weights: Sequence[float] | None
) -> ConfidenceCheck | None:
    kept = [at for at, row in enumerate(rows) if name in row.confidence]
    if not kept:
        return None
    return check_confidence(
        [rows[at].confidence[name] for at in kept],
        [rows[at].values[name] == wanted[at] for at in kept],
        None if weights is None else [weights[at] for at in kept],
    )


def _with_people(
    labels: LabelledOutput, name: str, reviews: list[Review], scale: Scale
) -> tuple[list[FieldAgreement], list[str]]:
    """Set the model against what most people say of a row; rows on which they are divided are left out."""
    by_row = latest_of_reviewers(reviews)
    rows, wanted, weights, divided, unknown = [], [], [], 0, 0
    for row in labels.rows:
        found = [review for custom_id in row.custom_ids for review in by_row.get(custom_id, {}).values()]
        texts = [text for review in found if (text := reviewed_text(review, name)) is not None]
        if not texts or name not in row.values:
            continue
        votes = Counter(texts).most_common()
        # A tie names no label that most people gave; to choose one of them would favour the model or go against it.
        if len(votes) > 1 and votes[0][1] == votes[1][1]:
            divided += 1
            continue
        # A row that was chosen with a small chance stands for many that nobody looked at, and weighs as many.
        chances = [review.probability for review in found if review.probability is not None]
        unknown += not chances
        rows.append(row)
        wanted.append(votes[0][0])
        weights.append(1 / max(chances) if chances else 1.0)
    if not rows:
        return [], []
    notes = []
    if divided:
        notes.append(f"{plural(divided, 'row')} left out of {name}: people are divided equally on them")
    if unknown:
        notes.append(f"{plural(unknown, 'reviewed row')} with no known chance of being chosen: each counts as one row")
    weighted = len(set(weights)) > 1
    given = [row.values[name] for row in rows]
    measures = pair_agreement(wanted, given, weights, scale=scale)
    groups = _groups(labels.by, rows, wanted, given, scale=scale, weights=weights)
    check = _check(rows, name, wanted, weights)
    left_out = len(labels.rows) - len(rows)
    told = FieldAgreement(name, "people", str(labels.directory), measures, left_out, weighted, check, groups)
    return [told], notes


def reviewed_text(review: Review, name: str) -> str | None:
    """Return what a person says of a field, as the text of a label."""
    value = review.values.get(name, value_at(review.values, tuple(name.split("."))))
    return label_text(value)


def _people(name: str, reviews: list[Review], scale: Scale) -> list[RaterAgreement]:
    by_row = latest_of_reviewers(reviews)
    people = sorted({review.reviewer for review in reviews})
    units = [
        [reviewed_text(found[person], name) if person in found else None for person in people]
        for found in by_row.values()
    ]
    shared = [unit for unit in units if sum(value is not None for value in unit) > 1]
    # Alpha is about units that two or more have judged; one person agrees with nobody.
    if len(people) < 2 or not shared:
        return []
    pairs = []
    # Pairs grow with the square of the people. Alpha above is of all of them.
    for a, b in combinations(range(min(len(people), _MOST_REVIEWERS)), 2):
        both = [unit for unit in shared if unit[a] is not None and unit[b] is not None]
        if both:
            measures = pair_agreement([unit[a] for unit in both], [unit[b] for unit in both], scale=scale)
            pairs.append(FieldAgreement(name, people[a], people[b], measures, len(units) - len(both)))
    return [RaterAgreement(name, "people", len(people), len(shared), alpha(shared, scale=scale), tuple(pairs))]


def _samples(labels: LabelledOutput, path: FieldPath, scale: Scale) -> list[RaterAgreement]:
    units = [[label_text(value_at(answer, path)) for answer in row.answers] for row in labels.rows]
    most = max((len(unit) for unit in units), default=0)
    shared = [unit for unit in units if len(unit) > 1]
    if most < 2:
        return []
    return [RaterAgreement(".".join(path) or "completion", "samples", most, len(shared), alpha(shared, scale=scale))]
