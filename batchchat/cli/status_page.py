"""What an output holds and how its run goes on: the page of `status`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from batchchat.cli.batch_tables import batch_table
from batchchat.cli.blocks import alarm, blank, cost, line, local_time, pair, remarks, styled, title
from batchchat.cli.display import ProgressView
from batchchat.cli.summary_page import _add_streamed
from batchchat.cli.tables import answerer_table, failure_table, figures, headed, step_table
from batchchat.events import InFlight, Snapshot, Steering
from batchchat.format import UNKNOWN, about, asked, count, percent, plural
from batchchat.views import StatusView

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


def render_status(view: StatusView) -> RenderableType:
    """Show what an output holds, and the run that is going on or how the last one ended."""
    from rich.console import Group

    running, live = view.running, view.live
    parts: list[RenderableType] = [title(view.job, _state(view)), blank()]
    if running is not None and live is not None:
        parts += [ProgressView(live), blank()]
    parts.append(_status_table(view))
    if live is not None and live.steering.settings:
        parts += [blank(), *(pair("set", text) for text in _settings(live))]
    if view.batches:
        parts += [blank(), batch_table(view.batches)]
    if running is not None and live is not None and live.oldest:
        parts += [blank(), _in_flight_table(live.oldest)]
    if view.steps:
        parts += [blank(), step_table(view.steps, view.currency)]
    # The steps of a cascade name their models: this table would say the same again.
    elif len(view.answered_by) > 1:
        parts += [blank(), answerer_table(view.answered_by, view.currency)]
    if view.failures:
        parts += [blank(), failure_table(view.failures, view.samples)]
    parts += remarks(view.warnings, "")
    parts += [blank(), pair("output", view.output)]
    if view.command:
        parts.append(pair("go on with", view.command))
    return Group(*parts)


def render_statuses(name: str, views: Sequence[tuple[str, bool, StatusView]]) -> RenderableType:
    """Show how far each output of an evaluation is, one line each: its name, whether it is a judge's, its status."""
    from rich import box
    from rich.console import Group
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("variant", overflow="fold")
    for heading in ("state", "ok", "failed", "open", "cost"):
        table.add_column(heading, justify="left" if heading == "state" else "right", no_wrap=True)
    for called, judge, view in views:
        if view.running is not None:
            # Its process still holds the output, so that a paused run counts as one that is running.
            paused = view.live is not None and view.live.phase == "paused"
            state = styled("paused", "yellow") if paused else styled("running", "green")
        elif view.last is None or view.last.exit_code is None:
            state = styled("not ended", "yellow")
        else:
            state = styled(f"ended, {view.last.exit_code}", "" if view.last.exit_code == 0 else "yellow")
        left = UNKNOWN if view.open is None else count(view.open)
        spent = cost(view.spent.cost, view.currency)
        table.add_row(
            line(f"judge {called}" if judge else called), state, count(view.ok), alarm(view.failed, "red"), left, spent
        )
    return Group(
        title(name, f"an evaluation of {plural(sum(not judge for _, judge, _ in views), 'variant')}"), blank(), table
    )


def _status_table(view: StatusView) -> Table:
    table = figures("", "", last="left")
    rows = None if view.open is None else view.ok + view.failed + view.open
    nouns = f"{asked(view.samples)}s"
    # A row that answers an earlier prompt is not done as the job is now: 100% is said only when every row is.
    done = view.ok - view.earlier_prompt
    table.add_row(f"{nouns} ok", count(view.ok), percent(done, rows) if rows else "")
    if view.earlier_prompt:
        remark = "not asked again since the prompt was edited"
        table.add_row("  answer an earlier prompt", alarm(view.earlier_prompt, "yellow"), remark)
    if view.reviewed:
        table.add_row("rows reviewed by people", count(view.reviewed), f"by {count(view.reviewers)}")
    table.add_row(f"{nouns} failed", alarm(view.failed, "bold red"), "")
    table.add_row(f"{nouns} open", count(view.open), "")
    if view.skipped:
        table.add_row(f"{nouns} skipped", count(view.skipped), "`skip` is true of them: not sent")
    table.add_row("answers paid for", count(view.spent.requests), "")
    table.add_row("prompt tokens", count(view.spent.prompt_tokens), "")
    table.add_row("completion tokens", count(view.spent.completion_tokens), "")
    table.add_row("cost", cost(view.spent.cost, view.currency), "")
    _add_streamed(table, view.streamed)
    return table


def _state(view: StatusView) -> str:
    running, last = view.running, view.last
    if running is not None:
        if view.live is not None and view.live.phase == "paused":
            return f"{_paused(view.live.steering)} (process {running.pid} on {running.host})"
        return f"running since {local_time(running.since)} (process {running.pid} on {running.host})"
    if last is None:
        return "never run"
    when = f" {local_time(last.ended)}" if last.ended else ""
    # A run writes its exit code at its end: one without it never came to it.
    if last.exit_code is None:
        return f"the last run was killed{when}"
    reason = f": {last.reason}" if last.reason else ""
    return f"last run ended{when} with exit code {last.exit_code}{reason}"


def _paused(steering: Steering) -> str:
    since = f" since {local_time(steering.paused_since)}" if steering.paused_since else ""
    by = f" by {steering.paused_by}" if steering.paused_by else ""
    return f"paused{since}{by}"


def _settings(live: Snapshot) -> list[str]:
    """Return what was set while the run went on, and by whom."""
    from batchchat.runner.settings import shown_setting

    return [
        shown_setting(each.field, each.value) + (f" (by {each.by})" if each.by else "")
        for each in live.steering.settings
    ]


def _in_flight_table(requests: Sequence[InFlight]) -> Table:
    table = headed("longest in flight", "age", "state")
    for request in requests:
        state = f"{request.state}, attempt {request.attempt}"
        table.add_row(f"row {count(request.row_index)}", about(request.age_s), state)
    return table
