"""Records: one whole, many as lines, or the values of a column counted. The pages of `show`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from batchchat.cli.blocks import blank, line, plain_text, styled, title
from batchchat.cli.message_text import as_text, block, call_text, content_text, messages_table
from batchchat.cli.tables import grid
from batchchat.format import UNKNOWN, count, plural, share
from batchchat.views import RecordView

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


def render_record(view: RecordView) -> RenderableType:
    """Show one record whole: the messages that went in, what came out, and every column that holds something."""
    from rich.console import Group

    record = view.record
    named = f"row {record.get('row_index')}"
    if record.get("key") is not None:
        named += f" · key {line(str(record['key']), 60)}"
    # Sample 0 is not named: most jobs ask once for each row.
    if record.get("sample_index"):
        named += f" · sample {record['sample_index']}"
    status = record.get("status")
    head = title(named, f"{record.get('custom_id')} · ")
    head.append(line(str(status)), style="green" if status == "ok" else "bold red")
    parts: list[RenderableType] = [head, blank()]
    if view.messages is not None:
        parts += [messages_table(view.messages, whole=True), blank()]
    if view.note:
        parts += [plain_text(view.note, "yellow"), blank()]
    parts += _outcome_of_row(record)
    shown_above = {"status", "row_index", "key", "custom_id", "completion", "reasoning", "refusal", "tool_calls"}
    shown_above |= {"error_kind", "error_message", "corrections", "parsed"}
    columns = {name: value for name, value in record.items() if name not in shown_above and value is not None}
    # One line for each token would be longer than all the rest of the page.
    if "logprobs" in columns:
        columns["logprobs"] = _logprobs_text(columns["logprobs"])
    parts += [_value_table("record", columns)]
    if view.input:
        parts += [blank(), _value_table("input", view.input)]
    return Group(*parts)


def render_records(views: Sequence[RecordView]) -> RenderableType:
    """Show one line a record: row, key, the start of the prompt, the answer or why there is none, status."""
    from rich import box
    from rich.table import Table

    keyed = any(view.record.get("key") is not None for view in views)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, expand=True)
    table.add_column("row", justify="right", no_wrap=True)
    # Most jobs have no key, and the prompt needs the room.
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
            styled(f"{record['row_index']}{sample}"),
            *([styled(line(str(record.get("key") or ""), 60))] if keyed else []),
            styled(line(content_text(view.messages[-1]), 200) if view.messages else ""),
            styled(line(_answer(record), 200), "red" if failed else ""),
            styled(line(str(record["error_kind"] if failed else record["status"])), "red" if failed else "green"),
        ]
        table.add_row(*cells)
    return table


def record_line(view: RecordView) -> str:
    """Return a record as one line of text: row, key, status, and the answer or why there is none."""
    record = view.record
    failed = record.get("error_kind") is not None
    sample = f".{record['sample_index']}" if record.get("sample_index") else ""
    words = [f"row {record['row_index']}{sample}"]
    if record.get("key") is not None:
        words.append(line(str(record["key"]), 60))
    words.append(line(str(record["error_kind"] if failed else record["status"])))
    words.append(line(_answer(record), 200))
    return "  ".join(words)


def _answer(record: Mapping[str, Any]) -> str:
    """Return the answer in short: its value if it has one, else its text, its tool calls, or why there is none."""
    if record.get("error_kind") is not None:
        return str(record.get("error_message") or "")
    # A completion with a schema is JSON: its value reads better than its text.
    if record.get("parsed") is not None:
        return as_text(record["parsed"])
    if record.get("completion") is not None:
        return str(record["completion"])
    return ", ".join(call_text(call) for call in record.get("tool_calls") or ())


def render_counts(column: str, counts: Sequence[tuple[str | None, int]], whole: int) -> RenderableType:
    """Show how many records hold each value of a column, and their share."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column(line(column), overflow="ellipsis", no_wrap=True)
    table.add_column("records", justify="right", no_wrap=True)
    table.add_column("share", justify="right", no_wrap=True)
    for value, number in counts:
        shown = styled(UNKNOWN, "dim") if value is None else styled(line(value, 200))
        table.add_row(shown, count(number), share(number, whole))
    return table


def _outcome_of_row(record: Mapping[str, Any]) -> list[RenderableType]:
    """Return what came back, or why nothing did; each block under its own heading."""
    parts: list[RenderableType] = []
    if record.get("error_kind") is not None:
        text = f"{record['error_kind']}: {record.get('error_message') or ''}"
        parts += [block("failure", text, "bold red"), blank()]
    if record.get("corrections"):
        parts += [block("corrected", _correction(record), "yellow"), blank()]
    for name, style in (("reasoning", "dim"), ("refusal", "yellow"), ("completion", "bold green")):
        if record.get(name) is not None:
            parts += [block(name, str(record[name]), style), blank()]
    if record.get("tool_calls"):
        calls = "\n".join(call_text(call) for call in record["tool_calls"])
        parts += [block("tool calls", calls, "bold green"), blank()]
    if record.get("parsed") is not None:
        parts += [block("parsed", as_text(record["parsed"]), "bold green"), blank()]
    return parts


def _correction(record: Mapping[str, Any]) -> str:
    """Return how often an answer was asked for again, and why the last time, where that is not what it failed of."""
    text = f"asked again {plural(record['corrections'], 'time')} with what was wrong"
    # Of a completion, the message is that of the attempt before; of a failure it stands above already.
    if record.get("error_kind") is None and record.get("error_message"):
        text += f"; the last time: {record['error_message']}"
    return text


def _value_table(heading: str, values: Mapping[str, object]) -> Table:
    table = grid()
    table.add_column(no_wrap=True, max_width=30, overflow="ellipsis", style="dim")
    table.add_column(ratio=1, overflow="fold")
    table.add_row(styled(heading, "bold not dim"), "")
    for name, value in values.items():
        table.add_row(styled(line(name)), plain_text(as_text(value), "dim" if value is None else ""))
    return table


def _logprobs_text(tokens: Sequence[Mapping[str, Any]]) -> str:
    """Return how sure the model was, on the whole: every token has its line in the dataset."""
    known = [token["logprob"] for token in tokens if token["logprob"] is not None]
    mean = f", {sum(known) / len(known):.3f} on average" if known else ""
    return f"of {plural(len(tokens), 'token')}{mean}"
