"""stderr and stdout as places to print that never fail, never tear and never show a secret.

`Terminal` wraps one stream. A stream that closes (the reader of a pipe left, the terminal window is gone) makes it
silent: neither the run nor its exit code changes. Everything written passes the masker, so that no secret that was
registered is ever printed. rich is imported at the first styled line, not before.
"""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO, cast
from urllib.parse import quote
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_SHORTEST_SECRET = 8
"""Characters that a secret has at least: a shorter text occurs in harmless words, which would be masked too."""
_MOST_SECRETS = 100
"""Secrets that are kept. Of those that are renewed, older ones have expired long since."""
_STARS = "***"
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What a disk says that takes nothing more: unlike a reader who has left, somebody counts on what is written there."""
_losses: WeakKeyDictionary[TextIO, OSError] = WeakKeyDictionary()
"""Why a stream did not take all that was written. It is kept by the stream itself: each has several wrappers."""
# For streams that are not UTF-8: one character for one, so that widths stay.
_PLAIN_LETTERS = str.maketrans({"━": "=", "─": "-", "·": "|", "\N{EN DASH}": "-", "…": "~"})


class Masker:
    """Replaces every registered secret by `***`, also if it was JSON-escaped or percent-encoded."""

    def __init__(self) -> None:
        self._secrets: dict[str, None] = {}
        self._forms: tuple[str, ...] = ()
        self._lock = threading.Lock()

    def register(self, secret: str | None) -> None:
        """Never show this value again. Shorter than 8 characters is ignored: it would mask ordinary words."""
        value = (secret or "").strip()
        if len(value) < _SHORTEST_SECRET:
            return
        with self._lock:
            if value in self._secrets:
                return
            self._secrets[value] = None
            # A key that is renewed every minute for a week must not make each line slower and slower to print.
            while len(self._secrets) > _MOST_SECRETS:
                del self._secrets[next(iter(self._secrets))]
            forms = {form for one in self._secrets for form in _spellings(one)}
            # The longest first: a secret may be the beginning of another one.
            self._forms = tuple(sorted(forms, key=lambda form: (-len(form), form)))

    def __call__(self, text: str) -> str:
        """Return the text without any registered secret."""
        for form in self._forms:
            if form in text:
                text = text.replace(form, _STARS)
        return text


def _spellings(secret: str) -> tuple[str, ...]:
    # As it is, inside JSON, and in an address with and without its slashes.
    return secret, json.dumps(secret)[1:-1], quote(secret, safe=""), quote(secret)


mask = Masker()
"""The process's masker: `mask.register(key)` once a key is known, `mask(text)` wherever text leaves by another way."""


class Terminal:
    """One output stream: plain lines, styled renderables, and (through `console`) a live display.

    `stream` may be None (a process without that stream). `tty` tells whether a person watches at a terminal that
    understands cursor movement; None asks the stream and `TERM`. `width` fixes the width in columns.
    """

    def __init__(
        self,
        stream: TextIO | None,
        *,
        tty: bool | None = None,
        width: int | None = None,
        masker: Callable[[str], str] = mask,
    ) -> None:
        self.stream = _QuietStream(stream, masker)
        self.tty = self.stream.isatty() and _understands_cursor() if tty is None else tty
        self.lock = threading.RLock()
        self._width = width
        self._console: Console | None = None

    @property
    def console(self) -> Console:
        """The rich console on this stream; hold `lock` while using it."""
        with self.lock:
            if self._console is None:
                from rich.console import Console

                self._console = Console(
                    file=cast("TextIO", self.stream),
                    # Not a terminal is left to rich, which still honours FORCE_COLOR (wanted in CI logs).
                    force_terminal=True if self.tty else None,
                    width=self._width,
                    markup=False,
                    emoji=False,
                    highlight=False,
                    legacy_windows=False,
                )
            return self._console

    def print(self, renderable: RenderableType) -> None:
        """Print above a live display, if there is one. A line that may not wrap is passed on whole, never cut."""
        from rich.console import Group

        with self.lock:
            # In a group, since rich joins bare texts into a new one that may wrap again.
            self.console.print(Group(renderable), crop=False)

    @property
    def loss(self) -> OSError | None:
        """Return why a full disk did not take all that was written to the stream; None if nothing was lost so."""
        return self.stream.loss

    @property
    def abandoned(self) -> bool:
        """Tell whether nobody reads what is written: the stream is closed, or the reader of the pipe has gone."""
        import select

        try:
            poll = select.poll()
            poll.register(self.stream.fileno(), 0)
            return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))
        except (OSError, ValueError):
            return self.stream.closed

    def write_line(self, text: str) -> None:
        """Write one line of plain text as it is, above a live display if there is one."""
        with self.lock:
            if self.tty:
                from rich.text import Text

                self.print(Text(text, no_wrap=True, overflow="ignore"))
            else:
                self.stream.write(text + "\n")
                self.stream.flush()


class _QuietStream:
    """A text stream that masks secrets, and falls silent for good when the real one closes."""

    def __init__(self, stream: TextIO | None, masker: Callable[[str], str]) -> None:
        self._stream = self._written_to = stream
        self._masker = masker
        self.encoding: str = getattr(stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        """Write masked text in the stream's own letters."""
        if self._stream is None:
            return len(text)
        masked = self._masker(text)
        if not self.encoding.lower().startswith("utf"):
            masked = masked.translate(_PLAIN_LETTERS)
        try:
            self._stream.write(masked.encode(self.encoding, "backslashreplace").decode(self.encoding))
        except BlockingIOError:
            pass  # another program made the terminal non-blocking and it is full: these characters are lost
        except (OSError, ValueError) as error:
            self.fail(error)
        return len(text)

    def flush(self) -> None:
        """Push out what was written."""
        try:
            if self._stream is not None:
                self._stream.flush()
        except BlockingIOError:
            pass  # what is buffered goes out with the next flush
        except (OSError, ValueError) as error:
            self.fail(error)

    @property
    def loss(self) -> OSError | None:
        """Return why a full disk did not take all that was written; None if nothing was lost so."""
        return None if self._written_to is None else _losses.get(self._written_to)

    def fail(self, error: OSError | ValueError) -> None:
        """Fall silent after an error of the stream; keep it if it is that of a full disk."""
        if isinstance(error, OSError) and error.errno in _FULL and self._stream is not None:
            _losses[self._stream] = error
        self._close()

    @property
    def closed(self) -> bool:
        """Tell whether there is no stream behind this one any more."""
        return self._stream is None

    def wraps(self, stream: TextIO | None) -> bool:
        """Tell whether this is the stream that is written to."""
        return stream is not None and stream is self._stream

    def isatty(self) -> bool:
        """Tell whether a terminal is behind the stream."""
        try:
            return self._stream is not None and self._stream.isatty()
        except (OSError, ValueError):
            return False

    def fileno(self) -> int:
        """Return the file descriptor; OSError if there is none."""
        if self._stream is None:
            raise OSError("the stream is closed")
        return self._stream.fileno()

    def _close(self) -> None:
        """Send what is still buffered nowhere: the interpreter flushes at exit, and would change the exit code."""
        stream, self._stream = self._stream, None
        try:
            descriptor = stream.fileno() if stream is not None else -1
            nowhere = os.open(os.devnull, os.O_WRONLY)
            try:
                os.dup2(nowhere, descriptor)
            finally:
                os.close(nowhere)
        except (OSError, ValueError):
            return  # no descriptor behind it: nothing is flushed at exit either


def _understands_cursor() -> bool:
    return os.environ.get("TERM", "").lower() not in {"", "dumb", "unknown"}
