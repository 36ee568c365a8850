"""Services: what speaks a provider's dialect of the Batch API behind `batchchat.engines.batch.service`.

| module | its idea |
|---|---|
| `dialects.py` | the dialects as data |
| `shapes.py` | batches as JSON, in all dialects |
| `lines.py` | lines of input and result files |
| `problems.py` | refusals and what each means, as one table |
| `http.py` | calls, uploads and downloads over HTTP |
| `batches.py` | create, find, look, cancel |
| `remote_files.py`, `bucket.py` | files at the provider, files in a bucket of the customer |
| `api.py` | a service of batches and files |
| `folder.py` | a service without a provider: files in a folder |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import batchchat
from batchchat.credentials import Credential
from batchchat.engines.batch.service import BatchService, ServiceLimits, ServiceOptions
from batchchat.engines.batch.services.dialects import DIALECTS, HOSTS, OPENAI, OTHER, BatchDialect
from batchchat.errors import UsageError
from batchchat.providers import BATCH_TERMS, DEMO, BatchTerms, Provider

if TYPE_CHECKING:
    import httpx

    from batchchat.engines.batch.services.api import Files

FILES = "files"


def service_name(provider: Provider, options: ServiceOptions) -> str:
    """Return the name of the dialect that a job's batches are spoken in. Raises UsageError for one that is unknown.

    It is what the job names, else `files` if the job names a folder, else the provider's own, else what the address
    tells, else `openai`.
    """
    name = options.service
    if options.folder is not None:
        if name not in {None, FILES}:
            raise UsageError(
                f"engine.folder is for files that are handed over by hand, and engine.service asks for {name}",
                remedy="Keep one of the two.",
            )
        return FILES
    if name == FILES:
        raise UsageError(
            "engine.service: files needs a folder", remedy="Name it: `engine: {kind: batch, folder: PATH}`."
        )
    if name is not None:
        if name not in DIALECTS:
            known = ", ".join(sorted({*DIALECTS, FILES}))
            raise UsageError(f"engine.service: no service is called {name!r}", remedy=f"Known are {known}.")
        return name
    # A provider that has a name of ours is known by it, also at another address (a proxy).
    if provider.name in DIALECTS:
        return provider.name
    host = (urlsplit(provider.base_url or "").hostname or "").lower()
    for place, name in HOSTS:
        if host == place.lstrip(".") or (place.startswith(".") and host.endswith(place)):
            return name
    return OPENAI.name


def batch_terms(provider: Provider, options: ServiceOptions) -> BatchTerms | None:
    """Return price factor and window of the batches that a job would use, None if nothing is known of them."""
    name = service_name(provider, options)
    if provider.name == DEMO and name != FILES:
        return BATCH_TERMS[DEMO]
    if name == OPENAI.name and not _is_openai(provider):
        # Somebody else's server that speaks the same dialect.
        return None
    return BATCH_TERMS.get(name)


def open_service(
    provider: Provider,
    options: ServiceOptions,
    *,
    api_key: str | Credential | None,
    environ: Mapping[str, str],
    model: str | None = None,
    transport: httpx.AsyncBaseTransport | None = None,
) -> BatchService:
    """Return the service that a job's batches go through, not yet entered; it sends nothing before.

    Arguments:
        provider: whose batches, with an address (the demo provider's is known once its server runs).
        options: the job's `engine` block.
        api_key: the provider's key, or what holds it and can give another one; None if it needs none.
        environ: where the keys of a bucket come from.
        model: the job's model, which one dialect wants on the batch itself.
        transport: what carries the calls in place of a connection (tests).

    Raises UsageError, with a remedy, for what cannot be: an unknown service, a window, a missing bucket or package.
    """
    name = service_name(provider, options)
    if name == FILES:
        from batchchat.engines.batch.services.folder import FolderService

        return FolderService(Path(options.folder or ""))
    from batchchat.engines.batch.services.api import ApiService
    from batchchat.engines.batch.services.http import Http
    from batchchat.engines.batch.services.problems import Party
    from batchchat.engines.batch.services.shapes import window_hours

    if provider.base_url is None:
        raise UsageError(f"{provider.name} has no address", remedy="Set provider.base_url.")
    dialect = _dialect(name, provider)
    window = options.window or dialect.limits.window
    window_hours(window, dialect)
    if options.bucket is not None and name != "scaleway":
        raise UsageError(
            f"engine.bucket: {name} keeps the files of batches itself",
            remedy="Remove engine.bucket. Only scaleway reads them from a bucket of yours.",
        )
    address = str(provider.base_url).split("?", 1)[0]
    who = provider.name if provider.name != "custom" else urlsplit(address).netloc
    http = Http(
        provider,
        auth=provider.api_key_header or dialect.auth,
        credential=Credential.of(api_key),
        party=Party(who, address, provider.key_place, dialect.line_numbers),
        user_agent=f"batchchat/{batchchat.__version__}",
        transport=transport,
    )
    files: Files
    if name == "scaleway":
        files = _files_in_bucket(options.bucket, environ)
    else:
        from batchchat.engines.batch.services.remote_files import RemoteFiles

        files = RemoteFiles(http, dialect)
    return ApiService(http, dialect, files, window=window, limits=_limits(dialect, window), model=model)


def _files_in_bucket(bucket: str | None, environ: Mapping[str, str]) -> Files:
    try:
        from batchchat.engines.batch.services.bucket import open_bucket
    except ImportError:
        raise UsageError(
            "Scaleway's batches need object storage, and the package obstore is missing, which speaks to it",
            remedy="Install it with `pip install 'batchchat[s3]'`.",
        ) from None
    return open_bucket(bucket, environ)


def _dialect(name: str, provider: Provider) -> BatchDialect:
    return OTHER if name == OPENAI.name and not _is_openai(provider) else DIALECTS[name]


def _is_openai(provider: Provider) -> bool:
    return urlsplit(provider.base_url or "").hostname == "api.openai.com"


def _limits(dialect: BatchDialect, window: str) -> ServiceLimits:
    return replace(dialect.limits, window=window)
