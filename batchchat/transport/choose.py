"""Which transport carries the requests to an address."""

from __future__ import annotations

import asyncio
import ipaddress
from pathlib import Path
from typing import Literal
from urllib.request import getproxies, proxy_bypass

import anyio
import httpx

from batchchat.errors import UsageError
from batchchat.transport.lean import LeanTransport
from batchchat.transport.stock import StockTransport
from batchchat.transport.tls import tls_context

Kind = Literal["auto", "lean", "httpx", "http2"]


def choose_transport(
    base_url: str | httpx.URL, *, ca_file: str | Path | None = None, kind: Kind = "auto"
) -> LeanTransport | StockTransport:
    """Make the transport for `base_url`; to be called inside the event loop that will use it.

    `auto` takes the fast path wherever it can go: on asyncio and uvloop, without a proxy. `lean` insists on it, `httpx`
    and `http2` ask for the stock one. Proxies come from `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`; an
    address of this machine itself is never asked through one. `ca_file` is trusted beside the usual authorities.
    Raises `UsageError` for what cannot be done.
    """
    url = httpx.URL(base_url)
    proxy = proxy_for(url)
    if kind == "auto":
        kind = "lean" if proxy is None and _on_asyncio() else "httpx"
    # Without https nothing is verified, so the authorities need not be read.
    tls = tls_context(ca_file) if url.scheme == "https" else None
    if kind == "lean":
        if proxy is not None:
            raise UsageError(
                f"the fast transport cannot go through a proxy, and one is set for {url.host}",
                remedy="Choose the stock transport, or name the host in NO_PROXY.",
            )
        return LeanTransport(verify=tls)
    try:
        return StockTransport(verify=tls, proxy=proxy, http2=kind == "http2")
    except ImportError as error:
        raise UsageError(f"a package is missing: {error}") from error
    except ValueError as error:
        raise UsageError(f"the proxy that is set for {url.host} cannot be used: {error}") from error


def proxy_for(url: httpx.URL) -> str | None:
    """Return the proxy that the environment names for an address, None for a direct way."""
    host = f"{url.host}:{url.port}" if url.port is not None else url.host
    # A proxy's own `localhost` is another machine.
    if is_this_machine(url.host) or proxy_bypass(host):
        return None
    proxies = getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    # `HTTP_PROXY=proxy:3128` is usual, and httpx wants a scheme.
    return proxy if proxy is None or "://" in proxy else f"http://{proxy}"


def is_this_machine(host: str) -> bool:
    """Tell whether a host of a URL is this machine itself, so that nothing sent to it crosses a network."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _on_asyncio() -> bool:
    """Return whether the running event loop is asyncio's, as uvloop's is. Raises RuntimeError outside any loop."""
    anyio.current_time()
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
