from __future__ import annotations

import io
import os
import re
import select
import subprocess
import sys
from dataclasses import replace
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from batchchat.cli.display import PlainProgress, ProgressDisplay, ProgressView, progress, progress_line
from batchchat.cli.logs import LogFormat, LogListener
from batchchat.cli.terminal import Terminal
from batchchat.events import BudgetUse, Event, FailureGroup, Forecast, Level, Pace, Snapshot
from batchchat.records import Spend

SNAPSHOT = Snapshot(
    run_id="r",
    job="label-tickets",
    phase="running",
    elapsed_s=6.2,
    total=300,
    total_exact=True,
    ok=61,
    failed=2,
    done_before=120,
    sending=32,
    waiting=3,
    attempts=190,
    retries=4,
    spend=Spend(63, 40_000, 1_200, 41_200, 0, 0, 0.0012),
    currency="EUR",
    rows_per_s=30.2,
    tokens_per_s=2100,
    eta_s=4.1,
    pace=Pace(300, 200_000, 32, 287, 41_000, 32),
    forecast=Forecast(63, False, 118_000, 0.0034, 118_000, 0.0034),
)


def drawn(snapshot: Snapshot, width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    with console.capture() as capture:
        console.print(ProgressView(snapshot))
    return capture.get().splitlines()


def test_what_is_used_of_a_budget_stands_beside_it() -> None:
    budget = BudgetUse(max_cost=0.002, max_tokens=50_000, max_requests=200, requests=180, in_flight=10, currency="EUR")
    lines = drawn(replace(SNAPSHOT, budget=budget, forecast=None, retries=0), width=120)
    assert lines[4].rstrip() == ("  cost    0.0012 EUR (of 0.0020) · 41k tokens (of 50k) · 190 requests (of 200)")


def test_the_commonest_reason_of_failures_has_a_line_of_its_own() -> None:
    failures = (FailureGroup("server", 2, "503", 1), FailureGroup("truncated", 131, "cut off:\nraise max_tokens", 0))
    lines = [line.rstrip() for line in drawn(replace(SNAPSHOT, failures=failures), 80)]
    assert len(lines) == 6
    assert lines[2] == "  failed  131 truncated (cut off: raise max_tokens) · 2 server"
    assert drawn(replace(SNAPSHOT, failures=failures), 30)[2].rstrip().startswith("  failed  131 truncated")
    assert "; 131 truncated; " in progress_line(replace(SNAPSHOT, failures=failures))
    assert len(drawn(SNAPSHOT)) == 5


def test_samples_are_called_so() -> None:
    lines = drawn(replace(SNAPSHOT, samples=3))
    assert lines[1].startswith("  samples 183 of 300 ")
    assert lines[2].startswith("  speed   30.2 samples/s ")


def test_eighty_columns_show_every_axis_that_matters() -> None:
    head, *lines = drawn(SNAPSHOT)
    assert re.fullmatch(r"label-tickets ━+─+  61%  ETA 4 s", head)
    assert [line.rstrip() for line in lines] == [
        "  rows    183 of 300 · 181 done · 2 failed · 32 in flight · 3 waiting",
        "  speed   30.2 rows/s · 2.1k tokens/s · 6 s so far",
        "  limits  287/300 req/min · 41k/200k tok/min · 32/32 at once",
        "  cost    0.0012 EUR (about 0.0034 at the end) · 41k tokens · 4 retries",
    ]
    assert len(head) == 80


def test_a_wide_terminal_shows_what_earlier_runs_did() -> None:
    assert "181 done (120 earlier) · 2 failed" in drawn(SNAPSHOT, 120)[1]


def test_a_narrow_terminal_keeps_done_and_failed() -> None:
    lines = drawn(SNAPSHOT, 40)
    assert "181 done · 2 failed" in lines[1]
    assert "ETA 4 s" in lines[0]


def test_trouble_is_named_and_stays_on_a_narrow_terminal() -> None:
    pace = replace(SNAPSHOT.pace, paused_s=12.2, breaker="open")
    for width in (40, 60, 80):
        assert "paused 12 s · breaker open" in drawn(replace(SNAPSHOT, pace=pace), width)[3]


def test_limits_that_are_not_set_show_what_is_used() -> None:
    line = drawn(replace(SNAPSHOT, pace=Pace(concurrency=8, requests_used=12, tokens_used=1500, in_use=3)))[3]
    assert line.strip() == "limits  12 req in 60 s · 1.5k tok in 60 s · 3/8 at once"


def test_what_holds_a_run_has_a_line_of_its_own_that_fits_80_columns() -> None:
    words = "60 requests/min, told by the provider in a refusal 12 s ago"
    lines = drawn(replace(SNAPSHOT, pace=replace(SNAPSHOT.pace, held_by=words)))
    assert [line.rstrip() for line in lines if "held" in line] == [f"  held    by {words}"]
    assert not any("held" in line for line in drawn(SNAPSHOT))


def test_an_unknown_eta_total_or_price_is_not_made_up() -> None:
    lines = drawn(replace(SNAPSHOT, total=None, eta_s=None, currency=None, spend=Spend()))
    assert "ETA \N{EN DASH}" in lines[0]
    assert "183 of ?" in lines[1]
    assert "no price known" in lines[4]


def test_a_guessed_total_never_says_all_is_done() -> None:
    lines = drawn(replace(SNAPSHOT, total=183, total_exact=False))
    assert "99%" in lines[0]
    assert "183 of ~183" in lines[1]


@pytest.mark.parametrize(
    ("phase", "word"), [("starting", "starting…"), ("draining", "draining…"), ("ending", "sealing…")]
)
def test_a_phase_takes_the_place_of_the_eta(phase: Literal["starting", "draining", "ending"], word: str) -> None:
    lines = drawn(replace(SNAPSHOT, phase=phase))
    assert lines[0].endswith(word)
    assert ("Ctrl-C stops at once" in lines[-1]) == (phase == "draining")


def test_one_failed_row_of_a_million_is_seen() -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system="standard", no_color=False)
    with console.capture() as capture:
        console.print(ProgressView(replace(SNAPSHOT, total=1_000_000, ok=500_000, failed=1)))
    assert "\x1b[31m━\x1b[0m" in capture.get()


small = st.integers(0, 10**9)
paces = st.builds(
    Pace,
    requests_per_minute=st.none() | st.floats(1, 1e6),
    tokens_per_minute=st.none() | st.floats(1, 1e9),
    concurrency=st.integers(0, 10**5),
    requests_used=st.floats(0, 1e6),
    tokens_used=st.floats(0, 1e9),
    in_use=st.integers(0, 10**5),
    paused_s=st.floats(0, 1e5),
    breaker=st.sampled_from(["closed", "open", "probing"]),
)
snapshots = st.builds(
    Snapshot,
    run_id=st.just("r"),
    job=st.text(max_size=60),
    phase=st.sampled_from(["starting", "running", "draining", "ending", "ended"]),
    elapsed_s=st.floats(0, 1e7),
    total=st.none() | small,
    total_exact=st.booleans(),
    ok=small,
    failed=small,
    done_before=small,
    failed_before=small,
    sending=small,
    waiting=small,
    retries=small,
    rate_limited=small,
    spend=st.builds(Spend, total_tokens=small, cost=st.floats(0, 1e9)),
    currency=st.none() | st.just("EUR"),
    rows_per_s=st.floats(0, 1e6),
    tokens_per_s=st.floats(0, 1e9),
    eta_s=st.none() | st.floats(0, 1e9),
    pace=paces,
)


@given(snapshots, st.integers(1, 200))
def test_no_snapshot_ever_wraps_or_exceeds_the_width(snapshot: Snapshot, width: int) -> None:
    lines = drawn(snapshot, width)
    assert len(lines) == (6 if snapshot.phase == "draining" else 5)
    assert max(cell_len(line) for line in lines) <= width


@given(snapshots)
def test_the_plain_line_is_one_line(snapshot: Snapshot) -> None:
    assert len(progress_line(snapshot).splitlines()) == 1


def test_the_display_is_redrawn_at_most_five_times_a_second_of_the_run() -> None:
    stream = io.StringIO()
    with ProgressDisplay(Terminal(stream, tty=True, width=80)) as display:
        for tick in range(100):
            display.update(replace(SNAPSHOT, elapsed_s=tick / 100))
        running = stream.getvalue().count("rows/s")
        display.update(replace(SNAPSHOT, elapsed_s=0.991, phase="draining"))
        draining = stream.getvalue().count("rows/s")
    assert running == 5
    assert draining == 6


def test_a_closed_display_stays_closed() -> None:
    stream = io.StringIO()
    display = ProgressDisplay(Terminal(stream, tty=True, width=80))
    display.update(SNAPSHOT)
    display.close()
    display.close()
    before = stream.getvalue()
    display.update(replace(SNAPSHOT, elapsed_s=60))
    assert stream.getvalue() == before


def test_the_cursor_is_never_left_hidden_and_stdout_is_left_alone() -> None:
    stream, stdout = io.StringIO(), sys.stdout
    with ProgressDisplay(Terminal(stream, tty=True, width=80)) as display:
        display.update(SNAPSHOT)
        assert sys.stdout is stdout
        text = stream.getvalue()
        assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l")


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    stream = io.StringIO()
    with ProgressDisplay(Terminal(stream, tty=True, width=80)) as display:
        display.update(replace(SNAPSHOT, waiting=5))
    assert not re.search(r"\x1b\[[0-9;]*(3[0-7]|9[0-7])m", stream.getvalue())


def test_a_broken_terminal_does_not_stop_the_display() -> None:
    class Gone(io.StringIO):
        def write(self, _text: str) -> int:
            raise BrokenPipeError

    with ProgressDisplay(Terminal(Gone(), tty=True)) as display:
        for second in range(3):
            display.update(replace(SNAPSHOT, elapsed_s=float(second)))


def test_lines_come_now_and_then_and_rarer_with_time() -> None:
    events: list[Event] = []
    with PlainProgress(events.append) as plain:
        for tick in range(4 * 900):
            plain.update(replace(SNAPSHOT, elapsed_s=tick / 4))
    told = [event.fields["elapsed_s"] for event in events]
    assert told == [2, 12, 22, 32, 42, 52, 62, *range(92, 603, 30), 662, 722, 782, 842]


def test_draining_is_told_at_once_and_once() -> None:
    events: list[Event] = []
    plain = PlainProgress(events.append)
    for tick in range(8):
        plain.update(replace(SNAPSHOT, elapsed_s=tick / 4, phase="draining"))
    assert len(events) == 1


def test_a_plain_line_holds_the_same_figures() -> None:
    events: list[Event] = []
    PlainProgress(events.append).update(SNAPSHOT)
    (event,) = events
    assert (event.name, event.level) == ("progress", "info")
    assert event.message == (
        "label-tickets 61%, ETA 4 s: 183 of 300, 181 done (120 earlier), 2 failed, 32 in flight, 3 waiting; "
        "30.2 rows/s, 2.1k tokens/s, 6 s so far; 287/300 req/min, 41k/200k tok/min, 32/32 at once; "
        "0.0012 EUR (about 0.0034 at the end), 41k tokens, 4 retries"
    )
    assert event.fields["ok"] == 61
    assert event.fields["requests_per_minute"] == 300


@pytest.mark.parametrize(
    ("tty", "form", "level", "kind"),
    [
        (True, "text", "info", ProgressDisplay),
        (True, "text", "debug", ProgressDisplay),
        (True, "json", "info", PlainProgress),
        (True, "text", "warning", PlainProgress),
        (False, "text", "info", PlainProgress),
    ],
)
def test_who_watches_decides_the_kind_of_progress(tty: bool, form: LogFormat, level: Level, kind: type[Any]) -> None:
    terminal = Terminal(io.StringIO(), tty=tty)
    assert isinstance(progress(terminal, LogListener(terminal, level=level, format=form)), kind)


IN_A_TERMINAL = """
import sys, threading
from dataclasses import replace
from batchchat.cli.display import progress
from batchchat.cli.logs import LogListener
from batchchat.cli.terminal import Terminal
from batchchat.events import Event, Pace, Snapshot
terminal = Terminal(sys.stderr)
log = LogListener(terminal)
snapshot = Snapshot("r", "label-tickets", "running", 0.0, 300, True, pace=Pace(300, 200000, 32, 1, 1, 1))
def worker(name):
    for i in range(100):
        log(Event("retry", f"worker {name} row {i} answered 503, waiting 2 s", "warning"))
        if i % 10 == 0:
            print(f"stray {name} {i}", file=sys.stderr)
with progress(terminal, log) as display:
    display.update(snapshot)
    workers = [threading.Thread(target=worker, args=(name,)) for name in "ab"]
    for each in workers: each.start()
    for tick in range(100):
        phase = "draining" if tick % 20 > 15 else "running"
        display.update(replace(snapshot, ok=tick, elapsed_s=tick * 0.3, phase=phase))
    for each in workers: each.join()
    display.update(replace(snapshot, ok=299, elapsed_s=99.0, phase="running"))
terminal.write_line("the end")
"""


class Screen:
    """A terminal that understands what the display uses: newline, return, cursor up, erase line, colours."""

    def __init__(self) -> None:
        self.lines: list[str] = [""]
        self.row = self.column = 0

    def feed(self, text: str) -> None:
        for token in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", text):
            if token == "\n":
                self.row, self.column = self.row + 1, 0
                if self.row == len(self.lines):
                    self.lines.append("")
            elif token == "\r":
                self.column = 0
            elif token.endswith("A"):
                self.row -= int(token[2:-1] or 1)
            elif token.endswith("K"):
                self.lines[self.row] = ""
            elif not token.startswith("\x1b"):
                line = self.lines[self.row].ljust(self.column)
                self.lines[self.row] = line[: self.column] + token + line[self.column + len(token) :]
                self.column += len(token)


def in_a_terminal(script: str) -> str:
    """Run a script whose three streams are a pseudo-terminal; return all that reached it."""
    master, slave = os.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "40"}
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=slave, stdout=slave, stderr=slave, env=environment
    ) as process:
        os.close(slave)
        received = b""
        while select.select([master], [], [], 30)[0]:
            try:
                received += os.read(master, 65_536)
            except OSError:  # the last writer has closed its end
                break
        os.close(master)
        assert process.wait(10) == 0
    return received.decode()


def test_the_display_never_tears_a_log_line_in_a_real_terminal() -> None:
    received = in_a_terminal(IN_A_TERMINAL)
    screen = Screen()
    screen.feed(received)
    lines = [line.rstrip() for line in screen.lines]
    wanted = [f"worker {name} row {i} answered 503, waiting 2 s" for name in "ab" for i in range(100)]
    shown = [line.split(" warning ")[1] for line in lines if " warning " in line]
    assert sorted(shown) == sorted(wanted)
    assert all(re.fullmatch(r"\d\d:\d\d:\d\d warning worker .*", line) for line in lines if "worker" in line)
    assert sorted(line for line in lines if line.startswith("stray")) == sorted(
        f"stray {name} {i}" for name in "ab" for i in range(0, 100, 10)
    )
    # The display itself is gone: only lines are left, and the last one stands right below them.
    assert len([line for line in lines if line]) == 200 + 20 + 1
    assert [line for line in lines if line][-1] == "the end"
