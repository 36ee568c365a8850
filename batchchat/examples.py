"""Examples for the prompt of each row, chosen from rows whose answers are known. Blocking code.

The rows of a gold file stand in memory. What tells two rows apart, and how alike they are, is one text of each, which
the job's `examples.text` gives. Likeness is BM25 over words (Robertson and Zaragoza 2009), as the library bm25s counts
it: it needs no model, and gives the same order on every machine.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from hashlib import blake2b
from importlib.util import find_spec
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Any

from batchchat.errors import JobError, UsageError
from batchchat.identity import row_bytes
from batchchat.job import Job
from batchchat.job.sections import EXAMPLES, ExampleFields
from batchchat.records import Failure, RowBatch
from batchchat.sources import open_source
from batchchat.template import RowTemplateError, Template
from batchchat.template.leaf import Leaf
from batchchat.template.sandbox import Environment

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_MOST_ROWS = 100_000
"""Gold rows stand in memory, and each choice looks at all that share a word with its row: more would be slow."""
_NEEDED = ("bm25s", "numpy")
_WORD = re.compile(r"\w+")
_UNSPACED = re.compile(r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")
"""Thai, Japanese and Chinese, which put no blanks between words."""
_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


class Examples:
    """Chooses examples for rows. `digest` tells the content of the gold rows.

    A gold row that is the row itself is never chosen: it has the same text, or the same key as the row.
    """

    def __init__(
        self, rows: list[dict[str, Any]], texts: list[str], text: Leaf, fields: ExampleFields, key: str | None
    ) -> None:
        import numpy as np

        self._rows = rows
        self._text = text
        self._k = fields.k
        self._key = key
        hashes = [_hash(row_bytes(row)) for row in rows]
        self.digest = f"{_hash(b''.join(number.to_bytes(8, 'little') for number in hashes)):016x}"
        self._same: dict[tuple[str, str], list[int]] = defaultdict(list)
        for number, (row, own) in enumerate(zip(rows, texts, strict=True)):
            for name in self._names(row, own):
                self._same[name].append(number)
        self._score = _random_scores(hashes, fields.seed) if fields.by == "random" else _bm25_scores(texts)
        self._groups: list[NDArray[np.int64]] | None = None
        if fields.by == "per_label":
            places: dict[str, list[int]] = defaultdict(list)
            for number, row in enumerate(rows):
                places[str(row[str(fields.label)])].append(number)
            self._groups = [np.array(places[label]) for label in sorted(places)]

    def choose(self, values: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the examples for a row, the best first. Raises RowTemplateError if `text` does not render."""
        import numpy as np

        own = self._text.render(values)
        scores = self._score(own)
        itself = list(chain.from_iterable(self._same.get(name, ()) for name in self._names(values, own)))
        scores[itself] = -np.inf
        every = np.arange(len(scores))
        chosen = _best(scores, every, self._k) if self._groups is None else self._in_turn(scores)
        return [self._rows[number] for number in chosen]

    def complete(self, batch: RowBatch, template: Template, wanted: Callable[[int], bool]) -> RowBatch:
        """Put the examples into the rows of a batch whose index is wanted, where templates find them as `examples`.

        A row whose text does not render becomes a failure.
        """
        values, failures, raw = list(batch.values), dict(batch.failures), dict(batch.raw)
        for offset, row in enumerate(values):
            if row is None or not wanted(batch.first_index + offset) or _left_out(template, row):
                continue
            try:
                values[offset] = {**row, EXAMPLES: self.choose(row)}
            except RowTemplateError as error:
                failures[offset], raw[offset] = Failure(error.kind, str(error)), row_bytes(row)
                values[offset] = None
        return replace(batch, values=values, failures=failures, raw=raw)

    def _in_turn(self, scores: NDArray[np.float64]) -> list[int]:
        """Let the labels take turns, that of the best row first, until there are enough."""
        import numpy as np

        assert self._groups is not None  # noqa: S101 - only called with labels
        each = -(-self._k // len(self._groups))
        best = [found for group in self._groups if (found := _best(scores, group, each))]
        best.sort(key=lambda found: (-scores[found[0]], found[0]))
        turns = chain.from_iterable(zip_longest(*best))
        chosen = [number for number in turns if number is not None]
        if len(chosen) < self._k:  # a label has few rows: the others fill its places
            rest = scores.copy()
            rest[chosen] = float("-inf")
            chosen += _best(rest, np.arange(len(rest)), self._k - len(chosen))
        return chosen[: self._k]

    def _names(self, values: Mapping[str, Any], text: str) -> list[tuple[str, str]]:
        """Return by what a row is known to be the same as another: its text, and its key if it has one."""
        key = None if self._key is None else values.get(self._key)
        return [("text", text.strip()), *([] if key is None else [("key", str(key))])]


def open_examples(job: Job) -> Examples | None:
    """Read the gold rows of a job; None if it names none.

    Raises JobError with the place in the job for rows that cannot be examples, UsageError if the extra is missing.
    """
    fields = job.examples
    if fields is None:
        return None
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"`examples` needs {' and '.join(missing)}, not installed here",
            remedy=f"pip install {' '.join(missing)}; or in a checkout of batchchat: pip install '.[examples]'",
        )
    rows = _read(job, fields)
    try:
        leaf = Leaf(Environment(), fields.text, "examples.text")
    except JobError as error:
        raise job.error(error.message, EXAMPLES, "text", remedy=error.remedy) from None
    if leaf.constant is not None:
        remedy = 'Name the columns that rows are alike by, such as "{{ subject }} {{ body }}".'
        raise job.error("names no column, so that it is the same for every row", EXAMPLES, "text", remedy=remedy)
    texts = []
    for number, row in enumerate(rows):
        try:
            texts.append(leaf.render(row))
        except RowTemplateError as error:
            message = f"row {number} of {fields.source} (rows count from 0): {error}"
            raise job.error(message, EXAMPLES, "text", remedy=f"Its columns are {', '.join(row)}.") from None
        if fields.label is not None and row.get(fields.label) is None:
            message = f"row {number} of {fields.source} (rows count from 0) has no {fields.label!r}"
            raise job.error(message, EXAMPLES, "label", remedy=f"Its columns are {', '.join(row)}.")
    return Examples(rows, texts, leaf, fields, job.input.key)


def _read(job: Job, fields: ExampleFields) -> list[dict[str, Any]]:
    """Read the gold rows. Raises JobError."""
    rows: list[dict[str, Any]] = []
    try:
        for batch in open_source(fields.source).batches():
            if batch.failures:
                first = min(batch.failures)
                remedy = "Mend the row: an example that is missing would change what other rows are asked."
                raise job.error(batch.failures[first].message, EXAMPLES, "from", remedy=remedy)
            rows += [row for row in batch.values if row is not None]
            if len(rows) > _MOST_ROWS:
                message = f"{fields.source} holds more than {_MOST_ROWS:,} rows, which stand in memory"
                raise job.error(message, EXAMPLES, "from", remedy="Choose the best of them beforehand.")
    except UsageError as error:
        if isinstance(error, JobError):
            raise
        raise job.error(error.message, EXAMPLES, "from", remedy=error.remedy) from None
    return rows


def _left_out(template: Template, row: Mapping[str, Any]) -> bool:
    """Tell whether no example is needed, since the row is skipped or its `skip` fails it."""
    try:
        return template.skips(row)
    except RowTemplateError:
        return True


def _best(scores: NDArray[np.float64], among: NDArray[np.int64], count: int) -> list[int]:
    """Return the numbers with the highest scores, the highest first; of equal scores the row that comes first."""
    import numpy as np

    there = among[scores[among] > -np.inf]
    if len(there) > count:
        # Of many rows only those that may be chosen are sorted.
        least = np.partition(scores[there], len(there) - count)[len(there) - count]
        there = there[scores[there] >= least]
    order = np.argsort(-scores[there], kind="stable")
    return [int(number) for number in there[order][:count]]


def _bm25_scores(texts: list[str]) -> Callable[[str], NDArray[np.float64]]:
    import bm25s
    import numpy as np

    words = [_words(text) for text in texts]
    if not any(words):
        return lambda _text: np.zeros(len(texts))
    index = bm25s.BM25(method="lucene", backend="numpy")
    index.index(words, show_progress=False)
    known = frozenset(chain.from_iterable(words))

    def score(text: str) -> NDArray[np.float64]:
        # A word counts once, however often the row has it: a long row must not drown in its commonest word.
        asked = [word for word in dict.fromkeys(_words(text)) if word in known]
        # Rounded, so that the last bits, which depend on the machine, decide no order.
        return np.round(index.get_scores(asked).astype(np.float64), 4) if asked else np.zeros(len(texts))

    return score


def _words(text: str) -> list[str]:
    """Return the words of a text in lower case; of scripts without blanks the pairs of neighbouring characters."""
    found: list[str] = []
    for word in _WORD.findall(text.casefold()):
        if _UNSPACED.search(word) and len(word) > 1:
            found += [word[at : at + 2] for at in range(len(word) - 1)]
        else:
            found.append(word)
    return found


def _random_scores(hashes: list[int], seed: int) -> Callable[[str], NDArray[np.float64]]:
    """Return what gives each gold row a number for a row that is as good as random.

    It depends on the two rows and the seed alone: a gold row more or less changes the choice of few rows.
    """
    import numpy as np

    mixed = np.array(hashes, dtype=np.uint64)

    def score(text: str) -> NDArray[np.float64]:
        # The finalizer of SplitMix64 (Steele, Lea and Flood 2014) over the digests of both.
        own = np.uint64(_hash(b"%d\0" % seed + text.encode("utf-8", "surrogatepass")))
        value = (mixed ^ own) + np.uint64(_GOLDEN)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(_FIRST)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(_SECOND)
        return (value >> np.uint64(11)).astype(np.float64)

    return score


def _hash(data: bytes) -> int:
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little")
