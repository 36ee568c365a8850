"""A scored suite as its report reads it: `summary.json`, and one line for each score in `scores.parquet`.

The files are the contract. What a summary does not hold is left out of the page, so that one of an earlier or later
version has a page too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from batchchat.dataclass import dataclass
from batchchat.errors import StorageError, UsageError
from batchchat.store import Output, is_output, read_state

_SETTLED = 0.05
"""The level of all tests of an evaluation, as `significance.ALPHA`; this package does not need its libraries."""
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

    @cached_property
    def variants(self) -> Sequence[Mapping[str, Any]]:
        """Return the variants, the best first: by the first score that has a better direction.

        Those of equal value stay in the order of the suite, those without a value come last.
        """
        variants: Sequence[Mapping[str, Any]] = self.summary["variants"]
        # Without a better direction there is no best: the order of the suite stays.
        score = next((score for score in self.scores if score.higher_is_better is not None), None)
        if score is None:
            return variants
        ranked = self.ranked(score)
        return [*ranked, *(variant for variant in variants if not any(variant is one for one in ranked))]

    def ranked(self, score: ScoreMeaning) -> list[Mapping[str, Any]]:
        """Return the variants that have a mean by a score, the best first.

        A judge of pairs gives no means: the order is then that of wins over losses against all others.
        """
        values = {one: _mean(variant, score.name) for one, variant in enumerate(self.summary["variants"])}
        known = {one: value for one, value in values.items() if value is not None} or self._balances(score.name)
        up = score.higher_is_better is not False
        return [self.summary["variants"][one] for one in sorted(known, key=known.__getitem__, reverse=up)]

    def _balances(self, scorer: str) -> dict[int, float]:
        """Return the sum of each variant's differences from the others, by its place in the suite."""
        places = {variant.get("name"): place for place, variant in enumerate(self.summary["variants"])}
        found: dict[int, float] = {}
        for one in self.comparisons:
            if one.get("scorer") != scorer or one.get("difference") is None:
                continue
            for name, sign in ((one.get("a"), 1), (one.get("b"), -1)):
                if name in places:
                    found[places[name]] = found.get(places[name], 0.0) + sign * one["difference"]
        return found

    def comparison(self, a: str, b: str, scorer: str) -> Mapping[str, Any] | None:
        """Return the comparison of two variants by a score, whichever of them it names first."""
        for one in self.comparisons:
            if one.get("scorer") == scorer and {one.get("a"), one.get("b")} == {a, b}:
                return one
        return None

    @property
    def comparisons(self) -> Sequence[Mapping[str, Any]]:
        """The comparisons of pairs of variants, one for each score."""
        return self.summary.get("comparisons") or ()

    @property
    def sequential(self) -> Mapping[str, Any] | None:
        """How far the evaluation came, if it is one that stops when it is settled."""
        found = self.summary.get("sequential")
        return found if isinstance(found, Mapping) else None

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
        names = ("name", "model", "requests", "failed", "cost", "currency", "agreement")
        return [{name: judge.get(name) for name in names} for judge in self.summary.get("judges") or ()]

    @cached_property
    def scores(self) -> list[ScoreMeaning]:
        """Every score that a variant or a comparison has."""
        found: dict[str, ScoreMeaning] = {}
        for variant in self.summary["variants"]:
            for name, score in (variant.get("scores") or {}).items():
                found.setdefault(name, ScoreMeaning(name, str(score.get("unit") or ""), score.get("higher_is_better")))
        for comparison in self.comparisons:
            name, unit = str(comparison.get("scorer")), str(comparison.get("unit") or "")
            found.setdefault(name, ScoreMeaning(name, unit, comparison.get("higher_is_better")))
        return list(found.values())

    def leader(self, score: ScoreMeaning) -> str | None:
        """Return the variant that the tests find better than every other one, if there is one."""
        won = [better(comparison, score) for comparison in self.comparisons if comparison.get("scorer") == score.name]
        others = len(self.variants) - 1
        names = [str(variant.get("name")) for variant in self.variants]
        return next((name for name in names if others and won.count(name) == others), None)

    def output(self, variant: Mapping[str, Any]) -> Output | None:
        """Return a variant's records, None if it has none."""
        folder = variant.get("folder")
        directory = self.directory / "variants" / str(folder)
        if not folder or not directory.is_dir() or not is_output(directory):
            return None
        return read_state(directory)

    def values(self) -> pa.Table:
        """Read all lines of `scores.parquet`. Raises StorageError if it is damaged."""
        return self._table("scores.parquet", NO_VALUES)

    def verdicts(self) -> pa.Table:
        """Read all lines of `pairwise.parquet`: verdicts on two answers. Raises StorageError if it is damaged."""
        return self._table("pairwise.parquet", NO_VERDICTS)

    def _table(self, name: str, empty: pa.Table) -> pa.Table:
        path = self.directory / name
        try:
            found = pq.read_table(path)
        except FileNotFoundError:
            return empty
        except (OSError, pa.ArrowException) as error:
            raise StorageError(f"{path} cannot be read: {error}", remedy="Score the suite again.") from error
        # Told here by its name. Further on, a missing column would be an error of Arrow about something else.
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
    """Return the variant that a comparison finds better, if its test says so and the score has a better direction."""
    difference = comparison.get("difference")
    # A difference that may be chance names nobody: the page must not say more than the test does.
    if not settled(comparison) or not difference or score.higher_is_better is None:
        return None
    return str(comparison["a"] if (difference > 0) == score.higher_is_better else comparison["b"])


def _mean(variant: Mapping[str, Any], score: str) -> float | None:
    mean = ((variant.get("scores") or {}).get(score) or {}).get("mean")
    return float(mean) if mean is not None else None


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
