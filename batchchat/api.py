"""The Python API: run a job from a script or a notebook, with rows of one's own, and take the answers as a table."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import logging
import sys
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Self, TypedDict, Unpack

import anyio

from batchchat.dataclass import dataclass
from batchchat.errors import BatchchatError, UsageError
from batchchat.events import Event, Listener, RunSummary, Snapshot
from batchchat.job import Job
from batchchat.runner.control import Control
from batchchat.runner.options import RunOptions
from batchchat.runner.run import run_job as run_to_summary
from batchchat.sources import GivenRows, check_rows
from batchchat.store import read_output

if TYPE_CHECKING:
    import httpx
    import pyarrow as pa

    from batchchat.budget import Budget
    from batchchat.cli.display import PlainProgress, ProgressDisplay
    from batchchat.limits import Limiter
    from batchchat.runner.writer import Offload
    from batchchat.store import Store

_DEFAULTS = RunOptions()
_INTERRUPTED = 130
"""The exit code of a program that Ctrl-C ended: 128 and the number of the signal."""
_log = logging.getLogger("batchchat")


class RunFailed(BatchchatError):
    """A run did not end well; see `RunResult.raise_for_status`. `result` is what it came to."""

    def __init__(self, result: RunResult) -> None:
        message = result.reason or f"{result.failed:,} of {result.ok + result.failed:,} rows failed{_why(result)}"
        super().__init__(message, remedy=result.remedy or result.retry or _remedy(result))
        self.result = result
        self.exit_code = result.exit_code


@dataclass(frozen=True, slots=True, repr=False)
class RunResult(RunSummary):
    """How a run ended, and the way to its answers. The fields are those of `RunSummary`."""

    @classmethod
    def of(cls, summary: RunSummary) -> Self:
        """Return a summary with the ways to its answers."""
        return cls(**{field.name: getattr(summary, field.name) for field in fields(RunSummary)})

    def raise_for_status(self) -> Self:
        """Return this result if every row of the pass has a completion. Raises RunFailed if not."""
        if self.exit_code:
            raise RunFailed(self)
        return self

    def to_arrow(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the dataset as a table in the order of the input, whole or these columns of it.

        It holds all records of the output, also those of earlier runs. Raises UsageError if a column is not there.
        """
        return read_output(self.output, columns=columns)

    def to_pandas(self, columns: Sequence[str] | None = None) -> Any:
        """Return the dataset as a `pandas.DataFrame`; see `to_arrow`. Raises UsageError without pandas."""
        _needed("pandas")
        return self.to_arrow(columns).to_pandas()

    def to_polars(self, columns: Sequence[str] | None = None) -> Any:
        """Return the dataset as a `polars.DataFrame`; see `to_arrow`. Raises UsageError without polars."""
        return _needed("polars").from_arrow(self.to_arrow(columns))

    def __str__(self) -> str:
        """What the command line prints at the end of a run."""
        from batchchat.cli.summary_page import render_summary

        return as_text(render_summary(self))

    def __repr__(self) -> str:
        cost = f", cost={self.spend_total.cost:g} {self.currency}" if self.currency else ""
        return (
            f"RunResult({self.job!r}: exit_code={self.exit_code}, ok={self.ok}, failed={self.failed}, "
            f"open={self.open}{cost}, output={self.output!r})"
        )


class Shared(TypedDict, total=False):
    """What may take the place of a run's own parts, so that runs can share them.

    `limiter` and `budget` take the place of the job's. `offload` runs blocking code (default: in worker threads), and
    `open_store` takes the place of `Store.open`.
    """

    limiter: Limiter | None
    budget: Budget | None
    offload: Offload
    open_store: Callable[..., Store]


async def run_job(
    job: Job,
    *,
    rows: GivenRows | None = None,
    options: RunOptions = _DEFAULTS,
    progress: bool | None = None,
    listener: Listener | None = None,
    on_snapshot: Callable[[Snapshot], None] | None = None,
    control: Control | None = None,
    stop: Control | None = None,
    transport: httpx.AsyncBaseTransport | None = None,
    environ: Mapping[str, str] | None = None,
    seed: int | None = None,
    demo_url: str | None = None,
    **shared: Unpack[Shared],
) -> RunResult:
    """Run a job, or go on with it where an earlier run stopped, on the event loop that is running.

    `rows` take the place of the job's input: anything with the Arrow C stream interface (polars, pandas, DuckDB,
    pyarrow), or an iterable of dicts. `progress` shows how the run goes on: in a notebook if it is not said. `listener`
    takes events, `on_snapshot` the counts four times a second. `control` steers the run: it can stop it, pause it and
    change its limits; `stop` is its earlier name. `transport` takes the place of the network, `environ` that of the
    process's environment for keys. `seed` makes jitter repeatable. `demo_url` is the address of a demo server that runs
    already. `shared` takes the place of parts of the run; see `Shared`.

    Returns how the run ended: what fails after the start is in the result's `exit_code` and `reason`.

    Raises UsageError before anything is sent or written, OutputLocked if another run holds the output, StorageError if
    the output cannot be opened.
    """
    if rows is not None:
        check_rows(rows)
    with progress_display(progress) as shown:
        summary = await run_to_summary(
            job,
            rows=rows,
            options=options,
            listener=listener or unheard,
            on_snapshot=told_both(None if shown is None else shown.update, on_snapshot),
            stop=_one_control(control, stop),
            transport=transport,
            environ=environ,
            seed=seed,
            demo_url=demo_url,
            **shared,
        )
    return RunResult.of(summary)


def run(
    job: Job,
    *,
    rows: GivenRows | None = None,
    options: RunOptions = _DEFAULTS,
    progress: bool | None = None,
    listener: Listener | None = None,
    on_snapshot: Callable[[Snapshot], None] | None = None,
    control: Control | None = None,
    stop: Control | None = None,
    transport: httpx.AsyncBaseTransport | None = None,
    environ: Mapping[str, str] | None = None,
    seed: int | None = None,
    demo_url: str | None = None,
    **shared: Unpack[Shared],
) -> RunResult:
    """Run a job to its end, from a script or a notebook; see `run_job`.

    It has an event loop of its own, in a thread: it works where a loop is running already, as in a notebook, and blocks
    the caller. `listener` and `on_snapshot` are called in that thread. An interrupt (Ctrl-C, the notebook's stop
    button) lets requests in flight end and then raises KeyboardInterrupt; a second one drops them. The same call goes
    on later.
    """
    if rows is not None:
        check_rows(rows)
    steered = _one_control(control, stop) or Control()
    # Shown from here: a notebook finds the cell of an output by the caller's context.
    with progress_display(progress) as shown:
        work = functools.partial(
            run_to_summary,
            job,
            rows=rows,
            options=options,
            listener=listener or unheard,
            on_snapshot=told_both(None if shown is None else shown.update, on_snapshot),
            stop=steered,
            transport=transport,
            environ=environ,
            seed=seed,
            demo_url=demo_url,
            **shared,
        )
        return RunResult.of(_Blocking(work, steered, options.grace).result())


class _Blocking:
    """Does asynchronous work in a thread with an event loop of its own, while the caller waits and may interrupt it."""

    def __init__(self, work: Callable[[], Awaitable[RunSummary]], control: Control, grace: float) -> None:
        self._work = work
        self._control = control
        self._grace = grace
        self._loop: asyncio.AbstractEventLoop | None = None
        self._summary: RunSummary | None = None
        self._error: BaseException | None = None
        self._interrupts = 0
        # Not `Thread.join`: once it was interrupted, it takes the thread for ended.
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._main, name="batchchat", daemon=True)

    def result(self) -> RunSummary:
        """Return what the work returns, or raise what it raises."""
        self._thread.start()
        while not self._done.is_set():
            try:
                self._done.wait()
            except KeyboardInterrupt:
                self._interrupts += 1
                # At the third one, or if nothing was begun that could be drained, nobody waits.
                if self._interrupts > 2 or self._loop is None:
                    raise
                self._tell()
                asyncio.run_coroutine_threadsafe(self._stop(), self._loop)
        if self._interrupts:
            raise KeyboardInterrupt("the run was interrupted; the same call goes on") from None
        if self._summary is None:
            raise self._error or RuntimeError("the run ended without a summary")
        return self._summary

    def _tell(self) -> None:
        if self._interrupts == 1:
            _log.warning(
                "interrupted: waiting up to %g s for what is in flight; another interrupt drops it", self._grace
            )

    async def _stop(self) -> None:
        self._control.stop(reason="interrupted", exit_code=_INTERRUPTED)

    def _main(self) -> None:
        async def work() -> None:
            self._loop = asyncio.get_running_loop()
            self._summary = await self._work()

        try:
            anyio.run(work)
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            self._error = error
        finally:
            self._done.set()


def _one_control(control: Control | None, stop: Control | None) -> Control | None:
    """Return the control of a run, by either name. Raises UsageError if two are given."""
    if control is not None and stop is not None and control is not stop:
        raise UsageError("a run has one control, and two are given", remedy="Give `control`; `stop` is its old name.")
    return control or stop


def unheard(_event: Event) -> None:
    """Take an event that nobody listens to."""


def told_both(
    one: Callable[[Snapshot], None] | None, other: Callable[[Snapshot], None] | None
) -> Callable[[Snapshot], None] | None:
    """Return what calls both, or the one that there is."""
    if one is None or other is None:
        return one or other

    def call(snapshot: Snapshot) -> None:
        one(snapshot)
        other(snapshot)

    return call


def progress_display(
    progress: bool | None,
) -> AbstractContextManager[NotebookProgress | ProgressDisplay | PlainProgress | None]:
    """Return what shows snapshots: in the notebook's cell, or on standard error if that is wanted."""
    if progress is False:
        return nullcontext()
    if in_notebook():
        return NotebookProgress()
    if not progress:
        return nullcontext()
    from batchchat.cli.display import progress as on_terminal
    from batchchat.cli.logs import LogListener
    from batchchat.cli.terminal import Terminal

    terminal = Terminal(sys.stderr)
    return on_terminal(terminal, LogListener(terminal))


def in_notebook() -> bool:
    """Tell whether this is the kernel of a notebook, which can change what a cell shows."""
    shell = sys.modules.get("IPython")
    found = shell.get_ipython() if shell is not None else None
    return getattr(found, "kernel", None) is not None


class NotebookProgress:
    """Shows the newest snapshot in the notebook's cell, at most twice a second. The last one stays."""

    def __init__(self, display: Callable[..., Any] | None = None) -> None:
        self._display = _notebook_display() if display is None else display
        # The run is told of in another thread: the context of this one says in which cell that is shown.
        self._context = contextvars.copy_context()
        self._handle: Any = None
        self._shown: tuple[str, float] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        return

    def update(self, snapshot: Snapshot) -> None:
        """Show this snapshot, unless another one of its phase was shown within half a second."""
        if self._shown is not None and self._shown[0] == snapshot.phase and snapshot.elapsed_s - self._shown[1] < 0.5:
            return
        from batchchat.cli.display import ProgressView

        self._shown = snapshot.phase, snapshot.elapsed_s
        content = {"text/plain": as_text(ProgressView(snapshot))}
        if self._handle is None:
            self._handle = self._context.run(self._display, content, raw=True, display_id=True)
        else:
            self._context.run(self._handle.update, content, raw=True)


def _notebook_display() -> Callable[..., Any]:
    from IPython.display import display

    function: Callable[..., Any] = display
    return function


def as_text(renderable: Any) -> str:
    """Write what the command line prints as plain text."""
    import io

    from rich.console import Console

    written = io.StringIO()
    console = Console(
        file=written,
        width=100,
        color_system=None,
        force_terminal=False,
        force_jupyter=False,
        markup=False,
        emoji=False,
        highlight=False,
    )
    console.print(renderable, crop=False)
    return "\n".join(line.rstrip() for line in written.getvalue().splitlines()).rstrip()


def _why(result: RunSummary) -> str:
    """The commonest reason of failed rows."""
    if not result.failures:
        return ""
    most = max(result.failures, key=lambda group: group.count)
    return f", most of them ({most.count:,}) with {most.kind}: {most.example}"


def _remedy(result: RunSummary) -> str | None:
    if not result.failed:
        return None
    return f"`batchchat show {result.output} --failed` shows them; `RunOptions(retry_failed=…)` tries them again."


def _needed(name: str) -> Any:
    """Import a library that batchchat does not bring along."""
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError:
        raise UsageError(f"{name} is not installed", remedy=f"pip install {name}") from None
