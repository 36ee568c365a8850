"""What the workers of a run tell, added up: one snapshot and one summary, as if one process had done it all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from batchchat.events import AnsweredBy, BudgetUse, FailureGroup, Forecast, RunSummary, Snapshot, StepShare, Streamed
from batchchat.inspection import snapshot_of
from batchchat.job import Job
from batchchat.providers import DEMO
from batchchat.records import Spend
from batchchat.store.joined_runs import joined_snapshots

Json = Mapping[str, Any]
_STILL = ("sending", "waiting", "rows_per_s", "tokens_per_s", "uncommitted", "commit_lag_s")
"""Figures of a snapshot that tell what is going on now."""
_OF_NOW = ("in_use", "concurrency", "requests_used", "tokens_used")
"""Figures of a pace that tell what is going on now."""
_ROWS = ("ok", "failed", "done_before", "failed_before", "skipped", "total")
"""Figures of a snapshot that tell what became of rows."""
_NAMES = frozenset(field.name for field in fields(RunSummary))


class Sums:
    """The newest snapshot of each worker, and the last ones of claims that have ended."""

    def __init__(self) -> None:
        self._now: dict[str, Json] = {}
        self._ended: list[Json] = []

    def show(self, worker: str, snapshot: Json) -> None:
        """Take the newest snapshot of a worker."""
        self._now[worker] = snapshot

    def has_counted(self, worker: str) -> bool:
        """Return whether a worker has counted rows of the shards that it runs now."""
        snapshot = self._now.get(worker)
        return snapshot is not None and snapshot["ok"] + snapshot["failed"] > snapshot["uncommitted"]

    def end(self, worker: str) -> None:
        """Keep what a worker has done over the shards that it has ended."""
        snapshot = self._now.pop(worker, None)
        if snapshot is not None:
            quiet = {**snapshot, **dict.fromkeys(_STILL, 0), "oldest": [], "phase": "ended"}
            self._ended.append({**quiet, "pace": _quiet(snapshot)})

    def forget(self, worker: str) -> None:
        """Keep of a worker that died what it has sent and what that cost: who takes its shards finds its rows done."""
        snapshot = self._now.pop(worker, None)
        if snapshot is not None:
            nothing = {**dict.fromkeys((*_STILL, *_ROWS), 0), "failures": [], "oldest": [], "phase": "ended"}
            self._ended.append({**snapshot, **nothing, "total_exact": True, "forecast": None, "pace": _quiet(snapshot)})

    def joined(self) -> Snapshot | None:
        """Return the sum, None if no worker has told anything yet."""
        found = [*self._now.values(), *self._ended]
        return snapshot_of(joined_snapshots(found)) if found else None


def _quiet(snapshot: Json) -> dict[str, Any]:
    """Return the pace of a worker that does nothing any more."""
    return {**(snapshot.get("pace") or {}), **dict.fromkeys(_OF_NOW, 0), "held_by": None}


def summary_of(told: Json) -> RunSummary:
    """Return the summary that a run wrote as JSON."""
    values = {name: value for name, value in told.items() if name in _NAMES}
    values["spend"], values["spend_total"] = (Spend(**told[name]) for name in ("spend", "spend_total"))
    for name, kind in (("failures", FailureGroup), ("answered_by", AnsweredBy), ("steps", StepShare)):
        values[name] = tuple(kind(**each) for each in _of(told.get(name)))
    for name, single in (("budget", BudgetUse), ("forecast", Forecast), ("streamed", Streamed)):
        values[name] = single(**told[name]) if told.get(name) else None
    for name in ("warnings", "looks_wrong"):
        values[name] = tuple(told.get(name) or ())
    return RunSummary(**values)


def _of(value: object) -> Sequence[Json]:
    return value if isinstance(value, list | tuple) else ()


def summary_of_nothing(job: Job, run_id: str) -> RunSummary:
    """Return the summary of a run of which no worker came to an end."""
    provider = job.resolved_provider()
    return RunSummary(
        run_id=run_id,
        job=job.name,
        output=job.output.path,
        provider=provider.name,
        model=job.model,
        exit_code=0,
        reason=None,
        remedy=None,
        elapsed_s=0.0,
        rows=0,
        ok=0,
        failed=0,
        open=0,
        kept=0,
        new_ok=0,
        new_failed=0,
        revived=0,
        sent=0,
        retries=0,
        rate_limited=0,
        spend=Spend(),
        spend_total=Spend(),
        currency=provider.currency if job.model in provider.prices else None,
        rows_per_s=0.0,
        samples=job.samples,
        note=provider.note if provider.name == DEMO else "",
    )
