"""How a run ended: the summary that `run` shows."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from batchchat.cli.blocks import alarm, blank, cost, pair, plain_text, remarks, title
from batchchat.cli.tables import answerer_table, failure_table, figures, step_table
from batchchat.events import BudgetUse, RunSummary, Streamed
from batchchat.format import asked, count, duration, money, plural, rate

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

_GATE_FAILED = 5  # the exit code of a run that ended, but not well enough


def render_summary(summary: RunSummary) -> RenderableType:
    """Show how a run ended: rows, requests, tokens, cost and time, why rows failed, and the command to go on."""
    from rich.console import Group

    parts: list[RenderableType] = [_outcome(summary), blank(), _summary_table(summary)]
    if summary.steps:
        parts += [blank(), step_table(summary.steps, summary.currency)]
    # One who answered everything is told by the job already, and models by their steps.
    elif len(summary.answered_by) > 1 or any(one.fallback for one in summary.answered_by):
        parts += [blank(), answerer_table(summary.answered_by, summary.currency)]
    if summary.failures:
        parts += [blank(), failure_table(summary.failures, summary.samples)]
    parts += remarks(summary.warnings, summary.note)
    if summary.looks_wrong:
        parts += [blank(), *(plain_text(f"looks wrong: {text}", "yellow") for text in summary.looks_wrong)]
    parts.append(blank())
    if summary.reason:
        parts.append(pair("reason", summary.reason, "bold red"))
    if summary.remedy:
        parts.append(pair("remedy", summary.remedy, "bold"))
    parts.append(pair("output", summary.output))
    if summary.failed:
        parts.append(pair("failed rows", f"batchchat show {shlex.quote(summary.output)} --failed"))
    if summary.retry:
        parts.append(pair("try again", summary.retry))
    if summary.resume:
        parts.append(pair("go on with", summary.resume))
    # With nothing to go on with, the next step is to look at what is there.
    elif summary.ok and not summary.failed:
        parts.append(pair("look at it", f"batchchat show {shlex.quote(summary.output)}"))
    return Group(*parts)


def _outcome(summary: RunSummary) -> Text:
    """Return the first line: what the person most wants to know."""
    noun, whole = asked(summary.samples), summary.rows * summary.samples - summary.skipped
    left_out = f", {count(summary.skipped)} skipped" if summary.skipped else ""
    done = f"{count(summary.ok)} of {plural(whole, noun)} have a completion"
    if summary.exit_code == 0:
        text, style = f"all {count(whole)} {noun}s have a completion" if whole > 1 else done, "bold green"
        # Exit code 0 has four meanings: a person wants to know which.
        if summary.rows == 0:
            text = "no rows"
        elif whole == 0:
            text = f"{plural(summary.skipped, noun)} skipped, nothing to send"
        elif not (summary.sent or summary.new_ok or summary.revived):
            text += f"{left_out}: nothing to do"
        else:
            text += left_out
    elif summary.exit_code == 1:
        text, style = f"{done}, {count(summary.failed)} failed{left_out}", "bold yellow"
    else:
        text, style = done if summary.exit_code == _GATE_FAILED else f"ended early: {done}", "bold red"
    return title(summary.job, "").append(text, style=style)


def _summary_table(summary: RunSummary) -> Table:
    table = figures("this run", "in all")
    new, whole, currency = summary.spend, summary.spend_total, summary.currency
    nouns = f"{asked(summary.samples)}s"
    if summary.samples > 1:
        table.add_row(f"rows, of {summary.samples} samples each", "", count(summary.rows))
    table.add_row(f"{nouns} ok", count(summary.new_ok), count(summary.ok))
    table.add_row(f"{nouns} failed", count(summary.new_failed), alarm(summary.failed, "bold red"))
    table.add_row(f"{nouns} open", "", alarm(summary.open, "yellow"))
    if summary.skipped:
        table.add_row(f"{nouns} skipped", "", count(summary.skipped))
    if summary.cache_hits:
        table.add_row("  taken over from equal requests", count(summary.cache_hits), "")
    if summary.revived:
        table.add_row("  given back by the archive", "", count(summary.revived))
    if summary.earlier_prompt:
        table.add_row("records that answer an earlier prompt", "", alarm(summary.earlier_prompt, "yellow"))
    if summary.kept > summary.earlier_prompt:
        table.add_row("records of rows not in this run", "", count(summary.kept - summary.earlier_prompt))
    table.add_row("requests sent", count(summary.sent), "")
    for name, number in (
        ("retries", summary.retries),
        ("rate limited", summary.rate_limited),
        ("corrections", summary.corrections),
    ):
        if number:
            table.add_row(f"  of them {name}", count(number), "")
    table.add_row("answers paid for", count(new.requests), count(whole.requests))
    table.add_row("prompt tokens", count(new.prompt_tokens), count(whole.prompt_tokens))
    table.add_row("completion tokens", count(new.completion_tokens), count(whole.completion_tokens))
    table.add_row("cost", cost(new.cost, currency), cost(whole.cost, currency))
    forecast = summary.forecast
    if forecast is not None and forecast.corrected and forecast.guessed_cost:
        table.add_row("  estimated by size", money(forecast.guessed_cost, currency), "")
    for name, used, cap in _budget_rows(summary.budget):
        table.add_row(f"budget {name}", f"{used} of {cap}", "")
    table.add_row("time", duration(summary.elapsed_s), "")
    table.add_row(f"{nouns}/s", rate(summary.rows_per_s), "")
    _add_streamed(table, summary.streamed)
    return table


def _add_streamed(table: Table, streamed: Streamed | None) -> None:
    if streamed is not None:
        table.add_row("median time to the first token", duration(streamed.median_ttft_s), "")
        if streamed.median_output_tokens_per_s is not None:
            table.add_row("median output tokens/s", rate(streamed.median_output_tokens_per_s), "")


def _budget_rows(budget: BudgetUse | None) -> list[tuple[str, str, str]]:
    """Return each cap's name, what is used of it, and the cap."""
    if budget is None:
        return []
    rows = []
    if budget.max_cost is not None:
        rows.append(("max_cost", money(budget.cost), money(budget.max_cost, budget.currency)))
    if budget.max_tokens is not None:
        rows.append(("max_tokens", count(budget.tokens), count(budget.max_tokens)))
    if budget.max_requests is not None:
        rows.append(("max_requests", count(budget.requests), count(budget.max_requests)))
    return rows
