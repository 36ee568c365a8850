"""Reviews as they are kept: what people answered to rows, beside what the model answered.

They lie in the output's state, in `reviews/*.jsonl`, one object a line. Files only grow, and a review is never changed:
who reviews a row again adds a review.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field, replace
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from batchchat.dataclass import dataclass
from batchchat.labelling.content import content_of, input_columns
from batchchat.sources import python_rows
from batchchat.store import is_output, read_review_lines, read_state, write_review_lines


@dataclass(frozen=True, slots=True)
class Review:
    """What one person answered to one row.

    `values` are the fields of the answer as the person has them, by name. `reviewed_at` is UTC, ISO 8601.
    `probability` is the chance with which the row was chosen for review, None if that is not known. `source` names the
    file that the review was read from. `content` is the digest of the row (`labelling.content`), empty if that is not
    known. `round` counts the choices of rows, from 1.
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
    content: str = ""
    round: int = 1
    # What a later version, or the review's own identity, adds: it is kept as it was read.
    further: Mapping[str, Any] = field(default_factory=dict)


_NAMES = frozenset(Review.__slots__) - {"further"}


def read_reviews(directory: Path | str) -> list[Review]:
    """Return all reviews of an output, in the order of their time; none if nobody reviewed it.

    `custom_id` and `row_index` are those of the record that the row has now, if the row is there: an edited prompt
    keeps the reviews of rows that did not change.

    Rows with a review were not chosen again, so those of earlier rounds stand for themselves alone: their `probability`
    is 1 here. That of the last round stands for all rows that were left. So the sum of value / probability over the
    reviewed rows stays an unbiased estimate of the sum over all rows.

    A line that is damaged or incomplete is left out. Raises StorageError if a file cannot be read.
    """
    found = stored_reviews(directory)
    last = max((review.round for review in found), default=1)
    weighed = [
        replace(review, probability=1.0) if review.round < last and review.probability is not None else review
        for review in found
    ]
    return _of_live_records(directory, weighed)


def stored_reviews(directory: Path | str) -> list[Review]:
    """Return all reviews as they were taken, in the order of their time. Raises StorageError as `read_reviews`."""
    found = [review for line in read_review_lines(directory) if (review := review_of(line)) is not None]
    return sorted(found, key=lambda review: review.reviewed_at)


def _of_live_records(directory: Path | str, reviews: list[Review]) -> list[Review]:
    """Give each review the `custom_id` and `row_index` of the record that its row has now."""
    if not any(review.content for review in reviews) or not is_output(directory):
        return reviews
    output = read_state(directory)
    ids = pa.array(sorted({review.custom_id for review in reviews}), pa.string())
    live: set[str] = set()
    for batch in output.records(["custom_id"]):
        found = batch.column("custom_id")
        live.update(found.filter(pc.is_in(found, value_set=ids)).to_pylist())
    moved = {review.content for review in reviews if review.custom_id not in live} - {""}
    if not moved:
        return reviews
    # The prompt was edited since: the rows are looked for by their content, which takes reading all of them.
    now: dict[str, tuple[str, int]] = {}
    for batch in output.records([*input_columns(output), "key", "custom_id", "row_index", "sample_index"]):
        for record in python_rows(batch.filter(pc.equal(batch.column("sample_index"), 0))):
            content = content_of(output, record)
            if content in moved:
                now[content] = record["custom_id"], record["row_index"]
    return [
        replace(review, custom_id=now[review.content][0], row_index=now[review.content][1])
        if review.custom_id not in live and review.content in now
        else review
        for review in reviews
    ]


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
        content=_text(line.get("content")) or "",
        round=turn if isinstance(turn := line.get("round", 1), int) else 1,
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
        "content": review.content,
        "round": review.round,
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


def write_reviews(directory: Path | str, reviews: Sequence[Review]) -> int:
    """Keep reviews, all or none of them, durably; return how many are new.

    A review adds nothing if it is kept already, or if its person said the same last time: a table tells no time but
    that of its file, which a copy has not.
    """
    kept = stored_reviews(directory)
    known = {_identity(review) for review in kept}
    last = {(review.content, review.reviewer): _said(review) for review in kept}
    new = []
    for review in reviews:
        who = review.content, review.reviewer
        if _identity(review) not in known and last.get(who) != _said(review):
            known.add(_identity(review))
            last[who] = _said(review)
            new.append(review)
    if new:
        digest = blake2b(orjson.dumps([line_of(review) for review in new]), digest_size=6).hexdigest()
        # The time keeps names in order; the digest keeps two people apart who take files in the same second.
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{digest}.jsonl"
        write_review_lines(directory, name, [line_of(review) for review in new])
    return len(new)


def _said(review: Review) -> tuple[bytes, str | None]:
    return _as_bytes(review.values), review.note


def _identity(review: Review) -> tuple[str, str, str, bytes]:
    """Return what makes two reviews the same one: row, person, time and values."""
    return review.content, review.reviewer, review.reviewed_at, _as_bytes(review.values)


def _as_bytes(value: object) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)


@dataclass(frozen=True, slots=True)
class ReviewedRow:
    """What people say of one row, taken together; of each person the last review counts.

    `values` has for each field what most of them say; if as many say another thing, what was said last. `reviewers`
    are in the order of their reviews, `reviewed_at` is the time of the last one. `conflicts` names the fields about
    which they do not agree.
    """

    values: Mapping[str, Any]
    reviewers: tuple[str, ...]
    reviewed_at: str
    conflicts: tuple[str, ...]


def reviews_by_row(reviews: Iterable[Review]) -> dict[str, list[Review]]:
    """Return the last review of each person, by the content of rows, in the order of their time."""
    found: dict[str, dict[str, Review]] = {}
    for review in sorted(reviews, key=lambda review: review.reviewed_at):
        of_row = found.setdefault(review.content, {})
        of_row.pop(review.reviewer, None)
        of_row[review.reviewer] = review
    return {content: list(of_row.values()) for content, of_row in found.items()}


def reviewed_row(reviews: Sequence[Review]) -> ReviewedRow:
    """Put together what people say of one row. `reviews` are in the order of their time, one of each person."""
    values, conflicts = {}, []
    for name in dict.fromkeys(name for review in reviews for name in review.values):
        said: dict[bytes, list[int]] = {}
        for place, review in enumerate(reviews):
            if name in review.values:
                said.setdefault(_as_bytes(review.values[name]), []).append(place)
        # The most frequent value; of several the one that was said last.
        winner = max(said.values(), key=lambda places: (len(places), places[-1]))
        values[name] = reviews[winner[-1]].values[name]
        if len(said) > 1:
            conflicts.append(name)
    people = tuple(review.reviewer for review in reviews)
    return ReviewedRow(values, people, reviews[-1].reviewed_at, tuple(conflicts))
