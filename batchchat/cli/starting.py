"""The commands to begin with: `init` and `demo-server`."""

from __future__ import annotations

import os
import shlex
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from batchchat.cli.arguments import read_duration
from batchchat.cli.process import errors, results
from batchchat.errors import StorageError, UsageError

if TYPE_CHECKING:
    from batchchat.demo import Demo, DemoOptions

_STARTER = {"{name}.yaml": "job.yaml", "{name}-rows.jsonl": "rows.jsonl"}
_SCHEMA = ".batchchat.schema.json"
"""What the first line of the starter job names, for editors; hidden, so that no folder of rows takes it for one."""


def init_command(name: str, *, force: bool) -> int:
    """Write a job, a few rows that it runs on, and the schema by which an editor checks it.

    The schema is written over if it is there: it is this version's, and nobody writes into it.
    """
    import json

    from batchchat.guide.schema import job_schema

    path = Path(name)
    # Whoever gives the name of the file means the same job.
    if path.suffix in {".yaml", ".yml"}:
        path = path.with_suffix("")
    job_name = path.name
    if not job_name or not all(letter.isascii() and (letter.isalnum() or letter in "._-") for letter in job_name):
        raise UsageError(f"{name!r} is no name for a job", remedy="Letters, digits, dot, dash and underscore are.")
    folder = resources.files("batchchat") / "starter"
    written = []
    targets = {path.parent / target.format(name=job_name): source for target, source in _STARTER.items()}
    for target in targets:
        # Before anything is written: half a starter would be worse than none.
        if target.exists() and not force:
            raise UsageError(
                f"{target} exists already", remedy="Choose another name, or give --force to write over it."
            )
    texts = {
        target: (folder / source).read_text(encoding="utf-8").replace("NAME", job_name)
        for target, source in targets.items()
    }
    texts[path.parent / _SCHEMA] = json.dumps(job_schema(), indent=1, ensure_ascii=False) + "\n"
    for target, text in texts.items():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
        except OSError as error:
            raise StorageError(f"{target} cannot be written: {error.strerror}") from error
        written.append(target)
    job = shlex.quote(str(path.parent / f"{job_name}.yaml"))
    terminal = results()
    for target in written:
        terminal.write_line(f"wrote {target}")
    terminal.write_line(
        f"\nSee what it would send:  batchchat plan {job}\nRun it:                  batchchat run {job}"
    )
    return 0


def demo_server_command(
    *,
    host: str,
    port: int,
    seed: int,
    latency: str,
    ttft: str | None,
    tokens_per_second: float | None,
    requests_per_minute: int | None,
    tokens_per_minute: int | None,
    concurrency: int | None,
    faults: tuple[str, ...],
    key_env: str | None,
    key_lifetime: str | None,
    key_file: str | None,
    batch_seconds: str,
    batch_faults: tuple[str, ...],
    batch_dialect: str,
    batch_folder: str | None,
) -> int:
    """Serve until a signal ends it."""
    from batchchat.demo import BatchOptions, DemoOptions, read_batch_fault, serve

    key = _demo_key(key_env, key_lifetime, key_file)
    try:
        options = DemoOptions(
            seed=seed,
            latency_s=read_duration("--latency", latency),
            ttft_s=None if ttft is None else read_duration("--ttft", ttft),
            tokens_per_s=tokens_per_second,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            concurrency=concurrency,
            faults=_read_faults(faults),
            api_key=key,
            key_lifetime_s=None if key_lifetime is None else read_duration("--key-lifetime", key_lifetime),
            key_file=None if key_file is None else Path(key_file),
            batch=BatchOptions(
                seconds=read_duration("--batch-seconds", batch_seconds),
                faults=dict(read_batch_fault(text) for text in batch_faults),
                dialect=batch_dialect,
                folder=None if batch_folder is None else Path(batch_folder),
            ),
        )
    # The options check themselves, also for programs that use them from Python.
    except ValueError as error:
        raise UsageError(str(error)) from None

    demo = _open_demo(options)
    try:
        serve(None, host, port, _tell_address, demo=demo)
    except OSError as error:
        raise UsageError(
            f"cannot listen on {host}:{port}: {error.strerror}", remedy="--port 0 takes a free port."
        ) from None
    return 0


def _tell_address(base_url: str) -> None:
    # Alone on standard output, so that a script can read it; what a person reads goes beside it.
    results().write_line(base_url)
    errors().write_line(f"the demo provider listens; use it with  --set provider.base_url={base_url}")


def _demo_key(key_env: str | None, key_lifetime: str | None, key_file: str | None) -> str | None:
    """Return the key that requests must have, None if any will do or if keys expire. Raises UsageError."""
    if (key_lifetime is None) != (key_file is None):
        raise UsageError(
            "--key-lifetime and --key-file belong together: a key that expires, and the file that holds the valid one",
            remedy="For example: --key-lifetime 20s --key-file demo-key",
        )
    if key_lifetime is not None and key_env is not None:
        raise UsageError("--key-env names a key that stays, and --key-lifetime makes keys that expire: choose one")
    if key_env is None:
        return None
    key = os.environ.get(key_env)
    if not key:
        raise UsageError(f"--key-env: the environment variable {key_env} is not set")
    return key


def _open_demo(options: DemoOptions) -> Demo:
    """Make the demo provider with its files. Raises UsageError if one of them cannot be used."""
    from batchchat.demo import Demo, KeyFileError

    try:
        return Demo(options)
    except KeyFileError as error:
        raise UsageError(
            f"--key-file {options.key_file} cannot be written: {error}", remedy="Name another file."
        ) from None
    except (OSError, ValueError) as error:
        said = error.strerror if isinstance(error, OSError) else error
        raise UsageError(
            f"--batch-folder {options.batch.folder} cannot be used: {said}",
            remedy="Name an empty folder, or one that only demo servers have written to.",
        ) from None


def _read_faults(texts: tuple[str, ...]) -> dict[str, float]:
    faults = {}
    for text in texts:
        name, equals, share = text.partition("=")
        try:
            faults[name.strip()] = float(share) if equals else 1.0
        except ValueError:
            raise UsageError(f"--fault {text}: the share is a number from 0 to 1, such as {name}=0.05") from None
    return faults
