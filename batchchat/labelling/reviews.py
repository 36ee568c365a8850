"""Reviews as they are kept: what people answered to rows, beside what the model answered.

They lie in the output's state, in `reviews/*.jsonl`, one object a line. Files only grow, and a review is never changed:
who reviews a row again adds a review.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from batchchat.store import read_review_lines


@dataclass(frozen=True, slots=True)
class Review:
    """What one person answered to one row.

    `values` are the fields of the answer as the person has them, by name. `reviewed_at` is UTC, ISO 8601.
    `probability` is the chance with which the row was chosen for review, None if that is not known. `source` names the
    file that the review was read from.
    """

    custom_id: str
    row_index: int
    values: Mapping[str, Any]
    reviewer: str
    reviewed_at: str
    key: str | None = None
    probability: float | None = None
    note: str | None = None
    source: str | None = None
    # What a later version, or the review's own identity, adds: it is kept as it was read.
    further: Mapping[str, Any] = field(default_factory=dict)


_NAMES = frozenset(Review.__slots__) - {"further"}


def read_reviews(directory: Path | str) -> list[Review]:
    """Return all reviews of an output, in the order in which they were taken; none if nobody reviewed it.

    A line that is damaged or incomplete is left out. Raises StorageError if a file cannot be read.
    """
    found = [review for line in read_review_lines(directory) if (review := review_of(line)) is not None]
    return sorted(found, key=lambda review: review.reviewed_at)


def review_of(line: Mapping[str, Any]) -> Review | None:
    """Return the review that a line holds; None if it is none."""
    texts = ("custom_id", "reviewer", "reviewed_at")
    if not all(isinstance(line.get(name), str) for name in texts) or not isinstance(line.get("values"), Mapping):
        return None
    chance = line.get("probability")
    # A chance outside of (0, 1] cannot weigh anything: it is as good as unknown.
    if isinstance(chance, bool) or not isinstance(chance, int | float) or not 0 < chance <= 1:
        chance = None
    row_index = line.get("row_index")
    return Review(
        custom_id=line["custom_id"],
        row_index=row_index if isinstance(row_index, int) else -1,
        values=dict(line["values"]),
        reviewer=line["reviewer"],
        reviewed_at=line["reviewed_at"],
        key=_text(line.get("key")),
        probability=None if chance is None else float(chance),
        note=_text(line.get("note")),
        source=_text(line.get("source")),
        further={name: value for name, value in line.items() if name not in _NAMES},
    )


def line_of(review: Review) -> dict[str, Any]:
    """Return a review as the object of its line."""
    return {
        "custom_id": review.custom_id,
        "row_index": review.row_index,
        "key": review.key,
        "values": dict(review.values),
        "reviewer": review.reviewer,
        "reviewed_at": review.reviewed_at,
        "probability": review.probability,
        "note": review.note,
        "source": review.source,
        **review.further,
    }


def latest_of_reviewers(reviews: Sequence[Review]) -> dict[str, dict[str, Review]]:
    """Return the last review of each person for each row: by `custom_id`, then by reviewer."""
    found: dict[str, dict[str, Review]] = {}
    for review in reviews:
        found.setdefault(review.custom_id, {})[review.reviewer] = review
    return found


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
