"""The answers of all variants, row by row, packed for a page: blocks of texts, and an index to filter and sort by.

A block is a JSON array of some hundred rows, compressed; the page opens the blocks that it shows or searches. The
index holds what filters and orders need of every row, in columns. A page is bounded: beyond `MOST_ROWS` rows (fewer
where there are many variants) those are shown on which variants differ, then an even choice of the others; long texts
are cut, and cut shorter where all of them would be too much.

In a row, `m` are its different prompts (lists of [role, text]), `u` tells for each variant which prompt it was asked
with, and `a` holds for each variant its samples: `t` text, `e` failure, `c` tool calls, `x` refusal, `r` reasoning,
`f` finish reason, `n` a note in place of messages, `s` scores as [value, reason], `l` seconds, `k` cost, `p` and `o`
tokens in and out. `v` are the verdicts of pairwise judges, as [pair, sample, value, reason], `w` what is expected, by
the number of the scorer. What is null is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import field
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from batchchat.dataclass import dataclass
from batchchat.report.alignment import Records, choose_rows, row_ids, rows_of
from batchchat.report.charting import pack
from batchchat.report.suite_folder import SuiteFolder
from batchchat.report.texts import Messages, TextAllowance

MOST_ROWS = 20_000
MOST_CELLS = 4_000_000
"""Rows of a page, and values of all scores on it: a browser keeps all of them in memory to sort and filter."""
_BLOCK_LETTERS = 400_000
_BLOCK_ROWS = 400
"""Characters and rows of a block: what the page unpacks at once to show or to search some rows."""
_SHORT_NAMES = {
    "completion": "t",
    "refusal": "x",
    "reasoning": "r",
    "latency_s": "l",
    "cost": "k",
    "prompt_tokens": "p",
    "completion_tokens": "o",
}


@dataclass(slots=True)
class _Scores:
    """Values and reasons of one variant and scorer by slot: row position x samples + sample."""

    values: list[float | None]
    reasons: dict[int, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Pair:
    """What a pairwise judge said of two variants, by slot."""

    scorer: str
    a: int
    b: int
    scores: _Scores


@dataclass(slots=True)
class _Labels:
    """The expected and, for each variant, the given label of each row by a scorer of classes, as codes into `names`."""

    names: list[str]
    expected: list[int | None]
    given: list[list[int | None]]


class AnswerBrowser:
    """Everything that the row browser of a page shows. Read `blocks` to their end before `index`.

    `rows` are those to show, of `total`; without it, the best choice of the rows that a suite has.
    """

    def __init__(self, suite: SuiteFolder, *, rows: pa.Table | None = None, total: int | None = None) -> None:
        self.suite = suite
        self.names = [str(variant.get("name")) for variant in suite.variants]
        values, verdicts = suite.values(), suite.verdicts()
        values = values.append_column("id", row_ids(values))
        pairs = verdicts.group_by(["scorer", "a", "b"]).aggregate([]).to_pylist()
        self.scorers = values.column("scorer").unique().to_pylist()
        highest = pc.max(values.column("sample_index")).as_py()
        self.samples = max(1, int(suite.summary.get("samples") or 1), 1 + (highest or 0))
        outputs = [suite.output(variant) for variant in suite.variants]
        if rows is None:
            rows = rows_of(values, outputs)
            total = rows.num_rows
            cells = max(1, (len(self.names) * max(1, len(self.scorers)) + len(pairs)) * self.samples)
            rows = choose_rows(rows, values, min(MOST_ROWS, max(100, MOST_CELLS // cells)))
        self.total = rows.num_rows if total is None else total
        self.row_index: list[int] = rows.column("row_index").to_pylist()
        self.keys: list[str | None] = rows.column("key").to_pylist()
        self._ids = rows.column("id").combine_chunks()
        values = self._placed(values)
        of_variant = {name: values.filter(pc.equal(values.column("variant"), name)) for name in self.names}
        self._scores = [[self._scored(of_variant[name], scorer) for scorer in self.scorers] for name in self.names]
        self._labels = self._labels_of(of_variant)
        self._expected = self._expected_of(of_variant)
        self._pairs = self._pairs_of(self._placed(verdicts.append_column("id", row_ids(verdicts))), pairs)
        self._room = TextAllowance(len(self) * self.samples * len(self.names))
        self._records = [
            Records(output, self._ids, self._room, samples=self.samples, scored=of_variant[name])
            for name, output in zip(self.names, outputs, strict=True)
        ]
        self._groups: list[list[int | None]] = [[] for _ in self.names]
        self._states: list[list[int]] = [[] for _ in self.names]
        self._measures: dict[str, list[list[float | None]]] = {
            name: [[] for _ in self.names] for name in ("cost", "latency_s", "letters")
        }
        self.starts: list[int] = []
        # For each variant the lines of the prompt that every row has, None before the first row.
        self._alike: list[set[str] | None] = [None for _ in self.names]

    @property
    def labelled(self) -> list[str]:
        """The scores that tell an expected and a given label."""
        return list(self._labels)

    @property
    def expecting(self) -> list[int]:
        """The numbers of the scorers that expect something of a row."""
        return sorted(self._expected)

    @property
    def pairwise(self) -> set[str]:
        """The scores that judges gave to pairs of answers."""
        return {pair.scorer for pair in self._pairs}

    def __len__(self) -> int:
        return len(self.row_index)

    def _placed(self, lines: pa.Table) -> pa.Table:
        """The lines of rows that are shown, each with its slot."""
        position = pc.index_in(lines.column("id"), value_set=self._ids).cast(pa.int64())
        slot = pc.add(pc.multiply(position, self.samples), lines.column("sample_index").cast(pa.int64()))
        return lines.append_column("slot", slot).filter(pc.is_valid(slot))

    def _scored(self, lines: pa.Table, scorer: str) -> _Scores:
        chosen = lines.filter(pc.equal(lines.column("scorer"), scorer))
        found = _Scores([None] * (len(self) * self.samples))
        columns = (chosen.column(column).to_pylist() for column in ("slot", "value", "reason"))
        for slot, value, reason in zip(*columns, strict=True):
            found.values[slot] = value
            if reason:
                found.reasons[slot] = reason
        return found

    def _pairs_of(self, lines: pa.Table, pairs: Sequence[Mapping[str, str]]) -> list[_Pair]:
        found = []
        for pair in pairs:
            if pair["a"] not in self.names or pair["b"] not in self.names:
                continue
            of_both = pc.and_(pc.equal(lines.column("a"), pair["a"]), pc.equal(lines.column("b"), pair["b"]))
            scores = self._scored(lines.filter(of_both), pair["scorer"])
            found.append(_Pair(pair["scorer"], self.names.index(pair["a"]), self.names.index(pair["b"]), scores))
        return found

    def _labels_of(self, lines: Mapping[str, pa.Table]) -> dict[str, _Labels]:
        """The labels of each scorer of classes; of several samples those of the first."""
        found: dict[str, _Labels] = {}
        for scorer in self.scorers:
            if "." not in scorer:
                continue  # Only a scorer of classes has metrics: the other texts may be a different one in each row.
            codes: dict[str, int] = {}
            labels = _Labels([], [None] * len(self), [[None] * len(self) for _ in self.names])
            for number, table in enumerate(lines.values()):
                if "given" not in table.column_names:
                    continue
                first = pc.and_(pc.equal(table.column("scorer"), scorer), pc.equal(table.column("sample_index"), 0))
                chosen = table.filter(pc.and_(first, pc.is_valid(table.column("expected"))))
                columns = (chosen.column(column).to_pylist() for column in ("slot", "expected", "given"))
                for slot, expected, given in zip(*columns, strict=True):
                    labels.expected[slot // self.samples] = codes.setdefault(expected, len(codes))
                    if given is not None:
                        labels.given[number][slot // self.samples] = codes.setdefault(given, len(codes))
            labels.names = list(codes)
            if codes:
                found[scorer] = labels
        return found

    def _expected_of(self, lines: Mapping[str, pa.Table]) -> dict[int, dict[int, str]]:
        """Return what each scorer expects of each row: by the number of the scorer, then by the row's position."""
        found: dict[int, dict[int, str]] = {}
        for table in lines.values():
            if "expected" not in table.column_names:
                continue
            told = table.filter(pc.is_valid(table.column("expected")))
            columns = (told.column(column).to_pylist() for column in ("slot", "scorer", "expected"))
            for slot, scorer, expected in zip(*columns, strict=True):
                found.setdefault(self.scorers.index(scorer), {})[slot // self.samples] = expected
        return found

    # ---- blocks -------------------------------------------------------------------------------------------------

    def blocks(self) -> Iterator[str]:
        """Yield the rows in packed blocks, in the order of the index."""
        lines: list[bytes] = []
        letters = 0
        # Records are read for so many rows at once; long texts end a block earlier.
        for start in range(0, len(self), _BLOCK_ROWS):
            end = min(len(self), start + _BLOCK_ROWS)
            for offset, row in enumerate(self._rows(start, end)):
                if not lines:
                    self.starts.append(start + offset)
                lines.append(orjson.dumps(row))
                letters += len(lines[-1])
                if letters > _BLOCK_LETTERS:
                    yield _packed(lines)
                    lines, letters = [], 0
        if lines:
            yield _packed(lines)

    def _rows(self, start: int, end: int) -> Iterator[dict[str, Any]]:
        records = [variant.between(start * self.samples, end * self.samples) for variant in self._records]
        for position in range(start, end):
            yield self._row(position, [self._of_row(found, position) for found in records])

    def _of_row(self, records: Mapping[int, dict[str, Any]], position: int) -> dict[int, dict[str, Any]]:
        """A row's records by sample."""
        slots = enumerate(range(position * self.samples, (position + 1) * self.samples))
        return {sample: records[slot] for sample, slot in slots if slot in records}

    def _row(self, position: int, records: Sequence[Mapping[int, dict[str, Any]]]) -> dict[str, Any]:
        prompts: list[Messages] = []
        used: list[int | None] = []
        answers: list[list[dict[str, Any] | None]] = []
        for number, samples in enumerate(records):
            messages, note = self._records[number].messages(position) if samples else (None, "")
            used.append(None if messages is None else _place(prompts, messages))
            if messages is not None:
                lines = {line for _, text in messages for line in text.split("\n")}
                alike = self._alike[number]
                self._alike[number] = lines if alike is None else alike & lines
            told = [self._answer(number, position, sample, samples.get(sample)) for sample in range(self.samples)]
            if note and told[0] is not None:
                told[0]["n"] = note
            # Samples that are not there are left out at the end; before another one, they keep its place.
            while len(told) > 1 and told[-1] is None:
                told.pop()
            answers.append(told)
        self._index(records)
        row: dict[str, Any] = {"m": prompts, "u": used, "a": answers}
        verdicts = self._verdicts(position)
        if verdicts:
            row["v"] = verdicts
        expected = {str(scorer): texts[position] for scorer, texts in self._expected.items() if position in texts}
        if expected:
            row["w"] = expected
        return row

    def _verdicts(self, position: int) -> list[list[Any]]:
        found: list[list[Any]] = []
        for number, pair in enumerate(self._pairs):
            for sample in range(self.samples):
                slot = position * self.samples + sample
                value, reason = pair.scores.values[slot], pair.scores.reasons.get(slot)
                if value is not None or reason:
                    found.append([number, sample, value, reason])
        return found

    def _answer(
        self, number: int, position: int, sample: int, record: Mapping[str, Any] | None
    ) -> dict[str, Any] | None:
        slot = position * self.samples + sample
        scores = [
            [score.values[slot], score.reasons[slot]] if slot in score.reasons else [score.values[slot]]
            for score in self._scores[number]
        ]
        if record is None:
            return {"s": scores} if any(score != [None] for score in scores) else None
        told: dict[str, Any] = {"s": scores}
        for name, key in _SHORT_NAMES.items():
            value = record.get(name)
            if value is not None:
                told[key] = self._room.cut(value) if isinstance(value, str) else value
        # Nearly all answers end with `stop`: another end alone is worth its bytes in the page.
        if record.get("finish_reason") not in {None, "stop"}:
            told["f"] = record["finish_reason"]
        if record.get("tool_calls"):
            told["c"] = [
                [call.get("name"), self._room.cut(call.get("arguments") or "")] for call in record["tool_calls"]
            ]
        if record.get("status") != "ok":
            told["e"] = [
                record.get("error_kind"),
                self._room.cut(record.get("error_message") or ""),
                record.get("http_status"),
            ]
        return told

    # ---- index --------------------------------------------------------------------------------------------------

    def _index(self, records: Sequence[Mapping[int, dict[str, Any]]]) -> None:
        groups: dict[Any, int] = {}
        for number, samples in enumerate(records):
            ordered = [samples[sample] for sample in sorted(samples)]
            states = {record.get("status") for record in ordered}
            # 2 if a sample failed, 1 if all have an answer, 0 if there is no record yet.
            self._states[number].append(2 if states - {"ok"} else 1 if states else 0)
            meaning = tuple(_meaning(record) for record in ordered)
            self._groups[number].append(groups.setdefault(meaning, len(groups)) if ordered else None)
            self._measures["cost"][number].append(_sum(record.get("cost") for record in ordered))
            self._measures["latency_s"][number].append(_mean([record.get("latency_s") for record in ordered]))
            self._measures["letters"][number].append(_mean([record.get("letters") for record in ordered]))

    def index(self) -> str:
        """Return what filters, orders and the search need, packed."""
        # One row has nothing but what every row has.
        alike = set[str]().union(*(lines or () for lines in self._alike)) if len(self) > 1 else set[str]()
        return pack(
            orjson.dumps(
                {
                    "total": self.total,
                    "starts": self.starts,
                    "scorers": self.scorers,
                    "samples": self.samples,
                    "expecting": self.expecting,
                    "row_index": self.row_index,
                    "key": self.keys if any(key is not None for key in self.keys) else None,
                    "state": self._states,
                    "group": self._groups,
                    "value": [[self._means(score) for score in scores] for scores in self._scores],
                    "labels": self._labels,
                    "alike": sorted(alike),
                    "pairs": [
                        {"scorer": pair.scorer, "a": pair.a, "b": pair.b, "value": self._means(pair.scores)}
                        for pair in self._pairs
                    ],
                    **self._measures,
                }
            )
        )

    def _means(self, score: _Scores) -> list[float | None]:
        if self.samples == 1:
            return [_rounded(value) for value in score.values]
        slots = range(0, len(score.values), self.samples)
        return [_mean(score.values[slot : slot + self.samples]) for slot in slots]


def _packed(lines: Sequence[bytes]) -> str:
    return pack(b"[" + b",".join(lines) + b"]")


def _place(prompts: list[Messages], messages: Messages) -> int:
    # Variants often ask with the same messages: these are kept once for each row.
    if messages not in prompts:
        prompts.append(messages)
    return prompts.index(messages)


def _meaning(record: Mapping[str, Any]) -> Any:
    """What an answer comes to: equal for texts that differ in white space, and for equal JSON."""
    # Failures of one kind come to the same, whatever their messages say.
    if record.get("status") != "ok":
        return "failed", record.get("error_kind")
    calls = [(call.get("name"), call.get("arguments")) for call in record.get("tool_calls") or ()]
    text = (record.get("completion") or "").strip()
    if text[:1] in {"{", "["}:
        with suppress(orjson.JSONDecodeError):
            text = orjson.dumps(orjson.loads(text), option=orjson.OPT_SORT_KEYS).decode()
    return " ".join(text.split()), tuple(calls)


def _sum(values: Iterator[Any]) -> float | None:
    known = [value for value in values if value is not None]
    return _rounded(sum(known)) if known else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return _rounded(sum(known) / len(known)) if known else None


def _rounded(value: float | None) -> float | None:
    # Nearly all scores are yes or no.
    return value if value is None or value in (0.0, 1.0) else float(f"{value:.6g}")
