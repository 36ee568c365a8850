from __future__ import annotations

import io
import json
import logging
import os
import re
import subprocess
import sys
import threading
import warnings
from datetime import UTC, datetime
from urllib.parse import quote

import pytest

from batchchat.cli.logs import LogListener, library_logs
from batchchat.cli.terminal import Masker, Terminal, mask
from batchchat.events import Event, Level

NOON = datetime(2026, 3, 1, 12, 3, 4, 120_000, tzinfo=UTC)
LEVELS: tuple[Level, ...] = ("debug", "info", "warning", "error")


def written(*events: Event, tty: bool = False, level: Level = "info", json_lines: bool = False) -> list[str]:
    stream = io.StringIO()
    log = LogListener(
        Terminal(stream, tty=tty, width=80), level=level, format="json" if json_lines else "text", now=lambda: NOON
    )
    for event in events:
        log(event)
    return stream.getvalue().splitlines()


def without_escapes(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_without_a_terminal_a_line_is_plain_and_dated() -> None:
    event = Event("retry", "provider answered 503", "warning", {"row_index": 3})
    assert written(event) == ["2026-03-01T12:03:04Z warning provider answered 503"]


def test_at_a_terminal_a_line_has_local_time_and_is_never_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    long = "waits " * 40
    (line,) = written(Event("retry", long, "warning"), tty=True)
    assert without_escapes(line) == f"{NOON.astimezone():%H:%M:%S} warning {long.strip()}"


def test_a_message_is_one_line_and_cannot_act_on_the_terminal() -> None:
    for tty in (False, True):
        (line,) = written(Event("x", "bad\n[red]row[/red] \x1b[2J:smile:\x9b"), tty=tty)
        assert without_escapes(line).endswith(r"info bad [red]row[/red] \x1b[2J:smile:\x9b")


@pytest.mark.parametrize(("level", "shown"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_the_level_decides_what_is_shown(level: Level, shown: int) -> None:
    lines = written(*(Event("e", f"a {name}", name) for name in LEVELS), level=level)
    assert [line.split(" a ")[1] for line in lines] == list(LEVELS[-shown:])


def test_every_detail_is_shown_on_request() -> None:
    (line,) = written(Event("retry", "again", fields={"row_index": 3, "wait_s": 2.5}), level="debug")
    assert line.endswith("info again row_index=3 wait_s=2.5")


def test_json_lines_hold_time_level_event_message_and_fields() -> None:
    fields = {"row_index": 3, "level": "mine", "rate": float("inf"), "nested": {"a": (1, None)}, "path": NOON}
    (line,) = written(Event("retry", "naïve\n\u202e", "error", fields), json_lines=True)
    assert line.isascii()
    assert json.loads(line) == {
        "time": "2026-03-01T12:03:04.120Z",
        "level": "error",
        "event": "retry",
        "message": "naïve\n\u202e",
        "row_index": 3,
        "level_": "mine",
        "rate": "inf",
        "nested": {"a": [1, None]},
        "path": str(NOON),
    }


def test_json_lines_at_a_terminal_are_json_too() -> None:
    (line,) = written(Event("retry", "x" * 200), tty=True, json_lines=True)
    assert json.loads(line)["message"] == "x" * 200


@pytest.mark.parametrize("tty", [False, True])
@pytest.mark.parametrize("json_lines", [False, True])
def test_no_line_shows_a_registered_secret(tty: bool, json_lines: bool) -> None:
    secret = f'canary-"é/{os.getpid()}'
    mask.register(secret)
    event = Event("auth", f"key {secret} refused", fields={"url": f"http://h/?k={quote(secret)}", "list": [secret]})
    (line,) = written(event, tty=tty, json_lines=json_lines, level="debug")
    assert "***" in line
    assert "canary" not in line


def test_the_masker_knows_longer_secrets_first_and_leaves_words_alone() -> None:
    masker = Masker()
    for secret in ("abcdefgh", "abcdefgh-ijkl", "short", "", None, "  spaced-secret\n"):
        masker.register(secret)
    assert masker("abcdefgh-ijkl abcdefgh short spaced-secret") == "*** *** short ***"


def test_the_terminal_masks_whatever_is_written_to_it() -> None:
    stream, masker = io.StringIO(), Masker()
    masker.register("test-key-canary")
    terminal = Terminal(stream, tty=False, masker=masker)
    terminal.write_line("plain test-key-canary")
    terminal.console.print("styled test-key-canary")
    assert stream.getvalue() == "plain ***\nstyled ***\n"


def test_libraries_warn_through_the_same_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Event] = []
    logger = logging.getLogger("some.package")
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # the test runner's own would stumble over a bad format
    with warnings.catch_warnings(), library_logs(events.append):
        warnings.simplefilter("always")
        logger.info("not shown")
        logger.warning("slow %s", "disk")
        logger.warning("no place for %d", "this")
        try:
            raise OSError("gone")
        except OSError:
            logger.exception("failed")
        warnings.warn("old habit", UserWarning, stacklevel=1)
    logger.warning("after the end")
    assert [(event.level, event.message.splitlines()[0]) for event in events[:3]] == [
        ("warning", "some.package: slow disk"),
        ("warning", "some.package: no place for %d"),
        ("error", "some.package: failed (OSError: gone)"),
    ]
    assert events[2].fields["logger"] == "some.package"
    assert "Traceback" in str(events[2].fields["traceback"])
    assert "old habit" in events[3].message
    assert len(events) == 4


def test_lines_of_many_threads_do_not_mix() -> None:
    stream = io.StringIO()
    log = LogListener(Terminal(stream, tty=True, width=60), now=lambda: NOON)

    def write(worker: int) -> None:
        for i in range(30):
            log(Event("e", f"worker {worker} line {i} end"))

    workers = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    lines = without_escapes(stream.getvalue()).splitlines()
    assert sorted(line.split("info ")[1] for line in lines) == sorted(
        f"worker {n} line {i} end" for n in range(4) for i in range(30)
    )


class Broken(io.StringIO):
    """A stream whose reader has left."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def write(self, _text: str) -> int:
        raise self.error


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(5, "gone"), ValueError("closed")])
@pytest.mark.parametrize("tty", [False, True])
def test_a_broken_stream_changes_nothing(error: Exception, tty: bool) -> None:
    terminal = Terminal(Broken(error), tty=tty)
    log = LogListener(terminal)
    for _ in range(3):
        log(Event("e", "into the void"))
    terminal.print("a table")
    assert not terminal.stream.isatty()


def test_a_terminal_that_is_full_for_a_moment_is_used_again() -> None:
    stream = io.StringIO()
    terminal = Terminal(stream, tty=False)
    full = Broken(BlockingIOError())
    terminal.stream._stream = full
    terminal.write_line("lost")
    terminal.stream._stream = stream
    terminal.write_line("seen")
    assert stream.getvalue() == "seen\n"


def test_no_stream_at_all_is_silence() -> None:
    terminal = Terminal(None)
    terminal.write_line("nobody reads this")
    terminal.print("nor this")
    assert not terminal.tty
    with pytest.raises(OSError, match="closed"):
        terminal.stream.fileno()


def test_a_stream_of_few_letters_gets_every_line() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", errors="strict")
    Terminal(stream, tty=False).write_line("━━── 3 · 日…")
    assert raw.getvalue() == b"==-- 3 | \\u65e5~\n"


def test_a_dumb_terminal_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = os.openpty()
    with os.fdopen(master), os.fdopen(slave, "w") as stream:
        monkeypatch.setenv("TERM", "xterm")
        assert Terminal(stream).tty
        monkeypatch.setenv("TERM", "dumb")
        assert not Terminal(stream).tty


def test_a_reader_that_left_does_not_change_the_exit_code() -> None:
    script = """
import sys, time
from batchchat.cli.terminal import Terminal
out, err = Terminal(sys.stdout), Terminal(sys.stderr)
sys.stdin.read()
for i in range(3):
    out.write_line("x" * 100); err.write_line("y"); out.print("z")
raise SystemExit(4)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdin
    assert process.stdout
    assert process.stderr
    with process:
        process.stdout.close()
        process.stderr.close()
        process.stdin.close()
        assert process.wait(20) == 4


def test_nothing_heavy_is_imported_before_a_line_is_styled() -> None:
    script = (
        "import sys; import batchchat.cli.display, batchchat.cli.logs as logs;"
        "from batchchat.cli import plan_page, record_page, status_page, summary_page;"
        "from batchchat.cli.terminal import Terminal; from batchchat.events import Event;"
        "logs.LogListener(Terminal(sys.stderr, tty=False))(Event('a', 'b'));"
        "print([name for name in ('rich', 'pyarrow', 'httpx', 'pydantic', 'anyio') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=20)
    assert answer.stdout == "[]\n"
