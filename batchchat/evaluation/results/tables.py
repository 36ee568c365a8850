"""What an evaluation found as Arrow tables: one line for each variant, for each mean, and for each compared pair.

A column has the type of its field, in an empty table too. What differs between scorers or variants in form (what a
variant changes, failures by kind, classes) is JSON text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import NoneType
from typing import Any, get_args, get_type_hints

import orjson
import pyarrow as pa

from batchchat.evaluation.results.summary import SuiteSummary, VariantSummary
from batchchat.evaluation.statistics.comparison import Comparison, ScoreSummary

_TYPES: Mapping[type, pa.DataType] = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


def variants_table(summary: SuiteSummary) -> pa.Table:
    """Return a line for each variant: its model, what it changes, its counts, tokens, cost and latency."""
    fields = {**_fields(VariantSummary), "overrides": pa.string(), "failures": pa.string()}
    return _table(fields, [{name: _plain(getattr(one, name)) for name in fields} for one in summary.variants])


def means_table(summary: SuiteSummary) -> pa.Table:
    """Return a line for each variant and score: the mean with its interval, and how it was computed."""
    own = _fields(ScoreSummary)
    fields = {"variant": pa.string(), "score": pa.string(), **own}
    lines = [
        {"variant": variant.name, "score": name, **{field: getattr(score, field) for field in own}}
        for variant in summary.variants
        for name, score in variant.scores.items()
    ]
    return _table(fields, lines)


def comparisons_table(summary: SuiteSummary) -> pa.Table:
    """Return a line for each pair of variants and score: the difference a - b, its interval, test and verdict."""
    own = _fields(Comparison)
    fields = {**own, "better": pa.string(), "verdict": pa.string()}
    return _table(fields, [{name: getattr(one, name) for name in fields} for one in summary.comparisons])


def _fields(kind: type[Any]) -> dict[str, pa.DataType]:
    """Return the plain fields of a dataclass with their types."""
    found = {}
    for name, hint in get_type_hints(kind).items():
        members = [one for one in get_args(hint) or (hint,) if one is not NoneType]
        if len(members) == 1 and members[0] in _TYPES:
            found[name] = _TYPES[members[0]]
    return found


def _plain(value: Any) -> Any:
    return orjson.dumps(value, default=str).decode() if isinstance(value, Mapping) else value


def _table(fields: Mapping[str, pa.DataType], lines: Iterable[Mapping[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(list(lines), schema=pa.schema(list(fields.items())))
