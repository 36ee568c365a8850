"""What the steps of a cascade did: counted from records, as they come or as they lie in a dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from batchchat.events import StepShare
from batchchat.lazy_arrow import compute as pc
from batchchat.store import Output


class StepShares:
    """Counts records by the steps of a cascade. `models` are those of the steps, the first one first."""

    def __init__(self, models: Sequence[str]) -> None:
        self._shares = {number: StepShare(number, model) for number, model in enumerate(models, start=1)}

    def add(
        self,
        step: int | None,
        earlier: Sequence[Mapping[str, Any]] | None,
        *,
        ok: bool,
        cost: float | None,
    ) -> None:
        """Count one record of a cascade.

        Arguments:
            step: the one that it ended at, from 1; None counts nothing.
            earlier: the steps before, with their model and cost.
            ok: whether it has an answer.
            cost: of all its steps together.
        """
        if step is None:
            return
        left = cost or 0.0
        for one in earlier or ():
            share = self._of(one["step"], one["model"])
            own = one["cost"] or 0.0
            # A record has the cost of all its steps: what the earlier ones cost is not of the last one.
            left -= own
            self._shares[share.step] = replace(share, passed_on=share.passed_on + 1, cost=share.cost + own)
        share = self._of(step, "")
        self._shares[step] = replace(
            share,
            ok=share.ok + ok,
            failed=share.failed + (not ok),
            # Sums of money in floating point may miss zero by a hair.
            cost=share.cost + max(0.0, left),
        )

    def _of(self, step: int, model: str) -> StepShare:
        share = self._shares.get(step)
        return StepShare(step, model) if share is None else share

    def shares(self) -> tuple[StepShare, ...]:
        """Return the shares of the steps that were asked, the first one first."""
        return tuple(share for _, share in sorted(self._shares.items()) if share.asked)


STEP_COLUMNS = ("step", "earlier_steps")
"""The columns that tell the steps of a record. An output of an earlier version lacks them."""


def count_steps(batch: pa.RecordBatch, shares: StepShares) -> None:
    """Count the records of a dataset that have a step. The batch has `status`, `cost` and `STEP_COLUMNS`."""
    named = batch.filter(pc.is_valid(batch.column("step")))
    if not len(named):
        return
    columns = [named.column(name).to_pylist() for name in ("step", "earlier_steps", "status", "cost")]
    for step, earlier, status, cost in zip(*columns, strict=True):
        shares.add(step, earlier, ok=status == "ok", cost=cost)


def taken_below(output: Output, thresholds: Sequence[float | None]) -> int:
    """Return how many answers of a dataset a step has taken that its threshold of today would not take."""
    if not {"step", "confidence"} <= set(output.own_columns):
        return 0
    found = 0
    for batch in output.records(["step", "confidence", "status"]):
        for number, least in enumerate(thresholds, start=1):
            if least is not None:
                taken = pc.and_(pc.equal(batch.column("step"), number), pc.equal(batch.column("status"), "ok"))
                found += pc.and_(taken, pc.less(batch.column("confidence"), least)).true_count
    return found
