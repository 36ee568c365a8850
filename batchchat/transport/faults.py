"""What a transport may raise beyond httpx's own exceptions, and how to ask whether a request was sent."""

from __future__ import annotations

import ssl
from typing import TypeVar

import httpx

_Error = TypeVar("_Error", bound=BaseException)

_NEVER_SENT = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.ProxyError,
    httpx.LocalProtocolError,
    httpx.UnsupportedProtocol,
)


class ResponseTooLarge(httpx.RemoteProtocolError):
    """A response passed the bound on its head or on its decoded body. It was dropped, never held in memory."""


class UntrustedServer(httpx.ConnectError):
    """The server's certificate is not trusted, or is for another host. Nothing was sent; waiting does not help."""


def untrusted(error: BaseException) -> bool:
    """Return whether an error, or what led to it, is a certificate that was not accepted."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ssl.SSLCertVerificationError):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def ended_unanswered(error: BaseException) -> bool:
    """Return whether a connection ended soon, before any byte of an answer.

    So ends a kept connection that the server had closed as the request was written.
    """
    return bool(getattr(error, "ended_unanswered", False))


def request_sent(error: BaseException) -> bool:
    """Return whether the server may have received the whole request that ended in `error`.

    False is certain: nothing can have been done, or billed, for it. True means that nobody can know.
    """
    known = getattr(error, "request_sent", None)
    return known if isinstance(known, bool) else not isinstance(error, _NEVER_SENT)


def tell_sent(error: _Error, sent: bool) -> _Error:
    """Note on an exception what `request_sent` answers, and return it."""
    error.__dict__["request_sent"] = sent
    return error
