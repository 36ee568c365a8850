"""Cases: what judges are asked about, gathered from the variants' answers, and the verdicts that come back.

`gather_cases` writes the input of a judge's job, each distinct case once, and remembers which case each answer is.
After the judge has run, `read_verdicts` tells what it said of each case. Blocking code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from hashlib import blake2b
from itertools import combinations
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from batchchat.addresses import address_of
from batchchat.dataclass import dataclass
from batchchat.evaluation.results.current_rows import CurrentRows, read_rows
from batchchat.evaluation.results.disk_list import DiskList
from batchchat.evaluation.results.positions import current_records
from batchchat.evaluation.results.summary import whole_file
from batchchat.evaluation.results.variant_scores import NOT_JUDGED
from batchchat.evaluation.scorers.judging import Judge, JudgeScorer, Pairwise
from batchchat.evaluation.scorers.matching import text_of
from batchchat.evaluation.scorers.score_batch import Absent, Lists, ScoreBatch
from batchchat.evaluation.suite.suite import JudgeTask
from batchchat.joining import Identities
from batchchat.store import Output, is_output, read_state

_LINES = 10_000
"""Cases that wait in memory before they are written."""
_ID_BYTES = 16
"""Bytes of the digest of a case: of a billion cases, two have the same one with a chance below 10^-20."""
_OPEN = (None, NOT_JUDGED)
JudgedValue = tuple[float | None, str | None]
"""A value and its reason; either may be None."""
Verdicts = dict[bytes, tuple[Any, str | None]]
"""Verdict and reason of each case that was judged."""


class AnswerSource(NamedTuple):
    """A variant's answers: its name, its output (None where it has not begun), and the identities of its requests.

    `placeholder` stands for every answer that is still to come, in a plan.
    """

    name: str
    output: Output | None
    identities: Identities
    placeholder: str | None = None


class Asked:
    """Which cases stand for each position of a variant, or of a pair; `settled` has what needs no judge.

    A pair has two cases, one for each order of its answers.
    """

    def __init__(self, size: int, orders: int) -> None:
        self._ids: NDArray[np.uint8] = np.zeros((size, orders, _ID_BYTES), dtype=np.uint8)
        self._known = np.zeros(size, dtype=bool)
        self.settled: dict[int, JudgedValue] = {}

    def put(self, position: int, *cases: bytes) -> None:
        """Note the cases of a position."""
        self._ids[position] = [np.frombuffer(case, np.uint8) for case in cases]
        self._known[position] = True

    def positions(self) -> list[int]:
        """Return the positions with cases."""
        found: list[int] = np.flatnonzero(self._known).tolist()
        return found

    def items(self) -> Iterator[tuple[int, list[bytes]]]:
        """Positions with cases, and the cases."""
        for position in self.positions():
            yield position, [case.tobytes() for case in self._ids[position]]


@dataclass(slots=True)
class Cases:
    """The cases of one judge, by variant or by pair (a, b). `asked` counts the distinct ones."""

    task: JudgeTask
    of_variants: dict[str, Asked] = field(default_factory=dict)
    of_pairs: dict[tuple[str, str], Asked] = field(default_factory=dict)
    asked: int = 0


class _CaseFile:
    """Writes distinct cases to a Parquet file."""

    def __init__(self, path: Path, scorer: JudgeScorer) -> None:
        names = ["id", "input", *([] if scorer.expected is None else ["reference"]), *scorer.answers]
        self._schema = pa.schema([pa.field(name, pa.string()) for name in names])
        self._writer = pq.ParquetWriter(path, self._schema, compression="zstd")
        self._seen: set[bytes] = set()
        self._lines: list[list[str]] = []

    def __len__(self) -> int:
        return len(self._seen)

    def add(self, texts: Sequence[str]) -> bytes:
        """Add a case, unless it is there already; give its id."""
        digest = blake2b(digest_size=_ID_BYTES)
        clean = []
        for text in texts:
            # JSON may hold half of a surrogate pair, which has no place in UTF-8.
            data = text.encode("utf-8", "replace")
            # With the length, so that texts which are cut at other places make another case.
            digest.update(b"%d:" % len(data) + data)
            clean.append(data.decode())
        case = digest.digest()
        # Equal answers are judged once, whoever gave them: the same case has the same verdict.
        if case not in self._seen:
            self._seen.add(case)
            self._lines.append([case.hex(), *clean])
            if len(self._lines) >= _LINES:
                self._flush()
        return case

    def _flush(self) -> None:
        columns = [pa.array(column, pa.string()) for column in zip(*self._lines, strict=True)]
        if columns:
            self._writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=self._schema))
        self._lines = []

    def close(self) -> None:
        """Write what is left."""
        self._flush()
        self._writer.close()


class _Answers:
    """One variant's answers by position, in a temporary file: a pairwise judge takes two of them at a time."""

    def __init__(self, size: int) -> None:
        self._spill = DiskList()
        self._starts = np.full(size, -1, dtype=np.int64)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._spill.close()

    def put(self, position: int, answer: str | Absent) -> None:
        """Keep an answer, or why there is none."""
        self._starts[position] = self._spill.add([answer.reason] if isinstance(answer, Absent) else answer)

    def get(self, position: int) -> str | Absent | None:
        """Return the answer at a position; None if there is no record."""
        start = int(self._starts[position])
        if start < 0:
            return None
        found = self._spill.get(start)
        return Absent(found[0]) if isinstance(found, list) else str(found)


def shown_columns(scorer: JudgeScorer, prompted: Sequence[str]) -> tuple[str, ...]:
    """Return the columns of the input that a judge is shown: those it names, or those of the variants' prompts."""
    if scorer.show is not None:
        return tuple(scorer.show)
    return tuple(name for name in prompted if name not in {scorer.expected, scorer.gold})


def gather_cases(
    task: JudgeTask, path: Path, rows: CurrentRows, sources: Sequence[AnswerSource], shown: tuple[str, ...]
) -> Cases:
    """Write the cases of a judge to a file, whole or not at all.

    Arguments:
        task: the judge.
        path: the file, in Parquet.
        rows: the current input.
        sources: whose answers are judged.
        shown: the columns of the input that the judge sees.

    Returns which cases stand for which answers. Raises StorageError if the disk fails.
    """
    cases = Cases(task)
    with whole_file(path) as draft:
        file = _CaseFile(draft, task.scorer)
        try:
            gathering = _Gathering(task.scorer, rows, file, shown)
            if isinstance(task.scorer, Pairwise):
                gathering.pairs(task.scorer, sources, cases)
            else:
                for source in sources:
                    cases.of_variants[source.name] = gathering.variant(source)
        # Also after an error: an open writer would keep its file.
        finally:
            file.close()
    cases.asked = len(file)
    return cases


class _Gathering:
    def __init__(self, scorer: JudgeScorer, rows: CurrentRows, file: _CaseFile, shown: tuple[str, ...]) -> None:
        self.scorer = scorer
        self.rows = rows
        self.file = file
        self.shown = shown
        self.size = len(rows) * rows.samples
        self.columns = frozenset(shown) | scorer.inputs

    def variant(self, source: AnswerSource) -> Asked:
        """Write the cases of single answers, and return which they are."""
        asked = Asked(self.size, 1)
        on_failure = self.scorer.scale.low if self.scorer.failed == "wrong" else None
        for position, answer in self.answers(source):
            context = self.context(position)
            if isinstance(context, Absent):
                asked.settled[position] = (None, context.reason)
            elif isinstance(answer, Absent):
                asked.settled[position] = (on_failure, answer.reason)
            else:
                asked.put(position, self.file.add([*context, answer]))
        return asked

    def pairs(self, scorer: Pairwise, sources: Sequence[AnswerSource], cases: Cases) -> None:
        """Write the cases of two answers side by side, in both orders."""
        against = scorer.against
        wanted = [pair for pair in combinations(sources, 2) if against is None or against in {one.name for one in pair}]
        for a, b in wanted:
            # One pair at a time: two files of answers are open, however many variants there are.
            with _Answers(self.size) as first, _Answers(self.size) as second:
                for source, kept in ((a, first), (b, second)):
                    for position, answer in self.answers(source):
                        kept.put(position, answer)
                asked = cases.of_pairs[a.name, b.name] = Asked(self.size, 2)
                for position in range(self.size):
                    self.pair(asked, position, first.get(position), second.get(position))

    def pair(self, asked: Asked, position: int, one: str | Absent | None, other: str | Absent | None) -> None:
        """Write the cases of one position of a pair, or settle it if the outcome is known without asking."""
        if one is None or other is None:
            return
        if isinstance(one, Absent) or isinstance(other, Absent):
            asked.settled[position] = self.forfeit(one, other)
            return
        context = self.context(position)
        if isinstance(context, Absent):
            asked.settled[position] = (None, context.reason)
        elif one == other:
            # A tie by nature. A judge would be paid for it, and may still prefer the one that it sees first.
            asked.settled[position] = (0.0, "the same answer")
        else:
            asked.put(position, self.file.add([*context, one, other]), self.file.add([*context, other, one]))

    def forfeit(self, one: str | Absent, other: str | Absent) -> JudgedValue:
        """Return what a pair comes to if an answer is missing: the other one wins, unless failed rows do not count."""
        reasons = [
            f"{side}: {answer.reason}" for side, answer in (("a", one), ("b", other)) if isinstance(answer, Absent)
        ]
        # 1 if b has no answer, -1 if a has none, 0 if neither has one.
        value = float(isinstance(other, Absent)) - float(isinstance(one, Absent))
        return (value if self.scorer.failed == "wrong" else None), "; ".join(reasons)

    def answers(self, source: AnswerSource) -> Iterator[tuple[int, str | Absent]]:
        """Position and answer of every record, and in a plan the placeholders of those that are still to come."""
        scorer = self.scorer
        names = frozenset({"status", "error_kind", "error_message", scorer.field.partition(".")[0]})
        here = np.zeros(self.size, dtype=bool)
        if source.output is not None:
            for positions, batch, _ in current_records(source.output, source.identities, names):
                here[positions] = True
                scored = ScoreBatch(batch)
                lines = zip(positions.tolist(), scored.failures(), scored.answers(scorer.field), strict=True)
                for position, failure, answer in lines:
                    if failure is not None:
                        yield position, Absent(failure)
                    else:
                        yield position, answer if isinstance(answer, Absent) else text_of(answer)
        if source.placeholder is not None:
            for position in np.flatnonzero(~here).tolist():
                yield position, f"{source.name} {position} {source.placeholder}"

    def context(self, position: int) -> list[str] | Absent:
        """Return what stands beside the answers of a row: its input, and the expected value if one is wanted."""
        taken = self.rows.take([position // self.rows.samples], self.columns)
        row: dict[str, Any] = taken.rows()[0] if isinstance(taken, Lists) else taken[0]
        told = [(name, row.get(name)) for name in self.shown]
        single = len(told) == 1
        texts = [text_of(value) if single else f"{name}: {text_of(value)}" for name, value in told if value is not None]
        expected = self.scorer.expected
        if expected is None:
            return ["\n".join(texts)]
        if row.get(expected) is None:
            return Absent(f"the input has no {expected} here")
        return ["\n".join(texts), text_of(row[expected])]


def read_verdicts(task: JudgeTask) -> Verdicts:
    """Verdict and reason of each case that has been judged by the rubric as it is now.

    A case whose judgement failed has None for a verdict, and why.
    """
    directory = address_of(task.job.output.path)
    if not is_output(directory):
        return {}
    found: Verdicts = {}
    output = read_state(directory)
    columns = frozenset({"key", "status", "error_kind", "error_message", "parsed"})
    with read_rows([task.job], frozenset()) as rows:
        for _, batch, _ in current_records(output, rows.identities[0], columns):
            verdicts = ScoreBatch(batch)
            lines = zip(
                batch.column("key").to_pylist(), verdicts.failures(), batch.column("parsed").to_pylist(), strict=True
            )
            for key, failure, parsed in lines:
                told = (None, f"the judge {failure}") if failure is not None else (parsed["verdict"], parsed["reason"])
                found[bytes.fromhex(key)] = told
    return found


def single_outcomes(
    asked: Asked, scorer: Judge, verdicts: Mapping[bytes, tuple[Any, str | None]]
) -> dict[int, JudgedValue]:
    """Value and reason of each position of a variant."""
    found = dict(asked.settled)
    for position, (case,) in asked.items():
        verdict, reason = verdicts.get(case, _OPEN)
        found[position] = (None if verdict is None else scorer.value(verdict), reason)
    return found


def pair_outcomes(asked: Asked, verdicts: Verdicts) -> dict[int, JudgedValue]:
    """Return what each position of a pair comes to: 1 if a wins in both orders, -1 if b does, else 0."""
    found = dict(asked.settled)
    for position, (straight, swapped) in asked.items():
        first, reason = verdicts.get(straight, _OPEN)
        second, other = verdicts.get(swapped, _OPEN)
        if first is None or second is None:
            found[position] = (None, reason if first is None else other)
            continue
        winners = {"A": "a", "B": "b"}.get(first, "tie"), {"A": "b", "B": "a"}.get(second, "tie")
        # Who wins only in one order wins by its place: judges tend to one of the two.
        if winners[0] == winners[1]:
            found[position] = ({"a": 1.0, "b": -1.0}.get(winners[0], 0.0), reason)
        else:
            orders = f"{winners[0]} where a stands first ({reason}), {winners[1]} where b does ({other})"
            found[position] = (0.0, f"the orders disagree: {orders}")
    return found
