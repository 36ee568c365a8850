"""One pass over the input: each sample of a row becomes a request, a failed record, or nothing to do.

Whether a sample is done is told by its `custom_id` alone: the rendered request decides. `Intake` looks at a slice
of rows at a time, so that the caller can yield to the event loop between slices; it does no I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from dataclasses import field
from functools import partial
from typing import Any, NamedTuple

from batchchat.dataclass import dataclass
from batchchat.identity import Identity, failed_row_id, row_bytes
from batchchat.records import ErrorKind, Failure, Request, RowBatch
from batchchat.store.index import (
    ARCHIVED,
    ID_BYTES,
    NONE,
    OK,
    SKIPPED,
    SKIPPED_ID,
    KeyIndex,
    RecordIndex,
    key_digest,
    kind_of,
)
from batchchat.store.known import KnownBatch, KnownRows
from batchchat.store.trail import NO_KEY
from batchchat.template import Rendered, RowTemplateError, Template

_SKIPPED_ID = SKIPPED_ID.hex()
SLICE_BYTES = 4 * 2**20
"""Requests of about this size are handed on before more rows are rendered. Chosen: four of 1 MB, with an image each."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rows make the pass: all of them, the first `limit`, or a `sample` of row indexes.

    If it is `numbered`, equal requests have the numbers that a pass over the whole input gives them. So one sample may
    grow into another, and each answer stays with its row. Rows outside of the sample must then be rendered too.
    """

    limit: int | None = None
    sample: Container[int] | None = None
    numbered: bool = False

    @property
    def whole(self) -> bool:
        """Whether the pass takes every row of the input."""
        return self.limit is None and self.sample is None

    def takes(self, row_index: int) -> bool:
        """Return whether a row belongs to the pass."""
        return (self.limit is None or row_index < self.limit) and (self.sample is None or row_index in self.sample)

    def past(self, row_index: int) -> bool:
        """Return whether no row from this index on belongs to the pass."""
        return self.limit is not None and row_index >= self.limit


_WHOLE = Selection()


@dataclass(slots=True)
class PassCounts:
    """What the rows of a pass came to.

    Each row is counted once in `rows`, and each of its samples once in `samples` and once in one of the others. Where a
    job asks each row once, these are counts of rows. Rows of shards that another run takes are counted in `elsewhere`
    alone.
    """

    rows: int = 0
    samples: int = 0
    done: int = 0
    failed_before: int = 0
    new: int = 0
    changed: int = 0
    reopened: int = 0
    archived: int = 0
    invalid: int = 0
    skipped: int = 0
    elsewhere: int = 0

    @property
    def to_send(self) -> int:
        """Samples that need a request."""
        return self.new + self.changed + self.reopened


@dataclass(frozen=True, slots=True)
class Invalid:
    """A row's sample that yields no request: the row could not be read or rendered, or its key is missing or repeated.

    Such a row has a record for each of its samples: so that every row has equally many, whatever became of it.
    """

    custom_id: str
    key: str | None
    batch: RowBatch
    offset: int
    failure: Failure
    sample_index: int = 0


@dataclass(slots=True)
class Sorted:
    """What a slice of rows came to, without what is done.

    `reopened` are the requests that failed before, `nbytes` is the size of what was rendered. `custom_ids` has every
    sample of every row, in order, also those that are done; `keys` the digest of each row's key if the job has one,
    or NO_KEY.
    """

    requests: list[Request] = field(default_factory=list)
    reopened: list[str] = field(default_factory=list)
    archived: list[Request] = field(default_factory=list)
    invalid: list[Invalid] = field(default_factory=list)
    nbytes: int = 0
    custom_ids: list[str] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)


class _Row(NamedTuple):
    """Which row is being sorted. `known` are the identities of its samples, where an earlier pass over it told them."""

    batch: RowBatch
    offset: int
    values: dict[str, Any]
    key: str | None
    known: bytes | None = None

    def known_id(self, sample_index: int) -> str | None:
        """Return the `custom_id` of a sample, where it is known."""
        place = sample_index * ID_BYTES
        return None if self.known is None else self.known[place : place + ID_BYTES].hex()


@dataclass(frozen=True, slots=True)
class RowRequests:
    """How the rows of a job become requests: by which template, with which identities, and how often each is asked.

    `key_column` is None if the job names no key.
    """

    template: Template
    identity: Identity
    key_column: str | None = None
    samples: int = 1


@dataclass(frozen=True, slots=True)
class DoneBefore:
    """What an output holds, and which of its failed rows are tried again. `keys` is None if the job names no key."""

    index: RecordIndex
    keys: KeyIndex | None = None
    reopens: frozenset[ErrorKind] = frozenset()


class Intake:
    """Sorts the rows of one pass.

    The indexes of `done` tell what the output holds; both learn which rows this pass has seen. With `answer_ids` each
    request says whose answer would be its own.
    """

    def __init__(
        self, asking: RowRequests, done: DoneBefore, *, selection: Selection = _WHOLE, answer_ids: bool = False
    ) -> None:
        samples, key_column = asking.samples, asking.key_column
        self.counts = PassCounts()
        self.samples = samples
        self._template = template = asking.template
        self._identity = asking.identity
        self._index = done.index
        self._keys = done.keys
        self._key_column = key_column
        self._reopens = done.reopens
        self._selection = selection
        self._every = range(samples)
        self._alike = [range(each, each + 1) for each in self._every] if template.sampled else [self._every]
        self._answer_ids = answer_ids
        # The numbers are kept apart: `index` counts what this pass has seen, and rows outside of it are not.
        self._numbers = RecordIndex() if selection.numbered and key_column is None else None

    def pass_over(self, known: KnownRows) -> None:
        """Count the rows that need no look, since an earlier pass knew them and their records are final."""
        rows, states = known.passed_over, known.counts
        self.counts.rows += rows
        self.counts.samples += rows * self.samples
        self.counts.done += states.get(OK, 0)
        self.counts.skipped += states.get(SKIPPED, 0)
        self.counts.failed_before += sum(states.values()) - states.get(OK, 0) - states.get(SKIPPED, 0)

    def slices(self, batch: RowBatch, size: int, known: KnownBatch | None = None) -> Iterator[Sorted]:
        """Sort a batch in slices of about `size` samples or SLICE_BYTES, one each time the next is asked for.

        A row past the selection is left out, and not counted; so is one of `known` rows that needs no look.
        """
        takes = self._selection.takes if not self._selection.whole else None
        found, rows = Sorted(), 0
        shards = batch.shards
        for offset in range(len(batch.values)):
            # Its records are final, and counted by `pass_over`.
            if known is not None and not known.look[offset]:
                continue
            if shards is not None and shards[offset] < 0:
                self.counts.elsewhere += 1
                continue
            if takes is None or takes(batch.first_index + offset):
                row = self._open(batch, offset, found, known)
                if row is not None:
                    for samples in self._alike:
                        self._sort_samples(row, samples, found)
                        # Many samples of a row with an image would else be many times its bytes at once.
                        if found.nbytes >= SLICE_BYTES:
                            yield found
                            found = Sorted()
                    if batch.images is not None:
                        batch.images[offset] = None  # the requests hold them now
            # Not asked, but counted among equal requests, so that those behind it keep their numbers.
            elif self._selection.numbered:
                self._pass_by(batch, offset)
            rows += 1
            if (rows + 1) * self.samples > size:
                yield found
                found, rows = Sorted(), 0
        if rows:
            yield found

    def _open(self, batch: RowBatch, offset: int, found: Sorted, known: KnownBatch | None) -> _Row | None:
        """Count a row and find its key; None if it cannot be asked at all."""
        self.counts.rows += 1
        self.counts.samples += self.samples
        values = batch.values[offset]
        identities = None if known is None else known.identities_of(offset, self.samples)
        if self._numbers is not None:
            named = self._identities(batch, offset, (None, None), self._numbers)
            identities = bytes.fromhex("".join(custom_id for _, custom_id in named))
        if values is None:
            row = _Row(batch, offset, {}, None, identities)
            found.keys.append(NO_KEY)
            self._invalid(row, self._every, batch.failures[offset], batch.raw.get(offset, b""), found)
            return None
        left_out, failure = self._left_out(values)
        if left_out:
            self._skip(found)
            return None
        if failure is not None:
            row = _Row(batch, offset, values, None, identities)
            found.keys.append(NO_KEY)
            self._invalid(row, self._every, failure, row_bytes(values), found)
            return None
        key: str | None = None
        if self._key_column is not None:
            told = None if known is None else known.key_of(offset)
            key, problem, digest = self._key(values, self._key_column, told)
            found.keys.append(digest)
            if problem is not None:
                failure = Failure(ErrorKind.INPUT, problem)
                row = _Row(batch, offset, values, None, identities)
                self._invalid(row, self._every, failure, row_bytes(values), found)
                return None
        return _Row(batch, offset, values, key, identities)

    def _skip(self, found: Sorted) -> None:
        """Count a row that is not sent. Its key is not met: another row may have it."""
        self.counts.skipped += self.samples
        found.custom_ids += [_SKIPPED_ID] * self.samples
        found.keys.append(NO_KEY)

    def _key(
        self, values: dict[str, Any], column: str, told: bytes | None = None
    ) -> tuple[str | None, str | None, bytes]:
        """Return a row's key, what is wrong with it, and its digest; the key is known from now on.

        NO_KEY is the digest of one that is wrong. `told` is what an earlier pass found: rows behind this one may have
        been passed over, so that their keys are known already.
        """
        key, problem = read_key(values, column)
        if key is None or self._keys is None:
            return key, problem, NO_KEY
        digest = key_digest(key)
        repeated = self._keys.mark_seen(digest)
        # A row that an earlier pass knew had its key first, whatever was met since.
        if repeated if told is None else told != digest:
            return key, f"{column} {key!r} stands in an earlier row too", NO_KEY
        return key, None, digest

    # --- without an output

    def keys(self, batch: RowBatch) -> list[tuple[str | None, str | None]]:
        """Return key and problem of each row of a batch, for `identify` in this pass or others over the same rows."""
        column = self._key_column
        if column is None:
            return [(None, None)] * len(batch.values)
        return [
            (None, None) if values is None or self._left_out(values) != (False, None) else self._key(values, column)[:2]
            for values in batch.values
        ]

    def identify(self, batch: RowBatch, keys: list[tuple[str | None, str | None]]) -> list[tuple[int, int, str]]:
        """Return offset, sample and `custom_id` of whatever a pass would make of a batch, done or not.

        The samples of a skipped row have the `custom_id` SKIPPED_ID.
        """
        selection = self._selection
        takes = selection.takes if not selection.whole else None
        found: list[tuple[int, int, str]] = []
        for offset in range(len(batch.values)):
            taken = takes is None or takes(batch.first_index + offset)
            # With keys nothing is numbered, so a row outside of the pass changes nothing.
            if not taken and (not selection.numbered or self._key_column is not None):
                continue
            named = self._identities(batch, offset, keys[offset], self._index)
            if taken:
                found += [(offset, sample, custom_id) for sample, custom_id in named]
        return found

    def _left_out(self, values: dict[str, Any]) -> tuple[bool, Failure | None]:
        """Return whether a row is not to be sent, and the failure of one of which that cannot be told."""
        try:
            return self._template.skips(values), None
        except RowTemplateError as error:
            return False, Failure(error.kind, str(error))

    def _pass_by(self, batch: RowBatch, offset: int) -> None:
        """Let a row outside of a numbered selection take its key, or its numbers among equal requests."""
        values = batch.values[offset]
        if self._numbers is not None:
            self._identities(batch, offset, (None, None), self._numbers)
        elif self._key_column is not None and values is not None and self._left_out(values) == (False, None):
            self._key(values, self._key_column)

    def _identities(
        self, batch: RowBatch, offset: int, key: tuple[str | None, str | None], index: RecordIndex
    ) -> list[tuple[int, str]]:
        """Return sample and `custom_id` of what a pass would make of a row.

        Of equal requests it is the first that `index` has not met.

        `key` is the row's key and what is wrong with it.
        """
        values, (name, problem) = batch.values[offset], key
        left_out, failure = (False, None) if values is None else self._left_out(values)
        if left_out:
            return [(sample, _SKIPPED_ID) for sample in self._every]
        if values is None or problem is not None or failure is not None:
            raw = batch.raw.get(offset, b"") if values is None else row_bytes(values)
            return [(sample, _failed_id(index, batch.source, raw, sample)) for sample in self._every]
        images = None if batch.images is None else batch.images[offset]
        found: list[tuple[int, str]] = []
        for samples in self._alike:
            try:
                digest = self._template.render(values, samples.start, images).digest
            # It fails, so its identity is that of the row's bytes.
            except RowTemplateError:
                raw = row_bytes(values)
                found += [(sample, _failed_id(index, batch.source, raw, sample)) for sample in samples]
            else:
                found += [(sample, self._request_id(index, digest, name, sample)) for sample in samples]
        return found

    def _request_id(self, index: RecordIndex, digest: bytes, key: str | None, sample_index: int) -> str:
        identity = self._identity
        if key is not None:
            return identity.custom_id(digest, key=key, sample_index=sample_index)
        return _mark_first(
            index, lambda occurrence: identity.custom_id(digest, occurrence=occurrence, sample_index=sample_index)
        )[0]

    # --- sample by sample

    def _sort_samples(self, row: _Row, samples: range, found: Sorted) -> None:
        """Sort samples of a row that render to the same request."""
        images = row.batch.images
        try:
            rendered = self._template.render(row.values, samples.start, None if images is None else images[row.offset])
        except RowTemplateError as error:
            self._invalid(row, samples, Failure(error.kind, str(error)), row_bytes(row.values), found)
            return
        found.nbytes += len(rendered.body)
        for sample_index in samples:
            self._sort_sample(rendered, row, sample_index, found)

    def _sort_sample(self, rendered: Rendered, row: _Row, sample_index: int, found: Sorted) -> None:
        batch, offset, _, key, _ = row
        custom_id, state = self._identify(rendered.digest, key, sample_index, row.known_id(sample_index))
        found.custom_ids.append(custom_id)
        if state == OK:
            self.counts.done += 1
            return
        body, prompt_tokens, max_tokens = rendered.body, rendered.prompt_tokens, rendered.max_tokens
        request = Request(custom_id, body, prompt_tokens, max_tokens, batch, offset, key, sample_index)
        if self._answer_ids:
            request.answer_id = self._identity.answer_id(rendered.digest, sample_index)
        # The answer to this very request lies in the archive, from before the prompt was changed and changed back.
        if state == ARCHIVED:
            self.counts.archived += 1
            found.archived.append(request)
            return
        if state != NONE:
            # It failed for good, and the job does not ask such rows again.
            if kind_of(state) not in self._reopens:
                self.counts.failed_before += 1
                return
            self.counts.reopened += 1
            found.reopened.append(custom_id)
        # The row has a record, of another request: the prompt or the row was edited.
        elif key is not None and self._keys is not None and self._keys.is_live(key_digest(key, sample_index)):
            self.counts.changed += 1
        else:
            self.counts.new += 1
        found.requests.append(request)

    def _identify(self, digest: bytes, key: str | None, sample_index: int, known: str | None = None) -> tuple[str, int]:
        """Return the request's `custom_id`, which this pass has met from now on, and its state.

        Of equal requests without a key it is the first that the pass has not met. `known` is what an earlier pass
        found: some of them may have been passed over, so that the first that was not met need not be this one.
        """
        identity, index = self._identity, self._index
        if key is not None:
            known = identity.custom_id(digest, key=key, sample_index=sample_index)
        if known is not None:
            return known, index.mark_seen(known)
        return _mark_first(
            index, lambda occurrence: identity.custom_id(digest, occurrence=occurrence, sample_index=sample_index)
        )

    def _invalid(self, row: _Row, samples: range, failure: Failure, raw: bytes, found: Sorted) -> None:
        for sample in samples:
            identify = partial(_failed_row, row.batch.source, raw, sample)
            known = row.known_id(sample)
            custom_id, state = (
                (known, self._index.mark_seen(known)) if known is not None else _mark_first(self._index, identify)
            )
            found.custom_ids.append(custom_id)
            if state != NONE:
                self.counts.failed_before += 1
                continue
            self.counts.invalid += 1
            found.invalid.append(Invalid(custom_id, row.key, row.batch, row.offset, failure, sample))


def _failed_id(index: RecordIndex, source: str, raw: bytes, sample_index: int) -> str:
    return _mark_first(index, partial(_failed_row, source, raw, sample_index))[0]


def _failed_row(source: str, raw: bytes, sample_index: int, occurrence: int) -> str:
    return failed_row_id(source, raw, occurrence=occurrence, sample_index=sample_index)


def _mark_first(index: RecordIndex, identify: Callable[[int], str]) -> tuple[str, int]:
    """Return the identity of the first occurrence that has not been seen, which is seen from now on, and its state.

    Occurrences are seen in order, so the seen ones are 0 … m-1: gallop past m, then halve the gap. That takes 2·log2(m)
    look-ups and no memory for counters.
    """
    first = identify(0)
    state = index.mark_first(first)
    if state is not None:
        return first, state
    low, high = 0, 1
    while index.is_seen(identify(high)):
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        if index.is_seen(identify(middle)):
            low = middle
        else:
            high = middle
    found = identify(high)
    return found, index.mark_seen(found)


def read_key(values: dict[str, Any], column: str) -> tuple[str | None, str | None]:
    """Return a row's key as text, or what is wrong with it.

    `session.id` is the field `id` of the column `session`, unless a column has that very name.
    """
    value, there = _field(values, column)
    if value is None:
        return None, f"the key {column} is {'null' if there else 'missing'}"
    if isinstance(value, list | dict | bytes):
        return None, f"the key {column} is no plain value"
    text = str(value)
    if not text:
        return None, f"the key {column} is empty"
    return text, None


def _field(values: dict[str, Any], column: str) -> tuple[Any, bool]:
    """Return a column's value, or that of a field inside one, and whether it is there."""
    # A column may have a dot in its own name, as flattened tables have.
    if column in values or "." not in column:
        return values.get(column), column in values
    value: Any = values
    for name in column.split("."):
        if not isinstance(value, dict) or name not in value:
            return None, False
        value = value[name]
    return value, True
