"""A sheet: every score of one variant, value by value, and what its answers cost.

Records are read part by part, in whatever order they were answered, and find their place by identity. What stays in
memory is a number for each scorer and answer, two codes for each scorer of classes, the reasons that there are, and the
start of each text that a scorer read, once for all scorers of a `field`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from batchchat.dataclass import dataclass
from batchchat.evaluation.results.current_rows import CurrentRows
from batchchat.evaluation.results.positions import Finder, Positions, as_halves, current_records
from batchchat.evaluation.scorers.matching import text_of
from batchchat.evaluation.scorers.score_batch import Absent, ScoreBatch, Scores
from batchchat.evaluation.scorers.scorer import AnswerScorer, Scorer, scores_of
from batchchat.evaluation.statistics.classification import CodedLabels, LabelledAnswers
from batchchat.store import Output

Grid = NDArray[np.float64]

SCORES_SCHEMA = pa.schema(
    [
        pa.field("variant", pa.string(), nullable=False),
        pa.field("row_index", pa.int64(), nullable=False),
        pa.field("key", pa.string()),
        pa.field("sample_index", pa.int32(), nullable=False),
        pa.field("scorer", pa.string(), nullable=False),
        pa.field("value", pa.float64()),
        pa.field("reason", pa.string()),
        pa.field("expected", pa.string()),
        pa.field("given", pa.string()),
        pa.field("custom_id", pa.string(), nullable=False),
        pa.field("cluster", pa.string()),
    ]
)
"""The columns of `scores.parquet`: one line for each variant, scorer, row and sample that has a record, in that order.

A composite scorer's lines carry the name of its first metric (`tickets.accuracy`); its others have no value for a
single answer. `value` is null where the scorer could not tell, and `reason` then says why. `expected` and `given` are
what a scorer compared, each cut after 200 characters; a scorer of classes writes its labels. `given` is null if there
is no answer, `expected` if nothing is expected. Places are those of the current input; `custom_id` leads to the record.
Rows with the same `cluster` are one piece of evidence; it is null if the suite names no column for it.
"""

PAIRWISE_SCHEMA = pa.schema(
    [
        pa.field("a", pa.string(), nullable=False),
        pa.field("b", pa.string(), nullable=False),
        *(SCORES_SCHEMA.field(name) for name in ("row_index", "key", "sample_index", "scorer", "value", "reason")),
    ]
)
"""The columns of `pairwise.parquet`: what a pairwise judge said of two variants' answers to a row.

`value` is 1 where a won in both orders, -1 where b did, 0 for a tie.
"""

_NEEDED = frozenset({"custom_id", "status", "error_kind", "cost", "prompt_tokens", "completion_tokens", "latency_s"})
_LINES = 25_000
"""Lines of a block that is written at once. It bounds memory; the file is the same with any number."""
# Long enough for labels, numbers and short answers; a million whole completions would not fit into memory.
_TEXT_CHARACTERS = 200
NOT_JUDGED = "not judged yet"
_TOLD_ELSEWHERE = ("failed", NOT_JUDGED)


def row_metric(scorer: Scorer) -> str:
    """Return the name under which a scorer's values for single answers are told."""
    return f"{scorer.name}.{scorer.METRICS[0]}" if scorer.METRICS else scorer.name


class ScoreColumn:
    """The values and reasons of one scorer, by position."""

    def __init__(self, size: int) -> None:
        self.values: Grid = np.full(size, np.nan)
        self._places: list[Positions] = []
        self._reasons: list[pa.Array] = []

    def put(self, positions: Positions, scores: Scores) -> None:
        """Take the scores of some positions."""
        values = scores.values.fill_null(np.nan).to_numpy(zero_copy_only=False)
        # A function of the user's may give infinity: no mean could be told of the column any more.
        self.values[positions] = np.where(np.isfinite(values), values, np.nan)
        told = scores.reasons.is_valid()
        if told.true_count:
            self._places.append(positions[told.to_numpy(zero_copy_only=False)])
            self._reasons.append(scores.reasons.filter(told))

    def places(self) -> Positions:
        """Return the positions that have a value or a reason."""
        told: NDArray[np.bool_] = np.isfinite(self.values)
        for places in self._places:
            told[places] = True
        return np.flatnonzero(told)

    def put_all(self, outcomes: Mapping[int, tuple[float | None, str | None]]) -> None:
        """Take values with reasons by position."""
        positions = np.fromiter(outcomes, np.int64, len(outcomes))
        self.put(positions, scores_of(list(outcomes.values())))

    def reasons(self, positions: Positions) -> pa.Array:
        """Return the reasons at these positions, null if there is none."""
        if not self._places:
            return pa.nulls(len(positions), pa.string())
        place = np.full(len(self.values), -1, dtype=np.int64)
        told = np.concatenate(self._places)
        place[told] = np.arange(len(told))
        chosen = place[positions]
        return pa.concat_arrays(self._reasons).take(pa.array(chosen, mask=chosen < 0))


class TextColumn:
    """Short texts by position. Equal texts of one batch cost a code each."""

    def __init__(self, size: int) -> None:
        self._place: NDArray[np.int32] = np.full(size, -1, dtype=np.int32)
        self._count = 0
        self._chunks: list[pa.Array] = []

    def put(self, positions: Positions, texts: Sequence[str | None]) -> None:
        """Take the texts of some positions."""
        self._place[positions] = np.arange(self._count, self._count + len(positions))
        self._count += len(positions)
        self._chunks.append(pa.array(texts, pa.string()).dictionary_encode())

    def texts(self, positions: Positions) -> pa.Array:
        """Return the texts at these positions, null if there is none."""
        if not self._chunks:
            return pa.nulls(len(positions), pa.string())
        chosen = self._place[positions]
        taken = pa.chunked_array(self._chunks).take(pa.array(chosen, mask=chosen < 0))
        return taken.cast(pa.string()).combine_chunks()


class LabelColumn:
    """The expected and the given label of each position, as codes: -1 is none, and `seen` has those that count."""

    def __init__(self, size: int) -> None:
        self._codes: dict[str, int] = {}
        self._expected = np.full(size, -1, dtype=np.int32)
        self._given = np.full(size, -1, dtype=np.int32)

    def put(self, positions: Positions, labels: tuple[list[str | None], list[str | None]]) -> None:
        """Take the labels of some positions."""
        for codes, column in ((self._expected, labels[0]), (self._given, labels[1])):
            known = self._codes
            codes[positions] = [-1 if one is None else known.setdefault(one, len(known)) for one in column]

    def texts(self, positions: Positions) -> tuple[pa.Array, pa.Array]:
        """Return the expected and the given labels at these positions, null if there is none."""
        names = pa.array([*self._codes], pa.string())
        expected, given = (codes[positions] for codes in (self._expected, self._given))
        return names.take(pa.array(expected, mask=expected < 0)), names.take(pa.array(given, mask=given < 0))

    def answers(self, samples: int) -> LabelledAnswers:
        """Return the labels of all positions that count, row by row."""
        names: list[str | None] = [*self._codes, None]  # so that -1 is the code of None
        counted = np.flatnonzero(self._expected >= 0)
        expected, given = (CodedLabels(names, codes[counted]) for codes in (self._expected, self._given))
        return LabelledAnswers(counted // samples, expected, given)


@dataclass(slots=True)
class Totals:
    """What the records of a variant come to. `cost` is None where no record's price is known."""

    records: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    cost: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    _latencies: list[Grid] = field(default_factory=list)

    def add(self, batch: pa.RecordBatch) -> None:
        """Count a batch of records."""
        self.records += batch.num_rows
        failed = batch.filter(pc.equal(batch.column("status"), "failed"))
        self.failures.update(kind or "protocol" for kind in failed.column("error_kind").to_pylist())
        cost = pc.sum(batch.column("cost")).as_py()
        if cost is not None:
            self.cost = (self.cost or 0.0) + cost
        self.prompt_tokens += pc.sum(batch.column("prompt_tokens")).as_py() or 0
        self.completion_tokens += pc.sum(batch.column("completion_tokens")).as_py() or 0
        self._latencies.append(batch.column("latency_s").drop_null().to_numpy(zero_copy_only=False))

    def latency(self, share: float) -> float | None:
        """Return the latency in seconds that this share of the answers does not exceed (interpolated)."""
        every = np.concatenate(self._latencies) if self._latencies else np.zeros(0)
        return float(np.quantile(every, share)) if every.size else None


class VariantScores:
    """All scores of one variant. `answered` tells which positions have a record."""

    def __init__(self, name: str, rows: CurrentRows) -> None:
        self.name = name
        self.rows = rows
        size = len(rows) * rows.samples
        self.answered: NDArray[np.bool_] = np.zeros(size, dtype=bool)
        self.stale = 0
        self.totals = Totals()
        # In the order in which they were first asked for.
        self.columns: dict[str, ScoreColumn] = {}
        self.labels: dict[str, LabelColumn] = {}
        # For each scorer that is a function of the user's: how often it was called, and how often it broke.
        self.calls: dict[str, tuple[int, int]] = {}
        # What each scorer of answers compares, by the name of its column, and what was given, by `field`.
        self._compared: dict[str, AnswerScorer] = {}
        self._given: dict[str, TextColumn] = {}
        self._ids: NDArray[np.uint64] = np.zeros((size, 2), dtype=np.uint64)

    def column(self, name: str) -> ScoreColumn:
        """Return the values under a name, made when first asked for."""
        if name not in self.columns:
            self.columns[name] = ScoreColumn(len(self.answered))
        return self.columns[name]

    def grid(self, name: str) -> Grid:
        """Return the values under a name as (rows, samples)."""
        return self.columns[name].values.reshape(-1, self.rows.samples)

    def told(self, name: str) -> NDArray[np.bool_]:
        """Return which rows have all their answers, and all of them judged under this name."""
        reasons = self.columns[name].reasons(np.arange(len(self.answered)))
        judged = pc.not_equal(reasons.cast(pa.string()), NOT_JUDGED).fill_null(fill_value=True)
        done: NDArray[np.bool_] = self.answered & judged.to_numpy(zero_copy_only=False)
        rows: NDArray[np.bool_] = np.all(done.reshape(-1, self.rows.samples), axis=1)
        return rows

    def unscored(self, name: str) -> tuple[int, str | None]:
        """Return how many completions a scorer could not tell about, and the most frequent reason.

        What failed, or is still to be judged, is told elsewhere.
        """
        column = self.columns[name]
        positions = np.flatnonzero(self.answered & np.isnan(column.values))
        reasons = Counter(reason for reason in column.reasons(positions).to_pylist() if reason is not None)
        told = {reason: count for reason, count in reasons.items() if not reason.startswith(_TOLD_ELSEWHERE)}
        first = min(told, key=lambda reason: (-told[reason], reason), default=None)
        return sum(told.values()), first

    @property
    def rows_answered(self) -> int:
        """Rows that have at least one record."""
        return int(self.answered.reshape(-1, self.rows.samples).any(axis=1).sum())

    def read(self, output: Output, finder: Finder, scorers: Sequence[Scorer], *, texts: bool = False) -> None:
        """Read all records of an output, and score those that have a place among the rows.

        With `texts`, what the scorers compared is kept for `lines`.
        """
        sessions = [(scorer, scorer.session()) for scorer in scorers]
        for scorer in scorers:
            self.column(row_metric(scorer))
            if scorer.METRICS:
                self.labels[scorer.name] = LabelColumn(len(self.answered))
            elif texts and isinstance(scorer, AnswerScorer):
                self._compared[row_metric(scorer)] = scorer
                self._given.setdefault(scorer.field, TextColumn(len(self.answered)))
        inputs = _union(scorer.inputs for scorer in scorers)
        wanted = _union(scorer.columns for scorer in scorers)
        columns = None if wanted is None else wanted | _NEEDED
        for positions, batch, stale in current_records(output, finder, columns):
            self.stale += stale
            self.answered[positions] = True
            self._ids[positions] = as_halves(batch.column("custom_id"))
            self.totals.add(batch)
            # Records of other rows count in the totals above, and have no place for a score.
            if not sessions or not len(positions):
                continue
            numbers = (positions // self.rows.samples).tolist()
            scored = ScoreBatch(batch, self.rows.take(numbers, inputs))
            for scorer, score in sessions:
                self._put(scorer, positions, score(scored))
            for name, column in self._given.items():
                answers = zip(scored.failures(), scored.answers(name), strict=True)
                column.put(positions, [None if failure is not None else start_of(one) for failure, one in answers])

    def _put(self, scorer: Scorer, positions: Positions, scores: Scores) -> None:
        self.column(row_metric(scorer)).put(positions, scores)
        if scores.called:
            called, broken = self.calls.get(scorer.name, (0, 0))
            self.calls[scorer.name] = called + scores.called, broken + scores.broken
        if scores.labels is not None:
            self.labels[scorer.name].put(positions, scores.labels)

    def lines(self, cluster: str | None = None) -> Iterator[pa.RecordBatch]:
        """Yield all scores as lines of `scores.parquet`, in blocks; `cluster` names the column of clusters."""
        clusters = None if cluster is None else self.rows.texts(cluster)
        answered = np.flatnonzero(self.answered)
        for name, column in self.columns.items():
            for start in range(0, len(answered), _LINES):
                positions = answered[start : start + _LINES]
                numbers, samples = np.divmod(positions, self.rows.samples)
                values = column.values[positions]
                none = pa.nulls(len(positions), pa.string())
                yield pa.RecordBatch.from_arrays(
                    [
                        pa.repeat(self.name, len(positions)),
                        pa.array(self.rows.row_index[numbers]),
                        _keys(self.rows.keys, numbers),
                        pa.array(samples, pa.int32()),
                        pa.repeat(name, len(positions)),
                        pa.array(values, mask=np.isnan(values)),
                        column.reasons(positions),
                        *self._texts(name, positions),
                        _custom_ids(self._ids[positions]),
                        none if clusters is None else clusters.take(pa.array(numbers)),
                    ],
                    schema=SCORES_SCHEMA,
                )

    def _texts(self, name: str, positions: Positions) -> tuple[pa.Array, pa.Array]:
        """Return what was expected and what was given at these positions, as the scorer of a column compared them."""
        labels, scorer = self.labels.get(name.rpartition(".")[0]), self._compared.get(name)
        if labels is not None:
            return labels.texts(positions)
        if scorer is None:
            none = pa.nulls(len(positions), pa.string())
            return none, none
        rows = ScoreBatch(
            [{}] * len(positions), self.rows.take((positions // self.rows.samples).tolist(), scorer.inputs)
        )
        expected = [start_of(value) for value in scorer.wanted(rows)]
        return pa.array(expected, pa.string()), self._given[scorer.field].texts(positions)


def start_of(value: Any) -> str | None:
    """Return the first 200 characters of a value as text, None if there is no value."""
    # Nearly all answers that are compared are labels: short texts of one script, which stay as they are.
    if type(value) is str and len(value) <= _TEXT_CHARACTERS and value.isascii():
        return value
    if value is None or isinstance(value, Absent):
        return None
    # A text of JSON may hold half a surrogate pair, which no UTF-8 can.
    return text_of(value)[:_TEXT_CHARACTERS].encode("utf-8", "replace").decode()


def pair_lines(a: str, b: str, scorer: str, column: ScoreColumn, rows: CurrentRows) -> Iterator[pa.RecordBatch]:
    """Yield the judgements of a pair as lines of `pairwise.parquet`, in blocks."""
    judged = column.places()
    for start in range(0, len(judged), _LINES):
        positions = judged[start : start + _LINES]
        numbers, samples = np.divmod(positions, rows.samples)
        values = column.values[positions]
        yield pa.RecordBatch.from_arrays(
            [
                pa.repeat(a, len(positions)),
                pa.repeat(b, len(positions)),
                pa.array(rows.row_index[numbers]),
                _keys(rows.keys, numbers),
                pa.array(samples, pa.int32()),
                pa.repeat(scorer, len(positions)),
                pa.array(values, mask=np.isnan(values)),
                column.reasons(positions),
            ],
            schema=PAIRWISE_SCHEMA,
        )


def _custom_ids(ids: NDArray[np.uint64]) -> pa.Array:
    """Identities as 32 hexadecimal digits each."""
    text = ids.tobytes().hex().encode("ascii")
    offsets = np.arange(len(ids) + 1, dtype=np.int32) * 32
    return pa.StringArray.from_buffers(len(ids), pa.py_buffer(offsets), pa.py_buffer(text))


def _keys(keys: pa.StringArray | None, numbers: Positions) -> pa.Array:
    return pa.nulls(len(numbers), pa.string()) if keys is None else keys.take(pa.array(numbers))


def _union(sets: Iterator[frozenset[str] | None]) -> frozenset[str] | None:
    """All columns of several scorers; None, which means every column, where one of them reads all."""
    found: frozenset[str] = frozenset()
    for one in sets:
        if one is None:
            return None
        found |= one
    return found
