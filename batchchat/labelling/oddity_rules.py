"""The rules that find what looks wrong in answers and failures. Each states from when on it speaks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import field

import pyarrow as pa

from batchchat.dataclass import dataclass
from batchchat.format import one_line, percent, plural
from batchchat.lazy_arrow import call, counted, kept, options, take
from batchchat.runner.failed_limit import surely_over

ROWS_NAMED = 5
"""How many rows a finding names: enough to look at by hand."""

NEARLY_ALL, NEARLY_ALL_OF = 0.95, 50
"""One label for nearly all: this share of at least so many answers. A label of two values may well be that rare, so
the rule is for labels of three values or more."""
NEVER_OF = 20
"""A label that never comes: there are so many answers for each value of the label. A value that one of 20 times as many
answers should have is missing by chance once in 10^8, if all are alike; rare ones are named with that doubt."""
REFUSED_SHARE, REFUSED_LEAST = 0.01, 3
"""Refusals in words: this share of answers, and at least so many."""
LONG_FACTOR, LONG_LEAST, LONG_SHARE = 10, 500, 0.02
"""Answers far longer than the rest: so many times the median, and at least so many letters. If more than this share is
so long, length varies by itself."""
TIED_ROWS, TIED_FAILED, TIED_FACTOR, TIED_VALUES = 20, 5, 3, 50
"""A value tied to failures: so many rows have it, so many of them failed, and it fails so many times as often as other
values. A column with more values than the last number is not looked at."""
TIED_RISK = 1e-4
"""The chance that a value without a tie is named, for each value that is looked at."""
REPEATED_SHARE, REPEATED_LEAST, REPEATED_LETTERS = 0.05, 5, 80
"""Answers that repeat the prompt: this share of answers, at least so many, each with so many of the first letters of a
column of its row, and at least six tenths of that column's length."""
CHANGE_POINTS, CHANGE_SIGMAS, CHANGE_SIDE = 0.3, 6.0, 50
"""A sudden change: the share of a label, or of failures, differs by so much between the records before a moment and
those after it, by so many standard errors, with at least so many on either side. Two blocks beside the moment must
differ as much: a slow drift, or an input that is mixed, is no sudden change."""
_REFUSAL = (
    r"(?i)(\bI(?:'m| am) (?:sorry|unable|not able)\b|\bI (?:cannot|can't|can not|won't)\b|\bas an AI\b|"
    r"\b(?:cannot|can't|unable to|not possible to) (?:determine|answer|assist|help|classify|comply|tell)\b)"
)
_REFUSAL_LETTERS = 300
"""Where a refusal in words stands: a text that quotes one further down is none."""
_BLOCKS, _BLOCK = 64, 25
"""A sudden change is looked for between blocks: so many at most, of so many records at first. Chosen, not measured."""
Show = Callable[..., str]
"""Takes options of `batchchat show`, and returns the command that shows these rows of the output."""


@dataclass(frozen=True, slots=True)
class Oddity:
    """What looks wrong: its `kind`, what it is in words, some rows, and the command that shows them."""

    kind: str
    message: str
    rows: tuple[int, ...]
    command: str

    def __str__(self) -> str:
        return f"{self.message} Look: {self.command}"


def _at(batch: pa.RecordBatch, path: Sequence[str]) -> pa.Array:
    """Return the values of a column, or of a field inside of it."""
    array = batch.column(path[0])
    for step in path[1:]:
        array = call("struct_field", array, options=options("StructField", [array.type.get_field_index(step)]))
    return array


def _first_rows(rows: list[int], batch: pa.RecordBatch, mask: pa.Array) -> None:
    """Add the first rows for which a mask holds, up to those that a finding names."""
    if len(rows) < ROWS_NAMED:
        wanted = kept(batch.column("row_index"), mask).slice(0, ROWS_NAMED)
        rows += wanted.to_pylist()[: ROWS_NAMED - len(rows)]


def _named(rows: Sequence[int]) -> str:
    return f"rows {', '.join(map(str, rows))}" if len(rows) > 1 else f"row {rows[0]}"


class LabelRule:
    """One label for nearly all answers; a label that never comes."""

    def __init__(self, show: Show, path: tuple[str, ...], choices: tuple[str, ...]) -> None:
        self.columns = [path[0]]
        self._show, self._path, self._choices = show, path, choices
        self._counts: Counter[str] = Counter()
        self._rows: dict[str, int] = {}
        self.useful = True

    def add(self, batch: pa.RecordBatch, ok: pa.Array) -> None:
        """Count labels."""
        if not self.useful:
            return
        values = kept(_at(batch, self._path), ok)
        for value, number in counted(values):
            if value is not None:
                self._counts[value] += number
        # Answers of which each is different are texts, and no labels.
        if len(self._counts) > TIED_VALUES:
            self.useful = False
            self._counts.clear()
            return
        for value in self._counts.keys() - self._rows.keys():
            place = call("index", values, options=options("Index", pa.scalar(value))).as_py()
            self._rows[value] = kept(batch.column("row_index"), ok)[place].as_py()

    def found(self) -> Iterator[Oddity]:
        """Yield what looks wrong."""
        answers, name = sum(self._counts.values()), ".".join(self._path)
        if not answers:
            return
        (label, number), *_ = self._counts.most_common(1)
        # Nobody states the choices of free answers: then three values must have been seen.
        several = len(self._choices or self._counts) >= 3
        if several and answers >= NEARLY_ALL_OF and number >= NEARLY_ALL * answers:
            others = [self._rows[value] for value in self._counts if value != label][:ROWS_NAMED]
            yield Oddity(
                "one_label",
                f"{percent(number, answers)} of {plural(answers, 'answer')} have {name} {one_line(label, 40)!r}: the "
                "prompt may lead to it, or the rows are alike.",
                tuple([self._rows[label], *others][:ROWS_NAMED]),
                self._show("--table", "--where", f"{name} == {label!r}"),
            )
        never = [choice for choice in self._choices if choice not in self._counts]
        if never and answers >= NEVER_OF * len(self._choices):
            yield Oddity(
                "label_never",
                f"{name} is never {', '.join(repr(one_line(choice, 40)) for choice in never)} in "
                f"{plural(answers, 'answer')}: does the prompt say when it is to be chosen?",
                (self._rows[label],),
                self._show("--count", name),
            )


class RefusalRule:
    """Answers that refuse in words."""

    useful = True
    columns: Sequence[str] = ("completion",)

    def __init__(self, show: Show) -> None:
        self._show = show
        self._answers = self._refused = 0
        self._rows: list[int] = []

    def add(self, batch: pa.RecordBatch, ok: pa.Array) -> None:
        """Count refusals."""
        self._answers += ok.true_count
        # People and models write the apostrophe in two ways.
        beginning = options("Slice", 0, _REFUSAL_LETTERS)
        start = call("utf8_slice_codeunits", batch.column("completion"), options=beginning)
        plain = call("replace_substring", start, options=options("ReplaceSubstring", "\u2019", "'"))
        refusing = call("match_substring_regex", plain, options=options("MatchSubstring", _REFUSAL))
        refused = call("and", ok, call("coalesce", refusing, pa.scalar(False)))
        self._refused += refused.true_count
        _first_rows(self._rows, batch, refused)

    def found(self) -> Iterator[Oddity]:
        """Yield what looks wrong."""
        if self._refused >= max(REFUSED_LEAST, REFUSED_SHARE * self._answers):
            yield Oddity(
                "refusals",
                f"{plural(self._refused, 'answer')} of {self._answers:,} refuse in words, such as 'I cannot': "
                f"{_named(self._rows)}.",
                tuple(self._rows),
                self._show("--row", str(self._rows[0])),
            )


class LengthRule:
    """Answers far longer than the rest."""

    useful = True
    columns: Sequence[str] = ("completion",)

    def __init__(self, show: Show) -> None:
        self._show = show
        self._counts: Counter[int] = Counter()
        self._longest: list[tuple[int, int]] = []

    def add(self, batch: pa.RecordBatch, ok: pa.Array) -> None:
        """Count lengths by the steps of a scale, ten per cent each, and keep the longest."""
        lengths = kept(_lengths(batch.column("completion")), ok)
        rows = kept(batch.column("row_index"), ok)
        for length, number in counted(lengths):
            self._counts[_step(length)] += number
        largest = options("SelectK", ROWS_NAMED, [("length", "descending")])
        order = call("select_k_unstable", pa.table({"length": lengths}), options=largest)
        longest = zip(take(lengths, order).to_pylist(), take(rows, order).to_pylist(), strict=True)
        self._longest = sorted([*self._longest, *longest], key=lambda each: (-each[0], each[1]))[:ROWS_NAMED]

    def found(self) -> Iterator[Oddity]:
        """Yield what looks wrong."""
        answers = self._counts.total()
        if answers < NEARLY_ALL_OF:
            return
        left = (answers + 1) // 2
        median = 0.0
        for step in sorted(self._counts):
            left -= self._counts[step]
            if left <= 0:
                median = 1.1**step
                break
        bound = max(LONG_LEAST, LONG_FACTOR * median)
        number = sum(count for step, count in self._counts.items() if 1.1**step > bound)
        rows = tuple(row for length, row in self._longest if length > bound)
        if rows and 0 < number <= max(1, LONG_SHARE * answers):
            yield Oddity(
                "long_answers",
                f"{plural(number, 'answer')} of {answers:,} {'is' if number == 1 else 'are'} more than {LONG_FACTOR} "
                f"times as long as most (about {median:,.0f} letters; the longest has {self._longest[0][0]:,}): "
                f"{_named(rows)}.",
                rows,
                self._show("--row", str(rows[0])),
            )


def _lengths(texts: pa.Array) -> pa.Array:
    """Return the number of letters of each text, 0 of one that is not there."""
    return call("coalesce", call("utf8_length", texts), pa.scalar(0, pa.int32()))


def _step(length: int) -> int:
    return round(math.log(max(length, 1)) / math.log(1.1))


class RepeatRule:
    """Answers that repeat a text of their row."""

    def __init__(self, show: Show, texts: Sequence[str]) -> None:
        self.columns = ["completion", *texts]
        self._show, self._texts = show, texts
        self._answers = self._repeated = self._long = 0
        self._rows: list[int] = []

    @property
    def useful(self) -> bool:
        """Tell whether answers are long enough to repeat anything, as far as is known."""
        return bool(self._long or not self._answers)

    def add(self, batch: pa.RecordBatch, ok: pa.Array) -> None:
        """Count answers that repeat."""
        self._answers += ok.true_count
        completions = batch.column("completion")
        # Only an answer that is long enough can repeat anything: of labels nothing more is read.
        long = call("greater_equal", _lengths(completions), pa.scalar(REPEATED_LETTERS, pa.int32()))
        candidates = call("and", ok, long)
        self._long += candidates.true_count
        if not candidates.true_count or not self._texts:
            return
        found = kept(batch, candidates)
        answers = found.column("completion").to_pylist()
        repeating: set[int] = set()
        for name in self._texts:
            texts = found.column(name).to_pylist()
            # In one expression, and the rarest first: every run ends with a look at all its answers.
            repeating.update(
                place
                for place, (answer, text) in enumerate(zip(answers, texts, strict=True))
                if text is not None and text[:REPEATED_LETTERS] in answer and _is_long(answer, text)
            )
        self._repeated += len(repeating)
        named = sorted(repeating)[: ROWS_NAMED - len(self._rows)]
        self._rows += [found.column("row_index")[place].as_py() for place in named]

    def found(self) -> Iterator[Oddity]:
        """Yield what looks wrong."""
        if self._repeated >= max(REPEATED_LEAST, REPEATED_SHARE * self._answers):
            yield Oddity(
                "repeated_prompt",
                f"{plural(self._repeated, 'answer')} of {self._answers:,} repeat the text of their row: "
                f"{_named(self._rows)}.",
                tuple(self._rows),
                self._show("--row", str(self._rows[0])),
            )


def _is_long(answer: str, text: str) -> bool:
    """Tell whether both are long enough for a repetition to mean something."""
    return len(text) >= REPEATED_LETTERS and len(answer) >= 0.6 * len(text)


@dataclass(slots=True)
class _Outcomes:
    ok: int = 0
    failed: int = 0
    row: int = 0


class TiedRule:
    """One value of a column that is tied to failures."""

    def __init__(self, show: Show, name: str) -> None:
        self.columns = [name]
        self._show, self._name = show, name
        self._values: dict[object, _Outcomes] | None = {}

    @property
    def useful(self) -> bool:
        """Tell whether the column has few values so far."""
        return self._values is not None

    def add(self, batch: pa.RecordBatch, ok: pa.Array) -> None:
        """Count outcomes by value."""
        if self._values is None:
            return
        values = batch.column(self._name)
        if call("count_distinct", values, options=options("Count", "all")).as_py() > TIED_VALUES:
            self._values = None  # each row has its own: an identity, or a text
            return
        for value, number in counted(kept(values, ok)):
            self._values.setdefault(value, _Outcomes()).ok += number
        failed = call("invert", ok)
        rows: dict[object, list[int]] = {}
        failed_rows = kept(batch.column("row_index"), failed).to_pylist()
        for value, row in zip(kept(values, failed).to_pylist(), failed_rows, strict=True):
            rows.setdefault(value, []).append(row)
        for value, of_value in rows.items():
            outcomes = self._values.setdefault(value, _Outcomes())
            outcomes.row = outcomes.row if outcomes.failed else min(of_value)
            outcomes.failed += len(of_value)
        if len(self._values) > TIED_VALUES:
            self._values = None

    def found(self) -> Iterator[Oddity]:
        """Yield what looks wrong."""
        values = self._values or {}
        failed, rows = (
            sum(each.failed for each in values.values()),
            sum(each.ok + each.failed for each in values.values()),
        )
        for value, each in values.items():
            of_value = each.ok + each.failed
            if of_value < TIED_ROWS or each.failed < TIED_FAILED or of_value == rows:
                continue
            # The others' share is never taken for 0: one more failure among them is always possible.
            elsewhere = (failed - each.failed + 1) / (rows - of_value + 1)
            often = each.failed / of_value >= TIED_FACTOR * elsewhere
            if often and surely_over(each.failed, of_value, elsewhere, TIED_RISK):
                yield Oddity(
                    "tied_failures",
                    f"{each.failed:,} of {plural(of_value, 'row')} with {self._name} {_value(value)} failed, and "
                    f"{percent(failed - each.failed, rows - of_value)} of the others: row {each.row}.",
                    (each.row,),
                    self._show("--failed", "--table", "--where", f"{self._name} == {_literal(value)}"),
                )


def _value(value: object) -> str:
    return "null" if value is None else repr(one_line(value, 40) if isinstance(value, str) else value)


def _literal(value: object) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


@dataclass(slots=True)
class _Block:
    """Records that follow each other: how many, and how many of each label, with the first row."""

    row: int = 0
    size: int = 0
    counts: Counter[str] = field(default_factory=Counter)

    def join(self, other: _Block) -> None:
        """Take the records of the block behind this one, too."""
        self.size += other.size
        self.counts.update(other.counts)


class ChangeRule:
    """A sudden change in mid-run: of the share of a label, or of failures. Records lie in the order of their end."""

    def __init__(self, show: Show, path: tuple[str, ...] | None) -> None:
        self.columns = [] if path is None else [path[0]]
        self._show, self._path = show, path
        self._blocks: list[_Block] = []
        self._most = _BLOCK
        self.useful = True

    def add(self, batch: pa.RecordBatch, ok: pa.Array) -> None:
        """Count labels by blocks of records. When there are many blocks, each two become one."""
        if not self.useful or not batch.num_rows:
            return
        rows = batch.column("row_index")
        if self._path is None:
            values = call("if_else", ok, pa.scalar("ok"), pa.scalar("failed"))
        else:
            values, rows = kept(_at(batch, self._path), ok), kept(rows, ok)
        start = 0
        while start < len(values):
            if not self._blocks or self._blocks[-1].size >= self._most:
                self._blocks.append(_Block(rows[start].as_py()))
            block = self._blocks[-1]
            piece = values.slice(start, self._most - block.size)
            for value, number in counted(piece):
                if value is not None:
                    block.counts[value] += number
            block.size += len(piece)
            start += len(piece)
            if len(block.counts) > TIED_VALUES:
                self.useful = False
                self._blocks.clear()
                return
            if len(self._blocks) >= _BLOCKS and block.size >= self._most:
                self._join_pairs()

    def _join_pairs(self) -> None:
        for left, right in zip(self._blocks[::2], self._blocks[1::2], strict=True):
            left.join(right)
        self._blocks = self._blocks[::2]
        self._most *= 2

    def found(self) -> Iterator[Oddity]:
        """Yield the greatest sudden change."""
        best: tuple[float, int, str, float, float] | None = None
        for label in {label for block in self._blocks for label in block.counts}:
            for place in range(1, len(self._blocks)):
                before, after = self._blocks[:place], self._blocks[place:]
                points = self._difference(label, before, after)
                beside = self._difference(label, before[-2:], after[:2])
                # In the same direction beside the moment as over all.
                if points is None or beside is None or beside * points <= 0:
                    continue
                if best is None or abs(points) > best[0]:
                    best = abs(points), place, label, _share(label, before), _share(label, after)
        if best is None:
            return
        _, place, label, old, new = best
        row = self._blocks[place].row
        what = "failures" if self._path is None else f"{'.'.join(self._path)} {one_line(label, 40)!r}"
        if self._path is None:
            old, new = (old, new) if label == "failed" else (1 - old, 1 - new)
        yield Oddity(
            "sudden_change",
            f"The share of {what} goes from {old:.0%} to {new:.0%} near row {row}: the model, or the rows, may be "
            "others from there on.",
            (row,),
            self._show("--row", str(row)),
        )

    @staticmethod
    def _difference(label: str, before: Sequence[_Block], after: Sequence[_Block]) -> float | None:
        """Return by how much a share changes; None if that may be chance, is little, or too few records tell it."""
        sizes = [sum(block.size for block in side) for side in (before, after)]
        if min(sizes) < CHANGE_SIDE:
            return None
        points = _share(label, after) - _share(label, before)
        whole = (_share(label, before) * sizes[0] + _share(label, after) * sizes[1]) / sum(sizes)
        error = math.sqrt(max(whole * (1 - whole), 1e-12) * (1 / sizes[0] + 1 / sizes[1]))
        return points if abs(points) >= CHANGE_POINTS and abs(points) >= CHANGE_SIGMAS * error else None


def _share(label: str, blocks: Sequence[_Block]) -> float:
    return sum(block.counts[label] for block in blocks) / sum(block.size for block in blocks)
