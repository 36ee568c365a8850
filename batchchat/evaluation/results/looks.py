"""An evaluation that stops when it is settled: which rows each look has, and what the answers so far decide.

Rows are asked in a random order, the same for all variants, and whole clusters at a time. The order is made of a seed.
Seed, looks and the deciding score are kept in `looks.json` when the evaluation begins, so that it goes on as it began.
Nothing else is kept: what has been decided is computed anew from the records, look by look. Blocking code.
"""

from __future__ import annotations

from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from batchchat.dataclass import dataclass
from batchchat.errors import UsageError
from batchchat.evaluation.results.current_rows import Choice, read_rows
from batchchat.evaluation.results.summary import whole_file
from batchchat.evaluation.statistics.sequential import Spending, planned_looks
from batchchat.evaluation.suite.suite import Suite, Until
from batchchat.store.json_files import json_bytes
from batchchat.store.location.disk import storage_errors

LOOKS_NAME = "looks.json"
_VERSION = 1


@dataclass(frozen=True, slots=True)
class LookPlan:
    """What is fixed before the first row is asked, as `looks.json` has it.

    `most` is the most rows that are asked, None for all; `limit` takes the first rows of the input only. `spending`
    says how the error is spread over the looks: an earlier version, which did not write it, had `obrien_fleming`.
    """

    score: str
    margin: float | None
    looks: int
    seed: int
    cluster: str | None
    limit: int | None
    most: int | None
    spending: Spending = "power"


@dataclass(frozen=True, slots=True)
class LookRows:
    """The rows of an evaluation in the order in which they are asked.

    `order` has their indexes in the input. `rows` counts them at each look, `shares` has the shares of units (rows or
    clusters) there.
    """

    plan: LookPlan
    order: NDArray[np.int64]
    rows: tuple[int, ...]
    shares: tuple[float, ...]

    def at(self, look: int) -> frozenset[int]:
        """Return the indexes of the rows that have been asked at a look, counted from 1."""
        return frozenset(self.order[: self.rows[look - 1]].tolist())


def plan_of(suite: Suite, until: Until, choice: Choice) -> LookPlan:
    """Return the plan of a suite that has not begun; `choice` bounds its rows.

    A sample of a random order is its beginning, so its size is the most rows that are asked.
    """
    seed = choice.seed or suite.seed
    return LookPlan(until.score, until.margin, until.looks, seed, suite.cluster, choice.limit, choice.sample)


def kept_plan(directory: Path) -> LookPlan | None:
    """Return the plan that an evaluation began with, None if every row is asked. Raises UsageError."""
    path = directory / LOOKS_NAME
    try:
        data: dict[str, Any] = orjson.loads(path.read_bytes())
        if data.pop("version") != _VERSION:
            raise ValueError("it is of another version")
        return LookPlan(**{"spending": "obrien_fleming", **data})
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        remedy = "Remove it if every row is to be asked, or begin anew with --fresh."
        raise UsageError(f"{path} is no plan of looks: {error}", remedy=remedy) from None


def keep_plan(directory: Path, plan: LookPlan | None) -> None:
    """Write the plan, whole or not at all; None takes an earlier one away. Raises StorageError."""
    path = directory / LOOKS_NAME
    if plan is None:
        with storage_errors(path):
            path.unlink(missing_ok=True)
        return
    with whole_file(path) as draft:
        draft.write_bytes(json_bytes({"version": _VERSION, **asdict(plan)}, indent=True))


def plan_to_go_on_with(suite: Suite, until: Until, choice: Choice, *, fresh: bool) -> LookPlan:
    """Return the plan that an evaluation began with, or a new one.

    Raises UsageError if it began with another one: levels that change after a look promise nothing any more.
    """
    wanted = plan_of(suite, until, choice)
    kept = None if fresh else kept_plan(suite.output)
    if kept is None:
        return wanted
    told = {"score": "decide_by", "most": "--sample", "limit": "--limit"}
    for name, value in asdict(wanted).items():
        # The order of the rows, and the levels of the looks, stay those of the first look.
        if name not in {"seed", "spending"} and getattr(kept, name) != value:
            began = f"began with {told.get(name, name)} {getattr(kept, name)}, and now it is {value}"
            raise UsageError(
                f"the evaluation in {suite.output} {began}",
                remedy="Go on as it began, or begin anew with --fresh or another --output.",
            )
    return kept


def draw_rows(suite: Suite, plan: LookPlan) -> LookRows:
    """Put the rows in their order, and cut it into looks.

    Raises UsageError as a run does, and if the suite has no longer what the plan needs.
    """
    remedy = f"Change the suite back, or remove {suite.output / LOOKS_NAME} if every row is to be asked."
    if plan.score not in suite.scores():
        raise UsageError(f"the evaluation is decided by {plan.score}, which the suite no longer has", remedy=remedy)
    if plan.cluster != suite.cluster:
        told = f"began with cluster {plan.cluster}, and now it is {suite.cluster}"
        raise UsageError(f"the evaluation in {suite.output} {told}", remedy=remedy)
    columns = frozenset[str]() if plan.cluster is None else frozenset({plan.cluster})
    with read_rows([suite.variants[0].job], columns, choice=Choice(plan.limit)) as rows:
        units = np.arange(len(rows)) if plan.cluster is None else _numbered(rows.clusters(plan.cluster))
        index = rows.row_index
    if not index.size:
        raise UsageError(f"{suite.variants[0].job.input.path} has no rows to evaluate")
    count = int(units.max()) + 1
    # Sorted by digests of the seed: that is the same order with every version of every library.
    digests = [blake2b(b"%d:%d" % (plan.seed, unit), digest_size=8).digest() for unit in range(count)]
    place = np.empty(count, dtype=np.int64)
    place[sorted(range(count), key=digests.__getitem__)] = np.arange(count)
    by_place = np.argsort(place[units], kind="stable")
    ends = np.cumsum(np.bincount(place[units], minlength=count))
    most = count
    if plan.most is not None and plan.most < index.size:
        # Whole clusters only: the last one may go over the bound by nothing, so it is left out.
        most = max(1, int(np.searchsorted(ends, plan.most, side="right")))
    looks = planned_looks(most, plan.looks)
    return LookRows(plan, index[by_place], tuple(int(ends[look - 1]) for look in looks), tuple(n / most for n in looks))


def _numbered(clusters: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return numbers from 0 on in place of those of clusters, in the order in which they come first."""
    _, first, inverse = np.unique(clusters, return_index=True, return_inverse=True)
    rank = np.empty(first.size, dtype=np.int64)
    rank[np.argsort(first)] = np.arange(first.size)
    numbered: NDArray[np.int64] = rank[inverse]
    return numbered
