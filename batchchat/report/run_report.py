"""The page about one output: how its runs went, what they cost, what came out. Blocking code.

It needs no lock, and tells what is there at this moment: also of a run that is going on, or that was stopped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from batchchat.dataclass import dataclass
from batchchat.events import StepShare
from batchchat.format import count, duration, money, percent, plural, rate, share, short
from batchchat.inspection import status_of
from batchchat.labelling.oddities import oddities_of
from batchchat.labelling.reviews import reviewed_row, reviews_by_row, stored_reviews
from batchchat.report.distribution import Distribution
from batchchat.report.figures import (
    QUANTILES,
    PlotlyFigure,
    cost_over_time,
    rate_over_time,
    seconds_text,
    spread,
    tokens_over_time,
)
from batchchat.report.outcome import RecordTotals, outcome_of
from batchchat.report.page import check_page, write_page
from batchchat.report.quality import quality_of
from batchchat.report.run_answers import run_answers
from batchchat.store import Output, read_state
from batchchat.views import StatusView

_RUNS_SHOWN = 60
"""Runs in the list of a page, the newest first: two months of a job that runs every night."""
_TALLIES = (
    ("finish_reason", "Finish reasons", "stop"),
    ("model", "Models that answered", ""),
    ("system_fingerprint", "Builds that answered", ""),
    ("service_tier", "Service tiers that answered", "default"),
    ("attempts", "Attempts an answer took", "1"),
    ("corrections", "Corrections an answer took", "0"),
    ("tolerated", "Answers read through fences or prose", "false"),
    ("cache_hit", "Answers from the cache", "false"),
)
_SPREADS = (
    ("latency_s", "Latency", "Seconds of the last exchange of each answer", "series-1", True),
    ("ttft_s", "Time to first token", "Seconds until an answer began", "series-4", True),
    ("output_tokens_per_s", "Output speed", "Tokens per second of an answer, once it had begun", "series-2", False),
    ("completion_tokens", "Length of answers", "Completion tokens of each answer", "series-2", False),
    ("prompt_tokens", "Length of prompts", "Prompt tokens of each request", "series-1", False),
)


@dataclass(frozen=True, slots=True)
class Chart:
    """A figure with what stands around it. `summary` says in words what it shows."""

    name: str
    title: str
    note: str
    summary: str
    figure: PlotlyFigure


@dataclass(frozen=True, slots=True)
class Tile:
    """One figure at the head of the page."""

    name: str
    value: str
    note: str = ""
    tone: str = ""


@dataclass(frozen=True, slots=True)
class RunLine:
    """One run of the output, as its line in the history tells it; what a line does not hold is None."""

    run_id: str
    ended: datetime | None
    exit_code: int | None
    reason: str
    new_ok: int | None
    new_failed: int | None
    sent: int | None
    tokens: int | None
    cost: float | None
    elapsed_s: float | None
    rows_per_s: float | None


def write_run_report(directory: Path | str, target: Path) -> None:
    """Write the page about an output.

    Raises UsageError where the folder is no output or the page cannot be written there, StorageError where the disk
    fails or a part is damaged.
    """
    check_page(target)
    output = read_state(directory)
    status = status_of(directory)
    name = status.job or Path(directory).name
    outcome = outcome_of(output)
    runs = _runs(output)
    charts = _over_time(outcome, status.currency)
    spreads = _spreads(outcome)
    write_page(
        target,
        "run.html",
        scripts=("difference.js", "suite.js", "browser.js"),
        # The row browser is that of an evaluation: here with one variant, and nothing that compares.
        data={"variants": ["answer"], "scores": [], "differences": [], "matrices": [], "labelled": []},
        answers=run_answers(directory, output, outcome.rows),
        title=f"{name} · run report",
        name=name,
        provider=_provider(output.job.get("provider")),
        model=str(output.job.get("model") or ""),
        params=output.job.get("params") or {},
        prompt=_prompt(output.job.get("messages")),
        status=status,
        outcome=outcome,
        tallies=_tallies(outcome, output.job.get("model")),
        tiles=_tiles(directory, outcome, status, runs),
        charts=charts,
        spreads=spreads,
        quality=quality_of(directory),
        figures={chart.name: chart.figure for chart in (*charts, *spreads)},
        runs=runs[:_RUNS_SHOWN],
        runs_left_out=max(0, len(runs) - _RUNS_SHOWN),
        oddities=oddities_of(directory),
        has_cost=outcome.sums["cost"] is not None,
        directory=str(directory),
    )


def _tiles(directory: Path | str, outcome: RecordTotals, status: StatusView, runs: list[RunLine]) -> list[Tile]:
    rows = outcome.rows + (status.open or 0)
    tiles = [Tile("Answers", count(outcome.ok), f"{percent(outcome.ok, rows)} of {plural(rows, 'row')}", "good")]
    if outcome.failed or status.open:
        left = f"{plural(status.open, 'row')} still open" if status.open else share(outcome.failed, rows)
        tiles.append(Tile("Failed", count(outcome.failed), left, "bad" if outcome.failed else ""))
    if status.skipped:
        tiles.append(Tile("Skipped", count(status.skipped), f"of {plural(rows + status.skipped, 'row')}: not sent"))
    # What earlier prompts and retried answers used is spent, but belongs to no answer on this page.
    spent = status.spent
    prompt, completion = (int(outcome.sums[name] or 0) for name in ("prompt_tokens", "completion_tokens"))
    notes = [f"{short(prompt)} in, {short(completion)} out"]
    ever = short(spent.prompt_tokens + spent.completion_tokens)
    # Compared as they are written: a difference that nobody can read is not told.
    if ever != short(prompt + completion):
        notes.append(f"{ever} spent by all runs")
    tiles.append(Tile("Tokens of these answers", short(prompt + completion), "; ".join(notes)))
    if outcome.sums["cost"] is not None:
        cost = outcome.sums["cost"]
        notes = [f"{money(1_000 * cost / outcome.ok, status.currency)} per 1,000 answers"] if outcome.ok else []
        ever = money(spent.cost, status.currency)
        if ever != money(cost, status.currency):
            notes.append(f"{ever} spent by all runs")
        tiles.append(Tile("Cost of these answers", money(cost, status.currency), "; ".join(notes)))
    tiles += [_step_tile(step, status.currency) for step in status.steps]
    latency = outcome.measured.get("latency_s", Distribution())
    if latency.count:
        note = f"p95 {seconds_text(latency.quantile(0.95))}, p99 {seconds_text(latency.quantile(0.99))}"
        tiles.append(Tile("Latency, median", seconds_text(latency.quantile(0.5)), note))
    tiles += _reviews_tile(directory)
    elapsed = sum(run.elapsed_s or 0.0 for run in runs)
    if elapsed:
        settled = sum((run.new_ok or 0) + (run.new_failed or 0) for run in runs)
        several = len(runs) > 1
        # All runs count here, also those whose answers were replaced: their rows are named, not those of this page.
        what = f"{plural(settled, 'row')} in {plural(len(runs), 'run')}, " if several else ""
        name = "Time of all runs" if several else "Time"
        tiles.append(Tile(name, duration(elapsed), f"{what}{rate(settled / elapsed)} rows/s"))
    return tiles


def _step_tile(step: StepShare, currency: str | None) -> Tile:
    """Tell what a step of a cascade did, and what it cost."""
    did = f"asked for {plural(step.asked, 'row')}: {count(step.ok)} taken, {count(step.passed_on)} passed on"
    did += f", {count(step.failed)} failed" if step.failed else ""
    value = money(step.cost, currency) if currency else count(step.asked)
    return Tile(f"Step {step.step}: {step.model}", value, did)


def _reviews_tile(directory: Path | str) -> list[Tile]:
    """How many rows people reviewed; nothing if nobody did."""
    by_row = reviews_by_row(stored_reviews(directory))
    if not by_row:
        return []
    people = {review.reviewer for of_row in by_row.values() for review in of_row}
    divided = sum(bool(reviewed_row(of_row).conflicts) for of_row in by_row.values())
    note = f"by {'1 person' if len(people) == 1 else f'{len(people):,} people'}"
    note += f"; they do not agree about {divided:,}" if divided else ""
    return [Tile("Rows reviewed by people", count(len(by_row)), note)]


def _over_time(outcome: RecordTotals, currency: str | None) -> list[Chart]:
    course = outcome.timeline.course()
    if not course.moments:
        return []
    each = f"for every {_width(course.width)}"
    cut = "; time when nothing finished is left out" if course.gaps else ""
    # Of the widths that the chart shows: a second alone may have more.
    highest = max((moment.ok + moment.failed) / course.width for moment in course.moments)
    prompt, completion = (int(outcome.sums[name] or 0) for name in ("prompt_tokens", "completion_tokens"))
    charts = [
        Chart(
            "rate",
            "Rate",
            f"Rows per second, {each}{cut}",
            f"At most {rate(highest)} rows per second.",
            rate_over_time(course),
        ),
        Chart(
            "tokens",
            "Tokens",
            f"Tokens {each}",
            f"{count(prompt)} prompt tokens and {count(completion)} completion tokens.",
            tokens_over_time(course),
        ),
    ]
    if outcome.sums["cost"] is not None:
        total = money(outcome.sums["cost"], currency)
        figure = cost_over_time(course, currency or "")
        charts.append(Chart("cost", "Cost", f"Spent so far, in {currency or 'money'}", f"{total} in all.", figure))
    return charts


def _width(seconds: int) -> str:
    for size, noun in ((604_800, "week"), (86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second")):
        if seconds >= size:
            number = seconds // size
            return noun if number == 1 else f"{number} {noun}s"
    return "second"


def _spreads(outcome: RecordTotals) -> list[Chart]:
    charts = []
    for name, title, note, color, seconds in _SPREADS:
        distribution = outcome.measured.get(name)
        # Only zeros have no logarithmic axis, and nothing to show.
        if distribution is None or not distribution.count or not distribution.high:
            continue
        write = seconds_text if seconds else (lambda value: count(None if value is None else round(value)))
        quantiles = [f"{label} {write(distribution.quantile(share))}" for label, share in QUANTILES]
        summary = f"{', '.join(quantiles)}; from {write(distribution.low)} to {write(distribution.high)}."
        charts.append(Chart(name, title, note, summary, spread(distribution, color, seconds=seconds)))
    return charts


def _tallies(outcome: RecordTotals, model: object) -> list[tuple[str, list[tuple[str, int]]]]:
    """Small counts worth a table: those with more than one value, or with one that tells something."""
    found = []
    for name, title, dull in _TALLIES:
        tally = outcome.tallied.get(name)
        if tally is None or tally.spread or set(tally.counts) <= {dull, model if name == "model" else dull}:
            continue
        # One build says nothing; that there were several does.
        if name == "system_fingerprint" and len(tally.counts) < 2:
            continue
        rows = tally.counts.most_common()
        if tally.nulls and name != "cache_hit":
            rows.append(("not told", tally.nulls))
        found.append((title, rows))
    return found


def _runs(output: Output) -> list[RunLine]:
    """The runs, the newest first."""
    return [_run(line) for line in reversed(output.runs)]


def _run(line: Mapping[str, Any]) -> RunLine:
    spend = line.get("spend")
    spend = spend if isinstance(spend, dict) else {}
    tokens = [spend.get("prompt_tokens"), spend.get("completion_tokens")]
    return RunLine(
        run_id=str(line.get("run_id", "")),
        ended=_time(line.get("ended_at")),
        exit_code=line.get("exit_code"),
        reason=str(line.get("reason") or ""),
        new_ok=line.get("new_ok"),
        new_failed=line.get("new_failed"),
        sent=line.get("sent"),
        tokens=sum(number or 0 for number in tokens) if any(number is not None for number in tokens) else None,
        cost=spend.get("cost"),
        elapsed_s=line.get("elapsed_s"),
        rows_per_s=line.get("rows_per_s"),
    )


def _time(stamp: object) -> datetime | None:
    try:
        return datetime.fromisoformat(str(stamp)).astimezone(UTC)
    except ValueError:
        return None


def _provider(value: object) -> str:
    """A provider's name, or the host it is at: no more of an address, which may hold what is nobody's business."""
    if isinstance(value, dict):
        host = urlsplit(str(value.get("base_url") or "")).hostname
        return " at ".join(str(part) for part in (value.get("profile"), host) if part)
    return str(value or "")


def _prompt(messages: object) -> list[tuple[str, str]]:
    """The job's messages as (role, text), whatever form they have in it."""
    # Messages that are one template over all of them are shown as they stand in the job.
    if not isinstance(messages, list):
        return [("messages", json.dumps(messages, ensure_ascii=False, indent=2))] if messages else []
    found = []
    for message in messages:
        role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else ("", message)
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, indent=2)
        found.append((str(role or ""), text))
    return found
