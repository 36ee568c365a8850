"""Live progress: a display of a few lines at a terminal, a log line now and then without one.

    label-tickets ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━───────────────────  61%  ETA 4 s
      rows    183 of 300 · 181 done · 2 failed · 32 in flight · 3 waiting
      speed   30.2 rows/s · 2.1k tokens/s · 6 s so far
      limits  287/300 req/min · 41k/200k tok/min · 32/32 at once
      cost    0.0012 EUR (about 0.0020 at the end) · 41k tokens · 4 retries

Once a row has failed, a line `failed` below the rows names the commonest reasons.

Both kinds take the same snapshots through `update` and keep no thread or clock of their own: a snapshot carries
the run's time. On a narrow terminal the least important figures of a line give way; no line ever wraps.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple, Self

from batchchat.cli.logs import LogListener
from batchchat.cli.terminal import Terminal
from batchchat.events import BudgetUse, Event, Listener, Pace, Snapshot
from batchchat.format import about, asked, count, money, one_line, percent, plural, rate, short

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.live import Live
    from rich.text import Text

_REDRAW_S = 0.2
"""Seconds between two drawings: a person sees no more, and each one takes time from the run. Chosen."""
_FIRST_LINE_S = 2.0
"""Seconds of a run before a log gets its first line: shorter runs tell only how they ended."""
_LABEL = 8
_INDENT = 2
"""Columns of the label before a line of figures, and of the room before that."""
_NEAR_LIMIT = 0.95
"""The part of a limit from which its use is shown in yellow. Chosen, not measured."""
_PHASES = {
    "starting": "starting…",
    "paused": "paused",
    "draining": "draining…",
    "ending": "sealing…",
    "ended": "ended",
}


class Figure(NamedTuple):
    """One short text of a progress line. The figure with the highest `rank` gives way first; 0 always stays.

    A text in parentheses belongs to the figure before it.
    """

    text: str
    style: str = ""
    rank: int = 0


def progress(terminal: Terminal, log: LogListener) -> ProgressDisplay | PlainProgress:
    """Return the live display if a person watches text at a terminal, lines in the log otherwise.

    A log that hides `info` (`--quiet`) gets the lines too, and drops them.
    """
    if terminal.tty and log.format == "text" and log.level in {"debug", "info"}:
        return ProgressDisplay(terminal)
    return PlainProgress(log)


class ProgressDisplay:
    """Draws the newest snapshot below the log lines, at most five times a second; gone when the block ends."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._live: Live | None = None
        self._drawn: Snapshot | None = None
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def update(self, snapshot: Snapshot) -> None:
        """Show this snapshot, unless the last one was drawn within 0.2 s and in the same phase, or all is over."""
        last = self._drawn
        if last is not None and last.phase == snapshot.phase and 0 <= snapshot.elapsed_s - last.elapsed_s < _REDRAW_S:
            return
        with self._terminal.lock:
            # A snapshot may come from a thread after the end: it would draw over what was printed since.
            if self._closed:
                return
            self._drawn = snapshot
            # With the first snapshot, so that errors before it are plain lines.
            if self._live is None:
                self._live = self._start()
            self._live.update(ProgressView(snapshot), refresh=True)

    def close(self) -> None:
        """Take the display away and leave the cursor where the next line goes. May be called twice."""
        with self._terminal.lock:
            self._closed = True
            live, self._live = self._live, None
            if live is not None:
                live.stop()

    def _start(self) -> Live:
        from rich.live import Live

        console = self._terminal.console
        live = Live(
            console=console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,  # stdout is for results: it may be a file
            redirect_stderr=self._terminal.stream.wraps(sys.stderr),
            vertical_overflow="crop",
        )
        live.start()
        # rich hides the cursor; a process that is killed could not bring it back.
        console.show_cursor(True)
        return live


class PlainProgress:
    """Tells the same figures as events named `progress`.

    The first comes after 2 s, then one every 10 s; after a minute every 30 s, after ten minutes every 60 s.
    """

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._due_s = _FIRST_LINE_S
        self._draining = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def update(self, snapshot: Snapshot) -> None:
        """Tell this snapshot if a line is due, or if the run has just begun to drain."""
        begins_to_drain = snapshot.phase == "draining" and not self._draining
        self._draining = snapshot.phase == "draining"
        if snapshot.elapsed_s < self._due_s and not begins_to_drain:
            return
        elapsed = snapshot.elapsed_s
        self._due_s = elapsed + (10 if elapsed < 60 else 30 if elapsed < 600 else 60)
        self._listener(Event("progress", progress_line(snapshot), "info", _fields(snapshot)))

    def close(self) -> None:
        """Do nothing: a line that was written stays."""


class ProgressView:
    """A snapshot as a rich renderable of five lines, none wider than the console.

    One more tells why most of the failed rows failed, and one that the run is paused or draining.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> Iterator[Text]:
        """Yield the lines."""
        snapshot, width = self.snapshot, options.max_width
        yield _headline(snapshot, width)
        yield _line(f"{asked(snapshot.samples)}s", _row_figures(snapshot), width)
        if snapshot.failures:
            yield _line("failed", _failure_figures(snapshot), width)
        yield _line("speed", _speed_figures(snapshot), width)
        yield _line("limits", _limit_figures(snapshot.pace, held=False), width)
        if snapshot.pace.held_by is not None:
            # A line of its own: beside the figures a terminal of 80 columns has no room for it.
            yield _line("held", [Figure(f"by {snapshot.pace.held_by}", "dim")], width)
        yield _line("cost", _cost_figures(snapshot), width)
        if snapshot.phase == "paused":
            yield _line("", [_paused_figure(snapshot)], width)
        if snapshot.phase == "draining":
            yield _line(
                "",
                [Figure("finishing what is in flight", "yellow"), Figure("Ctrl-C stops at once", "yellow", 1)],
                width,
            )


def _paused_figure(snapshot: Snapshot) -> Figure:
    by = snapshot.steering.paused_by
    # A program that pauses its own run is no person, and resumes it itself.
    how = "" if by is None else f" by {by}; `batchchat control DIR resume` goes on"
    return Figure(f"paused{how}", "yellow")


def progress_line(snapshot: Snapshot) -> str:
    """Return all figures as one line of plain text."""
    state = _PHASES.get(snapshot.phase) or f"ETA {about(snapshot.eta_s)}"
    groups = (
        _row_figures(snapshot),
        _failure_figures(snapshot)[:1] if snapshot.failures else [],
        _speed_figures(snapshot),
        _limit_figures(snapshot.pace),
        _cost_figures(snapshot),
    )
    figures = "; ".join("".join(_joined(group, ", ")) for group in groups if group)
    return f"{one_line(snapshot.job, 60)} {percent(_settled(snapshot), _whole(snapshot))}, {state}: {figures}"


def _settled(snapshot: Snapshot) -> int:
    return snapshot.ok + snapshot.failed + snapshot.done_before + snapshot.failed_before + snapshot.skipped


def _whole(snapshot: Snapshot) -> int | None:
    """Return the rows that 100% stands for; one more than is settled while the total is only guessed too low."""
    if snapshot.total is None or snapshot.total_exact:
        return snapshot.total
    return max(snapshot.total, _settled(snapshot) + 1)


def _row_figures(snapshot: Snapshot) -> list[Figure]:
    done = snapshot.ok + snapshot.done_before
    failed = snapshot.failed + snapshot.failed_before
    total = "?" if snapshot.total is None else ("" if snapshot.total_exact else "~") + count(snapshot.total)
    figures = [
        Figure(f"{count(_settled(snapshot))} of {total}", "", 1),
        Figure(f"{count(done)} done", "green"),
        Figure(f"{count(failed)} failed", "bold red" if failed else ""),
        Figure(f"{count(snapshot.sending)} in flight", "", 3),
        Figure(f"{count(snapshot.waiting)} waiting", "yellow" if snapshot.waiting else "", 2),
    ]
    if snapshot.skipped:
        figures.append(Figure(f"{count(snapshot.skipped)} skipped", "dim", 3))
    if snapshot.done_before:
        figures.insert(2, Figure(f"({count(snapshot.done_before)} earlier)", "dim", 4))
    return figures


def _failure_figures(snapshot: Snapshot) -> list[Figure]:
    """Return the commonest reasons of failures, and an example of the first."""
    first, *others = sorted(snapshot.failures, key=lambda group: -group.count)
    figures = [Figure(f"{count(first.count)} {first.kind}", "bold red")]
    if first.example:
        figures.append(Figure(f"({one_line(first.example, 200)})", ""))
    figures += [Figure(f"{count(group.count)} {group.kind}", "red", 1 + number) for number, group in enumerate(others)]
    return figures


def _speed_figures(snapshot: Snapshot) -> list[Figure]:
    return [
        Figure(f"{rate(snapshot.rows_per_s)} {asked(snapshot.samples)}s/s"),
        Figure(f"{short(snapshot.tokens_per_s)} tokens/s", "", 1),
        Figure(f"{about(snapshot.elapsed_s)} so far", "", 2),
    ]


def _limit_figures(pace: Pace, *, held: bool = True) -> list[Figure]:
    figures = [
        _used(pace.requests_used, pace.requests_per_minute, "req/min", 2),
        _used(pace.tokens_used, pace.tokens_per_minute, "tok/min", 3),
        Figure(f"{pace.in_use}/{pace.concurrency} at once", "", 4),
    ]
    if pace.shared_by > 1:
        figures.append(Figure(f"shared with {plural(pace.shared_by - 1, 'other run')}", "dim", 5))
    if held and pace.held_by is not None:
        figures.append(Figure(f"held by {pace.held_by}", "dim", 5))
    if pace.paused_s > 0:
        figures.append(Figure(f"paused {about(max(1.0, pace.paused_s))}", "yellow", 1))
    if pace.breaker != "closed":
        figures.append(Figure(f"breaker {pace.breaker}", "bold red" if pace.breaker == "open" else "yellow"))
    return figures


def _used(used: float, limit: float | None, unit: str, rank: int) -> Figure:
    if limit is None:
        # No limit is known: this is what went, and must not read as one.
        return Figure(f"{short(used)} {unit.removesuffix('/min')} in 60 s", "", rank)
    near = "yellow" if used >= limit * _NEAR_LIMIT else ""
    return Figure(f"{short(used)}/{short(limit)} {unit}", near, rank)


def _cost_figures(snapshot: Snapshot) -> list[Figure]:
    spend, forecast = snapshot.spend, snapshot.forecast
    caps = snapshot.budget or BudgetUse()
    priced = snapshot.currency is not None or spend.cost > 0
    figures = [Figure(money(spend.cost, snapshot.currency) if priced else "no price known")]
    if caps.max_cost is not None:
        figures.append(Figure(f"(of {money(caps.max_cost)})", "dim", 2))
    if forecast is not None and forecast.cost:
        figures.append(Figure(f"(about {money(forecast.cost)} at the end)", "dim", 4))
    figures.append(Figure(f"{short(spend.total_tokens)} tokens", "", 1))
    if caps.max_tokens is not None:
        figures.append(Figure(f"(of {short(caps.max_tokens)})", "dim", 2))
    # Those under way count, too: they cannot be taken back.
    if caps.max_requests is not None:
        figures.append(Figure(f"{count(caps.requests + caps.in_flight)} requests", "", 1))
        figures.append(Figure(f"(of {count(caps.max_requests)})", "dim", 2))
    if snapshot.retries:
        figures.append(Figure(plural(snapshot.retries, "retry", "retries"), "", 2))
    if snapshot.rate_limited:
        figures.append(Figure(f"{count(snapshot.rate_limited)} rate limited", "yellow", 3))
    return figures


def _line(label: str, figures: list[Figure], width: int) -> Text:
    """Return the figures that fit, in their order; the last one is cut if even those of rank 0 do not fit."""
    from rich.text import Text

    kept = list(figures)
    room = width - _INDENT - _LABEL
    while sum(len(figure.text) + 3 for figure in kept) - 3 > room and len(kept) > 1:
        last = max(kept, key=lambda figure: figure.rank)
        # These stay: the line is cut at its end.
        if last.rank == 0:
            break
        kept.remove(last)
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(" " * _INDENT + label.ljust(_LABEL), style="dim")
    for figure, words in zip(kept, _joined(kept, " · "), strict=True):
        text.append(words.removesuffix(figure.text), style="dim")
        text.append(figure.text, style=figure.style)
    text.truncate(width, overflow="ellipsis")
    return text


def _joined(figures: list[Figure], separator: str) -> list[str]:
    """Return each figure's text with what separates it from the one before."""
    return [
        (" " if figure.text.startswith("(") else separator if index else "") + figure.text
        for index, figure in enumerate(figures)
    ]


def _headline(snapshot: Snapshot, width: int) -> Text:
    from rich.text import Text

    state = _PHASES.get(snapshot.phase) or f"ETA {about(snapshot.eta_s)}"
    right = f" {percent(_settled(snapshot), _whole(snapshot)):>4}  {state}"
    name = Text(one_line(snapshot.job), style="bold", no_wrap=True)
    name.truncate(min(28, max(0, width // 3)), overflow="ellipsis")
    # A narrow terminal: a bar says more than a name.
    if width - len(right) - name.cell_len - 1 < 10:
        name = Text()
    line = Text(no_wrap=True, overflow="ellipsis")
    if name:
        line.append_text(name).append(" ")
    bar = _bar(snapshot, width - len(right) - line.cell_len)
    line.append_text(bar)
    line.append(right[:6], style="bold")
    line.append(right[6:], style="yellow" if snapshot.phase in {"draining", "paused"} else "")
    line.truncate(width, overflow="ellipsis")
    return line


def _bar(snapshot: Snapshot, width: int) -> Text:
    """Return `width` cells: done, then failed, then what is left. One failed row is seen in a bar of any length."""
    from rich.text import Text

    width = max(0, width)
    whole = _whole(snapshot) or 0
    settled = _settled(snapshot)
    full = (width if settled >= whole else settled * width // whole) if whole else 0
    failed = snapshot.failed + snapshot.failed_before
    red = min(full, max(1, round(failed / whole * width))) if failed and whole else 0
    bar = Text()
    bar.append("━" * (full - red), style="green")
    bar.append("━" * red, style="red")
    rest = width - full
    bar.append("─" * rest, style="bright_black")
    return bar


def _fields(snapshot: Snapshot) -> dict[str, object]:
    pace = snapshot.pace
    return {
        "phase": snapshot.phase,
        "samples": snapshot.samples,
        "elapsed_s": round(snapshot.elapsed_s, 3),
        "total": snapshot.total,
        "total_exact": snapshot.total_exact,
        "ok": snapshot.ok,
        "failed": snapshot.failed,
        "done_before": snapshot.done_before,
        "failed_before": snapshot.failed_before,
        "skipped": snapshot.skipped,
        "sending": snapshot.sending,
        "waiting": snapshot.waiting,
        "attempts": snapshot.attempts,
        "retries": snapshot.retries,
        "rate_limited": snapshot.rate_limited,
        "rows_per_s": round(snapshot.rows_per_s, 3),
        "tokens_per_s": round(snapshot.tokens_per_s, 3),
        "eta_s": None if snapshot.eta_s is None else round(snapshot.eta_s, 3),
        "total_tokens": snapshot.spend.total_tokens,
        "cost": snapshot.spend.cost,
        "currency": snapshot.currency,
        "forecast_tokens": snapshot.forecast.tokens if snapshot.forecast else None,
        "forecast_cost": snapshot.forecast.cost if snapshot.forecast else None,
        "requests_used": round(pace.requests_used, 3),
        "requests_per_minute": pace.requests_per_minute,
        "tokens_used": round(pace.tokens_used, 3),
        "tokens_per_minute": pace.tokens_per_minute,
        "in_use": pace.in_use,
        "concurrency": pace.concurrency,
        "paused_s": round(pace.paused_s, 3),
        "breaker": pace.breaker,
        "held_by": pace.held_by,
        "shared_by": pace.shared_by,
    }
