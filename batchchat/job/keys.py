"""Keys come from the environment, or from a `.env` beside the job; never from the job itself."""

from __future__ import annotations

import os
from collections.abc import Mapping

from batchchat.job.model import Job
from batchchat.providers import Provider


def load_keys(job: Job, environ: Mapping[str, str] | None = None) -> Mapping[str, str]:
    """The environment, with a `.env` beside the job under it; read as text, without expansion."""
    environ = os.environ if environ is None else environ
    dotenv = job.file.absolute().parent / ".env" if job.file else None
    if dotenv is None or not dotenv.is_file():
        return environ
    from dotenv import dotenv_values

    values = dotenv_values(dotenv, interpolate=False)
    return {**{name: value for name, value in values.items() if value is not None}, **environ}


def api_key(job: Job, provider: Provider, environ: Mapping[str, str]) -> str | None:
    """The provider's key from the environment. Raises JobError (exit 2) where it is needed and missing."""
    if provider.api_key_env is None:
        return None
    key = environ.get(provider.api_key_env, "").strip()
    if not key:
        raise job.error(
            f"{provider.name} needs a key, and the environment variable {provider.api_key_env} is not set",
            "provider",
            remedy=f"Set it with `export {provider.api_key_env}=…`, or write it into a .env beside the job.",
        )
    if not key.isascii() or not key.isprintable():
        raise job.error(f"the key in {provider.api_key_env} holds characters that no key has", "provider")
    return key
