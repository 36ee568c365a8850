"""Several runs as one: their snapshots added up, so that one display shows a whole evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import reduce

from batchchat.events import FailureGroup, Forecast, Pace, Phase, Snapshot

_OLDEST = 8
"""Requests in flight that a snapshot names, as many as that of one run."""
_SUMS = (
    *("ok", "failed", "done_before", "failed_before", "sending", "waiting", "attempts", "retries", "rate_limited"),
    *("rows_per_s", "tokens_per_s", "cache_hits", "uncommitted", "skipped"),
)
_PHASES: tuple[Phase, ...] = ("draining", "running", "paused", "starting", "ending", "ended")


class Merged:
    """Takes the snapshots of `count` runs, and gives on their sum each time one of them tells something."""

    def __init__(self, name: str, count: int, on_snapshot: Callable[[Snapshot], None] | None) -> None:
        self._name = name
        self._count = count
        self._give = on_snapshot
        self._latest: dict[int, Snapshot] = {}
        self._paces: dict[int, Pace] = {}

    def listener(self, number: int, limiter: object) -> Callable[[Snapshot], None]:
        """Return what takes the snapshots of one run. Runs that share a limiter tell the same pace: it counts once."""

        def take(snapshot: Snapshot) -> None:
            self._latest[number] = snapshot
            self._paces[id(limiter)] = snapshot.pace
            if self._give is not None:
                snapshots, paces = list(self._latest.values()), list(self._paces.values())
                self._give(merged(self._name, snapshots, self._count, paces))

        return take


def merged(name: str, snapshots: list[Snapshot], count: int, paces: list[Pace]) -> Snapshot:
    """Return one snapshot of several runs.

    Arguments:
        name: of all of them.
        snapshots: the newest of each run that has told any.
        count: how many runs there are. The total is known once all of them know theirs.
        paces: of the limiters; runs that share one have one pace.
    """
    first = snapshots[0]
    sums = {field: sum(getattr(snapshot, field) for snapshot in snapshots) for field in _SUMS}
    totals = [snapshot.total for snapshot in snapshots if snapshot.total is not None]
    total = sum(totals) if len(totals) == count else None
    settled = sum(sums[field] for field in ("ok", "failed", "done_before", "failed_before", "skipped"))
    rate = sums["rows_per_s"]
    phases = {snapshot.phase for snapshot in snapshots}
    # The runs may be in several phases: the one that a person should know first stands for all.
    phase = next(phase for phase in _PHASES if phase in phases)
    oldest = sorted((request for one in snapshots for request in one.oldest), key=lambda request: -request.age_s)
    return replace(
        first,
        job=name,
        # Runs that have told nothing yet are still to come, so that the end of the others is not the end.
        phase="running" if len(snapshots) < count and phase not in {"draining", "paused"} else phase,
        elapsed_s=max(snapshot.elapsed_s for snapshot in snapshots),
        commit_lag_s=max(snapshot.commit_lag_s for snapshot in snapshots),
        total=total,
        total_exact=total is not None and all(snapshot.total_exact for snapshot in snapshots),
        spend=reduce(lambda spend, snapshot: spend.plus(snapshot.spend), snapshots[1:], first.spend),
        currency=_common({snapshot.currency for snapshot in snapshots if snapshot.currency is not None}),
        eta_s=max(0, total - settled) / rate if total is not None and rate > 0 else None,
        failures=_failures(snapshots),
        pace=_pace(paces),
        oldest=tuple(oldest[:_OLDEST]),
        forecast=_forecast([one.forecast for one in snapshots if one.forecast is not None], count),
        budget=next((snapshot.budget for snapshot in reversed(snapshots) if snapshot.budget is not None), None),
        **sums,
    )


def _common(names: set[str]) -> str | None:
    return names.pop() if len(names) == 1 else None


def _forecast(forecasts: list[Forecast], count: int) -> Forecast | None:
    """What all runs will have used at their ends, once each of them tells."""
    if len(forecasts) < count:
        return None
    return Forecast(
        answers=sum(one.answers for one in forecasts),
        corrected=all(one.corrected for one in forecasts),
        tokens=sum(one.tokens for one in forecasts),
        cost=_sum([one.cost for one in forecasts]),
        guessed_tokens=sum(one.guessed_tokens for one in forecasts),
        guessed_cost=_sum([one.guessed_cost for one in forecasts]),
    )


def _sum(amounts: list[float | None]) -> float | None:
    known = [amount for amount in amounts if amount is not None]
    return sum(known) if len(known) == len(amounts) else None


def _failures(snapshots: list[Snapshot]) -> tuple[FailureGroup, ...]:
    groups: dict[str, FailureGroup] = {}
    for group in (group for snapshot in snapshots for group in snapshot.failures):
        known = groups.get(group.kind)
        groups[group.kind] = group if known is None else replace(known, count=known.count + group.count)
    return tuple(sorted(groups.values(), key=lambda group: -group.count))


def _pace(paces: list[Pace]) -> Pace:
    """The pace of several limiters, added up."""
    per_minute = [pace.requests_per_minute for pace in paces]
    tokens = [pace.tokens_per_minute for pace in paces]
    breakers = {pace.breaker for pace in paces}
    return Pace(
        requests_per_minute=sum(one for one in per_minute if one is not None) if None not in per_minute else None,
        tokens_per_minute=sum(one for one in tokens if one is not None) if None not in tokens else None,
        concurrency=sum(pace.concurrency for pace in paces),
        requests_used=sum(pace.requests_used for pace in paces),
        tokens_used=sum(pace.tokens_used for pace in paces),
        in_use=sum(pace.in_use for pace in paces),
        paused_s=max(pace.paused_s for pace in paces),
        held_by=next((pace.held_by for pace in paces if pace.held_by is not None), None),
        shared_by=max((pace.shared_by for pace in paces), default=0),
        breaker="open" if "open" in breakers else "probing" if "probing" in breakers else "closed",
    )
