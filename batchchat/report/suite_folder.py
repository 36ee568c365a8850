"""A scored suite as its report reads it: `summary.json`, and one line for each score in `scores.parquet`.

The files are the contract. What a summary does not hold is left out of the page, so that one of an earlier or later
version has a page too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from batchchat.errors import StorageError, UsageError
from batchchat.store import Output, is_output, read_state

_SETTLED = 0.05
_SUMMARY = "summary.json"


@dataclass(frozen=True, slots=True)
class ScoreMeaning:
    """What a score measures. `higher_is_better` is None where no direction is better."""

    name: str
    unit: str = ""
    higher_is_better: bool | None = None


@dataclass(frozen=True)
class SuiteFolder:
    """A suite's folder. `variants` and `comparisons` are objects of the summary as they stand in it."""

    directory: Path
    summary: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The suite's name."""
        return str(self.summary.get("name") or self.directory.name)

    @property
    def variants(self) -> Sequence[Mapping[str, Any]]:
        """The variants, in the order of the suite."""
        variants: Sequence[Mapping[str, Any]] = self.summary["variants"]
        return variants

    @property
    def comparisons(self) -> Sequence[Mapping[str, Any]]:
        """The comparisons of pairs of variants, one for each score."""
        return self.summary.get("comparisons") or ()

    @property
    def input(self) -> str:
        """What the variants read."""
        return str(self.summary.get("input") or "")

    @property
    def notes(self) -> list[str]:
        """What a person should know before believing the numbers."""
        return [str(note) for note in self.summary.get("notes") or ()]

    @property
    def judges(self) -> list[dict[str, Any]]:
        """What each judge was asked, and what it cost."""
        names = ("name", "model", "requests", "failed", "cost", "currency")
        return [{name: judge.get(name) for name in names} for judge in self.summary.get("judges") or ()]

    @cached_property
    def scores(self) -> list[ScoreMeaning]:
        """Every score that a variant or a comparison has."""
        found: dict[str, ScoreMeaning] = {}
        for variant in self.variants:
            for name, score in (variant.get("scores") or {}).items():
                found.setdefault(name, ScoreMeaning(name, str(score.get("unit") or ""), score.get("higher_is_better")))
        for comparison in self.comparisons:
            name, unit = str(comparison.get("scorer")), str(comparison.get("unit") or "")
            found.setdefault(name, ScoreMeaning(name, unit, comparison.get("higher_is_better")))
        return list(found.values())

    def leader(self, score: ScoreMeaning) -> str | None:
        """The variant that the tests find better than every other one, if there is one."""
        won = [better(comparison, score) for comparison in self.comparisons if comparison.get("scorer") == score.name]
        others = len(self.variants) - 1
        names = [str(variant.get("name")) for variant in self.variants]
        return next((name for name in names if others and won.count(name) == others), None)

    def output(self, variant: Mapping[str, Any]) -> Output | None:
        """A variant's records, None where it has none."""
        folder = variant.get("folder")
        directory = self.directory / "variants" / str(folder)
        if not folder or not directory.is_dir() or not is_output(directory):
            return None
        return read_state(directory)

    def values(self) -> pa.Table:
        """All lines of `scores.parquet`. Raises StorageError where it is damaged."""
        return self._table("scores.parquet", NO_VALUES)

    def verdicts(self) -> pa.Table:
        """All lines of `pairwise.parquet`: what judges said of two answers. Raises StorageError where it is damaged."""
        return self._table("pairwise.parquet", NO_VERDICTS)

    def _table(self, name: str, empty: pa.Table) -> pa.Table:
        path = self.directory / name
        try:
            found = pq.read_table(path)
        except FileNotFoundError:
            return empty
        except (OSError, pa.ArrowException) as error:
            raise StorageError(f"{path} cannot be read: {error}", remedy="Score the suite again.") from error
        missing = [column for column in empty.column_names if column not in found.column_names]
        if missing:
            raise StorageError(f"{path} has no {', '.join(missing)}", remedy="Score the suite again.")
        return found


_PLACE: dict[str, pa.DataType] = {
    "row_index": pa.int64(),
    "key": pa.string(),
    "sample_index": pa.int32(),
    "scorer": pa.string(),
    "value": pa.float64(),
    "reason": pa.string(),
}
NO_VALUES = pa.schema({"variant": pa.string(), **_PLACE}).empty_table()
"""No scores, in the columns that a page needs. `custom_id`, `expected` and `given` may be there, too."""

NO_VERDICTS = pa.schema({"a": pa.string(), "b": pa.string(), **_PLACE}).empty_table()
"""No verdicts, in the columns that a page needs."""


def settled(comparison: Mapping[str, Any]) -> bool:
    """Tell whether a comparison's test says that the difference is not chance."""
    adjusted = comparison.get("p_adjusted")
    return adjusted is not None and adjusted < _SETTLED


def better(comparison: Mapping[str, Any], score: ScoreMeaning) -> str | None:
    """The variant that a comparison finds better, where its test says so and the score has a better direction."""
    difference = comparison.get("difference")
    if not settled(comparison) or not difference or score.higher_is_better is None:
        return None
    return str(comparison["a"] if (difference > 0) == score.higher_is_better else comparison["b"])


def is_scored(directory: Path) -> bool:
    """Tell whether a folder is that of a scored suite."""
    return (directory / _SUMMARY).is_file()


def read_suite(directory: Path) -> SuiteFolder:
    """Read a suite's summary. Raises UsageError where the folder holds none."""
    path = directory / _SUMMARY
    try:
        summary = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        raise UsageError(
            f"{directory} is no scored suite: it has no {_SUMMARY}", remedy="Score the suite first."
        ) from None
    except (OSError, orjson.JSONDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}", remedy="Score the suite again.") from None
    if not isinstance(summary, dict) or not isinstance(summary.get("variants"), list):
        raise UsageError(f"{path} is no summary of a suite", remedy="Score the suite again.")
    return SuiteFolder(directory, summary)
