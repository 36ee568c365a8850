"""A job's key comes from the environment, a `.env` beside the job, a file or a command; never from the job itself."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping

from batchchat.credentials import KeyProblem, KeySource
from batchchat.errors import JobError, UsageError
from batchchat.job.model import Job
from batchchat.providers import Provider


def load_keys(job: Job, environ: Mapping[str, str] | None = None) -> Mapping[str, str]:
    """Read the environment, with a `.env` beside the job under it: as text, without expansion. Raises UsageError."""
    environ = os.environ if environ is None else environ
    dotenv = job.file.absolute().parent / ".env" if job.file else None
    if dotenv is None or not dotenv.is_file():
        return environ
    from dotenv import dotenv_values

    try:
        values = dotenv_values(dotenv, interpolate=False)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UsageError(f"{dotenv} cannot be read: {reason}", remedy="Mend it, or move it away.") from None
    return {**{name: value for name, value in values.items() if value is not None}, **environ}


def key_source(job: Job, provider: Provider, environ: Mapping[str, str]) -> KeySource | None:
    """Return where the provider's key comes from; None if it needs none.

    A command runs in the folder of the job file, with `environ` as its environment.
    """
    command = provider.api_key_command
    if not (provider.api_key_env or provider.api_key_file or command):
        return None
    return KeySource(
        env=provider.api_key_env,
        file=provider.api_key_file,
        command=tuple(shlex.split(command)) if isinstance(command, str) else tuple(command or ()),
        environ=environ,
        folder=job.file.absolute().parent if job.file else None,
        header=provider.api_key_header,
        scheme=provider.api_key_scheme,
    )


def api_key(
    job: Job, provider: Provider, environ: Mapping[str, str], *, warn: Callable[[str], object] | None = None
) -> str | None:
    """Return the provider's key; None if it needs none. Blocking code if the key comes from a command.

    White space and quotes around a key are taken off, and `warn` is told of it without the key. Raises
    JobError (exit 2) if the key is needed and missing, or is none.
    """
    source = key_source(job, provider, environ)
    if source is None:
        return None
    try:
        return source.read(warn)
    except KeyProblem as problem:
        raise key_error(job, provider, problem) from None


def key_problem(job: Job, provider: Provider, environ: Mapping[str, str]) -> JobError | None:
    """Return why the provider's key cannot be had; None if nothing is known against it. Runs no command."""
    source = key_source(job, provider, environ)
    problem = source.problem() if source is not None else None
    return None if problem is None else key_error(job, provider, problem)


def key_error(job: Job, provider: Provider, problem: KeyProblem) -> JobError:
    """Return the problem as an error that names the job's line, the field and the provider."""
    # An own address has no name that the job's author knows.
    who = provider.base_url if provider.name == "custom" else provider.name
    field = "api_key_file" if provider.api_key_file else "api_key_command" if provider.api_key_command else None
    return job.error(
        f"{who} needs a key, and {problem.message}", *("provider", field)[: 2 if field else 1], remedy=problem.remedy
    )
