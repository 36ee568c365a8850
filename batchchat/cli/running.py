"""`batchchat run`: a job on an event loop, with its display, the signals that stop it, and what is told at its end."""

from __future__ import annotations

import os
import signal
import traceback
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from batchchat.addresses import address_of
from batchchat.cli.arguments import JobArguments, read_duration
from batchchat.cli.logs import LogListener, library_logs
from batchchat.cli.process import collect_seldom, errors, event_loop_options, keep_memory_small, leave_now, print_json
from batchchat.cli.terminal import mask
from batchchat.errors import BatchchatError, OutputLocked, StorageError, UsageError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from batchchat.events import Event, Level, RunSummary, Snapshot
    from batchchat.job import Job
    from batchchat.metrics import Recorder
    from batchchat.runner.control import Control
    from batchchat.runner.options import RunOptions

_REASONS = {
    signal.SIGINT: "stopped by Ctrl-C (SIGINT)",
    signal.SIGTERM: "stopped by SIGTERM",
    signal.SIGHUP: "stopped by SIGHUP: the terminal was closed",
}


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


def hide_key(job: Any) -> None:
    """Let no line that this process prints hold the key, nor one that is read while the job runs."""
    from batchchat.credentials import tell_keys
    from batchchat.job import load_keys

    tell_keys(mask.register)
    provider = job.resolved_provider()
    if provider.api_key_env:
        mask.register(load_keys(job).get(provider.api_key_env))
