"""The rows of the current input, and for each job the identities of the requests that it makes of them.

Records are matched to rows by `custom_id`, as everywhere: a record belongs to a row if it answers the request that the
job as it is now makes of the row as it is now. So a corrected expected value counts at once, and the answer to an
earlier prompt never does. What scorers read of the input is kept here, in memory by column, or row by row in a file
where a scorer wants whole rows. Blocking code.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import field
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from batchchat.addresses import address_of
from batchchat.dataclass import dataclass
from batchchat.errors import StorageError
from batchchat.evaluation.results.disk_list import DiskList
from batchchat.evaluation.scorers.matching import text_of
from batchchat.evaluation.scorers.score_batch import Lists
from batchchat.evaluation.statistics.clusters import Clusters
from batchchat.job import Job
from batchchat.joining import Identities
from batchchat.records import RowBatch
from batchchat.runner.preparation import Prepared, prepare
from batchchat.runner.rows import pass_of
from batchchat.store import frozen_schema, is_output, read_state
from batchchat.store.index import ID_BYTES, SKIPPED_ID
from batchchat.store.location.disk import storage_errors
from batchchat.store.trail import Trail

_INTERNED = 100_000
_LONGEST_INTERNED = 200
"""Different texts that are kept once, and the most characters of one: labels are few and short, answers neither."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Which rows of the input count: all, the first `limit`, a `sample` drawn with `seed`, or those of some indexes."""

    limit: int | None = None
    sample: int | None = None
    seed: int = 0
    rows: frozenset[int] | None = None


EVERY_ROW = Choice()


class WholeRows:
    """Rows as the template sees them, in a temporary file that vanishes with this object."""

    def __init__(self) -> None:
        self._spill = DiskList()
        self._places: list[int] = []

    def add(self, row: dict[str, Any] | None) -> None:
        """Keep one more row."""
        self._places.append(self._spill.add(row or {}))

    def __getitem__(self, position: int) -> dict[str, Any]:
        row: dict[str, Any] = self._spill.get(self._places[position])
        return row

    def keep(self, numbers: Sequence[int]) -> None:
        """Forget all rows but these."""
        self._places = [self._places[number] for number in numbers]

    def close(self) -> None:
        """Let go of the file."""
        self._spill.close()


@dataclass(slots=True)
class CurrentRows:
    """The rows that count, in input order. Row `i` is the input's row `row_index[i]`; position `i * samples + s` is
    the sample `s` of it.

    `identities` has one entry for each job. `keys` is None where the job names no key. `all_of_input` tells whether
    every row of the input counts. `prompted` are the columns that the prompts speak of. `skipped` rows are not among
    them: what the `skip` of one job leaves out counts for none, so that all are measured by the same rows.
    """

    samples: int
    all_of_input: bool
    row_index: NDArray[np.int64]
    keys: pa.StringArray | None
    identities: list[Identities]
    prompted: tuple[str, ...] = ()
    skipped: int = 0
    _columns: dict[str, list[Any]] = field(default_factory=dict)
    _whole: WholeRows | None = None

    def __len__(self) -> int:
        return len(self.row_index)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file of whole rows, where there is one."""
        if self._whole is not None:
            self._whole.close()

    def clusters(self, column: str) -> Clusters:
        """Return the cluster of each row by the values of a kept column. A row without a value is its own cluster."""
        texts = self.texts(column).dictionary_encode()
        # Codes of clusters count from 0 up, so that numbers below 0 are free for rows without one.
        alone = -1 - np.arange(len(texts), dtype=np.int64)
        codes = texts.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        return np.where(codes < 0, alone, codes)

    def texts(self, column: str) -> pa.StringArray:
        """Return the values of a kept column as texts, null for null."""
        return pa.array([None if value is None else text_of(value) for value in self._columns[column]], pa.string())

    def values(self, column: str) -> list[Any]:
        """Return the values of a kept column, row by row."""
        return self._columns[column]

    def take(self, numbers: Sequence[int], columns: frozenset[str] | None) -> Lists | list[dict[str, Any]]:
        """Return what is kept of these rows: the columns named, or whole rows where that is None."""
        if columns is None:
            assert self._whole is not None  # noqa: S101 - `read_rows` was told so
            return [self._whole[number] for number in numbers]
        kept = {name: self._columns[name] for name in columns}
        return Lists({name: [values[number] for number in numbers] for name, values in kept.items()}, len(numbers))


def read_rows(
    jobs: Sequence[Job],
    columns: frozenset[str],
    *,
    whole: bool = False,
    prompted: bool = False,
    choice: Choice = EVERY_ROW,
) -> CurrentRows:
    """Read the input of jobs that share it, and identify every sample of its rows for each of them.

    Keeps the `columns` named, with `prompted` also those that the prompts speak of, and with `whole` all of each row.
    Raises UsageError as a run does.
    """
    reader = _Reader(jobs, columns, whole=whole, prompted=prompted, choice=choice)
    return reader.read()


class _Reader:
    def __init__(
        self, jobs: Sequence[Job], columns: frozenset[str], *, whole: bool, prompted: bool, choice: Choice
    ) -> None:
        self.samples = jobs[0].samples
        self.prepared = [_prepare(job, choice) for job in jobs]
        self.trails = [_trail_of(prepared) for prepared in self.prepared]
        self.intakes = [prepared.intake() for prepared in self.prepared]
        self.digests = [bytearray() for _ in jobs]
        # Arrays, batch by batch: a list of objects would take several times as much.
        self.numbers = array("q")
        self.keys: list[pa.StringArray] = []
        self.prompted = _prompted(self.prepared) if prompted else ()
        self.columns: dict[str, list[Any]] = {name: [] for name in (*columns, *self.prompted)}
        self.whole = WholeRows() if whole else None
        self.interned: dict[str, str] = {}

    def read(self) -> CurrentRows:
        try:
            for number, group in enumerate(self._groups()):
                rendered = [at for at in group if self.trails[at] is None]
                # The first group gives the columns. Another one is read only if some job's requests are not known.
                if number == 0 or rendered:
                    self._read_group(self.prepared[group[0]], rendered, keep=number == 0)
            self._take_known()
        except BaseException:
            if self.whole is not None:
                self.whole.close()
            raise
        finally:
            for trail in self.trails:
                if trail is not None:
                    trail.close()
        skipped = self._leave_out_skipped()
        has_key = self.prepared[0].job.input.key is not None
        return CurrentRows(
            samples=self.samples,
            all_of_input=self.prepared[0].selection.whole,
            row_index=np.array(self.numbers, dtype=np.int64),
            keys=pa.concat_arrays([pa.array([], pa.string()), *self.keys]) if has_key else None,
            identities=[Identities(self.digests.pop(0)) for _ in self.prepared],
            prompted=self.prompted,
            skipped=skipped,
            _columns=self.columns,
            _whole=self.whole,
        )

    def _groups(self) -> list[list[int]]:
        """Jobs that read their rows with the same types, which are frozen at each output's first run, and images."""
        groups: list[list[int]] = []
        for at, prepared in enumerate(self.prepared):
            found = next((group for group in groups if _reads_alike(self.prepared[group[0]], prepared)), None)
            if found is None:
                groups.append([at])
            else:
                found.append(at)
        return groups

    def _read_group(self, prepared: Prepared, rendered: Sequence[int], *, keep: bool) -> None:
        """Read the rows as one job does, and identify them for those of these numbers."""
        for batch in prepared.batches():
            if prepared.selection.past(batch.first_index):
                break
            if rendered:
                self._identify(batch, rendered)
            if keep:
                self._keep(batch)

    def _take_known(self) -> None:
        """Take the identities that trails tell. Raises StorageError if the input has become another one meanwhile."""
        count = len(self.numbers)
        for at, trail in enumerate(self.trails):
            if trail is None:
                continue
            limit = self.prepared[at].selection.limit
            # The first group was read just now, and the trail is older: both must be of the same rows.
            if count != (trail.rows if limit is None else limit):
                path = self.prepared[at].job.input.path
                raise StorageError(f"{path} changed while it was read", remedy="Score again when it is complete.")
            with storage_errors(trail.path):
                self.digests[at] += trail.read(0, count)[0]

    def _identify(self, batch: RowBatch, group: Sequence[int]) -> None:
        keys = self.intakes[group[0]].keys(batch)
        for at in group:
            ids = "".join([custom_id for _, _, custom_id in self.intakes[at].identify(batch, keys)])
            self.digests[at] += bytes.fromhex(ids)

    def _keep(self, batch: RowBatch) -> None:
        selection, key = self.prepared[0].selection, self.prepared[0].job.input.key
        everything = selection.whole
        keys: list[str | None] = []
        for offset, values in enumerate(batch.values):
            index = batch.first_index + offset
            if not everything and not selection.takes(index):
                continue
            self.numbers.append(index)
            row = values or {}
            if key is not None:
                value = row.get(key)
                keys.append(None if value is None else str(value))
            for name, column in self.columns.items():
                column.append(self._intern(row.get(name)))
            if self.whole is not None:
                self.whole.add(values)
        self.keys.append(pa.array(keys, pa.string()))

    def _leave_out_skipped(self) -> int:
        """Leave out the rows that any of the jobs skips; return how many they are."""
        if all(prepared.template.skip is None for prepared in self.prepared):
            return 0
        skipped = np.zeros(len(self.numbers), dtype=bool)
        digests = [np.frombuffer(one, dtype=f"V{ID_BYTES}").reshape(-1, self.samples) for one in self.digests]
        for ids in digests:
            # The first sample tells it for all: a row is skipped with all its samples.
            skipped |= ids[:, 0] == np.void(SKIPPED_ID)
        left = np.flatnonzero(~skipped)
        self.digests = [bytearray(ids[left].tobytes()) for ids in digests]
        kept = left.tolist()
        self.numbers = array("q", [self.numbers[at] for at in kept])
        if self.prepared[0].job.input.key is not None:
            self.keys = [pa.concat_arrays([pa.array([], pa.string()), *self.keys]).take(pa.array(left))]
        for name, column in self.columns.items():
            self.columns[name] = [column[at] for at in kept]
        if self.whole is not None:
            self.whole.keep(kept)
        return int(skipped.sum())

    def _intern(self, value: Any) -> Any:
        """One object for equal short texts: a label then costs a pointer a row."""
        # Long texts are seldom equal, and the table of a column without labels must not grow with the rows.
        if type(value) is not str or len(value) > _LONGEST_INTERNED or len(self.interned) > _INTERNED:
            return value
        return self.interned.setdefault(value, value)


def _prompted(prepared: Sequence[Prepared]) -> tuple[str, ...]:
    """The input's columns that the prompts speak of by name, in the input's order; all where none is named so."""
    named = frozenset[str]().union(*(one.template.names for one in prepared))
    if any(one.template.uses_row for one in prepared):
        named |= {"row"}
    columns = prepared[0].source.columns
    return tuple(name for name in columns if name in named) or tuple(columns)


def _reads_alike(one: Prepared, other: Prepared) -> bool:
    return bool(one.source.schema.equals(other.source.schema)) and (
        one.template.image_columns == other.template.image_columns
        and one.template.attachments == other.template.attachments
        and (one.job.images, one.job.files) == (other.job.images, other.job.files)
    )


def _trail_of(prepared: Prepared) -> Trail | None:
    """Return the trail of a run that tells the requests of all rows that are read, None if there is none.

    Rendering every row again would take most of the time of a scoring.
    """
    directory, following = address_of(prepared.job.output.path), pass_of(prepared, frozenset())
    if following is None or not is_output(directory):
        return None
    trail = read_state(directory).known(following).trail
    limit = prepared.selection.limit
    # A trail that ends in the middle, as that of a stopped run, knows nothing of the rows behind.
    enough = prepared.source.ends_at(trail.end) if limit is None else trail.rows >= limit
    if trail.rows and enough:
        return trail
    trail.close()
    return None


def _prepare(job: Job, choice: Choice) -> Prepared:
    frozen = frozen_schema(address_of(job.output.path))
    # The answers are here already: a prompt that uses no column may be scored.
    job = job.model_copy(update={"constant": True})
    return prepare(job, frozen=frozen, limit=choice.limit, sample=choice.sample, seed=choice.seed, chosen=choice.rows)
