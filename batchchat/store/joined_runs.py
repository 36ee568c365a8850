"""Sums over runs that work side by side into one output: of their snapshots, and of the lines that they leave.

Both are JSON objects as runs write them. One run may be several processes with one `run_id`, each with some
shards; then its line is the sum of theirs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Line = Mapping[str, Any]

_SIGNAL = 128
"""Exit codes above are of signals: 128 and the number of the signal."""
_WORST_FIRST = (3, 70, 74, 2, 69, 75, 4, _SIGNAL, 1, 0)
"""Exit codes from the one that a person must know first; all of signals are alike."""
_OLDEST = 8
"""Requests in flight that are named, as many as in the snapshot of one run."""

_OF_SNAPSHOTS = (
    *("ok", "failed", "done_before", "failed_before", "sending", "waiting", "attempts", "retries", "rate_limited"),
    *("rows_per_s", "tokens_per_s", "cache_hits", "uncommitted", "skipped"),
)
_OF_SUMMARIES = (
    *("rows", "ok", "failed", "open", "kept", "skipped", "new_ok", "new_failed", "revived", "sent", "retries"),
    *("rate_limited", "corrections", "cache_hits", "earlier_prompt", "rows_per_s"),
)
_OF_FORECASTS = ("answers", "tokens", "cost", "guessed_tokens", "guessed_cost")
_OF_PACES = ("concurrency", "in_use", "requests_used", "tokens_used")
_BREAKER = ("closed", "probing", "open")
_PHASE = ("running", "starting", "paused", "draining", "ending", "ended")


def worst_code(codes: Iterable[int]) -> int:
    """Return the exit code of runs that worked side by side: that which a person must know first; 0 of none."""
    return min(codes, key=_badness, default=0)


def _badness(code: int) -> int:
    code = _SIGNAL if code > _SIGNAL else code
    return _WORST_FIRST.index(code) if code in _WORST_FIRST else -1


def joined_snapshots(found: Sequence[Line]) -> dict[str, Any]:
    """Return one snapshot of runs that work side by side."""
    if len(found) == 1:
        return dict(found[0])
    joined = {**found[0], **_sums(found, _OF_SNAPSHOTS)}
    totals = [one.get("total") for one in found]
    known = [total for total in totals if total is not None]
    joined["total"] = sum(known) if len(known) == len(totals) else None
    joined["total_exact"] = all(one.get("total_exact") for one in found)
    for name in ("elapsed_s", "commit_lag_s"):
        joined[name] = max(float(one.get(name) or 0) for one in found)
    settled = sum(joined[name] for name in ("ok", "failed", "done_before", "failed_before", "skipped"))
    rate, total = joined["rows_per_s"], joined["total"]
    joined["eta_s"] = max(0, total - settled) / rate if total is not None and rate > 0 else None
    joined["spend"] = _summed([one.get("spend") for one in found])
    joined["failures"] = joined_failures([group for one in found for group in one.get("failures") or ()])
    joined["phase"] = min((str(one.get("phase")) for one in found), key=_place_in_phases)
    joined["pace"] = _joined_pace([one.get("pace") or {} for one in found])
    oldest = [request for one in found for request in one.get("oldest") or ()]
    joined["oldest"] = sorted(oldest, key=lambda request: -request["age_s"])[:_OLDEST]
    joined["forecast"] = _joined_forecast([one.get("forecast") for one in found])
    return joined


def _place_in_phases(phase: str) -> int:
    return _PHASE.index(phase) if phase in _PHASE else 0


def _joined_pace(paces: Sequence[Line]) -> dict[str, Any]:
    own, shared = (
        [pace for pace in paces if not pace.get("shared_by")],
        [pace for pace in paces if pace.get("shared_by")],
    )
    joined = {**paces[0], **_sums(own, _OF_PACES)}
    for name in _OF_PACES:
        # A limit that is shared is told by each of them alike, and as that of all.
        joined[name] += max((pace.get(name) or 0 for pace in shared), default=0)
    joined["paused_s"] = max(pace.get("paused_s") or 0.0 for pace in paces)
    joined["breaker"] = max((str(pace.get("breaker") or "closed") for pace in paces), key=_BREAKER.index)
    joined["shared_by"] = max(pace.get("shared_by") or 0 for pace in paces)
    joined["held_by"] = next((pace["held_by"] for pace in paces if pace.get("held_by")), None)
    return joined


def _joined_forecast(forecasts: Sequence[Line | None]) -> dict[str, Any] | None:
    known = [each for each in forecasts if each]
    if not known:
        return None
    joined = {**known[0], **_sums(known, _OF_FORECASTS)}
    for name in ("cost", "guessed_cost"):
        joined[name] = None if any(each.get(name) is None for each in known) else joined[name]
    joined["corrected"] = all(each.get("corrected") for each in known)
    joined["prompt_ratio"] = sum(each.get("prompt_ratio") or 1.0 for each in known) / len(known)
    return joined


def joined_failures(groups: Iterable[Line]) -> list[dict[str, Any]]:
    """Return groups of failed rows, one for each kind, the largest first."""
    by_kind: dict[str, dict[str, Any]] = {}
    for group in groups:
        kind = str(group.get("kind"))
        if kind in by_kind:
            by_kind[kind]["count"] += group["count"]
        else:
            by_kind[kind] = dict(group)
    return sorted(by_kind.values(), key=lambda group: -group["count"])


def joined_summaries(found: Sequence[Line]) -> dict[str, Any]:
    """Return one summary of runs that worked side by side: sums, and the reason of the worst end."""
    code = worst_code(int(one.get("exit_code") or 0) for one in found)
    worst = next((one for one in found if one.get("exit_code") == code and one.get("reason")), None)
    joined = {**(worst or found[0]), **_sums(found, _OF_SUMMARIES), "exit_code": code}
    if worst is None:
        joined["reason"] = joined["remedy"] = None
    joined["elapsed_s"] = max(float(one.get("elapsed_s") or 0) for one in found)
    joined["ended_at"] = max(str(one.get("ended_at") or "") for one in found) or None
    for name in ("spend", "spend_total"):
        joined[name] = _summed([one.get(name) for one in found])
    joined["failures"] = joined_failures([group for one in found for group in one.get("failures") or ()])
    joined["warnings"] = list(dict.fromkeys(text for one in found for text in one.get("warnings") or ()))
    joined["answered_by"] = _grouped(found, "answered_by", ("provider", "endpoint", "model", "fallback"))
    joined["steps"] = _grouped(found, "steps", ("step", "model"))
    joined["forecast"] = _joined_forecast([one.get("forecast") for one in found])
    for name in ("resume", "retry", "resets_at"):
        joined[name] = next((one[name] for one in found if one.get(name)), None)
    joined["shards"] = sorted({number for one in found for number in one.get("shards") or ()})
    return joined


def _grouped(found: Sequence[Line], name: str, by: Sequence[str]) -> list[dict[str, Any]]:
    """Return shares of several summaries, added up where they are of the same."""
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for one in found:
        for share in one.get(name) or ():
            key = tuple(share.get(field) for field in by)
            known = groups.get(key)
            if known is None:
                groups[key] = dict(share)
                continue
            for field, value in share.items():
                if field not in by and isinstance(value, int | float):
                    known[field] = known[field] + value
    return list(groups.values())


def _sums(found: Sequence[Line], names: Sequence[str]) -> dict[str, Any]:
    return {name: sum(one.get(name) or 0 for one in found) for name in names}


def _summed(found: Sequence[Any]) -> dict[str, Any]:
    """Return the sum of spends, each a JSON object."""
    known = [one for one in found if isinstance(one, dict)]
    names = dict.fromkeys(name for one in known for name in one)
    return {name: sum(one.get(name) or 0 for one in known) for name in names}


# ---- the runs of an output in shards --------------------------------------------------------------------------------


def joined_lines(own: Sequence[Line], shards: Sequence[Sequence[Line]]) -> list[dict[str, Any]]:
    """Return one line a run, in the order of their ends. `own` are lines of the output, `shards` those of each shard.

    A process that held several shards left the same line in each of them. A line of the output counts, and not the sum.
    """
    found: dict[str, dict[tuple[Any, ...], Line]] = {}
    for lines in shards:
        for line in lines:
            same = (tuple(line.get("shards") or ()), line.get("ended_at"), line.get("elapsed_s"))
            found.setdefault(str(line.get("run_id")), {})[same] = line
    whole = {str(line.get("run_id")): dict(line) for line in own}
    runs = [joined_summaries(list(parts.values())) for run_id, parts in found.items() if run_id not in whole]
    return sorted([*runs, *whole.values()], key=lambda run: str(run.get("ended_at")))


def joined_last(runs: Sequence[Line], shards: Sequence[Sequence[Line]], count: int) -> dict[str, Any] | None:
    """Return how the last run ended; if it had some of the shards alone, how the last ones of all of them did.

    `open` is then None if a shard has not been run yet.
    """
    if not runs:
        return None
    last = dict(runs[-1])
    if len(last.get("shards") or ()) in (0, count):
        return last
    ends = {(line.get("run_id"), tuple(line.get("shards") or ())): line for lines in shards for line in lines[-1:]}
    joined = joined_summaries(list(ends.values()))
    joined["run_id"] = last["run_id"]
    joined["open"] = joined["open"] if len(joined["shards"]) == count else None
    return joined
