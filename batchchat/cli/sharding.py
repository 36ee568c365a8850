"""The command line of shards and workers: which share is meant, and the process of a worker."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from batchchat.errors import UsageError

if TYPE_CHECKING:
    from batchchat.addresses import Address
    from batchchat.job import Job
    from batchchat.runner.control import Control
    from batchchat.workers import Launcher, Message

_EXAMPLE = "Such as `--shard 7/64`: the eighth of 64 shares, which count from 0. Or `--shard auto` in an array job."
_NO_ARRAY = (
    "Start it as an array job of SLURM (`sbatch --array=0-63`), as an indexed Job of Kubernetes with BATCHCHAT_SHARDS "
    "set to its `completions`, or give the share, such as `--shard 7/64`."
)


def read_share(text: str, environ: Mapping[str, str]) -> tuple[int, int]:
    """Return which share `--shard` means: its number, from 0, and how many there are. Raises UsageError."""
    if text == "auto":
        return _share_of_array(environ)
    index, slash, of = text.partition("/")
    if not (slash and index.strip().isdecimal() and of.strip().isdecimal()):
        raise UsageError(f"--shard {text[:40]!r} is not of the form I/N", remedy=_EXAMPLE)
    return _checked(int(index), int(of), f"--shard {text}")


def _share_of_array(environ: Mapping[str, str]) -> tuple[int, int]:
    """Return the share of a task of an array job, as SLURM or Kubernetes tell it. Raises UsageError."""
    if "SLURM_ARRAY_TASK_ID" in environ:
        index, of, first = (
            _number(environ, name, usual)
            for name, usual in (
                ("SLURM_ARRAY_TASK_ID", None),
                ("SLURM_ARRAY_TASK_COUNT", None),
                ("SLURM_ARRAY_TASK_MIN", "0"),
            )
        )
        step = _number(environ, "SLURM_ARRAY_TASK_STEP", "1")
        return _checked((index - first) // max(step, 1), of, "--shard auto, by SLURM_ARRAY_TASK_ID and …_COUNT")
    if "JOB_COMPLETION_INDEX" in environ:
        # Kubernetes tells a pod its index, and not how many there are.
        index, of = _number(environ, "JOB_COMPLETION_INDEX"), _number(environ, "BATCHCHAT_SHARDS")
        return _checked(index, of, "--shard auto, by JOB_COMPLETION_INDEX and BATCHCHAT_SHARDS")
    raise UsageError(
        "--shard auto: neither SLURM_ARRAY_TASK_ID nor JOB_COMPLETION_INDEX is in the environment", remedy=_NO_ARRAY
    )


def _number(environ: Mapping[str, str], name: str, usual: str | None = None) -> int:
    text = environ.get(name, usual)
    if text is None or not text.strip().isdecimal():
        what = "is not in the environment" if text is None else f"is {text[:40]!r}, and no number"
        raise UsageError(f"--shard auto: {name} {what}", remedy=_NO_ARRAY)
    return int(text)


def _checked(index: int, of: int, what: str) -> tuple[int, int]:
    if of < 1 or index >= of:
        raise UsageError(f"{what}: there is no share {index} of {of}: they count from 0", remedy=_EXAMPLE)
    return index, of


def reshard_command(directory: Address, shards: int, *, as_json: bool) -> int:
    """Move an output into another number of shards; return the exit code."""
    from dataclasses import asdict

    from batchchat.cli.process import print_json, results
    from batchchat.format import plural
    from batchchat.resharding import reshard_output

    done = reshard_output(directory, shards)
    if as_json:
        print_json(asdict(done))
        return 0
    archived = f", and {plural(done.archived, 'record')} of its archive" if done.archived else ""
    results().write_line(
        f"{plural(done.records, 'record')}{archived}, moved from {plural(done.before, 'shard')} into {done.shards:,}; "
        f"the old output is kept as {done.old}"
    )
    return 0


@asynccontextmanager
async def launcher_of(job: Job, ray: str | None) -> AsyncIterator[Launcher]:
    """Yield what starts the workers of a job: on this machine, or on a Ray cluster. Raises UsageError without Ray."""
    if ray is None:
        from batchchat.workers.processes import LocalProcesses

        yield LocalProcesses()
        return
    try:
        from batchchat.workers.ray_cluster import open_cluster
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "ray":
            raise
        raise UsageError(
            "--ray needs Ray, which is not installed", remedy="Install it with `pip install 'batchchat[ray]'`."
        ) from None
    async with open_cluster(job, ray, os.environ) as launcher:
        yield launcher


def worker_command(**given: Any) -> int:
    """Be a worker until the coordinator at the other end of the pipes says that nothing is left.

    `given` are further arguments for `work`.
    """
    import anyio

    from batchchat.cli.process import collect_seldom, event_loop_options, keep_memory_small, leave_now
    from batchchat.cli.terminal import mask
    from batchchat.credentials import tell_keys
    from batchchat.transport import allow_many_files
    from batchchat.workers import work

    # Standard output is for messages alone: what anything else prints there goes to the error output.
    messages = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    tell_keys(mask.register)
    keep_memory_small()
    collect_seldom()
    allow_many_files()

    async def receive() -> Message | None:
        import orjson

        line = await anyio.to_thread.run_sync(sys.stdin.buffer.readline, abandon_on_cancel=True)
        # A line without its end is what a killed coordinator leaves.
        return orjson.loads(line) if line.endswith(b"\n") else None

    async def send(message: Message) -> None:
        import orjson

        data = orjson.dumps(message, option=orjson.OPT_PASSTHROUGH_SUBCLASS, default=str) + b"\n"
        try:
            await anyio.to_thread.run_sync(_write_all, messages, data)
        except BrokenPipeError:
            return  # the coordinator has died, which the end of standard input tells

    async def main() -> int:
        from batchchat.runner.control import Control

        control = Control()
        async with anyio.create_task_group() as group:
            group.start_soon(_stop_on_signals, control)
            code = await work(receive, send, control=control, **given)
            group.cancel_scope.cancel()
        return code

    code = anyio.run(main, backend_options=event_loop_options())
    # A thread waits for a line that will not come.
    leave_now(code)
    return code


def _write_all(file: Any, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


async def _stop_on_signals(control: Control) -> None:
    import anyio

    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
        async for number in received:
            control.stop(reason=f"the worker was stopped by {signal.Signals(number).name}", exit_code=128 + number)
