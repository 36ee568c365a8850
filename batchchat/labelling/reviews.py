"""Reviews: what people answered to rows, kept beside the model's answers and never over them.

A review belongs to the content of a row (its input columns and its key), not to a request. So an edited prompt keeps
the reviews of all rows that did not change, and a row that changed loses its own.

`_batchchat/reviews/*.jsonl` holds one review a line. A file is written once, whole, and is never changed.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime
from datetime import time as time_of_day
from hashlib import blake2b
from pathlib import Path
from typing import Any

import orjson

from batchchat.errors import StorageError
from batchchat.store.output import existing_output

FOLDER = "reviews"


@dataclass(frozen=True, slots=True)
class Review:
    """What one person answered to one row.

    `values` holds a value for each field that was reviewed; `completion` names the text of a job without a schema.
    `content` is the digest of the row (`row_content`), `custom_id` the request that the person saw the answer of.
    `reviewed_at` is UTC, ISO 8601. `probability` is that of being chosen for review, between 0 and 1, or None if
    nobody knows it. `round` counts the choices of rows, from 1: see `read_reviews`. `source` names the file.
    """

    custom_id: str
    row_index: int
    key: str | None
    content: str
    values: Mapping[str, Any]
    reviewer: str
    reviewed_at: str
    probability: float | None = None
    note: str | None = None
    source: str = ""
    round: int = 1

    @property
    def identity(self) -> tuple[str, str, str, str]:
        """What makes two reviews the same one: row, person, time and values."""
        return self.content, self.reviewer, self.reviewed_at, orjson.dumps(self.values, option=_SORTED).decode()


_SORTED = orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS


def row_content(columns: Mapping[str, Any], key: str | None) -> str:
    """Return the digest of a row: 32 hexadecimal digits of its input columns, by name, and its key."""
    text = orjson.dumps([key, columns], default=plain, option=_SORTED)
    return blake2b(text, digest_size=16).hexdigest()


def plain(value: object) -> Any:
    """Return a value that JSON lacks as one that it has: bytes as base64, times as ISO 8601, others as their text."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, datetime | date | time_of_day):
        return value.isoformat()
    return str(value)


def read_reviews(output: Path | str) -> list[Review]:
    """Return all reviews of an output, the oldest first; of one row and one person the newest alone.

    Rows that had a review were not chosen again, so those of earlier rounds stand for themselves alone: their
    `probability` is 1 here, and that of the last round stands for all rows that were left. So the sum of
    `value / probability` over the reviewed rows stays an unbiased estimate of the sum over all rows.

    Raises UsageError if the folder is no output, StorageError if a file cannot be read.
    """
    found = stored_reviews(output)
    last = max((review.round for review in found), default=1)
    newest: dict[tuple[str, str], Review] = {}
    for review in sorted(found, key=lambda review: review.reviewed_at):
        newest.pop((review.content, review.reviewer), None)
        newest[review.content, review.reviewer] = review
    # A probability that nobody knows stays unknown.
    return [
        replace(review, probability=1.0) if review.round < last and review.probability is not None else review
        for review in newest.values()
    ]


def stored_reviews(output: Path | str) -> list[Review]:
    """Return the reviews as they were taken. Raises UsageError, StorageError as `read_reviews` does."""
    state = existing_output(output).state
    found = []
    for name in sorted(name for name, _ in state.written(FOLDER) if name.endswith(".jsonl")):
        for number, line in enumerate((state.read(f"{FOLDER}/{name}") or b"").splitlines(), 1):
            try:
                found.append(Review(**orjson.loads(line)))
            except (ValueError, TypeError) as error:
                raise StorageError(
                    f"{state.address(f'{FOLDER}/{name}')}:{number}: is no review: {error}",
                    remedy="Remove the file, and take the people's answers again: batchchat review DIR --take FILE.",
                ) from error
    return found


def write_reviews(output: Path | str, reviews: Sequence[Review]) -> int:
    """Keep reviews, all or none of them, durably; return how many are new.

    A review adds nothing if it is kept already, or if its person said the same last time: a table tells no time but
    that of its file, which a copy has not.
    """
    state = existing_output(output).state
    kept = stored_reviews(output)
    known = {review.identity for review in kept}
    last = {
        (review.content, review.reviewer): (dict(review.values), review.note)
        for review in sorted(kept, key=lambda review: review.reviewed_at)
    }
    new = []
    for review in reviews:
        who = review.content, review.reviewer
        if review.identity not in known and last.get(who) != (dict(review.values), review.note):
            known.add(review.identity)
            last[who] = dict(review.values), review.note
            new.append(review)
    if new:
        data = b"".join(orjson.dumps(asdict(review), option=orjson.OPT_APPEND_NEWLINE) for review in new)
        # The time keeps names in order; the digest keeps two people apart who take files in the same second.
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{blake2b(data, digest_size=6).hexdigest()}.jsonl"
        state.publish(f"{FOLDER}/{name}", data)
    return len(new)


@dataclass(frozen=True, slots=True)
class ReviewedRow:
    """What people say of one row, taken together.

    `values` has for each field what most of them say; if as many say another thing, what was said last. `reviewers`
    are in the order of their reviews, `reviewed_at` is the time of the last one. `conflicts` names the fields about
    which they do not agree.
    """

    values: Mapping[str, Any]
    reviewers: tuple[str, ...]
    reviewed_at: str
    conflicts: tuple[str, ...]


def reviewed_rows(reviews: Iterable[Review]) -> dict[str, ReviewedRow]:
    """Return what people say of each row, by the row's content."""
    by_row: dict[str, list[Review]] = {}
    for review in reviews:
        by_row.setdefault(review.content, []).append(review)
    return {content: _together(of_row) for content, of_row in by_row.items()}


def _together(reviews: Sequence[Review]) -> ReviewedRow:
    ordered = sorted(reviews, key=lambda review: review.reviewed_at)
    values, conflicts = {}, []
    for field in dict.fromkeys(name for review in ordered for name in review.values):
        said: dict[bytes, list[int]] = {}
        for place, review in enumerate(ordered):
            if field in review.values:
                said.setdefault(orjson.dumps(review.values[field], option=_SORTED), []).append(place)
        # The most frequent value; of several the one that was said last.
        winner = max(said.values(), key=lambda places: (len(places), places[-1]))
        values[field] = ordered[winner[-1]].values[field]
        if len(said) > 1:
            conflicts.append(field)
    return ReviewedRow(values, tuple(review.reviewer for review in ordered), ordered[-1].reviewed_at, tuple(conflicts))
