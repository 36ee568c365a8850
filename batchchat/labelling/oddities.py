"""What looks wrong in an output, in words, with rows to open.

Each rule states from when on it speaks. The thresholds were chosen so that the sample jobs, whose answers are well, set
off none. All rules share one pass over the records; none keeps more than counts and a few row numbers.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from batchchat.errors import BatchchatError
from batchchat.job import job_of
from batchchat.labelling.content import input_columns
from batchchat.labelling.oddity_rules import (
    ChangeRule,
    LabelRule,
    LengthRule,
    Oddity,
    RefusalRule,
    RepeatRule,
    TiedRule,
)
from batchchat.lazy_arrow import call
from batchchat.store import Output, read_state


class _Rule(Protocol):
    @property
    def columns(self) -> Sequence[str]:
        """The columns that it reads, beside `status` and `row_index`."""

    @property
    def useful(self) -> bool:
        """Tell whether further records can make it speak."""

    def add(self, batch: pa.RecordBatch, ok: pa.Array) -> None:
        """Take a batch of records. `ok` tells which have a completion."""

    def found(self) -> Iterator[Oddity]:
        """Yield what looks wrong."""


def oddities_of(directory: Path | str) -> list[Oddity]:
    """Return what looks wrong in an output. Raises UsageError if it is none, StorageError if a part is damaged."""
    output = read_state(directory)
    schema = output.schema
    if schema is None:
        return []
    rules = _useful_rules(output, schema, str(directory))
    for batch in output.records(_columns(rules)):
        ok = _ok(batch)
        for rule in rules:
            rule.add(batch, ok)
    return [oddity for rule in rules for oddity in rule.found()]


def _ok(batch: pa.RecordBatch) -> pa.Array:
    """Tell of each record whether it has a completion."""
    return call("equal", batch.column("status"), pa.scalar("ok"))


def _columns(rules: Sequence[_Rule]) -> list[str]:
    return list(dict.fromkeys(["status", "row_index", *(name for rule in rules for name in rule.columns)]))


def _useful_rules(output: Output, schema: pa.Schema, directory: str) -> list[_Rule]:
    """Return the rules that the first records do not rule out.

    So the long texts of an input are read only if answers may repeat them, and no column is of which each row has its
    own value.
    """
    probes = _rules(output, schema, directory)
    first = next(output.records(_columns(probes)), None)
    if first is None:
        return []
    for probe in probes:
        probe.add(first, _ok(first))
    return [rule for rule, probe in zip(_rules(output, schema, directory), probes, strict=True) if probe.useful]


def _rules(output: Output, schema: pa.Schema, directory: str) -> list[_Rule]:
    def show(*words: str) -> str:
        return shlex.join(["batchchat", "show", directory, *words])

    texts = [name for name in input_columns(output) if pa.types.is_string(schema.field(name).type)]
    labels = [LabelRule(show, path, choices) for path, choices in _label_paths(output, schema)]
    rules: list[_Rule] = [*labels, RefusalRule(show), LengthRule(show), RepeatRule(show, texts)]
    rules += [TiedRule(show, name) for name in input_columns(output) if _countable(schema.field(name).type)]
    rules += [ChangeRule(show, path) for path, _ in _label_paths(output, schema)]
    return [*rules, ChangeRule(show, None)]


def _label_paths(output: Output, schema: pa.Schema) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Return where labels are: columns or fields inside of them, with their choices; no choices if nobody states any.

    A label has three texts or more to choose from.
    """
    if "parsed" not in output.own_columns:
        return [] if "parsed" in schema.names else [(("completion",), ())]
    # Every run ends with a look, and schemas take long to import: only an answer with a schema comes here.
    from batchchat.labelling.fields import ReviewFields

    try:
        fields = ReviewFields(job_of(output.job)).all
    except BatchchatError:
        return []  # a job of another version, or whose model is gone
    found: list[tuple[tuple[str, ...], tuple[str, ...]]] = []
    for each in fields:
        choices = tuple(choice for choice in each.choices if isinstance(choice, str))
        path = ("parsed",) if not each.place else ("parsed", each.name)
        if len(choices) >= 3 and _reaches(schema, path):
            found.append((path, choices))
    return found


def _reaches(schema: pa.Schema, path: Sequence[str]) -> bool:
    kind = schema.field(path[0]).type
    for step in path[1:]:
        if not pa.types.is_struct(kind) or kind.get_field_index(step) < 0:
            return False
        kind = kind.field(step).type
    return bool(pa.types.is_string(kind))


def _countable(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_boolean(kind) or pa.types.is_integer(kind))
