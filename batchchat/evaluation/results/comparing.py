"""Comparing two existing outputs: two nights, two versions of a prompt, two models. Blocking code; sends nothing.

Rows are matched by the records' keys, or by a column or the row number where asked to; what is told is about the rows
that both outputs have. Without any scorer it tells how often the answers agree, and compares what every record has:
whether it has a completion, length, tokens, cost and latency. Expected values are those that the second output carries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from batchchat.addresses import is_url
from batchchat.dataclass import dataclass
from batchchat.errors import UsageError
from batchchat.evaluation.results.current_rows import CurrentRows, WholeRows
from batchchat.evaluation.results.positions import Positions, current_records
from batchchat.evaluation.results.suite_results import SuiteResults
from batchchat.evaluation.results.summary import SUMMARY_NAME, SuiteSummary, VariantSummary
from batchchat.evaluation.results.variant_scores import VariantScores
from batchchat.evaluation.scorers.answer_scorers import read_scorer
from batchchat.evaluation.scorers.matching import text_of
from batchchat.evaluation.scorers.record_scorers import Cost, Latency, Length
from batchchat.evaluation.scorers.score_batch import Absent, ScoreBatch, Scores, check_column
from batchchat.evaluation.scorers.scorer import AnswerScorer, Scorer, scores_of
from batchchat.evaluation.statistics.comparison import ScoreSummary, summarize
from batchchat.evaluation.statistics.intervals import SEED
from batchchat.evaluation.statistics.unit import YES_NO, ScoreUnit
from batchchat.format import plural
from batchchat.job import job_of
from batchchat.job.syntax import parse_yaml
from batchchat.job.values import nearest
from batchchat.records import RECORD_COLUMNS
from batchchat.store import Output, read_state

KEY, ROW_INDEX = "key", "row_index"
_EXAMPLES = 5
"""Rows that differ and are shown with both answers."""
_UNSET = np.uint64(0)


class HasCompletion(Scorer):
    """Right where a row has a completion."""

    kind: Literal["answered"] = "answered"
    SCALE: ClassVar[ScoreUnit] = YES_NO

    @property
    def columns(self) -> frozenset[str]:
        """Status and reason of a record."""
        return frozenset({"status", "error_kind", "error_message"})

    def score(self, batch: ScoreBatch) -> Scores:
        """1 for a completion, 0 for a failure."""
        return scores_of([(float(failure is None), failure) for failure in batch.failures()])


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A row to which the two outputs give different answers; None where one has none."""

    row: str
    a: str | None
    b: str | None


@dataclass(frozen=True, slots=True)
class Agreement:
    """How often both outputs give the same answer to a row that both have an answer to.

    `same` and `different` count answers, `share` is the mean of rows with its 95 % interval. `examples` are the first
    rows that differ.
    """

    field: str
    same: int
    different: int
    share: ScoreSummary
    examples: tuple[Disagreement, ...] = ()


@dataclass(frozen=True, slots=True)
class OutputComparison:
    """Two outputs side by side, over the rows that both have. `only_a` and `only_b` count the others.

    `summary` has the outputs as its variants, `a` and `b`.
    """

    a: str
    b: str
    on: str
    rows: int
    only_a: int
    only_b: int
    agreement: Agreement
    summary: SuiteSummary


def standard_scorers() -> list[Scorer]:
    """Return what is compared in any case: what every record has."""
    return [
        HasCompletion(name="answered"),
        Length(name="length"),
        Length(name="tokens", unit="tokens"),
        Cost(name="cost"),
        Latency(name="latency"),
    ]


def compare_outputs(
    a: Path,
    b: Path,
    *,
    on: str | None = None,
    field: str = "completion",
    scorers: Sequence[Scorer] = (),
    cluster: str | None = None,
    seed: int = SEED,
) -> OutputComparison:
    """Compare two outputs row by row.

    Arguments:
        a, b: their folders.
        on: what tells rows apart: `key`, `row_index`, or a column of the input; None for the key, which both must have.
        field: what counts as the answer: a dotted path, or `PATH=PATH` for a path of each output.
        scorers: score both; those without a `field` of their own judge that one.
        cluster: an input column: rows with the same value there are one piece of evidence.
        seed: of resampling.

    Raises UsageError if a folder is no output, rows cannot be matched, or a scorer reads a column that is not there.
    """
    sides = [_Side(_open(a), a), _Side(_open(b), b)]
    fields = _fields(field, sides)
    by = _matching(sides, on)
    with _Shared(sides, by, scorers, cluster) as shared:
        agreement = shared.agreement(field, fields, seed)
        summary = shared.summary(scorers, fields, seed)
    return OutputComparison(
        a=str(a),
        b=str(b),
        on=by,
        rows=len(shared.rows),
        only_a=shared.only[0],
        only_b=shared.only[1],
        agreement=agreement,
        summary=summary,
    )


def read_scorer_text(text: str) -> Scorer:
    """Read a scorer as the command line names it: `KIND:COLUMN`, or a mapping as in a suite. Raises UsageError."""
    kind, colon, column = text.partition(":")
    # A mapping in braces has colons too.
    if colon and text.lstrip()[:1] != "{":
        return read_scorer({"name": kind, "kind": kind, "expected": column})
    data = parse_yaml(text, Path("--scorer")).data
    if not isinstance(data, dict):
        raise UsageError(
            f"--scorer {text}: is neither KIND:COLUMN nor a mapping",
            remedy="Example: --scorer exact:label, or --scorer '{name: found, kind: contains, value: yes}'",
        )
    return read_scorer(data)


def _open(directory: Path | str) -> Output:
    folder = Path(directory)
    # Evaluations are written to folders alone: a bucket holds none, and need not be asked.
    if not is_url(directory) and (folder / SUMMARY_NAME).is_file() and (folder / "variants").is_dir():
        raise UsageError(
            f"{directory} is an evaluation, not the output of one job",
            remedy=f"Give a variant's folder inside {folder / 'variants'}, or use --fail-if-worse-than to compare "
            "evaluations.",
        )
    output = read_state(directory)
    if output.schema is None:
        raise UsageError(f"{directory} holds no records yet", remedy="Run its job first.")
    return output


class _Side:
    """One of the two outputs."""

    def __init__(self, output: Output, directory: Path | str) -> None:
        self.output = output
        self.directory = directory
        self.job = job_of(output.job)
        assert output.schema is not None  # noqa: S101 - `_open` looked
        self.names: list[str] = output.schema.names

    @property
    def keyed(self) -> bool:
        """Whether its job names a key."""
        return self.job.input.key is not None

    def column_of(self, name: str) -> str:
        """Return the output's column that carries an input column."""
        own = name in RECORD_COLUMNS or name == "parsed"
        # The store renames an input column that has the name of one of its own.
        return f"input_{name}" if own and f"input_{name}" in self.names else name

    def carried(self) -> list[str]:
        """Return the columns that carry the input."""
        return [name for name in self.names if name not in RECORD_COLUMNS and name != "parsed"]


def _fields(text: str, sides: Sequence[_Side]) -> list[str]:
    """Return the path of each side's answers. Raises UsageError if an output has no such column."""
    first, equals, second = text.partition("=")
    fields = [first.strip(), second.strip() if equals else first.strip()]
    for side, path in zip(sides, fields, strict=True):
        column = path.partition(".")[0]
        if column not in side.names:
            raise UsageError(
                f"--field {text}: {side.directory} has no column {column!r}{nearest(column, side.names)}",
                remedy=f"It has: {', '.join(side.names)}. If the answers of both stand at different places, name both: "
                "--field completion=parsed.label",
            )
    return fields


def _matching(sides: Sequence[_Side], on: str | None) -> str:
    """What rows are matched by, once it is known to be there on both sides."""
    if on is None:
        # Row numbers are no default: two inputs of different order would be compared row by wrong row.
        if not all(side.keyed for side in sides):
            without = next(side for side in sides if not side.keyed)
            raise UsageError(
                f"the rows of {without.directory} have no keys to be matched by",
                remedy="Name a column that tells rows apart: --on COLUMN; or --on row_index where both inputs have the "
                "same rows in the same order.",
            )
        return KEY
    for side in sides:
        if on not in (KEY, ROW_INDEX) and side.column_of(on) not in side.carried():
            known = side.carried()
            raise UsageError(
                f"--on {on}: {side.directory} has no such column{nearest(on, known)}",
                remedy=f"It has: {', '.join([KEY, ROW_INDEX, *known])}.",
            )
        if on == KEY and not side.keyed:
            raise UsageError(f"--on key: the job of {side.directory} names no key", remedy="Name a column instead.")
    return on


class _RowFinder:
    """Finds the position of a record by what rows are matched by."""

    def __init__(self, column: str, numbers: Mapping[str, int], samples: int) -> None:
        self.columns = frozenset({column, "sample_index"})
        self.samples = samples
        self._column = column
        self._numbers = numbers

    def locate(self, batch: pa.RecordBatch) -> Positions:
        """Return the position of each record, -1 if the other output has no such row."""
        found = np.fromiter(
            (self._numbers.get(_text(value), -1) for value in batch.column(self._column).to_pylist()),
            np.int64,
            batch.num_rows,
        )
        samples = batch.column("sample_index").to_numpy(zero_copy_only=False)
        return np.where(found < 0, -1, found * self.samples + samples)


def _text(value: Any) -> str:
    return "" if value is None else str(value)


class _Shared:
    """The rows that both outputs have, in the order of the second one's input."""

    def __init__(self, sides: Sequence[_Side], by: str, scorers: Sequence[Scorer], cluster: str | None) -> None:
        self.sides = sides
        self.cluster = cluster
        self.notes: list[str] = []
        columns = [side.column_of(by) if by not in (KEY, ROW_INDEX) else by for side in sides]
        found = [self._rows_of(side, column) for side, column in zip(sides, columns, strict=True)]
        # A fixed order: intervals from random draws would else differ between two equal calls.
        keys = sorted(found[0].keys() & found[1].keys(), key=found[1].__getitem__)
        self.only = tuple(len(rows) - len(keys) for rows in found)
        if not keys:
            told = "".join(f"\n{note}" for note in self.notes)
            raise UsageError(
                f"the two outputs have no row in common, matched by {by}{told}",
                remedy="Name what tells rows apart with --on COLUMN.",
            )
        numbers = {key: number for number, key in enumerate(keys)}
        # The output with fewer has none in the places of the others, which are left out of pairs.
        samples = max(side.job.samples for side in sides)
        self.finders = [_RowFinder(column, numbers, samples) for column in columns]
        reads = [scorer.inputs for scorer in scorers]
        wanted = sorted(frozenset[str]().union(*(names for names in reads if names is not None)))
        for name in wanted:
            check_column(sides[1].column_of(name), sides[1].carried(), f"{sides[1].directory}, which a scorer reads")
        if cluster is not None:
            place = f"{sides[1].directory}, which --cluster names"
            check_column(sides[1].column_of(cluster), sides[1].carried(), place)
            wanted = sorted({*wanted, cluster})
        self.rows = CurrentRows(
            samples=samples,
            all_of_input=True,
            row_index=np.array([found[1][key] for key in keys], dtype=np.int64),
            keys=pa.array(keys, pa.string()),
            identities=[],
            _columns=self._expected(wanted, len(keys)),
            _whole=self._whole(len(keys)) if None in reads else None,
        )

    def __enter__(self) -> _Shared:
        return self

    def __exit__(self, *_error: object) -> None:
        self.rows.close()

    def _rows_of(self, side: _Side, column: str) -> dict[str, int]:
        """Row number by what rows are matched by; what is null, or not in one row only, is left out and told."""
        rows: dict[str, int] = {}
        seen: set[tuple[str, int]] = set()
        repeated: set[str] = set()
        for batch in side.output.records(list(dict.fromkeys([column, ROW_INDEX, "sample_index"]))):
            lines = zip(*(batch.column(name).to_pylist() for name in (column, ROW_INDEX, "sample_index")), strict=True)
            for value, row_index, sample in lines:
                key = _text(value)
                rows[key] = row_index
                if (key, sample) in seen:
                    repeated.add(key)
                seen.add((key, sample))
        # An empty key names no row, and one of several rows names none of them.
        left = repeated | {""}
        dropped = [key for key in left if rows.pop(key, None) is not None]
        if dropped:
            what = "empty" if dropped == [""] else "the same in several rows, or empty"
            verb = "is" if len(dropped) == 1 else "are"
            told = f"{plural(len(dropped), 'value')} of {column} {verb} {what}: those rows are left out"
            self.notes.append(f"{side.directory}: {told}")
        return rows

    def _expected(self, names: Sequence[str], size: int) -> dict[str, list[Any]]:
        """The input columns that scorers read, as the second output carries them."""
        carried: list[dict[str, list[Any]]] = []
        for side, finder in zip(self.sides, self.finders, strict=True):
            here = {name: side.column_of(name) for name in names if side.column_of(name) in side.names}
            values: dict[str, list[Any]] = {name: [None] * size for name in here}
            if here:
                for positions, batch, _ in current_records(side.output, finder, frozenset(here.values())):
                    for name, column in here.items():
                        for position, value in zip(positions.tolist(), batch.column(column).to_pylist(), strict=True):
                            values[name][position // finder.samples] = value
            carried.append(values)
        # Both are scored by the same expected values; that these were edited in between must not go unseen.
        for name in names:
            changed = sum(one != other for one, other in zip(carried[0].get(name, []), carried[1][name], strict=False))
            if changed:
                where = f"that of {self.sides[1].directory} counts for both"
                self.notes.append(f"{name} differs in {plural(changed, 'row')}: {where}")
        return carried[1]

    def _whole(self, size: int) -> WholeRows:
        """Whole input rows, as the second output carries them."""
        side, finder = self.sides[1], self.finders[1]
        rows: list[dict[str, Any] | None] = [None] * size
        for positions, batch, _ in current_records(side.output, finder, frozenset(side.carried())):
            lines = batch.select([name for name in batch.schema.names if name in side.carried()]).to_pylist()
            for position, line in zip(positions.tolist(), lines, strict=True):
                rows[position // finder.samples] = line
        whole = WholeRows()
        for row in rows:
            whole.add(row)
        return whole

    # --- what is told

    def agreement(self, field: str, fields: Sequence[str], seed: int) -> Agreement:
        """Return how often the answers at a path of each output are the same; `field` is how both are called."""
        size = len(self.rows) * self.rows.samples
        clusters = None if self.cluster is None else self.rows.clusters(self.cluster)
        digests = [self._digests(number, path, size) for number, path in enumerate(fields)]
        both = (digests[0] != _UNSET) & (digests[1] != _UNSET)
        same = digests[0] == digests[1]
        values = np.where(both, same.astype(np.float64), np.nan).reshape(-1, self.rows.samples)
        differing = np.flatnonzero(both & ~same)[:_EXAMPLES]
        texts = [self._texts(number, path, differing) for number, path in enumerate(fields)]
        keys = self.rows.keys
        assert keys is not None  # noqa: S101 - rows are matched by something
        examples = [
            Disagreement(keys[position // self.rows.samples].as_py(), texts[0].get(position), texts[1].get(position))
            for position in differing.tolist()
        ]
        share = summarize(values, YES_NO, seed=seed, clusters=clusters)
        count = int(both.sum())
        right = int((both & same).sum())
        return Agreement(field, right, count - right, share, tuple(examples))

    def _answers(self, number: int, field: str) -> Any:
        names = frozenset({"status", "error_kind", "error_message", field.partition(".")[0]})
        for positions, batch, _ in current_records(self.sides[number].output, self.finders[number], names):
            scored = ScoreBatch(batch)
            yield from zip(positions.tolist(), scored.failures(), scored.answers(field), strict=True)

    def _digests(self, number: int, field: str, size: int) -> NDArray[np.uint64]:
        """A digest of each answer by position; 0 where there is none."""
        found = np.zeros(size, dtype=np.uint64)
        for position, failure, answer in self._answers(number, field):
            if failure is None and not isinstance(answer, Absent):
                digest = blake2b(text_of(answer).encode("utf-8", "replace"), digest_size=8).digest()
                # 0 stands for no answer.
                found[position] = int.from_bytes(digest, "little") or 1
        return found

    def _texts(self, number: int, field: str, positions: Positions) -> dict[int, str]:
        wanted = set(positions.tolist())
        return {
            position: text_of(answer)
            for position, failure, answer in self._answers(number, field)
            if position in wanted and failure is None and not isinstance(answer, Absent)
        }

    def summary(self, scorers: Sequence[Scorer], fields: Sequence[str], seed: int) -> SuiteSummary:
        """Return both outputs by all scorers, those asked for first."""
        names = {scorer.name for scorer in scorers}
        every = [*scorers, *(one for one in standard_scorers() if one.name not in names)]
        of_sides = [[_at(scorer, path) for scorer in every] for path in fields]
        for side, own in zip(self.sides, of_sides, strict=True):
            for scorer in own:
                scorer.check(side.names, [*self.sides[1].carried(), *(scorer.inputs or ())])
        sheets = []
        for name, side, finder, own in zip("ab", self.sides, self.finders, of_sides, strict=True):
            sheet = VariantScores(name, self.rows)
            sheet.read(side.output, finder, own)
            sheets.append(sheet)
        variants = [_variant(*one) for one in zip(self.sides, sheets, strict=True)]
        findings = SuiteResults(sheets, variants, seed=seed, cluster=self.cluster)
        for scorer in every:
            findings.add(scorer)
        return SuiteSummary(
            name=f"{self.sides[0].directory} and {self.sides[1].directory}",
            samples=self.rows.samples,
            seed=seed,
            input=self.sides[1].job.input.path,
            cluster=self.cluster,
            scorers=tuple(findings.scorers),
            variants=tuple(findings.variants),
            comparisons=tuple(findings.comparisons),
            notes=tuple(self.notes),
        )


def _at(scorer: Scorer, path: str) -> Scorer:
    """Return a scorer of answers that judges what stands at a path, unless it names a `field` itself."""
    if isinstance(scorer, AnswerScorer) and "field" not in scorer.model_fields_set:
        return scorer.model_copy(update={"field": path})
    return scorer


def _variant(side: _Side, sheet: VariantScores) -> VariantSummary:
    provider, totals = side.job.resolved_provider(), sheet.totals
    return VariantSummary(
        name=sheet.name,
        folder=str(side.directory),
        overrides={},
        model=side.job.model,
        provider=provider.name,
        rows=sheet.rows_answered,
        open=0,
        failed=totals.failures.total(),
        failures=dict(sorted(totals.failures.items())),
        cost=totals.cost,
        currency=provider.currency if totals.cost is not None else None,
        prompt_tokens=totals.prompt_tokens,
        completion_tokens=totals.completion_tokens,
        latency_p50_s=totals.latency(0.5),
        latency_p95_s=totals.latency(0.95),
    )
