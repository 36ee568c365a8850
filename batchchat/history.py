"""The runs into an output, one after another: when, what each did and cost, and how it ended. Blocking code.

A run that ended by itself left a line in `runs.jsonl`. One that was killed could not; what it had counted is in the
dataset and in the ledger all the same, so that it is listed with that. It needs no lock and works while a run is going.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from batchchat.records import Spend
from batchchat.store import Output, read_state
from batchchat.views import HistoryView, PastRun, RunTotal

_RUN_ID = re.compile(r"(\d{8}T\d{6})Z-[0-9a-f]+")
_KILLED = "it ended without a word: killed, or the machine went down"


def history_of(directory: Path | str) -> HistoryView:
    """List all runs into an output, the oldest first.

    Raises UsageError where the folder is no output, StorageError where it cannot be read.
    """
    output = read_state(directory)
    ended = {str(run.get("run_id")): run for run in output.runs}
    running = str(output.holder.get("run_id")) if output.holder is not None else None
    order = {run_id: place for place, run_id in enumerate(output.run_ids())}
    unended = [run_id for run_id in order if run_id not in ended]
    counts = _counts(output, set(unended)) if unended else {}
    currency = output.state.get("currency")
    runs = [_ended(run, output.spend_by_run.get(run_id, Spend())) for run_id, run in ended.items()]
    for run_id in unended:
        live = output.live if output.live and output.live.get("run_id") == run_id else None
        spend = output.spend_by_run.get(run_id, Spend())
        past = _unended(run_id, live, spend, counts.get(run_id, (0, 0)), running=run_id == running)
        runs.append(replace(past, currency=currency) if isinstance(currency, str) and spend.cost else past)
    runs.sort(key=lambda run: (run.started or "", order.get(run.run_id, -1)))
    return HistoryView(
        job=str(output.job.get("name", "")),
        output=str(directory),
        currency=currency if isinstance(currency, str) else None,
        runs=runs,
        total=_total(runs),
    )


def _ended(run: Mapping[str, Any], spend: Spend) -> PastRun:
    run_id = str(run.get("run_id"))
    return PastRun(
        run_id=run_id,
        state="ended",
        started=_started(run_id),
        ended=_text(run.get("ended_at")),
        duration_s=_number(run.get("elapsed_s")),
        new_ok=_count(run.get("new_ok")),
        new_failed=_count(run.get("new_failed")),
        cache_hits=_count(run.get("cache_hits")),
        requests=_count(run.get("sent")),
        answers=spend.requests,
        prompt_tokens=spend.prompt_tokens,
        completion_tokens=spend.completion_tokens,
        total_tokens=spend.total_tokens,
        cost=spend.cost,
        currency=_text(run.get("currency")),
        exit_code=run["exit_code"] if isinstance(run.get("exit_code"), int) else None,
        reason=_text(run.get("reason")),
        prompt_id=_text(run.get("prompt_id")),
        skipped=_count(run.get("skipped")),
    )


def _unended(
    run_id: str, live: Mapping[str, Any] | None, spend: Spend, counts: tuple[int, int], *, running: bool
) -> PastRun:
    """A run that is going on or was killed: what the dataset and the ledger know of it, and its last snapshot."""
    ok, failed = counts
    live = live or {}
    return PastRun(
        run_id=run_id,
        state="running" if running else "killed",
        started=_started(run_id),
        ended=None,
        duration_s=_number(live.get("elapsed_s")),
        new_ok=ok,
        new_failed=failed,
        cache_hits=_count(live.get("cache_hits")),
        requests=_count(live.get("attempts")) if live else None,
        answers=spend.requests,
        prompt_tokens=spend.prompt_tokens,
        completion_tokens=spend.completion_tokens,
        total_tokens=spend.total_tokens,
        cost=spend.cost,
        currency=_text(live.get("currency")),
        exit_code=None,
        reason=None if running else _KILLED,
        prompt_id=_text(live.get("prompt_id")),
        skipped=_count(live.get("skipped")),
    )


def _counts(output: Output, run_ids: set[str]) -> dict[str, tuple[int, int]]:
    """How many live records each of these runs made: ok and failed."""
    found: dict[str, tuple[int, int]] = {}
    for batch in output.records(["run_id", "status"]):
        for run_id, status, number in _groups(batch):
            if run_id in run_ids:
                ok, failed = found.get(run_id, (0, 0))
                found[run_id] = (ok + number, failed) if status == "ok" else (ok, failed + number)
    return found


def _groups(batch: pa.RecordBatch) -> Iterator[tuple[str, str, int]]:
    counted = pa.Table.from_batches([batch]).group_by(["run_id", "status"]).aggregate([([], "count_all")])
    columns = (counted.column(name).to_pylist() for name in ("run_id", "status", "count_all"))
    return zip(*columns, strict=True)


def _total(runs: list[PastRun]) -> RunTotal:
    return RunTotal(
        runs=len(runs),
        new_ok=sum(run.new_ok for run in runs),
        new_failed=sum(run.new_failed for run in runs),
        cache_hits=sum(run.cache_hits for run in runs),
        requests=sum(run.requests or 0 for run in runs),
        answers=sum(run.answers for run in runs),
        prompt_tokens=sum(run.prompt_tokens for run in runs),
        completion_tokens=sum(run.completion_tokens for run in runs),
        total_tokens=sum(run.total_tokens for run in runs),
        cost=sum(run.cost for run in runs),
    )


def _started(run_id: str) -> str | None:
    """When a run began: its identity says so, in UTC."""
    found = _RUN_ID.fullmatch(run_id)
    if found is None:
        return None
    return datetime.strptime(found[1], "%Y%m%dT%H%M%S").replace(tzinfo=UTC).isoformat()


def _count(value: object) -> int:
    return value if type(value) is int and value >= 0 else 0


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
