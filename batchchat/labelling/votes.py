"""The vote of a row's samples: for each label the value that most of them gave, and the share that did."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import pyarrow as pa

from batchchat.records import PARSED
from batchchat.sources import python_rows

FieldPath = tuple[str, ...]
VOTE_COLUMNS = ("vote", "vote_share", "vote_ties", "samples")
"""The columns of an export of votes behind those of the input."""
_ROWS = 4_096
"""Rows of a batch. It bounds memory; the export is the same with any number."""


class Vote(NamedTuple):
    """The vote of one row.

    `answer` is the value, `share` the least share of samples that gave the value of a field, `ties` are the fields in
    which another value has as many votes; the one that came first is taken. `shares` has the share of each field.
    """

    answer: Any
    share: float | None
    ties: tuple[str, ...]
    samples: int
    shares: tuple[tuple[str, float], ...] = ()


def vote_of(answers: Sequence[Any], fields: Sequence[FieldPath]) -> Vote:
    """Return the vote of the samples of one row, field by field; of the whole answers if no fields are named."""
    if not answers:
        return Vote(None, None, (), 0)
    paths = list(fields) or [()]
    winners: dict[FieldPath, Any] = {}
    shares: list[tuple[str, float]] = []
    ties: list[str] = []
    for path in paths:
        texts = [_text(value_at(answer, path)) for answer in answers]
        ordered = Counter(texts).most_common()
        name = ".".join(path) or "answer"
        winners[path] = ordered[0][0]
        shares.append((name, ordered[0][1] / len(answers)))
        if len(ordered) > 1 and ordered[1][1] == ordered[0][1]:
            ties.append(name)

    def votes_with(answer: Any) -> int:
        return sum(_text(value_at(answer, path)) == winners[path] for path in paths)

    # The rest of the answer, such as a reason in words, is that of the sample that is nearest to the vote.
    nearest = max(answers, key=votes_with)
    made = nearest
    for path in paths:
        if path and _text(value_at(made, path)) != winners[path]:
            made = _with(made, path, json.loads(winners[path]))
    return Vote(made, min(share for _, share in shares), tuple(ties), len(answers), tuple(shares))


def vote_schema(schema: pa.Schema, own_columns: Sequence[str]) -> pa.Schema:
    """Return the schema of an export of votes: the input's columns, what names the row, and the vote."""
    carried = [schema.field(name) for name in schema.names if name not in own_columns]
    taken = {field.name for field in carried}
    kind = schema.field(PARSED).type if PARSED in own_columns else pa.string()
    made = [pa.field("key", pa.string()), pa.field("row_index", pa.int64())]
    votes = (kind, pa.float64(), pa.list_(pa.string()), pa.int64())
    made += [pa.field(name, type_) for name, type_ in zip(VOTE_COLUMNS, votes, strict=True)]
    # An input may have a column of one of these names itself: it is the input's, and ours has a longer name.
    return pa.schema([*carried, *(pa.field(_free(field.name, taken), field.type) for field in made)])


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    return name


def vote_batches(
    batches: Iterable[pa.RecordBatch], schema: pa.Schema, own_columns: Sequence[str], fields: Sequence[FieldPath]
) -> Iterator[pa.RecordBatch]:
    """Yield one row for each row of the input, out of records of which those of one row follow each other."""
    records = (record for batch in batches for record in python_rows(batch))
    parsed = PARSED in own_columns
    made: list[list[Any]] = []
    carried = schema.names[: len(schema) - len(VOTE_COLUMNS) - 2]
    for _, group in groupby(records, key=lambda record: record["row_index"]):
        samples = list(group)
        answers = [record[PARSED if parsed else "completion"] for record in samples if record["status"] == "ok"]
        vote = vote_of(answers, fields)
        first = samples[0]
        row = [first[name] for name in carried] + [first["key"], first["row_index"]]
        made.append([*row, vote.answer, vote.share, list(vote.ties), vote.samples])
        if len(made) >= _ROWS:
            yield _batch(made, schema)
            made = []
    if made:
        yield _batch(made, schema)


def _batch(rows: list[list[Any]], schema: pa.Schema) -> pa.RecordBatch:
    columns = zip(*rows, strict=True)
    arrays = [pa.array(list(values), field.type) for values, field in zip(columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def value_at(answer: Any, path: FieldPath) -> Any:
    """Return the value at a path inside an answer, None if it is not there."""
    for step in path:
        answer = answer.get(step) if isinstance(answer, Mapping) else None
    return answer


def _with(answer: Any, path: FieldPath, value: Any) -> Any:
    """Return an answer with another value at a path."""
    if not path:
        return value
    inner = answer.get(path[0]) if isinstance(answer, Mapping) else None
    return {**(answer or {}), path[0]: _with(inner, path[1:], value)}


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
