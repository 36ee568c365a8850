"""Keys of services: where a key comes from, how it is read, and how it is read again while a run goes on.

`KeySource` is a value: it names a place, and reads the key there. `Credential` holds the key that is used now. It reads
the source again once for all requests whose key was refused, so that a key of one hour lives through a night.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchchat.dataclass import dataclass
from batchchat.errors import UsageError

if TYPE_CHECKING:
    import subprocess

AUTHORIZATION = "Authorization"
COMMAND_TIMEOUT_S = 10.0
"""Seconds that a command for a key may take. Command-line tools of clouds need one or two, mostly for their start."""
AGAIN_S = 5.0
"""Seconds after which a key that could not be replaced is tried again. Requests that are under way come back earlier;
looks at a batch are at least a minute apart."""
_LARGEST = 16_384
"""Bytes that are read of a file or of a command's output. The largest tokens in use (JSON Web Tokens) have about 4,000;
servers refuse header fields of more than 8,000 to 16,000."""
_LOOK_S = 0.05
"""Seconds between two looks whether a command has ended: its pipes may stay open behind it."""
_SAID = 200
"""Characters of a failed command's last line that are shown."""

_QUOTES = {'"': '"', "'": "'", "`": "`", "\u201c": "\u201d", "\u2018": "\u2019"}
_WHITE = "\ufeff\u200b"
"""Marks without width that copied texts bring; `str.strip` leaves them."""
_LONG_WORD = re.compile(r"[\w.~+/=-]{16,}")
"""What may be a secret in the message of a command."""

_listeners: list[Callable[[str], object]] = []
_running: set[subprocess.Popen[bytes]] = set()


def tell_keys(listener: Callable[[str], object]) -> None:
    """Have each key that this process reads from now on told to `listener`, such as a mask of what is printed."""
    if listener not in _listeners:
        _listeners.append(listener)


class KeyProblem(UsageError):
    """There is no usable key at the place that should hold it. The message never holds what was found there."""


@dataclass(frozen=True, slots=True)
class KeySource:
    """The place of one key: an environment variable, a file, or a command that prints it. One of the three is given.

    Arguments:
        env: the name of the variable; `environ` is where it is looked up.
        file: the path of a file that holds the key and nothing else.
        command: a program and its arguments. It runs without a shell, in `folder`, with `environ` as its environment.
        timeout: seconds that the command may take.
        header: the header field that takes the key. None: `Authorization`.
        scheme: the word before the key in that field. None: `Bearer` for `Authorization`, no word for any other field.
    """

    env: str | None = None
    file: str | None = None
    command: tuple[str, ...] = ()
    environ: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)
    folder: Path | None = None
    timeout: float = COMMAND_TIMEOUT_S
    header: str | None = None
    scheme: str | None = None

    @property
    def place(self) -> str:
        """Return the place in words. It names the program of a command alone: an argument may be private."""
        if self.file is not None:
            return f"the file {self.file}"
        return f"the command {self.command[0]}" if self.command else f"the environment variable {self.env}"

    @property
    def renewable(self) -> bool:
        """Return true if the place may hold another key later. A variable of this process never does."""
        return self.file is not None or bool(self.command)

    def header_field(self, key: str) -> tuple[str, str]:
        """Return the name and the value of the header field that carries a key."""
        return header_field(key, self.header, self.scheme)

    def read(self, warn: Callable[[str], object] | None = None) -> str:
        """Read the key. Blocking code: a command may take up to `timeout` seconds.

        White space and quotes around the key are taken off, and `warn` is told of it. Raises KeyProblem.
        """
        given = self._given(warn)
        # A file and a command end with a line break, which is no mistake.
        key, found = _cleaned(given.removesuffix("\n").removesuffix("\r") if self.renewable else given)
        if not key:
            raise self._empty()
        if not key.isascii() or not key.isprintable() or " " in key:
            raise KeyProblem(
                f"the key in {self.place} holds characters that no key has, such as a space or a line break",
                remedy="Give the key alone, without the word Bearer, quotes or other keys around it.",
            )
        if found and warn is not None:
            around = " and ".join(found)
            warn(f"the key in {self.place} stands with {around} around it, which were taken off: give the key alone")
        for listener in _listeners:
            listener(key)
        return key

    def reread(self) -> str:
        """Read the key again, without warnings. Blocking code. Raises KeyProblem."""
        return self.read()

    def problem(self) -> KeyProblem | None:
        """Return why no key can be read; None if nothing is known against it. A command is looked for, but not run."""
        if self.command:
            try:
                self._program()
            except KeyProblem as problem:
                return problem
            return None
        try:
            self.read()
        except KeyProblem as problem:
            return problem
        return None

    def _given(self, warn: Callable[[str], object] | None) -> str:
        if self.command:
            return self._printed()
        if self.file is not None:
            return self._content(self.file, warn)
        return self.environ.get(self.env or "", "")

    def _empty(self) -> KeyProblem:
        if self.renewable:
            what = "printed nothing" if self.command else "is empty"
            return KeyProblem(f"{self.place} {what}: it should give the key", remedy=_remedy(self))
        state = "empty" if self.env in self.environ else "not set"
        return KeyProblem(f"{self.place} is {state}", remedy=_remedy(self))

    def _content(self, path: str, warn: Callable[[str], object] | None) -> str:
        try:
            # Opened without waiting: a pipe without a writer would hold the run up for ever.
            number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                mode = os.fstat(number).st_mode
                if not stat.S_ISREG(mode):
                    raise KeyProblem(f"{self.place} is no regular file", remedy=_remedy(self))
                content = os.read(number, _LARGEST + 1)
            finally:
                os.close(number)
        except OSError as error:
            raise KeyProblem(f"{self.place} cannot be read: {error.strerror}", remedy=_remedy(self)) from None
        if mode & (stat.S_IRGRP | stat.S_IROTH) and warn is not None:
            warn(f"other users of this machine can read the key in {self.place}: `chmod 600 {path}` keeps it private")
        return self._text(content)

    def _text(self, content: bytes) -> str:
        """Return what was read as text. Raises KeyProblem if it is far too long, or no text."""
        if len(content) > _LARGEST:
            raise KeyProblem(f"{self.place} gives more than {_LARGEST:,} bytes, which is no key", remedy=_remedy(self))
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError:
            raise KeyProblem(f"{self.place} gives no text", remedy=_remedy(self)) from None

    def _program(self) -> str:
        """Return the path of the command's program. Raises KeyProblem if there is none."""
        import shutil

        name = self.command[0]
        # A path is written as seen from the job file.
        where = str((self.folder or Path()) / Path(name).expanduser()) if "/" in name else name
        found = shutil.which(where, path=self.environ.get("PATH"))
        if found is None:
            raise KeyProblem(f"{self.place} is not found, or may not be executed", remedy=_remedy(self))
        return str(Path(found).absolute())

    def _printed(self) -> str:
        import subprocess

        arguments = [self._program(), *self.command[1:]]
        try:
            process = subprocess.Popen(  # noqa: S603 - the job file is trusted like a program
                arguments,
                cwd=self.folder,
                env=dict(self.environ),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "an argument holds a null character"
            raise KeyProblem(f"{self.place} cannot be started: {reason}", remedy=_remedy(self)) from None
        with process, _ended_with_us(process):
            try:
                printed, said = _outputs(process, self.timeout)
            except TimeoutError:
                raise KeyProblem(f"{self.place} did not end within {self.timeout:g} s", remedy=_remedy(self)) from None
            finally:
                _end(process)
        # Text beyond the bound is not read, so a command that prints without end is stopped by us.
        if process.returncode and len(printed) <= _LARGEST:
            raise KeyProblem(
                f"{self.place} failed with exit code {process.returncode}{_last_line(said, printed)}",
                remedy=_remedy(self),
            )
        return self._text(printed)


def header_field(key: str, header: str | None = None, scheme: str | None = None) -> tuple[str, str]:
    """Return the name and the value of the header field that carries a key; see `KeySource`."""
    header = header or AUTHORIZATION
    if scheme is None:
        scheme = "Bearer" if header.lower() == AUTHORIZATION.lower() else ""
    return header, f"{scheme} {key}" if scheme else key


class Credential:
    """The key that one client uses now, and the way to a new one.

    `generation` counts the keys from 0. `accepted` is the last generation with which a request was answered; clients
    write it. `problem` says why the latest key could not be replaced. `offload` runs blocking code off the event loop,
    `tell` hears of each new key, in words. `again_s` are seconds after which a key that could not be replaced is tried
    again.
    """

    def __init__(
        self,
        key: str | None,
        source: KeySource | None = None,
        *,
        offload: Callable[..., Awaitable[Any]] | None = None,
        tell: Callable[[str], object] | None = None,
        again_s: float = AGAIN_S,
    ) -> None:
        self.key = key
        self.source = source
        self.generation = 0
        self.accepted = -1
        self.problem: str | None = None
        self._offload = offload
        self._tell = tell
        self._lock: Any = None
        self._again_s = again_s
        self._tried_at = 0.0

    def __repr__(self) -> str:
        return f"Credential({self.source.place!r})" if self.source is not None else "Credential(None)"

    @classmethod
    def of(cls, key: str | Credential | None) -> Credential:
        """Return a credential as it is, and a plain key as one that cannot be read again."""
        return key if isinstance(key, Credential) else cls(key)

    @property
    def renewable(self) -> bool:
        """Return true if a refused key can be read again."""
        return self.source is not None and self.source.renewable

    def header_field(self) -> tuple[str, str] | None:
        """Return the header field that carries the key; None without a key."""
        if self.key is None:
            return None
        return self.source.header_field(self.key) if self.source is not None else header_field(self.key)

    async def renew(self, generation: int) -> bool:
        """Read the key again after a request with this generation of it was refused.

        Returns true if there is another key now, which may have been read for another request. Returns false, and
        leaves the reason in `problem`, if the key is the same, cannot be read, or was itself never accepted.
        """
        import anyio

        if not self.renewable:
            return False
        if self._lock is None:
            self._lock = anyio.Lock()
        async with self._lock:
            # All requests that were refused with one key wait here; the first of them reads the next one.
            if self.generation != generation:
                return True
            # Requests that were refused together get one answer. Who looks again much later may find a mended file.
            if self.problem is None or anyio.current_time() - self._tried_at >= self._again_s:
                self.problem = await self._replace(again=self.problem is not None)
                # Counted from the end: those who waited for a command that hangs must not start it anew.
                self._tried_at = anyio.current_time()
            return self.problem is None

    async def _replace(self, *, again: bool) -> str | None:
        """Put the key that the source gives now in the place of the refused one. Return why that cannot be.

        A key that was never accepted is not replaced at once, only `again`: else a command that gives another wrong key
        at each call would be called without an end.
        """
        import anyio.to_thread

        source = self.source
        assert source is not None  # noqa: S101 - `renewable` says so
        if self.generation > max(0, self.accepted) and not again:
            return f"{source.place} has given another key, which is refused too"
        try:
            if self._offload is not None:
                key = await self._offload(source.reread)
            else:
                # Who stops the run does not wait for a command: its thread ends with the command's timeout.
                key = await anyio.to_thread.run_sync(source.reread, abandon_on_cancel=True)
        except KeyProblem as problem:
            return f"the key could not be read again: {problem.message}"
        if key == self.key:
            return f"{source.place} still gives the same key"
        self.key = key
        self.generation += 1
        if self._tell is not None:
            self._tell(f"the key was refused, and {source.place} has given another one: the run goes on with it")
        return None


def _remedy(source: KeySource) -> str:
    if source.file is not None:
        return "Write the key into that file, alone, or change provider.api_key_file."
    if source.command:
        return "Run the command yourself: it must print the key, and nothing else, or change provider.api_key_command."
    return f"Set it with `export {source.env}=…`, or write it into a .env beside the job."


def _outputs(process: subprocess.Popen[bytes], timeout: float) -> tuple[bytes, bytes]:
    """Return what a process prints, and what it says on standard error, up to the bound. Raises TimeoutError."""
    import selectors
    import subprocess

    assert process.stdout is not None  # noqa: S101 - both are pipes
    assert process.stderr is not None  # noqa: S101
    printed, said = bytearray(), bytearray()
    ends = time.monotonic() + timeout
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ, printed)
        selector.register(process.stderr, selectors.EVENT_READ, said)
        while selector.get_map() and len(printed) <= _LARGEST:
            left = ends - time.monotonic()
            if left <= 0:
                raise TimeoutError
            for ready, _ in selector.select(min(left, _LOOK_S)):
                piece = os.read(ready.fd, _LARGEST)
                if not piece:
                    selector.unregister(ready.fileobj)
                ready.data.extend(piece)
                if ready.data is said:
                    del said[:-_LARGEST]
            # A service that the command has started may keep its pipes open: the key is there all the same.
            if process.poll() is not None and not selector.select(0):
                break
    if len(printed) <= _LARGEST:
        try:
            process.wait(max(0.0, ends - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise TimeoutError from None
    return bytes(printed), bytes(said)


@contextmanager
def _ended_with_us(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Have the process ended if this program ends first: the thread that waits for it does not keep the program."""
    import atexit

    atexit.register(end_commands)
    _running.add(process)
    try:
        yield
    finally:
        _running.discard(process)


def end_commands() -> None:
    """End every command for a key that still runs; for a program that leaves at once."""
    for process in list(_running):
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process that is still there, with all that it has started."""
    import signal

    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _last_line(said: bytes, printed: bytes) -> str:
    """Return the last line that a command said, as `: line`, without anything that may be a secret."""
    lines = [line.strip() for line in said.decode("utf-8", "replace").splitlines() if line.strip()]
    if not lines:
        return ""
    text = lines[-1][:_SAID]
    for word in printed.decode("utf-8", "replace").split():
        if len(word) >= 8:
            text = text.replace(word, "***")
    # A path or a long name stays: only a word with a digit and without a slash at its start looks like a key.
    masked = _LONG_WORD.sub(
        lambda found: "***" if re.search(r"\d", found[0]) and not found[0].startswith(("/", "-")) else found[0], text
    )
    return ": " + "".join(letter if letter.isprintable() else " " for letter in masked)


def _cleaned(text: str) -> tuple[str, list[str]]:
    """Return a key without what stands around it, and names of what that was."""
    found: dict[str, None] = {}
    while True:
        bare = text.strip().strip(_WHITE).strip()
        if bare != text:
            found["white space"] = None
        if len(bare) > 1 and _QUOTES.get(bare[0]) == bare[-1]:
            found["quotes"] = None
            text = bare[1:-1]
        else:
            return bare, list(found)
