"""What a run would send: the page of `plan`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from batchchat.cli.batch_tables import engine_row
from batchchat.cli.blocks import alarm, blank, cost, guess, line, pair, plain_text, remarks, styled, title
from batchchat.cli.message_text import as_text, beginning, block, messages_table
from batchchat.cli.tables import failure_table, figures
from batchchat.cli.terminal import mask
from batchchat.events import FailureGroup
from batchchat.format import about, asked, count, money, percent, plural
from batchchat.views import LongPrompt, PlanCap, PlanView, StepPlan

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

_REASONS = 5
"""Reasons why rows would fail that a plan names: the commonest ones, and it stays on one screen."""


def render_plan(view: PlanView) -> RenderableType:
    """Show what a run would send, first the rendered requests, then the counts and the estimate."""
    from rich.console import Group

    parts: list[RenderableType] = []
    for preview in view.previews:
        named = f"row {count(preview.row_index)}"
        named += f" · key {line(preview.key, 60)}" if preview.key is not None else ""
        named += f" · sample {preview.sample_index}" if preview.sample_index else ""
        parts += [title(named, preview.custom_id), messages_table(preview.messages, whole=False)]
        if preview.params:
            told = "\n".join(f"{name}: {as_text(value)}" for name, value in preview.params.items())
            parts.append(block("params", beginning(mask(told)), "dim"))
        parts.append(blank())
    parts += [
        title(
            view.job,
            f"{plural(view.requests, 'request')} to send to {view.model} at {view.provider}",
        ),
        blank(),
        _plan_table(view),
    ]
    if view.failures:
        parts += [blank(), failure_table(_most(view.failures), view.samples, "would fail because of")]
    if view.method:
        parts += [blank(), plain_text(f"Estimates: {view.method}", "dim")]
    parts += remarks(view.warnings, view.note)
    parts += [blank(), pair("input", view.input), pair("output", view.output)]
    if view.key is not None:
        parts.append(pair("key", f"{view.key}{'' if view.key_found else ' (not there)'}"))
    if view.command:
        parts.append(pair("run it with", view.command))
    return Group(*parts)


def _plan_table(view: PlanView) -> Table:
    table = figures("", "", last="left")
    nouns = f"{asked(view.samples)}s"
    each = f"{view.samples} for each row" if view.samples > 1 else ""
    table.add_row(f"{nouns} new", count(view.new), each)
    # A zero needs no explanation.
    for name, number, remark in (
        ("changed", view.changed, "the prompt or the row is not the one of the record"),
        ("failed", view.failed, f"{count(view.retried)} of them to be tried again"),
        ("done", view.done, "nothing to send"),
    ):
        table.add_row(f"{nouns} {name}", count(number), remark if number else "")
    if view.skipped:
        table.add_row(f"{nouns} skipped", count(view.skipped), "`skip` is true of them: nothing to send")
    if view.archived:
        table.add_row(f"{nouns} archived", count(view.archived), "answered before: given back, nothing to send")
    if view.unreadable:
        remark = "cannot be read or rendered: become failed records, nothing is sent"
        table.add_row(f"{nouns} that would fail", alarm(view.unreadable, "yellow"), remark)
    if view.kept:
        earlier = f"; {count(view.earlier_prompt)} answer an earlier prompt" if view.earlier_prompt else ""
        table.add_row("records kept", count(view.kept), f"of rows that this run would not take{earlier}")
    if view.surplus:
        table.add_row("records beyond samples", count(view.surplus), "go to the archive, and come back from there")
    table.add_section()
    cached = f"answers are in {view.cache}" if view.cache is not None else ""
    table.add_row("cache", count(view.cached) if view.cache is not None else "off", styled(line(cached)))
    equal = f"{plural(view.equal, 'request')} {'asks' if view.equal == 1 else 'ask'} the same as another one"
    remark = f"{equal}: {'sent once' if view.dedupe else '`dedupe: true` would send it once'}" if view.equal else ""
    table.add_row("dedupe", "on" if view.dedupe else "off", remark)
    table.add_row("requests", count(view.requests), "")
    table.add_row("prompt tokens", guess(count(view.prompt_tokens)), "")
    # Of prompts that are all of one length, none is the longest.
    if len(view.longest) > 1 and view.longest[0].prompt_tokens > view.longest[-1].prompt_tokens:
        table.add_row(
            "  the longest", guess(count(view.longest[0].prompt_tokens)), styled(line(_longest(view.longest)))
        )
    table.add_row("completion tokens", guess(count(view.completion_tokens)), "")
    for step in view.steps:
        table.add_row(f"step {step.step}: {line(step.model)}", *_step(step, view.currency))
    dated = f"prices as of {view.prices_as_of}" if view.prices_as_of else ""
    remark = dated if view.cost is not None else "no price known: set `prices` in the job"
    table.add_row("cost", guess(money(view.cost, view.currency)), styled(line(remark)))
    bound = f"decided by {view.binding}" if view.binding else ""
    table.add_row("time", guess(about(view.duration_s)), styled(line(bound)))
    for engine in view.engines:
        table.add_row(f"engine: {engine.engine}", *engine_row(engine, view.currency))
    for cap in view.caps:
        table.add_row(f"budget {cap.name}", _cap(cap, view.currency), _cap_remark(cap))
    if view.deadline_s is not None:
        late = view.duration_s is not None and view.duration_s > view.deadline_s
        table.add_row("deadline", about(view.deadline_s), "the run would stop before its end" if late else "enough")
    if view.spent.requests:
        # Runs before this one paid for these: they are no part of the cost above.
        spent = f"{plural(view.spent.requests, 'answer')} so far"
        table.add_row("already spent", cost(view.spent.cost, view.currency), spent)
    return table


def _step(step: StepPlan, currency: str | None) -> tuple[RenderableType, str]:
    price = f", {money(step.cost, currency)}" if step.cost is not None else ""
    takes = (
        f"takes answers with a confidence of {step.threshold:g} or more" if step.threshold is not None else "the last"
    )
    # No record tells yet how many rows go on to this step: all of them may.
    if step.share is None:
        return guess(count(step.requests)), f"at most{price}; {takes}"
    reached = "" if step.step == 1 else f"{step.share:.1%} of the rows here reached it; "
    return guess(count(step.requests)), f"{reached}{takes}{price}"


def _longest(prompts: Sequence[LongPrompt]) -> str:
    """Name the rows of the longest prompts."""
    return ", ".join(
        f"row {count(one.row_index)}" + (f" ({count(one.prompt_tokens)})" if number else "")
        for number, one in enumerate(prompts)
    )


def _cap(cap: PlanCap, currency: str | None) -> str:
    return money(cap.cap, currency) if cap.name == "max_cost" else count(int(cap.cap))


def _cap_remark(cap: PlanCap) -> str:
    if cap.needed is None:
        return ""
    if cap.needed <= cap.cap:
        return "enough"
    return f"the run would stop after about {percent(int(cap.cap * 1000), int(cap.needed * 1000))} of the requests"


def _most(failures: Sequence[FailureGroup]) -> list[FailureGroup]:
    """Return the commonest reasons, and of those left out how many they are."""
    most, rest = list(failures[:_REASONS]), failures[_REASONS:]
    if rest:
        most.append(FailureGroup("others", sum(group.count for group in rest), rest[0].example, rest[0].row_index))
    return most
