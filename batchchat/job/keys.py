"""Keys come from the environment, or from a `.env` beside the job; never from the job itself."""

from __future__ import annotations

import os
from collections.abc import Mapping

from batchchat.errors import UsageError
from batchchat.job.model import Job
from batchchat.providers import Provider


def load_keys(job: Job, environ: Mapping[str, str] | None = None) -> Mapping[str, str]:
    """The environment, with a `.env` beside the job under it; read as text, without expansion. Raises UsageError."""
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


def api_key(job: Job, provider: Provider, environ: Mapping[str, str]) -> str | None:
    """The provider's key from the environment. Raises JobError (exit 2) where it is needed and missing."""
    if provider.api_key_env is None:
        return None
    name = provider.api_key_env
    key = environ.get(name, "").strip()
    if not key:
        # An own address has no name that the job's author knows.
        who = provider.base_url if provider.name == "custom" else provider.name
        state = "empty" if name in environ else "not set"
        raise job.error(
            f"{who} needs a key, and the environment variable {name} is {state}",
            "provider",
            remedy=f"Set it with `export {name}=…`, or write it into a .env beside the job.",
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise job.error(
            f"the key in {name} holds characters that no key has, such as a space or a line break",
            "provider",
            remedy="Give the key alone, without the word Bearer, quotes or other keys around it.",
        )
    return key
