"""The process of a command: its standard streams, what it says of errors, and how it ends."""

from __future__ import annotations

import atexit
import errno
import gc
import os
import sys
import threading
import traceback
from contextlib import suppress
from typing import Any

import click

from batchchat.cli.terminal import Terminal
from batchchat.errors import BatchchatError, JobError, StorageError

_LAST_WORDS_S = 1.0
"""Seconds that a thread has to end after the run. One that reads a silent pipe never ends by itself."""
_M_MMAP_THRESHOLD = -3
"""The number of the option in `mallopt` of the C library: from which size on memory is mapped by itself."""
_LARGE_BYTES = 1 << 17
"""Bytes from which on a piece of memory is mapped by itself and given back whole: glibc's value before it grows."""
_OBJECTS_BETWEEN_COLLECTIONS = 20_000
"""New objects between two looks of the collector. Chosen: `collect_seldom` says what looks cost."""
_IMPORT_OWN_CODE = ("batchchat.evaluation", "batchchat.structured.model")
"""Rooms that import modules of the person who runs a job or a suite."""


def guarded(command: click.Command) -> int:
    """Run a click command and return its exit code, whatever happens to the streams meanwhile."""
    _hold_standard_streams()
    code = 70
    try:
        command.main(prog_name="batchchat", standalone_mode=False)
        code = 0
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    except click.exceptions.Exit as exit_:
        code = exit_.exit_code
    except click.ClickException as error:
        errors().write_line(_click_text(error))
        code = 2
    except (click.Abort, KeyboardInterrupt):
        code = 130
    except BatchchatError as error:
        tell_error(error)
        code = error.exit_code
    except Exception as error:  # noqa: BLE001 - the last resort: tell it, masked, with the code for it
        code = _last_words(error)
    return code


def _last_words(error: Exception) -> int:
    """Tell an error that nobody below knew, and return the code for it."""
    # What click prints itself, such as `--help`, goes by no `Terminal`. An error at a file names the file.
    if isinstance(error, OSError) and error.filename is None:
        results().stream.fail(error)
        if results().loss is not None:
            return StorageError.exit_code
    if isinstance(error, OSError) and error.errno in {errno.EMFILE, errno.ENFILE}:
        # Nothing may be imported here: that opens files.
        known = StorageError("too many open files", remedy="Raise their number (ulimit -n), then run it again.")
        tell_error(known)
        return known.exit_code
    errors().write_line(traceback.format_exc().rstrip())
    errors().write_line("error: this is a fault in batchchat itself; the output can be resumed")
    return 70


def _hold_standard_streams() -> None:
    """Put nothing in the place of a standard stream that the caller closed: else a socket would take it."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            # The lowest free number is taken, which is this one unless another was closed too.
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)


def errors() -> Terminal:
    """Return standard error."""
    return Terminal(sys.stderr)


def results() -> Terminal:
    """Return standard output."""
    return Terminal(sys.stdout)


def tell_error(error: BatchchatError) -> None:
    """Say what is wrong and what to do about it."""
    terminal = errors()
    for number, line in enumerate(error.message.splitlines() or [""]):
        terminal.write_line(line if number else f"error: {line}")
    if error.remedy:
        terminal.write_line(error.remedy)
    # The guide says what the field may be; the message only what is wrong with it.
    if isinstance(error, JobError) and error.field is not None:
        from batchchat.guide import topic_of

        if (topic := topic_of(error.field)) is not None:
            terminal.write_line(f"See: batchchat guide {topic}")


def _click_text(error: click.ClickException) -> str:
    text = f"error: {error.format_message()}"
    # click's own words name near options only, and what is meant is often none of them.
    if isinstance(error, click.NoSuchOption) and (instead := _instead_of(error.option_name)) is not None:
        text = f"error: No such option '{error.option_name}'. {instead}"
    if isinstance(error, click.UsageError) and error.ctx is not None:
        text += f"\nTry '{error.ctx.command_path} --help'."
    return text


def _instead_of(option: str) -> str | None:
    """Say what does what an option that does not exist seems to mean: `plan`, or `--set` of a field of the job."""
    name = option.lstrip("-").replace("-", "_")
    if name in {"dry_run", "dryrun", "check", "what_if", "simulate"}:
        return "`batchchat plan JOB` shows what a run would send, and sends nothing."
    from batchchat.job.model import FIELDS

    for place, section in FIELDS.items():
        for found, field in section.model_fields.items():
            if name == (field.alias or found):
                return f"It is a field of the job: --set {'.'.join((*place, name))}=VALUE"
    return None


def leave(code: int) -> None:
    """End the process with this code, also where a stream is closed or a thread waits for input for ever."""
    for terminal in (errors(), results()):
        terminal.stream.flush()
    if (loss := results().loss) is not None:
        code = _tell_loss(loss, code)
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and not thread.daemon:
            thread.join(_LAST_WORDS_S)
            # It reads a pipe that nobody writes to: to wait for it would be to wait for ever.
            if thread.is_alive():
                leave_now(code)
    # Python would take every module apart first, which takes longer than to write a part, and is of no use to anyone
    # but to a person's own code: that may count on it, for files that it leaves open.
    if not any(name in sys.modules for name in _IMPORT_OWN_CODE):
        atexit._run_exitfuncs()  # noqa: SLF001 - `os._exit` leaves them out
        for terminal in (errors(), results()):
            terminal.stream.flush()
        leave_now(code)
    sys.exit(code)


def _tell_loss(loss: OSError, code: int) -> int:
    """Say that a full disk did not take all of standard output, and return the code to end with."""
    from batchchat.store.location.disk import reason_of

    tell_error(StorageError(f"standard output: {reason_of(loss)}: what was printed there is not whole"))
    return code or StorageError.exit_code


def keep_memory_small() -> None:
    """Let this process give back what it frees: rows stream through it for hours.

    Arrow's own allocator keeps much of what it once had, and glibc's ever larger pieces of the heap: its threshold for
    memory of its own (mallopt(3), M_MMAP_THRESHOLD) grows with what is freed, unless it is set. Together that is a
    hundred megabytes and more. To be called before Arrow is at work.
    """
    import ctypes

    import pyarrow as pa

    pa.set_memory_pool(pa.system_memory_pool())
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)


def collect_seldom() -> None:
    """Let the collector of cycles look at what was made since the start alone, and less often.

    A run makes many objects for each row, and reference counts free nearly all of them: the collector's looking was a
    tenth of its time.
    """
    gc.freeze()
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS, 10, 10)


def event_loop_options() -> dict[str, Any]:
    """Return anyio's options for the fastest event loop there is."""
    try:
        import uvloop  # noqa: F401 - only to see whether it is there
    except ImportError:
        return {}
    return {"use_uvloop": True}


def leave_now(code: int) -> None:
    """End the process without waiting for threads: what was committed is durable, the rest stays open."""
    from batchchat.credentials import end_commands

    end_commands()
    os._exit(code)


def print_json(value: Any) -> None:
    """Print a result to standard output."""
    import json

    terminal = results()
    terminal.stream.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
    terminal.stream.flush()
