"""One pass over the input: each row becomes a request, a failed record, or nothing to do.

Whether a row is done is told by its `custom_id` alone: the rendered request decides. `Intake.sort` looks at a slice
of rows at a time, so that the caller can yield to the event loop between slices; it does no I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass, field
from typing import Any

from batchchat.identity import Identity, failed_row_id, row_bytes
from batchchat.records import ErrorKind, Failure, Request, RowBatch
from batchchat.store.index import ARCHIVED, NONE, OK, KeyIndex, RecordIndex, key_digest, kind_of
from batchchat.template import RowTemplateError, Template


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rows make the pass: all of them, the first `limit`, or a `sample` of row indexes."""

    limit: int | None = None
    sample: Container[int] | None = None

    @property
    def whole(self) -> bool:
        """Whether the pass takes every row of the input."""
        return self.limit is None and self.sample is None

    def takes(self, row_index: int) -> bool:
        """Whether a row belongs to the pass."""
        return (self.limit is None or row_index < self.limit) and (self.sample is None or row_index in self.sample)

    def past(self, row_index: int) -> bool:
        """Whether no row from this index on belongs to the pass."""
        return self.limit is not None and row_index >= self.limit


@dataclass(slots=True)
class PassCounts:
    """What the rows of a pass came to. Each row is counted once in `rows` and once in one of the others."""

    rows: int = 0
    done: int = 0
    failed_before: int = 0
    new: int = 0
    changed: int = 0
    reopened: int = 0
    archived: int = 0
    invalid: int = 0

    @property
    def to_send(self) -> int:
        """Rows that need a request."""
        return self.new + self.changed + self.reopened


@dataclass(frozen=True, slots=True)
class Invalid:
    """A row that yields no request: it could not be read or rendered, or its key is missing or repeated."""

    custom_id: str
    key: str | None
    batch: RowBatch
    offset: int
    failure: Failure


@dataclass(slots=True)
class Sorted:
    """What a slice of rows came to, without those that are done. `reopened` are the requests that failed before."""

    requests: list[Request] = field(default_factory=list)
    reopened: list[str] = field(default_factory=list)
    archived: list[Request] = field(default_factory=list)
    invalid: list[Invalid] = field(default_factory=list)


class Intake:
    """Sorts the rows of one pass.

    `index` and `keys` tell what the output holds; both learn which rows this pass has seen. `reopens` says which
    kinds of failed rows are tried again. `keys` is None where the job names no key.
    """

    def __init__(
        self,
        template: Template,
        identity: Identity,
        *,
        index: RecordIndex,
        keys: KeyIndex | None,
        key_column: str | None,
        reopens: frozenset[ErrorKind],
        selection: Selection = Selection(),
    ) -> None:
        self.counts = PassCounts()
        self._template = template
        self._identity = identity
        self._index = index
        self._keys = keys
        self._key_column = key_column
        self._reopens = reopens
        self._selection = selection

    def sort(self, batch: RowBatch, start: int, stop: int) -> Sorted:
        """Sort rows `start` to `stop` of a batch. A row index past the selection is left out, and not counted."""
        found = Sorted()
        takes = self._selection.takes if not self._selection.whole else None
        for offset in range(start, min(stop, len(batch.values))):
            if takes is None or takes(batch.first_index + offset):
                self.counts.rows += 1
                self._sort_row(batch, offset, found)
        return found

    def _sort_row(self, batch: RowBatch, offset: int, found: Sorted) -> None:
        values = batch.values[offset]
        if values is None:
            self._invalid(batch, offset, None, batch.failures[offset], raw=batch.raw.get(offset, b""), found=found)
            return
        key: str | None = None
        if self._key_column is not None:
            key, problem = read_key(values, self._key_column)
            if key is not None and self._keys is not None and self._keys.mark_seen(key_digest(key)):
                problem = f"{self._key_column} {key!r} stands in an earlier row too"
            if problem is not None:
                self._invalid(
                    batch, offset, None, Failure(ErrorKind.INPUT, problem), raw=row_bytes(values), found=found
                )
                return
        try:
            rendered = self._template.render(values)
        except RowTemplateError as error:
            failure = Failure(ErrorKind.TEMPLATE, str(error))
            self._invalid(batch, offset, key, failure, raw=row_bytes(values), found=found)
            return
        custom_id = self._identify(rendered.digest, key)
        state = self._index.mark_seen(custom_id)
        if state == OK:
            self.counts.done += 1
            return
        request = Request(custom_id, rendered.body, rendered.prompt_tokens, rendered.max_tokens, batch, offset, key)
        if state == ARCHIVED:
            self.counts.archived += 1
            found.archived.append(request)
            return
        if state != NONE:
            if kind_of(state) not in self._reopens:
                self.counts.failed_before += 1
                return
            self.counts.reopened += 1
            found.reopened.append(custom_id)
        elif key is not None and self._keys is not None and self._keys.is_live(key_digest(key)):
            self.counts.changed += 1
        else:
            self.counts.new += 1
        found.requests.append(request)

    def _identify(self, digest: bytes, key: str | None) -> str:
        """The request's `custom_id`; of equal requests without a key, the first that this pass has not met."""
        if key is not None:
            return self._identity.custom_id(digest, key=key)
        return _first_unseen(self._index, lambda occurrence: self._identity.custom_id(digest, occurrence=occurrence))

    def _invalid(
        self, batch: RowBatch, offset: int, key: str | None, failure: Failure, *, raw: bytes, found: Sorted
    ) -> None:
        custom_id = _first_unseen(
            self._index, lambda occurrence: failed_row_id(batch.source, raw, occurrence=occurrence)
        )
        if self._index.mark_seen(custom_id) != NONE:
            self.counts.failed_before += 1
            return
        self.counts.invalid += 1
        found.invalid.append(Invalid(custom_id, key, batch, offset, failure))


def _first_unseen(index: RecordIndex, identify: Callable[[int], str]) -> str:
    """The identity of the first occurrence that has not been seen.

    Occurrences are seen in order, so the seen ones are 0 … m-1: gallop past m, then halve the gap. That takes 2·log2(m)
    look-ups and no memory for counters.
    """
    first = identify(0)
    if not index.is_seen(first):
        return first
    low, high = 0, 1
    while index.is_seen(identify(high)):
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        if index.is_seen(identify(middle)):
            low = middle
        else:
            high = middle
    return identify(high)


def read_key(values: dict[str, Any], column: str) -> tuple[str | None, str | None]:
    """A row's key as text, or what is wrong with it."""
    value = values.get(column)
    if value is None:
        return None, f"the key {column} is {'null' if column in values else 'missing'}"
    if isinstance(value, list | dict | bytes):
        return None, f"the key {column} is no plain value"
    text = str(value)
    if not text:
        return None, f"the key {column} is empty"
    return text, None
