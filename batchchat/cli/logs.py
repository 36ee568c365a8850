"""Log lines on stderr: coloured above the live display at a terminal, plain or JSON where a program reads.

    12:03:04 warning provider answered 503, waiting 2 s            a terminal, local time
    2026-03-01T11:03:04Z warning provider answered 503, …          no terminal
    {"time": "2026-03-01T11:03:04.120Z", "level": "warning", "event": "retry", "message": …, …fields}

An event is one line whatever its message holds, and no line shows a registered secret.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Literal

from batchchat.cli.terminal import Terminal, mask
from batchchat.events import Event, Level, Listener
from batchchat.format import one_line

LogFormat = Literal["text", "json"]

_RANK: Mapping[Level, int] = {"debug": 10, "info": 20, "warning": 30, "error": 40}
"""How grave a level is: a listener leaves out what is below its own."""
_STYLES: Mapping[Level, str] = {"debug": "dim", "info": "cyan", "warning": "yellow", "error": "bold red"}
_OWN_NAMES = ("time", "level", "event", "message")


class LogListener:
    """Writes each event of at least `level` as one line. Call it with an `Event`, from any thread; it never raises.

    `now` gives the time of a line (aware; shown in local time at a terminal, in UTC elsewhere).
    """

    def __init__(
        self,
        terminal: Terminal,
        *,
        level: Level = "info",
        format: LogFormat = "text",
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.terminal = terminal
        self.level = level
        self.format = format
        self._now = now

    def __call__(self, event: Event) -> None:
        """Write the event's line, if its level is wanted."""
        if _RANK[event.level] < _RANK[self.level]:
            return
        if self.format == "json":
            self.terminal.write_line(mask(_json_line(event, self._now())))
        # A person reads: local time, and colours.
        elif self.terminal.tty:
            self._styled(event)
        else:
            stamp = self._now().astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            self.terminal.write_line(f"{stamp} {event.level} {self._text(event)}")

    def _styled(self, event: Event) -> None:
        from rich.text import Text

        line = Text(no_wrap=True, overflow="ignore")
        line.append(self._now().astimezone().strftime("%H:%M:%S "), style="dim")
        line.append(event.level, style=_STYLES[event.level])
        line.append(" " + self._text(event), style="dim" if event.level == "debug" else "")
        self.terminal.print(line)

    def _text(self, event: Event) -> str:
        """Return the message, with the fields if every detail was asked for."""
        text = event.message
        if self.level == "debug":
            text += "".join(f" {name}={_plain(value)}" for name, value in event.fields.items())
        # Masked before hidden characters are made visible: a secret is known by its own characters.
        return one_line(mask(text))


@contextmanager
def library_logs(listener: Listener) -> Iterator[None]:
    """Turn what libraries log (warnings and up) and `warnings.warn` into events, until the block ends."""
    handler = _EventHandler(listener)
    root = logging.getLogger()
    root.addHandler(handler)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.removeHandler(handler)


class _EventHandler(logging.Handler):
    """Hands records of the standard `logging` to a listener, as events named `log`."""

    def __init__(self, listener: Listener) -> None:
        super().__init__(logging.WARNING)
        self._listener = listener

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except (TypeError, ValueError, KeyError):  # a library whose arguments do not fit its own format
            message = str(record.msg)
        fields: dict[str, object] = {"logger": record.name, "traceback": None}
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            message += f" ({type(error).__name__}: {error})"
            if record.exc_info[2] is not None:
                fields["traceback"] = logging.Formatter().formatException(record.exc_info)
        level: Level = "error" if record.levelno >= logging.ERROR else "warning"
        self._listener(Event("log", f"{record.name}: {message}", level, fields))


def _json_line(event: Event, now: datetime) -> str:
    stamp = now.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    line: dict[str, object] = {
        "time": stamp,
        "level": event.level,
        "event": event.name,
        "message": event.message,
    }
    for name, value in event.fields.items():
        # A field may be named as one of ours: neither may be lost.
        line[f"{name}_" if name in _OWN_NAMES else name] = _plain(value)
    # ASCII only: no letter of the data can act on a terminal, or be lost to a stream that is not UTF-8.
    return json.dumps(line)


def _plain(value: object) -> object:
    """Return the value in JSON's own types; a number that JSON cannot hold becomes its name."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(inner) for inner in value]
    return str(value)
