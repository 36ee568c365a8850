"""What an output holds, added up batch by batch: memory does not grow with the number of records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import field

import pyarrow as pa
import pyarrow.compute as pc

from batchchat.dataclass import dataclass
from batchchat.format import one_line
from batchchat.report.distribution import Distribution, ValueCounts
from batchchat.report.label_counts import LabelCounter, LabelCounts
from batchchat.report.timeline import Timeline
from batchchat.store import Output

_EXAMPLES = 3
"""Different messages that are shown of each kind of failure."""
_MESSAGE_LETTERS = 400
"""Characters of each: what is wrong stands at its beginning, often with a whole page of a gateway behind it."""
_MEASURED = ("latency_s", "ttft_s", "output_tokens_per_s", "prompt_tokens", "completion_tokens")
_TALLIED = (
    *("finish_reason", "model", "system_fingerprint", "service_tier"),
    *("attempts", "corrections", "tolerated", "cache_hit"),
)
_SUMMED = ("prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens", "cost")
_FAILURE = ("error_kind", "error_message", "http_status", "row_index", "key")
_ALWAYS = ("status", "finished_at")


@dataclass(frozen=True, slots=True)
class Example:
    """One failed row."""

    row_index: int
    key: str | None
    message: str


@dataclass(slots=True)
class FailureKind:
    """Failed rows of one kind, the HTTP statuses they came with, and a few different examples."""

    kind: str
    count: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    examples: list[Example] = field(default_factory=list)


@dataclass(slots=True)
class RecordTotals:
    """All live records of an output, added up."""

    ok: int = 0
    failed: int = 0
    sums: dict[str, float | None] = field(default_factory=lambda: dict.fromkeys(_SUMMED))
    measured: dict[str, Distribution] = field(default_factory=dict)
    tallied: dict[str, ValueCounts] = field(default_factory=dict)
    kinds: dict[str, FailureKind] = field(default_factory=dict)
    timeline: Timeline = field(default_factory=Timeline)
    labels: list[LabelCounts] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """How many records there are."""
        return self.ok + self.failed

    @property
    def failures(self) -> list[FailureKind]:
        """The kinds of failures, the most frequent one first."""
        return sorted(self.kinds.values(), key=lambda kind: (-kind.count, kind.kind))

    def add(self, batch: pa.RecordBatch) -> None:
        """Add a batch of records."""
        is_ok = pc.equal(batch.column("status"), "ok")
        ok = batch.filter(is_ok)
        self.ok += ok.num_rows
        self.failed += batch.num_rows - ok.num_rows
        self.timeline.add(batch)
        for name, distribution in self.measured.items():
            distribution.add(ok.column(name))
        for name, tally in self.tallied.items():
            tally.add(ok.column(name))
        for name in _SUMMED:
            value = pc.sum(batch.column(name)).as_py()
            if value is not None:
                self.sums[name] = (self.sums[name] or 0) + value
        # Most batches have no failed row, and grouping costs as much as all the sums.
        if ok.num_rows < batch.num_rows:
            self._add_failed(batch.filter(pc.invert(is_ok)))

    def _add_failed(self, batch: pa.RecordBatch) -> None:
        groups = pa.table(batch.select(["error_kind", "http_status"])).group_by(["error_kind", "http_status"])
        for row in groups.aggregate([([], "count_all")]).to_pylist():
            name = row["error_kind"] or "unknown"
            kind = self.kinds.setdefault(name, FailureKind(name))
            kind.count += row["count_all"]
            if row["http_status"] is not None:
                kind.statuses[row["http_status"]] += row["count_all"]
        for kind in self.kinds.values():
            if len(kind.examples) < _EXAMPLES:
                of_kind = pc.equal(pc.fill_null(batch.column("error_kind"), "unknown"), kind.kind)
                kind.examples += _examples(batch.filter(of_kind), {example.message for example in kind.examples})
                del kind.examples[_EXAMPLES:]


def _examples(batch: pa.RecordBatch, known: set[str]) -> Iterator[Example]:
    """Records with messages that are not known yet. Equal messages are met once, so few are looked at."""
    for row in batch.slice(0, 1_000).select(["row_index", "key", "error_message"]).to_pylist():
        message = one_line(row["error_message"] or "", _MESSAGE_LETTERS)
        if message not in known:
            known.add(message)
            yield Example(row["row_index"], row["key"], message)


def outcome_of(output: Output) -> RecordTotals:
    """Read all live records of an output once, and its completions as long as they look like labels."""
    schema = output.schema
    found = RecordTotals()
    if schema is None:
        return found
    found.measured = {name: Distribution() for name in _MEASURED if name in output.own_columns}
    found.tallied = {name: ValueCounts() for name in _TALLIED if name in output.own_columns}
    columns = dict.fromkeys([*_ALWAYS, *_FAILURE, *_SUMMED, *found.measured, *found.tallied])
    for batch in output.records(list(columns)):
        found.add(batch)
    labels = LabelCounter(schema)
    for batch in output.records(["status", *labels.columns]):
        labels.add(batch.filter(pc.equal(batch.column("status"), "ok")))
        # Everything turned out to be free text: the rest of the records can tell no more.
        if not labels.columns:
            break
    found.labels = labels.found()
    return found
