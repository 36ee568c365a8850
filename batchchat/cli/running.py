"""`batchchat run`, and how every command ends: signals, closed streams, exit codes."""

from __future__ import annotations

import atexit
import errno
import gc
import os
import signal
import sys
import threading
import traceback
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from batchchat.addresses import address_of
from batchchat.cli.arguments import JobArguments, read_duration
from batchchat.cli.logs import LogListener, library_logs
from batchchat.cli.terminal import Terminal, mask
from batchchat.errors import BatchchatError, JobError, OutputLocked, StorageError, UsageError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from batchchat.events import Event, Level, RunSummary, Snapshot
    from batchchat.job import Job
    from batchchat.metrics import Recorder
    from batchchat.runner.control import Control
    from batchchat.runner.options import RunOptions

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
_REASONS = {
    signal.SIGINT: "stopped by Ctrl-C (SIGINT)",
    signal.SIGTERM: "stopped by SIGTERM",
    signal.SIGHUP: "stopped by SIGHUP: the terminal was closed",
}


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
    if isinstance(error, OSError):
        # What click prints itself, such as `--help`, goes by no `Terminal`. An error at a file of the output is known
        # by its own class.
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


def log_listener(log_format: str, *, verbose: bool, quiet: bool) -> LogListener:
    """Return what writes log lines to standard error, as the options say."""
    level: Level = "debug" if verbose else "warning" if quiet else "info"
    return LogListener(errors(), level=level, format="json" if log_format == "json" else "text")


_GOES_ON = (0, 1)
"""Exit codes of a job behind which the next one begins."""
_Result = TypeVar("_Result")


def attended(work: Callable[[Control, Callable[[Snapshot], None]], Awaitable[_Result]], log: LogListener) -> _Result:
    """Do work on an event loop with progress on standard error, which signals stop; return its result."""
    import anyio

    from batchchat.cli.display import progress
    from batchchat.runner.control import Control

    stop = Control()
    with library_logs(log), progress(log.terminal, log) as display:

        async def watched() -> _Result:
            async with anyio.create_task_group() as group:
                await group.start(_watch_signals, stop, display, log)
                result = await work(stop, display.update)
                group.cancel_scope.cancel()
            return result

        try:
            keep_memory_small()
            collect_seldom()
            return anyio.run(watched, backend_options=event_loop_options())
        except BaseExceptionGroup as group:
            raise _single(group) from None


def run_command(
    jobs: Sequence[JobArguments],
    *,
    command: str,
    grace: str,
    log_format: str,
    verbose: bool,
    quiet: bool,
    as_json: bool,
    html: Path | None = None,
    no_wait: bool = False,
    metrics: Sequence[str] = (),
    workers: int | None = None,
    ray: str | None = None,
    shard: str | None = None,
) -> int:
    """Run jobs one after the other, with progress on standard error and a summary at each end; return the exit code.

    The first that ends with another code than 0 or 1 is the last, and the code is its own: rows that failed are no
    reason to leave the others unused. Otherwise the code is 1 if any row failed.
    """
    log = log_listener(log_format, verbose=verbose, quiet=quiet)

    def work() -> int:
        _check_several(jobs, html)
        if ray is not None and workers is None:
            raise UsageError(
                "--ray says where workers run, and there are none without --workers",
                remedy="Add the number of workers, such as `--workers 64`.",
            )
        # All job files are read first: a slip in the last one is told before the first is paid for.
        loaded = [_load_run(one, grace=grace, command=command, html=html, no_wait=no_wait, shard=shard) for one in jobs]
        summaries: list[RunSummary] = []
        with recorder_of(metrics, log) as recorder:
            try:
                for job, options in loaded:
                    one = _run_job if workers is None else partial(_run_workers, workers=workers, ray=ray)
                    summary = one(job, options, log, recorder)
                    # A quiet run that went well tells nothing, so that nothing is looked for: that reads all answers.
                    told = as_json or log.format == "json" or not quiet or bool(summary.exit_code)
                    summaries.append(looked_at(summary) if told else summary)
                    _tell_end(summaries[-1], log, quiet=quiet, as_json=as_json)
                    if summaries[-1].exit_code not in _GOES_ON:
                        break
            finally:
                # Of jobs that ended before one that could not begin, a program is told all the same.
                if as_json and summaries:
                    _print_summaries(summaries, as_list=len(jobs) > 1)
            code = max(summary.exit_code for summary in summaries)
            if recorder is not None:
                recorder.end(code)
        if html is not None:
            _write_page(html, summaries[0], log)
        return code

    return logged(work, log)


def _check_several(jobs: Sequence[JobArguments], html: Path | None) -> None:
    """Refuse the options that mean one job if there are several. Raises UsageError."""
    if len(jobs) == 1:
        return
    given = {"--input": jobs[0].input_path, "--output": jobs[0].output_path, "--html": html}
    for option, value in given.items():
        if value is not None:
            raise UsageError(
                f"{option} is for one job, and {len(jobs)} are to run",
                remedy="Leave it out, or run the jobs by commands of their own.",
            )


def _print_summaries(summaries: Sequence[RunSummary], *, as_list: bool) -> None:
    from batchchat.cli.json_output import summary_json

    found = [summary_json(summary) for summary in summaries]
    print_json(found if as_list else found[0])


def logged(work: Callable[[], int], log: LogListener) -> int:
    """Do work and return its exit code; where log lines are JSON, an error is one of them too."""
    try:
        return work()
    except Exception as error:
        # `guarded` tells it as text.
        if log.format != "json":
            raise
        code = error.exit_code if isinstance(error, BatchchatError) else BatchchatError.exit_code
        log(_error_event(error, code))
        return code


def _error_event(error: Exception, code: int) -> Event:
    from batchchat.events import Event

    fields: dict[str, object] = {"exit_code": code, "remedy": None, "traceback": None}
    if isinstance(error, BatchchatError):
        return Event("error", error.message, "error", {**fields, "remedy": error.remedy})
    return Event("error", f"internal error: {error!r}", "error", {**fields, "traceback": traceback.format_exc()})


def cancel_command(directory: Path | str, *, log_format: str, verbose: bool, quiet: bool, as_json: bool) -> int:
    """Cancel the batches of an output and keep what they answered; return the exit code."""
    log = log_listener(log_format, verbose=verbose, quiet=quiet)

    def work() -> int:
        from batchchat.inspection import job_with_batches
        from batchchat.runner.options import RunOptions
        from batchchat.runner.run import run_job

        job = job_with_batches(directory)
        hide_key(job)
        options = RunOptions(cancel_batches=True)

        async def cancel(stop: Control, on_snapshot: Callable[[Snapshot], None]) -> RunSummary:
            return await run_job(job, options=options, listener=log, on_snapshot=on_snapshot, stop=stop)

        summary = attended(cancel, log)
        # Rows that stay open are what a person asked for here, so that the usual summary would sound like trouble.
        if summary.exit_code or as_json or log.format == "json":
            if as_json:
                _print_summaries([summary], as_list=False)
            _tell_end(summary, log, quiet=quiet, as_json=as_json)
        else:
            log.terminal.write_line(_cancelled(summary))
        return summary.exit_code

    return logged(work, log)


def _cancelled(summary: RunSummary) -> str:
    """Say what is left of the batches that were cancelled."""
    from batchchat.format import money, plural

    paid = summary.spend.requests
    cost = f" for {money(summary.spend.cost, summary.currency)}" if summary.currency is not None else ""
    return (
        f"no batch is under way any more: {plural(paid, 'answer')} {'was' if paid == 1 else 'were'} given and paid"
        f"{cost}, and kept; {plural(summary.open, 'row')} open"
    )


def _load_run(
    arguments: JobArguments, *, grace: str, command: str, html: Path | None, no_wait: bool, shard: str | None
) -> tuple[Job, RunOptions]:
    """Read the job and what the command line adds to it."""
    from dataclasses import replace

    loaded = arguments.load()
    if html is not None:
        from batchchat.report import check_page

        check_page(html)
    hide_key(loaded)
    options = arguments.options(grace=read_duration("--grace", grace), command=command)
    share = None
    if shard is not None:
        from batchchat.cli.sharding import read_share

        share = read_share(shard, os.environ)
    return loaded, replace(options, wait=not no_wait, share=share)


def _run_job(job: Job, options: RunOptions, log: LogListener, recorder: Recorder | None) -> RunSummary:
    """Run the job; return its summary."""
    from batchchat.runner.run import run_job
    from batchchat.transport import allow_many_files

    allow_many_files()
    meter = None
    if recorder is not None:
        meter = recorder.meter(job.name, job.resolved_provider().name, job.model)

    async def work(stop: Control, on_snapshot: Callable[[Snapshot], None]) -> RunSummary:
        return await run_job(
            job,
            options=options,
            listener=log,
            on_snapshot=on_snapshot if meter is None else meter.beside(on_snapshot),
            on_record=None if meter is None else meter.add,
            stop=stop,
        )

    return attended(work, log)


def _run_workers(
    job: Job, options: RunOptions, log: LogListener, recorder: Recorder | None, *, workers: int, ray: str | None
) -> RunSummary:
    """Run the job with processes of this machine, or with actors on a Ray cluster; return its summary."""
    from batchchat.cli.sharding import launcher_of
    from batchchat.workers import run_with_workers

    meter = None
    if recorder is not None:
        meter = recorder.meter(job.name, job.resolved_provider().name, job.model)

    async def work(stop: Control, on_snapshot: Callable[[Snapshot], None]) -> RunSummary:
        async with launcher_of(job, ray) as launcher:
            return await run_with_workers(
                job,
                workers,
                launcher=launcher,
                options=options,
                listener=log,
                on_snapshot=on_snapshot if meter is None else meter.beside(on_snapshot),
                on_answers=None if meter is None else meter.add_figures,
                control=stop,
            )

    return attended(work, log)


@contextmanager
def recorder_of(targets: Sequence[str], log: LogListener) -> Iterator[Recorder | None]:
    """Open where the figures of a run go, and yield what takes them; None, and nothing imported, if nobody asks."""
    if not targets:
        yield None
        return
    from batchchat.metrics import open_metrics

    with open_metrics(targets, log) as recorder:
        yield recorder


def looked_at(summary: RunSummary) -> RunSummary:
    """Add what looks wrong in the answers, if there are new ones."""
    from dataclasses import replace

    # An output that could not be written, or that another run holds now, is not looked at: the look would wait for it.
    lost = summary.exit_code in {StorageError.exit_code, OutputLocked.exit_code}
    if lost or not (summary.new_ok or summary.new_failed):
        return summary
    from batchchat.labelling.oddities import oddities_of

    try:
        found = oddities_of(summary.output)
    except BatchchatError:
        return summary  # a part that cannot be read: the run has ended well, and the next look at the output says it
    return replace(summary, looks_wrong=tuple(map(str, found)))


def _tell_end(summary: RunSummary, log: LogListener, *, quiet: bool, as_json: bool) -> None:
    """Print how a run ended, for the person or the log that reads along."""
    if log.format == "json":
        from batchchat.cli.json_output import summary_json
        from batchchat.events import Event

        log(Event("run_ended", summary.reason or "the pass ended", "info", summary_json(summary)))
    elif not as_json and (not quiet or summary.exit_code):
        from batchchat.cli.summary_page import render_summary

        log.terminal.print(render_summary(summary))


def _write_page(target: Path, summary: RunSummary, log: LogListener) -> None:
    """Write the page about a run that has ended. Raises StorageError if that is not possible."""
    from batchchat.events import Event
    from batchchat.report import write_run_report

    try:
        write_run_report(address_of(summary.output), target)
    except BatchchatError as error:
        raise StorageError(error.message, remedy=error.remedy) from error
    log(Event("report_written", f"report written to {target}", "info", {"path": str(target)}))


def _single(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the one error inside a task group's wrapping."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


async def _watch_signals(stop: Any, display: Any, log: LogListener, *, task_status: Any) -> None:
    """First signal: drain. Second: end at once. Before anything was sent, or at the third: leave right now."""
    import anyio

    wanted = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        wanted.append(signal.SIGHUP)
    with anyio.open_signal_receiver(*wanted) as received:
        task_status.started()
        async for number in received:
            # Nothing was sent yet, or the person has asked three times.
            if not stop.watched or stop.asked >= 2:
                display.close()
                _tell_leaving(log, _REASONS[number])
                leave_now(128 + number)
            stop.stop(reason=_REASONS[number], exit_code=128 + number)


def _tell_leaving(log: LogListener, reason: str) -> None:
    from batchchat.events import Event

    text = f"{reason}; the same command goes on"
    if log.format == "json":
        log(Event("stopping", text, "warning"))
    else:
        log.terminal.write_line(text)


def leave_now(code: int) -> None:
    """End the process without waiting for threads: what was committed is durable, the rest stays open."""
    from batchchat.credentials import end_commands

    end_commands()
    os._exit(code)


def hide_key(job: Any) -> None:
    """Let no line that this process prints hold the key, nor one that is read while the job runs."""
    from batchchat.credentials import tell_keys
    from batchchat.job import load_keys

    tell_keys(mask.register)
    provider = job.resolved_provider()
    if provider.api_key_env:
        mask.register(load_keys(job).get(provider.api_key_env))


def print_json(value: Any) -> None:
    """Print a result to standard output."""
    import json

    terminal = results()
    terminal.stream.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
    terminal.stream.flush()
