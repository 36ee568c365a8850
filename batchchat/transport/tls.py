"""Which certificate authorities are trusted."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import certifi

from batchchat.errors import UsageError


def tls_context(ca_file: str | Path | None = None) -> ssl.SSLContext:
    """Return a client context that verifies certificates and host names, for HTTP/1.1.

    Trusted are the system's authorities and certifi's, plus those in `ca_file` (PEM). Where `SSL_CERT_FILE` or
    `SSL_CERT_DIR` is set, it stands in place of the system's and certifi's. Raises `UsageError` for a `ca_file` that
    cannot be used.
    """
    context = ssl.create_default_context()
    # A minimal container has no authorities of its own, so certifi's are there too.
    if not (os.environ.get("SSL_CERT_FILE") or os.environ.get("SSL_CERT_DIR")):
        context.load_verify_locations(cafile=certifi.where())
    if ca_file is not None:
        try:
            context.load_verify_locations(cafile=str(ca_file))
        except ssl.SSLError as error:
            raise UsageError(f"ca_file {ca_file} holds no certificate in PEM form ({error})") from error
        except OSError as error:
            raise UsageError(f"ca_file {ca_file} cannot be read: {error.strerror}") from error
    # A server that speaks HTTP/2 too would else be free to choose it.
    context.set_alpn_protocols(["http/1.1"])
    return context
