"""Opens a store of obstore from a URL."""

from __future__ import annotations

from typing import Any


def open_store(url: str, *, retries: int) -> tuple[Any, str]:
    """Return the store of a URL, and the prefix in it."""
    from obstore.store import from_url

    scheme, _, rest = url.partition("://")
    bucket, _, prefix = rest.partition("/")
    store = from_url(
        f"{scheme}://{bucket}",
        retry_config={"max_retries": retries},
        client_options={"allow_http": True, "timeout": "30s", "connect_timeout": "5s"},
    )
    return store, prefix
