"""What an evaluation found, and the files that hold it.

    DIR/summary.json           means with intervals, costs, comparisons; `SuiteSummary` is its form in Python
    DIR/scores.parquet         every single score with its reason, see `batchchat.evaluation.results.variant_scores`
    DIR/pairwise.parquet       what pairwise judges said, row by row, likewise
    DIR/variants/<folder>/     each variant's records: an output like that of any run
    DIR/judges/<name>/         each judge's own requests and verdicts, likewise

    {"version": 1, "name", "samples", "seed", "input", "cluster",
     "scorers": [{"name", "kind", "unit", "higher_is_better", "field", "expected"}],
     "variants": [{"name", "folder", "overrides", "model", "provider", "rows", "open", "failed", "failures": {KIND: n},
                   "cost", "currency", "prompt_tokens", "completion_tokens", "latency_p50_s", "latency_p95_s",
                   "scores": {NAME: {"mean", "ci_low", "ci_high", "n", "unit", "higher_is_better", "ci_method",
                                     "nulls", "seed", "reason", "clusters"}},
                   "classes": {SCORER: {"accuracy", "macro_f1", "n", "classes": [{"label", "precision", …}],
                                        "given": [LABEL, …], "confusion": [[n, …], …]}}}],
     "comparisons": [{"a", "b", "scorer", "difference", "ci_low", "ci_high", "p_value", "p_adjusted", "test",
                      "wins_a", "wins_b", "ties", "n", "nulls", "flips_to_a", "flips_to_b", "needed_n", "clusters",
                      "margin", "equivalent", …}],
     "judges": [{"name", "folder", "model", "requests", "failed", "cost", "currency",
                 "agreement": [{"among", "n", "rows", "accuracy", "kappa", "alpha"}]}],
     "notes": [TEXT, …],
     "sequential": null, or {"score", "margin", "seed", "plan": [ROWS, …], "looks", "rows", "settled",
                             "dropped": {VARIANT: ROWS}, "asked", "fixed"}}

`difference` is a - b. What cannot be computed is null, and `reason` says why; NaN is never written. `failed` and `open`
count answers: samples of rows. The same records, inputs and scorers give the same bytes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, field, fields
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from batchchat.dataclass import dataclass
from batchchat.errors import StorageError, UsageError
from batchchat.evaluation.results.variant_scores import PAIRWISE_SCHEMA, SCORES_SCHEMA
from batchchat.evaluation.statistics.classification import ClassReport, ClassScore
from batchchat.evaluation.statistics.comparison import Comparison, ScoreSummary
from batchchat.store.json_files import json_bytes
from batchchat.store.location.disk import storage_errors, synchronize, synchronize_folder

VERSION = 1
SUMMARY_NAME, SCORES_NAME, PAIRWISE_NAME = "summary.json", "scores.parquet", "pairwise.parquet"


@dataclass(frozen=True, slots=True)
class ScorerSummary:
    """One score by its full name: what it measures, and where it looks."""

    name: str
    kind: str
    unit: str
    higher_is_better: bool | None
    field: str | None = None
    expected: str | None = None


@dataclass(frozen=True, slots=True)
class VariantSummary:
    """One variant: what it changes, what its answers cost, and its scores by name."""

    name: str
    folder: str
    overrides: Mapping[str, Any]
    model: str
    provider: str
    rows: int
    open: int
    failed: int
    failures: Mapping[str, int]
    cost: float | None
    currency: str | None
    prompt_tokens: int
    completion_tokens: int
    latency_p50_s: float | None
    latency_p95_s: float | None
    scores: Mapping[str, ScoreSummary] = field(default_factory=dict)
    classes: Mapping[str, ClassReport] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AgreementMeasure:
    """A measure of agreement with its 95 % interval. What is not known is None, with a `reason`."""

    value: float | None
    ci_low: float | None
    ci_high: float | None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class JudgeAgreement:
    """How far a judge agrees with the right verdicts: `among` names them, `people` or `column NAME`.

    `n` counts verdicts, `rows` the rows that they are about, None if that is not known: reviews are about cases.
    """

    among: str
    n: int
    rows: int | None
    accuracy: AgreementMeasure
    kappa: AgreementMeasure
    alpha: AgreementMeasure


@dataclass(frozen=True, slots=True)
class JudgeSummary:
    """What a judge was asked, and what its verdicts cost so far.

    `agreement` tells how far they agree with right ones, as far as any are known.
    """

    name: str
    folder: str
    model: str
    requests: int
    failed: int
    cost: float | None
    currency: str | None
    agreement: tuple[JudgeAgreement, ...] = ()


@dataclass(frozen=True, slots=True)
class SequentialSummary:
    """How far an evaluation came that stops when it is settled.

    `score` decides, with its `margin`. `seed` gave the order of the rows, and `plan` has the rows at each look. `looks`
    of them were taken, the last one at `rows` rows. `dropped` tells after how many rows a variant was surely worse.
    `asked` counts the answers that are there, `fixed` those of all variants on all rows.
    """

    score: str
    margin: float | None
    seed: int
    plan: tuple[int, ...]
    looks: int
    rows: int
    settled: bool
    dropped: Mapping[str, int]
    asked: int
    fixed: int

    @property
    def saved(self) -> float:
        """Return the share of the answers that were not needed."""
        return 1 - self.asked / self.fixed if self.fixed else 0.0

    @property
    def ended(self) -> bool:
        """Return whether no more rows are to be asked."""
        return self.settled or self.looks == len(self.plan)


@dataclass(frozen=True, slots=True)
class SuiteSummary:
    """All that an evaluation found. `notes` are what a person should know before believing the numbers.

    With `sequential`, the comparisons of its score are those of the look that settled a pair, or of the last look:
    intervals and p values are adjusted for all looks and pairs.
    """

    name: str
    samples: int
    seed: int
    input: str
    scorers: tuple[ScorerSummary, ...]
    variants: tuple[VariantSummary, ...]
    comparisons: tuple[Comparison, ...]
    judges: tuple[JudgeSummary, ...] = ()
    notes: tuple[str, ...] = ()
    cluster: str | None = None
    sequential: SequentialSummary | None = None

    def of(self, scorer: str) -> list[Comparison]:
        """Return the comparisons by one scorer."""
        return [comparison for comparison in self.comparisons if comparison.scorer == scorer]

    def as_json(self) -> dict[str, Any]:
        """Return the content of `summary.json`."""
        return {"version": VERSION, **asdict(self)}


def from_json(data: Mapping[str, Any]) -> SuiteSummary:
    """Return the summary that `as_json` made. Raises KeyError, TypeError or ValueError if it is none."""
    if data["version"] != VERSION:
        raise ValueError(f"its version is {data['version']!r}, and this batchchat reads version {VERSION}")
    known = _known(SuiteSummary, data)
    known["scorers"] = tuple(ScorerSummary(**_known(ScorerSummary, one)) for one in data["scorers"])
    known["variants"] = tuple(_variant(one) for one in data["variants"])
    known["comparisons"] = tuple(Comparison(**_known(Comparison, one)) for one in data["comparisons"])
    known["judges"] = tuple(_judge(one) for one in data["judges"])
    known["notes"] = tuple(data["notes"])
    if known.get("sequential") is not None:
        told = _known(SequentialSummary, known["sequential"])
        known["sequential"] = SequentialSummary(**{**told, "plan": tuple(told["plan"])})
    return SuiteSummary(**known)


def _variant(data: Mapping[str, Any]) -> VariantSummary:
    known = _known(VariantSummary, data)
    known["scores"] = {name: ScoreSummary(**_known(ScoreSummary, one)) for name, one in data["scores"].items()}
    known["classes"] = {name: _classes(one) for name, one in data["classes"].items()}
    return VariantSummary(**known)


def _judge(data: Mapping[str, Any]) -> JudgeSummary:
    known = _known(JudgeSummary, data)
    # An earlier version measured no agreement.
    known["agreement"] = tuple(_agreement(one) for one in data.get("agreement") or ())
    return JudgeSummary(**known)


def _agreement(data: Mapping[str, Any]) -> JudgeAgreement:
    known = _known(JudgeAgreement, data)
    for name in ("accuracy", "kappa", "alpha"):
        known[name] = AgreementMeasure(**_known(AgreementMeasure, data[name]))
    return JudgeAgreement(**known)


def _classes(data: Mapping[str, Any]) -> ClassReport:
    known = _known(ClassReport, data)
    known["classes"] = tuple(ClassScore(**_known(ClassScore, one)) for one in data["classes"])
    known["given"] = tuple(data["given"])
    known["confusion"] = tuple(tuple(line) for line in data["confusion"])
    return ClassReport(**known)


def _known(kind: type[Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that this version knows; a later one may have added others."""
    names = {one.name for one in fields(kind)}
    return {name: value for name, value in data.items() if name in names}


def read_summary(directory: Path) -> SuiteSummary:
    """Read the summary in a suite's output folder. Raises UsageError if there is none that can be read."""
    path = directory / SUMMARY_NAME
    try:
        return from_json(orjson.loads(path.read_bytes()))
    except FileNotFoundError:
        raise UsageError(
            f"{directory} is no scored evaluation: it has no {SUMMARY_NAME}",
            remedy="Give the `output` folder of a suite that `batchchat eval` or `batchchat score` has been through.",
        ) from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path} is no summary of an evaluation: {error}") from None


def write_summary(directory: Path, summary: SuiteSummary) -> None:
    """Write `summary.json`, whole or not at all. Raises StorageError."""
    data = json_bytes(summary.as_json(), indent=True, default=str)
    with whole_file(directory / SUMMARY_NAME) as draft:
        draft.write_bytes(data)


def write_scores(directory: Path, batches: Iterable[pa.RecordBatch]) -> None:
    """Write `scores.parquet`, whole or not at all. Raises StorageError."""
    with (
        whole_file(directory / SCORES_NAME) as draft,
        pq.ParquetWriter(draft, SCORES_SCHEMA, compression="zstd") as writer,
    ):
        for batch in batches:
            writer.write_batch(batch)


def read_scores(directory: Path) -> pa.Table:
    """Return all lines of `scores.parquet`. Raises StorageError if it cannot be read."""
    return _read_table(directory / SCORES_NAME, SCORES_SCHEMA)


def read_pairwise(directory: Path) -> pa.Table:
    """Return all lines of `pairwise.parquet`, none if no judge compares. Raises StorageError if it cannot be read."""
    return _read_table(directory / PAIRWISE_NAME, PAIRWISE_SCHEMA)


def _read_table(path: Path, schema: pa.Schema) -> pa.Table:
    if not path.exists():
        return schema.empty_table()
    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise StorageError(f"{path} cannot be read: {error}", remedy="Score the suite again.") from error


def write_pairwise(directory: Path, batches: Iterable[pa.RecordBatch] | None) -> None:
    """Write `pairwise.parquet`, whole or not at all; without batches, take an earlier one away. Raises StorageError."""
    path = directory / PAIRWISE_NAME
    if batches is None:
        with storage_errors(path):
            path.unlink(missing_ok=True)
        return
    with whole_file(path) as draft, pq.ParquetWriter(draft, PAIRWISE_SCHEMA, compression="zstd") as writer:
        for batch in batches:
            writer.write_batch(batch)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a name to write under; at the block's end the file takes its own name, whole and on the disk.

    Raises StorageError where the disk refuses.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    with storage_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield draft
            with draft.open("rb") as file:
                synchronize(file.fileno())
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
        synchronize_folder(path.parent)
