"""What a command shows at its end: the summary of a run, a plan, a status, a record.

Each `render_*` takes one frozen object and returns a rich renderable; `as_json` turns the same object into what
`--json` prints. All text that comes from data, answers or servers is shown as text: markup means nothing in it,
and characters that a terminal would obey are shown as escapes.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from batchchat.cli.batch_tables import batch_table, engine_row
from batchchat.cli.blocks import alarm as _alarm
from batchchat.cli.blocks import blank as _blank
from batchchat.cli.blocks import cost as _cost
from batchchat.cli.blocks import guess as _guess
from batchchat.cli.blocks import line as _line
from batchchat.cli.blocks import local_time
from batchchat.cli.blocks import pair as _pair
from batchchat.cli.blocks import plain_text as _plain_text
from batchchat.cli.blocks import remarks as _remarks
from batchchat.cli.blocks import styled as _styled
from batchchat.cli.blocks import title as _title
from batchchat.cli.display import ProgressView
from batchchat.cli.terminal import mask
from batchchat.events import BudgetUse, FailureGroup, InFlight, RunSummary, Streamed
from batchchat.format import UNKNOWN, about, asked, count, duration, money, percent, plural, rate, share
from batchchat.images import shortened
from batchchat.views import Message, PlanCap, PlanView, RecordView, StatusView

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

_GATE_FAILED = 5  # the exit code of a run that ended, but not well enough
_PREVIEW_LINES = 12
_REASONS = 5
"""Reasons why rows would fail that a plan names: the commonest ones, and it stays on one screen."""
_PREVIEW_LETTERS = 1200
_ROLE_STYLES = {"system": "magenta", "developer": "magenta", "user": "cyan", "assistant": "green", "tool": "yellow"}


def as_json(view: object) -> dict[str, Any]:
    """Return a view, or a `RunSummary`, as an object of JSON values with the names of its fields."""
    plain: dict[str, Any] = _plain(view)
    return plain


def summary_json(summary: RunSummary) -> dict[str, Any]:
    """Return what `run --json` prints: every field of the summary under its own name."""
    return as_json(summary)


def render_summary(summary: RunSummary) -> RenderableType:
    """Show how a run ended: rows, requests, tokens, cost and time, why rows failed, and the command to go on."""
    from rich.console import Group

    parts: list[RenderableType] = [_outcome(summary), _blank(), _summary_table(summary)]
    if summary.failures:
        parts += [_blank(), _failure_table(summary.failures, summary.samples)]
    parts += _remarks(summary.warnings, summary.note)
    parts.append(_blank())
    if summary.reason:
        parts.append(_pair("reason", summary.reason, "bold red"))
    if summary.remedy:
        parts.append(_pair("remedy", summary.remedy, "bold"))
    parts.append(_pair("output", summary.output))
    if summary.failed:
        parts.append(_pair("failed rows", f"batchchat show {shlex.quote(summary.output)} --failed"))
    if summary.retry:
        parts.append(_pair("try again", summary.retry))
    if summary.resume:
        parts.append(_pair("go on with", summary.resume))
    elif summary.ok and not summary.failed:
        parts.append(_pair("look at it", f"batchchat show {shlex.quote(summary.output)}"))
    return Group(*parts)


def render_plan(view: PlanView) -> RenderableType:
    """Show what a run would send, first the rendered requests, then the counts and the estimate."""
    from rich.console import Group

    parts: list[RenderableType] = []
    for preview in view.previews:
        named = f"row {count(preview.row_index)}"
        named += f" · key {_line(preview.key, 60)}" if preview.key is not None else ""
        named += f" · sample {preview.sample_index}" if preview.sample_index else ""
        parts += [_title(named, preview.custom_id), _messages(preview.messages, whole=False)]
        if preview.params:
            told = "\n".join(f"{name}: {_as_text(value)}" for name, value in preview.params.items())
            parts.append(_block("params", _beginning(mask(told)), "dim"))
        parts.append(_blank())
    parts += [
        _title(
            view.job,
            f"{plural(view.requests, 'request')} to send to {view.model} at {view.provider}",
        ),
        _blank(),
        _plan_table(view),
    ]
    if view.failures:
        parts += [_blank(), _failure_table(_most(view.failures), view.samples, "would fail because of")]
    if view.method:
        parts += [_blank(), _plain_text(f"Estimates: {view.method}", "dim")]
    parts += _remarks(view.warnings, view.note)
    parts += [_blank(), _pair("input", view.input), _pair("output", view.output)]
    if view.command:
        parts.append(_pair("run it with", view.command))
    return Group(*parts)


def render_status(view: StatusView) -> RenderableType:
    """Show what an output holds, and the run that is going on or how the last one ended."""
    from rich.console import Group

    running, live = view.running, view.live
    parts: list[RenderableType] = [_title(view.job, _state(view)), _blank()]
    if running is not None and live is not None:
        parts += [ProgressView(live), _blank()]
    parts.append(_status_table(view))
    if view.batches:
        parts += [_blank(), batch_table(view.batches)]
    if running is not None and live is not None and live.oldest:
        parts += [_blank(), _in_flight_table(live.oldest)]
    if view.failures:
        parts += [_blank(), _failure_table(view.failures, view.samples)]
    parts += _remarks(view.warnings, "")
    parts += [_blank(), _pair("output", view.output)]
    if view.command:
        parts.append(_pair("go on with", view.command))
    return Group(*parts)


def render_statuses(name: str, views: Sequence[StatusView]) -> RenderableType:
    """Show how far each variant of an evaluation is, one line each."""
    from pathlib import Path

    from rich import box
    from rich.console import Group
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("variant", overflow="fold")
    for title in ("state", "ok", "failed", "open", "cost"):
        table.add_column(title, justify="left" if title == "state" else "right", no_wrap=True)
    for view in views:
        if view.running is not None:
            state = _styled("running", "green")
        elif view.last is None or view.last.exit_code is None:
            state = _styled("not ended", "yellow")
        else:
            state = _styled(f"ended, {view.last.exit_code}", "" if view.last.exit_code == 0 else "yellow")
        left = UNKNOWN if view.open is None else count(view.open)
        spent = _cost(view.spent.cost, view.currency)
        table.add_row(_line(Path(view.output).name), state, count(view.ok), _alarm(view.failed, "red"), left, spent)
    return Group(_title(name, f"an evaluation of {plural(len(views), 'variant')}"), _blank(), table)


def render_record(view: RecordView) -> RenderableType:
    """Show one record whole: the messages that went in, what came out, and every column that holds something."""
    from rich.console import Group

    record = view.record
    title = f"row {record.get('row_index')}"
    if record.get("key") is not None:
        title += f" · key {_line(str(record['key']), 60)}"
    if record.get("sample_index"):
        title += f" · sample {record['sample_index']}"
    status = record.get("status")
    head = _title(title, f"{record.get('custom_id')} · ")
    head.append(_line(str(status)), style="green" if status == "ok" else "bold red")
    parts: list[RenderableType] = [head, _blank()]
    if view.messages is not None:
        parts += [_messages(view.messages, whole=True), _blank()]
    if view.note:
        parts += [_plain_text(view.note, "yellow"), _blank()]
    parts += _outcome_of_row(record)
    shown_above = {"status", "row_index", "key", "custom_id", "completion", "reasoning", "refusal", "tool_calls"}
    shown_above |= {"error_kind", "error_message", "corrections", "parsed"}
    columns = {name: value for name, value in record.items() if name not in shown_above and value is not None}
    if "logprobs" in columns:
        columns["logprobs"] = _logprobs_text(columns["logprobs"])
    parts += [_value_table("record", columns)]
    if view.input:
        parts += [_blank(), _value_table("input", view.input)]
    return Group(*parts)


def render_records(views: Sequence[RecordView]) -> RenderableType:
    """Show one line a record: row, key, the start of the prompt, the answer or why there is none, status."""
    from rich import box
    from rich.table import Table

    keyed = any(view.record.get("key") is not None for view in views)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, expand=True)
    table.add_column("row", justify="right", no_wrap=True)
    if keyed:
        table.add_column("key", no_wrap=True, max_width=20, overflow="ellipsis")
    table.add_column("prompt", ratio=1, no_wrap=True, overflow="ellipsis")
    table.add_column("answer", ratio=1, no_wrap=True, overflow="ellipsis")
    table.add_column("status", no_wrap=True)
    for view in views:
        record = view.record
        failed = record.get("error_kind") is not None
        sample = f".{record['sample_index']}" if record.get("sample_index") else ""
        cells = [
            _styled(f"{record['row_index']}{sample}"),
            *([_styled(_line(str(record.get("key") or ""), 60))] if keyed else []),
            _styled(_line(content_text(view.messages[-1]), 200) if view.messages else ""),
            _styled(_line(_answer(record), 200), "red" if failed else ""),
            _styled(_line(str(record["error_kind"] if failed else record["status"])), "red" if failed else "green"),
        ]
        table.add_row(*cells)
    return table


def _answer(record: Mapping[str, Any]) -> str:
    """Return the answer in short: its value if it has one, else its text, its tool calls, or why there is none."""
    if record.get("error_kind") is not None:
        return str(record.get("error_message") or "")
    if record.get("parsed") is not None:
        return _as_text(record["parsed"])
    if record.get("completion") is not None:
        return str(record["completion"])
    return ", ".join(_call_text(call) for call in record.get("tool_calls") or ())


def render_counts(column: str, counts: Sequence[tuple[str | None, int]], whole: int) -> RenderableType:
    """Show how many records hold each value of a column, and their share."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column(_line(column), overflow="ellipsis", no_wrap=True)
    table.add_column("records", justify="right", no_wrap=True)
    table.add_column("share", justify="right", no_wrap=True)
    for value, number in counts:
        shown = _styled(UNKNOWN, "dim") if value is None else _styled(_line(value, 200))
        table.add_row(shown, count(number), share(number, whole))
    return table


def content_text(message: Message) -> str:
    """Return a message's content as text: its parts one below the other, tool calls by name and arguments."""
    content = message.get("content")
    blocks: list[str] = []
    if isinstance(content, str):
        blocks.append(content)
    elif isinstance(content, Sequence):
        blocks += [_part_text(part) for part in content]
    elif content is not None:
        blocks.append(_as_text(content))
    calls = message.get("tool_calls")
    if isinstance(calls, Sequence) and not isinstance(calls, str):
        blocks += [f"calls {_call_text(call)}" for call in calls]
    return "\n".join(blocks)


def _outcome(summary: RunSummary) -> Text:
    """Return the first line: what the person most wants to know."""
    noun, whole = asked(summary.samples), summary.rows * summary.samples
    done = f"{count(summary.ok)} of {plural(whole, noun)} have a completion"
    if summary.exit_code == 0:
        text, style = f"all {count(whole)} {noun}s have a completion" if whole > 1 else done, "bold green"
        if summary.rows == 0:
            text = "no rows"
    elif summary.exit_code == 1:
        text, style = f"{done}, {count(summary.failed)} failed", "bold yellow"
    else:
        text, style = done if summary.exit_code == _GATE_FAILED else f"ended early: {done}", "bold red"
    return _title(summary.job, "").append(text, style=style)


def _summary_table(summary: RunSummary) -> Table:
    table = _figures("this run", "in all")
    new, whole, currency = summary.spend, summary.spend_total, summary.currency
    nouns = f"{asked(summary.samples)}s"
    if summary.samples > 1:
        table.add_row(f"rows, of {summary.samples} samples each", "", count(summary.rows))
    table.add_row(f"{nouns} ok", count(summary.new_ok), count(summary.ok))
    table.add_row(f"{nouns} failed", count(summary.new_failed), _alarm(summary.failed, "bold red"))
    table.add_row(f"{nouns} open", "", _alarm(summary.open, "yellow"))
    if summary.cache_hits:
        table.add_row("  taken over from equal requests", count(summary.cache_hits), "")
    if summary.revived:
        table.add_row("  given back by the archive", "", count(summary.revived))
    if summary.earlier_prompt:
        table.add_row("records that answer an earlier prompt", "", _alarm(summary.earlier_prompt, "yellow"))
    if summary.kept > summary.earlier_prompt:
        table.add_row("records of rows not in this run", "", count(summary.kept - summary.earlier_prompt))
    table.add_row("requests sent", count(summary.sent), "")
    table.add_row("  of them retries", count(summary.retries), "")
    table.add_row("  of them rate limited", count(summary.rate_limited), "")
    if summary.corrections:
        table.add_row("  of them corrections", count(summary.corrections), "")
    table.add_row("answers paid for", count(new.requests), count(whole.requests))
    table.add_row("prompt tokens", count(new.prompt_tokens), count(whole.prompt_tokens))
    table.add_row("completion tokens", count(new.completion_tokens), count(whole.completion_tokens))
    table.add_row("cost", _cost(new.cost, currency), _cost(whole.cost, currency))
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


def _plan_table(view: PlanView) -> Table:
    table = _figures("", "", last="left")
    nouns = f"{asked(view.samples)}s"
    each = f"{view.samples} for each row" if view.samples > 1 else ""
    table.add_row(f"{nouns} new", count(view.new), each)
    table.add_row(f"{nouns} changed", count(view.changed), "the prompt or the row is not the one of the record")
    table.add_row(f"{nouns} failed", count(view.failed), f"{count(view.retried)} of them to be tried again")
    table.add_row(f"{nouns} done", count(view.done), "nothing to send")
    if view.archived:
        table.add_row(f"{nouns} archived", count(view.archived), "answered before: given back, nothing to send")
    if view.unreadable:
        remark = "cannot be read or rendered: become failed records, nothing is sent"
        table.add_row(f"{nouns} that would fail", _alarm(view.unreadable, "yellow"), remark)
    if view.kept:
        earlier = f"; {count(view.earlier_prompt)} answer an earlier prompt" if view.earlier_prompt else ""
        table.add_row("records kept", count(view.kept), f"of rows that this run would not take{earlier}")
    if view.surplus:
        table.add_row("records beyond samples", count(view.surplus), "go to the archive, and come back from there")
    table.add_section()
    cached = f"answers are in {view.cache}" if view.cache is not None else "no `cache` is set"
    table.add_row("cache", count(view.cached) if view.cache is not None else "off", _styled(_line(cached)))
    equal = f"{plural(view.equal, 'request')} {'asks' if view.equal == 1 else 'ask'} the same as another one"
    remark = f"{equal}: {'sent once' if view.dedupe else '`dedupe: true` would send it once'}" if view.equal else ""
    table.add_row("dedupe", "on" if view.dedupe else "off", remark)
    table.add_row("requests", count(view.requests), "")
    table.add_row("prompt tokens", _guess(count(view.prompt_tokens)), "")
    table.add_row("completion tokens", _guess(count(view.completion_tokens)), "")
    dated = f"prices as of {view.prices_as_of}" if view.prices_as_of else ""
    remark = dated if view.cost is not None else "no price known: set `prices` in the job"
    table.add_row("cost", _guess(money(view.cost, view.currency)), _styled(_line(remark)))
    bound = f"decided by {view.binding}" if view.binding else ""
    table.add_row("time", _guess(about(view.duration_s)), _styled(_line(bound)))
    for engine in view.engines:
        table.add_row(f"engine: {engine.engine}", *engine_row(engine, view.currency))
    for cap in view.caps:
        table.add_row(f"budget {cap.name}", _cap(cap, view.currency), _cap_remark(cap))
    if view.deadline_s is not None:
        late = view.duration_s is not None and view.duration_s > view.deadline_s
        table.add_row("deadline", about(view.deadline_s), "the run would stop before its end" if late else "enough")
    if view.spent.requests:
        spent = f"{plural(view.spent.requests, 'answer')} so far"
        table.add_row("already spent", _cost(view.spent.cost, view.currency), spent)
    return table


def _cap(cap: PlanCap, currency: str | None) -> str:
    return money(cap.cap, currency) if cap.name == "max_cost" else count(int(cap.cap))


def _cap_remark(cap: PlanCap) -> str:
    if cap.needed is None:
        return ""
    if cap.needed <= cap.cap:
        return "enough"
    return f"the run would stop after about {percent(int(cap.cap * 1000), int(cap.needed * 1000))} of the requests"


def _status_table(view: StatusView) -> Table:
    table = _figures("", "", last="left")
    rows = None if view.open is None else view.ok + view.failed + view.open
    nouns = f"{asked(view.samples)}s"
    # A row that answers an earlier prompt is not done as the job is now: 100% is said only when every row is.
    done = view.ok - view.earlier_prompt
    table.add_row(f"{nouns} ok", count(view.ok), percent(done, rows) if rows else "")
    if view.earlier_prompt:
        remark = "not asked again since the prompt was edited"
        table.add_row("  answer an earlier prompt", _alarm(view.earlier_prompt, "yellow"), remark)
    table.add_row(f"{nouns} failed", _alarm(view.failed, "bold red"), "")
    table.add_row(f"{nouns} open", count(view.open), "")
    table.add_row("answers paid for", count(view.spent.requests), "")
    table.add_row("prompt tokens", count(view.spent.prompt_tokens), "")
    table.add_row("completion tokens", count(view.spent.completion_tokens), "")
    table.add_row("cost", _cost(view.spent.cost, view.currency), "")
    _add_streamed(table, view.streamed)
    return table


def _state(view: StatusView) -> str:
    running, last = view.running, view.last
    if running is not None:
        return f"running since {local_time(running.since)} (process {running.pid} on {running.host})"
    if last is None:
        return "never run"
    when = f" {local_time(last.ended)}" if last.ended else ""
    if last.exit_code is None:
        return f"the last run was killed{when}"
    reason = f": {last.reason}" if last.reason else ""
    return f"last run ended{when} with exit code {last.exit_code}{reason}"


def _outcome_of_row(record: Mapping[str, Any]) -> list[RenderableType]:
    """Return what came back, or why nothing did; each block under its own heading."""
    parts: list[RenderableType] = []
    if record.get("error_kind") is not None:
        text = f"{record['error_kind']}: {record.get('error_message') or ''}"
        parts += [_block("failure", text, "bold red"), _blank()]
    if record.get("corrections"):
        parts += [_block("corrected", _correction(record), "yellow"), _blank()]
    for name, style in (("reasoning", "dim"), ("refusal", "yellow"), ("completion", "bold green")):
        if record.get(name) is not None:
            parts += [_block(name, str(record[name]), style), _blank()]
    if record.get("tool_calls"):
        calls = "\n".join(_call_text(call) for call in record["tool_calls"])
        parts += [_block("tool calls", calls, "bold green"), _blank()]
    if record.get("parsed") is not None:
        parts += [_block("parsed", _as_text(record["parsed"]), "bold green"), _blank()]
    return parts


def _correction(record: Mapping[str, Any]) -> str:
    """How often an answer was asked for again, and why the last time, where that is not what it failed of."""
    text = f"asked again {plural(record['corrections'], 'time')} with what was wrong"
    if record.get("error_kind") is None and record.get("error_message"):
        text += f"; the last time: {record['error_message']}"
    return text


def _messages(messages: Sequence[Message], *, whole: bool) -> RenderableType:
    from rich.console import Group

    blocks: list[RenderableType] = []
    for message in messages:
        role = _line(str(message.get("role", "?")), 20)
        text = mask(content_text(message))
        blocks.append(_block(role, text if whole else _beginning(text), _ROLE_STYLES.get(role, "bold")))
    return Group(*blocks)


def _block(heading: str, text: str, style: str) -> Table:
    """Return a heading with its text beside it, wrapped and aligned."""
    table = _grid()
    table.add_column(min_width=10, no_wrap=True)
    table.add_column(ratio=1, overflow="fold")
    table.add_row(_styled(heading, style), _plain_text(text if text else "(empty)", "" if text else "dim"))
    return table


def _most(failures: Sequence[FailureGroup]) -> list[FailureGroup]:
    """Return the commonest reasons, and of those left out how many they are."""
    most, rest = list(failures[:_REASONS]), failures[_REASONS:]
    if rest:
        most.append(FailureGroup("others", sum(group.count for group in rest), rest[0].example, rest[0].row_index))
    return most


def _failure_table(failures: Sequence[FailureGroup], samples: int, heading: str = "failed because of") -> Table:
    table = _headed(heading, f"{asked(samples)}s", "for example")
    for group in sorted(failures, key=lambda group: (-group.count, group.kind)):
        where = f"row {count(group.row_index)}: " if group.row_index is not None else ""
        example = where + _line(group.example, 300)
        table.add_row(_styled(_line(group.kind), "red"), count(group.count), _styled(example))
    return table


def _in_flight_table(requests: Sequence[InFlight]) -> Table:
    table = _headed("longest in flight", "age", "state")
    for request in requests:
        state = f"{request.state}, attempt {request.attempt}"
        table.add_row(f"row {count(request.row_index)}", about(request.age_s), state)
    return table


def _value_table(heading: str, values: Mapping[str, object]) -> Table:
    table = _grid()
    table.add_column(no_wrap=True, max_width=30, overflow="ellipsis", style="dim")
    table.add_column(ratio=1, overflow="fold")
    table.add_row(_styled(heading, "bold not dim"), "")
    for name, value in values.items():
        table.add_row(_styled(_line(name)), _plain_text(_as_text(value), "dim" if value is None else ""))
    return table


def _figures(middle: str, end: str, *, last: str = "right") -> Table:
    """Return a table of a name, a right-aligned figure, and a second figure or a remark."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_header=bool(middle), show_edge=False, pad_edge=False)
    table.add_column("", no_wrap=True)
    table.add_column(middle, justify="right", no_wrap=True)
    table.add_column(end, justify="right" if last == "right" else "left", style="" if last == "right" else "dim")
    return table


def _headed(name: str, figure: str, remark: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column(name, no_wrap=True)
    table.add_column(figure, justify="right", no_wrap=True)
    table.add_column(remark, overflow="fold")
    return table


def _grid() -> Table:
    from rich.table import Table

    return Table.grid(padding=(0, 2, 0, 0), expand=True)


def _beginning(text: str) -> str:
    """Return the first lines of a long text, and how much was left out."""
    kept = "\n".join(text[:_PREVIEW_LETTERS].split("\n")[:_PREVIEW_LINES])
    left = len(text) - len(kept)
    return text if left <= 0 else f"{kept}\n… {plural(left, 'more character')}"


def _part_text(part: object) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        return _as_text(part)
    if isinstance(part.get("text"), str):
        return str(part["text"])
    kind = str(part.get("type", "part"))
    inner = part.get(kind)
    url = inner.get("url") if isinstance(inner, Mapping) else inner
    shown = url if isinstance(url, str) else _as_text({name: part[name] for name in part if name != "type"})
    return f"[{kind}] {shortened(mask(shown))}"


def _call_text(call: object) -> str:
    if isinstance(call, Mapping):
        function = call.get("function")
        named = function if isinstance(function, Mapping) else call
        if named.get("name") is not None:
            return f"{named['name']}({named.get('arguments') or ''})"
    return _as_text(call)


def _logprobs_text(tokens: Sequence[Mapping[str, Any]]) -> str:
    """Return how sure the model was, on the whole: every token has its line in the dataset."""
    known = [token["logprob"] for token in tokens if token["logprob"] is not None]
    mean = f", {sum(known) / len(known):.3f} on average" if known else ""
    return f"of {plural(len(tokens), 'token')}{mean}"


def _as_text(value: object) -> str:
    if isinstance(value, str):
        return shortened(value)
    if value is None:
        return UNKNOWN
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(_plain(value), ensure_ascii=False)
    return str(_plain(value))


def _told(value: bytes | bytearray | memoryview | datetime) -> str:
    """Return the number of some bytes; a moment as ISO 8601, in UTC where it has an offset."""
    if isinstance(value, datetime):
        return (value.astimezone(UTC) if value.tzinfo is not None else value).isoformat()
    return f"({len(value):,} bytes)"


def _plain(value: object) -> Any:
    """Return dataclasses and named tuples as objects, other sequences as arrays, bytes as their number, else text."""
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: _plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: _plain(inner) for name, inner in value._asdict().items()}
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, bytes | bytearray | memoryview | datetime):
        return _told(value)
    # JSON has no form for NaN and the infinities: they become text too.
    is_json = value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
    return value if is_json else str(value)
